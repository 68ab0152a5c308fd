//! Lists what the history has of a partition, the latest first: for listings that went through memory.
//!
//! The order is read from `taskmaster.stretch`, and the tasks by their ids. A page looks at so many tasks at most, so that
//! a filter that nothing passes does not hold it up. It has its own connection, which is made when it is first needed, so that no listing delays a look at a single task. A listing is answered, if only with why
//! it cannot be, within the time it may take, its wait for others included.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::mpsc::Receiver;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Row, Statement};

use super::copy::STRETCH_TASK_BYTES;
use super::reader::{StoredTask, task};
use super::session::connect;
use super::sql::TOLD;
use super::{Answers, Error, Session, Settings, schema};

/// Longest time from question to answer.
const LIST_MAX: Duration = Duration::from_secs(5);
/// Tasks that one page looks at: once it has looked at so many it ends.
const LOOKED_MAX: usize = 50_000;
/// Tasks that are looked at together, doubled from the first number to the second while a page is not full.
const TOGETHER: (usize, usize) = (64, 4_096);

/// Which tasks to list.
#[derive(Clone, Debug)]
pub struct Listing {
    /// Whom to answer: the caller's number.
    pub by: usize,
    /// The caller's number of the question.
    pub number: u64,
    /// When it was asked.
    pub asked: Instant,
    /// The cluster.
    pub cluster: u128,
    /// The partition.
    pub partition: u16,
    /// A database where the partition does not stand at this number at least has not all of it.
    pub position: u64,
    /// Where to begin.
    pub from: HistoryPlace,
    /// Namespace.
    pub namespace: String,
    /// Only this queue; empty for all.
    pub queue: String,
    /// Only this kind; empty for all.
    pub kind: String,
    /// Only these states.
    pub states: Vec<u8>,
    /// Most tasks.
    pub limit: u32,
}

/// A place in the history of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryPlace {
    /// How many clusters back, each restored from the next.
    pub back: u8,
    /// What is left there are the numbers up to this one.
    pub upto: u64,
}

/// The answer to a [`Listing`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listed {
    /// Tasks as they ended last, without what is only told of single ones, and where to go on.
    Tasks(Vec<StoredTask>, Option<HistoryPlace>),
    /// It could not be looked up, and why.
    Failed(String),
}

/// The cluster and those that it goes on from, and where the partition stands in each.
const CHAIN: &str = "WITH RECURSIVE chain AS (
        SELECT cluster, restored_from, 0 AS back FROM taskmaster.cluster WHERE id = $1::text::uuid
        UNION ALL SELECT older.cluster, older.restored_from, chain.back + 1
        FROM taskmaster.cluster AS older JOIN chain ON older.cluster = chain.restored_from)
    SELECT chain.cluster, coalesce(checkpoint.position, 0) FROM chain
    LEFT JOIN taskmaster.checkpoint ON checkpoint.cluster = chain.cluster AND checkpoint.partition = $2 ORDER BY chain.back";

/// Batches from a number down, as many as have so many tasks together, or a few more.
const STRETCHES: &str = "SELECT behind, tasks, first_at, last_at FROM (
        SELECT *, sum(octet_length(tasks)) OVER (ORDER BY behind DESC) - octet_length(tasks) AS later FROM (
            SELECT * FROM taskmaster.stretch
            WHERE cluster = $1 AND partition = $2 AND behind < $3 ORDER BY behind DESC LIMIT $4) AS latest) AS summed
    WHERE later < $4 * 24 ORDER BY behind";

/// Of a task that succeeded there is no later end: it cannot be retried.
const PAGE: &str = concat!(
    "SELECT ",
    told!(),
    ", NULL::bytea, NULL::bytea, NULL::bytea, task.number
    FROM taskmaster.final_task AS task JOIN taskmaster.contract USING (contract)
    WHERE task.id = ANY ($1::text[]::uuid[]) AND task.cluster = $2 AND task.number BETWEEN $3 AND $4
        AND task.finished_at BETWEEN $5 AND $6
        AND contract.namespace = $7 AND $8 IN ('', contract.queue) AND $9 IN ('', contract.kind) AND task.state = ANY ($10)
        AND (task.state = 4 OR NOT EXISTS (
            SELECT FROM taskmaster.final_task AS later
            WHERE later.id = task.id AND later.cluster = ANY ($11) AND (later.cluster, later.number) > (task.cluster, task.number)))
    ORDER BY task.number DESC LIMIT $12"
);

/// Answers until the other end of the queue is gone.
pub async fn list(settings: Settings, mut queue: Receiver<Listing>, answers: Arc<dyn Answers>) {
    let mut open = None;
    while let Some(listing) = queue.recv().await {
        let left = LIST_MAX.saturating_sub(listing.asked.elapsed());
        if left.is_zero() {
            // Others took the time, and the connection is as good as it was.
            answers.listed(listing.by, listing.number, Listed::Failed(Error::Slow(LIST_MAX).to_string()));
            continue;
        }
        let looked = tokio::time::timeout(left, look(&settings, &mut open, &listing)).await;
        let listed = looked.unwrap_or(Err(Error::Slow(LIST_MAX))).unwrap_or_else(|error| {
            open = None;
            Listed::Failed(error.to_string())
        });
        answers.listed(listing.by, listing.number, listed);
    }
}

/// A connection with what is asked on it.
struct Open {
    session: Session,
    chain: Statement,
    stretches: Statement,
    page: Statement,
}

impl Open {
    async fn new(settings: &Settings) -> Result<Self, Error> {
        let session = connect(settings).await?;
        schema::check_session(&session).await?;
        let client = &session.client;
        let (chain, stretches, page) =
            (client.prepare(CHAIN).await?, client.prepare(STRETCHES).await?, client.prepare(PAGE).await?);
        Ok(Self { session, chain, stretches, page })
    }

    /// The clusters from the listing's one back.
    async fn chain(&self, listing: &Listing) -> Result<Vec<i32>, Error> {
        let (id, partition) = (format!("{:032x}", listing.cluster), i32::from(listing.partition));
        let rows = self.session.client.query(&self.chain, &[&id, &partition]).await?;
        let stands = rows.first().map(|row| row.try_get::<_, i64>(1)).transpose()?.unwrap_or_default().cast_unsigned();
        if stands < listing.position {
            return Err(Error::Behind { stands, wanted: listing.position });
        }
        rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
    }

    async fn list(&self, listing: &Listing) -> Result<Listed, Error> {
        let chain = self.chain(listing).await?;
        let mut page = Page::new(listing);
        while let Some(&cluster) = chain.get(usize::from(page.next.back)) {
            let Some(stretch) = self.stretch(listing, cluster, &page).await? else {
                page.next = HistoryPlace { back: page.next.back + 1, upto: u64::MAX };
                continue;
            };
            let mut rest = stretch.upto(page.next.upto);
            while !rest.is_empty() {
                let (earlier, together) = rest.split_at(rest.len().saturating_sub(page.together()));
                self.fill(listing, cluster, &chain, &stretch, together, &mut page).await?;
                if page.is_full(listing) {
                    return Ok(Listed::Tasks(page.tasks, Some(page.next)));
                }
                rest = earlier;
            }
            page.next.upto = stretch.behind.cast_unsigned();
        }
        Ok(Listed::Tasks(page.tasks, None))
    }

    /// What comes next; `None` at the end of the cluster's history.
    async fn stretch(&self, listing: &Listing, cluster: i32, page: &Page) -> Result<Option<Stretch>, Error> {
        let upto = i64::try_from(page.next.upto).unwrap_or(i64::MAX);
        let together = i64::try_from(page.together()).unwrap_or(i64::MAX);
        let parameters: [&(dyn ToSql + Sync); 4] = [&cluster, &i32::from(listing.partition), &upto, &together];
        let rows = self.session.client.query(&self.stretches, &parameters).await?;
        let mut stretch: Option<Stretch> = None;
        for row in &rows {
            let next = Stretch::of(row)?;
            stretch = Some(match stretch {
                None => next,
                Some(before) => before.and(next),
            });
        }
        Ok(stretch)
    }

    /// Looks at some tasks of a stretch: those that are wanted come to the page.
    async fn fill(
        &self,
        listing: &Listing,
        cluster: i32,
        chain: &[i32],
        stretch: &Stretch,
        together: &[(i64, u128)],
        page: &mut Page,
    ) -> Result<(), Error> {
        let (Some((bottom, _)), Some((top, _))) = (together.first(), together.last()) else { return Ok(()) };
        let ids: Vec<String> = together.iter().map(|(_, id)| format!("{id:032x}")).collect();
        let states: Vec<i16> = listing.states.iter().map(|&state| state.into()).collect();
        let limit = i64::from(listing.limit) - i64::try_from(page.tasks.len()).unwrap_or(i64::MAX);
        let parameters: [&(dyn ToSql + Sync); 12] = [
            &ids,
            &cluster,
            bottom,
            top,
            &stretch.first_at,
            &stretch.last_at,
            &listing.namespace,
            &listing.queue,
            &listing.kind,
            &states,
            &chain,
            &limit,
        ];
        let rows = self.session.client.query(&self.page, &parameters).await?;
        for row in &rows {
            page.tasks.push(task(row)?);
        }
        let last = rows.last().filter(|_| page.tasks.len() >= listing.limit as usize);
        let last = last.map(|row| row.try_get::<_, i64>(TOLD + 3)).transpose()?;
        page.next.upto = (last.unwrap_or(*bottom) - 1).cast_unsigned();
        page.looked += together.len();
        Ok(())
    }
}

/// Tasks of one batch or several in the order of their numbers, each with its id.
struct Stretch {
    behind: i64,
    tasks: Vec<(i64, u128)>,
    first_at: SystemTime,
    last_at: SystemTime,
}

impl Stretch {
    fn of(row: &Row) -> Result<Self, Error> {
        let bytes: &[u8] = row.try_get(1)?;
        let (tasks, rest) = bytes.as_chunks::<STRETCH_TASK_BYTES>();
        if !rest.is_empty() {
            return Err(Error::Vanished("the end of a stretch"));
        }
        let task = |bytes: &[u8; STRETCH_TASK_BYTES]| {
            let (number, id) = bytes.split_first_chunk().expect("a number's bytes and more");
            (i64::from_be_bytes(*number), u128::from_be_bytes(id.try_into().expect("the rest is an id's bytes")))
        };
        let tasks = tasks.iter().map(task).collect();
        Ok(Self { behind: row.try_get(0)?, tasks, first_at: row.try_get(2)?, last_at: row.try_get(3)? })
    }

    /// With the one that comes next.
    fn and(mut self, next: Self) -> Self {
        self.tasks.extend(next.tasks);
        self.first_at = self.first_at.min(next.first_at);
        self.last_at = self.last_at.max(next.last_at);
        self
    }

    /// Those with numbers up to this one.
    fn upto(&self, number: u64) -> &[(i64, u128)] {
        &self.tasks[..self.tasks.partition_point(|(other, _)| other.cast_unsigned() <= number)]
    }
}

/// A page that is being filled.
struct Page {
    tasks: Vec<StoredTask>,
    next: HistoryPlace,
    looked: usize,
}

impl Page {
    const fn new(listing: &Listing) -> Self {
        Self { tasks: Vec::new(), next: listing.from, looked: 0 }
    }

    /// How many tasks to look at next.
    fn together(&self) -> usize {
        self.looked.clamp(TOGETHER.0, TOGETHER.1)
    }

    fn is_full(&self, listing: &Listing) -> bool {
        self.tasks.len() >= listing.limit as usize || self.looked >= LOOKED_MAX
    }
}

async fn look(settings: &Settings, open: &mut Option<Open>, listing: &Listing) -> Result<Listed, Error> {
    let open = match open {
        Some(open) if !open.session.is_closed() => open,
        _ => open.insert(Open::new(settings).await?),
    };
    open.list(listing).await
}

//! Lists what the history has of a partition, the latest first: for listings that went through memory.
//!
//! A page looks at a bounded range of numbers, so that a filter that nothing passes does not hold it up. It has its own connection,
//! which is made when it is first needed, so that no listing delays a look at a single task. A listing is answered, if only with why
//! it cannot be, within the time it may take, its wait for others included.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::Receiver;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Row, Statement};

use super::reader::{StoredTask, task};
use super::session::connect;
use super::{Answers, Error, Session, Settings, schema};

/// Longest time from question to answer.
const LIST_MAX: Duration = Duration::from_secs(5);
/// Numbers that one page looks at.
const NUMBERS_MAX: i64 = 50_000;

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

/// The highest number from a place on.
const TOP: &str =
    "SELECT max(number) FROM taskmaster.final_task WHERE cluster = $1 AND partition = $2 AND number <= $3";

/// Of a task that succeeded there is no later end: it cannot be retried.
const PAGE: &str = "SELECT
        uuid_send(task.id), uuid_send(task.workflow), task.state, contract.namespace, contract.queue, contract.kind, task.name,
        contract.priority, task.attempts, contract.attempts_max, task.late, task.started_at, task.finished_at, task.deadline_at,
        task.error_code, task.error, NULL::bytea, NULL::bytea, NULL::bytea, task.number
    FROM taskmaster.final_task AS task JOIN taskmaster.contract USING (contract)
    WHERE task.cluster = $1 AND task.partition = $2 AND task.number > $3 AND task.number <= $4
        AND contract.namespace = $5 AND $6 IN ('', contract.queue) AND $7 IN ('', contract.kind) AND task.state = ANY ($8)
        AND (task.state = 4 OR NOT EXISTS (
            SELECT FROM taskmaster.final_task AS later
            WHERE later.id = task.id AND later.cluster = ANY ($9) AND (later.cluster, later.number) > (task.cluster, task.number)))
    ORDER BY task.number DESC LIMIT $10";

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
    top: Statement,
    page: Statement,
}

impl Open {
    async fn new(settings: &Settings) -> Result<Self, Error> {
        let session = connect(settings).await?;
        schema::check_session(&session).await?;
        let client = &session.client;
        let (chain, top, page) =
            (client.prepare(CHAIN).await?, client.prepare(TOP).await?, client.prepare(PAGE).await?);
        Ok(Self { session, chain, top, page })
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
        let client = &self.session.client;
        let (chain, partition) = (self.chain(listing).await?, i32::from(listing.partition));
        let states: Vec<i16> = listing.states.iter().map(|&state| state.into()).collect();
        let limit = i64::from(listing.limit);
        let HistoryPlace { mut back, upto } = listing.from;
        let mut upto = i64::try_from(upto).unwrap_or(i64::MAX);
        while let Some(cluster) = chain.get(usize::from(back)) {
            let top = client.query_one(&self.top, &[cluster, &partition, &upto]).await?;
            if let Some(top) = top.try_get::<_, Option<i64>>(0)? {
                let bottom = (top - NUMBERS_MAX).max(0);
                let parameters: [&(dyn ToSql + Sync); 10] = [
                    cluster,
                    &partition,
                    &bottom,
                    &top,
                    &listing.namespace,
                    &listing.queue,
                    &listing.kind,
                    &states,
                    &chain,
                    &limit,
                ];
                let rows = client.query(&self.page, &parameters).await?;
                let tasks = rows.iter().map(task).collect::<Result<Vec<_>, _>>()?;
                let is_full = rows.len() >= listing.limit as usize;
                let last = rows.last().filter(|_| is_full).map(|row: &Row| row.try_get::<_, i64>(19)).transpose()?;
                let upto = last.map_or(bottom, |last| last - 1).cast_unsigned();
                return Ok(Listed::Tasks(tasks, Some(HistoryPlace { back, upto })));
            }
            (back, upto) = (back + 1, i64::MAX);
        }
        Ok(Listed::Tasks(Vec::new(), None))
    }
}

async fn look(settings: &Settings, open: &mut Option<Open>, listing: &Listing) -> Result<Listed, Error> {
    let open = match open {
        Some(open) if !open.session.is_closed() => open,
        _ => open.insert(Open::new(settings).await?),
    };
    open.list(listing).await
}

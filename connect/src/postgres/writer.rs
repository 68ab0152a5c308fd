//! Writes what leaders give: many batches in one transaction, each exactly once, however often it is tried.
//!
//! A transaction moves the positions of the partitions whose batch fits (the partition stands where the batch begins, and no later
//! term has written) and copies exactly those batches' rows. Whoever tries again after a lost answer finds the position moved, and
//! hears where it stands; whoever was replaced as leader hears that.
//!
//! Requests that were taken are kept until they are answered: after a failure they are tried again on a new connection, without
//! end. What comes meanwhile waits in the bounded queue, and whoever finds it full waits itself.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, pin_mut};
use tokio::sync::mpsc::Receiver;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row, Statement, Transaction};

use super::batch::{Batch, Contract, QueueSetting, Request, Stored};
use super::day::Day;
use super::leaves::Leaves;
use super::session::connect;
use super::{Error, Found, Listed, Session, Settings, Status, copy, schema};
use crate::backoff::Backoff;

/// Requests and bytes of one transaction at most, beyond the first request.
const GROUP_MAX: usize = 256;
const GROUP_BYTES_MAX: usize = 8 << 20;
/// Bytes per message of a copy.
const COPY_BYTES: usize = 256 << 10;
/// Contracts that one connection remembers.
const CONTRACTS_MAX: usize = 65_536;

/// A request, and who gave it.
#[derive(Debug)]
pub struct Given {
    /// Whom to answer: the caller's number.
    pub by: usize,
    /// What is asked for.
    pub request: Request,
}

/// Takes answers. Must not block.
pub trait Answers: Send + Sync {
    /// The answer to a request about a partition, given in a term.
    fn stored(&self, by: usize, partition: u16, term: u64, stored: Stored);

    /// The answer to a question about a task.
    fn found(&self, by: usize, number: u64, found: Found);

    /// A page of the history.
    fn listed(&self, by: usize, number: u64, listed: Listed);
}

/// Writes until the other end of the queue is gone.
pub async fn write(settings: Settings, mut queue: Receiver<Given>, answers: Arc<dyn Answers>, status: Arc<Status>) {
    let mut taken = VecDeque::new();
    let mut outage = Outage::of(settings.place());
    loop {
        let mut writer = match open(&settings).await {
            Ok(writer) => writer,
            Err(error) => {
                if !outage.wait(&error, &queue, &status).await {
                    return;
                }
                continue;
            }
        };
        if taken.is_empty() && queue.is_empty() {
            outage.end(&status);
        }
        status.connected.fetch_add(1, Ordering::Relaxed);
        let ended = writer.run(&mut queue, &mut taken, &*answers, (&status, &mut outage)).await;
        status.connected.fetch_sub(1, Ordering::Relaxed);
        match ended {
            Ok(()) => return,
            Err(error) => {
                if !outage.wait(&error, &queue, &status).await {
                    return;
                }
            }
        }
    }
}

async fn open(settings: &Settings) -> Result<Writer, Error> {
    let session = connect(settings).await?;
    session.timely(schema::check_session(&session)).await?;
    let statements = session.timely(Statements::prepare(&session.client)).await?;
    Ok(Writer { session, statements, clusters: HashMap::new(), contracts: HashMap::new(), leaves: Leaves::default() })
}

/// The server cannot be used: said once at its beginning and once at its end, by the first and the last of the writers. A server that
/// can be reached and refuses what is written is not back.
struct Outage {
    place: String,
    is_on: bool,
    backoff: Backoff,
}

impl Outage {
    /// None yet of the server at this place.
    fn of(place: String) -> Self {
        Self { place, is_on: false, backoff: Backoff::default() }
    }

    /// Waits before the next try; `false` when nobody gives anything any longer.
    async fn wait(&mut self, error: &Error, queue: &Receiver<Given>, status: &Status) -> bool {
        let sentence = error.to_string();
        if !core::mem::replace(&mut self.is_on, true) && status.lost() {
            Status::add(&status.outages, 1);
            tracing::warn!("checkpoints wait: {sentence}; tasks go on, and it is tried again");
        }
        status.failed(&sentence);
        tracing::debug!("not yet: {sentence}");
        if queue.is_closed() {
            return false;
        }
        tokio::time::sleep(self.backoff.wait()).await;
        true
    }

    fn end(&mut self, status: &Status) {
        self.backoff = Backoff::default();
        if core::mem::take(&mut self.is_on)
            && let Some(took) = status.back()
        {
            tracing::warn!("checkpoints go on: PostgreSQL at {} is back after {:.1} s", self.place, took.as_secs_f64());
        }
    }
}

/// What is asked of each partition of one cluster, the latest term's batch of each.
struct Group<'a> {
    cluster: u128,
    opens: BTreeMap<u16, u64>,
    batches: BTreeMap<u16, &'a Batch>,
}

impl<'a> Group<'a> {
    /// The requests that are about the cluster of the first one.
    fn of(taken: &'a VecDeque<Given>) -> Self {
        let cluster = taken.front().map_or(0, |given| given.request.cluster());
        let mut group = Self { cluster, opens: BTreeMap::new(), batches: BTreeMap::new() };
        for request in taken.iter().map(|given| &given.request).filter(|request| request.cluster() == cluster) {
            match request {
                Request::Open { partition, term, .. } => {
                    let latest = group.opens.entry(*partition).or_default();
                    *latest = (*latest).max(*term);
                }
                Request::Batch(batch) => {
                    let latest = group.batches.entry(batch.partition).or_insert(batch);
                    if latest.term < batch.term {
                        *latest = batch;
                    }
                }
            }
        }
        group
    }
}

/// Where partitions stand: the latest term, and the number.
type Stands = BTreeMap<u16, (u64, u64)>;

/// What is asked again and again.
struct Statements {
    claim: Statement,
    advance: Statement,
    stands: Statement,
    contract: Statement,
    queues: Statement,
    stretches: Statement,
    chunks: Statement,
}

impl Statements {
    async fn prepare(client: &Client) -> Result<Self, Error> {
        Ok(Self {
            claim: client
                .prepare(
                    "INSERT INTO taskmaster.checkpoint AS known (cluster, partition, term, position)
                     SELECT $1, partition, term, 0 FROM unnest($2::int4[], $3::int8[]) AS asked (partition, term) ORDER BY partition
                     ON CONFLICT (cluster, partition) DO UPDATE SET term = greatest(known.term, excluded.term)
                     RETURNING partition, term, position",
                )
                .await?,
            advance: client
                .prepare(
                    "UPDATE taskmaster.checkpoint AS known SET position = batch.upto, term = batch.term, at = now()
                     FROM unnest($2::int4[], $3::int8[], $4::int8[], $5::int8[]) AS batch (partition, term, behind, upto)
                     WHERE known.cluster = $1 AND known.partition = batch.partition
                       AND known.position = batch.behind AND known.term <= batch.term
                     RETURNING known.partition, known.term, known.position",
                )
                .await?,
            stands: client
                .prepare(
                    "SELECT partition, term, position FROM taskmaster.checkpoint
                     WHERE cluster = $1 AND partition = ANY ($2::int4[])",
                )
                .await?,
            queues: client
                .prepare(
                    "INSERT INTO taskmaster.queue_setting
                         (cluster, partition, namespace, queue, paused, draining, rate_milli_per_s, rate_burst, concurrency, depth_max,
                          retention_ms, flags_deadlines, policy, refuse_permille, restarts_off, weight)
                     SELECT $1, $2, * FROM unnest($3::text[], $4::text[], $5::bool[], $6::bool[], $7::int8[], $8::int8[], $9::int8[],
                                                  $10::int8[], $11::int8[], $12::bool[], $13::text[], $14::int4[], $15::int4[],
                                                  $16::int4[])
                     ON CONFLICT (cluster, partition, namespace, queue) DO UPDATE SET
                         paused = excluded.paused, draining = excluded.draining, rate_milli_per_s = excluded.rate_milli_per_s,
                         rate_burst = excluded.rate_burst, concurrency = excluded.concurrency, depth_max = excluded.depth_max,
                         retention_ms = excluded.retention_ms, flags_deadlines = excluded.flags_deadlines,
                         policy = excluded.policy, refuse_permille = excluded.refuse_permille,
                         restarts_off = excluded.restarts_off, weight = excluded.weight, at = now()",
                )
                .await?,
            stretches: client
                .prepare(&format!("COPY taskmaster.stretch ({}) FROM STDIN (FORMAT binary)", copy::STRETCH_COLUMNS))
                .await?,
            chunks: client
                .prepare(
                    "INSERT INTO taskmaster.state_chunk AS known (cluster, partition, digest, day, bytes)
                     SELECT $1, partition, digest, date '1970-01-01' + day, bytes
                     FROM unnest($2::int4[], $3::bytea[], $4::int4[], $5::bytea[]) AS told (partition, digest, day, bytes)
                     ON CONFLICT (cluster, partition, digest) DO UPDATE SET day = excluded.day WHERE known.day < excluded.day",
                )
                .await?,
            contract: client
                .prepare(
                    "WITH added AS (
                         INSERT INTO taskmaster.contract (canonical, namespace, queue, kind, priority, attempts_max, restartable)
                         VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (sha256(canonical)) DO NOTHING RETURNING contract)
                     SELECT contract FROM added
                     UNION ALL SELECT contract FROM taskmaster.contract WHERE sha256(canonical) = sha256($1) LIMIT 1",
                )
                .await?,
        })
    }
}

/// One connection and what it knows of the database.
struct Writer {
    session: Session,
    statements: Statements,
    clusters: HashMap<u128, i32>,
    contracts: HashMap<Box<[u8]>, i32>,
    leaves: Leaves,
}

impl Writer {
    /// Takes requests in groups until the queue ends. What is in `taken` after a failure was not answered.
    async fn run(
        &mut self,
        queue: &mut Receiver<Given>,
        taken: &mut VecDeque<Given>,
        answers: &dyn Answers,
        (status, outage): (&Status, &mut Outage),
    ) -> Result<(), Error> {
        loop {
            if taken.is_empty() {
                // A connection that ends while there is nothing to do is an outage, too.
                let first = tokio::select! {
                    first = queue.recv() => first,
                    () = self.session.ended() => return Err(Error::Ended),
                };
                let Some(first) = first else { return Ok(()) };
                taken.push_back(first);
            }
            let mut bytes: usize = taken.iter().map(|given| size(&given.request)).sum();
            while taken.len() < GROUP_MAX && bytes < GROUP_BYTES_MAX {
                let Ok(given) = queue.try_recv() else { break };
                bytes += size(&given.request);
                taken.push_back(given);
            }
            let group = Group::of(taken);
            let (cluster, longest) = (group.cluster, self.session.statement_timeout * 2);
            let written = tokio::time::timeout(longest, self.write(&group, status)).await;
            let stands = written.unwrap_or(Err(Error::Slow(longest)))?;
            outage.end(status);
            let (answered, rest) = taken.drain(..).partition(|given: &Given| given.request.cluster() == cluster);
            *taken = rest;
            for Given { by, request } in Vec::from(answered as VecDeque<Given>) {
                let (partition, term) = (request.partition(), request.term());
                let (latest, upto) = stands.get(&partition).copied().unwrap_or_default();
                let stored = if latest > term { Stored::Overtaken } else { Stored::Upto(upto) };
                answers.stored(by, partition, term, stored);
            }
        }
    }

    /// Writes a group; where its partitions stand afterwards.
    async fn write(&mut self, group: &Group<'_>, status: &Status) -> Result<Stands, Error> {
        let cluster = self.cluster(group.cluster).await?;
        status.cluster.store(cluster, Ordering::Relaxed);
        let mut stands = Stands::new();
        if !group.opens.is_empty() {
            let (partitions, terms): (Vec<i32>, Vec<i64>) =
                group.opens.iter().map(|(&partition, &term)| (i32::from(partition), signed(term))).unzip();
            let claim = &self.statements.claim;
            read_stands(&self.session.client.query(claim, &[&cluster, &partitions, &terms]).await?, &mut stands)?;
        }
        if group.batches.is_empty() {
            return Ok(stands);
        }
        if self.contracts.len() >= CONTRACTS_MAX {
            self.contracts.clear();
        }
        for contract in group.batches.values().flat_map(|batch| &batch.contracts) {
            self.learn_contract(contract).await?;
        }
        let mut copies = BTreeMap::new();
        for task in group.batches.values().flat_map(|batch| &batch.tasks) {
            let day = Day::of(task.finished_us);
            if let Entry::Vacant(place) = copies.entry(day) {
                place.insert(self.leaves.copy_into(&mut self.session.client, day).await?);
            }
        }
        self.write_batches(cluster, group, &copies, &mut stands, status).await?;
        Ok(stands)
    }

    /// The transaction.
    async fn write_batches(
        &mut self,
        cluster: i32,
        group: &Group<'_>,
        copies: &BTreeMap<Day, Statement>,
        stands: &mut Stands,
        status: &Status,
    ) -> Result<(), Error> {
        let of =
            |field: fn(&Batch) -> u64| group.batches.values().map(|batch| signed(field(batch))).collect::<Vec<_>>();
        let partitions: Vec<i32> = group.batches.keys().map(|&partition| partition.into()).collect();
        let (terms, from, to) = (of(|batch| batch.term), of(|batch| batch.from), of(|batch| batch.to));
        let transaction = self.session.client.transaction().await?;
        let parameters: [&(dyn ToSql + Sync); 5] = [&cluster, &partitions, &terms, &from, &to];
        let mut advanced = Stands::new();
        read_stands(&transaction.query(&self.statements.advance, &parameters).await?, &mut advanced)?;
        let fitting: Vec<&Batch> = group
            .batches
            .iter()
            .filter(|(partition, _)| advanced.contains_key(partition))
            .map(|(_, batch)| *batch)
            .collect();
        let (mut tasks, mut bytes) = (0, 0);
        for (day, statement) in copies {
            let rows = fitting.iter().flat_map(|batch| batch.tasks.iter().map(move |task| (*batch, task)));
            let mut rows = rows.filter(|(_, task)| Day::of(task.finished_us) == *day).peekable();
            if rows.peek().is_none() {
                continue;
            }
            let sink = transaction.copy_in::<_, Bytes>(statement).await?;
            pin_mut!(sink);
            let mut out = copy::begin();
            for (batch, task) in rows {
                let contract =
                    batch.contracts.get(task.contract as usize).and_then(|c| self.contracts.get(&c.canonical));
                let contract = *contract.ok_or(Error::Vanished("a contract"))?;
                copy::put_row(&mut out, cluster, batch, task, contract);
                tasks += 1;
                if out.len() >= COPY_BYTES {
                    bytes += out.len() as u64;
                    sink.feed(out.split().freeze()).await?;
                    out = BytesMut::with_capacity(COPY_BYTES + COPY_BYTES / 8);
                }
            }
            copy::end(&mut out);
            bytes += out.len() as u64;
            sink.feed(out.freeze()).await?;
            sink.finish().await?;
        }
        bytes += copy_stretches(&transaction, &self.statements.stretches, cluster, &fitting).await?;
        if fitting.iter().any(|batch| !batch.chunks.is_empty()) {
            bytes += write_chunks(&transaction, &self.statements.chunks, cluster, &fitting).await?;
        }
        for batch in fitting.iter().filter(|batch| !batch.queues.is_empty()) {
            write_queues(&transaction, &self.statements.queues, cluster, batch).await?;
        }
        if advanced.len() < group.batches.len() {
            read_stands(&transaction.query(&self.statements.stands, &[&cluster, &partitions]).await?, &mut advanced)?;
        }
        transaction.commit().await?;
        stands.append(&mut advanced);
        Status::add(&status.tasks, tasks);
        Status::add(&status.bytes, bytes);
        Status::add(&status.transactions, 1);
        Status::add(&status.refused, (group.batches.len() - fitting.len()) as u64);
        Ok(())
    }

    /// The database's number of a cluster.
    async fn cluster(&mut self, id: u128) -> Result<i32, Error> {
        if let Some(&known) = self.clusters.get(&id) {
            return Ok(known);
        }
        let text = format!("{id:032x}");
        let client = &self.session.client;
        client
            .execute(
                "INSERT INTO taskmaster.cluster (id) VALUES ($1::text::uuid) ON CONFLICT (id) DO NOTHING",
                &[&text],
            )
            .await?;
        let row =
            client.query_one("SELECT cluster FROM taskmaster.cluster WHERE id = $1::text::uuid", &[&text]).await?;
        let number = row.try_get(0)?;
        self.clusters.insert(id, number);
        Ok(number)
    }

    /// Makes sure that a contract has a number. By itself: a number that no row uses does no harm.
    async fn learn_contract(&mut self, contract: &Contract) -> Result<(), Error> {
        if self.contracts.contains_key(&contract.canonical) {
            return Ok(());
        }
        let (priority, attempts_max) = (i16::from(contract.priority), i32::from(contract.attempts_max));
        let canonical: &[u8] = &contract.canonical;
        let parameters: [&(dyn ToSql + Sync); 7] = [
            &canonical,
            &contract.namespace,
            &contract.queue,
            &contract.kind,
            &priority,
            &attempts_max,
            &contract.restartable,
        ];
        // Nothing comes when another node adds it at the same moment: the next look finds it.
        let mut found = self.session.client.query_opt(&self.statements.contract, &parameters).await?;
        if found.is_none() {
            found = self.session.client.query_opt(&self.statements.contract, &parameters).await?;
        }
        let Some(row) = found else { return Err(Error::Vanished("a contract")) };
        self.contracts.insert(contract.canonical.clone(), row.try_get(0)?);
        Ok(())
    }
}

/// Stores chunks of states, the bytes of those that are not there yet; how many bytes were sent.
async fn write_chunks(
    transaction: &Transaction<'_>,
    statement: &Statement,
    cluster: i32,
    batches: &[&Batch],
) -> Result<u64, Error> {
    let chunks = batches.iter().flat_map(|batch| batch.chunks.iter().map(move |chunk| (*batch, chunk)));
    let (mut partitions, mut digests, mut days, mut bytes) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (batch, chunk) in chunks {
        partitions.push(i32::from(batch.partition));
        digests.push(&chunk.digest[..]);
        days.push(Day::since_1970(batch.chunks_day).number());
        bytes.push(batch.slice(chunk.bytes));
    }
    transaction.execute(statement, &[&cluster, &partitions, &digests, &days, &bytes]).await?;
    Ok(bytes.iter().map(|bytes| bytes.len() as u64).sum())
}

/// Copies the order of the batches' tasks; how many bytes that are.
async fn copy_stretches(
    transaction: &Transaction<'_>,
    statement: &Statement,
    cluster: i32,
    batches: &[&Batch],
) -> Result<u64, Error> {
    if batches.iter().all(|batch| batch.tasks.is_empty()) {
        return Ok(0);
    }
    let mut out = copy::begin();
    for batch in batches.iter().filter(|batch| !batch.tasks.is_empty()) {
        copy::put_stretch(&mut out, cluster, batch);
    }
    copy::end(&mut out);
    let bytes = out.len() as u64;
    let sink = transaction.copy_in::<_, Bytes>(statement).await?;
    pin_mut!(sink);
    sink.feed(out.freeze()).await?;
    sink.finish().await?;
    Ok(bytes)
}

async fn write_queues(
    transaction: &Transaction<'_>,
    statement: &Statement,
    cluster: i32,
    batch: &Batch,
) -> Result<(), Error> {
    let queues = &batch.queues;
    let texts = |field: fn(&QueueSetting) -> &str| queues.iter().map(field).collect::<Vec<_>>();
    let marks = |field: fn(&QueueSetting) -> bool| queues.iter().map(field).collect::<Vec<_>>();
    let numbers = |field: fn(&QueueSetting) -> u64| queues.iter().map(|queue| signed(field(queue))).collect::<Vec<_>>();
    let short =
        |field: fn(&QueueSetting) -> u16| queues.iter().map(|queue| i32::from(field(queue))).collect::<Vec<_>>();
    transaction
        .execute(
            statement,
            &[
                &cluster,
                &i32::from(batch.partition),
                &texts(|queue| &queue.namespace),
                &texts(|queue| &queue.queue),
                &marks(|queue| queue.paused),
                &marks(|queue| queue.draining),
                &numbers(|queue| queue.rate_milli_per_s),
                &numbers(|queue| queue.rate_burst.into()),
                &numbers(|queue| queue.concurrency.into()),
                &numbers(|queue| queue.depth_max),
                &numbers(|queue| queue.retention_ms.into()),
                &marks(|queue| queue.flags_deadlines),
                &texts(|queue| &queue.policy),
                &short(|queue| queue.refuse_permille),
                &short(|queue| queue.restarts_off.into()),
                &short(|queue| queue.weight),
            ],
        )
        .await?;
    Ok(())
}

fn read_stands(rows: &[Row], stands: &mut Stands) -> Result<(), Error> {
    for row in rows {
        let (partition, term, upto): (i32, i64, i64) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        let partition = u16::try_from(partition).map_err(|_| Error::Vanished("a partition's number"))?;
        stands.insert(partition, (term.cast_unsigned(), upto.cast_unsigned()));
    }
    Ok(())
}

/// Terms and numbers count from one, and never reach half of their range.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// What a request weighs, in bytes.
fn size(request: &Request) -> usize {
    match request {
        Request::Open { .. } => size_of::<Request>(),
        Request::Batch(batch) => batch.bytes.len() + batch.tasks.len() * size_of::<super::FinalTask>(),
    }
}

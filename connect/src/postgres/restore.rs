//! The way back: the history of a cluster whose disks are lost, read in the order in which it was written.
//!
//! A cluster that was restored from another goes on where that one ended: its history is both. What comes back is each task as it ended
//! last, with the versions of its state, up to the position that its partition had reached when the last batch was stored; and the settings
//! of queues as they were stored last, wherever.

mod queues;
mod states;

use std::collections::{BTreeMap, HashMap};
use std::time::{SystemTime, UNIX_EPOCH};

use futures_util::{StreamExt, pin_mut};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

pub use queues::queues;
use states::Saved;

use super::batch::{Returning, SavedState};
use super::{Batch, Contract, Error, FinalTask, Place, Session, particulars, saved};

/// Tasks of a batch at most, and bytes at which it is full.
const BATCH_TASKS: usize = 2_048;
const BATCH_BYTES: usize = 512 << 10;

/// A cluster that can be restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The database's number of it.
    pub number: i32,
    /// Its id.
    pub id: u128,
    /// The position of each partition.
    pub positions: BTreeMap<u16, u64>,
    /// When its last batch was stored, in seconds since 1970.
    pub last_s: u64,
}

/// Clusters in the database, the one that wrote last first.
///
/// # Errors
/// When the database does not say.
pub async fn sources(session: &Session) -> Result<Vec<Source>, Error> {
    let rows = session
        .client
        .query(
            "SELECT cluster, uuid_send(id), partition, position, coalesce(extract(epoch FROM max(at) OVER (PARTITION BY cluster)), 0)::int8
             FROM taskmaster.cluster JOIN taskmaster.checkpoint USING (cluster) ORDER BY 5 DESC, cluster DESC, partition",
            &[],
        )
        .await?;
    let mut sources: Vec<Source> = Vec::new();
    for row in rows {
        let (number, position, last_s): (i32, i64, i64) = (row.try_get(0)?, row.try_get(3)?, row.try_get(4)?);
        if sources.last().is_none_or(|last| last.number != number) {
            let last_s = last_s.cast_unsigned();
            sources.push(Source { number, id: id(&row, 1)?, positions: BTreeMap::new(), last_s });
        }
        let partition =
            u16::try_from(row.try_get::<_, i32>(2)?).map_err(|_| Error::Vanished("a partition's number"))?;
        if let Some(source) = sources.last_mut() {
            source.positions.insert(partition, position.cast_unsigned());
        }
    }
    Ok(sources)
}

const HISTORY: &str = concat!(
    chain!(),
    "
    SELECT partition, uuid_send(id), contract, state, failures, late, finished_at, name, error_code, error, log_tail, payload, result,
           cluster, versions::text, chunks, deadline_at, particulars::text
    FROM taskmaster.final_task AS task
    WHERE cluster IN (SELECT cluster FROM chain) AND NOT EXISTS (
        SELECT FROM taskmaster.final_task AS later
        WHERE later.id = task.id AND later.cluster IN (SELECT cluster FROM chain)
          AND (later.cluster, later.number) > (task.cluster, task.number))
    ORDER BY partition, cluster, number"
);

/// Hands the history of a cluster to `take` in parts of one partition each, until it says `false`: tasks, and behind them the versions of
/// their states, whose chunks are read in another session meanwhile. How many versions the history tells of, those included whose bytes
/// it has not.
///
/// # Errors
/// When the database fails; what was handed over by then is right.
pub async fn history(
    session: &Session,
    chunks: &Session,
    source: &Source,
    mut take: impl AsyncFnMut(Returning) -> bool,
) -> Result<u64, Error> {
    session.client.batch_execute("SET statement_timeout = 0").await?;
    let contracts = contracts(session).await?;
    let parameters: [&(dyn ToSql + Sync); 1] = [&source.number];
    let rows = session.client.query_raw(HISTORY, parameters).await?;
    pin_mut!(rows);
    let (mut batch, mut places) = (Batch::default(), HashMap::new());
    let (mut saved, mut saved_bytes, mut versions) = (Vec::new(), 0, 0);
    while let Some(row) = rows.next().await {
        let row = row?;
        let partition =
            u16::try_from(row.try_get::<_, i32>(0)?).map_err(|_| Error::Vanished("a partition's number"))?;
        let is_full = batch.tasks.len() >= BATCH_TASKS || batch.bytes.len() + saved_bytes >= BATCH_BYTES;
        if (is_full || batch.partition != partition) && !batch.tasks.is_empty() {
            places.clear();
            saved_bytes = 0;
            if !hand_over(chunks, core::mem::take(&mut batch), core::mem::take(&mut saved), &mut take).await? {
                return Ok(versions);
            }
        }
        batch.partition = partition;
        let number: i32 = row.try_get(2)?;
        let contract = *places.entry(number).or_insert(batch.contracts.len());
        if contract == batch.contracts.len() {
            batch.contracts.push(contracts.get(&number).ok_or(Error::Vanished("a contract"))?.clone());
        }
        let task = task(&row, u32::try_from(contract).unwrap_or(u32::MAX), &mut batch.bytes)?;
        if let Some(found) = saved_of(&row)? {
            versions += found.versions as u64;
            saved_bytes += found.bytes;
            saved.push(found.saved);
        }
        batch.tasks.push(task);
    }
    if !batch.tasks.is_empty() {
        hand_over(chunks, batch, saved, &mut take).await?;
    }
    Ok(versions)
}

/// Tasks, and then what they saved.
async fn hand_over(
    chunks: &Session,
    batch: Batch,
    saved: Vec<Saved>,
    take: &mut impl AsyncFnMut(Returning) -> bool,
) -> Result<bool, Error> {
    let partition = batch.partition;
    Ok(take(Returning::Tasks(batch)).await && states::hand_over(chunks, partition, saved, take).await?)
}

/// What a row tells of a task's state.
struct Found {
    saved: Saved,
    /// Versions of which it tells, whether or not they can come back.
    versions: usize,
    /// What it takes here.
    bytes: usize,
}

fn saved_of(row: &Row) -> Result<Option<Found>, Error> {
    let Some(document) = row.try_get::<_, Option<&str>>(14)? else { return Ok(None) };
    let chunks: Vec<&[u8]> = row.try_get::<_, Option<Vec<&[u8]>>>(15)?.unwrap_or_default();
    let chunks: Vec<[u8; 32]> =
        chunks.into_iter().map(|digest| digest.first_chunk().copied().unwrap_or_default()).collect();
    let (history, versions) = saved::read(document, chunks.len());
    let bytes = document.len() + chunks.len() * 32;
    let saved = Saved { cluster: row.try_get(13)?, id: id(row, 1)?, history, chunks };
    Ok(Some(Found { saved, versions, bytes }))
}

async fn contracts(session: &Session) -> Result<HashMap<i32, Contract>, Error> {
    let sql = "SELECT contract, canonical, namespace, queue, kind, priority, attempts_max, restartable FROM taskmaster.contract";
    let contract = |row: &Row| {
        let (priority, attempts_max): (i16, i32) = (row.try_get(5)?, row.try_get(6)?);
        let contract = Contract {
            canonical: row.try_get::<_, Vec<u8>>(1)?.into(),
            namespace: row.try_get(2)?,
            queue: row.try_get(3)?,
            kind: row.try_get(4)?,
            priority: u8::try_from(priority).unwrap_or_default(),
            attempts_max: u16::try_from(attempts_max).unwrap_or(u16::MAX),
            restartable: row.try_get(7)?,
        };
        Ok((row.try_get(0)?, contract))
    };
    session.client.query(sql, &[]).await?.iter().map(contract).collect()
}

fn id(row: &Row, column: usize) -> Result<u128, Error> {
    let bytes: Vec<u8> = row.try_get(column)?;
    bytes.first_chunk().map(|bytes| u128::from_be_bytes(*bytes)).ok_or(Error::Vanished("an id"))
}

fn task(row: &Row, contract: u32, area: &mut Vec<u8>) -> Result<FinalTask, Error> {
    let mut put = |bytes: Option<Vec<u8>>| {
        let bytes = bytes.unwrap_or_default();
        let at = u32::try_from(area.len()).unwrap_or(u32::MAX);
        area.extend_from_slice(&bytes);
        Place { at, len: u32::try_from(bytes.len()).unwrap_or(u32::MAX) }
    };
    let text = |column| Ok::<_, Error>(row.try_get::<_, Option<String>>(column)?.map(String::into_bytes));
    let time_us = |time: SystemTime| {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    };
    let (state, failures): (i16, i32) = (row.try_get(3)?, row.try_get(4)?);
    let (payload, result): (Option<Vec<u8>>, Option<Vec<u8>>) = (row.try_get(11)?, row.try_get(12)?);
    let succeeded = result.is_some();
    let input = put(payload.as_ref().filter(|_| succeeded).cloned());
    let saved = (input.len > 0).then(|| Box::new(SavedState { input, ..SavedState::default() }));
    Ok(FinalTask {
        id: id(row, 1)?,
        workflow: 0,
        number: 0,
        started_us: 0,
        finished_us: time_us(row.try_get(6)?),
        deadline_us: row.try_get::<_, Option<SystemTime>>(16)?.map_or(0, time_us),
        contract,
        attempts: 0,
        failures: u16::try_from(failures).unwrap_or(u16::MAX),
        state: u8::try_from(state).unwrap_or_default(),
        succeeded,
        late: row.try_get(5)?,
        name: put(text(7)?),
        error_code: put(text(8)?),
        error: put(text(9)?),
        log_tail: put(row.try_get(10)?),
        blob: put(if succeeded { result } else { payload }),
        saved,
        particulars: row.try_get::<_, Option<&str>>(17)?.map(|found| Box::new(particulars::returning(found, put))),
    })
}

/// Notes that a new cluster goes on from another one, with so many tasks of each partition restored: it does not send those again.
///
/// # Errors
/// When the database refuses; then nothing is noted.
pub async fn adopt(
    session: &mut Session,
    source: &Source,
    new: u128,
    restored: &BTreeMap<u16, u64>,
) -> Result<(), Error> {
    let text = format!("{new:032x}");
    let (partitions, positions): (Vec<i32>, Vec<i64>) =
        restored.iter().map(|(&partition, &count)| (i32::from(partition), count.cast_signed())).unzip();
    let transaction = session.client.transaction().await?;
    let row = transaction
        .query_one(
            "INSERT INTO taskmaster.cluster (id, restored_from) VALUES ($1::text::uuid, $2) RETURNING cluster",
            &[&text, &source.number],
        )
        .await?;
    let cluster: i32 = row.try_get(0)?;
    transaction
        .execute(
            "INSERT INTO taskmaster.checkpoint (cluster, partition, term, position)
             SELECT $1, partition, 0, position FROM unnest($2::int4[], $3::int8[]) AS restored (partition, position)",
            &[&cluster, &partitions, &positions],
        )
        .await?;
    transaction.commit().await?;
    Ok(())
}

//! Answers questions about single tasks from the history: for tasks that have left memory.
//!
//! Several questions become one statement. A question is answered, if only with why it cannot be, within the time a question may take:
//! whoever asked is not kept waiting by an outage. With a cache, long blobs are looked for there first, and kept there once they were read.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc::Receiver;
use tokio_postgres::{Row, Statement};

use super::session::connect;
use super::sql::TOLD;
use super::{Answers, Error, Session, Settings, particulars, schema};
use crate::redis::{self, Cache};

/// Questions of one statement at most.
const GROUP_MAX: usize = 64;
/// Longest time for a statement, connecting included.
const LOOK_MAX: Duration = Duration::from_secs(5);

/// What is known of a task?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// Whom to answer: the caller's number.
    pub by: usize,
    /// The caller's number of the question.
    pub number: u64,
    /// The task.
    pub id: u128,
}

/// The answer to a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// How it ended last.
    Task(Box<StoredTask>),
    /// It is not in the history.
    Nothing,
    /// It could not be looked up, and why.
    Failed(String),
}

/// A task as it ended last. Times are microseconds since 1970, 0 where not known; texts are empty where there are none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredTask {
    /// Id.
    pub id: u128,
    /// Workflow, or 0.
    pub workflow: u128,
    /// The protocol's number of its state.
    pub state: u8,
    /// Namespace.
    pub namespace: String,
    /// Queue.
    pub queue: String,
    /// Kind.
    pub kind: String,
    /// Step name.
    pub name: String,
    /// Priority class.
    pub priority: u8,
    /// Attempts begun.
    pub attempts: u32,
    /// Attempts allowed.
    pub attempts_max: u32,
    /// It missed a deadline that only flags.
    pub late: bool,
    /// When its last attempt began.
    pub started_us: u64,
    /// When it ended.
    pub finished_us: u64,
    /// Its deadline.
    pub deadline_us: u64,
    /// Code of its last failure.
    pub error_code: String,
    /// The failure in words.
    pub error: String,
    /// Attempts may be ended and begun again.
    pub restartable: bool,
    /// The task whose outcome it has without having run, or 0.
    pub memo_of: u128,
    /// Last progress note.
    pub note: String,
    /// Progress in parts per thousand.
    pub done_permille: u32,
    /// End of the failed attempt's log.
    pub log_tail: Vec<u8>,
    /// Payload, unless it succeeded.
    pub payload: Vec<u8>,
    /// Result, if it succeeded.
    pub result: Vec<u8>,
}

/// Blobs longer than this are looked for in the cache: shorter ones cost no more than the row that is read anyway.
const LONG_BYTES: i32 = 4 << 10;
/// The protocol's number of the state of a task that succeeded.
const COMPLETED: u8 = 4;

/// Without blobs longer than `$2`, of which a task has one at most that may be. The payload of a task that succeeded may be there for a fork,
/// and is not told.
const SQL: &str = concat!(
    "SELECT DISTINCT ON (task.id) ",
    told!(),
    ", task.log_tail, CASE WHEN task.result IS NULL AND octet_length(task.payload) <= $2 THEN task.payload END,
        CASE WHEN octet_length(task.result) <= $2 THEN task.result END,
        task.cluster, task.number, coalesce(octet_length(coalesce(task.result, task.payload)) > $2, false)
    FROM taskmaster.final_task AS task JOIN taskmaster.contract USING (contract)
    WHERE task.id = ANY ($1::text[]::uuid[]) ORDER BY task.id, task.cluster DESC, task.number DESC"
);

/// Answers until the other end of the queue is gone.
pub async fn read(settings: Settings, mut queue: Receiver<Question>, answers: Arc<dyn Answers>, cache: Option<Cache>) {
    let mut open: Option<(Session, Statement)> = None;
    let mut questions = Vec::new();
    while queue.recv_many(&mut questions, GROUP_MAX).await > 0 {
        let looked = tokio::time::timeout(LOOK_MAX, look(&settings, &mut open, &questions, cache.as_ref())).await;
        let found = match looked.unwrap_or(Err(Error::Slow(LOOK_MAX))) {
            Ok(found) => Ok(found),
            Err(error) => {
                open = None;
                Err(error.to_string())
            }
        };
        for question in questions.drain(..) {
            let answer = match &found {
                Ok(tasks) => {
                    let task = tasks.iter().find(|task| task.id == question.id);
                    task.map_or(Found::Nothing, |task| Found::Task(Box::new(task.clone())))
                }
                Err(sentence) => Found::Failed(sentence.clone()),
            };
            answers.found(question.by, question.number, answer);
        }
    }
}

async fn look(
    settings: &Settings,
    open: &mut Option<(Session, Statement)>,
    questions: &[Question],
    cache: Option<&Cache>,
) -> Result<Vec<StoredTask>, Error> {
    let (session, statement) = match open {
        Some(open) if !open.0.is_closed() => open,
        _ => {
            let session = connect(settings).await?;
            schema::check_session(&session).await?;
            let statement = session.client.prepare(SQL).await?;
            open.insert((session, statement))
        }
    };
    let rows = async |ids: Vec<u128>, most: i32| -> Result<Vec<Row>, Error> {
        let ids: Vec<String> = ids.iter().map(|id| format!("{id:032x}")).collect();
        Ok(session.client.query(statement, &[&ids, &most]).await?)
    };
    let ids = questions.iter().map(|question| question.id).collect();
    let Some(cache) = cache else { return rows(ids, i32::MAX).await?.iter().map(task).collect() };
    let (mut tasks, mut long) = (Vec::new(), Vec::new());
    for row in rows(ids, LONG_BYTES).await? {
        let (task, is_long) = (task(&row)?, row.try_get(TOLD + 5)?);
        if is_long {
            long.push((place(&row, &task)?, task));
        } else {
            tasks.push(task);
        }
    }
    let places: Vec<redis::Row> = long.iter().map(|(place, _)| *place).collect();
    let mut missed = Vec::new();
    for ((_, mut task), blob) in long.into_iter().zip(cache.find(&places).await) {
        match blob {
            Some(blob) => {
                *long_blob(&mut task) = blob;
                tasks.push(task);
            }
            None => missed.push(task.id),
        }
    }
    if !missed.is_empty() {
        for row in rows(missed, i32::MAX).await? {
            let mut task = task(&row)?;
            cache.keep(&place(&row, &task)?, long_blob(&mut task));
            tasks.push(task);
        }
    }
    Ok(tasks)
}

/// Which row it is, that tells so in the columns behind those of [`task`].
fn place(row: &Row, task: &StoredTask) -> Result<redis::Row, Error> {
    let (cluster, number) = (row.try_get(TOLD + 3)?, row.try_get(TOLD + 4)?);
    Ok(redis::Row { cluster, number, id: task.id, state: task.state, finished_us: task.finished_us })
}

/// What may be long of a task: what it came to, or else what it was given.
fn long_blob(task: &mut StoredTask) -> &mut Vec<u8> {
    if task.state == COMPLETED { &mut task.result } else { &mut task.payload }
}

/// The task of a row with the columns `told!`, and behind them the end of its log, its payload and its result.
pub(super) fn task(row: &Row) -> Result<StoredTask, Error> {
    let text = |column| Ok::<_, Error>(row.try_get::<_, Option<String>>(column)?.unwrap_or_default());
    let bytes = |column| Ok::<_, Error>(row.try_get::<_, Option<Vec<u8>>>(column)?.unwrap_or_default());
    let time_us = |column| {
        let time = row.try_get::<_, Option<SystemTime>>(column)?;
        let since = time.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        Ok::<_, Error>(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
    };
    let id = |column| {
        let bytes = bytes(column)?;
        Ok::<_, Error>(bytes.first_chunk().map_or(0, |bytes| u128::from_be_bytes(*bytes)))
    };
    let small = |column| Ok::<_, Error>(u8::try_from(row.try_get::<_, i16>(column)?).unwrap_or_default());
    let particulars = particulars::read(row.try_get(17)?);
    Ok(StoredTask {
        id: id(0)?,
        workflow: id(1)?,
        state: small(2)?,
        namespace: text(3)?,
        queue: text(4)?,
        kind: text(5)?,
        name: text(6)?,
        priority: small(7)?,
        attempts: row.try_get::<_, i32>(8)?.cast_unsigned(),
        attempts_max: row.try_get::<_, i32>(9)?.cast_unsigned(),
        late: row.try_get(10)?,
        started_us: time_us(11)?,
        finished_us: time_us(12)?,
        deadline_us: time_us(13)?,
        error_code: text(14)?,
        error: text(15)?,
        restartable: row.try_get(16)?,
        memo_of: particulars.memo_of,
        note: particulars.note,
        done_permille: particulars.done_permille,
        log_tail: bytes(TOLD)?,
        payload: bytes(TOLD + 1)?,
        result: bytes(TOLD + 2)?,
    })
}

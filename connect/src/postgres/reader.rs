//! Answers questions about single tasks from the history: for tasks that have left memory.
//!
//! Several questions become one statement. A question is answered, if only with why it cannot be, within the time a question may take:
//! whoever asked is not kept waiting by an outage.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc::Receiver;
use tokio_postgres::{Row, Statement};

use super::session::connect;
use super::{Answers, Error, Session, Settings, schema};

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
    /// End of the failed attempt's log.
    pub log_tail: Vec<u8>,
    /// Payload, unless it succeeded.
    pub payload: Vec<u8>,
    /// Result, if it succeeded.
    pub result: Vec<u8>,
}

const SQL: &str = "SELECT DISTINCT ON (task.id)
        uuid_send(task.id), uuid_send(task.workflow), task.state, contract.namespace, contract.queue, contract.kind, task.name,
        contract.priority, task.attempts, contract.attempts_max, task.late, task.started_at, task.finished_at, task.deadline_at,
        task.error_code, task.error, task.log_tail,
        CASE WHEN task.result IS NULL THEN task.payload END, task.result
    FROM taskmaster.final_task AS task JOIN taskmaster.contract USING (contract)
    WHERE task.id = ANY ($1::text[]::uuid[]) ORDER BY task.id, task.cluster DESC, task.number DESC";

/// Answers until the other end of the queue is gone.
pub async fn read(settings: Settings, mut queue: Receiver<Question>, answers: Arc<dyn Answers>) {
    let mut open: Option<(Session, Statement)> = None;
    let mut questions = Vec::new();
    while queue.recv_many(&mut questions, GROUP_MAX).await > 0 {
        let looked = tokio::time::timeout(LOOK_MAX, look(&settings, &mut open, &questions)).await;
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
    let ids: Vec<String> = questions.iter().map(|question| format!("{:032x}", question.id)).collect();
    session.client.query(statement, &[&ids]).await?.iter().map(task).collect()
}

/// The task of a row with the columns of [`SQL`].
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
        log_tail: bytes(16)?,
        payload: bytes(17)?,
        result: bytes(18)?,
    })
}

//! Tasks that had ended and were forgotten: what the database has of them.

use serde_json::{Value, json};
use taskmaster_client::{State, TaskId};
use taskmaster_connect::postgres::{self, Source, StoredTask};
use taskmaster_engine::Moment;
use taskmaster_protocol::PartitionId;
use taskmaster_storage::datadir::DataDir;

use super::{Arguments, failed, head, moment_json};
use crate::cli::connect::block_on;
use crate::cli::outcome::bytes_json;
use crate::cli::state::database;
use crate::cli::{Exit, Failure};
use crate::output::{Output, human_bytes, pairs};

/// What had ended by then, if a database is named: the task that is asked for, or all.
pub(super) fn look(arguments: &Arguments, partition: PartitionId, moment: &Moment) -> Result<Vec<StoredTask>, Failure> {
    let Some(settings) = arguments.database.settings()? else { return Ok(Vec::new()) };
    let own = DataDir::open_as_it_is(&arguments.data_dir).map_err(failed)?.meta().id;
    block_on(async {
        let session = postgres::connect(&settings).await.map_err(|error| database::failed(&error))?;
        postgres::check(&settings).await.map_err(|error| database::failed(&error))?;
        let sources = postgres::sources(&session).await.map_err(|error| database::failed(&error))?;
        let source = choose(sources, arguments.cluster.as_deref(), own)?;
        let mut tasks = Vec::new();
        postgres::ended(&session, &source, partition.0, moment.numbers, arguments.id.map(TaskId::as_u128), |task| {
            tasks.push(task)
        })
        .await
        .map_err(|error| database::failed(&error))?;
        Ok(tasks)
    })
}

fn choose(mut sources: Vec<Source>, wanted: Option<&str>, own: u128) -> Result<Source, Failure> {
    let listed: Vec<String> = sources.iter().map(|source| format!("{:032x}", source.id)).collect();
    let own = format!("{own:032x}");
    let wanted = wanted.unwrap_or(&own);
    let place = listed.iter().position(|id| id == wanted).or((wanted == own && listed.len() == 1).then_some(0));
    place.map(|place| sources.swap_remove(place)).ok_or_else(|| {
        let known = if listed.is_empty() { "none".to_owned() } else { listed.join(", ") };
        let sentence = format!("the database has no cluster {wanted}; it has {known}: say which one with --cluster");
        Failure::new(Exit::NotFound, sentence)
    })
}

fn state(task: &StoredTask) -> &'static str {
    State::from_number(task.state).map_or("unknown", State::name)
}

pub(super) fn task_json(task: &StoredTask) -> Value {
    json!({
        "id": TaskId::from(task.id).to_string(),
        "state": state(task),
        "queue": task.queue,
        "kind": task.kind,
        "name": task.name,
        "attempt": task.attempts,
        "payload": bytes_json(&task.payload),
        "result": bytes_json(&task.result),
        "error": task.error,
    })
}

/// The task's row of a listing.
pub(super) fn row(task: &StoredTask) -> Vec<String> {
    let texts = [&task.queue, &task.kind, &task.name].map(String::clone);
    [vec![TaskId::from(task.id).to_string(), state(task).to_owned()], texts.into(), vec![task.attempts.to_string()]]
        .concat()
}

/// Shows a task that was in the database alone.
pub(super) fn show(task: &StoredTask, moment: &Moment, output: Output) -> Result<Exit, Failure> {
    if output.is_json() {
        output.json(&json!({"at": moment_json(moment), "task": task_json(task), "head": null, "versions": []}))?;
        return Ok(Exit::Success);
    }
    let facts = pairs(&[
        ("id", TaskId::from(task.id).to_string()),
        ("state", state(task).to_owned()),
        ("queue", task.queue.clone()),
        ("kind", task.kind.clone()),
        ("attempt", task.attempts.to_string()),
        ("payload", human_bytes(task.payload.len() as u64)),
        ("result", human_bytes(task.result.len() as u64)),
    ]);
    output.text(&format!("{}\n{facts}it had left memory; this is from the database\n", head(moment)))?;
    Ok(Exit::Success)
}

//! `taskmaster task list|get|result|cancel|retry|why|resume|fork`.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};
use taskmaster_client::{Changes, Client, State, StateChange, TaskFilter, TaskId};

use super::connect::{block_on, connect};
use super::exit::exit_of;
use super::outcome::{bytes_json, state_text, task_json, task_text};
use super::state::resolve;
use super::{Exit, Failure, Global, log};
use crate::config::Interval;
use crate::output::{Output, Side, Table, iso_time, pairs};

/// What to do with tasks.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List tasks, partition by partition
    List(ListArguments),
    /// Show all that is known of a task
    Get {
        /// Task id
        id: TaskId,
    },
    /// Wait for a task and print its result
    Result {
        /// Task id
        id: TaskId,
        /// Longest wait (0s only looks)
        #[arg(long, value_name = "TIME")]
        timeout: Option<Interval>,
    },
    /// Cancel tasks; running attempts are stopped
    Cancel {
        /// Task ids
        #[arg(required = true, value_name = "ID")]
        ids: Vec<TaskId>,
    },
    /// Make failed, expired or cancelled tasks ready again, with all their attempts
    Retry {
        /// Task ids
        #[arg(required = true, value_name = "ID")]
        ids: Vec<TaskId>,
    },
    /// Let a task that did not succeed run again from a version of its state
    Resume {
        /// Task id
        id: TaskId,
        /// Number, tag, branch or hash [default: the latest of the current branch]
        #[arg(long, value_name = "VERSION")]
        from: Option<String>,
    },
    /// Submit a copy of a task whose state begins with a version of this one's
    Fork {
        /// Task id
        id: TaskId,
        /// Number, tag, branch or hash [default: the latest of the current branch]
        #[arg(long, value_name = "VERSION")]
        from: Option<String>,
    },
    /// Explain why a task waits, or where it ran
    Why {
        /// Task id
        id: TaskId,
    },
}

/// Which tasks to list.
#[derive(Debug, Args)]
pub(crate) struct ListArguments {
    /// Only this queue
    #[arg(long, value_name = "NAME")]
    queue: Option<String>,
    /// Only this kind
    #[arg(long, value_name = "NAME")]
    kind: Option<String>,
    /// Only this state (repeatable)
    #[arg(long, value_enum, value_name = "STATE")]
    state: Vec<StateName>,
    /// Most tasks
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000), value_name = "N")]
    limit: u32,
}

/// States, as words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum StateName {
    Waiting,
    Delayed,
    Ready,
    Leased,
    Succeeded,
    Failed,
    Cancelled,
    Expired,
}

impl From<StateName> for State {
    fn from(name: StateName) -> Self {
        match name {
            StateName::Waiting => Self::Waiting,
            StateName::Delayed => Self::Delayed,
            StateName::Ready => Self::Ready,
            StateName::Leased => Self::Leased,
            StateName::Succeeded => Self::Succeeded,
            StateName::Failed => Self::Failed,
            StateName::Cancelled => Self::Cancelled,
            StateName::Expired => Self::Expired,
        }
    }
}

/// Carries a task command out.
pub(crate) fn run(global: &Global, command: Command) -> Result<Exit, Failure> {
    log::start_quiet(global.verbose);
    let output = global.output();
    block_on(async {
        let client = connect(global).await?;
        match command {
            Command::List(arguments) => list(&client, &arguments, output).await,
            Command::Get { id } => get(&client, id, output).await,
            Command::Result { id, timeout } => result(&client, id, timeout, output).await,
            Command::Cancel { ids } => show_changes(&client.cancel(ids).await?, "cancelled", output),
            Command::Retry { ids } => show_changes(&client.retry(ids).await?, "retried", output),
            Command::Resume { id, from } => resume(&client, id, from.as_deref(), output).await,
            Command::Fork { id, from } => fork(&client, id, from.as_deref(), output).await,
            Command::Why { id } => why(&client, id, output).await,
        }
    })
}

async fn list(client: &Client, arguments: &ListArguments, output: Output) -> Result<Exit, Failure> {
    let mut filter = TaskFilter::new();
    if let Some(queue) = &arguments.queue {
        filter = filter.queue(queue);
    }
    if let Some(kind) = &arguments.kind {
        filter = filter.kind(kind);
    }
    filter = arguments.state.iter().fold(filter, |filter, &state| filter.state(state.into()));
    let page = client.list_tasks(&filter, None, arguments.limit).await?;
    if output.is_json() {
        let tasks: Vec<Value> = page.tasks.iter().map(|task| task_json(task, false)).collect();
        output.json(&json!({"tasks": tasks, "more": page.next.is_some()}))?;
        return Ok(Exit::Success);
    }
    let columns =
        ["id", "state", "queue", "kind", "name", "priority", "attempt", "since"].map(|name| (name, Side::Left));
    let mut table = Table::new(&columns);
    for task in &page.tasks {
        table.row(vec![
            task.id.to_string(),
            state_text(output, task.state),
            task.queue.clone(),
            task.kind.clone(),
            task.name.clone(),
            task.priority.name().to_owned(),
            format!("{}/{}", task.attempt, task.attempts_max),
            iso_time(task.at_us),
        ]);
    }
    output.text(&if table.is_empty() { "no tasks\n".to_owned() } else { table.render() })?;
    if page.next.is_some() {
        output.text(&format!("… and more: raise --limit ({}) or filter\n", arguments.limit))?;
    }
    Ok(Exit::Success)
}

async fn get(client: &Client, id: TaskId, output: Output) -> Result<Exit, Failure> {
    let task = client.task(id).await?;
    if output.is_json() {
        output.json(&task_json(&task, true))?;
    } else {
        output.text(&task_text(&task, output))?;
    }
    Ok(Exit::Success)
}

async fn result(client: &Client, id: TaskId, timeout: Option<Interval>, output: Output) -> Result<Exit, Failure> {
    print_result(client, id, timeout.map(|timeout| timeout.0), output).await
}

/// Waits for a task and prints its result: the bytes as they are, or an object. Exit code 6 when it did not succeed.
pub(crate) async fn print_result(
    client: &Client,
    id: TaskId,
    timeout: Option<Duration>,
    output: Output,
) -> Result<Exit, Failure> {
    let outcome = match timeout {
        None => client.result(id).await?,
        Some(longest) => client.result_within(id, longest).await?.ok_or_else(|| {
            Failure::new(
                Exit::TimedOut,
                format!("task {id} is not final after {longest:?}; `taskmaster task why {id}`"),
            )
        })?,
    };
    let succeeded = outcome.state == State::Succeeded;
    let exit = if succeeded { Exit::Success } else { Exit::TaskFailed };
    if output.is_json() {
        output.json(&json!({
            "id": id.to_string(),
            "state": outcome.state.name(),
            "result": bytes_json(&outcome.result),
            "attempts": outcome.attempts,
            "error_code": outcome.error_code,
            "error": outcome.error,
            "log_tail": bytes_json(&outcome.log_tail),
        }))?;
        return Ok(exit);
    }
    if succeeded {
        output.bytes(&outcome.result)?;
        if outcome.result.last().is_some_and(|&byte| byte != b'\n') {
            output.text("\n")?;
        }
        return Ok(exit);
    }
    let log = String::from_utf8_lossy(&outcome.log_tail);
    let log = if log.trim().is_empty() { String::new() } else { format!("\n{}", log.trim_end()) };
    let attempts = outcome.attempts;
    Err(Failure::new(
        exit,
        format!("task {id} {} after {attempts} attempt(s): {}{log}", outcome.state, outcome.reason()),
    ))
}

/// Prints what became of a request about several tasks; the exit code is that of the first exception.
pub(crate) fn show_changes(changes: &Changes, done: &str, output: Output) -> Result<Exit, Failure> {
    let exit = changes.exceptions.first().map_or(Exit::Success, |exception| exit_of(exception.code));
    if output.is_json() {
        let exception = |e: &taskmaster_client::Exception| json!({"id": e.id.to_string(), "code": e.code.name(), "state": e.state.map(State::name)});
        let exceptions: Vec<Value> = changes.exceptions.iter().map(exception).collect();
        output.json(&json!({"accepted": changes.accepted, "exceptions": exceptions}))?;
        return Ok(exit);
    }
    output.text(&format!("{} {done}\n", changes.accepted))?;
    for exception in &changes.exceptions {
        let state = exception.state.map_or_else(String::new, |state| format!(" (it is {state})"));
        eprintln!("{}: {}{state}", exception.id, exception.code);
    }
    Ok(exit)
}

async fn resume(client: &Client, id: TaskId, from: Option<&str>, output: Output) -> Result<Exit, Failure> {
    let before = client.task(id).await?.state;
    let version = resolve(client, id, from).await?;
    client.change_state(id, &StateChange::Resume { version: Some(version) }).await?;
    if output.is_json() {
        output.json(&json!({"id": id.to_string(), "version": version, "restarted": before.is_final()}))?;
    } else if before.is_final() {
        output.text(&format!("{id} runs again from version {version}\n"))?;
    } else {
        output.text(&format!("{id} is {before}; its next attempt resumes from version {version}\n"))?;
    }
    Ok(Exit::Success)
}

async fn fork(client: &Client, id: TaskId, from: Option<&str>, output: Output) -> Result<Exit, Failure> {
    let version = resolve(client, id, from).await?;
    let to = client.fork_task(id, Some(version)).await?;
    if output.is_json() {
        output.json(&json!({"id": to.to_string(), "forked_from": id.to_string(), "version": version}))?;
    } else {
        output.text(&format!("{to}\n"))?;
    }
    Ok(Exit::Success)
}

async fn why(client: &Client, id: TaskId, output: Output) -> Result<Exit, Failure> {
    let facts = client.why(id).await?;
    if output.is_json() {
        let facts: Vec<Value> =
            facts.iter().map(|fact| json!({"name": fact.name, "sentence": fact.sentence})).collect();
        output.json(&json!({"id": id.to_string(), "facts": facts}))?;
    } else {
        let lines: Vec<(&str, String)> = facts.iter().map(|fact| (fact.name.as_str(), fact.sentence.clone())).collect();
        output.text(&pairs(&lines))?;
    }
    Ok(Exit::Success)
}

//! `taskmaster workflow list|get|cancel|fork`.

use clap::Subcommand;
use serde_json::{Value, json};
use taskmaster_client::{Client, State, TaskId, WorkflowView};

use super::connect::{block_on, connect};
use super::outcome::{state_text, workflow_json, workflow_state, workflow_time};
use super::task::show_changes;
use super::{Exit, Failure, Global, log};
use crate::output::{Output, Side, Table, Tint, human_count, human_us, iso_time, pairs};
use crate::workers::now_us;

/// What to do with workflows.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List workflows, the newest first
    List {
        /// Most workflows
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000), value_name = "N")]
        limit: u32,
    },
    /// Show a workflow and its tasks
    Get {
        /// Workflow id
        id: TaskId,
    },
    /// Cancel a workflow's unfinished tasks
    Cancel {
        /// Workflow id
        id: TaskId,
    },
    /// Run a workflow once more from a step on, with the results before it
    Fork {
        /// Workflow id
        id: TaskId,
        /// The step to begin at: it and what depends on it run again
        #[arg(long, value_name = "STEP")]
        at: String,
    },
}

/// Carries a workflow command out.
pub(crate) fn run(global: &Global, command: Command) -> Result<Exit, Failure> {
    log::start_quiet(global.verbose);
    let output = global.output();
    block_on(async {
        let client = connect(global).await?;
        match command {
            Command::List { limit } => list(&client, limit, output).await,
            Command::Get { id } => get(&client, id, output).await,
            Command::Fork { id, at } => fork(&client, id, &at, output).await,
            Command::Cancel { id } => show_changes(&client.cancel_workflow(id).await?, "cancelled", output),
        }
    })
}

async fn list(client: &Client, limit: u32, output: Output) -> Result<Exit, Failure> {
    let workflows = client.workflows(limit).await?;
    if output.is_json() {
        let workflows: Vec<Value> = workflows.iter().map(|workflow| workflow_json(workflow, false)).collect();
        output.json(&json!({ "workflows": workflows }))?;
        return Ok(Exit::Success);
    }
    let mut table = Table::new(&[
        ("id", Side::Left),
        ("state", Side::Left),
        ("name", Side::Left),
        ("done", Side::Right),
        ("tasks", Side::Right),
        ("failed", Side::Right),
        ("time", Side::Right),
        ("submitted", Side::Left),
    ]);
    for workflow in &workflows {
        let (total, failed) = (workflow.counts.total(), workflow.counts.of(State::Failed));
        table.row(vec![
            workflow.id.to_string(),
            tinted_state(workflow, output),
            workflow.name.clone(),
            human_count(total - workflow.counts.unfinished()),
            human_count(total),
            human_count(failed),
            workflow_time(workflow, now_us()),
            iso_time(workflow.submitted_us),
        ]);
    }
    output.text(&if table.is_empty() { "no workflows\n".to_owned() } else { table.render() })?;
    Ok(Exit::Success)
}

fn tinted_state(workflow: &WorkflowView, output: Output) -> String {
    let tint = match workflow_state(workflow) {
        "succeeded" => Tint::Good,
        "failed" => Tint::Bad,
        _ => Tint::Caution,
    };
    output.tint(tint, workflow_state(workflow))
}

async fn fork(client: &Client, id: TaskId, at: &str, output: Output) -> Result<Exit, Failure> {
    let fork = client.fork_workflow(id, at).await?;
    let reused = client.workflow(fork.id).await?.counts.of(State::Succeeded);
    if output.is_json() {
        output.json(&json!({
            "id": fork.id.to_string(),
            "forked_from": id.to_string(),
            "tasks": fork.tasks.len(),
            "reused": reused,
        }))?;
    } else {
        output.text(&format!("{}\n", fork.id))?;
        eprintln!("{} tasks, the results of {reused} are reused", fork.tasks.len());
    }
    Ok(Exit::Success)
}

async fn get(client: &Client, id: TaskId, output: Output) -> Result<Exit, Failure> {
    let workflow = client.workflow(id).await?;
    if output.is_json() {
        output.json(&workflow_json(&workflow, true))?;
        return Ok(Exit::Success);
    }
    let counts: Vec<String> = State::ALL
        .iter()
        .filter(|&&state| workflow.counts.of(state) > 0)
        .map(|&state| format!("{} {state}", human_count(workflow.counts.of(state))))
        .collect();
    let head = pairs(&[
        ("id", workflow.id.to_string()),
        ("name", workflow.name.clone()),
        ("state", tinted_state(&workflow, output)),
        ("tasks", counts.join(", ")),
        ("submitted", iso_time(workflow.submitted_us)),
        ("time", workflow_time(&workflow, now_us())),
    ]);
    let mut table = Table::new(&[
        ("task", Side::Left),
        ("state", Side::Left),
        ("name", Side::Left),
        ("attempt", Side::Right),
        ("waited", Side::Right),
        ("took", Side::Right),
    ]);
    let span = |from_us: u64, to_us: u64| {
        if from_us == 0 || to_us == 0 { String::new() } else { human_us(to_us.saturating_sub(from_us)) }
    };
    for task in &workflow.tasks {
        table.row(vec![
            task.id.to_string(),
            state_text(output, task.state),
            task.name.clone(),
            task.attempt.to_string(),
            span(task.ready_us, task.started_us),
            span(task.started_us, task.finished_us),
        ]);
    }
    output.text(&format!("{head}\n{}", table.render()))?;
    Ok(Exit::Success)
}

//! `taskmaster run FILE`: a workflow file, submitted as one workflow and followed to its end.
//!
//! Without an address it starts a node of its own and workers in this process; with one it uses that node and, unless
//! `--concurrency` is given, that node's workers.

mod submission;
mod watch;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use taskmaster_client::{Client, State, TaskId, Worker, WorkflowView};
use taskmaster_workflow::{Options, Plan, Work};

use super::arguments::{Amount, Milli};
use super::connect::{block_on, connect_to};
use super::embedded::Embedded;
use super::signal::Stop;
use super::{Exit, Failure, Global, log, serve};
use crate::config::{self, ByteSize, Config, Level, core_count, memory_limit_bytes};
use crate::output::Output;
use crate::report::{NodeFigures, Observation, Report, Run};
use crate::workers::{self, Observer, Offer};

/// Arguments of `run`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Workflow: our YAML format, or a WfCommons instance (JSON), which is replayed
    file: PathBuf,
    /// Value for a variable of the file (repeatable)
    #[arg(long = "var", value_name = "NAME=VALUE", value_parser = variable)]
    variables: Vec<(String, String)>,
    /// Replay recorded run times this many times faster
    #[arg(long, default_value_t = 1.0, value_parser = positive, value_name = "FACTOR")]
    speed: f64,
    /// Reserve the memory and cores that were recorded
    #[arg(long)]
    recorded_resources: bool,
    /// Do not touch the memory that was recorded (by default up to 64 MiB of it, for each task)
    #[arg(long)]
    no_memory: bool,
    /// Directory in which commands run [default: ./taskmaster-work/NAME]
    #[arg(long, value_name = "DIR")]
    workdir: Option<PathBuf>,
    /// Most tasks at once in this process [default: twice the cores; with --addr none]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000), value_name = "N")]
    concurrency: Option<u32>,
    /// Cores that tasks may reserve [default: those of this machine]
    #[arg(long, value_name = "CORES")]
    cpu: Option<Milli>,
    /// Memory that tasks may reserve [default: that of this machine]
    #[arg(long, value_name = "SIZE")]
    memory: Option<ByteSize>,
    /// Another resource that tasks may reserve (repeatable)
    #[arg(long = "resource", value_name = "NAME=AMOUNT")]
    resources: Vec<Amount>,
    /// Configuration of the own node
    #[arg(long, value_name = "FILE", env = "TASKMASTER_CONFIG")]
    config: Option<PathBuf>,
    /// Shards of the own node; 0 means one per core
    #[arg(long, value_name = "N")]
    shards: Option<u16>,
    /// Data directory of the own node [default: a temporary one]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("'{text}' is no variable; write name=value"))?;
    Ok((name.to_owned(), value.to_owned()))
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(factor) if factor.is_finite() && (1e-6..=1e9).contains(&factor) => Ok(factor),
        _ => Err(format!("'{text}' is no factor; write for example 1000")),
    }
}

/// Carries `run` out.
pub(crate) fn run(global: &Global, arguments: &Arguments) -> Result<Exit, Failure> {
    log::start_quiet(global.verbose);
    let plan = read_plan(arguments)?;
    let offer = offer(&plan, global, arguments)?;
    block_on(async {
        let config = global.addr.is_none().then(|| node_config(arguments)).transpose()?;
        let withheld = config.as_ref().map(Config::secret_variables).unwrap_or_default();
        let node = config.map(|config| Embedded::start_private(config, arguments.data_dir.as_deref())).transpose()?;
        // From here on; until here the signals' defaults end the process.
        let mut stop = Stop::listen()?;
        let address = node.as_ref().map_or_else(|| global.address().to_owned(), |node| node.address().to_string());
        let client = connect_to(&address, global).await?;
        let offer = offer.map(|offer| Offer { address: address.clone(), withheld, ..offer });
        let exit = follow(&client, &plan, offer.as_ref(), &mut stop, node.is_some(), global.output()).await;
        if let Some(node) = node {
            serve::finish(node, &mut stop).await?;
        }
        exit
    })
}

fn node_config(arguments: &Arguments) -> Result<Config, Failure> {
    let mut config = config::load(arguments.config.as_deref())?.config;
    config.log.level = Level::Warn;
    if let Some(shards) = arguments.shards {
        config.node.shards = shards;
    }
    Ok(config)
}

/// Reads the file as a plan; warnings go to standard error.
fn read_plan(arguments: &Arguments) -> Result<Plan, Failure> {
    let file = &arguments.file;
    let text = std::fs::read_to_string(file)
        .map_err(|error| Failure::new(Exit::NotFound, format!("{} cannot be read: {error}", file.display())))?;
    let stem = file.file_stem().map_or_else(|| "workflow".to_owned(), |stem| stem.to_string_lossy().into_owned());
    let workdir = match &arguments.workdir {
        Some(given) => given.clone(),
        None => Path::new("taskmaster-work").join(&stem),
    };
    let absolute = |path: &Path| std::path::absolute(path).map(|path| path.to_string_lossy().into_owned());
    let filedir = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let options = Options {
        name: stem,
        workdir: absolute(&workdir)?,
        filedir: absolute(filedir)?,
        vars: arguments.variables.iter().cloned().collect(),
    };
    let mut plan = taskmaster_workflow::from_text(&text, &options).map_err(|rejected| {
        let lines: Vec<String> =
            rejected.to_string().lines().map(|line| format!("{}:{line}", file.display())).collect();
        Failure::usage(lines.join("\n"))
    })?;
    for warning in &plan.warnings {
        eprintln!("warning: {}:{warning}", file.display());
    }
    let has_limit = |task: &&taskmaster_workflow::PlanTask| {
        task.contract.timeout_ms.is_some() && !matches!(task.work, Work::Command(_))
    };
    if let Some(task) = plan.tasks.iter().find(has_limit) {
        eprintln!(
            "warning: the timeout of task '{}' is not in force: only commands have one, set it in the payload",
            task.name
        );
    }
    plan.speed_up(arguments.speed);
    if arguments.recorded_resources {
        plan.demand_recorded_resources();
    }
    if arguments.no_memory {
        for task in &mut plan.tasks {
            if let Work::Replay(replay) = &mut task.work {
                replay.memory_bytes = 0;
            }
        }
    }
    if plan.tasks.iter().any(|task| matches!(task.work, Work::Command(_))) {
        std::fs::create_dir_all(&workdir)?;
    }
    Ok(plan)
}

/// What the workers of this process offer, if there are to be any.
fn offer(plan: &Plan, global: &Global, arguments: &Arguments) -> Result<Option<Offer>, Failure> {
    if global.addr.is_some() && arguments.concurrency.is_none() {
        return Ok(None);
    }
    let cores = u32::try_from(core_count()).unwrap_or(u32::MAX);
    let mut custom: Vec<(String, u64)> =
        arguments.resources.iter().map(|resource| (resource.name.clone(), resource.amount)).collect();
    custom.sort();
    let capacity = taskmaster_workflow::Capacity {
        cpu_milli: arguments.cpu.map_or(cores.saturating_mul(1_000), |Milli(cpu)| cpu),
        memory_bytes: arguments.memory.map_or_else(memory_limit_bytes, |ByteSize(memory)| memory),
        gpu_milli: 0,
        custom,
    };
    if let Some(problem) = plan.impossible(&capacity).first() {
        return Err(Failure::usage(format!("{}: {problem}", arguments.file.display())));
    }
    Ok(Some(Offer {
        name: "run".to_owned(),
        queues: submission::queues(plan),
        concurrency: arguments.concurrency.unwrap_or(cores.saturating_mul(2)),
        resources: Some(submission::resources(&capacity)),
        cpu_milli: Some(capacity.cpu_milli),
        builtins: true,
        exec: true,
        ..Offer::default()
    }))
}

/// Submits the plan, follows it, and prints the report. `is_own`: the node's figures are of this run alone.
async fn follow(
    client: &Client,
    plan: &Plan,
    offer: Option<&Offer>,
    stop: &mut Stop,
    is_own: bool,
    output: Output,
) -> Result<Exit, Failure> {
    let observer = Arc::new(Observer::default());
    let before = watch::counters(client).await;
    let worker = match offer {
        Some(offer) => Some(workers::start(client, offer, Some(Arc::clone(&observer))).await?),
        None => None,
    };
    let handle = client.submit_workflow(submission::workflow(plan)).await?;
    let watched = watch::to_the_end(client, handle.id, plan, stop, output.is_json()).await;
    let view = match watched {
        Ok(view) => view,
        Err(failure) => {
            drop(worker);
            return Err(failure);
        }
    };
    let after = watch::counters(client).await;
    if let Some(worker) = worker {
        end_worker(worker).await;
    }
    let node = after.zip(before).map(|(after, before)| NodeFigures {
        rss_bytes_max: if is_own { watch::rss_bytes_max() } else { 0 },
        wal_bytes: after.wal_bytes.saturating_sub(before.wal_bytes),
        flushes: after.flushes.saturating_sub(before.flushes),
    });
    let observed = observations(&view, &handle.tasks, &observer)?;
    let report = Report::of(&Run {
        plan,
        observed: &observed,
        submitted_us: view.view.submitted_us,
        finished_us: if view.view.is_finished() { view.view.finished_us } else { workers::now_us() },
        slots: offer.map(|offer| offer.concurrency),
        cpu_milli: offer.and_then(|offer| offer.cpu_milli),
        node,
    });
    show(client, plan, &handle.tasks, &view.view, &report, output).await?;
    Ok(match (view.interrupted, report.success) {
        (true, _) => Exit::Interrupted,
        (false, true) => Exit::Success,
        (false, false) => Exit::TaskFailed,
    })
}

/// Time for workers to hand back what they hold, once the workflow is at its end.
const WORKER_END: Duration = Duration::from_secs(10);

async fn end_worker(worker: Worker) {
    if let Err(error) = worker.shutdown_within(WORKER_END).await {
        tracing::warn!(%error, "workers did not end in time");
    }
}

/// What was seen of each task, in the plan's order: by this process where it ran here, else by the server.
fn observations(watched: &watch::Watched, ids: &[TaskId], observer: &Observer) -> Result<Vec<Observation>, Failure> {
    let rows: std::collections::HashMap<TaskId, _> = watched.view.tasks.iter().map(|row| (row.id, row)).collect();
    let observe = |id: &TaskId| {
        let row = rows.get(id)?;
        Some(match observer.of(*id) {
            Some(seen) => Observation {
                state: row.state,
                attempts: row.attempt,
                ready_us: seen.ready_us,
                first_start_us: seen.first_start_us,
                start_us: seen.start_us,
                end_us: if seen.end_us == 0 { workers::now_us() } else { seen.end_us },
            },
            None => Observation {
                state: row.state,
                attempts: row.attempt,
                ready_us: row.ready_us,
                first_start_us: row.started_us,
                start_us: row.started_us,
                end_us: match (row.started_us, row.finished_us) {
                    (0, _) => 0,
                    (_, 0) => workers::now_us(),
                    (_, finished_us) => finished_us,
                },
            },
        })
    };
    ids.iter()
        .map(|id| {
            observe(id)
                .ok_or_else(|| Failure::new(Exit::Failed, format!("the node lists no task {id} of the workflow")))
        })
        .collect()
}

/// Failures that are shown.
const FAILURES_SHOWN: usize = 5;
/// Lines of a failed task's log that are shown.
const LOG_LINES_SHOWN: usize = 10;

/// Prints the last task's result, failures and the report.
async fn show(
    client: &Client,
    plan: &Plan,
    ids: &[TaskId],
    view: &WorkflowView,
    report: &Report,
    output: Output,
) -> Result<(), Failure> {
    let mut failures = Vec::new();
    let failed = view.tasks.iter().filter(|task| matches!(task.state, State::Failed | State::Expired));
    for row in failed.take(FAILURES_SHOWN) {
        failures.push(client.task(row.id).await?);
    }
    if output.is_json() {
        let mut object = serde_json::to_value(report).map_err(anyhow::Error::from)?;
        let failures: Vec<_> = failures
            .iter()
            .map(|task| json!({"id": task.id.to_string(), "name": task.name, "error_code": task.error_code, "error": task.error}))
            .collect();
        if let Some(object) = object.as_object_mut() {
            object.insert("workflow".to_owned(), json!(view.id.to_string()));
            object.insert("failures".to_owned(), json!(failures));
        }
        output.json(&object)?;
        return Ok(());
    }
    if let Some(last) = submission::last_command(plan).filter(|_| report.success) {
        let task = client.task(ids[last]).await?;
        if !task.result.is_empty() {
            let text = String::from_utf8_lossy(&task.result).trim_end().to_owned();
            output.text(&format!("── {} ──\n{text}\n\n", plan.tasks[last].name))?;
        }
    }
    for task in &failures {
        let log = String::from_utf8_lossy(&task.log_tail).into_owned();
        let lines: Vec<&str> = log.lines().collect();
        let shown = lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n    ");
        let log = if shown.is_empty() { String::new() } else { format!("\n    {shown}") };
        eprintln!("task '{}' {}: [{}] {}{log}", task.name, task.state, task.error_code, task.error);
    }
    output.text(&format!("── {} ──\n{}", report.name, report.text()))?;
    Ok(())
}

#[cfg(test)]
mod tests;

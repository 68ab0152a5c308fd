//! `taskmaster worker`: takes tasks from queues and runs a command of the user's, or the built-in kinds.
//!
//! The command gets the payload on standard input and `TASKMASTER_TASK_ID`, `TASKMASTER_QUEUE`... in its environment;
//! what it prints is the task's result, its exit code says whether the attempt failed.

use std::time::Duration;

use clap::Args;
use serde_json::json;
use taskmaster_client::{Resources, WorkerStats};
use taskmaster_workers::Command;

use super::arguments::{Amount, Label, Milli};
use super::connect::{block_on, connect};
use super::signal::Stop;
use super::{Exit, Failure, Global, log};
use crate::config::{ByteSize, Format, Interval, Level, core_count};
use crate::output::human_count;
use crate::workers::{self, Offer};

/// Arguments of `worker`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Queue to serve (repeatable) [default: default]
    #[arg(long, value_name = "NAME")]
    queue: Vec<String>,
    /// Command to run for each task: payload on standard input, result on standard output; shell text is welcome
    #[arg(long, value_name = "COMMAND")]
    exec: Option<String>,
    /// Kind that the command handles (repeatable) [default: all]
    #[arg(long, value_name = "NAME", requires = "exec")]
    kind: Vec<String>,
    /// Run the command in the payload of tasks of kind 'exec': whoever may submit may then run anything as this user
    #[arg(long)]
    allow_exec: bool,
    /// Most tasks at once [default: the cores]
    #[arg(long, short, value_parser = clap::value_parser!(u32).range(1..=100_000), value_name = "N")]
    concurrency: Option<u32>,
    /// Longest run of one attempt
    #[arg(long, value_name = "TIME")]
    timeout: Option<Interval>,
    /// Time that a process has between SIGTERM and SIGKILL
    #[arg(long, default_value = "5s", value_name = "TIME")]
    grace: Interval,
    /// Time that running tasks have at the end, before they go to other workers [default: no limit]
    #[arg(long, value_name = "TIME")]
    drain_timeout: Option<Interval>,
    /// Cores that tasks may reserve; with --memory, resources are counted
    #[arg(long, value_name = "CORES")]
    cpu: Option<Milli>,
    /// Memory that tasks may reserve
    #[arg(long, value_name = "SIZE")]
    memory: Option<ByteSize>,
    /// GPUs that tasks may reserve; of those in CUDA_VISIBLE_DEVICES, if it is set, else numbered from 0
    #[arg(long, value_name = "DEVICES")]
    gpu: Option<Milli>,
    /// Another resource that tasks may reserve (repeatable)
    #[arg(long = "resource", value_name = "NAME=AMOUNT")]
    resources: Vec<Amount>,
    /// Label of this worker, for tasks that ask for it (repeatable)
    #[arg(long = "label", value_name = "NAME=VALUE")]
    labels: Vec<Label>,
    /// Name shown to operators [default: host and process]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
}

impl Arguments {
    fn offer(&self) -> Offer {
        let cores = u32::try_from(core_count()).unwrap_or(u32::MAX);
        let command = self.exec.as_deref().map(|exec| (Command::from_exec_argument(exec), self.kind.clone()));
        Offer {
            name: self.name.clone().unwrap_or_else(default_name),
            address: String::new(),
            queues: if self.queue.is_empty() { vec!["default".to_owned()] } else { self.queue.clone() },
            concurrency: self.concurrency.unwrap_or(cores),
            resources: self.offered(),
            cpu_milli: self.cpu.map(|Milli(cpu)| cpu),
            builtins: self.exec.is_none(),
            exec: self.allow_exec,
            command,
            timeout: self.timeout.map(|timeout| timeout.0),
            grace: Some(self.grace.0),
            withheld: Vec::new(),
        }
    }

    /// Resources, when any was named. With labels alone cores and memory are not counted.
    fn offered(&self) -> Option<Resources> {
        let counts = self.cpu.is_some() || self.memory.is_some() || self.gpu.is_some() || !self.resources.is_empty();
        if !counts && self.labels.is_empty() {
            return None;
        }
        let (cpu, memory) = if counts { (0, 0) } else { (u32::MAX, u64::MAX) };
        let base = Resources::new()
            .cpu_milli(self.cpu.map_or(cpu, |Milli(cpu)| cpu))
            .memory_bytes(self.memory.map_or(memory, |ByteSize(memory)| memory))
            .gpu_milli(self.gpu.map_or(0, |Milli(gpu)| gpu));
        let base = self.resources.iter().fold(base, |base, resource| base.custom(&resource.name, resource.amount));
        Some(self.labels.iter().fold(base, |base, label| base.label(&label.name, &label.value)))
    }
}

fn default_name() -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{host}-{}", std::process::id())
}

/// Carries `worker` out.
pub(crate) fn run(global: &Global, arguments: &Arguments) -> Result<Exit, Failure> {
    log::start(Level::Info, Format::Text, global.verbose);
    let output = global.output();
    workers::check_devices(arguments.gpu.map_or(0, |Milli(gpu)| gpu))?;
    let offer = Offer { address: global.address().to_owned(), ..arguments.offer() };
    block_on(async {
        let mut stop = Stop::listen()?;
        let client = connect(global).await?;
        let worker = workers::start(&client, &offer, None).await?;
        eprintln!(
            "{} serves queue {} at {}, {} tasks at once; Ctrl-C drains",
            offer.name,
            offer.queues.join(", "),
            global.address(),
            offer.concurrency
        );
        stop.asked().await;
        let stats = worker.stats();
        eprintln!("\ndraining {} running tasks; Ctrl-C again ends at once, their leases run out then", stats.running);
        let drained = tokio::select! {
            ended = drain(worker, arguments.drain_timeout) => ended,
            () = stop.asked() => return Ok(Exit::Interrupted),
        };
        if output.is_json() {
            output.json(&stats_json(&stats))?;
        } else {
            let [completed, failed, running] = [stats.completed, stats.failed, stats.running].map(human_count);
            output.text(&format!("{completed} tasks completed, {failed} attempts failed, {running} drained\n"))?;
        }
        drained.map(|()| Exit::Success)
    })
}

async fn drain(worker: taskmaster_client::Worker, longest: Option<Interval>) -> Result<(), Failure> {
    match longest {
        None => Ok(worker.shutdown().await?),
        Some(Interval(longest)) => Ok(worker.shutdown_within(longest.max(Duration::from_millis(1))).await?),
    }
}

fn stats_json(stats: &WorkerStats) -> serde_json::Value {
    json!({
        "completed": stats.completed,
        "failed": stats.failed,
        "stale": stats.stale,
        "drained": stats.running,
        "reconnects": stats.reconnects,
    })
}

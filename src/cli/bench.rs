//! `taskmaster bench`: load on a node, and what came of it. Without an address it starts a node of its own on a real disk, or
//! several as a cluster ([`several`]).

mod checkpoint;
mod memo;
mod nodes;
mod rejoin;
mod several;
mod stream;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::Value;
use taskmaster_bench::contention::ContentionOptions;
use taskmaster_bench::order::OrderOptions;
use taskmaster_bench::states::StatesOptions;
use taskmaster_bench::stragglers::{Measured, StragglerOptions};
use taskmaster_bench::{NodeInfo, Options, SuiteOptions, run_suite};
use taskmaster_client::Client;

use super::connect::block_on;
use super::embedded::Embedded;
use super::queue::PolicyName;
use super::signal::Stop;
use super::{Exit, Failure, Global, log};
use crate::config::{self, ByteSize, Interval, Level};

/// Arguments of `bench`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Tasks per request; 1 means one task per request everywhere [default: 64; under --failover 16]
    #[arg(long, value_name = "N")]
    batch: Option<u32>,
    /// Connections [default: 16; under --failover 4 clients, each with connections to all nodes]
    #[arg(long, value_name = "N")]
    connections: Option<u32>,
    /// Payload of each task, with or without unit (64, 4KiB)
    #[arg(long, default_value = "64B", value_parser = payload_size, value_name = "BYTES")]
    payload: ByteSize,
    /// Tasks to measure [default: 1,000,000 unless --duration is given]
    #[arg(long, value_name = "N")]
    tasks: Option<u64>,
    /// Submissions per second at intended times (open loop); without it, as fast as the node answers
    #[arg(long, value_name = "PER_SECOND")]
    rate: Option<f64>,
    /// Time to measure for (10s; a bare number is seconds)
    #[arg(long, value_parser = seconds, value_name = "TIME")]
    duration: Option<Interval>,
    /// Load before the measurement
    #[arg(long, default_value = "500ms", value_parser = seconds, value_name = "TIME")]
    warmup: Interval,
    /// Requests in flight per connection; 0 chooses
    #[arg(long, default_value_t = 0, value_name = "N")]
    window: u32,
    /// Tasks in the queue before the load starts and kept ahead of it (closed loop)
    #[arg(long, default_value_t = 0, value_name = "N")]
    queued: u64,
    /// How long the node keeps finished tasks
    #[arg(long, default_value = "1s", value_name = "TIME")]
    retention: Interval,
    /// Generator threads
    #[arg(long, default_value_t = 1, value_name = "N")]
    threads: u32,
    /// Separate connections for producers and workers
    #[arg(long)]
    split: bool,
    /// Do not account for every single task
    #[arg(long)]
    no_verify: bool,
    /// Time to measure each floor for; 0s skips them
    #[arg(long, default_value = "1s", value_parser = seconds, value_name = "TIME")]
    floor: Interval,
    /// Run all published cases with their targets
    #[arg(long)]
    suite: bool,
    /// Own nodes: more than one make a cluster, a process each
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=9))]
    nodes: u16,
    /// Measure a single node of the same kind before the cluster
    #[arg(long)]
    baseline: bool,
    /// Strike the node that leads most partitions again and again under load
    #[arg(long, value_name = "HOW", conflicts_with_all = ["suite", "baseline", "tasks", "duration"])]
    failover: Option<Fault>,
    /// Strikes
    #[arg(long, value_name = "N", default_value_t = 50, requires = "failover")]
    rounds: u32,
    /// Take the last node away while as many tasks more come and go, and measure while it catches up
    #[arg(long, value_name = "TASKS", conflicts_with_all = ["suite", "baseline", "failover", "tasks", "rate"])]
    rejoin: Option<u64>,
    /// Measure nodes without load for this long
    #[arg(long, value_name = "TIME", value_parser = seconds, conflicts_with_all = ["suite", "baseline", "failover", "rejoin"])]
    idle: Option<Interval>,
    /// Measure with finished tasks going to this PostgreSQL database, and without
    #[arg(long, value_name = "URL", conflicts_with_all = ["suite", "baseline", "failover", "idle"])]
    checkpoint: Option<String>,
    /// Measure memoised tasks whose results this Redis remembers, beside plain submissions
    #[arg(long, value_name = "URL", conflicts_with_all = ["suite", "baseline", "failover", "idle", "rate", "checkpoint"])]
    memo: Option<String>,
    /// Measure messages that become tasks: --tasks of them, sent to a topic of these Kafka brokers for it
    #[arg(long, value_name = "BROKERS", conflicts_with_all = ["suite", "baseline", "failover", "idle", "rate", "checkpoint"])]
    stream: Option<String>,
    /// Measure saves of tasks' state: 64 KiB each, of which one percent changes; --connections tasks at once
    #[arg(long, conflicts_with_all = ["suite", "baseline", "failover", "idle", "rate"])]
    states: bool,
    /// Measure waits of a mixed load under each policy of queues; --connections tasks at once
    #[arg(long, conflicts_with_all = ["suite", "baseline", "failover", "idle", "rate", "states"])]
    order: bool,
    /// Measure a load of which two of a hundred attempts run twenty times as long, with second attempts and without; --connections tasks
    /// at once
    #[arg(long, conflicts_with_all = ["suite", "baseline", "failover", "idle", "rate", "states", "order"])]
    stragglers: bool,
    /// Measure a load of which half halves each other's speed, with such tasks kept apart and not; --connections tasks at once
    #[arg(long, conflicts_with_all = ["suite", "baseline", "failover", "idle", "rate", "states", "order", "stragglers"])]
    contention: bool,
    /// Measure a load of one kind of which one task in ten runs 150 times as long as the others, with giving up and without; --connections
    /// tasks at once
    #[arg(long, conflicts_with_all = ["suite", "baseline", "failover", "idle", "rate", "states", "order", "stragglers"])]
    mixed: bool,
    /// Order of the queue under load
    #[arg(long, value_enum, value_name = "POLICY", conflicts_with_all = ["nodes", "states", "order", "stragglers", "mixed", "contention"])]
    policy: Option<PolicyName>,
    /// Partitions of the own nodes
    #[arg(long, value_name = "N")]
    partitions: Option<u16>,
    /// Configuration of the own nodes
    #[arg(long, value_name = "FILE", env = "TASKMASTER_CONFIG")]
    config: Option<PathBuf>,
    /// Shards of each own node; 0 means one per core, of several nodes the cores shared out
    #[arg(long, value_name = "N")]
    shards: Option<u16>,
    /// Data directory of the own node [default: a temporary one on a real disk]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

/// How a node is struck.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Fault {
    /// Killed, and started again after 2 s
    Kill,
    /// Stopped for 3 s
    Stop,
    /// Cut off from the others and from clients for 3 s; needs root and `ip`, for network namespaces
    Partition,
}

fn payload_size(text: &str) -> Result<ByteSize, String> {
    taskmaster_workflow::units::bytes(text).map(ByteSize)
}

fn seconds(text: &str) -> Result<Interval, String> {
    match text.parse::<u32>() {
        Ok(seconds) => Ok(Interval::ms(u64::from(seconds) * 1_000)),
        Err(_) => text.parse(),
    }
}

impl Arguments {
    fn options(&self, quiet: bool) -> Result<Options, Failure> {
        let payload_bytes = u32::try_from(self.payload.0)
            .map_err(|_| Failure::usage(format!("a payload of {} is over every limit", self.payload)))?;
        let defaults = Options::default();
        let options = Options {
            batch: self.batch.unwrap_or(defaults.batch),
            connections: self.connections.unwrap_or(defaults.connections),
            payload_bytes,
            tasks: self.tasks,
            rate_per_s: self.rate,
            duration_s: self.duration.map(|duration| duration.0.as_secs_f64()),
            warmup_s: self.warmup.0.as_secs_f64(),
            window: self.window,
            queued: self.queued,
            policy: self.policy.map(|policy| policy.policy().number()),
            retention_ms: u32::try_from(self.retention.as_ms()).unwrap_or(u32::MAX),
            split: self.split,
            threads: self.threads,
            verify: !self.no_verify,
            floor_s: self.floor.0.as_secs_f64(),
            progress: !quiet,
            ..defaults
        };
        options.validate().map_err(|error| Failure::usage(error.to_string()))?;
        Ok(options)
    }

    fn stragglers(&self) -> StragglerOptions {
        // A guard wants to be shown first that giving up pays.
        let (measured, places, load, warmup_s) = match self.mixed {
            true => (Measured::GivingUp, 16, 0.9, 30),
            false => (Measured::Speculation, 64, 0.6, 5),
        };
        StragglerOptions {
            measured,
            places: self.connections.unwrap_or(places),
            load,
            warmup: Duration::from_secs(warmup_s),
            time: self.duration.map_or(Duration::from_secs(20), |duration| duration.0),
        }
    }

    fn load(&self, quiet: bool) -> Result<Load, Failure> {
        Ok(Load {
            options: self.options(quiet)?,
            is_suite: self.suite,
            states: self.states.then(|| StatesOptions {
                tasks: self.connections.unwrap_or(64),
                state_bytes: 64 << 10,
                time: self.duration.map_or(Duration::from_secs(10), |duration| duration.0),
                floor: self.floor.0,
            }),
            order: self.order.then(|| OrderOptions {
                places: self.connections.unwrap_or(16),
                load: 0.9,
                warmup: Duration::from_secs(15),
                time: self.duration.map_or(Duration::from_secs(40), |duration| duration.0),
            }),
            stragglers: (self.stragglers || self.mixed).then(|| self.stragglers()),
            contention: self.contention.then(|| ContentionOptions {
                places: self.connections.unwrap_or(12),
                load: 0.6,
                warmup: Duration::from_secs(10),
                time: self.duration.map_or(Duration::from_secs(20), |duration| duration.0),
            }),
        })
    }
}

/// Carries `bench` out.
pub(crate) fn run(global: &Global, arguments: &Arguments) -> Result<Exit, Failure> {
    log::start_quiet(global.verbose);
    let is_several = arguments.nodes > 1 || arguments.idle.is_some();
    if is_several && (global.addr.is_some() || arguments.suite || arguments.data_dir.is_some()) {
        return Err(Failure::usage("--nodes and --idle are about own nodes: leave out --addr, --suite and --data-dir"));
    }
    if !is_several && (arguments.failover.is_some() || arguments.rejoin.is_some() || arguments.baseline) {
        return Err(Failure::usage("--failover, --rejoin and --baseline need several nodes: add --nodes 3"));
    }
    let load = arguments.load(global.output().is_json())?;
    if let Some(addr) = &global.addr {
        let node = NodeInfo { addr: addr.clone(), data_dir: None, pid: None };
        let (json, text, good) = measure(load, &node)?;
        return show(global, json, &text, good);
    }
    let mut config = config::load(arguments.config.as_deref())?.config;
    config.log.level = Level::Warn;
    if let Some(shards) = arguments.shards {
        config.node.shards = shards;
    }
    if let Some(partitions) = arguments.partitions {
        config.node.partitions = partitions;
    }
    if is_several {
        return several::run(global, arguments, &config);
    }
    if let Some(url) = &arguments.checkpoint {
        return checkpoint::run(global, arguments, url, &config);
    }
    if let Some(url) = &arguments.memo {
        return memo::run(global, arguments, url, &config);
    }
    if let Some(brokers) = &arguments.stream {
        return stream::run(global, arguments, brokers, &config);
    }
    let node = Embedded::start_private(config, arguments.data_dir.as_deref())?;
    let info = NodeInfo {
        addr: node.address().to_string(),
        data_dir: Some(node.data_dir().to_owned()),
        pid: Some(std::process::id()),
    };
    let (json, text, good) = block_on(async {
        let mut stop = Stop::listen()?;
        let measuring = tokio::task::spawn_blocking(move || measure(load, &info));
        tokio::select! {
            measured = measuring => measured.map_err(anyhow::Error::from)?,
            () = stop.asked() => {
                node.abandon();
                std::process::exit(Exit::Interrupted.number().into());
            }
        }
    })?;
    node.stop()?;
    show(global, json, &text, good)
}

/// A counter of a node, over its shards.
async fn counter(client: &Client, wanted: &str) -> Result<u64, Failure> {
    let stats = client.stats().await?;
    let counters = stats.iter().flat_map(|shard| &shard.counters).filter(|(name, _)| name == wanted);
    Ok(counters.map(|(_, value)| value).sum())
}

/// What is to be measured.
struct Load {
    options: Options,
    is_suite: bool,
    states: Option<StatesOptions>,
    order: Option<OrderOptions>,
    stragglers: Option<StragglerOptions>,
    contention: Option<ContentionOptions>,
}

/// Runs the load: the report as JSON, as text, and whether nothing was lost or doubled and no target missed.
fn measure(load: Load, node: &NodeInfo) -> Result<(Value, String, bool), Failure> {
    let Load { options, is_suite, states, order, stragglers, contention } = load;
    let (json, text, good) = if let Some(contention) = contention {
        let report = taskmaster_bench::contention::run(&contention, node)?;
        (serde_json::to_value(&report), report.to_string(), true)
    } else if let Some(stragglers) = stragglers {
        let report = taskmaster_bench::stragglers::run(&stragglers, node)?;
        (serde_json::to_value(&report), report.to_string(), true)
    } else if let Some(order) = order {
        let report = taskmaster_bench::order::run(&order, node)?;
        (serde_json::to_value(&report), report.to_string(), true)
    } else if let Some(states) = states {
        let report = taskmaster_bench::states::run(&states, node)?;
        (serde_json::to_value(&report), report.to_string(), true)
    } else if is_suite {
        let duration_s = options.duration_s.unwrap_or(SuiteOptions::default().duration_s);
        let report = run_suite(&SuiteOptions { duration_s, base: options }, node)?;
        (serde_json::to_value(&report), report.to_string(), report.cases.iter().all(|case| case.pass))
    } else {
        let report = taskmaster_bench::run(&options, node)?;
        (serde_json::to_value(&report), report.to_string(), report.is_exact())
    };
    Ok((json.map_err(anyhow::Error::from)?, text, good))
}

/// Prints a report; exit code 1 when it is not good.
fn show(global: &Global, json: Value, text: &str, good: bool) -> Result<Exit, Failure> {
    let output = global.output();
    if output.is_json() {
        output.json(&json)?;
    } else {
        output.text(&format!("{}\n", text.trim_end()))?;
    }
    Ok(if good { Exit::Success } else { Exit::Failed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_may_be_bare_numbers() {
        assert_eq!(payload_size("64"), Ok(ByteSize(64)));
        assert_eq!(payload_size("4KiB"), Ok(ByteSize(4_096)));
        assert_eq!(seconds("10"), Ok(Interval::ms(10_000)));
        assert_eq!(seconds("250ms"), Ok(Interval::ms(250)));
        assert!(seconds("soon").is_err());
    }
}

//! `taskmaster replay`: recorded workloads, or what a node did, in virtual time through the scheduler's own code, one policy beside the
//! other.

mod dispatcher;
mod own;
mod plot;
mod queues;
mod read;

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use serde_json::json;
use taskmaster_scheduler::Millis;
use taskmaster_scheduler::critical::Graph;
use taskmaster_scheduler::order::Policy;
use taskmaster_scheduler::place::{Ask, Fit, Placement, Worker};

use super::instant::parse_time;
use super::{Exit, Failure, Global};
use crate::config::Interval;
use crate::output::{Output, Side, Table};

/// Schedules that the search may build for a workflow.
const SCHEDULES: usize = 200;
const MILLIS_PER_SECOND: f64 = 1e3;
/// The least run time in a slowdown: of jobs of machines that people wait for, and of tasks of a node.
const FLOOR: Interval = Interval::ms(10_000);
const OWN_FLOOR: Interval = Interval::ms(10);

/// Arguments of `replay`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["trace", "data_dir"]))]
pub(crate) struct Arguments {
    /// The trace: SWF, a WfFormat workflow, or the Alibaba tables of requests or pods; -: standard input
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// What a node did: its data directory, while it is stopped, or a copy; needs wal.starts in its configuration
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Of a data directory: what was ready at this time or later, in UTC (2026-01-31T12:00:00Z)
    #[arg(long, value_name = "TIME", value_parser = parse_time, requires = "data_dir")]
    since: Option<u64>,
    /// Of a data directory: what was ready before this time
    #[arg(long, value_name = "TIME", value_parser = parse_time, requires = "data_dir")]
    until: Option<u64>,
    /// The order: fifo, shortest, deadline or auto; again for more of them [default: fifo and auto]
    #[arg(long = "policy", value_name = "POLICY", value_parser = policy)]
    policies: Vec<Policy>,
    /// Slots of the machine [default: the trace's own, or 1; 16 for a workflow]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    slots: Option<u32>,
    /// Replays with submissions moved by up to five seconds, of which the mean is told; 1: as recorded
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000))]
    seeds: u64,
    /// Run times under this count as this in a slowdown [default: 10s; of a data directory 10ms]
    #[arg(long, value_name = "TIME")]
    floor: Option<Interval>,
    /// Tasks may be ended and started again, so that auto makes first attempts
    #[arg(long)]
    restartable: bool,
    /// Orders know the run times, as no real one can: how good a prediction could be
    #[arg(long)]
    clairvoyant: bool,
    /// Through a node's own dispatcher, with its guard and its aging, in place of the scheduler's code alone
    #[arg(long, conflicts_with_all = ["clairvoyant", "restartable", "machines"])]
    dispatcher: bool,
    /// The table of machines on which the pods of a trace are placed
    #[arg(long, value_name = "FILE")]
    machines: Option<PathBuf>,
    /// Draw waits, slowdowns and use of the slots as SVG
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

impl Arguments {
    fn floor(&self) -> Millis {
        let usual = if self.data_dir.is_some() { OWN_FLOOR } else { FLOOR };
        let floor = self.floor.unwrap_or(usual).as_ms();
        Millis::try_from(floor).unwrap_or(Millis::MAX).max(1)
    }
}

fn policy(name: &str) -> Result<Policy, String> {
    Policy::named(name).ok_or_else(|| "it is none of fifo, shortest, deadline, auto".to_owned())
}

/// Replays the trace.
pub(crate) fn run(global: &Global, arguments: &Arguments) -> Result<Exit, Failure> {
    let output = global.output();
    let policies =
        if arguments.policies.is_empty() { vec![Policy::Fifo, Policy::Auto] } else { arguments.policies.clone() };
    let input = match (&arguments.trace, &arguments.data_dir) {
        (Some(trace), _) => read::trace(trace)?,
        (None, dir) => {
            let dir = dir.as_deref().unwrap_or(Path::new("."));
            let times = (arguments.since.unwrap_or(0), arguments.until.unwrap_or(u64::MAX));
            read::not_empty(&dir.display().to_string(), read::Input::Queue(own::trace(dir, times.0, times.1)?))?
        }
    };
    for (is_asked, what) in [(arguments.plot.is_some(), "--plot draws"), (arguments.dispatcher, "--dispatcher replays")]
    {
        if is_asked && !matches!(input, read::Input::Queue(_)) {
            return Err(Failure::new(Exit::Usage, format!("{what} the tasks of a queue; this trace has none")));
        }
    }
    match input {
        read::Input::Queue(trace) => queues::run(&trace, &policies, arguments, output)?,
        read::Input::Workflow(graph) => {
            workflow(&graph, &policies, arguments.slots.unwrap_or(16), output)?;
        }
        read::Input::Pods(pods) => {
            let machines = arguments.machines.as_deref().ok_or_else(|| {
                Failure::new(Exit::Usage, "these are pods: name the table of machines with --machines")
            })?;
            placement(&pods, &read::machines(machines)?, output)?;
        }
    }
    Ok(Exit::Success)
}

/// Makespans of one workflow, over the bound below which none can be.
#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn workflow(graph: &Graph, policies: &[Policy], slots: u32, output: Output) -> Result<(), Failure> {
    let places = slots as usize;
    let bound = graph.bound(places).max(1);
    let mut table = Table::new(&[("policy", Side::Left), ("makespan", Side::Right), ("over bound", Side::Right)]);
    let mut rows = Vec::new();
    for policy in policies {
        let began = Instant::now();
        let starts = match policy {
            Policy::Fifo => graph.list_in_order(places),
            Policy::Auto => graph.improve(places, SCHEDULES, 1, bound),
            Policy::Shortest | Policy::Deadline => {
                let message = format!("a workflow is replayed under fifo or auto, not {}", policy.name());
                return Err(Failure::new(Exit::Usage, message));
            }
        };
        let makespan = graph.makespan(&starts) as f64;
        let (makespan_s, over) = (makespan / MILLIS_PER_SECOND, makespan / bound as f64);
        table.row(vec![policy.name().to_owned(), format!("{makespan_s:.1} s"), format!("{over:.3}")]);
        rows.push(json!({
            "policy": policy.name(), "makespan_s": makespan_s, "over_bound": over, "took_s": began.elapsed().as_secs_f64(),
        }));
    }
    if output.is_json() {
        let bound_s = bound as f64 / MILLIS_PER_SECOND;
        return Ok(output.json(&json!({ "tasks": graph.len(), "slots": slots, "bound_s": bound_s, "policies": rows }))?);
    }
    let title = format!("{} tasks of a workflow on {slots} slots\n\n", graph.len());
    Ok(output.text(&(title + &table.render()))?)
}

/// Shares of the devices in use once the pods were placed in their order, as often as it takes to ask for all devices.
fn placement(pods: &[Ask], machines: &[Worker], output: Output) -> Result<(), Failure> {
    let whole: u32 = machines.iter().map(Worker::free_share).sum();
    if whole == 0 || pods.iter().all(|pod| pod.devices * pod.share == 0) {
        return Err(Failure::new(Exit::Usage, "no device is offered, or none is asked for: there is nothing to place"));
    }
    let mut table = Table::new(&[("fit", Side::Left), ("devices in use", Side::Right)]);
    let mut rows = Vec::new();
    let fits = [
        ("worst", Fit::Worst),
        ("first", Fit::First),
        ("best", Fit::Best),
        ("fragmentation", Fit::Fragmentation),
        ("future", Fit::Future),
    ];
    for (name, fit) in fits {
        let mut asked = 0;
        let asks = pods.iter().cycle().take_while(|pod| {
            let is_enough = asked >= whole;
            asked += pod.devices * pod.share;
            !is_enough
        });
        let used = Placement::devices_in_use(machines, asks, fit);
        table.row(vec![name.to_owned(), format!("{:.1} %", 100.0 * used)]);
        rows.push(json!({ "fit": name, "devices_in_use": used }));
    }
    if output.is_json() {
        return Ok(output.json(&json!({ "pods": pods.len(), "machines": machines.len(), "fits": rows }))?);
    }
    let title =
        format!("{} pods on {} machines, as many devices asked for as there are\n\n", pods.len(), machines.len());
    Ok(output.text(&(title + &table.render()))?)
}

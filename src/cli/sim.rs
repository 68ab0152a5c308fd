//! `taskmaster sim`: the deterministic simulator. A seed is a run; its trace hash says that it was the same run.
//!
//! Release builds end at a failed assertion of the engine, so each seed is named before it runs.

use std::time::Instant;

use clap::Args;
use serde_json::{Value, json};
use taskmaster_tests::sim::{self, FaultSet, Options, Report};

use super::{Exit, Failure, Global};
use crate::output::Output;

/// Runs that the search for the fewest faults may take.
const MINIMISE_RUNS_MAX: u64 = 400;

/// Arguments of `sim`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// First seed
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
    /// How many seeds, one after the other
    #[arg(long, default_value_t = 1, value_name = "N")]
    seeds: u64,
    /// Nodes; 0: the seed chooses
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = clap::value_parser!(u16).range(0..=9))]
    nodes: u16,
    /// Virtual minutes of load and faults; 0: the seed chooses a few seconds
    #[arg(long, default_value_t = 0, value_name = "N")]
    minutes: u32,
    /// What may go wrong: all, none, or of crash, pause, clock, network, disk, membership, clients
    #[arg(long, default_value = "all", value_name = "KINDS")]
    faults: FaultSet,
    /// Final tasks are checkpointed to a store that fails now and then
    #[arg(long)]
    checkpoints: bool,
    /// Streams are read too, by readers that overlap and come late
    #[arg(long)]
    streams: bool,
    /// What happens to tasks is told in a topic that fails now and then: each event once, in order
    #[arg(long)]
    events: bool,
    /// Workers save versions of their tasks' state, and these are checked too
    #[arg(long)]
    saves: bool,
    /// Producers memoise some tasks
    #[arg(long)]
    memo: bool,
    /// Some tasks are restartable: their attempts are doubled when late, ended for more urgent ones, and given up for shorter ones
    #[arg(long)]
    restarts: bool,
    /// Look for the fewest faults with which a failing run still fails
    #[arg(long)]
    minimise: bool,
}

/// Runs the seeds; exit code 1 at the first rule that did not hold.
pub(crate) fn run(global: &Global, arguments: &Arguments) -> Result<Exit, Failure> {
    let output = global.output();
    let commit = env!("CARGO_PKG_VERSION");
    for seed in arguments.seed..arguments.seed.saturating_add(arguments.seeds) {
        let options = Options {
            seed,
            nodes: arguments.nodes,
            minutes: arguments.minutes,
            faults: arguments.faults,
            saves: arguments.saves,
            defect: None,
            checkpoints: arguments.checkpoints,
            streams: arguments.streams,
            events: arguments.events,
            memo: arguments.memo,
            restarts: arguments.restarts,
        };
        eprintln!("taskmaster {commit} sim {options}");
        let began = Instant::now();
        match sim::run(&options) {
            Ok(report) => print(output, &report, began.elapsed().as_secs_f64())?,
            Err(failure) => {
                let minimal = if arguments.minimise { sim::minimise(&options, MINIMISE_RUNS_MAX) } else { None };
                let faults = minimal.as_ref().map(|minimal| minimal.faults.clone());
                if output.is_json() {
                    output.json(&json!({
                        "seed": seed, "failed": true, "at_us": failure.at_us, "message": failure.sentence, "faults": faults,
                    }))?;
                } else {
                    output.text(&minimal.map_or_else(|| format!("{failure}\n"), |minimal| minimal.to_string()))?;
                }
                return Ok(Exit::Failed);
            }
        }
    }
    Ok(Exit::Success)
}

fn print(output: Output, report: &Report, took_s: f64) -> Result<(), Failure> {
    let fields = [
        ("nodes", report.nodes),
        ("events", report.events),
        ("faults", report.faults),
        ("crashes", report.crashes),
        ("shutdowns", report.shutdowns),
        ("disks_lost", report.disks_lost),
        ("leaderships", report.leaderships),
        ("snapshots", report.snapshots),
        ("messages", report.messages),
        ("tasks", report.tasks),
        ("submits_acknowledged", report.submits_acknowledged),
        ("completions_acknowledged", report.completions_acknowledged),
        ("assigned", report.assigned),
        ("reads", report.reads),
        ("replicas_compared", report.replicas_compared),
        ("stored", report.stored),
        ("versions_stored", report.versions_stored),
        ("refused", report.refused),
        ("messages_taken", report.messages_taken),
        ("told", report.told),
    ];
    let virtual_s = std::time::Duration::from_micros(report.virtual_us).as_secs_f64();
    if output.is_json() {
        let mut value = json!({
            "seed": report.seed, "trace": format!("{:016x}", report.trace), "failed": false,
            "virtual_s": virtual_s, "real_s": took_s,
        });
        if let Value::Object(map) = &mut value {
            map.extend(fields.map(|(name, count)| (name.to_owned(), json!(count))));
        }
        return Ok(output.json(&value)?);
    }
    let mut text = format!(
        "seed {}: all rules held; trace {:016x}; {virtual_s:.1} s of virtual time in {took_s:.2} s ({:.0}x)\n",
        report.seed,
        report.trace,
        virtual_s / took_s.max(1e-6)
    );
    for (name, count) in fields {
        text.push_str(&format!("  {:26}{count}\n", name.replace('_', " ")));
    }
    Ok(output.text(&text)?)
}

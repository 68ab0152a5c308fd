//! Prints the scheduler's bars, each beside its baselines of the same run.
//!
//! `cargo run --release -p taskmaster-bench --example bars -- [--traces DIR] [--seeds N] [--only NAME]
//! [--output json]`. The traces are read from the directory given, else from the one that TASKMASTER_TRACES names, else
//! from `../shared/data` beside the repository. Without one, the bars that need it are left out.

#![expect(clippy::cast_possible_truncation, reason = "figures for people")]

mod carry;
mod dags;
mod load;
mod machines;
mod table;
mod workers;

use std::error::Error;
use std::path::PathBuf;

use load::Traces;
use table::Row;

/// What is asked for.
pub(crate) struct Options {
    /// Jittered replicas of a replay.
    pub(crate) seeds: u64,
}

type Bars = fn(&Traces, &Options) -> Result<Vec<Row>, Box<dyn Error>>;

/// The groups of bars, by name.
const GROUPS: [(&str, Bars); 12] = [
    ("published", machines::published),
    ("wide", machines::wide),
    ("lcg", machines::lcg),
    ("lora", machines::lora),
    ("carry", carry::carry),
    ("workflows", dags::workflows),
    ("psplib", dags::psplib),
    ("deadline", machines::deadlines),
    ("coverage", machines::coverage),
    ("colocation", workers::colocation),
    ("placement", workers::placement),
    ("decision", machines::decision),
];

fn main() -> Result<(), Box<dyn Error>> {
    let mut traces = std::env::var_os("TASKMASTER_TRACES").map(PathBuf::from);
    let (mut only, mut json) = (None, false);
    let mut options = Options { seeds: 10 };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{argument} needs a value"))?;
        match argument.as_str() {
            "--traces" => traces = Some(PathBuf::from(value)),
            "--seeds" => options.seeds = value.parse::<u64>()?.max(1),
            "--only" => only = Some(value),
            "--output" => json = value == "json",
            _ => return Err(format!("unknown argument {argument}").into()),
        }
    }
    let beside = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    let traces = Traces::new(traces.unwrap_or(beside));
    let mut rows = Vec::new();
    for (name, bars) in GROUPS {
        if only.as_ref().is_some_and(|only| only != name) {
            continue;
        }
        match bars(&traces, &options) {
            Ok(found) => {
                if !json {
                    table::print(name, &found);
                }
                rows.extend(found);
            }
            Err(error) => eprintln!("{name}: left out: {error}"),
        }
    }
    if json {
        println!("{}", table::json(&rows));
    }
    Ok(())
}

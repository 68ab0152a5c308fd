//! The published cases, run one after the other on one node, each with its targets.

use std::fmt;
use std::io::IsTerminal;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::options::{NodeInfo, Options};
use crate::report::{Report, count};
use crate::run::run;

/// How much of the suite to run.
#[derive(Clone, Debug)]
pub struct SuiteOptions {
    /// Time to measure each case for, in seconds.
    pub duration_s: f64,
    /// Everything the cases do not set themselves.
    pub base: Options,
}

impl Default for SuiteOptions {
    fn default() -> Self {
        Self { duration_s: 5.0, base: Options::default() }
    }
}

/// All cases, with what they found out.
#[derive(Clone, Debug, Serialize)]
#[serde(transparent)]
pub struct SuiteReport {
    /// In the order in which they ran.
    pub cases: Vec<SuiteCase>,
}

/// One case.
#[derive(Clone, Debug, Serialize)]
pub struct SuiteCase {
    /// Batch x connections, or the rate.
    pub name: &'static str,
    /// Whether every target was met and every task was accounted for.
    pub pass: bool,
    /// The targets.
    pub checks: Vec<Check>,
    /// The whole report.
    pub report: Report,
}

/// One target of a case.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// What is compared, with its unit.
    pub what: &'static str,
    /// What was measured.
    pub measured: f64,
    /// The least (or, for `at_most`, the most) that passes.
    pub target: f64,
    /// Whether the target is an upper bound.
    pub at_most: bool,
    /// Whether the target was met.
    pub pass: bool,
}

impl Check {
    fn at_least(what: &'static str, measured: f64, target: f64) -> Self {
        Self { what, measured, target, at_most: false, pass: measured >= target }
    }

    fn at_most(what: &'static str, measured: f64, target: f64) -> Self {
        Self { what, measured, target, at_most: true, pass: measured <= target }
    }
}

struct Case {
    name: &'static str,
    batch: u32,
    connections: u32,
    rate_per_s: Option<f64>,
    checks: fn(&Report) -> Vec<Check>,
}

const CASES: [Case; 6] = [
    Case {
        name: "64x16",
        batch: 64,
        connections: 16,
        rate_per_s: None,
        checks: |report| vec![Check::at_least("tasks/s", report.tasks_per_s, 500_000.0)],
    },
    Case {
        name: "1024x4",
        batch: 1024,
        connections: 4,
        rate_per_s: None,
        checks: |report| vec![Check::at_least("tasks/s", report.tasks_per_s, 1_000_000.0)],
    },
    Case {
        name: "1x64",
        batch: 1,
        connections: 64,
        rate_per_s: None,
        checks: |report| vec![Check::at_least("tasks/s", report.tasks_per_s, 30_000.0)],
    },
    Case {
        name: "1x1",
        batch: 1,
        connections: 1,
        rate_per_s: None,
        checks: |report| {
            let floor_us = report.floor.request_us();
            let check = |floor_us| Check::at_most("mean submit / floor", report.submit_us.mean / floor_us, 1.5);
            floor_us.map(check).into_iter().collect()
        },
    },
    Case {
        name: "1,000/s",
        batch: 64,
        connections: 4,
        rate_per_s: Some(1_000.0),
        checks: |report| {
            vec![
                Check::at_most("initiation p50 µs", report.initiation_us.p50, 500.0),
                Check::at_most("initiation p99 µs", report.initiation_us.p99, 2_000.0),
                Check::at_most("initiation mean µs", report.initiation_us.mean, 700.0),
            ]
        },
    },
    Case {
        name: "100,000/s",
        batch: 64,
        connections: 4,
        rate_per_s: Some(100_000.0),
        checks: |report| {
            let kept_up = report.tasks_per_s / 100_000.0;
            vec![
                Check::at_most("initiation p99 µs", report.initiation_us.p99, 5_000.0),
                Check::at_least("share of the rate", kept_up, 0.98),
            ]
        },
    },
];

/// Runs every case on a node.
///
/// # Errors
/// As [`run`], with the case's name.
pub fn run_suite(options: &SuiteOptions, node: &NodeInfo) -> Result<SuiteReport> {
    let mut cases = Vec::new();
    for case in &CASES {
        if options.base.progress && std::io::stderr().is_terminal() {
            eprintln!("case {}", case.name);
        }
        let of_case = Options {
            batch: case.batch,
            connections: case.connections,
            rate_per_s: case.rate_per_s,
            tasks: None,
            duration_s: Some(options.duration_s),
            ..options.base.clone()
        };
        let report = run(&of_case, node).with_context(|| format!("case {}", case.name))?;
        let checks = (case.checks)(&report);
        let pass = report.is_exact() && checks.iter().all(|check| check.pass);
        cases.push(SuiteCase { name: case.name, pass, checks, report });
    }
    Ok(SuiteReport { cases })
}

impl SuiteReport {
    /// Whether nothing was lost and nothing doubled in any case.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        self.cases.iter().all(|case| case.report.is_exact())
    }

    /// Whether every target was met.
    #[must_use]
    pub fn is_pass(&self) -> bool {
        self.cases.iter().all(|case| case.pass)
    }
}

impl fmt::Display for SuiteReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head =
            ["case", "tasks/s", "init p50", "init p99", "e2e p50", "e2e p99", "flush/s", "floor/s", "lost", "doubled"];
        let [name, cells @ ..] = head;
        write!(f, "{name:<11}")?;
        cells.iter().try_for_each(|cell| write!(f, "{cell:>10}"))?;
        writeln!(f, "  target (latencies in µs)")?;
        for case in &self.cases {
            let report = &case.report;
            let flushes_per_s = report.flushes.map_or(0.0, |flushes| flushes as f64 / report.elapsed_s);
            write!(f, "{:<11}", case.name)?;
            for value in [
                report.tasks_per_s,
                report.initiation_us.p50,
                report.initiation_us.p99,
                report.end_to_end_us.p50,
                report.end_to_end_us.p99,
                flushes_per_s,
                report.floor.append_flush_per_s.unwrap_or(0.0),
                report.lost as f64,
                report.duplicated as f64,
            ] {
                write!(f, "{:>10}", count(value))?;
            }
            for (at, check) in case.checks.iter().enumerate() {
                let bound = if check.at_most { "≤" } else { "≥" };
                let verdict = if check.pass { "met" } else { "MISSED" };
                let Check { what, measured, target, .. } = check;
                let separator = if at == 0 { "  " } else { "; " };
                write!(f, "{separator}{what} {measured:.2} {bound} {target} {verdict}")?;
            }
            writeln!(f)?;
        }
        writeln!(f, "floor/s: bare append+flush per second on the same disk, just before the case")?;
        write!(f, "{}", if self.is_exact() { "nothing lost, nothing doubled" } else { "TASKS LOST OR DOUBLED" })
    }
}

//! How well a choice made on some traces does on others: a constant is chosen on two machines and shown on the third, and
//! parts of a week of grid jobs are replayed each on a machine of their own.

use std::error::Error;

use taskmaster_scheduler::Millis;
use taskmaster_scheduler::order::Policy;
use taskmaster_scheduler::replay::wide::{Told, run};
use taskmaster_scheduler::replay::{self, ReplayOptions, Report, Trace};
use taskmaster_scheduler::wide::Config;

use crate::Options;
use crate::load::Traces;
use crate::machines::{MACHINES, mean, replicas, single, worse};
use crate::table::Row;

/// The choices: how fast ranks fall with the wait.
const URGENCIES: [f64; 6] = [0.0, 1.0, 2.0, 3.0, 5.0, 8.0];
/// Parts of the week.
const PARTS: i64 = 3;

fn reports(trace: &Trace, urgency: f64, seeds: u64) -> Vec<Report> {
    let config = Config { urgency, ..Config::new(trace.width, Policy::Auto) };
    let told = Told { restartable: true, ..Told::default() };
    let replica = |seed| {
        let submits = replay::submits(trace, seed);
        let outcome = run(trace, &submits, config, told);
        Report::new(trace, &submits, &outcome.starts, trace.width, config.floor, outcome.waste)
    };
    (1..=seeds).map(replica).collect()
}

fn slowdown(reports: &[Report]) -> f64 {
    mean(reports.iter().map(|report| report.slowdown_mean))
}

fn machines(traces: &Traces, options: &Options) -> Result<Vec<Row>, Box<dyn Error>> {
    let mut found = Vec::new();
    for (file, ..) in MACHINES {
        let trace = traces.swf(file)?;
        let plain = replicas(&trace, &ReplayOptions::new(Policy::Fifo), options.seeds);
        let each = |urgency: f64| {
            let ours = reports(&trace, urgency, options.seeds);
            (slowdown(&ours), worse(&ours, &plain))
        };
        found.push((file, slowdown(&plain), URGENCIES.map(each)));
    }
    let mut rows = Vec::new();
    for (place, (file, plain, figures)) in found.iter().enumerate() {
        // By slowdown: the least product over the others. By weeks: the least sum.
        let others = || found.iter().enumerate().filter(|(other, _)| *other != place).map(|(_, of)| of);
        let least = |cost: &dyn Fn(usize) -> f64| {
            (0..URGENCIES.len()).min_by(|a, b| cost(*a).total_cmp(&cost(*b))).unwrap_or_default()
        };
        let by_slowdown = least(&|choice| others().map(|(_, _, figures)| figures[choice].0.ln()).sum());
        let by_weeks = least(&|choice| others().map(|(_, _, figures)| figures[choice].1).sum());
        let text = |choice: usize| {
            format!(
                "urgency {}: {:.1}, weeks worse {:.1}%",
                URGENCIES[choice],
                figures[choice].0,
                100.0 * figures[choice].1
            )
        };
        let all: Vec<String> = (0..URGENCIES.len()).map(text).collect();
        let ours = format!("chosen by slowdown {}; by weeks {}", text(by_slowdown), text(by_weeks));
        let name = format!("{file}: urgency chosen on the other two ({})", all.join("; "));
        rows.push(Row::new(name, format!("{plain:.1}"), "-", "-", ours));
    }
    Ok(rows)
}

fn parts(traces: &Traces) -> Result<Vec<Row>, Box<dyn Error>> {
    let whole = traces.swf("LCG-week1")?;
    let first = whole.jobs.first().map_or(0, |job| job.submit);
    let mut rows = Vec::new();
    for part in 0..PARTS {
        let bounds = [part, part + 1].map(|part| first + whole.span() * part / PARTS);
        let within = |submit: Millis| submit >= bounds[0] && submit < bounds[1];
        let jobs = whole.jobs.iter().filter(|job| within(job.submit)).copied().collect();
        let trace = Trace { jobs, ..whole.clone() };
        let slots = (trace.work() as f64 / trace.span() as f64 / 0.9).round() as u32;
        let base = |policy| ReplayOptions { slots: Some(slots), floor: 1000, ..ReplayOptions::new(policy) };
        let name = format!("LCG week 1, part {} of {PARTS}, {slots} slots", part + 1);
        let plain = single(&trace, base(Policy::Fifo));
        let best = single(&trace, ReplayOptions { clairvoyant: true, ..base(Policy::Shortest) });
        let ours = single(&trace, ReplayOptions { restartable: true, ..base(Policy::Auto) });
        rows.push(Row::new(format!("{name}: auto, restartable (clairvoyant {best})"), plain, "-", "-", ours));
    }
    Ok(rows)
}

/// What was chosen elsewhere.
pub(crate) fn carry(traces: &Traces, options: &Options) -> Result<Vec<Row>, Box<dyn Error>> {
    let mut rows = machines(traces, options)?;
    rows.extend(parts(traces)?);
    Ok(rows)
}

//! Tasks of a queue: waits, slowdowns, late tasks and use of the slots under each policy.

use std::time::Instant;

use serde_json::{Value, json};
use taskmaster_scheduler::order::Policy;
use taskmaster_scheduler::replay::{self, ReplayOptions, Report, Trace};

use super::{Arguments, MILLIS_PER_SECOND, dispatcher, plot};
use crate::cli::{Exit, Failure};
use crate::output::{Output, Side, Table};

/// A week is worse than under the first policy from this part on.
const WORSE: f64 = 1.05;

/// What the replays of one policy came to.
struct Outcome {
    policy: Policy,
    /// One for each seed.
    reports: Vec<Report>,
    took_s: f64,
}

impl Outcome {
    /// The mean of a figure over the seeds.
    #[expect(clippy::cast_precision_loss, reason = "few seeds")]
    fn mean(&self, figure: impl Fn(&Report) -> f64) -> f64 {
        self.reports.iter().map(figure).sum::<f64>() / self.reports.len() as f64
    }

    /// The mean of a quantile of the slowdowns.
    fn slowdown(&self, part: f64) -> f64 {
        self.mean(|report| quantile(&mut report.slowdowns.clone(), part))
    }

    /// The mean of a quantile of the waits, in seconds.
    fn wait_s(&self, part: f64) -> f64 {
        self.mean(|report| quantile(&mut waits_s(report), part))
    }

    /// Part of the weeks with tasks that are worse than under another policy, of equal seeds.
    #[expect(clippy::cast_precision_loss, reason = "few weeks")]
    fn weeks_worse(&self, plain: &Self) -> f64 {
        let pairs = self.reports.iter().zip(&plain.reports).flat_map(|(own, plain)| own.weeks.iter().zip(&plain.weeks));
        let (mut weeks, mut worse) = (0usize, 0usize);
        for (own, plain) in pairs.filter(|(own, plain)| own.is_finite() && plain.is_finite()) {
            weeks += 1;
            worse += usize::from(*own > WORSE * plain);
        }
        worse as f64 / weeks.max(1) as f64
    }

    /// The mean part of tasks that were late; `None` where none has a deadline or a limit.
    fn late(&self) -> Option<f64> {
        let is_known = self.reports.iter().all(|report| report.late.is_some());
        is_known.then(|| self.mean(|report| report.late.unwrap_or(0.0)))
    }

    fn decisions_per_s(&self, trace: &Trace) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let decisions = (trace.jobs.len() * self.reports.len()) as f64;
        decisions / self.took_s.max(1e-9)
    }
}

/// The value below which this part of them is; 0 when there are none.
fn quantile(values: &mut [f64], part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place")]
    let place = (part * values.len() as f64) as usize;
    values.get(place.min(values.len().saturating_sub(1))).copied().unwrap_or(0.0)
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn waits_s(report: &Report) -> Vec<f64> {
    report.waits.iter().map(|wait| *wait as f64 / MILLIS_PER_SECOND).collect()
}

/// Replays the trace under each policy and tells what came of it.
pub(super) fn run(trace: &Trace, policies: &[Policy], arguments: &Arguments, output: Output) -> Result<(), Failure> {
    for policy in policies {
        replay::check(trace, *policy).map_err(|error| {
            Failure::new(Exit::Usage, format!("{} does not replay under {}: {error}", trace.name, policy.name()))
        })?;
    }
    let slots = arguments.slots.unwrap_or(trace.width);
    let seeds = if arguments.seeds == 1 { 0..=0 } else { 1..=arguments.seeds };
    let outcomes: Vec<Outcome> = policies
        .iter()
        .map(|&policy| {
            let options = ReplayOptions {
                slots: Some(slots),
                restartable: arguments.restartable,
                clairvoyant: arguments.clairvoyant,
                floor: arguments.floor(),
                ..ReplayOptions::new(policy)
            };
            let began = Instant::now();
            let one = |seed| match arguments.dispatcher {
                true => dispatched(trace, policy, slots, seed, arguments),
                false => Ok(replay::run(trace, &ReplayOptions { seed, ..options })),
            };
            let reports = seeds.clone().map(one).collect::<Result<_, _>>()?;
            Ok(Outcome { policy, reports, took_s: began.elapsed().as_secs_f64() })
        })
        .collect::<Result<_, Failure>>()?;
    if let Some(path) = &arguments.plot {
        let curves: Vec<plot::Curves> = outcomes
            .iter()
            .map(|outcome| plot::Curves {
                name: outcome.policy.name(),
                waits_s: waits_s(&outcome.reports[0]),
                slowdowns: outcome.reports[0].slowdowns.clone(),
                utilisation: outcome.reports[0].utilisation.clone(),
            })
            .collect();
        plot::draw(path, &trace.name, &curves)
            .map_err(|error| Failure::new(Exit::Failed, format!("cannot draw {}: {error}", path.display())))?;
    }
    if output.is_json() {
        let policies: Vec<Value> = outcomes.iter().map(|outcome| json(trace, outcome, &outcomes[0])).collect();
        return Ok(output.json(&json!({
            "trace": trace.name, "tasks": trace.jobs.len(), "skipped": trace.skipped, "slots": slots,
            "seeds": arguments.seeds, "policies": policies,
        }))?);
    }
    Ok(output.text(&text(trace, slots, arguments.seeds, &outcomes))?)
}

/// One replay through the dispatcher.
fn dispatched(trace: &Trace, policy: Policy, slots: u32, seed: u64, arguments: &Arguments) -> Result<Report, Failure> {
    let submits = replay::submits(trace, seed);
    let options = dispatcher::Options { slots, policy, has_payloads: arguments.data_dir.is_some() };
    let starts = dispatcher::run(trace, &submits, options).map_err(|sentence| Failure::new(Exit::Failed, sentence))?;
    Ok(Report::new(trace, &submits, &starts, slots, arguments.floor(), 0.0))
}

fn json(trace: &Trace, outcome: &Outcome, plain: &Outcome) -> Value {
    json!({
        "policy": outcome.policy.name(),
        "refused": outcome.reports[0].refused,
        "slowdown": {
            "mean": outcome.mean(|report| report.slowdown_mean),
            "p50": outcome.slowdown(0.5), "p90": outcome.slowdown(0.9), "p99": outcome.slowdown(0.99),
            "by_seed": outcome.reports.iter().map(|report| report.slowdown_mean).collect::<Vec<_>>(),
        },
        "wait_s": {
            "mean": outcome.mean(|report| report.wait_mean / MILLIS_PER_SECOND),
            "p50": outcome.wait_s(0.5), "p90": outcome.wait_s(0.9), "p99": outcome.wait_s(0.99), "max": outcome.wait_s(1.0),
        },
        "late": outcome.late(),
        "waste": outcome.mean(|report| report.waste),
        "utilisation": outcome.mean(utilisation),
        "weeks_worse": outcome.weeks_worse(plain),
        "decisions_per_s": outcome.decisions_per_s(trace),
    })
}

#[expect(clippy::cast_precision_loss, reason = "a hundred parts")]
fn utilisation(report: &Report) -> f64 {
    report.utilisation.iter().sum::<f64>() / report.utilisation.len().max(1) as f64
}

fn text(trace: &Trace, slots: u32, seeds: u64, outcomes: &[Outcome]) -> String {
    let mut table = Table::new(&[
        ("policy", Side::Left),
        ("slowdown", Side::Right),
        ("p50", Side::Right),
        ("p99", Side::Right),
        ("wait", Side::Right),
        ("longest", Side::Right),
        ("late", Side::Right),
        ("wasted", Side::Right),
        ("in use", Side::Right),
        ("worse weeks", Side::Right),
        ("decisions/s", Side::Right),
    ]);
    let percent = |part: f64| format!("{:.1} %", 100.0 * part);
    for outcome in outcomes {
        table.row(vec![
            outcome.policy.name().to_owned(),
            format!("{:.2}", outcome.mean(|report| report.slowdown_mean)),
            format!("{:.2}", outcome.slowdown(0.5)),
            format!("{:.1}", outcome.slowdown(0.99)),
            format!("{:.0} s", outcome.mean(|report| report.wait_mean / MILLIS_PER_SECOND)),
            format!("{:.0} s", outcome.wait_s(1.0)),
            outcome.late().map_or_else(|| "-".to_owned(), percent),
            percent(outcome.mean(|report| report.waste)),
            percent(outcome.mean(utilisation)),
            percent(outcome.weeks_worse(&outcomes[0])),
            format!("{:.0}", outcome.decisions_per_s(trace)),
        ]);
    }
    let skipped =
        if trace.skipped > 0 { format!(", {} that say nothing left out", trace.skipped) } else { String::new() };
    let refused = match outcomes.first().map_or(0, |outcome| outcome.reports[0].refused) {
        0 => String::new(),
        refused => format!(", {refused} wider than the machine"),
    };
    let replays = if seeds == 1 { "as recorded".to_owned() } else { format!("the mean of {seeds} replays") };
    format!(
        "{}: {} tasks on {slots} slots, {replays}{skipped}{refused}\n\n{}",
        trace.name,
        trace.jobs.len(),
        table.render()
    )
}

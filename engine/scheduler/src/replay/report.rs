//! What a replay says: waits, bounded slowdowns, late tasks, and the use of the slots over time.

use crate::Millis;
use crate::replay::Trace;

/// A week.
pub const WEEK: Millis = 7 * 24 * 3_600_000;

/// The report of a replay.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Tasks.
    pub tasks: usize,
    /// Tasks that never started: wider than the machine.
    pub refused: usize,
    /// Wait of each task that started, in the order of the trace.
    pub waits: Vec<Millis>,
    /// Bounded slowdown of each, likewise.
    pub slowdowns: Vec<f64>,
    /// The mean of the slowdowns.
    pub slowdown_mean: f64,
    /// The mean of the waits, in milliseconds.
    pub wait_mean: f64,
    /// The longest wait.
    pub wait_max: Millis,
    /// Part of the tasks with a deadline or a declared limit that ended after it; `None` where no task has one.
    pub late: Option<f64>,
    /// Part of the work that first attempts wasted.
    pub waste: f64,
    /// Slots in use on average, in each hundredth of the time from the first submission to the last end.
    pub utilisation: Vec<f64>,
    /// Mean slowdown of the tasks submitted in each week; NaN for one without.
    pub weeks: Vec<f64>,
}

impl Report {
    /// The report of `trace` whose tasks were submitted and started at these times.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "figures of a report")]
    pub fn new(trace: &Trace, submits: &[Millis], starts: &[Millis], slots: u32, floor: Millis, waste: f64) -> Self {
        let first = submits.iter().copied().min().unwrap_or(0);
        let (mut waits, mut slowdowns) = (Vec::new(), Vec::new());
        let mut weeks: Vec<(f64, f64)> = Vec::new();
        let (mut with_due, mut late) = (0usize, 0usize);
        let mut spans: Vec<(Millis, Millis, u32)> = Vec::new();
        for ((job, submit), start) in trace.jobs.iter().zip(submits).zip(starts) {
            if *start == Millis::MAX {
                continue;
            }
            let wait = start - submit;
            let slowdown = ((wait + job.run) as f64 / job.run.max(floor).max(1) as f64).max(1.0);
            if let Some(due) = job.due() {
                // What runs to its limit is ended there.
                let run = if job.has_limit { job.run.min(job.limit) } else { job.run };
                with_due += 1;
                late += usize::from(wait + run > due);
            }
            let week = usize::try_from((submit - first) / WEEK).unwrap_or(0);
            if weeks.len() <= week {
                weeks.resize(week + 1, (0.0, 0.0));
            }
            weeks[week].0 += slowdown;
            weeks[week].1 += 1.0;
            spans.push((*start, start + job.run, job.width));
            waits.push(wait);
            slowdowns.push(slowdown);
        }
        let count = waits.len().max(1) as f64;
        Self {
            tasks: trace.jobs.len(),
            refused: trace.jobs.len() - waits.len(),
            slowdown_mean: slowdowns.iter().sum::<f64>() / count,
            wait_mean: waits.iter().map(|wait| *wait as f64).sum::<f64>() / count,
            wait_max: waits.iter().copied().max().unwrap_or(0),
            late: (with_due > 0).then(|| late as f64 / with_due as f64),
            waste,
            utilisation: utilisation(&spans, first, slots),
            weeks: weeks.into_iter().map(|(sum, count)| sum / count).collect(),
            waits,
            slowdowns,
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "figures of a report")]
fn utilisation(spans: &[(Millis, Millis, u32)], first: Millis, slots: u32) -> Vec<f64> {
    const PARTS: usize = 100;
    let last = spans.iter().map(|(_, end, _)| *end).max().unwrap_or(first);
    let part = ((last - first) as f64 / PARTS as f64).max(1.0);
    let mut used = vec![0.0; PARTS];
    for (start, end, width) in spans {
        let (start, end) = ((start - first) as f64 / part, (end - first) as f64 / part);
        let mut from = start;
        while from < end {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a part's number")]
            let place = (from as usize).min(PARTS - 1);
            let until = if place == PARTS - 1 { end } else { end.min(place as f64 + 1.0) };
            used[place] += (until - from) * f64::from(*width);
            from = until;
        }
    }
    used.iter().map(|used| used / f64::from(slots.max(1))).collect()
}

//! The published check of a replay: the windows and the four orders of RLScheduler (Zhang et al., SC 2020), on Lublin's
//! synthetic traces. Its rules are not ours and are kept apart: the first by score is chosen and waited for, without a
//! new choice; tasks that arrived are only seen when the queue is empty or while a task is waited for.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::Millis;
use crate::replay::{Job, Trace};

/// The first tasks of its ten windows.
pub const STARTS: [usize; 10] = [1981, 2756, 4299, 8850, 3316, 2714, 5228, 7762, 4022, 7085];
/// Tasks of a window.
pub const WINDOW: usize = 1024;

/// The published orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// First come, first served.
    Fcfs,
    /// Shortest first, by the request.
    Sjf,
    /// UNICEP.
    Unicep,
    /// WFP3.
    Wfp3,
    /// F1 of Carastan-Santos and de Camargo (SC 2017).
    F1,
}

/// What its scores take as the wait of a task in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitTaken {
    /// -1 less the submit time, as that code does by mistake.
    Published,
    /// The time since it was submitted.
    Corrected,
}

#[expect(clippy::cast_precision_loss, reason = "times of traces are far below 2^53")]
fn seconds(time: Millis) -> f64 {
    time as f64 / 1000.0
}

impl Order {
    fn score(self, job: &Job, now: Millis, wait: WaitTaken) -> f64 {
        let submit = seconds(job.submit);
        let wait = match wait {
            WaitTaken::Published => -1.0 - submit,
            WaitTaken::Corrected => seconds(now) - submit,
        };
        let request = seconds(job.limit);
        let width = f64::from(job.width);
        let logarithm = |value: f64| if value > 0.0 { value.log10() } else { 0.1_f64.log10() };
        match self {
            Self::Fcfs => submit,
            Self::Sjf => request,
            Self::Unicep => -(wait + 1e-15) / ((width + 1e-15).log2() * request),
            Self::Wfp3 => -(wait / request).powi(3) * width,
            Self::F1 => logarithm(request) * width + 870.0 * logarithm(submit),
        }
    }
}

/// Mean bounded slowdown (threshold 10 s) of the window of `trace` that starts at `first`.
#[must_use]
pub fn window(trace: &Trace, first: usize, order: Order, wait: WaitTaken) -> f64 {
    let jobs = &trace.jobs[first.min(trace.jobs.len())..trace.jobs.len().min(first + WINDOW)];
    let Some(opening) = jobs.first() else { return 0.0 };
    let mut now = opening.submit;
    let mut free = trace.width;
    let mut running: BinaryHeap<Reverse<(Millis, u32)>> = BinaryHeap::new();
    let mut queue: Vec<&Job> = vec![opening];
    let mut next = 1;
    let mut sum = 0.0;
    while !queue.is_empty() {
        let best = queue
            .iter()
            .enumerate()
            .min_by(|(_, a), (_, b)| {
                let by_score = order.score(a, now, wait).total_cmp(&order.score(b, now, wait));
                by_score.then(a.submit.cmp(&b.submit))
            })
            .map_or(0, |(place, _)| place);
        let job = queue[best];
        while free < job.width {
            let release = running.peek().map_or(Millis::MAX, |Reverse((end, _))| *end);
            if next < jobs.len() && jobs[next].submit <= release {
                now = now.max(jobs[next].submit);
                queue.push(&jobs[next]);
                next += 1;
            } else if let Some(Reverse((end, width))) = running.pop() {
                now = now.max(end);
                free += width;
            }
        }
        free -= job.width;
        running.push(Reverse((now + job.run, job.width)));
        let slowdown = seconds(now - job.submit + job.run) / seconds(job.run).max(10.0);
        sum += slowdown.max(1.0);
        queue.remove(best);
        while queue.is_empty() && next < jobs.len() {
            let release = running.peek().map_or(Millis::MAX, |Reverse((end, _))| *end);
            if jobs[next].submit <= release {
                now = now.max(jobs[next].submit);
                queue.push(&jobs[next]);
                next += 1;
            } else if let Some(Reverse((end, width))) = running.pop() {
                now = now.max(end);
                free += width;
            }
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "a window has 1,024 tasks")]
    let count = jobs.len() as f64;
    sum / count
}

/// The mean over the ten windows.
#[must_use]
pub fn mean(trace: &Trace, order: Order, wait: WaitTaken) -> f64 {
    STARTS.iter().map(|first| window(trace, *first, order, wait)).sum::<f64>() / 10.0
}

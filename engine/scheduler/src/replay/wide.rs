//! Replays a trace of wide tasks through [`crate::wide`] in virtual time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::Millis;
use crate::predictor::Facts;
use crate::replay::{Job, Trace};
use crate::wide::{Config, Scheduler, Start, Task};

/// What the replay tells the scheduler beside what the trace says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Told {
    /// The run times, as if they were known.
    pub clairvoyant: bool,
    /// That tasks may be ended and started again.
    pub restartable: bool,
    /// When tasks are due that have a deadline or a declared limit ([`Job::due`]).
    pub deadlines: bool,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// When each task started, for the attempt that ended it.
    pub starts: Vec<Millis>,
    /// Part of the work that first attempts wasted.
    pub waste: f64,
    /// Attempts that were ended at their budget.
    pub outlived: usize,
}

/// What the predictor may know of a job.
#[must_use]
pub fn facts(job: &Job) -> Facts {
    let [group, kind, queue, partition] = job.keys;
    let labels =
        group.wrapping_mul(0x9E37_79B1) ^ queue.wrapping_mul(0x85EB_CA77) ^ partition.wrapping_mul(0xC2B2_AE3D);
    Facts { tenant: job.user, kind, labels, limit: job.declared(), width: job.width, size: job.size }
}

/// Replays `trace`, whose tasks are submitted at `submits`.
#[must_use]
pub fn run(trace: &Trace, submits: &[Millis], config: Config, told: Told) -> Outcome {
    let mut order: Vec<u32> = (0..).take(trace.jobs.len()).collect();
    order.sort_by_key(|task| submits[*task as usize]);
    let mut scheduler = Scheduler::new(config);
    let mut begun = vec![Millis::MAX; trace.jobs.len()];
    let mut ends: BinaryHeap<Reverse<(Millis, u32, bool)>> = BinaryHeap::new();
    let mut starts: Vec<Start> = Vec::new();
    let (mut next, mut outlived) = (0, 0);
    loop {
        let arrival = order.get(next).map_or(Millis::MAX, |task| submits[*task as usize]);
        let end = ends.peek().map_or(Millis::MAX, |Reverse((end, _, _))| *end);
        let now = arrival.min(end);
        if now == Millis::MAX {
            return Outcome { starts: begun, waste: scheduler.waste(), outlived };
        }
        while let Some(Reverse((end, task, ended))) = ends.peek().copied()
            && end == now
        {
            ends.pop();
            if ended {
                scheduler.ended(task, trace.jobs[task as usize].run, false, now);
            } else {
                scheduler.outlived(task, now);
                outlived += 1;
            }
        }
        while let Some(task) = order.get(next).copied()
            && submits[task as usize] == now
        {
            let job = &trace.jobs[task as usize];
            let facts = facts(job);
            let known = told.clairvoyant.then_some(job.run);
            let deadline = job.due().filter(|_| told.deadlines).map(|due| now + due);
            scheduler.submit(Task { id: task, facts, deadline, restartable: told.restartable, known }, now);
            next += 1;
        }
        starts.clear();
        scheduler.starts(now, &mut starts);
        for start in &starts {
            let run = trace.jobs[start.task as usize].run;
            let ran = start.budget.map_or(run, |budget| run.min(budget));
            begun[start.task as usize] = now;
            ends.push(Reverse((now + ran, start.task, ran == run)));
        }
    }
}

//! The order of deadlines in a replay of single slots, whose rule is the dispatcher's: how a task stands to its deadline first
//! ([`Standing`]), and of those that stand alike the earliest deadline, or without one the earliest submission.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::Millis;
use crate::order::Standing;
use crate::replay::Job;

/// When each task is due, and when tasks that wait come to stand worse.
pub(super) struct Deadlines {
    due: Vec<Option<Millis>>,
    /// Places by deadline or submission. Ranks are `f32`, which tells places apart where it could not tell times.
    places: Vec<u32>,
    turns: BinaryHeap<Reverse<(Millis, u32)>>,
}

impl Deadlines {
    pub(super) fn new(jobs: &[Job], submits: &[Millis]) -> Self {
        let of = |(job, submit): (&Job, &Millis)| job.due().map(|due| submit.saturating_add(due));
        let due: Vec<Option<Millis>> = jobs.iter().zip(submits).map(of).collect();
        let mut order: Vec<u32> = (0..).take(jobs.len()).collect();
        order.sort_by_key(|task| due[*task as usize].unwrap_or(submits[*task as usize]));
        let mut places = vec![0; jobs.len()];
        for (place, task) in (0..).zip(order) {
            places[task as usize] = place;
        }
        Self { due, places, turns: BinaryHeap::new() }
    }

    fn standing(&self, task: u32, now: Millis, quantiles: [Millis; 2]) -> Standing {
        Standing::of(self.due[task as usize], quantiles.map(|run| now.saturating_add(run)))
    }

    /// The rank of a task that would run for so long in one of two and in nine of ten cases.
    #[expect(clippy::cast_precision_loss, reason = "a rank, exact up to four million tasks")]
    pub(super) fn rank(&self, task: u32, now: Millis, quantiles: [Millis; 2]) -> f32 {
        let behind = self.standing(task, now, quantiles) as usize * self.places.len();
        (behind + self.places[task as usize] as usize) as f32
    }

    /// Notes when a task comes to stand worse than now, if it waits so long.
    pub(super) fn note(&mut self, task: u32, now: Millis, [half, most]: [Millis; 2]) {
        let Some(due) = self.due[task as usize] else { return };
        let run = match self.standing(task, now, [half, most]) {
            Standing::Feasible => most,
            Standing::AtRisk => half,
            Standing::Open | Standing::Hopeless => return,
        };
        self.turns.push(Reverse((due - run + 1, task)));
    }

    /// A task that has come to stand worse by now, each once for each note.
    pub(super) fn turned(&mut self, now: Millis) -> Option<u32> {
        self.turns.peek().filter(|Reverse((time, _))| *time <= now)?;
        self.turns.pop().map(|Reverse((_, task))| task)
    }
}

//! Queues that have workers in common: each free place goes to the one whose turn it is ([`crate::shares`]).

use super::{Assigner, stays_in_line};
use crate::shares::Candidate;

impl Assigner<'_> {
    /// Serves the queues that were collected, until none of them can start anything, or something changed: that queue is next.
    pub(super) fn run_contest(&mut self) -> Option<u32> {
        if self.dispatch.shares.contest.is_empty() {
            return None;
        }
        self.dispatch.renew_offer();
        let mut contest = core::mem::take(&mut self.dispatch.shares.contest);
        contest.retain(|&candidate| self.takes_part(candidate));
        self.dispatch.shares.open(&mut contest);
        while let Some((place, count)) = self.dispatch.next_turn(&contest) {
            let candidate = &mut contest[place];
            let queue = candidate.queue;
            let permits = if self.dispatch.queues[queue as usize].with_credit > 0 { self.permits(queue) } else { 0 };
            if permits > 0 && self.assign_one_frame(queue, permits.min(count)) {
                self.dispatch.shares.started(candidate);
            } else {
                let candidate = contest.swap_remove(place);
                self.note_turn(queue);
                self.was_served(queue, candidate.own_first);
                contest.retain(|&other| self.has_credit(other));
            }
        }
        contest.clear();
        self.dispatch.shares.contest = contest;
        self.dispatch.next_dirty()
    }

    /// Whether workers of a queue have credit; if not, it has been served.
    fn has_credit(&mut self, candidate: Candidate) -> bool {
        let has_credit = self.dispatch.queues[candidate.queue as usize].with_credit > 0;
        if !has_credit {
            self.was_served(candidate.queue, candidate.own_first);
        }
        has_credit
    }

    /// Whether a queue takes part; if not, it has been served.
    fn takes_part(&mut self, candidate: Candidate) -> bool {
        let takes_part = self.note_turn(candidate.queue);
        if !takes_part {
            self.was_served(candidate.queue, candidate.own_first);
        }
        takes_part
    }

    /// Whether a queue has workers with credit, and tasks that its limits let start. Without those it has no turn to lose, and none to
    /// save: that is noted.
    fn note_turn(&mut self, queue: u32) -> bool {
        if self.dispatch.queues[queue as usize].with_credit == 0 {
            return false;
        }
        let could_start = self.waits(queue) && self.permits(queue) > 0;
        if !could_start {
            self.dispatch.shares.idle(queue);
        }
        could_start
    }

    /// Whether tasks of a queue wait for room. Lanes without any leave the line.
    fn waits(&mut self, queue: u32) -> bool {
        self.dispatch.queues[queue as usize].rings.iter_mut().any(|ring| {
            while let Some(&lane) = ring.front() {
                if stays_in_line(self.partitions, lane) {
                    return true;
                }
                ring.pop_front();
            }
            false
        })
    }
}

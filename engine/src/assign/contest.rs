//! Queues that have workers in common: each free place goes to the one whose turn it is ([`crate::shares`]).

use super::Assigner;
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
        while let Some(first) = contest.first() {
            let free = self.dispatch.free_places(first.queue);
            let Some((place, count)) = self.dispatch.shares.next(&contest, free) else { break };
            let candidate = &mut contest[place];
            let queue = candidate.queue;
            let permits = if self.dispatch.queues[queue as usize].with_credit > 0 { self.permits(queue) } else { 0 };
            if permits > 0 && self.assign_one_frame(queue, permits.min(count)) {
                self.dispatch.shares.started(candidate);
            } else {
                let candidate = contest.swap_remove(place);
                self.note_turn(queue);
                self.was_served(queue, candidate.own_first);
            }
        }
        contest.clear();
        self.dispatch.shares.contest = contest;
        self.dispatch.next_dirty()
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

    /// Whether tasks of a queue wait for room.
    fn waits(&self, queue: u32) -> bool {
        let mut lanes = self.dispatch.queues[queue as usize].rings.iter().flatten();
        lanes.any(|lane| {
            let partition = self.partitions[usize::from(lane.partition)].as_deref();
            partition.is_some_and(|partition| partition.may_start(&partition.lanes[lane.lane as usize]))
        })
    }
}

//! What changes at a replica when it begins or ceases to lead its partition. Nothing here is logged: leases, lanes in line
//! and tokens are the leader's own.

use super::{Cx, Partition};
use crate::state::State;
use crate::task::NONE;

impl Partition {
    /// This replica leads from here on, in this term: tokens carry it, and ready lanes come into the dispatcher's line.
    ///
    /// # Panics
    /// If the term does not fit 24 bits.
    pub(crate) fn lead(&mut self, term: u64, cx: &mut Cx<'_>) {
        assert!(term < 1 << 24, "terms count elections");
        self.leading = true;
        self.last_token = term << 40;
        for queue in (0u32..).take(self.queues.len()) {
            self.ring_lanes(queue, cx.dispatch);
        }
    }

    /// This replica no longer leads: its leases are void, and their tasks are ready, to be leased by the next leader under
    /// higher tokens. Who holds them hears when its outcome is refused.
    pub(crate) fn follow(&mut self, cx: &mut Cx<'_>) {
        // A state that is being received never led, and the lanes in line under its number are another's.
        if !core::mem::take(&mut self.leading) {
            return;
        }
        self.sending = super::Sending::Closed;
        self.outbox.sending = super::Sending::Closed;
        for queue in &self.queues {
            cx.dispatch.leave_line(queue.dispatch, self.id);
        }
        for lane in (0u32..).take(self.lanes.len()) {
            if self.lanes[lane as usize].ringed {
                self.lane_left(lane);
            }
        }
        for list in 0..self.lease_lists.len() {
            loop {
                let slot = self.lease_lists[list].list.head;
                if slot == NONE {
                    break;
                }
                let lease_us = self.lease_us(&self.tasks[slot]);
                // The start of the lease: a ready time that no later task precedes.
                let since_us = self.tasks[slot].at_us.saturating_sub(lease_us);
                self.detach(slot, cx);
                let time_us = core::mem::replace(&mut cx.time_us, since_us);
                self.enter_ready(slot, cx);
                cx.time_us = time_us;
            }
        }
        self.forget_attempts(cx);
        self.workflows.drop_all_paths();
    }

    /// Whether this replica leads and serves.
    pub(crate) const fn is_leading(&self) -> bool {
        self.leading
    }

    /// Frees what the partition holds outside itself, before it is dropped.
    pub(crate) fn clear(&mut self, cx: &mut Cx<'_>) {
        self.follow(cx);
        for slot in 0..self.tasks.slots() {
            let Some(task) = self.tasks.get(slot) else { continue };
            cx.arena.free(task.blob);
            if let Some(extra) = self.extras.get(task.extra) {
                for blob in [extra.unique, extra.name, extra.error, extra.note, extra.input] {
                    cx.arena.free(blob);
                }
            }
        }
        for workflow in self.workflows.iter() {
            cx.arena.free(workflow.name);
        }
        self.versions.chunks.clear(cx.arena);
        self.tasks = crate::task::Tasks::default();
    }

    /// A hash of all that replicas agree on at one position of the log: sums over records, whatever their order. Ready,
    /// delayed and leased are one, since which of them a task is in is the leader's own.
    pub(crate) fn digest(&self, arena: &crate::arena::Arena) -> u64 {
        use core::hash::{BuildHasher, Hash, Hasher};
        let mut sum = crate::hash::mix64(self.forgotten_ms ^ self.command_us.rotate_left(32) ^ u64::from(self.kept));
        sum = sum.wrapping_add(crate::hash::mix64(self.last_retained ^ self.checkpointed.rotate_left(32)));
        for slot in 0..self.tasks.slots() {
            let Some(task) = self.tasks.get(slot) else { continue };
            let mut hasher = crate::hash::FixedState.build_hasher();
            let class = match task.state {
                State::Ready | State::Delayed | State::Leased => State::Ready,
                state => state,
            };
            (task.id, task.failures, class as u8).hash(&mut hasher);
            hasher.write(arena.get(task.blob));
            hasher.write(&self.contracts[task.contract].canonical);
            if task.state.is_final() {
                (task.at_us, self.retention_ms(task).map(|kept_ms| (kept_ms, task.token))).hash(&mut hasher);
            }
            if let Some(extra) = self.extras.get(task.extra) {
                (extra.due_us, extra.deadline_us, extra.unique_until_us, extra.forgiven).hash(&mut hasher);
                (extra.memo_of, extra.memo_us, self.holds_unique(slot, arena)).hash(&mut hasher);
                for blob in [extra.unique, extra.name, extra.error, extra.input] {
                    hasher.write(arena.get(blob));
                }
                if extra.key != NONE {
                    hasher.write(&self.keys[extra.key as usize].bytes);
                }
                if let Some(history) = self.versions.get(extra.history) {
                    history.hash(&mut hasher);
                }
            }
            sum = sum.wrapping_add(crate::hash::mix64(hasher.finish()));
        }
        for queue in &self.queues {
            let mut hasher = crate::hash::FixedState.build_hasher();
            (&queue.namespace, &queue.name).hash(&mut hasher);
            queue.settings.hash(&mut hasher);
            sum = sum.wrapping_add(crate::hash::mix64(hasher.finish()));
        }
        for position in self.streams.iter() {
            sum = sum.wrapping_add(crate::hash::mix64(crate::hash::FixedState.hash_one(position)));
        }
        for event in self.outbox.after(0) {
            sum = sum.wrapping_add(crate::hash::mix64(crate::hash::FixedState.hash_one(event)));
        }
        sum = sum.wrapping_add(crate::hash::mix64(self.outbox.last().rotate_left(16)));
        sum.wrapping_add(self.versions.chunks.digest())
    }
}

//! Final tasks: how long they are kept, and how they are forgotten. Which ones go follows from the log alone, so every
//! replica forgets the same.

use super::{Cx, Partition, RetentionList, hash_of_id, quantised};
use crate::arena::Arena;
use crate::task::{List, NONE, Slot, Task};
use crate::timer::{Timer, TimerKind, Timers};

/// Least time between two entries that only end retention, in microseconds.
const RETENTION_PAUSE_US: u64 = 250_000;
/// How far clients' clocks may run ahead of the server's before their ids are no longer told from forgotten ones, in
/// milliseconds.
pub(crate) const CLOCK_SKEW_MS: u64 = 60_000;
/// When a timer is due that is not set.
pub(super) const NEVER_US: u64 = u64::MAX;

impl Partition {
    fn retention_list(&mut self, retention_ms: u32) -> usize {
        let retention_ms = quantised(retention_ms);
        self.retention.iter().position(|list| list.retention_ms == retention_ms).unwrap_or_else(|| {
            self.retention.push(RetentionList { retention_ms, list: List::default() });
            self.retention.len() - 1
        })
    }

    /// Starts a final task's retention. A snapshot in progress has copied it.
    pub(crate) fn retain(&mut self, slot: Slot, arena: &Arena) {
        let kept_ms = self.kept_ms(slot);
        self.last_retained += 1;
        self.retain_as(slot, self.last_retained, kept_ms, arena);
    }

    /// How long a final task is kept from its end: as its contract or its queue says, and while it holds a unique key.
    pub(crate) fn kept_ms(&self, slot: Slot) -> u32 {
        let task = &self.tasks[slot];
        let contract = &self.contracts[task.contract];
        let queue = &self.queues[contract.queue as usize];
        let mut retention_ms =
            if contract.retention_ms == 0 { queue.settings.retention_ms } else { contract.retention_ms };
        if let Some(extra) = self.extras.get(task.extra)
            && extra.unique_until_us > task.at_us
        {
            let window_ms = (extra.unique_until_us - task.at_us).div_ceil(1_000);
            retention_ms = retention_ms.max(u32::try_from(window_ms).unwrap_or(u32::MAX));
        }
        retention_ms
    }

    /// Starts a final task's retention of this length, under this number: the highest so far.
    pub(crate) fn retain_as(&mut self, slot: Slot, number: u64, retention_ms: u32, arena: &Arena) {
        let list = self.retention_list(retention_ms);
        self.retained += 1;
        let task = &mut self.tasks[slot];
        task.token = number;
        task.worker = u32::try_from(list).expect("lengths are quantised");
        self.retention[list].list.push_back(&mut self.tasks, slot);
        if self.has_checkpoints() {
            self.wait_for_checkpoint(slot, arena);
        }
    }

    /// How long a final task is kept, if its retention has begun: with a workflow's `finished_us`, which comes after its
    /// last row is counted.
    pub(crate) fn retention_ms(&self, task: &Task) -> Option<u32> {
        let workflow = self.extras.get(task.extra).map_or(NONE, |extra| extra.workflow);
        let has_begun = task.state.is_final() && (workflow == NONE || self.workflows[workflow].finished_us != 0);
        has_begun.then(|| self.retention[task.worker as usize].retention_ms)
    }

    /// Ends a final task's retention. A snapshot in progress has it with its number, by which replicas forget in the same order.
    pub(crate) fn unretain(&mut self, slot: Slot, arena: &Arena) {
        crate::snapshot::touch(self, slot, arena);
        let list = self.tasks[slot].worker as usize;
        self.retention[list].list.unlink(&mut self.tasks, slot);
        self.retained -= 1;
        if self.has_checkpoints() {
            self.wait_no_longer(slot, arena);
        }
        self.tasks[slot].token = 0;
    }

    /// Forgets final tasks whose retention is over, and the oldest ones above `kept_max`; at most `work_max` of them. Where there are
    /// checkpoints or events, a task waits for its own first. Which ones follows from the log alone, so every replica forgets the same.
    pub(crate) fn evict(&mut self, work_max: usize, cx: &mut Cx<'_>) {
        for _ in 0..work_max {
            let is_over = self.retained > self.settings.kept_max;
            let heads = self.retention.iter().filter(|list| self.may_go(list.list.head));
            let going = heads.filter(|list| is_over || self.retained_until_us(list) <= cx.time_us);
            let Some(slot) = going.map(|list| list.list.head).min_by_key(|&head| self.tasks[head].token) else {
                return;
            };
            self.note_loss(slot);
            self.unretain(slot, cx.arena);
            self.forget(slot, cx);
        }
    }

    /// Whether the first task of a retention list, if there is one, need not wait for its checkpoint or for its event.
    fn may_go(&self, head: Slot) -> bool {
        self.may_be_forgotten(head) && self.is_told(head)
    }

    /// When the first task of a list that is not empty is to be forgotten.
    fn retained_until_us(&self, list: &RetentionList) -> u64 {
        let task = &self.tasks[list.list.head];
        let workflow = self.extras.get(task.extra).map_or(NONE, |extra| extra.workflow);
        let since_us = if workflow == NONE { task.at_us } else { self.workflows[workflow].finished_us };
        let until_us = since_us + u64::from(list.retention_ms) * 1_000;
        until_us.min(self.checkpointed_until_us(task, since_us))
    }

    /// When the next task is to be forgotten, or followers are to end: at once.
    pub(crate) fn next_eviction_us(&self) -> Option<u64> {
        if self.followers.are_due() {
            return Some(0);
        }
        let lists = self.retention.iter().filter(|list| self.may_go(list.list.head));
        lists.map(|list| self.retained_until_us(list)).min()
    }

    /// Sets the timer that ends retention when no entry of the partition comes by to do so.
    pub(crate) fn arm_retention(&mut self, timers: &mut Timers, now_us: u64) {
        let soonest_us = now_us + RETENTION_PAUSE_US;
        let is_set = self.retention_armed_us != NEVER_US;
        // Followers do not wait for a task that is kept for long.
        if is_set && !(self.followers.are_due() && soonest_us < self.retention_armed_us) {
            return;
        }
        if let Some(due_us) = self.next_eviction_us() {
            self.retention_armed_us = due_us.max(soonest_us);
            timers.insert(self.retention_armed_us, Timer::of_index(self.id, TimerKind::Retention, 0));
        }
    }

    /// The timer fired; whether it is the one that was set last.
    pub(crate) fn disarm_retention(&mut self, now_us: u64) -> bool {
        let is_due = self.retention_armed_us <= now_us;
        if is_due {
            self.retention_armed_us = NEVER_US;
        }
        is_due
    }

    /// Removes a final task whose retention was ended.
    fn forget(&mut self, slot: Slot, cx: &mut Cx<'_>) {
        let task = self.tasks[slot].clone();
        self.kept -= 1;
        // A client whose clock runs ahead must not make the ids of all others look old.
        let id_ms = task.id.time_ms().min(cx.time_us / 1_000 + CLOCK_SKEW_MS);
        self.forgotten_ms = self.forgotten_ms.max(id_ms);
        if task.extra != NONE {
            self.unique_forgotten(slot, cx);
            self.release_unique(slot, cx.arena);
            let extra = self.extras.remove(task.extra);
            self.drop_extra(&extra, cx.arena);
        }
        cx.arena.free(task.blob);
        let contract = &mut self.contracts[task.contract];
        contract.tasks -= 1;
        let queue = contract.queue;
        if contract.tasks == 0 {
            let contract = self.contracts.remove(task.contract);
            self.drop_lane(&contract);
        }
        self.queues[queue as usize].counts[task.state as usize] -= 1;
        if let Ok(entry) = self.index.find_entry(hash_of_id(task.id), |&other| other == slot) {
            entry.remove();
        }
        self.tasks.remove(slot);
    }
}

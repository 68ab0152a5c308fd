//! Time and lost workers: what becomes due, and whose leases end.

use taskmaster_protocol::body::ExpireRow;
use taskmaster_protocol::frame::Header;
use taskmaster_protocol::{Operation, PartitionId};

use super::{Effects, Shard};
use crate::command;
use crate::effects::ConnId;
use crate::partition::{DETACHED, GRACE_MS, Over, Partition};
use crate::state::State;
use crate::task::{NONE, flag};
use crate::timer::{Timer, TimerKind, check_of};

/// Timers handled per call.
const TIMERS_PER_CALL_MAX: usize = 10_000;
/// When a replica that does not lead looks again at what only a leader may end, in microseconds.
const FOLLOWER_PAUSE_US: u64 = 250_000;

impl Shard {
    pub(super) fn tick(&mut self, effects: &mut Effects) {
        self.beat(effects);
        let mut fired = core::mem::take(&mut self.fired);
        self.timers.expire(self.last_time_us, TIMERS_PER_CALL_MAX, &mut fired);
        let mut expired: Vec<(u16, ExpireRow)> = Vec::new();
        for timer in fired.drain(..) {
            match timer.kind {
                TimerKind::Due => self.due(timer),
                TimerKind::Deadline => self.deadline(timer, &mut expired),
                TimerKind::LeaseList => self.leases(timer, &mut expired),
                TimerKind::Retention => self.retention(timer),
                TimerKind::Bucket => {
                    self.dispatch.queues[timer.index as usize].bucket_armed = false;
                    self.dispatch.mark(timer.index);
                }
                TimerKind::Held => {
                    self.dispatch.queues[timer.index as usize].held_until_us = 0;
                    self.dispatch.mark(timer.index);
                }
                TimerKind::Await => self.await_timed_out(timer.index, effects),
                TimerKind::Attempts => self.look_at_attempts(effects),
                TimerKind::Reservations => self.look_at_reservations(),
            }
        }
        self.fired = fired;
        self.propose_expired(expired);
    }

    fn task_of(&self, timer: Timer) -> Option<(&Partition, u32)> {
        let partition = self.partitions[usize::from(timer.partition)].as_deref()?;
        let task = partition.tasks.get(timer.index)?;
        (check_of(task.id) == timer.check).then_some((partition, timer.index))
    }

    fn due(&mut self, timer: Timer) {
        let now_us = self.last_time_us;
        let Some((partition, slot)) = self.task_of(timer) else { return };
        let task = &partition.tasks[slot];
        if task.state != State::Delayed || task.at_us > now_us {
            return;
        }
        let Some((partition, mut cx)) = self.split(PartitionId(timer.partition), now_us) else { return };
        crate::snapshot::touch(partition, slot, cx.arena);
        partition.enter_ready(slot, &mut cx);
    }

    fn deadline(&mut self, timer: Timer, expired: &mut Vec<(u16, ExpireRow)>) {
        let now_us = self.last_time_us;
        let Some((partition, slot)) = self.task_of(timer) else { return };
        let task = &partition.tasks[slot];
        let deadline_us = partition.extras.get(task.extra).map_or(0, |extra| extra.deadline_us);
        if task.state.is_final() || deadline_us == 0 || task.has(flag::LATE) {
            return;
        }
        if deadline_us > now_us || !partition.is_leading() {
            let due_us = if deadline_us > now_us { deadline_us } else { now_us + FOLLOWER_PAUSE_US };
            self.timers.insert_step(due_us, timer);
            return;
        }
        let row = expire_row(task, command::expire::DEADLINE);
        expired.push((timer.partition, row));
    }

    fn leases(&mut self, timer: Timer, expired: &mut Vec<(u16, ExpireRow)>) {
        let now_us = self.last_time_us;
        let Some((partition, mut cx)) = self.split(PartitionId(timer.partition), now_us) else { return };
        // The partition may have been replaced by a snapshot since.
        let Some(list) = partition.lease_lists.get_mut(timer.index as usize) else { return };
        let mut slot = list.list.head;
        while slot != NONE && partition.tasks[slot].at_us <= now_us {
            let task = &partition.tasks[slot];
            let next = task.next;
            if !task.has(flag::SETTLING) && partition.second(slot).is_some() {
                // It comes to the end of the list, which is armed for whatever is then the first.
                partition.promote_second(slot, Over::Overtaken, &mut cx);
            } else if !task.has(flag::EXPIRING) {
                let task = &mut partition.tasks[slot];
                task.flags |= flag::EXPIRING;
                expired.push((timer.partition, expire_row(task, command::expire::LEASE)));
            }
            slot = next;
        }
        let list = &mut partition.lease_lists[timer.index as usize];
        let first = if slot == NONE { list.list.tail } else { slot };
        let due_us = partition.tasks.get(first).map(|task| task.at_us).filter(|&due_us| due_us > now_us);
        list.armed = due_us.is_some();
        if let Some(due_us) = due_us {
            self.timers
                .insert(due_us, Timer::of_index(PartitionId(timer.partition), TimerKind::LeaseList, timer.index));
        }
    }

    /// Forgets by the log, even when no other entry of the partition comes by.
    fn retention(&mut self, timer: Timer) {
        let now_us = self.last_time_us;
        let Some((partition, cx)) = self.split(PartitionId(timer.partition), now_us) else { return };
        if !partition.disarm_retention(now_us) {
            return;
        }
        if !partition.is_leading() {
            partition.arm_retention(cx.timers, now_us);
        } else if partition.next_eviction_us().is_some_and(|due_us| due_us <= now_us) {
            self.propose_expired_of(PartitionId(timer.partition), Vec::new());
        } else {
            partition.arm_retention(cx.timers, now_us);
        }
    }

    /// Shortens the leases of a connection that is gone to the grace, within which its worker may come back. Leases that
    /// end sooner stay as they are.
    pub(super) fn disconnected(&mut self, conn: ConnId) {
        self.waiters.forget(conn);
        let Some(worker) = self.dispatch.disconnect(conn) else { return };
        let due_us = self.last_time_us + u64::from(GRACE_MS) * 1_000;
        self.worker_gone(worker);
        for partition in self.partitions.iter_mut().flatten() {
            let grace = partition.lease_list(GRACE_MS);
            for index in 0..partition.lease_lists.len() {
                let mut slot = partition.lease_lists[index].list.head;
                while slot != NONE {
                    let next = partition.tasks[slot].next;
                    if partition.tasks[slot].worker == worker && partition.tasks[slot].at_us > due_us {
                        partition.lease_lists[index].list.unlink(&mut partition.tasks, slot);
                        let task = &mut partition.tasks[slot];
                        task.worker |= DETACHED;
                        task.at_us = due_us;
                        partition.lease_lists[grace as usize].list.push_back(&mut partition.tasks, slot);
                    }
                    slot = next;
                }
            }
            partition.arm_lease_list(grace, &mut self.timers);
        }
    }

    pub(super) fn drain(&mut self, effects: &mut Effects) {
        self.draining = true;
        // Groups that rest are handed over, too.
        self.elections.within(self.last_time_us, 0);
        for worker in self.dispatch.workers.iter().filter(|worker| worker.connected) {
            let header = Header::request(Operation::GoAway, 0, None);
            let body = taskmaster_protocol::body::Empty::default();
            taskmaster_protocol::frame::encode(effects.buffer(worker.conn), header, &body);
        }
    }
}

fn expire_row(task: &crate::task::Task, what: u32) -> ExpireRow {
    ExpireRow { id: task.id, attempt: task.attempt(), what }
}

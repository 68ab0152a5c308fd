//! Who waits for which task or workflow to become final.

use hashbrown::HashMap;
use taskmaster_protocol::frame::Header;
use taskmaster_protocol::{Code, PartitionId, TaskId};

use super::{Effects, Shard};
use crate::effects::ConnId;
use crate::hash::FixedState;
use crate::query;
use crate::refused::Refused;
use crate::task::{NONE, flag};
use crate::timer::{Timer, TimerKind};

/// Most awaits in force on one shard.
const AWAITS_MAX: usize = 1 << 20;

struct Waiter {
    number: u32,
    conn: ConnId,
    header: Header,
    is_workflow: bool,
}

/// Awaits in force.
#[derive(Default)]
pub(super) struct Waiters {
    by_id: HashMap<TaskId, Vec<Waiter>, FixedState>,
    id_of: HashMap<u32, TaskId, FixedState>,
    last_number: u32,
}

impl Waiters {
    /// Drops the awaits of a connection that is gone.
    pub(super) fn forget(&mut self, conn: ConnId) {
        let id_of = &mut self.id_of;
        self.by_id.retain(|_, waiters| {
            waiters.retain(|waiter| {
                let stays = waiter.conn != conn;
                if !stays {
                    id_of.remove(&waiter.number);
                }
                stays
            });
            !waiters.is_empty()
        });
    }
}

impl Shard {
    pub(super) fn register_await(
        &mut self,
        conn: ConnId,
        header: Header,
        id: TaskId,
        is_workflow: bool,
        timeout_ms: u32,
    ) -> Result<(), Refused> {
        if self.waiters.id_of.len() >= AWAITS_MAX {
            let message = format!("{AWAITS_MAX} awaits are in force: poll with get instead");
            return Err(Refused::new(Code::Overloaded, message).retry_after_ms(1_000));
        }
        self.waiters.last_number = self.waiters.last_number.wrapping_add(1);
        let number = self.waiters.last_number;
        self.waiters.id_of.insert(number, id);
        self.waiters.by_id.entry(id).or_default().push(Waiter { number, conn, header, is_workflow });
        let due_us = self.last_time_us + u64::from(timeout_ms) * 1_000;
        self.timers.insert(due_us, Timer::of_index(PartitionId(0), TimerKind::Await, number));
        let Some(partition) = self.partitions[usize::from(header.partition)].as_deref_mut() else { return Ok(()) };
        if is_workflow {
            if let Some(index) = partition.workflows.find(id) {
                partition.workflows[index].awaited = true;
            }
        } else if let Some(slot) = partition.find(id, NONE) {
            partition.tasks[slot].flags |= flag::AWAITED;
        }
        Ok(())
    }

    pub(super) fn answer_waiters(&mut self, id: TaskId, effects: &mut Effects) {
        for waiter in self.waiters.by_id.remove(&id).unwrap_or_default() {
            self.waiters.id_of.remove(&waiter.number);
            self.answer_await(waiter.conn, &waiter.header, id, waiter.is_workflow, effects);
        }
    }

    pub(super) fn answer_await(
        &self,
        conn: ConnId,
        header: &Header,
        id: TaskId,
        is_workflow: bool,
        effects: &mut Effects,
    ) {
        let Ok(partition) = self.partition(header) else { return };
        if is_workflow {
            if let Some(index) = partition.workflows.find(id) {
                effects.reply(conn, header, &query::workflow::one(partition, index, 0, u32::MAX, &self.arena));
            }
        } else if let Some(slot) = partition.find(id, NONE) {
            effects.reply(conn, header, &query::task::one(partition, slot, &self.arena, &self.dispatch));
        }
    }

    pub(super) fn await_timed_out(&mut self, number: u32, effects: &mut Effects) {
        let Some(id) = self.waiters.id_of.remove(&number) else { return };
        let Some(waiters) = self.waiters.by_id.get_mut(&id) else { return };
        let Some(position) = waiters.iter().position(|waiter| waiter.number == number) else { return };
        let waiter = waiters.swap_remove(position);
        if waiters.is_empty() {
            self.waiters.by_id.remove(&id);
        }
        let refused = Refused::new(Code::TimedOut, format!("{id} is not final yet: ask again"));
        effects.refuse(waiter.conn, &waiter.header, &refused);
    }
}

//! Who waits for which task or workflow to become final.

use hashbrown::{HashMap, HashSet};
use taskmaster_protocol::frame::Header;
use taskmaster_protocol::{Code, PartitionId};

use super::{Effects, Shard};
use crate::effects::ConnId;
use crate::hash::FixedState;
use crate::partition::Awaited;
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
    until_us: u64,
}

/// Awaits in force.
#[derive(Default)]
pub(super) struct Waiters {
    by_awaited: HashMap<Awaited, Vec<Waiter>, FixedState>,
    awaited_of: HashMap<u32, Awaited, FixedState>,
    by_conn: HashMap<ConnId, HashSet<u32, FixedState>, FixedState>,
    last_number: u32,
}

impl Waiters {
    fn add(&mut self, conn: ConnId, header: Header, awaited: Awaited, until_us: u64) -> u32 {
        self.last_number = self.last_number.wrapping_add(1);
        let number = self.last_number;
        self.awaited_of.insert(number, awaited);
        self.by_awaited.entry(awaited).or_default().push(Waiter { number, conn, header, until_us });
        self.by_conn.entry(conn).or_default().insert(number);
        number
    }

    /// Takes all who wait for something, in order of arrival.
    fn take(&mut self, awaited: Awaited) -> Vec<Waiter> {
        let waiters = self.by_awaited.remove(&awaited).unwrap_or_default();
        for waiter in &waiters {
            self.awaited_of.remove(&waiter.number);
            self.leave_conn(waiter);
        }
        waiters
    }

    /// Takes one await, if it is still in force.
    fn take_one(&mut self, number: u32) -> Option<(Awaited, Waiter)> {
        let awaited = self.awaited_of.remove(&number)?;
        let waiters = self.by_awaited.get_mut(&awaited)?;
        let position = waiters.iter().position(|waiter| waiter.number == number)?;
        let waiter = waiters.remove(position);
        if waiters.is_empty() {
            self.by_awaited.remove(&awaited);
        }
        self.leave_conn(&waiter);
        Some((awaited, waiter))
    }

    /// When an await ends, if it is still in force.
    fn until_us(&self, number: u32) -> Option<u64> {
        let waiters = self.by_awaited.get(self.awaited_of.get(&number)?)?;
        waiters.iter().find(|waiter| waiter.number == number).map(|waiter| waiter.until_us)
    }

    fn leave_conn(&mut self, waiter: &Waiter) {
        if let Some(numbers) = self.by_conn.get_mut(&waiter.conn) {
            numbers.remove(&waiter.number);
            if numbers.is_empty() {
                self.by_conn.remove(&waiter.conn);
            }
        }
    }

    /// Takes all who wait for something of a partition, in order of arrival.
    pub(super) fn give_up(&mut self, partition: u16) -> Vec<(ConnId, Header)> {
        let is_of = |awaited: &Awaited| match awaited {
            Awaited::Task(id) | Awaited::Workflow(id) => id.partition().0 == partition,
        };
        let mut numbers: Vec<u32> =
            self.awaited_of.iter().filter(|(_, awaited)| is_of(awaited)).map(|(&number, _)| number).collect();
        numbers.sort_unstable();
        numbers
            .into_iter()
            .filter_map(|number| self.take_one(number))
            .map(|(_, waiter)| (waiter.conn, waiter.header))
            .collect()
    }

    /// Drops the awaits of a connection that is gone.
    pub(super) fn forget(&mut self, conn: ConnId) {
        let numbers = self.by_conn.get_mut(&conn).map(core::mem::take).unwrap_or_default();
        for number in numbers {
            self.take_one(number);
        }
        self.by_conn.remove(&conn);
    }
}

impl Shard {
    pub(super) fn register_await(
        &mut self,
        conn: ConnId,
        header: Header,
        awaited: Awaited,
        timeout_ms: u32,
    ) -> Result<(), Refused> {
        if self.waiters.awaited_of.len() >= AWAITS_MAX {
            let message = format!("{AWAITS_MAX} awaits are in force: poll with get instead");
            return Err(Refused::new(Code::Overloaded, message).retry_after_ms(1_000));
        }
        let until_us = self.last_time_us + u64::from(timeout_ms) * 1_000;
        let number = self.waiters.add(conn, header, awaited, until_us);
        self.timers.insert_step(until_us, Timer::of_index(PartitionId(0), TimerKind::Await, number));
        let Some(partition) = self.partitions[usize::from(header.partition)].as_deref_mut() else { return Ok(()) };
        match awaited {
            Awaited::Workflow(id) => {
                if let Some(index) = partition.workflows.find(id) {
                    partition.workflows[index].awaited = true;
                }
            }
            Awaited::Task(id) => {
                if let Some(slot) = partition.find(id, NONE) {
                    partition.tasks[slot].flags |= flag::AWAITED;
                }
            }
        }
        Ok(())
    }

    pub(super) fn answer_waiters(&mut self, awaited: Awaited, effects: &mut Effects) {
        for waiter in self.waiters.take(awaited) {
            self.answer_await(waiter.conn, &waiter.header, awaited, effects);
        }
    }

    pub(super) fn answer_await(&self, conn: ConnId, header: &Header, awaited: Awaited, effects: &mut Effects) {
        let Ok(partition) = self.partition(header) else { return };
        match awaited {
            Awaited::Workflow(id) => {
                if let Some(index) = partition.workflows.find(id) {
                    effects.reply(conn, header, &query::workflow::one(partition, index, 0, u32::MAX, &self.arena));
                }
            }
            Awaited::Task(id) => {
                if let Some(slot) = partition.find(id, NONE) {
                    effects.reply(conn, header, &query::task::one(partition, slot, &self.arena, &self.dispatch));
                }
            }
        }
    }

    pub(super) fn await_timed_out(&mut self, number: u32, effects: &mut Effects) {
        if let Some(until_us) = self.waiters.until_us(number).filter(|&until_us| until_us > self.last_time_us) {
            self.timers.insert_step(until_us, Timer::of_index(PartitionId(0), TimerKind::Await, number));
            return;
        }
        let Some((awaited, waiter)) = self.waiters.take_one(number) else { return };
        let (Awaited::Task(id) | Awaited::Workflow(id)) = awaited;
        let refused = Refused::new(Code::TimedOut, format!("{id} is not final yet: ask again"));
        effects.refuse(waiter.conn, &waiter.header, &refused);
    }
}

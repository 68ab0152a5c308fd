//! The shard's timers: what may have become due, checked against the record when it fires.

use taskmaster_protocol::{PartitionId, TaskId};

use crate::wheel::Wheel;

/// What a timer is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum TimerKind {
    /// A delayed task is due.
    Due,
    /// A task's deadline.
    Deadline,
    /// The first lease of a lease list; `index` is the list.
    LeaseList,
    /// A queue's bucket has a token; `index` is the dispatcher's queue.
    Bucket,
    /// Final tasks of a partition are to be forgotten.
    Retention,
    /// An await ends; `index` is its number.
    Await,
    /// Attempts of restartable tasks are to be looked at.
    Attempts,
    /// A task of a queue is not held any longer; `index` is the dispatcher's queue.
    Held,
    /// Workers are to be kept for tasks that need much of them, or no longer.
    Reservations,
}

/// One timer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timer {
    pub(crate) partition: u16,
    pub(crate) kind: TimerKind,
    /// Slot or index, by kind.
    pub(crate) index: u32,
    /// Part of the task's id: a reused slot is not mistaken for it.
    pub(crate) check: u32,
}

/// Longest life of a timer whose owner has ended, in milliseconds.
const STEP_MS: u64 = 60_000;

/// The part of an id that timers carry.
pub(crate) fn check_of(id: TaskId) -> u32 {
    let mixed = id.mix().to_le_bytes();
    u32::from_le_bytes([mixed[0], mixed[1], mixed[2], mixed[3]])
}

impl Timer {
    /// A timer about a task.
    pub(crate) fn of_task(partition: PartitionId, kind: TimerKind, slot: u32, id: TaskId) -> Self {
        Self { partition: partition.0, kind, index: slot, check: check_of(id) }
    }

    /// A timer about something else.
    pub(crate) const fn of_index(partition: PartitionId, kind: TimerKind, index: u32) -> Self {
        Self { partition: partition.0, kind, index, check: 0 }
    }
}

/// The wheel, in microseconds outside and milliseconds inside.
pub(crate) struct Timers(Wheel<Timer>);

impl Timers {
    pub(crate) fn new(now_us: u64) -> Self {
        Self(Wheel::new(now_us / 1_000))
    }

    /// Sets a timer; it fires at or after `due_us`, at most a millisecond late.
    pub(crate) fn insert(&mut self, due_us: u64, timer: Timer) {
        self.0.insert(due_us.div_ceil(1_000), timer);
    }

    /// Sets a timer that looks at its owner again after [`STEP_MS`] if `due_us` is later: for owners that mostly end long
    /// before. The wheel has no cancel, so this bounds how long a timer outlives its owner.
    pub(crate) fn insert_step(&mut self, due_us: u64, timer: Timer) {
        self.0.insert(due_us.div_ceil(1_000).min(self.0.now_ms() + STEP_MS), timer);
    }

    /// Collects timers due by `now_us`; `true` when more are due than `work_max` allowed.
    pub(crate) fn expire(&mut self, now_us: u64, work_max: usize, out: &mut Vec<Timer>) -> bool {
        self.0.expire(now_us / 1_000, work_max, out)
    }

    /// When to look again, in microseconds since 1970.
    pub(crate) fn next_due_us(&self) -> Option<u64> {
        self.0.next_due_ms().map(|ms| ms.saturating_mul(1_000))
    }

    pub(crate) fn reserved_bytes(&self) -> usize {
        self.0.reserved_bytes()
    }
}

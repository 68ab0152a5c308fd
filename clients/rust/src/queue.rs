//! Queue settings and task filters, as callers give them.

use std::collections::VecDeque;
use std::time::Duration;

use taskmaster_protocol::PartitionId;
use taskmaster_protocol::body::{CURSOR_STORED, ConfigureQueue, ListTasks, put, queue_field, restart};

use crate::task::{State, millis_u32};

/// In which order tasks of one priority start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// The shortest first, by what was learned of their kinds, while that is shown to be better; else as they became ready.
    #[default]
    Auto,
    /// As they became ready.
    Fifo,
    /// The shortest first, by what was learned of their kinds.
    Shortest,
    /// The earliest deadline first of those that can be met, by what was learned of their kinds; the hopeless last.
    Deadline,
}

impl Policy {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Auto, Self::Fifo, Self::Shortest, Self::Deadline];

    /// Its number in the protocol.
    #[must_use]
    pub const fn number(self) -> u16 {
        match self {
            Self::Auto => 0,
            Self::Fifo => 1,
            Self::Shortest => 2,
            Self::Deadline => 3,
        }
    }

    pub(crate) fn of_number(number: u32) -> Self {
        Self::ALL.into_iter().find(|policy| u32::from(policy.number()) == number).unwrap_or_default()
    }

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Fifo => "fifo",
            Self::Shortest => "shortest",
            Self::Deadline => "deadline",
        }
    }
}

/// Changes to a queue; what is not named stays as it is. A queue that does not exist is created.
#[derive(Clone, Debug, Default)]
pub struct QueueSettings {
    body: ConfigureQueue,
}

impl QueueSettings {
    /// No change yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn set(mut self, bit: u32, change: impl FnOnce(&mut ConfigureQueue)) -> Self {
        self.body.set |= bit;
        change(&mut self.body);
        self
    }

    /// Paused: nothing of the queue is assigned.
    #[must_use]
    pub fn paused(self, paused: bool) -> Self {
        self.set(queue_field::PAUSED, |body| body.paused = paused.into())
    }

    /// Draining: new tasks are refused, accepted ones run.
    #[must_use]
    pub fn draining(self, draining: bool) -> Self {
        self.set(queue_field::DRAINING, |body| body.draining = draining.into())
    }

    /// At most this many starts per second (in thousandths; 0 for no limit), and this many at once after idleness.
    #[must_use]
    pub fn rate(self, milli_per_s: u64, burst: u32) -> Self {
        self.set(queue_field::RATE, |body| {
            body.rate_milli_per_s = milli_per_s;
            body.rate_burst = burst;
        })
    }

    /// At most this many tasks leased at once; 0 for no limit.
    #[must_use]
    pub fn concurrency(self, concurrency: u32) -> Self {
        self.set(queue_field::CONCURRENCY, |body| body.concurrency = concurrency)
    }

    /// At a task's deadline only flag it, instead of expiring it.
    #[must_use]
    pub fn flag_deadlines(self, flag: bool) -> Self {
        self.set(queue_field::DEADLINE_ACTION, |body| body.deadline_action = flag.into())
    }

    /// In which order tasks of one priority start.
    #[must_use]
    pub fn policy(self, policy: Policy) -> Self {
        self.set(queue_field::POLICY, |body| body.policy = policy.number())
    }

    /// Tasks whose deadline is less likely to be met are refused, in parts per thousand; 0 refuses none.
    #[must_use]
    pub fn refuse_hopeless(self, permille: u16) -> Self {
        self.set(queue_field::REFUSAL, |body| body.refuse_permille = permille)
    }

    /// Whether a second attempt of a restartable task begins beside one that is late, where a place idles. It does unless told otherwise.
    #[must_use]
    pub fn speculation(self, on: bool) -> Self {
        self.restarts(restart::SPECULATION, on)
    }

    /// Whether attempts of restartable tasks are ended for tasks of a higher priority that find no place. They are unless told otherwise.
    #[must_use]
    pub fn preemption(self, on: bool) -> Self {
        self.restarts(restart::PREEMPTION, on)
    }

    /// Whether an attempt of a restartable task that has run for longer than most of its kind is ended for a task that is expected to take much
    /// less, while the queue is ordered by what was learned. It is unless told otherwise.
    #[must_use]
    pub fn giving_up(self, on: bool) -> Self {
        self.restarts(restart::GIVING_UP, on)
    }

    /// Whether tasks that were measured to slow each other down are kept apart, where their workers measure them. They are unless told
    /// otherwise.
    #[must_use]
    pub fn contention(self, on: bool) -> Self {
        self.restarts(restart::CONTENTION, on)
    }

    fn restarts(self, what: u8, on: bool) -> Self {
        self.set(queue_field::RESTARTS, |body| {
            let off = if on { 0 } else { what };
            body.restarts_off = (body.restarts_off & !what) | what << 4 | off;
        })
    }

    /// Its part of the workers that it shares with other queues, against theirs: 1 (unless told otherwise) to 1000. The part of a
    /// namespace goes by the highest weight of its queues.
    #[must_use]
    pub fn weight(self, weight: u16) -> Self {
        self.set(queue_field::WEIGHT, |body| body.weight = weight)
    }

    /// How long finished tasks are kept unless they say otherwise.
    #[must_use]
    pub fn retention(self, retention: Duration) -> Self {
        self.set(queue_field::RETENTION, |body| body.retention_ms = millis_u32(retention))
    }

    /// At most this many unfinished tasks; 0 for no limit of its own.
    #[must_use]
    pub fn depth_max(self, depth_max: u64) -> Self {
        self.set(queue_field::DEPTH, |body| body.depth_max = depth_max)
    }

    pub(crate) fn into_body(mut self, namespace: &str, queue: &str) -> ConfigureQueue {
        self.body.namespace = put(&mut self.body.bytes, namespace.as_bytes());
        self.body.queue = put(&mut self.body.bytes, queue.as_bytes());
        self.body
    }
}

/// Which tasks to list.
#[derive(Clone, Debug, Default)]
pub struct TaskFilter {
    queue: String,
    kind: String,
    states: u32,
}

impl TaskFilter {
    /// All tasks of the client's namespace.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Only this queue.
    #[must_use]
    pub fn queue(mut self, queue: impl Into<String>) -> Self {
        self.queue = queue.into();
        self
    }

    /// Only this kind.
    #[must_use]
    pub fn kind(mut self, kind: impl Into<String>) -> Self {
        self.kind = kind.into();
        self
    }

    /// Only this state, or another one named by a further call.
    #[must_use]
    pub fn state(mut self, state: State) -> Self {
        self.states |= 1 << state.number();
        self
    }

    pub(crate) fn to_body(&self, namespace: &str, cursor: [u64; 2], limit: u32) -> ListTasks {
        let mut bytes = Vec::new();
        ListTasks {
            namespace: put(&mut bytes, namespace.as_bytes()),
            queue: put(&mut bytes, self.queue.as_bytes()),
            kind: put(&mut bytes, self.kind.as_bytes()),
            states: self.states,
            limit,
            cursor,
            bytes,
        }
    }
}

/// Where a listing goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListPosition {
    /// What is left of each partition: what is finished and stored in a database comes behind what is in memory.
    pub(crate) left: VecDeque<(PartitionId, [u64; 2])>,
}

impl ListPosition {
    /// The start.
    pub(crate) fn new(partitions: u16) -> Self {
        Self { left: (0..partitions).map(|number| (PartitionId(number), [0; 2])).collect() }
    }

    /// A page of the first partition was taken, and it goes on here.
    pub(crate) fn advance(&mut self, cursor: [u64; 2]) {
        let Some((partition, before)) = self.left.pop_front() else { return };
        let is_stored = |cursor: [u64; 2]| cursor[0] & CURSOR_STORED != 0;
        if is_stored(cursor) && !is_stored(before) {
            self.left.push_back((partition, cursor));
        } else if cursor != [0; 2] {
            self.left.push_front((partition, cursor));
        }
    }
}

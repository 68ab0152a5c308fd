//! Operators' requests: cancel, retry, queue settings.

use rkyv::{Archive, Deserialize, Serialize};

use super::Span;
use crate::TaskId;

/// Cancels tasks, or workflows with all their unfinished tasks.
#[derive(Clone, Debug, Default, Archive, Serialize, Deserialize)]
pub struct Cancel {
    /// Task or workflow ids, all of the frame's partition.
    pub ids: Vec<TaskId>,
    /// 1: the ids name workflows.
    pub workflows: u32,
}

/// Makes failed, expired or cancelled tasks ready again with a fresh attempt budget.
#[derive(Clone, Debug, Default, Archive, Serialize, Deserialize)]
pub struct Retry {
    /// Task ids, all of the frame's partition.
    pub ids: Vec<TaskId>,
}

/// Bits of [`ConfigureQueue::set`].
pub mod queue_field {
    /// `paused`.
    pub const PAUSED: u32 = 1;
    /// `draining`.
    pub const DRAINING: u32 = 2;
    /// `rate_milli_per_s` and `rate_burst`.
    pub const RATE: u32 = 4;
    /// `concurrency`.
    pub const CONCURRENCY: u32 = 8;
    /// `deadline_action`.
    pub const DEADLINE_ACTION: u32 = 16;
    /// `retention_ms`.
    pub const RETENTION: u32 = 32;
    /// `depth_max`.
    pub const DEPTH: u32 = 64;
    /// `policy`.
    pub const POLICY: u32 = 128;
    /// `refuse_permille`.
    pub const REFUSAL: u32 = 256;
    /// Those bits of `restarts_off` that its upper half names.
    pub const RESTARTS: u32 = 512;
    /// `weight`.
    pub const WEIGHT: u32 = 1_024;
}

/// Bits of [`ConfigureQueue::restarts_off`]: what the leader does unless it is switched off, the first ones to attempts of
/// restartable tasks.
pub mod restart {
    /// A second attempt beside one that runs for longer than it should.
    pub const SPECULATION: u8 = 1;
    /// Attempts are ended for tasks of a higher priority.
    pub const PREEMPTION: u8 = 2;
    /// Attempts that outlived what was expected are ended for tasks that are expected to take much less.
    pub const GIVING_UP: u8 = 4;
    /// Tasks that slow each other down are kept apart.
    pub const CONTENTION: u8 = 8;
    /// All of them.
    pub const ALL: u8 = 15;
}

/// Creates a queue or changes the fields named in `set`. Sent to every partition by the client.
#[derive(Clone, Debug, Default, Archive, Serialize, Deserialize)]
pub struct ConfigureQueue {
    /// Starts per second over the whole queue, in thousandths; 0 for no limit.
    pub rate_milli_per_s: u64,
    /// Most unfinished tasks; 0 for no limit of its own.
    pub depth_max: u64,
    /// Namespace (UTF-8); empty is `default`.
    pub namespace: Span,
    /// Queue name (UTF-8).
    pub queue: Span,
    /// Which fields to change: bits of [`queue_field`].
    pub set: u32,
    /// Most starts at once after idleness.
    pub rate_burst: u32,
    /// Most leases at once over the whole queue; 0 for no limit.
    pub concurrency: u32,
    /// How long finished tasks are kept unless they say otherwise, in milliseconds.
    pub retention_ms: u32,
    /// 1: nothing of this queue is assigned.
    pub paused: u32,
    /// 1: new tasks are refused, accepted ones run.
    pub draining: u32,
    /// At a task's deadline: 0 expire it, 1 only flag it.
    pub deadline_action: u8,
    /// In the lower four bits, those of [`restart`] that are switched off; in the upper ones, those that are changed.
    pub restarts_off: u8,
    /// Tasks whose deadline is less likely to be met are refused, in parts per thousand; 0 refuses none.
    pub refuse_permille: u16,
    /// Order of tasks of one priority: 0 auto, 1 fifo, 2 shortest, 3 deadline.
    pub policy: u16,
    /// Its part of the workers that it shares with other queues, against theirs: 1 to [`WEIGHT_MAX`](crate::limits::WEIGHT_MAX).
    pub weight: u16,
    /// Byte area.
    pub bytes: Vec<u8>,
}

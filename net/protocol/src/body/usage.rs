//! What attempts used, and what a worker runs: by it a leader learns which tasks are better kept apart.

use rkyv::{Archive, Deserialize, Serialize};

use super::Span;
use crate::TaskId;

/// Bits of [`UsageRow::known`].
pub mod usage_known {
    /// `cpu_us`.
    pub const CPU: u32 = 1;
    /// `memory_peak_bytes`.
    pub const MEMORY: u32 = 2;
    /// `io_bytes`.
    pub const IO: u32 = 4;
    /// `cpu_stalled_us`, `memory_stalled_us` and `io_stalled_us`.
    pub const STALLS: u32 = 8;
    /// All of them.
    pub const ALL: u32 = 15;
}

/// What attempts used that ended under leases of this connection's shard, and what the worker runs. Nothing of it is kept but
/// what is learned by it.
#[derive(Clone, Debug, Default, Archive, Serialize, Deserialize)]
pub struct Usage {
    /// Memory of the worker's machine, in bytes; 0: not known.
    pub memory_bytes: u64,
    /// Processors of the worker's machine, in thousandths; 0: not known.
    pub cpu_milli: u32,
    /// Rows of Assign that came over this connection, modulo 2³²: later ones are not in `kinds` yet.
    pub seen: u32,
    /// Kinds of measured tasks: those that run, and those that `beside` names.
    pub kinds: Vec<UsageKind>,
    /// Attempts that ended; their Complete or Fail comes behind.
    pub rows: Vec<UsageRow>,
    /// What ran beside them.
    pub beside: Vec<UsageBeside>,
    /// Byte area.
    pub bytes: Vec<u8>,
}

/// Measured tasks of one queue and kind.
#[derive(Clone, Copy, Debug, Default, Archive, Serialize, Deserialize)]
pub struct UsageKind {
    /// Queue (UTF-8), in the subscription's namespace.
    pub queue: Span,
    /// Kind (UTF-8).
    pub kind: Span,
    /// Attempts that run on the worker now, whichever node and shard they came from.
    pub running: u32,
    /// Zero.
    pub reserved: u32,
}

/// What one attempt used.
#[derive(Clone, Copy, Debug, Default, Archive, Serialize, Deserialize)]
pub struct UsageRow {
    /// The task.
    pub id: TaskId,
    /// Fencing token of the lease.
    pub token: u64,
    /// How long it ran, in microseconds; not 0.
    pub run_us: u64,
    /// Processor time, in microseconds.
    pub cpu_us: u64,
    /// Greatest memory, in bytes.
    pub memory_peak_bytes: u64,
    /// Bytes read from devices and written to them.
    pub io_bytes: u64,
    /// How long some of it waited for a processor, in microseconds.
    pub cpu_stalled_us: u64,
    /// How long some of it waited for memory, in microseconds.
    pub memory_stalled_us: u64,
    /// How long some of it waited for a device, in microseconds.
    pub io_stalled_us: u64,
    /// Locator of the lease.
    pub locator: u32,
    /// What of this is known: bits of [`usage_known`].
    pub known: u32,
    /// 1: it ended well; what failed or was ended says nothing of how long such tasks take.
    pub is_whole: u32,
    /// Zero.
    pub reserved: u32,
}

/// What ran beside an attempt.
#[derive(Clone, Copy, Debug, Default, Archive, Serialize, Deserialize)]
pub struct UsageBeside {
    /// The attempt: index into `rows`.
    pub row: u32,
    /// Index into `kinds`.
    pub kind: u32,
    /// How many of the kind ran beside it on average, in thousandths.
    pub permille: u32,
}

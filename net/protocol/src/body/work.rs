//! The worker's side: subscription, assignments, completions, heartbeats.

use rkyv::{Archive, Deserialize, Serialize};

use super::Span;
use crate::TaskId;

/// A worker's offer. A connection has one subscription; subscribing again replaces it.
#[derive(Clone, Debug, Default, Archive, Serialize, Deserialize)]
pub struct Subscribe {
    /// Memory offered, in bytes; 0 with `cpu_milli` 0 means resources are not counted.
    pub memory_bytes: u64,
    /// Queue names (UTF-8).
    pub queues: Vec<Span>,
    /// CPU offered, in thousandths of a core.
    pub cpu_milli: u32,
    /// GPU offered, in thousandths of a device.
    pub gpu_milli: u32,
    /// Other resources as `name=amount` pairs separated by commas (UTF-8).
    pub custom: Span,
    /// Namespace (UTF-8); empty is `default`.
    pub namespace: Span,
    /// Worker name (UTF-8), shown by `task get` and `task why`.
    pub worker: Span,
    /// First credit, in tasks.
    pub credit: u32,
    /// Zero.
    pub reserved: u32,
    /// Byte area.
    pub bytes: Vec<u8>,
}

/// More credit: the server may push this many further tasks.
#[derive(Clone, Copy, Debug, Default, Archive, Serialize, Deserialize)]
pub struct Credit {
    /// Tasks.
    pub credit: u32,
}

/// Leased tasks pushed to a worker, all of one partition.
#[derive(Clone, Debug, Default, Archive, Serialize, Deserialize)]
pub struct Assign {
    /// Contracts of the tasks below.
    pub specs: Vec<AssignSpec>,
    /// The leases.
    pub rows: Vec<AssignRow>,
    /// Byte area.
    pub bytes: Vec<u8>,
}

/// The part of a contract that a worker needs.
#[derive(Clone, Copy, Debug, Default, Archive, Serialize, Deserialize)]
pub struct AssignSpec {
    /// Memory reserved, in bytes.
    pub memory_bytes: u64,
    /// CPU reserved, in thousandths of a core.
    pub cpu_milli: u32,
    /// GPU reserved, in thousandths of a device.
    pub gpu_milli: u32,
    /// Queue (UTF-8).
    pub queue: Span,
    /// Kind (UTF-8).
    pub kind: Span,
    /// Custom resources reserved, `name=amount` pairs separated by commas (UTF-8).
    pub custom: Span,
    /// Lease length, in milliseconds: extend before it is over.
    pub lease_ms: u32,
    /// Attempts allowed in all.
    pub attempts_max: u32,
}

/// One lease: 56 bytes.
#[derive(Clone, Copy, Debug, Default, Archive, Serialize, Deserialize)]
pub struct AssignRow {
    /// The task.
    pub id: TaskId,
    /// Fencing token; every later frame about this lease carries it.
    pub token: u64,
    /// When the task became ready, in microseconds since 1970 by the server's clock.
    pub ready_us: u64,
    /// Payload in the byte area.
    pub payload: Span,
    /// Opaque; echo it, so that the server finds the task sooner.
    pub locator: u32,
    /// Index into `specs`.
    pub spec: u32,
    /// This attempt's number, from 1.
    pub attempt: u32,
    /// The version of its state to resume from; 0: none was saved.
    pub version: u32,
}

/// Successful completions, all of the frame's partition.
#[derive(Clone, Debug, Default, Archive, Serialize, Deserialize)]
pub struct Complete {
    /// The completions.
    pub rows: Vec<CompleteRow>,
    /// Byte area.
    pub bytes: Vec<u8>,
}

/// One completion: 40 bytes.
#[derive(Clone, Copy, Debug, Default, Archive, Serialize, Deserialize)]
pub struct CompleteRow {
    /// The task.
    pub id: TaskId,
    /// Fencing token of the lease.
    pub token: u64,
    /// Locator of the lease.
    pub locator: u32,
    /// Attempt of the lease.
    pub attempt: u32,
    /// Result in the byte area, at most [`crate::limits::RESULT_BYTES_MAX`].
    pub result: Span,
}

/// Failed attempts, all of the frame's partition.
#[derive(Clone, Debug, Default, Archive, Serialize, Deserialize)]
pub struct Fail {
    /// The failures.
    pub rows: Vec<FailRow>,
    /// Byte area.
    pub bytes: Vec<u8>,
}

/// One failed attempt.
#[derive(Clone, Copy, Debug, Default, Archive, Serialize, Deserialize)]
pub struct FailRow {
    /// The task.
    pub id: TaskId,
    /// Fencing token of the lease.
    pub token: u64,
    /// Locator of the lease.
    pub locator: u32,
    /// Attempt of the lease.
    pub attempt: u32,
    /// Error code, matched against [`super::Spec::non_retryable`] (UTF-8).
    pub code: Span,
    /// A sentence (UTF-8).
    pub message: Span,
    /// Last lines of the attempt's log.
    pub log_tail: Span,
    /// 1: do not retry whatever the policy says.
    pub is_final: u32,
    /// Zero.
    pub reserved: u32,
}

/// Leases to extend or to give back, all of the frame's partition.
#[derive(Clone, Debug, Default, Archive, Serialize, Deserialize)]
pub struct Leases {
    /// The leases.
    pub rows: Vec<LeaseRow>,
}

/// Names one lease.
#[derive(Clone, Copy, Debug, Default, Archive, Serialize, Deserialize)]
pub struct LeaseRow {
    /// The task.
    pub id: TaskId,
    /// Fencing token.
    pub token: u64,
    /// Locator.
    pub locator: u32,
    /// Attempt.
    pub attempt: u32,
}

/// Progress notes; the last one of each running task is kept.
#[derive(Clone, Debug, Default, Archive, Serialize, Deserialize)]
pub struct Progress {
    /// The notes.
    pub rows: Vec<ProgressRow>,
    /// Byte area.
    pub bytes: Vec<u8>,
}

/// One progress note.
#[derive(Clone, Copy, Debug, Default, Archive, Serialize, Deserialize)]
pub struct ProgressRow {
    /// The task.
    pub id: TaskId,
    /// Fencing token.
    pub token: u64,
    /// Share done, in parts per thousand.
    pub done_permille: u32,
    /// Locator.
    pub locator: u32,
    /// Note (UTF-8).
    pub note: Span,
}

/// The engine's own record of attempts and deadlines that ran out; refused from outside.
#[derive(Clone, Debug, Default, Archive, Serialize, Deserialize)]
pub struct Expire {
    /// What ran out.
    pub rows: Vec<ExpireRow>,
}

/// One thing that ran out.
#[derive(Clone, Copy, Debug, Default, Archive, Serialize, Deserialize)]
pub struct ExpireRow {
    /// The task.
    pub id: TaskId,
    /// Attempt whose lease ran out; ignored for deadlines.
    pub attempt: u32,
    /// 0: the lease; 1: the deadline.
    pub what: u32,
}

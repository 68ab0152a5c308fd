//! Submission: what a task is, and the answer to batches of rows.

use rkyv::{Archive, Deserialize, Serialize};

use super::Span;
use crate::TaskId;

/// A batch of tasks for one partition, or one whole workflow.
///
/// Tasks that share a contract refer to one [`Spec`]; what few tasks need is in [`Extra`].
#[derive(Clone, Debug, Default, Archive, Serialize, Deserialize)]
pub struct Submit {
    /// The contracts.
    pub specs: Vec<Spec>,
    /// The tasks.
    pub tasks: Vec<TaskRow>,
    /// Rarely needed properties.
    pub extras: Vec<Extra>,
    /// Row numbers of earlier tasks that [`Extra::needs`] refers to.
    pub needs: Vec<u32>,
    /// Empty for a plain batch; one row makes the batch a workflow.
    pub workflow: Vec<WorkflowRow>,
    /// Byte area.
    pub bytes: Vec<u8>,
}

/// One task of a batch: 32 bytes.
#[derive(Clone, Copy, Debug, Default, Archive, Serialize, Deserialize)]
pub struct TaskRow {
    /// Made by the client; its partition equals the frame's.
    pub id: TaskId,
    /// Index into `specs`.
    pub spec: u32,
    /// Index into `extras` plus one; 0 for none.
    pub extra: u32,
    /// Payload in the byte area, at most [`crate::limits::PAYLOAD_BYTES_MAX`].
    pub payload: Span,
}

/// What names of labels begin with among the custom resources: of such a one a worker has as much as anybody wants, or none.
pub const LABEL: &str = "label/";

/// What names of labels begin with, among the custom resources of a task, that it prefers in a worker and does not need: `prefer/zone/north=1`.
pub const PREFERRED: &str = "prefer/";

/// What names begin with, among the custom resources of a task, of which it needs as little as there is room for others of them: behind it
/// stand a number from 1 to [`crate::limits::ALTERNATIVES_MAX`], by which they are tried, and `cpu_milli`, `memory_bytes`, `gpu_milli` or another
/// name: `or/1/cpu_milli=8000`.
pub const ALTERNATIVE: &str = "or/";

/// The contract shared by tasks: handler, order, lease, retries and resources.
#[derive(Clone, Copy, Debug, Default, Archive, Serialize, Deserialize)]
pub struct Spec {
    /// Memory needed, in bytes.
    pub memory_bytes: u64,
    /// CPU needed, in thousandths of a core.
    pub cpu_milli: u32,
    /// GPU needed, in thousandths of a device.
    pub gpu_milli: u32,
    /// Other resources as `name=amount` pairs separated by commas (UTF-8).
    pub custom: Span,
    /// Namespace (UTF-8); empty is `default`.
    pub namespace: Span,
    /// Queue name (UTF-8).
    pub queue: Span,
    /// Kind: the handler's name (UTF-8).
    pub kind: Span,
    /// Error codes that are final at once, separated by commas (UTF-8).
    pub non_retryable: Span,
    /// Lease length, in milliseconds.
    pub lease_ms: u32,
    /// Wait before the second attempt, in milliseconds.
    pub backoff_ms: u32,
    /// Longest wait between attempts, in milliseconds.
    pub backoff_max_ms: u32,
    /// How long the finished task and its result are kept, in milliseconds; 0 means the queue's setting.
    pub retention_ms: u32,
    /// Growth of the wait per attempt, in hundredths (200 doubles it).
    pub backoff_factor_centi: u16,
    /// Attempts allowed in all; at least 1.
    pub attempts_max: u16,
    /// 0 critical, 1 high, 2 normal, 3 low.
    pub priority: u8,
    /// 1: tasks are memoised. The unique key of each is then the kind's version, and its window the highest age of a result that will do,
    /// in milliseconds, 0 for any.
    pub memo: u8,
    /// 1: an attempt may be ended and made again, or made twice at once: the handler has the same effect however often it runs.
    pub restartable: u8,
    /// Zero.
    pub reserved: u8,
}

/// Properties that few tasks have.
#[derive(Clone, Copy, Debug, Default, Archive, Serialize, Deserialize)]
pub struct Extra {
    /// Not to start before this time, in milliseconds since 1970; 0 for none.
    pub not_before_ms: u64,
    /// Not to start before this long after acceptance, in milliseconds.
    pub delay_ms: u64,
    /// Deadline, in milliseconds since 1970; 0 for none.
    pub deadline_ms: u64,
    /// Deadline relative to acceptance, in milliseconds; 0 for none.
    pub deadline_in_ms: u64,
    /// Unique key; empty for none.
    pub unique_key: Span,
    /// Concurrency key; empty for none.
    pub concurrency_key: Span,
    /// Workflow tasks: rows this one needs, as a span of `needs` counted in elements.
    pub needs: Span,
    /// Workflow tasks: the step's name (UTF-8).
    pub name: Span,
    /// How long after acceptance the unique key stays taken, in milliseconds; 0 means while the task is not final.
    pub unique_window_ms: u32,
    /// Most tasks with this concurrency key that may be leased at once; 0 reads as 1.
    pub concurrency_limit: u32,
}

/// Makes a batch a workflow.
#[derive(Clone, Copy, Debug, Default, Archive, Serialize, Deserialize)]
pub struct WorkflowRow {
    /// Workflow id; its partition equals the frame's.
    pub id: TaskId,
    /// Name (UTF-8).
    pub name: Span,
    /// 0: a failed task cancels its descendants; 1: descendants run all the same.
    pub on_failure: u32,
    /// Zero.
    pub reserved: u32,
}

/// The answer to every request made of rows: how many were carried out, and the others one by one.
#[derive(Clone, Debug, Default, Archive, Serialize, Deserialize)]
pub struct BatchReply {
    /// Rows carried out.
    pub accepted: u32,
    /// Rows that were not, in row order.
    pub exceptions: Vec<ExceptionRow>,
}

/// A row that was not carried out as asked.
#[derive(Clone, Copy, Debug, Default, Archive, Serialize, Deserialize)]
pub struct ExceptionRow {
    /// The task concerned; for a unique conflict, the task that holds the key.
    pub id: TaskId,
    /// Row of the request.
    pub index: u32,
    /// A [`crate::Code`] number.
    pub code: u16,
    /// State of the task concerned, as in [`super::TaskInfo::state`].
    pub state: u8,
    /// Zero.
    pub reserved: u8,
}

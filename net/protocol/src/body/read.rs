//! Queries and their answers.

use rkyv::{Archive, Deserialize, Serialize};

use super::Span;
use crate::TaskId;

/// Asks for one task, or why it waits.
#[derive(Clone, Copy, Debug, Default, Archive, Serialize, Deserialize)]
pub struct GetTask {
    /// The task.
    pub id: TaskId,
}

/// Asks for one task's outcome once it is final.
#[derive(Clone, Copy, Debug, Default, Archive, Serialize, Deserialize)]
pub struct AwaitTask {
    /// The task (or a workflow, when `workflow` is 1).
    pub id: TaskId,
    /// Longest wait, in milliseconds; then the answer is `timed_out`.
    pub timeout_ms: u32,
    /// 1: `id` names a workflow.
    pub workflow: u32,
}

/// Set in the first number of a cursor that goes on in the database of finished tasks.
pub const CURSOR_STORED: u64 = 1 << 63;

/// Asks for a page of a partition's tasks.
#[derive(Clone, Debug, Default, Archive, Serialize, Deserialize)]
pub struct ListTasks {
    /// Namespace (UTF-8); empty is `default`.
    pub namespace: Span,
    /// Only this queue (UTF-8); empty for all.
    pub queue: Span,
    /// Only this kind (UTF-8); empty for all.
    pub kind: Span,
    /// Bit set of states, bit n for state n; 0 for all.
    pub states: u32,
    /// Most rows.
    pub limit: u32,
    /// Continue here; zeros start.
    pub cursor: [u64; 2],
    /// Byte area.
    pub bytes: Vec<u8>,
}

/// Tasks, with payloads and results only when a single one was asked for.
#[derive(Clone, Debug, Default, Archive, Serialize, Deserialize)]
pub struct TaskPage {
    /// The tasks.
    pub rows: Vec<TaskInfo>,
    /// Continue here; zeros when nothing is left.
    pub cursor: [u64; 2],
    /// Byte area.
    pub bytes: Vec<u8>,
}

/// Added to [`TaskInfo::priority`] where the task is restartable.
pub const RESTARTABLE: u8 = 0x80;

/// What is known of one task.
#[derive(Clone, Copy, Debug, Default, Archive, Serialize, Deserialize)]
pub struct TaskInfo {
    /// The task.
    pub id: TaskId,
    /// Its workflow, or zero.
    pub workflow: TaskId,
    /// When it entered its present state, or is due for delayed tasks, in microseconds since 1970; 0 if unknown.
    pub at_us: u64,
    /// When the latest attempt started, in microseconds since 1970; 0 if unknown.
    pub started_us: u64,
    /// Deadline, in milliseconds since 1970; 0 for none.
    pub deadline_ms: u64,
    /// Namespace.
    pub namespace: Span,
    /// Queue.
    pub queue: Span,
    /// Kind.
    pub kind: Span,
    /// Step name within a workflow.
    pub name: Span,
    /// Payload (single-task answers).
    pub payload: Span,
    /// Result (single-task answers).
    pub result: Span,
    /// Last error code.
    pub error_code: Span,
    /// Last error sentence.
    pub error: Span,
    /// Last log tail (single-task answers).
    pub log_tail: Span,
    /// Worker that holds or last held it.
    pub worker: Span,
    /// Last progress note.
    pub note: Span,
    /// Progress in parts per thousand.
    pub done_permille: u32,
    /// Attempts begun.
    pub attempt: u32,
    /// Attempts allowed.
    pub attempts_max: u32,
    /// 0 waiting, 1 delayed, 2 ready, 3 leased, 4 succeeded, 5 failed, 6 cancelled, 7 expired.
    pub state: u8,
    /// 0 critical, 1 high, 2 normal, 3 low; with [`RESTARTABLE`] added for a restartable task.
    pub priority: u8,
    /// 1: the deadline passed and the queue only flags.
    pub late: u8,
    /// 1: the result is that of another task, which `note` names: this one did not run.
    pub memo: u8,
}

/// The answer to `why`: facts as name and sentence, in order of importance.
#[derive(Clone, Debug, Default, Archive, Serialize, Deserialize)]
pub struct Explanation {
    /// Name and sentence, alternating.
    pub facts: Vec<Span>,
    /// Byte area.
    pub bytes: Vec<u8>,
}

/// Values of [`Chance::basis`].
pub mod chance_basis {
    /// `permille` is known.
    pub const KNOWN: u32 = 0;
    /// The task has no deadline.
    pub const NO_DEADLINE: u32 = 1;
    /// Too few tasks of its kind have ended.
    pub const TOO_FEW_SAMPLES: u32 = 2;
    /// No worker that has room for it serves its queue, or the queue is paused.
    pub const NOT_SERVED: u32 = 3;
    /// It waits for other tasks, or is final.
    pub const NOT_IN_LINE: u32 = 4;
}

/// How likely a task meets its deadline, as things are.
#[derive(Clone, Copy, Debug, Default, Archive, Serialize, Deserialize)]
pub struct Chance {
    /// Its deadline, in milliseconds since 1970; 0 for none.
    pub deadline_ms: u64,
    /// How long it is expected to wait, in milliseconds.
    pub wait_ms: u64,
    /// How long it is expected to run in one of two cases, in milliseconds,
    pub run_ms: u64,
    /// and in nine of ten.
    pub run_most_ms: u64,
    /// Tasks that go before it, in the shard's part of the queue.
    pub ahead: u64,
    /// Tasks of that part that can run at once.
    pub places: u32,
    /// Tasks of its kind that have ended, as far as they count.
    pub samples: u32,
    /// The probability in parts per thousand, if it is known.
    pub permille: u32,
    /// Whether it is, and why not: a value of [`chance_basis`].
    pub basis: u32,
}

/// Asks what another policy would have made of what a queue ran lately.
#[derive(Clone, Debug, Default, Archive, Serialize, Deserialize)]
pub struct Shadow {
    /// Namespace (UTF-8); empty is `default`.
    pub namespace: Span,
    /// Queue (UTF-8).
    pub queue: Span,
    /// The policy in shadow: 0 auto, 1 fifo, 2 shortest, 3 deadline.
    pub policy: u32,
    /// Byte area.
    pub bytes: Vec<u8>,
}

/// What a policy does to tasks of a queue, played in virtual time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct PolicyWaits {
    /// Mean wait, in microseconds.
    pub wait_us: u64,
    /// Median.
    pub wait_median_us: u64,
    /// In 99 of 100 cases it is no longer.
    pub wait_most_us: u64,
    /// Mean bounded slowdown, in thousandths.
    pub slowdown_milli: u64,
    /// Tasks that end after their deadline.
    pub late: u32,
    /// The policy.
    pub policy: u32,
}

/// The present policy of a queue beside one in shadow, over the same tasks of one shard.
#[derive(Clone, Copy, Debug, Default, Archive, Serialize, Deserialize)]
pub struct ShadowReport {
    /// Under the present policy,
    pub present: PolicyWaits,
    /// and under the one in shadow; zeros with fewer samples than are needed.
    pub shadow: PolicyWaits,
    /// Mean wait as it was in truth, in microseconds.
    pub measured_us: u64,
    /// Mean slowdown under the present policy over that under the one in shadow, in thousandths,
    pub gain_milli: u64,
    /// and what it is at least with a confidence of 95 %.
    pub gain_least_milli: u64,
    /// Tasks that were played,
    pub samples: u32,
    /// and how many it takes at least.
    pub samples_min: u32,
    /// Tasks with a deadline.
    pub with_deadline: u32,
    /// Blocks in which they were played.
    pub blocks: u32,
}

/// Asks for a partition's queues.
#[derive(Clone, Debug, Default, Archive, Serialize, Deserialize)]
pub struct ListQueues {
    /// Zero.
    pub reserved: u32,
}

/// A partition's queues.
#[derive(Clone, Debug, Default, Archive, Serialize, Deserialize)]
pub struct QueuePage {
    /// The queues.
    pub rows: Vec<QueueInfo>,
    /// Byte area.
    pub bytes: Vec<u8>,
}

/// One queue within one partition.
#[derive(Clone, Copy, Debug, Default, Archive, Serialize, Deserialize)]
pub struct QueueInfo {
    /// Tasks by state, in the order of [`TaskInfo::state`].
    pub counts: [u64; 8],
    /// As configured.
    pub rate_milli_per_s: u64,
    /// As configured.
    pub depth_max: u64,
    /// Namespace.
    pub namespace: Span,
    /// Name.
    pub queue: Span,
    /// As configured.
    pub rate_burst: u32,
    /// As configured.
    pub concurrency: u32,
    /// As configured, in milliseconds.
    pub retention_ms: u32,
    /// 1: paused.
    pub paused: u32,
    /// 1: draining.
    pub draining: u32,
    /// 0 expire, 1 flag.
    pub deadline_action: u32,
    /// 0 auto, 1 fifo, 2 shortest, 3 deadline.
    pub policy: u16,
    /// As configured; 0 is 1.
    pub weight: u16,
    /// As configured.
    pub refuse_permille: u16,
    /// As configured.
    pub restarts_off: u16,
}

/// Asks for a page of a workflow.
#[derive(Clone, Copy, Debug, Default, Archive, Serialize, Deserialize)]
pub struct GetWorkflow {
    /// The workflow.
    pub id: TaskId,
    /// First row.
    pub from: u32,
    /// Most rows.
    pub limit: u32,
}

/// Asks for a partition's workflows.
#[derive(Clone, Copy, Debug, Default, Archive, Serialize, Deserialize)]
pub struct ListWorkflows {
    /// Most workflows, the newest first.
    pub limit: u32,
}

/// Workflows, and the rows of one when it was asked for.
#[derive(Clone, Debug, Default, Archive, Serialize, Deserialize)]
pub struct WorkflowPage {
    /// The workflows.
    pub workflows: Vec<WorkflowInfo>,
    /// Rows of the one workflow asked for.
    pub rows: Vec<WorkflowTask>,
    /// Byte area.
    pub bytes: Vec<u8>,
}

/// One workflow.
#[derive(Clone, Copy, Debug, Default, Archive, Serialize, Deserialize)]
pub struct WorkflowInfo {
    /// The workflow.
    pub id: TaskId,
    /// Tasks by state, in the order of [`TaskInfo::state`].
    pub counts: [u32; 8],
    /// When it was accepted, in microseconds since 1970.
    pub submitted_us: u64,
    /// When its last task became final, in microseconds since 1970; 0 while it runs.
    pub finished_us: u64,
    /// Name.
    pub name: Span,
}

/// One task of a workflow.
#[derive(Clone, Copy, Debug, Default, Archive, Serialize, Deserialize)]
pub struct WorkflowTask {
    /// The task.
    pub id: TaskId,
    /// When it became ready, in microseconds since 1970; 0 before.
    pub ready_us: u64,
    /// When its latest attempt was assigned, in microseconds since 1970; 0 before.
    pub started_us: u64,
    /// When it became final, in microseconds since 1970; 0 before.
    pub finished_us: u64,
    /// Step name.
    pub name: Span,
    /// Attempts begun.
    pub attempt: u32,
    /// State, in the order of [`TaskInfo::state`].
    pub state: u32,
}

/// Counters of the node, as names and values.
#[derive(Clone, Debug, Default, Archive, Serialize, Deserialize)]
pub struct NodeStats {
    /// Names (UTF-8).
    pub names: Vec<Span>,
    /// Values, by the same index.
    pub values: Vec<u64>,
    /// Byte area.
    pub bytes: Vec<u8>,
}

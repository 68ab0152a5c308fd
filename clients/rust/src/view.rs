//! What the server tells of tasks, queues, workflows and itself, as owned values.

use taskmaster_protocol::body::{
    self, ArchivedQueueInfo, ArchivedTaskInfo, ArchivedTaskPage, ArchivedWorkflowInfo, ArchivedWorkflowPage,
    ArchivedWorkflowTask,
};
use taskmaster_protocol::body::{RESTARTABLE, restart};
use taskmaster_protocol::{NodeId, TaskId};

use crate::error::Error;
use crate::queue::Policy;
use crate::task::{Priority, State};

mod cluster;

pub use cluster::{ClusterView, GroupView, NodeStatus, NodeView};

/// Tasks by state; index with [`State::number`] or ask [`Counts::of`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts(pub [u64; 8]);

impl Counts {
    /// Tasks in this state.
    #[must_use]
    pub fn of(&self, state: State) -> u64 {
        self.0[usize::from(state.number())]
    }

    /// Tasks that are not final.
    #[must_use]
    pub fn unfinished(&self) -> u64 {
        self.0[..4].iter().sum()
    }

    /// All tasks.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

/// What is known of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskView {
    /// The task.
    pub id: TaskId,
    /// Its workflow.
    pub workflow: Option<TaskId>,
    /// Namespace.
    pub namespace: String,
    /// Queue.
    pub queue: String,
    /// Kind.
    pub kind: String,
    /// Step name within its workflow.
    pub name: String,
    /// State.
    pub state: State,
    /// Priority class.
    pub priority: Priority,
    /// An attempt may be ended and made again, or made twice at once.
    pub is_restartable: bool,
    /// The deadline passed and the queue only flags.
    pub is_late: bool,
    /// Attempts begun.
    pub attempt: u32,
    /// Attempts allowed.
    pub attempts_max: u32,
    /// When it entered its state, or is due if delayed, in microseconds since 1970; 0 if unknown.
    pub at_us: u64,
    /// When the latest attempt started, in microseconds since 1970; 0 if unknown.
    pub started_us: u64,
    /// Deadline, in milliseconds since 1970; 0 for none.
    pub deadline_ms: u64,
    /// Payload; only when a single task was asked for.
    pub payload: Vec<u8>,
    /// Result; only when a single task was asked for.
    pub result: Vec<u8>,
    /// Last error code.
    pub error_code: String,
    /// Last error sentence.
    pub error: String,
    /// Last lines of the latest failed attempt's log; only when a single task was asked for.
    pub log_tail: Vec<u8>,
    /// Worker that holds or last held it.
    pub worker: String,
    /// Last progress note; of a memoised task with another's result or error, which that was.
    pub note: String,
    /// It is memoised and did not run: it has another's result, or failed with it.
    pub is_memo: bool,
    /// Progress, in parts per thousand.
    pub done_permille: u32,
}

pub(crate) fn task_views(page: &ArchivedTaskPage) -> Result<Vec<TaskView>, Error> {
    page.rows.iter().map(|row| task_view(row, page)).collect()
}

pub(crate) fn only_task(page: &ArchivedTaskPage, id: TaskId) -> Result<TaskView, Error> {
    page.rows.first().map_or_else(|| Err(Error::unknown_task(id)), |row| task_view(row, page))
}

fn task_view(row: &ArchivedTaskInfo, page: &ArchivedTaskPage) -> Result<TaskView, Error> {
    let text = |span| body::text(&page.bytes, span).map(str::to_owned);
    let slice = |span| body::slice(&page.bytes, span).map(<[u8]>::to_vec);
    let workflow = TaskId::from(&row.workflow);
    Ok(TaskView {
        id: TaskId::from(&row.id),
        workflow: (workflow != TaskId::default()).then_some(workflow),
        namespace: text(row.namespace)?,
        queue: text(row.queue)?,
        kind: text(row.kind)?,
        name: text(row.name)?,
        state: state(row.state.into())?,
        priority: Priority::from_number(row.priority & !RESTARTABLE),
        is_restartable: row.priority & RESTARTABLE != 0,
        is_late: row.late != 0,
        attempt: row.attempt.to_native(),
        attempts_max: row.attempts_max.to_native(),
        at_us: row.at_us.to_native(),
        started_us: row.started_us.to_native(),
        deadline_ms: row.deadline_ms.to_native(),
        payload: slice(row.payload)?,
        result: slice(row.result)?,
        error_code: text(row.error_code)?,
        error: text(row.error)?,
        log_tail: slice(row.log_tail)?,
        worker: text(row.worker)?,
        note: text(row.note)?,
        is_memo: row.memo != 0,
        done_permille: row.done_permille.to_native(),
    })
}

fn state(number: u32) -> Result<State, Error> {
    u8::try_from(number).ok().and_then(State::from_number).ok_or_else(|| {
        Error::Protocol(format!("the server names the state {number}, which this version does not know"))
    })
}

/// How a task ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The task.
    pub id: TaskId,
    /// A final state.
    pub state: State,
    /// The handler's result; empty unless it succeeded.
    pub result: Vec<u8>,
    /// Attempts begun.
    pub attempts: u32,
    /// Code of the last error, empty if there was none.
    pub error_code: String,
    /// Sentence of the last error.
    pub error: String,
    /// Last lines of the last failed attempt's log.
    pub log_tail: Vec<u8>,
}

impl Outcome {
    /// The result of a task that succeeded.
    ///
    /// # Errors
    /// [`Error::NotSucceeded`] with this outcome otherwise.
    pub fn success(self) -> Result<Vec<u8>, Error> {
        if self.state == State::Succeeded { Ok(self.result) } else { Err(Error::NotSucceeded(Box::new(self))) }
    }

    /// The result of a task that succeeded, as text.
    ///
    /// # Errors
    /// [`Error::NotSucceeded`], or [`Error::Decode`] if the result is not UTF-8.
    pub fn text(self) -> Result<String, Error> {
        String::from_utf8(self.success()?).map_err(|error| Error::Decode(format!("the result is not UTF-8: {error}")))
    }

    /// The result of a task that succeeded, from JSON.
    ///
    /// # Errors
    /// [`Error::NotSucceeded`], or [`Error::Decode`] if the result has another form.
    #[cfg(feature = "json")]
    pub fn json<T: serde::de::DeserializeOwned>(self) -> Result<T, Error> {
        serde_json::from_slice(&self.success()?)
            .map_err(|error| Error::Decode(format!("the result is not the expected JSON: {error}")))
    }

    /// Why it did not succeed, in one line.
    #[must_use]
    pub fn reason(&self) -> String {
        match (self.error_code.is_empty(), self.error.is_empty()) {
            (true, true) => format!("no error was reported in {} attempts", self.attempts),
            (true, false) => self.error.clone(),
            (false, true) => self.error_code.clone(),
            (false, false) => format!("{}: {}", self.error_code, self.error),
        }
    }
}

impl From<TaskView> for Outcome {
    fn from(view: TaskView) -> Self {
        Self {
            id: view.id,
            state: view.state,
            result: view.result,
            attempts: view.attempt,
            error_code: view.error_code,
            error: view.error,
            log_tail: view.log_tail,
        }
    }
}

/// One fact of an explanation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// Short name.
    pub name: String,
    /// Sentence.
    pub sentence: String,
}

/// A queue, summed over all partitions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueView {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub queue: String,
    /// Tasks by state.
    pub counts: Counts,
    /// Starts per second, in thousandths; 0 for no limit.
    pub rate_milli_per_s: u64,
    /// Most starts at once after idleness.
    pub rate_burst: u32,
    /// Most leases at once; 0 for no limit.
    pub concurrency: u32,
    /// Most unfinished tasks; 0 for no limit of its own.
    pub depth_max: u64,
    /// How long finished tasks are kept, in milliseconds.
    pub retention_ms: u32,
    /// Nothing is assigned.
    pub is_paused: bool,
    /// New tasks are refused.
    pub is_draining: bool,
    /// At a deadline tasks are only flagged, not expired.
    pub flags_deadlines: bool,
    /// In which order tasks of one priority start.
    pub policy: Policy,
    /// Its part of the workers that it shares with other queues, against theirs.
    pub weight: u16,
    /// Tasks whose deadline is less likely to be met are refused, in parts per thousand; 0 refuses none.
    pub refuse_permille: u16,
    /// No second attempts of restartable tasks begin.
    pub is_without_speculation: bool,
    /// No attempts of restartable tasks are ended for tasks of a higher priority.
    pub is_without_preemption: bool,
    /// No attempts of restartable tasks are ended for tasks that are expected to take much less.
    pub is_without_giving_up: bool,
    /// Tasks that slow each other down are not kept apart.
    pub is_without_contention: bool,
}

impl QueueView {
    /// Adds another partition's part. Settings are the same in every partition; counts add up.
    pub(crate) fn add(&mut self, row: &ArchivedQueueInfo) {
        for (sum, count) in self.counts.0.iter_mut().zip(&row.counts) {
            *sum += count.to_native();
        }
        self.rate_milli_per_s = self.rate_milli_per_s.max(row.rate_milli_per_s.to_native());
        self.rate_burst = self.rate_burst.max(row.rate_burst.to_native());
        self.concurrency = self.concurrency.max(row.concurrency.to_native());
        self.depth_max = self.depth_max.max(row.depth_max.to_native());
        self.retention_ms = self.retention_ms.max(row.retention_ms.to_native());
        self.is_paused |= row.paused.to_native() != 0;
        self.is_draining |= row.draining.to_native() != 0;
        self.flags_deadlines |= row.deadline_action.to_native() != 0;
        self.policy = Policy::of_number(row.policy.to_native().into());
        self.weight = self.weight.max(row.weight.to_native()).max(1);
        self.refuse_permille = self.refuse_permille.max(row.refuse_permille.to_native());
        self.is_without_speculation |= row.restarts_off.to_native() & u16::from(restart::SPECULATION) != 0;
        self.is_without_preemption |= row.restarts_off.to_native() & u16::from(restart::PREEMPTION) != 0;
        self.is_without_giving_up |= row.restarts_off.to_native() & u16::from(restart::GIVING_UP) != 0;
        self.is_without_contention |= row.restarts_off.to_native() & u16::from(restart::CONTENTION) != 0;
    }
}

/// A workflow's summary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkflowView {
    /// The workflow.
    pub id: TaskId,
    /// Name.
    pub name: String,
    /// Tasks by state.
    pub counts: Counts,
    /// When it was accepted, in microseconds since 1970.
    pub submitted_us: u64,
    /// When its last task became final, in microseconds since 1970; 0 while it runs.
    pub finished_us: u64,
    /// Its tasks, in row order; empty in lists.
    pub tasks: Vec<WorkflowTaskView>,
}

impl WorkflowView {
    /// Whether every task is final.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.finished_us != 0
    }

    /// Whether every task succeeded.
    #[must_use]
    pub fn is_success(&self) -> bool {
        self.is_finished() && self.counts.of(State::Succeeded) == self.counts.total()
    }
}

/// One task of a workflow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkflowTaskView {
    /// The task.
    pub id: TaskId,
    /// Step name.
    pub name: String,
    /// State.
    pub state: State,
    /// Attempts begun.
    pub attempt: u32,
    /// When it became ready, in microseconds since 1970; 0 before.
    pub ready_us: u64,
    /// When its latest attempt was assigned, in microseconds since 1970; 0 before.
    pub started_us: u64,
    /// When it became final, in microseconds since 1970; 0 before.
    pub finished_us: u64,
}

pub(crate) fn workflow_views(page: &ArchivedWorkflowPage) -> Result<Vec<WorkflowView>, Error> {
    page.workflows.iter().map(|row| workflow_view(row, page)).collect()
}

pub(crate) fn workflow_tasks(page: &ArchivedWorkflowPage) -> Result<Vec<WorkflowTaskView>, Error> {
    let view = |row: &ArchivedWorkflowTask| {
        Ok(WorkflowTaskView {
            id: TaskId::from(&row.id),
            name: body::text(&page.bytes, row.name)?.to_owned(),
            state: state(row.state.to_native())?,
            attempt: row.attempt.to_native(),
            ready_us: row.ready_us.to_native(),
            started_us: row.started_us.to_native(),
            finished_us: row.finished_us.to_native(),
        })
    };
    page.rows.iter().map(view).collect()
}

fn workflow_view(row: &ArchivedWorkflowInfo, page: &ArchivedWorkflowPage) -> Result<WorkflowView, Error> {
    let mut counts = Counts::default();
    for (count, wire) in counts.0.iter_mut().zip(&row.counts) {
        *count = wire.to_native().into();
    }
    Ok(WorkflowView {
        id: TaskId::from(&row.id),
        name: body::text(&page.bytes, row.name)?.to_owned(),
        counts,
        submitted_us: row.submitted_us.to_native(),
        finished_us: row.finished_us.to_native(),
        tasks: Vec::new(),
    })
}

/// One shard's counters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardStats {
    /// The node asked, where the server says which it is.
    pub node: Option<NodeId>,
    /// The shard asked.
    pub shard: u16,
    /// Names and values.
    pub counters: Vec<(String, u64)>,
}

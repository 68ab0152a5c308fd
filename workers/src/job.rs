//! What a worker is given and what it gives back.
//!
//! These types belong to this crate alone: the wire's own rows are turned into them by whoever joins the two.

use std::sync::Arc;
use std::time::Duration;

/// One attempt at one task.
#[derive(Debug, Clone, Default)]
pub struct Job {
    /// The task's id in its printed form; it reaches processes as `TASKMASTER_TASK_ID` and names their cgroup.
    pub id: String,
    /// The handler's name.
    pub kind: String,
    /// The queue which the task was leased from, `TASKMASTER_QUEUE`.
    pub queue: String,
    /// Which attempt this is; the first is 1.
    pub attempt: u32,
    /// The task's payload.
    pub payload: Vec<u8>,
    /// How long the attempt may take, counted from the call; a command's own `timeout_ms` may be shorter.
    pub timeout: Option<Duration>,
    /// Processor share in thousandths of a core; 0 sets no limit.
    pub cpu_milli: u32,
    /// Memory in bytes; 0 sets no limit.
    pub memory_bytes: u64,
    /// Further environment variables for a process.
    pub env: Vec<(String, String)>,
}

/// How an attempt ended, and what it took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// How it ended.
    pub outcome: Outcome,
    /// What it took.
    pub usage: Usage,
    /// The last bytes of a process's standard error, at most [`crate::process::Limits::log_tail_bytes`].
    pub log_tail: Vec<u8>,
}

/// The end of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The work is done.
    Succeeded {
        /// What it returned.
        result: Vec<u8>,
    },
    /// The work is not done.
    Failed(Failure),
    /// The attempt was ended because the caller asked for it.
    Cancelled,
}

/// Why an attempt failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// A sentence for a person.
    pub error: String,
    /// A stable code for a program: `exit:3`, `signal:KILL`, `timeout`, `oom`, `spawn`, `result_too_large`,
    /// `bad_payload`, `unknown_kind`, `worker`, or whatever the `fail` kind was told to say.
    pub code: String,
    /// Whether another attempt might end differently.
    pub retryable: bool,
}

impl Failure {
    /// A failure which another attempt may mend.
    pub fn retryable(code: impl Into<String>, error: impl Into<String>) -> Self {
        Self { error: error.into(), code: code.into(), retryable: true }
    }

    /// A failure which every further attempt would meet again.
    pub fn permanent(code: impl Into<String>, error: impl Into<String>) -> Self {
        Self { error: error.into(), code: code.into(), retryable: false }
    }
}

/// What an attempt took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// From the call until the end.
    pub wall: Duration,
    /// Processor time in user mode, of the process and of all its descendants which were waited for.
    pub cpu_user: Duration,
    /// Processor time in the kernel, likewise.
    pub cpu_system: Duration,
    /// Greatest memory in bytes: of the task's cgroup (page cache included) where there is one, else resident memory of
    /// its largest process. `None` where it could not be told apart from the worker's own.
    pub peak_memory_bytes: Option<u64>,
    /// What the kernel counted for it and all its descendants, where it was measured.
    pub measured: Option<Measured>,
}

/// What the kernel counted in a task's cgroup of version 2.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Measured {
    /// Processor time.
    pub cpu: Duration,
    /// Bytes read from devices and written to them; `None` without the io controller.
    pub io_bytes: Option<u64>,
    /// How long some of it waited for a processor, for memory and for a device; `None` where the kernel does not tell pressure.
    pub stalls: Option<[Duration; 3]>,
}

/// A step forward which a running task reports.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// Share done, 0 to 1.
    pub fraction: f32,
    /// What is being done; may be empty.
    pub message: String,
}

/// Where progress goes. Called on the thread which polls the attempt; it must not block.
#[derive(Clone, Default)]
pub struct ProgressSink(Option<Arc<dyn Fn(Progress) + Send + Sync>>);

impl ProgressSink {
    /// A sink which hands each step to `report`.
    pub fn new(report: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(report)))
    }

    /// A sink which drops each step.
    #[must_use]
    pub fn none() -> Self {
        Self(None)
    }

    /// Whether anybody listens.
    #[must_use]
    pub fn is_some(&self) -> bool {
        self.0.is_some()
    }

    /// Reports one step.
    pub fn report(&self, progress: Progress) {
        if let Some(report) = &self.0 {
            report(progress);
        }
    }
}

impl std::fmt::Debug for ProgressSink {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_tuple("ProgressSink").field(&self.is_some()).finish()
    }
}

//! A trace of tasks as the replay takes it, whatever it was read from.

use std::fmt;

use crate::Millis;

/// A trace that cannot be read, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadError {
    /// The trace.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// What is wrong.
    pub what: String,
}

impl ReadError {
    pub(crate) fn new(file: &str, line: usize, what: impl Into<String>) -> Self {
        Self { file: file.to_owned(), line, what: what.into() }
    }
}

impl fmt::Display for ReadError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}: {}", self.file, self.line, self.what)
    }
}

impl std::error::Error for ReadError {}

/// One task of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Job {
    /// The trace's name for it.
    pub id: u64,
    /// The line that it comes from.
    pub line: u32,
    /// When it was submitted.
    pub submit: Millis,
    /// How long it ran.
    pub run: Millis,
    /// The declared limit, or its run time where none was declared: for published orders only, which go by it. Others must not
    /// know it: [`Job::declared`].
    pub limit: Millis,
    /// Whether a limit was declared.
    pub has_limit: bool,
    /// When it shall have ended, from its submission on, where the trace says so beside the limit.
    pub deadline: Option<Millis>,
    /// Slots that it needs at once.
    pub width: u32,
    /// Who submitted it: the tenant.
    pub user: u32,
    /// How much it has to do, as far as the trace says so beforehand; 0 where it does not.
    pub size: u32,
    /// Further labels, the most telling first as the trace's reader sees it: group, executable, queue, partition.
    pub keys: [u32; 4],
}

impl Job {
    /// The declared limit, as an order may know it: 0 where none was declared.
    #[must_use]
    pub fn declared(&self) -> Millis {
        if self.has_limit { self.limit } else { 0 }
    }

    /// When it shall have ended, from its submission on: at its deadline, else within its declared limit.
    #[must_use]
    pub fn due(&self) -> Option<Millis> {
        self.deadline.or(self.has_limit.then_some(self.limit))
    }
}

/// Tasks in the order of submission, and the machine that they ran on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// Its name.
    pub name: String,
    /// Slots of the machine.
    pub width: u32,
    /// In the order of submission.
    pub jobs: Vec<Job>,
    /// Records that said nothing (no processors, no run time).
    pub skipped: usize,
}

impl Trace {
    /// Time between the first and the last submission.
    #[must_use]
    pub fn span(&self) -> Millis {
        match (self.jobs.first(), self.jobs.last()) {
            (Some(first), Some(last)) => last.submit - first.submit,
            _ => 0,
        }
    }

    /// Whether any task has a deadline or a declared limit: without, none can be late, and there is no order by deadline.
    #[must_use]
    pub fn has_deadlines(&self) -> bool {
        self.jobs.iter().any(|job| job.due().is_some())
    }

    /// Work in slot-milliseconds.
    #[must_use]
    pub fn work(&self) -> i128 {
        self.jobs.iter().map(|job| i128::from(job.run) * i128::from(job.width)).sum()
    }
}

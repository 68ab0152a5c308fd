//! Refusals: what a client hears when a request is not carried out.

use taskmaster_protocol::body::Malformed;
use taskmaster_protocol::{Code, TaskId};

/// A refusal: a code, a sentence, and when to try again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Refused {
    /// The stable code.
    pub code: Code,
    /// What is wrong and what would be right.
    pub message: String,
    /// The row of the request that is at fault.
    pub row: Option<u32>,
    /// When to try again, in milliseconds; 0: trying again changes nothing.
    pub retry_after_ms: u32,
}

impl Refused {
    /// A refusal of the whole request.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), row: None, retry_after_ms: 0 }
    }

    /// Names the row at fault.
    #[must_use]
    pub const fn at_row(mut self, row: u32) -> Self {
        self.row = Some(row);
        self
    }

    /// Asks to come back later.
    #[must_use]
    pub const fn retry_after_ms(mut self, ms: u32) -> Self {
        self.retry_after_ms = ms;
        self
    }
}

impl From<Malformed> for Refused {
    fn from(malformed: Malformed) -> Self {
        Self::new(Code::Malformed, malformed.to_string())
    }
}

/// No such task.
pub(crate) fn unknown_task(id: TaskId) -> Refused {
    Refused::new(Code::UnknownTask, format!("no task {id}: it was never accepted, or its retention is over"))
}

/// No such workflow.
pub(crate) fn unknown_workflow(id: TaskId) -> Refused {
    Refused::new(Code::UnknownWorkflow, format!("no workflow {id}: it was never accepted, or its retention is over"))
}

//! What can go wrong, in sentences that say what to do.
//!
//! A refusal is the server's answer and carries its stable code; every other variant is a failure on the way there.

use std::time::Duration;

use taskmaster_protocol::body::{self, ArchivedRefusal};
use taskmaster_protocol::{Code, FrameError, PartitionId, TaskId};

use crate::view::Outcome;

/// A request, or a row of one, that was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} [{code}]")]
pub struct Refusal {
    /// Stable code.
    pub code: Code,
    /// What is wrong and what would be right.
    pub message: String,
    /// When to try again; `None` means trying again changes nothing.
    pub retry_after: Option<Duration>,
    /// Row of the request at fault.
    pub row: Option<u32>,
}

impl Refusal {
    /// A refusal decided on this side, before anything was sent.
    pub(crate) fn local(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), retry_after: None, row: None }
    }

    /// Reads the body of a response whose code is not `ok`.
    pub(crate) fn read(code: Code, bytes: &[u8]) -> Self {
        let Ok(refusal) = body::access::<ArchivedRefusal>(bytes) else {
            return Self::local(code, "the server refused without a readable reason");
        };
        let row = refusal.row.to_native();
        let retry_after_ms = refusal.retry_after_ms.to_native();
        Self {
            code,
            message: body::text(&refusal.bytes, refusal.message).unwrap_or("(unreadable reason)").to_owned(),
            retry_after: (retry_after_ms > 0).then(|| Duration::from_millis(retry_after_ms.into())),
            row: (row != u32::MAX).then_some(row),
        }
    }

    /// Whether waiting and sending the same again may succeed.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        matches!(self.code, Code::Overloaded | Code::ShuttingDown | Code::DiskFull) || self.retry_after.is_some()
    }
}

fn earlier(refusal: Option<&Refusal>) -> String {
    refusal.map(|refusal| format!(" (an earlier try was told: {refusal})")).unwrap_or_default()
}

/// Why a call did not succeed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No node answered at any address; nothing was sent.
    #[error("cannot connect to {address}: {reason}. Check that a node runs there (`taskmaster serve`) and the port")]
    Connect {
        /// Address or addresses tried.
        address: String,
        /// The last failure.
        reason: String,
    },
    /// The connection ended before the answer came; the request may or may not have been carried out.
    #[error("the connection ended before the answer came ({reason}); the call is safe to repeat with the same ids")]
    Lost {
        /// What ended it.
        reason: String,
    },
    /// No answer in time; the request may or may not have been carried out.
    #[error(
        "no answer within {after:?}{}; the node is slow or unreachable, and the call is safe to repeat with the same ids",
        earlier(.refusal.as_deref())
    )]
    Timeout {
        /// How long the call was tried.
        after: Duration,
        /// The last answer that an earlier try of the same call had: a temporary no.
        refusal: Option<Box<Refusal>>,
    },
    /// The server's answer was no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The task ended without a result.
    #[error("task {} {}: {}", .0.id, .0.state, .0.reason())]
    NotSucceeded(Box<Outcome>),
    /// The peer sent bytes that are not this protocol; the connection was closed.
    #[error("the peer does not speak this protocol: {0}. Check that the port is the binary port, not HTTP")]
    Protocol(String),
    /// A payload or result is not what the caller expected.
    #[error("cannot decode: {0}")]
    Decode(String),
}

impl Error {
    /// The stable code, if the server (or this library in its place) refused.
    #[must_use]
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Refused(refusal) => Some(refusal.code),
            _ => None,
        }
    }

    /// When to try again, if the server said so.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused(refusal) => refusal.retry_after,
            _ => None,
        }
    }

    pub(crate) fn timeout(after: Duration) -> Self {
        Self::Timeout { after, refusal: None }
    }

    pub(crate) fn lost(reason: impl Into<String>) -> Self {
        Self::Lost { reason: reason.into() }
    }

    pub(crate) fn no_partition(partition: PartitionId, partitions: usize) -> Self {
        Self::Refused(Refusal::local(
            Code::WrongPartition,
            format!("partition {partition} does not exist: this cluster has {partitions}; the id is from elsewhere"),
        ))
    }

    pub(crate) fn unknown_task(id: TaskId) -> Self {
        Self::Refused(Refusal::local(
            Code::UnknownTask,
            format!("no task {id}: it never existed or its retention is over"),
        ))
    }
}

impl From<body::Malformed> for Error {
    fn from(malformed: body::Malformed) -> Self {
        Self::Protocol(malformed.to_string())
    }
}

impl From<FrameError> for Error {
    fn from(error: FrameError) -> Self {
        Self::Protocol(error.to_string())
    }
}

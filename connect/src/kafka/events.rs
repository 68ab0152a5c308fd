//! Events: what happened to tasks, as messages of a topic, in order per task.
//!
//! A leader gives the events of its partition in batches, each with the numbers that it begins and ends at. Of two deliveries one is
//! chosen: exactly once, where a batch and the position behind it are one transaction, or at least once, where a consumer passes over
//! numbers that it has seen.

mod exactly;
mod message;
mod positions;
mod producer;
mod settings;
mod sink;
mod standing;
mod status;

pub use message::MESSAGE_BYTES_MAX;
pub use settings::{Delivery, KeyOf, Settings};
pub use sink::{Given, produce};
pub use standing::{EventsStanding, PositionsStanding, standing};
pub use status::Status;

pub use crate::place::Place;

/// What a leader asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Where a partition stands; earlier terms send no more from here on.
    Open {
        /// The cluster.
        cluster: u128,
        /// The partition.
        partition: u16,
        /// The leader's term.
        term: u64,
        /// All events up to this number are known to be sent.
        sent: u64,
    },
    /// To send what follows.
    Batch(Batch),
}

impl Request {
    pub(super) const fn cluster(&self) -> u128 {
        match self {
            Self::Open { cluster, .. } => *cluster,
            Self::Batch(batch) => batch.cluster,
        }
    }

    /// The partition it is about.
    #[must_use]
    pub const fn partition(&self) -> u16 {
        match self {
            Self::Open { partition, .. } => *partition,
            Self::Batch(batch) => batch.partition,
        }
    }

    pub(super) const fn term(&self) -> u64 {
        match self {
            Self::Open { term, .. } => *term,
            Self::Batch(batch) => batch.term,
        }
    }

    /// Up to which number everything is known to be sent.
    pub(super) const fn sent(&self) -> u64 {
        match self {
            Self::Open { sent, .. } => *sent,
            Self::Batch(batch) => batch.from,
        }
    }
}

/// Events of one partition. Sent only when the partition stands at `from` and no later term has sent; then it stands at `to`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The cluster.
    pub cluster: u128,
    /// The partition.
    pub partition: u16,
    /// The leader's term.
    pub term: u64,
    /// Where the partition must stand.
    pub from: u64,
    /// Where it stands afterwards.
    pub to: u64,
    /// The events, ascending by number.
    pub events: Vec<Event>,
    /// What their tasks have in common.
    pub labels: Vec<Labels>,
    /// Texts and results.
    pub bytes: Vec<u8>,
}

/// What kind of task it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labels {
    /// Namespace of the queue.
    pub namespace: String,
    /// Queue.
    pub queue: String,
    /// Kind.
    pub kind: String,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The task was accepted.
    Submitted,
    /// An attempt ended without success, and another follows.
    AttemptFailed,
    /// It is unfinished again, because somebody asked for it.
    Retried,
    /// It succeeded.
    Completed,
    /// It failed for good.
    Failed,
    /// It was cancelled.
    Cancelled,
    /// Its deadline passed.
    Expired,
    /// An attempt began.
    Started,
}

impl Change {
    /// Its name in messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Submitted => "submitted",
            Self::AttemptFailed => "attempt_failed",
            Self::Retried => "retried",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
            Self::Started => "started",
        }
    }
}

/// An event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its number within the partition.
    pub number: u64,
    /// The task's id, as people see it.
    pub task: String,
    /// What happened.
    pub change: Change,
    /// When, in microseconds since 1970.
    pub at_us: u64,
    /// The attempt that began or ended, else how many had begun.
    pub attempt: u32,
    /// What is known of the task beside that, unless it is forgotten.
    pub details: Option<Details>,
}

/// What is known of an event's task.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// Index in [`Batch::labels`].
    pub labels: u32,
    /// The workflow's id, or nothing.
    pub workflow: String,
    /// Step name.
    pub step: Place,
    /// Concurrency key.
    pub key: Place,
    /// Of a task that succeeded.
    pub result: Option<Place>,
    /// Code of the failure,
    pub error_code: Place,
    /// and its message.
    pub error: Place,
}

/// The answer to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// All up to this number is sent, and nothing behind.
    Upto(u64),
    /// A later term sends.
    Overtaken,
}

/// Takes answers. Must not block.
pub trait Answers: Send {
    /// The answer to a request about a partition, given in a term.
    fn sent(&self, by: usize, partition: u16, term: u64, sent: Sent);
}

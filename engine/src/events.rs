//! Events: what happened to tasks, for who follows them in a topic outside: numbered within a partition, in the order of its log.
//!
//! Which partition's events go out next, and how they come by the answers, is in `shard/events.rs`.

use taskmaster_protocol::body::Span;
use taskmaster_protocol::{PartitionId, TaskId};

/// That events go out, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Events {
    /// KiB of a partition's events that wait at most, with the final tasks that are kept for them; beyond it the oldest events are
    /// dropped, which shows as a gap in their numbers.
    pub waiting_kib_max: u32,
    /// Whether that attempts begin is told too: for that alone the log has records of leases.
    pub starts: bool,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Change {
    /// The task was accepted.
    Submitted = 0,
    /// An attempt ended without success, and another follows.
    AttemptFailed = 1,
    /// It is unfinished again, because somebody asked for it.
    Retried = 2,
    /// It succeeded.
    Completed = 3,
    /// It failed for good.
    Failed = 4,
    /// It was cancelled.
    Cancelled = 5,
    /// Its deadline passed.
    Expired = 6,
    /// An attempt began: a worker has it.
    Started = 7,
}

impl Change {
    const ALL: [Self; 8] = [
        Self::Submitted,
        Self::AttemptFailed,
        Self::Retried,
        Self::Completed,
        Self::Failed,
        Self::Cancelled,
        Self::Expired,
        Self::Started,
    ];

    /// The change with this number.
    pub(crate) fn from_number(number: u16) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// Its number.
    pub(crate) const fn number(self) -> u16 {
        self as u16
    }
}

/// What a leader has for the topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ForTopic {
    /// Where does the partition stand? Earlier terms send no more from here on.
    Open {
        /// The cluster.
        cluster: u128,
        /// The partition.
        partition: PartitionId,
        /// The leader's term.
        term: u64,
        /// All events up to this number are known to be sent.
        sent: u64,
    },
    /// Events to send.
    Batch(Batch),
}

/// Events of one partition. To be sent only if it stands at `from` and no later term has sent.
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
    /// The events.
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

/// An event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its number within the partition.
    pub number: u64,
    /// The task.
    pub id: TaskId,
    /// What happened.
    pub change: Change,
    /// When, in microseconds since 1970.
    pub at_us: u64,
    /// Attempts that had ended by then, without one that is interrupted; of an attempt's start or end, its own number.
    pub attempt: u32,
    /// What else is known of the task, unless it is forgotten.
    pub details: Option<Details>,
}

/// What is known of an event's task when the event goes out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// Index in [`Batch::labels`].
    pub labels: u32,
    /// The workflow, or the default.
    pub workflow: TaskId,
    /// Step name.
    pub step: Span,
    /// Concurrency key.
    pub key: Span,
    /// Of a task that succeeded.
    pub result: Option<Span>,
    /// Of a failure that is still the latest: code and message.
    pub error: [Span; 2],
}

//! What the leader of a partition hands to the store outside, and what it hears from there.
//!
//! A partition's final tasks are numbered in the order in which their retention began. Batches go out in that order, one at a time
//! per partition, each from the number where the one before ended: the store takes a batch only from where it stands, so that none
//! counts twice, and only from the latest term. Numbers may be missing: those of tasks that were retried since.

use taskmaster_protocol::body::Span;
use taskmaster_protocol::memo::Key;
use taskmaster_protocol::state::Address;
use taskmaster_protocol::{PartitionId, TaskId};

use crate::state::State;

/// How final tasks are checkpointed: the same on all nodes of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoints {
    /// Final tasks of a partition that wait for their checkpoint at most; beyond it they are forgotten without one. Not 0.
    pub waiting_max: u32,
    /// Their payloads and results, in KiB.
    pub waiting_kib_max: u32,
    /// How long a checkpointed task is kept in memory, in milliseconds; shorter if its retention is.
    pub kept_ms: u32,
}

/// Bounds of a batch: it ends with the first task that reaches one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchBounds {
    /// Partitions of which fewer tasks wait send nothing.
    pub tasks_min: u32,
    /// Tasks.
    pub tasks: usize,
    /// Bytes of payloads, results and texts.
    pub bytes: usize,
}

/// From a leader to the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ForStore {
    /// A leadership begins: the store answers where the partition stands, and takes nothing of earlier terms from here on.
    Open {
        /// The cluster.
        cluster: u128,
        /// The partition.
        partition: PartitionId,
        /// The leader's term.
        term: u64,
    },
    /// What follows the last answer.
    Batch(Batch),
}

/// Final tasks of one partition, in the order of their numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The cluster.
    pub cluster: u128,
    /// The partition.
    pub partition: u16,
    /// The leader's term.
    pub term: u64,
    /// The store has all up to this number,
    pub from: u64,
    /// and with this batch up to this one.
    pub to: u64,
    /// The tasks.
    pub tasks: Vec<FinalTask>,
    /// The contracts that the tasks refer to.
    pub contracts: Vec<BatchContract>,
    /// Queues whose settings the store was not told in this leadership, or that changed since.
    pub queues: Vec<BatchQueue>,
    /// Chunks of states, of these tasks or of the next one, that the store was not told for this day in this leadership.
    pub chunks: Vec<BatchChunk>,
    /// The latest day on which a task ended that names them, in days since 1970: they are kept as long as its tasks.
    pub chunks_day: u32,
    /// Byte area.
    pub bytes: Vec<u8>,
}

/// What tasks have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchContract {
    /// Its canonical bytes: its identity, and all of it.
    pub canonical: Box<[u8]>,
    /// Namespace of its queue.
    pub namespace: String,
    /// Its queue.
    pub queue: String,
    /// Its kind.
    pub kind: String,
    /// Its priority class.
    pub priority: u8,
    /// Attempts in all.
    pub attempts_max: u16,
    /// Its attempts may be ended and begun again.
    pub restartable: bool,
}

/// A final task. Times are microseconds since 1970, 0 where they are not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FinalTask {
    /// Its id.
    pub id: TaskId,
    /// Its workflow's, or zero.
    pub workflow: TaskId,
    /// Its number.
    pub number: u64,
    /// When its last attempt began: known to the leader that assigned it, and of some tasks only.
    pub started_us: u64,
    /// When it became final.
    pub finished_us: u64,
    /// Its deadline.
    pub deadline_us: u64,
    /// Its contract in [`Batch::contracts`].
    pub contract: u32,
    /// Attempts begun.
    pub attempts: u32,
    /// Attempts that failed.
    pub failures: u16,
    /// How it ended.
    pub state: State,
    /// It missed a deadline that only flags.
    pub is_late: bool,
    /// Step name.
    pub name: Span,
    /// Last failure: code, message, end of the log.
    pub error: [Span; 3],
    /// Payload; of a succeeded task its result.
    pub blob: Span,
    /// What it saved.
    pub saved: Option<Box<SavedState>>,
    /// What few tasks have.
    pub particulars: Option<Box<Particulars>>,
}

/// What few tasks have. Times are microseconds since 1970, 0 for none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Particulars {
    /// It did not run: its outcome is that of this task, or zero,
    pub memo_of: TaskId,
    /// which ended then.
    pub memo_us: u64,
    /// Of a memoised task: what identifies its kind, version and payload.
    pub memo_key: Option<Key>,
    /// Unique key, as it was given; of a memoised task none.
    pub unique: Span,
    /// Until when it holds the unique key although final.
    pub unique_until_us: u64,
    /// It is the one that holds its unique key, or a memoised task's.
    pub holds_key: bool,
    /// Concurrency key, as it was given,
    pub key: Span,
    /// and most leases at once under it.
    pub key_limit: u32,
    /// Failures before it was retried by hand.
    pub forgiven: u16,
    /// Last progress note, as the leader knew it,
    pub note: Span,
    /// and progress in parts per thousand.
    pub done_permille: u32,
}

/// A chunk of states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchChunk {
    /// Its digest.
    pub digest: Address,
    /// Its bytes; on the way back none if the same task had it before.
    pub bytes: Span,
}

/// The state of a task: its versions, and what they are made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SavedState {
    /// Payload of a task that succeeded: one that saved state may be forked.
    pub input: Span,
    /// Digests of the chunks that the versions are made of, each once.
    pub chunks: Vec<Address>,
    /// The versions; their pieces are places in `chunks`.
    pub history: SavedHistory,
}

impl SavedState {
    /// What it weighs beside the bytes of chunks.
    pub(crate) fn bytes(&self) -> usize {
        let pieces: usize = self.history.versions.iter().map(|version| version.pieces.len()).sum();
        size_of_val(self.chunks.as_slice()) + self.history.versions.len() * size_of::<SavedVersion>() + pieces * 4
    }
}

/// The versions of a task's state that are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SavedHistory {
    /// The branch from which attempts resume.
    pub current: String,
    /// Versions ever made.
    pub made: u32,
    /// The versions, ascending.
    pub versions: Vec<SavedVersion>,
}

/// A version of the state that a task saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedVersion {
    /// Its number.
    pub number: u32,
    /// The version it follows, which may have gone; 0: none.
    pub parent: u32,
    /// The attempt that saved it.
    pub attempt: u32,
    /// When it was saved.
    pub time_us: u64,
    /// Bytes of the state,
    pub bytes: u64,
    /// and those that nobody in the partition had before.
    pub new_bytes: u64,
    /// Digest of the state.
    pub digest: Address,
    /// Label.
    pub label: String,
    /// Branches of which it is the head,
    pub branches: Vec<String>,
    /// and tags that name it.
    pub tags: Vec<String>,
    /// The chunks that make it up, in order, as places in a list of chunks.
    pub pieces: Vec<u32>,
}

/// A queue of the partition, and what operators configured of it. Limits of 0 are none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchQueue {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub queue: String,
    /// Nothing is assigned.
    pub paused: bool,
    /// Nothing new is taken.
    pub draining: bool,
    /// Starts per second, in thousandths,
    pub rate_milli_per_s: u64,
    /// and at once after idleness.
    pub rate_burst: u32,
    /// Leases at once.
    pub concurrency: u32,
    /// Unfinished tasks.
    pub depth_max: u64,
    /// How long final tasks are kept, in milliseconds.
    pub retention_ms: u32,
    /// Tasks are flagged at their deadline instead of expired.
    pub flags_deadlines: bool,
    /// The policy of its order, by name.
    pub policy: String,
    /// Tasks whose deadline is less likely to be met are refused, in parts per thousand.
    pub refuse_permille: u16,
    /// What is not done to attempts of restartable tasks: the protocol's bits.
    pub restarts_off: u8,
    /// Its part of the workers that it shares.
    pub weight: u16,
}

/// What comes back from the store to a partition that lost all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromStore {
    /// Queues with their settings: before the tasks, whose retention they decide.
    Queues {
        /// The partition.
        partition: PartitionId,
        /// The queues.
        queues: Vec<BatchQueue>,
    },
    /// Final tasks.
    Tasks(Batch),
    /// Versions of states of tasks that came back before.
    States(States),
}

/// Versions of states of one partition, some of each task at a time, ascending.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct States {
    /// The partition.
    pub partition: u16,
    /// What each task has here. Pieces are places in `chunks`.
    pub histories: Vec<(TaskId, SavedHistory)>,
    /// The chunks.
    pub chunks: Vec<BatchChunk>,
    /// Byte area.
    pub bytes: Vec<u8>,
}

/// How much of a partition is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holding {
    /// The number of its last final task.
    pub last_number: u64,
    /// Versions of states.
    pub versions: u64,
    /// Whether all that was given to it is carried out.
    pub is_settled: bool,
}

/// What the store says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// It has all up to this number of the partition, and nothing behind.
    Upto(u64),
    /// A leader of a later term writes.
    Overtaken,
}

//! Versioned state of tasks: saving under a lease, changing the history, reading.

use rkyv::{Archive, Deserialize, Serialize};

use super::{ExceptionRow, Span};
use crate::TaskId;

/// Versions of running tasks' state, all of the frame's partition.
#[derive(Clone, Debug, Default, Archive, Serialize, Deserialize)]
pub struct SaveState {
    /// The saves.
    pub rows: Vec<SaveRow>,
    /// What the states are made of.
    pub segments: Vec<Segment>,
    /// Byte area: labels and new chunks.
    pub bytes: Vec<u8>,
}

/// One save under a lease: 88 bytes.
#[derive(Clone, Copy, Debug, Default, Archive, Serialize, Deserialize)]
pub struct SaveRow {
    /// The task.
    pub id: TaskId,
    /// Fencing token of the lease.
    pub token: u64,
    /// Locator of the lease.
    pub locator: u32,
    /// Attempt of the lease.
    pub attempt: u32,
    /// The version it follows; 0: none.
    pub parent: u32,
    /// Zero.
    pub reserved: u32,
    /// BLAKE3 of the BLAKE3 hashes of its chunks, one behind the other.
    pub digest: [u8; 32],
    /// A word or two for people (UTF-8).
    pub label: Span,
    /// Its pieces in order, as a span of `segments` counted in elements.
    pub segments: Span,
}

/// A piece of a state: a run of chunks of the parent version, or one new chunk.
#[derive(Clone, Copy, Debug, Default, Archive, Serialize, Deserialize)]
pub struct Segment {
    /// First chunk of the run.
    pub from: u32,
    /// Chunks of the run; 0: a new chunk.
    pub count: u32,
    /// The new chunk in the byte area; it may also be one that the server has.
    pub data: Span,
}

/// The answer to saves and changes of state: versions by row, and the rows that were not carried out.
#[derive(Clone, Debug, Default, Archive, Serialize, Deserialize)]
pub struct StateReply {
    /// By row: the version concerned, for pruning how many versions went; 0 for exceptions.
    pub versions: Vec<u32>,
    /// Rows that were not carried out, in row order.
    pub exceptions: Vec<ExceptionRow>,
}

/// What [`ChangeState::verb`] may be.
pub mod state_verb {
    /// A branch `name` at `version`; an existing one moves there.
    pub const BRANCH: u32 = 1;
    /// `name` is the branch from which attempts resume.
    pub const SWITCH: u32 = 2;
    /// The branch `name` goes; its versions stay.
    pub const DELETE_BRANCH: u32 = 3;
    /// The head of the current branch moves to `version`.
    pub const ROLLBACK: u32 = 4;
    /// The tag `name` names `version` from here on.
    pub const TAG: u32 = 5;
    /// The tag `name` goes.
    pub const UNTAG: u32 = 6;
    /// Versions go that are neither heads nor tagged nor among the `keep` latest on the way to a head.
    pub const PRUNE: u32 = 7;
    /// As rollback, and a final task runs again.
    pub const RESUME: u32 = 8;
    /// A new task `to` with the contract and payload of this one, whose history begins with `version`.
    pub const FORK: u32 = 9;
}

/// Changes the history of one task's state.
#[derive(Clone, Debug, Default, Archive, Serialize, Deserialize)]
pub struct ChangeState {
    /// The task.
    pub id: TaskId,
    /// Fork: id of the new task, made by the client, of the same partition.
    pub to: TaskId,
    /// What to do: one of [`state_verb`].
    pub verb: u32,
    /// The version meant; 0: the head of the current branch.
    pub version: u32,
    /// Prune: versions kept on each branch, its head included.
    pub keep: u32,
    /// Zero.
    pub reserved: u32,
    /// Branch or tag (UTF-8).
    pub name: Span,
    /// Byte area.
    pub bytes: Vec<u8>,
}

/// A new workflow with the rows of an old one. Rows that succeeded and do not depend on the row `at` are taken over with their
/// results; that row and all others run.
#[derive(Clone, Debug, Default, Archive, Serialize, Deserialize)]
pub struct ForkWorkflow {
    /// The workflow.
    pub id: TaskId,
    /// Id of the new one, made by the client, of the same partition.
    pub to: TaskId,
    /// Ids of the new one's tasks, by row.
    pub tasks: Vec<TaskId>,
    /// The row to begin at.
    pub at: u32,
    /// Zero.
    pub reserved: u32,
}

/// The versions of one task's state that are kept, in ascending order, with branches and tags.
#[derive(Clone, Debug, Default, Archive, Serialize, Deserialize)]
pub struct StateHistory {
    /// The versions.
    pub versions: Vec<VersionRow>,
    /// Branches and tags.
    pub names: Vec<VersionName>,
    /// The branch from which attempts resume (UTF-8).
    pub current: Span,
    /// The version at its head; 0: none was saved.
    pub head: u32,
    /// Versions ever made.
    pub made: u32,
    /// Byte area.
    pub bytes: Vec<u8>,
}

/// One version.
#[derive(Clone, Copy, Debug, Default, Archive, Serialize, Deserialize)]
pub struct VersionRow {
    /// BLAKE3 of the BLAKE3 hashes of its chunks, one behind the other.
    pub digest: [u8; 32],
    /// When it was saved, in microseconds since 1970.
    pub time_us: u64,
    /// Its length, in bytes.
    pub size: u64,
    /// Bytes that no other version or task of the partition had when it was saved.
    pub new_bytes: u64,
    /// Its number within the task, from 1.
    pub number: u32,
    /// The version it follows, which may have gone; 0: none.
    pub parent: u32,
    /// The attempt that saved it.
    pub attempt: u32,
    /// Its chunks.
    pub chunks: u32,
    /// Label (UTF-8).
    pub label: Span,
}

/// A branch or a tag.
#[derive(Clone, Copy, Debug, Default, Archive, Serialize, Deserialize)]
pub struct VersionName {
    /// Name (UTF-8).
    pub name: Span,
    /// The version it names.
    pub version: u32,
    /// 0: a branch, of which it is the head; 1: a tag.
    pub kind: u32,
}

/// Asks for chunks of one version.
#[derive(Clone, Copy, Debug, Default, Archive, Serialize, Deserialize)]
pub struct ReadState {
    /// The task.
    pub id: TaskId,
    /// The version; 0: the head of the current branch.
    pub version: u32,
    /// First chunk.
    pub from: u32,
}

/// Chunks of one version, as many as fit an answer.
#[derive(Clone, Debug, Default, Archive, Serialize, Deserialize)]
pub struct StatePage {
    /// The version.
    pub version: VersionRow,
    /// First chunk here.
    pub from: u32,
    /// Zero.
    pub reserved: u32,
    /// Lengths of the chunks here, in bytes.
    pub lengths: Vec<u32>,
    /// Their bytes, one behind the other.
    pub bytes: Vec<u8>,
}

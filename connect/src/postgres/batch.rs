//! What is checkpointed: final tasks of one partition, in the order of their numbers.

pub use crate::place::Place;

/// What a leader asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Where a partition stands; earlier terms write no more from here on.
    Open {
        /// The cluster.
        cluster: u128,
        /// The partition.
        partition: u16,
        /// The leader's term.
        term: u64,
    },
    /// To store what follows.
    Batch(Batch),
}

impl Request {
    /// The partition it is about.
    #[must_use]
    pub const fn partition(&self) -> u16 {
        match self {
            Self::Open { partition, .. } => *partition,
            Self::Batch(batch) => batch.partition,
        }
    }

    pub(super) const fn cluster(&self) -> u128 {
        match self {
            Self::Open { cluster, .. } => *cluster,
            Self::Batch(batch) => batch.cluster,
        }
    }

    pub(super) const fn term(&self) -> u64 {
        match self {
            Self::Open { term, .. } => *term,
            Self::Batch(batch) => batch.term,
        }
    }
}

/// Final tasks of one partition. Taken only when the partition stands at `from` and no later term has written; then it stands at `to`.
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
    /// The tasks.
    pub tasks: Vec<FinalTask>,
    /// What the tasks have in common.
    pub contracts: Vec<Contract>,
    /// Queues whose settings may have changed.
    pub queues: Vec<QueueSetting>,
    /// Chunks of states that these tasks or later ones need, each once.
    pub chunks: Vec<StateChunk>,
    /// The latest day of tasks that need them, in days since 1970: they are kept as long.
    pub chunks_day: u32,
    /// Texts and blobs.
    pub bytes: Vec<u8>,
}

impl Batch {
    /// What lies at a place; nothing where there is none.
    pub(super) fn slice(&self, place: Place) -> &[u8] {
        let bytes = self.bytes.get(place.at as usize..).and_then(|rest| rest.get(..place.len as usize));
        bytes.unwrap_or_default()
    }
}

/// A contract: its canonical bytes are its identity, the rest makes them readable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contract {
    /// Identity, and all that is needed to make the contract again.
    pub canonical: Box<[u8]>,
    /// Namespace of the queue.
    pub namespace: String,
    /// Queue.
    pub queue: String,
    /// Kind.
    pub kind: String,
    /// Priority class.
    pub priority: u8,
    /// Attempts in all.
    pub attempts_max: u16,
    /// Attempts may be ended and begun again.
    pub restartable: bool,
}

/// A final task. Times are microseconds since 1970, 0 for none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FinalTask {
    /// Id.
    pub id: u128,
    /// Workflow, or 0.
    pub workflow: u128,
    /// Number within the partition.
    pub number: u64,
    /// When the last attempt began, as far as known.
    pub started_us: u64,
    /// When it became final.
    pub finished_us: u64,
    /// Deadline.
    pub deadline_us: u64,
    /// Index in [`Batch::contracts`].
    pub contract: u32,
    /// Attempts begun.
    pub attempts: u32,
    /// Attempts that failed.
    pub failures: u16,
    /// How it ended: the protocol's number.
    pub state: u8,
    /// It ended with success: `blob` is its result, else its payload.
    pub succeeded: bool,
    /// It missed a deadline that only flags.
    pub late: bool,
    /// Step name.
    pub name: Place,
    /// Code of the last failure,
    pub error_code: Place,
    /// its message,
    pub error: Place,
    /// and the end of its log.
    pub log_tail: Place,
    /// Payload or result.
    pub blob: Place,
    /// What it saved.
    pub saved: Option<Box<SavedState>>,
    /// What few tasks have.
    pub particulars: Option<Box<Particulars>>,
}

/// What few tasks have. Times are microseconds since 1970, 0 for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Particulars {
    /// The task whose outcome it has without having run, or 0,
    pub memo_of: u128,
    /// and when that one ended.
    pub memo_us: u64,
    /// What identifies kind, version and payload of a memoised task.
    pub memo_key: Option<[u8; 32]>,
    /// Unique key.
    pub unique: Place,
    /// Until when it holds that although final.
    pub unique_until_us: u64,
    /// It is the one that holds its unique key, or a memoised task's.
    pub holds_key: bool,
    /// Concurrency key,
    pub key: Place,
    /// and most leases at once under it.
    pub key_limit: u32,
    /// Failures before it was retried by hand.
    pub forgiven: u16,
    /// Last progress note,
    pub note: Place,
    /// and progress in parts per thousand.
    pub done_permille: u32,
}

/// A chunk of states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateChunk {
    /// Its digest.
    pub digest: [u8; 32],
    /// Its bytes; on the way back none if the same task had it before.
    pub bytes: Place,
}

/// The state of a task: its versions, and what they are made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SavedState {
    /// Payload of a task that succeeded.
    pub input: Place,
    /// Digests of the chunks that the versions are made of, each once.
    pub chunks: Vec<[u8; 32]>,
    /// The versions; their pieces are places in `chunks`.
    pub history: SavedHistory,
}

/// The versions of a task's state.
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SavedVersion {
    /// Its number.
    pub number: u32,
    /// The version it follows, or 0.
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
    pub digest: [u8; 32],
    /// Label.
    pub label: String,
    /// Branches of which it is the head,
    pub branches: Vec<String>,
    /// and tags that name it.
    pub tags: Vec<String>,
    /// The chunks that make it up, in order, as places in a list of chunks.
    pub pieces: Vec<u32>,
}

/// Versions of states that come back to one partition, some of each task at a time, ascending.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct States {
    /// The partition.
    pub partition: u16,
    /// Ids, and what each task has here. Pieces are places in `chunks`.
    pub histories: Vec<(u128, SavedHistory)>,
    /// The chunks.
    pub chunks: Vec<StateChunk>,
    /// Bytes of chunks.
    pub bytes: Vec<u8>,
}

/// What comes back of a cluster whose disks are lost, of one partition each: tasks, and versions of the states of such as came before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Returning {
    /// Final tasks.
    Tasks(Batch),
    /// Their states.
    States(States),
}

/// The settings of a queue. Limits of 0 are none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueSetting {
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

/// The answer to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// All up to this number is stored, and nothing behind.
    Upto(u64),
    /// A later term writes.
    Overtaken,
}

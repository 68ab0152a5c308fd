//! Every limit of the protocol, with the relations between them checked at compile time.

/// Protocol version spoken by this build.
pub const PROTOCOL_VERSION: u8 = 1;
/// Largest payload of one task, in bytes.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 20;
/// Largest result of one task, in bytes.
pub const RESULT_BYTES_MAX: usize = 1 << 20;
/// Largest frame body, in bytes.
pub const BODY_BYTES_MAX: usize = 16 << 20;
/// Largest number of rows (tasks, completions, ...) in one frame.
pub const ROWS_MAX: usize = 100_000;
/// Largest number of specs in one submit frame.
pub const SPECS_MAX: usize = 4_096;
/// Longest queue, kind, namespace or resource name, in bytes.
pub const NAME_BYTES_MAX: usize = 128;
/// Most sets of resources with which a task runs as well as with its first.
pub const ALTERNATIVES_MAX: usize = 4;
/// Longest unique or concurrency key, in bytes.
pub const KEY_BYTES_MAX: usize = 512;
/// Longest error text or code kept for a failed attempt, in bytes.
pub const ERROR_BYTES_MAX: usize = 4_096;
/// Longest log tail kept for a failed attempt, in bytes.
pub const LOG_TAIL_BYTES_MAX: usize = 64 << 10;
/// Largest number of attempts a retry policy may ask for.
pub const ATTEMPTS_MAX: u16 = 10_000;
/// Longest lease, in milliseconds (one day).
pub const LEASE_MS_MAX: u32 = 86_400_000;
/// Shortest lease, in milliseconds.
pub const LEASE_MS_MIN: u32 = 100;
/// Largest number of queues one connection may subscribe to.
pub const SUBSCRIPTIONS_MAX: usize = 256;
/// Largest credit a worker may hold on one connection, in tasks.
pub const CREDIT_MAX: u32 = 1 << 20;
/// Largest number of partitions in a cluster.
pub const PARTITIONS_MAX: u16 = 4_096;
/// Largest state of one task, in bytes: a save of it fits a frame even if nothing of it is known to the server.
pub const STATE_BYTES_MAX: usize = 8 << 20;
/// Largest chunk of a state, in bytes.
pub const STATE_CHUNK_BYTES_MAX: usize = 8 << 10;
/// Largest number of chunks of one state.
pub const STATE_CHUNKS_MAX: usize = 16 << 10;
/// Versions kept of one task's state; beyond it the oldest that is neither a head nor tagged goes.
pub const STATE_VERSIONS_MAX: usize = 1_024;
/// Chunks that the versions kept of one task's state may refer to in all; beyond it versions go likewise.
pub const STATE_REFERENCES_MAX: usize = 1 << 20;
/// Largest number of branches of one task's state.
pub const STATE_BRANCHES_MAX: usize = 64;
/// Largest number of tags of one task's state.
pub const STATE_TAGS_MAX: usize = 256;
/// Longest label of a version, in bytes.
pub const LABEL_BYTES_MAX: usize = 256;
/// Largest number of bytes in one answer about a state.
pub const STATE_PAGE_BYTES_MAX: usize = 4 << 20;
/// Longest name of a stream's topic, in bytes.
pub const TOPIC_BYTES_MAX: usize = 249;
/// Most positions of streams in one partition.
pub const STREAMS_MAX: usize = 4_096;
/// Largest weight of a queue.
pub const WEIGHT_MAX: u16 = 1_000;
/// Delays and deadlines reach at most this far ahead, in milliseconds (ten years).
pub const HORIZON_MS_MAX: u64 = 10 * 365 * 86_400_000;

const _: () = assert!(PAYLOAD_BYTES_MAX < BODY_BYTES_MAX);
const _: () = assert!(RESULT_BYTES_MAX < BODY_BYTES_MAX);
// Beside its bytes a save has 16 bytes for each chunk.
const _: () = assert!(STATE_BYTES_MAX + 16 * STATE_CHUNKS_MAX + 4_096 < BODY_BYTES_MAX);
const _: () = assert!(STATE_CHUNK_BYTES_MAX <= STATE_PAGE_BYTES_MAX && STATE_PAGE_BYTES_MAX < BODY_BYTES_MAX);
const _: () = assert!(STATE_CHUNKS_MAX <= STATE_REFERENCES_MAX);
const _: () = assert!(ROWS_MAX * 64 < BODY_BYTES_MAX);
const _: () = assert!(LEASE_MS_MIN < LEASE_MS_MAX);

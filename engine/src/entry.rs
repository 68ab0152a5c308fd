//! Commands: what a group's log entries hold. Each is a 16-byte header and the wire body that was admitted, unchanged,
//! padded to 16; those that were admitted in one turn lie one behind the other in one entry.
//!
//! ```text
//! offset size field
//!      0    2 operation   as in the protocol; 0x100: settings of the partition; 0x101: how far it is checkpointed;
//!                        0x103: final tasks from the store; 0x104: a submission with remembered results;
//!                        0x105: how many of its events are sent; 0x106: attempts that began;
//!                        0x107: versions of states from the store
//!      2    2 flags       bit 0: the request was a resend
//!      4    4 body_len    bytes
//!      8    8 time_us     when it was admitted, microseconds since 1970; never decreasing within a partition
//! ```
//! Positions, checksums and chaining are the log's business.

use taskmaster_protocol::{FrameBuffer, Operation, PartitionId, TaskId};

/// Bytes of a command's header.
pub const COMMAND_HEADER_BYTES: usize = 16;
/// The number of settings among the operations.
const SETTINGS: u16 = 0x100;
/// The number of checkpointed among the operations.
const CHECKPOINTED: u16 = 0x101;
/// The number of restored among the operations: its records are those of a snapshot's state, and it changes with that.
const RESTORED: u16 = 0x103;
/// The number of submissions with remembered results among the operations.
const KNOWN: u16 = 0x104;
/// The number of sent among the operations.
const SENT: u16 = 0x105;
/// The number of started among the operations.
const STARTED: u16 = 0x106;
/// The number of restored states among the operations: some of its records are those of a snapshot's state, and it changes with them.
const RESTORED_STATES: u16 = 0x107;

/// What a command does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    /// What a client asked for, or the engine's own expiry.
    Operation(Operation),
    /// The leader's settings, so that all replicas have the same: body [`Settings`].
    Settings,
    /// All final tasks up to a number are in the store outside: body [`checkpointed_bytes`].
    Checkpointed,
    /// Final tasks come back from the store: body a chunk of a snapshot.
    Restored,
    /// Versions of their states come back: body [`crate::snapshot::restored::states`].
    RestoredStates,
    /// A client's submission, with results that a store outside remembered: body [`crate::memo::known`].
    Known,
    /// All events up to a number are in the topic outside: body [`checkpointed_bytes`].
    Sent,
    /// Attempts began: body [`put_start`] for each. Changes no task; it is there to be told.
    Started,
}

/// What a partition's replicas must agree on and nodes are configured with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    /// How long queues that are not configured keep final tasks, in milliseconds.
    pub(crate) retention_ms: u32,
    /// Final tasks kept at most.
    pub(crate) kept_max: u32,
    /// Final tasks that wait for their checkpoint at most, beyond which they are forgotten without; 0: there are no checkpoints.
    pub(crate) waiting_max: u32,
    /// The same in KiB.
    pub(crate) waiting_kib_max: u32,
    /// How long a checkpointed task is kept at most, in milliseconds.
    pub(crate) checkpointed_kept_ms: u32,
    /// KiB of events that wait at most; 0: there are none.
    pub(crate) events_kib_max: u32,
}

/// Bytes of [`Settings`].
pub(crate) const SETTINGS_BYTES: usize = 24;

impl Settings {
    pub(crate) fn bytes(self) -> [u8; SETTINGS_BYTES] {
        let mut bytes = [0; SETTINGS_BYTES];
        let fields = [
            self.retention_ms,
            self.kept_max,
            self.waiting_max,
            self.waiting_kib_max,
            self.checkpointed_kept_ms,
            self.events_kib_max,
        ];
        for (place, field) in bytes.chunks_exact_mut(4).zip(fields) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }

    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.first_chunk::<SETTINGS_BYTES>()?;
        let mut fields =
            bytes.chunks_exact(4).map(|field| u32::from_le_bytes([field[0], field[1], field[2], field[3]]));
        Some(Self {
            retention_ms: fields.next()?,
            kept_max: fields.next()?,
            waiting_max: fields.next()?,
            waiting_kib_max: fields.next()?,
            checkpointed_kept_ms: fields.next()?,
            events_kib_max: fields.next()?,
        })
    }
}

/// An attempt that began, as [`Verb::Started`] has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Start {
    pub(crate) id: TaskId,
    /// Where the leader has the task.
    pub(crate) locator: u32,
    pub(crate) attempt: u32,
}

/// Bytes of a [`Start`].
pub(crate) const START_BYTES: usize = 24;

/// Appends to the body of [`Verb::Started`].
pub(crate) fn put_start(out: &mut FrameBuffer, start: Start) {
    out.extend_from_slice(&start.id.hi.to_le_bytes());
    out.extend_from_slice(&start.id.lo.to_le_bytes());
    out.extend_from_slice(&start.locator.to_le_bytes());
    out.extend_from_slice(&start.attempt.to_le_bytes());
}

/// The body of [`Verb::Started`]; `None` when it is none.
pub(crate) fn read_starts(body: &[u8]) -> Option<impl Iterator<Item = Start> + '_> {
    let (rows, []) = body.as_chunks::<START_BYTES>() else { return None };
    Some(rows.iter().map(|row| {
        let [locator, attempt] =
            [16, 20].map(|at| u32::from_le_bytes(*row[at..].first_chunk().expect("a row has 24 bytes")));
        let half = |at: usize| u64::from_le_bytes(*row[at..].first_chunk().expect("a row has 24 bytes"));
        Start { id: TaskId { hi: half(0), lo: half(8) }, locator, attempt }
    }))
}

/// The body of [`Verb::Checkpointed`] and [`Verb::Sent`].
pub(crate) fn checkpointed_bytes(upto: u64) -> [u8; 8] {
    upto.to_le_bytes()
}

/// Reads it.
pub(crate) fn read_checkpointed(bytes: &[u8]) -> Option<u64> {
    bytes.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}

/// A decoded command.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Command<'a> {
    pub(crate) verb: Verb,
    /// The request was a resend: ids whose outcome is forgotten are refused, not run again.
    pub(crate) resend: bool,
    /// When it was admitted, in microseconds since 1970.
    pub(crate) time_us: u64,
    pub(crate) body: &'a [u8],
}

/// The bytes are not what this build understands.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// Bytes that are no command, or end too early.
    #[error("entry {index} of group {group} does not hold whole commands")]
    Truncated {
        /// Its group.
        group: u16,
        /// Its position in the group's log.
        index: u64,
    },
    /// A record of the shard's log, or a chunk of a snapshot, that is none.
    #[error("{0} does not read as one: use the version that wrote it, or newer")]
    Record(&'static str),
    /// A record of the shard's log that lacks one before it.
    #[error("record {missing} of the log is missing: record {sequence} is there")]
    Gap {
        /// Its sequence.
        sequence: u64,
        /// The one that should be there.
        missing: u64,
    },
    /// A record of a partition that does not belong here.
    #[error("partition {0} is not of this node's shard: start it with as many partitions and shards as before")]
    Elsewhere(
        /// The partition.
        PartitionId,
    ),
    /// An entry that lacks one before it.
    #[error("entry {index} of group {group} is there, and entry {missing} before it is not")]
    Missing {
        /// Its group.
        group: u16,
        /// Its position in the group's log.
        index: u64,
        /// The one that should be there.
        missing: u64,
    },
    /// An operation that is never logged.
    #[error(
        "entry {index} of group {group} has the unknown operation {operation}: use the version that wrote it, or newer"
    )]
    Operation {
        /// Its number.
        operation: u16,
        /// Its group.
        group: u16,
        /// Its position in the group's log.
        index: u64,
    },
    /// A body that does not read as its operation.
    #[error("{operation:?} of partition {partition}: {message}")]
    Body {
        /// Its operation.
        operation: Operation,
        /// Its partition.
        partition: PartitionId,
        /// What is wrong.
        message: String,
    },
}

/// Appends a command whose body is written by `body`. `out` ends on a multiple of 16 before and after.
pub(crate) fn append(
    out: &mut FrameBuffer,
    verb: Verb,
    resend: bool,
    time_us: u64,
    body: impl FnOnce(&mut FrameBuffer),
) {
    let begun = out.len();
    let number = match verb {
        Verb::Operation(operation) => operation.number(),
        Verb::Settings => SETTINGS,
        Verb::Checkpointed => CHECKPOINTED,
        Verb::Restored => RESTORED,
        Verb::RestoredStates => RESTORED_STATES,
        Verb::Known => KNOWN,
        Verb::Sent => SENT,
        Verb::Started => STARTED,
    };
    out.extend_from_slice(&number.to_le_bytes());
    out.extend_from_slice(&u16::from(resend).to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&time_us.to_le_bytes());
    body(out);
    let len = out.len() - begun - COMMAND_HEADER_BYTES;
    let len = u32::try_from(len).expect("bodies are bounded by the frame limit");
    out[begun + 4..begun + 8].copy_from_slice(&len.to_le_bytes());
    out.resize(out.len().next_multiple_of(16), 0);
}

/// Takes the next command of an entry, in place.
///
/// # Errors
/// [`EntryError`] when the bytes are none; `group` and `index` name the entry there.
pub(crate) fn next<'a>(rest: &mut &'a [u8], group: u16, index: u64) -> Result<Command<'a>, EntryError> {
    let truncated = EntryError::Truncated { group, index };
    let Some((header, behind)) = rest.split_first_chunk::<COMMAND_HEADER_BYTES>() else { return Err(truncated) };
    let number = u16::from_le_bytes([header[0], header[1]]);
    let len = u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize;
    let mut time = [0; 8];
    time.copy_from_slice(&header[8..16]);
    let Some((padded, behind)) = behind.split_at_checked(len.next_multiple_of(16)) else { return Err(truncated) };
    let verb = match Operation::from_number(number) {
        Some(operation) => Verb::Operation(operation),
        None if number == SETTINGS => Verb::Settings,
        None if number == CHECKPOINTED => Verb::Checkpointed,
        None if number == RESTORED => Verb::Restored,
        None if number == RESTORED_STATES => Verb::RestoredStates,
        None if number == KNOWN => Verb::Known,
        None if number == SENT => Verb::Sent,
        None if number == STARTED => Verb::Started,
        None => return Err(EntryError::Operation { operation: number, group, index }),
    };
    *rest = behind;
    Ok(Command { verb, resend: header[2] & 1 != 0, time_us: u64::from_le_bytes(time), body: &padded[..len] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_lie_one_behind_the_other() {
        let mut out = FrameBuffer::new();
        append(&mut out, Verb::Operation(Operation::Submit), true, 77, |out| out.extend_from_slice(b"body"));
        let settings = Settings {
            retention_ms: 5,
            kept_max: 6,
            waiting_max: 7,
            waiting_kib_max: 8,
            checkpointed_kept_ms: 9,
            events_kib_max: 10,
        };
        append(&mut out, Verb::Settings, false, 78, |out| out.extend_from_slice(&settings.bytes()));
        let mut rest = &out[..];
        let first = next(&mut rest, 1, 2).unwrap();
        assert_eq!((first.verb, first.resend, first.time_us), (Verb::Operation(Operation::Submit), true, 77));
        assert_eq!(first.body, b"body");
        let second = next(&mut rest, 1, 2).unwrap();
        assert_eq!((second.verb, Settings::read(second.body)), (Verb::Settings, Some(settings)));
        append(&mut out, Verb::Checkpointed, false, 79, |out| out.extend_from_slice(&checkpointed_bytes(1 << 40)));
        let mut rest = &out[out.len() - 32..];
        let third = next(&mut rest, 1, 2).unwrap();
        assert_eq!((third.verb, read_checkpointed(third.body)), (Verb::Checkpointed, Some(1 << 40)));
        assert!(rest.is_empty());
        for cut in 1..out.len() {
            let mut rest = &out[..cut];
            while !rest.is_empty() {
                if next(&mut rest, 1, 2).is_err() {
                    break;
                }
            }
        }
    }
}

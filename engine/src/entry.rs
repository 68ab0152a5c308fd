//! Log entries: a 32-byte header and the wire body that was admitted, unchanged.
//!
//! ```text
//! offset size field
//!      0    2 format      1
//!      2    2 operation   as in the protocol
//!      4    2 partition
//!      6    2 flags       bit 0: the request was a resend
//!      8    8 time_us     when it was admitted, microseconds since 1970; never decreasing within a shard's log
//!     16    8 sequence    position among the shard's entries, from 1
//!     24    4 body_len    bytes
//!     28    4 reserved    zero
//! ```
//! Checksums and chaining are the log's business.

use taskmaster_protocol::{FrameBuffer, Operation, PartitionId};

/// Version of the entry layout.
pub const ENTRY_FORMAT: u16 = 1;
/// Bytes of an entry's header.
pub const ENTRY_HEADER_BYTES: usize = 32;

/// A decoded entry.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// What was asked.
    pub operation: Operation,
    /// Of which partition.
    pub partition: PartitionId,
    /// The request was a resend: ids whose outcome is forgotten are refused, not run again.
    pub resend: bool,
    /// When it was admitted, in microseconds since 1970.
    pub time_us: u64,
    /// Position among the shard's entries, from 1.
    pub sequence: u64,
    /// The body.
    pub body: &'a [u8],
}

/// The bytes are not an entry this build understands.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// Shorter than its header says.
    #[error("log entry of {0} bytes is truncated")]
    Truncated(usize),
    /// Another format version.
    #[error(
        "log entry has format {0}, this build reads format {ENTRY_FORMAT}: use the version that wrote it, or newer"
    )]
    Format(u16),
    /// An operation that is never logged.
    #[error("log entry {sequence} has the unknown operation {operation}")]
    Operation {
        /// Its number.
        operation: u16,
        /// Position of the entry.
        sequence: u64,
    },
    /// A body that does not read as its operation.
    #[error("log entry {sequence} ({operation:?} of partition {partition}): {message}")]
    Body {
        /// Its operation.
        operation: Operation,
        /// Its partition.
        partition: PartitionId,
        /// Position of the entry.
        sequence: u64,
        /// What is wrong.
        message: String,
    },
}

/// Starts an entry in `out`, to be followed by the body and [`finish`].
pub(crate) fn begin(
    out: &mut FrameBuffer,
    operation: Operation,
    partition: PartitionId,
    resend: bool,
    time_us: u64,
    sequence: u64,
) {
    out.extend_from_slice(&ENTRY_FORMAT.to_le_bytes());
    out.extend_from_slice(&operation.number().to_le_bytes());
    out.extend_from_slice(&partition.0.to_le_bytes());
    out.extend_from_slice(&u16::from(resend).to_le_bytes());
    out.extend_from_slice(&time_us.to_le_bytes());
    out.extend_from_slice(&sequence.to_le_bytes());
    out.extend_from_slice(&[0; 8]);
}

/// Fills in the body's length.
pub(crate) fn finish(out: &mut FrameBuffer) {
    let length = u32::try_from(out.len() - ENTRY_HEADER_BYTES).expect("bodies are bounded by the frame limit");
    out[24..28].copy_from_slice(&length.to_le_bytes());
}

/// Reads an entry in place.
///
/// # Errors
/// [`EntryError`] when the bytes are not one.
pub fn decode(bytes: &[u8]) -> Result<Entry<'_>, EntryError> {
    let header = bytes.first_chunk::<ENTRY_HEADER_BYTES>().ok_or(EntryError::Truncated(bytes.len()))?;
    let u16_at = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let u64_at = |at: usize| {
        let mut eight = [0u8; 8];
        eight.copy_from_slice(&header[at..at + 8]);
        u64::from_le_bytes(eight)
    };
    if u16_at(0) != ENTRY_FORMAT {
        return Err(EntryError::Format(u16_at(0)));
    }
    let sequence = u64_at(16);
    let operation =
        Operation::from_number(u16_at(2)).ok_or(EntryError::Operation { operation: u16_at(2), sequence })?;
    let length = u32::from_le_bytes([header[24], header[25], header[26], header[27]]) as usize;
    let body = bytes.get(ENTRY_HEADER_BYTES..ENTRY_HEADER_BYTES + length).ok_or(EntryError::Truncated(bytes.len()))?;
    Ok(Entry {
        operation,
        partition: PartitionId(u16_at(4)),
        resend: u16_at(6) & 1 != 0,
        time_us: u64_at(8),
        sequence,
        body,
    })
}

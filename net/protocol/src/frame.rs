//! Framing: a 32-byte little-endian header, the body, and zero padding to a multiple of 16 bytes.
//!
//! ```text
//! offset size field
//!      0    4 magic        "TMK1"
//!      4    1 version      protocol version of the sender
//!      5    1 flags        bit 0: response, bit 1: resend of a request whose answer was lost
//!      6    2 operation
//!      8    4 length       body bytes, without padding
//!     12    4 checksum     CRC32C of header (this field as zero) and body
//!     16    8 correlation  chosen by the requester, echoed by the response
//!     24    2 partition    0xFFFF: none
//!     26    2 code         responses: outcome, 0 = ok
//!     28    4 reserved     zero
//! ```

use crate::{Code, FrameBuffer, Operation, PartitionId, body::Body, limits};

/// First four bytes of every frame: `TMK1`.
pub const MAGIC: u32 = u32::from_le_bytes(*b"TMK1");
/// Bytes of a header.
pub const HEADER_BYTES: usize = 32;
/// Frames start at multiples of this many bytes.
pub const ALIGNMENT: usize = 16;
/// Header flag: this frame answers a request.
pub const FLAG_RESPONSE: u8 = 1;
/// Header flag: this request repeats one whose answer was lost.
pub const FLAG_RESEND: u8 = 2;
/// The partition field of frames that concern no partition.
pub const NO_PARTITION: u16 = 0xFFFF;

const CHECKSUM_AT: usize = 12;

/// A decoded header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Protocol version of the sender.
    pub version: u8,
    /// [`FLAG_RESPONSE`] and [`FLAG_RESEND`].
    pub flags: u8,
    /// Operation number; see [`Operation`].
    pub operation: u16,
    /// Body bytes, without padding.
    pub length: u32,
    /// Chosen by the requester, echoed by the response.
    pub correlation: u64,
    /// Partition concerned, or [`NO_PARTITION`].
    pub partition: u16,
    /// Outcome of a response: a [`Code`] number.
    pub code: u16,
}

impl Header {
    /// A request header.
    #[must_use]
    pub const fn request(operation: Operation, correlation: u64, partition: Option<PartitionId>) -> Self {
        let partition = match partition {
            Some(PartitionId(number)) => number,
            None => NO_PARTITION,
        };
        Self {
            version: limits::PROTOCOL_VERSION,
            flags: 0,
            operation: operation.number(),
            length: 0,
            correlation,
            partition,
            code: 0,
        }
    }

    /// The header of a response to `self`.
    #[must_use]
    pub const fn response(&self, code: Code) -> Self {
        Self {
            version: limits::PROTOCOL_VERSION,
            flags: FLAG_RESPONSE,
            operation: self.operation,
            length: 0,
            correlation: self.correlation,
            partition: self.partition,
            code: code.number(),
        }
    }

    /// Whether this frame answers a request.
    #[must_use]
    pub const fn is_response(&self) -> bool {
        self.flags & FLAG_RESPONSE != 0
    }

    /// Whether this request repeats one whose answer was lost.
    #[must_use]
    pub const fn is_resend(&self) -> bool {
        self.flags & FLAG_RESEND != 0
    }

    fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0u8; HEADER_BYTES];
        bytes[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4] = self.version;
        bytes[5] = self.flags;
        bytes[6..8].copy_from_slice(&self.operation.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.length.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.correlation.to_le_bytes());
        bytes[24..26].copy_from_slice(&self.partition.to_le_bytes());
        bytes[26..28].copy_from_slice(&self.code.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8; HEADER_BYTES]) -> Self {
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Self {
            version: bytes[4],
            flags: bytes[5],
            operation: u16_at(6),
            length: u32_at(8),
            correlation: u64::from(u32_at(16)) | (u64::from(u32_at(20)) << 32),
            partition: u16_at(24),
            code: u16_at(26),
        }
    }
}

/// A frame read in place: its header and its body, which is 16-byte aligned if the buffer is.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// The header.
    pub header: Header,
    /// The body without padding.
    pub body: &'a [u8],
}

/// Why bytes are not a frame. The connection they came from cannot be trusted further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The stream does not start with the magic.
    #[error("not a Taskmaster stream: expected the bytes \"TMK1\", found {found:#010x}")]
    Magic {
        /// The four bytes found, as a little-endian number.
        found: u32,
    },
    /// The announced body is larger than allowed.
    #[error("frame body of {length} bytes is larger than the limit of {limit} bytes")]
    TooLarge {
        /// Announced length in bytes.
        length: u32,
        /// Limit in bytes.
        limit: usize,
    },
    /// The checksum does not match.
    #[error("frame checksum mismatch: header says {expected:#010x}, bytes give {actual:#010x}")]
    Checksum {
        /// From the header.
        expected: u32,
        /// Computed.
        actual: u32,
    },
}

/// Bytes that a frame with a body of `length` bytes occupies in the stream.
#[must_use]
pub const fn stream_bytes(length: usize) -> usize {
    HEADER_BYTES + length.next_multiple_of(ALIGNMENT)
}

/// Reads the frame at the start of `bytes`. `Ok(None)` asks for more bytes; call again when there are at least
/// [`needed`] of them. On success the frame and the number of bytes it occupies in the stream.
///
/// # Errors
/// [`FrameError`] when the bytes can never become a frame.
pub fn parse(bytes: &[u8]) -> Result<Option<(Frame<'_>, usize)>, FrameError> {
    let Some(header_bytes) = bytes.first_chunk::<HEADER_BYTES>() else {
        return match bytes.first_chunk::<4>() {
            Some(found) => check_magic(*found).map(|()| None),
            None => Ok(None),
        };
    };
    check_magic([header_bytes[0], header_bytes[1], header_bytes[2], header_bytes[3]])?;
    let header = Header::from_bytes(header_bytes);
    let length = header.length as usize;
    if length > limits::BODY_BYTES_MAX {
        return Err(FrameError::TooLarge { length: header.length, limit: limits::BODY_BYTES_MAX });
    }
    let total = stream_bytes(length);
    if bytes.len() < total {
        return Ok(None);
    }
    let body = &bytes[HEADER_BYTES..HEADER_BYTES + length];
    let mut unsigned = *header_bytes;
    let mut expected = [0u8; 4];
    expected.copy_from_slice(&unsigned[CHECKSUM_AT..CHECKSUM_AT + 4]);
    unsigned[CHECKSUM_AT..CHECKSUM_AT + 4].fill(0);
    let expected = u32::from_le_bytes(expected);
    let actual = crc32c::crc32c_append(crc32c::crc32c(&unsigned), body);
    if expected != actual {
        return Err(FrameError::Checksum { expected, actual });
    }
    Ok(Some((Frame { header, body }, total)))
}

fn check_magic(found: [u8; 4]) -> Result<(), FrameError> {
    let found = u32::from_le_bytes(found);
    if found == MAGIC { Ok(()) } else { Err(FrameError::Magic { found }) }
}

/// How many bytes must be buffered before [`parse`] can make progress on `bytes`.
///
/// # Errors
/// [`FrameError`] when the bytes can never become a frame.
pub fn needed(bytes: &[u8]) -> Result<usize, FrameError> {
    let Some(header_bytes) = bytes.first_chunk::<HEADER_BYTES>() else { return Ok(HEADER_BYTES) };
    check_magic([header_bytes[0], header_bytes[1], header_bytes[2], header_bytes[3]])?;
    let length = Header::from_bytes(header_bytes).length;
    if length as usize > limits::BODY_BYTES_MAX {
        return Err(FrameError::TooLarge { length, limit: limits::BODY_BYTES_MAX });
    }
    Ok(stream_bytes(length as usize))
}

/// Appends a frame whose body is `body`'s archived form. `out` must hold whole frames only (its length is a multiple of
/// 16), which every function here preserves.
///
/// # Panics
/// If the body is larger than [`limits::BODY_BYTES_MAX`]: callers bound their batches.
pub fn encode<B: Body>(out: &mut FrameBuffer, header: Header, body: &B) {
    let start = begin(out);
    body.append_to(out);
    finish(out, start, header);
}

/// Appends a frame whose body is these bytes, unchanged.
///
/// # Panics
/// If the body is larger than [`limits::BODY_BYTES_MAX`].
pub fn encode_raw(out: &mut FrameBuffer, header: Header, body: &[u8]) {
    let start = begin(out);
    out.extend_from_slice(body);
    finish(out, start, header);
}

fn begin(out: &mut FrameBuffer) -> usize {
    let start = out.len();
    assert!(start.is_multiple_of(ALIGNMENT), "the buffer holds whole frames");
    out.extend_from_slice(&[0u8; HEADER_BYTES]);
    start
}

fn finish(out: &mut FrameBuffer, start: usize, mut header: Header) {
    let length = out.len() - start - HEADER_BYTES;
    assert!(length <= limits::BODY_BYTES_MAX, "callers bound the body");
    header.length = u32::try_from(length).expect("bounded above");
    let bytes = header.to_bytes();
    out[start..start + HEADER_BYTES].copy_from_slice(&bytes);
    let checksum = crc32c::crc32c(&out[start..]);
    out[start + CHECKSUM_AT..start + CHECKSUM_AT + 4].copy_from_slice(&checksum.to_le_bytes());
    let padding = length.next_multiple_of(ALIGNMENT) - length;
    out.extend_from_slice(&[0u8; ALIGNMENT][..padding]);
}

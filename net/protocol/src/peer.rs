//! The peer protocol's bytes: what the shards of different nodes send each other. `docs/formats/peer.md` specifies it.
//!
//! ```text
//! offset size field
//!      0    4 magic        "TMP1"
//!      4    1 version      peer protocol version of the frame
//!      5    1 kind         see [`Kind`]
//!      6    2 reserved     zero
//!      8    4 length       body bytes, without padding
//!     12    4 checksum     CRC-32C of header (this field as zero) and body
//!     16    8 sequence     frames that this side has sent on this connection before this one
//!     24    8 reserved     zero
//! ```
//!
//! Invariants:
//! - The layout of the header and of the three greeting bodies is the same in all versions, so that any two nodes can tell
//!   each other why they do not fit.
//! - A frame starts at a multiple of 16 bytes in its stream, so a body can be used where it lies.
//! - Hostile bytes give an error. Nothing is allocated by a length that a peer wrote.
//!
//! What a batch contains is the engine's matter; here it is opaque.

use core::fmt;

use crate::NodeId;

/// First four bytes of every peer frame: `TMP1`.
pub const MAGIC: [u8; 4] = *b"TMP1";
/// Bytes of a header.
pub const HEADER_BYTES: usize = 32;
/// Frames start at multiples of this many bytes.
pub const ALIGNMENT: usize = 16;
/// Largest body of a batch, in bytes.
pub const PEER_BODY_BYTES_MAX: usize = 32 << 20;
/// Largest body of every other kind, in bytes: all that is read of a connection that was not greeted.
pub const GREETING_BYTES_MAX: usize = 2_048;
/// Oldest version of the peer protocol that this software speaks.
pub const PEER_VERSION_MIN: u8 = 1;
/// Newest version of the peer protocol that this software speaks.
pub const PEER_VERSION_MAX: u8 = 1;
/// Longest name of a cluster or a node, in bytes.
pub const NAME_BYTES_MAX: usize = 255;
/// Longest sentence of a refusal, in bytes.
pub const SENTENCE_BYTES_MAX: usize = 1_024;

const _: () = assert!(GREETING_BYTES_MAX <= PEER_BODY_BYTES_MAX);
const _: () = assert!(HELLO_BYTES + 2 * NAME_BYTES_MAX <= GREETING_BYTES_MAX);
const _: () = assert!(REFUSAL_BYTES + SENTENCE_BYTES_MAX <= GREETING_BYTES_MAX);
const _: () = assert!(PEER_BODY_BYTES_MAX.is_multiple_of(ALIGNMENT));

const CHECKSUM_AT: usize = 12;
/// Bytes of a hello before its names.
const HELLO_BYTES: usize = 48;
/// Bytes of a refusal before its sentence.
const REFUSAL_BYTES: usize = 16;

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// The dialing side says who it is; the first frame of a connection.
    Hello = 1,
    /// The answer to it: who answers.
    HelloReply = 2,
    /// Why the connection ends.
    Refusal = 3,
    /// Messages of one turn, from the side that dialed.
    Batch = 4,
    /// Asks for a pong.
    Ping = 5,
    /// Answers a ping.
    Pong = 6,
}

impl Kind {
    const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Hello,
            2 => Self::HelloReply,
            3 => Self::Refusal,
            4 => Self::Batch,
            5 => Self::Ping,
            6 => Self::Pong,
            _ => return None,
        })
    }

    const fn body_bytes_max(self) -> usize {
        if matches!(self, Self::Batch) { PEER_BODY_BYTES_MAX } else { GREETING_BYTES_MAX }
    }
}

/// A frame read in place. The body is 16-byte aligned if the buffer is.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// Peer protocol version of the frame. Kinds other than the greeting ones mean something only in the agreed version.
    pub version: u8,
    /// What it is for.
    pub kind: Kind,
    /// Frames that the sender has sent on this connection before this one.
    pub sequence: u64,
    /// The body without padding.
    pub body: &'a [u8],
}

/// Why bytes are not a peer frame. The connection they came from cannot be trusted further.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// The stream does not start with the magic.
    #[error("expected a peer's frame, which starts with \"TMP1\", but found \"{}\"", found.escape_ascii())]
    Magic {
        /// The four bytes found.
        found: [u8; 4],
    },
    /// The magic of the client protocol.
    #[error("a client's frame arrived at the port for peers: clients connect to the client ports")]
    Client,
    /// A TLS record where none is expected.
    #[error("TLS arrived where peers speak without it: configure TLS for peers on all nodes or on none")]
    Tls,
    /// The kind is unknown.
    #[error("peer frame of unknown kind {kind} in peer protocol {version}; known are 1 to 6 of protocol 1")]
    Kind {
        /// The kind found.
        kind: u8,
        /// Version of the frame.
        version: u8,
    },
    /// The announced body is larger than allowed.
    #[error("peer frame body of {length} bytes is larger than the limit of {limit} bytes")]
    TooLarge {
        /// Announced length in bytes.
        length: u32,
        /// Limit in bytes.
        limit: usize,
    },
    /// The checksum does not match.
    #[error("peer frame checksum mismatch: header says {expected:#010x}, bytes give {actual:#010x}")]
    Checksum {
        /// From the header.
        expected: u32,
        /// Computed.
        actual: u32,
    },
    /// A body that does not have the layout of its kind.
    #[error("malformed {0}")]
    Body(&'static str),
}

/// Zeros that follow a body of `length` bytes.
#[must_use]
pub const fn padding(length: usize) -> usize {
    length.next_multiple_of(ALIGNMENT) - length
}

/// Bytes that a frame with a body of `length` bytes occupies in the stream.
#[must_use]
pub const fn stream_bytes(length: usize) -> usize {
    HEADER_BYTES + length.next_multiple_of(ALIGNMENT)
}

/// The header of a frame with this body. The frame is the header, the body, and [`padding`] zeros.
///
/// # Panics
/// If the body is larger than its kind allows: callers bound it.
#[must_use]
pub fn header(kind: Kind, version: u8, sequence: u64, body: &[u8]) -> [u8; HEADER_BYTES] {
    assert!(body.len() <= kind.body_bytes_max(), "callers bound the body");
    let length = u32::try_from(body.len()).expect("bounded above");
    let mut bytes = [0u8; HEADER_BYTES];
    bytes[0..4].copy_from_slice(&MAGIC);
    bytes[4] = version;
    bytes[5] = kind as u8;
    bytes[8..12].copy_from_slice(&length.to_le_bytes());
    bytes[16..24].copy_from_slice(&sequence.to_le_bytes());
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&bytes), body);
    bytes[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

/// Appends a whole frame.
///
/// # Panics
/// If the body is larger than its kind allows.
pub fn encode(out: &mut Vec<u8>, kind: Kind, version: u8, sequence: u64, body: &[u8]) {
    out.extend_from_slice(&header(kind, version, sequence, body));
    out.extend_from_slice(body);
    out.extend_from_slice(&[0u8; ALIGNMENT][..padding(body.len())]);
}

/// Reads the frame at the start of `bytes`. `Ok(None)` asks for more bytes; call again when there are at least [`needed`]
/// of them. On success the frame and the number of bytes it occupies in the stream.
///
/// # Errors
/// [`PeerError`] when the bytes can never become a frame.
pub fn parse(bytes: &[u8]) -> Result<Option<(Frame<'_>, usize)>, PeerError> {
    let Some((kind, length)) = announced(bytes)? else { return Ok(None) };
    let total = stream_bytes(length);
    if bytes.len() < total {
        return Ok(None);
    }
    let mut unsigned = [0u8; HEADER_BYTES];
    unsigned.copy_from_slice(&bytes[..HEADER_BYTES]);
    let (version, sequence) = (unsigned[4], u64_at(&unsigned, 16));
    let expected = u32_at(&unsigned, CHECKSUM_AT);
    unsigned[CHECKSUM_AT..CHECKSUM_AT + 4].fill(0);
    let body = &bytes[HEADER_BYTES..HEADER_BYTES + length];
    let actual = crc32c::crc32c_append(crc32c::crc32c(&unsigned), body);
    if expected != actual {
        return Err(PeerError::Checksum { expected, actual });
    }
    Ok(Some((Frame { version, kind, sequence, body }, total)))
}

/// How many bytes must be buffered before [`parse`] can make progress on `bytes`.
///
/// # Errors
/// [`PeerError`] when the bytes can never become a frame.
pub fn needed(bytes: &[u8]) -> Result<usize, PeerError> {
    Ok(announced(bytes)?.map_or(HEADER_BYTES, |(_, length)| stream_bytes(length)))
}

/// The kind and the length of the frame that starts here, once its header is complete.
fn announced(bytes: &[u8]) -> Result<Option<(Kind, usize)>, PeerError> {
    if let Some(&found) = bytes.first_chunk::<4>() {
        match found {
            MAGIC => {}
            [b'T', b'M', b'K', _] => return Err(PeerError::Client),
            // A handshake or an alert.
            [0x15 | 0x16, 0x03, ..] => return Err(PeerError::Tls),
            found => return Err(PeerError::Magic { found }),
        }
    }
    let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let Some(kind) = Kind::from_number(header[5]) else {
        return Err(PeerError::Kind { kind: header[5], version: header[4] });
    };
    let length = u32_at(header, 8);
    let limit = kind.body_bytes_max();
    if length as usize > limit {
        return Err(PeerError::TooLarge { length, limit });
    }
    Ok(Some((kind, length as usize)))
}

/// Who one side of a connection is: the body of [`Kind::Hello`] and [`Kind::HelloReply`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerHello {
    /// Oldest peer protocol version it speaks.
    pub peer_version_min: u8,
    /// Newest peer protocol version it speaks.
    pub peer_version_max: u8,
    /// Format version of its software.
    pub version: u32,
    /// The cluster it is in; 0: in none yet.
    pub cluster: u128,
    /// Its node.
    pub node: NodeId,
    /// The node it believes to talk to.
    pub to_node: NodeId,
    /// Its shard.
    pub shard: u16,
    /// The shard it believes to talk to.
    pub to_shard: u16,
    /// Name of its cluster.
    pub cluster_name: String,
    /// Name of its node.
    pub node_name: String,
}

impl PeerHello {
    /// The body's bytes.
    ///
    /// # Panics
    /// If a name is longer than [`NAME_BYTES_MAX`]: whoever configures a node checks that.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HELLO_BYTES + self.cluster_name.len() + self.node_name.len());
        out.extend_from_slice(&[self.peer_version_min, self.peer_version_max, 0, 0]);
        out.extend_from_slice(&self.version.to_le_bytes());
        out.extend_from_slice(&self.cluster.to_le_bytes());
        out.extend_from_slice(&self.node.0.to_le_bytes());
        out.extend_from_slice(&self.to_node.0.to_le_bytes());
        out.extend_from_slice(&self.shard.to_le_bytes());
        out.extend_from_slice(&self.to_shard.to_le_bytes());
        for name in [&self.cluster_name, &self.node_name] {
            assert!(name.len() <= NAME_BYTES_MAX, "the configuration bounds names");
            let length = u16::try_from(name.len()).expect("bounded above");
            out.extend_from_slice(&length.to_le_bytes());
        }
        out.extend_from_slice(self.cluster_name.as_bytes());
        out.extend_from_slice(self.node_name.as_bytes());
        out
    }

    /// Reads a body. Bytes after the names are a later version's and are ignored.
    ///
    /// # Errors
    /// [`PeerError::Body`] when the layout is violated, a name is no printable text, or a node id is zero.
    pub fn decode(bytes: &[u8]) -> Result<Self, PeerError> {
        const MALFORMED: PeerError = PeerError::Body("hello");
        if bytes.len() < HELLO_BYTES {
            return Err(MALFORMED);
        }
        let cluster_end = HELLO_BYTES + usize::from(u16_at(bytes, 44));
        let node_end = cluster_end + usize::from(u16_at(bytes, 46));
        let name = |from: usize, to: usize| -> Result<String, PeerError> {
            let name = bytes.get(from..to).filter(|name| name.len() <= NAME_BYTES_MAX).ok_or(MALFORMED)?;
            let name = core::str::from_utf8(name).map_err(|_| MALFORMED)?;
            if name.chars().any(char::is_control) { Err(MALFORMED) } else { Ok(name.to_owned()) }
        };
        let hello = Self {
            peer_version_min: bytes[0],
            peer_version_max: bytes[1],
            version: u32_at(bytes, 4),
            cluster: u128::from(u64_at(bytes, 8)) | (u128::from(u64_at(bytes, 16)) << 64),
            node: NodeId(u64_at(bytes, 24)),
            to_node: NodeId(u64_at(bytes, 32)),
            shard: u16_at(bytes, 40),
            to_shard: u16_at(bytes, 42),
            cluster_name: name(HELLO_BYTES, cluster_end)?,
            node_name: name(cluster_end, node_end)?,
        };
        if hello.node.0 == 0 || hello.to_node.0 == 0 || hello.peer_version_min > hello.peer_version_max {
            return Err(MALFORMED);
        }
        Ok(hello)
    }
}

/// As people know a node: its name and its id.
impl fmt::Display for PeerHello {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node \"{}\" ({})", self.node_name, self.node)
    }
}

/// Why a node refuses another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Reason {
    /// Bytes that are no peer frames, or frames where they do not belong.
    Garbage = 1,
    /// The clusters have different names.
    ClusterName = 2,
    /// The clusters have the same name but are different ones.
    ClusterId = 3,
    /// Another node lives at this address.
    OtherNode = 4,
    /// Another shard listens at this address.
    OtherShard = 5,
    /// Both sides have the same node id.
    SameNode = 6,
    /// The software versions are not adjacent.
    Version = 7,
    /// There is no common version of the peer protocol.
    PeerVersion = 8,
    /// TLS failed, or the certificate is not the node's.
    Tls = 9,
    /// Too many connections.
    Busy = 10,
}

impl Reason {
    const fn from_number(number: u16) -> Self {
        match number {
            2 => Self::ClusterName,
            3 => Self::ClusterId,
            4 => Self::OtherNode,
            5 => Self::OtherShard,
            6 => Self::SameNode,
            7 => Self::Version,
            8 => Self::PeerVersion,
            9 => Self::Tls,
            10 => Self::Busy,
            // A later version's reasons still come with a sentence.
            _ => Self::Garbage,
        }
    }
}

/// The body of [`Kind::Refusal`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerRefusal {
    /// Why, for programs.
    pub reason: Reason,
    /// The node that refuses.
    pub node: NodeId,
    /// Why, for people: both parties, and what would be right.
    pub sentence: String,
}

impl PeerRefusal {
    /// The body's bytes. A sentence beyond [`SENTENCE_BYTES_MAX`] is cut.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let sentence = &self.sentence[..self.sentence.floor_char_boundary(SENTENCE_BYTES_MAX)];
        let length = u32::try_from(sentence.len()).expect("cut above");
        let mut out = Vec::with_capacity(REFUSAL_BYTES + sentence.len());
        out.extend_from_slice(&(self.reason as u16).to_le_bytes());
        out.extend_from_slice(&[0, 0]);
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&self.node.0.to_le_bytes());
        out.extend_from_slice(sentence.as_bytes());
        out
    }

    /// Reads a body. Control characters of the sentence become spaces, so that it can be logged.
    ///
    /// # Errors
    /// [`PeerError::Body`] when the layout is violated.
    pub fn decode(bytes: &[u8]) -> Result<Self, PeerError> {
        const MALFORMED: PeerError = PeerError::Body("refusal");
        if bytes.len() < REFUSAL_BYTES {
            return Err(MALFORMED);
        }
        let length = u32_at(bytes, 4) as usize;
        let sentence = bytes[REFUSAL_BYTES..].get(..length).filter(|sentence| sentence.len() <= SENTENCE_BYTES_MAX);
        let sentence = core::str::from_utf8(sentence.ok_or(MALFORMED)?).map_err(|_| MALFORMED)?;
        Ok(Self {
            reason: Reason::from_number(u16_at(bytes, 0)),
            node: NodeId(u64_at(bytes, 8)),
            sentence: sentence.replace(char::is_control, " "),
        })
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | (u64::from(u32_at(bytes, at + 4)) << 32)
}

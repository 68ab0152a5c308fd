//! What shards of different nodes tell each other: messages in a row, each beginning on a multiple of 16.
//!
//! ```text
//! offset size field
//!      0    1 kind
//!      1    1 detail       the kind's
//!      2    2 group        partition, 0xFFFF for the meta group, or zero
//!      4    4 length       bytes of the message, this header included, a multiple of 16
//!      8      body
//! ```
//! Checksums, versions and who is at the other end are the transport's business; lengths and values are checked here.

use taskmaster_protocol::{FrameBuffer, NodeId};

/// A shard of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerAddr {
    /// The node.
    pub node: NodeId,
    /// The shard's number there.
    pub shard: u16,
}

/// Number of the meta group, whose state is the cluster map.
pub(crate) use crate::cluster::META_GROUP;

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// `replica/message.rs`.
    Raft = 1,
    /// A chunk of a snapshot on its way to a follower.
    Chunk = 2,
    /// How far a snapshot was taken.
    ChunkTaken = 3,
    /// Which groups the sender leads, in which terms.
    Leads = 4,
    /// How groups fare, for the controller.
    Report = 5,
    /// A node asks to be let in, or says that what it told about itself changed.
    Join = 6,
    /// A note about a queue's permits.
    Permit = 7,
    /// The sender is there, and groups that it leads rest.
    Pulse = 8,
}

const KINDS: [Kind; 8] =
    [Kind::Raft, Kind::Chunk, Kind::ChunkTaken, Kind::Leads, Kind::Report, Kind::Join, Kind::Permit, Kind::Pulse];

/// Bytes of a message's header.
pub(crate) const HEADER_BYTES: usize = 8;

/// A message read in place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame<'a> {
    pub(crate) kind: Kind,
    pub(crate) detail: u8,
    pub(crate) group: u16,
    pub(crate) body: &'a [u8],
}

/// Begins a message; [`finish`] ends it.
pub(crate) fn begin(out: &mut FrameBuffer, kind: Kind, detail: u8, group: u16) -> usize {
    let begun = out.len();
    debug_assert!(begun.is_multiple_of(16), "messages begin on a multiple of 16");
    out.extend_from_slice(&[kind as u8, detail]);
    out.extend_from_slice(&group.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    begun
}

/// Zeros up to a multiple of 16.
pub(crate) fn pad(out: &mut FrameBuffer) {
    out.resize(out.len().next_multiple_of(16), 0);
}

/// Pads the message and fills in its length.
pub(crate) fn finish(out: &mut FrameBuffer, begun: usize) {
    pad(out);
    let len = u32::try_from(out.len() - begun).expect("messages are bounded");
    out[begun + 4..begun + 8].copy_from_slice(&len.to_le_bytes());
}

/// Takes the next message; `None` at the end, or where the bytes are none.
pub(crate) fn next<'a>(rest: &mut &'a [u8]) -> Option<Frame<'a>> {
    let header = rest.first_chunk::<HEADER_BYTES>()?;
    let kind = *KINDS.iter().find(|kind| **kind as u8 == header[0])?;
    let len = usize::try_from(u32::from_le_bytes([header[4], header[5], header[6], header[7]])).ok()?;
    if len < 16 || !len.is_multiple_of(16) {
        return None;
    }
    let (message, behind) = rest.split_at_checked(len)?;
    *rest = behind;
    let group = u16::from_le_bytes([header[2], header[3]]);
    Some(Frame { kind, detail: header[1], group, body: &message[HEADER_BYTES..] })
}

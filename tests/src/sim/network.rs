//! Connections as ordered byte streams with latency that can be cut at any moment: those of actors with shards, and those of
//! shards with shards of other nodes.
//!
//! Bytes arrive in order, in pieces of any size. What was sent before a loss may or may not arrive; each side learns of the
//! loss at its own time, so a request of a lost connection can still be taken after its resend on the next one.

use taskmaster_protocol::FrameBuffer;
use taskmaster_protocol::frame::{self, Header};

use super::actor::Target;

/// One connection of an actor.
pub(crate) struct Link {
    pub(crate) actor: usize,
    pub(crate) target: Target,
    /// The process that accepted it.
    pub(crate) life: u64,
    /// The node has it open.
    pub(crate) node_open: bool,
    /// The actor has it open.
    pub(crate) peer_open: bool,
    /// When the latest bytes arrive, per direction: nothing overtakes them.
    pub(crate) to_node_us: u64,
    pub(crate) to_peer_us: u64,
    /// Bytes in flight are lost.
    pub(crate) cut: bool,
    pub(crate) at_node: FrameBuffer,
    pub(crate) at_peer: FrameBuffer,
}

/// What one shard sends to one shard of another place.
#[derive(Default)]
pub(crate) struct PeerLink {
    /// When the latest bytes arrive.
    pub(crate) arrives_us: u64,
    /// Number of the present connection; what was sent on another one is lost.
    pub(crate) epoch: u64,
    /// No new connection is tried before.
    pub(crate) retry_us: u64,
}

/// Takes every whole frame out of `buffer`.
pub(crate) fn take_frames(buffer: &mut FrameBuffer, mut take: impl FnMut(Header, &[u8])) -> Result<(), String> {
    let mut at = 0;
    while let Some((frame, bytes)) = frame::parse(&buffer[at..]).map_err(|error| error.to_string())? {
        take(frame.header, frame.body);
        at += bytes;
    }
    if at == buffer.len() {
        buffer.clear();
    } else if at > 0 {
        let rest = buffer[at..].to_vec();
        buffer.clear();
        buffer.extend_from_slice(&rest);
    }
    Ok(())
}

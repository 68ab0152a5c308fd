//! Raft messages between nodes, in our own layout. What peers send is checked here; the library's decoder never sees it.
//!
//! ```text
//! offset size field
//!      0    8 the header of every peer message (`peer.rs`): kind, type and marks, group, length
//!      8    8 term
//!     16    8 index
//!     24    8 commit
//!  long form only (mark 0x20):
//!     32    8 log_term
//!     40    8 reject_hint
//!     48    8 commit_term
//!     56    8 request_snapshot
//!     64    8 priority (two's complement)
//!     72    4 context_len
//!     76    4 entries
//!     80    8 index of a snapshot, 0 for none
//!     88    8 term of it
//!     96    4 bytes of its configuration
//!    100   12 reserved
//!    112      context, configuration, entries, each padded to 16
//! ```

use bytes::Bytes;
use raft::eraftpb::{Message, MessageType, Snapshot};
use taskmaster_protocol::FrameBuffer;

use super::conf;
use super::record::{EntryView, Fields, aligned, body_of, entry_header};
use crate::peer;

const LONG: u8 = 0x20;
const REJECT: u8 = 0x40;
const TYPE: u8 = 0x1F;
/// Most entries that one message may bring.
const ENTRIES_MAX: u32 = 1 << 16;
/// Longest context.
const CONTEXT_BYTES_MAX: u32 = 64;

/// Message types by their number here; a number never changes its meaning.
const TYPES: [MessageType; 11] = [
    MessageType::MsgAppend,
    MessageType::MsgAppendResponse,
    MessageType::MsgRequestVote,
    MessageType::MsgRequestVoteResponse,
    MessageType::MsgSnapshot,
    MessageType::MsgHeartbeat,
    MessageType::MsgHeartbeatResponse,
    MessageType::MsgTransferLeader,
    MessageType::MsgTimeoutNow,
    MessageType::MsgRequestPreVote,
    MessageType::MsgRequestPreVoteResponse,
];

/// Appends a message of `group`; `false`, and nothing appended, for a type that does not leave a node.
pub(crate) fn encode(group: u16, message: &Message, out: &mut FrameBuffer) -> bool {
    let Some(number) = TYPES.iter().position(|kind| *kind == message.get_msg_type()) else { return false };
    let is_long = message.log_term != 0
        || message.reject_hint != 0
        || message.commit_term != 0
        || message.request_snapshot != 0
        || message.priority != 0
        || !message.context.is_empty()
        || !message.entries.is_empty()
        || message.has_snapshot();
    let marks = if is_long { LONG } else { 0 } | if message.reject { REJECT } else { 0 };
    let number = u8::try_from(number).expect("types are few");
    let begun = peer::begin(out, peer::Kind::Raft, number | marks, group);
    for field in [message.term, message.index, message.commit] {
        out.extend_from_slice(&field.to_le_bytes());
    }
    if is_long {
        encode_long(group, message, out);
    }
    peer::finish(out, begun);
    true
}

fn encode_long(group: u16, message: &Message, out: &mut FrameBuffer) {
    let (mut configuration, mut at) = (Vec::new(), (0, 0));
    if message.has_snapshot() {
        let meta = message.get_snapshot().get_metadata();
        conf::encode(meta.get_conf_state(), &mut configuration);
        at = (meta.index, meta.term);
    }
    let len = |len: usize| u32::try_from(len).expect("messages are bounded").to_le_bytes();
    let fields = [message.log_term, message.reject_hint, message.commit_term, message.request_snapshot];
    for field in fields {
        out.extend_from_slice(&field.to_le_bytes());
    }
    out.extend_from_slice(&message.priority.to_le_bytes());
    out.extend_from_slice(&len(message.context.len()));
    out.extend_from_slice(&len(message.entries.len()));
    out.extend_from_slice(&at.0.to_le_bytes());
    out.extend_from_slice(&at.1.to_le_bytes());
    out.extend_from_slice(&len(configuration.len()));
    out.extend_from_slice(&[0; 12]);
    for part in [&message.context[..], &configuration] {
        out.extend_from_slice(part);
        peer::pad(out);
    }
    for entry in &message.entries {
        out.extend_from_slice(&entry_header(group, entry, 0));
        out.extend_from_slice(body_of(entry));
        peer::pad(out);
    }
}

/// Reads a message that `from` sent to `to`. `None` for bytes that are none.
pub(crate) fn decode(frame: &peer::Frame<'_>, from: u64, to: u64) -> Option<Message> {
    let mut fields = Fields(frame.body);
    let mut message = Message { from, to, ..Message::default() };
    message.set_msg_type(*TYPES.get(usize::from(frame.detail & TYPE))?);
    message.reject = frame.detail & REJECT != 0;
    (message.term, message.index, message.commit) = (fields.u64()?, fields.u64()?, fields.u64()?);
    if message.term == 0 {
        // The library takes messages without a term for its own.
        return None;
    }
    if frame.detail & LONG != 0 {
        decode_long(frame.group, &mut fields, &mut message)?;
    }
    (message.get_msg_type() != MessageType::MsgSnapshot || message.has_snapshot()).then_some(message)
}

fn decode_long(group: u16, fields: &mut Fields<'_>, message: &mut Message) -> Option<()> {
    message.log_term = fields.u64()?;
    message.reject_hint = fields.u64()?;
    message.commit_term = fields.u64()?;
    message.request_snapshot = fields.u64()?;
    message.priority = i64::from_le_bytes(fields.array()?);
    let (context_len, count) = (fields.u32()?, fields.u32()?);
    let (index, term, configuration_len) = (fields.u64()?, fields.u64()?, fields.u32()?);
    fields.bytes(12)?;
    if count > ENTRIES_MAX || context_len > CONTEXT_BYTES_MAX {
        return None;
    }
    message.context = Bytes::copy_from_slice(fields.padded(context_len)?);
    let configuration = fields.padded(configuration_len)?;
    if index > 0 {
        let mut snapshot = Snapshot::default();
        snapshot.mut_metadata().index = index;
        snapshot.mut_metadata().term = term;
        snapshot.mut_metadata().set_conf_state(conf::decode(configuration)?);
        message.set_snapshot(snapshot);
    }
    // One allocation for all entries of the message; each keeps a piece of it.
    let shared = aligned(fields.0);
    let mut entries = Vec::new();
    for number in 0..u64::from(count) {
        let view = EntryView::read(fields)?;
        let follows = view.index == message.index + 1 + number;
        if view.group != group || !follows || view.term > message.term {
            return None;
        }
        let data = if view.data.is_empty() { Bytes::new() } else { shared.slice(place_of(view.data, fields, &shared)) };
        entries.push(view.entry(data));
    }
    message.set_entries(entries.into());
    Some(())
}

/// Where data just read lies in the copy of what was unread before.
fn place_of(data: &[u8], rest: &Fields<'_>, shared: &Bytes) -> core::ops::Range<usize> {
    let end = shared.len() - rest.0.len();
    let at = end - data.len().next_multiple_of(16);
    at..at + data.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use raft::eraftpb::Entry;

    fn sample() -> Message {
        let entry =
            |index, data: &'static [u8]| Entry { index, term: 4, data: Bytes::from_static(data), ..Entry::default() };
        let mut message = Message { from: 1, to: 2, term: 5, index: 9, commit: 8, log_term: 3, ..Message::default() };
        message.set_msg_type(MessageType::MsgAppend);
        message.set_entries(vec![entry(10, b"one"), entry(11, b""), entry(12, b"three and more than sixteen")].into());
        message
    }

    fn read(bytes: &[u8]) -> Option<Message> {
        let mut aligned = FrameBuffer::new();
        aligned.extend_from_slice(bytes);
        let mut rest = &aligned[..];
        decode(&peer::next(&mut rest)?, 1, 2)
    }

    #[test]
    fn messages_round_trip() {
        let mut out = FrameBuffer::new();
        let mut snapshot = Message { from: 1, to: 2, term: 5, ..Message::default() };
        snapshot.set_msg_type(MessageType::MsgSnapshot);
        snapshot.mut_snapshot().mut_metadata().index = 70;
        snapshot.mut_snapshot().mut_metadata().term = 4;
        snapshot.mut_snapshot().mut_metadata().set_conf_state(conf::alone(1));
        let mut heartbeat = Message { from: 1, to: 2, term: 5, commit: 3, ..Message::default() };
        heartbeat.set_msg_type(MessageType::MsgHeartbeat);
        for message in [sample(), snapshot, heartbeat] {
            out.clear();
            assert!(encode(7, &message, &mut out));
            assert_eq!(read(&out), Some(message));
        }
        assert_eq!(out.len(), 32, "a heartbeat is short");
    }

    proptest! {
        #[test]
        fn damaged_messages_are_refused_or_read_as_others(at in 0usize..256, bit in 0u8..8, cut in 0usize..256) {
            let mut out = FrameBuffer::new();
            encode(7, &sample(), &mut out);
            let mut bytes = out.to_vec();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            bytes.truncate(bytes.len() - cut % bytes.len());
            let _ = read(&bytes);
        }
    }
}

//! What a shard writes into its log, and how a group's entries lie there and in messages between nodes.
//!
//! Every record of an entry begins with 32 bytes, followed by its data, padded to 16, so that commands in it can be used
//! where they were read:
//!
//! ```text
//! offset size field
//!      0    2 group         partition, or 0xFFFF for the meta group
//!      2    1 form          0: commands (none: an empty entry of a new leader); 1: a configuration (`replica/conf.rs`)
//!      3    1 reserved      zero
//!      4    4 data_len      bytes
//!      8    8 index         position in the group's log, from 1
//!     16    8 term
//!     24    8 commit        in the shard's log: up to where the group was known to be committed; in messages zero
//! ```

use bytes::Bytes;
use raft::eraftpb::{ConfState, Entry, EntryType, HardState};
use taskmaster_protocol::FrameBuffer;

use super::conf;
use super::log::Position;

/// Kinds of records in a shard's log.
pub mod kind {
    /// An entry of a group: header and data.
    pub const ENTRY: u32 = 2;
    /// A group's term and vote: [`super::HARD_BYTES`] bytes.
    pub const HARD: u32 = 3;
    /// A chunk of a snapshot that is being received: [`super::CHUNK_HEADER_BYTES`] bytes, then the chunk.
    pub const CHUNK: u32 = 4;
    /// The snapshot whose chunks came before is the group's state: [`super::INSTALL_BYTES`] bytes, then its configuration.
    pub const INSTALL: u32 = 5;
    /// The group's replica was removed from this node: [`super::HARD_BYTES`] bytes. Its term and vote stay, and how far its log went.
    pub const REMOVED: u32 = 6;
}

/// Bytes of an entry's header.
pub const ENTRY_HEADER_BYTES: usize = 32;
/// Bytes of a record of term and vote.
pub const HARD_BYTES: usize = 32;
/// Bytes before a received chunk.
pub const CHUNK_HEADER_BYTES: usize = 16;
/// Bytes before the configuration of an installed snapshot.
pub const INSTALL_BYTES: usize = 32;

const FORM_COMMANDS: u8 = 0;
const FORM_CONFIGURATION: u8 = 1;

/// One record for the shard's log.
pub(crate) struct Record {
    pub(crate) sequence: u64,
    pub(crate) kind: u32,
    pub(crate) header: [u8; 32],
    pub(crate) header_len: usize,
    pub(crate) data: Bytes,
}

/// Reads fixed fields from the front of a slice.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N).and_then(|bytes| bytes.first_chunk::<N>().copied())
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// As many bytes as a length field said, and the padding behind them, if anything is.
    pub(crate) fn padded(&mut self, len: u32) -> Option<&'a [u8]> {
        let len = usize::try_from(len).ok()?;
        let whole = self.bytes(len.checked_next_multiple_of(16)?.min(self.0.len()))?;
        whole.get(..len)
    }
}

/// What of an entry is written: its data, or for a configuration its bytes.
pub(crate) fn body_of(entry: &Entry) -> &Bytes {
    if entry.get_entry_type() == EntryType::EntryNormal { &entry.data } else { &entry.context }
}

/// An entry's header.
pub(crate) fn entry_header(group: u16, entry: &Entry, commit: u64) -> [u8; ENTRY_HEADER_BYTES] {
    let is_configuration = entry.get_entry_type() != EntryType::EntryNormal;
    let len = u32::try_from(body_of(entry).len()).expect("entries are bounded");
    let mut header = [0; ENTRY_HEADER_BYTES];
    header[0..2].copy_from_slice(&group.to_le_bytes());
    header[2] = if is_configuration { FORM_CONFIGURATION } else { FORM_COMMANDS };
    header[4..8].copy_from_slice(&len.to_le_bytes());
    header[8..16].copy_from_slice(&entry.index.to_le_bytes());
    header[16..24].copy_from_slice(&entry.term.to_le_bytes());
    header[24..32].copy_from_slice(&commit.to_le_bytes());
    header
}

/// An entry read in place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EntryView<'a> {
    pub(crate) group: u16,
    pub(crate) is_configuration: bool,
    pub(crate) index: u64,
    pub(crate) term: u64,
    pub(crate) commit: u64,
    pub(crate) data: &'a [u8],
}

impl<'a> EntryView<'a> {
    /// Reads one entry from the front of `fields`.
    pub(crate) fn read(fields: &mut Fields<'a>) -> Option<Self> {
        let (group, form, _) = (fields.u16()?, fields.u8()?, fields.u8()?);
        let len = fields.u32()?;
        let (index, term, commit) = (fields.u64()?, fields.u64()?, fields.u64()?);
        let is_configuration = form == FORM_CONFIGURATION;
        let data = fields.padded(len)?;
        let is_sound = (form == FORM_COMMANDS || (is_configuration && conf::decode(data).is_some())) && index > 0;
        is_sound.then_some(Self { group, is_configuration, index, term, commit, data })
    }

    /// The library's entry, with `data` being the same bytes in shared memory.
    pub(crate) fn entry(&self, data: Bytes) -> Entry {
        let mut entry = Entry { index: self.index, term: self.term, ..Entry::default() };
        if self.is_configuration {
            entry.set_entry_type(EntryType::EntryConfChangeV2);
            entry.context = data;
        } else {
            entry.data = data;
        }
        entry
    }
}

/// Bytes in shared memory that begin on a multiple of 16.
pub(crate) fn aligned(bytes: &[u8]) -> Bytes {
    if bytes.is_empty() {
        return Bytes::new();
    }
    let mut buffer = FrameBuffer::with_capacity(bytes.len());
    buffer.extend_from_slice(bytes);
    Bytes::from_owner(buffer)
}

/// What stands before a received chunk: tag, number within its transfer, whether it is the last, and which transfer.
pub(crate) fn chunk(group: u16, tag: u8, number: u32, is_last: bool, transfer: u64) -> [u8; CHUNK_HEADER_BYTES] {
    let mut header = [0; CHUNK_HEADER_BYTES];
    header[0..2].copy_from_slice(&group.to_le_bytes());
    header[2] = tag;
    header[3] = u8::from(is_last);
    header[4..8].copy_from_slice(&number.to_le_bytes());
    header[8..16].copy_from_slice(&transfer.to_le_bytes());
    header
}

/// A group's term and vote.
pub(crate) fn hard(group: u16, state: &HardState) -> [u8; HARD_BYTES] {
    let mut record = [0; HARD_BYTES];
    record[0..2].copy_from_slice(&group.to_le_bytes());
    record[8..16].copy_from_slice(&state.term.to_le_bytes());
    record[16..24].copy_from_slice(&state.vote.to_le_bytes());
    record[24..32].copy_from_slice(&state.commit.to_le_bytes());
    record
}

/// What stays of a replica that was removed.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Removed {
    pub(crate) group: u16,
    pub(crate) term: u64,
    pub(crate) vote: u64,
    /// The last entry of its log: others may count on it.
    pub(crate) last: Position,
}

impl Removed {
    /// The record of it.
    ///
    /// # Panics
    /// If the last entry's term does not fit 32 bits.
    pub(crate) fn record(&self) -> [u8; HARD_BYTES] {
        let state = HardState { term: self.term, vote: self.vote, commit: self.last.index, ..HardState::default() };
        let mut record = hard(self.group, &state);
        let term = u32::try_from(self.last.term).expect("terms count elections");
        record[4..8].copy_from_slice(&term.to_le_bytes());
        record
    }

    /// Reads a record of it.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let group = fields.u16()?;
        fields.bytes(2)?;
        let last_term = fields.u32()?;
        let (term, vote, index) = (fields.u64()?, fields.u64()?, fields.u64()?);
        Some(Self { group, term, vote, last: Position { term: last_term.into(), index } })
    }

    /// Term and vote of the next replica here.
    pub(crate) fn hard(&self) -> HardState {
        HardState { term: self.term, vote: self.vote, ..HardState::default() }
    }
}

/// Reads a record of [`hard`].
pub(crate) fn read_hard(bytes: &[u8]) -> Option<(u16, HardState)> {
    let mut fields = Fields(bytes);
    let group = fields.u16()?;
    fields.bytes(6)?;
    let (term, vote, commit) = (fields.u64()?, fields.u64()?, fields.u64()?);
    Some((group, HardState { term, vote, commit, ..HardState::default() }))
}

/// The record of an installed snapshot, in two parts: position, and the configuration there.
pub(crate) fn install(group: u16, at: Position, to: &ConfState) -> ([u8; INSTALL_BYTES], Vec<u8>) {
    let mut configuration = Vec::new();
    conf::encode(to, &mut configuration);
    let mut header = [0; INSTALL_BYTES];
    header[0..2].copy_from_slice(&group.to_le_bytes());
    header[8..16].copy_from_slice(&at.index.to_le_bytes());
    header[16..24].copy_from_slice(&at.term.to_le_bytes());
    (header, configuration)
}

/// Reads a record of [`install`].
pub(crate) fn read_install(bytes: &[u8]) -> Option<(u16, Position, ConfState)> {
    let mut fields = Fields(bytes);
    let group = fields.u16()?;
    fields.bytes(6)?;
    let at = Position { index: fields.u64()?, term: fields.u64()? };
    fields.bytes(8)?;
    Some((group, at, conf::decode(fields.0)?))
}

/// The configuration that an entry brings, if it is such an entry.
pub(crate) fn conf_of(entry: &Entry) -> Option<ConfState> {
    if entry.get_entry_type() == EntryType::EntryNormal { None } else { conf::decode(&entry.context) }
}

/// Takes over the later of two records of term and vote: votes of a term are cast once, and commits only grow.
pub(crate) fn merge_hard(into: &mut HardState, from: &HardState) {
    if from.term > into.term {
        (into.term, into.vote) = (from.term, from.vote);
    } else if from.term == into.term && into.vote == 0 {
        into.vote = from.vote;
    }
    into.commit = into.commit.max(from.commit);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_round_trip_and_hostile_bytes_do_not() {
        let entry = Entry { index: 7, term: 3, data: Bytes::from_static(b"0123456789"), ..Entry::default() };
        let mut bytes = entry_header(5, &entry, 6).to_vec();
        bytes.extend_from_slice(&entry.data);
        bytes.resize(bytes.len().next_multiple_of(16), 0);
        let view = EntryView::read(&mut Fields(&bytes)).unwrap();
        assert_eq!((view.group, view.index, view.term, view.commit, view.data), (5, 7, 3, 6, &b"0123456789"[..]));
        assert_eq!(view.entry(aligned(view.data)), entry);
        for cut in 0..ENTRY_HEADER_BYTES + entry.data.len() {
            assert!(EntryView::read(&mut Fields(&bytes[..cut])).is_none());
        }
        bytes[2] = FORM_CONFIGURATION;
        assert!(EntryView::read(&mut Fields(&bytes)).is_none(), "no configuration");
    }

    #[test]
    fn a_vote_is_never_taken_back() {
        let mut state = HardState { term: 4, vote: 2, commit: 9, ..HardState::default() };
        merge_hard(&mut state, &HardState { term: 3, vote: 1, commit: 5, ..HardState::default() });
        merge_hard(&mut state, &HardState { term: 4, vote: 0, commit: 10, ..HardState::default() });
        assert_eq!((state.term, state.vote, state.commit), (4, 2, 10));
        let (group, read) = read_hard(&hard(3, &state)).unwrap();
        assert_eq!((group, read), (3, state));
    }
}

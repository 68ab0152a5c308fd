//! Snapshots: of all groups into the shard's own file, and of one group for a follower. Chunks are the same in both.
//!
//! A group's snapshot is its head (position, configuration, settings; in the shard's file also term, vote and the entries
//! behind the position), then its state. Groups are written one after the other, each as it is when its turn comes: the
//! log is read from before the first, and entries that a group's head covers are passed over.
//!
//! One group is written for one reader at a time.

use raft::eraftpb::{ConfState, HardState};
use taskmaster_protocol::FrameBuffer;

use super::Shard;
use crate::entry::{SETTINGS_BYTES, Settings};
use crate::peer::META_GROUP;
use crate::replica::conf;
use crate::replica::log::Position;
use crate::replica::record::{Fields, body_of, entry_header};
use crate::snapshot;

/// What a chunk holds.
pub mod tag {
    /// A group's head.
    pub const HEAD: u32 = 2;
    /// Entries of the group behind its position.
    pub const ENTRIES: u32 = 3;
    /// The cluster map.
    pub const MAP: u32 = 4;
    /// Term and vote of a replica that was removed.
    pub const REMOVED: u32 = 5;
    /// Part of a partition's state. Number 1 was one of tasks that could not be memoised; its records were shorter.
    pub const STATE: u32 = 6;
}

/// Bytes of entries per chunk.
const ENTRIES_BYTES: usize = 256 << 10;
/// Bytes of a head before its configuration.
pub(crate) const HEAD_BYTES: usize = 96;

/// A group's head.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Head {
    pub(crate) group: u16,
    pub(crate) at: Position,
    pub(crate) hard: HardState,
    pub(crate) command_us: u64,
    pub(crate) earlier: Position,
    pub(crate) settings: Settings,
    pub(crate) conf: ConfState,
}

impl Head {
    pub(crate) fn write(&self, out: &mut FrameBuffer) {
        out.extend_from_slice(&self.group.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&u32::try_from(self.earlier.term).expect("terms count elections").to_le_bytes());
        let (hard, earlier) = (&self.hard, self.earlier.index);
        for field in [self.at.index, self.at.term, hard.term, hard.vote, hard.commit, self.command_us, earlier] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        out.extend_from_slice(&self.settings.bytes());
        let mut configuration = Vec::new();
        conf::encode(&self.conf, &mut configuration);
        let len = u32::try_from(configuration.len()).expect("members are bounded");
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&configuration);
    }

    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let group = fields.u16()?;
        fields.bytes(2)?;
        let earlier_term = fields.u32()?;
        let at = Position { index: fields.u64()?, term: fields.u64()? };
        let (term, vote, commit) = (fields.u64()?, fields.u64()?, fields.u64()?);
        let command_us = fields.u64()?;
        let earlier = Position { term: earlier_term.into(), index: fields.u64()? };
        let settings = Settings::read(fields.bytes(SETTINGS_BYTES)?)?;
        let len = usize::try_from(fields.u32()?).ok()?;
        fields.bytes(4)?;
        // A replica that never got its first state has no configuration.
        let configuration = fields.bytes(len)?;
        let conf = if at.index == 0 { ConfState::default() } else { conf::decode(configuration)? };
        Some(Self {
            group,
            at,
            hard: HardState { term, vote, commit, ..HardState::default() },
            command_us,
            earlier,
            settings,
            conf,
        })
    }
}

const _: () = assert!(HEAD_BYTES == 8 + 7 * 8 + SETTINGS_BYTES + 8);

/// What comes next of a group that is being written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Head,
    /// Entries from one index to another; the log keeps them until they are written.
    Entries(u64, u64),
    State,
    End,
}

/// The shard's own snapshot in progress.
#[derive(Debug, Default)]
pub(super) struct Local {
    at: Option<(usize, Part)>,
    /// A group was replaced while it was written: this snapshot is of no use.
    pub(super) is_broken: bool,
}

/// What [`Shard::snapshot_next`] came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotStep {
    /// A chunk with this tag is in the buffer.
    Chunk(u32),
    /// The next group is being written for a follower: come again later.
    Wait,
    /// That was all.
    End,
    /// The snapshot is of no use: throw it away and begin another one later.
    Broken,
}

impl Shard {
    /// Whether a snapshot may begin: not while a follower's state is being received, which lies in the log in pieces.
    #[must_use]
    pub fn can_snapshot(&self) -> bool {
        self.local.at.is_none() && !self.transfers.is_receiving() && self.overtaken_sequence <= self.durable_sequence
    }

    /// Records of the log were overtaken by what comes next: a snapshot that has what comes next must not be followed by them.
    pub(super) fn overtaken(&mut self) {
        self.overtaken_sequence = self.unlogged.last_sequence();
        self.local.is_broken |= self.local.at.is_some();
    }

    /// Begins a snapshot for recovery. It covers every record that is durable, and has more.
    ///
    /// # Panics
    /// If one is in progress.
    pub fn snapshot_begin(&mut self) {
        assert!(self.local.at.is_none(), "one snapshot at a time");
        self.local = Local { at: Some((0, Part::Head)), is_broken: false };
    }

    /// Appends the next chunk to `out` (cleared first). Work per call is bounded; call in idle slices.
    pub fn snapshot_next(&mut self, out: &mut FrameBuffer) -> SnapshotStep {
        out.clear();
        loop {
            let Some((place, part)) = self.local.at else { return SnapshotStep::End };
            if self.local.is_broken {
                self.snapshot_abandon();
                return SnapshotStep::Broken;
            }
            if place == self.groups.len() {
                self.local.at = None;
                return if self.write_removed(out) { SnapshotStep::Chunk(tag::REMOVED) } else { SnapshotStep::End };
            }
            let Some(number) = self.groups[place].as_deref().map(|group| group.number) else {
                self.local.at = Some((place + 1, Part::Head));
                continue;
            };
            if part == Part::Head && self.is_written(number) {
                return SnapshotStep::Wait;
            }
            match self.write_part(number, part, true, out) {
                Some((tag, next)) => {
                    self.local.at = Some((place, next));
                    return SnapshotStep::Chunk(tag);
                }
                None => self.local.at = Some((place + 1, Part::Head)),
            }
        }
    }

    /// Throws the snapshot in progress away.
    pub fn snapshot_abandon(&mut self) {
        if let Some((place, part)) = self.local.at.take()
            && part != Part::Head
            && let Some(partition) = self.partitions.get_mut(place).and_then(Option::as_deref_mut)
        {
            snapshot::abandon(partition, &mut self.arena);
        }
    }

    /// Whether a group is being written for somebody.
    fn is_written(&self, number: u16) -> bool {
        let partition = self.partitions.get(usize::from(number)).and_then(Option::as_deref);
        partition.is_some_and(|partition| partition.snapshot.is_active())
    }

    /// The local snapshot is at this group.
    pub(super) fn is_written_locally(&self, number: u16) -> bool {
        self.local.at.is_some_and(|(place, part)| self.place(number) == Some(place) && part != Part::Head)
    }

    /// Whether writing a group for a follower can begin.
    pub(super) fn can_write(&self, number: u16) -> bool {
        !self.is_written(number) && !self.is_written_locally(number)
    }

    /// Appends the next part of a group's snapshot; its tag and what follows, or `None` after the last.
    pub(super) fn write_part(
        &mut self,
        number: u16,
        part: Part,
        for_recovery: bool,
        out: &mut FrameBuffer,
    ) -> Option<(u32, Part)> {
        match part {
            Part::Head => {
                let head = self.head(number)?;
                // Later ones are behind the snapshot in the log; without it the snapshot must not know them.
                let last = self.group(number)?.replica.durable_index(self.durable_sequence);
                head.write(out);
                if let Some(partition) = self.partitions.get_mut(usize::from(number)).and_then(Option::as_deref_mut) {
                    snapshot::begin(partition, &self.arena);
                }
                let next = if for_recovery { Part::Entries(head.at.index + 1, last) } else { Part::State };
                Some((tag::HEAD, next))
            }
            Part::Entries(from, last) => match self.write_entries(number, from, last, out) {
                Some(next) => Some((tag::ENTRIES, Part::Entries(next, last))),
                None => self.write_part(number, Part::State, for_recovery, out),
            },
            Part::State if number == META_GROUP => {
                let map = self.meta.map.as_ref()?;
                let mut bytes = Vec::new();
                map.encode(&mut bytes);
                out.extend_from_slice(&bytes);
                Some((tag::MAP, Part::End))
            }
            Part::End => None,
            Part::State => {
                let partition = self.partitions.get_mut(usize::from(number)).and_then(Option::as_deref_mut)?;
                snapshot::next(partition, &mut self.arena, out).then_some((tag::STATE, Part::State))
            }
        }
    }

    fn head(&self, number: u16) -> Option<Head> {
        let replica = &self.group(number)?.replica;
        let partition = self.partitions.get(usize::from(number)).and_then(Option::as_deref);
        Some(Head {
            group: number,
            at: replica.applied(),
            hard: replica.log().hard.clone(),
            earlier: replica.log().earlier,
            command_us: partition.map_or(0, |partition| partition.command_us),
            settings: partition.map_or(Settings::default(), |partition| partition.settings),
            conf: replica.conf().clone(),
        })
    }

    /// Up to where a group's log may be cut, when entries behind are still to be written.
    pub(super) fn kept_for_snapshot(&self, number: u16) -> Option<u64> {
        let (place, part) = self.local.at?;
        match part {
            Part::Entries(from, last) if from <= last && self.place(number) == Some(place) => Some(from - 1),
            _ => None,
        }
    }

    /// Appends entries from one index to another; the index that follows, or `None` when there are none.
    fn write_entries(&self, number: u16, from: u64, last: u64, out: &mut FrameBuffer) -> Option<u64> {
        let mut next = None;
        for entry in self.group(number)?.replica.log().tail(from).take_while(|entry| entry.index <= last) {
            if out.len() >= ENTRIES_BYTES {
                break;
            }
            out.extend_from_slice(&entry_header(number, entry, 0));
            out.extend_from_slice(body_of(entry));
            out.resize(out.len().next_multiple_of(16), 0);
            next = Some(entry.index + 1);
        }
        next
    }

    fn write_removed(&self, out: &mut FrameBuffer) -> bool {
        for removed in &self.meta.removed {
            out.extend_from_slice(&removed.record());
        }
        !self.meta.removed.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_round_trip() {
        let head = Head {
            group: 3,
            at: Position { term: 4, index: 17 },
            hard: HardState { term: 5, vote: 9, commit: 18, ..HardState::default() },
            command_us: 77,
            earlier: Position { term: 3, index: 21 },
            settings: Settings { retention_ms: 1, kept_max: 2, waiting_max: 3, ..Settings::default() },
            conf: conf::alone(9),
        };
        let mut out = FrameBuffer::new();
        head.write(&mut out);
        assert_eq!(Head::read(&out), Some(head));
        for cut in 0..out.len() {
            assert_eq!(Head::read(&out[..cut]), None);
        }
    }
}

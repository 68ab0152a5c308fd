//! A group's Raft log in memory, as the raft library reads it.
//!
//! Invariants:
//! - Entries are consecutive from `before + 1`; `before` is the position of the last entry that was cut off.
//! - Nothing that is not applied is cut off.
//! - A snapshot is offered to a follower only once all of it was streamed there and while the log reaches back to it.
//!
//! The log's durable form is the shard's write-ahead log; this is what of it may still be needed by a follower.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use raft::eraftpb::{ConfState, Entry, HardState, Snapshot, SnapshotMetadata};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

/// A place in a Raft log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    pub(crate) term: u64,
    pub(crate) index: u64,
}

/// The log of one group.
#[derive(Default)]
pub(crate) struct Log {
    pub(crate) hard: HardState,
    /// The configuration at the last applied entry.
    pub(crate) conf: ConfState,
    /// Where the log of an earlier replica here ended, which was removed: as far as this one may not vote for less.
    pub(crate) earlier: Position,
    before: Position,
    entries: VecDeque<Entry>,
    bytes: u64,
    /// Followers that need a snapshot, noted when the library asks for one.
    wanted: RefCell<Vec<u64>>,
    /// Snapshots that were streamed to a follower: node and position.
    offered: RefCell<Vec<(u64, SnapshotMetadata)>>,
    asked: Cell<bool>,
}

impl Log {
    /// An empty log behind a state at `before`.
    pub(crate) fn after(before: Position, hard: HardState, conf: ConfState) -> Self {
        Self { hard, conf, before, ..Self::default() }
    }

    pub(crate) fn last(&self) -> Position {
        self.entries.back().map_or(self.before, |entry| Position { term: entry.term, index: entry.index })
    }

    pub(crate) const fn before(&self) -> Position {
        self.before
    }

    /// Bytes of entries held.
    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The term of an entry that is held, or of the one before.
    pub(crate) fn term_of(&self, index: u64) -> Option<u64> {
        if index == self.before.index {
            return Some(self.before.term);
        }
        self.get(index).map(|entry| entry.term)
    }

    /// An entry that is held.
    pub(crate) fn get(&self, index: u64) -> Option<&Entry> {
        let place = index.checked_sub(self.before.index + 1)?;
        self.entries.get(usize::try_from(place).ok()?)
    }

    /// Adds entries; what stood at their places and behind goes.
    ///
    /// # Panics
    /// On a gap: a defect.
    pub(crate) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        assert!(first.index > self.before.index && first.index <= self.last().index + 1, "a Raft log has no gaps");
        while self.entries.back().is_some_and(|entry| entry.index >= first.index) {
            let entry = self.entries.pop_back().expect("just seen");
            self.bytes -= size_of_entry(&entry);
        }
        for entry in entries {
            self.bytes += size_of_entry(entry);
            self.entries.push_back(entry.clone());
        }
    }

    /// Adds an entry read back from the shard's log: one that is known is passed over, one of another term replaces what
    /// stands at its place and behind. `false` when entries before it are missing.
    pub(crate) fn replay(&mut self, entry: Entry) -> bool {
        if entry.index <= self.before.index || self.term_of(entry.index) == Some(entry.term) {
            return true;
        }
        if entry.index > self.last().index + 1 {
            return false;
        }
        self.append(&[entry]);
        true
    }

    /// Cuts entries off up to `index`.
    pub(crate) fn cut(&mut self, index: u64) {
        while self.entries.front().is_some_and(|entry| entry.index <= index) {
            let entry = self.entries.pop_front().expect("just seen");
            self.bytes -= size_of_entry(&entry);
            self.before = Position { term: entry.term, index: entry.index };
        }
        if self.entries.capacity() > 64 && self.entries.capacity() > 4 * self.entries.len() {
            self.entries.shrink_to(2 * self.entries.len());
        }
    }

    /// Starts anew behind an installed snapshot.
    pub(crate) fn restart(&mut self, at: Position, conf: ConfState) {
        self.entries.clear();
        (self.bytes, self.before, self.conf) = (0, at, conf);
        self.hard.commit = self.hard.commit.max(at.index);
    }

    /// Entries from `index` on.
    pub(crate) fn tail(&self, index: u64) -> impl Iterator<Item = &Entry> {
        let skip = index.saturating_sub(self.before.index + 1);
        self.entries.iter().skip(usize::try_from(skip).unwrap_or(usize::MAX))
    }

    /// Followers that asked for a snapshot since the last call.
    pub(crate) fn take_wanted(&self) -> Vec<u64> {
        self.asked.set(false);
        core::mem::take(&mut self.wanted.borrow_mut())
    }

    /// Whether a follower asked for a snapshot.
    pub(crate) const fn is_wanted(&self) -> bool {
        self.asked.get()
    }

    /// A snapshot was streamed to a follower whole.
    pub(crate) fn offer(&self, to: u64, at: Position, conf: ConfState) {
        let mut meta = SnapshotMetadata { index: at.index, term: at.term, ..SnapshotMetadata::default() };
        meta.set_conf_state(conf);
        let mut offered = self.offered.borrow_mut();
        offered.retain(|(node, _)| *node != to);
        offered.push((to, meta));
    }

    /// What was streamed to a follower is of no more use to it.
    pub(crate) fn retract(&self, from: u64) {
        self.offered.borrow_mut().retain(|(node, _)| *node != from);
    }

    /// No snapshot is on offer any more.
    pub(crate) fn withdraw(&self) {
        self.offered.borrow_mut().clear();
        self.wanted.borrow_mut().clear();
        self.asked.set(false);
    }
}

/// What an entry counts for, in bytes.
fn size_of_entry(entry: &Entry) -> u64 {
    (entry.data.len() + entry.context.len() + size_of::<Entry>()) as u64
}

impl Storage for Log {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.hard.clone(), self.conf.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.before.index {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        assert!(high <= self.last().index + 1, "entries up to {high} of a log that ends at {}", self.last().index);
        let from = usize::try_from(low - self.before.index - 1).expect("a log in memory");
        let count = usize::try_from(high - low).expect("a log in memory");
        let max_size = max_size.into().unwrap_or(u64::MAX);
        let mut size = 0;
        let within = |entry: &&Entry| {
            let is_first = size == 0;
            size += size_of_entry(entry);
            is_first || size <= max_size
        };
        Ok(self.entries.range(from..from + count).take_while(within).cloned().collect())
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index < self.before.index {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        self.term_of(index).ok_or(raft::Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.before.index + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last().index)
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        let offered = self.offered.borrow();
        let found = offered
            .iter()
            .find(|(node, meta)| *node == to && meta.index >= request_index && meta.index >= self.before.index);
        if let Some((_, meta)) = found {
            let mut snapshot = Snapshot::default();
            snapshot.set_metadata(meta.clone());
            return Ok(snapshot);
        }
        drop(offered);
        let mut wanted = self.wanted.borrow_mut();
        if !wanted.contains(&to) {
            wanted.push(to);
        }
        self.asked.set(true);
        Err(raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(term: u64, index: u64) -> Entry {
        Entry { term, index, ..Entry::default() }
    }

    #[test]
    fn later_terms_replace_what_stood_there() {
        let mut log = Log::default();
        log.append(&[entry(1, 1), entry(1, 2), entry(1, 3)]);
        log.append(&[entry(2, 2)]);
        assert_eq!(log.last(), Position { term: 2, index: 2 });
        assert!(log.replay(entry(1, 1)), "a known entry changes nothing");
        assert_eq!(log.last().index, 2);
        assert!(!log.replay(entry(3, 4)), "an entry is missing");
    }

    #[test]
    fn cut_entries_leave_their_term() {
        let mut log = Log::default();
        log.append(&[entry(1, 1), entry(2, 2), entry(2, 3)]);
        log.cut(2);
        assert_eq!((log.first_index().unwrap(), log.term(2).unwrap(), log.term(3).unwrap()), (3, 2, 2));
        assert_eq!(log.term(1).unwrap_err(), raft::Error::Store(StorageError::Compacted));
        assert!(log.replay(entry(1, 1)));
        assert_eq!(log.last().index, 3);
    }

    #[test]
    fn a_snapshot_is_offered_once_it_was_streamed() {
        let mut log = Log::after(Position { term: 3, index: 10 }, HardState::default(), ConfState::default());
        log.append(&[entry(3, 11)]);
        assert!(log.snapshot(0, 7).is_err() && log.is_wanted());
        assert_eq!(log.take_wanted(), [7]);
        log.offer(7, Position { term: 3, index: 10 }, ConfState::default());
        assert_eq!(log.snapshot(0, 7).unwrap().get_metadata().index, 10);
        log.cut(11);
        assert!(log.snapshot(0, 7).is_err(), "the log no longer reaches back to it");
    }
}

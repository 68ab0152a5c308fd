//! How far each partition is, told from a snapshot and the log behind it without building any state.
//!
//! It reads the same chunks and records as recovery, and so agrees with it; what they mean for tasks is of no interest here.

use std::collections::BTreeMap;

use super::snapshots::{Head, tag};
use crate::cluster::map::ClusterMap;
use crate::entry::{self, EntryError};
use crate::peer::META_GROUP;
use crate::replica::log::Position;
use crate::replica::record::{self, CHUNK_HEADER_BYTES, EntryView, Fields, Removed, kind};

/// The last entry of a partition's replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reached {
    /// Its term.
    pub term: u64,
    /// Its position in the partition's log.
    pub index: u64,
    /// Time of the partition's last command, in microseconds since 1970.
    pub time_us: u64,
}

/// The partitions of a shard, as its files have them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Positions {
    /// The cluster that the node belongs to, if the shard keeps its map; else 0.
    pub cluster: u128,
    /// Replicas that have a state.
    pub partitions: BTreeMap<u16, Reached>,
}

impl Positions {
    /// Takes a chunk of the snapshot.
    ///
    /// # Errors
    /// [`EntryError`] when it does not read as one.
    pub fn chunk(&mut self, chunk_tag: u32, bytes: &[u8]) -> Result<(), EntryError> {
        match chunk_tag {
            tag::HEAD => {
                let head = Head::read(bytes).ok_or(EntryError::Record("a group's head in the snapshot"))?;
                self.reach(head.group, head.at, head.command_us);
            }
            tag::ENTRIES => {
                let mut fields = Fields(bytes);
                while !fields.0.is_empty() {
                    let view = EntryView::read(&mut fields).ok_or(EntryError::Record("an entry in the snapshot"))?;
                    self.entry(&view)?;
                }
            }
            tag::MAP => self.map(bytes),
            _ => {}
        }
        Ok(())
    }

    /// Takes a record of the log.
    ///
    /// # Errors
    /// [`EntryError`] when it does not read as one.
    pub fn record(&mut self, record_kind: u32, bytes: &[u8]) -> Result<(), EntryError> {
        match record_kind {
            kind::ENTRY => {
                let view = EntryView::read(&mut Fields(bytes)).ok_or(EntryError::Record("a log record of an entry"))?;
                self.entry(&view)?;
            }
            kind::CHUNK => {
                let (header, chunk) =
                    bytes.split_first_chunk::<CHUNK_HEADER_BYTES>().ok_or(EntryError::Record("a chunk"))?;
                if u32::from(header[2]) == tag::MAP {
                    self.map(chunk);
                }
            }
            kind::INSTALL => {
                let unreadable = EntryError::Record("a log record of an installed snapshot");
                let (group, at, _) = record::read_install(bytes).ok_or(unreadable)?;
                self.reach(group, at, 0);
            }
            kind::REMOVED => {
                let removed = Removed::read(bytes).ok_or(EntryError::Record("a log record of a removal"))?;
                self.partitions.remove(&removed.group);
            }
            _ => {}
        }
        Ok(())
    }

    fn entry(&mut self, view: &EntryView<'_>) -> Result<(), EntryError> {
        let mut time_us = 0;
        if view.group == META_GROUP {
            // A founder's first entry is its map; later ones are changes of it.
            self.map(view.data);
        } else if !view.is_configuration {
            let mut rest = view.data;
            while !rest.is_empty() {
                time_us = entry::next(&mut rest, view.group, view.index)?.time_us;
            }
        }
        self.reach(view.group, Position { term: view.term, index: view.index }, time_us);
        Ok(())
    }

    /// Of entries that are seen twice, or took the place of others, the one of the highest term counts, as in the Raft log.
    fn reach(&mut self, group: u16, at: Position, time_us: u64) {
        if group == META_GROUP || at.index == 0 {
            return;
        }
        let reached = self.partitions.entry(group).or_default();
        if at > (Position { term: reached.term, index: reached.index }) {
            (reached.term, reached.index) = (at.term, at.index);
        }
        reached.time_us = reached.time_us.max(time_us);
    }

    fn map(&mut self, bytes: &[u8]) {
        // A node never changes its cluster.
        if self.cluster == 0
            && let Ok(map) = ClusterMap::decode(bytes)
        {
            self.cluster = map.cluster;
        }
    }
}

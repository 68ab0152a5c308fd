//! Bringing a shard back: snapshot, then log, then the start of its replicas.
//!
//! Invariants:
//! - Entries are applied again as far as a record says that they were committed; what lies behind is in the Raft log again, and
//!   the group decides about it.
//! - Terms and votes never go back, whatever the order in which records of them are read.
//! - A gap in a group's log, or a record that does not read as one, stops recovery.

use raft::eraftpb::HardState;
use taskmaster_protocol::{NodeId, PartitionId};

use super::Shard;
use super::snapshots::{Head, tag};
use crate::cluster::map::ClusterMap;
use crate::entry::EntryError;
use crate::partition::Partition;
use crate::peer::META_GROUP;
use crate::replica::Replica;
use crate::replica::log::{Log, Position};
use crate::replica::record::{
    self, CHUNK_HEADER_BYTES, EntryView, Fields, Removed, aligned, conf_of, kind, merge_hard, read_hard,
};
use crate::snapshot::Restore;

/// Bytes of applied entries that recovery leaves in a group's log.
const KEPT_BYTES: u64 = 256 << 10;

/// A group as far as it was read back.
#[derive(Default)]
pub(super) struct Found {
    pub(super) log: Log,
    pub(super) applied: Position,
    restore: Option<Restore>,
}

impl Shard {
    /// Takes one chunk of a snapshot, in the order in which they were written, before any record of the log.
    ///
    /// # Errors
    /// [`EntryError`] when the chunk is not of this shard or does not read as one.
    pub fn restore_chunk(&mut self, tag: u32, bytes: &[u8]) -> Result<(), EntryError> {
        match tag {
            tag::HEAD => {
                self.finish_restoring();
                let head = Head::read(bytes).ok_or(EntryError::Record("a group's head in the snapshot"))?;
                self.restore_head(head)
            }
            tag::ENTRIES => {
                let mut fields = Fields(bytes);
                while !fields.0.is_empty() {
                    let view = EntryView::read(&mut fields).ok_or(EntryError::Record("an entry in the snapshot"))?;
                    self.replay_entry(&view)?;
                }
                Ok(())
            }
            tag::STATE => self.restore_state(bytes),
            tag::MAP => {
                let map =
                    ClusterMap::decode(bytes).map_err(|_| EntryError::Record("the cluster map in the snapshot"))?;
                self.meta.install(map);
                Ok(())
            }
            tag::REMOVED => {
                self.finish_restoring();
                for hard in bytes.chunks_exact(record::HARD_BYTES) {
                    let removed = Removed::read(hard).ok_or(EntryError::Record("a removed replica"))?;
                    self.meta.removed.push(removed);
                }
                Ok(())
            }
            _ => Err(EntryError::Record("a chunk of an unknown kind")),
        }
    }

    fn restore_head(&mut self, head: Head) -> Result<(), EntryError> {
        self.check_place(head.group)?;
        if head.group != META_GROUP {
            let place = self.partitions.get_mut(usize::from(head.group));
            let place = place.ok_or(EntryError::Record("a partition's number in the snapshot"))?;
            let mut partition = Box::new(Partition::new(PartitionId(head.group)));
            (partition.command_us, partition.settings) = (head.command_us, head.settings);
            *place = Some(partition);
        }
        let mut log = Log::after(head.at, head.hard, head.conf);
        log.earlier = head.earlier;
        let restore = (head.group != META_GROUP).then(Restore::default);
        self.found.insert(head.group, Found { log, applied: head.at, restore });
        Ok(())
    }

    fn restore_state(&mut self, bytes: &[u8]) -> Result<(), EntryError> {
        let last = self.found.iter_mut().find(|(_, found)| found.restore.is_some());
        let Some((&group, found)) = last else { return Err(EntryError::Record("a state without a head")) };
        let mut restore = found.restore.take().expect("just found");
        let now_us = self.last_time_us;
        let (partition, mut cx) = self.split(PartitionId(group), now_us).expect("made with its head");
        let taken = restore.chunk(bytes, partition, &mut cx);
        self.found.get_mut(&group).expect("just found").restore = Some(restore);
        taken.map_err(|_| EntryError::Record("a partition's state in the snapshot"))
    }

    pub(super) fn finish_restoring(&mut self) {
        let now_us = self.last_time_us;
        let restoring = self.found.iter_mut().filter_map(|(&group, found)| Some((group, found.restore.take()?)));
        for (group, mut restore) in restoring.collect::<Vec<_>>() {
            if let Some((partition, mut cx)) = self.split(PartitionId(group), now_us) {
                restore.finish(partition, &mut cx);
                partition.arm_retention(cx.timers, now_us);
            }
        }
    }

    /// Takes one record read back from the log.
    ///
    /// # Errors
    /// [`EntryError`] when it does not read as one, cannot be applied, or lacks one before it.
    pub fn replay(&mut self, sequence: u64, record_kind: u32, bytes: &[u8]) -> Result<(), EntryError> {
        self.finish_restoring();
        // A node that was brought back by its snapshot alone counts from one again.
        let missing = core::mem::replace(&mut self.replayed, sequence) + 1;
        if missing > 1 && sequence > missing {
            return Err(EntryError::Gap { sequence, missing });
        }
        self.unlogged.recovered(sequence);
        match record_kind {
            kind::ENTRY => {
                let view = EntryView::read(&mut Fields(bytes)).ok_or(EntryError::Record("a log record of an entry"))?;
                self.replay_entry(&view)?;
                self.apply_found(view.group, view.commit)
            }
            kind::HARD => {
                let (group, hard) = read_hard(bytes).ok_or(EntryError::Record("a log record of a vote"))?;
                merge_hard(&mut self.found_mut(group)?.log.hard, &hard);
                Ok(())
            }
            kind::CHUNK => {
                let (header, chunk) =
                    bytes.split_first_chunk::<CHUNK_HEADER_BYTES>().ok_or(EntryError::Record("a chunk"))?;
                // One that does not fit belongs to a transfer that was given up.
                let _ = self.take_chunk(header, chunk);
                Ok(())
            }
            kind::INSTALL => self.replay_install(bytes),
            kind::REMOVED => {
                let removed = Removed::read(bytes).ok_or(EntryError::Record("a log record of a removal"))?;
                self.forget_group(removed);
                Ok(())
            }
            _ => Err(EntryError::Record("a log record of an unknown kind")),
        }
    }

    /// Whether a group's replica can be on this shard.
    fn check_place(&self, group: u16) -> Result<(), EntryError> {
        if self.is_home_of(group) { Ok(()) } else { Err(EntryError::Elsewhere(PartitionId(group))) }
    }

    fn found_mut(&mut self, group: u16) -> Result<&mut Found, EntryError> {
        self.check_place(group)?;
        let has_partition = self.partitions.get(usize::from(group)).is_some_and(Option::is_some);
        if group != META_GROUP && !has_partition {
            self.partitions[usize::from(group)] = Some(Box::new(Partition::new(PartitionId(group))));
        }
        let removed = self.meta.take_removed(group);
        let found = self.found.entry(group).or_default();
        if let Some(removed) = removed {
            merge_hard(&mut found.log.hard, &removed.hard());
            found.log.earlier = removed.last;
        }
        Ok(found)
    }

    fn replay_entry(&mut self, view: &EntryView<'_>) -> Result<(), EntryError> {
        if self.is_beyond(view) {
            return Ok(());
        }
        let found = self.found_mut(view.group)?;
        let entry = view.entry(aligned(view.data));
        let missing = found.log.last().index + 1;
        if found.log.replay(entry) {
            return Ok(());
        }
        Err(EntryError::Missing { group: view.group, index: view.index, missing })
    }

    /// The last entry of a group that was read back, if one node alone votes in it: all of them are committed.
    pub(super) fn found_alone(&self, group: u16) -> Option<u64> {
        let log = &self.found.get(&group)?.log;
        (log.conf.voters.len() == 1 && log.conf.voters_outgoing.is_empty()).then(|| log.last().index)
    }

    /// The groups that were read back, and the last entry of each.
    pub(super) fn found_groups(&self) -> impl Iterator<Item = (u16, u64)> {
        self.found.iter().map(|(&group, found)| (group, found.log.last().index))
    }

    /// The last entry of a group that is in the state that was read back.
    pub(super) fn found_index(&self, group: u16) -> Option<u64> {
        self.found.get(&group).map(|found| found.applied.index)
    }

    /// Applies entries that are known to be committed.
    pub(super) fn apply_found(&mut self, group: u16, commit: u64) -> Result<(), EntryError> {
        let Some(mut found) = self.found.remove(&group) else { return Ok(()) };
        found.log.hard.commit = found.log.hard.commit.max(commit);
        let until = found.log.hard.commit.min(found.log.last().index);
        while found.applied.index < until {
            let entry = found.log.get(found.applied.index + 1).expect("entries are consecutive").clone();
            if let Some(to) = conf_of(&entry) {
                found.log.conf = to;
            } else {
                self.apply_again(group, &entry)?;
            }
            found.applied = Position { term: entry.term, index: entry.index };
        }
        while found.log.bytes() > KEPT_BYTES && found.log.before().index < found.applied.index {
            let next = found.log.before().index + 1;
            found.log.cut(next);
        }
        self.found.insert(group, found);
        Ok(())
    }

    /// Applies all entries of a group of which this is the only replica: they are committed.
    ///
    /// # Panics
    /// When one does not apply: a defect, or another version's entry.
    pub(super) fn apply_alone(&mut self, group: u16) {
        if let Some(last) = self.found_alone(group) {
            self.apply_found(group, last).expect("the leader admitted these commands");
        }
    }

    fn replay_install(&mut self, bytes: &[u8]) -> Result<(), EntryError> {
        let unreadable = EntryError::Record("a log record of an installed snapshot");
        let (group, at, to) = record::read_install(bytes).ok_or(unreadable)?;
        if self.is_beyond_state(group, at.index) {
            return Ok(());
        }
        let found = self.found_mut(group)?;
        if found.applied.index >= at.index {
            // The snapshot that recovery began with has it.
            return Ok(());
        }
        found.log.restart(at, to);
        found.applied = at;
        if at.index == FOUNDED.index {
            return Ok(());
        }
        self.put_in_place(group, at).map_err(EntryError::Record)
    }

    /// Recovery is over: the replicas that were found come to life. A node without a past that is to found a cluster does so.
    pub fn start(&mut self, now_us: u64) {
        self.last_time_us = self.clock.now_us(now_us);
        self.finish_restoring();
        // The newest map that this node followed, before anything is decided by it.
        let _ = self.apply_found(META_GROUP, 0);
        let has_past = self.unlogged.last_sequence() > 0 || !self.found.is_empty();
        for (group, mut found) in core::mem::take(&mut self.found) {
            let (first, last) = (found.log.before().index, found.log.last().index);
            let commit = found.log.hard.commit.clamp(first.max(found.applied.index), last);
            found.log.hard.commit = commit;
            let replica = Replica::new(group, self.config.node.id.0, found.log, found.applied, self.config.seed);
            self.add_group(group, replica);
        }
        let now_us = self.last_time_us;
        for partition in self.partitions.iter_mut().flatten() {
            partition.arm_retention(&mut self.timers, now_us);
        }
        (0..self.config.partitions).for_each(|place| self.demote_after(PartitionId(place), 0));
        if let Some(map) = self.meta.map.clone() {
            self.adopt(map);
        } else if self.config.found != 0 && !has_past {
            self.found_cluster(self.config.found);
        } else if self.group(META_GROUP).is_some_and(|group| group.replica.is_alone()) {
            // The node stopped while it founded a cluster: nothing was promised yet.
            self.found_cluster(new_cluster_id(self.config.node.id, now_us));
        }
        self.lead_alone();
    }

    /// A replica that never was here before, with the term and vote of one that was removed, if there was one.
    pub(super) fn new_replica(&mut self, group: u16) -> Replica {
        let removed = self.meta.take_removed(group).unwrap_or_default();
        let mut log = Log::after(Position::default(), removed.hard(), raft::eraftpb::ConfState::default());
        log.earlier = removed.last;
        Replica::new(group, self.config.node.id.0, log, Position::default(), self.config.seed)
    }

    /// The first replica of a group, when a cluster is founded.
    pub(super) fn found_group(&mut self, group: u16) {
        let own = self.config.node.id.0;
        let to = crate::replica::conf::alone(own);
        let (header, configuration) = record::install(group, FOUNDED, &to);
        self.log_founded(&header, configuration);
        let hard = HardState { term: FOUNDED.term, vote: 0, commit: FOUNDED.index, ..HardState::default() };
        let replica = Replica::new(group, own, Log::after(FOUNDED, hard, to), FOUNDED, self.config.seed);
        if group != META_GROUP {
            self.partitions[usize::from(group)] = Some(Box::new(Partition::new(PartitionId(group))));
        }
        self.add_group(group, replica);
    }

    /// Drops a replica and its state; what its promises rest on is remembered.
    pub(super) fn forget_group(&mut self, removed: Removed) {
        let group = removed.group;
        self.found.remove(&group);
        self.drop_receiving(group);
        if let Some(mut partition) = self.partitions.get_mut(usize::from(group)).and_then(Option::take) {
            self.clear(&mut partition);
        }
        self.peers.unlearn(group);
        self.meta.take_removed(group);
        self.meta.removed.push(removed);
    }
}

/// An id for a cluster that is founded at an operator's request.
pub(super) fn new_cluster_id(node: NodeId, now_us: u64) -> u128 {
    let half = |salt| u128::from(crate::hash::mix64(node.0 ^ crate::hash::mix64(now_us ^ salt)));
    (half(1) << 64 | half(2)).max(1)
}

/// Where the log of a founded group begins: behind an empty state that is agreed on.
pub(super) const FOUNDED: Position = Position { term: 1, index: 1 };

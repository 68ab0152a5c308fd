//! A new cluster from what a node of another one left: its replicas become partitions of which a new node is the only member.
//!
//! Invariants:
//! - All entries of a replica's log count, whether or not it knew them to be committed: a leader has every entry that it
//!   acknowledged, and of the others nobody was told that they were refused.
//! - Terms go on far above those known, so that no token of a lease that the lost nodes gave out is valid again.
//! - The new cluster has an id of its own: nothing outside takes it for the old one set back.

use std::collections::BTreeMap;

use raft::eraftpb::HardState;

use super::Shard;
use super::positions::Reached;
use super::recovery::FOUNDED;
use crate::cluster::map::ClusterMap;
use crate::entry::EntryError;
use crate::peer::META_GROUP;
use crate::replica::Replica;
use crate::replica::conf;
use crate::replica::log::Log;

/// Terms between the last one known and those of the new cluster: more than were reached unseen.
const TERMS_APART: u64 = 4_096;

impl Shard {
    /// Recovery is over, and what was found begins anew in the cluster with this id: the partitions that are `wanted`, and on
    /// shard 0 the cluster's map. A snapshot of it is the beginning of this node's shard; this shard itself must not be started.
    ///
    /// # Errors
    /// [`EntryError`] when an entry does not apply.
    pub fn found_anew(
        &mut self,
        cluster: u128,
        wanted: impl Fn(u16) -> bool,
    ) -> Result<BTreeMap<u16, Reached>, EntryError> {
        self.finish_restoring();
        self.apply_found(META_GROUP, 0)?;
        let groups: Vec<(u16, u64)> = self.found_groups().collect();
        let mut reached = BTreeMap::new();
        for (number, last) in groups {
            let is_wanted = number != META_GROUP && last > 0 && wanted(number);
            if is_wanted {
                self.apply_found(number, last)?;
            }
            let Some(found) = self.found.remove(&number).filter(|_| is_wanted) else { continue };
            let (at, known) = (found.applied, found.log.hard.term);
            let hard =
                HardState { term: known.max(at.term) + TERMS_APART, vote: 0, commit: at.index, ..HardState::default() };
            self.begin_anew(number, Log::after(at, hard, conf::alone(self.config.node.id.0)));
            let partition = self.partitions.get(usize::from(number)).and_then(Option::as_deref);
            let time_us = partition.map_or(0, |partition| partition.command_us);
            reached.insert(number, Reached { term: at.term, index: at.index, time_us });
        }
        let config = &self.config;
        let replication = self.meta.map.as_ref().map_or(config.replication, |map| map.replication);
        self.meta.removed.clear();
        self.meta.map = None;
        if config.number == 0 {
            self.meta.map = Some(ClusterMap::found(cluster, config.node.clone(), config.partitions, replication));
            let hard = HardState { term: FOUNDED.term, vote: 0, commit: FOUNDED.index, ..HardState::default() };
            self.begin_anew(META_GROUP, Log::after(FOUNDED, hard, conf::alone(config.node.id.0)));
        }
        Ok(reached)
    }

    fn begin_anew(&mut self, number: u16, log: Log) {
        let applied = log.before();
        let replica = Replica::new(number, self.config.node.id.0, log, applied, self.config.seed);
        self.add_group(number, replica);
    }
}

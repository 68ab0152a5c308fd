//! From what the map wants to what the groups have, one step at a time, by each group's leader.

use taskmaster_protocol::NodeId;

use super::Shard;
use super::group::Group;
use crate::cluster::map::{ClusterMap, NodeStatus};
use crate::peer::META_GROUP;
use crate::replica::record::{self, Removed};
use crate::replica::{Replica, conf};

/// Entries by which a learner may be behind when it becomes a voter, and a follower when it becomes the leader.
const CAUGHT_UP: u64 = 256;
/// How long a node must have had everything before it is handed groups for the sake of balance, in microseconds: one that
/// comes back has other groups to catch up with, and would answer late.
const STEADY_US: u64 = 1_000_000;
/// A replica that the map does not have is removed when no leader was heard about it for so long, in microseconds.
const FORGOTTEN_US: u64 = 2_000_000;

impl Shard {
    /// Takes a new version of the map over: replicas that this node alone has come to be.
    pub(super) fn adopt(&mut self, map: ClusterMap) {
        if self.map.as_ref().is_some_and(|known| known.cluster == map.cluster && known.version >= map.version) {
            return;
        }
        for (info, _) in &map.nodes {
            if info.id != self.config.node.id {
                let peer = self.peers.nodes.entry(info.id).or_default();
                peer.shards = u16::try_from(info.shards()).unwrap_or(1);
            }
        }
        let own = self.config.node.id;
        for (group, placement) in map.groups().filter(|(group, _)| *group != META_GROUP) {
            if !self.is_home_of(group) {
                continue;
            }
            // After a start the map may be an old one, from before the group went elsewhere.
            let is_new = self.group(group).is_none() && !self.meta.was_removed(group);
            if is_new && placement.is_as_founded() && placement.replicas == [own] {
                self.found_group(group);
            }
        }
        self.map = Some(std::sync::Arc::new(map));
        self.map_is_new = true;
        self.lead_alone();
    }

    /// The map as shard 0 knows it.
    pub(super) fn take_map(&mut self, map: std::sync::Arc<ClusterMap>) {
        self.adopt((*map).clone());
    }

    /// Removes replicas that moved away. A map that says so may be old, and the group be on its way back: a leader that still
    /// counts on the replica is heard.
    pub(super) fn remove_surplus(&mut self) {
        let (own, now_us, Some(map)) = (self.config.node.id, self.last_time_us, self.map.clone()) else { return };
        let is_surplus = |group: &Group| {
            let placement = map.placement(group.number).filter(|_| group.number != META_GROUP);
            let has_left = placement.is_some_and(|placement| placement.settled && !placement.contains(own));
            let is_led = group.is_resting || now_us.saturating_sub(group.led_us) < FORGOTTEN_US;
            has_left && !is_led && !group.replica.is_leader()
        };
        let surplus: Vec<u16> =
            self.groups.iter().flatten().filter(|group| is_surplus(group)).map(|group| group.number).collect();
        for group in surplus {
            self.remove_replica(group);
        }
    }

    fn remove_replica(&mut self, group: u16) {
        let Some(place) = self.place(group) else { return };
        let Some(removed) = self.groups[place].take() else { return };
        if self.is_written_locally(group) {
            self.local.is_broken = true;
        }
        let log = removed.replica.log();
        let (term, vote, last) = (log.hard.term, log.hard.vote, log.last().max(log.earlier));
        let removed = Removed { group, term, vote, last };
        self.transfers.stop_sending(group);
        self.unlogged.push(record::kind::REMOVED, &removed.record(), bytes::Bytes::new());
        self.forget_group(removed);
        self.overtaken();
    }

    /// Whether a replica may be made here for a group that a peer speaks of; makes it.
    pub(super) fn make_room(&mut self, group: u16) -> bool {
        let own = self.config.node.id;
        let is_wanted = match (&self.map, group) {
            (None, META_GROUP) => self.config.found == 0,
            (Some(map), META_GROUP) => map.node(own).is_some(),
            (None, _) => false,
            (Some(map), _) => map.placement(group).is_some_and(|to| to.contains(own)),
        };
        let belongs = is_wanted && self.is_home_of(group);
        if belongs {
            let replica = self.new_replica(group);
            if group != META_GROUP {
                let id = taskmaster_protocol::PartitionId(group);
                self.partitions[usize::from(group)] = Some(Box::new(crate::partition::Partition::new(id)));
            }
            self.add_group(group, replica);
        }
        belongs
    }

    /// Whether the node drains and still leads groups that others could lead.
    #[must_use]
    pub fn is_handing_over(&self) -> bool {
        let mut led = self.groups.iter().flatten().filter(|group| group.serving > 0);
        self.draining && led.any(|group| group.replica.conf().voters.len() > 1)
    }

    /// The next step of every group that is led here.
    pub(super) fn reconcile(&mut self) {
        let Some(map) = self.map.clone() else { return };
        let retires = self.disk_full || (self.draining && self.leased() == 0);
        let own = self.config.node.id.0;
        let full: Vec<NodeId> =
            self.peers.nodes.iter().filter(|(_, peer)| peer.is_full).map(|(&node, _)| node).collect();
        let is_full = |node: NodeId| full.contains(&node);
        let unsteady = self.unsteady();
        for place in 0..self.groups.len() {
            let Some(group) = self.groups[place].as_deref_mut().filter(|group| group.serving > 0) else { continue };
            if retires && hand_over(&mut group.replica, own, is_full) {
                let number = group.number;
                self.touch(number);
                continue;
            }
            let Some(placement) = map.placement(group.number) else { continue };
            let voters: Vec<u64> = placement.replicas.iter().map(|node| node.0).collect();
            let learners = if group.number == META_GROUP { learners(&map, &voters) } else { Vec::new() };
            let preferred = placement.leader.filter(|&node| !is_full(node) && !unsteady.contains(&node));
            let preferred = preferred.map(|node| node.0);
            if step(&mut group.replica, own, voters, &learners, preferred) {
                let number = group.number;
                self.touch(number);
            }
        }
    }

    /// Voters of groups that are led here which are not connected or lack entries, or did a moment ago.
    fn unsteady(&mut self) -> Vec<NodeId> {
        let (own, now_us) = (self.config.node.id.0, self.last_time_us);
        for group in self.groups.iter().flatten().filter(|group| group.serving > 0) {
            for &node in group.replica.conf().voters.iter().filter(|&&node| node != own) {
                let peer = self.peers.nodes.entry(NodeId(node)).or_default();
                if peer.heard_us == 0 || !has_nearly_all(&group.replica, node) {
                    peer.behind_us = now_us;
                }
            }
        }
        let was_behind = |behind_us: u64| behind_us > 0 && now_us.saturating_sub(behind_us) < STEADY_US;
        self.peers.nodes.iter().filter(|(_, peer)| was_behind(peer.behind_us)).map(|(&node, _)| node).collect()
    }
}

/// Members of the cluster that do not vote about its map.
fn learners(map: &ClusterMap, voters: &[u64]) -> Vec<u64> {
    let present = map.nodes.iter().filter(|(_, status)| *status != NodeStatus::Removed);
    present.map(|(info, _)| info.id.0).filter(|node| !voters.contains(node)).collect()
}

/// Whether a follower has nearly all of the log, and said so: the library takes a new one for active.
fn has_caught_up(replica: &Replica, node: u64) -> bool {
    replica.is_following(node) && has_nearly_all(replica, node)
}

fn has_nearly_all(replica: &Replica, node: u64) -> bool {
    let matched = replica.matched(node).filter(|&matched| matched > 0);
    matched.is_some_and(|matched| replica.last_index().saturating_sub(matched) <= CAUGHT_UP)
}

/// Hands leadership to any voter that has the log and room for more; `true` if it is on its way.
fn hand_over(replica: &mut Replica, own: u64, is_full: impl Fn(NodeId) -> bool) -> bool {
    if replica.is_transferring() {
        return true;
    }
    let may_lead = |node: u64| node != own && !is_full(NodeId(node)) && has_caught_up(replica, node);
    let heir = replica.conf().voters.iter().copied().find(|&node| may_lead(node));
    if let Some(heir) = heir {
        replica.transfer(heir);
    }
    heir.is_some()
}

/// One step of a group; `true` if something was begun.
fn step(replica: &mut Replica, own: u64, voters: Vec<u64>, learners: &[u64], preferred: Option<u64>) -> bool {
    if replica.is_transferring() || replica.is_changing() {
        return false;
    }
    let is_leaving = !voters.contains(&own);
    let mut target = voters.clone();
    if is_leaving {
        // A leader that is to go stays until another one leads, which then completes the change.
        target.push(own);
        target.sort_unstable();
    }
    let learners: Vec<u64> = learners.iter().copied().filter(|node| !target.contains(node)).collect();
    let learners = &learners[..];
    let next = conf::step(replica.conf(), &target, learners, |node| has_caught_up(replica, node));
    if let Some(next) = next {
        let is_there = |node: &u64| *node == own || has_caught_up(replica, *node);
        // Nothing is committed in a configuration most of which is silent, a change back not either.
        if next.voters.iter().filter(|node| is_there(node)).count() <= next.voters.len() / 2 {
            return false;
        }
        return replica.propose_conf(&next).is_some();
    }
    if !conf::is_settled(replica.conf(), &target, learners) {
        return false;
    }
    let heir = if is_leaving { voters.iter().copied().find(|&node| has_caught_up(replica, node)) } else { preferred };
    match heir.filter(|&heir| heir != own && voters.contains(&heir) && has_caught_up(replica, heir)) {
        Some(heir) => {
            replica.transfer(heir);
            true
        }
        None => false,
    }
}

/// What clients are told of a node: for [`Shard::cluster_map`].
pub(super) const fn status_number(status: NodeStatus) -> u32 {
    match status {
        NodeStatus::Active => 0,
        NodeStatus::Draining => 1,
        NodeStatus::Removed => 2,
    }
}

/// The id in an operator's request, zero being none.
pub(super) fn node_of(number: u64) -> Option<NodeId> {
    (number != 0).then_some(NodeId(number))
}

//! What to change in the cluster map: a pure function of the map and of what is known of nodes and groups.
//!
//! Run on the leader of the meta group about twice a second. It keeps no state: what it wants follows from the map, so
//! another leader goes on where this one stopped.
//!
//! Invariants:
//! - no plan asks for replicas of which fewer than a quorum are alive, and a group whose present voters have no live quorum
//!   is left alone: it could not change anyway;
//! - replicas never go to a node that is down, draining or removed, and none of those is preferred as a leader;
//! - a group changes only after it has settled, unless it cannot settle because a node it waits for is lost;
//! - with an unchanged view the plans end: each step repairs, or improves spread, then balance, and never undoes another.
//!
//! How many replicas: the largest odd number of at most the map's replication and the active nodes. A node that is down
//! still counts as active: three replicas of which one is lost are kept, and the lost one replaced when there is a spare
//! node. Only draining, removing or asking for fewer makes fewer.

mod balance;
mod heat;
mod leaders;
mod repair;
mod standing;
#[cfg(test)]
mod tests;

use super::{ClusterMap, Command, META_GROUP, META_VOTERS_MAX};
use standing::Standing;
use std::collections::BTreeMap;
use taskmaster_protocol::NodeId;

/// What is known of a node's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeHealth {
    /// Gossip says that it is there.
    pub is_alive: bool,
    /// Since when it is not, in microseconds; without meaning while it is alive.
    pub down_since_us: u64,
}

/// What a group's leader last said of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupReport {
    /// Who leads it.
    pub leader: NodeId,
    /// In which term.
    pub term: u64,
    /// Version of the map that the leader followed.
    pub version: u64,
    /// Its voters, sorted; of a joint configuration those of the one that is being entered.
    pub voters: Vec<NodeId>,
    /// Its learners, sorted. A partition that still has one has not settled; the meta group always may have some.
    pub learners: Vec<NodeId>,
    /// It is between two configurations.
    pub joint: bool,
    /// Bytes of its log and state, for what a move costs.
    pub log_bytes: u64,
    /// Tasks that it holds.
    pub tasks: u64,
    /// Commands that it applies per second.
    pub load_per_s: u64,
    /// When it said so, in microseconds of the reader's clock.
    pub at_us: u64,
}

/// What is known at this moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Nodes of the map; one that is missing counts as down, but not for long.
    pub nodes: BTreeMap<NodeId, NodeHealth>,
    /// The groups' last reports; a group that has none, or an old one, is left alone.
    pub groups: BTreeMap<u16, GroupReport>,
}

/// How cautious to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// A node that has been down this long is replaced, in microseconds.
    pub replace_after_us: u64,
    /// Most placements that are on their way at a time.
    pub moves_max: u16,
    /// Most commands of one plan.
    pub commands_max: u16,
    /// Reports older than this are not trusted, in microseconds.
    pub report_age_us_max: u64,
    /// A leader moves only if its node leads this much more than the other would, in percent of the average.
    pub leader_percent: u8,
    /// A node is overloaded when load or bytes on it are this much above the average, in percent of it.
    pub heat_percent: u8,
    /// Below this load of the whole cluster, in commands per second, all partitions count alike.
    pub load_per_s_min: u64,
    /// Below this many bytes in the whole cluster, all partitions count as equally big.
    pub bytes_min: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            replace_after_us: 300_000_000,
            moves_max: 16,
            commands_max: 64,
            report_age_us_max: 10_000_000,
            leader_percent: 10,
            heat_percent: 50,
            load_per_s_min: 1_000,
            bytes_min: 256 << 20,
        }
    }
}

/// A node as a plan sees it.
#[derive(Clone, Copy, Debug)]
struct Node {
    standing: Standing,
    is_alive: bool,
    /// The number of its zone's name.
    zone: usize,
    /// Partitions that are to have a replica on it.
    replicas: usize,
}

/// A partition as a plan leaves it.
#[derive(Clone, Debug)]
struct Wanted<'a> {
    replicas: Vec<NodeId>,
    leader: Option<NodeId>,
    report: Option<&'a GroupReport>,
    /// It has settled, is healthy, and this plan has not touched it: it may move for balance's sake.
    is_free: bool,
}

/// A plan in the making.
struct Plan<'a> {
    map: &'a ClusterMap,
    view: &'a View,
    limits: &'a Limits,
    now_us: u64,
    nodes: BTreeMap<NodeId, Node>,
    /// By partition number.
    wanted: Vec<Wanted<'a>>,
    /// Placements that may still begin.
    moves_left: usize,
    commands: Vec<Command>,
}

/// The changes that are due, most urgent first, at most [`Limits::commands_max`].
///
/// Commands that are under way already may be planned again; the map takes them twice. It refuses
/// [`Command::Settled`] when another placement came between.
#[must_use]
pub fn plan(map: &ClusterMap, view: &View, limits: &Limits, now_us: u64) -> Vec<Command> {
    let mut plan = Plan::new(map, view, limits, now_us);
    plan.settle();
    plan.repair_meta();
    plan.repair_partitions();
    plan.spread();
    plan.balance();
    plan.cool();
    plan.prefer();
    plan.commands
}

const fn quorum(replicas: usize) -> usize {
    replicas / 2 + 1
}

/// The largest odd number up to this one, and at least one.
const fn odd(number: usize) -> usize {
    if number.is_multiple_of(2) { if number == 0 { 1 } else { number - 1 } } else { number }
}

impl<'a> Plan<'a> {
    fn new(map: &'a ClusterMap, view: &'a View, limits: &'a Limits, now_us: u64) -> Self {
        let mut nodes = standing::nodes(map, view, limits, now_us);
        for id in map.partitions.iter().flat_map(|placement| &placement.replicas) {
            if let Some(node) = nodes.get_mut(id) {
                node.replicas += 1;
            }
        }
        let mut plan =
            Self { map, view, limits, now_us, nodes, wanted: Vec::new(), moves_left: 0, commands: Vec::new() };
        plan.wanted = (0u16..)
            .zip(&map.partitions)
            .map(|(group, placement)| {
                let report = plan.report(group);
                let is_sound = |report: &GroupReport| !report.joint && report.voters == placement.replicas;
                let is_free = placement.settled
                    && report.is_some_and(is_sound)
                    && placement.replicas.iter().all(|id| plan.is_usable(*id));
                Wanted { replicas: placement.replicas.clone(), leader: placement.leader, report, is_free }
            })
            .collect();
        let moving = map.groups().filter(|(group, _)| plan.is_moving(*group)).count();
        plan.moves_left = usize::from(limits.moves_max).saturating_sub(moving);
        plan
    }

    /// A group's last report, if it is young enough.
    fn report(&self, group: u16) -> Option<&'a GroupReport> {
        let is_young =
            |report: &&GroupReport| self.now_us.saturating_sub(report.at_us) <= self.limits.report_age_us_max;
        self.view.groups.get(&group).filter(is_young)
    }

    fn has_reached(&self, group: u16) -> bool {
        let Some((report, placement)) = self.report(group).zip(self.map.placement(group)) else { return false };
        let is_of_placement = report.version >= placement.placed && report.voters == placement.replicas;
        is_of_placement && !report.joint && (group == META_GROUP || report.learners.is_empty())
    }

    /// It is on its way and can arrive, so it takes part of the bandwidth.
    fn is_moving(&self, group: u16) -> bool {
        let Some(placement) = self.map.placement(group) else { return false };
        let can_arrive = |report: &GroupReport| {
            self.has_live_quorum(&report.voters) && placement.replicas.iter().all(|id| self.is_alive(*id))
        };
        !placement.settled && !self.has_reached(group) && self.report(group).is_some_and(can_arrive)
    }

    fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(&id)
    }

    fn is_alive(&self, id: NodeId) -> bool {
        self.node(id).is_some_and(|node| node.is_alive)
    }

    fn is_usable(&self, id: NodeId) -> bool {
        self.standing(id) == Standing::Usable
    }

    fn standing(&self, id: NodeId) -> Standing {
        self.node(id).map_or(Standing::Gone, |node| node.standing)
    }

    fn has_live_quorum(&self, replicas: &[NodeId]) -> bool {
        replicas.iter().filter(|id| self.is_alive(**id)).count() >= quorum(replicas.len())
    }

    /// How many of these are in a zone.
    fn in_zone(&self, replicas: &[NodeId], zone: usize) -> usize {
        replicas.iter().filter(|id| self.node(**id).is_some_and(|node| node.zone == zone)).count()
    }

    /// Usable nodes, by id.
    fn usable(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.nodes.iter().filter(|(_, node)| node.standing == Standing::Usable).map(|(id, node)| (*id, node))
    }

    const fn is_full(&self) -> bool {
        self.commands.len() >= self.limits.commands_max as usize
    }

    fn add(&mut self, command: Command) {
        if !self.is_full() {
            self.commands.push(command);
        }
    }

    /// Moves a partition, in the plan and in the counts.
    fn move_partition(&mut self, group: u16, replicas: Vec<NodeId>) {
        let wanted = &mut self.wanted[usize::from(group)];
        for id in &wanted.replicas {
            if let Some(node) = self.nodes.get_mut(id) {
                node.replicas -= 1;
            }
        }
        for id in &replicas {
            if let Some(node) = self.nodes.get_mut(id) {
                node.replicas += 1;
            }
        }
        let is_led = |id: &NodeId| {
            replicas.contains(id) && self.nodes.get(id).is_some_and(|node| node.standing == Standing::Usable)
        };
        wanted.leader = wanted.leader.filter(is_led);
        wanted.is_free = false;
        wanted.replicas.clone_from(&replicas);
        let leader = wanted.leader;
        self.moves_left = self.moves_left.saturating_sub(1);
        self.add(Command::Place { group, replicas, leader });
    }

    /// Says of groups that they are where they should be.
    fn settle(&mut self) {
        for (group, placement) in self.map.groups() {
            if !placement.settled && self.has_reached(group) {
                self.add(Command::Settled { group, replicas: placement.replicas.clone() });
            }
        }
    }

    /// The replicas that a group is to have: the largest odd number of at most `most` and the active nodes.
    fn size(&self, most: u16) -> usize {
        let active = self.nodes.values().filter(|node| node.standing.is_active()).count();
        odd(active.min(usize::from(most)))
    }

    fn meta_size(&self) -> usize {
        self.size(META_VOTERS_MAX)
    }
}

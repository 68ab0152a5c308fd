//! What to change in the cluster map: a pure function of the map and of what is known of nodes and groups.

use super::{ClusterMap, Command};
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
    /// Its voters, sorted; of a joint configuration those of the one that is being entered.
    pub voters: Vec<NodeId>,
    /// Its learners, sorted.
    pub learners: Vec<NodeId>,
    /// It is between two configurations.
    pub joint: bool,
    /// Bytes of its log.
    pub log_bytes: u64,
    /// Tasks that it holds.
    pub tasks: u64,
    /// Commands that it applies per second.
    pub load_per_s: u64,
    /// When it said so, in microseconds.
    pub at_us: u64,
}

/// What is known at this moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Nodes of the map; one that is missing counts as down, since an unknown time.
    pub nodes: BTreeMap<NodeId, NodeHealth>,
    /// The groups' last reports; a group that has none, or an old one, is left alone.
    pub groups: BTreeMap<u16, GroupReport>,
}

/// How cautious to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// A node that has been down this long is replaced, in microseconds.
    pub replace_after_us: u64,
    /// Most placements that are unsettled at a time.
    pub moves_max: u16,
    /// Most commands of one plan.
    pub commands_max: u16,
    /// Reports older than this are not trusted, in microseconds.
    pub report_age_us_max: u64,
}

/// The changes that are due.
#[must_use]
pub fn plan(_map: &ClusterMap, _view: &View, _limits: &Limits, _now_us: u64) -> Vec<Command> {
    Vec::new()
}

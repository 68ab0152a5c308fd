//! The cluster map: which nodes there are and which of them hold which group. Replicated by the meta group.
//!
//! Invariants, kept by [`ClusterMap::apply`] and checked by [`ClusterMap::decode`]:
//! - nodes are sorted by id; no two that are not removed have the same name; their format versions are at most one apart;
//! - replicas of a placement are nodes of the map, sorted, without doubles, and at least one;
//! - a preferred leader is an active node among the replicas;
//! - removed is for good: a removed node's id never becomes active again.
//!
//! A command that changes nothing is accepted and leaves the version as it is, so a proposal may be repeated. The map says
//! what is wanted. What a group's Raft configuration is at this moment is the group's own knowledge.

mod codec;
pub(super) mod node;
#[cfg(test)]
mod tests;

pub use codec::{COMMAND_FORMAT, MAP_FORMAT};
pub use node::{NodeInfo, NodeStatus};

use super::{META_GROUP, NODES_KEPT_MAX, NODES_MAX, REPLICAS_MAX, REPLICATION_MAX};
use crate::refused::Refused;
use taskmaster_protocol::{Code, NodeId};

/// The version of a founder's map.
const FOUNDED: u64 = 1;

/// Where a group is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The voters that the group is to have, sorted.
    pub replicas: Vec<NodeId>,
    /// Which of them is to lead, if it can; `None`: whoever was elected.
    pub leader: Option<NodeId>,
    /// The group has reported that its configuration equals `replicas`.
    pub settled: bool,
    /// Version of the map with which it was placed here: what a group reports by an older map is of an older placement.
    pub placed: u64,
}

/// What the cluster agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterMap {
    /// The cluster's identity, drawn when it was founded; not zero.
    pub cluster: u128,
    /// Grows by one with every change.
    pub version: u64,
    /// All nodes, sorted by id; removed ones are remembered.
    pub nodes: Vec<(NodeInfo, NodeStatus)>,
    /// The meta group's voters; all other active nodes learn from it.
    pub meta: Placement,
    /// By partition number.
    pub partitions: Vec<Placement>,
    /// How many replicas a partition is to have when there are nodes enough; odd.
    pub replication: u16,
}

/// A change of the map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Lets a node in. Of a node that is in already it is an [`Command::Update`].
    Join(NodeInfo),
    /// A node's address, ports, zone, name or version changed.
    Update(NodeInfo),
    /// Drains, reactivates or removes a node.
    SetStatus {
        /// Which node.
        node: NodeId,
        /// What it becomes.
        status: NodeStatus,
    },
    /// Says where a group is to be.
    Place {
        /// The group.
        group: u16,
        /// Its voters, sorted.
        replicas: Vec<NodeId>,
        /// Which of them is to lead.
        leader: Option<NodeId>,
    },
    /// Says who is to lead a group.
    Prefer {
        /// The group.
        group: u16,
        /// One of its replicas, or nobody in particular.
        leader: Option<NodeId>,
    },
    /// A group has reached these replicas; refused when others are asked for meanwhile.
    Settled {
        /// The group.
        group: u16,
        /// What it reached, sorted.
        replicas: Vec<NodeId>,
    },
    /// How many replicas a partition is to have.
    SetReplication(u16),
}

/// "partition 7" or "the meta group".
pub(super) fn name_of_group(group: u16) -> String {
    if group == META_GROUP { "the meta group".to_owned() } else { format!("partition {group}") }
}

fn invalid(message: impl Into<String>) -> Refused {
    Refused::new(Code::Invalid, message)
}

impl Placement {
    fn sole(node: NodeId) -> Self {
        Self { replicas: vec![node], leader: None, settled: true, placed: FOUNDED }
    }

    /// Whether it is where the founder put it, on itself alone, and was never placed again.
    #[must_use]
    pub const fn is_as_founded(&self) -> bool {
        self.placed == FOUNDED
    }

    /// Whether `node` is to hold a replica.
    #[must_use]
    pub fn contains(&self, node: NodeId) -> bool {
        self.replicas.binary_search(&node).is_ok()
    }
}

impl ClusterMap {
    /// The map of a new cluster whose only node holds everything.
    ///
    /// # Panics
    /// If `cluster` is zero, `partitions` is zero or above the protocol's bound, or `info` or `replication` is not valid:
    /// they come from the founder's own configuration, which was checked.
    #[must_use]
    pub fn found(cluster: u128, info: NodeInfo, partitions: u16, replication: u16) -> Self {
        assert!(cluster != 0, "a cluster's id is not zero");
        assert!((1..=taskmaster_protocol::limits::PARTITIONS_MAX).contains(&partitions), "{partitions} partitions");
        info.validate().expect("the founder describes itself validly");
        check_replication(replication).expect("the founder's replication is valid");
        let sole = Placement::sole(info.id);
        Self {
            cluster,
            version: FOUNDED,
            nodes: vec![(info, NodeStatus::Active)],
            meta: sole.clone(),
            partitions: vec![sole; usize::from(partitions)],
            replication,
        }
    }

    /// A node and its status.
    #[must_use]
    pub fn node(&self, id: NodeId) -> Option<&(NodeInfo, NodeStatus)> {
        self.nodes.binary_search_by_key(&id, |(info, _)| info.id).ok().map(|at| &self.nodes[at])
    }

    /// A node's status.
    #[must_use]
    pub fn status(&self, id: NodeId) -> Option<NodeStatus> {
        self.node(id).map(|(_, status)| *status)
    }

    /// The placement of a partition, or of [`META_GROUP`].
    #[must_use]
    pub fn placement(&self, group: u16) -> Option<&Placement> {
        if group == META_GROUP { Some(&self.meta) } else { self.partitions.get(usize::from(group)) }
    }

    /// All groups: the meta group, then the partitions.
    pub fn groups(&self) -> impl Iterator<Item = (u16, &Placement)> {
        core::iter::once((META_GROUP, &self.meta)).chain((0u16..).zip(&self.partitions))
    }

    /// Nodes that are not removed.
    pub fn present(&self) -> impl Iterator<Item = &(NodeInfo, NodeStatus)> {
        self.nodes.iter().filter(|(_, status)| *status != NodeStatus::Removed)
    }

    /// The lowest format version of the nodes: what is written for all of them keeps to it while a cluster is upgraded.
    #[must_use]
    pub fn version_spoken(&self) -> u32 {
        self.present().map(|(info, _)| info.version).min().unwrap_or(super::SOFTWARE_VERSION)
    }

    /// How many groups, the meta group included, are to have a replica on `node`.
    #[must_use]
    pub fn replicas_on(&self, node: NodeId) -> usize {
        self.groups().filter(|(_, placement)| placement.contains(node)).count()
    }

    /// Carries out a change, or changes nothing.
    ///
    /// # Errors
    /// A refusal whose sentence says what is wrong. It depends on nothing but the map and the command, so all replicas
    /// refuse alike.
    pub fn apply(&mut self, command: &Command) -> Result<(), Refused> {
        let has_changed = match command {
            Command::Join(info) => self.join(info)?,
            Command::Update(info) => self.update(info)?,
            Command::SetStatus { node, status } => self.set_status(*node, *status)?,
            Command::Place { group, replicas, leader } => self.place(*group, replicas, *leader)?,
            Command::Prefer { group, leader } => self.prefer(*group, *leader)?,
            Command::Settled { group, replicas } => self.settled(*group, replicas)?,
            Command::SetReplication(replication) => {
                check_replication(*replication)?;
                core::mem::replace(&mut self.replication, *replication) != *replication
            }
        };
        self.version += u64::from(has_changed);
        Ok(())
    }

    /// Whether [`ClusterMap::apply`] would accept a change; to answer at once what would be refused later.
    ///
    /// # Errors
    /// The refusal.
    pub fn check(&self, command: &Command) -> Result<(), Refused> {
        self.clone().apply(command)
    }

    fn join(&mut self, info: &NodeInfo) -> Result<bool, Refused> {
        match self.status(info.id) {
            Some(NodeStatus::Active | NodeStatus::Draining) => return self.update(info),
            Some(NodeStatus::Removed) => return Err(removed_for_good(info)),
            None => {}
        }
        self.check_info(info)?;
        if self.present().count() >= NODES_MAX {
            let message = format!("the cluster has {NODES_MAX} nodes, which is the most: remove one first");
            return Err(Refused::new(Code::TooLarge, message));
        }
        if self.nodes.len() >= NODES_KEPT_MAX {
            let forgotten =
                self.nodes.iter().position(|(n, s)| *s == NodeStatus::Removed && self.replicas_on(n.id) == 0);
            let message = "too many removed nodes still hold replicas: wait until they are moved";
            self.nodes.remove(forgotten.ok_or_else(|| Refused::new(Code::TooLarge, message))?);
        }
        let at = self.nodes.partition_point(|(other, _)| other.id < info.id);
        self.nodes.insert(at, (info.clone(), NodeStatus::Active));
        Ok(true)
    }

    fn update(&mut self, info: &NodeInfo) -> Result<bool, Refused> {
        let at = self.position(info.id)?;
        if self.nodes[at].1 == NodeStatus::Removed {
            return Err(removed_for_good(info));
        }
        self.check_info(info)?;
        Ok(core::mem::replace(&mut self.nodes[at].0, info.clone()) != *info)
    }

    /// A node's description by itself and beside the other nodes.
    fn check_info(&self, info: &NodeInfo) -> Result<(), Refused> {
        info.validate().map_err(invalid)?;
        for (other, _) in self.present().filter(|(other, _)| other.id != info.id) {
            if other.name == info.name {
                let message = format!(
                    "node {} cannot be called \"{}\": node {old} at {} has that name. Give it another name, or, if that node is \
                     gone for good, remove it first: `taskmaster cluster remove {old}`",
                    info.id,
                    info.name,
                    other.host,
                    old = other.id
                );
                return Err(Refused::new(Code::Duplicate, message));
            }
            if other.version.abs_diff(info.version) > 1 {
                let message = format!(
                    "node \"{}\" has format version {} and node \"{}\" has {}: a cluster takes two adjacent versions, so \
                     upgrade one version at a time",
                    info.name, info.version, other.name, other.version
                );
                return Err(Refused::new(Code::UnsupportedVersion, message));
            }
        }
        Ok(())
    }

    fn set_status(&mut self, node: NodeId, status: NodeStatus) -> Result<bool, Refused> {
        let at = self.position(node)?;
        let before = self.nodes[at].1;
        if before == status {
            return Ok(false);
        }
        if before == NodeStatus::Removed {
            return Err(removed_for_good(&self.nodes[at].0));
        }
        if status != NodeStatus::Active && before == NodeStatus::Active {
            let others = self.nodes.iter().filter(|(n, s)| n.id != node && *s == NodeStatus::Active).count();
            if others == 0 {
                let message = format!("\"{}\" is the last active node", self.nodes[at].0.name);
                return Err(Refused::new(Code::IllegalState, message));
            }
        }
        if status == NodeStatus::Removed {
            self.check_removal(node)?;
        }
        self.nodes[at].1 = status;
        if status != NodeStatus::Active {
            for placement in core::iter::once(&mut self.meta).chain(&mut self.partitions) {
                if placement.leader == Some(node) {
                    placement.leader = None;
                }
            }
        }
        Ok(true)
    }

    /// Every group must keep a quorum of its replicas on nodes that are not removed; else it could never change again.
    fn check_removal(&self, node: NodeId) -> Result<(), Refused> {
        for (group, placement) in self.groups().filter(|(_, placement)| placement.contains(node)) {
            let all = placement.replicas.len();
            let left = placement
                .replicas
                .iter()
                .filter(|id| **id != node && self.status(**id).is_some_and(|status| status != NodeStatus::Removed))
                .count();
            if left < all / 2 + 1 {
                let group = name_of_group(group);
                let message = if all == 1 {
                    format!("node {node} holds the only replica of {group}: drain it and wait until it holds none")
                } else {
                    format!(
                        "without node {node}, {group} would have {left} of {all} replicas, fewer than it needs to go on: drain it, or wait until other nodes have taken over"
                    )
                };
                return Err(Refused::new(Code::IllegalState, message));
            }
        }
        Ok(())
    }

    fn place(&mut self, group: u16, replicas: &[NodeId], leader: Option<NodeId>) -> Result<bool, Refused> {
        let before = self.group(group)?.clone();
        let group_name = name_of_group(group);
        check_sorted(replicas).map_err(|why| invalid(format!("{group_name} cannot be placed: {why}")))?;
        for id in replicas {
            let (info, status) = self.node(*id).ok_or_else(|| unknown(*id))?;
            if *status != NodeStatus::Active && !before.contains(*id) {
                let message = format!("{group_name} cannot go to node \"{}\", which is {status}", info.name);
                return Err(Refused::new(Code::IllegalState, message));
            }
        }
        self.check_leader(group, replicas, leader)?;
        let are_replicas_new = before.replicas != replicas;
        let settled = before.settled && !are_replicas_new;
        let placed = if are_replicas_new { self.version + 1 } else { before.placed };
        let placement = self.group_mut(group)?;
        *placement = Placement { replicas: replicas.to_vec(), leader, settled, placed };
        Ok(*placement != before)
    }

    fn prefer(&mut self, group: u16, leader: Option<NodeId>) -> Result<bool, Refused> {
        self.check_leader(group, &self.group(group)?.replicas, leader)?;
        let placement = self.group_mut(group)?;
        Ok(core::mem::replace(&mut placement.leader, leader) != leader)
    }

    fn check_leader(&self, group: u16, replicas: &[NodeId], leader: Option<NodeId>) -> Result<(), Refused> {
        let Some(leader) = leader else { return Ok(()) };
        if !replicas.contains(&leader) {
            return Err(invalid(format!(
                "node {leader} cannot lead {}: it has no replica of it",
                name_of_group(group)
            )));
        }
        match self.status(leader) {
            Some(NodeStatus::Active) => Ok(()),
            Some(status) => {
                let message = format!("node {leader} cannot lead {}: it is {status}", name_of_group(group));
                Err(Refused::new(Code::IllegalState, message))
            }
            None => Err(unknown(leader)),
        }
    }

    fn settled(&mut self, group: u16, replicas: &[NodeId]) -> Result<bool, Refused> {
        let placement = self.group_mut(group)?;
        if placement.replicas != replicas {
            let message = format!("{} has been placed elsewhere meanwhile", name_of_group(group));
            return Err(Refused::new(Code::IllegalState, message));
        }
        Ok(!core::mem::replace(&mut placement.settled, true))
    }

    fn position(&self, id: NodeId) -> Result<usize, Refused> {
        self.nodes.binary_search_by_key(&id, |(info, _)| info.id).map_err(|_| unknown(id))
    }

    fn group(&self, group: u16) -> Result<&Placement, Refused> {
        self.placement(group).ok_or_else(|| self.no_group(group))
    }

    fn group_mut(&mut self, group: u16) -> Result<&mut Placement, Refused> {
        let refused = self.no_group(group);
        if group == META_GROUP {
            Ok(&mut self.meta)
        } else {
            self.partitions.get_mut(usize::from(group)).ok_or(refused)
        }
    }

    fn no_group(&self, group: u16) -> Refused {
        invalid(format!("there is no partition {group}: the cluster has {}", self.partitions.len()))
    }

    /// What must hold of any map; for one that was decoded.
    fn validate(&self) -> Result<(), String> {
        if self.cluster == 0 || self.partitions.is_empty() {
            return Err("it has no id or no partition".to_owned());
        }
        check_replication(self.replication).map_err(|refused| refused.message)?;
        if !self.nodes.is_sorted_by(|(a, _), (b, _)| a.id < b.id) || self.present().count() > NODES_MAX {
            return Err("its nodes are not in order or too many".to_owned());
        }
        for (info, status) in &self.nodes {
            info.validate()?;
            if *status != NodeStatus::Removed {
                self.check_info(info).map_err(|refused| refused.message)?;
            }
        }
        for (group, placement) in self.groups() {
            check_sorted(&placement.replicas)?;
            if let Some(id) = placement.replicas.iter().find(|id| self.node(**id).is_none()) {
                return Err(format!("{} is on the unknown node {id}", name_of_group(group)));
            }
            self.check_leader(group, &placement.replicas, placement.leader).map_err(|refused| refused.message)?;
        }
        Ok(())
    }
}

fn unknown(id: NodeId) -> Refused {
    invalid(format!("node {id} is not in the cluster"))
}

fn removed_for_good(info: &NodeInfo) -> Refused {
    let message = format!(
        "node {} (\"{}\") was removed from the cluster for good: with an empty data directory it can join as a new node",
        info.id, info.name
    );
    Refused::new(Code::IllegalState, message)
}

fn check_replication(replication: u16) -> Result<(), Refused> {
    if replication % 2 == 1 && replication <= REPLICATION_MAX {
        return Ok(());
    }
    Err(invalid(format!("replication {replication} is not possible: 1, 3, 5 and {REPLICATION_MAX} are")))
}

fn check_sorted(replicas: &[NodeId]) -> Result<(), String> {
    if replicas.is_empty() {
        return Err("it needs at least one replica".to_owned());
    }
    if replicas.len() > REPLICAS_MAX {
        return Err(format!("{} replicas are more than {REPLICAS_MAX}", replicas.len()));
    }
    if !replicas.is_sorted_by(|a, b| a < b) {
        return Err("its replicas are not sorted or name a node twice".to_owned());
    }
    Ok(())
}

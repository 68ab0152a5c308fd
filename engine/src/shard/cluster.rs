//! The cluster as clients see it, and operators' requests about it.

use taskmaster_protocol::body::{
    self, ArchivedClusterAdmin, ClusterMapReply, Empty, NodeRow, PartitionRow, Span, cluster_verb,
};
use taskmaster_protocol::frame::Header;
use taskmaster_protocol::{Code, NodeId, PartitionId};

use super::group::Group;
use super::peers::Peer;
use super::reconcile::{node_of, status_number};
use super::recovery::new_cluster_id;
use super::{Effects, Shard};
use crate::cluster::map::{Command, NodeInfo, NodeStatus, Placement};
use crate::effects::ConnId;
use crate::peer::META_GROUP;
use crate::refused::Refused;

/// How a replica stands, as the shard that has it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Its group.
    pub group: u16,
    /// Entries applied.
    pub applied: u64,
    /// Entries committed.
    pub committed: u64,
    /// The term in which it leads and answers; 0: it does not.
    pub serving: u64,
    /// If it leads: entries by which the slowest replica is behind.
    pub lag: u32,
    /// Who votes.
    pub voters: Vec<u64>,
    /// Who learns.
    pub learners: Vec<u64>,
}

impl Standing {
    fn of(group: &Group) -> Self {
        let (replica, conf) = (&group.replica, group.replica.conf());
        Self {
            group: group.number,
            applied: replica.applied().index,
            committed: replica.committed(),
            serving: group.serving,
            lag: if group.serving > 0 { group.lag() } else { 0 },
            voters: conf.voters.clone(),
            learners: conf.learners.clone(),
        }
    }
}

impl Shard {
    /// How all replicas here stand.
    #[must_use]
    pub fn standings(&self) -> Vec<Standing> {
        self.groups.iter().flatten().map(|group| Standing::of(group)).collect()
    }

    /// How the node's own replica of a group stands, on whichever shard.
    fn standing(&self, number: u16) -> Option<Standing> {
        let here = self.group(number).map(Standing::of);
        here.or_else(|| self.siblings.get(&number).cloned())
    }

    /// The cluster as this shard knows it.
    pub(super) fn cluster_map(&self) -> ClusterMapReply {
        let mut reply = ClusterMapReply { node: self.config.node.id.0, ..ClusterMapReply::default() };
        self.show_problems(&mut reply);
        let Some(map) = &self.map else {
            // A node that belongs to no cluster names itself as the only one.
            let own = self.node_row(&self.config.node, NodeStatus::Active, 0, &mut reply);
            reply.nodes.push(own);
            return reply;
        };
        let half = |number: u128| u64::try_from(number & u128::from(u64::MAX)).expect("masked");
        (reply.version, reply.cluster) = (map.version, [half(map.cluster >> 64), half(map.cluster)]);
        reply.replication = u32::from(map.replication);
        reply.meta = self.partition_row(META_GROUP, &map.meta, &mut reply.ids);
        for (group, placement) in map.groups().filter(|(group, _)| *group != META_GROUP) {
            let row = self.partition_row(group, placement, &mut reply.ids);
            reply.partitions.push(row);
        }
        for (info, status) in &map.nodes {
            let replicas = map.partitions.iter().filter(|placement| placement.contains(info.id)).count();
            let row = self.node_row(info, *status, replicas, &mut reply);
            reply.nodes.push(row);
        }
        reply
    }

    fn node_row(&self, info: &NodeInfo, status: NodeStatus, replicas: usize, reply: &mut ClusterMapReply) -> NodeRow {
        let is_own = info.id == self.config.node.id;
        let peer = self.peers.nodes.get(&info.id);
        let ports = Span {
            at: u32::try_from(reply.ports.len()).expect("ports are bounded"),
            len: u32::try_from(info.client_ports.len()).expect("shards are bounded"),
        };
        reply.ports.extend_from_slice(&info.client_ports);
        let led = reply.partitions.iter().filter(|row| row.leader == info.id.0).count();
        let heard_us = if is_own { self.last_time_us } else { peer.map_or(0, |peer| peer.seen_us) };
        let disk = if is_own { self.disk_room } else { peer.map(|peer| peer.disk) }.unwrap_or_default();
        NodeRow {
            id: info.id.0,
            seen_ms: heard_us / 1_000,
            disk_bytes: disk.bytes,
            disk_bytes_free: disk.free,
            name: body::put(&mut reply.bytes, info.name.as_bytes()),
            zone: body::put(&mut reply.bytes, info.zone.as_bytes()),
            host: body::put(&mut reply.bytes, info.host.as_bytes()),
            ports,
            status: status_number(status),
            alive: u32::from(is_own || peer.is_some_and(|peer| peer.is_alive)),
            version: info.version,
            leaders: u32::try_from(led).expect("partitions are bounded"),
            replicas: u32::try_from(replicas).expect("partitions are bounded"),
            peer_port: u32::from(info.peer_port),
        }
    }

    fn partition_row(&self, number: u16, placement: &Placement, ids: &mut Vec<u64>) -> PartitionRow {
        let mut span = |nodes: &mut dyn Iterator<Item = u64>| {
            let at = ids.len();
            ids.extend(nodes);
            let number = |count: usize| u32::try_from(count).expect("replicas are bounded");
            Span { at: number(at), len: number(ids.len() - at) }
        };
        let (term, leader) = self.peers.leader(number).unwrap_or((0, NodeId(0)));
        let mut row = PartitionRow {
            leader: leader.0,
            term,
            replicas: span(&mut placement.replicas.iter().map(|node| node.0)),
            settled: u32::from(placement.settled),
            lag: self.peers.lag.get(&number).copied().unwrap_or(0),
            ..PartitionRow::default()
        };
        if let Some(standing) = self.standing(number) {
            (row.applied, row.committed) = (standing.applied, standing.committed);
            row.voters = span(&mut standing.voters.iter().copied());
            row.learners = span(&mut standing.learners.iter().copied());
            if standing.serving > 0 {
                (row.leader, row.term) = (self.config.node.id.0, standing.serving);
                row.lag = standing.lag;
            } else if leader == self.config.node.id {
                // It gave the lead up and knows of no other leader yet.
                row.leader = 0;
            }
        }
        if row.voters.len == 0 {
            // The replica is another node's: of a group that has settled, the map says it all.
            let settled = placement.settled.then_some(placement.replicas.as_slice());
            let voters = settled.or_else(|| self.meta.reported_voters(number));
            row.voters = span(&mut voters.unwrap_or_default().iter().map(|node| node.0));
        }
        row
    }

    /// Sentences about what is wrong and does not show in the rows.
    fn show_problems(&self, reply: &mut ClusterMapReply) {
        let cluster = self.map.as_ref().map_or(0, |map| map.cluster);
        let is_foreign = |peer: &Peer| cluster != 0 && peer.is_alive && peer.cluster != 0 && peer.cluster != cluster;
        let foreign = self.peers.nodes.iter().filter(|(_, peer)| is_foreign(peer));
        let strangers =
            foreign.map(|(node, _)| format!("node {node} belongs to another cluster of the same name: it is kept out"));
        let full = self.full_disks().map(|name| {
            format!("the disk of node {name} is full: others lead its partitions as far as they can; free space there")
        });
        for sentence in full.chain(strangers).chain(self.notices.fresh(self.last_time_us).map(str::to_owned)) {
            let span = body::put(&mut reply.bytes, sentence.as_bytes());
            reply.warnings.push(span);
        }
    }

    /// Names of nodes whose disk is full.
    fn full_disks(&self) -> impl Iterator<Item = &str> {
        let own = self.disk_full.then_some(self.config.node.name.as_str());
        let full = self.peers.nodes.iter().filter(|(_, peer)| peer.is_full && peer.is_alive).map(|(node, _)| *node);
        let name = |id: NodeId| self.map.as_ref().and_then(|map| map.node(id)).map(|(info, _)| info.name.as_str());
        own.into_iter().chain(full.filter_map(name))
    }

    /// An operator's request.
    pub(super) fn cluster_admin(
        &mut self,
        conn: ConnId,
        header: Header,
        bytes: &[u8],
        effects: &mut Effects,
    ) -> Result<(), Refused> {
        let request = body::access::<ArchivedClusterAdmin>(bytes)?;
        let invalid = |sentence: &str| Refused::new(Code::Invalid, sentence.to_owned());
        if self.config.number != 0 {
            return Err(Refused::new(Code::WrongPartition, "requests about the cluster go to shard 0 of a node"));
        }
        let verb = request.verb.to_native();
        if verb == cluster_verb::BOOTSTRAP {
            self.bootstrap()?;
            effects.reply(conn, &header, &Empty::default());
            return Ok(());
        }
        let named = node_of(request.node.to_native());
        let node = || named.ok_or_else(|| invalid("name the node"));
        let to = node_of(request.to.to_native());
        let group = u16::try_from(request.partition.to_native()).map_err(|_| invalid("there is no such partition"))?;
        let command = match verb {
            cluster_verb::DRAIN => Command::SetStatus { node: node()?, status: NodeStatus::Draining },
            cluster_verb::ACTIVATE => Command::SetStatus { node: node()?, status: NodeStatus::Active },
            cluster_verb::REMOVE => Command::SetStatus { node: node()?, status: NodeStatus::Removed },
            cluster_verb::REPLICATION => {
                let replication = u16::try_from(request.value.to_native());
                Command::SetReplication(replication.map_err(|_| invalid("so many replicas are not possible"))?)
            }
            cluster_verb::TRANSFER_LEADER => Command::Prefer { group, leader: to },
            cluster_verb::MOVE => {
                self.move_replica(group, node()?, to.ok_or_else(|| invalid("name the node to move to"))?)?
            }
            cluster_verb::REBALANCE => {
                self.meta.rebalance();
                effects.reply(conn, &header, &Empty::default());
                return Ok(());
            }
            _ => return Err(invalid("this node does not know such a request about the cluster")),
        };
        self.propose_map(&command, Some((conn, header)))
    }

    fn bootstrap(&mut self) -> Result<(), Refused> {
        if let Some(map) = &self.map {
            let message = format!("this node belongs to cluster {:032x} already", map.cluster);
            return Err(Refused::new(Code::IllegalState, message));
        }
        let joined = self.peers.nodes.iter().find(|(_, peer)| peer.is_alive && peer.cluster != 0);
        if let Some((node, peer)) = joined {
            let message = format!(
                "node {node} belongs to cluster {:032x}, and this one is about to join it: two clusters would form",
                peer.cluster
            );
            return Err(Refused::new(Code::IllegalState, message));
        }
        self.found_cluster(new_cluster_id(self.config.node.id, self.last_time_us));
        Ok(())
    }

    fn move_replica(&self, group: u16, from: NodeId, to: NodeId) -> Result<Command, Refused> {
        let placement = self.map.as_ref().and_then(|map| map.placement(group));
        let placement = placement.ok_or_else(|| Refused::new(Code::WrongPartition, "there is no such partition"))?;
        if !placement.contains(from) || placement.contains(to) {
            let message = format!("partition {group} has to have a replica on {from} and none on {to}");
            return Err(Refused::new(Code::Invalid, message));
        }
        let mut replicas: Vec<NodeId> = placement.replicas.iter().copied().filter(|&node| node != from).collect();
        replicas.push(to);
        replicas.sort_unstable();
        Ok(Command::Place { group, replicas, leader: placement.leader.filter(|&leader| leader != from) })
    }
}

/// What tests and operators' tools look at.
impl Shard {
    /// The cluster this node belongs to.
    #[must_use]
    pub fn cluster(&self) -> Option<u128> {
        self.map.as_ref().map(|map| map.cluster)
    }

    /// Whether this replica leads a partition and answers for it.
    #[must_use]
    pub fn serves(&self, partition: PartitionId) -> bool {
        self.group(partition.0).is_some_and(|group| group.serving > 0)
    }

    /// The term of a partition's replica here.
    #[must_use]
    pub fn term(&self, partition: PartitionId) -> u64 {
        self.group(partition.0).map_or(0, |group| group.replica.term())
    }

    /// The voters of a partition, as its replica here has applied them; none between two configurations.
    #[must_use]
    pub fn voters(&self, partition: PartitionId) -> Vec<NodeId> {
        let conf = self.group(partition.0).map(|group| group.replica.conf());
        let voters = conf.filter(|conf| !crate::replica::conf::is_joint(conf)).map(|conf| &conf.voters);
        voters.into_iter().flatten().map(|&node| NodeId(node)).collect()
    }

    /// One line about each replica here.
    #[must_use]
    pub fn describe(&self) -> Vec<String> {
        let line = |group: &super::group::Group| {
            let (replica, conf) = (&group.replica, group.replica.conf());
            format!(
                "group {}: term {} leader {} serving {} applied {} committed {} last {} voters {:?} outgoing {:?} learners {:?}",
                group.number,
                replica.term(),
                replica.leader(),
                group.serving,
                replica.applied().index,
                replica.committed(),
                replica.last_index(),
                conf.voters,
                conf.voters_outgoing,
                conf.learners
            )
        };
        self.groups.iter().flatten().map(|group| line(group)).collect()
    }
}

//! What a node tells of its cluster: nodes, partitions, leaders, and what is wrong.

use taskmaster_protocol::NodeId;
use taskmaster_protocol::body::{
    ArchivedClusterMapReply, ArchivedNodeRow, ArchivedPartitionRow, ArchivedSpan, Malformed, text,
};

use crate::error::Error;

/// The cluster as one of its nodes knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterView {
    /// Version of what the cluster agreed on; elections do not change it.
    pub version: u64,
    /// Identity of the cluster; `None` while the node belongs to none.
    pub cluster: Option<u128>,
    /// The node that answered.
    pub answered_by: Option<NodeId>,
    /// Replicas that a partition should have.
    pub replication: u32,
    /// The group that keeps the map.
    pub meta: GroupView,
    /// The nodes.
    pub nodes: Vec<NodeView>,
    /// The partitions, by number; none while the node belongs to no cluster.
    pub partitions: Vec<GroupView>,
    /// Sentences about what is wrong.
    pub warnings: Vec<String>,
}

/// What a node is there for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum NodeStatus {
    /// It takes replicas and leads.
    #[default]
    Active,
    /// Its replicas and leaders move away.
    Draining,
    /// It belongs to the cluster no more.
    Removed,
}

impl NodeStatus {
    /// The stable name used in JSON output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Removed => "removed",
        }
    }

    fn from_number(number: u32) -> Self {
        match number {
            0 => Self::Active,
            1 => Self::Draining,
            // A status of a newer server: nothing to count on.
            _ => Self::Removed,
        }
    }
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeView {
    /// Identity.
    pub id: NodeId,
    /// Name.
    pub name: String,
    /// Zone; empty if it has none.
    pub zone: String,
    /// Name or address by which clients reach it.
    pub host: String,
    /// Port of each of its shards for clients.
    pub ports: Vec<u16>,
    /// Port for other nodes.
    pub peer_port: u32,
    /// What it is there for.
    pub status: NodeStatus,
    /// Whether the answering node hears from it.
    pub is_alive: bool,
    /// When it was last heard from, in milliseconds since 1970.
    pub seen_ms: Option<u64>,
    /// Room of its data directory's file system and what is free of it, in bytes.
    pub disk_bytes: Option<(u64, u64)>,
    /// Format version of its software.
    pub version: u32,
    /// Partitions it leads.
    pub leaders: u32,
    /// Partitions it has a replica of.
    pub replicas: u32,
}

/// The replicas of a partition, or of the group that keeps the map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupView {
    /// The node that leads it, if that is known.
    pub leader: Option<NodeId>,
    /// Raft term of that leader.
    pub term: u64,
    /// Entries applied by the replica of the node that answered; 0 if it has none.
    pub applied: u64,
    /// Entries committed, likewise.
    pub committed: u64,
    /// Nodes that should have it.
    pub replicas: Vec<NodeId>,
    /// Nodes that vote.
    pub voters: Vec<NodeId>,
    /// Nodes that learn.
    pub learners: Vec<NodeId>,
    /// Entries by which the slowest replica is behind.
    pub lag: u32,
    /// Whether those that vote are those that should have it.
    pub is_settled: bool,
}

impl ClusterView {
    /// Reads a reply, for those who ask over a connection of their own.
    ///
    /// # Errors
    /// [`Error::Protocol`] when a span lies outside its area or a text is not UTF-8.
    pub fn read(reply: &ArchivedClusterMapReply) -> Result<Self, Error> {
        let [high, low] = [&reply.cluster[0], &reply.cluster[1]].map(|half| u128::from(half.to_native()));
        let sentence = |span: &ArchivedSpan| Ok(text(&reply.bytes, *span)?.to_owned());
        let warnings: Result<Vec<String>, Malformed> = reply.warnings.iter().map(sentence).collect();
        Ok(Self {
            version: reply.version.to_native(),
            cluster: Some((high << 64) | low).filter(|&id| id != 0),
            answered_by: node_id(reply.node.to_native()),
            replication: reply.replication.to_native(),
            meta: group(reply, &reply.meta)?,
            nodes: reply.nodes.iter().map(|row| node(reply, row)).collect::<Result<_, Malformed>>()?,
            partitions: reply.partitions.iter().map(|row| group(reply, row)).collect::<Result<_, Malformed>>()?,
            warnings: warnings?,
        })
    }
}

fn node_id(number: u64) -> Option<NodeId> {
    (number != 0).then_some(NodeId(number))
}

fn node(reply: &ArchivedClusterMapReply, row: &ArchivedNodeRow) -> Result<NodeView, Malformed> {
    let name = |span: ArchivedSpan| Ok::<String, Malformed>(text(&reply.bytes, span)?.to_owned());
    let ports = piece(&reply.ports, row.ports)?;
    if ports.len() > usize::from(u16::MAX) {
        return Err(Malformed(format!("a node with {} ports", ports.len())));
    }
    Ok(NodeView {
        id: NodeId(row.id.to_native()),
        name: name(row.name)?,
        zone: name(row.zone)?,
        host: name(row.host)?,
        ports: ports.iter().map(|port| port.to_native()).collect(),
        peer_port: row.peer_port.to_native(),
        status: NodeStatus::from_number(row.status.to_native()),
        is_alive: row.alive.to_native() != 0,
        seen_ms: Some(row.seen_ms.to_native()).filter(|&seen| seen != 0),
        disk_bytes: Some((row.disk_bytes.to_native(), row.disk_bytes_free.to_native())).filter(|&(all, _)| all != 0),
        version: row.version.to_native(),
        leaders: row.leaders.to_native(),
        replicas: row.replicas.to_native(),
    })
}

fn group(reply: &ArchivedClusterMapReply, row: &ArchivedPartitionRow) -> Result<GroupView, Malformed> {
    let ids = |span: ArchivedSpan| {
        let ids = piece(&reply.ids, span)?.iter().map(|id| NodeId(id.to_native())).collect();
        Ok::<Vec<NodeId>, Malformed>(ids)
    };
    Ok(GroupView {
        leader: node_id(row.leader.to_native()),
        term: row.term.to_native(),
        applied: row.applied.to_native(),
        committed: row.committed.to_native(),
        replicas: ids(row.replicas)?,
        voters: ids(row.voters)?,
        learners: ids(row.learners)?,
        lag: row.lag.to_native(),
        is_settled: row.settled.to_native() != 0,
    })
}

/// A span of an area that is not the byte area.
fn piece<T>(area: &[T], span: ArchivedSpan) -> Result<&[T], Malformed> {
    let (at, len) = (span.at.to_native() as usize, span.len.to_native() as usize);
    area.get(at..)
        .and_then(|rest| rest.get(..len))
        .ok_or_else(|| Malformed(format!("span {at}+{len} lies outside an area of {} elements", area.len())))
}

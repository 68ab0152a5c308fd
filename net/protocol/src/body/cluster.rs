//! The cluster as any of its nodes knows it, and operators' requests about it.

use rkyv::{Archive, Deserialize, Serialize};

use super::Span;

/// Nodes, partitions and who leads them, as the answering node last heard.
#[derive(Clone, Debug, Default, Archive, Serialize, Deserialize)]
pub struct ClusterMapReply {
    /// Version of the agreed part of the map; it grows with each agreed change, not with each election.
    pub version: u64,
    /// Identity of the cluster; zero while the node belongs to none.
    pub cluster: [u64; 2],
    /// The node that answers.
    pub node: u64,
    /// The group that keeps the map.
    pub meta: PartitionRow,
    /// The nodes, removed ones included while the map remembers them.
    pub nodes: Vec<NodeRow>,
    /// The partitions, by partition number; empty while the node belongs to no cluster.
    pub partitions: Vec<PartitionRow>,
    /// Area of node ids.
    pub ids: Vec<u64>,
    /// Area of TCP ports.
    pub ports: Vec<u16>,
    /// Sentences about what is wrong with the cluster (UTF-8); empty when nothing is.
    pub warnings: Vec<Span>,
    /// Byte area.
    pub bytes: Vec<u8>,
    /// Replicas that a partition should have.
    pub replication: u32,
    /// Zero.
    pub reserved: u32,
}

/// A node of the cluster.
#[derive(Clone, Copy, Debug, Default, Archive, Serialize, Deserialize)]
pub struct NodeRow {
    /// Identity, never zero.
    pub id: u64,
    /// When it was last heard from, in milliseconds since 1970; 0 for never.
    pub seen_ms: u64,
    /// Room of the file system that holds its data directory, in bytes; 0 if unknown.
    pub disk_bytes: u64,
    /// Free room there, in bytes.
    pub disk_bytes_free: u64,
    /// Name (UTF-8).
    pub name: Span,
    /// Zone (UTF-8); empty if it has none.
    pub zone: Span,
    /// Name or address by which clients reach it (UTF-8), without a port.
    pub host: Span,
    /// Port of each of its shards for clients, as a span of `ports` counted in elements.
    pub ports: Span,
    /// 0 active, 1 draining, 2 removed.
    pub status: u32,
    /// 1: the answering node hears from it.
    pub alive: u32,
    /// Format version of its software.
    pub version: u32,
    /// Partitions it leads.
    pub leaders: u32,
    /// Partitions it has a replica of.
    pub replicas: u32,
    /// Port for other nodes: TCP of its shard 0, and UDP.
    pub peer_port: u32,
}

/// A partition's replicas, or those of the group that keeps the map.
#[derive(Clone, Copy, Debug, Default, Archive, Serialize, Deserialize)]
pub struct PartitionRow {
    /// The node that leads it; 0 if unknown.
    pub leader: u64,
    /// Raft term of that leader, as far as known.
    pub term: u64,
    /// Entries applied by the answering node's own replica; 0 if it has none.
    pub applied: u64,
    /// Entries committed, likewise.
    pub committed: u64,
    /// Nodes that should have it, as a span of `ids` counted in elements.
    pub replicas: Span,
    /// Nodes that vote, likewise.
    pub voters: Span,
    /// Nodes that learn, likewise.
    pub learners: Span,
    /// Entries by which the slowest replica is behind.
    pub lag: u32,
    /// 1: those that vote are those that should have it.
    pub settled: u32,
}

/// Values of [`ClusterAdmin::verb`].
pub mod cluster_verb {
    /// Found a cluster on a node that belongs to none.
    pub const BOOTSTRAP: u32 = 1;
    /// Move everything off `node`.
    pub const DRAIN: u32 = 2;
    /// Let `node`, which drains, take partitions again.
    pub const ACTIVATE: u32 = 3;
    /// Take `node` out of the cluster.
    pub const REMOVE: u32 = 4;
    /// Move the replica of `partition` on `node` to the node `to`.
    pub const MOVE: u32 = 5;
    /// Spread replicas and leaders anew.
    pub const REBALANCE: u32 = 6;
    /// Let `to` lead `partition`.
    pub const TRANSFER_LEADER: u32 = 7;
    /// Keep `value` replicas of each partition.
    pub const REPLICATION: u32 = 8;
    /// Look for the cluster at the peer addresses in `text`.
    pub const JOIN: u32 = 9;
}

/// An operator's request about the cluster; what it starts is seen in the map.
#[derive(Clone, Debug, Default, Archive, Serialize, Deserialize)]
pub struct ClusterAdmin {
    /// The node concerned, 0 for none.
    pub node: u64,
    /// The node to move to or to lead, 0 for any.
    pub to: u64,
    /// A number.
    pub value: u64,
    /// A text (UTF-8).
    pub text: Span,
    /// Byte area.
    pub bytes: Vec<u8>,
    /// What to do: a value of [`cluster_verb`].
    pub verb: u32,
    /// The partition concerned; 0xFFFF means the group that keeps the map, or none.
    pub partition: u32,
}

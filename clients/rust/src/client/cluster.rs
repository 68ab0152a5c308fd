//! Operators' view of the cluster, and their requests about it.

use std::time::Duration;

use taskmaster_protocol::body::{ArchivedClusterMapReply, ClusterAdmin, Empty, cluster_verb, put};
use taskmaster_protocol::frame::NO_PARTITION;
use taskmaster_protocol::{NodeId, Operation, PartitionId};

use super::Client;
use crate::cluster::Target;
use crate::error::Error;
use crate::view::ClusterView;

/// A request about nodes and replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClusterChange {
    /// Found a cluster on the node connected to, which belongs to none.
    Bootstrap,
    /// Let the node connected to, which belongs to none, look for its cluster at these peer addresses.
    Join {
        /// `host:port`, separated by commas.
        peers: String,
    },
    /// Move everything off a node.
    Drain(NodeId),
    /// End the draining of a node.
    Activate(NodeId),
    /// Take a node out of the cluster.
    Remove(NodeId),
    /// Move a replica.
    Move {
        /// Its partition.
        partition: PartitionId,
        /// The node that has it; `None` lets the cluster choose.
        from: Option<NodeId>,
        /// The node that is to have it.
        to: NodeId,
    },
    /// Spread replicas and leaders anew.
    Rebalance,
    /// Let another node lead.
    TransferLeader {
        /// The partition; `None` means the group that keeps the map.
        partition: Option<PartitionId>,
        /// The node; `None` lets the cluster choose.
        to: Option<NodeId>,
    },
    /// Keep this many replicas of each partition.
    Replication(u32),
}

impl ClusterChange {
    /// As it crosses the wire, for those who ask over a connection of their own.
    #[must_use]
    pub fn to_body(&self) -> ClusterAdmin {
        let mut body = ClusterAdmin { partition: NO_PARTITION.into(), ..ClusterAdmin::default() };
        let number = |node: &Option<NodeId>| node.map_or(0, |node| node.0);
        body.verb = match self {
            Self::Bootstrap => cluster_verb::BOOTSTRAP,
            Self::Join { peers } => {
                body.text = put(&mut body.bytes, peers.as_bytes());
                cluster_verb::JOIN
            }
            Self::Drain(node) => {
                body.node = node.0;
                cluster_verb::DRAIN
            }
            Self::Activate(node) => {
                body.node = node.0;
                cluster_verb::ACTIVATE
            }
            Self::Remove(node) => {
                body.node = node.0;
                cluster_verb::REMOVE
            }
            Self::Move { partition, from, to } => {
                (body.partition, body.node, body.to) = (partition.0.into(), number(from), to.0);
                cluster_verb::MOVE
            }
            Self::Rebalance => cluster_verb::REBALANCE,
            Self::TransferLeader { partition, to } => {
                body.partition = partition.map_or(NO_PARTITION, |partition| partition.0).into();
                body.to = number(to);
                cluster_verb::TRANSFER_LEADER
            }
            Self::Replication(replicas) => {
                body.value = u64::from(*replicas);
                cluster_verb::REPLICATION
            }
        };
        body
    }
}

impl Client {
    /// The cluster as some node knows it that is there.
    ///
    /// # Errors
    /// [`Error::Refused`] with `unknown_operation` from a server that knows no clusters; transport errors.
    pub async fn cluster_view(&self) -> Result<ClusterView, Error> {
        let cluster = self.cluster();
        let message = cluster.call_for(Operation::ClusterMap, Target::Any, &Empty::default(), Duration::ZERO).await?;
        ClusterView::read(message.read::<ArchivedClusterMapReply>()?)
    }

    /// Asks the cluster to change. Success means that the change is agreed; how far it is shows in
    /// [`Client::cluster_view`].
    ///
    /// # Errors
    /// Refusals with a sentence that says what is wrong; transport errors.
    pub async fn change_cluster(&self, change: &ClusterChange) -> Result<(), Error> {
        let cluster = self.cluster();
        let target = match change {
            // They concern the node connected to, which knows no other.
            ClusterChange::Bootstrap | ClusterChange::Join { .. } => {
                cluster.topology().nodes().first().map_or(Target::Any, |node| Target::Shard((node.id, 0)))
            }
            _ => Target::Meta,
        };
        cluster.call_for(Operation::ClusterAdmin, target, &change.to_body(), Duration::ZERO).await.map(drop)
    }
}

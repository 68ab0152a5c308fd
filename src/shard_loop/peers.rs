//! Messages to and from the shards of other nodes, and between engines of this one.
//!
//! Invariants: what is sent here may be lost, and the engine repeats it; nothing is waited for. Who a node is, where it is,
//! and which cluster this one is of come from shard 0.

use std::net::SocketAddr;
use std::sync::Arc;

use taskmaster_engine::cluster::{ClusterMap, Member, NodeStatus};
use taskmaster_engine::{Input, PeerAddr};
use taskmaster_net::peers::PeerHandler;
use taskmaster_protocol::{FrameBuffer, NodeId};

use super::{Message, ShardLoop};

impl ShardLoop {
    /// Messages of this turn for another shard.
    pub(super) fn send_to_peer(&self, to: PeerAddr, messages: &mut FrameBuffer) {
        if to.node == self.own.node {
            let bytes = core::mem::take(messages);
            self.mesh.push(usize::from(to.shard), Message::Peer { from: self.own, bytes });
        } else if let Some(peers) = &self.peers {
            // What is dropped, the engine sends again when it is missed.
            let _ = peers.send(to.node, to.shard, messages);
        }
    }

    /// Connections that were refused lately are a part of what is wrong with the cluster.
    pub(super) fn notice_refusals(&self) {
        let Some(peers) = &self.peers else { return };
        for refused in peers.refusals() {
            self.shard.borrow_mut().give_notice(refused.sentence, true);
        }
    }

    /// What gossip says of a node, here and on the node's other shards.
    pub(super) fn member(&self, member: &Member) {
        if let Some(peers) = self.peers.as_ref().filter(|_| member.is_alive) {
            for shard in 0..member.shards {
                if let Some(port) = member.peer.port().checked_add(shard) {
                    peers.locate(member.id, shard, SocketAddr::new(member.peer.ip(), port));
                }
            }
        }
        self.input(Input::Member(member));
    }

    /// Shard 0's map changed: the other shards hear it.
    pub(super) fn map_changed(&self, map: &Arc<ClusterMap>) {
        for shard in self.mesh.peers() {
            self.mesh.push(shard, Message::Map(Arc::clone(map)));
        }
        self.follow_map(map);
    }

    /// Talks to the nodes of this map's cluster only, and no more to those that were removed.
    pub(super) fn follow_map(&self, map: &ClusterMap) {
        if let Some(gossip) = &self.gossip {
            gossip.set_cluster(map.cluster);
        }
        let Some(peers) = &self.peers else { return };
        peers.set_cluster(map.cluster);
        for (info, _) in map.nodes.iter().filter(|(_, status)| *status == NodeStatus::Removed) {
            peers.forget(info.id);
        }
    }
}

impl PeerHandler for ShardLoop {
    fn batch(&self, from: NodeId, shard: u16, bytes: &[u8]) {
        self.input(Input::Peer { from: PeerAddr { node: from, shard }, bytes });
    }

    fn turn_ended(&self) {
        self.turn.ring();
    }

    fn connected(&self, node: NodeId) {
        tracing::debug!(shard = self.number, %node, "connected with a node");
    }

    fn lost(&self, node: NodeId) {
        tracing::debug!(shard = self.number, %node, "the connection with a node was lost");
        self.input(Input::PeerLost { node });
    }
}

//! Who owns the limits of queues: the leader of a partition that follows from the queue's name.

use taskmaster_protocol::NodeId;

use super::{Effects, Shard};
use crate::peer::{Frame, PeerAddr};
use crate::permits::{self, NoteAbout, SETTLE_US, owning_partition};

impl Shard {
    /// Leaders or queues came: looks again who owns what.
    pub(super) fn watch_owners(&mut self) {
        let queues = self.dispatch.queues.len();
        let from = if core::mem::take(&mut self.peers.is_changed) { 0 } else { self.owners_known };
        self.owners_known = queues;
        let own = PeerAddr { node: self.config.node.id, shard: self.config.number };
        // Whoever else could hold leases says so within this time.
        let settles_us = if self.peers.nodes.is_empty() { 0 } else { self.last_time_us + SETTLE_US };
        for queue in from..queues {
            let entry = &mut self.dispatch.queues[queue];
            let partition = owning_partition(&entry.namespace, &entry.name, self.config.partitions);
            let leader = self.peers.leader(partition);
            let owner = leader.map(|(term, node)| (self.peers.home_of(node.0, partition), term));
            if entry.permits.owned_by(owner, own, self.started_us, settles_us) {
                self.dispatch.mark(u32::try_from(queue).expect("queues are bounded"));
            }
        }
    }

    /// A note about a queue's permits.
    pub(super) fn permit(&mut self, from: PeerAddr, frame: &Frame<'_>, effects: &mut Effects) {
        let Some(about) = permits::decode(frame) else { return };
        if let Some(note) = self.dispatch.take_note(from, &about, self.last_time_us) {
            permits::encode(&NoteAbout { note, ..about }, effects.peer(from));
        }
    }

    /// A node is down: its leases are void.
    pub(super) fn owe_nothing_to(&mut self, node: NodeId) {
        for queue in 0..self.dispatch.queues.len() {
            self.dispatch.queues[queue].permits.forget(|other| other == node);
            self.dispatch.mark(u32::try_from(queue).expect("queues are bounded"));
        }
    }

    /// Says needs again that may have been lost. As owner: forgets what was lent to nodes that are down and say nothing, and
    /// asks those that are there.
    pub(super) fn repeat_needs(&mut self) {
        let (now_us, peers) = (self.last_time_us, &self.peers);
        let is_gone = |node: NodeId| {
            let peer = peers.nodes.get(&node);
            peer.is_some_and(|peer| !peer.is_alive && now_us.saturating_sub(peer.seen_us) > SETTLE_US)
        };
        for queue in 0..self.dispatch.queues.len() {
            let entry = &mut self.dispatch.queues[queue];
            let permits = &mut entry.permits;
            let is_due = match permits.is_owner {
                true => {
                    let has_lost = permits.forget(|node| node != self.config.node.id && is_gone(node));
                    has_lost || permits.has_quiet(now_us)
                }
                false => permits.owner().is_some() && entry.is_limited(),
            };
            if is_due {
                self.dispatch.mark(u32::try_from(queue).expect("queues are bounded"));
            }
        }
    }
}

//! Between nodes: streams of messages that keep their order until their connection breaks, datagrams that keep nothing.

use std::net::SocketAddr;
use std::sync::Arc;

use taskmaster_engine::cluster::membership::Out;
use taskmaster_engine::cluster::{ClusterMap, Membership};
use taskmaster_engine::{Input, PeerAddr};
use taskmaster_protocol::{FrameBuffer, NodeId};

use super::nodes::Death;
use super::{Event, LinkKey, What, World, sum};
use crate::sim::faults::FaultSet;
use crate::sim::node::{address_of, place_of};

/// A connection over which nothing passes for longer breaks.
const SILENCE_US_MAX: u64 = 1_500_000;
/// Pause between two tries to connect.
const RETRY_US: u64 = 100_000;

impl World {
    /// How long bytes take from one place to another.
    fn peer_latency_us(&mut self) -> u64 {
        if self.now_us < self.slow_until_us {
            return self.dice.range(5_000, 80_000);
        }
        if self.has(FaultSet::NETWORK) && self.dice.chance(2) {
            return self.dice.range(2_000, 40_000);
        }
        self.dice.range(100, 2_000)
    }

    /// Until when nothing passes from one place to another.
    fn cut_until_us(&self, from: u16, to: u16) -> u64 {
        self.cuts.get(&(from, to)).copied().unwrap_or(0)
    }

    /// The place where a node's data directory is.
    fn place_of_node(&self, id: NodeId) -> Option<u16> {
        self.places.iter().find(|place| place.id == id).map(|place| place.number)
    }

    /// One turn's messages of a shard for another one.
    pub(super) fn send_message(&mut self, place: u16, shard: u16, own: NodeId, to: PeerAddr, bytes: FrameBuffer) {
        let from = PeerAddr { node: own, shard };
        if to.node == own {
            let delay_us = self.mesh_delay_us(place, shard, to.shard);
            self.in_after(place, delay_us, What::Mesh { shard: to.shard, from, bytes });
            return;
        }
        let Some(there) = self.place_of_node(to.node) else {
            // Another node answers at that address, or none: the connection is refused.
            self.refuse(place, shard, to.node, (place, shard, u16::MAX, to.shard));
            return;
        };
        let key = (place, shard, there, to.shard);
        let silent_us = self.cut_until_us(place, there).saturating_sub(self.now_us);
        let target = &self.places[usize::from(there)];
        if target.node.is_none() || to.shard >= target.site.shards {
            self.refuse(place, shard, to.node, key);
            return;
        }
        if silent_us > SILENCE_US_MAX {
            let now_us = self.now_us;
            let link = self.peer_links.entry(key).or_default();
            if link.retry_us <= now_us {
                link.retry_us = now_us + SILENCE_US_MAX;
                link.epoch += 1;
                let after_us = self.dice.range(200_000, SILENCE_US_MAX);
                self.hear_loss(place, shard, to.node, after_us);
                self.hear_loss(there, to.shard, own, after_us);
            }
            return;
        }
        let latency_us = self.peer_latency_us();
        let now_us = self.now_us;
        let link = self.peer_links.entry(key).or_default();
        if link.retry_us > now_us {
            return;
        }
        link.arrives_us = link.arrives_us.max(now_us + silent_us + latency_us);
        let (delay_us, epoch) = (link.arrives_us - now_us, link.epoch);
        self.in_after(there, delay_us, What::Peer { shard: to.shard, from, to: to.node, key, epoch, bytes });
    }

    /// No connection can be made: the sender hears of it, now and then.
    fn refuse(&mut self, place: u16, shard: u16, node: NodeId, key: LinkKey) {
        let now_us = self.now_us;
        let link = self.peer_links.entry(key).or_default();
        if link.retry_us > now_us {
            return;
        }
        link.retry_us = now_us + RETRY_US;
        let delay_us = self.dice.range(100, 5_000);
        self.hear_loss(place, shard, node, delay_us);
    }

    fn hear_loss(&mut self, place: u16, shard: u16, node: NodeId, delay_us: u64) {
        self.in_after(place, delay_us, What::PeerLost { shard, node });
    }

    /// The connections between two places break, in both directions.
    pub(super) fn reset_peers(&mut self, one: u16, other: u16) {
        let keys: Vec<LinkKey> = self.peer_links.keys().copied().filter(|key| is_between(key, one, other)).collect();
        for key in keys {
            let (from, from_shard, to, to_shard) = key;
            self.peer_links.entry(key).or_default().epoch += 1;
            let ids = [from, to].map(|place| self.places[usize::from(place)].id);
            let delay_us = self.dice.range(50, 5_000);
            self.hear_loss(from, from_shard, ids[1], delay_us);
            self.hear_loss(to, to_shard, ids[0], delay_us);
        }
    }

    /// A process is gone: what was on its way to and from it is lost.
    pub(super) fn drop_peers(&mut self, place: u16, death: Death) {
        let keys: Vec<LinkKey> =
            self.peer_links.keys().copied().filter(|key| key.0 == place || key.2 == place).collect();
        let id = self.places[usize::from(place)].id;
        for key in keys {
            let (from, from_shard, to, to_shard) = key;
            if to == u16::MAX {
                continue;
            }
            let link = self.peer_links.entry(key).or_default();
            link.epoch += 1;
            link.arrives_us = 0;
            let (other, shard) = if from == place { (to, to_shard) } else { (from, from_shard) };
            // Who is sent to without an answer hears only after a while that nobody is there.
            let delay_us = if death == Death::Power {
                self.dice.range(200_000, SILENCE_US_MAX)
            } else {
                self.dice.range(50, 5_000)
            };
            self.hear_loss(other, shard, id, delay_us);
        }
    }

    #[expect(clippy::too_many_arguments, reason = "a batch with its addresses")]
    pub(super) fn peer_arrives(
        &mut self,
        place: u16,
        shard: u16,
        from: PeerAddr,
        to: NodeId,
        key: LinkKey,
        epoch: u64,
        bytes: &FrameBuffer,
    ) {
        let is_present = self.peer_links.get(&key).is_some_and(|link| link.epoch == epoch);
        if is_present && self.places[usize::from(place)].id == to {
            self.report.messages += 1;
            self.input(place, shard, Input::Peer { from, bytes });
        }
    }

    pub(super) fn peer_lost(&mut self, place: u16, shard: u16, node: NodeId) {
        self.input(place, shard, Input::PeerLost { node });
    }

    // ---- within a node ----

    pub(super) fn mesh_delay_us(&mut self, place: u16, from: u16, to: u16) -> u64 {
        let latency_us = self.dice.range(1, 60);
        let now_us = self.now_us;
        let arrives_us = self.mesh.entry((place, from, to)).or_default();
        *arrives_us = (*arrives_us).max(now_us + latency_us);
        *arrives_us - now_us
    }

    pub(super) fn mesh_arrives(&mut self, place: u16, shard: u16, from: PeerAddr, bytes: &FrameBuffer) {
        self.input(place, shard, Input::Peer { from, bytes });
    }

    /// Shard 0 has a newer map: gossip hears which cluster it is of, the other shards hear all.
    pub(super) fn spread_map(&mut self, place: u16, map: Arc<ClusterMap>) {
        let Some(node) = self.node(place) else { return };
        node.membership.set_cluster(map.cluster);
        node.map = Some(Arc::clone(&map));
        for shard in 1..self.places[usize::from(place)].site.shards {
            let delay_us = self.mesh_delay_us(place, 0, shard);
            self.in_after(place, delay_us, What::Map { shard, map: Arc::clone(&map) });
        }
        self.arm_gossip(place);
    }

    pub(super) fn map_arrives(&mut self, place: u16, shard: u16, map: Arc<ClusterMap>) {
        self.input(place, shard, Input::Map(map));
    }

    // ---- gossip ----

    /// Calls gossip and performs what it wants.
    pub(super) fn gossip(&mut self, place: u16, call: impl FnOnce(&mut Membership, u64, &mut Out)) {
        let clock_us = self.clock_us(place);
        let Some(node) = self.node(place) else { return };
        let mut out = Out::default();
        call(&mut node.membership, clock_us, &mut out);
        for (to, bytes) in out.packets {
            self.send_packet(place, to, bytes);
        }
        for member in &out.changes {
            self.note(7, member.id.0 ^ u64::from(member.is_alive));
            for shard in 0..self.places[usize::from(place)].site.shards {
                self.input(place, shard, Input::Member(member));
            }
        }
        self.arm_gossip(place);
    }

    fn arm_gossip(&mut self, place: u16) {
        let (clock_us, now_us) = (self.clock_us(place), self.now_us);
        let Some(node) = self.node(place) else { return };
        let at_us = now_us + node.membership.next_wake_us().saturating_sub(clock_us) + 1;
        if at_us < node.gossip_us {
            node.gossip_us = at_us;
            self.in_after(place, at_us - now_us, What::Gossip { at_us });
        }
    }

    pub(super) fn gossip_due(&mut self, place: u16, at_us: u64) {
        let Some(node) = self.node(place).filter(|node| node.gossip_us == at_us) else { return };
        node.gossip_us = u64::MAX;
        self.gossip(place, |membership, now_us, out| {
            if membership.next_wake_us() <= now_us {
                membership.handle_timeout(now_us, out);
            }
        });
    }

    fn send_packet(&mut self, from: u16, to: SocketAddr, bytes: Vec<u8>) {
        let Some(place) = place_of(to).filter(|place| usize::from(*place) < self.places.len()) else { return };
        let (percent, until_us) = self.gossip_loss;
        let loss = if self.now_us < until_us { percent } else { u64::from(self.has(FaultSet::NETWORK)) };
        if self.cut_until_us(from, place) > self.now_us || self.dice.chance(loss) {
            return;
        }
        let copies = 1 + u64::from(self.has(FaultSet::NETWORK) && self.dice.chance(1));
        for _ in 0..copies {
            let delay_us = self.peer_latency_us();
            self.in_after(place, delay_us, What::Packet { from, bytes: bytes.clone() });
        }
    }

    pub(super) fn packet_arrives(&mut self, place: u16, from: u16, bytes: &[u8]) {
        self.report.messages += 1;
        self.note(10, sum(bytes));
        self.gossip(place, |membership, now_us, out| membership.handle_packet(address_of(from), bytes, now_us, out));
    }

    /// A place that stood still goes on: what came meanwhile happens at once.
    pub(super) fn resume(&mut self, place: u16) {
        let index = usize::from(place);
        if !std::mem::take(&mut self.places[index].is_paused) {
            return;
        }
        for (life, what) in std::mem::take(&mut self.held[index]) {
            self.after(0, Event::In { place, life, what });
        }
    }
}

fn is_between(key: &LinkKey, one: u16, other: u16) -> bool {
    (key.0 == one && key.2 == other) || (key.0 == other && key.2 == one)
}

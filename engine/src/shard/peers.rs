//! Other nodes as a shard sees them: where their shards are, when they were heard of, and who leads what.
//!
//! Who leads a group is learnt from its own replica, and for groups without one here from what leaders say of themselves,
//! at once and then every second; the higher term wins.

use std::collections::BTreeMap;

use raft::eraftpb::MessageType;
use taskmaster_protocol::{FrameBuffer, NodeId};

use super::{Effects, Shard};
use crate::cluster::membership::Member;
use crate::peer::{self, Kind, META_GROUP, PeerAddr};
use crate::replica::message;
use crate::replica::record::Fields;

/// Leaders say so again after this time, in microseconds.
const ANNOUNCE_US: u64 = 1_000_000;
/// Bytes of one group in an announcement.
const LEAD_BYTES: usize = 16;
/// Details of an announcement: the sender's disk is full; the rows are followed by the room of its disk and by its clock.
const DISK_FULL: u8 = 1;
const MACHINE: u8 = 2;
/// Clocks are compared over this time, in microseconds: of many messages one has hardly waited.
const CLOCKS_US: u64 = 10_000_000;
/// Difference of two nodes' clocks from which operators should know, in microseconds.
const SKEW_US: i64 = 1_000_000;

/// A node's disk, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct DiskRoom {
    pub(super) bytes: u64,
    pub(super) free: u64,
}

/// Another node.
#[derive(Clone, Debug, Default)]
pub(super) struct Peer {
    pub(super) shards: u16,
    /// When it was last heard; 0 when its connection is lost.
    pub(super) heard_us: u64,
    /// The same, lost or not.
    pub(super) seen_us: u64,
    pub(super) is_alive: bool,
    pub(super) down_since_us: u64,
    /// The cluster it says it is of.
    pub(super) cluster: u128,
    pub(super) version: u32,
    /// When it was not connected, or lacked entries of a group that is led here.
    pub(super) behind_us: u64,
    /// It said that its disk is full: it is no heir.
    pub(super) is_full: bool,
    /// What its shard 0 said of its disk.
    pub(super) disk: DiskRoom,
    /// When its clock was last judged, and how far it was ahead at the most since then: what was under way seems behind.
    clock: (u64, Option<i64>),
}

/// All of them, and the leaders.
pub(super) struct Peers {
    own: NodeId,
    own_shards: u16,
    pub(super) nodes: BTreeMap<NodeId, Peer>,
    /// Term and leader by partition, and last of the meta group.
    leaders: Vec<(u64, u64)>,
    announce_us: u64,
    /// The last announcement said that the disk is full.
    was_full: bool,
    /// Some leader changed.
    pub(super) is_changed: bool,
    /// Entries by which the slowest replica of a group is behind, as its leader said.
    pub(super) lag: BTreeMap<u16, u32>,
}

impl Peers {
    pub(super) fn new(partitions: usize, own: NodeId, own_shards: u16) -> Self {
        Self {
            own,
            own_shards,
            nodes: BTreeMap::new(),
            leaders: vec![(0, 0); partitions + 1],
            announce_us: 0,
            was_full: false,
            is_changed: false,
            lag: BTreeMap::new(),
        }
    }

    fn place(&self, group: u16) -> usize {
        if group == META_GROUP { self.leaders.len() - 1 } else { usize::from(group) }
    }

    /// The shard of a node where a group's replica is, or would be.
    pub(super) fn home_of(&self, node: u64, group: u16) -> PeerAddr {
        let known = self.nodes.get(&NodeId(node)).map_or(1, |peer| peer.shards.max(1));
        let shards = if node == self.own.0 { self.own_shards } else { known };
        PeerAddr { node: NodeId(node), shard: if group == META_GROUP { 0 } else { group % shards } }
    }

    /// Takes over that `leader` leads a group in a term; 0: the replica here knows of none, or takes the one it knew for gone.
    pub(super) fn learn(&mut self, group: u16, term: u64, leader: u64) {
        let place = self.place(group);
        if let Some(known) = self.leaders.get_mut(place)
            && term >= known.0
            && *known != (term, leader)
        {
            *known = (term, leader);
            self.is_changed = true;
        }
    }

    /// The replica that knew is gone, and it may have stood for a term in which nobody was elected.
    pub(super) fn unlearn(&mut self, group: u16) {
        let place = self.place(group);
        self.leaders[place] = (0, 0);
        self.is_changed = true;
    }

    /// Term and leader of a group, if they are known.
    pub(super) fn leader(&self, group: u16) -> Option<(u64, NodeId)> {
        let (term, leader) = *self.leaders.get(self.place(group))?;
        (leader != 0).then_some((term, NodeId(leader)))
    }

    /// What this shard leads is said to all soon.
    pub(super) const fn announce(&mut self) {
        self.announce_us = 0;
    }
}

impl Shard {
    /// Whether this is the shard of its node for a group's replica.
    pub(super) fn is_home_of(&self, group: u16) -> bool {
        let exists = group == META_GROUP || usize::from(group) < self.partitions.len();
        exists && self.peers.home_of(self.config.node.id.0, group).shard == self.config.number
    }

    /// Messages of a shard of another node.
    pub(super) fn peer(&mut self, from: PeerAddr, bytes: &[u8], effects: &mut Effects) {
        if from.node != self.config.node.id {
            let peer = self.peers.nodes.entry(from.node).or_default();
            (peer.heard_us, peer.seen_us) = (self.last_time_us, self.last_time_us);
        }
        let mut rest = bytes;
        while let Some(frame) = peer::next(&mut rest) {
            match frame.kind {
                Kind::Raft => self.raft_message(from, &frame),
                Kind::Chunk => self.chunk(from, &frame, effects),
                Kind::ChunkTaken => self.chunk_taken(from, &frame),
                Kind::Leads => self.leads(from.node, &frame),
                Kind::Report => self.report(from.node, &frame),
                Kind::Join => self.join(&frame, effects),
                Kind::Permit => self.permit(from, &frame, effects),
                Kind::Pulse => self.pulse(from, &frame),
            }
        }
    }

    fn raft_message(&mut self, from: PeerAddr, frame: &peer::Frame<'_>) {
        let Some(message) = message::decode(frame, from.node.0, self.config.node.id.0) else { return };
        if self.group(frame.group).is_none() && !self.make_room(frame.group) {
            return;
        }
        if self.disk_full && !message.entries.is_empty() {
            // They come again when there is room; until then the group goes on without this replica.
            return;
        }
        if message.has_snapshot() {
            if !self.is_received(frame.group, &message) {
                return;
            }
            self.accept(frame.group);
        }
        let (now_us, beat_us) = (self.last_time_us, self.elections.beat_us());
        if let Some(group) = self.group_mut(frame.group) {
            // One that confirms a read carries its number and always counts.
            let is_answer = message.get_msg_type() == MessageType::MsgHeartbeatResponse && message.context.is_empty();
            if is_answer && !group.is_first_answer(from.node.0, beat_us) {
                return;
            }
            group.offer = None;
            // A last answer to the heartbeats of a leader that rests by now.
            let is_late = is_answer && group.is_resting;
            group.replica.step(message);
            if group.replica.leader() == from.node.0 {
                group.led_us = now_us;
            }
            if !is_late || group.replica.has_ready() {
                self.touch(frame.group);
            }
        }
    }

    /// A node's connection is gone: those it led are led by somebody else soon.
    pub(super) fn peer_lost(&mut self, node: NodeId) {
        if let Some(peer) = self.peers.nodes.get_mut(&node) {
            peer.heard_us = 0;
        }
        self.transfers.lost(node);
        let numbers: Vec<u16> = self.groups.iter().flatten().map(|group| group.number).collect();
        for number in numbers {
            if let Some(group) = self.group_mut(number) {
                group.replica.unreachable(node.0);
            }
        }
        self.stand_over(node);
        self.wake_with_node(node);
    }

    /// What gossip says.
    pub(super) fn member(&mut self, member: &Member) {
        if member.id == self.config.node.id {
            return;
        }
        let now_us = self.last_time_us;
        let peer = self.peers.nodes.entry(member.id).or_default();
        let went_down = peer.is_alive && !member.is_alive;
        if went_down {
            peer.down_since_us = now_us;
        }
        peer.is_alive = member.is_alive;
        (peer.shards, peer.cluster, peer.version) = (member.shards, member.cluster, member.version);
        if went_down {
            self.owe_nothing_to(member.id);
        }
    }

    fn leads(&mut self, from: NodeId, frame: &peer::Frame<'_>) {
        if let Some(peer) = self.peers.nodes.get_mut(&from) {
            peer.is_full = frame.detail & DISK_FULL != 0;
        }
        let mut fields = Fields(frame.body);
        let Some(count) = fields.u32() else { return };
        if fields.bytes(4).is_none() {
            return;
        }
        for _ in 0..count {
            let (Some(group), Some(_)) = (fields.u16(), fields.bytes(2)) else { return };
            let (Some(lag), Some(term)) = (fields.u32(), fields.u64()) else { return };
            self.peers.lag.insert(group, lag);
            let has_replica = self.group(group).is_some();
            if !has_replica {
                self.peers.learn(group, term, from.0);
            }
        }
        if frame.detail & MACHINE != 0
            && let (Some(bytes), Some(free), Some(clock_us)) = (fields.u64(), fields.u64(), fields.u64())
            && let Some(peer) = self.peers.nodes.get_mut(&from)
        {
            peer.disk = DiskRoom { bytes, free };
            self.compare_clocks(from, clock_us);
        }
    }

    /// Notes what another node's clock says, and warns of one that is far off.
    fn compare_clocks(&mut self, from: NodeId, clock_us: u64) {
        let now_us = self.last_time_us;
        let own_us = self.clock.outside_us(now_us);
        let Some(peer) = self.peers.nodes.get_mut(&from) else { return };
        let ahead_us = clock_us.cast_signed().saturating_sub(own_us.cast_signed());
        let (since_us, most_us) = peer.clock;
        let most_us = most_us.map_or(ahead_us, |most_us| most_us.max(ahead_us));
        if now_us.saturating_sub(since_us) < CLOCKS_US {
            peer.clock = (since_us, Some(most_us));
            return;
        }
        peer.clock = (now_us, None);
        if since_us == 0 || most_us.abs() < SKEW_US {
            return;
        }
        let info = self.map.as_ref().and_then(|map| map.node(from));
        let name = info.map_or_else(|| from.to_string(), |(info, _)| info.name.clone());
        let (seconds, side) =
            ((most_us.unsigned_abs() + 500_000) / 1_000_000, if most_us > 0 { "ahead of" } else { "behind" });
        self.give_notice(
            format!(
                "the clock of node {name} is {seconds} s {side} this node's: delays, deadlines and retention follow the clock of \
                 whoever leads a partition; let NTP set both"
            ),
            false,
        );
    }

    /// Says to all shards of all nodes what this one leads, when that changed and every second.
    pub(super) fn announce_leads(&mut self, effects: &mut Effects) {
        let now_us = self.last_time_us;
        if now_us < self.peers.announce_us {
            return;
        }
        self.peers.announce_us = now_us + ANNOUNCE_US;
        let led = self.groups.iter().flatten().filter(|group| group.serving > 0);
        let led: Vec<(u16, u32, u64)> = led.map(|group| (group.number, group.lag(), group.serving)).collect();
        let full = if self.disk_full { DISK_FULL } else { 0 };
        let detail = full | if self.disk_room.is_some() { MACHINE } else { 0 };
        if led.is_empty() && detail == 0 && !core::mem::take(&mut self.peers.was_full) {
            return;
        }
        self.peers.was_full = self.disk_full;
        let clock_us = self.clock.outside_us(now_us);
        for to in self.all_shards() {
            let out = effects.peer(to);
            let begun = peer::begin(out, Kind::Leads, detail, 0);
            write_leads(&led, out);
            if let Some(DiskRoom { bytes, free }) = self.disk_room {
                for field in [bytes, free, clock_us] {
                    out.extend_from_slice(&field.to_le_bytes());
                }
            }
            peer::finish(out, begun);
        }
    }

    /// Every other shard: of this node and of those that are alive.
    fn all_shards(&self) -> Vec<PeerAddr> {
        let (own, own_shards) = (self.peers.own, self.peers.own_shards);
        let nodes = self.peers.nodes.iter().filter(|(node, peer)| peer.is_alive && **node != own);
        let others = nodes.flat_map(|(&node, peer)| (0..peer.shards).map(move |shard| PeerAddr { node, shard }));
        let siblings = (0..own_shards).filter(|&shard| shard != self.config.number);
        siblings.map(|shard| PeerAddr { node: own, shard }).chain(others).collect()
    }
}

fn write_leads(led: &[(u16, u32, u64)], out: &mut FrameBuffer) {
    out.reserve(8 + led.len() * LEAD_BYTES);
    out.extend_from_slice(&u32::try_from(led.len()).expect("groups are bounded").to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    for (group, lag, term) in led {
        out.extend_from_slice(&group.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&lag.to_le_bytes());
        out.extend_from_slice(&term.to_le_bytes());
    }
}

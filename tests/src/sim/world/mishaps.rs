//! Faults as they happen. One that the cluster is not promised to survive at this moment is passed over: a second disk is
//! lost only once the first one's replicas are elsewhere.

use std::sync::Arc;

use taskmaster_engine::Input;
use taskmaster_engine::cluster::{ClusterMap, NodeStatus};
use taskmaster_protocol::body::{Body, ClusterAdmin, cluster_verb};
use taskmaster_protocol::frame::{Header, NO_PARTITION};
use taskmaster_protocol::{FrameBuffer, NodeId, Operation};

use super::nodes::Death;
use super::{Event, World};
use crate::sim::faults::Fault;
use crate::sim::node::OPERATOR;

/// Voters that a group needs for one of them to be lost.
const REPLICAS_MIN: usize = 3;

impl World {
    pub(super) fn suffer(&mut self, fault: Fault) {
        let happens = self.mishap(fault);
        self.tell(|| format!("{fault:?} {}", if happens { "" } else { "(passed over)" }));
        self.report.faults += u64::from(happens);
        self.note(5, u64::from(happens));
    }

    /// `false` when nothing comes of it.
    fn mishap(&mut self, fault: Fault) -> bool {
        match fault {
            Fault::PowerLoss { place, down_us } => self.die(place, Death::Power, down_us),
            Fault::Kill { place, down_us } => self.die(place, Death::Process, down_us),
            Fault::PowerLossEverywhere { down_us } => {
                for place in 0..self.count() {
                    let later_us = self.dice.below(300_000);
                    self.die(place, Death::Power, down_us.min(1_000_000) + later_us);
                }
                true
            }
            Fault::Shutdown { place, down_us: _ } => {
                self.shut_down(place);
                true
            }
            Fault::Pause { place, for_us } => {
                let at = &mut self.places[usize::from(place)];
                let happens = at.node.is_some() && !at.is_paused;
                at.is_paused |= happens;
                self.after(for_us, Event::Resume { place });
                happens
            }
            Fault::ClockJump { place, by_us } => self.jump(place, by_us),
            Fault::ClientReset { pick } => self.pick_link(pick).is_some_and(|link| {
                self.close_from_peer(link);
                true
            }),
            Fault::NodeDropsClient { pick } => self.pick_link(pick).is_some_and(|link| {
                self.close_from_node(link);
                true
            }),
            Fault::DiskStall { .. } | Fault::DiskFull { .. } | Fault::BitRot { .. } | Fault::DiskLoss { .. } => {
                self.disk_mishap(fault)
            }
            Fault::Drain { .. }
            | Fault::Activate { .. }
            | Fault::Remove { .. }
            | Fault::Move { .. }
            | Fault::Transfer { .. }
            | Fault::Rebalance => self.operate(fault),
            Fault::Cut { .. }
            | Fault::Isolate { .. }
            | Fault::Split { .. }
            | Fault::PeerReset { .. }
            | Fault::SlowNetwork { .. }
            | Fault::GossipLoss { .. } => {
                self.network_mishap(fault);
                true
            }
        }
    }

    fn count(&self) -> u16 {
        u16::try_from(self.places.len()).expect("few")
    }

    pub(super) fn die(&mut self, place: u16, death: Death, down_us: u64) -> bool {
        if self.places[usize::from(place)].node.is_none() {
            return false;
        }
        self.report.crashes += 1;
        self.stop(place, death, down_us);
        true
    }

    fn jump(&mut self, place: u16, by_us: i64) -> bool {
        let at = &mut self.places[usize::from(place)];
        at.skew_us += by_us;
        let shards = at.site.shards;
        let Some(node) = at.node.as_mut() else { return true };
        node.gossip_us = u64::MAX;
        node.loops.iter_mut().for_each(|own| own.tick_us = u64::MAX);
        self.gossip(place, |_, _, _| {});
        for shard in 0..shards {
            self.turn_soon(place, shard);
        }
        true
    }

    fn pick_link(&self, pick: u64) -> Option<u64> {
        let open = self.open_links();
        let count = open.len() as u64;
        open.get(usize::try_from(pick % count.max(1)).expect("below a usize")).copied()
    }

    fn network_mishap(&mut self, fault: Fault) {
        let now_us = self.now_us;
        match fault {
            Fault::Cut { from, to, for_us } => {
                self.cuts.insert((from, to), now_us + for_us);
            }
            Fault::Isolate { place, clients_too, for_us } => {
                for other in (0..self.count()).filter(|other| *other != place) {
                    self.cuts.insert((place, other), now_us + for_us);
                    self.cuts.insert((other, place), now_us + for_us);
                }
                if clients_too {
                    self.client_cuts.insert(place, now_us + for_us);
                }
            }
            Fault::Split { side, for_us } => {
                let is_here = |place: u16| side >> place & 1 == 1;
                for from in 0..self.count() {
                    for to in (0..self.count()).filter(|to| is_here(*to) != is_here(from)) {
                        self.cuts.insert((from, to), now_us + for_us);
                    }
                }
            }
            Fault::PeerReset { from, to } => self.reset_peers(from, to),
            Fault::SlowNetwork { for_us } => self.slow_until_us = now_us + for_us,
            Fault::GossipLoss { percent, for_us } => self.gossip_loss = (percent, now_us + for_us),
            _ => {}
        }
    }

    fn disk_mishap(&mut self, fault: Fault) -> bool {
        match fault {
            Fault::DiskStall { place, for_us } => {
                let until_us = self.now_us + for_us;
                let disks = &mut self.places[usize::from(place)].disks;
                disks.iter_mut().for_each(|disk| disk.slow_until_us = until_us);
                true
            }
            Fault::DiskFull { place, for_us } => {
                self.places[usize::from(place)].disks.iter_mut().for_each(|disk| disk.full = true);
                self.after(for_us, Event::DiskFree { place });
                true
            }
            Fault::BitRot { place, down_us } => {
                if !self.may_lose(place) {
                    return false;
                }
                let at = &mut self.places[usize::from(place)];
                let shard = self.dice.index(at.disks.len());
                let happens = at.disks[shard].rot(&mut self.dice);
                happens && self.die(place, Death::Power, down_us)
            }
            Fault::DiskLoss { place, down_us } => {
                if !self.may_lose(place) {
                    return false;
                }
                self.lose_disk(place, down_us);
                true
            }
            _ => false,
        }
    }

    fn lose_disk(&mut self, place: u16, down_us: u64) {
        self.die(place, Death::Power, down_us);
        self.places[usize::from(place)].replace_disks(self.options.seed);
        self.report.disks_lost += 1;
    }

    /// The newest map that any running node has.
    pub(super) fn newest_map(&self) -> Option<Arc<ClusterMap>> {
        let maps = self.places.iter().filter_map(|place| place.node.as_ref()?.map.as_ref());
        maps.max_by_key(|map| map.version).map(Arc::clone)
    }

    /// Whether the cluster is promised to survive the loss of what is on a place's disks.
    fn may_lose(&self, place: u16) -> bool {
        let Some(map) = self.newest_map() else { return false };
        let at = &self.places[usize::from(place)];
        // A founder that has not told anybody yet is the cluster.
        if map.node(at.id).is_none() {
            return at.number != 0 || !at.gone.is_empty();
        }
        let lost = self.places.iter().flat_map(|place| &place.gone);
        let is_replaced = |id: &NodeId| map.groups().all(|(_, placement)| !placement.contains(*id));
        let rotten = self.places.iter().any(|place| place.disks.iter().any(|disk| disk.is_rotten()));
        let is_safe = map.groups().all(|(_, placement)| placement.settled && placement.replicas.len() >= REPLICAS_MIN);
        is_safe && !rotten && lost.into_iter().all(is_replaced)
    }

    /// An operator's request, sent to all: whoever leads the meta group takes it.
    fn operate(&mut self, fault: Fault) -> bool {
        let Some(map) = self.newest_map() else { return false };
        let id = |place: u16| self.places[usize::from(place)].id.0;
        let active = map.nodes.iter().filter(|(_, status)| *status == NodeStatus::Active).count();
        let mut admin = ClusterAdmin { partition: NO_PARTITION.into(), ..ClusterAdmin::default() };
        match fault {
            Fault::Drain { place } => (admin.verb, admin.node) = (cluster_verb::DRAIN, id(place)),
            Fault::Activate { place } => (admin.verb, admin.node) = (cluster_verb::ACTIVATE, id(place)),
            Fault::Remove { place, down_us } => {
                if active <= REPLICAS_MIN || !self.may_lose(place) {
                    return false;
                }
                (admin.verb, admin.node) = (cluster_verb::REMOVE, id(place));
                self.administer(&admin);
                self.lose_disk(place, down_us);
                return true;
            }
            Fault::Move { partition, from, to } => {
                (admin.verb, admin.partition) = (cluster_verb::MOVE, partition.into());
                (admin.node, admin.to) = (id(from), id(to));
            }
            Fault::Transfer { partition, to } => {
                (admin.verb, admin.partition, admin.to) = (cluster_verb::TRANSFER_LEADER, partition.into(), id(to));
            }
            _ => admin.verb = cluster_verb::REBALANCE,
        }
        self.administer(&admin);
        true
    }

    pub(super) fn administer(&mut self, admin: &ClusterAdmin) {
        let mut body = FrameBuffer::new();
        admin.append_to(&mut body);
        let mut header = Header::request(Operation::ClusterAdmin, 1, None);
        header.partition = NO_PARTITION;
        for place in 0..self.count() {
            self.input(place, 0, Input::Frame { conn: OPERATOR, header, body: &body });
        }
    }
}

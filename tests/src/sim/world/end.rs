//! From the last fault to the verdict: everything is answered, everything becomes final, replicas agree, and a last loss of
//! power everywhere changes nothing of it.

use std::collections::BTreeMap;

use taskmaster_engine::cluster::{ClusterMap, META_GROUP, NodeStatus};
use taskmaster_protocol::body::{ClusterAdmin, cluster_verb};
use taskmaster_protocol::frame::NO_PARTITION;
use taskmaster_protocol::{NodeId, PartitionId};

use super::nodes::Death;
use super::{Event, LOOK_US, Phase, World};
use crate::sim::client::Client;
use crate::sim::reader::Reader;

/// After the last answer, entries of earlier leaders have had their fate.
const FATE_US: u64 = 1_000_000;

impl World {
    /// Looks at all nodes, compares replicas, and moves the run on.
    pub(super) fn look(&mut self) -> Result<(), String> {
        self.after(LOOK_US, Event::Look);
        // Digests look at every task: fewer of them where there are many.
        if self.now_us >= self.compare_us {
            self.compare_us = self.now_us + LOOK_US * (2 + self.oracle.len() as u64 / 150);
            self.compare_replicas()?;
        }
        self.send_checkpoints();
        self.send_events();
        self.remember();
        if self.is_calm() {
            self.activate_drained();
        }
        let before = self.phase;
        match self.phase {
            Phase::Faults if self.now_us >= self.scenario.calm_from_us => self.calm_down(),
            Phase::Calm if self.are_producers_done() => {
                self.phase = Phase::Reading { since_us: self.now_us + FATE_US };
            }
            Phase::Reading { since_us } if self.now_us >= since_us => {
                if since_us > 0 {
                    self.phase = Phase::Reading { since_us: 0 };
                    self.read_everything();
                } else if self.is_all_read() && self.is_all_stored() && self.is_all_told() && self.do_replicas_agree() {
                    self.phase = Phase::ReadingAgain;
                    for place in 0..self.places.len() {
                        let number = self.places[place].number;
                        let down_us = self.dice.range(500, 200_000);
                        self.die(number, Death::Power, down_us);
                    }
                    self.read_everything();
                }
            }
            Phase::ReadingAgain if self.is_all_read() && self.is_all_stored() && self.do_replicas_agree() => {
                self.compare_store()?;
                self.compare_topic()?;
                self.oracle.compare_streams()?;
                self.phase = Phase::Over;
            }
            Phase::Faults | Phase::Calm | Phase::Reading { .. } | Phase::ReadingAgain | Phase::Over => {}
        }
        if self.phase != before {
            self.tell(|| format!("phase {:?}", self.phase));
        }
        Ok(())
    }

    /// Faults are over; what they left is undone.
    fn calm_down(&mut self) {
        self.phase = Phase::Calm;
        self.cuts.clear();
        self.client_cuts.clear();
        (self.slow_until_us, self.gossip_loss) = (0, (0, 0));
        for place in 0..self.places.len() {
            let at = &mut self.places[place];
            for disk in &mut at.disks {
                (disk.full, disk.slow_until_us) = (false, 0);
            }
            let number = at.number;
            self.resume(number);
            self.after(0, Event::Start { place: number });
        }
        for actor in 0..self.actors.len() {
            self.wake_actor_at(actor, 0);
        }
    }

    /// Nodes that drain may take partitions again; said until it is heard.
    fn activate_drained(&mut self) {
        let Some(map) = self.newest_map() else { return };
        let drained: Vec<u64> =
            map.nodes.iter().filter(|(_, status)| *status == NodeStatus::Draining).map(|(info, _)| info.id.0).collect();
        for node in drained {
            let (verb, partition) = (cluster_verb::ACTIVATE, NO_PARTITION.into());
            self.administer(&ClusterAdmin { verb, node, partition, ..ClusterAdmin::default() });
        }
    }

    fn are_producers_done(&self) -> bool {
        let producers = self.scenario.producers + u64::from(self.scenario.stream_readers);
        let producers = usize::try_from(producers).expect("few");
        self.actors[..producers].iter().all(|actor| actor.is_done())
    }

    /// A new reader reads everything, from what is known now.
    fn read_everything(&mut self) {
        self.oracle.everything_is_submitted();
        let places = u16::try_from(self.places.len()).expect("few");
        let last = self.actors.len() - 1;
        self.actors[last] = Box::new(Reader::new(Client::new(places, self.scenario.partitions, self.now_us << 20)));
        self.wake_actor_at(last, 0);
    }

    fn is_all_read(&self) -> bool {
        self.actors.last().is_some_and(|actor| actor.is_done())
    }

    /// The applied index and the state of every replica, by group.
    fn replicas(&self) -> BTreeMap<u16, Vec<(u64, u64, u64)>> {
        let mut replicas: BTreeMap<u16, Vec<(u64, u64, u64)>> = BTreeMap::new();
        for node in self.places.iter().filter_map(|place| place.node.as_ref()) {
            for own in &node.loops {
                for group in (0..self.scenario.partitions).chain([META_GROUP]) {
                    if let Some((index, hash)) = own.shard.digest(PartitionId(group)) {
                        replicas.entry(group).or_default().push((node.life, index, hash));
                    }
                }
            }
        }
        replicas
    }

    /// A map as a place has it, for the log: the places that are to hold each group.
    pub(super) fn map_in_words(&self, place: u16, map: &ClusterMap) -> String {
        let place_of = |id: &NodeId| {
            let at = self.places.iter().find(|place| place.id == *id);
            at.map_or_else(|| "gone".to_owned(), |place| place.number.to_string())
        };
        let groups = map.groups().map(|(group, placement)| {
            let replicas: Vec<String> = placement.replicas.iter().map(place_of).collect();
            format!("{group}: [{}]{}", replicas.join(" "), if placement.settled { "" } else { " unsettled" })
        });
        let nodes = map.nodes.iter().map(|(info, status)| format!("{}: {status}", place_of(&info.id)));
        let (groups, nodes) = (groups.collect::<Vec<_>>().join(", "), nodes.collect::<Vec<_>>().join(", "));
        format!("place {place} has map {}: {groups}; nodes {nodes}", map.version)
    }

    /// Replicas at one place, for the log.
    pub(super) fn replicas_at(&self, place: u16) -> Vec<(u16, Option<(u64, u64)>)> {
        let Some(node) = &self.places[usize::from(place)].node else { return Vec::new() };
        let of = |own: &crate::sim::shard_loop::ShardLoop| {
            (0..self.scenario.partitions).map(|group| (group, own.shard.digest(PartitionId(group)))).collect::<Vec<_>>()
        };
        node.loops.iter().flat_map(of).filter(|(_, at)| at.is_some()).collect()
    }

    fn compare_replicas(&mut self) -> Result<(), String> {
        for (group, replicas) in self.replicas() {
            for (life, index, hash) in replicas {
                self.oracle.replica(life, group, index, hash)?;
            }
        }
        Ok(())
    }

    /// Whether every group has as many replicas as the nodes allow, and all are at the same index.
    fn do_replicas_agree(&self) -> bool {
        self.disagreement().is_none()
    }

    fn disagreement(&self) -> Option<String> {
        let Some(map) = self.newest_map() else { return Some("no node has a map".to_owned()) };
        let wanted = if self.places.len() >= 3 { 3 } else { 1 };
        let replicas = self.replicas();
        for (group, placement) in map.groups() {
            if !placement.settled || placement.replicas.len() < wanted {
                return Some(format!("group {group} is not settled: {placement:?}"));
            }
            if group == META_GROUP {
                continue;
            }
            let found = replicas.get(&group).map_or(&[][..], Vec::as_slice);
            let index = found.first().map_or(0, |(_, index, _)| *index);
            if found.len() < wanted || found.iter().any(|(_, other, _)| *other != index) {
                return Some(format!("replicas of group {group} are not at one index: {found:?}"));
            }
        }
        None
    }

    pub(super) fn stuck(&mut self) -> String {
        let (count, left) = self.oracle.left();
        let done = self.actors.iter().filter(|actor| actor.is_done()).count();
        let nodes = self.places.iter().filter(|place| place.node.is_some()).count();
        let disagreement = self.disagreement();
        format!(
            "long after the faults, in phase {:?}: {count} tasks are not known to be final ({left}); {done} of {} actors \
             are done; {nodes} nodes run; {}",
            self.phase,
            self.actors.len(),
            disagreement.unwrap_or_else(|| "replicas agree".to_owned()),
        )
    }
}

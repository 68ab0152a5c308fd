//! The meta group: the cluster map as replicated state, and on its leader the controller. Shard 0 of every member has it.

use core::hash::BuildHasher as _;

use raft::eraftpb::HardState;
use taskmaster_protocol::frame::Header;
use taskmaster_protocol::{Code, NodeId};

use super::group::{Group, Request};
use super::peers::Peer;
use super::{Effects, Shard};
use crate::cluster::controller::{self, GroupReport, NodeHealth, View};
use crate::cluster::map::{ClusterMap, Command, NodeInfo, NodeStatus, Placement};
use crate::effects::ConnId;
use crate::peer::{self, Kind, META_GROUP, PeerAddr};
use crate::refused::Refused;
use crate::replica::record::{Fields, Removed};
use crate::replica::{conf, record};

/// Between two looks of the controller, and two reports, in microseconds.
const PLAN_US: u64 = 500_000;
/// Between two reports about groups that rest, in microseconds; well below the age at which reports are not trusted any more.
const REST_REPORT_US: u64 = 4_000_000;
/// Between two requests to be let in, in microseconds.
const JOIN_US: u64 = 500_000;
/// Details of a message about joining: by the node itself, carried on by a member, and the answer that it is not let in.
const ASKED: u8 = 0;
const FORWARDED: u8 = 1;
const REFUSED: u8 = 2;

/// What shard 0 keeps beside its partitions.
#[derive(Default)]
pub(super) struct Meta {
    /// The map, if this node belongs to a cluster.
    pub(super) map: Option<ClusterMap>,
    /// What stays of replicas that were removed.
    pub(super) removed: Vec<Removed>,
    view: View,
    is_leading: bool,
    /// Since when.
    leading_since_us: u64,
    is_changed: bool,
    /// A changed map, and the record that must be durable before anything follows from it.
    changed: Option<(u64, ClusterMap)>,
    plan_us: u64,
    report_us: u64,
    /// When groups that rest are reported about next, and to whom they were.
    rest_report_us: u64,
    reported_to: Option<NodeId>,
    join_us: u64,
    /// Commands proposed and not applied: the next plan waits for them.
    proposed: u32,
    /// The map of a cluster that is being founded here: the first entry of its group.
    founding: Option<ClusterMap>,
}

impl Meta {
    pub(super) fn start_leading(&mut self, now_us: u64) {
        (self.is_leading, self.leading_since_us, self.proposed) = (true, now_us, 0);
        self.view = View::default();
        // Reports come first.
        self.plan_us = now_us + 2 * PLAN_US;
    }

    /// Who votes in a group, as its leader reported to this node as the one that keeps the map.
    pub(super) fn reported_voters(&self, group: u16) -> Option<&[NodeId]> {
        let report = self.view.groups.get(&group).filter(|_| self.is_leading);
        report.map(|report| report.voters.as_slice())
    }

    pub(super) fn stop_leading(&mut self) {
        (self.is_leading, self.proposed) = (false, 0);
    }

    pub(super) fn install(&mut self, map: ClusterMap) {
        self.map = Some(map);
        self.is_changed = true;
    }

    /// The controller looks again at once.
    pub(super) const fn rebalance(&mut self) {
        self.plan_us = 0;
    }

    /// A hash of the map as its bytes are.
    pub(super) fn digest(&self) -> Option<u64> {
        let mut bytes = Vec::new();
        self.map.as_ref()?.encode(&mut bytes);
        Some(crate::hash::FixedState.hash_one(bytes))
    }

    /// Whether a replica of this group was here and was removed.
    pub(super) fn was_removed(&self, group: u16) -> bool {
        self.removed.iter().any(|removed| removed.group == group)
    }

    pub(super) fn take_removed(&mut self, group: u16) -> Option<Removed> {
        let place = self.removed.iter().position(|removed| removed.group == group)?;
        Some(self.removed.swap_remove(place))
    }

    /// Applies an entry of the group. The first entry of a founded cluster is its map.
    pub(super) fn apply(&mut self, data: &[u8]) -> Result<(), Refused> {
        self.proposed = self.proposed.saturating_sub(1);
        let Some(map) = &mut self.map else {
            let map = ClusterMap::decode(data).expect("a founder logs its map first");
            self.install(map);
            return Ok(());
        };
        let command = Command::decode(data).expect("the leader proposed this command");
        let outcome = map.apply(&command);
        self.is_changed |= outcome.is_ok();
        outcome
    }
}

impl Shard {
    /// Applies a committed entry of the meta group and answers the operator behind it.
    pub(super) fn apply_meta(&mut self, data: &[u8], request: Option<Request>, effects: &mut Effects) {
        let outcome = self.meta.apply(data);
        let Some((conn, header)) = request.and_then(|request| request.origin) else { return };
        match outcome {
            Ok(()) => effects.reply(conn, &header, &taskmaster_protocol::body::Empty::default()),
            Err(refused) => effects.refuse(conn, &header, &refused),
        }
    }

    /// Proposes a change of the map, if this node leads the meta group.
    pub(super) fn propose_map(&mut self, command: &Command, origin: Option<(ConnId, Header)>) -> Result<(), Refused> {
        let refusal = self.not_here(META_GROUP);
        let Some(map) = &self.meta.map else {
            let message = "this node belongs to no cluster yet: bootstrap one, or give it seeds to join";
            return Err(Refused::new(Code::IllegalState, message));
        };
        map.check(command)?;
        let mut bytes = Vec::new();
        command.encode(&mut bytes);
        let Some(group) = self.group_mut(META_GROUP).filter(|group| group.serving > 0) else { return Err(refusal) };
        let held = bytes.len() as u64;
        let request = Request { origin, ..Request::default() };
        if !group.propose_alone(bytes, request) {
            return Err(refusal);
        }
        self.backlog.bytes += held;
        self.meta.proposed += 1;
        self.touch(META_GROUP);
        Ok(())
    }

    /// Founds a cluster of which this node is the only member.
    pub(super) fn found_cluster(&mut self, cluster: u128) {
        let config = &self.config;
        let map = ClusterMap::found(cluster, config.node.clone(), config.partitions, config.replication);
        if config.number == 0 {
            if self.group(META_GROUP).is_none() {
                self.found_group(META_GROUP);
            }
            self.meta.founding = Some(map.clone());
        }
        self.adopt(map);
    }

    /// The meta group is led from here: a founder's map becomes its first entry.
    pub(super) fn lead_meta(&mut self, group: &mut Group) {
        self.meta.start_leading(self.last_time_us);
        if let Some(map) = self.meta.founding.take()
            && self.meta.map.is_none()
        {
            let mut bytes = Vec::new();
            map.encode(&mut bytes);
            self.backlog.bytes += bytes.len() as u64;
            group.propose_alone(bytes, Request::default());
        }
    }

    /// What is done at every beat: reports, plans, requests to be let in; and a changed map is taken over.
    pub(super) fn beat_meta(&mut self, effects: &mut Effects) {
        let now_us = self.last_time_us;
        if now_us >= self.meta.report_us {
            self.meta.report_us = now_us + PLAN_US;
            self.send_reports(effects);
            self.remove_surplus();
        }
        if self.config.number != 0 {
            return;
        }
        if now_us >= self.meta.join_us {
            self.meta.join_us = now_us + JOIN_US;
            self.ask_to_join(effects);
        }
        if self.meta.is_leading && now_us >= self.meta.plan_us && self.meta.proposed == 0 {
            self.meta.plan_us = now_us + PLAN_US;
            self.plan();
        }
    }

    /// Takes a changed map over, here and for the node's other shards, once the log says that it is committed: what follows from
    /// a map must not be undone by an older one after a restart.
    pub(super) fn watch_map(&mut self, effects: &mut Effects) {
        if core::mem::take(&mut self.meta.is_changed)
            && let Some(map) = self.meta.map.clone()
            && let Some(group) = self.group(META_GROUP)
        {
            let commit = group.replica.applied().index;
            let hard = HardState { commit, ..group.replica.log().hard.clone() };
            let record = record::hard(META_GROUP, &hard);
            self.meta.changed = Some((self.unlogged.push(record::kind::HARD, &record, bytes::Bytes::new()), map));
        }
        if let Some((_, map)) = self.meta.changed.take_if(|(sequence, _)| *sequence <= self.durable_sequence) {
            self.adopt(map);
        }
        if core::mem::take(&mut self.map_is_new)
            && self.config.number == 0
            && let Some(map) = &self.map
        {
            effects.map_changed(std::sync::Arc::clone(map));
        }
    }

    fn plan(&mut self) {
        let now_us = self.last_time_us;
        let own = self.config.node.id;
        let health = |peer: &Peer| NodeHealth { is_alive: peer.is_alive, down_since_us: self.down_since_us(peer) };
        self.meta.view.nodes = self.peers.nodes.iter().map(|(&node, peer)| (node, health(peer))).collect();
        self.meta.view.nodes.insert(own, NodeHealth { is_alive: true, down_since_us: 0 });
        let Some(map) = &self.meta.map else { return };
        for command in controller::plan(map, &self.meta.view, &self.config.limits, now_us) {
            // What does not fit the map any more is planned anew next time.
            let _ = self.propose_map(&command, None);
        }
    }

    /// Since when a node that is not alive counts as down: a leader knows of no time before its own.
    fn down_since_us(&self, peer: &Peer) -> u64 {
        peer.down_since_us.max(self.meta.leading_since_us)
    }

    /// Tells the leader of the meta group how the groups fare that are led here.
    fn send_reports(&mut self, effects: &mut Effects) {
        let Some((_, leader)) = self.peers.leader(META_GROUP) else { return };
        let own = PeerAddr { node: self.config.node.id, shard: self.config.number };
        let to = PeerAddr { node: leader, shard: 0 };
        let version = self.map.as_ref().map_or(0, |map| map.version);
        let now_us = self.last_time_us;
        let are_all_due = now_us >= self.meta.rest_report_us || self.meta.reported_to != Some(leader);
        if are_all_due {
            (self.meta.rest_report_us, self.meta.reported_to) = (now_us + REST_REPORT_US, Some(leader));
        }
        let is_due = |group: &Group| group.serving > 0 && (are_all_due || !group.is_resting);
        let mut reports = taskmaster_protocol::FrameBuffer::new();
        for group in self.groups.iter_mut().flatten().filter(|group| is_due(group)) {
            let partition = self.partitions.get(usize::from(group.number)).and_then(Option::as_deref);
            let tasks = partition.map_or(0, |partition| partition.tasks.len() as u64);
            let load = group.load(PLAN_US);
            let begun = peer::begin(&mut reports, Kind::Report, 0, group.number);
            for field in [group.serving, version, group.replica.log().bytes(), tasks, load] {
                reports.extend_from_slice(&field.to_le_bytes());
            }
            let mut configuration = Vec::new();
            conf::encode(group.replica.conf(), &mut configuration);
            let len = u32::try_from(configuration.len()).expect("members are bounded");
            reports.extend_from_slice(&len.to_le_bytes());
            reports.extend_from_slice(&configuration);
            peer::finish(&mut reports, begun);
        }
        if to == own {
            let mut rest = &reports[..];
            while let Some(frame) = peer::next(&mut rest) {
                self.report(own.node, &frame);
            }
        } else {
            effects.peer(to).extend_from_slice(&reports);
        }
    }

    /// A leader's report about one group.
    pub(super) fn report(&mut self, from: NodeId, frame: &peer::Frame<'_>) {
        let mut fields = Fields(frame.body);
        let mut field = || fields.u64();
        let (Some(term), Some(version)) = (field(), field()) else { return };
        let (Some(log_bytes), Some(tasks)) = (field(), field()) else { return };
        let Some(load_per_s) = field() else { return };
        let Some(len) = fields.u32().and_then(|len| usize::try_from(len).ok()) else { return };
        let Some(conf) = fields.bytes(len).and_then(conf::decode) else { return };
        if self.meta.view.groups.get(&frame.group).is_some_and(|known| known.term > term) {
            return;
        }
        let ids = |ids: &[u64]| ids.iter().map(|&id| NodeId(id)).collect::<Vec<_>>();
        let joint = conf::is_joint(&conf);
        let report = GroupReport {
            leader: from,
            term,
            version,
            voters: ids(&conf.voters),
            learners: ids(&conf.learners),
            joint,
            log_bytes,
            tasks,
            load_per_s,
            at_us: self.last_time_us,
        };
        self.meta.view.groups.insert(frame.group, report);
    }

    /// Asks to be let into a cluster, or tells it what changed about this node.
    fn ask_to_join(&mut self, effects: &mut Effects) {
        let own = self.config.node.id;
        let to = match &self.map {
            Some(map) => {
                if map.node(own).is_some_and(|(info, _)| *info == self.config.node) {
                    return;
                }
                self.peers.leader(META_GROUP).map(|(_, leader)| leader)
            }
            None => {
                let joined = self.peers.nodes.iter().filter(|(_, peer)| peer.is_alive && peer.cluster != 0);
                joined.map(|(&node, _)| node).next()
            }
        };
        let Some(to) = to else { return };
        let mut bytes = Vec::new();
        Command::Join(self.config.node.clone()).encode(&mut bytes);
        if to == own {
            self.let_in(&bytes, effects);
            return;
        }
        write_join(&bytes, ASKED, effects.peer(PeerAddr { node: to, shard: 0 }));
    }

    /// A node asks to be let in, or says what changed about it; or this one hears why it is not let in.
    pub(super) fn join(&mut self, frame: &peer::Frame<'_>, effects: &mut Effects) {
        let mut fields = Fields(frame.body);
        fields.bytes(4);
        let Some(bytes) = fields.u32().and_then(|len| fields.bytes(usize::try_from(len).ok()?)) else { return };
        if frame.detail == REFUSED {
            let sentence = String::from_utf8_lossy(bytes);
            self.give_notice(format!("the cluster does not let this node in: {sentence}"), false);
        } else if self.group(META_GROUP).is_some_and(|group| group.serving > 0) {
            self.let_in(bytes, effects);
        } else if frame.detail == ASKED
            && let Some((_, leader)) = self.peers.leader(META_GROUP)
        {
            write_join(bytes, FORWARDED, effects.peer(PeerAddr { node: leader, shard: 0 }));
        }
    }

    fn let_in(&mut self, bytes: &[u8], effects: &mut Effects) {
        let Ok(Command::Join(info)) = Command::decode(bytes) else { return };
        let Some(map) = &self.meta.map else { return };
        let node = info.id;
        let command = match map.node(node) {
            Some((known, _)) if *known == info => return,
            Some(_) => Command::Update(info),
            None => match self.predecessor(map, &info) {
                Some(old) => Command::SetStatus { node: old, status: NodeStatus::Removed },
                None => Command::Join(info),
            },
        };
        if let Err(refused) = self.propose_map(&command, None)
            && refused.code != Code::NotLeader
        {
            self.give_notice(format!("a node was not let in: {}", refused.message), false);
            if node != self.config.node.id {
                write_join(refused.message.as_bytes(), REFUSED, effects.peer(PeerAddr { node, shard: 0 }));
            }
        }
    }

    /// The node whose name and address one that asks to be let in has, once it has been down for as long as a node is waited for
    /// and others that are alive have all that it had: it lost its disk, and nobody will come back as it.
    fn predecessor(&self, map: &ClusterMap, info: &NodeInfo) -> Option<NodeId> {
        let is_its_place =
            |old: &NodeInfo| old.name == info.name && old.host == info.host && old.peer_port == info.peer_port;
        let (old, _) = map.present().find(|(old, _)| is_its_place(old))?;
        let is_alive =
            |id: &NodeId| *id == self.config.node.id || self.peers.nodes.get(id).is_some_and(|peer| peer.is_alive);
        let peer = self.peers.nodes.get(&old.id).filter(|peer| !peer.is_alive)?;
        let down_us = self.last_time_us.saturating_sub(self.down_since_us(peer));
        let is_spared = |placement: &Placement| {
            let others = placement.replicas.iter().filter(|id| **id != old.id && is_alive(id)).count();
            !placement.contains(old.id) || others > placement.replicas.len() / 2
        };
        let is_over = down_us > self.config.limits.replace_after_us;
        (is_over && map.groups().all(|(_, placement)| is_spared(placement))).then_some(old.id)
    }
}

fn write_join(bytes: &[u8], detail: u8, out: &mut taskmaster_protocol::FrameBuffer) {
    let begun = peer::begin(out, Kind::Join, detail, META_GROUP);
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&u32::try_from(bytes.len()).expect("a node's description is short").to_le_bytes());
    out.extend_from_slice(bytes);
    peer::finish(out, begun);
}

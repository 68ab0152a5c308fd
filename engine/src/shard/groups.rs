//! Driving the groups of a shard: what was admitted is proposed, what is committed is applied, leadership comes and goes.
//!
//! Invariants:
//! - A replica serves only while it leads and after it applied all that its predecessors committed.
//! - Requests behind entries of a leadership that ended are answered `not_leader`, never as if they had failed.
//! - A group's log in memory is cut only behind what is applied, and as far as followers have it unless they lag too much.

use taskmaster_protocol::{Code, PartitionId};

use super::group::{Group, Request};
use super::{Effects, Shard};
use crate::entry::{Settings, Verb};
use crate::peer::META_GROUP;
use crate::refused::Refused;
use crate::replica::log::Position;
use crate::replica::{Replica, TICK_US, message};

/// Least that one group may keep of its log in memory, in bytes.
const GROUP_LOG_BYTES_KEPT_MIN: u64 = 16 << 10;
/// Bytes for one peer in one turn beyond which no more entries are sent; what the network takes at once is twice as long.
const TURN_BYTES_MAX: usize = 16 << 20;
/// How much longer a log may get while a snapshot is on its way to a follower.
const PINNED_FACTOR: u64 = 8;
/// When a client should look for the leader again, in milliseconds.
const NOT_LEADER_RETRY_MS: u32 = 10;

impl Shard {
    /// Where a group is kept.
    pub(super) fn place(&self, group: u16) -> Option<usize> {
        let meta = self.groups.len() - 1;
        match usize::from(group) {
            _ if group == META_GROUP => Some(meta),
            place => (place < meta).then_some(place),
        }
    }

    pub(super) fn group(&self, group: u16) -> Option<&Group> {
        self.groups[self.place(group)?].as_deref()
    }

    pub(super) fn group_mut(&mut self, group: u16) -> Option<&mut Group> {
        let place = self.place(group)?;
        self.groups[place].as_deref_mut()
    }

    /// Notes that there is something to do for a group.
    pub(super) fn touch(&mut self, number: u16) {
        if let Some(group) = self.group_mut(number)
            && !core::mem::replace(&mut group.dirty, true)
        {
            self.dirty.push(number);
        }
    }

    /// Adds a replica.
    pub(super) fn add_group(&mut self, number: u16, replica: Replica) {
        if let Some(place) = self.place(number) {
            self.groups[place] = Some(Box::new(Group::new(number, replica, self.last_time_us)));
            self.dirty.push(number);
            self.rest.awake.insert(number);
            self.elections.within(self.last_time_us, TICK_US);
        }
    }

    /// The shard's log is safe up to `sequence`.
    pub(super) fn durable(&mut self, sequence: u64) {
        self.durable_sequence = self.durable_sequence.max(sequence);
        while let Some((_, number)) = self.logging.pop_front_if(|(waits_for, _)| *waits_for <= sequence) {
            if let Some(group) = self.group_mut(number) {
                group.replica.flushed(sequence);
                self.touch(number);
            }
        }
    }

    /// Does what there is to do, until there is nothing more.
    pub(super) fn drive(&mut self, effects: &mut Effects) {
        self.answer_chunks(effects);
        let mut at = 0;
        loop {
            self.do_in_haste(effects);
            let Some(&number) = self.dirty.get(at) else { break };
            at += 1;
            let Some(place) = self.place(number) else { continue };
            if let Some(mut group) = self.groups[place].take() {
                group.dirty = false;
                self.drive_group(&mut group, effects);
                self.groups[place] = Some(group);
            }
        }
        self.dirty.clear();
        self.end_accepting();
        self.watch_map(effects);
        self.watch_owners();
    }

    fn drive_group(&mut self, group: &mut Group, effects: &mut Effects) {
        if group.serving > 0 && group.replica.is_leader() {
            if let Some(number) = group.reads.ask() {
                group.replica.read(number);
            }
            group.propose();
        }
        loop {
            let peers = &self.peers;
            let number = group.number;
            let mut send = |raft: &raft::eraftpb::Message| {
                let out = effects.peer(peers.home_of(raft.to, number));
                // Beyond the bound entries are lost as on a bad line, and sent again when they are missed.
                if out.len() <= TURN_BYTES_MAX || raft.entries.is_empty() {
                    message::encode(number, raft, out);
                }
            };
            if group.replica.has_flushed() {
                group.replica.persisted(&mut send);
            }
            if !group.replica.has_ready() {
                break;
            }
            let mut step = group.replica.process(&mut self.unlogged, send);
            if let Some((at, _)) = step.install {
                self.install(group, at);
                self.hooks.installed();
            }
            if step.overtakes {
                self.overtaken();
            }
            self.hooks.order(&mut step.committed);
            let mut last = None;
            for entry in &step.committed {
                self.apply_entry(group, entry, effects);
                last = last.max(Some(Position { term: entry.term, index: entry.index }));
            }
            if let Some(at) = last {
                group.replica.applied_to(at);
            }
            for (index, number) in step.reads {
                group.reads.confirmed(number, index);
            }
            self.watch_leadership(group, effects);
            self.cut_log(group);
        }
        if group.replica.is_persisting() {
            self.logging.push_back((self.unlogged.last_sequence(), group.number));
        }
        self.serve_reads(group, effects);
        if group.replica.log().is_wanted() {
            self.want_snapshots(group);
        }
        self.wake(group);
    }

    fn serve_reads(&mut self, group: &mut Group, effects: &mut Effects) {
        for read in group.reads.take(group.replica.applied().index) {
            if let Err(refused) = self.read(read.conn, read.header, &read.body, effects) {
                effects.refuse(read.conn, &read.header, &refused);
            }
        }
    }

    /// Begins or ends serving as leadership comes and goes.
    fn watch_leadership(&mut self, group: &mut Group, effects: &mut Effects) {
        let replica = &group.replica;
        if group.serving > 0 && (!replica.is_leader() || replica.term() != group.serving) {
            self.stop_serving(group, effects);
        }
        if group.serving == 0 && group.replica.is_ready_to_serve() {
            self.start_serving(group);
        }
        if group.replica.leader() != 0 && group.replica.leader() != group.given_up {
            (group.given_up, group.campaign) = (0, None);
        }
        self.peers.learn(group.number, group.replica.term(), group.replica.leader());
    }

    fn start_serving(&mut self, group: &mut Group) {
        group.serving = group.replica.term();
        self.peers.announce();
        self.elections.hasten();
        if group.number == META_GROUP {
            self.lead_meta(group);
            return;
        }
        let wanted = self.settings();
        let now_us = self.last_time_us;
        let Some((partition, mut cx)) = self.split(PartitionId(group.number), now_us) else { return };
        partition.lead(group.serving, &mut cx);
        self.spoil(group);
        let Some((partition, _)) = self.split(PartitionId(group.number), now_us) else { return };
        if partition.settings != wanted {
            let time_us = partition.command_us.max(now_us);
            let bytes = group.push(Verb::Settings, time_us, Request::default(), |out| {
                out.extend_from_slice(&wanted.bytes());
            });
            self.backlog.bytes += bytes;
            group.propose();
        }
    }

    /// What this node is configured with.
    fn settings(&self) -> Settings {
        let checkpoints = self.config.checkpoints;
        Settings {
            retention_ms: self.config.retention_ms.max(1),
            kept_max: self.config.kept_max,
            waiting_max: checkpoints.map_or(0, |checkpoints| checkpoints.waiting_max.max(1)),
            waiting_kib_max: checkpoints.map_or(0, |checkpoints| checkpoints.waiting_kib_max),
            checkpointed_kept_ms: checkpoints.map_or(0, |checkpoints| checkpoints.kept_ms),
            events_kib_max: self.config.events.map_or(0, |events| events.waiting_kib_max.max(1)),
        }
    }

    fn stop_serving(&mut self, group: &mut Group, effects: &mut Effects) {
        group.serving = 0;
        let now_us = self.last_time_us;
        if let Some((partition, mut cx)) = self.split(PartitionId(group.number), now_us) {
            partition.follow(&mut cx);
        }
        self.give_up(group, effects);
        self.transfers.stop_sending(group.number);
        group.replica.log().withdraw();
        if group.number == META_GROUP {
            self.meta.stop_leading();
        }
    }

    /// Tells all who wait for this group to ask its leader.
    pub(super) fn give_up(&mut self, group: &mut Group, effects: &mut Effects) {
        let refused = self.not_here(group.number);
        let (requests, bytes) = group.give_up_requests();
        self.backlog.remove(&requests, bytes);
        for (conn, header) in requests.iter().filter_map(|request| request.origin) {
            effects.refuse(conn, &header, &refused);
        }
        for read in group.reads.give_up() {
            effects.refuse(read.conn, &read.header, &refused);
        }
        for (conn, header) in self.waiters.give_up(group.number) {
            effects.refuse(conn, &header, &refused);
        }
    }

    /// Why a request for a group is not served here.
    pub(super) fn not_here(&self, group: u16) -> Refused {
        if group != META_GROUP && usize::from(group) >= self.partitions.len() {
            let message = format!("partition {group} does not exist: there are {}", self.partitions.len());
            return Refused::new(Code::WrongPartition, message);
        }
        let what = if group == META_GROUP { "the cluster".to_owned() } else { format!("partition {group}") };
        let message = match self.peers.leader(group) {
            Some((_, leader)) if leader != self.config.node.id => {
                format!("{what} is led by node {leader}: look at the cluster map and send again")
            }
            _ => format!("{what} has no leader that is known here: look at the cluster map again in a moment"),
        };
        Refused::new(Code::NotLeader, message).retry_after_ms(NOT_LEADER_RETRY_MS)
    }

    /// Cuts off what of a group's log nobody needs any longer.
    fn cut_log(&self, group: &mut Group) {
        let applied = group.replica.applied().index;
        let applied = self.kept_for_snapshot(group.number).map_or(applied, |kept| kept.min(applied));
        if group.replica.is_alone() {
            group.replica.log_mut().cut(applied);
            return;
        }
        let groups = self.groups.iter().flatten().count() as u64 + 1;
        let mut kept = (self.config.log_bytes_kept / groups).max(GROUP_LOG_BYTES_KEPT_MIN);
        let mut until = applied;
        if group.replica.is_leader() {
            let by_all = group.replica.matched_by_all();
            group.replica.log_mut().cut(by_all.min(applied));
            if let Some(pinned) = self.transfers.pinned(group.number) {
                kept *= PINNED_FACTOR;
                if group.replica.log().bytes() <= kept {
                    until = until.min(pinned);
                }
            }
        }
        while group.replica.log().bytes() > kept && group.replica.log().before().index < until {
            let next = group.replica.log().before().index + 1;
            group.replica.log_mut().cut(next);
        }
    }
}

//! The shard: replicas of partitions, one dispatcher, one arena, one log.
//!
//! Invariants:
//! - A request is answered only when its entry was applied, and an entry is applied only when its group committed it: when
//!   it is durable on a majority of replicas, this one among them. `Shard::apply_entry` is the one place.
//! - Entries of a group are applied in the order of its log; command times never decrease.
//! - Work per input is bounded: by the frame limit, or by a named constant.

mod admission;
mod anew;
mod apply;
mod attempts;
mod checkpoints;
mod clock;
pub(crate) mod cluster;
mod demotion;
mod elections;
mod events;
mod giving_up;
mod group;
mod groups;
pub(crate) mod hearing;
pub(crate) mod hooks;
mod memo;
mod meta;
mod notices;
mod owners;
pub(crate) mod past;
mod peers;
pub(crate) mod positions;
mod preemption;
mod reads;
mod reconcile;
mod recovery;
mod requests;
mod reservations;
mod rest;
pub(crate) mod snapshots;
mod timers;
mod transfer;
mod usage;
mod waiters;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use taskmaster_protocol::frame::Header;
use taskmaster_protocol::{Code, NodeId, PartitionId, TaskId};

use crate::arena::Arena;
use crate::assign::{Assigner, Scratch};
use crate::checkpoint::{Checkpoints, FromStore, Stored};
use crate::cluster::controller::Limits;
use crate::cluster::map::{ClusterMap, NodeInfo};
use crate::cluster::membership::Member;
use crate::dispatch::Dispatch;
use crate::effects::{ConnId, Effects};
use crate::events::Events;
use crate::memo::Findings;
use crate::memo::known::Known;
use crate::partition::{Awaited, Cx, Partition};
use crate::peer::{META_GROUP, PeerAddr};
use crate::refused::Refused;
use crate::replica::Unlogged;
use crate::timer::{Timer, Timers};
use cluster::Standing;
use group::{Backlog, Group};
use waiters::Waiters;

/// What a shard needs to know from its start.
#[derive(Clone, Debug)]
pub struct Config {
    /// What others are told about this node; its id names the replicas here.
    pub node: NodeInfo,
    /// This shard's number on its node, below the number of ports in `node`.
    pub number: u16,
    /// Partitions of the cluster.
    pub partitions: u16,
    /// A node without a past founds a cluster of this id by itself; 0: it waits to be let into one, or to be told.
    pub found: u128,
    /// Replicas of a partition in a cluster founded here.
    pub replication: u16,
    /// What the controller may do at once.
    pub limits: Limits,
    /// Chance for elections: nodes need different ones, a simulation the same in every run.
    pub seed: u64,
    /// Budget for payloads, results and records, in bytes; beyond it submissions are refused as `overloaded`.
    pub memory_bytes_max: u64,
    /// Log entries kept in memory for replicas that lag, over all partitions, in bytes; one that lags more gets a snapshot.
    pub log_bytes_kept: u64,
    /// Most bytes of states that the shard sends to replicas elsewhere, per second.
    pub transfer_bytes_per_s: u64,
    /// Final tasks kept per partition at most; beyond it the oldest are forgotten before their retention ends.
    pub kept_max: u32,
    /// How long queues that are not configured keep final tasks, in milliseconds.
    pub retention_ms: u32,
    /// Whether a submission creates its queue.
    pub auto_create_queues: bool,
    /// Whether final tasks are copied to a store outside, and how.
    pub checkpoints: Option<Checkpoints>,
    /// With it, payloads and results of a partition's tasks that wait for the store are demoted while more than so many bytes of what
    /// waits are in memory, as far as there are [extents](Shard::give_extent).
    pub demote_above_bytes: Option<u64>,
    /// Whether what happens to tasks is told outside, and how.
    pub events: Option<Events>,
    /// That attempts began goes to the log, for a replay of the past.
    pub logs_starts: bool,
    /// Longest result of a memoised task that is handed out by [`Shard::take_made`]; `None`: no store takes any.
    pub memo_bytes_max: Option<usize>,
}

impl Config {
    /// A node of one shard that founds a cluster by itself, with generous limits: for tests and measurements.
    #[must_use]
    pub fn standalone(node: NodeId, partitions: u16) -> Self {
        let node = NodeInfo {
            id: node,
            name: format!("node-{node}"),
            zone: String::new(),
            host: "127.0.0.1".to_owned(),
            peer_port: 7800,
            client_ports: vec![7700],
            version: crate::cluster::SOFTWARE_VERSION,
        };
        Self {
            node,
            number: 0,
            partitions,
            found: 1,
            replication: 3,
            limits: Limits::default(),
            seed: 1,
            memory_bytes_max: 1 << 30,
            log_bytes_kept: 128 << 20,
            transfer_bytes_per_s: 1 << 30,
            kept_max: 1_000_000,
            retention_ms: crate::queue::RETENTION_MS_DEFAULT,
            auto_create_queues: true,
            checkpoints: None,
            demote_above_bytes: None,
            events: None,
            logs_starts: false,
            memo_bytes_max: None,
        }
    }
}

/// What may happen to a shard.
#[derive(Debug)]
pub enum Input<'a> {
    /// A validated frame from a connection.
    Frame {
        /// Where it came from and the answer goes.
        conn: ConnId,
        /// Its header.
        header: Header,
        /// Its body, 16-byte aligned.
        body: &'a [u8],
    },
    /// A submission, and what the store outside remembered for some of its rows.
    Known {
        /// Where it came from and the answer goes.
        conn: ConnId,
        /// Its header: of a Submit.
        header: Header,
        /// Its body, 16-byte aligned.
        body: &'a [u8],
        /// Results, in order of rows.
        known: &'a [Known],
    },
    /// A connection is gone.
    Disconnected {
        /// Which.
        conn: ConnId,
    },
    /// All records up to this sequence are durable.
    Durable {
        /// The highest durable sequence.
        sequence: u64,
    },
    /// Time passed. Call at or after [`Shard::next_wake_us`].
    Tick,
    /// The log's disk has, or has no longer, room for new work.
    DiskFull(bool),
    /// Room of the file system that holds the data directory, and what is free of it, in bytes. For shard 0.
    DiskRoom {
        /// All of it.
        bytes: u64,
        /// What is free.
        free: u64,
    },
    /// How replicas on the node's other shards stand, for an answer about the cluster. For shard 0.
    Standings(Vec<Standing>),
    /// The node drains: nothing new is accepted or assigned, what is running may finish.
    Drain,
    /// What a shard of another node sent in one turn, or another shard of this one; 16-byte aligned.
    Peer {
        /// The sender.
        from: PeerAddr,
        /// Its messages.
        bytes: &'a [u8],
    },
    /// The connection to or from a node was reset, or one cannot be made.
    PeerLost {
        /// The node.
        node: NodeId,
    },
    /// What gossip says of a node.
    Member(&'a Member),
    /// The cluster map as shard 0 of this node knows it. For other shards.
    Map(Arc<ClusterMap>),
    /// The store's answer to what [`Shard::next_for_store`] gave.
    Stored {
        /// The partition.
        partition: PartitionId,
        /// The term that it was given in.
        term: u64,
        /// The answer.
        stored: Stored,
    },
    /// The topic's answer to what [`Shard::next_for_topic`] gave.
    Sent {
        /// The partition.
        partition: PartitionId,
        /// The term that it was given in.
        term: u64,
        /// The answer: of events.
        sent: Stored,
    },
    /// What comes back from the store, for a partition that is led here: [`Shard::holding`] tells what it has.
    Restore(&'a FromStore),
}

/// Counters since start, and present sizes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Tasks accepted.
    pub submitted: u64,
    /// Leases given.
    pub assigned: u64,
    /// Tasks completed with success.
    pub completed: u64,
    /// Memoised tasks that ended as another did, without running.
    pub memoised: u64,
    /// Attempts that failed.
    pub failed_attempts: u64,
    /// Second attempts that began beside one that ran for too long.
    pub second_attempts: u64,
    /// Tasks that a second attempt ended.
    pub second_attempts_won: u64,
    /// Attempts that were ended for tasks of a higher priority.
    pub preempted_attempts: u64,
    /// Attempts that were ended for tasks that are expected to take much less.
    pub given_up_attempts: u64,
    /// What attempts ran for that were ended so, or that another one overtook, in microseconds.
    pub wasted_us: u64,
    /// Attempts whose workers said what they used.
    pub measured: u64,
    /// Tasks that were held, as they would have been slowed down, or would have slowed others down, where there was room.
    pub held: u64,
    /// Tasks that started there all the same.
    pub contended: u64,
    /// Reservations of workers for tasks that need more than is free at one time.
    pub reservations: u64,
    /// Workers that are reserved now.
    pub reserved: u64,
    /// Requests refused as overloaded.
    pub overloaded: u64,
    /// Entries appended to the log.
    pub entries: u64,
    /// Tasks in memory, final ones included.
    pub tasks: u64,
    /// Tasks in memory that are not final.
    pub unfinished: u64,
    /// Memory held by the engine, in bytes.
    pub memory_bytes: u64,
    /// Requested bytes of blobs in the arena.
    pub blob_bytes: u64,
    /// Groups with a replica here.
    pub replicas: u64,
    /// Groups led from here.
    pub leaders: u64,
    /// Bytes of the groups' logs in memory.
    pub log_bytes: u64,
    /// Final tasks of partitions led from here that wait for their checkpoint.
    pub checkpoint_waiting: u64,
    /// Their payloads and results, in bytes, with what they count for besides.
    pub checkpoint_waiting_bytes: u64,
    /// Payloads and results that were demoted, in bytes.
    pub demoted_bytes: u64,
    /// Final tasks that were forgotten without a checkpoint, since too many waited.
    pub checkpoint_lost: u64,
    /// Events of partitions led from here that are not known to be sent: the lag.
    pub events_waiting: u64,
    /// Events that were dropped, since too many waited.
    pub events_lost: u64,
}

/// One shard.
pub struct Shard {
    config: Config,
    partitions: Vec<Option<Box<Partition>>>,
    /// Replicas here: by partition, and last the meta group.
    groups: Vec<Option<Box<Group>>>,
    /// Groups for which there is something to do, in order.
    dirty: Vec<u16>,
    meta: meta::Meta,
    map: Option<Arc<ClusterMap>>,
    /// The map changed and the node's other shards were not told.
    map_is_new: bool,
    /// What operators should know: sentences, taken by the loop.
    notices: notices::Notices,
    peers: peers::Peers,
    /// Queues whose limits' owner was looked up.
    owners_known: usize,
    transfers: transfer::Transfers,
    unlogged: Unlogged,
    durable_sequence: u64,
    /// The last record that another one overtook.
    overtaken_sequence: u64,
    /// Groups that wait for the shard's log, with the sequence they wait for, in order.
    logging: VecDeque<(u64, u16)>,
    backlog: Backlog,
    clock: clock::Clock,
    elections: elections::Elections,
    rest: rest::Rest,
    arena: Arena,
    timers: Timers,
    dispatch: Dispatch,
    scratch: Scratch,
    waiters: Waiters,
    settled: Vec<Awaited>,
    revoked: Vec<(u32, TaskId, u64)>,
    findings: Findings,
    fired: Vec<Timer>,
    stats: Stats,
    hooks: hooks::Hooks,
    /// When this process started; tells its leases from those of an earlier one.
    started_us: u64,
    last_time_us: u64,
    /// Bytes that may be admitted before the memory is measured again.
    room_bytes: u64,
    disk_full: bool,
    disk_room: Option<peers::DiskRoom>,
    /// How the replicas of the node's other shards stood when they were last asked, by group.
    siblings: BTreeMap<u16, Standing>,
    draining: bool,
    local: snapshots::Local,
    /// The partition whose turn it is to send to the store.
    store_place: usize,
    /// Partitions where more is to be demoted.
    demotions: VecDeque<PartitionId>,
    /// Something was demoted or soon may be, and extents were short.
    wants_extent: bool,
    /// The partition whose turn it is to send events.
    topic_place: usize,
    /// It was said that events are dropped, and none was sent since.
    topic_overflows: bool,
    /// What recovery found so far, until the start.
    found: BTreeMap<u16, recovery::Found>,
    /// The record that was replayed last.
    replayed: u64,
    /// Only so far is one partition brought back.
    past: Option<past::Past>,
    /// What is noted while the shard is brought back.
    hearing: Option<Box<hearing::Hearing>>,
}

impl Shard {
    /// A shard with nothing in it. Recovery comes next, then [`Self::start`].
    #[must_use]
    pub fn new(config: Config, now_us: u64) -> Self {
        let places = usize::from(config.partitions);
        let shards = u16::try_from(config.node.shards()).unwrap_or(1).max(1);
        Self {
            partitions: (0..places).map(|_| None).collect(),
            groups: (0..=places).map(|_| None).collect(),
            dirty: Vec::new(),
            meta: meta::Meta::default(),
            map: None,
            map_is_new: false,
            notices: notices::Notices::default(),
            peers: peers::Peers::new(places, config.node.id, shards),
            owners_known: 0,
            transfers: transfer::Transfers::default(),
            unlogged: Unlogged::default(),
            durable_sequence: 0,
            overtaken_sequence: 0,
            logging: VecDeque::new(),
            backlog: Backlog::default(),
            clock: clock::Clock::new(now_us),
            elections: elections::Elections::default(),
            rest: rest::Rest::default(),
            arena: Arena::new(u64::MAX),
            timers: Timers::new(now_us),
            dispatch: Dispatch::default(),
            scratch: Scratch::default(),
            waiters: Waiters::default(),
            settled: Vec::new(),
            revoked: Vec::new(),
            findings: Findings::new(config.memo_bytes_max),
            fired: Vec::new(),
            stats: Stats::default(),
            hooks: hooks::Hooks::default(),
            started_us: now_us,
            last_time_us: now_us,
            room_bytes: 0,
            disk_full: false,
            disk_room: None,
            siblings: BTreeMap::new(),
            draining: false,
            local: snapshots::Local::default(),
            store_place: 0,
            demotions: VecDeque::new(),
            wants_extent: false,
            topic_place: 0,
            topic_overflows: false,
            found: BTreeMap::new(),
            replayed: 0,
            past: None,
            hearing: None,
            config,
        }
    }

    /// Takes one input. When all inputs of a turn are taken, [`Self::end_turn`] carries them out.
    pub fn handle(&mut self, input: Input<'_>, now_us: u64, effects: &mut Effects) {
        self.last_time_us = self.clock.now_us(now_us);
        self.dispatch.shares.at(self.last_time_us);
        match input {
            Input::Frame { conn, header, body } => {
                if let Err(refused) = self.request(conn, header, body, effects) {
                    self.stats.overloaded += u64::from(refused.code == Code::Overloaded);
                    effects.refuse(conn, &header, &refused);
                }
            }
            Input::Known { conn, header, body, known } => {
                if let Err(refused) = self.submit_known(conn, header, body, known) {
                    self.stats.overloaded += u64::from(refused.code == Code::Overloaded);
                    effects.refuse(conn, &header, &refused);
                }
            }
            Input::Disconnected { conn } => self.disconnected(conn),
            Input::Durable { sequence } => self.durable(sequence),
            Input::Tick => self.tick(effects),
            Input::DiskFull(full) => {
                self.disk_full = full;
                self.peers.announce();
            }
            Input::DiskRoom { bytes, free } => self.disk_room = Some(peers::DiskRoom { bytes, free }),
            Input::Standings(standings) => {
                self.siblings = standings.into_iter().map(|standing| (standing.group, standing)).collect();
            }
            Input::Drain => self.drain(effects),
            Input::Peer { from, bytes } => self.peer(from, bytes, effects),
            Input::PeerLost { node } => self.peer_lost(node),
            Input::Member(member) => self.member(member),
            Input::Map(map) => self.take_map(map),
            Input::Stored { partition, term, stored } => self.stored(partition, term, stored),
            Input::Sent { partition, term, sent } => self.sent(partition, term, sent),
            Input::Restore(from) => self.restore(from),
        }
    }

    /// Ends a turn: proposes what was admitted, applies what is committed, assigns, and hands over, in order, every record
    /// that must be logged: its sequence, its kind and its bytes in parts. The caller logs them, then performs the effects.
    pub fn end_turn(&mut self, now_us: u64, effects: &mut Effects, log: impl FnMut(u64, u32, &[&[u8]])) {
        self.last_time_us = self.clock.now_us(now_us);
        self.dispatch.shares.at(self.last_time_us);
        self.drive(effects);
        if !self.dispatch.dirty.is_empty() {
            self.assign(effects);
        }
        self.demote_later();
        self.unlogged.drain(log);
    }

    /// When [`Input::Tick`] is due next, in microseconds since 1970. Ask again after every turn.
    #[must_use]
    pub fn next_wake_us(&self) -> Option<u64> {
        let now_us = self.can_demote().then_some(self.last_time_us);
        let due_us = [self.timers.next_due_us(), self.next_beat_us(), now_us].into_iter().flatten().min();
        due_us.map(|due_us| self.clock.outside_us(due_us))
    }

    /// Sequence of the latest record, durable or not; 0 for none.
    #[must_use]
    pub const fn last_sequence(&self) -> u64 {
        self.unlogged.last_sequence()
    }

    /// Counters and sizes.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let mut stats = self.stats;
        let arena = self.arena.stats();
        (stats.blob_bytes, stats.demoted_bytes) = (arena.live_bytes, arena.cold_bytes);
        stats.memory_bytes = self.memory_bytes();
        let restarts = self.dispatch.restarts.counters;
        (stats.second_attempts, stats.second_attempts_won) = (restarts.second, restarts.second_won);
        (stats.preempted_attempts, stats.given_up_attempts) = (restarts.preempted, restarts.given_up);
        stats.wasted_us = restarts.wasted_us;
        let neighbours = self.dispatch.neighbours.counters;
        (stats.measured, stats.held, stats.contended) = (neighbours.measured, neighbours.held, neighbours.contended);
        (stats.reservations, stats.reserved) = (self.dispatch.reservations.made, self.dispatch.reservations.now);
        for partition in self.partitions.iter().flatten() {
            stats.tasks += partition.tasks.len() as u64;
            stats.unfinished += partition.tasks.len() as u64 - u64::from(partition.kept);
            if partition.is_leading() {
                let waiting = partition.waiting();
                stats.checkpoint_waiting += u64::from(waiting.tasks);
                stats.checkpoint_waiting_bytes += waiting.bytes;
                stats.checkpoint_lost += waiting.lost;
                stats.events_waiting += partition.outbox.len() as u64;
                stats.events_lost += partition.outbox.lost;
            }
        }
        for group in self.groups.iter().flatten() {
            stats.replicas += 1;
            stats.leaders += u64::from(group.serving > 0);
            stats.log_bytes += group.replica.log().bytes();
        }
        stats
    }

    /// What operators should know since the last call: to be written to the node's log.
    pub fn take_warnings(&mut self) -> Vec<String> {
        self.notices.take()
    }

    /// What was learned about run times, as bytes for [`Self::restore_model`] after a restart; `None` if nothing was since the last
    /// call.
    #[must_use]
    pub fn save_model(&mut self) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        for part in self.dispatch.learned.save()? {
            bytes.extend_from_slice(&u32::try_from(part.len()).ok()?.to_le_bytes());
            bytes.extend(part);
        }
        bytes.extend(self.dispatch.neighbours.to_bytes());
        Some(bytes)
    }

    /// Takes over what [`Self::save_model`] gave, as far as it is sound; how many cells of run times. Model files of version 1 have these
    /// alone, those of version 2 no distributions.
    pub fn restore_model(&mut self, version: u32, mut bytes: &[u8]) -> usize {
        if version == 1 {
            return self.dispatch.learned.restore([bytes, &[]]);
        }
        let mut part = || {
            let (length, rest) = bytes.split_first_chunk()?;
            let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
            let (part, rest) = rest.split_at_checked(length)?;
            bytes = rest;
            Some(part)
        };
        let Some(times) = part() else { return 0 };
        let lengths = if version == 2 { Some(&[][..]) } else { part() };
        let Some(lengths) = lengths else { return 0 };
        self.dispatch.neighbours.restore(bytes);
        self.dispatch.learned.restore([times, lengths])
    }

    /// Something that was found out and operators should know: it shows in answers about the cluster, and goes to the log
    /// unless it `is_logged`.
    pub fn give_notice(&mut self, sentence: String, is_logged: bool) {
        self.notices.give(sentence, is_logged, self.last_time_us);
    }

    /// The index at which a partition, or the meta group, stands and a hash of its agreed state: equal on all replicas at an equal index.
    /// For tests; it looks at every task.
    #[must_use]
    pub fn digest(&self, partition: PartitionId) -> Option<(u64, u64)> {
        let replica = &self.group(partition.0)?.replica;
        if partition.0 == META_GROUP {
            return Some((replica.applied().index, self.meta.digest()?));
        }
        let state = self.partitions.get(usize::from(partition.0))?.as_deref()?;
        Some((replica.applied().index, state.digest(&self.arena)))
    }

    /// Leases in force.
    #[must_use]
    pub fn leased(&self) -> u64 {
        self.dispatch.queues.iter().map(|queue| queue.leased).sum()
    }

    /// Queues that share workers, with namespaces: the place-time that they had since they do, in microseconds, and the places that they
    /// hold now.
    pub fn shares(&self) -> impl Iterator<Item = (&str, &str, u64, u64)> {
        self.dispatch.shares.had().map(|(number, had_us, holds)| {
            let queue = &self.dispatch.queues[number as usize];
            (queue.namespace.as_str(), queue.name.as_str(), had_us, holds)
        })
    }

    fn memory_bytes(&self) -> u64 {
        let records: usize = self.partitions.iter().flatten().map(|partition| partition.reserved_bytes()).sum();
        self.arena.stats().reserved_bytes + (records + self.timers.reserved_bytes()) as u64 + self.backlog.bytes
    }

    fn assign(&mut self, effects: &mut Effects) {
        if self.draining {
            return;
        }
        let mut assigner = self.assigner(effects);
        assigner.run();
        self.stats.assigned += assigner.assigned;
        if core::mem::take(&mut self.scratch.has_restartable) {
            self.arm_attempts();
        }
        if self.dispatch.reservations.is_asked_for {
            self.arm_reservations();
        }
        self.log_starts();
    }

    fn assigner<'a>(&'a mut self, effects: &'a mut Effects) -> Assigner<'a> {
        Assigner {
            partitions: &mut self.partitions,
            dispatch: &mut self.dispatch,
            arena: &self.arena,
            timers: &mut self.timers,
            scratch: &mut self.scratch,
            effects,
            now_us: self.last_time_us,
            tells_starts: self.config.logs_starts || self.config.events.is_some_and(|events| events.starts),
            assigned: 0,
        }
    }

    /// Splits the shard into one partition and what its transitions touch.
    fn split(&mut self, id: PartitionId, time_us: u64) -> Option<(&mut Partition, Cx<'_>)> {
        let partition = self.partitions.get_mut(usize::from(id.0))?.as_deref_mut()?;
        let cx = Cx {
            time_us,
            arena: &mut self.arena,
            timers: &mut self.timers,
            dispatch: &mut self.dispatch,
            settled: &mut self.settled,
            revoked: &mut self.revoked,
            findings: &mut self.findings,
        };
        Some((partition, cx))
    }

    /// The partition of a request, if this replica leads it.
    fn partition(&self, header: &Header) -> Result<&Partition, Refused> {
        let place = self.partitions.get(usize::from(header.partition)).and_then(Option::as_deref);
        place.filter(|partition| partition.is_leading()).ok_or_else(|| self.not_here(header.partition))
    }

    fn partition_mut(&mut self, header: &Header) -> Result<&mut Partition, Refused> {
        self.partition(header)?;
        let place = self.partitions.get_mut(usize::from(header.partition)).and_then(Option::as_deref_mut);
        Ok(place.expect("just found"))
    }
}

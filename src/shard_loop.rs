//! The thin loop around [`taskmaster_engine::Shard`]: it performs what the engine asks for.
//!
//! One loop is one pinned thread with one glommio executor, one log, one listener pair. Frames, finished writes, and what other
//! nodes say go in as inputs; records go to the log, frames to connections, and messages to other shards, here or elsewhere.
//!
//! Invariants:
//! - The engine is told of durability only from the log's own report ([`ShardLoop::on_durable`]).
//! - What arrives together is one turn: all tasks that are ready (connections with frames, finished writes, timers) hand in what
//!   they have, then the turn's records go to the log and its effects are performed once. What a node promises another waits in the
//!   engine until it is durable, so no effect has to wait here.
//! - A failed write ends the process: acknowledged work is safe, nothing further is promised.

mod background;
mod checkpoints;
mod events;
mod gossip;
mod greeting;
mod memo;
mod model;
mod peers;
pub(crate) mod recovery;
mod snapshots;
mod spill;
mod start;
mod wake;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use taskmaster_connect::kafka::Status;
use taskmaster_engine::cluster::{ClusterMap, Member};
use taskmaster_engine::{ConnId, Effects, Input, PeerAddr, Shard, Standing};
use taskmaster_net::connection::{Connection, Handler};
use taskmaster_net::mesh::Mesh;
use taskmaster_net::peers::Peers;
use taskmaster_net::wake::Bell;
use taskmaster_protocol::frame::{self, Header};
use taskmaster_protocol::{Code, FrameBuffer, Operation};
use taskmaster_storage::wal::driver::{SpaceState, Wal};

pub(crate) use gossip::Setting as GossipSetting;
pub(crate) use greeting::NodeMap;
pub(crate) use start::{PeerStart, Start, spawn};

/// Connection numbers carry their shard in the upper 16 bits.
const SHARD_SHIFT: u32 = 48;

/// What shards send each other.
pub(crate) enum Message {
    /// A request for a partition of the receiver, from a connection of the sender.
    Request {
        /// The connection.
        conn: ConnId,
        /// Its header.
        header: Header,
        /// Its body, aligned.
        body: FrameBuffer,
    },
    /// Frames for a connection of the receiver.
    Frames {
        /// The connection.
        conn: ConnId,
        /// Whole frames.
        frames: FrameBuffer,
    },
    /// A request for the cluster's map, on its way over all shards from the last to shard 0, which answers: each adds how its
    /// replicas stand.
    MapAsked {
        /// The connection.
        conn: ConnId,
        /// The request's header.
        header: Header,
        /// Replicas of the shards that it has passed.
        standings: Vec<Standing>,
    },
    /// A connection of the sender is gone.
    Gone(ConnId),
    /// What the sender's engine has for the receiver's, as between nodes.
    Peer {
        /// The sender.
        from: PeerAddr,
        /// Its messages.
        bytes: FrameBuffer,
    },
    /// What shard 0 heard of another node.
    Member(Arc<Member>),
    /// The cluster map as shard 0 knows it.
    Map(Arc<ClusterMap>),
}

/// One shard's loop.
pub(crate) struct ShardLoop {
    number: usize,
    shard: RefCell<Shard>,
    effects: RefCell<Effects>,
    wal: Rc<Wal>,
    /// This node and shard, as other nodes name it.
    own: PeerAddr,
    /// Links to other nodes, where there may be some.
    peers: Option<Rc<Peers>>,
    /// Who is there: on shard 0, where there may be others.
    gossip: Option<gossip::Gossiper>,
    /// Where final tasks are checkpointed.
    checkpoints: Option<Rc<checkpoints::Checkpoints>>,
    /// Where payloads and results go that leave memory while they wait for the database.
    spill: Option<Rc<spill::Spill>>,
    /// Where is told what happens.
    events: Option<Rc<events::Events>>,
    /// How the node's streams are doing: on shard 0, where there are some.
    streams: Option<Arc<Status>>,
    /// Where results of memoised tasks are remembered.
    memo: Option<Rc<memo::Memo>>,
    /// Log blocks that are not durable yet, each with the last record it holds.
    blocks: RefCell<VecDeque<(u64, u64)>>,
    connections: RefCell<HashMap<u64, Rc<Connection>>>,
    last_connection: Cell<u64>,
    mesh: Mesh<Message>,
    map: Arc<NodeMap>,
    open_connections: Arc<AtomicU32>,
    /// Rung when inputs wait for the end of their turn.
    turn: Bell,
    /// Rung when a timer is due before `sleeping_until_us`.
    earlier: Bell,
    sleeping_until_us: Cell<u64>,
    mesh_full: Bell,
    disk_full: Cell<bool>,
    /// The log is closed: what is admitted from here on is never logged, and so never answered.
    closing: Cell<bool>,
    snapshot_due: Bell,
    snapshot_after_bytes: u64,
    /// Log bytes found and written when the latest snapshot began.
    snapshot_at_bytes: Cell<u64>,
    /// Length of the log that no snapshot covered at the start.
    log_bytes_found: u64,
    snapshots: Cell<u64>,
}

/// Variable of debug builds with seconds after which the node's clock seems to jump, and by how many, such as `5:-60`.
const CLOCK_JUMP: &str = "TASKMASTER_CLOCK_JUMP";

/// Microseconds since 1970.
pub(crate) fn now_us() -> u64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let clock_us = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
    if cfg!(debug_assertions) { clock_us.saturating_add_signed(jump_us()) } else { clock_us }
}

/// By how much the clock jumped for a test's sake.
fn jump_us() -> i64 {
    static JUMP: LazyLock<Option<(Instant, i64)>> = LazyLock::new(|| {
        let told = std::env::var(CLOCK_JUMP).ok()?;
        let (after_s, by_s) = told.split_once(':')?;
        Some((Instant::now() + Duration::from_secs(after_s.parse().ok()?), by_s.parse::<i64>().ok()? * 1_000_000))
    });
    JUMP.filter(|(at, _)| Instant::now() >= *at).map_or(0, |(_, by_us)| by_us)
}

impl ShardLoop {
    fn input(&self, input: Input<'_>) {
        self.shard.borrow_mut().handle(input, now_us(), &mut self.effects.borrow_mut());
    }

    /// Ends a turn: logs its records, then performs everything else that the engine asks for.
    fn perform(&self) {
        if self.closing.get() {
            return;
        }
        let mut effects = self.effects.borrow_mut();
        self.log(&mut effects);
        self.hand_out_made();
        let questions = effects.take_questions();
        if !questions.is_empty() {
            drop(effects);
            self.ask(questions);
            effects = self.effects.borrow_mut();
        }
        effects.drain(|conn, frames| self.send(conn, frames));
        effects.drain_peers(|to, messages| self.send_to_peer(to, messages));
        let map = effects.take_map();
        drop(effects);
        for warning in self.shard.borrow_mut().take_warnings() {
            tracing::warn!(shard = self.number, "{warning}");
        }
        if let Some(map) = map {
            self.map_changed(&map);
        }
        if !self.mesh.flush() {
            self.mesh_full.ring();
        }
        let wake_us = self.shard.borrow().next_wake_us();
        if wake_us.is_some_and(|wake_us| wake_us < self.sleeping_until_us.get()) {
            self.earlier.ring();
        }
        self.watch_disk();
        self.watch_spill();
    }

    fn log(&self, effects: &mut Effects) {
        let mut blocks = self.blocks.borrow_mut();
        self.shard.borrow_mut().end_turn(now_us(), effects, |sequence, kind, parts| {
            match self.wal.append(kind, sequence, parts) {
                Ok(position) => match blocks.back_mut() {
                    Some((block, last)) if *block == position.seq => *last = sequence,
                    _ => blocks.push_back((position.seq, sequence)),
                },
                Err(error) => fatal(self.number, &format!("what the engine decided could not be logged: {error}")),
            }
        });
    }

    fn send(&self, conn: ConnId, frames: &mut FrameBuffer) {
        let shard = shard_of(conn);
        if shard != self.number {
            self.mesh.push(shard, Message::Frames { conn, frames: core::mem::take(frames) });
            return;
        }
        if let Some(connection) = self.connections.borrow().get(&conn.0) {
            connection.push(frames);
            connection.flush();
        }
    }

    /// The log's blocks up to `block` are durable.
    fn on_durable(&self, block: u64) {
        let mut durable = None;
        {
            let mut blocks = self.blocks.borrow_mut();
            while blocks.front().is_some_and(|(front, _)| *front <= block) {
                durable = blocks.pop_front().map(|(_, sequence)| sequence);
            }
        }
        if let Some(sequence) = durable {
            self.input(Input::Durable { sequence });
        }
        self.turn.ring();
        let written = self.log_bytes_found + self.wal.stats().bytes_written;
        if written - self.snapshot_at_bytes.get() >= self.snapshot_after_bytes {
            self.snapshot_at_bytes.set(written);
            self.snapshot_due.ring();
        }
    }

    fn watch_disk(&self) {
        let full = self.wal.space_state() == SpaceState::DiskFull;
        if full != self.disk_full.replace(full) {
            if full {
                tracing::error!(
                    shard = self.number,
                    "the log's disk is full: new tasks are refused, accepted ones go on; free space"
                );
            } else {
                tracing::info!(shard = self.number, "the log's disk has room again: new tasks are accepted");
            }
            self.input(Input::DiskFull(full));
        }
    }

    /// A message from another shard.
    fn message(&self, message: Message) {
        match message {
            Message::Request { conn, header, body } => self.request(conn, header, &body),
            Message::Frames { conn, mut frames } => self.send(conn, &mut frames),
            Message::MapAsked { conn, header, standings } => self.map_asked(conn, header, standings),
            Message::Gone(conn) => self.input(Input::Disconnected { conn }),
            Message::Peer { from, bytes } => self.input(Input::Peer { from, bytes: &bytes }),
            Message::Member(member) => self.member(&member),
            Message::Map(map) => {
                self.input(Input::Map(Arc::clone(&map)));
                self.follow_map(&map);
            }
        }
    }

    /// A request for this shard.
    fn request(&self, conn: ConnId, header: Header, body: &[u8]) {
        if !self.looks_elsewhere(conn, &header, body) && !self.waits_for_memo(conn, &header, body) {
            self.input(Input::Frame { conn, header, body });
        }
    }

    /// Adds what this shard knows to an answer about the cluster, and passes it on.
    fn map_asked(&self, conn: ConnId, header: Header, mut standings: Vec<Standing>) {
        if self.number > 0 {
            standings.extend(self.shard.borrow().standings());
            self.mesh.push(self.number - 1, Message::MapAsked { conn, header, standings });
        } else {
            self.notice_refusals();
            self.input(Input::Standings(standings));
            self.input(Input::Frame { conn, header, body: &[] });
        }
    }

    /// The shard that a request must go to: that of its partition, and shard 0 for what changes the cluster.
    fn owner(&self, header: &Header) -> usize {
        if header.operation == Operation::ClusterAdmin.number() {
            return 0;
        }
        let owner = self.map.partition_shards.get(usize::from(header.partition));
        owner.map_or(self.number, |&shard| usize::from(shard))
    }
}

fn shard_of(conn: ConnId) -> usize {
    usize::try_from(conn.0 >> SHARD_SHIFT).expect("16 bits")
}

/// Ends the process: the log cannot promise anything further.
pub(crate) fn fatal(shard: usize, sentence: &str) -> ! {
    tracing::error!(shard, "{sentence}");
    eprintln!("taskmaster: shard {shard}: {sentence}");
    std::process::exit(1)
}

impl Handler for ShardLoop {
    fn frame(&self, connection: &Rc<Connection>, header: Header, body: &[u8]) -> Result<(), (Code, String)> {
        if header.operation == Operation::Hello.number() {
            return self.hello(connection, &header, body);
        }
        if !connection.greeted.get() {
            return Err((Code::HelloRequired, "the first frame of a connection must be a hello".to_owned()));
        }
        let conn = ConnId(connection.number());
        if header.operation == Operation::NodeStats.number() {
            let stats = self.node_stats();
            frame::encode(self.effects.borrow_mut().buffer(conn), header.response(Code::Ok), &stats);
            return Ok(());
        }
        if header.operation == Operation::ClusterMap.number() {
            let last = self.map.shard_ports.len() - 1;
            if last == self.number {
                self.map_asked(conn, header, Vec::new());
            } else {
                self.mesh.push(last, Message::MapAsked { conn, header, standings: Vec::new() });
            }
            return Ok(());
        }
        let owner = self.owner(&header);
        if owner == self.number {
            self.request(conn, header, body);
        } else {
            let mut copy = FrameBuffer::with_capacity(body.len());
            copy.extend_from_slice(body);
            self.mesh.push(owner, Message::Request { conn, header, body: copy });
        }
        Ok(())
    }

    fn turn_ended(&self) {
        self.turn.ring();
    }

    fn finish_turn(&self) {
        self.perform();
    }

    fn closed(&self, connection: &Connection) {
        let conn = ConnId(connection.number());
        self.connections.borrow_mut().remove(&conn.0);
        self.open_connections.fetch_sub(1, Ordering::Relaxed);
        self.input(Input::Disconnected { conn });
        for peer in self.mesh.peers() {
            self.mesh.push(peer, Message::Gone(conn));
        }
        self.turn.ring();
    }
}

//! One shard, its log and its clock.

use taskmaster_engine::{Config, ConnId, Effects, Input, Shard, SnapshotStep};
use taskmaster_protocol::body::{ArchivedAssign, access};
use taskmaster_protocol::frame::{self, Header};
use taskmaster_protocol::{FrameBuffer, NodeId, Operation, TaskId};

use crate::body;

/// When every run starts, in microseconds since 1970.
pub const START_US: u64 = 1_700_000_000_000_000;
/// Partitions of the shard.
pub const PARTITIONS: u16 = 4;

/// A lease as its worker was told of it.
#[derive(Clone, Copy)]
pub struct Lease {
    pub conn: u64,
    pub id: TaskId,
    pub token: u64,
    pub locator: u32,
    pub attempt: u32,
}

/// Chunks of a snapshot with their tags.
type Chunks = Vec<(u32, FrameBuffer)>;

/// The shard under test.
pub struct World {
    pub shard: Shard,
    pub now_us: u64,
    pub leases: Vec<Lease>,
    pub last_sequence: u64,
    effects: Effects,
    config: Config,
    /// Kind and bytes of every record.
    log: Vec<(u32, FrameBuffer)>,
    durable: usize,
    snapshot: Option<Chunks>,
    snapshot_open: Option<Chunks>,
}

impl World {
    /// An empty shard that has every partition and begins to serve.
    #[must_use]
    pub fn new(memory_bytes_max: u64) -> Self {
        let config = Config { memory_bytes_max, kept_max: 20, ..Config::standalone(NodeId(1), PARTITIONS) };
        let mut world = Self {
            shard: Shard::new(config.clone(), START_US),
            now_us: START_US,
            leases: Vec::new(),
            last_sequence: 0,
            effects: Effects::default(),
            config,
            log: Vec::new(),
            durable: 0,
            snapshot: None,
            snapshot_open: None,
        };
        world.start();
        world
    }

    fn start(&mut self) {
        self.shard.start(self.now_us);
        self.end_turn();
        self.settle();
        assert!(self.shard.is_serving(), "a node of its own serves once its log is durable");
    }

    /// Hands one input over and checks what comes out.
    pub fn handle(&mut self, input: Input<'_>) {
        self.shard.handle(input, self.now_us, &mut self.effects);
        self.end_turn();
    }

    fn end_turn(&mut self) {
        let (log, leases, last) = (&mut self.log, &mut self.leases, &mut self.last_sequence);
        self.shard.end_turn(self.now_us, &mut self.effects, |sequence, kind, parts| {
            assert_eq!(sequence, *last + 1, "records are numbered without a gap");
            *last = sequence;
            let mut copy = FrameBuffer::new();
            parts.iter().for_each(|part| copy.extend_from_slice(part));
            log.push((kind, copy));
        });
        self.effects.drain_peers(|to, _| panic!("there is nobody to talk to, and {to:?} is talked to"));
        self.effects.drain(|conn, frames| {
            let mut rest: &[u8] = frames;
            while !rest.is_empty() {
                let (frame, used) = frame::parse(rest).expect("a frame").expect("a whole frame");
                body::check(&frame.header, frame.body).expect("the shard sends well-formed bodies");
                if frame.header.operation == Operation::Assign.number() && !frame.header.is_response() {
                    remember(leases, conn, frame.body);
                }
                rest = &rest[used..];
            }
        });
    }

    /// Hands over a frame.
    pub fn frame(&mut self, conn: u64, header: Header, body: &[u8]) {
        let mut aligned = FrameBuffer::new();
        aligned.extend_from_slice(body);
        self.handle(Input::Frame { conn: ConnId(conn), header, body: &aligned });
    }

    /// Makes up to `count` further records durable.
    pub fn make_durable(&mut self, count: usize) {
        let count = count.min(self.log.len() - self.durable);
        self.durable += count;
        let sequence = self.last_sequence - (self.log.len() - self.durable) as u64;
        self.handle(Input::Durable { sequence });
    }

    /// Makes everything durable, until nothing more is logged.
    pub fn settle(&mut self) {
        while self.durable < self.log.len() {
            self.make_durable(usize::MAX);
        }
    }

    /// Lets time pass; the shard is woken at most `wakes` times on the way.
    pub fn advance_ms(&mut self, ms: u64, wakes: usize) {
        let target_us = self.now_us + ms * 1_000;
        for _ in 0..wakes {
            let Some(wake_us) = self.shard.next_wake_us().filter(|&wake_us| wake_us <= target_us) else { break };
            self.now_us = self.now_us.max(wake_us);
            self.handle(Input::Tick);
        }
        self.now_us = target_us;
        self.handle(Input::Tick);
    }

    /// Begins a snapshot, or goes on with the one in progress.
    pub fn snapshot_step(&mut self) {
        let mut chunks = self.snapshot_open.take().unwrap_or_else(|| {
            self.shard.snapshot_begin();
            Chunks::new()
        });
        let mut chunk = FrameBuffer::new();
        match self.shard.snapshot_next(&mut chunk) {
            SnapshotStep::Chunk(tag) => {
                chunks.push((tag, chunk));
                self.snapshot_open = Some(chunks);
            }
            SnapshotStep::End => self.snapshot = Some(chunks),
            step => panic!("nobody else writes or replaces a group: {step:?}"),
        }
    }

    /// A shard as far as the log, and the snapshot if `use_snapshot`, bring it back.
    fn brought_back(&self, use_snapshot: bool) -> Shard {
        let mut shard = Shard::new(self.config.clone(), self.now_us);
        for (tag, chunk) in self.snapshot.iter().filter(|_| use_snapshot).flatten() {
            shard.restore_chunk(*tag, chunk).expect("the shard's own snapshot restores");
        }
        for (sequence, (kind, bytes)) in (1..).zip(&self.log) {
            shard.replay(sequence, *kind, bytes).expect("the shard's own log replays");
        }
        assert_eq!(shard.last_sequence(), self.log.len() as u64);
        shard
    }

    /// Starts again from the durable log, and from the snapshot if `use_snapshot`.
    pub fn crash(&mut self, use_snapshot: bool) {
        self.log.truncate(self.durable);
        self.snapshot_open = None;
        self.leases.clear();
        self.shard = self.brought_back(use_snapshot);
        self.last_sequence = self.log.len() as u64;
        self.effects = Effects::default();
        self.start();
        self.handle(Input::Tick);
    }

    /// Everything durable, then a restart from the log alone: as many tasks are unfinished as before.
    pub fn check_recovery(&mut self) {
        self.settle();
        let unfinished = self.shard.stats().unfinished;
        self.shard = self.brought_back(false);
        self.effects = Effects::default();
        self.start();
        assert_eq!(self.shard.stats().unfinished, unfinished, "recovery finds the same unfinished tasks");
    }
}

fn remember(leases: &mut Vec<Lease>, conn: ConnId, body: &[u8]) {
    let body = access::<ArchivedAssign>(body).expect("checked before");
    for row in body.rows.iter() {
        leases.push(Lease {
            conn: conn.0,
            id: TaskId::from(&row.id),
            token: row.token.to_native(),
            locator: row.locator.to_native(),
            attempt: row.attempt.to_native(),
        });
    }
}

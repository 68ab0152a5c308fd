//! One shard, its log and its clock.

use taskmaster_engine::{Config, ConnId, Effects, Input, Shard};
use taskmaster_protocol::body::{ArchivedAssign, access};
use taskmaster_protocol::frame::{self, Header};
use taskmaster_protocol::{FrameBuffer, Operation, PartitionId, TaskId};

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

/// The shard under test.
pub struct World {
    pub shard: Shard,
    pub now_us: u64,
    pub leases: Vec<Lease>,
    pub last_sequence: u64,
    effects: Effects,
    config: Config,
    log: Vec<FrameBuffer>,
    durable: usize,
    /// A snapshot, and the sequence it stands for.
    snapshot: Option<(u64, Vec<FrameBuffer>)>,
    snapshot_open: Option<(u64, Vec<FrameBuffer>)>,
}

impl World {
    /// An empty shard that owns every partition.
    #[must_use]
    pub fn new(memory_bytes_max: u64) -> Self {
        let config = Config {
            partitions: PARTITIONS,
            owned: (0..PARTITIONS).map(PartitionId).collect(),
            term: 1,
            memory_bytes_max,
            kept_max: 20,
            auto_create_queues: true,
        };
        Self {
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
        }
    }

    /// Hands one input over and checks what comes out.
    pub fn handle(&mut self, input: Input<'_>) {
        self.shard.handle(input, self.now_us, &mut self.effects);
        self.collect();
    }

    fn collect(&mut self) {
        let (log, leases, last) = (&mut self.log, &mut self.leases, &mut self.last_sequence);
        self.shard.take_unlogged(|sequence, bytes| {
            assert_eq!(sequence, *last + 1, "entries are numbered without a gap");
            *last = sequence;
            let entry = taskmaster_engine::decode_entry(bytes).expect("what is logged reads back");
            assert_eq!(entry.sequence, sequence);
            let mut copy = FrameBuffer::new();
            copy.extend_from_slice(bytes);
            log.push(copy);
        });
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

    /// Makes up to `count` further entries durable.
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
        let (sequence, mut chunks) = match self.snapshot_open.take() {
            Some(open) => open,
            None => (self.shard.snapshot_begin(), Vec::new()),
        };
        let mut chunk = FrameBuffer::new();
        if self.shard.snapshot_next(&mut chunk) {
            chunks.push(chunk);
            self.snapshot_open = Some((sequence, chunks));
        } else {
            self.snapshot = Some((sequence, chunks));
        }
    }

    /// Starts again from the durable log, and from the snapshot if `use_snapshot`.
    pub fn crash(&mut self, use_snapshot: bool) {
        self.log.truncate(self.durable);
        self.snapshot_open = None;
        self.leases.clear();
        self.config.term += 1;
        let mut shard = Shard::new(self.config.clone(), self.now_us);
        if let Some((sequence, chunks)) = self.snapshot.as_ref().filter(|_| use_snapshot) {
            for chunk in chunks {
                shard.restore_chunk(chunk).expect("the shard's own snapshot restores");
            }
            shard.restore_finish(*sequence);
        }
        for entry in &self.log {
            shard.replay(entry).expect("the shard's own log replays");
        }
        self.last_sequence = shard.last_sequence();
        assert_eq!(self.last_sequence, self.log.len() as u64);
        self.shard = shard;
        self.effects = Effects::default();
        self.handle(Input::Tick);
    }

    /// Everything durable, then a restart from the log alone: as many tasks are unfinished as before.
    pub fn check_recovery(&mut self) {
        self.settle();
        let unfinished = self.shard.stats().unfinished;
        let mut shard = Shard::new(Config { term: self.config.term + 1, ..self.config.clone() }, self.now_us);
        for entry in &self.log {
            shard.replay(entry).expect("the shard's own log replays");
        }
        assert_eq!(shard.stats().unfinished, unfinished, "recovery finds the same unfinished tasks");
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

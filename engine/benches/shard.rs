//! The whole shard: lives of tasks, replay, and the ready queue at depth. Times are per task, and of the shard's own calls:
//! what makes the load is not counted, and neither is the slowest fiftieth of the rounds, in which the machine did
//! something else.

use std::cell::RefCell;
use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rkyv::rancor::Error;
use taskmaster_engine::{Config, ConnId, Effects, Input, Shard};
use taskmaster_protocol::body::{
    self, ArchivedAssign, Complete, CompleteRow, Credit, Spec, Submit, Subscribe, TaskRow,
};
use taskmaster_protocol::frame::{self, Header};
use taskmaster_protocol::{Body, FrameBuffer, NodeId, Operation, PartitionId, TaskId, limits};

const START_US: u64 = 1_700_000_000_000_000;
const PARTITIONS: u16 = 64;
const CLIENT: ConnId = ConnId(1);
const WORKER: ConnId = ConnId(2);

/// A shard before its recovery.
fn empty() -> Shard {
    let mut config = Config::standalone(NodeId(1), PARTITIONS);
    (config.memory_bytes_max, config.kept_max) = (16 << 30, 10_000);
    Shard::new(config, START_US)
}

/// A shard under load, with the time its own calls took apart from the load's making.
struct Load {
    shard: Shard,
    effects: Effects,
    now_us: u64,
    number: u64,
    partition: u16,
    batch: usize,
    /// Kinds and bytes of all that was logged, if it is wanted.
    records: Option<Vec<(u32, FrameBuffer)>>,
    sequence: u64,
    completions: Vec<(PartitionId, FrameBuffer)>,
    body: FrameBuffer,
    spent: Duration,
}

impl Load {
    fn new(batch: usize, is_recorded: bool) -> Self {
        let mut load = Self {
            shard: empty(),
            effects: Effects::default(),
            now_us: START_US,
            number: 0,
            partition: 0,
            batch,
            sequence: 0,
            records: is_recorded.then(Vec::new),
            completions: Vec::new(),
            body: FrameBuffer::new(),
            spent: Duration::ZERO,
        };
        load.shard.start(START_US);
        load.turn();
        while !load.shard.is_serving() || load.shard.last_sequence() > load.sequence {
            load.durable();
        }
        load
    }

    fn subscribe(&mut self) {
        let mut body = Subscribe { credit: limits::CREDIT_MAX, ..Subscribe::default() };
        body.queues = vec![body::put(&mut body.bytes, b"bench")];
        self.encode(&body);
        self.frame(WORKER, Operation::Subscribe, PartitionId(0));
        self.credit(0);
    }

    fn credit(&mut self, credit: u32) {
        self.encode(&Credit { credit });
        self.frame(WORKER, Operation::Credit, PartitionId(0));
    }

    fn encode<B: Body>(&mut self, body: &B) {
        self.body.clear();
        body.append_to(&mut self.body);
    }

    fn frame(&mut self, conn: ConnId, operation: Operation, partition: PartitionId) {
        let header = Header::request(operation, 1, Some(partition));
        let start = Instant::now();
        self.shard.handle(Input::Frame { conn, header, body: &self.body }, self.now_us, &mut self.effects);
        self.spent += start.elapsed();
    }

    /// Ends a turn.
    fn turn(&mut self) {
        let start = Instant::now();
        let (sequence, records) = (&mut self.sequence, &mut self.records);
        self.shard.end_turn(self.now_us, &mut self.effects, |number, kind, parts| {
            *sequence = number;
            if let Some(records) = records {
                let mut bytes = FrameBuffer::new();
                parts.iter().for_each(|part| bytes.extend_from_slice(part));
                records.push((kind, bytes));
            }
        });
        self.spent += start.elapsed();
        self.collect();
    }

    /// Ends a turn; what it logged becomes durable, and that is the next turn.
    fn durable(&mut self) {
        self.turn();
        let start = Instant::now();
        let input = Input::Durable { sequence: self.sequence };
        self.shard.handle(input, self.now_us, &mut self.effects);
        self.spent += start.elapsed();
        self.turn();
    }

    /// Turns the assignments that arrived into completions to send.
    fn collect(&mut self) {
        let completions = &mut self.completions;
        self.effects.drain(|_, frames| {
            let mut rest: &[u8] = frames;
            while let Some((frame, used)) = frame::parse(rest).expect("the engine sends frames") {
                if frame.header.operation == Operation::Assign.number() && !frame.header.is_response() {
                    completions.push((PartitionId(frame.header.partition), completion(frame.body)));
                }
                rest = &rest[used..];
            }
        });
    }

    /// Submits a batch to the next partition.
    fn submit(&mut self) {
        let mut body = Submit::default();
        let (queue, kind) = (body::put(&mut body.bytes, b"bench"), body::put(&mut body.bytes, b"noop"));
        let numbers = Spec { lease_ms: 30_000, attempts_max: 3, priority: 2, ..Spec::default() };
        body.specs.push(Spec { queue, kind, ..numbers });
        let partition = PartitionId(self.partition);
        self.partition = (self.partition + 1) % PARTITIONS;
        for _ in 0..self.batch {
            self.number += 1;
            let random = 0x5A_5A5A_1234;
            let sequence = u32::try_from(self.number & 0xFF_FFFF).expect("masked");
            let payload = body::put(&mut body.bytes, &[7; 64]);
            let id = TaskId::new(self.now_us / 1_000, partition, random, sequence);
            body.tasks.push(TaskRow { id, spec: 0, extra: 0, payload });
        }
        self.encode(&body);
        self.frame(CLIENT, Operation::Submit, partition);
    }

    /// Completes one assignment.
    fn complete(&mut self) -> usize {
        let Some((partition, bytes)) = self.completions.pop() else { return 0 };
        let rows = rkyv::access::<body::ArchivedComplete, Error>(&bytes).map_or(0, |body| body.rows.len());
        self.body = bytes;
        self.frame(WORKER, Operation::Complete, partition);
        rows
    }

    /// The whole life of a batch. The clock goes as if a million tasks a second came by.
    fn life(&mut self) {
        self.now_us += self.batch as u64;
        self.submit();
        self.durable();
        while !self.completions.is_empty() {
            self.complete();
        }
        self.credit(u32::try_from(self.batch).expect("batches are small"));
        self.durable();
        let start = Instant::now();
        if self.shard.next_wake_us().is_some_and(|due_us| due_us <= self.now_us) {
            self.shard.handle(Input::Tick, self.now_us, &mut self.effects);
        }
        self.spent += start.elapsed();
    }
}

fn completion(assign: &[u8]) -> FrameBuffer {
    let mut aligned = FrameBuffer::new();
    aligned.extend_from_slice(assign);
    let assign = rkyv::access::<ArchivedAssign, Error>(&aligned).expect("the engine sends valid bodies");
    let mut body = Complete::default();
    for row in assign.rows.iter() {
        body.rows.push(CompleteRow {
            id: TaskId::from(&row.id),
            token: row.token.to_native(),
            locator: row.locator.to_native(),
            attempt: row.attempt.to_native(),
            result: body::Span::default(),
        });
    }
    let mut bytes = FrameBuffer::new();
    body.append_to(&mut bytes);
    bytes
}

/// What `tasks` tasks take, measured in rounds of `batch`.
fn measured(load: &mut Load, tasks: u64, mut round: impl FnMut(&mut Load)) -> Duration {
    let batch = load.batch as u64;
    let mut rounds: Vec<Duration> = Vec::new();
    for _ in 0..tasks.div_ceil(batch) {
        load.spent = Duration::ZERO;
        round(load);
        rounds.push(load.spent);
    }
    fair_sum(&mut rounds).mul_f64(tasks as f64 / (rounds.len() as u64 * batch) as f64)
}

/// The sum of the rounds as if the slowest fiftieth had been like the others.
fn fair_sum(rounds: &mut [Duration]) -> Duration {
    rounds.sort_unstable();
    let counted = rounds.len() - rounds.len() / 50;
    rounds[..counted].iter().sum::<Duration>().mul_f64(rounds.len() as f64 / counted as f64)
}

/// Submit, durable, assign, complete, durable, evict.
fn lives(c: &mut Criterion) {
    let mut group = c.benchmark_group("shard/life");
    for batch in [1, 64, 1_024] {
        let load = RefCell::new(Load::new(batch, false));
        load.borrow_mut().subscribe();
        for _ in 0..1_500_000 / batch {
            load.borrow_mut().life();
        }
        group.throughput(Throughput::Elements(1));
        group.bench_function(BenchmarkId::from_parameter(batch), |b| {
            b.iter_custom(|tasks| measured(&mut load.borrow_mut(), tasks, Load::life));
        });
    }
    group.finish();
}

/// The log of a million lives, applied again.
fn replay(c: &mut Criterion) {
    const TASKS: u64 = 1_000_000;
    let mut load = Load::new(64, true);
    load.subscribe();
    for _ in 0..TASKS / 64 {
        load.life();
    }
    let records = load.records.take().expect("set above");
    let mut group = c.benchmark_group("shard/replay");
    group.throughput(Throughput::Elements(TASKS)).sample_size(10);
    group.bench_function("a million lives", |b| {
        b.iter_custom(|times| {
            let mut spent = Duration::ZERO;
            for _ in 0..times {
                let mut shard = empty();
                let mut sequence = 0;
                let mut replay = |part: &[(u32, FrameBuffer)]| {
                    let start = Instant::now();
                    for (kind, bytes) in part {
                        sequence += 1;
                        shard.replay(sequence, *kind, bytes).expect("the log is whole");
                    }
                    start.elapsed()
                };
                let mut parts: Vec<Duration> = records.chunks(16).map(&mut replay).collect();
                spent += fair_sum(&mut parts);
                black_box(shard.stats().tasks);
            }
            spent
        });
    });
    group.finish();
}

/// Assign and complete one batch, and submit as many, while this many are ready.
fn depth(c: &mut Criterion) {
    let mut group = c.benchmark_group("shard/depth");
    for depth in [1_000, 10_000, 100_000, 1_000_000, 10_000_000_u64] {
        let load = RefCell::new(Load::new(64, false));
        let filled = RefCell::new(false);
        group.throughput(Throughput::Elements(1));
        group.bench_function(BenchmarkId::from_parameter(depth), |b| {
            let load = &mut *load.borrow_mut();
            if !filled.replace(true) {
                for _ in 0..depth / 64 {
                    load.submit();
                    load.durable();
                }
                let mut body = Subscribe::default();
                body.queues = vec![body::put(&mut body.bytes, b"bench")];
                load.encode(&body);
                load.frame(WORKER, Operation::Subscribe, PartitionId(0));
                for _ in 0..1_000_000 / 64 {
                    steady(load);
                }
            }
            b.iter_custom(|tasks| measured(load, tasks, steady));
        });
    }
    group.finish();
}

fn steady(load: &mut Load) {
    load.now_us += 64;
    load.credit(64);
    load.turn();
    while !load.completions.is_empty() {
        load.complete();
    }
    load.submit();
    load.durable();
}

criterion_group!(benches, lives, replay, depth);
criterion_main!(benches);

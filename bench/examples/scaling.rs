//! Two shards against one on the engine's own work: `scaling [SECONDS]`, without sockets, log or client.
//!
//! Each thread drives a shard of its own through whole lives of tasks: submit a batch, durable, assign, complete, durable,
//! forget. Bodies are archived once and patched in place, so that making the load is a small part. A shard's work is the same
//! whether it is alone or not (as many partitions, as many finished tasks kept), so the second one gains nothing by smaller
//! tables. One and two threads take turns, on cores of their own.
//!
//! Two rates: per second, and per second of processor time, which other processes disturb less. The last lines do the same
//! with a register-only loop: what the machine itself gives two threads.

use std::hint::black_box;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};
use taskmaster_engine::{Config, ConnId, Effects, Input, Shard};
use taskmaster_protocol::body::{
    self, ArchivedAssign, ArchivedComplete, ArchivedSubmit, Complete, CompleteRow, Credit, Spec, Submit, Subscribe,
    TaskRow,
};
use taskmaster_protocol::frame::{self, Header};
use taskmaster_protocol::{Body, FrameBuffer, NodeId, Operation, PartitionId, TaskId, limits};

const START_US: u64 = 1_700_000_000_000_000;
const BATCH: u32 = 64;
const PARTITIONS: u16 = 32;
const REPEATS: usize = 9;
const WARM_UP_TASKS: u32 = 800_000;
const CLIENT: ConnId = ConnId(1);
const WORKER: ConnId = ConnId(2);

/// A body archived once, and where its rows begin.
struct Template {
    body: FrameBuffer,
    rows: Vec<usize>,
}

/// One shard and its load.
struct Drive {
    shard: Shard,
    effects: Effects,
    now_us: u64,
    sequence: u32,
    /// Of the last record.
    durable: u64,
    partition: u16,
    submit: Template,
    complete: Template,
    /// Assignments to answer, frames back to back.
    assigned: FrameBuffer,
    credit: FrameBuffer,
}

fn archived<B: Body>(body: &B) -> FrameBuffer {
    let mut bytes = FrameBuffer::new();
    body.append_to(&mut bytes);
    bytes
}

fn offsets<'a, R: 'a>(body: &[u8], rows: impl Iterator<Item = &'a R>) -> Vec<usize> {
    rows.map(|row| core::ptr::from_ref(row).addr() - body.as_ptr().addr()).collect()
}

fn submit_template() -> Template {
    let mut submit = Submit::default();
    let (queue, kind) = (body::put(&mut submit.bytes, b"bench"), body::put(&mut submit.bytes, b"noop"));
    submit.specs.push(Spec { queue, kind, lease_ms: 30_000, attempts_max: 3, priority: 2, ..Spec::default() });
    for _ in 0..BATCH {
        let payload = body::put(&mut submit.bytes, &[7; 64]);
        submit.tasks.push(TaskRow { payload, ..TaskRow::default() });
    }
    let body = archived(&submit);
    let rows = body::access::<ArchivedSubmit>(&body).expect("archived above");
    let rows = offsets(&body, rows.tasks.iter().map(|row| &row.id));
    Template { body, rows }
}

fn complete_template() -> Template {
    let rows = (0..BATCH).map(|_| CompleteRow::default()).collect();
    let body = archived(&Complete { rows, bytes: Vec::new() });
    let rows = body::access::<ArchivedComplete>(&body).expect("archived above");
    let rows = offsets(&body, rows.rows.iter().map(|row| &row.id));
    Template { body, rows }
}

impl Template {
    /// Overwrites the first bytes of a row.
    fn patch<const N: usize>(&mut self, row: usize, parts: [&[u8]; N]) {
        let mut at = self.rows[row];
        for part in parts {
            self.body[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
    }
}

impl Drive {
    fn new() -> Self {
        let mut config = Config::standalone(NodeId(1), 2 * PARTITIONS);
        // The other half belongs to the node's other shard.
        config.node.client_ports = vec![7_700, 7_701];
        (config.memory_bytes_max, config.kept_max) = (4 << 30, 10_000);
        let mut drive = Self {
            shard: Shard::new(config, START_US),
            effects: Effects::default(),
            now_us: START_US,
            sequence: 0,
            durable: 0,
            partition: 0,
            submit: submit_template(),
            complete: complete_template(),
            assigned: FrameBuffer::new(),
            credit: archived(&Credit { credit: BATCH }),
        };
        drive.shard.start(START_US);
        drive.turn();
        while !drive.shard.is_serving() || drive.durable < drive.shard.last_sequence() {
            drive.durable();
        }
        let mut subscribe = Subscribe { credit: limits::CREDIT_MAX, ..Subscribe::default() };
        subscribe.queues = vec![body::put(&mut subscribe.bytes, b"bench")];
        let (header, body) = (Header::request(Operation::Subscribe, 1, None), archived(&subscribe));
        drive.shard.handle(Input::Frame { conn: WORKER, header, body: &body }, START_US, &mut drive.effects);
        for _ in 0..WARM_UP_TASKS / BATCH {
            drive.life();
        }
        drive
    }

    /// The whole life of one batch. The clock goes as if a million tasks a second came by.
    fn life(&mut self) {
        self.now_us += u64::from(BATCH);
        let partition = PartitionId(self.partition);
        self.partition = (self.partition + 1) % PARTITIONS;
        for row in 0..self.submit.rows.len() {
            self.sequence = self.sequence.wrapping_add(1);
            let id = TaskId::new(self.now_us / 1_000, partition, 0x5A_5A5A_1234, self.sequence);
            self.submit.patch(row, [&id.hi.to_le_bytes(), &id.lo.to_le_bytes()]);
        }
        let header = Header::request(Operation::Submit, 1, Some(partition));
        let body = &self.submit.body;
        self.shard.handle(Input::Frame { conn: CLIENT, header, body }, self.now_us, &mut self.effects);
        self.durable();
        self.answer();
        let header = Header::request(Operation::Credit, 1, None);
        let body = &self.credit;
        self.shard.handle(Input::Frame { conn: WORKER, header, body }, self.now_us, &mut self.effects);
        self.durable();
        if self.shard.next_wake_us().is_some_and(|due_us| due_us <= self.now_us) {
            self.shard.handle(Input::Tick, self.now_us, &mut self.effects);
        }
    }

    /// Ends a turn and keeps what the worker was sent.
    fn turn(&mut self) {
        let sequence = &mut self.durable;
        let log = |number, _, parts: &[&[u8]]| *sequence = black_box((number, parts)).0;
        self.shard.end_turn(self.now_us, &mut self.effects, log);
        let assigned = &mut self.assigned;
        self.effects.drain(|conn, frames| {
            if conn == WORKER {
                assigned.extend_from_slice(frames);
            }
        });
        self.effects.drain_peers(|_, _| {});
    }

    /// Ends a turn; what it logged becomes durable, and that is the next turn.
    fn durable(&mut self) {
        self.turn();
        self.shard.handle(Input::Durable { sequence: self.durable }, self.now_us, &mut self.effects);
        self.turn();
    }

    /// Completes every assignment that was kept.
    fn answer(&mut self) {
        let frames = core::mem::take(&mut self.assigned);
        let mut rest: &[u8] = &frames;
        let mut completed = 0;
        while let Some((frame, used)) = frame::parse(rest).expect("the engine sends frames") {
            rest = &rest[used..];
            if frame.header.is_response() {
                continue;
            }
            let assign = body::access::<ArchivedAssign>(frame.body).expect("the engine sends valid bodies");
            assert_eq!(assign.rows.len(), self.complete.rows.len(), "a batch is assigned whole");
            for (row, lease) in assign.rows.iter().enumerate() {
                let id = TaskId::from(&lease.id);
                let (token, locator) = (lease.token.to_native(), lease.locator.to_native());
                let (hi, lo) = (id.hi.to_le_bytes(), id.lo.to_le_bytes());
                let attempt = lease.attempt.to_native().to_le_bytes();
                self.complete.patch(row, [&hi, &lo, &token.to_le_bytes(), &locator.to_le_bytes(), &attempt]);
            }
            let header = Header::request(Operation::Complete, 1, Some(PartitionId(frame.header.partition)));
            let body = &self.complete.body;
            self.shard.handle(Input::Frame { conn: WORKER, header, body }, self.now_us, &mut self.effects);
            completed += 1;
        }
        assert_eq!(completed, 1, "every batch is assigned at once");
        self.assigned = frames;
        self.assigned.clear();
    }
}

/// What one or more threads did.
#[derive(Clone, Copy, Default)]
struct Rates {
    per_s: f64,
    per_cpu_s: f64,
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).expect("processor time is not negative")
}

/// Repeats `step` on `core` for `span`, once all threads are there; a step does `work` units.
fn drive<T>(item: &mut T, core: usize, barrier: &Barrier, span: Duration, work: f64, step: fn(&mut T)) -> Rates {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).expect("the core is one of this process's");
    barrier.wait();
    let (start, cpu_start) = (Instant::now(), cpu_time());
    let mut done = 0.0;
    while start.elapsed() < span {
        (0..16).for_each(|_| step(item));
        done += 16.0 * work;
    }
    let (wall, cpu) = (start.elapsed(), cpu_time() - cpu_start);
    Rates { per_s: done / wall.as_secs_f64(), per_cpu_s: done / cpu.as_secs_f64() }
}

/// Drives every item on a core of its own, at the same time, and adds up.
fn measure<T: Send>(items: &mut [T], cores: &[usize], span: Duration, work: f64, step: fn(&mut T)) -> Rates {
    let barrier = &Barrier::new(items.len());
    std::thread::scope(|scope| {
        let pairs = items.iter_mut().zip(cores);
        let threads: Vec<_> =
            pairs.map(|(item, &core)| scope.spawn(move || drive(item, core, barrier, span, work, step))).collect();
        let mut sum = Rates::default();
        for thread in threads {
            let rates = thread.join().expect("the load does not panic");
            sum = Rates { per_s: sum.per_s + rates.per_s, per_cpu_s: sum.per_cpu_s + rates.per_cpu_s };
        }
        sum
    })
}

/// Interleaves one and two threads and prints both, and their ratio, by `rate`: best and median.
fn compare<T: Send>(name: &str, items: &mut [T], cores: &[usize], span: Duration, work: f64, step: fn(&mut T)) {
    let (mut one, mut two) = (Vec::new(), Vec::new());
    for repeat in 0..REPEATS {
        let alone = repeat % 2;
        one.push(measure(&mut items[alone..=alone], &cores[alone..=alone], span, work, step));
        two.push(measure(items, cores, span, work, step));
    }
    for (unit, rate) in [("per s", (|rates| rates.per_s) as fn(&Rates) -> f64), ("per cpu s", |rates| rates.per_cpu_s)]
    {
        let sorted = |rates: &[Rates]| {
            let mut sorted: Vec<f64> = rates.iter().map(rate).collect();
            sorted.sort_by(f64::total_cmp);
            (sorted[sorted.len() / 2], sorted[sorted.len() - 1])
        };
        let ((one, one_best), (two, two_best)) = (sorted(&one), sorted(&two));
        print!("{name:6} M {unit:9} one {:7.3} (best {:7.3})  two {:7.3}", one / 1e6, one_best / 1e6, two / 1e6);
        println!(" (best {:7.3})  ratio {:.2} (best {:.2})", two_best / 1e6, two / one, two_best / one_best);
    }
}

fn main() -> anyhow::Result<()> {
    let seconds = std::env::args().nth(1).map_or(Ok(0.5), |text| text.parse())?;
    let span = Duration::from_secs_f64(seconds);
    let allowed = sched_getaffinity(None)?;
    let cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&core| allowed.is_set(core)).take(2).collect();
    anyhow::ensure!(cores.len() == 2, "two cores are needed");
    print!("load average {}", std::fs::read_to_string("/proc/loadavg")?);
    let mut drives = [Drive::new(), Drive::new()];
    compare("tasks", &mut drives, &cores, span, f64::from(BATCH), Drive::life);
    let spin = |state: &mut u64| {
        for _ in 0..10_000 {
            *state = black_box(*state ^ (*state << 13)).rotate_left(7);
        }
    };
    compare("spins", &mut [1, 2], &cores, span, 10_000.0, spin);
    print!("load average {}", std::fs::read_to_string("/proc/loadavg")?);
    Ok(())
}

//! Replays tasks through the dispatcher of a node itself: a shard in virtual time, whose log is taken at once, and one worker that has all
//! the slots. So what comes out is what a node would have done, with its guard, its aging and all that it knows of tasks: their kinds,
//! and how large their payloads are. It never hears of declared limits.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use taskmaster_engine::{Config, ConnId, Effects, Input, Shard, policy_number};
use taskmaster_protocol::body::{
    self, ArchivedAssign, ArchivedRefusal, Complete, CompleteRow, ConfigureQueue, Credit, Extra, LeaseRow, Leases,
    Spec, Submit, Subscribe, TaskRow, queue_field,
};
use taskmaster_protocol::frame::{self, Header};
use taskmaster_protocol::{Body, Code, FrameBuffer, NodeId, Operation, PartitionId, TaskId, limits};
use taskmaster_scheduler::Millis;
use taskmaster_scheduler::order::Policy;
use taskmaster_scheduler::replay::{Job, Trace};

/// When it begins, in microseconds since 1970.
const START_US: u64 = 1_700_000_000_000_000;
const CLIENT: ConnId = ConnId(1);
const WORKER: ConnId = ConnId(2);
const QUEUE: &str = "replay";
/// Most tasks of a frame.
const ROWS_MAX: usize = 512;
/// Leases are extended so long before they end.
const EXTEND_US: u64 = 3_600_000_000;
/// Payloads that are larger are not told apart by a node.
const PAYLOAD_MAX: usize = 300 << 10;

/// How it is replayed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Options {
    pub(super) slots: u32,
    pub(super) policy: Policy,
    /// Sizes of tasks are those of payloads, as magnitudes of base two.
    pub(super) has_payloads: bool,
}

/// An attempt that runs.
#[derive(Clone, Copy)]
struct Running {
    lease: LeaseRow,
    began_us: u64,
}

struct Replay<'a> {
    options: Options,
    jobs: &'a [Job],
    shard: Shard,
    effects: Effects,
    now_us: u64,
    /// Records that the shard wrote, and those of which it was told that they are durable.
    logged: u64,
    durable: u64,
    sent: u64,
    running: HashMap<u32, Running>,
    /// When attempts end, or their leases are to be extended, by task and token.
    events: BinaryHeap<Reverse<(u64, u32, u64)>>,
    /// Places that are free and of which the shard was not told yet.
    free: u32,
    starts: Vec<Millis>,
    refused: Option<String>,
}

fn sentence(bytes: &[u8]) -> String {
    let refusal = body::access::<ArchivedRefusal>(bytes).expect("the shard's own");
    body::text(&refusal.bytes, refusal.message).unwrap_or_default().to_owned()
}

fn at_us(at: Millis) -> u64 {
    START_US + u64::try_from(at).unwrap_or(0) * 1_000
}

/// Replays a trace, whose tasks are submitted at `submits`: when each task started.
///
/// # Errors
/// The sentence with which the shard refused something.
pub(super) fn run(trace: &Trace, submits: &[Millis], options: Options) -> Result<Vec<Millis>, String> {
    let mut order: Vec<u32> = (0..).take(trace.jobs.len()).collect();
    order.sort_by_key(|task| submits[*task as usize]);
    let config = Config { memory_bytes_max: 64 << 30, ..Config::standalone(NodeId(1), 1) };
    let mut replay = Replay {
        options,
        jobs: &trace.jobs,
        shard: Shard::new(config, START_US),
        effects: Effects::default(),
        now_us: START_US,
        logged: 0,
        durable: 0,
        sent: 0,
        running: HashMap::new(),
        events: BinaryHeap::new(),
        free: 0,
        starts: vec![Millis::MAX; trace.jobs.len()],
        refused: None,
    };
    replay.begin();
    let mut waiting = order.as_slice();
    while replay.refused.is_none() {
        let arrival_us = waiting.first().map(|task| at_us(submits[*task as usize]));
        let event_us = replay.events.peek().map(|Reverse((at_us, ..))| *at_us);
        let Some(next_us) = arrival_us.into_iter().chain(event_us).min() else { break };
        replay.pass_until(next_us);
        replay.end_attempts();
        let arrived = waiting.iter().take_while(|task| at_us(submits[**task as usize]) <= next_us).count();
        let (now, later) = waiting.split_at(arrived);
        now.chunks(ROWS_MAX).for_each(|tasks| replay.submit(tasks));
        waiting = later;
    }
    let Replay { starts, refused, .. } = replay;
    refused.map_or(Ok(starts), Err)
}

impl Replay<'_> {
    fn begin(&mut self) {
        self.shard.start(self.now_us);
        self.end_turn();
        let mut queue = ConfigureQueue { set: queue_field::POLICY, ..ConfigureQueue::default() };
        queue.queue = body::put(&mut queue.bytes, QUEUE.as_bytes());
        queue.policy = policy_number(self.options.policy);
        self.send(CLIENT, &queue);
        let cpu_milli = self.options.slots.saturating_mul(1_000);
        let mut worker = Subscribe { credit: self.options.slots, cpu_milli, ..Subscribe::default() };
        let name = body::put(&mut worker.bytes, QUEUE.as_bytes());
        worker.queues.push(name);
        worker.worker = name;
        self.send(WORKER, &worker);
    }

    fn send<B: Body>(&mut self, conn: ConnId, body: &B) {
        self.send_as(B::OPERATION, conn, body);
    }

    fn send_as<B: Body>(&mut self, operation: Operation, conn: ConnId, body: &B) {
        let mut bytes = FrameBuffer::new();
        body.append_to(&mut bytes);
        self.sent += 1;
        let header = Header::request(operation, self.sent, Some(PartitionId(0)));
        self.handle(Input::Frame { conn, header, body: &bytes });
    }

    /// One input, and all that follows from it at once.
    fn handle(&mut self, input: Input<'_>) {
        self.shard.handle(input, self.now_us, &mut self.effects);
        self.end_turn();
    }

    fn end_turn(&mut self) {
        loop {
            let logged = &mut self.logged;
            self.shard.end_turn(self.now_us, &mut self.effects, |sequence, _, _| *logged = sequence);
            self.take_frames();
            if self.durable < self.logged {
                self.durable = self.logged;
                self.shard.handle(Input::Durable { sequence: self.durable }, self.now_us, &mut self.effects);
            } else if self.free > 0 {
                let credit = std::mem::take(&mut self.free);
                let mut bytes = FrameBuffer::new();
                Credit { credit }.append_to(&mut bytes);
                let header = Header::request(Operation::Credit, 0, None);
                let input = Input::Frame { conn: WORKER, header, body: &bytes };
                self.shard.handle(input, self.now_us, &mut self.effects);
            } else {
                return;
            }
        }
    }

    /// What the shard sent: attempts begin, and answers that refuse.
    fn take_frames(&mut self) {
        let mut frames = FrameBuffer::new();
        self.effects.drain(|_, sent| frames.extend_from_slice(sent));
        let mut rest: &[u8] = &frames;
        while let Ok(Some((frame, used))) = frame::parse(rest) {
            rest = &rest[used..];
            let (header, mut bytes) = (frame.header, FrameBuffer::new());
            bytes.extend_from_slice(frame.body);
            if header.is_response() {
                if Code::from_number(header.code) != Code::Ok {
                    self.refused.get_or_insert_with(|| sentence(&bytes));
                }
            } else if header.operation == Operation::Assign.number() {
                self.attempts_begin(&bytes);
            }
        }
    }

    fn attempts_begin(&mut self, bytes: &[u8]) {
        let assign = body::access::<ArchivedAssign>(bytes).expect("the shard's own");
        for row in assign.rows.iter() {
            let lease = LeaseRow {
                id: TaskId::from(&row.id),
                token: row.token.to_native(),
                locator: row.locator.to_native(),
                attempt: row.attempt.to_native(),
            };
            let payload = body::slice(&assign.bytes, row.payload).expect("the shard's own");
            let task = u32::from_le_bytes(*payload.first_chunk().expect("it has its number"));
            self.running.insert(task, Running { lease, began_us: self.now_us });
            self.note(task, lease.token, self.now_us);
        }
    }

    /// When an attempt is to be looked at again that began then, and whose lease began now.
    fn note(&mut self, task: u32, token: u64, began_us: u64) {
        let run_us = u64::try_from(self.jobs[task as usize].run).unwrap_or(0).saturating_mul(1_000);
        let lease_us = u64::from(limits::LEASE_MS_MAX) * 1_000;
        self.events.push(Reverse(((began_us + run_us).min(self.now_us + lease_us - EXTEND_US), task, token)));
    }

    /// Lets time pass, waking the shard when it asks to be woken.
    fn pass_until(&mut self, until_us: u64) {
        while let Some(wake_us) = self.shard.next_wake_us().filter(|&wake_us| wake_us < until_us) {
            self.now_us = self.now_us.max(wake_us);
            self.handle(Input::Tick);
        }
        self.now_us = until_us;
    }

    /// Attempts whose time has come end, or have their leases extended.
    fn end_attempts(&mut self) {
        let (mut complete, mut extend) = (Complete::default(), Leases::default());
        while let Some(&Reverse((at_us, task, token))) = self.events.peek()
            && at_us <= self.now_us
            && complete.rows.len() < ROWS_MAX
        {
            self.events.pop();
            let running = self.running.get(&task).filter(|running| running.lease.token == token);
            let Some(&Running { lease, began_us }) = running else { continue };
            let run_us = u64::try_from(self.jobs[task as usize].run).unwrap_or(0) * 1_000;
            if began_us + run_us > self.now_us {
                extend.rows.push(lease);
                self.note(task, token, began_us);
                continue;
            }
            let LeaseRow { id, token, locator, attempt } = lease;
            complete.rows.push(CompleteRow { id, token, locator, attempt, result: body::Span::default() });
            self.running.remove(&task);
            self.starts[task as usize] = Millis::try_from((began_us - START_US) / 1_000).unwrap_or(Millis::MAX);
            self.free += 1;
        }
        if !extend.rows.is_empty() {
            self.send_as(Operation::Extend, WORKER, &extend);
        }
        if !complete.rows.is_empty() {
            self.send(WORKER, &complete);
        }
    }

    fn submit(&mut self, tasks: &[u32]) {
        let mut submit = Submit::default();
        let mut specs: HashMap<(String, u32), u32> = HashMap::new();
        for &task in tasks {
            let job = &self.jobs[task as usize];
            let size = if self.options.has_payloads { 0 } else { job.size };
            let [group, kind, queue, partition] = job.keys;
            let kind = format!("{}-{group}-{kind}-{queue}-{partition}-{size}", job.user);
            let spec = *specs.entry((kind.clone(), job.width)).or_insert_with(|| {
                let spec = Spec {
                    queue: body::put(&mut submit.bytes, QUEUE.as_bytes()),
                    kind: body::put(&mut submit.bytes, kind.as_bytes()),
                    cpu_milli: if job.width > 1 { job.width.saturating_mul(1_000) } else { 0 },
                    lease_ms: limits::LEASE_MS_MAX,
                    attempts_max: 1,
                    priority: 2,
                    retention_ms: 1,
                    ..Spec::default()
                };
                submit.specs.push(spec);
                u32::try_from(submit.specs.len() - 1).expect("few")
            });
            let mut payload = task.to_le_bytes().to_vec();
            if self.options.has_payloads {
                // The least that is of the magnitude, and one more: a node's steps are over powers of two.
                let bytes = (1usize << job.size.min(20)) / 2 + 1;
                payload.resize(bytes.clamp(payload.len(), PAYLOAD_MAX), 0);
            }
            let payload = body::put(&mut submit.bytes, &payload);
            // A place from 1 on.
            let mut extra = 0;
            if let Some(due) = job.due().filter(|_| self.options.policy == Policy::Deadline) {
                let deadline_ms = (self.now_us / 1_000).saturating_add(u64::try_from(due).unwrap_or(0));
                submit.extras.push(Extra { deadline_ms, ..Extra::default() });
                extra = u32::try_from(submit.extras.len()).expect("few");
            }
            let id = TaskId::new(self.now_us / 1_000, PartitionId(0), 1, task + 1);
            submit.tasks.push(TaskRow { id, payload, spec, extra });
        }
        self.send(CLIENT, &submit);
    }
}

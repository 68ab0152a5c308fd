//! Random lives of a shard: slow disks, crashes, snapshots, lost workers, operators at work. Judged by [`Model`].

use std::collections::HashMap;

use proptest::prelude::*;
use taskmaster_engine::{Config, Input, Known, SnapshotStep, State};
use taskmaster_protocol::body::{BatchReply, Cancel, Leases, Retry, queue_field};
use taskmaster_protocol::frame::FLAG_RESEND;
use taskmaster_protocol::{Code, FrameBuffer, Operation, TaskId};

use crate::job::{Job, body_of, id, job, workflow_of};
use crate::model::Model;
use crate::random::Random;
use crate::recovery::durable_state;
use crate::world::{CLIENT, Chunks, Lease, Message, World, complete_body, config, fail_body, leases_in, subscription};

const PARTITIONS: u16 = 3;
const QUEUES: [&str; 2] = ["mail", "news"];
/// What a lost worker's lease lasts at least, in microseconds.
const GRACE_US: u64 = 2_000_000;

/// A request that is not answered yet.
enum Asked {
    Submit(Vec<Job>),
    Complete(Lease, Vec<u8>),
    Extend(Lease, u64),
    Other,
}

/// A snapshot, being written or whole.
struct Snapshot {
    sequence: u64,
    chunks: Chunks,
    is_whole: bool,
}

struct Chaos {
    world: World,
    model: Model,
    random: Random,
    asked: HashMap<u64, Asked>,
    /// Every lease ever heard of, valid or not: workers try them all.
    leases: Vec<Lease>,
    workers: Vec<u64>,
    next_number: u32,
    next_conn: u64,
    snapshot: Option<Snapshot>,
    hash: u64,
}

impl Chaos {
    fn new(seed: u64) -> Self {
        Self {
            world: World::with(Config { kept_max: 1_000_000, ..config(PARTITIONS) }),
            model: Model::default(),
            random: Random::new(seed),
            asked: HashMap::new(),
            leases: Vec::new(),
            workers: Vec::new(),
            next_number: 0,
            next_conn: 100,
            snapshot: None,
            hash: seed,
        }
    }

    fn step(&mut self) {
        match self.random.below(100) {
            0..=14 => self.submit(),
            15..=18 => self.submit_workflow(),
            19..=21 => self.resubmit(),
            22..=39 => self.make_durable(),
            40..=49 => {
                let ms = *self.random.pick(&[1, 20, 150, 700, 3_000]);
                self.advance_ms(ms, |_| {});
            }
            50..=54 => self.connect(),
            55..=56 => self.disconnect(),
            57..=62 => {
                if let Some(&conn) = self.workers.first() {
                    let credit = 1 + self.random.below(6);
                    self.world.credit(conn, credit);
                    self.workers.rotate_left(1);
                }
            }
            63..=88 => self.work(),
            89..=91 => self.cancel(),
            92..=93 => self.retry(),
            94 => self.pause(),
            95..=97 => self.snapshot_slice(),
            _ => {
                if self.random.once_in(3) {
                    self.crash();
                }
            }
        }
        self.listen();
    }

    fn new_job(&mut self, partition: u16) -> Job {
        let random = &mut self.random;
        self.next_number += 1;
        let mut made = job(random.pick::<&str>(&QUEUES), self.next_number).in_partition(partition);
        made = made.attempts(u16::try_from(1 + random.below(3)).unwrap());
        made = made.lease_ms(*random.pick(&[200, 2_000, 30_000])).priority(u8::try_from(random.below(4)).unwrap());
        made = made.retention_ms(u32::MAX);
        if random.once_in(4) {
            made = made.backoff_ms(1 + random.below(500), 2_000);
        }
        if random.once_in(5) {
            made = made.delay_ms(random.below(2_000).into());
        }
        if random.once_in(9) {
            made = made.deadline_in_ms(u64::from(2_001 + random.below(9_000)));
        }
        made
    }

    fn submit(&mut self) {
        let partition = u16::try_from(self.random.below(u32::from(PARTITIONS))).unwrap();
        let count = 1 + self.random.below(5);
        let mut batch = Vec::new();
        for _ in 0..count {
            let mut made = self.new_job(partition);
            if self.random.once_in(4) {
                made =
                    made.delay_ms(0).memo("1", *self.random.pick(&[0, 0, 500]), &format!("p{}", self.random.below(3)));
            } else if self.random.once_in(4) {
                made = made.unique(&format!("u{}", self.random.below(4)), 0);
                // Keys are scoped by queue and concurrency key; the model knows one scope.
                made.queue = "mail".to_owned();
            } else if self.random.once_in(3) {
                let limit = 1 + self.random.below(2);
                made = made.concurrency(&format!("{limit}-{}", self.random.below(2)), limit);
                made.queue = "news".to_owned();
            }
            self.model.submitted(&made, None, Vec::new());
            batch.push(made);
        }
        let correlation = match batch.iter().position(|made| made.spec.memo == 1 && self.random.once_in(4)) {
            Some(row) => {
                let result = format!("known {}", self.next_number).into_bytes();
                self.model.made(&batch[row], &result);
                let made_us = self.world.now_us - 1_000 * u64::from(self.random.below(1_000));
                let known = Known { row: u32::try_from(row).unwrap(), of: id(7, 7), made_us, result };
                self.world.send_known(&batch, &[known])
            }
            None => self.world.send(CLIENT, partition, &body_of(&batch)),
        };
        self.asked.insert(correlation, Asked::Submit(batch));
    }

    fn submit_workflow(&mut self) {
        let partition = u16::try_from(self.random.below(u32::from(PARTITIONS))).unwrap();
        let workflow = id(partition, 500_000 + self.next_number);
        let continues = self.random.once_in(4);
        if continues {
            self.model.loose.insert(workflow);
        }
        let mut steps: Vec<Job> = Vec::new();
        for row in 0..1 + self.random.below(8) {
            let step = self.new_job(partition);
            let needs: Vec<u32> = (0..row).filter(|_| self.random.once_in(3)).collect();
            let names = needs.iter().map(|&need| steps[need as usize].id).collect();
            let step = step.needs(&needs);
            self.model.submitted(&step, Some(workflow), names);
            steps.push(step);
        }
        let correlation = self.world.send(CLIENT, partition, &workflow_of(workflow, "w", continues, &steps));
        self.asked.insert(correlation, Asked::Submit(steps));
    }

    fn any_task(&mut self) -> Option<TaskId> {
        let count = self.model.tasks.len();
        let at = self.random.index(count.max(1));
        self.model.tasks.keys().nth(at).copied()
    }

    fn resubmit(&mut self) {
        let Some(task) = self.any_task() else { return };
        let known = &self.model.tasks[&task];
        if known.workflow.is_some() {
            return;
        }
        let batch = vec![known.job.clone()];
        let flags = if self.random.once_in(2) { FLAG_RESEND } else { 0 };
        let correlation = self.world.send_as(Operation::Submit, flags, CLIENT, task.partition().0, &body_of(&batch));
        self.asked.insert(correlation, Asked::Submit(batch));
    }

    /// Lets time pass, hearing everything when it is said.
    fn advance_ms(&mut self, ms: u64, after: impl Fn(&mut World)) {
        let target_us = self.world.now_us + ms * 1_000;
        while let Some(wake_us) = self.world.shard.next_wake_us().filter(|&wake_us| wake_us <= target_us) {
            self.world.now_us = self.world.now_us.max(wake_us);
            self.world.handle(Input::Tick);
            after(&mut self.world);
            self.listen();
        }
        self.world.now_us = target_us;
    }

    fn make_durable(&mut self) {
        let waiting = self.world.log.len() - self.world.durable;
        let count = if self.random.once_in(2) { waiting } else { self.random.index(waiting + 1) };
        let count = self.world.durable + count;
        self.world.make_all_durable(count);
    }

    fn connect(&mut self) {
        let conn = if self.random.once_in(4) && !self.workers.is_empty() {
            *self.random.pick(&self.workers)
        } else {
            self.next_conn += 1;
            self.workers.push(self.next_conn);
            self.next_conn
        };
        let queues: &[&str] = if self.random.once_in(3) { &QUEUES[..1] } else { &QUEUES };
        let credit = self.random.below(8);
        self.world.send(conn, 0, &subscription(conn, queues, credit, "", |_| {}));
    }

    fn disconnect(&mut self) {
        if self.workers.is_empty() {
            return;
        }
        let position = self.random.index(self.workers.len());
        let conn = self.workers.swap_remove(position);
        self.model.lost(conn, self.world.now_us + GRACE_US);
        self.world.disconnect(conn);
    }

    /// A worker does something about a lease it has, or once had.
    fn work(&mut self) {
        if self.leases.is_empty() {
            return;
        }
        let newest = self.leases.len().saturating_sub(8);
        let from = if self.random.once_in(6) { 0 } else { newest };
        let at = from + self.random.index(self.leases.len() - from);
        let lease = self.leases[at].clone();
        let (partition, leases) = (lease.id.partition().0, Leases { rows: vec![lease.row()] });
        let what = self.random.below(10);
        if what <= 7 && what != 6 {
            self.model.may_have_ended(lease.id);
        }
        let (correlation, asked) = match what {
            0..=4 => {
                let result = format!("{} under {}", lease.id, lease.token).into_bytes();
                let body = complete_body(&[(&lease, &result)]);
                self.model.made(&self.model.tasks[&lease.id].job.clone(), &result);
                (self.world.send(lease.conn, partition, &body), Asked::Complete(lease, result))
            }
            5 | 7 => {
                let body = fail_body(&lease, "x", "m", b"", self.random.once_in(5));
                (self.world.send(lease.conn, partition, &body), Asked::Other)
            }
            6 => {
                let until_us = self.world.now_us + u64::from(self.model.tasks[&lease.id].job.spec.lease_ms) * 1_000;
                let correlation = self.world.send_as(Operation::Extend, 0, lease.conn, partition, &leases);
                (correlation, Asked::Extend(lease, until_us))
            }
            _ => {
                self.model.may_have_ended(lease.id);
                (self.world.send_as(Operation::Release, 0, lease.conn, partition, &leases), Asked::Other)
            }
        };
        self.asked.insert(correlation, asked);
    }

    fn cancel(&mut self) {
        let Some(task) = self.any_task() else { return };
        let known = &self.model.tasks[&task];
        let body = match known.workflow {
            Some(workflow) if self.random.once_in(2) => Cancel { ids: vec![workflow], workflows: 1 },
            _ => Cancel { ids: vec![task], workflows: 0 },
        };
        let workflow = known.workflow;
        let ended: Vec<TaskId> = match workflow {
            Some(_) => self.model.tasks.iter().filter(|(_, it)| it.workflow == workflow).map(|(id, _)| *id).collect(),
            None => vec![task],
        };
        ended.into_iter().for_each(|id| self.model.may_have_ended(id));
        self.world.send(CLIENT, task.partition().0, &body);
    }

    fn retry(&mut self) {
        let Some(task) = self.any_task() else { return };
        if let Some(workflow) = self.model.tasks[&task].workflow {
            self.model.loose.insert(workflow);
        }
        self.model.retries += 1;
        self.model.may_have_ended(task);
        self.world.send(CLIENT, task.partition().0, &Retry { ids: vec![task] });
    }

    fn pause(&mut self) {
        let paused = self.random.below(2);
        for partition in 0..PARTITIONS {
            let mut body = taskmaster_protocol::body::ConfigureQueue {
                set: queue_field::PAUSED | queue_field::CONCURRENCY,
                paused,
                concurrency: 5,
                ..Default::default()
            };
            body.queue = taskmaster_protocol::body::put(&mut body.bytes, b"mail");
            self.world.send(CLIENT, partition, &body);
        }
    }

    fn snapshot_slice(&mut self) {
        match &mut self.snapshot {
            Some(snapshot) if !snapshot.is_whole => {
                let mut chunk = FrameBuffer::new();
                match self.world.shard.snapshot_next(&mut chunk) {
                    SnapshotStep::Chunk(tag) => snapshot.chunks.push((tag, chunk)),
                    SnapshotStep::End => snapshot.is_whole = true,
                    step => panic!("{step:?}"),
                }
            }
            _ => {
                self.world.shard.snapshot_begin();
                let sequence = self.world.durable as u64;
                self.snapshot = Some(Snapshot { sequence, chunks: Vec::new(), is_whole: false });
            }
        }
    }

    /// Loses what is not durable, and every connection.
    fn crash(&mut self) {
        self.world.crash();
        if let Some(snapshot) = self.snapshot.take().filter(|snapshot| snapshot.is_whole) {
            let replayed = durable_state(&mut self.world);
            self.world.restart(Some((snapshot.sequence, &snapshot.chunks)));
            assert_eq!(durable_state(&mut self.world), replayed, "snapshot and tail tell what the whole log tells");
        }
        self.asked.clear();
        self.workers.clear();
        self.model.crashed();
        self.check();
    }

    /// Hears what the shard said.
    fn listen(&mut self) {
        // Connections are not ordered among each other: a revocation may overtake, or be overtaken.
        let is_revocation = |message: &&Message| message.header.operation == Operation::Revoke.number();
        for message in self.world.inbox.iter().filter(is_revocation) {
            let body: Leases = message.read();
            body.rows.iter().for_each(|row| self.model.revoked(row.id, row.token));
        }
        while let Some(message) = self.world.inbox.pop_front() {
            for word in [message.conn, message.header.correlation, message.body.len() as u64] {
                self.hash = (self.hash ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(23);
            }
            if message.header.is_response() {
                self.answered(&message);
            } else if message.header.operation == Operation::Assign.number() {
                for lease in leases_in(&message) {
                    self.assigned(lease);
                }
            }
        }
    }

    fn assigned(&mut self, lease: Lease) {
        let until_us = self.world.now_us + u64::from(self.model.tasks[&lease.id].job.spec.lease_ms) * 1_000;
        self.model.leased(&lease, self.world.now_us, until_us);
        let world = &mut self.world;
        self.model.check_needs(lease.id, |need| world.find_without_settling(need).unwrap().state);
        self.leases.push(lease);
    }

    fn answered(&mut self, message: &Message) {
        let Some(asked) = self.asked.remove(&message.header.correlation) else { return };
        match asked {
            Asked::Submit(batch) => {
                let reply: BatchReply = message.read();
                let code_of =
                    |row: usize| reply.exceptions.iter().find(|it| it.index as usize == row).map(|it| it.code);
                for (row, made) in batch.iter().enumerate() {
                    match code_of(row).map(Code::from_number) {
                        None | Some(Code::Duplicate) => self.model.acknowledged(made.id),
                        Some(Code::UniqueConflict) => assert!(!made.unique_key.is_empty()),
                        Some(code) => panic!("{code} for {}", made.id),
                    }
                }
            }
            Asked::Complete(lease, result) => {
                let code = crate::world::single(&message.read());
                self.model.completion_answered(lease.id, lease.token, &result, code);
            }
            Asked::Extend(lease, until_us) => {
                if crate::world::single(&message.read()) == Code::Ok {
                    self.model.extended(lease.id, lease.token, until_us);
                }
            }
            Asked::Other => {}
        }
    }

    fn check(&mut self) {
        for partition in 0..PARTITIONS {
            let unsettled = self.world.durable;
            let (log, durable) = (self.world.log.len(), unsettled);
            self.world.durable = log;
            let tasks = self.world.list(partition, 0);
            let mut counts = [0; 8];
            for (_, queue) in self.world.queues(partition) {
                (0..8).for_each(|state| counts[state] += queue.counts[state]);
            }
            self.world.durable = durable;
            self.model.check(&tasks, partition, counts);
        }
    }

    /// Nothing stands in the way any more: everything must come to its end.
    fn finish(&mut self) {
        self.world.configure("mail", queue_field::PAUSED, |queue| queue.paused = 0);
        self.listen();
        self.next_conn += 1;
        self.world.worker(self.next_conn, &QUEUES, 1_000_000);
        for _ in 0..200 {
            self.listen();
            let from = self.leases.len().saturating_sub(2_000);
            for lease in self.leases.split_off(from) {
                let result = b"at last".to_vec();
                self.model.made(&self.model.tasks[&lease.id].job.clone(), &result);
                let partition = lease.id.partition().0;
                self.model.may_have_ended(lease.id);
                let correlation = self.world.send(lease.conn, partition, &complete_body(&[(&lease, &result)]));
                self.asked.insert(correlation, Asked::Complete(lease, result));
            }
            self.world.settle();
            self.listen();
            self.advance_ms(1_000, World::settle);
            if self.world.shard.stats().unfinished == 0 {
                break;
            }
        }
        self.listen();
        let stats = self.world.shard.stats();
        assert_eq!((stats.unfinished, self.world.shard.leased()), (0, 0), "something never came to its end");
        for (id, known) in &self.model.tasks {
            let task = self.world.find_without_settling(*id).filter(|task| task.state == State::Succeeded);
            if let Some(task) = task.filter(|_| known.job.spec.memo == 1) {
                assert!(self.model.was_made(&known.job, &task.result), "nothing like {id} came to its result");
            }
        }
        self.check();
    }
}

fn live(seed: u64, steps: u32) -> (u64, u64) {
    let mut chaos = Chaos::new(seed);
    for step in 0..steps {
        chaos.step();
        if step % 16 == 0 {
            chaos.check();
        }
    }
    chaos.finish();
    let log = chaos.world.log.iter().fold(chaos.hash, |hash, entry| {
        entry.bytes.iter().fold(hash, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3))
    });
    (log, chaos.model.completions)
}

#[test]
fn random_lives_keep_every_promise() {
    let mut completions = 0;
    for seed in 0..2_000 {
        let life = std::panic::catch_unwind(|| live(seed, 150));
        completions += life.unwrap_or_else(|_| panic!("seed {seed}")).1;
    }
    assert!(completions > 50_000, "{completions}");
}

#[test]
fn long_random_lives_keep_every_promise() {
    for seed in 10_000..10_020 {
        let life = std::panic::catch_unwind(|| live(seed, 3_000));
        life.unwrap_or_else(|_| panic!("seed {seed}"));
    }
}

#[test]
fn the_same_seed_gives_the_same_log_and_the_same_frames() {
    for seed in 0..20 {
        assert_eq!(live(seed, 400), live(seed, 400), "seed {seed}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn lives_of_any_length_keep_every_promise(seed: u64, steps in 1u32..600) {
        live(seed, steps);
    }
}

//! Shards of one node that share a queue's limits by letters, delivered whenever the mesh likes.

use std::collections::VecDeque;

use taskmaster_protocol::body::{ConfigureQueue, queue_field};

use crate::job::{Job, job, jobs};
use crate::random::Random;
use crate::world::{CLIENT, Lease, Letter, START_US, World, config_of_shard};

const WORKER: u64 = 10;

/// Shard `n` has partition `n`. Letters between two shards keep their order.
struct Node {
    shards: Vec<World>,
    mesh: Vec<VecDeque<Letter>>,
    running: Vec<Lease>,
    started: u64,
}

impl Node {
    fn new(count: u16) -> Self {
        let pairs = usize::from(count) * usize::from(count);
        let mut node = Self {
            shards: (0..count).map(|number| World::with(config_of_shard(number, count))).collect(),
            mesh: (0..pairs).map(|_| VecDeque::new()).collect(),
            running: vec![],
            started: 0,
        };
        node.collect();
        node.deliver_all();
        node
    }

    fn configure(&mut self, change: impl Fn(&mut ConfigureQueue)) {
        for (partition, world) in (0u16..).zip(&mut self.shards) {
            let mut body = ConfigureQueue::default();
            body.queue = taskmaster_protocol::body::put(&mut body.bytes, b"mail");
            change(&mut body);
            world.call(CLIENT, partition, &body);
        }
        self.collect();
    }

    fn submit(&mut self, shard: u16, batch: Vec<Job>) {
        let batch: Vec<Job> = batch.into_iter().map(|job| job.in_partition(shard)).collect();
        self.shards[usize::from(shard)].submit(&batch);
        self.collect();
    }

    fn worker(&mut self, shard: usize, credit: u32, cpu_milli: u32) {
        let partition = u16::try_from(shard).unwrap();
        let body = crate::world::subscription(WORKER, &["mail"], credit, "", |body| body.cpu_milli = cpu_milli);
        self.shards[shard].call(WORKER, partition, &body);
        self.collect();
    }

    fn collect(&mut self) {
        let count = self.shards.len();
        for world in &mut self.shards {
            for letter in world.letters() {
                self.mesh[usize::from(letter.from.shard) * count + usize::from(letter.to.shard)].push_back(letter);
            }
            let leases = world.leases();
            self.started += leases.len() as u64;
            self.running.extend(leases);
        }
    }

    /// Delivers one letter of some pair of shards; `false` when none is under way.
    fn deliver(&mut self, random: &mut Random) -> bool {
        let pairs: Vec<usize> = (0..self.mesh.len()).filter(|&pair| !self.mesh[pair].is_empty()).collect();
        if pairs.is_empty() {
            return false;
        }
        let letter = self.mesh[*random.pick(&pairs)].pop_front().unwrap();
        self.shards[usize::from(letter.to.shard)].take_letter(&letter);
        self.collect();
        true
    }

    fn deliver_all(&mut self) {
        let random = &mut Random::new(1);
        while self.deliver(random) {}
    }

    fn end_one(&mut self, random: &mut Random) {
        if !self.running.is_empty() {
            let lease = self.running.swap_remove(random.index(self.running.len()));
            let world = &mut self.shards[usize::from(lease.id.partition().0)];
            assert_eq!(world.complete(&lease, b"r"), taskmaster_protocol::Code::Ok);
            self.collect();
        }
    }

    fn leased(&self) -> u64 {
        self.shards.iter().map(|world| world.shard.leased()).sum()
    }

    fn unfinished(&self) -> u64 {
        self.shards.iter().map(|world| world.shard.stats().unfinished).sum()
    }

    fn advance_ms(&mut self, ms: u64) {
        self.shards.iter_mut().for_each(|world| world.advance_ms(ms));
        self.collect();
    }
}

#[test]
fn a_concurrency_limit_holds_over_all_shards_and_every_task_runs() {
    for seed in 0..300 {
        let random = &mut Random::new(seed);
        let count = u16::try_from(1 + random.below(4)).unwrap();
        let limit = 1 + random.below(6);
        let mut node = Node::new(count);
        node.configure(|body| (body.set, body.concurrency) = (queue_field::CONCURRENCY, limit));
        let mut number = 0;
        for _ in 0..400 {
            match random.below(10) {
                0 => {
                    let shard = u16::try_from(random.below(u32::from(count))).unwrap();
                    node.submit(
                        shard,
                        jobs("mail", number, 1 + random.below(4))
                            .into_iter()
                            .map(|job| job.lease_ms(80_000_000))
                            .collect(),
                    );
                    number += 4;
                }
                1 => node.worker(random.index(usize::from(count)), random.below(5), 0),
                2..=6 => drop(node.deliver(random)),
                _ => node.end_one(random),
            }
            assert!(node.leased() <= u64::from(limit), "seed {seed}: {} of at most {limit}", node.leased());
        }
        (0..usize::from(count)).for_each(|shard| node.worker(shard, 1_000, 0));
        for _ in 0..5_000 {
            node.deliver(random);
            node.end_one(random);
            assert!(node.leased() <= u64::from(limit), "seed {seed}");
        }
        assert_eq!(node.unfinished(), 0, "seed {seed}: a shard starves with a limit of {limit}");
    }
}

#[test]
fn a_rate_holds_over_all_shards_and_is_reached() {
    let random = &mut Random::new(9);
    let mut node = Node::new(3);
    let set = queue_field::RATE;
    node.configure(|body| (body.set, body.rate_milli_per_s, body.rate_burst) = (set, 50_000, 5));
    for shard in 0..3 {
        node.worker(usize::from(shard), 100_000, 0);
        node.submit(shard, jobs("mail", 0, 2_000));
    }
    for elapsed_ms in (0..20_000).step_by(10) {
        node.deliver_all();
        while node.running.len() > 3 {
            node.end_one(random);
        }
        assert!(node.started * 1_000 <= 5_000 + elapsed_ms * 50 + 1_000, "{} after {elapsed_ms} ms", node.started);
        node.advance_ms(10);
    }
    assert!(node.started > 950, "{} of about 1000", node.started);
    let now_us = node.shards[0].now_us;
    assert!(now_us >= START_US + 20_000_000);
}

#[test]
fn permits_are_not_held_by_a_shard_whose_workers_have_no_room() {
    let mut node = Node::new(2);
    node.configure(|body| (body.set, body.concurrency) = (queue_field::CONCURRENCY, 2));
    let heavy = || job("mail", 0).with_spec(|spec| spec.cpu_milli = 8_000);
    for shard in 0..2 {
        node.worker(usize::from(shard), 10, 4_000);
        node.submit(shard, vec![heavy()]);
        node.deliver_all();
    }
    assert_eq!(node.started, 0);
    for shard in 0..2 {
        node.submit(shard, jobs("mail", 10, 5));
    }
    let random = &mut Random::new(1);
    for _ in 0..20 {
        node.deliver_all();
        node.end_one(random);
    }
    assert_eq!((node.started, node.unfinished()), (10, 2));
}

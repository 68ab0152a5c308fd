//! Limits of a queue over the shards of a node: shared by demand, and never exceeded.

use proptest::prelude::*;
use taskmaster_protocol::body::queue_field;

use crate::job::{Job, jobs};
use crate::world::{Lease, Letter, World, config_of_shard};

const WORKER: u64 = 10;

/// Shards whose letters travel when a test says so; shard `n` has partition `n`.
struct Node {
    shards: Vec<World>,
    travelling: Vec<Letter>,
    running: Vec<(usize, Lease)>,
}

impl Node {
    fn new(count: u16) -> Self {
        let shards = (0..count).map(|number| World::with(config_of_shard(number, count))).collect();
        let mut node = Self { shards, travelling: Vec::new(), running: Vec::new() };
        node.collect();
        node.settle();
        node
    }

    fn each(&mut self, mut change: impl FnMut(&mut World)) {
        self.shards.iter_mut().for_each(&mut change);
        self.collect();
    }

    fn collect(&mut self) {
        for (number, world) in self.shards.iter_mut().enumerate() {
            self.running.extend(world.leases().into_iter().map(|lease| (number, lease)));
            self.travelling.extend(world.letters());
        }
    }

    fn deliver(&mut self, count: usize) {
        for letter in self.travelling.drain(..count.min(self.travelling.len())).collect::<Vec<_>>() {
            self.shards[usize::from(letter.to.shard)].take_letter(&letter);
        }
        self.collect();
    }

    fn settle(&mut self) {
        while !self.travelling.is_empty() {
            self.deliver(usize::MAX);
        }
    }

    fn complete(&mut self, index: usize) {
        let (shard, lease) = self.running.remove(index);
        self.shards[shard].complete(&lease, b"");
        self.collect();
    }
}

/// Submits to the shard's own partition.
fn submit(world: &mut World, jobs: Vec<Job>) {
    let partition = world.config.number;
    world.submit(&jobs.into_iter().map(|job| job.in_partition(partition)).collect::<Vec<_>>());
}

#[test]
fn one_permit_serves_every_shard_in_turn() {
    let mut node = Node::new(3);
    node.each(|world| world.configure("mail", queue_field::CONCURRENCY, |queue| queue.concurrency = 1));
    node.each(|world| world.worker(WORKER, &["mail"], 100));
    node.each(|world| submit(world, jobs("mail", 0, 4)));
    let mut done = 0;
    node.settle();
    while !node.running.is_empty() {
        assert_eq!(node.running.len(), 1);
        node.complete(0);
        done += 1;
        node.settle();
    }
    assert_eq!(done, 12);
}

#[test]
fn a_rate_is_that_of_the_node_and_not_of_each_shard() {
    let mut node = Node::new(2);
    node.each(|world| {
        world.configure("mail", queue_field::RATE, |queue| (queue.rate_milli_per_s, queue.rate_burst) = (10_000, 2));
    });
    node.each(|world| world.worker(WORKER, &["mail"], 1_000));
    node.each(|world| {
        submit(world, jobs("mail", 0, 100).into_iter().map(|job| job.lease_ms(80_000_000)).collect());
    });
    node.settle();
    for tenth in 1..=100 {
        node.each(|world| world.advance_ms(100));
        node.settle();
        assert!(node.running.len() <= 2 + tenth, "{} after {tenth} tenths", node.running.len());
    }
    assert!(node.running.len() >= 95, "{}", node.running.len());
    assert!(
        (0..2).all(|shard| node.running.iter().filter(|(at, _)| *at == shard).count() > 20),
        "both shards start tasks"
    );
}

proptest! {
    #[test]
    fn a_concurrency_limit_holds_whatever_the_order_of_events(
        limit in 1u32..6,
        counts in proptest::collection::vec(0u32..20, 3),
        steps in proptest::collection::vec((0u8..2, 0usize..8), 0..200),
    ) {
        let mut node = Node::new(3);
        node.each(|world| world.configure("mail", queue_field::CONCURRENCY, |queue| queue.concurrency = limit));
        node.each(|world| world.worker(WORKER, &["mail"], 100));
        for (world, count) in node.shards.iter_mut().zip(&counts) {
            if *count > 0 {
                submit(world, jobs("mail", 0, *count));
            }
        }
        node.collect();
        let mut done = 0;
        for (what, number) in steps {
            if what == 0 {
                node.deliver(number);
            } else if number < node.running.len() {
                node.complete(number);
                done += 1;
            }
            prop_assert!(node.running.len() <= limit as usize);
        }
        node.settle();
        while !node.running.is_empty() {
            prop_assert!(node.running.len() <= limit as usize);
            node.complete(0);
            node.settle();
            done += 1;
        }
        prop_assert_eq!(done, counts.iter().sum::<u32>());
    }
}

//! A snapshot stands for the moment of its beginning: what is restored from it has the digest that replicas compare, whatever happens
//! while it is written. And what a node left, snapshot and log, becomes the beginning of a new cluster.

use taskmaster_engine::checkpoint::{BatchBounds, Checkpoints, ForStore, Stored};
use taskmaster_engine::{Config, Input, Positions, Shard, SnapshotStep};
use taskmaster_protocol::{FrameBuffer, NodeId, PartitionId, TaskId};

use crate::job::{Job, id, job};
use crate::random::Random;
use crate::world::{Lease, World, config};

const WORKER: u64 = 10;
const SEEDS: u64 = 60;

/// Somebody who does anything.
struct Hands {
    random: Random,
    next_number: u32,
    leases: Vec<Lease>,
    /// What the store has.
    stored: u64,
}

impl Hands {
    fn job(&mut self) -> Job {
        self.next_number += 1;
        let retention_ms = *self.random.pick(&[0, 500, 2_000, 60_000]);
        let mut made = job("mail", self.next_number).attempts(1).retention_ms(retention_ms);
        // Few fit into a slice.
        made.payload.resize(8 << 10, 0);
        made
    }

    fn any(&mut self) -> TaskId {
        id(0, 1 + self.random.below(self.next_number + 1))
    }

    fn step(&mut self, world: &mut World) {
        match self.random.below(16) {
            0..=3 => {
                let made = self.job();
                world.submit_one(made);
            }
            4 => {
                let workflow = id(0, 100_000 + self.next_number);
                let first = self.job();
                let mut steps = vec![first];
                for row in 0..self.random.below(4) {
                    let needs: Vec<u32> = (0..=row).filter(|_| self.random.once_in(2)).collect();
                    steps.push(self.job().needs(&needs));
                }
                world.workflow(workflow, self.random.once_in(2), &steps);
            }
            5..=9 => {
                self.leases.extend(world.leases());
                if !self.leases.is_empty() {
                    let lease = self.leases.swap_remove(self.random.index(self.leases.len()));
                    if self.random.once_in(3) {
                        world.fail(&lease, "exit:1");
                    } else {
                        world.complete(&lease, b"result");
                    }
                }
            }
            10 => {
                let task = self.any();
                world.cancel(&[task]);
            }
            11..=12 => {
                let task = self.any();
                world.retry(&[task]);
            }
            13 => self.checkpoint(world),
            _ => world.advance_ms(u64::from(self.random.below(700))),
        }
    }

    fn checkpoint(&mut self, world: &mut World) {
        let bounds = BatchBounds { tasks_min: 0, tasks: 1 + self.random.index(8), bytes: 1 << 20 };
        let (term, upto) = match world.shard.next_for_store(bounds) {
            Some(ForStore::Open { term, .. }) => (term, self.stored),
            Some(ForStore::Batch(batch)) => (batch.term, batch.to),
            None => return,
        };
        self.stored = upto;
        world.handle(Input::Stored { partition: PartitionId(0), term, stored: Stored::Upto(upto) });
        world.settle();
    }
}

fn digest(world: &World) -> u64 {
    world.shard.digest(PartitionId(0)).unwrap().1
}

#[test]
fn what_a_snapshot_restores_is_the_state_of_its_moment_and_leads_to_the_same_end() {
    for seed in 0..SEEDS {
        let mut random = Random::new(seed);
        let checkpoints = random.once_in(2).then(|| Checkpoints {
            waiting_max: 5 + random.below(60),
            waiting_kib_max: 1 << 20,
            kept_ms: *random.pick(&[100, 1_000, 1 << 30]),
        });
        let kept_max = 10 + random.below(60);
        let mut world = World::with(Config { kept_max, checkpoints, ..config(1) });
        world.worker(WORKER, &["mail"], 1_000_000);
        let mut hands = Hands { random, next_number: 0, leases: Vec::new(), stored: 0 };
        for _ in 0..400 {
            hands.step(&mut world);
        }
        let moment = (world.now_us, digest(&world));
        let (sequence, chunks) = world.snapshot(|world| (0..20).for_each(|_| hands.step(world)));
        let end = (world.now_us, digest(&world));
        for (until, (now_us, expected)) in [(world.log.len(), end), (usize::try_from(sequence).unwrap(), moment)] {
            world.log.truncate(until);
            world.durable = until;
            world.now_us = now_us;
            world.restart(Some((sequence, &chunks)));
            assert_eq!(digest(&world), expected, "seed {seed}, {until} records of the log, snapshot at {sequence}");
        }
    }
}

/// The chunks of a snapshot of a shard that was not started.
fn chunks_of(shard: &mut Shard) -> Vec<(u32, FrameBuffer)> {
    let mut chunks = Vec::new();
    shard.snapshot_begin();
    loop {
        let mut chunk = FrameBuffer::new();
        match shard.snapshot_next(&mut chunk) {
            SnapshotStep::Chunk(tag) => chunks.push((tag, chunk)),
            SnapshotStep::End => return chunks,
            step => panic!("{step:?}"),
        }
    }
}

#[test]
fn a_new_cluster_begins_where_the_log_of_a_lost_one_ended_and_honours_none_of_its_leases() {
    for seed in 0..SEEDS {
        let mut world = World::with(config(2));
        world.worker(WORKER, &["mail"], 1_000_000);
        let mut hands = Hands { random: Random::new(seed), next_number: 0, leases: Vec::new(), stored: 0 };
        (0..100).for_each(|_| hands.step(&mut world));
        let (_, chunks) = world.snapshot(|world| hands.step(world));
        let chunks = if hands.random.once_in(2) { chunks } else { Vec::new() };
        (0..100).for_each(|_| hands.step(&mut world));
        // Of what was not durable everything may be there as well.
        let waiting = hands.job();
        world.submit_one(waiting);
        hands.leases.extend(world.leases());

        let mut positions = Positions::default();
        let mut new = World::with(Config { node: Config::standalone(NodeId(99), 2).node, ..config(2) });
        let mut lost = Shard::new(new.config.clone(), world.now_us);
        for (tag, chunk) in &chunks {
            positions.chunk(*tag, chunk).unwrap();
            lost.restore_chunk(*tag, chunk).unwrap();
        }
        for (sequence, record) in (1..).zip(&world.log) {
            positions.record(record.kind, &record.bytes).unwrap();
            lost.replay(sequence, record.kind, &record.bytes).unwrap();
        }
        let reached = lost.found_anew(77, |_| true).unwrap();
        assert_eq!(reached, positions.partitions, "seed {seed}");
        assert_eq!((reached.len(), positions.cluster), (2, 1));
        assert_eq!(reached[&0].index, world.shard.digest(PartitionId(0)).unwrap().0);

        new.log.clear();
        new.durable = 0;
        new.now_us = world.now_us;
        let begun = chunks_of(&mut lost);
        new.restart(Some((0, &begun)));
        assert_eq!(new.map.as_ref().unwrap().cluster, 77);
        assert_eq!(digest(&new), digest(&world), "seed {seed}");
        new.worker(WORKER, &["mail"], 1_000_000);
        let highest = hands.leases.iter().map(|lease| lease.token).max().unwrap_or(0);
        for lease in new.leases() {
            assert!(lease.token >> 40 > (highest >> 40) + 1_000, "seed {seed}: {lease:?}");
        }
    }
}

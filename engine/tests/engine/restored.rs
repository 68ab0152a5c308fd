//! States in the store: each chunk is told once and before the task that names it, and all of it comes back.

use std::collections::{BTreeMap, BTreeSet};

use taskmaster_engine::checkpoint::{
    Batch, BatchBounds, BatchChunk, FinalTask, ForStore, FromStore, SavedHistory, SavedState, States, Stored,
};
use taskmaster_engine::{Config, Input, State};
use taskmaster_protocol::body::{self, queue_field, state_verb};
use taskmaster_protocol::state::{Address, address_of, digest_of};
use taskmaster_protocol::{Code, PartitionId, TaskId};

use super::checkpoints::{BOUNDS, generous};
use super::job::{id, job};
use super::states::Part::{New, Old};
use super::world::{World, config};

const WORKER: u64 = 50;
const DAY_MS: u64 = 86_400_000;

fn world() -> World {
    let mut world = World::with(Config { checkpoints: Some(generous()), ..config(1) });
    world.worker(WORKER, &["mail"], 1_000);
    world
}

/// What a store has.
#[derive(Default)]
struct Store {
    batches: Vec<Batch>,
    chunks: BTreeMap<Address, Vec<u8>>,
    /// Bytes of chunks that came, repetitions counted.
    bytes: usize,
}

impl Store {
    fn take(&mut self, batch: &Batch) {
        for chunk in &batch.chunks {
            let bytes = slice(&batch.bytes, chunk.bytes).to_vec();
            assert_eq!(address_of(&bytes), chunk.digest);
            self.bytes += bytes.len();
            self.chunks.insert(chunk.digest, bytes);
        }
        for saved in batch.tasks.iter().filter_map(|task| task.saved.as_deref()) {
            assert!(
                saved.chunks.iter().all(|digest| self.chunks.contains_key(digest)),
                "chunks come before their task"
            );
            for version in &saved.history.versions {
                let pieces: Vec<Address> = version.pieces.iter().map(|&place| saved.chunks[place as usize]).collect();
                assert_eq!(digest_of(&pieces), version.digest);
            }
        }
        self.batches.push(batch.clone());
    }

    /// Everything that the partition has.
    fn drain(&mut self, world: &mut World, bounds: BatchBounds) {
        while let Some(ForStore::Batch(batch)) = world.shard.next_for_store(bounds) {
            self.take(&batch);
            world.store_says(batch.term, Stored::Upto(batch.to));
        }
    }

    fn tasks(&self) -> impl Iterator<Item = (&Batch, &FinalTask)> {
        self.batches.iter().flat_map(|batch| batch.tasks.iter().map(move |task| (batch, task)))
    }

    /// The states of all tasks, so many versions to a command; chunks that are `lost` are not there.
    fn states(&self, versions_max: usize, lost: &BTreeSet<Address>) -> Vec<States> {
        let mut all = Vec::new();
        for (_, task) in self.tasks() {
            let Some(saved) = task.saved.as_deref() else { continue };
            let mut brought = BTreeSet::new();
            for versions in saved.history.versions.chunks(versions_max) {
                let mut states = States::default();
                for digest in &saved.chunks {
                    let is_named = |place: &u32| saved.chunks[*place as usize] == *digest;
                    let is_new = versions.iter().any(|version| version.pieces.iter().any(is_named));
                    let is_there = is_new && !lost.contains(digest) && brought.insert(*digest);
                    let bytes = if is_there {
                        body::put(&mut states.bytes, &self.chunks[digest])
                    } else {
                        body::Span::default()
                    };
                    states.chunks.push(BatchChunk { digest: *digest, bytes });
                }
                states.histories.push((task.id, SavedHistory { versions: versions.to_vec(), ..saved.history.clone() }));
                all.push(states);
            }
        }
        all
    }

    /// Gives all of it to a partition.
    fn restore(&self, world: &mut World, versions_max: usize, lost: &BTreeSet<Address>) {
        for batch in &self.batches {
            give(world, FromStore::Tasks(batch.clone()));
        }
        for states in self.states(versions_max, lost) {
            give(world, FromStore::States(states));
        }
    }
}

fn give(world: &mut World, from: FromStore) {
    world.handle(Input::Restore(&from));
    assert!(!world.shard.holding(PartitionId(0)).unwrap().is_settled, "it is on its way to the disk");
    world.settle();
    assert!(world.shard.holding(PartitionId(0)).unwrap().is_settled);
}

fn slice(bytes: &[u8], span: body::Span) -> &[u8] {
    &bytes[span.at as usize..][..span.len as usize]
}

fn new_world() -> World {
    let mut world = World::with(Config { checkpoints: Some(generous()), ..config(1) });
    world.now_us += 600_000_000;
    world.settle();
    world
}

/// Three tasks that share most of their states: one with branches, tags and a version that went; one that succeeded; one that failed.
fn saved(world: &mut World) -> [TaskId; 3] {
    let ids = world.submit(&[job("mail", 1), job("mail", 2), job("mail", 3).attempts(1)]);
    let leases = world.leases();
    for lease in &leases {
        assert_eq!(world.save(lease, 0, &[New(b"shared"), New(b"state")]), Ok(1));
        assert_eq!(world.save(lease, 1, &[Old(0, &[b"shared"]), New(b"second"), New(b"second")]), Ok(2));
    }
    let of = |id: TaskId| leases.iter().find(|lease| lease.id == id).unwrap();
    world.change(ids[0], state_verb::TAG, 1, "good");
    world.change(ids[0], state_verb::BRANCH, 1, "other");
    world.change(ids[0], state_verb::SWITCH, 0, "other");
    assert_eq!(world.save(of(ids[0]), 1, &[New(b"third")]), Ok(3));
    assert_eq!(world.save(of(ids[0]), 2, &[New(b"pruned")]), Ok(4), "a line of its own");
    world.change(ids[0], state_verb::PRUNE, 0, "");
    world.complete(of(ids[0]), b"first result");
    world.complete(of(ids[1]), b"second result");
    world.fail(of(ids[2]), "exit:1");
    ids.try_into().unwrap()
}

#[test]
fn a_chunk_goes_once_for_all_versions_and_tasks_and_before_them() {
    let mut world = world();
    let term = world.open(0);
    saved(&mut world);
    let mut store = Store::default();
    // A byte at a time: one chunk to a batch, and then the tasks.
    store.drain(&mut world, BatchBounds { bytes: 1, ..BOUNDS });
    let unique = [b"shared".len(), b"state".len(), b"second".len(), b"third".len()].iter().sum::<usize>();
    assert_eq!(store.bytes, unique, "each once, and nothing of what went");
    assert!(store.batches.iter().all(|batch| batch.chunks.len() <= 1 && batch.tasks.len() <= 1));
    assert_eq!(store.tasks().count(), 3);
    // Whoever saves the same later brings nothing, and whoever saves nothing has nothing.
    let ids = world.submit(&[job("mail", 10), job("mail", 11)]);
    for lease in world.leases() {
        if lease.id == ids[0] {
            assert_eq!(world.save(&lease, 0, &[New(b"third"), New(b"shared")]), Ok(1));
        }
        world.complete(&lease, b"done");
    }
    let batch = world.batch().unwrap();
    assert_eq!((batch.tasks.len(), batch.chunks.len()), (2, 0));
    assert_eq!(batch.tasks.iter().map(|task| task.saved.is_some()).collect::<Vec<_>>(), [true, false]);
    store.take(&batch);
    // It did not count: it is told again with the next batch. So does a new leader.
    world.store_says(term, Stored::Upto(2));
    let batch = world.batch().unwrap();
    assert_eq!((batch.tasks.len(), batch.chunks.len()), (3, 4));
    world.crash();
    world.open(2);
    assert_eq!(world.batch().unwrap().chunks.len(), 4);
}

#[test]
fn chunks_are_told_again_for_a_later_day_and_a_batch_is_of_one_day() {
    let mut world = world();
    world.open(0);
    let mut store = Store::default();
    let save = |world: &mut World, number: u32, content: &[u8]| {
        world.submit_one(job("mail", number));
        let lease = world.lease();
        assert_eq!(world.save(&lease, 0, &[New(b"shared"), New(content)]), Ok(1));
        world.complete(&lease, b"done");
        world.now_us / (DAY_MS * 1_000)
    };
    let today = save(&mut world, 1, b"one");
    world.advance_ms(DAY_MS);
    assert_eq!(save(&mut world, 2, b"two"), today + 1);
    let told = |batch: &Batch| (u64::from(batch.chunks_day), batch.tasks.len(), batch.chunks.len());
    for expected in [(today, 1, 2), (today + 1, 1, 2)] {
        let batch = world.batch().unwrap();
        assert_eq!(told(&batch), expected);
        store.take(&batch);
        world.store_says(batch.term, Stored::Upto(batch.to));
    }
    save(&mut world, 3, b"two");
    assert_eq!(told(&world.batch().unwrap()), (today + 1, 1, 0));
}

#[test]
fn states_come_back_whole_in_whatever_pieces_and_survive_a_crash_and_a_snapshot() {
    let mut old = world();
    old.open(0);
    let ids = saved(&mut old);
    let mut store = Store::default();
    store.drain(&mut old, BOUNDS);
    let expected = ids.map(|id| (old.task(id), old.told(id)));
    for versions_max in [1, 2, 100] {
        let mut new = new_world();
        store.restore(&mut new, versions_max, &BTreeSet::new());
        assert_eq!(ids.map(|id| (new.task(id), new.told(id))), expected);
        assert_eq!(new.shard.holding(PartitionId(0)).unwrap().versions, 3 + 2 + 2);
        let before = new.digest();
        store.restore(&mut new, versions_max, &BTreeSet::new());
        assert_eq!(new.digest(), before, "what is there stays");
        let snapshot = new.snapshot(|_| {});
        for with_snapshot in [false, true] {
            new.restart(with_snapshot.then_some((snapshot.0, snapshot.1.as_slice())));
            assert_eq!(new.digest(), before);
        }
        // Between two pieces, too: a task of which some has come is copied before more comes.
        let (mut torn, states) = (new_world(), store.states(versions_max, &BTreeSet::new()));
        let (first, rest) = states.split_at(1);
        store.batches.iter().for_each(|batch| give(&mut torn, FromStore::Tasks(batch.clone())));
        give(&mut torn, FromStore::States(first[0].clone()));
        let moment = torn.digest();
        let snapshot = torn.snapshot(|torn| {
            rest.iter().for_each(|states| {
                torn.handle(Input::Restore(&FromStore::States(states.clone())));
                torn.settle();
            })
        });
        assert_eq!(torn.digest(), before);
        torn.restart(Some((snapshot.0, snapshot.1.as_slice())));
        assert_eq!(torn.digest(), before);
        assert_ne!(moment, before);
    }
}

#[test]
fn restored_tasks_are_forked_and_resumed_from_their_versions() {
    let mut old = world();
    old.open(0);
    let ids = saved(&mut old);
    let mut store = Store::default();
    store.drain(&mut old, BOUNDS);
    let mut new = new_world();
    store.restore(&mut new, 2, &BTreeSet::new());
    new.open(3);
    new.worker(WORKER, &["mail"], 10);
    let fork = id(0, 500);
    let mut body = body::ChangeState { id: ids[1], verb: state_verb::FORK, version: 1, ..body::ChangeState::default() };
    body.to = fork;
    assert_eq!(new.call(super::world::CLIENT, 0, &body).code(), Code::Ok);
    assert_eq!((new.bytes_of(fork, 1), new.task(fork).payload), (b"sharedstate".to_vec(), b"payload 2".to_vec()));
    assert_eq!(new.change(ids[2], state_verb::RESUME, 1, "").code(), Code::Ok);
    let leases = new.leases();
    assert_eq!(leases.iter().map(|lease| (lease.id, lease.version)).collect::<Vec<_>>(), [(fork, 1), (ids[2], 1)]);
    let resumed = leases.iter().find(|lease| lease.id == ids[2]).unwrap();
    assert_eq!(new.save(resumed, 1, &[Old(0, &[b"shared"]), New(b"more")]), Ok(3), "numbers go on where they were");
    new.complete(resumed, b"done");
    // What it has now goes to the store with all of its chunks: the lost cluster's are another's.
    let batch = new.batch().unwrap();
    assert_eq!((batch.tasks.len(), batch.chunks.len()), (1, 4));
    store.take(&batch);
    assert_eq!(new.state(ids[2]), State::Succeeded);
}

#[test]
fn versions_of_which_a_chunk_is_lost_or_wrong_are_left_out_and_nothing_else() {
    let mut old = world();
    old.open(0);
    let ids = saved(&mut old);
    let mut store = Store::default();
    store.drain(&mut old, BOUNDS);
    let (second, third) = (address_of(b"second"), address_of(b"third"));
    *store.chunks.get_mut(&third).unwrap() = b"damaged".to_vec();
    let mut new = new_world();
    store.restore(&mut new, 1, &BTreeSet::from([second]));
    let numbers = |history: &body::StateHistory| history.versions.iter().map(|row| row.number).collect::<Vec<_>>();
    for id in ids {
        let history = new.history(id);
        assert_eq!(numbers(&history), [1]);
        assert!(history.names.iter().all(|name| name.version == 1));
        assert_eq!(new.bytes_of(id, 1), b"sharedstate");
    }
    let before = new.digest();
    new.crash();
    assert_eq!(new.digest(), before);
    // States of a task that is not there go nowhere.
    let mut empty = new_world();
    give(&mut empty, FromStore::Tasks(Batch::default()));
    let before = empty.digest();
    for states in store.states(100, &BTreeSet::new()) {
        give(&mut empty, FromStore::States(states));
    }
    assert_eq!(empty.digest(), before);
}

#[test]
fn settings_of_queues_come_back_and_are_told_to_the_store_again() {
    let mut old = world();
    old.open(0);
    old.configure("mail", queue_field::POLICY * 2 - 1, |queue| {
        (queue.paused, queue.draining, queue.deadline_action, queue.policy) = (1, 1, 1, 2);
        (queue.rate_milli_per_s, queue.rate_burst, queue.concurrency) = (7_000, 9, 11);
        (queue.depth_max, queue.retention_ms) = (13, 15_000);
    });
    old.configure("plain", queue_field::CONCURRENCY, |queue| queue.concurrency = 3);
    let expected = old.queues(0);
    let parked = old.submit_one(job("nobody", 1));
    old.cancel(&[parked]);
    let queues = old.batch().unwrap().queues;
    let mut new = new_world();
    give(&mut new, FromStore::Queues { partition: PartitionId(0), queues: queues.clone() });
    let told = |queues: &[(String, body::QueueInfo)], name: &str| {
        let (_, info) = queues.iter().find(|(other, _)| other == name).unwrap();
        let limits = (info.rate_milli_per_s, info.rate_burst, info.concurrency, info.depth_max, info.retention_ms);
        (limits, info.paused, info.draining, info.deadline_action, info.policy)
    };
    let restored = new.queues(0);
    for name in ["mail", "plain"] {
        assert_eq!(told(&restored, name), told(&expected, name));
    }
    let before = new.digest();
    new.crash();
    assert_eq!(new.digest(), before);
    new.open(0);
    let failed = new.submit_one(job("nobody", 1));
    new.cancel(&[failed]);
    let (mut again, mut queues) = (new.batch().unwrap().queues, queues);
    again.sort_by(|a, b| a.queue.cmp(&b.queue));
    queues.sort_by(|a, b| a.queue.cmp(&b.queue));
    assert_eq!(again, queues);
}

/// A state without chunks weighs nothing, and one with them as much as is sent of it.
#[test]
fn empty_states_are_versions_too() {
    let mut old = world();
    old.open(0);
    let id = old.submit_one(job("mail", 1));
    let lease = old.lease();
    assert_eq!(old.save(&lease, 0, &[]), Ok(1));
    old.complete(&lease, b"done");
    let mut store = Store::default();
    store.drain(&mut old, BOUNDS);
    let saved: &SavedState = store.tasks().next().unwrap().1.saved.as_deref().unwrap();
    assert_eq!((saved.chunks.len(), saved.history.versions.len(), store.bytes), (0, 1, 0));
    let mut new = new_world();
    store.restore(&mut new, 1, &BTreeSet::new());
    assert_eq!(new.told(id), old.told(id));
}

//! Checkpoints: each final task goes to the store once, in order, and is not forgotten before; whatever the store answers.

use taskmaster_engine::arena::EXTENT_BYTES;
use taskmaster_engine::checkpoint::{Batch, BatchBounds, Checkpoints, ForStore, FromStore, Stored};
use taskmaster_engine::{Config, Input, State};
use taskmaster_protocol::body::{
    self, CURSOR_STORED, ChangeState, ConfigureQueue, ListTasks, TaskPage, queue_field, state_verb,
};
use taskmaster_protocol::{Code, PartitionId, TaskId};

use super::job::{Job, id, job, jobs};
use super::states::Part;
use super::world::{CLIENT, World, config};

const WORKER: u64 = 50;
pub(crate) const BOUNDS: BatchBounds = BatchBounds { tasks_min: 0, tasks: 100, bytes: 1 << 20 };

fn world(checkpoints: Checkpoints) -> World {
    let mut world = World::with(Config { checkpoints: Some(checkpoints), ..config(1) });
    world.worker(WORKER, &["mail"], 1_000_000);
    world
}

pub(crate) fn generous() -> Checkpoints {
    Checkpoints { waiting_max: 1_000_000, waiting_kib_max: 1 << 20, kept_ms: u32::MAX }
}

impl World {
    /// Lets everything become final that is leased.
    fn complete_all(&mut self) {
        for lease in self.leases() {
            self.complete(&lease, format!("result of {}", lease.id).as_bytes());
        }
    }

    fn finish(&mut self, first: u32, count: u32) -> Vec<TaskId> {
        let ids = self.submit(&jobs("mail", first, count));
        self.complete_all();
        ids
    }

    pub(crate) fn store_says(&mut self, term: u64, stored: Stored) {
        self.handle(Input::Stored { partition: PartitionId(0), term, stored });
        self.settle();
    }

    /// The partition asks the store where it stands, and hears this.
    pub(crate) fn open(&mut self, upto: u64) -> u64 {
        let Some(ForStore::Open { partition, term, .. }) = self.shard.next_for_store(BOUNDS) else {
            panic!("no opening")
        };
        assert_eq!(partition, PartitionId(0));
        self.store_says(term, Stored::Upto(upto));
        term
    }

    pub(crate) fn batch(&mut self) -> Option<Batch> {
        match self.shard.next_for_store(BOUNDS)? {
            ForStore::Batch(batch) => Some(batch),
            open @ ForStore::Open { .. } => panic!("{open:?}"),
        }
    }
}

fn ids(batch: &Batch) -> Vec<TaskId> {
    batch.tasks.iter().map(|task| task.id).collect()
}

fn text(batch: &Batch, span: taskmaster_protocol::body::Span) -> &str {
    std::str::from_utf8(&batch.bytes[span.at as usize..][..span.len as usize]).unwrap()
}

#[test]
fn final_tasks_go_out_once_in_the_order_in_which_they_ended() {
    let mut world = world(generous());
    let term = world.open(0);
    assert_eq!(world.batch(), None, "there is nothing yet");
    let mut expected = world.finish(0, 150);
    let first = world.batch().unwrap();
    assert_eq!((first.from, first.to, first.term), (0, 100, term));
    assert_eq!(world.batch(), None, "one at a time");
    expected.extend(world.finish(150, 10));
    world.store_says(term, Stored::Upto(100));
    let second = world.batch().unwrap();
    assert_eq!((second.from, second.to), (100, 160));
    assert_eq!([ids(&first), ids(&second)].concat(), expected);
    assert_eq!(text(&second, second.tasks[0].blob), format!("result of {}", second.tasks[0].id));
    assert_eq!((second.contracts.len(), second.contracts[0].queue.as_str()), (1, "mail"));
    world.store_says(term, Stored::Upto(160));
    assert_eq!(world.batch(), None);
    assert_eq!(world.shard.stats().checkpoint_waiting, 0);
}

#[test]
fn failures_and_workflows_go_out_with_what_is_known_of_them() {
    let mut world = world(generous());
    world.open(0);
    world.submit_one(job("mail", 0).attempts(1));
    let lease = world.lease();
    world.fail(&lease, "exit:1");
    let workflow = id(0, 9_000);
    let steps = [job("mail", 1), job("mail", 2).needs(&[0])];
    world.workflow(workflow, false, &steps);
    world.complete_all();
    let failed = world.batch().unwrap();
    assert_eq!(failed.tasks.len(), 1, "steps are checkpointed when their workflow is over");
    let task = &failed.tasks[0];
    assert_eq!((task.state, task.attempts, task.failures), (State::Failed, 1, 1));
    assert_eq!(task.error.map(|part| text(&failed, part)), ["exit:1", "it went wrong", "the last line"]);
    assert_eq!(text(&failed, task.blob), "payload 0", "of a task without success its payload");
    world.store_says(failed.term, Stored::Upto(1));
    world.complete_all();
    let steps = world.batch().unwrap();
    assert_eq!(
        steps.tasks.iter().map(|task| (task.id, task.workflow)).collect::<Vec<_>>(),
        [(id(0, 1), workflow), (id(0, 2), workflow)]
    );
}

#[test]
fn nothing_is_forgotten_before_its_checkpoint_and_all_of_it_after_its_time() {
    let kept_ms = 5_000;
    let mut world = world(Checkpoints { kept_ms, ..generous() });
    let term = world.open(0);
    let tasks = world.finish(0, 20);
    world.advance_ms(7_200_000);
    assert!(tasks.iter().all(|&id| world.find(id).is_some()), "the store does not have them");
    let entries = world.logged();
    world.advance_ms(60_000);
    assert!(world.logged() <= entries + 1, "a partition that waits for its store does nothing");
    let batch = world.batch().unwrap();
    world.store_says(term, Stored::Upto(batch.to));
    assert!(tasks.iter().all(|&id| world.find(id).is_none()));
    let young = world.finish(20, 1)[0];
    let batch = world.batch().unwrap();
    world.store_says(term, Stored::Upto(batch.to));
    assert!(world.find(young).is_some());
    world.advance_ms(u64::from(kept_ms) + 1_000);
    assert!(world.find(young).is_none(), "an hour of retention ends early for what is checkpointed");
}

#[test]
fn too_many_that_wait_are_forgotten_by_their_retention_and_counted() {
    for checkpoints in [Checkpoints { waiting_max: 10, ..generous() }, Checkpoints { waiting_kib_max: 1, ..generous() }]
    {
        let mut world = world(checkpoints);
        let tasks = world.finish(0, 100);
        world.advance_ms(3_700_000);
        let left = tasks.iter().filter(|&&id| world.find(id).is_some()).count();
        let stats = world.shard.stats();
        assert!(left > 0 && left <= 10, "{left}");
        assert_eq!((stats.checkpoint_waiting, stats.checkpoint_lost), (left as u64, 100 - left as u64));
        let term = world.open(0);
        let batch = world.batch().unwrap();
        assert_eq!((batch.tasks.len(), batch.from, batch.to), (left, 0, 100));
        world.store_says(term, Stored::Upto(100));
        assert_eq!(world.shard.stats().checkpoint_waiting_bytes, 0);
    }
}

#[test]
fn a_retried_task_goes_out_again_under_its_later_number() {
    let mut world = world(generous());
    let term = world.open(0);
    let task = world.submit_one(job("mail", 0).attempts(1));
    let lease = world.lease();
    world.fail(&lease, "exit:1");
    // Retried before its row left: the number stands for nothing, and the position passes it.
    world.retry(&[task]);
    assert_eq!(world.shard.stats().checkpoint_waiting, 0);
    let empty = world.batch().unwrap();
    assert_eq!((empty.to, empty.tasks.len()), (1, 0));
    world.store_says(term, Stored::Upto(1));
    world.complete_all();
    let batch = world.batch().unwrap();
    assert_eq!((batch.from, batch.to, batch.tasks[0].number, batch.tasks[0].state), (1, 2, 2, State::Succeeded));
}

#[test]
fn the_store_may_be_ahead_or_behind_of_what_the_log_knows() {
    let mut world = world(generous());
    let tasks = world.finish(0, 30);
    let term = world.open(0);
    let batch = world.batch().unwrap();
    world.store_says(term, Stored::Upto(batch.to));
    // The answer to the last batch was lost with the leader: the store is ahead.
    let later = world.finish(30, 5);
    world.crash();
    world.open(33);
    let batch = world.batch().unwrap();
    assert_eq!((batch.from, ids(&batch)), (33, later[3..].to_vec()));
    // Another database, or an old one: the store is behind, and gets what is still there.
    world.crash();
    world.open(10);
    let batch = world.batch().unwrap();
    assert_eq!((batch.from, ids(&batch)), (10, [&tasks[10..], &later[..]].concat()));
}

#[test]
fn a_store_of_another_past_gets_nothing_and_operators_hear_of_it() {
    let mut world = world(generous());
    world.finish(0, 3);
    world.open(4);
    assert_eq!(world.batch(), None);
    let warnings = world.shard.take_warnings();
    assert!(warnings.len() == 1 && warnings[0].contains("another past"), "{warnings:?}");
}

#[test]
fn a_leader_that_was_overtaken_sends_nothing_more_and_old_answers_change_nothing() {
    let mut world = world(generous());
    world.finish(0, 3);
    let term = world.open(0);
    world.batch().unwrap();
    world.store_says(term - 1, Stored::Upto(2));
    assert_eq!(world.batch(), None, "the answer was to somebody else");
    world.store_says(term, Stored::Overtaken);
    world.finish(3, 3);
    assert_eq!(world.shard.next_for_store(BOUNDS), None);
}

#[test]
fn numbers_and_what_waits_survive_a_crash_and_a_snapshot() {
    let mut world = world(generous());
    let term = world.open(0);
    world.finish(0, 40);
    let retried = world.submit_one(job("mail", 900).attempts(1));
    let lease = world.lease();
    world.fail(&lease, "exit:1");
    world.store_says(term, Stored::Upto(25));
    world.retry(&[retried]);
    let before = (world.shard.digest(PartitionId(0)).unwrap().1, world.shard.stats());
    let snapshot = world.snapshot(|_| {});
    for with_snapshot in [true, false] {
        let chunks = with_snapshot.then_some((snapshot.0, snapshot.1.as_slice()));
        world.restart(chunks);
        let after = world.shard.stats();
        assert_eq!(world.shard.digest(PartitionId(0)).unwrap().1, before.0);
        assert_eq!(after.checkpoint_waiting, before.1.checkpoint_waiting);
        assert_eq!(after.checkpoint_waiting_bytes, before.1.checkpoint_waiting_bytes);
        world.open(25);
        let batch = world.batch().unwrap();
        assert_eq!((batch.from, batch.tasks[0].number, batch.tasks.len()), (25, 26, 15));
    }
}

/// A result that is worth while to be demoted.
fn long(id: TaskId) -> String {
    format!("result of {id}").repeat(20)
}

#[test]
fn what_waits_beyond_a_bound_leaves_memory_and_reads_as_before() {
    let config = || Config { checkpoints: Some(generous()), demote_above_bytes: Some(16 << 10), ..config(1) };
    let mut world = World::with(config());
    world.worker(WORKER, &["mail"], 1_000_000);
    let term = world.open(0);
    let mut ids = Vec::new();
    for first in (0..400).step_by(20) {
        ids.extend(world.submit(&jobs("mail", first, 20)));
        for lease in world.leases() {
            world.complete(&lease, long(lease.id).as_bytes());
        }
        if first < 200 {
            assert_eq!(world.shard.stats().demoted_bytes, 0, "nobody gave an extent");
            continue;
        }
        while world.shard.wants_extent() {
            world.shard.give_extent(Box::new(vec![0; EXTENT_BYTES]));
        }
    }
    let stats = world.shard.stats();
    assert!(stats.demoted_bytes > stats.blob_bytes * 8 / 10, "{stats:?}");
    assert!(stats.checkpoint_waiting_bytes - stats.demoted_bytes < 400 * 128 + (16 << 10), "{stats:?}");
    // The one that waits longest, and the last one.
    for id in [ids[0], ids[399]] {
        assert_eq!(world.task(id).result, long(id).as_bytes());
    }
    let digest = world.shard.digest(PartitionId(0));
    world.restart(None);
    assert_eq!(world.shard.digest(PartitionId(0)).unwrap().1, digest.unwrap().1);
    assert!(world.shard.wants_extent(), "a restart begins in memory");
    while world.shard.demote() {
        if world.shard.wants_extent() {
            world.shard.give_extent(Box::new(vec![0; EXTENT_BYTES]));
        }
    }
    assert!(world.shard.stats().demoted_bytes > 0);
    let mut stored = Vec::new();
    world.open(0);
    while let Some(batch) = world.batch() {
        for task in &batch.tasks {
            assert_eq!(text(&batch, task.blob), long(task.id));
            stored.push(task.id);
        }
        world.store_says(term + 1, Stored::Upto(batch.to));
    }
    assert_eq!(stored, ids);
    world.advance_ms(3_700_000);
    let stats = world.shard.stats();
    assert_eq!((stats.blob_bytes, stats.demoted_bytes, stats.checkpoint_waiting_bytes), (0, 0, 0));
}

#[test]
fn what_had_no_room_leaves_memory_once_there_is_some_without_any_further_task() {
    let mut world = World::with(Config { checkpoints: Some(generous()), demote_above_bytes: Some(0), ..config(1) });
    world.worker(WORKER, &["mail"], 1_000_000);
    world.submit(&jobs("mail", 0, 4));
    for lease in world.leases() {
        world.complete(&lease, &[7; 512 << 10]);
    }
    world.settle();
    assert_eq!(world.shard.stats().demoted_bytes, 0);
    world.shard.give_extent(Box::new(vec![0; EXTENT_BYTES]));
    for _ in 0..8 {
        world.handle(Input::Tick);
    }
    assert_eq!(world.shard.stats().demoted_bytes, 4 * (512 << 10));
}

#[test]
fn room_that_was_all_used_is_given_back_when_the_store_has_what_lay_there() {
    let mut world = World::with(Config { checkpoints: Some(generous()), demote_above_bytes: Some(0), ..config(1) });
    world.worker(WORKER, &["mail"], 1_000_000);
    (0..4).for_each(|_| world.shard.give_extent(Box::new(vec![0; EXTENT_BYTES])));
    for first in 0..40 {
        world.submit(&jobs("mail", first, 1));
        let lease = world.lease();
        world.complete(&lease, &[7; 1 << 20]);
    }
    assert!(world.shard.wants_extent(), "all room is used");
    let term = world.open(0);
    while let Some(batch) = world.batch() {
        world.store_says(term, Stored::Upto(batch.to));
    }
    world.advance_ms(3_700_000);
    assert_eq!(world.shard.stats().blob_bytes, 0);
    assert!(!world.shard.wants_extent() && world.shard.spares_extent());
    let spare = std::iter::from_fn(|| world.shard.take_extent()).count();
    assert_eq!(spare, 2, "two stay at hand");
}

#[test]
fn a_task_whose_payload_left_memory_can_be_retried() {
    let mut world = World::with(Config { checkpoints: Some(generous()), demote_above_bytes: Some(0), ..config(1) });
    world.worker(WORKER, &["mail"], 1_000_000);
    let payload = "payload ".repeat(30);
    let task = world.submit_one(Job { payload: payload.clone().into_bytes(), ..job("mail", 0).attempts(1) });
    world.shard.give_extent(Box::new(vec![0; EXTENT_BYTES]));
    let lease = world.lease();
    world.fail(&lease, "exit:1");
    assert_eq!(world.shard.stats().demoted_bytes, payload.len() as u64);
    world.retry(&[task]);
    let lease = world.lease();
    assert_eq!(lease.payload, payload.as_bytes());
    world.fail(&lease, "exit:1");
    let stats = world.shard.stats();
    assert_eq!((stats.checkpoint_waiting, stats.demoted_bytes), (1, payload.len() as u64));
    world.open(0);
    let batch = world.batch().unwrap();
    assert_eq!(text(&batch, batch.tasks[0].blob), payload);
}

#[test]
fn a_listing_leaves_to_the_store_what_was_checkpointed_when_it_began() {
    let mut world = world(generous());
    let term = world.open(0);
    let failed = world.submit_one(job("mail", 0).attempts(1));
    let lease = world.lease();
    world.fail(&lease, "exit:1");
    let tasks = [vec![failed], world.finish(1, 19)].concat();
    world.batch().unwrap();
    world.store_says(term, Stored::Upto(8));
    let parked = world.submit_one(job("nobody", 100));
    let (mut listed, mut cursor) = (Vec::new(), [0; 2]);
    while cursor[0] & CURSOR_STORED == 0 {
        let page: TaskPage = world.call(CLIENT, 0, &ListTasks { limit: 5, cursor, ..ListTasks::default() }).read();
        listed.extend(page.rows.iter().map(|row| row.id));
        cursor = page.cursor;
        // What is checkpointed meanwhile stays where this listing began to look for it.
        world.store_says(term, Stored::Upto(20));
    }
    listed.sort_unstable();
    assert_eq!(listed, [&tasks[8..], &[parked]].concat());
    assert_eq!(cursor[0] & !CURSOR_STORED, 8);
    // Then the store's pages: whoever drives the engine asks it.
    let refused = world.call(CLIENT, 0, &ListTasks { limit: 5, cursor, ..ListTasks::default() });
    assert_eq!(refused.code(), Code::UnknownTask);
    let mut page = TaskPage::default();
    world.retry(&[failed]);
    for (id, here) in [(tasks[1], true), (failed, true), (id(0, 999), false)] {
        assert_eq!(world.shard.list_kept(id, 8, &mut page).unwrap(), here);
    }
    assert_eq!(page.rows.iter().map(|row| row.id).collect::<Vec<_>>(), [tasks[1]], "one that lives on is not final");
    let ready = ListTasks { states: 1 << State::Ready.number(), limit: 100, ..ListTasks::default() };
    let page: TaskPage = world.call(CLIENT, 0, &ready).read();
    assert_eq!(page.cursor, [0; 2], "the store has no such tasks");
}

#[test]
fn without_a_store_nothing_waits_and_with_one_later_what_is_there_goes_out() {
    let mut world = World::with(config(1));
    world.worker(WORKER, &["mail"], 1_000);
    let tasks = world.finish(0, 10);
    assert_eq!(world.shard.next_for_store(BOUNDS), None);
    assert_eq!(world.shard.stats().checkpoint_waiting, 0);
    world.config.checkpoints = Some(generous());
    world.crash();
    world.settle();
    world.open(0);
    assert_eq!(ids(&world.batch().unwrap()), tasks);
    world.config.checkpoints = None;
    world.crash();
    world.settle();
    assert_eq!((world.shard.next_for_store(BOUNDS), world.shard.stats().checkpoint_waiting), (None, 0));
}

#[test]
fn final_tasks_come_back_from_the_store_as_they_were_and_are_kept_anew() {
    let mut old = world(generous());
    old.open(0);
    let mut tasks = old.finish(0, 30);
    let failed = old.submit_one(job("mail", 500).attempts(1));
    let lease = old.lease();
    old.fail(&lease, "exit:1");
    tasks.push(failed);
    let batch = old.batch().unwrap();
    let mut new = world(generous());
    new.now_us += 600_000_000;
    let checkpoint = new.shard.digest(PartitionId(0)).unwrap();
    for _ in 0..2 {
        // Twice: what is known stays.
        new.handle(Input::Restore(&FromStore::Tasks(batch.clone())));
        new.settle();
        assert_eq!(new.shard.holding(PartitionId(0)).map(|has| (has.last_number, has.is_settled)), Some((31, true)));
    }
    assert_ne!(new.shard.digest(PartitionId(0)).unwrap(), checkpoint);
    for &id in &tasks {
        assert_eq!(new.task(id), old.task(id));
    }
    let before = new.shard.digest(PartitionId(0)).unwrap().1;
    new.crash();
    assert_eq!(new.shard.digest(PartitionId(0)).unwrap().1, before);
    // The store has them already: what ends from here on follows.
    new.open(31);
    new.worker(WORKER, &["mail"], 1_000);
    new.retry(&[failed]);
    new.complete_all();
    let after = new.batch().unwrap();
    assert_eq!((after.from, after.to, ids(&after)), (31, 32, vec![failed]));
    new.store_says(after.term, Stored::Upto(32));
    new.advance_ms(3_500_000);
    assert!(new.find(tasks[0]).is_some(), "an hour from here on");
    new.advance_ms(1_000_000);
    assert!(new.find(tasks[0]).is_none());
}

#[test]
fn final_tasks_come_back_with_their_keys_deadlines_and_what_they_are_remembered_for() {
    let memo = |number| job("mail", number).memo("1", 0, "input");
    let unique = |number| job("mail", number).unique("order", 7_200_000).concurrency("shop", 1);
    let mut old = world(generous());
    old.open(0);
    let first = old.submit_one(unique(0));
    let ran = old.submit_one(memo(1));
    old.complete_all();
    let remembered = old.submit_one(memo(2));
    let shared = old.submit(&[3, 4].map(|number| job("mail", number).attempts(1).concurrency("user", 1)));
    for _ in 0..2 {
        let lease = old.lease();
        old.fail(&lease, "exit:1");
    }
    let timed = old.submit_one(job("mail", 5).attempts(1).deadline_in_ms(100_000).restartable());
    let lease = old.lease();
    old.fail(&lease, "exit:1");
    let batch = old.batch().unwrap();
    assert!(batch.contracts.iter().any(|contract| contract.restartable));

    let come_back = |new: &mut World| {
        new.handle(Input::Restore(&FromStore::Tasks(batch.clone())));
        new.settle();
    };
    let mut new = world(generous());
    come_back(&mut new);
    for id in [first, ran, remembered, shared[0], shared[1], timed] {
        assert_eq!(new.task(id), old.task(id));
    }
    assert_eq!(new.task(remembered).note, format!("result of {ran}"));
    new.crash();
    new.worker(WORKER, &["mail"], 1_000);
    let held = |new: &mut World, number| new.try_submit(&[unique(number)]).exceptions.first().map(|held| held.id);
    assert_eq!(held(&mut new, 10), Some(first));
    let again = new.submit_one(memo(11));
    assert_eq!((new.state(again), new.task(again).memo), (State::Succeeded, true));
    assert_eq!(new.retry(&shared).accepted, 2);
    let lease = new.lease();
    assert_eq!((lease.id, new.leases()), (shared[0], vec![]), "one at a time");
    new.complete(&lease, b"done");
    assert_eq!(new.lease().id, shared[1]);
    new.advance_ms(7_300_000);
    assert_eq!(held(&mut new, 12), None, "the window has passed");

    let mut taken = world(generous());
    let present = taken.submit_one(unique(20));
    come_back(&mut taken);
    assert_eq!(held(&mut taken, 21), Some(present), "a task that lives keeps its key");
}

#[test]
fn settings_of_a_queue_go_out_though_no_task_ends() {
    let mut world = world(generous());
    let term = world.open(0);
    while let Some(batch) = world.batch() {
        assert_eq!((batch.from, batch.to, batch.tasks.len()), (0, 0, 0));
        world.store_says(term, Stored::Upto(0));
    }
    let mut pause = ConfigureQueue { set: queue_field::PAUSED, paused: 1, ..ConfigureQueue::default() };
    pause.queue = body::put(&mut pause.bytes, b"mail");
    world.call(CLIENT, 0, &pause);
    let batch = world.batch().expect("the settings");
    let told: Vec<_> = batch.queues.iter().map(|queue| (queue.queue.as_str(), queue.paused)).collect();
    assert_eq!((told, batch.tasks.len()), (vec![("mail", true)], 0));
    world.store_says(term, Stored::Upto(0));
    assert_eq!(world.batch(), None);
}

#[test]
fn states_and_inputs_of_what_waits_count_until_it_is_stored() {
    let mut world = world(generous());
    let id = world.submit(&jobs("mail", 0, 1))[0];
    let lease = world.leases().remove(0);
    let state = [7; 5_000];
    for version in 0..3 {
        world.save(&lease, version, &[Part::New(&state[..4_000 + version as usize])]).unwrap();
    }
    world.complete(&lease, b"done");
    let counted = |world: &World| world.shard.stats().checkpoint_waiting_bytes;
    let all = counted(&world);
    assert!((12_003..13_000).contains(&all), "{all}");
    let prune = ChangeState { id, verb: state_verb::PRUNE, keep: 1, ..ChangeState::default() };
    world.call(CLIENT, 0, &prune);
    assert_eq!(counted(&world), all - 4_000 - 4_001, "two versions are gone");
    world.restart(None);
    assert_eq!(counted(&world), all - 4_000 - 4_001, "all replicas count alike");
    let term = world.open(0);
    let upto = world.batch().unwrap().to;
    world.store_says(term, Stored::Upto(upto));
    assert_eq!(counted(&world), 0);
}

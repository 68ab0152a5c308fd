//! Memoised tasks: one runs, those with the same kind, version and payload have its result.

use taskmaster_engine::{Config, Known, Made, State, Unknown};
use taskmaster_protocol::body::{BatchReply, put};
use taskmaster_protocol::frame::Header;
use taskmaster_protocol::memo::key;
use taskmaster_protocol::{Body, Code, FrameBuffer, Operation, PartitionId, TaskId};

use crate::job::{Job, body_of, id, job, workflow_of};
use crate::recovery::durable_state;
use crate::world::{START_US, TaskView, World, config};

const WORKER: u64 = 10;

fn world() -> World {
    let mut world = World::with(Config { memo_bytes_max: Some(1_000), ..config(1) });
    world.worker(WORKER, &["mail"], 1_000);
    world
}

fn memo(number: u32) -> Job {
    job("mail", number).memo("1", 0, "input")
}

fn ended(world: &mut World, id: TaskId) -> (State, Vec<u8>, bool, u32) {
    let TaskView { state, result, memo, attempt, .. } = world.task(id);
    (state, result, memo, attempt)
}

#[test]
fn one_of_many_runs_and_all_have_its_result() {
    let mut world = world();
    let first = world.submit_one(memo(0));
    let rest: Vec<Job> = (1..100).map(memo).collect();
    let rest = world.submit(&rest);
    let lease = world.lease();
    assert_eq!(lease.id, first);
    assert_eq!(world.state(rest[0]), State::Waiting);
    assert!(world.reason(rest[0]).contains(&first.to_string()), "{}", world.reason(rest[0]));
    let awaited = world.await_task(rest[50], 60_000);
    world.complete(&lease, b"result");
    assert_eq!(ended(&mut world, first), (State::Succeeded, b"result".to_vec(), false, 1));
    for id in &rest {
        assert_eq!(ended(&mut world, *id), (State::Succeeded, b"result".to_vec(), true, 0));
    }
    assert_eq!(world.reply(awaited).unwrap().code(), Code::Ok);
    assert!(world.task(rest[0]).note.contains(&first.to_string()));
    assert_eq!(world.leases(), []);
}

#[test]
fn a_later_task_has_the_result_at_once_while_it_is_kept_and_young_enough() {
    let mut world = world();
    let first = world.submit_one(memo(0).retention_ms(60_000));
    let lease = world.lease();
    world.complete(&lease, b"result");
    world.advance_ms(10_000);
    let second = world.submit_one(memo(1));
    assert_eq!(ended(&mut world, second), (State::Succeeded, b"result".to_vec(), true, 0));
    // The second has the result of the first, and so its age.
    let third = world.submit_one(job("mail", 2).memo("1", 9_000, "input"));
    assert_eq!(world.lease().id, third);
    let fourth = world.submit_one(job("mail", 3).memo("1", 20_000, "input"));
    assert_eq!(world.state(fourth), State::Waiting, "the one that runs has the key");
    world.cancel(&[third]);
    assert_eq!(world.lease().id, fourth);
    world.advance_ms(80_000);
    assert!(world.find(first).is_none());
}

#[test]
fn other_kinds_versions_payloads_and_namespaces_are_other_tasks() {
    let mut world = world();
    let mut other = memo(4);
    other.namespace = "other".to_owned();
    world.worker_with(WORKER + 1, &["mail"], 1_000, "", |body| {
        body.namespace = taskmaster_protocol::body::put(&mut body.bytes, b"other");
    });
    let jobs = [
        memo(0),
        memo(1).kind("else"),
        job("mail", 2).memo("2", 0, "input"),
        job("mail", 3).memo("1", 0, "other"),
        other,
        job("mail", 5).unique("1", 0),
    ];
    let ids = world.submit(&jobs);
    let mut leased: Vec<TaskId> = world.leases().into_iter().map(|lease| lease.id).collect();
    leased.sort_unstable();
    assert_eq!(leased, ids);
}

#[test]
fn equal_tasks_of_different_queues_meet() {
    let mut world = world();
    world.submit_one(memo(0));
    let other = world.submit_one(job("news", 1).memo("1", 0, "input"));
    let lease = world.lease();
    world.complete(&lease, b"result");
    assert_eq!(ended(&mut world, other), (State::Succeeded, b"result".to_vec(), true, 0));
}

#[test]
fn when_the_one_that_runs_is_cancelled_or_late_the_next_runs_by_its_own_contract() {
    let mut world = world();
    world.submit(&[memo(0), memo(1), memo(2).deadline_in_ms(5_000), memo(3)]);
    assert_eq!(world.lease().id, id(0, 0));
    world.cancel(&[id(0, 0)]);
    assert_eq!(world.lease().id, id(0, 1));
    assert_eq!((world.state(id(0, 2)), world.state(id(0, 3))), (State::Waiting, State::Waiting));
    world.advance_ms(6_000);
    assert_eq!(world.state(id(0, 2)), State::Expired, "one that waits has its deadline");
    world.cancel(&[id(0, 1)]);
    let lease = world.lease();
    assert_eq!(lease.id, id(0, 3));
    world.complete(&lease, b"result");
    assert_eq!(ended(&mut world, id(0, 3)), (State::Succeeded, b"result".to_vec(), false, 1));
    // Asked for by hand, it runs although a result is there.
    assert_eq!(world.retry(&[id(0, 0)]).accepted, 1);
    assert_eq!(world.lease().id, id(0, 0));
    assert_eq!((world.retry(&[id(0, 1)]).accepted, world.state(id(0, 1))), (1, State::Waiting), "another runs");
}

#[test]
fn when_the_one_that_runs_fails_those_that_wait_fail_with_its_error_and_later_ones_run() {
    let mut world = world();
    let ids = world.submit(&[memo(0).attempts(1), memo(1), memo(2).attempts(1)]);
    let awaited = world.await_task(ids[2], 60_000);
    let lease = world.lease();
    world.fail_with(&lease, "broken", "no ink", b"log of the run", true);
    assert_eq!(world.leases(), [], "nobody runs it again");
    for &id in &ids {
        let TaskView { state, error_code, error, .. } = world.task(id);
        assert_eq!((state, &error_code[..], &error[..]), (State::Failed, "broken", "no ink"), "{id}");
    }
    let follower = world.task(ids[1]);
    assert!(follower.memo && follower.attempt == 0 && follower.note.contains(&ids[0].to_string()), "{follower:?}");
    assert!(follower.log_tail.is_empty(), "the log is that of the run");
    assert_eq!(world.reply(awaited).unwrap().code(), Code::Ok);
    assert_eq!(world.shard.stats().memoised, 2);
    assert_eq!(world.shard.take_made(), [], "a failure is not remembered");
    let later = world.submit_one(memo(3));
    assert_eq!(world.lease().id, later);
}

#[test]
fn a_crowd_that_failed_together_and_is_retried_runs_once() {
    let mut world = world();
    let ids = world.submit(&[memo(0).attempts(1), memo(1), memo(2)]);
    let lease = world.lease();
    world.fail_with(&lease, "broken", "", b"", true);
    assert_eq!(world.retry(&ids).accepted, 3);
    assert_eq!((world.state(ids[1]), world.state(ids[2])), (State::Waiting, State::Waiting));
    let before = durable_state(&mut world);
    world.crash();
    assert_eq!(durable_state(&mut world), before);
    world.worker(WORKER, &["mail"], 1_000);
    let lease = world.lease();
    assert_eq!(lease.id, ids[0]);
    world.complete(&lease, b"result");
    assert!(!world.task(ids[0]).memo);
    for &id in &ids[1..] {
        assert_eq!(ended(&mut world, id), (State::Succeeded, b"result".to_vec(), true, 0));
    }
    assert_eq!(world.leases(), []);
}

#[test]
fn a_crowd_that_is_half_failed_survives_a_snapshot() {
    let mut world = world();
    let jobs: Vec<Job> = (0..6_000).map(memo).collect();
    for batch in jobs.chunks(1_000) {
        world.submit(batch);
    }
    let lease = world.lease();
    world.fail_with(&lease, "broken", "no ink", b"", true);
    let before = durable_state(&mut world);
    let (sequence, chunks) = world.snapshot(|_| {});
    world.crash();
    world.restart(Some((sequence, &chunks)));
    assert_eq!(durable_state(&mut world), before);
    world.advance_ms(2_000);
    assert_eq!((world.shard.stats().unfinished, world.task(id(0, 5_999)).state), (0, State::Failed));
}

#[test]
fn attempts_are_repeated_before_another_takes_over() {
    let mut world = world();
    world.submit(&[memo(0).backoff_ms(1_000, 1_000), memo(1)]);
    let lease = world.lease();
    world.fail(&lease, "broken");
    assert_eq!((world.state(id(0, 0)), world.state(id(0, 1))), (State::Delayed, State::Waiting));
    world.advance_ms(2_000);
    let lease = world.lease();
    assert_eq!(lease.id, id(0, 0));
    world.complete(&lease, b"");
    assert_eq!(ended(&mut world, id(0, 1)), (State::Succeeded, Vec::new(), true, 0));
}

#[test]
fn a_crowd_of_any_size_ends_in_slices() {
    let mut world = world();
    let jobs: Vec<Job> = (0..10_000).map(memo).collect();
    for batch in jobs.chunks(1_000) {
        world.submit(batch);
    }
    let lease = world.lease();
    world.complete(&lease, b"result");
    let waiting = |world: &mut World| world.queues(0)[0].1.counts[usize::from(State::Waiting.number())];
    assert!(waiting(&mut world) > 0, "not all at once");
    world.advance_ms(2_000);
    assert_eq!(waiting(&mut world), 0);
    assert_eq!(world.shard.stats().unfinished, 0);
}

#[test]
fn followers_survive_a_crash_and_a_snapshot() {
    for with_snapshot in [false, true] {
        let mut world = world();
        world.submit(&[memo(0), memo(1), memo(2), job("mail", 3).memo("1", 0, "else")]);
        let leases = world.leases();
        assert_eq!(leases.len(), 2);
        world.complete(&leases[1], b"else");
        world.submit(&[job("mail", 4).memo("1", 0, "else"), memo(5)]);
        let before = durable_state(&mut world);
        let (sequence, chunks) = world.snapshot(|_| {});
        world.crash();
        if with_snapshot {
            world.restart(Some((sequence, &chunks)));
        }
        assert_eq!(durable_state(&mut world), before);
        world.worker(WORKER, &["mail"], 1_000);
        let lease = world.lease();
        assert_eq!(lease.id, id(0, 0));
        world.cancel(&[lease.id]);
        let lease = world.lease();
        assert_eq!(lease.id, id(0, 1), "the order of submission");
        world.complete(&lease, b"result");
        for number in [2, 5] {
            assert_eq!(ended(&mut world, id(0, number)), (State::Succeeded, b"result".to_vec(), true, 0));
        }
        let last = world.submit_one(job("mail", 6).memo("1", 0, "else"));
        assert_eq!(ended(&mut world, last), (State::Succeeded, b"else".to_vec(), true, 0));
    }
}

#[test]
fn what_cannot_be_memoised_is_refused() {
    let mut world = world();
    let refused = |world: &mut World, job: Job| {
        let message = world.submit_frame(&[job]);
        (message.code(), message.sentence())
    };
    let (code, sentence) = refused(&mut world, memo(0).concurrency("c", 1));
    assert!(code == Code::Invalid && sentence.contains("concurrency key"), "{sentence}");
    let (code, sentence) = refused(&mut world, job("mail", 0).with_spec(|spec| spec.memo = 1));
    assert!(code == Code::Invalid && sentence.contains("version"), "{sentence}");
    let (code, sentence) = refused(&mut world, memo(0).with_spec(|spec| spec.memo = 2));
    assert!(code == Code::Invalid && sentence.contains("0 or 1"), "{sentence}");
    let (code, sentence) = refused(&mut world, memo(0).delay_ms(9));
    assert!(code == Code::Invalid && sentence.contains("cannot be delayed"), "{sentence}");
    let workflow = workflow_of(id(0, 77), "w", false, &[memo(0)]);
    let message = world.call(1, 0, &workflow);
    assert!(message.code() == Code::Invalid, "{}", message.sentence());
}

fn unknown(world: &World, jobs: &[Job]) -> Vec<Unknown> {
    let mut body = FrameBuffer::new();
    body_of(jobs).append_to(&mut body);
    world.shard.unknown_results(&Header::request(Operation::Submit, 1, Some(PartitionId(0))), &body)
}

#[test]
fn a_store_outside_is_asked_only_for_what_nobody_here_knows_and_given_what_ran_here() {
    let mut world = world();
    let input = key("default", "work", b"1", b"input");
    assert_eq!(unknown(&world, &[job("mail", 0), memo(1), memo(2)]), [Unknown { row: 1, key: input }]);
    world.submit(&[memo(1), memo(2)]);
    assert_eq!(unknown(&world, &[memo(3)]), []);
    let lease = world.lease();
    world.complete(&lease, b"result");
    let made = Made { key: input, of: id(0, 1), made_us: START_US, result: b"result".to_vec() };
    assert_eq!(world.shard.take_made(), [made], "once, and not for the one that had the result from it");
    assert_eq!(unknown(&world, &[memo(3)]), []);
    world.submit_one(job("mail", 4).memo("1", 0, "large"));
    let lease = world.lease();
    world.complete(&lease, &[1; 1_001]);
    assert_eq!(world.shard.take_made(), []);
}

#[test]
fn a_result_from_outside_ends_a_task_for_good_and_answers_for_others() {
    let mut world = world();
    let known = Known { row: 1, of: id(9, 9), made_us: START_US - 60_000_000, result: b"known".to_vec() };
    let young = job("mail", 2).memo("1", 59_000, "young");
    for known in [known.clone(), Known { row: 2, ..known.clone() }, Known { row: 7, ..known.clone() }] {
        let jobs = [job("mail", 0), memo(1), young.clone()];
        let jobs = if known.row == 1 { &jobs[..2] } else { &jobs[..] };
        let asked = world.send_known(jobs, std::slice::from_ref(&known));
        world.settle();
        let _: BatchReply = world.reply(asked).unwrap().read();
    }
    assert_eq!(ended(&mut world, id(0, 1)), (State::Succeeded, b"known".to_vec(), true, 0));
    assert!(world.task(id(0, 1)).note.contains(&id(9, 9).to_string()));
    assert_eq!(world.state(id(0, 2)), State::Leased, "a result that is too old for it does not count");
    let later = world.submit_one(memo(3));
    assert_eq!(ended(&mut world, later), (State::Succeeded, b"known".to_vec(), true, 0));
    let picky = world.submit_one(job("mail", 4).memo("1", 59_000, "input"));
    assert_eq!(world.state(picky), State::Leased);
    assert_eq!(world.shard.take_made(), [], "it came from there");
    let before = durable_state(&mut world);
    world.crash();
    assert_eq!(durable_state(&mut world), before);
    assert_eq!(ended(&mut world, id(0, 1)).1, b"known");
}

#[test]
fn payloads_that_rows_share_are_hashed_within_a_bound() {
    let mut world = world();
    let mut body = body_of(&(0..40).map(memo).collect::<Vec<_>>());
    let payload = put(&mut body.bytes, &vec![7; 1 << 20]);
    body.tasks.iter_mut().for_each(|task| task.payload = payload);
    let mut bytes = FrameBuffer::new();
    body.append_to(&mut bytes);
    assert_eq!(world.shard.unknown_results(&Header::request(Operation::Submit, 1, Some(PartitionId(0))), &bytes), []);
    let message = world.call(1, 0, &body);
    assert!(message.code() == Code::TooLarge && message.sentence().contains("split"), "{}", message.sentence());
}

#[test]
fn what_is_remembered_outside_never_makes_a_submission_too_large() {
    let mut world = world();
    let jobs: Vec<Job> = (0..30).map(|n| job("mail", n).memo("1", 0, &format!("{n}{}", "x".repeat(300_000)))).collect();
    let known = |row| Known { row, of: id(9, 9), made_us: START_US, result: vec![1; 256 << 10] };
    let known: Vec<Known> = (0..30).map(known).collect();
    let asked = world.send_known(&jobs, &known);
    world.settle();
    let reply: BatchReply = world.reply(asked).unwrap().read();
    assert_eq!(reply.accepted, 30);
    let states: Vec<State> = (0..30).map(|n| world.state(id(0, n))).collect();
    let ended = states.iter().filter(|state| **state == State::Succeeded).count();
    assert!((20..30).contains(&ended) && states[..ended].iter().all(|state| *state == State::Succeeded), "{states:?}");
    assert_eq!(world.shard.stats().unfinished, 30 - ended as u64, "the others run");
}

#[test]
fn a_result_of_a_time_to_come_does_not_count() {
    let mut world = world();
    let known = Known { row: 0, of: id(9, 9), made_us: START_US + 3_600_000_000, result: b"known".to_vec() };
    world.send_known(&[memo(0)], &[known]);
    world.settle();
    assert_eq!(world.state(id(0, 0)), State::Leased);
}

#[test]
fn a_crowd_does_not_wait_for_a_task_that_is_kept_for_long() {
    let mut world = world();
    world.submit_one(job("mail", 9_999));
    let lease = world.lease();
    world.complete(&lease, b"");
    world.advance_ms(1_000);
    let jobs: Vec<Job> = (0..6_000).map(memo).collect();
    jobs.chunks(1_000).for_each(|batch| drop(world.submit(batch)));
    let lease = world.lease();
    world.complete(&lease, b"result");
    world.advance_ms(2_000);
    assert_eq!(world.shard.stats().unfinished, 0);
}

#[test]
fn a_crowd_that_is_larger_than_what_is_kept_has_one_run() {
    let mut world = World::with(Config { kept_max: 100, ..config(1) });
    world.worker(WORKER, &["mail"], 1_000);
    let jobs: Vec<Job> = (0..10_000).map(memo).collect();
    jobs.chunks(1_000).for_each(|batch| drop(world.submit(batch)));
    let lease = world.lease();
    world.complete(&lease, b"result");
    world.advance_ms(5_000);
    assert_eq!(world.leases(), [], "nobody runs it again");
    assert_eq!(world.shard.stats().unfinished, 0);
}

#[test]
fn copies_of_a_large_result_are_bounded_by_further_runs() {
    let mut world = world();
    let jobs: Vec<Job> = (0..300).map(memo).collect();
    world.submit(&jobs);
    for run in 0..3 {
        let lease = world.lease();
        world.complete(&lease, &vec![run; 1 << 20]);
    }
    assert_eq!(world.shard.stats().unfinished, 0);
    let results: Vec<u8> = (0..300).map(|n| ended(&mut world, id(0, n)).1[0]).collect();
    assert!(results.is_sorted() && (results[128], results[299]) == (0, 2), "{results:?}");
}

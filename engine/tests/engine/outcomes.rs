//! Failures, retries, the dead letter, cancellation, and retry by hand.

use taskmaster_engine::State;
use taskmaster_protocol::Code;
use taskmaster_protocol::body::{Cancel, Retry};

use crate::job::{id, job, jobs};
use crate::world::{CLIENT, World, fail_body, single};

const WORKER: u64 = 10;

fn world() -> World {
    let mut world = World::new();
    world.worker(WORKER, &["mail"], 1_000);
    world
}

#[test]
fn a_failed_attempt_is_repeated_until_the_attempts_are_used_up() {
    let mut world = world();
    let task = world.submit_one(job("mail", 0).attempts(3));
    for attempt in 1..=3 {
        let lease = world.lease();
        assert_eq!(lease.attempt, attempt);
        assert_eq!(world.fail(&lease, &format!("code-{attempt}")), Code::Ok);
    }
    let dead = world.task(task);
    assert_eq!((dead.state, dead.attempt, dead.error_code.as_str()), (State::Failed, 3, "code-3"));
    assert_eq!((dead.error.as_str(), dead.log_tail.as_slice()), ("it went wrong", &b"the last line"[..]));
    assert_eq!(dead.payload, b"payload 0", "a dead letter keeps its payload");
    assert_eq!(world.leases(), []);
}

#[test]
fn pauses_between_attempts_double_up_to_their_limit_with_a_jitter_of_a_quarter() {
    let mut world = world();
    world.submit_one(job("mail", 0).attempts(8).backoff_ms(1_000, 5_000));
    for full_ms in [1_000, 2_000, 4_000, 5_000, 5_000, 5_000] {
        let lease = world.lease();
        world.fail(&lease, "x");
        let before_us = world.now_us;
        world.advance_ms(full_ms * 3 / 4 - 1);
        assert_eq!(world.leases(), []);
        assert!(world.reason(lease.id).contains("pauses between attempts"));
        while world.state(lease.id) == State::Delayed {
            world.advance_ms(1);
        }
        assert!(world.now_us - before_us <= (full_ms + 1) * 1_000);
    }
}

#[test]
fn final_errors_are_not_repeated() {
    let mut world = world();
    let mut by_code = job("mail", 0);
    by_code.non_retryable = "gone,bad_input".to_owned();
    let mut other = job("mail", 1);
    other.non_retryable = "gone".to_owned();
    let ids = world.submit(&[by_code, other, job("mail", 2)]);
    let leases = world.leases();
    world.fail(&leases[0], "bad_input");
    world.fail(&leases[1], "bad_input");
    world.fail_with(&leases[2], "x", "", b"", true);
    assert_eq!(world.state(ids[0]), State::Failed);
    assert_eq!(world.state(ids[1]), State::Leased);
    assert_eq!(world.state(ids[2]), State::Failed);
}

#[test]
fn a_dead_letter_retried_by_hand_has_a_fresh_budget() {
    let mut world = world();
    let task = world.submit_one(job("mail", 0).attempts(2));
    for _ in 0..2 {
        let lease = world.lease();
        world.fail(&lease, "x");
    }
    assert_eq!(world.state(task), State::Failed);
    assert_eq!(single(&world.retry(&[task])), Code::Ok);
    // Attempts go on being counted.
    for attempt in 3..=4 {
        let lease = world.lease();
        assert_eq!((lease.attempt, lease.payload.as_slice()), (attempt, &b"payload 0"[..]));
        world.fail(&lease, "x");
    }
    world.retry(&[task]);
    let lease = world.lease();
    world.complete(&lease, b"r");
    assert_eq!(world.state(task), State::Succeeded);
}

#[test]
fn an_outcome_that_comes_after_a_retry_by_hand_does_not_count_for_the_next_attempt() {
    for is_cancelled in [false, true] {
        let mut world = world();
        let task = world.submit_one(job("mail", 0).attempts(1));
        let lease = world.lease();
        let body = fail_body(&lease, "x", "", b"", true);
        // All of it is admitted before anything is applied.
        let first = world.send(lease.conn, 0, &body);
        if is_cancelled {
            world.send(CLIENT, 0, &Cancel { ids: vec![task], workflows: 0 });
        }
        let retry = world.send(CLIENT, 0, &Retry { ids: vec![task] });
        let again = world.send(lease.conn, 0, &body);
        world.settle();
        for (correlation, code) in [(first, Code::Ok), (retry, Code::Ok), (again, Code::StaleLease)] {
            let reply = world.reply(correlation).unwrap();
            assert_eq!(single(&reply.read()), code);
        }
        assert_eq!(world.state(task), State::Leased, "the next attempt goes on");
        let lease = world.lease();
        assert_eq!((lease.attempt, world.complete(&lease, b"")), (2, Code::Ok));
    }
}

#[test]
fn only_unsuccessful_ends_can_be_retried() {
    let mut world = world();
    world.submit(&jobs("mail", 0, 2));
    let leases = world.leases();
    world.complete(&leases[0], b"r");
    assert_eq!(single(&world.retry(&[id(0, 0)])), Code::IllegalState);
    assert_eq!(single(&world.retry(&[id(0, 1)])), Code::IllegalState);
    assert_eq!(single(&world.retry(&[id(0, 5)])), Code::UnknownTask);
    world.cancel(&[id(0, 1)]);
    assert_eq!(single(&world.retry(&[id(0, 1)])), Code::Ok);
    let late = world.submit_one(job("late", 9).deadline_in_ms(100));
    world.advance_ms(200);
    assert_eq!(world.state(late), State::Expired);
    assert_eq!(single(&world.retry(&[late])), Code::Ok);
    world.advance_ms(10_000);
    assert_eq!(world.state(late), State::Ready, "the old deadline does not count again");
}

#[test]
fn tasks_can_be_cancelled_in_every_unfinished_state() {
    let mut world = World::new();
    world.worker(WORKER, &["mail"], 1);
    world.submit(&[
        job("mail", 0),
        job("mail", 1),
        job("mail", 2).delay_ms(1_000),
        job("mail", 3).concurrency("u", 1),
        job("mail", 4).concurrency("u", 1),
    ]);
    let lease = world.lease();
    let reply = world.cancel(&[0, 1, 2, 3, 4].map(|number| id(0, number)));
    assert_eq!(reply.accepted, 5);
    assert_eq!(world.revocations(), [(WORKER, lease.id, lease.token)]);
    world.advance_ms(5_000);
    world.credit(WORKER, 10);
    assert_eq!(world.leases(), []);
    for number in 0..5 {
        assert_eq!(world.state(id(0, number)), State::Cancelled);
    }
    assert_eq!(world.complete(&lease, b"late"), Code::AlreadyFinal);
    assert_eq!(world.fail(&lease, "late"), Code::AlreadyFinal);
    assert_eq!(single(&world.cancel(&[id(0, 0)])), Code::AlreadyFinal);
    assert_eq!(single(&world.cancel(&[id(0, 70)])), Code::UnknownTask);
}

#[test]
fn a_completion_logged_before_a_cancellation_wins_and_the_other_way_round() {
    for completes_first in [true, false] {
        let mut world = world();
        let task = world.submit_one(job("mail", 0));
        let lease = world.lease();
        let complete = crate::world::complete_body(&[(&lease, b"r")]);
        let cancel = taskmaster_protocol::body::Cancel { ids: vec![task], workflows: 0 };
        let (completed, cancelled) = if completes_first {
            let completed = world.send(WORKER, 0, &complete);
            (completed, world.send(1, 0, &cancel))
        } else {
            let cancelled = world.send(1, 0, &cancel);
            (world.send(WORKER, 0, &complete), cancelled)
        };
        world.settle();
        let heard = (single(&world.reply(completed).unwrap().read()), single(&world.reply(cancelled).unwrap().read()));
        let expected = if completes_first { (Code::Ok, Code::AlreadyFinal) } else { (Code::AlreadyFinal, Code::Ok) };
        assert_eq!(heard, expected);
    }
}

#[test]
fn batches_of_cancellations_name_each_exception() {
    let mut world = world();
    world.submit(&jobs("mail", 0, 3));
    let leases = world.leases();
    world.complete(&leases[1], b"r");
    let reply = world.cancel(&[id(0, 0), id(0, 1), id(0, 44), id(0, 2), id(0, 2)]);
    assert_eq!(reply.accepted, 2);
    let heard: Vec<_> = reply.exceptions.iter().map(|row| (row.index, Code::from_number(row.code))).collect();
    assert_eq!(heard, [(1, Code::AlreadyFinal), (2, Code::UnknownTask), (4, Code::AlreadyFinal)]);
}

#[test]
fn ids_of_another_partition_are_refused_as_a_whole() {
    let mut world = World::with(crate::world::config(2));
    world.submit(&jobs("mail", 0, 1));
    let body = taskmaster_protocol::body::Cancel { ids: vec![id(0, 0), id(1, 0)], workflows: 0 };
    let refused = world.call(1, 0, &body);
    assert_eq!((refused.code(), refused.refusal().row), (Code::WrongPartition, 1));
    assert_eq!(world.state(id(0, 0)), State::Ready);
}

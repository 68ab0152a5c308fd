//! Second attempts beside attempts that are late.

use std::time::Duration;

use taskmaster_engine::State;
use taskmaster_protocol::body::{Progress, ProgressRow, queue_field, restart};
use taskmaster_protocol::{Code, TaskId, limits};

use crate::job::{Job, job};
use crate::random::Random;
use crate::world::{Lease, World, fail_body};

/// The worker that is slow, and one that idles.
pub(crate) const SLOW: u64 = 10;
pub(crate) const IDLE: u64 = 11;
/// How long tasks take, in milliseconds.
pub(crate) const RUN_MS: u64 = 100;

/// A queue whose tasks were seen to take [`RUN_MS`]; nobody has credit.
pub(crate) fn taught() -> World {
    let mut world = World::new();
    world.worker(SLOW, &["mail"], 0);
    for number in 0..12 {
        world.submit_one(job("mail", number).restartable());
        world.credit(SLOW, 1);
        let lease = world.lease();
        world.advance_ms(RUN_MS);
        assert_eq!(world.complete(&lease, b""), Code::Ok);
    }
    world.worker(IDLE, &["mail"], 0);
    world
}

/// A task that the slow worker has, while the other one idles.
fn slow(world: &mut World, job: Job) -> Lease {
    world.submit_one(job);
    world.credit(SLOW, 1);
    let lease = world.lease();
    assert_eq!(lease.conn, SLOW);
    world.credit(IDLE, 1);
    lease
}

fn restartable(number: u32) -> Job {
    job("mail", number).restartable()
}

/// A task with two attempts: the slow one and the second.
fn doubled(world: &mut World) -> [Lease; 2] {
    let first = slow(world, restartable(100));
    world.advance_ms(3 * RUN_MS);
    let second = world.lease();
    assert_eq!((second.conn, second.id, second.attempt), (IDLE, first.id, first.attempt));
    assert!(second.token > first.token && second.payload == first.payload && second.ready_us == first.ready_us);
    [first, second]
}

fn said(world: &mut World, id: TaskId, fact: &str) -> Option<String> {
    world.why(id).into_iter().find(|(name, _)| name == fact).map(|(_, sentence)| sentence)
}

#[test]
fn a_late_attempt_gets_a_second_one_and_the_first_to_end_counts() {
    let mut world = taught();
    let first = slow(&mut world, restartable(100));
    world.advance_ms(RUN_MS);
    assert!(world.leases().is_empty(), "it is not late yet");
    world.advance_ms(2 * RUN_MS);
    let second = world.lease();
    assert_eq!(world.shard.leased(), 2);
    let sentence = said(&mut world, first.id, "second_attempt").unwrap();
    assert!(sentence.contains("worker-11") && sentence.contains("nineteen of twenty"), "{sentence}");
    assert_eq!(world.complete(&second, b"quick"), Code::Ok);
    assert_eq!(world.revocations(), [(SLOW, first.id, first.token)]);
    assert_eq!(world.complete(&first, b"slow"), Code::AlreadyFinal);
    let task = world.task(first.id);
    assert_eq!((task.state, task.attempt, task.result), (State::Succeeded, 1, b"quick".to_vec()));
    let stats = world.shard.stats();
    assert_eq!((stats.second_attempts, stats.second_attempts_won, world.shard.leased()), (1, 1, 0));
    assert!((300_000..400_000).contains(&stats.wasted_us), "{}", stats.wasted_us);
    assert!(said(&mut world, first.id, "second_attempt_end").unwrap().contains("ended first"));
}

#[test]
fn the_second_attempt_is_ended_when_the_first_one_ends() {
    let mut world = taught();
    let [first, second] = doubled(&mut world);
    world.advance_ms(20);
    assert_eq!(world.complete(&first, b"first"), Code::Ok);
    assert_eq!(world.revocations(), [(IDLE, second.id, second.token)]);
    assert_eq!(world.complete(&second, b"second"), Code::AlreadyFinal);
    assert_eq!(world.task(first.id).result, b"first");
    let stats = world.shard.stats();
    assert_eq!((stats.second_attempts, stats.second_attempts_won, world.shard.leased()), (1, 0, 0));
}

#[test]
fn none_begins_where_it_may_not_or_does_not_pay() {
    let none = |what: &str, mut world: World, job: Job| {
        let lease = slow(&mut world, job);
        world.advance_ms(10 * RUN_MS);
        assert!(world.leases().is_empty(), "{what}");
        (world, lease)
    };
    none("it is not restartable", taught(), job("mail", 100));
    none("another task of its key would run beside it", taught(), restartable(100).concurrency("k", 1));
    none("nothing is known of its kind", taught(), restartable(100).kind("new"));
    let mut world = taught();
    world.configure("mail", queue_field::RESTARTS, |queue| {
        queue.restarts_off = restart::SPECULATION << 4 | restart::SPECULATION;
    });
    let (mut world, lease) = none("it is switched off", world, restartable(100));
    assert_eq!(world.queues(0)[0].1.restarts_off, u16::from(restart::SPECULATION));
    world.configure("mail", queue_field::RESTARTS, |queue| queue.restarts_off = restart::SPECULATION << 4);
    world.advance_ms(20);
    assert_eq!(world.lease().id, lease.id, "it is switched on again");
}

#[test]
fn none_begins_for_a_task_that_says_it_is_nearly_done() {
    let mut world = taught();
    let first = slow(&mut world, restartable(100));
    let done = |world: &mut World, done_permille| {
        let mut note = Progress::default();
        note.rows.push(ProgressRow {
            id: first.id,
            token: first.token,
            locator: first.locator,
            done_permille,
            ..ProgressRow::default()
        });
        world.send(SLOW, 0, &note);
    };
    done(&mut world, 900);
    world.advance_ms(10 * RUN_MS);
    assert!(world.leases().is_empty());
    done(&mut world, 300);
    world.advance_ms(20);
    assert_eq!(world.lease().id, first.id);
}

#[test]
fn none_begins_where_a_task_waits_for_the_place() {
    let mut world = taught();
    // The idle worker's place is for what it has not got yet: the limit of the other queue keeps that waiting.
    world.worker(IDLE, &["mail", "bulk"], 0);
    world.configure("bulk", queue_field::CONCURRENCY, |queue| queue.concurrency = 1);
    world.submit(&[job("bulk", 50), job("bulk", 51)]);
    world.credit(IDLE, 1);
    let bulk = world.lease();
    let first = slow(&mut world, restartable(100));
    world.advance_ms(10 * RUN_MS);
    assert!(world.leases().is_empty());
    assert_eq!(world.complete(&bulk, b""), Code::Ok);
    let bulk = world.lease();
    assert_eq!(bulk.queue, "bulk");
    world.credit(IDLE, 1);
    world.advance_ms(20);
    assert_eq!(world.lease().id, first.id);
}

#[test]
fn when_one_worker_is_lost_the_other_one_goes_on() {
    for (lost, at) in [(SLOW, 1), (IDLE, 0)] {
        let mut world = taught();
        let leases = doubled(&mut world);
        world.disconnect(lost);
        assert_eq!(world.shard.leased(), 1);
        assert_eq!(world.complete(&leases[1 - at], b"from afar"), Code::StaleLease);
        world.advance_ms(5_000);
        assert_eq!(world.extend(leases[at].conn, &leases[at]), Code::Ok);
        world.advance_ms(9_000);
        assert_eq!(world.complete(&leases[at], b"here"), Code::Ok);
        let task = world.task(leases[at].id);
        assert_eq!((task.state, task.attempt, task.result), (State::Succeeded, 1, b"here".to_vec()));
        assert_eq!(world.shard.leased(), 0);
    }
}

#[test]
fn a_lease_that_runs_out_beside_another_one_counts_for_nothing() {
    for (silent, at) in [(0, 1), (1, 0)] {
        let mut world = taught();
        let leases = doubled(&mut world);
        for _ in 0..4 {
            world.advance_ms(4_000);
            assert_eq!(world.extend(leases[at].conn, &leases[at]), Code::Ok);
        }
        assert_eq!(world.shard.leased(), 1);
        assert_eq!(world.revocations(), [(leases[silent].conn, leases[silent].id, leases[silent].token)]);
        assert_eq!(world.complete(&leases[silent], b""), Code::StaleLease);
        assert_eq!(world.complete(&leases[at], b""), Code::Ok);
        let task = world.task(leases[at].id);
        assert_eq!((task.state, task.attempt), (State::Succeeded, 1));
    }
}

#[test]
fn one_failure_of_two_counts_for_nothing_and_a_final_one_ends_both() {
    for at in [0, 1] {
        let mut world = taught();
        let leases = doubled(&mut world);
        let logged = world.logged();
        let too_long = fail_body(&leases[at], "broken", "", &[0; limits::LOG_TAIL_BYTES_MAX + 1], false);
        assert_eq!(world.call(leases[at].conn, leases[at].id.partition().0, &too_long).code(), Code::TooLarge);
        assert_eq!(world.shard.leased(), 2, "what is refused ends nothing");
        assert_eq!(world.fail(&leases[at], "broken"), Code::StaleLease);
        assert_eq!((world.logged(), world.shard.leased()), (logged, 1));
        assert_eq!(world.task(leases[0].id).state, State::Leased);
        assert_eq!(world.fail(&leases[1 - at], "broken"), Code::Ok);
        assert_eq!(world.task(leases[0].id).attempt, 1, "the attempt failed, once");
        world.credit(SLOW, 2);
        world.credit(IDLE, 2);
        assert_eq!(world.lease().attempt, 2);
    }
    let mut world = taught();
    let [first, second] = doubled(&mut world);
    assert_eq!(world.fail_with(&second, "hopeless", "", b"", true), Code::Ok);
    assert_eq!(world.revocations(), [(SLOW, first.id, first.token)]);
    assert_eq!((world.task(first.id).state, world.shard.leased()), (State::Failed, 0));
    assert_eq!(world.complete(&first, b""), Code::AlreadyFinal);
}

#[test]
fn either_lease_may_be_given_back_and_the_other_one_goes_on() {
    for at in [0, 1] {
        let mut world = taught();
        let leases = doubled(&mut world);
        assert_eq!(world.release(&leases[at]), Code::Ok);
        assert_eq!((world.task(leases[0].id).state, world.shard.leased()), (State::Leased, 1));
        assert!(world.leases().is_empty() && world.revocations().is_empty());
        assert_eq!(world.complete(&leases[1 - at], b""), Code::Ok);
        assert_eq!(world.shard.leased(), 0);
    }
}

#[test]
fn a_cancelled_task_is_revoked_from_both() {
    let mut world = taught();
    let [first, second] = doubled(&mut world);
    world.cancel(&[first.id]);
    let mut revoked = world.revocations();
    revoked.sort_unstable();
    assert_eq!(revoked, [(SLOW, first.id, first.token), (IDLE, first.id, second.token)]);
    assert_eq!((world.task(first.id).state, world.shard.leased()), (State::Cancelled, 0));
}

#[test]
fn a_leader_that_knows_of_no_second_attempt_refuses_both_and_starts_the_task_again() {
    let mut world = taught();
    let [first, second] = doubled(&mut world);
    world.crash();
    for lease in [&first, &second] {
        assert_eq!(world.complete(lease, b""), Code::StaleLease);
    }
    world.worker(IDLE, &["mail"], 1);
    let again = world.lease();
    assert_eq!((again.id, again.attempt), (first.id, 1));
    assert_eq!(world.complete(&again, b""), Code::Ok);
}

#[test]
fn completions_of_both_in_one_turn_end_the_task_once() {
    for at in [0, 1] {
        let mut world = taught();
        let leases = doubled(&mut world);
        let sent: Vec<u64> = [at, 1 - at]
            .iter()
            .map(|&at| {
                let lease = &leases[at];
                world.send(lease.conn, 0, &crate::world::complete_body(&[(lease, lease.conn.to_string().as_bytes())]))
            })
            .collect();
        world.settle();
        let codes: Vec<Code> =
            sent.iter().map(|&sent| crate::world::single(&world.reply(sent).unwrap().read())).collect();
        assert_eq!(codes, [Code::Ok, Code::AlreadyFinal]);
        assert_eq!(world.task(leases[0].id).result, leases[at].conn.to_string().into_bytes());
        assert_eq!(world.shard.leased(), 0);
    }
}

#[test]
fn of_many_late_attempts_few_get_a_second_one() {
    let mut world = taught();
    let jobs: Vec<Job> = (100..130).map(restartable).collect();
    world.submit(&jobs);
    world.credit(SLOW, 30);
    assert_eq!(world.leases().len(), 30);
    world.credit(IDLE, 10);
    world.advance_ms(5 * RUN_MS);
    assert_eq!(world.leases().len(), 2, "one in twenty of forty places");
    world.advance_ms(600 * RUN_MS / 10);
    assert_eq!(world.leases().len(), 0);
}

#[test]
fn a_kind_whose_second_attempts_lose_gets_hardly_any() {
    let mut world = taught();
    let mut begun = 0;
    for round in 0..24 {
        world.submit_one(restartable(1_000 + 100 * round));
        world.credit(SLOW, 1);
        world.credit(IDLE, 1);
        let first = world.leases().remove(0);
        world.advance_ms(20 * RUN_MS);
        begun += world.leases().len();
        assert_eq!(world.complete(&first, b""), Code::Ok);
        world.revocations();
        for number in 1..20 {
            world.submit_one(restartable(1_000 + 100 * round + number));
            world.credit(SLOW, 1);
            let lease = world.lease();
            world.advance_ms(RUN_MS);
            assert_eq!(world.complete(&lease, b""), Code::Ok);
        }
    }
    assert!((4..=9).contains(&begun), "{begun} second attempts in 24 chances");
}

/// Mean and 99 % slowdown of tasks of 100 ms on four workers of 16 places at 60 % load, of which one attempt in 50, whichever task it is of,
/// runs for twenty times as long; and the part of the places' time that was wasted.
fn stragglers(speculation: bool) -> [f64; 3] {
    const SECONDS: u64 = 30;
    let mut world = World::new();
    if !speculation {
        world.configure("mail", queue_field::RESTARTS, |queue| {
            queue.restarts_off = restart::SPECULATION << 4 | restart::SPECULATION;
        });
    }
    (SLOW..SLOW + 4).for_each(|conn| world.worker(conn, &["mail"], 16));
    let (mut random, mut number, mut slowdowns) = (Random::new(5), 0, Vec::<u32>::new());
    let mut submitted = std::collections::HashMap::<TaskId, u64>::new();
    let mut running = Vec::<(u64, Lease)>::new();
    for ms in 0..SECONDS * 1_000 {
        // 64 places at 60 % load of attempts that take 138 ms.
        if random.below(1_000) < 278 {
            let job = restartable(number).retention_ms(1_000);
            submitted.insert(job.id, ms);
            world.submit_one(job);
            number += 1;
        }
        for (conn, id, token) in world.revocations() {
            running.retain(|(_, lease)| lease.id != id || lease.token != token);
            world.credit(conn, 1);
        }
        let (due, left) = running.drain(..).partition::<Vec<_>, _>(|(end_ms, _)| *end_ms <= ms);
        running = left;
        for (_, lease) in due {
            // The other attempt may have ended in the same millisecond, and this one was told.
            if world.complete(&lease, b"") != Code::Ok {
                continue;
            }
            world.credit(lease.conn, 1);
            let since_ms = submitted.remove(&lease.id).unwrap();
            if since_ms > 5_000 {
                slowdowns.push(u32::try_from(ms - since_ms).unwrap());
            }
            // The other attempt is told before it can end.
            for (conn, id, token) in world.revocations() {
                running.retain(|(_, lease)| lease.id != id || lease.token != token);
                world.credit(conn, 1);
            }
        }
        for lease in world.leases() {
            let run_ms = u64::from(90 + random.below(20)) * if random.once_in(50) { 20 } else { 1 };
            running.push((ms + run_ms, lease));
        }
        world.advance_ms(1);
    }
    slowdowns.sort_unstable();
    let slowdown = |ms: u32| f64::from(ms) / 100.0;
    let mean =
        slowdowns.iter().map(|&ms| slowdown(ms)).sum::<f64>() / f64::from(u32::try_from(slowdowns.len()).unwrap());
    let wasted = Duration::from_micros(world.shard.stats().wasted_us).as_secs_f64() / (64 * SECONDS) as f64;
    let stats = world.shard.stats();
    eprintln!(
        "speculation {speculation}: {} tasks, {} second attempts, {} won",
        slowdowns.len(),
        stats.second_attempts,
        stats.second_attempts_won
    );
    [mean, slowdown(slowdowns[slowdowns.len() * 99 / 100]), wasted]
}

#[test]
fn stragglers_delay_their_tasks_by_a_fraction_of_what_they_did() {
    let [without, with] = [false, true].map(stragglers);
    eprintln!("mean slowdown, 99 %, wasted: {without:.3?} without, {with:.3?} with");
    assert!(with[0] < 0.85 * without[0] && with[1] < 0.3 * without[1], "{without:?} without, {with:?} with");
    assert!(without[2] == 0.0 && with[2] < 0.05, "{without:?} without, {with:?} with");
}

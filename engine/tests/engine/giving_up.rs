//! Attempts that are given up for tasks that are expected to take much less.

use std::collections::HashMap;

use taskmaster_engine::State;
use taskmaster_protocol::body::{queue_field, restart};
use taskmaster_protocol::{Code, TaskId};

use crate::job::{Job, job};
use crate::random::Random;
use crate::world::{Lease, World};

const WORKER: u64 = 10;
const SHORT_MS: u64 = 20;
const LONG_MS: u64 = 4_000;

fn mixed(number: u32) -> Job {
    job("mail", number).restartable().retention_ms(1_000)
}

/// A queue of one kind, of which one task in ten was seen to take [`LONG_MS`] and the others [`SHORT_MS`], that goes by what it learned.
fn taught() -> World {
    let mut world = World::new();
    world.shard.trust_learned();
    world.worker(WORKER, &["mail"], 0);
    for number in 0..80 {
        run(&mut world, number, if number % 10 == 0 { LONG_MS } else { SHORT_MS });
    }
    world
}

/// One task that takes so long, alone.
fn run(world: &mut World, number: u32, takes_ms: u64) {
    world.submit_one(mixed(number));
    world.credit(WORKER, 1);
    let lease = world.lease();
    world.advance_ms(takes_ms);
    assert_eq!(world.complete(&lease, b""), Code::Ok);
}

/// A task that has the only place, and has run for longer than short ones do, before others that wait.
fn long(world: &mut World, job: Job) -> (Lease, Vec<TaskId>) {
    world.submit_one(job);
    world.credit(WORKER, 1);
    let lease = world.lease();
    let others = world.submit(&[mixed(101), mixed(102)]);
    (lease, others)
}

fn said(world: &mut World, id: TaskId, fact: &str) -> Option<String> {
    world.why(id).into_iter().find(|(name, _)| name == fact).map(|(_, sentence)| sentence)
}

#[test]
fn what_was_learned_of_a_kind_serves_after_a_restart() {
    let model = taught().shard.save_model().unwrap();
    for knows in [true, false] {
        let mut world = World::new();
        world.shard.trust_learned();
        world.worker(WORKER, &["mail"], 0);
        if knows {
            assert!(world.shard.restore_model(3, &model) > 0);
        }
        // What may be lost is a part of what was used; so few teach nothing.
        for number in 0..5 {
            run(&mut world, number, LONG_MS);
        }
        let (lease, _) = long(&mut world, mixed(100).attempts(1));
        world.advance_ms(550);
        let revoked = if knows { vec![(WORKER, lease.id, lease.token)] } else { Vec::new() };
        assert_eq!(world.revocations(), revoked);
    }
}

#[test]
fn one_that_outlives_most_of_its_kind_makes_room_and_waits_as_a_long_one() {
    let mut world = taught();
    let (lease, others) = long(&mut world, mixed(100).attempts(1));
    world.advance_ms(150);
    assert!(world.revocations().is_empty(), "a place may become free by itself");
    world.advance_ms(400);
    assert_eq!(world.revocations(), [(WORKER, lease.id, lease.token)]);
    assert_eq!(world.complete(&lease, b"too late"), Code::StaleLease);
    let task = world.task(lease.id);
    assert_eq!((task.state, task.attempt), (State::Ready, 0), "no attempt is used up");
    assert!(said(&mut world, lease.id, "given_up").unwrap().contains("counts as no failure"));
    let expected = said(&mut world, lease.id, "expected").unwrap();
    let stats = world.shard.stats();
    assert_eq!((stats.given_up_attempts, world.shard.leased()), (1, 0));
    assert!((200_000..600_000).contains(&stats.wasted_us), "{}", stats.wasted_us);
    // It became ready first, and goes last.
    for id in [others[0], others[1], lease.id] {
        world.credit(WORKER, 1);
        let next = world.lease();
        assert_eq!(next.id, id, "{expected}");
        assert!(next.attempt == 1 && next.token > lease.token);
        world.advance_ms(if id == lease.id { LONG_MS } else { SHORT_MS });
        assert_eq!(world.complete(&next, b"done"), Code::Ok);
    }
    assert_eq!(world.task(lease.id).result, b"done");
    assert!(said(&mut world, lease.id, "given_up").is_some(), "it is told afterwards, too");
}

#[test]
fn nothing_is_given_up_where_it_may_not_be_or_where_it_does_not_pay() {
    let none = |what: &str, mut world: World, job: Job| {
        long(&mut world, job);
        // For longer the bound would not let it be lost.
        world.advance_ms(1_000);
        assert!(world.revocations().is_empty(), "{what}");
        world
    };
    none("it is not restartable", taught(), job("mail", 100));
    none("it is more urgent than those that wait", taught(), mixed(100).priority(0));
    none("nothing is known of its kind", taught(), mixed(100).kind("new"));
    let mut world = taught();
    world.configure("mail", queue_field::POLICY, |queue| queue.policy = 2);
    none("the queue has another policy", world, mixed(100));
    let mut world = taught();
    let off = restart::GIVING_UP << 4 | restart::GIVING_UP;
    world.configure("mail", queue_field::RESTARTS, |queue| queue.restarts_off = off);
    let mut world = none("it is switched off", world, mixed(100));
    world.configure("mail", queue_field::RESTARTS, |queue| queue.restarts_off = restart::GIVING_UP << 4);
    world.advance_ms(100);
    assert_eq!(world.revocations().len(), 1, "it is switched on again");
    let mut world = taught();
    world.submit_one(mixed(100));
    world.credit(WORKER, 1);
    world.lease();
    world.advance_ms(3_000);
    assert!(world.revocations().is_empty(), "nobody waits");
}

#[test]
fn what_waited_for_ten_minutes_is_given_up_no_more() {
    let mut world = taught();
    let id = world.submit_one(mixed(100));
    world.advance_ms(601_000);
    world.credit(WORKER, 1);
    assert_eq!(world.lease().id, id);
    world.submit(&[mixed(101), mixed(102)]);
    world.advance_ms(3_000);
    assert!(world.revocations().is_empty());
}

#[test]
fn a_leader_that_has_forgotten_it_starts_the_task_in_its_order() {
    let mut world = taught();
    let (lease, others) = long(&mut world, mixed(100));
    world.advance_ms(600);
    assert_eq!(world.revocations().len(), 1);
    world.cancel(&[others[0]]);
    world.crash();
    assert_eq!(world.complete(&lease, b""), Code::StaleLease);
    world.worker(WORKER, &["mail"], 2);
    let next: Vec<TaskId> = world.leases().iter().map(|lease| lease.id).collect();
    assert_eq!(next, [lease.id, others[1]]);
}

#[test]
fn one_that_waits_again_can_be_cancelled() {
    let mut world = taught();
    let (lease, others) = long(&mut world, mixed(100));
    world.advance_ms(600);
    assert_eq!(world.revocations().len(), 1);
    world.cancel(&[lease.id]);
    world.credit(WORKER, 3);
    let next: Vec<TaskId> = world.leases().iter().map(|lease| lease.id).collect();
    assert_eq!((next, world.state(lease.id)), (others, State::Cancelled));
}

/// What came of a load.
#[derive(Debug)]
struct Outcome {
    slowdown: f64,
    given_up: u64,
    /// Part of what attempts used that was lost.
    wasted: f64,
}

/// Sixteen places at 90 % load of one kind, of which one task in ten runs for two hundred times as long as the others. The guard of the queue
/// has to find out by itself.
fn load(gives_up: bool, seed: u64) -> Outcome {
    const SECONDS: u64 = 150;
    const STEP_MS: u64 = 5;
    const PLACES: u32 = 16;
    let mut world = World::new();
    if !gives_up {
        let off = restart::GIVING_UP << 4 | restart::GIVING_UP;
        world.configure("mail", queue_field::RESTARTS, |queue| queue.restarts_off = off);
    }
    world.worker(WORKER, &["mail"], PLACES);
    let (mut random, mut runs) = (Random::new(seed), HashMap::<TaskId, (u64, u64)>::new());
    let (mut running, mut slowdowns) = (Vec::<(u64, u64, Lease)>::new(), Vec::new());
    let (mut number, mut used_ms) = (0, 0);
    for ms in (0..SECONDS * 1_000).step_by(usize::try_from(STEP_MS).unwrap()) {
        // 16 places at 90 % of 418 ms: 34.4 tasks a second.
        if random.below(1_000) < 172 {
            let run_ms = if random.once_in(10) { LONG_MS } else { SHORT_MS };
            let id = world.submit_one(mixed(number));
            runs.insert(id, (ms, run_ms));
            number += 1;
        }
        for (conn, id, token) in world.revocations() {
            let at = running.iter().position(|(_, _, lease)| (lease.id, lease.token) == (id, token)).unwrap();
            used_ms += ms - running.swap_remove(at).0;
            world.credit(conn, 1);
        }
        let (due, left) = running.drain(..).partition::<Vec<_>, _>(|(_, end_ms, _)| *end_ms <= ms);
        running = left;
        for (start_ms, _, lease) in due {
            assert_eq!(world.complete(&lease, b""), Code::Ok);
            world.credit(lease.conn, 1);
            let (since_ms, run_ms) = runs[&lease.id];
            used_ms += ms - start_ms;
            if since_ms > 60_000 {
                slowdowns.push(ms_f64(ms - since_ms) / ms_f64(run_ms));
            }
        }
        running.extend(world.leases().into_iter().map(|lease| (ms, ms + runs[&lease.id].1, lease)));
        world.advance_ms(STEP_MS);
    }
    used_ms += running.iter().map(|(start_ms, ..)| SECONDS * 1_000 - start_ms).sum::<u64>();
    let stats = world.shard.stats();
    Outcome {
        slowdown: slowdowns.iter().sum::<f64>() / f64::from(u32::try_from(slowdowns.len()).unwrap()),
        given_up: stats.given_up_attempts,
        wasted: ms_f64(stats.wasted_us / 1_000) / ms_f64(used_ms),
    }
}

fn ms_f64(ms: u64) -> f64 {
    f64::from(u32::try_from(ms).unwrap())
}

#[test]
fn short_tasks_that_nothing_tells_from_long_ones_wait_for_a_fraction_of_what_they_did() {
    let (mut without, mut with) = (0.0, 0.0);
    for seed in 1..=12 {
        let [off, on] = [false, true].map(|gives_up| load(gives_up, seed));
        eprintln!("{off:.3?} without, {on:.3?} with");
        assert_eq!(off.given_up, 0);
        assert!(on.given_up > 20 && on.wasted <= 0.05, "{on:?}");
        (without, with) = (without + off.slowdown, with + on.slowdown);
    }
    assert!(with < 0.7 * without, "mean slowdowns {without:.1} without, {with:.1} with");
}

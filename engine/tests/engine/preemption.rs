//! Attempts that are ended for tasks of a higher priority.

use taskmaster_engine::State;
use taskmaster_protocol::body::{queue_field, restart};
use taskmaster_protocol::{Code, TaskId};

use crate::job::{Job, job};
use crate::world::{Lease, World};

const WORKER: u64 = 10;
const CRITICAL: u8 = 0;
const LOW: u8 = 3;

fn low(number: u32) -> Job {
    job("mail", number).priority(LOW).restartable()
}

/// A worker whose places these tasks have, which began 100 ms one after another.
fn busy(world: &mut World, jobs: &[Job]) -> Vec<Lease> {
    world.worker(WORKER, &["mail"], 0);
    let begin = |job: &Job| {
        world.submit_one(job.clone());
        world.credit(WORKER, 1);
        let lease = world.lease();
        world.advance_ms(100);
        lease
    };
    jobs.iter().map(begin).collect()
}

fn urgent(world: &mut World, number: u32) -> TaskId {
    world.submit_one(job("mail", number).priority(CRITICAL))
}

#[test]
fn the_youngest_restartable_attempt_of_a_lower_priority_is_ended() {
    let mut world = World::new();
    let steady = job("mail", 2).priority(LOW);
    let running = busy(&mut world, &[low(0), low(1), steady, low(3).priority(CRITICAL)]);
    world.submit(&[low(9)]);
    let urgent = urgent(&mut world, 100);
    world.advance_ms(150);
    assert!(world.revocations().is_empty(), "a place may become free by itself");
    world.advance_ms(100);
    let victim = &running[1];
    assert_eq!(world.revocations(), [(WORKER, victim.id, victim.token)]);
    assert_eq!(world.complete(victim, b"too late"), Code::StaleLease);
    world.advance_ms(1_000);
    assert!(world.revocations().is_empty(), "the place is on its way");
    world.credit(WORKER, 1);
    assert_eq!(world.lease().id, urgent);
    let task = world.task(victim.id);
    assert_eq!((task.state, task.attempt), (State::Ready, 0), "no attempt is used up");
    let why = world.why(victim.id);
    assert!(why.iter().any(|(name, said)| name == "preempted" && said.contains("critical")), "{why:?}");
    world.credit(WORKER, 2);
    let next: Vec<TaskId> = world.leases().iter().map(|lease| lease.id).collect();
    assert_eq!(next, [victim.id, low(9).id], "it is the first of its line");
    let stats = world.shard.stats();
    assert_eq!((stats.preempted_attempts, world.shard.leased()), (1, 6));
    assert!((400_000..800_000).contains(&stats.wasted_us), "{}", stats.wasted_us);
}

#[test]
fn an_ended_attempt_uses_up_nothing_and_its_task_ends_well() {
    let mut world = World::new();
    let victim = busy(&mut world, &[low(0).attempts(1)]).remove(0);
    urgent(&mut world, 100);
    world.advance_ms(300);
    assert_eq!(world.revocations().len(), 1);
    world.credit(WORKER, 1);
    let lease = world.lease();
    assert_eq!(world.complete(&lease, b""), Code::Ok);
    world.credit(WORKER, 1);
    let again = world.lease();
    assert_eq!((again.id, again.attempt), (victim.id, 1));
    assert!(again.token > victim.token);
    assert_eq!(world.complete(&again, b"done"), Code::Ok);
    assert_eq!(world.task(victim.id).result, b"done");
    let why = world.why(victim.id);
    assert!(why.iter().any(|(name, _)| name == "preempted"), "it is told afterwards, too: {why:?}");
}

#[test]
fn nothing_is_ended_where_it_may_not_be() {
    let none = |what: &str, mut world: World, running: &[Job]| {
        busy(&mut world, running);
        urgent(&mut world, 100);
        world.advance_ms(2_000);
        assert!(world.revocations().is_empty(), "{what}");
        world
    };
    none("they are not restartable", World::new(), &[job("mail", 0).priority(LOW)]);
    none("they are of the same priority", World::new(), &[low(0).priority(CRITICAL)]);
    let mut world = World::new();
    world.configure("mail", queue_field::RESTARTS, |queue| {
        queue.restarts_off = restart::PREEMPTION << 4 | restart::PREEMPTION;
    });
    let mut world = none("it is switched off", world, &[low(0)]);
    world.configure("mail", queue_field::RESTARTS, |queue| queue.restarts_off = restart::PREEMPTION << 4);
    world.advance_ms(100);
    assert_eq!(world.revocations().len(), 1);
}

#[test]
fn nothing_is_ended_for_a_task_that_would_not_fit_or_that_the_queue_holds_back() {
    let mut world = World::new();
    world.worker_with(WORKER, &["mail"], 0, "disk=4", |_| {});
    let running = Job { custom: "disk=3".to_owned(), ..low(0) };
    world.submit_one(running.clone());
    world.credit(WORKER, 8);
    assert_eq!(world.lease().id, running.id);
    world.submit_one(Job { custom: "disk=5".to_owned(), ..job("mail", 1).priority(CRITICAL) });
    world.advance_ms(2_000);
    assert!(world.revocations().is_empty());
    let fits = Job { custom: "disk=4".to_owned(), ..job("mail", 2).priority(CRITICAL) };
    world.submit_one(fits.clone());
    world.advance_ms(300);
    assert_eq!(world.revocations().len(), 1);
    assert_eq!(world.lease().id, fits.id, "its resources are free at once");
    let mut world = World::new();
    busy(&mut world, &[low(0)]);
    world.configure("mail", queue_field::PAUSED, |queue| queue.paused = 1);
    urgent(&mut world, 100);
    world.advance_ms(2_000);
    assert!(world.revocations().is_empty(), "the queue is paused");
}

/// One worker is kept for a task of another queue that needs all of it.
#[test]
fn nothing_is_ended_on_a_worker_that_is_kept_for_others_and_its_room_is_none() {
    let needing = |queue: &str, number, cpus: u32| job(queue, number).with_spec(|spec| spec.cpu_milli = 1_000 * cpus);
    let mut world = World::new();
    world.worker_with(WORKER, &["mail", "other"], 2, "", |body| body.cpu_milli = 2_000);
    for number in 0..2 {
        world.submit_one(needing("mail", number, 1).priority(LOW).restartable());
    }
    let running = world.leases();
    world.submit_one(needing("other", 2, 2));
    world.advance_ms(1_600);
    assert_eq!(world.shard.stats().reserved, 1);
    world.submit_one(needing("mail", 3, 1).priority(CRITICAL));
    world.advance_ms(1_000);
    assert!(world.revocations().is_empty(), "it could not start there");
    // On another worker it could, though the one that is kept has room.
    assert_eq!(world.complete(&running[0], b""), Code::Ok);
    world.credit(WORKER, 1);
    world.worker_with(WORKER + 1, &["mail"], 1, "", |body| body.cpu_milli = 1_000);
    let urgent = world.lease();
    assert_eq!(urgent.conn, WORKER + 1);
    assert_eq!(world.complete(&urgent, b""), Code::Ok);
    world.submit_one(needing("mail", 4, 1).priority(LOW).restartable());
    world.credit(WORKER + 1, 1);
    let victim = world.lease();
    world.advance_ms(500);
    world.submit_one(needing("mail", 5, 1).priority(CRITICAL));
    world.advance_ms(300);
    assert_eq!(world.shard.stats().reserved, 1);
    assert_eq!(world.revocations(), [(WORKER + 1, victim.id, victim.token)]);
}

#[test]
fn a_task_of_a_queue_at_its_limit_gets_the_place_of_a_less_urgent_one() {
    let mut world = World::new();
    world.configure("mail", queue_field::CONCURRENCY, |queue| queue.concurrency = 1);
    let running = busy(&mut world, &[low(0)]);
    world.credit(WORKER, 3);
    let urgent = urgent(&mut world, 100);
    world.advance_ms(300);
    assert_eq!(world.revocations(), [(WORKER, running[0].id, running[0].token)]);
    assert_eq!((world.lease().id, world.shard.leased()), (urgent, 1));
}

#[test]
fn no_task_is_ended_more_often_than_three_times() {
    let mut world = World::new();
    let first = busy(&mut world, &[low(0)]).remove(0);
    let mut ended = 0;
    for number in 100..110 {
        urgent(&mut world, number);
        world.advance_ms(400);
        if world.revocations().is_empty() {
            break;
        }
        ended += 1;
        world.credit(WORKER, 1);
        let urgent = world.lease();
        assert_eq!(world.complete(&urgent, b""), Code::Ok);
        world.credit(WORKER, 1);
        assert_eq!(world.lease().id, first.id);
        world.advance_ms(100);
    }
    assert_eq!(ended, 3);
}

#[test]
fn what_ran_for_longer_than_the_allowance_is_not_ended() {
    let mut world = World::new();
    let running = busy(&mut world, &[low(0).lease_ms(3_600_000)]);
    // One place gathers three minutes an hour.
    world.advance_ms(400_000);
    urgent(&mut world, 100);
    world.advance_ms(2_000);
    assert!(world.revocations().is_empty());
    assert_eq!(world.complete(&running[0], b""), Code::Ok);
}

//! Unique keys and concurrency keys.

use taskmaster_engine::State;
use taskmaster_protocol::{Code, TaskId};

use crate::job::{Job, id, job};
use crate::world::{World, single};

const WORKER: u64 = 10;

fn world() -> World {
    let mut world = World::new();
    world.worker(WORKER, &["mail"], 1_000);
    world
}

fn holder(world: &mut World, job: Job) -> Option<(TaskId, u8)> {
    let reply = world.try_submit(&[job]);
    if single(&reply) == Code::Ok {
        return None;
    }
    assert_eq!(reply.exceptions[0].code, Code::UniqueConflict.number());
    Some((reply.exceptions[0].id, reply.exceptions[0].state))
}

#[test]
fn a_unique_key_is_taken_while_its_task_is_unfinished() {
    let mut world = world();
    let first = world.submit_one(job("mail", 0).unique("k", 0));
    assert_eq!(holder(&mut world, job("mail", 1).unique("k", 0)), Some((first, State::Leased.number())));
    assert!(world.find(id(0, 1)).is_none());
    let lease = world.lease();
    world.complete(&lease, b"r");
    assert_eq!(holder(&mut world, job("mail", 1).unique("k", 0)), None);
    assert_eq!(world.lease().id, id(0, 1));
}

#[test]
fn a_unique_key_with_a_window_is_taken_until_the_window_ends() {
    let mut world = world();
    let first = world.submit_one(job("mail", 0).unique("k", 60_000).retention_ms(1_000));
    let lease = world.lease();
    world.complete(&lease, b"r");
    world.advance_ms(59_000);
    assert_eq!(holder(&mut world, job("mail", 1).unique("k", 60_000)), Some((first, State::Succeeded.number())));
    world.advance_ms(1_100);
    assert_eq!(holder(&mut world, job("mail", 2).unique("k", 60_000)), None);
}

#[test]
fn unique_keys_of_different_queues_do_not_meet() {
    let mut world = world();
    world.submit_one(job("mail", 0).unique("k", 0));
    world.submit_one(job("news", 1).unique("k", 0));
    world.submit_one(job("mail", 2).unique("K", 0));
    let mut other = job("mail", 3).unique("k", 0);
    other.namespace = "other".to_owned();
    world.submit_one(other);
    world.submit_one(job("mail", 4).unique("k", 0).concurrency("c", 1));
}

#[test]
fn two_tasks_of_one_batch_cannot_share_a_unique_key() {
    let mut world = world();
    let reply = world.try_submit(&[job("mail", 0).unique("k", 0), job("mail", 1).unique("k", 0)]);
    assert_eq!((reply.accepted, reply.exceptions[0].index, reply.exceptions[0].id), (1, 1, id(0, 0)));
}

#[test]
fn a_taken_over_key_stays_with_its_new_task_when_the_old_one_is_forgotten() {
    let mut world = world();
    world.submit_one(job("mail", 0).unique("k", 0).retention_ms(1_000));
    let lease = world.lease();
    world.complete(&lease, b"r");
    let second = world.submit_one(job("mail", 1).unique("k", 0).lease_ms(80_000_000));
    world.advance_ms(20_000);
    assert!(world.find(id(0, 0)).is_none());
    assert_eq!(holder(&mut world, job("mail", 2).unique("k", 0)), Some((second, State::Leased.number())));
}

#[test]
fn a_failed_task_retried_by_hand_takes_its_unique_key_back_unless_another_holds_it() {
    let mut world = world();
    let first = world.submit_one(job("mail", 0).unique("k", 0).attempts(1));
    let lease = world.lease();
    world.fail(&lease, "no");
    let second = world.submit_one(job("mail", 1).unique("k", 0).attempts(1));
    assert_eq!(single(&world.retry(&[first])), Code::IllegalState);
    let lease = world.lease();
    world.fail(&lease, "no");
    assert_eq!(single(&world.retry(&[first])), Code::Ok, "the other's end freed the key");
    assert_eq!(holder(&mut world, job("mail", 2).unique("k", 0)), Some((first, State::Leased.number())));
    assert_eq!(single(&world.retry(&[second])), Code::IllegalState);
}

#[test]
fn a_concurrency_key_never_runs_more_than_its_limit_and_keeps_the_order() {
    for limit in [0u32, 1, 3] {
        let mut world = world();
        let batch: Vec<Job> = (0..12).map(|number| job("mail", number).concurrency("user-7", limit)).collect();
        let ids = world.submit(&batch);
        let at_once = limit.max(1) as usize;
        let mut running = world.leases();
        let mut order = Vec::new();
        while !running.is_empty() {
            assert!(running.len() <= at_once, "{} of at most {at_once}", running.len());
            let lease = running.remove(0);
            order.push(lease.id);
            world.complete(&lease, b"r");
            running.extend(world.leases());
        }
        assert_eq!(order, ids);
    }
}

#[test]
fn a_blocked_task_says_so() {
    let mut world = world();
    world.submit(&[job("mail", 0).concurrency("u", 1), job("mail", 1).concurrency("u", 1)]);
    assert_eq!(world.state(id(0, 1)), State::Ready);
    assert!(world.reason(id(0, 1)).contains("concurrency key"), "{}", world.reason(id(0, 1)));
}

#[test]
fn different_concurrency_keys_run_side_by_side() {
    let mut world = world();
    world.submit(&[job("mail", 0).concurrency("a", 1), job("mail", 1).concurrency("b", 1)]);
    assert_eq!(world.leases().len(), 2);
}

#[test]
fn a_concurrency_key_is_free_again_after_every_way_to_end_or_pause() {
    let ends: [fn(&mut World, &crate::world::Lease); 6] = [
        |world, lease| assert_eq!(world.fail_with(lease, "x", "", b"", true), Code::Ok),
        |world, lease| assert_eq!(world.fail(lease, "x"), Code::Ok),
        |world, lease| assert_eq!(single(&world.cancel(&[lease.id])), Code::Ok),
        |world, lease| assert_eq!(world.complete(lease, b"r"), Code::Ok),
        |world, _| world.advance_ms(1_100),
        |world, lease| {
            world.disconnect(lease.conn);
            world.worker(11, &["mail"], 100);
            world.advance_ms(2_300);
        },
    ];
    for (which, end) in ends.into_iter().enumerate() {
        let mut world = world();
        let lease_ms = if which == 4 { 1_000 } else { 50_000 };
        let batch =
            [0, 1].map(|number| job("mail", number).concurrency("u", 1).backoff_ms(30_000, 30_000).lease_ms(lease_ms));
        world.submit(&batch);
        let first = world.lease();
        assert_eq!(first.id, id(0, 0));
        end(&mut world, &first);
        assert_eq!(world.lease().id, id(0, 1), "way {which}");
    }
}

#[test]
fn a_blocked_task_can_be_cancelled_and_the_next_one_runs() {
    let mut world = world();
    world.submit(&[0, 1, 2].map(|number| job("mail", number).concurrency("u", 1)));
    let first = world.lease();
    world.cancel(&[id(0, 1)]);
    world.complete(&first, b"r");
    assert_eq!(world.lease().id, id(0, 2));
}

#[test]
fn a_released_task_keeps_its_place_of_the_key() {
    let mut world = World::new();
    world.worker(WORKER, &["mail"], 1);
    world.submit(&[job("mail", 0).concurrency("u", 1), job("mail", 1).concurrency("u", 1)]);
    let lease = world.lease();
    world.release(&lease);
    world.credit(WORKER, 5);
    assert_eq!(world.lease().id, id(0, 0));
}

#[test]
fn a_higher_limit_lets_waiting_tasks_start_at_once() {
    let mut world = world();
    world.submit(&[0, 1, 2].map(|number| job("mail", number).concurrency("u", 1)));
    assert_eq!(world.leases().len(), 1);
    world.submit_one(job("mail", 3).concurrency("u", 3));
    assert_eq!(world.leases().len(), 2);
}

//! Leases: expiry, fencing, extension, release, lost and returning workers.

use taskmaster_engine::State;
use taskmaster_protocol::body::{BatchReply, Empty, Leases, Progress, ProgressRow};
use taskmaster_protocol::{Code, Operation, TaskId};

use crate::job::{id, job, jobs};
use crate::world::{CLIENT, Lease, World, complete_body, subscription};

const WORKER: u64 = 10;
const OTHER: u64 = 11;

fn leased(lease_ms: u32) -> (World, Lease) {
    let mut world = World::new();
    world.worker(WORKER, &["mail"], 1);
    world.submit_one(job("mail", 0).lease_ms(lease_ms));
    let lease = world.lease();
    (world, lease)
}

#[test]
fn an_expired_lease_is_given_again_under_a_higher_token() {
    let (mut world, first) = leased(1_000);
    world.worker(OTHER, &["mail"], 5);
    world.advance_ms(900);
    assert_eq!(world.leases(), []);
    world.advance_ms(200);
    let second = world.lease();
    assert_eq!((second.conn, second.id, second.attempt), (OTHER, first.id, 2));
    assert!(second.token > first.token);
    for code in [
        world.complete(&first, b"late"),
        world.fail(&first, "late"),
        world.extend(WORKER, &first),
        world.release(&first),
    ] {
        assert_eq!(code, Code::StaleLease);
    }
    let task = world.task(first.id);
    assert_eq!((task.state, task.error_code.as_str()), (State::Leased, "lease_expired"));
    assert_eq!(world.complete(&second, b"r"), Code::Ok);
    assert_eq!(world.complete(&first, b"late"), Code::AlreadyFinal);
}

#[test]
fn leases_of_one_length_expire_each_in_its_time_though_nothing_else_happens() {
    let mut world = World::new();
    world.submit(&jobs("mail", 0, 20).into_iter().map(|job| job.lease_ms(5_120).attempts(1)).collect::<Vec<_>>());
    world.worker(WORKER, &["mail"], 1);
    for _ in 0..20 {
        world.credit(WORKER, 1);
        world.advance_ms(100);
    }
    assert_eq!(world.leases().len(), 20);
    world.disconnect(WORKER);
    let leased = |world: &mut World| world.queues(0)[0].1.counts[usize::from(State::Leased.number())];
    world.advance_ms(1_900);
    assert_eq!(leased(&mut world), 20);
    world.advance_ms(200);
    assert_eq!(leased(&mut world), 0, "the grace is the same for all");
    world.retry(&(0..20).map(|number| id(0, number)).collect::<Vec<_>>());
    world.worker(OTHER, &["mail"], 0);
    for _ in 0..20 {
        world.credit(OTHER, 1);
        world.advance_ms(100);
    }
    world.advance_ms(5_120 - 2_000 - 1);
    for left in (0..20).rev() {
        world.advance_ms(2);
        assert_eq!(leased(&mut world), left);
        world.advance_ms(98);
    }
}

#[test]
fn a_lease_that_expires_every_time_ends_in_the_dead_letter() {
    let mut world = World::new();
    world.worker(WORKER, &["mail"], 10);
    let task = world.submit_one(job("mail", 0).lease_ms(500).attempts(3));
    world.advance_ms(5_000);
    let tokens: Vec<u64> = world.leases().iter().map(|lease| lease.token).collect();
    assert_eq!(tokens.len(), 3);
    assert!(tokens.is_sorted_by(|a, b| a < b));
    let task = world.task(task);
    assert_eq!((task.state, task.attempt), (State::Failed, 3));
}

#[test]
fn extended_leases_live_on() {
    let (mut world, lease) = leased(1_000);
    for _ in 0..20 {
        world.advance_ms(800);
        assert_eq!(world.extend(WORKER, &lease), Code::Ok);
    }
    assert_eq!(world.complete(&lease, b"r"), Code::Ok);
}

#[test]
fn a_completion_on_its_way_to_the_disk_is_not_overtaken_by_the_lease_s_end() {
    let (mut world, lease) = leased(1_000);
    let correlation = world.send(WORKER, 0, &complete_body(&[(&lease, b"r")]));
    world.advance_with(3_000, |_| {});
    world.settle();
    assert_eq!(crate::world::single(&world.reply(correlation).unwrap().read()), Code::Ok);
    assert_eq!(world.state(lease.id), State::Succeeded);
}

#[test]
fn once_its_expiry_is_logged_a_lease_can_neither_be_extended_nor_given_back() {
    let (mut world, lease) = leased(1_000);
    world.advance_with(1_500, |_| {});
    assert_eq!(world.logged(), 2, "the expiry is logged and not durable");
    let body = taskmaster_protocol::body::Leases { rows: vec![lease.row()] };
    for operation in [Operation::Extend, Operation::Release] {
        let correlation = world.send_as(operation, 0, WORKER, 0, &body);
        assert_eq!(crate::world::single(&world.reply(correlation).unwrap().read()), Code::StaleLease);
    }
    let correlation = world.send(WORKER, 0, &complete_body(&[(&lease, b"r")]));
    assert_eq!(crate::world::single(&world.reply(correlation).unwrap().read()), Code::StaleLease);
    world.credit(WORKER, 1);
    world.settle();
    assert_eq!(world.lease().attempt, 2);
}

#[test]
fn a_released_task_starts_again_without_an_attempt_counted() {
    let (mut world, lease) = leased(10_000);
    assert_eq!(world.release(&lease), Code::Ok);
    assert_eq!(world.state(lease.id), State::Ready);
    world.credit(WORKER, 1);
    let again = world.lease();
    assert_eq!((again.id, again.attempt), (lease.id, 1));
    assert!(again.token > lease.token);
    assert_eq!(world.complete(&lease, b"r"), Code::StaleLease);
    assert_eq!(world.complete(&again, b"r"), Code::Ok);
}

#[test]
fn a_lost_worker_s_leases_end_after_the_grace() {
    let (mut world, lease) = leased(60_000);
    world.disconnect(WORKER);
    world.worker(OTHER, &["mail"], 5);
    world.advance_ms(1_900);
    assert_eq!(world.state(lease.id), State::Leased);
    world.advance_ms(400);
    let again = world.lease();
    assert_eq!((again.conn, again.attempt), (OTHER, 2));
}

#[test]
fn a_lost_worker_s_short_lease_is_not_made_longer() {
    let (mut world, lease) = leased(400);
    world.advance_ms(300);
    world.disconnect(WORKER);
    world.advance_ms(200);
    assert_eq!(world.state(lease.id), State::Ready);
}

#[test]
fn a_worker_that_comes_back_within_the_grace_keeps_its_leases() {
    for lease_ms in [400, 2_000, 60_000] {
        let (mut world, lease) = leased(lease_ms);
        world.disconnect(WORKER);
        world.advance_ms(100);
        world.worker(OTHER, &["mail"], 5);
        assert_eq!(world.extend(OTHER, &lease), Code::Ok);
        assert_eq!(world.task(lease.id).worker, "worker-11");
        world.advance_ms(u64::from(lease_ms) * 9 / 10);
        assert_eq!(world.complete(&Lease { conn: OTHER, ..lease }, b"r"), Code::Ok);
        assert_eq!(world.shard.leased(), 0);
    }
}

#[test]
fn a_completion_by_a_new_connection_counts_without_a_subscription() {
    let (mut world, lease) = leased(60_000);
    world.disconnect(WORKER);
    assert_eq!(world.complete(&Lease { conn: 99, ..lease }, b"r"), Code::Ok);
}

#[test]
fn a_task_cancelled_after_its_worker_was_lost_is_not_revoked_from_another() {
    let (mut world, lease) = leased(60_000);
    world.disconnect(WORKER);
    world.worker(OTHER, &["mail"], 5);
    world.cancel(&[lease.id]);
    assert_eq!(world.revocations(), []);
}

#[test]
fn subscribing_again_keeps_running_tasks_and_awaits() {
    let (mut world, lease) = leased(60_000);
    let awaited =
        world.send(WORKER, 0, &taskmaster_protocol::body::AwaitTask { id: lease.id, timeout_ms: 60_000, workflow: 0 });
    world.worker(WORKER, &["news", "mail"], 3);
    world.advance_ms(10_000);
    assert_eq!(world.state(lease.id), State::Leased);
    world.submit(&jobs("mail", 5, 1));
    world.submit(&jobs("news", 6, 5));
    assert_eq!(world.leases().len(), 3, "credit of the new subscription alone counts");
    assert_eq!(world.complete(&lease, b"r"), Code::Ok);
    assert!(world.reply(awaited).is_some());
}

#[test]
fn subscribing_again_leaves_the_former_queues() {
    let mut world = World::new();
    world.worker(WORKER, &["mail"], 3);
    world.worker(WORKER, &["news"], 3);
    world.submit_one(job("mail", 0));
    assert_eq!(world.leases(), []);
    world.submit_one(job("news", 1));
    assert_eq!(world.lease().queue, "news");
    let _: Empty = world.call(WORKER, 0, &subscription(WORKER, &["mail"], 1, "", |_| {})).read();
    assert_eq!(world.lease().queue, "mail");
}

#[test]
fn connections_come_and_go_without_leases_leaking() {
    let mut world = World::new();
    world.submit(&jobs("mail", 0, 50));
    for round in 0..100u64 {
        world.worker(100 + round, &["mail"], 7);
        let leases = world.leases();
        assert!(!leases.is_empty());
        if round % 3 == 0 {
            world.release(&leases[0]);
        }
        world.disconnect(100 + round);
        world.advance_ms(2_100);
        if world.queues(0)[0].1.counts[usize::from(State::Failed.number())] == 50 {
            break;
        }
    }
    world.advance_ms(20_000);
    assert_eq!(world.shard.leased(), 0);
}

#[test]
fn progress_shows_while_the_lease_is_in_force() {
    let (mut world, lease) = leased(10_000);
    let mut body = Progress::default();
    let note = taskmaster_protocol::body::put(&mut body.bytes, b"half way");
    body.rows.push(ProgressRow { id: lease.id, token: lease.token, done_permille: 500, locator: lease.locator, note });
    world.send(WORKER, 0, &body);
    let task = world.task(lease.id);
    assert_eq!((task.done_permille, task.note.as_str()), (500, "half way"));
    body.rows[0].token += 1;
    body.rows[0].done_permille = 900;
    world.send(WORKER, 0, &body);
    assert_eq!(world.task(lease.id).done_permille, 500);
}

#[test]
fn a_failure_that_ends_one_attempt_does_not_hide_the_next_lease_s_expiry() {
    let (mut world, first) = leased(1_000);
    world.credit(WORKER, 5);
    let failure = crate::world::fail_body(&first, "oops", "", b"", false);
    let failed = world.send(WORKER, 0, &failure);
    world.advance_with(1_200, |_| {});
    assert_eq!(world.logged(), 3, "the failure, and the expiry behind it");
    world.make_durable(2);
    assert_eq!(crate::world::single(&world.reply(failed).unwrap().read()), Code::Ok);
    let second = world.lease();
    assert_eq!(second.attempt, 2);
    world.advance_with(1_500, |_| {});
    world.settle();
    assert_eq!(world.lease().attempt, 3);
}

#[test]
fn a_stranger_cannot_touch_a_lease_without_its_token() {
    let (mut world, lease) = leased(10_000);
    for token in [0, 1, lease.token - 1, lease.token + 1, u64::MAX] {
        let forged = Lease { conn: CLIENT, token, ..lease.clone() };
        assert_eq!(world.complete(&forged, b"x"), Code::StaleLease);
        assert_eq!(world.fail(&forged, "x"), Code::StaleLease);
        assert_eq!(world.release(&forged), Code::StaleLease);
        assert_eq!(world.extend(CLIENT, &forged), Code::StaleLease);
    }
    let unknown = Lease { id: id(0, 77), ..lease.clone() };
    assert_eq!(world.complete(&unknown, b"x"), Code::UnknownTask);
    assert_eq!(world.complete(&lease, b"r"), Code::Ok);
}

#[test]
fn what_is_given_back_keeps_its_place_in_line_and_its_age() {
    let mut world = World::new();
    let ids = world.submit(&jobs("mail", 0, 6));
    world.worker(WORKER, &["mail"], 3);
    let leases = world.leases();
    let began: Vec<TaskId> = leases.iter().map(|lease| lease.id).collect();
    assert_eq!(began, ids[..3]);
    world.advance_ms(1_000);
    let rows = leases.iter().map(Lease::row).collect();
    let reply: BatchReply = world.call_as(Operation::Release, 0, WORKER, 0, &Leases { rows }).read();
    assert_eq!(reply.accepted, 3);
    world.worker(OTHER, &["mail"], 6);
    let again = world.leases();
    assert_eq!(again.iter().map(|lease| lease.id).collect::<Vec<_>>(), ids);
    assert!(again.iter().all(|lease| lease.ready_us == again[0].ready_us), "as old as before");
}

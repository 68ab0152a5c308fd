//! The way of a plain task: submitted, durable, assigned, completed.

use taskmaster_engine::{Input, State};
use taskmaster_protocol::{Code, Operation};

use crate::job::{body_of, id, job, jobs};
use crate::world::{CLIENT, START_US, World, complete_body};

const WORKER: u64 = 10;

#[test]
fn a_task_is_submitted_assigned_and_completed() {
    let mut world = World::new();
    world.worker(WORKER, &["mail"], 10);
    let task = world.submit_one(job("mail", 0));
    let lease = world.lease();
    assert_eq!((lease.conn, lease.id, lease.attempt), (WORKER, task, 1));
    assert_eq!(
        (lease.payload.as_slice(), lease.queue.as_str(), lease.kind.as_str()),
        (&b"payload 0"[..], "mail", "work")
    );
    assert_eq!(lease.ready_us, START_US);
    let leased = world.task(task);
    assert_eq!((leased.state, leased.attempt, leased.worker.as_str()), (State::Leased, 1, "worker-10"));
    assert_eq!(leased.payload, b"payload 0");
    world.advance_ms(5);
    assert_eq!(world.complete(&lease, b"42"), Code::Ok);
    let done = world.task(task);
    assert_eq!((done.state, done.attempt, done.result.as_slice()), (State::Succeeded, 1, &b"42"[..]));
    assert_eq!((done.at_us, done.payload.len()), (START_US + 5_000, 0));
    let stats = world.shard.stats();
    assert_eq!((stats.submitted, stats.assigned, stats.completed, stats.tasks, stats.unfinished), (1, 1, 1, 1, 0));
}

#[test]
fn nothing_is_answered_or_assigned_before_it_is_durable() {
    let mut world = World::new();
    world.worker(WORKER, &["mail"], 10);
    let correlation = world.send(CLIENT, 0, &body_of(&[job("mail", 0)]));
    world.advance_with(1_000, |_| {});
    assert!(world.inbox.is_empty() && world.find_without_settling(id(0, 0)).is_none());
    world.settle();
    assert_eq!(world.reply(correlation).unwrap().code(), Code::Ok);
    let lease = world.lease();
    let correlation = world.send(WORKER, 0, &complete_body(&[(&lease, b"r")]));
    world.advance_with(1_000, |_| {});
    assert!(world.inbox.is_empty());
    assert_eq!(world.find_without_settling(lease.id).unwrap().state, State::Leased);
    world.settle();
    assert_eq!(world.reply(correlation).unwrap().code(), Code::Ok);
}

#[test]
fn only_entries_up_to_the_durable_one_are_answered() {
    let mut world = World::new();
    let correlations: Vec<u64> = (0..3).map(|number| world.send(CLIENT, 0, &body_of(&[job("mail", number)]))).collect();
    world.make_durable(2);
    assert!(world.reply(correlations[0]).is_some() && world.reply(correlations[1]).is_some());
    assert!(world.reply(correlations[2]).is_none());
    world.make_durable(2);
    assert!(world.reply(correlations[2]).is_none());
    world.make_durable(3);
    assert!(world.reply(correlations[2]).is_some());
}

#[test]
fn a_resubmission_hears_the_first_outcome() {
    let mut world = World::new();
    world.worker(WORKER, &["mail"], 10);
    let batch = jobs("mail", 0, 2);
    world.submit(&batch);
    let leases = world.leases();
    world.complete(&leases[0], b"r");
    for _ in 0..2 {
        let reply = world.try_submit(&[batch[0].clone(), batch[1].clone(), job("mail", 2)]);
        let heard: Vec<_> =
            reply.exceptions.iter().map(|row| (row.index, Code::from_number(row.code), row.state)).collect();
        assert_eq!(
            heard[..2],
            [(0, Code::Duplicate, State::Succeeded.number()), (1, Code::Duplicate, State::Leased.number())]
        );
    }
    assert_eq!(world.task(batch[0].id).result, b"r");
    assert_eq!(world.shard.stats().submitted, 3);
}

#[test]
fn the_same_id_twice_in_one_batch_is_one_task() {
    let mut world = World::new();
    let reply = world.try_submit(&[job("mail", 0), job("mail", 0)]);
    assert_eq!((reply.accepted, reply.exceptions.len()), (1, 1));
    assert_eq!(reply.exceptions[0].code, Code::Duplicate.number());
}

#[test]
fn a_submission_resent_while_the_first_is_on_its_way_to_the_disk_is_a_duplicate() {
    let mut world = World::new();
    let first = world.send(CLIENT, 0, &body_of(&jobs("mail", 0, 3)));
    let second = world.send(CLIENT, 0, &body_of(&jobs("mail", 0, 3)));
    world.settle();
    let first: taskmaster_protocol::body::BatchReply = world.reply(first).unwrap().read();
    let second: taskmaster_protocol::body::BatchReply = world.reply(second).unwrap().read();
    assert_eq!((first.accepted, second.accepted, second.exceptions.len()), (3, 0, 3));
}

#[test]
fn completing_twice_is_told_and_changes_nothing() {
    let mut world = World::new();
    world.worker(WORKER, &["mail"], 10);
    world.submit_one(job("mail", 0));
    let lease = world.lease();
    let first = world.send(WORKER, 0, &complete_body(&[(&lease, b"one")]));
    let second = world.send(WORKER, 0, &complete_body(&[(&lease, b"two")]));
    world.settle();
    assert_eq!(crate::world::single(&world.reply(first).unwrap().read()), Code::Ok);
    assert_eq!(crate::world::single(&world.reply(second).unwrap().read()), Code::AlreadyFinal);
    assert_eq!(world.complete(&lease, b"three"), Code::AlreadyFinal);
    assert_eq!(world.task(lease.id).result, b"one");
}

#[test]
fn mixed_completions_report_each_refused_row_by_its_number() {
    let mut world = World::new();
    world.worker(WORKER, &["mail"], 10);
    world.submit(&jobs("mail", 0, 4));
    let mut leases = world.leases();
    world.complete(&leases[1], b"early");
    leases[2].token += 77;
    let unknown = crate::world::Lease { id: id(0, 99), locator: 3, ..leases[3].clone() };
    let rows: Vec<(&crate::world::Lease, &[u8])> =
        leases.iter().chain([&unknown]).map(|lease| (lease, &b"x"[..])).collect();
    let reply: taskmaster_protocol::body::BatchReply = world.call(WORKER, 0, &complete_body(&rows)).read();
    let heard: Vec<_> = reply.exceptions.iter().map(|row| (row.index, Code::from_number(row.code))).collect();
    assert_eq!(heard, [(1, Code::AlreadyFinal), (2, Code::StaleLease), (4, Code::UnknownTask)]);
    assert_eq!(reply.accepted, 2);
    assert_eq!(world.task(leases[0].id).result, b"x");
    assert_eq!(world.state(leases[2].id), State::Leased);
}

#[test]
fn a_worker_gets_no_more_than_its_credit() {
    let mut world = World::new();
    world.worker(WORKER, &["mail"], 3);
    world.submit(&jobs("mail", 0, 10));
    assert_eq!(world.leases().len(), 3);
    world.credit(WORKER, 2);
    assert_eq!(world.leases().len(), 2);
    world.credit(WORKER, 100);
    assert_eq!(world.leases().len(), 5);
}

#[test]
fn tasks_of_one_lane_start_in_the_order_of_submission() {
    let mut world = World::new();
    let ids = world.submit(&jobs("mail", 0, 500));
    world.worker(WORKER, &["mail"], 500);
    let started: Vec<_> = world.leases().into_iter().map(|lease| lease.id).collect();
    assert_eq!(started, ids);
}

#[test]
fn higher_priorities_start_first() {
    let mut world = World::new();
    for (number, priority) in [3, 1, 2, 0, 0, 3, 1, 2].into_iter().enumerate() {
        world.submit_one(job("mail", u32::try_from(number).unwrap()).priority(priority));
    }
    world.worker(WORKER, &["mail"], 1);
    let mut order = Vec::new();
    for _ in 0..8 {
        order.extend(world.leases().into_iter().map(|lease| lease.id));
        world.credit(WORKER, 1);
    }
    let expected: Vec<_> = [3, 4, 1, 6, 2, 7, 0, 5].into_iter().map(|number| id(0, number)).collect();
    assert_eq!(order, expected);
}

#[test]
fn workers_of_a_queue_share_its_tasks() {
    let mut world = World::new();
    world.worker(10, &["mail"], 8);
    world.worker(11, &["mail"], 8);
    world.submit(&jobs("mail", 0, 8));
    let leases = world.leases();
    let of = |conn| leases.iter().filter(|lease| lease.conn == conn).count();
    assert!(of(10) >= 3 && of(11) >= 3, "{} and {}", of(10), of(11));
}

#[test]
fn a_worker_of_two_queues_with_little_credit_serves_both() {
    let mut world = World::new();
    world.worker(WORKER, &["mail", "news"], 0);
    world.submit(&jobs("mail", 0, 50));
    world.submit(&jobs("news", 100, 50));
    let mut mail = 0;
    for _ in 0..20 {
        world.credit(WORKER, 1);
        mail += usize::from(world.lease().queue == "mail");
    }
    assert!((5..=15).contains(&mail), "{mail} of 20 were of the first queue");
}

#[test]
fn a_task_goes_only_to_workers_of_its_queue_and_namespace() {
    let mut world = World::new();
    world.worker(10, &["news"], 8);
    let mut other = job("mail", 0);
    other.namespace = "other".to_owned();
    world.submit_one(other);
    world.worker(11, &["mail"], 8);
    assert_eq!(world.leases(), []);
    world.worker_with(12, &["mail"], 8, "", |body| {
        body.namespace = taskmaster_protocol::body::put(&mut body.bytes, b"other");
    });
    assert_eq!(world.lease().conn, 12);
}

#[test]
fn empty_payloads_and_results_are_fine() {
    let mut world = World::new();
    world.worker(WORKER, &["mail"], 8);
    let mut empty = job("mail", 0);
    empty.payload.clear();
    let task = world.submit_one(empty);
    let lease = world.lease();
    assert_eq!(lease.payload, b"");
    assert_eq!(world.complete(&lease, b""), Code::Ok);
    assert_eq!(world.task(task).result, b"");
}

#[test]
fn a_draining_node_takes_and_starts_nothing_new_but_lets_running_tasks_finish() {
    let mut world = World::new();
    world.worker(WORKER, &["mail"], 1);
    world.submit(&jobs("mail", 0, 2));
    let lease = world.lease();
    world.handle(Input::Drain);
    assert_eq!(world.pushes(Operation::GoAway).len(), 1);
    assert_eq!(world.submit_frame(&[job("mail", 7)]).code(), Code::ShuttingDown);
    world.credit(WORKER, 5);
    assert_eq!(world.leases(), []);
    assert_eq!(world.extend(WORKER, &lease), Code::Ok);
    assert_eq!(world.complete(&lease, b"r"), Code::Ok);
    assert_eq!(world.state(id(0, 1)), State::Ready);
}

#[test]
fn a_full_disk_refuses_new_work_and_takes_completions() {
    let mut world = World::new();
    world.worker(WORKER, &["mail"], 5);
    world.submit_one(job("mail", 0));
    let lease = world.lease();
    world.handle(Input::DiskFull(true));
    let refused = world.submit_frame(&[job("mail", 1)]);
    assert_eq!(refused.code(), Code::DiskFull);
    assert!(refused.refusal().retry_after_ms > 0);
    assert_eq!(world.complete(&lease, b"r"), Code::Ok);
    world.handle(Input::DiskFull(false));
    world.submit_one(job("mail", 1));
}

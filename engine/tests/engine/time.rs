//! Delays, deadlines, awaits and retention.

use taskmaster_engine::State;
use taskmaster_protocol::body::{AwaitTask, TaskPage, queue_field};
use taskmaster_protocol::{Code, TaskId};

use crate::job::{body_of, id, job, jobs};
use crate::world::{CLIENT, START_US, World, config, view};

const WORKER: u64 = 10;

fn world() -> World {
    let mut world = World::new();
    world.worker(WORKER, &["mail"], 10_000);
    world
}

#[test]
fn a_delayed_task_starts_when_it_is_due() {
    let mut world = world();
    let by_delay = world.submit_one(job("mail", 0).delay_ms(5_000));
    let by_time = world.submit_one(job("mail", 1).with_extra(|extra| extra.not_before_ms = START_US / 1_000 + 7_000));
    let past = world.submit_one(job("mail", 2).with_extra(|extra| extra.not_before_ms = 1));
    assert_eq!(world.lease().id, past);
    let delayed = world.task(by_delay);
    assert_eq!((delayed.state, delayed.at_us), (State::Delayed, START_US + 5_000_000));
    world.advance_ms(4_999);
    assert_eq!(world.leases(), []);
    world.advance_ms(2);
    let lease = world.lease();
    assert_eq!(lease.id, by_delay);
    assert!(lease.ready_us >= START_US + 5_000_000 && lease.ready_us <= START_US + 5_002_000);
    world.advance_ms(2_000);
    assert_eq!(world.lease().id, by_time);
}

#[test]
fn a_task_not_finished_by_its_deadline_expires_in_every_state() {
    let mut world = World::new();
    world.submit_one(job("mail", 0).deadline_in_ms(1_000).lease_ms(60_000));
    world.submit_one(job("mail", 1).deadline_in_ms(1_000).delay_ms(900));
    world.submit_one(job("other", 2).deadline_in_ms(1_000));
    world.submit_one(job("mail", 3).deadline_in_ms(1_000).concurrency("u", 1));
    world.submit_one(job("mail", 4).deadline_in_ms(1_000).concurrency("u", 1));
    world.worker(WORKER, &["mail"], 10);
    let leases = world.leases();
    world.complete(&leases[1], b"in time");
    world.advance_ms(1_001);
    let states: Vec<State> = (0..5).map(|number| world.state(id(0, number))).collect();
    assert_eq!(states, [State::Expired, State::Expired, State::Expired, State::Succeeded, State::Expired]);
    let mut revoked: Vec<_> = world.revocations().iter().map(|(_, id, _)| *id).collect();
    revoked.sort_unstable();
    let late: Vec<_> =
        leases.iter().chain(&world.leases()).map(|lease| lease.id).filter(|&task| task != id(0, 3)).collect();
    assert!(late.iter().all(|id| revoked.contains(id)), "{late:?} of {revoked:?}");
    assert_eq!(world.complete(&leases[0], b"late"), Code::AlreadyFinal);
    assert_eq!(world.shard.leased(), 0);
}

#[test]
fn a_queue_may_only_flag_late_tasks() {
    let mut world = world();
    world.configure("mail", queue_field::DEADLINE_ACTION, |queue| queue.deadline_action = 1);
    let task = world.submit_one(job("mail", 0).deadline_in_ms(1_000));
    let lease = world.lease();
    world.advance_ms(1_100);
    let late = world.task(task);
    assert_eq!((late.state, late.late), (State::Leased, true));
    assert_eq!(world.complete(&lease, b"r"), Code::Ok);
    assert!(world.task(task).late);
}

#[test]
fn deadlines_that_cannot_be_met_are_refused() {
    let mut world = world();
    let cases = [
        (job("mail", 0).with_extra(|extra| extra.deadline_ms = START_US / 1_000 - 5), Code::DeadlinePast),
        (job("mail", 0).deadline_in_ms(1_000).delay_ms(1_000), Code::Invalid),
        (job("mail", 0).deadline_in_ms(u64::MAX), Code::Invalid),
        (job("mail", 0).delay_ms(u64::MAX / 1_000), Code::Invalid),
        (job("mail", 0).with_extra(|extra| extra.not_before_ms = u64::MAX), Code::Invalid),
        (job("mail", 0).with_extra(|extra| extra.deadline_ms = u64::MAX / 999), Code::Invalid),
    ];
    for (job, code) in cases {
        let refused = world.submit_frame(&[job]);
        assert_eq!((refused.code(), refused.refusal().row), (code, 0));
    }
}

#[test]
fn the_sooner_of_two_deadlines_counts() {
    let mut world = World::new();
    world.submit_one(
        job("mail", 0).deadline_in_ms(5_000).with_extra(|extra| extra.deadline_ms = START_US / 1_000 + 2_000),
    );
    world.advance_ms(2_001);
    assert_eq!(world.state(id(0, 0)), State::Expired);
}

#[test]
fn an_await_is_answered_when_the_task_becomes_final_and_at_once_if_it_is() {
    let mut world = world();
    let task = world.submit_one(job("mail", 0));
    let waits = [world.await_task(task, 10_000), world.await_task(task, 20_000)];
    world.advance_ms(5_000);
    assert!(waits.iter().all(|&wait| world.reply(wait).is_none()));
    let lease = world.lease();
    world.complete(&lease, b"42");
    for wait in waits {
        let page: TaskPage = world.reply(wait).unwrap().read();
        let task = view(&page, &page.rows[0]);
        assert_eq!((task.state, task.result.as_slice()), (State::Succeeded, &b"42"[..]));
    }
    let wait = world.await_task(task, 10_000);
    assert_eq!(world.reply(wait).unwrap().code(), Code::Ok);
    let wait = world.await_task(id(0, 99), 10_000);
    assert_eq!(world.reply(wait).unwrap().code(), Code::UnknownTask);
}

#[test]
fn every_final_state_answers_awaits() {
    let mut world = World::new();
    for (number, job) in
        [job("mail", 0).attempts(1), job("mail", 1), job("mail", 2).deadline_in_ms(500)].into_iter().enumerate()
    {
        let task = world.submit_one(job);
        let wait = world.await_task(task, 10_000);
        match number {
            0 => {
                world.worker(WORKER, &["mail"], 1);
                let lease = world.lease();
                world.fail(&lease, "x");
            }
            1 => drop(world.cancel(&[task])),
            _ => world.advance_ms(600),
        }
        assert_eq!(world.reply(wait).unwrap().code(), Code::Ok, "{number}");
    }
}

#[test]
fn deadlines_and_awaits_far_ahead_hold_and_leave_nothing_behind_when_their_task_ends_sooner() {
    let mut world = world();
    let late = world.submit_one(job("other", 0).deadline_in_ms(300_000));
    let wait = world.await_task(late, 250_000);
    world.advance_ms(249_990);
    assert!(world.reply(wait).is_none() && world.state(late) == State::Ready);
    world.advance_ms(20);
    assert_eq!(world.reply(wait).unwrap().code(), Code::TimedOut);
    world.advance_ms(49_970);
    assert_eq!(world.state(late), State::Ready);
    world.advance_ms(30);
    assert_eq!(world.state(late), State::Expired);
    let before = world.shard.stats().memory_bytes;
    for round in 0..40 {
        let batch: Vec<_> = (0..500)
            .map(|number| job("mail", 1 + round * 500 + number).deadline_in_ms(80_000_000).retention_ms(1_000))
            .collect();
        let ids = finish(&mut world, &batch);
        let waits: Vec<u64> = ids.iter().map(|&id| world.await_task(id, 80_000_000)).collect();
        assert!(waits.into_iter().all(|wait| world.reply(wait).is_some()));
        world.credit(WORKER, 500);
        world.advance_ms(10_000);
    }
    world.advance_ms(100_000);
    let grown = world.shard.stats().memory_bytes - before;
    assert!(grown < 400_000, "{grown} bytes are left of 20,000 finished tasks");
}

#[test]
fn an_await_ends_with_its_time() {
    let mut world = world();
    let task = world.submit_one(job("mail", 0));
    let wait = world.await_task(task, 1_000);
    world.advance_ms(999);
    assert!(world.reply(wait).is_none());
    world.advance_ms(2);
    assert_eq!(world.reply(wait).unwrap().code(), Code::TimedOut);
    let lease = world.lease();
    world.complete(&lease, b"r");
    assert!(world.reply(wait).is_none());
}

#[test]
fn awaits_of_a_lost_connection_are_dropped() {
    let mut world = world();
    let task = world.submit_one(job("mail", 0));
    world.send(77, 0, &AwaitTask { id: task, timeout_ms: 1_000, workflow: 0 });
    let kept = world.await_task(task, 100_000);
    world.disconnect(77);
    world.advance_ms(2_000);
    let lease = world.lease();
    world.complete(&lease, b"r");
    assert!(world.reply(kept).is_some());
    assert!(world.inbox.iter().all(|message| message.conn != 77));
}

#[test]
fn an_await_is_answered_even_when_nothing_finished_is_kept() {
    let mut world = World::with(taskmaster_engine::Config { kept_max: 0, ..config(1) });
    world.worker(WORKER, &["mail"], 10);
    let task = world.submit_one(job("mail", 0));
    let wait = world.await_task(task, 10_000);
    let lease = world.lease();
    world.complete(&lease, b"42");
    let page: TaskPage = world.reply(wait).unwrap().read();
    assert_eq!(view(&page, &page.rows[0]).result, b"42");
    assert!(world.find(task).is_none());
}

fn finish(world: &mut World, jobs: &[crate::job::Job]) -> Vec<TaskId> {
    let ids = world.submit(jobs);
    for lease in world.leases() {
        world.complete(&lease, b"r");
    }
    ids
}

#[test]
fn finished_tasks_are_kept_for_their_retention_and_then_forgotten_even_when_nothing_else_happens() {
    let mut world = world();
    let short =
        finish(&mut world, &jobs("mail", 0, 5_000).into_iter().map(|job| job.retention_ms(60_000)).collect::<Vec<_>>());
    let long = finish(&mut world, &[job("mail", 9_000).retention_ms(600_000)]);
    world.advance_ms(59_000);
    assert_eq!(world.state(short[0]), State::Succeeded);
    world.advance_ms(20_000);
    assert!(short.iter().all(|&id| world.find(id).is_none()));
    assert_eq!(world.state(long[0]), State::Succeeded);
    world.advance_ms(600_000);
    assert!(world.find(long[0]).is_none());
    let stats = world.shard.stats();
    assert_eq!((stats.tasks, stats.unfinished, stats.blob_bytes), (0, 0, 0));
    assert!(world.logged() < 5_100, "few entries are needed to forget: {}", world.logged());
}

#[test]
fn the_queue_s_retention_holds_where_the_task_has_none() {
    let mut world = world();
    world.configure("mail", queue_field::RETENTION, |queue| queue.retention_ms = 5_000);
    let ids = finish(&mut world, &[job("mail", 0)]);
    world.advance_ms(4_500);
    assert_eq!(world.state(ids[0]), State::Succeeded);
    world.advance_ms(2_000);
    assert!(world.find(ids[0]).is_none());
}

#[test]
fn no_more_finished_tasks_are_kept_than_allowed_and_the_oldest_go_first() {
    let mut world = World::with(taskmaster_engine::Config { kept_max: 10, ..config(1) });
    world.worker(WORKER, &["mail"], 1_000);
    for number in 0..40 {
        finish(&mut world, &[job("mail", number).retention_ms(if number % 2 == 0 { 60_000 } else { 600_000 })]);
        world.advance_ms(10);
    }
    let kept: Vec<bool> = (0..40).map(|number| world.find(id(0, number)).is_some()).collect();
    assert_eq!(kept, (0..40).map(|number| number >= 30).collect::<Vec<_>>());
}

#[test]
fn a_resend_of_a_forgotten_task_is_refused_and_not_run_again() {
    let mut world = world();
    let task = job("mail", 0).retention_ms(1_000);
    finish(&mut world, std::slice::from_ref(&task));
    assert_eq!(crate::world::single(&world.resubmit(std::slice::from_ref(&task))), Code::Duplicate);
    world.advance_ms(5_000);
    assert_eq!(crate::world::single(&world.resubmit(&[task])), Code::OutcomeForgotten);
    let fresh = TaskId::new(world.now_us / 1_000, taskmaster_protocol::PartitionId(0), 8, 1);
    let mut later = job("mail", 1);
    later.id = fresh;
    assert_eq!(crate::world::single(&world.resubmit(&[later])), Code::Ok);
}

#[test]
fn a_client_whose_clock_is_far_ahead_does_not_make_other_ids_look_forgotten() {
    let mut world = world();
    let mut ahead = job("mail", 0).retention_ms(1_000);
    ahead.id = TaskId::new(START_US / 1_000 + 86_400_000, taskmaster_protocol::PartitionId(0), 9, 1);
    finish(&mut world, &[ahead]);
    world.advance_ms(600_000);
    let mut later = job("mail", 1);
    later.id = TaskId::new(world.now_us / 1_000, taskmaster_protocol::PartitionId(0), 8, 1);
    assert_eq!(crate::world::single(&world.resubmit(&[later])), Code::Ok);
}

#[test]
fn memory_full_of_unfinished_work_refuses_more_and_serves_what_was_accepted() {
    let mut world = World::with(taskmaster_engine::Config { memory_bytes_max: 3 << 20, ..config(1) });
    world.worker(WORKER, &["mail"], 10);
    let mut accepted = 0;
    let refused = loop {
        let mut batch = jobs("mail", accepted, 16);
        batch.iter_mut().for_each(|job| {
            job.payload = vec![7; 1_000];
            job.spec.retention_ms = 1_000;
        });
        let message = world.submit_frame(&batch);
        if message.code() != Code::Ok {
            break message;
        }
        accepted += 16;
    };
    assert_eq!(refused.code(), Code::Overloaded);
    assert!(refused.refusal().retry_after_ms > 0);
    let stats = world.shard.stats();
    assert!(accepted > 500 && stats.memory_bytes < 4 << 20, "{accepted} tasks in {} bytes", stats.memory_bytes);
    let mut done = 0;
    while done < accepted {
        for lease in world.leases() {
            assert_eq!(world.complete(&lease, &[9; 1_000]), Code::Ok);
            done += 1;
            world.credit(WORKER, 1);
        }
    }
    world.advance_ms(10_000);
    world.submit(&jobs("mail", accepted, 16));
}

#[test]
fn a_backlog_on_the_way_to_the_disk_is_bounded() {
    let mut world = World::with(taskmaster_engine::Config { memory_bytes_max: 1 << 34, ..config(1) });
    let mut batch = jobs("mail", 0, 15);
    batch.iter_mut().for_each(|job| job.payload = vec![7; 1 << 20]);
    let body = body_of(&batch);
    let mut sent = 0;
    let refused = loop {
        let correlation = world.send(CLIENT, 0, &body);
        world.log.iter_mut().for_each(|record| record.bytes.clear());
        if let Some(reply) = world.reply(correlation) {
            break reply;
        }
        sent += 1;
    };
    assert_eq!(refused.code(), Code::Overloaded);
    assert!((16..=20).contains(&sent), "{sent} frames of 15 MiB");
}

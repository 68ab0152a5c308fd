//! Queues: limits, pause, drain, priorities among workers with resources, and what listings say.

use taskmaster_engine::State;
use taskmaster_protocol::body::{Empty, queue_field};
use taskmaster_protocol::{Code, Operation};

use crate::job::{id, job, jobs};
use crate::world::{CLIENT, World, config};

const WORKER: u64 = 10;

#[test]
fn a_queue_s_concurrency_limit_holds_over_all_partitions() {
    let mut world = World::with(config(4));
    world.configure("mail", queue_field::CONCURRENCY, |queue| queue.concurrency = 3);
    world.worker(WORKER, &["mail"], 100);
    for partition in 0..4 {
        world.submit(&jobs("mail", 0, 5).into_iter().map(|job| job.in_partition(partition)).collect::<Vec<_>>());
    }
    let mut running = world.leases();
    let mut done = 0;
    while let Some(lease) = running.pop() {
        assert!(running.len() < 3 && world.shard.leased() <= 3);
        world.complete(&lease, b"r");
        done += 1;
        running.extend(world.leases());
    }
    assert_eq!(done, 20);
}

#[test]
fn a_raised_concurrency_limit_starts_waiting_tasks() {
    let mut world = World::new();
    world.configure("mail", queue_field::CONCURRENCY, |queue| queue.concurrency = 1);
    world.worker(WORKER, &["mail"], 100);
    world.submit(&jobs("mail", 0, 5));
    assert_eq!(world.leases().len(), 1);
    assert!(world.reason(id(0, 1)).contains("limit of 1"), "{}", world.reason(id(0, 1)));
    world.configure("mail", queue_field::CONCURRENCY, |queue| queue.concurrency = 3);
    assert_eq!(world.leases().len(), 2);
    world.configure("mail", queue_field::CONCURRENCY, |queue| queue.concurrency = 0);
    assert_eq!(world.leases().len(), 2);
}

#[test]
fn a_queue_s_rate_is_never_exceeded_and_is_reached() {
    let mut world = World::new();
    world.configure("mail", queue_field::RATE, |queue| (queue.rate_milli_per_s, queue.rate_burst) = (5_000, 3));
    world.worker(WORKER, &["mail"], 1_000);
    world.submit(&jobs("mail", 0, 200).into_iter().map(|job| job.lease_ms(80_000_000)).collect::<Vec<_>>());
    let mut started = world.leases().len();
    assert_eq!(started, 3, "the burst");
    assert!(world.reason(id(0, 100)).contains("rate"), "{}", world.reason(id(0, 100)));
    for second in 1..=20 {
        for _ in 0..10 {
            world.advance_ms(100);
            started += world.leases().len();
            let elapsed_ms = usize::try_from((world.now_us - crate::world::START_US) / 1_000).unwrap();
            assert!(started <= 3 + elapsed_ms * 5 / 1_000, "{started} after {elapsed_ms} ms");
        }
        assert!(started >= 3 + second * 5 - 1, "{started} after {second} s");
    }
    world.configure("mail", queue_field::RATE, |queue| queue.rate_milli_per_s = 0);
    started += world.leases().len();
    assert_eq!(started, 200);
}

#[test]
fn a_paused_queue_starts_nothing_and_goes_on_when_resumed() {
    let mut world = World::with(config(2));
    world.worker(WORKER, &["mail"], 100);
    world.configure("mail", queue_field::PAUSED, |queue| queue.paused = 1);
    world.submit(&jobs("mail", 0, 3));
    world.submit(&jobs("mail", 0, 3).into_iter().map(|job| job.in_partition(1)).collect::<Vec<_>>());
    world.advance_ms(10_000);
    assert_eq!(world.leases(), []);
    assert!(world.reason(id(0, 0)).contains("paused"));
    for _ in 0..2 {
        world.configure("mail", queue_field::PAUSED, |queue| queue.paused = 0);
    }
    assert_eq!(world.leases().len(), 6);
}

#[test]
fn a_queue_paused_with_tasks_in_line_holds_them_and_loses_none() {
    let mut world = World::new();
    world.worker(WORKER, &["mail"], 2);
    world.submit(&jobs("mail", 0, 10));
    assert_eq!(world.leases().len(), 2);
    for _ in 0..3 {
        world.configure("mail", queue_field::PAUSED, |queue| queue.paused = 1);
        world.credit(WORKER, 1);
        assert_eq!(world.leases(), []);
        world.configure("mail", queue_field::PAUSED, |queue| queue.paused = 0);
        assert_eq!(world.leases().len(), 1);
    }
    world.credit(WORKER, 100);
    assert_eq!(world.leases().len(), 5);
}

#[test]
fn a_draining_queue_refuses_new_tasks_and_runs_accepted_ones() {
    let mut world = World::new();
    world.submit_one(job("mail", 0));
    world.configure("mail", queue_field::DRAINING, |queue| queue.draining = 1);
    let refused = world.submit_frame(&[job("mail", 1)]);
    assert_eq!(refused.code(), Code::QueueDraining);
    assert!(refused.sentence().contains("resume"));
    world.worker(WORKER, &["mail"], 100);
    assert_eq!(world.leases().len(), 1);
    world.configure("mail", queue_field::DRAINING, |queue| queue.draining = 0);
    world.submit_one(job("mail", 1));
}

#[test]
fn a_full_queue_refuses_more_until_tasks_finish() {
    let mut world = World::with(config(2));
    world.configure("mail", queue_field::DEPTH, |queue| queue.depth_max = 5);
    world.worker(WORKER, &["mail"], 100);
    world.submit(&jobs("mail", 0, 3));
    world.submit(&jobs("mail", 0, 2).into_iter().map(|job| job.in_partition(1)).collect::<Vec<_>>());
    let refused = world.submit_frame(&[job("mail", 9)]);
    assert_eq!(refused.code(), Code::Overloaded);
    assert!(refused.refusal().retry_after_ms > 0 && refused.sentence().contains("limit of 5"));
    world.submit_one(job("news", 50));
    let lease = world.leases().remove(0);
    world.complete(&lease, b"r");
    world.submit_one(job("mail", 9));
}

#[test]
fn a_depth_limit_is_that_of_the_node_and_not_of_each_shard() {
    let mut world = World::with(crate::world::config_of_shard(0, 2));
    world.configure("mail", queue_field::DEPTH, |queue| queue.depth_max = 6);
    world.submit(&jobs("mail", 0, 3));
    assert_eq!(world.submit_frame(&[job("mail", 9)]).code(), Code::Overloaded);
}

#[test]
fn unknown_queues_are_refused_where_they_are_not_made_on_first_use() {
    let mut world = World::with(taskmaster_engine::Config { auto_create_queues: false, ..config(1) });
    assert_eq!(world.submit_frame(&[job("mail", 0)]).code(), Code::UnknownQueue);
    world.configure("mail", 0, |_| {});
    world.submit_one(job("mail", 0));
}

#[test]
fn queue_listings_count_every_state_exactly() {
    let mut world = World::new();
    world.worker(WORKER, &["mail"], 4);
    world.submit(&jobs("mail", 0, 4));
    let leases = world.leases();
    world.complete(&leases[0], b"r");
    world.fail_with(&leases[1], "x", "", b"", true);
    world.cancel(&[leases[2].id]);
    world.submit_one(job("mail", 10).delay_ms(5_000));
    world.submit_one(job("mail", 11));
    world.submit_one(job("mail", 12).deadline_in_ms(1_000));
    world.advance_ms(1_100);
    let queues = world.queues(0);
    assert_eq!((queues.len(), queues[0].0.as_str()), (1, "mail"));
    assert_eq!(queues[0].1.counts, [0, 1, 1, 1, 1, 1, 1, 1]);
}

#[test]
fn listings_filter_by_state_and_reach_every_task_page_by_page() {
    let mut world = World::new();
    world.worker(WORKER, &["mail"], 150);
    world.submit(&jobs("mail", 0, 350));
    assert_eq!(world.leases().len(), 150);
    assert_eq!(world.list(0, 0).len(), 350);
    assert_eq!(world.list(0, 1 << State::Leased.number()).len(), 150);
    assert_eq!(world.list(0, 1 << State::Ready.number()).len(), 200);
    assert_eq!(world.list(0, 1 << State::Failed.number()).len(), 0);
    let mut seen: Vec<_> = world.list(0, 0).iter().map(|task| task.id).collect();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), 350);
}

#[test]
fn tasks_go_only_where_their_resources_fit() {
    let mut world = World::new();
    world.worker_with(WORKER, &["mail"], 100, "license=2", |body| {
        (body.cpu_milli, body.memory_bytes) = (4_000, 8 << 30);
    });
    let mut batch = Vec::new();
    for number in 0..6 {
        batch.push(job("mail", number).with_spec(|spec| (spec.cpu_milli, spec.memory_bytes) = (1_500, 1 << 30)));
    }
    world.submit(&batch);
    let cpu_bound = world.leases();
    assert_eq!(cpu_bound.len(), 2);
    let mut licensed = jobs("mail", 10, 3);
    licensed.iter_mut().for_each(|job| job.custom = "license=1".to_owned());
    world.submit(&licensed);
    let license_bound = world.leases();
    assert_eq!(license_bound.len(), 2, "the lane that does not fit does not hold up another");
    assert!(world.reason(id(0, 12)).contains("resources"), "{}", world.reason(id(0, 12)));
    world.complete(&cpu_bound[0], b"r");
    assert_eq!(world.leases().len(), 1);
    world.complete(&license_bound[0], b"r");
    assert_eq!(world.lease().id, id(0, 12));
    world.submit_one(job("mail", 20).with_spec(|spec| spec.gpu_milli = 1));
    assert_eq!(world.leases(), []);
    assert!(world.reason(id(0, 20)).contains("no connected worker offers"), "{}", world.reason(id(0, 20)));
}

#[test]
fn resources_of_running_tasks_count_when_a_worker_changes_its_subscription() {
    let mut world = World::new();
    let offer = |body: &mut taskmaster_protocol::body::Subscribe| body.cpu_milli = 2_000;
    world.worker_with(WORKER, &["mail"], 100, "", offer);
    world.submit(&[0, 1, 2].map(|number| job("mail", number).with_spec(|spec| spec.cpu_milli = 1_000)));
    let leases = world.leases();
    assert_eq!(leases.len(), 2);
    world.worker_with(WORKER, &["mail"], 100, "", offer);
    assert_eq!(world.leases(), []);
    world.complete(&leases[0], b"r");
    assert_eq!(world.leases().len(), 1);
}

#[test]
fn waiting_tasks_say_what_they_wait_for() {
    let mut world = World::new();
    world.submit_one(job("mail", 0));
    assert!(world.reason(id(0, 0)).contains("no worker serves"));
    world.worker(WORKER, &["mail"], 1);
    let lease = world.lease();
    world.submit_one(job("mail", 1));
    assert!(world.reason(id(0, 0)).contains("worker-10"), "{}", world.reason(id(0, 0)));
    assert!(world.reason(id(0, 1)).contains("busy"), "{}", world.reason(id(0, 1)));
    world.submit_one(job("mail", 2).delay_ms(60_000));
    assert!(world.reason(id(0, 2)).contains("due in 60000 ms"), "{}", world.reason(id(0, 2)));
    world.complete(&lease, b"r");
    assert!(world.reason(id(0, 0)).contains("final 0 ms ago"));
}

#[test]
fn why_counts_the_tasks_ahead_in_line() {
    let mut world = World::new();
    world.submit(&jobs("mail", 0, 30));
    let ahead = world.why(id(0, 20)).into_iter().find(|(name, _)| name == "ahead").unwrap().1;
    assert!(ahead.starts_with("20 "), "{ahead}");
    // However long the line is: what is near one of its ends is found from there.
    for first in (30..60_000).step_by(1_000) {
        world.submit(&jobs("mail", first, 1_000.min(60_000 - first)));
    }
    for (number, wanted) in [(0, "0 tasks"), (7_000, "7000 tasks"), (59_999, "59999 tasks"), (55_000, "55000 tasks")] {
        let ahead = world.why(id(0, number)).into_iter().find(|(name, _)| name == "ahead").unwrap().1;
        assert!(ahead.starts_with(wanted), "{number}: {ahead}");
    }
}

#[test]
fn pings_are_answered_and_queries_of_unknown_things_say_so() {
    let mut world = World::new();
    let _: Empty = world.call(CLIENT, 0, &Empty::default()).read();
    let unknown = taskmaster_protocol::body::GetTask { id: id(0, 1) };
    assert_eq!(world.call(CLIENT, 0, &unknown).code(), Code::UnknownTask);
    assert_eq!(world.call_as(Operation::Why, 0, CLIENT, 0, &unknown).code(), Code::UnknownTask);
    assert_eq!(world.call(CLIENT, 9, &unknown).code(), Code::WrongPartition);
    let workflow = taskmaster_protocol::body::GetWorkflow { id: id(0, 1), from: 0, limit: 1 };
    assert_eq!(world.call(CLIENT, 0, &workflow).code(), Code::UnknownWorkflow);
}

//! The order of a queue: by readiness, or by what was learned of run times.

use taskmaster_protocol::body::queue_field;

use crate::job::{Job, id, job};
use crate::world::{CLIENT, Lease, World};

pub(crate) const WORKER: u64 = 10;
const AUTO: u16 = 0;
const FIFO: u16 = 1;
const SHORTEST: u16 = 2;
const DEADLINE: u16 = 3;

pub(crate) fn kind(number: u32, kind: &str) -> Job {
    job("mail", number).kind(kind)
}

/// A queue of this policy, in which tasks of kind `long` were seen to take 500 ms and those of kind `short` 1 ms.
pub(crate) fn taught(policy: u16) -> World {
    let mut world = World::new();
    world.configure("mail", queue_field::POLICY, |queue| queue.policy = policy);
    world.worker(WORKER, &["mail"], 0);
    for number in 0..10 {
        for (at, kind_of) in [(0, "long"), (1, "short")] {
            world.submit_one(kind(2 * number + at, kind_of));
            run(&mut world);
        }
    }
    world
}

/// Starts the next task, and ends it after the time that its kind takes.
pub(crate) fn run(world: &mut World) -> Lease {
    world.credit(WORKER, 1);
    let lease = world.lease();
    world.advance_ms(if lease.kind == "long" { 500 } else { 1 });
    world.complete(&lease, b"");
    lease
}

/// The order in which these tasks start, one at a time.
pub(crate) fn order(world: &mut World, all: &[Job]) -> Vec<taskmaster_protocol::TaskId> {
    world.submit(all);
    all.iter().map(|_| run(world).id).collect()
}

fn mixed() -> Vec<Job> {
    vec![kind(100, "long"), kind(101, "short"), kind(102, "long"), kind(103, "short")]
}

pub(crate) fn ids(numbers: &[u32]) -> Vec<taskmaster_protocol::TaskId> {
    numbers.iter().map(|&number| id(0, number)).collect()
}

#[test]
fn fifo_starts_tasks_of_all_kinds_as_they_became_ready() {
    assert_eq!(order(&mut taught(FIFO), &mixed()), ids(&[100, 101, 102, 103]));
}

#[test]
fn fifo_keeps_the_order_over_any_number_of_kinds() {
    let mut world = taught(FIFO);
    let all: Vec<Job> = (100..150).map(|number| kind(number, &format!("kind {}", number % 40))).collect();
    let numbers: Vec<u32> = (100..150).collect();
    assert_eq!(order(&mut world, &all), ids(&numbers));
    // Kinds that went leave their lists to others.
    let all: Vec<Job> = (200..250).map(|number| kind(number, &format!("other {}", number % 40))).collect();
    let numbers: Vec<u32> = (200..250).collect();
    assert_eq!(order(&mut world, &all), ids(&numbers));
}

#[test]
fn shortest_starts_kinds_that_were_short_first_and_each_kind_as_it_became_ready() {
    assert_eq!(order(&mut taught(SHORTEST), &mixed()), ids(&[101, 103, 100, 102]));
}

#[test]
fn shortest_does_not_go_beyond_priorities() {
    let mut all = mixed();
    all[0] = all[0].clone().priority(0);
    assert_eq!(order(&mut taught(SHORTEST), &all), ids(&[100, 101, 103, 102]));
}

#[test]
fn shortest_lets_no_task_wait_for_ever() {
    let mut world = taught(SHORTEST);
    let old = world.submit_one(kind(50, "long"));
    world.advance_ms(11 * 60_000);
    let young: Vec<Job> = (200..220).map(|number| kind(number, "short")).collect();
    world.submit(&young);
    assert!((0..2).any(|_| run(&mut world).id == old), "every second start is the oldest's");
}

#[test]
fn auto_keeps_to_readiness_until_it_is_shown_to_be_worse_and_says_so() {
    let mut world = taught(AUTO);
    let waits = world.submit_one(kind(100, "long"));
    let why = world.why(waits);
    let fact = |name: &str| why.iter().find(|(known, _)| known == name).map(|(_, sentence)| sentence.clone()).unwrap();
    assert!(fact("order").starts_with("auto: in the order of readiness"), "{}", fact("order"));
    assert!(
        fact("expected")
            .contains("by 10 tasks of its kind; the finest key with samples is namespace, queue, kind and width"),
        "{}",
        fact("expected")
    );
    world.cancel(&[waits]);
    assert_eq!(order(&mut world, &mixed()[1..]), ids(&[101, 102, 103]));
    // Many tasks that wait together: now there is something to gain.
    for round in 0..12 {
        world.advance_ms(200);
        let from = 1_000 + round * 300;
        let all: Vec<Job> =
            (from..from + 300).map(|number| kind(number, if number % 2 > 0 { "short" } else { "long" })).collect();
        order(&mut world, &all);
    }
    let mixed = [kind(9_000, "long"), kind(9_001, "short")];
    assert_eq!(order(&mut world, &mixed), ids(&[9_001, 9_000]), "{:?}", world.queues(0));
}

/// What `why` says of a task, by name.
fn fact(world: &mut World, id: taskmaster_protocol::TaskId, name: &str) -> Option<String> {
    world.why(id).into_iter().find(|(known, _)| known == name).map(|(_, sentence)| sentence)
}

#[test]
fn why_counts_those_ahead_as_they_start_then_and_had_it_been_by_readiness() {
    for policy in [FIFO, SHORTEST, DEADLINE, AUTO] {
        let mut world = taught(policy);
        let all: Vec<Job> = (0..40)
            .map(|number| {
                let job = kind(100 + number, if number % 3 == 0 { "short" } else { "long" });
                let job = job.priority(if number % 7 == 0 { 1 } else { 2 });
                if number % 5 == 0 { job.deadline_in_ms(1_000_000 - 10_000 * u64::from(number)) } else { job }
            })
            .collect();
        for job in &all {
            world.submit_one(job.clone());
            world.advance_ms(1);
        }
        let by_readiness = |number: u32| {
            let urgent_first = |number: u32| (!number.is_multiple_of(7), number);
            let before = |other: &u32| urgent_first(*other) < urgent_first(number);
            (0..40).filter(before).count()
        };
        let said: Vec<(String, String)> = (0..40)
            .map(|number| ["ahead", "position"].map(|name| fact(&mut world, id(0, 100 + number), name).unwrap()).into())
            .collect();
        for place in 0..40usize {
            let started = run(&mut world).id;
            let number = (0..40u32).find(|&number| id(0, 100 + number) == started).unwrap();
            let (ahead, position) = &said[number as usize];
            let earlier = by_readiness(number);
            assert!(ahead.starts_with(&format!("{place} tasks")), "{policy}: {number} started as {place}: {ahead}");
            assert!(ahead.contains(&format!("readiness {earlier} would")), "{policy}: {number}: {ahead}");
            let moved = match place.cmp(&earlier) {
                std::cmp::Ordering::Less => "promoted",
                std::cmp::Ordering::Equal => "neither promoted nor demoted",
                std::cmp::Ordering::Greater => "demoted",
            };
            assert_eq!(position, moved, "{policy}: {number}");
        }
    }
}

#[test]
fn why_tells_rank_and_age_where_they_count_and_what_is_expected_of_a_task_that_runs() {
    let mut world = taught(SHORTEST);
    let [long, short] = [100, 101].map(|number| kind(number, if number == 100 { "long" } else { "short" }));
    let ids = world.submit(&[long, short]);
    let ranks = ids.clone().into_iter().map(|id| fact(&mut world, id, "rank").unwrap());
    let ranks: Vec<f32> = ranks.map(|said| said.split_once(':').unwrap().0.parse().unwrap()).collect();
    assert!(ranks[0] > ranks[1], "{ranks:?}");
    assert_eq!(fact(&mut world, ids[0], "aged"), None);
    world.advance_ms(601_000);
    assert!(fact(&mut world, ids[0], "aged").unwrap().contains("10 minutes"));
    world.credit(WORKER, 1);
    let lease = world.lease();
    world.advance_ms(70);
    let mut told = |name| fact(&mut world, lease.id, name).unwrap();
    assert_eq!(told("runs"), "for 70 ms by now");
    assert!(told("expected").contains("by 10 tasks of its kind"), "{}", told("expected"));
    assert!(told("order").starts_with("shortest"), "{}", told("order"));
    assert!(told("worker").contains("0 other tasks"), "{}", told("worker"));
    let mut world = taught(FIFO);
    let id = world.submit_one(kind(100, "long"));
    assert_eq!(fact(&mut world, id, "rank"), None, "it does not count");
}

#[test]
fn unknown_policy_is_refused_with_those_there_are() {
    let mut world = World::new();
    world.configure("mail", queue_field::POLICY, |queue| queue.policy = SHORTEST);
    let shown = world.queues(0);
    assert_eq!(shown[0].1.policy, SHORTEST);
    let mut body =
        taskmaster_protocol::body::ConfigureQueue { set: queue_field::POLICY, policy: 4, ..Default::default() };
    body.queue = taskmaster_protocol::body::put(&mut body.bytes, b"mail");
    let refused = world.call(CLIENT, 0, &body);
    assert!(refused.sentence().contains("auto (0), fifo (1), shortest (2) or deadline (3)"), "{}", refused.sentence());
    assert_eq!(world.queues(0)[0].1.policy, SHORTEST);
}

#[test]
fn what_fits_nowhere_takes_no_turn_from_what_waited_as_long() {
    for policy in [SHORTEST, DEADLINE] {
        let mut world = taught(policy);
        world.disconnect(WORKER);
        world.worker_with(WORKER, &["mail"], 0, "", |body| body.cpu_milli = 4_000);
        // No worker has what these two ask for; one is older, one is more urgent.
        for (number, priority) in [(40, 2), (41, 0)] {
            let huge = kind(number, "huge").priority(priority).with_spec(|spec| spec.cpu_milli = 64_000);
            world.submit_one(huge);
        }
        let old = world.submit_one(kind(50, "long"));
        world.advance_ms(11 * 60_000);
        let young: Vec<Job> = (200..220).map(|number| kind(number, "short")).collect();
        world.submit(&young);
        assert!((0..2).any(|_| run(&mut world).id == old), "every second start is the oldest's that fits");
    }
}

#[test]
fn more_kinds_than_there_are_lists_are_learned_each_for_itself() {
    let mut world = taught(SHORTEST);
    for number in 0..40u32 {
        for round in 0..4 {
            world.submit_one(kind(1_000 + 10 * number + round, &format!("kind {number}")));
            world.credit(WORKER, 1);
            let lease = world.lease();
            world.advance_ms(u64::from(number) * 20 + 1);
            world.complete(&lease, b"");
        }
    }
    let waiting: Vec<_> =
        (0..40).map(|number| world.submit_one(kind(5_000 + number, &format!("kind {number}")))).collect();
    for id in [waiting[0], waiting[20], waiting[39]] {
        let why = world.why(id);
        let expected = &why.iter().find(|(name, _)| name == "expected").unwrap().1;
        assert!(expected.contains("by 4 tasks of its kind"), "{expected}");
    }
}

/// A task of a kind with a payload of so many bytes.
fn sized(number: u32, bytes: usize) -> Job {
    Job { payload: vec![7; bytes], ..kind(number, "resize") }
}

#[test]
fn tasks_of_one_kind_are_told_apart_by_how_much_they_bring() {
    let median_ms = |expected: &str| -> f64 { expected.split(' ').nth(3).unwrap().parse().unwrap() };
    let mut world = World::new();
    world.configure("mail", queue_field::POLICY, |queue| queue.policy = SHORTEST);
    world.worker(WORKER, &["mail"], 0);
    let run = |world: &mut World| {
        world.credit(WORKER, 1);
        let lease = world.lease();
        world.advance_ms(if lease.payload.len() > 10_000 { 5_000 } else { 20 });
        world.complete(&lease, b"");
        lease.id
    };
    for number in 0..60 {
        world.submit_one(sized(number, if number % 2 == 0 { 300_000 } else { 500 }));
        run(&mut world);
    }
    let mixed = [sized(100, 300_000), sized(101, 100), sized(102, 400_000), sized(103, 900)];
    world.submit(&mixed);
    let expected = fact(&mut world, id(0, 102), "expected").unwrap();
    assert!(expected.contains("magnitude of the payload") && median_ms(&expected) > 3_000.0, "{expected}");
    let small = fact(&mut world, id(0, 103), "expected").unwrap();
    assert!(!small.contains("payload") && median_ms(&small) < 100.0, "{small}");
    let order: Vec<_> = (0..4).map(|_| run(&mut world)).collect();
    assert_eq!(order, ids(&[101, 103, 100, 102]));
}

#[test]
fn attempts_that_fail_at_once_do_not_make_those_that_succeed_seem_short() {
    let mut world = World::new();
    world.worker(WORKER, &["mail"], 0);
    // Two of three attempts fail after 10 ms, the third takes 20 s.
    for number in 0..12 {
        world.submit_one(kind(number, "flaky").attempts(3).backoff_ms(0, 0).lease_ms(60_000));
        for attempt in 0..3 {
            world.credit(WORKER, 1);
            let lease = world.lease();
            world.advance_ms(if attempt < 2 { 10 } else { 20_000 });
            let code = if attempt < 2 { world.fail(&lease, "early") } else { world.complete(&lease, b"") };
            assert_eq!(code, taskmaster_protocol::Code::Ok);
        }
    }
    let waits = world.submit_one(kind(100, "flaky").deadline_in_ms(5_000));
    let failures = fact(&mut world, waits, "failures").unwrap();
    let (early, late) = failures.split_once("in one of two cases").unwrap();
    assert!(early.contains("after 10 ms"), "{failures}");
    let long: f64 = late.split_whitespace().rev().nth(1).unwrap().parse().unwrap();
    assert!((19_000.0..21_000.0).contains(&long), "{failures}");
    world.credit(WORKER, 1);
    world.lease();
    let in_time = fact(&mut world, waits, "in_time").unwrap();
    let percent: f64 = in_time.split(' ').next().unwrap().parse().unwrap();
    assert!(percent < 5.0, "it would take 20 s and has five: {in_time}");
}

#[test]
fn what_a_snapshot_brings_back_is_told_apart_as_before() {
    let mut world = World::new();
    let all: Vec<Job> = (0..6).map(|number| sized(number, if number % 2 == 0 { 20_000 } else { 500 })).collect();
    world.submit(&all);
    let (sequence, chunks) = world.snapshot(|_| {});
    world.crash();
    world.restart(Some((sequence, &chunks)));
    world.worker(WORKER, &["mail"], 4);
    for lease in world.leases() {
        world.advance_ms(lease.payload.len() as u64 / 100);
        world.complete(&lease, b"");
    }
    let [large, small] = [4, 5].map(|number| fact(&mut world, id(0, number), "expected").unwrap());
    assert!(large.contains("magnitude of the payload") && !small.contains("magnitude"), "{large}; {small}");
}

#[test]
fn auto_finds_the_order_where_tasks_take_hours() {
    let mut world = World::new();
    world.worker(WORKER, &["mail"], 0);
    let slow =
        |number: u32| kind(number, if number.is_multiple_of(2) { "hours" } else { "minutes" }).lease_ms(8 * 3_600_000);
    let run = |world: &mut World| {
        world.credit(WORKER, 1);
        let lease = world.lease();
        world.advance_ms(if lease.kind == "hours" { 2 * 3_600_000 } else { 120_000 });
        world.complete(&lease, b"");
        lease.kind
    };
    let all: Vec<Job> = (0..80).map(slow).collect();
    world.submit(&all);
    let kinds: Vec<String> = (0..44).map(|_| run(&mut world)).collect();
    let minutes = kinds[14..44].iter().filter(|kind| *kind == "minutes").count();
    assert!(minutes > 25, "{minutes} of 30: {kinds:?}");
    let waits = world.submit_one(slow(1_000));
    let order = fact(&mut world, waits, "order").unwrap();
    assert!(order.contains("the shortest first"), "{order}");
}

//! Queues of the policy `deadline`: who can be in time goes first, the hopeless last, and nobody waits for ever.

use proptest::prelude::*;
use taskmaster_protocol::body::{self, ConfigureQueue, Empty, queue_field};

use crate::job::{Job, id};
use crate::order::{WORKER, ids, kind, order, run, taught};
use crate::world::{CLIENT, World, config};

const FIFO: u16 = 1;
const DEADLINE: u16 = 3;
/// A task that became ready so long ago goes ahead of all others, in milliseconds; it is looked for every 50 ms.
const AGED_MS: u64 = 600_000 + 50;

/// As [`taught`], and deadlines only flag.
fn flagging(policy: u16) -> World {
    let mut world = taught(policy);
    world.configure("mail", queue_field::DEADLINE_ACTION, |queue| queue.deadline_action = 1);
    world
}

fn due(number: u32, of: &str, deadline_in_ms: u64) -> Job {
    kind(number, of).deadline_in_ms(deadline_in_ms)
}

/// Of each kind one that is hopeless, two that can be met, and one without a deadline.
fn mixed() -> Vec<Job> {
    vec![
        due(100, "long", 200),
        kind(101, "long"),
        due(102, "long", 90_000),
        due(103, "short", 60_000),
        due(104, "long", 30_000),
        kind(105, "short"),
        due(106, "short", 10_000),
    ]
}

#[test]
fn the_earliest_deadline_that_can_be_met_goes_first_and_the_hopeless_last() {
    assert_eq!(order(&mut flagging(DEADLINE), &mixed()), ids(&[106, 104, 103, 102, 101, 105, 100]));
}

#[test]
fn a_task_becomes_hopeless_while_it_waits() {
    let mut world = flagging(DEADLINE);
    world.submit(&[due(100, "long", 5_000), due(101, "long", 20_000), kind(102, "long")]);
    world.advance_ms(4_800);
    assert_eq!([0; 3].map(|_| run(&mut world).id), *ids(&[101, 102, 100]));
}

#[test]
fn a_deadline_that_needs_luck_comes_behind_those_that_do_not() {
    let mut world = flagging(DEADLINE);
    // Half of this kind take 500 ms and the others 1 s.
    for number in 0..60 {
        world.submit_one(kind(200 + number, "either"));
        world.credit(WORKER, 1);
        let lease = world.lease();
        world.advance_ms(if number % 2 == 0 { 500 } else { 1_000 });
        world.complete(&lease, b"");
    }
    assert_eq!(order(&mut world, &[due(100, "either", 850), due(101, "either", 5_000)]), ids(&[101, 100]));
}

#[test]
fn priorities_go_before_deadlines() {
    let mut all = mixed();
    all[1] = all[1].clone().priority(0);
    assert_eq!(order(&mut flagging(DEADLINE), &all)[0], id(0, 101));
}

#[test]
fn deadlines_go_across_partitions() {
    let mut world = World::with(crate::world::config(4));
    world.configure("mail", queue_field::POLICY, |queue| queue.policy = DEADLINE);
    world.worker(WORKER, &["mail"], 0);
    let deadlines = [40_000, 10_000, 30_000, 50_000, 20_000, 60_000, 15_000, 25_000];
    for (number, deadline_ms) in (0u16..).zip(deadlines) {
        world.submit_one(due(number.into(), "work", deadline_ms).in_partition(number % 4));
    }
    world.credit(WORKER, 100);
    let leases = world.leases();
    let began: Vec<u64> =
        leases.iter().map(|lease| deadlines[usize::try_from(lease.id.lo % 256).unwrap() - 1]).collect();
    assert!(began.is_sorted() && began.len() == 8, "{began:?}");
}

#[test]
fn a_policy_that_only_some_partitions_have_taken_over_keeps_nobody_waiting() {
    for tasks_first in [true, false] {
        let mut world = World::with(config(2));
        world.worker(WORKER, &["mail"], 0);
        let submit = |world: &mut World| {
            for number in 0..6u32 {
                let partition = u16::try_from(number % 2).unwrap();
                world.submit_one(due(number, "work", 10_000 + u64::from(number)).in_partition(partition));
            }
        };
        if tasks_first {
            submit(&mut world);
        }
        let mut body = ConfigureQueue { set: queue_field::POLICY, policy: DEADLINE, ..ConfigureQueue::default() };
        body.queue = body::put(&mut body.bytes, b"mail");
        let _: Empty = world.call(CLIENT, 0, &body).read();
        if !tasks_first {
            submit(&mut world);
        }
        world.credit(WORKER, 100);
        assert_eq!(world.leases().len(), 6);
    }
}

#[test]
fn the_policy_may_change_while_tasks_wait() {
    let mut world = flagging(FIFO);
    world.submit(&mixed());
    world.configure("mail", queue_field::POLICY, |queue| queue.policy = DEADLINE);
    assert_eq!([0; 2].map(|_| run(&mut world).id), *ids(&[106, 104]));
    world.configure("mail", queue_field::POLICY, |queue| queue.policy = FIFO);
    assert_eq!(run(&mut world).id, id(0, 100));
    world.configure("mail", queue_field::POLICY, |queue| queue.policy = DEADLINE);
    assert_eq!([0; 4].map(|_| run(&mut world).id), *ids(&[103, 102, 101, 105]));
}

#[test]
fn the_order_comes_back_after_a_crash_and_from_a_snapshot() {
    let mut world = flagging(DEADLINE);
    world.submit(&mixed());
    world.cancel(&ids(&[100, 106]));
    let (sequence, chunks) = world.snapshot(|_| {});
    for snapshot in [None, Some((sequence, chunks.as_slice()))] {
        world.restart(snapshot);
        world.worker(WORKER, &["mail"], 1);
        // What was learned of run times is gone, and the order of deadlines holds.
        assert_eq!(world.lease().id, id(0, 104));
    }
}

#[test]
fn tasks_leave_the_order_in_every_way() {
    let mut world = flagging(DEADLINE);
    let key = |job: Job| job.concurrency("k", 1);
    world.submit(&[
        key(due(100, "short", 5_000)),
        key(due(101, "short", 1_000)),
        due(102, "short", 2_000),
        due(103, "short", 3_000),
    ]);
    world.cancel(&ids(&[102]));
    let first = run(&mut world);
    // The second of the key comes free when the first has run, and then its deadline counts.
    assert_eq!(first.id, id(0, 103));
    assert_eq!([run(&mut world).id, run(&mut world).id], *ids(&[100, 101]));
    world.configure("mail", queue_field::DEADLINE_ACTION, |queue| queue.deadline_action = 0);
    let late = world.submit_one(due(104, "short", 50));
    world.advance_ms(200);
    assert!(world.state(late).is_final(), "it expired");
    let retried = world.retry(&[late]);
    assert_eq!((retried.accepted, run(&mut world).id), (1, late));
}

#[test]
fn why_says_who_was_promoted_demoted_or_is_hopeless() {
    let mut world = flagging(DEADLINE);
    world.submit(&mixed());
    let mut fact = |number: u32, name: &str| {
        let why = world.why(id(0, number));
        why.into_iter().find(|(known, _)| known == name).map(|(_, sentence)| sentence).unwrap()
    };
    assert_eq!(fact(106, "order"), "deadline: the earliest that can be met first, the hopeless last");
    for (number, position, standing, ahead, earlier) in [
        (106, "promoted", "started now it meets", "0 tasks", "readiness 6 would"),
        (101, "demoted", "it has no deadline", "4 tasks", "readiness 1 would"),
        (100, "demoted", "hopeless", "6 tasks", "readiness 0 would"),
    ] {
        assert_eq!(fact(number, "position"), position, "{number}");
        assert!(fact(number, "standing").starts_with(standing), "{}", fact(number, "standing"));
        let said = fact(number, "ahead");
        assert!(said.starts_with(ahead) && said.contains(earlier), "{said}");
    }
}

/// What the property test does next.
#[derive(Clone, Copy, Debug)]
enum Step {
    Submit { is_long: bool, deadline_ms: u64 },
    Pause { ms: u64 },
    Run,
}

fn step() -> impl Strategy<Value = Step> {
    let deadline_ms = prop_oneof![Just(0u64), 1u64..2_000, 2_000u64..4_000_000];
    prop_oneof![
        6 => (any::<bool>(), deadline_ms).prop_map(|(is_long, deadline_ms)| Step::Submit { is_long, deadline_ms }),
        1 => (0u64..400_000).prop_map(|ms| Step::Pause { ms }),
        4 => Just(Step::Run),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// The bound: a task that waited for the cap is started by the second start after that, or an older one is. So it waits no
    /// longer than the cap and twice the starts of those that were older than it.
    #[test]
    fn no_task_starves(steps in proptest::collection::vec(step(), 1..160)) {
        let mut world = flagging(DEADLINE);
        // Number and ready time of what waits, in order of readiness.
        let mut waiting: Vec<(u32, u64)> = Vec::new();
        let (mut next, mut passed_over) = (1_000, 0);
        let rest = core::iter::repeat_n(Step::Run, steps.len());
        for step in steps.iter().copied().chain(rest) {
            match step {
                Step::Submit { is_long, deadline_ms } => {
                    world.submit_one(due(next, if is_long { "long" } else { "short" }, deadline_ms));
                    waiting.push((next, world.now_us));
                    next += 1;
                }
                Step::Pause { ms } => world.advance_ms(ms),
                Step::Run => {
                    let Some(&(oldest, since_us)) = waiting.first() else { continue };
                    let is_aged = world.now_us - since_us >= AGED_MS * 1_000;
                    let began = run(&mut world).id;
                    let place = waiting.iter().position(|&(number, _)| id(0, number) == began);
                    let (_, began_us) = waiting.remove(place.expect("it waited"));
                    passed_over = if is_aged && began_us != since_us { passed_over + 1 } else { 0 };
                    prop_assert!(passed_over < 2, "task {oldest} was passed over twice after it had waited for the cap");
                }
            }
        }
        prop_assert!(waiting.is_empty(), "{waiting:?}");
    }
}

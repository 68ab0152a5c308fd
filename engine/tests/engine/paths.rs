//! Of a workflow the task on the longest predicted path starts whenever it is the turn of one of its tasks.

use std::collections::{BTreeSet, VecDeque};

use proptest::prelude::*;
use taskmaster_engine::State;
use taskmaster_protocol::{Code, TaskId};

use crate::job::{Job, id, job};
use crate::order::{WORKER, ids, kind, run, taught};
use crate::random::Random;
use crate::world::{Lease, World};

const AUTO: u16 = 0;
const FIFO: u16 = 1;
const SHORTEST: u16 = 2;
const DEADLINE: u16 = 3;
const LOW: u8 = 3;

fn flow() -> TaskId {
    id(0, 900_000)
}

/// Rows of a workflow, by kind and what each needs; row `n` is task `500 + n`.
fn rows(of: &[(&str, &[u32])]) -> Vec<Job> {
    let row = |(number, (kind_of, needs)): (u32, &(&str, &[u32]))| {
        let mut row = kind(500 + number, kind_of).needs(needs);
        row.name = format!("step-{number}");
        row
    };
    (0..).zip(of).map(row).collect()
}

/// The rows of a workflow in the order in which they start, one at a time.
fn starts(world: &mut World, jobs: &[Job]) -> Vec<u32> {
    assert_eq!(world.workflow(flow(), false, jobs).accepted as usize, jobs.len());
    jobs.iter().map(|_| row(&run(world))).collect()
}

fn row(lease: &Lease) -> u32 {
    u32::try_from(lease.id.lo & 0xFF_FFFF).unwrap() - 501
}

/// Two that nobody needs, and a chain of three.
const CHAIN: &[(&str, &[u32])] = &[("short", &[]), ("short", &[]), ("short", &[]), ("short", &[2]), ("short", &[3])];

#[test]
fn what_most_others_wait_for_goes_first() {
    for policy in [AUTO, SHORTEST] {
        assert_eq!(starts(&mut taught(policy), &rows(CHAIN)), [2, 3, 0, 1, 4], "policy {policy}");
    }
}

#[test]
fn queues_that_go_by_readiness_or_by_deadlines_do_so() {
    for policy in [FIFO, DEADLINE] {
        assert_eq!(starts(&mut taught(policy), &rows(CHAIN)), [0, 1, 2, 3, 4], "policy {policy}");
    }
}

/// One long task is a longer path than two short ones. Where kinds are ranked, short ones go first all the same.
#[test]
fn paths_are_measured_by_predicted_run_times() {
    let jobs = rows(&[("short", &[]), ("short", &[0]), ("short", &[]), ("long", &[])]);
    assert_eq!(starts(&mut taught(AUTO), &jobs), [3, 0, 2, 1]);
    assert_eq!(starts(&mut taught(SHORTEST), &jobs), [0, 2, 1, 3]);
}

#[test]
fn paths_follow_what_is_learned_meanwhile() {
    let mut world = taught(AUTO);
    let mut all = vec![("new", &[][..]); 5];
    all.extend([("long", &[][..]); 15]);
    assert_eq!(world.workflow(flow(), false, &rows(&all)).accepted, 20);
    let kinds = |world: &mut World| [(); 3].map(|()| run(world).kind);
    assert_eq!(kinds(&mut world), ["long"; 3], "it is not known that others take longer");
    // One of them runs elsewhere.
    world.submit_one(kind(700, "new").priority(0).lease_ms(3_600_000));
    world.credit(WORKER, 1);
    let lease = world.lease();
    world.advance_ms(60_000);
    world.complete(&lease, b"");
    assert_eq!(kinds(&mut world), ["new"; 3]);
}

#[test]
fn tasks_of_others_keep_their_turns() {
    for policy in [AUTO, FIFO] {
        let mut world = taught(policy);
        world.submit_one(kind(400, "short"));
        assert_eq!(world.workflow(flow(), false, &rows(CHAIN)).accepted, 5);
        world.submit_one(kind(600, "short"));
        let starts: Vec<TaskId> = (0..7).map(|_| run(&mut world).id).collect();
        assert_eq!(starts.iter().position(|id| *id == ids(&[400])[0]), Some(0));
        // Three of the workflow were ready before it.
        assert_eq!(starts.iter().position(|id| *id == ids(&[600])[0]), Some(4), "policy {policy}: {starts:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a workflow does with its turns, others have theirs: a line of turns in the order of readiness says whose each is, and where
    /// kinds are ranked there is one for each kind.
    #[test]
    fn no_task_of_others_goes_earlier_or_later(seed in any::<u64>(), policy in prop_oneof![Just(AUTO), Just(SHORTEST)]) {
        let (mut random, mut world) = (Random::new(seed), taught(policy));
        let line_of = |kind_of: &str| usize::from(policy == SHORTEST && kind_of == "long");
        let count = 2 + random.below(30);
        let all: Vec<(&str, Vec<u32>)> = (0..count)
            .map(|row| (*random.pick(&["short", "long"]), (0..row).filter(|_| random.once_in(6)).collect()))
            .collect();
        let all: Vec<(&str, &[u32])> = all.iter().map(|(kind_of, needs)| (*kind_of, &needs[..])).collect();
        world.workflow(flow(), false, &rows(&all));
        let (mut lines, mut known, mut number) = ([VecDeque::new(), VecDeque::new()], BTreeSet::new(), 700);
        for _ in 0..4 * count {
            for row in 0..count {
                if world.state(id(0, 500 + row)) != State::Waiting && known.insert(row) {
                    lines[line_of(all[row as usize].0)].push_back(None);
                }
            }
            for _ in 0..random.below(3) {
                let kind_of = *random.pick(&["short", "long"]);
                lines[line_of(kind_of)].push_back(Some(world.submit_one(kind(number, kind_of))));
                number += 1;
            }
            let Some(turn) = lines.iter_mut().find_map(VecDeque::pop_front) else { continue };
            let started = run(&mut world).id;
            prop_assert_eq!(turn, (started.lo & 0xFF_FFFF > 700).then_some(started));
        }
    }
}

#[test]
fn other_priorities_and_other_workflows_are_not_touched() {
    let mut jobs = rows(CHAIN);
    jobs[2] = jobs[2].clone().priority(LOW);
    assert_eq!(starts(&mut taught(AUTO), &jobs), [0, 1, 2, 3, 4]);
    // Each of two workflows has its own turns.
    let mut world = taught(AUTO);
    let both = [0, 100].map(|from| {
        let renamed = rows(CHAIN).into_iter().zip(500 + from..).map(|(row, number)| {
            let mut other = kind(number, "short").needs(&row.needs);
            other.name = row.name;
            other
        });
        renamed.collect::<Vec<_>>()
    });
    for (number, jobs) in (0..).zip(&both) {
        assert_eq!(world.workflow(id(0, 900_000 + number), false, jobs).accepted, 5);
    }
    let starts: Vec<u32> = (0..10).map(|_| row(&run(&mut world))).collect();
    assert_eq!(starts, [2, 3, 0, 102, 103, 100, 1, 4, 101, 104]);
}

#[test]
fn a_task_that_has_waited_for_too_long_takes_its_turn_itself() {
    let mut world = World::new();
    world.worker(WORKER, &["mail"], 0);
    let needs = |row: u32| if row < 2 { vec![] } else { vec![row - 1] };
    let chain: Vec<Job> = (0..80).map(|row| job("mail", 500 + row).needs(&needs(row)).lease_ms(3_600_000)).collect();
    assert_eq!(world.workflow(flow(), false, &chain).accepted, 80);
    let mut started = None;
    for step in 0..80 {
        world.credit(WORKER, 1);
        let lease = world.lease();
        if row(&lease) == 0 {
            started = Some(step);
            break;
        }
        world.advance_ms(20_000);
        assert_eq!(world.complete(&lease, b""), Code::Ok);
    }
    assert_eq!(started, Some(50), "after fifty times as long as they take");
}

#[test]
fn why_says_how_long_a_path_is() {
    let mut world = taught(AUTO);
    let jobs = rows(&[("long", &[]), ("short", &[]), ("long", &[0])]);
    assert_eq!(world.workflow(flow(), false, &jobs).accepted, 3);
    let mut path = |number: u32| {
        let why = world.why(ids(&[number])[0]);
        why.into_iter().find(|(name, _)| name == "path").map(|(_, words)| words)
    };
    let first = path(500).unwrap();
    assert!(first.contains("0 of 1 others that wait with its priority and resources go before it"), "{first}");
    let second = path(501).unwrap();
    assert!(second.contains("1 of 1 others"), "{second}");
    assert!(path(502).is_none(), "it waits for others");
    world.submit_one(kind(700, "short"));
    let why = world.why(ids(&[700])[0]);
    assert!(why.iter().all(|(name, _)| name != "path"));
}

/// Chains and trees of tasks of one kind, of which some fail, are given back, cancelled, or lost with their worker: each that starts is on the
/// longest path of those that wait.
fn check_paths(seed: u64) {
    let mut random = Random::new(seed);
    let count = 2 + random.below(40);
    let needs: Vec<Vec<u32>> = (0..count).map(|row| (0..row).filter(|_| random.once_in(6)).take(3).collect()).collect();
    let mut depth = vec![1u32; count as usize];
    for row in (0..count as usize).rev() {
        for &parent in &needs[row] {
            depth[parent as usize] = depth[parent as usize].max(depth[row] + 1);
        }
    }
    let mut world = World::new();
    world.worker(WORKER, &["mail"], 0);
    let jobs: Vec<Job> = (0..)
        .zip(&needs)
        .map(|(row, needs)| job("mail", 500 + row).needs(needs).attempts(5).lease_ms(30_000))
        .collect();
    assert_eq!(world.workflow(flow(), true, &jobs).accepted, count);
    let mut conn = WORKER;
    let mut running: Vec<Lease> = Vec::new();
    for _ in 0..40 * count {
        let ready: Vec<u32> = (0..count).filter(|&row| world.state(id(0, 500 + row)) == State::Ready).collect();
        if !ready.is_empty() && running.len() < 3 {
            world.credit(conn, 1);
            let lease = world.lease();
            let longest = ready.iter().map(|&row| depth[row as usize]).max().unwrap();
            // One that has waited for ten minutes takes its turn itself.
            let is_aged = world.now_us - lease.ready_us >= 600_000_000;
            assert!(is_aged || depth[row(&lease) as usize] == longest, "row {} of {ready:?}, seed {seed}", row(&lease));
            running.push(lease);
        }
        if running.is_empty() {
            world.advance_ms(1_000);
            continue;
        }
        let lease = running.swap_remove(random.below(u32::try_from(running.len()).unwrap()) as usize);
        match random.below(10) {
            0 => drop(world.fail(&lease, "x")),
            1 => drop(world.release(&lease)),
            2 => drop(world.cancel(&[lease.id])),
            3 => {
                // All come back when their leases end.
                running.clear();
                world.disconnect(conn);
                conn += 1;
                world.worker(conn, &["mail"], 0);
                world.advance_ms(120_000);
            }
            _ => drop(world.complete(&lease, b"")),
        }
    }
    let over = (0..count).filter(|&row| world.state(id(0, 500 + row)).is_final()).count();
    assert_eq!(over, count as usize, "seed {seed}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn who_starts_is_on_the_longest_path_whatever_happens(seed in any::<u64>()) {
        check_paths(seed);
    }
}

#[test]
fn a_workflow_of_twenty_thousand_tasks_is_ordered_by_its_paths() {
    let mut world = World::new();
    world.worker(WORKER, &["mail"], 0);
    // Many leaves, and as long a chain.
    let needs = |row: u32| if row > 10_000 { vec![row - 1] } else { vec![] };
    let jobs: Vec<Job> = (0..20_000).map(|row| job("mail", row).needs(&needs(row))).collect();
    assert_eq!(world.workflow(flow(), false, &jobs).accepted, 20_000);
    let mut chain = 0;
    for _ in 0..5_000 {
        world.credit(WORKER, 2);
        for lease in world.leases() {
            chain += u32::from(lease.id.lo & 0xFF_FFFF > 10_001);
            world.complete(&lease, b"");
        }
    }
    assert!(chain >= 4_999, "{chain}");
}

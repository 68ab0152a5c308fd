//! Bounds and order checks against models that are obvious and slow.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use taskmaster_workflow::{OnFailure, Plan, PlanTask, Replay, Span, Violation, Work, verify_order};

fn plan_of(parents: Vec<Vec<u32>>, runtimes: &[f64]) -> Plan {
    let task = |(number, parents): (usize, Vec<u32>)| PlanTask {
        name: format!("t{number}"),
        group: "t".into(),
        parents,
        work: Work::Replay(Replay {
            runtime_s: runtimes[number],
            memory_bytes: 0,
            input_bytes: 0,
            output_bytes: 0,
            avg_cpu_percent: 0.0,
            cores: 1.0,
        }),
        contract: Arc::default(),
    };
    let tasks = parents.into_iter().enumerate().map(task).collect();
    Plan { name: "p".into(), tasks, on_failure: OnFailure::Cancel, warnings: Vec::new() }
}

/// Small graphs with whole run times (so sums are exact); edges lead from lower to higher numbers, then all numbers
/// are shuffled so that the file's order means nothing.
fn small_plan() -> impl Strategy<Value = Plan> {
    (1_usize..8).prop_flat_map(|tasks| {
        let edges = prop::collection::vec(any::<bool>(), tasks * tasks);
        let runtimes = prop::collection::vec(0_u32..20, tasks);
        let shuffled = Just((0..tasks).collect::<Vec<_>>()).prop_shuffle();
        (edges, runtimes, shuffled).prop_map(move |(edges, runtimes, shuffled)| {
            let mut parents = vec![Vec::new(); tasks];
            for child in 0..tasks {
                for parent in (0..child).filter(|parent| edges[parent * tasks + child]) {
                    parents[shuffled[child]].push(u32::try_from(shuffled[parent]).expect("small"));
                }
            }
            parents.iter_mut().for_each(|parents| parents.sort_unstable());
            plan_of(parents, &runtimes.iter().map(|&runtime| f64::from(runtime)).collect::<Vec<_>>())
        })
    })
}

fn longest_chain(plan: &Plan, task: usize) -> f64 {
    let above = plan.tasks[task].parents.iter().map(|&parent| longest_chain(plan, parent as usize));
    plan.tasks[task].work.runtime_s() + above.fold(0.0, f64::max)
}

/// The best makespan of all non-preemptive schedules on `slots`, by trying every order of starts.
fn best_makespan(plan: &Plan, slots: usize, ends: &mut Vec<Option<f64>>, free: &mut Vec<f64>) -> f64 {
    if ends.iter().all(Option::is_some) {
        return ends.iter().flatten().copied().fold(0.0, f64::max);
    }
    let mut best = f64::INFINITY;
    for task in 0..plan.tasks.len() {
        let ready: Option<Vec<f64>> = plan.tasks[task].parents.iter().map(|&parent| ends[parent as usize]).collect();
        let (None, Some(ready)) = (ends[task], ready) else { continue };
        for slot in 0..slots {
            let start = ready.iter().copied().fold(free[slot], f64::max);
            let before = std::mem::replace(&mut free[slot], start + plan.tasks[task].work.runtime_s());
            ends[task] = Some(free[slot]);
            best = best.min(best_makespan(plan, slots, ends, free));
            ends[task] = None;
            free[slot] = before;
        }
    }
    best
}

/// A greedy run on `slots`: what a scheduler without knowledge does.
fn list_schedule(plan: &Plan, slots: usize) -> (Vec<Option<Span>>, f64) {
    let mut spans: Vec<Option<Span>> = vec![None; plan.tasks.len()];
    let mut free = vec![0_u64; slots];
    for task in plan.topological_order().expect("acyclic") {
        let task = task as usize;
        let ready = plan.tasks[task].parents.iter().map(|&parent| spans[parent as usize].expect("ran").1).max();
        let slot = (0..slots).min_by_key(|&slot| free[slot]).expect("a slot");
        let start = free[slot].max(ready.unwrap_or(0));
        free[slot] = start + Duration::from_secs_f64(plan.tasks[task].work.runtime_s()).as_secs();
        spans[task] = Some((start, free[slot]));
    }
    let makespan = free.into_iter().max().unwrap_or(0);
    (spans, f64::from(u32::try_from(makespan).expect("small")))
}

proptest! {
    #[test]
    fn topological_order_puts_parents_first_and_loses_nobody(plan in small_plan()) {
        let order = plan.topological_order().expect("acyclic");
        let mut place = vec![usize::MAX; plan.tasks.len()];
        order.iter().enumerate().for_each(|(at, &task)| place[task as usize] = at);
        prop_assert!(place.iter().all(|&at| at != usize::MAX));
        for (task, planned) in plan.tasks.iter().enumerate() {
            prop_assert!(planned.parents.iter().all(|&parent| place[parent as usize] < place[task]));
        }
    }

    #[test]
    fn critical_path_is_the_longest_chain(plan in small_plan()) {
        let longest = (0..plan.tasks.len()).map(|task| longest_chain(&plan, task)).fold(0.0, f64::max);
        prop_assert_eq!(plan.critical_path_s(), longest);
    }

    #[test]
    fn a_greedy_run_respects_the_plan_and_never_beats_the_bound(
        plan in small_plan(), slots in 1_u32..4
    ) {
        let (spans, makespan) = list_schedule(&plan, slots as usize);
        prop_assert_eq!(verify_order(&plan, &spans), Ok(()));
        prop_assert!(makespan >= plan.bound_s(slots));
    }

    #[test]
    fn a_start_before_a_parents_end_is_found(plan in small_plan(), victim in any::<prop::sample::Index>()) {
        let (mut spans, _) = list_schedule(&plan, 2);
        spans.iter_mut().flatten().for_each(|span| { span.0 += 1; span.1 += 2; });
        let early: Vec<usize> = (0..plan.tasks.len()).filter(|&task| !plan.tasks[task].parents.is_empty()).collect();
        prop_assume!(!early.is_empty());
        let task = early[victim.index(early.len())];
        let end = spans[task].expect("ran").1;
        spans[task] = Some((0, end));
        prop_assert!(verify_order(&plan, &spans).is_err(), "a start at 0 precedes every end");
    }

    #[test]
    fn adding_a_back_edge_makes_a_cycle_that_is_one(plan in small_plan(), from in any::<prop::sample::Index>()) {
        let mut plan = plan;
        let with_parents: Vec<usize> = (0..plan.tasks.len()).filter(|&t| !plan.tasks[t].parents.is_empty()).collect();
        prop_assume!(!with_parents.is_empty());
        let child = with_parents[from.index(with_parents.len())];
        let parent = plan.tasks[child].parents[0] as usize;
        plan.tasks[parent].parents.push(u32::try_from(child).expect("small"));
        let cycle = plan.topological_order().expect_err("a cycle");
        for (at, &task) in cycle.iter().enumerate() {
            let before = cycle[(at + cycle.len() - 1) % cycle.len()];
            prop_assert!(plan.tasks[task as usize].parents.contains(&before), "{:?}", cycle);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_schedule_at_all_beats_the_bound(plan in small_plan().prop_filter("small enough to try all", |plan| plan.tasks.len() <= 5)) {
        let tasks = plan.tasks.len();
        let best = best_makespan(&plan, 2, &mut vec![None; tasks], &mut vec![0.0; 2]);
        prop_assert!(best >= plan.bound_s(2), "best {best}, bound {}", plan.bound_s(2));
        let alone = best_makespan(&plan, 1, &mut vec![None; tasks], &mut vec![0.0; 1]);
        prop_assert!((alone - plan.bound_s(1)).abs() < 1e-9, "one slot reaches its bound");
    }
}

#[test]
fn violations_name_the_tasks() {
    let plan = plan_of(vec![vec![], vec![0]], &[1.0, 1.0]);
    let broken = |observed: &[Option<Span>]| verify_order(&plan, observed).expect_err("broken").to_string();
    assert!(broken(&[Some((0, 10)), Some((9, 12))]).contains("'t1' started 1 before 't0'"));
    assert!(broken(&[None, Some((9, 12))]).contains("never did"));
    assert!(broken(&[Some((5, 3)), None]).contains("ended before it started"));
    assert_eq!(verify_order(&plan, &[]), Err(Violation::WrongCount { tasks: 2, observed: 0 }));
    assert_eq!(verify_order(&plan, &[Some((0, 10)), Some((10, 12))]), Ok(()), "at the very instant is allowed");
    assert_eq!(verify_order(&plan, &[Some((0, 10)), None]), Ok(()), "a task may never run");
}

//! What holds under every policy, checked against plain models over generated work.

use proptest::prelude::*;
use taskmaster_scheduler::Millis;
use taskmaster_scheduler::backfill::{Machine, Waiting};
use taskmaster_scheduler::order::{Aging, Policy, deadline_rank};
use taskmaster_scheduler::predictor::{Facts, Keys, Predictor};
use taskmaster_scheduler::queue::{Queue, Reason};
use taskmaster_scheduler::replay::wide::{Told, run};
use taskmaster_scheduler::replay::{Job, Trace, slots};
use taskmaster_scheduler::restart::Ledger;
use taskmaster_scheduler::wide::{Config, Scheduler, Task};

const SLOTS: u32 = 16;

fn jobs() -> impl Strategy<Value = Vec<Job>> {
    let one = (0i64..50_000, 0i64..20_000, 0i64..10_000, 1u32..=SLOTS, 0u32..4);
    prop::collection::vec(one, 1..120).prop_map(|rows| {
        let job = |(id, (submit, run, over, width, user)): (u64, (i64, i64, i64, u32, u32))| Job {
            id,
            line: 0,
            submit,
            run,
            limit: run + over,
            has_limit: true,
            deadline: None,
            width,
            user,
            size: 0,
            keys: [0; 4],
        };
        let mut jobs: Vec<Job> = (0..).zip(rows).map(job).collect();
        jobs.sort_by_key(|job| job.submit);
        jobs
    })
}

fn policies() -> impl Strategy<Value = Policy> {
    prop::sample::select(vec![Policy::Fifo, Policy::Shortest, Policy::Deadline, Policy::Auto])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn every_task_runs_once_and_never_on_more_slots_than_there_are(jobs in jobs(), policy in policies(), known: bool) {
        let trace = Trace { name: String::new(), width: SLOTS, jobs, skipped: 0 };
        let submits: Vec<Millis> = trace.jobs.iter().map(|job| job.submit).collect();
        let told = Told { clairvoyant: known, restartable: true, deadlines: policy == Policy::Deadline };
        let outcome = run(&trace, &submits, Config::new(SLOTS, policy), told);
        let mut edges: Vec<(Millis, i64)> = Vec::new();
        for (job, start) in trace.jobs.iter().zip(&outcome.starts) {
            prop_assert!(*start != Millis::MAX && *start >= job.submit, "every task starts, after it was submitted");
            edges.extend([(*start, i64::from(job.width)), (*start + job.run, -i64::from(job.width))]);
        }
        // At one time, what ends gives its slots back first.
        edges.sort_unstable();
        let mut used = 0;
        for (_, change) in edges {
            used += change;
            prop_assert!(used <= i64::from(SLOTS));
        }
        prop_assert!(outcome.waste <= 0.05 + 1e-9, "{} of the work was wasted", outcome.waste);
    }

    #[test]
    fn no_task_starves_beyond_the_cap_and_the_work_before_it(jobs in jobs(), policy in policies()) {
        let cap = 5_000;
        let trace = Trace { name: String::new(), width: SLOTS, jobs, skipped: 0 };
        let submits: Vec<Millis> = trace.jobs.iter().map(|job| job.submit).collect();
        let config = Config { aging: Aging { cap, share_max: 1.0 }, ..Config::new(SLOTS, policy) };
        let told = Told { restartable: true, deadlines: policy == Policy::Deadline, ..Told::default() };
        let outcome = run(&trace, &submits, config, told);
        // Due tasks are reserved for one after the other, so a task waits for the cap, for what runs then, and for the
        // due tasks before it, each at most its limit.
        let longest = trace.jobs.iter().map(|job| job.limit).max().unwrap_or(0);
        for (place, (job, start)) in trace.jobs.iter().zip(&outcome.starts).enumerate() {
            let before: Millis = trace.jobs[..place].iter().map(|other| other.limit).sum();
            prop_assert!(start - job.submit <= cap + 2 * longest + before + 1_000);
        }
    }

    #[test]
    fn tasks_of_one_slot_all_run_and_what_is_lost_by_giving_up_stays_within_its_bound(
        mut jobs in jobs(),
        slots in 1u32..6,
        cap in prop::sample::select(vec![2_000, 20_000, Millis::MAX]),
    ) {
        jobs.iter_mut().for_each(|job| job.width = 1);
        let trace = Trace { name: String::new(), width: slots, jobs, skipped: 0 };
        let submits: Vec<Millis> = trace.jobs.iter().map(|job| job.submit).collect();
        let options = slots::Options {
            slots,
            policy: Policy::Auto,
            aging: Aging { cap, share_max: 1.0 },
            lead_max: f64::INFINITY,
            waste_max: 0.05,
            floor: 10,
            clairvoyant: false,
            cells: 1 << 10,
        };
        let outcome = slots::run(&trace, &submits, options);
        prop_assert!(outcome.waste <= 0.05 + 1e-9, "{} of the work was lost", outcome.waste);
        for (place, (job, start)) in trace.jobs.iter().zip(&outcome.starts).enumerate() {
            prop_assert!(*start != Millis::MAX && *start >= job.submit);
            if cap < Millis::MAX {
                // Every second task taken is the oldest, and one that went by its age is not given up: a task waits for
                // the cap, for those before it and as many others.
                let before: Millis = trace.jobs[..place].iter().map(|other| other.run).sum();
                let longest = trace.jobs.iter().map(|job| job.run).max().unwrap_or(0);
                let others = Millis::try_from(place).unwrap_or(0) + 2;
                prop_assert!(start - job.submit <= cap + before + (others + 1) * longest);
            }
        }
    }

    #[test]
    fn the_account_of_losses_never_exceeds_its_part(
        steps in prop::collection::vec((1i64..500, 0usize..4, any::<bool>()), 1..300),
        waste_max in prop::sample::select(vec![0.0, 0.01, 0.05, 0.5, f64::NAN]),
    ) {
        let mut ledger = Ledger::new(waste_max);
        let bound = if waste_max.is_nan() { 0.0 } else { waste_max };
        let (mut now, mut running) = (0, Vec::new());
        for (pause, which, gives_up) in steps {
            now += pause;
            if running.len() < 4 {
                ledger.start(now);
                running.push(now);
            } else if let Some(start) = running.get(which).copied() {
                if gives_up {
                    if ledger.give_up(start, now) {
                        running.remove(which);
                    }
                } else {
                    ledger.end(start, now);
                    running.remove(which);
                }
            }
        }
        for start in running {
            ledger.end(start, now);
        }
        prop_assert!(ledger.waste() <= bound + 1e-9);
    }

    #[test]
    fn backfilling_never_delays_the_first_that_waits(
        running in prop::collection::vec((1u32..6, 1i64..1000), 0..6),
        queue in prop::collection::vec((1u32..=SLOTS, 1i64..1000), 1..20),
    ) {
        let mut machine = Machine::new(SLOTS);
        for (task, (width, limit)) in (100u32..).zip(running) {
            if width <= machine.free() {
                machine.start(0, Waiting { task, width, limit, keep: 0 });
            }
        }
        let queue: Vec<Waiting> =
            (0u32..).zip(queue).map(|(task, (width, limit))| Waiting { task, width, limit, keep: 0 }).collect();
        // By the plain model: the first task that does not fit after those before it started, and when it could.
        let mut alone = machine.clone();
        let mut first = None;
        for task in &queue {
            if task.width > alone.free() {
                first = Some((*task, alone.reserve(0, task.width).start));
                break;
            }
            alone.start(0, *task);
        }
        let mut started = Vec::new();
        machine.choose(0, &queue, &mut started);
        if let Some((task, promised)) = first {
            prop_assert!(!started.contains(&(task.task as usize)));
            prop_assert!(machine.reserve(0, task.width).start <= promised);
        } else {
            prop_assert_eq!(started.len(), queue.len());
        }
    }

    #[test]
    fn predictions_stay_finite_whatever_is_learned(
        lessons in prop::collection::vec((any::<u32>(), any::<u32>(), any::<i64>(), any::<f64>(), any::<bool>()), 0..300),
        asked in (any::<u32>(), any::<i64>()),
    ) {
        let mut predictor = Predictor::new(64, 10_000);
        for (tenant, kind, limit, run, failed) in lessons {
            let facts = Facts { tenant, kind, limit, width: kind % 7, ..Facts::default() };
            predictor.learn(&Keys::new(&facts), limit, run, failed, None);
        }
        for run in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.0, -0.0, f64::MAX, f64::MIN_POSITIVE] {
            predictor.learn(&Keys::new(&Facts::default()), 0, run, true, None);
        }
        let (tenant, limit) = asked;
        let found = predictor.predict(&Keys::new(&Facts { tenant, limit, ..Facts::default() }), limit);
        let year = 3.2e10_f32.ln();
        for value in [found.log_mean, found.q50, found.q90] {
            prop_assert!(value.is_finite() && value <= year + 1e-3, "{found:?}");
        }
        prop_assert!(found.inverse > 0.0 && found.inverse <= 1e-4, "{found:?}");
        prop_assert!(found.rank(0).is_finite() && found.outlived(limit).rank(u32::MAX).is_finite());
    }

    #[test]
    fn a_queue_takes_what_a_search_through_all_that_wait_finds(
        steps in prop::collection::vec((0u8..8, any::<u32>(), 0u32..4, -3i8..3), 1..300),
    ) {
        let mut queue = Queue::new(Millis::MAX, f64::INFINITY);
        let mut waiting: Vec<(i8, u32)> = Vec::new();
        for (task, (what, which, tenant, rank)) in (0u32..).zip(steps) {
            let place = which as usize % waiting.len().max(1);
            match what {
                0..4 => {
                    queue.push(task, tenant, f32::from(rank), 0);
                    waiting.push((rank, task));
                }
                4 if !waiting.is_empty() => prop_assert!(queue.withdraw(waiting.swap_remove(place).1)),
                5 if !waiting.is_empty() => {
                    waiting[place].0 = rank;
                    (0..30).for_each(|_| queue.rank_again(waiting[place].1, f32::from(rank)));
                }
                _ => {
                    let least = waiting.iter().min().copied();
                    prop_assert_eq!(queue.lowest(), least.map(|(rank, _)| f32::from(rank)));
                    prop_assert_eq!(queue.pop(0, |_| 0.0).map(|(task, _)| task), least.map(|(_, task)| task));
                    waiting.retain(|entry| Some(*entry) != least);
                }
            }
            prop_assert_eq!(queue.len(), waiting.len());
        }
    }

    #[test]
    fn a_tenant_is_never_ahead_of_another_that_waits_by_more_than_the_lead(
        weights in prop::collection::vec(1u32..5, 3),
        tasks in prop::collection::vec((0u32..3, -100f32..100.0, 1u32..50), 30..200),
    ) {
        let lead = 100.0;
        let mut queue = Queue::new(Millis::MAX, lead);
        for (tenant, weight) in (0u32..).zip(&weights) {
            queue.set_weight(tenant, f64::from(*weight));
        }
        for (task, (tenant, rank, _)) in (0u32..).zip(&tasks) {
            queue.push(task, *tenant, *rank, 0);
        }
        let mut left = [0usize; 3];
        tasks.iter().for_each(|(tenant, ..)| left[*tenant as usize] += 1);
        let mut service = [0.0; 3];
        let mut popped = 0;
        while let Some((task, _)) = queue.pop(0, |task| f64::from(tasks[task as usize].2)) {
            let (tenant, _, cost) = tasks[task as usize];
            left[tenant as usize] -= 1;
            service[tenant as usize] += f64::from(cost) / f64::from(weights[tenant as usize]);
            popped += 1;
            let waiting = (0..3).filter(|other| left[*other] > 0).map(|other| service[other]);
            let least = waiting.fold(f64::INFINITY, f64::min);
            prop_assert!(service[tenant as usize] <= least + lead + 50.0);
        }
        prop_assert_eq!(popped, tasks.len());
    }
}

#[test]
fn the_oldest_of_a_queue_is_taken_within_twice_the_tasks_before_it() {
    let cap = 1000;
    let mut queue = Queue::new(cap, f64::INFINITY);
    let old = 20;
    for task in 0..old {
        queue.push(task, 0, 1e9, 0);
    }
    let mut next = old;
    let mut taken = Vec::new();
    for now in cap..cap + 100 {
        // Tasks that rank before the old ones come faster than they can be taken.
        for _ in 0..2 {
            queue.push(next, 1, 0.0, now);
            next += 1;
        }
        let (task, _) = queue.pop(now, |_| 0.0).unwrap();
        if task < old {
            taken.push((now - cap, task));
        }
    }
    let expected: Vec<(Millis, u32)> = (0..old).map(|task| (2 * Millis::from(task), task)).collect();
    assert_eq!(taken, expected);
}

#[test]
fn a_task_that_was_withdrawn_or_ranked_again_is_taken_once_or_never() {
    let mut queue = Queue::new(Millis::MAX, f64::INFINITY);
    for task in 0..3 {
        queue.push(task, task, 5.0, 0);
    }
    queue.rank_again(2, 1.0);
    assert!(queue.withdraw(0) && !queue.withdraw(0));
    let order: Vec<u32> = std::iter::from_fn(|| queue.pop(0, |_| 0.0).map(|(task, _)| task)).collect();
    assert_eq!(order, [2, 1]);
    assert!(queue.is_empty());
}

#[test]
fn of_equal_ranks_the_lower_id_goes_first_whoever_its_tenant_is() {
    let mut queue = Queue::new(Millis::MAX, f64::INFINITY);
    for task in 0..6 {
        queue.push(task, 5 - task % 3, 0.0, 0);
    }
    let order: Vec<u32> = std::iter::from_fn(|| queue.pop(0, |_| 0.0).map(|(task, _)| task)).collect();
    assert_eq!(order, [0, 1, 2, 3, 4, 5]);
}

#[test]
fn a_task_that_is_put_back_keeps_its_age_and_the_lowest_rank_is_that_of_the_next() {
    let mut queue = Queue::new(100, f64::INFINITY);
    queue.push(0, 0, 1.0, 0);
    queue.push(1, 1, 2.0, 10);
    assert_eq!(queue.lowest(), Some(1.0));
    assert_eq!(queue.pop(10, |_| 0.0), Some((0, Reason::Rank)));
    assert_eq!(queue.lowest(), Some(2.0));
    // The front of the ages is dropped while task 0 runs.
    assert_eq!(queue.pop(50, |_| 0.0), Some((1, Reason::Rank)));
    assert_eq!(queue.lowest(), None);
    queue.push(2, 0, 0.0, 60);
    queue.put_back(1, 7.0);
    queue.put_back(0, 9.0);
    assert_eq!(queue.lowest(), Some(0.0));
    queue.let_ages(false);
    assert_eq!(queue.pop(100, |_| 0.0), Some((2, Reason::Rank)));
    queue.let_ages(true);
    assert_eq!(queue.pop(100, |_| 0.0), Some((0, Reason::Age)), "it was submitted first");
    assert_eq!(queue.pop(120, |_| 0.0), Some((1, Reason::Rank)));
}

#[test]
fn a_task_that_waited_for_many_times_its_limit_goes_ahead_of_a_shorter_one_that_just_came() {
    let task = |id: u32, tenant| {
        let facts = Facts { tenant, kind: tenant, limit: 100_000, width: 1, ..Facts::default() };
        Task { id, facts, deadline: None, restartable: true, known: None }
    };
    let next = |urgency: f64, waited: Millis| {
        let mut scheduler = Scheduler::new(Config { urgency, aging: Aging::NONE, ..Config::new(1, Policy::Auto) });
        let (mut now, mut starts) = (0, Vec::new());
        for id in 0..12 {
            scheduler.submit(task(id, 1 + id % 2), now);
            scheduler.starts(now, &mut starts);
            now += 1_000;
            scheduler.ended(id, if id % 2 == 0 { 100_000 } else { 1_000 }, false, now);
        }
        scheduler.submit(task(20, 1), now);
        scheduler.starts(now, &mut starts);
        scheduler.submit(task(21, 1), now);
        now += waited;
        scheduler.submit(task(22, 2), now);
        scheduler.ended(20, 100_000, false, now);
        starts.clear();
        scheduler.starts(now, &mut starts);
        starts[0].task
    };
    assert_eq!(next(2.0, 100_000), 22);
    assert_eq!(next(2.0, 100 * 100_000), 21);
    assert_eq!(next(0.0, 100 * 100_000), 22);
}

#[test]
fn with_deadlines_the_likely_go_before_the_unlikely_and_the_hopeless_are_last() {
    let rank = |needed: f64, chance: f64, left: Millis| deadline_rank(needed, chance, left, 4, 20.0);
    let likely = rank(600e3, 0.9, 3_600_000);
    assert!(likely < rank(600e3, 0.3, 3_600_000), "a chance");
    assert!(likely < rank(1_200e3, 0.9, 4_200_000), "less work, as much to spare");
    assert!(likely < rank(600e3, 0.9, 7_200_000), "less to spare");
    for hopeless in [rank(600e3, 0.05, 3_600_000), rank(600e3, 1.0, 599_000), rank(f64::INFINITY, 1.0, -5)] {
        assert!(hopeless > 1000.0 + likely && hopeless.is_finite());
    }
}

//! What the models learn, on data whose truth is known, and what the searches find.

use taskmaster_scheduler::critical::Graph;
use taskmaster_scheduler::critical::project::{Project, ProjectError, Random, Search};
use taskmaster_scheduler::guard::{Guard, Verdict};
use taskmaster_scheduler::lengths::Lengths;
use taskmaster_scheduler::order::{Aging, Policy};
use taskmaster_scheduler::place::contention::{Contention, Sample};
use taskmaster_scheduler::place::pairing;
use taskmaster_scheduler::place::{Ask, Fit, Placement, Worker};
use taskmaster_scheduler::predictor::{Facts, Keys, Predictor};
use taskmaster_scheduler::replay::{Job, ReplayOptions, Trace, run};
use taskmaster_scheduler::restart::Attempts;

/// A number of the standard normal distribution, near enough: twelve uniform ones less six.
fn normal(random: &mut Random) -> f64 {
    (0..12).map(|_| random.unit()).sum::<f64>() - 6.0
}

#[test]
fn nine_of_ten_run_times_stay_within_the_corrected_quantile_also_after_a_shift() {
    for spread in [0.1, 1.0, 2.5] {
        let mut predictor = Predictor::new(1 << 12, 1000);
        let mut random = Random::new(7);
        let (mut covered, mut counted) = (0.0, 0.0);
        for sample in 0..30_000 {
            let tenant = u32::try_from(random.below(50)).unwrap();
            let facts = Facts { tenant, kind: tenant % 3, width: 1, ..Facts::default() };
            let keys = Keys::new(&facts);
            let shift = if sample < 15_000 { 0.0 } else { 2.0 };
            let run = (9.0 + shift + 0.05 * f64::from(tenant) + spread * normal(&mut random)).exp();
            if sample >= 2_000 {
                covered += f64::from(u8::from(run.ln() <= f64::from(predictor.predict(&keys, 0).q90)));
                counted += 1.0;
            }
            predictor.learn(&keys, 0, run, false, None);
        }
        let part = covered / counted;
        assert!((0.885..=0.915).contains(&part), "spread {spread}: {part}");
    }
}

#[test]
fn a_key_with_few_samples_borrows_and_one_with_many_does_not() {
    let mut predictor = Predictor::new(1 << 12, 1000);
    let keys = |tenant, kind| Keys::new(&Facts { tenant, kind, width: 1, ..Facts::default() });
    for _ in 0..200 {
        predictor.learn(&keys(1, 1), 0, 100_000.0, false, None);
        predictor.learn(&keys(2, 2), 0, 10.0, true, None);
    }
    let long = predictor.predict(&keys(1, 1), 0);
    let short = predictor.predict(&keys(2, 2), 0);
    assert!((long.q50 - 100_000f32.ln()).abs() < 0.3 && (short.q50 - 10f32.ln()).abs() < 0.5, "{long:?} {short:?}");
    assert!(short.failed > 0.9 && long.failed < 0.1);
    assert!(short.rank(1) < long.rank(1) && long.rank(1) < long.rank(64));
    let unknown = predictor.predict(&keys(3, 1), 0);
    assert!(unknown.log_mean > short.log_mean && unknown.level < long.level);
}

#[test]
fn what_a_limit_says_of_lengths_holds_for_tenants_that_never_had_it() {
    let mut lengths = Lengths::new(1 << 12, 1000);
    let keys = |tenant, limit| Keys::new(&Facts { tenant, limit, width: 1, ..Facts::default() });
    // Every third task is long, and limits are as good as chance, but no shorter than the task.
    let mut random = Random::new(3);
    for sample in 0..6_000 {
        let run = if sample % 3 == 0 { 20_000_000 } else { 100_000 };
        let limit = 300_000 << (if run > 100_000 { 7 } else { random.below(8) });
        let tenant = u32::try_from(random.below(20)).unwrap();
        let limit = if tenant == 0 { 40_000_000 } else { limit };
        lengths.learn(&keys(tenant, limit), run);
    }
    let long = |tenant, limit| 1.0 - lengths.within(&keys(tenant, limit), 1_000_000, i64::MAX).0;
    let [known, new] = [0, 77].map(|tenant| long(tenant, 600_000));
    assert!(known < 0.05 && new < 0.05, "{known} {new}");
    let [known, new] = [0, 77].map(|tenant| long(tenant, 40_000_000));
    assert!(known > 0.25 && new > 0.6, "{known} {new}");
    let unlimited = long(0, 0);
    assert!((0.2..0.5).contains(&unlimited), "{unlimited}");
}

#[test]
fn a_task_of_two_kinds_is_judged_after_the_short_one_and_one_of_one_kind_at_its_end() {
    let mut lengths = Lengths::new(1 << 12, 1000);
    let keys = |tenant| Keys::new(&Facts { tenant, kind: tenant, width: 1, ..Facts::default() });
    assert_eq!(lengths.attempt(&keys(1), 0).until, None, "nothing is known");
    for round in 0..600 {
        lengths.learn(&keys(1), if round % 2 == 0 { 60_000 } else { 36_000_000 });
        lengths.learn(&keys(2), 3_600_000);
        lengths.learn(&keys(3), 36_000_000);
    }
    let [mixed, even, long] = [1, 2, 3].map(|tenant| lengths.attempt(&keys(tenant), 0));
    assert!((60_000..120_000).contains(&mixed.until.unwrap()), "{mixed:?}");
    assert!((3_600_000..8_000_000).contains(&even.until.unwrap()), "{even:?}");
    assert!(mixed.rank < even.rank && even.rank < long.rank);
    // What outlived the short kind is as long as the long kind, and goes on for less than one that starts.
    let outlived = lengths.attempt(&keys(1), mixed.until.unwrap());
    assert!((outlived.rank - long.rank).abs() < 0.5 && outlived.until.unwrap() > 30_000_000, "{outlived:?} {long:?}");
    let going_on = lengths.going_on(&keys(3), 30_000_000);
    assert!(going_on.rank < long.rank, "{going_on:?} {long:?}");
    // A tenant that was not seen is like all.
    let unknown = lengths.rank(&keys(4), 0, i64::MAX);
    assert!(lengths.rank(&keys(2), 0, i64::MAX) > unknown && unknown < lengths.rank(&keys(3), 0, i64::MAX));
    assert!(lengths.rank(&keys(3), 0, 10_000) < unknown, "it takes no longer than its limit");
}

#[test]
fn giving_up_finds_the_short_tasks_that_no_prediction_can() {
    let mut random = Random::new(5);
    let mut submit = 0;
    let mut job = |id: u32| {
        submit += 5_000 * i64::try_from(random.below(20)).unwrap();
        // Nine of ten are over in a minute, and nothing tells them from the others.
        let run = if random.unit() < 0.9 { 60_000 } else { 7_200_000 + i64::from(id) };
        let (id, user, limit, keys) = (id.into(), id % 7, 86_400_000, [0; 4]);
        Job { id, line: 0, submit, run, limit, has_limit: true, deadline: None, width: 1, user, size: 0, keys }
    };
    let jobs: Vec<Job> = (0..4_000).map(&mut job).collect();
    let mut trace = Trace { name: String::new(), width: 1, jobs, skipped: 0 };
    trace.width = u32::try_from(trace.work() * 10 / i128::from(trace.span()) / 9).unwrap();
    let base = ReplayOptions { floor: 1000, aging: Aging::NONE, ..ReplayOptions::new(Policy::Auto) };
    let kept = run(&trace, &base);
    let given_up = run(&trace, &ReplayOptions { restartable: true, ..base });
    assert!(given_up.waste > 0.0 && given_up.waste <= 0.05);
    let excess = (kept.slowdown_mean - 1.0, given_up.slowdown_mean - 1.0);
    assert!(excess.1 * 5.0 < excess.0, "{excess:?}");
}

#[test]
fn attempts_stay_within_the_waste_that_is_allowed() {
    let mut attempts = Attempts::new(0.05);
    assert_eq!(attempts.budget(), None, "nothing is known");
    let mut random = Random::new(3);
    let mut made = 0;
    for _ in 0..5_000 {
        let run = if random.unit() < 0.4 { 100 } else { 60_000 };
        if let Some(budget) = attempts.budget()
            && attempts.admit(budget, 2)
        {
            attempts.over(budget, 2, run <= budget);
            made += 1;
        }
        attempts.ended(run, 2);
        assert!(attempts.waste() <= 0.05);
    }
    assert!(made > 1_000, "{made} attempts");
    assert_eq!(Attempts::new(f64::NAN).budget(), None);
}

#[test]
fn the_guard_lets_a_candidate_in_only_while_it_is_better_and_drops_it_at_once() {
    let mut guard = Guard::default();
    assert_eq!(guard.verdict(1), Verdict::Plain);
    for block in 0..20 {
        guard.block(10.0, if block % 2 == 0 { 5.0 } else { 7.0 }, 100);
    }
    assert_eq!(guard.verdict(100), Verdict::Candidate);
    assert_eq!(guard.verdict(401), Verdict::Grown);
    let mut drifted = guard.clone();
    (0..100).for_each(|_| drifted.completion(true));
    assert_eq!(drifted.verdict(100), Verdict::Drifted);
    for _ in 0..10 {
        guard.block(10.0, f64::NAN, 100);
    }
    assert_eq!(guard.verdict(100), Verdict::Plain);
    let mut noisy = Guard::default();
    (0..32).for_each(|block| noisy.block(10.0, if block % 2 == 0 { 2.0 } else { 48.0 }, 1));
    assert_eq!(noisy.verdict(1), Verdict::Plain, "a gain that is not certain is none");
}

#[test]
fn workflows_are_scheduled_within_their_bounds() {
    // Two levels of five tasks with a barrier between them, on two slots: the bound sees the barrier, which costs more than
    // all work over the slots (50) and less than the schedule, whose levels leave a slot idle each.
    let needs = (0..10u32).map(|task| if task < 5 { Vec::new() } else { (0..5).collect() }).collect();
    let graph = Graph::new(vec![10; 10], needs).unwrap();
    assert_eq!(graph.bound(2), 55);
    let starts = graph.improve(2, 20, 1, 55);
    assert_eq!(graph.makespan(&starts), 60);
    assert!(Graph::new(vec![1, 1], vec![vec![1], vec![]]).is_err());
    assert!(Graph::new(vec![-1], vec![vec![]]).is_err());
    // Random graphs: no schedule beats the bound, and the search does not lose to the ranks alone.
    let mut random = Random::new(11);
    for _ in 0..50 {
        let count = 2 + random.below(60);
        let durations: Vec<i64> = (0..count).map(|_| i64::try_from(random.below(100)).unwrap()).collect();
        let needs: Vec<Vec<u32>> = (0..count)
            .map(|task| (0..task).filter(|_| random.below(8) == 0).map(|other| u32::try_from(other).unwrap()).collect())
            .collect();
        let graph = Graph::new(durations.clone(), needs.clone()).unwrap();
        for slots in [1, 3, 9] {
            let ranks: Vec<f64> = graph.ranks().iter().map(|rank| *rank as f64).collect();
            let (ranked, found) = (graph.list(slots, &ranks, false), graph.improve(slots, 30, 5, 0));
            for starts in [&ranked, &found] {
                assert!(graph.makespan(starts) >= graph.bound(slots));
                let ordered = |task: usize| {
                    needs[task].iter().all(|other| starts[*other as usize] + durations[*other as usize] <= starts[task])
                };
                assert!((0..count).all(ordered));
                let at = |time: i64| {
                    (0..count).filter(|task| starts[*task] <= time && time < starts[*task] + durations[*task]).count()
                };
                assert!(starts.iter().all(|time| at(*time) <= slots));
            }
            assert!(graph.makespan(&found) <= graph.makespan(&ranked));
        }
    }
}

#[test]
fn projects_are_valid_and_the_search_finds_the_shortest() {
    // Two tasks of 3 that need all of the resource, and one of 6 that needs none: 6 is the shortest.
    let after = vec![vec![], vec![], vec![]];
    let project = Project::new(vec![3, 3, 6], &[vec![2], vec![2], vec![0]], &[2], after).unwrap();
    let found = Search::new(&project, 1).run(50);
    assert!(project.is_valid(&found) && project.makespan(&found) == 6);
    assert!(!project.is_valid(&[0, 2, 0]), "two tasks that need all of it at once");
    let ring = Project::new(vec![1, 1], &[vec![1], vec![1]], &[1], vec![vec![1], vec![0]]);
    assert_eq!(ring.unwrap_err(), ProjectError::Order(0));
    let wide = Project::new(vec![1], &[vec![2]], &[1], vec![vec![]]);
    assert_eq!(wide.unwrap_err(), ProjectError::Demand(0));
}

#[test]
fn placement_never_gives_more_than_a_worker_has_and_leaves_whole_devices_whole() {
    let half = Ask { cpu: 1000, memory: 10, devices: 1, share: 500 };
    let whole = Ask { cpu: 1000, memory: 10, devices: 1, share: 1000 };
    for fit in [Fit::Best, Fit::Fragmentation, Fit::Future] {
        let mut placement = Placement::new(vec![Worker::new(8000, 100, 2), Worker::new(8000, 100, 2)], fit);
        let places: Vec<Option<usize>> =
            [half, whole, half, whole, whole].iter().map(|ask| placement.place(ask)).collect();
        assert!(places[..4].iter().all(Option::is_some), "{fit:?}: {places:?}");
        assert!(places[4].is_some(), "{fit:?} split a device that a whole task needed: {places:?}");
        assert_eq!(placement.place(&half), None);
    }
    for fit in [Fit::Fragmentation, Fit::Future] {
        let mut placement = Placement::new(vec![Worker::new(1000, 100, 1)], fit);
        assert_eq!(placement.place(&Ask { cpu: 1001, ..half }), None);
        assert_eq!(placement.place(&half), Some(0));
        placement.leave(0, &half, &[0]);
        assert_eq!(placement.workers()[0], Worker::new(1000, 100, 1));
        for share in [0, 1, u32::MAX] {
            assert_eq!(placement.place(&Ask { share, devices: u32::MAX, ..half }), None);
        }
        assert_eq!(placement.place(&whole), Some(0), "what is judged anew is what is free now");
    }
}

#[test]
fn processors_beside_devices_are_kept_for_the_mix_to_come() {
    // On the narrow workers eight small tasks of four processors, or four large and four tiny ones; the wide one takes whatever.
    let workers = || [vec![Worker::new(64_000, 1_000_000, 8); 8], vec![Worker::new(256_000, 1_000_000, 8); 8]].concat();
    let ask = |cpu| Ask { cpu, memory: 1, devices: 1, share: 1000 };
    let mut random = Random::new(3);
    let asks: Vec<Ask> = (0..128).map(|_| ask(if random.unit() < 0.5 { 20_000 } else { 4_000 })).collect();
    let used = |fit| Placement::devices_in_use(&workers(), &asks, fit);
    let [best, fragmentation, future] = [Fit::Best, Fit::Fragmentation, Fit::Future].map(used);
    assert!(future > fragmentation && future > best, "{best} {fragmentation} {future}");
}

#[test]
fn contention_learns_who_disturbs_whom_and_refuses_what_would_be_slow() {
    // Task 0 disturbs all, more than its profile says; the others do not.
    let profiles = [[0.5, 0.3, 0.1]; 6];
    let mut samples = Vec::new();
    for task in 0..6 {
        for other in 0..6 {
            samples.push(Sample { task, other, speed: if other == 0 { 0.6 } else { 0.98 } });
        }
    }
    samples.push(Sample { task: 1, other: 2, speed: f32::NAN });
    samples.push(Sample { task: 99, other: 2, speed: 0.1 });
    let model = Contention::learn(&profiles, &samples);
    assert!(model.speed(1, 0) < 0.8 && model.speed(1, 2) > 0.9, "{} {}", model.speed(1, 0), model.speed(1, 2));
    assert_eq!(model.pair(1, 0), None);
    assert!(model.worth(1, 0) == 0.0 && model.worth(1, 2) > 0.0);
    assert!(model.pair(1, 2).is_some_and(|speed| speed > 0.9));
}

#[test]
fn pairs_are_worth_nearly_as_much_as_the_best_and_none_is_taken_twice() {
    let mut random = Random::new(5);
    let (mut all, mut best) = (0.0, 0.0);
    for round in 0..40 {
        let count = round % 11;
        let mut worths = vec![0.0_f32; count * count];
        for worth in &mut worths {
            #[expect(clippy::cast_possible_truncation, reason = "any number")]
            let value = random.unit() as f32 - 0.4;
            *worth = if round == 7 { f32::NAN } else { value };
        }
        let worth = |a: usize, b: usize| worths[a * count + b];
        let pairs = pairing::pairs(count, worth);
        let mut taken: Vec<usize> = pairs.iter().flat_map(|(a, b)| [*a, *b]).collect();
        taken.sort_unstable();
        taken.dedup();
        assert!(taken.len() == 2 * pairs.len() && pairs.iter().all(|(a, b)| a < b && worth(*a, *b) > 0.0));
        let sum: f32 = pairs.iter().map(|(a, b)| worth(*a, *b)).sum();
        let most = most(count, &worth, 0);
        assert!(sum <= most + 1e-4, "{sum} {most}");
        all += sum;
        best += most;
    }
    assert!(all >= 0.98 * best, "{all} of {best}");
}

/// The most that pairs of those not in `taken`, a set of bits, are worth.
fn most(count: usize, worth: &dyn Fn(usize, usize) -> f32, taken: u32) -> f32 {
    let Some(first) = (0..count).find(|task| taken >> task & 1 == 0) else { return 0.0 };
    let without = taken | 1 << first;
    let others = (first + 1..count).filter(|other| without >> other & 1 == 0 && worth(first, *other) > 0.0);
    let with = others.map(|other| worth(first, other) + most(count, worth, without | 1 << other));
    with.fold(most(count, worth, without), f32::max)
}

//! Tasks that need much of a worker start beside any stream of tasks that need little, and workers that are kept for them do what work
//! they can meanwhile.

use proptest::prelude::*;
use taskmaster_protocol::TaskId;
use taskmaster_protocol::body::queue_field;

use crate::job::{Job, job};
use crate::random::Random;
use crate::site::{FIRST, STEP_MS, Site};
use crate::world::World;

const FIFO: u16 = 1;
const SHORTEST: u16 = 2;
const DEADLINE: u16 = 3;
/// A worker is kept for a task that has waited for a second, at the next look, half a second later at most.
const KEPT_MS: u64 = 1_500 + 50;
/// The longest of the tasks in the way.
const NARROW_MS: [u64; 3] = [90, 100, 130];

/// A stream of small tasks of which some always wait.
struct Stream {
    queue: &'static str,
    priority: u8,
    random: Random,
}

impl Stream {
    fn new(queue: &'static str, priority: u8) -> Self {
        Self { queue, priority, random: Random::new(1) }
    }

    fn flow(&mut self, site: &mut Site, count: u64) {
        let (queue, priority, random) = (self.queue, self.priority, &mut self.random);
        site.keep_waiting(queue, count, |site| {
            let run_ms = *random.pick(&NARROW_MS);
            site.submit_with(queue, 1, run_ms, |job| job.priority(priority));
        });
    }

    /// Flows for a step beside tasks of the same queue, of which some wait as well.
    fn step_beside(&mut self, site: &mut Site, others: &[TaskId]) {
        let waiting = others.iter().filter(|id| !site.started_us.contains_key(*id)).count();
        self.flow(site, 12 + waiting as u64);
        site.step();
    }

    /// Flows for so long, or until a task starts.
    fn flow_for(&mut self, site: &mut Site, ms: u64, until: Option<TaskId>) {
        for _ in 0..ms / STEP_MS {
            self.flow(site, 12);
            site.step();
            if until.is_some_and(|id| site.started_us.contains_key(&id)) {
                return;
            }
        }
    }
}

/// How long a task of all processors of a worker waits beside a stream, in milliseconds, if it starts within ten seconds.
fn wait_beside(site: &mut Site, stream: &mut Stream, queue: &str, cpus: u32, priority: u8) -> Option<u64> {
    stream.flow_for(site, 500, None);
    let since_us = site.world.now_us;
    let wide = site.submit_with(queue, cpus, 200, |job| job.priority(priority));
    stream.flow_for(site, 10_000, Some(wide));
    site.waited_ms(wide, since_us)
}

#[test]
fn a_wide_task_starts_beside_a_steady_stream_of_narrow_ones() {
    for workers in [&[8][..], &[8; 4], &[4, 8, 4]] {
        let mut site = Site::new(workers, &["mail"]);
        let waited_ms = wait_beside(&mut site, &mut Stream::new("mail", 2), "mail", 8, 2);
        let waited_ms = waited_ms.unwrap_or_else(|| panic!("it starves beside {workers:?}"));
        eprintln!("it waited for {waited_ms} ms with {workers:?}");
        assert!(waited_ms <= KEPT_MS + 130 + 2 * STEP_MS, "{waited_ms} ms with {workers:?}");
    }
}

#[test]
fn a_wide_task_starts_beside_a_stream_of_a_lower_priority() {
    let mut site = Site::new(&[8], &["mail"]);
    let waited_ms = wait_beside(&mut site, &mut Stream::new("mail", 3), "mail", 6, 1);
    assert!(waited_ms.is_some_and(|ms| ms <= KEPT_MS + 130 + 2 * STEP_MS), "{waited_ms:?}");
}

#[test]
fn a_more_urgent_stream_goes_first_as_priorities_say_and_no_place_idles_for_who_waits() {
    let mut site = Site::new(&[8], &["mail"]);
    let waited_ms = wait_beside(&mut site, &mut Stream::new("mail", 1), "mail", 8, 2);
    assert_eq!((waited_ms, site.world.shard.stats().reservations), (None, 0));
}

#[test]
fn a_wide_task_starts_beside_a_stream_of_another_queue_whatever_its_priority() {
    for priority in [0, 2] {
        let mut site = Site::new(&[8, 8], &["mail", "other"]);
        let waited_ms = wait_beside(&mut site, &mut Stream::new("other", priority), "mail", 8, 2);
        assert!(waited_ms.is_some_and(|ms| ms <= KEPT_MS + 130 + 2 * STEP_MS), "{waited_ms:?} beside {priority}");
    }
}

/// A stream that never waits, since there is always a place for one: of eight processors it has half.
#[test]
fn a_wide_task_starts_where_narrow_ones_find_a_place_at_once() {
    let mut site = Site::new(&[8], &["mail"]);
    let mut wide = None;
    for step in 0..1_000 {
        if step % 5 == 0 {
            site.submit("mail", 1, 100);
        }
        if step == 100 {
            wide = Some((site.submit("mail", 8, 200), site.world.now_us));
        }
        site.step();
    }
    let (wide, since_us) = wide.unwrap();
    let waited_ms = site.waited_ms(wide, since_us);
    assert!(waited_ms.is_some_and(|ms| ms <= KEPT_MS + 100 + 2 * STEP_MS), "{waited_ms:?}");
}

#[test]
fn devices_and_named_resources_are_kept_as_well() {
    let asks = |job: Job, gpus: u32, licences: u32| {
        let mut job = job.with_spec(|spec| spec.gpu_milli = gpus * 1_000);
        job.custom = if licences > 0 { format!("licence={licences}") } else { String::new() };
        job
    };
    for [narrow, wide] in [[(1, 0), (4, 0)], [(0, 1), (0, 3)], [(1, 0), (4, 1)]] {
        let mut world = World::new();
        world.worker_with(FIRST, &["mail"], 8, "licence=4", |body| body.gpu_milli = 4_000);
        let mut running = Vec::new();
        let mut started = None;
        for number in 0..400 {
            if number == 10 {
                world.submit_one(asks(job("mail", 5_000), wide.0, wide.1));
            }
            world.submit_one(asks(job("mail", number), narrow.0, narrow.1));
            world.advance_ms(10);
            running.extend(world.leases());
            started = started.or(running.iter().any(|lease| lease.id == crate::job::id(0, 5_000)).then_some(number));
            let is_over = running.len() > 3 || started.is_some() || number > 100;
            if is_over && !running.is_empty() {
                let lease = running.remove(0);
                world.complete(&lease, b"");
                world.credit(FIRST, 1);
            }
        }
        assert!(started.is_some_and(|number| number < 250), "{narrow:?} {wide:?}: {started:?}");
    }
}

/// A worker of eight processors that is kept for a task that needs all of them, while one of ten seconds runs there.
fn kept() -> (Site, TaskId) {
    let mut site = Site::new(&[8], &["mail", "other"]);
    site.submit("mail", 1, 10_000);
    let wide = site.submit("mail", 8, 200);
    site.steps(KEPT_MS + STEP_MS);
    assert_eq!((site.reserved(), site.cpus_of(FIRST)), (1, 1));
    (site, wide)
}

#[test]
fn without_predictions_nothing_starts_on_a_worker_that_is_kept_and_why_says_so() {
    let (mut site, wide) = kept();
    let held = [site.submit("mail", 1, 20), site.submit("other", 1, 20)];
    site.steps(1_000);
    assert!(held.iter().all(|id| !site.started_us.contains_key(id)));
    let mut fact = |id, name: &str| {
        let why = site.world.why(id);
        why.into_iter().find(|(known, _)| known == name).map(|(_, sentence)| sentence).unwrap_or_default()
    };
    let reserved = "worker \"worker-10\" is kept for it, expected when enough of what runs there has ended, for which there is no prediction";
    assert_eq!(fact(wide, "reserved"), reserved);
    for id in held {
        let waits = fact(id, "waits");
        let words = "worker \"worker-10\" has room and is kept for a task of queue \"mail\" that asks for 8000 milli-cpu, expected when";
        assert!(waits.starts_with(words), "{waits}");
        assert_eq!(fact(id, "reserved"), "");
    }
    site.steps(9_000);
    assert!(site.started_us.contains_key(&wide) && held.iter().all(|id| site.started_us.contains_key(id)));
    let since_us = site.started_us[&wide];
    assert!(held.iter().all(|id| site.started_us[id] > since_us), "they started before the task that was kept for");
}

#[test]
fn what_takes_nothing_of_what_is_kept_starts_all_the_same() {
    let (mut site, _) = kept();
    let free = site.submit_with("mail", 0, 20, |job| job.with_spec(|spec| spec.cpu_milli = 0));
    site.steps(2 * STEP_MS);
    assert!(site.started_us.contains_key(&free));
}

#[test]
fn a_worker_is_kept_no_longer_when_the_task_is_cancelled_or_its_queue_is_paused() {
    for is_paused in [false, true] {
        let (mut site, wide) = kept();
        let narrow = site.submit("other", 1, 20);
        site.steps(100);
        assert!(!site.started_us.contains_key(&narrow));
        if is_paused {
            site.world.configure("mail", queue_field::PAUSED, |queue| queue.paused = 1);
        } else {
            site.world.cancel(&[wide]);
        }
        site.steps(50 + STEP_MS);
        assert!(site.started_us.contains_key(&narrow), "paused: {is_paused}");
        assert_eq!(site.reserved(), 0);
    }
}

#[test]
fn another_worker_is_kept_when_the_one_that_was_is_gone() {
    let mut site = Site::new(&[8, 8], &["mail"]);
    for run_ms in [5_000, 6_000] {
        site.submit("mail", 1, run_ms);
    }
    let wide = site.submit("mail", 8, 200);
    site.steps(KEPT_MS + STEP_MS);
    let kept = |site: &mut Site| {
        let why = site.world.why(wide);
        let reserved = why.into_iter().find(|(name, _)| name == "reserved").unwrap().1;
        reserved.split('"').nth(1).unwrap().trim_start_matches("worker-").parse::<u64>().unwrap()
    };
    let first = kept(&mut site);
    site.world.disconnect(first);
    site.running.retain(|(_, lease)| lease.conn != first);
    site.steps(550);
    assert_eq!((site.reserved(), kept(&mut site)), (1, 2 * FIRST + 1 - first));
    site.steps(5_000);
    assert!(site.started_us.contains_key(&wide));
}

/// Kinds of which it is known how long they run.
fn teach(site: &mut Site, run_ms: &[u64]) {
    for _ in 0..12 {
        for &run_ms in run_ms {
            site.submit("mail", 1, run_ms);
        }
        site.steps(run_ms.iter().max().unwrap() + STEP_MS);
    }
    assert!(site.running.is_empty());
}

#[test]
fn what_ends_before_the_wide_task_fits_uses_its_places_and_does_not_delay_it() {
    let mut site = Site::new(&[8], &["mail"]);
    teach(&mut site, &[20, 4_000]);
    for _ in 0..4 {
        site.submit("mail", 1, 4_000);
    }
    let (wide, since_us) = (site.submit("mail", 8, 200), site.world.now_us);
    let flow = |site: &mut Site, ms: u64| {
        let used_us = site.used_us;
        for _ in 0..ms / STEP_MS {
            site.keep_waiting("mail", 10, |site| {
                site.submit("mail", 1, 20);
            });
            site.step();
        }
        (site.used_us - used_us) / (8 * 10 * ms)
    };
    flow(&mut site, KEPT_MS + STEP_MS);
    assert_eq!(site.reserved(), 1);
    let used = flow(&mut site, 2_000);
    eprintln!("{used} % of the processors of a kept worker were used");
    assert!(used >= 90, "{used} %");
    flow(&mut site, 1_000);
    let waited_ms = site.waited_ms(wide, since_us).expect("it starts");
    // What has ended is looked at every 50 ms.
    assert!(waited_ms <= 4_000 + 50 + 20 + 2 * STEP_MS, "{waited_ms} ms");
}

#[test]
fn what_ends_later_does_not_start_before_the_wide_task_unless_it_fits_beside_it() {
    let mut site = Site::new(&[8], &["mail"]);
    teach(&mut site, &[1_000, 4_000]);
    for _ in 0..4 {
        site.submit("mail", 1, 4_000);
    }
    site.submit("mail", 1, 1_000);
    let wide = site.submit("mail", 6, 200);
    site.steps(2_500);
    assert_eq!(site.reserved(), 1);
    // Two of the eight are not asked for.
    let long: Vec<TaskId> = (0..4).map(|_| site.submit("mail", 1, 4_000)).collect();
    site.steps(1_000);
    assert_eq!(long.iter().filter(|id| site.started_us.contains_key(*id)).count(), 2);
    site.steps(1_000);
    assert!(site.started_us.contains_key(&wide));
}

#[test]
fn at_most_half_of_the_workers_are_kept_and_the_others_go_on() {
    let mut site = Site::new(&[8; 4], &["mail"]);
    let mut stream = Stream::new("mail", 2);
    stream.flow_for(&mut site, 1_000, None);
    let alone = site.ended;
    let wide: Vec<TaskId> = (0..12).map(|_| site.submit("mail", 8, 100)).collect();
    let (mut most, mut used_us) = (0, site.used_us);
    for step in 1..=4_000 / STEP_MS {
        stream.step_beside(&mut site, &wide);
        most = most.max(site.reserved());
        if !(step * STEP_MS).is_multiple_of(500) {
            continue;
        }
        let used = core::mem::replace(&mut used_us, site.used_us);
        assert!(site.used_us - used >= 500_000 * 32 / 2, "half of the processors do something");
    }
    assert_eq!(most, 2);
    (0..6_000 / STEP_MS).for_each(|_| stream.step_beside(&mut site, &wide));
    assert!(wide.iter().all(|id| site.started_us.contains_key(id)));
    assert_eq!(site.reserved(), 0);
    assert!(site.ended - alone > 11 * alone / 2, "{} and {alone} in a second alone", site.ended);
}

/// Narrow and wide tasks that all wait: each has turns.
#[test]
fn a_line_of_wide_tasks_does_not_starve_the_narrow_ones() {
    let mut site = Site::new(&[8], &["mail"]);
    let mut stream = Stream::new("mail", 2);
    let wide: Vec<TaskId> = (0..60).map(|_| site.submit("mail", 8, 100)).collect();
    (0..5_000 / STEP_MS).for_each(|_| stream.step_beside(&mut site, &wide));
    let started = wide.iter().filter(|id| site.started_us.contains_key(*id)).count() as u64;
    let narrow = site.ended - started;
    assert!(started >= 8 && narrow >= 8 * started / 2, "{started} wide and {narrow} narrow ones");
}

#[test]
fn a_worker_is_not_kept_for_what_limits_keep_from_starting() {
    let mut site = Site::new(&[8], &["mail", "slow"]);
    site.world.configure("slow", queue_field::RATE, |queue| (queue.rate_milli_per_s, queue.rate_burst) = (1, 1));
    let mut stream = Stream::new("mail", 2);
    site.submit("slow", 8, 100);
    stream.flow_for(&mut site, 2_000, None);
    let wide = site.submit("slow", 8, 100);
    let before_us = site.used_us;
    stream.flow_for(&mut site, 140_000, None);
    assert!(!site.started_us.contains_key(&wide), "its rate is one in a thousand seconds");
    // A worker is kept for ten seconds of each seventy, and is to be emptied before.
    let part = (site.used_us - before_us) as f64 / (8.0 * 140e6);
    assert!(part > 0.8, "others had {part:.2} of the worker");
}

#[test]
fn a_worker_is_kept_no_longer_though_nobody_else_asks_for_it() {
    let (mut site, wide) = kept();
    site.world.cancel(&[wide]);
    site.steps(50 + STEP_MS);
    assert_eq!(site.reserved(), 0);
}

#[test]
fn a_worker_is_kept_after_a_time_in_which_nobody_waited() {
    let mut site = Site::new(&[8], &["mail", "other"]);
    // The last of its places goes to a wide task.
    for _ in 0..7 {
        site.submit_with("mail", 0, 1_000, |job| job.with_spec(|spec| spec.cpu_milli = 0));
    }
    site.submit("mail", 8, 200);
    assert_eq!(site.running.len(), 8);
    site.steps(2_000);
    site.submit("other", 1, 100_000);
    site.steps(2_000);
    site.submit("mail", 8, 200);
    site.steps(KEPT_MS + STEP_MS);
    assert_eq!(site.reserved(), 1);
}

#[test]
fn room_that_is_kept_for_one_wide_task_is_none_for_another() {
    let mut site = Site::new(&[8; 4], &["mail", "other"]);
    for _ in 0..4 {
        site.submit("mail", 1, 100_000);
    }
    let mut stream = Stream::new("mail", 2);
    let first = site.submit("mail", 8, 200);
    stream.flow_for(&mut site, KEPT_MS + 130, None);
    assert_eq!((site.reserved(), site.running.len()), (1, 1 + 3 * 8));
    let since_us = site.world.now_us;
    let second = site.submit("other", 5, 200);
    stream.flow_for(&mut site, 10_000, Some(second));
    let waited_ms = site.waited_ms(second, since_us);
    assert!(waited_ms.is_some_and(|ms| ms <= KEPT_MS + 130 + 2 * STEP_MS), "{waited_ms:?}");
    assert!(!site.started_us.contains_key(&first));
}

#[test]
fn a_queue_of_many_wide_tasks_does_not_keep_another_from_its_turn() {
    let mut site = Site::new(&[8; 4], &["mail", "other"]);
    for number in 0..800 {
        site.submit_with("mail", 8, 100, |job| job.with_spec(|spec| spec.cpu_milli -= number));
    }
    let mut stream = Stream::new("other", 2);
    stream.flow_for(&mut site, 500, None);
    let since_us = site.world.now_us;
    let wide = site.submit("other", 8, 200);
    stream.flow_for(&mut site, 20_000, Some(wide));
    // Of its own queue's part the narrow ones may have all, for five seconds.
    let waited_ms = site.waited_ms(wide, since_us);
    assert!(waited_ms.is_some_and(|ms| ms <= 5_000 + 2 * KEPT_MS), "{waited_ms:?}");
}

/// A line of wide tasks beside one of narrow ones, in queues of these weights: what part of the time of processors the wide ones had.
fn part_of_wide(weights: [u16; 2]) -> f64 {
    let mut site = Site::new(&[8; 4], &["mail", "other"]);
    for (queue, weight) in ["other", "mail"].into_iter().zip(weights) {
        site.world.configure(queue, queue_field::WEIGHT, |body| body.weight = weight);
    }
    let mut stream = Stream::new("mail", 2);
    let (mut wide_us, mut all_us) = (0, 0);
    for step in 0..60_000 / STEP_MS {
        stream.flow(&mut site, 40);
        site.keep_waiting("other", 8, |site| {
            site.submit("other", 8, 100);
        });
        site.step();
        if step * STEP_MS >= 10_000 {
            let wide = site.running.iter().filter(|(_, lease)| lease.queue == "other").count();
            wide_us += 8 * wide;
            all_us += 7 * wide + site.running.len();
        }
    }
    wide_us as f64 / all_us as f64
}

#[test]
fn workers_are_kept_within_the_share_of_a_queue() {
    for (weights, due) in [([1, 1], 0.5), ([1, 3], 0.25), ([1, 9], 0.1)] {
        let part = part_of_wide(weights);
        eprintln!("of the processors the wide tasks had {part:.3}, where {due} were their part");
        assert!(part < due + 0.02 && part > due / 2.0, "{part:.3} with {weights:?}");
    }
}

#[test]
fn what_others_wait_for_elsewhere_keeps_no_worker_from_a_wide_task() {
    // The other queue has had less and has tasks that wait, but for what no worker here has.
    let mut site = Site::new(&[8], &["mail", "other"]);
    let waits = site.submit("other", 9, 100);
    let waited_ms = wait_beside(&mut site, &mut Stream::new("mail", 2), "mail", 8, 2);
    assert!(waited_ms.is_some_and(|ms| ms <= KEPT_MS + 130 + 2 * STEP_MS), "{waited_ms:?}");
    assert!(!site.started_us.contains_key(&waits));
}

#[test]
fn beside_what_does_not_end_a_worker_is_kept_for_half_of_the_time() {
    let mut site = Site::new(&[8], &["mail", "other"]);
    site.submit("mail", 1, 100_000_000);
    let wide = site.submit("mail", 8, 200);
    site.steps(KEPT_MS + STEP_MS);
    let held = site.submit("other", 1, 20);
    site.steps(599_000);
    assert_eq!((site.reserved(), site.started_us.contains_key(&held)), (1, false));
    site.steps(2_000);
    assert_eq!((site.reserved(), site.started_us.contains_key(&held)), (0, true));
    site.steps(598_000);
    assert_eq!(site.reserved(), 0);
    site.steps(2_000);
    assert_eq!((site.reserved(), site.started_us.contains_key(&wide)), (1, false));
}

#[test]
fn no_more_workers_are_kept_than_tasks_wait() {
    let mut site = Site::new(&[8; 4], &["mail"]);
    for _ in 0..4 {
        site.submit("mail", 5, 10_000);
    }
    let wide = [(); 2].map(|()| site.submit("mail", 8, 200));
    site.steps(KEPT_MS + 150);
    assert_eq!(site.reserved(), 2);
    site.world.cancel(&wide[1..]);
    site.steps(50 + STEP_MS);
    assert_eq!(site.reserved(), 1);
}

#[test]
fn of_the_workers_that_would_do_half_are_kept_at_most() {
    let mut site = Site::new(&[8; 4], &["mail", "wide"]);
    let mut stream = Stream::new("mail", 2);
    stream.flow_for(&mut site, 500, None);
    let wide: Vec<TaskId> = (0..12).map(|_| site.submit("wide", 8, 2_000)).collect();
    let mut most = 0;
    while wide.iter().any(|id| !site.started_us.contains_key(id)) {
        stream.flow(&mut site, 12);
        site.step();
        most = site.reserved().max(most);
    }
    assert_eq!(most, 2);
}

#[test]
fn tasks_that_are_all_as_wide_need_no_worker_to_be_kept() {
    let mut site = Site::new(&[8, 4], &["mail"]);
    for _ in 0..1_000 {
        site.keep_waiting("mail", 20, |site| {
            site.submit("mail", 2, 90);
        });
        site.step();
    }
    assert_eq!(site.world.shard.stats().reservations, 0);
}

/// What waits for the longest after it should have started by the policy's own bound.
fn longest_wait_ms(seed: u64, policy: u16, bound_ms: u64) -> Result<(), TestCaseError> {
    let mut random = Random::new(seed);
    let workers: Vec<u32> = (0..1 + random.below(3)).map(|_| 6 + 2 * random.below(2)).collect();
    let mut site = Site::new(&workers, &["mail", "other"]);
    site.world.configure("mail", queue_field::POLICY, |queue| queue.policy = policy);
    let mut waiting: Vec<(TaskId, u64)> = Vec::new();
    let run_ms = [400, 800, 1_000, 1_500];
    let until_us = site.world.now_us + (bound_ms + 15_000) * 1_000;
    while site.world.now_us < until_us {
        for queue in ["mail", "other"] {
            let mut narrow = Random::new(random.next());
            site.keep_waiting(queue, 6, |site| {
                site.submit(queue, 1 + u32::from(narrow.once_in(7)), *narrow.pick(&run_ms));
            });
        }
        if waiting.len() < 2 && random.once_in(20) {
            let (cpus, run_ms) = (3 + random.below(4), 500 + 100 * random.below(10));
            let id = site.submit("mail", cpus, run_ms.into());
            waiting.push((id, site.world.now_us));
        }
        site.steps(50);
        waiting.retain(|(id, _)| !site.started_us.contains_key(id));
        for (id, since_us) in &waiting {
            let waited_ms = (site.world.now_us - since_us) / 1_000;
            prop_assert!(waited_ms <= bound_ms, "{id} waits for {waited_ms} ms with {workers:?}, seed {seed}");
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nobody_starves_by_width(seed in any::<u64>(), policy in prop_oneof![Just(0u16), Just(FIFO)]) {
        longest_wait_ms(seed, policy, 17_000)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2, failure_persistence: None, ..ProptestConfig::default() })]

    /// Where others are ahead by what was learned or by deadline, aging says when a task's turn has come at the latest.
    #[test]
    fn nobody_starves_by_width_and_rank(seed in any::<u64>(), policy in prop_oneof![Just(SHORTEST), Just(DEADLINE)]) {
        longest_wait_ms(seed, policy, 600_000 + 20_000)?;
    }
}

//! Tasks that waited for ten minutes go ahead of all others, and leave them half of the places all the same.

use proptest::prelude::*;
use taskmaster_protocol::TaskId;
use taskmaster_protocol::body::queue_field;

use crate::random::Random;
use crate::site::{FIRST, STEP_MS, Site};

const SHORTEST: u16 = 2;
const AGED_MS: u64 = 600_000;
const SHORT_MS: u64 = 20;
const LONG_MS: u64 = 1_000;

/// So many places, and a queue that knows how long its kinds run.
fn taught(places: u32) -> Site {
    let mut site = Site::new(&[places], &["mail"]);
    site.world.configure("mail", queue_field::POLICY, |queue| queue.policy = SHORTEST);
    for run_ms in [SHORT_MS, LONG_MS] {
        for _ in 0..10 {
            site.submit("mail", 1, run_ms);
        }
        site.steps(12 * run_ms);
    }
    assert!(site.running.is_empty());
    site
}

/// Long tasks wait until they are too old, while nobody serves the queue; then there are short ones, too.
fn old(site: &mut Site, places: u32, count: u32) -> Vec<TaskId> {
    site.world.disconnect(FIRST);
    let old = (0..count).map(|_| site.submit("mail", 1, LONG_MS)).collect();
    site.world.advance_ms(AGED_MS);
    refill(site);
    site.world.worker_with(FIRST, &["mail"], places, "", |body| body.cpu_milli = 1_000 * places);
    site.begin();
    old
}

fn refill(site: &mut Site) {
    site.keep_waiting("mail", 60, |site| {
        site.submit("mail", 1, SHORT_MS);
    });
}

fn held(site: &Site, old: &[TaskId]) -> usize {
    site.running.iter().filter(|(_, lease)| old.contains(&lease.id)).count()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, failure_persistence: None, ..ProptestConfig::default() })]

    /// The bounds: old tasks hold half of the places at most, or one, and this they do hold as long as there are some.
    #[test]
    fn old_tasks_hold_half_of_the_places_and_no_less(seed in any::<u64>(), places in 1u32..13, count in 1u32..20) {
        let (mut site, mut random) = (taught(places), Random::new(seed));
        let old = old(&mut site, places, count);
        let half = (places as usize / 2).max(1);
        let from_us = site.world.now_us;
        let mut runs = u64::from(count);
        while old.iter().any(|id| !site.started_us.contains_key(id)) {
            refill(&mut site);
            site.step();
            prop_assert!(held(&site, &old) <= half, "{} of {places} places", held(&site, &old));
            // Some are given back: their leases end, and they go again, as old as they are.
            if random.once_in(200) && !site.running.is_empty() {
                let at = random.index(site.running.len());
                let (_, lease) = site.running.swap_remove(at);
                site.world.release(&lease);
                site.world.credit(FIRST, 1);
                runs += u64::from(old.contains(&lease.id));
                site.begin();
            }
            let waited_ms = (site.world.now_us - from_us) / 1_000;
            let bound_ms = (LONG_MS + 8 * SHORT_MS) * (runs.div_ceil(half as u64) + 1);
            prop_assert!(waited_ms <= bound_ms, "{waited_ms} of {bound_ms} ms");
        }
    }
}

#[test]
fn old_tasks_start_within_the_time_that_half_of_the_places_need_for_them() {
    let mut site = taught(8);
    let old = old(&mut site, 8, 12);
    let from_us = site.world.now_us;
    for _ in 0..(3 * LONG_MS) / STEP_MS {
        refill(&mut site);
        site.step();
    }
    let last_us = old.iter().map(|id| site.started_us[id]).max().unwrap();
    let waited_ms = (last_us - from_us) / 1_000;
    assert!(waited_ms <= 2 * (LONG_MS + 4 * SHORT_MS), "{waited_ms} ms for the last");
}

/// Steps of five seconds, in which short tasks always wait; whether a task runs at their end or ran before.
fn runs_beside_short_ones(site: &mut Site, id: TaskId) -> bool {
    (0..5_000 / STEP_MS).any(|_| {
        refill(site);
        site.step();
        site.running.iter().any(|(_, lease)| lease.id == id)
    })
}

fn give_back(site: &mut Site, id: TaskId) {
    let at = site.running.iter().position(|(_, lease)| lease.id == id).expect("it runs");
    let (_, lease) = site.running.swap_remove(at);
    site.world.release(&lease);
    // The place is for others first.
    refill(site);
    site.world.credit(FIRST, 1);
    site.begin();
}

#[test]
fn an_old_task_that_is_given_back_is_as_old_as_before() {
    let mut site = taught(1);
    let old = old(&mut site, 1, 1)[0];
    assert!(runs_beside_short_ones(&mut site, old));
    site.step();
    give_back(&mut site, old);
    assert!(runs_beside_short_ones(&mut site, old), "it waits for ten minutes once more");
}

#[test]
fn a_task_that_is_given_back_hides_no_older_one_behind_it() {
    let mut site = taught(1);
    site.world.disconnect(FIRST);
    let [first, second] = [(); 2].map(|()| site.submit("mail", 1, LONG_MS));
    site.world.advance_ms(AGED_MS - LONG_MS / 2);
    // Nothing else waits: it goes by turn, and the other one becomes too old while it runs.
    site.world.worker_with(FIRST, &["mail"], 1, "", |body| body.cpu_milli = 1_000);
    site.begin();
    assert!(site.running.iter().all(|(_, lease)| lease.id == first));
    site.world.advance_ms(LONG_MS * 3 / 4);
    give_back(&mut site, first);
    assert!(runs_beside_short_ones(&mut site, first) && runs_beside_short_ones(&mut site, second));
}

#[test]
fn old_tasks_have_all_places_where_nothing_else_waits() {
    let mut site = taught(8);
    site.world.disconnect(FIRST);
    for _ in 0..8 {
        site.submit("mail", 1, LONG_MS);
    }
    site.world.advance_ms(AGED_MS);
    site.world.worker_with(FIRST, &["mail"], 8, "", |body| body.cpu_milli = 8_000);
    site.begin();
    assert_eq!(site.running.len(), 8);
}

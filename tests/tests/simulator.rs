//! Many seeds of the simulator, and planted bugs that it must notice.
//!
//! `TASKMASTER_SIM_SEED=n` runs one seed; `TASKMASTER_SIM_SEEDS=n` changes how many are run; `TASKMASTER_SIM_FROM=n` where.

use std::panic::catch_unwind;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use taskmaster_tests::sim::{self, Defect, Report};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

fn outcome(seed: u64, defect: Option<Defect>) -> Result<Report, String> {
    match catch_unwind(|| sim::run(seed, defect)) {
        Ok(Ok(report)) => Ok(report),
        Ok(Err(failure)) => Err(failure.to_string()),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Err(format!("seed {seed}: {}", text.unwrap_or_default()))
        }
    }
}

fn run_seeds(from: u64, count: u64) -> (Vec<Report>, Vec<String>) {
    let next = AtomicU64::new(from);
    let results = Mutex::new((Vec::new(), Vec::new()));
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= from + count {
                        return;
                    }
                    let outcome = outcome(seed, None);
                    let mut results = results.lock().unwrap();
                    match outcome {
                        Ok(report) => results.0.push(report),
                        Err(sentence) => {
                            eprintln!("{sentence}");
                            results.1.push(sentence);
                        }
                    }
                }
            });
        }
    });
    results.into_inner().unwrap()
}

#[test]
fn every_seed_keeps_what_was_acknowledged() {
    let began = std::time::Instant::now();
    let (from, count) = match number("TASKMASTER_SIM_SEED") {
        Some(seed) => (seed, 1),
        None => (number("TASKMASTER_SIM_FROM").unwrap_or(1), number("TASKMASTER_SIM_SEEDS").unwrap_or(1_000)),
    };
    let (reports, failures) = run_seeds(from, count);
    let total = |of: fn(&Report) -> u64| reports.iter().map(of).sum::<u64>();
    eprintln!(
        "{} seeds in {:.1} s: {} events, {} tasks, {} leases, {} completions, {} crashes, {} shutdowns, {} snapshots, {:.0} virtual s",
        reports.len(),
        began.elapsed().as_secs_f64(),
        total(|report| report.events),
        total(|report| report.tasks),
        total(|report| report.assigned),
        total(|report| report.completions_acknowledged),
        total(|report| report.crashes),
        total(|report| report.shutdowns),
        total(|report| report.snapshots),
        total(|report| report.virtual_us) as f64 / 1e6,
    );
    assert!(
        failures.is_empty(),
        "{} of {count} seeds failed; rerun one with TASKMASTER_SIM_SEED=<seed> cargo test -p taskmaster-tests every_seed\n{}",
        failures.len(),
        failures[..failures.len().min(20)].join("\n"),
    );
}

/// Several shards with one queue's limit between them.
#[test]
fn shards_together_keep_a_limit_and_come_to_an_end() {
    let from = number("TASKMASTER_SIM_FROM").unwrap_or(1);
    let count = number("TASKMASTER_SIM_SEEDS").unwrap_or(1_000) / 2;
    let began = std::time::Instant::now();
    let mut failures = Vec::new();
    let mut tasks = 0;
    for seed in from..from + count {
        match sim::shards::run(seed) {
            Ok(submitted) => tasks += submitted,
            Err(failure) => failures.push(failure.to_string()),
        }
    }
    eprintln!("{count} seeds of several shards, {tasks} tasks in {:.1} s", began.elapsed().as_secs_f64());
    assert!(
        failures.is_empty(),
        "{} of {count} seeds failed:\n{}",
        failures.len(),
        failures[..failures.len().min(20)].join("\n")
    );
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in [1, 2, 3, 77, 4_711] {
        let (first, second) = (sim::run(seed, None), sim::run(seed, None));
        assert_eq!(first, second);
    }
}

/// How many seeds it takes until a planted bug is noticed.
fn seeds_until_noticed(defect: Defect, most: u64) -> u64 {
    for seed in 1..=most {
        if let Err(sentence) = outcome(seed, Some(defect)) {
            eprintln!("{defect:?} noticed after {seed} seeds: {sentence}");
            return seed;
        }
    }
    panic!("{defect:?} was not noticed in {most} seeds");
}

#[test]
fn planted_bugs_are_noticed() {
    for defect in [
        Defect::AcknowledgeBeforeFlush,
        Defect::AcknowledgeOutOfOrder,
        Defect::ReuseTerm,
        Defect::SnapshotClaimsTooMuch,
        Defect::DropRecoveredEntry,
    ] {
        seeds_until_noticed(defect, 200);
    }
}

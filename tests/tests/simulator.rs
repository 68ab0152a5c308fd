//! Many seeds of the simulator, and planted bugs that it must notice.
//!
//! `TASKMASTER_SIM_SEED=n` runs one seed and minimises what fails; `TASKMASTER_SIM_SEEDS=n` changes how many are run;
//! `TASKMASTER_SIM_FROM=n` where; `TASKMASTER_SIM_NODES=n` and `TASKMASTER_SIM_MINUTES=n` how large they are.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use taskmaster_tests::sim::{self, Defect, Options, Report};

/// Seeds in which each planted bug must be noticed.
const SEEDS_PER_DEFECT: u64 = 1_000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

fn options(seed: u64) -> Options {
    Options {
        nodes: number("TASKMASTER_SIM_NODES").map_or(0, |nodes| u16::try_from(nodes).unwrap()),
        minutes: number("TASKMASTER_SIM_MINUTES").map_or(0, |minutes| u32::try_from(minutes).unwrap()),
        restarts: seed.is_multiple_of(2),
        ..Options::of_seed(seed)
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
                    let outcome = sim::run(&options(seed));
                    let mut results = results.lock().unwrap();
                    match outcome {
                        Ok(report) => results.0.push(report),
                        Err(failure) => {
                            eprintln!("{failure}");
                            results.1.push(failure.to_string());
                        }
                    }
                    let ran = results.0.len() + results.1.len();
                    if ran.is_multiple_of(2_000) {
                        eprintln!("{ran} of {count} seeds ran, {} failed", results.1.len());
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
        None => (number("TASKMASTER_SIM_FROM").unwrap_or(1), number("TASKMASTER_SIM_SEEDS").unwrap_or(2_000)),
    };
    let (reports, failures) = run_seeds(from, count);
    let total = |of: fn(&Report) -> u64| reports.iter().map(of).sum::<u64>();
    let seconds = began.elapsed().as_secs_f64();
    let virtual_s = total(|report| report.virtual_us) as f64 / 1e6;
    eprintln!(
        "{} seeds in {seconds:.1} s, {virtual_s:.0} virtual s ({:.0} a second): {} events, {} messages, {} tasks, {} leases \
         ({} beside another, {} ended for others), {} completions, {} reads; {} faults, {} crashes, {} shutdowns, {} disks lost; {} leaderships, {} snapshots, {} \
         comparisons of replicas",
        reports.len(),
        virtual_s / seconds,
        total(|report| report.events),
        total(|report| report.messages),
        total(|report| report.tasks),
        total(|report| report.assigned),
        total(|report| report.doubled),
        total(|report| report.ended_for_others),
        total(|report| report.completions_acknowledged),
        total(|report| report.reads),
        total(|report| report.faults),
        total(|report| report.crashes),
        total(|report| report.shutdowns),
        total(|report| report.disks_lost),
        total(|report| report.leaderships),
        total(|report| report.snapshots),
        total(|report| report.replicas_compared),
    );
    if let (Some(seed), false) = (number("TASKMASTER_SIM_SEED"), failures.is_empty()) {
        eprintln!("{}", sim::minimise(&options(seed), 200).unwrap());
    }
    assert!(
        failures.is_empty(),
        "{} of {count} seeds failed; rerun one with TASKMASTER_SIM_SEED=<seed> cargo test -p taskmaster-tests every_seed\n{}",
        failures.len(),
        failures[..failures.len().min(20)].join("\n"),
    );
}

/// Attempts of restartable tasks are doubled and ended for others in the seeds that all tests here run, and often. To be given up they would have
/// to be of kinds of which more is known than a run has tasks: that is left to the engine's own random lives.
#[test]
fn attempts_are_doubled_and_ended_for_others_in_many_seeds() {
    let (mut doubled, mut ended) = (0, 0);
    for seed in 1..=40 {
        let report = sim::run(&Options { restarts: true, ..options(seed) }).unwrap();
        (doubled, ended) = (doubled + report.doubled, ended + report.ended_for_others);
    }
    let counts = format!("{doubled} leases beside another, {ended} ended for others");
    eprintln!("{counts}");
    assert!(doubled > 40 && ended > 40, "{counts}");
}

/// Workers that save states: what was acknowledged stays, with its bytes and its parent, whatever fails.
#[test]
fn saved_states_outlive_what_fails() {
    let (from, count) = match number("TASKMASTER_SIM_SEED") {
        Some(seed) => (seed, 1),
        None => (number("TASKMASTER_SIM_FROM").unwrap_or(1), number("TASKMASTER_SIM_SEEDS").unwrap_or(2_000) / 10),
    };
    let (mut saves, mut reads, mut failures) = (0, 0, Vec::new());
    for seed in from..from + count {
        match sim::run(&Options { saves: true, ..options(seed) }) {
            Ok(report) => (saves, reads) = (saves + report.saves_acknowledged, reads + report.states_read),
            Err(failure) => failures.push(failure.to_string()),
        }
    }
    eprintln!("{count} seeds with {saves} saves acknowledged and {reads} states read back");
    assert!(failures.is_empty(), "{} of {count} seeds failed:\n{}", failures.len(), failures.join("\n"));
    assert!(saves > 10 * count && reads > count);
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

/// The same with final tasks checkpointed to a store that fails, loses answers and hears from leaders that are long deposed: each
/// end is stored once and in order, with its states behind all chunks that they are made of, and nothing is forgotten before.
#[test]
fn every_final_task_is_checkpointed_once_and_not_forgotten_before() {
    let from = number("TASKMASTER_SIM_FROM").unwrap_or(1);
    let count = number("TASKMASTER_SIM_SEEDS").unwrap_or(2_000) / 5;
    let (mut stored, mut versions, mut refused, mut failures) = (0, 0, 0, Vec::new());
    for seed in from..from + count {
        match sim::run(&Options { checkpoints: true, saves: seed % 2 == 0, ..options(seed) }) {
            Ok(report) => {
                (stored, refused) = (stored + report.stored, refused + report.refused);
                versions += report.versions_stored;
            }
            Err(failure) => failures.push(failure.to_string()),
        }
    }
    eprintln!(
        "{count} seeds: {stored} ends of tasks stored, with {versions} versions of states, {refused} batches refused"
    );
    assert!(
        failures.is_empty(),
        "{} of {count} seeds failed:\n{}",
        failures.len(),
        failures[..failures.len().min(20)].join("\n")
    );
    assert!(stored > 0 && versions > count && refused > 0);
}

/// The same with streams, each source read by several readers that overlap, repeat and come late: every message becomes one task.
#[test]
fn every_message_of_a_stream_becomes_one_task() {
    let (from, count) = match number("TASKMASTER_SIM_SEED") {
        Some(seed) => (seed, 1),
        None => (number("TASKMASTER_SIM_FROM").unwrap_or(1), number("TASKMASTER_SIM_SEEDS").unwrap_or(2_000) / 5),
    };
    let (mut messages, mut failures) = (0, Vec::new());
    for seed in from..from + count {
        match sim::run(&Options { streams: true, ..options(seed) }) {
            Ok(report) => messages += report.messages_taken,
            Err(failure) => failures.push(failure.to_string()),
        }
    }
    eprintln!("{count} seeds: {messages} messages became tasks");
    assert!(
        failures.is_empty(),
        "{} of {count} seeds failed:\n{}",
        failures.len(),
        failures[..failures.len().min(20)].join("\n")
    );
}

/// The same with events told in a topic that fails, loses answers and hears from leaders that are long deposed: each comes once and in
/// order, each task's events are a life that can be, and what is known to be final was told as it is.
#[test]
fn everything_that_happens_is_told_once_and_in_order() {
    let (from, count) = match number("TASKMASTER_SIM_SEED") {
        Some(seed) => (seed, 1),
        None => (number("TASKMASTER_SIM_FROM").unwrap_or(1), number("TASKMASTER_SIM_SEEDS").unwrap_or(2_000) / 10),
    };
    let (mut told, mut refused, mut failures) = (0, 0, Vec::new());
    for seed in from..from + count {
        // Memoised tasks end with another's outcome, and are told to.
        match sim::run(&Options { events: true, memo: seed % 2 == 0, ..options(seed) }) {
            Ok(report) => (told, refused) = (told + report.told, refused + report.refused),
            Err(failure) => failures.push(failure.to_string()),
        }
    }
    eprintln!("{count} seeds: {told} events told, {refused} batches refused");
    assert!(
        failures.is_empty(),
        "{} of {count} seeds failed:\n{}",
        failures.len(),
        failures[..failures.len().min(20)].join("\n")
    );
    assert!(told > 0 && (refused > 0 || count < 20));
}

/// Producers that memoise tasks: of equal ones one runs at a time, and whoever ends with another's result has one that it sent.
#[test]
fn memoised_tasks_run_one_at_a_time_and_have_results_of_their_like() {
    let from = number("TASKMASTER_SIM_FROM").unwrap_or(1);
    let count = number("TASKMASTER_SIM_SEEDS").unwrap_or(2_000) / 10;
    let (mut memoised, mut failures) = (0, Vec::new());
    for seed in from..from + count {
        match sim::run(&Options { memo: true, ..options(seed) }) {
            Ok(report) => memoised += report.memoised,
            Err(failure) => failures.push(failure.to_string()),
        }
    }
    eprintln!("{count} seeds: {memoised} reads of tasks that ended with the result of another");
    assert!(
        failures.is_empty(),
        "{} of {count} seeds failed:\n{}",
        failures.len(),
        failures[..failures.len().min(20)].join("\n")
    );
    assert!(memoised > 10 * count);
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in [1, 2, 3, 77, 4_711] {
        let (first, second) = (sim::run(&options(seed)), sim::run(&options(seed)));
        assert_eq!(first, second);
    }
}

/// How many seeds it takes until a planted bug is noticed.
fn seeds_until_noticed(defect: Defect) -> u64 {
    for seed in 1..=SEEDS_PER_DEFECT {
        if let Err(failure) = sim::run(&Options { defect: Some(defect), ..options(seed) }) {
            eprintln!("{defect:?} noticed after {seed} seeds: {failure}");
            return seed;
        }
    }
    panic!("{defect:?} was not noticed in {SEEDS_PER_DEFECT} seeds");
}

/// The mutation check: an oracle that overlooks a planted bug is not worth its name.
#[test]
fn planted_bugs_are_noticed() {
    std::thread::scope(|scope| {
        let checks: Vec<_> = Defect::ALL
            .chunks(5)
            .map(|some| scope.spawn(move || some.iter().copied().map(seeds_until_noticed).max()))
            .collect();
        assert!(checks.into_iter().all(|check| check.join().is_ok()));
    });
}

#[test]
fn a_failing_plan_is_reduced_to_what_it_needs() {
    let failing =
        (1..=SEEDS_PER_DEFECT).map(|seed| Options { defect: Some(Defect::AcknowledgeBeforeFlush), ..options(seed) });
    let failing = failing.into_iter().find(|options| sim::run(options).is_err()).unwrap();
    let minimal = sim::minimise(&failing, 100).unwrap();
    eprintln!("{minimal}");
    assert!(minimal.faults.len() <= minimal.planned);
    assert!(sim::run(&failing).is_err(), "minimising changes nothing of the run");
}

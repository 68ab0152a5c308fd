//! Whole runs against the stub node: exact counts, and every fault of a node noticed.

use taskmaster_bench::stub::{Faults, Stub};
use taskmaster_bench::{NodeInfo, Options, Report, SuiteOptions, run, run_suite};

fn options() -> Options {
    Options { tasks: Some(20_000), warmup_s: 0.05, floor_s: 0.0, progress: false, ..Options::default() }
}

fn drive(shards: u16, faults: Faults, options: &Options) -> anyhow::Result<Report> {
    let stub = Stub::start(shards, faults)?;
    let node = NodeInfo { addr: stub.addr().to_owned(), data_dir: None, pid: Some(std::process::id()) };
    let report = run(options, &node);
    stub.stop().expect("the generator sends only what clients may send");
    report
}

#[track_caller]
fn assert_exact(report: &Report, tasks: u64) {
    assert_eq!((report.tasks, report.lost, report.duplicated), (tasks, 0, 0), "{report}");
    assert!(report.is_exact());
    assert!(report.tasks_per_s > 0.0);
    assert!(report.initiation_us.p50 <= report.end_to_end_us.p50);
    assert!(report.end_to_end_us.p50 <= report.end_to_end_us.max);
}

#[test]
fn closed_loop_measures_exactly_the_tasks_asked_for() {
    for (batch, connections, shards, threads, split) in
        [(64, 16, 1, 1, false), (1, 8, 1, 1, false), (1000, 3, 2, 1, false), (64, 4, 3, 2, true), (7, 5, 2, 1, true)]
    {
        let options = Options { batch, connections, threads, split, ..options() };
        let report = drive(shards, Faults::default(), &options).unwrap();
        assert_exact(&report, 20_000);
        assert_eq!(report.config.shards, u64::from(shards));
    }
}

#[test]
fn closed_loop_ends_after_the_duration_asked_for() {
    let options = Options { tasks: None, duration_s: Some(0.2), ..options() };
    let report = drive(1, Faults::default(), &options).unwrap();
    assert!(report.is_exact() && report.tasks > 0);
    assert!((0.1..5.0).contains(&report.elapsed_s), "{}", report.elapsed_s);
}

#[test]
fn open_loop_follows_its_schedule() {
    for (rate, batch, tasks) in [(2_000.0, 64, 600), (50_000.0, 64, 10_000), (5_000.0, 1, 1_000)] {
        let options = Options { rate_per_s: Some(rate), batch, tasks: Some(tasks), connections: 4, ..options() };
        let report = drive(1, Faults::default(), &options).unwrap();
        assert_exact(&report, tasks);
        assert!(report.tasks_per_s < rate * 1.02, "{} at {rate}", report.tasks_per_s);
    }
}

#[test]
fn open_loop_latency_counts_from_the_intended_time() {
    // Far more than a small window lets through: tasks leave late, and their lateness is part of the latency.
    let options = Options {
        rate_per_s: Some(1e7),
        window: 1,
        connections: 1,
        batch: 4,
        tasks: Some(20_000),
        warmup_s: 0.0,
        ..options()
    };
    let report = drive(1, Faults::default(), &options).unwrap();
    assert_exact(&report, 20_000);
    assert!(report.late_sends > 0);
    assert!(report.submit_us.max > 1_000.0, "{report}");
    assert!(report.submit_us.p50 > 1_000.0, "{report}");
}

#[test]
fn overloaded_requests_are_sent_again() {
    let faults = Faults { overload_every: 5, ..Faults::default() };
    let report = drive(1, faults, &options()).unwrap();
    assert_exact(&report, 20_000);
    assert!(report.overloaded > 50, "{}", report.overloaded);
}

#[test]
fn lost_tasks_are_counted() {
    let faults = Faults { lose_every: 100, ..Faults::default() };
    let options = Options { stall_s: 3.0, batch: 10, tasks: Some(5_000), connections: 2, window: 50, ..options() };
    for verify in [true, false] {
        let report = drive(1, faults, &Options { verify, warmup_s: 0.0, ..options.clone() }).unwrap();
        assert_eq!((report.lost, report.duplicated), (50, 0));
        assert_eq!(report.tasks, 4_950);
        assert!(!report.is_exact());
    }
}

#[test]
fn doubly_accepted_completions_are_counted() {
    let faults = Faults { double_every: 10, ..Faults::default() };
    let report = drive(1, faults, &options()).unwrap();
    assert_eq!(report.lost, 0);
    assert!(report.duplicated >= 1_000, "{}", report.duplicated);
    assert!(!report.is_exact());
}

#[test]
fn redelivery_that_is_refused_at_completion_is_no_duplicate() {
    let faults = Faults { redeliver_every: 10, ..Faults::default() };
    let report = drive(1, faults, &options()).unwrap();
    assert_exact(&report, 20_000);
    assert!(report.redelivered >= 1_000);
    assert_eq!(report.redelivered, report.refused_completions);
}

#[test]
fn changed_payload_ends_the_run() {
    let faults = Faults { corrupt_every: 3, ..Faults::default() };
    let error = drive(1, faults, &options()).unwrap_err();
    assert!(error.to_string().contains("came back changed"), "{error:#}");
}

#[test]
fn unanswered_submissions_end_the_run() {
    let faults = Faults { ignore_every: 1, ..Faults::default() };
    let error = drive(1, faults, &Options { stall_s: 0.3, threads: 2, ..options() }).unwrap_err();
    assert!(error.to_string().contains("answered nothing"), "{error:#}");
}

#[test]
fn queued_tasks_stay_ahead_and_are_done_in_the_end() {
    for (threads, split) in [(1, false), (2, true)] {
        let options = Options { queued: 30_000, threads, split, ..options() };
        let report = drive(2, Faults::default(), &options).unwrap();
        assert!(report.is_exact(), "{report}");
        assert!((10_000..=30_000).contains(&report.tasks), "{report}");
    }
}

#[test]
fn large_payloads_cross_receive_buffers() {
    let options = Options { payload_bytes: 100_000, batch: 8, connections: 2, tasks: Some(400), ..options() };
    assert_exact(&drive(1, Faults::default(), &options).unwrap(), 400);
}

#[test]
fn options_out_of_range_are_refused_with_a_sentence() {
    let cases = [
        (Options { batch: 0, ..options() }, "batch must be"),
        (Options { payload_bytes: 15, ..options() }, "payload must be"),
        (Options { payload_bytes: 1 << 20, batch: 64, ..options() }, "makes a frame of"),
        (Options { threads: 17, ..options() }, "threads must be"),
        (Options { rate_per_s: Some(f64::NAN), ..options() }, "rate must be"),
        (Options { connections: 0, ..options() }, "connections must be"),
        (Options { queued: 1, rate_per_s: Some(10.0), ..options() }, "closed loop"),
    ];
    for (options, sentence) in cases {
        let error = drive(1, Faults::default(), &options).unwrap_err();
        assert!(error.to_string().contains(sentence), "{error}");
    }
}

#[test]
fn report_has_the_documented_json_shape() {
    let report = drive(1, Faults::default(), &options()).unwrap();
    let json = serde_json::to_value(&report).unwrap();
    for name in ["tasks", "tasks_per_s", "lost", "duplicated", "flushes", "wal_bytes", "rss_bytes_max", "cpu_s"] {
        assert!(json[name].is_number(), "{name}: {}", json[name]);
    }
    for name in ["submit_us", "initiation_us", "end_to_end_us"] {
        for part in ["mean", "p50", "p90", "p99", "p999", "max"] {
            assert!(json[name][part].is_number(), "{name}.{part}");
        }
    }
    assert!(json["floor"].get("append_flush_per_s").is_some());
    assert!(json["floor"].get("loopback_round_trips_per_s").is_some());
    assert_eq!(json["config"]["batch"], 64);
    assert!(report.to_string().contains("tasks/s"));
}

#[test]
fn suite_runs_every_case_and_judges_it() {
    let stub = Stub::start(1, Faults::default()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let node = NodeInfo { addr: stub.addr().to_owned(), data_dir: Some(dir.path().to_owned()), pid: None };
    let base = Options { warmup_s: 0.05, floor_s: 0.02, progress: false, ..Options::default() };
    let suite = run_suite(&SuiteOptions { duration_s: 1.0, base }, &node).unwrap();
    assert!(suite.is_exact());
    let names: Vec<&str> = suite.cases.iter().map(|case| case.name).collect();
    assert_eq!(names, ["64x16", "1024x4", "1x64", "1x1", "1,000/s", "100,000/s"]);
    assert!(suite.cases.iter().all(|case| !case.checks.is_empty()));
    assert!(serde_json::to_value(&suite).unwrap()[0]["checks"][0]["pass"].is_boolean());
    assert_eq!(suite.to_string().lines().count(), 1 + 6 + 2);
}

//! Limits by cgroups, with whatever this host has. Each test asserts what the probe claims: either the limit bites, or the
//! probe says that there is none and why.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use taskmaster_workers::cgroup::{Cgroups, Config, Probe};
use taskmaster_workers::process::Limits;
use taskmaster_workers::{Cancel, Command, Finished, Job, Outcome, ProcessExecutor, ProgressSink};

const MIB: u64 = 1 << 20;
/// Where a host has version 2 without the controllers that limits need.
const UNIFIED: &str = "/sys/fs/cgroup/unified";

fn sh(text: &str) -> Command {
    Command { run: Some(text.to_owned()), ..Command::default() }
}

async fn run(config: &Config, command: &Command, job: &Job) -> Finished {
    let executor = ProcessExecutor::new(Limits::default(), config).expect("a thread can be had");
    executor.execute(command, job, b"", Cancel::never(), &ProgressSink::none()).await
}

async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < until, "{what} did not come about");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// The directories which the sentence says are in force.
fn places(probe: &Probe) -> Vec<PathBuf> {
    let words = probe.sentence.split("beneath ").skip(1);
    words.map(|rest| PathBuf::from(rest.split(';').next().unwrap_or_default().trim())).collect()
}

fn no_limits(probe: &Probe) {
    assert!(probe.sentence.contains("no ") || probe.sentence.contains("without"), "{}", probe.sentence);
}

#[test]
fn the_probe_leaves_nothing_behind_and_gives_reasons() {
    let probe = Cgroups::probe(&Config::default());
    assert!(!probe.sentence.is_empty());
    assert_eq!(places(&probe).is_empty(), !(probe.memory || probe.cpu), "{}", probe.sentence);
    let off = Cgroups::probe(&Config::off());
    assert_eq!((off.memory, off.cpu), (false, false));
    assert!(off.sentence.contains("switched off"), "{}", off.sentence);
    let nowhere = Config { base: Some("/no/such/cgroup".into()), ..Config::default() };
    let nowhere = Cgroups::probe(&nowhere);
    assert!(!nowhere.memory && nowhere.sentence.contains("/no/such/cgroup"), "{}", nowhere.sentence);
}

#[tokio::test]
async fn a_task_beyond_its_memory_ends_as_oom_where_limits_are_in_force() {
    let probe = Cgroups::probe(&Config::default());
    let job = Job { memory_bytes: 24 * MIB, ..Job::default() };
    let greedy = sh("head -c 200000000 /dev/zero | tail -c 200000000 | wc -c");
    let finished = run(&Config::default(), &greedy, &job).await;
    if !probe.memory {
        assert!(matches!(finished.outcome, Outcome::Succeeded { .. }), "{finished:?}");
        return no_limits(&probe);
    }
    // The shell takes the exit code from wc, which sees no bytes and is content.
    let strict = sh("head -c 200000000 /dev/zero | tail -c 200000000 > /dev/null || exit 9");
    let finished = run(&Config::default(), &strict, &job).await;
    let Outcome::Failed(failure) = finished.outcome else { panic!("{:?}", finished.outcome) };
    assert_eq!((failure.code.as_str(), failure.retryable), ("oom", true), "{}", failure.error);
    assert!(failure.error.contains(&(24 * MIB).to_string()), "{}", failure.error);
    let peak = finished.usage.peak_memory_bytes.expect("the cgroup knows");
    assert!((20 * MIB..=24 * MIB).contains(&peak), "{peak}");
}

#[tokio::test]
async fn a_task_within_its_memory_succeeds_and_its_peak_is_known() {
    let probe = Cgroups::probe(&Config::default());
    let job = Job { memory_bytes: 256 * MIB, ..Job::default() };
    let finished =
        run(&Config::default(), &sh("head -c 50000000 /dev/zero | tail -c 50000000 > /dev/null"), &job).await;
    assert!(matches!(finished.outcome, Outcome::Succeeded { .. }), "{finished:?}");
    if probe.memory {
        let peak = finished.usage.peak_memory_bytes.expect("the cgroup knows");
        assert!((45 * MIB..150 * MIB).contains(&peak), "{peak}");
    }
}

#[tokio::test]
async fn a_task_gets_no_more_processor_than_it_asks_for_where_limits_are_in_force() {
    let probe = Cgroups::probe(&Config::default());
    let mut command = sh("while :; do :; done");
    command.timeout_ms = Some(1500);
    let job = Job { cpu_milli: 200, ..Job::default() };
    let finished = run(&Config::default(), &command, &job).await;
    if !probe.cpu {
        return no_limits(&probe);
    }
    let cpu = finished.usage.cpu_user + finished.usage.cpu_system;
    assert!(cpu < finished.usage.wall / 2, "{:?}", finished.usage);
}

#[tokio::test]
async fn the_directories_go_with_their_tasks_and_their_worker() {
    let config = Config { contain: true, ..Config::default() };
    let probe = Cgroups::probe(&config);
    let executor = ProcessExecutor::new(Limits::default(), &config).expect("a thread can be had");
    let job = Job { id: "a/../b".to_owned(), memory_bytes: 64 * MIB, cpu_milli: 500, ..Job::default() };
    let command = sh("cat /proc/self/cgroup; sleep 1000 & :");
    let finished = executor.execute(&command, &job, b"", Cancel::never(), &ProgressSink::none()).await;
    let Outcome::Succeeded { result } = finished.outcome else { panic!("{:?}", finished.outcome) };
    let said = String::from_utf8(result).unwrap();
    assert_eq!(said.contains("/task-ab-0"), !places(&probe).is_empty(), "{said}");
    let own: Vec<&str> = said.lines().filter_map(|line| line.split("taskmaster-").nth(1)?.split('/').next()).collect();
    let left = || {
        let all = places(&probe).into_iter().flat_map(|place| fs::read_dir(place).expect("the probe named it"));
        all.flatten().filter(|entry| own.iter().any(|own| entry.file_name().to_string_lossy().ends_with(own))).count()
    };
    assert_eq!(left() > 0, !places(&probe).is_empty());
    drop(executor);
    eventually("the end of the worker's directories", || left() == 0).await;
}

/// A name such as a worker that is dead by now would have given.
fn name_of_a_dead_worker() -> String {
    let mut child = std::process::Command::new("true").spawn().expect("true can be started");
    child.wait().expect("it is a child");
    let namespace = fs::read_link("/proc/self/ns/pid").expect("/proc is mounted");
    let namespace: String = namespace.to_string_lossy().chars().filter(char::is_ascii_digit).collect();
    format!("taskmaster-{}-1-{namespace}-0", child.id())
}

#[test]
fn what_a_killed_worker_left_is_killed_and_removed() {
    for place in places(&Cgroups::probe(&Config::default())) {
        let base = place.join(name_of_a_dead_worker());
        let task = base.join("task-x-0");
        fs::create_dir(&base).unwrap();
        fs::create_dir(&task).unwrap();
        let mut left = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        fs::write(task.join("cgroup.procs"), left.id().to_string()).unwrap();
        drop(Cgroups::open(&Config::default()));
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&left.wait().unwrap()), Some(libc::SIGKILL));
        drop(Cgroups::open(&Config::default()));
        assert!(!base.exists(), "{}", base.display());
    }
}

#[tokio::test]
async fn a_contained_task_takes_even_its_daemons_with_it() {
    for config in [Config { contain: true, ..Config::off() }, Config { contain: true, ..Config::default() }] {
        let held = Cgroups::probe(&config).sentence.contains("holds each task together");
        let dir = tempfile::tempdir().unwrap();
        let mut command =
            sh("setsid sh -c 'echo $$ > daemon; exec sleep 1000' & while ! [ -s daemon ]; do sleep 0.01; done");
        command.cwd = Some(dir.path().to_owned());
        let finished = run(&config, &command, &Job::default()).await;
        assert!(matches!(finished.outcome, Outcome::Succeeded { .. }), "{finished:?}");
        let daemon = fs::read_to_string(dir.path().join("daemon")).unwrap();
        let daemon = rustix::process::Pid::from_raw(daemon.trim().parse().unwrap()).unwrap();
        if held {
            eventually("the daemon's end", || is_dead(daemon)).await;
        } else {
            rustix::process::kill_process(daemon, rustix::process::Signal::KILL).unwrap();
        }
    }
}

fn is_dead(pid: rustix::process::Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, fields)| fields.starts_with(['Z', 'X']))
}

#[test]
fn a_base_without_the_controllers_is_refused_with_their_names() {
    if !Path::new(UNIFIED).join("cgroup.controllers").exists() {
        return;
    }
    let config = Config { base: Some(UNIFIED.into()), ..Config::default() };
    let probe = Cgroups::probe(&config);
    let offered = fs::read_to_string(Path::new(UNIFIED).join("cgroup.controllers")).unwrap();
    if !offered.contains("memory") {
        assert!(!probe.memory);
        assert!(probe.sentence.contains("does not offer memory"), "{}", probe.sentence);
    }
}

#[tokio::test]
async fn what_a_task_used_is_measured_and_its_daemon_is_let_go() {
    let config = Config { measure: true, ..Config::default() };
    let executor = ProcessExecutor::new(Limits::default(), &config).unwrap();
    let measures = executor.limits_in_force().contains("tells what tasks use");
    assert_eq!(executor.measures(), measures);
    let dir = tempfile::tempdir().unwrap();
    let pid = dir.path().join("pid");
    let busy = format!(
        "setsid sh -c 'echo $$ > {}; exec sleep 30' & while ! [ -s {0} ]; do :; done; i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done",
        pid.display()
    );
    let finished = executor.execute(&sh(&busy), &Job::default(), b"", Cancel::never(), &ProgressSink::none()).await;
    assert!(matches!(finished.outcome, Outcome::Succeeded { .. }), "{finished:?}");
    let daemon: i32 = fs::read_to_string(&pid).unwrap().trim().parse().unwrap();
    let alive = Path::new(&format!("/proc/{daemon}")).exists();
    rustix::process::kill_process(rustix::process::Pid::from_raw(daemon).unwrap(), rustix::process::Signal::KILL)
        .unwrap();
    assert!(alive, "nothing asked for it to end");
    assert_eq!(finished.usage.measured.is_some(), measures);
    if let Some(measured) = finished.usage.measured {
        let used = finished.usage.cpu_user + finished.usage.cpu_system;
        assert!(
            measured.cpu >= used / 2 && measured.cpu < 2 * used + Duration::from_millis(50),
            "{:?}",
            finished.usage
        );
        assert!(measured.stalls.is_none_or(|stalls| stalls.iter().all(|stall| *stall <= finished.usage.wall)));
    }
    assert!(finished.usage.peak_memory_bytes.is_none_or(|bytes| bytes < 1 << 30));
    let plain = run(&Config::default(), &sh("true"), &Job::default()).await;
    assert_eq!(plain.usage.measured, None);
}

//! A worker which is killed with SIGKILL takes its tasks' processes with it, grandchildren included.
//!
//! The worker is this very test program, started again with a variable that makes one of its tests be the worker.

use std::fs;
use std::path::Path;
use std::process::{Child, Command as Program, Stdio};
use std::time::{Duration, Instant};
use taskmaster_workers::process::Limits;
use taskmaster_workers::{Cancel, Command, Job, ProcessExecutor, ProgressSink, cgroup};

const AS_WORKER: &str = "TASKMASTER_TEST_AS_WORKER";

#[test]
fn as_worker() {
    let Ok(dir) = std::env::var(AS_WORKER) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let executor = ProcessExecutor::new(Limits::default(), &cgroup::Config::off()).unwrap();
    let text = "(trap '' HUP TERM; echo > inner; while :; do sleep 0.05; done) & echo > outer; wait";
    let command = Command { run: Some(text.to_owned()), cwd: Some(dir.into()), ..Command::default() };
    let finished =
        runtime.block_on(executor.execute(&command, &Job::default(), b"", Cancel::never(), &ProgressSink::none()));
    panic!("{finished:?}");
}

/// Living processes whose working directory is `dir`.
fn living_in(dir: &Path) -> usize {
    let entries = fs::read_dir("/proc").expect("/proc is mounted").flatten();
    entries.filter(|entry| fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd == dir)).count()
}

/// The worker must not outlive a failed assertion.
struct Worker(Child);

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn eventually(what: &str, holds: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < until, "{what} did not come about");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_killed_worker_takes_its_tasks_whole_groups_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let dir = fs::canonicalize(dir.path()).unwrap();
    let worker = Program::new(std::env::current_exe().unwrap())
        .args(["--exact", "as_worker"])
        .env(AS_WORKER, &dir)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map(Worker)
        .unwrap();
    eventually("the task's start", || dir.join("outer").exists() && dir.join("inner").exists());
    // The guardian shows in the process table once the task is entrusted to it.
    eventually("the guardian", || guardian_of(worker.0.id()).is_some());
    let guardian = guardian_of(worker.0.id()).expect("it was there");
    drop(worker);
    eventually("the task's end", || living_in(&dir) == 0);
    eventually("the guardian's end", || !is_alive(guardian));
}

fn guardian_of(worker: u32) -> Option<u32> {
    let entries = fs::read_dir("/proc").expect("/proc is mounted").flatten();
    let mut pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.find(|pid| {
        let read = |name| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let parent = read("stat").rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
        parent == Some(worker) && read("cmdline").starts_with("taskmaster-guardian\0")
    })
}

fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, fields)| !fields.starts_with(['Z', 'X']))
}

//! What starting a process costs: `cargo bench -p taskmaster-workers --bench spawn [-- PROCESSES]`.
//!
//! Prints processes per second, each started, followed to its end, and reaped, for several ways and numbers at once. The
//! standard library's own way stands beside ours as the floor; ballast shows that a large worker starts no slower.

use std::sync::Arc;
use std::time::{Duration, Instant};
use taskmaster_workers::process::Limits;
use taskmaster_workers::{Cancel, Command, Finished, Job, Outcome, ProcessExecutor, ProgressSink, Registry, cgroup};

const COUNT: usize = 2000;
const BALLAST_BYTES: usize = 1 << 30;

fn main() {
    let count = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(COUNT);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be had");
    report("std::process, one after another", count, || {
        for _ in 0..count {
            assert!(std::process::Command::new("/bin/true").status().expect("true can be started").success());
        }
    });
    rounds(&runtime, count, "");
    let ballast = std::hint::black_box(vec![1_u8; BALLAST_BYTES]);
    rounds(&runtime, count, ", with 1 GiB of ballast");
    report("std::process, one after another, with 1 GiB of ballast", count, || {
        for _ in 0..count {
            assert!(std::process::Command::new("/bin/true").status().expect("true can be started").success());
        }
    });
    drop(ballast);
    builtins(&runtime);
}

fn rounds(runtime: &tokio::runtime::Runtime, count: usize, note: &str) {
    let executor = ProcessExecutor::new(Limits::default(), &cgroup::Config::default()).expect("a thread can be had");
    let executor = Arc::new(executor);
    for at_once in [1, 2, 8] {
        report(&format!("executor, {at_once} at once{note}"), count, || {
            run(runtime, &executor, count, at_once, 0);
        });
    }
    report(&format!("executor, 2 at once, memory limit{note}"), count, || {
        run(runtime, &executor, count, 2, 64 << 20);
    });
}

fn report(what: &str, count: usize, work: impl FnOnce()) {
    let (started, cpu) = (Instant::now(), own_cpu());
    work();
    let (took, cpu) = (started.elapsed(), own_cpu() - cpu);
    let count = u32::try_from(count).expect("a small number");
    println!("{what}: {:.0}/s, own CPU {:.1?} each", f64::from(count) / took.as_secs_f64(), cpu / count);
}

/// Processor time of this process, without its children.
fn own_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn run(runtime: &tokio::runtime::Runtime, executor: &Arc<ProcessExecutor>, count: usize, at_once: usize, memory: u64) {
    let local = tokio::task::LocalSet::new();
    local.block_on(runtime, async {
        let lanes: Vec<_> = (0..at_once)
            .map(|_| {
                let executor = Arc::clone(executor);
                tokio::task::spawn_local(async move {
                    let command = Command { command: vec!["/bin/true".to_owned()], ..Command::default() };
                    let job = Job { memory_bytes: memory, ..Job::default() };
                    let sink = ProgressSink::none();
                    for _ in 0..count / at_once {
                        succeeded(executor.execute(&command, &job, b"", Cancel::never(), &sink).await);
                    }
                })
            })
            .collect();
        for lane in lanes {
            lane.await.expect("a lane does not panic");
        }
    });
}

fn builtins(runtime: &tokio::runtime::Runtime) {
    const NOOPS: usize = 1_000_000;
    const REPLAYS: usize = 500;
    let registry = Registry::new().with_builtins();
    let sink = ProgressSink::none();
    report("noop", NOOPS, || {
        runtime.block_on(async {
            for _ in 0..NOOPS {
                let job = Job { kind: "noop".to_owned(), ..Job::default() };
                succeeded(registry.execute(job, Cancel::never(), &sink).await);
            }
        });
    });
    for ms in ["0.05", "0.5", "3"] {
        runtime.block_on(async {
            let mut late = Vec::new();
            for _ in 0..REPLAYS {
                let job = Job { kind: "replay".to_owned(), payload: ms.into(), ..Job::default() };
                let wanted = Duration::from_secs_f64(ms.parse::<f64>().expect("a number") / 1000.0);
                late.push(
                    succeeded(registry.execute(job, Cancel::never(), &sink).await).usage.wall.saturating_sub(wanted),
                );
            }
            late.sort();
            println!("replay of {ms} ms: late by p50 {:?}, p99 {:?}", late[REPLAYS / 2], late[REPLAYS * 99 / 100]);
        });
    }
}

fn succeeded(finished: Finished) -> Finished {
    assert!(matches!(finished.outcome, Outcome::Succeeded { .. }), "{finished:?}");
    finished
}

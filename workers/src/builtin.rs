//! Kinds which every worker knows: `noop`, `sleep`, `spin`, `fail`, `replay`.
//!
//! They exist for trying things out, for measuring, and for replaying recorded workflows. Payloads are JSON; an empty
//! payload means the defaults. Cancelling and timeouts are the registry's business: each of these futures may be dropped
//! at any point, and then its work stops.

use crate::job::{Failure, Job, Outcome};
use crate::timer::sleep_until;
use serde::Deserialize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Most memory that one `replay` really touches, in bytes, whatever was recorded.
pub const REPLAY_MEMORY_BYTES_MAX: u64 = 64 << 20;
/// Longest sleep or spin, in milliseconds: a year.
const MS_MAX: f64 = 31_536_000_000.0;
const PAGE_BYTES: usize = 4096;

/// A built-in kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Builtin {
    /// Succeeds at once with an empty result.
    Noop,
    /// Sleeps: a number of milliseconds, or `{"ms": 1.5}`.
    Sleep,
    /// Burns processor time on a blocking thread: a number of milliseconds, or `{"ms": 1.5}`.
    Spin,
    /// Fails: `{"error": "...", "code": "...", "times": n, "retryable": true}`. With `times`, only attempts 1 to n fail.
    Fail,
    /// Sleeps as long as a recorded task ran and touches as much memory (bounded by
    /// [`REPLAY_MEMORY_BYTES_MAX`]): `{"ms": 1.5, "memory_bytes": 1048576}`.
    Replay,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Length {
    Bare(f64),
    Named(Named),
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Named {
    ms: f64,
    memory_bytes: u64,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Fail {
    error: Option<String>,
    code: Option<String>,
    times: Option<u32>,
    retryable: Option<bool>,
}

impl Builtin {
    /// All of them, in the order in which the documentation names them.
    pub const ALL: [Self; 5] = [Self::Noop, Self::Sleep, Self::Spin, Self::Fail, Self::Replay];

    /// The kind's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Noop => "noop",
            Self::Sleep => "sleep",
            Self::Spin => "spin",
            Self::Fail => "fail",
            Self::Replay => "replay",
        }
    }

    /// The built-in of that name.
    #[must_use]
    pub fn named(kind: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|builtin| builtin.name() == kind)
    }

    /// Runs it, and returns the outcome and the processor time used.
    pub async fn run(self, job: &Job) -> (Outcome, Duration) {
        let started = Instant::now();
        let done = match self {
            Self::Noop => Ok(Duration::ZERO),
            Self::Sleep => match length(self, &job.payload) {
                Ok(length) => {
                    sleep_until(started + duration(length.ms)).await;
                    Ok(Duration::ZERO)
                }
                Err(failure) => Err(failure),
            },
            Self::Spin => match length(self, &job.payload) {
                Ok(length) => spin(duration(length.ms)).await,
                Err(failure) => Err(failure),
            },
            Self::Fail => fail(job).map(|()| Duration::ZERO),
            Self::Replay => match length(self, &job.payload) {
                Ok(length) => replay(started, &length).await,
                Err(failure) => Err(failure),
            },
        };
        match done {
            Ok(cpu) => (Outcome::Succeeded { result: Vec::new() }, cpu),
            Err(failure) => (Outcome::Failed(failure), Duration::ZERO),
        }
    }
}

fn length(builtin: Builtin, payload: &[u8]) -> Result<Named, Failure> {
    if payload.iter().all(u8::is_ascii_whitespace) {
        return Ok(Named::default());
    }
    let name = builtin.name();
    let shape = if builtin == Builtin::Replay { r#"{"ms": 1.5, "memory_bytes": 1048576}"# } else { r#"{"ms": 1.5}"# };
    let bad = |why: String| {
        Failure::permanent(
            "bad_payload",
            format!("the payload of a `{name}` task is a number of milliseconds or {shape}: {why}"),
        )
    };
    let named = match serde_json::from_slice(payload) {
        Ok(Length::Bare(ms)) => Named { ms, memory_bytes: 0 },
        Ok(Length::Named(named)) => named,
        Err(_) => return Err(bad(format!("`{}` is neither", excerpt(payload)))),
    };
    if !(0.0..=MS_MAX).contains(&named.ms) {
        return Err(bad(format!("{} ms is not between 0 and {MS_MAX}", named.ms)));
    }
    if builtin != Builtin::Replay && named.memory_bytes != 0 {
        return Err(bad("`memory_bytes` belongs to `replay`".to_owned()));
    }
    Ok(named)
}

/// The beginning of a payload, for a sentence.
pub(crate) fn excerpt(payload: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(payload).chars().take(60).collect();
    text.escape_debug().to_string()
}

fn duration(ms: f64) -> Duration {
    Duration::from_secs_f64(ms / 1000.0)
}

fn fail(job: &Job) -> Result<(), Failure> {
    let fail: Fail = if job.payload.iter().all(u8::is_ascii_whitespace) {
        Fail::default()
    } else {
        serde_json::from_slice(&job.payload).map_err(|error| {
            Failure::permanent(
                "bad_payload",
                format!(r#"the payload of a `fail` task is {{"error": "...", "code": "...", "times": 2, "retryable": true}}: {error}"#),
            )
        })?
    };
    if fail.times.is_some_and(|times| job.attempt > times) {
        return Ok(());
    }
    Err(Failure {
        error: fail.error.unwrap_or_else(|| format!("attempt {} failed, as the task asks for", job.attempt)),
        code: fail.code.unwrap_or_else(|| "fail".to_owned()),
        retryable: fail.retryable.unwrap_or(true),
    })
}

/// Tells blocking work to stop when the future which waits for it is dropped.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce(&AtomicBool) -> T + Send + 'static) -> Result<T, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    let _guard = StopOnDrop(Arc::clone(&stop));
    tokio::task::spawn_blocking(move || work(&stop))
        .await
        .map_err(|error| Failure::retryable("worker", format!("the worker's blocking thread ended: {error}")))
}

fn thread_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

async fn spin(length: Duration) -> Result<Duration, Failure> {
    blocking(move |stop| {
        let started = thread_cpu();
        loop {
            let used = thread_cpu().saturating_sub(started);
            if used >= length || stop.load(Ordering::Relaxed) {
                return used;
            }
            for _ in 0..200 {
                std::hint::spin_loop();
            }
        }
    })
    .await
}

async fn replay(started: Instant, length: &Named) -> Result<Duration, Failure> {
    let bytes = usize::try_from(length.memory_bytes.min(REPLAY_MEMORY_BYTES_MAX)).expect("bounded above");
    let (held, cpu) =
        if bytes == 0 { (Vec::new(), Duration::ZERO) } else { blocking(move |stop| touch(bytes, stop)).await? };
    sleep_until(started + duration(length.ms)).await;
    drop(held);
    Ok(cpu)
}

fn touch(bytes: usize, stop: &AtomicBool) -> (Vec<u8>, Duration) {
    let started = thread_cpu();
    let mut held = vec![0_u8; bytes];
    for page in held.chunks_mut(PAGE_BYTES) {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        page[0] = 1;
    }
    (std::hint::black_box(held), thread_cpu().saturating_sub(started))
}

//! Many attempts at once, ended in every way at any moment: afterwards nothing of them is left.
//!
//! One test in this program, so that its children and descriptors are its own.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};
use taskmaster_workers::process::Limits;
use taskmaster_workers::{Command, Finished, Job, Outcome, ProcessExecutor, ProgressSink, cancel, cgroup};

const LANES: u64 = 8;
const ROUNDS: u64 = 25;
const MARKER: &str = "TASKMASTER_SOAK=yes";

/// A small generator (splitmix64): the same seed gives the same choices.
struct Choices(u64);

impl Choices {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

const WAYS: [&str; 8] = [
    "echo ok",
    "echo bad >&2; exit 7",
    "kill -9 $$",
    "sleep 1000 & sleep 1000 & echo ok",
    "yes",
    "(sleep 1000 & sleep 1000) & wait; sleep 1000",
    "trap '' TERM; sleep 1000 & sleep 1000; sleep 1000",
    "exec <&- >&- 2>&-; sleep 1000",
];

fn is_plausible(way: usize, ended: bool, finished: &Finished) -> bool {
    let code = match &finished.outcome {
        Outcome::Succeeded { result } => return (way == 0 || way == 3) && result == b"ok\n",
        Outcome::Cancelled => return ended,
        Outcome::Failed(failure) => failure.code.as_str(),
    };
    match way {
        1 => matches!(code, "exit:7" | "timeout"),
        2 => matches!(code, "signal:KILL" | "timeout"),
        4 => matches!(code, "result_too_large" | "timeout"),
        _ => code == "timeout",
    }
}

async fn one(executor: &ProcessExecutor, choices: &mut Choices) {
    let way = usize::try_from(choices.below(8)).expect("a small number");
    let mut command = Command { run: Some(WAYS[way].to_owned()), ..Command::default() };
    command.env.insert("TASKMASTER_SOAK".to_owned(), "yes".to_owned());
    command.timeout_ms = Some(choices.below(120));
    let memory_bytes = if choices.below(3) == 0 { 64 << 20 } else { 0 };
    let job = Job { memory_bytes, ..Job::default() };
    let (canceller, cancel) = cancel::pair();
    let sink = ProgressSink::none();
    let payload = b"x".repeat(usize::try_from(choices.below(3) * 100_000).expect("a small number"));
    let attempt = executor.execute(&command, &job, &payload, cancel, &sink);
    let moment = tokio::time::sleep(Duration::from_micros(choices.below(60_000)));
    let ending = choices.below(3);
    tokio::pin!(attempt);
    tokio::select! {
        finished = &mut attempt => assert!(is_plausible(way, false, &finished), "way {way}: {finished:?}"),
        () = moment => match ending {
            0 => {
                canceller.cancel();
                let finished = attempt.await;
                assert!(is_plausible(way, true, &finished), "way {way}: {finished:?}");
            }
            // The attempt is dropped as it stands.
            1 => {}
            _ => {
                let finished = attempt.await;
                assert!(is_plausible(way, false, &finished), "way {way}: {finished:?}");
            }
        },
    }
}

fn marked() -> usize {
    let entries = fs::read_dir("/proc").expect("/proc is mounted").flatten();
    entries
        .filter(|entry| {
            let environ = fs::read(entry.path().join("environ")).unwrap_or_default();
            environ.split(|&b| b == 0).any(|variable| variable == MARKER.as_bytes())
        })
        .count()
}

fn children() -> usize {
    let own = std::process::id().to_string();
    let entries = fs::read_dir("/proc").expect("/proc is mounted").flatten();
    let stats = entries.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    stats.filter(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.split(' ').nth(1) == Some(&own))).count()
}

async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < until, "{what} did not come about");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn nothing_is_left_of_attempts_ended_in_every_way_at_any_moment() {
    let open = || fs::read_dir("/proc/self/fd").expect("/proc is mounted").count();
    let before = open();
    let limits = Limits { grace: Duration::from_millis(30), ..Limits::default() };
    let executor = Arc::new(ProcessExecutor::new(limits, &cgroup::Config::default()).unwrap());
    let local = tokio::task::LocalSet::new();
    let mut lanes = Vec::new();
    for lane in 0..LANES {
        let executor = Arc::clone(&executor);
        lanes.push(local.spawn_local(async move {
            let mut choices = Choices(lane);
            for _ in 0..ROUNDS {
                one(&executor, &mut choices).await;
            }
        }));
    }
    local.await;
    for lane in lanes {
        lane.await.expect("no attempt of this lane ended implausibly");
    }
    eventually("the end of all that was started", || marked() == 0).await;
    drop(executor);
    eventually("the burial of every child, the guardian among them", || children() == 0).await;
    eventually("the closing of every descriptor", || open() <= before).await;
}

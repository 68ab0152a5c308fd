//! Which way a kind is run, and the built-in kinds.

use std::time::{Duration, Instant};
use taskmaster_workers::process::Limits;
use taskmaster_workers::{
    Cancel, Command, Finished, Job, Outcome, ProcessExecutor, ProgressSink, Registry, cancel, cgroup,
};

fn processes() -> ProcessExecutor {
    ProcessExecutor::new(Limits::default(), &cgroup::Config::off()).expect("a thread can be had")
}

fn job(kind: &str, payload: &str) -> Job {
    Job { kind: kind.to_owned(), payload: payload.into(), attempt: 1, ..Job::default() }
}

async fn run(registry: &Registry, job: Job) -> Finished {
    registry.execute(job, Cancel::never(), &ProgressSink::none()).await
}

async fn builtin(kind: &str, payload: &str) -> Finished {
    run(&Registry::new().with_builtins(), job(kind, payload)).await
}

fn code(finished: &Finished) -> &str {
    match &finished.outcome {
        Outcome::Succeeded { .. } => "",
        Outcome::Failed(failure) => &failure.code,
        Outcome::Cancelled => "cancelled",
    }
}

fn echo(text: &str) -> Command {
    Command { command: vec!["echo".to_owned(), text.to_owned()], ..Command::default() }
}

#[tokio::test]
async fn a_kind_is_run_the_most_particular_way() {
    let registry = Registry::new()
        .with_builtins()
        .with_exec()
        .with_processes(processes())
        .with_command("sleep", echo("particular"))
        .with_command_for_all(echo("fallback"));
    for (kind, payload, expected) in [
        ("sleep", "", "particular\n"),
        ("noop", "", ""),
        ("exec", r#"{"run": "cat; echo $X", "stdin": "in ", "env": {"X": "x"}}"#, "in x\n"),
        ("exec/align", r#"{"run": "echo variant"}"#, "variant\n"),
        ("noop/x", "", ""),
        ("sleep/x", "", "particular\n"),
        ("anything", "", "fallback\n"),
        ("execute", "", "fallback\n"),
    ] {
        let finished = run(&registry, job(kind, payload)).await;
        assert_eq!(finished.outcome, Outcome::Succeeded { result: expected.into() }, "{kind}");
    }
    assert_eq!(registry.kinds(), None);
}

#[tokio::test]
async fn the_payload_is_standard_input_of_a_workers_command() {
    let registry =
        Registry::new().with_processes(processes()).with_command_for_all(Command::from_exec_argument("wc -c"));
    assert_eq!(run(&registry, job("send", "four")).await.outcome, Outcome::Succeeded { result: b"4\n".into() });
}

#[tokio::test]
async fn unknown_kinds_and_unusable_payloads_are_refused_with_a_sentence() {
    let registry = Registry::new().with_builtins().with_exec();
    assert_eq!(registry.kinds().unwrap(), ["exec", "fail", "noop", "replay", "sleep", "spin"]);
    for (kind, payload, expected, says) in [
        ("send", "", "unknown_kind", "it knows: exec, fail, noop"),
        ("exec", "{}", "bad_payload", "neither `command` nor `run`"),
        ("exec", r#"{"run": "true"}"#, "worker", "without the means"),
        ("sleep", r#""long""#, "bad_payload", "number of milliseconds"),
        ("sleep", "-1", "bad_payload", "between 0 and"),
        ("sleep", "1e300", "bad_payload", "between 0 and"),
        ("sleep", r#"{"ms": 1, "memory_bytes": 1}"#, "bad_payload", "belongs to `replay`"),
        ("fail", "7", "bad_payload", "payload of a `fail` task"),
    ] {
        let finished = run(&registry, job(kind, payload)).await;
        assert_eq!(code(&finished), expected, "{kind} {payload}");
        let Outcome::Failed(failure) = finished.outcome else { panic!() };
        assert!(failure.error.contains(says), "{}", failure.error);
    }
}

#[tokio::test]
async fn fail_fails_as_often_as_it_is_told() {
    let registry = Registry::new().with_builtins();
    let payload = r#"{"error": "no luck", "code": "luck", "times": 2, "retryable": false}"#;
    for (attempt, expected) in [(1, "luck"), (2, "luck"), (3, "")] {
        let finished = run(&registry, Job { attempt, ..job("fail", payload) }).await;
        assert_eq!(code(&finished), expected);
        if let Outcome::Failed(failure) = finished.outcome {
            assert_eq!((failure.error.as_str(), failure.retryable), ("no luck", false));
        }
    }
    let Outcome::Failed(always) = builtin("fail", "").await.outcome else { panic!() };
    assert_eq!((always.code.as_str(), always.retryable), ("fail", true));
}

#[tokio::test]
async fn sleep_spin_and_replay_take_the_time_they_are_told() {
    for (kind, payload) in
        [("sleep", "20"), ("sleep", r#"{"ms": 20}"#), ("replay", r#"{"ms": 20, "memory_bytes": 3000000}"#)]
    {
        let finished = builtin(kind, payload).await;
        assert_eq!(code(&finished), "");
        assert!(finished.usage.wall >= Duration::from_millis(20), "{kind} {:?}", finished.usage);
    }
    let spun = builtin("spin", "20").await.usage;
    assert!(spun.cpu_user >= Duration::from_millis(20) && spun.wall >= spun.cpu_user, "{spun:?}");
}

#[tokio::test]
async fn built_in_kinds_end_when_they_are_cancelled_or_late() {
    let registry = Registry::new().with_builtins();
    for kind in ["sleep", "spin", "replay"] {
        let started = Instant::now();
        let timeout = Some(Duration::from_millis(20));
        assert_eq!(code(&run(&registry, Job { timeout, ..job(kind, "100000") }).await), "timeout", "{kind}");
        let (canceller, cancel) = cancel::pair();
        let sink = ProgressSink::none();
        let (finished, ()) = tokio::join!(registry.execute(job(kind, "100000"), cancel, &sink), async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            canceller.cancel();
        });
        assert_eq!(finished.outcome, Outcome::Cancelled, "{kind}");
        assert!(started.elapsed() < Duration::from_secs(20));
    }
}

#[tokio::test]
async fn a_canceller_which_is_dropped_cancels_nothing() {
    let registry = Registry::new().with_builtins();
    let (canceller, cancel) = cancel::pair();
    drop(canceller);
    let finished = registry.execute(job("sleep", "5"), cancel, &ProgressSink::none()).await;
    assert_eq!(code(&finished), "");
}

#[test]
fn an_attempt_can_be_sent_to_another_thread() {
    fn is_send<T: Send>(_: T) {}
    let registry = Registry::new();
    let sink = ProgressSink::none();
    is_send(registry.execute(Job::default(), Cancel::never(), &sink));
}

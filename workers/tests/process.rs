//! Commands run as real processes: how they end, and that nothing of them stays.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use taskmaster_workers::process::Limits;
use taskmaster_workers::{
    Cancel, Command, Failure, Finished, Job, Outcome, ProcessExecutor, ProgressSink, cancel, cgroup,
};

fn limits() -> Limits {
    Limits { grace: Duration::from_millis(300), ..Limits::default() }
}

fn executor() -> ProcessExecutor {
    ProcessExecutor::new(limits(), &cgroup::Config::off()).expect("a thread can be had")
}

fn sh(text: &str) -> Command {
    Command { run: Some(text.to_owned()), ..Command::default() }
}

fn program(argv: &[&str]) -> Command {
    Command { command: argv.iter().map(|&word| word.to_owned()).collect(), ..Command::default() }
}

fn job() -> Job {
    Job { id: "0190".to_owned(), kind: "send".to_owned(), queue: "emails".to_owned(), attempt: 2, ..Job::default() }
}

async fn run(command: &Command) -> Finished {
    run_with(command, b"").await
}

async fn run_with(command: &Command, stdin: &[u8]) -> Finished {
    executor().execute(command, &job(), stdin, Cancel::never(), &ProgressSink::none()).await
}

fn result(finished: Finished) -> Vec<u8> {
    match finished.outcome {
        Outcome::Succeeded { result } => result,
        other => panic!("{other:?}; log: {}", String::from_utf8_lossy(&finished.log_tail)),
    }
}

fn failure(finished: Finished) -> Failure {
    match finished.outcome {
        Outcome::Failed(failure) => failure,
        other => panic!("{other:?}"),
    }
}

const NOBODY: [u32; 0] = [];

/// Living processes with `marker` in their environment: whatever group or session they fled to.
fn marked(marker: &str) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc is mounted").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        if String::from_utf8_lossy(&environ).contains(marker) {
            found.push(pid);
        }
    }
    found
}

fn with_marker(mut command: Command, marker: &str) -> Command {
    command.env.insert("MARKER".to_owned(), marker.to_owned());
    command
}

/// Waits for what must come, and fails loudly if it does not.
async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < until, "{what} did not come about");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn standard_output_is_the_result_and_standard_input_the_payload() {
    assert_eq!(result(run(&program(&["echo", "hello"])).await), b"hello\n");
    assert_eq!(result(run_with(&program(&["cat"]), b"pay\0load").await), b"pay\0load");
    assert_eq!(result(run(&program(&["cat"])).await), b"", "without a payload the input is empty");
}

#[tokio::test]
async fn usage_is_measured() {
    let finished = run(&sh("i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done")).await;
    let usage = finished.usage;
    assert!(matches!(finished.outcome, Outcome::Succeeded { .. }));
    assert!(usage.cpu_user > Duration::from_millis(2), "{usage:?}");
    assert!(usage.wall >= usage.cpu_user, "{usage:?}");
}

#[tokio::test]
async fn peak_memory_is_that_of_the_process_and_never_the_workers_own() {
    let held = std::hint::black_box(vec![1_u8; 100 << 20]);
    let small = run(&program(&["true"])).await.usage.peak_memory_bytes;
    assert!(small.is_none_or(|bytes| bytes < 50 << 20), "{small:?}");
    let script = "head -c 200000000 /dev/zero | tail -c 200000000 > /dev/null";
    let large = run(&sh(script)).await.usage.peak_memory_bytes;
    assert!(large.is_some_and(|bytes| bytes > 150_000_000), "{large:?}");
    drop(held);
}

#[tokio::test]
async fn exit_codes_are_told_apart_by_whether_another_attempt_helps() {
    let mut command = sh("echo first >&2; echo 'no such address' >&2; exit $CODE");
    command.non_retryable = vec![3];
    for (code, retryable) in [("3", false), ("4", true)] {
        command.env.insert("CODE".to_owned(), code.to_owned());
        let finished = run(&command).await;
        assert_eq!(finished.log_tail, b"first\nno such address\n");
        let failure = failure(finished);
        assert_eq!(failure.code, format!("exit:{code}"));
        assert_eq!(failure.retryable, retryable);
        assert!(failure.error.ends_with("the last it said: no such address"), "{}", failure.error);
    }
}

#[tokio::test]
async fn a_deadly_signal_is_named() {
    let failure = failure(run(&sh("kill -SEGV $$")).await);
    assert_eq!(failure.code, "signal:SEGV");
    assert!(failure.error.contains("SIGSEGV"), "{}", failure.error);
}

#[tokio::test]
async fn only_the_end_of_a_long_log_is_kept() {
    let finished = run(&sh("seq 1 100000 >&2; echo end >&2; exit 1")).await;
    assert_eq!(finished.log_tail.len(), 64 << 10);
    assert!(finished.log_tail.ends_with(b"99999\n100000\nend\n"));
}

#[tokio::test]
async fn a_result_beyond_the_limit_fails_at_once_unless_it_may_be_cut() {
    let mut command = with_marker(sh("yes & yes"), "too-large");
    let failure = failure(run(&command).await);
    assert_eq!((failure.code.as_str(), failure.retryable), ("result_too_large", false));
    assert!(failure.error.contains("1048576"), "{}", failure.error);
    assert_eq!(marked("MARKER=too-large"), NOBODY);
    command.run = Some("seq 1 1000000".to_owned());
    command.truncate = true;
    let cut = result(run(&command).await);
    assert_eq!(cut.len(), 1 << 20);
    assert!(cut.starts_with(b"1\n2\n3\n"));
    let exact = sh("head -c 1048576 /dev/zero");
    assert_eq!(result(run(&exact).await).len(), 1 << 20, "the limit itself is allowed");
}

#[tokio::test]
async fn a_process_which_does_not_read_its_input_is_no_error() {
    let payload = vec![b'x'; 1 << 20];
    assert_eq!(result(run_with(&sh("exec 0<&-; echo done"), &payload).await), b"done\n");
    assert_eq!(result(run_with(&sh("head -c 3"), &payload).await), b"xxx");
    assert_eq!(result(run_with(&sh("wc -c"), &payload).await), b"1048576\n");
}

#[tokio::test]
async fn a_timeout_ends_the_whole_group() {
    let marker = "timeout-group";
    let mut command = with_marker(sh("sleep 1000 & (sleep 1000 & sleep 1000) & sleep 1000"), marker);
    command.timeout_ms = Some(150);
    let finished = run(&command).await;
    assert_eq!(marked(&format!("MARKER={marker}")), NOBODY);
    assert!(finished.usage.wall >= Duration::from_millis(150));
    let failure = failure(finished);
    assert_eq!((failure.code.as_str(), failure.retryable), ("timeout", true));
    assert!(failure.error.contains("150ms"), "{}", failure.error);
}

#[tokio::test]
async fn the_shorter_of_the_jobs_and_the_commands_timeouts_holds() {
    let mut command = sh("sleep 1000");
    command.timeout_ms = Some(1_000_000);
    let job = Job { timeout: Some(Duration::from_millis(50)), ..job() };
    let finished = executor().execute(&command, &job, b"", Cancel::never(), &ProgressSink::none()).await;
    assert!(failure(finished).error.contains("50ms"));
}

#[tokio::test]
async fn a_process_deaf_to_sigterm_is_killed_after_its_grace() {
    let marker = "deaf";
    let mut command = with_marker(sh("trap '' TERM; while :; do sleep 0.01; done"), marker);
    command.timeout_ms = Some(2_000);
    let finished = run(&command).await;
    assert!(finished.usage.wall >= Duration::from_millis(2_300), "{:?}", finished.usage);
    assert_eq!(failure(finished).code, "timeout");
    assert_eq!(marked(&format!("MARKER={marker}")), NOBODY);
}

#[tokio::test]
async fn a_cancelled_process_may_clear_up_and_so_may_its_children() {
    let dir = tempfile::tempdir().unwrap();
    let ready = dir.path().join("ready");
    let text = "(trap 'sleep 0.05; echo child > child; exit 0' TERM; : > ready; while :; do sleep 0.01; done) & wait";
    let mut command = with_marker(sh(text), "clear-up");
    command.cwd = Some(dir.path().to_owned());
    let (canceller, cancel) = cancel::pair();
    let ended = tokio::join!(
        async {
            let executor = ProcessExecutor::new(Limits::default(), &cgroup::Config::off()).unwrap();
            executor.execute(&command, &job(), b"", cancel, &ProgressSink::none()).await
        },
        async {
            eventually("the process's readiness", || ready.exists()).await;
            canceller.cancel();
        }
    );
    assert_eq!(ended.0.outcome, Outcome::Cancelled);
    assert!(ended.0.usage.wall < Duration::from_secs(4), "nobody waits for the end of the grace in vain");
    assert_eq!(fs::read_to_string(dir.path().join("child")).unwrap(), "child\n");
    assert_eq!(marked("MARKER=clear-up"), NOBODY);
}

#[tokio::test]
async fn a_stopped_process_hears_of_its_end() {
    let mut command = with_marker(sh("kill -STOP $$; sleep 1000"), "stopped");
    command.timeout_ms = Some(100);
    let executor = ProcessExecutor::new(Limits::default(), &cgroup::Config::off()).unwrap();
    let finished = executor.execute(&command, &job(), b"", Cancel::never(), &ProgressSink::none()).await;
    assert!(finished.usage.wall < Duration::from_secs(4), "{:?}", finished.usage);
    assert_eq!(marked("MARKER=stopped"), NOBODY);
}

#[tokio::test]
async fn a_cancel_before_the_start_starts_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = sh("touch started");
    command.cwd = Some(dir.path().to_owned());
    let (canceller, cancel) = cancel::pair();
    canceller.cancel();
    let finished = executor().execute(&command, &job(), b"", cancel, &ProgressSink::none()).await;
    assert_eq!(finished.outcome, Outcome::Cancelled);
    assert!(!dir.path().join("started").exists());
}

#[tokio::test]
async fn strays_end_with_a_process_which_succeeded_and_do_not_delay_it() {
    let marker = "strays";
    let finished = run(&with_marker(sh("sleep 1000 & echo done"), marker)).await;
    assert!(finished.usage.wall < Duration::from_secs(10));
    assert_eq!(result(finished), b"done\n");
    assert_eq!(marked(&format!("MARKER={marker}")), NOBODY);
}

#[tokio::test]
async fn dropping_the_future_ends_the_whole_group() {
    let dir = tempfile::tempdir().unwrap();
    let ready = dir.path().join("ready");
    let mut command = with_marker(sh("trap '' TERM; sleep 1000 & sleep 1000 & : > ready; wait"), "dropped");
    command.cwd = Some(dir.path().to_owned());
    let (executor, job) = (executor(), job());
    let sink = ProgressSink::none();
    tokio::select! {
        finished = executor.execute(&command, &job, b"", Cancel::never(), &sink) => panic!("{finished:?}"),
        () = eventually("the process's readiness", || ready.exists()) => {}
    }
    eventually("the group's end", || marked("MARKER=dropped").is_empty()).await;
    eventually("the burial of the process", || children_of_this_process().is_empty() || zombies().is_empty()).await;
}

#[tokio::test]
async fn a_runtime_that_ends_takes_its_processes_with_it() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let dir = tempfile::tempdir().unwrap();
    let cwd = dir.path().to_owned();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut command = with_marker(sh("sleep 1000 & : > ready; wait"), "runtime-end");
        command.cwd = Some(cwd.clone());
        runtime.spawn(async move { run(&command).await });
        runtime.block_on(eventually("the process's readiness", || cwd.join("ready").exists()));
        drop(runtime);
        sender.send(()).unwrap();
    });
    receiver.recv().unwrap();
    eventually("the group's end", || marked("MARKER=runtime-end").is_empty()).await;
}

#[tokio::test]
async fn what_cannot_be_started_is_said_in_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str, mode: u32| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let plain = file("plain", "#!/bin/sh\n", 0o644);
    let orphan = file("orphan", "#!/no/such/interpreter\n", 0o755);
    for (command, says) in [
        (program(&["no-such-program-here"]), "there is no program `no-such-program-here` in the worker's PATH"),
        (program(&["/no/such/program"]), "there is no program `/no/such/program`"),
        (program(&[&plain]), "chmod +x"),
        (program(&[&orphan]), "interpreter"),
        (program(&["/tmp"]), "is a directory"),
        (
            Command { cwd: Some("/no/such/directory".into()), ..sh("true") },
            "directory `/no/such/directory` does not exist",
        ),
        (Command { cwd: Some(plain.clone().into()), ..sh("true") }, "is not a directory"),
    ] {
        let failure = failure(run(&command).await);
        assert_eq!((failure.code.as_str(), failure.retryable), ("spawn", false), "{failure:?}");
        assert!(failure.error.contains(says), "{}", failure.error);
    }
    let huge = vec!["x".repeat(100_000); 40];
    let mut argv = vec!["true".to_owned()];
    argv.extend(huge);
    let failure = failure(run(&Command { command: argv, ..Command::default() }).await);
    assert!(failure.error.contains("pass data by stdin"), "{}", failure.error);
}

#[tokio::test]
async fn a_script_without_a_first_line_is_run_by_the_shell() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("script");
    fs::write(&path, "echo \"$1 and $2\"\n").unwrap();
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    assert_eq!(result(run(&program(&[path.to_str().unwrap(), "a b", "c"])).await), b"a b and c\n");
}

#[tokio::test]
async fn what_is_withheld_no_process_gets() {
    let command = sh(r#"echo "${PATH:+has a path} ${CARGO_MANIFEST_DIR:-has no directory}""#);
    let executor = executor().without(|name| name == "CARGO_MANIFEST_DIR");
    let finished = executor.execute(&command, &job(), b"", Cancel::never(), &ProgressSink::none()).await;
    assert_eq!(result(finished), b"has a path has no directory\n");
}

#[tokio::test]
async fn the_environment_and_the_directory_are_as_asked() {
    let dir = tempfile::tempdir().unwrap();
    let mut command =
        sh(r#"echo "$TASKMASTER_TASK_ID $TASKMASTER_KIND $TASKMASTER_ATTEMPT $TASKMASTER_QUEUE $A $B $HOME"; pwd"#);
    command.env.insert("A".to_owned(), "from the command".to_owned());
    command.env.insert("HOME".to_owned(), "elsewhere".to_owned());
    command.env.insert("TASKMASTER_KIND".to_owned(), "forged".to_owned());
    command.cwd = Some(dir.path().to_owned());
    let env = vec![("A".to_owned(), "from the job".to_owned()), ("B".to_owned(), "b".to_owned())];
    let job = Job { env, ..job() };
    let finished = executor().execute(&command, &job, b"", Cancel::never(), &ProgressSink::none()).await;
    let said = String::from_utf8(result(finished)).unwrap();
    let here = fs::canonicalize(dir.path()).unwrap();
    assert_eq!(said, format!("0190 send 2 emails from the command b elsewhere\n{}\n", here.display()));
}

#[tokio::test]
async fn a_process_gets_a_clean_start() {
    let open = fs::File::open("/dev/null").unwrap();
    let inheritable = rustix::io::dup(&open).unwrap();
    rustix::io::fcntl_setfd(&inheritable, rustix::io::FdFlags::empty()).unwrap();
    let descriptors = result(run(&program(&["ls", "/proc/self/fd"])).await);
    assert_eq!(descriptors, b"0\n1\n2\n3\n", "three, and the one by which ls reads the directory");
    let status = String::from_utf8(result(run(&program(&["cat", "/proc/self/status"])).await)).unwrap();
    for mask in ["SigBlk", "SigIgn", "SigCgt"] {
        let line = status.lines().find_map(|line| line.strip_prefix(&format!("{mask}:\t"))).unwrap();
        // 32 and 33 are the C library's own; some of its versions start programs with them ignored.
        let signals = u64::from_str_radix(line, 16).unwrap() & !(0b11 << 31);
        assert_eq!(signals, 0, "{mask}");
    }
    let stat = String::from_utf8(result(run(&program(&["cat", "/proc/self/stat"])).await)).unwrap();
    let fields: Vec<&str> = stat.split(' ').collect();
    assert_eq!((fields[0], fields[0]), (fields[4], fields[5]), "it leads its group and its session");
}

#[tokio::test]
async fn progress_is_reported_while_it_is_made() {
    let steps = Arc::new(Mutex::new(Vec::new()));
    let sink = {
        let steps = Arc::clone(&steps);
        ProgressSink::new(move |step| steps.lock().unwrap().push((step.fraction, step.message)))
    };
    let command = sh("echo '::progress 25% reading' >&2; echo noise >&2; echo '::progress 1.0' >&2");
    result(executor().execute(&command, &job(), b"", Cancel::never(), &sink).await);
    assert_eq!(*steps.lock().unwrap(), [(0.25, "reading".to_owned()), (1.0, String::new())]);
}

fn children_of_this_process() -> Vec<u32> {
    let own = std::process::id();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc is mounted").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if state_and_parent(pid).is_some_and(|(_, parent)| parent == own) {
            found.push(pid);
        }
    }
    found
}

fn zombies() -> Vec<u32> {
    children_of_this_process()
        .into_iter()
        .filter(|&pid| state_and_parent(pid).is_some_and(|(state, _)| state == 'Z'))
        .collect()
}

fn state_and_parent(pid: u32) -> Option<(char, u32)> {
    let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

#[tokio::test]
async fn five_hundred_processes_leave_no_zombie_and_no_descriptor() {
    let executor = executor();
    let open = || fs::read_dir("/proc/self/fd").unwrap().count();
    let command = program(&["true"]);
    let sink = ProgressSink::none();
    result(executor.execute(&command, &job(), b"", Cancel::never(), &sink).await);
    let before = open();
    let job = job();
    for _ in 0..125 {
        let one = || executor.execute(&command, &job, b"x", Cancel::never(), &sink);
        let (a, b, c, d) = tokio::join!(one(), one(), one(), one());
        for finished in [a, b, c, d] {
            assert_eq!(result(finished), b"");
        }
    }
    // Other tests of this program have processes of their own at the same time: theirs come and go.
    eventually("an end without zombies", || zombies().is_empty()).await;
    eventually("the descriptors' end", || open() <= before + 8).await;
}

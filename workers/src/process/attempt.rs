//! One process from its start to its end: reading what it writes, watching the clock, ending it when asked.
//!
//! The order at the end matters: the leader's exit is seen through its pidfd without waiting for it, so that its number
//! still belongs to the group when the group is killed; only then is it reaped.

use super::Limits;
use super::group;
use super::launch::{Reaped, Status};
use super::output::{Head, Tail, last_line};
use super::signal;
use super::spawner::Child;
use crate::cancel::Cancel;
use crate::cgroup::TaskGroup;
use crate::command::Command;
use crate::job::{Failure, Finished, Outcome, Progress, ProgressSink, Usage};
use rustix::process::Signal;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};
use tokio::net::unix::pipe::Receiver;

/// First look at a running process; the interval doubles up to the second.
const LOOK_FIRST: Duration = Duration::from_millis(5);
const LOOK_LAST: Duration = Duration::from_secs(1);
/// How much is read at once; a pipe holds 64 KiB.
const CHUNK_BYTES: usize = 16 << 10;
/// How long the killed may take to vanish before the attempt's end is reported all the same.
const VANISH: Duration = Duration::from_secs(1);

/// A running process and what has been seen of it.
pub(super) struct Attempt<'a> {
    child: Child,
    stdout: Option<Receiver>,
    stderr: Option<Receiver>,
    result: Head,
    log: Tail,
    lines: Lines,
    command: &'a Command,
    limits: Limits,
    started: Instant,
    timeout: Option<Duration>,
    stop: Option<Stop>,
    kill_at: Option<Instant>,
    look_at: Instant,
    look_after: Duration,
    peak_bytes: Option<u64>,
}

/// Why the worker ends the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    Cancelled,
    Timeout,
    TooLarge,
}

/// A pipe: the worker's end, and the child's.
pub(super) fn output_pipe() -> io::Result<(Receiver, OwnedFd)> {
    let (reader, writer) = io::pipe()?;
    Ok((Receiver::from_owned_fd(reader.into())?, writer.into()))
}

impl<'a> Attempt<'a> {
    pub(super) fn new(
        child: Child,
        stdout: Receiver,
        stderr: Receiver,
        command: &'a Command,
        limits: Limits,
        timeout: Option<Duration>,
        started: Instant,
    ) -> Self {
        Self {
            child,
            stdout: Some(stdout),
            stderr: Some(stderr),
            result: Head::new(limits.result_bytes),
            log: Tail::new(limits.log_tail_bytes),
            lines: Lines::default(),
            command,
            limits,
            started,
            timeout,
            stop: None,
            kill_at: None,
            look_at: Instant::now() + LOOK_FIRST,
            look_after: LOOK_FIRST,
            peak_bytes: None,
        }
    }

    /// Follows the process to its end.
    pub(super) async fn follow(mut self, cancel: Cancel, progress: &ProgressSink) -> Finished {
        if let Err(error) = self.until_exit(cancel, progress).await {
            self.child.kill();
            let error = format!("the worker could not watch the process and ended it: {error}");
            return self.finish(Outcome::Failed(Failure::retryable("worker", error)), None);
        }
        if self.stop.is_some() {
            self.grace_for_the_others().await;
        }
        self.child.kill();
        self.drain(progress);
        let reaped = match self.child.reap() {
            Ok(reaped) => reaped,
            Err(error) => {
                let error = format!("another part of the worker's program waited for the process: {error}");
                return self.finish(Outcome::Failed(Failure::retryable("worker", error)), None);
            }
        };
        self.until_vanished().await;
        let outcome = self.outcome(reaped.status);
        self.finish(outcome, Some(reaped))
    }

    async fn until_exit(&mut self, mut cancel: Cancel, progress: &ProgressSink) -> io::Result<()> {
        let exit = crate::readiness::readable(self.child.pidfd.try_clone()?)?;
        let mut chunk = vec![0_u8; CHUNK_BYTES];
        loop {
            let wake_at = self.wake_at();
            tokio::select! {
                ready = exit.readable() => {
                    ready?.retain_ready();
                    return Ok(());
                }
                () = readable(self.stdout.as_ref()) => self.read_stdout(&mut chunk),
                () = readable(self.stderr.as_ref()) => self.read_stderr(&mut chunk, progress),
                () = cancel.cancelled(), if self.stop.is_none() => self.end(Stop::Cancelled),
                () = tokio::time::sleep_until(wake_at.into()) => self.on_time(),
            }
        }
    }

    /// When the clock next matters.
    fn wake_at(&self) -> Instant {
        let timeout = self.timeout_at().filter(|_| self.stop.is_none());
        timeout.into_iter().chain(self.kill_at).chain([self.look_at]).min().expect("the last one is always there")
    }

    /// `None` as well where the sum lies beyond what the clock can say.
    fn timeout_at(&self) -> Option<Instant> {
        self.started.checked_add(self.timeout?)
    }

    fn on_time(&mut self) {
        let now = Instant::now();
        if self.stop.is_none() && self.timeout_at().is_some_and(|at| at <= now) {
            self.end(Stop::Timeout);
        }
        if self.kill_at.is_some_and(|at| at <= now) {
            self.kill_at = None;
            self.child.kill();
        }
        if self.look_at <= now {
            self.look_after = (self.look_after * 2).min(LOOK_LAST);
            self.look_at = now + self.look_after;
            self.child.guard();
            if !self.child.cgroup.as_ref().is_some_and(TaskGroup::counts_memory) {
                self.peak_bytes = self.peak_bytes.max(group::peak_bytes(self.child.pid));
            }
        }
    }

    /// Asks the process to end, and sees to it that it does.
    fn end(&mut self, why: Stop) {
        self.stop = Some(why);
        if why == Stop::TooLarge {
            self.child.kill();
            return;
        }
        self.child.signal(Signal::TERM);
        // A stopped process would not hear of it.
        self.child.signal(Signal::CONT);
        self.kill_at = Some(Instant::now() + self.limits.grace);
    }

    fn read_stdout(&mut self, chunk: &mut [u8]) {
        let Some(pipe) = &self.stdout else { return };
        match pipe.try_read(chunk) {
            Ok(0) => self.stdout = None,
            Ok(n) => {
                self.result.push(&chunk[..n]);
                if self.result.overflowed() && !self.command.truncate && self.stop.is_none() {
                    self.end(Stop::TooLarge);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.stdout = None,
        }
    }

    fn read_stderr(&mut self, chunk: &mut [u8], progress: &ProgressSink) {
        let Some(pipe) = &self.stderr else { return };
        match pipe.try_read(chunk) {
            Ok(0) => self.stderr = None,
            Ok(n) => {
                self.log.push(&chunk[..n]);
                if progress.is_some() {
                    self.lines.push(&chunk[..n], progress);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.stderr = None,
        }
    }

    /// Takes what the ended process left in its pipes, and no more than pipes hold: a descendant which left the group
    /// might go on writing for ever.
    fn drain(&mut self, progress: &ProgressSink) {
        const READS_MAX: usize = (1 << 20) / CHUNK_BYTES;
        let mut chunk = vec![0_u8; CHUNK_BYTES];
        for _ in 0..READS_MAX {
            let Some(n) = self.stdout.as_ref().and_then(|pipe| read_now(pipe, &mut chunk)) else { break };
            self.result.push(&chunk[..n]);
        }
        for _ in 0..READS_MAX {
            let Some(n) = self.stderr.as_ref().and_then(|pipe| read_now(pipe, &mut chunk)) else { break };
            self.log.push(&chunk[..n]);
            if progress.is_some() {
                self.lines.push(&chunk[..n], progress);
            }
        }
        self.stdout = None;
        self.stderr = None;
        if self.result.overflowed() && !self.command.truncate && self.stop.is_none() {
            self.stop = Some(Stop::TooLarge);
        }
    }

    /// A shell dies of SIGTERM at once; what it started may need its grace to clear up.
    async fn grace_for_the_others(&mut self) {
        let mut pause = Duration::from_millis(2);
        while let Some(kill_at) = self.kill_at
            && Instant::now() < kill_at
            && !group::others_in_session(self.child.pid).is_empty()
        {
            tokio::time::sleep(pause.min(kill_at.saturating_duration_since(Instant::now()))).await;
            pause = (pause * 2).min(Duration::from_millis(100));
        }
        for pid in group::others_in_session(self.child.pid) {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    }

    /// Waits until the killed are gone: SIGKILL takes effect a moment later.
    async fn until_vanished(&self) {
        let until = Instant::now() + VANISH;
        let mut pause = Duration::from_millis(1);
        while group::exists(self.child.pid)
            && !group::others_in_session(self.child.pid).is_empty()
            && Instant::now() < until
        {
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }

    fn outcome(&mut self, status: Status) -> Outcome {
        let failure = match self.stop {
            None if status == Status::Exited(0) => {
                let result = std::mem::replace(&mut self.result, Head::new(0)).into_bytes();
                return Outcome::Succeeded { result };
            }
            // Exit code 0 after SIGTERM says that it ended tidily, not that the work is done.
            Some(Stop::Cancelled) => return Outcome::Cancelled,
            Some(Stop::Timeout) => {
                let timeout = self.timeout.unwrap_or_default();
                Failure::retryable("timeout", format!("the command was ended after its timeout of {timeout:?}"))
            }
            Some(Stop::TooLarge) => {
                let limit = self.limits.result_bytes;
                let error = format!(
                    "the command wrote more than the {limit} bytes which a result may have; write to a file and return its \
                     name, or set `truncate`"
                );
                Failure::permanent("result_too_large", error)
            }
            None => self.own_failure(status),
        };
        Outcome::Failed(failure)
    }

    fn own_failure(&self, status: Status) -> Failure {
        if let Some(limit) =
            self.child.cgroup.as_ref().filter(|cgroup| cgroup.oom_killed()).map(|cgroup| cgroup.memory_bytes())
        {
            return Failure::retryable(
                "oom",
                format!("the command needed more than the {limit} bytes of memory which the task asks for"),
            );
        }
        match status {
            Status::Exited(code) => {
                let retryable = !self.command.non_retryable.contains(&code);
                Failure {
                    error: format!("the command exited with code {code}"),
                    code: format!("exit:{code}"),
                    retryable,
                }
            }
            Status::Signalled(number) => {
                let name = signal::name(number);
                let hint = if number == libc::SIGKILL { ", perhaps because the machine ran out of memory" } else { "" };
                Failure::retryable(format!("signal:{name}"), format!("the command was killed by SIG{name}{hint}"))
            }
        }
    }

    fn finish(self, mut outcome: Outcome, reaped: Option<Reaped>) -> Finished {
        let log_tail = self.log.into_bytes();
        if let Outcome::Failed(failure) = &mut outcome
            && failure.code != "result_too_large"
            && let Some(line) = last_line(&log_tail)
        {
            failure.error.push_str("; the last it said: ");
            failure.error.push_str(&line);
        }
        let own_peak = self.child.own_peak_bytes;
        let in_cgroup = self.child.cgroup.as_ref().and_then(|cgroup| cgroup.peak_bytes());
        let at_exit = reaped.map(|reaped| reaped.peak_bytes).filter(|&bytes| bytes > own_peak);
        let usage = Usage {
            wall: self.started.elapsed(),
            cpu_user: reaped.map_or(Duration::ZERO, |reaped| reaped.cpu_user),
            cpu_system: reaped.map_or(Duration::ZERO, |reaped| reaped.cpu_system),
            peak_memory_bytes: in_cgroup.or(at_exit.max(self.peak_bytes)),
            measured: self.child.cgroup.as_ref().and_then(TaskGroup::measured),
        };
        Finished { outcome, usage, log_tail }
    }
}

/// Ends when there is something to read, or the end; never for a closed pipe.
async fn readable(pipe: Option<&Receiver>) {
    match pipe {
        Some(pipe) => {
            // An error shows in the read which follows.
            let _ = pipe.readable().await;
        }
        None => std::future::pending().await,
    }
}

/// Reads what is there, asking the kernel and not the runtime's memory of it.
fn read_now(pipe: &Receiver, chunk: &mut [u8]) -> Option<usize> {
    rustix::io::retry_on_intr(|| rustix::io::read(pipe, &mut *chunk)).ok().filter(|&n| n > 0)
}

/// Finds lines like `::progress 0.25 reading` in what a process writes to standard error.
#[derive(Default)]
struct Lines(Vec<u8>);

impl Lines {
    const LINE_BYTES_MAX: usize = 512;

    fn push(&mut self, mut bytes: &[u8], sink: &ProgressSink) {
        while let Some(end) = bytes.iter().position(|&b| b == b'\n') {
            self.keep(&bytes[..end]);
            if let Some(progress) = parse(&self.0) {
                sink.report(progress);
            }
            self.0.clear();
            bytes = &bytes[end + 1..];
        }
        self.keep(bytes);
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = Self::LINE_BYTES_MAX - self.0.len();
        self.0.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}

fn parse(line: &[u8]) -> Option<Progress> {
    let text = std::str::from_utf8(line).ok()?.strip_prefix("::progress ")?.trim();
    let (number, message) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let fraction = match number.strip_suffix('%') {
        Some(percent) => percent.parse::<f32>().ok()? / 100.0,
        None => number.parse().ok()?,
    };
    (0.0..=1.0).contains(&fraction).then(|| Progress { fraction, message: message.trim().to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_lines_are_understood_and_others_ignored() {
        let step = |fraction, message: &str| Some(Progress { fraction, message: message.to_owned() });
        assert_eq!(parse(b"::progress 0.25 reading files"), step(0.25, "reading files"));
        assert_eq!(parse(b"::progress 50%"), step(0.5, ""));
        for other in
            [&b"::progress"[..], b"::progress 2", b"::progress -1 x", b"::progress NaN", b"progress 1", b"\xff"]
        {
            assert_eq!(parse(other), None);
        }
    }
}

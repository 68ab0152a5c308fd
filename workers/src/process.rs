//! Running a command as a process group, and ending it whole.
//!
//! Standard input is a sealed-off file in memory (so a program which does not read it disturbs nobody), standard output
//! the result, standard error a log of which the end is kept. Whatever way an attempt ends (exit, timeout, cancel, dropped
//! future, death of the worker), its process group ends with it; with a cgroup also what left the group.
//!
//! Reading order: `launch` (one process), `spawner` (the thread that starts them), `guardian` (the worker's own
//! death), `attempt` (one task's life).

mod attempt;
mod group;
mod guardian;
mod launch;
mod lookup;
mod output;
mod signal;
mod spawner;

use crate::cancel::Cancel;
use crate::cgroup::{self, Cgroups};
use crate::command::Command;
use crate::job::{Failure, Finished, Job, Outcome, ProgressSink, Usage};
use launch::Image;
use spawner::{Plan, Spawner};
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bounds of one process.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Longest result, in bytes.
    pub result_bytes: usize,
    /// How much of the end of standard error is kept, in bytes.
    pub log_tail_bytes: usize,
    /// How long a process has after SIGTERM before SIGKILL.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { result_bytes: 1 << 20, log_tail_bytes: 64 << 10, grace: Duration::from_secs(5) }
    }
}

/// Runs commands. Cheap to clone; one thread serves all clones.
#[derive(Clone)]
pub struct ProcessExecutor {
    spawner: Spawner,
    cgroups: Arc<Cgroups>,
    limits: Limits,
    environment: Arc<[(OsString, CString)]>,
}

impl std::fmt::Debug for ProcessExecutor {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("ProcessExecutor").field("limits", &self.limits).field("cgroups", &self.cgroups).finish()
    }
}

impl ProcessExecutor {
    /// An executor with its own thread. Processes inherit the environment which this program has now, and the processor
    /// affinity of the thread which calls this: call it from one that is not pinned.
    ///
    /// # Errors
    /// The thread could not be started.
    pub fn new(limits: Limits, cgroups: &cgroup::Config) -> std::io::Result<Self> {
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| {
                let text = variable(&name, &value);
                Some((name, text?))
            })
            .collect();
        Ok(Self { spawner: Spawner::start()?, cgroups: Arc::new(Cgroups::open(cgroups)), limits, environment })
    }

    /// Keeps variables of this program's environment from processes: those with such a name.
    #[must_use]
    pub fn without(mut self, is_withheld: impl Fn(&str) -> bool) -> Self {
        let kept = self.environment.iter().filter(|(name, _)| !name.to_str().is_some_and(&is_withheld));
        self.environment = kept.cloned().collect();
        self
    }

    /// Whether it is measured what processes use.
    #[must_use]
    pub fn measures(&self) -> bool {
        self.cgroups.measures()
    }

    /// What limits are in force, as a sentence.
    #[must_use]
    pub fn limits_in_force(&self) -> String {
        self.cgroups.sentence()
    }

    /// Runs `command` for `job` with `stdin` as standard input, to its end.
    ///
    /// Dropping the future kills the process group.
    pub async fn execute(
        &self,
        command: &Command,
        job: &Job,
        stdin: &[u8],
        cancel: Cancel,
        progress: &ProgressSink,
    ) -> Finished {
        let started = Instant::now();
        if cancel.is_cancelled() {
            return Finished { outcome: Outcome::Cancelled, usage: Usage::default(), log_tail: Vec::new() };
        }
        let attempt = match self.prepare(command, job, stdin, started).await {
            Ok(attempt) => attempt,
            Err(failure) => {
                let usage = Usage { wall: started.elapsed(), ..Usage::default() };
                return Finished { outcome: Outcome::Failed(failure), usage, log_tail: Vec::new() };
            }
        };
        Box::pin(attempt.follow(cancel, progress)).await
    }

    async fn prepare<'a>(
        &self,
        command: &'a Command,
        job: &Job,
        stdin: &[u8],
        started: Instant,
    ) -> Result<attempt::Attempt<'a>, Failure> {
        command.check()?;
        let argv = command.argv();
        let path = command.env.get("PATH").map(OsStr::new).or_else(|| self.inherited("PATH"));
        let program = lookup::program(&argv[0], path)?;
        let worker = |what: &str, error: &dyn std::fmt::Display| {
            Failure::retryable("worker", format!("the worker could not make {what} for the process: {error}"))
        };
        let input = input(stdin).map_err(|error| worker("standard input", &error))?;
        let (stdout, child_stdout) = attempt::output_pipe().map_err(|error| worker("a pipe", &error))?;
        let (stderr, child_stderr) = attempt::output_pipe().map_err(|error| worker("a pipe", &error))?;
        let plan = Plan {
            image: Image {
                program: CString::new(program.as_os_str().as_bytes()).map_err(|error| worker("a name", &error))?,
                argv: argv
                    .into_iter()
                    .map(CString::new)
                    .collect::<Result<_, _>>()
                    .map_err(|error| worker("arguments", &error))?,
                env: self.environment(command, job),
                cwd: command.cwd.as_ref().and_then(|cwd| CString::new(cwd.as_os_str().as_bytes()).ok()),
                tied: true,
            },
            stdin: input,
            stdout: child_stdout,
            stderr: child_stderr,
            cgroup: self.cgroups.for_task(&job.id, cgroup::TaskLimits::of(job)),
        };
        let child = self.spawner.spawn(plan).await;
        let child = child.map_err(|error| lookup::refused(&error, &program, command.cwd.as_deref()))?;
        let own = command.timeout_ms.map(Duration::from_millis);
        let timeout = own.into_iter().chain(job.timeout).min();
        Ok(attempt::Attempt::new(child, stdout, stderr, command, self.limits, timeout, started))
    }

    fn inherited(&self, name: &str) -> Option<&OsStr> {
        let (key, text) = self.environment.iter().find(|(key, _)| key == name)?;
        Some(OsStr::from_bytes(&text.as_bytes()[key.len() + 1..]))
    }

    /// The worker's own variables, then the job's, then the command's, then ours; a later one replaces an earlier.
    fn environment(&self, command: &Command, job: &Job) -> Vec<CString> {
        let attempt = job.attempt.to_string();
        let ours: [(&str, &str); 4] = [
            ("TASKMASTER_TASK_ID", &job.id),
            ("TASKMASTER_KIND", &job.kind),
            ("TASKMASTER_ATTEMPT", &attempt),
            ("TASKMASTER_QUEUE", &job.queue),
        ];
        let mut added: Vec<(&str, &str)> = Vec::with_capacity(ours.len() + command.env.len() + job.env.len());
        let all = ours
            .into_iter()
            .chain(command.env.iter().map(|(name, value)| (name.as_str(), value.as_str())))
            .chain(job.env.iter().rev().map(|(name, value)| (name.as_str(), value.as_str())));
        for (name, value) in all {
            if !added.iter().any(|&(other, _)| other == name) {
                added.push((name, value));
            }
        }
        let kept = self.environment.iter().filter(|(name, _)| !added.iter().any(|&(other, _)| name == other));
        kept.map(|(_, text)| text.clone())
            .chain(added.iter().filter_map(|&(name, value)| variable(OsStr::new(name), OsStr::new(value))))
            .collect()
    }
}

/// `NAME=value`; `None` where the kernel could not be told so.
fn variable(name: &OsStr, value: &OsStr) -> Option<CString> {
    if name.is_empty() || name.as_bytes().contains(&b'=') {
        return None;
    }
    let text: OsString = [name, OsStr::new("="), value].into_iter().collect();
    CString::new(text.into_vec()).ok()
}

/// A file in memory with `bytes` in it, read from its beginning.
fn input(bytes: &[u8]) -> std::io::Result<OwnedFd> {
    if bytes.is_empty() {
        return Ok(File::open(PathBuf::from("/dev/null"))?.into());
    }
    let mut file = File::from(rustix::fs::memfd_create("taskmaster-stdin", rustix::fs::MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file.into())
}

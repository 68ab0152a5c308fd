//! Which way a kind is run: a built-in, a command that the worker was given, or a command in the payload.

use crate::builtin::Builtin;
use crate::cancel::Cancel;
use crate::command::Command;
use crate::job::{Failure, Finished, Job, Outcome, ProgressSink, Usage};
use crate::process::ProcessExecutor;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The kind whose payload is a command.
pub const EXEC: &str = "exec";

/// What a worker can run. Build it, then share it behind an [`Arc`].
///
/// Looked up in this order: a command of that very kind, a built-in, `exec`, the command for all kinds. A kind may have a variant behind a slash
/// (`exec/align`): it is run as the kind before the slash, unless there is a command for it.
#[derive(Debug, Default)]
pub struct Registry {
    builtins: bool,
    exec: bool,
    commands: BTreeMap<String, Arc<Command>>,
    fallback: Option<Arc<Command>>,
    process: Option<ProcessExecutor>,
}

/// What is to be run for a kind.
enum Way {
    Builtin(Builtin),
    /// A command of the worker's; the payload is its standard input.
    Command(Arc<Command>),
    /// The payload is the command.
    Exec,
}

impl Registry {
    /// One that knows no kind.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `noop`, `sleep`, `spin`, `fail` and `replay`.
    #[must_use]
    pub fn with_builtins(mut self) -> Self {
        self.builtins = true;
        self
    }

    /// Adds the means to run processes, without which no command is run.
    #[must_use]
    pub fn with_processes(mut self, process: ProcessExecutor) -> Self {
        self.process = Some(process);
        self
    }

    /// Adds the kind `exec`: whoever may submit tasks may then run any command as this worker's user.
    #[must_use]
    pub fn with_exec(mut self) -> Self {
        self.exec = true;
        self
    }

    /// Runs a command for one kind; the payload is its standard input.
    #[must_use]
    pub fn with_command(mut self, kind: impl Into<String>, command: Command) -> Self {
        self.commands.insert(kind.into(), Arc::new(command));
        self
    }

    /// Runs a command for every kind which has no other.
    #[must_use]
    pub fn with_command_for_all(mut self, command: Command) -> Self {
        self.fallback = Some(Arc::new(command));
        self
    }

    /// The kinds to ask the server for, sorted; `None` if all of them are welcome.
    #[must_use]
    pub fn kinds(&self) -> Option<Vec<String>> {
        if self.fallback.is_some() {
            return None;
        }
        let builtins = Builtin::ALL.into_iter().filter(|_| self.builtins).map(|builtin| builtin.name().to_owned());
        let exec = Some(EXEC.to_owned()).filter(|_| self.exec);
        let mut kinds: Vec<String> = self.commands.keys().cloned().chain(builtins).chain(exec).collect();
        kinds.sort();
        kinds.dedup();
        Some(kinds)
    }

    fn way(&self, kind: &str) -> Option<Way> {
        // What is behind a slash says only whose run times a task's are like.
        let base = kind.split_once('/').map_or(kind, |(base, _)| base);
        let command = self.commands.get(kind).or_else(|| self.commands.get(base)).cloned().map(Way::Command);
        let kind = base;
        command
            .or_else(|| Builtin::named(kind).filter(|_| self.builtins).map(Way::Builtin))
            .or_else(|| Some(Way::Exec).filter(|_| self.exec && kind == EXEC))
            .or_else(|| self.fallback.clone().map(Way::Command))
    }

    /// Whether it is measured what tasks of a kind use.
    #[must_use]
    pub fn measures(&self, kind: &str) -> bool {
        let measures = self.process.as_ref().is_some_and(ProcessExecutor::measures);
        measures && matches!(self.way(kind), Some(Way::Command(_) | Way::Exec))
    }

    /// Runs one attempt to its end. Never fails otherwise than in the outcome.
    ///
    /// Dropping the future ends what it runs, processes with all their group.
    pub async fn execute(&self, job: Job, cancel: Cancel, progress: &ProgressSink) -> Finished {
        match self.way(&job.kind) {
            Some(Way::Builtin(builtin)) => run_builtin(builtin, &job, cancel).await,
            Some(Way::Command(command)) => self.run_command(&command, &job, &job.payload, cancel, progress).await,
            Some(Way::Exec) => match Command::from_payload(&job.payload) {
                Ok(command) => {
                    let stdin = command.stdin.as_deref().unwrap_or_default().as_bytes();
                    self.run_command(&command, &job, stdin, cancel, progress).await
                }
                Err(failure) => failed(failure),
            },
            None => {
                let known = self.kinds().unwrap_or_default().join(", ");
                let error = format!("this worker does not know the kind `{}`; it knows: {known}", job.kind);
                failed(Failure::retryable("unknown_kind", error))
            }
        }
    }

    async fn run_command(
        &self,
        command: &Command,
        job: &Job,
        stdin: &[u8],
        cancel: Cancel,
        progress: &ProgressSink,
    ) -> Finished {
        match &self.process {
            Some(process) => process.execute(command, job, stdin, cancel, progress).await,
            None => failed(Failure::retryable("worker", "this worker was started without the means to run processes")),
        }
    }
}

fn failed(failure: Failure) -> Finished {
    Finished { outcome: Outcome::Failed(failure), usage: Usage::default(), log_tail: Vec::new() }
}

async fn run_builtin(builtin: Builtin, job: &Job, mut cancel: Cancel) -> Finished {
    let started = Instant::now();
    let timeout_at = job.timeout.and_then(|timeout| started.checked_add(timeout));
    let (outcome, cpu) = tokio::select! {
        biased;
        () = cancel.cancelled() => (Outcome::Cancelled, Duration::ZERO),
        ended = builtin.run(job) => ended,
        () = until(timeout_at) => {
            let error = format!("the task was ended after its timeout of {:?}", job.timeout.unwrap_or_default());
            (Outcome::Failed(Failure::retryable("timeout", error)), Duration::ZERO)
        }
    };
    let usage = Usage { wall: started.elapsed(), cpu_user: cpu, ..Usage::default() };
    Finished { outcome, usage, log_tail: Vec::new() }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

//! Workers of this program: the client's worker (leases, credit, heartbeats) joined to the executors of
//! `taskmaster-workers` (built-in kinds, processes, limits).
//!
//! Invariants: a lost or revoked lease cancels its attempt, processes with all their group; an attempt's outcome is
//! reported under its own lease only; what an [`Observer`] saw is on this machine's clock.

use std::collections::HashMap;
use std::io::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use taskmaster_client::{Client, Context, Payload, Resources, TaskError, TaskId, Used, Worker};
use taskmaster_workers::{
    Command, Finished, Job, Outcome, ProcessExecutor, Progress, ProgressSink, Registry, cancel, cgroup, process,
};

use crate::cli::{Exit, Failure};
use crate::config::is_setting;

/// What a worker offers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Offer {
    /// Name shown to operators; empty for the default.
    pub(crate) name: String,
    /// Address of a node, told to processes; empty when nobody need connect.
    pub(crate) address: String,
    /// Queues to serve.
    pub(crate) queues: Vec<String>,
    /// Most tasks at once.
    pub(crate) concurrency: u32,
    /// What tasks may reserve of it; none means resources are not counted.
    pub(crate) resources: Option<Resources>,
    /// Cores of these resources, in thousandths, where they are counted.
    pub(crate) cpu_milli: Option<u32>,
    /// Whether it runs `noop`, `sleep`, `spin`, `fail` and `replay`.
    pub(crate) builtins: bool,
    /// Whether it runs the command in the payload of `exec` tasks.
    pub(crate) exec: bool,
    /// A command for these kinds; for every kind that has no other when there are none.
    pub(crate) command: Option<(Command, Vec<String>)>,
    /// Longest run of one attempt.
    pub(crate) timeout: Option<Duration>,
    /// How long a process has after SIGTERM.
    pub(crate) grace: Option<Duration>,
    /// Variables of this program's environment that processes do not get, beside those that override its configuration.
    pub(crate) withheld: Vec<String>,
}

/// When a task ran, in microseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attempts {
    /// Start of the first attempt.
    pub(crate) first_start_us: u64,
    /// When the latest attempt became ready, by the server's clock.
    pub(crate) ready_us: u64,
    /// Start of the latest attempt.
    pub(crate) start_us: u64,
    /// End of the latest attempt; 0 while it runs.
    pub(crate) end_us: u64,
    /// Attempts started here.
    pub(crate) count: u32,
}

/// Notes when each task ran in this process.
#[derive(Debug, Default)]
pub(crate) struct Observer(Mutex<HashMap<TaskId, Attempts>>);

impl Observer {
    fn note(&self, id: TaskId, change: impl FnOnce(&mut Attempts)) {
        change(self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(id).or_default());
    }

    /// What was seen of a task, if it ran here.
    pub(crate) fn of(&self, id: TaskId) -> Option<Attempts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&id).copied()
    }
}

/// By what the runtimes of two makers of GPUs go.
const VISIBLE_DEVICES: [&str; 2] = ["CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"];

/// What all handlers of a worker share.
struct Bench {
    registry: Registry,
    /// Whether tasks may be processes.
    has_processes: bool,
    address: String,
    observer: Option<Arc<Observer>>,
    timeout: Option<Duration>,
}

/// Starts a worker.
///
/// # Errors
/// The process executor cannot start, or the node refuses the subscription.
pub(crate) async fn start(client: &Client, offer: &Offer, observer: Option<Arc<Observer>>) -> Result<Worker, Failure> {
    let registry = registry(offer)?;
    let has_processes = offer.exec || offer.command.is_some();
    let bench =
        Arc::new(Bench { registry, has_processes, address: offer.address.clone(), observer, timeout: offer.timeout });
    let mut builder = Worker::builder(client).concurrency(offer.concurrency);
    for queue in &offer.queues {
        builder = builder.queue(queue.clone());
    }
    if !offer.name.is_empty() {
        builder = builder.name(offer.name.clone());
    }
    if let Some(resources) = &offer.resources {
        builder = builder.resources(resources.clone());
    }
    let builder = builder.default_handler(move |task| {
        let bench = Arc::clone(&bench);
        async move { bench.run(task).await }
    });
    Ok(builder.start().await?)
}

fn registry(offer: &Offer) -> Result<Registry, Failure> {
    let mut registry = Registry::new();
    if offer.builtins {
        registry = registry.with_builtins();
    }
    if offer.exec || offer.command.is_some() {
        let mut limits = process::Limits::default();
        if let Some(grace) = offer.grace {
            limits.grace = grace;
        }
        let executor = ProcessExecutor::new(limits, &cgroup::Config { measure: true, ..cgroup::Config::default() })
            .map_err(|error| Failure::new(Exit::Failed, format!("processes cannot be run: {error}")))?
            .without(|name| is_setting(name) || offer.withheld.iter().any(|withheld| withheld == name));
        tracing::debug!("{}", executor.limits_in_force());
        registry = registry.with_processes(executor);
    }
    if offer.exec {
        registry = registry.with_exec();
    }
    if let Some((command, kinds)) = &offer.command {
        registry = if kinds.is_empty() {
            registry.with_command_for_all(command.clone())
        } else {
            kinds.iter().fold(registry, |registry, kind| registry.with_command(kind, command.clone()))
        };
    }
    Ok(registry)
}

impl Bench {
    /// Runs one attempt, and cancels it when its lease is lost.
    async fn run(&self, task: Context) -> Result<Payload, TaskError> {
        let begin = if self.has_processes { Begin::of(&task, &self.address).await? } else { Begin::default() };
        let job = Job {
            id: task.id().to_string(),
            kind: task.kind().to_owned(),
            queue: task.queue().to_owned(),
            attempt: task.attempt(),
            payload: task.payload().to_vec(),
            timeout: self.timeout,
            cpu_milli: task.cpu_milli(),
            memory_bytes: task.memory_bytes(),
            env: begin.env.into_iter().chain(devices_env(task.devices())).collect(),
        };
        let (canceller, cancelled) = cancel::pair();
        let reports = task.clone();
        let sink = ProgressSink::new(move |progress| report(&reports, &progress));
        self.note_start(&task);
        let measure = self.registry.measures(task.kind()).then(|| task.measure());
        let execution = self.registry.execute(job, cancelled, &sink);
        tokio::pin!(execution);
        let finished = tokio::select! {
            finished = &mut execution => finished,
            () = task.cancelled() => {
                canceller.cancel();
                execution.await
            }
        };
        if let Some(observer) = &self.observer {
            observer.note(task.id(), |attempts| attempts.end_us = now_us());
        }
        if let Some(measure) = measure {
            measure.ended(used(&finished));
        }
        answer(finished)
    }

    fn note_start(&self, task: &Context) {
        let Some(observer) = &self.observer else { return };
        let now_us = now_us();
        let ready = task.ready_time().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        observer.note(task.id(), |attempts| {
            if attempts.count == 0 {
                attempts.first_start_us = now_us;
            }
            attempts.count += 1;
            attempts.ready_us = u64::try_from(ready.as_micros()).unwrap_or(u64::MAX);
            attempts.start_us = now_us;
            attempts.end_us = 0;
        });
    }
}

/// What a process is told of its lease, so that it can save its state, and a file with the state to resume from.
#[derive(Default)]
struct Begin {
    env: Vec<(String, String)>,
    /// Removed with the attempt's end.
    _file: Option<tempfile::NamedTempFile>,
}

impl Begin {
    async fn of(task: &Context, address: &str) -> Result<Self, TaskError> {
        let mut env = vec![
            ("TASKMASTER_TOKEN".to_owned(), task.token().to_string()),
            ("TASKMASTER_STATE_VERSION".to_owned(), task.version().to_string()),
        ];
        if !address.is_empty() {
            env.push(("TASKMASTER_ADDR".to_owned(), address.to_owned()));
        }
        let Some((_, state)) = task.load().await? else { return Ok(Self { env, _file: None }) };
        let mut file = tempfile::Builder::new().prefix("taskmaster-state-").tempfile()?;
        file.write_all(&state)?;
        file.flush()?;
        env.push(("TASKMASTER_STATE_FILE".to_owned(), file.path().to_string_lossy().into_owned()));
        Ok(Self { env, _file: Some(file) })
    }
}

/// The names of the devices that the worker itself was given, if it was.
fn devices_given() -> Option<Vec<String>> {
    let given = std::env::var(VISIBLE_DEVICES[0]).ok()?;
    Some(given.split(',').map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect())
}

/// Devices that are offered need names of their own.
///
/// # Errors
/// The worker was given names of fewer.
pub(crate) fn check_devices(gpu_milli: u32) -> Result<(), Failure> {
    let offered = gpu_milli.div_ceil(1_000) as usize;
    match devices_given() {
        Some(given) if given.len() < offered => Err(Failure::new(
            Exit::Usage,
            format!(
                "{offered} devices are offered and {} names {}: offer no more, or unset it",
                VISIBLE_DEVICES[0],
                given.len()
            ),
        )),
        _ => Ok(()),
    }
}

/// How a process learns which devices are its own: by the names that the worker itself was given, or by their numbers.
fn devices_env(devices: &[u32]) -> Vec<(String, String)> {
    if devices.is_empty() {
        return Vec::new();
    }
    let given = devices_given().unwrap_or_default();
    let name = |&device: &u32| given.get(device as usize).map_or_else(|| device.to_string(), Clone::clone);
    let names = devices.iter().map(name).collect::<Vec<_>>().join(",");
    ["TASKMASTER_DEVICES"]
        .iter()
        .chain(&VISIBLE_DEVICES)
        .map(|variable| ((*variable).to_owned(), names.clone()))
        .collect()
}

/// Progress as the server keeps it.
fn report(task: &Context, progress: &Progress) {
    let permille = (progress.fraction * 1_000.0).clamp(0.0, 1_000.0);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0 to 1000")]
    task.progress(permille as u32, progress.message.clone());
}

/// What an attempt used, as the client reports it.
fn used(finished: &Finished) -> Used {
    let usage = &finished.usage;
    Used {
        cpu: usage.measured.map(|measured| measured.cpu),
        memory_peak_bytes: usage.peak_memory_bytes,
        io_bytes: usage.measured.and_then(|measured| measured.io_bytes),
        stalls: usage.measured.and_then(|measured| measured.stalls),
        is_whole: matches!(finished.outcome, Outcome::Succeeded { .. }),
    }
}

/// An attempt's end as the client reports it.
fn answer(finished: Finished) -> Result<Payload, TaskError> {
    match finished.outcome {
        Outcome::Succeeded { result } => Ok(result.into()),
        Outcome::Failed(failure) => {
            let error = TaskError::new(failure.code, failure.error).log_tail(finished.log_tail);
            Err(if failure.retryable { error } else { error.permanent() })
        }
        Outcome::Cancelled => Err(TaskError::new("cancelled", "the attempt was ended because the task was cancelled")),
    }
}

/// Time by this machine's clock, in microseconds since 1970.
pub(crate) fn now_us() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

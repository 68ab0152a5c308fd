//! What the order of a queue does to waiting: the same mixed load under each policy, on real workers.
//!
//! Four kinds arrive at random times at a part of what the workers can do: 1 ms, 20 ms of which a part fails at first, one that is
//! 5 or 400 ms, and 1 s. A handler sleeps for as long, so that the machine is not what is measured. A task's slowdown is the time from
//! its submission to its end over its run time, times under [`FLOOR_MS`] counting as that.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use taskmaster_client::{Client, Policy, QueueSettings, Retries, Task, TaskError, Worker};

use crate::options::NodeInfo;

/// Run times under this are alike to a slowdown, in milliseconds.
const FLOOR_MS: f64 = 10.0;
/// Between two submissions.
const TICK: Duration = Duration::from_millis(5);
const KINDS: [&str; 4] = ["tiny", "flaky", "bimodal", "long"];

/// What to measure.
#[derive(Clone, Debug)]
pub struct OrderOptions {
    /// Tasks at once.
    pub places: u32,
    /// Part of what the workers can do that arrives.
    pub load: f64,
    /// Load before the measurement, in which run times are learned.
    pub warmup: Duration,
    /// Time to measure for.
    pub time: Duration,
}

/// Waits under one policy.
#[derive(Clone, Debug, Serialize)]
pub struct PolicyReport {
    /// Its name.
    pub policy: &'static str,
    /// Tasks that were submitted in the time measured; all of them ended.
    pub tasks: usize,
    /// Mean bounded slowdown.
    pub mean_slowdown: f64,
    /// The same by kind.
    pub mean_slowdown_by_kind: [f64; KINDS.len()],
    /// Wait from submission to the end, less the run time, in milliseconds.
    pub wait_p50_ms: f64,
    /// The same.
    pub wait_p99_ms: f64,
    /// The same.
    pub wait_max_ms: f64,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct OrderReport {
    /// Tasks at once.
    pub places: u32,
    /// Part of what the workers can do that arrived.
    pub load: f64,
    /// By policy, the plain one first.
    pub policies: Vec<PolicyReport>,
}

/// A task as it is drawn.
#[derive(Clone, Copy)]
struct Drawn {
    kind: usize,
    run_ms: u64,
    fails_first: bool,
}

/// A source of chance that is the same for every policy.
struct Dice(u64);

impl Dice {
    /// From 0 to below 1.
    #[expect(clippy::cast_precision_loss, reason = "a part")]
    fn part(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }

    fn draw(&mut self) -> Drawn {
        let (kind, second) = (self.part(), self.part());
        let drawn = |kind, run_ms| Drawn { kind, run_ms, fails_first: false };
        match kind {
            kind if kind < 0.5 => drawn(0, 1),
            kind if kind < 0.8 => Drawn { fails_first: second < 0.2, ..drawn(1, 20) },
            kind if kind < 0.95 => drawn(2, if second < 0.5 { 5 } else { 400 }),
            _ => drawn(3, 1_000),
        }
    }
}

/// Mean run time of what is drawn, in milliseconds; a first attempt that fails does so at once.
const MEAN_MS: f64 = 0.5 * 1.0 + 0.3 * 20.0 + 0.15 * 202.5 + 0.05 * 1_000.0;

/// One task that ended.
struct Ended {
    kind: usize,
    submitted: Duration,
    run_ms: f64,
    total_ms: f64,
}

/// Runs the load under each policy against a node.
///
/// # Errors
/// When the node cannot be reached, or refuses, or does not end what it took.
pub fn run(options: &OrderOptions, node: &NodeInfo) -> Result<OrderReport> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut policies = Vec::new();
    // The load has no deadlines.
    for policy in Policy::ALL.into_iter().rev().filter(|&policy| policy != Policy::Deadline) {
        policies.push(runtime.block_on(measure(options, node, policy))?);
    }
    policies.sort_by_key(|report| report.policy != Policy::Fifo.name());
    Ok(OrderReport { places: options.places, load: options.load, policies })
}

async fn measure(options: &OrderOptions, node: &NodeInfo, policy: Policy) -> Result<PolicyReport> {
    let client = Client::connect(node.addr.as_str()).await.context("connecting")?;
    let queue = format!("bench-{}", policy.name());
    client.configure_queue(&queue, QueueSettings::new().policy(policy)).await?;
    let (began, ended) = (Instant::now(), Arc::new(Mutex::new(Vec::<Ended>::new())));
    let mut worker = Worker::builder(&client).queue(&queue).concurrency(options.places);
    for kind in KINDS {
        let ended = Arc::clone(&ended);
        worker = worker.handler(kind, move |task| {
            let ended = Arc::clone(&ended);
            async move { work(&task, began, &ended).await }
        });
    }
    let worker = worker.start().await?;
    let submitted = submit(options, &client, &queue, began).await?;
    let give_up = Instant::now() + options.time + options.warmup;
    while ended.lock().expect("not poisoned").len() < submitted {
        ensure!(Instant::now() < give_up, "tasks of queue {queue} do not end");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    worker.shutdown().await?;
    let mut ended = ended.lock().expect("not poisoned");
    ended.retain(|task| task.submitted >= options.warmup);
    report(policy, &ended)
}

async fn work(
    task: &taskmaster_client::Context,
    began: Instant,
    ended: &Mutex<Vec<Ended>>,
) -> Result<Vec<u8>, TaskError> {
    let text = String::from_utf8_lossy(task.payload()).into_owned();
    let fields: Vec<u64> = text.split(' ').filter_map(|field| field.parse().ok()).collect();
    let [kind, run_ms, fails_first, submitted_us] = fields[..] else {
        return Err(TaskError::new("bench", "a payload of another benchmark"));
    };
    if fails_first == 1 && task.attempt() == 1 {
        return Err(TaskError::new("flaky", "the first attempt fails"));
    }
    tokio::time::sleep(Duration::from_millis(run_ms)).await;
    let submitted = Duration::from_micros(submitted_us);
    let total_ms = (began.elapsed() - submitted).as_secs_f64() * 1e3;
    #[expect(clippy::cast_precision_loss, reason = "a run time")]
    let run_ms = run_ms as f64;
    let kind = usize::try_from(kind).unwrap_or(0).min(KINDS.len() - 1);
    ended.lock().expect("not poisoned").push(Ended { kind, submitted, run_ms, total_ms });
    Ok(Vec::new())
}

/// Submits tasks as they arrive; how many.
async fn submit(options: &OrderOptions, client: &Client, queue: &str, began: Instant) -> Result<usize> {
    let per_s = f64::from(options.places) * options.load * 1e3 / MEAN_MS;
    let (mut dice, mut next, mut count) = (Dice(11), Duration::ZERO, 0);
    let mut tick = tokio::time::interval(TICK);
    while began.elapsed() < options.warmup + options.time {
        tick.tick().await;
        let mut due = Vec::new();
        while next <= began.elapsed() {
            let Drawn { kind, run_ms, fails_first } = dice.draw();
            let payload = format!("{kind} {run_ms} {} {}", u8::from(fails_first), next.as_micros());
            let retries = Retries::attempts(3).backoff(Duration::from_millis(10));
            let task = Task::new(KINDS[kind]).queue(queue.to_owned()).payload(payload).retries(retries);
            due.push(task.retention(Duration::from_secs(1)));
            next += Duration::from_secs_f64(-(1.0 - dice.part()).ln() / per_s);
        }
        count += due.len();
        if !due.is_empty() {
            client.submit_many(due).await?;
        }
    }
    Ok(count)
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0u32), |(sum, count), value| (sum + value, count + 1));
    sum / f64::from(count.max(1))
}

fn report(policy: Policy, ended: &[Ended]) -> Result<PolicyReport> {
    ensure!(!ended.is_empty(), "nothing ended in the time measured");
    let slowdown = |task: &Ended| (task.total_ms / task.run_ms.max(FLOOR_MS)).max(1.0);
    let mut waits: Vec<f64> = ended.iter().map(|task| (task.total_ms - task.run_ms).max(0.0)).collect();
    waits.sort_by(f64::total_cmp);
    let at = |percent: usize| waits[(waits.len() - 1) * percent / 100];
    let of_kind = |kind| mean(ended.iter().filter(|task| task.kind == kind).map(slowdown));
    Ok(PolicyReport {
        policy: policy.name(),
        tasks: ended.len(),
        mean_slowdown: mean(ended.iter().map(slowdown)),
        mean_slowdown_by_kind: [0, 1, 2, 3].map(of_kind),
        wait_p50_ms: at(50),
        wait_p99_ms: at(99),
        wait_max_ms: at(100),
    })
}

impl fmt::Display for OrderReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let load = self.load * 100.0;
        writeln!(f, "{} places at {load:.0} % load; bounded slowdowns, waits in milliseconds\n", self.places)?;
        write!(f, "  {:<10}{:>8}{:>10}{:>8}", "policy", "tasks", "slowdown", "gain")?;
        KINDS.iter().try_for_each(|kind| write!(f, "{kind:>10}"))?;
        write!(f, "{:>10}{:>10}{:>10}", "wait p50", "p99", "max")?;
        let plain = self.policies.first().map_or(1.0, |report| report.mean_slowdown);
        for report in &self.policies {
            let gain = plain / report.mean_slowdown;
            write!(f, "\n  {:<10}{:>8}{:>10.2}{gain:>8.2}", report.policy, report.tasks, report.mean_slowdown)?;
            report.mean_slowdown_by_kind.iter().try_for_each(|slowdown| write!(f, "{slowdown:>10.2}"))?;
            write!(f, "{:>10.1}{:>10.1}{:>10.1}", report.wait_p50_ms, report.wait_p99_ms, report.wait_max_ms)?;
        }
        Ok(())
    }
}

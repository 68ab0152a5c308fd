//! What second attempts do to stragglers: the same load with speculation and without, on real workers, in turns.
//!
//! Tasks of one kind arrive at random times at a part of what the workers can do, and run for [`RUN_MS`], a little more or less. Two of a
//! hundred attempts, whichever task they are of, run for twenty times as long: a slow machine, not a large task. A handler sleeps for as
//! long, so that the machine is not what is measured. A task's slowdown is the time from its submission to its end over [`RUN_MS`].

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use taskmaster_client::{Client, QueueSettings, Task, Worker};

use crate::options::NodeInfo;

/// How long most attempts run, in milliseconds.
const RUN_MS: u64 = 100;
/// One attempt of so many is a straggler, and runs for so many times as long.
const STRAGGLERS: u64 = 50;
const TIMES: u64 = 20;
/// Between two submissions.
const TICK: Duration = Duration::from_millis(5);
/// Workers that the places are divided among: a second attempt begins on another worker.
const WORKERS: u32 = 4;
/// Turns of each of the two.
const TURNS: usize = 3;

/// What to measure.
#[derive(Clone, Debug)]
pub struct StragglerOptions {
    /// Tasks at once.
    pub places: u32,
    /// Part of what the workers can do that arrives.
    pub load: f64,
    /// Load before each measurement, in which run times are learned.
    pub warmup: Duration,
    /// Time to measure for, in each turn.
    pub time: Duration,
}

/// All turns with speculation, or without.
#[derive(Clone, Debug, Serialize)]
pub struct StragglerCase {
    /// Whether second attempts began.
    pub speculation: bool,
    /// Tasks that ended, of the time measured.
    pub tasks: usize,
    /// Attempts that ran.
    pub attempts: u64,
    /// Mean slowdown.
    pub mean_slowdown: f64,
    /// In one of two cases no more.
    pub slowdown_p50: f64,
    /// In 99 of 100 cases no more.
    pub slowdown_p99: f64,
    /// The highest.
    pub slowdown_max: f64,
    /// Second attempts that began, and tasks that they ended.
    pub second_attempts: u64,
    /// The latter.
    pub second_attempts_won: u64,
    /// What attempts ran for that another one overtook, in parts of what the places could do.
    pub wasted: f64,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct StragglerReport {
    /// Tasks at once.
    pub places: u32,
    /// Part of what the workers can do that arrived.
    pub load: f64,
    /// Without speculation, and with it.
    pub cases: [StragglerCase; 2],
}

/// A source of chance.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    /// From 0 to below 1.
    fn part(&mut self) -> f64 {
        f64::from(u32::try_from(self.roll()).unwrap_or(0)) / f64::from(1u32 << 31)
    }

    /// How long an attempt runs, in milliseconds.
    fn run_ms(&mut self) -> u64 {
        let usual = RUN_MS * 9 / 10 + self.roll() % (RUN_MS / 5);
        if self.roll().is_multiple_of(STRAGGLERS) { usual * TIMES } else { usual }
    }
}

/// What one turn came to.
#[derive(Default)]
struct Turn {
    slowdowns: Vec<f64>,
    attempts: u64,
    seconds: u64,
    won: u64,
    wasted_us: u64,
    took: Duration,
}

/// Runs the load in turns, with speculation and without, against a node.
///
/// # Errors
/// When the node cannot be reached, or refuses, or does not end what it took.
pub fn run(options: &StragglerOptions, node: &NodeInfo) -> Result<StragglerReport> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut turns: [Vec<Turn>; 2] = [Vec::new(), Vec::new()];
    for number in 0..TURNS {
        for (speculation, turns) in [false, true].into_iter().zip(&mut turns) {
            turns.push(runtime.block_on(measure(options, node, speculation, number))?);
        }
    }
    let [without, with] = turns;
    let cases = [case(options, false, &without)?, case(options, true, &with)?];
    Ok(StragglerReport { places: options.places, load: options.load, cases })
}

/// Counters of the node about second attempts: begun, won, time wasted in microseconds.
async fn counters(client: &Client) -> Result<[u64; 3]> {
    let stats = client.stats().await?;
    let sum = |wanted: &str| {
        let counters = stats.iter().flat_map(|shard| &shard.counters).filter(|(name, _)| name == wanted);
        counters.map(|(_, value)| value).sum()
    };
    Ok(["second_attempts", "second_attempts_won", "wasted_attempt_us"].map(sum))
}

async fn measure(options: &StragglerOptions, node: &NodeInfo, speculation: bool, number: usize) -> Result<Turn> {
    let client = Client::connect(node.addr.as_str()).await.context("connecting")?;
    let queue = format!("bench-stragglers-{speculation}");
    client.configure_queue(&queue, QueueSettings::new().speculation(speculation)).await?;
    let (began, before) = (Instant::now(), counters(&client).await?);
    let turn = Arc::new(Mutex::new((Turn::default(), Dice(77 + number as u64))));
    let mut workers = Vec::new();
    for _ in 0..WORKERS {
        let turn = Arc::clone(&turn);
        let worker = Worker::builder(&client).queue(&queue).concurrency(options.places.div_ceil(WORKERS));
        let worker = worker.handler("straggler", move |_task| {
            let turn = Arc::clone(&turn);
            async move {
                let run_ms = {
                    let (turn, dice) = &mut *turn.lock().expect("not poisoned");
                    turn.attempts += 1;
                    dice.run_ms()
                };
                tokio::time::sleep(Duration::from_millis(run_ms)).await;
                Ok::<_, taskmaster_client::TaskError>(Vec::<u8>::new())
            }
        });
        workers.push(worker.start().await?);
    }
    let waits = submit(options, &client, &queue, began, number as u64).await?;
    let took = began.elapsed();
    let slowdowns = ended(waits, options.warmup, Duration::from_secs(60)).await?;
    for worker in workers {
        worker.shutdown().await?;
    }
    let after = counters(&client).await?;
    let mut turn = turn.lock().expect("not poisoned");
    let (seconds, won, wasted_us) = (after[0] - before[0], after[1] - before[1], after[2] - before[2]);
    Ok(Turn { slowdowns, seconds, won, wasted_us, took, ..core::mem::take(&mut turn.0) })
}

/// Tasks that were submitted: when, and a task that waits for the end.
type Waits = Vec<(Duration, tokio::task::JoinHandle<Result<Duration>>)>;

/// Submits tasks as they arrive, and waits for each of them.
async fn submit(options: &StragglerOptions, client: &Client, queue: &str, began: Instant, seed: u64) -> Result<Waits> {
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let mean_ms = RUN_MS as f64 * (1.0 + (TIMES - 1) as f64 / STRAGGLERS as f64);
    let per_s = f64::from(options.places) * options.load * 1e3 / mean_ms;
    let (mut dice, mut next, mut waits) = (Dice(11 + seed), Duration::ZERO, Vec::new());
    let mut tick = tokio::time::interval(TICK);
    while began.elapsed() < options.warmup + options.time {
        tick.tick().await;
        while next <= began.elapsed() {
            let task =
                Task::new("straggler").queue(queue.to_owned()).restartable(true).retention(Duration::from_secs(5));
            let (client, due) = (client.clone(), next);
            let wait = async move {
                let outcome = client.submit(task).await?;
                client.result(outcome.id).await?;
                Ok(began.elapsed() - due)
            };
            waits.push((due, tokio::spawn(wait)));
            next += Duration::from_secs_f64(-(1.0 - dice.part()).ln() / per_s);
        }
    }
    Ok(waits)
}

/// Slowdowns of all that were submitted after the warmup.
async fn ended(waits: Waits, warmup: Duration, longest: Duration) -> Result<Vec<f64>> {
    let give_up = tokio::time::Instant::now() + longest;
    let mut slowdowns = Vec::new();
    for (due, wait) in waits {
        let total = tokio::time::timeout_at(give_up, wait).await.context("tasks do not end")???;
        if due >= warmup {
            slowdowns.push(total.as_secs_f64() * 1e3 / Duration::from_millis(RUN_MS).as_secs_f64() / 1e3);
        }
    }
    Ok(slowdowns)
}

#[expect(clippy::cast_precision_loss, reason = "a report")]
fn case(options: &StragglerOptions, speculation: bool, turns: &[Turn]) -> Result<StragglerCase> {
    let mut slowdowns: Vec<f64> = turns.iter().flat_map(|turn| turn.slowdowns.iter().copied()).collect();
    ensure!(!slowdowns.is_empty(), "nothing ended in the time measured");
    slowdowns.sort_by(f64::total_cmp);
    let at = |percent: usize| slowdowns[(slowdowns.len() - 1) * percent / 100];
    let could_us: f64 = turns.iter().map(|turn| turn.took.as_secs_f64() * 1e6 * f64::from(options.places)).sum();
    Ok(StragglerCase {
        speculation,
        tasks: slowdowns.len(),
        attempts: turns.iter().map(|turn| turn.attempts).sum(),
        mean_slowdown: slowdowns.iter().sum::<f64>() / slowdowns.len() as f64,
        slowdown_p50: at(50),
        slowdown_p99: at(99),
        slowdown_max: at(100),
        second_attempts: turns.iter().map(|turn| turn.seconds).sum(),
        second_attempts_won: turns.iter().map(|turn| turn.won).sum(),
        wasted: turns.iter().map(|turn| turn.wasted_us as f64).sum::<f64>() / could_us,
    })
}

impl fmt::Display for StragglerReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let load = self.load * 100.0;
        writeln!(
            f,
            "{} places at {load:.0} % load; {RUN_MS} ms, one attempt of {STRAGGLERS} {TIMES} times that; slowdowns\n",
            self.places
        )?;
        write!(f, "  {:<14}{:>8}{:>10}", "speculation", "tasks", "attempts")?;
        write!(f, "{:>8}{:>8}{:>8}{:>8}{:>9}{:>6}{:>9}", "mean", "p50", "p99", "max", "seconds", "won", "wasted")?;
        for case in &self.cases {
            let name = if case.speculation { "on" } else { "off" };
            write!(f, "\n  {name:<14}{:>8}{:>10}{:>8.2}", case.tasks, case.attempts, case.mean_slowdown)?;
            write!(f, "{:>8.2}{:>8.2}{:>8.2}", case.slowdown_p50, case.slowdown_p99, case.slowdown_max)?;
            let wasted = format!("{:.1} %", case.wasted * 100.0);
            write!(f, "{:>9}{:>6}{wasted:>9}", case.second_attempts, case.second_attempts_won)?;
        }
        Ok(())
    }
}

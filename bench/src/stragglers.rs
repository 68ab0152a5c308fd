//! What is done to attempts of restartable tasks: the same load with it and without, on real workers, in turns.
//!
//! Tasks of one kind arrive at random times at a part of what the workers can do, and some run for much longer than the others, which nothing
//! tells beforehand. A handler sleeps for as long, so that the machine is not what is measured. A task's slowdown is the time from its
//! submission to its end over what it runs for, or over [`Load::run_ms`] where that is an attempt's bad luck.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde::Serialize;
use taskmaster_client::{Client, QueueSettings, Task, Worker};

use crate::arrivals::{Arrivals, Dice, Slowdowns, counters, in_turns};
use crate::options::NodeInfo;

/// What is switched on and off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Measured {
    /// Second attempts. Two of a hundred attempts, whichever task they are of, are slow: a slow machine, not a large task.
    Speculation,
    /// Giving up. One task in ten is long, whichever attempt it is.
    GivingUp,
}

/// How long things run.
struct Load {
    /// Most of them, in milliseconds, a little more or less.
    run_ms: u64,
    /// One in so many runs for so many times as long.
    one_in: u64,
    times: u64,
}

impl Measured {
    const fn load(self) -> Load {
        match self {
            Self::Speculation => Load { run_ms: 100, one_in: 50, times: 20 },
            Self::GivingUp => Load { run_ms: 20, one_in: 10, times: 150 },
        }
    }

    /// The settings of a queue with it, or without.
    fn settings(self, on: bool) -> QueueSettings {
        match self {
            Self::Speculation => QueueSettings::new().speculation(on),
            Self::GivingUp => QueueSettings::new().speculation(false).giving_up(on),
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Speculation => "speculation",
            Self::GivingUp => "giving up",
        }
    }
}

impl Load {
    /// How long something runs, in milliseconds.
    fn draw_ms(&self, dice: &mut Dice) -> u64 {
        let usual = self.run_ms * 9 / 10 + dice.roll() % (self.run_ms / 5);
        if dice.roll().is_multiple_of(self.one_in) { usual * self.times } else { usual }
    }

    #[expect(clippy::cast_precision_loss, reason = "a mean")]
    fn mean_ms(&self) -> f64 {
        self.run_ms as f64 * (1.0 + (self.times - 1) as f64 / self.one_in as f64)
    }
}

/// Workers that the places are divided among: a second attempt begins on another worker.
const WORKERS: u32 = 4;
/// Second attempts begun and won, attempts given up, and time wasted in microseconds.
const COUNTERS: [&str; 4] = ["second_attempts", "second_attempts_won", "given_up_attempts", "wasted_attempt_us"];

/// What to measure.
#[derive(Clone, Debug)]
pub struct StragglerOptions {
    /// What is switched on and off.
    pub measured: Measured,
    /// Tasks at once.
    pub places: u32,
    /// Part of what the workers can do that arrives.
    pub load: f64,
    /// Load before each measurement, in which run times are learned.
    pub warmup: Duration,
    /// Time to measure for, in each turn.
    pub time: Duration,
}

/// All turns with it, or without.
#[derive(Clone, Debug, Serialize)]
pub struct StragglerCase {
    /// Whether it was switched on.
    pub on: bool,
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
    /// Attempts that were given up.
    pub given_up_attempts: u64,
    /// What attempts ran for that were ended so, or that another one overtook, in parts of what the places could do.
    pub wasted: f64,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct StragglerReport {
    /// What was switched on and off.
    pub measured: Measured,
    /// Tasks at once.
    pub places: u32,
    /// Part of what the workers can do that arrived.
    pub load: f64,
    /// Without it, and with it.
    pub cases: [StragglerCase; 2],
}

/// What one turn came to.
#[derive(Default)]
struct Turn {
    slowdowns: Vec<f64>,
    attempts: u64,
    seconds: u64,
    won: u64,
    given_up: u64,
    wasted_us: u64,
    took: Duration,
}

/// Runs the load in turns, with what is measured and without, against a node.
///
/// # Errors
/// When the node cannot be reached, or refuses, or does not end what it took.
pub fn run(options: &StragglerOptions, node: &NodeInfo) -> Result<StragglerReport> {
    let [without, with] = in_turns(async |on, number| measure(options, node, on, number).await)?;
    let cases = [case(options, false, &without)?, case(options, true, &with)?];
    Ok(StragglerReport { measured: options.measured, places: options.places, load: options.load, cases })
}

async fn measure(options: &StragglerOptions, node: &NodeInfo, on: bool, number: usize) -> Result<Turn> {
    let client = Client::connect(node.addr.as_str()).await.context("connecting")?;
    let measured = options.measured;
    let queue = format!("bench-{}-{on}", measured.name().replace(' ', "-"));
    client.configure_queue(&queue, measured.settings(on)).await?;
    let (began, before) = (Instant::now(), counters(&client, COUNTERS).await?);
    let turn = Arc::new(Mutex::new((Turn::default(), Dice(77 + number as u64))));
    let mut workers = Vec::new();
    for _ in 0..WORKERS {
        let turn = Arc::clone(&turn);
        let worker = Worker::builder(&client).queue(&queue).concurrency(options.places.div_ceil(WORKERS));
        let worker = worker.handler("straggler", move |task| {
            let turn = Arc::clone(&turn);
            async move {
                let own = <[u8; 8]>::try_from(task.payload()).map(u64::from_le_bytes);
                let run_ms = {
                    let (turn, dice) = &mut *turn.lock().expect("not poisoned");
                    turn.attempts += 1;
                    own.unwrap_or_else(|_| measured.load().draw_ms(dice))
                };
                tokio::time::sleep(Duration::from_millis(run_ms)).await;
                Ok::<_, taskmaster_client::TaskError>(Vec::<u8>::new())
            }
        });
        workers.push(worker.start().await?);
    }
    let load = measured.load();
    let per_s = f64::from(options.places) * options.load * 1e3 / load.mean_ms();
    let arrivals = Arrivals { per_s, warmup: options.warmup, time: options.time, seed: number as u64 };
    let draw = |dice: &mut Dice| {
        let mut task = Task::new("straggler").queue(queue.clone()).restartable(true).retention(Duration::from_secs(5));
        let mut run_ms = load.run_ms;
        if measured == Measured::GivingUp {
            run_ms = load.draw_ms(dice);
            task = task.payload(run_ms.to_le_bytes().to_vec());
        }
        (task, Duration::from_millis(run_ms))
    };
    let waits = arrivals.submit(&client, began, draw).await;
    let took = began.elapsed();
    let slowdowns = waits.ended().await?;
    for worker in workers {
        worker.shutdown().await?;
    }
    let after = counters(&client, COUNTERS).await?;
    let mut turn = turn.lock().expect("not poisoned");
    let of = |counter: usize| after[counter] - before[counter];
    let (seconds, won, given_up, wasted_us) = (of(0), of(1), of(2), of(3));
    Ok(Turn { slowdowns, seconds, won, given_up, wasted_us, took, ..core::mem::take(&mut turn.0) })
}

#[expect(clippy::cast_precision_loss, reason = "a report")]
fn case(options: &StragglerOptions, on: bool, turns: &[Turn]) -> Result<StragglerCase> {
    let slowdowns = Slowdowns::of(turns.iter().flat_map(|turn| turn.slowdowns.iter().copied()))?;
    let could_us: f64 = turns.iter().map(|turn| turn.took.as_secs_f64() * 1e6 * f64::from(options.places)).sum();
    Ok(StragglerCase {
        on,
        tasks: slowdowns.tasks,
        attempts: turns.iter().map(|turn| turn.attempts).sum(),
        mean_slowdown: slowdowns.mean,
        slowdown_p50: slowdowns.p50,
        slowdown_p99: slowdowns.p99,
        slowdown_max: slowdowns.max,
        second_attempts: turns.iter().map(|turn| turn.seconds).sum(),
        second_attempts_won: turns.iter().map(|turn| turn.won).sum(),
        given_up_attempts: turns.iter().map(|turn| turn.given_up).sum(),
        wasted: turns.iter().map(|turn| turn.wasted_us as f64).sum::<f64>() / could_us,
    })
}

impl fmt::Display for StragglerReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let load = self.load * 100.0;
        let Load { run_ms, one_in, times } = self.measured.load();
        let which = if self.measured == Measured::Speculation { "attempt" } else { "task" };
        writeln!(
            f,
            "{} places at {load:.0} % load; {run_ms} ms, one {which} of {one_in} {times} times that; slowdowns\n",
            self.places
        )?;
        write!(f, "  {:<14}{:>8}{:>10}", self.measured.name(), "tasks", "attempts")?;
        write!(f, "{:>8}{:>8}{:>8}{:>8}{:>9}{:>6}", "mean", "p50", "p99", "max", "seconds", "won")?;
        write!(f, "{:>10}{:>9}", "given up", "wasted")?;
        for case in &self.cases {
            let name = if case.on { "on" } else { "off" };
            write!(f, "\n  {name:<14}{:>8}{:>10}{:>8.2}", case.tasks, case.attempts, case.mean_slowdown)?;
            write!(f, "{:>8.2}{:>8.2}{:>8.2}", case.slowdown_p50, case.slowdown_p99, case.slowdown_max)?;
            let wasted = format!("{:.1} %", case.wasted * 100.0);
            write!(f, "{:>9}{:>6}", case.second_attempts, case.second_attempts_won)?;
            write!(f, "{:>10}{wasted:>9}", case.given_up_attempts)?;
        }
        Ok(())
    }
}

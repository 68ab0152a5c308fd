//! What it brings to keep tasks apart that slow each other down: the same load with that and without, on real workers, in turns.
//!
//! Half of the time that tasks ask for is asked for by `hog`s, which run at [`SPEED`] beside each other, and half by `light` ones, which neither
//! suffer nor disturb. Each worker stands for a machine: its handlers sleep until they have done their work at the speed that those running
//! beside them leave, so that the machine of the benchmark is not what is measured, and say so as a worker with cgroups would. A task's
//! slowdown is the time from its submission to its end over what it takes alone.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde::Serialize;
use taskmaster_client::{Client, Context, QueueSettings, Task, TaskError, Used, Worker};

use crate::arrivals::{Arrivals, Dice, Slowdowns, counters, in_turns};
use crate::options::NodeInfo;

/// Kinds, and how long their tasks take alone.
const KINDS: [(&str, Duration); 2] = [("hog", Duration::from_millis(400)), ("light", Duration::from_millis(200))];
/// Speed of a hog beside another one.
const SPEED: f64 = 0.5;
/// Between two looks of a handler.
const STEP: Duration = Duration::from_millis(5);
const WORKERS: u32 = 4;
/// Tasks held, and contended.
const COUNTERS: [&str; 2] = ["held_tasks", "contended_tasks"];

/// What to measure.
#[derive(Clone, Debug)]
pub struct ContentionOptions {
    /// Tasks at once.
    pub places: u32,
    /// Part of the places that would be in use if no task slowed another one down.
    pub load: f64,
    /// Load before each measurement, in which pairs are learned.
    pub warmup: Duration,
    /// Time to measure for, in each turn.
    pub time: Duration,
}

/// All turns with tasks kept apart, or not.
#[derive(Clone, Debug, Serialize)]
pub struct ContentionCase {
    /// Whether tasks were kept apart.
    pub contention: bool,
    /// Tasks that ended, of the time measured.
    pub tasks: usize,
    /// Mean slowdown.
    pub mean_slowdown: f64,
    /// In one of two cases no more.
    pub slowdown_p50: f64,
    /// In 99 of 100 cases no more.
    pub slowdown_p99: f64,
    /// The highest.
    pub slowdown_max: f64,
    /// Mean speed of the hogs while they ran.
    pub hog_speed: f64,
    /// Tasks that were held, and those that started where they are slowed down all the same.
    pub held: u64,
    /// The latter.
    pub contended: u64,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct ContentionReport {
    /// Tasks at once.
    pub places: u32,
    /// Part of the places that would be in use if no task slowed another one down.
    pub load: f64,
    /// Without it, and with it.
    pub cases: [ContentionCase; 2],
}

/// What one turn came to.
#[derive(Default)]
struct Turn {
    slowdowns: Vec<f64>,
    /// Time of hogs, alone and in truth.
    alone: Duration,
    ran: Duration,
    held: u64,
    contended: u64,
}

/// Runs the load in turns, with tasks kept apart and not, against a node.
///
/// # Errors
/// When the node cannot be reached, or refuses, or does not end what it took.
pub fn run(options: &ContentionOptions, node: &NodeInfo) -> Result<ContentionReport> {
    let turn = async |contention, number| measure(options, node, contention, number).await;
    let [without, with] = in_turns(turn)?;
    let cases = [case(false, &without)?, case(true, &with)?];
    Ok(ContentionReport { places: options.places, load: options.load, cases })
}

/// A worker of its own machine.
async fn machine(node: &NodeInfo, queue: &str, places: u32, turn: &Arc<Mutex<Turn>>) -> Result<Worker> {
    let client = Client::connect(node.addr.as_str()).await.context("connecting")?;
    let hogs = Arc::new(Mutex::new(0_i32));
    let mut worker = Worker::builder(&client).queue(queue).concurrency(places).prefetch(0);
    for (kind, alone) in KINDS {
        let (hogs, turn) = (Arc::clone(&hogs), Arc::clone(turn));
        worker = worker.handler(kind, move |task| {
            let (hogs, turn) = (Arc::clone(&hogs), Arc::clone(&turn));
            async move { Ok::<_, TaskError>(work(&task, alone, &hogs, &turn).await) }
        });
    }
    Ok(worker.start().await?)
}

/// Works at the speed that others leave, and says what it came to.
async fn work(task: &Context, alone: Duration, hogs: &Mutex<i32>, turn: &Mutex<Turn>) -> Vec<u8> {
    let is_hog = i32::from(task.kind() == "hog");
    let (measure, began) = (task.measure(), Instant::now());
    let others = |change: i32| {
        let mut hogs = hogs.lock().expect("not poisoned");
        *hogs += change;
        *hogs - is_hog
    };
    others(is_hog);
    let (mut left, mut last) = (alone.as_secs_f64(), began);
    while left > 0.0 {
        tokio::time::sleep(STEP.min(Duration::from_secs_f64(left))).await;
        let now = Instant::now();
        let speed = if is_hog == 1 { SPEED.powi(others(0)) } else { 1.0 };
        left -= speed * (now - last).as_secs_f64();
        last = now;
    }
    others(-is_hog);
    let ran = began.elapsed();
    if is_hog == 1 {
        let mut turn = turn.lock().expect("not poisoned");
        (turn.alone, turn.ran) = (turn.alone + alone, turn.ran + ran);
    }
    let stalls = Some([ran.saturating_sub(alone), Duration::ZERO, Duration::ZERO]);
    let cpu = Some(alone.min(ran) * u32::from(is_hog == 1));
    measure.ended(Used { cpu, stalls, is_whole: true, ..Used::default() });
    Vec::new()
}

async fn measure(options: &ContentionOptions, node: &NodeInfo, contention: bool, number: usize) -> Result<Turn> {
    let client = Client::connect(node.addr.as_str()).await.context("connecting")?;
    let queue = format!("bench-contention-{contention}-{number}");
    client.configure_queue(&queue, QueueSettings::new().contention(contention)).await?;
    let (began, before) = (Instant::now(), counters(&client, COUNTERS).await?);
    let turn = Arc::new(Mutex::new(Turn::default()));
    let mut workers = Vec::new();
    for _ in 0..WORKERS {
        workers.push(machine(node, &queue, options.places.div_ceil(WORKERS), &turn).await?);
    }
    // As many light ones as ask for as much time as the hogs.
    let hogs = KINDS[1].1.as_secs_f64() / (KINDS[0].1.as_secs_f64() + KINDS[1].1.as_secs_f64());
    let mean = hogs * KINDS[0].1.as_secs_f64() + (1.0 - hogs) * KINDS[1].1.as_secs_f64();
    let per_s = f64::from(options.places) * options.load / mean;
    let arrivals = Arrivals { per_s, warmup: options.warmup, time: options.time, seed: number as u64 };
    let draw = |dice: &mut Dice| {
        let (kind, alone) = KINDS[usize::from(dice.part() >= hogs)];
        (Task::new(kind).queue(queue.clone()).retention(Duration::from_secs(5)), alone)
    };
    let slowdowns = arrivals.submit(&client, began, draw).await.ended().await?;
    for worker in workers {
        worker.shutdown().await?;
    }
    let after = counters(&client, COUNTERS).await?;
    let mut turn = turn.lock().expect("not poisoned");
    let (held, contended) = (after[0] - before[0], after[1] - before[1]);
    Ok(Turn { slowdowns, held, contended, ..core::mem::take(&mut *turn) })
}

fn case(contention: bool, turns: &[Turn]) -> Result<ContentionCase> {
    let slowdowns = Slowdowns::of(turns.iter().flat_map(|turn| turn.slowdowns.iter().copied()))?;
    let sum = |of: fn(&Turn) -> Duration| turns.iter().map(of).sum::<Duration>().as_secs_f64();
    Ok(ContentionCase {
        contention,
        tasks: slowdowns.tasks,
        mean_slowdown: slowdowns.mean,
        slowdown_p50: slowdowns.p50,
        slowdown_p99: slowdowns.p99,
        slowdown_max: slowdowns.max,
        hog_speed: sum(|turn| turn.alone) / sum(|turn| turn.ran),
        held: turns.iter().map(|turn| turn.held).sum(),
        contended: turns.iter().map(|turn| turn.contended).sum(),
    })
}

impl fmt::Display for ContentionReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let load = self.load * 100.0;
        writeln!(
            f,
            "{} places of {WORKERS} workers at {load:.0} % load; half of it hogs, at {SPEED} of their speed beside each other; slowdowns\n",
            self.places
        )?;
        write!(f, "  {:<12}{:>8}{:>8}{:>8}{:>8}{:>8}", "contention", "tasks", "mean", "p50", "p99", "max")?;
        write!(f, "{:>11}{:>8}{:>11}", "hog speed", "held", "contended")?;
        for case in &self.cases {
            let name = if case.contention { "on" } else { "off" };
            write!(f, "\n  {name:<12}{:>8}{:>8.2}{:>8.2}", case.tasks, case.mean_slowdown, case.slowdown_p50)?;
            write!(f, "{:>8.2}{:>8.2}{:>11.2}", case.slowdown_p99, case.slowdown_max, case.hog_speed)?;
            write!(f, "{:>8}{:>11}", case.held, case.contended)?;
        }
        Ok(())
    }
}

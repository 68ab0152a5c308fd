//! Tasks that arrive at random times, with something switched on and without, in turns: how much longer than alone each took to end.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use taskmaster_client::{Client, Task};

/// Between two submissions.
const TICK: Duration = Duration::from_millis(5);
/// Turns of each of the two.
const TURNS: usize = 3;
/// Longest wait for tasks behind the last submission.
const END_MAX: Duration = Duration::from_secs(60);

/// A source of chance.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    /// From 0 to below 1.
    pub(crate) fn part(&mut self) -> f64 {
        f64::from(u32::try_from(self.roll()).unwrap_or(0)) / f64::from(1u32 << 31)
    }
}

/// Measures in turns, with what is measured off and on: all turns without it, and all with it.
pub(crate) fn in_turns<T>(mut measure: impl AsyncFnMut(bool, usize) -> Result<T>) -> Result<[Vec<T>; 2]> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut turns = [Vec::new(), Vec::new()];
    for number in 0..TURNS {
        for (on, turns) in [false, true].into_iter().zip(&mut turns) {
            turns.push(runtime.block_on(measure(on, number))?);
        }
    }
    Ok(turns)
}

/// Counters of a node, over its shards.
pub(crate) async fn counters<const N: usize>(client: &Client, names: [&str; N]) -> Result<[u64; N]> {
    let stats = client.stats().await?;
    let sum = |wanted: &str| {
        let counters = stats.iter().flat_map(|shard| &shard.counters).filter(|(name, _)| name == wanted);
        counters.map(|(_, value)| value).sum()
    };
    Ok(names.map(sum))
}

/// What arrives.
pub(crate) struct Arrivals {
    /// Tasks a second.
    pub(crate) per_s: f64,
    /// Time in which what arrives is not measured, and behind it the time in which it is.
    pub(crate) warmup: Duration,
    pub(crate) time: Duration,
    /// Another number, other times.
    pub(crate) seed: u64,
}

/// Tasks that were submitted: when, how long they take alone, and a task that waits for the end.
pub(crate) struct Waits {
    warmup: Duration,
    of: Vec<(Duration, Duration, tokio::task::JoinHandle<Result<Duration>>)>,
}

impl Arrivals {
    /// Submits tasks as they arrive, from `began` on, and waits for each of them. `draw` says which task is next, and how long it takes alone.
    pub(crate) async fn submit(
        &self,
        client: &Client,
        began: Instant,
        mut draw: impl FnMut(&mut Dice) -> (Task, Duration),
    ) -> Waits {
        let (mut dice, mut next, mut of) = (Dice(11 + self.seed), Duration::ZERO, Vec::new());
        let mut tick = tokio::time::interval(TICK);
        while began.elapsed() < self.warmup + self.time {
            tick.tick().await;
            while next <= began.elapsed() {
                let (task, alone) = draw(&mut dice);
                let (client, due) = (client.clone(), next);
                let wait = async move {
                    let outcome = client.submit(task).await?;
                    client.result(outcome.id).await?;
                    Ok(began.elapsed() - due)
                };
                of.push((due, alone, tokio::spawn(wait)));
                next += Duration::from_secs_f64(-(1.0 - dice.part()).ln() / self.per_s);
            }
        }
        Waits { warmup: self.warmup, of }
    }
}

impl Waits {
    /// Slowdowns of all that were submitted after the warmup.
    pub(crate) async fn ended(self) -> Result<Vec<f64>> {
        let give_up = tokio::time::Instant::now() + END_MAX;
        let mut slowdowns = Vec::new();
        for (due, alone, wait) in self.of {
            let total = tokio::time::timeout_at(give_up, wait).await.context("tasks do not end")???;
            if due >= self.warmup {
                slowdowns.push(total.as_secs_f64() / alone.as_secs_f64());
            }
        }
        Ok(slowdowns)
    }
}

/// What slowdowns come to.
pub(crate) struct Slowdowns {
    pub(crate) tasks: usize,
    pub(crate) mean: f64,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
}

impl Slowdowns {
    #[expect(clippy::cast_precision_loss, reason = "a report")]
    pub(crate) fn of(slowdowns: impl Iterator<Item = f64>) -> Result<Self> {
        let mut slowdowns: Vec<f64> = slowdowns.collect();
        ensure!(!slowdowns.is_empty(), "nothing ended in the time measured");
        slowdowns.sort_by(f64::total_cmp);
        let at = |percent: usize| slowdowns[(slowdowns.len() - 1) * percent / 100];
        let mean = slowdowns.iter().sum::<f64>() / slowdowns.len() as f64;
        Ok(Self { tasks: slowdowns.len(), mean, p50: at(50), p99: at(99), max: at(100) })
    }
}

//! What strikes were felt like.

use std::fmt;

use serde::Serialize;

use super::FailoverOptions;
use super::books::Account;
use crate::report::count;

/// Seconds of a day.
const DAY_S: f64 = 86_400.0;

/// One strike.
#[derive(Clone, Debug, Serialize)]
pub struct Round {
    /// The node that was struck.
    pub node: String,
    /// Partitions it led.
    pub led: u64,
    /// Longest time from a submission's intended time to its acknowledgement, over all clients, in milliseconds.
    pub gap_ms: f64,
    /// The intended time of that submission, in milliseconds after the strike.
    pub gap_at_ms: f64,
    /// Whether it was for a partition that the node led.
    pub gap_is_led: bool,
    /// For each partition the node led: from the strike to the first acknowledgement of what was submitted after it.
    pub partition_gaps_ms: Vec<f64>,
    /// Submissions still without an answer at the round's end, after more than a second.
    pub unanswered: u64,
    /// Longest delay of a submission by the generator itself.
    pub generator_late_ms_max: f64,
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let longest = self.partition_gaps_ms.iter().copied().fold(0.0, f64::max);
        write!(
            f,
            "{} led {:>3}: gap {:>6.0} ms (at {:>+6.0} ms, {}), of its partitions at most {:>6.0} ms{}{}",
            self.node,
            self.led,
            self.gap_ms,
            self.gap_at_ms,
            if self.gap_is_led { "led by it" } else { "led by others" },
            longest,
            if self.generator_late_ms_max > 50.0 {
                format!(" (generator late by {:.0} ms)", self.generator_late_ms_max)
            } else {
                String::new()
            },
            if self.unanswered > 0 { format!(", {} UNANSWERED", self.unanswered) } else { String::new() },
        )
    }
}

/// A distribution of gaps, in milliseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Gaps {
    /// Arithmetic mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 99th percentile: of 50 rounds the longest.
    pub p99: f64,
    /// Longest.
    pub max: f64,
}

impl Gaps {
    /// Of so many gaps; percentiles are of the nearest rank.
    fn of(mut gaps_ms: Vec<f64>) -> Self {
        if gaps_ms.is_empty() {
            return Self::default();
        }
        gaps_ms.sort_by(f64::total_cmp);
        let at = |permille: usize| gaps_ms[(gaps_ms.len() * permille / 1_000).min(gaps_ms.len() - 1)];
        Self {
            mean: gaps_ms.iter().sum::<f64>() / gaps_ms.len() as f64,
            p50: at(500),
            p90: at(900),
            p99: at(990),
            max: at(1_000),
        }
    }
}

/// The outcome of all rounds.
#[derive(Clone, Debug, Serialize)]
pub struct FailoverReport {
    /// Strikes.
    pub rounds: Vec<Round>,
    /// Longest gap of each round.
    pub gap_ms: Gaps,
    /// Gaps of single partitions that lost their leader.
    pub partition_gap_ms: Gaps,
    /// What is available with one such failure a day, in parts of one, by the mean of the longest gaps.
    pub availability: f64,
    /// Tasks acknowledged.
    pub acknowledged: u64,
    /// Tasks done.
    pub done: u64,
    /// Tasks acknowledged and never done.
    pub lost: u64,
    /// Tasks whose completion was taken twice.
    pub duplicated: u64,
    /// Submissions given up.
    pub failed: u64,
    /// Why.
    pub errors: Vec<String>,
    /// Answers of workers that came too late and were refused: their tasks ran again.
    pub stale: u64,
    /// Answers of workers that had been taken before, when they came again.
    pub repeated: u64,
    /// Time of the load, in seconds.
    pub elapsed_s: f64,
    /// Tasks per second that were asked for.
    pub rate_per_s: f64,
    /// Tasks per submission.
    pub batch: u32,
    /// Clients.
    pub clients: u32,
    /// CPU of the generator, clients and worker included, in parts of one core.
    pub generator_cores: f64,
}

impl FailoverReport {
    pub(super) fn new(options: &FailoverOptions, rounds: Vec<Round>, account: Account) -> Self {
        let gap_ms = Gaps::of(rounds.iter().map(|round| round.gap_ms).collect());
        let each = rounds.iter().flat_map(|round| round.partition_gaps_ms.iter().copied());
        Self {
            gap_ms,
            partition_gap_ms: Gaps::of(each.collect()),
            availability: 1.0 - gap_ms.mean / 1e3 / DAY_S,
            rounds,
            acknowledged: account.acknowledged,
            done: account.done,
            lost: account.lost,
            duplicated: account.duplicated,
            failed: account.failed,
            errors: account.errors,
            stale: account.stale,
            repeated: account.settled,
            elapsed_s: account.elapsed_s,
            rate_per_s: options.rate_per_s,
            batch: options.batch,
            clients: options.clients,
            generator_cores: account.generator_cpu_s / account.elapsed_s.max(1e-9),
        }
    }

    /// Whether nothing was lost, doubled or given up.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        self.lost == 0 && self.duplicated == 0 && self.failed == 0
    }
}

impl fmt::Display for FailoverReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rate_per_s, batch, clients, .. } = self;
        writeln!(
            f,
            "{} strikes in {:.0} s under {} tasks/s (batch {batch}, {clients} clients)\n",
            self.rounds.len(),
            self.elapsed_s,
            count(*rate_per_s)
        )?;
        writeln!(f, "  ms          {:>10}{:>10}{:>10}{:>10}{:>10}", "mean", "p50", "p90", "p99", "max")?;
        for (name, gaps) in [("longest gap", &self.gap_ms), ("partition", &self.partition_gap_ms)] {
            let [mean, p50, p90, p99, max] = [gaps.mean, gaps.p50, gaps.p90, gaps.p99, gaps.max].map(count);
            writeln!(f, "  {name:<12}{mean:>10}{p50:>10}{p90:>10}{p99:>10}{max:>10}")?;
        }
        writeln!(
            f,
            "\n  verified    {} acknowledged, {} lost, {} duplicated, {} submissions given up",
            count(self.acknowledged as f64),
            self.lost,
            self.duplicated,
            self.failed
        )?;
        for error in &self.errors {
            writeln!(f, "  error       {error}")?;
        }
        writeln!(f, "  workers     {} answers too late, {} arrived twice", self.stale, self.repeated)?;
        writeln!(f, "  generator   {:.2} cores", self.generator_cores)?;
        write!(
            f,
            "  available   {:.5} % with one such failure a day ({:.2} s)",
            self.availability * 100.0,
            self.gap_ms.mean / 1e3
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_rounds_themselves() {
        let gaps = Gaps::of((1..=50).map(f64::from).collect());
        assert_eq!((gaps.p50, gaps.p90, gaps.p99, gaps.max, gaps.mean), (26.0, 46.0, 50.0, 50.0, 25.5));
        assert_eq!(Gaps::of(Vec::new()).max, 0.0);
    }
}

//! Decides whether a candidate policy may be used: only while it is shown to be better than the plain one.
//!
//! A shadow simulation over recent completions gives, block by block, the cost of both policies. The gain of a block is
//! the logarithm of plain over candidate, clamped, so that no single block decides. The candidate is used while the
//! lower confidence bound of the mean gain is above zero, and dropped at once when the queue grows beyond what it was at
//! its worst under the plain policy, or when run times leave what was predicted.

/// Blocks that are looked back on.
const BLOCKS: usize = 32;
/// Blocks before a candidate may be used.
const BLOCKS_MIN: usize = 6;
/// Standard errors below the mean: a one-sided confidence of 95%.
const ERRORS: f64 = 1.645;
/// A block counts as a factor of e to this at most.
const GAIN_MAX: f64 = 2.0;
/// The queue may be so many times as long as at its longest in the blocks looked back on.
const GROWTH_MAX: f64 = 4.0;
/// Queues under this never count as grown.
const QUEUE_MIN: f64 = 64.0;
/// Part of run times over their 0.9 quantile that counts as drift.
const MISSED_MAX: f64 = 0.3;

/// What it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The candidate is better.
    Candidate,
    /// It is not known to be better.
    Plain,
    /// It was used, and was stopped: the queue has grown beyond bounds.
    Grown,
    /// It was used, and was stopped: its predictions do not hold.
    Drifted,
}

/// The guard of one queue.
#[derive(Clone, Debug, Default)]
pub struct Guard {
    gains: Vec<f64>,
    next: usize,
    longest: f64,
    missed: f64,
}

impl Guard {
    /// A block of the shadow simulation is done: the mean cost (slowdown) under both policies, and the longest queue
    /// under the plain one. What is no positive number is no gain.
    pub fn block(&mut self, plain: f64, candidate: f64, longest: usize) {
        let gain = (plain / candidate).ln();
        let gain = if gain.is_finite() { gain.clamp(-GAIN_MAX, GAIN_MAX) } else { -GAIN_MAX };
        if self.gains.len() < BLOCKS {
            self.gains.push(gain);
        } else {
            self.gains[self.next] = gain;
            self.next = (self.next + 1) % BLOCKS;
        }
        #[expect(clippy::cast_precision_loss, reason = "a length")]
        let longest = longest as f64;
        self.longest = (0.9 * self.longest).max(longest);
    }

    /// A task ended; whether it ran for longer than its predicted 0.9 quantile.
    pub fn completion(&mut self, missed: bool) {
        self.missed += 0.01 * (f64::from(u8::from(missed)) - self.missed);
    }

    /// Whether predictions do not hold any more.
    #[must_use]
    pub fn has_drifted(&self) -> bool {
        self.missed > MISSED_MAX
    }

    /// The mean gain, as a logarithm; 0 without blocks.
    #[must_use]
    pub fn mean(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "few blocks")]
        let count = self.gains.len().max(1) as f64;
        self.gains.iter().sum::<f64>() / count
    }

    /// The lower confidence bound of the mean gain, as a logarithm.
    #[must_use]
    pub fn lower_bound(&self) -> f64 {
        if self.gains.len() < BLOCKS_MIN {
            return f64::NEG_INFINITY;
        }
        #[expect(clippy::cast_precision_loss, reason = "few blocks")]
        let count = self.gains.len() as f64;
        let mean = self.mean();
        let variance = self.gains.iter().map(|gain| (gain - mean).powi(2)).sum::<f64>() / (count - 1.0);
        mean - ERRORS * (variance / count).sqrt()
    }

    /// Whether the candidate may order a queue of this length.
    #[must_use]
    pub fn verdict(&self, queue: usize) -> Verdict {
        #[expect(clippy::cast_precision_loss, reason = "a length")]
        let queue = queue as f64;
        if self.lower_bound() <= 0.0 {
            Verdict::Plain
        } else if queue > GROWTH_MAX * self.longest.max(QUEUE_MIN) {
            Verdict::Grown
        } else if self.has_drifted() {
            Verdict::Drifted
        } else {
            Verdict::Candidate
        }
    }
}

//! Budgeted first attempts: a restartable task that waits may start early for a short time; if it does not end, it is
//! ended and waits for its turn as before. Where run times are of two kinds (a job that fails at once, or runs for
//! hours), this finds the short ones that no prediction can.
//!
//! The waste is bounded: what attempts that did not end have used never exceeds `waste_max` of all that was used. The
//! budget is learned: the [`Attempts::QUANTILE`] of run times seen, so that it fits hours and milliseconds alike.

use crate::Millis;
use crate::predictor::Prediction;

/// Decides about first attempts, and accounts for them.
#[derive(Clone, Debug)]
pub struct Attempts {
    waste_max: f64,
    used: f64,
    wasted: f64,
    planned: f64,
    /// Logarithm of the quantile of run times, and the samples that it comes from.
    quantile: f64,
    samples: f64,
}

impl Attempts {
    /// The part of tasks that an attempt shall find.
    pub const QUANTILE: f64 = 0.35;
    /// A later attempt may run for so many times the one before.
    const GROWTH: Millis = 4;
    /// A task whose median is over the budget by a factor of e to this is known to be long.
    const HOPE: f32 = 5.0;
    /// Samples before the first attempt.
    const SAMPLES_MIN: f64 = 20.0;

    /// No more than `waste_max` (0 to 1) of what is used may be wasted.
    #[must_use]
    pub fn new(waste_max: f64) -> Self {
        let waste_max = if waste_max.is_finite() { waste_max.clamp(0.0, 1.0) } else { 0.0 };
        Self { waste_max, used: 0.0, wasted: 0.0, planned: 0.0, quantile: 0.0, samples: 0.0 }
    }

    /// How long the attempt after one of `tried` may run.
    #[must_use]
    pub fn next_budget(&self, tried: Millis) -> Option<Millis> {
        if tried > 0 { self.budget().map(|_| tried.saturating_mul(Self::GROWTH)) } else { self.budget() }
    }

    /// How long a first attempt may run; `None` while too little is known.
    #[must_use]
    pub fn budget(&self) -> Option<Millis> {
        #[expect(clippy::cast_possible_truncation, reason = "clamped")]
        let budget = self.quantile.exp().clamp(1.0, 1e12) as Millis;
        (self.waste_max > 0.0 && self.samples >= Self::SAMPLES_MIN).then_some(budget)
    }

    /// Whether an attempt of `budget` is worth its waste: the task may well be longer, and is not known to be.
    #[must_use]
    pub fn is_worth(prediction: &Prediction, budget: Millis) -> bool {
        #[expect(clippy::cast_precision_loss, reason = "a comparison")]
        let log = (budget.max(1) as f32).ln();
        prediction.q90 > log && prediction.q50 < log + Self::HOPE
    }

    /// What an attempt of `budget` is expected to be: it takes no longer.
    #[must_use]
    pub fn expected(mut prediction: Prediction, budget: Millis) -> Prediction {
        #[expect(clippy::cast_precision_loss, reason = "a prediction")]
        let budget = budget.max(1) as f32;
        prediction.log_mean = prediction.log_mean.min(budget.ln());
        prediction
    }

    /// Whether an attempt of `budget` on `width` slots keeps the bound even if it does not end; it is then accounted.
    #[expect(clippy::cast_precision_loss, reason = "an account")]
    pub fn admit(&mut self, budget: Millis, width: u32) -> bool {
        let cost = budget as f64 * f64::from(width);
        let admitted = self.wasted + self.planned + cost <= self.waste_max * self.used;
        if admitted {
            self.planned += cost;
        }
        admitted
    }

    /// An admitted attempt was not made after all.
    #[expect(clippy::cast_precision_loss, reason = "an account")]
    pub fn withdraw(&mut self, budget: Millis, width: u32) {
        self.planned -= budget as f64 * f64::from(width);
    }

    /// An admitted attempt of `budget` is over, whether it ended its task or not.
    #[expect(clippy::cast_precision_loss, reason = "an account")]
    pub fn over(&mut self, budget: Millis, width: u32, ended: bool) {
        let cost = budget as f64 * f64::from(width);
        self.planned -= cost;
        if !ended {
            self.wasted += cost;
            self.used += cost;
        }
    }

    /// A task ended after `run` on `width` slots.
    #[expect(clippy::cast_precision_loss, reason = "an account")]
    pub fn ended(&mut self, run: Millis, width: u32) {
        let run = run.max(0) as f64;
        self.used += run * f64::from(width);
        let log = run.max(1.0).ln();
        if self.samples == 0.0 {
            self.quantile = log;
        }
        self.samples += 1.0;
        let step = (4.0 / self.samples.sqrt()).max(0.02);
        self.quantile += if log > self.quantile { step * Self::QUANTILE } else { -step * (1.0 - Self::QUANTILE) };
    }

    /// The part of what was used that attempts have wasted.
    #[must_use]
    pub fn waste(&self) -> f64 {
        if self.used > 0.0 { self.wasted / self.used } else { 0.0 }
    }
}

/// The account of what was lost by ending tasks that others may run: never more than a part of all that was used.
///
/// What runs now counts as used up to now: it is either of use in the end, or lost by a decision that is asked for here.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ledger {
    waste_max: f64,
    used: f64,
    wasted: f64,
    running: f64,
    /// Sum of the starts of those that run.
    starts: f64,
}

impl Ledger {
    /// No more than `waste_max` (0 to 1) of what is used may be lost.
    #[must_use]
    pub fn new(waste_max: f64) -> Self {
        let waste_max = if waste_max.is_finite() { waste_max.clamp(0.0, 1.0) } else { 0.0 };
        Self { waste_max, ..Self::default() }
    }

    /// Whether anything may be lost at all.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.waste_max > 0.0
    }

    /// A task started.
    #[expect(clippy::cast_precision_loss, reason = "an account")]
    pub fn start(&mut self, now: Millis) {
        self.running += 1.0;
        self.starts += now as f64;
    }

    #[expect(clippy::cast_precision_loss, reason = "an account")]
    fn stop(&mut self, start: Millis, now: Millis) -> f64 {
        self.running -= 1.0;
        self.starts -= start as f64;
        let used = (now - start).max(0) as f64;
        self.used += used;
        used
    }

    /// A task that started at `start` has ended by itself.
    pub fn end(&mut self, start: Millis, now: Millis) {
        self.stop(start, now);
    }

    /// Whether the bound allows it to end a task that started at `start`.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "an account")]
    pub fn allows(&self, start: Millis, now: Millis) -> bool {
        let used = self.used + self.running * now as f64 - self.starts;
        let lost = (now - start).max(0) as f64;
        self.is_open() && self.wasted + lost <= self.waste_max * used
    }

    /// A task that started at `start` was ended, which was allowed, and is lost.
    pub fn lose(&mut self, start: Millis, now: Millis) {
        self.wasted += self.stop(start, now);
    }

    /// Asks to end a task that started at `start`. Where the bound allows it, it is accounted as ended, and lost.
    pub fn give_up(&mut self, start: Millis, now: Millis) -> bool {
        let allowed = self.allows(start, now);
        if allowed {
            self.lose(start, now);
        }
        allowed
    }

    /// The part of what was used that was lost.
    #[must_use]
    pub fn waste(&self) -> f64 {
        if self.used > 0.0 { self.wasted / self.used } else { 0.0 }
    }
}

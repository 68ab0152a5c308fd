//! When a second attempt pays beside one that still runs: it takes a place that idles, and the first of the two to end is the task's end.
//!
//! What has outlived nearly all of its kind is not drawn from the middle of the distribution any more: a slow machine, a lost
//! connection, a bad disk. The quantiles say when that is so, and nothing about how long it goes on. So the remainder is the worker's own
//! word where it tells how far it is, and else that of a tail without scale: as long again as it has taken ([`remainder`]). Where tasks
//! of a class are long by nature, second attempts are as slow as the first ones; [`Record`] finds that, and hardly any are made then.

use crate::predictor::Prediction;

/// Standard deviations of a normal distribution from its 0.9 quantile to its 0.95 quantile, in those from its median to the former.
const BEYOND: f32 = 0.283_5;
/// Weight of samples without which nothing is called late.
const SAMPLES_MIN: f32 = 5.0;
/// A second attempt is worth its place if the first is expected to go on for more than so many medians.
pub const WORTH: f64 = 2.0;

/// When an attempt is late, and how long a fresh one takes, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Late {
    /// Nineteen of twenty have ended by then.
    pub after: f64,
    /// Half of them.
    pub fresh: f64,
}

impl Late {
    /// By what is expected; `None` while too little is known.
    #[must_use]
    pub fn of(expected: &Prediction) -> Option<Self> {
        let after = expected.q90 + BEYOND * (expected.q90 - expected.q50).max(0.0);
        let is_known = expected.samples >= SAMPLES_MIN && after.is_finite();
        is_known.then(|| Self { after: f64::from(after).exp(), fresh: f64::from(expected.q50).exp() })
    }

    /// Whether a second attempt pays beside one that has run for `elapsed` milliseconds and says that so many parts in a thousand are
    /// done, 0 if it says nothing.
    #[must_use]
    pub fn pays(&self, elapsed: f64, done_permille: u32) -> bool {
        elapsed > self.after && remainder(elapsed, done_permille) > WORTH * self.fresh
    }
}

/// How long an attempt goes on that is late, in milliseconds.
#[must_use]
pub fn remainder(elapsed: f64, done_permille: u32) -> f64 {
    match done_permille {
        0 => elapsed,
        done => elapsed * f64::from(1_000u32.saturating_sub(done)) / f64::from(done),
    }
}

/// How second attempts of a class fared: the latest count most.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Record {
    won: f32,
    made: f32,
    /// Chances passed over since the last one that was taken.
    passed: u32,
}

impl Default for Record {
    fn default() -> Self {
        Self { won: 0.0, made: 0.0, passed: 0 }
    }
}

impl Record {
    /// Weight that is left of a result after the next one.
    const KEPT: f32 = 0.9;
    /// Results before any chance is passed over.
    const MADE_MIN: f32 = 4.0;
    /// The part that must be won.
    const WON_MIN: f32 = 0.25;
    /// Where fewer are won, one chance of so many is taken: things may have changed.
    const EVERY: u32 = 16;

    /// A second attempt came to its end, first or not.
    pub fn ended(&mut self, won: bool) {
        self.made = self.made * Self::KEPT + 1.0;
        self.won = self.won * Self::KEPT + f32::from(u8::from(won));
    }

    /// Whether a chance is taken.
    pub fn takes(&mut self) -> bool {
        let is_bad = self.made >= Self::MADE_MIN && self.won < Self::WON_MIN * self.made;
        self.passed = if is_bad && self.passed + 1 < Self::EVERY { self.passed + 1 } else { 0 };
        self.passed == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected(median_ms: f32, most_ms: f32) -> Prediction {
        Prediction {
            log_mean: median_ms.ln(),
            inverse: 1.0 / median_ms,
            q50: median_ms.ln(),
            q90: most_ms.ln(),
            failed: 0.0,
            level: 3,
            samples: 9.0,
        }
    }

    #[test]
    fn a_straggler_is_late_and_one_of_the_upper_half_is_not() {
        let late = Late::of(&expected(100.0, 150.0)).unwrap();
        assert!(late.after > 150.0 && late.after < 180.0, "{late:?}");
        assert!(!late.pays(170.0, 0), "it may end at any moment, and a fresh one takes 100 ms");
        assert!(late.pays(250.0, 0));
        assert!(!late.pays(140.0, 1), "it is not late, whatever it says");
        assert!(!late.pays(2_000.0, 950), "it says that it is nearly done");
        assert!(late.pays(2_000.0, 500));
    }

    #[test]
    fn nothing_is_late_while_little_is_known() {
        assert_eq!(Late::of(&Prediction { samples: 2.0, ..expected(100.0, 150.0) }), None);
        assert_eq!(Late::of(&Prediction { q90: f32::INFINITY, ..expected(100.0, 150.0) }), None);
    }

    #[test]
    fn a_class_whose_second_attempts_lose_gets_few_and_one_that_wins_gets_all() {
        let taken = |wins: bool| {
            let (mut record, mut taken) = (Record::default(), 0);
            for _ in 0..1_000 {
                if record.takes() {
                    taken += 1;
                    record.ended(wins);
                }
            }
            taken
        };
        assert_eq!(taken(true), 1_000);
        assert!((60..80).contains(&taken(false)), "{}", taken(false));
    }
}

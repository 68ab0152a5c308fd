//! How likely a task ends in time: its run time is taken as lognormal between the predicted quantiles, its wait as normal, from what
//! goes before it and the places there are.

use crate::predictor::Prediction;

/// Standard deviations from the median to the 0.9 quantile of a normal distribution.
const NINE_OF_TEN: f64 = 1.281_551_6;
/// No run time is known better than to this deviation of its logarithm.
const SIGMA_MIN: f64 = 0.02;
/// Means of wider distributions than this would be those of their last tails.
const SIGMA_MAX: f64 = 1.5;
/// Steps over the wait, in standard deviations.
const STEP: f64 = 0.25;
const STEPS: i32 = 14;

/// A run time, of which the logarithm (of milliseconds) is normal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Run {
    log_median: f64,
    sigma: f64,
}

impl Run {
    /// As predicted.
    #[must_use]
    pub fn of(expected: &Prediction) -> Self {
        let (log_median, log_most) = (f64::from(expected.q50), f64::from(expected.q90));
        Self { log_median, sigma: ((log_most - log_median) / NINE_OF_TEN).max(SIGMA_MIN) }
    }

    /// The mean, in milliseconds.
    #[must_use]
    pub fn mean(&self) -> f64 {
        let sigma = self.sigma.min(SIGMA_MAX);
        (self.log_median + 0.5 * sigma * sigma).exp()
    }

    /// The mean of the square.
    #[must_use]
    pub fn mean_square(&self) -> f64 {
        let sigma = self.sigma.min(SIGMA_MAX);
        (2.0 * (self.log_median + sigma * sigma)).exp()
    }

    /// How likely it is over within `left` milliseconds.
    #[must_use]
    pub fn within(&self, left: f64) -> f64 {
        if left <= 0.0 { 0.0 } else { normal((left.ln() - self.log_median) / self.sigma) }
    }

    /// The same of one that has gone on for `elapsed` milliseconds and did not end.
    #[must_use]
    pub fn within_when(&self, elapsed: f64, left: f64) -> f64 {
        let goes_on = 1.0 - self.within(elapsed);
        if left <= 0.0 {
            0.0
        } else if goes_on < 1e-6 {
            // Nothing like it was seen: it may end at any time.
            0.5
        } else {
            (self.within(elapsed + left) - self.within(elapsed)) / goes_on
        }
    }
}

/// What runs and waits before a task.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Line {
    /// Tasks that go before it.
    pub tasks: u64,
    /// Tasks that run.
    pub running: u64,
    /// Places in all.
    pub places: u64,
    /// Sum of the mean run times of those before it, in milliseconds.
    pub work: f64,
    /// Sum of the means of their squares.
    pub squares: f64,
}

/// A wait in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Wait {
    /// Its mean.
    pub mean: f64,
    /// Its standard deviation.
    pub deviation: f64,
}

impl Line {
    /// How long a task waits in it; `run` stands for those that run, if none is before it.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "counts")]
    pub fn wait(&self, run: &Run) -> Wait {
        let places = self.places.max(1);
        let free = places.saturating_sub(self.running);
        if self.tasks < free {
            return Wait::default();
        }
        let (mean, square) = match self.tasks {
            0 => (run.mean(), run.mean_square()),
            tasks => (self.work / tasks as f64, self.squares / tasks as f64),
        };
        // So many must end before a place is its own, after one of those that run, of which a long one is the likelier to be met.
        let (ends, rest, places) = ((self.tasks - free) as f64, 0.5 * square / mean.max(1e-9), places as f64);
        let variance = (ends + 0.5) * (square - mean * mean).max(mean * mean / 12.0);
        Wait { mean: (ends * mean + rest) / places, deviation: variance.sqrt() / places }
    }
}

/// What is expected of the attempts of a task.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcomes {
    /// Of those that succeed.
    pub succeeds: Prediction,
    /// Of those that fail.
    pub fails: Prediction,
    /// The part that fails.
    pub failed: f32,
}

/// How likely a task ends within `left` milliseconds that waits and then runs; an attempt fails with the predicted probability, and
/// then there is time for one more or not.
#[must_use]
pub fn in_time(expected: &Outcomes, wait: Wait, left: f64) -> f64 {
    let run = Run::of(&expected.succeeds);
    let failed = f64::from(expected.failed).clamp(0.0, 1.0);
    let first = ends_within(&run, wait, left);
    if failed < 1e-3 {
        return first;
    }
    let lost = Run::of(&expected.fails);
    let spread = (lost.mean_square() - lost.mean().powi(2)).max(0.0);
    let again = Wait { mean: wait.mean + lost.mean(), deviation: (wait.deviation.powi(2) + spread).sqrt() };
    (1.0 - failed) * (first + failed * ends_within(&run, again, left))
}

fn ends_within(run: &Run, wait: Wait, left: f64) -> f64 {
    if wait.deviation <= 0.0 {
        return run.within(left - wait.mean);
    }
    let (mut sum, mut weights) = (0.0, 0.0);
    for step in -STEPS..=STEPS {
        let away = f64::from(step) * STEP;
        let weight = (-0.5 * away * away).exp();
        let waited = (wait.mean + away * wait.deviation).max(0.0);
        sum += weight * run.within(left - waited);
        weights += weight;
    }
    sum / weights
}

/// The part of a standard normal distribution that lies below `x` (Abramowitz and Stegun, 26.2.17).
fn normal(x: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.231_641_9 * x.abs());
    let series =
        t * (0.319_381_530 + t * (-0.356_563_782 + t * (1.781_477_937 + t * (-1.821_255_978 + t * 1.330_274_429))));
    let tail = (-0.5 * x * x).exp() / core::f64::consts::TAU.sqrt() * series;
    if x < 0.0 { tail } else { 1.0 - tail }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::critical::project::Random;

    /// Attempts that fail after as long as others succeed.
    fn alike(told: Prediction) -> Outcomes {
        Outcomes { succeeds: told, fails: told, failed: told.failed }
    }

    fn expected(median_ms: f32, most_ms: f32) -> Prediction {
        let (q50, q90) = (median_ms.ln(), most_ms.ln());
        Prediction { log_mean: q50, inverse: 1.0 / median_ms, q50, q90, failed: 0.0, level: 6, samples: 9.0 }
    }

    #[test]
    fn without_a_wait_it_is_the_part_of_run_times_that_fit() {
        let of = |left| in_time(&alike(expected(100.0, 300.0)), Wait::default(), left);
        assert!((of(100.0) - 0.5).abs() < 1e-6 && (of(300.0) - 0.9).abs() < 1e-3);
        assert_eq!([of(0.0), of(-5.0)], [0.0, 0.0]);
        let late = Wait { mean: 250.0, deviation: 0.0 };
        assert!((in_time(&alike(expected(100.0, 300.0)), late, 350.0) - 0.5).abs() < 1e-6);
    }

    #[test]
    fn a_task_that_runs_for_long_is_less_likely_to_end_soon() {
        let run = Run::of(&expected(100.0, 300.0));
        assert!((run.within_when(0.0, 100.0) - 0.5).abs() < 1e-6);
        assert!(run.within_when(300.0, 50.0) < run.within_when(80.0, 50.0));
        assert!(run.within_when(1e9, 50.0) <= 0.5);
    }

    #[test]
    fn attempts_that_fail_cost_their_time() {
        let half = alike(Prediction { failed: 0.5, ..expected(100.0, 101.0) });
        let of = |half: &Outcomes, left| in_time(half, Wait::default(), left);
        assert!((of(&half, 150.0) - 0.5).abs() < 0.01, "one attempt");
        assert!((of(&half, 250.0) - 0.75).abs() < 0.01, "two attempts");
        let soon = Outcomes { fails: expected(10.0, 11.0), ..half };
        assert!((of(&soon, 150.0) - 0.75).abs() < 0.01, "one that fails soon leaves time for a second");
    }

    fn gauss(random: &mut Random) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a random number")]
        let sum: f64 = (0..12).map(|_| random.below(1 << 20) as f64 / f64::from(1 << 20)).sum();
        sum - 6.0
    }

    /// Lines of all lengths before many places, played out: of the tasks of which it is said that so many end in time, so many do.
    #[test]
    fn what_is_said_holds_in_so_many_cases() {
        let mut random = Random::new(7);
        let told = expected(100.0, 280.0);
        let run = Run::of(&told);
        let draw = |random: &mut Random| (run.log_median + run.sigma * gauss(random)).exp();
        let mut bins = [(0.0, 0u32, 0u32); 5];
        for _ in 0..20_000 {
            let (places, tasks) = (1 + random.below(8), random.below(60));
            // Of those that run when one looks, the long ones are more, each at any point of its way.
            #[expect(clippy::cast_precision_loss, reason = "a random number")]
            let rest = |random: &mut Random| {
                draw(random) * (run.sigma * run.sigma).exp() * (random.below(1 << 20) as f64 / f64::from(1 << 20))
            };
            let mut free: Vec<f64> = (0..places).map(|_| rest(&mut random)).collect();
            let mut end = 0.0;
            for _ in 0..=tasks {
                free.sort_by(f64::total_cmp);
                end = free[0] + draw(&mut random);
                free[0] = end;
            }
            #[expect(clippy::cast_precision_loss, reason = "small numbers")]
            let (work, squares) = (tasks as f64 * run.mean(), tasks as f64 * run.mean_square());
            let [tasks, places] = [tasks, places].map(|count| count as u64);
            let line = Line { tasks, running: places, places, work, squares };
            #[expect(clippy::cast_precision_loss, reason = "small numbers")]
            let left = line.wait(&run).mean * (0.4 + random.below(1_200) as f64 / 1_000.0) + 100.0;
            let chance = in_time(&alike(told), line.wait(&run), left);
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a bin")]
            let bin = &mut bins[((chance * 5.0) as usize).min(4)];
            *bin = (bin.0 + chance, bin.1 + u32::from(end <= left), bin.2 + 1);
        }
        for (said, met, count) in bins {
            assert!(count > 300, "{bins:?}");
            let (said, met) = (said / f64::from(count), f64::from(met) / f64::from(count));
            assert!((said - met).abs() < 0.08, "said {said:.2}, met {met:.2} of {count}: {bins:?}");
        }
    }
}

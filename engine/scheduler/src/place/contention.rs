//! Predicts how fast a task runs beside another: from what both use alone, and from pairs seen before.
//!
//! The loss of a task beside another is a line in what both use alone (fitted with a strong pull to zero), and what that
//! leaves is explained by two factors per task: how much it suffers, and how much it disturbs, of rank two and learned by
//! alternating least squares with shrinkage. A pair predicted under [`SPEED_MIN`], or not
//! safely over it, is refused.

/// A pair is refused when either task is predicted to run at less than this part of its speed alone.
pub const SPEED_MIN: f32 = 0.85;
/// The mean speed at which a pair is worth nothing: halfway from what is refused to no loss.
pub const PAIR_MIN: f32 = f32::midpoint(SPEED_MIN, 1.0);
/// A pair is refused when it is predicted over that by less than this part of what predictions are off.
const MARGIN: f32 = 0.5;
/// Measures of a task alone: use of the processor or device, of its memory's bandwidth, and of its memory, 0 to 1.
pub const MEASURES: usize = 3;
const TERMS: usize = 10;
const RANK: usize = 2;
/// Pull of the line to zero, in samples.
const LINE_PULL: f64 = 0.3;
/// Pull of the factors to zero, in samples.
const FACTOR_PULL: f64 = 0.2;
const ROUNDS: usize = 12;

/// What a task uses alone.
pub type Profile = [f32; MEASURES];

/// A measured pair: the speed of `task` beside `other`, as a part of its speed alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Which.
    pub task: usize,
    /// Beside which.
    pub other: usize,
    /// Its speed.
    pub speed: f32,
}

/// The model.
#[derive(Clone, Debug)]
pub struct Contention {
    profiles: Vec<Profile>,
    line: [f64; TERMS],
    suffers: Vec<[f64; RANK]>,
    disturbs: Vec<[f64; RANK]>,
    /// How far off the samples it is, as a root of the mean square.
    error: f32,
}

fn clean(value: f32) -> f64 {
    if value.is_finite() { f64::from(value).clamp(0.0, 1.5) } else { 0.0 }
}

fn terms(task: &Profile, other: &Profile) -> [f64; TERMS] {
    let [a, b, c] = task.map(clean);
    let [x, y, z] = other.map(clean);
    let over = (a + x - 1.0).max(0.0);
    let memory_over = (b + y - 0.6).max(0.0);
    [1.0, a, x, a * x, b * y, over, memory_over, c + z, over * y, over * over]
}

/// Solves a small symmetric positive system in place, by Cholesky's method.
fn solve<const N: usize>(mut matrix: [[f64; N]; N], mut right: [f64; N]) -> [f64; N] {
    for i in 0..N {
        for j in 0..=i {
            let sum: f64 = (0..j).map(|k| matrix[i][k] * matrix[j][k]).sum();
            if i == j {
                matrix[i][i] = (matrix[i][i] - sum).max(1e-12).sqrt();
            } else {
                matrix[i][j] = (matrix[i][j] - sum) / matrix[j][j];
            }
        }
    }
    for i in 0..N {
        let sum: f64 = (0..i).map(|k| matrix[i][k] * right[k]).sum();
        right[i] = (right[i] - sum) / matrix[i][i];
    }
    for i in (0..N).rev() {
        let sum: f64 = (i + 1..N).map(|k| matrix[k][i] * right[k]).sum();
        right[i] = (right[i] - sum) / matrix[i][i];
    }
    right
}

/// Least squares with a pull to zero.
fn fit<const N: usize>(rows: impl Iterator<Item = ([f64; N], f64)>, pull: f64) -> [f64; N] {
    let (mut matrix, mut right) = ([[0.0; N]; N], [0.0; N]);
    for (row, value) in rows {
        for i in 0..N {
            right[i] += row[i] * value;
            for j in 0..N {
                matrix[i][j] += row[i] * row[j];
            }
        }
    }
    for (i, row) in matrix.iter_mut().enumerate() {
        row[i] += pull;
    }
    solve(matrix, right)
}

impl Contention {
    /// Learns from the pairs seen. Samples that are no numbers, or of tasks without a profile, are dropped.
    #[must_use]
    pub fn learn(profiles: &[Profile], samples: &[Sample]) -> Self {
        let known = |sample: &&Sample| {
            sample.speed.is_finite() && sample.task < profiles.len() && sample.other < profiles.len()
        };
        let samples: Vec<Sample> = samples.iter().filter(known).copied().collect();
        let loss = |sample: &Sample| 1.0 - f64::from(sample.speed.clamp(0.0, 1.2));
        let row = |sample: &Sample| (terms(&profiles[sample.task], &profiles[sample.other]), loss(sample));
        let line = fit(samples.iter().map(row), LINE_PULL);
        let start = |place: usize| if place.is_multiple_of(2) { [0.3, 0.1] } else { [0.1, 0.3] };
        let mut model = Self {
            profiles: profiles.to_vec(),
            line,
            suffers: (0..profiles.len()).map(start).collect(),
            disturbs: (0..profiles.len()).map(start).collect(),
            error: 0.0,
        };
        let left: Vec<f64> =
            samples.iter().map(|sample| loss(sample) - model.on_line(sample.task, sample.other)).collect();
        let by = |place: fn(&Sample) -> usize| {
            let mut grouped = vec![Vec::new(); profiles.len()];
            for (sample, left) in samples.iter().zip(&left) {
                grouped[place(sample)].push((sample, *left));
            }
            grouped
        };
        let (by_task, by_other) = (by(|sample| sample.task), by(|sample| sample.other));
        for _ in 0..ROUNDS {
            for (suffers, rows) in model.suffers.iter_mut().zip(&by_task) {
                *suffers = fit(rows.iter().map(|(sample, left)| (model.disturbs[sample.other], *left)), FACTOR_PULL);
            }
            for (disturbs, rows) in model.disturbs.iter_mut().zip(&by_other) {
                *disturbs = fit(rows.iter().map(|(sample, left)| (model.suffers[sample.task], *left)), FACTOR_PULL);
            }
        }
        let square = |sample: &Sample| (sample.speed - model.speed(sample.task, sample.other)).powi(2);
        #[expect(clippy::cast_precision_loss, reason = "a mean")]
        let count = samples.len().max(1) as f32;
        model.error = (samples.iter().map(square).sum::<f32>() / count).sqrt();
        model
    }

    /// Tasks that it knows.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.profiles.len()
    }

    /// Whether it knows none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.profiles.is_empty()
    }

    fn on_line(&self, task: usize, other: usize) -> f64 {
        let terms = terms(&self.profiles[task], &self.profiles[other]);
        terms.iter().zip(&self.line).map(|(term, weight)| term * weight).sum()
    }

    /// The speed of `task` beside `other`, as a part of its speed alone.
    ///
    /// # Panics
    /// When either has no profile.
    #[must_use]
    pub fn speed(&self, task: usize, other: usize) -> f32 {
        let (suffers, disturbs) = (&self.suffers[task], &self.disturbs[other]);
        let factors: f64 = suffers.iter().zip(disturbs).map(|(a, b)| a * b).sum();
        #[expect(clippy::cast_possible_truncation, reason = "a prediction")]
        let speed = (1.0 - self.on_line(task, other) - factors) as f32;
        speed.clamp(0.05, 1.2)
    }

    /// How well two go together: the mean of both speeds, or `None` when either is predicted under [`SPEED_MIN`], or over it
    /// by less than a part of what predictions are off.
    #[must_use]
    pub fn pair(&self, a: usize, b: usize) -> Option<f32> {
        let (first, second) = (self.speed(a, b), self.speed(b, a));
        (first.min(second) >= SPEED_MIN + MARGIN * self.error).then_some(f32::midpoint(first, second))
    }

    /// What two are worth together, for [`super::pairing`]: by how much their speed is over [`PAIR_MIN`], 0 where they are refused.
    #[must_use]
    pub fn worth(&self, a: usize, b: usize) -> f32 {
        self.pair(a, b).map_or(0.0, |speed| (speed - PAIR_MIN).max(0.0))
    }
}

//! Corrects a predicted 0.9 quantile by what it missed: conformal inference with an adaptive step (after Gibbs and
//! Candès, 2021), one correction for each amount of evidence, as a new key misses in another way than a known one.

use crate::predictor::Prediction;

/// Classes of evidence: the weight of the finest key's samples in powers of two.
const CLASSES: usize = 5;
/// The part that a quantile of 0.9 shall miss.
const MISS: f32 = 0.1;
/// The largest step, for a class with few samples.
const STEP_MAX: f32 = 0.5;
/// The least step, so that it follows drift.
const STEP_MIN: f32 = 0.05;
/// Corrections are no larger, as a factor of e to this.
const CORRECTION_MAX: f32 = 6.0;
/// Samples that are counted.
const COUNT_MAX: f32 = 1e6;

/// The corrections.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Correction {
    shift: [f32; CLASSES],
    count: [f32; CLASSES],
}

fn class(prediction: &Prediction) -> usize {
    let edges = [1.5, 3.0, 5.0, 8.0];
    edges.iter().filter(|edge| prediction.samples > **edge).count()
}

impl Correction {
    /// Values of the corrections: shifts, then counts.
    pub(super) const VALUES: usize = 2 * CLASSES;

    pub(super) fn values(&self) -> [f32; Self::VALUES] {
        let mut values = [0.0; Self::VALUES];
        values[..CLASSES].copy_from_slice(&self.shift);
        values[CLASSES..].copy_from_slice(&self.count);
        values
    }

    /// The corrections of these values; one that is none is as if nothing had been learned.
    pub(super) fn from_values(values: [f32; Self::VALUES]) -> Self {
        let mut correction = Self::default();
        for class in 0..CLASSES {
            let (shift, count) = (values[class], values[CLASSES + class]);
            if shift.abs() <= CORRECTION_MAX && (0.0..=COUNT_MAX).contains(&count) {
                (correction.shift[class], correction.count[class]) = (shift, count);
            }
        }
        correction
    }

    /// What is to be added to the logarithm of the quantile.
    #[must_use]
    pub fn of(&self, prediction: &Prediction) -> f32 {
        self.shift[class(prediction)]
    }

    /// Learns from a run time whose prediction, corrected, was `made`.
    pub fn learn(&mut self, made: &Prediction, log: f32) {
        let class = class(made);
        let (shift, count) = (&mut self.shift[class], &mut self.count[class]);
        let step = (STEP_MAX / count.sqrt().max(1.0)).max(STEP_MIN);
        *count = (*count + 1.0).min(COUNT_MAX);
        let missed = log > made.q90 + 1e-6;
        *shift += if missed { step * (1.0 - MISS) } else { -step * MISS };
        *shift = shift.clamp(-CORRECTION_MAX, CORRECTION_MAX);
    }
}

//! What a declared limit says of a task's length, whoever declares it: for each length the limits that tasks of that length had.
//!
//! A key with the limit in it says the same, but learns it anew for each tenant and limit, from few samples each. Where limits say little
//! but that a task is shorter, as those do that are guessed or set by a site, this leaves the keys without them whole.

use super::{BINS, Histogram, MEMORY, bin};
use crate::Millis;

/// Weight of the limits of all tasks in those of one length, in samples.
const SMOOTHING: f64 = 3.0;

/// The limits that tasks had.
#[derive(Clone, Debug, Default)]
pub(super) struct Limits {
    pub(super) all: Histogram,
    /// By length; none before the first limit.
    pub(super) of: Vec<Histogram>,
}

#[expect(clippy::cast_precision_loss, reason = "times are far below 2^53")]
fn limit_bin(limit: Millis) -> usize {
    bin(limit as f64)
}

impl Limits {
    /// Makes of a distribution that of the tasks with this limit: each length by how likely it has it.
    pub(super) fn apply(&self, shape: &mut [f64; BINS], limit: Millis) {
        if limit <= 0 || self.of.is_empty() {
            return;
        }
        let limit = limit_bin(limit);
        let among_all = SMOOTHING * f64::from(self.all.bins[limit]) / f64::from(self.all.weight);
        let mut weighed = *shape;
        for (part, of) in weighed.iter_mut().zip(&self.of).filter(|(part, _)| **part > 0.0) {
            *part *= (f64::from(of.bins[limit]) + among_all) / (f64::from(of.weight) + SMOOTHING);
        }
        let sum: f64 = weighed.iter().sum();
        if sum > 0.0 {
            *shape = weighed.map(|part| part / sum);
        }
    }

    /// Learns that a task whose length is in bin `length` had this limit.
    pub(super) fn learn(&mut self, length: usize, limit: Millis) {
        if limit <= 0 {
            return;
        }
        if self.of.is_empty() {
            self.of.resize_with(BINS, Histogram::default);
        }
        let limit = limit_bin(limit);
        self.all.add(limit, MEMORY[0]);
        self.of[length].add(limit, MEMORY[0]);
    }
}

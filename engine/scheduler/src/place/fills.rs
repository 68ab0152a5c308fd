//! What the tasks to come will use of a worker: the mean over lists of tasks drawn from those seen, each of which is placed on the
//! worker as far as its tasks fit, one after the other.
//!
//! So processors beside devices count as far as the mix of tasks needs them, and a part of a device as far as the mix has
//! tasks for it. Tasks of several devices come first: else any small one that comes before would make free devices worthless to
//! them, though others would have taken it. The lists are the same for all workers, so that chance does not choose between them.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::{Ask, DEVICE, Worker};
use crate::critical::project::Random;

/// Lists of tasks.
const LISTS: usize = 16;
/// Tasks of a list, at least and at most.
const TASKS: std::ops::Range<usize> = 24..64;
/// Device share that a list shall ask for: more than any worker has, so that what does not fit is what ends it.
const SHARE: u32 = 20 * DEVICE;

/// Lists of tasks to come.
#[derive(Clone, Debug, Default)]
pub(super) struct Fills {
    lists: Vec<Vec<Ask>>,
}

impl Fills {
    /// Draws lists from the tasks seen, with how often each was.
    pub(super) fn draw(seen: &BTreeMap<Ask, u32>) -> Self {
        let mut sums = Vec::new();
        let mut total = 0_usize;
        for (ask, count) in seen.iter().filter(|(ask, _)| ask.devices > 0) {
            total += *count as usize;
            sums.push((total, *ask));
        }
        if total == 0 {
            return Self::default();
        }
        let mut random = Random::new(1);
        let mut draw = || {
            let at = random.below(total);
            sums[sums.partition_point(|(sum, _)| *sum <= at)].1
        };
        let mut list = || {
            let (mut list, mut share) = (Vec::new(), 0);
            while list.len() < TASKS.start || (share < SHARE && list.len() < TASKS.end) {
                let ask = draw();
                share += ask.devices.saturating_mul(ask.share).min(SHARE);
                list.push(ask);
            }
            list.sort_by_key(|ask: &Ask| Reverse(ask.devices));
            list
        };
        Self { lists: (0..LISTS).map(|_| list()).collect() }
    }

    /// The device share that they will use of a worker, in the mean.
    #[expect(clippy::cast_precision_loss, reason = "a mean")]
    pub(super) fn used(&self, worker: &Worker) -> f32 {
        if worker.free_share() == 0 {
            return 0.0;
        }
        let used: u32 = self.lists.iter().map(|list| fill(*worker, list)).sum();
        used as f32 / self.lists.len().max(1) as f32
    }
}

/// The device share of a worker that the tasks of a list use.
fn fill(mut worker: Worker, list: &[Ask]) -> u32 {
    list.iter().filter(|ask| worker.take(ask)).map(|ask| ask.devices * ask.share).sum()
}

//! What the scheduler of wide tasks keeps of each that waits, and where that stands in the queue.

use std::cmp::Ordering;

use crate::Millis;
use crate::backfill::Waiting;

/// A task that waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    /// The lowest goes first.
    pub(super) rank: f64,
    /// The rank as it was when it came, for one whose rank falls as it waits.
    pub(super) fresh: Option<f64>,
    pub(super) submitted: Millis,
    /// Which attempts come first.
    pub(super) worth: f64,
    /// What a deadline met costs, its expected work, and the part of the slots that it leaves free; in the order of deadlines only.
    pub(super) cost: f64,
    pub(super) work: f64,
    pub(super) hold: f64,
    pub(super) tenant: u32,
    pub(super) can_try: bool,
    pub(super) waiting: Waiting,
}

impl Entry {
    /// Takes the wait until `now` into its rank: by `urgency` times the logarithm of one and the wait in limits. What
    /// waited for many times what it asked for (or is bound to take) goes ahead of what just came, which bounds slowdowns where the prediction
    /// was wrong. `false` when that changes nothing.
    #[expect(clippy::cast_precision_loss, reason = "a rank")]
    pub(super) fn wait(&mut self, now: Millis, urgency: f64) -> bool {
        let Some(fresh) = self.fresh else { return false };
        let part = (now - self.submitted).max(0) as f64 / self.waiting.limit.max(1) as f64;
        self.rank = fresh - urgency * (1.0 + part).ln();
        true
    }

    pub(super) fn by_rank(a: &Self, b: &Self) -> Ordering {
        a.rank.total_cmp(&b.rank).then(a.waiting.task.cmp(&b.waiting.task))
    }
}

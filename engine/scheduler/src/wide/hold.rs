//! Slots that tasks with deadlines leave free for those that are still to come.
//!
//! Many tasks are short and have little time to spare: they meet their deadlines if they start at once, and only then. So what costs much
//! of the machine for one deadline met, compared with what was submitted lately, and what is late whatever is done, starts only where a
//! part of the slots stays free beside it. The part falls as more work waits, and is none when that is as much as the machine does
//! in the cap of the aging: so a hold delays what waits, but does not let it pile up.

use crate::Millis;
use crate::order::Aging;

/// The part of the slots that a task leaves free which will rather be late, and the most that one leaves free which may be in time.
const PART: f64 = 1.0 / 16.0;
/// That much leaves what costs more than the average by so many standard deviations; what costs the average leaves nothing free.
const COSTLY: f64 = 2.0;
/// Chances under this are rather none.
const CHANCE_LATE: f64 = 0.5;
/// Weight of a task in the averages.
const STEP: f64 = 0.005;
/// The least standard deviation, of logarithms, so that tasks that are all alike are not held for each other.
const SPREAD_MIN: f64 = 0.1;
/// Chances under this count as this.
const CHANCE_MIN: f64 = 1e-3;

/// What tasks cost that were submitted lately.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Hold {
    /// Of the logarithms of costs.
    mean: f64,
    variance: f64,
    is_taught: bool,
}

/// What a task costs that takes `needed` on `width` slots: the logarithm of its work for each deadline met.
pub(super) fn cost(needed: f64, width: u32, chance: f64) -> f64 {
    (needed.max(1.0) * f64::from(width.max(1))).ln() - chance.max(CHANCE_MIN).ln()
}

impl Hold {
    /// A task of this cost was submitted.
    pub(super) fn learn(&mut self, cost: f64) {
        if !self.is_taught {
            *self = Self { mean: cost, variance: 0.0, is_taught: true };
        }
        let gap = cost - self.mean;
        self.mean += STEP * gap;
        self.variance += STEP * (gap * gap - self.variance);
    }

    /// The part of the slots that a task leaves free beside it, while little waits.
    pub(super) fn part(&self, cost: f64, chance: f64) -> f64 {
        if chance <= CHANCE_LATE {
            return PART;
        }
        let over = (cost - self.mean) / self.variance.sqrt().max(SPREAD_MIN);
        PART * (over / COSTLY).clamp(0.0, 1.0)
    }
}

/// How much of its part a task leaves free when `work` waits, in slot-milliseconds: nothing without a cap, as then nothing would bound how
/// long it waits.
#[expect(clippy::cast_precision_loss, reason = "a part")]
pub(super) fn ease(work: f64, slots: u32, aging: &Aging) -> f64 {
    if aging.cap == Millis::MAX {
        return 0.0;
    }
    let capacity = aging.cap.max(1) as f64 * f64::from(slots.max(1));
    (1.0 - work / capacity).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_costs_more_than_most_leaves_more_free() {
        let mut hold = Hold::default();
        for needed in [1e3, 1e4, 1e5, 1e6].into_iter().cycle().take(4000) {
            hold.learn(cost(needed, 1, 1.0));
        }
        let part = |needed: f64, chance: f64| hold.part(cost(needed, 1, chance), chance);
        assert!(part(1e3, 1.0) < 1e-9, "a short one starts in the last slot");
        assert!(part(1e6, 1.0) > 0.0 && part(1e6, 1.0) < part(1e8, 1.0));
        assert!(part(1e9, 1.0) <= PART);
        assert!(part(1e3, 0.1) >= PART, "one that is late leaves most free");
    }

    #[test]
    fn nothing_is_held_where_as_much_waits_as_the_cap_allows() {
        let aging = Aging { cap: 1000, share_max: 0.5 };
        assert!((ease(0.0, 10, &aging) - 1.0).abs() < 1e-9);
        assert!((ease(5_000.0, 10, &aging) - 0.5).abs() < 1e-9);
        assert!(ease(20_000.0, 10, &aging) == 0.0 && ease(f64::INFINITY, 10, &aging) == 0.0);
        assert!(ease(0.0, 10, &Aging::NONE) == 0.0);
    }
}

//! The order of deadlines: of tasks that are predicted alike, which is next depends on the time alone, so a set by deadline and what
//! is expected of their class at the moment answer it in a few steps, and nothing is ranked again when reality changes.
//!
//! First come tasks that will meet their deadline in nine of ten cases if they start now, the earliest deadline first. Then those that
//! rather will than not; then those without a deadline, as they became ready; and last the hopeless ones, which are late whatever
//! is done and would make others late. Aging ([`crate::order`]) bounds what any of them waits.

use std::collections::BTreeSet;

use taskmaster_scheduler::order::Standing;
use taskmaster_scheduler::predictor::Prediction;

use crate::extra::Extras;
use crate::task::{Slot, Tasks};

/// Stands for no deadline: behind all that there are.
const NEVER_US: u64 = u64::MAX;

/// Deadline, number in the order of readiness, and slot.
pub(crate) type Key = (u64, u64, Slot);

/// The key of a ready task.
pub(crate) fn key(slot: Slot, tasks: &Tasks, extras: &Extras) -> Key {
    let task = &tasks[slot];
    (deadline_us(task.extra, extras).unwrap_or(NEVER_US), task.token, slot)
}

/// The deadline that a task's extra names.
pub(crate) fn deadline_us(extra: u32, extras: &Extras) -> Option<u64> {
    extras.get(extra).map(|extra| extra.deadline_us).filter(|&deadline_us| deadline_us != 0)
}

/// When tasks of a class end if they start now, in microseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ends {
    /// In one of two cases.
    half_us: u64,
    /// In nine of ten.
    most_us: u64,
}

/// The run time that stands as a logarithm of milliseconds in a prediction, in microseconds.
fn micros(log_ms: f32) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "predictions are bounded by a year")]
    let us = (f64::from(log_ms).exp() * 1_000.0) as u64;
    us
}

impl Ends {
    /// By a prediction.
    pub(crate) fn of(expected: &Prediction, now_us: u64) -> Self {
        Self::after([micros(expected.q50), micros(expected.q90)], now_us)
    }

    /// In the order of what is likely.
    pub(crate) const fn both(self) -> [u64; 2] {
        [self.half_us, self.most_us]
    }

    /// After run times in one of two and nine of ten cases.
    pub(crate) const fn after([half_us, most_us]: [u64; 2], now_us: u64) -> Self {
        Self { half_us: now_us.saturating_add(half_us), most_us: now_us.saturating_add(most_us) }
    }
}

/// Run times in one of two and nine of ten cases, in microseconds.
pub(crate) fn quantiles_us(expected: &Prediction) -> [u64; 2] {
    [micros(expected.q50), micros(expected.q90)]
}

/// A place in the order of a queue, the lowest first, whatever its policy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Turn(u64);

impl Turn {
    /// After all others.
    pub(crate) const LAST: Self = Self(u64::MAX);

    /// By a learned rank.
    pub(crate) fn by_rank(rank: f32) -> Self {
        let bits = rank.to_bits();
        let ordered = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
        Self(u64::from(ordered) + 1)
    }

    /// By deadline, or without one by the time since when it is ready.
    pub(crate) fn by_deadline(standing: Standing, at_us: u64) -> Self {
        Self(((standing as u64) << 62 | at_us.min((1 << 62) - 1)).max(1))
    }

    /// Of a ready task in a queue that goes by deadlines.
    pub(crate) fn of(deadline_us: Option<u64>, ready_us: u64, ends: Ends) -> Self {
        Self::by_deadline(Standing::of(deadline_us, ends.both()), deadline_us.unwrap_or(ready_us))
    }
}

/// The next of tasks that are predicted alike.
pub(crate) fn next(keys: &BTreeSet<Key>, ends: Ends, tasks: &Tasks) -> Option<(Turn, Slot)> {
    let from = |at_us: u64| keys.range((at_us, 0, 0)..).next();
    // The first from there on has no deadline if none has that can be met.
    let with_deadline = |key: &&Key| key.0 != NEVER_US;
    let feasible = || from(ends.most_us).filter(with_deadline);
    let at_risk = || from(ends.half_us).filter(with_deadline);
    let first = feasible().or_else(at_risk).or_else(|| from(NEVER_US)).or_else(|| keys.first())?;
    let &(deadline_us, _, slot) = first;
    let deadline_us = Some(deadline_us).filter(|&deadline_us| deadline_us != NEVER_US);
    // Who has a deadline is not looked at: its cache line is not needed here.
    let ready_us = if deadline_us.is_some() { 0 } else { tasks[slot].at_us };
    Some((Turn::of(deadline_us, ready_us, ends), slot))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_by_rank_are_in_the_order_of_ranks() {
        let ranks = [f32::MIN, -7.5, -0.0, 0.0, 1e-9, 3.0, 1e30];
        let turns = ranks.map(Turn::by_rank);
        assert!(turns.is_sorted(), "{turns:?}");
        assert!(turns[6] < Turn::LAST);
    }

    #[test]
    fn standing_goes_before_the_deadline() {
        let ends = Ends::after([100, 200], 1_000);
        let of = |deadline_us: u64| Turn::of(Some(deadline_us), 0, ends);
        assert_eq!(Standing::of(Some(1_200), ends.both()), Standing::Feasible);
        assert_eq!(Standing::of(Some(1_199), ends.both()), Standing::AtRisk);
        assert_eq!(Standing::of(Some(1_099), ends.both()), Standing::Hopeless);
        let open = Turn::of(None, 5, ends);
        let order = [of(1_200), of(9_000), of(1_100), of(1_199), open, Turn::of(None, 6, ends), of(1), of(1_099)];
        assert!(order.is_sorted(), "{order:?}");
    }
}

//! What a leader may spend on attempts of restartable tasks, and what came of it. Volatile, as leases are.
//!
//! Two allowances, each of [`PART`] of the places: what second attempts take, and what is lost with attempts that are ended for others. They
//! fill as time goes by, up to what gathers in a while, so over longer times no more than that part of the places is spent, however few there
//! are.

use std::collections::BTreeMap;

use taskmaster_protocol::PartitionId;
use taskmaster_scheduler::Millis;
use taskmaster_scheduler::restart::Ledger;

use crate::order::WASTE_MAX;
use crate::partition::Place;

/// One in so many of the places may be spent.
const PART: u64 = 20;
/// For so long an allowance gathers that is not used, in microseconds: that of second attempts, and that of ended ones, which may have run
/// for long.
const SECOND_KEPT_US: u64 = 600_000_000;
const PREEMPTION_KEPT_US: u64 = 3_600_000_000;

/// Place time that may be spent, in microseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allowance {
    /// Below zero, what was spent beyond it is made good first.
    left_us: i64,
    kept_us: u64,
}

impl Allowance {
    /// Fills it with what so many places give in `passed_us`.
    fn fill(&mut self, places: u64, passed_us: u64) {
        let part_us = |us: u64| i64::try_from(places.saturating_mul(us) / PART).unwrap_or(i64::MAX);
        let more_us = part_us(passed_us.min(self.kept_us));
        self.left_us = self.left_us.saturating_add(more_us).min(part_us(self.kept_us));
    }

    /// What is left, in microseconds.
    pub(crate) fn left_us(self) -> u64 {
        u64::try_from(self.left_us).unwrap_or(0)
    }

    /// Spends some.
    pub(crate) fn spend(&mut self, us: u64) {
        self.left_us = self.left_us.saturating_sub_unsigned(us);
    }
}

/// Counters since start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    /// Second attempts that began.
    pub(crate) second: u64,
    /// Tasks that a second attempt ended.
    pub(crate) second_won: u64,
    /// Attempts that were ended for tasks of a higher priority.
    pub(crate) preempted: u64,
    /// Attempts that were ended for tasks that are expected to take much less.
    pub(crate) given_up: u64,
    /// What attempts ran for that were ended so, or that another one overtook, in microseconds.
    pub(crate) wasted_us: u64,
}

/// A shard's part in attempts of restartable tasks.
#[derive(Debug)]
pub(crate) struct Restarts {
    /// Places at the last look: leases and credit of all workers.
    places: u64,
    /// When they were looked at.
    looked_us: u64,
    /// The attempt behind which the next look at a partition begins, where one look does not take in all.
    cursors: BTreeMap<(Look, PartitionId), Place>,
    /// A timer for the next look is set.
    pub(crate) is_armed: bool,
    /// Second attempts that run.
    pub(crate) seconds: u64,
    pub(crate) second: Allowance,
    pub(crate) preemption: Allowance,
    /// What attempts of restartable tasks used, and what was lost by giving some up; times since `base_us`.
    ledger: Ledger,
    base_us: u64,
    pub(crate) counters: Counters,
}

/// What is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Look {
    /// Attempts that are late.
    Second,
    /// Attempts that are to be judged.
    GivingUp,
}

impl Default for Restarts {
    fn default() -> Self {
        Self {
            places: 0,
            looked_us: 0,
            cursors: BTreeMap::new(),
            is_armed: false,
            seconds: 0,
            second: Allowance { left_us: 0, kept_us: SECOND_KEPT_US },
            preemption: Allowance { left_us: 0, kept_us: PREEMPTION_KEPT_US },
            ledger: Ledger::new(WASTE_MAX),
            base_us: 0,
            counters: Counters::default(),
        }
    }
}

impl Restarts {
    /// Time passed, with so many places now.
    pub(crate) fn pass(&mut self, places: u64, now_us: u64) {
        let passed_us = if self.looked_us == 0 { u64::MAX } else { now_us.saturating_sub(self.looked_us) };
        // Who comes brings no allowance for the time before.
        let before = if self.looked_us == 0 { places } else { self.places.min(places) };
        self.second.fill(before, passed_us);
        self.preemption.fill(before, passed_us);
        if self.looked_us != 0 {
            self.second.spend(self.seconds.saturating_mul(passed_us));
        }
        (self.places, self.looked_us) = (places, now_us);
    }

    /// The place behind which a partition's attempts are looked at.
    pub(crate) fn looked_at(&self, look: Look, partition: PartitionId) -> Place {
        self.cursors.get(&(look, partition)).copied().unwrap_or_default()
    }

    /// The next look goes on behind this place, or begins anew.
    pub(crate) fn look_on(&mut self, look: Look, partition: PartitionId, after: Option<Place>) {
        match after {
            None => drop(self.cursors.remove(&(look, partition))),
            Some(after) => drop(self.cursors.insert((look, partition), after)),
        }
    }

    /// The ledger counts in milliseconds, whose sums stay whole numbers if they begin small.
    fn millis(&self, at_us: u64) -> Millis {
        Millis::try_from(at_us.saturating_sub(self.base_us) / 1_000).unwrap_or(Millis::MAX)
    }

    /// So many attempts of restartable tasks begin.
    pub(crate) fn attempts_begin(&mut self, count: u64, now_us: u64) {
        if self.base_us == 0 {
            self.base_us = now_us;
        }
        let now = self.millis(now_us);
        (0..count).for_each(|_| self.ledger.start(now));
    }

    /// One ends that began at `started_us`.
    pub(crate) fn attempt_ended(&mut self, started_us: u64, now_us: u64) {
        self.ledger.end(self.millis(started_us), self.millis(now_us));
    }

    /// Whether one may be lost.
    pub(crate) fn may_lose(&self, started_us: u64, now_us: u64) -> bool {
        self.ledger.allows(self.millis(started_us), self.millis(now_us))
    }

    /// One is lost, which was allowed.
    pub(crate) fn attempt_lost(&mut self, started_us: u64, now_us: u64) {
        self.ledger.lose(self.millis(started_us), self.millis(now_us));
    }

    /// A second attempt is over: what it took since the last look is spent.
    pub(crate) fn second_over(&mut self, now_us: u64) {
        self.seconds -= 1;
        self.second.spend(now_us.saturating_sub(self.looked_us));
    }

    /// Whether one more second attempt may begin.
    pub(crate) fn may_begin(&self) -> bool {
        self.second.left_us() > 0 && self.seconds < self.places.div_ceil(PART)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn over_time_second_attempts_take_a_twentieth_of_the_places_however_few() {
        for places in [1u64, 4, 16, 100] {
            let (mut restarts, mut used_us, mut now_us) = (Restarts::default(), 0, 1_000);
            let (step_us, steps) = (20_000, 500_000);
            for _ in 0..steps {
                restarts.pass(places, now_us);
                restarts.seconds = 0;
                while restarts.may_begin() {
                    restarts.seconds += 1;
                }
                used_us += restarts.seconds * step_us;
                now_us += step_us;
            }
            let bound_us = places * (steps * step_us + SECOND_KEPT_US) / PART;
            assert!(used_us <= bound_us + step_us, "{used_us} of {bound_us} with {places} places");
            assert!(used_us > bound_us / 10 * 8, "{used_us} of {bound_us} with {places} places");
            assert!(restarts.seconds <= places.div_ceil(PART));
        }
    }
}

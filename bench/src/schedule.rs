//! The clock of a run and the intended times of an open loop.

use std::time::{Duration, Instant};

/// Time since the run's start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: Instant,
    start_unix_ms: u64,
}

impl Clock {
    pub(crate) fn start() -> Self {
        let since_1970 = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
        Self { start: Instant::now(), start_unix_ms: u64::try_from(since_1970.as_millis()).unwrap_or(0) }
    }

    /// Nanoseconds since the start.
    pub(crate) fn now_ns(self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).expect("a run lasts less than 584 years")
    }

    /// Milliseconds since 1970 at `ns` nanoseconds after the start.
    pub(crate) fn unix_ms(self, ns: u64) -> u64 {
        self.start_unix_ms + ns / 1_000_000
    }
}

/// Fractional bits of an interval.
const FRACTION_BITS: u32 = 16;

/// Evenly spaced intended times.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schedule {
    interval_fixed: u128,
    origin_ns: u64,
    origin_index: u64,
}

impl Schedule {
    /// `per_s` submissions per second, number `origin_index` of them at `origin_ns`.
    pub(crate) fn new(per_s: f64, origin_ns: u64, origin_index: u64) -> Self {
        let scaled = Duration::from_secs_f64(f64::from(1u32 << FRACTION_BITS) / per_s);
        Self { interval_fixed: scaled.as_nanos().max(1), origin_ns, origin_index }
    }

    /// Intended time of submission number `index`, in nanoseconds since the start.
    pub(crate) fn intended_ns(self, index: u64) -> u64 {
        let since = (self.interval_fixed * u128::from(index - self.origin_index)) >> FRACTION_BITS;
        self.origin_ns + u64::try_from(since).expect("a run lasts less than 584 years")
    }

    /// Number of the first submission intended at or after `ns`.
    pub(crate) fn first_at(self, ns: u64) -> u64 {
        let since_ns = u128::from(ns.saturating_sub(self.origin_ns));
        let index = (since_ns << FRACTION_BITS).div_ceil(self.interval_fixed);
        u64::try_from(index).unwrap_or(u64::MAX).saturating_add(self.origin_index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intended_times_do_not_drift() {
        let schedule = Schedule::new(300_000.0, 0, 0);
        assert_eq!(schedule.intended_ns(0), 0);
        let day = schedule.intended_ns(300_000 * 86_400);
        assert!(day.abs_diff(86_400_000_000_000) < 1_000_000, "{day}");
    }

    #[test]
    fn first_submission_at_a_time_is_not_earlier_and_the_one_before_is() {
        for per_s in [0.5, 1_000.0, 33_333.3, 1_000_000.0] {
            let schedule = Schedule::new(per_s, 1_000, 77);
            for ns in [0, 1, 999_999, 1_000_000, 500_000_000, 7_123_456_789] {
                let index = schedule.first_at(ns);
                assert!(schedule.intended_ns(index) + 1 >= ns, "{per_s} {ns} {index}");
                assert!(index == 77 || schedule.intended_ns(index - 1) < ns, "{per_s} {ns} {index}");
            }
        }
    }
}

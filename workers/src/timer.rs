//! Sleeping to within some tens of microseconds, without blocking the runtime's thread.
//!
//! The runtime's own timer has steps of a millisecond and rounds up. It takes the long part of a sleep, and a timerfd the
//! last two milliseconds; what is shorter than the timerfd's own cost is spun. Where no timerfd can be had, the runtime's
//! timer takes it all, up to a millisecond late.

use crate::readiness::readable;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use std::time::{Duration, Instant};

/// What the runtime's timer may overshoot by, and so what is left to the timerfd.
const COARSE: Duration = Duration::from_millis(2);
/// Below this, arming a timerfd costs more than waiting.
const SPIN: Duration = Duration::from_micros(15);

/// Sleeps until `end`.
pub async fn sleep_until(end: Instant) {
    let left = end.saturating_duration_since(Instant::now());
    if left > COARSE {
        tokio::time::sleep_until((end - COARSE).into()).await;
    }
    let left = end.saturating_duration_since(Instant::now());
    if left > SPIN && fine(left).await.is_err() {
        tokio::time::sleep_until(end.into()).await;
    }
    while Instant::now() < end {
        std::hint::spin_loop();
    }
}

async fn fine(left: Duration) -> std::io::Result<()> {
    let timer =
        rustix::time::timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
    let never = Timespec { tv_sec: 0, tv_nsec: 0 };
    let value = Timespec { tv_sec: 0, tv_nsec: i64::from(left.subsec_nanos()) };
    rustix::time::timerfd_settime(
        &timer,
        TimerfdTimerFlags::empty(),
        &Itimerspec { it_interval: never, it_value: value },
    )?;
    readable(timer)?.readable().await.map(|_ready| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn sleeps_never_end_early_and_short_ones_are_well_under_a_millisecond_late() {
        for micros in [5, 100, 700, 2_500] {
            let mut least = Duration::MAX;
            // A busy machine makes some late, but not all.
            for _ in 0..2_000 {
                let end = Instant::now() + Duration::from_micros(micros);
                sleep_until(end).await;
                least = least.min(Instant::now().checked_duration_since(end).expect("a sleep ended early"));
                if least < Duration::from_micros(900) {
                    break;
                }
            }
            assert!(least < Duration::from_micros(900), "{micros} µs: {least:?} late");
        }
    }
}

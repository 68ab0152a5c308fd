//! A clock that never goes back and never stands still, over one that may do both.
//!
//! The node's clock is set back: the shard's time goes on from where it was, ahead of the node's by as much. Set forward: the
//! shard's time follows.

/// The shard's time against the node's.
#[derive(Debug)]
pub(super) struct Clock {
    last_outside_us: u64,
    ahead_us: u64,
}

impl Clock {
    pub(super) const fn new(now_us: u64) -> Self {
        Self { last_outside_us: now_us, ahead_us: 0 }
    }

    /// The shard's time, given the node's.
    pub(super) fn now_us(&mut self, outside_us: u64) -> u64 {
        self.ahead_us += self.last_outside_us.saturating_sub(outside_us);
        self.last_outside_us = outside_us;
        outside_us + self.ahead_us
    }

    /// The node's time, given the shard's.
    pub(super) const fn outside_us(&self, now_us: u64) -> u64 {
        now_us.saturating_sub(self.ahead_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_on_when_the_clock_is_set_back() {
        let mut clock = Clock::new(1_000);
        assert_eq!([1_500, 200, 300, 5_000].map(|now_us| clock.now_us(now_us)), [1_500, 1_500, 1_600, 6_300]);
        assert_eq!(clock.outside_us(6_400), 5_100);
    }
}

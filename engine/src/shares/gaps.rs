//! What is owed in vain is forgotten.
//!
//! A queue that only some of the workers serve may be kept from its share for as long as it likes, and fall behind those that are served
//! elsewhere, too. It has the first turn where it is served; but when it comes to be served everywhere it would have all places until
//! it has caught up. So gaps between virtual times that no competition makes are closed down to what competition may make: all above a
//! gap come nearer by the same time, so that among themselves, and among those below, nothing changes.

use super::{HORIZON_MIN_US, OWED, Shares};

/// A gap that is closed.
struct Gap {
    above_us: f64,
    /// How much nearer those below the gap come, and those above it.
    below_by_us: f64,
    above_by_us: f64,
}

/// Gaps between times that are wider than so much, in their order.
fn gaps(mut times_us: Vec<f64>, most_us: f64) -> Vec<Gap> {
    times_us.sort_unstable_by(f64::total_cmp);
    let mut by_us = 0.0;
    let wide = times_us.windows(2).filter(|pair| pair[1] - pair[0] > most_us);
    let closing = wide.map(|pair| {
        let below_by_us = by_us;
        by_us += pair[1] - pair[0] - most_us;
        Gap { above_us: pair[0], below_by_us, above_by_us: by_us }
    });
    closing.collect()
}

/// Where a time is once gaps are closed. Of the idle, some are within a gap, and stay between its ends.
fn closed(time_us: f64, gaps: &[Gap], most_us: f64) -> f64 {
    let below = &gaps[..gaps.partition_point(|gap| gap.above_us < time_us)];
    below
        .last()
        .map_or(time_us, |gap| (time_us - gap.above_by_us).max(time_us.min(gap.above_us + most_us) - gap.below_by_us))
}

impl Shares {
    /// Closes gaps between those that wait.
    pub(super) fn close_gaps(&mut self) {
        let shared = || self.queues.iter().filter(|queue| !queue.pools.is_empty());
        let means = shared().map(|queue| queue.account.mean_us());
        let held: f64 = shared().map(|queue| queue.account.places).sum();
        let most_us = OWED * held.max(1.0) * means.fold(HORIZON_MIN_US, f64::max);
        let busy = self.tenants.iter().filter(|tenant| tenant.busy > 0);
        let closing = gaps(busy.map(|tenant| tenant.account.virtual_us).collect(), most_us);
        if !closing.is_empty() {
            for tenant in &mut self.tenants {
                tenant.account.virtual_us = closed(tenant.account.virtual_us, &closing, most_us);
            }
            for pool in &mut self.pools {
                pool.tenants_us = closed(pool.tenants_us, &closing, most_us);
            }
        }
        for number in 0..self.tenants.len() {
            self.close_gaps_of(number, most_us);
        }
    }

    /// The same among the queues of a tenant.
    fn close_gaps_of(&mut self, number: usize, most_us: f64) {
        let tenant = &self.tenants[number];
        if tenant.busy < 2 {
            return;
        }
        let busy = tenant.queues.iter().map(|&queue| &self.queues[queue as usize]).filter(|queue| !queue.is_idle);
        let closing = gaps(busy.map(|queue| queue.account.virtual_us).collect(), most_us);
        if closing.is_empty() {
            return;
        }
        for &queue in &tenant.queues {
            let account = &mut self.queues[queue as usize].account;
            account.virtual_us = closed(account.virtual_us, &closing, most_us);
        }
        let tenant = u32::try_from(number).expect("no more than queues");
        for level_us in self.pools.iter_mut().filter_map(|pool| pool.queues_us.get_mut(&tenant)) {
            *level_us = closed(*level_us, &closing, most_us);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_closed_and_distances_within_stay() {
        let times = [1.0, 3.0, 103.0, 104.0, 204.5];
        let closing = gaps(times.to_vec(), 10.0);
        let after = times.map(|time| closed(time, &closing, 10.0));
        assert_eq!(after, [1.0, 3.0, 13.0, 14.0, 24.0]);
        // Idle ones keep their place in the order.
        assert_eq!([50.0, 7.0, 0.5].map(|time| closed(time, &closing, 10.0)), [13.0, 7.0, 0.5]);
    }
}

//! How much each shard's connection may push, so that what this worker holds stays near what it can run.
//!
//! The target is concurrency + prefetch. Each connection starts with an equal share. A connection whose credit is used
//! up shows a backlog, so it gets what the worker has free, while the shares of quiet connections stay where they are;
//! the price is that all connections together may hold credit beyond the target. Invariants:
//! - held + unused ≤ 2 × target + shards × share (one shard: ≤ target);
//! - while the worker has a free slot, every connection has unused credit, so no backlog waits for another shard.

/// Credit of all connections of a worker.
#[derive(Debug)]
pub(super) struct Credits {
    concurrency: u32,
    unused: Vec<u32>,
    /// Whether the credit was ever used up since the connection was opened.
    has_backlog: Vec<bool>,
}

impl Credits {
    pub(super) fn new(concurrency: u32, shards: usize) -> Self {
        Self { concurrency, unused: vec![0; shards], has_backlog: vec![false; shards] }
    }

    pub(super) fn sessions(&self) -> usize {
        self.unused.len()
    }

    /// One more connection.
    pub(super) fn add_session(&mut self) {
        self.unused.push(0);
        self.has_backlog.push(false);
    }

    /// The connection was lost: what it had is void.
    pub(super) fn reset(&mut self, session: usize) {
        self.unused[session] = 0;
        self.has_backlog[session] = false;
    }

    /// Tasks arrived.
    pub(super) fn used(&mut self, session: usize, tasks: u32) {
        self.unused[session] = self.unused[session].saturating_sub(tasks);
        self.has_backlog[session] |= self.unused[session] == 0;
    }

    /// Credit to send to a connection, given the tasks held and the tasks to hold ready; 0 when it is not yet worth a
    /// frame.
    pub(super) fn grant(&mut self, session: usize, held: u32, prefetch: u32) -> u32 {
        let shards = u32::try_from(self.unused.len()).expect("a node has at most 65,535 shards");
        let target = self.concurrency.saturating_add(prefetch);
        let free = target.saturating_sub(held);
        let share = target.div_ceil(shards);
        let unused = self.unused[session];
        let wanted = if shards == 1 || (unused == 0 && self.has_backlog[session]) { free } else { share.min(free) };
        let total: u32 = self.unused.iter().fold(held, |sum, &unused| sum.saturating_add(unused));
        let allowed = if shards == 1 { target } else { target.saturating_mul(2) }.saturating_sub(total);
        let floor = if unused == 0 { share.min(free) } else { 0 };
        let grant = wanted.saturating_sub(unused).min(allowed.max(floor));
        let has_free_slot = held.saturating_add(unused) < self.concurrency;
        if grant == 0 || !(has_free_slot || unused == 0 || grant >= prefetch.div_ceil(2).max(1)) {
            return 0;
        }
        self.unused[session] += grant;
        grant
    }

    /// Connections that a free slot should wake: they have a backlog perhaps, and no credit.
    pub(super) fn starving(&self, held: u32, prefetch: u32) -> impl Iterator<Item = usize> {
        let is_free = held < self.concurrency.saturating_add(prefetch);
        self.unused.iter().enumerate().filter(move |&(_, &unused)| is_free && unused == 0).map(|(session, _)| session)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_connection_has_exactly_what_the_worker_can_take() {
        let mut credits = Credits::new(8, 1);
        assert_eq!(credits.grant(0, 0, 0), 8);
        credits.used(0, 8);
        assert_eq!(credits.grant(0, 8, 0), 0);
        assert_eq!(credits.grant(0, 7, 0), 1);
    }

    #[test]
    fn a_backlog_on_one_shard_gets_the_whole_worker() {
        let mut credits = Credits::new(8, 2);
        assert_eq!((credits.grant(0, 0, 0), credits.grant(1, 0, 0)), (4, 4));
        credits.used(0, 4);
        assert_eq!(credits.grant(0, 4, 0), 4);
    }

    proptest! {
        #[test]
        fn bounds_hold_and_no_backlog_starves(
            concurrency in 1u32..40,
            shards in 1usize..5,
            prefetch in 0u32..20,
            steps in proptest::collection::vec((0usize..5, any::<bool>(), 1u32..50), 1..200),
        ) {
            let mut credits = Credits::new(concurrency, shards);
            let target = concurrency + prefetch;
            let bound = if shards == 1 { target } else {
                2 * target + u32::try_from(shards).unwrap() * target.div_ceil(u32::try_from(shards).unwrap())
            };
            let mut held = 0u32;
            for session in 0..shards {
                credits.grant(session, held, prefetch);
            }
            for (session, arrives, count) in steps {
                let session = session % shards;
                if arrives {
                    let count = count.min(credits.unused[session]);
                    credits.used(session, count);
                    held += count;
                } else {
                    held -= count.min(held);
                }
                credits.grant(session, held, prefetch);
                let starving: Vec<usize> = credits.starving(held, prefetch).collect();
                for other in starving {
                    credits.grant(other, held, prefetch);
                }
                prop_assert!(held + credits.unused.iter().sum::<u32>() <= bound);
                if held < concurrency {
                    prop_assert!(credits.unused.iter().all(|&unused| unused > 0));
                }
            }
        }
    }
}

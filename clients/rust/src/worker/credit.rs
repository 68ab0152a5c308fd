//! How much each connection may push, so that what this worker holds stays near what it can run.
//!
//! A worker has a connection to every shard of every node. The target is concurrency + prefetch. Each connection starts
//! with an equal share. A connection whose credit is used up shows a backlog, so it gets what the worker has free, while
//! the shares of quiet connections stay where they are; the price is that all connections together may hold credit beyond
//! the target. Connections that are away, as those to a node that is gone, have no share. Invariants:
//! - held + unused ≤ 3 × target + (connections − 1) × share (one connection: ≤ target): the backlog of a connection is granted
//!   within 2 × target; a connection without any credit gets a share beyond that, but only into what the worker has free;
//! - while the worker has a free slot, every connection has unused credit, so no backlog waits for another shard.

/// What one connection has.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
    unused: u32,
    /// Whether the credit was ever used up since the connection was opened.
    has_backlog: bool,
    /// The connection cannot be had: it counts for nothing.
    is_away: bool,
}

/// Credit of all connections of a worker, by session.
#[derive(Debug)]
pub(super) struct Credits {
    concurrency: u32,
    shares: Vec<Option<Share>>,
}

impl Credits {
    pub(super) fn new(concurrency: u32) -> Self {
        Self { concurrency, shares: Vec::new() }
    }

    /// One more session; its number.
    pub(super) fn add(&mut self) -> usize {
        let free = self.shares.iter().position(Option::is_none);
        let session = free.unwrap_or_else(|| {
            self.shares.push(None);
            self.shares.len() - 1
        });
        self.shares[session] = Some(Share::default());
        session
    }

    /// A session ended; its number is free again.
    pub(super) fn remove(&mut self, session: usize) {
        self.shares[session] = None;
    }

    fn share(&mut self, session: usize) -> &mut Share {
        self.shares[session].as_mut().expect("a session has its share until it ends")
    }

    fn present(&self) -> impl Iterator<Item = (usize, Share)> {
        self.shares.iter().enumerate().filter_map(|(session, share)| share.map(|share| (session, share)))
    }

    /// The connection was lost: what it had is void.
    pub(super) fn reset(&mut self, session: usize) {
        *self.share(session) = Share::default();
    }

    /// The connection cannot be opened again.
    pub(super) fn set_away(&mut self, session: usize) {
        *self.share(session) = Share { is_away: true, ..Share::default() };
    }

    /// Tasks arrived.
    pub(super) fn used(&mut self, session: usize, tasks: u32) {
        let share = self.share(session);
        share.unused = share.unused.saturating_sub(tasks);
        share.has_backlog |= share.unused == 0;
    }

    /// Credit to send to a connection, given the tasks held and the tasks to hold ready; 0 when it is not yet worth a
    /// frame.
    pub(super) fn grant(&mut self, session: usize, held: u32, prefetch: u32) -> u32 {
        self.share(session).is_away = false;
        let Share { unused, has_backlog, .. } = *self.share(session);
        let shards = self.present().filter(|(_, share)| !share.is_away).count();
        let shards = u32::try_from(shards).expect("a worker has few connections");
        let target = self.concurrency.saturating_add(prefetch);
        let free = target.saturating_sub(held);
        let share = target.div_ceil(shards);
        let wanted = if shards == 1 || (unused == 0 && has_backlog) { free } else { share.min(free) };
        let total: u32 = self.present().fold(held, |sum, (_, share)| sum.saturating_add(share.unused));
        let allowed = if shards == 1 { target } else { target.saturating_mul(2) }.saturating_sub(total);
        let floor = if unused == 0 { share.min(free) } else { 0 };
        let grant = wanted.saturating_sub(unused).min(allowed.max(floor));
        let has_free_slot = held.saturating_add(unused) < self.concurrency;
        if grant == 0 || !(has_free_slot || unused == 0 || grant >= prefetch.div_ceil(2).max(1)) {
            return 0;
        }
        self.share(session).unused += grant;
        grant
    }

    /// Connections that a free slot should wake: they have a backlog perhaps, and no credit.
    pub(super) fn starving(&self, held: u32, prefetch: u32) -> impl Iterator<Item = usize> {
        let is_free = held < self.concurrency.saturating_add(prefetch);
        self.present()
            .filter(move |(_, share)| is_free && share.unused == 0 && !share.is_away)
            .map(|(session, _)| session)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn with_sessions(concurrency: u32, sessions: usize) -> Credits {
        let mut credits = Credits::new(concurrency);
        (0..sessions).for_each(|session| assert_eq!(credits.add(), session));
        credits
    }

    fn unused(credits: &Credits, session: usize) -> u32 {
        credits.shares[session].map_or(0, |share| share.unused)
    }

    #[test]
    fn one_connection_has_exactly_what_the_worker_can_take() {
        let mut credits = with_sessions(8, 1);
        assert_eq!(credits.grant(0, 0, 0), 8);
        credits.used(0, 8);
        assert_eq!(credits.grant(0, 8, 0), 0);
        assert_eq!(credits.grant(0, 7, 0), 1);
    }

    #[test]
    fn a_backlog_on_one_shard_gets_the_whole_worker() {
        let mut credits = with_sessions(8, 2);
        assert_eq!((credits.grant(0, 0, 0), credits.grant(1, 0, 0)), (4, 4));
        credits.used(0, 4);
        assert_eq!(credits.grant(0, 4, 0), 4);
    }

    #[test]
    fn a_node_that_is_away_leaves_its_share_to_the_others_and_gets_it_back() {
        let mut credits = with_sessions(8, 4);
        let grants: Vec<u32> = (0..4).map(|session| credits.grant(session, 0, 0)).collect();
        assert_eq!(grants, [2, 2, 2, 2]);
        credits.set_away(2);
        credits.set_away(3);
        assert_eq!((credits.grant(0, 0, 0), credits.grant(1, 0, 0)), (2, 2));
        assert!(credits.starving(0, 0).next().is_none());
        credits.used(0, 4);
        credits.used(1, 4);
        assert_eq!(credits.starving(7, 0).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(credits.grant(2, 0, 0), 3, "a third of the target, rounded up");
        credits.remove(1);
        assert_eq!(credits.add(), 1);
    }

    proptest! {
        #[test]
        fn bounds_hold_and_no_backlog_starves(
            concurrency in 1u32..40,
            shards in 1usize..5,
            prefetch in 0u32..20,
            steps in proptest::collection::vec((0usize..5, any::<bool>(), 1u32..50), 1..200),
        ) {
            let mut credits = with_sessions(concurrency, shards);
            let target = concurrency + prefetch;
            let bound = if shards == 1 { target } else {
                let shards = u32::try_from(shards).unwrap();
                3 * target + (shards - 1) * target.div_ceil(shards)
            };
            let mut held = 0u32;
            for session in 0..shards {
                credits.grant(session, held, prefetch);
            }
            for (session, arrives, count) in steps {
                let session = session % shards;
                if arrives {
                    let count = count.min(unused(&credits, session));
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
                prop_assert!(held + (0..shards).map(|session| unused(&credits, session)).sum::<u32>() <= bound);
                if held < concurrency {
                    prop_assert!((0..shards).all(|session| unused(&credits, session) > 0));
                }
            }
        }
    }
}

//! A session whose node is away, or does not lead any more: connects again, and sends what others lead to them.
//!
//! Invariant: nothing here waits for a connection without taking events, so that slots become free and answers find
//! their leader while a node hangs.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use taskmaster_protocol::PartitionId;
use tokio::task::JoinError;
use tokio::time::{Instant, sleep, sleep_until};

use super::{Drain, Line, Session, leader_elsewhere};
use crate::cluster::Backoff;
use crate::error::Error;
use crate::worker::courier::{Delivered, deliver};
use crate::worker::outbox::Sent;

/// Longest wait between connection attempts to a node that has company: work goes on elsewhere, but it should find its
/// way back soon.
const REOPEN_MAX: Duration = Duration::from_secs(1);
/// How old the map may be that decides where answers go after a loss.
const MAP_AGE: Duration = Duration::from_millis(20);

impl Session {
    /// The connection is gone.
    pub(super) fn lost(&mut self) {
        self.outbox.lost();
        self.offer.runner.reset_credit(self.number);
        // Their leases ended with the connection, or will.
        self.shed.clear();
        self.extend_at_once(|_| true);
    }

    /// Connects again, for as long as there is something to connect for.
    pub(super) async fn reopen(&mut self) -> Option<Line> {
        let has_company = self.topology.nodes().len() > 1;
        let wait = Backoff::new(&self.offer.cluster.patience);
        let mut wait = if has_company { wait.at_most(REOPEN_MAX) } else { wait };
        let mut is_told = false;
        loop {
            self.meanwhile(sleep(wait.next())).await?;
            let Some(place) = self.topology.place(self.key) else { continue };
            let opening = self.opening(place);
            match self.meanwhile(opening).await? {
                Ok(line) => {
                    self.offer.runner.counters.reconnects.fetch_add(1, Ordering::Relaxed);
                    self.extend_at_once(|_| true);
                    return Some(line);
                }
                Err(error) if is_told => {
                    tracing::debug!(session = self.number, %error, "a worker still cannot connect")
                }
                Err(error) => {
                    is_told = true;
                    tracing::warn!(session = self.number, %error, "a worker cannot connect; trying again");
                }
            }
            self.offer.runner.set_away(self.number);
            // The node may have come back with another map, or others lead; that it is unreachable is no news.
            let cluster = Arc::clone(&self.offer.cluster);
            drop(self.meanwhile(async move { cluster.learn_if_older(MAP_AGE).await }).await?);
        }
    }

    /// Does something while there is no connection; `None` when there is nothing left to connect for.
    async fn meanwhile<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        loop {
            self.hand_over();
            let now = Instant::now();
            if self.extend_at.is_some_and(|at| at <= now) && self.extend(None, now).is_err() {
                return None;
            }
            if self.is_over() {
                return None;
            }
            let alarm = self.extend_at.unwrap_or_else(|| Instant::now() + REOPEN_MAX * 3600);
            tokio::select! {
                done = &mut work => return Some(done),
                Some(event) = self.events.recv() => self.take(event),
                Some(delivered) = self.away.join_next() => self.delivered(delivered),
                Ok(()) = self.to_follow.changed() => drop(self.follow()),
                () = sleep_until(alarm) => {}
                changed = self.drain.changed() => if changed.is_err() { return None },
            }
        }
    }

    /// Whether nothing is left to do here.
    fn is_over(&self) -> bool {
        let drain = *self.drain.borrow();
        let is_wanted = drain == Drain::No && self.topology.place(self.key).is_some();
        drain == Drain::GiveUp || (!is_wanted && self.is_idle())
    }

    /// Takes over a new topology; an error when this session's shard is no more.
    pub(super) fn follow(&mut self) -> Result<(), Error> {
        self.topology = Arc::clone(&self.to_follow.borrow_and_update());
        self.hand_over();
        let (topology, key) = (Arc::clone(&self.topology), self.key);
        // A new leader says at once which leases it knows.
        self.extend_at_once(|held| {
            let leader = leader_elsewhere(&topology, key, held.lease.id.partition());
            leader.is_some_and(|leader| leader != held.extended_by)
        });
        match self.topology.place(self.key) {
            Some(_) => Ok(()),
            None => Err(Error::lost("the shard is not in the cluster's map any more")),
        }
    }

    fn extend_at_once(&mut self, is_due: impl Fn(&super::Held) -> bool) {
        let now = Instant::now();
        let mut is_any_due = false;
        for held in self.leases.iter_mut().flatten().filter(|held| is_due(held)) {
            held.extend_at = now;
            is_any_due = true;
        }
        if is_any_due {
            self.extend_at = Some(now);
        }
    }

    pub(super) fn is_elsewhere(&self, partition: PartitionId) -> bool {
        leader_elsewhere(&self.topology, self.key, partition).is_some()
    }

    /// Sends answers for partitions that others lead to them.
    pub(super) fn hand_over(&mut self) {
        if self.topology.nodes().len() == 1 && self.topology.place(self.key).is_some() {
            return;
        }
        let (topology, key) = (Arc::clone(&self.topology), self.key);
        for (frame, is_resend) in
            self.outbox.take_elsewhere(|partition| leader_elsewhere(&topology, key, partition).is_some())
        {
            self.deliver(frame, is_resend);
        }
    }

    /// Sends a frame to whoever leads its partition.
    pub(super) fn deliver(&mut self, frame: Sent, is_resend: bool) {
        if let (Sent::Extend(_), Some(partition)) = (&frame, frame.partition())
            && !self.extending.insert(partition)
        {
            // The one under way asks the same.
            return;
        }
        let cluster = Arc::clone(&self.offer.cluster);
        self.away.spawn(async move { deliver(&cluster, frame, is_resend).await });
    }

    /// What became of such a frame.
    pub(super) fn delivered(&mut self, delivered: Result<Delivered, JoinError>) {
        let Ok(Delivered { frame, is_resend, result }) = delivered else {
            tracing::error!(session = self.number, "a worker's answer was dropped by a panic; its tasks run again");
            return;
        };
        if let (Sent::Extend(_), Some(partition)) = (&frame, frame.partition()) {
            self.extending.remove(&partition);
        }
        let result = match result {
            Ok(reply) => self.accepted(frame, is_resend, &reply),
            Err(Error::Refused(refusal)) if refusal.code != taskmaster_protocol::Code::NotLeader => {
                self.refused(frame, is_resend, &refusal);
                Ok(())
            }
            Err(error) => {
                if matches!(frame, Sent::Complete(..) | Sent::Fail(..)) {
                    self.outbox.again(frame, true);
                }
                Err(error)
            }
        };
        if let Err(error) = result {
            tracing::warn!(session = self.number, %error, "a worker's frame did not find its partition's leader");
        }
    }
}

//! The dispatcher's volatile picture: which queues have ready lanes, which workers have credit.
//!
//! Nothing here is logged. After a restart it is rebuilt from the partitions' ready tasks and the workers'
//! subscriptions. Matching itself is in [`crate::assign`].

use std::collections::VecDeque;

use hashbrown::HashMap;
use taskmaster_protocol::PartitionId;
use taskmaster_protocol::body::restart;

use crate::effects::ConnId;
use crate::hash::FixedState;
use crate::neighbours::{Beside, Neighbours};
use crate::order::{Learned, Order};
use crate::peer::PeerAddr;
use crate::permits::{Note, NoteAbout, Permits};
use crate::queue::QueueSettings;
use crate::reservations::{Reservation, Reservations};
use crate::resources::Resources;
use crate::restarts::Restarts;
use crate::shares::{Candidate, NO_POOL, Shares};

/// A lane of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LaneRef {
    pub(crate) partition: u16,
    pub(crate) lane: u32,
}

/// Most workers whose free places are counted.
const FREE_LOOK_MAX: usize = 64;
/// Number of priority classes.
pub(crate) const PRIORITIES: usize = 4;

/// A token bucket in thousandths of a task.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    pub(crate) rate_milli_per_s: u64,
    pub(crate) burst_milli: u64,
    level_milli: u64,
    at_us: u64,
}

impl Bucket {
    pub(crate) fn new(rate_milli_per_s: u64, burst: u32, now_us: u64) -> Self {
        let burst_milli = u64::from(burst.max(1)) * 1_000;
        Self { rate_milli_per_s, burst_milli, level_milli: burst_milli, at_us: now_us }
    }

    /// Takes back what was granted and not used.
    pub(crate) fn give_back(&mut self, count: u32) {
        self.level_milli = (self.level_milli + u64::from(count) * 1_000).min(self.burst_milli);
    }

    /// Whole tasks that may start.
    pub(crate) fn available(&mut self, now_us: u64) -> u32 {
        let elapsed_us = now_us.saturating_sub(self.at_us);
        let gain_milli = u128::from(elapsed_us) * u128::from(self.rate_milli_per_s) / 1_000_000;
        if gain_milli > 0 {
            let level = u128::from(self.level_milli) + gain_milli;
            self.level_milli = u64::try_from(level.min(u128::from(self.burst_milli))).expect("bounded by a u64");
            // Time that has not made a whole thousandth yet stays to the bucket's credit, however often it is asked.
            let used_us = (gain_milli * 1_000_000).div_ceil(u128::from(self.rate_milli_per_s));
            self.at_us += u64::try_from(used_us).map_or(elapsed_us, |used_us| used_us.min(elapsed_us));
        }
        u32::try_from((self.level_milli / 1_000).min(u64::from(u32::MAX))).expect("bounded above")
    }

    /// Takes `count` tasks that [`Self::available`] granted.
    pub(crate) const fn take(&mut self, count: u32) {
        self.level_milli -= count as u64 * 1_000;
    }

    /// When the next whole task will be available, in microseconds since 1970.
    pub(crate) fn next_us(&self) -> u64 {
        let missing_milli = 1_000u64.saturating_sub(self.level_milli);
        self.at_us + (missing_milli * 1_000_000).div_ceil(self.rate_milli_per_s.max(1))
    }
}

/// One queue as the dispatcher sees it.
#[derive(Debug, Default)]
pub(crate) struct DispatchQueue {
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// Lanes with ready tasks, by priority, taken in turns.
    pub(crate) rings: [VecDeque<LaneRef>; PRIORITIES],
    /// Subscribed workers.
    pub(crate) workers: Vec<u32>,
    /// Whose turn it is.
    pub(crate) cursor: usize,
    /// Subscribed workers that have credit.
    pub(crate) with_credit: u32,
    /// Leases held.
    pub(crate) leased: u64,
    /// Most leases at once over all shards; `None` for no limit.
    pub(crate) concurrency: Option<u64>,
    pub(crate) bucket: Option<Bucket>,
    /// A timer is set for the bucket.
    pub(crate) bucket_armed: bool,
    /// How its limits are shared with other shards.
    pub(crate) permits: Permits,
    /// Which lane is next.
    pub(crate) order: Order,
    /// Some kind of its tasks was measured.
    pub(crate) is_measured: bool,
    /// Tasks that slow each other down are not kept apart.
    pub(crate) mixes: bool,
    /// When it is looked at again for tasks that are held, in microseconds since 1970; 0: no timer is set.
    pub(crate) held_until_us: u64,
    /// Workers that are kept for tasks of it, and until when no more are.
    pub(crate) reserved: u32,
    pub(crate) unreserved_until_us: u64,
    /// When a worker was last kept for it though it was not its turn, in microseconds.
    pub(crate) out_of_turn_us: u64,
    dirty: bool,
}

impl DispatchQueue {
    /// Whether tasks of a workflow take each other's turns, and if so whether only those of their own list: where kinds are kept apart, lists
    /// are chosen for their workers.
    pub(crate) fn goes_by_paths(&self) -> Option<bool> {
        self.order.goes_by_paths().map(|of_one_class| of_one_class || self.is_measured && !self.mixes)
    }

    /// Whether lanes with ready tasks are in line.
    pub(crate) fn waits(&self) -> bool {
        self.rings.iter().any(|ring| !ring.is_empty())
    }

    /// Leases begin, which its limits let start.
    pub(crate) fn leases_begin(&mut self, count: u32) {
        self.leased += u64::from(count);
        if !self.permits.is_owner {
            self.permits.held = self.permits.held.saturating_sub(count);
        } else if let Some(bucket) = &mut self.bucket {
            bucket.take(count);
        }
        self.permits.own_first = false;
    }

    /// Whether it has limits that shards share.
    pub(crate) fn is_limited(&self) -> bool {
        self.concurrency.is_some() || self.bucket.is_some()
    }

    /// A note about this queue's permits.
    pub(crate) fn note(&self, note: Note) -> NoteAbout<'_> {
        NoteAbout { namespace: &self.namespace, queue: &self.name, note }
    }
}

/// A subscribed worker.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) conn: ConnId,
    pub(crate) name: String,
    pub(crate) queues: Vec<u32>,
    pub(crate) credit: u32,
    /// `None`: resources are not counted.
    pub(crate) capacity: Option<Resources>,
    pub(crate) used: Resources,
    pub(crate) leases: u32,
    pub(crate) connected: bool,
    /// Places that were freed for others and are not offered yet, until this time.
    pub(crate) owed: u32,
    pub(crate) owed_until_us: u64,
    /// What runs there.
    pub(crate) beside: Beside,
    /// It is kept for a task.
    pub(crate) reserved: Option<Box<Reservation>>,
    /// Workers that serve the same queues.
    pub(crate) pool: u32,
}

impl Worker {
    /// Whether it has credit and room for a task that needs so much.
    pub(crate) fn has_room(&self, need: &Resources) -> bool {
        self.credit > 0 && need.fits_on(self.capacity.as_ref(), &self.used, 1) > 0
    }

    /// Whether it would have room for it if nothing ran there.
    pub(crate) fn could_hold(&self, need: &Resources) -> bool {
        need.fits_on(self.capacity.as_ref(), &Resources::default(), 1) > 0
    }
}

/// The dispatcher of a shard.
#[derive(Debug, Default)]
pub(crate) struct Dispatch {
    pub(crate) queues: Vec<DispatchQueue>,
    by_name: HashMap<(String, String), u32, FixedState>,
    pub(crate) workers: Vec<Worker>,
    by_conn: HashMap<ConnId, u32, FixedState>,
    free_workers: Vec<u32>,
    pub(crate) learned: Learned,
    pub(crate) restarts: Restarts,
    pub(crate) neighbours: Neighbours,
    pub(crate) reservations: Reservations,
    pub(crate) shares: Shares,
    /// Queues go by what was learned without being shown that it is better: for tests.
    pub(crate) trusts_learned: bool,
    /// Queues to look at, in the order in which something changed.
    pub(crate) dirty: VecDeque<u32>,
}

impl Dispatch {
    /// The index of a queue, made on first use.
    pub(crate) fn queue(&mut self, namespace: &str, name: &str) -> u32 {
        if let Some(index) = self.find_queue(namespace, name) {
            return index;
        }
        let index = u32::try_from(self.queues.len()).expect("queues are bounded at admission");
        let mut queue = DispatchQueue { namespace: namespace.to_owned(), name: name.to_owned(), ..Default::default() };
        queue.order.is_trusted = self.trusts_learned;
        self.queues.push(queue);
        self.shares.add_queue(namespace);
        self.by_name.insert((namespace.to_owned(), name.to_owned()), index);
        index
    }

    /// The index of a queue that was named before.
    pub(crate) fn find_queue(&self, namespace: &str, name: &str) -> Option<u32> {
        self.by_name.get(&(namespace.to_owned(), name.to_owned())).copied()
    }

    /// Notes that something changed that may let tasks of `queue` start.
    pub(crate) fn mark(&mut self, queue: u32) {
        let entry = &mut self.queues[queue as usize];
        if !entry.dirty {
            entry.dirty = true;
            self.dirty.push_back(queue);
        }
    }

    /// The next queue to look at.
    pub(crate) fn next_dirty(&mut self) -> Option<u32> {
        let queue = self.dirty.pop_front()?;
        self.queues[queue as usize].dirty = false;
        Some(queue)
    }

    /// Puts a lane with ready tasks in line.
    pub(crate) fn ring(&mut self, queue: u32, priority: u8, lane: LaneRef) {
        self.queues[queue as usize].rings[usize::from(priority)].push_back(lane);
        self.mark(queue);
    }

    /// Takes a partition's lanes of a queue out of the line.
    pub(crate) fn leave_line(&mut self, queue: u32, partition: PartitionId) {
        for ring in &mut self.queues[queue as usize].rings {
            ring.retain(|lane| lane.partition != partition.0);
        }
    }

    /// Registers or replaces the subscription of a connection. Leases that it holds stay its own.
    pub(crate) fn subscribe(
        &mut self,
        conn: ConnId,
        name: String,
        queues: Vec<u32>,
        capacity: Option<Resources>,
        credit: u32,
    ) {
        let (used, leases) = (Resources::default(), 0);
        let (owed, owed_until_us, connected, beside) = (0, 0, true, Beside::default());
        let pool = NO_POOL;
        let worker = Worker {
            conn,
            name,
            queues,
            credit: 0,
            capacity,
            used,
            leases,
            connected,
            owed,
            owed_until_us,
            beside,
            reserved: None,
            pool,
        };
        let index = if let Some(&index) = self.by_conn.get(&conn) {
            self.leave_queues(index);
            let before = core::mem::replace(&mut self.workers[index as usize], worker);
            let worker = &mut self.workers[index as usize];
            (worker.used, worker.leases, worker.beside) = (before.used, before.leases, before.beside);
            index
        } else if let Some(index) = self.free_workers.pop() {
            self.workers[index as usize] = worker;
            index
        } else {
            self.workers.push(worker);
            u32::try_from(self.workers.len() - 1).expect("connections are bounded")
        };
        self.by_conn.insert(conn, index);
        for position in 0..self.workers[index as usize].queues.len() {
            let queue = self.workers[index as usize].queues[position];
            self.queues[queue as usize].workers.push(index);
        }
        self.workers[index as usize].pool = self.shares.join(&self.workers[index as usize].queues);
        self.reservations.is_asked_for = true;
        self.add_credit(index, credit);
    }

    /// The worker behind a connection.
    pub(crate) fn worker_of(&self, conn: ConnId) -> Option<u32> {
        self.by_conn.get(&conn).copied()
    }

    /// Gives a worker more credit, bounded by `CREDIT_MAX`.
    pub(crate) fn add_credit(&mut self, index: u32, credit: u32) {
        let worker = &mut self.workers[index as usize];
        let had = worker.credit;
        worker.credit = had.saturating_add(credit).min(taskmaster_protocol::limits::CREDIT_MAX);
        let has = worker.credit;
        worker.owed = worker.owed.saturating_sub(credit);
        for position in 0..self.workers[index as usize].queues.len() {
            let queue = self.workers[index as usize].queues[position];
            if had == 0 && has > 0 {
                self.queues[queue as usize].with_credit += 1;
            }
            self.mark(queue);
        }
    }

    /// Adds up what workers that declare resources offer, if some came or went.
    pub(crate) fn renew_offer(&mut self) {
        if !self.shares.is_offer_old {
            return;
        }
        let (mut offer, mut places) = (Resources::default(), 0);
        for worker in self.workers.iter().filter(|worker| worker.connected) {
            let Some(capacity) = &worker.capacity else { continue };
            offer.add(capacity, 1);
            places += u64::from(worker.leases) + u64::from(worker.credit);
        }
        self.shares.set_offer(offer, places);
    }

    /// Whose turn it is of queues that have workers in common: its place among the candidates, and how many tasks it may start.
    pub(crate) fn next_turn(&self, contest: &[Candidate]) -> Option<(usize, u32)> {
        self.shares.next(contest, |queue| self.free_places(queue))
    }

    /// Places that are free of a queue's workers, as far as the first few have any.
    fn free_places(&self, queue: u32) -> u64 {
        let workers = self.queues[queue as usize].workers.iter().take(FREE_LOOK_MAX);
        workers.map(|&index| u64::from(self.workers[index as usize].credit)).sum()
    }

    /// Uses up a worker's credit for `count` leases of a queue's tasks that need `need` each.
    pub(crate) fn take_credit(&mut self, queue: u32, index: u32, count: u32, need: &Resources) {
        self.shares.begin(queue, need, count);
        let worker = &mut self.workers[index as usize];
        worker.credit -= count;
        worker.leases += count;
        worker.beside.assigned(count);
        worker.used.add(need, u64::from(count));
        if worker.credit == 0 {
            for position in 0..self.workers[index as usize].queues.len() {
                let queue = self.workers[index as usize].queues[position];
                self.queues[queue as usize].with_credit -= 1;
            }
        }
    }

    /// Notes the end of one lease.
    pub(crate) fn lease_ended(&mut self, queue: u32, index: u32, need: &Resources) {
        self.shares.end(queue, need);
        let entry = &mut self.queues[queue as usize];
        entry.leased -= 1;
        let limited = entry.concurrency.is_some();
        let worker = &mut self.workers[index as usize];
        worker.leases -= 1;
        let counts = worker.capacity.is_some();
        worker.used.subtract(need);
        if !worker.connected && worker.leases == 0 {
            self.free_workers.push(index);
        }
        if counts {
            for position in 0..self.workers[index as usize].queues.len() {
                let queue = self.workers[index as usize].queues[position];
                self.mark(queue);
            }
        }
        if limited {
            self.mark(queue);
        }
    }

    /// A lease goes from a worker that is gone to one that came back.
    pub(crate) fn move_lease(&mut self, queue: u32, gone: u32, worker: u32, need: &Resources) {
        // The lease goes on, only its holder changes.
        let leased = self.queues[queue as usize].leased;
        self.lease_ended(queue, gone, need);
        self.queues[queue as usize].leased = leased;
        self.shares.begin(queue, need, 1);
        let worker = &mut self.workers[worker as usize];
        worker.leases += 1;
        worker.used.add(need, 1);
    }

    /// Takes over a queue's limits and policy.
    pub(crate) fn set_limits(&mut self, queue: u32, settings: &QueueSettings, now_us: u64) {
        let entry = &mut self.queues[queue as usize];
        (entry.order.policy, entry.order.keeps_all) = (settings.policy, !settings.restarts(restart::GIVING_UP));
        self.shares.set_weight(queue, settings.weight);
        entry.mixes = !settings.restarts(restart::CONTENTION);
        entry.concurrency = (settings.concurrency > 0).then_some(u64::from(settings.concurrency));
        let (rate, burst) = (settings.rate_milli_per_s, settings.rate_burst);
        let same =
            |bucket: &Bucket| bucket.rate_milli_per_s == rate && bucket.burst_milli == u64::from(burst.max(1)) * 1_000;
        if rate == 0 {
            entry.bucket = None;
        } else if !entry.bucket.as_ref().is_some_and(same) {
            entry.bucket = Some(Bucket::new(rate, burst, now_us));
        }
    }

    /// Takes a note from another shard about a queue's permits; what to tell it at once.
    pub(crate) fn take_note(&mut self, from: PeerAddr, about: &NoteAbout<'_>, now_us: u64) -> Option<Note> {
        let queue = self.find_queue(about.namespace, about.queue)?;
        let entry = &mut self.queues[queue as usize];
        match about.note {
            Note::Need(need) => {
                let unused = entry.permits.heard(from, need, now_us);
                if let Some(bucket) = &mut entry.bucket {
                    bucket.give_back(unused);
                }
            }
            Note::Grant { session, start, total } => entry.permits.granted(session, start, total),
        }
        let again = entry.permits.lend_again(from);
        self.mark(queue);
        again
    }

    /// Ends a connection's subscription; its leases stay counted. The worker's index if it held leases.
    pub(crate) fn disconnect(&mut self, conn: ConnId) -> Option<u32> {
        let index = self.by_conn.remove(&conn)?;
        self.leave_queues(index);
        let worker = &mut self.workers[index as usize];
        worker.connected = false;
        if worker.leases == 0 {
            self.free_workers.push(index);
            return None;
        }
        Some(index)
    }

    /// Takes a worker and its credit out of its queues.
    fn leave_queues(&mut self, index: u32) {
        self.unreserve(index);
        let queues = core::mem::take(&mut self.workers[index as usize].queues);
        let had_credit = core::mem::take(&mut self.workers[index as usize].credit) > 0;
        self.shares.leave(core::mem::replace(&mut self.workers[index as usize].pool, NO_POOL));
        for queue in queues {
            let entry = &mut self.queues[queue as usize];
            entry.workers.retain(|&other| other != index);
            if had_credit {
                entry.with_credit -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bucket_never_grants_more_than_its_rate_and_burst() {
        let mut bucket = Bucket::new(2_500, 4, 0);
        let mut started = 0u64;
        let mut now_us = 0;
        while now_us < 10_000_000 {
            let count = bucket.available(now_us);
            bucket.take(count);
            started += u64::from(count);
            assert!(started * 1_000 <= 4_000 + now_us * 2_500 / 1_000_000);
            now_us = bucket.next_us().max(now_us + 1);
        }
        assert!(started >= 28, "{started}");
    }

    #[test]
    fn asking_a_bucket_often_costs_it_nothing() {
        for step_us in [1, 7, 401, 799, 1_001] {
            let mut bucket = Bucket::new(2_500, 1, 0);
            let mut started = 0;
            for now_us in (0..100_000_000).step_by(step_us) {
                let count = bucket.available(now_us);
                bucket.take(count);
                started += count;
            }
            assert!((249..=251).contains(&started), "{started} of 251 starts when asked every {step_us} us");
        }
    }
}

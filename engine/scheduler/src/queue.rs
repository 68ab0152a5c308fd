//! The queue of tasks that need one slot each: order by rank, aging, and fairness between tenants, in a few heap steps.
//!
//! Bounds, under every policy:
//! - no starvation: once the oldest task has waited for `Aging::cap`, every second pop takes the oldest, so a task waits
//!   no longer than the cap and twice the pops that were older than it then. The caller may stop that while such tasks
//!   hold as many slots as they may ([`Queue::let_ages`]);
//! - weighted fairness: while a tenant has tasks waiting, no other gets more than `lead_max` of service (per weight)
//!   ahead of it. Within that bound the order is free, as fairness at every pop would cost most of what ranks gain.
//!
//! Entries are named by the caller's ids, which are dense and rise with submission: of equal ranks the lower goes first,
//! whoever its tenant is. A task that is withdrawn or ranked anew leaves a stale entry behind in its tenant's heap that is
//! dropped when met; the tenants' firsts are in a heap with one entry for each tenant ([`heads`]).

mod heads;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use crate::Millis;
use heads::Heads;

/// A float with a total order.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Rank(f32);

impl Eq for Rank {}
impl PartialOrd for Rank {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Rank {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// A tenant's stale entries are dropped when they are more than this and those of tasks that wait.
const STALE_MIN: usize = 64;

/// By rank, then by id: the task, and which ranking of it.
type Key = Reverse<(Rank, u32, u32)>;

#[derive(Clone, Copy, Debug, Default)]
struct Record {
    tenant: u32,
    /// Changes whenever older entries become stale.
    version: u32,
    submitted: Millis,
    waits: bool,
    /// Whether it has an entry among the ages.
    aged: bool,
}

impl Record {
    fn is_current(&self, version: u32) -> bool {
        self.waits && self.version == version
    }
}

#[derive(Clone, Debug)]
struct Tenant {
    heap: BinaryHeap<Key>,
    /// Service got, per weight.
    service: f64,
    weight: f64,
    waiting: usize,
}

/// Why a task was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It had the lowest rank.
    Rank,
    /// It had waited for the cap.
    Age,
    /// Its tenant was behind.
    Share,
}

/// The queue.
#[derive(Clone, Debug)]
pub struct Queue {
    records: Vec<Record>,
    tenants: Vec<Tenant>,
    /// Tenants by their first, which may no longer wait.
    heads: Heads,
    /// In the order of submission.
    ages: VecDeque<u32>,
    cap: Millis,
    lead_max: f64,
    waiting: usize,
    aged_last: bool,
    lets_ages: bool,
    set_aside: Vec<(Rank, u32, u32)>,
}

impl Queue {
    /// A queue whose tasks go ahead after `cap`, and whose tenants get at most `lead_max` of service more than any other
    /// that waits (in the unit that [`Queue::pop`] is told; infinite for no fairness).
    #[must_use]
    pub fn new(cap: Millis, lead_max: f64) -> Self {
        Self {
            records: Vec::new(),
            tenants: Vec::new(),
            heads: Heads::default(),
            ages: VecDeque::new(),
            cap,
            lead_max: if lead_max.is_nan() { f64::INFINITY } else { lead_max.max(0.0) },
            waiting: 0,
            aged_last: false,
            lets_ages: true,
            set_aside: Vec::new(),
        }
    }

    /// Whether tasks that waited for the cap go ahead; they do unless told otherwise.
    pub fn let_ages(&mut self, lets: bool) {
        self.lets_ages = lets;
    }

    /// Tasks that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    /// The weight of a tenant: 1 unless set. What is no positive number counts as 1.
    pub fn set_weight(&mut self, tenant: u32, weight: f64) {
        self.tenant(tenant).weight = if weight.is_finite() && weight > 0.0 { weight } else { 1.0 };
    }

    fn tenant(&mut self, tenant: u32) -> &mut Tenant {
        let place = tenant as usize;
        if self.tenants.len() <= place {
            let new = || Tenant { heap: BinaryHeap::new(), service: 0.0, weight: 1.0, waiting: 0 };
            self.tenants.resize_with(place + 1, new);
        }
        &mut self.tenants[place]
    }

    /// The least service of the tenants that wait.
    fn least_service(&self) -> f64 {
        let waiting = self.tenants.iter().filter(|tenant| tenant.waiting > 0);
        waiting.map(|tenant| tenant.service).fold(f64::INFINITY, f64::min)
    }

    /// A task of a tenant waits, with this rank; what is no number ranks last.
    pub fn push(&mut self, task: u32, tenant: u32, rank: f32, now: Millis) {
        let place = task as usize;
        if self.records.len() <= place {
            self.records.resize_with(place + 1, Record::default);
        }
        let record = &mut self.records[place];
        let version = record.version.wrapping_add(1);
        *record = Record { tenant, version, submitted: now, waits: true, aged: true };
        self.ages.push_back(task);
        self.add(task, tenant, rank, version);
    }

    /// A task that was taken has to wait again, as old as it was.
    pub fn put_back(&mut self, task: u32, rank: f32) {
        let Some(record) = self.records.get_mut(task as usize).filter(|record| !record.waits) else { return };
        record.waits = true;
        record.version = record.version.wrapping_add(1);
        let Record { tenant, version, submitted, aged, .. } = *record;
        record.aged = true;
        if !aged {
            // What was dropped from the front is older than what is there, but for what was put back likewise.
            let older = self.ages.iter().take_while(|other| self.records[**other as usize].submitted < submitted);
            let place = older.count();
            self.ages.insert(place, task);
        }
        self.add(task, tenant, rank, version);
    }

    fn add(&mut self, task: u32, tenant: u32, rank: f32, version: u32) {
        // One that comes after a pause starts level with the least served: it saved nothing up.
        let floor = if self.lead_max.is_finite() { self.least_service() } else { 0.0 };
        let of = self.tenant(tenant);
        if of.waiting == 0 && floor.is_finite() {
            of.service = of.service.max(floor);
        }
        of.waiting += 1;
        self.waiting += 1;
        self.enter(task, tenant, rank, version);
    }

    fn enter(&mut self, task: u32, tenant: u32, rank: f32, version: u32) {
        let rank = Rank(if rank.is_nan() { f32::INFINITY } else { rank });
        let of = self.tenant(tenant);
        let is_first = of.heap.peek().is_none_or(|Reverse((first, other, _))| (rank, task) < (*first, *other));
        of.heap.push(Reverse((rank, task, version)));
        if of.heap.len() > 2 * of.waiting + STALE_MIN {
            let records = &self.records;
            let heap = &mut self.tenants[tenant as usize].heap;
            heap.retain(|Reverse((_, task, version))| records[*task as usize].is_current(*version));
        }
        if is_first {
            self.heads.set(tenant, (rank, task));
        }
    }

    /// Whether a task waits.
    #[must_use]
    pub fn waits(&self, task: u32) -> bool {
        self.records.get(task as usize).is_some_and(|record| record.waits)
    }

    /// Gives a task that waits another rank.
    pub fn rank_again(&mut self, task: u32, rank: f32) {
        let Some(record) = self.records.get_mut(task as usize).filter(|record| record.waits) else { return };
        record.version = record.version.wrapping_add(1);
        let (tenant, version) = (record.tenant, record.version);
        self.enter(task, tenant, rank, version);
    }

    /// Takes a task out that waits. `false` when it does not.
    pub fn withdraw(&mut self, task: u32) -> bool {
        let Some(record) = self.records.get_mut(task as usize).filter(|record| record.waits) else { return false };
        record.waits = false;
        let tenant = record.tenant;
        self.tenant(tenant).waiting -= 1;
        self.waiting -= 1;
        true
    }

    /// The oldest task, if it is due.
    fn due(&mut self, now: Millis) -> Option<u32> {
        while let Some(task) = self.ages.front().copied() {
            let record = &mut self.records[task as usize];
            if record.waits {
                return (now - record.submitted >= self.cap).then_some(task);
            }
            record.aged = false;
            self.ages.pop_front();
        }
        None
    }

    /// The first task of a tenant that is not stale.
    fn first(&mut self, tenant: u32) -> Option<(Rank, u32)> {
        loop {
            let Reverse((rank, task, version)) = *self.tenants[tenant as usize].heap.peek()?;
            if self.records[task as usize].is_current(version) {
                return Some((rank, task));
            }
            self.tenants[tenant as usize].heap.pop();
        }
    }

    /// Takes the next task. Its tenant is charged `service`, which the caller predicts.
    pub fn pop(&mut self, now: Millis, mut service: impl FnMut(u32) -> f64) -> Option<(u32, Reason)> {
        let due = if self.aged_last || !self.lets_ages { None } else { self.due(now) };
        self.aged_last = due.is_some();
        let (task, reason) = match due {
            Some(task) => (task, Reason::Age),
            None => self.by_rank()?,
        };
        let tenant = self.records[task as usize].tenant;
        self.withdraw(task);
        let cost = service(task);
        let of = self.tenant(tenant);
        if cost.is_finite() && cost > 0.0 {
            of.service += cost / of.weight;
        }
        self.settle(tenant);
        Some((task, reason))
    }

    /// Puts a tenant where its first task that waits belongs, and gives that.
    fn settle(&mut self, tenant: u32) -> Option<(Rank, u32)> {
        let first = self.first(tenant);
        match first {
            Some(first) => self.heads.set(tenant, first),
            None => self.heads.remove(tenant),
        }
        first
    }

    /// The lowest rank of those that wait.
    pub fn lowest(&mut self) -> Option<f32> {
        loop {
            let (rank, task, tenant) = self.heads.peek()?;
            if self.settle(tenant) == Some((rank, task)) {
                return Some(rank.0);
            }
        }
    }

    fn by_rank(&mut self) -> Option<(u32, Reason)> {
        if self.waiting == 0 {
            return None;
        }
        let limit = if self.lead_max.is_finite() { self.least_service() + self.lead_max } else { f64::INFINITY };
        let mut found = None;
        while let Some((rank, task, tenant)) = self.heads.peek() {
            if self.settle(tenant) != Some((rank, task)) {
                continue;
            }
            if self.tenants[tenant as usize].service > limit {
                self.heads.remove(tenant);
                self.set_aside.push((rank, task, tenant));
                continue;
            }
            found = Some(task);
            break;
        }
        let reason = if self.set_aside.is_empty() { Reason::Rank } else { Reason::Share };
        for (rank, task, tenant) in self.set_aside.drain(..) {
            self.heads.set(tenant, (rank, task));
        }
        found.map(|task| (task, reason))
    }
}

//! What a queue, or a tenant, has had and holds.

use super::{Queue, Shares, float};
use crate::resources::Resources;

/// Leases, in places, of which the mean is known; twice as many as are held at least.
const REMEMBERED: f64 = 32.0;

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a sum of times or of places")]
fn whole(number: f64) -> u64 {
    number.round() as u64
}

/// Place-time of a queue or a tenant.
#[derive(Clone, Debug)]
pub(super) struct Account {
    pub(super) weight: f64,
    /// Place-time over weight, in microseconds.
    pub(super) virtual_us: f64,
    /// Up to when that is added up, in microseconds since 1970.
    pub(super) settled_us: u64,
    /// Leases held, and what they need.
    pub(super) leases: u64,
    pub(super) resources: Resources,
    /// Places that they count for.
    pub(super) places: f64,
    /// Place-time since it shares, in microseconds.
    total_us: f64,
    /// Place-time, in microseconds, and places of leases that began, both of late.
    had_us: f64,
    begun: f64,
}

impl Default for Account {
    fn default() -> Self {
        let (leases, resources, none) = (0, Resources::default(), 0.0);
        let (virtual_us, places, total_us, had_us, begun) = (none, none, none, none, none);
        Self { weight: 1.0, virtual_us, settled_us: 0, leases, resources, places, total_us, had_us, begun }
    }
}

impl Account {
    /// Counts what was held until now.
    pub(super) fn settle(&mut self, now_us: u64) {
        let place_us = float(now_us.saturating_sub(self.settled_us)) * self.places;
        self.settled_us = self.settled_us.max(now_us);
        self.virtual_us += place_us / self.weight;
        self.had_us += place_us;
        self.total_us += place_us;
    }

    /// What was held until now does not count.
    pub(super) fn begins_to_share(&mut self, now_us: u64) {
        (self.settled_us, self.had_us, self.begun) = (now_us, 0.0, float(self.leases));
    }

    pub(super) fn begin(&mut self, need: &Resources, count: u32) {
        self.leases += u64::from(count);
        self.begun += f64::from(count);
        if self.begun > REMEMBERED + 2.0 * float(self.leases) {
            (self.begun, self.had_us) = (self.begun / 2.0, self.had_us / 2.0);
        }
        if !need.is_empty() {
            self.resources.add(need, u64::from(count));
        }
    }

    pub(super) fn end(&mut self, need: &Resources) {
        self.leases -= 1;
        if !need.is_empty() {
            self.resources.subtract(need);
        }
    }

    /// Takes in what the leases hold of what is offered.
    pub(super) fn measure(&mut self, offer: &Resources, places: u64) {
        self.places = float(self.leases);
        if places > 0 && !self.resources.is_empty() {
            self.places = self.places.max(self.resources.part_of(offer) * float(places));
        }
    }

    /// How long a lease lasts, in microseconds: place-time over places, so that leases that have not ended count as they are.
    pub(super) fn mean_us(&self) -> f64 {
        if self.begun > 0.0 { self.had_us / self.begun / self.places_per_lease() } else { 0.0 }
    }

    fn places_per_lease(&self) -> f64 {
        if self.leases > 0 { (self.places / float(self.leases)).max(1.0) } else { 1.0 }
    }

    /// By what it is chosen; the lowest first.
    pub(super) fn key(&self, horizon_us: f64) -> f64 {
        self.virtual_us + horizon_us * self.places / self.weight
    }

    /// The same at a later time.
    fn key_at(&self, now_us: u64, horizon_us: f64) -> f64 {
        let place_us = float(now_us.saturating_sub(self.settled_us)) * self.places;
        self.key(horizon_us) + place_us / self.weight
    }

    /// Leases that may begin until its key has grown by so much.
    pub(super) fn places_behind(&self, key_us: f64, horizon_us: f64) -> f64 {
        key_us * self.weight / horizon_us / self.places_per_lease()
    }
}

/// How a queue stands among those with which it shares workers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Due {
    weight: f64,
    tenant_weight: f64,
    /// What it has of the places that they hold, and what it is due while those wait that do now; parts of one.
    holds: f64,
    due: f64,
    /// Others that hold places or wait.
    others: usize,
    /// It had and holds less for its weight than all others that wait.
    is_next: bool,
}

impl Due {
    /// For a person who asks why a task waits; `None` if there is nobody to wait for.
    pub(crate) fn in_words(&self) -> Option<String> {
        let Self { weight, tenant_weight, others, .. } = self;
        let [holds, due] = [self.holds, self.due].map(|part| part * 100.0);
        let turn = if self.is_next {
            "it had the least for its weight, so the next place that it can use is its"
        } else {
            "others had less for their weight, so it is their turn before"
        };
        (*others > 0).then(|| {
            format!(
                "the queue holds {holds:.0} % of the places in use that it shares with {others} other queues, and {due:.0} % are its part (weight {weight}, namespace {tenant_weight}); {turn}"
            )
        })
    }
}

impl Shares {
    /// Queues that share workers: their numbers, the place-time that they had since they do, in microseconds, and the places that they hold.
    pub(crate) fn had(&self) -> impl Iterator<Item = (u32, u64, u64)> {
        let shared = (0u32..).zip(&self.queues).filter(|(_, queue)| !queue.pools.is_empty());
        shared.map(|(number, Queue { account, .. })| {
            let now_us = float(self.now_us.saturating_sub(account.settled_us)) * account.places;
            (number, whole(account.total_us + now_us), whole(account.places))
        })
    }

    /// Whether a queue that waits had and holds less for its weight than another, or its namespace than the other's.
    pub(crate) fn goes_before(&self, queue: u32, than: u32) -> bool {
        let [of, than] = [queue, than].map(|number| &self.queues[number as usize]);
        !of.is_idle && self.is_before(of, than)
    }

    fn is_before(&self, queue: &Queue, than: &Queue) -> bool {
        let key = |account: &Account| account.key_at(self.now_us, self.horizon_us);
        if queue.tenant == than.tenant {
            return key(&queue.account) < key(&than.account);
        }
        let [tenant, other] = [queue, than].map(|of| key(&self.tenants[of.tenant as usize].account));
        tenant < other
    }

    /// How a queue stands; `None` if it shares no worker. `waits` says whether a queue has tasks that wait.
    pub(crate) fn due(&self, queue: u32, waits: impl Fn(u32) -> bool) -> Option<Due> {
        let own = &self.queues[queue as usize];
        if own.pools.is_empty() {
            return None;
        }
        let pools = own.pools.iter().map(|(pool, _)| &self.pools[*pool as usize]);
        let mut sharing: Vec<u32> = pools.flat_map(|pool| &pool.queues).copied().collect();
        sharing.sort_unstable();
        sharing.dedup();
        let of = |&number: &u32| &self.queues[number as usize];
        sharing.retain(|&number| number == queue || waits(number) || of(&number).account.leases > 0);
        let mut tenants: Vec<u32> = sharing.iter().map(|number| of(number).tenant).collect();
        tenants.sort_unstable();
        tenants.dedup();
        let tenant_weight = |tenant: u32| self.tenants[tenant as usize].account.weight;
        let all: f64 = tenants.iter().map(|&tenant| tenant_weight(tenant)).sum();
        let siblings = sharing.iter().map(of).filter(|other| other.tenant == own.tenant);
        let weights: f64 = siblings.map(|other| other.account.weight).sum();
        let held: f64 = sharing.iter().map(|number| of(number).account.places).sum();
        let (weight, tenant_weight) = (own.account.weight, tenant_weight(own.tenant));
        Some(Due {
            weight,
            tenant_weight,
            holds: if held > 0.0 { own.account.places / held } else { 0.0 },
            due: tenant_weight / all * weight / weights,
            others: sharing.len() - 1,
            is_next: !sharing.iter().any(|number| waits(*number) && self.is_before(of(number), own)),
        })
    }
}

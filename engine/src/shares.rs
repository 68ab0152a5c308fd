//! Shares: which of the queues that have workers in common is next.
//!
//! Volatile and the leader's own, as leases are: floats never enter replicated state.
//!
//! A queue's account counts the time that its tasks hold places (*place-time*: a lease is one place, or more if its queue's tasks hold a
//! larger part of a declared resource than of the places), over the queue's weight: its *virtual time*. A free place goes to
//! the queue with the lowest virtual time, to which what it holds is added as if it lasted as long as leases usually do (the *horizon*).
//! Tenants, which are namespaces, have accounts of the same kind; the tenant is chosen first, then one of its queues.
//!
//! Bounds. Let two queues of a tenant, or two tenants, `a` and `b`, have tasks for all of `P` places that wait from `s` to `t`, with
//! weights `u` and `v`; let no lease last longer than `L`, and `A` and `B` be the place-time that they had in between. Then
//! `|A/u - B/v| <= P (L + H) (1/u + 1/v)`, where the horizon `H` is at most the longest mean of leases, so at most `L` (or 1 ms).
//! For when a task of `a` started last before `t`, it was `a`'s turn: `Va + H pa/u <= Vb + H pb/v`, with `pa, pb <= P` the places held, so
//! `Va <= Vb + H P/v`. Since then `a` had no more than what its leases lasted, `P L`. So `Va - Vb <= P (H/v + L/u)` at any time,
//! `t` among them; with `a` and `b` exchanged the same holds at `s`, and the difference between both is what was to be shown. How many
//! tasks start in one turn does not matter. So nobody starves: while `b` waits, `a` has no more than that ahead of its share.
//!
//! Beside workers that are kept for wide tasks ([`crate::reservations`]) the bounds hold but for one such task of each queue every five
//! seconds, which may begin out of turn, and for places that others cannot use meanwhile.
//!
//! What is not saved up: one that had nothing to start, or that its own limits kept from starting, comes back level with the one that is
//! furthest behind among those it meets. One that is kept from its share by where it is served is owed no more than [`OWED`] horizons
//! per place (see [`Shares::close_gaps`]).

use hashbrown::HashMap;

use crate::hash::FixedState;
use crate::resources::Resources;

mod account;
mod gaps;

use account::Account;

/// Bounds of the horizon, in microseconds.
const HORIZON_MIN_US: f64 = 1_000.0;
const HORIZON_MAX_US: f64 = 600_000_000.0;
/// Between two looks for what is owed in vain, in microseconds.
const GAPS_US: u64 = 1_000_000;
/// What one can be owed, in horizons of all places that are held.
const OWED: f64 = 4.0;
/// One turn takes this part of a queue's share of the places that are free, and at least one.
const PART: f64 = 0.25;
/// A worker that shares nothing is in none.
pub(crate) const NO_POOL: u32 = u32::MAX;

/// A queue.
#[derive(Debug)]
struct Queue {
    account: Account,
    tenant: u32,
    /// Pools that serve it, and how many of its workers are in each. Empty: it shares no worker.
    pools: Vec<(u32, u32)>,
    /// It had nothing to start when it was looked at last.
    is_idle: bool,
}

/// A namespace.
#[derive(Debug)]
struct Tenant {
    account: Account,
    queues: Vec<u32>,
    /// Queues of it that are not idle.
    busy: u32,
}

/// Workers that serve the same queues, at least two.
#[derive(Debug, Default)]
struct Pool {
    queues: Vec<u32>,
    workers: u32,
    /// Queues of it that are not idle.
    busy: u32,
    /// The lowest virtual time of those that waited when a place was given last: of tenants, and of queues by tenant.
    tenants_us: f64,
    queues_us: HashMap<u32, f64, FixedState>,
    /// The contest in which that was noted.
    contest: u64,
}

/// A queue that has tasks to start and workers with room.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate {
    pub(crate) queue: u32,
    /// Its own tasks go before those of other shards.
    pub(crate) own_first: bool,
    key: f64,
}

/// The accounts of a shard's queues.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    /// By the dispatcher's number.
    queues: Vec<Queue>,
    tenants: Vec<Tenant>,
    by_namespace: HashMap<String, u32, FixedState>,
    pools: Vec<Pool>,
    by_queues: HashMap<Vec<u32>, u32, FixedState>,
    free_pools: Vec<u32>,
    /// What workers that declare resources offer in all, and their places.
    offer: Resources,
    offered_places: u64,
    /// Workers came or went since that was added up.
    pub(crate) is_offer_old: bool,
    now_us: u64,
    horizon_us: f64,
    gaps_closed_us: u64,
    contests: u64,
    /// Queues that were looked at in this turn and wait for theirs.
    pub(crate) contest: Vec<Candidate>,
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a time or a number of places, of which the sixteenth digit does not matter"
)]
pub(crate) const fn float(number: u64) -> f64 {
    number as f64
}

impl Shares {
    /// The time from here on, in microseconds since 1970.
    pub(crate) const fn at(&mut self, now_us: u64) {
        self.now_us = now_us;
    }

    /// The dispatcher has one more queue.
    pub(crate) fn add_queue(&mut self, namespace: &str) {
        let number = u32::try_from(self.queues.len()).expect("queues are bounded at admission");
        let tenant = match self.by_namespace.get(namespace) {
            Some(&tenant) => tenant,
            None => {
                let tenant = u32::try_from(self.tenants.len()).expect("no more than queues");
                self.tenants.push(Tenant { account: Account::default(), queues: Vec::new(), busy: 0 });
                self.by_namespace.insert(namespace.to_owned(), tenant);
                tenant
            }
        };
        self.tenants[tenant as usize].queues.push(number);
        let (account, pools) = (Account::default(), Vec::new());
        self.queues.push(Queue { account, tenant, pools, is_idle: true });
    }

    /// Whether a queue shares workers with others.
    pub(crate) fn is_shared(&self, queue: u32) -> bool {
        !self.queues[queue as usize].pools.is_empty()
    }

    /// A queue's weight. A tenant's is that of its heaviest queue.
    pub(crate) fn set_weight(&mut self, queue: u32, weight: u16) {
        let now_us = self.now_us;
        let of = &mut self.queues[queue as usize];
        let weight = f64::from(weight.max(1));
        if of.account.weight == weight {
            return;
        }
        of.account.settle(now_us);
        of.account.weight = weight;
        let tenant = of.tenant as usize;
        let weights = self.tenants[tenant].queues.iter().map(|&queue| self.queues[queue as usize].account.weight);
        let heaviest = weights.fold(1.0, f64::max);
        let account = &mut self.tenants[tenant].account;
        account.settle(now_us);
        account.weight = heaviest;
    }

    /// A worker serves these queues; its pool.
    pub(crate) fn join(&mut self, queues: &[u32]) -> u32 {
        self.is_offer_old = true;
        if queues.len() < 2 {
            return NO_POOL;
        }
        let mut queues = queues.to_vec();
        queues.sort_unstable();
        let number = match self.by_queues.get(&queues) {
            Some(&number) => number,
            None => self.add_pool(&queues),
        };
        self.pools[number as usize].workers += 1;
        for queue in queues {
            if !self.is_shared(queue) {
                self.begins_to_share(queue);
            }
            let pools = &mut self.queues[queue as usize].pools;
            match pools.iter_mut().find(|(pool, _)| *pool == number) {
                Some((_, workers)) => *workers += 1,
                None => pools.push((number, 1)),
            }
        }
        // They may never have met: what each had elsewhere is no debt.
        self.gaps_closed_us = 0;
        number
    }

    fn add_pool(&mut self, queues: &[u32]) -> u32 {
        let busy = queues.iter().filter(|&&queue| !self.queues[queue as usize].is_idle).count();
        let busy = u32::try_from(busy).expect("queues are bounded at admission");
        let mut pool = Pool { queues: queues.to_vec(), busy, ..Pool::default() };
        self.level(&mut pool);
        let number = if let Some(free) = self.free_pools.pop() {
            self.pools[free as usize] = pool;
            free
        } else {
            self.pools.push(pool);
            u32::try_from(self.pools.len() - 1).expect("pools are no more than connections")
        };
        self.by_queues.insert(queues.to_vec(), number);
        number
    }

    /// Where those are who meet in a new pool: the furthest behind of those that wait, or the furthest ahead if none does.
    fn level(&self, pool: &mut Pool) {
        let level = |times: &[(bool, f64)]| {
            let waiting = times.iter().filter(|(waits, _)| *waits).map(|(_, time_us)| *time_us).reduce(f64::min);
            waiting.unwrap_or_else(|| times.iter().map(|(_, time_us)| *time_us).fold(0.0, f64::max))
        };
        let mut by_tenant: HashMap<u32, Vec<(bool, f64)>, FixedState> = HashMap::default();
        for &queue in &pool.queues {
            let of = &self.queues[queue as usize];
            by_tenant.entry(of.tenant).or_default().push((!of.is_idle, of.account.virtual_us));
        }
        let tenants = by_tenant.keys().map(|&tenant| &self.tenants[tenant as usize]);
        let tenants: Vec<(bool, f64)> = tenants.map(|of| (of.busy > 0, of.account.virtual_us)).collect();
        pool.tenants_us = level(&tenants);
        pool.queues_us = by_tenant.iter().map(|(&tenant, times)| (tenant, level(times))).collect();
    }

    /// A worker left its pool.
    pub(crate) fn leave(&mut self, number: u32) {
        self.is_offer_old = true;
        if number == NO_POOL {
            return;
        }
        let pool = &mut self.pools[number as usize];
        pool.workers -= 1;
        let queues = pool.queues.clone();
        for &queue in &queues {
            let pools = &mut self.queues[queue as usize].pools;
            for (_, workers) in pools.iter_mut().filter(|(pool, _)| *pool == number) {
                *workers -= 1;
            }
            pools.retain(|(_, workers)| *workers > 0);
            if pools.is_empty() {
                self.shares_no_longer(queue);
            }
        }
        if self.pools[number as usize].workers == 0 {
            self.by_queues.remove(&queues);
            self.pools[number as usize] = Pool::default();
            self.free_pools.push(number);
        }
    }

    /// What a queue's leases hold is counted from here on.
    fn begins_to_share(&mut self, queue: u32) {
        let (offer, places, now_us) = (&self.offer, self.offered_places, self.now_us);
        let of = &mut self.queues[queue as usize];
        let tenant = &mut self.tenants[of.tenant as usize].account;
        of.account.begins_to_share(now_us);
        of.account.measure(offer, places);
        tenant.settle(now_us);
        (tenant.leases, tenant.settled_us) = (tenant.leases + of.account.leases, now_us);
        tenant.resources.add(&of.account.resources, 1);
        tenant.measure(offer, places);
    }

    fn shares_no_longer(&mut self, queue: u32) {
        self.idle(queue);
        let (offer, places, now_us) = (&self.offer, self.offered_places, self.now_us);
        let of = &mut self.queues[queue as usize];
        let tenant = &mut self.tenants[of.tenant as usize].account;
        of.account.settle(now_us);
        of.account.places = 0.0;
        tenant.settle(now_us);
        tenant.leases -= of.account.leases;
        tenant.resources.subtract(&of.account.resources);
        tenant.measure(offer, places);
    }

    /// Leases on tasks of a queue begin, which need so much each.
    pub(crate) fn begin(&mut self, queue: u32, need: &Resources, count: u32) {
        self.change(queue, |account| account.begin(need, count));
    }

    /// A lease on a task of a queue ended.
    pub(crate) fn end(&mut self, queue: u32, need: &Resources) {
        self.change(queue, |account| account.end(need));
    }

    fn change(&mut self, queue: u32, change: impl Fn(&mut Account)) {
        let (offer, places, now_us) = (&self.offer, self.offered_places, self.now_us);
        let of = &mut self.queues[queue as usize];
        if of.pools.is_empty() {
            change(&mut of.account);
            return;
        }
        for account in [&mut of.account, &mut self.tenants[of.tenant as usize].account] {
            account.settle(now_us);
            change(account);
            account.measure(offer, places);
        }
    }

    /// What all workers that declare resources offer, and their places.
    pub(crate) fn set_offer(&mut self, offer: Resources, places: u64) {
        (self.offer, self.offered_places, self.is_offer_old) = (offer, places, false);
    }

    /// A queue has nothing to start, or its limits keep it from starting.
    pub(crate) fn idle(&mut self, queue: u32) {
        let of = &mut self.queues[queue as usize];
        if !core::mem::replace(&mut of.is_idle, true) {
            self.tenants[of.tenant as usize].busy -= 1;
            of.pools.iter().for_each(|(pool, _)| self.pools[*pool as usize].busy -= 1);
        }
    }

    /// A place is about to be given to one of these, all of which could use one.
    pub(crate) fn open(&mut self, contest: &mut [Candidate]) {
        let now_us = self.now_us;
        let mut horizon_us = HORIZON_MIN_US;
        for candidate in contest.iter() {
            let of = &mut self.queues[candidate.queue as usize];
            of.account.settle(now_us);
            self.tenants[of.tenant as usize].account.settle(now_us);
            horizon_us = horizon_us.max(of.account.mean_us());
        }
        self.horizon_us = horizon_us.min(HORIZON_MAX_US);
        if now_us.saturating_sub(self.gaps_closed_us) >= GAPS_US {
            self.gaps_closed_us = now_us;
            self.close_gaps();
        }
        self.mark(contest);
        for candidate in contest.iter_mut() {
            self.come_back(candidate.queue);
            candidate.key = self.queues[candidate.queue as usize].account.key(self.horizon_us);
        }
    }

    /// Notes in pools how far those are that wait.
    fn mark(&mut self, contest: &[Candidate]) {
        self.contests += 1;
        for candidate in contest {
            let of = &self.queues[candidate.queue as usize];
            if of.is_idle {
                continue;
            }
            let tenant_us = self.tenants[of.tenant as usize].account.virtual_us;
            for &(pool, _) in &of.pools {
                let pool = &mut self.pools[pool as usize];
                if pool.contest != self.contests {
                    (pool.contest, pool.tenants_us) = (self.contests, tenant_us);
                    pool.queues_us.clear();
                }
                pool.tenants_us = pool.tenants_us.min(tenant_us);
                let lowest_us = pool.queues_us.entry(of.tenant).or_insert(f64::MAX);
                *lowest_us = lowest_us.min(of.account.virtual_us);
            }
        }
    }

    /// One that had nothing to start starts level with those who waited.
    fn come_back(&mut self, queue: u32) {
        let of = &mut self.queues[queue as usize];
        if !core::mem::take(&mut of.is_idle) {
            return;
        }
        let tenant = &mut self.tenants[of.tenant as usize];
        let pools = || of.pools.iter().map(|(pool, _)| &self.pools[*pool as usize]);
        // Where nobody waits, nobody has gone on since it was noted who is how far.
        let is_met = pools().any(|pool| pool.busy > 0);
        let pools = || pools().filter(|pool| !is_met || pool.busy > 0);
        if let Some(level_us) = pools().filter_map(|pool| pool.queues_us.get(&of.tenant)).copied().reduce(f64::min) {
            of.account.virtual_us = of.account.virtual_us.max(level_us);
        }
        if tenant.busy == 0
            && let Some(level_us) = pools().map(|pool| pool.tenants_us).reduce(f64::min)
        {
            tenant.account.virtual_us = tenant.account.virtual_us.max(level_us);
        }
        tenant.busy += 1;
        of.pools.iter().for_each(|(pool, _)| self.pools[*pool as usize].busy += 1);
    }

    /// Whose turn it is: its place among the candidates, and how many tasks it may start; `free` tells how many places are free for
    /// a queue.
    pub(crate) fn next(&self, contest: &[Candidate], free: impl Fn(u32) -> u64) -> Option<(usize, u32)> {
        let tenant_of = |candidate: &Candidate| self.queues[candidate.queue as usize].tenant;
        let key_of = |tenant: u32| self.tenants[tenant as usize].account.key(self.horizon_us);
        let (mut tenant, mut tenant_key, mut next_tenant_key) = (tenant_of(contest.first()?), f64::MAX, f64::MAX);
        let mut before = u32::MAX;
        for other in contest.iter().map(tenant_of) {
            // Those of one tenant are often one behind the other.
            if other == before || (other == tenant && tenant_key < f64::MAX) {
                continue;
            }
            before = other;
            let key = key_of(other);
            if key < tenant_key {
                (tenant, tenant_key, next_tenant_key) = (other, key, tenant_key);
            } else {
                next_tenant_key = next_tenant_key.min(key);
            }
        }
        let (mut first, mut key, mut next_key, mut weights, mut others) = (usize::MAX, f64::MAX, f64::MAX, 0.0, false);
        for (place, candidate) in contest.iter().enumerate() {
            if tenant_of(candidate) != tenant {
                others = true;
                continue;
            }
            weights += self.queues[candidate.queue as usize].account.weight;
            if candidate.key < key {
                (first, key, next_key) = (place, candidate.key, key);
            } else {
                next_key = next_key.min(candidate.key);
            }
        }
        let queue = contest.get(first)?.queue;
        let account = &self.queues[queue as usize].account;
        let part = float(free(queue)) * PART * account.weight / weights * if others { 0.5 } else { 1.0 };
        let behind = account.places_behind(next_key - key, self.horizon_us);
        let tenant = &self.tenants[tenant as usize].account;
        let behind = behind.min(tenant.places_behind(next_tenant_key - tenant_key, self.horizon_us));
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a bounded number of places")]
        let count = part.max(behind).clamp(1.0, 65_536.0) as u32;
        Some((first, count))
    }

    /// A candidate started tasks.
    pub(crate) fn started(&self, candidate: &mut Candidate) {
        candidate.key = self.queues[candidate.queue as usize].account.key(self.horizon_us);
    }
}

impl Candidate {
    pub(crate) const fn new(queue: u32, own_first: bool) -> Self {
        Self { queue, own_first, key: 0.0 }
    }
}

//! Who is there and where: SWIM gossip by the `foca` crate, one datagram at a time.
//!
//! Invariants:
//! - a node is known by the id of its data directory, wherever it is reached; of two descriptions the one with the higher
//!   bump is newer;
//! - of two nodes at one address the one that was heard there is there, and the other gone: its disk was lost, or it moved;
//! - nodes of another cluster name, of another cluster id (once both have one), or of a version more than one apart are
//!   never reported and never passed on; whoever meets one says so in a sentence, at most once a minute;
//! - what a peer sends allocates no more than [`MEMBERS_MAX`] members, and no bytes of it can panic.
//!
//! What is said here is for placement and for addresses: a member counts as alive for about half a second after it died.
//! Elections go by the peer connections, which notice sooner. Nothing is authenticated: gossip belongs on a network whose
//! hosts are trusted.

mod identity;
mod packet;
mod receive;
#[cfg(test)]
mod tests;
mod timers;
mod warnings;

pub use packet::GOSSIP_FORMAT;

use core::net::SocketAddr;
use core::num::{NonZeroU8, NonZeroUsize};
use core::time::Duration;
use foca::{Foca, Notification, PeriodicParams, Timer};
use identity::{Identity, SplitMix};
use packet::{Codec, PACKET_BYTES_MAX, PREFIX_BYTES, PacketKind};
use receive::Places;
use std::collections::BTreeMap;
use taskmaster_protocol::NodeId;
use timers::{Needs, PROBE_US, Timers};
use warnings::{Reason, Warnings};

/// Most members that are remembered, those that are down included.
pub const MEMBERS_MAX: usize = 128;
/// Most seeds that are asked.
pub const SEEDS_MAX: usize = 64;
/// How often all seeds are asked while nobody is known, in microseconds.
const HELLO_ALONE_US: u64 = 500_000;
/// How often one silent seed is asked otherwise, so that halves that forgot each other meet again, in microseconds.
const HELLO_US: u64 = 5_000_000;
/// A node that is declared down once more within this time waits before it comes back, in microseconds.
const REJOIN_WINDOW_US: u64 = 10_000_000;
/// How long it waits, in microseconds; doubled three times at most.
const REJOIN_PAUSE_US: u64 = 1_000_000;

/// A node as gossip knows it. Zone, host and client ports are the map's: with them, few would fit into a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its identity, from its data directory; not zero.
    pub id: NodeId,
    /// The cluster it belongs to; 0: none yet.
    pub cluster: u128,
    /// Of two descriptions of a node the one with the higher bump is newer; see [`Member::bump_of_start`].
    pub bump: u64,
    /// Where its gossip and its shard 0's peers listen; shard n: port + n.
    pub peer: SocketAddr,
    /// How many shards it has.
    pub shards: u16,
    /// Format version of its software.
    pub version: u32,
    /// What people call it.
    pub name: String,
    /// It is there.
    pub is_alive: bool,
}

impl Member {
    /// The bump of a node's n-th start. `start` must grow with every start of a data directory, as its term does; the
    /// lower half counts what changes while the node runs.
    #[must_use]
    pub const fn bump_of_start(start: u32) -> u64 {
        (start as u64) << 32
    }
}

/// What to do after a call, and what it found out. Whoever calls empties it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Out {
    /// Datagrams to send, each at most 1400 bytes.
    pub packets: Vec<(SocketAddr, Vec<u8>)>,
    /// Members that came, went or changed.
    pub changes: Vec<Member>,
    /// Sentences for the log.
    pub warnings: Vec<String>,
}

/// What foca asks for during one call.
#[derive(Default)]
struct Asked {
    packets: Vec<(SocketAddr, Vec<u8>)>,
    timers: Vec<(Duration, Timer<Identity>)>,
    are_members_changed: bool,
    is_down: bool,
}

impl foca::Runtime<Identity> for Asked {
    fn notify(&mut self, notification: Notification<'_, Identity>) {
        match notification {
            Notification::MemberUp(_) | Notification::MemberDown(_) | Notification::Rename(..) => {
                self.are_members_changed = true;
            }
            Notification::Defunct => self.is_down = true,
            Notification::Active | Notification::Idle | Notification::Rejoin(_) => {}
        }
    }

    fn send_to(&mut self, to: Identity, data: &[u8]) {
        self.packets.push((to.peer, data.to_vec()));
    }

    fn submit_after(&mut self, event: Timer<Identity>, after: Duration) {
        self.timers.push((after, event));
    }
}

/// One node's view of who is there. Single-threaded, driven by packets and time.
pub struct Membership {
    own: Member,
    name_hash: u64,
    foca: Foca<Identity, Codec, SplitMix, foca::NoCustomBroadcast>,
    asked: Asked,
    timers: Timers,
    seeds: Vec<SocketAddr>,
    seed_next: usize,
    hello_at_us: u64,
    /// What was last reported as alive.
    alive: BTreeMap<NodeId, Member>,
    places: Places,
    warnings: Warnings,
    choice: SplitMix,
    /// The own description changed and is not told yet.
    is_renewal_due: bool,
    rejoin_at_us: Option<u64>,
    rejoined_us: Option<u64>,
    rejoins: u32,
    /// The highest bump that somebody else gave this node.
    own_bump_seen: u64,
    has_left: bool,
    now_us: u64,
}

/// Measured: all survivors know of a death after 0.7 s at the median, with one false alarm in 75 stalls of 250 ms.
fn config() -> foca::Config {
    const fn every(ms: u64, members: usize) -> Option<PeriodicParams> {
        let num_members = NonZeroUsize::new(members).expect("not zero");
        Some(PeriodicParams { frequency: Duration::from_millis(ms), num_members })
    }
    foca::Config {
        probe_period: Duration::from_micros(PROBE_US),
        probe_rtt: Duration::from_millis(50),
        num_indirect_probes: const { NonZeroUsize::new(3).expect("not zero") },
        max_transmissions: const { NonZeroU8::new(10).expect("not zero") },
        suspect_to_down_after: Duration::from_millis(300),
        remove_down_after: Some(Duration::from_secs(3600)),
        max_packet_size: const { NonZeroUsize::new(PACKET_BYTES_MAX - PREFIX_BYTES).expect("not zero") },
        notify_down_members: true,
        periodic_announce: every(5_000, 1),
        periodic_announce_to_down_members: every(1_000, 2),
        periodic_gossip: every(50, 3),
    }
}

impl Membership {
    /// Begins alone; the first [`Membership::handle_timeout`] is due at once. Nodes with another `cluster_name` are
    /// strangers. `seed` decides who is asked when, and nothing else.
    ///
    /// # Panics
    /// If `own` has a zero id, port or shard count, or a name that is empty, too long or has spaces.
    #[must_use]
    pub fn new(own: Member, cluster_name: &str, seeds: Vec<SocketAddr>, seed: u64, now_us: u64) -> Self {
        let identity = Identity::of(&own);
        let mut bytes = Vec::new();
        packet::put_identity(&mut bytes, &identity);
        assert_eq!(packet::Reader(&bytes).identity().as_ref(), Ok(&identity), "a node describes itself validly");
        let mut choice = SplitMix(seed ^ own.id.0);
        let rng = SplitMix(choice.next());
        let mut membership = Self {
            own: identity.to_member(true),
            name_hash: packet::hash_of_name(cluster_name),
            foca: Foca::new(identity, config(), rng, Codec::default()),
            asked: Asked::default(),
            timers: Timers::default(),
            seeds: Vec::new(),
            seed_next: 0,
            hello_at_us: now_us,
            alive: BTreeMap::new(),
            places: Places::default(),
            warnings: Warnings::default(),
            choice,
            is_renewal_due: false,
            rejoin_at_us: None,
            rejoined_us: None,
            rejoins: 0,
            own_bump_seen: 0,
            has_left: false,
            now_us,
        };
        membership.set_seeds(seeds);
        membership
    }

    /// How this node describes itself.
    #[must_use]
    pub const fn own(&self) -> &Member {
        &self.own
    }

    /// Who is there, this node not included, by id.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.alive.values()
    }

    /// Addresses to look for others at, in place of the former ones; at most [`SEEDS_MAX`] count. The own one may be among
    /// them.
    pub fn set_seeds(&mut self, mut seeds: Vec<SocketAddr>) {
        for seed in &mut seeds {
            seed.set_ip(seed.ip().to_canonical());
        }
        seeds.retain(|seed| *seed != self.own.peer);
        seeds.truncate(SEEDS_MAX);
        if seeds != self.seeds {
            self.seeds = seeds;
            if self.foca.num_members() == 0 {
                self.hello_at_us = self.now_us;
            }
        }
    }

    /// This node belongs to a cluster from now on. The others hear it at the next [`Membership::handle_timeout`], which is
    /// due at once; members of other clusters go then.
    pub fn set_cluster(&mut self, cluster: u128) {
        if self.own.cluster != cluster {
            self.own.cluster = cluster;
            self.is_renewal_due = true;
        }
    }

    /// When [`Membership::handle_timeout`] is due next; it may be in the past, and any call may change it.
    #[must_use]
    pub fn next_wake_us(&self) -> u64 {
        if self.has_left {
            return u64::MAX;
        }
        if self.is_renewal_due {
            return self.now_us;
        }
        let timer_us = self.timers.next_us(self.needs());
        timer_us.min(self.hello_at_us).min(self.rejoin_at_us.unwrap_or(u64::MAX))
    }

    /// Takes a datagram. `from` only names the sender of what cannot be read.
    pub fn handle_packet(&mut self, from: SocketAddr, packet: &[u8], now_us: u64, out: &mut Out) {
        self.now_us = self.now_us.max(now_us);
        if !self.has_left {
            self.receive(from, packet, out);
            self.finish(out);
        }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now_us: u64, out: &mut Out) {
        self.now_us = self.now_us.max(now_us);
        if self.has_left {
            return;
        }
        if self.is_renewal_due {
            self.renew(1);
        }
        if self.rejoin_at_us.is_some_and(|at_us| at_us <= self.now_us) {
            self.rejoin();
        }
        while let Some(timer) = self.timers.take_due(self.now_us, self.needs()) {
            // An error says that the probe in flight was cut short, by a stall of this process or a change of identity.
            let _ = self.foca.handle_timer(timer, &mut self.asked);
            self.keep_timers();
        }
        if self.hello_at_us <= self.now_us {
            self.say_hello(out);
        }
        self.finish(out);
    }

    /// Says goodbye, so that others need not find out. Nothing is said or heard afterwards.
    pub fn leave(&mut self, now_us: u64, out: &mut Out) {
        self.now_us = self.now_us.max(now_us);
        if !self.has_left {
            let _ = self.foca.leave_cluster(&mut self.asked);
            self.asked.is_down = false;
            self.finish(out);
            self.has_left = true;
        }
    }

    /// Describes this node anew, as `own` is, with a bump that is `step` higher than any known.
    fn renew(&mut self, step: u64) {
        self.is_renewal_due = false;
        self.rejoin_at_us = None;
        self.own.bump = self.own.bump.max(self.own_bump_seen).saturating_add(step);
        // It fails only if nothing changed, at the end of all bumps.
        let _ = self.foca.change_identity(Identity::of(&self.own), &mut self.asked);
        let own_cluster = self.own.cluster;
        let foreign: Vec<_> = self
            .foca
            .iter_members()
            .filter(|member| is_foreign(own_cluster, member.id().cluster))
            .map(|member| foca::Member::new(member.id().clone(), member.incarnation(), foca::State::Down))
            .collect();
        // Also takes up probing again, which a change of identity ends.
        let _ = self.foca.apply_many(foreign.into_iter(), false, &mut self.asked);
        self.asked.are_members_changed = true;
    }

    /// Comes back after the others declared this node down.
    fn rejoin(&mut self) {
        let step = 1u64 << (3 * self.rejoins).min(40);
        self.rejoins += 1;
        self.rejoined_us = Some(self.now_us);
        self.renew(step);
        let others: Vec<Identity> = self
            .foca
            .iter_membership_state()
            .filter(|member| !is_foreign(self.own.cluster, member.id().cluster))
            .map(|member| member.id().clone())
            .collect();
        for other in others {
            let _ = self.foca.announce(other, &mut self.asked);
        }
        self.hello_at_us = self.now_us;
    }

    /// The others think that this node is down: back at once if that is rare, else after a pause, so that two nodes with
    /// one id do not take turns as fast as packets travel.
    fn plan_rejoin(&mut self) {
        let is_rare = self.rejoined_us.is_none_or(|at_us| self.now_us - at_us > REJOIN_WINDOW_US);
        if is_rare {
            self.rejoins = 0;
            self.rejoin();
        } else if self.rejoin_at_us.is_none() {
            let pause_us = REJOIN_PAUSE_US << self.rejoins.saturating_sub(1).min(3);
            self.rejoin_at_us = Some(self.now_us + pause_us);
        }
    }

    /// Who this node is, for one that does not know it.
    fn hello(&self) -> Vec<u8> {
        let mut body = Vec::new();
        packet::put_identity(&mut body, self.foca.identity());
        packet::seal(PacketKind::Hello, self.name_hash, &body)
    }

    fn say_hello(&mut self, out: &mut Out) {
        let is_alone = self.foca.num_members() == 0;
        let interval_us = if is_alone { HELLO_ALONE_US } else { HELLO_US };
        self.hello_at_us = self.now_us + interval_us + self.choice.next() % (interval_us / 4);
        let hello = self.hello();
        if is_alone {
            out.packets.extend(self.seeds.iter().map(|seed| (*seed, hello.clone())));
            return;
        }
        let silent = |seed: &SocketAddr| self.alive.values().all(|member| member.peer != *seed);
        let silent: Vec<SocketAddr> = self.seeds.iter().copied().filter(silent).collect();
        if !silent.is_empty() {
            out.packets.push((silent[self.seed_next % silent.len()], hello));
            self.seed_next = self.seed_next.wrapping_add(1);
        }
    }

    fn needs(&self) -> Needs {
        let is_any_down = self.foca.iter_membership_state().any(|member| member.state() == foca::State::Down);
        Needs { has_news: self.has_news(), is_any_down }
    }

    fn has_news(&self) -> bool {
        self.foca.updates_backlog() > 0
    }

    fn keep_timers(&mut self) {
        for (after, timer) in self.asked.timers.drain(..) {
            self.timers.keep(timer, after, self.now_us);
        }
    }

    /// Turns what foca asked for during a call into effects.
    fn finish(&mut self, out: &mut Out) {
        if core::mem::take(&mut self.asked.is_down) {
            self.plan_rejoin();
        }
        self.keep_timers();
        if self.asked.are_members_changed || self.has_news() {
            self.timers.unrest(self.now_us);
        }
        let packets = self.asked.packets.drain(..);
        out.packets.extend(packets.map(|(to, body)| (to, packet::seal(PacketKind::Gossip, self.name_hash, &body))));
        if core::mem::take(&mut self.asked.are_members_changed) {
            // Nobody else is where this node is.
            self.bury_others_at(self.own.id, self.own.peer, out);
            self.report(out);
        }
    }

    /// The node `id` is at this address: whoever else was there is gone, which needs no probes to be known.
    fn bury_others_at(&mut self, id: NodeId, peer: SocketAddr, out: &mut Out) {
        let mut gone = Vec::new();
        for other in self.foca.iter_members().filter(|other| other.id().peer == peer && other.id().id != id) {
            gone.push(foca::Member::new(other.id().clone(), other.incarnation(), foca::State::Down));
        }
        for old in &gone {
            let (name, old) = (&old.id().name, old.id().id);
            let say = || {
                format!(
                    "node \"{name}\" ({old}) is gone: node {id} is at its address {peer}; if its disk was lost, \
                     `taskmaster cluster remove {old}`"
                )
            };
            let _ = self.warnings.say(Reason::AddressTaken, u128::from(old.0), self.now_us, &mut out.warnings, say);
        }
        // It fails for none: they are members.
        let _ = self.foca.apply_many(gone.into_iter(), true, &mut self.asked);
    }

    /// Compares who is there with what was last reported.
    fn report(&mut self, out: &mut Out) {
        let alive: BTreeMap<NodeId, Member> = self
            .foca
            .iter_members()
            .map(foca::Member::id)
            .filter(|identity| !is_foreign(self.own.cluster, identity.cluster))
            .map(|identity| (identity.id, identity.to_member(true)))
            .collect();
        let before = core::mem::replace(&mut self.alive, alive);
        for (id, member) in &before {
            if !self.alive.contains_key(id) {
                out.changes.push(Member { is_alive: false, ..member.clone() });
            }
        }
        for (id, member) in &self.alive {
            if before.get(id) != Some(member) {
                out.changes.push(member.clone());
            }
        }
        self.warn_of_doubles(out);
    }

    /// Two nodes of one name, or two clusters for a node that has yet to join one.
    fn warn_of_doubles(&mut self, out: &mut Out) {
        let mut by_name: BTreeMap<&str, &Member> = BTreeMap::new();
        for member in core::iter::once(&self.own).chain(self.alive.values()) {
            if let Some(other) = by_name.insert(&member.name, member) {
                let say = || {
                    format!(
                        "two nodes are called \"{}\": {} at {} and {} at {}: give one of them another name, or remove the one \
                         that is gone for good",
                        member.name, other.id, other.peer, member.id, member.peer
                    )
                };
                let _ =
                    self.warnings.say(Reason::SameName, u128::from(member.id.0), self.now_us, &mut out.warnings, say);
            }
        }
        if self.own.cluster != 0 {
            return;
        }
        let mut joined = self.alive.values().filter(|member| member.cluster != 0);
        if let Some(first) = joined.next()
            && let Some(second) = joined.find(|member| member.cluster != first.cluster)
        {
            let say = || {
                format!(
                    "\"{}\" at {} belongs to cluster {:032x} and \"{}\" at {} to cluster {:032x}: this node cannot join both, \
                     so give it the seeds of one",
                    first.name, first.peer, first.cluster, second.name, second.peer, second.cluster
                )
            };
            let _ = self.warnings.say(Reason::TwoClusters, 0, self.now_us, &mut out.warnings, say);
        }
    }
}

/// Both belong to a cluster, and not to the same.
const fn is_foreign(own: u128, other: u128) -> bool {
    own != 0 && other != 0 && own != other
}

//! Groups at rest, and the pulse between shards that share them.
//!
//! When every member of a group has all of its log and nothing was asked of it for a while, the group rests: nobody ticks it, and
//! its leader sends no heartbeats for it. In their place, shards that share groups at rest send each other one pulse for all of
//! them. A group wakes with the first thing that is to be done for it, with a message about it, or when the pulse fails.
//!
//! Invariants:
//! - Rest changes nothing but that time stands still for a replica: a read or an entry is confirmed by a majority as ever, and
//!   only votes are withheld as from a leader that was heard of a moment ago, until the first message about the group.
//! - A replica rests only as a leader that serves, or under a leader that said that it rests in this term at this index; and
//!   only while the pulse comes: a leader's from the home of each other member, a follower's from its leader's home.
//! - A replica that rests while its leader does not, or the other way round, is woken: by heartbeats, by a request for its vote,
//!   or by a pulse of another start of the sender. No message of this file has to arrive.

use std::collections::{BTreeMap, BTreeSet};

use taskmaster_protocol::NodeId;

use super::elections::SILENCE_US;
use super::group::Group;
use super::{Effects, Shard};
use crate::peer::{self, Kind, PeerAddr};
use crate::replica::TICK_US;
use crate::replica::record::Fields;

/// Ticks for which a group stands still before it rests: two reports of its load are sent meanwhile.
const STILL_TICKS: u64 = 40;
/// Between two pulses while something is awake, and while everything here rests; in microseconds.
const PULSE_US: u64 = 2 * TICK_US;
pub(super) const SLOW_PULSE_US: u64 = 500_000;
/// A shard from which nothing came for this long is not there, in microseconds: three pulses, or two slow ones and some.
const PATIENCE_US: u64 = 3 * PULSE_US;
const SLOW_PATIENCE_US: u64 = 1_200_000;
/// Longest time that a pulse may promise for the next ones, in microseconds.
const PATIENCE_US_MAX: u64 = 2_000_000;
/// Between two looks for shards with which nothing rests any more, in microseconds.
const TIDY_US: u64 = 1_000_000;

/// A shard with which groups rest.
struct Pair {
    /// Which start of it sends the pulse; 0 before the first.
    started_us: u64,
    heard_us: u64,
    /// How long it may be silent.
    patience_us: u64,
    /// Groups that rest since the last pulse to it, with term and index.
    new: Vec<(u16, u64, u64)>,
}

/// What a leader said of a group that is to rest.
#[derive(Clone, Copy)]
pub(super) struct Offer {
    from: PeerAddr,
    term: u64,
    index: u64,
}

/// Who is awake, and with whom the others rest.
#[derive(Default)]
pub(super) struct Rest {
    /// Groups that are ticked.
    pub(super) awake: BTreeSet<u16>,
    pairs: BTreeMap<PeerAddr, Pair>,
    pulse_us: u64,
    tidy_us: u64,
    /// The last pulse promised the next one late.
    was_slow: bool,
}

impl Rest {
    /// How long a node may be silent before it counts as gone, in microseconds.
    fn patience_us(&self, node: NodeId) -> u64 {
        let shards = PeerAddr { node, shard: 0 }..=PeerAddr { node, shard: u16::MAX };
        self.pairs.range(shards).map(|(_, pair)| pair.patience_us).min().unwrap_or(SILENCE_US)
    }

    fn pair(&mut self, with: PeerAddr, now_us: u64) -> &mut Pair {
        let pair = || Pair { started_us: 0, heard_us: now_us, patience_us: SLOW_PATIENCE_US, new: Vec::new() };
        self.pairs.entry(with).or_insert_with(pair)
    }
}

impl Shard {
    /// Something happened to a group: if it rests, it wakes. Nothing can happen to a leader that is alone.
    pub(super) fn wake(&mut self, group: &mut Group) {
        if group.is_resting && !group.leads_alone() {
            (group.is_resting, group.still_ticks, group.offer) = (false, 0, None);
            group.replica.woke();
            self.rest.awake.insert(group.number);
            self.elections.within(self.last_time_us, TICK_US);
        }
    }

    fn wake_those(&mut self, rests_so: impl Fn(&Self, &Group) -> bool) {
        for place in 0..self.groups.len() {
            let Some(mut group) = self.groups[place].take() else { continue };
            if group.is_resting && rests_so(self, &group) {
                self.wake(&mut group);
            }
            self.groups[place] = Some(group);
        }
    }

    /// Whether a group that rests relies on the pulse of a shard.
    fn relies_on(&self, group: &Group, with: PeerAddr) -> bool {
        let own = self.config.node.id.0;
        let home = |node: u64| self.peers.home_of(node, group.number) == with;
        match group.replica.is_leader() {
            true => group.replica.members().any(|node| node != own && home(node)),
            false => home(group.replica.leader()),
        }
    }

    /// The pulse of this shard is gone, or another one.
    fn wake_with(&mut self, with: PeerAddr) {
        self.wake_those(|shard, group| shard.relies_on(group, with));
    }

    /// A node is gone, or its connection: whatever rests with it wakes.
    pub(super) fn wake_with_node(&mut self, node: NodeId) {
        let gone: Vec<PeerAddr> = self.rest.pairs.keys().copied().filter(|with| with.node == node).collect();
        for with in gone {
            self.rest.pairs.remove(&with);
            self.wake_with(with);
        }
    }

    /// Ticks those that are awake.
    pub(super) fn tick_awake(&mut self, ticks: u64) {
        let awake = core::mem::take(&mut self.rest.awake);
        for &number in &awake {
            let Some(group) = self.group_mut(number) else { continue };
            if group.leads_alone() {
                continue;
            }
            for _ in 0..ticks {
                group.replica.tick();
            }
            if group.replica.has_ready() {
                self.touch(number);
            }
        }
        self.rest.awake = awake;
    }

    /// Lets those rest that may.
    pub(super) fn come_to_rest(&mut self, ticks: u64) {
        let mut awake = core::mem::take(&mut self.rest.awake);
        awake.retain(|&number| {
            let Some(place) = self.place(number) else { return false };
            let Some(mut group) = self.groups[place].take() else { return false };
            group.is_resting = self.may_rest(&mut group, ticks);
            if group.is_resting {
                self.begin_rest(&mut group);
            }
            let stays_awake = !group.is_resting;
            self.groups[place] = Some(group);
            stays_awake
        });
        self.rest.awake = awake;
    }

    fn may_rest(&self, group: &mut Group, ticks: u64) -> bool {
        if group.leads_alone() {
            return true;
        }
        if group.dirty || group.campaign.is_some() || !group.replica.is_quiet() {
            return false;
        }
        if let Some(offer) = group.offer {
            let (replica, home) = (&group.replica, self.peers.home_of(group.replica.leader(), group.number));
            return home == offer.from && replica.follows_at(offer.term, offer.index);
        }
        let stood = core::mem::replace(&mut group.stood_at, group.replica.last_index());
        let is_still = stood == group.replica.last_index() && group.serving > 0 && group.has_nothing_waiting();
        group.still_ticks = if is_still { group.still_ticks + ticks } else { 0 };
        group.still_ticks >= STILL_TICKS && group.replica.is_had_by_all()
    }

    fn begin_rest(&mut self, group: &mut Group) {
        let (now_us, own) = (self.last_time_us, self.config.node.id.0);
        if let Some(offer) = group.offer.take() {
            self.rest.pair(offer.from, now_us);
            return;
        }
        for node in group.replica.members().filter(|&node| node != own) {
            let pair = self.rest.pair(self.peers.home_of(node, group.number), now_us);
            pair.new.push((group.number, group.replica.term(), group.replica.last_index()));
        }
    }

    /// Gives up shards whose pulse fails; returns nodes that are silent altogether.
    pub(super) fn notice_silence(&mut self) -> Vec<NodeId> {
        let now_us = self.last_time_us;
        let is_late = |pair: &Pair| now_us.saturating_sub(pair.heard_us) > pair.patience_us;
        let late: Vec<PeerAddr> =
            self.rest.pairs.iter().filter(|(_, pair)| is_late(pair)).map(|(&with, _)| with).collect();
        let peers = self.peers.nodes.iter().filter(|(node, peer)| {
            peer.heard_us > 0 && now_us.saturating_sub(peer.heard_us) > self.rest.patience_us(**node)
        });
        let silent = peers.map(|(&node, _)| node).collect();
        for with in late {
            self.rest.pairs.remove(&with);
            self.wake_with(with);
        }
        silent
    }

    /// Says to those with whom groups rest that this shard is there, and which groups rest since it said so last.
    pub(super) fn send_pulses(&mut self, effects: &mut Effects) {
        let now_us = self.last_time_us;
        let is_slow = self.rests();
        let has_news = self.rest.pairs.values().any(|pair| !pair.new.is_empty() || pair.started_us == 0);
        if now_us < self.rest.pulse_us && is_slow == self.rest.was_slow && !has_news {
            return;
        }
        self.tidy_pairs();
        let (pause_us, patience_us) = if is_slow { (SLOW_PULSE_US, SLOW_PATIENCE_US) } else { (PULSE_US, PATIENCE_US) };
        self.rest.was_slow = is_slow;
        self.rest.pulse_us = now_us + pause_us - TICK_US / 2;
        for (&with, pair) in &mut self.rest.pairs {
            let out = effects.peer(with);
            let begun = peer::begin(out, Kind::Pulse, 0, 0);
            out.extend_from_slice(&self.started_us.to_le_bytes());
            out.extend_from_slice(&patience_us.to_le_bytes());
            out.extend_from_slice(&u32::try_from(pair.new.len()).expect("groups are bounded").to_le_bytes());
            out.extend_from_slice(&[0; 4]);
            for (group, term, index) in pair.new.drain(..) {
                out.extend_from_slice(&group.to_le_bytes());
                out.extend_from_slice(&[0; 6]);
                out.extend_from_slice(&term.to_le_bytes());
                out.extend_from_slice(&index.to_le_bytes());
            }
            peer::finish(out, begun);
        }
    }

    /// Forgets shards with which nothing rests, and wakes what rests with one that is not known to be there: when a node has another
    /// number of shards than before.
    fn tidy_pairs(&mut self) {
        if self.last_time_us < self.rest.tidy_us {
            return;
        }
        self.rest.tidy_us = self.last_time_us + TIDY_US;
        let mut used = BTreeSet::new();
        for group in self.groups.iter().flatten().filter(|group| group.is_resting) {
            match group.replica.is_leader() {
                true => used.extend(group.replica.members().map(|node| self.peers.home_of(node, group.number))),
                false => _ = used.insert(self.peers.home_of(group.replica.leader(), group.number)),
            }
        }
        self.rest.pairs.retain(|with, _| used.contains(with));
        used.retain(|with| with.node != self.config.node.id && !self.rest.pairs.contains_key(with));
        for with in used {
            self.wake_with(with);
        }
    }

    /// Another shard's pulse.
    pub(super) fn pulse(&mut self, from: PeerAddr, frame: &peer::Frame<'_>) {
        let mut fields = Fields(frame.body);
        let (Some(started_us), Some(patience_us)) = (fields.u64(), fields.u64()) else { return };
        let (Some(count), Some(_)) = (fields.u32(), fields.bytes(4)) else { return };
        let now_us = self.last_time_us;
        if let Some(pair) = self.rest.pairs.get_mut(&from) {
            (pair.heard_us, pair.patience_us) = (now_us, patience_us.clamp(SILENCE_US, PATIENCE_US_MAX));
            let before = core::mem::replace(&mut pair.started_us, started_us);
            if before != 0 && before != started_us {
                self.wake_with(from);
            }
        }
        for _ in 0..count {
            let (Some(number), Some(_)) = (fields.u16(), fields.bytes(6)) else { return };
            let (Some(term), Some(index)) = (fields.u64(), fields.u64()) else { return };
            if let Some(group) = self.group_mut(number).filter(|group| !group.replica.is_leader()) {
                group.offer = Some(Offer { from, term, index });
            }
        }
    }

    /// Whether everything here rests, and nothing else needs a beat soon.
    pub(super) fn rests(&self) -> bool {
        self.rest.awake.is_empty() && self.transfers.is_empty()
    }
}

//! The beat: ticks of the groups, and elections over leaders that are gone.
//!
//! Groups whose only member is here need no beat: an idle node without peers sleeps. A leader is given up when its node's
//! connection is reset or nothing was heard of the node for a while; then the replicas stand one after the other, in an order
//! that differs from group to group, and each silence has one such election: what follows is left to ordinary timeouts.

use taskmaster_protocol::NodeId;

use super::rest::SLOW_PULSE_US;
use super::{Effects, Shard};
use crate::hash::mix64;
use crate::peer::META_GROUP;
use crate::replica::TICK_US;

/// Silence after which a leader is given up, in microseconds: three heartbeats.
pub(super) const SILENCE_US: u64 = 150_000;
/// Between two replicas that stand for election, in microseconds.
const STAND_PAUSE_US: u64 = 60_000;
/// Most ticks made up for after a pause.
const TICKS_PER_BEAT_MAX: u64 = 4;

/// When the beats are.
#[derive(Debug, Default)]
pub(super) struct Elections {
    next_us: u64,
    /// Something need not wait for the next beat.
    hasty: bool,
}

impl Elections {
    /// The present beat, by when it ends.
    pub(super) const fn beat_us(&self) -> u64 {
        self.next_us
    }

    /// The next beat comes no later than this.
    pub(super) const fn within(&mut self, now_us: u64, pause_us: u64) {
        if self.next_us > now_us + pause_us {
            self.next_us = now_us + pause_us;
        }
    }

    /// Elections and transfers go on at the end of this turn.
    pub(super) const fn hasten(&mut self) {
        self.hasty = true;
    }
}

impl Shard {
    /// When the next beat is due; `None` while nothing outside this shard can matter.
    pub(super) fn next_beat_us(&self) -> Option<u64> {
        let needs_beat = !self.rest.awake.is_empty() || !self.peers.nodes.is_empty();
        needs_beat.then_some(self.elections.next_us.max(1))
    }

    /// Ticks the groups if it is time, and does what is done every now and then.
    pub(super) fn beat(&mut self, effects: &mut Effects) {
        let now_us = self.last_time_us;
        if now_us < self.elections.next_us || self.next_beat_us().is_none() {
            return;
        }
        let late = (now_us - self.elections.next_us.min(now_us)) / TICK_US;
        let ticks = 1 + late.min(TICKS_PER_BEAT_MAX - 1);
        self.tick_awake(ticks);
        self.come_to_rest(ticks);
        for node in self.notice_silence() {
            self.stand_over(node);
        }
        self.stand();
        self.beat_transfers(effects);
        self.beat_meta(effects);
        self.reconcile();
        self.repeat_needs();
        self.announce_leads(effects);
        self.send_pulses(effects);
        // Beats of nodes whose clocks agree coincide, so that each is woken once for its own and for what the others send.
        let pause_us = if self.rests() { SLOW_PULSE_US } else { TICK_US };
        self.elections.next_us = (now_us / pause_us + 1) * pause_us;
    }

    /// The node is gone: the groups that it led are to be led by others.
    pub(super) fn stand_over(&mut self, lost: NodeId) {
        let (now_us, own) = (self.last_time_us, self.config.node.id.0);
        for place in 0..self.groups.len() {
            let Some(mut group) = self.groups[place].take_if(|group| {
                // Of a group without a leader another replica heard the same and stands already.
                let is_over = match group.replica.leader() {
                    0 => group.given_up == 0,
                    leader => leader == lost.0 && group.given_up != lost.0,
                };
                is_over && group.replica.is_voter()
            }) else {
                continue;
            };
            self.wake(&mut group);
            group.given_up = lost.0;
            let order = |node: u64| mix64(node ^ (u64::from(group.number) << 48));
            let before = group.replica.conf().voters.iter().filter(|&&node| node != lost.0 && order(node) < order(own));
            let rank = before.count() as u64;
            group.campaign = Some((now_us + rank * STAND_PAUSE_US, lost.0));
            self.groups[place] = Some(group);
        }
        self.elections.hasten();
    }

    /// What need not wait for the next beat.
    pub(super) fn do_in_haste(&mut self, effects: &mut Effects) {
        if core::mem::take(&mut self.elections.hasty) {
            self.stand();
            self.beat_transfers(effects);
            self.announce_leads(effects);
        }
    }

    fn stand(&mut self) {
        let now_us = self.last_time_us;
        let awake = core::mem::take(&mut self.rest.awake);
        for &number in &awake {
            let Some(group) = self.group_mut(number) else { continue };
            if let Some((at_us, lost)) = group.campaign
                && at_us <= now_us
            {
                group.campaign = None;
                group.replica.campaign_over(lost);
                self.touch(number);
            }
        }
        self.rest.awake = awake;
    }

    /// A replica that is alone leads at once; no one else can.
    pub(super) fn lead_alone(&mut self) {
        for place in 0..self.groups.len() {
            let Some(group) = self.groups[place].as_deref_mut() else { continue };
            if group.replica.is_alone() && group.replica.is_voter() && !group.replica.is_leader() {
                group.replica.campaign();
                let number = group.number;
                self.touch(number);
            }
        }
    }

    /// Whether this shard serves all groups that are its alone: false for a moment after the start.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        let mut own = self.groups.iter().flatten().filter(|group| group.replica.is_alone());
        own.all(|group| group.serving > 0)
            && (self.map.is_some() || self.groups.iter().flatten().any(|group| group.number != META_GROUP))
    }
}

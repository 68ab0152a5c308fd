//! What foca wants to be told of in time, and what of it is worth a wake-up.
//!
//! Invariants:
//! - What would do nothing wakes nobody: news are told when there are some, nodes that are down are called when there are any, and
//!   a probe is followed up when it was not answered.
//! - A probe is followed up, if only in form, before the next one: foca insists.
//! - In a calm cluster probes are rare; the first sign of unrest brings the next one forward to where it would have been.

use core::time::Duration;
use std::collections::BTreeMap;

use foca::Timer;
use taskmaster_protocol::NodeId;

use super::identity::Identity;

/// Between two probes, in microseconds.
pub(super) const PROBE_US: u64 = 200_000;
/// Between two probes in a calm cluster, in microseconds.
const CALM_PROBE_US: u64 = 1_000_000;
/// A cluster is calm after this time without news or an unanswered probe, in microseconds.
const CALM_AFTER_US: u64 = 10_000_000;

type Pending = Option<(u64, Timer<Identity>)>;

/// What is due when.
#[derive(Default)]
pub(super) struct Timers {
    /// By due time and order of asking.
    always: BTreeMap<(u64, u64), Timer<Identity>>,
    asked: u64,
    /// News are to be told.
    news: Pending,
    /// Nodes that are down are to be called.
    call: Pending,
    probe: Pending,
    follow_up: Pending,
    is_probe_answered: bool,
    unrest_us: u64,
}

/// What there is to be told.
#[derive(Clone, Copy)]
pub(super) struct Needs {
    pub(super) has_news: bool,
    pub(super) is_any_down: bool,
}

impl Timers {
    /// Keeps a timer that foca asked for.
    pub(super) fn keep(&mut self, timer: Timer<Identity>, after: Duration, now_us: u64) {
        let at_us = now_us.saturating_add(u64::try_from(after.as_micros()).unwrap_or(u64::MAX));
        match timer {
            Timer::PeriodicGossip(_) => self.news = Some((at_us, timer)),
            Timer::PeriodicAnnounceDown(_) => self.call = Some((at_us, timer)),
            Timer::SendIndirectProbe { .. } => {
                (self.follow_up, self.is_probe_answered) = (Some((at_us, timer)), false);
            }
            Timer::ProbeRandomMember(_) => {
                let is_calm = now_us.saturating_sub(self.unrest_us) >= CALM_AFTER_US;
                self.probe = Some((if is_calm { now_us + CALM_PROBE_US } else { at_us }, timer));
            }
            _ => {
                self.always.insert((at_us, self.asked), timer);
                self.asked += 1;
            }
        }
    }

    /// A member answered a probe.
    pub(super) fn answered(&mut self, by: NodeId) {
        if let Some((_, Timer::SendIndirectProbe { probed_id, .. })) = &self.follow_up {
            self.is_probe_answered |= probed_id.id == by;
        }
    }

    /// Something changes, or somebody is silent.
    pub(super) fn unrest(&mut self, now_us: u64) {
        self.unrest_us = now_us;
        if let Some((at_us, _)) = &mut self.probe {
            *at_us = (*at_us).min(now_us + PROBE_US);
        }
    }

    /// When something is due.
    pub(super) fn next_us(&self, needs: Needs) -> u64 {
        let at = |pending: &Pending, matters: bool| match pending {
            Some((at_us, _)) if matters => *at_us,
            _ => u64::MAX,
        };
        let always_us = self.always.first_key_value().map_or(u64::MAX, |((at_us, _), _)| *at_us);
        always_us
            .min(at(&self.news, needs.has_news))
            .min(at(&self.call, needs.is_any_down))
            .min(at(&self.probe, true))
            .min(at(&self.follow_up, !self.is_probe_answered))
    }

    /// Something that is due and was not taken yet.
    pub(super) fn take_due(&mut self, now_us: u64, needs: Needs) -> Option<Timer<Identity>> {
        let is_due = |(at_us, _): &mut (u64, Timer<Identity>)| *at_us <= now_us;
        let is_probe_due = self.probe.as_mut().is_some_and(is_due);
        let is_unanswered = !self.is_probe_answered && self.follow_up.as_mut().is_some_and(is_due);
        if is_unanswered {
            self.unrest(now_us);
        }
        let follow_up = self.follow_up.take_if(|_| is_unanswered || is_probe_due);
        let taken = follow_up
            .or_else(|| self.probe.take_if(is_due))
            .or_else(|| self.news.take_if(|news| needs.has_news && is_due(news)))
            .or_else(|| self.call.take_if(|call| needs.is_any_down && is_due(call)));
        if let Some((_, timer)) = taken {
            return Some(timer);
        }
        let entry = self.always.first_entry().filter(|entry| entry.key().0 <= now_us)?;
        Some(entry.remove())
    }
}

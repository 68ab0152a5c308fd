//! Preemption: a task that waits, of a higher priority than restartable ones of its queue that run, gets the place of the one that began last.
//!
//! The ended attempt counts for nothing, and its task is the first of its line again. What is lost is bounded by an allowance
//! ([`crate::restarts`]) and by how often a task may be ended; so a flood of urgent tasks takes places as they become free, as ever.

use std::collections::BTreeMap;

use taskmaster_protocol::PartitionId;
use taskmaster_protocol::body::restart;

use super::Shard;
use crate::dispatch::{LaneRef, PRIORITIES};
use crate::partition::{DETACHED, Lane, Over};
use crate::reservations::Asks;
use crate::task::{Slot, flag};

/// A task that has waited for less may yet find a place by itself, in microseconds.
const WAIT_US: u64 = 200_000;
/// An attempt that began later is not ended, and neither is one that has run for longer, in microseconds.
pub(super) const HELD_US: u64 = 100_000;
const RAN_MAX_US: u64 = 600_000_000;
/// How often a task is ended for others.
const TIMES_MAX: u8 = 3;
/// For so long a place that was freed is taken to be on its way, in microseconds: its worker has yet to end the attempt.
const OWED_US: u64 = 2_000_000;
/// Most lanes of a queue that one look takes in, the most urgent first.
const LANES_MAX: usize = 8;

/// Tasks that wait for places.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) lane: LaneRef,
    pub(super) priority: u8,
    /// Tasks, of which the first `owed` have places on their way.
    pub(super) count: u32,
    pub(super) owed: u32,
}

/// An attempt that may be ended.
pub(super) struct Victim {
    pub(super) partition: PartitionId,
    pub(super) slot: Slot,
    pub(super) queue: u32,
    pub(super) priority: u8,
    pub(super) started_us: u64,
    /// It is a second attempt, whose task goes on without it.
    pub(super) is_second: bool,
}

impl Shard {
    /// Ends attempts of restartable tasks for those of a higher priority that find no place.
    pub(super) fn preempt(&mut self) {
        let served = self.dispatch.workers.iter().filter(|worker| worker.connected).flat_map(|worker| &worker.queues);
        let mut waits = served.map(|&queue| self.dispatch.queues[queue as usize].waits());
        if self.dispatch.restarts.preemption.left_us() == 0 || !waits.any(|waits| waits) {
            return;
        }
        let (mut victims, mut wanted) = self.victims();
        victims.sort_by_key(|victim| (core::cmp::Reverse(victim.started_us), victim.partition, victim.slot));
        for victim in victims {
            let Some(lanes) = wanted.get_mut(&victim.queue) else { continue };
            if let Some(lane) = lanes.iter_mut().find(|lane| self.gives_place(&victim, lane)) {
                lane.count -= 1;
                self.end_for(&victim, lane.priority);
            }
        }
    }

    /// Attempts of queues where more urgent tasks wait, and those tasks by queue.
    fn victims(&self) -> (Vec<Victim>, BTreeMap<u32, Vec<Wanted>>) {
        let (mut victims, mut wanted) = (Vec::new(), BTreeMap::<u32, Vec<Wanted>>::new());
        let looks = self.looks();
        for partition in self.partitions.iter().flatten().filter(|partition| partition.is_leading()) {
            for slot in partition.attempts.least_urgent().take(looks) {
                let task = &partition.tasks[slot];
                let contract = &partition.contracts[task.contract];
                let queue = &partition.queues[contract.queue as usize];
                if !queue.settings.restarts(restart::PREEMPTION) {
                    continue;
                }
                let queue = queue.dispatch;
                let waits = wanted.entry(queue).or_insert_with(|| self.wanted(queue));
                if waits.first().is_none_or(|lane| lane.priority >= contract.priority) {
                    continue;
                }
                let Some(attempt) = partition.attempts.get(slot) else { continue };
                let is_over = task.has(flag::SETTLING) || task.has(flag::EXPIRING) || task.worker & DETACHED != 0;
                if is_over || (attempt.second.is_none() && attempt.preempted >= TIMES_MAX) {
                    continue;
                }
                let started_us = attempt.second.map_or(attempt.started_us, |second| second.started_us);
                let (is_second, priority) = (attempt.second.is_some(), contract.priority);
                // Its worker may not even have begun: that would free no place.
                if self.last_time_us.saturating_sub(started_us) < HELD_US {
                    continue;
                }
                victims.push(Victim { partition: partition.id, slot, queue, priority, started_us, is_second });
            }
        }
        (victims, wanted)
    }

    /// Tasks of a queue that wait for places, the most urgent first.
    pub(super) fn wanted(&self, queue: u32) -> Vec<Wanted> {
        let (entry, now_us) = (&self.dispatch.queues[queue as usize], self.last_time_us);
        let is_full = entry.concurrency.is_some_and(|limit| entry.leased + entry.permits.lent() >= limit);
        let is_held = !entry.permits.is_owner || now_us < entry.permits.settles_us;
        let has_start = entry.bucket.is_none_or(|mut bucket| bucket.available(now_us) > 0);
        if !has_start || (entry.is_limited() && is_held) {
            return Vec::new();
        }
        let workers = || entry.workers.iter().map(|&index| (index, &self.dispatch.workers[index as usize]));
        let owed = workers().filter(|(_, worker)| worker.owed_until_us > now_us).map(|(_, worker)| worker.owed);
        let mut owed: u32 = owed.sum();
        let mut wanted = Vec::new();
        for lane in (0..PRIORITIES).flat_map(|priority| &entry.rings[priority]).take(LANES_MAX) {
            let Some((ready, count)) = self.overdue(*lane) else { continue };
            let priority = ready.priority;
            let asks = Asks { queue, priority, lane: *lane };
            let has_room = workers().any(|(index, worker)| {
                ready.sets().any(|need| worker.has_room(need)) && !self.dispatch.keeps_from(index, &asks)
            });
            // It starts without anybody's end.
            if has_room && !is_full {
                continue;
            }
            let own = owed.min(count);
            owed -= own;
            if count > own {
                wanted.push(Wanted { lane: *lane, priority, count: count - own, owed: own });
            }
        }
        wanted
    }

    /// A lane, and how many tasks it has, if the first of them has waited for long enough.
    fn overdue(&self, lane: LaneRef) -> Option<(&Lane, u32)> {
        let partition = self.partitions[usize::from(lane.partition)].as_deref()?;
        let ready = &partition.lanes[lane.lane as usize];
        let heads = ready.lists.iter().filter_map(|of| of.list.first());
        let since_us = heads.map(|slot| partition.tasks[slot].at_us).min()?;
        let is_paused = partition.queues[ready.queue as usize].settings.paused;
        let waits = !is_paused && self.last_time_us.saturating_sub(since_us) >= WAIT_US;
        waits.then_some((ready, ready.len))
    }

    /// Whether the end of an attempt gives a place to a task that waits, at a cost that is allowed.
    fn gives_place(&self, victim: &Victim, lane: &Wanted) -> bool {
        let ran_us = self.last_time_us.saturating_sub(victim.started_us);
        let most_us = self.dispatch.restarts.preemption.left_us().min(RAN_MAX_US);
        if lane.count == 0 || lane.priority >= victim.priority || ran_us > most_us {
            return false;
        }
        self.frees_place(victim, (lane.priority, lane.lane))
    }

    /// Whether the end of an attempt gives a place to a task of this priority and lane, with whichever of its resources.
    pub(super) fn frees_place(&self, victim: &Victim, (priority, lane): (u8, LaneRef)) -> bool {
        let of = |number: u16| self.partitions[usize::from(number)].as_deref();
        let Some((partition, waiting)) = of(victim.partition.0).zip(of(lane.partition)) else { return false };
        let task = &partition.tasks[victim.slot];
        let second = partition.second(victim.slot).filter(|_| victim.is_second);
        let index = second.map_or(task.worker, |second| second.worker);
        let worker = &self.dispatch.workers[index as usize];
        let asks = Asks { queue: victim.queue, priority, lane };
        let serves =
            worker.connected && worker.queues.contains(&victim.queue) && !self.dispatch.keeps_from(index, &asks);
        // One that did not give the place for which an attempt was ended would not give another.
        let is_overdue = worker.owed > 0 && worker.owed_until_us <= self.last_time_us;
        let fits = || {
            let mut used = worker.used.clone();
            used.subtract(
                second.map_or(partition.need(victim.slot), |second| partition.need_with(victim.slot, second.set)),
            );
            waiting.lanes[lane.lane as usize].sets().any(|need| need.fits_on(worker.capacity.as_ref(), &used, 1) > 0)
        };
        serves && !is_overdue && fits()
    }

    /// The place of an attempt that is about to be ended is on its way; the name of its worker.
    pub(super) fn owe_place(&mut self, victim: &Victim) -> String {
        let Some(partition) = self.partitions[usize::from(victim.partition.0)].as_deref() else { return String::new() };
        let second = partition.second(victim.slot).filter(|_| victim.is_second);
        let index = second.map_or(partition.tasks[victim.slot].worker, |second| second.worker);
        let worker = &mut self.dispatch.workers[index as usize];
        worker.owed = if worker.owed_until_us > self.last_time_us { worker.owed + 1 } else { 1 };
        worker.owed_until_us = self.last_time_us + OWED_US;
        worker.name.clone()
    }

    /// Ends an attempt for a task of this priority.
    fn end_for(&mut self, victim: &Victim, priority: u8) {
        let now_us = self.last_time_us;
        let ran_us = now_us.saturating_sub(victim.started_us);
        self.dispatch.restarts.preemption.spend(ran_us);
        self.dispatch.restarts.counters.preempted += 1;
        let worker = self.owe_place(victim);
        let Some((partition, mut cx)) = self.split(victim.partition, now_us) else { return };
        let name = ["critical", "high", "normal", "low"][usize::from(priority).min(PRIORITIES - 1)];
        let which = if victim.is_second { "the second attempt" } else { "the attempt" };
        let sentence = format!(
            "{which} on worker \"{worker}\" was ended after {} ms for a task of priority {name} that found no place; this counts as no failure",
            ran_us / 1_000
        );
        partition.tell(victim.slot, ("preempted", sentence));
        if victim.is_second {
            partition.drop_second(victim.slot, Over::Overtaken, &mut cx);
        } else {
            cx.dispatch.restarts.counters.wasted_us += ran_us;
            partition.end_attempt_for_others(victim.slot, &mut cx);
        }
    }
}

//! Giving up: in a queue that is ordered by what was learned, an attempt of a restartable task that has run for as long as it was judged by
//! makes room for a task that is expected to take much less, and its task waits as one that is known to take longer.
//!
//! How long, and for whom, is decided by the code that is replayed over traces ([`taskmaster_scheduler::lengths`]). Bounds: what is lost is at
//! most a twentieth of what attempts of restartable tasks used ([`crate::restarts`]), and a task that waited for as long as lets it go
//! ahead of all ranks is not given up any more, however often it was before.

use std::collections::BTreeMap;

use taskmaster_protocol::PartitionId;

use super::Shard;
use super::preemption::{HELD_US, Victim};
use crate::dispatch::LaneRef;
use crate::order::{micros_of, whole_millis};
use crate::partition::{DETACHED, Place};
use crate::restarts::Look;
use crate::state::State;
use crate::task::{Slot, flag};

/// Tasks that wait for places and are predicted alike.
struct Waiting {
    priority: u8,
    lane: LaneRef,
    rank: f32,
    count: u32,
}

impl Shard {
    /// Ends attempts that are due to be judged, where others are expected to take much less.
    pub(super) fn give_attempts_up(&mut self) {
        if !self.dispatch.queues.iter().any(|queue| queue.order.gives_up()) {
            return;
        }
        let mut waiting = BTreeMap::<u32, Vec<Waiting>>::new();
        for number in (0..self.config.partitions).map(PartitionId) {
            let Some(partition) = self.partitions[usize::from(number.0)].as_deref() else { continue };
            if !partition.is_leading() || partition.attempts.running() == 0 {
                continue;
            }
            let (after, looks) = (self.dispatch.restarts.looked_at(Look::GivingUp, number), self.looks());
            let looked_at: Vec<(Place, Slot)> = partition.attempts.behind(after).take(looks).collect();
            let next = looked_at.last().map(|(place, _)| *place).filter(|_| looked_at.len() == looks);
            self.dispatch.restarts.look_on(Look::GivingUp, number, next);
            for (_, slot) in looked_at {
                if let Some(victim) = self.is_due(number, slot) {
                    self.judge(&victim, &mut waiting);
                }
            }
        }
    }

    /// An attempt that is to be judged now.
    fn is_due(&mut self, number: PartitionId, slot: Slot) -> Option<Victim> {
        let now_us = self.last_time_us;
        let partition = self.partitions[usize::from(number.0)].as_deref_mut()?;
        let (task, attempt) = (&partition.tasks[slot], partition.attempts.get(slot)?);
        let contract = &partition.contracts[task.contract];
        let queue = partition.queues[contract.queue as usize].dispatch;
        let is_steady = task.state == State::Leased && task.worker & DETACHED == 0;
        let is_over = task.has(flag::SETTLING) || task.has(flag::EXPIRING);
        let (started_us, outlived_us) = (attempt.started_us, attempt.outlived_us);
        let order = &self.dispatch.queues[queue as usize].order;
        let went_ahead = attempt.ready_us <= order.aged_us(started_us);
        if !is_steady || is_over || attempt.second.is_some() || went_ahead {
            return None;
        }
        if !order.gives_up() || now_us.saturating_sub(started_us) < HELD_US {
            return None;
        }
        let mut judged_us = attempt.judged_us;
        let priority = contract.priority;
        if judged_us == 0 {
            let first_us = self.dispatch.learned.first_look_us(partition.class(slot), outlived_us, now_us)?;
            judged_us = started_us.saturating_add(first_us);
            partition.attempts.judge_at(slot, judged_us);
        }
        (judged_us <= now_us).then_some(Victim {
            partition: number,
            slot,
            queue,
            priority,
            started_us,
            is_second: false,
        })
    }

    /// Ends an attempt, or says when it is judged again.
    fn judge(&mut self, victim: &Victim, waiting: &mut BTreeMap<u32, Vec<Waiting>>) {
        let now_us = self.last_time_us;
        let ran_us = now_us.saturating_sub(victim.started_us);
        let Some(partition) = self.partitions[usize::from(victim.partition.0)].as_deref() else { return };
        let Some(on) = self.dispatch.learned.goes_on(partition.class(victim.slot), ran_us) else { return };
        let lists = waiting.entry(victim.queue).or_insert_with(|| self.waiting_by_rank(victim.queue));
        let could = |list: &&mut Waiting| {
            list.count > 0 && list.priority <= victim.priority && self.frees_place(victim, (list.priority, list.lane))
        };
        let lowest = lists.iter_mut().filter(could).min_by(|a, b| a.rank.total_cmp(&b.rank));
        let is_late = on.yields_to(lowest.as_ref().map(|list| list.rank));
        if let Some(lowest) = lowest.filter(|_| is_late && self.dispatch.restarts.may_lose(victim.started_us, now_us)) {
            lowest.count -= 1;
            self.lose(victim, ran_us);
            return;
        }
        let again_us = on.next_look(whole_millis(ran_us), is_late).map_or(u64::MAX, micros_of);
        if let Some(partition) = self.partitions[usize::from(victim.partition.0)].as_deref_mut() {
            partition.attempts.judge_at(victim.slot, victim.started_us.saturating_add(again_us));
        }
    }

    /// Tasks of a queue that wait for places, by list.
    fn waiting_by_rank(&mut self, queue: u32) -> Vec<Waiting> {
        let (now_us, mut waiting) = (self.last_time_us, Vec::new());
        for wanted in self.wanted(queue) {
            let Some(partition) = self.partitions[usize::from(wanted.lane.partition)].as_deref() else { continue };
            let lists = partition.lanes[wanted.lane.lane as usize].lists.iter().filter(|of| of.list.len > 0);
            let learned = &mut self.dispatch.learned;
            let ranks = lists.map(|of| (of.list.len, learned.rank(of.class, now_us, true)));
            let mut ranks: Vec<(u32, f32)> = ranks.collect();
            ranks.sort_unstable_by(|a, b| a.1.total_cmp(&b.1));
            let mut owed = wanted.owed;
            for (count, rank) in ranks {
                let own = owed.min(count);
                owed -= own;
                waiting.push(Waiting { priority: wanted.priority, lane: wanted.lane, rank, count: count - own });
            }
        }
        waiting
    }

    /// Ends an attempt for tasks that are expected to take much less.
    fn lose(&mut self, victim: &Victim, ran_us: u64) {
        let worker = self.owe_place(victim);
        self.dispatch.restarts.counters.given_up += 1;
        self.dispatch.restarts.counters.wasted_us += ran_us;
        let Some((partition, mut cx)) = self.split(victim.partition, self.last_time_us) else { return };
        let sentence = format!(
            "the attempt on worker \"{worker}\" was ended after {} ms, which outlives most of its kind, for a task that is expected to take much less and found no place; this counts as no failure",
            ran_us / 1_000
        );
        partition.tell(victim.slot, ("given_up", sentence));
        partition.give_up_attempt(victim.slot, &mut cx);
    }
}

//! Attempts of restartable tasks, looked at while some run: where a second one pays and a place idles, it begins.
//!
//! All of it is the leader's own and volatile, as leases are. What it may cost is bounded in [`crate::restarts`].

use std::collections::BTreeSet;

use taskmaster_protocol::body::{Assign, restart};
use taskmaster_protocol::frame::{self, Header};
use taskmaster_protocol::{Operation, PartitionId};

use super::{Effects, Shard};
use crate::assign;
use crate::dispatch::Worker;
use crate::partition::{DETACHED, Partition, Place, Second};
use crate::resources::Resources;
use crate::restarts::Look;
use crate::state::State;
use crate::task::{NONE, Slot, flag};
use crate::timer::{Timer, TimerKind};

/// Between two looks, in microseconds: while the latest attempt is younger than [`YOUNG_US`], and later.
const LOOK_US: u64 = 20_000;
const LOOK_LATER_US: u64 = 100_000;
const YOUNG_US: u64 = 2_000_000;
/// Most attempts that one look takes in, over all partitions, but for a few of each; the next goes on behind them.
const LOOK_MAX: usize = 2_048;
const LOOK_MIN: usize = 16;

/// A second attempt that pays.
struct Chance {
    slot: Slot,
    class: u32,
    /// Times in milliseconds: how long the first has run, when it was late, and how long a fresh one takes.
    elapsed: f64,
    late: f64,
    fresh: f64,
}

impl Shard {
    /// Looks at attempts of restartable tasks soon, if some run.
    pub(super) fn arm_attempts(&mut self) {
        let restarts = &mut self.dispatch.restarts;
        if restarts.is_armed {
            return;
        }
        let latest_us = self.partitions.iter().flatten().filter_map(|partition| partition.attempts.latest_us()).max();
        if let Some(latest_us) = latest_us {
            restarts.is_armed = true;
            let is_young = self.last_time_us.saturating_sub(latest_us) < YOUNG_US;
            let pause_us = if is_young { LOOK_US } else { LOOK_LATER_US };
            let timer = Timer::of_index(PartitionId(0), TimerKind::Attempts, 0);
            self.timers.insert(self.last_time_us + pause_us, timer);
        }
    }

    /// How many attempts of each partition a look takes in.
    pub(super) fn looks(&self) -> usize {
        let partitions = self.partitions.iter().flatten().filter(|partition| partition.attempts.running() > 0).count();
        (LOOK_MAX / partitions.max(1)).max(LOOK_MIN)
    }

    /// A look at attempts of restartable tasks.
    pub(super) fn look_at_attempts(&mut self, effects: &mut Effects) {
        self.dispatch.restarts.is_armed = false;
        let now_us = self.last_time_us;
        let connected = self.dispatch.workers.iter().filter(|worker| worker.connected);
        let places = connected.map(|worker| u64::from(worker.leases) + u64::from(worker.credit)).sum();
        self.dispatch.restarts.pass(places, now_us);
        for number in (0..self.config.partitions).map(PartitionId) {
            if let Some((partition, mut cx)) = self.split(number, now_us) {
                partition.expire_seconds(&mut cx);
            }
        }
        if !self.draining {
            self.preempt();
            self.give_attempts_up();
        }
        let mut workers = self.dispatch.workers.iter();
        if !self.draining && workers.any(|worker| worker.connected && worker.credit > 0) {
            for number in (0..self.config.partitions).map(PartitionId) {
                self.begin_seconds(number, effects);
            }
        }
        self.tell_revoked(effects);
        self.arm_attempts();
    }

    /// A worker is gone that held leases.
    pub(super) fn worker_gone(&mut self, worker: u32) {
        let now_us = self.last_time_us;
        for number in (0..self.config.partitions).map(PartitionId) {
            if let Some((partition, mut cx)) = self.split(number, now_us)
                && partition.attempts.seconds() > 0
            {
                partition.worker_gone(worker, &mut cx);
            }
        }
    }

    /// Begins second attempts of a partition's tasks where they pay.
    fn begin_seconds(&mut self, number: PartitionId, effects: &mut Effects) {
        let Some(partition) = self.partitions[usize::from(number.0)].as_deref() else { return };
        if !partition.is_leading() || partition.attempts.running() == 0 || !self.dispatch.restarts.may_begin() {
            return;
        }
        let (after, looks) = (self.dispatch.restarts.looked_at(Look::Second, number), self.looks());
        let looked_at: Vec<(Place, Slot)> = partition.attempts.behind(after).take(looks).collect();
        let mut next = looked_at.last().map(|(place, _)| *place).filter(|_| looked_at.len() == looks);
        // Contracts for which no worker idles: it is not looked for one for each of their tasks.
        let (mut before, mut without) = (after, BTreeSet::new());
        for (place, slot) in looked_at {
            if !self.dispatch.restarts.may_begin() {
                next = Some(before);
                break;
            }
            before = place;
            let Some(chance) = self.chance_of_second(number, slot) else { continue };
            let contract = self.partitions[usize::from(number.0)].as_deref().map(|of| of.tasks[slot].contract);
            if without.contains(&contract) {
                continue;
            }
            let idle = self.idle_worker(number, slot, effects);
            if idle.is_none() {
                without.insert(contract);
            }
            if let Some(idle) = idle {
                if self.dispatch.learned.takes_second(chance.class) {
                    self.begin_second(number, &chance, idle, effects);
                } else if let Some(partition) = self.partitions[usize::from(number.0)].as_deref_mut() {
                    partition.pass_second(slot);
                }
            }
        }
        self.dispatch.restarts.look_on(Look::Second, number, next);
    }

    /// Whether a second attempt of a task would pay.
    #[expect(clippy::cast_precision_loss, reason = "a run time")]
    fn chance_of_second(&mut self, number: PartitionId, slot: Slot) -> Option<Chance> {
        let now_us = self.last_time_us;
        let partition = self.partitions[usize::from(number.0)].as_deref()?;
        let (task, attempt) = (&partition.tasks[slot], partition.attempts.get(slot)?);
        let queue = &partition.queues[partition.contracts[task.contract].queue as usize];
        let is_steady = task.state == State::Leased && task.worker & DETACHED == 0;
        let is_over = task.has(flag::SETTLING) || task.has(flag::EXPIRING);
        if !is_steady || is_over || attempt.second.is_some() || attempt.not_before_us > now_us {
            return None;
        }
        if queue.settings.paused || !queue.settings.restarts(restart::SPECULATION) {
            return None;
        }
        if self.dispatch.queues[queue.dispatch as usize].with_credit == 0 {
            return None;
        }
        let extra = partition.extras.get(task.extra);
        // A key promises how many run at once; and a state is saved by one attempt.
        if extra.is_some_and(|extra| extra.key != NONE || extra.history != NONE) {
            return None;
        }
        let done_permille = extra.map_or(0, |extra| extra.done_permille);
        let (class, elapsed_us) = (partition.class(slot), now_us.saturating_sub(attempt.started_us));
        let late = self.dispatch.learned.late(class, now_us)?;
        let elapsed = elapsed_us as f64 / 1_000.0;
        let chance = Chance { slot, class, elapsed, late: late.after, fresh: late.fresh };
        late.pays(elapsed, done_permille).then_some(chance)
    }

    /// A worker other than the one that runs the task, with a place for it that nothing waits for, and with which of its resources it runs there.
    fn idle_worker(&mut self, number: PartitionId, slot: Slot, effects: &mut Effects) -> Option<(u32, u8)> {
        let partition = self.partitions[usize::from(number.0)].as_deref()?;
        let task = &partition.tasks[slot];
        let contract = &partition.contracts[task.contract];
        let queue = partition.queues[contract.queue as usize].dispatch;
        let dispatch = &self.dispatch;
        let has_room = |index: u32, need: &Resources| {
            let worker = &dispatch.workers[index as usize];
            index != task.worker && worker.reserved.is_none() && worker.has_room(need)
        };
        let is_waited_for = |index: u32| {
            let worker = &dispatch.workers[index as usize];
            worker.queues.iter().flat_map(|&queue| dispatch.queues[queue as usize].rings.iter().flatten()).any(|lane| {
                let of = self.partitions[usize::from(lane.partition)].as_deref();
                of.is_some_and(|of| of.can_start(lane.lane, worker))
            })
        };
        let idle_with = |need: &Resources| {
            let workers = dispatch.queues[queue as usize].workers.iter().copied().rev();
            let labels = |index: &u32| contract.wishes.labels_of(dispatch.workers[*index as usize].capacity.as_ref());
            workers.filter(|&index| has_room(index, need) && !is_waited_for(index)).max_by_key(labels)
        };
        let idle = contract.asked().sets().find_map(|(set, need)| Some((idle_with(need)?, set)))?;
        (self.assigner(effects).permits(queue) > 0).then_some(idle)
    }

    /// Begins a second attempt.
    fn begin_second(&mut self, number: PartitionId, chance: &Chance, idle: (u32, u8), effects: &mut Effects) {
        let (slot, now_us, (worker, set)) = (chance.slot, self.last_time_us, idle);
        let Some(partition) = self.partitions[usize::from(number.0)].as_deref_mut() else { return };
        let token = partition.next_token();
        let task = &partition.tasks[slot];
        let contract = &partition.contracts[task.contract];
        let lease_us = u64::from(partition.lease_lists[contract.lease_list as usize].lease_ms) * 1_000;
        let queue = partition.queues[contract.queue as usize].dispatch;
        self.dispatch.take_credit(queue, worker, 1, partition.need_with(slot, set));
        self.dispatch.queues[queue as usize].leases_begin(1);
        self.dispatch.restarts.seconds += 1;
        self.dispatch.restarts.counters.second += 1;
        self.stats.assigned += 1;
        let holder = &self.dispatch.workers[worker as usize];
        let Chance { elapsed, late, fresh, .. } = chance;
        let sentence = format!(
            "started on worker \"{}\" when the first had run for {elapsed:.0} ms: nineteen of twenty of its kind end within {late:.0} ms, and a fresh one takes about {fresh:.0} ms",
            holder.name
        );
        let mut body = Assign::default();
        let ready_us = partition.attempts.get(slot).map_or(0, |attempt| attempt.ready_us);
        assign::describe(partition, &self.arena, slot, (token, set, ready_us), &mut body);
        partition.second_begins(
            slot,
            Second { token, worker, started_us: now_us, until_us: now_us + lease_us, set },
            sentence,
        );
        let header = Header::request(Operation::Assign, 0, Some(number));
        frame::encode(effects.buffer(holder.conn), header, &body);
    }
}

impl Partition {
    /// Whether a lane has tasks that may start on a worker, once it is free.
    fn can_start(&self, lane: u32, worker: &Worker) -> bool {
        let ready = &self.lanes[lane as usize];
        self.may_start(ready) && ready.sets().any(|need| worker.could_hold(need))
    }
}

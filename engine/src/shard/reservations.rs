//! Which workers are kept for tasks that need much of them ([`crate::reservations`]), looked at while such tasks may wait.
//!
//! A task gets a worker when it has waited for a while, fits on none, it is its turn by the queue's order and its queue's turn by
//! [`crate::shares`], and tasks run on those it could go to that need less than it does: their like would go on taking its room. That
//! worker is taken where it is expected to fit first. Of those that it could go to at most half are kept at a time, or one.

mod fits;

use std::collections::{BTreeMap, BTreeSet};

use taskmaster_protocol::PartitionId;

use super::Shard;
use crate::assign::turn_of;
use crate::dispatch::{LaneRef, PRIORITIES, Worker};
use crate::order::By;
use crate::order::deadline::Turn;
use crate::reservations::{Asks, Reservation, WAIT_US};
use crate::resources::Resources;
use crate::timer::{Timer, TimerKind};
use fits::{Fit, Running};

/// Between two looks, in microseconds: while a worker is kept or to be kept, and otherwise; at least so many for each record looked at.
const LOOK_US: u64 = 50_000;
const LOOK_LATER_US: u64 = 500_000;
const LOOK_EACH_US: u64 = 2;
/// Most lanes of a queue that a look takes in, most tasks for which it keeps workers, and most records that it looks at for those.
const LANES_MAX: usize = 64;
const WIDE_MAX: usize = 64;
const RECORDS_MAX: usize = 1 << 18;
/// A worker that the task does not start on, though it fits or though nothing runs there any more, is kept for no longer, in microseconds.
const IDLE_US: u64 = 10_000_000;
const NO_CREDIT_US: u64 = 1_000_000;
/// For so long no worker is kept for tasks of a queue, after one for which its limits let none start.
const LIMITED_US: u64 = 60_000_000;
/// A worker of which it is not known when the task will fit is kept for so long, and then for as long not, in microseconds.
const UNKNOWN_US: u64 = 600_000_000;
/// Who has waited for so long gets a worker though it is not its queue's turn, once in this time for each queue, in microseconds.
const TURN_US: u64 = 5_000_000;
/// How often another worker takes the part of one that is kept, where the task fits in less than half the time.
const MOVES_MAX: u8 = 4;

/// Tasks of a lane that wait.
struct Waiting {
    asks: Asks,
    need: Resources,
    since_us: u64,
    turn: Turn,
    /// It is its queue's turn.
    is_due: bool,
    /// More of them have waited for long enough than workers are kept for; and the first of them for too long.
    waited: bool,
    is_aged: bool,
}

impl Shard {
    /// Looks soon whether workers are to be kept.
    pub(super) fn arm_reservations(&mut self) {
        self.dispatch.reservations.is_asked_for = false;
        self.look_at_reservations_in(LOOK_LATER_US);
    }

    fn look_at_reservations_in(&mut self, pause_us: u64) {
        if !self.dispatch.reservations.is_armed {
            self.dispatch.reservations.is_armed = true;
            let timer = Timer::of_index(PartitionId(0), TimerKind::Reservations, 0);
            self.timers.insert(self.last_time_us + pause_us, timer);
        }
    }

    /// Ends reservations that are not wanted any more, and makes those that are.
    pub(super) fn look_at_reservations(&mut self) {
        self.dispatch.reservations.is_armed = false;
        self.end_reservations();
        if self.draining {
            return;
        }
        let (waiting, may_come) = self.waiting_for_room();
        let mut running = None;
        let (wide, checked) = self.wide(waiting, &mut running);
        if self.dispatch.reservations.now > 0 || !wide.is_empty() {
            let running = running.unwrap_or_else(|| self.running());
            // A task may be looked for on every worker, beside all that runs there.
            let each = self.dispatch.workers.len() + running.seen;
            let most = (RECORDS_MAX / each.max(1)).clamp(1, WIDE_MAX);
            let mut looked = self.expect_anew(&running, most);
            let mut left = most;
            for waiting in &wide {
                let is_looked_for = left > 0 && self.keep_a_worker(waiting, &running);
                left -= usize::from(is_looked_for);
            }
            looked += most - left + checked;
            let pause_us = LOOK_US.max(((looked + 1) * each) as u64 * LOOK_EACH_US);
            self.look_at_reservations_in(pause_us);
        } else if may_come {
            let seen = running.map_or(0, |running| running.seen);
            let each = self.dispatch.workers.len() + seen;
            self.look_at_reservations_in(LOOK_LATER_US.max(((checked + 1) * each) as u64 * LOOK_EACH_US));
        }
    }

    fn reserved(&self) -> Vec<u32> {
        if self.dispatch.reservations.now == 0 {
            return Vec::new();
        }
        let workers = (0u32..).zip(&self.dispatch.workers);
        workers.filter(|(_, worker)| worker.reserved.is_some()).map(|(index, _)| index).collect()
    }

    fn end_reservations(&mut self) {
        let now_us = self.last_time_us;
        let mut of_lane: BTreeMap<(u16, u32), usize> = BTreeMap::new();
        for index in self.reserved() {
            let worker = &self.dispatch.workers[index as usize];
            let Some(reservation) = &worker.reserved else { continue };
            let Asks { queue, lane, .. } = reservation.asks;
            let before = of_lane.entry((lane.partition, lane.lane)).or_default();
            let is_wanted = reservation.is_wanted(&self.partitions) && self.waits(lane, *before);
            *before += 1;
            let offers_nothing = worker.leases == 0 && worker.credit == 0;
            let is_idle = offers_nothing || worker.has_room(&reservation.need);
            let bound_us = if offers_nothing { NO_CREDIT_US } else { IDLE_US };
            let is_vain = reservation.unknown_us > 0 && now_us - reservation.unknown_us >= UNKNOWN_US;
            let idle_us = match (is_idle, reservation.idle_us) {
                (false, _) => 0,
                (true, 0) => now_us,
                (true, since_us) => since_us,
            };
            let is_over = idle_us > 0 && now_us - idle_us >= bound_us;
            if !is_wanted || is_over || is_vain || self.draining {
                self.dispatch.unreserve(index);
                let pause_us = if is_vain { UNKNOWN_US } else { LIMITED_US };
                if is_wanted && !offers_nothing {
                    self.dispatch.queues[queue as usize].unreserved_until_us = now_us + pause_us;
                }
            } else if let Some(reservation) = &mut self.dispatch.workers[index as usize].reserved {
                reservation.idle_us = idle_us;
            }
        }
    }

    /// Whether more than so many tasks of a lane have waited for long enough.
    fn waits(&self, lane: LaneRef, count: usize) -> bool {
        let Some(partition) = self.partitions[usize::from(lane.partition)].as_deref() else { return false };
        let Some(ready) = partition.lanes.get(lane.lane as usize) else { return false };
        let now_us = self.last_time_us;
        let has_waited = |&slot: &u32| now_us.saturating_sub(partition.tasks[slot].at_us) >= WAIT_US;
        let lists = ready.lists.iter();
        lists.flat_map(|of| of.list.iter(&partition.tasks).take_while(has_waited).take(count + 1)).nth(count).is_some()
    }

    /// Lanes in line, by queue and priority in the order of their turns; and whether some of them need resources.
    fn waiting_for_room(&mut self) -> (Vec<Waiting>, bool) {
        let mut all = Vec::new();
        let mut may_come = false;
        let (queues, first) =
            (self.dispatch.queues.len(), core::mem::take(&mut self.dispatch.reservations.first_queue));
        for queue in (0..queues).map(|queue| (queue + first as usize) % queues) {
            if !self.dispatch.queues[queue].waits() || self.dispatch.queues[queue].workers.is_empty() {
                continue;
            }
            let number = u32::try_from(queue).expect("queues are bounded at admission");
            let lanes = self.lanes_of(number);
            if lanes.iter().any(|waiting| !waiting.need.is_empty()) {
                may_come = true;
                all.extend(lanes);
            }
        }
        (all, may_come)
    }

    fn lanes_of(&mut self, queue: u32) -> Vec<Waiting> {
        let now_us = self.last_time_us;
        let entry = &self.dispatch.queues[queue as usize];
        let (by, gives_up, mut lanes) = (entry.order.by(), entry.order.gives_up(), Vec::new());
        let (may_age, aged_us) = (entry.order.may_age(entry.leased) > 0, entry.order.aged_us(now_us));
        for lane in (0..PRIORITIES).flat_map(|priority| &entry.rings[priority]).take(LANES_MAX) {
            let Some(partition) = self.partitions[usize::from(lane.partition)].as_deref() else { continue };
            let ready = &partition.lanes[lane.lane as usize];
            let lists = || ready.lists.iter().filter(|of| of.list.len > 0);
            let heads = lists().map(|of| partition.tasks[of.list.head].at_us);
            let Some(since_us) = heads.min().filter(|_| !partition.queues[ready.queue as usize].settings.paused) else {
                continue;
            };
            let learned = &mut self.dispatch.learned;
            let turn = match by {
                By::Turns => Turn::LAST,
                _ => lists()
                    .map(|of| turn_of(learned, partition, of, (by, gives_up), now_us))
                    .min()
                    .unwrap_or(Turn::LAST),
            };
            let asks = Asks { queue, priority: ready.priority, lane: *lane };
            let is_aged = may_age && since_us <= aged_us;
            lanes.push(Waiting {
                asks,
                need: ready.resources.clone(),
                since_us,
                turn,
                is_due: true,
                waited: false,
                is_aged,
            });
        }
        for waiting in &mut lanes {
            let workers = &self.dispatch.queues[queue as usize].workers;
            let of_lane = |&&index: &&u32| {
                let reservation = self.dispatch.workers[index as usize].reserved.as_ref();
                reservation.is_some_and(|reservation| reservation.asks.lane == waiting.asks.lane)
            };
            let reserved = match self.dispatch.queues[queue as usize].reserved {
                0 => 0,
                _ => workers.iter().filter(of_lane).count(),
            };
            waiting.waited = self.waits(waiting.asks.lane, reserved);
        }
        lanes.sort_by_key(|waiting| (waiting.asks.priority, !waiting.is_aged, waiting.turn, waiting.since_us));
        lanes
    }

    /// Those for which a worker is to be kept, the first of each queue first.
    /// And how many were looked at beside all that runs.
    fn wide(&mut self, waiting: Vec<Waiting>, running: &mut Option<Running>) -> (Vec<Waiting>, usize) {
        let mut rounds: Vec<(usize, Waiting)> = Vec::new();
        let leases: usize = self.dispatch.workers.iter().map(|worker| worker.leases as usize).sum();
        let most = (RECORDS_MAX / (self.dispatch.workers.len() + leases).max(1)).max(WIDE_MAX);
        let mut checked = 0;
        // The queue at hand, how many of it there are, and behind which priority and turn its tasks are not next.
        let (mut queue, mut round, mut last) = (u32::MAX, 0, None::<(u8, Turn)>);
        for mut waiting in waiting {
            if waiting.asks.queue != queue {
                (queue, round, last) = (waiting.asks.queue, 0, None);
            }
            let is_next = last.is_none_or(|last| {
                let is_ahead = (waiting.asks.priority, waiting.turn) <= last;
                is_ahead || (waiting.asks.priority == last.0 && waiting.is_aged)
            });
            if !is_next || self.capable(queue, &waiting.need).next().is_none() {
                continue;
            }
            if checked == most {
                // The next look begins with its queue.
                self.dispatch.reservations.first_queue = queue;
                break;
            }
            checked += 1;
            if !self.is_in_the_way(&waiting, running) {
                let own = (waiting.asks.priority, waiting.turn);
                last = Some(last.map_or(own, |last| last.min(own)));
            } else if waiting.waited && self.dispatch.queues[queue as usize].unreserved_until_us <= self.last_time_us {
                waiting.is_due = self.is_turn_of_queue(&waiting);
                if waiting.is_due || self.goes_out_of_turn(&waiting) {
                    rounds.push((round, waiting));
                    round += 1;
                }
            }
        }
        // Who waited for so long goes by age, whose turn it may be.
        let goes_by_turn = |waiting: &Waiting| !self.goes_out_of_turn(waiting);
        rounds.sort_by_key(|(round, waiting)| (*round, goes_by_turn(waiting), waiting.since_us));
        (rounds.into_iter().map(|(_, waiting)| waiting).collect(), checked)
    }

    /// Whether it is a task's queue's turn, of those that have tasks for the workers that would hold it.
    fn is_turn_of_queue(&self, waiting: &Waiting) -> bool {
        let queue = waiting.asks.queue;
        let capable = || self.capable(queue, &waiting.need).map(|(_, worker)| worker);
        let others: BTreeSet<u32> = capable().flat_map(|worker| &worker.queues).copied().collect();
        let mut before = others.into_iter().filter(|&other| self.dispatch.shares.goes_before(other, queue));
        !before.any(|other| {
            let lanes = self.dispatch.queues[other as usize].rings.iter().flatten().take(LANES_MAX);
            let mut waiting = lanes.filter_map(|lane| {
                let partition = self.partitions[usize::from(lane.partition)].as_deref()?;
                Some(&partition.lanes[lane.lane as usize]).filter(|lane| partition.may_start(lane))
            });
            let may_hold = |need| capable().any(|worker| worker.queues.contains(&other) && worker.could_hold(need));
            waiting.any(|lane| lane.sets().any(may_hold))
        })
    }

    /// Whether a task has waited for so long that it does not matter whose turn it is.
    fn goes_out_of_turn(&self, waiting: &Waiting) -> bool {
        let last_us = self.dispatch.queues[waiting.asks.queue as usize].out_of_turn_us;
        self.last_time_us.saturating_sub(last_us.max(waiting.since_us)) >= TURN_US
    }

    /// Workers of a queue that would hold a task if nothing ran there.
    fn capable<'a>(&'a self, queue: u32, need: &'a Resources) -> impl Iterator<Item = (u32, &'a Worker)> + 'a {
        let workers = self.dispatch.queues[queue as usize].workers.iter();
        let workers = workers.map(|&index| (index, &self.dispatch.workers[index as usize]));
        workers.filter(move |(_, worker)| worker.could_hold(need))
    }

    /// Those of them that may be kept for it, and when it fits there.
    fn fits<'a>(
        &'a self,
        queue: u32,
        need: &'a Resources,
        running: &'a Running,
    ) -> impl Iterator<Item = (u32, &'a Worker, Fit)> + 'a {
        let may_be_kept = |worker: &Worker| {
            worker.reserved.is_none() && worker.capacity.is_some() && (worker.credit > 0 || worker.leases > 0)
        };
        let workers = self.capable(queue, need).filter(move |(_, worker)| may_be_kept(worker));
        workers.map(move |(index, worker)| (index, worker, self.fit(index, need, running)))
    }

    /// Whether tasks that need less are what keeps one from every worker that would hold it.
    fn is_in_the_way(&self, waiting: &Waiting, running: &mut Option<Running>) -> bool {
        let need = &waiting.need;
        let capable = || self.capable(waiting.asks.queue, need);
        let is_free =
            |(index, worker): (u32, &Worker)| worker.has_room(need) && !self.dispatch.keeps_from(index, &waiting.asks);
        if need.is_empty() || capable().any(is_free) {
            return false;
        }
        if capable().all(|(_, worker)| are_alike(worker, need)) {
            return false;
        }
        let running = running.get_or_insert_with(|| self.running());
        capable().any(|(index, _)| {
            let leases = running.leases.get(index as usize).into_iter().flatten();
            let mut needs = leases.filter_map(|&lease| self.need_of(lease));
            needs.any(|other| need.fits(other, &Resources::default(), 1) == 0)
        })
    }

    /// What is expected of workers that are kept, and of so many of them at most, whether others would do better; for how many that was asked.
    fn expect_anew(&mut self, running: &Running, most: usize) -> usize {
        let (mut reserved, mut looked) = (self.reserved(), 0);
        // Others are the first of them next time.
        let turns = reserved.len().max(1);
        reserved.rotate_left(self.dispatch.reservations.looks % turns);
        self.dispatch.reservations.looks = (self.dispatch.reservations.looks + most) % turns;
        for mut index in reserved {
            let Some(reservation) = &self.dispatch.workers[index as usize].reserved else { continue };
            let mut fit = self.fit(index, &reservation.need, running);
            if reservation.moves < MOVES_MAX && looked < most && fit.at_us > self.last_time_us + 2 * LOOK_US {
                looked += 1;
                if let Some((to, better)) = self.better(reservation, fit.at_us, running) {
                    self.move_reservation(index, to);
                    (index, fit) = (to, better);
                }
            }
            let Some(reservation) = &mut self.dispatch.workers[index as usize].reserved else { continue };
            reservation.expected_us = (fit.at_us != u64::MAX).then_some(fit.at_us);
            reservation.unknown_us = match reservation.expected_us {
                Some(_) => 0,
                None if reservation.unknown_us > 0 => reservation.unknown_us,
                None => self.last_time_us,
            };
            reservation.promised_us = reservation.promised_us.or(reservation.expected_us);
            reservation.spare = fit.spare;
            // Who was held may start by what is expected now.
            if self.dispatch.workers[index as usize].credit > 0 {
                self.dispatch.mark_all(index);
            }
        }
        looked
    }

    /// A worker on which a task fits in less than half the time that it takes where one is kept for it.
    fn better(&self, reservation: &Reservation, at_us: u64, running: &Running) -> Option<(u32, Fit)> {
        let now_us = self.last_time_us;
        let half_us = now_us + at_us.saturating_sub(now_us) / 2;
        let others = self.fits(reservation.asks.queue, &reservation.need, running);
        let better = others.filter(|(.., fit)| fit.at_us < half_us).min_by_key(|(.., fit)| fit.at_us);
        better.map(|(index, _, fit)| (index, fit))
    }

    /// Another worker is kept in the place of one.
    fn move_reservation(&mut self, index: u32, to: u32) {
        if let Some(mut reservation) = self.dispatch.unreserve(index) {
            (reservation.moves, reservation.idle_us) = (reservation.moves + 1, 0);
            self.dispatch.reserve(to, *reservation);
        }
    }

    /// Keeps the worker for a task where it fits first, if one more may be kept; whether one was looked for.
    fn keep_a_worker(&mut self, waiting: &Waiting, running: &Running) -> bool {
        let (queue, need) = (waiting.asks.queue, &waiting.need);
        if !waiting.is_due && !self.goes_out_of_turn(waiting) {
            return false;
        }
        let (capable, reserved) = self.capable(queue, need).fold((0, 0), |(capable, reserved), (_, worker)| {
            (capable + 1, reserved + usize::from(worker.reserved.is_some()))
        });
        if reserved >= (capable / 2).max(1) {
            return false;
        }
        let fits = self.fits(queue, need, running);
        let Some((index, _, fit)) = fits.min_by_key(|(index, worker, fit)| (fit.at_us, worker.leases, *index)) else {
            return true;
        };
        let expected_us = (fit.at_us != u64::MAX).then_some(fit.at_us);
        let reservation = Reservation {
            asks: waiting.asks,
            need: need.clone(),
            is_aged: waiting.is_aged,
            expected_us,
            promised_us: expected_us,
            spare: fit.spare,
            unknown_us: if expected_us.is_none() { self.last_time_us } else { 0 },
            moves: 0,
            idle_us: 0,
        };
        if !waiting.is_due {
            self.dispatch.queues[queue as usize].out_of_turn_us = self.last_time_us;
        }
        self.dispatch.reservations.made += 1;
        self.dispatch.reserve(index, reservation);
        true
    }
}

/// Whether all that is leased to a worker needs just as much.
fn are_alike(worker: &Worker, need: &Resources) -> bool {
    let (mut all, mut rest) = (Resources::default(), worker.used.within(need));
    all.add(need, u64::from(worker.leases));
    rest.subtract(&all);
    rest.is_empty() && need.fits(&worker.used, &Resources::default(), worker.leases) == worker.leases
}

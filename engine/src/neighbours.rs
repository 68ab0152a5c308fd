//! Where a task goes whose kind was measured: what runs on which worker, and what a leader learned of tasks beside each other.
//!
//! Volatile and the leader's own: floats never enter replicated state, and losing them costs quality only. A queue without a measured
//! kind pays a look at a flag; a task of a kind that was not measured goes where it would go without this.
//!
//! A task goes where it and those beside it are slowed down least. Where that is still so much that they are better kept apart, it is
//! held: others of its queue go first, and it waits if another place is expected sooner than the slowdown would cost both
//! (`assign/apart.rs`). Held or passed over, it starts all the same once that cost has passed, and after [`AGED_US`] at the latest.

use std::collections::VecDeque;

use hashbrown::HashMap;
use taskmaster_scheduler::place::live::{Ended, Live, Memory};

use crate::dispatch::Dispatch;
use crate::hash::FixedState;
use crate::order::AGED_US;
use crate::reservations::Asks;
use crate::wishes::Asked;

/// For so long an assigned task is taken to run of which its worker has not said that it came, in microseconds; and so many are noted.
const SENT_US: u64 = 1_000_000;
const SENT_MAX: usize = 256;
/// A run time that is not known, in milliseconds.
const RUN_MS: f32 = 1_000.0;
/// Slowdowns are told apart in steps of one in so many, as logarithms.
const LOSS_STEPS: f32 = 32.0;
/// One task in so many is not held, by which it shows whether it would still be slowed down.
const TRIED: u64 = 32;

/// A kind of a queue's tasks that was measured.
pub(crate) type Kind = u8;

/// What runs on a worker, as far as it is known here.
#[derive(Debug, Default)]
pub(crate) struct Beside {
    /// Rows assigned to it so far, modulo 2³².
    assigned: u32,
    /// Measured tasks that it said it runs, from wherever they came.
    told: Vec<(Kind, u32)>,
    /// Those that were assigned since: number among all that were, kind, and when.
    sent: VecDeque<(u32, Kind, u64)>,
}

impl Beside {
    /// Rows were assigned to the worker.
    pub(crate) const fn assigned(&mut self, rows: u32) {
        self.assigned = self.assigned.wrapping_add(rows);
    }

    /// The last row that was assigned is of a measured kind.
    fn sent(&mut self, kind: Kind, now_us: u64) {
        if self.sent.len() == SENT_MAX {
            self.sent.pop_front();
        }
        self.sent.push_back((self.assigned, kind, now_us));
    }

    /// Kinds that run there, with how many tasks of each.
    fn kinds(&self, now_us: u64) -> impl Iterator<Item = (Kind, u32)> + '_ {
        let is_fresh = move |&&(.., at_us): &&(u32, Kind, u64)| now_us < at_us + SENT_US;
        self.told.iter().copied().chain(self.sent.iter().filter(is_fresh).map(|&(_, kind, _)| (kind, 1)))
    }
}

/// Where a task would go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) worker: u32,
    /// Where in the queue's list of workers it is.
    position: usize,
    /// With which of its resources it runs there ([`crate::wishes::Wishes::set`]).
    pub(crate) set: u8,
    /// The kind there that it is best kept apart from, if there is one.
    pub(crate) contends: Option<Kind>,
}

/// Counters since start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    /// Attempts that taught.
    pub(crate) measured: u64,
    /// Tasks that were held.
    pub(crate) held: u64,
    /// Tasks that started where they are slowed down all the same.
    pub(crate) contended: u64,
}

/// A measured kind.
#[derive(Debug, Default)]
struct Known {
    name: String,
    /// Since when the next task of it is held, in microseconds since 1970; 0: it is not.
    held_us: u64,
}

/// What a shard knows of tasks beside each other.
#[derive(Debug, Default)]
pub(crate) struct Neighbours {
    live: Live,
    known: Vec<Known>,
    by_name: HashMap<(u32, String), Kind, FixedState>,
    /// Of each class of [`crate::order`] its kind, if it was measured.
    by_class: Vec<Option<Kind>>,
    pub(crate) counters: Counters,
}

impl Neighbours {
    /// The kind of a class, if it was measured.
    pub(crate) fn kind(&self, class: u32) -> Option<Kind> {
        self.by_class.get(class as usize).copied().flatten()
    }

    /// The kind of a queue's tasks of this name, if it was measured.
    pub(crate) fn find(&self, queue: u32, name: &str) -> Option<Kind> {
        self.by_name.get(&(queue, name.to_owned())).copied()
    }

    /// The name of a kind.
    pub(crate) fn name(&self, kind: Kind) -> &str {
        &self.known[usize::from(kind)].name
    }

    /// An attempt of a class ended, of a queue's tasks of this name, beside which so many of others ran. `false` when there are as many
    /// kinds as can be known, without its own.
    pub(crate) fn learn(
        &mut self,
        class: u32,
        (queue, key): (u32, u64),
        name: &str,
        ended: &Ended,
        beside: &[(Kind, f32)],
    ) -> bool {
        let Some(kind) = self.find(queue, name).or_else(|| self.add(queue, key, name)) else { return false };
        if self.by_class.len() <= class as usize {
            self.by_class.resize(class as usize + 1, None);
        }
        self.by_class[class as usize] = Some(kind);
        let beside: Vec<(usize, f32)> = beside.iter().map(|&(other, share)| (usize::from(other), share)).collect();
        self.live.learn(usize::from(kind), ended, &beside);
        self.counters.measured += 1;
        true
    }

    /// One more kind, if there may be one; `key` is what it is saved by.
    fn add(&mut self, queue: u32, key: u64, name: &str) -> Option<Kind> {
        let number = self.live.kind(key)?;
        let kind = Kind::try_from(number).ok()?;
        self.known.resize_with(self.live.len(), Known::default);
        name.clone_into(&mut self.known[number].name);
        self.by_name.insert((queue, name.to_owned()), kind);
        Some(kind)
    }

    /// How much memory a queue's tasks of this name have at most, if they were measured.
    pub(crate) fn memory(&self, queue: u32, name: &str) -> Option<Memory> {
        self.live.memory(usize::from(self.find(queue, name)?))
    }

    /// What was learned, as bytes.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        self.live.to_bytes()
    }

    /// Takes over what was saved, before anything was learned.
    pub(crate) fn restore(&mut self, bytes: &[u8]) {
        self.live = Live::of_bytes(bytes);
    }

    /// The speed of a kind beside one task of another, as a part of its speed alone.
    pub(crate) fn speed(&self, kind: Kind, other: Kind) -> f32 {
        self.live.speed(usize::from(kind), usize::from(other))
    }

    /// How much a task and those beside it are slowed down, as a logarithm, and the kind that it is best kept apart from.
    fn weigh(&self, kind: Kind, beside: &Beside, now_us: u64) -> (f32, Option<Kind>) {
        let (mut loss, mut worst) = (0.0, None::<(f32, Kind)>);
        for (other, count) in beside.kinds(now_us) {
            let speeds = [self.speed(kind, other), self.speed(other, kind)];
            #[expect(clippy::cast_precision_loss, reason = "a few tasks")]
            let count = count as f32;
            loss -= count * (speeds[0].ln() + speeds[1].ln());
            let slowest = speeds[0].min(speeds[1]);
            let contends = self.live.contend(usize::from(kind), usize::from(other));
            if contends && worst.is_none_or(|(known, _)| slowest < known) {
                worst = Some((slowest, other));
            }
        }
        (loss, worst.map(|(_, other)| other))
    }

    /// How long a task of a kind runs, in milliseconds.
    fn run_ms(&self, kind: Kind) -> f32 {
        self.live.run_ms(usize::from(kind)).unwrap_or(RUN_MS)
    }

    /// What it costs both, in microseconds, if a task starts beside one of another kind that is half done.
    pub(crate) fn cost_us(&self, kind: Kind, other: Kind) -> u64 {
        let (own, others) = (self.speed(kind, other), self.speed(other, kind));
        let together_ms = (self.run_ms(kind) / own).min(0.5 * self.run_ms(other) / others);
        micros(together_ms * (2.0 - own - others).max(0.0)).min(AGED_US)
    }

    /// A task that costs so much where it would go is to be held; whether it is, or has been for long enough.
    pub(crate) fn hold(&mut self, kind: Kind, cost_us: u64, now_us: u64) -> bool {
        let known = &mut self.known[usize::from(kind)];
        if known.held_us == 0 {
            self.counters.held += 1;
            let is_tried = self.counters.held.is_multiple_of(TRIED);
            known.held_us = if is_tried { now_us.saturating_sub(AGED_US) } else { now_us };
        }
        now_us < known.held_us + cost_us
    }

    /// When the next task of a kind is no longer held.
    pub(crate) fn held_until_us(&self, kind: Kind, cost_us: u64) -> u64 {
        self.known[usize::from(kind)].held_us + cost_us
    }
}

fn micros(ms: f32) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a time that is not negative")]
    let us = (ms * 1_000.0) as u64;
    us
}

impl Dispatch {
    /// The measured kind of a queue's class, where such are kept apart.
    pub(crate) fn kept_apart(&self, queue: u32, class: u32) -> Option<Kind> {
        let entry = &self.queues[queue as usize];
        (entry.is_measured && !entry.mixes).then(|| self.neighbours.kind(class)).flatten()
    }

    /// The worker with credit and room where a task and those beside it are slowed down least; one where they are not better kept apart,
    /// if there is one. Between equals, whose turn it is.
    pub(crate) fn place(&self, asks: &Asks, kind: Kind, asked: Asked<'_>, now_us: u64) -> Option<Place> {
        let entry = &self.queues[asks.queue as usize];
        let count = entry.workers.len();
        let mut best: Option<((bool, u8, f32, usize), Place)> = None;
        for position in (0..count).map(|step| (entry.cursor + step) % count) {
            let index = entry.workers[position];
            let worker = &self.workers[index as usize];
            let set = asked.sets().find(|(_, need)| worker.has_room(need)).map(|(set, _)| set);
            let Some(set) = set.filter(|_| !self.keeps_from(index, asks)) else { continue };
            let (loss, contends) = self.neighbours.weigh(kind, &worker.beside, now_us);
            let missing = asked.1.labels.len() - asked.1.labels_of(worker.capacity.as_ref());
            // Less is no difference that was measured.
            let rank = (contends.is_some(), set, (loss * LOSS_STEPS).round(), missing);
            if best.is_none_or(|(known, _)| rank < known) {
                best = Some((rank, Place { worker: index, position, set, contends }));
            }
        }
        best.map(|(_, place)| place)
    }

    /// One of a queue's workers as a place for a task of a kind, with this set of its resources.
    pub(crate) fn place_on(&self, worker: u32, position: usize, (kind, set): (Kind, u8), now_us: u64) -> Place {
        let contends = self.neighbours.weigh(kind, &self.workers[worker as usize].beside, now_us).1;
        Place { worker, position, set, contends }
    }

    /// A task of a measured kind begins at a place, as the last row assigned there.
    pub(crate) fn begins_at(&mut self, queue: u32, kind: Kind, place: Place, now_us: u64) {
        let entry = &mut self.queues[queue as usize];
        entry.cursor = (place.position + 1) % entry.workers.len().max(1);
        self.workers[place.worker as usize].beside.sent(kind, now_us);
        self.neighbours.known[usize::from(kind)].held_us = 0;
        self.neighbours.counters.contended += u64::from(place.contends.is_some());
    }

    /// How soon a place is expected where a task of a kind would not be slowed down, in microseconds, by half the run time of what runs
    /// there; `None` if there is none to come.
    pub(crate) fn place_expected_us(&self, queue: u32, kind: Kind, asked: Asked<'_>, now_us: u64) -> Option<u64> {
        let left_ms = |other: Kind| 0.5 * self.neighbours.run_ms(other);
        let wait_ms = |index: &u32| {
            let worker = &self.workers[*index as usize];
            if !worker.connected || !asked.sets().any(|(_, need)| worker.could_hold(need)) {
                return None;
            }
            let contends = |other: Kind| self.neighbours.live.contend(usize::from(kind), usize::from(other));
            let bad =
                worker.beside.kinds(now_us).filter(|&(other, _)| contends(other)).map(|(other, _)| left_ms(other));
            #[expect(clippy::cast_precision_loss, reason = "a few tasks")]
            let good = worker.beside.kinds(now_us).map(|(other, count)| left_ms(other) / count as f32);
            bad.reduce(f32::max).or_else(|| good.reduce(f32::min))
        };
        let soonest = self.queues[queue as usize].workers.iter().filter_map(wait_ms).reduce(f32::min);
        soonest.map(micros)
    }

    /// Why a task of a class does not start where there is room, if it is for what runs there.
    pub(crate) fn held_in_words(&self, asks: &Asks, class: u32, asked: Asked<'_>, now_us: u64) -> Option<String> {
        let kind = self.kept_apart(asks.queue, class)?;
        let place = self.place(asks, kind, asked, now_us)?;
        let other = place.contends?;
        let (worker, name) = (&self.workers[place.worker as usize].name, self.neighbours.name(other));
        let [own, others] = [self.neighbours.speed(kind, other), self.neighbours.speed(other, kind)];
        let until_us = self.neighbours.held_until_us(kind, self.neighbours.cost_us(kind, other));
        let left_ms = until_us.saturating_sub(now_us) / 1_000;
        Some(format!(
            "worker \"{worker}\" has room and runs \"{name}\", beside which it would run at {own:.2} of its speed alone, and that at {others:.2}; it starts there in {left_ms} ms unless there is a better place before"
        ))
    }

    /// A worker said what it runs, when so many rows had come to it: tasks that are held may find a place there.
    pub(crate) fn told(&mut self, index: u32, seen: u32, running: Vec<(Kind, u32)>) {
        let worker = &mut self.workers[index as usize];
        worker.beside.told = running;
        // Numbers wrap around; what was sent is never more than half of them behind.
        worker.beside.sent.retain(|&(number, ..)| number.wrapping_sub(seen).cast_signed() > 0);
        for position in 0..self.workers[index as usize].queues.len() {
            let queue = self.workers[index as usize].queues[position];
            let entry = &self.queues[queue as usize];
            if entry.is_measured && entry.waits() {
                self.mark(queue);
            }
        }
    }

    /// The measured kind that a worker means by the names of a queue and a kind.
    pub(crate) fn kind_named(&self, index: u32, queue: &str, name: &str) -> Option<Kind> {
        let mut queues = self.workers[index as usize].queues.iter();
        let queue = queues.find(|&&number| self.queues[number as usize].name == queue)?;
        self.neighbours.find(*queue, name)
    }
}

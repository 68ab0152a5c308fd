//! Workers that are kept for tasks that need more of them than is free at one time.
//!
//! A task that needs much of a worker, beside a stream of tasks that need little, would wait for ever: each place that is freed is too
//! small for it and is filled at once. So once it has waited for [`WAIT_US`], it is its turn, and it is smaller tasks that are in its way,
//! one worker is kept for it (`shard/reservations.rs`): others start there only if they do not delay it ([`crate::assign`]).
//!
//! Volatile and the leader's own. Where no worker is kept, a task pays a look at a field of the worker that it goes to.

use crate::dispatch::{Dispatch, LaneRef};
use crate::partition::Partition;
use crate::resources::Resources;

/// A task that has waited for less may yet find room by itself, in microseconds.
pub(crate) const WAIT_US: u64 = 1_000_000;
/// For so long no worker is kept for tasks of a queue, after a more urgent one of it took a place that was kept, in microseconds.
const URGENT_US: u64 = 2_000_000;

/// Who looks for a place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asks {
    pub(crate) queue: u32,
    pub(crate) priority: u8,
    pub(crate) lane: LaneRef,
}

/// A worker is kept for the next task of a lane.
#[derive(Debug)]
pub(crate) struct Reservation {
    pub(crate) asks: Asks,
    pub(crate) need: Resources,
    /// It was made for a task that waited for too long ([`crate::order::AGED_US`]), which goes first.
    pub(crate) is_aged: bool,
    /// When the task will fit in nine of ten cases, if that is known.
    pub(crate) expected_us: Option<u64>,
    /// The first such time: nothing begins in between that ends later, so mispredictions do not add up.
    pub(crate) promised_us: Option<u64>,
    /// Of what the task needs, what is left beside it then.
    pub(crate) spare: Resources,
    /// Since when it is not known when the task will fit, in microseconds; 0: it is known.
    pub(crate) unknown_us: u64,
    /// How often another worker took this one's part.
    pub(crate) moves: u8,
    /// Since when the task would fit and does not start, or the worker offers nothing; 0: neither.
    pub(crate) idle_us: u64,
}

impl Reservation {
    /// A task that ends by then does not delay the one that the worker is kept for.
    pub(crate) fn until_us(&self) -> Option<u64> {
        self.expected_us.zip(self.promised_us).map(|(expected_us, promised_us)| expected_us.min(promised_us))
    }

    /// Whether there is a task for it.
    pub(crate) fn is_wanted(&self, partitions: &[Option<Box<Partition>>]) -> bool {
        let Asks { queue, priority, lane } = self.asks;
        let Some(partition) = partitions[usize::from(lane.partition)].as_deref() else { return false };
        let Some(ready) = partition.lanes.get(lane.lane as usize) else { return false };
        // The number of the lane may be another's by now.
        let is_same = ready.priority == priority && ready.resources == self.need;
        is_same
            && partition.is_leading()
            && partition.queues[ready.queue as usize].dispatch == queue
            && partition.may_start(ready)
    }

    fn admits(&self, asks: &Asks) -> bool {
        self.asks.lane == asks.lane || self.is_less_urgent(asks)
    }

    /// Whether a more urgent task of the same queue asks.
    pub(crate) const fn is_less_urgent(&self, asks: &Asks) -> bool {
        self.asks.queue == asks.queue && asks.priority < self.asks.priority
    }
}

/// What a shard knows of its reservations.
#[derive(Debug, Default)]
pub(crate) struct Reservations {
    /// Workers that are kept now.
    pub(crate) now: u64,
    /// Reservations made since start.
    pub(crate) made: u64,
    /// Tasks that need resources, or a worker, came since the last look.
    pub(crate) is_asked_for: bool,
    /// With which of the workers that are kept the next look begins.
    pub(crate) looks: usize,
    /// The queue whose tasks are looked at first by the next look.
    pub(crate) first_queue: u32,
    /// A timer is set for a look.
    pub(crate) is_armed: bool,
}

impl Dispatch {
    /// Keeps a worker.
    pub(crate) fn reserve(&mut self, index: u32, reservation: Reservation) {
        self.queues[reservation.asks.queue as usize].reserved += 1;
        self.reservations.now += 1;
        self.workers[index as usize].reserved = Some(Box::new(reservation));
    }

    /// Keeps a worker no longer: others may start there.
    pub(crate) fn unreserve(&mut self, index: u32) -> Option<Box<Reservation>> {
        let reservation = self.workers[index as usize].reserved.take()?;
        self.queues[reservation.asks.queue as usize].reserved -= 1;
        self.reservations.now -= 1;
        self.mark_all(index);
        Some(reservation)
    }

    /// Something changed that may let tasks start on a worker.
    pub(crate) fn mark_all(&mut self, index: u32) {
        for position in 0..self.workers[index as usize].queues.len() {
            self.mark(self.workers[index as usize].queues[position]);
        }
    }

    /// Whether a worker is kept for others than who asks, unless what starts there would not delay them.
    pub(crate) fn keeps_from(&self, index: u32, asks: &Asks) -> bool {
        self.workers[index as usize].reserved.as_ref().is_some_and(|reservation| !reservation.admits(asks))
    }

    /// Tasks that need so much begin on a worker that is kept: for them, or for others beside whom they take what is spare.
    pub(crate) fn begins_on_reserved(
        &mut self,
        index: u32,
        asks: &Asks,
        (need, taken): (&Resources, u32),
        spare: bool,
        now_us: u64,
    ) {
        let Some(reservation) = &mut self.workers[index as usize].reserved else { return };
        if reservation.admits(asks) {
            if reservation.is_less_urgent(asks) {
                self.queues[asks.queue as usize].unreserved_until_us = now_us + URGENT_US;
            }
            self.unreserve(index);
        } else if spare {
            let mut all = Resources::default();
            all.add(need, u64::from(taken));
            reservation.spare.subtract(&all);
        }
    }

    /// What a worker is kept for that has room for a task, if none has that is not kept.
    pub(crate) fn kept_from_in_words(&self, asks: &Asks, need: &Resources, now_us: u64) -> Option<String> {
        let has_room = |index: &&u32| self.workers[**index as usize].has_room(need);
        let mut with_room = self.queues[asks.queue as usize].workers.iter().filter(has_room).peekable();
        let first = **with_room.peek()?;
        if !with_room.all(|&index| self.keeps_from(index, asks)) {
            return None;
        }
        let worker = &self.workers[first as usize];
        let reservation = worker.reserved.as_ref()?;
        let queue = &self.queues[reservation.asks.queue as usize].name;
        Some(format!(
            "worker \"{}\" has room and is kept for a task of queue \"{queue}\" that asks for {}, {}; what is predicted to end before, or \
             takes nothing of that, starts there all the same",
            worker.name,
            reservation.need,
            reservation.expected_in_words(now_us)
        ))
    }

    /// Which worker is kept for the next task of a lane.
    pub(crate) fn kept_for_in_words(&self, asks: &Asks, is_first: bool, now_us: u64) -> Option<String> {
        let entry = &self.queues[asks.queue as usize];
        if entry.reserved == 0 {
            return None;
        }
        let mut kept = entry.workers.iter().filter_map(|&index| {
            let worker = &self.workers[index as usize];
            let reservation = worker.reserved.as_ref().filter(|reservation| reservation.asks.lane == asks.lane)?;
            Some((worker, reservation))
        });
        let (worker, reservation) = kept.next()?;
        let whom = if is_first { "it" } else { "a task before it that asks for as much" };
        let expected = reservation.expected_in_words(now_us);
        Some(format!("worker \"{}\" is kept for {whom}, {expected}", worker.name))
    }
}

impl Reservation {
    fn expected_in_words(&self, now_us: u64) -> String {
        match self.expected_us {
            Some(expected_us) => format!("expected in {} ms", expected_us.saturating_sub(now_us) / 1_000),
            None => "expected when enough of what runs there has ended, for which there is no prediction".to_owned(),
        }
    }
}

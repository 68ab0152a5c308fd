//! Starts on workers that are kept for a task ([`crate::reservations`]): its own, and those of others that do not delay it.

use super::{Assigner, Chosen, share_of, turn_of};
use crate::dispatch::LaneRef;
use crate::neighbours::Kind;
use crate::order::By;
use crate::order::deadline::Turn;
use crate::partition::Pick;
use crate::reservations::Asks;
use crate::resources::Resources;

impl Assigner<'_> {
    /// Lets a task of a queue start on the worker that is kept for it, if it fits there by now.
    pub(super) fn assign_reserved(&mut self, queue: u32, priority: usize, permits: u32, by: By) -> bool {
        for position in 0..self.dispatch.queues[queue as usize].workers.len() {
            let index = self.dispatch.queues[queue as usize].workers[position];
            let worker = &self.dispatch.workers[index as usize];
            let Some(reservation) = worker.reserved.as_deref() else { continue };
            let entry = &self.dispatch.queues[queue as usize];
            let (asks, is_aged) = (reservation.asks, reservation.is_aged && entry.order.may_age(entry.leased) > 0);
            let is_own = asks.queue == queue && usize::from(asks.priority) == priority;
            if !is_own || !worker.has_room(&reservation.need) {
                continue;
            }
            if !reservation.is_wanted(self.partitions) {
                self.dispatch.unreserve(index);
                continue;
            }
            let pick = self.pick_for(queue, asks.lane, by, is_aged);
            let chosen = Chosen { worker: index, set: 0, count: 1, place: None, spare: false };
            self.scratch.by_age = is_aged && by != By::Turns;
            let began = self.start(queue, asks.lane, pick, &chosen, permits);
            self.scratch.by_age = false;
            if began {
                let ring = &self.dispatch.queues[queue as usize].rings[priority];
                if let Some(at) = ring.iter().position(|lane| *lane == asks.lane) {
                    self.send_back(queue, priority, at);
                }
                return true;
            }
        }
        false
    }

    /// Which task of a lane a worker is kept for: whose turn it is, or the one that has waited for too long.
    fn pick_for(&mut self, queue: u32, lane: LaneRef, by: By, is_aged: bool) -> Pick {
        let partition = self.partitions[usize::from(lane.partition)].as_deref().expect("checked by the caller");
        let lists = (0u32..).zip(&partition.lanes[lane.lane as usize].lists).filter(|(_, of)| of.list.len > 0);
        if is_aged && by != By::Turns {
            let oldest = lists.min_by_key(|(_, of)| partition.tasks[of.list.head].at_us);
            let order = &self.dispatch.queues[queue as usize].order;
            let until_us = if by == By::Deadline { order.aged_us(self.now_us) } else { u64::MAX };
            let (list, of) = oldest.expect("it has tasks");
            if partition.tasks[of.list.head].at_us <= until_us {
                return Pick::List { list, until_us };
            }
            return Pick::Oldest;
        }
        if by == By::Turns {
            return Pick::Oldest;
        }
        let gives_up = self.dispatch.queues[queue as usize].order.gives_up();
        let learned = &mut self.dispatch.learned;
        let turns = lists.map(|(list, of)| (turn_of(learned, partition, of, (by, gives_up), self.now_us), list));
        let (_, list) = turns.min().expect("it has tasks");
        match by {
            By::Deadline => Pick::Deadline { list, ends: self.ends(lane, list), until: Turn::LAST },
            By::Rank | By::Turns => Pick::List { list, until_us: u64::MAX },
        }
    }

    /// A worker that is kept for somebody and has room for a task that finds no other one: where it itself is meant or what it takes does
    /// not delay whom the worker is kept for. One of a measured kind starts beside none from which it is better kept apart.
    pub(super) fn choose_reserved(
        &mut self,
        queue: u32,
        lane: LaneRef,
        pick: Pick,
        waiting: u32,
        kind: Option<Kind>,
    ) -> Option<Chosen> {
        let partition = self.partitions[usize::from(lane.partition)].as_deref()?;
        let ready = &partition.lanes[lane.lane as usize];
        let (needs, asks) = (ready.sets().cloned().collect::<Vec<_>>(), Asks { queue, priority: ready.priority, lane });
        let mut ends_us = None;
        for position in 0..self.dispatch.queues[queue as usize].workers.len() {
            let index = self.dispatch.queues[queue as usize].workers[position];
            let worker = &self.dispatch.workers[index as usize];
            let Some(reservation) = worker.reserved.as_deref() else { continue };
            let take = share_of(worker.credit, waiting, self.dispatch.queues[queue as usize].with_credit);
            let fits = |need: &Resources| need.fits_on(worker.capacity.as_ref(), &worker.used, take);
            let set = (0u8..).zip(&needs).find(|(_, need)| fits(need) > 0).filter(|_| worker.credit > 0);
            let Some((set, need)) = set else { continue };
            let place = kind.map(|kind| (kind, self.dispatch.place_on(index, position, (kind, set), self.now_us)));
            if place.is_some_and(|(_, place)| place.contends.is_some()) {
                continue;
            }
            // Of a measured kind one at a time: the next has this one for a neighbour.
            let most = |count: u32| if place.is_some() { count.min(1) } else { count };
            let fits = most(fits(need));
            let count = |count| Some(Chosen { worker: index, set, count, place, spare: false });
            if !reservation.is_wanted(self.partitions) {
                self.dispatch.unreserve(index);
                return count(fits);
            }
            if reservation.asks.lane == lane {
                return count(1);
            }
            if reservation.is_less_urgent(&asks) {
                return count(fits);
            }
            let ends_us = *ends_us.get_or_insert_with(|| self.ends_us(lane, pick));
            if ends_us.zip(reservation.until_us()).is_some_and(|(ends_us, until_us)| ends_us <= until_us) {
                return count(fits);
            }
            // What may run on leaves a place for whom the worker is kept for.
            let fits = fits.min(worker.credit - 1);
            let fits = need.within(&reservation.need).fits(&reservation.spare, &Resources::default(), fits);
            if fits > 0 {
                return Some(Chosen { worker: index, set, count: fits, place, spare: true });
            }
        }
        None
    }

    /// When the next tasks of a lane end in nine of ten cases if they start now; `None` if that is not known of one.
    fn ends_us(&self, lane: LaneRef, pick: Pick) -> Option<u64> {
        let partition = self.partitions[usize::from(lane.partition)].as_deref()?;
        let lists = &partition.lanes[lane.lane as usize].lists;
        let most_us = match pick {
            Pick::Oldest => {
                let waiting = lists.iter().filter(|of| of.list.len > 0);
                waiting
                    .map(|of| self.dispatch.learned.most_us(of.class))
                    .try_fold(0, |most_us, us| Some(us?.max(most_us)))
            }
            Pick::List { list, .. } | Pick::Deadline { list, .. } => {
                self.dispatch.learned.most_us(lists[list as usize].class)
            }
        };
        most_us.map(|most_us| self.now_us.saturating_add(most_us))
    }
}

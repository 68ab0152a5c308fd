//! Tasks of measured kinds: placed where they are slowed down least, and held where they are better kept apart from what runs there.

use super::{Assigner, Found, choose};
use crate::dispatch::LaneRef;
use crate::neighbours::{Kind, Place};
use crate::partition::Pick;
use crate::reservations::Asks;
use crate::timer::{Timer, TimerKind};
use taskmaster_protocol::PartitionId;

/// A task that is held.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    lane: LaneRef,
    pick: Pick,
    kind: Kind,
    /// Where it would go, and what that costs both in microseconds.
    place: Place,
    cost_us: u64,
    /// Tasks like it that wait.
    waiting: u32,
}

/// Where tasks go.
pub(super) struct Chosen {
    pub(super) worker: u32,
    /// With which of their resources ([`crate::wishes::Wishes::set`]).
    pub(super) set: u8,
    /// How many, at most.
    pub(super) count: u32,
    /// Of a measured kind, by its neighbours.
    pub(super) place: Option<(Kind, Place)>,
    /// They take what is spare of a worker that is kept for others.
    pub(super) spare: bool,
}

impl Assigner<'_> {
    /// Lets the oldest task of a lane start, or of a queue of measured kinds the oldest that need not be held.
    pub(super) fn assign_oldest(&mut self, queue: u32, lane: LaneRef, permits: u32) -> bool {
        let entry = &self.dispatch.queues[queue as usize];
        if !entry.is_measured || entry.mixes {
            return self.assign_lane(queue, lane, Pick::Oldest, permits);
        }
        let partition = self.partitions[usize::from(lane.partition)].as_deref().expect("checked by the caller");
        let lists = (0u32..).zip(&partition.lanes[lane.lane as usize].lists).filter(|(_, of)| of.list.len > 0);
        let mut lists: Vec<(u64, u32)> = lists.map(|(list, of)| (partition.tasks[of.list.head].token, list)).collect();
        lists.sort_unstable();
        lists
            .into_iter()
            .any(|(_, list)| self.assign_lane(queue, lane, Pick::List { list, until_us: u64::MAX }, permits))
    }

    /// The worker for tasks of a lane's class, of which so many wait; none if there is none, or the task is held.
    pub(super) fn choose(
        &mut self,
        queue: u32,
        lane: LaneRef,
        pick: Pick,
        class: Option<u32>,
        waiting: u32,
    ) -> Option<Chosen> {
        let partition = self.partitions[usize::from(lane.partition)].as_deref()?;
        let ready = &partition.lanes[lane.lane as usize];
        let asks = Asks { queue, priority: ready.priority, lane };
        let kind = class.and_then(|class| self.dispatch.kept_apart(queue, class));
        let Some(kind) = kind else {
            let mut is_kept = false;
            for (set, need) in ready.asked().sets() {
                match choose(self.dispatch, queue, waiting, need, &ready.wishes) {
                    Found::Worker(worker, count) => {
                        return Some(Chosen { worker, set, count, place: None, spare: false });
                    }
                    Found::Reserved => is_kept = true,
                    Found::None => {}
                }
            }
            return if is_kept { self.choose_reserved(queue, lane, pick, waiting, None) } else { None };
        };
        // The same holds for its like in other lanes.
        if let Some(held) = self.scratch.held.iter_mut().find(|held| held.kind == kind) {
            held.waiting = held.waiting.saturating_add(waiting);
            return None;
        }
        let Some(place) = self.dispatch.place(&asks, kind, ready.asked(), self.now_us) else {
            let is_kept = self.dispatch.reservations.now > 0;
            return if is_kept { self.choose_reserved(queue, lane, pick, waiting, Some(kind)) } else { None };
        };
        if let Some(other) = place.contends {
            let cost_us = self.dispatch.neighbours.cost_us(kind, other);
            if self.dispatch.neighbours.hold(kind, cost_us, self.now_us) {
                self.scratch.held.push(Held { lane, pick, kind, place, cost_us, waiting });
                return None;
            }
        }
        Some(Chosen { worker: place.worker, set: place.set, count: 1, place: Some((kind, place)), spare: false })
    }

    /// Nothing else of the queue can start: lets the first held task start for which no better place is expected sooner than what it
    /// costs; the others wait.
    pub(super) fn assign_held(&mut self, queue: u32, permits: u32) -> bool {
        let held = core::mem::take(&mut self.scratch.held);
        let starts = held.iter().position(|held| !self.pays_to_wait(queue, held));
        let started = starts.map(|first| held[first]).is_some_and(|held| {
            let place = Some((held.kind, held.place));
            let chosen = Chosen { worker: held.place.worker, set: held.place.set, count: 1, place, spare: false };
            self.start(queue, held.lane, held.pick, &chosen, permits)
        });
        let until = |held: &Held| self.dispatch.neighbours.held_until_us(held.kind, held.cost_us);
        if !started && let Some(until_us) = held.iter().map(until).min() {
            self.look_again(queue, until_us);
        }
        self.scratch.held = held;
        self.scratch.held.clear();
        started
    }

    fn pays_to_wait(&self, queue: u32, held: &Held) -> bool {
        let Some(other) = held.place.contends else { return false };
        let neighbours = &self.dispatch.neighbours;
        // While others like it wait, two at once do more than one after the other if they lose less than a half.
        if held.waiting > 1 && neighbours.speed(held.kind, other) + neighbours.speed(other, held.kind) >= 1.0 {
            return false;
        }
        let Some(partition) = self.partitions[usize::from(held.lane.partition)].as_deref() else { return true };
        let asked = partition.lanes[held.lane.lane as usize].asked();
        let expected_us = self.dispatch.place_expected_us(queue, held.kind, asked, self.now_us);
        expected_us.is_some_and(|expected_us| expected_us < held.cost_us)
    }

    /// Looks at a queue again at this time at the latest.
    fn look_again(&mut self, queue: u32, at_us: u64) {
        let entry = &mut self.dispatch.queues[queue as usize];
        if entry.held_until_us == 0 || at_us < entry.held_until_us {
            entry.held_until_us = at_us;
            let timer = Timer::of_index(PartitionId(0), TimerKind::Held, queue);
            self.timers.insert(at_us.max(self.now_us + 1), timer);
        }
    }
}

//! Lanes: the ready tasks of a queue, by priority, resource need and class, in order of readiness; in queues of the policy `deadline`
//! by deadline as well. Volatile, and the same at followers, but that only a leader's lanes come into the dispatcher's line.

use std::collections::BTreeSet;

use super::Partition;
use crate::contract::Contract;
use crate::dispatch::{Dispatch, LaneRef};
use crate::extra::Extras;

use crate::order::deadline::{self, Ends, Turn};
use crate::queue::Policy;
use crate::resources::Resources;
use crate::state::State;
use crate::task::{List, Slot, Tasks};
use crate::wishes::{Asked, Wishes};
use crate::workflow::ByPaths;

/// Most lists of a lane: each start looks at all of them. Further classes share them, and are predicted alike.
const LANE_CLASSES_MAX: usize = 256;
/// Tasks of a list that are looked at for the place of one that changed turns.
const NEAR: u32 = 1_024;
/// What a task takes in the order of deadlines, in bytes: an entry, and its part of the tree's nodes.
const DEADLINE_BYTES: usize = 40;

/// What tasks of one lane have in common: queue, priority, resources, and what else they say of their place.
pub(super) type Needs = (u32, u8, Resources, Wishes);

/// Ready tasks of one queue, priority and resource need.
#[derive(Debug, Default)]
pub(crate) struct Lane {
    pub(crate) queue: u32,
    pub(crate) priority: u8,
    pub(crate) resources: Resources,
    pub(crate) wishes: Wishes,
    /// By class of [`crate::order`], each in order of readiness.
    pub(crate) lists: Vec<ClassList>,
    /// Tasks on all of them.
    pub(crate) len: u32,
    /// The dispatcher has it in line.
    pub(crate) ringed: bool,
    contracts: u32,
}

/// Ready tasks of a lane that are predicted alike.
#[derive(Debug)]
pub(crate) struct ClassList {
    pub(crate) class: u32,
    pub(crate) list: List,
    /// That refer to it, and tasks on it whose contracts do not.
    contracts: u32,
    /// The same tasks by deadline, if that is the queue's policy.
    deadlines: Option<BTreeSet<deadline::Key>>,
}

/// Which tasks of a lane are next.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pick {
    /// Those that are ready longest.
    Oldest,
    /// Those of one list that are ready longest, up to this time in microseconds.
    List { list: u32, until_us: u64 },
    /// Those of one list whose turn by deadline comes no later than this.
    Deadline { list: u32, ends: Ends, until: Turn },
}

impl ClassList {
    /// Whose turn it is by deadline. A partition that has not taken the policy over, while another of the shard has, knows only who has
    /// been ready longest.
    pub(crate) fn next_by_deadline(&self, ends: Ends, tasks: &Tasks) -> Option<(Turn, Slot)> {
        match &self.deadlines {
            Some(deadlines) => deadline::next(deadlines, ends, tasks),
            None => self.list.first().map(|slot| (Turn::of(None, tasks[slot].at_us, ends), slot)),
        }
    }
}

impl Lane {
    /// The resources with which its tasks may run, in the order in which they are tried.
    pub(crate) fn sets(&self) -> impl Iterator<Item = &Resources> {
        self.wishes.sets(&self.resources)
    }

    /// What its tasks ask for.
    pub(crate) fn asked(&self) -> Asked<'_> {
        Asked(&self.resources, &self.wishes)
    }

    /// Appends a task.
    fn push(&mut self, list: u32, slot: Slot, tasks: &mut Tasks, extras: &Extras) {
        let of = &mut self.lists[list as usize];
        of.list.push_back(tasks, slot);
        self.len += 1;
        if let Some(deadlines) = &mut of.deadlines {
            deadlines.insert(deadline::key(slot, tasks, extras));
        }
    }

    /// Puts a task before all others, with a number in the order of readiness to match.
    fn push_first(&mut self, list: u32, slot: Slot, tasks: &mut Tasks, extras: &Extras) {
        let heads = self.lists.iter().filter_map(|of| of.list.first());
        if let Some(first) = heads.map(|head| tasks[head].token).min() {
            tasks[slot].token = first.saturating_sub(1);
        }
        let of = &mut self.lists[list as usize];
        of.list.push_front(tasks, slot);
        self.len += 1;
        if let Some(deadlines) = &mut of.deadlines {
            deadlines.insert(deadline::key(slot, tasks, extras));
        }
    }

    /// Puts a task in the order of readiness, by the number that it has there.
    fn insert(&mut self, list: u32, slot: Slot, tasks: &mut Tasks, extras: &Extras) {
        let of = &mut self.lists[list as usize];
        of.list.insert_by_number(tasks, slot);
        self.len += 1;
        if let Some(deadlines) = &mut of.deadlines {
            deadlines.insert(deadline::key(slot, tasks, extras));
        }
    }

    /// Takes a task off its list.
    pub(crate) fn take(&mut self, list: u32, slot: Slot, tasks: &mut Tasks, extras: &Extras) {
        let of = &mut self.lists[list as usize];
        of.list.unlink(tasks, slot);
        self.len -= 1;
        if let Some(deadlines) = &mut of.deadlines {
            let was_there = deadlines.remove(&deadline::key(slot, tasks, extras));
            debug_assert!(was_there, "deadlines do not change while tasks are ready");
        }
    }

    /// The next task.
    fn next(&self, pick: Pick, tasks: &Tasks) -> Option<Slot> {
        match pick {
            Pick::Oldest => self.lists[self.oldest(tasks)? as usize].list.first(),
            Pick::List { list, until_us } => {
                self.lists[list as usize].list.first().filter(|&slot| tasks[slot].at_us <= until_us)
            }
            Pick::Deadline { list, ends, until } => {
                let (turn, slot) = self.lists[list as usize].next_by_deadline(ends, tasks)?;
                Some(slot).filter(|_| turn <= until)
            }
        }
    }

    /// The list whose first task has been ready longest.
    fn oldest(&self, tasks: &Tasks) -> Option<u32> {
        let mut waiting = (0u32..).zip(&self.lists).filter(|(_, of)| of.list.len > 0);
        let (first, second) = (waiting.next()?, waiting.next());
        // One class is the rule, and its first task's cache line is not needed to know that.
        let Some(second) = second else { return Some(first.0) };
        let all = [first, second].into_iter().chain(waiting);
        all.min_by_key(|(_, of)| tasks[of.list.head].token).map(|(number, _)| number)
    }
}

impl Partition {
    /// The lane of a queue, priority and resource need, made on first use; a contract refers to it from here on.
    pub(super) fn lane(&mut self, queue: u32, priority: u8, resources: &Resources, wishes: &Wishes) -> u32 {
        let needs = (queue, priority, resources.clone(), wishes.clone());
        let index = match self.lane_by_needs.get(&needs) {
            Some(&index) => index,
            None => {
                let (resources, wishes) = (resources.clone(), wishes.clone());
                let lane = Lane { queue, priority, resources, wishes, ..Lane::default() };
                let index = if let Some(free) = self.free_lanes.pop() {
                    self.lanes[free as usize] = lane;
                    free
                } else {
                    self.lanes.push(lane);
                    u32::try_from(self.lanes.len() - 1).expect("lanes are no more than contracts")
                };
                self.lane_by_needs.insert(needs, index);
                index
            }
        };
        self.lanes[index as usize].contracts += 1;
        index
    }

    /// The list of a class in a lane, made on first use; a contract refers to it from here on.
    pub(super) fn class_list(&mut self, lane: u32, class: u32) -> u32 {
        let queue = self.lanes[lane as usize].queue;
        let by_deadline = self.queues[queue as usize].settings.policy == Policy::Deadline;
        let lists = &mut self.lanes[lane as usize].lists;
        let known = lists.iter().position(|of| of.contracts > 0 && of.class == class);
        let position = known.or_else(|| lists.iter().position(|of| of.contracts == 0)).unwrap_or_else(|| {
            if lists.len() == LANE_CLASSES_MAX {
                return class as usize % LANE_CLASSES_MAX;
            }
            let deadlines = by_deadline.then(BTreeSet::new);
            lists.push(ClassList { class, list: List::default(), contracts: 0, deadlines });
            lists.len() - 1
        });
        let of = &mut lists[position];
        if of.contracts == 0 {
            of.class = class;
        }
        of.contracts += 1;
        u32::try_from(position).expect("lists are no more than contracts")
    }

    /// Takes over a queue's policy: its ready tasks are kept by deadline, or no longer.
    pub(crate) fn order_lanes(&mut self, queue: u32) {
        let by_deadline = self.queues[queue as usize].settings.policy == Policy::Deadline;
        for of in self.lanes.iter_mut().filter(|lane| lane.queue == queue).flat_map(|lane| &mut lane.lists) {
            if of.deadlines.is_some() == by_deadline {
                continue;
            }
            of.deadlines = by_deadline.then(|| {
                let keys = of.list.iter(&self.tasks).map(|slot| deadline::key(slot, &self.tasks, &self.extras));
                keys.collect()
            });
        }
    }

    /// Memory of the order of deadlines, in bytes.
    pub(super) fn deadline_bytes(&self) -> usize {
        let queues = self.queues.iter().filter(|queue| queue.settings.policy == Policy::Deadline);
        let ready: u64 = queues.map(|queue| queue.counts[State::Ready as usize]).sum();
        usize::try_from(ready).unwrap_or(usize::MAX).saturating_mul(DEADLINE_BYTES)
    }

    /// Puts a ready task into its lane.
    pub(super) fn push_lane(&mut self, slot: Slot, dispatch: &mut Dispatch) {
        self.last_ready += 1;
        self.tasks[slot].token = self.last_ready;
        let contract = &self.contracts[self.tasks[slot].contract];
        let index = contract.lane;
        let lane = &mut self.lanes[index as usize];
        lane.push(contract.list, slot, &mut self.tasks, &self.extras);
        self.note_ready(slot);
        self.ring_lane(index, dispatch);
    }

    /// Puts a ready task into its lane before all others.
    pub(super) fn push_lane_first(&mut self, slot: Slot, dispatch: &mut Dispatch) {
        self.tasks[slot].token = self.last_ready;
        let contract = &self.contracts[self.tasks[slot].contract];
        let index = contract.lane;
        self.lanes[index as usize].push_first(contract.list, slot, &mut self.tasks, &self.extras);
        self.note_ready(slot);
        self.ring_lane(index, dispatch);
    }

    /// Puts a ready task into its lane, among those of another class than its contract's, with the number that it had when it became ready
    /// first. The list, which is the class's until [`Self::leave_aside`].
    pub(super) fn push_lane_aside(&mut self, slot: Slot, class: u32, number: u64, dispatch: &mut Dispatch) -> u32 {
        self.tasks[slot].token = number;
        let index = self.contracts[self.tasks[slot].contract].lane;
        let list = self.class_list(index, class);
        self.lanes[index as usize].insert(list, slot, &mut self.tasks, &self.extras);
        self.ring_lane(index, dispatch);
        list
    }

    /// Takes the next task of a lane off its list, or that of its workflow which takes its turn; with its class.
    pub(crate) fn take_next(&mut self, lane: u32, pick: Pick, paths: Option<ByPaths<'_>>) -> Option<(Slot, u32)> {
        let next = self.lanes[lane as usize].next(pick, &self.tasks)?;
        let slot = paths.map_or(next, |paths| self.whose_turn(next, paths));
        let list = self.list(slot);
        let ready = &mut self.lanes[lane as usize];
        ready.take(list, slot, &mut self.tasks, &self.extras);
        Some((slot, ready.lists[list as usize].class))
    }

    /// The first task of a list gets the turn of another one of its lane: whether its new place was found.
    pub(crate) fn change_turns(&mut self, lane: u32, first: Slot, other: Slot) -> bool {
        let [from, to] = [first, other].map(|slot| self.list(slot) as usize);
        let lists = &mut self.lanes[lane as usize].lists;
        if lists[from].deadlines.is_some() || lists[from].list.head != first {
            return false;
        }
        if from == to {
            lists[from].list.change_with_first(&mut self.tasks, other);
            return true;
        }
        let number = self.tasks[first].token;
        lists[from].list.unlink(&mut self.tasks, first);
        self.tasks[first].token = self.tasks[other].token;
        let is_found = lists[from].list.insert_near(&mut self.tasks, first, NEAR);
        if !is_found {
            self.tasks[first].token = number;
            lists[from].list.push_front(&mut self.tasks, first);
        }
        is_found
    }

    /// A task is no longer on the list of another class.
    pub(super) fn leave_aside(&mut self, slot: Slot, list: u32) {
        let lane = self.contracts[self.tasks[slot].contract].lane;
        self.lanes[lane as usize].lists[list as usize].contracts -= 1;
    }

    /// Whether a lane has tasks that may start, as far as their queue is asked.
    pub(crate) fn may_start(&self, lane: &Lane) -> bool {
        lane.len > 0 && !self.queues[lane.queue as usize].settings.paused
    }

    /// Puts a lane with a new ready task in line.
    fn ring_lane(&mut self, index: u32, dispatch: &mut Dispatch) {
        let lane = &mut self.lanes[index as usize];
        let queue = &self.queues[lane.queue as usize];
        if !self.leading {
            return;
        }
        // It may have stayed in line while it was empty.
        if lane.len == 1 {
            dispatch.reservations.is_asked_for |= !lane.resources.is_empty();
        }
        if !lane.ringed && !queue.settings.paused {
            lane.ringed = true;
            dispatch.ring(queue.dispatch, lane.priority, LaneRef { partition: self.id.0, lane: index });
        } else {
            dispatch.mark(queue.dispatch);
        }
    }

    /// Puts every lane of a queue that has ready tasks back in line, after a pause.
    pub(crate) fn ring_lanes(&mut self, queue: u32, dispatch: &mut Dispatch) {
        if !self.leading {
            return;
        }
        for (index, lane) in (0u32..).zip(&mut self.lanes) {
            if lane.queue != queue || lane.len == 0 {
                continue;
            }
            dispatch.reservations.is_asked_for |= !lane.resources.is_empty();
            if !lane.ringed {
                lane.ringed = true;
                let target = self.queues[queue as usize].dispatch;
                dispatch.ring(target, lane.priority, LaneRef { partition: self.id.0, lane: index });
            }
        }
    }

    /// A contract that referred to a lane is gone.
    pub(super) fn drop_lane(&mut self, contract: &Contract) {
        let index = contract.lane;
        let lane = &mut self.lanes[index as usize];
        lane.lists[contract.list as usize].contracts -= 1;
        lane.contracts -= 1;
        if lane.contracts == 0 && !lane.ringed {
            self.free_lane(index);
        }
    }

    fn free_lane(&mut self, index: u32) {
        let lane = core::mem::take(&mut self.lanes[index as usize]);
        self.lane_by_needs.remove(&(lane.queue, lane.priority, lane.resources, lane.wishes));
        self.free_lanes.push(index);
    }

    /// A lane left the dispatcher's line.
    pub(crate) fn lane_left(&mut self, index: u32) {
        let lane = &mut self.lanes[index as usize];
        lane.ringed = false;
        if lane.contracts == 0 {
            self.free_lane(index);
        }
    }
}

//! Which of a workflow's ready tasks is next: the one from which the longest path leads to the workflow's end, by predicted run times.
//!
//! Volatile and the leader's own, and made when a task of the workflow is first to start. Tasks of one workflow take each other's turns: when
//! the turn of one has come, the one on the longest path starts in its stead, of those that wait in the same lane, and it gets the other's
//! turn. Where a queue goes by what was learned of kinds, a turn is one of a kind, and only those of the same list exchange theirs. So
//! what a workflow does with its turns is its own affair, and no task of others goes earlier or later for it. A task that has waited for
//! the cap of the aging ([`crate::order`]) takes its turn itself, and so does one that was given up.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use hashbrown::HashMap;

use super::{Workflow, Workflows};
use crate::hash::FixedState;
use crate::order::Learned;
use crate::partition::Partition;
use crate::state::State;
use crate::task::{NONE, Slot, flag};

/// It is looked whether paths are to be measured anew after so many microseconds, and so many more for each row.
const ANEW_US: u64 = 1_000_000;
const ANEW_ROW_US: u64 = 20;
/// They are if a median has changed by more than this part of it.
const CHANGE: f64 = 0.1;
/// Memory of a row, in bytes: its path and an entry. And of paths without rows.
const ROW_BYTES: usize = size_of::<u32>() + size_of::<Ready>();
const PATHS_BYTES: usize = 512;

/// A ready task: the path that it begins, in milliseconds, its number in the order of readiness, and its slot.
type Ready = (u32, Reverse<u64>, Slot);

/// The paths of a workflow.
#[derive(Debug)]
pub(crate) struct Paths {
    /// By row: from its start to the end of all, in milliseconds.
    left_ms: Vec<u32>,
    made_us: u64,
    /// By class: the median run times of which they are made, in milliseconds.
    medians_ms: HashMap<u32, u32, FixedState>,
    /// Ready tasks by lane and list, the longest path first; some may have started or ended since.
    ready: BTreeMap<(u32, u32), BinaryHeap<Ready>>,
    entries: usize,
}

impl Paths {
    fn push(&mut self, place: (u32, u32), row: u32, number: u64, slot: Slot) {
        let left_ms = self.left_ms[row as usize];
        self.ready.entry(place).or_default().push((left_ms, Reverse(number), slot));
        self.entries += 1;
    }

    /// Whether most of the entries are old.
    fn is_full(&self) -> bool {
        self.entries > 2 * self.left_ms.len() + 64
    }

    /// Whether they are to be measured anew.
    fn are_old(&mut self, learned: &Learned, now_us: u64) -> bool {
        if now_us.saturating_sub(self.made_us) < ANEW_US + self.left_ms.len() as u64 * ANEW_ROW_US {
            return false;
        }
        self.made_us = now_us;
        let has_changed = |(&class, &was_ms): (&u32, &u32)| {
            let [was, is] = [was_ms, learned.median_ms(class).max(1)].map(f64::from);
            (is - was).abs() > CHANGE * was
        };
        self.medians_ms.iter().any(has_changed)
    }

    const fn reserved_bytes(rows: usize) -> usize {
        PATHS_BYTES + rows * ROW_BYTES
    }
}

impl Workflows {
    fn set_paths(&mut self, index: u32, paths: Paths) {
        let workflow = &mut self[index];
        let rows = workflow.rows.len();
        if workflow.paths.replace(Box::new(paths)).is_none() {
            self.bytes += Paths::reserved_bytes(rows);
        }
    }

    /// A workflow that is over, or led by another, has no paths.
    pub(super) fn drop_paths(&mut self, index: u32) {
        let workflow = &mut self[index];
        let rows = workflow.rows.len();
        if workflow.paths.take().is_some() {
            self.bytes -= Paths::reserved_bytes(rows);
        }
    }

    /// The paths of all workflows are another leader's matter.
    pub(crate) fn drop_all_paths(&mut self) {
        for index in (0u32..).take(self.items.len()) {
            if self.items[index as usize].is_some() {
                self.drop_paths(index);
            }
        }
    }
}

/// How tasks of a workflow take each other's turns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ByPaths<'a> {
    /// Those of one list alone.
    pub(crate) within: bool,
    /// By what paths are measured.
    pub(crate) learned: &'a Learned,
    /// One that is ready since then, or longer, takes its turn itself.
    pub(crate) aged_us: u64,
    pub(crate) now_us: u64,
}

impl Partition {
    /// The workflow and row of a task.
    fn row_of(&self, slot: Slot) -> Option<(u32, u32)> {
        let extra = self.extras.get(self.tasks[slot].extra)?;
        (extra.workflow != NONE).then_some((extra.workflow, extra.row))
    }

    /// A task came on a lane.
    pub(crate) fn note_ready(&mut self, slot: Slot) {
        let Some((index, row)) = self.row_of(slot) else { return };
        let (number, place) = (self.tasks[slot].token, self.place_of(slot));
        let Some(paths) = &mut self.workflows[index].paths else { return };
        paths.push(place, row, number, slot);
        // They are made anew when they are asked for.
        if paths.is_full() {
            self.workflows.drop_paths(index);
        }
    }

    /// The task that starts when it is the turn of the first of a lane's list; they change turns.
    pub(crate) fn whose_turn(&mut self, slot: Slot, by: ByPaths<'_>) -> Slot {
        let ByPaths { within, learned, aged_us, now_us } = by;
        let Some((index, _)) = self.row_of(slot) else { return slot };
        if self.tasks[slot].at_us <= aged_us || !self.may_change(slot) {
            return slot;
        }
        if self.workflows[index].paths.as_mut().is_none_or(|paths| paths.are_old(learned, now_us)) {
            let paths = self.measure_paths(index, learned, now_us);
            self.workflows.set_paths(index, paths);
        }
        let Some(mut paths) = self.workflows[index].paths.take() else { return slot };
        let own = self.place_of(slot);
        let places = if within { own..=own } else { (own.0, 0)..=(own.0, u32::MAX) };
        // Of each list the first that waits there; the others are old.
        let mut first: Option<(Ready, (u32, u32))> = None;
        for (&place, ready) in paths.ready.range_mut(places) {
            while let Some(&(_, Reverse(number), other)) = ready.peek()
                && !self.waits_as(other, (index, place), number)
            {
                ready.pop();
                paths.entries -= 1;
            }
            if let Some(&top) = ready.peek().filter(|top| first.is_none_or(|(first, _)| **top > first)) {
                first = Some((top, place));
            }
        }
        if let Some((_, place)) = first {
            paths.ready.get_mut(&place).map(BinaryHeap::pop);
            paths.entries -= 1;
        }
        self.workflows[index].paths = Some(paths);
        let Some((_, _, first)) = first.map(|(first, _)| first).filter(|(.., first)| *first != slot) else {
            return slot;
        };
        // One whose place is not near goes by its own turn, until paths are measured anew.
        if !self.change_turns(own.0, slot, first) {
            return slot;
        }
        self.note_ready(slot);
        first
    }

    /// Lane and list of a ready task.
    fn place_of(&self, slot: Slot) -> (u32, u32) {
        let contract = &self.contracts[self.tasks[slot].contract];
        (contract.lane, contract.list)
    }

    /// Whether a slot's task is of this workflow, and waits at this place with this number.
    fn waits_as(&self, slot: Slot, (workflow, place): (u32, (u32, u32)), number: u64) -> bool {
        let is_there = self.tasks.get(slot).is_some_and(|task| task.token == number) && self.may_change(slot);
        let is_own = || self.row_of(slot).is_some_and(|(index, _)| index == workflow);
        is_there && self.place_of(slot) == place && is_own()
    }

    /// Whether a task waits on the list of its class.
    fn may_change(&self, slot: Slot) -> bool {
        let task = &self.tasks[slot];
        let is_in_lane = task.state == State::Ready && !task.has(flag::BLOCKED);
        is_in_lane && self.list(slot) == self.contracts[task.contract].list
    }

    fn measure_paths(&self, index: u32, learned: &Learned, now_us: u64) -> Paths {
        let workflow = &self.workflows[index];
        let (left_ms, medians_ms) = self.paths_ms(workflow, learned);
        let mut paths = Paths { left_ms, made_us: now_us, medians_ms, ready: BTreeMap::new(), entries: 0 };
        for (row, &slot) in (0u32..).zip(&workflow.rows).filter(|(_, slot)| **slot != NONE) {
            if self.may_change(slot) {
                paths.push(self.place_of(slot), row, self.tasks[slot].token, slot);
            }
        }
        paths
    }

    /// By row of a workflow: the longest path from its start to the end of all, by median run times, in milliseconds, of which a task takes one
    /// at least; and those times by class. Each row comes after those that it needs.
    fn paths_ms(&self, workflow: &Workflow, learned: &Learned) -> (Vec<u32>, HashMap<u32, u32, FixedState>) {
        let mut by_class: HashMap<u32, u32, FixedState> = HashMap::default();
        let mut left_ms = vec![0u32; workflow.rows.len()];
        let rows = u32::try_from(workflow.rows.len()).expect("rows are bounded");
        for row in (0..rows).rev() {
            let slot = workflow.rows[row as usize];
            let after = workflow.children_of(row).iter().map(|child| left_ms[*child as usize]).max().unwrap_or(0);
            let own = if slot == NONE {
                0
            } else {
                *by_class.entry(self.class(slot)).or_insert_with_key(|class| learned.median_ms(*class).max(1))
            };
            left_ms[row as usize] = own.saturating_add(after);
        }
        (left_ms, by_class)
    }

    /// What is said to who asks why a ready task of a workflow waits; `goes`: its queue's order lets tasks of a workflow take each other's turns,
    /// and whether only of its own list.
    pub(crate) fn path_in_words(&self, slot: Slot, learned: &Learned, goes: Option<bool>) -> Option<String> {
        let (index, row) = self.row_of(slot)?;
        let (workflow, own) = (&self.workflows[index], self.place_of(slot));
        let measured = workflow.paths.is_none().then(|| self.paths_ms(workflow, learned).0);
        let left_ms = measured.as_deref().or_else(|| workflow.paths.as_ref().map(|paths| &paths.left_ms[..]))?;
        let path_ms = |row: u32| left_ms[row as usize];
        let longest_ms = left_ms.iter().max()?;
        let rows = (0u32..).zip(&workflow.rows).filter(|&(other, &slot)| other != row && slot != NONE);
        let beside = rows.filter(|&(_, &slot)| {
            let (lane, list) = self.place_of(slot);
            self.may_change(slot) && lane == own.0 && (goes == Some(false) || list == own.1)
        });
        let (mut all, mut before) = (0, 0);
        for (other, &at) in beside {
            let key = |row: u32, slot: Slot| (path_ms(row), Reverse(self.tasks[slot].token));
            all += 1;
            before += u32::from(key(other, at) > key(row, slot));
        }
        let turns = match goes {
            Some(within) => format!(
                "whenever it is the turn of one of them, the one with the longest starts: {before} of {all} others that wait with its \
                 priority{} resources go before it",
                if within { ", kind and" } else { " and" }
            ),
            None => "the queue's policy does not go by that".to_owned(),
        };
        let path_ms = path_ms(row);
        Some(format!(
            "from its start to the end of its workflow the longest way is predicted to take {path_ms} ms, of {longest_ms} ms for all; {turns}"
        ))
    }
}

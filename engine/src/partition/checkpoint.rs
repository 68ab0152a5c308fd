//! Checkpoints: final tasks are copied to a store outside in the order of their retention numbers, and are not forgotten before.
//!
//! Invariants:
//! - How far the store is follows from the log alone ([`Verb::Checkpointed`](crate::entry::Verb)), and so does what waits: all
//!   replicas forget the same.
//! - A task waits from its retention until its number is checkpointed, it is retried, or too many wait.

use std::collections::VecDeque;

use super::Partition;
use crate::arena::{Arena, Demoted, Handle};
use crate::entry::Settings;
use crate::extra::Extras;
use crate::queue::Queue;
use crate::task::{NONE, Slot, Task};
use crate::versions::History;

/// What a waiting task counts for beside its payload, result, error and states, in bytes.
const TASK_BYTES: u64 = 128;
/// What a look at a task that may be demoted counts for beside its bytes.
const DEMOTED_WORK: usize = 64;
/// Entries of the line that may stand for nothing before it is tidied.
const GONE_MAX: usize = 1_024;

/// Final tasks that are not checkpointed.
#[derive(Default)]
pub(crate) struct Waiting {
    /// Numbers and slots, ascending. Tasks that were retried or forgotten meanwhile are passed over.
    line: VecDeque<(u64, Slot)>,
    pub(crate) tasks: u32,
    pub(crate) bytes: u64,
    /// Those up to this number were demoted as far as they can be. Volatile.
    demoted: u64,
    /// Payloads and results of those that wait and were demoted, in bytes. Volatile.
    demoted_bytes: u64,
    /// Tasks that were forgotten without a checkpoint. Volatile.
    pub(crate) lost: u64,
}

impl Waiting {
    /// What was not demoted, in bytes.
    pub(crate) const fn bytes_in_memory(&self) -> u64 {
        self.bytes - self.demoted_bytes
    }

    /// Memory held by the line itself, in bytes.
    pub(super) fn reserved_bytes(&self) -> usize {
        self.line.capacity() * size_of::<(u64, Slot)>()
    }
}

/// How far the leader came with sending.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Sending {
    /// The store was not asked where it stands.
    #[default]
    Closed,
    /// It was asked.
    Opening,
    /// All up to this number is stored.
    Idle(u64),
    /// All up to the first number is stored, and what is up to the second is on its way.
    Busy(u64, u64),
    /// Another leader took over, or the store holds another history: nothing is sent in this term.
    Shut,
}

/// Which chunks of states the store was told of: those that bear the telling's number. Volatile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Telling {
    pub(crate) number: u32,
    /// The latest day on which a task ended whose chunks were told, in days since 1970. A later day is another telling: the store
    /// keeps a chunk as long as the last day that it was told for.
    pub(crate) day: u32,
}

impl Partition {
    /// Whether final tasks are checkpointed.
    pub(crate) const fn has_checkpoints(&self) -> bool {
        self.settings.waiting_max > 0
    }

    /// What is waiting.
    pub(crate) const fn waiting(&self) -> &Waiting {
        &self.waiting
    }

    /// Takes settings over.
    pub(crate) fn set(&mut self, settings: Settings, arena: &Arena) {
        let had_checkpoints = self.has_checkpoints();
        self.settings = settings;
        if !self.has_events() {
            self.outbox.clear();
        }
        if self.has_checkpoints() != had_checkpoints {
            self.line_up(arena);
        }
    }

    /// The store has all up to this number, and nothing behind.
    pub(crate) fn checkpoint(&mut self, upto: u64, arena: &Arena) {
        let upto = upto.min(self.last_retained);
        let is_behind = upto < core::mem::replace(&mut self.checkpointed, upto);
        if is_behind {
            return self.line_up(arena);
        }
        while let Some((number, slot)) = self.waiting.line.pop_front_if(|(number, _)| *number <= upto) {
            if self.is_there(number, slot) {
                self.count_out(slot, arena);
            }
        }
    }

    /// Finds out who waits.
    fn line_up(&mut self, arena: &Arena) {
        self.waiting = Waiting { lost: self.waiting.lost, ..Waiting::default() };
        if !self.has_checkpoints() {
            return;
        }
        let mut line = Vec::new();
        for list in &self.retention {
            let mut slot = list.list.head;
            while slot != NONE {
                let task = &self.tasks[slot];
                if task.token > self.checkpointed {
                    line.push((task.token, slot));
                }
                slot = task.next;
            }
        }
        line.sort_unstable();
        self.waiting.tasks = u32::try_from(line.len()).expect("slots are numbered in 32 bits");
        self.waiting.bytes = line.iter().map(|(_, slot)| self.bytes_of(*slot, arena)).sum();
        self.waiting.demoted_bytes = line.iter().map(|(_, slot)| self.demoted_bytes_of(*slot, arena)).sum();
        self.waiting.line = line.into();
    }

    /// Moves payloads and results of those that wait longest out of memory, until no more than `bytes_max` of what waits is there or
    /// `work` is used up; `false` when there is no room for them.
    pub(crate) fn demote(&mut self, bytes_max: u64, arena: &mut Arena, work: &mut usize) -> bool {
        if self.waiting.line.back().is_none_or(|(last, _)| *last <= self.waiting.demoted) {
            return true;
        }
        let from = self.waiting.line.partition_point(|(number, _)| *number <= self.waiting.demoted);
        let waiting = &mut self.waiting;
        for &(number, slot) in waiting.line.range(from..) {
            if *work == 0 || waiting.bytes - waiting.demoted_bytes <= bytes_max {
                break;
            }
            *work = work.saturating_sub(DEMOTED_WORK);
            let task = self.tasks.get(slot).filter(|task| stands_for(task, number));
            for blob in task.into_iter().flat_map(|task| [task.blob, input_of(&self.extras, task)]) {
                match arena.demote(blob) {
                    Demoted::Moved => {
                        let bytes = arena.len_of(blob);
                        waiting.demoted_bytes += bytes as u64;
                        *work = work.saturating_sub(bytes);
                    }
                    Demoted::Stayed => {}
                    Demoted::NoRoom => return false,
                }
            }
            waiting.demoted = number;
        }
        true
    }

    /// A task whose retention began waits.
    pub(super) fn wait_for_checkpoint(&mut self, slot: Slot, arena: &Arena) {
        let number = self.tasks[slot].token;
        if number > self.checkpointed {
            self.waiting.tasks += 1;
            self.waiting.bytes += self.bytes_of(slot, arena);
            // A payload that was demoted before its task was retried.
            self.waiting.demoted_bytes += self.demoted_bytes_of(slot, arena);
            self.waiting.line.push_back((number, slot));
        }
    }

    /// A task's retention ends.
    pub(super) fn wait_no_longer(&mut self, slot: Slot, arena: &Arena) {
        if self.tasks[slot].token <= self.checkpointed {
            return;
        }
        self.count_out(slot, arena);
        if self.waiting.line.len() > 2 * self.waiting.tasks as usize + GONE_MAX {
            let mut line = core::mem::take(&mut self.waiting.line);
            // The task itself is still there.
            line.retain(|&(number, other)| other != slot && self.is_there(number, other));
            self.waiting.line = line;
        }
    }

    fn count_out(&mut self, slot: Slot, arena: &Arena) {
        self.waiting.tasks -= 1;
        self.waiting.bytes -= self.bytes_of(slot, arena);
        self.waiting.demoted_bytes -= self.demoted_bytes_of(slot, arena);
    }

    /// Changes the versions of a task's state. What a task that waits counts for follows.
    pub(crate) fn change_states<R>(&mut self, slot: Slot, change: impl FnOnce(&mut Self) -> R) -> R {
        let task = &self.tasks[slot];
        let waits = self.has_checkpoints() && self.retention_ms(task).is_some() && task.token > self.checkpointed;
        let before = self.state_bytes_of(slot);
        let changed = change(self);
        if waits {
            self.waiting.bytes = self.waiting.bytes - before + self.state_bytes_of(slot);
        }
        changed
    }

    fn state_bytes_of(&self, slot: Slot) -> u64 {
        self.history(slot).map_or(0, History::chunk_bytes)
    }

    fn demoted_bytes_of(&self, slot: Slot, arena: &Arena) -> u64 {
        let task = &self.tasks[slot];
        let demoted = [task.blob, input_of(&self.extras, task)].into_iter().filter(|&blob| arena.is_demoted(blob));
        demoted.map(|blob| arena.len_of(blob) as u64).sum()
    }

    fn bytes_of(&self, slot: Slot, arena: &Arena) -> u64 {
        let task = &self.tasks[slot];
        let extra =
            self.extras.get(task.extra).map_or(0, |extra| arena.len_of(extra.input) + arena.len_of(extra.error));
        (arena.len_of(task.blob) + extra) as u64 + self.state_bytes_of(slot) + TASK_BYTES
    }

    /// Whether an entry of the line still stands for a task.
    fn is_there(&self, number: u64, slot: Slot) -> bool {
        self.tasks.get(slot).is_some_and(|task| stands_for(task, number))
    }

    /// Whether the first task of a retention list, if there is one, need not wait for its checkpoint.
    pub(super) fn may_be_forgotten(&self, head: Slot) -> bool {
        head != NONE && (!self.has_checkpoints() || self.tasks[head].token <= self.checkpointed || self.too_many_wait())
    }

    fn too_many_wait(&self) -> bool {
        let (waiting, settings) = (&self.waiting, &self.settings);
        waiting.tasks > settings.waiting_max || waiting.bytes > u64::from(settings.waiting_kib_max) << 10
    }

    /// A task is about to be forgotten.
    pub(super) fn note_loss(&mut self, slot: Slot) {
        if self.has_checkpoints() && self.tasks[slot].token > self.checkpointed {
            self.waiting.lost += 1;
        }
    }

    /// Until when a checkpointed task is kept: not before it gives up its unique key.
    pub(super) fn checkpointed_until_us(&self, task: &Task, since_us: u64) -> u64 {
        if !self.has_checkpoints() || task.token > self.checkpointed {
            return u64::MAX;
        }
        let unique_until_us = self.extras.get(task.extra).map_or(0, |extra| extra.unique_until_us);
        unique_until_us.max(since_us + u64::from(self.settings.checkpointed_kept_ms) * 1_000)
    }

    /// The settings of a queue go to the store with the next batch.
    pub(crate) fn tell_settings(&mut self, queue: u32) {
        if core::mem::replace(&mut self.queues[queue as usize].is_told, false) {
            self.untold.push(queue);
        }
    }

    /// Nothing counts that the store was told: the settings of all queues go with the next batch, and chunks of states with their tasks.
    pub(crate) fn tell_all(&mut self) {
        self.telling.number += 1;
        let queues = u32::try_from(self.queues.len()).expect("queues are bounded at admission");
        (0..queues).for_each(|queue| self.tell_settings(queue));
    }

    /// The queues whose settings are to go.
    pub(crate) fn take_untold(&mut self) -> impl Iterator<Item = &Queue> {
        let untold = core::mem::take(&mut self.untold);
        untold.iter().for_each(|&queue| self.queues[queue as usize].is_told = true);
        let queues = &self.queues;
        untold.into_iter().map(move |queue| &queues[queue as usize])
    }

    /// Entries of the line behind a number, in order, those that stand for nothing among them: number, and slot if there is one.
    pub(crate) fn waiting_after(&self, number: u64) -> impl Iterator<Item = (u64, Option<Slot>)> + '_ {
        let line = &self.waiting.line;
        let from = line.partition_point(|(other, _)| *other <= number);
        line.range(from..).map(|&(number, slot)| (number, self.is_there(number, slot).then_some(slot)))
    }
}

/// What a task that succeeded was given, if it is kept.
fn input_of(extras: &Extras, task: &Task) -> Handle {
    extras.get(task.extra).map_or(Handle::NONE, |extra| extra.input)
}

/// Whether an entry of the line stands for this task. Tokens of leases carry a term, so none is a number.
fn stands_for(task: &Task, number: u64) -> bool {
    task.state.is_final() && task.token == number
}

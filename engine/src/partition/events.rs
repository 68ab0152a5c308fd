//! Events that wait to be sent: a line that all replicas have alike, since it follows from the log.
//!
//! Invariants:
//! - Numbers count up without a gap, over restarts and changes of leadership; what is dropped leaves one.
//! - A final task is not forgotten while an event waits that is as old as its end, so its result can go with the event.

use std::collections::VecDeque;

use taskmaster_protocol::TaskId;

use super::{Partition, Sending};
use crate::events::Change;
use crate::query::task::begun;
use crate::state::State;
use crate::task::{NONE, Slot};

/// One event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Happened {
    pub(crate) id: TaskId,
    pub(crate) at_us: u64,
    pub(crate) attempt: u32,
    pub(crate) change: Change,
}

/// Events in order.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    line: VecDeque<Happened>,
    /// Number of the event before the first of the line.
    pub(crate) before: u64,
    /// What the leader sends. Volatile.
    pub(crate) sending: Sending,
    /// Events that were dropped, since too many waited. Volatile.
    pub(crate) lost: u64,
}

impl Outbox {
    pub(crate) fn len(&self) -> usize {
        self.line.len()
    }

    /// Number of the last event.
    pub(crate) fn last(&self) -> u64 {
        self.before + self.line.len() as u64
    }

    /// Events behind a number, with theirs.
    pub(crate) fn after(&self, number: u64) -> impl Iterator<Item = (u64, Happened)> + '_ {
        let skip = usize::try_from(number.saturating_sub(self.before)).unwrap_or(usize::MAX).min(self.line.len());
        (self.before + skip as u64 + 1..).zip(self.line.range(skip..).copied())
    }

    /// For a snapshot that is being read.
    pub(crate) fn push(&mut self, happened: Happened) {
        self.line.push_back(happened);
    }

    /// All up to this number is sent.
    pub(crate) fn sent(&mut self, upto: u64) {
        let count = usize::try_from(upto.saturating_sub(self.before)).unwrap_or(usize::MAX).min(self.line.len());
        self.line.drain(..count);
        self.before += count as u64;
        if self.line.is_empty() {
            // A burst's memory is not kept.
            self.line.shrink_to(1_024);
        }
    }

    pub(super) fn clear(&mut self) {
        self.before = self.last();
        self.line = VecDeque::new();
    }

    pub(super) fn reserved_bytes(&self) -> usize {
        self.line.capacity() * size_of::<Happened>()
    }
}

impl Partition {
    /// Whether events go out.
    pub(crate) const fn has_events(&self) -> bool {
        self.settings.events_max > 0
    }

    /// Something happened to a task, at the time of the command that is being applied.
    #[inline]
    pub(crate) fn note(&mut self, slot: Slot, change: Change, at_us: u64) {
        if self.has_events() {
            self.note_down(slot, change, at_us);
        }
    }

    #[cold]
    fn note_down(&mut self, slot: Slot, change: Change, at_us: u64) {
        let task = &self.tasks[slot];
        // Leases are the leader's own: of what the log does not know, nothing is said.
        let state = if task.state == State::Leased { State::Ready } else { task.state };
        let attempt = begun(state, task.failures);
        self.outbox.push(Happened { id: task.id, at_us, attempt, change });
        while self.outbox.line.len() > self.settings.events_max as usize {
            self.outbox.sent(self.outbox.before + 1);
            self.outbox.lost += 1;
        }
    }

    /// A task became final.
    pub(super) fn note_end(&mut self, slot: Slot, end: State, at_us: u64) {
        let change = match end {
            State::Succeeded => Change::Completed,
            State::Failed => Change::Failed,
            State::Cancelled => Change::Cancelled,
            State::Expired => Change::Expired,
            State::Waiting | State::Delayed | State::Ready | State::Leased => return,
        };
        self.note(slot, change, at_us);
    }

    /// Whether no event waits that may be of the final task at `head`.
    pub(super) fn is_told(&self, head: Slot) -> bool {
        head == NONE || self.outbox.line.front().is_none_or(|oldest| self.tasks[head].at_us < oldest.at_us)
    }
}

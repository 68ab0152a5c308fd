//! Events that wait to be sent: a line that all replicas have alike, since it follows from the log.
//!
//! Invariants:
//! - Numbers count up without a gap, over restarts and changes of leadership; what is dropped leaves one.
//! - What waits has a bound in bytes, those of final tasks that are kept for it among them.
//! - A final task is not forgotten while an event waits that is as old as its end, so its result can go with the event.

use std::collections::VecDeque;

use taskmaster_protocol::TaskId;

use super::{Partition, Sending};
use crate::arena::Arena;
use crate::events::Change;
use crate::query::task::begun;
use crate::state::State;
use crate::task::{NONE, Slot};

/// What a final task that is kept counts for beside its payload or result, in bytes.
const TASK_BYTES: usize = 128;

/// One event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Happened {
    pub(crate) id: TaskId,
    pub(crate) at_us: u64,
    /// Bytes of the task that is kept for it.
    pub(crate) bytes: u32,
    pub(crate) attempt: u16,
    pub(crate) change: Change,
}

impl Happened {
    fn weight(&self) -> u64 {
        size_of::<Self>() as u64 + u64::from(self.bytes)
    }
}

/// Events in order.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    line: VecDeque<Happened>,
    /// Number of the event before the first of the line.
    pub(crate) before: u64,
    /// Bytes that the line stands for.
    bytes: u64,
    /// What the leader sends. Volatile.
    pub(crate) sending: Sending,
    /// Events that were dropped, since too many waited. Volatile.
    pub(crate) lost: u64,
    /// Some were dropped since any was sent. Volatile.
    pub(crate) overflows: bool,
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
        self.bytes += happened.weight();
        self.line.push_back(happened);
    }

    /// All up to this number is sent.
    pub(crate) fn sent(&mut self, upto: u64) {
        let count = usize::try_from(upto.saturating_sub(self.before)).unwrap_or(usize::MAX).min(self.line.len());
        self.bytes -= self.line.drain(..count).map(|happened| happened.weight()).sum::<u64>();
        self.before += count as u64;
        if self.line.is_empty() {
            // A burst's memory is not kept.
            self.line.shrink_to(1_024);
        }
    }

    pub(super) fn clear(&mut self) {
        self.sent(self.last());
        self.line = VecDeque::new();
    }

    pub(super) fn reserved_bytes(&self) -> usize {
        self.line.capacity() * size_of::<Happened>()
    }
}

impl Partition {
    /// Whether events go out.
    pub(crate) const fn has_events(&self) -> bool {
        self.settings.events_kib_max > 0
    }

    /// Something happened to a task, at the time of the command that is being applied.
    #[inline]
    pub(crate) fn note(&mut self, slot: Slot, change: Change, at_us: u64) {
        if self.has_events() {
            self.note_down(slot, change, at_us, 0);
        }
    }

    #[cold]
    fn note_down(&mut self, slot: Slot, change: Change, at_us: u64, bytes: usize) {
        let task = &self.tasks[slot];
        // Leases are the leader's own: of what the log does not know, nothing is said.
        let attempt = match (change, task.state) {
            (Change::Started, _) => task.attempt(),
            (_, State::Leased) => task.failures.into(),
            _ => begun(self, slot),
        };
        let (attempt, bytes) =
            (u16::try_from(attempt).unwrap_or(u16::MAX), u32::try_from(bytes).expect("results are bounded"));
        self.outbox.push(Happened { id: task.id, at_us, bytes, attempt, change });
        // One goes in any case, however large its task is.
        while self.outbox.bytes > u64::from(self.settings.events_kib_max) << 10 && self.outbox.line.len() > 1 {
            self.outbox.sent(self.outbox.before + 1);
            self.outbox.lost += 1;
            self.outbox.overflows = true;
        }
    }

    /// A task became final.
    pub(super) fn note_end(&mut self, slot: Slot, end: State, at_us: u64, arena: &Arena) {
        if !self.has_events() {
            return;
        }
        let change = match end {
            State::Succeeded => Change::Completed,
            State::Failed => Change::Failed,
            State::Cancelled => Change::Cancelled,
            State::Expired => Change::Expired,
            State::Waiting | State::Delayed | State::Ready | State::Leased => return,
        };
        let bytes = TASK_BYTES + arena.len_of(self.tasks[slot].blob);
        self.note_down(slot, change, at_us, bytes);
    }

    /// Whether no event waits that may be of the final task at `head`.
    pub(super) fn is_told(&self, head: Slot) -> bool {
        head == NONE || self.outbox.line.front().is_none_or(|oldest| self.tasks[head].at_us < oldest.at_us)
    }
}

//! Reads that are never stale: a leader answers only after a majority confirmed that it still leads, and after it applied
//! what was committed when the read came. A group of one answers at once.

use std::collections::VecDeque;

use taskmaster_protocol::FrameBuffer;
use taskmaster_protocol::frame::Header;

use crate::effects::ConnId;

/// Most reads that wait in one group; beyond it they are refused as `overloaded`.
pub(super) const READS_MAX: usize = 4_096;

/// A read that waits.
pub(super) struct Read {
    pub(super) conn: ConnId,
    pub(super) header: Header,
    pub(super) body: FrameBuffer,
}

/// Reads that were asked about together.
struct Asked {
    number: u64,
    /// Once confirmed: the index that must be applied.
    index: Option<u64>,
    reads: Vec<Read>,
}

/// The waiting reads of a group.
#[derive(Default)]
pub(super) struct Reads {
    new: Vec<Read>,
    asked: VecDeque<Asked>,
    last_number: u64,
    waiting: usize,
}

impl Reads {
    /// `false` when too many wait.
    pub(super) fn push(&mut self, read: Read) -> bool {
        if self.waiting >= READS_MAX {
            return false;
        }
        self.waiting += 1;
        self.new.push(read);
        true
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    /// The number under which to ask about the reads of this turn, if there are any.
    pub(super) fn ask(&mut self) -> Option<u64> {
        if self.new.is_empty() {
            return None;
        }
        self.last_number += 1;
        self.asked.push_back(Asked { number: self.last_number, index: None, reads: core::mem::take(&mut self.new) });
        Some(self.last_number)
    }

    /// The reads asked about under `number`, and all before, may be served at `index`.
    pub(super) fn confirmed(&mut self, number: u64, index: u64) {
        for asked in self.asked.iter_mut().take_while(|asked| asked.number <= number) {
            asked.index.get_or_insert(index);
        }
    }

    /// The next reads that may be served.
    pub(super) fn take(&mut self, applied: u64) -> Vec<Read> {
        let mut taken = Vec::new();
        while self.asked.front().is_some_and(|first| first.index.is_some_and(|index| index <= applied)) {
            taken.extend(self.asked.pop_front().map(|asked| asked.reads).unwrap_or_default());
        }
        self.waiting -= taken.len();
        taken
    }

    /// All that wait: this replica no longer leads.
    pub(super) fn give_up(&mut self) -> Vec<Read> {
        let mut taken: Vec<Read> = self.asked.drain(..).flat_map(|asked| asked.reads).collect();
        taken.append(&mut self.new);
        self.waiting = 0;
        taken
    }
}

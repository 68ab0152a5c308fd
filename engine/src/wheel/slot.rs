//! An append-only list of entries in blocks, and its consumption from the front.
//!
//! Invariants: full blocks hold exactly `BLOCK` entries; only the tail grows, by doubling up to `BLOCK`. A list therefore
//! reserves at most twice its entries while it is small and one spare block once it is not.

use std::collections::VecDeque;

/// Entries in a full block: small enough to waste little, large enough that its allocation costs nothing per entry.
const BLOCK: usize = 256;
/// A drained tail of at most this many entries stays with its slot, so a sparse wheel does not allocate per entry.
const KEPT: usize = 16;

/// The entries of one slot, in order of insertion.
pub(super) struct Slot<E> {
    full: VecDeque<Vec<E>>,
    tail: Vec<E>,
}

/// A list that is being consumed; it may still grow at its end.
pub(super) struct Drain<E> {
    rest: Slot<E>,
    current: Vec<E>,
    consumed: usize,
}

impl<E: Copy> Slot<E> {
    pub(super) const fn new() -> Self {
        Self { full: VecDeque::new(), tail: Vec::new() }
    }

    /// A full tail only makes room at the next push, so an empty tail means an empty list.
    pub(super) fn is_empty(&self) -> bool {
        self.tail.is_empty()
    }

    #[inline]
    pub(super) fn push(&mut self, entry: E) {
        if self.tail.len() == BLOCK {
            self.start_block();
        }
        self.tail.push(entry);
    }

    #[cold]
    fn start_block(&mut self) {
        let full = std::mem::replace(&mut self.tail, Vec::with_capacity(BLOCK));
        self.full.push_back(full);
    }

    /// Moves the entries out, for consumption.
    pub(super) fn take(&mut self) -> Drain<E> {
        Drain { rest: std::mem::replace(self, Self::new()), current: Vec::new(), consumed: 0 }
    }

    /// Takes back the memory of a finished drain if it is small and the slot has none.
    pub(super) fn give_back(&mut self, drain: Drain<E>) {
        let mut spare = drain.current;
        if self.tail.capacity() == 0 && spare.capacity() <= KEPT {
            spare.clear();
            self.tail = spare;
        }
    }

    pub(super) fn reserved_bytes(&self) -> usize {
        self.full.capacity() * size_of::<Vec<E>>() + (self.full.len() * BLOCK + self.tail.capacity()) * size_of::<E>()
    }
}

impl<E: Copy> Drain<E> {
    pub(super) fn push(&mut self, entry: E) {
        self.rest.push(entry);
    }

    /// The next entries, at least one and at most `max` (which is at least 1); `None` when all are consumed.
    pub(super) fn next_run(&mut self, max: usize) -> Option<&[E]> {
        if self.consumed == self.current.len() {
            if self.rest.is_empty() {
                return None;
            }
            self.current = self.rest.full.pop_front().unwrap_or_else(|| std::mem::take(&mut self.rest.tail));
            self.consumed = 0;
        }
        let start = self.consumed;
        self.consumed = self.current.len().min(start + max);
        Some(&self.current[start..self.consumed])
    }

    pub(super) fn reserved_bytes(&self) -> usize {
        self.rest.reserved_bytes() + self.current.capacity() * size_of::<E>()
    }
}

//! Hierarchical timing wheel: which entry is due, at 1 ms resolution, over any range.
//!
//! Level `l` (0 to 5) has 64 slots of `64^l` ms; an entry sits at the level of the highest group of six bits in which its
//! due time differs from the wheel's time, so six levels span 2^36 ms (2.2 years). Later entries wait in a list of their
//! own, with their full due time. A slot whose start is reached is *drained*: level 0 fires its entries, a higher level
//! hands them down. An entry is handed down at most six times in its life, hence O(1) amortised.
//!
//! Invariants
//! - An occupied slot of level 0 lies at or after the wheel's time, one of a higher level strictly after the slot that
//!   holds the wheel's time. So the first set bit of the lowest occupied level is the earliest slot.
//! - Entries in a slot share every bit above the slot's width; only the low 32 bits of a due time are stored there.
//! - Firing order is by due ms, and within one ms by order of insertion, whatever the work budgets of the calls. An entry
//!   inserted when already due counts as due at the wheel's time.
//! - 16 bytes per entry for a 12-byte item, plus at most one partly filled block of 256 entries per occupied slot. Drained
//!   blocks are freed one by one, while the slot drains.
//!
//! There is no cancel: the owner keeps in the item what it needs to see that an entry has become stale, and ignores it.

mod slot;
#[cfg(test)]
mod tests;

use slot::{Drain, Slot};

const LEVEL_BITS: usize = 6;
const SLOTS: usize = 1 << LEVEL_BITS;
const LEVELS: usize = 6;
/// Due times that differ from the wheel's time at this bit or above wait in the far list.
const SPAN_BITS: usize = LEVEL_BITS * LEVELS;
/// A stored due time keeps 32 bits: enough for the position inside the widest slot.
const _: () = assert!(SPAN_BITS - LEVEL_BITS <= 32);

#[derive(Clone, Copy)]
struct Entry<T> {
    due_low: u32,
    item: T,
}

#[derive(Clone, Copy)]
struct FarEntry<T> {
    due_ms: u64,
    item: T,
}

/// What is being taken apart at present.
enum Draining<T> {
    Nothing,
    /// A slot of this level, whose first ms is the wheel's time.
    Level(usize, Drain<Entry<T>>),
    Far(Drain<FarEntry<T>>),
}

/// A timing wheel of items of type `T`. See the module's header for order and cost.
pub struct Wheel<T: Copy> {
    now_ms: u64,
    entries: usize,
    occupied: [u64; LEVELS],
    levels: Box<[[Slot<Entry<T>>; SLOTS]; LEVELS]>,
    far: Slot<FarEntry<T>>,
    /// Earliest due time in `far`, or `u64::MAX` when it is empty.
    far_due_ms: u64,
    draining: Draining<T>,
}

impl<T: Copy> Wheel<T> {
    /// An empty wheel whose time is `now_ms` (any epoch, as long as all calls use the same).
    #[must_use]
    pub fn new(now_ms: u64) -> Self {
        Self {
            now_ms,
            entries: 0,
            occupied: [0; LEVELS],
            levels: Box::new(std::array::from_fn(|_| std::array::from_fn(|_| Slot::new()))),
            far: Slot::new(),
            far_due_ms: u64::MAX,
            draining: Draining::Nothing,
        }
    }

    /// Entries held, stale ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries
    }

    /// True when nothing is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// The wheel's time: everything due before it has fired. It trails the `now_ms` last given to [`Self::expire`] while
    /// that call's budget was too small for the work.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// Bytes reserved, the wheel itself included. Looks at every slot: for reports, not for hot paths.
    #[must_use]
    pub fn reserved_bytes(&self) -> usize {
        let draining = match &self.draining {
            Draining::Nothing => 0,
            Draining::Level(_, drain) => drain.reserved_bytes(),
            Draining::Far(drain) => drain.reserved_bytes(),
        };
        let slots: usize = self.levels.iter().flatten().map(Slot::reserved_bytes).sum();
        size_of::<Self>() + size_of_val(&*self.levels) + slots + self.far.reserved_bytes() + draining
    }

    /// Adds an entry that fires at `due_ms`, or at the next [`Self::expire`] when that is past.
    pub fn insert(&mut self, due_ms: u64, item: T) {
        self.entries += 1;
        let due_ms = due_ms.max(self.now_ms);
        // Joining what is being handed down keeps the order of insertion within a ms.
        match &mut self.draining {
            Draining::Level(level @ 1.., drain) if level_of(self.now_ms, due_ms) < *level => {
                drain.push(Entry { due_low: low_bits(due_ms), item });
            }
            Draining::Far(drain) => drain.push(FarEntry { due_ms, item }),
            _ => self.place(due_ms, item),
        }
    }

    /// Fires what is due at `now_ms`: appends it to `out`, earliest first. Returns true when due work is left over.
    ///
    /// Fires and hands down at most `work_max` entries in all, so a call's time is bounded; with work left over `out` may
    /// have received nothing, and calling again makes progress. A `now_ms` before the wheel's time counts as that time.
    pub fn expire(&mut self, now_ms: u64, work_max: usize, out: &mut Vec<T>) -> bool {
        let now_ms = now_ms.max(self.now_ms);
        let mut budget = work_max;
        loop {
            self.drain(&mut budget, out);
            if !matches!(self.draining, Draining::Nothing) {
                return true;
            }
            match self.earliest() {
                Some((start_ms, level)) if start_ms <= now_ms => {
                    if budget == 0 {
                        return true;
                    }
                    self.start_drain(start_ms, level);
                }
                _ => {
                    self.now_ms = now_ms;
                    return false;
                }
            }
        }
    }

    /// When to call [`Self::expire`] next, in ms of the wheel's epoch; `None` when empty.
    ///
    /// Never later than the earliest entry. It may be earlier, at the start of a slot to hand down, at most once per level
    /// and entry: each call made at this time moves entries, so sleeping on it cannot spin.
    #[must_use]
    pub fn next_due_ms(&self) -> Option<u64> {
        if matches!(self.draining, Draining::Nothing) {
            self.earliest().map(|(start_ms, _)| start_ms)
        } else {
            Some(self.now_ms)
        }
    }

    /// Start of the earliest occupied slot and its level; level `LEVELS` is the far list.
    fn earliest(&self) -> Option<(u64, usize)> {
        for (level, &occupied) in self.occupied.iter().enumerate() {
            if occupied != 0 {
                let shift = LEVEL_BITS * level;
                let slot = u64::from(occupied.trailing_zeros());
                let start_ms = (self.now_ms >> (shift + LEVEL_BITS) << LEVEL_BITS | slot) << shift;
                return Some((start_ms, level));
            }
        }
        (!self.far.is_empty()).then_some((self.far_due_ms >> SPAN_BITS << SPAN_BITS, LEVELS))
    }

    fn start_drain(&mut self, start_ms: u64, level: usize) {
        self.now_ms = start_ms;
        if level == LEVELS {
            self.far_due_ms = u64::MAX;
            self.draining = Draining::Far(self.far.take());
        } else {
            let slot = slot_of(level, start_ms);
            self.occupied[level] &= !(1 << slot);
            self.draining = Draining::Level(level, self.levels[level][slot].take());
        }
    }

    /// Works on the open drain while the budget lasts, and closes it when it is empty.
    fn drain(&mut self, budget: &mut usize, out: &mut Vec<T>) {
        while *budget > 0 {
            match std::mem::replace(&mut self.draining, Draining::Nothing) {
                Draining::Nothing => return,
                Draining::Level(level, mut drain) => {
                    let Some(entries) = drain.next_run(*budget) else {
                        let slot = slot_of(level, self.now_ms);
                        self.levels[level][slot].give_back(drain);
                        return;
                    };
                    *budget -= entries.len();
                    if level == 0 {
                        self.entries -= entries.len();
                        out.extend(entries.iter().map(|entry| entry.item));
                    } else {
                        self.hand_down(level, entries);
                    }
                    self.draining = Draining::Level(level, drain);
                }
                Draining::Far(mut drain) => {
                    let Some(entries) = drain.next_run(*budget) else { return };
                    *budget -= entries.len();
                    for entry in entries {
                        self.place(entry.due_ms, entry.item);
                    }
                    self.draining = Draining::Far(drain);
                }
            }
        }
    }

    /// Places entries of the slot of `level` that starts at the wheel's time into lower levels.
    fn hand_down(&mut self, level: usize, entries: &[Entry<T>]) {
        let inside = low_bits((1_u64 << (LEVEL_BITS * level)) - 1);
        for entry in entries {
            self.place(self.now_ms | u64::from(entry.due_low & inside), entry.item);
        }
    }

    #[inline]
    fn place(&mut self, due_ms: u64, item: T) {
        let level = level_of(self.now_ms, due_ms);
        if level >= LEVELS {
            self.far_due_ms = self.far_due_ms.min(due_ms);
            self.far.push(FarEntry { due_ms, item });
            return;
        }
        let slot = slot_of(level, due_ms);
        self.occupied[level] |= 1 << slot;
        self.levels[level][slot].push(Entry { due_low: low_bits(due_ms), item });
    }
}

/// Level of the highest group of bits in which the two differ; `LEVELS` or more means the far list.
#[inline]
fn level_of(now_ms: u64, due_ms: u64) -> usize {
    let differing = (now_ms ^ due_ms) | 1;
    differing.ilog2() as usize / LEVEL_BITS
}

#[inline]
fn slot_of(level: usize, ms: u64) -> usize {
    low_bits(ms >> (LEVEL_BITS * level)) as usize % SLOTS
}

#[inline]
fn low_bits(ms: u64) -> u32 {
    u32::try_from(ms & u64::from(u32::MAX)).expect("masked to 32 bits")
}

//! The handle table: where each object is, and which handles are free.
//!
//! Blocks of 16,384 entries with a free list each. New handles come from the lowest block with room, so that after a burst
//! the high blocks drain; a drained block gives its memory back (one is kept, against churn at the edge).

/// Where an object is and how long it is, with `COLD` added if it was demoted; in a free entry `len` is `FREE` and `at` the next free one
/// of the block.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    pub(super) len: u32,
    pub(super) at: u32,
}

impl Entry {
    pub(super) fn cold(len: usize, at: u32) -> Self {
        Self { len: COLD | u32::try_from(len).expect("objects end at OBJECT_MAX_BYTES"), at }
    }

    /// Length of the object.
    #[inline]
    pub(super) const fn len(self) -> usize {
        (self.len & !COLD) as usize
    }

    #[inline]
    pub(super) const fn is_cold(self) -> bool {
        self.len & COLD != 0
    }
}

const COLD: u32 = 1 << 31;

const FREE: u32 = u32::MAX;
const END: u32 = u32::MAX;
const BLOCK_BITS: u32 = 14;
const BLOCK: usize = 1 << BLOCK_BITS;
/// One block less than 32 bits would name, so that no handle is `Handle::NONE`.
const BLOCKS_MAX: usize = (1 << (u32::BITS - BLOCK_BITS)) - 1;

struct Block {
    entries: Vec<Entry>,
    free: u32,
    live: usize,
}

pub(super) struct Handles {
    blocks: Vec<Block>,
    /// One bit per block: set when it has room.
    open: Vec<u64>,
    /// No word of `open` before this one has a bit set.
    open_from: usize,
    live: u64,
    entries_reserved: usize,
    /// Blocks without a live entry that still have memory: at most one.
    idle: usize,
}

impl Handles {
    pub(super) const fn new() -> Self {
        Self { blocks: Vec::new(), open: Vec::new(), open_from: 0, live: 0, entries_reserved: 0, idle: 0 }
    }

    pub(super) const fn live(&self) -> u64 {
        self.live
    }

    pub(super) fn reserved_bytes(&self) -> u64 {
        let blocks = self.blocks.capacity() * size_of::<Block>() + self.open.capacity() * size_of::<u64>();
        (blocks + self.entries_reserved * size_of::<Entry>()) as u64
    }

    /// A free handle for the entry; `None` when all 2^32 are in use.
    #[inline]
    pub(super) fn insert(&mut self, entry: Entry) -> Option<u32> {
        let index = self.lowest_open()?;
        let block = &mut self.blocks[index];
        if block.live == 0 && block.entries.capacity() > 0 {
            self.idle -= 1;
        }
        let slot = if block.free == END {
            if block.entries.len() == block.entries.capacity() {
                self.entries_reserved += block.grow();
            }
            block.entries.push(entry);
            block.entries.len() - 1
        } else {
            let slot = block.free as usize;
            block.free = block.entries[slot].at;
            block.entries[slot] = entry;
            slot
        };
        block.live += 1;
        if block.live == BLOCK {
            self.open[index / 64] &= !(1 << (index % 64));
        }
        self.live += 1;
        Some(u32::try_from(index << BLOCK_BITS | slot).expect("BLOCKS_MAX keeps handles in 32 bits"))
    }

    #[inline]
    pub(super) fn get(&self, handle: u32) -> Entry {
        let entry = self.blocks[handle as usize >> BLOCK_BITS].entries[handle as usize % BLOCK];
        assert!(entry.len != FREE, "handle {handle} has been freed");
        entry
    }

    /// The object of `handle` was demoted.
    pub(super) fn set(&mut self, handle: u32, entry: Entry) {
        self.blocks[handle as usize >> BLOCK_BITS].entries[handle as usize % BLOCK] = entry;
    }

    /// The object of `handle` lies at `at` from here on.
    #[inline]
    pub(super) fn moved(&mut self, handle: u32, at: u32) {
        self.blocks[handle as usize >> BLOCK_BITS].entries[handle as usize % BLOCK].at = at;
    }

    /// Frees the handle and returns its entry.
    #[inline]
    pub(super) fn remove(&mut self, handle: u32) -> Entry {
        let index = handle as usize >> BLOCK_BITS;
        let block = &mut self.blocks[index];
        let slot = handle & ((1 << BLOCK_BITS) - 1);
        let entry = std::mem::replace(&mut block.entries[slot as usize], Entry { len: FREE, at: block.free });
        assert!(entry.len != FREE, "handle {handle} has been freed");
        block.free = slot;
        block.live -= 1;
        let drained = block.live == 0;
        self.open[index / 64] |= 1 << (index % 64);
        self.open_from = self.open_from.min(index / 64);
        self.live -= 1;
        if drained {
            self.drain(index);
        }
        entry
    }

    #[cold]
    fn drain(&mut self, index: usize) {
        let block = &mut self.blocks[index];
        block.entries.clear();
        block.free = END;
        if self.idle == 0 {
            self.idle = 1;
        } else {
            self.entries_reserved -= block.entries.capacity();
            block.entries = Vec::new();
        }
    }

    /// The lowest block with room, appended if there is none.
    #[inline]
    fn lowest_open(&mut self) -> Option<usize> {
        while let Some(&word) = self.open.get(self.open_from) {
            if word != 0 {
                return Some(self.open_from * 64 + word.trailing_zeros() as usize);
            }
            self.open_from += 1;
        }
        self.append()
    }

    #[cold]
    fn append(&mut self) -> Option<usize> {
        let index = self.blocks.len();
        if index == BLOCKS_MAX {
            return None;
        }
        if index.is_multiple_of(64) {
            self.open.push(0);
        }
        self.blocks.push(Block { entries: Vec::new(), free: END, live: 0 });
        self.open[index / 64] |= 1 << (index % 64);
        self.open_from = index / 64;
        Some(index)
    }
}

impl Block {
    /// Doubles the entries reserved, up to a full block; returns by how many.
    #[cold]
    fn grow(&mut self) -> usize {
        let before = self.entries.capacity();
        let wanted = (before * 2).clamp(64, BLOCK);
        self.entries.reserve_exact(wanted - self.entries.len());
        self.entries.capacity() - before
    }
}

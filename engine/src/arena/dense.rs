//! One size class: slots packed without holes into chunks.
//!
//! A slot is a back-reference (the handle of its object, 4 bytes little endian) and the object's bytes. A place is the
//! chunk's number above the slot's number, split at a bit, so that finding a slot needs no division.
//!
//! Invariants
//! - All chunks before `tail` are full, `tail` holds the first `fill` slots, and `fill` is 0 only in an empty class.
//! - The first chunk doubles and shrinks (down to 8 KiB) while it is alone, so a class of few objects is small; every other
//!   chunk has its full size. At most one chunk lies beyond the tail, and none once the tail is half empty.

/// Bytes in front of each object.
pub(super) const BACK_REFERENCE_BYTES: usize = size_of::<u32>();

/// Chunks are over 128 KiB, where common allocators start to map each block by itself and so can return it to the system,
/// and, with the allocator's header, just fill their pages.
const CHUNK_BYTES: usize = 136 * 1024 - 64;
/// For slots of more than `COARSE_FROM_BYTES`, so that what a chunk holds is not much less than its size.
const COARSE_CHUNK_BYTES: usize = 272 * 1024 - 64;
const COARSE_FROM_BYTES: usize = 2 * 1024;
/// The first chunk starts at this size, or at one slot.
const FIRST_BYTES: usize = 1024;
/// The first chunk does not shrink below this size: objects that come and go in batches would resize it all the time.
const FIRST_KEPT_BYTES: usize = 8 * 1024;

pub(super) struct Dense {
    chunks: Vec<Box<[u8]>>,
    tail: usize,
    fill: usize,
    stride: usize,
    slots_per_chunk: usize,
    slot_bits: u32,
}

impl Dense {
    pub(super) fn new(size_bytes: usize) -> Self {
        let stride = size_bytes + BACK_REFERENCE_BYTES;
        let chunk_bytes = if stride > COARSE_FROM_BYTES { COARSE_CHUNK_BYTES } else { CHUNK_BYTES };
        let slots_per_chunk = chunk_bytes / stride;
        let slot_bits = (slots_per_chunk - 1).ilog2() + 1;
        Self { chunks: Vec::new(), tail: 0, fill: 0, stride, slots_per_chunk, slot_bits }
    }

    /// The place the next push will use, made ready for it; `None` when places run out.
    #[inline]
    pub(super) fn next(&mut self) -> Option<u32> {
        if self.chunks.get(self.tail).is_none_or(|chunk| (self.fill + 1) * self.stride > chunk.len()) {
            self.make_room()?;
        }
        let (chunk, slot) = if self.fill == self.slots_per_chunk { (self.tail + 1, 0) } else { (self.tail, self.fill) };
        Some(self.place(chunk, slot))
    }

    /// Stores an object of `handle` at the place that [`Self::next`] has just returned.
    #[inline]
    pub(super) fn push(&mut self, handle: u32, bytes: &[u8]) {
        if self.fill == self.slots_per_chunk {
            self.tail += 1;
            self.fill = 0;
        }
        let start = self.fill * self.stride;
        let slot = &mut self.chunks[self.tail][start..start + BACK_REFERENCE_BYTES + bytes.len()];
        let (back_reference, object) = slot.split_at_mut(BACK_REFERENCE_BYTES);
        back_reference.copy_from_slice(&handle.to_le_bytes());
        object.copy_from_slice(bytes);
        self.fill += 1;
    }

    #[inline]
    pub(super) fn get(&self, at: u32, len: usize) -> &[u8] {
        let (chunk, slot) = self.split(at);
        let start = slot * self.stride + BACK_REFERENCE_BYTES;
        &self.chunks[chunk][start..start + len]
    }

    /// Closes the hole at `at` with the last object; returns that object's handle if it had to move.
    #[inline]
    pub(super) fn remove(&mut self, at: u32) -> Option<u32> {
        let (chunk, slot) = self.split(at);
        self.fill -= 1;
        let (hole, last) = (slot * self.stride, self.fill * self.stride);
        let moved = if (chunk, slot) == (self.tail, self.fill) {
            None
        } else {
            if chunk == self.tail {
                self.chunks[chunk].copy_within(last..last + self.stride, hole);
            } else {
                let (before, rest) = self.chunks.split_at_mut(self.tail);
                before[chunk][hole..hole + self.stride].copy_from_slice(&rest[0][last..last + self.stride]);
            }
            let back_reference =
                self.chunks[chunk][hole..].first_chunk().expect("a slot starts with its back-reference");
            Some(u32::from_le_bytes(*back_reference))
        };
        self.trim();
        moved
    }

    pub(super) fn reserved_bytes(&self) -> u64 {
        let chunks = match &self.chunks[..] {
            [] => 0,
            [first, others @ ..] => first.len() + others.len() * self.slots_per_chunk * self.stride,
        };
        (chunks + self.chunks.capacity() * size_of::<Box<[u8]>>()) as u64
    }

    #[inline]
    fn place(&self, chunk: usize, slot: usize) -> u32 {
        u32::try_from(chunk << self.slot_bits | slot).expect("make_room keeps places in 32 bits")
    }

    #[inline]
    fn split(&self, at: u32) -> (usize, usize) {
        let at = at as usize;
        (at >> self.slot_bits, at & ((1 << self.slot_bits) - 1))
    }

    /// The current chunk is full (or not there): makes it larger, or adds one behind it.
    #[cold]
    fn make_room(&mut self) -> Option<()> {
        let full_bytes = self.slots_per_chunk * self.stride;
        match self.chunks.get(self.tail).map(|chunk| chunk.len()) {
            None => self.chunks.push(zeroed(self.first_slots() * self.stride)),
            Some(bytes) if bytes < full_bytes => self.resize_first((2 * bytes).min(full_bytes)),
            Some(_) => {
                let next = self.tail + 1;
                if next >> (u32::BITS - self.slot_bits) != 0 {
                    return None;
                }
                if next == self.chunks.len() {
                    self.chunks.push(zeroed(full_bytes));
                }
            }
        }
        Some(())
    }

    /// Steps back over an emptied tail and gives up what lies too far beyond it.
    #[inline]
    fn trim(&mut self) {
        if self.tail > 0 {
            if self.fill == 0 {
                self.tail -= 1;
                self.fill = self.slots_per_chunk;
            } else if self.fill * 2 <= self.slots_per_chunk && self.chunks.len() > self.tail + 1 {
                self.drop_spare();
            }
        } else if self.fill * 2 <= self.slots_per_chunk {
            self.trim_first();
        }
    }

    #[cold]
    fn drop_spare(&mut self) {
        self.chunks.truncate(self.tail + 1);
        if self.chunks.len() * 4 <= self.chunks.capacity() {
            self.chunks.shrink_to(self.chunks.len() * 2);
        }
    }

    /// The tail is the first chunk, at most half full.
    fn trim_first(&mut self) {
        if self.chunks.len() > 1 {
            self.drop_spare();
        }
        let bytes = self.chunks[0].len();
        if self.fill * self.stride * 4 <= bytes && bytes > FIRST_KEPT_BYTES.max(self.first_slots() * self.stride) {
            let slots = (self.fill * 2).max(self.first_slots());
            self.resize_first(slots * self.stride);
        }
    }

    fn first_slots(&self) -> usize {
        (FIRST_BYTES / self.stride).max(1)
    }

    #[cold]
    fn resize_first(&mut self, bytes: usize) {
        let mut resized = zeroed(bytes);
        let used = self.fill * self.stride;
        resized[..used].copy_from_slice(&self.chunks[0][..used]);
        self.chunks[0] = resized;
    }
}

#[cfg(test)]
impl Dense {
    /// Asserts the invariants; returns each object's handle with its place.
    pub(super) fn verify(&self) -> Vec<(u32, u32)> {
        assert!(self.fill > 0 || self.tail == 0);
        assert!(self.chunks.len() <= self.tail + 2);
        let mut objects = Vec::new();
        for chunk in 0..=self.tail {
            let slots = if chunk == self.tail { self.fill } else { self.slots_per_chunk };
            for slot in 0..slots {
                let start = slot * self.stride;
                let back_reference = self.chunks[chunk][start..].first_chunk().unwrap();
                objects.push((u32::from_le_bytes(*back_reference), self.place(chunk, slot)));
            }
        }
        objects
    }

    pub(super) fn chunk_bytes(&self) -> usize {
        self.slots_per_chunk * self.stride
    }
}

fn zeroed(bytes: usize) -> Box<[u8]> {
    vec![0; bytes].into_boxed_slice()
}

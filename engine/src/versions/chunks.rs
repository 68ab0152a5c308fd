//! Chunks of state by content: each is stored once, however many versions and tasks of the partition have it.
//!
//! While a snapshot is written a chunk that belongs to it may be pinned: it stays until its bytes are written, although the
//! last version that named it went.

use hashbrown::HashTable;
use taskmaster_protocol::state::{Address, address_of};

use crate::arena::{Arena, Handle};
use crate::hash::mix64;

struct Chunk {
    address: Address,
    refs: u64,
    blob: Handle,
    len: u32,
    /// Number of the snapshot that it was pinned for last, and its number there.
    snapshot: u32,
    number: u32,
    pinned: bool,
    /// The telling in which the store outside was told of it last. Volatile.
    told: u32,
}

/// The store.
#[derive(Default)]
pub(crate) struct Chunks {
    items: Vec<Chunk>,
    free: Vec<u32>,
    by_address: HashTable<u32>,
}

/// Addresses are hashes already.
fn hash_of(address: &Address) -> u64 {
    u64::from_le_bytes(*address.first_chunk().expect("an address has 32 bytes"))
}

impl Chunks {
    /// Takes a reference to the chunk with these bytes, stored if nobody has it; whether it is new.
    pub(crate) fn add(&mut self, bytes: &[u8], arena: &mut Arena) -> (u32, bool) {
        let address = address_of(bytes);
        if let Some(&index) = self.by_address.find(hash_of(&address), |&i| self.items[i as usize].address == address) {
            let is_new = self.items[index as usize].refs == 0;
            self.retain(index);
            return (index, is_new);
        }
        let blob = crate::command::submit::store(arena, bytes);
        let len = u32::try_from(bytes.len()).expect("chunks are bounded");
        let chunk = Chunk { address, refs: 1, blob, len, snapshot: 0, number: 0, pinned: false, told: 0 };
        let index = if let Some(index) = self.free.pop() {
            self.items[index as usize] = chunk;
            index
        } else {
            self.items.push(chunk);
            u32::try_from(self.items.len() - 1).expect("the arena has fewer handles")
        };
        let items = &self.items;
        self.by_address.insert_unique(hash_of(&address), index, |&i| hash_of(&items[i as usize].address));
        (index, true)
    }

    /// Takes a reference to the chunk of an address, if it is there.
    pub(crate) fn retain_known(&mut self, address: &Address) -> Option<u32> {
        let index = *self.by_address.find(hash_of(address), |&i| self.items[i as usize].address == *address)?;
        self.retain(index);
        Some(index)
    }

    pub(crate) fn retain(&mut self, index: u32) {
        self.items[index as usize].refs += 1;
    }

    /// Gives a reference to each of these up.
    pub(crate) fn release(&mut self, chunks: &[u32], arena: &mut Arena) {
        for &index in chunks {
            self.items[index as usize].refs -= 1;
            self.drop_unused(index, arena);
        }
    }

    fn drop_unused(&mut self, index: u32, arena: &mut Arena) {
        let chunk = &self.items[index as usize];
        if chunk.refs > 0 || chunk.pinned {
            return;
        }
        arena.free(chunk.blob);
        if let Ok(entry) = self.by_address.find_entry(hash_of(&chunk.address), |&other| other == index) {
            entry.remove();
        }
        self.items[index as usize].blob = Handle::NONE;
        self.free.push(index);
    }

    pub(crate) fn address(&self, index: u32) -> &Address {
        &self.items[index as usize].address
    }

    pub(crate) fn bytes<'a>(&self, index: u32, arena: &'a Arena) -> &'a [u8] {
        arena.get(self.items[index as usize].blob)
    }

    /// Length in bytes.
    pub(crate) fn len_of(&self, index: u32) -> u32 {
        self.items[index as usize].len
    }

    /// Whether the store outside was told of it in a telling.
    pub(crate) fn is_told(&self, index: u32, telling: u32) -> bool {
        self.items[index as usize].told == telling
    }

    /// It was.
    pub(crate) fn tell(&mut self, index: u32, telling: u32) {
        self.items[index as usize].told = telling;
    }

    /// Numbers a chunk for a snapshot and keeps it until [`Self::unpin`]; whether it was not numbered for that one before.
    pub(crate) fn pin(&mut self, index: u32, snapshot: u32, next: u32) -> bool {
        let chunk = &mut self.items[index as usize];
        let is_first = chunk.snapshot != snapshot;
        if is_first {
            (chunk.snapshot, chunk.number, chunk.pinned) = (snapshot, next, true);
        }
        is_first
    }

    /// Its number in the snapshot that it was pinned for last.
    pub(crate) fn number(&self, index: u32) -> u32 {
        self.items[index as usize].number
    }

    pub(crate) fn unpin(&mut self, index: u32, arena: &mut Arena) {
        self.items[index as usize].pinned = false;
        self.drop_unused(index, arena);
    }

    /// Frees all bytes, before the partition is dropped.
    pub(crate) fn clear(&mut self, arena: &mut Arena) {
        for chunk in self.items.drain(..) {
            arena.free(chunk.blob);
        }
        *self = Self::default();
    }

    /// A sum over chunks that are referred to, whatever their order.
    pub(crate) fn digest(&self) -> u64 {
        let live = self.items.iter().filter(|chunk| chunk.refs > 0);
        live.fold(0, |sum, chunk| sum.wrapping_add(mix64(hash_of(&chunk.address) ^ chunk.refs.rotate_left(32))))
    }

    pub(crate) fn reserved_bytes(&self) -> usize {
        self.items.capacity() * size_of::<Chunk>() + self.free.capacity() * 4 + self.by_address.allocation_size()
    }

    /// Chunks stored, and references to them.
    #[cfg(test)]
    pub(crate) fn counts(&self) -> (usize, u64) {
        (self.items.len() - self.free.len(), self.items.iter().map(|chunk| chunk.refs).sum())
    }
}

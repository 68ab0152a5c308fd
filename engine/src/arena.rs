//! Payload and result store behind relocatable handles.
//!
//! Objects of up to 16 KiB live in dense arrays, one per size class: freeing moves the array's last object into the hole
//! and updates that object's entry in the handle table through a 4-byte back-reference. Arrays therefore have no holes,
//! whatever the order of frees, and give memory back chunk by chunk. Larger objects are allocations of their own.
//! Users see only the handle; nothing outside may assume where the bytes are or that they stay. An object may be demoted: it goes on
//! under its handle, outside of memory, and counts no longer against any bound but its handle's.
//!
//! Invariants
//! - One free moves at most one object, of the freed object's class, so no call has a pause that grows with the arena.
//! - The charge of an object that was not demoted depends on its length alone, so whether an allocation fits does not depend on the history of
//!   the arena: a replica restored from a snapshot decides alike. What is reserved beyond the charges is bounded by
//!   1.5 chunks per class in use (136 KiB, or 272 KiB for classes over 2 KiB) and the handle table's holes.
//! - An object of 64 bytes costs 12 more: 8 in the handle table, 4 of back-reference. Classes are 4 bytes apart up to
//!   512 bytes, then 1/16 of the power of two below.
//!
//! A freed handle is used again for later objects; a use after free is caught only until then. Handles mean nothing
//! outside the arena that made them and do not belong in logs or snapshots.

mod class;
mod cold;
mod dense;
mod handles;
mod large;
#[cfg(test)]
mod tests;

use class::{CLASSES, SMALL_MAX_BYTES};
use cold::Cold;
pub use cold::{EXTENT_BYTES, EXTENTS_MAX, Extent};
use dense::Dense;
use handles::{Entry, Handles};
use large::Large;

/// Longest object, in bytes: lengths are stored in 31 bits, of which the last value marks a free handle.
pub const OBJECT_MAX_BYTES: usize = i32::MAX as usize - 1;
/// Objects that are not longer stay where they are: there is little to win.
const DEMOTED_MIN_BYTES: usize = 64;

/// Names one object of an [`Arena`]. Four bytes, with [`Handle::NONE`] for absent or empty objects.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Handle(u32);

impl Handle {
    /// The object of no bytes: costs nothing, reads as empty, and may be freed any number of times.
    pub const NONE: Self = Self(u32::MAX);

    /// True for [`Handle::NONE`].
    #[must_use]
    pub const fn is_none(self) -> bool {
        self.0 == Self::NONE.0
    }
}

impl Default for Handle {
    fn default() -> Self {
        Self::NONE
    }
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.is_none() { f.write_str("Handle(NONE)") } else { write!(f, "Handle({})", self.0) }
    }
}

/// The arena refused an object; nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full {
    /// The arena's limit on charged bytes.
    pub limit_bytes: u64,
    /// Bytes charged at present: objects rounded up to their class, with metadata.
    pub charged_bytes: u64,
    /// Bytes of the objects themselves.
    pub live_bytes: u64,
}

impl std::fmt::Display for Full {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { limit_bytes, charged_bytes, live_bytes } = self;
        write!(f, "arena full: {charged_bytes} of {limit_bytes} bytes are in use ({live_bytes} of objects)")
    }
}

impl std::error::Error for Full {}

/// What an arena holds. All sizes in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Objects, those of no bytes not counted.
    pub objects: u64,
    /// Sum of the lengths asked for.
    pub live_bytes: u64,
    /// Sum of [`Arena::charge_bytes`]: what the limit bounds.
    pub charged_bytes: u64,
    /// Memory taken from the allocator, metadata and slack included.
    pub reserved_bytes: u64,
    /// Of the live bytes those that were demoted.
    pub cold_bytes: u64,
}

/// What became of an object that was to be demoted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Demoted {
    /// It lies outside of memory.
    Moved,
    /// It is there already, or too short for it to be worth while, or too long.
    Stayed,
    /// There is no room: give an extent.
    NoRoom,
}

/// The store. See the module's header for layout and bounds.
pub struct Arena {
    limit_bytes: u64,
    live_bytes: u64,
    charged_bytes: u64,
    handles: Handles,
    classes: Box<[Dense]>,
    large: Large,
    cold: Cold,
}

impl Arena {
    /// An empty arena that refuses objects beyond `limit_bytes` of charges.
    #[must_use]
    pub fn new(limit_bytes: u64) -> Self {
        Self {
            limit_bytes,
            live_bytes: 0,
            charged_bytes: 0,
            handles: Handles::new(),
            classes: (0..CLASSES).map(|class| Dense::new(class::size_bytes(class))).collect(),
            large: Large::new(),
            cold: Cold::default(),
        }
    }

    /// What an object of `len_bytes` counts against the limit: its class's size and its metadata.
    #[must_use]
    pub const fn charge_bytes(len_bytes: usize) -> u64 {
        let stored = match len_bytes {
            0 => return 0,
            1..=SMALL_MAX_BYTES => class::size_bytes(class::of(len_bytes)) + dense::BACK_REFERENCE_BYTES,
            _ => len_bytes + large::OVERHEAD_BYTES,
        };
        (stored + size_of::<Entry>()) as u64
    }

    /// Charges that still fit under the limit.
    #[must_use]
    pub const fn headroom_bytes(&self) -> u64 {
        self.limit_bytes - self.charged_bytes
    }

    /// Stores a copy of `bytes`.
    ///
    /// # Errors
    /// [`Full`] when the charge does not fit under the limit, with nothing changed.
    ///
    /// # Panics
    /// On more than [`OBJECT_MAX_BYTES`] that fit under the limit.
    #[inline]
    pub fn alloc(&mut self, bytes: &[u8]) -> Result<Handle, Full> {
        if bytes.is_empty() {
            return Ok(Handle::NONE);
        }
        let charge = Self::charge_bytes(bytes.len());
        if charge > self.headroom_bytes() {
            return Err(self.full());
        }
        let Some(handle) = self.store(bytes) else { return Err(self.full()) };
        self.charged_bytes += charge;
        self.live_bytes += bytes.len() as u64;
        Ok(Handle(handle))
    }

    /// The object's bytes.
    ///
    /// # Panics
    /// When the handle has been freed (and not been used again since).
    #[inline]
    #[must_use]
    pub fn get(&self, handle: Handle) -> &[u8] {
        if handle.is_none() {
            return &[];
        }
        let entry = self.handles.get(handle.0);
        let len = entry.len();
        if entry.is_cold() {
            self.cold.get(entry.at, len)
        } else if len <= SMALL_MAX_BYTES {
            self.classes[class::of(len)].get(entry.at, len)
        } else {
            self.large.get(entry.at)
        }
    }

    /// The object's length in bytes, without touching the object.
    ///
    /// # Panics
    /// As [`Self::get`].
    #[inline]
    #[must_use]
    pub fn len_of(&self, handle: Handle) -> usize {
        if handle.is_none() { 0 } else { self.handles.get(handle.0).len() }
    }

    /// Gives the object up. Other objects may move; their handles stay valid.
    ///
    /// # Panics
    /// As [`Self::get`].
    #[inline]
    pub fn free(&mut self, handle: Handle) {
        if handle.is_none() {
            return;
        }
        let entry = self.handles.remove(handle.0);
        let len = entry.len();
        self.live_bytes -= len as u64;
        if entry.is_cold() {
            self.cold.remove(entry.at, len);
            self.charged_bytes -= size_of::<Entry>() as u64;
        } else {
            self.take_out(entry.at, len);
            self.charged_bytes -= Self::charge_bytes(len);
        }
    }

    /// Moves an object out of memory.
    ///
    /// # Panics
    /// As [`Self::get`].
    pub fn demote(&mut self, handle: Handle) -> Demoted {
        if handle.is_none() {
            return Demoted::Stayed;
        }
        let entry = self.handles.get(handle.0);
        let len = entry.len();
        if entry.is_cold() || !(DEMOTED_MIN_BYTES..=cold::OBJECT_MAX_BYTES).contains(&len) {
            return Demoted::Stayed;
        }
        let bytes = if len <= SMALL_MAX_BYTES {
            self.classes[class::of(len)].get(entry.at, len)
        } else {
            self.large.get(entry.at)
        };
        let Some(at) = self.cold.push(bytes) else { return Demoted::NoRoom };
        self.take_out(entry.at, len);
        self.handles.set(handle.0, Entry::cold(len, at));
        self.charged_bytes -= Self::charge_bytes(len) - size_of::<Entry>() as u64;
        Demoted::Moved
    }

    /// Whether an object lies outside of memory.
    ///
    /// # Panics
    /// As [`Self::get`].
    #[inline]
    #[must_use]
    pub fn is_demoted(&self, handle: Handle) -> bool {
        !handle.is_none() && self.handles.get(handle.0).is_cold()
    }

    /// What demotes should give another extent.
    #[must_use]
    pub const fn is_short_of_extents(&self) -> bool {
        self.cold.is_short()
    }

    /// There are more empty extents than what should be at hand.
    #[must_use]
    pub const fn has_spare_extent(&self) -> bool {
        self.cold.has_spare()
    }

    /// Takes an extent of [`EXTENT_BYTES`] for what is demoted.
    ///
    /// # Panics
    /// When the arena has [`EXTENTS_MAX`].
    pub fn give_extent(&mut self, extent: Box<dyn Extent>) {
        self.cold.give(extent);
    }

    /// Gives back a spare extent.
    pub fn take_extent(&mut self) -> Option<Box<dyn Extent>> {
        self.cold.take()
    }

    /// Counts and sizes. Looks at every class: for reports, not for hot paths.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let classes: u64 = self.classes.iter().map(Dense::reserved_bytes).sum();
        let own = size_of::<Self>() + size_of_val(&*self.classes);
        Stats {
            objects: self.handles.live(),
            live_bytes: self.live_bytes,
            charged_bytes: self.charged_bytes,
            reserved_bytes: own as u64 + classes + self.large.reserved_bytes() + self.handles.reserved_bytes(),
            cold_bytes: self.cold.live_bytes(),
        }
    }

    /// Removes an object from its array; the last one closes the hole.
    #[inline]
    fn take_out(&mut self, at: u32, len: usize) {
        let moved =
            if len <= SMALL_MAX_BYTES { self.classes[class::of(len)].remove(at) } else { self.large.remove(at) };
        if let Some(moved) = moved {
            self.handles.moved(moved, at);
        }
    }

    /// Places the bytes and makes their handle; `None` when the 32-bit spaces of places or handles are used up.
    #[inline]
    fn store(&mut self, bytes: &[u8]) -> Option<u32> {
        let len = u32::try_from(bytes.len())
            .ok()
            .filter(|_| bytes.len() <= OBJECT_MAX_BYTES)
            .expect("OBJECT_MAX_BYTES bounds it");
        if bytes.len() <= SMALL_MAX_BYTES {
            let class = &mut self.classes[class::of(bytes.len())];
            let at = class.next()?;
            let handle = self.handles.insert(Entry { len, at })?;
            class.push(handle, bytes);
            Some(handle)
        } else {
            let handle = self.handles.insert(Entry { len, at: self.large.next()? })?;
            self.large.push(handle, bytes);
            Some(handle)
        }
    }

    #[cold]
    fn full(&self) -> Full {
        Full { limit_bytes: self.limit_bytes, charged_bytes: self.charged_bytes, live_bytes: self.live_bytes }
    }
}

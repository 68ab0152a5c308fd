//! Objects that were demoted: in extents that the arena was given, whose bytes the system may keep elsewhere than in memory.
//!
//! Objects are appended to one extent after the other and never move; an extent without any is used again. That fits what is demoted,
//! which goes about in the order in which it came: an object that outlives its neighbours keeps their extent.
//!
//! An address is the extent's number above the offset in units of eight bytes.

/// Bytes of an extent. Every object has room in one.
pub const EXTENT_BYTES: usize = 8 << 20;
/// Extents of one arena at most.
pub const EXTENTS_MAX: usize = 1 << (u32::BITS - UNIT_BITS);

/// Longest object that is demoted, in bytes: what a full extent leaves unused is less.
pub(super) const OBJECT_MAX_BYTES: usize = EXTENT_BYTES / 8;
/// Empty extents that are kept at hand.
const RESERVE: usize = 2;
const UNIT_BYTES: usize = 8;
/// Bits of an offset in units.
const UNIT_BITS: u32 = (EXTENT_BYTES / UNIT_BYTES).ilog2();

/// Memory of [`EXTENT_BYTES`] that the system may keep elsewhere, such as the pages of a file.
pub trait Extent: AsRef<[u8]> + AsMut<[u8]> + Send {}

impl<T: AsRef<[u8]> + AsMut<[u8]> + Send> Extent for T {}

pub(super) struct Used {
    extent: Box<dyn Extent>,
    /// Where the next object goes, in bytes.
    fill: usize,
    pub(super) objects: u32,
}

#[derive(Default)]
pub(super) struct Cold {
    /// By number; a number whose extent was taken back is used again.
    pub(super) extents: Vec<Option<Used>>,
    /// Where objects are appended.
    open: Option<usize>,
    /// Extents without objects.
    pub(super) empty: Vec<usize>,
    live_bytes: u64,
}

impl Cold {
    pub(super) const fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    /// Another extent would be of use soon.
    pub(super) const fn is_short(&self) -> bool {
        self.empty.len() < RESERVE
    }

    /// An extent can be taken back.
    pub(super) const fn has_spare(&self) -> bool {
        self.empty.len() > RESERVE
    }

    pub(super) fn give(&mut self, extent: Box<dyn Extent>) {
        debug_assert_eq!((*extent).as_ref().len(), EXTENT_BYTES);
        let used = Some(Used { extent, fill: 0, objects: 0 });
        let number = self.extents.iter().position(Option::is_none).unwrap_or(self.extents.len());
        assert!(number < EXTENTS_MAX, "an arena has at most {EXTENTS_MAX} extents");
        if number == self.extents.len() {
            self.extents.push(used);
        } else {
            self.extents[number] = used;
        }
        self.empty.push(number);
    }

    /// An empty extent beyond those kept at hand.
    pub(super) fn take(&mut self) -> Option<Box<dyn Extent>> {
        if !self.has_spare() {
            return None;
        }
        let number = self.empty.pop()?;
        self.extents[number].take().map(|used| used.extent)
    }

    /// Appends an object; its address, or `None` when no extent has room.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Option<u32> {
        let fits = |used: &Option<Used>| used.as_ref().is_some_and(|used| used.fill + bytes.len() <= EXTENT_BYTES);
        let number = match self.open.filter(|&open| fits(&self.extents[open])) {
            Some(open) => open,
            None => {
                let next = self.empty.pop()?;
                self.open = Some(next);
                next
            }
        };
        let used = self.extents[number].as_mut()?;
        let start = used.fill;
        (*used.extent).as_mut()[start..start + bytes.len()].copy_from_slice(bytes);
        used.fill = (start + bytes.len()).next_multiple_of(UNIT_BYTES);
        used.objects += 1;
        self.live_bytes += bytes.len() as u64;
        let at = (number << UNIT_BITS) | (start / UNIT_BYTES);
        Some(u32::try_from(at).expect("EXTENTS_MAX keeps addresses in 32 bits"))
    }

    pub(super) fn get(&self, at: u32, len: usize) -> &[u8] {
        let (number, start) = split(at);
        let used = self.extents[number].as_ref().expect("an extent with objects is not taken back");
        &(*used.extent).as_ref()[start..start + len]
    }

    pub(super) fn remove(&mut self, at: u32, len: usize) {
        let (number, _) = split(at);
        let used = self.extents[number].as_mut().expect("an extent with objects is not taken back");
        self.live_bytes -= len as u64;
        used.objects -= 1;
        if used.objects == 0 {
            used.fill = 0;
            if self.open == Some(number) {
                self.open = None;
            }
            self.empty.push(number);
        }
    }
}

fn split(at: u32) -> (usize, usize) {
    let (number, unit) = (at >> UNIT_BITS, at & ((1 << UNIT_BITS) - 1));
    (number as usize, unit as usize * UNIT_BYTES)
}

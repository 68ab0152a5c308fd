//! Memory beyond memory: extents that are pages of a file, which the system writes out and drops as it needs room.
//!
//! The file has no name and nothing in it outlives the process: what lies there is in the log and in snapshots, too. Its blocks are allocated
//! before an extent is handed out, so that a full disk is an error here and no signal later; they are given back with the extent.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use memmap2::{MmapMut, MmapOptions};
use rustix::fs::{FallocateFlags, Mode, OFlags};

/// Extents of one size in a file of bounded length. Clones share the file.
#[derive(Clone)]
pub struct Spill {
    inner: Arc<Inner>,
}

struct Inner {
    file: File,
    extent_bytes: usize,
    extents_max: u32,
    /// Places that were given back, and the first that never was handed out.
    free: Mutex<(Vec<u32>, u32)>,
}

impl Spill {
    /// A file in `dir`, which must exist, for at most `bytes_max` in extents of `extent_bytes`, a multiple of the page size.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn open(dir: &Path, extent_bytes: usize, bytes_max: u64) -> io::Result<Self> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR)?;
        let extents_max = u32::try_from(bytes_max / extent_bytes as u64).unwrap_or(u32::MAX);
        let inner = Inner { file: file.into(), extent_bytes, extents_max, free: Mutex::default() };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Another extent, of zeros; `None` when all are handed out. Blocks while the disk is slow.
    ///
    /// # Errors
    /// When the disk is full or does not let its blocks be allocated.
    pub fn extent(&self) -> io::Result<Option<Extent>> {
        let Some(place) = self.inner.take() else { return Ok(None) };
        let mapped = self.inner.map(place);
        if mapped.is_err() {
            self.inner.give_back(place);
        }
        Ok(Some(Extent { bytes: Some(mapped?), place, inner: Arc::clone(&self.inner) }))
    }
}

impl Inner {
    fn take(&self) -> Option<u32> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = free.0.pop() {
            return Some(place);
        }
        (free.1 < self.extents_max).then(|| {
            free.1 += 1;
            free.1 - 1
        })
    }

    fn give_back(&self, place: u32) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).0.push(place);
    }

    fn offset(&self, place: u32) -> u64 {
        u64::from(place) * self.extent_bytes as u64
    }

    #[expect(unsafe_code, reason = "a mapping of a file is sound only if nobody else changes the file")]
    fn map(&self, place: u32) -> io::Result<MmapMut> {
        let offset = self.offset(place);
        rustix::fs::fallocate(&self.file, FallocateFlags::empty(), offset, self.extent_bytes as u64)?;
        let mut options = MmapOptions::new();
        options.offset(offset).len(self.extent_bytes);
        // SAFETY: the file has no name, its descriptor does not leave this struct, and each place is mapped at most once at a time.
        unsafe { options.map_mut(&self.file) }
    }
}

/// Bytes that lie in the file. Dropping it gives their blocks back, which may wait for the disk.
pub struct Extent {
    /// There until the drop.
    bytes: Option<MmapMut>,
    place: u32,
    inner: Arc<Inner>,
}

impl AsRef<[u8]> for Extent {
    fn as_ref(&self) -> &[u8] {
        self.bytes.as_deref().unwrap_or_default()
    }
}

impl AsMut<[u8]> for Extent {
    fn as_mut(&mut self) -> &mut [u8] {
        self.bytes.as_deref_mut().unwrap_or_default()
    }
}

impl Drop for Extent {
    fn drop(&mut self) {
        self.bytes = None;
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let (offset, len) = (self.inner.offset(self.place), self.inner.extent_bytes as u64);
        // A file system without holes keeps the blocks for the next extent of this place.
        let _ = rustix::fs::fallocate(&self.inner.file, hole, offset, len);
        self.inner.give_back(self.place);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    const EXTENT: usize = 1 << 20;

    #[test]
    fn extents_keep_their_bytes_apart_and_give_their_blocks_back() {
        let directory = tempfile::tempdir().unwrap();
        let spill = Spill::open(directory.path(), EXTENT, 3 * EXTENT as u64 + 1).unwrap();
        let blocks = || spill.inner.file.metadata().unwrap().blocks() * 512;
        let mut extents: Vec<Extent> = std::iter::from_fn(|| spill.extent().unwrap()).collect();
        assert_eq!(extents.len(), 3, "the bound holds");
        for (extent, byte) in extents.iter_mut().zip(1..) {
            extent.as_mut().fill(byte);
        }
        for (extent, byte) in extents.iter().zip(1..) {
            assert!(extent.as_ref().len() == EXTENT && extent.as_ref().iter().all(|&found| found == byte));
        }
        assert!(blocks() >= 3 * EXTENT as u64);
        extents.remove(1);
        assert!(blocks() < 3 * EXTENT as u64, "its blocks are free");
        let again = spill.extent().unwrap().unwrap();
        assert!(again.as_ref().iter().all(|&byte| byte == 0));
        assert!(spill.extent().unwrap().is_none());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "the file has no name");
    }
}

//! Memory beyond memory: extents that are pages of a file, which the system writes out and drops as it needs room.
//!
//! The file has no name and nothing in it outlives the process: what lies there is in the log and in snapshots, too. Its blocks are allocated
//! before an extent is handed out, so that a full disk is an error here and no signal later; they are given back with the extent.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use memmap2::{MmapMut, MmapOptions};
use rustix::fs::{FallocateFlags, Mode, OFlags};
use rustix::io::retry_on_intr;

use crate::wal::segments::check_space;

/// The file's name for a moment, where there is no way without.
const NAME: &str = "spill";

/// Extents of one size in a file of bounded length. Clones share the file.
#[derive(Clone)]
pub struct Spill {
    inner: Arc<Inner>,
}

struct Inner {
    file: File,
    dir: PathBuf,
    extent_bytes: usize,
    extents_max: u32,
    reserve_bytes: u64,
    places: Mutex<Places>,
}

#[derive(Default)]
struct Places {
    given_back: Vec<u32>,
    /// The first that never was handed out.
    next: u32,
}

impl Spill {
    /// A file in `dir`, which must exist, for at most `bytes_max` in extents of `extent_bytes`, a multiple of the page size. So much of the
    /// disk is left to others as `reserve_bytes` says.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn open(dir: &Path, extent_bytes: usize, bytes_max: u64, reserve_bytes: u64) -> io::Result<Self> {
        let extents_max = u32::try_from(bytes_max / extent_bytes as u64).unwrap_or(u32::MAX);
        let (file, dir, places) = (nameless(dir)?, dir.to_owned(), Mutex::default());
        let inner = Inner { file, dir, extent_bytes, extents_max, reserve_bytes, places };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Another extent, of any bytes; `None` when all are handed out. Blocks while the disk is slow.
    ///
    /// # Errors
    /// When the disk is as full as it may be, or does not let its blocks be allocated.
    pub fn extent(&self) -> io::Result<Option<Extent>> {
        let Some(place) = self.inner.take() else { return Ok(None) };
        // What was allocated before an error is given back with it.
        let mut extent = Extent { bytes: None, place, inner: Arc::clone(&self.inner) };
        extent.bytes = Some(self.inner.map(place)?);
        Ok(Some(extent))
    }
}

/// A file without a name, where file systems make none one whose name is taken away.
fn nameless(dir: &Path) -> io::Result<File> {
    let (flags, mode) = (OFlags::RDWR | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR);
    if let Ok(file) = rustix::fs::open(dir, flags | OFlags::TMPFILE, mode) {
        return Ok(file.into());
    }
    let path = dir.join(NAME);
    // A process that ended in between has left it.
    let _ = std::fs::remove_file(&path);
    let file = rustix::fs::open(&path, flags | OFlags::CREATE | OFlags::EXCL, mode)?;
    std::fs::remove_file(&path)?;
    Ok(file.into())
}

impl Inner {
    fn take(&self) -> Option<u32> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = places.given_back.pop() {
            return Some(place);
        }
        (places.next < self.extents_max).then(|| {
            places.next += 1;
            places.next - 1
        })
    }

    fn give_back(&self, place: u32) {
        self.places.lock().unwrap_or_else(PoisonError::into_inner).given_back.push(place);
    }

    fn offset(&self, place: u32) -> u64 {
        u64::from(place) * self.extent_bytes as u64
    }

    #[expect(unsafe_code, reason = "a mapping of a file is sound only if nobody else changes the file")]
    fn map(&self, place: u32) -> io::Result<MmapMut> {
        let offset = self.offset(place);
        let len = self.extent_bytes as u64;
        check_space(&self.dir, len, self.reserve_bytes)?;
        retry_on_intr(|| rustix::fs::fallocate(&self.file, FallocateFlags::empty(), offset, len))?;
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
        let _ = retry_on_intr(|| rustix::fs::fallocate(&self.inner.file, hole, offset, len));
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
        let spill = Spill::open(directory.path(), EXTENT, 3 * EXTENT as u64 + 1, 0).unwrap();
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
        assert_eq!(again.as_ref().len(), EXTENT);
        assert!(spill.extent().unwrap().is_none());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "the file has no name");
    }

    #[test]
    fn the_room_that_others_need_is_left_to_them() {
        let directory = tempfile::tempdir().unwrap();
        let spill = Spill::open(directory.path(), EXTENT, 3 * EXTENT as u64, u64::MAX / 2).unwrap();
        for _ in 0..4 {
            assert_eq!(spill.extent().err().map(|error| error.kind()), Some(io::ErrorKind::StorageFull));
        }
        assert_eq!(spill.inner.file.metadata().unwrap().blocks(), 0);
    }
}

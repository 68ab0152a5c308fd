//! The segment files of one log directory.
//!
//! Invariants: a file appears under its number only when it is fully written and durable, and the rename itself is durable
//! before the number is handed out; retired files leave from the lowest number up, so a crash never makes a hole between files
//! that count. Every function blocks: call them before serving, or on a thread that may wait.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::{Segment, SegmentSource};
use crate::buffer::AlignedBuffer;
use crate::reading::ReadFile;

const SUFFIX: &str = "wal";
const UNFINISHED: &str = "unfinished";
/// Bytes of one write while a segment is made.
const FILL_LEN: usize = 1 << 20;

/// Path of segment `number` in `dir`.
#[must_use]
pub fn segment_path(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("{number:010}.{SUFFIX}"))
}

/// Makes entries of `dir` durable.
///
/// # Errors
/// When the directory cannot be opened or flushed.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// The raw value of open flags, as `custom_flags` wants it.
pub(crate) fn raw_flags(flags: OFlags) -> i32 {
    i32::try_from(flags.bits()).expect("open flags fit 31 bits")
}

/// Opens an existing segment for durable writes: direct where the file system can, through the page cache otherwise.
/// Says which.
///
/// # Errors
/// When it cannot be opened either way.
pub fn open_durable(path: &Path) -> io::Result<(File, bool)> {
    let direct = OpenOptions::new().write(true).custom_flags(raw_flags(OFlags::DSYNC | OFlags::DIRECT)).open(path);
    match direct {
        Err(refusal) if refusal.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => {
            Ok((OpenOptions::new().write(true).custom_flags(raw_flags(OFlags::DSYNC)).open(path)?, false))
        }
        result => Ok((result?, true)),
    }
}

/// Makes segment `number`: every byte written with zeros and durable, then renamed into place.
///
/// # Errors
/// When a step fails, a full disk among them; an unfinished file is removed.
pub fn create_segment(dir: &Path, number: u32, len: u64) -> io::Result<Segment> {
    let unfinished = dir.join(format!("{number:010}.{UNFINISHED}"));
    let made = fill(&unfinished, len).and_then(|()| std::fs::rename(&unfinished, segment_path(dir, number)));
    if made.is_err() {
        // The first error is the one to report; a leftover is removed again at the next start.
        let _ = std::fs::remove_file(&unfinished);
    }
    made?;
    sync_dir(dir)?;
    Ok(Segment { number, len })
}

/// Fails as a full disk does when a file of `len` bytes would leave less than `reserve_bytes` free where `dir` is.
///
/// # Errors
/// [`io::ErrorKind::StorageFull`], or what asking the file system failed with.
pub fn check_space(dir: &Path, len: u64, reserve_bytes: u64) -> io::Result<()> {
    let stat = rustix::fs::statvfs(dir)?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free >= len.saturating_add(reserve_bytes) {
        return Ok(());
    }
    let message = format!("{free} bytes are free, {len} are needed and {reserve_bytes} are kept in reserve");
    Err(io::Error::new(io::ErrorKind::StorageFull, message))
}

fn fill(path: &Path, len: u64) -> io::Result<()> {
    let open = |flags: OFlags| {
        OpenOptions::new().write(true).create(true).truncate(true).custom_flags(raw_flags(flags)).open(path)
    };
    let file = open(OFlags::DIRECT).or_else(|_| open(OFlags::empty()))?;
    let zeros = AlignedBuffer::zeroed(FILL_LEN);
    let mut at = 0;
    while at < len {
        let step = usize::try_from(len - at).map_or(FILL_LEN, |rest| rest.min(FILL_LEN));
        file.write_all_at(&zeros.as_ref()[..step], at)?;
        at += u64::try_from(step).expect("a step is small");
    }
    file.sync_all()
}

/// Gives the retired segment `old` the number `number`. Its bytes stay: blocks name their segment, so they count no longer.
///
/// # Errors
/// When the rename or its flush fails.
pub fn reuse_segment(dir: &Path, old: Segment, number: u32) -> io::Result<Segment> {
    std::fs::rename(segment_path(dir, old.number), segment_path(dir, number))?;
    sync_dir(dir)?;
    Ok(Segment { number, len: old.len })
}

/// Deletes the retired segment `old`, durably.
///
/// # Errors
/// When the removal or its flush fails.
pub fn delete_segment(dir: &Path, old: Segment) -> io::Result<()> {
    std::fs::remove_file(segment_path(dir, old.number))?;
    sync_dir(dir)
}

/// The segments of a directory, for recovery.
#[derive(Debug)]
pub struct SegmentFiles {
    dir: PathBuf,
    open: Option<(u32, ReadFile)>,
}

impl SegmentFiles {
    /// Opens the log directory `dir`, makes it if it is not there, and removes segments whose making was interrupted.
    ///
    /// # Errors
    /// When the directory cannot be made, listed or cleaned.
    pub fn open(dir: &Path) -> io::Result<Self> {
        if !dir.exists() {
            std::fs::create_dir_all(dir)?;
            if let Some(parent) = dir.parent() {
                sync_dir(parent)?;
            }
        }
        let mut removed = false;
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == UNFINISHED) {
                std::fs::remove_file(path)?;
                removed = true;
            }
        }
        if removed {
            sync_dir(dir)?;
        }
        let files = Self { dir: dir.to_path_buf(), open: None };
        files.await_direct_writes()?;
        Ok(files)
    }

    /// The log directory `dir` as it is, for reading alone: of a log that is in use, or one that must not be touched.
    #[must_use]
    pub fn as_they_are(dir: &Path) -> Self {
        Self { dir: dir.to_path_buf(), open: None }
    }

    /// Setting a file's length waits for direct writes in flight, so bytes of a process killed a moment ago do not land after
    /// recovery has looked.
    fn await_direct_writes(&self) -> io::Result<()> {
        for segment in self.list()? {
            OpenOptions::new().write(true).open(segment_path(&self.dir, segment.number))?.set_len(segment.len)?;
        }
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<Segment>> {
        let mut segments = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let entry = entry?;
            let path = entry.path();
            if path.extension().is_none_or(|extension| extension != SUFFIX) {
                continue;
            }
            let number = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
            let Some(number) = number.filter(|number| segment_path(&self.dir, *number) == path) else {
                let message = format!("{} is not named like a segment: move it away", path.display());
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            };
            segments.push(Segment { number, len: entry.metadata()?.len() });
        }
        segments.sort_by_key(|segment| segment.number);
        Ok(segments)
    }
}

impl SegmentSource for SegmentFiles {
    fn segments(&mut self) -> io::Result<Vec<Segment>> {
        self.list()
    }

    fn read_at(&mut self, segment: Segment, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if self.open.as_ref().is_none_or(|(number, _)| *number != segment.number) {
            let file = ReadFile::open(&segment_path(&self.dir, segment.number))?;
            self.open = Some((segment.number, file));
        }
        let (_, file) = self.open.as_ref().expect("opened above");
        file.read_exact_at(offset, out)
    }

    fn name(&self, number: u32) -> String {
        segment_path(&self.dir, number).display().to_string()
    }
}

/// Removes, from the highest down, prepared segments that are not `len` long (the configuration has changed) and returns
/// what is left of `prepared`.
///
/// # Errors
/// When a removal fails.
pub(crate) fn drop_misfits(dir: &Path, prepared: &[Segment], len: u64) -> io::Result<Vec<Segment>> {
    let keep = prepared.iter().position(|segment| segment.len != len).unwrap_or(prepared.len());
    for segment in prepared[keep..].iter().rev() {
        delete_segment(dir, *segment)?;
    }
    Ok(prepared[..keep].to_vec())
}

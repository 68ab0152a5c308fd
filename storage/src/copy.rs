//! Copying a shard's files while a node writes them.
//!
//! A copy is what a crash at some moment would have left: one snapshot and the log behind it. Segments are copied from the last
//! to the first, each from its end to its beginning. So a block which says that an earlier one was durable is read before that one,
//! which is then there: the log in the copy ends at a moment and has all that was acknowledged before the copying began.
//!
//! Invariants: the source is only read; a copy was recovered once, record by record, before it is called one; it is durable then.
//! What the node moved meanwhile (it retires segments and prunes snapshots) makes the copy begin again.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::buffer::{AlignedBuffer, PAGE_LEN};
use crate::datadir::WAL;
use crate::reading::{ReadFile, Stream};
use crate::recovery::Sink;
use crate::snapshot::{self, Loaded, snapshot_path};
use crate::wal::format::BlockHeader;
use crate::wal::segments::{SegmentFiles, segment_path, sync_dir};
use crate::wal::{CorruptKind, RecoverError, Recovered, ScanParams, Segment, SegmentSource, recover};

/// Bytes of one read of a segment.
const READ_LEN: usize = 256 << 10;
/// How often a copy is begun before the source counts as damaged.
const TRIES: u32 = 5;

/// Why there is no copy. What is there of it is of no use.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file operation failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No snapshot could be read, or the sink refused one.
    #[error(transparent)]
    Snapshot(#[from] snapshot::Error),
    /// The log could not be read back, or the sink refused a record.
    #[error(transparent)]
    Log(#[from] RecoverError),
    /// Each time something was missing from the copy.
    #[error(
        "the node wrote faster than it could be copied, {TRIES} times: try again at a quieter time or when it is stopped (if it is \
         stopped already, its data is damaged); the last time: {0}"
    )]
    Outrun(Box<Error>),
}

impl Error {
    /// Whether it may be due to a node that went on writing.
    fn may_pass(&self) -> bool {
        use CorruptKind::{BlockLost, ChainBroken, SegmentMissing, SnapshotUncovered};
        match self {
            Self::Io { source, .. } => source.kind() == io::ErrorKind::NotFound,
            Self::Snapshot(_) => false,
            Self::Log(RecoverError::Corrupt { kind, .. }) => {
                matches!(kind, BlockLost | ChainBroken | SegmentMissing | SnapshotUncovered)
            }
            Self::Log(_) | Self::Outrun(_) => false,
        }
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io { path: path.to_path_buf(), source }
}

/// Copies the shard in the directory `from` to the new directory `to`, and reads the copy into what `begin` makes, which it
/// returns. Tells `on_bytes` of bytes as they are copied. Blocks.
///
/// # Errors
/// See [`Error`].
pub fn copy_shard<S: Sink>(
    from: &Path,
    to: &Path,
    identity: u64,
    begin: impl Fn() -> S,
    on_bytes: &mut impl FnMut(u64),
) -> Result<S, Error> {
    let (mut tries, mut passed_over) = (1, 0);
    loop {
        let mut sink = begin();
        match try_copy(from, to, identity, passed_over, &mut sink, on_bytes) {
            Ok(()) => return Ok(sink),
            // The snapshot before it, and the log from there on, are as good.
            Err(Error::Snapshot(snapshot::Error::Damaged { .. })) if passed_over + 1 < snapshots(from)?.len() => {
                passed_over += 1;
            }
            Err(error) if error.may_pass() && tries < TRIES => tries += 1,
            Err(error) if error.may_pass() => return Err(Error::Outrun(Box::new(error))),
            Err(error) => return Err(error),
        }
        std::fs::remove_dir_all(to).map_err(at(to))?;
    }
}

/// Reads a copy into `sink`, and changes nothing.
///
/// # Errors
/// See [`Error`]; throw the sink's state away.
pub fn read_shard(dir: &Path, identity: u64, sink: &mut impl Sink) -> Result<Recovered, Error> {
    read(dir, identity, 0, sink)
}

fn read(dir: &Path, identity: u64, reach_seq: u64, sink: &mut impl Sink) -> Result<Recovered, Error> {
    let Loaded { info, mut rejected, .. } = snapshot::load(dir, identity, sink)?;
    if let Some(damaged) = rejected.pop() {
        return Err(damaged.into());
    }
    let params = ScanParams { identity, after_seq: info.map_or(0, |info| info.seq), reach_seq };
    Ok(recover(&mut SegmentFiles::as_they_are(&dir.join(WAL)), params, |record| sink.record(record))?)
}

fn snapshots(dir: &Path) -> Result<Vec<u64>, Error> {
    Ok(snapshot::list(dir)?)
}

fn try_copy(
    from: &Path,
    to: &Path,
    identity: u64,
    passed_over: usize,
    sink: &mut impl Sink,
    on_bytes: &mut impl FnMut(u64),
) -> Result<(), Error> {
    let (wal_from, wal_to) = (from.join(WAL), to.join(WAL));
    std::fs::create_dir_all(&wal_to).map_err(at(&wal_to))?;
    let seqs = snapshots(from)?;
    let after_seq = match seqs.get(passed_over) {
        None => 0,
        Some(&seq) => {
            copy_file(&snapshot_path(from, seq), &snapshot_path(to, seq), on_bytes)?;
            seq
        }
    };
    let listed = SegmentFiles::as_they_are(&wal_from).segments();
    let segments = listed.map_err(at(&wal_from))?;
    let mut copied = Vec::new();
    for &segment in segments.iter().rev() {
        let begins = copy_segment(&wal_from, &wal_to, segment, on_bytes)?;
        copied.push(segment);
        if begins.is_some_and(|seq| seq <= after_seq + 1) {
            break;
        }
    }
    let end = read(to, identity, seqs.first().copied().unwrap_or(0), sink)?.end;
    // Those that were only made ready hold nothing.
    for segment in
        copied.into_iter().filter(|segment| end.used.iter().all(|used| used.segment.number != segment.number))
    {
        let path = segment_path(&wal_to, segment.number);
        std::fs::remove_file(&path).map_err(at(&path))?;
    }
    [&wal_to, to].into_iter().try_for_each(|dir| sync_dir(dir).map_err(at(dir)))
}

fn copy_file(from: &Path, to: &Path, on_bytes: &mut impl FnMut(u64)) -> Result<(), Error> {
    let mut input = Stream::open(from).map_err(at(from))?;
    let copy = |input: &mut Stream| {
        let mut file = File::create_new(to)?;
        let copied = io::copy(input, &mut file)?;
        file.sync_all().map(|()| copied)
    };
    on_bytes(copy(&mut input).map_err(at(to))?);
    Ok(())
}

/// Copies a segment backwards. The seq of the block that it begins with, if that is one of its own.
fn copy_segment(
    wal_from: &Path,
    wal_to: &Path,
    segment: Segment,
    on_bytes: &mut impl FnMut(u64),
) -> Result<Option<u64>, Error> {
    use std::os::unix::fs::FileExt;
    let (from, to) = (segment_path(wal_from, segment.number), segment_path(wal_to, segment.number));
    let input = ReadFile::open(&from).map_err(at(&from))?;
    let output = File::create_new(&to).map_err(at(&to))?;
    let mut buffer = AlignedBuffer::zeroed(READ_LEN);
    let mut end = segment.len;
    while end > 0 {
        let len = usize::try_from(end).map_or(READ_LEN, |rest| rest.min(READ_LEN));
        let start = end - u64::try_from(len).expect("a read is small");
        let bytes = &mut buffer.as_mut()[..len];
        input.read_exact_at(start, bytes).map_err(at(&from))?;
        // What was never written stays a hole, and at the end is left out.
        if bytes.iter().any(|byte| *byte != 0) {
            output.write_all_at(bytes, start).map_err(at(&to))?;
        }
        on_bytes(end - start);
        end = start;
    }
    output.sync_all().map_err(at(&to))?;
    let first = buffer.as_ref().get(..PAGE_LEN).filter(|_| segment.len > 0).and_then(BlockHeader::decode);
    Ok(first.filter(|header| header.segment == segment.number).map(|header| header.seq))
}

//! Snapshots: the state up to a position of the log, in checksummed chunks, in a file that is there whole or not at all.
//!
//! `format` is the bytes (pure), `file` writes them (blocking, and in the background on glommio), this file reads, lists and
//! prunes. `docs/formats/snapshot.md` is the layout in prose.
//! Invariants: a snapshot counts only when its footer agrees with all before it; the newest two are kept, so that one damaged
//! file costs a longer replay and not the data. It does not know what the chunks mean.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::buffer::{AlignedBuffer, round_up};
use crate::reading::Stream;
use crate::wal::ApplyError;
use crate::wal::segments::sync_dir;

mod file;
pub mod format;

pub use file::{BackgroundSnapshot, SnapshotFile};
pub use format::{ChunkTag, Info};

use format::{CHUNK_ALIGN, CHUNK_HEADER_LEN, Decoder, HEADER_LEN, Step};

/// Snapshots that [`prune`] keeps.
pub const KEPT: usize = 2;
const SUFFIX: &str = "snap";
const UNFINISHED: &str = "unfinished";

/// What can go wrong with a snapshot.
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
    /// The file is not a whole, undamaged snapshot.
    #[error("{}: byte {offset}: {problem}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// What is wrong.
        problem: String,
    },
    /// The caller refused the content.
    #[error("{}: {source}", path.display())]
    Apply {
        /// The file.
        path: PathBuf,
        /// The caller's reason.
        source: ApplyError,
    },
}

/// Receives a snapshot's content. [`Sink::begin`] may come again when a damaged snapshot gives way to an older one: it
/// throws away what came before.
pub trait Sink {
    /// A snapshot begins.
    ///
    /// # Errors
    /// Any; reading stops with [`Error::Apply`].
    fn begin(&mut self, info: &Info) -> Result<(), ApplyError>;

    /// The next chunk, its bytes 16-byte aligned.
    ///
    /// # Errors
    /// Any; reading stops with [`Error::Apply`].
    fn chunk(&mut self, tag: ChunkTag, bytes: &[u8]) -> Result<(), ApplyError>;
}

/// Path of the snapshot that covers the log up to `seq`.
#[must_use]
pub fn snapshot_path(dir: &Path, seq: u64) -> PathBuf {
    dir.join(format!("snapshot-{seq:020}.{SUFFIX}"))
}

/// The seqs of the snapshots in `dir`, newest first. Unfinished files are not among them.
///
/// # Errors
/// [`Error::Io`].
pub fn list(dir: &Path) -> Result<Vec<u64>, Error> {
    let failed = |source| Error::Io { path: dir.to_path_buf(), source };
    let mut seqs = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        let seq = stem.and_then(|stem| stem.strip_prefix("snapshot-")).and_then(|digits| digits.parse().ok());
        seqs.extend(seq.filter(|seq| snapshot_path(dir, *seq) == path));
    }
    seqs.sort_unstable_by(|left, right| right.cmp(left));
    Ok(seqs)
}

/// Removes unfinished snapshots and all but the newest [`KEPT`]. Returns the seq of the oldest kept one once there are
/// [`KEPT`]: the log up to it is needed no longer.
///
/// # Errors
/// [`Error::Io`].
pub fn prune(dir: &Path) -> Result<Option<u64>, Error> {
    let failed = |source| Error::Io { path: dir.to_path_buf(), source };
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with("snapshot-") && path.extension().is_some_and(|extension| extension == UNFINISHED) {
            std::fs::remove_file(path).map_err(failed)?;
        }
    }
    let seqs = list(dir)?;
    for seq in seqs.iter().skip(KEPT) {
        std::fs::remove_file(snapshot_path(dir, *seq)).map_err(failed)?;
    }
    sync_dir(dir).map_err(failed)?;
    Ok(seqs.get(KEPT - 1).copied())
}

/// Reads one snapshot into `sink`, verifying every byte.
///
/// # Errors
/// [`Error::Damaged`] when it is not whole or belongs elsewhere; the sink has got what came before the damage.
pub fn read(path: &Path, identity: u64, sink: &mut impl Sink) -> Result<Info, Error> {
    let input = Stream::open(path).map_err(|source| Error::Io { path: path.to_path_buf(), source })?;
    let mut reader = Reader { path, input, offset: 0 };
    let mut buffer = AlignedBuffer::zeroed(1 << 20);
    reader.fill(&mut buffer.as_mut()[..HEADER_LEN])?;
    let (mut decoder, info) =
        Decoder::start(&buffer.as_ref()[..HEADER_LEN], identity).map_err(|problem| reader.damaged(problem))?;
    let applied = |source| Error::Apply { path: path.to_path_buf(), source };
    sink.begin(&info).map_err(applied)?;
    loop {
        let mut header = [0; CHUNK_HEADER_LEN];
        reader.fill(&mut header)?;
        let chunk = decoder.chunk(&header).map_err(|problem| reader.damaged(problem))?;
        let stored = round_up(chunk.len, CHUNK_ALIGN);
        if buffer.as_ref().len() < stored {
            buffer = AlignedBuffer::zeroed(stored);
        }
        reader.fill(&mut buffer.as_mut()[..stored])?;
        let bytes = &buffer.as_ref()[..stored];
        match decoder.body(&chunk, bytes).map_err(|problem| reader.damaged(problem))? {
            Step::Chunk(bytes) => sink.chunk(chunk.tag, bytes).map_err(applied)?,
            Step::End => break,
        }
    }
    if reader.input.read(&mut [0]).map_err(|source| Error::Io { path: path.to_path_buf(), source })? > 0 {
        return Err(reader.damaged("bytes follow the footer".to_owned()));
    }
    Ok(info)
}

struct Reader<'a> {
    path: &'a Path,
    input: Stream,
    offset: u64,
}

impl Reader<'_> {
    fn damaged(&self, problem: String) -> Error {
        Error::Damaged { path: self.path.to_path_buf(), offset: self.offset, problem }
    }

    fn fill(&mut self, out: &mut [u8]) -> Result<(), Error> {
        match self.input.read_exact(out) {
            Ok(()) => {
                self.offset += u64::try_from(out.len()).expect("usize has at most 64 bits");
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(self.damaged("the file ends before its footer: it was not finished or was cut".to_owned()))
            }
            Err(source) => Err(Error::Io { path: self.path.to_path_buf(), source }),
        }
    }
}

/// What [`load`] found.
#[derive(Debug)]
pub struct Loaded {
    /// The snapshot the sink holds; without one it holds nothing, and the log must reach back to its beginning.
    pub info: Option<Info>,
    /// Newer snapshots that were damaged: to be reported as warnings.
    pub rejected: Vec<Error>,
    /// Seq of the newest snapshot file, damaged or not, 0 without one: the log must reach it.
    pub newest_seq: u64,
}

/// Loads the newest whole snapshot of `dir` into `sink`.
///
/// # Errors
/// [`Error::Io`] and [`Error::Apply`]; a damaged snapshot is passed over and listed in the result.
pub fn load(dir: &Path, identity: u64, sink: &mut impl Sink) -> Result<Loaded, Error> {
    let seqs = list(dir)?;
    let mut loaded = Loaded { info: None, rejected: Vec::new(), newest_seq: seqs.first().copied().unwrap_or(0) };
    for seq in seqs {
        match read(&snapshot_path(dir, seq), identity, sink) {
            Ok(info) => {
                loaded.info = Some(info);
                return Ok(loaded);
            }
            Err(damaged @ Error::Damaged { .. }) => loaded.rejected.push(damaged),
            Err(error) => return Err(error),
        }
    }
    Ok(loaded)
}

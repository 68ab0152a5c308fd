//! The data directory: one lock, one description, one directory per shard.
//!
//! ```text
//! <dir>/lock                      held while a node runs; contains its process id
//! <dir>/meta.toml                 format version, id, shards, partitions, checksum
//! <dir>/shard-000/term            how often this shard was started
//! <dir>/shard-000/wal/            the shard's log
//! <dir>/shard-000/snapshot-*.snap its snapshots
//! <dir>/shard-000/model           what its scheduler learned
//! ```
//!
//! Invariants: a directory is used by one process at a time; a directory that is not ours, or of a newer format, is left as it
//! is; the description appears whole or not at all. It does not know what the shards keep.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::wal::segments::sync_dir;

/// Format of the directory as a whole.
pub const FORMAT_VERSION: u32 = 1;

/// Name of the description.
pub const META: &str = "meta.toml";
/// Name of the log's directory in that of its shard.
pub const WAL: &str = "wal";

/// Name of the lock.
pub const LOCK: &str = "lock";

const META_UNFINISHED: &str = "meta.toml.unfinished";
const TERM: &str = "term";
const TERM_MAGIC: &str = "taskmaster-term-1";

/// Why a data directory could not be opened. It is as it was.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process uses it.
    #[error("{} is in use by {holder}: stop that node, or give this one its own data directory", dir.display())]
    InUse {
        /// The directory.
        dir: PathBuf,
        /// Who holds it, in words.
        holder: String,
    },
    /// It holds files and no description.
    #[error(
        "{} holds {entry:?} and is not a taskmaster data directory: give an empty or a new directory, \
         or the one this node used before", dir.display()
    )]
    NotOurs {
        /// The directory.
        dir: PathBuf,
        /// One entry that is not ours.
        entry: String,
    },
    /// A newer version wrote it.
    #[error(
        "{} has data format {found}; this version reads up to {FORMAT_VERSION}: start the version that wrote it, or a newer one",
        dir.display()
    )]
    NewerFormat {
        /// The directory.
        dir: PathBuf,
        /// Its format.
        found: u32,
    },
    /// The description cannot be understood.
    #[error("{}: {problem}: restore the file from a copy; it is never edited by hand", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The configuration does not fit what the directory was made for.
    #[error("{} was made for {found} {what} and {wanted} are configured: configure {found}, or use a new directory", dir.display())]
    Differs {
        /// The directory.
        dir: PathBuf,
        /// `shards` or `partitions`.
        what: &'static str,
        /// What it was made for.
        found: u32,
        /// What is configured.
        wanted: u32,
    },
    /// A file operation failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io { path: path.to_path_buf(), source }
}

/// What a data directory was made for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// 128-bit id of the node's data, random, made once; it must differ between any two directories.
    pub id: u128,
    /// Shards that share the partitions.
    pub shards: u32,
    /// Partitions of the cluster.
    pub partitions: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MetaFile {
    format: u32,
    id: String,
    shards: u32,
    partitions: u32,
    checksum: String,
}

/// Only what every format, past and future, has.
#[derive(Deserialize)]
struct AnyMetaFile {
    format: u32,
}

impl Meta {
    /// The identity that the blocks and snapshots of a shard carry: FNV-1a of the id and the shard's number.
    #[must_use]
    pub fn identity(&self, shard: u32) -> u64 {
        let bytes = self.id.to_le_bytes().into_iter().chain(shard.to_le_bytes());
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
    }

    fn checksum(&self) -> String {
        let text = format!("{FORMAT_VERSION} {:032x} {} {}", self.id, self.shards, self.partitions);
        format!("{:08x}", crc32c::crc32c(text.as_bytes()))
    }

    fn to_toml(&self) -> String {
        let file = MetaFile {
            format: FORMAT_VERSION,
            id: format!("{:032x}", self.id),
            shards: self.shards,
            partitions: self.partitions,
            checksum: self.checksum(),
        };
        let body = toml::to_string(&file).expect("numbers and strings are always TOML");
        format!("# Written by taskmaster when it made this data directory. Do not edit.\n{body}")
    }

    fn read(dir: &Path) -> Result<Self, Error> {
        let path = dir.join(META);
        let text = std::fs::read_to_string(&path).map_err(at(&path))?;
        let damaged = |problem: String| Error::Damaged { path: path.clone(), problem };
        let any: AnyMetaFile = toml::from_str(&text).map_err(|error| damaged(error.message().to_owned()))?;
        if any.format > FORMAT_VERSION {
            return Err(Error::NewerFormat { dir: dir.to_path_buf(), found: any.format });
        }
        let file: MetaFile = toml::from_str(&text).map_err(|error| damaged(error.message().to_owned()))?;
        let id =
            u128::from_str_radix(&file.id, 16).map_err(|_| damaged("the id is not a 128-bit number".to_owned()))?;
        let meta = Self { id, shards: file.shards, partitions: file.partitions };
        if file.checksum != meta.checksum() {
            return Err(damaged("the checksum does not fit the contents".to_owned()));
        }
        Ok(meta)
    }
}

/// An open, locked data directory. Dropping it releases the lock.
#[derive(Debug)]
pub struct DataDir {
    root: PathBuf,
    meta: Meta,
    created: bool,
    lock: File,
}

impl DataDir {
    /// Opens `root`, or makes it (and its parents) when it is absent or empty. `wanted.id` is used only for a new directory; an
    /// existing one keeps its id and must have the shards and partitions wanted.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn open_or_create(root: &Path, wanted: &Meta) -> Result<Self, Error> {
        make_dir(root)?;
        refuse_strangers(root)?;
        let lock = lock(root)?;
        let created = !root.join(META).exists();
        if created {
            write_whole(root, META_UNFINISHED, META, wanted.to_toml().as_bytes())?;
        }
        let meta = Meta::read(root)?;
        let counts = [("shards", meta.shards, wanted.shards), ("partitions", meta.partitions, wanted.partitions)];
        for (what, found, wanted) in counts {
            if found != wanted {
                return Err(Error::Differs { dir: root.to_path_buf(), what, found, wanted });
            }
        }
        let data_dir = Self { root: root.to_path_buf(), meta, created, lock };
        for shard in 0..data_dir.meta.shards {
            make_dir(&data_dir.wal_dir(shard))?;
        }
        Ok(data_dir)
    }

    /// The description of a directory, without locking it; `None` when there is none yet.
    ///
    /// # Errors
    /// [`Error::NewerFormat`], [`Error::Damaged`], [`Error::Io`].
    pub fn peek(root: &Path) -> Result<Option<Meta>, Error> {
        if root.join(META).exists() { Meta::read(root).map(Some) } else { Ok(None) }
    }

    /// Opens a directory that is there, with what it was made for: for looking at it while no node uses it.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn open_as_it_is(root: &Path) -> Result<Self, Error> {
        let meta = Meta::read(root)?;
        Ok(Self { root: root.to_path_buf(), meta, created: false, lock: lock(root)? })
    }

    /// Its path.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What it was made for.
    #[must_use]
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// True when this call made it.
    #[must_use]
    pub fn was_created(&self) -> bool {
        self.created
    }

    /// Directory of a shard: its snapshots and term.
    #[must_use]
    pub fn shard_dir(&self, shard: u32) -> PathBuf {
        shard_dir(&self.root, shard)
    }

    /// Directory of a shard's log.
    #[must_use]
    pub fn wal_dir(&self, shard: u32) -> PathBuf {
        self.shard_dir(shard).join(WAL)
    }

    /// As [`Meta::identity`].
    #[must_use]
    pub fn identity(&self, shard: u32) -> u64 {
        self.meta.identity(shard)
    }

    /// Raises a shard's term durably and returns it: greater than every term before and than `at_least`, the last one that the
    /// recovered log holds.
    ///
    /// # Errors
    /// [`Error::Damaged`] and [`Error::Io`].
    pub fn next_term(&self, shard: u32, at_least: u32) -> Result<u32, Error> {
        let dir = self.shard_dir(shard);
        let path = dir.join(TERM);
        let stored = match std::fs::read_to_string(&path) {
            Ok(text) => parse_term(&text)
                .ok_or_else(|| Error::Damaged { path: path.clone(), problem: "it does not hold a term".to_owned() })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(source) => return Err(Error::Io { path, source }),
        };
        let term = stored.max(at_least).checked_add(1);
        let term =
            term.ok_or_else(|| Error::Damaged { path, problem: "its term is the last possible one".to_owned() })?;
        write_whole(&dir, "term.unfinished", TERM, term_text(term).as_bytes())?;
        Ok(term)
    }
}

/// Directory of a shard in the data directory `root`.
#[must_use]
pub fn shard_dir(root: &Path, shard: u32) -> PathBuf {
    root.join(format!("shard-{shard:03}"))
}

/// Room of a file system, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// All of it.
    pub bytes: u64,
    /// What is free for this process.
    pub free: u64,
}

impl Room {
    /// That of the file system that holds a directory.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn at(dir: &Path) -> Result<Self, Error> {
        let stat = rustix::fs::statvfs(dir).map_err(|errno| at(dir)(errno.into()))?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        Ok(Self { bytes: bytes(stat.f_blocks), free: bytes(stat.f_bavail) })
    }
}

fn term_text(term: u32) -> String {
    let text = format!("{TERM_MAGIC} {term}");
    format!("{text} {:08x}\n", crc32c::crc32c(text.as_bytes()))
}

fn parse_term(text: &str) -> Option<u32> {
    let term = text.split(' ').nth(1)?.parse().ok()?;
    (term_text(term) == text).then_some(term)
}

/// Makes a directory and its parents, each durable in its own parent.
fn make_dir(dir: &Path) -> Result<(), Error> {
    if dir.is_dir() {
        return Ok(());
    }
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    make_dir(parent)?;
    match std::fs::create_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(at(dir)(error)),
        _ => sync_dir(parent).map_err(at(parent)),
    }
}

fn refuse_strangers(root: &Path) -> Result<(), Error> {
    if root.join(META).exists() {
        return Ok(());
    }
    for entry in std::fs::read_dir(root).map_err(at(root))? {
        let name = entry.map_err(at(root))?.file_name().to_string_lossy().into_owned();
        if ![LOCK, META_UNFINISHED, "lost+found"].contains(&name.as_str()) {
            return Err(Error::NotOurs { dir: root.to_path_buf(), entry: name });
        }
    }
    Ok(())
}

impl Drop for DataDir {
    fn drop(&mut self) {
        // Closing alone is not enough: a process that is being started holds a copy of the descriptor until it executes its
        // program. A failure leaves the lock to the end of that copy.
        let _ = self.lock.unlock();
    }
}

fn lock(root: &Path) -> Result<File, Error> {
    let path = root.join(LOCK);
    let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let mut file = options.map_err(at(&path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::Error(source)) => return Err(Error::Io { path, source }),
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            let named = file.read_to_string(&mut text).is_ok() && text.trim().parse::<u32>().is_ok();
            let holder = if named { format!("process {}", text.trim()) } else { "another process".to_owned() };
            return Err(Error::InUse { dir: root.to_path_buf(), holder });
        }
    }
    file.set_len(0).map_err(at(&path))?;
    writeln!(file, "{}", std::process::id()).map_err(at(&path))?;
    Ok(file)
}

/// Writes `name` in `dir` so that it is there whole and durably, or as it was.
pub(crate) fn write_whole(dir: &Path, unfinished: &str, name: &str, bytes: &[u8]) -> Result<(), Error> {
    let path = dir.join(unfinished);
    let write = || {
        let mut file = File::create(&path)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&path, dir.join(name))?;
        sync_dir(dir)
    };
    write().map_err(at(&path))
}

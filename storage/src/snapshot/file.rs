//! Writing a snapshot: under a temporary name until it is whole and durable.
//!
//! Invariants: the final name appears only by a rename after the flush, and the directory is flushed after the rename; a
//! snapshot that is dropped unfinished removes its file. Dirty bytes are flushed as they come, so that the last flush is short.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::fs::Advice;

use super::format::{ChunkTag, Encoder, Info};
use super::{Error, UNFINISHED, snapshot_path};
use crate::wal::segments::sync_dir;

/// Bytes gathered before a write.
const WRITE_LEN: usize = 1 << 20;
/// Bytes written before they are flushed and dropped from the page cache.
const FLUSH_LEN: u64 = 8 << 20;

/// A snapshot being written with blocking calls.
#[derive(Debug)]
pub struct SnapshotFile {
    dir: PathBuf,
    path: PathBuf,
    seq: u64,
    file: File,
    encoder: Option<Encoder>,
    gathered: Vec<u8>,
    written: u64,
    flushed: u64,
}

impl SnapshotFile {
    /// Begins the snapshot `info` in `dir`, over an unfinished one of the same seq.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(dir: &Path, info: &Info) -> Result<Self, Error> {
        let path = snapshot_path(dir, info.seq).with_extension(UNFINISHED);
        let opened = OpenOptions::new().write(true).create(true).truncate(true).open(&path);
        let file = opened.map_err(|source| Error::Io { path: path.clone(), source })?;
        let mut gathered = Vec::with_capacity(WRITE_LEN);
        let encoder = Some(Encoder::start(info, &mut gathered));
        Ok(Self { dir: dir.to_path_buf(), path, seq: info.seq, file, encoder, gathered, written: 0, flushed: 0 })
    }

    /// Adds a chunk.
    ///
    /// # Errors
    /// [`Error::Io`]; the snapshot cannot be finished then.
    ///
    /// # Panics
    /// When the chunk is longer than [`super::format::CHUNK_LEN_MAX`] or has the footer's tag.
    pub fn chunk(&mut self, tag: ChunkTag, bytes: &[u8]) -> Result<(), Error> {
        self.encoder.as_mut().expect("taken only by finish").chunk(tag, bytes, &mut self.gathered);
        if self.gathered.len() >= WRITE_LEN { self.write().map_err(|source| self.failed(source)) } else { Ok(()) }
    }

    /// Makes the snapshot durable under its name and returns its length in bytes.
    ///
    /// # Errors
    /// [`Error::Io`]; there is no such snapshot then.
    pub fn finish(mut self) -> Result<u64, Error> {
        self.encoder.take().expect("taken once").finish(&mut self.gathered);
        let finish = |this: &mut Self| {
            this.write()?;
            this.file.sync_all()?;
            std::fs::rename(&this.path, snapshot_path(&this.dir, this.seq))?;
            sync_dir(&this.dir)
        };
        finish(&mut self).map_err(|source| self.failed(source))?;
        self.path = PathBuf::new();
        Ok(self.written)
    }

    fn write(&mut self) -> io::Result<()> {
        self.file.write_all(&self.gathered)?;
        self.written += u64::try_from(self.gathered.len()).expect("usize has at most 64 bits");
        self.gathered.clear();
        if self.written - self.flushed >= FLUSH_LEN {
            self.file.sync_data()?;
            rustix::fs::fadvise(&self.file, 0, None, Advice::DontNeed)?;
            self.flushed = self.written;
        }
        Ok(())
    }

    fn failed(&self, source: io::Error) -> Error {
        Error::Io { path: self.path.clone(), source }
    }
}

impl Drop for SnapshotFile {
    fn drop(&mut self) {
        if !self.path.as_os_str().is_empty() {
            // Unfinished: the next prune removes what this cannot.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// A snapshot written on glommio's blocking pool: each call waits for the disk and not the shard.
#[derive(Debug)]
pub struct BackgroundSnapshot {
    /// `None` after a failure.
    file: Option<SnapshotFile>,
}

impl BackgroundSnapshot {
    /// As [`SnapshotFile::create`].
    ///
    /// # Errors
    /// [`Error::Io`].
    pub async fn create(dir: &Path, info: Info) -> Result<Self, Error> {
        let dir = dir.to_path_buf();
        let created = crate::offload::offload(move || SnapshotFile::create(&dir, &info));
        Ok(Self { file: Some(created.await?) })
    }

    /// Adds a chunk; one of 256 KiB to 1 MiB keeps the shard's share small and the calls few.
    ///
    /// # Errors
    /// [`Error::Io`]; drop the snapshot then.
    ///
    /// # Panics
    /// As [`SnapshotFile::chunk`], and after a failure.
    pub async fn chunk(&mut self, tag: ChunkTag, bytes: Vec<u8>) -> Result<(), Error> {
        let mut file = self.file.take().expect("not used after a failure");
        let written = crate::offload::offload(move || file.chunk(tag, &bytes).map(|()| file));
        self.file = Some(written.await?);
        Ok(())
    }

    /// As [`SnapshotFile::finish`].
    ///
    /// # Errors
    /// [`Error::Io`]; there is no such snapshot then.
    ///
    /// # Panics
    /// After a failure.
    pub async fn finish(mut self) -> Result<u64, Error> {
        let file = self.file.take().expect("not used after a failure");
        crate::offload::offload(move || file.finish()).await
    }
}

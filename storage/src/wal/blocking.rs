//! A log driven by blocking writes: for tests and tools, and the plain reading of how the pure parts fit together.
//!
//! One write at a time, one flush each. The shard uses `driver`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::segments::{SegmentFiles, create_segment, delete_segment, drop_misfits, open_durable, segment_path};
use super::{
    AppendError, ApplyError, Config, ConfigError, HeapBuffers, Position, Record, RecoverError, Recovered, ScanParams,
    Writer, recover,
};

/// What stops a blocking log. What was acknowledged before is safe; what was not may be there or not.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration cannot work.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The log could not be read back.
    #[error(transparent)]
    Recover(#[from] RecoverError),
    /// A record was refused.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// A file operation failed.
    #[error("{path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A log with one blocking writer.
pub struct Log {
    dir: PathBuf,
    writer: Writer<HeapBuffers>,
    file: Option<(u32, File)>,
}

impl Log {
    /// Recovers the log in `dir` (made if absent), handing its records to `on_record`, and opens it for appending in `term`.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn open(
        dir: &Path,
        config: Config,
        params: ScanParams,
        term: u32,
        on_record: impl FnMut(Record<'_>) -> Result<(), ApplyError>,
    ) -> Result<(Self, Recovered), Error> {
        config.check()?;
        let failed = |source| Error::Io { path: dir.to_path_buf(), source };
        let recovered = recover(&mut SegmentFiles::open(dir).map_err(failed)?, params, on_record)?;
        let mut end = recovered.end.clone();
        let before = end.prepared.len();
        end.prepared = drop_misfits(dir, &end.prepared, config.segment_bytes).map_err(failed)?;
        end.next_number -= u32::try_from(before - end.prepared.len()).expect("segments are few");
        let writer = Writer::new(config, HeapBuffers, params.identity, term, end);
        let mut log = Self { dir: dir.to_path_buf(), writer, file: None };
        log.flush()?;
        Ok((log, recovered))
    }

    /// Adds a record; durable after the next [`Log::flush`].
    ///
    /// # Errors
    /// [`Error::Append`].
    pub fn append(&mut self, kind: u32, stamp: u64, parts: &[&[u8]]) -> Result<Position, Error> {
        Ok(self.writer.append(kind, stamp, parts)?)
    }

    /// Writes all that was appended and returns the durable seq.
    ///
    /// # Errors
    /// [`Error::Io`]; the log must not be used further.
    pub fn flush(&mut self) -> Result<u64, Error> {
        loop {
            while let Some(number) = self.writer.wants_segment() {
                let made = create_segment(&self.dir, number, self.writer.config().segment_bytes);
                let segment = made.map_err(|source| Error::Io { path: segment_path(&self.dir, number), source })?;
                self.writer.segment_prepared(segment);
            }
            let Some(op) = self.writer.poll_write() else {
                return Ok(self.writer.durable_seq());
            };
            let path = segment_path(&self.dir, op.segment);
            let failed = |source| Error::Io { path: path.clone(), source };
            if self.file.as_ref().is_none_or(|(number, _)| *number != op.segment) {
                self.file = Some((op.segment, open_durable(&path).map_err(failed)?.0));
            }
            let (_, file) = self.file.as_ref().expect("opened above");
            file.write_all_at(&op.buffer.as_ref()[..op.len], op.offset).map_err(failed)?;
            self.writer.written(op.seq);
        }
    }

    /// Deletes the segments that hold nothing after `covered_seq`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn retire(&mut self, covered_seq: u64) -> Result<usize, Error> {
        let retired = self.writer.retire(covered_seq);
        for segment in &retired {
            let path = segment_path(&self.dir, segment.number);
            delete_segment(&self.dir, *segment).map_err(|source| Error::Io { path, source })?;
        }
        Ok(retired.len())
    }

    /// Ends the log in an orderly way.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn close(mut self) -> Result<(), Error> {
        self.writer.close();
        self.flush().map(drop)
    }
}

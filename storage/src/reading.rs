//! Reading files once and fast: direct I/O in large reads where the file system can, the page cache otherwise.
//!
//! A cold sequential read through the page cache ran at 0.4 GB/s where direct reads of 4 MiB ran at 1.7 GB/s.
//! Offsets and buffers must be page-aligned for direct reads; others fall back.

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::buffer::{AlignedBuffer, PAGE_LEN};

/// Bytes of one read of a [`Stream`].
const READ_LEN: usize = 4 << 20;

fn is_refusal(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::INVAL.raw_os_error())
}

/// A file open for reading.
#[derive(Debug)]
pub(crate) struct ReadFile {
    path: PathBuf,
    direct: Option<File>,
    cached: std::cell::OnceCell<File>,
    refused: Cell<bool>,
}

impl ReadFile {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let flags = i32::try_from(OFlags::DIRECT.bits()).expect("open flags fit 31 bits");
        let direct = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
            Ok(file) => Some(file),
            Err(error) if is_refusal(&error) => None,
            Err(error) => return Err(error),
        };
        Ok(Self { path: path.to_path_buf(), direct, cached: std::cell::OnceCell::new(), refused: Cell::new(false) })
    }

    fn cached(&self) -> io::Result<&File> {
        if let Some(file) = self.cached.get() {
            return Ok(file);
        }
        let file = File::open(&self.path)?;
        Ok(self.cached.get_or_init(|| file))
    }

    /// Reads from `offset` until `out` is full or the file ends; says how much.
    pub(crate) fn read_at_most(&self, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        let mut len = 0;
        while len < out.len() {
            let at = offset + u64::try_from(len).expect("usize has at most 64 bits");
            let direct = self.direct.as_ref().filter(|_| !self.refused.get());
            let read = match direct {
                Some(file) => file.read_at(&mut out[len..], at),
                None => self.cached()?.read_at(&mut out[len..], at),
            };
            match read {
                Ok(0) => break,
                Ok(more) => len += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if direct.is_some() && is_refusal(&error) => self.refused.set(true),
                Err(error) => return Err(error),
            }
        }
        Ok(len)
    }

    /// Fills `out` from `offset`.
    pub(crate) fn read_exact_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if self.read_at_most(offset, out)? == out.len() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

/// A file read from start to end.
pub(crate) struct Stream {
    file: ReadFile,
    buffer: AlignedBuffer,
    /// What of the buffer is read and not yet handed out.
    ready: std::ops::Range<usize>,
    offset: u64,
}

impl Stream {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = ReadFile::open(path)?;
        Ok(Self { file, buffer: AlignedBuffer::zeroed(READ_LEN), ready: 0..0, offset: 0 })
    }
}

impl Read for Stream {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.ready.is_empty() {
            let len = self.file.read_at_most(self.offset, self.buffer.as_mut())?;
            // A short read is the end of the file; the next one there reads nothing, at an offset that is still a whole page.
            let whole = len == READ_LEN;
            let step = if whole { len } else { crate::buffer::round_up(len, PAGE_LEN) };
            self.offset += u64::try_from(step).expect("a read is small");
            self.ready = 0..len;
        }
        let len = out.len().min(self.ready.len());
        out[..len].copy_from_slice(&self.buffer.as_ref()[self.ready.start..self.ready.start + len]);
        self.ready.start += len;
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_reads_a_file_of_any_length_to_its_end() {
        let dir = tempfile::tempdir().unwrap();
        for len in [0, 1, 4095, 4096, 4097, READ_LEN, READ_LEN + 5, 2 * READ_LEN + 5000] {
            let bytes: Vec<u8> = (0..len).map(|at| (at % 251).to_le_bytes()[0]).collect();
            let path = dir.path().join("file");
            std::fs::write(&path, &bytes).unwrap();
            let mut read = Vec::new();
            Stream::open(&path).unwrap().read_to_end(&mut read).unwrap();
            assert!(read == bytes, "{len} bytes");
        }
    }

    #[test]
    fn an_unaligned_place_is_read_through_the_page_cache() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, b"0123456789").unwrap();
        let mut out = [0; 4];
        ReadFile::open(&path).unwrap().read_exact_at(3, &mut out).unwrap();
        assert_eq!(&out, b"3456");
        assert!(ReadFile::open(&path).unwrap().read_exact_at(8, &mut out).is_err());
    }
}

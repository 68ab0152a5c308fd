//! The scheduler's model of a shard, a file that is replaced as a whole. Losing it costs quality only.
//!
//! ```text
//! "TMMODEL\0"  version u32  checksum of version and model u32  the model
//! ```

use std::io;
use std::path::{Path, PathBuf};

use crate::datadir::{Error, write_whole};

/// Format of the file, and the oldest that is read.
pub const FORMAT_VERSION: u32 = 3;
const VERSION_MIN: u32 = 1;

const MAGIC: [u8; 8] = *b"TMMODEL\0";
const NAME: &str = "model";
const HEADER_BYTES: usize = 16;
/// A file that is longer is none of ours.
const BYTES_MAX: u64 = 64 << 20;

/// Puts a model into a shard's directory, whole and durably.
///
/// # Errors
/// [`Error::Io`]; the old model is there then.
pub fn write(dir: &Path, model: &[u8]) -> Result<(), Error> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + model.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes.extend_from_slice(&checksum(FORMAT_VERSION, model).to_le_bytes());
    bytes.extend_from_slice(model);
    write_whole(dir, "model.unfinished", NAME, &bytes)
}

/// The model in a shard's directory, if there is one, with the version of its file.
///
/// # Errors
/// [`Error::Io`], and [`Error::Damaged`] when it is none of this version; go on without it.
pub fn read(dir: &Path) -> Result<Option<(u32, Vec<u8>)>, Error> {
    let path: PathBuf = dir.join(NAME);
    let found = std::fs::metadata(&path)
        .and_then(|found| if found.len() > BYTES_MAX { Ok(None) } else { std::fs::read(&path).map(Some) });
    let damaged = |problem: &str| Error::Damaged { path: path.clone(), problem: problem.to_owned() };
    let mut bytes = match found {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Err(damaged("it is too long for a model")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(Error::Io { path, source }),
    };
    let field = |at: usize| bytes.get(at..at + 4).and_then(|four| four.try_into().ok()).map(u32::from_le_bytes);
    if !bytes.starts_with(&MAGIC) {
        return Err(damaged("it is no model"));
    }
    let version = match field(8) {
        Some(version @ VERSION_MIN..=FORMAT_VERSION) => version,
        version => {
            let reads = format!("{VERSION_MIN} to {FORMAT_VERSION}");
            return Err(damaged(&format!("its version is {version:?}, this build reads {reads}")));
        }
    };
    if bytes.len() < HEADER_BYTES || field(12) != Some(checksum(version, &bytes[HEADER_BYTES..])) {
        return Err(damaged("its checksum does not fit"));
    }
    Ok(Some((version, bytes.split_off(HEADER_BYTES))))
}

fn checksum(version: u32, model: &[u8]) -> u32 {
    // Before version 3 it was the model's alone.
    let of_version = if version < 3 { 0 } else { crc32c::crc32c(&version.to_le_bytes()) };
    crc32c::crc32c_append(of_version, model)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_last_is_read_and_what_is_broken_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), None);
        for model in [&b"one"[..], b"", b"another"] {
            write(dir.path(), model).unwrap();
            assert_eq!(read(dir.path()).unwrap(), Some((FORMAT_VERSION, model.to_vec())));
        }
        let path = dir.path().join(NAME);
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut broken = whole.clone();
            broken[at] ^= 1;
            std::fs::write(&path, &broken).unwrap();
            assert!(matches!(read(dir.path()), Err(Error::Damaged { .. })), "byte {at}");
            std::fs::write(&path, &whole[..at]).unwrap();
            assert!(matches!(read(dir.path()), Err(Error::Damaged { .. })), "cut at {at}");
        }
    }
}

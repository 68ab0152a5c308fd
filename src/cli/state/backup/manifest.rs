//! The manifest of a backup: what it is of, how far each partition came, and every file with its length and digest.
//! `docs/formats/backup.md` is its page.
//!
//! Invariants: it is written last, so a directory without one is no backup; no byte of it or of a file that it names can change
//! unnoticed; what is read from it is used only after that was checked.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use taskmaster_connect::s3::Entry;
use taskmaster_storage::datadir;
use taskmaster_storage::wal::segments::sync_dir;

use super::store::{Store, io_failure, is_plain};
use crate::cli::{Exit, Failure};

/// Format of the backup as a whole.
pub(crate) const FORMAT: u32 = 1;
/// Name of the manifest.
pub(super) const NAME: &str = "manifest";
/// Name of the folder with the copies: a data directory.
const DATA: &str = "data";
const MAGIC: &str = "taskmaster-backup";
/// Most bytes of a manifest that are read.
const BYTES_MAX: u64 = 64 << 20;
/// Bytes of one read.
const READ_LEN: usize = 1 << 20;

/// A file of the backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileEntry {
    /// Where it is, from the backup's directory.
    pub(crate) path: String,
    /// Its length.
    pub(crate) bytes: u64,
    /// BLAKE3 of its content, in hexadecimal.
    pub(crate) blake3: String,
}

/// How far a partition came.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Position {
    /// Its number.
    pub(crate) partition: u16,
    /// Term of its last entry.
    pub(crate) term: u64,
    /// Position of its last entry.
    pub(crate) position: u64,
    /// When the last command was, in UTC.
    pub(crate) time: String,
}

/// What a backup says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    /// Version of the program that made it.
    pub(crate) software: String,
    /// When it was begun, in UTC: what was acknowledged before is in it.
    pub(crate) begun_at: String,
    /// When it was whole, in UTC.
    pub(crate) made_at: String,
    /// Id of the cluster, in hexadecimal; absent of a node that belongs to none.
    pub(crate) cluster: Option<String>,
    /// The cluster's name, where a configuration told it.
    pub(crate) cluster_name: Option<String>,
    /// Id of the data directory, in hexadecimal.
    pub(crate) directory: String,
    /// Shards of the node.
    pub(crate) shards: u32,
    /// Partitions of the cluster.
    pub(crate) partitions: u32,
    /// Those that the node has a replica of.
    pub(crate) positions: Vec<Position>,
    /// All files but the manifest.
    pub(crate) files: Vec<FileEntry>,
}

/// The folder of a backup that is a data directory.
pub(crate) fn data_dir(backup: &Path) -> PathBuf {
    backup.join(DATA)
}

fn refused(file: &str, problem: &str) -> Failure {
    Failure::new(Exit::Failed, format!("{file}: {problem}"))
}

impl Manifest {
    /// Bytes of all files.
    pub(crate) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// Partitions of which there is no replica.
    pub(crate) fn absent(&self) -> usize {
        usize::try_from(self.partitions).unwrap_or(usize::MAX).saturating_sub(self.positions.len())
    }

    /// Takes the files of the backup in `root` up, and writes the manifest there, durably.
    pub(crate) fn write(mut self, root: &Path, on_bytes: &mut impl FnMut(u64)) -> Result<Self, Failure> {
        let store = Store::Directory(root.to_path_buf());
        for entry in store.files()? {
            let (bytes, blake3) = digest(&store, &entry, &mut io::sink(), on_bytes)?;
            self.files.push(FileEntry { path: entry.path, bytes, blake3 });
        }
        let body =
            serde_json::to_string_pretty(&self).map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
        let digest = blake3::hash(body.as_bytes()).to_hex();
        let path = root.join(NAME);
        let write = || {
            let mut file = File::create_new(&path)?;
            file.write_all(format!("{MAGIC} {FORMAT} {digest}\n{body}").as_bytes())?;
            file.sync_all()?;
            sync_dir(root)
        };
        write().map_err(|error| io_failure(&store.shown(NAME), &error))?;
        Ok(self)
    }

    /// Reads the manifest of a backup, with a list of all files that are there; these are not looked at.
    pub(crate) fn read(store: &Store) -> Result<(Self, Vec<Entry>), Failure> {
        let file = store.shown(NAME);
        let missing = || format!("{store} is no backup: it has no manifest, which is written last");
        let mut present = match store {
            Store::Directory(root) if !root.exists() => return Err(Failure::new(Exit::NotFound, missing())),
            _ => store.files()?,
        };
        let place = present.iter().position(|entry| entry.path == NAME);
        let entry = present.remove(place.ok_or_else(|| Failure::new(Exit::NotFound, missing()))?);
        let read = || {
            let mut bytes = Vec::new();
            store.read(&entry)?.take(BYTES_MAX).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let bytes = read().map_err(|error: io::Error| io_failure(&file, &error))?;
        let damaged = || refused(&file, "it is damaged: the backup cannot be used, take another one");
        let text = String::from_utf8(bytes).map_err(|_| damaged())?;
        let (head, body) = text.split_once('\n').ok_or_else(damaged)?;
        let mut words = head.split(' ');
        if words.next() != Some(MAGIC) {
            return Err(damaged());
        }
        let format: u32 = words.next().and_then(|format| format.parse().ok()).ok_or_else(damaged)?;
        if format != FORMAT {
            let sentence =
                format!("the backup has format {format}; this version reads {FORMAT}: use the version that made it");
            return Err(refused(&file, &sentence));
        }
        if head != format!("{MAGIC} {FORMAT} {}", blake3::hash(body.as_bytes()).to_hex()) {
            return Err(damaged());
        }
        Ok((serde_json::from_str(body).map_err(|_| damaged())?, present))
    }

    /// Checks every file of the backup against the manifest, and copies them into a new directory if one is named.
    pub(crate) fn verify(
        &self,
        store: &Store,
        present: &[Entry],
        copies: Option<&Path>,
        on_bytes: &mut impl FnMut(u64),
    ) -> Result<(), Failure> {
        let listed: BTreeMap<&str, &FileEntry> = self.files.iter().map(|file| (file.path.as_str(), file)).collect();
        let present: BTreeMap<&str, &Entry> = present.iter().map(|entry| (entry.path.as_str(), entry)).collect();
        // Whoever looks at the copies with `state at` leaves a lock.
        let lock = format!("{DATA}/{}", datadir::LOCK);
        if let Some(strange) = present.keys().find(|path| **path != lock && !listed.contains_key(*path)) {
            return Err(refused(&store.shown(strange), "it does not belong to the backup: move it away"));
        }
        for (path, file) in listed {
            let shown = store.shown(path);
            let Some(entry) = present.get(path).filter(|_| is_plain(path)) else {
                return Err(refused(&shown, "it is missing: the backup cannot be used, take another one"));
            };
            let mut copy = copies.map(|to| create(&to.join(path))).transpose()?;
            let mut nowhere = io::sink();
            let to: &mut dyn Write = copy.as_mut().map_or(&mut nowhere, |file| file);
            let (bytes, blake3) = digest(store, entry, to, on_bytes)?;
            if (bytes, &blake3) != (file.bytes, &file.blake3) {
                let what = if bytes == file.bytes { "its content" } else { "its length" };
                let sentence = format!("{what} is not what was backed up: the backup cannot be used, take another one");
                return Err(refused(&shown, &sentence));
            }
        }
        Ok(())
    }
}

/// A new file with all directories on the way to it.
fn create(path: &Path) -> Result<File, Failure> {
    let made = std::fs::create_dir_all(path.parent().unwrap_or(path)).and_then(|()| File::create_new(path));
    made.map_err(|error| io_failure(&path.display().to_string(), &error))
}

/// Length and digest of a file, which is written elsewhere meanwhile.
fn digest(
    store: &Store,
    entry: &Entry,
    to: &mut dyn Write,
    on_bytes: &mut impl FnMut(u64),
) -> Result<(u64, String), Failure> {
    let mut read = || {
        let (mut file, mut hasher, mut bytes) = (store.read(entry)?, blake3::Hasher::new(), 0);
        let mut buffer = vec![0; READ_LEN];
        loop {
            let len = file.read(&mut buffer)?;
            if len == 0 {
                return Ok((bytes, hasher.finalize().to_hex().to_string()));
            }
            hasher.update(&buffer[..len]);
            to.write_all(&buffer[..len])?;
            let len = u64::try_from(len).unwrap_or(u64::MAX);
            bytes += len;
            on_bytes(len);
        }
    };
    read().map_err(|error: io::Error| io_failure(&store.shown(&entry.path), &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A small backup, whatever it may be of.
    fn written(root: &Path) -> Manifest {
        std::fs::create_dir_all(root.join("data/shard-000")).unwrap();
        for (path, content) in
            [("data/meta.toml", "shards = 1"), ("data/shard-000/a", "0123456789"), ("data/shard-000/b", "")]
        {
            std::fs::write(root.join(path), content).unwrap();
        }
        let manifest = Manifest {
            software: "0.1.0".to_owned(),
            begun_at: "2026-01-31T12:00:00Z".to_owned(),
            made_at: "2026-01-31T12:00:01Z".to_owned(),
            cluster: Some("01".to_owned()),
            cluster_name: None,
            directory: "02".to_owned(),
            shards: 1,
            partitions: 2,
            positions: vec![Position { partition: 1, term: 2, position: 3, time: "2026-01-31T11:00:00Z".to_owned() }],
            files: Vec::new(),
        };
        manifest.write(root, &mut |_| {}).unwrap()
    }

    fn is_sound(root: &Path) -> bool {
        let store = Store::Directory(root.to_path_buf());
        Manifest::read(&store)
            .is_ok_and(|(manifest, present)| manifest.verify(&store, &present, None, &mut |_| {}).is_ok())
    }

    #[test]
    fn a_manifest_says_what_was_written_and_its_files_are_as_they_were() {
        let temp = tempfile::tempdir().unwrap();
        let manifest = written(temp.path());
        let store = Store::Directory(temp.path().to_path_buf());
        assert_eq!(Manifest::read(&store).unwrap().0, manifest);
        assert_eq!((manifest.bytes(), manifest.absent(), manifest.files.len()), (20, 1, 3));
        assert!(is_sound(temp.path()));
        std::fs::write(temp.path().join("data/lock"), "17").unwrap();
        assert!(is_sound(temp.path()), "whoever looked at it left a lock");
    }

    #[test]
    fn no_byte_of_a_backup_changes_comes_or_goes_unnoticed() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path();
        let paths: Vec<String> =
            written(root).files.into_iter().map(|file| file.path).chain([NAME.to_owned()]).collect();
        for path in paths.iter().map(|path| root.join(path)) {
            let whole = std::fs::read(&path).unwrap();
            for at in 0..whole.len() {
                for bit in 0..8 {
                    let mut bytes = whole.clone();
                    bytes[at] ^= 1 << bit;
                    std::fs::write(&path, bytes).unwrap();
                    assert!(!is_sound(root), "bit {bit} of byte {at} of {}", path.display());
                }
                std::fs::write(&path, &whole[..at]).unwrap();
                assert!(!is_sound(root), "{at} bytes of {}", path.display());
            }
            std::fs::write(&path, [&whole[..], b"x"].concat()).unwrap();
            assert!(!is_sound(root), "a byte behind {}", path.display());
            std::fs::remove_file(&path).unwrap();
            assert!(!is_sound(root), "without {}", path.display());
            std::fs::write(&path, whole).unwrap();
            assert!(is_sound(root));
        }
        std::fs::write(root.join("data/shard-000/c"), "").unwrap();
        assert!(!is_sound(root), "a strange file");
    }
}

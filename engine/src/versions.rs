//! Versioned state of tasks: a commit graph for each task that saved, over chunks that the partition's tasks share.
//!
//! Invariants:
//! - A chunk has as many references as versions name it, repetitions counted, and goes with the last one.
//! - A version never changes. Heads of branches and tagged versions are kept; of the others the oldest go when there are too
//!   many ([`limits::STATE_VERSIONS_MAX`], [`limits::STATE_REFERENCES_MAX`]).
//! - All of it follows from the log alone.

mod chunks;
mod history;
#[cfg(test)]
mod tests;

use taskmaster_protocol::limits;
use taskmaster_protocol::state::{Address, digest_of};

pub(crate) use chunks::Chunks;
pub(crate) use history::{History, Version};

use crate::arena::Arena;
use crate::task::NONE;

/// A piece of a state that is being saved.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Piece<'a> {
    /// Chunks of the parent version, from one on.
    Run { from: u32, count: u32 },
    /// One chunk.
    Bytes(&'a [u8]),
}

/// What a save is besides its pieces.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Save<'a> {
    pub(crate) parent: u32,
    pub(crate) digest: Address,
    pub(crate) label: &'a str,
    pub(crate) attempt: u32,
    pub(crate) time_us: u64,
}

/// Why a save came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unsaved {
    /// Pieces of a parent that is not there (any more), or that it has not.
    Parent,
    /// The pieces make another state than the digest says.
    Digest,
    /// The state is too large, or there is no room beside the heads and tagged versions.
    TooLarge,
}

/// The histories and chunks of a partition.
#[derive(Default)]
pub(crate) struct Versions {
    pub(crate) chunks: Chunks,
    histories: Vec<Option<Box<History>>>,
    free: Vec<u32>,
    /// Memory of histories, in bytes.
    bytes: usize,
    /// Versions in all.
    kept: u64,
}

impl Versions {
    pub(crate) fn get(&self, index: u32) -> Option<&History> {
        self.histories.get(index as usize)?.as_deref()
    }

    /// A history, if there is one, beside the chunks.
    pub(crate) fn parts_mut(&mut self, index: u32) -> (Option<&History>, &mut Chunks) {
        (self.histories.get(index as usize).and_then(Option::as_deref), &mut self.chunks)
    }

    /// Adds a history that is empty, or was read from a snapshot and has its references.
    pub(crate) fn insert(&mut self, history: History) -> u32 {
        self.bytes += history.bytes();
        self.kept += history.versions.len() as u64;
        let index = self.free.pop().unwrap_or_else(|| {
            self.histories.push(None);
            u32::try_from(self.histories.len() - 1).expect("no more histories than task slots")
        });
        self.histories[index as usize] = Some(Box::new(history));
        index
    }

    /// Drops a history with its versions; [`NONE`] has none.
    pub(crate) fn remove(&mut self, index: u32, arena: &mut Arena) {
        if index == NONE {
            return;
        }
        let history = self.histories[index as usize].take().expect("tasks refer to live histories");
        self.free.push(index);
        self.bytes -= history.bytes();
        self.kept -= history.versions.len() as u64;
        for version in history.versions.values() {
            self.chunks.release(&version.chunks, arena);
        }
    }

    /// The number of a version that this very save made before, if it did.
    pub(crate) fn saved(&self, index: u32, parent: u32, digest: &Address) -> Option<u32> {
        let after = self.get(index)?.versions.range(parent.checked_add(1)?..);
        after.into_iter().find(|(_, version)| version.parent == parent && version.digest == *digest).map(|(&n, _)| n)
    }

    /// Saves a version; one that was saved before is only found again. On an error nothing has changed.
    pub(crate) fn save<'a>(
        &mut self,
        index: u32,
        save: &Save<'_>,
        pieces: impl Iterator<Item = Piece<'a>>,
        arena: &mut Arena,
    ) -> Result<u32, Unsaved> {
        if let Some(number) = self.saved(index, save.parent, &save.digest) {
            self.edit(index, |history| history.advance(save.parent, number));
            return Ok(number);
        }
        if save.parent > self.get(index).map_or(0, |history| history.made) {
            return Err(Unsaved::Parent);
        }
        let mut found = Vec::new();
        let gathered = self.gather(index, save, pieces, &mut found, arena);
        let checked = gathered.and_then(|sizes| self.check(index, save, &found, sizes.0).map(|()| sizes));
        let (size, new_bytes) = match checked {
            Ok(sizes) => sizes,
            Err(unsaved) => {
                self.chunks.release(&found, arena);
                return Err(unsaved);
            }
        };
        let version = Version {
            parent: save.parent,
            attempt: save.attempt,
            time_us: save.time_us,
            size,
            new_bytes,
            digest: save.digest,
            label: save.label.into(),
            chunks: found.into_boxed_slice(),
        };
        let mut gone = Vec::new();
        let number = self.edit(index, |history| {
            history.make_room(version.chunks.len(), &mut gone);
            history.push(version)
        });
        for version in gone {
            self.chunks.release(&version.chunks, arena);
        }
        Ok(number)
    }

    /// Takes a reference to every chunk of a save; the state's length and the length of what is new of it.
    fn gather<'a>(
        &mut self,
        index: u32,
        save: &Save<'_>,
        pieces: impl Iterator<Item = Piece<'a>>,
        found: &mut Vec<u32>,
        arena: &mut Arena,
    ) -> Result<(u64, u64), Unsaved> {
        let (mut size, mut new_bytes) = (0, 0);
        let history = self.histories.get(index as usize).and_then(Option::as_deref);
        let parent = history.and_then(|history| history.versions.get(&save.parent));
        for piece in pieces {
            match piece {
                Piece::Run { from, count } => {
                    let run = parent.and_then(|parent| parent.chunks.get(from as usize..)?.get(..count as usize));
                    for &chunk in run.ok_or(Unsaved::Parent)? {
                        self.chunks.retain(chunk);
                        size += u64::from(self.chunks.len_of(chunk));
                        found.push(chunk);
                    }
                }
                Piece::Bytes(bytes) => {
                    let (chunk, is_new) = self.chunks.add(bytes, arena);
                    size += bytes.len() as u64;
                    new_bytes += if is_new { bytes.len() as u64 } else { 0 };
                    found.push(chunk);
                }
            }
        }
        Ok((size, new_bytes))
    }

    fn check(&self, index: u32, save: &Save<'_>, found: &[u32], size: u64) -> Result<(), Unsaved> {
        let history = self.get(index).expect("made before the save");
        if found.len() > limits::STATE_CHUNKS_MAX
            || size > limits::STATE_BYTES_MAX as u64
            || !history.has_room(found.len())
        {
            return Err(Unsaved::TooLarge);
        }
        if digest_of(found.iter().map(|&chunk| self.chunks.address(chunk))) != save.digest {
            return Err(Unsaved::Digest);
        }
        Ok(())
    }

    /// Drops versions; how many.
    pub(crate) fn prune(&mut self, index: u32, keep: u32, arena: &mut Arena) -> u32 {
        let gone = self.edit(index, |history| history.prune(keep));
        for version in &gone {
            self.chunks.release(&version.chunks, arena);
        }
        u32::try_from(gone.len()).expect("versions are bounded")
    }

    /// Changes a history and keeps the account of its memory.
    pub(crate) fn edit<T>(&mut self, index: u32, change: impl FnOnce(&mut History) -> T) -> T {
        let history = self.histories[index as usize].as_deref_mut().expect("tasks refer to live histories");
        let (bytes, kept) = (history.bytes(), history.versions.len() as u64);
        let result = change(history);
        self.bytes = self.bytes - bytes + history.bytes();
        self.kept = self.kept - kept + history.versions.len() as u64;
        result
    }

    /// A history that begins with a version of another one.
    pub(crate) fn fork(&mut self, index: u32, number: u32) -> Option<u32> {
        let version = self.get(index)?.versions.get(&number)?.clone();
        for &chunk in &version.chunks {
            self.chunks.retain(chunk);
        }
        let mut history = History::default();
        history.push(Version { parent: 0, new_bytes: 0, ..version });
        Some(self.insert(history))
    }

    /// Versions of all histories.
    pub(crate) const fn kept(&self) -> u64 {
        self.kept
    }

    /// Memory held beside the chunks' bytes, in bytes.
    pub(crate) fn reserved_bytes(&self) -> usize {
        let slabs = self.histories.capacity() * size_of::<Option<Box<History>>>() + self.free.capacity() * 4;
        self.bytes + slabs + self.chunks.reserved_bytes()
    }
}

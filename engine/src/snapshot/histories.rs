//! The part of a snapshot that is about versioned state.

use rkyv::rend::u32_le;
use rkyv::vec::ArchivedVec;
use rkyv::{Archive, Deserialize, Serialize};
use taskmaster_protocol::body::{self, ArchivedSpan, Malformed, Span};
use taskmaster_protocol::state::digest_of;

use super::{ArchivedChunk, CHUNK_BYTES, Chunk};
use crate::arena::Arena;
use crate::partition::Partition;
use crate::task::Slot;
use crate::versions::{Chunks, History, Version, Versions};

/// The versions of one task's state.
#[derive(Debug, Default, Archive, Serialize, Deserialize)]
pub(crate) struct HistoryRecord {
    /// Range of `Chunk.versions`.
    pub(super) versions: Span,
    /// Range of `Chunk.names`.
    pub(super) names: Span,
    pub(super) current: Span,
    pub(super) made: u32,
}

/// One version. Its digest follows from its chunks.
#[derive(Debug, Default, Archive, Serialize, Deserialize)]
pub(crate) struct VersionRecord {
    pub(super) time_us: u64,
    pub(super) new_bytes: u64,
    pub(super) number: u32,
    pub(super) parent: u32,
    pub(super) attempt: u32,
    pub(super) label: Span,
    /// Range of `Chunk.pieces`.
    pub(super) pieces: Span,
}

/// A branch or a tag.
#[derive(Debug, Default, Archive, Serialize, Deserialize)]
pub(crate) struct NameRecord {
    pub(super) name: Span,
    pub(super) version: u32,
    /// 0: branch; 1: tag.
    pub(super) kind: u32,
}

pub(super) fn count(items: usize) -> u32 {
    u32::try_from(items).expect("chunks of a snapshot and commands are bounded")
}

/// Copies a task's history into the staged chunk and pins its chunks; its index plus one, or 0.
pub(super) fn stage(partition: &mut Partition, slot: Slot) -> u32 {
    let Some(extra) = partition.extras.get(partition.tasks[slot].extra) else { return 0 };
    let (versions, chunks) = partition.versions.parts_mut(extra.history);
    let Some(history) = versions else { return 0 };
    let progress = &mut partition.snapshot;
    let staged = &mut progress.staged;
    let (first_version, first_name) = (count(staged.versions.len()), count(staged.names.len()));
    for (&number, version) in &history.versions {
        let at = count(staged.pieces.len());
        for &chunk in &version.chunks {
            if chunks.pin(chunk, progress.number, progress.states) {
                progress.pinned.push_back(chunk);
                progress.states += 1;
            }
            staged.pieces.push(chunks.number(chunk));
        }
        staged.versions.push(VersionRecord {
            time_us: version.time_us,
            new_bytes: version.new_bytes,
            number,
            parent: version.parent,
            attempt: version.attempt,
            label: body::put(&mut staged.bytes, version.label.as_bytes()),
            pieces: Span { at, len: count(version.chunks.len()) },
        });
    }
    for (names, kind) in [(&history.branches, 0), (&history.tags, 1)] {
        for (name, &version) in names {
            staged.names.push(NameRecord { name: body::put(&mut staged.bytes, name.as_bytes()), version, kind });
        }
    }
    staged.histories.push(HistoryRecord {
        versions: Span { at: first_version, len: count(history.versions.len()) },
        names: Span { at: first_name, len: count(history.branches.len() + history.tags.len()) },
        current: body::put(&mut staged.bytes, history.current.as_bytes()),
        made: history.made,
    });
    count(staged.histories.len())
}

/// A chunk with the bytes of pinned chunks of state, as many as fit, which are unpinned.
pub(super) fn write_states(partition: &mut Partition, arena: &mut Arena) -> Chunk {
    let mut out = Chunk { partition: u32::from(partition.id.0), ..Chunk::default() };
    while out.bytes.len() < CHUNK_BYTES
        && let Some(chunk) = partition.snapshot.pinned.pop_front()
    {
        out.states.push(body::put(&mut out.bytes, partition.versions.chunks.bytes(chunk, arena)));
        partition.versions.chunks.unpin(chunk, arena);
    }
    out
}

fn range<T>(all: &[T], span: ArchivedSpan) -> Result<&[T], Malformed> {
    let (at, len) = (span.at.to_native() as usize, span.len.to_native() as usize);
    let found = all.get(at..).and_then(|rest| rest.get(..len));
    found.ok_or_else(|| Malformed("a part of a task's state is missing".to_owned()))
}

/// What the records of a history refer to.
#[derive(Clone, Copy)]
pub(super) struct Parts<'a> {
    pub(super) versions: &'a [ArchivedVersionRecord],
    pub(super) names: &'a [ArchivedNameRecord],
    pub(super) pieces: &'a [u32_le],
    pub(super) bytes: &'a ArchivedVec<u8>,
}

impl<'a> Parts<'a> {
    /// A history without its versions and names.
    pub(super) fn begin(self, record: &ArchivedHistoryRecord) -> Result<History, Malformed> {
        let mut history = History::default();
        history.branches.clear();
        history.made = record.made.to_native();
        history.current = body::text(self.bytes, record.current)?.into();
        Ok(history)
    }

    /// The versions of a history.
    pub(super) fn versions(self, record: &ArchivedHistoryRecord) -> Result<&'a [ArchivedVersionRecord], Malformed> {
        range(self.versions, record.versions)
    }

    /// Its branches and tags: name, version, and whether it is a tag.
    pub(super) fn names(
        self,
        record: &ArchivedHistoryRecord,
    ) -> Result<impl Iterator<Item = Result<(&'a str, u32, bool), Malformed>>, Malformed> {
        let name = move |record: &'a ArchivedNameRecord| {
            Ok((body::text(self.bytes, record.name)?, record.version.to_native(), record.kind.to_native() != 0))
        };
        Ok(range(self.names, record.names)?.iter().map(name))
    }

    /// The chunks of a version, each with another reference, if all are there; `state` finds them by their numbers.
    pub(super) fn version(
        self,
        record: &ArchivedVersionRecord,
        state: impl Fn(usize) -> Option<u32>,
        chunks: &mut Chunks,
    ) -> Result<Option<Version>, Malformed> {
        let pieces = range(self.pieces, record.pieces)?.iter();
        let label = body::text(self.bytes, record.label)?.into();
        let found = pieces.map(|number| state(number.to_native() as usize));
        let Some(found) = found.collect::<Option<Box<[u32]>>>() else { return Ok(None) };
        found.iter().for_each(|&chunk| chunks.retain(chunk));
        let size = found.iter().map(|&chunk| u64::from(chunks.len_of(chunk))).sum();
        Ok(Some(Version {
            parent: record.parent.to_native(),
            attempt: record.attempt.to_native(),
            time_us: record.time_us.to_native(),
            size,
            new_bytes: record.new_bytes.to_native().min(size),
            digest: digest_of(found.iter().map(|&chunk| chunks.address(chunk))),
            label,
            chunks: found,
        }))
    }
}

/// Builds a history again; `states` are the snapshot's chunks of state by their numbers.
pub(super) fn restore(
    chunk: &ArchivedChunk,
    index: u32,
    states: &[u32],
    versions: &mut Versions,
) -> Result<History, Malformed> {
    let missing = || Malformed("a task's state is missing".to_owned());
    let record = chunk.histories.get(index as usize).ok_or_else(missing)?;
    let parts = Parts { versions: &chunk.versions, names: &chunk.names, pieces: &chunk.pieces, bytes: &chunk.bytes };
    let mut history = parts.begin(record)?;
    for name in parts.names(record)? {
        let (name, version, is_tag) = name?;
        let names = if is_tag { &mut history.tags } else { &mut history.branches };
        names.insert(name.into(), version);
    }
    for record in parts.versions(record)? {
        let version = parts.version(record, |number| states.get(number).copied(), &mut versions.chunks)?;
        history.put(record.number.to_native(), version.ok_or_else(missing)?);
    }
    Ok(history)
}

//! Versions of states that come back from the store outside, behind the tasks that saved them.
//!
//! A command brings some versions of some tasks, ascending, with their chunks. A chunk that an earlier command brought for the same task is
//! named by its digest alone: it is there as long as the task is. What cannot be put together any more, because its task or a chunk
//! has gone meanwhile, is left out; versions and names that are there stay as they are.

use rkyv::{Archive, Deserialize, Serialize};
use taskmaster_protocol::body::{self, Malformed, Span};
use taskmaster_protocol::state::Address;
use taskmaster_protocol::{FrameBuffer, TaskId};

use crate::checkpoint::{SavedVersion, States};
use crate::partition::{Cx, Partition};
use crate::snapshot::histories::{HistoryRecord, NameRecord, Parts, VersionRecord, count};
use crate::snapshot::touch;
use crate::task::{NONE, Slot};
use crate::versions::Version;

/// The body of the command.
#[derive(Debug, Default, Archive, Serialize, Deserialize)]
pub(crate) struct RestoredStates {
    pub(in crate::snapshot) histories: Vec<RestoredHistory>,
    pub(in crate::snapshot) versions: Vec<VersionRecord>,
    /// Places in `chunks`.
    pub(in crate::snapshot) pieces: Vec<u32>,
    pub(in crate::snapshot) names: Vec<NameRecord>,
    pub(in crate::snapshot) chunks: Vec<RestoredChunk>,
    pub(in crate::snapshot) bytes: Vec<u8>,
}

/// Some versions of one task's state.
#[derive(Debug, Default, Archive, Serialize, Deserialize)]
pub(crate) struct RestoredHistory {
    pub(in crate::snapshot) id: TaskId,
    pub(in crate::snapshot) history: HistoryRecord,
    pub(in crate::snapshot) reserved: u32,
}

/// A chunk of state; one without bytes came before.
#[derive(Debug, Default, Archive, Serialize, Deserialize)]
pub(crate) struct RestoredChunk {
    pub(in crate::snapshot) digest: Address,
    pub(in crate::snapshot) bytes: Span,
}

/// Writes the body of the command.
pub(crate) fn write(states: &States, out: &mut FrameBuffer) {
    let mut body = RestoredStates::default();
    for chunk in &states.chunks {
        let bytes = states.bytes.get(chunk.bytes.at as usize..).and_then(|rest| rest.get(..chunk.bytes.len as usize));
        let bytes = body::put(&mut body.bytes, bytes.unwrap_or_default());
        body.chunks.push(RestoredChunk { digest: chunk.digest, bytes });
    }
    for (id, history) in &states.histories {
        let (first_version, first_name) = (count(body.versions.len()), count(body.names.len()));
        history.versions.iter().for_each(|version| put(version, &mut body));
        let history = HistoryRecord {
            versions: Span { at: first_version, len: count(history.versions.len()) },
            names: Span { at: first_name, len: count(body.names.len()) - first_name },
            current: body::put(&mut body.bytes, history.current.as_bytes()),
            made: history.made,
        };
        body.histories.push(RestoredHistory { id: *id, history, reserved: 0 });
    }
    rkyv::api::high::to_bytes_in::<_, rkyv::rancor::Error>(&body, out).expect("archiving plain records cannot fail");
}

fn put(version: &SavedVersion, body: &mut RestoredStates) {
    for (names, kind) in [(&version.branches, 0), (&version.tags, 1)] {
        for name in names {
            let name = body::put(&mut body.bytes, name.as_bytes());
            body.names.push(NameRecord { name, version: version.number, kind });
        }
    }
    let at = count(body.pieces.len());
    body.pieces.extend_from_slice(&version.pieces);
    body.versions.push(VersionRecord {
        time_us: version.time_us,
        new_bytes: version.new_bytes,
        number: version.number,
        parent: version.parent,
        attempt: version.attempt,
        label: body::put(&mut body.bytes, version.label.as_bytes()),
        pieces: Span { at, len: count(version.pieces.len()) },
    });
}

/// Carries the command out.
pub(crate) fn insert(bytes: &[u8], partition: &mut Partition, cx: &mut Cx<'_>) -> Result<(), Malformed> {
    let body = body::access::<ArchivedRestoredStates>(bytes)?;
    let chunks = &mut partition.versions.chunks;
    let mut states = Vec::with_capacity(body.chunks.len());
    for record in body.chunks.iter() {
        let bytes = body::slice(&body.bytes, record.bytes)?;
        if bytes.is_empty() {
            states.push(chunks.retain_known(&record.digest));
            continue;
        }
        let (chunk, _) = chunks.add(bytes, cx.arena);
        let is_it = *chunks.address(chunk) == record.digest;
        if !is_it {
            chunks.release(&[chunk], cx.arena);
        }
        states.push(is_it.then_some(chunk));
    }
    let parts = Parts { versions: &body.versions, names: &body.names, pieces: &body.pieces, bytes: &body.bytes };
    for record in body.histories.iter() {
        let Some(slot) = partition.find(TaskId::from(&record.id), NONE) else { continue };
        touch(partition, slot, cx.arena);
        partition.change_states(slot, |partition| insert_history(slot, record, parts, &states, partition, cx))?;
    }
    let held: Vec<u32> = states.into_iter().flatten().collect();
    partition.versions.chunks.release(&held, cx.arena);
    Ok(())
}

fn insert_history(
    slot: Slot,
    record: &ArchivedRestoredHistory,
    parts: Parts<'_>,
    states: &[Option<u32>],
    partition: &mut Partition,
    cx: &mut Cx<'_>,
) -> Result<(), Malformed> {
    let record = &record.history;
    for version in parts.versions(record)? {
        let found = |number: usize| states.get(number).copied().flatten();
        let number = version.number.to_native();
        let Some(version) = parts.version(version, found, &mut partition.versions.chunks)? else { continue };
        let mut index = partition.extra_mut(slot).history;
        if index == NONE {
            index = partition.versions.insert(parts.begin(record)?);
            partition.extra_mut(slot).history = index;
        }
        if let Some(version) = put_version(index, number, version, partition) {
            partition.versions.chunks.release(&version.chunks, cx.arena);
        }
    }
    let index = partition.extras.get(partition.tasks[slot].extra).map_or(NONE, |extra| extra.history);
    if index == NONE {
        return Ok(());
    }
    for name in parts.names(record)? {
        let (name, version, is_tag) = name?;
        partition.versions.edit(index, |history| {
            if history.versions.contains_key(&version) {
                let is_current = !is_tag && *name == *history.current;
                let names = if is_tag { &mut history.tags } else { &mut history.branches };
                let known = names.entry(name.into()).or_insert(version);
                if is_current {
                    *known = version;
                }
            }
        });
    }
    // Attempts resume from what is there, and go on from it, though the head itself may not have come back.
    partition.versions.edit(index, |history| {
        let latest = history.versions.keys().next_back().copied().unwrap_or_default();
        history.branches.entry(history.current.clone()).or_insert(latest);
    });
    Ok(())
}

/// Adds a version to a history; back again if it is there, or there is no room.
fn put_version(index: u32, number: u32, version: Version, partition: &mut Partition) -> Option<Version> {
    partition.versions.edit(index, |history| {
        if history.versions.contains_key(&number) || history.is_full(version.chunks.len()) {
            return Some(version);
        }
        history.made = history.made.max(number);
        history.put(number, version);
        None
    })
}

//! Save: versions of running tasks' state, under their leases.
//!
//! A save that was made before (the same parent, the same digest) is answered with its version, whoever sends it again:
//! so one whose answer was lost with a leader is not refused by the next, which knows nothing of the lease.

use taskmaster_protocol::body::{
    self, ArchivedSaveRow, ArchivedSaveState, ArchivedSegment, SaveRow, SaveState, Segment, Span, StateReply,
};
use taskmaster_protocol::{Code, TaskId, limits};

use super::{Admitted, check_blobs, check_rows, except, exception, in_attempt, leased};
use crate::partition::{Cx, Partition};
use crate::refused::Refused;
use crate::state::State;
use crate::task::{NONE, Slot};
use crate::versions::{History, Piece, Save, Unsaved};

/// Memory of a version beside its chunks' bytes, as admission counts it, in bytes.
const VERSION_BYTES: u64 = 256;
/// The same of a chunk that is new.
const CHUNK_BYTES: u64 = 64;

/// Checks layout and limits, and which rows hold their lease; what the memory must take in bytes.
pub(crate) fn admit(partition: &Partition, body: &ArchivedSaveState) -> Result<(Admitted, u64), Refused> {
    check_rows(body.rows.len())?;
    let mut bytes = 0;
    for (number, row) in (0u32..).zip(body.rows.iter()) {
        bytes += check_row(body, row).map_err(|refused| refused.at_row(number))?;
    }
    check_blobs(bytes)?;
    let mut admitted = Admitted { rows: None, reply: body::BatchReply::default() };
    let mut held = Vec::with_capacity(body.rows.len());
    for (number, row) in (0u32..).zip(body.rows.iter()) {
        let (id, locator) = (TaskId::from(&row.id), row.locator.to_native());
        match leased(partition, id, row.token.to_native(), locator, row.attempt.to_native()) {
            Err((code, state)) if saved(partition, row).is_none() => {
                except(&mut admitted.reply, number as usize, id, code, state);
            }
            _ => held.push(number),
        }
    }
    if held.len() < body.rows.len() {
        admitted.rows = Some(held);
    }
    Ok((admitted, bytes))
}

/// The version that an earlier copy of a row made, if it did.
fn saved(partition: &Partition, row: &ArchivedSaveRow) -> Option<u32> {
    let slot = partition.find(TaskId::from(&row.id), row.locator.to_native())?;
    let extra = partition.extras.get(partition.tasks[slot].extra)?;
    partition.versions.saved(extra.history, row.parent.to_native(), &row.digest)
}

fn segments<'a>(body: &'a ArchivedSaveState, row: &ArchivedSaveRow) -> Option<&'a [ArchivedSegment]> {
    let (at, len) = (row.segments.at.to_native() as usize, row.segments.len.to_native() as usize);
    body.segments.get(at..)?.get(..len)
}

/// What a row may take in memory, in bytes.
fn check_row(body: &ArchivedSaveState, row: &ArchivedSaveRow) -> Result<u64, Refused> {
    let too_large = |message: String| Err(Refused::new(Code::TooLarge, message));
    let label = body::text(&body.bytes, row.label)?;
    if label.len() > limits::LABEL_BYTES_MAX {
        return too_large(format!(
            "the label has {} bytes, at most {} are taken",
            label.len(),
            limits::LABEL_BYTES_MAX
        ));
    }
    let segments = segments(body, row)
        .ok_or_else(|| Refused::new(Code::Malformed, "the segments of a save lie outside those given"))?;
    let (mut chunks, mut new, mut bytes) = (0u64, 0u64, 0u64);
    for segment in segments {
        let data = body::slice(&body.bytes, segment.data)?;
        let is_run = segment.count.to_native() > 0;
        if is_run != data.is_empty() {
            return Err(Refused::new(Code::Malformed, "a segment is a run of the parent's chunks or one new chunk"));
        }
        if data.len() > limits::STATE_CHUNK_BYTES_MAX {
            return too_large(format!("a chunk of {} bytes: at most {}", data.len(), limits::STATE_CHUNK_BYTES_MAX));
        }
        chunks += u64::from(segment.count.to_native().max(1));
        new += u64::from(!is_run);
        bytes += data.len() as u64;
    }
    if chunks > limits::STATE_CHUNKS_MAX as u64 || bytes > limits::STATE_BYTES_MAX as u64 {
        return too_large(format!(
            "the state has {chunks} chunks, at most {} and {} bytes are taken: keep what is larger in a store and save \
             a reference",
            limits::STATE_CHUNKS_MAX,
            limits::STATE_BYTES_MAX
        ));
    }
    Ok(bytes + new * CHUNK_BYTES + chunks * 4 + VERSION_BYTES)
}

/// The same body with only these rows.
pub(crate) fn narrowed(body: &ArchivedSaveState, rows: &[u32]) -> SaveState {
    let mut narrow = SaveState::default();
    for &row in rows {
        let row = &body.rows[row as usize];
        let at = u32::try_from(narrow.segments.len()).expect("segments are bounded by the frame");
        for segment in segments(body, row).unwrap_or_default() {
            let data = body::slice(&body.bytes, segment.data).unwrap_or_default();
            narrow.segments.push(Segment {
                from: segment.from.to_native(),
                count: segment.count.to_native(),
                data: body::put(&mut narrow.bytes, data),
            });
        }
        let label = body::slice(&body.bytes, row.label).unwrap_or_default();
        narrow.rows.push(SaveRow {
            id: TaskId::from(&row.id),
            token: row.token.to_native(),
            locator: row.locator.to_native(),
            attempt: row.attempt.to_native(),
            parent: row.parent.to_native(),
            reserved: 0,
            digest: row.digest,
            label: body::put(&mut narrow.bytes, label),
            segments: Span { at, len: row.segments.len.to_native() },
        });
    }
    narrow
}

/// Carries logged saves out. A row counts if the task is unfinished and still in the attempt it speaks of.
pub(crate) fn apply(partition: &mut Partition, body: &ArchivedSaveState, cx: &mut Cx<'_>) -> StateReply {
    let mut reply = StateReply::default();
    for (index, row) in body.rows.iter().enumerate() {
        let id = TaskId::from(&row.id);
        let saved = match in_attempt(partition, id, row.locator.to_native(), row.attempt.to_native()) {
            Ok(slot) => save(partition, slot, body, row, cx),
            Err(refused) => saved(partition, row).ok_or(refused),
        };
        reply.versions.push(saved.unwrap_or(0));
        if let Err((code, state)) = saved {
            reply.exceptions.push(exception(index, id, code, state));
        }
    }
    reply
}

fn save(
    partition: &mut Partition,
    slot: Slot,
    body: &ArchivedSaveState,
    row: &ArchivedSaveRow,
    cx: &mut Cx<'_>,
) -> Result<u32, (Code, Option<State>)> {
    crate::snapshot::touch(partition, slot, cx.arena);
    let state = partition.tasks[slot].state;
    let mut index = partition.extra_mut(slot).history;
    if index == NONE {
        index = partition.versions.insert(History::default());
        partition.extra_mut(slot).history = index;
    }
    let save = Save {
        parent: row.parent.to_native(),
        digest: row.digest,
        label: body::text(&body.bytes, row.label).unwrap_or_default(),
        attempt: row.attempt.to_native(),
        time_us: cx.time_us,
    };
    let pieces = segments(body, row).unwrap_or_default().iter().map(|segment| match segment.count.to_native() {
        0 => Piece::Bytes(body::slice(&body.bytes, segment.data).unwrap_or_default()),
        count => Piece::Run { from: segment.from.to_native(), count },
    });
    let saved = partition.versions.save(index, &save, pieces, cx.arena);
    saved.map_err(|unsaved| {
        let code = match unsaved {
            Unsaved::Parent => Code::UnknownVersion,
            Unsaved::Digest => Code::DigestMismatch,
            Unsaved::TooLarge => Code::TooLarge,
        };
        (code, Some(state))
    })
}

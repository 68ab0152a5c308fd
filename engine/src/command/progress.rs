//! Progress: the last note of a running task. Volatile and best effort.

use taskmaster_protocol::TaskId;
use taskmaster_protocol::body::{self, ArchivedProgress};

use crate::arena::{Arena, Handle};
use crate::partition::Partition;
use crate::state::State;

/// Longest note kept, in bytes.
const NOTE_BYTES_MAX: usize = 1_024;

/// Keeps the notes of leases in force; others are dropped.
pub(crate) fn apply(partition: &mut Partition, body: &ArchivedProgress, arena: &mut Arena) {
    for row in body.rows.iter() {
        let Some(slot) = partition.find(TaskId::from(&row.id), row.locator.to_native()) else { continue };
        let task = &partition.tasks[slot];
        let Ok(note) = body::text(&body.bytes, row.note) else { continue };
        if task.state != State::Leased || task.token != row.token.to_native() || note.len() > NOTE_BYTES_MAX {
            continue;
        }
        let stored = if note.is_empty() { Handle::NONE } else { arena.alloc(note.as_bytes()).unwrap_or(Handle::NONE) };
        let extra = partition.extra_mut(slot);
        extra.done_permille = row.done_permille.to_native().min(1_000);
        let previous = core::mem::replace(&mut extra.note, stored);
        arena.free(previous);
    }
}

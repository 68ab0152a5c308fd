//! Entries between admission and durability.

use std::collections::VecDeque;

use taskmaster_protocol::body::BatchReply;
use taskmaster_protocol::frame::Header;
use taskmaster_protocol::{FrameBuffer, Operation, PartitionId};

use crate::effects::ConnId;
use crate::entry;

/// Most bytes of entries that are not durable yet; beyond it requests are refused as `overloaded`.
pub(super) const LOG_BYTES_PENDING_MAX: u64 = 256 << 20;

/// An entry that is not applied yet, and who asked for it.
pub(super) struct Pending {
    pub(super) sequence: u64,
    pub(super) entry: FrameBuffer,
    /// `None` for the engine's own entries.
    pub(super) origin: Option<(ConnId, Header)>,
    /// Original row numbers, when the entry holds only some rows of the request.
    pub(super) rows: Option<Vec<u32>>,
    /// Exceptions found at admission.
    pub(super) refused: BatchReply,
    pub(super) blob_bytes: u64,
    pub(super) tasks: u64,
}

impl Pending {
    /// Joins the exceptions of admission and of application, in the request's row order.
    pub(super) fn merge_exceptions(&self, reply: &mut BatchReply) {
        if let Some(rows) = &self.rows {
            for exception in &mut reply.exceptions {
                exception.index = rows[exception.index as usize];
            }
        }
        if !self.refused.exceptions.is_empty() {
            reply.exceptions.extend_from_slice(&self.refused.exceptions);
            reply.exceptions.sort_unstable_by_key(|exception| exception.index);
        }
    }
}

/// What a request adds to an entry beyond its body.
#[derive(Default)]
pub(super) struct Request {
    pub(super) origin: Option<(ConnId, Header)>,
    pub(super) rows: Option<Vec<u32>>,
    pub(super) refused: BatchReply,
    pub(super) blob_bytes: u64,
    pub(super) tasks: u64,
}

/// Pending entries in log order.
#[derive(Default)]
pub(super) struct Queue {
    entries: VecDeque<Pending>,
    /// Entries at the front that were handed to the log.
    logged: usize,
    last_sequence: u64,
    bytes: u64,
    blob_bytes: u64,
    tasks: u64,
    spare: Vec<FrameBuffer>,
}

/// Emptied entry buffers kept for reuse, and the largest capacity worth keeping, in bytes.
const SPARE_MAX: usize = 64;
const SPARE_BYTES_MAX: usize = 256 << 10;

impl Queue {
    /// Appends an entry whose body is written by `body`.
    pub(super) fn push(
        &mut self,
        operation: Operation,
        partition: PartitionId,
        time_us: u64,
        request: Request,
        body: impl FnOnce(&mut FrameBuffer),
    ) {
        self.last_sequence += 1;
        let mut bytes = self.spare.pop().unwrap_or_default();
        let resend = request.origin.as_ref().is_some_and(|(_, header)| header.is_resend());
        entry::begin(&mut bytes, operation, partition, resend, time_us, self.last_sequence);
        body(&mut bytes);
        entry::finish(&mut bytes);
        self.bytes += bytes.len() as u64;
        self.blob_bytes += request.blob_bytes;
        self.tasks += request.tasks;
        self.entries.push_back(Pending {
            sequence: self.last_sequence,
            entry: bytes,
            origin: request.origin,
            rows: request.rows,
            refused: request.refused,
            blob_bytes: request.blob_bytes,
            tasks: request.tasks,
        });
    }

    pub(super) fn take_unlogged(&mut self, mut log: impl FnMut(u64, &[u8])) {
        for pending in self.entries.range(self.logged..) {
            log(pending.sequence, &pending.entry);
        }
        self.logged = self.entries.len();
    }

    /// The next entry to apply, if it is durable.
    pub(super) fn pop_durable(&mut self, sequence: u64) -> Option<Pending> {
        if self.logged == 0 || self.entries.front()?.sequence > sequence {
            return None;
        }
        self.logged -= 1;
        self.entries.pop_front()
    }

    /// An entry was applied: what it reserved is in the arena.
    pub(super) const fn settle(&mut self, pending: &Pending) {
        self.blob_bytes -= pending.blob_bytes;
        self.tasks -= pending.tasks;
    }

    /// Keeps the buffer of an applied entry for reuse.
    pub(super) fn recycle(&mut self, mut pending: Pending) {
        self.bytes -= pending.entry.len() as u64;
        if self.spare.len() < SPARE_MAX && pending.entry.capacity() <= SPARE_BYTES_MAX {
            pending.entry.clear();
            self.spare.push(pending.entry);
        }
    }

    pub(super) const fn last_sequence(&self) -> u64 {
        self.last_sequence
    }

    /// Sequence of the latest applied entry.
    pub(super) fn applied_sequence(&self) -> u64 {
        self.entries.front().map_or(self.last_sequence, |pending| pending.sequence - 1)
    }

    pub(super) const fn recovered(&mut self, sequence: u64) {
        self.last_sequence = sequence;
    }

    /// Bytes of entries that are not applied yet.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Blob bytes and tasks that pending entries will add.
    pub(super) const fn reserved(&self) -> (u64, u64) {
        (self.blob_bytes, self.tasks)
    }
}

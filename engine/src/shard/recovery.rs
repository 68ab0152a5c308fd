//! The log's other end: applying entries, at run time and at recovery, and snapshots.

use taskmaster_protocol::body::{
    self, ArchivedCancel, ArchivedComplete, ArchivedConfigureQueue, ArchivedExpire, ArchivedFail, ArchivedRetry,
    ArchivedSubmit, BatchReply, Malformed,
};
use taskmaster_protocol::{FrameBuffer, Operation, PartitionId};

use super::{EVICTIONS_PER_ENTRY_MAX, Shard};
use crate::command;
use crate::entry::{Entry, EntryError, decode};
use crate::snapshot;

impl Shard {
    /// Applies one durable entry.
    pub(super) fn apply(&mut self, entry: &Entry<'_>) -> Result<BatchReply, EntryError> {
        let wrong = |malformed: Malformed| EntryError::Body {
            operation: entry.operation,
            partition: entry.partition,
            sequence: entry.sequence,
            message: malformed.to_string(),
        };
        let Some((partition, mut cx)) = self.split(entry.partition, entry.time_us) else {
            return Err(wrong(Malformed("the partition is not on this shard".to_owned())));
        };
        let mut reply = BatchReply::default();
        match entry.operation {
            Operation::Submit => {
                let body = body::access::<ArchivedSubmit>(entry.body).map_err(wrong)?;
                reply = command::submit::apply(partition, body, entry.resend, &mut cx);
            }
            Operation::Complete => {
                let body = body::access::<ArchivedComplete>(entry.body).map_err(wrong)?;
                reply = command::complete::apply(partition, body, &mut cx);
            }
            Operation::Fail => {
                let body = body::access::<ArchivedFail>(entry.body).map_err(wrong)?;
                reply = command::fail::apply(partition, body, &mut cx);
            }
            Operation::Expire => {
                let body = body::access::<ArchivedExpire>(entry.body).map_err(wrong)?;
                command::expire::apply(partition, body, &mut cx);
            }
            Operation::Cancel => {
                let body = body::access::<ArchivedCancel>(entry.body).map_err(wrong)?;
                reply = command::cancel::apply(partition, body, &mut cx);
            }
            Operation::Retry => {
                let body = body::access::<ArchivedRetry>(entry.body).map_err(wrong)?;
                reply = command::retry::apply(partition, body, &mut cx);
            }
            Operation::ConfigureQueue => {
                let body = body::access::<ArchivedConfigureQueue>(entry.body).map_err(wrong)?;
                command::configure_queue::apply(partition, body, &mut cx);
            }
            operation => return Err(wrong(Malformed(format!("{operation:?} is never logged")))),
        }
        let accepted = u64::from(reply.accepted);
        match entry.operation {
            Operation::Submit => self.stats.submitted += accepted,
            Operation::Complete => self.stats.completed += accepted,
            Operation::Fail => self.stats.failed_attempts += accepted,
            _ => {}
        }
        Ok(reply)
    }

    /// Forgets what the partition of a just applied and answered entry need not keep any longer.
    pub(super) fn evict(&mut self, id: PartitionId, time_us: u64) {
        let (kept_max, now_us) = (self.config.kept_max, self.last_time_us);
        if let Some((partition, mut cx)) = self.split(id, time_us) {
            partition.evict(kept_max, EVICTIONS_PER_ENTRY_MAX, &mut cx);
            partition.arm_retention(cx.timers, now_us);
        }
    }

    /// Applies an entry read back from the log. Entries that the restored snapshot covers are passed over.
    ///
    /// # Errors
    /// [`EntryError`] when the bytes are not an entry of this shard's next sequence or cannot be applied.
    pub fn replay(&mut self, bytes: &[u8]) -> Result<(), EntryError> {
        let entry = decode(bytes)?;
        let expected = self.pending.last_sequence() + 1;
        if entry.sequence < expected {
            return Ok(());
        }
        if entry.sequence > expected {
            return Err(EntryError::Body {
                operation: entry.operation,
                partition: entry.partition,
                sequence: entry.sequence,
                message: format!("entry {expected} is missing before it"),
            });
        }
        self.last_time_us = self.last_time_us.max(entry.time_us);
        self.apply(&entry)?;
        self.evict(entry.partition, entry.time_us);
        self.settled.clear();
        self.revoked.clear();
        self.pending.recovered(entry.sequence);
        Ok(())
    }

    /// Starts a snapshot of the present state. Returns the sequence it stands for: log entries up to it are covered.
    ///
    /// # Panics
    /// If a snapshot is in progress.
    pub fn snapshot_begin(&mut self) -> u64 {
        assert!(self.snapshot_at.is_none(), "one snapshot at a time");
        for partition in self.partitions.iter_mut().flatten() {
            snapshot::begin(partition, &self.arena);
        }
        self.snapshot_at = Some(0);
        self.applied_sequence()
    }

    /// Appends the next chunk of the snapshot in progress to `out` (cleared first); `false` when it is complete.
    /// Work per call is bounded; call in idle slices.
    pub fn snapshot_next(&mut self, out: &mut FrameBuffer) -> bool {
        out.clear();
        while let Some(at) = self.snapshot_at {
            let Some(place) = self.partitions.get_mut(at) else {
                self.snapshot_at = None;
                return false;
            };
            if let Some(partition) = place.as_deref_mut()
                && snapshot::next(partition, &self.arena, out)
            {
                return true;
            }
            self.snapshot_at = Some(at + 1);
        }
        false
    }

    /// Sequence of the latest applied entry.
    #[must_use]
    pub fn applied_sequence(&self) -> u64 {
        self.pending.applied_sequence()
    }

    /// Takes one chunk of a snapshot, in the order in which they were written, before any log entry.
    ///
    /// # Errors
    /// [`Malformed`] when the chunk is not of this shard or does not read as one.
    pub fn restore_chunk(&mut self, bytes: &[u8]) -> Result<(), Malformed> {
        let (id, first) = snapshot::Restore::partition_of(bytes)?;
        let mut restore = core::mem::take(&mut self.restore);
        if first {
            self.restore_finish_partition(&mut restore);
            restore.partition = Some(id);
        }
        let now_us = self.last_time_us;
        let taken = match self.split(id, now_us) {
            Some((partition, mut cx)) => restore.chunk(bytes, partition, &mut cx),
            None => Err(Malformed(format!("partition {id} is not on this shard"))),
        };
        self.restore = restore;
        taken
    }

    fn restore_finish_partition(&mut self, restore: &mut snapshot::Restore) {
        let now_us = self.last_time_us;
        if let Some(id) = restore.partition.take()
            && let Some((partition, mut cx)) = self.split(id, now_us)
        {
            restore.finish(partition, &mut cx);
            partition.arm_retention(cx.timers, now_us);
        }
    }

    /// All chunks were taken; the snapshot stood for `sequence`, and entries after it follow.
    pub fn restore_finish(&mut self, sequence: u64) {
        let mut restore = core::mem::take(&mut self.restore);
        self.restore_finish_partition(&mut restore);
        self.pending.recovered(sequence);
    }

    /// Recovery is over: fencing tokens carry this term from here on. It is greater than every term before.
    ///
    /// # Panics
    /// If the term does not fit 24 bits.
    pub fn start_term(&mut self, term: u32) {
        assert!(term < 1 << 24, "terms are counted per start");
        for partition in self.partitions.iter_mut().flatten() {
            partition.last_token = u64::from(term) << 40;
        }
    }

    /// The partitions this shard owns.
    pub fn owned(&self) -> impl Iterator<Item = PartitionId> + '_ {
        self.partitions.iter().flatten().map(|partition| partition.id)
    }
}

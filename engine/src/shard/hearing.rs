//! What a log tells of attempts: for a replay of one's own past under other policies. A shard that listens is brought back and never started.
//!
//! Attempts that began are in the log only where that is asked for ([`super::Config::logs_starts`], or [`crate::events::Events::starts`]).

use taskmaster_protocol::{PartitionId, TaskId};

use super::Shard;
use crate::events::{Change, Labels};
use crate::partition::{Happened, Partition};
use crate::task::NONE;

/// One thing that became of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// The task.
    pub id: TaskId,
    /// What it was.
    pub change: Change,
    /// When, in microseconds since 1970.
    pub at_us: u64,
    /// Of a start: since when the task was ready.
    pub ready_us: u64,
    /// Of a start: the task's deadline, in microseconds since 1970; 0: none.
    pub deadline_us: u64,
    /// Of a start: bytes of the payload.
    pub payload_bytes: u32,
    /// Index in [`Hearing::labels`].
    pub labels: u32,
}

/// What was heard so far, in the order of each partition's log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hearing {
    /// What became of tasks.
    pub heard: Vec<Heard>,
    /// What kinds of tasks they are.
    pub labels: Vec<Labels>,
}

impl Shard {
    /// Recovery notes what becomes of tasks. To be said before it begins; the shard must not be started then.
    pub fn listen(&mut self) {
        self.hearing = Some(Box::default());
    }

    /// What was heard, once recovery is over.
    ///
    /// # Panics
    /// When an entry does not apply: a defect, or another version's entry.
    pub fn heard(&mut self) -> Hearing {
        self.finish_restoring();
        let groups: Vec<u16> = self.found_groups().map(|(group, _)| group).collect();
        groups.into_iter().for_each(|group| self.apply_alone(group));
        self.hearing.take().map_or_else(Hearing::default, |hearing| *hearing)
    }

    /// Before a command is applied, and behind it: notes what it did.
    #[cold]
    pub(super) fn hear(&mut self, id: PartitionId) {
        let partition = self.partitions.get_mut(usize::from(id.0)).and_then(Option::as_deref_mut);
        let (Some(hearing), Some(partition)) = (self.hearing.as_mut(), partition) else { return };
        let last = partition.outbox.last();
        for (_, happened) in partition.outbox.after(0) {
            hearing.heard.extend(describe(partition, &happened, &self.arena, &mut hearing.labels));
        }
        partition.outbox.sent(last);
        partition.settings.events_kib_max = u32::MAX;
    }
}

fn describe(
    partition: &Partition,
    happened: &Happened,
    arena: &crate::arena::Arena,
    labels: &mut Vec<Labels>,
) -> Option<Heard> {
    let slot = partition.find(happened.id, NONE)?;
    let task = &partition.tasks[slot];
    let is_start = happened.change == Change::Started;
    let deadline_us = || crate::order::deadline::deadline_us(task.extra, &partition.extras);
    Some(Heard {
        id: happened.id,
        change: happened.change,
        at_us: happened.at_us,
        ready_us: if is_start { task.at_us } else { 0 },
        deadline_us: if is_start { deadline_us().unwrap_or(0) } else { 0 },
        payload_bytes: if is_start { u32::try_from(arena.len_of(task.blob)).unwrap_or(u32::MAX) } else { 0 },
        labels: super::events::labels_of(partition, task.contract, labels),
    })
}

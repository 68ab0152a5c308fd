//! Looking at the past: a shard that is brought back only up to a position of one partition's log, or up to a time. It is never
//! started, and answers from the state that it then has.

use taskmaster_protocol::body::{
    self, ArchivedListTasks, ArchivedReadState, Malformed, StateHistory, StatePage, TaskPage,
};
use taskmaster_protocol::{PartitionId, TaskId};

use super::Shard;
use crate::entry;
use crate::query;
use crate::refused::{Refused, unknown_task};
use crate::replica::record::EntryView;
use crate::task::NONE;

/// Where to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Horizon {
    /// With the entry at this index of the partition's log.
    Index(u64),
    /// With the last entry that has commands of this time or earlier, in microseconds since 1970.
    TimeUs(u64),
}

/// A partition as it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// The last entry that is in the state.
    pub index: u64,
    /// Time of its last command, in microseconds since 1970.
    pub time_us: u64,
    /// The last entry that was seen, applied or not.
    pub last_index: u64,
    /// Time of its last command, as far as known.
    pub last_time_us: u64,
    /// The number up to which final tasks were checkpointed, and that of the last one.
    pub numbers: (u64, u64),
}

/// How far one partition is brought back.
#[derive(Debug)]
pub(super) struct Past {
    group: u16,
    horizon: Horizon,
    /// The first entry beyond the horizon, once it was seen.
    beyond: Option<u64>,
    last_index: u64,
    last_time_us: u64,
}

impl Shard {
    /// Recovery brings this partition back only so far. To be said before it begins; the shard must not be started then.
    pub fn stop_at(&mut self, partition: PartitionId, horizon: Horizon) {
        self.past = Some(Past { group: partition.0, horizon, beyond: None, last_index: 0, last_time_us: 0 });
    }

    /// Notes an entry that is replayed; whether it is beyond the horizon.
    pub(super) fn is_beyond(&mut self, view: &EntryView<'_>) -> bool {
        let Some(past) = self.past.as_mut().filter(|past| past.group == view.group) else { return false };
        // The last command's time; entries of a configuration, and a new leader's first, have none.
        let mut time_us = 0;
        let mut rest = if view.is_configuration { &[][..] } else { view.data };
        while let Ok(command) = entry::next(&mut rest, view.group, view.index) {
            time_us = command.time_us;
        }
        let is_later = match past.horizon {
            Horizon::Index(index) => view.index > index,
            Horizon::TimeUs(horizon_us) => time_us > horizon_us,
        };
        if past.beyond.is_some_and(|beyond| view.index <= beyond) {
            // Another leader's entries took the place of those seen before.
            past.beyond = None;
        }
        if is_later && past.beyond.is_none() {
            past.beyond = Some(view.index);
        }
        past.last_index = view.index;
        past.last_time_us = past.last_time_us.max(time_us);
        past.beyond.is_some()
    }

    /// Whether a state that another node sent is beyond the horizon.
    pub(super) fn is_beyond_state(&self, group: u16, index: u64) -> bool {
        let past = self.past.as_ref().filter(|past| past.group == group);
        past.is_some_and(|past| past.beyond.is_some() || matches!(past.horizon, Horizon::Index(end) if index > end))
    }

    /// Where a partition stands after a recovery that was not followed by a start; `None` when it is not here.
    ///
    /// # Panics
    /// When an entry does not apply: a defect, or another version's entry.
    pub fn moment(&mut self, partition: PartitionId) -> Option<Moment> {
        self.finish_restoring();
        self.apply_alone(partition.0);
        let index = self.found_index(partition.0)?;
        let state = self.partitions.get(usize::from(partition.0))?.as_deref()?;
        let (time_us, numbers) = (state.command_us, (state.checkpointed, state.last_retained));
        let (last_index, last_time_us) = self.past.as_ref().map_or((0, 0), |past| (past.last_index, past.last_time_us));
        let (last_index, last_time_us) = (last_index.max(index), last_time_us.max(time_us));
        Some(Moment { index, time_us, last_index, last_time_us, numbers })
    }

    /// A task as it was, with payload or result, and the versions of its state.
    #[must_use]
    pub fn past_task(&self, id: TaskId) -> Option<(TaskPage, StateHistory)> {
        let partition = self.partitions.get(usize::from(id.partition().0))?.as_deref()?;
        let slot = partition.find(id, NONE)?;
        let page = query::task::one(partition, slot, &self.arena, &self.dispatch);
        Some((page, query::versions::history(partition, slot)))
    }

    /// A page of the tasks that there were; the body is a `ListTasks`.
    ///
    /// # Errors
    /// When the body does not read.
    pub fn past_tasks(&self, partition: PartitionId, body: &[u8]) -> Result<TaskPage, Malformed> {
        let body = body::access::<ArchivedListTasks>(body)?;
        let place = self.partitions.get(usize::from(partition.0)).and_then(Option::as_deref);
        place.map_or_else(
            || Ok(TaskPage::default()),
            |partition| query::listing::past(partition, body, &self.arena, &self.dispatch),
        )
    }

    /// Chunks of a version of a task's state as it was; the body is a `ReadState`.
    ///
    /// # Errors
    /// When there is no such task or version.
    pub fn past_state(&self, body: &[u8]) -> Result<StatePage, Refused> {
        let body = body::access::<ArchivedReadState>(body)?;
        let id = TaskId::from(&body.id);
        let place = self.partitions.get(usize::from(id.partition().0)).and_then(Option::as_deref);
        let found = place.and_then(|partition| Some((partition, partition.find(id, NONE)?)));
        let (partition, slot) = found.ok_or_else(|| unknown_task(id))?;
        query::versions::read(partition, slot, body, &self.arena)
    }
}

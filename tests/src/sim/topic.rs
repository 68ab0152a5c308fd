//! The topic outside, in which partitions tell what happens to tasks: it takes a batch as a transaction with its position does, and
//! checks what comes: every number once, and of each task a life that can be.

use std::collections::BTreeMap;

use taskmaster_engine::State;
use taskmaster_engine::checkpoint::Stored;
use taskmaster_engine::events::{Batch, Change, Event, ForTopic};
use taskmaster_protocol::TaskId;

/// What was told of a task.
struct Life {
    last: Change,
    /// Attempts that have ended. Who ends a task from outside does not count the one that it interrupts.
    ended: u32,
}

/// All partitions' events.
#[derive(Default)]
pub(crate) struct Topic {
    /// Latest term and number of each partition.
    stands: BTreeMap<u16, (u64, u64)>,
    lives: BTreeMap<TaskId, Life>,
    /// So few may wait that some are dropped: then lives have gaps.
    pub(crate) has_gaps: bool,
    /// Events taken, and batches refused.
    pub(crate) told: u64,
    pub(crate) refused: u64,
}

impl Topic {
    pub(crate) fn new(has_gaps: bool) -> Self {
        Self { has_gaps, ..Self::default() }
    }

    /// Takes a request; the answer.
    ///
    /// # Errors
    /// A batch that no leader may send.
    pub(crate) fn take(&mut self, request: &ForTopic) -> Result<Stored, String> {
        let (partition, term) = match request {
            ForTopic::Open { partition, term, .. } => (partition.0, *term),
            ForTopic::Batch(batch) => (batch.partition, batch.term),
        };
        let (latest, upto) = self.stands.entry(partition).or_default();
        if *latest > term {
            self.refused += 1;
            return Ok(Stored::Overtaken);
        }
        *latest = term;
        match request {
            ForTopic::Batch(batch) if batch.from == *upto => {
                *upto = batch.to;
                self.batch(batch)?;
                Ok(Stored::Upto(batch.to))
            }
            ForTopic::Batch(_) => {
                self.refused += 1;
                Ok(Stored::Upto(*upto))
            }
            ForTopic::Open { sent, .. } if *sent > *upto && !self.has_gaps => {
                Err(format!("partition {partition} has {sent} events for sent, and the topic has {upto}"))
            }
            ForTopic::Open { .. } => Ok(Stored::Upto(*upto)),
        }
    }

    fn batch(&mut self, batch: &Batch) -> Result<(), String> {
        let mut last = batch.from;
        for event in &batch.events {
            let follows = if self.has_gaps { event.number > last } else { event.number == last + 1 };
            if !follows || event.number > batch.to {
                return Err(format!(
                    "event {} of partition {} behind {last}: {event:?}",
                    event.number, batch.partition
                ));
            }
            last = event.number;
            self.told += 1;
            self.live(event)?;
        }
        Ok(())
    }

    /// What happened to a task must be possible after what happened before.
    fn live(&mut self, event: &Event) -> Result<(), String> {
        let before = self.lives.get(&event.id);
        let is_over =
            |change: Change| matches!(change, Change::Completed | Change::Failed | Change::Cancelled | Change::Expired);
        let may_be = match (before, event.change) {
            // A task that was forgotten may be submitted again.
            (None, Change::Submitted) => true,
            (Some(life), Change::Submitted | Change::Retried) => is_over(life.last),
            (None, _) => false,
            (Some(life), _) => !is_over(life.last),
        };
        let ended = event.attempt - u32::from(event.change == Change::Started);
        let goes_back = before.is_some_and(|life| ended < life.ended) && event.change != Change::Retried;
        if !self.has_gaps && (!may_be || (goes_back && event.change != Change::Submitted)) {
            let before = before.map_or_else(|| "nothing".to_owned(), |life| format!("{:?}", life.last));
            return Err(format!(
                "{} is told to be {:?} (attempt {}) after {before}",
                event.id, event.change, event.attempt
            ));
        }
        self.lives.insert(event.id, Life { last: event.change, ended });
        Ok(())
    }

    /// How a task ended, as far as was told.
    pub(crate) fn end(&self, id: TaskId) -> Option<State> {
        match self.lives.get(&id)?.last {
            Change::Completed => Some(State::Succeeded),
            Change::Failed => Some(State::Failed),
            Change::Cancelled => Some(State::Cancelled),
            Change::Expired => Some(State::Expired),
            Change::Submitted | Change::AttemptFailed | Change::Retried | Change::Started => None,
        }
    }
}

//! The store outside, to which partitions checkpoint their final tasks: it takes a batch as the database does, and checks what comes.

use std::collections::BTreeMap;

use taskmaster_engine::State;
use taskmaster_engine::checkpoint::{Batch, ForStore, Stored};
use taskmaster_protocol::TaskId;

/// All partitions' final tasks.
#[derive(Default)]
pub(crate) struct Store {
    /// Latest term and number of each partition.
    stands: BTreeMap<u16, (u64, u64)>,
    /// How each task ended last.
    ends: BTreeMap<TaskId, State>,
    /// Rows taken, and batches refused.
    pub(crate) rows: u64,
    pub(crate) refused: u64,
}

impl Store {
    /// Takes a request; the answer.
    ///
    /// # Errors
    /// A batch that no leader may send.
    pub(crate) fn take(&mut self, request: &ForStore) -> Result<Stored, String> {
        match request {
            ForStore::Open { partition, term, .. } => {
                let (latest, upto) = self.stands.entry(partition.0).or_default();
                *latest = (*latest).max(*term);
                Ok(if *latest > *term { Stored::Overtaken } else { Stored::Upto(*upto) })
            }
            ForStore::Batch(batch) => self.batch(batch),
        }
    }

    fn batch(&mut self, batch: &Batch) -> Result<Stored, String> {
        let (latest, upto) = self.stands.entry(batch.partition).or_default();
        if *latest > batch.term || *upto != batch.from {
            self.refused += 1;
            return Ok(if *latest > batch.term { Stored::Overtaken } else { Stored::Upto(*upto) });
        }
        (*latest, *upto) = (batch.term, batch.to);
        let mut last = batch.from;
        for task in &batch.tasks {
            if task.number <= last || task.number > batch.to || !task.state.is_final() {
                return Err(format!("{} is {} under number {} behind {last}", task.id, task.state, task.number));
            }
            last = task.number;
            self.ends.insert(task.id, task.state);
            self.rows += 1;
        }
        Ok(Stored::Upto(batch.to))
    }

    /// How a task ended last.
    pub(crate) fn end(&self, id: TaskId) -> Option<State> {
        self.ends.get(&id).copied()
    }
}

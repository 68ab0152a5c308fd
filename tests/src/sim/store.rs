//! The store outside, to which partitions checkpoint their final tasks: it takes a batch as the database does, and checks what comes.

use std::collections::{BTreeMap, BTreeSet};

use taskmaster_engine::State;
use taskmaster_engine::checkpoint::{Batch, ForStore, SavedState, Stored};
use taskmaster_protocol::TaskId;
use taskmaster_protocol::state::{Address, address_of, digest_of};

/// All partitions' final tasks.
#[derive(Default)]
pub(crate) struct Store {
    /// Latest term and number of each partition.
    stands: BTreeMap<u16, (u64, u64)>,
    /// How each task ended last.
    ends: BTreeMap<TaskId, State>,
    /// Chunks of states by partition.
    chunks: BTreeSet<(u16, Address)>,
    /// Versions of states that can be put together.
    pub(crate) versions: u64,
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
        for chunk in &batch.chunks {
            let bytes =
                batch.bytes.get(chunk.bytes.at as usize..).and_then(|rest| rest.get(..chunk.bytes.len as usize));
            if bytes.map(address_of) != Some(chunk.digest) {
                return Err(format!("a chunk of partition {} is not what its digest says", batch.partition));
            }
            self.chunks.insert((batch.partition, chunk.digest));
        }
        let mut last = batch.from;
        for task in &batch.tasks {
            if task.number <= last || task.number > batch.to || !task.state.is_final() {
                return Err(format!("{} is {} under number {} behind {last}", task.id, task.state, task.number));
            }
            last = task.number;
            self.ends.insert(task.id, task.state);
            if let Some(saved) = &task.saved {
                self.versions += saved_whole(saved, |digest| self.chunks.contains(&(batch.partition, *digest)))
                    .map_err(|what| format!("{}: {what}", task.id))?;
            }
            self.rows += 1;
        }
        Ok(Stored::Upto(batch.to))
    }

    /// How a task ended last.
    pub(crate) fn end(&self, id: TaskId) -> Option<State> {
        self.ends.get(&id).copied()
    }
}

/// How many versions a state has, each of them put together from chunks that are there.
fn saved_whole(saved: &SavedState, is_there: impl Fn(&Address) -> bool) -> Result<u64, String> {
    if let Some(missing) = saved.chunks.iter().position(|digest| !is_there(digest)) {
        return Err(format!("chunk {missing} of its state did not come before it"));
    }
    for version in &saved.history.versions {
        let pieces = version.pieces.iter().map(|&place| saved.chunks.get(place as usize));
        let pieces: Option<Vec<&Address>> = pieces.collect();
        if pieces.map(digest_of) != Some(version.digest) {
            return Err(format!("version {} is not what its pieces make", version.number));
        }
    }
    Ok(saved.history.versions.len() as u64)
}

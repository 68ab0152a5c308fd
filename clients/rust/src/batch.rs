//! A batch of tasks in wire form, built row by row, and what its answer means for each row.
//!
//! Invariants: every id is of the batch's partition; rows, contracts and bytes stay within the frame's limits, because
//! [`Batch::has_room`] is asked first. A batch outlives its answer, so that it can be sent again.

use std::sync::Arc;

use taskmaster_protocol::body::{self, ArchivedBatchReply, Extra, Span, Spec, Submit, TaskRow, WorkflowRow};
use taskmaster_protocol::{Code, PartitionId, TaskId, limits};

use crate::error::{Error, Refusal};
use crate::routing::DEFAULT_NAMESPACE;
use crate::task::{Contract, State, Task};

/// Contracts looked at for one that a task shares; more distinct ones in a row cost a row each.
const SPECS_LOOKED_AT: usize = 16;
const SAME_LOOKED_AT: usize = 128;
/// Bytes of byte area after which a batch is sealed: far below the frame limit, above the largest single payload's share.
const AREA_BYTES_MAX: usize = 8 << 20;

/// What became of a submitted task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubmitOutcome {
    /// The task's id, made by this client. For a unique conflict there is no such task: see the holder.
    pub id: TaskId,
    /// What the server said.
    pub result: Submitted,
}

/// The server's word on one submitted task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Submitted {
    /// Kept durably.
    Accepted,
    /// This very id, given with [`Task::id`], was submitted before; the first submission stands. A submission that this
    /// library itself repeated because the answer was lost counts as accepted.
    Duplicate {
        /// State of the task.
        state: State,
    },
    /// Another task holds the unique key; nothing was kept.
    UniqueConflict {
        /// The task that holds the key.
        holder: TaskId,
        /// Its state.
        state: State,
    },
    /// A repeated submission of an id so old that its first outcome is not known any more.
    Forgotten,
    /// Not accepted (only from bulk submission; [`crate::Client::submit`] makes it an error).
    Refused(Arc<Refusal>),
}

impl SubmitOutcome {
    /// Whether the task, under its own id, is in the server's keeping.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        matches!(self.result, Submitted::Accepted | Submitted::Duplicate { .. })
    }
}

/// A batch under construction or on its way.
pub(crate) struct Batch {
    pub(crate) partition: PartitionId,
    pub(crate) body: Submit,
    /// The caller's number of each row.
    pub(crate) indexes: Vec<u64>,
    /// Whether each row's id was made for this very submission: a duplicate of it can only be an earlier copy of the
    /// frame, whose answer was lost.
    is_fresh: Vec<bool>,
    contracts: Vec<Arc<Contract>>,
}

impl Batch {
    pub(crate) fn new(partition: PartitionId) -> Self {
        Self { partition, body: Submit::default(), indexes: Vec::new(), is_fresh: Vec::new(), contracts: Vec::new() }
    }

    /// Empties it for another use, keeping its memory.
    pub(crate) fn reset(&mut self, partition: PartitionId) {
        self.partition = partition;
        self.indexes.clear();
        self.is_fresh.clear();
        self.contracts.clear();
        self.body.specs.clear();
        self.body.tasks.clear();
        self.body.extras.clear();
        self.body.needs.clear();
        self.body.workflow.clear();
        self.body.bytes.clear();
    }

    pub(crate) fn rows(&self) -> usize {
        self.body.tasks.len()
    }

    /// Whether a task with this payload fits.
    pub(crate) fn has_room(&self, payload_bytes: usize, rows_max: usize) -> bool {
        self.rows() < rows_max.min(limits::ROWS_MAX)
            && self.body.specs.len() < limits::SPECS_MAX
            && (self.rows() == 0 || self.body.bytes.len() + payload_bytes <= AREA_BYTES_MAX)
    }

    /// Appends a task. `namespace` is the client's.
    pub(crate) fn push(&mut self, id: TaskId, task: Task, namespace: &str, index: u64) {
        self.push_step(id, task, namespace, index, Step::default());
    }

    /// Appends a task of a workflow.
    pub(crate) fn push_step(&mut self, id: TaskId, task: Task, namespace: &str, index: u64, step: Step<'_>) {
        let spec = self.spec(&task.contract, namespace);
        let is_fresh = task.id.is_none();
        let area = &mut self.body.bytes;
        let payload = body::put(area, &task.payload.0);
        let extra = if task.rare.is_none() && step.is_plain() {
            0
        } else {
            let rare = task.rare.unwrap_or_default();
            let (key, window_ms) = match task.contract.is_memo {
                true => (&rare.memo_version, rare.memo_age_ms),
                false => (&rare.unique_key, rare.unique_window_ms),
            };
            let needs = Span { at: count(self.body.needs.len()), len: count(step.needs.len()) };
            self.body.needs.extend_from_slice(step.needs);
            self.body.extras.push(Extra {
                not_before_ms: rare.not_before_ms,
                delay_ms: rare.delay_ms,
                deadline_ms: rare.deadline_ms,
                deadline_in_ms: rare.deadline_in_ms,
                unique_key: body::put(area, key),
                concurrency_key: body::put(area, &rare.concurrency_key),
                needs,
                name: body::put(area, step.name.as_bytes()),
                unique_window_ms: window_ms,
                concurrency_limit: rare.concurrency_limit,
            });
            count(self.body.extras.len())
        };
        self.body.tasks.push(TaskRow { id, spec, extra, payload });
        self.indexes.push(index);
        self.is_fresh.push(is_fresh);
    }

    /// Makes the batch a workflow.
    pub(crate) fn set_workflow(&mut self, id: TaskId, name: &str, continue_on_failure: bool) {
        let name = body::put(&mut self.body.bytes, name.as_bytes());
        self.body.workflow = vec![WorkflowRow { id, name, on_failure: continue_on_failure.into(), reserved: 0 }];
    }

    fn spec(&mut self, contract: &Arc<Contract>, namespace: &str) -> u32 {
        // The same one, as in workflows of a few kinds, is found for less than an equal one.
        let same = |most: usize, is_it: &dyn Fn(&Arc<Contract>) -> bool| {
            let first = self.contracts.len().saturating_sub(most);
            self.contracts[first..].iter().rposition(is_it).map(|at| first + at)
        };
        let known = same(SAME_LOOKED_AT, &|known| Arc::ptr_eq(known, contract));
        if let Some(at) = known.or_else(|| same(SPECS_LOOKED_AT, &|known| known == contract)) {
            return count(at);
        }
        let area = &mut self.body.bytes;
        let namespace = contract.namespace.as_deref().unwrap_or(namespace);
        let namespace = if namespace.is_empty() { DEFAULT_NAMESPACE } else { namespace };
        self.body.specs.push(Spec {
            memory_bytes: contract.resources.memory_bytes,
            cpu_milli: contract.resources.cpu_milli,
            gpu_milli: contract.resources.gpu_milli,
            custom: body::put(area, contract.resources.custom.as_bytes()),
            namespace: body::put(area, namespace.as_bytes()),
            queue: body::put(area, contract.queue.as_bytes()),
            kind: body::put(area, contract.kind.as_bytes()),
            non_retryable: body::put(area, contract.retries.non_retryable.as_bytes()),
            lease_ms: contract.lease_ms,
            backoff_ms: contract.retries.backoff_ms,
            backoff_max_ms: contract.retries.backoff_max_ms,
            retention_ms: contract.retention_ms,
            backoff_factor_centi: contract.retries.backoff_factor_centi,
            attempts_max: contract.retries.attempts_max,
            priority: contract.priority as u8,
            memo: contract.is_memo.into(),
            restartable: contract.is_restartable.into(),
            reserved: 0,
        });
        self.contracts.push(Arc::clone(contract));
        count(self.contracts.len() - 1)
    }

    /// Takes the row at fault out of a refused batch, and with it every row that shares its fate: nothing of a refused
    /// frame was kept, so the others can go again under their ids. The removed rows' numbers and ids.
    pub(crate) fn remove_refused(&mut self, refusal: &Refusal) -> Vec<(u64, TaskId)> {
        let row = refusal.row.map(|row| row as usize).filter(|&row| row < self.rows());
        let Some(row) = row else { return self.remove_rows(|_| true) };
        // A queue that takes nothing refuses all of its tasks.
        if matches!(refusal.code, Code::QueueDraining | Code::UnknownQueue) {
            let queue = |spec: u32| {
                let contract = &self.contracts[spec as usize];
                (contract.namespace.clone(), contract.queue.clone())
            };
            let refused = queue(self.body.tasks[row].spec);
            let same: Vec<bool> = self.body.tasks.iter().map(|task| queue(task.spec) == refused).collect();
            return self.remove_rows(|at| same[at]);
        }
        self.remove_rows(|at| at == row)
    }

    fn remove_rows(&mut self, is_refused: impl Fn(usize) -> bool) -> Vec<(u64, TaskId)> {
        let mut removed = Vec::new();
        let (mut tasks, mut indexes, mut is_fresh) = (Vec::new(), Vec::new(), Vec::new());
        for (at, (&task, &index)) in self.body.tasks.iter().zip(&self.indexes).enumerate() {
            if is_refused(at) {
                removed.push((index, task.id));
            } else {
                tasks.push(task);
                indexes.push(index);
                is_fresh.push(self.is_fresh[at]);
            }
        }
        self.body.tasks = tasks;
        self.indexes = indexes;
        self.is_fresh = is_fresh;
        removed
    }

    /// Reports each row's outcome, in row order, under its number.
    pub(crate) fn outcomes(
        &self,
        reply: &ArchivedBatchReply,
        mut report: impl FnMut(u64, SubmitOutcome),
    ) -> Result<(), Error> {
        let mut exceptions = reply.exceptions.iter().peekable();
        for (row, (task, &index)) in self.body.tasks.iter().zip(&self.indexes).enumerate() {
            let result = match exceptions.next_if(|exception| exception.index.to_native() as usize == row) {
                Some(exception) => match submitted(exception)? {
                    Submitted::Duplicate { .. } if self.is_fresh[row] => Submitted::Accepted,
                    result => result,
                },
                None => Submitted::Accepted,
            };
            report(index, SubmitOutcome { id: task.id, result });
        }
        match exceptions.next() {
            None => Ok(()),
            Some(_) => Err(Error::Protocol("a submit reply's exceptions are out of order or range".to_owned())),
        }
    }
}

/// A workflow task's place.
#[derive(Clone, Copy, Default)]
pub(crate) struct Step<'a> {
    pub(crate) name: &'a str,
    pub(crate) needs: &'a [u32],
}

impl Step<'_> {
    fn is_plain(&self) -> bool {
        self.name.is_empty() && self.needs.is_empty()
    }
}

fn submitted(exception: &body::ArchivedExceptionRow) -> Result<Submitted, Error> {
    let state = || {
        State::from_number(exception.state)
            .ok_or_else(|| Error::Protocol(format!("a submit reply names the state {}", exception.state)))
    };
    Ok(match Code::from_number(exception.code.to_native()) {
        Code::Ok => Submitted::Accepted,
        Code::Duplicate => Submitted::Duplicate { state: state()? },
        Code::UniqueConflict => Submitted::UniqueConflict { holder: TaskId::from(&exception.id), state: state()? },
        Code::OutcomeForgotten => Submitted::Forgotten,
        code => Submitted::Refused(Arc::new(Refusal::local(code, "the server refused this row"))),
    })
}

/// Rows and bytes are bounded by the frame's limits.
fn count(number: usize) -> u32 {
    u32::try_from(number).expect("frames are bounded far below 2^32 rows")
}

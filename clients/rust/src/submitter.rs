//! Bulk submission: tasks are gathered into batches by partition, and a bounded number of batches is under way.
//!
//! Invariants: every pushed task gets exactly one outcome unless a call returns an error; memory is bounded by
//! (open partitions + batches in flight) × batch size.

use std::collections::HashMap;
use std::mem;
use std::sync::Arc;

use taskmaster_protocol::body::ArchivedBatchReply;
use taskmaster_protocol::{Operation, PartitionId, TaskId};
use tokio::task::JoinSet;

use crate::batch::{Batch, SubmitOutcome, Submitted};
use crate::client::Client;
use crate::cluster::Cluster;
use crate::error::Error;
use crate::routing::now_ms;
use crate::task::Task;

/// Rows one by one taken out of a batch before the rest is given up with the same refusal.
const REFUSED_ROWS_MAX: u32 = 32;
/// Rows gathered over all keyed partitions before the fullest open batch leaves early.
const OPEN_ROWS_FACTOR: usize = 64;

type Report = Box<dyn FnMut(u64, SubmitOutcome) + Send>;
type Flight = (Batch, Vec<(u64, SubmitOutcome)>);

/// Submits a stream of tasks in batches. Made by [`Client::submitter`].
///
/// ```no_run
/// # async fn example(client: taskmaster_client::Client) -> Result<(), taskmaster_client::Error> {
/// # use taskmaster_client::Task;
/// let mut bulk = client.submitter().batch_rows(4096).on_outcome(|index, outcome| {
///     if !outcome.is_kept() { eprintln!("task {index}: {outcome:?}"); }
/// });
/// let template = Task::new("resize").queue("images");
/// for n in 0..1_000_000u32 {
///     bulk.push(template.clone().payload(&n.to_le_bytes())).await?;
/// }
/// bulk.finish().await?;
/// # Ok(()) }
/// ```
pub struct Submitter {
    client: Client,
    batch_rows: usize,
    in_flight: usize,
    report: Report,
    /// The batch of tasks without a key.
    sticky: Option<Batch>,
    /// Batches of keyed tasks.
    keyed: HashMap<u16, Batch>,
    keyed_rows: usize,
    spare: Vec<Batch>,
    flights: JoinSet<Result<Flight, Error>>,
    pushed: u64,
}

impl Submitter {
    pub(crate) fn new(client: Client) -> Self {
        Self {
            client,
            batch_rows: 1024,
            in_flight: 8,
            report: Box::new(|_, _| ()),
            sticky: None,
            keyed: HashMap::new(),
            keyed_rows: 0,
            spare: Vec::new(),
            flights: JoinSet::new(),
            pushed: 0,
        }
    }

    /// Tasks per batch; 1024 unless told.
    #[must_use]
    pub fn batch_rows(mut self, rows: usize) -> Self {
        self.batch_rows = rows.clamp(1, self.client.cluster().topology().info.rows_max.max(1));
        self
    }

    /// Batches under way at once; 8 unless told.
    #[must_use]
    pub fn in_flight(mut self, batches: usize) -> Self {
        self.in_flight = batches.max(1);
        self
    }

    /// Called with each task's number (from 0, in push order) and outcome, during later calls of this submitter and not
    /// in order.
    #[must_use]
    pub fn on_outcome(mut self, report: impl FnMut(u64, SubmitOutcome) + Send + 'static) -> Self {
        self.report = Box::new(report);
        self
    }

    /// Adds a task; waits while the pipeline is full.
    ///
    /// # Errors
    /// What ended an earlier batch for good: the outcomes of batches under way are then not known.
    pub async fn push(&mut self, task: Task) -> Result<(), Error> {
        let index = self.pushed;
        self.pushed += 1;
        let topology = self.client.cluster().topology();
        if let Err(refusal) = task.check(topology.info.payload_bytes_max) {
            let result = Submitted::Refused(Arc::new(refusal));
            (self.report)(index, SubmitOutcome { id: task.id.unwrap_or_default(), result });
            return Ok(());
        }
        match self.client.decided_partition(&task, topology.partitions()) {
            Some(partition) => self.push_keyed(partition, task, index).await,
            None => self.push_sticky(task, index, topology.partitions()).await,
        }
    }

    async fn push_sticky(&mut self, task: Task, index: u64, partitions: u16) -> Result<(), Error> {
        let payload_bytes = task.payload.as_bytes().len();
        if let Some(full) = self.sticky.take_if(|batch| !batch.has_room(payload_bytes, self.batch_rows)) {
            self.launch(full).await?;
        }
        let mut batch = match self.sticky.take() {
            Some(batch) => batch,
            None => self.fresh(self.client.cluster().ids.next_partition(partitions)),
        };
        self.put(&mut batch, task, index);
        if batch.rows() < self.batch_rows {
            self.sticky = Some(batch);
            return Ok(());
        }
        self.launch(batch).await
    }

    async fn push_keyed(&mut self, partition: PartitionId, task: Task, index: u64) -> Result<(), Error> {
        let payload_bytes = task.payload.as_bytes().len();
        if self.keyed.get(&partition.0).is_some_and(|batch| !batch.has_room(payload_bytes, self.batch_rows)) {
            self.launch_keyed(partition.0).await?;
        }
        let mut batch = match self.keyed.remove(&partition.0) {
            Some(batch) => batch,
            None => self.fresh(partition),
        };
        self.put(&mut batch, task, index);
        self.keyed_rows += 1;
        let is_full = batch.rows() >= self.batch_rows;
        self.keyed.insert(partition.0, batch);
        if is_full {
            return self.launch_keyed(partition.0).await;
        }
        if self.keyed_rows >= self.batch_rows.saturating_mul(OPEN_ROWS_FACTOR) {
            let fullest = self.keyed.iter().max_by_key(|(_, batch)| batch.rows()).map(|(&number, _)| number);
            return self.launch_keyed(fullest.expect("a batch was just put there")).await;
        }
        Ok(())
    }

    fn put(&self, batch: &mut Batch, task: Task, index: u64) {
        let id = task.id.unwrap_or_else(|| self.client.cluster().ids.id(now_ms(), batch.partition));
        batch.push(id, task, self.client.namespace(), index);
    }

    fn fresh(&mut self, partition: PartitionId) -> Batch {
        match self.spare.pop() {
            Some(mut batch) => {
                batch.reset(partition);
                batch
            }
            None => Batch::new(partition),
        }
    }

    async fn launch_keyed(&mut self, partition: u16) -> Result<(), Error> {
        let Some(batch) = self.keyed.remove(&partition) else { return Ok(()) };
        self.keyed_rows -= batch.rows();
        self.launch(batch).await
    }

    async fn launch(&mut self, batch: Batch) -> Result<(), Error> {
        while self.flights.len() >= self.in_flight {
            self.land().await?;
        }
        self.flights.spawn(fly(Arc::clone(self.client.cluster()), batch));
        Ok(())
    }

    /// Waits for one batch, if one is under way.
    async fn land(&mut self) -> Result<(), Error> {
        let Some(landed) = self.flights.join_next().await else { return Ok(()) };
        let (batch, outcomes) =
            landed.map_err(|error| Error::lost(format!("the submitting task ended: {error}"))).flatten()?;
        for (index, outcome) in outcomes {
            (self.report)(index, outcome);
        }
        self.spare.push(batch);
        Ok(())
    }

    /// Sends what is gathered and waits until every pushed task has its outcome.
    ///
    /// # Errors
    /// As [`Submitter::push`].
    pub async fn flush(&mut self) -> Result<(), Error> {
        if let Some(batch) = self.sticky.take() {
            self.launch(batch).await?;
        }
        self.keyed_rows = 0;
        for (_, batch) in mem::take(&mut self.keyed) {
            self.launch(batch).await?;
        }
        while !self.flights.is_empty() {
            self.land().await?;
        }
        Ok(())
    }

    /// Flushes; the number of tasks pushed.
    ///
    /// # Errors
    /// As [`Submitter::push`].
    pub async fn finish(mut self) -> Result<u64, Error> {
        self.flush().await?;
        Ok(self.pushed)
    }
}

/// Submits one batch; rows that the server refuses are taken out and the others go again.
async fn fly(cluster: Arc<Cluster>, mut batch: Batch) -> Result<Flight, Error> {
    let mut outcomes = Vec::with_capacity(batch.rows());
    let mut refused = 0;
    while batch.rows() > 0 {
        match cluster.call(Operation::Submit, batch.partition, &batch.body).await {
            Ok(reply) => {
                batch
                    .outcomes(reply.read::<ArchivedBatchReply>()?, |index, outcome| outcomes.push((index, outcome)))?;
                break;
            }
            Err(Error::Refused(mut refusal)) => {
                refused += 1;
                if refused > REFUSED_ROWS_MAX {
                    refusal.row = None;
                }
                let removed: Vec<(u64, TaskId)> = batch.remove_refused(&refusal);
                let refusal = Arc::new(refusal);
                outcomes.extend(removed.into_iter().map(|(index, id)| {
                    (index, SubmitOutcome { id, result: Submitted::Refused(Arc::clone(&refusal)) })
                }));
            }
            Err(error) => return Err(error),
        }
    }
    Ok((batch, outcomes))
}

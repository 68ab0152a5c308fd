//! The client: submissions, results, queries and operators' requests.
//!
//! A [`Client`] is a handle: clone it freely. It connects to each shard on first use, and calls survive lost connections,
//! nodes and leaders until their time is over.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use taskmaster_protocol::body::{
    ArchivedBatchReply, ArchivedChance, ArchivedExplanation, ArchivedNodeStats, ArchivedQueuePage,
    ArchivedShadowReport, ArchivedTaskPage, ArchivedWorkflowPage, AwaitTask, Body, Cancel, Empty, GetTask, GetWorkflow,
    ListQueues, ListWorkflows, Retry, Shadow as ShadowBody, put, slice, text,
};
use taskmaster_protocol::{Code, NodeId, Operation, PartitionId, TaskId};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::batch::{Batch, Step as StepRow, SubmitOutcome, Submitted};
use crate::chance::{Chance, ChanceUnknown};
use crate::cluster::{Cluster, Connector, Patience, Target};
use crate::error::{Error, Refusal};
use crate::memory::TestServer;
use crate::queue::{ListPosition, Policy, QueueSettings, TaskFilter};
use crate::routing::{keyed_partition, memo_partition, now_ms};
use crate::shadow::Shadow;
use crate::submitter::Submitter;
use crate::task::{State, Task, millis_u32};
use crate::view::{
    Fact, Outcome, QueueView, ShardStats, TaskView, WorkflowView, only_task, task_views, workflow_tasks, workflow_views,
};
use crate::wire::{Message, Options};
use crate::workflow::{OnFailure, Workflow, WorkflowHandle};

mod cluster;
pub(crate) mod state;
mod streams;

pub use cluster::ClusterChange;
pub use streams::{StreamPosition, StreamSource};

/// Longest single wait the server is asked for; longer waits are made of several.
const AWAIT_MS: u32 = 30_000;
/// Workflow tasks per page.
const WORKFLOW_PAGE_ROWS: u32 = 10_000;

/// What [`Client::connect`] takes: one `host:port` or several.
pub trait Addresses {
    /// The addresses, in the order to try.
    fn addresses(self) -> Vec<String>;
}

impl Addresses for &str {
    fn addresses(self) -> Vec<String> {
        self.split(',').map(|address| address.trim().to_owned()).filter(|address| !address.is_empty()).collect()
    }
}

impl Addresses for String {
    fn addresses(self) -> Vec<String> {
        self.as_str().addresses()
    }
}

impl Addresses for &String {
    fn addresses(self) -> Vec<String> {
        self.as_str().addresses()
    }
}

impl Addresses for std::net::SocketAddr {
    fn addresses(self) -> Vec<String> {
        vec![self.to_string()]
    }
}

impl<T: AsRef<str>> Addresses for &[T] {
    fn addresses(self) -> Vec<String> {
        self.iter().map(|address| address.as_ref().to_owned()).collect()
    }
}

impl<T: AsRef<str>, const N: usize> Addresses for [T; N] {
    fn addresses(self) -> Vec<String> {
        self.as_slice().addresses()
    }
}

impl<T: AsRef<str>> Addresses for Vec<T> {
    fn addresses(self) -> Vec<String> {
        self.as_slice().addresses()
    }
}

/// Settings of a client under construction.
#[derive(Clone, Debug)]
pub struct ClientBuilder {
    options: Options,
    patience: Patience,
    namespace: String,
    wait_for_node: Duration,
}

impl Default for ClientBuilder {
    fn default() -> Self {
        Self {
            options: Options::default(),
            patience: Patience {
                call: Duration::from_secs(60),
                answer: Duration::from_secs(20),
                backoff: Duration::from_millis(50),
                backoff_max: Duration::from_secs(5),
            },
            namespace: String::new(),
            wait_for_node: Duration::ZERO,
        }
    }
}

impl ClientBuilder {
    /// Name of the program, shown in the server's log and as the default worker name.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.options.client = name.into();
        self
    }

    /// Namespace of tasks and queries that name none; `default` unless told.
    #[must_use]
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// Longest time to connect to one address and to exchange hellos; 5 s unless told.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.options.connect_timeout = timeout;
        self
    }

    /// Longest wait for one answer, after which the connection is given up and the call repeated; 20 s unless told.
    #[must_use]
    pub fn answer_timeout(mut self, timeout: Duration) -> Self {
        self.patience.answer = timeout;
        self
    }

    /// Longest time of one call with all its repetitions; 60 s unless told.
    #[must_use]
    pub fn call_timeout(mut self, timeout: Duration) -> Self {
        self.patience.call = timeout;
        self
    }

    /// First and longest wait between connection attempts; 50 ms and 5 s unless told. While a cluster elects a new leader
    /// the waits are 10 ms to 50 ms, whatever is said here, unless the longest is shorter.
    #[must_use]
    pub fn backoff(mut self, first: Duration, longest: Duration) -> Self {
        self.patience.backoff = first;
        self.patience.backoff_max = longest.max(first);
        self
    }

    /// Keeps trying this long for a node that is not there yet; not at all unless told.
    #[must_use]
    pub fn wait_for_node(mut self, longest: Duration) -> Self {
        self.wait_for_node = longest;
        self
    }

    /// Connects.
    ///
    /// # Errors
    /// [`Error::Connect`] when no address answers, [`Error::Refused`] or [`Error::Protocol`] when one answers otherwise.
    pub async fn connect(self, addresses: impl Addresses) -> Result<Client, Error> {
        let addresses = addresses.addresses();
        let give_up = Instant::now() + self.wait_for_node;
        let mut wait = crate::cluster::Backoff::new(&self.patience);
        loop {
            let connector = Connector::Tcp(addresses.clone());
            let error = match Cluster::connect(connector, self.options.clone(), self.patience.clone()).await {
                Ok(cluster) => return Ok(self.client(cluster)),
                Err(error @ (Error::Connect { .. } | Error::Lost { .. })) => error,
                Err(error) => return Err(error),
            };
            let pause = wait.next();
            if Instant::now() + pause >= give_up {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Connects to a [`TestServer`] in this process, without a network.
    ///
    /// # Errors
    /// [`Error::Lost`] when the server was stopped.
    pub async fn connect_in_memory(self, server: &TestServer) -> Result<Client, Error> {
        let connector = Connector::Memory(server.clone());
        let cluster = Cluster::connect(connector, self.options.clone(), self.patience.clone()).await?;
        Ok(self.client(cluster))
    }

    fn client(self, cluster: Cluster) -> Client {
        Client {
            inner: Arc::new(Inner { cluster: Arc::new(cluster), namespace: self.namespace, name: self.options.client }),
        }
    }
}

struct Inner {
    cluster: Arc<Cluster>,
    namespace: String,
    name: String,
}

/// A handle on a Taskmaster node, or a cluster of them.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

/// The answer to a request about several tasks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Tasks for which it was carried out.
    pub accepted: u64,
    /// The others.
    pub exceptions: Vec<Exception>,
}

/// A task for which a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exception {
    /// The task.
    pub id: TaskId,
    /// Why.
    pub code: Code,
    /// Its state, where it exists.
    pub state: Option<State>,
}

/// One page of tasks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskList {
    /// The tasks, without payloads and results.
    pub tasks: Vec<TaskView>,
    /// Where to go on; `None` at the end.
    pub next: Option<ListPosition>,
}

impl Client {
    /// Connects with default settings. `addresses` is one `host:port`, several separated by commas, or a list. Any node of a
    /// cluster will do; several addresses help when some nodes are away. All other nodes are learnt from the one that
    /// answers.
    ///
    /// # Errors
    /// As [`ClientBuilder::connect`].
    pub async fn connect(addresses: impl Addresses) -> Result<Self, Error> {
        Self::builder().connect(addresses).await
    }

    /// Settings for a connection.
    #[must_use]
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    /// A client of a fresh [`TestServer`] in this process: for unit tests of code that submits or handles tasks.
    ///
    /// # Panics
    /// If it is not called within a tokio runtime.
    pub async fn in_memory() -> Self {
        let server = TestServer::start();
        Self::builder().connect_in_memory(&server).await.expect("a server in this process answers")
    }

    pub(crate) fn cluster(&self) -> &Arc<Cluster> {
        &self.inner.cluster
    }

    /// The namespace of tasks and queries that name none; empty is `default`.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.inner.namespace
    }

    /// The name given to the builder.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Number of shards of all nodes, and so of connections once all are in use.
    #[must_use]
    pub fn shards(&self) -> u16 {
        self.cluster().topology().shards()
    }

    /// Number of partitions.
    #[must_use]
    pub fn partitions(&self) -> u16 {
        self.cluster().partitions()
    }

    /// A fresh id, to keep before submitting with [`Task::id`], for submissions that can be repeated after a restart.
    #[must_use]
    pub fn task_id(&self) -> TaskId {
        let ids = &self.cluster().ids;
        ids.id(now_ms(), ids.next_partition(self.partitions()))
    }

    /// The partition that a task's own id or key decides.
    pub(crate) fn decided_partition(&self, task: &Task, partitions: u16) -> Option<PartitionId> {
        if let Some(id) = task.id {
            return Some(id.partition());
        }
        let rare = task.rare.as_deref()?;
        let namespace = task.contract.namespace.as_deref().unwrap_or(self.namespace());
        if task.contract.is_memo {
            return Some(memo_partition(
                namespace,
                &task.contract.kind,
                &rare.memo_version,
                &task.payload.0,
                partitions,
            ));
        }
        keyed_partition(namespace, &task.contract.queue, rare, partitions)
    }

    /// Submits one task; returns when it is durable.
    ///
    /// # Errors
    /// [`Error::Refused`] when the server (or a check made here in its place) says no; [`Error::Lost`] and
    /// [`Error::Timeout`] when it is not known whether the task was kept.
    pub async fn submit(&self, task: Task) -> Result<SubmitOutcome, Error> {
        let cluster = self.cluster();
        let topology = cluster.topology();
        task.check(topology.info.payload_bytes_max)?;
        let partition = self
            .decided_partition(&task, topology.partitions())
            .unwrap_or_else(|| cluster.ids.next_partition(topology.partitions()));
        let id = task.id.unwrap_or_else(|| cluster.ids.id(now_ms(), partition));
        let mut batch = Batch::new(partition);
        batch.push(id, task, self.namespace(), 0);
        let reply = cluster.call(Operation::Submit, partition, &batch.body).await?;
        let mut only = None;
        batch.outcomes(reply.read::<ArchivedBatchReply>()?, |_, outcome| only = Some(outcome))?;
        let outcome = only.expect("a batch of one row has one outcome");
        match outcome.result {
            Submitted::Refused(refusal) => Err(Error::Refused((*refusal).clone())),
            _ => Ok(outcome),
        }
    }

    /// Submits many tasks in pipelined batches; outcomes in the order of the tasks.
    /// For streams, or to keep no outcomes, see [`Client::submitter`].
    ///
    /// # Errors
    /// [`Error::Lost`], [`Error::Timeout`] or [`Error::Connect`] when a batch could not be submitted at all. A refused
    /// task is an outcome, not an error.
    pub async fn submit_many(&self, tasks: impl IntoIterator<Item = Task>) -> Result<Vec<SubmitOutcome>, Error> {
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        // The channel holds what the vector will hold; a send fails only after the receiver's future was dropped.
        let mut bulk = self.submitter().on_outcome(move |index, outcome| drop(sender.send((index, outcome))));
        let mut outcomes: Vec<Option<SubmitOutcome>> = Vec::new();
        let mut place = |(index, outcome): (u64, SubmitOutcome)| {
            let at = usize::try_from(index).expect("tasks were in memory");
            if outcomes.len() <= at {
                outcomes.resize(at + 1, None);
            }
            outcomes[at] = Some(outcome);
        };
        for task in tasks {
            bulk.push(task).await?;
            while let Ok(outcome) = receiver.try_recv() {
                place(outcome);
            }
        }
        bulk.finish().await?;
        while let Ok(outcome) = receiver.try_recv() {
            place(outcome);
        }
        Ok(outcomes.into_iter().map(|outcome| outcome.expect("a finished submitter reported every task")).collect())
    }

    /// A bulk submitter.
    #[must_use]
    pub fn submitter(&self) -> Submitter {
        Submitter::new(self.clone())
    }

    /// Submits a workflow, wholly or not at all.
    ///
    /// # Errors
    /// As [`Client::submit`]; also [`Error::Refused`] when a unique key of one of its tasks is taken.
    pub async fn submit_workflow(&self, workflow: Workflow) -> Result<WorkflowHandle, Error> {
        let cluster = self.cluster();
        let topology = cluster.topology();
        let partition = cluster.ids.next_partition(topology.partitions());
        let id = cluster.ids.id(now_ms(), partition);
        let mut batch = Batch::new(partition);
        let mut tasks = Vec::with_capacity(workflow.steps.len());
        for (row, step) in workflow.steps.into_iter().enumerate() {
            let refuse = |refusal: Refusal| Refusal {
                message: format!("step \"{}\": {}", step.name, refusal.message),
                row: u32::try_from(row).ok(),
                ..refusal
            };
            step.task.check(topology.info.payload_bytes_max).map_err(refuse)?;
            if !batch.has_room(step.task.payload.as_bytes().len(), topology.info.rows_max) {
                let message = format!("the workflow is larger than one frame from step \"{}\" on: split it", step.name);
                return Err(Refusal::local(Code::TooLarge, message).into());
            }
            let task = cluster.ids.id(now_ms(), partition);
            tasks.push(task);
            let place = StepRow { name: &step.name, needs: &step.needs };
            batch.push_step(task, step.task, self.namespace(), 0, place);
        }
        batch.set_workflow(id, &workflow.name, workflow.on_failure == OnFailure::Continue);
        let reply = cluster.call(Operation::Submit, partition, &batch.body).await?;
        let mut problem = None;
        batch.outcomes(reply.read::<ArchivedBatchReply>()?, |_, outcome| {
            if !outcome.is_kept() {
                problem.get_or_insert(outcome);
            }
        })?;
        match problem.map(|outcome| outcome.result) {
            None => Ok(WorkflowHandle { id, tasks }),
            Some(Submitted::UniqueConflict { holder, state }) => Err(Error::Refused(Refusal::local(
                Code::UniqueConflict,
                format!("task {holder}, which is {state}, holds the unique key of a step"),
            ))),
            Some(Submitted::Refused(refusal)) => Err(Error::Refused((*refusal).clone())),
            Some(_) => Err(Error::Refused(Refusal::local(
                Code::OutcomeForgotten,
                "the first outcome of this submission is not known any more: look at the workflow",
            ))),
        }
    }

    /// Waits until the task is final.
    ///
    /// # Errors
    /// [`Error::Refused`] with `unknown_task` when there is no such task (any more); transport errors.
    pub async fn result(&self, id: TaskId) -> Result<Outcome, Error> {
        loop {
            if let Some(outcome) = self.await_once(id, AWAIT_MS).await? {
                return Ok(outcome);
            }
        }
    }

    /// Waits until the task is final, at most this long; `None` when it is not by then.
    ///
    /// # Errors
    /// As [`Client::result`].
    pub async fn result_within(&self, id: TaskId, longest: Duration) -> Result<Option<Outcome>, Error> {
        let until = Instant::now() + longest;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let outcome = self.await_once(id, millis_u32(left).min(AWAIT_MS)).await?;
            if outcome.is_some() || left.is_zero() {
                return Ok(outcome);
            }
        }
    }

    async fn await_once(&self, id: TaskId, timeout_ms: u32) -> Result<Option<Outcome>, Error> {
        let Some(message) = self.await_message(id, timeout_ms, false).await? else { return Ok(None) };
        let view = only_task(message.read::<ArchivedTaskPage>()?, id)?;
        Ok(view.state.is_final().then(|| Outcome::from(view)))
    }

    async fn await_message(&self, id: TaskId, timeout_ms: u32, workflow: bool) -> Result<Option<Message>, Error> {
        let body = AwaitTask { id, timeout_ms, workflow: workflow.into() };
        let held = Duration::from_millis(timeout_ms.into());
        match self.cluster().call_for(Operation::AwaitTask, Target::Partition(id.partition()), &body, held).await {
            Ok(message) => Ok(Some(message)),
            Err(Error::Refused(refusal)) if refusal.code == Code::TimedOut => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What is known of a task, with payload and result.
    ///
    /// # Errors
    /// [`Error::Refused`] with `unknown_task`; transport errors.
    pub async fn task(&self, id: TaskId) -> Result<TaskView, Error> {
        let message = self.cluster().call(Operation::GetTask, id.partition(), &GetTask { id }).await?;
        only_task(message.read::<ArchivedTaskPage>()?, id)
    }

    /// Why a task waits, or where it ran.
    ///
    /// # Errors
    /// As [`Client::task`].
    pub async fn why(&self, id: TaskId) -> Result<Vec<Fact>, Error> {
        let message = self.cluster().call(Operation::Why, id.partition(), &GetTask { id }).await?;
        let page = message.read::<ArchivedExplanation>()?;
        let (pairs, _) = page.facts.as_slice().as_chunks::<2>();
        let fact = |[name, sentence]: &[_; 2]| {
            Ok(Fact { name: text(&page.bytes, *name)?.to_owned(), sentence: text(&page.bytes, *sentence)?.to_owned() })
        };
        pairs.iter().map(fact).collect()
    }

    /// How likely a task meets its deadline, as things are.
    ///
    /// # Errors
    /// As [`Client::task`].
    pub async fn chance(&self, id: TaskId) -> Result<Chance, Error> {
        match self.cluster().call(Operation::Chance, id.partition(), &GetTask { id }).await {
            Ok(message) => Ok(Chance::of(message.read::<ArchivedChance>()?)),
            Err(Error::Refused(refusal)) if refusal.code == Code::UnknownOperation => {
                Ok(Chance::unknown(ChanceUnknown::NotTold))
            }
            Err(error) => Err(error),
        }
    }

    /// A page of at most `limit` tasks, partition by partition, from `position` (the start by default) on. Finished tasks that are
    /// stored in a database come last, the latest of a partition first.
    ///
    /// # Errors
    /// Refusals and transport errors.
    pub async fn list_tasks(
        &self,
        filter: &TaskFilter,
        position: Option<ListPosition>,
        limit: u32,
    ) -> Result<TaskList, Error> {
        let mut at = position.unwrap_or_else(|| ListPosition::new(self.partitions()));
        let mut tasks: Vec<TaskView> = Vec::new();
        while let Some(&(partition, cursor)) = at.left.front() {
            let left = limit.saturating_sub(u32::try_from(tasks.len()).unwrap_or(u32::MAX));
            if left == 0 {
                return Ok(TaskList { tasks, next: Some(at) });
            }
            let body = filter.to_body(self.namespace(), cursor, left);
            let message = self.cluster().call(Operation::ListTasks, partition, &body).await?;
            let page = message.read::<ArchivedTaskPage>()?;
            tasks.extend(task_views(page)?);
            at.advance(page.cursor.map(|half| half.to_native()));
        }
        Ok(TaskList { tasks, next: None })
    }

    /// Cancels tasks. Running attempts are told and their results refused.
    ///
    /// # Errors
    /// Refusals and transport errors of a whole partition; earlier partitions have been carried out.
    pub async fn cancel(&self, ids: impl IntoIterator<Item = TaskId>) -> Result<Changes, Error> {
        self.change(Operation::Cancel, ids, |ids| Cancel { ids, workflows: 0 }).await
    }

    /// Cancels a workflow's unfinished tasks.
    ///
    /// # Errors
    /// As [`Client::cancel`].
    pub async fn cancel_workflow(&self, id: TaskId) -> Result<Changes, Error> {
        self.change(Operation::Cancel, [id], |ids| Cancel { ids, workflows: 1 }).await
    }

    /// Makes failed, expired or cancelled tasks ready again, with all their attempts.
    ///
    /// # Errors
    /// As [`Client::cancel`].
    pub async fn retry(&self, ids: impl IntoIterator<Item = TaskId>) -> Result<Changes, Error> {
        self.change(Operation::Retry, ids, |ids| Retry { ids }).await
    }

    async fn change<B: Body + Sync>(
        &self,
        operation: Operation,
        ids: impl IntoIterator<Item = TaskId>,
        body: impl Fn(Vec<TaskId>) -> B,
    ) -> Result<Changes, Error> {
        let mut by_partition: BTreeMap<PartitionId, Vec<TaskId>> = BTreeMap::new();
        for id in ids {
            by_partition.entry(id.partition()).or_default().push(id);
        }
        let rows_max = self.cluster().topology().info.rows_max.max(1);
        let mut changes = Changes::default();
        for (partition, ids) in by_partition {
            for ids in ids.chunks(rows_max) {
                let message = self.cluster().call(operation, partition, &body(ids.to_vec())).await?;
                let reply = message.read::<ArchivedBatchReply>()?;
                changes.accepted += u64::from(reply.accepted.to_native());
                changes.exceptions.extend(reply.exceptions.iter().map(|row| Exception {
                    id: ids.get(row.index.to_native() as usize).copied().unwrap_or_else(|| TaskId::from(&row.id)),
                    code: Code::from_number(row.code.to_native()),
                    state: State::from_number(row.state),
                }));
            }
        }
        Ok(changes)
    }

    /// Queues of all namespaces, summed over partitions, by namespace and name.
    ///
    /// # Errors
    /// Refusals and transport errors.
    pub async fn queues(&self) -> Result<Vec<QueueView>, Error> {
        let mut queues: BTreeMap<(String, String), QueueView> = BTreeMap::new();
        for message in self.ask_all_partitions(Operation::ListQueues, ListQueues::default()).await? {
            let page = message.read::<ArchivedQueuePage>()?;
            for row in page.rows.iter() {
                let namespace = text(&page.bytes, row.namespace)?.to_owned();
                let queue = text(&page.bytes, row.queue)?.to_owned();
                let fresh = || QueueView { namespace: namespace.clone(), queue: queue.clone(), ..QueueView::default() };
                queues.entry((namespace.clone(), queue.clone())).or_insert_with(fresh).add(row);
            }
        }
        Ok(queues.into_values().collect())
    }

    /// Changes a queue in every partition.
    ///
    /// # Errors
    /// When a partition refuses or cannot be reached; others may have changed, and the call may be repeated.
    pub async fn configure_queue(&self, queue: &str, settings: QueueSettings) -> Result<(), Error> {
        let body = settings.into_body(self.namespace(), queue);
        self.ask_all_partitions(Operation::ConfigureQueue, body).await.map(drop)
    }

    /// What another policy would have made of what a queue ran lately, on every shard that leads some of it.
    ///
    /// # Errors
    /// [`Error::Refused`] with `unknown_queue`; transport errors.
    pub async fn shadow(&self, queue: &str, policy: Policy) -> Result<Shadow, Error> {
        let topology = self.cluster().topology();
        let (mut asked, mut shadow, mut unknown) = (Vec::new(), Shadow::default(), None);
        for partition in (0..self.partitions()).map(PartitionId) {
            let place = topology.leader(partition)?.map(|place| place.key());
            if place.is_some() && asked.contains(&place) {
                continue;
            }
            asked.push(place);
            let mut body = ShadowBody { policy: policy.number().into(), ..ShadowBody::default() };
            body.namespace = put(&mut body.bytes, self.namespace().as_bytes());
            body.queue = put(&mut body.bytes, queue.as_bytes());
            // A shard may have nothing of the queue.
            match self.cluster().call(Operation::Shadow, partition, &body).await {
                Ok(message) => shadow.add(message.read::<ArchivedShadowReport>()?),
                Err(error) if error.code() == Some(Code::UnknownQueue) => unknown = Some(error),
                Err(error) => return Err(error),
            }
        }
        match unknown {
            Some(error) if shadow.shards + shadow.shards_waiting == 0 => Err(error),
            _ => Ok(shadow),
        }
    }

    /// A workflow with all its tasks.
    ///
    /// # Errors
    /// [`Error::Refused`] with `unknown_workflow`; transport errors.
    pub async fn workflow(&self, id: TaskId) -> Result<WorkflowView, Error> {
        let mut view: Option<WorkflowView> = None;
        loop {
            let from = view.as_ref().map_or(0, |view| u32::try_from(view.tasks.len()).unwrap_or(u32::MAX));
            let body = GetWorkflow { id, from, limit: WORKFLOW_PAGE_ROWS };
            let message = self.cluster().call(Operation::GetWorkflow, id.partition(), &body).await?;
            let page = message.read::<ArchivedWorkflowPage>()?;
            let tasks = workflow_tasks(page)?;
            let is_last = tasks.is_empty();
            let fresh = workflow_views(page)?.pop().ok_or_else(|| unknown_workflow(id))?;
            let view = view.get_or_insert(fresh);
            view.tasks.extend(tasks);
            if is_last || view.tasks.len() as u64 >= view.counts.total() {
                return Ok(view.clone());
            }
        }
    }

    /// The newest workflows of every partition, at most `limit` in all, newest first, without their tasks.
    ///
    /// # Errors
    /// Refusals and transport errors.
    pub async fn workflows(&self, limit: u32) -> Result<Vec<WorkflowView>, Error> {
        let mut workflows = Vec::new();
        for message in self.ask_all_partitions(Operation::ListWorkflows, ListWorkflows { limit }).await? {
            workflows.extend(workflow_views(message.read::<ArchivedWorkflowPage>()?)?);
        }
        workflows.sort_by(|a, b| b.submitted_us.cmp(&a.submitted_us).then(b.id.cmp(&a.id)));
        workflows.truncate(limit as usize);
        Ok(workflows)
    }

    /// Waits until every task of a workflow is final, at most this long; its summary, finished or not.
    ///
    /// # Errors
    /// As [`Client::workflow`].
    pub async fn await_workflow(&self, id: TaskId, longest: Duration) -> Result<WorkflowView, Error> {
        let until = Instant::now() + longest;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let timeout_ms = millis_u32(left).min(AWAIT_MS);
            if let Some(message) = self.await_message(id, timeout_ms, true).await? {
                let view = workflow_views(message.read::<ArchivedWorkflowPage>()?)?.pop();
                let view = view.ok_or_else(|| unknown_workflow(id))?;
                if view.is_finished() {
                    return Ok(view);
                }
            }
            if left.is_zero() {
                return self.workflow(id).await;
            }
        }
    }

    /// Counters of every shard of every node that is there.
    ///
    /// # Errors
    /// Refusals and transport errors.
    pub async fn stats(&self) -> Result<Vec<ShardStats>, Error> {
        let mut stats = Vec::new();
        let topology = self.cluster().topology();
        for place in topology.places().filter(|place| place.node.is_alive) {
            let target = Target::Shard(place.key());
            let message =
                self.cluster().call_for(Operation::NodeStats, target, &Empty::default(), Duration::ZERO).await?;
            let page = message.read::<ArchivedNodeStats>()?;
            let mut counters = Vec::with_capacity(page.names.len());
            for (name, value) in page.names.iter().zip(page.values.iter()) {
                let name = String::from_utf8_lossy(slice(&page.bytes, *name)?).into_owned();
                counters.push((name, value.to_native()));
            }
            stats.push(ShardStats {
                node: Some(NodeId(place.node.id)).filter(|id| id.0 != 0),
                shard: place.shard,
                counters,
            });
        }
        Ok(stats)
    }

    /// One round trip to a shard, for liveness.
    ///
    /// # Errors
    /// Transport errors.
    pub async fn ping(&self) -> Result<Duration, Error> {
        let start = Instant::now();
        self.cluster().call_for(Operation::Ping, Target::Any, &Empty::default(), Duration::ZERO).await?;
        Ok(start.elapsed())
    }

    /// The same request to every partition at once; answers by partition.
    async fn ask_all_partitions<B>(&self, operation: Operation, body: B) -> Result<Vec<Message>, Error>
    where
        B: Body + Send + Sync + 'static,
    {
        let body = Arc::new(body);
        let mut asking = JoinSet::new();
        for number in 0..self.partitions() {
            let (cluster, body) = (Arc::clone(self.cluster()), Arc::clone(&body));
            asking.spawn(async move { (number, cluster.call(operation, PartitionId(number), &*body).await) });
        }
        let mut answers = BTreeMap::new();
        while let Some(joined) = asking.join_next().await {
            let (number, answer) = joined.map_err(|error| Error::lost(format!("the asking task ended: {error}")))?;
            answers.insert(number, answer?);
        }
        Ok(answers.into_values().collect())
    }
}

/// Used by both sides of the in-memory mode.
pub(crate) fn unknown_workflow(id: TaskId) -> Error {
    Error::Refused(Refusal::local(
        Code::UnknownWorkflow,
        format!("no workflow {id}: it never existed or its retention is over"),
    ))
}

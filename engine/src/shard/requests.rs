//! Requests that are not logged: subscriptions, leases, queries. And the table of what each operation does.

use std::collections::HashSet;

use taskmaster_protocol::body::{
    self, ArchivedAwaitTask, ArchivedCredit, ArchivedGetTask, ArchivedGetWorkflow, ArchivedLeases, ArchivedListTasks,
    ArchivedListWorkflows, ArchivedProgress, ArchivedReadState, ArchivedShadow, ArchivedSubscribe, Empty, LeaseRow,
    Leases, TaskPage,
};
use taskmaster_protocol::frame::{self, Header};
use taskmaster_protocol::{Code, FrameBuffer, Operation, PartitionId, TaskId, limits};

use super::reads::{READS_MAX, Read};
use super::{Effects, Shard};
use crate::command;
use crate::contract::DEFAULT_NAMESPACE;
use crate::effects::{About, ConnId, Question};
use crate::outlook::View;
use crate::partition::Awaited;
use crate::query;
use crate::query::listing::Listed;
use crate::refused::{Refused, unknown_task, unknown_workflow};
use crate::resources::Resources;
use crate::task::NONE;

/// When a reader refused as overloaded should come back, in milliseconds.
const READS_RETRY_MS: u32 = 50;
/// Most queue names one shard knows.
const QUEUES_MAX: usize = 1 << 16;

impl Shard {
    /// Does what a frame asks for.
    pub(super) fn request(
        &mut self,
        conn: ConnId,
        header: Header,
        bytes: &[u8],
        effects: &mut Effects,
    ) -> Result<(), Refused> {
        let Some(operation) = Operation::from_number(header.operation) else {
            let message = format!("operation {} is unknown in this version", header.operation);
            return Err(Refused::new(Code::UnknownOperation, message));
        };
        match operation {
            Operation::Submit => self.submit(conn, header, bytes),
            Operation::SubmitStream => self.submit_stream(conn, header, bytes, effects),
            Operation::Complete => self.complete(conn, header, bytes, effects),
            Operation::Fail => self.fail(conn, header, bytes, effects),
            Operation::SaveState => self.save_state(conn, header, bytes, effects),
            Operation::ChangeState => self.change_state(conn, header, bytes),
            Operation::ForkWorkflow => self.fork_workflow(conn, header, bytes),
            Operation::Credit => self.credit(conn, bytes),
            Operation::Subscribe => self.subscribe(conn, header, bytes, effects),
            Operation::Extend | Operation::Release => self.leases_of(conn, operation, header, bytes, effects),
            Operation::Progress => self.progress(&header, bytes),
            Operation::Usage => self.usage(conn, bytes),
            Operation::Cancel => self.cancel(conn, header, bytes),
            Operation::Retry => self.retry(conn, header, bytes),
            Operation::ConfigureQueue => self.configure_queue(conn, header, bytes),
            Operation::GetTask
            | Operation::Why
            | Operation::Chance
            | Operation::Shadow
            | Operation::AwaitTask
            | Operation::ListTasks
            | Operation::ListQueues
            | Operation::ListStreams
            | Operation::GetWorkflow
            | Operation::ListWorkflows
            | Operation::StateLog
            | Operation::ReadState => self.confirm_read(conn, header, bytes, effects),
            Operation::ClusterMap => {
                effects.reply(conn, &header, &self.cluster_map());
                Ok(())
            }
            Operation::ClusterAdmin => self.cluster_admin(conn, header, bytes, effects),
            Operation::Ping => {
                effects.reply(conn, &header, &Empty::default());
                Ok(())
            }
            Operation::Hello
            | Operation::NodeStats
            | Operation::Expire
            | Operation::Assign
            | Operation::Revoke
            | Operation::GoAway => {
                let message = format!("{operation:?} is not a request to a shard");
                Err(Refused::new(Code::UnknownOperation, message))
            }
        }
    }

    /// Lets a read wait until it is certain that this replica leads; it is served by [`Self::read`].
    fn confirm_read(
        &mut self,
        conn: ConnId,
        header: Header,
        bytes: &[u8],
        effects: &mut Effects,
    ) -> Result<(), Refused> {
        self.partition(&header)?;
        let Some(group) = self.group_mut(header.partition) else { return Err(self.not_here(header.partition)) };
        if group.replica.is_alone() {
            return self.read(conn, header, bytes, effects);
        }
        let mut body = FrameBuffer::with_capacity(bytes.len());
        body.extend_from_slice(bytes);
        if !group.reads.push(Read { conn, header, body }) {
            let message = format!("{READS_MAX} reads of partition {} wait: slow down", header.partition);
            return Err(Refused::new(Code::Overloaded, message).retry_after_ms(READS_RETRY_MS));
        }
        self.touch(header.partition);
        Ok(())
    }

    /// Serves a read from the present state, which is true when this is called.
    pub(super) fn read(
        &mut self,
        conn: ConnId,
        header: Header,
        bytes: &[u8],
        effects: &mut Effects,
    ) -> Result<(), Refused> {
        match Operation::from_number(header.operation) {
            Some(operation @ (Operation::GetTask | Operation::Why | Operation::Chance)) => {
                self.look_up(conn, operation, &header, bytes, effects)
            }
            Some(Operation::AwaitTask) => self.await_task(conn, header, bytes, effects),
            Some(Operation::ListTasks) => self.list_tasks(conn, header, bytes, effects),
            Some(Operation::ListQueues) => {
                let page = query::queues::list(self.partition(&header)?);
                effects.reply(conn, &header, &page);
                Ok(())
            }
            Some(Operation::Shadow) => {
                self.partition(&header)?;
                let report = query::shadow::of(&self.view(), body::access::<ArchivedShadow>(bytes)?)?;
                effects.reply(conn, &header, &report);
                Ok(())
            }
            Some(Operation::ListStreams) => {
                let page = query::streams::list(self.partition(&header)?);
                effects.reply(conn, &header, &page);
                Ok(())
            }
            Some(Operation::StateLog) => {
                let id = TaskId::from(&body::access::<ArchivedGetTask>(bytes)?.id);
                let partition = self.partition(&header)?;
                let slot = partition.find(id, NONE).ok_or_else(|| unknown_task(id))?;
                effects.reply(conn, &header, &query::versions::history(partition, slot));
                Ok(())
            }
            Some(Operation::ReadState) => {
                let body = body::access::<ArchivedReadState>(bytes)?;
                let partition = self.partition(&header)?;
                let id = TaskId::from(&body.id);
                let slot = partition.find(id, NONE).ok_or_else(|| unknown_task(id))?;
                effects.reply(conn, &header, &query::versions::read(partition, slot, body, &self.arena)?);
                Ok(())
            }
            Some(operation) => self.workflows(conn, operation, &header, bytes, effects),
            None => unreachable!("only known reads wait"),
        }
    }

    fn subscribe(&mut self, conn: ConnId, header: Header, bytes: &[u8], effects: &mut Effects) -> Result<(), Refused> {
        let body = body::access::<ArchivedSubscribe>(bytes)?;
        if body.queues.is_empty() || body.queues.len() > limits::SUBSCRIPTIONS_MAX {
            let message = format!("{} queues: subscribe to 1 to {}", body.queues.len(), limits::SUBSCRIPTIONS_MAX);
            return Err(Refused::new(Code::Invalid, message));
        }
        let all = body::text(&body.bytes, body.namespace)?;
        let invalid = |sentence| Refused::new(Code::Invalid, sentence);
        let (mut namespaces, mut seen) = (Vec::new(), HashSet::new());
        for namespace in all.split(',') {
            let namespace = if namespace.is_empty() { DEFAULT_NAMESPACE } else { namespace };
            command::submit::check_name("namespace", namespace).map_err(invalid)?;
            if seen.insert(namespace) {
                namespaces.push(namespace);
            }
        }
        let mut names = Vec::with_capacity(body.queues.len());
        for queue in body.queues.iter() {
            let name = body::text(&body.bytes, *queue)?;
            command::submit::check_name("queue", name).map_err(invalid)?;
            if !names.contains(&name) {
                names.push(name);
            }
        }
        let custom = body::text(&body.bytes, body.custom)?;
        command::submit::check_custom(custom).map_err(invalid)?;
        let capacity = Resources::parse(
            body.cpu_milli.to_native(),
            body.memory_bytes.to_native(),
            body.gpu_milli.to_native(),
            custom,
        )
        .map_err(invalid)?;
        let worker = body::text(&body.bytes, body.worker)?.chars().take(limits::NAME_BYTES_MAX).collect();
        if names.len() * namespaces.len() > limits::SUBSCRIPTIONS_MAX {
            let count = names.len() * namespaces.len();
            let message = format!("{count} queues of all namespaces: subscribe to 1 to {}", limits::SUBSCRIPTIONS_MAX);
            return Err(Refused::new(Code::Invalid, message));
        }
        let names: Vec<(&str, &str)> =
            namespaces.iter().flat_map(|namespace| names.iter().map(move |name| (*namespace, *name))).collect();
        let known =
            names.iter().filter(|(namespace, name)| self.dispatch.find_queue(namespace, name).is_some()).count();
        if self.dispatch.queues.len() + names.len() - known > QUEUES_MAX {
            let message = format!("this shard knows {} queues, as many as it can", self.dispatch.queues.len());
            return Err(Refused::new(Code::TooLarge, message));
        }
        let queues = names.into_iter().map(|(namespace, name)| self.dispatch.queue(namespace, name)).collect();
        let capacity = (!capacity.is_empty()).then_some(capacity);
        effects.reply(conn, &header, &Empty::default());
        self.dispatch.subscribe(conn, worker, queues, capacity, body.credit.to_native());
        Ok(())
    }

    fn credit(&mut self, conn: ConnId, bytes: &[u8]) -> Result<(), Refused> {
        let credit = body::access::<ArchivedCredit>(bytes)?.credit.to_native();
        if let Some(worker) = self.dispatch.worker_of(conn) {
            self.dispatch.add_credit(worker, credit);
        }
        Ok(())
    }

    fn leases_of(
        &mut self,
        conn: ConnId,
        operation: Operation,
        header: Header,
        bytes: &[u8],
        effects: &mut Effects,
    ) -> Result<(), Refused> {
        let body = body::access::<ArchivedLeases>(bytes)?;
        self.partition(&header)?;
        let worker = self.dispatch.worker_of(conn);
        let now_us = self.last_time_us;
        let Some((partition, mut cx)) = self.split(PartitionId(header.partition), now_us) else { return Ok(()) };
        let reply = if operation == Operation::Extend {
            command::extend::apply(partition, body, worker, &mut cx)
        } else {
            command::release::apply(partition, body, &mut cx)
        };
        effects.reply(conn, &header, &reply);
        Ok(())
    }

    fn progress(&mut self, header: &Header, bytes: &[u8]) -> Result<(), Refused> {
        let body = body::access::<ArchivedProgress>(bytes)?;
        self.partition(header)?;
        let now_us = self.last_time_us;
        if let Some((partition, cx)) = self.split(PartitionId(header.partition), now_us) {
            command::progress::apply(partition, body, cx.arena);
        }
        Ok(())
    }

    fn look_up(
        &mut self,
        conn: ConnId,
        operation: Operation,
        header: &Header,
        bytes: &[u8],
        effects: &mut Effects,
    ) -> Result<(), Refused> {
        let id = TaskId::from(&body::access::<ArchivedGetTask>(bytes)?.id);
        let partition = self.partition(header)?;
        let slot = match partition.find(id, NONE) {
            None if partition.has_checkpoints() && operation == Operation::GetTask => {
                effects.ask(Question { conn, header: *header, about: About::Task(id) });
                return Ok(());
            }
            slot => slot.ok_or_else(|| unknown_task(id))?,
        };
        match operation {
            Operation::Why => {
                effects.reply(conn, header, &query::why::explain(partition, slot, &self.arena, &self.view()));
            }
            Operation::Chance => effects.reply(conn, header, &query::chance::of(&self.view(), partition, slot)),
            _ => effects.reply(conn, header, &query::task::one(partition, slot, &self.arena, &self.dispatch)),
        }
        Ok(())
    }

    /// What is seen of lines and workers here.
    pub(super) fn view(&self) -> View<'_> {
        View { partitions: &self.partitions, dispatch: &self.dispatch, now_us: self.last_time_us }
    }

    fn list_tasks(&mut self, conn: ConnId, header: Header, bytes: &[u8], effects: &mut Effects) -> Result<(), Refused> {
        let body = body::access::<ArchivedListTasks>(bytes)?;
        let partition = self.partition(&header)?;
        let cluster = self.map.as_ref().map_or(0, |map| map.cluster);
        match query::listing::list(partition, body, cluster, &self.arena, &self.dispatch)? {
            Listed::Page(page) => effects.reply(conn, &header, &page),
            Listed::Stored(_) if !partition.has_checkpoints() => {
                let message = "the listing goes on in a database, and this node has none";
                return Err(Refused::new(Code::Overloaded, message).retry_after_ms(READS_RETRY_MS));
            }
            Listed::Stored(page) => effects.ask(Question { conn, header, about: About::Tasks(page) }),
        }
        Ok(())
    }

    /// Lists a task that the store has as it is here, if it is: not at all if it lived on since all up to number `checkpointed` was
    /// checkpointed, as the listing's pages have it. `false` when it is not here.
    ///
    /// # Errors
    /// The partition is not led here any more.
    pub fn list_kept(&self, id: TaskId, checkpointed: u64, page: &mut TaskPage) -> Result<bool, Refused> {
        let number = id.partition().0;
        let place = self.partitions.get(usize::from(number)).and_then(Option::as_deref);
        let partition = place.filter(|partition| partition.is_leading()).ok_or_else(|| self.not_here(number))?;
        let slot = partition.find(id, NONE);
        if let Some(slot) = slot {
            query::listing::kept(partition, slot, checkpointed, &self.arena, &self.dispatch, page);
        }
        Ok(slot.is_some())
    }

    fn await_task(&mut self, conn: ConnId, header: Header, bytes: &[u8], effects: &mut Effects) -> Result<(), Refused> {
        let body = body::access::<ArchivedAwaitTask>(bytes)?;
        let (id, timeout_ms) = (TaskId::from(&body.id), body.timeout_ms.to_native());
        let partition = self.partition(&header)?;
        let (awaited, is_settled) = if body.workflow.to_native() == 1 {
            let index = partition.workflows.find(id).ok_or_else(|| unknown_workflow(id))?;
            (Awaited::Workflow(id), partition.workflows[index].unfinished == 0)
        } else {
            let slot = match partition.find(id, NONE) {
                None if partition.has_checkpoints() => {
                    effects.ask(Question { conn, header, about: About::Task(id) });
                    return Ok(());
                }
                slot => slot.ok_or_else(|| unknown_task(id))?,
            };
            (Awaited::Task(id), partition.tasks[slot].state.is_final())
        };
        if is_settled {
            self.answer_await(conn, &header, awaited, effects);
            return Ok(());
        }
        self.register_await(conn, header, awaited, timeout_ms)
    }

    fn workflows(
        &mut self,
        conn: ConnId,
        operation: Operation,
        header: &Header,
        bytes: &[u8],
        effects: &mut Effects,
    ) -> Result<(), Refused> {
        let partition = self.partition(header)?;
        if operation == Operation::ListWorkflows {
            let limit = body::access::<ArchivedListWorkflows>(bytes)?.limit.to_native();
            effects.reply(conn, header, &query::workflow::list(partition, limit, &self.arena));
            return Ok(());
        }
        let body = body::access::<ArchivedGetWorkflow>(bytes)?;
        let id = TaskId::from(&body.id);
        let index = partition.workflows.find(id).ok_or_else(|| unknown_workflow(id))?;
        let (from, limit) = (body.from.to_native(), body.limit.to_native());
        effects.reply(conn, header, &query::workflow::one(partition, index, from, limit, &self.arena));
        Ok(())
    }

    /// Tells a worker to stop a task whose lease ended by cancellation or deadline.
    pub(super) fn revoke(&mut self, worker: u32, id: TaskId, token: u64, effects: &mut Effects) {
        let Some(worker) = self.dispatch.workers.get(worker as usize).filter(|worker| worker.connected) else { return };
        let header = Header::request(Operation::Revoke, 0, Some(id.partition()));
        let body = Leases { rows: vec![LeaseRow { id, token, locator: NONE, attempt: 0 }] };
        frame::encode(effects.buffer(worker.conn), header, &body);
    }
}

//! The in-memory server's requests and their answers.

use taskmaster_protocol::body::{
    self, ArchivedAwaitTask, ArchivedCancel, ArchivedChangeState, ArchivedComplete, ArchivedConfigureQueue,
    ArchivedCredit, ArchivedFail, ArchivedGetTask, ArchivedGetWorkflow, ArchivedLeases, ArchivedListTasks,
    ArchivedListWorkflows, ArchivedProgress, ArchivedReadState, ArchivedRetry, ArchivedSaveState, ArchivedShadow,
    ArchivedSpan, ArchivedSubmit, ArchivedSubscribe, BatchReply, Chance, Empty, ExceptionRow, Explanation, NodeStats,
    PolicyWaits, QueueInfo, QueuePage, RESTARTABLE, ShadowReport, TaskInfo, TaskPage, WorkflowInfo, WorkflowPage,
    WorkflowTask, access, chance_basis, put, queue_field, slice, text,
};
use taskmaster_protocol::{Body, Code, Frame, Operation, PartitionId, TaskId};

use super::engine::{Engine, Entry, QueueKey, Subscription, Timer, Wait};
use super::send;
use crate::client::unknown_workflow;
use crate::error::{Error, Refusal};
use crate::routing::DEFAULT_NAMESPACE;
use crate::task::{Resources, State};
use crate::worker::room::Room;

/// Where a request came from.
struct Asked<'a> {
    connection: u64,
    frame: &'a Frame<'a>,
}

impl Engine {
    /// Carries a request out and answers it.
    pub(super) fn handle(&mut self, connection: u64, frame: &Frame<'_>) {
        let asked = Asked { connection, frame };
        let is_answered =
            !matches!(Operation::from_number(frame.header.operation), Some(Operation::Credit | Operation::Progress));
        // What a client asks by itself uses up no refusal.
        let is_counted = frame.header.operation != Operation::ClusterMap.number();
        let result = if self.refuse > 0 && is_answered && is_counted {
            self.refuse -= 1;
            let refusal = body::Refusal::new("told to refuse: try again later", None, self.refuse_retry_ms);
            return self.reply(&asked, Code::Overloaded, &refusal);
        } else {
            self.carry_out(&asked)
        };
        if let Err(error) = result {
            let (code, refusal) = match error {
                Error::Refused(refusal) => (refusal.code, body::Refusal::new(&refusal.message, refusal.row, 0)),
                other => (Code::Malformed, body::Refusal::new(&other.to_string(), None, 0)),
            };
            self.reply(&asked, code, &refusal);
        }
        self.dispatch();
    }

    fn reply<B: Body>(&self, asked: &Asked<'_>, code: Code, body: &B) {
        if let Some(peer) = self.peers.get(&asked.connection) {
            send(&peer.out, asked.frame.header.response(code), body);
        }
    }

    fn carry_out(&mut self, asked: &Asked<'_>) -> Result<(), Error> {
        let bytes = asked.frame.body;
        let operation = Operation::from_number(asked.frame.header.operation)
            .ok_or_else(|| Refusal::local(Code::UnknownOperation, "no such operation"))?;
        match operation {
            Operation::Ping => self.reply(asked, Code::Ok, &Empty::default()),
            Operation::Submit => {
                let submit = access::<ArchivedSubmit>(bytes)?;
                let rows = submit.tasks.len();
                let exceptions = self.submit(submit)?;
                self.reply_batch(asked, rows, exceptions);
            }
            Operation::Subscribe => self.subscribe(asked, access::<ArchivedSubscribe>(bytes)?)?,
            Operation::Credit => {
                let credit = access::<ArchivedCredit>(bytes)?.credit.to_native();
                if let Some(subscription) = self.subscriptions.get_mut(&asked.connection) {
                    subscription.credit += credit;
                }
            }
            Operation::Complete => self.complete(asked, access::<ArchivedComplete>(bytes)?)?,
            Operation::Fail => self.fail(asked, access::<ArchivedFail>(bytes)?)?,
            Operation::SaveState => {
                let reply = self.save_states(access::<ArchivedSaveState>(bytes)?)?;
                self.reply(asked, Code::Ok, &reply);
            }
            Operation::ChangeState => {
                let reply = self.change_state(access::<ArchivedChangeState>(bytes)?)?;
                self.reply(asked, Code::Ok, &reply);
            }
            Operation::Extend => self.extend(asked, access::<ArchivedLeases>(bytes)?),
            Operation::Release => self.release(asked, access::<ArchivedLeases>(bytes)?),
            Operation::Progress => self.progress(access::<ArchivedProgress>(bytes)?)?,
            Operation::Cancel => self.cancel(asked, access::<ArchivedCancel>(bytes)?),
            Operation::Retry => self.retry(asked, access::<ArchivedRetry>(bytes)?),
            Operation::ConfigureQueue => self.configure(asked, access::<ArchivedConfigureQueue>(bytes)?)?,
            Operation::AwaitTask => self.wait(asked, access::<ArchivedAwaitTask>(bytes)?)?,
            _ => self.query(asked, operation)?,
        }
        Ok(())
    }

    fn query(&mut self, asked: &Asked<'_>, operation: Operation) -> Result<(), Error> {
        let bytes = asked.frame.body;
        let partition = PartitionId(asked.frame.header.partition);
        match operation {
            Operation::GetTask => {
                let id = TaskId::from(&access::<ArchivedGetTask>(bytes)?.id);
                self.known(id)?;
                self.reply(asked, Code::Ok, &self.task_page(&[id], true, 0));
            }
            Operation::StateLog => {
                let id = TaskId::from(&access::<ArchivedGetTask>(bytes)?.id);
                self.known(id)?;
                self.reply(asked, Code::Ok, &self.state_history(id));
            }
            Operation::ReadState => {
                let asks = access::<ArchivedReadState>(bytes)?;
                let id = TaskId::from(&asks.id);
                self.known(id)?;
                let page = self.state_page(id, asks.version.to_native(), asks.from.to_native())?;
                self.reply(asked, Code::Ok, &page);
            }
            Operation::ListTasks => self.list(asked, partition, access::<ArchivedListTasks>(bytes)?)?,
            Operation::Why => {
                let id = TaskId::from(&access::<ArchivedGetTask>(bytes)?.id);
                let sentence = format!("the task is {}", self.known(id)?.state);
                let mut bytes = Vec::new();
                let facts = vec![put(&mut bytes, b"state"), put(&mut bytes, sentence.as_bytes())];
                self.reply(asked, Code::Ok, &Explanation { facts, bytes });
            }
            Operation::Chance => {
                self.known(TaskId::from(&access::<ArchivedGetTask>(bytes)?.id))?;
                let basis = chance_basis::TOO_FEW_SAMPLES;
                self.reply(asked, Code::Ok, &Chance { basis, ..Chance::default() });
            }
            Operation::Shadow => {
                let asks = access::<ArchivedShadow>(bytes)?;
                let queue: QueueKey =
                    (namespace(&asks.bytes, asks.namespace)?, text(&asks.bytes, asks.queue)?.to_owned());
                if !self.ready.contains_key(&queue) {
                    let message = format!("queue \"{}\" does not exist", queue.1);
                    return Err(Refusal::local(Code::UnknownQueue, message).into());
                }
                let shadow = PolicyWaits { policy: asks.policy.to_native(), ..PolicyWaits::default() };
                self.reply(asked, Code::Ok, &ShadowReport { shadow, samples_min: 1, ..ShadowReport::default() });
            }
            Operation::ListQueues => self.reply(asked, Code::Ok, &self.queue_page(partition)),
            Operation::GetWorkflow => {
                let asks = access::<ArchivedGetWorkflow>(bytes)?;
                let id = TaskId::from(&asks.id);
                if !self.flows.contains_key(&id) {
                    return Err(unknown_workflow(id));
                }
                let page = (asks.from.to_native() as usize, asks.limit.to_native() as usize);
                self.reply(asked, Code::Ok, &self.flow_page(&[id], Some(page)));
            }
            Operation::ListWorkflows => {
                let limit = access::<ArchivedListWorkflows>(bytes)?.limit.to_native() as usize;
                let mut ids: Vec<TaskId> =
                    self.flows.keys().copied().filter(|id| id.partition() == partition).collect();
                ids.reverse();
                ids.truncate(limit);
                self.reply(asked, Code::Ok, &self.flow_page(&ids, None));
            }
            Operation::NodeStats => {
                let mut bytes = Vec::new();
                let names = vec![put(&mut bytes, b"tasks")];
                self.reply(asked, Code::Ok, &NodeStats { names, values: vec![self.tasks.len() as u64], bytes });
            }
            _ => return Err(Refusal::local(Code::UnknownOperation, "clients may not send this operation").into()),
        }
        Ok(())
    }

    fn reply_batch(&self, asked: &Asked<'_>, rows: usize, exceptions: Vec<(u32, TaskId, Code)>) {
        let exceptions: Vec<ExceptionRow> = exceptions
            .into_iter()
            .map(|(index, id, code)| ExceptionRow {
                id,
                index,
                code: code.number(),
                state: self.tasks.get(&id).map_or(0, |task| task.state.number()),
                reserved: 0,
            })
            .collect();
        let accepted = u32::try_from(rows - exceptions.len()).expect("rows of a frame fit");
        self.reply(asked, Code::Ok, &BatchReply { accepted, exceptions });
    }

    fn known(&self, id: TaskId) -> Result<&Entry, Error> {
        self.tasks.get(&id).ok_or_else(|| Error::unknown_task(id))
    }

    fn subscribe(&mut self, asked: &Asked<'_>, body: &ArchivedSubscribe) -> Result<(), Error> {
        let queues: Result<Vec<String>, _> =
            body.queues.iter().map(|queue| text(&body.bytes, *queue).map(str::to_owned)).collect();
        let offered = Resources {
            cpu_milli: body.cpu_milli.to_native(),
            gpu_milli: body.gpu_milli.to_native(),
            memory_bytes: body.memory_bytes.to_native(),
            custom: text(&body.bytes, body.custom)?.to_owned(),
        };
        let subscription = Subscription {
            room: Room::new(&offered),
            namespace: namespace(&body.bytes, body.namespace)?,
            queues: queues?,
            worker: text(&body.bytes, body.worker)?.to_owned(),
            credit: body.credit.to_native(),
        };
        self.subscriptions.insert(asked.connection, subscription);
        self.reply(asked, Code::Ok, &Empty::default());
        Ok(())
    }

    /// Whether the lease is held under this token.
    pub(super) fn check_lease(&self, id: TaskId, token: u64) -> Result<(), Code> {
        match self.tasks.get(&id) {
            None => Err(Code::UnknownTask),
            Some(task) if task.state.is_final() => Err(Code::AlreadyFinal),
            Some(task) if task.state != State::Leased || task.token != token => Err(Code::StaleLease),
            Some(_) => Ok(()),
        }
    }

    fn complete(&mut self, asked: &Asked<'_>, body: &ArchivedComplete) -> Result<(), Error> {
        let mut exceptions = Vec::new();
        for (row, index) in body.rows.iter().zip(0u32..) {
            let id = TaskId::from(&row.id);
            let result = slice(&body.bytes, row.result)?.to_vec();
            match self.check_lease(id, row.token.to_native()) {
                Ok(()) => {
                    self.task(id).result = result;
                    self.finish(id, State::Succeeded);
                }
                Err(code) => exceptions.push((index, id, code)),
            }
        }
        self.reply_batch(asked, body.rows.len(), exceptions);
        Ok(())
    }

    fn fail(&mut self, asked: &Asked<'_>, body: &ArchivedFail) -> Result<(), Error> {
        let mut exceptions = Vec::new();
        for (row, index) in body.rows.iter().zip(0u32..) {
            let id = TaskId::from(&row.id);
            let code = text(&body.bytes, row.code)?;
            let message = text(&body.bytes, row.message)?;
            let log_tail = slice(&body.bytes, row.log_tail)?.to_vec();
            match self.check_lease(id, row.token.to_native()) {
                Ok(()) => {
                    self.task(id).log_tail = log_tail;
                    self.attempt_failed(id, code, message, row.is_final.to_native() == 1);
                }
                Err(code) => exceptions.push((index, id, code)),
            }
        }
        self.reply_batch(asked, body.rows.len(), exceptions);
        Ok(())
    }

    fn extend(&mut self, asked: &Asked<'_>, body: &ArchivedLeases) {
        let mut exceptions = Vec::new();
        let now_ms = self.now_ms();
        for (row, index) in body.rows.iter().zip(0u32..) {
            let id = TaskId::from(&row.id);
            match self.check_lease(id, row.token.to_native()) {
                Ok(()) => {
                    let connection = asked.connection;
                    let task = self.task(id);
                    task.lease_until_ms = now_ms + u64::from(task.lease_ms);
                    task.holder = connection;
                    let timer = (task.lease_until_ms, Timer::Lease(id, task.token));
                    self.set_timer(timer.0, timer.1);
                }
                Err(code) => exceptions.push((index, id, code)),
            }
        }
        self.reply_batch(asked, body.rows.len(), exceptions);
    }

    fn release(&mut self, asked: &Asked<'_>, body: &ArchivedLeases) {
        let mut exceptions = Vec::new();
        for (row, index) in body.rows.iter().zip(0u32..) {
            let id = TaskId::from(&row.id);
            match self.check_lease(id, row.token.to_native()) {
                Ok(()) => {
                    self.detach(id);
                    let task = self.task(id);
                    task.attempt -= 1;
                    task.budget_used -= 1;
                    self.make_ready(id);
                }
                Err(code) => exceptions.push((index, id, code)),
            }
        }
        self.reply_batch(asked, body.rows.len(), exceptions);
    }

    fn progress(&mut self, body: &ArchivedProgress) -> Result<(), Error> {
        for row in body.rows.iter() {
            let id = TaskId::from(&row.id);
            let note = text(&body.bytes, row.note)?.to_owned();
            if self.check_lease(id, row.token.to_native()).is_ok() {
                let task = self.task(id);
                task.note = note;
                task.done_permille = row.done_permille.to_native();
            }
        }
        Ok(())
    }

    fn cancel(&mut self, asked: &Asked<'_>, body: &ArchivedCancel) {
        let mut exceptions = Vec::new();
        for (id, index) in body.ids.iter().map(TaskId::from).zip(0u32..) {
            let tasks = if body.workflows.to_native() == 1 {
                self.flows.get(&id).map(|flow| flow.tasks.clone())
            } else {
                self.tasks.get(&id).map(|_| vec![id])
            };
            let Some(tasks) = tasks else {
                let is_flow = body.workflows.to_native() == 1;
                exceptions.push((index, id, if is_flow { Code::UnknownWorkflow } else { Code::UnknownTask }));
                continue;
            };
            let open: Vec<TaskId> = tasks.into_iter().filter(|task| !self.tasks[task].state.is_final()).collect();
            if open.is_empty() {
                exceptions.push((index, id, Code::AlreadyFinal));
            }
            for task in open {
                // An earlier one may have taken its descendants along.
                if !self.tasks[&task].state.is_final() {
                    self.revoke(task);
                    self.finish(task, State::Cancelled);
                }
            }
        }
        self.reply_batch(asked, body.ids.len(), exceptions);
    }

    fn retry(&mut self, asked: &Asked<'_>, body: &ArchivedRetry) {
        let mut exceptions = Vec::new();
        for (id, index) in body.ids.iter().map(TaskId::from).zip(0u32..) {
            match self.tasks.get_mut(&id) {
                None => exceptions.push((index, id, Code::UnknownTask)),
                Some(task) if matches!(task.state, State::Failed | State::Expired | State::Cancelled) => {
                    task.budget_used = 0;
                    task.finished_us = 0;
                    if let Some(flow) = task.workflow.and_then(|flow| self.flows.get_mut(&flow)) {
                        flow.finished_us = 0;
                    }
                    self.make_ready(id);
                }
                Some(_) => exceptions.push((index, id, Code::IllegalState)),
            }
        }
        self.reply_batch(asked, body.ids.len(), exceptions);
    }

    fn configure(&mut self, asked: &Asked<'_>, body: &ArchivedConfigureQueue) -> Result<(), Error> {
        let queue: QueueKey = (namespace(&body.bytes, body.namespace)?, text(&body.bytes, body.queue)?.to_owned());
        let set = body.set.to_native();
        self.ready.entry(queue.clone()).or_default();
        for (bit, value, flagged) in [
            (queue_field::PAUSED, body.paused.to_native(), &mut self.paused),
            (queue_field::DRAINING, body.draining.to_native(), &mut self.draining),
        ] {
            if set & bit != 0 {
                if value == 1 {
                    flagged.insert(queue.clone());
                } else {
                    flagged.remove(&queue);
                }
            }
        }
        self.reply(asked, Code::Ok, &Empty::default());
        Ok(())
    }

    fn wait(&mut self, asked: &Asked<'_>, body: &ArchivedAwaitTask) -> Result<(), Error> {
        let (id, is_workflow) = (TaskId::from(&body.id), body.workflow.to_native() == 1);
        let is_final = if is_workflow {
            self.flows.get(&id).ok_or_else(|| unknown_workflow(id))?.finished_us != 0
        } else {
            self.known(id)?.state.is_final()
        };
        let until_ms = self.now_ms() + u64::from(body.timeout_ms.to_native());
        self.waits.push(Wait { id, is_workflow, until_ms, connection: asked.connection, header: asked.frame.header });
        if is_final {
            self.answer_waits(id);
        } else {
            self.set_timer(until_ms, Timer::Wait);
        }
        Ok(())
    }

    fn list(&mut self, asked: &Asked<'_>, partition: PartitionId, body: &ArchivedListTasks) -> Result<(), Error> {
        let namespace = namespace(&body.bytes, body.namespace)?;
        let (queue, kind) = (text(&body.bytes, body.queue)?, text(&body.bytes, body.kind)?);
        let states = body.states.to_native();
        let is_wanted = |task: &&Entry| {
            task.id.partition() == partition
                && task.queue.0 == namespace
                && (queue.is_empty() || task.queue.1 == queue)
                && (kind.is_empty() || task.kind == kind)
                && (states == 0 || states & (1 << task.state.number()) != 0)
        };
        let (from, limit) = (body.cursor[0].to_native(), body.limit.to_native());
        let wanted = self.tasks.values().filter(is_wanted).skip(usize::try_from(from).unwrap_or(usize::MAX));
        let mut ids: Vec<TaskId> = wanted.take(limit as usize + 1).map(|task| task.id).collect();
        let is_more = ids.len() > limit as usize;
        ids.truncate(limit as usize);
        let page = self.task_page(&ids, false, if is_more { from + u64::from(limit) } else { 0 });
        self.reply(asked, Code::Ok, &page);
        Ok(())
    }

    pub(super) fn task_page(&self, ids: &[TaskId], is_whole: bool, cursor: u64) -> TaskPage {
        let mut page = TaskPage { cursor: [cursor, 0], ..TaskPage::default() };
        for id in ids {
            let task = &self.tasks[id];
            let area = &mut page.bytes;
            let whole = |bytes: &[u8], area: &mut Vec<u8>| put(area, if is_whole { bytes } else { &[] });
            page.rows.push(TaskInfo {
                id: *id,
                workflow: task.workflow.unwrap_or_default(),
                at_us: task.at_us,
                started_us: task.started_us,
                deadline_ms: task.deadline_ms,
                namespace: put(area, task.queue.0.as_bytes()),
                queue: put(area, task.queue.1.as_bytes()),
                kind: put(area, task.kind.as_bytes()),
                name: put(area, task.name.as_bytes()),
                payload: whole(&task.payload, area),
                result: whole(&task.result, area),
                error_code: put(area, task.error_code.as_bytes()),
                error: put(area, task.error.as_bytes()),
                log_tail: whole(&task.log_tail, area),
                worker: put(area, task.worker.as_bytes()),
                note: put(area, task.note.as_bytes()),
                done_permille: task.done_permille,
                attempt: task.attempt,
                attempts_max: task.attempts_max,
                state: task.state.number(),
                priority: task.priority | if task.is_restartable { RESTARTABLE } else { 0 },
                late: 0,
                memo: 0,
            });
        }
        page
    }

    fn queue_page(&self, partition: PartitionId) -> QueuePage {
        let mut page = QueuePage::default();
        let mut queues: Vec<&QueueKey> = self.ready.keys().chain(self.tasks.values().map(|task| &task.queue)).collect();
        queues.sort();
        queues.dedup();
        for queue in queues {
            let mut counts = [0u64; 8];
            for task in self.tasks.values() {
                if task.id.partition() == partition && task.queue == *queue {
                    counts[usize::from(task.state.number())] += 1;
                }
            }
            page.rows.push(QueueInfo {
                counts,
                namespace: put(&mut page.bytes, queue.0.as_bytes()),
                queue: put(&mut page.bytes, queue.1.as_bytes()),
                paused: self.paused.contains(queue).into(),
                draining: self.draining.contains(queue).into(),
                ..QueueInfo::default()
            });
        }
        page
    }

    pub(super) fn flow_page(&self, ids: &[TaskId], tasks: Option<(usize, usize)>) -> WorkflowPage {
        let mut page = WorkflowPage::default();
        for id in ids {
            let flow = &self.flows[id];
            let mut counts = [0u32; 8];
            for task in flow.tasks.iter().filter_map(|task| self.tasks.get(task)) {
                counts[usize::from(task.state.number())] += 1;
            }
            page.workflows.push(WorkflowInfo {
                id: *id,
                counts,
                submitted_us: flow.submitted_us,
                finished_us: flow.finished_us,
                name: put(&mut page.bytes, flow.name.as_bytes()),
            });
            let Some((from, limit)) = tasks else { continue };
            for task in flow.tasks.iter().skip(from).take(limit).filter_map(|task| self.tasks.get(task)) {
                page.rows.push(WorkflowTask {
                    id: task.id,
                    ready_us: task.ready_us,
                    started_us: task.started_us,
                    finished_us: task.finished_us,
                    name: put(&mut page.bytes, task.name.as_bytes()),
                    attempt: task.attempt,
                    state: task.state.number().into(),
                });
            }
        }
        page
    }
}

fn namespace(area: &rkyv::vec::ArchivedVec<u8>, span: ArchivedSpan) -> Result<String, Error> {
    let namespace = text(area, span)?;
    Ok(if namespace.is_empty() { DEFAULT_NAMESPACE } else { namespace }.to_owned())
}

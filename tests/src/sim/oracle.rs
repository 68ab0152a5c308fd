//! What must be true, whatever happened: the oracle watches the node's wire and knows what was acknowledged.
//!
//! It sees every frame as the node receives it and as the node sends it, and looks at all tasks after every restart.
//! Acknowledgements count from the moment they leave the node. Rules are sound: each is stated so that what the oracle
//! cannot know (the order inside a turn, unanswered requests that a crash kept) never makes it cry wolf.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use taskmaster_protocol::body::{
    self, ArchivedAssign, ArchivedBatchReply, ArchivedCancel, ArchivedComplete, ArchivedConfigureQueue, ArchivedFail,
    ArchivedLeases, ArchivedRetry, ArchivedSubmit, queue_field,
};
use taskmaster_protocol::frame::Header;
use taskmaster_protocol::{Code, FrameBuffer, Operation, TaskId, access};

use super::inspect::{Seen, State};

/// What was promised about a task when it was made.
#[derive(Clone, Debug, Default)]
pub(crate) struct Contract {
    pub(crate) unique: Option<u32>,
    pub(crate) unique_window_us: u64,
    pub(crate) key: Option<u32>,
    pub(crate) key_limit: u32,
    pub(crate) delay_us: u64,
    pub(crate) has_deadline: bool,
    pub(crate) attempts_max: u32,
    pub(crate) lease_us: u64,
    pub(crate) workflow: Option<TaskId>,
    pub(crate) needs: Vec<TaskId>,
    pub(crate) continues: bool,
    pub(crate) queue: u32,
    /// Its retention is short: once it is final it may be unknown.
    pub(crate) may_be_forgotten: bool,
}

#[derive(Debug)]
struct Lease {
    token: u64,
    conn: u64,
    ends_us: u64,
    /// Something was received that may have ended it.
    may_be_over: bool,
}

#[derive(Debug, Default)]
struct Task {
    contract: Contract,
    first_received_us: u64,
    /// Acknowledged by an accepted row or as a duplicate.
    acknowledged: bool,
    accepted_row: bool,
    last_token: u64,
    lease: Option<Lease>,
    attempts_seen: u32,
    /// Results of completions received.
    results: Vec<Vec<u8>>,
    /// The result whose completion was acknowledged.
    completed: Option<Vec<u8>>,
    /// A valid completion was received; a crash may have kept it unanswered.
    valid_received: bool,
    may_be_recovered: bool,
    cancel_received: bool,
    /// The final state that it was seen in, until a retry.
    settled: Option<State>,
    /// Retries received and not answered that may concern it.
    retries: u32,
    /// A retry was received: it may start at once, whatever its delay.
    retried: bool,
}

/// A request whose answer is awaited.
struct Request {
    /// Order of arrival, which is the order of the log.
    order: u64,
    operation: Operation,
    is_resend: bool,
    received_us: u64,
    rows: Vec<Row>,
    /// `ConfigureQueue`: partition, queue, paused, concurrency.
    setting: Option<(u16, u32, Option<bool>, Option<u32>)>,
}

struct Row {
    id: TaskId,
    token: u64,
    is_valid: bool,
    result: Vec<u8>,
}

impl Row {
    fn of(id: TaskId) -> Self {
        Self { id, token: 0, is_valid: true, result: Vec::new() }
    }
}

/// A frame that the node sent.
pub(crate) struct Sent {
    pub(crate) link: u64,
    pub(crate) header: Header,
    pub(crate) body: FrameBuffer,
}

/// Everything known.
#[derive(Default)]
pub(crate) struct Oracle {
    tasks: BTreeMap<TaskId, Task>,
    workflows: HashMap<TaskId, Vec<TaskId>>,
    by_key: BTreeMap<u32, Vec<TaskId>>,
    by_unique: BTreeMap<u32, Vec<TaskId>>,
    /// Accepted holders of unique keys with windows: key, not before, task.
    windows: BTreeMap<u32, Vec<(u64, TaskId)>>,
    requests: HashMap<(u64, u64), Request>,
    received: u64,
    /// Highest reading of the node's clock so far.
    clock_us_max: u64,
    /// Latest reading, and the lowest one since the last turn.
    clock_us: u64,
    clock_us_low: u64,
    /// (partition, queue) known to be paused.
    paused: BTreeMap<(u16, u32), bool>,
    limits: BTreeMap<(u16, u32), u32>,
    /// End of the id of a task to report on.
    pub(crate) watched: Option<String>,
    /// Counters for the report.
    pub(crate) submits_acknowledged: u64,
    pub(crate) completions_acknowledged: u64,
    pub(crate) assigned: u64,
}

type Verdict = Result<(), String>;

fn require(holds: bool, sentence: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(sentence()) }
}

impl Oracle {
    pub(crate) fn new() -> Self {
        Self { watched: std::env::var("TASKMASTER_SIM_WATCH").ok(), ..Self::default() }
    }

    /// For hunting: what happens to the task whose id ends with TASKMASTER_SIM_WATCH.
    fn watch(&self, id: TaskId, what: impl FnOnce() -> String) {
        if let Some(end) = &self.watched
            && id.to_string().ends_with(end.as_str())
        {
            eprintln!("{:>9} {id} {}", self.clock_us.saturating_sub(super::world::START_US), what());
        }
    }

    /// A task that is about to be submitted.
    pub(crate) fn register(&mut self, id: TaskId, contract: Contract) {
        if let Some(workflow) = contract.workflow {
            self.workflows.entry(workflow).or_default().push(id);
        }
        if let Some(key) = contract.key {
            self.by_key.entry(key).or_default().push(id);
        }
        if let Some(key) = contract.unique {
            self.by_unique.entry(key).or_default().push(id);
        }
        self.tasks.insert(id, Task { contract, ..Task::default() });
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = TaskId> + '_ {
        self.tasks.keys().copied()
    }

    pub(crate) fn len(&self) -> usize {
        self.tasks.len()
    }

    pub(crate) fn id_at(&self, pick: u64) -> Option<TaskId> {
        let count = self.tasks.len() as u64;
        let nth = usize::try_from(pick % count.max(1)).expect("below a usize");
        self.tasks.keys().nth(nth).copied()
    }

    pub(crate) fn workflow_of(&self, id: TaskId) -> Option<TaskId> {
        self.tasks.get(&id)?.contract.workflow
    }

    /// The node's clock reads `now_us`.
    pub(crate) fn clock(&mut self, now_us: u64) {
        self.clock_us_max = self.clock_us_max.max(now_us);
        self.clock_us = now_us;
        self.clock_us_low = self.clock_us_low.min(now_us);
    }

    /// The node has taken a frame from its wire.
    pub(crate) fn received(&mut self, link: u64, header: &Header, body: &[u8], now_us: u64) {
        let Some(operation) = Operation::from_number(header.operation) else { return };
        self.received += 1;
        let mut request = Request {
            order: self.received,
            operation,
            is_resend: header.is_resend(),
            received_us: now_us,
            rows: Vec::new(),
            setting: None,
        };
        match operation {
            Operation::Submit => self.submit_received(body, now_us, &mut request),
            Operation::Complete | Operation::Fail | Operation::Extend | Operation::Release => {
                self.work_received(body, &mut request);
            }
            Operation::Cancel | Operation::Retry => self.change_received(body, &mut request),
            Operation::ConfigureQueue => self.setting_received(header.partition, body, &mut request),
            _ => return,
        }
        for row in &request.rows {
            self.watch(row.id, || format!("<- {operation:?} token {:#x} valid {}", row.token, row.is_valid));
        }
        self.requests.insert((link, header.correlation), request);
    }

    fn submit_received(&mut self, body: &[u8], now_us: u64, request: &mut Request) {
        let body = access::<ArchivedSubmit>(body).expect("clients send whole bodies");
        for row in body.tasks.iter() {
            let id = TaskId::from(&row.id);
            let task = self.tasks.get_mut(&id).expect("submitted tasks are registered");
            // The clock may be set back between two tries, and a crash may lose the first one.
            if task.first_received_us == 0 || now_us < task.first_received_us {
                task.first_received_us = now_us;
            }
            request.rows.push(Row::of(id));
        }
    }

    fn work_received(&mut self, body: &[u8], request: &mut Request) {
        match request.operation {
            Operation::Complete => {
                let body = access::<ArchivedComplete>(body).expect("workers send whole bodies");
                for row in body.rows.iter() {
                    let result = body::slice(&body.bytes, row.result).expect("spans are right").to_vec();
                    let row = self.lease_row(TaskId::from(&row.id), row.token.to_native(), true);
                    let task = self.tasks.get_mut(&row.id).expect("completed tasks are registered");
                    if !task.results.contains(&result) {
                        task.results.push(result.clone());
                    }
                    task.valid_received |= row.is_valid;
                    request.rows.push(Row { result, ..row });
                }
            }
            Operation::Fail => {
                let body = access::<ArchivedFail>(body).expect("workers send whole bodies");
                for row in body.rows.iter() {
                    request.rows.push(self.lease_row(TaskId::from(&row.id), row.token.to_native(), true));
                }
            }
            operation => {
                let body = access::<ArchivedLeases>(body).expect("workers send whole bodies");
                for row in body.rows.iter() {
                    let may_end = operation == Operation::Release;
                    request.rows.push(self.lease_row(TaskId::from(&row.id), row.token.to_native(), may_end));
                }
            }
        }
    }

    fn change_received(&mut self, body: &[u8], request: &mut Request) {
        if request.operation == Operation::Retry {
            let body = access::<ArchivedRetry>(body).expect("clients send whole bodies");
            for id in body.ids.iter().map(TaskId::from) {
                self.unsettle(id, 1);
                request.rows.push(Row::of(id));
            }
            return;
        }
        let body = access::<ArchivedCancel>(body).expect("clients send whole bodies");
        for id in body.ids.iter().map(TaskId::from) {
            let whole = body.workflows.to_native() == 1;
            let ids = if whole { self.workflows.get(&id).cloned().unwrap_or_default() } else { vec![id] };
            for id in ids {
                let task = self.tasks.get_mut(&id).expect("cancelled tasks are registered");
                task.cancel_received = true;
                if let Some(lease) = &mut task.lease {
                    lease.may_be_over = true;
                }
            }
            if !whole {
                request.rows.push(Row::of(id));
            }
        }
    }

    fn setting_received(&mut self, partition: u16, body: &[u8], request: &mut Request) {
        let body = access::<ArchivedConfigureQueue>(body).expect("clients send whole bodies");
        let name = body::text(&body.bytes, body.queue).expect("spans are right");
        let queue: u32 = name[1..].parse().expect("queues are named q0, q1, ...");
        let set = body.set.to_native();
        let paused = (set & queue_field::PAUSED != 0).then(|| body.paused.to_native() == 1);
        let limit = (set & queue_field::CONCURRENCY != 0).then(|| body.concurrency.to_native());
        if paused == Some(false) {
            self.paused.remove(&(partition, queue));
        }
        request.setting = Some((partition, queue, paused, limit));
    }

    fn lease_row(&mut self, id: TaskId, token: u64, may_end: bool) -> Row {
        let task = self.tasks.get_mut(&id).expect("leased tasks are registered");
        let lease = task.lease.as_mut().filter(|lease| lease.token == token);
        let is_valid = lease.is_some();
        if let Some(lease) = lease {
            lease.may_be_over |= may_end;
        }
        Row { id, token, is_valid, result: Vec::new() }
    }

    /// A retry may make a task and its workflow's others unfinished; success stays. `retries` is added to those under way.
    fn unsettle(&mut self, id: TaskId, retries: i32) {
        let workflow = self.tasks.get(&id).and_then(|task| task.contract.workflow);
        let ids = workflow.and_then(|workflow| self.workflows.get(&workflow).cloned()).unwrap_or_else(|| vec![id]);
        for id in ids {
            let task = self.tasks.get_mut(&id).expect("registered");
            task.settled = task.settled.filter(|state| *state == State::Succeeded);
            task.retries = task.retries.saturating_add_signed(retries);
            task.retried = true;
            if let Some(lease) = &mut task.lease {
                lease.may_be_over = true;
            }
        }
    }

    /// A connection is gone, as the node sees it: its leases may end at the grace.
    pub(crate) fn lost(&mut self, link: u64, now_us: u64) {
        let grace_us = now_us + 2_000_000;
        for task in self.tasks.values_mut() {
            if let Some(lease) = task.lease.as_mut().filter(|lease| lease.conn == link) {
                lease.ends_us = lease.ends_us.min(grace_us);
            }
        }
    }

    /// The node's process is gone, and with it every lease.
    pub(crate) fn crashed(&mut self) {
        // A resume that was not answered may have been kept.
        for (partition, queue, paused, _) in self.requests.values().filter_map(|request| request.setting) {
            if paused == Some(false) {
                self.paused.remove(&(partition, queue));
            }
        }
        self.requests.clear();
        for task in self.tasks.values_mut() {
            task.lease = None;
            task.may_be_recovered |= task.valid_received;
            if std::mem::take(&mut task.retries) > 0 {
                task.settled = task.settled.filter(|state| *state == State::Succeeded);
            }
        }
    }

    /// The node has made these frames from one input. The queues of which tasks were assigned.
    pub(crate) fn sent(&mut self, frames: &[Sent]) -> Result<BTreeSet<u32>, String> {
        let mut answers: Vec<(Request, &Sent)> = Vec::new();
        for sent in frames.iter().filter(|sent| sent.header.is_response()) {
            if let Some(request) = self.requests.remove(&(sent.link, sent.header.correlation)) {
                answers.push((request, sent));
            }
        }
        answers.sort_by_key(|(request, _)| request.order);
        for (request, sent) in answers {
            if request.operation == Operation::Retry {
                request.rows.iter().for_each(|row| self.unsettle(row.id, -1));
            } else if sent.header.code == Code::Ok.number() {
                self.answered(&request, sent)?;
            }
        }
        let mut queues = BTreeSet::new();
        for sent in frames.iter().filter(|sent| sent.header.operation == Operation::Assign.number()) {
            self.assigned(sent, &mut queues)?;
        }
        Ok(queues)
    }

    fn answered(&mut self, request: &Request, sent: &Sent) -> Verdict {
        if let Some((partition, queue, paused, limit)) = request.setting {
            if paused == Some(true) {
                self.paused.insert((partition, queue), false);
            } else if paused == Some(false) {
                self.paused.remove(&(partition, queue));
            }
            if let Some(limit) = limit {
                self.limits.insert((partition, queue), limit);
            }
            return Ok(());
        }
        let reply =
            access::<ArchivedBatchReply>(&sent.body).map_err(|error| format!("a reply does not read: {error}"))?;
        let mut exceptions = HashMap::new();
        for exception in reply.exceptions.iter() {
            let index = exception.index.to_native() as usize;
            let code = Code::from_number(exception.code.to_native());
            let twice = exceptions.insert(index, (code, TaskId::from(&exception.id)));
            require(twice.is_none(), || format!("row {index} of a {:?} has two exceptions", request.operation))?;
        }
        if request.operation != Operation::Cancel || !request.rows.is_empty() {
            let accepted = reply.accepted.to_native() as usize;
            require(accepted + exceptions.len() == request.rows.len(), || {
                let (rows, exceptions) = (request.rows.len(), exceptions.len());
                format!("a {:?} of {rows} rows: {accepted} accepted, {exceptions} exceptions", request.operation)
            })?;
        }
        for (index, row) in request.rows.iter().enumerate() {
            self.watch(row.id, || format!("-> {:?} {:?}", request.operation, exceptions.get(&index)));
            match request.operation {
                Operation::Submit => self.submit_answered(request, row, exceptions.get(&index))?,
                Operation::Complete if !exceptions.contains_key(&index) => self.completed(row)?,
                Operation::Fail if !exceptions.contains_key(&index) => {
                    require(row.is_valid, || format!("a failure of {} under a stale token was accepted", row.id))?;
                }
                Operation::Extend if !exceptions.contains_key(&index) => {
                    let task = self.tasks.get_mut(&row.id).expect("registered");
                    let ends_us = request.received_us + task.contract.lease_us;
                    if let Some(lease) = task.lease.as_mut().filter(|lease| lease.token == row.token) {
                        lease.ends_us = ends_us;
                        lease.conn = sent.link;
                    }
                }
                Operation::Cancel if !exceptions.contains_key(&index) => {
                    self.settle(row.id, State::Cancelled)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn settle(&mut self, id: TaskId, state: State) -> Verdict {
        let task = self.tasks.get_mut(&id).expect("registered");
        let before = task.settled.replace(state);
        require(before.is_none_or(|before| before == state), || {
            format!("{id} became {state:?} after it was {before:?}")
        })
    }

    fn completed(&mut self, row: &Row) -> Verdict {
        require(row.is_valid, || format!("a completion of {} under a stale token was accepted", row.id))?;
        let task = self.tasks.get_mut(&row.id).expect("registered");
        require(task.completed.is_none(), || format!("{} was completed twice", row.id))?;
        task.completed = Some(row.result.clone());
        self.completions_acknowledged += 1;
        self.settle(row.id, State::Succeeded)
    }

    fn submit_answered(&mut self, request: &Request, row: &Row, exception: Option<&(Code, TaskId)>) -> Verdict {
        let clock_us = self.clock_us_max;
        let task = self.tasks.get_mut(&row.id).expect("registered");
        match exception {
            None => {
                require(!task.accepted_row, || format!("{} was accepted twice", row.id))?;
                (task.accepted_row, task.acknowledged) = (true, true);
                self.submits_acknowledged += 1;
                let Some(key) = task.contract.unique.filter(|_| task.contract.unique_window_us > 0) else {
                    return self.check_window(row.id, clock_us);
                };
                self.check_window(row.id, clock_us)?;
                let task = &self.tasks[&row.id];
                let until_us = request.received_us + task.contract.unique_window_us;
                self.windows.entry(key).or_default().push((until_us, row.id));
                Ok(())
            }
            Some((Code::Duplicate, _)) => {
                self.submits_acknowledged += u64::from(!task.acknowledged);
                task.acknowledged = true;
                Ok(())
            }
            Some((Code::UniqueConflict, holder)) => {
                let key = task.contract.unique;
                require(key.is_some() && *holder != row.id, || format!("{} conflicts with {holder}", row.id))?;
                let holds = self.tasks.get(holder).and_then(|holder| holder.contract.unique);
                require(holds == key, || format!("{} conflicts with {holder}, which has another key", row.id))
            }
            // A resend of what may have been accepted and forgotten: the node cannot know, and must not run it again.
            Some((Code::OutcomeForgotten, _)) => {
                require(request.is_resend, || format!("{} is told forgotten and was never sent before", row.id))
            }
            Some((code, _)) => Err(format!("{} was refused with {code}", row.id)),
        }
    }

    /// A task with a unique key was accepted: no window of another one may cover this moment.
    fn check_window(&self, id: TaskId, clock_us: u64) -> Verdict {
        let Some(key) = self.tasks[&id].contract.unique else { return Ok(()) };
        for (until_us, holder) in self.windows.get(&key).into_iter().flatten() {
            require(clock_us >= *until_us, || {
                format!("{id} took unique key {key} within the window of {holder} ({clock_us} < {until_us})")
            })?;
        }
        Ok(())
    }

    fn assigned(&mut self, sent: &Sent, queues: &mut BTreeSet<u32>) -> Verdict {
        let assign =
            access::<ArchivedAssign>(&sent.body).map_err(|error| format!("an assign does not read: {error}"))?;
        for row in assign.rows.iter() {
            let (id, token, attempt) = (TaskId::from(&row.id), row.token.to_native(), row.attempt.to_native());
            self.assigned += 1;
            self.watch(id, || format!("-> Assign token {token:#x} attempt {attempt}"));
            self.check_needs(id)?;
            let clock_us = self.clock_us_max;
            let task = self.tasks.get_mut(&id).ok_or_else(|| format!("{id} was never submitted, yet assigned"))?;
            require(task.first_received_us > 0, || format!("{id} was assigned before it was received"))?;
            require(token > task.last_token, || {
                format!("{id} was assigned under token {token:#x} after {:#x}", task.last_token)
            })?;
            require(task.completed.is_none(), || format!("{id} was assigned after its completion was acknowledged"))?;
            require(task.settled.is_none(), || format!("{id} was assigned although {:?}", task.settled))?;
            if let Some(lease) = task.lease.as_ref().filter(|lease| !lease.may_be_over) {
                let ends_us = lease.ends_us;
                require(task.contract.has_deadline || clock_us >= ends_us, || {
                    format!("{id} was assigned again {} us before its lease ended", ends_us - clock_us)
                })?;
            }
            require(attempt >= 1 && attempt <= task.contract.attempts_max, || {
                format!("{id} is in attempt {attempt} of {}", task.contract.attempts_max)
            })?;
            require(task.retried || clock_us >= task.first_received_us + task.contract.delay_us, || {
                format!("{id} was assigned before its delay was over")
            })?;
            let paused = self.paused.get(&(sent.header.partition, task.contract.queue));
            require(paused != Some(&true), || format!("{id} was assigned from a paused queue"))?;
            queues.insert(task.contract.queue);
            task.last_token = token;
            task.attempts_seen += 1;
            let ends_us = self.clock_us_low + task.contract.lease_us;
            task.lease = Some(Lease { token, conn: sent.link, ends_us, may_be_over: false });
        }
        Ok(())
    }

    /// An input is observed: pauses acknowledged in it hold from the next one.
    pub(crate) fn observed(&mut self) {
        self.paused.values_mut().for_each(|holds| *holds = true);
        self.clock_us_low = self.clock_us;
    }

    fn check_needs(&self, id: TaskId) -> Verdict {
        let Some(task) = self.tasks.get(&id) else { return Ok(()) };
        for need in &task.contract.needs {
            let parent = &self.tasks[need];
            let succeeded = parent.completed.is_some() || parent.may_be_recovered;
            if task.contract.continues {
                let live = parent.lease.as_ref().is_some_and(|lease| {
                    let may_have_fallen = parent.contract.has_deadline || parent.cancel_received || parent.retried;
                    !lease.may_be_over && !may_have_fallen && self.clock_us_max < lease.ends_us
                });
                let began = parent.attempts_seen > 0 || parent.cancel_received || parent.contract.has_deadline;
                require(!live && (succeeded || began || self.has_fallen(*need)), || {
                    format!("{id} was assigned while {need}, which it needs, was not final")
                })?;
            } else {
                require(succeeded, || format!("{id} was assigned before {need}, which it needs, succeeded"))?;
            }
        }
        Ok(())
    }

    /// Whether something that a task needs may have been cancelled or expired.
    fn has_fallen(&self, id: TaskId) -> bool {
        self.tasks[&id].contract.needs.iter().any(|need| {
            let parent = &self.tasks[need];
            parent.cancel_received || parent.contract.has_deadline || parent.attempts_seen > 0
        })
    }

    /// All tasks as the node knows them, right after a restart or at any moment.
    pub(crate) fn inspected(&mut self, seen: &BTreeMap<TaskId, Seen>) -> Verdict {
        for (id, task) in &mut self.tasks {
            let Some(seen) = seen.get(id) else {
                if task.contract.may_be_forgotten {
                    continue;
                }
                require(!task.acknowledged, || format!("{id} was acknowledged and is lost"))?;
                require(task.settled.is_none(), || format!("{id} was {:?} and is lost", task.settled))?;
                continue;
            };
            let state = seen.state;
            if let Some(end) = &self.watched
                && id.to_string().ends_with(end.as_str())
            {
                eprintln!("{:>9} {id} is {state:?}", self.clock_us.saturating_sub(super::world::START_US));
            }
            if let Some(result) = &task.completed {
                require(state == State::Succeeded, || format!("{id} was completed and is {state:?}"))?;
                require(seen.blob == *result, || format!("{id} has another result than the acknowledged one"))?;
            }
            if let Some(settled) = task.settled {
                require(state == settled, || format!("{id} was {settled:?} and is {state:?}"))?;
            }
            if state == State::Succeeded {
                require(task.results.contains(&seen.blob), || format!("{id} has a result that nobody sent"))?;
            }
            if state == State::Expired {
                require(task.contract.has_deadline, || format!("{id} has no deadline and expired"))?;
            }
            if state == State::Cancelled && task.contract.workflow.is_none() {
                require(task.cancel_received, || format!("{id} was never cancelled and is"))?;
            }
            if state.is_final() && task.settled.is_none() && (task.retries == 0 || state == State::Succeeded) {
                task.settled = Some(state);
            }
        }
        self.check_keys(seen)
    }

    fn check_keys(&self, seen: &BTreeMap<TaskId, Seen>) -> Verdict {
        for (key, ids) in &self.by_unique {
            let holders = ids.iter().filter(|id| seen.get(id).is_some_and(|task| !task.state.is_final())).count();
            require(holders <= 1, || format!("{holders} unfinished tasks have the unique key {key}"))?;
        }
        for (key, ids) in &self.by_key {
            let limit = self.tasks[&ids[0]].contract.key_limit;
            let leased = ids.iter().filter(|id| seen.get(id).is_some_and(|task| task.state == State::Leased)).count();
            require(leased <= limit as usize, || format!("{leased} leases under concurrency key {key} of {limit}"))?;
        }
        Ok(())
    }

    /// The concurrency limit of a queue, once every partition has acknowledged it.
    pub(crate) fn limit(&self, queue: u32, partitions: u16) -> Option<u32> {
        let mut limits = (0..partitions).map(|partition| self.limits.get(&(partition, queue)).copied());
        let first = limits.next()??;
        limits.all(|limit| limit == Some(first)).then_some(first)
    }

    /// Whether a task may be unknown once it is final.
    pub(crate) fn may_be_forgotten(&self, id: TaskId) -> bool {
        self.tasks[&id].contract.may_be_forgotten
    }

    /// Acknowledged tasks that are not final.
    pub(crate) fn unfinished(&self, seen: &BTreeMap<TaskId, Seen>) -> Vec<TaskId> {
        seen.iter().filter(|(_, task)| !task.state.is_final()).map(|(id, _)| *id).collect()
    }
}

//! The in-memory server's tasks and their transitions.
//!
//! Invariants: `ready` holds exactly the tasks in state ready; a task's timer fires only for the state and attempt it
//! was set for; final tasks never change but by a manual retry.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use taskmaster_protocol::body::{ArchivedSubmit, ArchivedTaskRow, Leases, slice, text};
use taskmaster_protocol::{Code, Header, Operation, TaskId};
use tokio::time::Instant;

use super::{Peers, send};
use crate::error::{Error, Refusal};
use crate::routing::now_ms;
use crate::task::State;
use crate::worker::room::Room;

/// How long a lost connection's leases live on, in milliseconds.
const GRACE_MS: u64 = 2_000;

/// Namespace and queue.
pub(super) type QueueKey = (String, String);

/// One task.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) id: TaskId,
    pub(super) queue: QueueKey,
    pub(super) kind: String,
    pub(super) name: String,
    pub(super) workflow: Option<TaskId>,
    pub(super) non_retryable: String,
    pub(super) payload: Vec<u8>,
    pub(super) unique_key: Vec<u8>,
    pub(super) concurrency_key: Vec<u8>,
    pub(super) concurrency_limit: u32,
    pub(super) lease_ms: u32,
    pub(super) backoff_ms: u32,
    pub(super) backoff_max_ms: u32,
    pub(super) backoff_factor_centi: u16,
    pub(super) attempts_max: u32,
    pub(super) cpu_milli: u32,
    pub(super) gpu_milli: u32,
    pub(super) memory_bytes: u64,
    pub(super) custom: String,
    /// Which of its sets of resources it runs with.
    pub(super) set: usize,
    pub(super) priority: u8,
    pub(super) is_restartable: bool,
    pub(super) deadline_ms: u64,
    pub(super) not_before_ms: u64,
    pub(super) state: State,
    pub(super) needs_left: usize,
    pub(super) dependents: Vec<TaskId>,
    pub(super) attempt: u32,
    /// Attempts begun since the last manual retry.
    pub(super) budget_used: u32,
    pub(super) token: u64,
    pub(super) lease_until_ms: u64,
    pub(super) holder: u64,
    pub(super) sequence: u64,
    pub(super) at_us: u64,
    pub(super) ready_us: u64,
    pub(super) started_us: u64,
    pub(super) finished_us: u64,
    pub(super) result: Vec<u8>,
    pub(super) error_code: String,
    pub(super) error: String,
    pub(super) log_tail: Vec<u8>,
    pub(super) worker: String,
    pub(super) note: String,
    pub(super) done_permille: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    Due(TaskId),
    Lease(TaskId, u64),
    Deadline(TaskId),
    Wait,
}

/// A workflow.
pub(super) struct Flow {
    pub(super) name: String,
    pub(super) tasks: Vec<TaskId>,
    pub(super) continues: bool,
    pub(super) submitted_us: u64,
    pub(super) finished_us: u64,
}

/// A subscription, by connection.
pub(super) struct Subscription {
    pub(super) namespace: String,
    pub(super) queues: Vec<String>,
    pub(super) worker: String,
    pub(super) credit: u32,
    /// What it offers, if it counts.
    pub(super) room: Option<Room>,
}

/// Somebody who waits for a final state.
pub(super) struct Wait {
    pub(super) id: TaskId,
    pub(super) is_workflow: bool,
    pub(super) until_ms: u64,
    pub(super) connection: u64,
    pub(super) header: Header,
}

/// All state of the server.
pub(crate) struct Engine {
    pub(super) shards: u16,
    start: Instant,
    start_ms: u64,
    pub(super) peers: Peers,
    pub(super) tasks: BTreeMap<TaskId, Entry>,
    pub(super) states: BTreeMap<TaskId, super::states::History>,
    pub(super) flows: BTreeMap<TaskId, Flow>,
    pub(super) ready: BTreeMap<QueueKey, BTreeSet<(u8, u64, TaskId)>>,
    timers: BTreeSet<(u64, Timer)>,
    /// Holder of a unique key and until when it holds it; 0 means while it is not final.
    unique: HashMap<(QueueKey, Vec<u8>), (TaskId, u64)>,
    pub(super) busy: HashMap<(QueueKey, Vec<u8>), u32>,
    pub(super) paused: BTreeSet<QueueKey>,
    pub(super) draining: BTreeSet<QueueKey>,
    pub(super) subscriptions: BTreeMap<u64, Subscription>,
    pub(super) waits: Vec<Wait>,
    pub(super) sequence: u64,
    pub(super) refuse: u32,
    pub(super) refuse_retry_ms: u32,
}

impl Engine {
    pub(super) fn new(shards: u16) -> Self {
        Self {
            shards,
            start: Instant::now(),
            start_ms: now_ms(),
            peers: Peers::new(),
            tasks: BTreeMap::new(),
            states: BTreeMap::new(),
            flows: BTreeMap::new(),
            ready: BTreeMap::new(),
            timers: BTreeSet::new(),
            unique: HashMap::new(),
            busy: HashMap::new(),
            paused: BTreeSet::new(),
            draining: BTreeSet::new(),
            subscriptions: BTreeMap::new(),
            waits: Vec::new(),
            sequence: 0,
            refuse: 0,
            refuse_retry_ms: 0,
        }
    }

    pub(super) fn now_ms(&self) -> u64 {
        self.now_us() / 1000
    }

    pub(super) fn now_us(&self) -> u64 {
        let elapsed_us = u64::try_from(self.start.elapsed().as_micros()).expect("a test ends before that");
        self.start_ms * 1000 + elapsed_us
    }

    pub(super) fn set_timer(&mut self, at_ms: u64, timer: Timer) {
        self.timers.insert((at_ms, timer));
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        let &(at_ms, _) = self.timers.first()?;
        Some(self.start + Duration::from_millis(at_ms.saturating_sub(self.start_ms)))
    }

    /// Fires what is due, then assigns what became ready.
    pub(super) fn tick(&mut self) {
        let now_ms = self.now_ms();
        while let Some(&(at_ms, timer)) = self.timers.first() {
            if at_ms > now_ms {
                break;
            }
            self.timers.pop_first();
            self.fire(timer, now_ms);
        }
        self.dispatch();
    }

    fn fire(&mut self, timer: Timer, now_ms: u64) {
        match timer {
            Timer::Due(id) => {
                if self.tasks.get(&id).is_some_and(|task| task.state == State::Delayed) {
                    self.make_ready(id);
                }
            }
            Timer::Lease(id, token) => {
                let Some(task) = self.tasks.get(&id).filter(|task| task.state == State::Leased && task.token == token)
                else {
                    return;
                };
                if task.lease_until_ms > now_ms {
                    return self.set_timer(task.lease_until_ms, timer);
                }
                self.revoke(id);
                self.attempt_failed(id, "lease_expired", "the worker was silent for longer than its lease", false);
            }
            Timer::Deadline(id) => {
                if self.tasks.get(&id).is_some_and(|task| !task.state.is_final()) {
                    self.revoke(id);
                    self.finish(id, State::Expired);
                }
            }
            Timer::Wait => self.answer_late_waits(now_ms),
        }
    }

    /// Takes a batch. Rows that were not kept as asked: index, task, code.
    pub(super) fn submit(&mut self, submit: &ArchivedSubmit) -> Result<Vec<(u32, TaskId, Code)>, Error> {
        let mut fresh: Vec<(Entry, u32)> = Vec::with_capacity(submit.tasks.len());
        for (row, index) in submit.tasks.iter().zip(0u32..) {
            let (entry, window_ms) = self.entry(submit, row)?;
            if self.draining.contains(&entry.queue) {
                let message = format!("queue \"{}\" is draining: submit when it is open again", entry.queue.1);
                return Err(Refusal { row: Some(index), ..Refusal::local(Code::QueueDraining, message) }.into());
            }
            fresh.push((entry, window_ms));
        }
        let flow = match submit.workflow.first() {
            Some(flow) => {
                let id = TaskId::from(&flow.id);
                let known = self.flows.contains_key(&id);
                let name = text(&submit.bytes, flow.name)?.to_owned();
                Some((id, known, name, flow.on_failure.to_native() == 1))
            }
            None => None,
        };
        if let Some((id, false, name, continues)) = flow {
            let tasks: Vec<TaskId> = fresh.iter().map(|(entry, _)| entry.id).collect();
            for (entry, _) in &mut fresh {
                entry.workflow = Some(id);
            }
            let submitted_us = self.now_us();
            self.flows.insert(id, Flow { name, tasks, continues, submitted_us, finished_us: 0 });
        }
        link(submit, &mut fresh)?;
        let mut exceptions = Vec::new();
        for ((entry, window_ms), index) in fresh.into_iter().zip(0u32..) {
            if let Some((id, code)) = self.insert(entry, window_ms) {
                exceptions.push((index, id, code));
            }
        }
        Ok(exceptions)
    }

    fn entry(&mut self, submit: &ArchivedSubmit, row: &ArchivedTaskRow) -> Result<(Entry, u32), Error> {
        let spec = submit
            .specs
            .get(row.spec.to_native() as usize)
            .ok_or_else(|| Refusal::local(Code::Malformed, "a row names a contract that is not there"))?;
        let word = |span| text(&submit.bytes, span).map(str::to_owned);
        self.sequence += 1;
        let mut entry = Entry {
            id: TaskId::from(&row.id),
            queue: (word(spec.namespace)?, word(spec.queue)?),
            kind: word(spec.kind)?,
            name: String::new(),
            workflow: None,
            non_retryable: word(spec.non_retryable)?,
            payload: slice(&submit.bytes, row.payload)?.to_vec(),
            unique_key: Vec::new(),
            concurrency_key: Vec::new(),
            concurrency_limit: 0,
            lease_ms: spec.lease_ms.to_native(),
            backoff_ms: spec.backoff_ms.to_native(),
            backoff_max_ms: spec.backoff_max_ms.to_native(),
            backoff_factor_centi: spec.backoff_factor_centi.to_native(),
            attempts_max: spec.attempts_max.to_native().into(),
            cpu_milli: spec.cpu_milli.to_native(),
            gpu_milli: spec.gpu_milli.to_native(),
            memory_bytes: spec.memory_bytes.to_native(),
            custom: word(spec.custom)?,
            set: 0,
            priority: spec.priority,
            is_restartable: spec.restartable != 0,
            deadline_ms: 0,
            not_before_ms: 0,
            state: State::Waiting,
            needs_left: 0,
            dependents: Vec::new(),
            attempt: 0,
            budget_used: 0,
            token: 0,
            lease_until_ms: 0,
            holder: 0,
            sequence: self.sequence,
            at_us: 0,
            ready_us: 0,
            started_us: 0,
            finished_us: 0,
            result: Vec::new(),
            error_code: String::new(),
            error: String::new(),
            log_tail: Vec::new(),
            worker: String::new(),
            note: String::new(),
            done_permille: 0,
        };
        let window_ms = self.add_extra(submit, row, &mut entry)?;
        if spec.memo != 0 {
            // Each runs for itself here, which gives the same results.
            entry.unique_key.clear();
        }
        Ok((entry, window_ms))
    }

    /// Takes over what few tasks have; the window of the unique key, in milliseconds.
    fn add_extra(&self, submit: &ArchivedSubmit, row: &ArchivedTaskRow, entry: &mut Entry) -> Result<u32, Error> {
        let now_ms = self.now_ms();
        let word = |span| text(&submit.bytes, span).map(str::to_owned);
        let Some(at) = (row.extra.to_native() as usize).checked_sub(1) else { return Ok(0) };
        let extra = submit
            .extras
            .get(at)
            .ok_or_else(|| Refusal::local(Code::Malformed, "a row names an extra that is not there"))?;
        entry.name = word(extra.name)?;
        entry.unique_key = slice(&submit.bytes, extra.unique_key)?.to_vec();
        entry.concurrency_key = slice(&submit.bytes, extra.concurrency_key)?.to_vec();
        entry.concurrency_limit = extra.concurrency_limit.to_native().max(1);
        entry.needs_left = extra.needs.len.to_native() as usize;
        let delay_ms = extra.delay_ms.to_native();
        let delayed_ms = if delay_ms > 0 { now_ms + delay_ms } else { 0 };
        entry.not_before_ms = extra.not_before_ms.to_native().max(delayed_ms);
        entry.deadline_ms = match (extra.deadline_ms.to_native(), extra.deadline_in_ms.to_native()) {
            (0, 0) => 0,
            (0, within_ms) => now_ms + within_ms,
            (at_ms, _) => at_ms,
        };
        if entry.deadline_ms != 0 && entry.deadline_ms <= now_ms {
            return Err(Refusal::local(Code::DeadlinePast, "the deadline is already past").into());
        }
        Ok(extra.unique_window_ms.to_native())
    }

    fn insert(&mut self, entry: Entry, window_ms: u32) -> Option<(TaskId, Code)> {
        let id = entry.id;
        if self.tasks.contains_key(&id) {
            return Some((id, Code::Duplicate));
        }
        if !entry.unique_key.is_empty() {
            let key = (entry.queue.clone(), entry.unique_key.clone());
            let now_ms = self.now_ms();
            if let Some(&(holder, until_ms)) = self.unique.get(&key) {
                let is_held = if until_ms > 0 { until_ms > now_ms } else { !self.tasks[&holder].state.is_final() };
                if is_held {
                    return Some((holder, Code::UniqueConflict));
                }
            }
            let until_ms = if window_ms > 0 { now_ms + u64::from(window_ms) } else { 0 };
            self.unique.insert(key, (id, until_ms));
        }
        if entry.deadline_ms > 0 {
            self.set_timer(entry.deadline_ms, Timer::Deadline(id));
        }
        let is_free = entry.needs_left == 0;
        self.tasks.insert(id, entry);
        if is_free {
            self.release_or_delay(id);
        }
        None
    }

    /// A task without open needs becomes ready, or waits for its time.
    pub(super) fn release_or_delay(&mut self, id: TaskId) {
        let not_before_ms = self.tasks[&id].not_before_ms;
        if not_before_ms > self.now_ms() {
            self.delay(id, not_before_ms);
        } else {
            self.make_ready(id);
        }
    }

    fn delay(&mut self, id: TaskId, until_ms: u64) {
        let task = self.task(id);
        task.state = State::Delayed;
        task.at_us = until_ms * 1000;
        self.set_timer(until_ms, Timer::Due(id));
    }

    pub(super) fn make_ready(&mut self, id: TaskId) {
        let now_us = self.now_us();
        let task = self.task(id);
        task.state = State::Ready;
        task.at_us = now_us;
        task.ready_us = now_us;
        let place = (task.priority, task.sequence, id);
        let queue = task.queue.clone();
        self.ready.entry(queue).or_default().insert(place);
    }

    pub(super) fn task(&mut self, id: TaskId) -> &mut Entry {
        self.tasks.get_mut(&id).expect("callers name tasks that exist, and nothing is forgotten")
    }

    /// Takes a task out of where its state keeps it.
    pub(super) fn detach(&mut self, id: TaskId) {
        let task = &self.tasks[&id];
        match task.state {
            State::Ready => {
                let place = (task.priority, task.sequence, id);
                if let Some(ready) = self.ready.get_mut(&task.queue) {
                    ready.remove(&place);
                }
            }
            State::Leased if !task.concurrency_key.is_empty() => {
                let key = (task.queue.clone(), task.concurrency_key.clone());
                if let Some(busy) = self.busy.get_mut(&key) {
                    *busy -= 1;
                }
            }
            _ => {}
        }
    }

    /// Tells the worker that holds a task to stop.
    pub(super) fn revoke(&mut self, id: TaskId) {
        let task = &self.tasks[&id];
        if task.state != State::Leased {
            return;
        }
        if let Some(peer) = self.peers.get(&task.holder) {
            let row = taskmaster_protocol::body::LeaseRow { id, token: task.token, locator: 0, attempt: task.attempt };
            let header = Header::request(Operation::Revoke, 0, Some(id.partition()));
            send(&peer.out, header, &Leases { rows: vec![row] });
        }
    }

    /// An attempt failed: again after the backoff, or never.
    pub(super) fn attempt_failed(&mut self, id: TaskId, code: &str, message: &str, is_final: bool) {
        self.detach(id);
        let now_ms = self.now_ms();
        let task = self.task(id);
        code.clone_into(&mut task.error_code);
        message.clone_into(&mut task.error);
        let is_listed = task.non_retryable.split(',').any(|listed| !listed.is_empty() && listed == code);
        if is_final || is_listed || task.budget_used >= task.attempts_max {
            return self.finish(id, State::Failed);
        }
        let wait_ms = backoff_ms(task);
        if wait_ms == 0 {
            return self.make_ready(id);
        }
        self.delay(id, now_ms + wait_ms);
    }

    /// A final state, and what follows from it.
    pub(super) fn finish(&mut self, id: TaskId, state: State) {
        self.detach(id);
        let now_us = self.now_us();
        let task = self.task(id);
        task.state = state;
        task.at_us = now_us;
        task.finished_us = now_us;
        let (workflow, dependents) = (task.workflow, task.dependents.clone());
        let continues = workflow.and_then(|flow| self.flows.get(&flow)).is_some_and(|flow| flow.continues);
        for dependent in dependents {
            let task = self.task(dependent);
            if task.state != State::Waiting {
                continue;
            }
            if state == State::Succeeded || continues {
                task.needs_left -= 1;
                if task.needs_left == 0 {
                    self.release_or_delay(dependent);
                }
            } else {
                self.finish(dependent, State::Cancelled);
            }
        }
        if let Some(flow) = workflow {
            self.check_flow(flow, now_us);
        }
        self.answer_waits(id);
    }

    fn check_flow(&mut self, id: TaskId, now_us: u64) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        if flow.tasks.iter().all(|task| self.tasks.get(task).is_none_or(|task| task.state.is_final())) {
            flow.finished_us = now_us;
            self.answer_waits(id);
        }
    }

    /// The connection is gone: its leases live on for the grace.
    pub(super) fn disconnected(&mut self, connection: u64) {
        self.peers.remove(&connection);
        self.subscriptions.remove(&connection);
        self.waits.retain(|wait| wait.connection != connection);
        let grace_ms = self.now_ms() + GRACE_MS;
        let mut timers = Vec::new();
        for task in self.tasks.values_mut().filter(|task| task.state == State::Leased && task.holder == connection) {
            task.lease_until_ms = task.lease_until_ms.min(grace_ms);
            timers.push((task.lease_until_ms, Timer::Lease(task.id, task.token)));
        }
        self.timers.extend(timers);
    }
}

fn backoff_ms(task: &Entry) -> u64 {
    let growth = u64::from(task.backoff_factor_centi.max(100));
    let longest_ms = u64::from(task.backoff_max_ms.max(task.backoff_ms));
    let mut wait_ms = u64::from(task.backoff_ms);
    for _ in 1..task.budget_used {
        wait_ms = (wait_ms * growth / 100).min(longest_ms);
    }
    wait_ms
}

/// Enters each task into the dependents of those it needs.
fn link(submit: &ArchivedSubmit, fresh: &mut [(Entry, u32)]) -> Result<(), Error> {
    for (row, at) in submit.tasks.iter().zip(0usize..) {
        let Some(extra) = (row.extra.to_native() as usize).checked_sub(1) else { continue };
        let needs = submit.extras[extra].needs;
        let rows = submit.needs.as_slice().get(needs.at.to_native() as usize..);
        let rows = rows.and_then(|rows| rows.get(..needs.len.to_native() as usize));
        let rows = rows.ok_or_else(|| Refusal::local(Code::Malformed, "needs lie outside their list"))?;
        for needed in rows {
            let needed = needed.to_native() as usize;
            if needed >= at {
                return Err(
                    Refusal::local(Code::BadDependency, format!("row {at} needs the later row {needed}")).into()
                );
            }
            let dependent = fresh[at].0.id;
            fresh[needed].0.dependents.push(dependent);
        }
    }
    Ok(())
}

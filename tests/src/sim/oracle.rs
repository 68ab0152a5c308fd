//! What must be true, whatever happened: the oracle watches all wires and knows what was acknowledged.
//!
//! It sees every frame as a node receives it and as a node sends it, and who leads in which term. Acknowledgements count from
//! the moment they leave a node. Rules are sound: each is stated so that what the oracle cannot know (unanswered requests
//! that a crash kept, leaders that do not know yet that they lead no longer) never makes it cry wolf. So a rule about what a
//! leader must know compares terms: the upper 24 bits of a fencing token are the term of the leader that gave it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use taskmaster_protocol::body::{
    self, ArchivedCancel, ArchivedComplete, ArchivedConfigureQueue, ArchivedFail, ArchivedGetTask, ArchivedLeases,
    ArchivedReadState, ArchivedRetry, ArchivedSubmit, ArchivedSubmitStream, queue_field,
};
use taskmaster_protocol::frame::Header;
use taskmaster_protocol::state::Address;
use taskmaster_protocol::{FrameBuffer, Operation, TaskId, access};

pub(crate) use taskmaster_engine::State;
use taskmaster_engine::events::Events;

use super::store::Store;
use super::topic::Topic;

mod answers;
mod assigns;
mod reads;
mod replicas;
mod states;
mod streams;

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
    /// It is memoised; tasks with this number have one result at a time.
    pub(crate) memo: Option<u32>,
    /// It may have two attempts at once, and one may be ended for others.
    pub(crate) is_restartable: bool,
    /// Its retention is short: once it is final it may be unknown.
    pub(crate) may_be_forgotten: bool,
}

/// A lease as a leader gave it.
#[derive(Debug)]
struct Lease {
    token: u64,
    attempt: u32,
    /// The process that gave it.
    life: u64,
    conn: u64,
    ends_us: u64,
    /// Something was received that may have ended it, or its leader leads no longer.
    may_be_over: bool,
}

/// A final state that somebody was told of, and the term of the leader that said so.
#[derive(Clone, Copy, Debug)]
struct Settled {
    state: State,
    term: u64,
}

#[derive(Debug, Default)]
struct Task {
    contract: Contract,
    /// By the time of any shard that received it, the lowest.
    first_received_us: u64,
    /// Acknowledged by an accepted row or as a duplicate.
    acknowledged: bool,
    accepted_row: bool,
    /// Every token given.
    tokens: BTreeSet<u64>,
    /// The newest lease of each process; of a restartable task those of its attempt that were not revoked.
    leases: Vec<Lease>,
    attempts_seen: u32,
    /// Results of completions received.
    results: Vec<Vec<u8>>,
    /// The result whose completion was acknowledged, and the term of its token.
    completed: Option<(Vec<u8>, u64)>,
    /// Lowest term under which a valid completion was received; a later leader may have it unanswered.
    valid_term: Option<u64>,
    /// A completion or failure was received.
    end_received: bool,
    cancel_received: bool,
    /// The final state that it was seen in, until a retry.
    settled: Option<Settled>,
    /// Retries received and not answered that may concern it.
    retries: u32,
    /// Retries received: it may start at once, whatever its delay.
    retried: u32,
    states: states::States,
    /// Seen to be final, or never accepted, after everything was submitted.
    over: bool,
}

impl Task {
    /// Everything but its tokens, which are used up, happens to it again.
    fn begin_anew(&mut self) {
        let tokens = core::mem::take(&mut self.tokens);
        *self = Self {
            contract: self.contract.clone(),
            first_received_us: self.first_received_us,
            results: core::mem::take(&mut self.results),
            tokens,
            cancel_received: self.cancel_received,
            ..Self::default()
        };
    }
}

/// A request whose answer is awaited.
struct Request {
    /// Order of arrival.
    order: u64,
    operation: Operation,
    is_resend: bool,
    received_us: u64,
    rows: Vec<Row>,
    /// `ConfigureQueue`: partition, queue, paused, concurrency.
    setting: Option<(u16, u32, Option<bool>, Option<u32>)>,
    /// Of saves and reads of states.
    asked: states::Asked,
}

struct Row {
    id: TaskId,
    token: u64,
    is_valid: bool,
    result: Vec<u8>,
    /// Of a read or a cancellation: what had been acknowledged when it was received.
    before: Option<reads::Before>,
}

impl Row {
    fn of(id: TaskId) -> Self {
        Self { id, token: 0, is_valid: true, result: Vec::new(), before: None }
    }
}

/// A frame that a node sent.
pub(crate) struct Sent {
    pub(crate) link: u64,
    /// The term in which the sender led the frame's partition when it made the frame, if it did.
    pub(crate) term: Option<u64>,
    pub(crate) header: Header,
    pub(crate) body: FrameBuffer,
}

/// What an accepted task with a unique key holds for a while.
struct Window {
    holder: TaskId,
    until_us: u64,
    /// Requests received when its acceptance was acknowledged: only later ones are surely behind it.
    after: u64,
}

/// The pause of a queue, as acknowledged.
struct Pause {
    term: u64,
    /// Holds from the next input on.
    holds: bool,
}

/// Everything known.
#[derive(Default)]
pub(crate) struct Oracle {
    tasks: BTreeMap<TaskId, Task>,
    /// In the order in which they were made.
    ids: Vec<TaskId>,
    workflows: HashMap<TaskId, Vec<TaskId>>,
    by_key: BTreeMap<u32, Vec<TaskId>>,
    by_unique: BTreeMap<u32, Vec<TaskId>>,
    by_memo: BTreeMap<u32, Vec<TaskId>>,
    /// Accepted holders of unique keys with windows, by key.
    windows: BTreeMap<u32, Vec<Window>>,
    requests: HashMap<(u64, u64), Request>,
    received: u64,
    /// Highest time of any shard so far.
    clock_us_max: u64,
    /// (partition, queue) known to be paused.
    paused: BTreeMap<(u16, u32), Pause>,
    /// Order of the latest resume received.
    resumed: BTreeMap<(u16, u32), u64>,
    replicas: replicas::Replicas,
    /// What became of streams.
    pub(crate) streams: streams::Streams,
    /// Where final tasks are checkpointed, if they are.
    pub(crate) store: Option<Store>,
    /// Where it is told what happens, if it is.
    pub(crate) topic: Option<Topic>,
    /// End of the id of a task to report on.
    watched: Option<String>,
    /// Says who leads.
    is_loud: bool,
    /// Counters for the report.
    pub(crate) submits_acknowledged: u64,
    /// Leases of which it was told in the present input that they are over.
    revoked_now: BTreeSet<(TaskId, u64)>,
    pub(crate) completions_acknowledged: u64,
    pub(crate) assigned: u64,
    pub(crate) doubled: u64,
    pub(crate) ended_for_others: u64,
    pub(crate) reads: u64,
    pub(crate) saves_acknowledged: u64,
    pub(crate) states_read: u64,
    pub(crate) memoised: u64,
    /// States that workers saved, by digest.
    states: HashMap<Address, Vec<u8>>,
}

type Verdict = Result<(), String>;

fn require(holds: bool, sentence: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(sentence()) }
}

/// The term of the leader that gave a token.
const fn term_of(token: u64) -> u64 {
    token >> 40
}

impl Oracle {
    pub(crate) fn new(checkpoints: bool, events: Option<Events>) -> Self {
        let is_loud = std::env::var_os("TASKMASTER_SIM_LOG").is_some();
        let store = checkpoints.then(Store::default);
        let topic = events.map(|events| Topic::new(events.waiting_kib_max < 64));
        Self { store, topic, watched: std::env::var("TASKMASTER_SIM_WATCH").ok(), is_loud, ..Self::default() }
    }

    /// For hunting: what happens to the task whose id ends with TASKMASTER_SIM_WATCH.
    fn watch(&self, id: TaskId, what: impl FnOnce() -> String) {
        if let Some(end) = &self.watched
            && id.to_string().ends_with(end.as_str())
        {
            eprintln!("{:>9} {id} {}", self.clock_us_max.saturating_sub(super::world::START_US), what());
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
        if let Some(memo) = contract.memo {
            self.by_memo.entry(memo).or_default().push(id);
        }
        self.ids.push(id);
        self.tasks.insert(id, Task { contract, ..Task::default() });
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = TaskId> + '_ {
        self.tasks.keys().copied()
    }

    /// Tasks that are known to be final, and how.
    pub(crate) fn ends(&self) -> impl Iterator<Item = (TaskId, State)> + '_ {
        self.tasks.iter().filter_map(|(id, task)| Some((*id, task.settled?.state)))
    }

    pub(crate) fn len(&self) -> usize {
        self.tasks.len()
    }

    pub(crate) fn id_at(&self, pick: u64) -> Option<TaskId> {
        let count = self.ids.len() as u64;
        self.ids.get(usize::try_from(pick % count.max(1)).expect("below a usize")).copied()
    }

    pub(crate) fn workflow_of(&self, id: TaskId) -> Option<TaskId> {
        self.tasks.get(&id)?.contract.workflow
    }

    /// A shard's time is `now_us`.
    pub(crate) fn clock(&mut self, now_us: u64) {
        self.clock_us_max = self.clock_us_max.max(now_us);
    }

    /// A node has taken a frame from its wire.
    pub(crate) fn received(&mut self, link: u64, life: u64, header: &Header, body: &[u8], now_us: u64) {
        let Some(operation) = Operation::from_number(header.operation) else { return };
        self.received += 1;
        let mut request = Request {
            order: self.received,
            operation,
            is_resend: header.is_resend(),
            received_us: now_us,
            rows: Vec::new(),
            setting: None,
            asked: states::Asked::default(),
        };
        match operation {
            Operation::Submit => {
                let submit = access::<ArchivedSubmit>(body).expect("clients send whole bodies");
                self.submit_received(submit, now_us, &mut request);
            }
            Operation::SubmitStream => {
                let submit = access::<ArchivedSubmitStream>(body).expect("clients send whole bodies");
                self.submit_received(&submit.batch, now_us, &mut request);
            }
            Operation::Complete | Operation::Fail | Operation::Extend | Operation::Release => {
                self.work_received(life, body, &mut request);
            }
            Operation::Cancel | Operation::Retry => self.change_received(body, &mut request),
            Operation::ConfigureQueue => self.setting_received(header.partition, body, &mut request),
            Operation::SaveState => self.save_received(life, body, &mut request),
            Operation::StateLog => {
                let id = TaskId::from(&access::<ArchivedGetTask>(body).expect("clients send whole bodies").id);
                request.asked = self.state_asked(id, None);
                request.rows.push(Row::of(id));
            }
            Operation::ReadState => {
                let body = access::<ArchivedReadState>(body).expect("clients send whole bodies");
                let id = TaskId::from(&body.id);
                request.asked = self.state_asked(id, Some(body.version.to_native()));
                request.rows.push(Row::of(id));
            }
            Operation::GetTask => {
                let body = access::<ArchivedGetTask>(body).expect("clients send whole bodies");
                let id = TaskId::from(&body.id);
                request.rows.push(Row { before: self.before(id), ..Row::of(id) });
            }
            _ => return,
        }
        for row in &request.rows {
            self.watch(row.id, || {
                format!("<- {operation:?} at {life} of {link} token {:#x} valid {}", row.token, row.is_valid)
            });
        }
        self.requests.insert((link, header.correlation), request);
    }

    fn submit_received(&mut self, body: &ArchivedSubmit, now_us: u64, request: &mut Request) {
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

    fn work_received(&mut self, life: u64, body: &[u8], request: &mut Request) {
        match request.operation {
            Operation::Complete => {
                let body = access::<ArchivedComplete>(body).expect("workers send whole bodies");
                for row in body.rows.iter() {
                    let result = body::slice(&body.bytes, row.result).expect("spans are right").to_vec();
                    let row = self.lease_row(life, TaskId::from(&row.id), row.token.to_native(), true);
                    let task = self.tasks.get_mut(&row.id).expect("completed tasks are registered");
                    if !task.results.contains(&result) {
                        task.results.push(result.clone());
                    }
                    task.end_received = true;
                    if row.is_valid {
                        let term = term_of(row.token);
                        task.valid_term = Some(task.valid_term.map_or(term, |lowest| lowest.min(term)));
                    }
                    request.rows.push(Row { result, ..row });
                }
            }
            Operation::Fail => {
                let body = access::<ArchivedFail>(body).expect("workers send whole bodies");
                for row in body.rows.iter() {
                    let row = self.lease_row(life, TaskId::from(&row.id), row.token.to_native(), true);
                    self.tasks.get_mut(&row.id).expect("failed tasks are registered").end_received = true;
                    request.rows.push(row);
                }
            }
            operation => {
                let body = access::<ArchivedLeases>(body).expect("workers send whole bodies");
                for row in body.rows.iter() {
                    let may_end = operation == Operation::Release;
                    request.rows.push(self.lease_row(life, TaskId::from(&row.id), row.token.to_native(), may_end));
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
                task.leases.iter_mut().for_each(|lease| lease.may_be_over = true);
            }
            if !whole {
                request.rows.push(Row { before: self.before(id), ..Row::of(id) });
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
            self.resumed.insert((partition, queue), request.order);
        }
        request.setting = Some((partition, queue, paused, limit));
    }

    fn lease_row(&mut self, life: u64, id: TaskId, token: u64, may_end: bool) -> Row {
        let task = self.tasks.get_mut(&id).expect("leased tasks are registered");
        let lease = task.leases.iter_mut().find(|lease| lease.life == life && lease.token == token);
        let is_valid = lease.is_some();
        if let Some(lease) = lease {
            lease.may_be_over |= may_end;
        }
        Row { token, is_valid, ..Row::of(id) }
    }

    /// A retry may make a task and its workflow's others unfinished; success stays. `retries` is added to those under way.
    fn unsettle(&mut self, id: TaskId, retries: i32) {
        let workflow = self.tasks.get(&id).and_then(|task| task.contract.workflow);
        let ids = workflow.and_then(|workflow| self.workflows.get(&workflow).cloned()).unwrap_or_else(|| vec![id]);
        for id in ids {
            let task = self.tasks.get_mut(&id).expect("registered");
            task.settled = task.settled.filter(|settled| settled.state == State::Succeeded);
            task.retries = task.retries.saturating_add_signed(retries);
            task.retried += 1;
            task.leases.iter_mut().for_each(|lease| lease.may_be_over = true);
        }
    }

    /// A connection is gone, as the node sees it: its leases may end at the grace.
    pub(crate) fn lost(&mut self, link: u64, now_us: u64) {
        let grace_us = now_us + 2_000_000;
        for task in self.tasks.values_mut() {
            for lease in task.leases.iter_mut().filter(|lease| lease.conn == link) {
                lease.ends_us = lease.ends_us.min(grace_us);
                // Where it was one of two, the other one goes on alone.
                lease.may_be_over |= task.contract.is_restartable;
            }
        }
    }

    /// A process is gone, and with it its leases.
    pub(crate) fn died(&mut self, life: u64) {
        self.tasks.values_mut().for_each(|task| task.leases.retain(|lease| lease.life != life));
    }

    /// Everything was submitted and answered, and every entry of an earlier leader has had its fate.
    pub(crate) fn everything_is_submitted(&mut self) {
        for task in self.tasks.values_mut() {
            (task.retries, task.over) = (0, false);
        }
    }

    /// Whether a task was seen to be final since then.
    pub(crate) fn is_over(&self, id: TaskId) -> bool {
        self.tasks[&id].over
    }

    /// How many tasks are not, and what is known of some of them.
    pub(crate) fn left(&self) -> (usize, String) {
        let left = || self.tasks.iter().filter(|(_, task)| !task.over);
        let some = left().take(5).map(|(id, task)| {
            let (queue, leases) = (task.contract.queue, task.leases.len());
            format!("{id} of partition {} in q{queue} with {leases} leases", id.partition())
        });
        (left().count(), some.collect::<Vec<_>>().join(", "))
    }
}

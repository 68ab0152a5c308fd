//! One shard in virtual time, with a log whose durability tests control.
//!
//! [`World::call`] and the verbs built on it make everything durable at once; [`World::send`] with
//! [`World::make_durable`] shows the steps in between.

use std::collections::VecDeque;
use std::sync::Arc;

use rkyv::api::high::{HighDeserializer, HighValidator};
use rkyv::bytecheck::CheckBytes;
use rkyv::rancor::Error;
use rkyv::{Archive, Deserialize};
use taskmaster_engine::cluster::map::ClusterMap;
use taskmaster_engine::{Config, ConnId, Effects, Input, Known, PeerAddr, Refused, Shard, SnapshotStep, State};
use taskmaster_protocol::body::{
    self, Assign, AwaitTask, BatchReply, Cancel, Complete, CompleteRow, ConfigureQueue, Credit, Empty, Explanation,
    Fail, FailRow, GetTask, GetWorkflow, LeaseRow, Leases, ListQueues, ListTasks, QueueInfo, QueuePage, Refusal, Retry,
    Span, Subscribe, TaskInfo, TaskPage, WorkflowPage,
};
use taskmaster_protocol::frame::{self, FLAG_RESEND, Header};
use taskmaster_protocol::{Body, Code, FrameBuffer, NodeId, Operation, PartitionId, TaskId};

use super::job::{self, Job};

/// When every world starts, in microseconds since 1970.
pub(crate) const START_US: u64 = 1_700_000_000_000_000;
/// The connection of producers and operators.
pub(crate) const CLIENT: u64 = 1;

/// A frame that the shard sent.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) conn: u64,
    pub(crate) header: Header,
    pub(crate) body: FrameBuffer,
}

impl Message {
    pub(crate) fn code(&self) -> Code {
        Code::from_number(self.header.code)
    }

    /// The body, which must be an accepted request's.
    pub(crate) fn read<T>(&self) -> T
    where
        T: Archive,
        T::Archived: for<'a> CheckBytes<HighValidator<'a, Error>> + Deserialize<T, HighDeserializer<Error>>,
    {
        assert_eq!(self.code(), Code::Ok, "{}", self.sentence());
        rkyv::from_bytes::<T, Error>(&self.body).unwrap()
    }

    /// The refusal; the request must have been refused.
    pub(crate) fn refusal(&self) -> Refusal {
        assert_ne!(self.code(), Code::Ok);
        rkyv::from_bytes::<Refusal, Error>(&self.body).unwrap()
    }

    pub(crate) fn sentence(&self) -> String {
        let refusal = self.refusal();
        text(&refusal.bytes, refusal.message)
    }
}

/// Resolves text of a body.
pub(crate) fn text(area: &[u8], span: Span) -> String {
    String::from_utf8(bytes(area, span)).unwrap()
}

fn bytes(area: &[u8], span: Span) -> Vec<u8> {
    area[span.at as usize..][..span.len as usize].to_vec()
}

/// A leased task as its worker sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) conn: u64,
    pub(crate) id: TaskId,
    pub(crate) token: u64,
    pub(crate) locator: u32,
    pub(crate) attempt: u32,
    pub(crate) payload: Vec<u8>,
    pub(crate) queue: String,
    pub(crate) kind: String,
    pub(crate) ready_us: u64,
    /// The version of its state to resume from.
    pub(crate) version: u32,
    /// What it holds of its worker.
    pub(crate) cpu_milli: u32,
    pub(crate) gpu_milli: u32,
    pub(crate) custom: String,
}

impl Lease {
    pub(crate) fn row(&self) -> LeaseRow {
        LeaseRow { id: self.id, token: self.token, locator: self.locator, attempt: self.attempt }
    }
}

/// What is known of a task, with texts resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TaskView {
    pub(crate) id: TaskId,
    pub(crate) state: State,
    pub(crate) attempt: u32,
    pub(crate) payload: Vec<u8>,
    pub(crate) result: Vec<u8>,
    pub(crate) error_code: String,
    pub(crate) error: String,
    pub(crate) log_tail: Vec<u8>,
    pub(crate) worker: String,
    pub(crate) note: String,
    pub(crate) done_permille: u32,
    pub(crate) workflow: TaskId,
    pub(crate) name: String,
    pub(crate) late: bool,
    pub(crate) memo: bool,
    pub(crate) at_us: u64,
    pub(crate) deadline_ms: u64,
}

/// The pages' first row.
pub(crate) fn view(page: &TaskPage, row: &TaskInfo) -> TaskView {
    let text = |span| text(&page.bytes, span);
    TaskView {
        id: row.id,
        state: State::from_number(row.state).unwrap(),
        attempt: row.attempt,
        payload: bytes(&page.bytes, row.payload),
        result: bytes(&page.bytes, row.result),
        error_code: text(row.error_code),
        error: text(row.error),
        log_tail: bytes(&page.bytes, row.log_tail),
        worker: text(row.worker),
        note: text(row.note),
        done_permille: row.done_permille,
        workflow: row.workflow,
        name: text(row.name),
        late: row.late == 1,
        memo: row.memo == 1,
        at_us: row.at_us,
        deadline_ms: row.deadline_ms,
    }
}

/// A record of the log; its sequence is its place there, from 1.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) kind: u32,
    pub(crate) bytes: FrameBuffer,
}

/// Chunks of a snapshot with their tags.
pub(crate) type Chunks = Vec<(u32, FrameBuffer)>;

/// What one shard says to another in one turn.
pub(crate) struct Letter {
    pub(crate) from: PeerAddr,
    pub(crate) to: PeerAddr,
    pub(crate) bytes: FrameBuffer,
}

/// The shard, its clock and its log.
pub(crate) struct World {
    pub(crate) shard: Shard,
    pub(crate) now_us: u64,
    pub(crate) config: Config,
    /// Every record ever logged, and how many of them are durable.
    pub(crate) log: Vec<Record>,
    pub(crate) durable: usize,
    /// Records logged when the shard, started last, had begun to serve.
    begun: usize,
    /// Messages not looked at yet, in order of arrival.
    pub(crate) inbox: VecDeque<Message>,
    /// Letters to other shards, in order.
    letters: Vec<Letter>,
    /// The cluster map, if it changed.
    pub(crate) map: Option<Arc<ClusterMap>>,
    effects: Effects,
    correlation: u64,
}

/// The node of every world.
pub(crate) const NODE: NodeId = NodeId(7);

/// A configuration with this many partitions, all here, and generous limits.
pub(crate) fn config(partitions: u16) -> Config {
    Config::standalone(NODE, partitions)
}

/// The configuration of one of a node's shards; shard `n` has partition `n`.
pub(crate) fn config_of_shard(number: u16, shards: u16) -> Config {
    let mut config = Config { number, ..config(shards) };
    config.node.client_ports = (0..shards).map(|shard| 7_700 + shard).collect();
    config
}

impl World {
    /// A shard with one partition.
    pub(crate) fn new() -> Self {
        Self::with(config(1))
    }

    /// A shard that has begun to serve.
    pub(crate) fn with(config: Config) -> Self {
        let mut world = Self {
            shard: Shard::new(config.clone(), START_US),
            now_us: START_US,
            config,
            log: Vec::new(),
            durable: 0,
            begun: 0,
            inbox: VecDeque::new(),
            letters: Vec::new(),
            map: None,
            effects: Effects::default(),
            correlation: 0,
        };
        world.start();
        world
    }

    /// Recovery is over: the shard founds or leads what it has, until it serves.
    pub(crate) fn start(&mut self) {
        self.shard.start(self.now_us);
        self.end_turn();
        self.settle();
        assert!(self.shard.is_serving());
        assert_eq!(self.shard.take_warnings(), Vec::<String>::new());
        self.begun = self.log.len();
    }

    /// Records logged since the shard began to serve.
    pub(crate) fn logged(&self) -> usize {
        self.log.len() - self.begun
    }

    /// Hands one input over, ends the turn and collects what comes out.
    pub(crate) fn handle(&mut self, input: Input<'_>) {
        self.shard.handle(input, self.now_us, &mut self.effects);
        self.end_turn();
    }

    fn end_turn(&mut self) {
        let (log, inbox, letters) = (&mut self.log, &mut self.inbox, &mut self.letters);
        self.shard.end_turn(self.now_us, &mut self.effects, |sequence, kind, parts| {
            assert_eq!(sequence, log.len() as u64 + 1, "records come in order");
            let mut bytes = FrameBuffer::new();
            parts.iter().for_each(|part| bytes.extend_from_slice(part));
            log.push(Record { kind, bytes });
        });
        // Nobody answers from the store here.
        for question in self.effects.take_questions() {
            let unknown = Refused::new(Code::UnknownTask, "it is not kept here");
            self.effects.answer(&question, Err(&unknown));
        }
        self.effects.drain(|conn, frames| {
            let mut rest: &[u8] = frames;
            while !rest.is_empty() {
                let (frame, used) = frame::parse(rest).unwrap().unwrap();
                let mut body = FrameBuffer::new();
                body.extend_from_slice(frame.body);
                inbox.push_back(Message { conn: conn.0, header: frame.header, body });
                rest = &rest[used..];
            }
        });
        let from = PeerAddr { node: self.config.node.id, shard: self.config.number };
        self.effects.drain_peers(|to, bytes| letters.push(Letter { from, to, bytes: core::mem::take(bytes) }));
        self.map = self.effects.take_map().or(self.map.take());
    }

    /// Sends a request and returns its correlation. Nothing becomes durable by it.
    pub(crate) fn send<B: Body>(&mut self, conn: u64, partition: u16, body: &B) -> u64 {
        self.send_as(B::OPERATION, 0, conn, partition, body)
    }

    pub(crate) fn send_as<B: Body>(
        &mut self,
        operation: Operation,
        flags: u8,
        conn: u64,
        partition: u16,
        body: &B,
    ) -> u64 {
        let mut bytes = FrameBuffer::new();
        body.append_to(&mut bytes);
        self.send_bytes(operation.number(), flags, conn, partition, &bytes)
    }

    /// Sends a submission together with what a store outside remembered for some of its rows.
    pub(crate) fn send_known(&mut self, jobs: &[Job], known: &[Known]) -> u64 {
        let mut body = FrameBuffer::new();
        job::body_of(jobs).append_to(&mut body);
        self.correlation += 1;
        let header = Header::request(Operation::Submit, self.correlation, Some(jobs[0].id.partition()));
        self.handle(Input::Known { conn: ConnId(CLIENT), header, body: &body, known });
        self.correlation
    }

    /// Sends any bytes as a body.
    pub(crate) fn send_bytes(&mut self, operation: u16, flags: u8, conn: u64, partition: u16, body: &[u8]) -> u64 {
        self.correlation += 1;
        let mut header = Header::request(Operation::Ping, self.correlation, Some(PartitionId(partition)));
        (header.operation, header.flags) = (operation, flags);
        self.handle(Input::Frame { conn: ConnId(conn), header, body });
        self.correlation
    }

    /// Makes everything logged durable, until nothing more is logged.
    pub(crate) fn settle(&mut self) {
        while self.durable < self.log.len() {
            self.make_all_durable(self.log.len());
        }
    }

    /// Makes the first `count` records durable that were logged since the shard began to serve.
    pub(crate) fn make_durable(&mut self, count: usize) {
        self.make_all_durable(self.begun + count);
    }

    /// Makes the first `count` records durable.
    pub(crate) fn make_all_durable(&mut self, count: usize) {
        self.durable = count;
        self.handle(Input::Durable { sequence: count as u64 });
    }

    /// Lets time pass, waking the shard when it asks to be woken.
    pub(crate) fn advance_ms(&mut self, ms: u64) {
        self.advance_with(ms, Self::settle);
    }

    pub(crate) fn advance_with(&mut self, ms: u64, mut after: impl FnMut(&mut Self)) {
        let target_us = self.now_us + ms * 1_000;
        while let Some(wake_us) = self.shard.next_wake_us().filter(|&wake_us| wake_us <= target_us) {
            self.now_us = self.now_us.max(wake_us);
            self.handle(Input::Tick);
            after(self);
        }
        self.now_us = target_us;
        self.handle(Input::Tick);
        after(self);
    }

    /// Takes the answer to a request, if it has arrived.
    pub(crate) fn reply(&mut self, correlation: u64) -> Option<Message> {
        let is_it = |message: &Message| message.header.correlation == correlation && message.header.is_response();
        let position = self.inbox.iter().position(is_it)?;
        self.inbox.remove(position)
    }

    /// Sends a request, makes it durable and returns its answer.
    pub(crate) fn call<B: Body>(&mut self, conn: u64, partition: u16, body: &B) -> Message {
        self.call_as(B::OPERATION, 0, conn, partition, body)
    }

    pub(crate) fn call_as<B: Body>(
        &mut self,
        operation: Operation,
        flags: u8,
        conn: u64,
        partition: u16,
        body: &B,
    ) -> Message {
        let correlation = self.send_as(operation, flags, conn, partition, body);
        self.settle();
        self.reply(correlation).expect("every request is answered")
    }

    /// Starts again from the durable log, as after a crash. Connections and leases are gone.
    pub(crate) fn crash(&mut self) {
        self.log.truncate(self.durable);
        self.restart(None);
    }

    /// Starts again from a snapshot (how many records were durable at its begin, and its chunks) and the durable log.
    pub(crate) fn restart(&mut self, snapshot: Option<(u64, &[(u32, FrameBuffer)])>) {
        self.shard = Shard::new(self.config.clone(), self.now_us);
        for (tag, chunk) in snapshot.map_or(&[][..], |(_, chunks)| chunks) {
            self.shard.restore_chunk(*tag, chunk).unwrap();
        }
        for (sequence, record) in (1..).zip(&self.log) {
            self.shard.replay(sequence, record.kind, &record.bytes).unwrap();
        }
        self.come_back();
    }

    /// The shard, brought back as far as its log reaches, begins to serve.
    pub(crate) fn come_back(&mut self) {
        assert_eq!(self.shard.last_sequence(), self.log.len() as u64);
        self.effects = Effects::default();
        self.inbox.clear();
        self.letters.clear();
        self.start();
    }

    /// Writes a snapshot, calling `between` after each slice.
    pub(crate) fn snapshot(&mut self, mut between: impl FnMut(&mut Self)) -> (u64, Chunks) {
        assert!(self.shard.can_snapshot());
        let sequence = self.durable as u64;
        self.shard.snapshot_begin();
        let mut chunks = Vec::new();
        loop {
            let mut chunk = FrameBuffer::new();
            match self.shard.snapshot_next(&mut chunk) {
                SnapshotStep::Chunk(tag) => chunks.push((tag, chunk)),
                SnapshotStep::End => return (sequence, chunks),
                step => panic!("{step:?}"),
            }
            between(self);
        }
    }
}

/// The verbs of producers and operators.
impl World {
    /// Submits tasks of one partition; all must be accepted.
    pub(crate) fn submit(&mut self, jobs: &[Job]) -> Vec<TaskId> {
        let reply = self.try_submit(jobs);
        assert_eq!((reply.accepted as usize, reply.exceptions.len()), (jobs.len(), 0), "{reply:?}");
        jobs.iter().map(|job| job.id).collect()
    }

    pub(crate) fn submit_one(&mut self, job: Job) -> TaskId {
        self.submit(&[job])[0]
    }

    pub(crate) fn try_submit(&mut self, jobs: &[Job]) -> BatchReply {
        self.submit_frame(jobs).read()
    }

    pub(crate) fn submit_frame(&mut self, jobs: &[Job]) -> Message {
        let partition = jobs[0].id.partition().0;
        self.call(CLIENT, partition, &job::body_of(jobs))
    }

    pub(crate) fn resubmit(&mut self, jobs: &[Job]) -> BatchReply {
        let partition = jobs[0].id.partition().0;
        self.call_as(Operation::Submit, FLAG_RESEND, CLIENT, partition, &job::body_of(jobs)).read()
    }

    pub(crate) fn workflow(&mut self, workflow: TaskId, continues: bool, jobs: &[Job]) -> BatchReply {
        let body = job::workflow_of(workflow, "nightly", continues, jobs);
        self.call(CLIENT, workflow.partition().0, &body).read()
    }

    pub(crate) fn cancel(&mut self, ids: &[TaskId]) -> BatchReply {
        self.call(CLIENT, ids[0].partition().0, &Cancel { ids: ids.to_vec(), workflows: 0 }).read()
    }

    pub(crate) fn cancel_workflow(&mut self, id: TaskId) -> BatchReply {
        self.call(CLIENT, id.partition().0, &Cancel { ids: vec![id], workflows: 1 }).read()
    }

    pub(crate) fn retry(&mut self, ids: &[TaskId]) -> BatchReply {
        self.call(CLIENT, ids[0].partition().0, &Retry { ids: ids.to_vec() }).read()
    }

    /// Changes a queue in every partition that is here.
    pub(crate) fn configure(&mut self, queue: &str, set: u32, change: impl FnOnce(&mut ConfigureQueue)) {
        let mut body = ConfigureQueue { set, ..ConfigureQueue::default() };
        body.queue = body::put(&mut body.bytes, queue.as_bytes());
        change(&mut body);
        let shards = self.config.node.client_ports.len();
        for partition in (self.config.number..self.config.partitions).step_by(shards) {
            let _: Empty = self.call(CLIENT, partition, &body).read();
        }
    }

    pub(crate) fn await_task(&mut self, id: TaskId, timeout_ms: u32) -> u64 {
        self.send(CLIENT, id.partition().0, &AwaitTask { id, timeout_ms, workflow: 0 })
    }

    /// A task, or `None` when it is unknown.
    pub(crate) fn find(&mut self, id: TaskId) -> Option<TaskView> {
        let message = self.call(CLIENT, id.partition().0, &GetTask { id });
        if message.code() == Code::UnknownTask {
            return None;
        }
        let page: TaskPage = message.read();
        Some(view(&page, &page.rows[0]))
    }

    /// As [`Self::find`], while entries stay on their way to the disk.
    pub(crate) fn find_without_settling(&mut self, id: TaskId) -> Option<TaskView> {
        let correlation = self.send(CLIENT, id.partition().0, &GetTask { id });
        let message = self.reply(correlation).unwrap();
        (message.code() == Code::Ok).then(|| message.read::<TaskPage>()).map(|page| view(&page, &page.rows[0]))
    }

    pub(crate) fn task(&mut self, id: TaskId) -> TaskView {
        self.find(id).unwrap_or_else(|| panic!("{id} is unknown"))
    }

    pub(crate) fn state(&mut self, id: TaskId) -> State {
        self.task(id).state
    }

    /// All tasks of a partition, page by page.
    pub(crate) fn list(&mut self, partition: u16, states: u32) -> Vec<TaskView> {
        let mut tasks = Vec::new();
        let mut cursor = [0; 2];
        loop {
            let page: TaskPage =
                self.call(CLIENT, partition, &ListTasks { states, cursor, limit: 100, ..ListTasks::default() }).read();
            tasks.extend(page.rows.iter().map(|row| view(&page, row)));
            cursor = page.cursor;
            if cursor == [0; 2] {
                return tasks;
            }
        }
    }

    /// Why a task waits: facts by name.
    pub(crate) fn why(&mut self, id: TaskId) -> Vec<(String, String)> {
        let answer: Explanation = self.call_as(Operation::Why, 0, CLIENT, id.partition().0, &GetTask { id }).read();
        let texts: Vec<String> = answer.facts.iter().map(|&span| text(&answer.bytes, span)).collect();
        texts.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect()
    }

    /// The `reason` of [`Self::why`].
    pub(crate) fn reason(&mut self, id: TaskId) -> String {
        self.why(id).into_iter().find(|(name, _)| name == "reason").unwrap().1
    }

    pub(crate) fn queues(&mut self, partition: u16) -> Vec<(String, QueueInfo)> {
        let page: QueuePage = self.call(CLIENT, partition, &ListQueues::default()).read();
        page.rows.iter().map(|row| (text(&page.bytes, row.queue), *row)).collect()
    }

    pub(crate) fn get_workflow(&mut self, id: TaskId) -> WorkflowPage {
        self.call(CLIENT, id.partition().0, &GetWorkflow { id, from: 0, limit: 100_000 }).read()
    }
}

/// The verbs of workers.
impl World {
    /// Subscribes a worker without counted resources.
    pub(crate) fn worker(&mut self, conn: u64, queues: &[&str], credit: u32) {
        self.worker_with(conn, queues, credit, "", |_| {});
    }

    pub(crate) fn worker_with(
        &mut self,
        conn: u64,
        queues: &[&str],
        credit: u32,
        custom: &str,
        change: impl FnOnce(&mut Subscribe),
    ) {
        let _: Empty = self.call(conn, 0, &subscription(conn, queues, credit, custom, change)).read();
    }

    pub(crate) fn credit(&mut self, conn: u64, credit: u32) {
        self.send(conn, 0, &Credit { credit });
    }

    pub(crate) fn disconnect(&mut self, conn: u64) {
        self.handle(Input::Disconnected { conn: ConnId(conn) });
    }

    /// Takes the assignments that have arrived.
    pub(crate) fn leases(&mut self) -> Vec<Lease> {
        self.pushes(Operation::Assign).iter().flat_map(leases_in).collect()
    }

    /// Takes the letters to other shards.
    pub(crate) fn letters(&mut self) -> Vec<Letter> {
        std::mem::take(&mut self.letters)
    }

    /// Hands over another shard's letter.
    pub(crate) fn take_letter(&mut self, letter: &Letter) {
        self.handle(Input::Peer { from: letter.from, bytes: &letter.bytes });
    }

    /// Takes the one assignment that has arrived.
    pub(crate) fn lease(&mut self) -> Lease {
        let mut leases = self.leases();
        assert_eq!(leases.len(), 1, "{leases:?}");
        leases.remove(0)
    }

    /// Takes the revocations that have arrived: connection, task, token.
    pub(crate) fn revocations(&mut self) -> Vec<(u64, TaskId, u64)> {
        let rows = |message: &Message| {
            let conn = message.conn;
            message.read::<Leases>().rows.into_iter().map(move |row| (conn, row.id, row.token)).collect::<Vec<_>>()
        };
        self.pushes(Operation::Revoke).iter().flat_map(rows).collect()
    }

    /// Takes the pushes of one kind.
    pub(crate) fn pushes(&mut self, operation: Operation) -> Vec<Message> {
        let is_it = |message: &Message| message.header.operation == operation.number() && !message.header.is_response();
        let (taken, rest) = self.inbox.drain(..).partition::<Vec<_>, _>(is_it);
        self.inbox = rest.into();
        taken
    }

    /// Completes a lease; the reply's only exception code, or `Ok`.
    pub(crate) fn complete(&mut self, lease: &Lease, result: &[u8]) -> Code {
        let body = complete_body(&[(lease, result)]);
        single(&self.call(lease.conn, lease.id.partition().0, &body).read())
    }

    pub(crate) fn fail(&mut self, lease: &Lease, code: &str) -> Code {
        self.fail_with(lease, code, "it went wrong", b"the last line", false)
    }

    pub(crate) fn fail_with(&mut self, lease: &Lease, code: &str, message: &str, log: &[u8], is_final: bool) -> Code {
        let body = fail_body(lease, code, message, log, is_final);
        single(&self.call(lease.conn, lease.id.partition().0, &body).read())
    }

    pub(crate) fn extend(&mut self, conn: u64, lease: &Lease) -> Code {
        let body = Leases { rows: vec![lease.row()] };
        single(&self.call_as(Operation::Extend, 0, conn, lease.id.partition().0, &body).read())
    }

    pub(crate) fn release(&mut self, lease: &Lease) -> Code {
        let body = Leases { rows: vec![lease.row()] };
        single(&self.call_as(Operation::Release, 0, lease.conn, lease.id.partition().0, &body).read())
    }
}

/// A subscribe body.
pub(crate) fn subscription(
    conn: u64,
    queues: &[&str],
    credit: u32,
    custom: &str,
    change: impl FnOnce(&mut Subscribe),
) -> Subscribe {
    let mut body = Subscribe { credit, ..Subscribe::default() };
    for queue in queues {
        let span = body::put(&mut body.bytes, queue.as_bytes());
        body.queues.push(span);
    }
    body.worker = body::put(&mut body.bytes, format!("worker-{conn}").as_bytes());
    body.custom = body::put(&mut body.bytes, custom.as_bytes());
    change(&mut body);
    body
}

/// The leases of an assign frame.
pub(crate) fn leases_in(message: &Message) -> Vec<Lease> {
    let body: Assign = message.read();
    let lease = |row: &body::AssignRow| {
        let spec = &body.specs[row.spec as usize];
        Lease {
            conn: message.conn,
            id: row.id,
            token: row.token,
            locator: row.locator,
            attempt: row.attempt,
            payload: bytes(&body.bytes, row.payload),
            queue: text(&body.bytes, spec.queue),
            kind: text(&body.bytes, spec.kind),
            ready_us: row.ready_us,
            version: row.version,
            cpu_milli: spec.cpu_milli,
            gpu_milli: spec.gpu_milli,
            custom: text(&body.bytes, spec.custom),
        }
    };
    body.rows.iter().map(lease).collect()
}

/// A complete body.
pub(crate) fn complete_body(completions: &[(&Lease, &[u8])]) -> Complete {
    let mut body = Complete::default();
    for (lease, result) in completions {
        let result = body::put(&mut body.bytes, result);
        let (id, token, locator, attempt) = (lease.id, lease.token, lease.locator, lease.attempt);
        body.rows.push(CompleteRow { id, token, locator, attempt, result });
    }
    body
}

/// A fail body.
pub(crate) fn fail_body(lease: &Lease, code: &str, message: &str, log: &[u8], is_final: bool) -> Fail {
    let mut body = Fail::default();
    let (code, message) = (body::put(&mut body.bytes, code.as_bytes()), body::put(&mut body.bytes, message.as_bytes()));
    let log_tail = body::put(&mut body.bytes, log);
    body.rows.push(FailRow {
        id: lease.id,
        token: lease.token,
        locator: lease.locator,
        attempt: lease.attempt,
        code,
        message,
        log_tail,
        is_final: is_final.into(),
        reserved: 0,
    });
    body
}

/// The outcome of a request of one row.
pub(crate) fn single(reply: &BatchReply) -> Code {
    match reply.exceptions.as_slice() {
        [] => {
            assert_eq!(reply.accepted, 1);
            Code::Ok
        }
        [exception] => {
            assert_eq!(reply.accepted, 0);
            Code::from_number(exception.code)
        }
        _ => panic!("{reply:?}"),
    }
}

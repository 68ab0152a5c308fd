//! Several nodes in this process that keep tasks together, as a cluster does: what one accepted, all know; leases are
//! known to the leader that gave them only. They fail when a test says so, and write down what they received.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use taskmaster_client::wire::FrameReader;
use taskmaster_client::{Client, Code, State, TaskId};
use taskmaster_protocol::body::{
    ArchivedAwaitTask, ArchivedComplete, ArchivedCredit, ArchivedLeases, ArchivedSubmit, ArchivedSubscribe, Assign,
    AssignRow, AssignSpec, BatchReply, Body, ClusterMapReply, Empty, ExceptionRow, HelloReply, NodeRow, PartitionRow,
    Refusal, Span, TaskInfo, TaskPage, access, put,
};
use taskmaster_protocol::{Frame, FrameBuffer, Header, Operation, PartitionId, frame};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

pub(crate) const PARTITIONS: u16 = 8;

/// A request that a node received.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) node: usize,
    pub(crate) operation: Operation,
    pub(crate) partition: u16,
    pub(crate) is_resend: bool,
    pub(crate) is_refused: bool,
}

/// What a node does with the next submission or completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trick {
    /// Carries it out and dies before the answer.
    DieBeforeAnswer,
    /// Carries it out and says that it does not lead, as a leader deposed during the flush does.
    CarryOutAndDeny,
    /// Is shutting down.
    ShutDown,
}

#[derive(Default)]
struct Node {
    ports: Vec<u16>,
    is_dead: bool,
    is_hidden: bool,
    is_diskless: bool,
    trick: Option<Trick>,
    /// What it believes, if it is cut off from the others.
    belief: Option<Vec<(usize, u64)>>,
}

/// A subscription: frames to the worker, and its credit.
struct Subscription {
    out: mpsc::UnboundedSender<FrameBuffer>,
    credit: u32,
}

#[derive(Default)]
pub(crate) struct Shared {
    nodes: Vec<Node>,
    /// Leader, `None` during elections, and term of each partition.
    leaders: Vec<(Option<usize>, u64)>,
    pub(crate) accepted: BTreeMap<TaskId, State>,
    leases: HashMap<TaskId, u64>,
    tokens: u64,
    subscriptions: BTreeMap<(usize, u16), Subscription>,
    /// Who waits for a task's end: at which node, for which task, and where the answer goes.
    waits: Vec<(usize, TaskId, Header, mpsc::UnboundedSender<FrameBuffer>)>,
    pub(crate) seen: Vec<Seen>,
    pub(crate) stale: usize,
    pub(crate) released: usize,
    pub(crate) assigned: usize,
}

/// The cluster.
#[derive(Clone)]
pub(crate) struct Nodes {
    state: Arc<Mutex<Shared>>,
    /// By node: connections end when it grows.
    kill: Vec<watch::Sender<u64>>,
    silent: Vec<watch::Sender<bool>>,
    /// By node: connections made before it grew are silent.
    stalled: Vec<watch::Sender<u64>>,
}

impl Nodes {
    /// Starts nodes, with this many shards each. Partition p is led by node p mod nodes.
    pub(crate) async fn start(shards: &[usize]) -> Self {
        let this = Self {
            state: Arc::default(),
            kill: shards.iter().map(|_| watch::Sender::new(0)).collect(),
            silent: shards.iter().map(|_| watch::Sender::new(false)).collect(),
            stalled: shards.iter().map(|_| watch::Sender::new(0)).collect(),
        };
        for (node, &shards) in shards.iter().enumerate() {
            let mut ports = Vec::new();
            for shard in 0..shards {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                ports.push(listener.local_addr().unwrap().port());
                tokio::spawn(this.clone().listen(listener, node, u16::try_from(shard).unwrap()));
            }
            this.state().nodes.push(Node { ports, ..Node::default() });
        }
        let count = shards.len();
        this.state().leaders = (0..usize::from(PARTITIONS)).map(|p| (Some(p % count), 1)).collect();
        this
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, Shared> {
        self.state.lock().unwrap()
    }

    pub(crate) fn address(&self, node: usize) -> String {
        format!("127.0.0.1:{}", self.state().nodes[node].ports[0])
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(self.address(0)).await.unwrap()
    }

    /// Ends a node as kill -9 does: connections are reset, connecting is refused. Nobody leads what it led.
    pub(crate) fn kill(&self, node: usize) {
        let mut state = self.state();
        state.nodes[node].is_dead = true;
        state.subscriptions.retain(|key, _| key.0 != node);
        for leader in &mut state.leaders {
            leader.0 = leader.0.filter(|&leader| leader != node);
        }
        drop(state);
        self.kill[node].send_modify(|count| *count += 1);
    }

    /// Lets a killed node run again, at its ports.
    pub(crate) async fn revive(&self, node: usize) {
        let ports = self.state().nodes[node].ports.clone();
        for (shard, port) in ports.into_iter().enumerate() {
            let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
            tokio::spawn(self.clone().listen(listener, node, u16::try_from(shard).unwrap()));
        }
        self.state().nodes[node].is_dead = false;
    }

    /// Freezes a node: it reads nothing and says nothing, and keeps its connections.
    pub(crate) fn silence(&self, node: usize, is_silent: bool) {
        self.silent[node].send_replace(is_silent);
    }

    /// Nothing passes any more on the connections that a node has; on new ones it does.
    pub(crate) fn stall(&self, node: usize) {
        self.stalled[node].send_modify(|count| *count += 1);
    }

    /// Elects: the node leads these partitions, in a new term. Leases of the old leader are forgotten.
    pub(crate) fn elect(&self, node: usize, partitions: impl Fn(u16) -> bool) {
        let mut state = self.state();
        for partition in (0..PARTITIONS).filter(|&p| partitions(p)) {
            let leader = &mut state.leaders[usize::from(partition)];
            if leader.0 != Some(node) {
                *leader = (Some(node), leader.1 + 1);
                state.leases.retain(|id, _| id.partition().0 != partition);
            }
        }
        state.assign();
    }

    /// Elects: the node leads what nobody leads.
    pub(crate) fn elect_for_lost(&self, node: usize) {
        let lost: Vec<bool> = self.state().leaders.iter().map(|leader| leader.0.is_none()).collect();
        self.elect(node, |partition| lost[usize::from(partition)]);
    }

    /// The node that leads a partition.
    pub(crate) fn leader(&self, partition: u16) -> Option<usize> {
        self.state().leaders[usize::from(partition)].0
    }

    /// Cuts a node off: it keeps believing what is true now.
    pub(crate) fn cut_off(&self, node: usize) {
        let mut state = self.state();
        let belief = state.leaders.iter().map(|&(leader, term)| (leader.unwrap_or(usize::MAX), term)).collect();
        state.nodes[node].belief = Some(belief);
    }

    pub(crate) fn play(&self, node: usize, trick: Trick) {
        self.state().nodes[node].trick = Some(trick);
    }

    /// Leaves the node out of the map, or puts it in.
    pub(crate) fn set_hidden(&self, node: usize, is_hidden: bool) {
        self.state().nodes[node].is_hidden = is_hidden;
    }

    /// The node came back without its data and belongs to no cluster.
    pub(crate) fn set_diskless(&self, node: usize) {
        self.state().nodes[node].is_diskless = true;
    }

    pub(crate) fn subscribed(&self) -> Vec<(usize, u16)> {
        self.state().subscriptions.keys().copied().collect()
    }

    async fn listen(self, listener: TcpListener, node: usize, shard: u16) {
        let mut kill = self.kill[node].subscribe();
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    let (stream, _) = accepted.unwrap();
                    tokio::spawn(self.clone().serve(stream, node, shard));
                }
                _ = kill.changed() => return,
            }
        }
    }

    async fn serve(self, stream: TcpStream, node: usize, shard: u16) {
        // Else an answer may wait 40 ms for the acknowledgement of the one before.
        stream.set_nodelay(true).unwrap();
        let (read, mut write) = stream.into_split();
        let (out, mut frames) = mpsc::unbounded_channel::<FrameBuffer>();
        let (mut kill, mut silent) = (self.kill[node].subscribe(), self.silent[node].subscribe());
        let mut stalled = self.stalled[node].subscribe();
        let stalled_before = *stalled.borrow();
        let mut reader = FrameReader::new(read);
        loop {
            let is_silent = *silent.borrow_and_update() || *stalled.borrow_and_update() > stalled_before;
            while !is_silent && let Ok(Some(frame)) = reader.buffered() {
                if !self.state().handle(node, shard, &frame, &out) {
                    self.kill(node);
                    return;
                }
            }
            tokio::select! {
                filled = reader.fill(), if !is_silent => if !matches!(filled, Ok(1..)) { break },
                frame = frames.recv(), if !is_silent => {
                    if write.write_all(&frame.expect("it is kept here")).await.is_err() { break }
                }
                _ = kill.changed() => return,
                _ = silent.changed() => {}
                _ = stalled.changed() => {}
            }
        }
        let mut state = self.state();
        if state.subscriptions.get(&(node, shard)).is_some_and(|known| known.out.same_channel(&out)) {
            state.subscriptions.remove(&(node, shard));
        }
    }
}

fn send<B: Body>(out: &mpsc::UnboundedSender<FrameBuffer>, header: Header, body: &B) {
    let mut buffer = FrameBuffer::new();
    frame::encode(&mut buffer, header, body);
    drop(out.send(buffer));
}

impl Shared {
    /// Answers a request; false when the node dies over it.
    fn handle(&mut self, node: usize, shard: u16, frame: &Frame<'_>, out: &mpsc::UnboundedSender<FrameBuffer>) -> bool {
        let header = frame.header;
        let operation = Operation::from_number(header.operation).unwrap();
        let ok = header.response(Code::Ok);
        let refuse = |code: Code| send(out, header.response(code), &Refusal::new("by script", None, 0));
        match operation {
            Operation::Hello => send(out, ok, &self.hello(node, shard)),
            Operation::ClusterMap => send(out, ok, &self.map(node)),
            Operation::Ping => send(out, ok, &Empty::default()),
            Operation::Subscribe => {
                let credit = access::<ArchivedSubscribe>(frame.body).unwrap().credit.to_native();
                self.subscriptions.insert((node, shard), Subscription { out: out.clone(), credit });
                send(out, ok, &Empty::default());
                self.assign();
            }
            Operation::Credit => {
                let credit = access::<ArchivedCredit>(frame.body).unwrap().credit.to_native();
                if let Some(subscription) = self.subscriptions.get_mut(&(node, shard)) {
                    subscription.credit += credit;
                }
                self.assign();
            }
            _ => {
                let trick = match operation {
                    Operation::Submit | Operation::Complete => self.nodes[node].trick.take(),
                    _ => None,
                };
                let is_leader = self.leaders[usize::from(header.partition)].0 == Some(node);
                let is_refused = !is_leader || matches!(trick, Some(Trick::ShutDown | Trick::CarryOutAndDeny));
                let is_resend = header.is_resend();
                self.seen.push(Seen { node, operation, partition: header.partition, is_resend, is_refused });
                if !is_leader {
                    refuse(Code::NotLeader);
                    return true;
                }
                if trick == Some(Trick::ShutDown) {
                    send(out, header.response(Code::ShuttingDown), &Refusal::new("by script", None, 10_000));
                    return true;
                }
                if operation == Operation::AwaitTask {
                    let id = TaskId::from(&access::<ArchivedAwaitTask>(frame.body).unwrap().id);
                    self.waits.push((node, id, ok, out.clone()));
                    self.answer_waits();
                    return true;
                }
                let reply = self.carry_out(operation, frame.body);
                self.answer_waits();
                match trick {
                    Some(Trick::DieBeforeAnswer) => return false,
                    Some(_) => refuse(Code::NotLeader),
                    None => send(out, ok, &reply),
                }
                self.assign();
            }
        }
        true
    }

    fn carry_out(&mut self, operation: Operation, bytes: &[u8]) -> BatchReply {
        let rows: Vec<(TaskId, u64)> = match operation {
            Operation::Submit => {
                let rows = &access::<ArchivedSubmit>(bytes).unwrap().tasks;
                rows.iter().map(|row| (TaskId::from(&row.id), 0)).collect()
            }
            Operation::Complete => {
                let rows = &access::<ArchivedComplete>(bytes).unwrap().rows;
                rows.iter().map(|row| (TaskId::from(&row.id), row.token.to_native())).collect()
            }
            Operation::Extend | Operation::Release => {
                let rows = &access::<ArchivedLeases>(bytes).unwrap().rows;
                rows.iter().map(|row| (TaskId::from(&row.id), row.token.to_native())).collect()
            }
            other => panic!("{other:?} is not played"),
        };
        let mut reply = BatchReply::default();
        for ((id, token), index) in rows.into_iter().zip(0u32..) {
            match self.row(operation, id, token) {
                Code::Ok => reply.accepted += 1,
                code => {
                    let state = self.accepted.get(&id).map_or(0, |state| state.number());
                    reply.exceptions.push(ExceptionRow { id, index, code: code.number(), state, reserved: 0 });
                }
            }
        }
        reply
    }

    fn row(&mut self, operation: Operation, id: TaskId, token: u64) -> Code {
        let state = self.accepted.get(&id).copied();
        match (operation, state) {
            (Operation::Submit, None) => {
                self.accepted.insert(id, State::Ready);
                return Code::Ok;
            }
            (Operation::Submit, Some(_)) => return Code::Duplicate,
            (Operation::Complete, Some(State::Succeeded)) => return Code::AlreadyFinal,
            _ => {}
        }
        if self.leases.get(&id) != Some(&token) {
            self.stale += 1;
            return Code::StaleLease;
        }
        match operation {
            Operation::Complete => drop(self.accepted.insert(id, State::Succeeded)),
            Operation::Release => {
                self.released += 1;
                self.leases.remove(&id);
            }
            _ => {}
        }
        Code::Ok
    }

    /// Leaders tell of tasks that have ended.
    fn answer_waits(&mut self) {
        let (accepted, leaders) = (&self.accepted, &self.leaders);
        self.waits.retain(|(node, id, header, out)| {
            let is_ended = accepted.get(id) == Some(&State::Succeeded);
            if !is_ended || leaders[usize::from(id.partition().0)].0 != Some(*node) {
                return true;
            }
            let row = TaskInfo { id: *id, state: State::Succeeded.number(), ..TaskInfo::default() };
            send(out, *header, &TaskPage { rows: vec![row], ..TaskPage::default() });
            false
        });
    }

    /// Leaders assign ready tasks to subscriptions with credit.
    fn assign(&mut self) {
        let ready: Vec<TaskId> =
            self.accepted.iter().filter(|(_, state)| **state == State::Ready).map(|(id, _)| *id).collect();
        for id in ready.into_iter().filter(|id| !self.leases.contains_key(id)).collect::<Vec<_>>() {
            let partition = id.partition().0;
            let Some(node) = self.leaders[usize::from(partition)].0 else { continue };
            let shard = partition % u16::try_from(self.nodes[node].ports.len()).unwrap();
            let Some(subscription) = self.subscriptions.get_mut(&(node, shard)).filter(|known| known.credit > 0) else {
                continue;
            };
            subscription.credit -= 1;
            self.tokens += 1;
            self.assigned += 1;
            self.leases.insert(id, self.tokens);
            let mut bytes = Vec::new();
            let spec = AssignSpec {
                queue: put(&mut bytes, b"default"),
                kind: put(&mut bytes, b"work"),
                lease_ms: 30_000,
                attempts_max: 3,
                ..AssignSpec::default()
            };
            let row = AssignRow { id, token: self.tokens, attempt: 1, ..AssignRow::default() };
            let header = Header::request(Operation::Assign, 0, Some(PartitionId(partition)));
            send(&subscription.out, header, &Assign { specs: vec![spec], rows: vec![row], bytes });
        }
    }

    fn hello(&self, node: usize, shard: u16) -> HelloReply {
        let ports = self.nodes[node].ports.clone();
        let shards = u16::try_from(ports.len()).unwrap();
        HelloReply {
            body_bytes_max: 16 << 20,
            payload_bytes_max: 1 << 20,
            rows_max: 100_000,
            credit_max: 1 << 20,
            shard_ports: ports,
            partition_shards: (0..PARTITIONS).map(|partition| partition % shards).collect(),
            shard,
            version: 1,
            ..HelloReply::default()
        }
    }

    fn map(&self, node: usize) -> ClusterMapReply {
        let mut map = ClusterMapReply { version: 1, node: number(node), ..ClusterMapReply::default() };
        let host = put(&mut map.bytes, b"127.0.0.1");
        let is_diskless = self.nodes[node].is_diskless;
        for (at, row) in self.nodes.iter().enumerate() {
            if row.is_hidden || (is_diskless && at != node) {
                continue;
            }
            let ports =
                Span { at: u32::try_from(map.ports.len()).unwrap(), len: u32::try_from(row.ports.len()).unwrap() };
            map.ports.extend_from_slice(&row.ports);
            let alive = u32::from(!row.is_dead);
            map.nodes.push(NodeRow { id: number(at), host, ports, alive, ..NodeRow::default() });
        }
        if is_diskless {
            return map;
        }
        map.cluster = [7, 7];
        map.partitions = match &self.nodes[node].belief {
            Some(belief) => belief.iter().map(|&(leader, term)| partition(Some(leader), term)).collect(),
            None => self.leaders.iter().map(|&(leader, term)| partition(leader, term)).collect(),
        };
        map
    }
}

fn number(node: usize) -> u64 {
    node as u64 + 1
}

fn partition(leader: Option<usize>, term: u64) -> PartitionRow {
    PartitionRow { leader: leader.map_or(0, number), term, ..PartitionRow::default() }
}

/// Waits until something holds, and fails with what should have been.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..12_000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("not in time: {what}");
}

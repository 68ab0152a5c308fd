//! A node without memory: it acknowledges at once, assigns what is submitted, and accepts every completion.
//!
//! Load against it shows what the generator itself can do (its ceiling), and with [`Faults`] whether the generator
//! notices what a real node must never do. It checks no leases, keeps nothing and is no reference for a real node.

use std::collections::{HashMap, VecDeque};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use rustix::event::{Timespec, epoll};
use taskmaster_protocol::body::{
    self, ArchivedComplete, ArchivedCredit, ArchivedSubmit, ArchivedSubscribe, Assign, AssignRow, AssignSpec,
    BatchReply, Body, Empty, ExceptionRow, HelloReply, NodeStats, Refusal, Span,
};
use taskmaster_protocol::frame::{self, Frame, Header};
use taskmaster_protocol::{Code, FrameBuffer, Operation, PartitionId, TaskId, limits};

use crate::connection::{Inbound, Outbound};

/// Partitions of a stub node.
const PARTITIONS: u16 = 64;
/// How soon a stub notices that it is to stop.
const STOP_CHECK: Duration = Duration::from_millis(50);

/// What a stub does wrong, each on every n-th occasion; 0 is never.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Refuses a submit frame as overloaded for 1 ms.
    pub overload_every: u64,
    /// Acknowledges a submit frame and forgets its tasks.
    pub lose_every: u64,
    /// Assigns the tasks of a submit frame twice and accepts both completions.
    pub double_every: u64,
    /// Assigns the tasks of a submit frame again as a second attempt and refuses the second completions.
    pub redeliver_every: u64,
    /// Changes a byte of the last payload of a submit frame.
    pub corrupt_every: u64,
    /// Leaves a submit frame without an answer.
    pub ignore_every: u64,
}

/// A running stub node; it stops when dropped.
#[derive(Debug)]
pub struct Stub {
    addr: String,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Stub {
    /// Starts a stub on loopback ports, one per shard, served by one thread.
    ///
    /// # Errors
    /// When a port or a thread cannot be had.
    pub fn start(shards: u16, faults: Faults) -> Result<Self> {
        ensure!(shards > 0, "a node has at least one shard");
        let mut listeners = Vec::new();
        for _ in 0..shards {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            listener.set_nonblocking(true)?;
            listeners.push(listener);
        }
        let addr = listeners[0].local_addr()?.to_string();
        let stop = Arc::new(AtomicBool::new(false));
        let server = Server::new(listeners, faults)?;
        let seen = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("stub".to_owned()).spawn(move || server.run(&seen))?;
        Ok(Self { addr, stop, thread: Some(thread) })
    }

    /// `host:port` of the first shard.
    #[must_use]
    pub fn addr(&self) -> &str {
        &self.addr
    }

    /// Stops the stub.
    ///
    /// # Errors
    /// What a client sent that no client may send.
    pub fn stop(mut self) -> Result<()> {
        self.join()
    }

    fn join(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take() {
            Some(thread) => thread.join().expect("the stub does not panic"),
            None => Ok(()),
        }
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        // An error was for the caller of `stop`; whoever drops the stub does not want it.
        let _ = self.join();
    }
}

struct Client {
    stream: TcpStream,
    shard: u16,
    inbound: Inbound,
    outbound: Outbound,
    /// Queue subscribed to, and tasks that may be pushed. A frame may overdraw it.
    subscription: Option<Subscription>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct QueueOfShard {
    shard: u16,
    queue: String,
}

struct Subscription {
    key: QueueOfShard,
    credit: i64,
}

#[derive(Default)]
struct Workers {
    clients: Vec<usize>,
    next: usize,
    waiting: VecDeque<(u16, Assign)>,
}

struct Server {
    listeners: Vec<TcpListener>,
    ports: Vec<u16>,
    poll: OwnedFd,
    clients: Vec<Option<Client>>,
    workers: HashMap<QueueOfShard, Workers>,
    faults: Faults,
    submits: u64,
    completions: u64,
    token: u64,
}

impl Server {
    fn new(listeners: Vec<TcpListener>, faults: Faults) -> Result<Self> {
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut ports = Vec::new();
        for (listener, number) in listeners.iter().zip(0u64..) {
            ports.push(listener.local_addr()?.port());
            epoll::add(&poll, listener, epoll::EventData::new_u64(number), epoll::EventFlags::IN)?;
        }
        let (clients, workers) = (Vec::new(), HashMap::new());
        Ok(Self { listeners, ports, poll, clients, workers, faults, submits: 0, completions: 0, token: 0 })
    }

    fn run(mut self, stop: &AtomicBool) -> Result<()> {
        let timeout = Timespec::try_from(STOP_CHECK)?;
        let mut events = Vec::with_capacity(256);
        while !stop.load(Ordering::Relaxed) {
            events.clear();
            match epoll::wait(&self.poll, rustix::buffer::spare_capacity(&mut events), Some(&timeout)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                let number = usize::try_from(event.data.u64())?;
                match number.checked_sub(self.listeners.len()) {
                    None => self.accept(number)?,
                    Some(client) => self.turn(client)?,
                }
            }
            for client in self.clients.iter_mut().flatten().filter(|client| !client.outbound.is_empty()) {
                // A client that is gone is noticed when it is read from.
                let _ = client.outbound.flush(&client.stream);
            }
        }
        Ok(())
    }

    fn accept(&mut self, listener: usize) -> Result<()> {
        let (stream, _) = self.listeners[listener].accept()?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let number = self.listeners.len() + self.clients.len();
        let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
        epoll::add(&self.poll, &stream, epoll::EventData::new_u64(number as u64), flags)?;
        let shard = u16::try_from(listener)?;
        let (inbound, outbound) = (Inbound::new(), Outbound::default());
        self.clients.push(Some(Client { stream, shard, inbound, outbound, subscription: None }));
        Ok(())
    }

    fn turn(&mut self, number: usize) -> Result<()> {
        let Some(mut client) = self.clients[number].take() else { return Ok(()) };
        loop {
            let Ok(more) = client.inbound.receive(&client.stream) else {
                self.leave(number, &client);
                return Ok(());
            };
            let Client { inbound, outbound, subscription, shard, .. } = &mut client;
            let mut turn = Turn { number, shard: *shard, out: &mut outbound.frames, subscription };
            inbound.drain(|frame| self.handle(&mut turn, frame))?;
            if !more {
                break;
            }
        }
        self.clients[number] = Some(client);
        self.push_assignments()
    }

    fn leave(&mut self, number: usize, client: &Client) {
        if let Some(workers) = client.subscription.as_ref().and_then(|s| self.workers.get_mut(&s.key)) {
            workers.clients.retain(|other| *other != number);
        }
    }

    fn handle(&mut self, turn: &mut Turn<'_>, frame: Frame<'_>) -> Result<()> {
        let header = frame.header;
        match Operation::from_number(header.operation) {
            Some(Operation::Hello) => turn.reply(header, Code::Ok, &self.greeting(turn.shard)),
            Some(Operation::Subscribe) => {
                let subscribe = body::access::<ArchivedSubscribe>(frame.body)?;
                let Some(queue) = subscribe.queues.first() else { bail!("a subscription to nothing") };
                let key = QueueOfShard { shard: turn.shard, queue: body::text(&subscribe.bytes, *queue)?.to_owned() };
                self.workers.entry(key.clone()).or_default().clients.push(turn.number);
                *turn.subscription = Some(Subscription { key, credit: i64::from(subscribe.credit.to_native()) });
                turn.reply(header, Code::Ok, &Empty::default());
            }
            Some(Operation::Credit) => {
                let credit = body::access::<ArchivedCredit>(frame.body)?.credit.to_native();
                let Some(subscription) = turn.subscription else { bail!("credit without a subscription") };
                subscription.credit += i64::from(credit);
            }
            Some(Operation::Submit) => self.submit(turn, frame)?,
            Some(Operation::Complete) => self.complete(turn, frame)?,
            Some(Operation::NodeStats) => turn.reply(header, Code::Ok, &self.stats(turn.shard)),
            _ => bail!("a frame that the generator never sends: {header:?}"),
        }
        Ok(())
    }

    fn greeting(&self, shard: u16) -> HelloReply {
        let mut bytes = Vec::new();
        let server = body::put(&mut bytes, b"taskmaster stub");
        let shards = u16::try_from(self.ports.len()).expect("started with a u16");
        HelloReply {
            credit_max: limits::CREDIT_MAX,
            shard_ports: self.ports.clone(),
            partition_shards: (0..PARTITIONS).map(|partition| partition % shards).collect(),
            server,
            bytes,
            shard,
            version: limits::PROTOCOL_VERSION,
            ..HelloReply::default()
        }
    }

    /// Counts frames where a real node counts flushes and bytes, all of them on shard 0.
    fn stats(&self, shard: u16) -> NodeStats {
        let mut bytes = Vec::new();
        let frames = if shard == 0 { self.submits + self.completions } else { 0 };
        let names = vec![body::put(&mut bytes, b"wal_flushes"), body::put(&mut bytes, b"wal_bytes")];
        NodeStats { names, values: vec![frames, 0], bytes }
    }

    fn submit(&mut self, turn: &mut Turn<'_>, frame: Frame<'_>) -> Result<()> {
        let submit = body::access::<ArchivedSubmit>(frame.body)?;
        self.submits += 1;
        let submits = self.submits;
        let is_turn = |every: u64| every > 0 && submits.is_multiple_of(every);
        let faults = self.faults;
        if is_turn(faults.ignore_every) {
            return Ok(());
        }
        if is_turn(faults.overload_every) {
            let refusal = Refusal::new("the stub pretends to be full", None, 1);
            turn.reply(frame.header, Code::Overloaded, &refusal);
            return Ok(());
        }
        let accepted = u32::try_from(submit.tasks.len())?;
        turn.reply(frame.header, Code::Ok, &BatchReply { accepted, exceptions: Vec::new() });
        if is_turn(faults.lose_every) {
            return Ok(());
        }
        let (is_double, is_again) = (is_turn(faults.double_every), is_turn(faults.redeliver_every));
        let mut assign = self.assignment(submit);
        if is_turn(faults.corrupt_every) {
            let last = assign.bytes.last_mut();
            *last.expect("the generator's payloads have bytes") ^= 1;
        }
        let queue = body::text(&submit.bytes, submit.specs[0].queue)?.to_owned();
        let partition = frame.header.partition;
        let shard = partition % u16::try_from(self.ports.len())?;
        let waiting = &mut self.workers.entry(QueueOfShard { shard, queue }).or_default().waiting;
        if is_double || is_again {
            let mut again = assign.clone();
            if is_again {
                again.rows.iter_mut().for_each(|row| row.attempt = 2);
            }
            waiting.push_back((partition, again));
        }
        waiting.push_back((partition, assign));
        Ok(())
    }

    fn assignment(&mut self, submit: &ArchivedSubmit) -> Assign {
        let span = |archived: &body::ArchivedSpan| Span { at: archived.at.to_native(), len: archived.len.to_native() };
        let specs = submit.specs.iter().map(|spec| AssignSpec {
            queue: span(&spec.queue),
            kind: span(&spec.kind),
            lease_ms: spec.lease_ms.to_native(),
            attempts_max: u32::from(spec.attempts_max.to_native()),
            ..AssignSpec::default()
        });
        let mut token = self.token;
        self.token += submit.tasks.len() as u64;
        let rows = submit.tasks.iter().map(|task| {
            token += 1;
            let (id, payload, spec) = (TaskId::from(&task.id), span(&task.payload), task.spec.to_native());
            AssignRow { id, token, payload, spec, attempt: 1, ..AssignRow::default() }
        });
        Assign { specs: specs.collect(), rows: rows.collect(), bytes: submit.bytes.to_vec() }
    }

    fn complete(&mut self, turn: &mut Turn<'_>, frame: Frame<'_>) -> Result<()> {
        let complete = body::access::<ArchivedComplete>(frame.body)?;
        self.completions += 1;
        let again = complete.rows.iter().zip(0u32..).filter(|(row, _)| row.attempt.to_native() > 1);
        let exceptions: Vec<ExceptionRow> = again
            .map(|(row, index)| {
                let code = Code::AlreadyFinal.number();
                ExceptionRow { id: TaskId::from(&row.id), index, code, state: 4, reserved: 0 }
            })
            .collect();
        let accepted = u32::try_from(complete.rows.len() - exceptions.len())?;
        turn.reply(frame.header, Code::Ok, &BatchReply { accepted, exceptions });
        Ok(())
    }

    /// Pushes what waits to workers that have credit.
    fn push_assignments(&mut self) -> Result<()> {
        for workers in self.workers.values_mut() {
            while let Some((_, assign)) = workers.waiting.front() {
                let rows = i64::try_from(assign.rows.len())?;
                let Some(client) = workers.choose(&mut self.clients) else { break };
                let subscription = client.subscription.as_mut().expect("a worker has a subscription");
                subscription.credit -= rows;
                let (partition, assign) = workers.waiting.pop_front().expect("looked at above");
                let header = Header::request(Operation::Assign, 0, Some(PartitionId(partition)));
                frame::encode(&mut client.outbound.frames, header, &assign);
            }
        }
        Ok(())
    }
}

impl Workers {
    /// The next worker in turn that has credit.
    fn choose<'c>(&mut self, clients: &'c mut [Option<Client>]) -> Option<&'c mut Client> {
        let count = self.clients.len();
        let in_turn = (0..count).map(|at| (self.next + at) % count);
        let chosen = in_turn.into_iter().find(|at| {
            let client = clients[self.clients[*at]].as_ref();
            client.and_then(|client| client.subscription.as_ref()).is_some_and(|s| s.credit > 0)
        })?;
        self.next = (chosen + 1) % count;
        clients[self.clients[chosen]].as_mut()
    }
}

/// The parts of a client that its own frames change.
struct Turn<'a> {
    number: usize,
    shard: u16,
    out: &'a mut FrameBuffer,
    subscription: &'a mut Option<Subscription>,
}

impl Turn<'_> {
    fn reply<B: Body>(&mut self, request: Header, code: Code, body: &B) {
        frame::encode(self.out, request.response(code), body);
    }
}

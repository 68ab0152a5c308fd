//! One worker's conversation with one shard of one node: assignments in, answers and heartbeats and credit out.
//!
//! Invariants: every lease received is in `leases` until its answer is in the outbox or the task was dropped; leases
//! outlive the connection, so that work done while it was away is still delivered; answers and heartbeats go to the node
//! that gave the lease for as long as it leads the partition, else to who does (`session/away.rs`); credit is sent in the
//! same write as the answers that free it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use taskmaster_protocol::body::{
    self, ArchivedAssign, ArchivedBatchReply, ArchivedExceptionRow, ArchivedLeases, Credit, Empty, Leases, Progress,
    Subscribe, put,
};
use taskmaster_protocol::{Code, Header, Operation, PartitionId, TaskId};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::assign::{contracts, lease};
use super::context::{Event, Lease};
use super::courier::Delivered;
use super::measure::{Measured, Share};
use super::outbox::{Outbox, Sent};
use super::runner::{Job, Runner};
use crate::cluster::{Cluster, Place, Topology};
use crate::error::{Error, Refusal};
use crate::task::{Resources, State};
use crate::wire::{Connection, Mailbox, Message, Pushes};

mod away;
mod usage;

/// A connection without traffic is asked for life after this long.
const QUIET: Duration = Duration::from_secs(10);
/// Measured attempts that wait to be told, at most.
const MEASURED_MAX: usize = 1_024;
/// Events handled before answers are flushed.
const EVENTS_IN_A_ROW: usize = 4096;

/// Hears what became of each answer.
pub(super) type Witness = Box<dyn Fn(TaskId, Code) + Send + Sync>;

/// What every session of a worker offers.
pub(super) struct Offer {
    pub(super) cluster: Arc<Cluster>,
    pub(super) runner: Arc<Runner>,
    pub(super) queues: Vec<String>,
    pub(super) resources: Resources,
    pub(super) namespace: String,
    pub(super) worker: String,
    pub(super) witness: Option<Witness>,
    pub(super) drain: watch::Receiver<Drain>,
}

impl Offer {
    fn subscription(&self, credit: u32) -> Subscribe {
        let mut bytes = Vec::new();
        Subscribe {
            memory_bytes: self.resources.memory_bytes,
            queues: self.queues.iter().map(|queue| put(&mut bytes, queue.as_bytes())).collect(),
            cpu_milli: self.resources.cpu_milli,
            gpu_milli: self.resources.gpu_milli,
            custom: put(&mut bytes, self.resources.custom.as_bytes()),
            namespace: put(&mut bytes, self.namespace.as_bytes()),
            worker: put(&mut bytes, self.worker.as_bytes()),
            credit,
            reserved: 0,
            bytes,
        }
    }
}

/// How far the shutdown is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Drain {
    /// Not begun.
    No,
    /// No new tasks; running ones end.
    Finish,
    /// Running ones are given up.
    GiveUp,
}

struct Held {
    lease: Arc<Lease>,
    extend_at: Instant,
    /// The node that was last asked to extend it, or gave it.
    extended_by: u64,
}

/// One session.
pub(super) struct Session {
    offer: Arc<Offer>,
    /// Node and shard.
    key: (u64, u16),
    /// Number among the worker's sessions.
    number: usize,
    more_credit: Arc<Notify>,
    events: mpsc::UnboundedReceiver<Event>,
    to_events: mpsc::UnboundedSender<Event>,
    leases: Vec<Option<Held>>,
    free: Vec<usize>,
    outbox: Outbox,
    progressed: Vec<Arc<Lease>>,
    /// Attempts to tell what they used.
    measured: Vec<Measured>,
    /// What runs on this machine, and whether the shard is to be told.
    running: watch::Receiver<Arc<[Share]>>,
    tells_running: bool,
    /// Rows that came over the present connection, modulo 2³².
    seen: u32,
    /// Dropped before they started, to be given back.
    shed: Vec<Arc<Lease>>,
    /// On their way to leaders elsewhere.
    away: JoinSet<Delivered>,
    /// Partitions whose heartbeats are among them.
    extending: BTreeSet<PartitionId>,
    topology: Arc<Topology>,
    to_follow: watch::Receiver<Arc<Topology>>,
    extend_at: Option<Instant>,
    /// Earliest time of the next flush, after a temporary refusal.
    flush_at: Option<Instant>,
    last_reply: Instant,
    /// When to ask for life unless something arrives.
    ping_at: Instant,
    drain: watch::Receiver<Drain>,
    is_withdrawn: bool,
}

/// A live connection of a session.
pub(super) struct Line {
    connection: Connection,
    pushes: Pushes,
    mailbox: Mailbox,
    replies: mpsc::UnboundedReceiver<(u64, Option<Message>)>,
    is_subscribed: bool,
}

enum Ended {
    Done,
    Lost(Error),
}

impl Session {
    pub(super) fn new(offer: Arc<Offer>, key: (u64, u16)) -> Self {
        let (number, more_credit) = offer.runner.add_session();
        let (to_events, events) = mpsc::unbounded_channel();
        let drain = offer.drain.clone();
        let to_follow = offer.cluster.follow();
        let (topology, running) = (offer.cluster.topology(), offer.cluster.presence.follow());
        Self {
            offer,
            key,
            number,
            more_credit,
            events,
            to_events,
            leases: Vec::new(),
            free: Vec::new(),
            outbox: Outbox::default(),
            progressed: Vec::new(),
            measured: Vec::new(),
            running,
            tells_running: false,
            seen: 0,
            shed: Vec::new(),
            away: JoinSet::new(),
            extending: BTreeSet::new(),
            topology,
            to_follow,
            extend_at: None,
            flush_at: None,
            last_reply: Instant::now(),
            ping_at: Instant::now() + QUIET,
            drain,
            is_withdrawn: false,
        }
    }

    /// Its node and shard.
    pub(super) fn key(&self) -> (u64, u16) {
        self.key
    }

    /// Connects and subscribes, once; a connection that only brings answers, if nothing more is to be taken.
    pub(super) fn opening(&self, place: Place) -> impl Future<Output = Result<Line, Error>> + Send + 'static {
        let (offer, number) = (Arc::clone(&self.offer), self.number);
        let is_subscribed = !self.is_draining();
        async move {
            let (connection, pushes) = offer.cluster.open(&place).await?;
            let (mailbox, replies) = mpsc::unbounded_channel();
            offer.runner.reset_credit(number);
            if is_subscribed {
                let credit = offer.runner.grant(number).min(connection.info().credit_max);
                let body = offer.subscription(credit);
                let request = connection.request(Header::request(Operation::Subscribe, 0, None), &body);
                match tokio::time::timeout(offer.cluster.patience.answer, request).await {
                    Ok(reply) => drop(reply?.accepted()?),
                    Err(_) => return Err(Error::timeout(offer.cluster.patience.answer)),
                }
            }
            Ok(Line { connection, pushes, mailbox, replies, is_subscribed })
        }
    }

    /// Something arrived.
    fn heard(&mut self) {
        self.last_reply = Instant::now();
        self.ping_at = self.last_reply + QUIET;
    }

    fn is_draining(&self) -> bool {
        *self.drain.borrow() != Drain::No
    }

    /// Serves until the worker is shut down or the shard is gone for good, over as many connections as it takes. What is
    /// still held then is told.
    pub(super) async fn run(mut self, line: Option<Line>) {
        let mut line = line;
        loop {
            if line.is_none() {
                line = self.reopen().await;
            }
            let Some(live) = line.take() else { break };
            match self.serve(live).await {
                Ended::Done => break,
                Ended::Lost(error) => {
                    tracing::warn!(session = self.number, %error, "a worker's connection was lost");
                }
            }
            self.lost();
        }
        let held = self.find(|_| true);
        self.lose(held);
        self.offer.runner.remove_session(self.number);
        self.offer.runner.wake_starving();
    }

    fn is_idle(&self) -> bool {
        self.leases.len() == self.free.len() && self.outbox.is_empty() && self.away.is_empty()
    }

    async fn serve(&mut self, mut line: Line) -> Ended {
        self.is_withdrawn = !line.is_subscribed;
        (self.seen, self.tells_running) = (0, !self.running.borrow().is_empty());
        self.heard();
        // A shutdown that began while the connection was opened.
        if let Err(error) = self.drain_begins(&line) {
            return Ended::Lost(error);
        }
        loop {
            if let Err(error) = self.flush(&line) {
                return Ended::Lost(error);
            }
            if self.is_done() {
                return Ended::Done;
            }
            let alarm = self.next_alarm();
            let result = tokio::select! {
                push = line.pushes.recv() => match push {
                    Some(push) => self.pushed(push),
                    None => Err(Error::lost("the connection ended")),
                },
                Some(event) = self.events.recv() => {
                    self.take(event);
                    self.take_waiting();
                    Ok(())
                }
                Some((tag, reply)) = line.replies.recv() => self.replied(tag, reply),
                () = sleep_until(alarm) => self.alarm(&line),
                () = self.more_credit.notified() => Ok(()),
                Some(delivered) = self.away.join_next() => {
                    self.delivered(delivered);
                    Ok(())
                }
                Ok(()) = self.to_follow.changed() => self.follow(),
                Ok(()) = self.running.changed() => {
                    self.tells_running = true;
                    Ok(())
                }
                changed = self.drain.changed() => match changed {
                    Ok(()) => self.drain_begins(&line),
                    // The worker's handle was dropped.
                    Err(_) => return Ended::Done,
                },
            };
            if let Err(error) = result {
                return Ended::Lost(error);
            }
        }
    }

    fn is_done(&self) -> bool {
        let drain = *self.drain.borrow();
        drain == Drain::GiveUp || (drain == Drain::Finish && self.is_withdrawn && self.is_idle())
    }

    fn take_waiting(&mut self) {
        for _ in 0..EVENTS_IN_A_ROW {
            match self.events.try_recv() {
                Ok(event) => self.take(event),
                Err(_) => return,
            }
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Finished(lease, answer) => {
                self.remove(&lease);
                if lease.is_cancelled.load(Ordering::Acquire) {
                    self.offer.runner.counters.stale.fetch_add(1, Ordering::Relaxed);
                } else {
                    self.outbox.put(&lease, answer);
                }
            }
            Event::Progressed(lease) => self.progressed.push(lease),
            // What nobody has taken for so long is of little use.
            Event::Measured(measured) if self.measured.len() < MEASURED_MAX => self.measured.push(*measured),
            Event::Measured(_) => {}
            Event::Shed(lease) => {
                self.remove(&lease);
                self.shed.push(lease);
            }
        }
    }

    fn remove(&mut self, lease: &Arc<Lease>) {
        let slot = &mut self.leases[lease.slot];
        if slot.as_ref().is_some_and(|held| Arc::ptr_eq(&held.lease, lease)) {
            *slot = None;
            self.free.push(lease.slot);
        }
    }

    fn pushed(&mut self, push: Message) -> Result<(), Error> {
        self.heard();
        match Operation::from_number(push.header.operation) {
            Some(Operation::Assign) => self.assigned(push),
            Some(Operation::Revoke) => self.revoked(&push),
            Some(Operation::GoAway) => {
                tracing::info!(
                    session = self.number,
                    "the node is shutting down; running tasks end, then it is tried again"
                );
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn assigned(&mut self, push: Message) -> Result<(), Error> {
        let frame = Arc::new(push.body);
        let assign = body::access::<ArchivedAssign>(&frame)?;
        let contracts = contracts(assign)?;
        // Nothing is held before the whole frame has been read.
        let rows: Result<Vec<Lease>, Error> =
            assign.rows.iter().map(|row| lease(row, assign, &contracts, &frame)).collect();
        let (now, assign_rows) = (Instant::now(), assign.rows.len());
        let jobs = rows?.into_iter().map(|lease| self.hold(lease, now)).collect();
        self.seen = self.seen.wrapping_add(u32::try_from(assign_rows).unwrap_or(u32::MAX));
        self.offer.runner.admit(self.number, jobs);
        Ok(())
    }

    fn hold(&mut self, mut lease: Lease, now: Instant) -> Job {
        lease.slot = self.free.pop().unwrap_or_else(|| {
            self.leases.push(None);
            self.leases.len() - 1
        });
        let lease = Arc::new(lease);
        let extend_at = now + lease.contract.lease / 3;
        self.extend_at = Some(self.extend_at.map_or(extend_at, |at| at.min(extend_at)));
        self.leases[lease.slot] = Some(Held { lease: Arc::clone(&lease), extend_at, extended_by: self.key.0 });
        Job { since: now.into_std(), session: self.number, lease, events: self.to_events.clone() }
    }

    fn revoked(&mut self, push: &Message) -> Result<(), Error> {
        let leases = push.read::<ArchivedLeases>()?;
        let tokens: Vec<(TaskId, u64)> =
            leases.rows.iter().map(|row| (TaskId::from(&row.id), row.token.to_native())).collect();
        let revoked = self.find(|lease| tokens.contains(&(lease.id, lease.token)));
        self.lose(revoked);
        Ok(())
    }

    fn find(&self, is_wanted: impl Fn(&Lease) -> bool) -> Vec<Arc<Lease>> {
        self.leases.iter().flatten().filter(|held| is_wanted(&held.lease)).map(|held| Arc::clone(&held.lease)).collect()
    }

    /// Leases that are not ours any more: running handlers are told, queued tasks are forgotten.
    fn lose(&mut self, leases: Vec<Arc<Lease>>) {
        let mut is_any_queued = false;
        for lease in leases {
            lease.cancel();
            if lease.drop_unstarted() {
                is_any_queued = true;
                self.remove(&lease);
            }
        }
        if is_any_queued {
            self.offer.runner.purge();
        }
    }

    fn replied(&mut self, tag: u64, reply: Option<Message>) -> Result<(), Error> {
        let Some(reply) = reply else { return Err(Error::lost("the connection ended")) };
        self.heard();
        let Some((frame, is_resend)) = self.outbox.answered(tag) else { return Ok(()) };
        match reply.accepted() {
            Ok(reply) => self.accepted(frame, is_resend, &reply),
            Err(Error::Refused(refusal)) => {
                self.refused(frame, is_resend, &refusal);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn accepted(&mut self, frame: Sent, is_resend: bool, reply: &Message) -> Result<(), Error> {
        let counters = &self.offer.runner.counters;
        match frame {
            Sent::Complete(..) | Sent::Fail(..) => {
                let reply = reply.read::<ArchivedBatchReply>()?;
                if let Some(witness) = &self.offer.witness {
                    tell(witness, &frame, reply);
                }
                let (counter, state) = match frame {
                    Sent::Complete(..) => (&counters.completed, State::Succeeded),
                    _ => (&counters.failed, State::Failed),
                };
                // The first copy arrived; or somebody else was as quick, which cannot be told apart here.
                let is_arrived = |row: &&ArchivedExceptionRow| {
                    is_resend && row.code.to_native() == Code::AlreadyFinal.number() && row.state == state.number()
                };
                let arrived = reply.exceptions.iter().filter(is_arrived).count() as u64;
                counter.fetch_add(u64::from(reply.accepted.to_native()) + arrived, Ordering::Relaxed);
                counters.stale.fetch_add(reply.exceptions.len() as u64 - arrived, Ordering::Relaxed);
            }
            Sent::Extend(leases) => {
                let reply = reply.read::<ArchivedBatchReply>()?;
                let rows = reply.exceptions.iter().map(|row| row.index.to_native() as usize);
                let lost = rows.filter_map(|row| leases.get(row)).map(Arc::clone).collect();
                self.lose(lost);
            }
            Sent::Release(tasks) => drop(counters.released.fetch_add(tasks, Ordering::Relaxed)),
            Sent::Withdraw => self.is_withdrawn = true,
            Sent::Ping => {}
        }
        Ok(())
    }

    fn refused(&mut self, frame: Sent, is_resend: bool, refusal: &Refusal) {
        match frame {
            Sent::Withdraw => self.is_withdrawn = true,
            // A node that lost the lead while the answer waited for its flush may have passed it on.
            Sent::Complete(..) | Sent::Fail(..) | Sent::Extend(_) if refusal.code == Code::NotLeader => {
                self.deliver(frame, true);
            }
            Sent::Complete(..) | Sent::Fail(..) if refusal.is_temporary() => {
                let wait = refusal.retry_after.unwrap_or(Duration::from_millis(100));
                self.flush_at = Some(Instant::now() + crate::cluster::jittered(wait));
                self.outbox.again(frame, is_resend);
            }
            // What another node leads is not this one's to take back: the lease ended with the lead.
            _ if matches!(refusal.code, Code::StaleLease | Code::NotLeader) => {}
            _ => {
                tracing::error!(session = self.number, %refusal, "the server refused a worker's frame; its tasks run again")
            }
        }
    }

    /// Sends answers, progress and credit.
    fn flush(&mut self, line: &Line) -> Result<(), Error> {
        // What ends a lease comes behind what it used.
        self.flush_usage(line)?;
        if self.flush_at.is_none_or(|at| at <= Instant::now()) {
            self.flush_at = None;
            self.hand_over();
            self.outbox.flush(&line.connection, &line.mailbox)?;
        }
        self.flush_progress(line)?;
        let shed = std::mem::take(&mut self.shed);
        self.release(line, shed)?;
        if !self.is_draining() && !self.is_withdrawn {
            let credit = self.offer.runner.grant(self.number);
            if credit > 0 {
                line.connection.send(Header::request(Operation::Credit, 0, None), &Credit { credit })?;
            }
            self.offer.runner.wake_starving();
        }
        Ok(())
    }

    fn flush_progress(&mut self, line: &Line) -> Result<(), Error> {
        if self.progressed.is_empty() {
            return Ok(());
        }
        let mut frames: BTreeMap<PartitionId, Progress> = BTreeMap::new();
        for lease in self.progressed.drain(..) {
            let Some((row, note)) = lease.take_progress() else { continue };
            let frame = frames.entry(lease.id.partition()).or_default();
            let note = put(&mut frame.bytes, note.as_bytes());
            frame.rows.push(body::ProgressRow { note, ..row });
        }
        for (partition, frame) in frames {
            line.connection.send(Header::request(Operation::Progress, 0, Some(partition)), &frame)?;
        }
        Ok(())
    }

    fn next_alarm(&self) -> Instant {
        let alarms = [self.extend_at, self.flush_at, Some(self.ping_at)];
        alarms.into_iter().flatten().min().expect("the last one is always there").max(Instant::now())
    }

    fn alarm(&mut self, line: &Line) -> Result<(), Error> {
        let now = Instant::now();
        if self.extend_at.is_some_and(|at| at <= now) {
            self.extend(Some(line), now)?;
        }
        if self.ping_at <= now {
            let answer = self.offer.cluster.patience.answer;
            if self.outbox.is_waiting() && self.last_reply + QUIET + answer <= now {
                line.connection.end("no answer in time");
                return Err(Error::timeout(answer));
            }
            self.ping_at = now + QUIET;
            let header = Header::request(Operation::Ping, 0, None);
            self.outbox.send_with(&line.connection, &line.mailbox, header, &Empty::default(), Sent::Ping)?;
        }
        Ok(())
    }

    /// Sends the heartbeats that are due, or soon would be. Without a line those of partitions elsewhere only.
    fn extend(&mut self, line: Option<&Line>, now: Instant) -> Result<(), Error> {
        let mut due: BTreeMap<PartitionId, Vec<Arc<Lease>>> = BTreeMap::new();
        let mut next: Option<Instant> = None;
        for held in self.leases.iter_mut().flatten() {
            let partition = held.lease.id.partition();
            let leader = leader_elsewhere(&self.topology, self.key, partition);
            if held.lease.is_cancelled.load(Ordering::Acquire) {
                continue;
            }
            let length = held.lease.contract.lease;
            if held.extend_at <= now + length / 6 && (line.is_some() || leader.is_some()) {
                held.extend_at = now + length / 3;
                held.extended_by = leader.unwrap_or(self.key.0);
                due.entry(partition).or_default().push(Arc::clone(&held.lease));
            }
            if line.is_some() || leader.is_some() {
                next = Some(next.map_or(held.extend_at, |at| at.min(held.extend_at)));
            }
        }
        self.extend_at = next;
        for (partition, leases) in due {
            match line {
                Some(line) if !self.is_elsewhere(partition) => {
                    self.outbox.send(&line.connection, &line.mailbox, Sent::Extend(leases), false)?;
                }
                _ => self.deliver(Sent::Extend(leases), false),
            }
        }
        Ok(())
    }

    /// No new tasks: withdraws the credit and gives back what has not started.
    fn drain_begins(&mut self, line: &Line) -> Result<(), Error> {
        if !self.is_draining() || self.is_withdrawn {
            return Ok(());
        }
        self.offer.runner.reset_credit(self.number);
        let header = Header::request(Operation::Subscribe, 0, None);
        let body = self.offer.subscription(0);
        self.outbox.send_with(&line.connection, &line.mailbox, header, &body, Sent::Withdraw)?;
        self.release_unstarted(line)
    }

    fn release_unstarted(&mut self, line: &Line) -> Result<(), Error> {
        let unstarted: Vec<Arc<Lease>> =
            self.find(Lease::is_unstarted).into_iter().filter(|lease| lease.drop_unstarted()).collect();
        if unstarted.is_empty() {
            return Ok(());
        }
        unstarted.iter().for_each(|lease| self.remove(lease));
        self.offer.runner.purge();
        self.release(line, unstarted)
    }

    /// Gives leases back.
    fn release(&mut self, line: &Line, leases: Vec<Arc<Lease>>) -> Result<(), Error> {
        let mut frames: BTreeMap<PartitionId, Leases> = BTreeMap::new();
        for lease in leases {
            frames.entry(lease.id.partition()).or_default().rows.push(lease.row());
        }
        for (partition, body) in frames {
            let header = Header::request(Operation::Release, 0, Some(partition));
            let sent = Sent::Release(body.rows.len() as u64);
            self.outbox.send_with(&line.connection, &line.mailbox, header, &body, sent)?;
        }
        Ok(())
    }
}

/// Tells what became of each answer of a frame. Exceptions come in the order of their rows.
fn tell(witness: &Witness, frame: &Sent, reply: &ArchivedBatchReply) {
    let ids: Vec<TaskId> = match frame {
        Sent::Complete(_, body) => body.rows.iter().map(|row| row.id).collect(),
        Sent::Fail(_, body) => body.rows.iter().map(|row| row.id).collect(),
        Sent::Extend(_) | Sent::Release(_) | Sent::Withdraw | Sent::Ping => return,
    };
    let mut exceptions = reply.exceptions.iter().peekable();
    for (id, row) in ids.into_iter().zip(0u32..) {
        let exception = exceptions.next_if(|exception| exception.index.to_native() == row);
        witness(id, exception.map_or(Code::Ok, |exception| Code::from_number(exception.code.to_native())));
    }
}

/// The node that leads a partition, if it is another one than this session's, or this session's shard is no more.
fn leader_elsewhere(topology: &Topology, key: (u64, u16), partition: PartitionId) -> Option<u64> {
    let leader = topology.leader(partition).ok().flatten()?.node.id;
    (leader != key.0 || topology.place(key).is_none()).then_some(leader)
}

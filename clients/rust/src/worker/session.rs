//! One worker's conversation with one shard: assignments in, answers and heartbeats and credit out.
//!
//! Invariants: every lease received is in `leases` until its answer is in the outbox or the task was dropped; leases
//! outlive the connection, so that work done while it was away is still delivered; credit is sent in the same write as
//! the answers that free it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use taskmaster_protocol::body::{
    self, ArchivedAssign, ArchivedBatchReply, ArchivedLeases, Credit, Empty, Leases, Progress, Subscribe, put,
};
use taskmaster_protocol::{Code, Header, Operation, PartitionId, TaskId};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::assign::{contracts, lease};
use super::context::{Event, Lease};
use super::outbox::{Outbox, Sent};
use super::runner::{Job, Runner};
use crate::cluster::{Backoff, Cluster};
use crate::error::{Error, Refusal};
use crate::task::Resources;
use crate::wire::{Connection, Mailbox, Message, Pushes};

/// A connection without traffic is asked for life after this long.
const QUIET: Duration = Duration::from_secs(10);
/// Events handled before answers are flushed.
const EVENTS_IN_A_ROW: usize = 4096;

/// What every session of a worker offers.
pub(super) struct Offer {
    pub(super) cluster: Arc<Cluster>,
    pub(super) runner: Arc<Runner>,
    pub(super) queues: Vec<String>,
    pub(super) resources: Resources,
    pub(super) namespace: String,
    pub(super) worker: String,
    pub(super) drain: watch::Receiver<Drain>,
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
}

/// One session.
pub(super) struct Session {
    offer: Arc<Offer>,
    /// Number among the worker's sessions, and the shard.
    number: usize,
    more_credit: Arc<Notify>,
    events: mpsc::UnboundedReceiver<Event>,
    to_events: mpsc::UnboundedSender<Event>,
    leases: Vec<Option<Held>>,
    free: Vec<usize>,
    outbox: Outbox,
    progressed: Vec<Arc<Lease>>,
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
}

enum Ended {
    Done,
    Lost(Error),
}

impl Session {
    pub(super) fn new(offer: Arc<Offer>) -> Self {
        let (number, more_credit) = offer.runner.add_session();
        let (to_events, events) = mpsc::unbounded_channel();
        let drain = offer.drain.clone();
        Self {
            offer,
            number,
            more_credit,
            events,
            to_events,
            leases: Vec::new(),
            free: Vec::new(),
            outbox: Outbox::default(),
            progressed: Vec::new(),
            extend_at: None,
            flush_at: None,
            last_reply: Instant::now(),
            ping_at: Instant::now() + QUIET,
            drain,
            is_withdrawn: false,
        }
    }

    /// Connects and subscribes, once.
    ///
    /// # Errors
    /// Transport errors and refusals.
    pub(super) async fn open(&mut self) -> Result<Line, Error> {
        let topology = self.offer.cluster.topology();
        let shards = usize::from(topology.shards());
        // A shard that is gone has handed its partitions to others, and every port takes every request.
        let shard = u16::try_from(self.number % shards).expect("below the number of shards");
        let (connection, pushes) = self.offer.cluster.open_shard(&topology, shard).await?;
        let (mailbox, replies) = mpsc::unbounded_channel();
        self.offer.runner.reset_credit(self.number);
        self.is_withdrawn = self.number >= shards || self.is_draining();
        if !self.is_withdrawn {
            let credit = self.offer.runner.grant(self.number).min(connection.info().credit_max);
            let body = self.subscription(credit);
            let request = connection.request(Header::request(Operation::Subscribe, 0, None), &body);
            match tokio::time::timeout(self.offer.cluster.patience.answer, request).await {
                Ok(reply) => drop(reply?.accepted()?),
                Err(_) => return Err(Error::Timeout { after: self.offer.cluster.patience.answer }),
            }
        }
        self.heard();
        Ok(Line { connection, pushes, mailbox, replies })
    }

    /// Something arrived.
    fn heard(&mut self) {
        self.last_reply = Instant::now();
        self.ping_at = self.last_reply + QUIET;
    }

    fn subscription(&self, credit: u32) -> Subscribe {
        let mut bytes = Vec::new();
        let offer = &self.offer;
        Subscribe {
            memory_bytes: offer.resources.memory_bytes,
            queues: offer.queues.iter().map(|queue| put(&mut bytes, queue.as_bytes())).collect(),
            cpu_milli: offer.resources.cpu_milli,
            gpu_milli: offer.resources.gpu_milli,
            custom: put(&mut bytes, offer.resources.custom.as_bytes()),
            namespace: put(&mut bytes, offer.namespace.as_bytes()),
            worker: put(&mut bytes, offer.worker.as_bytes()),
            credit,
            reserved: 0,
            bytes,
        }
    }

    fn is_draining(&self) -> bool {
        *self.drain.borrow() != Drain::No
    }

    /// Serves until the worker is shut down, over as many connections as it takes. What is still held then is told.
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
            self.outbox.lost();
            self.offer.runner.reset_credit(self.number);
        }
        let held = self.find(|_| true);
        self.lose(held);
    }

    /// Connects again, for as long as there is something to connect for.
    async fn reopen(&mut self) -> Option<Line> {
        let mut wait = Backoff::new(&self.offer.cluster.patience);
        while self.pause(wait.next()).await {
            match self.open().await {
                Ok(line) => {
                    self.offer.runner.counters.reconnects.fetch_add(1, Ordering::Relaxed);
                    let now = Instant::now();
                    self.leases.iter_mut().flatten().for_each(|held| held.extend_at = now);
                    self.extend_at = Some(now);
                    return Some(line);
                }
                Err(error) => {
                    tracing::warn!(session = self.number, %error, "a worker cannot connect; trying again");
                    // The node may have come back with another map; that it is unreachable is no news.
                    drop(self.offer.cluster.learn().await);
                }
            }
        }
        None
    }

    /// Waits between connections, taking events; false when there is nothing left to connect for.
    async fn pause(&mut self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        loop {
            if *self.drain.borrow() == Drain::GiveUp || (self.is_draining() && self.is_idle()) {
                return false;
            }
            tokio::select! {
                () = sleep_until(until) => return true,
                Some(event) = self.events.recv() => self.take(event),
                changed = self.drain.changed() => if changed.is_err() { return false },
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.leases.len() == self.free.len() && self.outbox.is_empty()
    }

    async fn serve(&mut self, mut line: Line) -> Ended {
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
        let now = Instant::now();
        let jobs = rows?.into_iter().map(|lease| self.hold(lease, now)).collect();
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
        self.leases[lease.slot] = Some(Held { lease: Arc::clone(&lease), extend_at });
        Job { lease, events: self.to_events.clone() }
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
        let Some(frame) = self.outbox.answered(tag) else { return Ok(()) };
        match reply.accepted() {
            Ok(reply) => self.accepted(frame, &reply),
            Err(Error::Refused(refusal)) => {
                self.refused(frame, &refusal);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn accepted(&mut self, frame: Sent, reply: &Message) -> Result<(), Error> {
        let counters = &self.offer.runner.counters;
        match frame {
            Sent::Complete(..) | Sent::Fail(..) => {
                let reply = reply.read::<ArchivedBatchReply>()?;
                let taken = u64::from(reply.accepted.to_native());
                let counter = if matches!(frame, Sent::Complete(..)) { &counters.completed } else { &counters.failed };
                counter.fetch_add(taken, Ordering::Relaxed);
                counters.stale.fetch_add(reply.exceptions.len() as u64, Ordering::Relaxed);
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

    fn refused(&mut self, frame: Sent, refusal: &Refusal) {
        match frame {
            Sent::Complete(..) | Sent::Fail(..) if refusal.is_temporary() => {
                let wait = refusal.retry_after.unwrap_or(Duration::from_millis(100));
                self.flush_at = Some(Instant::now() + crate::cluster::jittered(wait));
                self.outbox.again(frame);
            }
            Sent::Withdraw => self.is_withdrawn = true,
            _ if refusal.code == Code::StaleLease => {}
            _ => {
                tracing::error!(session = self.number, %refusal, "the server refused a worker's frame; its tasks run again")
            }
        }
    }

    /// Sends answers, progress and credit.
    fn flush(&mut self, line: &Line) -> Result<(), Error> {
        if self.flush_at.is_none_or(|at| at <= Instant::now()) {
            self.flush_at = None;
            self.outbox.flush(&line.connection, &line.mailbox)?;
        }
        self.flush_progress(line)?;
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
            self.extend(line, now)?;
        }
        if self.ping_at <= now {
            let answer = self.offer.cluster.patience.answer;
            if self.outbox.is_waiting() && self.last_reply + QUIET + answer <= now {
                line.connection.end("no answer in time");
                return Err(Error::Timeout { after: answer });
            }
            self.ping_at = now + QUIET;
            let header = Header::request(Operation::Ping, 0, None);
            self.outbox.send_with(&line.connection, &line.mailbox, header, &Empty::default(), Sent::Ping)?;
        }
        Ok(())
    }

    /// Sends the heartbeats that are due, or soon would be.
    fn extend(&mut self, line: &Line, now: Instant) -> Result<(), Error> {
        let mut due: BTreeMap<PartitionId, Vec<Arc<Lease>>> = BTreeMap::new();
        let mut next: Option<Instant> = None;
        for held in self.leases.iter_mut().flatten() {
            let length = held.lease.contract.lease;
            if held.extend_at <= now + length / 6 {
                held.extend_at = now + length / 3;
                due.entry(held.lease.id.partition()).or_default().push(Arc::clone(&held.lease));
            }
            next = Some(next.map_or(held.extend_at, |at| at.min(held.extend_at)));
        }
        self.extend_at = next;
        for leases in due.into_values() {
            self.outbox.send(&line.connection, &line.mailbox, Sent::Extend(leases), false)?;
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
        let body = self.subscription(0);
        self.outbox.send_with(&line.connection, &line.mailbox, header, &body, Sent::Withdraw)?;
        self.release_unstarted(line)
    }

    fn release_unstarted(&mut self, line: &Line) -> Result<(), Error> {
        let mut frames: BTreeMap<PartitionId, Leases> = BTreeMap::new();
        for lease in self.find(Lease::is_unstarted) {
            if lease.drop_unstarted() {
                self.remove(&lease);
                frames.entry(lease.id.partition()).or_default().rows.push(lease.row());
            }
        }
        if frames.is_empty() {
            return Ok(());
        }
        self.offer.runner.purge();
        for (partition, body) in frames {
            let header = Header::request(Operation::Release, 0, Some(partition));
            let sent = Sent::Release(body.rows.len() as u64);
            self.outbox.send_with(&line.connection, &line.mailbox, header, &body, sent)?;
        }
        Ok(())
    }
}

//! Runs handlers: at most `concurrency` at once, within the resources that the worker offers, in the order the tasks arrived.
//!
//! Invariants: a free slot and a queued task that fits never stay side by side; every started attempt ends with one event,
//! panics included. Handlers run as tokio tasks, never on the session.

use std::any::Any;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{self, Poll};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc};

use super::context::{Context, Event, Lease, TaskError};
use super::credit::Credits;
use super::room::Room;
use crate::cluster::Cluster;
use crate::task::{Payload, Resources};

/// Work held ready locally when the prefetch is not set: about this much run time.
const PREFETCH_NS: u64 = 2_000_000;
/// Most tasks held ready when the prefetch is not set.
const PREFETCH_MAX: u32 = 4096;
/// Tasks a runner takes in a row before it lets others run.
const IN_A_ROW: u32 = 32;

pub(super) type Answer = Pin<Box<dyn Future<Output = Result<Payload, TaskError>> + Send>>;
pub(super) type Handler = Box<dyn Fn(Context) -> Answer + Send + Sync>;

/// How long more than the target is held before some of it is given back.
pub(super) const SURPLUS_WAIT: Duration = Duration::from_millis(100);
/// Expected wait, per task before it, that makes it worth to give a task back.
const SURPLUS_NS: u64 = 20_000_000;
/// A session whose task went back for want of room gets no credit for so long, unless a task ends before.
const CROWDED: Duration = Duration::from_secs(1);
/// For so long others go ahead of a task that does not fit.
const OVERTAKEN: Duration = Duration::from_millis(50);
/// Most queued tasks that are looked at for one that fits.
const LOOK_MAX: usize = 64;

/// A task that waits for a slot.
pub(super) struct Job {
    /// When it came.
    pub(super) since: Instant,
    /// Whence it came.
    pub(super) session: usize,
    pub(super) lease: Arc<Lease>,
    pub(super) events: mpsc::UnboundedSender<Event>,
}

struct Load {
    running: u32,
    queue: VecDeque<Job>,
    credits: Credits,
    /// What is left of the worker's resources, if they are counted.
    room: Option<Room>,
    /// Sessions that get no credit for want of room, until then.
    crowded: BTreeMap<usize, Instant>,
    /// Moving average of run times, in nanoseconds; 0 before the first.
    run_ns: u64,
}

/// Counters of a worker since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkerStats {
    /// Attempts that ended well and whose completion the server took.
    pub completed: u64,
    /// Attempts that failed and whose failure the server took.
    pub failed: u64,
    /// Answers that came too late: the lease had run out, or the task was cancelled or finished elsewhere.
    pub stale: u64,
    /// Tasks given back unstarted: at a shutdown, or because more came than could be run soon.
    pub released: u64,
    /// Connections opened again after a loss.
    pub reconnects: u64,
    /// Handlers running now.
    pub running: u64,
    /// Tasks held and not yet started.
    pub queued: u64,
}

#[derive(Default)]
pub(super) struct Counters {
    pub(super) completed: AtomicU64,
    pub(super) failed: AtomicU64,
    pub(super) stale: AtomicU64,
    pub(super) released: AtomicU64,
    pub(super) reconnects: AtomicU64,
}

/// The worker's slots, shared by its sessions.
pub(super) struct Runner {
    cluster: Arc<Cluster>,
    concurrency: u32,
    prefetch: Option<u32>,
    handlers: HashMap<String, Handler>,
    default_handler: Option<Handler>,
    load: Mutex<Load>,
    /// Wakes sessions that have no credit although there is room; by session.
    wakers: Mutex<Vec<Option<Arc<Notify>>>>,
    /// Tells that more is held than can be run soon.
    pub(super) has_surplus: Notify,
    pub(super) counters: Counters,
}

impl Runner {
    pub(super) fn new(
        cluster: Arc<Cluster>,
        concurrency: u32,
        prefetch: Option<u32>,
        resources: &Resources,
        handlers: HashMap<String, Handler>,
        default_handler: Option<Handler>,
    ) -> Self {
        let load = Load {
            running: 0,
            queue: VecDeque::new(),
            credits: Credits::new(concurrency),
            room: Room::new(resources),
            crowded: BTreeMap::new(),
            run_ns: 0,
        };
        Self {
            cluster,
            concurrency,
            prefetch,
            handlers,
            default_handler,
            load: Mutex::new(load),
            wakers: Mutex::new(Vec::new()),
            has_surplus: Notify::new(),
            counters: Counters::default(),
        }
    }

    fn load(&self) -> MutexGuard<'_, Load> {
        self.load.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a session; its number, and what wakes it for more credit.
    pub(super) fn add_session(&self) -> (usize, Arc<Notify>) {
        let session = self.load().credits.add();
        let waker = Arc::new(Notify::new());
        let mut wakers = self.wakers.lock().unwrap_or_else(PoisonError::into_inner);
        if wakers.len() <= session {
            wakers.resize(session + 1, None);
        }
        wakers[session] = Some(Arc::clone(&waker));
        (session, waker)
    }

    /// A session ended.
    pub(super) fn remove_session(&self, session: usize) {
        self.wakers.lock().unwrap_or_else(PoisonError::into_inner)[session] = None;
        let mut load = self.load();
        load.crowded.remove(&session);
        load.credits.remove(session);
    }

    fn prefetch(&self, load: &Load) -> u32 {
        match (self.prefetch, load.run_ns) {
            (Some(prefetch), _) => prefetch,
            (None, 0) => 0,
            (None, run_ns) => {
                let tasks = PREFETCH_NS * u64::from(self.concurrency) / run_ns;
                u32::try_from(tasks).unwrap_or(u32::MAX).min(PREFETCH_MAX)
            }
        }
    }

    /// Credit that a session should send.
    pub(super) fn grant(&self, session: usize) -> u32 {
        let mut load = self.load();
        if load.crowded.contains_key(&session) {
            return 0;
        }
        let (held, prefetch) = (load.held(), self.prefetch(&load));
        load.credits.grant(session, held, prefetch)
    }

    /// The session lost its connection, or stopped taking tasks.
    pub(super) fn reset_credit(&self, session: usize) {
        self.load().credits.reset(session);
    }

    /// The session's connection cannot be had: others share what it would have.
    pub(super) fn set_away(&self, session: usize) {
        self.load().credits.set_away(session);
    }

    /// Takes tasks that a session received.
    pub(super) fn admit(self: &Arc<Self>, session: usize, jobs: Vec<Job>) {
        let mut load = self.load();
        load.credits.used(session, u32::try_from(jobs.len()).expect("rows of a frame fit"));
        for job in jobs {
            if load.running < self.concurrency && !load.is_head_old() && load.takes(&job.lease) {
                load.running += 1;
                tokio::spawn(run(Arc::clone(self), job));
            } else {
                load.queue.push_back(job);
            }
        }
        if load.held() > self.concurrency.saturating_add(self.prefetch(&load)) || self.lacks_room(&load) {
            self.has_surplus.notify_one();
        }
    }

    /// Whether tasks wait for room and not for a slot.
    fn lacks_room(&self, load: &Load) -> bool {
        load.running < self.concurrency && !load.queue.is_empty()
    }

    /// Takes back the tasks that came last and would wait long here, for their sessions to give them back to the server:
    /// other workers may have room. True when there may be more to take back later.
    pub(super) fn shed(&self, now: Instant) -> bool {
        let mut load = self.load();
        let target = self.concurrency.saturating_add(self.prefetch(&load));
        let wait_ns = load.run_ns / u64::from(self.concurrency);
        let is_slow = load.run_ns == 0 || wait_ns >= SURPLUS_NS;
        let has_waited = |job: &Job| now.saturating_duration_since(job.since) >= SURPLUS_WAIT;
        while is_slow && load.held() > target {
            let Some(job) = load.queue.pop_back_if(|job| has_waited(job)) else { break };
            give_back(job);
        }
        // How long tasks take says nothing of when one ends that has what these need.
        if self.lacks_room(&load) {
            let (back, stay) = load.queue.drain(..).partition(has_waited);
            load.queue = stay;
            for job in back {
                load.crowded.insert(job.session, now + CROWDED);
                give_back(job);
            }
        }
        let crowded = load.crowded.len();
        load.crowded.retain(|_, until| *until > now);
        let goes_on = load.held() > target || self.lacks_room(&load) || !load.crowded.is_empty();
        if load.crowded.len() < crowded {
            drop(load);
            self.wake_all();
        }
        goes_on
    }

    /// Forgets queued tasks that were dropped.
    pub(super) fn purge(&self) {
        self.load().queue.retain(|job| job.lease.is_unstarted());
        self.wake_starving();
    }

    /// A task ended, or was dropped before it started: the next queued one, or none: then the caller's slot is free.
    fn next(self: &Arc<Self>, ended: &Lease, ran: Option<Duration>) -> Option<Job> {
        let mut load = self.load();
        if let Some(ran) = ran {
            load.note(ran);
        }
        load.leaves(ended);
        let were_crowded = !core::mem::take(&mut load.crowded).is_empty();
        let next = loop {
            match load.take_fitting() {
                Some(job) if job.lease.start() => break Some(job),
                Some(job) => load.leaves(&job.lease),
                None => break None,
            }
        };
        load.running -= u32::from(next.is_none());
        // Several may fit where one was.
        while load.running < self.concurrency {
            let Some(job) = load.take_fitting() else { break };
            load.running += 1;
            tokio::spawn(run(Arc::clone(self), job));
        }
        if self.lacks_room(&load) {
            self.has_surplus.notify_one();
        }
        drop(load);
        if were_crowded {
            self.wake_all();
        }
        next
    }

    /// After tasks ended: lets sessions without credit have some.
    pub(super) fn wake_starving(&self) {
        let load = self.load();
        let starving = load.credits.starving(load.held(), self.prefetch(&load));
        let starving = starving.filter(|session| !load.crowded.contains_key(session));
        let wakers = self.wakers.lock().unwrap_or_else(PoisonError::into_inner);
        for session in starving {
            if let Some(waker) = wakers.get(session).and_then(Option::as_ref) {
                waker.notify_one();
            }
        }
    }

    fn wake_all(&self) {
        for waker in self.wakers.lock().unwrap_or_else(PoisonError::into_inner).iter().flatten() {
            waker.notify_one();
        }
    }

    pub(super) fn stats(&self) -> WorkerStats {
        let (running, queued) = {
            let load = self.load();
            (u64::from(load.running), load.queue.len() as u64)
        };
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        WorkerStats {
            completed: read(&self.counters.completed),
            failed: read(&self.counters.failed),
            stale: read(&self.counters.stale),
            released: read(&self.counters.released),
            reconnects: read(&self.counters.reconnects),
            running,
            queued,
        }
    }

    async fn answer(&self, context: Context) -> Result<Payload, TaskError> {
        // A variant of a kind, behind a slash, is a matter of what is learned of it.
        let base = context.kind().split_once('/').map_or(context.kind(), |(base, _)| base);
        let own = self.handlers.get(context.kind()).or_else(|| self.handlers.get(base));
        let handler = own.or(self.default_handler.as_ref());
        let Some(handler) = handler else {
            let message = format!("this worker has no handler for kind \"{}\"", context.kind());
            return Err(TaskError::new("no_handler", message));
        };
        let future = match std::panic::catch_unwind(AssertUnwindSafe(|| handler(context))) {
            Ok(future) => future,
            Err(panic) => return Err(panicked(&*panic)),
        };
        Caught(future).await
    }
}

/// Drops a task before it started, for its session to give it back.
fn give_back(job: Job) {
    if job.lease.drop_unstarted() {
        // A session that ended has nobody to give it back to.
        drop(job.events.send(Event::Shed(job.lease)));
    }
}

impl Load {
    /// Whether there is room for a task: then it is taken.
    fn takes(&mut self, lease: &Lease) -> bool {
        let Some(room) = &mut self.room else { return true };
        let Some(devices) = room.place(&lease.contract.need) else { return false };
        room.take(&lease.contract.need, &devices);
        // A task is given room once.
        let _ = lease.devices.set(devices);
        true
    }

    /// Gives back what a task had.
    fn leaves(&mut self, lease: &Lease) {
        if let (Some(room), Some(devices)) = (&mut self.room, lease.devices.get()) {
            room.give(&lease.contract.need, devices);
        }
    }

    /// Whether nothing may go ahead of the first of the queued tasks any more, though it does not fit.
    fn is_head_old(&self) -> bool {
        self.room.is_some() && self.queue.front().is_some_and(|head| head.since.elapsed() >= OVERTAKEN)
    }

    /// The first of the queued tasks that fits, with the room that it needs.
    fn take_fitting(&mut self) -> Option<Job> {
        if self.room.is_none() {
            return self.queue.pop_front();
        }
        let looked_at = if self.is_head_old() { 1 } else { LOOK_MAX };
        for at in 0..self.queue.len().min(looked_at) {
            let lease = Arc::clone(&self.queue[at].lease);
            if self.takes(&lease) {
                return self.queue.remove(at);
            }
        }
        None
    }

    /// Tasks running or queued.
    fn held(&self) -> u32 {
        self.running.saturating_add(u32::try_from(self.queue.len()).unwrap_or(u32::MAX))
    }

    fn note(&mut self, ran: Duration) {
        let ran_ns = u64::try_from(ran.as_nanos()).unwrap_or(u64::MAX).max(1);
        self.run_ns = if self.run_ns == 0 { ran_ns } else { (self.run_ns / 8).saturating_mul(7) + ran_ns / 8 }.max(1);
    }
}

/// Occupies a slot for as long as there are tasks.
async fn run(runner: Arc<Runner>, first: Job) {
    let mut job = Some(first);
    if let Some(dropped) = job.take_if(|first| !first.lease.start()) {
        job = runner.next(&dropped.lease, None);
        // No event will tell the sessions that there is room again.
        runner.wake_all();
    }
    let mut in_a_row = 0;
    while let Some(Job { lease, events, .. }) = job {
        let start = Instant::now();
        let cluster = Arc::clone(&runner.cluster);
        let context = Context { cluster, lease: Arc::clone(&lease), events: events.clone() };
        let answer = runner.answer(context).await;
        let ran = start.elapsed();
        // The slot is given on before the session hears, so that the credit it sends counts this task as gone.
        job = runner.next(&lease, Some(ran));
        // A session that ended has nobody to tell; the lease runs out.
        drop(events.send(Event::Finished(lease, answer)));
        in_a_row += 1;
        if in_a_row == IN_A_ROW {
            in_a_row = 0;
            tokio::task::yield_now().await;
        }
    }
}

/// A handler's future whose panic is an answer.
struct Caught(Answer);

impl Future for Caught {
    type Output = Result<Payload, TaskError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Self::Output> {
        let future = self.0.as_mut();
        match std::panic::catch_unwind(AssertUnwindSafe(|| future.poll(cx))) {
            Ok(poll) => poll,
            Err(panic) => Poll::Ready(Err(panicked(&*panic))),
        }
    }
}

fn panicked(panic: &(dyn Any + Send)) -> TaskError {
    let message = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "the handler panicked".to_owned());
    TaskError::new("panic", message)
}

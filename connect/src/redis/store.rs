//! Questions and results on their way to the server and back.
//!
//! All run on one thread over one connection, on which commands follow one another without waiting for answers. A keeper makes the
//! connection, and makes it anew when it is lost, or when so many waits in a row brought no answer in time that it is given up; while
//! there is none, questions are answered with nothing at once. Pauses between connections double while these are of no use: a server
//! that greets well and serves badly is not asked most of the time.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use redis::{ErrorKind, RedisError, ServerErrorKind};
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

use super::link::{Link, server_error};
use super::status::charge;
use super::value::Value;
use super::{Settings, Status};
use crate::backoff::Backoff;

/// Waits in a row without an answer in time, after which the server is given up for a while.
const LATE_MAX: u32 = 3;

/// How long a connection is to last, and be of use, for the next pause to be the shortest again. A replica answers questions and refuses
/// results: use alone says too little.
const STEADY: Duration = Duration::from_secs(15);

/// Bytes of results on the wire at most: answers to questions, which are waited for, come behind them.
const WIRE_BYTES_MAX: u32 = 1 << 20;

/// Longest wait for what is remembered of ended tasks: who asks can have it from the database, which takes its time too.
pub const RECALL_MAX: Duration = Duration::from_millis(200);

/// How often the server is greeted while nothing else is heard of it.
const PING_PAUSE: Duration = Duration::from_secs(1);

/// A question about results.
#[derive(Debug)]
pub struct Question {
    /// Who asks, and the number of the question there.
    pub by: usize,
    /// See `by`.
    pub number: u64,
    /// Keys of tasks.
    pub keys: Vec<[u8; 32]>,
}

/// What a value is, and so whose keys it is under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// The result of a memoised task.
    Memo,
    /// What is long of an ended task in the history ([`super::Cache`]).
    Ended,
}

/// What is asked of the store.
#[derive(Debug)]
pub enum Request {
    /// What is remembered of memoised tasks?
    Find(Question),
    /// What is remembered of ended tasks with these keys? The answer, by key, is there within [`RECALL_MAX`].
    Recall(Vec<[u8; 32]>, oneshot::Sender<Vec<Option<Value>>>),
    /// Remember a value under a key; [`Status::may_keep`] let it in.
    Keep(Of, [u8; 32], Value),
}

/// Who hears.
pub trait Answers {
    /// The answer to a question, by key. Every question has one.
    fn found(&self, by: usize, number: u64, values: Vec<Option<Value>>);
}

struct Store {
    settings: Settings,
    status: Arc<Status>,
    answers: Box<dyn Answers>,
    link: RefCell<Option<Link>>,
    /// When it was made: what was asked before says nothing of it.
    since: Cell<Instant>,
    /// Whether anything was answered over it in time and well.
    is_of_use: Cell<bool>,
    /// Rung when it was given up.
    given_up: Notify,
    /// Waits in a row that ended without an answer, and when the last of them did.
    late: Cell<u32>,
    late_at: Cell<Option<Instant>>,
    /// Room for results on the wire, in bytes.
    wire: Semaphore,
}

/// Serves requests until the queue is closed. Within a `LocalSet`.
pub async fn serve(
    settings: Settings,
    mut queue: mpsc::Receiver<Request>,
    answers: Box<dyn Answers>,
    status: Arc<Status>,
) {
    let store = Rc::new(Store {
        settings,
        status,
        answers,
        link: RefCell::new(None),
        since: Cell::new(Instant::now()),
        is_of_use: Cell::new(false),
        given_up: Notify::new(),
        late: Cell::new(0),
        late_at: Cell::new(None),
        wire: Semaphore::new(WIRE_BYTES_MAX as usize),
    });
    let keeper = spawn_local(Rc::clone(&store).keep_connected());
    while let Some(request) = queue.recv().await {
        match request {
            Request::Find(question) => drop(spawn_local(Rc::clone(&store).find(question))),
            Request::Recall(keys, answer) => drop(spawn_local(Rc::clone(&store).recall(keys, answer))),
            Request::Keep(of, key, value) => drop(spawn_local(Rc::clone(&store).keep(of, key, value))),
        }
    }
    keeper.abort();
}

impl Store {
    async fn keep_connected(self: Rc<Self>) {
        let mut backoff = Backoff::default();
        let mut was_told = false;
        loop {
            match Link::connect(&self.settings).await {
                Ok(link) => {
                    tracing::info!("results are remembered in {}", self.settings.place());
                    was_told = false;
                    self.begin(link);
                    self.until_given_up().await;
                    Status::add(&self.status.outages, 1);
                    if self.is_of_use.get() && self.since.get().elapsed() >= STEADY {
                        backoff = Backoff::default();
                    }
                }
                Err(error) => self.status.failed(&error.to_string()),
            }
            if !core::mem::replace(&mut was_told, true) {
                let error = self.status.last_error();
                tracing::warn!("results are not remembered outside for now, tasks run instead: {error}");
            }
            sleep(backoff.wait()).await;
        }
    }

    fn begin(&self, link: Link) {
        self.since.set(Instant::now());
        self.is_of_use.set(false);
        self.late.set(0);
        self.link.replace(Some(link));
        self.status.set_connected(true);
    }

    /// Looks after the connection, so that an outage is noticed also while nobody asks.
    async fn until_given_up(&self) {
        while timeout(PING_PAUSE, self.given_up.notified()).await.is_err() {
            let Some(link) = self.link.borrow().clone() else { return };
            let asked = Instant::now();
            match timeout(self.settings.connect_timeout, link.ask::<()>(&redis::cmd("PING"))).await {
                // That it greets does not say that it answers in time.
                Ok(Ok(())) => {}
                Ok(Err(error)) => self.failed(asked, &error),
                Err(_) => self.give_up(&format!("{} does not answer", self.settings.place())),
            }
        }
    }

    /// The connection is of no use any more.
    fn give_up(&self, sentence: &str) {
        self.status.failed(sentence);
        if self.link.take().is_some() {
            self.status.set_connected(false);
            self.given_up.notify_one();
        }
    }

    fn key(&self, of: Of, key: &[u8; 32]) -> String {
        let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        let kind = match of {
            Of::Memo => "memo",
            Of::Ended => "ended",
        };
        format!("{}:{kind}:{hex}", self.settings.prefix)
    }

    /// What was asked at this time brought an error.
    fn failed(&self, asked: Instant, error: &RedisError) {
        // A master that was replaced refuses writes.
        let is_replaced = error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly);
        let is_lost = error.is_io_error() || error.is_unrecoverable_error() || is_replaced;
        if is_lost && asked >= self.since.get() {
            self.give_up(&server_error(&self.settings, error).to_string());
        } else {
            self.status.failed(&error.to_string());
        }
    }

    /// What was asked at this time was not answered. Of those that waited side by side one counts.
    fn was_late(&self, asked: Instant) {
        if asked < self.since.get() || self.late_at.get().is_some_and(|last| asked < last) {
            return;
        }
        self.late_at.set(Some(Instant::now()));
        self.late.set(self.late.get() + 1);
        if self.late.get() >= LATE_MAX {
            self.give_up(&format!("{} answers too late", self.settings.place()));
        }
    }

    async fn find(self: Rc<Self>, question: Question) {
        let values = self.ask(Of::Memo, &question.keys, self.settings.timeout).await;
        self.answers.found(question.by, question.number, values);
    }

    async fn recall(self: Rc<Self>, keys: Vec<[u8; 32]>, answer: oneshot::Sender<Vec<Option<Value>>>) {
        let values = self.ask(Of::Ended, &keys, RECALL_MAX).await;
        Status::add(&self.status.recalled, values.iter().flatten().count());
        // Who asked may have lost patience.
        let _ = answer.send(values);
    }

    /// What came in time, by key.
    async fn ask(&self, of: Of, keys: &[[u8; 32]], within: Duration) -> Vec<Option<Value>> {
        let mut values = vec![None; keys.len()];
        let Some(link) = self.link.borrow().clone() else { return values };
        let (asked, local) = (Instant::now(), link.local_answers());
        let one = async |at: usize| {
            let answer = link.ask::<Option<Vec<u8>>>(redis::cmd("GET").arg(self.key(of, &keys[at]))).await;
            (at, answer)
        };
        let mut waits: FuturesUnordered<_> = (0..keys.len()).map(one).collect();
        let taking = async {
            while let Some((at, answer)) = waits.next().await {
                values[at] = self.judge(asked, &keys[at], answer);
            }
        };
        let is_late = timeout(within, taking).await.is_err();
        if is_late && waits.len() == keys.len() {
            self.was_late(asked);
        } else {
            self.late.set(0);
        }
        Status::add(&self.status.failures, waits.len());
        Status::add(&self.status.local, link.local_answers().saturating_sub(local));
        values
    }

    fn judge(&self, asked: Instant, key: &[u8; 32], answer: Result<Option<Vec<u8>>, RedisError>) -> Option<Value> {
        self.is_of_use.set(self.is_of_use.get() || answer.is_ok());
        let (counter, value) = match answer.map(|bytes| bytes.map(|bytes| Value::decode(&bytes, key))) {
            Ok(None) => (&self.status.misses, None),
            Ok(Some(Ok(value))) => (&self.status.hits, Some(value)),
            Ok(Some(Err(_))) => (&self.status.unusable, None),
            Err(error) => {
                self.failed(asked, &error);
                (&self.status.failures, None)
            }
        };
        Status::add(counter, 1);
        value
    }

    async fn keep(self: Rc<Self>, of: Of, key: [u8; 32], value: Value) {
        let len = value.result.len();
        let bytes = u32::try_from(charge(len)).unwrap_or(u32::MAX).min(WIRE_BYTES_MAX);
        let room = self.wire.acquire_many(bytes).await;
        let link = self.link.borrow().clone();
        match (room, link) {
            (Ok(_), Some(link)) if self.give(&link, of, &key, value).await => self.status.kept(len),
            _ => self.status.not_kept(len),
        }
    }

    /// Whether a result was taken.
    async fn give(&self, link: &Link, of: Of, key: &[u8; 32], value: Value) -> bool {
        let asked = Instant::now();
        let ttl_ms = u64::try_from(self.settings.ttl.as_millis()).unwrap_or(u64::MAX);
        let mut command = redis::cmd("SET");
        command.arg(self.key(of, key)).arg(value.encode(key)).arg("PX").arg(ttl_ms);
        drop(value);
        let answer = timeout(self.settings.connect_timeout, link.ask::<()>(&command)).await;
        match &answer {
            Ok(Ok(())) => self.is_of_use.set(true),
            Ok(Err(error)) => self.failed(asked, error),
            Err(_) => self.was_late(asked),
        }
        matches!(answer, Ok(Ok(())))
    }
}

//! What a handler sees of its task, and what it may answer.
//!
//! Invariant: a lease moves once from queued to running or dropped, decided by one atomic exchange, so that a revoked
//! task either never starts or runs and is told.

use std::fmt::{self, Write as _};
use std::future::Future;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use taskmaster_protocol::body::{LeaseRow, ProgressRow};
use taskmaster_protocol::{FrameBuffer, TaskId};
use tokio::sync::{Notify, mpsc};

use super::measure::{Measure, Measured};
use super::room::Need;
use crate::client::state;
use crate::cluster::Cluster;
use crate::error::Error;
use crate::task::Payload;
use crate::versions::{Holder, Known, Version};

/// A failed attempt, as a handler reports it.
///
/// Every `std::error::Error` converts into one with code `error`, so `?` works in handlers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskError {
    pub(crate) code: String,
    pub(crate) message: String,
    pub(crate) log_tail: Vec<u8>,
    pub(crate) is_final: bool,
}

impl TaskError {
    /// A failure with a code (matched against the task's non-retryable codes) and a sentence.
    #[must_use]
    pub fn new(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into(), log_tail: Vec::new(), is_final: false }
    }

    /// No further attempt, whatever the task's policy says.
    #[must_use]
    pub fn permanent(mut self) -> Self {
        self.is_final = true;
        self
    }

    /// The last lines of the attempt's log; what is beyond 64 KiB is cut off at the front.
    #[must_use]
    pub fn log_tail(mut self, log: impl Into<Vec<u8>>) -> Self {
        self.log_tail = log.into();
        self
    }
}

impl fmt::Display for TaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl<E: std::error::Error> From<E> for TaskError {
    fn from(error: E) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            write!(message, ": {cause}").expect("writing to a string cannot fail");
            source = cause.source();
        }
        Self::new("error", message)
    }
}

/// The part of a contract that several leases share.
#[derive(Debug)]
pub(super) struct Contract {
    pub(super) kind: String,
    pub(super) queue: String,
    pub(super) lease: Duration,
    pub(super) attempts_max: u32,
    pub(super) need: Need,
}

const QUEUED: u8 = 0;
const RUNNING: u8 = 1;
const DROPPED: u8 = 2;

/// One lease: what the session, the runner and the handler share.
pub(super) struct Lease {
    pub(super) id: TaskId,
    pub(super) token: u64,
    pub(super) locator: u32,
    pub(super) attempt: u32,
    pub(super) ready_us: u64,
    pub(super) contract: Arc<Contract>,
    /// The assignment's frame body, shared by its leases.
    pub(super) frame: Arc<FrameBuffer>,
    /// Where the payload lies in it.
    pub(super) payload: Range<usize>,
    /// The version of its state to resume from; 0: none.
    pub(super) version: u32,
    /// What was saved or loaded last.
    pub(super) saved: tokio::sync::Mutex<Option<Box<Known>>>,
    /// The session's slot.
    pub(super) slot: usize,
    /// Devices that it has, once it was given room.
    pub(super) devices: OnceLock<Vec<u32>>,
    pub(super) phase: AtomicU8,
    pub(super) is_cancelled: AtomicBool,
    pub(super) cancellation: Notify,
    /// The latest progress not yet sent.
    pub(super) progress: Mutex<Option<(u32, String)>>,
}

impl Lease {
    pub(super) fn row(&self) -> LeaseRow {
        LeaseRow { id: self.id, token: self.token, locator: self.locator, attempt: self.attempt }
    }

    /// Takes the task for running; false when it was dropped first.
    pub(super) fn start(&self) -> bool {
        self.phase.compare_exchange(QUEUED, RUNNING, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Takes the task away before it runs; false when it runs.
    pub(super) fn drop_unstarted(&self) -> bool {
        self.phase.compare_exchange(QUEUED, DROPPED, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    pub(super) fn is_unstarted(&self) -> bool {
        self.phase.load(Ordering::Acquire) == QUEUED
    }

    /// Tells the handler.
    pub(super) fn cancel(&self) {
        self.is_cancelled.store(true, Ordering::Release);
        self.cancellation.notify_waiters();
    }

    /// The latest progress as a row whose note is still to be placed.
    pub(super) fn take_progress(&self) -> Option<(ProgressRow, String)> {
        let (done_permille, note) = self.progress.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        let row = ProgressRow {
            id: self.id,
            token: self.token,
            done_permille,
            locator: self.locator,
            ..ProgressRow::default()
        };
        Some((row, note))
    }
}

/// What handlers tell their session.
pub(super) enum Event {
    /// The attempt ended.
    Finished(Arc<Lease>, Result<Payload, TaskError>),
    /// There is progress to send.
    Progressed(Arc<Lease>),
    /// The attempt was measured, and is about to end.
    Measured(Box<Measured>),
    /// The task was dropped before it started, and is to be given back.
    Shed(Arc<Lease>),
}

/// A running task, as its handler sees it. Clones share the task.
#[derive(Clone)]
pub struct Context {
    pub(super) cluster: Arc<Cluster>,
    pub(super) lease: Arc<Lease>,
    pub(super) events: mpsc::UnboundedSender<Event>,
}

impl Context {
    /// The task's id: the same at every attempt, so a good idempotency key.
    #[must_use]
    pub fn id(&self) -> TaskId {
        self.lease.id
    }

    /// Kind.
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.lease.contract.kind
    }

    /// Queue.
    #[must_use]
    pub fn queue(&self) -> &str {
        &self.lease.contract.queue
    }

    /// Number of this attempt, from 1.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.lease.attempt
    }

    /// Attempts allowed in all.
    #[must_use]
    pub fn attempts_max(&self) -> u32 {
        self.lease.contract.attempts_max
    }

    /// Lease length; it is extended for as long as the handler runs.
    #[must_use]
    pub fn lease_length(&self) -> Duration {
        self.lease.contract.lease
    }

    /// CPU reserved for the task, in thousandths of a core.
    #[must_use]
    pub fn cpu_milli(&self) -> u32 {
        self.lease.contract.need.cpu_milli
    }

    /// GPU reserved for the task, in thousandths of a device.
    #[must_use]
    pub fn gpu_milli(&self) -> u32 {
        self.lease.contract.need.gpu_milli
    }

    /// Which of the worker's devices the task has, from 0: whole ones first, and last the one of which it has a part, if it reserved
    /// such. Empty for a task that reserves no GPU, and for all where the worker offers no resources.
    #[must_use]
    pub fn devices(&self) -> &[u32] {
        self.lease.devices.get().map_or(&[], Vec::as_slice)
    }

    /// Memory reserved for the task, in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.lease.contract.need.memory_bytes
    }

    /// Payload.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.lease.frame[self.lease.payload.clone()]
    }

    /// Payload as text.
    ///
    /// # Errors
    /// A permanent [`TaskError`] when it is not UTF-8.
    pub fn text(&self) -> Result<&str, TaskError> {
        std::str::from_utf8(self.payload())
            .map_err(|error| TaskError::new("bad_payload", format!("the payload is not UTF-8: {error}")).permanent())
    }

    /// Payload from JSON.
    ///
    /// # Errors
    /// A permanent [`TaskError`] when it has another form.
    #[cfg(feature = "json")]
    pub fn json<T: serde::de::DeserializeOwned>(&self) -> Result<T, TaskError> {
        serde_json::from_slice(self.payload()).map_err(|error| {
            TaskError::new("bad_payload", format!("the payload is not the expected JSON: {error}")).permanent()
        })
    }

    /// When the task became ready, by the server's clock.
    #[must_use]
    pub fn ready_time(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_micros(self.lease.ready_us)
    }

    /// Whether the task was cancelled, expired or given to another worker: nobody waits for this attempt any more.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.lease.is_cancelled.load(Ordering::Acquire)
    }

    /// Ends when [`Context::is_cancelled`] becomes true. The handler decides what to do; its answer is ignored then.
    pub fn cancelled(&self) -> impl Future<Output = ()> + Send + 'static {
        let lease = Arc::clone(&self.lease);
        async move {
            loop {
                let cancellation = lease.cancellation.notified();
                if lease.is_cancelled.load(Ordering::Acquire) {
                    return;
                }
                cancellation.await;
            }
        }
    }

    /// Token of the lease: it only grows from attempt to attempt, so that a store can refuse what an attempt that is over writes.
    #[must_use]
    pub fn token(&self) -> u64 {
        self.lease.token
    }

    /// Whether there is a state to resume from.
    #[must_use]
    pub fn has_state(&self) -> bool {
        self.lease.version > 0
    }

    /// The version of the task's state to resume from, as of when the attempt began; 0: none was saved.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.lease.version
    }

    /// Saves the task's state, of up to 8 MiB; returns when it is durable. Another attempt goes on from the latest version. Only
    /// what changed since the last save or load is sent.
    ///
    /// # Errors
    /// [`Error::Refused`] with `stale_lease` or `already_final` when the attempt is over: stop then. Transport errors when no
    /// node answered in time; the save may be repeated.
    pub async fn save(&self, state: &[u8]) -> Result<Version, Error> {
        self.save_as(state, "").await
    }

    /// As [`Context::save`], with a word or two for people who look at the history.
    ///
    /// # Errors
    /// As [`Context::save`].
    pub async fn save_as(&self, state: &[u8], label: &str) -> Result<Version, Error> {
        let Lease { id, token, locator, attempt, .. } = *self.lease;
        let mut saved = self.lease.saved.lock().await;
        let known = saved.get_or_insert_with(|| Box::new(Known::number(self.lease.version)));
        state::save(&self.cluster, &Holder { id, token, locator, attempt }, known, label, state).await
    }

    /// The task's state to resume from: what this attempt saved last, or what an earlier one left; `None` if there is none.
    ///
    /// # Errors
    /// Refusals and transport errors.
    pub async fn load(&self) -> Result<Option<(Version, Vec<u8>)>, Error> {
        let mut saved = self.lease.saved.lock().await;
        let number = saved.as_ref().map_or(self.lease.version, |known| known.number);
        if number == 0 {
            return Ok(None);
        }
        let read = state::read(&self.cluster, self.lease.id, number).await?;
        let (version, bytes) = (read.named(), read.bytes.clone());
        *saved = Some(Box::new(Known::of(read)));
        Ok(Some((version, bytes)))
    }

    /// Begins to measure what the attempt uses of the machine, for handlers that can tell ([`Measure::ended`]): the server then sends
    /// tasks that slow each other down to different workers.
    #[must_use]
    pub fn measure(&self) -> Measure {
        Measure::begin(Arc::clone(&self.cluster), Arc::clone(&self.lease), self.events.clone())
    }

    /// Reports progress, in parts per thousand, with a note. Only the latest is sent when several are reported at once.
    pub fn progress(&self, done_permille: u32, note: impl Into<String>) {
        let mut progress = self.lease.progress.lock().unwrap_or_else(PoisonError::into_inner);
        let is_news = progress.replace((done_permille.min(1000), note.into())).is_none();
        drop(progress);
        if is_news {
            // Without a session there is nobody to tell.
            drop(self.events.send(Event::Progressed(Arc::clone(&self.lease))));
        }
    }
}

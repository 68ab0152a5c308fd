//! What a caller says about a task: kind, payload and contract.
//!
//! A [`Task`] is cheap to clone: the contract is shared, so a template cloned per payload costs one reference count, and
//! tasks of one template share one row of contracts on the wire.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use taskmaster_protocol::body::{ALTERNATIVE, LABEL, PREFERRED};
use taskmaster_protocol::{Code, TaskId, limits};

use crate::error::Refusal;

type Name = Cow<'static, str>;

/// The queue of tasks that name none.
pub(crate) const DEFAULT_QUEUE: &str = "default";

/// Priority class; within a class the queue's ordering policy decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Priority {
    /// Before everything else.
    Critical = 0,
    /// Before normal.
    High = 1,
    /// The default.
    #[default]
    Normal = 2,
    /// After everything else.
    Low = 3,
}

impl Priority {
    pub(crate) fn from_number(number: u8) -> Self {
        match number {
            0 => Self::Critical,
            1 => Self::High,
            2 => Self::Normal,
            _ => Self::Low,
        }
    }

    /// Stable lower-case name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::High => "high",
            Self::Normal => "normal",
            Self::Low => "low",
        }
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Where a task is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum State {
    /// Waits for tasks it needs.
    Waiting = 0,
    /// Waits for its time, or for its next attempt.
    Delayed = 1,
    /// Waits for a worker.
    Ready = 2,
    /// A worker has it.
    Leased = 3,
    /// Done, with a result.
    Succeeded = 4,
    /// Out of attempts.
    Failed = 5,
    /// Cancelled.
    Cancelled = 6,
    /// Its deadline passed first.
    Expired = 7,
}

impl State {
    /// All states, in the order of their numbers.
    pub const ALL: [Self; 8] = [
        Self::Waiting,
        Self::Delayed,
        Self::Ready,
        Self::Leased,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
        Self::Expired,
    ];

    /// The state with this number on the wire.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// Number on the wire, and index of counts by state.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// Whether it never changes again without a manual retry.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled | Self::Expired)
    }

    /// Stable lower-case name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Delayed => "delayed",
            Self::Ready => "ready",
            Self::Leased => "leased",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Bytes of a payload or result. Converts from bytes, text, `()` and, with feature `json`, a JSON value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Payload(pub(crate) Cow<'static, [u8]>);

impl Payload {
    /// Bytes that live as long as the program: no copy.
    #[must_use]
    pub const fn from_static(bytes: &'static [u8]) -> Self {
        Self(Cow::Borrowed(bytes))
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<()> for Payload {
    fn from((): ()) -> Self {
        Self::default()
    }
}

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Cow::Owned(bytes))
    }
}

impl From<String> for Payload {
    fn from(text: String) -> Self {
        Self(Cow::Owned(text.into_bytes()))
    }
}

impl From<&[u8]> for Payload {
    fn from(bytes: &[u8]) -> Self {
        Self(Cow::Owned(bytes.to_vec()))
    }
}

impl<const N: usize> From<&[u8; N]> for Payload {
    fn from(bytes: &[u8; N]) -> Self {
        Self(Cow::Owned(bytes.to_vec()))
    }
}

impl From<&str> for Payload {
    fn from(text: &str) -> Self {
        Self(Cow::Owned(text.as_bytes().to_vec()))
    }
}

#[cfg(feature = "json")]
impl From<serde_json::Value> for Payload {
    fn from(value: serde_json::Value) -> Self {
        Self(Cow::Owned(value.to_string().into_bytes()))
    }
}

/// Resources a task needs or a worker offers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    pub(crate) cpu_milli: u32,
    pub(crate) gpu_milli: u32,
    pub(crate) memory_bytes: u64,
    pub(crate) custom: String,
}

impl Resources {
    /// None.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// CPU, in thousandths of a core.
    #[must_use]
    pub fn cpu_milli(mut self, cpu_milli: u32) -> Self {
        self.cpu_milli = cpu_milli;
        self
    }

    /// GPU, in thousandths of a device.
    #[must_use]
    pub fn gpu_milli(mut self, gpu_milli: u32) -> Self {
        self.gpu_milli = gpu_milli;
        self
    }

    /// Memory, in bytes.
    #[must_use]
    pub fn memory_bytes(mut self, memory_bytes: u64) -> Self {
        self.memory_bytes = memory_bytes;
        self
    }

    /// A resource of your own, such as a licence or a device.
    #[must_use]
    pub fn custom(mut self, name: &str, amount: u64) -> Self {
        if !self.custom.is_empty() {
            self.custom.push(',');
        }
        write!(self.custom, "{name}={amount}").expect("writing to a string cannot fail");
        self
    }

    /// Of a worker: it has this label, for any number of tasks that ask for it. Beside it the worker offers what else it is told to, and no
    /// more: with labels alone it runs tasks that reserve nothing.
    #[must_use]
    pub fn label(self, name: &str, value: &str) -> Self {
        self.custom(&label(name, value), LABELLED_MAX)
    }

    /// Of a task: only a worker with this label may run it.
    #[must_use]
    pub fn on(self, name: &str, value: &str) -> Self {
        self.custom(&label(name, value), 1)
    }

    /// Of a task: it goes to a worker with this label if one has room, and to any other at once if none has; of several labels to the worker
    /// with the most.
    #[must_use]
    pub fn prefer(self, name: &str, value: &str) -> Self {
        self.custom(&format!("{PREFERRED}{name}/{value}"), 1)
    }

    /// Of a task: it runs with these as well, where there is no room for what is said so far. Up to four, which are tried in the order in which
    /// they are given; the server refuses more, and ones that name nothing or are alike.
    ///
    /// ```
    /// # use taskmaster_client::Resources;
    /// let on_a_gpu_or_eight_cores = Resources::new().gpu_milli(1_000).or(&Resources::new().cpu_milli(8_000));
    /// ```
    #[must_use]
    pub fn or(self, other: &Self) -> Self {
        let is_of = |pair: &str, number: usize| pair.starts_with(&format!("{ALTERNATIVE}{number}/"));
        let number = (1..).find(|&number| !self.custom.split(',').any(|pair| is_of(pair, number))).unwrap_or(1);
        let counted = [
            ("cpu_milli", u64::from(other.cpu_milli)),
            ("gpu_milli", u64::from(other.gpu_milli)),
            ("memory_bytes", other.memory_bytes),
        ];
        let named = other.custom.split(',').filter_map(|pair| pair.split_once('='));
        let named = named.map(|(name, amount)| (name, amount.parse().unwrap_or(0)));
        // One that names nothing is refused by what it says.
        let none = (*other == Self::default()).then_some(("cpu_milli", 0));
        let all = counted.into_iter().filter(|(_, amount)| *amount > 0).chain(named).chain(none);
        all.fold(self, |all, (name, amount)| all.custom(&format!("{ALTERNATIVE}{number}/{name}"), amount))
    }
}

/// Tasks that a label may be given to at once: no worker has as many.
const LABELLED_MAX: u64 = 1 << 32;

/// A label is a resource of which a worker has as much as anybody wants.
fn label(name: &str, value: &str) -> String {
    format!("{LABEL}{name}/{value}")
}

/// What happens after a failed attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retries {
    pub(crate) attempts_max: u16,
    pub(crate) backoff_ms: u32,
    pub(crate) backoff_max_ms: u32,
    pub(crate) backoff_factor_centi: u16,
    pub(crate) non_retryable: String,
}

impl Default for Retries {
    /// Three attempts; one second before the second, then twice as long each time, at most a minute.
    fn default() -> Self {
        Self {
            attempts_max: 3,
            backoff_ms: 1_000,
            backoff_max_ms: 60_000,
            backoff_factor_centi: 200,
            non_retryable: String::new(),
        }
    }
}

impl Retries {
    /// One attempt only.
    #[must_use]
    pub fn none() -> Self {
        Self::attempts(1)
    }

    /// This many attempts in all, with the default waits between them.
    #[must_use]
    pub fn attempts(attempts_max: u16) -> Self {
        Self { attempts_max, ..Self::default() }
    }

    /// The wait before the second attempt. The server adds a deterministic jitter.
    #[must_use]
    pub fn backoff(mut self, first: Duration) -> Self {
        self.backoff_ms = millis_u32(first);
        self.backoff_max_ms = self.backoff_max_ms.max(self.backoff_ms);
        self
    }

    /// The longest wait.
    #[must_use]
    pub fn backoff_max(mut self, longest: Duration) -> Self {
        self.backoff_max_ms = millis_u32(longest);
        self
    }

    /// Growth of the wait per attempt, in hundredths: 100 keeps it, 200 doubles it.
    #[must_use]
    pub fn factor_centi(mut self, factor_centi: u16) -> Self {
        self.backoff_factor_centi = factor_centi;
        self
    }

    /// An error code after which there is no further attempt.
    #[must_use]
    pub fn non_retryable(mut self, code: &str) -> Self {
        if !self.non_retryable.is_empty() {
            self.non_retryable.push(',');
        }
        self.non_retryable.push_str(code);
        self
    }
}

/// What tasks of one template share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Contract {
    pub(crate) kind: Name,
    pub(crate) queue: Name,
    /// `None`: the client's.
    pub(crate) namespace: Option<Name>,
    pub(crate) retries: Retries,
    pub(crate) resources: Resources,
    pub(crate) lease_ms: u32,
    pub(crate) retention_ms: u32,
    pub(crate) priority: Priority,
    /// Its tasks are memoised.
    pub(crate) is_memo: bool,
    /// Its tasks are restartable.
    pub(crate) is_restartable: bool,
}

/// What few tasks have.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rare {
    pub(crate) not_before_ms: u64,
    pub(crate) delay_ms: u64,
    pub(crate) deadline_ms: u64,
    pub(crate) deadline_in_ms: u64,
    pub(crate) unique_key: Vec<u8>,
    pub(crate) concurrency_key: Vec<u8>,
    pub(crate) unique_window_ms: u32,
    pub(crate) concurrency_limit: u32,
    /// Of a memoised task: the version of its kind, and the highest age of a result. On the wire they are in the place of the unique key
    /// and its window.
    pub(crate) memo_version: Vec<u8>,
    pub(crate) memo_age_ms: u32,
}

/// A task to submit.
#[derive(Clone, Debug)]
pub struct Task {
    pub(crate) contract: Arc<Contract>,
    pub(crate) payload: Payload,
    pub(crate) rare: Option<Box<Rare>>,
    pub(crate) id: Option<TaskId>,
}

impl Task {
    /// A task for the handler of this kind, in queue `default`, with a lease of 30 s and default [`Retries`].
    #[must_use]
    pub fn new(kind: impl Into<Cow<'static, str>>) -> Self {
        let contract = Contract {
            kind: kind.into(),
            queue: Cow::Borrowed(DEFAULT_QUEUE),
            namespace: None,
            retries: Retries::default(),
            resources: Resources::default(),
            lease_ms: 30_000,
            retention_ms: 0,
            priority: Priority::Normal,
            is_memo: false,
            is_restartable: false,
        };
        Self { contract: Arc::new(contract), payload: Payload::default(), rare: None, id: None }
    }

    fn contract(mut self, change: impl FnOnce(&mut Contract)) -> Self {
        change(Arc::make_mut(&mut self.contract));
        self
    }

    fn rare(mut self, change: impl FnOnce(&mut Rare)) -> Self {
        change(self.rare.get_or_insert_default());
        self
    }

    /// The queue.
    #[must_use]
    pub fn queue(self, queue: impl Into<Cow<'static, str>>) -> Self {
        self.contract(|contract| contract.queue = queue.into())
    }

    /// The namespace, instead of the client's.
    #[must_use]
    pub fn namespace(self, namespace: impl Into<Cow<'static, str>>) -> Self {
        self.contract(|contract| contract.namespace = Some(namespace.into()))
    }

    /// The payload, at most 1 MiB.
    #[must_use]
    pub fn payload(mut self, payload: impl Into<Payload>) -> Self {
        self.payload = payload.into();
        self
    }

    /// The payload as JSON.
    ///
    /// # Errors
    /// [`crate::Error::Decode`] when `value` has no JSON form.
    #[cfg(feature = "json")]
    pub fn json(self, value: &impl serde::Serialize) -> Result<Self, crate::Error> {
        let bytes = serde_json::to_vec(value).map_err(|error| crate::Error::Decode(error.to_string()))?;
        Ok(self.payload(bytes))
    }

    /// The priority class.
    #[must_use]
    pub fn priority(self, priority: Priority) -> Self {
        self.contract(|contract| contract.priority = priority)
    }

    /// Not to start before this long after acceptance.
    #[must_use]
    pub fn delay(self, delay: Duration) -> Self {
        self.rare(|rare| rare.delay_ms = millis(delay))
    }

    /// Not to start before this time.
    #[must_use]
    pub fn not_before(self, time: SystemTime) -> Self {
        self.rare(|rare| rare.not_before_ms = unix_ms(time))
    }

    /// To be finished by this time; what happens then is the queue's setting.
    #[must_use]
    pub fn deadline(self, time: SystemTime) -> Self {
        self.rare(|rare| rare.deadline_ms = unix_ms(time))
    }

    /// To be finished within this long after acceptance.
    #[must_use]
    pub fn deadline_in(self, within: Duration) -> Self {
        self.rare(|rare| rare.deadline_in_ms = millis(within))
    }

    /// How long a worker may be silent before the task goes to another one. Workers of this library extend it
    /// themselves, so it need not cover the run time.
    #[must_use]
    pub fn lease(self, lease: Duration) -> Self {
        self.contract(|contract| contract.lease_ms = millis_u32(lease))
    }

    /// What happens after a failed attempt.
    #[must_use]
    pub fn retries(self, retries: Retries) -> Self {
        self.contract(|contract| contract.retries = retries)
    }

    /// At most one unfinished task of the queue has this key; others are answered with the holder.
    #[must_use]
    pub fn unique_key(self, key: impl AsRef<[u8]>) -> Self {
        self.rare(|rare| rare.unique_key = key.as_ref().to_vec())
    }

    /// The unique key stays taken this long after acceptance, finished or not.
    #[must_use]
    pub fn unique_window(self, window: Duration) -> Self {
        self.rare(|rare| rare.unique_window_ms = millis_u32(window))
    }

    /// The task may have the result of another with the same kind, payload and namespace, instead of running: one that is running,
    /// whose end it then waits for, or one that succeeded earlier and is remembered. For kinds whose result follows from the payload
    /// alone; change the version when the code does. If the one that runs fails, those that wait fail with its error. Such a task has no
    /// unique key, no concurrency key, and is in no workflow.
    #[must_use]
    pub fn memoised(self, version: impl AsRef<[u8]>) -> Self {
        self.contract(|contract| contract.is_memo = true).rare(|rare| rare.memo_version = version.as_ref().to_vec())
    }

    /// The handler has the same effect however often it runs, and on however many workers at once. So an attempt may be ended and made
    /// again for a task of a higher priority, and a second attempt may begin beside one that takes much longer than others of its kind:
    /// the first of the two to end counts. Neither uses up an attempt. What of it is done, the queue's settings say.
    #[must_use]
    pub fn restartable(self, restartable: bool) -> Self {
        self.contract(|contract| contract.is_restartable = restartable)
    }

    /// Of a memoised task: a remembered result will do only when it is no older than this.
    #[must_use]
    pub fn memo_age(self, age: Duration) -> Self {
        self.rare(|rare| rare.memo_age_ms = millis_u32(age))
    }

    /// At most `limit` tasks of the queue with this key run at once.
    #[must_use]
    pub fn concurrency_key(self, key: impl AsRef<[u8]>, limit: u32) -> Self {
        self.rare(|rare| {
            rare.concurrency_key = key.as_ref().to_vec();
            rare.concurrency_limit = limit;
        })
    }

    /// What it needs to run.
    #[must_use]
    pub fn resources(self, resources: Resources) -> Self {
        self.contract(|contract| contract.resources = resources)
    }

    /// How long the finished task and its result are kept, instead of the queue's setting.
    #[must_use]
    pub fn retention(self, retention: Duration) -> Self {
        self.contract(|contract| contract.retention_ms = millis_u32(retention))
    }

    /// An id made earlier by [`crate::Client::task_id`], so that the submission can be repeated after a restart of the
    /// caller. The id decides the partition: tasks with a unique or concurrency key must not have one.
    #[must_use]
    pub fn id(mut self, id: TaskId) -> Self {
        self.id = Some(id);
        self
    }

    /// What the server would refuse, said before anything is sent.
    pub(crate) fn check(&self, payload_bytes_max: usize) -> Result<(), Refusal> {
        let contract = &*self.contract;
        check_name("kind", &contract.kind)?;
        check_name("queue", &contract.queue)?;
        let invalid = |message: String| Err(Refusal::local(Code::Invalid, message));
        if self.payload.0.len() > payload_bytes_max {
            return Err(Refusal::local(
                Code::TooLarge,
                format!(
                    "the payload has {} bytes, the limit is {payload_bytes_max}: store it elsewhere and send its place",
                    self.payload.0.len()
                ),
            ));
        }
        if !(limits::LEASE_MS_MIN..=limits::LEASE_MS_MAX).contains(&contract.lease_ms) {
            return invalid(format!("the lease of {} ms is not between 100 ms and one day", contract.lease_ms));
        }
        if !(1..=limits::ATTEMPTS_MAX).contains(&contract.retries.attempts_max) {
            return invalid(format!("{} attempts are not between 1 and 10,000", contract.retries.attempts_max));
        }
        let Some(rare) = &self.rare else { return Ok(()) };
        let keys = [
            ("unique key", &rare.unique_key),
            ("concurrency key", &rare.concurrency_key),
            ("version for memoising", &rare.memo_version),
        ];
        for (what, key) in keys {
            if key.len() > limits::KEY_BYTES_MAX {
                return invalid(format!("the {what} has {} bytes, the limit is 512: use a hash of it", key.len()));
            }
        }
        let has_keys = !(rare.unique_key.is_empty() && rare.concurrency_key.is_empty());
        if contract.is_memo && rare.memo_version.is_empty() {
            return invalid("a memoised task names a version of its kind, which is not empty".to_owned());
        }
        if contract.is_memo && has_keys {
            let message =
                "a memoised task has no unique key and no concurrency key: its kind, version and payload are its key";
            return invalid(message.to_owned());
        }
        if contract.is_memo && (rare.delay_ms > 0 || rare.not_before_ms > 0) {
            let message = "a memoised task cannot be delayed: equal ones that come meanwhile would wait for it";
            return invalid(message.to_owned());
        }
        if !contract.is_memo && rare.memo_age_ms > 0 {
            return invalid("a highest age of remembered results is given, and the task is not memoised".to_owned());
        }
        if self.id.is_some() && (contract.is_memo || has_keys) {
            return invalid("a task with a key cannot have an id of its own: the key decides its partition".to_owned());
        }
        Ok(())
    }
}

fn check_name(what: &str, name: &str) -> Result<(), Refusal> {
    if name.is_empty() || name.len() > limits::NAME_BYTES_MAX {
        return Err(Refusal::local(
            Code::Invalid,
            format!("the {what} name must have 1 to {} bytes, this one has {}", limits::NAME_BYTES_MAX, name.len()),
        ));
    }
    Ok(())
}

/// Whole milliseconds, rounded up so that a short wait is not none.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

pub(crate) fn millis_u32(duration: Duration) -> u32 {
    u32::try_from(millis(duration)).unwrap_or(u32::MAX)
}

/// Milliseconds since 1970; 1 for times before, because 0 means none.
pub(crate) fn unix_ms(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(1, millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alternatives_are_numbered_in_the_order_in_which_they_are_given() {
        let eight = Resources::new().cpu_milli(8_000);
        let licensed = Resources::new().memory_bytes(1 << 30).custom("licence", 2).on("zone", "south");
        let asked = Resources::new().gpu_milli(1_000).prefer("zone", "north").or(&eight).or(&licensed);
        let pairs = "prefer/zone/north=1,or/1/cpu_milli=8000,or/2/memory_bytes=1073741824,or/2/licence=2,or/2/label/zone/south=1";
        assert_eq!((asked.gpu_milli, asked.custom.as_str()), (1_000, pairs));
        assert_eq!(Resources::new().or(&Resources::new()).custom, "or/1/cpu_milli=0", "which is refused");
    }
}

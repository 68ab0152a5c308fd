//! Queues: settings and exact counts within one partition.

use taskmaster_protocol::body::restart;
#[cfg(doc)]
use taskmaster_protocol::limits::WEIGHT_MAX;
pub(crate) use taskmaster_scheduler::order::Policy;

use crate::state::STATES;

/// What operators configure.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct QueueSettings {
    /// Starts per second over the whole queue, in thousandths; 0 for no limit.
    pub(crate) rate_milli_per_s: u64,
    pub(crate) rate_burst: u32,
    /// Most leases at once over the whole queue; 0 for no limit.
    pub(crate) concurrency: u32,
    /// Most unfinished tasks over the whole queue; 0 for no limit of its own.
    pub(crate) depth_max: u64,
    pub(crate) retention_ms: u32,
    pub(crate) paused: bool,
    pub(crate) draining: bool,
    /// At a deadline: only flag the task instead of expiring it.
    pub(crate) flag_late: bool,
    pub(crate) policy: Policy,
    /// Tasks whose deadline is less likely to be met are refused, in parts per thousand; 0 refuses none.
    pub(crate) refuse_permille: u16,
    /// What is not done to attempts of restartable tasks: bits of [`restart`].
    pub(crate) restarts_off: u8,
    /// Its part of the workers that it shares with other queues, against theirs: 1 to [`WEIGHT_MAX`].
    pub(crate) weight: u16,
}

impl QueueSettings {
    /// Whether something of [`restart`] is done to attempts of its restartable tasks.
    pub(crate) const fn restarts(&self, what: u8) -> bool {
        self.restarts_off & what == 0
    }

    /// Takes over what a request says of [`restart`]: in the upper half which bits, in the lower what they become.
    pub(crate) const fn change_restarts(&mut self, asked: u8) {
        let which = asked >> 4;
        self.restarts_off = (self.restarts_off & !which) | (asked & which & restart::ALL);
    }
}

/// The weight of a number in the protocol and in snapshots, where a queue that was never given one has 0.
pub(crate) const fn weight_of(number: u16) -> u16 {
    if number == 0 { 1 } else { number }
}

/// Its number there.
pub(crate) const fn weight_number(weight: u16) -> u16 {
    if weight == 1 { 0 } else { weight }
}

/// How long final tasks are kept unless told otherwise, in milliseconds (one hour).
pub(crate) const RETENTION_MS_DEFAULT: u32 = 3_600_000;

impl Default for QueueSettings {
    fn default() -> Self {
        Self {
            rate_milli_per_s: 0,
            rate_burst: 1,
            concurrency: 0,
            depth_max: 0,
            retention_ms: RETENTION_MS_DEFAULT,
            paused: false,
            draining: false,
            flag_late: false,
            policy: Policy::default(),
            refuse_permille: 0,
            restarts_off: 0,
            weight: 1,
        }
    }
}

/// The policy of a number in the protocol and in snapshots.
pub(crate) const fn policy_of(number: u32) -> Option<Policy> {
    match number {
        0 => Some(Policy::Auto),
        1 => Some(Policy::Fifo),
        2 => Some(Policy::Shortest),
        3 => Some(Policy::Deadline),
        _ => None,
    }
}

/// Its name.
pub(crate) const fn policy_name(policy: Policy) -> &'static str {
    match policy {
        Policy::Auto => "auto",
        Policy::Fifo => "fifo",
        Policy::Shortest => "shortest",
        Policy::Deadline => "deadline",
    }
}

/// The policy of a name.
pub(crate) fn policy_named(name: &str) -> Option<Policy> {
    (0..).map_while(policy_of).find(|&policy| policy_name(policy) == name)
}

/// The number of a policy in the protocol and in snapshots.
#[must_use]
pub const fn policy_number(policy: Policy) -> u16 {
    match policy {
        Policy::Auto => 0,
        Policy::Fifo => 1,
        Policy::Shortest => 2,
        Policy::Deadline => 3,
    }
}

/// One queue within one partition.
#[derive(Clone, Debug)]
pub(crate) struct Queue {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) settings: QueueSettings,
    /// Tasks by state.
    pub(crate) counts: [u64; STATES],
    /// Its index in the dispatcher.
    pub(crate) dispatch: u32,
    /// It is not among those whose settings the store is to be told. Volatile.
    pub(crate) is_told: bool,
}

impl Queue {
    /// Whether this is its name.
    pub(crate) fn is_named(&self, namespace: &str, name: &str) -> bool {
        self.name == name && self.namespace == namespace
    }

    /// Tasks that are not final.
    pub(crate) fn unfinished(&self) -> u64 {
        self.counts[..4].iter().sum()
    }
}

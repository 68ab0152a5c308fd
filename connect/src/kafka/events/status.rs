//! How the sending of events goes, for metrics: written by the sending thread, read by anyone.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Counters since start, and what is so now.
#[derive(Debug, Default)]
pub struct Status {
    /// A producer is ready.
    pub(super) connected: AtomicBool,
    /// Times that brokers were lost or could not be reached at first.
    pub(super) outages: AtomicU64,
    /// Events that brokers have.
    pub(super) events: AtomicU64,
    /// Transactions, or batches where there are none.
    pub(super) groups: AtomicU64,
    /// The node ends.
    is_over: AtomicBool,
    last_error: Mutex<String>,
}

impl Status {
    /// Asks the thread to end soon, whether or not everything is sent.
    pub fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    /// Something went wrong; whether that is news.
    pub(super) fn failed(&self, sentence: &str) -> bool {
        let mut last = self.last_error.lock().unwrap_or_else(PoisonError::into_inner);
        let is_news = *last != sentence;
        sentence.clone_into(&mut last);
        is_news
    }

    /// The latest failure, or nothing.
    #[must_use]
    pub fn last_error(&self) -> String {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// All counters by name.
    #[must_use]
    pub fn counters(&self) -> [(&'static str, u64); 4] {
        [
            ("events_connected", u64::from(self.connected.load(Ordering::Relaxed))),
            ("events_outages", self.outages.load(Ordering::Relaxed)),
            ("events_sent", self.events.load(Ordering::Relaxed)),
            ("events_transactions", self.groups.load(Ordering::Relaxed)),
        ]
    }
}

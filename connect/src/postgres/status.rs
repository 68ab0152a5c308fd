//! How the connections are doing, for metrics: written by the writers, read by anyone.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counters since start, and what is so now.
#[derive(Debug, Default)]
pub struct Status {
    /// Connections that are up.
    pub connected: AtomicU64,
    /// Times that a server was lost or could not be reached at first.
    pub outages: AtomicU64,
    /// Tasks stored.
    pub tasks: AtomicU64,
    /// Bytes of their rows.
    pub bytes: AtomicU64,
    /// Transactions committed.
    pub transactions: AtomicU64,
    /// Batches that were refused: applied before, or of a leader that was replaced.
    pub refused: AtomicU64,
    last_error: Mutex<String>,
}

impl Status {
    pub(super) fn add(counter: &AtomicU64, amount: u64) {
        counter.fetch_add(amount, Ordering::Relaxed);
    }

    pub(super) fn failed(&self, sentence: &str) {
        if let Ok(mut last) = self.last_error.lock() {
            sentence.clone_into(&mut last);
        }
    }

    /// The latest failure, or nothing.
    #[must_use]
    pub fn last_error(&self) -> String {
        self.last_error.lock().map(|last| last.clone()).unwrap_or_default()
    }
}

//! How the connections are doing, for metrics: written by the writers, read by anyone.

use std::sync::Mutex;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

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
    /// The database's number of the cluster; 0 before a writer knows it.
    pub(super) cluster: AtomicI32,
    last_error: Mutex<String>,
    away: Mutex<Away>,
}

/// Writers that cannot write, and since when there are some.
#[derive(Debug, Default)]
struct Away {
    writers: u32,
    since: Option<Instant>,
}

impl Status {
    pub(super) fn add(counter: &AtomicU64, amount: u64) {
        counter.fetch_add(amount, Ordering::Relaxed);
    }

    /// A writer cannot write; whether it is the first.
    pub(super) fn lost(&self) -> bool {
        let Ok(mut away) = self.away.lock() else { return false };
        away.writers += 1;
        let is_first = away.since.is_none();
        away.since.get_or_insert_with(Instant::now);
        is_first
    }

    /// A writer can write again; how long some could not, if it is the last.
    pub(super) fn back(&self) -> Option<Duration> {
        let mut away = self.away.lock().ok()?;
        away.writers -= 1;
        if away.writers > 0 { None } else { away.since.take().map(|since| since.elapsed()) }
    }

    pub(super) fn failed(&self, sentence: &str) {
        if let Ok(mut last) = self.last_error.lock() {
            sentence.clone_into(&mut last);
        }
    }

    /// All counters by name.
    #[must_use]
    pub fn counters(&self) -> [(&'static str, u64); 6] {
        [
            ("postgres_connected", &self.connected),
            ("postgres_outages", &self.outages),
            ("postgres_tasks", &self.tasks),
            ("postgres_bytes", &self.bytes),
            ("postgres_transactions", &self.transactions),
            ("postgres_refused", &self.refused),
        ]
        .map(|(name, counter)| (name, counter.load(Ordering::Relaxed)))
    }

    /// The latest failure, or nothing.
    #[must_use]
    pub fn last_error(&self) -> String {
        self.last_error.lock().map(|last| last.clone()).unwrap_or_default()
    }
}

//! How the cache is doing, for metrics: written by its thread, read by anyone.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What a result costs on its way beside its bytes: its key, its command and the task that sends it.
const OVERHEAD_BYTES: u64 = 1 << 10;

/// Memory that a result of such a length takes on its way, so that empty ones are bounded too.
pub(super) fn charge(len: usize) -> u64 {
    len as u64 + OVERHEAD_BYTES
}

/// Counters since start, and what is so now.
#[derive(Debug, Default)]
pub struct Status {
    connected: AtomicBool,
    /// Questions that were answered with a result.
    pub hits: AtomicU64,
    /// Questions that were answered with none.
    pub misses: AtomicU64,
    /// Of the hits, those about ended tasks.
    pub recalled: AtomicU64,
    /// Of the answers, those that took no round trip: the server would have told had the value changed.
    pub local: AtomicU64,
    /// Questions that were not answered in time, or with an error.
    pub failures: AtomicU64,
    /// Values that were not whole, or not of the task that was asked for.
    pub unusable: AtomicU64,
    /// Results that were stored.
    pub stored: AtomicU64,
    /// Results that were not: the server was away, late or had no room.
    pub dropped: AtomicU64,
    /// Times that the server was lost, or given up for being late; until it is back it is not asked.
    pub outages: AtomicU64,
    /// What results on their way to the server are charged.
    keeping: AtomicU64,
    last_error: Mutex<String>,
}

impl Status {
    /// Whether the server is not asked at present.
    #[must_use]
    pub fn is_away(&self) -> bool {
        !self.connected.load(Ordering::Relaxed)
    }

    pub(super) fn set_connected(&self, connected: bool) {
        self.connected.store(connected, Ordering::Relaxed);
    }

    /// Whether a result of such a length may be given to be kept while what is on its way is at most [`charge`]d so many bytes; else it
    /// is counted as dropped. Who was let gives it, or says [`Self::not_kept`].
    #[must_use]
    pub fn may_keep(&self, len: usize, bytes_max: u64) -> bool {
        let bytes = charge(len);
        let may = !self.is_away() && self.keeping.load(Ordering::Relaxed) + bytes <= bytes_max;
        if may {
            self.keeping.fetch_add(bytes, Ordering::Relaxed);
        } else {
            Self::add(&self.dropped, 1);
        }
        may
    }

    /// A result of such a length that was let in is not kept.
    pub fn not_kept(&self, len: usize) {
        self.keeping.fetch_sub(charge(len), Ordering::Relaxed);
        Self::add(&self.dropped, 1);
    }

    /// A result of such a length was stored.
    pub(super) fn kept(&self, len: usize) {
        self.keeping.fetch_sub(charge(len), Ordering::Relaxed);
        Self::add(&self.stored, 1);
    }

    /// Counts.
    pub(super) fn add(counter: &AtomicU64, amount: usize) {
        counter.fetch_add(amount as u64, Ordering::Relaxed);
    }

    pub(super) fn failed(&self, sentence: &str) {
        if let Ok(mut last) = self.last_error.lock() {
            sentence.clone_into(&mut last);
        }
    }

    /// All counters by name.
    #[must_use]
    pub fn counters(&self) -> [(&'static str, u64); 10] {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        [
            ("redis_connected", u64::from(!self.is_away())),
            ("redis_outages", read(&self.outages)),
            ("redis_hits", read(&self.hits)),
            ("redis_misses", read(&self.misses)),
            ("redis_recalled", read(&self.recalled)),
            ("redis_local", read(&self.local)),
            ("redis_failures", read(&self.failures)),
            ("redis_unusable", read(&self.unusable)),
            ("redis_stored", read(&self.stored)),
            ("redis_dropped", read(&self.dropped)),
        ]
    }

    /// The latest failure, or nothing.
    #[must_use]
    pub fn last_error(&self) -> String {
        self.last_error.lock().map(|last| last.clone()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_results_on_their_way_are_bounded_too_and_leave_their_room() {
        let status = Status::default();
        status.set_connected(true);
        let let_in = || (0..10_000).filter(|_| status.may_keep(0, 100 << 10)).count();
        assert_eq!(let_in(), 100);
        (0..60).for_each(|_| status.kept(0));
        (0..40).for_each(|_| status.not_kept(0));
        assert_eq!(let_in(), 100);
    }
}

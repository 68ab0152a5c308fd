//! How long to wait before the next try.

use std::time::Duration;

use tokio::time::Instant;

use super::Patience;
use crate::routing::random;

/// First wait while a new leader is expected.
const ELECTION_WAIT: Duration = Duration::from_millis(10);
/// Longest wait while a new leader is expected: what a call may lose after it is there.
const ELECTION_WAIT_MAX: Duration = Duration::from_millis(50);
/// How long a new leader is expected; elections take a few hundred milliseconds.
const ELECTION: Duration = Duration::from_secs(2);

/// Exponential waits with jitter.
pub(crate) struct Backoff {
    next: Duration,
    first: Duration,
    longest: Duration,
}

impl Backoff {
    pub(crate) fn new(patience: &Patience) -> Self {
        Self { next: patience.backoff, first: patience.backoff, longest: patience.backoff_max }
    }

    /// The same with another longest wait.
    pub(crate) fn at_most(self, longest: Duration) -> Self {
        Self { longest: longest.min(self.longest).max(self.first), ..self }
    }

    pub(crate) fn next(&mut self) -> Duration {
        let wait = self.next;
        self.next = (self.next * 2).min(self.longest);
        jittered(wait)
    }

    pub(super) fn is_fresh(&self) -> bool {
        self.next == self.first
    }
}

/// Waits of a call whose partition has lost its leader: short for as long as an election takes, then growing.
pub(super) struct Election {
    begun: Option<Instant>,
    next: Duration,
    longest: Duration,
}

impl Election {
    pub(super) fn new(patience: &Patience) -> Self {
        let first = ELECTION_WAIT.min(patience.backoff_max);
        Self { begun: None, next: first, longest: patience.backoff_max }
    }

    /// The next wait.
    pub(super) fn next(&mut self, now: Instant) -> Duration {
        let begun = *self.begun.get_or_insert(now);
        let longest = if now < begun + ELECTION { ELECTION_WAIT_MAX.min(self.longest) } else { self.longest };
        let wait = self.next.min(longest);
        self.next = (wait * 2).min(longest);
        jittered(wait)
    }

    /// Whether a leader should be known by now.
    pub(super) fn is_late(&self, now: Instant) -> bool {
        self.begun.is_some_and(|begun| now >= begun + ELECTION / 2)
    }
}

/// Between the wait and one and a half times the wait, so that many clients do not come back at once.
pub(crate) fn jittered(wait: Duration) -> Duration {
    let part = u32::try_from(random() % 512).expect("below 512");
    wait + wait * part / 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_short_during_an_election_and_grow_after_it() {
        let patience = Patience {
            call: Duration::from_secs(60),
            answer: Duration::from_secs(20),
            backoff: Duration::from_millis(50),
            backoff_max: Duration::from_secs(5),
        };
        let mut election = Election::new(&patience);
        let start = Instant::now();
        let mut now = start;
        assert!(!election.is_late(now));
        let mut tries = 0;
        while now < start + ELECTION {
            let wait = election.next(now);
            assert!(wait >= ELECTION_WAIT && wait <= ELECTION_WAIT_MAX * 3 / 2, "{wait:?}");
            now += wait;
            tries += 1;
        }
        assert!((25..60).contains(&tries), "{tries}");
        assert!(election.is_late(now));
        let waits: Vec<Duration> = (0..10).map(|_| election.next(now)).collect();
        assert!(waits[9] >= Duration::from_secs(5) && waits[0] < Duration::from_millis(200), "{waits:?}");
    }
}

//! Waits between tries to reach a server: doubling, bounded, with jitter.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(15);

/// The waits of one outage.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: FIRST }
    }
}

impl Backoff {
    /// The next wait: between half of the present length and all of it, so that nodes do not come back all at once.
    pub(crate) fn wait(&mut self) -> Duration {
        let whole = self.next;
        self.next = (whole * 2).min(LONGEST);
        let chance = u32::try_from(RandomState::new().hash_one(0u8) % 1_000).unwrap_or(0);
        whole / 2 + whole / 2_000 * chance
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_to_their_bound_with_jitter_of_at_most_a_half() {
        let mut backoff = Backoff::default();
        for doubled in 0..20 {
            let whole = (FIRST * (1 << doubled.min(10))).min(LONGEST);
            let wait = backoff.wait();
            assert!(wait >= whole / 2 && wait <= whole, "{wait:?} of {whole:?}");
        }
    }
}

//! Task states and the one table of their legal transitions.

use core::fmt;

/// Where a task is in its life. The numbers are those of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum State {
    /// Some task it needs is not final yet, or another task computes its result.
    Waiting = 0,
    /// Not due yet: a delay, or the pause between attempts.
    Delayed = 1,
    /// May start; also while its concurrency key is at its limit.
    Ready = 2,
    /// A worker holds it under a lease.
    Leased = 3,
    /// Final: completed with a result.
    Succeeded = 4,
    /// Final: attempts used up or a final error; the dead letter of its queue.
    Failed = 5,
    /// Final: by request, or because a task it needed did not succeed.
    Cancelled = 6,
    /// Final: its deadline passed first.
    Expired = 7,
}

/// Number of states.
pub const STATES: usize = 8;

use State::{Cancelled, Delayed, Expired, Failed, Leased, Ready, Succeeded, Waiting};

/// The states a task may enter from each state, in the order of the state numbers.
///
/// `Succeeded` and the failures are reachable from every unfinished state because leases are volatile: a replica that
/// replays the log has not seen the lease under which the logged completion was accepted. A task that waits succeeds or fails with
/// another, where it is memoised.
const LEGAL: [&[State]; STATES] = [
    /* Waiting   */ &[Delayed, Ready, Succeeded, Failed, Cancelled, Expired],
    /* Delayed   */ &[Delayed, Ready, Succeeded, Failed, Cancelled, Expired],
    /* Ready     */ &[Delayed, Leased, Succeeded, Failed, Cancelled, Expired],
    /* Leased    */ &[Delayed, Ready, Succeeded, Failed, Cancelled, Expired],
    /* Succeeded */ &[],
    /* Failed    */ &[Waiting, Delayed, Ready],
    /* Cancelled */ &[Waiting, Delayed, Ready],
    /* Expired   */ &[Waiting, Delayed, Ready],
];

/// [`LEGAL`] as bit sets, for the hot path.
const LEGAL_BITS: [u8; STATES] = {
    let mut bits = [0; STATES];
    let mut from = 0;
    while from < STATES {
        let mut to = 0;
        while to < LEGAL[from].len() {
            bits[from] |= 1 << LEGAL[from][to] as u8;
            to += 1;
        }
        from += 1;
    }
    bits
};

impl State {
    /// All states, in the order of their numbers.
    pub const ALL: [Self; STATES] = [Waiting, Delayed, Ready, Leased, Succeeded, Failed, Cancelled, Expired];

    /// Whether the task's outcome is settled.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Succeeded | Failed | Cancelled | Expired)
    }

    /// Whether a memoised task in this state has an outcome that equal tasks share. That it was cancelled or late is its own.
    #[must_use]
    pub(crate) const fn answers_for_others(self) -> bool {
        matches!(self, Succeeded | Failed)
    }

    /// Whether the table allows going from `self` to `next`.
    #[must_use]
    pub const fn may_become(self, next: Self) -> bool {
        LEGAL_BITS[self as usize] & (1 << next as u8) != 0
    }

    /// The state with this number.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// Its lower-case name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Waiting => "waiting",
            Delayed => "delayed",
            Ready => "ready",
            Leased => "leased",
            Succeeded => "succeeded",
            Failed => "failed",
            Cancelled => "cancelled",
            Expired => "expired",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn success_is_the_end_and_other_ends_can_only_be_retried() {
        for next in State::ALL {
            assert!(!Succeeded.may_become(next));
            for end in [Failed, Cancelled, Expired] {
                assert_eq!(end.may_become(next), matches!(next, Waiting | Delayed | Ready));
            }
        }
    }

    #[test]
    fn only_ready_tasks_are_leased() {
        for state in State::ALL {
            assert_eq!(state.may_become(Leased), state == Ready);
            assert_eq!(State::from_number(state.number()), Some(state));
        }
        assert_eq!(State::from_number(8), None);
    }
}

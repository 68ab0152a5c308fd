//! How the shards of a node share a queue's limits: by demand, and never beyond them.
//!
//! One shard owns a queue's limits. The others ask it for permits when they have ready tasks and workers, and give back
//! what they did not use and, for a concurrency limit, what has ended. All of it is volatile.

use core::hash::{BuildHasher, Hasher};
use std::collections::VecDeque;

use crate::hash::FixedState;

/// What shards tell each other about a queue's permits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// To the owner: this many could start here.
    Ask(u32),
    /// From the owner: this many may start.
    Grant(u32),
    /// To the owner: permits that were not used, and leases under permits that have ended.
    Back {
        /// Permits not used.
        unused: u32,
        /// Leases ended.
        ended: u32,
    },
    /// To the owner: leases that were in force when the limit was set.
    InForce(u32),
}

/// A note about one queue, from one shard to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PermitNote {
    /// The sender's number.
    pub from: u16,
    /// The receiver's number.
    pub to: u16,
    /// The queue's namespace.
    pub namespace: String,
    /// The queue's name.
    pub queue: String,
    /// What it says.
    pub note: Note,
}

/// A queue's permits, as its owner and as another shard see them.
#[derive(Debug, Default)]
pub(crate) struct Permits {
    /// The shard that owns the limits.
    pub(crate) owner: u16,
    /// Owner: leases of other shards under its permits.
    pub(crate) lent: u64,
    /// Owner: shards that wait for permits, and how many they want.
    pub(crate) asking: VecDeque<(u16, u32)>,
    /// Owner: its own tasks go before those of the shards that ask; who went last goes last.
    pub(crate) own_first: bool,
    /// Others: permits in hand.
    pub(crate) held: u32,
    /// Others: an answer is awaited.
    pub(crate) asked: bool,
    /// Others: leases that ended and were not reported yet.
    pub(crate) ended: u32,
    /// Others: leases in force when the limit was set, not reported yet.
    in_force: u32,
}

impl Permits {
    pub(crate) fn new(namespace: &str, name: &str, shards: u16) -> Self {
        let mut hasher = FixedState.build_hasher();
        hasher.write(namespace.as_bytes());
        hasher.write(name.as_bytes());
        let owner = hasher.finish() % u64::from(shards.max(1));
        Self { owner: u16::try_from(owner).expect("below the number of shards"), ..Self::default() }
    }

    /// The concurrency limit came, went or stayed. Leases given before it came count as well.
    pub(crate) fn limits_changed(&mut self, shard: u16, was_limited: bool, is_limited: bool, leased: u64) {
        if is_limited && !was_limited && self.owner != shard {
            self.in_force = u32::try_from(leased).unwrap_or(u32::MAX);
        }
        if !is_limited {
            (self.lent, self.ended) = (0, 0);
        }
    }

    /// Others: what is to be told to the owner. `wanted` is how many could start now.
    pub(crate) fn notes(&mut self, wanted: u32, mut tell: impl FnMut(Note)) {
        if self.in_force > 0 {
            tell(Note::InForce(core::mem::take(&mut self.in_force)));
        }
        let unused = if wanted == 0 { core::mem::take(&mut self.held) } else { 0 };
        let ended = core::mem::take(&mut self.ended);
        if unused > 0 || ended > 0 {
            tell(Note::Back { unused, ended });
        }
        if wanted > 0 && self.held == 0 && !self.asked {
            self.asked = true;
            tell(Note::Ask(wanted));
        }
    }
}

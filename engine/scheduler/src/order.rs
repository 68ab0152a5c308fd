//! Orders a queue: the policies, and what bounds them.
//!
//! A policy gives each task that waits a rank, the lowest first. Aging bounds what a rank may do: a task that has
//! waited for the cap goes ahead in the order of submission, within a bound on the slots that such tasks may hold, as
//! a naive cap turns an overloaded queue into a slow FIFO.

use crate::Millis;

/// How a queue is ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Policy {
    /// In the order of submission.
    Fifo,
    /// The shortest first, by prediction.
    Shortest,
    /// The earliest deadline first among those that can still be met.
    Deadline,
    /// [`Policy::Shortest`], with first attempts for restartable tasks, while the guard finds it better than FIFO.
    #[default]
    Auto,
}

impl Policy {
    /// The policy of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "fifo" => Self::Fifo,
            "shortest" => Self::Shortest,
            "deadline" => Self::Deadline,
            "auto" => Self::Auto,
            _ => return None,
        })
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Fifo => "fifo",
            Self::Shortest => "shortest",
            Self::Deadline => "deadline",
            Self::Auto => "auto",
        }
    }
}

/// When a task that waits goes ahead of all ranks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Aging {
    /// After this wait.
    pub cap: Millis,
    /// Tasks that went ahead hold at most this part of the slots, or one such task more.
    pub share_max: f64,
}

impl Default for Aging {
    /// 96 hours, half the slots.
    fn default() -> Self {
        Self { cap: 96 * 3_600_000, share_max: 0.5 }
    }
}

impl Aging {
    /// Without aging.
    pub const NONE: Self = Self { cap: Millis::MAX, share_max: 0.0 };

    /// Whether a task that has waited for `waited` and needs `width` of `slots` may go ahead, when those before it hold
    /// `held` slots.
    #[must_use]
    pub fn is_due(&self, waited: Millis, width: u32, held: u32, slots: u32) -> bool {
        let bound = f64::from(slots) * self.share_max;
        waited >= self.cap && (held == 0 || f64::from(held) + f64::from(width) <= bound)
    }
}

/// The rank of a task with a deadline, `left` from now, that is met with the probability `chance` if it starts now, and then
/// takes `needed` on average: the most likely with the least work and the least time to spare first. Those that will hardly
/// be met come last, in the order of `otherwise`, as they are late whatever is done.
#[must_use]
pub fn deadline_rank(needed: f64, chance: f64, left: Millis, width: u32, otherwise: f64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a rank")]
    let left = left as f64;
    if chance <= CHANCE_MIN || needed > left {
        return HOPELESS + otherwise;
    }
    // Half the weight of the run time: what a task holds back is the width that others wait for, more than for how long.
    let work = 0.5 * needed.max(1.0).ln() + f64::from(width.max(1)).ln();
    work + (left - needed + SPARE_MIN).ln() - 2.0 * chance.ln()
}

/// How a task stands to its deadline, the first to go first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// It will meet it in nine of ten cases.
    Feasible,
    /// It rather will than not.
    AtRisk,
    /// It has none.
    Open,
    /// It rather will not.
    Hopeless,
}

impl Standing {
    /// Of a task with this deadline, if it has one, that ends at `half` in one of two cases and at `most` in nine of ten if it starts now.
    pub fn of<T: PartialOrd>(deadline: Option<T>, [half, most]: [T; 2]) -> Self {
        match deadline {
            None => Self::Open,
            Some(deadline) if most <= deadline => Self::Feasible,
            Some(deadline) if half <= deadline => Self::AtRisk,
            Some(_) => Self::Hopeless,
        }
    }
}

/// What a task that cannot meet its deadline adds to its rank: more than any rank is.
pub const HOPELESS: f64 = 1e6;
/// A chance up to this is none.
const CHANCE_MIN: f64 = 0.1;
/// Time to spare under this counts as this, in milliseconds.
const SPARE_MIN: f64 = 60_000.0;

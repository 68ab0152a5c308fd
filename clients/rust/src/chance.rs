//! How likely a task meets its deadline.

use core::fmt;
use std::time::Duration;

use taskmaster_protocol::body::{ArchivedChance, chance_basis};

/// Why the probability is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChanceUnknown {
    /// The task has no deadline.
    NoDeadline,
    /// Too few tasks of its kind have ended.
    TooFewSamples,
    /// No worker that has room for it serves its queue, or the queue is paused.
    NotServed,
    /// It waits for other tasks, or is final.
    NotInLine,
    /// The node does not tell.
    NotTold,
}

impl ChanceUnknown {
    /// Its name in snake case.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoDeadline => "no_deadline",
            Self::TooFewSamples => "too_few_samples",
            Self::NotServed => "not_served",
            Self::NotInLine => "not_in_line",
            Self::NotTold => "not_told",
        }
    }
}

impl fmt::Display for ChanceUnknown {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::NoDeadline => "it has no deadline",
            Self::TooFewSamples => "too few tasks of its kind have ended",
            Self::NotServed => "no worker that has room for it serves its queue, or the queue is paused",
            Self::NotInLine => "it waits for other tasks, or is final",
            Self::NotTold => "the node does not tell",
        })
    }
}

/// How likely a task meets its deadline, as things are at its leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chance {
    /// In parts per thousand, if it is known.
    pub permille: Result<u32, ChanceUnknown>,
    /// How long it is expected to wait.
    pub wait: Duration,
    /// How long it is expected to run in one of two cases,
    pub run: Duration,
    /// and in nine of ten.
    pub run_most: Duration,
    /// Tasks that go before it, in the part of the queue of its shard.
    pub ahead: u64,
    /// Tasks of that part that can run at once.
    pub places: u32,
    /// Tasks of its kind that have ended, as far as they count.
    pub samples: u32,
}

impl Chance {
    pub(crate) const fn unknown(why: ChanceUnknown) -> Self {
        let zero = Duration::ZERO;
        Self { permille: Err(why), wait: zero, run: zero, run_most: zero, ahead: 0, places: 0, samples: 0 }
    }

    pub(crate) fn of(row: &ArchivedChance) -> Self {
        Self {
            permille: match row.basis.to_native() {
                chance_basis::KNOWN => Ok(row.permille.to_native()),
                chance_basis::NO_DEADLINE => Err(ChanceUnknown::NoDeadline),
                chance_basis::TOO_FEW_SAMPLES => Err(ChanceUnknown::TooFewSamples),
                chance_basis::NOT_SERVED => Err(ChanceUnknown::NotServed),
                _ => Err(ChanceUnknown::NotInLine),
            },
            wait: Duration::from_millis(row.wait_ms.to_native()),
            run: Duration::from_millis(row.run_ms.to_native()),
            run_most: Duration::from_millis(row.run_most_ms.to_native()),
            ahead: row.ahead.to_native(),
            places: row.places.to_native(),
            samples: row.samples.to_native(),
        }
    }
}

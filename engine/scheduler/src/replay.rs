//! Replays traces in virtual time through the scheduler's own code.
//!
//! [`run`] takes a trace, whatever it was read from, and gives what a user wants to know of a policy: waits, bounded
//! slowdowns, and the use of the slots over time. The readers refuse what is broken, with file and line.

mod deadlines;
pub mod lora;
pub mod lucid;
pub mod openb;
pub mod psplib;
pub mod published;
pub mod report;
pub mod slots;
pub mod swf;
mod trace;
pub mod wfformat;
pub mod wide;

use std::fmt;

use crate::Millis;
use crate::order::{Aging, Policy};
use crate::wide::Config;

pub use report::Report;
pub use trace::{Job, ReadError, Trace};

/// How a trace is replayed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ReplayOptions {
    /// The order.
    pub policy: Policy,
    /// Slots; those of the trace's machine if `None`.
    pub slots: Option<u32>,
    /// The bound on what an order may do.
    pub aging: Aging,
    /// Whether tasks may be ended and started again, so that [`Policy::Auto`] makes first attempts.
    pub restartable: bool,
    /// Ranks by the run times themselves, as if they were known.
    pub clairvoyant: bool,
    /// Run times under this count as this in a slowdown.
    pub floor: Millis,
    /// Moves each submission by up to five seconds, differently for each seed but 0.
    pub seed: u64,
}

impl ReplayOptions {
    /// The defaults for a policy.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        let aging = if policy == Policy::Fifo { Aging::NONE } else { Aging::default() };
        Self { policy, slots: None, aging, restartable: false, clairvoyant: false, floor: 10_000, seed: 0 }
    }
}

/// A policy that says nothing of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoDeadlines;

impl fmt::Display for NoDeadlines {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("no task has a deadline or a declared limit, so there is no order by deadline")
    }
}

impl std::error::Error for NoDeadlines {}

/// Whether `policy` says anything of `trace`.
///
/// # Errors
/// For [`Policy::Deadline`] when no deadline is known: [`run`] would go by something else.
pub fn check(trace: &Trace, policy: Policy) -> Result<(), NoDeadlines> {
    if policy == Policy::Deadline && !trace.has_deadlines() { Err(NoDeadlines) } else { Ok(()) }
}

/// Submissions of `trace`, moved by up to five seconds, differently for each seed; 0 leaves them.
#[must_use]
pub fn submits(trace: &Trace, seed: u64) -> Vec<Millis> {
    let mut random = crate::critical::project::Random::new(seed);
    let moved = |random: &mut crate::critical::project::Random| i64::try_from(random.below(10_001)).unwrap_or(0) - 5000;
    let move_by = |submit: Millis, by: Millis| if seed == 0 { submit } else { (submit + by).max(0) };
    trace.jobs.iter().map(|job| move_by(job.submit, moved(&mut random))).collect()
}

/// Replays `trace`.
#[must_use]
pub fn run(trace: &Trace, options: &ReplayOptions) -> Report {
    let submits = submits(trace, options.seed);
    let slots = options.slots.unwrap_or(trace.width);
    let is_wide = trace.jobs.iter().any(|job| job.width != 1);
    let waste_max = if options.policy == Policy::Auto && options.restartable { 0.05 } else { 0.0 };
    let (starts, waste) = if is_wide {
        let config =
            Config { aging: options.aging, waste_max, floor: options.floor, ..Config::new(slots, options.policy) };
        let told = wide::Told {
            clairvoyant: options.clairvoyant,
            restartable: options.restartable,
            deadlines: options.policy == Policy::Deadline,
        };
        let outcome = wide::run(trace, &submits, config, told);
        (outcome.starts, outcome.waste)
    } else {
        let outcome = slots::run(
            trace,
            &submits,
            slots::Options {
                slots,
                policy: options.policy,
                aging: options.aging,
                lead_max: f64::INFINITY,
                waste_max,
                floor: options.floor,
                clairvoyant: options.clairvoyant,
                cells: 1 << 16,
            },
        );
        (outcome.starts, outcome.waste)
    };
    Report::new(trace, &submits, &starts, slots, options.floor, waste)
}

//! The smallest schedule of faults that still fails: delta debugging over the plan of a run.

use std::fmt;

use super::{Failure, Options, run_planned, scenario::Scenario};

/// A failure with no more faults than it needs.
#[derive(Clone, Debug)]
pub struct Minimal {
    /// What fails.
    pub failure: Failure,
    /// The faults that are left, in order.
    pub faults: Vec<String>,
    /// How many there were.
    pub planned: usize,
    /// Runs that it took.
    pub runs: u64,
}

impl fmt::Display for Minimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.failure)?;
        writeln!(f, "{} of {} planned faults suffice ({} runs):", self.faults.len(), self.planned, self.runs)?;
        self.faults.iter().try_for_each(|fault| writeln!(f, "  {fault}"))
    }
}

/// Runs again and again with parts of the plan removed, at most `runs_max` times. `None` if the run does not fail.
#[must_use]
pub fn minimise(options: &Options, runs_max: u64) -> Option<Minimal> {
    let planned = Scenario::new(options).faults;
    let mut failure = run_planned(options, None).err()?;
    let mut left: Vec<usize> = (0..planned.len()).collect();
    let (mut runs, mut parts) = (1, 2);
    while !left.is_empty() && runs < runs_max {
        let part = left.len().div_ceil(parts);
        let mut smaller = None;
        for at in (0..left.len()).step_by(part) {
            let rest: Vec<usize> =
                left.iter().enumerate().filter(|(i, _)| *i < at || *i >= at + part).map(|(_, n)| *n).collect();
            let mut kept = vec![false; planned.len()];
            rest.iter().for_each(|&number| kept[number] = true);
            runs += 1;
            if let Err(found) = run_planned(options, Some(&kept)) {
                failure = found;
                smaller = Some(rest);
                break;
            }
            if runs >= runs_max {
                break;
            }
        }
        match smaller {
            Some(rest) => (left, parts) = (rest, parts.saturating_sub(1).max(2)),
            None if parts >= left.len() => break,
            None => parts = (2 * parts).min(left.len()),
        }
    }
    let faults = left.iter().map(|&number| planned[number].to_string()).collect();
    Some(Minimal { failure, faults, planned: planned.len(), runs })
}

//! Sentences for the log, each reason and source at most once a minute, so that a flood of strangers is no flood of lines.

use super::packet::Stranger;
use std::collections::BTreeMap;

/// How long a warning is not repeated, in microseconds.
const QUIET_US: u64 = 60_000_000;
/// How many are remembered; while so many are quiet, others stay unsaid.
const REMEMBERED_MAX: usize = 256;

/// What a warning is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reason {
    Stranger(Stranger),
    OtherCluster,
    OtherVersion,
    TooManyMembers,
    TwoPlaces,
    SameName,
    AddressTaken,
    TwoClusters,
}

/// When what was last said.
#[derive(Debug, Default)]
pub(super) struct Warnings {
    said_us: BTreeMap<(Reason, u128), u64>,
}

impl Warnings {
    /// Says it, unless it was said lately of the same source; whether it was said now.
    pub(super) fn say(
        &mut self,
        reason: Reason,
        source: u128,
        now_us: u64,
        out: &mut Vec<String>,
        sentence: impl FnOnce() -> String,
    ) -> bool {
        let is_quiet = |said_us: u64| now_us.saturating_sub(said_us) < QUIET_US;
        if self.said_us.get(&(reason, source)).is_some_and(|said_us| is_quiet(*said_us)) {
            return false;
        }
        if self.said_us.len() >= REMEMBERED_MAX {
            self.said_us.retain(|_, said_us| is_quiet(*said_us));
            if self.said_us.len() >= REMEMBERED_MAX {
                return false;
            }
        }
        self.said_us.insert((reason, source), now_us);
        out.push(sentence());
        true
    }
}

//! What a queue ran lately: tasks in stretches that began one after another, and how long they ran. `auto` judges by it, and a policy in
//! shadow is played over it. Bounded, the leader's own, and lost with it.

use std::collections::VecDeque;

use hashbrown::HashMap;
use taskmaster_protocol::PartitionId;
use taskmaster_scheduler::shadow::Ran;

use super::{Learned, deadline, millis};
use crate::hash::FixedState;

/// Tasks of a stretch, and the pause before the next, in microseconds: a busy queue is looked at in samples.
const STRETCH: usize = 256;
const PAUSE_US: u64 = 100_000;
/// Stretches that are remembered.
const STRETCHES_MAX: usize = 8;

/// A task that began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Began {
    pub(crate) ready_us: u64,
    pub(crate) began_us: u64,
    /// 0: it has none.
    pub(crate) deadline_us: u64,
    pub(crate) class: u32,
    /// How long it ran, in units of [`RUN_UNIT_US`]; [`OPEN`] until it ends.
    run: u32,
}

/// It has not ended, as far as is known.
const OPEN: u32 = u32::MAX;
const RUN_UNIT_US: u64 = 10;

#[derive(Debug, Default)]
struct Stretch {
    /// The number of its first task.
    first: u64,
    tasks: Vec<Began>,
    /// Leases held at once, at most.
    places: u64,
}

/// The latest stretches of a queue.
#[derive(Debug)]
pub(crate) struct Recent {
    stretches: VecDeque<Stretch>,
    stretches_max: usize,
    /// Numbers of tasks that have not ended, by partition and fencing token.
    open: HashMap<(PartitionId, u64), u64, FixedState>,
    count: u64,
    next_us: u64,
    is_ended: bool,
}

impl Default for Recent {
    /// The latest stretch is remembered, until it is told to remember more.
    fn default() -> Self {
        let (stretches, open) = (VecDeque::new(), HashMap::default());
        Self { stretches, stretches_max: 1, open, count: 0, next_us: 0, is_ended: false }
    }
}

impl Recent {
    /// Tasks that were noted.
    pub(crate) const fn noted(&self) -> u64 {
        self.count
    }

    /// From here on more is remembered than the latest stretch.
    pub(crate) const fn remember(&mut self) {
        self.stretches_max = STRETCHES_MAX;
    }

    /// Whether tasks that begin now are to be noted.
    pub(crate) fn is_watching(&self, now_us: u64) -> bool {
        now_us >= self.next_us
    }

    /// A task began under a lease, and so many are held; times in microseconds: since when it was ready, now, and its deadline or 0.
    pub(crate) fn note(&mut self, lease: (PartitionId, u64), times_us: [u64; 3], class: u32, leased: u64) {
        let [ready_us, began_us, deadline_us] = times_us;
        if began_us < self.next_us {
            return;
        }
        if self.latest().len() == STRETCH || self.stretches.is_empty() {
            if self.stretches.len() == self.stretches_max {
                self.stretches.pop_front();
                let first = self.stretches.front().map_or(self.count, |stretch| stretch.first);
                self.open.retain(|_, number| *number >= first);
            }
            self.stretches.push_back(Stretch { first: self.count, ..Stretch::default() });
        }
        let stretch = self.stretches.back_mut().expect("made above");
        stretch.tasks.push(Began { ready_us, began_us, deadline_us, class, run: OPEN });
        stretch.places = stretch.places.max(leased);
        if stretch.tasks.len() == STRETCH {
            (self.next_us, self.is_ended) = (began_us + PAUSE_US, true);
        }
        self.open.insert(lease, self.count);
        self.count += 1;
    }

    /// Whether a stretch ended since this was asked.
    pub(crate) const fn take_ended(&mut self) -> bool {
        core::mem::replace(&mut self.is_ended, false)
    }

    /// The attempt of a lease ended after so many microseconds.
    pub(crate) fn ended(&mut self, lease: (PartitionId, u64), run_us: u64) {
        if self.open.is_empty() {
            return;
        }
        let Some(number) = self.open.remove(&lease) else { return };
        let Some(stretch) = self.stretches.iter_mut().rfind(|stretch| stretch.first <= number) else { return };
        let place = usize::try_from(number - stretch.first).unwrap_or(usize::MAX);
        if let Some(began) = stretch.tasks.get_mut(place) {
            began.run = u32::try_from(run_us / RUN_UNIT_US).map_or(OPEN - 1, |run| run.min(OPEN - 1));
        }
    }

    /// The tasks of the latest stretch.
    pub(crate) fn latest(&self) -> &[Began] {
        self.stretches.back().map_or(&[], |stretch| &stretch.tasks)
    }

    /// All that is remembered, with the places there were. Tasks that have not ended run for as long as is predicted, or as they did.
    pub(crate) fn played(&self, learned: &Learned, now_us: u64) -> Vec<(Vec<Ran>, usize)> {
        let stretch = |stretch: &Stretch| {
            let tasks = stretch.tasks.iter().map(|began| began.ran(learned, now_us)).collect();
            (tasks, usize::try_from(stretch.places).unwrap_or(usize::MAX))
        };
        self.stretches.iter().map(stretch).collect()
    }
}

impl Began {
    fn ran(&self, learned: &Learned, now_us: u64) -> Ran {
        let (expected, width) = learned.expected_of(self.class);
        let quantiles = deadline::quantiles_us(&learned.outcomes(self.class).succeeds).map(millis);
        Ran {
            ready: millis(self.ready_us),
            began: millis(self.began_us),
            run: match self.run {
                // It may have been cancelled meanwhile, or lost with its worker: that is no run of an hour.
                OPEN => millis(now_us.saturating_sub(self.began_us))
                    .clamp(quantiles[0], 4.0 * quantiles[1].max(quantiles[0])),
                run => millis(u64::from(run) * RUN_UNIT_US),
            },
            rank: expected.rank(width),
            quantiles,
            deadline: Some(self.deadline_us).filter(|&deadline_us| deadline_us > 0).map(millis),
            group: self.class,
        }
    }
}

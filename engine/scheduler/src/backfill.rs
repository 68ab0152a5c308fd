//! Backfilling of wide tasks: EASY that re-sorts and re-chooses at every event.
//!
//! Invariants: the width in use never exceeds the machine's; a task that is started ahead of the first one that does
//! not fit never delays that one beyond the time which the declared limits give (it ends before, or needs only what is
//! then left over). Reservations are by limits that hold. Where the caller has none but a prediction, that may be too
//! short, and then the first is delayed.
//!
//! It keeps no queue and no clock: the caller brings both, in the order that it wants.

use crate::Millis;

/// A task that waits, in the order of the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The caller's name for it.
    pub task: u32,
    /// Slots that it needs at once.
    pub width: u32,
    /// How long it runs at most: its declared limit.
    pub limit: Millis,
    /// Slots that must stay free beside it when it starts, for tasks that are shorter.
    pub keep: u32,
}

/// A task that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Running {
    /// When it ends at the latest, by its declared limit.
    pub end: Millis,
    /// Slots that it holds.
    pub width: u32,
    /// The caller's name for it.
    pub task: u32,
}

/// What is kept for the first task that does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// When it starts at the latest.
    pub start: Millis,
    /// Slots that are left over at that time.
    pub spare: u32,
}

/// What runs on one machine of a number of slots, by the time at which each ends at the latest.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    width: u32,
    free: u32,
    running: Vec<Running>,
}

impl Machine {
    /// A machine with `width` slots, all free.
    #[must_use]
    pub fn new(width: u32) -> Self {
        Self { width, free: width, running: Vec::new() }
    }

    /// Slots in all.
    #[must_use]
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Slots that are free.
    #[must_use]
    pub fn free(&self) -> u32 {
        self.free
    }

    /// What runs, the earliest latest end first.
    #[must_use]
    pub fn running(&self) -> &[Running] {
        &self.running
    }

    /// Starts a task.
    ///
    /// # Panics
    /// When it does not fit: the caller's bug.
    pub fn start(&mut self, now: Millis, task: Waiting) {
        assert!(task.width <= self.free, "a task was started that does not fit");
        self.free -= task.width;
        let end = now.saturating_add(task.limit);
        let place = self.running.partition_point(|other| other.end <= end);
        self.running.insert(place, Running { end, width: task.width, task: task.task });
    }

    /// Frees the slots of a task; `false` when it does not run. `end` is the time that [`Machine::start`] gave it.
    pub fn finish(&mut self, end: Millis, task: u32) -> bool {
        let first = self.running.partition_point(|other| other.end < end);
        let same = self.running[first..].iter().take_while(|other| other.end == end);
        let Some(offset) = same.clone().position(|other| other.task == task) else { return false };
        let gone = self.running.remove(first + offset);
        self.free += gone.width;
        true
    }

    /// When `width` slots are free at the latest, and how many more are free then.
    #[must_use]
    pub fn reserve(&self, now: Millis, width: u32) -> Reservation {
        let mut free = self.free;
        let mut start = now;
        for running in &self.running {
            // One that is over its limit ends any moment.
            let end = running.end.max(now + 1);
            if free >= width && end > start {
                break;
            }
            free += running.width;
            start = end;
        }
        Reservation { start, spare: free.saturating_sub(width) }
    }

    /// Starts from `queue`, which is in order, all that may start at `now`: from the front while it fits, then what
    /// does not delay the first that does not. The started ones are appended to `started` as places in `queue`.
    /// Tasks wider than the machine are passed over.
    pub fn choose(&mut self, now: Millis, queue: &[Waiting], started: &mut Vec<usize>) {
        let mut held: Option<Reservation> = None;
        for (place, task) in queue.iter().enumerate() {
            if self.free == 0 {
                break;
            }
            if task.width > self.width {
                continue;
            }
            let needed = task.width.saturating_add(task.keep).min(self.width);
            let Some(reservation) = &mut held else {
                if needed <= self.free {
                    self.start(now, *task);
                    started.push(place);
                } else {
                    held = Some(self.reserve(now, needed));
                }
                continue;
            };
            if needed > self.free {
                continue;
            }
            if now.saturating_add(task.limit) <= reservation.start {
                self.start(now, *task);
                started.push(place);
            } else if task.width <= reservation.spare {
                reservation.spare -= task.width;
                self.start(now, *task);
                started.push(place);
            }
        }
    }
}

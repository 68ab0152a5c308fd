//! What the present line means for a task with a deadline: what goes before it under the queue's policy, how many places there are,
//! and how likely it ends in time ([`taskmaster_scheduler::chance`]).
//!
//! It looks at this shard's part of the queue, which tasks and workers' credit share evenly with the others; at what is in line now
//! and not at what will come; and at limits as far as they are known here. Nothing of it is replicated.

use std::collections::VecDeque;

use taskmaster_scheduler::chance::{self, Line, Run};
use taskmaster_scheduler::predictor::Prediction;

use crate::dispatch::{Dispatch, DispatchQueue, LaneRef};
use crate::order::By;
use crate::order::deadline::{Ends, Turn, deadline_us};
use crate::partition::{ClassList, Lane, Partition};
use crate::resources::Resources;
use crate::task::{NONE, Slot, Tasks};
use crate::wishes::Asked;

/// Tasks of its kind without which nothing is said.
const SAMPLES_MIN: u32 = 5;
/// Most lanes that are looked at, and most tasks of a list one by one: of more a part is, and the others are taken to be like it.
const LANES_MAX: usize = 64;
const COUNTED_MAX: usize = 64;
/// The same for who asks where a task stands: most lanes, and most tasks of all lists together.
const LANES_ALL: usize = 4_096;
const COUNTED_ALL: usize = 20_000;

/// Why nothing is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unknown {
    /// Too few of its kind have ended.
    Samples,
    /// Nobody serves the queue who has room for it, or the queue is paused.
    Served,
}

/// What is expected of a task.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outlook {
    /// How likely it ends in time.
    pub(crate) in_time: Result<f64, Unknown>,
    /// Of an attempt that succeeds.
    pub(crate) expected: Prediction,
    /// Tasks of its kind that say so.
    pub(crate) samples: u32,
    /// Tasks that go before it, and places there are.
    pub(crate) ahead: u64,
    pub(crate) places: u64,
    /// How long it will wait, in milliseconds.
    pub(crate) wait_ms: f64,
}

impl Outlook {
    /// The probability in parts per thousand, if it is known.
    pub(crate) fn permille(&self) -> Option<u32> {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a probability")]
        let permille = |part: f64| (part.clamp(0.0, 1.0) * 1_000.0).round() as u32;
        self.in_time.ok().map(permille)
    }

    /// What is said to who asks why.
    pub(crate) fn in_words(&self) -> String {
        match (self.permille(), self.in_time) {
            (_, Err(Unknown::Samples)) => {
                let samples = self.samples;
                format!("unknown: {samples} tasks of its kind have ended, and it takes {SAMPLES_MIN} to say")
            }
            (Some(permille), _) => {
                let (whole, rest) = (permille / 10, permille % 10);
                let (ahead, places, wait_ms) = (self.ahead, self.places, self.wait_ms);
                format!("{whole}.{rest} %: behind {ahead} tasks on {places} places it waits for {wait_ms:.0} ms")
            }
            (None, _) => "unknown: nobody who has room for it serves the queue, or it is paused".to_owned(),
        }
    }
}

/// A task that waits, or is about to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asking<'a> {
    pub(crate) class: u32,
    pub(crate) priority: u8,
    pub(crate) asked: Asked<'a>,
    pub(crate) deadline_us: Option<u64>,
    /// Since when it is ready, and its number in the order of readiness; now and the last for one that is to be submitted.
    pub(crate) ready: (u64, u64),
    /// It itself, if it is in line: its partition and slot.
    pub(crate) own: Option<(u16, Slot)>,
    /// Tasks that will go before it and are not in line yet.
    pub(crate) before: u64,
}

/// What a shard sees.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) partitions: &'a [Option<Box<Partition>>],
    pub(crate) dispatch: &'a Dispatch,
    pub(crate) now_us: u64,
}

impl View<'_> {
    /// The outlook of a task of a queue, by the queue's number in the dispatcher, that waits in line.
    pub(crate) fn of(&self, queue: u32, asking: &Asking<'_>) -> Outlook {
        let served = &self.dispatch.queues[queue as usize];
        let (expected, samples) = self.dispatch.learned.expected(asking.class);
        let (outcomes, run) = (self.dispatch.learned.outcomes(asking.class), Run::of(&expected));
        let mut line = Line { running: served.leased, places: self.places(served, asking.asked), ..Line::default() };
        #[expect(clippy::cast_precision_loss, reason = "a count")]
        let mut add = |tasks: u64, run: &Run| {
            line.tasks += tasks;
            line.work += tasks as f64 * run.mean();
            line.squares += tasks as f64 * run.mean_square();
        };
        let bounds = (LANES_MAX, COUNTED_MAX);
        self.each_ahead(served, asking, served.order.by(), bounds, |ahead, other| add(ahead, &Run::of(other)));
        let lanes = served.rings.iter().map(VecDeque::len).sum::<usize>();
        if lanes > LANES_MAX {
            #[expect(clippy::cast_precision_loss, reason = "a count")]
            let times = lanes as f64 / LANES_MAX as f64;
            line.tasks = line.tasks * lanes as u64 / LANES_MAX as u64;
            (line.work, line.squares) = (line.work * times, line.squares * times);
        }
        #[expect(clippy::cast_precision_loss, reason = "a count")]
        let before = asking.before as f64;
        line.tasks += asking.before;
        line.work += before * run.mean();
        line.squares += before * run.mean_square();
        let mut wait = line.wait(&run);
        wait.mean = wait.mean.max(rate_wait_ms(served, line.tasks, self.now_us));
        let in_time = if samples < SAMPLES_MIN {
            Err(Unknown::Samples)
        } else if line.places == 0 {
            Err(Unknown::Served)
        } else {
            Ok(chance::in_time(&outcomes, wait, self.millis_to(asking.deadline_us.unwrap_or(u64::MAX))))
        };
        let expected = outcomes.succeeds;
        Outlook { in_time, expected, samples, ahead: line.tasks, places: line.places, wait_ms: wait.mean }
    }

    /// How many tasks in line go before one that asks, in an order. Of lists that are too long a part is looked at, and the others are
    /// taken to be like it.
    pub(crate) fn before(&self, queue: u32, asking: &Asking<'_>, by: By) -> u64 {
        let served = &self.dispatch.queues[queue as usize];
        let lists = |lane: &LaneRef| {
            let partition = self.partitions[usize::from(lane.partition)].as_deref();
            partition.map_or(0, |partition| partition.lanes[lane.lane as usize].lists.len())
        };
        let lists: usize = served.rings.iter().flatten().take(LANES_ALL).map(lists).sum();
        let bounds = (LANES_ALL, (COUNTED_ALL / lists.max(1)).max(4));
        let mut count = 0;
        self.each_ahead(served, asking, by, bounds, |ahead, _| count += ahead);
        count
    }

    /// Calls `add` with how many of each list go before the one that asks, and what is expected of them.
    fn each_ahead(
        &self,
        served: &DispatchQueue,
        asking: &Asking<'_>,
        by: By,
        (lanes_max, counted_max): (usize, usize),
        mut add: impl FnMut(u64, &Prediction),
    ) {
        let rank = |class: u32| self.dispatch.learned.rank_at_present(class, served.order.gives_up());
        let own_rank = if by == By::Rank { rank(asking.class) } else { 0.0 };
        for lane in served.rings.iter().flatten().take(lanes_max) {
            let Some(partition) = self.partitions[usize::from(lane.partition)].as_deref() else { continue };
            let ready = &partition.lanes[lane.lane as usize];
            for of in ready.lists.iter().filter(|of| of.list.len > 0) {
                let other = self.dispatch.learned.expected(of.class).0;
                let list = (*lane, partition, ready, of);
                let is_first = by == By::Rank && of.class != asking.class && rank(of.class) < own_rank;
                add(self.ahead((by, is_first), asking, list, counted_max), &other);
            }
        }
    }

    /// The outlook of a task that runs since then.
    pub(crate) fn of_running(&self, class: u32, since_us: u64, deadline_us: u64) -> Outlook {
        let (expected, samples) =
            (self.dispatch.learned.outcomes(class).succeeds, self.dispatch.learned.expected(class).1);
        let (elapsed, left) = (millis(self.now_us.saturating_sub(since_us)), self.millis_to(deadline_us));
        let known = Run::of(&expected).within_when(elapsed, left);
        let in_time = if samples < SAMPLES_MIN { Err(Unknown::Samples) } else { Ok(known) };
        Outlook { in_time, expected, samples, ahead: 0, places: 1, wait_ms: 0.0 }
    }

    fn millis_to(&self, deadline_us: u64) -> f64 {
        millis(deadline_us.saturating_sub(self.now_us))
    }

    /// Tasks of this shard's part of a queue that can run at once, and ask for this.
    fn places(&self, served: &DispatchQueue, asked: Asked<'_>) -> u64 {
        let room = |&index: &u32| {
            let worker = &self.dispatch.workers[index as usize];
            let capacity = worker.capacity.as_ref();
            let most = |used: &Resources, credit: u32| {
                asked.sets().map(|(_, need)| need.fits_on(capacity, used, credit)).max()
            };
            (most(&Resources::default(), 1) > Some(0), most(&worker.used, worker.credit).unwrap_or(0))
        };
        let rooms: Vec<(bool, u32)> = served.workers.iter().map(room).collect();
        if !rooms.iter().any(|(could, _)| *could) {
            return 0;
        }
        let free: u64 = rooms.iter().map(|(_, credit)| u64::from(*credit)).sum();
        let permits = &served.permits;
        let limit = served.concurrency.map_or(u64::MAX, |limit| match permits.is_owner {
            true => limit.saturating_sub(permits.lent()),
            false => served.leased + u64::from(permits.held),
        });
        (served.leased + free).min(limit).max(1)
    }

    /// How many tasks of a list go before the one that asks; `is_first`: the list has the lower rank.
    fn ahead(
        &self,
        (by, is_first): (By, bool),
        asking: &Asking<'_>,
        (lane, partition, ready, of): (LaneRef, &Partition, &Lane, &ClassList),
        counted_max: usize,
    ) -> u64 {
        let own = asking.own.filter(|(number, _)| *number == lane.partition).map(|(_, slot)| slot);
        let all = u64::from(of.list.len);
        match ready.priority.cmp(&asking.priority) {
            core::cmp::Ordering::Less => return all,
            core::cmp::Ordering::Greater => return 0,
            core::cmp::Ordering::Equal => {}
        }
        let tasks = &partition.tasks;
        let sooner = |slot: Slot| (tasks[slot].at_us, tasks[slot].token) < asking.ready && Some(slot) != own;
        let by_readiness = || sooner_in(of, tasks, counted_max, sooner);
        match by {
            By::Turns => by_readiness(),
            By::Rank if of.class == asking.class => by_readiness(),
            By::Rank if is_first => all,
            By::Rank => 0,
            By::Deadline => {
                let ends = |class| Ends::of(&self.dispatch.learned.outcomes(class).succeeds, self.now_us);
                let [mine, theirs] = [asking.class, of.class].map(ends);
                let turn = Turn::of(asking.deadline_us, asking.ready.0, mine);
                let later = |slot: &Slot| {
                    let task = &tasks[*slot];
                    let its = Turn::of(deadline_us(task.extra, &partition.extras), task.at_us, theirs);
                    its > turn || (its == turn && !sooner(*slot))
                };
                // Of a long list a part is looked at, and the others are taken to be like it.
                let looked_at = all.min(counted_max as u64);
                let behind = of.list.iter(tasks).take(counted_max).filter(later).count() as u64;
                all - behind * all / looked_at.max(1)
            }
        }
    }
}

/// How many tasks of a list became ready sooner, by walks from both of its ends. Where neither comes to the place that is looked for, it is
/// taken to be in the middle of what is left.
fn sooner_in(of: &ClassList, tasks: &Tasks, counted_max: usize, sooner: impl Fn(Slot) -> bool) -> u64 {
    let all = u64::from(of.list.len);
    let before = |&slot: &Slot| Some(tasks[slot].prev).filter(|&before| before != NONE);
    let mut oldest = of.list.iter(tasks);
    let mut youngest = core::iter::successors(Some(of.list.tail), before);
    for count in 0..counted_max as u64 {
        match (oldest.next(), youngest.next()) {
            (Some(slot), _) if !sooner(slot) => return count,
            (_, Some(slot)) if sooner(slot) => return all - count,
            (None, _) | (_, None) => return all,
            _ => {}
        }
    }
    all / 2
}

fn millis(us: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a time")]
    let ms = us as f64 / 1_000.0;
    ms
}

/// How long so many tasks keep the queue's rate limit busy, as far as this shard knows.
fn rate_wait_ms(served: &DispatchQueue, tasks: u64, now_us: u64) -> f64 {
    let Some(mut bucket) = served.bucket else { return 0.0 };
    let over = (tasks + 1).saturating_sub(u64::from(bucket.available(now_us)));
    #[expect(clippy::cast_precision_loss, reason = "a time")]
    let ms = over as f64 * 1e6 / bucket.rate_milli_per_s.max(1) as f64;
    ms
}

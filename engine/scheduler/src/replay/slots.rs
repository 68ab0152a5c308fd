//! Replays tasks that need one slot each through [`crate::queue`] in virtual time.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use crate::Millis;
use crate::lengths::Lengths;
use crate::order::{Aging, Policy};
use crate::predictor::{self, Keys, Predictor};
use crate::queue::{Queue, Reason};
use crate::replay::deadlines::Deadlines;
use crate::replay::{Job, Trace, wide};
use crate::restart::Ledger;

/// How it is replayed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// Slots.
    pub slots: u32,
    /// The order.
    pub policy: Policy,
    /// When tasks go ahead of their ranks.
    pub aging: Aging,
    /// What a tenant may be ahead of another, in milliseconds of slots.
    pub lead_max: f64,
    /// Part of the work that may be lost by giving tasks up for others; 0 gives none up, nor does [`Policy::Deadline`].
    pub waste_max: f64,
    /// Run times under this count as this in a slowdown.
    pub floor: Millis,
    /// Ranks by the run times themselves.
    pub clairvoyant: bool,
    /// Cells of the predictor.
    pub cells: usize,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// When each task started, for the attempt that ended by itself.
    pub starts: Vec<Millis>,
    /// Part of the work that was lost by giving tasks up.
    pub waste: f64,
    /// Decisions: tasks taken from the queue.
    pub decisions: usize,
}

struct Replay<'a> {
    options: Options,
    jobs: &'a [Job],
    keys: Vec<Keys>,
    queue: Queue,
    predictor: Predictor,
    lengths: Lengths,
    ledger: Ledger,
    /// What a task ran for when it was given up, at most.
    outlived: Vec<Millis>,
    starts: Vec<Millis>,
    /// When a task that runs has ended, or is to be judged.
    events: BinaryHeap<Reverse<(Millis, u32)>>,
    free: u32,
    /// Which tasks went ahead by their age, and how many of them run.
    ahead: Vec<bool>,
    held: u32,
    decisions: usize,
    now: Millis,
    deadlines: Deadlines,
    /// Tenants by dense numbers, and for each the tasks that wait (or did), and what is owed to ranking them again.
    tenants: Vec<u32>,
    waiting: Vec<Vec<u32>>,
    owed: Vec<usize>,
}

/// A tenant's waiting tasks are ranked again once it has had a completion for each so many of them.
const WAITING_PER_RANKING: usize = 8;

impl Replay<'_> {
    fn limit(&self, task: u32) -> Millis {
        self.jobs[task as usize].declared()
    }

    fn rank(&self, task: u32) -> f32 {
        let place = task as usize;
        if self.options.policy == Policy::Fifo {
            return 0.0;
        }
        if self.options.policy == Policy::Deadline {
            return self.deadlines.rank(task, self.now, self.quantiles(task));
        }
        if self.options.clairvoyant {
            #[expect(clippy::cast_precision_loss, reason = "a rank")]
            return self.jobs[place].run as f32;
        }
        if self.ledger.is_open() {
            return self.lengths.attempt(&self.keys[place], self.outlived[place]).rank;
        }
        self.predictor.predict(&self.keys[place], self.limit(task)).rank(1)
    }

    /// For how long a task runs in one of two and in nine of ten cases.
    fn quantiles(&self, task: u32) -> [Millis; 2] {
        if self.options.clairvoyant {
            return [self.jobs[task as usize].run; 2];
        }
        let expected = self.predictor.predict(&self.keys[task as usize], self.limit(task));
        [expected.q50, expected.q90].map(predictor::millis)
    }

    /// Under [`Policy::Deadline`] a task that waits is ranked again when it stands worse to its deadline, as time went on.
    fn note_turn(&mut self, task: u32) {
        if self.options.policy == Policy::Deadline {
            self.deadlines.note(task, self.now, self.quantiles(task));
        }
    }

    fn rank_turned(&mut self) {
        while let Some(task) = self.deadlines.turned(self.now) {
            if self.queue.waits(task) {
                self.queue.rank_again(task, self.rank(task));
                self.note_turn(task);
            }
        }
    }

    fn arrive(&mut self, task: u32, now: Millis) {
        let tenant = self.tenants[task as usize];
        self.queue.push(task, tenant, self.rank(task), now);
        self.note_turn(task);
        self.waiting[tenant as usize].push(task);
    }

    /// What a tenant's tasks are expected to take has changed; the cost per completion is bounded.
    fn rank_again(&mut self, tenant: usize) {
        self.owed[tenant] += WAITING_PER_RANKING;
        if self.owed[tenant] < self.waiting[tenant].len() || self.options.policy == Policy::Fifo {
            return;
        }
        self.owed[tenant] = 0;
        let mut waiting = std::mem::take(&mut self.waiting[tenant]);
        waiting.retain(|task| self.queue.waits(*task));
        for task in &waiting {
            self.queue.rank_again(*task, self.rank(*task));
            self.note_turn(*task);
        }
        self.waiting[tenant] = waiting;
    }

    /// A task has ended, or is judged: it goes on, or makes room for another.
    fn event(&mut self, task: u32, now: Millis) {
        let place = task as usize;
        let (run, start) = (self.jobs[place].run, self.starts[place]);
        let age = now - start;
        if age >= run {
            self.free += 1;
            self.held -= u32::from(self.ahead[place]);
            self.ledger.end(start, now);
            self.learn(task);
            return;
        }
        let on = self.lengths.going_on(&self.keys[place], age);
        let is_late = on.yields_to(self.queue.lowest());
        if is_late && self.ledger.give_up(start, now) {
            self.free += 1;
            self.outlived[place] = self.outlived[place].max(age);
            self.queue.put_back(task, self.rank(task));
            self.waiting[self.tenants[place] as usize].push(task);
        } else {
            let until = on.next_look(age, is_late).unwrap_or(run);
            self.events.push(Reverse((start + until.min(run), task)));
        }
    }

    fn learn(&mut self, task: u32) {
        let (keys, run) = (&self.keys[task as usize], self.jobs[task as usize].run);
        if self.ledger.is_open() {
            self.lengths.learn(keys, run);
        } else {
            #[expect(clippy::cast_precision_loss, reason = "a sample")]
            self.predictor.learn(keys, self.limit(task), run as f64, false, None);
        }
        self.rank_again(self.tenants[task as usize] as usize);
    }

    fn start(&mut self, now: Millis) {
        self.rank_turned();
        while self.free > 0 {
            let (predictor, keys, jobs) = (&self.predictor, &self.keys, self.jobs);
            let fair = self.options.lead_max.is_finite();
            let service = |task: u32| {
                let limit = jobs[task as usize].declared();
                if fair { f64::from(predictor.predict(&keys[task as usize], limit).log_mean).exp() } else { 0.0 }
            };
            self.queue.let_ages(self.options.aging.is_due(Millis::MAX, 1, self.held, self.options.slots));
            let Some((task, reason)) = self.queue.pop(now, service) else { break };
            let place = task as usize;
            self.decisions += 1;
            self.free -= 1;
            self.ledger.start(now);
            self.starts[place] = now;
            self.ahead[place] = reason == Reason::Age;
            self.held += u32::from(self.ahead[place]);
            let run = self.jobs[place].run;
            // What waited for the cap is not given up again.
            let may_end = self.ledger.is_open() && !self.ahead[place];
            let attempt = may_end.then(|| self.lengths.attempt(&self.keys[place], self.outlived[place]));
            let until = attempt.and_then(|attempt| attempt.until).unwrap_or(run);
            self.events.push(Reverse((now + until.min(run), task)));
        }
    }
}

/// Replays `trace`, whose tasks are submitted at `submits`.
#[must_use]
pub fn run(trace: &Trace, submits: &[Millis], options: Options) -> Outcome {
    let mut order: Vec<u32> = (0..).take(trace.jobs.len()).collect();
    order.sort_by_key(|task| submits[*task as usize]);
    let mut numbers = BTreeMap::new();
    let mut number = |user: u32| {
        let next = u32::try_from(numbers.len()).unwrap_or(u32::MAX);
        *numbers.entry(user).or_insert(next)
    };
    let tenants: Vec<u32> = trace.jobs.iter().map(|job| number(job.user)).collect();
    let waste_max = if options.policy == Policy::Deadline { 0.0 } else { options.waste_max };
    let mut replay = Replay {
        tenants,
        waiting: vec![Vec::new(); numbers.len()],
        owed: vec![0; numbers.len()],
        options,
        jobs: &trace.jobs,
        keys: trace.jobs.iter().map(|job| Keys::new(&wide::facts(job))).collect(),
        queue: Queue::new(options.aging.cap, options.lead_max),
        predictor: Predictor::new(options.cells, options.floor),
        lengths: Lengths::new(if waste_max > 0.0 { options.cells / 2 } else { 0 }, options.floor),
        ledger: Ledger::new(waste_max),
        outlived: vec![0; trace.jobs.len()],
        starts: vec![Millis::MAX; trace.jobs.len()],
        events: BinaryHeap::new(),
        free: options.slots,
        ahead: vec![false; trace.jobs.len()],
        held: 0,
        decisions: 0,
        now: 0,
        deadlines: Deadlines::new(&trace.jobs, submits),
    };
    let mut next = 0;
    loop {
        let arrival = order.get(next).map_or(Millis::MAX, |task| submits[*task as usize]);
        let event = replay.events.peek().map_or(Millis::MAX, |Reverse((time, _))| *time);
        let now = arrival.min(event);
        if now == Millis::MAX {
            let Replay { starts, decisions, ledger, .. } = replay;
            return Outcome { starts, waste: ledger.waste(), decisions };
        }
        replay.now = now;
        while let Some(Reverse((time, task))) = replay.events.peek().copied()
            && time == now
        {
            replay.events.pop();
            replay.event(task, now);
        }
        while let Some(task) = order.get(next).copied()
            && submits[task as usize] == now
        {
            replay.arrive(task, now);
            next += 1;
        }
        replay.start(now);
    }
}

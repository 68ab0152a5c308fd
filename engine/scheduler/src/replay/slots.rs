//! Replays tasks that need one slot each through [`crate::queue`] in virtual time.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use crate::Millis;
use crate::order::Policy;
use crate::predictor::{Keys, Prediction, Predictor};
use crate::queue::Queue;
use crate::replay::{Job, Trace, wide};
use crate::restart::Attempts;

/// How it is replayed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// Slots.
    pub slots: u32,
    /// The order.
    pub policy: Policy,
    /// Tasks that have waited for this go ahead.
    pub cap: Millis,
    /// What a tenant may be ahead of another, in milliseconds of slots.
    pub lead_max: f64,
    /// Part of the work that first attempts may waste; 0 makes none.
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
    /// When each task started, for the attempt that ended it.
    pub starts: Vec<Millis>,
    /// Part of the work that first attempts wasted.
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
    attempts: Attempts,
    tried: Vec<Millis>,
    starts: Vec<Millis>,
    /// When a slot is free again: which task, and the budget if it was an attempt that did not end it.
    ends: BinaryHeap<Reverse<(Millis, u32, Millis, bool)>>,
    free: u32,
    decisions: usize,
    /// Tenants by dense numbers, and for each the tasks that wait (or did), and what is owed to ranking them again.
    tenants: Vec<u32>,
    waiting: Vec<Vec<u32>>,
    owed: Vec<usize>,
}

/// A tenant's waiting tasks are ranked again once it has had a completion for each so many of them.
const WAITING_PER_RANKING: usize = 8;

impl Replay<'_> {
    fn limit(&self, task: u32) -> Millis {
        let job = &self.jobs[task as usize];
        if job.has_limit { job.limit } else { 0 }
    }

    fn rank(&self, task: u32) -> f32 {
        if self.options.policy == Policy::Fifo {
            return 0.0;
        }
        if self.options.clairvoyant {
            #[expect(clippy::cast_precision_loss, reason = "a rank")]
            return self.jobs[task as usize].run as f32;
        }
        let mut found: Prediction = self.predictor.predict(&self.keys[task as usize], self.limit(task));
        let tried = self.tried[task as usize];
        if tried > 0 {
            found = found.outlived(tried);
        }
        if let Some(budget) = self.attempts.next_budget(tried)
            && Attempts::is_worth(&found, budget)
        {
            found = Attempts::expected(found, budget);
        }
        found.rank(1)
    }

    fn push(&mut self, task: u32, now: Millis) {
        let tenant = self.tenants[task as usize];
        self.queue.push(task, tenant, self.rank(task), now);
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
        }
        self.waiting[tenant] = waiting;
    }

    fn end(&mut self, task: u32, budget: Millis, ended: bool, now: Millis) {
        self.free += 1;
        if budget > 0 {
            self.attempts.over(budget, 1, ended);
        }
        if !ended {
            self.tried[task as usize] = budget;
            self.push(task, now);
            return;
        }
        let run = self.jobs[task as usize].run;
        self.attempts.ended(run, 1);
        #[expect(clippy::cast_precision_loss, reason = "a sample")]
        let ran = run as f64;
        let limit = self.limit(task);
        self.predictor.learn(&self.keys[task as usize], limit, ran, false, None);
        self.rank_again(self.tenants[task as usize] as usize);
    }

    fn start(&mut self, now: Millis) {
        while self.free > 0 {
            let (predictor, keys, jobs) = (&self.predictor, &self.keys, self.jobs);
            let fair = self.options.lead_max.is_finite();
            let service = |task: u32| {
                let limit = jobs[task as usize].limit;
                if fair { f64::from(predictor.predict(&keys[task as usize], limit).log_mean).exp() } else { 0.0 }
            };
            let Some((task, _)) = self.queue.pop(now, service) else { break };
            self.decisions += 1;
            self.free -= 1;
            let run = self.jobs[task as usize].run;
            let tried = self.tried[task as usize];
            let found = self.predictor.predict(&self.keys[task as usize], self.limit(task));
            let found = if tried > 0 { found.outlived(tried) } else { found };
            let budget = self
                .attempts
                .next_budget(tried)
                .filter(|budget| Attempts::is_worth(&found, *budget) && self.attempts.admit(*budget, 1));
            let ran = budget.map_or(run, |budget| run.min(budget));
            self.starts[task as usize] = now;
            self.ends.push(Reverse((now + ran, task, budget.unwrap_or(0), ran == run)));
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
    let mut replay = Replay {
        tenants,
        waiting: vec![Vec::new(); numbers.len()],
        owed: vec![0; numbers.len()],
        options,
        jobs: &trace.jobs,
        keys: trace.jobs.iter().map(|job| Keys::new(&wide::facts(job))).collect(),
        queue: Queue::new(options.cap, options.lead_max),
        predictor: Predictor::new(options.cells, options.floor),
        attempts: Attempts::new(options.waste_max),
        tried: vec![0; trace.jobs.len()],
        starts: vec![Millis::MAX; trace.jobs.len()],
        ends: BinaryHeap::new(),
        free: options.slots,
        decisions: 0,
    };
    let mut next = 0;
    loop {
        let arrival = order.get(next).map_or(Millis::MAX, |task| submits[*task as usize]);
        let end = replay.ends.peek().map_or(Millis::MAX, |Reverse((end, ..))| *end);
        let now = arrival.min(end);
        if now == Millis::MAX {
            let Replay { starts, decisions, attempts, .. } = replay;
            return Outcome { starts, waste: attempts.waste(), decisions };
        }
        while let Some(Reverse((end, task, budget, ended))) = replay.ends.peek().copied()
            && end == now
        {
            replay.ends.pop();
            replay.end(task, budget, ended, now);
        }
        while let Some(task) = order.get(next).copied()
            && submits[task as usize] == now
        {
            replay.push(task, now);
            next += 1;
        }
        replay.start(now);
    }
}

//! Schedules tasks that need several slots at once on one machine: order, first attempts, backfilling.
//!
//! Sans-I/O: the caller says what was submitted and what ended, and asks what starts at a time. Invariants: the slots
//! in use never exceed the machine's; a task that waited for [`Aging::cap`] is reserved for before any other; what attempts
//! waste stays within [`Config::waste_max`]. Reservations are by declared limits. A task that declares none ([`Facts::limit`]
//! of 0) is taken to end within the 0.9 quantile of its prediction, and may delay what was reserved behind it.

mod entry;
mod hold;

use std::collections::VecDeque;

use entry::Entry;
use hold::Hold;

use crate::Millis;
use crate::backfill::{Machine, Waiting};
use crate::lengths::Lengths;
use crate::order::{Aging, Policy, deadline_rank};
use crate::predictor::{Facts, Keys, Prediction, Predictor, millis};
use crate::restart::Attempts;

/// Slots that are kept free for first attempts and short tasks: one of so many.
const KEEP_ONE_OF: u32 = 64;

/// How it schedules.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    /// Slots of the machine.
    pub slots: u32,
    /// The order.
    pub policy: Policy,
    /// The bound on what the order may do.
    pub aging: Aging,
    /// Part of the work that first attempts of restartable tasks may waste; 0 makes none.
    pub waste_max: f64,
    /// How fast the rank of a restartable task falls with the part of its limit that it has waited.
    pub urgency: f64,
    /// Run times under this count as this in a slowdown.
    pub floor: Millis,
    /// Cells of the predictor.
    pub cells: usize,
}

impl Config {
    /// The defaults for a machine of `slots`.
    #[must_use]
    pub fn new(slots: u32, policy: Policy) -> Self {
        let waste_max = if policy == Policy::Auto { 0.05 } else { 0.0 };
        Self { slots, policy, aging: Aging::default(), waste_max, urgency: 5.0, floor: 10_000, cells: 1 << 16 }
    }

    /// Whether whole distributions of run times are of use.
    fn has_lengths(&self) -> bool {
        self.waste_max > 0.0 || self.policy == Policy::Deadline
    }
}

/// A task as it is submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    /// The caller's name for it; dense, as there is a record for each.
    pub id: u32,
    /// What is known of it; its limit is 0 where it declares none.
    pub facts: Facts,
    /// When it shall have ended.
    pub deadline: Option<Millis>,
    /// Whether it may be ended and started again.
    pub restartable: bool,
    /// Its run time, where it is known: for comparisons with perfect foresight.
    pub known: Option<Millis>,
}

/// A task to be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// Which.
    pub task: u32,
    /// After this time it is to be ended and handed back, if this is a first attempt.
    pub budget: Option<Millis>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    /// Runs, and ends by its bound at this time.
    Running {
        end: Millis,
        ahead: bool,
    },
    Trying {
        end: Millis,
        budget: Millis,
    },
    Gone,
}

#[derive(Clone, Debug)]
struct Record {
    task: Task,
    keys: Keys,
    submitted: Millis,
    state: State,
    tried: Option<Millis>,
    /// As it was predicted when it was submitted.
    made: Prediction,
    /// How long it runs at most, for reservations.
    bound: Millis,
}

/// The scheduler of one machine.
#[derive(Clone, Debug)]
pub struct Scheduler {
    config: Config,
    machine: Machine,
    predictor: Predictor,
    /// Of restartable tasks, and of those with deadlines.
    lengths: Lengths,
    attempts: Attempts,
    hold: Hold,
    records: Vec<Option<Record>>,
    /// In the order of ranks, when not `dirty`.
    waiting: Vec<Entry>,
    dirty: bool,
    /// Tasks in the order of submission; those that wait no more are dropped from the front.
    submitted: VecDeque<u32>,
    /// Slots held by tasks that went ahead by their age.
    ahead: u32,
    queue: Vec<Waiting>,
    due: Vec<u32>,
    chosen: Vec<usize>,
}

impl Scheduler {
    /// A scheduler with nothing to do.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            machine: Machine::new(config.slots),
            predictor: Predictor::new(config.cells, config.floor),
            lengths: Lengths::new(if config.has_lengths() { config.cells / 2 } else { 0 }, config.floor),
            attempts: Attempts::new(config.waste_max),
            hold: Hold::default(),
            records: Vec::new(),
            waiting: Vec::new(),
            dirty: false,
            submitted: VecDeque::new(),
            ahead: 0,
            queue: Vec::new(),
            due: Vec::new(),
            chosen: Vec::new(),
            config,
        }
    }

    /// Tasks that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Slots that are free.
    #[must_use]
    pub fn free(&self) -> u32 {
        self.machine.free()
    }

    /// The part of the work that first attempts have wasted.
    #[must_use]
    pub fn waste(&self) -> f64 {
        self.attempts.waste()
    }

    fn predict(&self, record: &Record) -> Prediction {
        let prediction = match record.task.known {
            Some(run) => exact(run, self.config.floor),
            None => self.predictor.predict(&record.keys, record.task.facts.limit),
        };
        record.tried.map_or(prediction, |budget| prediction.outlived(budget))
    }

    /// What is predicted of a task, while it is here.
    #[must_use]
    pub fn prediction(&self, task: u32) -> Option<Prediction> {
        self.records.get(task as usize)?.as_ref().map(|record| self.predict(record))
    }

    fn entry(&self, record: &Record, now: Millis) -> Entry {
        let Facts { tenant, width, limit, .. } = record.task.facts;
        // What distributions are cut off at.
        let limit = if limit > 0 { limit } else { Millis::MAX };
        let fifo = Entry {
            #[expect(clippy::cast_precision_loss, reason = "a rank: times are far below 2^53")]
            rank: record.submitted as f64,
            fresh: None,
            submitted: record.submitted,
            worth: 0.0,
            cost: 0.0,
            work: 0.0,
            hold: 0.0,
            tenant,
            can_try: false,
            waiting: Waiting { task: record.task.id, width, limit: record.bound, keep: 0 },
        };
        if self.config.policy == Policy::Fifo {
            return fifo;
        }
        let prediction = self.predict(record);
        let tries = self.config.waste_max > 0.0 && record.task.restartable;
        let worth = f64::from(width) / f64::from(prediction.inverse);
        let unranked = Entry { worth, can_try: tries && record.tried.is_none(), ..fifo };
        if self.config.policy == Policy::Deadline {
            return self.by_deadline(record, &prediction, now, limit, unranked);
        }
        let rank = if tries && record.task.known.is_none() {
            let rank = self.lengths.rank(&record.keys, record.tried.unwrap_or(0), limit);
            f64::from(rank) + 0.5 * f64::from(width).ln()
        } else {
            f64::from(prediction.rank(width))
        };
        let keep =
            if tries { (self.config.slots / KEEP_ONE_OF).min(self.config.slots.saturating_sub(width)) } else { 0 };
        let waiting = Waiting { keep, ..unranked.waiting };
        Entry { rank, fresh: tries.then_some(rank), waiting, ..unranked }
    }

    /// The entry of a task in the order of deadlines; one without a deadline is in time whenever it ends.
    fn by_deadline(
        &self,
        record: &Record,
        prediction: &Prediction,
        now: Millis,
        limit: Millis,
        unranked: Entry,
    ) -> Entry {
        let width = unranked.waiting.width;
        let otherwise = f64::from(prediction.rank(width));
        let expected = f64::from(prediction.log_mean).exp();
        let (chance, needed, rank) = if let Some(deadline) = record.task.deadline {
            let left = deadline.saturating_sub(now);
            let (chance, needed) = match record.task.known {
                #[expect(clippy::cast_precision_loss, reason = "a rank")]
                Some(run) => (f64::from(u8::from(run <= left)), run as f64),
                None => self.lengths.within(&record.keys, left, limit),
            };
            (chance, needed, deadline_rank(needed, chance, left, width, otherwise))
        } else {
            (1.0, expected, otherwise)
        };
        let cost = hold::cost(needed, width, chance);
        let (work, hold) = (expected * f64::from(width), self.hold.part(cost, chance));
        Entry { rank, cost, work, hold, ..unranked }
    }

    /// What tasks with deadlines leave free, by what waits now.
    fn hold_back(&mut self) {
        let slots = self.config.slots;
        let ease = hold::ease(self.waiting.iter().map(|entry| entry.work).sum(), slots, &self.config.aging);
        for entry in &mut self.waiting {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a part of the slots")]
            let keep = (ease * entry.hold * f64::from(slots)) as u32;
            entry.waiting.keep = keep.min(slots.saturating_sub(entry.waiting.width));
        }
    }

    /// A task was submitted. Tasks wider than the machine are refused.
    pub fn submit(&mut self, task: Task, now: Millis) -> bool {
        if task.facts.width > self.config.slots || task.facts.width == 0 {
            return false;
        }
        let keys = Keys::new(&task.facts);
        let made = self.predictor.predict(&keys, task.facts.limit);
        let bound = match (task.facts.limit, task.known) {
            (1.., _) => task.facts.limit,
            (_, Some(run)) => run,
            (_, None) => millis(made.q90),
        };
        let record = Record { task, keys, submitted: now, state: State::Waiting, tried: None, made, bound };
        let entry = self.entry(&record, now);
        if self.config.policy == Policy::Deadline {
            self.hold.learn(entry.cost);
        }
        self.waiting.push(entry);
        self.dirty = true;
        let place = task.id as usize;
        if self.records.len() <= place {
            self.records.resize_with(place + 1, || None);
        }
        self.records[place] = Some(record);
        self.submitted.push_back(task.id);
        true
    }

    /// A task that ran has ended after `run`, by itself. `false` when it does not run.
    pub fn ended(&mut self, task: u32, run: Millis, failed: bool, now: Millis) -> bool {
        let Some(record) = self.records.get_mut(task as usize).and_then(Option::as_mut) else { return false };
        let facts = record.task.facts;
        let end = match record.state {
            State::Running { end, ahead } => {
                self.ahead -= if ahead { facts.width } else { 0 };
                end
            }
            State::Trying { end, budget } => {
                self.attempts.over(budget, facts.width, true);
                end
            }
            State::Waiting | State::Gone => return false,
        };
        record.state = State::Gone;
        let (keys, made) = (record.keys, record.made);
        self.machine.finish(end, task);
        self.attempts.ended(run, facts.width);
        if self.config.has_lengths() {
            self.lengths.learn(&keys, run);
        }
        #[expect(clippy::cast_precision_loss, reason = "a sample")]
        self.predictor.learn(&keys, facts.limit, run as f64, failed, Some(&made));
        self.rank_again(facts.tenant, now);
        true
    }

    /// A first attempt was ended at its budget: the task waits again. `false` when none runs.
    pub fn outlived(&mut self, task: u32, now: Millis) -> bool {
        let Some(record) = self.records.get_mut(task as usize).and_then(Option::as_mut) else { return false };
        let State::Trying { end, budget } = record.state else { return false };
        record.state = State::Waiting;
        record.tried = Some(budget);
        if record.task.facts.limit == 0 && record.task.known.is_none() {
            record.bound = record.bound.max(millis(record.made.outlived(budget).q90));
        }
        self.machine.finish(end, task);
        self.attempts.over(budget, record.task.facts.width, false);
        let record = record.clone();
        self.waiting.push(self.entry(&record, now));
        self.dirty = true;
        true
    }

    /// What the tenant's tasks are expected to take has changed; with deadlines everything has, as time went on.
    fn rank_again(&mut self, tenant: u32, now: Millis) {
        if self.config.policy == Policy::Fifo {
            return;
        }
        let mut waiting = std::mem::take(&mut self.waiting);
        for entry in &mut waiting {
            if (entry.tenant == tenant || self.config.policy == Policy::Deadline)
                && let Some(record) = &self.records[entry.waiting.task as usize]
            {
                *entry = self.entry(record, now);
                self.dirty = true;
            }
        }
        self.waiting = waiting;
    }

    fn state(&self, task: u32) -> State {
        self.records[task as usize].as_ref().map_or(State::Gone, |record| record.state)
    }

    /// Tasks that are due by their age, in the order of submission, into `due`.
    fn collect_due(&mut self, now: Millis) {
        self.due.clear();
        while self
            .submitted
            .front()
            .is_some_and(|task| matches!(self.state(*task), State::Running { .. } | State::Gone))
        {
            self.submitted.pop_front();
        }
        let mut held = self.ahead;
        for task in &self.submitted {
            let Some(record) = &self.records[*task as usize] else { continue };
            if record.state != State::Waiting {
                continue;
            }
            let width = record.task.facts.width;
            if !self.config.aging.is_due(now - record.submitted, width, held, self.config.slots) {
                break;
            }
            held += width;
            self.due.push(*task);
        }
    }

    /// What starts at `now`, appended to `starts`.
    pub fn starts(&mut self, now: Millis, starts: &mut Vec<Start>) {
        if self.machine.free() == 0 || self.waiting.is_empty() {
            return;
        }
        for entry in &mut self.waiting {
            self.dirty |= entry.wait(now, self.config.urgency);
        }
        if self.dirty {
            self.waiting.sort_by(Entry::by_rank);
            self.dirty = false;
        }
        if self.config.policy == Policy::Deadline {
            self.hold_back();
        }
        self.collect_due(now);
        self.queue.clear();
        for task in &self.due {
            let Some(record) = &self.records[*task as usize] else { continue };
            let width = record.task.facts.width;
            self.queue.push(Waiting { task: *task, width, limit: record.bound, keep: 0 });
        }
        let (due, queue) = (&self.due, &mut self.queue);
        queue.extend(self.waiting.iter().map(|entry| entry.waiting).filter(|waiting| !due.contains(&waiting.task)));
        self.chosen.clear();
        self.machine.choose(now, &self.queue, &mut self.chosen);
        for place in &self.chosen {
            let Waiting { task, width, limit, .. } = self.queue[*place];
            let ahead = *place < self.due.len();
            self.ahead += if ahead { width } else { 0 };
            if let Some(record) = &mut self.records[task as usize] {
                record.state = State::Running { end: now.saturating_add(limit), ahead };
            }
            starts.push(Start { task, budget: None });
        }
        self.forget_started();
        self.attempt(now, starts);
    }

    fn forget_started(&mut self) {
        let records = &self.records;
        self.waiting.retain(|entry| {
            records[entry.waiting.task as usize].as_ref().is_some_and(|record| record.state == State::Waiting)
        });
    }

    /// First attempts in what is left free, without delaying the first that waits.
    fn attempt(&mut self, now: Millis, starts: &mut Vec<Start>) {
        let Some(budget) = self.attempts.budget() else { return };
        if self.machine.free() == 0 {
            return;
        }
        let first = self.queue.iter().find(|waiting| self.state(waiting.task) == State::Waiting).copied();
        let Some(first) = first else { return };
        let mut tries: Vec<(f64, Waiting)> = Vec::new();
        for entry in &self.waiting {
            if entry.can_try && entry.waiting.width <= self.machine.free() {
                let limit = budget.min(entry.waiting.limit);
                tries.push((entry.worth, Waiting { limit, keep: 0, ..entry.waiting }));
            }
        }
        tries.sort_by(|(a, x), (b, y)| a.total_cmp(b).then(x.task.cmp(&y.task)));
        self.queue.clear();
        // The first keeps its reservation: it is known not to fit.
        self.queue.push(first);
        self.queue.extend(tries.iter().map(|(_, waiting)| *waiting));
        let (attempts, queue) = (&mut self.attempts, &mut self.queue);
        let mut is_first = true;
        queue.retain(|waiting| std::mem::take(&mut is_first) || attempts.admit(waiting.limit, waiting.width));
        self.chosen.clear();
        self.machine.choose(now, &self.queue, &mut self.chosen);
        for (place, waiting) in self.queue.iter().enumerate().skip(1) {
            if !self.chosen.contains(&place) {
                self.attempts.withdraw(waiting.limit, waiting.width);
            } else if let Some(record) = &mut self.records[waiting.task as usize] {
                record.state = State::Trying { end: now + waiting.limit, budget: waiting.limit };
                starts.push(Start { task: waiting.task, budget: Some(waiting.limit) });
            }
        }
        self.forget_started();
    }
}

/// The prediction of what is known.
fn exact(run: Millis, floor: Millis) -> Prediction {
    #[expect(clippy::cast_precision_loss, reason = "a prediction")]
    let (run, floor) = (run.max(1) as f32, floor as f32);
    let log = run.ln();
    let inverse = 1.0 / run.max(floor);
    Prediction { log_mean: log, inverse, q50: log, q90: log, failed: 0.0, level: 6, samples: f32::MAX }
}

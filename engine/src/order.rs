//! Which lane of a queue is next: what a leader learned about run times, and how far that may be used.
//!
//! Volatile and the leader's own: floats never enter replicated state, and losing them costs quality only. Tasks of one queue, kind
//! and resource need are one class; they are predicted alike, so lanes are ordered and not tasks, and no task pays for it.
//!
//! Bounds, under every policy:
//! - priorities go first, and within a class tasks go in the order in which they became ready, or by [`deadline`]; those of one workflow
//!   take each other's turns (`workflow/paths.rs`);
//! - once the oldest task in line has waited for the cap ([`Order::cap_us`]), every second frame takes the oldest, as long as tasks that went so hold less
//!   than half of the queue's leases, or none;
//! - `auto` leaves the order of readiness only while replays of what was just served, by its own run times, say with confidence
//!   that the learned order is better.

use hashbrown::HashMap;
use taskmaster_protocol::PartitionId;
use taskmaster_scheduler::Millis;
use taskmaster_scheduler::chance::Outcomes;
use taskmaster_scheduler::guard::Guard;
use taskmaster_scheduler::lengths::{self, Attempt, Lengths};
use taskmaster_scheduler::order::Policy;
use taskmaster_scheduler::predictor::{Facts, Keys, Prediction, Predictor};
use taskmaster_scheduler::shadow::{self, Comparison, Restartable};
use taskmaster_scheduler::straggler::{Late, Record};

use crate::dispatch::PRIORITIES;
use crate::hash::{FixedState, mix_bytes};
use crate::resources::Resources;

pub(crate) mod deadline;
mod judging;
mod recent;

use deadline::Ends;
pub(crate) use judging::LINE_MAX;
use recent::Recent;

/// A task that waited for so long goes ahead of all ranks, in microseconds; or for so many mean run times of its queue, if that is longer.
pub(crate) const AGED_US: u64 = 600_000_000;
const AGED_RUNS: u64 = 50;
/// The mean is that of the latest: each counts as one of so many.
const MEAN_RUNS: u64 = 64;
/// Between two looks for such tasks, in microseconds.
const AGE_LOOK_US: u64 = 50_000;
/// Most classes of a shard; tasks of further ones are predicted like each other, as this one.
const CLASSES_MAX: usize = 16_384;
const OTHERS: u32 = 0;
/// Cells of the predictor's table.
const CELLS: usize = 1 << 13;
/// Run times under this are alike to a slowdown, in milliseconds.
const FLOOR_MS: i64 = 10;
/// A class with so many samples learns from one of its tasks at most in each of [`LEARN_US`] microseconds.
const SAMPLES_MANY: u32 = 64;
const LEARN_US: u64 = 2_000;
/// After this time the rank of a class is made anew, since others of its kind have taught more, in microseconds.
const RANK_US: u64 = 1_000_000;
/// Samples of its own, by weight, without which no attempt of a class is late.
const LATE_WEIGHT_MIN: f32 = 5.0;
/// Samples of its own, by weight, without which no task of a class is given up.
const LENGTHS_WEIGHT_MIN: f32 = 20.0;
/// Cells of the table of distributions, of 264 bytes; there is none before the first restartable task.
const LENGTHS_CELLS: usize = 1 << 12;
/// Part of what restartable tasks use that may be lost by giving some up.
pub(crate) const WASTE_MAX: f64 = 0.05;
/// Run times that a class remembers for replays.
const RUNS: usize = 32;
/// Parts of a class's attempts.
const SUCCEEDED: u32 = 1;
const FAILED: u32 = 2;
/// Longer attempts count as this in a mean: a week.
const RUN_US_MAX: u64 = 604_800_000_000;
/// Most queues of a shard of which more is remembered than what was served last.
const REMEMBERED_MAX: u32 = 256;

/// A class of tasks.
#[derive(Debug)]
struct Class {
    keys: Keys,
    width: u32,
    /// Its tasks are restartable. What they outlived before they were given up, in milliseconds, and the class of those that did not.
    is_restartable: bool,
    outlived: Millis,
    base: u32,
    rank: f32,
    /// How an attempt starts, if enough is known for one to be given up.
    attempt: Option<Attempt>,
    /// Run times in one of two and nine of ten cases, in microseconds.
    quantiles_us: [u64; 2],
    ranked_us: u64,
    learned_us: u64,
    samples: u32,
    /// When an attempt is late, if enough is known, and how second attempts fared.
    late: Option<Late>,
    seconds: Record,
    /// The last run times, in milliseconds.
    runs: [f32; RUNS],
}

/// What tells classes of a queue apart.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Alike<'a> {
    pub(crate) kind: &'a str,
    pub(crate) resources: &'a Resources,
    pub(crate) restartable: bool,
    /// The magnitude of the payloads ([`crate::contract::payload_size`]).
    pub(crate) size: u8,
}

/// The same, with the queue.
type Name = (u32, String, Resources, bool, u8);

impl Alike<'_> {
    fn name(&self, queue: u32) -> Name {
        (queue, self.kind.to_owned(), self.resources.clone(), self.restartable, self.size)
    }
}

/// What a shard has learned.
pub(crate) struct Learned {
    predictor: Predictor,
    /// Distributions, of restartable tasks alone.
    lengths: Option<Lengths>,
    classes: Vec<Class>,
    by_name: HashMap<Name, u32, FixedState>,
    /// Classes of tasks that were given up, by that of those that were not and what they outlived.
    by_outlived: HashMap<(u32, Millis), u32, FixedState>,
    /// Something was learned since it was last asked for.
    is_new: bool,
    /// Queues of which much is remembered.
    remembered: u32,
}

impl core::fmt::Debug for Learned {
    fn fmt(&self, formatter: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(formatter, "Learned({} classes)", self.classes.len())
    }
}

impl Default for Learned {
    fn default() -> Self {
        Self {
            predictor: Predictor::new(CELLS, FLOOR_MS),
            lengths: None,
            classes: Vec::new(),
            by_name: HashMap::default(),
            by_outlived: HashMap::default(),
            is_new: false,
            remembered: 0,
        }
    }
}

fn short(text: &str) -> u32 {
    u32::try_from(mix_bytes(0, text.as_bytes()) >> 32).expect("half of it")
}

#[expect(clippy::cast_precision_loss, reason = "a run time")]
fn millis(us: u64) -> f64 {
    us as f64 / 1_000.0
}

pub(crate) fn whole_millis(us: u64) -> Millis {
    Millis::try_from(us / 1_000).unwrap_or(Millis::MAX)
}

/// In microseconds.
pub(crate) fn micros_of(ms: Millis) -> u64 {
    u64::try_from(ms).unwrap_or(0).saturating_mul(1_000)
}

impl Learned {
    /// The class of tasks of a queue, by number and name, made on first use; `tenant` is the queue's namespace. What is learned goes
    /// by the name, since numbers are given anew after a restart.
    pub(crate) fn class(&mut self, queue: (u32, &str), tenant: &str, alike: &Alike<'_>) -> u32 {
        let name = alike.name(queue.0);
        if let Some(&class) = self.by_name.get(&name) {
            return class;
        }
        if self.classes.is_empty() {
            self.add_class(Keys::new(&Facts { width: 1, ..Facts::default() }), 1, false);
        }
        if self.classes.len() >= CLASSES_MAX {
            return OTHERS;
        }
        let width = u32::try_from(alike.resources.cpu_milli.div_ceil(1_000)).unwrap_or(u32::MAX).max(1);
        let labels = short(queue.1);
        let facts = Facts { tenant: short(tenant), kind: short(alike.kind), labels, width, ..Facts::default() };
        if alike.restartable {
            self.lengths.get_or_insert_with(|| Lengths::new(LENGTHS_CELLS, FLOOR_MS));
        }
        let class = self.add_class(Keys::new(&facts).marked(alike.size.into()), width, alike.restartable);
        self.by_name.insert(name, class);
        class
    }

    fn add_class(&mut self, keys: Keys, width: u32, is_restartable: bool) -> u32 {
        let class = u32::try_from(self.classes.len()).expect("bounded above");
        self.classes.push(Class {
            keys,
            width,
            is_restartable,
            outlived: 0,
            base: class,
            rank: 0.0,
            attempt: None,
            quantiles_us: [0; 2],
            ranked_us: 0,
            learned_us: 0,
            samples: 0,
            late: None,
            seconds: Record::default(),
            runs: [0.0; RUNS],
        });
        class
    }

    /// A class that was made before.
    pub(crate) fn find_class(&self, queue: u32, alike: &Alike<'_>) -> Option<u32> {
        self.by_name.get(&alike.name(queue)).copied()
    }

    /// The class of tasks of a class that were given up when they had run for so long, made on first use.
    pub(crate) fn outlived(&mut self, class: u32, ran_us: u64) -> u32 {
        let base = self.classes[class as usize].base;
        let name = (base, lengths::told_apart(whole_millis(ran_us)));
        if let Some(&class) = self.by_outlived.get(&name) {
            return class;
        }
        if self.classes.len() >= CLASSES_MAX {
            return base;
        }
        let &Class { keys, width, is_restartable, .. } = &self.classes[base as usize];
        let class = self.add_class(keys, width, is_restartable);
        (self.classes[class as usize].outlived, self.classes[class as usize].base) = (name.1, base);
        self.by_outlived.insert(name, class);
        class
    }

    fn predict(&self, known: &Class) -> Prediction {
        let expected = self.predictor.predict(&known.keys, 0);
        if known.outlived > 0 { expected.outlived(known.outlived) } else { expected }
    }

    /// The same of attempts that succeed and of those that fail, as far as any did.
    fn outcomes_of(&self, known: &Class, all: &Prediction) -> Outcomes {
        let part = |part| {
            let of = self.predictor.predict_part(&known.keys, part).unwrap_or(*all);
            if known.outlived > 0 { of.outlived(known.outlived) } else { of }
        };
        Outcomes { succeeds: part(SUCCEEDED), fails: part(FAILED), failed: all.failed }
    }

    /// What is expected of attempts of a class that succeed and that fail.
    pub(crate) fn outcomes(&self, class: u32) -> Outcomes {
        let known = &self.classes[class as usize];
        self.outcomes_of(known, &self.predict(known))
    }

    /// How a task of a class starts that was given up after so long, or never (0), if enough is known of its like.
    fn attempt_of(&self, known: &Class, outlived: Millis) -> Option<Attempt> {
        let lengths = self.lengths.as_ref().filter(|_| known.is_restartable)?;
        let is_known = lengths.weight(&known.keys) >= LENGTHS_WEIGHT_MIN;
        is_known.then(|| lengths.attempt(&known.keys, outlived).wide(known.width))
    }

    /// What is expected of a class at the moment, made anew if more was learned.
    fn current(&mut self, class: u32, now_us: u64) -> &Class {
        let known = &self.classes[class as usize];
        if known.ranked_us == 0 || now_us.saturating_sub(known.ranked_us) >= RANK_US {
            let expected = self.predict(known);
            let succeeds = self.outcomes_of(known, &expected).succeeds;
            let attempt = self.attempt_of(known, known.outlived);
            let late = Late::of(&succeeds).filter(|_| self.predictor.weight(&known.keys) >= LATE_WEIGHT_MIN);
            let known = &mut self.classes[class as usize];
            (known.ranked_us, known.late, known.attempt) = (now_us, late, attempt);
            (known.rank, known.quantiles_us) = (expected.rank(known.width), deadline::quantiles_us(&succeeds));
        }
        &self.classes[class as usize]
    }

    /// The rank of a class, the lowest first; `gives_up`: where restartable tasks may be given up.
    pub(crate) fn rank(&mut self, class: u32, now_us: u64, gives_up: bool) -> f32 {
        let known = self.current(class, now_us);
        known.attempt.filter(|_| gives_up).map_or(known.rank, |attempt| attempt.rank)
    }

    /// As [`Self::rank`], by what is known at the moment, for who asks seldom.
    pub(crate) fn rank_at_present(&self, class: u32, gives_up: bool) -> f32 {
        let known = &self.classes[class as usize];
        let attempt = self.attempt_of(known, known.outlived).filter(|_| gives_up);
        attempt.map_or_else(|| self.predict(known).rank(known.width), |attempt| attempt.rank)
    }

    /// When a task of a class is judged that starts now and ran for so long when it was given up before (0: it was not); in microseconds from
    /// its start. `None` while too little is known.
    pub(crate) fn first_look_us(&mut self, class: u32, outlived_us: u64, now_us: u64) -> Option<u64> {
        let fresh = self.current(class, now_us).attempt?;
        let known = &self.classes[class as usize];
        let attempt = if outlived_us == 0 { fresh } else { self.attempt_of(known, whole_millis(outlived_us))? };
        attempt.until.map(micros_of)
    }

    /// How a restartable task of a class goes on that has run for so long.
    pub(crate) fn goes_on(&self, class: u32, ran_us: u64) -> Option<Attempt> {
        let known = &self.classes[class as usize];
        Some(self.lengths.as_ref()?.going_on(&known.keys, whole_millis(ran_us)).wide(known.width))
    }

    /// When tasks of a class end that start now.
    pub(crate) fn ends(&mut self, class: u32, now_us: u64) -> Ends {
        Ends::after(self.current(class, now_us).quantiles_us, now_us)
    }

    /// How long a task of a class runs in nine of ten cases, in microseconds, if enough is known of its own kind.
    pub(crate) fn most_us(&self, class: u32) -> Option<u64> {
        let known = &self.classes[class as usize];
        let is_known = self.predictor.weight(&known.keys) >= LATE_WEIGHT_MIN;
        is_known.then(|| deadline::quantiles_us(&self.outcomes(class).succeeds)[1])
    }

    /// When attempts of a class are late, if enough is known.
    pub(crate) fn late(&mut self, class: u32, now_us: u64) -> Option<Late> {
        self.current(class, now_us).late
    }

    /// Whether a chance for a second attempt of a class is taken.
    pub(crate) fn takes_second(&mut self, class: u32) -> bool {
        self.classes[class as usize].seconds.takes()
    }

    /// A task of a class ended that had two attempts, by the second or not.
    pub(crate) fn second_ended(&mut self, class: u32, won: bool) {
        self.classes[class as usize].seconds.ended(won);
    }

    /// What is expected of a class, and how many of its tasks taught it, of those before a restart as many as count still.
    pub(crate) fn expected(&self, class: u32) -> (Prediction, u32) {
        let known = &self.classes[class as usize];
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a bounded weight")]
        let counting = self.predictor.weight(&known.keys).round() as u32;
        (self.predict(known), known.samples.max(counting))
    }

    /// How long a task of a class runs in one of two cases if it succeeds, in milliseconds.
    pub(crate) fn median_ms(&self, class: u32) -> u32 {
        let median_us = deadline::quantiles_us(&self.outcomes(class).succeeds)[0];
        u32::try_from(median_us / 1_000).unwrap_or(u32::MAX)
    }

    /// What is expected of a class, and how many places its tasks take.
    fn expected_of(&self, class: u32) -> (Prediction, u32) {
        let known = &self.classes[class as usize];
        (self.predict(known), known.width)
    }

    /// A task of a class ended after so many microseconds; whether that was longer than nine in ten were predicted to take, if it
    /// was looked at.
    pub(crate) fn learn(&mut self, class: u32, run_us: u64, failed: bool, now_us: u64) -> Option<bool> {
        let known = &mut self.classes[class as usize];
        if known.samples >= SAMPLES_MANY && now_us.saturating_sub(known.learned_us) < LEARN_US {
            return None;
        }
        let run = millis(run_us);
        let made = self.predictor.predict(&known.keys, 0);
        self.predictor.learn(&known.keys, 0, run, failed, Some(&made));
        // Only where some fail those that do not are others than all.
        if failed || self.predictor.weight_of_part(&known.keys, FAILED) > 0.0 {
            self.predictor.learn_part(&known.keys, if failed { FAILED } else { SUCCEEDED }, run);
        }
        if let Some(lengths) = self.lengths.as_mut().filter(|_| known.is_restartable) {
            lengths.learn(&known.keys, whole_millis(run_us));
        }
        self.is_new = true;
        #[expect(clippy::cast_possible_truncation, reason = "a run time")]
        let short = run as f32;
        known.runs[known.samples as usize % RUNS] = short;
        (known.samples, known.learned_us, known.ranked_us) = (known.samples.saturating_add(1), now_us, 0);
        Some(f64::from(made.q90) < run.max(1.0).ln())
    }

    /// What was learned, as bytes for after a restart: run times, and distributions; `None` if nothing was since the last call.
    pub(crate) fn save(&mut self) -> Option<[Vec<u8>; 2]> {
        let lengths = || self.lengths.as_ref().map_or_else(Vec::new, Lengths::to_bytes);
        core::mem::take(&mut self.is_new).then(|| [self.predictor.to_bytes(), lengths()])
    }

    /// Takes over what was saved; how many cells of run times.
    pub(crate) fn restore(&mut self, [times, lengths]: [&[u8]; 2]) -> usize {
        if !lengths.is_empty() {
            self.lengths.get_or_insert_with(|| Lengths::new(LENGTHS_CELLS, FLOOR_MS)).restore(lengths);
        }
        self.predictor.restore(times)
    }

    /// One of the last run times of a class, in milliseconds.
    fn run(&self, class: u32, pick: usize) -> Option<f32> {
        let known = &self.classes[class as usize];
        let count = RUNS.min(known.samples as usize);
        (count > 0).then(|| known.runs[pick % count])
    }
}

impl Restartable for Learned {
    fn attempt(&self, class: u32, outlived: Millis) -> Option<Attempt> {
        let known = &self.classes[class as usize];
        let is_current = outlived == 0 && known.outlived == 0 && known.ranked_us != 0;
        if is_current { known.attempt } else { self.attempt_of(known, outlived) }
    }

    fn going_on(&self, class: u32, age: Millis) -> Attempt {
        self.goes_on(class, micros_of(age)).expect("it was to be judged")
    }
}

/// How one queue is ordered.
#[derive(Debug, Default)]
pub(crate) struct Order {
    pub(crate) policy: Policy,
    /// No restartable task is given up.
    pub(crate) keeps_all: bool,
    guard: Guard,
    is_better: bool,
    /// When orders were compared last.
    judged_us: u64,
    /// No guard is asked.
    pub(crate) is_trusted: bool,
    recent: Recent,
    /// Mean run time of the latest attempts, in microseconds; 0 before the first.
    mean_us: u64,
    /// By priority.
    aging: [Aging; PRIORITIES],
    /// Leases of tasks that went by age.
    aged: u64,
}

/// Tasks of one priority that have waited for too long.
#[derive(Clone, Copy, Debug, Default)]
struct Aging {
    look_us: u64,
    is_overdue: bool,
    took_oldest: bool,
}

/// By what lanes go that are in line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// By turns, each in order of readiness.
    Turns,
    /// By what was learned of their classes.
    Rank,
    /// By the deadlines of their tasks.
    Deadline,
}

impl Order {
    /// By what lanes go now.
    pub(crate) const fn by(&self) -> By {
        match self.policy {
            Policy::Fifo => By::Turns,
            Policy::Shortest => By::Rank,
            Policy::Deadline => By::Deadline,
            Policy::Auto if self.is_better || self.is_trusted => By::Rank,
            Policy::Auto => By::Turns,
        }
    }

    /// Whether tasks of a workflow take each other's turns, and if so whether only those of one class.
    pub(crate) fn goes_by_paths(&self) -> Option<bool> {
        matches!(self.policy, Policy::Auto | Policy::Shortest).then(|| self.by() == By::Rank)
    }

    /// Whether restartable tasks may be given up now, and go by the rank that this gives them.
    pub(crate) fn gives_up(&self) -> bool {
        self.policy == Policy::Auto && self.by() == By::Rank && !self.keeps_all
    }

    /// Whether the next frame of a priority takes the oldest task if it has waited for too long: then those are to be looked for.
    pub(crate) fn looks_for_oldest(&mut self, priority: usize, now_us: u64) -> bool {
        let aging = &mut self.aging[priority];
        let looks = !aging.took_oldest && (aging.is_overdue || now_us >= aging.look_us);
        aging.took_oldest = false;
        if looks {
            aging.look_us = now_us + AGE_LOOK_US;
        }
        looks
    }

    /// How many tasks may go by age now, of a queue that holds so many leases: those that did hold half of them at most, or one.
    pub(crate) fn may_age(&self, leased: u64) -> u32 {
        let count = leased.saturating_sub(2 * self.aged).max(u64::from(self.aged == 0));
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// So many tasks go by age.
    pub(crate) fn aged_begin(&mut self, count: u32) {
        self.aged += u64::from(count);
    }

    /// The lease of one ends.
    pub(crate) const fn aged_ends(&mut self) {
        self.aged -= 1;
    }

    /// Whether there are such tasks, and one of them went first.
    pub(crate) const fn oldest_went(&mut self, priority: usize, is_overdue: bool, took_oldest: bool) {
        let aging = &mut self.aging[priority];
        (aging.is_overdue, aging.took_oldest) = (is_overdue, took_oldest);
    }

    /// Whether tasks that begin now are to be noted.
    pub(crate) fn is_watching(&mut self, learned: &mut Learned, now_us: u64) -> bool {
        if self.recent.noted() == 0 && learned.remembered < REMEMBERED_MAX {
            learned.remembered += 1;
            self.recent.remember();
        }
        self.recent.is_watching(now_us)
    }

    /// A task began under a lease, and so many are held; times in microseconds: since when it was ready, now, and its deadline or 0.
    pub(crate) fn note(&mut self, lease: (PartitionId, u64), times_us: [u64; 3], class: u32, leased: u64) {
        self.recent.note(lease, times_us, class, leased);
    }

    /// Whether enough was noted for a replay, and one is wanted.
    pub(crate) fn is_full(&mut self) -> bool {
        self.recent.take_ended() && self.policy == Policy::Auto
    }

    /// The attempt of a lease ended after so many microseconds.
    pub(crate) fn ran(&mut self, lease: (PartitionId, u64), run_us: u64) {
        self.recent.ended(lease, run_us);
        let run_us = run_us.min(RUN_US_MAX);
        self.mean_us = match self.mean_us {
            0 => run_us,
            mean_us => (mean_us * (MEAN_RUNS - 1) + run_us) / MEAN_RUNS,
        };
    }

    /// A task that has waited for so long goes ahead of all ranks, in microseconds.
    pub(crate) fn cap_us(&self) -> u64 {
        AGED_US.max(AGED_RUNS * self.mean_us)
    }

    /// Tasks that are ready since then, or longer, go ahead of all ranks.
    pub(crate) fn aged_us(&self, now_us: u64) -> u64 {
        now_us.saturating_sub(self.cap_us())
    }

    /// What another policy would have made of what was served, if enough was; and of how many tasks that is known.
    pub(crate) fn compare(&self, learned: &Learned, shadow: Policy, now_us: u64) -> (Option<Comparison>, usize) {
        let played = self.recent.played(learned, now_us);
        #[expect(clippy::cast_precision_loss, reason = "a threshold")]
        let floor = FLOOR_MS as f64;
        let count = played.iter().map(|(tasks, _)| tasks.len()).sum();
        (shadow::compare(&played, self.policy, shadow, millis(self.cap_us()), floor), count)
    }

    /// A task of the queue ended. Where predictions do not hold any more nothing is ordered by them from here on.
    pub(crate) fn ended(&mut self, missed: bool) {
        self.guard.completion(missed);
        self.is_better &= !self.guard.has_drifted();
    }

    /// What is said to who asks why.
    pub(crate) fn in_words(&self) -> String {
        let policy = self.policy.name();
        match (self.policy, self.is_better) {
            (Policy::Auto, true) => {
                let gain = self.guard.lower_bound().exp();
                format!("{policy}: the shortest first, as replays show mean slowdowns at least {gain:.2} times lower")
            }
            (Policy::Auto, false) => format!("{policy}: in the order of readiness, as nothing is shown to be better"),
            (Policy::Shortest, _) => format!("{policy} first, by prediction"),
            (Policy::Deadline, _) => format!("{policy}: the earliest that can be met first, the hopeless last"),
            (Policy::Fifo, _) => format!("{policy}: in the order of readiness"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overdue_tasks_get_every_second_frame() {
        let mut order = Order { policy: Policy::Shortest, ..Order::default() };
        let mut turns = Vec::new();
        for _ in 0..6 {
            let looks = order.looks_for_oldest(1, AGED_US);
            if looks {
                order.oldest_went(1, true, true);
            }
            turns.push(looks);
        }
        assert_eq!(turns, [true, false, true, false, true, false]);
        // What another priority has is its own affair; one that found none looks again after a while.
        assert!(order.looks_for_oldest(2, AGED_US));
        order.oldest_went(2, false, false);
        assert!(
            !order.looks_for_oldest(2, AGED_US + AGE_LOOK_US - 1) && order.looks_for_oldest(2, AGED_US + AGE_LOOK_US)
        );
    }
}

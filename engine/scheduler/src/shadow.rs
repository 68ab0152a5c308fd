//! A policy in shadow: tasks that a queue ran are played again in virtual time, under that policy and under another one, from when they
//! were ready, for as long as they ran, on as many places as there were. What comes out is what the guard compares, and what a
//! user is told before a policy is used.

use crate::Millis;
use crate::guard::Guard;
use crate::lengths::Attempt;
use crate::order::{Policy, Standing};
use crate::restart::Ledger;

/// Blocks by which the confidence in a gain is judged, as far as there are tasks for them.
const BLOCKS: usize = 8;
/// Tasks of a block.
const BLOCK_MIN: usize = 32;
const BLOCK_MAX: usize = 256;
/// Tasks under which nothing is said.
pub const SAMPLES_MIN: usize = BLOCKS * BLOCK_MIN;

/// A task that ran; times in milliseconds since any moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ran {
    /// When it became ready.
    pub ready: f64,
    /// When it began.
    pub began: f64,
    /// How long it ran.
    pub run: f64,
    /// Its rank by prediction, the lowest first.
    pub rank: f32,
    /// How long tasks like it run in one of two cases, and in nine of ten, by prediction.
    pub quantiles: [f64; 2],
    /// Its deadline.
    pub deadline: Option<f64>,
    /// Tasks of the same are predicted alike.
    pub group: u32,
}

/// How tasks are played.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stage {
    /// Places.
    pub places: usize,
    /// When the first place is free, and how much later each further one.
    pub from: f64,
    /// See there.
    pub every: f64,
    /// A task that waited for so long goes first, by turns.
    pub cap: f64,
    /// Run times under this count as this in a slowdown.
    pub floor: f64,
}

/// What became of tasks, in their order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Played {
    /// Waits, in milliseconds.
    pub waits: Vec<f64>,
    /// The sum of their bounded slowdowns.
    pub slowdowns: f64,
    /// The longest line.
    pub longest: usize,
    /// Tasks that ended after their deadline.
    pub late: usize,
}

impl Played {
    /// The mean bounded slowdown.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a count")]
    pub fn slowdown(&self) -> f64 {
        self.slowdowns / self.waits.len().max(1) as f64
    }
}

/// The place of a task in line at a time: the lowest first.
fn turn(task: &Ran, policy: Policy, at: f64) -> (Standing, f64) {
    match policy {
        Policy::Fifo => (Standing::Open, task.ready),
        Policy::Shortest | Policy::Auto => (Standing::Open, f64::from(task.rank)),
        Policy::Deadline => {
            let standing = Standing::of(task.deadline, task.quantiles.map(|run| at + run));
            (standing, task.deadline.unwrap_or(task.ready))
        }
    }
}

/// What is known of tasks that may be given up for others ([`crate::lengths`]), by [`Ran::group`].
pub trait Restartable {
    /// How one starts that outlived so much before; `None`: it is not given up.
    fn attempt(&self, group: u32, outlived: Millis) -> Option<Attempt>;
    /// How one may go on that has run for so long.
    fn going_on(&self, group: u32, age: Millis) -> Attempt;
}

/// Plays tasks, in the order in which they became ready, under a policy ([`Policy::Auto`]: as [`Policy::Shortest`]).
///
/// # Panics
/// Never: times that are no numbers count as late ones.
#[must_use]
pub fn play(tasks: &[Ran], policy: Policy, stage: &Stage) -> Played {
    Play::new(tasks, policy, stage, None).played()
}

/// Plays tasks, whose times are numbers, the lowest rank first, and gives those up that may be: what is lost is at most a part `waste_max`
/// of what is used.
#[must_use]
pub fn play_giving_up(tasks: &[Ran], stage: &Stage, known: &dyn Restartable, waste_max: f64) -> Played {
    Play::new(tasks, Policy::Shortest, stage, Some((known, Ledger::new(waste_max)))).played()
}

/// A place: until when it is taken, and by whom, since when.
#[derive(Clone, Copy)]
struct Place {
    until: f64,
    by: Option<(usize, f64)>,
}

struct Play<'a> {
    /// With the ranks that they have at the moment.
    tasks: Vec<Ran>,
    policy: Policy,
    stage: &'a Stage,
    giving: Option<(&'a dyn Restartable, Ledger)>,
    places: Vec<Place>,
    /// Tasks in line, and the next to come.
    line: Vec<usize>,
    next: usize,
    is_aged: bool,
    /// What tasks ran for when they were given up, at most.
    outlived: Vec<Millis>,
    waits: Vec<f64>,
    longest: usize,
}

#[expect(clippy::cast_possible_truncation, reason = "times since a recent moment")]
fn whole(at: f64) -> Millis {
    at as Millis
}

impl<'a> Play<'a> {
    fn new(tasks: &[Ran], policy: Policy, stage: &'a Stage, giving: Option<(&'a dyn Restartable, Ledger)>) -> Self {
        let mut tasks = tasks.to_vec();
        for task in &mut tasks {
            let attempt = giving.as_ref().and_then(|(known, _)| known.attempt(task.group, 0));
            task.rank = attempt.map_or(task.rank, |attempt| attempt.rank);
        }
        Self {
            policy,
            stage,
            giving,
            places: free_at(stage, tasks.len()),
            line: Vec::new(),
            next: 0,
            is_aged: false,
            outlived: vec![0; tasks.len()],
            waits: vec![0.0; tasks.len()],
            longest: 0,
            tasks,
        }
    }

    fn played(mut self) -> Played {
        while self.next < self.tasks.len() || !self.line.is_empty() {
            let until = |place: usize| self.places[place].until;
            let place = (0..self.places.len()).min_by(|&a, &b| until(a).total_cmp(&until(b))).expect("at least one");
            self.turn_of(place);
        }
        let mut played = Played { longest: self.longest, ..Played::default() };
        for (task, wait) in self.tasks.iter().zip(&self.waits) {
            played.slowdowns += ((wait + task.run) / task.run.max(self.stage.floor)).max(1.0);
            played.late += usize::from(task.deadline.is_some_and(|deadline| task.ready + wait + task.run > deadline));
        }
        played.waits = self.waits;
        played
    }

    /// The place that is free first is free, or the task there is judged.
    fn turn_of(&mut self, place: usize) {
        let Place { until: mut at, by } = self.places[place];
        let judged = by.filter(|&(number, start)| start + self.tasks[number].run > at);
        if self.line.is_empty() && judged.is_none() {
            at = at.max(self.tasks[self.next].ready);
        }
        while self.next < self.tasks.len() && self.tasks[self.next].ready <= at {
            self.line.push(self.next);
            self.next += 1;
        }
        if let Some((number, start)) = judged {
            if let Some(until) = self.goes_on(number, start, at) {
                self.places[place].until = until;
                return;
            }
            self.line.push(number);
        } else if let (Some((_, start)), Some((_, ledger))) = (by, &mut self.giving) {
            ledger.end(whole(start), whole(self.places[place].until));
        }
        if self.line.is_empty() {
            // A time that is no number never comes.
            self.line.push(self.next);
            self.next += 1;
        }
        let number = self.take_next(at);
        self.waits[number] = at - self.tasks[number].ready;
        self.places[place] = Place { until: at + self.first_look(number, at), by: Some((number, at)) };
    }

    /// Until when a task goes on that is judged; or not.
    fn goes_on(&mut self, number: usize, start: f64, at: f64) -> Option<f64> {
        let (known, ledger) = self.giving.as_mut()?;
        // Looks are whole milliseconds apart, and sums of times are not quite.
        let (task, age) = (&self.tasks[number], whole((at - start).round()));
        let on = known.going_on(task.group, age);
        let lowest = self.line.iter().map(|&other| self.tasks[other].rank).min_by(f32::total_cmp);
        let is_late = on.yields_to(lowest);
        if is_late && ledger.give_up(whole(start), whole(at)) {
            self.outlived[number] = self.outlived[number].max(age);
            let again = known.attempt(task.group, self.outlived[number]);
            self.tasks[number].rank = again.map_or(task.rank, |again| again.rank);
            return None;
        }
        let until = start + bounded(on.next_look(age, is_late), task.run);
        Some(if until > at { until } else { start + task.run })
    }

    /// How long a task runs before it ends or is judged, which starts now.
    fn first_look(&mut self, number: usize, at: f64) -> f64 {
        let task = &self.tasks[number];
        let Some((known, ledger)) = &mut self.giving else { return task.run };
        ledger.start(whole(at));
        // What waited for the cap is not given up.
        let attempt = known.attempt(task.group, self.outlived[number]).filter(|_| !self.is_aged);
        bounded(attempt.and_then(|attempt| attempt.until), task.run)
    }

    /// Takes the next task out of the line.
    fn take_next(&mut self, at: f64) -> usize {
        let (tasks, line) = (&self.tasks, &mut self.line);
        self.longest = self.longest.max(line.len());
        let oldest = (0..line.len()).min_by_key(|&place| line[place]).expect("somebody is in line");
        self.is_aged = !self.is_aged && at - tasks[line[oldest]].ready >= self.stage.cap;
        let first = (0..line.len()).min_by(|&a, &b| {
            let [a, b] = [a, b].map(|place| (turn(&tasks[line[place]], self.policy, at), line[place]));
            a.0.0.cmp(&b.0.0).then(a.0.1.total_cmp(&b.0.1)).then(a.1.cmp(&b.1))
        });
        line.swap_remove(if self.is_aged { oldest } else { first.expect("somebody is in line") })
    }
}

fn free_at(stage: &Stage, tasks: usize) -> Vec<Place> {
    #[expect(clippy::cast_precision_loss, reason = "few places")]
    let at = |place: usize| Place { until: stage.from + place as f64 * stage.every, by: None };
    (0..stage.places.clamp(1, tasks.max(1))).map(at).collect()
}

fn bounded(until: Option<Millis>, run: f64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a time")]
    until.map_or(run, |until| (until as f64).min(run))
}

/// What a policy does to the tasks of a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Waits {
    /// Mean wait, in milliseconds.
    pub mean: f64,
    /// Median.
    pub median: f64,
    /// In 99 of 100 cases it is no longer.
    pub most: f64,
    /// Mean bounded slowdown.
    pub slowdown: f64,
    /// Tasks that end after their deadline.
    pub late: usize,
}

/// Two policies over the same tasks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Comparison {
    /// Tasks.
    pub samples: usize,
    /// Tasks with a deadline.
    pub with_deadline: usize,
    /// Blocks in which they were played.
    pub blocks: usize,
    /// Mean wait as it was in truth, in milliseconds.
    pub measured: f64,
    /// Under the present policy,
    pub present: Waits,
    /// and under the one in shadow.
    pub shadow: Waits,
    /// Mean slowdown under the present one over that under the one in shadow, in the mean over blocks,
    pub gain: f64,
    /// and what it is at least, with a confidence of 95 %.
    pub gain_least: f64,
}

/// Plays tasks under the present policy and one in shadow. `runs` are stretches of tasks that began one after another, each with the
/// places there were. `None` for fewer than [`SAMPLES_MIN`] tasks.
#[must_use]
pub fn compare(
    runs: &[(Vec<Ran>, usize)],
    present: Policy,
    shadow: Policy,
    cap: f64,
    floor: f64,
) -> Option<Comparison> {
    let samples: usize = runs.iter().map(|(tasks, _)| tasks.len()).sum();
    if samples < SAMPLES_MIN {
        return None;
    }
    let size = (samples / BLOCKS).clamp(BLOCK_MIN, BLOCK_MAX);
    let mut guard = Guard::default();
    let mut sums = [Sum::new(present), Sum::new(shadow)];
    let mut compared = Comparison { samples, ..Comparison::default() };
    let blocks = runs.iter().flat_map(|(tasks, places)| tasks.chunks(size).map(|block| (block, *places)));
    for (block, places) in blocks {
        let from = block.iter().map(|task| task.began).fold(f64::INFINITY, f64::min);
        let mut block = block.to_vec();
        block.sort_by(|a, b| a.ready.total_cmp(&b.ready));
        compared.blocks += 1;
        compared.with_deadline += block.iter().filter(|task| task.deadline.is_some()).count();
        compared.measured += block.iter().map(|task| task.began - task.ready).sum::<f64>();
        let stage = Stage { places, from, every: 0.0, cap, floor };
        let plain = play(&block, Policy::Fifo, &stage);
        let mut costs = [0.0; 2];
        for (sum, cost) in sums.iter_mut().zip(&mut costs) {
            let policy = sum.policy_for(&plain, &block, &stage);
            let played = if policy == Policy::Fifo { plain.clone() } else { play(&block, policy, &stage) };
            *cost = played.slowdown();
            sum.add(&played);
        }
        guard.block(costs[0], costs[1], plain.longest);
    }
    #[expect(clippy::cast_precision_loss, reason = "a count")]
    let count = samples as f64;
    compared.measured /= count;
    (compared.gain, compared.gain_least) = (guard.mean().exp(), guard.lower_bound().exp());
    [compared.present, compared.shadow] = sums.map(|sum| sum.waits());
    Some(compared)
}

/// What was played under one policy.
struct Sum {
    policy: Policy,
    waits: Vec<f64>,
    slowdowns: f64,
    late: usize,
    /// Of `auto`: its own guard, of the learned order over that of readiness.
    guard: Guard,
}

impl Sum {
    fn new(policy: Policy) -> Self {
        Self { policy, waits: Vec::new(), slowdowns: 0.0, late: 0, guard: Guard::default() }
    }

    /// What orders a block: `auto` uses the learned order by what it has seen in those before.
    fn policy_for(&mut self, plain: &Played, block: &[Ran], stage: &Stage) -> Policy {
        if self.policy != Policy::Auto {
            return self.policy;
        }
        let is_learned = self.guard.lower_bound() > 0.0;
        self.guard.block(plain.slowdown(), play(block, Policy::Shortest, stage).slowdown(), plain.longest);
        if is_learned { Policy::Shortest } else { Policy::Fifo }
    }

    fn add(&mut self, played: &Played) {
        self.waits.extend(&played.waits);
        self.slowdowns += played.slowdowns;
        self.late += played.late;
    }

    fn waits(mut self) -> Waits {
        self.waits.sort_by(f64::total_cmp);
        let of = |permille: usize| self.waits[(self.waits.len() - 1) * permille / 1_000];
        #[expect(clippy::cast_precision_loss, reason = "a count")]
        let count = self.waits.len() as f64;
        Waits {
            mean: self.waits.iter().sum::<f64>() / count,
            median: of(500),
            most: of(990),
            slowdown: self.slowdowns / count,
            late: self.late,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lengths::Lengths;
    use crate::predictor::{Facts, Keys};

    /// A burst of long and short tasks on one place, each with a deadline that only some order meets.
    fn burst(count: u32, deadline_of: impl Fn(bool) -> Option<f64>) -> Vec<Ran> {
        let task = |number: u32| {
            let is_long = number.is_multiple_of(2);
            let run = if is_long { 100.0 } else { 1.0 };
            let (rank, quantiles) = (if is_long { 2.0 } else { 1.0 }, [run, run]);
            Ran { ready: 0.0, began: f64::from(number), run, rank, quantiles, deadline: deadline_of(is_long), group: 0 }
        };
        (0..count).map(task).collect()
    }

    const STAGE: Stage = Stage { places: 1, from: 0.0, every: 0.0, cap: f64::INFINITY, floor: 10.0 };

    #[test]
    fn the_shortest_first_lowers_the_mean_and_no_place_is_idle() {
        let tasks = burst(20, |_| None);
        let of = |policy| play(&tasks, policy, &STAGE);
        assert!(of(Policy::Shortest).slowdown() < 0.5 * of(Policy::Fifo).slowdown());
        for policy in [Policy::Fifo, Policy::Shortest, Policy::Deadline] {
            let ends = of(policy).waits.iter().zip(&tasks).map(|(wait, task)| wait + task.run).fold(0.0, f64::max);
            assert!((ends - 1_010.0).abs() < 1e-9, "{policy:?}");
        }
    }

    #[test]
    fn deadlines_are_met_under_their_policy() {
        let tasks = burst(20, |is_long| Some(if is_long { 1_100.0 } else { 300.0 }));
        assert_eq!(play(&tasks, Policy::Deadline, &STAGE).late, 0);
        assert!(play(&tasks, Policy::Fifo, &STAGE).late > 5);
    }

    #[test]
    fn the_cap_lets_the_oldest_go_every_second_time() {
        let tasks = burst(20, |_| None);
        let played = play(&tasks, Policy::Shortest, &Stage { cap: 0.0, ..STAGE });
        assert_eq!(played.waits[0], 0.0, "the first is the oldest, though it is long");
    }

    /// Of tasks that are predicted alike, nine in ten are short.
    struct Mixed(Lengths, Keys);

    impl Restartable for Mixed {
        fn attempt(&self, _: u32, outlived: Millis) -> Option<Attempt> {
            Some(self.0.attempt(&self.1, outlived))
        }
        fn going_on(&self, _: u32, age: Millis) -> Attempt {
            self.0.going_on(&self.1, age)
        }
    }

    #[test]
    fn giving_long_ones_up_pays_where_nothing_else_tells_them_from_short_ones() {
        let run = |number: u32| if number.is_multiple_of(10) { 2_000.0 } else { 20.0 };
        let known = Keys::new(&Facts::default());
        let mut mixed = Mixed(Lengths::new(64, 10), known);
        (0..200).for_each(|number| mixed.0.learn(&known, whole(run(number))));
        let ran = |number: u32| {
            // Forty at once.
            let ready = 2_400.0 * f64::from(number / 40);
            Ran {
                ready,
                began: ready,
                run: run(number),
                rank: 1.0,
                quantiles: [20.0, 2_000.0],
                deadline: None,
                group: 0,
            }
        };
        let tasks: Vec<Ran> = (0..2_000).map(ran).collect();
        let stage = Stage { places: 4, ..STAGE };
        let plain = play(&tasks, Policy::Shortest, &stage);
        let giving = play_giving_up(&tasks, &stage, &mixed, 0.05);
        assert!(giving.slowdown() < 0.6 * plain.slowdown(), "{} and {}", giving.slowdown(), plain.slowdown());
        let none = play_giving_up(&tasks, &stage, &mixed, 0.0);
        assert!((none.slowdown() - plain.slowdown()).abs() < 1e-9, "without a budget nothing is given up");
    }

    #[test]
    fn runs_of_few_milliseconds_come_to_an_end() {
        for (from, to) in [(0.4, 1.6), (1.0, 1.9), (2.0, 2.9)] {
            let run = |number: u32| from + (to - from) * f64::from(number * 37 % 100) / 100.0;
            let known = Keys::new(&Facts::default());
            let mut mixed = Mixed(Lengths::new(64, 10), known);
            (0..200).for_each(|number| mixed.0.learn(&known, whole(run(number))));
            let ran = |number: u32| {
                let ready = f64::from(number) * 0.173;
                let (run, rank, quantiles) = (run(number), 1.0, [1.0, 2.0]);
                Ran { ready, began: ready, run, rank, quantiles, deadline: None, group: 0 }
            };
            let tasks: Vec<Ran> = (0..256).map(ran).collect();
            let played = play_giving_up(&tasks, &Stage { places: 8, ..STAGE }, &mixed, 0.05);
            assert_eq!(played.waits.len(), 256);
        }
    }

    #[test]
    fn a_comparison_needs_samples_and_says_with_confidence_what_is_better() {
        let run = |count| vec![(burst(count, |_| None), 1)];
        assert_eq!(compare(&run(255), Policy::Fifo, Policy::Shortest, 6e5, 10.0), None);
        let of = |present, shadow| compare(&run(512), present, shadow, 6e5, 10.0).expect("enough");
        let better = of(Policy::Fifo, Policy::Shortest);
        assert!(better.gain_least > 1.5 && better.gain >= better.gain_least, "{better:?}");
        assert!(better.shadow.mean < better.present.mean && better.samples == 512 && better.blocks == 8);
        let worse = of(Policy::Shortest, Policy::Fifo);
        assert!(worse.gain < 0.7 && worse.gain_least < worse.gain + 1e-9, "{worse:?}");
        let same = of(Policy::Fifo, Policy::Fifo);
        assert!((same.gain - 1.0).abs() < 1e-9, "{same:?}");
        // In shadow `auto` uses the learned order once it has seen that it is better.
        let auto = of(Policy::Fifo, Policy::Auto);
        assert!(auto.gain > 1.0 && auto.gain < better.gain, "{auto:?}");
    }

    #[test]
    fn times_that_are_no_numbers_do_no_harm() {
        let mut tasks = burst(300, |_| None);
        for (task, time) in tasks.iter_mut().zip([f64::NAN, f64::INFINITY, -1.0, f64::MAX]) {
            (task.ready, task.run) = (time, time);
        }
        for policy in [Policy::Fifo, Policy::Shortest, Policy::Deadline, Policy::Auto] {
            assert_eq!(compare(&[(tasks.clone(), 3)], Policy::Fifo, policy, 6e5, 10.0).expect("enough").samples, 300);
        }
    }
}

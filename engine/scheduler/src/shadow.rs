//! A policy in shadow: tasks that a queue ran are played again in virtual time, under that policy and under another one, from when they
//! were ready, for as long as they ran, on as many places as there were. What comes out is what the guard compares, and what a
//! user is told before a policy is used.

use crate::guard::Guard;
use crate::order::Policy;

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
}

/// How tasks are played.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stage {
    /// Places.
    pub places: usize,
    /// When the first place is free.
    pub from: f64,
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
fn turn(task: &Ran, policy: Policy, at: f64) -> (u8, f64) {
    match (policy, task.deadline) {
        (Policy::Fifo, _) => (0, task.ready),
        (Policy::Shortest | Policy::Auto, _) => (0, f64::from(task.rank)),
        (Policy::Deadline, None) => (2, task.ready),
        (Policy::Deadline, Some(deadline)) => match task.quantiles.map(|run| at + run <= deadline) {
            [_, true] => (0, deadline),
            [true, false] => (1, deadline),
            [false, false] => (3, deadline),
        },
    }
}

/// Plays tasks, in the order in which they became ready, under a policy ([`Policy::Auto`]: as [`Policy::Shortest`]).
///
/// # Panics
/// Never: times that are no numbers count as late ones.
#[must_use]
pub fn play(tasks: &[Ran], policy: Policy, stage: &Stage) -> Played {
    let mut free = vec![stage.from; stage.places.clamp(1, tasks.len().max(1))];
    let mut played = Played { waits: vec![0.0; tasks.len()], ..Played::default() };
    let (mut line, mut next, mut is_aged) = (Vec::<usize>::new(), 0, false);
    while next < tasks.len() || !line.is_empty() {
        let place = (0..free.len()).min_by(|&a, &b| free[a].total_cmp(&free[b])).expect("at least one");
        let mut at = free[place];
        if line.is_empty() {
            at = at.max(tasks[next].ready);
        }
        while next < tasks.len() && tasks[next].ready <= at {
            line.push(next);
            next += 1;
        }
        if line.is_empty() {
            // A time that is no number never comes.
            line.push(next);
            next += 1;
        }
        played.longest = played.longest.max(line.len());
        let oldest = (0..line.len()).min_by_key(|&place| line[place]).expect("somebody is in line");
        is_aged = !is_aged && at - tasks[line[oldest]].ready >= stage.cap;
        let first = (0..line.len()).min_by(|&a, &b| {
            let [a, b] = [a, b].map(|place| (turn(&tasks[line[place]], policy, at), line[place]));
            a.0.0.cmp(&b.0.0).then(a.0.1.total_cmp(&b.0.1)).then(a.1.cmp(&b.1))
        });
        let number = line.swap_remove(if is_aged { oldest } else { first.expect("somebody is in line") });
        let task = &tasks[number];
        let (wait, end) = (at - task.ready, at + task.run);
        free[place] = end;
        played.waits[number] = wait;
        played.slowdowns += ((wait + task.run) / task.run.max(stage.floor)).max(1.0);
        played.late += usize::from(task.deadline.is_some_and(|deadline| end > deadline));
    }
    played
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
        let stage = Stage { places, from, cap, floor };
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

    /// A burst of long and short tasks on one place, each with a deadline that only some order meets.
    fn burst(count: u32, deadline_of: impl Fn(bool) -> Option<f64>) -> Vec<Ran> {
        let task = |number: u32| {
            let is_long = number.is_multiple_of(2);
            let run = if is_long { 100.0 } else { 1.0 };
            let (rank, quantiles) = (if is_long { 2.0 } else { 1.0 }, [run, run]);
            Ran { ready: 0.0, began: f64::from(number), run, rank, quantiles, deadline: deadline_of(is_long) }
        };
        (0..count).map(task).collect()
    }

    const STAGE: Stage = Stage { places: 1, from: 0.0, cap: f64::INFINITY, floor: 10.0 };

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

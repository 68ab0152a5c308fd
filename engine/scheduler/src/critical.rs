//! Orders tasks that depend on each other: ranks by the longest path to the end, list scheduling, a lower bound, and an
//! improvement by passes in both directions, bounded in the schedules that it may build.
//!
//! Tasks are numbered so that each comes after those that it needs. Nothing here is random unless a seed is given.

pub mod project;

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::Millis;

/// Tasks with durations, and which needs which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Graph {
    durations: Vec<Millis>,
    needs: Vec<Vec<u32>>,
    needed_by: Vec<Vec<u32>>,
}

/// Why tasks are no graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GraphError {
    /// A task needs one that comes not before it.
    OutOfOrder(u32),
    /// A task's duration is negative.
    Negative(u32),
}

impl Graph {
    /// Tasks with `durations`, each needing the tasks of `needs`, all of them before it.
    ///
    /// # Errors
    /// When a duration is negative, or a task needs itself or a later one.
    pub fn new(durations: Vec<Millis>, needs: Vec<Vec<u32>>) -> Result<Self, GraphError> {
        let mut needed_by = vec![Vec::new(); durations.len()];
        for ((task, duration), before) in (0u32..).zip(&durations).zip(&needs) {
            if *duration < 0 {
                return Err(GraphError::Negative(task));
            }
            for other in before {
                if *other >= task {
                    return Err(GraphError::OutOfOrder(task));
                }
                needed_by[*other as usize].push(task);
            }
        }
        Ok(Self { durations, needs, needed_by })
    }

    /// Tasks.
    #[must_use]
    pub fn len(&self) -> usize {
        self.durations.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.durations.is_empty()
    }

    /// For each task the longest path from its start to the end of all.
    #[must_use]
    pub fn ranks(&self) -> Vec<Millis> {
        let mut ranks = self.durations.clone();
        for task in (0..self.len()).rev() {
            let after = self.needed_by[task].iter().map(|other| ranks[*other as usize]).max();
            ranks[task] += after.unwrap_or(0);
        }
        ranks
    }

    /// For each task the longest path from the beginning to its start.
    #[must_use]
    pub fn heads(&self) -> Vec<Millis> {
        let mut heads = vec![0; self.len()];
        for task in 0..self.len() {
            let before = self.needs[task].iter().map(|other| heads[*other as usize] + self.durations[*other as usize]);
            heads[task] = before.max().unwrap_or(0);
        }
        heads
    }

    /// Starts of the tasks on `slots` slots: whenever one is free, the ready task that comes first in the graph starts.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a place in the graph")]
    pub fn list_in_order(&self, slots: usize) -> Vec<Millis> {
        let order: Vec<f64> = (0..self.len()).map(|task| -(task as f64)).collect();
        self.list(slots, &order, false)
    }

    /// Starts of the tasks on `slots` slots: whenever one is free, the ready task with the greatest priority starts.
    /// `backward` runs the graph from its end, and gives times from there.
    #[must_use]
    pub fn list(&self, slots: usize, priority: &[f64], backward: bool) -> Vec<Millis> {
        let (needs, needed_by) = if backward { (&self.needed_by, &self.needs) } else { (&self.needs, &self.needed_by) };
        let mut missing: Vec<usize> = needs.iter().map(Vec::len).collect();
        let mut ready: BinaryHeap<(Priority, Reverse<u32>)> = BinaryHeap::new();
        let enter =
            |ready: &mut BinaryHeap<_>, task: u32| ready.push((Priority(priority[task as usize]), Reverse(task)));
        for (task, missing) in (0u32..).zip(&missing) {
            if *missing == 0 {
                enter(&mut ready, task);
            }
        }
        let mut running: BinaryHeap<Reverse<(Millis, u32)>> = BinaryHeap::new();
        let mut starts = vec![0; self.len()];
        let mut now = 0;
        loop {
            while running.len() < slots.max(1)
                && let Some((_, Reverse(task))) = ready.pop()
            {
                starts[task as usize] = now;
                running.push(Reverse((now + self.durations[task as usize], task)));
            }
            let Some(Reverse((end, _))) = running.peek().copied() else { return starts };
            now = end;
            while let Some(Reverse((end, task))) = running.peek().copied()
                && end == now
            {
                running.pop();
                for next in &needed_by[task as usize] {
                    missing[*next as usize] -= 1;
                    if missing[*next as usize] == 0 {
                        enter(&mut ready, *next);
                    }
                }
            }
        }
    }

    /// When all have ended.
    #[must_use]
    pub fn makespan(&self, starts: &[Millis]) -> Millis {
        starts.iter().zip(&self.durations).map(|(start, duration)| start + duration).max().unwrap_or(0)
    }

    /// No schedule on `slots` slots is shorter: the longest path; and for tasks that start no sooner than a head and
    /// leave no less than a tail, the head, their work over the slots (or what the longest of them need one after the
    /// other), and the tail; nor shorter than that work with the least heads and tails that as many tasks as slots have, shared
    /// by the slots, as no slot begins before its first task may.
    #[must_use]
    pub fn bound(&self, slots: usize) -> Millis {
        let heads = self.reached(slots, false);
        let tails = self.reached(slots, true);
        let path = |task: usize| heads[task] + self.durations[task] + tails[task];
        let mut best = (0..self.len()).map(path).max().unwrap_or(0);
        let steps = |values: &[Millis]| {
            let mut sorted = values.to_vec();
            sorted.sort_unstable();
            sorted.dedup();
            let stride = sorted.len().div_ceil(STEPS_MAX).max(1);
            sorted.into_iter().step_by(stride).collect::<Vec<_>>()
        };
        let mut inside: Vec<usize> = Vec::new();
        let mut durations: Vec<Millis> = Vec::new();
        for head in steps(&heads) {
            for tail in steps(&tails) {
                inside.clear();
                inside.extend((0..self.len()).filter(|task| heads[*task] >= head && tails[*task] >= tail));
                if inside.is_empty() {
                    break;
                }
                durations.clear();
                durations.extend(inside.iter().map(|task| self.durations[*task]));
                let work: Millis = durations.iter().sum();
                best = best.max(head + tail + packed(&mut durations, slots.max(1)));
                let first = least(inside.iter().map(|task| heads[*task]), slots);
                let last = least(inside.iter().map(|task| tails[*task]), slots);
                if let (Some(first), Some(last), Ok(width)) = (first, last, Millis::try_from(slots)) {
                    best = best.max((first + work + last + width - 1) / width);
                }
            }
        }
        best
    }

    /// For each task a time before which it cannot start on `slots` slots, or cannot be followed to the end if
    /// `backward`: what it needs must have ended, so from any of their own such times on all that work is to be done.
    fn reached(&self, slots: usize, backward: bool) -> Vec<Millis> {
        let needs = if backward { &self.needed_by } else { &self.needs };
        let width = Millis::try_from(slots.max(1)).unwrap_or(Millis::MAX);
        let words = if self.len() <= CLOSURE_MAX { self.len().div_ceil(64) } else { 0 };
        let mut closure = vec![0u64; words * self.len()];
        let mut times = vec![0; self.len()];
        let mut before: Vec<(Millis, Millis)> = Vec::new();
        for step in 0..self.len() {
            let task = if backward { self.len() - 1 - step } else { step };
            let ends = needs[task].iter().map(|other| times[*other as usize] + self.durations[*other as usize]);
            let mut time: Millis = ends.max().unwrap_or(0);
            if words > 0 {
                for other in &needs[task] {
                    for word in 0..words {
                        closure[task * words + word] |= closure[*other as usize * words + word];
                    }
                    closure[task * words + *other as usize / 64] |= 1 << (other % 64);
                }
                let of = &closure[task * words..(task + 1) * words];
                before.clear();
                let all = (0..self.len()).filter(|other| of[other / 64] >> (other % 64) & 1 == 1);
                before.extend(all.map(|other| (times[other], self.durations[other])));
                before.sort_unstable_by_key(|(start, _)| -start);
                let mut work = 0;
                for (start, duration) in &before {
                    work += duration;
                    time = time.max(start + (work + width - 1) / width);
                }
            }
            times[task] = time;
        }
        times
    }

    /// A schedule on `slots` slots by ranks, improved by building at most `schedules` more: backward and forward in turn
    /// from ranks that are disturbed a little, keeping the best, until it is as short as `bound` (0 if none is known).
    #[must_use]
    pub fn improve(&self, slots: usize, schedules: usize, seed: u64, bound: Millis) -> Vec<Millis> {
        #[expect(clippy::cast_precision_loss, reason = "a priority")]
        let ranks: Vec<f64> = self.ranks().iter().map(|rank| *rank as f64).collect();
        let mut best = self.list(slots, &ranks, false);
        let mut span = self.makespan(&best);
        let mut kept = ranks.clone();
        let mut random = project::Random::new(seed);
        let mut built = 0;
        let mut round = 0u32;
        while built + 2 <= schedules && span > bound {
            let noise = 0.05 * f64::from(round % 8);
            let base = if round.is_multiple_of(2) { &kept } else { &ranks };
            let priority: Vec<f64> = base.iter().map(|rank| rank * (1.0 + noise * (random.unit() - 0.5))).collect();
            let mut starts = self.list(slots, &priority, false);
            built += 1;
            for _ in 0..3 {
                let before = self.makespan(&starts);
                starts = self.both_ways(slots, &starts);
                built += 2;
                if self.makespan(&starts) >= before {
                    break;
                }
            }
            if self.makespan(&starts) < span {
                span = self.makespan(&starts);
                kept = priority;
                best = starts;
            }
            round += 1;
        }
        best
    }

    /// A backward pass by the ends of a schedule, and a forward pass by the starts of that.
    fn both_ways(&self, slots: usize, starts: &[Millis]) -> Vec<Millis> {
        #[expect(clippy::cast_precision_loss, reason = "a priority")]
        let ends: Vec<f64> =
            starts.iter().zip(&self.durations).map(|(start, duration)| (start + duration) as f64).collect();
        let backward = self.list(slots, &ends, true);
        #[expect(clippy::cast_precision_loss, reason = "a priority")]
        let latest: Vec<f64> =
            backward.iter().zip(&self.durations).map(|(start, duration)| (start + duration) as f64).collect();
        self.list(slots, &latest, false)
    }
}

/// Graphs of more tasks are bounded without all that each task needs, which takes a bit for each pair.
const CLOSURE_MAX: usize = 4096;
/// Heads and tails that are tried for the bound.
const STEPS_MAX: usize = 64;

/// The sum of the `slots` least, if there are so many.
fn least(values: impl Iterator<Item = Millis>, slots: usize) -> Option<Millis> {
    let mut values: Vec<Millis> = values.collect();
    if slots == 0 || values.len() < slots {
        return None;
    }
    values.select_nth_unstable(slots - 1);
    Some(values[..slots].iter().sum())
}

/// No schedule of independent tasks on `slots` slots is shorter.
fn packed(durations: &mut [Millis], slots: usize) -> Millis {
    #[expect(clippy::cast_possible_wrap, reason = "slots are few")]
    let width = slots as Millis;
    let work: Millis = durations.iter().sum();
    let mut best = (work + width - 1) / width;
    if durations.len() > slots {
        durations.sort_unstable_by(|a, b| b.cmp(a));
        // Of the k * slots + 1 longest, some slot gets k + 1: no less than the shortest k + 1 of them.
        for rounds in 1..=(durations.len() - 1) / slots {
            let last = rounds * slots;
            best = best.max(durations[last - rounds..=last].iter().sum());
        }
    }
    best
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Priority(f64);

impl Eq for Priority {}
impl PartialOrd for Priority {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Priority {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

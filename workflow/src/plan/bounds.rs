//! What no schedule can beat: the critical path, and the work spread evenly over all slots.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::{Plan, PlanTask, Work};

impl Work {
    /// Recorded run time; 0 for work that has not run yet.
    #[must_use]
    pub fn runtime_s(&self) -> f64 {
        match self {
            Self::Replay(replay) => replay.runtime_s,
            Self::Command(_) | Self::Kind { .. } => 0.0,
        }
    }
}

impl Plan {
    /// Indices with every parent before its children, or the indices of one cycle (each needs the one before it, the
    /// first needs the last). Stable: of the tasks that could come next, the first of the plan does.
    ///
    /// # Errors
    /// The tasks of a cycle.
    pub fn topological_order(&self) -> Result<Vec<u32>, Vec<u32>> {
        topological_order(self.tasks.len(), |task| &self.tasks[task].parents)
    }

    /// Puts parents before children; among tasks that are free to stand anywhere, the file's order stays. `Err` holds
    /// the tasks of a cycle, and then nothing has moved.
    pub(crate) fn sort(&mut self) -> Result<(), Vec<u32>> {
        let order = self.topological_order()?;
        let mut places = vec![0_u32; order.len()];
        for (place, &task) in order.iter().enumerate() {
            places[index(task)] = number(place);
        }
        let mut unsorted: Vec<Option<PlanTask>> = std::mem::take(&mut self.tasks).into_iter().map(Some).collect();
        self.tasks = order.iter().filter_map(|&task| unsorted[index(task)].take()).collect();
        for task in &mut self.tasks {
            task.parents.iter_mut().for_each(|parent| *parent = places[index(*parent)]);
            task.parents.sort_unstable();
        }
        Ok(())
    }

    /// Recorded run time of each task in seconds.
    #[must_use]
    pub fn runtimes_s(&self) -> Vec<f64> {
        self.tasks.iter().map(|task| task.work.runtime_s()).collect()
    }

    /// Longest chain of recorded run times: no number of workers is faster.
    #[must_use]
    pub fn critical_path_s(&self) -> f64 {
        self.critical_path_of(&self.runtimes_s())
    }

    /// Longest chain under the given run times, for example those just observed. Same unit out as in.
    ///
    /// # Panics
    /// When there is not one run time per task, or the plan is cyclic.
    #[must_use]
    pub fn critical_path_of(&self, runtimes: &[f64]) -> f64 {
        assert_eq!(runtimes.len(), self.tasks.len(), "one run time per task");
        let order = self.topological_order().expect("a plan is acyclic");
        let mut ends = vec![0.0_f64; self.tasks.len()];
        let mut longest = 0.0_f64;
        for task in order {
            let task = index(task);
            let start = self.tasks[task].parents.iter().map(|&parent| ends[index(parent)]).fold(0.0, f64::max);
            ends[task] = start + runtimes[task];
            longest = longest.max(ends[task]);
        }
        longest
    }

    /// Sum of all recorded run times.
    #[must_use]
    pub fn total_work_s(&self) -> f64 {
        self.runtimes_s().iter().sum()
    }

    /// Least makespan on `slots` workers that run one task at a time each: the larger of the critical path and the
    /// work divided by the slots (Graham 1966). No schedule is shorter; list scheduling takes less than twice as long.
    ///
    /// # Panics
    /// When `slots` is 0.
    #[must_use]
    pub fn bound_s(&self, slots: u32) -> f64 {
        self.bound_of(&self.runtimes_s(), slots)
    }

    /// [`Plan::bound_s`] under the given run times. Same unit out as in.
    ///
    /// # Panics
    /// When `slots` is 0 or there is not one run time per task.
    #[must_use]
    pub fn bound_of(&self, runtimes: &[f64], slots: u32) -> f64 {
        assert!(slots > 0, "a bound needs at least one slot");
        let work: f64 = runtimes.iter().sum();
        self.critical_path_of(runtimes).max(work / f64::from(slots))
    }

    /// Tasks on the longest chain by count: how many rounds the workflow takes however wide it is.
    #[must_use]
    pub fn depth(&self) -> usize {
        let order = self.topological_order().expect("a plan is acyclic");
        let mut depths = vec![0_usize; self.tasks.len()];
        for task in order {
            let task = index(task);
            let above = self.tasks[task].parents.iter().map(|&parent| depths[index(parent)]).max();
            depths[task] = above.unwrap_or(0) + 1;
        }
        depths.into_iter().max().unwrap_or(0)
    }
}

pub(crate) fn index(task: u32) -> usize {
    usize::try_from(task).expect("a u32 fits a usize on every supported machine")
}

/// Kahn's algorithm over parents' lists; on failure walks up from a task that never became ready until it meets
/// itself, which is a cycle.
pub(crate) fn topological_order<'a>(
    tasks: usize,
    parents_of: impl Fn(usize) -> &'a Vec<u32>,
) -> Result<Vec<u32>, Vec<u32>> {
    let mut children: Vec<Vec<u32>> = vec![Vec::new(); tasks];
    let mut waiting: Vec<usize> = Vec::with_capacity(tasks);
    for task in 0..tasks {
        let parents = parents_of(task);
        waiting.push(parents.len());
        for &parent in parents {
            children[index(parent)].push(number(task));
        }
    }
    let mut ready: BinaryHeap<Reverse<u32>> =
        (0..tasks).filter(|&task| waiting[task] == 0).map(|task| Reverse(number(task))).collect();
    let mut order: Vec<u32> = Vec::with_capacity(tasks);
    while let Some(Reverse(task)) = ready.pop() {
        order.push(task);
        for &child in &children[index(task)] {
            waiting[index(child)] -= 1;
            if waiting[index(child)] == 0 {
                ready.push(Reverse(child));
            }
        }
    }
    if order.len() == tasks {
        return Ok(order);
    }
    let start = waiting.iter().position(|&left| left > 0).expect("some task never became ready");
    Err(cycle(start, &waiting, parents_of))
}

fn cycle<'a>(start: usize, waiting: &[usize], parents_of: impl Fn(usize) -> &'a Vec<u32>) -> Vec<u32> {
    let mut seen_at: Vec<Option<usize>> = vec![None; waiting.len()];
    let mut path: Vec<u32> = Vec::new();
    let mut task = start;
    while seen_at[task].is_none() {
        seen_at[task] = Some(path.len());
        path.push(number(task));
        let stuck = parents_of(task).iter().copied().find(|&parent| waiting[index(parent)] > 0);
        task = index(stuck.expect("a task that never became ready has a parent that never became ready"));
    }
    let mut found = path.split_off(seen_at[task].expect("just met again"));
    found.reverse();
    let least = found.iter().enumerate().min_by_key(|(_, task)| **task).map_or(0, |(place, _)| place);
    found.rotate_left(least);
    found
}

pub(crate) fn number(task: usize) -> u32 {
    u32::try_from(task).expect("a plan has at most TASKS_MAX tasks")
}

//! Projects whose tasks need several resources at once (RCPSP): serial schedules, passes in both directions, and a small
//! population of task lists that is crossed (after Valls, Ballestín and Quintanilla, 2008).
//!
//! The search is bounded by the schedules that it builds, not by a clock, so that the same input gives the same answer.

/// Resources of a project at most: they share one word.
pub const RESOURCES_MAX: usize = 4;
/// Capacity of a resource at most.
pub const CAPACITY_MAX: u32 = 32_767;
/// The longest schedule at most, in units of time.
pub const HORIZON_MAX: u32 = 1 << 20;
/// The guard bits of the four lanes.
const GUARD: u64 = 0x8000_8000_8000_8000;
/// Lists that are kept.
const POPULATION: usize = 20;

/// Numbers that look random and are not: xorshift64*.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From a seed, any.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number in 0..1.
    pub fn unit(&mut self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "53 bits")]
        let unit = (self.bits() >> 11) as f64 / (1u64 << 53) as f64;
        unit
    }

    /// A number under `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        #[expect(clippy::cast_possible_truncation, reason = "under the limit")]
        let below = ((u128::from(self.bits()) * limit as u128) >> 64) as usize;
        below
    }
}

/// Why tasks are no project.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProjectError {
    /// More than [`RESOURCES_MAX`] resources, or a capacity over [`CAPACITY_MAX`].
    Resources,
    /// A task needs more than there is.
    Demand(u32),
    /// A task is named that does not exist, or tasks need each other in a ring.
    Order(u32),
    /// All tasks one after the other take longer than [`HORIZON_MAX`].
    Horizon,
}

/// A project: tasks, what each needs, and which follow which.
#[derive(Clone, Debug)]
pub struct Project {
    durations: Vec<u32>,
    demands: Vec<u64>,
    capacity: u64,
    before: Vec<Vec<u32>>,
    after: Vec<Vec<u32>>,
    /// Place of each task in one order that respects what follows what.
    place: Vec<u32>,
    horizon: u32,
}

fn lanes(values: &[u32]) -> u64 {
    values.iter().enumerate().fold(0, |word, (lane, value)| word | u64::from(*value) << (16 * lane))
}

impl Project {
    /// A project of tasks that last `durations`, need `demands` of `capacities`, and are followed by `after`.
    ///
    /// # Errors
    /// When it cannot be carried out, or is too large.
    pub fn new(
        durations: Vec<u32>,
        demands: &[Vec<u32>],
        capacities: &[u32],
        after: Vec<Vec<u32>>,
    ) -> Result<Self, ProjectError> {
        if capacities.len() > RESOURCES_MAX || capacities.iter().any(|capacity| *capacity > CAPACITY_MAX) {
            return Err(ProjectError::Resources);
        }
        for (task, demand) in (0u32..).zip(demands) {
            if demand.len() != capacities.len() || demand.iter().zip(capacities).any(|(need, have)| need > have) {
                return Err(ProjectError::Demand(task));
            }
        }
        let mut before = vec![Vec::new(); durations.len()];
        for (task, others) in (0u32..).zip(&after) {
            for other in others {
                before.get_mut(*other as usize).ok_or(ProjectError::Order(task))?.push(task);
            }
        }
        let horizon: u64 = durations.iter().map(|duration| u64::from(*duration)).sum();
        let horizon = u32::try_from(horizon).ok().filter(|sum| *sum <= HORIZON_MAX).ok_or(ProjectError::Horizon)?;
        let place = places(&before, &after)?;
        let demands = demands.iter().map(|demand| lanes(demand)).collect();
        Ok(Self { durations, demands, capacity: lanes(capacities), before, after, place, horizon })
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

    fn tails(&self) -> Vec<u32> {
        let mut order: Vec<u32> = (0..).take(self.len()).collect();
        order.sort_unstable_by_key(|task| std::cmp::Reverse(self.place[*task as usize]));
        let mut tails = self.durations.clone();
        for task in order {
            let longest = self.after[task as usize].iter().map(|next| tails[*next as usize]).max();
            tails[task as usize] += longest.unwrap_or(0);
        }
        tails
    }

    /// The longest path: no schedule is shorter.
    #[must_use]
    pub fn bound(&self) -> u32 {
        self.tails().into_iter().max().unwrap_or(0)
    }

    /// When all have ended.
    #[must_use]
    pub fn makespan(&self, starts: &[u32]) -> u32 {
        starts.iter().zip(&self.durations).map(|(start, duration)| start + duration).max().unwrap_or(0)
    }

    /// Whether a schedule respects what follows what, and the capacities at all times.
    #[must_use]
    pub fn is_valid(&self, starts: &[u32]) -> bool {
        let ordered = (0..self.len()).all(|task| {
            self.after[task].iter().all(|next| starts[*next as usize] >= starts[task] + self.durations[task])
        });
        let mut used = vec![[0u64; RESOURCES_MAX]; self.makespan(starts) as usize];
        for task in 0..self.len() {
            let from = starts[task] as usize;
            for slot in &mut used[from..from + self.durations[task] as usize] {
                for (lane, used) in slot.iter_mut().enumerate() {
                    *used += self.demands[task] >> (16 * lane) & 0xFFFF;
                }
            }
        }
        let within =
            |slot: &[u64; 4]| (0..RESOURCES_MAX).all(|lane| slot[lane] <= self.capacity >> (16 * lane) & 0xFFFF);
        ordered && used.iter().all(within)
    }
}

/// An order in which each task comes after those that it follows.
fn places(before: &[Vec<u32>], after: &[Vec<u32>]) -> Result<Vec<u32>, ProjectError> {
    let mut missing: Vec<usize> = before.iter().map(Vec::len).collect();
    let mut ready: Vec<u32> = (0u32..).zip(&missing).filter(|(_, left)| **left == 0).map(|(task, _)| task).collect();
    let mut place = vec![u32::MAX; before.len()];
    let mut next = 0;
    while let Some(task) = ready.pop() {
        place[task as usize] = next;
        next += 1;
        for other in &after[task as usize] {
            missing[*other as usize] -= 1;
            if missing[*other as usize] == 0 {
                ready.push(*other);
            }
        }
    }
    match (0u32..).zip(&place).find(|(_, place)| **place == u32::MAX) {
        Some((task, _)) => Err(ProjectError::Order(task)),
        None => Ok(place),
    }
}

/// Builds schedules of a project, and looks for short ones.
#[derive(Debug)]
pub struct Search<'a> {
    project: &'a Project,
    free: Vec<u64>,
    built: usize,
    random: Random,
}

impl<'a> Search<'a> {
    /// A search in `project`.
    #[must_use]
    pub fn new(project: &'a Project, seed: u64) -> Self {
        Self { project, free: vec![0; project.horizon as usize + 1], built: 0, random: Random::new(seed) }
    }

    /// The serial schedule of a list: each task in turn as soon as it may, or as late, from the end.
    fn serial(&mut self, list: &[u32], backward: bool, starts: &mut Vec<u32>) {
        let project = self.project;
        let before = if backward { &project.after } else { &project.before };
        self.built += 1;
        self.free.fill(project.capacity | GUARD);
        starts.clear();
        starts.resize(project.len(), 0);
        for task in list {
            let task = *task as usize;
            let earliest =
                before[task].iter().map(|other| starts[*other as usize] + project.durations[*other as usize]);
            let mut start = earliest.max().unwrap_or(0) as usize;
            let (duration, demand) = (project.durations[task] as usize, project.demands[task]);
            if demand != 0 && duration > 0 {
                // From the back of the window: the last conflict says where to go on.
                while let Some(conflict) =
                    self.free[start..start + duration].iter().rposition(|free| (free - demand) & GUARD != GUARD)
                {
                    start += conflict + 1;
                }
                for free in &mut self.free[start..start + duration] {
                    *free -= demand;
                }
            }
            #[expect(clippy::cast_possible_truncation, reason = "within the horizon")]
            let start = start as u32;
            starts[task] = start;
        }
    }

    fn list_by(&self, key: impl Fn(usize) -> u32, backward: bool) -> Vec<u32> {
        let mut list: Vec<u32> = (0..).take(self.project.len()).collect();
        let place = |task: u32| self.project.place[task as usize];
        list.sort_unstable_by_key(|task| {
            (key(*task as usize), if backward { u32::MAX - place(*task) } else { place(*task) })
        });
        list
    }

    /// Shifts a schedule to the right and back to the left, which never makes it longer; gives its list by starts.
    fn justify(&mut self, starts: &mut Vec<u32>) -> Vec<u32> {
        let durations = &self.project.durations;
        let from = starts.clone();
        let list = self.list_by(|task| u32::MAX - (from[task] + durations[task]), true);
        let mut back = Vec::new();
        self.serial(&list, true, &mut back);
        let list = self.list_by(|task| u32::MAX - (back[task] + durations[task]), false);
        self.serial(&list, false, starts);
        let from = starts.clone();
        self.list_by(|task| from[task], false)
    }

    /// The shortest schedule found within `schedules` built.
    #[must_use]
    pub fn run(&mut self, schedules: usize) -> Vec<u32> {
        let bound = self.project.bound();
        let mut kept: Vec<(u32, Vec<u32>)> = Vec::new();
        let mut best = Vec::new();
        let mut span = u32::MAX;
        let mut starts = Vec::new();
        let tails = self.project.tails();
        loop {
            let list = if kept.len() < POPULATION {
                self.sampled(&tails, kept.is_empty())
            } else {
                let (a, b) = (self.random.below(kept.len()), self.random.below(kept.len()));
                self.crossed(&kept[a].1.clone(), &kept[b].1.clone())
            };
            self.serial(&list, false, &mut starts);
            let list = self.justify(&mut starts);
            let length = self.project.makespan(&starts);
            if length < span {
                span = length;
                best.clone_from(&starts);
            }
            if span <= bound || self.built + 3 > schedules {
                return best;
            }
            if kept.len() < POPULATION {
                kept.push((length, list));
            } else if let Some(worst) = kept.iter_mut().max_by_key(|(length, _)| *length)
                && length <= worst.0
            {
                *worst = (length, list);
            }
        }
    }

    /// A list by the longest tails, disturbed unless `plain`.
    fn sampled(&mut self, tails: &[u32], plain: bool) -> Vec<u32> {
        let project = self.project;
        let mut missing: Vec<usize> = project.before.iter().map(Vec::len).collect();
        let mut ready: Vec<u32> =
            (0u32..).zip(&missing).filter(|(_, left)| **left == 0).map(|(task, _)| task).collect();
        let mut list = Vec::with_capacity(project.len());
        while !ready.is_empty() {
            let mut chosen = 0;
            let mut most = f64::MIN;
            for (place, task) in ready.iter().enumerate() {
                let tail = f64::from(tails[*task as usize]);
                let value = if plain { tail } else { tail * (1.0 + 0.4 * (self.random.unit() - 0.5)) };
                if value > most {
                    (chosen, most) = (place, value);
                }
            }
            let task = ready.swap_remove(chosen);
            list.push(task);
            for next in &project.after[task as usize] {
                missing[*next as usize] -= 1;
                if missing[*next as usize] == 0 {
                    ready.push(*next);
                }
            }
        }
        list
    }

    /// The middle of one list in the order of the other, at two places; both respect what follows what.
    fn crossed(&mut self, a: &[u32], b: &[u32]) -> Vec<u32> {
        let length = a.len();
        let (x, y) = (self.random.below(length + 1), self.random.below(length + 1));
        let (from, to) = (x.min(y), x.max(y));
        let mut taken = vec![false; length];
        let mut list = Vec::with_capacity(length);
        let mut take = |list: &mut Vec<u32>, source: &[u32], until: usize| {
            for task in source {
                if list.len() >= until {
                    return;
                }
                if !std::mem::replace(&mut taken[*task as usize], true) {
                    list.push(*task);
                }
            }
        };
        take(&mut list, a, from);
        take(&mut list, b, to);
        take(&mut list, a, length);
        list
    }
}

//! Chooses the worker for a task that asks for several resources: processors, memory, and parts of devices.
//!
//! Best fit alone leaves devices that no task can use: one with half a device left where tasks want whole ones, or with
//! free devices and no processors. So each worker is judged by the free device share that is lost to the tasks to come, and a
//! task goes where that grows least; between equals, where least is left. What is lost is either fragmentation, the share that a
//! task seen so far could not use, weighted by how often its shape was seen (Weng et al., ATC 2023), or what mixes of such
//! tasks leave, placed there until none fits ([`fills`]).
//!
//! A decision costs a look at each worker, and a judgement of those that changed since a task of this shape came: of all of
//! them for one of the first, or after what is known of the tasks to come was renewed. It keeps [`SEEN_MAX`] shapes of
//! tasks and a score for each of [`SCORES_MAX`] at each worker.

pub mod contention;
mod fills;
pub mod live;
pub mod pairing;

use std::collections::BTreeMap;

use fills::Fills;

/// Devices of a worker at most.
pub const DEVICES_MAX: usize = 8;
/// A whole device.
pub const DEVICE: u32 = 1000;
/// Shapes of tasks that are weighed.
const SHAPES: usize = 96;
/// Shapes for which scores are kept.
const SCORES_MAX: usize = 256;
/// After so many tasks the shapes are chosen anew.
const SHAPES_EVERY: u32 = 512;
/// Shapes that are counted; when there are more, counts are halved.
const SEEN_MAX: usize = 4096;

/// What a task asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ask {
    /// Thousandths of processors.
    pub cpu: u32,
    /// Memory in MiB.
    pub memory: u32,
    /// Devices.
    pub devices: u32,
    /// Thousandths of each device; under a thousand only with one device.
    pub share: u32,
}

/// A worker, and what is free there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Worker {
    /// Thousandths of processors.
    pub cpu: u32,
    /// Memory in MiB.
    pub memory: u32,
    /// Devices that it has.
    pub devices: u32,
    /// Thousandths free of each.
    pub free: [u32; DEVICES_MAX],
}

impl Worker {
    /// A worker with nothing in use.
    #[must_use]
    pub fn new(cpu: u32, memory: u32, devices: u32) -> Self {
        let mut free = [0; DEVICES_MAX];
        free.iter_mut().take(devices as usize).for_each(|share| *share = DEVICE);
        Self { cpu, memory, devices: devices.min(8), free }
    }

    /// Free device share in all.
    #[must_use]
    pub fn free_share(&self) -> u32 {
        self.free.iter().sum()
    }

    /// Whether a task fits.
    #[must_use]
    pub fn fits(&self, ask: &Ask) -> bool {
        let fitting = self.free.iter().filter(|free| **free >= ask.share.max(1)).count();
        ask.cpu <= self.cpu && ask.memory <= self.memory && (ask.devices == 0 || fitting >= ask.devices as usize)
    }

    /// Takes a task in, on the devices with the least free that fit. `None` when it does not fit.
    #[must_use]
    pub fn with(&self, ask: &Ask) -> Option<Self> {
        let mut after = *self;
        after.take(ask).then_some(after)
    }

    /// Takes a task in if it fits, on the devices with the least free that do.
    fn take(&mut self, ask: &Ask) -> bool {
        if ask.cpu > self.cpu || ask.memory > self.memory || ask.devices > self.devices {
            return false;
        }
        let before = self.free;
        for _ in 0..ask.devices {
            let fitting = self.free.iter_mut().filter(|free| **free >= ask.share.max(1));
            let Some(least) = fitting.min_by_key(|free| **free) else {
                self.free = before;
                return false;
            };
            *least -= ask.share;
        }
        self.cpu -= ask.cpu;
        self.memory -= ask.memory;
        true
    }

    /// Device share that is free and that a task of this shape could not use.
    fn lost_to(&self, ask: &Ask) -> u32 {
        if ask.devices == 0 || !self.fits(ask) {
            return self.free_share();
        }
        self.free.iter().filter(|free| **free < ask.share).sum()
    }
}

/// How a worker is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// The first that fits.
    First,
    /// Where least is left.
    Best,
    /// Where most is left.
    Worst,
    /// Where fragmentation grows least, then where least is left.
    Fragmentation,
    /// Where what mixes of tasks to come leave grows least, then where least is left.
    Future,
}

/// A score of a worker for a shape: by which state of the worker, what it loses, and what is left.
#[derive(Clone, Copy, Debug, Default)]
struct Score {
    stamp: u32,
    lost: f32,
    left: f32,
}

/// Places tasks on workers.
#[derive(Clone, Debug)]
pub struct Placement {
    workers: Vec<Worker>,
    /// What is lost of each worker as it stands, by the tasks to come as they stand.
    lost: Vec<f32>,
    /// The state of each worker, by a number that grows: 0 is none.
    stamps: Vec<u32>,
    fit: Fit,
    seen: BTreeMap<Ask, u32>,
    count: u32,
    shapes: Vec<(Ask, f32)>,
    fills: Fills,
    scores: BTreeMap<Ask, Vec<Score>>,
}

impl Placement {
    /// Placement on `workers`.
    #[must_use]
    pub fn new(workers: Vec<Worker>, fit: Fit) -> Self {
        Self {
            lost: vec![0.0; workers.len()],
            stamps: vec![1; workers.len()],
            workers,
            fit,
            seen: BTreeMap::new(),
            count: 0,
            shapes: Vec::new(),
            fills: Fills::default(),
            scores: BTreeMap::new(),
        }
    }

    /// Part of the device share of `workers`, which are free, that is in use once these tasks were placed as far as they fit; 0 where
    /// there is none.
    #[must_use]
    pub fn devices_in_use<'a>(workers: &[Worker], asks: impl IntoIterator<Item = &'a Ask>, fit: Fit) -> f64 {
        let share = |workers: &[Worker]| workers.iter().map(Worker::free_share).sum::<u32>();
        let mut placement = Self::new(workers.to_vec(), fit);
        for ask in asks {
            placement.place(ask);
        }
        let whole = share(workers);
        f64::from(whole - share(placement.workers())) / f64::from(whole.max(1))
    }

    /// The workers.
    #[must_use]
    pub fn workers(&self) -> &[Worker] {
        &self.workers
    }

    /// The free device share of a worker that is lost to the tasks to come.
    #[expect(clippy::cast_precision_loss, reason = "a weight")]
    fn lost(&self, worker: &Worker) -> f32 {
        match self.fit {
            Fit::First | Fit::Best | Fit::Worst => 0.0,
            Fit::Fragmentation => self.shapes.iter().map(|(ask, weight)| weight * worker.lost_to(ask) as f32).sum(),
            Fit::Future => worker.free_share() as f32 - self.fills.used(worker),
        }
    }

    fn see(&mut self, ask: &Ask) {
        let count = self.seen.entry(*ask).or_insert(0);
        *count = count.saturating_add(1);
        self.count = self.count.wrapping_add(1);
        while self.seen.len() > SEEN_MAX {
            self.seen.retain(|_, count| {
                *count /= 2;
                *count > 0
            });
        }
        let is_young = self.count.is_power_of_two() && self.count < SHAPES_EVERY;
        if is_young || self.count.is_multiple_of(SHAPES_EVERY) {
            self.expect();
        }
    }

    /// Renews what is known of the tasks to come.
    #[expect(clippy::cast_precision_loss, reason = "a weight")]
    fn expect(&mut self) {
        match self.fit {
            Fit::First | Fit::Best | Fit::Worst => return,
            Fit::Fragmentation => {
                let mut shapes: Vec<(Ask, u32)> = self.seen.iter().map(|(ask, count)| (*ask, *count)).collect();
                shapes.retain(|(ask, _)| ask.devices > 0);
                shapes.sort_by_key(|(ask, count)| (u32::MAX - count, *ask));
                shapes.truncate(SHAPES);
                let total: u32 = shapes.iter().map(|(_, count)| count).sum();
                self.shapes = shapes.iter().map(|(ask, count)| (*ask, *count as f32 / total as f32)).collect();
            }
            Fit::Future => self.fills = Fills::draw(&self.seen),
        }
        self.scores.clear();
        self.lost = self.workers.iter().map(|worker| self.lost(worker)).collect();
    }

    /// What a task costs at a worker, which is what is compared first, and what is left there.
    fn score(&self, place: usize, ask: &Ask) -> Score {
        let stamp = self.stamps[place];
        let Some(after) = self.workers[place].with(ask) else {
            return Score { stamp, lost: f32::INFINITY, left: 0.0 };
        };
        #[expect(clippy::cast_precision_loss, reason = "a score")]
        let left = after.free_share() as f32 + after.cpu as f32 / 1e3 + after.memory as f32 / 1e5;
        let lost = match self.fit {
            Fit::First => 0.0,
            Fit::Best => left,
            Fit::Worst => -left,
            Fit::Fragmentation | Fit::Future => self.lost(&after) - self.lost[place],
        };
        Score { stamp, lost, left }
    }

    /// Where a task fits best.
    fn best(&mut self, ask: &Ask) -> Option<usize> {
        if self.fit == Fit::First {
            return self.workers.iter().position(|worker| worker.fits(ask));
        }
        let mut scores = self.scores.remove(ask).unwrap_or_else(|| vec![Score::default(); self.workers.len()]);
        let mut best: Option<(f32, f32, usize)> = None;
        for (place, score) in scores.iter_mut().enumerate() {
            if score.stamp != self.stamps[place] {
                *score = self.score(place, ask);
            }
            let is_better = best.is_none_or(|(lost, left, _)| (score.lost, score.left) < (lost, left));
            if score.lost < f32::INFINITY && is_better {
                best = Some((score.lost, score.left, place));
            }
        }
        if self.scores.len() >= SCORES_MAX {
            self.scores.clear();
        }
        self.scores.insert(*ask, scores);
        best.map(|(_, _, place)| place)
    }

    /// Places a task; `None` when it fits nowhere.
    pub fn place(&mut self, ask: &Ask) -> Option<usize> {
        self.see(ask);
        let place = self.best(ask)?;
        self.workers[place] = self.workers[place].with(ask)?;
        self.changed(place);
        Some(place)
    }

    fn changed(&mut self, place: usize) {
        self.lost[place] = self.lost(&self.workers[place]);
        self.stamps[place] = self.stamps[place].wrapping_add(1).max(1);
    }

    /// A task has left a worker; `devices` are those that it held.
    pub fn leave(&mut self, place: usize, ask: &Ask, devices: &[usize]) {
        let worker = &mut self.workers[place];
        worker.cpu += ask.cpu;
        worker.memory += ask.memory;
        for device in devices {
            worker.free[*device] = (worker.free[*device] + ask.share).min(DEVICE);
        }
        self.changed(place);
    }
}

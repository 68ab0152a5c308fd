//! Chooses the worker for a task that asks for several resources: processors, memory, and parts of devices.
//!
//! Best fit alone leaves devices that no task can use: one with half a device left where tasks want whole ones, or with
//! free devices and no processors. So each worker is judged by its fragmentation: the free device share that the tasks
//! seen so far could not use there, weighted by how often each shape of task was seen (Weng et al., ATC 2023). A task
//! goes where that grows least; between equals, where least is left.

pub mod contention;
pub mod live;

use std::collections::BTreeMap;

/// Devices of a worker at most.
pub const DEVICES_MAX: usize = 8;
/// A whole device.
pub const DEVICE: u32 = 1000;
/// Shapes of tasks that are weighed.
const SHAPES: usize = 96;
/// After so many tasks the shapes are chosen anew.
const SHAPES_EVERY: u32 = 512;

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
        after.cpu = after.cpu.checked_sub(ask.cpu)?;
        after.memory = after.memory.checked_sub(ask.memory)?;
        for _ in 0..ask.devices {
            let fitting = after.free.iter_mut().filter(|free| **free >= ask.share.max(1));
            *fitting.min_by_key(|free| **free)? -= ask.share;
        }
        Some(after)
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
}

/// Places tasks on workers.
#[derive(Clone, Debug)]
pub struct Placement {
    workers: Vec<Worker>,
    /// Fragmentation of each worker as it stands, by the shapes as they stand.
    lost: Vec<f32>,
    fit: Fit,
    seen: BTreeMap<Ask, u32>,
    count: u32,
    shapes: Vec<(Ask, f32)>,
}

impl Placement {
    /// Placement on `workers`.
    #[must_use]
    pub fn new(workers: Vec<Worker>, fit: Fit) -> Self {
        let lost = vec![0.0; workers.len()];
        Self { workers, lost, fit, seen: BTreeMap::new(), count: 0, shapes: Vec::new() }
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

    #[expect(clippy::cast_precision_loss, reason = "a weight")]
    fn fragmentation(shapes: &[(Ask, f32)], worker: &Worker) -> f32 {
        shapes.iter().map(|(ask, weight)| weight * worker.lost_to(ask) as f32).sum()
    }

    #[expect(clippy::cast_precision_loss, reason = "a weight")]
    fn see(&mut self, ask: &Ask) {
        *self.seen.entry(*ask).or_insert(0) += 1;
        self.count += 1;
        let is_young = self.count.is_power_of_two() && self.count < SHAPES_EVERY;
        if !(is_young || self.count.is_multiple_of(SHAPES_EVERY)) {
            return;
        }
        let mut shapes: Vec<(Ask, u32)> = self.seen.iter().map(|(ask, count)| (*ask, *count)).collect();
        shapes.retain(|(ask, _)| ask.devices > 0);
        shapes.sort_by_key(|(ask, count)| (u32::MAX - count, *ask));
        shapes.truncate(SHAPES);
        let total: u32 = shapes.iter().map(|(_, count)| count).sum();
        self.shapes = shapes.iter().map(|(ask, count)| (*ask, *count as f32 / total as f32)).collect();
        for (lost, worker) in self.lost.iter_mut().zip(&self.workers) {
            *lost = Self::fragmentation(&self.shapes, worker);
        }
    }

    /// Places a task; `None` when it fits nowhere.
    pub fn place(&mut self, ask: &Ask) -> Option<usize> {
        self.see(ask);
        let mut best: Option<(f32, f32, usize)> = None;
        for (place, worker) in self.workers.iter().enumerate() {
            // Tasks without devices leave workers with devices to others, as long as they can.
            let Some(after) = worker.with(ask) else { continue };
            if self.fit == Fit::First {
                best = Some((0.0, 0.0, place));
                break;
            }
            #[expect(clippy::cast_precision_loss, reason = "a score")]
            let left = after.free_share() as f32 + after.cpu as f32 / 1e3 + after.memory as f32 / 1e5;
            let (first, second) = match self.fit {
                Fit::First => (0.0, 0.0),
                Fit::Best => (left, 0.0),
                Fit::Worst => (-left, 0.0),
                Fit::Fragmentation => (Self::fragmentation(&self.shapes, &after) - self.lost[place], left),
            };
            if best.is_none_or(|(a, b, _)| (first, second) < (a, b)) {
                best = Some((first, second, place));
            }
        }
        let (_, _, place) = best?;
        self.workers[place] = self.workers[place].with(ask)?;
        self.lost[place] = Self::fragmentation(&self.shapes, &self.workers[place]);
        Some(place)
    }

    /// A task has left a worker; `devices` are those that it held.
    pub fn leave(&mut self, place: usize, ask: &Ask, devices: &[usize]) {
        let worker = &mut self.workers[place];
        worker.cpu += ask.cpu;
        worker.memory += ask.memory;
        for device in devices {
            worker.free[*device] = (worker.free[*device] + ask.share).min(DEVICE);
        }
        self.lost[place] = Self::fragmentation(&self.shapes, worker);
    }
}

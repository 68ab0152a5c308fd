//! How long tasks run, as whole distributions: where run times are of several kinds, no mean and no quantile says when
//! it pays to give up. From a distribution come the rank of a restartable task and how long it may run before that is
//! judged again ([`Lengths::attempt`], [`Lengths::going_on`]): Gittins' index, with the work lost by a restart in it.
//!
//! A histogram per key, from the widest key to the narrowest, some of them with a short memory as well. How far a
//! prediction moves from one to the next is learned: for each level and amount of evidence the part that would have
//! predicted best (a step of expectation-maximisation at each run time). Nothing of that is set by hand.
//!
//! The declared limit is told apart from the other keys: what it says of any task's length is learned from all tasks ([`limits`]), and only
//! then come the keys that have it in them. With it in every narrow key each would have too few samples.

mod limits;
mod saved;

use std::sync::LazyLock;

use crate::Millis;
use crate::predictor::table::{Table, Weighed};
use crate::predictor::{Keys, LENGTHS};
use limits::Limits;

/// Bins: each is half as long again as the one before, so they reach from a millisecond to centuries.
const BINS: usize = 64;
/// Logarithm of the ratio of two bins.
const RATIO_LOG: f64 = 0.405_465_108_108_164_4;
/// Keys without the limit.
const OPEN: usize = 6;
/// Keys with a short memory beside the long one: the tenant, and the narrowest without the limit.
const RECENT: [usize; 2] = [3, OPEN - 1];
/// The first cell whose key has the limit in it.
const LIMITED: usize = OPEN + RECENT.len();
const CELLS: usize = LENGTHS + RECENT.len();
/// What a sample keeps of its weight at each later one: of all tasks, of a key, of a key's recent ones.
const MEMORY: [f32; 3] = [0.999, 0.98, 0.8];
/// Edges of the classes of evidence, in samples.
const EDGES: [f32; 8] = [0.6, 1.5, 2.5, 4.0, 7.0, 12.0, 25.0, 60.0];
/// The parts before anything is learned.
const PARTS: [f32; EDGES.len() + 1] = [0.1, 0.2, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8];
/// The step by which they are learned.
const STEP: f32 = 0.02;
/// No part of a distribution that is learned from is taken for less.
const PART_MIN: f32 = 1e-6;
/// Weight of the wider key's distribution in one's own, in samples.
const SMOOTHING: f32 = 0.5;
/// What work lost by giving up counts, in work: lost work delays others, and the budget for it is small.
const PRICE: f64 = 2.0;
/// A part of tasks that counts as none.
const NONE: f64 = 1e-4;

struct Edges {
    middle: [f64; BINS],
    end: [f64; BINS],
}

static EDGES_MS: LazyLock<Edges> = LazyLock::new(|| Edges {
    #[expect(clippy::cast_precision_loss, reason = "few bins")]
    middle: std::array::from_fn(|bin| ((bin as f64 + 0.5) * RATIO_LOG).exp()),
    #[expect(clippy::cast_precision_loss, reason = "few bins")]
    end: std::array::from_fn(|bin| ((bin as f64 + 1.0) * RATIO_LOG).exp().floor()),
});

fn bin(run: f64) -> usize {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative, and clamped")]
    let bin = (run.max(1.0).ln() / RATIO_LOG) as usize;
    bin.min(BINS - 1)
}

#[derive(Clone, Debug)]
struct Histogram {
    weight: f32,
    bins: [f32; BINS],
}

impl Default for Histogram {
    fn default() -> Self {
        Self { weight: 0.0, bins: [0.0; BINS] }
    }
}

impl Histogram {
    /// A sample more, for which the others keep `memory` of their weight.
    fn add(&mut self, bin: usize, memory: f32) {
        self.weight = self.weight * memory + 1.0;
        self.bins.iter_mut().for_each(|bin| *bin *= memory);
        self.bins[bin] += 1.0;
    }
}

impl Weighed for Histogram {
    fn weight(&mut self) -> &mut f32 {
        &mut self.weight
    }
}

/// What to do with a task.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attempt {
    /// The lowest goes first: the logarithm of the expected work per expected relief of slowdown.
    pub rank: f32,
    /// It is to be judged again when it has run for so long in all; `None` when it shall run to its end.
    pub until: Option<Millis>,
}

/// A task is given up for one whose rank is lower by this: e to this times as much relief for the same work.
const RANK_MARGIN: f32 = 2.0;

impl Attempt {
    /// The same on so many slots, of which a rank counts the root.
    #[must_use]
    pub fn wide(mut self, width: u32) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "a rank")]
        let width = width.max(1) as f32;
        self.rank += 0.5 * width.ln();
        self
    }

    /// Whether a task that could go on like this is to make room for the one of the lowest rank that waits.
    #[must_use]
    pub fn yields_to(&self, lowest: Option<f32>) -> bool {
        lowest.is_some_and(|lowest| lowest < self.rank - RANK_MARGIN)
    }

    /// When a task that goes on is judged again, which has run for `age`. One that was to make room, and may not be lost, is left alone for as
    /// long again.
    #[must_use]
    pub fn next_look(&self, age: Millis, is_kept: bool) -> Option<Millis> {
        if is_kept { Some(age.saturating_mul(2)) } else { self.until }
    }
}

/// The distribution of one task's run time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape([f64; BINS]);

impl Shape {
    /// The length at which work per relief is least, of a task that is known to run for longer than `outlived` and has
    /// now run for `age` (0 when it starts anew). `price` is what lost work counts.
    #[expect(clippy::cast_precision_loss, reason = "times are far below 2^53")]
    #[expect(clippy::cast_possible_truncation, reason = "a rank, and the whole end of a bin")]
    fn index(&self, outlived: Millis, age: Millis, floor: Millis, price: f64) -> Attempt {
        let Edges { middle, end } = &*EDGES_MS;
        let (outlived, age, floor) = (outlived.max(0) as f64, age.max(0) as f64, floor.max(1) as f64);
        let first = if outlived > 0.0 { bin(outlived + 2.0) } else { 0 };
        let all: f64 = self.0[first..].iter().sum();
        if all < 1e-6 {
            // It is longer than anything seen: by the heavy tails of run times as long again.
            let rank = ((2.0 * outlived - age).max(1.0) * 2.0 * outlived.max(floor)).ln();
            return Attempt { rank: rank as f32, until: None };
        }
        let mut best = (f64::INFINITY, None);
        let (mut relief, mut work, mut left) = (0.0, 0.0, all);
        for bin in first..BINS {
            let part = self.0[bin];
            if part == 0.0 && bin + 1 < BINS {
                continue;
            }
            let run = middle[bin].max(1.05 * outlived);
            relief += part / run.max(floor);
            work += part * (run - age);
            left -= part;
            if end[bin] < 0.3 * floor {
                continue;
            }
            let is_last = left < NONE * all;
            let lost = if is_last { 0.0 } else { price * left * (end[bin] - age) };
            let index = (work + lost) / relief;
            if index < best.0 - 1e-9 {
                best = (index, (!is_last).then_some(end[bin] as Millis));
            }
            if is_last {
                break;
            }
        }
        Attempt { rank: best.0.max(f64::MIN_POSITIVE).ln() as f32, until: best.1 }
    }

    /// The length that the part `quantile` of tasks does not exceed.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the whole end of a bin")]
    pub fn quantile(&self, quantile: f64) -> Millis {
        let mut below = 0.0;
        for (part, end) in self.0.iter().zip(EDGES_MS.end) {
            below += part;
            if below >= quantile {
                return end as Millis;
            }
        }
        Millis::MAX
    }
}

/// The distributions of all keys.
#[derive(Clone, Debug)]
pub struct Lengths {
    table: Table<Histogram>,
    parts: [[f32; EDGES.len() + 1]; CELLS],
    limits: Limits,
    floor: Millis,
}

/// The longest of the lengths that are told apart and are no longer than `outlived`.
#[must_use]
pub fn told_apart(outlived: Millis) -> Millis {
    #[expect(clippy::cast_precision_loss, reason = "times are far below 2^53")]
    let bin = bin(outlived.max(0) as f64 + 1.0);
    #[expect(clippy::cast_possible_truncation, reason = "the whole end of a bin")]
    bin.checked_sub(1).map_or(0, |below| EDGES_MS.end[below] as Millis)
}

fn class(weight: f32) -> usize {
    EDGES.iter().filter(|edge| weight > **edge).count()
}

/// The cells of a task: each key without the limit, then the recent ones, then those with it. Where there is no limit, the last of these is as
/// wide as those before, and what is recent comes last. A key of 0 has none.
fn cells(keys: &Keys) -> [(usize, u64); CELLS] {
    let (open, limited) = keys.lengths().split_at(OPEN);
    let mut cells = [(0, 0); CELLS];
    for (level, key) in open.iter().enumerate() {
        cells[level] = (level, *key);
    }
    for (place, level) in RECENT.into_iter().enumerate() {
        cells[OPEN + place] = (OPEN + place, open[level].rotate_left(32) ^ 0x5851_F42D_4C95_7F2D);
    }
    for (place, key) in limited.iter().enumerate() {
        cells[LIMITED + place] = (LIMITED + place, *key);
    }
    if keys.limit() == 0 {
        cells[OPEN..].rotate_left(RECENT.len());
    }
    cells
}

impl Lengths {
    /// Distributions in a table of `cells` cells of 264 bytes, with slowdowns bounded at run times of `floor`.
    #[must_use]
    pub fn new(cells: usize, floor: Millis) -> Self {
        Self { table: Table::new(cells), parts: [PARTS; CELLS], limits: Limits::default(), floor }
    }

    /// Weight of the samples that had all of these keys, forgetting.
    #[must_use]
    pub fn weight(&self, keys: &Keys) -> f32 {
        self.table.get(keys.lengths()[LENGTHS - 1]).map_or(0.0, |cell| cell.weight)
    }

    /// The distribution of the run time of a task with these keys; `None` while nothing was learned.
    #[must_use]
    pub fn shape(&self, keys: &Keys) -> Option<Shape> {
        self.mix(keys, |_, _, _| ()).map(Shape)
    }

    /// Mixes the cells of a task, from the widest to the narrowest. `see` gets each but the first before it is mixed in, with its level and
    /// the mixture of those before.
    fn mix(&self, keys: &Keys, mut see: impl FnMut(usize, &Histogram, &[f64; BINS])) -> Option<[f64; BINS]> {
        let mut shape: Option<[f64; BINS]> = None;
        for (level, key) in cells(keys) {
            if level == LIMITED
                && let Some(shape) = &mut shape
            {
                self.limits.apply(shape, keys.limit());
            }
            let Some(cell) = self.table.get(key).filter(|cell| cell.weight > 0.0) else { continue };
            let weight = f64::from(cell.weight);
            let Some(shape) = &mut shape else {
                shape = Some(cell.bins.map(|bin| f64::from(bin) / weight));
                continue;
            };
            see(level, cell, shape);
            let evidence = cell.weight / (cell.weight + SMOOTHING);
            let part = f64::from(self.parts[level][class(cell.weight)] * evidence);
            for (mixed, own) in shape.iter_mut().zip(&cell.bins) {
                *mixed += part * (f64::from(*own) / weight - *mixed);
            }
        }
        shape
    }

    /// A task that ran for at least `outlived` before it was given up is to start anew (0: for the first time).
    #[must_use]
    pub fn attempt(&self, keys: &Keys, outlived: Millis) -> Attempt {
        let Some(shape) = self.shape(keys) else { return Attempt { rank: RANK_UNKNOWN, until: None } };
        let Attempt { rank, until } = shape.index(outlived, 0, self.floor, PRICE);
        // What shall run to its end is judged once more when it turns out to be one of the longest of its kind.
        let until = until.unwrap_or_else(|| shape.quantile(0.9).max(outlived.saturating_mul(2)));
        Attempt { rank, until: Some(until.max(outlived + outlived / 4)) }
    }

    /// The rank of a task that is not given up once it runs: the logarithm of the expected run time, no longer than
    /// `limit`, per expected relief. It is known to run for longer than `outlived`.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "times are far below 2^53")]
    #[expect(clippy::cast_possible_truncation, reason = "a rank")]
    pub fn rank(&self, keys: &Keys, outlived: Millis, limit: Millis) -> f32 {
        let Some(shape) = self.shape(keys) else { return RANK_UNKNOWN };
        let first = if outlived > 0 { bin(outlived as f64 + 2.0) } else { 0 };
        let (mut work, mut relief, mut all) = (0.0, 0.0, 0.0);
        for (part, run) in shape.0.iter().zip(EDGES_MS.middle).skip(first) {
            let run = run.min(limit.max(1) as f64);
            work += part * run;
            relief += part / run.max(self.floor.max(1) as f64);
            all += part;
        }
        if all < 1e-6 {
            return 2.0 * (2.0 * outlived.max(1) as f32).ln();
        }
        (work / relief).ln() as f32
    }

    /// How likely a task ends within `left`, and how long it then takes on average. By `limit` it has ended.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "times are far below 2^53")]
    pub fn within(&self, keys: &Keys, left: Millis, limit: Millis) -> (f64, f64) {
        let (left, limit) = (left as f64, limit.max(1) as f64);
        let Some(shape) = self.shape(keys) else { return (f64::from(u8::from(UNKNOWN_PART * limit <= left)), left) };
        let (mut work, mut chance) = (0.0, 0.0);
        for (part, run) in shape.0.iter().zip(EDGES_MS.middle) {
            let run = run.min(limit);
            if run <= left {
                work += part * run;
                chance += part;
            }
        }
        (chance, if chance > 0.0 { work / chance } else { left })
    }

    /// A task has run for `age` now, and may go on. Its rank is to be compared with that of one that waits.
    #[must_use]
    pub fn going_on(&self, keys: &Keys, age: Millis) -> Attempt {
        let Some(shape) = self.shape(keys) else { return Attempt { rank: RANK_UNKNOWN, until: None } };
        let Attempt { rank, until } = shape.index(age, age, self.floor, 1.0);
        let until = until.unwrap_or(age.saturating_mul(2)).max(age + age / 4 + 1);
        Attempt { rank, until: Some(until) }
    }

    /// Learns that a task ran for `run`.
    #[expect(clippy::cast_precision_loss, reason = "times are far below 2^53")]
    pub fn learn(&mut self, keys: &Keys, run: Millis) {
        let bin = bin(run.max(1) as f64);
        let mut parts = self.parts;
        self.mix(keys, |level, cell, mixed| {
            #[expect(clippy::cast_possible_truncation, reason = "a part")]
            let mixed = (mixed[bin] as f32).max(PART_MIN);
            let own = (cell.bins[bin] + SMOOTHING * mixed) / (cell.weight + SMOOTHING);
            let part = &mut parts[level][class(cell.weight)];
            let next = mixed + *part * (own - mixed);
            *part += STEP * (*part * own / next - *part);
        });
        self.parts = parts;
        self.limits.learn(bin, keys.limit());
        for (level, key) in cells(keys).into_iter().filter(|(_, key)| *key != 0) {
            let is_recent = (OPEN..LIMITED).contains(&level);
            self.table.entry(key).add(bin, MEMORY[if level == 0 { 0 } else { 1 + usize::from(is_recent) }]);
        }
    }
}

/// The part of its limit that a task takes, while nothing is known.
const UNKNOWN_PART: f64 = 0.3;
/// The rank while nothing is known: behind all that is.
const RANK_UNKNOWN: f32 = 60.0;

//! Predicts run times from what ended before: nested key levels with shrinkage, and conformal quantiles.
//!
//! Up to seven levels, from everything down to tenant, kind, limit, width and labels, each one cell of a flat table of bounded
//! size ([`table`]). A prediction walks from the coarsest to the finest and moves towards each by `n / (n + SHRINKAGE)`,
//! so that a key with few samples borrows from the wider one. A cell forgets: its weight is multiplied by `MEMORY` at
//! each sample. Quantiles are corrected by what they missed before ([`conformal`]), as raw ones cover too little.
//!
//! Whatever it is told, it stays finite: times are clamped to `RUN_MS_MIN..=RUN_MS_MAX`, samples that are no numbers
//! are dropped. It is a model, not state: losing it costs quality only.

pub mod conformal;
mod saved;
pub mod table;

use conformal::Correction;
use table::{Cell, Table};

use crate::Millis;

/// Key levels.
pub const LEVELS: usize = 7;
/// Weight of the wider key, in samples.
const SHRINKAGE: f32 = 3.0;
/// What a sample keeps of its weight at each later one of the same key.
const MEMORY: f32 = 0.9;
/// The longest memory of a cell's quantiles: the step of their updates is never less than one in so many samples.
const QUANTILE_SAMPLES_MAX: f32 = 64.0;
/// Samples of a part of tasks without which nothing is said of it.
const PART_MIN: f32 = 3.0;
/// The shortest run time that matters to a slowdown: shorter ones count as this.
const RUN_MS_MIN: f32 = 1.0;
/// The longest run time taken for one: a year.
const RUN_MS_MAX: f32 = 3.2e10;

/// What is known of a task before it runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Who submitted it.
    pub tenant: u32,
    /// What it is: the kind, the executable.
    pub kind: u32,
    /// The queue and further labels, mixed into one.
    pub labels: u32,
    /// Its declared limit, 0 if there is none.
    pub limit: Millis,
    /// Its resources in slots.
    pub width: u32,
    /// How much it has to do, as far as that shows beforehand (payload, steps), in any scale; 0 if unknown.
    pub size: u32,
}

/// The keys of a task in the tables, the coarsest first. Made once per task and kept with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keys {
    levels: [u64; LEVELS],
    /// Those of distributions of lengths, which know the limit as well.
    lengths: [u64; LENGTHS],
    limit: Millis,
}

/// Keys of distributions: six without the limit, and the two with it.
pub(crate) const LENGTHS: usize = 8;

fn mix(a: u64, b: u64) -> u64 {
    let mixed = (a ^ b.wrapping_mul(0x9E37_79B9_7F4A_7C15)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    mixed ^ (mixed >> 32)
}

fn magnitude(value: u64) -> u64 {
    u64::from(64 - value.leading_zeros())
}

impl Keys {
    /// The keys of its distributions, from the widest to the narrowest: all; kind and width; labels; tenant; with kind and size; with
    /// labels. Then those with the limit, of which the first is 0 where none was declared.
    pub(crate) fn lengths(&self) -> &[u64; LENGTHS] {
        &self.lengths
    }

    /// The declared limit, 0 if there is none.
    pub(crate) fn limit(&self) -> Millis {
        self.limit
    }

    /// The keys of a task of which `facts` are known.
    #[must_use]
    pub fn new(facts: &Facts) -> Self {
        let limit = u64::try_from(facts.limit).unwrap_or(0);
        let (tenant, kind) = (u64::from(facts.tenant), u64::from(facts.kind));
        let (labels, width, size) = (u64::from(facts.labels), u64::from(facts.width), u64::from(facts.size));
        let of = |level: u64, parts: &[u64]| parts.iter().fold(level + 1, |key, part| mix(key, *part)) | 1;
        let shape = [magnitude(limit), magnitude(width)];
        // Where a size is known it says more than the tenant, so it comes after it; else the limit's magnitude comes first.
        let middle = if size == 0 {
            [of(1, &[kind, shape[0], shape[1]]), of(2, &[tenant]), 0]
        } else {
            [of(2, &[tenant]), of(3, &[shape[0], shape[1], size]), of(4, &[kind, shape[0], shape[1], size])]
        };
        let narrow = [of(6, &[tenant, kind, limit, size]), of(7, &[tenant, kind, limit, width, size, labels])];
        let levels = [
            of(0, &[]),
            middle[0],
            middle[1],
            middle[2],
            of(5, &[tenant, kind, magnitude(limit), size]),
            narrow[0],
            narrow[1],
        ];
        let lengths = [
            of(0, &[]),
            of(10, &[kind, shape[1]]),
            of(11, &[labels]),
            of(2, &[tenant]),
            of(12, &[tenant, kind, size]),
            of(13, &[tenant, kind, size, labels]),
            if limit > 0 { narrow[0] } else { 0 },
            narrow[1],
        ];
        Self { levels, lengths, limit: facts.limit.max(0) }
    }

    /// The keys of those of these tasks that a mark (not 0) tells apart from the others: what is known of all of them holds for those with a new mark, until
    /// the two narrowest levels know better.
    #[must_use]
    pub fn marked(mut self, mark: u32) -> Self {
        // Keys that there are not are 0.
        let narrow = self.levels[LEVELS - 2..].iter_mut().chain(&mut self.lengths[LENGTHS - 3..]);
        narrow.filter(|key| mark != 0 && **key != 0).for_each(|key| *key = mix(*key, u64::from(mark)) | 1);
        self
    }

    /// The key of a part of the same tasks.
    fn part(&self, part: u32) -> u64 {
        mix(self.levels[LEVELS - 1], u64::from(part)) | 1
    }
}

/// The run time that stands as a logarithm in a prediction, in whole milliseconds upwards, one at least.
#[must_use]
pub fn millis(log_ms: f32) -> Millis {
    #[expect(clippy::cast_possible_truncation, reason = "predictions are bounded by a year")]
    let millis = f64::from(log_ms).exp().ceil() as Millis;
    millis.max(1)
}

/// What is predicted. Logarithms are natural, of milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    /// Mean of the logarithm of the run time.
    pub log_mean: f32,
    /// Mean of `1 / max(run time, floor)` per millisecond, floor being the threshold of the bounded slowdown: what one
    /// millisecond of wait costs.
    pub inverse: f32,
    /// Logarithm of the median.
    pub q50: f32,
    /// Logarithm of the 0.9 quantile, corrected.
    pub q90: f32,
    /// Part of the attempts that failed.
    pub failed: f32,
    /// The finest level with samples, from 0.
    pub level: u8,
    /// Weight of the samples at that level.
    pub samples: f32,
}

impl Prediction {
    /// The rank of a task of `width` slots, the lowest first: `ln(run time / E[1 / run time] * sqrt(width))`, which is
    /// predicted-time-squared times root of resources when the run time is certain, and less when it may be short.
    #[must_use]
    pub fn rank(&self, width: u32) -> f32 {
        #[expect(clippy::cast_precision_loss, reason = "a rank")]
        let width = width.max(1) as f32;
        self.log_mean - self.inverse.ln() + 0.5 * width.ln()
    }

    /// What is left to predict of a task that has run for `ran` and did not end: it is no shorter, and by the heavy
    /// tails of run times about e times as long.
    #[must_use]
    pub fn outlived(mut self, ran: Millis) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "a prediction")]
        let floor = (ran.max(1) as f32).ln();
        self.log_mean = self.log_mean.max(floor + 1.0);
        self.q50 = self.q50.max(floor + 0.7);
        self.q90 = self.q90.max(floor + 2.0);
        self.inverse = self.inverse.min(1.5 * (-self.log_mean).exp());
        self
    }
}

/// A run time in milliseconds as it is learned; `None` for what is no time.
fn believed(run: f64) -> Option<f32> {
    #[expect(clippy::cast_possible_truncation, reason = "clamped at once")]
    let short = (run as f32).clamp(RUN_MS_MIN, RUN_MS_MAX);
    (run.is_finite() && run >= 0.0).then_some(short)
}

/// The tables.
#[derive(Clone, Debug)]
pub struct Predictor {
    table: Table,
    correction: Correction,
    floor: f32,
}

impl Predictor {
    /// A predictor of `cells` cells (a power of two is taken), with slowdowns bounded at run times of `floor`.
    #[must_use]
    pub fn new(cells: usize, floor: Millis) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "a threshold")]
        let floor = (floor.max(1)) as f32;
        Self { table: Table::new(cells), correction: Correction::default(), floor }
    }

    /// What is expected where nothing is known: a part of the declared limit.
    fn prior(&self, limit: Millis) -> Prediction {
        #[expect(clippy::cast_precision_loss, reason = "a guess")]
        let limit = if limit > 0 { (limit as f32).clamp(RUN_MS_MIN, RUN_MS_MAX) } else { 10.0 * self.floor };
        let log_mean = (0.3 * limit).max(RUN_MS_MIN).ln();
        let inverse = 1.0 / (0.1 * limit).max(self.floor);
        Prediction { log_mean, inverse, q50: log_mean, q90: limit.ln(), failed: 0.0, level: 0, samples: 0.0 }
    }

    fn raw(&self, keys: &Keys, limit: Millis) -> Prediction {
        let mut found = self.prior(limit);
        for (level, key) in (0u8..).zip(keys.levels) {
            // A level that does not apply has no key.
            let Some(cell) = self.table.get(key) else { continue };
            let part = cell.weight / (cell.weight + SHRINKAGE);
            found.log_mean += part * (cell.log_mean - found.log_mean);
            found.inverse += part * (cell.inverse - found.inverse);
            found.q50 += part * (cell.q50 - found.q50);
            found.q90 += part * (cell.q90 - found.q90);
            found.failed += part * (cell.failed - found.failed);
            found.level = level;
            found.samples = cell.weight;
        }
        found
    }

    /// Predicts the run time of a task with these keys and this declared limit.
    #[must_use]
    pub fn predict(&self, keys: &Keys, limit: Millis) -> Prediction {
        let mut found = self.raw(keys, limit);
        let longest = RUN_MS_MAX.ln();
        found.q50 = found.q50.min(longest);
        found.q90 = (found.q90 + self.correction.of(&found)).clamp(found.q50, longest);
        if limit > 0 {
            #[expect(clippy::cast_precision_loss, reason = "a prediction")]
            let most = (limit as f32).max(RUN_MS_MIN).ln();
            // What is killed at its limit does not take longer.
            found.q90 = found.q90.min(most);
        }
        found
    }

    /// Weight of the samples that had all of these keys, forgetting.
    #[must_use]
    pub fn weight(&self, keys: &Keys) -> f32 {
        let narrowest = keys.levels.into_iter().rev().find(|key| *key != 0);
        narrowest.and_then(|key| self.table.get(key)).map_or(0.0, |cell| cell.weight)
    }

    /// Learns that a task ran for `run` (milliseconds) and whether it failed. What is no time is dropped. `made` is what
    /// was predicted when it was submitted, by which the quantile is corrected: by then others of its kind had not ended.
    pub fn learn(&mut self, keys: &Keys, limit: Millis, run: f64, failed: bool, made: Option<&Prediction>) {
        let Some(run) = believed(run) else { return };
        let log = run.ln();
        let before = self.raw(keys, limit);
        let made = made.copied().unwrap_or_else(|| self.predict(keys, limit));
        self.correction.learn(&made, log);
        let inverse = 1.0 / run.max(self.floor);
        let failed = f32::from(u8::from(failed));
        for key in keys.levels.into_iter().filter(|key| *key != 0) {
            let cell = self.table.entry(key);
            if cell.weight == 0.0 {
                *cell = Cell { q50: before.q50, q90: before.q90.max(log), ..Cell::default() };
            }
            cell.add(log, inverse, failed);
        }
    }

    /// Learns of one part of the tasks with these keys how long one of it ran, such as those that failed. What all of them do is learned
    /// beside it ([`Self::learn`]).
    pub fn learn_part(&mut self, keys: &Keys, part: u32, run: f64) {
        let Some(run) = believed(run) else { return };
        let (log, floor) = (run.ln(), self.floor);
        let cell = self.table.entry(keys.part(part));
        if cell.weight == 0.0 {
            *cell = Cell { q50: log, q90: log, ..Cell::default() };
        }
        cell.add(log, 1.0 / run.max(floor), 0.0);
    }

    /// Weight of the samples of a part, forgetting.
    #[must_use]
    pub fn weight_of_part(&self, keys: &Keys, part: u32) -> f32 {
        self.table.get(keys.part(part)).map_or(0.0, |cell| cell.weight)
    }

    /// What is expected of a part of the tasks with these keys, by its own samples; `None` for fewer than [`PART_MIN`]. What part of tasks fails is
    /// not told.
    #[must_use]
    pub fn predict_part(&self, keys: &Keys, part: u32) -> Option<Prediction> {
        let cell = self.table.get(keys.part(part)).filter(|cell| cell.count >= PART_MIN)?;
        let &Cell { log_mean, inverse, q50, q90, weight: samples, .. } = cell;
        let level = u8::try_from(LEVELS - 1).expect("few");
        let mut found = Prediction { log_mean, inverse, q50, q90, failed: 0.0, level, samples };
        found.q90 = (q90 + self.correction.of(&found)).clamp(q50, RUN_MS_MAX.ln().max(q50));
        Some(found)
    }
}

impl Cell {
    /// A task ran for so long.
    fn add(&mut self, log: f32, inverse: f32, failed: f32) {
        self.weight = self.weight * MEMORY + 1.0;
        self.count = (self.count + 1.0).min(QUANTILE_SAMPLES_MAX);
        let part = 1.0 / self.weight;
        let gap = log - self.log_mean;
        self.log_mean += part * gap;
        self.spread += part * ((log - self.q50).abs() - self.spread);
        self.inverse += part * (inverse - self.inverse);
        self.failed += part * (failed - self.failed);
        // Quantiles by stochastic steps, as large as the spread of the logarithms.
        let step = (self.spread + 0.05) * 2.0 / (self.count + 1.0).sqrt();
        self.q50 += if log > self.q50 { 0.5 * step } else { -0.5 * step };
        self.q90 += if log > self.q90 { 0.9 * step } else { -0.1 * step };
    }
}

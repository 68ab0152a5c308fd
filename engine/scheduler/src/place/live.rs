//! Learns from attempts that ended what tasks use alone, and how much they slow each other down.
//!
//! An attempt that ran alone teaches what its kind uses and how long it takes. One that ran beside others teaches what these
//! cost it: by how much longer it took, where attempts of its kind alone take about as long as each other, else by how long it
//! stalled. What that is, as a logarithm, is shared among those beside it by least mean squares. Pairs that were never seen go
//! by the model of [`super::contention`] over those that were.
//!
//! Invariants: it holds at most [`KINDS_MAX`] kinds and the pairs of them; whatever it is told, what it says is a number.

mod peaks;
mod saved;

use std::collections::BTreeMap;

use super::contention::{Contention, Profile, SPEED_MIN, Sample};
pub use peaks::Memory;
use peaks::Peaks;

/// Most kinds; their pairs fit into some hundred kilobytes.
pub const KINDS_MAX: usize = 64;
/// An attempt with fewer beside it on average ran alone.
const ALONE: f32 = 0.05;
/// Attempts by which a mean is still moved by a whole part; later ones move it by one in so many.
const MEMORY: f32 = 20.0;
const PAIR_MEMORY: f32 = 10.0;
/// Without so many attempts alone, or with run times that differ by more (mean deviation of the logarithm), stalls say more.
const ALONE_MIN: f32 = 2.0;
const SPREAD_MAX: f32 = 0.3;
/// Slowdowns beyond this (of the logarithm) are taken for this much.
const LOSS_MAX: f32 = 3.0;
/// Weight that the model of all pairs has beside what was seen of one.
const MODEL_WEIGHT: f32 = 1.0;
/// Run times that are believed, in milliseconds.
const RUN_MS_MIN: f64 = 0.1;
const RUN_MS_MAX: f64 = 1e10;

/// An attempt that ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// How long it ran, in milliseconds.
    pub run_ms: f64,
    /// It did all its work.
    pub is_whole: bool,
    /// What it used.
    pub profile: Profile,
    /// The part of its time that it stalled, if that is known.
    pub stalled: Option<f32>,
    /// The most memory that it had, in bytes, if that is known.
    pub peak_bytes: Option<f32>,
}

/// Tasks of one kind.
#[derive(Clone, Debug, Default)]
struct Kind {
    profile: Profile,
    /// Attempts that taught what it uses, and whether they ran alone.
    profiles: f32,
    is_alone: bool,
    /// Of attempts alone: how many, mean logarithm of the run time, its mean deviation, and the part stalled.
    alone: f32,
    log_run: f32,
    spread: f32,
    stalled: f32,
    /// Mean logarithm of all run times, and how many.
    log_any: f32,
    any: f32,
    peaks: Peaks,
}

/// What one kind suffers beside another, as a logarithm, and by how many attempts that is known.
#[derive(Clone, Copy, Debug, Default)]
struct Pair {
    loss: f32,
    weight: f32,
}

/// The model of a machine park.
#[derive(Clone, Debug)]
pub struct Live {
    /// What each kind is known by.
    keys: Vec<u64>,
    kinds: Vec<Kind>,
    pairs: BTreeMap<(usize, usize), Pair>,
    model: Contention,
    /// Attempts since the model was made.
    untaught: usize,
}

impl Default for Live {
    fn default() -> Self {
        Self {
            keys: Vec::new(),
            kinds: Vec::new(),
            pairs: BTreeMap::new(),
            model: Contention::learn(&[], &[]),
            untaught: 0,
        }
    }
}

/// Moves a mean towards a value, by a whole part at first.
fn follow(mean: &mut f32, count: &mut f32, value: f32, memory: f32) {
    *count = (*count + 1.0).min(memory);
    *mean += (value - *mean) / *count;
}

impl Live {
    /// The kind with this key, made on first use; `None` when there are as many as there may be.
    pub fn kind(&mut self, key: u64) -> Option<usize> {
        let number = self.kinds.len();
        if let Some(known) = self.keys.iter().position(|&known| known == key) {
            return Some(known);
        }
        (number < KINDS_MAX).then(|| self.kinds.push(Kind::default()))?;
        self.keys.push(key);
        self.untaught = usize::MAX;
        Some(number)
    }

    /// Kinds that are known.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.kinds.len()
    }

    /// Whether none is.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.kinds.is_empty()
    }

    /// An attempt of a kind ended, beside which so many of other kinds ran on average. What is no number, or of no kind, is
    /// dropped.
    pub fn learn(&mut self, kind: usize, ended: &Ended, beside: &[(usize, f32)]) {
        let count = self.kinds.len();
        let is_sound = |(other, share): &&(usize, f32)| *other < count && share.is_finite() && *share > 0.0;
        if kind >= count || !ended.run_ms.is_finite() || ended.run_ms <= 0.0 {
            return;
        }
        ended.peak_bytes.into_iter().for_each(|bytes| self.kinds[kind].peaks.learn(bytes));
        let beside: Vec<(usize, f32)> =
            beside.iter().filter(is_sound).map(|&(other, share)| (other, share.min(1e3))).collect();
        let is_alone = beside.iter().map(|(_, share)| share).sum::<f32>() < ALONE;
        #[expect(clippy::cast_possible_truncation, reason = "a logarithm of bounded numbers")]
        let log_run = ended.run_ms.clamp(RUN_MS_MIN, RUN_MS_MAX).ln() as f32;
        let stalled = ended.stalled.filter(|part| part.is_finite()).map(|part| part.clamp(0.0, 0.95));
        self.learn_alone(kind, ended, is_alone, log_run, stalled);
        if !is_alone {
            let known = &self.kinds[kind];
            let is_steady = known.alone >= ALONE_MIN && known.spread <= SPREAD_MAX;
            let loss = match stalled {
                _ if ended.is_whole && is_steady => Some(log_run - known.log_run),
                Some(part) => Some(-(1.0 - (part - known.stalled).clamp(0.0, 0.95)).ln()),
                None => None,
            };
            if let Some(loss) = loss {
                self.share(kind, loss.clamp(-0.2, LOSS_MAX), &beside);
            }
        }
        self.untaught = self.untaught.saturating_add(1);
        if self.untaught > self.pairs.len() / 4 {
            self.teach();
        }
    }

    fn learn_alone(&mut self, kind: usize, ended: &Ended, is_alone: bool, log_run: f32, stalled: Option<f32>) {
        let known = &mut self.kinds[kind];
        // What it used beside others is less than what it would use; until it runs alone that has to do.
        if is_alone && !known.is_alone {
            (known.is_alone, known.profiles) = (true, 0.0);
        }
        if is_alone || !known.is_alone {
            known.profiles = (known.profiles + 1.0).min(MEMORY);
            for (mean, value) in known.profile.iter_mut().zip(ended.profile) {
                let value = if value.is_finite() { value.clamp(0.0, 1.5) } else { 0.0 };
                *mean += (value - *mean) / known.profiles;
            }
        }
        if ended.is_whole {
            follow(&mut known.log_any, &mut known.any, log_run, MEMORY);
        }
        if ended.is_whole && is_alone {
            let (mut count, gap) = (known.alone, (log_run - known.log_run).abs());
            follow(&mut known.log_run, &mut known.alone, log_run, MEMORY);
            // The first has nothing to differ from.
            if count > 0.0 {
                count -= 1.0;
                follow(&mut known.spread, &mut count, gap, MEMORY);
            }
            if let Some(stalled) = stalled {
                known.stalled += (stalled - known.stalled) / known.alone;
            }
        }
    }

    /// Shares a loss among those that ran beside it.
    fn share(&mut self, kind: usize, loss: f32, beside: &[(usize, f32)]) {
        let now = |other: usize, share: f32| share * self.pairs.get(&(kind, other)).map_or(0.0, |pair| pair.loss);
        let error = loss - beside.iter().map(|&(other, share)| now(other, share)).sum::<f32>();
        let square = beside.iter().map(|(_, share)| share * share).sum::<f32>().max(0.25);
        for &(other, share) in beside {
            let pair = self.pairs.entry((kind, other)).or_default();
            pair.weight = (pair.weight + share.min(1.0)).min(PAIR_MEMORY);
            let step = share / square / pair.weight.max(1.0);
            pair.loss = (pair.loss + step * error).clamp(-0.2, LOSS_MAX);
        }
    }

    fn teach(&mut self) {
        let profiles: Vec<Profile> = self.kinds.iter().map(|kind| kind.profile).collect();
        let sample =
            |(&(task, other), pair): (&(usize, usize), &Pair)| Sample { task, other, speed: (-pair.loss).exp() };
        let samples: Vec<Sample> = self.pairs.iter().map(sample).collect();
        self.model = Contention::learn(&profiles, &samples);
        self.untaught = 0;
    }

    /// The speed of a kind beside one task of another, as a part of its speed alone.
    #[must_use]
    pub fn speed(&self, kind: usize, other: usize) -> f32 {
        let known = self.kinds.len().min(self.model.len());
        if kind >= known || other >= known {
            return 1.0;
        }
        let model = -self.model.speed(kind, other).ln();
        let pair = self.pairs.get(&(kind, other)).copied().unwrap_or_default();
        let part = pair.weight / (pair.weight + MODEL_WEIGHT);
        (part * -pair.loss - (1.0 - part) * model).exp().clamp(0.05, 1.2)
    }

    /// Whether two are better kept apart: either is predicted to run at less than [`SPEED_MIN`] beside the other.
    #[must_use]
    pub fn contend(&self, kind: usize, other: usize) -> bool {
        self.speed(kind, other).min(self.speed(other, kind)) < SPEED_MIN
    }

    /// How long a task of a kind runs alone, in milliseconds; where none did, beside others.
    #[must_use]
    pub fn run_ms(&self, kind: usize) -> Option<f32> {
        let known = self.kinds.get(kind)?;
        if known.alone > 0.0 { Some(known.log_run.exp()) } else { (known.any > 0.0).then(|| known.log_any.exp()) }
    }

    /// How much memory the next task of a kind will have at most, by what the last ones had.
    #[must_use]
    pub fn memory(&self, kind: usize) -> Option<Memory> {
        self.kinds.get(kind)?.peaks.expect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What an attempt of a kind says that ran at this speed.
    fn ended(work_ms: f64, speed: f64, stalls: bool) -> Ended {
        #[expect(clippy::cast_possible_truncation, reason = "a part")]
        let stalled = stalls.then_some(1.0 - speed as f32);
        Ended { run_ms: work_ms / speed, is_whole: true, profile: [0.5, 0.0, 0.1], stalled, peak_bytes: None }
    }

    fn kinds(live: &mut Live, count: u64) -> Vec<usize> {
        (0..count).map(|key| live.kind(key).unwrap()).collect()
    }

    #[test]
    fn a_pair_is_learned_by_run_times_or_by_stalls() {
        for (stalls, spread) in [(false, 1.0), (true, 1.0), (true, 8.0)] {
            let mut live = Live::default();
            let [a, b] = kinds(&mut live, 2)[..] else { unreachable!() };
            for round in 0..20 {
                // With a spread, run times say little.
                let work_ms = 100.0 * if round % 2 == 0 { spread } else { 1.0 };
                live.learn(a, &ended(work_ms, 1.0, stalls), &[]);
                live.learn(b, &ended(50.0, 1.0, stalls), &[]);
                live.learn(a, &ended(work_ms, 0.6, stalls), &[(b, 1.0)]);
                live.learn(b, &ended(50.0, 0.95, stalls), &[(a, 1.0)]);
            }
            let speeds = [live.speed(a, b), live.speed(b, a)];
            assert!((speeds[0] - 0.6).abs() < 0.06 && (speeds[1] - 0.95).abs() < 0.06, "{stalls} {spread}: {speeds:?}");
            assert!(live.contend(a, b) && live.contend(b, a));
            assert!((live.run_ms(b).unwrap() - 50.0).abs() < 1.0);
        }
    }

    #[test]
    fn what_several_cost_is_shared_among_them() {
        let mut live = Live::default();
        let [task, bad, good] = kinds(&mut live, 3)[..] else { unreachable!() };
        for round in 0..60_u8 {
            live.learn(task, &ended(100.0, 1.0, false), &[]);
            let beside = [(bad, f32::from(round % 3)), (good, f32::from(round % 2))];
            live.learn(task, &ended(100.0, 0.7_f64.powi(i32::from(round % 3)), false), &beside);
        }
        let speeds = [live.speed(task, bad), live.speed(task, good)];
        assert!((speeds[0] - 0.7).abs() < 0.08 && speeds[1] > 0.92, "{speeds:?}");
    }

    #[test]
    fn a_pair_never_seen_goes_by_what_its_like_do() {
        let mut live = Live::default();
        let all = kinds(&mut live, 8);
        // The first four use the whole processor and halve each other, the others nothing; one pair was never seen.
        for _ in 0..10 {
            for &task in &all {
                let cpu = if task < 4 { 1.0 } else { 0.05 };
                live.learn(task, &Ended { profile: [cpu, 0.0, 0.0], ..ended(100.0, 1.0, true) }, &[]);
                for &other in all.iter().filter(|&&other| (task, other) != (0, 1) && (task, other) != (1, 0)) {
                    let speed = if task < 4 && other < 4 { 0.5 } else { 1.0 };
                    live.learn(task, &ended(100.0, speed, true), &[(other, 1.0)]);
                }
            }
        }
        assert!(live.contend(0, 1), "{}", live.speed(0, 1));
        assert!(!live.contend(0, 5) && !live.contend(6, 7), "{} {}", live.speed(0, 5), live.speed(6, 7));
    }

    #[test]
    fn there_are_no_more_kinds_than_fit_and_what_was_saved_predicts_alike() {
        let mut live = Live::default();
        kinds(&mut live, KINDS_MAX as u64);
        assert_eq!((live.kind(1_000), live.kind(3)), (None, Some(3)));
        live.learn(3, &ended(80.0, 1.0, true), &[]);
        live.learn(3, &ended(80.0, 0.5, true), &[(4, 1.0)]);
        for peak in 1..40_u8 {
            live.learn(5, &Ended { peak_bytes: Some(f32::from(peak)), ..ended(10.0, 1.0, true) }, &[]);
        }
        let mut again = Live::of_bytes(&live.to_bytes());
        assert_eq!((again.kind(3), again.kind(1_000), again.run_ms(3)), (Some(3), None, live.run_ms(3)));
        assert_eq!((again.memory(5), again.memory(4)), (live.memory(5), None));
        again.learn(5, &Ended { peak_bytes: Some(1_000.0), ..ended(10.0, 1.0, true) }, &[]);
        live.learn(5, &Ended { peak_bytes: Some(1_000.0), ..ended(10.0, 1.0, true) }, &[]);
        assert!(again.memory(5).is_some() && again.memory(5) == live.memory(5), "what is oldest goes first");
        assert!((again.speed(3, 4) - live.speed(3, 4)).abs() < 0.01 && again.speed(3, 4) < 0.9);
    }

    proptest! {
        #[test]
        fn whatever_it_is_told_what_it_says_is_a_number(
            told in proptest::collection::vec(
                (0_usize..5, any::<f64>(), any::<[f32; 3]>(), proptest::option::of(any::<f32>()), any::<bool>(),
                 proptest::collection::vec((0_usize..6, any::<f32>()), 0..4)),
                0..80,
            ),
            flips in proptest::collection::vec((any::<usize>(), any::<u8>()), 0..40),
            cut in any::<usize>(),
        ) {
            let mut live = Live::default();
            kinds(&mut live, 4);
            for (kind, run_ms, profile, stalled, is_whole, beside) in told {
                let peak_bytes = profile.first().copied();
                live.learn(kind, &Ended { run_ms, is_whole, profile, stalled, peak_bytes }, &beside);
            }
            let mut bytes = live.to_bytes();
            for (at, value) in flips {
                let at = at % bytes.len();
                bytes[at] = value;
            }
            bytes.truncate(cut % (bytes.len() + 1));
            for live in [&live, &Live::of_bytes(&bytes)] {
                for (task, other) in (0..6).flat_map(|task| (0..6).map(move |other| (task, other))) {
                    prop_assert!((0.05..=1.2).contains(&live.speed(task, other)), "{}", live.speed(task, other));
                    prop_assert!(live.memory(task).is_none_or(|of| of.median_bytes > 0.0 && of.median_bytes <= of.most_bytes));
                    prop_assert!(live.run_ms(task).is_none_or(|ms| ms.is_finite() && ms > 0.0));
                }
            }
        }
    }
}

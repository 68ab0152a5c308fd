//! What was learned of tasks beside each other, as bytes that outlive it: losing them costs quality only, and broken ones teach nothing.
//!
//! Little-endian: the number of kinds; of each its key, its values, how many peaks it has and these; then of each pair both kinds, loss
//! and weight.

use super::peaks::{PEAKS_MAX, Peaks};
use super::{KINDS_MAX, Kind, LOSS_MAX, Live, MEMORY, PAIR_MEMORY, Pair, RUN_MS_MAX};

/// Values of a kind.
const VALUES: usize = 11;
/// A kind without its peaks.
const KIND_BYTES: usize = size_of::<u64>() + VALUES * size_of::<f32>() + 1;
const PAIR_BYTES: usize = 2 + 2 * size_of::<f32>();

fn values(kind: &Kind) -> [f32; VALUES] {
    let [a, b, c] = kind.profile;
    let is_alone = f32::from(u8::from(kind.is_alone));
    let Kind { profiles, alone, log_run, spread, stalled, log_any, any, .. } = *kind;
    [a, b, c, profiles, is_alone, alone, log_run, spread, stalled, log_any, any]
}

/// The kind with these values; one that is no number, or out of bounds, is taken for what is nearest and nothing more.
fn kind(values: [f32; VALUES]) -> Kind {
    let [a, b, c, profiles, is_alone, alone, log_run, spread, stalled, log_any, any] = values;
    #[expect(clippy::cast_possible_truncation, reason = "a bound")]
    let longest = RUN_MS_MAX.ln() as f32;
    Kind {
        profile: [a, b, c].map(|use_of| within(use_of, 0.0, 1.5)),
        profiles: within(profiles, 0.0, MEMORY),
        is_alone: is_alone == 1.0,
        alone: within(alone, 0.0, MEMORY),
        log_run: within(log_run, -longest, longest),
        spread: within(spread, 0.0, longest),
        stalled: within(stalled, 0.0, 0.95),
        log_any: within(log_any, -longest, longest),
        any: within(any, 0.0, MEMORY),
        peaks: Peaks::default(),
    }
}

fn within(value: f32, least: f32, most: f32) -> f32 {
    if value.is_finite() { value.clamp(least, most) } else { least.max(0.0) }
}

fn float(bytes: &[u8], at: usize) -> f32 {
    bytes.get(at..at + 4).and_then(|four| four.try_into().ok()).map_or(0.0, f32::from_le_bytes)
}

impl Live {
    /// All that was learned, as bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![u8::try_from(self.kinds.len()).unwrap_or(u8::MAX)];
        for (key, kind) in self.keys.iter().zip(&self.kinds) {
            bytes.extend_from_slice(&key.to_le_bytes());
            bytes.extend(values(kind).into_iter().flat_map(f32::to_le_bytes));
            bytes.push(u8::try_from(kind.peaks.iter().count()).unwrap_or(0));
            bytes.extend(kind.peaks.iter().flat_map(f32::to_le_bytes));
        }
        for (&(task, other), pair) in &self.pairs {
            bytes.extend([task, other].map(|kind| u8::try_from(kind).unwrap_or(u8::MAX)));
            bytes.extend([pair.loss, pair.weight].into_iter().flat_map(f32::to_le_bytes));
        }
        bytes
    }

    /// What [`Self::to_bytes`] gave. What cannot have been learned is left out.
    #[must_use]
    pub fn of_bytes(bytes: &[u8]) -> Self {
        let mut live = Self::default();
        let Some((&count, mut rest)) = bytes.split_first() else { return live };
        let count = usize::from(count).min(KINDS_MAX);
        for _ in 0..count {
            let Some((bytes, after)) = rest.split_at_checked(KIND_BYTES) else { return Self::default() };
            let Some((peaks, after)) = after.split_at_checked(4 * usize::from(bytes[KIND_BYTES - 1])) else {
                return Self::default();
            };
            let key = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
            if live.keys.contains(&key) || peaks.len() > 4 * PEAKS_MAX {
                return Self::default();
            }
            let mut kind = kind(core::array::from_fn(|value| float(bytes, 8 + 4 * value)));
            (0..peaks.len()).step_by(4).for_each(|at| kind.peaks.learn(float(peaks, at)));
            live.keys.push(key);
            live.kinds.push(kind);
            rest = after;
        }
        for bytes in rest.chunks_exact(PAIR_BYTES) {
            let (task, other) = (usize::from(bytes[0]), usize::from(bytes[1]));
            let (loss, weight) = (within(float(bytes, 2), -0.2, LOSS_MAX), within(float(bytes, 6), 0.0, PAIR_MEMORY));
            if task < count && other < count && weight > 0.0 {
                live.pairs.insert((task, other), Pair { loss, weight });
            }
        }
        live.teach();
        live
    }
}

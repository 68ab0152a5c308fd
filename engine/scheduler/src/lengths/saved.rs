//! Distributions as bytes, for after a restart.
//!
//! The format, how far predictions move from key to key, how many of the limits' histograms follow and these, then each cell: its key, and
//! its histogram. A histogram is its weight, how many lengths it has, and these: the number of each and what it weighs. Little-endian.

use super::limits::Limits;
use super::{BINS, Histogram, Lengths};

/// The format. The first one had none and began with a part, which is no more than 1, so its cells, which had other keys, are not taken.
const FORMAT: u32 = u32::from_be_bytes(*b"LEN2");
/// No cell weighs more: a sample adds one, and the longest memory keeps 0.999.
const WEIGHT_MAX: f32 = 1_000.5;

/// Takes the next number of this many bytes.
fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*head)
}

fn float(bytes: &mut &[u8], most: f32) -> Option<f32> {
    let value = f32::from_le_bytes(take(bytes)?);
    // What was learned is within its bounds; no number is in no range.
    (0.0..=most).contains(&value).then_some(value)
}

fn write(histogram: &Histogram, bytes: &mut Vec<u8>) {
    bytes.extend_from_slice(&histogram.weight.to_le_bytes());
    let lengths = || (0u8..).zip(&histogram.bins).filter(|(_, amount)| **amount > 0.0);
    bytes.push(u8::try_from(lengths().count()).expect("there are 64"));
    for (number, amount) in lengths() {
        bytes.push(number);
        bytes.extend_from_slice(&amount.to_le_bytes());
    }
}

fn histogram(bytes: &mut &[u8]) -> Option<Histogram> {
    let mut histogram = Histogram { weight: float(bytes, WEIGHT_MAX)?, bins: [0.0; BINS] };
    let [count] = take(bytes)?;
    for _ in 0..count {
        let [number] = take(bytes)?;
        *histogram.bins.get_mut(usize::from(number))? = float(bytes, WEIGHT_MAX)?;
    }
    Some(histogram)
}

fn limits(bytes: &mut &[u8]) -> Option<Limits> {
    let [count] = take(bytes)?;
    if count == 0 {
        return Some(Limits::default());
    }
    let all = histogram(bytes).filter(|all| all.weight > 0.0)?;
    let of: Option<Vec<Histogram>> = (1..count).map(|_| histogram(bytes)).collect();
    Some(Limits { all, of: of.filter(|of| of.len() == BINS)? })
}

impl Lengths {
    /// What was learned.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = FORMAT.to_le_bytes().to_vec();
        bytes.extend(self.parts.as_flattened().iter().flat_map(|part| part.to_le_bytes()));
        let limits = Some(&self.limits).filter(|limits| !limits.of.is_empty());
        bytes.push(limits.map_or(0, |limits| u8::try_from(1 + limits.of.len()).expect("there are 64")));
        for histogram in limits.into_iter().flat_map(|limits| std::iter::once(&limits.all).chain(&limits.of)) {
            write(histogram, &mut bytes);
        }
        for (key, cell) in self.table.iter().filter(|(_, cell)| cell.weight > 0.0) {
            bytes.extend_from_slice(&key.to_le_bytes());
            write(cell, &mut bytes);
        }
        bytes
    }

    /// Takes over what [`Self::to_bytes`] gave, in place of what is known, up to the first that cannot have been learned; how many cells.
    pub fn restore(&mut self, mut bytes: &[u8]) -> usize {
        *self = Self::new(self.table.size(), self.floor);
        if take(&mut bytes).map(u32::from_le_bytes) != Some(FORMAT) {
            return 0;
        }
        for part in self.parts.as_flattened_mut() {
            match float(&mut bytes, 1.0) {
                Some(value) => *part = value,
                None => return 0,
            }
        }
        let Some(limits) = limits(&mut bytes) else { return 0 };
        self.limits = limits;
        let mut taken = 0;
        while let Some((key, cell)) = cell(&mut bytes) {
            *self.table.entry(key) = cell;
            taken += 1;
        }
        taken
    }
}

fn cell(bytes: &mut &[u8]) -> Option<(u64, Histogram)> {
    let key = u64::from_le_bytes(take(bytes)?);
    let cell = histogram(bytes)?;
    (key != 0 && cell.weight > 0.0).then_some((key, cell))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::predictor::{Facts, Keys};
    use crate::testing::{damaged, keys};

    /// Keys of a kind's tasks that declared a limit.
    fn limited(kind: u32) -> Keys {
        Keys::new(&Facts { tenant: 1, kind, width: 1, limit: 1_000, ..Facts::default() })
    }

    fn taught() -> Lengths {
        let mut lengths = Lengths::new(1 << 8, 10);
        for round in 0..60 {
            for kind in 1..8 {
                lengths.learn(&keys(kind), i64::from(if round % 9 == 0 { 100_000 } else { kind * 20 + round }));
                lengths.learn(&limited(kind), i64::from(kind * 30 + round));
            }
        }
        lengths
    }

    #[test]
    fn restored_distributions_judge_and_learn_alike() {
        let mut before = taught();
        let mut after = Lengths::new(1 << 8, 10);
        assert!(after.restore(&before.to_bytes()) > 7);
        for kind in 1..8 {
            for outlived in [0, 1_000] {
                assert_eq!(after.attempt(&keys(kind), outlived), before.attempt(&keys(kind), outlived));
                assert_eq!(after.attempt(&limited(kind), outlived), before.attempt(&limited(kind), outlived));
            }
            before.learn(&keys(kind), 700);
            after.learn(&keys(kind), 700);
            assert_eq!(after.going_on(&keys(kind), 500), before.going_on(&keys(kind), 500));
        }
    }

    #[test]
    fn bytes_of_the_first_format_are_not_taken() {
        let mut lengths = taught();
        assert_eq!(lengths.restore(&taught().to_bytes()[4..]), 0);
        assert_eq!(lengths.shape(&keys(1)), None);
    }

    proptest! {
        #[test]
        fn broken_bytes_poison_nothing(bytes in damaged(taught().to_bytes())) {
            let mut lengths = Lengths::new(1 << 8, 10);
            lengths.restore(&bytes);
            for kind in 1..8 {
                lengths.learn(&keys(kind), 100);
                for keys in [keys(kind), limited(kind)] {
                    let attempt = lengths.attempt(&keys, 0);
                    prop_assert!(attempt.rank.is_finite(), "{attempt:?}");
                    prop_assert!(attempt.until.is_none_or(|until| until > 0), "{attempt:?}");
                }
            }
        }
    }
}

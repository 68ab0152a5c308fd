//! Distributions as bytes, for after a restart.
//!
//! How far predictions move from key to key, then each cell: its key, its weight, how many lengths it has, and these: the number of each
//! and what it weighs. Little-endian.

use super::{BINS, Histogram, Lengths};
use crate::predictor::table::Table;

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

impl Lengths {
    /// What was learned.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.parts.as_flattened().iter().flat_map(|part| part.to_le_bytes()).collect();
        for (key, cell) in self.table.iter().filter(|(_, cell)| cell.weight > 0.0) {
            bytes.extend_from_slice(&key.to_le_bytes());
            bytes.extend_from_slice(&cell.weight.to_le_bytes());
            let lengths = || (0u8..).zip(&cell.bins).filter(|(_, amount)| **amount > 0.0);
            bytes.push(u8::try_from(lengths().count()).expect("there are 64"));
            for (number, amount) in lengths() {
                bytes.push(number);
                bytes.extend_from_slice(&amount.to_le_bytes());
            }
        }
        bytes
    }

    /// Takes over what [`Self::to_bytes`] gave, in place of what is known, up to the first that cannot have been learned; how many cells.
    pub fn restore(&mut self, mut bytes: &[u8]) -> usize {
        self.table = Table::new(self.table.size());
        for part in self.parts.as_flattened_mut() {
            match float(&mut bytes, 1.0) {
                Some(value) => *part = value,
                None => return 0,
            }
        }
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
    let mut cell = Histogram { weight: float(bytes, WEIGHT_MAX)?, bins: [0.0; BINS] };
    let [count] = take(bytes)?;
    for _ in 0..count {
        let [number] = take(bytes)?;
        *cell.bins.get_mut(usize::from(number))? = float(bytes, WEIGHT_MAX)?;
    }
    (key != 0 && cell.weight > 0.0).then_some((key, cell))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{damaged, keys};

    fn taught() -> Lengths {
        let mut lengths = Lengths::new(1 << 8, 10);
        for round in 0..60 {
            for kind in 1..8 {
                lengths.learn(&keys(kind), i64::from(if round % 9 == 0 { 100_000 } else { kind * 20 + round }));
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
            }
            before.learn(&keys(kind), 700);
            after.learn(&keys(kind), 700);
            assert_eq!(after.going_on(&keys(kind), 500), before.going_on(&keys(kind), 500));
        }
    }

    proptest! {
        #[test]
        fn broken_bytes_poison_nothing(bytes in damaged(taught().to_bytes())) {
            let mut lengths = Lengths::new(1 << 8, 10);
            lengths.restore(&bytes);
            for kind in 1..8 {
                lengths.learn(&keys(kind), 100);
                let attempt = lengths.attempt(&keys(kind), 0);
                prop_assert!(attempt.rank.is_finite(), "{attempt:?}");
                prop_assert!(attempt.until.is_none_or(|until| until > 0), "{attempt:?}");
            }
        }
    }
}

//! What a predictor knows, as bytes that outlive it: losing them costs quality only, and broken ones teach nothing.
//!
//! Little-endian: the corrections' shifts and counts, then for each cell that has weight its key and its eight values.

use crate::predictor::conformal::Correction;
use crate::predictor::table::{Cell, Table};
use crate::predictor::{Predictor, RUN_MS_MAX};

/// Values of a cell.
const VALUES: usize = 8;
const CELL_BYTES: usize = size_of::<u64>() + VALUES * size_of::<f32>();
/// The greatest weight, count or logarithm that is believed.
const VALUE_MAX: f32 = 1e6;

fn values(cell: &Cell) -> [f32; VALUES] {
    [cell.weight, cell.count, cell.log_mean, cell.spread, cell.inverse, cell.q50, cell.q90, cell.failed]
}

/// The cell with these values, if they can be what was learned.
fn cell(values: [f32; VALUES]) -> Option<Cell> {
    let [weight, count, log_mean, spread, inverse, q50, q90, failed] = values;
    let longest = 2.0 * RUN_MS_MAX.ln();
    let is_sound = (f32::MIN_POSITIVE..=VALUE_MAX).contains(&weight)
        && (0.0..=VALUE_MAX).contains(&count)
        && [log_mean, q50, q90].iter().all(|log| log.abs() <= longest)
        && (0.0..=longest).contains(&spread)
        && (0.0..=1.0).contains(&inverse)
        && (0.0..=1.0).contains(&failed);
    is_sound.then_some(Cell { weight, count, log_mean, spread, inverse, q50, q90, failed })
}

fn floats<const N: usize>(bytes: &[u8]) -> [f32; N] {
    let mut all = [0.0; N];
    for (value, four) in all.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *value = f32::from_le_bytes(*four);
    }
    all
}

impl Predictor {
    /// All that was learned, as bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.correction.values().into_iter().flat_map(f32::to_le_bytes).collect();
        for (key, cell) in self.table.iter().filter(|(_, cell)| cell.weight > 0.0) {
            bytes.extend_from_slice(&key.to_le_bytes());
            bytes.extend(values(cell).into_iter().flat_map(f32::to_le_bytes));
        }
        bytes
    }

    /// Takes over what [`Self::to_bytes`] gave, in place of what is known; how many cells were taken. What cannot have been learned is
    /// left out.
    pub fn restore(&mut self, bytes: &[u8]) -> usize {
        let correction = size_of::<[f32; Correction::VALUES]>();
        let Some((head, cells)) = bytes.split_at_checked(correction) else { return 0 };
        self.correction = Correction::from_values(floats(head));
        self.table = Table::new(self.table.size());
        let mut taken = 0;
        for bytes in cells.as_chunks::<CELL_BYTES>().0 {
            let (key, rest) = bytes.split_at(size_of::<u64>());
            let key = u64::from_le_bytes(key.try_into().expect("eight bytes"));
            if let Some(cell) = cell(floats(rest)).filter(|_| key != 0) {
                *self.table.entry(key) = cell;
                taken += 1;
            }
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{damaged, keys};

    fn taught() -> Predictor {
        let mut predictor = Predictor::new(1 << 10, 10);
        for round in 0..50 {
            for kind in 1..20 {
                predictor.learn(&keys(kind), 0, f64::from(kind * 100 + round), round % 7 == 0, None);
            }
        }
        predictor
    }

    #[test]
    fn a_restored_predictor_predicts_and_learns_alike() {
        let mut before = taught();
        let mut after = Predictor::new(1 << 10, 10);
        assert!(after.restore(&before.to_bytes()) > 19);
        for kind in 1..20 {
            assert_eq!(after.predict(&keys(kind), 0), before.predict(&keys(kind), 0));
            before.learn(&keys(kind), 0, 5.0, false, None);
            after.learn(&keys(kind), 0, 5.0, false, None);
            assert_eq!(after.predict(&keys(kind), 0), before.predict(&keys(kind), 0));
        }
    }

    proptest! {
        #[test]
        fn broken_bytes_poison_nothing(bytes in damaged(taught().to_bytes())) {
            let mut predictor = Predictor::new(1 << 10, 10);
            predictor.restore(&bytes);
            for kind in 1..20 {
                predictor.learn(&keys(kind), 0, 100.0, false, None);
                let made = predictor.predict(&keys(kind), 0);
                prop_assert!(made.q50.is_finite() && made.q90.is_finite() && made.rank(1).is_finite(), "{made:?}");
            }
        }
    }
}

//! How much memory tasks of a kind had at most, by the last of them.

/// Attempts that are remembered: a median and a 0.9 quantile of one's own need no more, and what a new version of a program needs shows soon.
pub(super) const PEAKS_MAX: usize = 32;
/// Most memory that is believed, in bytes: 1 PiB.
const BYTES_MAX: f32 = 1_125_899_906_842_624.0;

/// The last attempts of a kind.
#[derive(Clone, Debug, Default)]
pub(super) struct Peaks {
    /// In bytes, in a ring.
    bytes: Vec<f32>,
    /// Where the oldest is, of as many as there may be.
    oldest: usize,
}

/// Peak memory of a kind's attempts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Memory {
    /// Half had no more, in bytes.
    pub median_bytes: f32,
    /// The next one has no more in nine of ten cases, in bytes; of fewer than nine attempts the greatest.
    pub most_bytes: f32,
    /// Attempts by which that is said.
    pub attempts: usize,
}

impl Peaks {
    /// An attempt had so many bytes; what is no number, or none, is dropped.
    pub(super) fn learn(&mut self, bytes: f32) {
        if !bytes.is_finite() || bytes <= 0.0 {
            return;
        }
        let bytes = bytes.min(BYTES_MAX);
        if self.bytes.len() < PEAKS_MAX {
            self.bytes.push(bytes);
        } else {
            self.bytes[self.oldest] = bytes;
            self.oldest = (self.oldest + 1) % PEAKS_MAX;
        }
    }

    /// What is expected of the next one.
    pub(super) fn expect(&self) -> Option<Memory> {
        let mut sorted = self.bytes.clone();
        sorted.sort_unstable_by(f32::total_cmp);
        let attempts = sorted.len();
        // Of as many and one more, nine tenths are at or below this one, if there are enough.
        let most = ((attempts + 1) * 9).div_ceil(10).clamp(1, attempts.max(1));
        let (median_bytes, most_bytes) = (*sorted.get(attempts.div_ceil(2).max(1) - 1)?, *sorted.get(most - 1)?);
        Some(Memory { median_bytes, most_bytes, attempts })
    }

    /// In bytes, the oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = f32> + '_ {
        let (late, early) = self.bytes.split_at(self.oldest);
        early.iter().chain(late).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_attempts_say_what_the_next_one_has() {
        let mut peaks = Peaks::default();
        assert_eq!(peaks.expect(), None);
        peaks.learn(5.0);
        assert_eq!(peaks.expect(), Some(Memory { median_bytes: 5.0, most_bytes: 5.0, attempts: 1 }));
        // What was long ago counts no more, and what cannot be never did.
        for bytes in (0..100_u8).map(f32::from).chain([f32::NAN, -1.0, f32::INFINITY]) {
            peaks.learn(bytes);
        }
        let expected = peaks.expect().unwrap();
        assert_eq!(expected, Memory { median_bytes: 83.0, most_bytes: 97.0, attempts: PEAKS_MAX });
        assert!(peaks.iter().eq((68..100_u8).map(f32::from)));
    }
}

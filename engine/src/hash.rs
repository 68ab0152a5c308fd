//! A fixed-seed hasher for tables keyed by names and keys.
//!
//! Deterministic across runs and machines, as replicas require; tables are bounded by admission limits and their
//! iteration order is never used.

use core::hash::{BuildHasher, Hasher};

/// Builds [`FixedHasher`]s.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct FixedState;

impl BuildHasher for FixedState {
    type Hasher = FixedHasher;
    fn build_hasher(&self) -> FixedHasher {
        FixedHasher(0xCBF2_9CE4_8422_2325)
    }
}

/// Multiply-rotate over 8-byte words.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FixedHasher(u64);

impl FixedHasher {
    const fn add(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(23) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

impl Hasher for FixedHasher {
    fn finish(&self) -> u64 {
        let folded = self.0 ^ (self.0 >> 29);
        folded.wrapping_mul(0xBF58_476D_1CE4_E5B9) ^ (folded >> 32)
    }

    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.add(u64::from_le_bytes(*word));
        }
        let mut last = [0u8; 8];
        last[..rest.len()].copy_from_slice(rest);
        self.add(u64::from_le_bytes(last) ^ ((bytes.len() as u64) << 56));
    }

    fn write_u64(&mut self, word: u64) {
        self.add(word);
    }
}

/// Spreads the bits of a number over all of it.
pub(crate) const fn mix64(number: u64) -> u64 {
    let mixed = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

/// Mixes bytes into a number.
pub(crate) fn mix_bytes(number: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(number, |mixed, &byte| mix64(mixed ^ u64::from(byte)))
}

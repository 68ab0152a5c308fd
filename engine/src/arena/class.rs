//! Size classes: which array an object of a given length lives in.
//!
//! Steps of 4 bytes up to 512 bytes, then 16 steps per power of two up to 16 KiB: an object wastes at most 3 bytes, or
//! 1/16 of its length. The class is a function of the length, so handles need not store it.

/// Longest object that lives in a class; larger ones are allocations of their own.
pub(super) const SMALL_MAX_BYTES: usize = 16 * 1024;
/// Number of classes.
pub(super) const CLASSES: usize = FINE + OCTAVES * STEPS;

const FINE_MAX_BYTES: usize = 512;
const FINE_STEP_BYTES: usize = 4;
const FINE: usize = FINE_MAX_BYTES / FINE_STEP_BYTES;
const STEPS: usize = 16;
const STEPS_BITS: usize = 4;
const FINE_BITS: usize = 9;
const OCTAVES: usize = 5;
const _: () = assert!(FINE_MAX_BYTES == 1 << FINE_BITS && STEPS == 1 << STEPS_BITS);
const _: () = assert!(FINE_MAX_BYTES << OCTAVES == SMALL_MAX_BYTES);
const _: () = assert!(size_bytes(CLASSES - 1) == SMALL_MAX_BYTES && of(SMALL_MAX_BYTES) == CLASSES - 1);

/// The smallest class that holds `len` bytes, for 1 to `SMALL_MAX_BYTES`.
#[inline]
pub(super) const fn of(len: usize) -> usize {
    if len <= FINE_MAX_BYTES {
        return (len - 1) / FINE_STEP_BYTES;
    }
    let octave = (len - 1).ilog2() as usize;
    let step = ((len - 1) >> (octave - STEPS_BITS)) % STEPS;
    FINE + (octave - FINE_BITS) * STEPS + step
}

/// Bytes an object of the class may have.
#[inline]
pub(super) const fn size_bytes(class: usize) -> usize {
    if class < FINE {
        return (class + 1) * FINE_STEP_BYTES;
    }
    let octave = (class - FINE) / STEPS + FINE_BITS;
    let step = (class - FINE) % STEPS;
    (STEPS + step + 1) << (octave - STEPS_BITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_gets_the_smallest_class_that_holds_it() {
        for len in 1..=SMALL_MAX_BYTES {
            let class = of(len);
            assert!(size_bytes(class) >= len);
            assert!(class == 0 || size_bytes(class - 1) < len, "{len} fits a smaller class than {class}");
            let waste = size_bytes(class) - len;
            assert!(waste < FINE_STEP_BYTES || waste * STEPS <= len, "{len} wastes {waste}");
        }
    }
}

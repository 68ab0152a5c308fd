//! Task and partition identities.
//!
//! A task id is 128 bits, made by the client: 48 bits of milliseconds since 1970, 16 bits of partition, 40 bits of client
//! randomness and a 24-bit sequence. It sorts by time, routes without a look-up, and makes a resubmission idempotent.
//! Its text form is 26 characters of Crockford base32, which sorts as the number does.

use core::fmt;
use core::str::FromStr;

/// A partition's number, below the cluster's partition count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartitionId(pub u16);

impl fmt::Display for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A node's identity, drawn once with its data directory and never taken from an address. Not zero.
/// Its text form is 13 characters of the alphabet of task ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u64);

/// Characters of a node id.
const NODE_ID_CHARACTERS: u32 = 13;

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0u8; NODE_ID_CHARACTERS as usize];
        for (character, place) in text.iter_mut().zip((0..NODE_ID_CHARACTERS).rev()) {
            *character = ALPHABET[usize::try_from((self.0 >> (5 * place)) & 31).expect("five bits")];
        }
        f.pad(core::str::from_utf8(&text).expect("the alphabet is ASCII"))
    }
}

impl FromStr for NodeId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        parse_base32(text, NODE_ID_CHARACTERS as usize)
            .and_then(|value| u64::try_from(value).ok())
            .map(Self)
            .ok_or_else(|| ParseIdError::new(text, "node", NODE_ID_CHARACTERS))
    }
}

/// A 128-bit task (or workflow) id. Layout on the wire: `hi` then `lo`, each a little-endian u64.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize,
)]
#[rkyv(derive(Clone, Copy, PartialEq, Eq))]
pub struct TaskId {
    /// Milliseconds since 1970 (upper 48 bits) and partition (lower 16 bits).
    pub hi: u64,
    /// Client randomness (upper 40 bits) and sequence (lower 24 bits).
    pub lo: u64,
}

/// Number of bits of the sequence in [`TaskId::lo`].
const SEQUENCE_BITS: u32 = 24;

impl TaskId {
    /// Composes an id. `time_ms` keeps its lower 48 bits, `random` its lower 40, `sequence` its lower 24.
    #[must_use]
    pub const fn new(time_ms: u64, partition: PartitionId, random: u64, sequence: u32) -> Self {
        let sequence_mask = (1u64 << SEQUENCE_BITS) - 1;
        Self {
            hi: (time_ms << 16) | partition.0 as u64,
            lo: (random << SEQUENCE_BITS) | (sequence as u64 & sequence_mask),
        }
    }

    /// The partition that owns this task.
    #[must_use]
    pub const fn partition(self) -> PartitionId {
        PartitionId(u16::from_le_bytes([self.hi.to_le_bytes()[0], self.hi.to_le_bytes()[1]]))
    }

    /// Creation time by the client's clock, in milliseconds since 1970.
    #[must_use]
    pub const fn time_ms(self) -> u64 {
        self.hi >> 16
    }

    /// Both halves as one number.
    #[must_use]
    pub const fn as_u128(self) -> u128 {
        ((self.hi as u128) << 64) | self.lo as u128
    }

    /// A 64-bit mix of the whole id, for hash tables. Ids are not secret and tables are per partition, so a fixed mix
    /// (multiply-fold) suffices; the random part of honest ids spreads them.
    #[must_use]
    pub const fn mix(self) -> u64 {
        let a = (self.lo ^ 0x9E37_79B9_7F4A_7C15) as u128;
        let b = (self.hi ^ 0xD6E8_FEB8_6659_FD93) as u128;
        let product = a.wrapping_mul(b | 1);
        let folded = fold(product);
        folded ^ (folded >> 32)
    }
}

/// Upper half xor lower half of a 128-bit product.
const fn fold(product: u128) -> u64 {
    let bytes = product.to_le_bytes();
    let mut lo = [0u8; 8];
    let mut hi = [0u8; 8];
    let mut i = 0;
    while i < 8 {
        lo[i] = bytes[i];
        hi[i] = bytes[i + 8];
        i += 1;
    }
    u64::from_le_bytes(lo) ^ u64::from_le_bytes(hi)
}

impl From<&ArchivedTaskId> for TaskId {
    fn from(archived: &ArchivedTaskId) -> Self {
        Self { hi: archived.hi.to_native(), lo: archived.lo.to_native() }
    }
}

impl From<u128> for TaskId {
    fn from(value: u128) -> Self {
        let bytes = value.to_le_bytes();
        let mut lo = [0u8; 8];
        let mut hi = [0u8; 8];
        lo.copy_from_slice(&bytes[..8]);
        hi.copy_from_slice(&bytes[8..]);
        Self { hi: u64::from_le_bytes(hi), lo: u64::from_le_bytes(lo) }
    }
}

const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.as_u128();
        let mut text = [0u8; 26];
        for (i, character) in text.iter_mut().enumerate() {
            let shift = 5 * (25 - i);
            *character = ALPHABET[usize::try_from((value >> shift) & 31).expect("five bits")];
        }
        f.pad(core::str::from_utf8(&text).expect("the alphabet is ASCII"))
    }
}

impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is not a task id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is not a {what} id: expected {characters} characters of 0-9 and a-z without i, l, o, u")]
pub struct ParseIdError {
    text: String,
    what: &'static str,
    characters: u32,
}

impl ParseIdError {
    fn new(text: &str, what: &'static str, characters: u32) -> Self {
        Self { text: text.chars().take(40).collect(), what, characters }
    }
}

/// The number behind `characters` base-32 digits, if there are just that many and they fit 128 bits.
fn parse_base32(text: &str, characters: usize) -> Option<u128> {
    if text.len() != characters {
        return None;
    }
    text.bytes().try_fold(0u128, |value, byte| {
        let digit = ALPHABET.iter().position(|&c| c == byte.to_ascii_lowercase())?;
        (value >> 123 == 0).then_some((value << 5) | digit as u128)
    })
}

impl FromStr for TaskId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_base32(text, 26).map(Self::from).ok_or_else(|| ParseIdError::new(text, "task", 26))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn text_form_round_trips_and_sorts_like_the_number(a: u128, b: u128) {
            let (x, y) = (TaskId::from(a), TaskId::from(b));
            prop_assert_eq!(x.to_string().parse::<TaskId>().unwrap(), x);
            prop_assert_eq!(x.cmp(&y), x.to_string().cmp(&y.to_string()));
            prop_assert_eq!(x.as_u128(), a);
        }

        #[test]
        fn id_carries_its_partition_and_time(time_ms in 0u64..(1 << 48), p in 0u16..4096, r: u64, s: u32) {
            let id = TaskId::new(time_ms, PartitionId(p), r, s);
            prop_assert_eq!(id.partition(), PartitionId(p));
            prop_assert_eq!(id.time_ms(), time_ms);
        }
    }

    #[test]
    fn node_ids_round_trip() {
        for value in [1, 31, 32, u64::MAX] {
            let text = NodeId(value).to_string();
            assert_eq!((text.len(), text.parse()), (13, Ok(NodeId(value))));
        }
        assert!("zzzzzzzzzzzzz".parse::<NodeId>().unwrap_err().to_string().contains("13 characters"));
    }

    #[test]
    fn nonsense_text_is_refused_with_a_sentence() {
        for text in
            ["", "abc", "zzzzzzzzzzzzzzzzzzzzzzzzzz", "0000000000000000000000000u", "é0000000000000000000000000"]
        {
            assert!(text.parse::<TaskId>().unwrap_err().to_string().contains("26 characters"), "{text}");
        }
    }
}

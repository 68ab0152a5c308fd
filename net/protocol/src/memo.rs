//! The key under which the result of a memoised task is remembered, and the partition that it leads to.
//!
//! A server makes the key from what it was sent, so that a client which computes it wrongly harms nobody: its task goes to another
//! partition and does not meet its like. `docs/formats/protocol.md` has the definition.

use crate::PartitionId;

/// What the hash begins with.
const CONTEXT: &[u8] = b"taskmaster memo 1\0";

/// BLAKE3 over namespace, kind, the kind's version and payload.
pub type Key = [u8; 32];

/// The key of a task. The namespace is never empty: that would be `default`.
///
/// # Panics
/// If a name has 4 GiB or more.
#[must_use]
pub fn key(namespace: &str, kind: &str, version: &[u8], payload: &[u8]) -> Key {
    let mut hasher = blake3::Hasher::new();
    hasher.update(CONTEXT);
    for part in [namespace.as_bytes(), kind.as_bytes(), version] {
        hasher.update(&u32::try_from(part.len()).expect("names are bounded").to_le_bytes());
        hasher.update(part);
    }
    *hasher.update(payload).finalize().as_bytes()
}

/// Where tasks with this key belong: only there do they meet.
#[must_use]
pub fn partition(key: &Key, partitions: u16) -> PartitionId {
    let [a, b, c, d, ..] = *key;
    let number = u32::from_le_bytes([a, b, c, d]) % u32::from(partitions.max(1));
    PartitionId(u16::try_from(number).expect("below a u16"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_counts_and_so_do_the_borders_between_them() {
        let base = key("default", "resize", b"1", b"input");
        let hex: String = base.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "43fca89dc037c100");
        for other in [
            key("other", "resize", b"1", b"input"),
            key("default", "resiz", b"e1", b"input"),
            key("default", "resize", b"2", b"input"),
            key("default", "resize", b"1i", b"nput"),
            key("default", "resize", b"1", b"input2"),
        ] {
            assert_ne!(base, other);
        }
        assert!(partition(&base, 64).0 < 64 && partition(&base, 1).0 == 0);
    }
}

//! Ids and partitions: which partition a task belongs to, made without asking the server.
//!
//! A concurrency key, else the memo key of a memoised task, else a unique key decides the partition; tasks without go wherever their
//! batch goes.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::SystemTime;

use taskmaster_protocol::{PartitionId, TaskId, memo};

use crate::task::{Rare, unix_ms};

/// The namespace an empty one stands for.
pub(crate) const DEFAULT_NAMESPACE: &str = "default";

/// The partition that a key decides, if the task has one.
pub(crate) fn keyed_partition(namespace: &str, queue: &str, rare: &Rare, partitions: u16) -> Option<PartitionId> {
    let (tag, key) = if !rare.concurrency_key.is_empty() {
        (b"\0c\0", &rare.concurrency_key)
    } else if !rare.unique_key.is_empty() {
        (b"\0u\0", &rare.unique_key)
    } else {
        return None;
    };
    let namespace = if namespace.is_empty() { DEFAULT_NAMESPACE } else { namespace };
    let mut hash = crc32c::crc32c(namespace.as_bytes());
    hash = crc32c::crc32c_append(hash, b"\0");
    hash = crc32c::crc32c_append(hash, queue.as_bytes());
    hash = crc32c::crc32c_append(hash, tag);
    hash = crc32c::crc32c_append(hash, key);
    Some(PartitionId(u16::try_from(hash % u32::from(partitions)).expect("below a u16")))
}

/// The partition where a memoised task meets those whose result is its own.
pub(crate) fn memo_partition(
    namespace: &str,
    kind: &str,
    version: &[u8],
    payload: &[u8],
    partitions: u16,
) -> PartitionId {
    let namespace = if namespace.is_empty() { DEFAULT_NAMESPACE } else { namespace };
    memo::partition(&memo::key(namespace, kind, version, payload), partitions)
}

/// A random number good enough for ids and jitter, from the standard library's hash seeds.
pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Makes ids and spreads batches over partitions.
pub(crate) struct IdMaker {
    random: u64,
    sequence: AtomicU32,
    turn: AtomicUsize,
}

impl IdMaker {
    pub(crate) fn new() -> Self {
        // The turn starts anywhere, so that many clients do not march over the partitions in step.
        let turn = usize::try_from(random() >> 40).expect("24 bits");
        Self { random: random() >> 24, sequence: AtomicU32::new(0), turn: AtomicUsize::new(turn) }
    }

    /// A fresh id. Unique within this client up to 2^24 ids per millisecond, and across clients by 40 random bits.
    pub(crate) fn id(&self, time_ms: u64, partition: PartitionId) -> TaskId {
        TaskId::new(time_ms, partition, self.random, self.sequence.fetch_add(1, Ordering::Relaxed))
    }

    /// The partition of the next batch without a key.
    pub(crate) fn next_partition(&self, partitions: u16) -> PartitionId {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % usize::from(partitions);
        PartitionId(u16::try_from(turn).expect("below a u16"))
    }
}

/// This machine's clock, in milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    unix_ms(SystemTime::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_decides_by_the_documented_hash() {
        let rare = Rare { unique_key: b"k".to_vec(), ..Rare::default() };
        let expected = crc32c::crc32c(b"default\0emails\0u\0k") % 64;
        assert_eq!(keyed_partition("", "emails", &rare, 64), Some(PartitionId(u16::try_from(expected).unwrap())));
        let rare = Rare { concurrency_key: b"c".to_vec(), ..rare };
        let expected = crc32c::crc32c(b"ns\0emails\0c\0c") % 64;
        assert_eq!(keyed_partition("ns", "emails", &rare, 64), Some(PartitionId(u16::try_from(expected).unwrap())));
        assert_eq!(keyed_partition("ns", "emails", &Rare::default(), 64), None);
    }

    #[test]
    fn ids_differ_and_partitions_take_turns() {
        let maker = IdMaker::new();
        let a = maker.id(5, PartitionId(1));
        assert_ne!(a, maker.id(5, PartitionId(1)));
        let first = maker.next_partition(3);
        assert_ne!(first, maker.next_partition(3));
        maker.next_partition(3);
        assert_eq!(first, maker.next_partition(3));
    }
}

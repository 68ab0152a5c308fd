//! Which partition keeps the position of a stream.

use crate::PartitionId;

/// The partition of a stream's topic under a number. Those of one topic lie side by side, so that they are spread evenly.
///
/// # Panics
/// Without partitions.
#[must_use]
pub fn partition_of(stream: &str, topic: &str, number: u32, partitions: u16) -> PartitionId {
    let mut hash = crc32c::crc32c(stream.as_bytes());
    hash = crc32c::crc32c_append(hash, b"\0");
    hash = crc32c::crc32c_append(hash, topic.as_bytes());
    let place = (u64::from(hash) + u64::from(number)) % u64::from(partitions);
    PartitionId(u16::try_from(place).expect("below a u16"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topics_partitions_lie_side_by_side() {
        let first = u64::from(crc32c::crc32c(b"shop\0orders"));
        for number in [0, 1, 3, u32::MAX] {
            let place = u16::try_from((first + u64::from(number)) % 64).unwrap();
            assert_eq!(partition_of("shop", "orders", number, 64), PartitionId(place));
        }
        assert_eq!(partition_of("shop", "orders", 7, 1), PartitionId(0));
    }
}

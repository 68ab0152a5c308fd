//! The write-ahead log: records in, durable seq out.
//!
//! `format` is the bytes of a block, `writer` decides what is written where, `recover` reads a log back; these three are pure
//! (no file, clock or thread), so a simulator drives them with its own disk. `segments` keeps the files, `blocking` and
//! `driver` perform the writes (std and glommio), `floor` measures what the disk itself can do.
//!
//! Invariants: a block is acknowledged only when it and every block before it are durable; what was acknowledged is recovered
//! or recovery fails with an error; what was torn is cut and reported; no byte of a segment that a crash left behind is
//! written again under the same number. It does not know what records mean.

use crate::buffer::PAGE_LEN;

pub mod blocking;
pub mod driver;
pub mod floor;
pub mod format;
mod recover;
pub mod segments;
mod writer;

pub use format::Record;
pub use recover::{
    ApplyError, CorruptKind, LogEnd, RecoverError, Recovered, ScanParams, SegmentSource, TornTail, recover,
    recover_bytes,
};
pub use writer::{AppendError, BlockBuffers, HeapBuffers, WriteOp, Writer};

/// A log file: its number, unique for the life of the log and growing, and its length in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Number, from 1; the file name carries it.
    pub number: u32,
    /// Length in bytes, a multiple of the page.
    pub len: u64,
}

/// A segment that holds (or held) blocks, with the seq of its first one when that block is readable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UsedSegment {
    /// The file.
    pub segment: Segment,
    /// Seq of the first block; `None` where a crash left nothing that counts.
    pub first_seq: Option<u64>,
}

/// Where a record went: it is durable once the writer's durable seq has reached `seq`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Seq of the block that holds the record.
    pub seq: u64,
}

/// Sizes and bounds of one log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Length of a new segment file.
    pub segment_bytes: u64,
    /// A filling block is closed once it would pass this length.
    pub block_bytes_target: usize,
    /// No block is longer; a record that needs more is refused.
    pub block_bytes_max: usize,
    /// Appends are refused while this much waits for the disk.
    pub unflushed_bytes_max: usize,
    /// Block writes that may overlap.
    pub writes_in_flight_max: usize,
    /// While a write is in flight another one starts only for a block of at least this length; smaller ones gather company.
    pub overlap_bytes_min: usize,
    /// Segments kept ready ahead of the one in use.
    pub segments_ahead: usize,
    /// Retired segments kept for reuse; more are deleted.
    pub spare_segments_max: usize,
    /// No segment is made that would leave less than this free on the disk.
    pub disk_reserve_bytes: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            block_bytes_target: 1 << 20,
            block_bytes_max: format::BLOCK_LEN_MAX,
            unflushed_bytes_max: 64 << 20,
            writes_in_flight_max: 4,
            overlap_bytes_min: 0,
            segments_ahead: 2,
            spare_segments_max: 16,
            disk_reserve_bytes: 64 << 20,
        }
    }
}

/// A configuration that cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("write-ahead log configuration: {0}")]
pub struct ConfigError(String);

impl Config {
    /// Checks that the sizes fit each other.
    ///
    /// # Errors
    /// A sentence naming the first value that does not fit and what would.
    pub fn check(&self) -> Result<(), ConfigError> {
        let page = u64::try_from(PAGE_LEN).expect("a page is small");
        let block_max = u64::try_from(self.block_bytes_max).expect("a block is small");
        let fault = if !self.segment_bytes.is_multiple_of(page) || self.segment_bytes > u64::from(u32::MAX) * page {
            Some(format!("segment_bytes is {}; it must be a multiple of {page}", self.segment_bytes))
        } else if !self.block_bytes_max.is_multiple_of(PAGE_LEN)
            || self.block_bytes_max == 0
            || self.block_bytes_max > format::BLOCK_LEN_MAX
        {
            let most = format::BLOCK_LEN_MAX;
            Some(format!(
                "block_bytes_max is {}; it must be a multiple of {page}, at most {most}",
                self.block_bytes_max
            ))
        } else if self.segment_bytes < block_max {
            Some(format!("segment_bytes is {}; it must hold a block of {block_max}", self.segment_bytes))
        } else if self.block_bytes_target > self.block_bytes_max {
            Some(format!("block_bytes_target is {}; at most {block_max} is possible", self.block_bytes_target))
        } else if self.unflushed_bytes_max < self.block_bytes_max {
            Some(format!("unflushed_bytes_max is {}; it must allow a block of {block_max}", self.unflushed_bytes_max))
        } else if !(1..=64).contains(&self.writes_in_flight_max) {
            Some(format!("writes_in_flight_max is {}; 1 to 64 are possible", self.writes_in_flight_max))
        } else if self.segments_ahead == 0 {
            Some("segments_ahead is 0; at least 1 is needed".to_owned())
        } else {
            None
        };
        fault.map_or(Ok(()), |sentence| Err(ConfigError(sentence)))
    }
}

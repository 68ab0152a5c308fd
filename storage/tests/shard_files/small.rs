//! A shard whose log is small, so that segments come and go soon.

use taskmaster_storage::wal::Config;

/// Whose files they are.
pub(crate) const IDENTITY: u64 = 77;

/// Its log's configuration.
pub(crate) fn config() -> Config {
    Config {
        segment_bytes: 256 << 10,
        block_bytes_target: 32 << 10,
        block_bytes_max: 64 << 10,
        unflushed_bytes_max: 512 << 10,
        spare_segments_max: 2,
        ..Config::default()
    }
}

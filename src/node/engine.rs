//! What the engine of a shard is told, from the configuration.

use taskmaster_engine::Config as ShardConfig;
use taskmaster_engine::checkpoint::Checkpoints;
use taskmaster_engine::cluster::{Limits, NodeInfo};
use taskmaster_engine::events::Events;

use crate::config::Config;

/// Part of a shard's memory for log entries that replicas elsewhere may still need, and the most of it, in bytes.
const LOG_SHARE: u64 = 8;
const LOG_BYTES_KEPT_MAX: u64 = 128 << 20;

/// Memory of a final task without its payload or result, in bytes.
const TASK_BYTES: u64 = 200;

/// Shard `number` of the node that `info` describes and whose data directory has the id `dir`.
pub(super) fn shard_config(config: &Config, info: &NodeInfo, dir: u128, number: usize) -> ShardConfig {
    let partitions = config.node.partitions;
    let memory_bytes_max = config.memory_bytes() / info.shards() as u64;
    let kept = config.queues.finished_max / u64::from(partitions);
    ShardConfig {
        node: info.clone(),
        number: u16::try_from(number).expect("shards are few"),
        partitions,
        // A node that stands alone is a cluster of one; one that may have company waits to be told.
        found: if config.clustered { 0 } else { dir.max(1) },
        replication: config.cluster.replication,
        limits: Limits {
            replace_after_us: config.cluster.replace_after.as_ms().saturating_mul(1_000),
            moves_max: config.cluster.moves_max,
            ..Limits::default()
        },
        seed: info.id.0,
        memory_bytes_max,
        transfer_bytes_per_s: config.cluster.move_rate.0 / info.shards() as u64,
        log_bytes_kept: (memory_bytes_max / LOG_SHARE).min(LOG_BYTES_KEPT_MAX),
        kept_max: u32::try_from(kept).unwrap_or(u32::MAX),
        retention_ms: u32::try_from(config.queues.retention.as_ms()).unwrap_or(u32::MAX),
        auto_create_queues: config.queues.auto_create,
        checkpoints: config.postgres.is_configured().then(|| checkpoints(config)),
        demote_above_bytes: config.spill_bytes_max().map(|_| waiting_bytes(config) / u64::from(partitions)),
        events: config.events.as_ref().map(|events| Events {
            waiting_kib_max: u32::try_from((events.waiting.0 >> 10) / u64::from(partitions)).unwrap_or(u32::MAX).max(1),
            starts: events.starts,
        }),
        logs_starts: config.wal.starts,
        memo_bytes_max: config.redis.result_bytes_max(),
    }
}

/// What may wait for the database in memory, in bytes.
fn waiting_bytes(config: &Config) -> u64 {
    config.postgres.waiting_size.0.min(config.memory_bytes() / 2)
}

/// The cluster's bounds, shared out among its partitions.
fn checkpoints(config: &Config) -> Checkpoints {
    let partitions = u64::from(config.node.partitions);
    let waiting_bytes = waiting_bytes(config) + config.spill_bytes_max().unwrap_or_default();
    // Where payloads and results lie on disk, the tasks themselves do not.
    let waiting_max = config.postgres.waiting_max.min(config.memory_bytes() / 2 / TASK_BYTES);
    let bounded = |value: u64| u32::try_from(value).unwrap_or(u32::MAX).max(1);
    Checkpoints {
        waiting_max: bounded(waiting_max / partitions),
        waiting_kib_max: bounded((waiting_bytes >> 10) / partitions),
        kept_ms: u32::try_from(config.postgres.kept.as_ms()).unwrap_or(u32::MAX),
    }
}

//! What the machine offers this process: memory and cores, bounded by its cgroup.

use std::path::Path;

use super::{Config, Memory};

/// Smallest budget that `auto` settles on, in bytes.
const AUTO_BYTES_MIN: u64 = 64 << 20;

impl Config {
    /// The memory budget of the node, in bytes.
    pub(crate) fn memory_bytes(&self) -> u64 {
        match self.limits.memory {
            Memory::Bytes(size) => size.0,
            Memory::Auto => (memory_limit_bytes() / 2).max(AUTO_BYTES_MIN),
        }
    }

    /// What may lie on disk while it waits for the database, in bytes, if anything may.
    pub(crate) fn spill_bytes_max(&self) -> Option<u64> {
        let bytes = self.postgres.spill_size.0;
        (self.postgres.is_configured() && bytes > 0).then_some(bytes)
    }

    /// The number of shards: as configured, or one per core this process may use (never more than partitions).
    pub(crate) fn shard_count(&self) -> usize {
        let configured = usize::from(self.node.shards);
        let count = if configured == 0 { core_count() } else { configured };
        count.min(usize::from(self.node.partitions))
    }

    /// Most tasks at once of the workers in the node's process.
    pub(crate) fn worker_concurrency(&self) -> u32 {
        match self.workers.concurrency {
            0 => u32::try_from(2 * core_count()).unwrap_or(u32::MAX),
            concurrency => concurrency,
        }
    }
}

/// Cores this process may run on.
pub(crate) fn core_count() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Memory this process may use, in bytes: the machine's, or the smallest limit of its cgroups.
pub(crate) fn memory_limit_bytes() -> u64 {
    let info = rustix::system::sysinfo();
    let machine = u64::from(info.mem_unit).saturating_mul(info.totalram);
    cgroup_limits_bytes().into_iter().fold(machine, u64::min)
}

/// Limits in force by cgroup v2 or v1, innermost first.
fn cgroup_limits_bytes() -> Vec<u64> {
    let memberships = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut limits = Vec::new();
    for line in memberships.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let (root, file) = if controllers.is_empty() {
            ("/sys/fs/cgroup", "memory.max")
        } else if controllers.split(',').any(|name| name == "memory") {
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
        } else {
            continue;
        };
        for folder in Path::new(path.trim_start_matches('/')).ancestors() {
            let limit = std::fs::read_to_string(Path::new(root).join(folder).join(file));
            limits.extend(limit.ok().and_then(|text| text.trim().parse::<u64>().ok()));
        }
    }
    limits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_memory_is_at_most_half_of_the_machine() {
        let config = Config::default();
        assert!(config.memory_bytes() >= AUTO_BYTES_MIN);
        assert!(config.memory_bytes() <= (memory_limit_bytes() / 2).max(AUTO_BYTES_MIN));
    }

    #[test]
    fn shards_never_outnumber_partitions() {
        let mut config = Config::default();
        config.node.shards = 8;
        config.node.partitions = 4;
        assert_eq!(config.shard_count(), 4);
        config.node.shards = 0;
        assert!(config.shard_count() >= 1);
    }
}

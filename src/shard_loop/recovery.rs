//! Bringing a shard back before it serves: snapshot, then log.

use taskmaster_engine::{Config, Shard};
use taskmaster_storage::datadir::DataDir;
use taskmaster_storage::recovery::{self, Sink};
use taskmaster_storage::snapshot::{self, ChunkTag, Info};
use taskmaster_storage::wal::{ApplyError, LogEnd, Record};

use super::{ENTRY, now_us};

/// What a shard is told before it recovers, beside its configuration.
#[derive(Clone, Copy)]
pub(super) struct Setting {
    /// Its number.
    pub(super) number: u16,
    /// The number of shards.
    pub(super) shards: u16,
    /// Retention of queues that are not configured, in milliseconds.
    pub(super) retention_ms: u32,
}

struct Rebuild {
    config: Config,
    setting: Setting,
    shard: Shard,
    /// The engine sequence of the snapshot under way.
    restoring: Option<u64>,
}

/// A shard with nothing in it.
fn empty(config: &Config, setting: Setting) -> Shard {
    let mut shard = Shard::new(config.clone(), now_us());
    shard.join(setting.number, setting.shards);
    shard.keep_final_tasks_ms(setting.retention_ms);
    shard
}

impl Rebuild {
    fn finish_snapshot(&mut self) {
        if let Some(sequence) = self.restoring.take() {
            self.shard.restore_finish(sequence);
        }
    }
}

impl snapshot::Sink for Rebuild {
    fn begin(&mut self, info: &Info) -> Result<(), ApplyError> {
        self.shard = empty(&self.config, self.setting);
        self.restoring = Some(info.stamp);
        Ok(())
    }

    fn chunk(&mut self, _tag: ChunkTag, bytes: &[u8]) -> Result<(), ApplyError> {
        Ok(self.shard.restore_chunk(bytes)?)
    }
}

impl Sink for Rebuild {
    fn record(&mut self, record: Record<'_>) -> Result<(), ApplyError> {
        self.finish_snapshot();
        if record.kind != ENTRY {
            return Err(format!("log record of unknown kind {}: a newer version wrote it", record.kind).into());
        }
        Ok(self.shard.replay(record.bytes)?)
    }
}

/// A shard that is back.
pub(super) struct Recovered {
    pub(super) shard: Shard,
    /// Where its log goes on.
    pub(super) end: LogEnd,
    pub(super) term: u32,
    /// Length of the log's files behind the snapshot, in bytes. Each start after a crash begins a new file, so a node that
    /// often starts anew has many that hold little.
    pub(super) log_bytes: u64,
}

/// Recovers a shard and starts its next term. Blocks.
pub(super) fn recover(dir: &DataDir, config: Config, setting: Setting) -> anyhow::Result<Recovered> {
    let began_us = now_us();
    let number = u32::from(setting.number);
    let mut rebuild = Rebuild { shard: empty(&config, setting), config, setting, restoring: None };
    let found = recovery::recover(&dir.shard_dir(number), &dir.wal_dir(number), dir.identity(number), &mut rebuild)?;
    rebuild.finish_snapshot();
    for damaged in &found.rejected {
        tracing::warn!(shard = number, "a damaged snapshot was passed over: {damaged}");
    }
    if let Some(torn) = &found.log.torn {
        tracing::warn!(
            shard = number,
            file = torn.file,
            offset = torn.offset,
            found = torn.found,
            "a crash left an unfinished tail of {} bytes; it was cut, nothing in it was acknowledged",
            torn.bytes_ignored
        );
    }
    let term = dir.next_term(number, found.log.end.term)?;
    let mut shard = rebuild.shard;
    shard.start_term(term);
    let stats = shard.stats();
    tracing::info!(
        shard = number,
        term,
        tasks = stats.tasks,
        unfinished = stats.unfinished,
        records = found.log.records,
        took_ms = (now_us() - began_us) / 1_000,
        "recovered"
    );
    let covered = found.snapshot.map_or(0, |snapshot| snapshot.seq);
    let behind = found.log.end.used.iter().filter(|used| used.first_seq.is_none_or(|first| first > covered));
    let log_bytes = behind.map(|used| used.segment.len).sum();
    Ok(Recovered { shard, end: found.log.end, term, log_bytes })
}

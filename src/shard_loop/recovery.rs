//! Bringing a shard back before it serves: snapshot, then log.

use taskmaster_engine::{Config, Shard};
use taskmaster_storage::datadir::DataDir;
use taskmaster_storage::recovery::{self, Sink};
use taskmaster_storage::snapshot::{self, ChunkTag, Info};
use taskmaster_storage::wal::{ApplyError, LogEnd, Record};

use super::now_us;
use super::spill::Spill;

/// Bytes that are read between two looks at whether too much is in memory.
const RELIEVE_EVERY: usize = 256 << 10;

/// Builds a shard from what it wrote.
pub(crate) struct Rebuild<'a, F> {
    empty: F,
    /// Where what is too much for memory goes.
    spill: Option<&'a Spill>,
    /// Bytes that were read since it was looked after that.
    read: usize,
    pub(crate) shard: Shard,
}

impl<'a, F: Fn() -> Shard> Rebuild<'a, F> {
    /// Begins with what `empty` makes; each snapshot does anew.
    pub(crate) fn new(empty: F, spill: Option<&'a Spill>) -> Self {
        Self { shard: empty(), empty, spill, read: 0 }
    }

    /// Forgets what was read.
    pub(crate) fn restart(&mut self) {
        self.shard = (self.empty)();
    }

    fn relieve(&mut self, read: usize) {
        self.read += read;
        if let Some(spill) = self.spill.filter(|_| self.read >= RELIEVE_EVERY) {
            self.read = 0;
            spill.relieve(&mut self.shard);
        }
    }
}

impl<F: Fn() -> Shard> snapshot::Sink for Rebuild<'_, F> {
    fn begin(&mut self, _info: &Info) -> Result<(), ApplyError> {
        self.restart();
        Ok(())
    }

    fn chunk(&mut self, tag: ChunkTag, bytes: &[u8]) -> Result<(), ApplyError> {
        self.shard.restore_chunk(tag.0, bytes)?;
        self.relieve(bytes.len());
        Ok(())
    }
}

impl<F: Fn() -> Shard> Sink for Rebuild<'_, F> {
    fn record(&mut self, record: Record<'_>) -> Result<(), ApplyError> {
        self.shard.replay(record.stamp, record.kind, record.bytes)?;
        self.relieve(record.bytes.len());
        Ok(())
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

/// Recovers a shard; it does nothing before its engine is started. Blocks.
pub(super) fn recover(dir: &DataDir, config: Config, spill: Option<&Spill>) -> anyhow::Result<Recovered> {
    let began_us = now_us();
    let number = u32::from(config.number);
    let mut rebuild = Rebuild::new(|| Shard::new(config.clone(), now_us()), spill);
    let found = recovery::recover(&dir.shard_dir(number), &dir.wal_dir(number), dir.identity(number), &mut rebuild)?;
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
    shard.start(now_us());
    let stats = shard.stats();
    tracing::info!(
        shard = number,
        term,
        tasks = stats.tasks,
        unfinished = stats.unfinished,
        replicas = stats.replicas,
        records = found.log.records,
        took_ms = (now_us() - began_us) / 1_000,
        "recovered"
    );
    let covered = found.snapshot.map_or(0, |snapshot| snapshot.seq);
    let behind = found.log.end.used.iter().filter(|used| used.first_seq.is_none_or(|first| first > covered));
    let log_bytes = behind.map(|used| used.segment.len).sum();
    Ok(Recovered { shard, end: found.log.end, term, log_bytes })
}

//! What a stopped node left: a shard is brought back from the snapshots and the log of its data directory, as they are.

use taskmaster_engine::{Config, Shard};
use taskmaster_protocol::NodeId;
use taskmaster_storage::datadir::DataDir;
use taskmaster_storage::recovery::Sink;
use taskmaster_storage::snapshot;
use taskmaster_storage::wal::ScanParams;
use taskmaster_storage::wal::driver::recover_dir;

use super::{Exit, Failure};
use crate::shard_loop::recovery::Rebuild;

/// It did not read, or is not what it should be.
pub(crate) fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Failed, error.to_string())
}

/// What is left of one shard.
pub(crate) struct Left<'a> {
    dir: &'a DataDir,
    number: u32,
}

impl<'a> Left<'a> {
    pub(crate) fn new(dir: &'a DataDir, number: u32) -> Self {
        Self { dir, number }
    }

    /// The configuration of a shard that can take it.
    ///
    /// # Errors
    /// When the directory has more shards or partitions than a node can have.
    pub(crate) fn config(&self) -> Result<Config, Failure> {
        let count = u16::try_from(self.dir.meta().partitions).map_err(failed)?;
        let number = u16::try_from(self.number).map_err(failed)?;
        let mut config = Config { number, ..Config::standalone(NodeId(1), count) };
        let shards = 0..self.dir.meta().shards;
        config.node.client_ports = shards.map(|shard| u16::try_from(shard).unwrap_or(u16::MAX)).collect();
        Ok(config)
    }

    /// Its snapshots, the newest first.
    ///
    /// # Errors
    /// When the directory does not read.
    pub(crate) fn snapshots(&self) -> Result<Vec<u64>, Failure> {
        snapshot::list(&self.dir.shard_dir(self.number)).map_err(failed)
    }

    /// Begins anew, with a snapshot or with nothing; the record of the log behind which it goes on.
    ///
    /// # Errors
    /// When the snapshot does not read.
    pub(crate) fn begin(
        &self,
        past: &mut Rebuild<'_, impl Fn() -> Shard>,
        seq: Option<u64>,
    ) -> Result<u64, snapshot::Error> {
        let Some(seq) = seq else {
            past.restart();
            return Ok(0);
        };
        let path = snapshot::snapshot_path(&self.dir.shard_dir(self.number), seq);
        Ok(snapshot::read(&path, self.dir.identity(self.number), past)?.seq)
    }

    /// Goes on with the log behind a record.
    ///
    /// # Errors
    /// When the log does not read, or does not reach back so far.
    pub(crate) fn replay(&self, past: &mut Rebuild<'_, impl Fn() -> Shard>, after_seq: u64) -> Result<(), Failure> {
        let params = ScanParams { identity: self.dir.identity(self.number), after_seq, reach_seq: 0 };
        recover_dir(&self.dir.wal_dir(self.number), params, |record| past.record(record)).map_err(failed)?;
        Ok(())
    }
}

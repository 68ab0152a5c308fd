//! Bringing a shard back: the newest whole snapshot, then the log behind it.
//!
//! Invariants: the sink ends up with everything that was acknowledged, or the call fails and says where and what to do. A
//! damaged newest snapshot is passed over only when an older one and the log together reach at least as far.

use std::path::Path;

use crate::snapshot::{self, Info, Loaded, load};
use crate::wal::driver::recover_dir;
use crate::wal::{self, ApplyError, Record, Recovered, ScanParams};

/// What rebuilds a shard's state.
pub trait Sink: snapshot::Sink {
    /// The next record of the log.
    ///
    /// # Errors
    /// Any; recovery stops.
    fn record(&mut self, record: Record<'_>) -> Result<(), ApplyError>;
}

/// Why a shard could not be recovered. Its files are as they were.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Snapshots could not be read, or the sink refused one.
    #[error(transparent)]
    Snapshot(#[from] snapshot::Error),
    /// The log could not be read back.
    #[error("{source}{}", passed_over(rejected))]
    Log {
        /// What is wrong with it.
        source: wal::driver::Error,
        /// Snapshots that were damaged, which may be why the log does not reach back far enough.
        rejected: Vec<snapshot::Error>,
    },
}

fn passed_over(rejected: &[snapshot::Error]) -> String {
    rejected.iter().map(|error| format!("; a damaged snapshot was passed over: {error}")).collect()
}

/// What a recovery used.
#[derive(Debug)]
pub struct Shard {
    /// The snapshot under the log, if there was one.
    pub snapshot: Option<Info>,
    /// Damaged snapshots that were passed over: warn about them.
    pub rejected: Vec<snapshot::Error>,
    /// The log.
    pub log: Recovered,
}

/// Recovers the shard whose snapshots are in `shard_dir` and whose log is in `wal_dir`. Blocks.
///
/// # Errors
/// See [`Error`]; throw the sink's state away.
pub fn recover(shard_dir: &Path, wal_dir: &Path, identity: u64, sink: &mut impl Sink) -> Result<Shard, Error> {
    let Loaded { info, rejected, newest_seq } = load(shard_dir, identity, sink)?;
    let after_seq = info.map_or(0, |info| info.seq);
    let params = ScanParams { identity, after_seq, reach_seq: newest_seq };
    match recover_dir(wal_dir, params, |record| sink.record(record)) {
        Ok(log) => Ok(Shard { snapshot: info, rejected, log }),
        Err(source) => Err(Error::Log { source, rejected }),
    }
}

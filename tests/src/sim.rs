//! The deterministic simulator: the real engine and the real log in a world made of one seed.
//!
//! Virtual time, a disk that forgets what was not flushed, a network that loses and delays, producers and workers that
//! misbehave, a node that loses power; and an oracle that knows what was acknowledged. Real are the engine
//! (`taskmaster_engine::Shard`), the log's writer and recovery (`taskmaster_storage::wal`), and every frame. Not simulated:
//! glommio, sockets, the mesh between shards; processes and real disks are tested beside it.
//!
//! Invariant: the same seed gives the same trace hash. A failing seed is kept as a test under a name.

use std::fmt;

mod actor;
mod dice;
mod disk;
mod inspect;
mod network;
mod node;
mod oracle;
pub mod shards;
mod workers;
mod workload;
mod world;

/// A bug planted in the glue between engine and log, to see that the oracle notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// Requests are answered once they are appended, before the flush.
    AcknowledgeBeforeFlush,
    /// A finished write is taken as durable although one before it is not.
    AcknowledgeOutOfOrder,
    /// Fencing tokens start at the same term after every restart.
    ReuseTerm,
    /// A snapshot claims to cover blocks that were written after it.
    SnapshotClaimsTooMuch,
    /// Recovery passes over one record of the log.
    DropRecoveredEntry,
}

/// What a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// Hash over everything that happened.
    pub trace: u64,
    /// Events.
    pub events: u64,
    /// Virtual time, in microseconds.
    pub virtual_us: u64,
    /// Tasks made.
    pub tasks: u64,
    /// Tasks whose submission was acknowledged.
    pub submits_acknowledged: u64,
    /// Completions acknowledged.
    pub completions_acknowledged: u64,
    /// Leases given.
    pub assigned: u64,
    /// Power losses.
    pub crashes: u64,
    /// Orderly shutdowns.
    pub shutdowns: u64,
    /// Snapshots finished.
    pub snapshots: u64,
}

/// A rule that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// When, in virtual microseconds.
    pub at_us: u64,
    /// What.
    pub sentence: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {} at {} us: {}", self.seed, self.at_us, self.sentence)
    }
}

impl std::error::Error for Failure {}

/// Runs one seed to its end.
///
/// # Errors
/// The first rule that did not hold.
///
/// # Panics
/// When an assertion of the engine or the log fails.
pub fn run(seed: u64, defect: Option<Defect>) -> Result<Report, Failure> {
    world::World::new(seed, defect).run()
}

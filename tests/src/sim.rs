//! The deterministic simulator: whole nodes of a cluster in one thread and virtual time, in a world made of one seed.
//!
//! Real are the engine with its replicas (`taskmaster_engine::Shard`), gossip (`taskmaster_engine::cluster::membership`), the
//! log's writer and recovery (`taskmaster_storage::wal`), and every frame and peer message. Simulated are clocks, disks that
//! forget and rot, networks that lose, delay and part, processes that die and stall, operators that move things about, and
//! producers and workers that misbehave. An oracle sees all wires and knows what was acknowledged. Not simulated: glommio,
//! sockets; processes and real disks are tested beside it.
//!
//! Invariant: the same options give the same trace hash. A failing seed is kept as a test under a name.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

mod actor;
mod client;
mod dice;
mod disk;
mod faults;
mod minimise;
mod network;
mod node;
mod oracle;
mod reader;
mod scenario;
mod shard_loop;
pub mod shards;
mod store;
mod streams;
mod topic;
mod workers;
mod workload;
mod world;

pub use faults::FaultSet;
pub use minimise::{Minimal, minimise};

/// A bug planted to see that the oracle notices. Those of the engine's inside are planted by its hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// Entries count as durable once they are appended, before the flush.
    AcknowledgeBeforeFlush,
    /// A finished write is taken as durable although one before it is not.
    AcknowledgeOutOfOrder,
    /// Terms and votes are not logged.
    SkipHardState,
    /// Fencing tokens start again with every leader.
    ReuseToken,
    /// A new leader does not know which unique keys are taken.
    ForgetUniqueKeys,
    /// After an installed snapshot an entry is applied before the one that precedes it.
    ApplyOutOfOrderAfterSnapshot,
    /// A learner says that it has entries which it did not log.
    LoseLearnerTail,
    /// A snapshot claims to cover blocks that were written after it.
    SnapshotClaimsTooMuch,
    /// Recovery passes over one record of the log.
    DropRecoveredEntry,
}

impl Defect {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::AcknowledgeBeforeFlush,
        Self::AcknowledgeOutOfOrder,
        Self::SkipHardState,
        Self::ReuseToken,
        Self::ForgetUniqueKeys,
        Self::ApplyOutOfOrderAfterSnapshot,
        Self::LoseLearnerTail,
        Self::SnapshotClaimsTooMuch,
        Self::DropRecoveredEntry,
    ];
}

/// What makes a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// All chance follows from it.
    pub seed: u64,
    /// Nodes; 0 lets the seed choose 1 to 5.
    pub nodes: u16,
    /// Virtual minutes of load and faults; 0 lets the seed choose a few seconds.
    pub minutes: u32,
    /// What may go wrong.
    pub faults: FaultSet,
    /// Workers save versions of their tasks' state. Apart, so that runs without it stay the same.
    pub saves: bool,
    /// A planted bug.
    pub defect: Option<Defect>,
    /// Final tasks are checkpointed to a store.
    pub checkpoints: bool,
    /// Streams are read too.
    pub streams: bool,
    /// What happens to tasks is told in a topic.
    pub events: bool,
    /// Producers memoise some tasks. Apart, as `saves`.
    pub memo: bool,
    /// Some tasks are restartable, so that attempts are doubled and ended for others. Apart, as `saves`.
    pub restarts: bool,
}

impl Options {
    /// A short run in which the seed chooses everything.
    #[must_use]
    pub const fn of_seed(seed: u64) -> Self {
        let faults = FaultSet::ALL;
        Self {
            seed,
            nodes: 0,
            minutes: 0,
            faults,
            saves: false,
            defect: None,
            checkpoints: false,
            streams: false,
            events: false,
            memo: false,
            restarts: false,
        }
    }
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--seed {} --nodes {} --minutes {} --faults {}", self.seed, self.nodes, self.minutes, self.faults)?;
        if self.checkpoints {
            f.write_str(" --checkpoints")?;
        }
        if self.streams {
            f.write_str(" --streams")?;
        }
        if self.events {
            f.write_str(" --events")?;
        }
        if self.memo {
            f.write_str(" --memo")?;
        }
        if self.restarts {
            f.write_str(" --restarts")?;
        }
        if self.saves {
            f.write_str(" --saves")?;
        }
        match self.defect {
            Some(defect) => write!(f, " (planted: {defect:?})"),
            None => Ok(()),
        }
    }
}

/// What a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// Hash over everything that happened.
    pub trace: u64,
    /// Nodes.
    pub nodes: u64,
    /// Events.
    pub events: u64,
    /// Virtual time, in microseconds.
    pub virtual_us: u64,
    /// Faults that happened.
    pub faults: u64,
    /// Tasks made.
    pub tasks: u64,
    /// Tasks whose submission was acknowledged.
    pub submits_acknowledged: u64,
    /// Completions acknowledged.
    pub completions_acknowledged: u64,
    /// Leases given.
    pub assigned: u64,
    /// Leases given beside one in force, and leases ended for other tasks, as far as that is sure.
    pub doubled: u64,
    /// The latter.
    pub ended_for_others: u64,
    /// Linearizable reads that were checked.
    pub reads: u64,
    /// Saved states acknowledged, and read back.
    pub saves_acknowledged: u64,
    /// The latter.
    pub states_read: u64,
    /// Reads of tasks that ended with the result of another.
    pub memoised: u64,
    /// Terms in which a leader served a partition.
    pub leaderships: u64,
    /// Processes that ended without warning.
    pub crashes: u64,
    /// Orderly shutdowns.
    pub shutdowns: u64,
    /// Disks lost, whole or by damage that was found.
    pub disks_lost: u64,
    /// Local snapshots finished.
    pub snapshots: u64,
    /// Comparisons of two replicas at the same index.
    pub replicas_compared: u64,
    /// Ends of tasks taken by the store.
    pub stored: u64,
    /// Versions of states among them, each of chunks that the store has.
    pub versions_stored: u64,
    /// Batches that it, or the topic, refused: late, or taken before.
    pub refused: u64,
    /// Messages of streams that became tasks.
    pub messages_taken: u64,
    /// Events of tasks taken by the topic.
    pub told: u64,
    /// Peer messages and gossip packets delivered.
    pub messages: u64,
}

/// A rule that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What makes the run again.
    pub options: Options,
    /// When, in virtual microseconds.
    pub at_us: u64,
    /// What.
    pub sentence: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {} us: {}", self.options, self.at_us, self.sentence)
    }
}

impl std::error::Error for Failure {}

/// Runs to the end.
///
/// # Errors
/// The first rule that did not hold, assertions of the engine and the log included (where panics unwind).
pub fn run(options: &Options) -> Result<Report, Failure> {
    run_planned(options, None)
}

/// Runs with those faults of the plan whose places in `kept` are true.
fn run_planned(options: &Options, kept: Option<&[bool]>) -> Result<Report, Failure> {
    let mut world = world::World::new(options, kept);
    let outcome = catch_unwind(AssertUnwindSafe(|| world.play()));
    let sentence = match outcome {
        Ok(Ok(())) => return Ok(world.report()),
        Ok(Err(sentence)) => sentence,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            format!("an assertion failed: {}", text.unwrap_or("no message"))
        }
    };
    Err(Failure { options: *options, at_us: world.now_us(), sentence })
}

//! Load at a fixed rate on a cluster whose nodes are struck down one after the other, and what clients notice of it.
//!
//! The load goes through the client library, since it is the clients' way of finding the next leader that decides how long
//! a failure is felt. Whoever starts the nodes does the striking ([`Faults`]).
//!
//! Invariants:
//! - A gap starts at the *intended* time of a submission, whatever the generator was doing then.
//! - Every submission is repeated until it is acknowledged; a task is done when its completion was taken, or when the server
//!   says that an earlier copy was. What is acknowledged and never done is lost; what is taken twice is doubled.

use std::future::Future;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use taskmaster_client::NodeId;
use tokio::time::{Instant, sleep};

mod books;
mod load;
mod report;

use load::Load;
pub use report::{FailoverReport, Gaps, Round};

/// How the load and the rounds are.
#[derive(Clone, Debug)]
pub struct FailoverOptions {
    /// Rounds.
    pub rounds: u32,
    /// Tasks per second.
    pub rate_per_s: f64,
    /// Tasks per submission.
    pub batch: u32,
    /// Clients, each with connections of its own to all nodes.
    pub clients: u32,
    /// Payload of each task, in bytes; at least 16.
    pub payload_bytes: u32,
    /// Load before each strike on a whole cluster.
    pub calm: Duration,
    /// From a strike to its end.
    pub down: Duration,
    /// Longest wait for tasks that are not done at the end.
    pub drain_max: Duration,
    /// Print a line to standard error after each round.
    pub progress: bool,
}

/// A node that was struck.
#[derive(Clone, Debug)]
pub struct Strike {
    /// The node.
    pub node: NodeId,
    /// What it is called.
    pub name: String,
    /// The partitions it led.
    pub led: Vec<u16>,
    /// When.
    pub at: Instant,
}

/// Strikes nodes and brings them back.
pub trait Faults {
    /// Waits until the cluster is whole, and strikes the node that leads most partitions.
    ///
    /// # Errors
    /// When the cluster does not become whole.
    fn strike(&mut self) -> impl Future<Output = Result<Strike>>;

    /// Brings the struck node back.
    ///
    /// # Errors
    /// When it cannot be started.
    fn heal(&mut self) -> impl Future<Output = Result<()>>;
}

/// Rounds of strikes under load.
///
/// # Errors
/// When the cluster cannot be reached at first, does not become whole between two strikes, or refuses what it should take.
/// Lost and doubled tasks are no error here: see [`FailoverReport::is_exact`].
pub async fn run(options: &FailoverOptions, addresses: &str, faults: &mut impl Faults) -> Result<FailoverReport> {
    ensure!((16..=65_536).contains(&options.payload_bytes), "payload must be 16 to 65536 bytes");
    ensure!((1.0..=1e6).contains(&options.rate_per_s), "the rate must be 1 to 1000000 tasks per second");
    let load = Load::start(options, addresses).await?;
    sleep(options.calm).await;
    let mut rounds = Vec::new();
    for number in 1..=options.rounds {
        let round = round(options, &load, faults).await;
        let round = round.with_context(|| format!("round {number} of {}; {}", options.rounds, load.state()))?;
        if options.progress {
            eprintln!("{number:>4} {round}");
        }
        rounds.push(round);
    }
    sleep(options.calm).await;
    let account = load.finish(options.drain_max).await?;
    Ok(FailoverReport::new(options, rounds, account))
}

async fn round(options: &FailoverOptions, load: &Load, faults: &mut impl Faults) -> Result<Round> {
    load.books().begin_round();
    let strike = faults.strike().await?;
    sleep(options.down).await;
    faults.heal().await?;
    sleep(options.calm).await;
    // What was sent while the node was away is answered by now, or shows as a gap that has not ended.
    Ok(load.books().end_round(&strike))
}

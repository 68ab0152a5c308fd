//! `taskmaster cluster status|bootstrap|join|drain|activate|remove|move|rebalance|transfer-leader|replication`.
//!
//! Every command may be sent to any node: what changes the cluster is carried to the node that keeps its map.

mod ask;
mod join;
mod plan;
mod problems;
mod status;
mod view;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::json;
use taskmaster_client::{ClusterChange, ClusterView};
use taskmaster_protocol::frame::NO_PARTITION;

use super::connect::block_on;
use super::{Exit, Failure, Global, log};
use crate::output::Output;
use crate::workers::now_us;
pub(crate) use view::takers;

/// Time between two looks of `status --watch`.
const WATCH_PAUSE: Duration = Duration::from_secs(1);

/// What to do with the cluster.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show nodes, partitions and what is wrong
    Status(StatusArguments),
    /// Found a cluster on the node at --addr; the others join it. Done once in the life of a cluster
    Bootstrap,
    /// Check whether a node with this configuration would be let in, or tell a node where to look
    ///
    /// A node joins by itself: start it with `seeds` or `dns` in `[cluster]`. With --config, nothing is started: the seeds are
    /// tried, and with --addr a node of the cluster is asked. With addresses, the node at --addr looks for its cluster there.
    Join(JoinArguments),
    /// Move all replicas and leaders off a node, for maintenance or before it is removed
    Drain {
        /// Name or id
        node: String,
    },
    /// Let a draining node take replicas again
    Activate {
        /// Name or id
        node: String,
    },
    /// Take a node out of the cluster for good; its replicas are made anew elsewhere
    Remove {
        /// Name or id
        node: String,
        /// Although it is alive and has replicas
        #[arg(long)]
        force: bool,
    },
    /// Move a partition's replica from one node to another
    Move {
        /// Partition number
        partition: Group,
        /// Name or id of the node that has it
        #[arg(long, value_name = "NODE")]
        from: String,
        /// Name or id of the node that gets it
        #[arg(long, value_name = "NODE")]
        to: String,
    },
    /// Spread replicas and leaders evenly
    Rebalance,
    /// Let another node lead a partition
    TransferLeader {
        /// Partition number, or "map"
        partition: Group,
        /// Name or id of the node that leads from then on
        node: String,
    },
    /// Set how many replicas each partition should have
    Replication {
        /// 1, 3 or 5
        #[arg(value_parser = ["1", "3", "5"])]
        replicas: String,
    },
}

/// Arguments of `cluster status`.
#[derive(Debug, Args)]
pub(crate) struct StatusArguments {
    /// Look again every second, until Ctrl-C
    #[arg(long, short)]
    watch: bool,
    /// List every partition
    #[arg(long)]
    partitions: bool,
}

/// Arguments of `cluster join`.
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct JoinArguments {
    /// Configuration of the node that is to join
    #[arg(long, value_name = "FILE", conflicts_with = "seeds")]
    config: Option<PathBuf>,
    /// Peer address of a node of the cluster (its cluster.listen)
    #[arg(value_name = "HOST:PORT")]
    seeds: Vec<String>,
}

/// A partition, or the group that keeps the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Group(Option<u16>);

impl FromStr for Group {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<u16>() {
            Ok(number) if number != NO_PARTITION => Ok(Self(Some(number))),
            _ if text == "map" => Ok(Self(None)),
            _ => Err(format!("'{text}' is no partition: give its number, or \"map\" for the group that keeps the map")),
        }
    }
}

impl std::fmt::Display for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(number) => write!(f, "partition {number}"),
            None => f.write_str("the map"),
        }
    }
}

/// Carries a cluster command out.
pub(crate) fn run(global: &Global, command: &Command) -> Result<Exit, Failure> {
    log::start_quiet(global.verbose);
    block_on(async {
        match command {
            Command::Status(arguments) => show(global, arguments).await,
            Command::Bootstrap => bootstrap(global).await,
            Command::Join(JoinArguments { config: Some(file), .. }) => join::check(global, file).await,
            Command::Join(JoinArguments { seeds, .. }) => join::look_there(global, seeds).await,
            change => {
                let mut asker = ask::Asker::connect(global.address()).await?;
                let view = asker.view().await?;
                let change = plan::plan(change, &view)?;
                asker.carry(&change.request).await?;
                tell(global.output(), &change)
            }
        }
    })
}

fn tell(output: Output, change: &plan::Change) -> Result<Exit, Failure> {
    if output.is_json() {
        output.json(&change.json)?;
    } else {
        output.text(&format!("{}\n", change.sentence))?;
    }
    Ok(Exit::Success)
}

async fn bootstrap(global: &Global) -> Result<Exit, Failure> {
    let mut asker = ask::Asker::connect(global.address()).await?;
    asker.carry(&ClusterChange::Bootstrap).await?;
    let view = asker.view().await?;
    let name = view.answered_by.map_or_else(String::new, |node| view::name(&view, node));
    let cluster = view.cluster.unwrap_or_default();
    let change = plan::Change {
        request: ClusterChange::Bootstrap,
        sentence: format!("{name} founded cluster {cluster:032x}; nodes with it among their seeds join by themselves"),
        json: json!({
            "request": "bootstrap", "cluster": format!("{cluster:032x}"), "node": status::id_json(view.answered_by), "name": name,
        }),
    };
    tell(global.output(), &change)
}

/// Founds a cluster on the node at this address.
pub(super) async fn found(address: &str) -> Result<(), Failure> {
    let mut asker = ask::Asker::connect(address).await?;
    asker.carry(&ClusterChange::Bootstrap).await
}

/// The map as the node at this address knows it.
pub(super) async fn look(address: &str) -> Result<ClusterView, Failure> {
    ask::Asker::connect(address).await?.view().await
}

async fn show(global: &Global, arguments: &StatusArguments) -> Result<Exit, Failure> {
    let output = global.output();
    let mut asker = ask::Asker::connect(global.address()).await?;
    if !arguments.watch {
        let view = asker.view().await?;
        let now_ms = now_us() / 1_000;
        if output.is_json() {
            output.json(&status::json(&view, now_ms))?;
        } else {
            output.text(&status::text(&view, now_ms, arguments.partitions, output))?;
        }
        let serving = status::is_serving(&problems::problems(&view, now_ms));
        return Ok(if serving { Exit::Success } else { Exit::Failed });
    }
    let clear = if std::io::stdout().is_terminal() { "\x1b[H\x1b[2J" } else { "" };
    loop {
        let now_ms = now_us() / 1_000;
        match asker.view().await {
            Ok(view) if output.is_json() => output.text(&format!("{}\n", status::json(&view, now_ms)))?,
            Ok(view) => {
                output.text(&format!("{clear}{}", status::text(&view, now_ms, arguments.partitions, output)))?;
            }
            Err(failure) => failure.report(output.shape),
        }
        tokio::time::sleep(WATCH_PAUSE).await;
    }
}

#[cfg(test)]
mod tests;

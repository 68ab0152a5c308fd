//! From a command to the request that it stands for: nodes and partitions are looked up, and what cannot be meant is refused
//! before anything is sent.

use serde_json::{Value, json};
use taskmaster_protocol::body::cluster_verb;

use super::ask::Request;
use super::status::id_json;
use super::view::{ClusterView, NodeView};
use super::{Command, Group};
use crate::cli::{Exit, Failure};

/// A request, and what to say once it was agreed to.
pub(super) struct Change {
    pub(super) request: Request,
    pub(super) sentence: String,
    pub(super) json: Value,
}

/// The request that a command stands for.
///
/// # Errors
/// No such node or partition, or what the command would break.
pub(super) fn plan(command: &Command, view: &ClusterView) -> Result<Change, Failure> {
    match command {
        Command::Drain { node } => {
            let says = "drains: its leaders and replicas move to other nodes (`taskmaster cluster status --watch`)";
            Ok(of_node(cluster_verb::DRAIN, "drain", find(view, node)?, says))
        }
        Command::Activate { node } => {
            Ok(of_node(cluster_verb::ACTIVATE, "activate", find(view, node)?, "takes replicas again"))
        }
        Command::Remove { node, force } => remove(find(view, node)?, *force),
        Command::Move { partition, from, to } => relocate(*partition, find(view, from)?, find(view, to)?, view),
        Command::TransferLeader { partition, node } => transfer(*partition, find(view, node)?, view),
        Command::Rebalance => Ok(Change {
            request: Request { verb: cluster_verb::REBALANCE, ..Request::default() },
            sentence: "replicas and leaders are spread anew (`taskmaster cluster status --watch`)".to_owned(),
            json: json!({"request": "rebalance"}),
        }),
        Command::Replication { replicas } => {
            let value = replicas.parse().map_err(|_| Failure::usage("replication is 1, 3 or 5"))?;
            Ok(Change {
                request: Request { verb: cluster_verb::REPLICATION, value, ..Request::default() },
                sentence: format!("each partition gets {value} replica(s), as far as there are nodes"),
                json: json!({"request": "replication", "replication": value}),
            })
        }
        Command::Status(_) | Command::Bootstrap | Command::Join(_) => {
            Err(Failure::usage("this command changes no map"))
        }
    }
}

fn find<'a>(view: &'a ClusterView, text: &str) -> Result<&'a NodeView, Failure> {
    view.find(text).map_err(|sentence| Failure::new(Exit::NotFound, sentence))
}

fn of_node(verb: u32, word: &str, node: &NodeView, says: &str) -> Change {
    Change {
        request: Request { verb, node: node.id, ..Request::default() },
        sentence: format!("{} {says}", node.name),
        json: json!({"request": word, "node": id_json(node.id), "name": node.name}),
    }
}

fn remove(node: &NodeView, force: bool) -> Result<Change, Failure> {
    if node.is_alive && node.replicas > 0 && !force {
        return Err(Failure::usage(format!(
            "{0} is alive and has {1} replicas: `taskmaster cluster drain {0}` first and remove it when it has none, or remove \
             it with --force",
            node.name, node.replicas
        )));
    }
    let says = "is no longer of the cluster; its data directory cannot join again";
    Ok(of_node(cluster_verb::REMOVE, "remove", node, says))
}

fn relocate(group: Group, from: &NodeView, to: &NodeView, view: &ClusterView) -> Result<Change, Failure> {
    has(group, from, view)?;
    let request =
        Request { verb: cluster_verb::MOVE, node: from.id, to: to.id, partition: group.0, ..Request::default() };
    Ok(Change {
        request,
        sentence: format!("{group} moves from {} to {}", from.name, to.name),
        json: json!({"request": "move", "partition": group.0, "from": id_json(from.id), "to": id_json(to.id)}),
    })
}

fn transfer(group: Group, node: &NodeView, view: &ClusterView) -> Result<Change, Failure> {
    has(group, node, view)?;
    let request =
        Request { verb: cluster_verb::TRANSFER_LEADER, to: node.id, partition: group.0, ..Request::default() };
    Ok(Change {
        request,
        sentence: format!("{} is to lead {group}", node.name),
        json: json!({"request": "transfer_leader", "partition": group.0, "to": id_json(node.id)}),
    })
}

/// Refuses a partition that does not exist, and a node without a replica of it.
fn has(group: Group, node: &NodeView, view: &ClusterView) -> Result<(), Failure> {
    let partition = match group.0 {
        None => &view.meta,
        Some(number) => view.partitions.get(usize::from(number)).ok_or_else(|| {
            let last = view.partitions.len().saturating_sub(1);
            Failure::new(Exit::NotFound, format!("partition {number} does not exist: the cluster has 0 to {last}"))
        })?,
    };
    if partition.voters.contains(&node.id) || partition.replicas.contains(&node.id) {
        return Ok(());
    }
    let names: Vec<String> = partition.voters.iter().map(|&id| view.name(id)).collect();
    Err(Failure::new(
        Exit::NotFound,
        format!("{} has no replica of {group}; those that have one are {}", node.name, names.join(", ")),
    ))
}

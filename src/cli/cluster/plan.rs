//! From a command to the request that it stands for: nodes and partitions are looked up, and what cannot be meant is refused
//! before anything is sent.

use serde_json::{Value, json};
use taskmaster_client::{ClusterChange, ClusterView, NodeId, NodeView, PartitionId};

use super::view::names;
use super::{Command, Group, view};
use crate::cli::{Exit, Failure};

/// A request, and what to say once it was agreed to.
pub(super) struct Change {
    pub(super) request: ClusterChange,
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
            Ok(of_node(ClusterChange::Drain, "drain", find(view, node)?, says))
        }
        Command::Activate { node } => {
            Ok(of_node(ClusterChange::Activate, "activate", find(view, node)?, "takes replicas again"))
        }
        Command::Remove { node, force } => remove(find(view, node)?, *force),
        Command::Move { partition, from, to } => relocate(*partition, find(view, from)?, find(view, to)?, view),
        Command::TransferLeader { partition, node } => transfer(*partition, find(view, node)?, view),
        Command::Rebalance => Ok(Change {
            request: ClusterChange::Rebalance,
            sentence: "replicas and leaders are spread anew (`taskmaster cluster status --watch`)".to_owned(),
            json: json!({"request": "rebalance"}),
        }),
        Command::Replication { replicas } => {
            let value = replicas.parse().map_err(|_| Failure::usage("replication is 1, 3 or 5"))?;
            Ok(Change {
                request: ClusterChange::Replication(value),
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
    view::find(view, text).map_err(|sentence| Failure::new(Exit::NotFound, sentence))
}

fn of_node(change: impl Fn(NodeId) -> ClusterChange, word: &str, node: &NodeView, says: &str) -> Change {
    Change {
        request: change(node.id),
        sentence: format!("{} {says}", node.name),
        json: json!({"request": word, "node": node.id.to_string(), "name": node.name}),
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
    Ok(of_node(ClusterChange::Remove, "remove", node, says))
}

fn relocate(group: Group, from: &NodeView, to: &NodeView, view: &ClusterView) -> Result<Change, Failure> {
    has(group, from, view)?;
    let Some(partition) = group.0.map(PartitionId) else {
        return Err(Failure::usage(
            "the map is kept by every node: only who leads it can be chosen, by transfer-leader",
        ));
    };
    let request = ClusterChange::Move { partition, from: Some(from.id), to: to.id };
    Ok(Change {
        request,
        sentence: format!("{group} moves from {} to {}", from.name, to.name),
        json: json!({"request": "move", "partition": group.0, "from": from.id.to_string(), "to": to.id.to_string()}),
    })
}

fn transfer(group: Group, node: &NodeView, view: &ClusterView) -> Result<Change, Failure> {
    has(group, node, view)?;
    let request = ClusterChange::TransferLeader { partition: group.0.map(PartitionId), to: Some(node.id) };
    Ok(Change {
        request,
        sentence: format!("{} is to lead {group}", node.name),
        json: json!({"request": "transfer_leader", "partition": group.0, "to": node.id.to_string()}),
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
    Err(Failure::new(
        Exit::NotFound,
        format!("{} has no replica of {group}; those that have one are {}", node.name, names(view, &partition.voters)),
    ))
}

//! Names, states and addresses in what a node tells of its cluster.

use std::collections::BTreeMap;

use taskmaster_client::{ClusterView, GroupView, NodeId, NodeStatus, NodeView};

use crate::config::did_you_mean;

/// A node's state in a word.
pub(crate) fn state(node: &NodeView) -> &'static str {
    match (node.status, node.is_alive) {
        (NodeStatus::Removed, _) => "removed",
        (_, false) => "down",
        (NodeStatus::Draining, true) => "draining",
        _ => "alive",
    }
}

/// Where clients connect to a node.
pub(crate) fn address(node: &NodeView) -> Option<String> {
    let port = node.ports.first()?;
    let is_v6 = node.host.contains(':');
    Some(if is_v6 { format!("[{}]:{port}", node.host) } else { format!("{}:{port}", node.host) })
}

/// The node of this id.
pub(crate) fn node(view: &ClusterView, id: NodeId) -> Option<&NodeView> {
    view.nodes.iter().find(|node| node.id == id)
}

/// How a node is called: its name, else its id.
pub(crate) fn name(view: &ClusterView, id: NodeId) -> String {
    node(view, id).map_or_else(|| id.to_string(), |node| node.name.clone())
}

/// How several are called.
pub(crate) fn names(view: &ClusterView, ids: &[NodeId]) -> String {
    let names: Vec<String> = ids.iter().map(|&id| name(view, id)).collect();
    names.join(", ")
}

/// Nodes that were not removed.
pub(crate) fn present(view: &ClusterView) -> impl Iterator<Item = &NodeView> {
    view.nodes.iter().filter(|node| node.status != NodeStatus::Removed)
}

/// The node that an operator means: by id, or by the name of one that was not removed.
///
/// # Errors
/// A sentence with the nearest name.
pub(crate) fn find<'a>(view: &'a ClusterView, text: &str) -> Result<&'a NodeView, String> {
    let by_id = text.parse::<NodeId>().ok().and_then(|id| node(view, id));
    if let Some(node) = by_id.or_else(|| present(view).find(|node| node.name == text)) {
        return Ok(node);
    }
    let names: Vec<&str> = present(view).map(|node| node.name.as_str()).collect();
    let hint = did_you_mean(text, names.iter().copied());
    Err(format!("no node of the cluster has the name or id \"{text}\"{hint}; its nodes are {}", names.join(", ")))
}

/// Nodes alive that take replicas.
pub(crate) fn takers(view: &ClusterView) -> usize {
    view.nodes.iter().filter(|node| node.is_alive && node.status == NodeStatus::Active).count()
}

/// Which nodes are alive.
pub(crate) fn living(view: &ClusterView) -> BTreeMap<NodeId, bool> {
    let is_there = |node: &NodeView| node.is_alive && node.status != NodeStatus::Removed;
    view.nodes.iter().map(|node| (node.id, is_there(node))).collect()
}

/// Voters of a group that are alive.
pub(crate) fn answering(group: &GroupView, living: &BTreeMap<NodeId, bool>) -> usize {
    group.voters.iter().filter(|voter| living.get(voter) == Some(&true)).count()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Three nodes in two zones that each have a replica of `partitions` partitions, led in turn; all is well.
    pub(in crate::cli::cluster) fn healthy(partitions: u16) -> ClusterView {
        let nodes = (1..=3u8).map(|id| NodeView {
            id: NodeId(id.into()),
            name: format!("n{id}"),
            zone: if id == 3 { "b".to_owned() } else { "a".to_owned() },
            host: format!("10.0.0.{id}"),
            ports: vec![7_701, 7_702],
            peer_port: 7_800,
            status: NodeStatus::Active,
            is_alive: true,
            seen_ms: Some(1_000_000),
            disk_bytes: Some((100 << 30, 40 << 30)),
            leaders: 1,
            replicas: u32::from(partitions),
            version: 1,
        });
        let all = vec![NodeId(1), NodeId(2), NodeId(3)];
        let group = |leader: u64| GroupView {
            leader: Some(NodeId(leader)),
            term: 3,
            applied: 90,
            committed: 90,
            replicas: all.clone(),
            voters: all.clone(),
            is_settled: true,
            ..GroupView::default()
        };
        ClusterView {
            cluster: Some(7),
            version: 12,
            answered_by: Some(NodeId(1)),
            replication: 3,
            meta: group(2),
            nodes: nodes.collect(),
            partitions: (0..partitions).map(|number| group(u64::from(number % 3) + 1)).collect(),
            warnings: Vec::new(),
        }
    }

    #[test]
    fn nodes_are_found_by_name_or_id_and_suggested_when_misspelt() {
        let mut view = healthy(1);
        view.nodes[2].status = NodeStatus::Removed;
        assert_eq!(find(&view, "n2").unwrap().id, NodeId(2));
        assert_eq!(find(&view, &NodeId(3).to_string()).unwrap().name, "n3");
        let error = find(&view, "n3").unwrap_err();
        assert!(error.contains("did you mean 'n1'?") && error.ends_with("its nodes are n1, n2"), "{error}");
        assert_eq!(address(&view.nodes[0]).unwrap(), "10.0.0.1:7701");
        view.nodes[0].host = "fe80::1".to_owned();
        assert_eq!(address(&view.nodes[0]).unwrap(), "[fe80::1]:7701");
    }
}

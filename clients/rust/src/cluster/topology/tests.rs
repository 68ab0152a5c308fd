//! The map as clients learn it: later terms win, connections stay.

use taskmaster_protocol::NodeId;

use super::*;
use crate::view::GroupView;

fn info() -> ServerInfo {
    ServerInfo { shard_ports: vec![7100, 7101], partition_shards: vec![0, 1, 0, 1], ..ServerInfo::default() }
}

fn node(id: u64, host: &str, ports: &[u16]) -> NodeView {
    NodeView {
        id: NodeId(id),
        name: format!("n{id}"),
        zone: String::new(),
        host: host.to_owned(),
        ports: ports.to_vec(),
        peer_port: 0,
        status: NodeStatus::Active,
        is_alive: true,
        seen_ms: None,
        disk_bytes: None,
        version: 1,
        leaders: 0,
        replicas: 0,
    }
}

fn map(nodes: Vec<NodeView>, leaders: [(u64, u64); 4]) -> ClusterView {
    let group = |(node, term): (u64, u64)| GroupView {
        leader: Some(NodeId(node)).filter(|id| id.0 != 0),
        term,
        ..GroupView::default()
    };
    ClusterView {
        cluster: Some(9),
        answered_by: Some(NodeId(1)),
        nodes,
        partitions: leaders.into_iter().map(group).collect(),
        ..ClusterView::default()
    }
}

fn key(topology: &Topology, partition: u16) -> Option<(u64, u16)> {
    topology.leader(PartitionId(partition)).unwrap().map(|place| place.key())
}

fn address() -> Option<IpAddr> {
    Some("10.9.9.9".parse().unwrap())
}

#[test]
fn a_partition_is_at_its_leaders_shard_by_that_nodes_ports() {
    let nodes = vec![node(1, "a", &[1, 2]), node(2, "b", &[3, 4, 5])];
    let map = map(nodes, [(1, 1), (1, 1), (2, 1), (0, 1)]);
    let topology = Topology::of_hello(&info(), address()).with_map(&map, &info(), address());
    assert_eq!([0, 1, 2, 3].map(|p| key(&topology, p)), [Some((1, 0)), Some((1, 1)), Some((2, 2)), None]);
    assert!(topology.leader(PartitionId(4)).is_err());
    assert_eq!(topology.places().count(), 5);
    assert_eq!(topology.nodes[0].hosts, ["a", "10.9.9.9"]);
    assert_eq!(topology.nodes[1].hosts, ["b"]);
}

#[test]
fn an_only_node_is_reached_as_it_was_reached() {
    let map = map(vec![node(1, "inside", &[1])], [(1, 1), (1, 1), (1, 1), (1, 1)]);
    let topology = Topology::of_hello(&info(), address()).with_map(&map, &info(), address());
    assert_eq!(
        (topology.nodes[0].hosts[0].as_str(), topology.nodes[0].ports.as_slice()),
        ("10.9.9.9", &[7100, 7101][..])
    );
    assert_eq!(key(&topology, 3), Some((1, 1)));
}

#[test]
fn a_report_of_an_earlier_term_is_not_believed() {
    let nodes = || vec![node(1, "a", &[1]), node(2, "b", &[2])];
    let start = Topology::of_hello(&info(), address());
    let first = start.with_map(&map(nodes(), [(1, 5), (1, 5), (1, 5), (1, 5)]), &info(), address());
    let second = first.with_map(&map(nodes(), [(2, 6), (2, 4), (0, 6), (0, 5)]), &info(), address());
    assert_eq!([0, 1, 2, 3].map(|p| key(&second, p)), [Some((2, 0)), Some((1, 0)), None, Some((1, 0))]);
    // Another cluster at these addresses begins anew.
    let other = ClusterView { cluster: Some(10), ..map(nodes(), [(2, 1), (2, 1), (2, 1), (2, 1)]) };
    assert_eq!(key(&second.with_map(&other, &info(), address()), 1), Some((2, 0)));
}

#[test]
fn connections_stay_with_a_node_that_keeps_its_ports() {
    let start = Topology::of_hello(&info(), address());
    let leaders = [(1, 1), (1, 1), (1, 1), (1, 1)];
    let first = start.with_map(&map(vec![node(1, "a", &[1]), node(2, "b", &[2])], leaders), &info(), address());
    let moved = vec![node(1, "elsewhere", &[1]), node(2, "b", &[9])];
    let second = first.with_map(&map(moved, leaders), &info(), address());
    assert!(Arc::ptr_eq(&first.nodes[0].links, &second.nodes[0].links));
    assert!(!Arc::ptr_eq(&first.nodes[1].links, &second.nodes[1].links));
    let same = first.with_map(&map(vec![node(1, "a", &[1]), node(2, "b", &[2])], leaders), &info(), None);
    assert!(first.is_like(&same) && !first.is_like(&second));
}

#[test]
fn nodes_that_are_gone_are_asked_last() {
    let dead = NodeView { is_alive: false, ..node(1, "a", &[1]) };
    let map = map(vec![dead, node(2, "b", &[2])], [(0, 0); 4]);
    let topology = Topology::of_hello(&info(), address()).with_map(&map, &info(), address());
    assert!((0..8).all(|turn| topology.any(turn).node.id == 2));
}

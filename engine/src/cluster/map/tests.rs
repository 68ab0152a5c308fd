//! The map: legal changes, refusals, and bytes that come back or are refused.

use super::*;
use crate::cluster::Malformed;
use proptest::prelude::*;

fn info(id: u64) -> NodeInfo {
    NodeInfo {
        id: NodeId(id),
        name: format!("n{id}"),
        zone: format!("z{}", id % 3),
        host: format!("10.0.0.{id}"),
        peer_port: 7000,
        client_ports: vec![8000, 8001],
        version: 1,
    }
}

fn ids(ids: &[u64]) -> Vec<NodeId> {
    ids.iter().copied().map(NodeId).collect()
}

fn place(group: u16, replicas: &[u64], leader: Option<u64>) -> Command {
    Command::Place { group, replicas: ids(replicas), leader: leader.map(NodeId) }
}

fn status(node: u64, status: NodeStatus) -> Command {
    Command::SetStatus { node: NodeId(node), status }
}

/// Nodes 1 to 4, four partitions, all on node 1.
fn four_nodes() -> ClusterMap {
    let mut map = ClusterMap::found(77, info(1), 4, 3);
    for id in 2..=4 {
        map.apply(&Command::Join(info(id))).unwrap();
    }
    map
}

/// Asserts that a change is refused with a sentence that contains `words`, and changes nothing.
#[track_caller]
fn refuses(map: &mut ClusterMap, command: &Command, words: &str) {
    let before = map.clone();
    let refused = map.apply(command).unwrap_err();
    assert!(refused.message.contains(words), "\"{}\" should say \"{words}\"", refused.message);
    assert_eq!(*map, before);
}

#[test]
fn each_change_moves_the_version_and_a_repetition_does_not() {
    let mut map = four_nodes();
    for command in [
        Command::Update(NodeInfo { host: "moved".to_owned(), ..info(2) }),
        Command::SetReplication(5),
        place(0, &[1, 2, 3], Some(2)),
        Command::Settled { group: 0, replicas: ids(&[1, 2, 3]) },
        Command::Prefer { group: 0, leader: Some(NodeId(3)) },
        place(META_GROUP, &[1, 2, 3], None),
        status(4, NodeStatus::Draining),
        status(4, NodeStatus::Removed),
    ] {
        let version = map.version;
        map.apply(&command).unwrap();
        assert_eq!(map.version, version + 1, "{command:?}");
        map.apply(&command).unwrap();
        assert_eq!(map.version, version + 1, "{command:?} again");
    }
}

#[test]
fn placement_is_unsettled_until_its_own_replicas_are_reported() {
    let mut map = four_nodes();
    map.apply(&place(1, &[1, 2, 3], None)).unwrap();
    assert!(!map.partitions[1].settled);
    refuses(&mut map, &Command::Settled { group: 1, replicas: ids(&[1]) }, "partition 1 has been placed elsewhere");
    map.apply(&Command::Settled { group: 1, replicas: ids(&[1, 2, 3]) }).unwrap();
    assert!(map.partitions[1].settled);
    map.apply(&place(1, &[1, 2, 3], Some(1))).unwrap();
    assert!(map.partitions[1].settled, "another preference alone unsettles nothing");
}

#[test]
fn senseless_placements_are_refused() {
    let mut map = four_nodes();
    map.apply(&status(4, NodeStatus::Draining)).unwrap();
    for (command, words) in [
        (place(9, &[1], None), "no partition 9"),
        (place(0, &[], None), "at least one replica"),
        (place(0, &[2, 1], None), "not sorted"),
        (place(0, &[1, 1], None), "twice"),
        (place(0, &[1, 9], None), "is not in the cluster"),
        (place(0, &[1, 4], None), "which is draining"),
        (place(META_GROUP, &[4], None), "the meta group cannot go to node \"n4\""),
        (place(0, &[1, 2], Some(3)), "has no replica"),
        (Command::Prefer { group: 0, leader: Some(NodeId(2)) }, "has no replica"),
        (Command::SetReplication(2), "1, 3, 5 and 7"),
        (Command::SetReplication(9), "1, 3, 5 and 7"),
    ] {
        refuses(&mut map, &command, words);
    }
    let many: Vec<u64> = (1..=17).collect();
    refuses(&mut map, &place(0, &many, None), "more than 16");
}

#[test]
fn node_keeps_what_it_has_while_it_drains_but_leads_nothing() {
    let mut map = four_nodes();
    map.apply(&place(0, &[1, 2, 3], Some(2))).unwrap();
    map.apply(&status(2, NodeStatus::Draining)).unwrap();
    assert_eq!(map.partitions[0].leader, None);
    map.apply(&place(0, &[1, 2, 4], None)).unwrap();
    refuses(&mut map, &Command::Prefer { group: 0, leader: Some(NodeId(2)) }, "it is draining");
    map.apply(&status(2, NodeStatus::Active)).unwrap();
    map.apply(&Command::Prefer { group: 0, leader: Some(NodeId(2)) }).unwrap();
}

#[test]
fn removal_that_would_take_the_last_replica_or_the_quorum_is_refused() {
    let mut map = four_nodes();
    refuses(&mut map, &status(1, NodeStatus::Removed), "holds the only replica of the meta group");
    map.apply(&place(META_GROUP, &[2], None)).unwrap();
    for group in 0..4 {
        map.apply(&place(group, &[1, 2, 3], None)).unwrap();
    }
    map.apply(&status(3, NodeStatus::Removed)).unwrap();
    refuses(&mut map, &status(1, NodeStatus::Removed), "partition 0 would have 1 of 3 replicas");
    for group in 0..4 {
        map.apply(&place(group, &[1, 2, 4], None)).unwrap();
    }
    map.apply(&status(1, NodeStatus::Removed)).unwrap();
}

#[test]
fn removed_node_stays_removed_and_frees_its_name() {
    let mut map = four_nodes();
    map.apply(&status(4, NodeStatus::Removed)).unwrap();
    for command in [Command::Join(info(4)), Command::Update(info(4)), status(4, NodeStatus::Active)] {
        refuses(&mut map, &command, "removed from the cluster for good");
    }
    map.apply(&Command::Join(NodeInfo { name: "n4".to_owned(), ..info(9) })).unwrap();
}

#[test]
fn nodes_that_do_not_fit_are_refused() {
    let mut map = four_nodes();
    for (command, words) in [
        (Command::Join(NodeInfo { name: "n2".to_owned(), ..info(9) }), "has that name"),
        (Command::Update(NodeInfo { name: "n2".to_owned(), ..info(3) }), "has that name"),
        (Command::Update(info(9)), "is not in the cluster"),
        (status(9, NodeStatus::Draining), "is not in the cluster"),
        (Command::Join(NodeInfo { version: 3, ..info(9) }), "two adjacent versions"),
        (Command::Join(info(0)), "not zero"),
        (Command::Join(NodeInfo { name: String::new(), ..info(9) }), "name of a node has 0 bytes"),
        (Command::Join(NodeInfo { host: "a b".to_owned(), ..info(9) }), "contains the character ' '"),
        (Command::Join(NodeInfo { client_ports: vec![], ..info(9) }), "0 client ports"),
        (Command::Join(NodeInfo { client_ports: vec![0], ..info(9) }), "port 0"),
        (Command::Join(NodeInfo { peer_port: 65535, ..info(9) }), "end above 65535"),
    ] {
        refuses(&mut map, &command, words);
    }
}

#[test]
fn cluster_takes_two_adjacent_versions_and_moves_on_one_by_one() {
    let mut map = four_nodes();
    for id in 1..=4 {
        assert_eq!(map.version_spoken(), 1);
        map.apply(&Command::Update(NodeInfo { version: 2, ..info(id) })).unwrap();
        if id < 4 {
            refuses(&mut map, &Command::Update(NodeInfo { version: 3, ..info(id) }), "one version at a time");
        }
    }
    map.apply(&Command::Update(NodeInfo { version: 3, ..info(1) })).unwrap();
    refuses(&mut map, &Command::Join(NodeInfo { version: 1, ..info(9) }), "two adjacent versions");
}

#[test]
fn nodes_are_bounded_and_removed_ones_are_forgotten_in_the_end() {
    let mut map = ClusterMap::found(1, info(1), 1, 1);
    for id in 2..=64 {
        map.apply(&Command::Join(info(id))).unwrap();
    }
    refuses(&mut map, &Command::Join(info(65)), "64 nodes, which is the most");
    for id in 65..1000 {
        map.apply(&status(id - 1, NodeStatus::Removed)).unwrap();
        map.apply(&Command::Join(info(id))).unwrap();
        assert!(map.nodes.len() <= NODES_KEPT_MAX && map.present().count() == 64);
    }
}

#[test]
fn last_active_node_can_neither_be_drained_nor_removed() {
    let mut map = ClusterMap::found(1, info(1), 1, 1);
    refuses(&mut map, &status(1, NodeStatus::Draining), "last active node");
    refuses(&mut map, &status(1, NodeStatus::Removed), "last active node");
}

fn any_info() -> impl Strategy<Value = NodeInfo> {
    (1u64..9, "[a-e]{1,3}", "[a-c]{0,2}", "[a-z.]{1,20}", 1u16..9999, prop::collection::vec(1u16.., 1..5), 1u32..4)
        .prop_map(|(id, name, zone, host, peer_port, client_ports, version)| NodeInfo {
            id: NodeId(id),
            name,
            zone,
            host,
            peer_port,
            client_ports,
            version,
        })
}

fn any_group() -> impl Strategy<Value = u16> {
    prop_oneof![0u16..6, Just(META_GROUP)]
}

fn any_replicas() -> impl Strategy<Value = Vec<NodeId>> {
    prop_oneof![
        prop::collection::btree_set(1u64..9, 0..5).prop_map(|set| set.into_iter().map(NodeId).collect()),
        prop::collection::vec((0u64..9).prop_map(NodeId), 0..4),
    ]
}

fn any_command() -> impl Strategy<Value = Command> {
    let leader = || prop::option::of((1u64..9).prop_map(NodeId));
    let status = prop_oneof![Just(NodeStatus::Active), Just(NodeStatus::Draining), Just(NodeStatus::Removed)];
    prop_oneof![
        3 => any_info().prop_map(Command::Join),
        1 => any_info().prop_map(Command::Update),
        1 => ((1u64..9).prop_map(NodeId), status).prop_map(|(node, status)| Command::SetStatus { node, status }),
        4 => (any_group(), any_replicas(), leader())
            .prop_map(|(group, replicas, leader)| Command::Place { group, replicas, leader }),
        1 => (any_group(), leader()).prop_map(|(group, leader)| Command::Prefer { group, leader }),
        1 => (any_group(), any_replicas()).prop_map(|(group, replicas)| Command::Settled { group, replicas }),
        1 => (0u16..9).prop_map(Command::SetReplication),
    ]
}

/// A map that grew by whatever of the commands it accepted.
fn grown(commands: &[Command]) -> ClusterMap {
    let mut map = ClusterMap::found(0xC0FFEE, info(1), 5, 3);
    for command in commands {
        let before = map.clone();
        let is_checked = map.check(command);
        match map.apply(command) {
            Ok(()) => assert_eq!(map.version, before.version + u64::from(map != before), "{command:?}"),
            Err(_) => assert_eq!(map, before, "{command:?} was refused"),
        }
        assert_eq!(is_checked.is_ok(), before.clone().apply(command).is_ok());
        map.validate().unwrap();
    }
    map
}

proptest! {
    #[test]
    fn any_commands_leave_a_valid_map_whose_bytes_come_back(commands in prop::collection::vec(any_command(), 0..60)) {
        let map = grown(&commands);
        let mut bytes = Vec::new();
        map.encode(&mut bytes);
        prop_assert_eq!(ClusterMap::decode(&bytes), Ok(map));
        for command in commands {
            let mut bytes = Vec::new();
            command.encode(&mut bytes);
            prop_assert_eq!(Command::decode(&bytes), Ok(command));
        }
    }

    #[test]
    fn damaged_bytes_are_refused_or_read_as_another_valid_map(
        commands in prop::collection::vec(any_command(), 0..20), at: prop::sample::Index, bit in 0u8..8, cut: prop::sample::Index,
    ) {
        let mut bytes = Vec::new();
        grown(&commands).encode(&mut bytes);
        prop_assert!(ClusterMap::decode(&bytes[..cut.index(bytes.len())]).is_err());
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        if let Ok(map) = ClusterMap::decode(&bytes) {
            map.validate().unwrap();
            let mut again = Vec::new();
            map.encode(&mut again);
            prop_assert_eq!(again, bytes);
        }
        for command in &commands {
            let mut bytes = Vec::new();
            command.encode(&mut bytes);
            prop_assert!(Command::decode(&bytes[..cut.index(bytes.len())]).is_err());
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            let _ = Command::decode(&bytes);
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), version in 0u16..3) {
        for start in [Vec::new(), version.to_le_bytes().to_vec()] {
            let bytes = [start, bytes.clone()].concat();
            let _ = ClusterMap::decode(&bytes);
            let _ = Command::decode(&bytes);
        }
    }
}

#[test]
fn another_format_is_refused_with_both_versions() {
    let mut bytes = Vec::new();
    four_nodes().encode(&mut bytes);
    bytes[0] = 9;
    let error = ClusterMap::decode(&bytes).unwrap_err();
    assert_eq!(error, Malformed::Format { what: "a cluster map", found: 9, expected: 1 });
    assert!(error.to_string().contains("use the version that wrote it"));
}

#[test]
fn lengths_that_the_bytes_only_claim_are_not_believed() {
    let mut bytes = Vec::new();
    four_nodes().encode(&mut bytes);
    bytes[4..6].copy_from_slice(&u16::MAX.to_le_bytes());
    assert_eq!(ClusterMap::decode(&bytes), Err(Malformed::Length { what: "a cluster map" }));
}

/// Bytes written as on the page of the format, with spaces for the reader.
fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.chars().filter_map(|c| c.to_digit(16)).map(|d| u8::try_from(d).unwrap()).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

#[test]
fn bytes_are_those_of_the_page() {
    let node = "0100000000000000 01000000 581b 0200 00 02 02 08 6e31 7a31 31302e302e302e31 401f 411f";
    let map = ClusterMap::found(0x0102, info(1), 1, 3);
    let mut bytes = Vec::new();
    map.encode(&mut bytes);
    let header = "0100 0300 0100 0100 0100000000000000 02010000000000000000000000000000";
    let placement = "01 ff 01 00 0100000000000000 0100000000000000";
    assert_eq!(bytes, hex(&[header, node, placement, placement].concat()));
    for (command, text) in [
        (Command::Join(info(1)), format!("0100 0100 {node}")),
        (Command::Update(info(1)), format!("0100 0200 {node}")),
        (status(2, NodeStatus::Draining), "0100 0300 0200000000000000 01".to_owned()),
        (
            place(7, &[1, 2], Some(2)),
            "0100 0400 0700 0200000000000000 02 ff 00 00 0100000000000000 0200000000000000".to_owned(),
        ),
        (Command::Prefer { group: META_GROUP, leader: None }, "0100 0500 ffff 0000000000000000".to_owned()),
        (Command::Settled { group: 7, replicas: ids(&[3]) }, "0100 0600 0700 01 ff 01 00 0300000000000000".to_owned()),
        (Command::SetReplication(5), "0100 0700 0500".to_owned()),
    ] {
        let mut bytes = Vec::new();
        command.encode(&mut bytes);
        assert_eq!(bytes, hex(&text), "{command:?}");
    }
}

//! Memberships over a network in virtual time: loss, partitions, restarts, strangers and hostile packets.

use super::packet::{GOSSIP_FORMAT, hash_of_name, seal};
use super::*;
use proptest::prelude::*;

const SECOND_US: u64 = 1_000_000;

fn address(host: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, host], 7000))
}

fn member(id: u64, host: u8, start: u32, cluster: u128) -> Member {
    Member {
        id: NodeId(id),
        cluster,
        bump: Member::bump_of_start(start),
        peer: address(host),
        shards: 2,
        version: 1,
        name: format!("n{id}"),
        is_alive: true,
    }
}

struct Node {
    membership: Membership,
    changes: Vec<(u64, Member)>,
    warnings: Vec<String>,
}

/// Nodes and the packets between them; 1 to 2 ms each way.
struct World {
    now_us: u64,
    nodes: BTreeMap<SocketAddr, Node>,
    /// By arrival and order of sending.
    flying: BTreeMap<(u64, u64), (SocketAddr, SocketAddr, Vec<u8>)>,
    sent: u64,
    choice: SplitMix,
    loss_percent: u64,
    /// Hosts below this cannot talk to the others.
    split_below: u8,
    trace: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            now_us: 1_700_000_000_000_000,
            nodes: BTreeMap::new(),
            flying: BTreeMap::new(),
            sent: 0,
            choice: SplitMix(seed),
            loss_percent: 0,
            split_below: 0,
            trace: 0,
        }
    }

    fn start_with(&mut self, member: Member, cluster_name: &str, seeds: &[u8]) {
        let peer = member.peer;
        let seeds = seeds.iter().copied().map(address).collect();
        let membership = Membership::new(member, cluster_name, seeds, self.choice.next(), self.now_us);
        self.nodes.insert(peer, Node { membership, changes: Vec::new(), warnings: Vec::new() });
    }

    /// Starts nodes 1 to `count` of cluster 5 at hosts of the same numbers; the first is everybody's seed.
    fn start(&mut self, count: u8) {
        for host in 1..=count {
            self.start_with(member(u64::from(host), host, 1, 5), "test", &[1]);
        }
    }

    fn node(&mut self, host: u8) -> &mut Node {
        self.nodes.get_mut(&address(host)).unwrap()
    }

    fn can_pass(&mut self, from: SocketAddr, to: SocketAddr) -> bool {
        let side = |address: SocketAddr| matches!(address.ip(), core::net::IpAddr::V4(ip) if ip.octets()[3] < self.split_below);
        side(from) == side(to) && self.choice.next() % 100 >= self.loss_percent
    }

    /// Runs one node's turn and carries its effects out.
    fn turn(&mut self, at: SocketAddr, input: Option<(SocketAddr, &[u8])>) {
        let now_us = self.now_us;
        let Some(node) = self.nodes.get_mut(&at) else { return };
        let mut out = Out::default();
        match input {
            Some((from, packet)) => node.membership.handle_packet(from, packet, now_us, &mut out),
            None => node.membership.handle_timeout(now_us, &mut out),
        }
        node.changes.extend(out.changes.into_iter().map(|change| (now_us, change)));
        node.warnings.extend(out.warnings);
        for (to, packet) in out.packets {
            assert!(packet.len() <= PACKET_BYTES_MAX, "packet of {} bytes", packet.len());
            self.trace = self.trace.rotate_left(5) ^ u64::from(crc32c::crc32c(&packet)) ^ now_us;
            self.sent += 1;
            if self.can_pass(at, to) {
                let arrival_us = now_us + 1_000 + self.choice.next() % 1_000;
                self.flying.insert((arrival_us, self.sent), (at, to, packet));
            }
        }
    }

    fn run(&mut self, us: u64) {
        let end_us = self.now_us + us;
        loop {
            let packet_us = self.flying.first_key_value().map_or(u64::MAX, |((at_us, _), _)| *at_us);
            let wake = self.nodes.iter().map(|(at, node)| (node.membership.next_wake_us(), *at)).min();
            let (wake_us, at) = wake.unwrap_or((u64::MAX, address(0)));
            let next_us = packet_us.min(wake_us);
            if next_us > end_us {
                break;
            }
            self.now_us = self.now_us.max(next_us);
            if packet_us <= wake_us {
                let (from, to, packet) = self.flying.pop_first().unwrap().1;
                self.turn(to, Some((from, &packet)));
            } else {
                self.turn(at, None);
            }
        }
        self.now_us = end_us;
    }

    /// Runs until `is_done` or the time is up; gives how long it took.
    fn run_until(&mut self, us_max: u64, is_done: impl Fn(&Self) -> bool) -> u64 {
        let start_us = self.now_us;
        while !is_done(self) {
            assert!(self.now_us - start_us < us_max, "not done in time: {:?}", self.seen());
            self.run(10_000);
        }
        self.now_us - start_us
    }

    /// Whom each host sees.
    fn seen(&self) -> BTreeMap<SocketAddr, Vec<u64>> {
        let ids = |node: &Node| node.membership.members().map(|member| member.id.0).collect();
        self.nodes.iter().map(|(at, node)| (*at, ids(node))).collect()
    }

    fn all_see_all(&self) -> bool {
        self.nodes.values().all(|node| node.membership.members().count() == self.nodes.len() - 1)
    }
}

#[test]
fn nodes_find_each_other_by_one_seed() {
    let mut world = World::new(1);
    world.start(5);
    let us = world.run_until(SECOND_US, World::all_see_all);
    assert!(us < SECOND_US / 2, "took {us} us");
    let node = world.node(3);
    assert_eq!(node.membership.members().next(), Some(&member(1, 1, 1, 5)));
    assert_eq!((node.changes.len(), node.warnings.len()), (4, 0));
}

#[test]
fn same_seed_gives_the_same_packets() {
    let run = |seed| {
        let mut world = World::new(seed);
        world.start(4);
        world.loss_percent = 10;
        world.run(10 * SECOND_US);
        (world.trace, world.sent)
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}

#[test]
fn death_is_noticed_within_two_seconds_and_in_a_calm_cluster_within_four() {
    for seed in 0..40 {
        let is_calm = seed % 2 > 0;
        let mut world = World::new(seed);
        world.start(5);
        world.run_until(SECOND_US, World::all_see_all);
        world.run(if is_calm { 30 * SECOND_US } else { 0 });
        world.nodes.remove(&address(4));
        world.run_until(if is_calm { 4 } else { 2 } * SECOND_US, World::all_see_all);
        let (_, change) = world.node(1).changes.last().unwrap();
        assert_eq!((change.id, change.is_alive), (NodeId(4), false));
    }
}

#[test]
fn calm_cluster_of_three_sends_each_node_three_packets_a_second() {
    let mut world = World::new(5);
    world.start(3);
    world.run(20 * SECOND_US);
    let before = world.sent;
    world.run(60 * SECOND_US);
    let sent = world.sent - before;
    // A probe a second from each and its answer, and an announcement with its answer every five.
    assert!((360..480).contains(&sent), "{sent} packets");
}

#[test]
fn goodbye_is_noticed_at_once() {
    let mut world = World::new(1);
    world.start(3);
    world.run_until(SECOND_US, World::all_see_all);
    let now_us = world.now_us;
    let mut out = Out::default();
    world.node(2).membership.leave(now_us, &mut out);
    assert_eq!(world.node(2).membership.next_wake_us(), u64::MAX);
    world.nodes.remove(&address(2));
    for (to, packet) in out.packets {
        world.turn(to, Some((address(2), &packet)));
    }
    assert!(world.all_see_all());
}

#[test]
fn loss_of_a_fifth_of_all_packets_is_survived() {
    let mut world = World::new(3);
    world.start(5);
    world.loss_percent = 20;
    world.run_until(3 * SECOND_US, World::all_see_all);
    world.run(60 * SECOND_US);
    world.loss_percent = 0;
    world.run_until(5 * SECOND_US, World::all_see_all);
    assert!(world.nodes.values().all(|node| node.warnings.is_empty()));
}

#[test]
fn halves_of_a_partition_find_each_other_when_it_heals() {
    for (count, split_below) in [(2, 2), (5, 3), (5, 5)] {
        for seed in 0..5 {
            let mut world = World::new(seed);
            world.start(count);
            world.run_until(SECOND_US, World::all_see_all);
            world.split_below = split_below;
            let is_split = |world: &World| {
                let below = usize::from(split_below) - 1;
                world.nodes.iter().all(|(at, node)| {
                    let side = if *at < address(split_below) { below } else { usize::from(count) - below };
                    node.membership.members().count() == side - 1
                })
            };
            world.run_until(5 * SECOND_US, is_split);
            world.run(30 * SECOND_US);
            world.split_below = 0;
            let us = world.run_until(10 * SECOND_US, World::all_see_all);
            assert!(us < 6 * SECOND_US, "{count} nodes split at {split_below}, seed {seed}: healed after {us} us");
            world.run(20 * SECOND_US);
            assert!(world.all_see_all());
        }
    }
}

#[test]
fn halves_that_forgot_each_other_meet_at_a_seed() {
    let mut world = World::new(2);
    for (host, seeds) in [(1, [3]), (2, [1]), (3, [4]), (4, [3])] {
        world.start_with(member(u64::from(host), host, 1, 5), "test", &seeds);
    }
    world.run_until(SECOND_US, World::all_see_all);
    world.split_below = 3;
    world.run(2 * 3600 * SECOND_US);
    world.split_below = 0;
    world.run_until(20 * SECOND_US, World::all_see_all);
}

#[test]
fn restarted_node_is_the_same_at_its_new_address() {
    for pause_us in [0, 10 * SECOND_US] {
        let mut world = World::new(4);
        world.start(3);
        world.run_until(SECOND_US, World::all_see_all);
        world.nodes.remove(&address(3));
        world.run(pause_us);
        world.start_with(member(3, 33, 2, 5), "test", &[1, 2]);
        let has_moved = |world: &World| {
            let node = &world.nodes[&address(1)];
            world.all_see_all() && node.membership.members().any(|member| member.peer == address(33))
        };
        world.run_until(SECOND_US, has_moved);
        world.run(10 * SECOND_US);
        assert!(has_moved(&world));
        let node = world.node(1);
        assert_eq!(node.changes.last().unwrap().1, member(3, 33, 2, 5));
        assert!(node.warnings.is_empty(), "{:?}", node.warnings);
    }
}

#[test]
fn node_whose_address_another_one_took_is_gone_at_once() {
    for pause_us in [0, 10 * SECOND_US] {
        let mut world = World::new(4);
        world.start(3);
        world.run_until(SECOND_US, World::all_see_all);
        world.nodes.remove(&address(3));
        world.run(pause_us);
        let heir = Member { name: "n3".to_owned(), ..member(4, 3, 1, 5) };
        world.start_with(heir, "test", &[1]);
        // Well before a probe could fail.
        world.run_until(100_000, World::all_see_all);
        world.run(60 * SECOND_US);
        assert!(world.all_see_all());
        for host in 1..=2 {
            let changes = world.node(host).changes.iter().filter(|(_, change)| change.id == NodeId(3));
            let is_alive: Vec<bool> = changes.map(|(_, change)| change.is_alive).collect();
            assert_eq!(is_alive, [true, false]);
        }
        assert!(world.node(3).changes.iter().all(|(_, change)| change.id != NodeId(3)));
        let is_said = world.node(1).warnings.iter().any(|warning| warning.contains("cluster remove"));
        assert_eq!(is_said, pause_us == 0, "{:?}", world.node(1).warnings);
    }
}

#[test]
fn nodes_that_say_that_they_are_at_one_address_take_turns_slowly() {
    let mut world = World::new(4);
    world.start(3);
    // Its packets come from elsewhere.
    world.start_with(member(4, 4, 1, 5), "test", &[1]);
    world.run_until(SECOND_US, World::all_see_all);
    world.node(4).membership.own.peer = address(3);
    world.node(4).membership.set_cluster(0);
    world.node(4).membership.set_cluster(5);
    let sent_before = world.sent;
    world.run(60 * SECOND_US);
    assert!(world.sent - sent_before < 60 * 5 * 60, "{} packets in a minute", world.sent - sent_before);
    for host in [1, 2] {
        let node = world.node(host);
        assert!(node.warnings.iter().any(|warning| warning.contains("at its address")), "{:?}", node.warnings);
        let others = node.changes.iter().filter(|(_, change)| change.id.0 <= 2);
        assert!(others.into_iter().all(|(_, change)| change.is_alive));
    }
}

#[test]
fn node_whose_start_count_was_set_back_is_let_in_after_a_while() {
    let mut world = World::new(4);
    world.start(2);
    world.start_with(member(3, 3, 9, 5), "test", &[1]);
    world.run_until(SECOND_US, World::all_see_all);
    world.nodes.remove(&address(3));
    world.run(10 * SECOND_US);
    world.start_with(member(3, 3, 2, 5), "test", &[1]);
    world.run_until(300 * SECOND_US, World::all_see_all);
}

#[test]
fn joining_a_cluster_is_told_without_seeming_down() {
    let mut world = World::new(5);
    world.start(2);
    world.start_with(member(3, 3, 1, 0), "test", &[1]);
    world.run_until(SECOND_US, World::all_see_all);
    world.node(3).membership.set_cluster(5);
    let is_told = |world: &World| {
        let node = &world.nodes[&address(2)];
        node.membership.members().any(|member| member.id == NodeId(3) && member.cluster == 5)
    };
    world.run_until(SECOND_US, is_told);
    world.run(5 * SECOND_US);
    assert!(world.all_see_all());
    for node in world.nodes.values() {
        assert!(node.changes.iter().all(|(_, change)| change.is_alive));
    }
}

#[test]
fn clusters_with_other_names_never_mix() {
    let mut world = World::new(6);
    world.start(2);
    world.start_with(member(8, 8, 1, 0), "another", &[1]);
    world.run(10 * SECOND_US);
    assert_eq!(world.seen().into_values().collect::<Vec<_>>(), [vec![2], vec![1], vec![]]);
    let warnings = &world.node(1).warnings;
    assert_eq!(warnings.len(), 1, "once a minute: {warnings:?}");
    assert!(warnings[0].contains("a node at 10.0.0.8:7000 gossips for a cluster with another name"));
    let warnings = &world.node(8).warnings;
    assert_eq!(warnings.len(), 1, "it hears why it is ignored: {warnings:?}");
    assert!(warnings[0].contains("a node at 10.0.0.1:7000 gossips for a cluster with another name"));
    world.run(60 * SECOND_US);
    assert_eq!(world.node(1).warnings.len(), 2);
}

#[test]
fn nodes_of_another_cluster_id_are_named_and_never_reported() {
    let mut world = World::new(7);
    world.start(2);
    world.start_with(member(8, 8, 1, 6), "test", &[1]);
    world.start_with(member(9, 9, 1, 0), "test", &[1, 8]);
    world.run(30 * SECOND_US);
    assert_eq!(world.seen().into_values().collect::<Vec<_>>(), [vec![2, 9], vec![1, 9], vec![9], vec![1, 2, 8]]);
    for host in [1, 2, 8] {
        let reported = |id| world.nodes[&address(host)].changes.iter().any(|(_, change)| change.id == NodeId(id));
        assert_eq!((reported(8), reported(1)), (false, host == 2));
    }
    let warning = &world.node(1).warnings[0];
    for words in ["node \"n8\"", "belongs to cluster 00000000000000000000000000000006", "0000000005: it is ignored"] {
        assert!(warning.contains(words), "{warning}");
    }
    let warning = &world.node(9).warnings[0];
    assert!(warning.contains("this node cannot join both"), "{warning}");
    world.node(9).membership.set_cluster(6);
    world.run(10 * SECOND_US);
    assert_eq!(world.seen().into_values().collect::<Vec<_>>(), [vec![2], vec![1], vec![9], vec![8]]);
    let (_, change) = world.node(9).changes.iter().rfind(|(_, change)| change.id == NodeId(1)).unwrap();
    assert!(!change.is_alive);
}

#[test]
fn versions_more_than_one_apart_do_not_meet() {
    let mut world = World::new(8);
    world.start(1);
    world.start_with(Member { version: 2, ..member(2, 2, 1, 5) }, "test", &[1]);
    world.start_with(Member { version: 3, ..member(3, 3, 1, 5) }, "test", &[1]);
    world.run(10 * SECOND_US);
    assert_eq!(world.seen()[&address(1)], [2]);
    assert!(world.node(1).warnings[0].contains("has format version 3, this node 1"));
    assert!(world.node(3).warnings[0].contains("has format version 1, this node 3"));
}

#[test]
fn copied_data_directory_is_noticed_by_all_and_disturbs_nobody_else() {
    let mut world = World::new(9);
    world.start(4);
    world.run_until(SECOND_US, World::all_see_all);
    world.start_with(member(4, 44, 1, 5), "test", &[1, 2, 3]);
    let sent_before = world.sent;
    world.run(60 * SECOND_US);
    assert!(world.sent - sent_before < 60 * 5 * 60, "{} packets in a minute", world.sent - sent_before);
    for host in [1, 2, 3] {
        let warnings = &world.node(host).warnings;
        assert!((1..=2).contains(&warnings.len()), "{warnings:?}");
        assert!(warnings[0].contains("two nodes go by the id"), "{warnings:?}");
        let changes = world.nodes[&address(host)].changes.iter();
        assert!(changes.filter(|(_, change)| change.id != NodeId(4)).all(|(_, change)| change.is_alive));
    }
}

#[test]
fn two_nodes_of_one_name_are_told_of() {
    let mut world = World::new(10);
    world.start(2);
    world.start_with(Member { name: "n2".to_owned(), ..member(3, 3, 1, 5) }, "test", &[1]);
    world.run_until(SECOND_US, World::all_see_all);
    for host in 1..=3 {
        assert!(world.node(host).warnings[0].contains("two nodes are called \"n2\""));
    }
}

#[test]
fn garbage_and_other_formats_are_dropped_with_a_sentence() {
    let mut world = World::new(11);
    world.start(1);
    let mut other_format = seal(PacketKind::Hello, hash_of_name("test"), b"");
    other_format[4] = 9;
    let mut damaged = seal(PacketKind::Hello, hash_of_name("test"), b"");
    damaged[20] ^= 1;
    let empty = seal(PacketKind::Gossip, hash_of_name("test"), b"");
    for (packet, words) in [
        (b"GET / HTTP/1.1\r\nHost: 10.0.0.1\r\n".to_vec(), "is not of Taskmaster"),
        (other_format, "has format 9, this build speaks 1"),
        (damaged, "is damaged"),
    ] {
        for _ in 0..100 {
            world.turn(address(1), Some((address(99), &packet)));
        }
        let warnings = core::mem::take(&mut world.node(1).warnings);
        assert!(warnings.len() == 1 && warnings[0].contains(words), "{warnings:?}");
    }
    world.turn(address(1), Some((address(98), &empty)));
    assert!(world.node(1).warnings[0].contains("is damaged"));
    assert_eq!(GOSSIP_FORMAT, 1);
}

#[test]
fn bytes_are_those_of_the_page() {
    let identity = Identity::of(&member(0x0A, 7, 3, 0x0105));
    let mut body = Vec::new();
    packet::put_identity(&mut body, &identity);
    let bytes = [
        &[0x0A, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 5, 1][..],
        &[0; 14],
        &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 10, 0, 0, 7, 0x58, 0x1B, 2, 0, 1, 0, 0, 0, 3],
        b"n10",
    ]
    .concat();
    assert_eq!(body, bytes);
    let hello = seal(PacketKind::Hello, hash_of_name("a"), &body);
    assert_eq!(hello[..8], *b"TMGS\x01\0\x02\0");
    assert_eq!(hello[8..12], crc32c::crc32c(&[&hello[..8], &hello[12..]].concat()).to_le_bytes());
    assert_eq!(hello[12..24], *b"\0\0\0\0\x8c\xec\x01\x86\x4c\xdc\x63\xaf");
    assert_eq!(hello[24..], body);
    let dst = identity.clone();
    let message = foca::Message::PingReq { target: identity.clone(), probe_number: 9 };
    let mut header = Vec::new();
    packet::put_header(&mut header, &foca::Header { src: identity.clone(), src_incarnation: 2, dst, message });
    assert_eq!(header, [&body[..], &[2, 0], &body, &[3, 9], &body].concat());
    let mut suspect = Vec::new();
    packet::put_member(&mut suspect, &foca::Member::new(identity, 2, foca::State::Suspect));
    assert_eq!(suspect, [&body[..], &[2, 0, 1]].concat());
}

/// Whatever is in a packet with a right prefix.
fn any_identity() -> impl Strategy<Value = Identity> {
    (0u64..6, 0u64..3, prop_oneof![Just(0u128), Just(5), Just(6)], 0u8..9, "[a-z]{1,3}").prop_map(
        |(id, bump, cluster, host, name)| Identity {
            id: NodeId(id),
            bump: if bump == 2 { u64::MAX } else { bump << 32 },
            cluster,
            peer: address(host),
            shards: 1,
            version: 1,
            name,
        },
    )
}

fn any_message() -> impl Strategy<Value = foca::Message<Identity>> {
    use foca::Message::{
        Ack, Announce, Feed, ForwardedAck, Gossip, IndirectAck, IndirectPing, Ping, PingReq, TurnUndead,
    };
    (0u8..10, 0u8..4, any_identity()).prop_map(|(kind, probe_number, other)| match kind {
        0 => Ping(probe_number),
        1 => Ack(probe_number),
        2 => PingReq { target: other, probe_number },
        3 => IndirectPing { origin: other, probe_number },
        4 => IndirectAck { target: other, probe_number },
        5 => ForwardedAck { origin: other, probe_number },
        6 => Announce,
        7 => Feed,
        8 => Gossip,
        _ => TurnUndead,
    })
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..1500), kind in 1u8..3) {
        let mut world = World::new(1);
        world.start(1);
        let kind = if kind == 1 { PacketKind::Gossip } else { PacketKind::Hello };
        for packet in [bytes.clone(), seal(kind, hash_of_name("test"), &bytes)] {
            world.turn(address(1), Some((address(9), &packet)));
        }
        world.run(SECOND_US);
    }

    #[test]
    fn well_formed_lies_are_survived(lies in prop::collection::vec(
        (any_identity(), any::<u16>(), any::<bool>(), any_identity(), any_message(),
         prop::collection::vec((any_identity(), any::<u16>(), 0u8..3), 0..5)), 1..40), cut in any::<prop::sample::Index>())
    {
        let mut world = World::new(1);
        world.start(2);
        for (src, src_incarnation, is_ours, dst, message, members) in lies {
            let dst = if is_ours { world.node(1).membership.foca.identity().clone() } else { dst };
            let mut body = Vec::new();
            packet::put_header(&mut body, &foca::Header { src, src_incarnation, dst, message });
            if !members.is_empty() {
                body.extend_from_slice(&u16::try_from(members.len()).unwrap().to_be_bytes());
                for (id, incarnation, state) in members {
                    let state = [foca::State::Alive, foca::State::Suspect, foca::State::Down][usize::from(state)];
                    packet::put_member(&mut body, &foca::Member::new(id, incarnation, state));
                }
            }
            let packet = seal(PacketKind::Gossip, hash_of_name("test"), &body);
            world.turn(address(1), Some((address(9), &packet)));
            let cut = seal(PacketKind::Gossip, hash_of_name("test"), &body[..cut.index(body.len())]);
            world.turn(address(1), Some((address(9), &cut)));
            world.run(20_000);
        }
        world.run(SECOND_US);
        let members = world.nodes[&address(1)].membership.members();
        prop_assert!(members.into_iter().all(|member| member.cluster != 6));
    }

    #[test]
    fn members_are_bounded_whatever_is_claimed(ids in prop::collection::btree_set(10u64.., 200..300)) {
        let mut world = World::new(1);
        world.start(1);
        for id in ids {
            let mut body = Vec::new();
            packet::put_identity(&mut body, &Identity::of(&member(id, 9, 1, 5)));
            let hello = seal(PacketKind::Hello, hash_of_name("test"), &body);
            world.turn(address(1), Some((address(9), &hello)));
        }
        let node = world.node(1);
        prop_assert!(node.membership.foca.iter_membership_state().len() <= MEMBERS_MAX);
        prop_assert!(node.warnings.iter().any(|warning| warning.contains("128 nodes are known already")));
    }
}

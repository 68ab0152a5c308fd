//! Plans over a simulated cluster: groups that settle at their own pace, nodes that come, die, drain and go.

use super::*;
use crate::cluster::{NodeInfo, NodeStatus};
use proptest::prelude::*;
use std::collections::BTreeSet;

const STEP_US: u64 = 500_000;

fn limits() -> Limits {
    Limits { replace_after_us: 10_000_000, moves_max: 6, commands_max: 24, ..Limits::default() }
}

fn info(id: u64, zone: u64) -> NodeInfo {
    NodeInfo {
        id: NodeId(id),
        name: format!("n{id}"),
        zone: format!("z{zone}"),
        host: "localhost".to_owned(),
        peer_port: 7000,
        client_ports: vec![8000],
        version: 1,
    }
}

/// What a group really is.
#[derive(Clone, Debug)]
struct Group {
    voters: Vec<NodeId>,
    leader: NodeId,
    log_bytes: u64,
    load_per_s: u64,
}

/// A cluster whose groups follow the map.
struct World {
    now_us: u64,
    map: ClusterMap,
    dead_since_us: BTreeMap<NodeId, u64>,
    groups: BTreeMap<u16, Group>,
    limits: Limits,
    choice: u64,
    /// Of 100 steps that a group could settle in, how many it does.
    haste_percent: u64,
}

impl World {
    /// One node, and partitions that all weigh the same.
    fn found(partitions: u16, replication: u16, seed: u64) -> Self {
        let map = ClusterMap::found(1, info(1, 0), partitions, replication);
        let group = Group { voters: vec![NodeId(1)], leader: NodeId(1), log_bytes: 100, load_per_s: 0 };
        let groups = map.groups().map(|(number, _)| (number, group.clone())).collect();
        Self {
            now_us: 1_000_000_000,
            map,
            dead_since_us: BTreeMap::new(),
            groups,
            limits: limits(),
            choice: seed,
            haste_percent: 100,
        }
    }

    fn with_nodes(partitions: u16, replication: u16, zones: &[u64]) -> Self {
        let mut world = Self::found(partitions, replication, 1);
        world.map.nodes[0].0.zone = format!("z{}", zones[0]);
        for (id, zone) in (2..).zip(&zones[1..]) {
            world.join(id, *zone);
        }
        world.converge();
        world
    }

    fn random(&mut self, below: u64) -> u64 {
        self.choice = self.choice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.choice >> 33) % below
    }

    fn join(&mut self, id: u64, zone: u64) {
        self.map.apply(&Command::Join(info(id, zone))).unwrap();
    }

    fn set(&mut self, id: u64, status: NodeStatus) {
        self.map.apply(&Command::SetStatus { node: NodeId(id), status }).unwrap();
    }

    fn kill(&mut self, id: u64) {
        self.dead_since_us.insert(NodeId(id), self.now_us);
    }

    fn is_alive(&self, id: NodeId) -> bool {
        !self.dead_since_us.contains_key(&id)
    }

    fn has_quorum(&self, replicas: &[NodeId]) -> bool {
        replicas.iter().filter(|id| self.is_alive(**id)).count() > replicas.len() / 2
    }

    fn view(&self) -> View {
        let health = |id: NodeId| match self.dead_since_us.get(&id) {
            Some(since_us) => NodeHealth { is_alive: false, down_since_us: *since_us },
            None => NodeHealth { is_alive: true, down_since_us: 0 },
        };
        let report = |number: u16, group: &Group| GroupReport {
            leader: group.leader,
            term: 1,
            version: self.map.version,
            voters: group.voters.clone(),
            learners: Vec::new(),
            joint: false,
            log_bytes: group.log_bytes,
            tasks: u64::from(number % 7),
            load_per_s: group.load_per_s,
            at_us: self.now_us,
        };
        View {
            nodes: self.map.nodes.iter().map(|(info, _)| (info.id, health(info.id))).collect(),
            groups: self
                .groups
                .iter()
                .filter(|(_, group)| self.has_quorum(&group.voters))
                .map(|(number, group)| (*number, report(*number, group)))
                .collect(),
        }
    }

    /// One plan, checked and applied; gives how many commands it had.
    fn plan(&mut self) -> usize {
        let commands = plan(&self.map, &self.view(), &self.limits, self.now_us);
        assert!(commands.len() <= usize::from(self.limits.commands_max));
        let places = commands.iter().filter(|command| matches!(command, Command::Place { .. })).count();
        assert!(places <= usize::from(self.limits.moves_max), "{places} moves at once");
        for command in &commands {
            self.check(command);
            self.map.apply(command).unwrap_or_else(|refused| panic!("{command:?}: {refused}"));
        }
        commands.len()
    }

    /// What must hold of each command.
    fn check(&self, command: &Command) {
        match command {
            Command::Place { group, replicas, leader } => {
                assert!(self.has_quorum(replicas), "{command:?} has no live quorum");
                assert!(self.has_quorum(&self.groups[group].voters), "{command:?} cannot be done");
                let before = self.map.placement(*group).unwrap();
                for id in replicas.iter().filter(|id| !before.contains(**id)) {
                    let is_given_back = self.groups[group].voters.contains(id);
                    assert!(self.is_alive(*id) || is_given_back, "{command:?} adds a dead node");
                }
                assert!(leader.is_none_or(|leader| self.is_alive(leader)));
            }
            Command::Prefer { leader: Some(leader), .. } => {
                assert!(self.is_alive(*leader) && self.map.status(*leader) == Some(NodeStatus::Active));
            }
            Command::Prefer { leader: None, .. } | Command::Settled { .. } => {}
            Command::Join(_) | Command::Update(_) | Command::SetStatus { .. } | Command::SetReplication(_) => {
                panic!("{command:?} is no controller's")
            }
        }
    }

    /// Groups elect, move and transfer as they can.
    fn follow(&mut self) {
        let numbers: Vec<u16> = self.groups.keys().copied().collect();
        for number in numbers {
            let is_in_haste = self.random(100) < self.haste_percent;
            let placement = self.map.placement(number).unwrap().clone();
            let mut group = self.groups[&number].clone();
            if !self.has_quorum(&group.voters) {
                continue;
            }
            let arrivals = placement.replicas.iter().filter(|id| !group.voters.contains(id));
            let can_arrive = arrivals.into_iter().all(|id| self.is_alive(*id)) && self.has_quorum(&placement.replicas);
            if is_in_haste && can_arrive {
                group.voters.clone_from(&placement.replicas);
            }
            if !group.voters.contains(&group.leader) || !self.is_alive(group.leader) {
                group.leader = *group.voters.iter().find(|id| self.is_alive(**id)).unwrap();
            }
            if let Some(leader) = placement.leader.filter(|id| group.voters.contains(id) && self.is_alive(*id)) {
                group.leader = leader;
            }
            self.groups.insert(number, group);
        }
        self.now_us += STEP_US;
    }

    /// Plans until there is nothing to do; gives the number of steps.
    fn converge(&mut self) -> usize {
        for step in 0..2_000 {
            let is_settled = self.map.groups().all(|(number, _)| self.is_done(number));
            if self.plan() == 0 && is_settled && !self.is_waiting() {
                for _ in 0..3 {
                    self.follow();
                    assert_eq!(self.plan(), 0, "it is not over");
                }
                return step;
            }
            self.follow();
        }
        panic!("no end: {:?}\n{:?}", plan(&self.map, &self.view(), &self.limits, self.now_us), self.map);
    }

    /// It has settled, or waits for a node that does not come.
    fn is_done(&self, number: u16) -> bool {
        let placement = self.map.placement(number).unwrap();
        let is_awaited = |id: &NodeId| !self.groups[&number].voters.contains(id) && !self.is_alive(*id);
        placement.settled || placement.replicas.iter().any(is_awaited)
    }

    /// A node is down and not yet lost.
    fn is_waiting(&self) -> bool {
        self.dead_since_us.values().any(|since_us| self.now_us - since_us <= self.limits.replace_after_us)
    }

    /// Replicas, leaders by node.
    fn counts(&self) -> BTreeMap<u64, (usize, usize)> {
        let count = |id: NodeId| {
            let replicas = self.map.partitions.iter().filter(|placement| placement.contains(id)).count();
            let groups = self.groups.iter().filter(|(number, _)| **number != META_GROUP);
            (replicas, groups.filter(|(_, group)| group.leader == id).count())
        };
        self.map.nodes.iter().map(|(info, _)| (info.id.0, count(info.id))).collect()
    }

    fn zones_of(&self, placement: &Placement) -> Vec<String> {
        placement.replicas.iter().map(|id| self.map.node(*id).unwrap().0.zone.clone()).collect()
    }
}

use crate::cluster::Placement;

fn spread_of(values: impl Iterator<Item = usize> + Clone) -> usize {
    values.clone().max().unwrap_or(0) - values.min().unwrap_or(0)
}

#[test]
fn lone_founder_needs_nothing() {
    assert_eq!(World::found(8, 3, 1).plan(), 0);
}

#[test]
fn second_node_shares_the_work_and_the_third_triples_it() {
    let mut world = World::with_nodes(8, 3, &[0, 0]);
    assert_eq!(world.counts(), BTreeMap::from([(1, (4, 4)), (2, (4, 4))]));
    world.join(3, 0);
    world.converge();
    assert!(world.map.partitions.iter().all(|placement| placement.replicas.len() == 3));
    assert_eq!(world.map.meta.replicas.len(), 3);
    assert!(spread_of(world.counts().values().map(|(_, leads)| *leads)) <= 1, "{:?}", world.counts());
}

#[test]
fn fourth_node_is_filled_by_the_cheapest_partitions_few_at_a_time() {
    let mut world = World::with_nodes(12, 3, &[0, 0, 0]);
    for (number, group) in &mut world.groups {
        group.log_bytes = u64::from(*number) * 10;
    }
    world.join(4, 0);
    world.limits.moves_max = 2;
    let first = plan(&world.map, &world.view(), &world.limits, world.now_us);
    let moved: Vec<u16> = first
        .iter()
        .map(|command| match command {
            Command::Place { group, replicas, .. } if replicas.contains(&NodeId(4)) => *group,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(moved, [0, 1]);
    world.converge();
    assert!(world.counts().values().all(|(replicas, _)| *replicas == 9), "{:?}", world.counts());
}

#[test]
fn meta_group_grows_to_five_voters_and_no_further() {
    let mut world = World::with_nodes(2, 3, &[0; 7]);
    assert_eq!(world.map.meta.replicas.len(), 5);
    world.kill(world.map.meta.replicas[0].0);
    world.converge();
    assert!(world.map.meta.replicas.iter().all(|id| world.is_alive(*id)));
}

#[test]
fn node_that_is_briefly_down_keeps_its_replicas_and_loses_its_preferences() {
    let mut world = World::with_nodes(8, 3, &[0, 0, 0, 0]);
    let before: Vec<_> = world.map.partitions.iter().map(|placement| placement.replicas.clone()).collect();
    world.kill(2);
    for _ in 0..10 {
        world.plan();
        world.follow();
    }
    assert!(before.iter().eq(world.map.partitions.iter().map(|placement| &placement.replicas)));
    assert!(world.map.partitions.iter().all(|placement| placement.leader != Some(NodeId(2))));
    world.dead_since_us.clear();
    world.converge();
    assert!(world.counts()[&2].1 >= 1, "it leads again: {:?}", world.counts());
}

#[test]
fn lost_node_is_replaced_where_there_is_a_spare_and_kept_where_there_is_none() {
    let mut world = World::with_nodes(8, 3, &[0, 0, 0, 0]);
    world.kill(2);
    world.converge();
    assert_eq!(world.counts()[&2].0, 0);
    world.kill(3);
    world.converge();
    assert!(world.map.partitions.iter().all(|placement| placement.replicas.len() == 3), "nothing shrinks by itself");
}

#[test]
fn drained_node_ends_empty_and_a_removed_one_too() {
    let mut world = World::with_nodes(8, 3, &[0, 0, 0, 0]);
    world.set(1, NodeStatus::Draining);
    world.converge();
    assert_eq!((world.map.replicas_on(NodeId(1)), world.counts()[&1]), (0, (0, 0)));
    world.set(2, NodeStatus::Removed);
    world.converge();
    assert_eq!(world.map.replicas_on(NodeId(2)), 0);
    assert!(world.map.partitions.iter().all(|placement| placement.replicas.len() == 1));
}

#[test]
fn replicas_are_spread_over_zones_even_when_a_zone_comes_late() {
    let mut world = World::with_nodes(8, 3, &[0, 0, 1, 1]);
    for (id, zone) in [(5, 2), (6, 2)] {
        world.join(id, zone);
    }
    world.converge();
    for placement in &world.map.partitions {
        let zones: BTreeSet<String> = world.zones_of(placement).into_iter().collect();
        assert_eq!(zones.len(), 3, "{placement:?}");
    }
    assert!(world.counts().values().all(|(replicas, _)| *replicas == 4), "{:?}", world.counts());
}

#[test]
fn group_without_quorum_or_report_is_left_alone() {
    let mut world = World::with_nodes(4, 3, &[0, 0, 0]);
    world.kill(2);
    world.kill(3);
    world.join(4, 0);
    world.now_us += 60_000_000;
    let commands = plan(&world.map, &world.view(), &world.limits, world.now_us);
    assert!(commands.iter().all(|command| matches!(command, Command::Prefer { leader: None, .. })), "{commands:?}");
    let mut view = world.view();
    for report in view.groups.values_mut() {
        report.at_us -= 60_000_000;
    }
    assert!(plan(&world.map, &view, &world.limits, world.now_us).iter().all(|c| matches!(c, Command::Prefer { .. })));
}

#[test]
fn move_to_a_node_that_is_lost_on_the_way_is_given_up() {
    let mut world = World::with_nodes(1, 3, &[0, 0, 0]);
    world.haste_percent = 0;
    world.join(4, 0);
    let replicas = [1, 2, 4].map(NodeId).to_vec();
    world.map.apply(&Command::Place { group: 0, replicas, leader: None }).unwrap();
    world.kill(4);
    world.now_us += 20_000_000;
    assert!(world.plan() > 0);
    assert_eq!(world.map.partitions[0].replicas, [1, 2, 3].map(NodeId));
    world.converge();
}

#[test]
fn group_that_would_end_on_a_node_that_is_down_stays_where_it_is() {
    let mut world = World::with_nodes(1, 3, &[0, 0, 0]);
    world.haste_percent = 0;
    world.map.apply(&Command::Place { group: META_GROUP, replicas: vec![NodeId(2)], leader: None }).unwrap();
    world.kill(2);
    assert!(world.plan() > 0);
    assert_eq!(world.map.meta.replicas, [1, 2, 3].map(NodeId));
}

#[test]
fn leaders_follow_load_and_small_differences_do_not_matter() {
    let mut world = World::with_nodes(12, 3, &[0, 0, 0]);
    for (number, group) in &mut world.groups {
        group.load_per_s = if *number < 3 { 10_000 } else { 100 };
    }
    let hot = |world: &World| (0..3).map(|number| world.groups[&number].leader).collect::<BTreeSet<_>>().len();
    for number in 0..3u16 {
        world.map.apply(&Command::Prefer { group: number, leader: Some(NodeId(1)) }).unwrap();
    }
    world.follow();
    assert_eq!(hot(&world), 1);
    world.converge();
    assert_eq!(hot(&world), 3);
    for (number, group) in &mut world.groups {
        group.load_per_s += u64::from(number % 5);
    }
    assert_eq!(world.plan(), 0, "noise moves nobody");
}

#[test]
fn hot_partitions_leave_an_overloaded_node_and_counts_stay_even() {
    let mut world = World::with_nodes(12, 1, &[0, 0, 0]);
    for (number, placement) in (0u16..).zip(&world.map.partitions) {
        if placement.contains(NodeId(1)) {
            world.groups.get_mut(&number).unwrap().load_per_s = 5_000;
        }
    }
    world.converge();
    let loads: Vec<u64> = (1..=3)
        .map(|id| {
            let groups = world.map.partitions.iter().zip(world.groups.values());
            groups.filter(|(placement, _)| placement.contains(NodeId(id))).map(|(_, group)| group.load_per_s).sum()
        })
        .collect();
    assert!(loads.iter().all(|load| *load <= 10_000), "{loads:?}");
    assert!(spread_of(world.counts().values().map(|(replicas, _)| *replicas)) <= 1);
}

#[test]
fn numbers_at_their_limits_are_survived() {
    let mut world = World::with_nodes(6, 3, &[0, 0, 0, 0]);
    for group in world.groups.values_mut() {
        group.load_per_s = u64::MAX;
        group.log_bytes = u64::MAX;
    }
    world.plan();
    world.limits = Limits { commands_max: 0, moves_max: 0, leader_percent: 255, heat_percent: 255, ..world.limits };
    world.kill(1);
    world.now_us = u64::MAX - 100 * STEP_US;
    assert_eq!(world.plan(), 0);
}

#[test]
fn big_cluster_is_planned_in_bounded_steps() {
    let mut world = World::with_nodes(256, 3, &[0, 1, 2]);
    world.limits = Limits { replace_after_us: 10_000_000, ..Limits::default() };
    world.join(4, 0);
    let steps = world.converge();
    assert!(steps < 60, "{steps} steps");
    assert!(world.counts()[&4].0 > 100, "{:?}", world.counts());
}

#[derive(Clone, Debug)]
enum Event {
    Join(u64),
    Kill(u64),
    Revive(u64),
    Set(u64, NodeStatus),
    Replication(u16),
    Load(u16, u64),
    Steps(u8),
}

fn any_event() -> impl Strategy<Value = Event> {
    let status = prop_oneof![Just(NodeStatus::Draining), Just(NodeStatus::Active), Just(NodeStatus::Removed)];
    prop_oneof![
        3 => (0u64..3).prop_map(Event::Join),
        2 => any::<u64>().prop_map(Event::Kill),
        2 => any::<u64>().prop_map(Event::Revive),
        2 => (any::<u64>(), status).prop_map(|(node, status)| Event::Set(node, status)),
        1 => prop_oneof![Just(1u16), Just(3), Just(5)].prop_map(Event::Replication),
        1 => (0u16..20, 0u64..20_000).prop_map(|(group, load)| Event::Load(group, load)),
        5 => (1u8..40).prop_map(Event::Steps),
    ]
}

impl World {
    fn pick(&self, at: u64) -> NodeId {
        self.map.nodes[usize::try_from(at % self.map.nodes.len() as u64).unwrap()].0.id
    }

    fn happen(&mut self, event: &Event) {
        match *event {
            Event::Join(zone) => {
                let id = self.map.nodes.iter().map(|(info, _)| info.id.0).max().unwrap() + 1;
                if self.map.nodes.len() < 12 {
                    self.join(id, zone);
                }
            }
            Event::Kill(at) => self.kill(self.pick(at).0),
            Event::Revive(at) => drop(self.dead_since_us.remove(&self.pick(at))),
            Event::Set(at, status) => {
                let _ = self.map.apply(&Command::SetStatus { node: self.pick(at), status });
            }
            Event::Replication(replication) => {
                self.map.apply(&Command::SetReplication(replication)).unwrap();
            }
            Event::Load(group, load) => {
                let groups = u16::try_from(self.map.partitions.len()).unwrap();
                self.groups.get_mut(&(group % groups)).unwrap().load_per_s = load;
            }
            Event::Steps(steps) => {
                for _ in 0..steps {
                    self.plan();
                    self.follow();
                }
            }
        }
    }

    /// What holds when nothing is left to do and the nodes in `dead` are lost.
    fn assert_orderly(&self) {
        let active: Vec<&(NodeInfo, NodeStatus)> =
            self.map.nodes.iter().filter(|(_, status)| *status == NodeStatus::Active).collect();
        let usable: Vec<NodeId> = active.iter().map(|(info, _)| info.id).filter(|id| self.is_alive(*id)).collect();
        let is_whole = usable.len() == active.len();
        for (number, placement) in self.map.groups() {
            let context = format!("group {number}: {placement:?} in {:?}", self.map.nodes);
            assert!(self.is_done(number), "{context}");
            assert!(!placement.settled || self.groups[&number].voters == placement.replicas, "{context}");
            let spare = usable.iter().any(|id| !placement.contains(*id));
            for id in &placement.replicas {
                let is_active = self.map.status(*id) == Some(NodeStatus::Active);
                assert!(is_active && self.is_alive(*id) || !is_whole && !spare, "{id} in {context}");
            }
            if is_whole {
                let most = if number == META_GROUP { META_VOTERS_MAX } else { self.map.replication };
                let size = usize::from(most).min(active.len());
                assert_eq!(placement.replicas.len(), size - usize::from(size % 2 == 0), "{context}");
            }
            if number == META_GROUP {
                continue;
            }
            let zones = self.zones_of(placement);
            let in_zone = |zone: &str| zones.iter().filter(|other| *other == zone).count();
            let crowd = zones.iter().map(|zone| in_zone(zone)).max().unwrap();
            let is_healthy = placement.replicas.iter().all(|id| usable.contains(id));
            for id in usable.iter().filter(|id| is_healthy && !placement.contains(**id)) {
                assert!(in_zone(&self.map.node(*id).unwrap().0.zone) + 1 >= crowd, "spread of {context}");
            }
        }
        let zones: BTreeSet<&str> = active.iter().map(|(info, _)| info.zone.as_str()).collect();
        if is_whole && zones.len() == 1 {
            let counts = self.counts();
            let of_usable = usable.iter().map(|id| counts[&id.0].0);
            assert!(spread_of(of_usable) <= 1, "{counts:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn any_history_ends_in_order(
        events in prop::collection::vec(any_event(), 1..40), partitions in 1u16..20, seed: u64, haste in 20u64..100,
        are_dead_revived: bool,
    ) {
        let mut world = World::found(partitions, 3, seed);
        world.haste_percent = haste;
        for event in &events {
            world.happen(event);
        }
        // What a removed node still votes in needs it, and what has no quorum needs its nodes back.
        let voters: BTreeSet<NodeId> = world.groups.values().flat_map(|group| group.voters.clone()).collect();
        let is_stuck = world.groups.values().any(|group| !world.has_quorum(&group.voters))
            || world.map.groups().any(|(_, placement)| !world.has_quorum(&placement.replicas));
        if are_dead_revived || is_stuck {
            let map = world.map.clone();
            world.dead_since_us.retain(|id, _| map.status(*id) == Some(NodeStatus::Removed) && !voters.contains(id));
        }
        world.converge();
        world.assert_orderly();
    }
}

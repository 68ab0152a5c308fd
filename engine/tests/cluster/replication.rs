//! What a cluster promises, as short histories.

use taskmaster_engine::State;
use taskmaster_protocol::body::{
    self, Assign, BatchReply, ClusterAdmin, Complete, CompleteRow, GetTask, Spec, Submit, Subscribe, TaskInfo,
    TaskPage, TaskRow, cluster_verb,
};
use taskmaster_protocol::{Code, Operation, PartitionId, TaskId};

use super::net::{Net, REPLACE_AFTER_US, START_US};

pub(super) fn id(partition: u16, number: u32) -> TaskId {
    TaskId::new(START_US / 1_000, PartitionId(partition), 5, number)
}

fn submit(partition: u16, numbers: core::ops::Range<u32>) -> Submit {
    let mut submit = Submit::default();
    let queue = body::put(&mut submit.bytes, b"q");
    let kind = body::put(&mut submit.bytes, b"k");
    submit.specs.push(Spec { queue, kind, lease_ms: 5_000, attempts_max: 3, priority: 2, ..Spec::default() });
    for number in numbers {
        let payload = body::put(&mut submit.bytes, format!("payload {number}").as_bytes());
        submit.tasks.push(TaskRow { id: id(partition, number), payload, ..TaskRow::default() });
    }
    submit
}

pub(super) fn accepted(net: &mut Net, partition: u16, numbers: core::ops::Range<u32>) -> u32 {
    let message = net.call(partition, &submit(partition, numbers));
    assert_eq!(message.code(), Code::Ok);
    let reply = rkyv::from_bytes::<BatchReply, rkyv::rancor::Error>(&message.body).unwrap();
    let duplicates = reply.exceptions.iter().filter(|row| row.code == Code::Duplicate.number()).count();
    reply.accepted + u32::try_from(duplicates).unwrap()
}

pub(super) fn state_of(net: &mut Net, partition: u16, number: u32) -> State {
    let message = net.call(partition, &GetTask { id: id(partition, number) });
    assert_eq!(message.code(), Code::Ok, "task {number}");
    let page = rkyv::from_bytes::<TaskPage, rkyv::rancor::Error>(&message.body).unwrap();
    let row: &TaskInfo = &page.rows[0];
    State::from_number(row.state).unwrap()
}

/// Three nodes, each with a replica of every partition.
pub(super) fn three(partitions: u16) -> Net {
    let mut net = Net::new(3, partitions);
    for partition in 0..partitions {
        net.until("three replicas", |net| net.has_voters(partition, &[1, 2, 3]));
    }
    net
}

fn subscribe(net: &mut Net, node: u64) {
    let mut offer = Subscribe { credit: 10_000, ..Subscribe::default() };
    let queue = body::put(&mut offer.bytes, b"q");
    offer.queues.push(queue);
    net.send(node, 0xFFFF, 0, &offer);
}

/// Leases since the last call: task, token, locator, attempt.
fn leases(net: &mut Net, node: u64) -> Vec<CompleteRow> {
    let mut rows = Vec::new();
    for message in net.pushes(node, Operation::Assign) {
        let assign = rkyv::from_bytes::<Assign, rkyv::rancor::Error>(&message.body).unwrap();
        rows.extend(assign.rows.iter().map(|row| CompleteRow {
            id: row.id,
            token: row.token,
            locator: row.locator,
            attempt: row.attempt,
            ..CompleteRow::default()
        }));
    }
    rows
}

#[test]
fn a_founder_grows_to_three_replicas_of_everything() {
    let mut net = three(4);
    for partition in 0..4 {
        assert_eq!(accepted(&mut net, partition, 0..10), 10);
        net.assert_equal(partition);
    }
}

#[test]
fn what_was_accepted_survives_its_leader() {
    let mut net = three(2);
    assert_eq!(accepted(&mut net, 0, 0..100), 100);
    for round in 1..4u32 {
        let leader = net.leader(0).unwrap();
        net.kill(leader);
        net.until("another leader", |net| net.leader(0).is_some_and(|other| other != leader));
        for number in 0..100 * round {
            assert_eq!(state_of(&mut net, 0, number), State::Ready);
        }
        assert_eq!(accepted(&mut net, 0, 100 * round..100 * (round + 1)), 100);
        net.start(leader);
        net.assert_equal(0);
    }
}

#[test]
fn an_election_over_a_reset_connection_is_quick() {
    let mut net = three(1);
    let mut gaps_ms = Vec::new();
    for _ in 0..5 {
        let leader = net.leader(0).unwrap();
        net.run_ms(1_000);
        net.kill(leader);
        let killed_us = net.now_us;
        net.until("another leader", |net| net.leader(0).is_some());
        gaps_ms.push((net.now_us - killed_us) / 1_000);
        net.start(leader);
        net.run_ms(2_000);
    }
    assert!(gaps_ms.iter().all(|gap| *gap < 150), "{gaps_ms:?}");
}

#[test]
fn an_election_is_quick_when_only_one_replica_has_the_last_entries() {
    for lacking in 0..2 {
        let mut net = three(1);
        let leader = net.leader(0).unwrap();
        let others: Vec<u64> = net.alive().into_iter().filter(|id| *id != leader).collect();
        net.run_ms(1_000);
        net.cut(leader, others[lacking]);
        net.send(leader, 0, 0, &submit(0, 0..1));
        net.run_ms(3);
        net.kill(leader);
        net.heal();
        let killed_us = net.now_us;
        net.until("another leader", |net| net.leader(0).is_some());
        assert_eq!(net.leader(0), Some(others[1 - lacking]));
        let gap_ms = (net.now_us - killed_us) / 1_000;
        assert!(gap_ms < 150, "{gap_ms} ms");
    }
}

#[test]
fn a_follower_that_was_cut_off_does_not_unseat_its_leader() {
    let mut net = three(1);
    let leader = net.leader(0).unwrap();
    let follower = net.alive().into_iter().find(|id| *id != leader).unwrap();
    net.run_ms(1_000);
    net.isolate(follower);
    assert_eq!(accepted(&mut net, 0, 0..10), 10);
    net.run_ms(3_000);
    net.heal();
    for _ in 0..2_000 {
        net.run_ms(1);
        assert_eq!(net.leader(0), Some(leader));
    }
    net.assert_equal(0);
}

#[test]
fn the_last_of_three_knows_of_no_leader() {
    let mut net = three(3);
    net.run_ms(1_000);
    let last = net.alive()[0];
    for other in net.alive().into_iter().filter(|id| *id != last) {
        net.kill(other);
    }
    net.run_ms(2_000);
    for partition in 0..3 {
        let read = net.send(last, partition, 0, &GetTask { id: id(partition, 0) });
        net.run_ms(50);
        let reply = net.reply(last, read).unwrap();
        assert_eq!(reply.code(), Code::NotLeader);
        let text = String::from_utf8_lossy(&reply.body);
        assert!(text.contains("has no leader that is known here"), "{text}");
    }
}

#[test]
fn a_node_that_comes_back_is_given_no_leadership_before_it_has_had_everything_for_a_while() {
    let mut net = three(6);
    net.run_ms(5_000);
    let back = (0..6).find_map(|partition| net.leader(partition)).unwrap();
    net.kill(back);
    net.until("other leaders", |net| (0..6).all(|partition| net.leader(partition).is_some()));
    for partition in 0..6 {
        assert_eq!(accepted(&mut net, partition, 0..100), 100);
    }
    net.start(back);
    let started_us = net.now_us;
    net.until("its share", |net| (0..6).any(|partition| net.leader(partition) == Some(back)));
    let waited_ms = (net.now_us - started_us) / 1_000;
    assert!(waited_ms >= 1_000, "{waited_ms} ms");
}

#[test]
fn a_lease_of_a_lost_leader_is_given_again_under_a_higher_token() {
    let mut net = three(1);
    assert_eq!(accepted(&mut net, 0, 0..1), 1);
    let first = net.leader(0).unwrap();
    subscribe(&mut net, first);
    net.run_ms(20);
    let old = leases(&mut net, first);
    assert_eq!(old.len(), 1);
    net.isolate(first);
    net.until("another leader", |net| net.leader(0).is_some_and(|other| other != first));
    let second = net.leader(0).unwrap();
    subscribe(&mut net, second);
    net.run_ms(20);
    let new = leases(&mut net, second);
    assert_eq!((new.len(), new[0].id), (1, old[0].id));
    assert!(new[0].token > old[0].token);
    let complete = |row: &CompleteRow| Complete { rows: vec![*row], ..Complete::default() };
    let late = net.send(first, 0, 0, &complete(&old[0]));
    let valid = net.send(second, 0, 0, &complete(&new[0]));
    net.run_ms(50);
    assert_eq!(net.reply(second, valid).unwrap().code(), Code::Ok);
    net.heal();
    net.run_ms(2_000);
    assert_ne!(net.reply(first, late).map(|message| message.code()), Some(Code::Ok), "nothing was committed there");
    net.assert_equal(0);
    assert_eq!(state_of(&mut net, 0, 0), State::Succeeded);
}

#[test]
fn a_cut_off_leader_answers_no_reads() {
    let mut net = three(1);
    assert_eq!(accepted(&mut net, 0, 0..1), 1);
    let leader = net.leader(0).unwrap();
    net.isolate(leader);
    let read = net.send(leader, 0, 0, &GetTask { id: id(0, 0) });
    net.run_ms(100);
    assert!(net.reply(leader, read).is_none(), "nobody confirmed that it still leads");
    net.run_ms(2_000);
    assert_eq!(net.reply(leader, read).unwrap().code(), Code::NotLeader);
}

#[test]
fn a_follower_that_was_away_for_long_takes_a_snapshot() {
    let mut net = three(1);
    let follower = [1, 2, 3].into_iter().find(|&id| Some(id) != net.leader(0)).unwrap();
    net.kill(follower);
    // More than a log in memory keeps.
    let large = vec![7u8; 9_000];
    for number in 0..400u32 {
        let mut submit = submit(0, number..number + 1);
        submit.tasks[0].payload = body::put(&mut submit.bytes, &large);
        assert_eq!(net.call(0, &submit).code(), Code::Ok);
    }
    net.start(follower);
    net.assert_equal(0);
    // And once more from its own log, which holds the snapshot's chunks.
    net.kill(follower);
    net.start(follower);
    net.assert_equal(0);
    assert_eq!(accepted(&mut net, 0, 400..410), 10);
    net.assert_equal(0);
}

#[test]
fn a_cluster_comes_back_from_its_disks() {
    let mut net = three(3);
    for partition in 0..3 {
        assert_eq!(accepted(&mut net, partition, 0..50), 50);
    }
    net.snapshot(1);
    net.snapshot(2);
    for partition in 0..3 {
        assert_eq!(accepted(&mut net, partition, 50..60), 10);
    }
    for node in 1..=3 {
        net.kill(node);
    }
    for node in 1..=3 {
        net.start(node);
    }
    for partition in 0..3 {
        for number in 0..60 {
            assert_eq!(state_of(&mut net, partition, number), State::Ready);
        }
        net.assert_equal(partition);
    }
}

#[test]
fn a_fourth_node_takes_its_share_and_a_drained_one_ends_without_replicas() {
    let mut net = three(8);
    for partition in 0..8 {
        assert_eq!(accepted(&mut net, partition, 0..20), 20);
    }
    net.add(4, false, 8);
    net.until("the new node has its share", |net| {
        (0..8).filter(|&partition| net.shard(4).digest(PartitionId(partition)).is_some()).count() == 6
    });
    let drain = ClusterAdmin { verb: cluster_verb::DRAIN, node: 2, partition: 0xFFFF, ..ClusterAdmin::default() };
    net.admin(&drain);
    net.until("the drained node has nothing left", |net| {
        (0..8).all(|partition| net.shard(2).digest(PartitionId(partition)).is_none())
    });
    for partition in 0..8 {
        for number in 0..20 {
            assert_eq!(state_of(&mut net, partition, number), State::Ready);
        }
        net.assert_equal(partition);
    }
}

#[test]
fn a_node_that_lost_its_disk_hears_why_it_waits_and_takes_its_old_place_when_that_is_overdue() {
    let mut net = three(4);
    assert_eq!(accepted(&mut net, 0, 0..20), 20);
    net.kill(3);
    net.expected = Some("remove it first");
    net.add_in_place_of(4, 3, 4);
    let began_us = net.now_us;
    net.until("it hears why", |net| net.has_warned(4, &["does not let this node in", "\"n3\"", "remove it first"]));
    net.until("it has a replica of everything", |net| (0..4).all(|partition| net.has_voters(partition, &[1, 2, 4])));
    assert!(net.now_us - began_us > REPLACE_AFTER_US, "it was too early to give the old node up");
    assert_eq!(accepted(&mut net, 0, 20..40), 20);
    net.assert_equal(0);
}

#[test]
fn a_node_that_drains_hands_its_partitions_over() {
    let mut net = three(4);
    let leader = net.leader(0).unwrap();
    net.drain(leader);
    net.until("others lead", |net| (0..4).all(|partition| net.leader(partition).is_some_and(|other| other != leader)));
    assert!(!net.shard(leader).is_handing_over());
    assert_eq!(accepted(&mut net, 0, 0..10), 10);
}

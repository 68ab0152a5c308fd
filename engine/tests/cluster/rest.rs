//! Groups at rest: they cost next to nothing, and nobody notices that they rest.

use taskmaster_engine::State;
use taskmaster_protocol::body::GetTask;
use taskmaster_protocol::{Code, PartitionId};

use super::net::Net;
use super::replication::{accepted, id, state_of, three};

/// By now everything rests that can.
const REST_MS: u64 = 5_000;

/// Batches and bytes that nodes send each other in a second.
fn traffic(net: &mut Net) -> (u64, u64) {
    let before = (net.batches, net.batch_bytes);
    net.run_ms(10_000);
    ((net.batches - before.0) / 10, (net.batch_bytes - before.1) / 10)
}

fn at_rest(partitions: u16) -> Net {
    let mut net = three(partitions);
    for partition in 0..partitions {
        assert_eq!(accepted(&mut net, partition, 0..1), 1);
    }
    net.run_ms(REST_MS);
    net
}

#[test]
fn what_groups_at_rest_cost_does_not_grow_with_their_number() {
    let (few, many) = (traffic(&mut at_rest(2)), traffic(&mut at_rest(64)));
    let batches_per_pair = many.0 / 6;
    assert!(batches_per_pair <= 8, "{many:?} a second");
    // Leaders are announced every second and reported about every few, 16 and about 100 bytes each: no heartbeats.
    assert!(many.1 < few.1 + 62 * 200, "{few:?} and {many:?} a second");
}

#[test]
fn a_group_at_rest_answers_at_once() {
    let mut net = at_rest(4);
    for partition in 0..4 {
        let before_us = net.now_us;
        assert_eq!(state_of(&mut net, partition, 0), State::Ready);
        assert_eq!(accepted(&mut net, partition, 1..2), 1);
        assert!(net.now_us - before_us < 20_000, "{} us", net.now_us - before_us);
        net.run_ms(REST_MS);
    }
}

#[test]
fn a_leader_that_falls_silent_while_everything_rests_is_replaced() {
    let mut net = at_rest(4);
    for round in 0..3 {
        let leader = net.leader(0).unwrap();
        net.isolate(leader);
        let since_us = net.now_us;
        net.until("another leader", |net| net.leader(0).is_some_and(|other| other != leader));
        let gap_us = net.now_us - since_us;
        assert!(gap_us < 1_800_000, "{gap_us} us");
        // The old one gives up without having heard of the new one.
        net.until("an end", |net| !net.shard(leader).serves(PartitionId(0)));
        net.heal();
        net.run_ms(REST_MS);
        assert_eq!(accepted(&mut net, 0, round * 2 + 1..round * 2 + 2), 1);
        net.assert_equal(0);
        net.run_ms(REST_MS);
    }
}

#[test]
fn a_leader_at_rest_that_is_cut_off_answers_no_read() {
    let mut net = at_rest(1);
    let leader = net.leader(0).unwrap();
    net.isolate(leader);
    let read = net.send(leader, 0, 0, &GetTask { id: id(0, 0) });
    net.run_ms(3_000);
    let reply = net.reply(leader, read).expect("it gave up the lead");
    assert_eq!(reply.code(), Code::NotLeader);
}

#[test]
fn a_follower_that_starts_again_while_everything_rests_comes_to_rest_with_the_others() {
    let mut net = at_rest(16);
    let quiet = traffic(&mut net);
    let leader = net.leader(0).unwrap();
    let follower = net.alive().into_iter().find(|&node| node != leader).unwrap();
    net.kill(follower);
    net.run_ms(50);
    net.start(follower);
    net.introduce();
    net.until("the follower knows all that was accepted", |net| {
        net.shard(follower).digest(PartitionId(0)).is_some_and(|(index, _)| index > 1)
    });
    net.run_ms(2 * REST_MS);
    let again = traffic(&mut net);
    assert!(again.0 <= quiet.0 + 2, "{quiet:?} and {again:?} a second");
    for partition in 0..16 {
        assert_eq!(accepted(&mut net, partition, 1..2), 1);
        net.assert_equal(partition);
    }
}

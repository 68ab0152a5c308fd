//! Saved states on several nodes: leaders that go, followers that catch up.

use taskmaster_protocol::body::{
    self, Assign, AssignRow, ReadState, SaveRow, SaveState, Segment, Span, Spec, StatePage, StateReply, Submit,
    Subscribe, TaskRow,
};
use taskmaster_protocol::frame::FLAG_RESEND;
use taskmaster_protocol::state::{address_of, digest_of};
use taskmaster_protocol::{Code, Operation, PartitionId, TaskId};

use super::net::{Message, Net, START_US};

fn three() -> Net {
    let mut net = Net::new(3, 1);
    net.until("three replicas", |net| net.has_voters(0, &[1, 2, 3]));
    net
}

fn id() -> TaskId {
    TaskId::new(START_US / 1_000, PartitionId(0), 5, 1)
}

/// Submits a task and has it leased by the leader.
fn leased(net: &mut Net) -> AssignRow {
    let mut submit = Submit::default();
    let (queue, kind) = (body::put(&mut submit.bytes, b"q"), body::put(&mut submit.bytes, b"k"));
    submit.specs.push(Spec { queue, kind, lease_ms: 60_000, attempts_max: 3, priority: 2, ..Spec::default() });
    submit.tasks.push(TaskRow { id: id(), ..TaskRow::default() });
    assert_eq!(net.call(0, &submit).code(), Code::Ok);
    lease_of(net)
}

fn lease_of(net: &mut Net) -> AssignRow {
    let leader = net.leader(0).unwrap();
    let mut offer = Subscribe { credit: 10, ..Subscribe::default() };
    let queue = body::put(&mut offer.bytes, b"q");
    offer.queues.push(queue);
    net.send(leader, 0xFFFF, 0, &offer);
    net.run_ms(20);
    let pushes = net.pushes(leader, Operation::Assign);
    let assign = rkyv::from_bytes::<Assign, rkyv::rancor::Error>(&pushes[0].body).unwrap();
    assign.rows[0]
}

/// A save of two chunks: one that all states have, and one of its own.
fn save(lease: &AssignRow, parent: u32, own: &[u8]) -> SaveState {
    let mut body = SaveState::default();
    let shared = vec![9u8; 4_000];
    for chunk in [&shared[..], own] {
        let data = body::put(&mut body.bytes, chunk);
        body.segments.push(Segment { data, ..Segment::default() });
    }
    body.rows.push(SaveRow {
        id: lease.id,
        token: lease.token,
        locator: lease.locator,
        attempt: lease.attempt,
        parent,
        digest: digest_of(&[address_of(&shared), address_of(own)]),
        segments: Span { at: 0, len: 2 },
        ..SaveRow::default()
    });
    body
}

fn outcome(message: &Message) -> Result<u32, Code> {
    assert_eq!(message.code(), Code::Ok);
    let reply = rkyv::from_bytes::<StateReply, rkyv::rancor::Error>(&message.body).unwrap();
    reply.exceptions.first().map_or(Ok(reply.versions[0]), |row| Err(Code::from_number(row.code)))
}

fn bytes_of(net: &mut Net, version: u32) -> Vec<u8> {
    let message = net.call(0, &ReadState { id: id(), version, from: 0 });
    assert_eq!(message.code(), Code::Ok);
    rkyv::from_bytes::<StatePage, rkyv::rancor::Error>(&message.body).unwrap().bytes
}

#[test]
fn an_acknowledged_version_survives_its_leader_and_the_next_attempt_resumes_from_it() {
    let mut net = three();
    let lease = leased(&mut net);
    let first = net.leader(0).unwrap();
    let body = save(&lease, 0, b"half way");
    assert_eq!(outcome(&net.call(0, &body)), Ok(1));
    net.kill(first);
    net.until("another leader", |net| net.leader(0).is_some());
    // The worker that did not hear of it asks the next leader, which knows nothing of the lease.
    let second = net.leader(0).unwrap();
    let again = net.send(second, 0, FLAG_RESEND, &body);
    let other = net.send(second, 0, 0, &save(&lease, 1, b"further"));
    net.run_ms(100);
    assert_eq!(outcome(&net.reply(second, again).unwrap()), Ok(1));
    assert_eq!(outcome(&net.reply(second, other).unwrap()), Err(Code::StaleLease));
    let next = lease_of(&mut net);
    assert_eq!((next.id, next.version), (id(), 1));
    assert_eq!(bytes_of(&mut net, 1), [&[9u8; 4_000][..], b"half way"].concat());
    assert_eq!(outcome(&net.call(0, &save(&next, 1, b"further"))), Ok(2));
    net.start(first);
    net.assert_equal(0);
}

#[test]
fn a_follower_that_was_away_gets_histories_and_chunks_by_snapshot() {
    let mut net = three();
    let follower = [1, 2, 3].into_iter().find(|&id| Some(id) != net.leader(0)).unwrap();
    let lease = leased(&mut net);
    net.kill(follower);
    // More than a log in memory keeps.
    for version in 0..120u32 {
        let own = version.to_le_bytes().repeat(1_500);
        assert_eq!(outcome(&net.call(0, &save(&lease, version, &own))), Ok(version + 1));
    }
    net.start(follower);
    net.assert_equal(0);
    net.kill(follower);
    net.start(follower);
    net.assert_equal(0);
    assert_eq!(outcome(&net.call(0, &save(&lease, 120, b"on"))), Ok(121));
    net.assert_equal(0);
}

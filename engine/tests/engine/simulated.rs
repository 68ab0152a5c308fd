//! Defects that the simulator found, each as the shortest history that shows it.

use taskmaster_engine::State;
use taskmaster_protocol::{Code, TaskId};

use super::job::{Job, id, job};
use super::world::{World, config, single};

fn flow(partition: u16) -> TaskId {
    id(partition, 999)
}

fn pair(partition: u16) -> [Job; 2] {
    [job("q", 0).attempts(1).in_partition(partition), job("q", 1).in_partition(partition).needs(&[0])]
}

/// Its need was final and so no longer open, though it had failed: a retry of the descendant alone ran it.
#[test]
fn a_cancelled_descendant_is_not_retried_past_a_need_that_failed() {
    let mut world = World::new();
    world.worker(10, &["q"], 10);
    assert_eq!(world.workflow(flow(0), false, &pair(0)).accepted, 2);
    let lease = world.lease();
    world.fail(&lease, "broken");
    assert_eq!(world.state(id(0, 1)), State::Cancelled);
    assert_eq!(single(&world.retry(&[id(0, 1)])), Code::IllegalState);
    assert_eq!(world.state(id(0, 1)), State::Cancelled);
    assert_eq!(world.retry(&[id(0, 0)]).accepted, 1);
    assert_eq!(world.state(id(0, 1)), State::Waiting);
    let lease = world.lease();
    assert_eq!((lease.id, world.complete(&lease, b"r")), (id(0, 0), Code::Ok));
    assert_eq!(world.lease().id, id(0, 1));
}

/// The worker had reconnected and extended before the node heard that its old connection was gone.
#[test]
fn a_lease_extended_on_another_connection_does_not_end_with_the_old_one() {
    let mut world = World::new();
    world.worker(10, &["q"], 1);
    world.submit_one(job("q", 0).lease_ms(60_000));
    let lease = world.lease();
    world.worker(11, &["q"], 0);
    assert_eq!(world.extend(11, &lease), Code::Ok);
    world.disconnect(10);
    world.advance_ms(30_000);
    assert_eq!(world.state(id(0, 0)), State::Leased);
    world.disconnect(11);
    world.advance_ms(3_000);
    assert_eq!(world.state(id(0, 0)), State::Ready);
}

/// A row that is final before its workflow is on no retention list when the last row is settled.
#[test]
fn a_workflow_may_end_while_a_snapshot_is_written() {
    let mut world = World::with(config(2));
    world.worker(10, &["q"], 10);
    world.submit_one(job("q", 7));
    assert_eq!(world.workflow(flow(1), false, &pair(1)).accepted, 2);
    let leases = world.leases();
    let lease = leases.iter().find(|lease| lease.id == id(1, 0)).unwrap().clone();
    assert_eq!(single(&world.cancel(&[id(1, 1)])), Code::Ok);
    let mut slices = 0;
    let (sequence, chunks) = world.snapshot(|world| {
        slices += 1;
        if slices == 1 {
            assert_eq!(world.complete(&lease, b"r"), Code::Ok);
        }
    });
    assert!(slices > 1, "the workflow's partition comes after the first slice");
    world.restart(Some((sequence, &chunks)));
    assert_eq!((world.state(id(1, 0)), world.state(id(1, 1))), (State::Succeeded, State::Cancelled));
}

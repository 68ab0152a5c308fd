//! Workflows: dependencies, failure policies, cancellation, retry, chains of any length.

use taskmaster_engine::State;
use taskmaster_protocol::body::{AwaitTask, ListWorkflows, WorkflowPage};
use taskmaster_protocol::{Code, TaskId};

use crate::job::{Job, id, job, workflow_of};
use crate::world::{CLIENT, Lease, World, single, text};

const WORKER: u64 = 10;

fn flow() -> TaskId {
    id(0, 900_000)
}

/// Steps by what each needs; step `n` is row `n`.
fn steps(needs: &[&[u32]]) -> Vec<Job> {
    (0u32..).zip(needs).map(|(number, needs)| step(number, needs)).collect()
}

fn step(number: u32, needs: &[u32]) -> Job {
    let mut step = job("mail", number).needs(needs).attempts(1);
    step.name = format!("step-{number}");
    step
}

fn world_with(continues: bool, needs: &[&[u32]]) -> World {
    let mut world = World::new();
    world.worker(WORKER, &["mail"], 100_000);
    let reply = world.workflow(flow(), continues, &steps(needs));
    assert_eq!(reply.accepted as usize, needs.len());
    world
}

fn row(lease: &Lease) -> u32 {
    u32::try_from(lease.id.lo & 0xFF_FFFF).unwrap() - 1
}

fn states(world: &mut World, count: u32) -> Vec<State> {
    (0..count).map(|number| world.state(id(0, number))).collect()
}

const DIAMOND: &[&[u32]] = &[&[], &[0], &[0], &[1, 2]];

#[test]
fn steps_start_when_all_they_need_has_succeeded() {
    let mut world = world_with(false, DIAMOND);
    let first = world.lease();
    assert_eq!(row(&first), 0);
    assert_eq!(states(&mut world, 4), [State::Leased, State::Waiting, State::Waiting, State::Waiting]);
    world.complete(&first, b"r");
    let middle = world.leases();
    assert_eq!(middle.iter().map(row).collect::<Vec<_>>(), [1, 2]);
    world.complete(&middle[1], b"r");
    assert_eq!(world.leases(), []);
    let why = world.why(id(0, 3));
    assert!(
        why.iter().any(|(name, text)| name == "needs" && text.contains("step-1") && !text.contains("step-2")),
        "{why:?}"
    );
    world.complete(&middle[0], b"r");
    let last = world.lease();
    world.complete(&last, b"r");
    let page = world.get_workflow(flow());
    let info = page.workflows[0];
    assert_eq!((info.counts[4], info.finished_us), (4, world.now_us));
    assert_eq!(text(&page.bytes, info.name), "nightly");
    let names: Vec<String> = page.rows.iter().map(|row| text(&page.bytes, row.name)).collect();
    assert_eq!(names, ["step-0", "step-1", "step-2", "step-3"]);
}

#[test]
fn a_failed_step_cancels_its_descendants_and_no_others() {
    let mut world = world_with(false, &[&[], &[], &[0], &[2], &[1], &[1, 3]]);
    let leases = world.leases();
    world.fail(&leases[0], "x");
    assert_eq!(
        states(&mut world, 6),
        [State::Failed, State::Leased, State::Cancelled, State::Cancelled, State::Waiting, State::Cancelled]
    );
    world.complete(&leases[1], b"r");
    let last = world.lease();
    assert_eq!(row(&last), 4);
    world.complete(&last, b"r");
    assert!(world.get_workflow(flow()).workflows[0].finished_us > 0);
}

#[test]
fn descendants_run_all_the_same_where_the_workflow_continues() {
    let mut world = world_with(true, DIAMOND);
    let lease = world.lease();
    world.fail(&lease, "x");
    let middle = world.leases();
    assert_eq!(middle.len(), 2);
    world.fail(&middle[0], "x");
    world.complete(&middle[1], b"r");
    let last = world.lease();
    world.complete(&last, b"r");
    assert_eq!(states(&mut world, 4), [State::Failed, State::Failed, State::Succeeded, State::Succeeded]);
}

#[test]
fn a_failed_attempt_that_will_be_repeated_releases_and_cancels_nothing() {
    let mut world = World::new();
    world.worker(WORKER, &["mail"], 100);
    world.workflow(flow(), false, &[step(0, &[]).attempts(2), step(1, &[0])]);
    let lease = world.lease();
    world.fail(&lease, "x");
    assert_eq!(world.state(id(0, 1)), State::Waiting);
    let lease = world.lease();
    world.complete(&lease, b"r");
    assert_eq!(row(&world.lease()), 1);
}

#[test]
fn a_chain_of_fifty_thousand_runs_is_cancelled_and_retried_without_deep_recursion() {
    let count = 50_000;
    let chain: Vec<Job> =
        (0..count).map(|number| step(number, &number.checked_sub(1).map_or(vec![], |before| vec![before]))).collect();
    let mut world = World::new();
    world.worker(WORKER, &["mail"], 100_000);
    assert_eq!(world.workflow(flow(), false, &chain).accepted, count);
    for _ in 0..100 {
        let lease = world.lease();
        world.complete(&lease, b"r");
    }
    let lease = world.lease();
    world.fail(&lease, "x");
    assert_eq!(world.state(id(0, count - 1)), State::Cancelled);
    assert_eq!(world.get_workflow(flow()).workflows[0].counts[6], count - 101);
    assert_eq!(single(&world.retry(&[lease.id])), Code::Ok);
    assert_eq!(world.get_workflow(flow()).workflows[0].counts[0], count - 101);
    let lease = world.lease();
    world.complete(&lease, b"r");
    assert_eq!(row(&world.lease()), 101);
    assert_eq!(single(&world.cancel_workflow(flow())), Code::Ok);
    assert_eq!(world.get_workflow(flow()).workflows[0].counts[6], count - 101);
}

#[test]
fn retrying_every_row_of_a_large_failed_workflow_takes_no_longer_than_its_size_asks() {
    let count = 20_000;
    let mut rows = vec![step(0, &[])];
    rows.extend((1..count).map(|number| step(number, &[0])));
    let mut world = World::new();
    world.worker(WORKER, &["mail"], 100_000);
    world.workflow(flow(), false, &rows);
    let lease = world.lease();
    world.complete(&lease, b"r");
    world.cancel_workflow(flow());
    world.leases();
    let ids: Vec<TaskId> = (1..count).map(|number| id(0, number)).collect();
    assert_eq!(world.retry(&ids).accepted, count - 1);
    let leases = world.leases();
    assert_eq!(leases.len(), ids.len());
}

#[test]
fn bad_dependencies_are_refused_with_their_row() {
    let mut world = World::new();
    for (needs, row) in
        [(vec![&[0u32][..]], 0), (vec![&[], &[1]], 1), (vec![&[], &[2], &[]], 1), (vec![&[], &[u32::MAX]], 1)]
    {
        let refused = world.call(CLIENT, 0, &workflow_of(flow(), "w", false, &steps(&needs)));
        assert_eq!((refused.code(), refused.refusal().row), (Code::BadDependency, row));
    }
    let refused = world.submit_frame(&[job("mail", 0), job("mail", 1).needs(&[0])]);
    assert_eq!(refused.code(), Code::BadDependency);
    let mut outside = workflow_of(flow(), "w", false, &steps(&[&[], &[0]]));
    outside.extras[1].needs.len = 7;
    assert_eq!(world.call(CLIENT, 0, &outside).code(), Code::Malformed);
    assert_eq!(world.shard.stats().tasks, 0);
}

#[test]
fn a_need_named_twice_counts_once() {
    let mut world = world_with(false, &[&[], &[0, 0, 0]]);
    let lease = world.lease();
    world.complete(&lease, b"r");
    assert_eq!(row(&world.lease()), 1);
}

#[test]
fn keys_and_repeated_ids_have_no_place_in_a_workflow() {
    let mut world = World::new();
    let keyed = [step(0, &[]).unique("k", 0)];
    assert_eq!(world.call(CLIENT, 0, &workflow_of(flow(), "w", false, &keyed)).code(), Code::Invalid);
    let twice = [step(0, &[]), step(1, &[]), step(0, &[])];
    let refused = world.call(CLIENT, 0, &workflow_of(flow(), "w", false, &twice));
    assert_eq!((refused.code(), refused.refusal().row), (Code::Invalid, 2));
    let elsewhere = workflow_of(id(1, 5), "w", false, &[step(0, &[])]);
    assert_eq!(world.call(CLIENT, 0, &elsewhere).code(), Code::WrongPartition);
}

#[test]
fn a_workflow_submitted_again_is_a_duplicate_as_a_whole() {
    let mut world = world_with(false, DIAMOND);
    let reply = world.workflow(flow(), false, &steps(DIAMOND));
    assert_eq!((reply.accepted, reply.exceptions.len()), (0, 4));
    let others: Vec<Job> = (50..52).map(|number| step(number, &[])).collect();
    let reply = world.workflow(flow(), false, &others);
    assert_eq!((reply.accepted, reply.exceptions.len()), (0, 2), "the id is taken by another workflow");
    assert!(world.find(id(0, 50)).is_none());
}

#[test]
fn awaiting_a_workflow_ends_with_its_last_task_or_its_time() {
    let mut world = world_with(false, &[&[], &[]]);
    let wait =
        |world: &mut World, timeout_ms| world.send(CLIENT, 0, &AwaitTask { id: flow(), timeout_ms, workflow: 1 });
    let (patient, hasty) = (wait(&mut world, 60_000), wait(&mut world, 500));
    let leases = world.leases();
    world.complete(&leases[0], b"r");
    world.advance_ms(600);
    assert!(world.reply(patient).is_none());
    assert_eq!(world.reply(hasty).unwrap().code(), Code::TimedOut);
    world.fail(&leases[1], "x");
    let page: WorkflowPage = world.reply(patient).unwrap().read();
    assert_eq!((page.workflows[0].counts[4], page.workflows[0].counts[5], page.rows.len()), (1, 1, 2));
    let late = wait(&mut world, 500);
    assert!(world.reply(late).is_some());
}

#[test]
fn a_task_that_shares_its_id_with_a_workflow_does_not_answer_for_it() {
    let mut world = World::new();
    world.worker(WORKER, &["mail"], 10);
    world.workflow(id(0, 0), false, &[step(0, &[]), step(1, &[0])]);
    let wait = world.send(CLIENT, 0, &AwaitTask { id: id(0, 0), timeout_ms: 60_000, workflow: 1 });
    let task = world.await_task(id(0, 0), 60_000);
    let lease = world.lease();
    world.complete(&lease, b"r");
    assert!(world.reply(task).is_some() && world.reply(wait).is_none());
    let lease = world.lease();
    world.complete(&lease, b"r");
    assert!(world.reply(wait).is_some());
}

#[test]
fn cancelling_a_workflow_ends_all_its_unfinished_tasks() {
    let mut world = world_with(false, &[&[], &[], &[0], &[1, 2]]);
    let leases = world.leases();
    world.complete(&leases[0], b"r");
    world.leases();
    assert_eq!(single(&world.cancel_workflow(flow())), Code::Ok);
    assert_eq!(world.revocations().len(), 2);
    assert_eq!(states(&mut world, 4), [State::Succeeded, State::Cancelled, State::Cancelled, State::Cancelled]);
    assert_eq!(single(&world.cancel_workflow(id(0, 1))), Code::UnknownWorkflow);
    assert_eq!(single(&world.cancel_workflow(flow())), Code::Ok);
    assert_eq!(world.leases(), []);
}

#[test]
fn a_retried_step_revives_the_descendants_that_its_failure_cancelled() {
    let mut world = world_with(false, &[&[], &[0], &[1], &[], &[0, 3], &[]]);
    let leases = world.leases();
    assert_eq!(leases.iter().map(row).collect::<Vec<_>>(), [0, 3, 5]);
    world.fail(&leases[0], "x");
    world.fail(&leases[1], "x");
    world.complete(&leases[2], b"r");
    assert!(world.get_workflow(flow()).workflows[0].finished_us > 0);
    assert_eq!(single(&world.retry(&[id(0, 0)])), Code::Ok);
    assert_eq!(
        states(&mut world, 6),
        [State::Leased, State::Waiting, State::Waiting, State::Failed, State::Cancelled, State::Succeeded]
    );
    assert_eq!(world.get_workflow(flow()).workflows[0].finished_us, 0);
    assert_eq!(single(&world.retry(&[id(0, 3)])), Code::Ok);
    assert_eq!(world.state(id(0, 4)), State::Waiting, "all it needs may succeed again");
    let mut order = Vec::new();
    let mut running = world.leases();
    while !running.is_empty() {
        let lease = running.remove(0);
        order.push(row(&lease));
        assert_eq!(world.complete(&lease, b"r"), Code::Ok);
        running.extend(world.leases());
    }
    assert_eq!(order.len(), 5);
    assert_eq!(states(&mut world, 6), [State::Succeeded; 6]);
    assert!(world.get_workflow(flow()).workflows[0].finished_us > 0);
}

#[test]
fn a_step_whose_needs_are_unfinished_cannot_be_retried_by_hand() {
    let mut world = world_with(false, &[&[], &[0]]);
    world.cancel(&[id(0, 1)]);
    assert_eq!(single(&world.retry(&[id(0, 1)])), Code::IllegalState);
    let lease = world.lease();
    world.complete(&lease, b"r");
    assert_eq!(single(&world.retry(&[id(0, 1)])), Code::Ok);
    assert_eq!(row(&world.lease()), 1);
}

#[test]
fn a_workflow_is_kept_as_a_whole_from_its_end() {
    let mut world = World::new();
    world.worker(WORKER, &["mail"], 10);
    let rows = [step(0, &[]).retention_ms(5_000), step(1, &[0]).retention_ms(5_000).lease_ms(80_000_000)];
    world.workflow(flow(), false, &rows);
    let first = world.lease();
    world.complete(&first, b"r");
    let second = world.lease();
    world.advance_ms(60_000);
    assert_eq!(world.state(id(0, 0)), State::Succeeded);
    world.complete(&second, b"r");
    world.advance_ms(4_000);
    assert_eq!(states(&mut world, 2), [State::Succeeded; 2]);
    world.advance_ms(3_000);
    assert!(world.find(id(0, 0)).is_none() && world.find(id(0, 1)).is_none());
    let gone = taskmaster_protocol::body::GetWorkflow { id: flow(), from: 0, limit: 1 };
    assert_eq!(world.call(CLIENT, 0, &gone).code(), Code::UnknownWorkflow);
}

#[test]
fn delayed_steps_wait_for_their_time_after_their_needs() {
    let mut world = World::new();
    world.worker(WORKER, &["mail"], 10);
    world.workflow(flow(), false, &[step(0, &[]), step(1, &[0]).delay_ms(5_000)]);
    let lease = world.lease();
    world.complete(&lease, b"r");
    assert_eq!(world.state(id(0, 1)), State::Delayed);
    world.advance_ms(5_001);
    assert_eq!(row(&world.lease()), 1);
}

#[test]
fn a_step_that_misses_its_deadline_while_it_waits_cancels_what_needs_it() {
    let mut world = World::new();
    world.workflow(flow(), false, &[step(0, &[]), step(1, &[0]).deadline_in_ms(500), step(2, &[1])]);
    world.advance_ms(600);
    assert_eq!(states(&mut world, 3), [State::Ready, State::Expired, State::Cancelled]);
}

#[test]
fn workflows_are_listed_newest_first() {
    let mut world = World::new();
    for number in 0..5 {
        let mut only = step(number, &[]);
        only.name.clear();
        world.workflow(id(0, 1_000 + number), false, &[only]);
    }
    let page: WorkflowPage = world.call(CLIENT, 0, &ListWorkflows { limit: 3 }).read();
    let listed: Vec<TaskId> = page.workflows.iter().map(|workflow| workflow.id).collect();
    assert_eq!(listed, [1_004, 1_003, 1_002].map(|number| id(0, number)));
}

//! How likely deadlines are met, and queues that refuse those that are not.

use taskmaster_protocol::body::{Chance, GetTask, chance_basis, queue_field};
use taskmaster_protocol::{Code, Operation, TaskId};

use crate::job::{Job, id};
use crate::order::{WORKER, kind, run, taught};
use crate::world::{CLIENT, World};

const FIFO: u16 = 1;
const SHORTEST: u16 = 2;
const DEADLINE: u16 = 3;

fn chance(world: &mut World, id: TaskId) -> Chance {
    world.call_as(Operation::Chance, 0, CLIENT, id.partition().0, &GetTask { id }).read()
}

/// The probability that a task of a kind ends in time that is submitted behind so many of kind `long`, which take 500 ms.
fn permille(policy: u16, behind: u32, of: &str, deadline_in_ms: u64) -> u32 {
    let mut world = taught(policy);
    let before: Vec<Job> = (100..100 + behind).map(|number| kind(number, "long")).collect();
    if behind > 0 {
        world.submit(&before);
    }
    let asked = world.submit_one(kind(99, of).deadline_in_ms(deadline_in_ms));
    let chance = chance(&mut world, asked);
    assert_eq!((chance.basis, chance.places, chance.samples), (chance_basis::KNOWN, 1, 10), "{chance:?}");
    chance.permille
}

#[test]
fn a_deadline_is_likely_where_there_is_time_for_the_line_and_the_task_itself() {
    assert!(permille(FIFO, 0, "long", 5_000) > 950);
    assert!(permille(FIFO, 0, "long", 20) < 50, "it takes 500 ms");
    assert!(permille(FIFO, 10, "short", 20_000) > 950);
    assert!(permille(FIFO, 10, "short", 2_000) < 50, "those before it take 5 s");
}

#[test]
fn what_goes_before_depends_on_the_policy() {
    assert!(permille(SHORTEST, 10, "short", 1_000) > 950, "it goes ahead of the long ones");
    assert!(permille(DEADLINE, 10, "long", 2_000) > 950, "those before it have no deadline");
    let mut world = taught(DEADLINE);
    let before: Vec<Job> = (100..110).map(|number| kind(number, "long").deadline_in_ms(9_000)).collect();
    world.submit(&before);
    for (number, deadline_ms, ahead) in [(98, 12_000, 10), (99, 8_000, 0)] {
        let asked = world.submit_one(kind(number, "long").deadline_in_ms(deadline_ms));
        assert_eq!(chance(&mut world, asked).ahead, ahead);
    }
}

#[test]
fn it_is_said_anew_as_things_change() {
    let mut world = taught(FIFO);
    world.submit(&[kind(100, "long"), kind(101, "long").deadline_in_ms(2_000)]);
    let first = chance(&mut world, id(0, 101));
    run(&mut world);
    let second = chance(&mut world, id(0, 101));
    assert!((first.ahead, second.ahead) == (1, 0) && second.wait_ms < first.wait_ms, "{first:?} {second:?}");
    assert!(second.permille > 900, "{second:?}");
    world.credit(WORKER, 1);
    let lease = world.lease();
    let runs = chance(&mut world, id(0, 101));
    assert!((runs.basis, runs.wait_ms) == (chance_basis::KNOWN, 0) && runs.permille > 900, "{runs:?}");
    let why = world.why(id(0, 101));
    assert!(why.iter().any(|(name, sentence)| name == "in_time" && sentence.contains(" %")), "{why:?}");
    world.complete(&lease, b"");
    assert_eq!(chance(&mut world, id(0, 101)).basis, chance_basis::NOT_IN_LINE);
}

#[test]
fn what_is_not_known_is_not_said() {
    let mut world = taught(FIFO);
    let asked = world.submit_one(kind(100, "new").deadline_in_ms(1_000));
    assert_eq!(chance(&mut world, asked).basis, chance_basis::TOO_FEW_SAMPLES);
    let asked = world.submit_one(kind(101, "long"));
    assert_eq!(chance(&mut world, asked).basis, chance_basis::NO_DEADLINE);
    let asked = world.submit_one(kind(102, "long").deadline_in_ms(60_000));
    world.configure("mail", queue_field::PAUSED, |queue| queue.paused = 1);
    assert_eq!(chance(&mut world, asked).basis, chance_basis::NOT_SERVED);
    world.configure("mail", queue_field::PAUSED, |queue| queue.paused = 0);
    world.disconnect(WORKER);
    assert_eq!(chance(&mut world, asked).basis, chance_basis::NOT_SERVED);
}

#[test]
fn a_queue_refuses_what_it_is_told_to_refuse_and_nothing_else() {
    let mut world = taught(FIFO);
    world.configure("mail", queue_field::REFUSAL, |queue| queue.refuse_permille = 800);
    assert_eq!(world.queues(0)[0].1.refuse_permille, 800);
    world.submit(&[
        kind(100, "long"),
        kind(101, "long").deadline_in_ms(9_000),
        kind(102, "new").deadline_in_ms(1),
        kind(103, "long").deadline_in_ms(9_000),
    ]);
    let frame = [kind(104, "short"), kind(105, "long").deadline_in_ms(1_000)];
    let refused = world.submit_frame(&frame);
    assert_eq!((refused.code(), refused.refusal().row), (Code::HopelessDeadline, 1));
    assert!(refused.sentence().contains("queue \"mail\" takes 800 at least"), "{}", refused.sentence());
    assert!(world.find(id(0, 104)).is_none(), "nothing of the frame was taken");
    // What was accepted stands, however late it has become.
    let again = world.submit_frame(&[kind(103, "long").deadline_in_ms(1)]);
    assert_eq!(again.code(), Code::Ok);
    let resent = world.resubmit(&[kind(106, "long").deadline_in_ms(1)]);
    assert_eq!(resent.accepted, 1);
    world.configure("mail", queue_field::REFUSAL, |queue| queue.refuse_permille = 0);
    world.submit(&[kind(107, "long").deadline_in_ms(1_000)]);
}

#[test]
fn tasks_of_one_frame_count_for_those_behind_them() {
    let mut world = taught(FIFO);
    world.configure("mail", queue_field::REFUSAL, |queue| queue.refuse_permille = 500);
    let all: Vec<Job> = (100..120).map(|number| kind(number, "long").deadline_in_ms(5_200)).collect();
    let row = world.submit_frame(&all).refusal().row;
    assert!((8..12).contains(&row), "ten of them fit, and row {row} was refused");
    assert_eq!(world.submit(&all[..row as usize]).len(), row as usize);
}

#[test]
fn the_setting_comes_back_from_log_and_snapshot_and_is_checked() {
    let mut world = taught(DEADLINE);
    world.configure("mail", queue_field::REFUSAL, |queue| queue.refuse_permille = 900);
    let (sequence, chunks) = world.snapshot(|_| {});
    for snapshot in [None, Some((sequence, chunks.as_slice()))] {
        world.restart(snapshot);
        let shown = world.queues(0)[0].1;
        assert_eq!((shown.policy, shown.refuse_permille), (DEADLINE, 900));
    }
    let mut body = taskmaster_protocol::body::ConfigureQueue {
        set: queue_field::REFUSAL,
        refuse_permille: 1_001,
        ..Default::default()
    };
    body.queue = taskmaster_protocol::body::put(&mut body.bytes, b"mail");
    assert_eq!(world.call(CLIENT, 0, &body).code(), Code::Invalid);
}

#[test]
fn a_task_with_alternatives_is_refused_by_all_of_its_places() {
    let mut world = taught(FIFO);
    world.worker_with(WORKER, &["mail"], 0, "", |body| body.cpu_milli = 8_000);
    let either = |number: u32, deadline_ms: u64| {
        let mut job = kind(number, "long").with_spec(|spec| spec.gpu_milli = 1_000).deadline_in_ms(deadline_ms);
        job.custom = "or/1/cpu_milli=8000".to_owned();
        job
    };
    // The first few teach what those with these resources take.
    for number in 100..106 {
        world.submit_one(either(number, 3_600_000));
        run(&mut world);
    }
    world.configure("mail", queue_field::REFUSAL, |queue| queue.refuse_permille = 800);
    let refused = world.submit_frame(&[either(200, 100)]);
    assert_eq!(refused.code(), Code::HopelessDeadline, "{}", refused.sentence());
    let waits = world.submit_one(either(201, 60_000));
    assert_eq!(chance(&mut world, waits).basis, chance_basis::KNOWN, "it fits with its second resources");
}

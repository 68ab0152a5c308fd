//! A policy in shadow: what it would have made of what a queue ran.

use taskmaster_protocol::Code;
use taskmaster_protocol::body::{self, Shadow, ShadowReport, queue_field};

use crate::job::Job;
use crate::order::{kind, order, taught};
use crate::world::{CLIENT, Message, World};

const AUTO: u16 = 0;
const FIFO: u16 = 1;
const SHORTEST: u16 = 2;
const DEADLINE: u16 = 3;

fn ask(world: &mut World, queue: &str, policy: u16) -> Message {
    let mut body = Shadow { policy: policy.into(), ..Shadow::default() };
    body.queue = body::put(&mut body.bytes, queue.as_bytes());
    world.call(CLIENT, 0, &body)
}

fn report(world: &mut World, policy: u16) -> ShadowReport {
    ask(world, "mail", policy).read()
}

/// Bursts of tasks, the half of which is long and of which some have deadlines.
fn bursts(world: &mut World, count: u32) {
    for burst in 0..count {
        let from = 1_000 + burst * 40;
        let job = |number: u32| {
            let of = kind(number, if !number.is_multiple_of(2) { "short" } else { "long" });
            if number.is_multiple_of(5) { of.deadline_in_ms(20_000) } else { of }
        };
        let all: Vec<Job> = (from..from + 40).map(job).collect();
        order(world, &all);
        world.advance_ms(150);
    }
}

#[test]
fn a_shadow_tells_what_another_policy_gains_over_the_tasks_that_ran() {
    let mut world = taught(FIFO);
    world.configure("mail", queue_field::DEADLINE_ACTION, |queue| queue.deadline_action = 1);
    bursts(&mut world, 20);
    let shorter = report(&mut world, SHORTEST);
    assert!(shorter.samples > 700 && shorter.with_deadline > 100, "{shorter:?}");
    assert_eq!((shorter.present.policy, shorter.shadow.policy), (FIFO.into(), SHORTEST.into()));
    assert!(shorter.gain_milli >= shorter.gain_least_milli && shorter.gain_least_milli > 1_500, "{shorter:?}");
    assert!(shorter.shadow.slowdown_milli * 2 < shorter.present.slowdown_milli, "{shorter:?}");
    assert!(shorter.shadow.wait_us < shorter.present.wait_us && shorter.present.wait_median_us > 0, "{shorter:?}");
    // What is played under the present policy is like what was.
    let off_us = shorter.measured_us.abs_diff(shorter.present.wait_us);
    assert!(off_us * 5 < shorter.measured_us, "{shorter:?}");
    let same = report(&mut world, FIFO);
    assert_eq!((same.gain_milli, same.present), (1_000, same.shadow));
    assert!(report(&mut world, AUTO).gain_milli > 1_000);
    assert_eq!(world.queues(0)[0].1.policy, FIFO, "a shadow changes nothing");
}

#[test]
fn a_shadow_tells_how_many_would_be_late() {
    let mut world = taught(FIFO);
    world.configure("mail", queue_field::DEADLINE_ACTION, |queue| queue.deadline_action = 1);
    for burst in 0..10 {
        let from = 1_000 + burst * 40;
        let all: Vec<Job> = (from..from + 40)
            .map(
                |number| {
                    if number % 8 == 7 { kind(number, "long").deadline_in_ms(4_000) } else { kind(number, "long") }
                },
            )
            .collect();
        order(&mut world, &all);
        world.advance_ms(150);
    }
    let report = report(&mut world, DEADLINE);
    assert!(report.present.late > 30 && report.shadow.late * 2 < report.present.late, "{report:?}");
}

#[test]
fn a_shadow_with_too_few_tasks_says_so_and_nothing_else() {
    let mut world = taught(FIFO);
    let report = report(&mut world, SHORTEST);
    assert_eq!((report.samples, report.samples_min), (20, 256));
    assert_eq!((report.gain_milli, report.present.wait_us, report.blocks), (0, 0, 0));
    assert_eq!(ask(&mut world, "male", SHORTEST).code(), Code::UnknownQueue);
    assert_eq!(ask(&mut world, "mail", 9).code(), Code::Invalid);
    bursts(&mut world, 8);
    world.crash();
    assert_eq!(self::report(&mut world, SHORTEST).samples, 0, "it is the leader's memory alone");
}

//! Alternatives of resources, and labels that are preferred: where tasks go, with what, and what is free when they have ended.

use proptest::prelude::*;
use taskmaster_engine::State;
use taskmaster_protocol::Code;

use crate::job::{Job, id, job};
use crate::random::Random;
use crate::world::{Lease, World};

/// Connections of workers: one has GPUs, the other processors.
const GPUS: u64 = 10;
const CPUS: u64 = 11;

/// One GPU, or eight processors.
fn either(number: u32) -> Job {
    let mut job = job("mail", number).with_spec(|spec| spec.gpu_milli = 1_000).lease_ms(36_000_000);
    job.custom = "or/1/cpu_milli=8000".to_owned();
    job
}

fn site(gpus: u32, cpus: u32) -> World {
    let mut world = World::new();
    world.worker_with(GPUS, &["mail"], 100, "", |body| (body.gpu_milli, body.cpu_milli) = (1_000 * gpus, 1_000));
    world.worker_with(CPUS, &["mail"], 100, "", |body| body.cpu_milli = 1_000 * cpus);
    world
}

fn conns(leases: &[Lease]) -> Vec<u64> {
    leases.iter().map(|lease| lease.conn).collect()
}

#[test]
fn a_task_runs_with_the_first_resources_for_which_there_is_room() {
    let mut world = site(1, 17);
    let jobs: Vec<Job> = (0..4).map(either).collect();
    world.submit(&jobs);
    let leases = world.leases();
    assert_eq!(conns(&leases), [GPUS, CPUS, CPUS], "one has the GPU, two have eight of 17 processors each");
    assert_eq!(world.state(id(0, 3)), State::Ready);
    let why = world.why(id(0, 3));
    let resources = why.iter().find(|(name, _)| name == "resources").unwrap();
    assert_eq!(resources.1, "it asks for 1000 milli-gpu, or 8000 milli-cpu");
    let why = world.why(leases[1].id);
    let resources = why.iter().find(|(name, _)| name == "resources").unwrap();
    assert_eq!(resources.1, "it runs with 8000 milli-cpu, of 1000 milli-gpu, or 8000 milli-cpu");
    // Whichever ends, what it had is free, and no more.
    world.complete(&leases[2], b"");
    assert_eq!(conns(&world.leases()), [CPUS]);
    world.submit(&[either(4), either(5)]);
    assert!(world.leases().is_empty());
    world.complete(&leases[0], b"");
    assert_eq!(conns(&world.leases()), [GPUS]);
}

#[test]
fn a_worker_is_told_what_the_task_has_there() {
    let mut world = site(1, 8);
    world.submit(&[either(0), either(1)]);
    let leases = world.leases();
    let told: Vec<_> = leases.iter().map(|lease| (lease.conn, lease.gpu_milli, lease.cpu_milli)).collect();
    assert_eq!(told, [(GPUS, 1_000, 0), (CPUS, 0, 8_000)]);
}

#[test]
fn each_attempt_chooses_anew() {
    let mut world = site(1, 8);
    world.submit(&[either(0), either(1).attempts(3)]);
    let leases = world.leases();
    assert_eq!(conns(&leases), [GPUS, CPUS]);
    world.complete(&leases[0], b"");
    world.release(&leases[1]);
    let again = world.lease();
    assert_eq!((again.id, again.conn), (leases[1].id, GPUS));
    // Another one waits for the GPU.
    world.submit(&[job("mail", 2).with_spec(|spec| spec.gpu_milli = 1_000)]);
    world.fail(&again, "x");
    world.advance_ms(5_000);
    let mut next: Vec<_> = world.leases().iter().map(|lease| (lease.conn, lease.id)).collect();
    next.sort_unstable();
    assert_eq!(next, [(GPUS, id(0, 2)), (CPUS, again.id)]);
}

#[test]
fn where_no_worker_could_ever_hold_any_of_them_why_names_them_all() {
    let mut world = World::new();
    world.worker_with(CPUS, &["mail"], 1, "", |body| body.cpu_milli = 4_000);
    world.submit(&[either(0)]);
    let reason = world.reason(id(0, 0));
    assert!(reason.contains("1000 milli-gpu, or 8000 milli-cpu, and no connected worker offers that much"), "{reason}");
    world.worker_with(GPUS, &["mail"], 0, "", |body| body.cpu_milli = 8_000);
    let reason = world.reason(id(0, 0));
    assert!(!reason.contains("offers that much"), "{reason}");
}

#[test]
fn what_is_wrong_is_refused() {
    let mut world = World::new();
    for custom in ["or/1/cpu_milli=0", "or/9/cpu_milli=1", "prefer/zone=1"] {
        let mut job = job("mail", 0);
        custom.clone_into(&mut job.custom);
        let refused = world.submit_frame(&[job]);
        assert_eq!(refused.code(), Code::Invalid, "{custom}");
    }
}

#[test]
fn leases_that_a_worker_takes_along_to_another_connection_are_counted_as_they_are() {
    let mut world = site(1, 8);
    world.submit(&[either(0), either(1)]);
    let leases = world.leases();
    world.disconnect(CPUS);
    world.worker_with(CPUS + 1, &["mail"], 100, "", |body| body.cpu_milli = 8_000);
    assert_eq!(world.extend(CPUS + 1, &leases[1]), Code::Ok);
    world.submit(&[either(2)]);
    assert!(world.leases().is_empty(), "its processors are taken");
    let taken = Lease { conn: CPUS + 1, ..leases[1].clone() };
    assert_eq!(world.complete(&taken, b""), Code::Ok);
    assert_eq!(conns(&world.leases()), [CPUS + 1]);
}

#[test]
fn a_restart_begins_with_nothing_held() {
    let mut world = site(1, 8);
    world.submit(&[either(0), either(1)]);
    assert_eq!(world.leases().len(), 2);
    world.crash();
    world.come_back();
    world.worker_with(CPUS + 1, &["mail"], 100, "", |body| body.cpu_milli = 16_000);
    world.advance_ms(120_000);
    assert_eq!(conns(&world.leases()), [CPUS + 1; 2]);
}

#[test]
fn a_preferred_worker_goes_first_and_nobody_waits_for_it() {
    let mut world = World::new();
    let north = "label/zone/north=4294967296,label/disk/fast=4294967296";
    world.worker_with(GPUS, &["mail"], 2, "label/zone/north=4294967296", |_| {});
    world.worker_with(CPUS, &["mail"], 2, "", |_| {});
    world.worker_with(CPUS + 1, &["mail"], 1, north, |_| {});
    let prefers = |number: u32| {
        let mut job = job("mail", number);
        job.custom = "prefer/zone/north=1,prefer/disk/fast=1".to_owned();
        job
    };
    let mut went = Vec::new();
    for number in 0..6 {
        world.submit_one(prefers(number));
        went.extend(world.leases());
    }
    assert_eq!(conns(&went), [CPUS + 1, GPUS, GPUS, CPUS, CPUS]);
    assert!(went.iter().all(|lease| lease.custom.is_empty()), "the worker is told of nothing that it is to have");
    let why = world.why(id(0, 5));
    let resources = why.iter().find(|(name, _)| name == "resources").unwrap();
    assert_eq!(resources.1, "it asks for nothing, rather with the label disk=fast, rather with the label zone=north");
    // In one frame as well.
    for lease in &went {
        world.complete(lease, b"");
    }
    world.credit(CPUS + 1, 3);
    assert_eq!(conns(&world.leases()), [CPUS + 1]);
    world.credit(GPUS, 1);
    world.credit(CPUS, 1);
    world.submit(&[prefers(10), prefers(11), prefers(12), prefers(13)]);
    let mut all = conns(&world.leases());
    all.sort_unstable();
    assert_eq!(all, [GPUS, CPUS, CPUS + 1, CPUS + 1]);
}

/// The worker, and the processors and devices that the task has there.
fn got(lease: &Lease) -> (u64, u32, u32) {
    (lease.conn, lease.cpu_milli, lease.gpu_milli)
}

const ON_GPU: (u64, u32, u32) = (GPUS, 0, 1_000);
const ON_CPUS: (u64, u32, u32) = (CPUS, 8_000, 0);

/// A restartable task runs for long with the device; nobody else has credit.
fn late(cpus: u32) -> (World, Lease) {
    let mut world = site(1, cpus);
    world.worker_with(GPUS, &["mail"], 0, "", |body| (body.gpu_milli, body.cpu_milli) = (1_000, 1_000));
    world.worker_with(CPUS, &["mail"], 0, "", |body| body.cpu_milli = 1_000 * cpus);
    for number in 0..13 {
        world.submit_one(either(number).restartable());
        world.credit(GPUS, 1);
        let lease = world.lease();
        if number == 12 {
            return (world, lease);
        }
        world.advance_ms(100);
        assert_eq!(world.complete(&lease, b""), Code::Ok);
    }
    unreachable!("the last one is late");
}

#[test]
fn a_second_attempt_runs_with_resources_of_its_own_choice_and_each_frees_what_it_has() {
    for second_wins in [true, false] {
        let (mut world, first) = late(8);
        world.credit(CPUS, 1);
        world.advance_ms(300);
        let second = world.lease();
        assert_eq!((got(&first), got(&second), second.id), (ON_GPU, ON_CPUS, first.id));
        let (winner, loser) = if second_wins { (&second, &first) } else { (&first, &second) };
        assert_eq!(world.complete(winner, b""), Code::Ok);
        assert_eq!(world.revocations().len(), 1);
        assert_eq!(world.complete(loser, b""), Code::AlreadyFinal);
        world.credit(GPUS, 5);
        world.credit(CPUS, 5);
        world.submit(&(200..203).map(either).collect::<Vec<_>>());
        assert_eq!(world.leases().iter().map(got).collect::<Vec<_>>(), [ON_GPU, ON_CPUS]);
    }
}

#[test]
fn the_second_of_two_attempts_holds_what_it_has_when_it_is_the_only_one() {
    let (mut world, _) = late(16);
    world.credit(CPUS, 1);
    world.advance_ms(300);
    let second = world.lease();
    world.disconnect(GPUS);
    let why = world.why(second.id);
    let resources = why.iter().find(|(name, _)| name == "resources").unwrap();
    assert!(resources.1.starts_with("it runs with 8000 milli-cpu"), "{}", resources.1);
    world.credit(CPUS, 5);
    world.submit(&[either(200), either(201)]);
    assert_eq!(got(&world.lease()), ON_CPUS, "eight of sixteen are the second attempt's");
    assert_eq!(world.complete(&second, b""), Code::Ok);
    assert_eq!(got(&world.lease()), ON_CPUS);
    world.submit(&[either(202)]);
    assert!(world.leases().is_empty(), "all sixteen are taken");
}

#[test]
fn a_second_attempt_goes_where_the_task_would_rather_be() {
    let mut world = crate::speculation::taught();
    world.worker_with(12, &["mail"], 0, "label/zone/north=4294967296", |_| {});
    let mut job = job("mail", 100).restartable();
    job.custom = "prefer/zone/north=1".to_owned();
    world.submit_one(job);
    world.credit(crate::speculation::SLOW, 1);
    world.lease();
    world.credit(crate::speculation::IDLE, 1);
    world.credit(12, 1);
    world.advance_ms(3 * crate::speculation::RUN_MS);
    assert_eq!(world.lease().conn, 12);
}

#[test]
fn an_attempt_is_ended_for_an_urgent_task_that_fits_there_with_other_resources() {
    let mut world = site(1, 8);
    world.submit(&[either(0).priority(3), either(1).priority(3).restartable()]);
    let running = world.leases();
    assert_eq!(running.iter().map(got).collect::<Vec<_>>(), [ON_GPU, ON_CPUS]);
    world.advance_ms(100);
    let mut urgent = job("mail", 2).with_spec(|spec| spec.gpu_milli = 4_000).priority(0);
    urgent.custom = "or/1/cpu_milli=5000".to_owned();
    let urgent = world.submit_one(urgent);
    world.advance_ms(300);
    assert_eq!(world.revocations(), [(CPUS, running[1].id, running[1].token)]);
    let lease = world.lease();
    assert_eq!((lease.id, got(&lease)), (urgent, (CPUS, 5_000, 0)));
}

/// Whatever happens to attempts, what runs fits into what there is, and when all is over all of it is free.
fn check_counts(seed: u64) {
    let mut random = Random::new(seed);
    let (gpus, cpus) = (1 + random.below(3), 8 * (1 + random.below(3)));
    let mut world = site(gpus, cpus);
    let (mut number, mut running) = (0, Vec::<Lease>::new());
    for _ in 0..200 {
        match random.below(6) {
            0 | 1 => {
                let next = match random.below(3) {
                    0 => job("mail", number).with_spec(|spec| spec.cpu_milli = 4_000).lease_ms(36_000_000),
                    1 => either(number).priority(u8::try_from(random.below(4)).unwrap()).restartable(),
                    _ => either(number),
                };
                world.submit(&[next.attempts(3)]);
                number += 1;
            }
            2 if !running.is_empty() => {
                let lease = running.swap_remove(random.below(u32::try_from(running.len()).unwrap()) as usize);
                match random.below(4) {
                    0 => drop(world.fail(&lease, "x")),
                    1 => drop(world.release(&lease)),
                    2 => drop(world.cancel(&[lease.id])),
                    _ => drop(world.complete(&lease, b"")),
                }
            }
            3 => world.advance_ms(u64::from(random.below(2_000))),
            _ => {}
        }
        let revoked = world.revocations();
        running.extend(world.leases());
        running.retain(|lease| !revoked.iter().any(|(_, id, token)| (*id, *token) == (lease.id, lease.token)));
        let has = |conn: u64, of: fn(&Lease) -> u32| -> u32 {
            running.iter().filter(|lease| lease.conn == conn).map(of).sum()
        };
        assert!(has(GPUS, |lease| lease.gpu_milli) <= 1_000 * gpus, "seed {seed}");
        assert!(has(CPUS, |lease| lease.cpu_milli) <= 1_000 * cpus, "seed {seed}");
    }
    while !running.is_empty() {
        for lease in core::mem::take(&mut running) {
            world.complete(&lease, b"");
        }
        world.advance_ms(5_000);
        running.extend(world.leases());
    }
    // Exactly as much fits as at the beginning.
    world.submit(&(10_000..10_020).map(either).collect::<Vec<_>>());
    let all = conns(&world.leases());
    let on = |conn: u64| u32::try_from(all.iter().filter(|other| **other == conn).count()).unwrap();
    assert_eq!((on(GPUS), on(CPUS)), (gpus, cpus / 8), "seed {seed}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_tasks_hold_is_counted_as_it_was_chosen(seed in any::<u64>()) {
        check_counts(seed);
    }
}

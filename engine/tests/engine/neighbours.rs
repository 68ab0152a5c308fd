//! Tasks that slow each other down are kept apart, within bounds.

use std::collections::HashMap;

use taskmaster_engine::State;
use taskmaster_protocol::body::{Usage, UsageBeside, UsageKind, UsageRow, put, queue_field, restart};
use taskmaster_protocol::{Code, Operation, TaskId};

use crate::job::{Job, id, job};
use crate::park::{Park, STEP_MS, Truth};
use crate::random::Random;
use crate::world::World;

const HOG_MS: f64 = 1_000.0;

fn of(kind: &str, number: u32) -> Job {
    job("q", number).kind(kind).retention_ms(1_000).lease_ms(1_000_000)
}

/// Two hogs halve each other; nothing else suffers.
fn halves(kind: &str, other: &str) -> f64 {
    if kind.starts_with("hog") && other.starts_with("hog") { 0.5 } else { 1.0 }
}

fn work_ms(kind: &str) -> f64 {
    if kind.starts_with("hog") { HOG_MS } else { 500.0 }
}

/// Machines of so many places that have seen each kind alone and beside each.
fn taught(places: &[u32], stalls: bool) -> Park {
    taught_by(places, stalls, halves)
}

fn taught_by(places: &[u32], stalls: bool, truth: Truth) -> Park {
    let mut park = Park::new(places, truth, work_ms);
    park.tells_stalls = stalls;
    park.world.configure("q", queue_field::POLICY, |queue| queue.policy = 1);
    let mut number = 0;
    let mut run = |park: &mut Park, kinds: &[&str]| {
        for kind in kinds {
            number += 1;
            park.world.submit_one(of(kind, 1_000_000 + number));
        }
        park.begin();
        park.finish();
    };
    // On the first machine alone: the others give their places back meanwhile.
    for machine in &park.machines[1..] {
        park.world.worker(machine.conn, &["other"], 0);
    }
    for _ in 0..4 {
        run(&mut park, &["hog"]);
        run(&mut park, &["light"]);
    }
    park.world.configure("q", queue_field::RESTARTS, |queue| queue.restarts_off = 0x88);
    for _ in 0..6 {
        run(&mut park, &["hog", "hog"]);
        run(&mut park, &["hog", "light"]);
    }
    park.world.configure("q", queue_field::RESTARTS, |queue| queue.restarts_off = 0x80);
    for (machine, &places) in park.machines.iter().zip(places).skip(1) {
        park.world.worker(machine.conn, &["q"], places);
    }
    park
}

fn said(world: &mut World, id: TaskId, fact: &str) -> Option<String> {
    world.why(id).into_iter().find(|(name, _)| name == fact).map(|(_, sentence)| sentence)
}

#[test]
fn contending_tasks_go_to_different_workers() {
    for stalls in [true, false] {
        let mut park = taught(&[2, 2], stalls);
        for number in 0..10 {
            // By turns alone both hogs would go to one worker, and both others to the other one.
            for (at, kind) in (0..).zip(["hog", "light", "hog", "light"]) {
                park.world.submit_one(of(kind, 10 * number + at));
            }
            park.begin();
            assert_eq!([park.kinds(0), park.kinds(1)], [["hog", "light"], ["hog", "light"]], "round {number}");
            park.finish();
        }
        assert_eq!(park.world.shard.stats().contended, 0);
    }
}

#[test]
fn labels_that_are_preferred_come_after_what_slows_tasks_down() {
    for north in [0, 1] {
        let mut park = taught(&[2, 2], true);
        let conn = park.machines[north].conn;
        park.world.worker_with(conn, &["q"], 2, "label/zone/north=4294967296", |_| {});
        for (number, kind) in (0..).zip(["light", "hog", "hog"]) {
            let mut preferring = of(kind, number);
            preferring.custom = "prefer/zone/north=1".to_owned();
            park.world.submit_one(preferring);
            park.begin();
        }
        assert_eq!([park.kinds(north), park.kinds(1 - north)], [vec!["hog", "light"], vec!["hog"]]);
    }
}

#[test]
fn other_resources_are_taken_before_a_neighbour_that_slows_down() {
    let mut park = taught(&[2, 2], true);
    let [first, other] = [0, 1].map(|machine| park.machines[machine].conn);
    park.world.worker_with(first, &["q"], 2, "", |body| (body.gpu_milli, body.cpu_milli) = (2_000, 1_000));
    park.world.worker_with(other, &["q"], 2, "", |body| body.cpu_milli = 8_000);
    for number in 0..3 {
        let mut either = of("hog", number).with_spec(|spec| spec.gpu_milli = 1_000);
        either.custom = "or/1/cpu_milli=8000".to_owned();
        park.world.submit_one(either);
        park.begin();
        // By the first one it is known which kind these are.
        if number == 0 {
            park.finish();
        }
    }
    assert_eq!([park.kinds(0), park.kinds(1)], [vec!["hog"], vec!["hog"]]);
}

#[test]
fn switched_off_and_without_measurements_workers_take_turns() {
    let mut park = taught(&[2, 2], true);
    park.world.configure("q", queue_field::RESTARTS, |queue| {
        queue.restarts_off = restart::CONTENTION << 4 | restart::CONTENTION;
    });
    assert_eq!(park.world.queues(0)[0].1.restarts_off, u16::from(restart::CONTENTION));
    let kinds = ["hog", "light", "hog", "light"];
    for (number, kind) in (0..).zip(kinds) {
        park.world.submit_one(of(kind, number));
    }
    park.begin();
    let mut found = [park.kinds(0), park.kinds(1)];
    found.sort();
    assert_eq!(found, [["hog", "hog"], ["light", "light"]]);
    park.finish();

    let mut park = Park::new(&[2, 2], halves, work_ms);
    park.machines.iter_mut().for_each(|machine| machine.tells = false);
    for round in 0..20 {
        for (number, kind) in (0..).zip(kinds) {
            park.world.submit_one(of(kind, 10 * round + number));
        }
        park.begin();
        assert_eq!(park.machines.iter().map(|machine| machine.running.len()).sum::<usize>(), 4);
        park.finish();
    }
    let stats = park.world.shard.stats();
    assert_eq!((stats.measured, stats.held, stats.contended), (0, 0, 0));
}

#[test]
fn a_held_task_lets_others_pass_and_takes_the_better_place() {
    let mut park = taught(&[2, 1], true);
    park.world.submit_one(of("hog", 0));
    park.begin();
    if park.kinds(0).is_empty() {
        // It was the other worker's turn.
        park.finish();
        park.world.submit_one(of("hog", 1));
        park.begin();
    }
    let hogs = 0;
    park.world.submit_one(of("light", 2));
    park.begin();
    assert_eq!((park.kinds(hogs), park.kinds(1 - hogs)), (vec!["hog"], vec!["light"]));
    let held = park.world.submit_one(of("hog", 10));
    park.begin();
    assert_eq!(park.world.state(held), State::Ready, "the only place is beside the other one");
    let waits = said(&mut park.world, held, "waits").unwrap();
    let worker = format!("worker-{}", park.machines[hogs].conn);
    assert!(waits.contains(&worker) && waits.contains("\"hog\"") && waits.contains("0.5"), "{waits}");
    park.world.submit_one(of("light", 11));
    park.begin();
    assert_eq!(park.kinds(hogs), ["hog", "light"], "who is not slowed down goes first");
    while park.world.state(held) == State::Ready {
        park.step();
    }
    assert_eq!(park.kinds(1 - hogs).iter().filter(|kind| **kind == "hog").count(), 1, "it went to the other worker");
    assert_eq!(park.world.shard.stats().contended, 0);
    assert!(park.world.shard.stats().held >= 1);
    park.finish();
}

#[test]
fn a_task_is_held_no_longer_than_the_slowdown_would_cost() {
    let mut park = taught(&[2], true);
    park.work_ms = |_| 1e9;
    park.world.submit_one(of("hog", 0));
    park.begin();
    let held = park.world.submit_one(of("hog", 1));
    park.begin();
    assert_eq!(park.world.state(held), State::Ready, "its place is expected: the other one should end soon");
    let mut waited_ms = 0;
    while park.world.state(held) == State::Ready {
        park.step();
        waited_ms += STEP_MS;
        assert!(waited_ms < 1_500, "held for {waited_ms} ms for a slowdown of a second");
    }
    assert_eq!(park.world.shard.stats().contended, 1);
}

#[test]
fn a_line_of_tasks_that_lose_less_than_half_is_not_held() {
    fn suffers(kind: &str, other: &str) -> f64 {
        if kind == "hog" && other == "hog" { 0.7 } else { 1.0 }
    }
    let mut park = taught_by(&[2], true, suffers);
    for number in 0..60 {
        park.world.submit_one(of("hog", number));
    }
    park.begin();
    let (mut idle, mut steps) = (0, 0);
    while park.world.queues(0)[0].1.counts[State::Ready as usize] > 1 {
        steps += 1;
        idle += usize::from(park.machines[0].running.len() < 2);
        park.step();
    }
    assert!(idle * 10 < steps, "a place idled for {idle} of {steps} steps, at seven tenths of the speed for both");
    park.finish();
}

/// Mean slowdown of tasks, against their time alone, on machines with three places each; and the longest wait in milliseconds.
fn load(contention: bool, seed: u64) -> (f64, u64) {
    const SECONDS: u64 = 120;
    let mut park = taught(&[3, 3, 3, 3], true);
    if !contention {
        park.world.configure("q", queue_field::RESTARTS, |queue| queue.restarts_off = 0x88);
    }
    let mut random = Random::new(seed);
    let (mut number, mut since) = (0, HashMap::<TaskId, u64>::new());
    let (mut sum, mut count, mut longest) = (0.0, 0_u32, 0);
    for step in 0..SECONDS * 1_000 / STEP_MS {
        let now_ms = step * STEP_MS;
        // 4 hogs and 4 others at once, of 12 places.
        if random.below(1_000) < 60 {
            let kind = if random.below(3) == 0 { "hog" } else { "light" };
            number += 1;
            since.insert(park.world.submit_one(of(kind, number)), now_ms);
            park.begin();
        }
        let waited = |machine: &crate::park::Machine| {
            machine.running.iter().filter_map(|running| Some(now_ms - since.get(&running.lease.id)?)).max()
        };
        longest = longest.max(park.machines.iter().filter_map(waited).max().unwrap_or(0));
        for lease in park.step() {
            if let Some(start_ms) = since.remove(&lease.id) {
                sum += (now_ms + STEP_MS - start_ms) as f64 / work_ms(&lease.kind);
                count += 1;
            }
        }
    }
    (sum / f64::from(count), longest)
}

#[test]
fn under_load_tasks_are_slowed_down_less() {
    let mut gains = Vec::new();
    for seed in 1..4 {
        let [(without, _), (with, longest)] = [false, true].map(|contention| load(contention, seed));
        eprintln!("mean slowdown {without:.3} without, {with:.3} with; the longest took {longest} ms");
        gains.push((without - 1.0) / (with - 1.0));
        assert!(longest < 60_000, "{longest} ms");
    }
    let mean = gains.iter().sum::<f64>() / 3.0;
    assert!(mean > 1.3, "{gains:.2?}");
}

#[test]
fn no_task_starves_whatever_workers_say() {
    fn random_speed(kind: &str, other: &str) -> f64 {
        let mixed =
            kind.bytes().chain(other.bytes()).fold(7_u32, |mixed, byte| mixed.wrapping_mul(31) ^ u32::from(byte));
        0.1 + f64::from(mixed % 90) / 100.0
    }
    for seed in 0..20 {
        let mut random = Random::new(seed);
        let mut park = Park::new(&[2, 3, 1], random_speed, |kind| 50.0 * kind.len() as f64);
        park.tells_stalls = seed % 2 == 0;
        park.machines[2].tells = seed % 3 == 0;
        let (mut submitted, mut ended) = (0, 0);
        for _ in 0..4_000 {
            if submitted < 300 && random.once_in(6) {
                submitted += 1;
                let kind = *random.pick(&["a", "bb", "ccc", "dddd", "eeeee"]);
                let priority = u8::try_from(random.below(4)).unwrap();
                park.world.submit_one(of(kind, submitted).priority(priority));
                park.begin();
            }
            ended += park.step().len();
        }
        for _ in 0..20_000 {
            ended += park.step().len();
            if ended == submitted as usize {
                break;
            }
        }
        assert_eq!(ended, submitted as usize, "seed {seed}: within 100 s all have ended");
    }
}

#[test]
fn a_task_of_a_measured_kind_takes_what_is_spare_of_a_worker_that_is_kept() {
    let mut park = taught(&[2], true);
    let conn = park.machines[0].conn;
    park.world.worker_with(conn, &["q"], 3, "", |body| body.cpu_milli = 2_000);
    let needing = |number: u32, cpus: u32| of("light", number).with_spec(|spec| spec.cpu_milli = 1_000 * cpus);
    park.world.submit_one(needing(1, 1));
    assert_eq!(park.world.leases().len(), 1);
    park.world.submit_one(needing(2, 2));
    park.world.advance_ms(1_700);
    assert_eq!(park.world.shard.stats().reserved, 1);
    let beside = park.world.submit_one(needing(3, 0));
    assert_eq!(park.world.lease().id, beside);
}

#[test]
fn beside_a_neighbour_that_slows_it_down_a_task_does_not_start_on_a_worker_that_is_kept() {
    for (kind, starts) in [("hog", false), ("light", true)] {
        let mut park = taught(&[2], true);
        let conn = park.machines[0].conn;
        park.world.worker_with(conn, &["q"], 3, "", |body| body.cpu_milli = 2_000);
        let needing =
            |kind: &str, number: u32, cpus: u32| of(kind, number).with_spec(|spec| spec.cpu_milli = 1_000 * cpus);
        // By the first one it is known which kind these are.
        for number in 0..2 {
            park.finish();
            park.world.submit_one(needing("hog", number, 1));
            park.begin();
        }
        park.world.submit_one(needing("light", 2, 2));
        park.world.advance_ms(1_700);
        assert_eq!(park.world.shard.stats().reserved, 1);
        park.world.submit_one(needing(kind, 3, 0));
        assert_eq!(park.world.leases().len(), usize::from(starts), "{kind}");
    }
}

#[test]
fn why_says_how_much_memory_a_task_will_have() {
    let mut park = taught(&[2, 2], true);
    let (submit, mut number) = (|park: &mut Park, job| park.world.submit_one(job), 0);
    let mut run = |park: &mut Park, kind: &str| {
        number += 1;
        submit(park, of(kind, number));
        park.begin();
        park.finish();
    };
    run(&mut park, "other-100");
    let other = submit(&mut park, of("other-100", 100).with_spec(|spec| spec.memory_bytes = 64 << 20));
    let sentence = said(&mut park.world, other, "memory").expect("one was measured");
    assert!(sentence.contains("100.0 MiB in half") && sentence.contains("the last 1 attempts"), "{sentence}");
    assert!(sentence.contains("asks for 64 MiB"), "{sentence}");
    // Of another kind nothing of this holds, and of one that was never measured nothing is said.
    let hog = submit(&mut park, of("hog", 101));
    let sentence = said(&mut park.world, hog, "memory").expect("some were measured");
    assert!(sentence.contains("8.0 MiB in half") && sentence.contains("asks for none"), "{sentence}");
    let new = submit(&mut park, of("new", 102));
    assert_eq!(said(&mut park.world, new, "memory"), None);
}

#[test]
fn where_kinds_are_kept_apart_a_workflows_tasks_take_turns_of_their_own_kind() {
    let mut park = taught(&[2], false);
    park.world.configure("q", queue_field::POLICY, |queue| queue.policy = 0);
    park.world.worker(park.machines[0].conn, &["other"], 0);
    let rows = [of("light", 1), of("hog", 2), of("hog", 3).needs(&[1])];
    assert_eq!(park.world.workflow(id(0, 900), false, &rows).accepted, 3);
    let path = said(&mut park.world, id(0, 1), "path").unwrap();
    assert!(path.contains("0 of 0 others") && path.contains("kind and resources"), "{path}");
    park.world.configure("q", queue_field::RESTARTS, |queue| queue.restarts_off = 0x88);
    let path = said(&mut park.world, id(0, 1), "path").unwrap();
    assert!(path.contains("1 of 1 others") && path.contains("priority and resources"), "{path}");
}

#[test]
fn what_cannot_be_true_is_refused_and_teaches_nothing() {
    let mut park = taught(&[2, 2], true);
    let before = park.world.shard.stats().measured;
    let id = park.world.submit_one(of("hog", 1));
    let lease = park.world.lease();
    let good = UsageRow {
        id,
        token: lease.token,
        locator: lease.locator,
        run_us: 1_000_000,
        known: 15,
        is_whole: 1,
        ..UsageRow::default()
    };
    let frame = |change: &dyn Fn(&mut UsageRow)| {
        let mut row = good;
        change(&mut row);
        Usage { cpu_milli: 2_000, memory_bytes: 1 << 34, rows: vec![row], ..Usage::default() }
    };
    let mut refused = |body: Usage, word: &str| {
        let correlation = park.world.send(lease.conn, 0, &body);
        let reply = park.world.reply(correlation).unwrap_or_else(|| panic!("taken: {word}"));
        assert_eq!(reply.code(), Code::Invalid);
        assert!(reply.sentence().contains(word), "{}", reply.sentence());
    };
    refused(frame(&|row| row.run_us = 0), "ran for 0 us");
    refused(frame(&|row| row.run_us = u64::MAX), "at most");
    refused(frame(&|row| row.cpu_us = u64::MAX), "milli-cpu");
    refused(frame(&|row| row.io_stalled_us = 3_000_000), "stalled for 3000000 us");
    refused(frame(&|row| row.memory_peak_bytes = 1 << 60), "bytes of memory");
    refused(Usage { cpu_milli: u32::MAX, ..frame(&|_| {}) }, "no machine");
    refused(Usage { beside: vec![UsageBeside { row: 0, kind: 0, permille: 1 }], ..frame(&|_| {}) }, "kind 0 of 0");
    let mut bytes = Vec::new();
    let (queue, kind) = (put(&mut bytes, b"q"), put(&mut bytes, b"hog"));
    let kinds = vec![UsageKind { queue, kind, running: u32::MAX, reserved: 0 }];
    refused(Usage { kinds, bytes, ..frame(&|_| {}) }, "run on a worker");
    // Leases that are not in force teach nothing either, and nobody is told.
    for body in [frame(&|row| row.token += 1), frame(&|row| row.id.lo ^= 1)] {
        let correlation = park.world.send(lease.conn, 0, &body);
        assert!(park.world.reply(correlation).is_none());
    }
    assert_eq!(park.world.shard.stats().measured, before);
    park.world.send(lease.conn, 0, &frame(&|_| {}));
    assert_eq!(park.world.shard.stats().measured, before + 1);
    assert!(park.world.pushes(Operation::Revoke).is_empty());
}

//! Queues that share workers: what each has of them, in virtual time.

use std::collections::BTreeMap;

use taskmaster_protocol::body::{queue_field, restart};
use taskmaster_protocol::{Code, body};

use crate::job::{id, job};
use crate::random::Random;
use crate::world::{Lease, START_US, World, config};

/// The first worker's connection.
const WORKER: u64 = 10;
/// Tasks of a backlogged queue that wait at least.
const WAITING: u32 = 40;

struct Running {
    ends_ms: u64,
    places: u64,
    lease: Lease,
}

/// Tasks of a queue that is kept backlogged.
#[derive(Clone, Debug)]
struct Load {
    namespace: &'static str,
    queue: String,
    /// Run times, in milliseconds, between which they are drawn.
    run_ms: (u64, u64),
    cpu_milli: u32,
    waiting: u32,
    /// When it has tasks that wait, in milliseconds.
    from_ms: u64,
    until_ms: u64,
}

fn load(queue: &str, run_ms: u64) -> Load {
    let (namespace, queue, run_ms) = ("", queue.to_owned(), (run_ms, run_ms));
    Load { namespace, queue, run_ms, cpu_milli: 0, waiting: 0, from_ms: 0, until_ms: u64::MAX }
}

/// Workers, what they run, and what queues had of them.
struct Yard {
    world: World,
    loads: Vec<Load>,
    running: Vec<Running>,
    /// Place-time in milliseconds, by queue.
    had_ms: BTreeMap<String, u64>,
    /// Places of each worker, from the first on.
    places: Vec<usize>,
    number: u32,
    random: Random,
    /// A worker offers its place before its completion is durable.
    is_hasty: bool,
}

impl Yard {
    fn new(loads: Vec<Load>) -> Self {
        let (running, had_ms, places) = (Vec::new(), BTreeMap::new(), Vec::new());
        let (world, random) = (World::with(config(2)), Random::new(7));
        Self { world, loads, running, had_ms, places, number: 0, random, is_hasty: false }
    }

    fn worker(&mut self, queues: &[&str], places: u32) {
        let conn = WORKER + self.places.len() as u64;
        self.world.worker_with(conn, queues, places, "", |body| {
            if self.loads.iter().any(|load| !load.namespace.is_empty()) {
                body.namespace = body::put(&mut body.bytes, b"many,one");
            }
            if self.loads.iter().any(|load| load.cpu_milli > 0) {
                body.cpu_milli = places * 1_000;
            }
        });
        self.places.push(places as usize);
        self.begin();
    }

    fn weight(&mut self, queue: &str, weight: u16) {
        let load = self.loads.iter().find(|load| load.queue == queue).unwrap();
        let namespace = load.namespace;
        self.world.configure(queue, queue_field::WEIGHT, |body| {
            body.namespace = body::put(&mut body.bytes, namespace.as_bytes());
            body.weight = weight;
        });
    }

    fn now_ms(&self) -> u64 {
        (self.world.now_us - START_US) / 1_000
    }

    /// Keeps queues backlogged whose time it is.
    fn submit(&mut self) {
        let now_ms = self.now_ms();
        for at in 0..self.loads.len() {
            let load = self.loads[at].clone();
            if load.waiting >= WAITING || !(load.from_ms..load.until_ms).contains(&now_ms) {
                continue;
            }
            let jobs = (0..2 * WAITING).map(|_| {
                self.number += 1;
                let run_ms = load.run_ms.0 + self.random.next() % (load.run_ms.1 - load.run_ms.0 + 1);
                let mut job = job(&load.queue, self.number).lease_ms(80_000_000).retention_ms(1);
                load.namespace.clone_into(&mut job.namespace);
                (job.spec.cpu_milli, job.payload) = (load.cpu_milli, run_ms.to_string().into_bytes());
                job
            });
            let jobs: Vec<_> = jobs.collect();
            let partition = u16::try_from(self.number / (2 * WAITING) % 2).unwrap();
            let jobs: Vec<_> = jobs.into_iter().map(|job| job.in_partition(partition)).collect();
            self.world.submit(&jobs);
            self.loads[at].waiting += 2 * WAITING;
        }
    }

    fn begin(&mut self) {
        let now_ms = self.now_ms();
        for lease in self.world.leases() {
            let load = self.loads.iter_mut().find(|load| load.queue == lease.queue).unwrap();
            load.waiting -= 1;
            let run_ms: u64 = String::from_utf8(lease.payload.clone()).unwrap().parse().unwrap();
            let places = u64::from(load.cpu_milli.div_ceil(1_000)).max(1);
            self.running.push(Running { ends_ms: now_ms + run_ms, places, lease });
        }
    }

    /// Goes on to the next end of a task, or to a time.
    fn step(&mut self, until_ms: u64) {
        self.submit();
        self.begin();
        let next_ms = self.running.iter().map(|running| running.ends_ms).min().unwrap_or(until_ms).min(until_ms);
        let passed_ms = next_ms - self.now_ms();
        for running in &self.running {
            *self.had_ms.entry(running.lease.queue.clone()).or_default() += passed_ms * running.places;
        }
        self.world.advance_ms(passed_ms);
        let (over, left) = self.running.drain(..).partition::<Vec<_>, _>(|running| running.ends_ms <= next_ms);
        self.running = left;
        for Running { lease, .. } in over {
            let conn = lease.conn;
            if self.is_hasty {
                self.world.credit(conn, 1);
            }
            assert_eq!(self.world.complete(&lease, b""), Code::Ok);
            if !self.is_hasty {
                self.world.credit(conn, 1);
            }
            self.begin();
        }
    }

    fn run(&mut self, for_ms: u64) {
        let until_ms = self.now_ms() + for_ms;
        while self.now_ms() < until_ms {
            self.step(until_ms);
        }
    }

    /// What each queue had in this time, as parts of all of it, in the order of the loads.
    fn parts(&mut self, for_ms: u64) -> Vec<f64> {
        let before = self.had_ms.clone();
        self.run(for_ms);
        let had = |load: &Load| {
            let of = |had: &BTreeMap<String, u64>| had.get(&load.queue).copied().unwrap_or_default();
            (of(&self.had_ms) - of(&before)) as f64
        };
        let had: Vec<f64> = self.loads.iter().map(had).collect();
        let all: f64 = had.iter().sum();
        had.iter().map(|had| had / all).collect()
    }
}

fn assert_near(parts: &[f64], due: &[f64], tolerance: f64, about: &str) {
    for (part, due) in parts.iter().zip(due) {
        assert!((part - due).abs() <= tolerance, "{parts:.3?} and not {due:.3} {about}");
    }
}

#[test]
fn weights_divide_the_time_of_places_however_long_tasks_are() {
    for (policy, places) in [(0, 1), (1, 2), (2, 4), (3, 5), (1, 40)] {
        for is_hasty in [false, true] {
            let mut yard = Yard::new(vec![load("long", 1_000), load("short", 100)]);
            yard.is_hasty = is_hasty;
            for queue in ["long", "short"] {
                yard.world.configure(queue, queue_field::POLICY, |body| body.policy = policy);
            }
            yard.weight("short", 3);
            yard.worker(&["long", "short"], places);
            let parts = yard.parts(200_000);
            assert_near(&parts, &[0.25, 0.75], 0.01, &format!("policy {policy}, {places} places"));
            yard.weight("long", 9);
            let parts = yard.parts(200_000);
            assert_near(&parts, &[0.75, 0.25], 0.02, &format!("policy {policy}, {places} places, turned round"));
        }
    }
}

#[test]
fn many_queues_of_a_namespace_have_together_what_one_of_another_has() {
    let names: Vec<String> = (0..20).map(|number| format!("q{number}")).collect();
    let mut loads: Vec<Load> = names.iter().map(|name| Load { namespace: "many", ..load(name, 300) }).collect();
    loads.push(Load { namespace: "one", ..load("alone", 100) });
    let mut yard = Yard::new(loads);
    let mut served: Vec<&str> = names.iter().map(String::as_str).collect();
    served.push("alone");
    yard.worker(&served, 4);
    yard.worker(&served, 4);
    let parts = yard.parts(300_000);
    assert_near(&parts[20..], &[0.5], 0.01, "of the one");
    assert_near(&parts[..20], &[0.025; 20], 0.01, "of the many");
    // A namespace gets what its heaviest queue says, and divides it by all their weights.
    yard.weight("alone", 4);
    yard.weight("q3", 2);
    let parts = yard.parts(300_000);
    assert_near(&parts[20..], &[2.0 / 3.0], 0.01, "of the one, of weight 4 to 2");
    assert_near(&parts[3..4], &[1.0 / 3.0 * 2.0 / 21.0], 0.01, "of the heaviest of the many");
}

#[test]
fn a_queue_that_comes_back_has_its_part_at_once_and_no_more() {
    let mut yard = Yard::new(vec![load("busy", 500), Load { from_ms: 60_000, ..load("back", 500) }]);
    yard.worker(&["busy", "back"], 8);
    assert_near(&yard.parts(60_000), &[1.0, 0.0], 0.0, "while the other is idle");
    // What runs has to end first: half a second, of which it is owed its part.
    let parts = yard.parts(3_000);
    assert_near(&parts, &[0.5, 0.5], 0.1, "in the first three seconds");
    let parts = yard.parts(10_000);
    assert_near(&parts, &[0.5, 0.5], 0.07, "later");
    // It was idle again, and had nothing saved.
    yard.loads[1].until_ms = yard.now_ms();
    yard.run(120_000);
    assert_eq!(yard.loads[1].waiting, 0);
    yard.loads[1].until_ms = u64::MAX;
    yard.run(500);
    assert_near(&yard.parts(5_000), &[0.5, 0.5], 0.1, "the second time");
    // Nor has it to make up for what it had while it was alone.
    yard.loads[0].until_ms = yard.now_ms();
    yard.run(120_000);
    yard.loads[0].until_ms = u64::MAX;
    yard.run(500);
    assert_near(&yard.parts(5_000), &[0.5, 0.5], 0.1, "when the other was idle");
}

#[test]
fn where_nobody_waits_nothing_is_saved_up() {
    let until_ms = 5_000;
    let mut yard = Yard::new(vec![
        Load { until_ms, ..load("back", 500) },
        load("busy", 500),
        Load { until_ms, ..load("gone", 500) },
    ]);
    yard.worker(&["back", "busy"], 8);
    yard.worker(&["back", "gone"], 8);
    yard.run(600_000);
    assert_eq!([0, 2].map(|at| yard.loads[at].waiting), [0, 0]);
    yard.loads[0].until_ms = u64::MAX;
    yard.run(500);
    // It has all of one worker, which is as much as the other queue has.
    assert_near(&yard.parts(3_000), &[0.5, 0.5, 0.0], 0.05, "at once");
}

#[test]
fn what_its_own_limit_keeps_from_a_queue_is_not_owed_to_it() {
    let mut yard = Yard::new(vec![load("limited", 100), load("free", 100)]);
    yard.world.configure("limited", queue_field::CONCURRENCY, |body| body.concurrency = 1);
    yard.worker(&["limited", "free"], 10);
    assert_near(&yard.parts(200_000), &[0.1, 0.9], 0.01, "with the limit");
    yard.world.configure("limited", queue_field::CONCURRENCY, |body| body.concurrency = 0);
    assert_near(&yard.parts(1_000), &[0.5, 0.5], 0.1, "without it");
}

#[test]
fn workers_that_serve_some_of_the_queues_are_given_to_those_that_have_no_others() {
    let mut yard = Yard::new(vec![load("a", 100), load("b", 100), Load { from_ms: 300_000, ..load("c", 100) }]);
    yard.worker(&["a", "b"], 2);
    yard.worker(&["b", "d"], 8);
    // `b` has more than its part elsewhere, so these two are all for `a`.
    assert_near(&yard.parts(300_000), &[0.2, 0.8, 0.0], 0.01, "of two");
    // A third one that is served there shares them with it, and does not wait until both have what `b` had.
    yard.worker(&["a", "c"], 2);
    yard.run(1_000);
    assert_near(&yard.parts(20_000), &[2.0 / 12.0, 8.0 / 12.0, 2.0 / 12.0], 0.02, "of three");
    // Served everywhere, they are owed what they may have been kept from for a few tasks' time, and not for minutes.
    yard.worker(&["a", "b", "c"], 24);
    yard.run(5_000);
    assert_near(&yard.parts(20_000), &[1.0 / 3.0; 3], 0.05, "everywhere");
}

#[test]
fn tasks_that_hold_more_of_a_resource_count_for_more_places() {
    let mut yard = Yard::new(vec![
        Load { cpu_milli: 4_000, ..load("wide", 200) },
        Load { cpu_milli: 1_000, ..load("narrow", 200) },
    ]);
    yard.worker(&["wide", "narrow"], 8);
    let parts = yard.parts(100_000);
    assert_near(&parts, &[0.5, 0.5], 0.02, "of the processors");
}

#[test]
fn why_says_whose_turn_it_is() {
    let mut yard = Yard::new(vec![load("light", 60_000), load("heavy", 60_000)]);
    yard.weight("heavy", 3);
    yard.submit();
    yard.worker(&["light", "heavy"], 4);
    yard.run(10_000);
    // The last of each queue.
    let why = |yard: &mut Yard, task| yard.world.why(task).into_iter().find(|(name, _)| name == "share").unwrap().1;
    let words = why(&mut yard, id(1, 2 * WAITING));
    assert!(words.contains("holds 25 % of the places") && words.contains("25 % are its part (weight 1"), "{words}");
    let mut told: Vec<_> = yard.world.shard.shares().map(|(_, queue, had_us, holds)| (queue, had_us, holds)).collect();
    told.sort_unstable();
    assert_eq!(told, [("heavy", 30_000_000, 3), ("light", 10_000_000, 1)]);
    let words = why(&mut yard, id(0, 4 * WAITING));
    assert!(words.contains("75 % are its part (weight 3"), "{words}");
}

#[test]
fn a_weight_survives_restarts_and_is_refused_out_of_range() {
    let mut world = World::new();
    world.configure("mail", queue_field::WEIGHT, |body| body.weight = 7);
    let shown = |world: &mut World| world.queues(0)[0].1.weight;
    assert_eq!(shown(&mut world), 7);
    world.crash();
    assert_eq!(shown(&mut world), 7, "from the log");
    let (sequence, chunks) = world.snapshot(|_| ());
    world.restart(Some((sequence, &chunks)));
    assert_eq!(shown(&mut world), 7, "from a snapshot");
    world.configure("mail", queue_field::RESTARTS, |body| body.restarts_off = restart::ALL);
    assert_eq!(shown(&mut world), 7, "what is not named stays");
    for weight in [0, 1_001] {
        let mut body = body::ConfigureQueue { set: queue_field::WEIGHT, weight, ..Default::default() };
        body.queue = body::put(&mut body.bytes, b"mail");
        let message = world.call(1, 0, &body);
        assert_eq!(message.code(), Code::Invalid);
        assert!(message.sentence().contains("1 to 1000"), "{}", message.sentence());
    }
}

/// Random loads: what two queues had since both are backlogged differs, over their weights, by no more than the bound that is shown in
/// `shares.rs`, at any time; and no place idles while a task waits that could use it.
#[test]
fn what_queues_had_is_within_the_bound_at_any_time() {
    for seed in 0..24 {
        let mut random = Random::new(seed);
        let policy = u16::try_from(seed % 4).unwrap();
        let names = ["a", "b", "c", "d"];
        let count = 2 + random.index(3);
        let longest_ms = u64::from(1 + random.below(2_000));
        let mut yard = Yard::new(
            names[..count]
                .iter()
                .map(|name| {
                    let most_ms = 1 + random.next() % longest_ms;
                    let from_ms = u64::from(random.below(2)) * u64::from(random.below(20_000));
                    Load { run_ms: (1 + random.next() % most_ms, most_ms), from_ms, ..load(name, 1) }
                })
                .collect(),
        );
        (yard.random, yard.is_hasty) = (Random::new(seed), seed % 3 == 0);
        let mut weights = Vec::new();
        for name in &names[..count] {
            weights.push(1 + u16::try_from(random.below(8)).unwrap());
            yard.weight(name, *weights.last().unwrap());
            yard.world.configure(name, queue_field::POLICY, |body| body.policy = policy);
        }
        for _ in 0..=random.below(3) {
            let places = 1 + random.below(12);
            yard.worker(&names[..count], places);
        }
        check_bound(&mut yard, &weights, seed);
    }
}

fn check_bound(yard: &mut Yard, weights: &[u16], seed: u64) {
    let places: usize = yard.places.iter().sum();
    let longest_ms = yard.loads.iter().map(|load| load.run_ms.1).max().unwrap();
    // The differences between each two since both are backlogged: the least and the most.
    let mut seen: BTreeMap<(usize, usize), (f64, f64)> = BTreeMap::new();
    while yard.now_ms() < 60_000 {
        yard.step(60_000);
        let waits = yard.loads.iter().any(|load| load.waiting > 0);
        assert!(!waits || yard.running.len() == places, "seed {seed}: a place idles at {} ms", yard.now_ms());
        let over = |at: usize| {
            yard.had_ms.get(&yard.loads[at].queue).copied().unwrap_or_default() as f64 / f64::from(weights[at])
        };
        for one in 0..weights.len() {
            for other in 0..one {
                if [one, other].iter().any(|&at| yard.loads[at].waiting == 0) {
                    continue;
                }
                let difference = over(one) - over(other);
                let (least, most) = seen.entry((one, other)).or_insert((difference, difference));
                (*least, *most) = (least.min(difference), most.max(difference));
                let inverse = 1.0 / f64::from(weights[one]) + 1.0 / f64::from(weights[other]);
                let bound = places as f64 * 2.0 * longest_ms as f64 * inverse;
                assert!(
                    *most - *least <= bound,
                    "seed {seed}: {} and {} are {:.0} ms apart at {} ms, and {bound:.0} are allowed",
                    yard.loads[one].queue,
                    yard.loads[other].queue,
                    *most - *least,
                    yard.now_ms()
                );
            }
        }
    }
}

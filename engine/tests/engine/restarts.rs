//! Random lives of restartable tasks: attempts that are late, lost, doubled, ended for others. Every lease is accounted for at every step.

use std::collections::BTreeMap;

use proptest::prelude::*;
use taskmaster_engine::State;
use taskmaster_protocol::body::queue_field;
use taskmaster_protocol::{Code, TaskId};

use crate::job::{Job, job};
use crate::random::Random;
use crate::world::{Lease, World};

/// Most leases of the queue at once, and what each worker offers of a resource of which every task takes one.
const LIMIT: u32 = 7;
const DISK: u32 = 4;

struct Life {
    world: World,
    random: Random,
    /// Leases in force, and all that are over.
    live: Vec<Lease>,
    over: Vec<Lease>,
    workers: Vec<u64>,
    next_conn: u64,
    next_number: u32,
    /// Failures that counted, by task.
    failures: BTreeMap<TaskId, u32>,
    ended: BTreeMap<TaskId, State>,
}

impl Life {
    fn new(seed: u64) -> Self {
        let mut life = Self {
            world: World::new(),
            random: Random::new(seed),
            live: Vec::new(),
            over: Vec::new(),
            workers: Vec::new(),
            next_conn: 10,
            next_number: 0,
            failures: BTreeMap::new(),
            ended: BTreeMap::new(),
        };
        life.world.shard.trust_learned();
        life.world.configure("mail", queue_field::CONCURRENCY, |queue| queue.concurrency = LIMIT);
        for _ in 0..3 {
            life.connect();
        }
        for _ in 0..30 {
            life.submit_one(true);
            life.credit();
            life.world.advance_ms(100);
            life.hear();
            let lease = life.live[0].clone();
            life.complete(&lease);
        }
        life
    }

    fn connect(&mut self) -> u64 {
        self.next_conn += 1;
        self.world.worker_with(self.next_conn, &["mail"], 0, &format!("disk={DISK}"), |_| {});
        self.workers.push(self.next_conn);
        self.next_conn
    }

    fn submit_one(&mut self, is_restartable: bool) {
        let number = self.next_number;
        self.next_number += 1;
        let priority = u8::try_from(self.random.below(4)).unwrap();
        let job = Job { custom: "disk=1".to_owned(), ..job("mail", number).priority(priority) };
        self.world.submit_one(if is_restartable { job.restartable() } else { job });
        self.hear();
    }

    fn credit(&mut self) {
        let (conn, credit) = (*self.random.pick(&self.workers), 1 + self.random.below(3));
        self.world.credit(conn, credit);
        self.hear();
    }

    /// Takes what arrived: leases that ended, then new ones.
    fn hear(&mut self) {
        let revoked = self.world.revocations();
        let is_revoked = |lease: &Lease| revoked.contains(&(lease.conn, lease.id, lease.token));
        self.end(is_revoked);
        // Some began and were ended since.
        let (ended, leases) = self.world.leases().into_iter().partition::<Vec<_>, _>(is_revoked);
        self.over.extend(ended);
        for lease in leases {
            let others: Vec<&Lease> = self.live.iter().filter(|other| other.id == lease.id).collect();
            assert!(others.len() <= 1, "{lease:?} beside {others:?}");
            assert!(others.iter().all(|other| other.attempt == lease.attempt && other.conn != lease.conn));
            let known = self.live.iter().chain(&self.over).filter(|other| other.id == lease.id);
            assert!(known.map(|other| other.token).max().is_none_or(|token| token < lease.token));
            assert_eq!(lease.attempt, 1 + self.failures.get(&lease.id).copied().unwrap_or(0), "{lease:?}");
            assert!(!self.ended.contains_key(&lease.id), "{lease:?} after its end");
            self.live.push(lease);
        }
        assert!(self.live.len() <= LIMIT as usize);
        assert_eq!(self.world.shard.leased(), self.live.len() as u64, "{:?}", self.live);
    }

    fn end(&mut self, is_it: impl Fn(&Lease) -> bool) {
        let (ended, live) = self.live.drain(..).partition::<Vec<_>, _>(is_it);
        self.live = live;
        self.over.extend(ended);
    }

    fn is_doubled(&self, lease: &Lease) -> bool {
        self.live.iter().filter(|other| other.id == lease.id).count() == 2
    }

    fn complete(&mut self, lease: &Lease) {
        assert_eq!(self.world.complete(lease, b""), Code::Ok);
        assert_eq!(self.ended.insert(lease.id, State::Succeeded), None);
        self.end(|other| other.token == lease.token);
        self.hear();
        assert!(!self.live.iter().any(|other| other.id == lease.id), "the other one is told");
    }

    fn fail(&mut self, lease: &Lease) {
        let is_doubled = self.is_doubled(lease);
        let is_final = self.random.once_in(6);
        let code = self.world.fail_with(lease, "broken", "", b"", is_final);
        if is_doubled && !is_final {
            assert_eq!(code, Code::StaleLease);
        } else {
            assert_eq!(code, Code::Ok);
            let failures = self.failures.entry(lease.id).or_default();
            *failures += 1;
            if is_final || *failures == 3 {
                self.ended.insert(lease.id, State::Failed);
            }
        }
        self.end(|other| other.token == lease.token);
        self.hear();
        assert_eq!(
            self.live.iter().any(|other| other.id == lease.id && other.attempt == lease.attempt),
            is_doubled && !is_final
        );
    }

    /// A worker loses its connection and comes back: of two attempts the other one has gone on alone.
    fn reconnect(&mut self) {
        let at = self.random.index(self.workers.len());
        let conn = self.workers.swap_remove(at);
        let doubled: Vec<u64> = self
            .live
            .iter()
            .filter(|lease| lease.conn == conn && self.is_doubled(lease))
            .map(|lease| lease.token)
            .collect();
        self.world.disconnect(conn);
        self.end(|lease| doubled.contains(&lease.token));
        self.hear();
        let back = self.connect();
        for lease in self.live.iter_mut().filter(|lease| lease.conn == conn) {
            assert_eq!(self.world.extend(back, lease), Code::Ok);
            lease.conn = back;
        }
        self.hear();
    }

    fn advance(&mut self) {
        for lease in self.live.clone() {
            assert_eq!(self.world.extend(lease.conn, &lease), Code::Ok);
        }
        let ms = *self.random.pick(&[1, 30, 150, 400, 1_500, 3_000]);
        self.world.advance_ms(ms);
        self.hear();
    }

    fn step(&mut self) {
        match self.random.below(20) {
            0..=3 => {
                let is_restartable = !self.random.once_in(5);
                self.submit_one(is_restartable);
            }
            4..=8 => self.credit(),
            9..=13 => self.advance(),
            14 => self.reconnect(),
            15 if !self.over.is_empty() => {
                let lease = self.random.pick(&self.over).clone();
                assert!(matches!(self.world.complete(&lease, b"old"), Code::StaleLease | Code::AlreadyFinal));
                self.hear();
            }
            16..=19 if !self.live.is_empty() => {
                let lease = self.random.pick(&self.live).clone();
                match self.random.below(6) {
                    0 => self.fail(&lease),
                    1 => {
                        assert_eq!(self.world.release(&lease), Code::Ok);
                        self.end(|other| other.token == lease.token);
                        self.hear();
                    }
                    _ => self.complete(&lease),
                }
            }
            _ => {}
        }
    }

    /// All that is left ends, and every place is there again.
    fn finish(&mut self) {
        while self.ended.len() < self.next_number as usize {
            for conn in self.workers.clone() {
                self.world.credit(conn, 1);
                self.hear();
            }
            for lease in self.live.clone() {
                if self.live.contains(&lease) {
                    self.complete(&lease);
                }
            }
        }
        for (id, state) in self.ended.clone() {
            assert_eq!(self.world.state(id), state);
        }
        self.workers.clone().iter().for_each(|&conn| self.world.credit(conn, DISK));
        (0..2 * LIMIT).for_each(|_| self.submit_one(false));
        assert_eq!(self.live.len(), LIMIT as usize);
        self.world.configure("mail", queue_field::CONCURRENCY, |queue| queue.concurrency = 0);
        self.world.leases().into_iter().for_each(|lease| self.live.push(lease));
        assert_eq!(self.live.len(), self.workers.len() * DISK as usize);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_lease_is_accounted_for_and_every_task_ends_once(seed in any::<u64>()) {
        let mut life = Life::new(seed);
        (0..250).for_each(|_| life.step());
        life.finish();
    }
}

#[test]
fn random_lives_have_doubled_attempts_and_ended_ones() {
    let (mut second, mut won, mut preempted, mut given_up) = (0, 0, 0, 0);
    for seed in 0..20 {
        let mut life = Life::new(seed);
        (0..250).for_each(|_| life.step());
        let stats = life.world.shard.stats();
        (second, won) = (second + stats.second_attempts, won + stats.second_attempts_won);
        preempted += stats.preempted_attempts;
        given_up += stats.given_up_attempts;
    }
    let ended = format!("{preempted} ended for others, {given_up} given up");
    assert!(second > 40 && won > 10 && preempted > 40 && given_up > 40, "{second} begun, {won} won, {ended}");
}

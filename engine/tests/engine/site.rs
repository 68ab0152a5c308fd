//! Workers of counted resources whose tasks run for as long as their kinds say, in virtual time.

use std::collections::HashMap;

use taskmaster_protocol::{Code, TaskId};

use crate::job::{Job, job};
use crate::world::{Lease, World};

/// Step of the simulation, in milliseconds.
pub(crate) const STEP_MS: u64 = 5;

/// A task of a queue that runs for so many milliseconds on so many processors.
pub(crate) fn needing(queue: &str, number: u32, cpus: u32, run_ms: u64) -> Job {
    let job = job(queue, number).kind(&format!("work-{run_ms}")).lease_ms(3_600_000).retention_ms(1_000);
    job.with_spec(|spec| spec.cpu_milli = 1_000 * cpus)
}

fn run_us(lease: &Lease) -> u64 {
    let (_, run_ms) = lease.kind.split_once('-').expect("kinds say how long they run");
    run_ms.parse::<u64>().unwrap() * 1_000
}

pub(crate) struct Site {
    pub(crate) world: World,
    /// What runs, and when it ends.
    pub(crate) running: Vec<(u64, Lease)>,
    /// Processors of tasks that were submitted here, and when each started.
    cpus: HashMap<TaskId, u64>,
    pub(crate) started_us: HashMap<TaskId, u64>,
    /// Time of processors that was used, in microseconds, and tasks that ended.
    pub(crate) used_us: u64,
    pub(crate) ended: u64,
    number: u32,
}

/// The first worker's connection.
pub(crate) const FIRST: u64 = 10;

impl Site {
    /// With workers of so many processors each, which run as many tasks at once, for these queues.
    pub(crate) fn new(workers: &[u32], queues: &[&str]) -> Self {
        let mut site = Self {
            world: World::new(),
            running: Vec::new(),
            cpus: HashMap::new(),
            started_us: HashMap::new(),
            used_us: 0,
            ended: 0,
            number: 0,
        };
        for (conn, &cpus) in (FIRST..).zip(workers) {
            site.world.worker_with(conn, queues, cpus, "", |body| body.cpu_milli = 1_000 * cpus);
        }
        site
    }

    /// Submits one more task.
    pub(crate) fn submit(&mut self, queue: &str, cpus: u32, run_ms: u64) -> TaskId {
        self.submit_with(queue, cpus, run_ms, |job| job)
    }

    pub(crate) fn submit_with(
        &mut self,
        queue: &str,
        cpus: u32,
        run_ms: u64,
        change: impl FnOnce(Job) -> Job,
    ) -> TaskId {
        self.number += 1;
        let id = self.world.submit_one(change(needing(queue, self.number, cpus, run_ms)));
        self.cpus.insert(id, cpus.into());
        self.begin();
        id
    }

    /// Submits tasks until so many of the queue wait, each made by `next`.
    pub(crate) fn keep_waiting(&mut self, queue: &str, count: u64, mut next: impl FnMut(&mut Self)) {
        let ready = |site: &mut Self| {
            let queues = site.world.queues(0);
            queues.iter().find(|(name, _)| name == queue).map_or(0, |(_, info)| info.counts[2])
        };
        for _ in ready(self)..count {
            next(self);
        }
    }

    /// Begins what was assigned.
    pub(crate) fn begin(&mut self) {
        for lease in self.world.leases() {
            let now_us = self.world.now_us;
            self.started_us.entry(lease.id).or_insert(now_us);
            self.running.push((now_us + run_us(&lease), lease));
        }
    }

    /// A step of time.
    pub(crate) fn step(&mut self) {
        let cpus: u64 = self.running.iter().map(|(_, lease)| self.cpus[&lease.id]).sum();
        self.used_us += cpus * STEP_MS * 1_000;
        self.world.advance_ms(STEP_MS);
        let now_us = self.world.now_us;
        let (over, left): (Vec<_>, Vec<_>) = self.running.drain(..).partition(|(end_us, _)| *end_us <= now_us);
        self.running = left;
        for (_, lease) in over {
            assert_eq!(self.world.complete(&lease, b""), Code::Ok);
            self.world.credit(lease.conn, 1);
            self.ended += 1;
        }
        self.begin();
    }

    pub(crate) fn steps(&mut self, ms: u64) {
        (0..ms / STEP_MS).for_each(|_| self.step());
    }

    /// How long a task waited that became ready then, in milliseconds; `None` if it has not started.
    pub(crate) fn waited_ms(&self, id: TaskId, since_us: u64) -> Option<u64> {
        self.started_us.get(&id).map(|started_us| (started_us - since_us) / 1_000)
    }

    /// Processors of a worker that run something.
    pub(crate) fn cpus_of(&self, conn: u64) -> u64 {
        self.running.iter().filter(|(_, lease)| lease.conn == conn).map(|(_, lease)| self.cpus[&lease.id]).sum()
    }

    /// Workers that are kept for a task now.
    pub(crate) fn reserved(&self) -> u64 {
        self.world.shard.stats().reserved
    }
}

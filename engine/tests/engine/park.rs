//! Workers whose tasks slow each other down, in virtual time: they say what they use as real ones do.

use std::collections::BTreeMap;
use std::time::Duration;

use taskmaster_protocol::Code;
use taskmaster_protocol::body::{Usage, UsageBeside, UsageKind, UsageRow, put, usage_known};

use crate::world::{Lease, World};

/// Step of the simulation, in milliseconds.
pub(crate) const STEP_MS: u64 = 5;

/// The speed of a task beside another one, and how much it uses of the processors.
pub(crate) type Truth = fn(&str, &str) -> f64;

/// The most memory that a task has: what its kind says behind a dash, in MiB, or 8 MiB.
fn peak_bytes(kind: &str) -> u64 {
    kind.split_once('-').map_or(8, |(_, mib)| mib.parse().unwrap()) << 20
}

/// A running task.
pub(crate) struct Running {
    pub(crate) lease: Lease,
    work_ms: f64,
    ran_ms: u64,
    /// Milliseconds that others ran beside it, by kind.
    beside: BTreeMap<String, u64>,
}

/// A worker.
pub(crate) struct Machine {
    pub(crate) conn: u64,
    pub(crate) running: Vec<Running>,
    seen: u32,
    /// It says what it measures.
    pub(crate) tells: bool,
}

/// Workers and what their tasks do.
pub(crate) struct Park {
    pub(crate) world: World,
    pub(crate) machines: Vec<Machine>,
    truth: Truth,
    pub(crate) work_ms: fn(&str) -> f64,
    /// It knows how long tasks waited for a processor.
    pub(crate) tells_stalls: bool,
}

impl Park {
    pub(crate) fn new(places: &[u32], truth: Truth, work_ms: fn(&str) -> f64) -> Self {
        let mut world = World::new();
        let mut machines = Vec::new();
        for (conn, &places) in (10..).zip(places) {
            world.worker(conn, &["q"], places);
            machines.push(Machine { conn, running: Vec::new(), seen: 0, tells: true });
        }
        Self { world, machines, truth, work_ms, tells_stalls: true }
    }

    /// Begins what was assigned, and says so.
    pub(crate) fn begin(&mut self) {
        for lease in self.world.leases() {
            let machine = self.machines.iter_mut().find(|machine| machine.conn == lease.conn).unwrap();
            machine.seen += 1;
            let work_ms = (self.work_ms)(&lease.kind);
            machine.running.push(Running { lease, work_ms, ran_ms: 0, beside: BTreeMap::new() });
            let conn = machine.conn;
            self.tell(conn, Vec::new());
        }
    }

    /// Says what runs on a machine, and what these used that ended.
    fn tell(&mut self, conn: u64, ended: Vec<Running>) {
        let machine = self.machines.iter().find(|machine| machine.conn == conn).unwrap();
        if !machine.tells {
            return;
        }
        let mut body = Usage { cpu_milli: 2_000, memory_bytes: 1 << 34, seen: machine.seen, ..Usage::default() };
        let mut names: Vec<String> = Vec::new();
        let mut kind = |name: &str, body: &mut Usage| {
            names.iter().position(|known| known == name).unwrap_or_else(|| {
                let (queue, kind) = (put(&mut body.bytes, b"q"), put(&mut body.bytes, name.as_bytes()));
                body.kinds.push(UsageKind { queue, kind, ..UsageKind::default() });
                names.push(name.to_owned());
                names.len() - 1
            })
        };
        for running in &machine.running {
            let at = kind(&running.lease.kind, &mut body);
            body.kinds[at].running += 1;
        }
        for (row, ended) in (0..).zip(ended) {
            let run_us = ended.ran_ms.max(1) * 1_000;
            let work = Duration::from_secs_f64((self.work_ms)(&ended.lease.kind) / 1_000.0);
            let worked_us = u64::try_from(work.as_micros()).unwrap();
            body.rows.push(UsageRow {
                id: ended.lease.id,
                token: ended.lease.token,
                locator: ended.lease.locator,
                run_us,
                cpu_us: worked_us.min(run_us),
                cpu_stalled_us: run_us.saturating_sub(worked_us),
                memory_peak_bytes: peak_bytes(&ended.lease.kind),
                known: usage_known::CPU | usage_known::MEMORY | if self.tells_stalls { usage_known::STALLS } else { 0 },
                is_whole: 1,
                ..UsageRow::default()
            });
            for (name, ms) in &ended.beside {
                let kind = u32::try_from(kind(name, &mut body)).unwrap();
                let permille = u32::try_from(ms * 1_000 / ended.ran_ms.max(1)).unwrap();
                body.beside.push(UsageBeside { row, kind, permille });
            }
        }
        self.world.send(conn, 0, &body);
    }

    /// A step of time; tasks that ended, as their workers had them.
    pub(crate) fn step(&mut self) -> Vec<Lease> {
        self.world.advance_ms(STEP_MS);
        let mut all = Vec::new();
        for at in 0..self.machines.len() {
            let kinds: Vec<String> = self.machines[at].running.iter().map(|of| of.lease.kind.clone()).collect();
            for (own, running) in self.machines[at].running.iter_mut().enumerate() {
                let others = || kinds.iter().enumerate().filter(|(other, _)| *other != own).map(|(_, kind)| kind);
                let speed: f64 = others().map(|kind| (self.truth)(&running.lease.kind, kind)).product();
                running.work_ms -= speed * STEP_MS as f64;
                running.ran_ms += STEP_MS;
                others().for_each(|kind| *running.beside.entry(kind.clone()).or_default() += STEP_MS);
            }
            let (over, left): (Vec<Running>, Vec<Running>) =
                self.machines[at].running.drain(..).partition(|running| running.work_ms <= 0.0);
            self.machines[at].running = left;
            if over.is_empty() {
                continue;
            }
            let (conn, leases) = (self.machines[at].conn, over.iter().map(|of| of.lease.clone()).collect::<Vec<_>>());
            self.tell(conn, over);
            for lease in &leases {
                assert_eq!(self.world.complete(lease, b""), Code::Ok);
                self.world.credit(conn, 1);
            }
            all.extend(leases);
        }
        self.begin();
        all
    }

    /// Steps until nothing runs.
    pub(crate) fn finish(&mut self) {
        for _ in 0..1_000_000 {
            if self.machines.iter().all(|machine| machine.running.is_empty()) {
                return;
            }
            self.step();
        }
        panic!("tasks do not end");
    }

    /// Kinds that run on a machine.
    pub(crate) fn kinds(&self, machine: usize) -> Vec<&str> {
        let mut kinds: Vec<&str> = self.machines[machine].running.iter().map(|of| of.lease.kind.as_str()).collect();
        kinds.sort_unstable();
        kinds
    }
}

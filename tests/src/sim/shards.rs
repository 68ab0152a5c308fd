//! Several shards of one node that share the limits of a queue: real engines, and a mesh that is late.
//!
//! Everything is durable at once here; what is simulated is the order and the delay of messages about permits, workers that come,
//! go, finish and forget, and limits that change. Rules: all shards together never have more leases than the limit, and
//! every task ends once workers behave.

use std::collections::BTreeMap;
use std::sync::Arc;

use taskmaster_engine::cluster::{ClusterMap, NodeInfo, SOFTWARE_VERSION};
use taskmaster_engine::{Config, ConnId, Effects, Input, PeerAddr, Shard};
use taskmaster_protocol::body::{
    self, ArchivedAssign, Body, Complete, CompleteRow, ConfigureQueue, Credit, Fail, FailRow, LeaseRow, Leases, Spec,
    Submit, Subscribe, TaskRow, queue_field,
};
use taskmaster_protocol::frame::Header;
use taskmaster_protocol::{FrameBuffer, NodeId, Operation, PartitionId, TaskId, access};

use super::dice::Dice;
use super::network::take_frames;
use super::node::hurried;
use super::world::START_US;
use super::{Failure, Options};

const PARTITIONS: u16 = 8;
const WORKERS: u64 = 3;
const CALM_FROM_US: u64 = 3_000_000;
const END_US: u64 = 600_000_000;

enum Event {
    Messages {
        from: PeerAddr,
        to: u16,
        bytes: FrameBuffer,
    },
    Map {
        to: u16,
        map: Arc<ClusterMap>,
    },
    Submit,
    /// A worker of a shard ends a lease in some way.
    End {
        shard: usize,
        conn: u64,
        row: LeaseRow,
        fate: u64,
    },
    Leave {
        shard: usize,
        worker: u64,
    },
    Tick {
        shard: usize,
    },
    Limit(u32),
}

struct Shards {
    dice: Dice,
    now_us: u64,
    events: BTreeMap<(u64, u64), Event>,
    last_event: u64,
    shards: Vec<(Shard, Effects)>,
    /// When the latest note from one shard to another arrives: notes keep their order.
    arrives_us: BTreeMap<(u16, u16), u64>,
    /// When each shard is ticked next.
    tick_us: Vec<u64>,
    /// Present connection of each worker of each shard.
    conns: BTreeMap<(usize, u64), u64>,
    last_conn: u64,
    limit: u32,
    /// The limit changes during the run: then only progress is checked.
    changes: bool,
    submitted: u64,
    left: u32,
}

/// Runs one seed.
///
/// # Errors
/// The first rule that did not hold.
pub fn run(seed: u64) -> Result<u64, Failure> {
    let mut dice = Dice::new(seed);
    let count = u16::try_from(dice.range(2, 4)).expect("few");
    let node = NodeInfo {
        id: NodeId(1),
        name: "n".to_owned(),
        zone: String::new(),
        host: "n".to_owned(),
        peer_port: 7_000,
        client_ports: (0..count).map(|shard| 7_400 + shard).collect(),
        version: SOFTWARE_VERSION,
    };
    let shard = |number: u16| {
        let config = Config {
            node: node.clone(),
            number,
            partitions: PARTITIONS,
            found: 1,
            replication: 1,
            limits: hurried(),
            seed,
            memory_bytes_max: 1 << 30,
            log_bytes_kept: 1 << 20,
            transfer_bytes_per_s: 1 << 30,
            kept_max: u32::MAX,
            retention_ms: 600_000,
            auto_create_queues: true,
            checkpoints: None,
            demote_above_bytes: None,
            events: None,
            logs_starts: true,
            memo_bytes_max: None,
        };
        let mut shard = Shard::new(config, START_US);
        shard.start(START_US);
        (shard, Effects::default())
    };
    let mut world = Shards {
        now_us: 0,
        events: BTreeMap::new(),
        last_event: 0,
        shards: (0..count).map(shard).collect(),
        arrives_us: BTreeMap::new(),
        tick_us: vec![u64::MAX; usize::from(count)],
        conns: BTreeMap::new(),
        last_conn: 0,
        limit: dice.small(1, 6),
        changes: dice.chance(30),
        submitted: 0,
        left: dice.small(5, 40),
        dice,
    };
    world.play().map_err(|sentence| Failure { options: Options::of_seed(seed), at_us: world.now_us, sentence })
}

impl Shards {
    fn after(&mut self, delay_us: u64, event: Event) {
        self.last_event += 1;
        self.events.insert((self.now_us + delay_us, self.last_event), event);
    }

    fn play(&mut self) -> Result<u64, String> {
        for shard in 0..self.shards.len() {
            self.input(shard, Input::Tick)?;
        }
        let limit = self.limit;
        self.set_limit(limit)?;
        for shard in 0..self.shards.len() {
            for worker in 0..WORKERS {
                self.subscribe(shard, worker)?;
                let leave_us = self.dice.below(CALM_FROM_US);
                self.after(leave_us, Event::Leave { shard, worker });
            }
        }
        if self.changes {
            for _ in 0..self.dice.range(1, 4) {
                let (at_us, limit) = (self.dice.below(CALM_FROM_US), self.dice.small(0, 6));
                self.after(at_us, Event::Limit(limit));
            }
        }
        self.after(1_000, Event::Submit);
        while let Some(((at_us, _), event)) = self.events.pop_first() {
            self.now_us = at_us;
            self.happen(event)?;
            let looks = self.left == 0 && at_us > CALM_FROM_US && self.last_event.is_multiple_of(8);
            if !looks && at_us <= END_US {
                continue;
            }
            let unfinished: u64 = self.shards.iter().map(|(shard, _)| shard.stats().unfinished).sum();
            if unfinished == 0 {
                return Ok(self.submitted);
            }
            if at_us > END_US {
                return Err(self.stuck(unfinished));
            }
        }
        let unfinished = self.shards.iter().map(|(shard, _)| shard.stats().unfinished).sum();
        if unfinished == 0 { Ok(self.submitted) } else { Err(self.stuck(unfinished)) }
    }

    fn stuck(&self, unfinished: u64) -> String {
        let leased: Vec<u64> = self.shards.iter().map(|(shard, _)| shard.leased()).collect();
        format!("{unfinished} tasks never end under a limit of {}; leases by shard: {leased:?}", self.limit)
    }

    fn happen(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Messages { from, to, bytes } => self.input(usize::from(to), Input::Peer { from, bytes: &bytes }),
            Event::Map { to, map } => self.input(usize::from(to), Input::Map(map)),
            Event::Submit => self.submit(),
            Event::End { shard, conn, row, fate } => self.end(shard, conn, row, fate),
            Event::Leave { shard, worker } => {
                if let Some(conn) = self.conns.remove(&(shard, worker)) {
                    self.input(shard, Input::Disconnected { conn: ConnId(conn) })?;
                }
                self.subscribe(shard, worker)?;
                let pause_us = self.dice.range(50_000, 2_000_000);
                if self.now_us + pause_us < CALM_FROM_US {
                    self.after(pause_us, Event::Leave { shard, worker });
                }
                Ok(())
            }
            Event::Tick { shard } => {
                // Only the earliest one counts.
                if self.tick_us[shard] > self.now_us {
                    return Ok(());
                }
                self.tick_us[shard] = u64::MAX;
                self.input(shard, Input::Tick)
            }
            Event::Limit(limit) => self.set_limit(limit),
        }
    }

    fn frame(
        &mut self,
        shard: usize,
        conn: u64,
        operation: Operation,
        partition: Option<PartitionId>,
        body: &impl Body,
    ) -> Result<(), String> {
        let mut bytes = FrameBuffer::new();
        body.append_to(&mut bytes);
        let header = Header::request(operation, 1, partition);
        self.input(shard, Input::Frame { conn: ConnId(conn), header, body: &bytes })
    }

    /// One input, durable at once, with all that comes of it.
    fn input(&mut self, index: usize, input: Input<'_>) -> Result<(), String> {
        let clock_us = START_US + self.now_us;
        let (shard, effects) = &mut self.shards[index];
        shard.handle(input, clock_us, effects);
        loop {
            let mut last = None;
            shard.end_turn(clock_us, effects, |sequence, _, _| last = Some(sequence));
            let Some(sequence) = last else { break };
            shard.handle(Input::Durable { sequence }, clock_us, effects);
        }
        let mut assigned = Vec::new();
        effects.drain(|conn, buffer| {
            let mut frames = FrameBuffer::new();
            frames.extend_from_slice(buffer);
            take_frames(&mut frames, |header, body| {
                if header.operation == Operation::Assign.number() {
                    let assign = access::<ArchivedAssign>(body).expect("the engine's own frame");
                    assigned.extend(assign.rows.iter().map(|row| {
                        let (token, locator, attempt) =
                            (row.token.to_native(), row.locator.to_native(), row.attempt.to_native());
                        (conn.0, LeaseRow { id: TaskId::from(&row.id), token, locator, attempt })
                    }));
                }
            })
            .expect("the engine sends whole frames");
        });
        let mut messages = Vec::new();
        effects.drain_peers(|to, buffer| messages.push((to, std::mem::take(buffer))));
        let map = effects.take_map();
        let wake_us = shard.next_wake_us();
        self.deliver(u16::try_from(index).expect("few"), messages, map);
        for (conn, row) in assigned {
            let calm = self.now_us >= CALM_FROM_US;
            let fate = if calm { 0 } else { self.dice.below(100) };
            let delay_us = self.dice.range(10, 60_000);
            self.after(delay_us, Event::End { shard: index, conn, row, fate });
        }
        if let Some(wake_us) = wake_us {
            let at_us = (wake_us.saturating_sub(START_US)).max(self.now_us) + 1;
            if at_us < self.tick_us[index] {
                self.tick_us[index] = at_us;
                self.after(at_us - self.now_us, Event::Tick { shard: index });
            }
        }
        self.check()
    }

    /// What one shard has for the others goes over the mesh, in order.
    fn deliver(&mut self, own: u16, messages: Vec<(PeerAddr, FrameBuffer)>, map: Option<Arc<ClusterMap>>) {
        for (to, bytes) in messages {
            let delay_us = self.mesh_delay_us(own, to.shard);
            let from = PeerAddr { node: to.node, shard: own };
            self.after(delay_us, Event::Messages { from, to: to.shard, bytes });
        }
        let Some(map) = map else { return };
        for to in (0u16..).take(self.shards.len()).filter(|to| *to != own) {
            let delay_us = self.mesh_delay_us(own, to);
            self.after(delay_us, Event::Map { to, map: Arc::clone(&map) });
        }
    }

    fn mesh_delay_us(&mut self, from: u16, to: u16) -> u64 {
        let latency_us = if self.dice.chance(80) { self.dice.range(1, 100) } else { self.dice.range(100, 50_000) };
        let arrives_us = self.arrives_us.entry((from, to)).or_default();
        *arrives_us = (*arrives_us).max(self.now_us + latency_us);
        *arrives_us - self.now_us
    }

    fn check(&self) -> Result<(), String> {
        let leased: u64 = self.shards.iter().map(|(shard, _)| shard.leased()).sum();
        if leased > u64::from(self.limit) && !self.changes {
            return Err(format!("{leased} leases under a limit of {} over {} shards", self.limit, self.shards.len()));
        }
        Ok(())
    }

    fn owner(&self, partition: PartitionId) -> usize {
        usize::from(partition.0) % self.shards.len()
    }

    fn set_limit(&mut self, limit: u32) -> Result<(), String> {
        self.limit = limit;
        for partition in (0..PARTITIONS).map(PartitionId) {
            let set = queue_field::CONCURRENCY;
            let mut configure = ConfigureQueue { set, concurrency: limit, ..ConfigureQueue::default() };
            configure.queue = body::put(&mut configure.bytes, b"shared");
            self.frame(self.owner(partition), 0, Operation::ConfigureQueue, Some(partition), &configure)?;
        }
        Ok(())
    }

    fn subscribe(&mut self, shard: usize, worker: u64) -> Result<(), String> {
        self.last_conn += 1;
        let conn = self.last_conn;
        self.conns.insert((shard, worker), conn);
        let mut subscribe = Subscribe { credit: self.dice.small(1, 8), ..Subscribe::default() };
        subscribe.queues.push(body::put(&mut subscribe.bytes, b"shared"));
        self.frame(shard, conn, Operation::Subscribe, None, &subscribe)
    }

    fn submit(&mut self) -> Result<(), String> {
        if self.left == 0 {
            return Ok(());
        }
        self.left -= 1;
        let partition = PartitionId(u16::try_from(self.dice.below(PARTITIONS.into())).expect("few"));
        let mut submit = Submit::default();
        let lease_ms = self.dice.small(100, 2_000);
        submit.specs.push(Spec {
            queue: body::put(&mut submit.bytes, b"shared"),
            kind: body::put(&mut submit.bytes, b"work"),
            lease_ms,
            attempts_max: 3,
            priority: 2,
            ..Spec::default()
        });
        for _ in 0..self.dice.range(1, 12) {
            self.submitted += 1;
            let sequence = u32::try_from(self.submitted).expect("few");
            let id = TaskId::new((START_US + self.now_us) / 1_000, partition, 1, sequence);
            submit.tasks.push(TaskRow { id, ..TaskRow::default() });
        }
        let pause_us = self.dice.range(100, 100_000);
        self.after(pause_us, Event::Submit);
        self.frame(self.owner(partition), 0, Operation::Submit, Some(partition), &submit)
    }

    fn end(&mut self, shard: usize, conn: u64, row: LeaseRow, fate: u64) -> Result<(), String> {
        let partition = Some(row.id.partition());
        let (id, token, locator, attempt) = (row.id, row.token, row.locator, row.attempt);
        match fate {
            0..=69 => {
                let row = CompleteRow { id, token, locator, attempt, ..CompleteRow::default() };
                self.frame(
                    shard,
                    conn,
                    Operation::Complete,
                    partition,
                    &Complete { rows: vec![row], bytes: Vec::new() },
                )?;
            }
            70..=79 => {
                let row = FailRow { id, token, locator, attempt, ..FailRow::default() };
                self.frame(shard, conn, Operation::Fail, partition, &Fail { rows: vec![row], bytes: Vec::new() })?;
            }
            80..=89 => self.frame(shard, conn, Operation::Release, partition, &Leases { rows: vec![row] })?,
            // Forgotten: the lease runs out.
            _ => {}
        }
        if self.conns.values().any(|present| *present == conn) {
            return self.frame(shard, conn, Operation::Credit, None, &Credit { credit: 1 });
        }
        Ok(())
    }
}

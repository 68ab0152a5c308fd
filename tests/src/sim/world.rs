//! The world: virtual time, one node on a disk that forgets, a network, producers and workers, and faults.
//!
//! Everything that happens is an event in one queue, ordered by time and then by the order in which it was made; all
//! chance comes from one seed. So a seed is a run, and its trace hash names it.

use std::collections::BTreeMap;

use taskmaster_engine::{ConnId, Input};
use taskmaster_protocol::{FrameBuffer, TaskId};

use super::actor::{Actor, Cx};
use super::dice::{Dice, mix};
use super::disk::Disk;
use super::network::{Link, take_frames};
use super::node::{Node, PARTITIONS};
use super::oracle::{Oracle, Sent};
use super::workers::Worker;
use super::workload::{LIMITED, Producer};
use super::{Defect, Failure, Report, inspect};

/// The node's clock at virtual time zero, in microseconds since 1970.
pub(crate) const START_US: u64 = 1_700_000_000_000_000;
/// Longest virtual time after the faults, in microseconds.
const CALM_US_MAX: u64 = 3_600_000_000;
/// Longest pause between two wakes of an actor.
const WAKE_US_MAX: u64 = 1_000_000;
const DRAIN_US_MAX: u64 = 2_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    PowerLoss,
    Shutdown,
    ClockJump,
    LinkLoss,
    NodeDropsLink,
    DiskStall,
    DiskFull,
    DiskFree,
}

enum Event {
    ToNode { link: u64, bytes: Vec<u8> },
    ToPeer { link: u64, bytes: Vec<u8> },
    NodeHearsLoss { link: u64 },
    PeerHearsLoss { link: u64 },
    Turn { life: u32 },
    Written { life: u32, seq: u64 },
    Segment { life: u32 },
    Tick { life: u32 },
    Slice { life: u32 },
    SnapshotDone { life: u32 },
    Drained { life: u32, until_us: u64 },
    Wake { actor: usize, at_us: u64 },
    Fault(Fault),
    Restart,
}

/// One simulation.
pub(crate) struct World {
    seed: u64,
    dice: Dice,
    now_us: u64,
    skew_us: i64,
    events: BTreeMap<(u64, u64), Event>,
    last_event: u64,
    trace: u64,
    disk: Disk,
    node: Option<Node>,
    life: u32,
    terms: u32,
    turn_due: bool,
    tick_us: u64,
    segment_due: bool,
    closing: bool,
    entries_since_snapshot: u64,
    snapshot_every: u64,
    disk_slow_until_us: u64,
    links: BTreeMap<u64, Link>,
    last_link: u64,
    actors: Vec<Box<dyn Actor>>,
    link_of: Vec<Option<u64>>,
    wake_of: Vec<u64>,
    /// Frames that leave with the next turn.
    outgoing: BTreeMap<u64, Vec<u8>>,
    oracle: Oracle,
    calm_from_us: u64,
    defect: Option<Defect>,
    report: Report,
}

impl World {
    pub(crate) fn new(seed: u64, defect: Option<Defect>) -> Self {
        let mut dice = Dice::new(seed);
        let mut actors: Vec<Box<dyn Actor>> = Vec::new();
        for number in 0..dice.range(1, 3) {
            actors.push(Box::new(Producer::new(number, dice.small(3, 12))));
        }
        for number in 0..dice.range(1, 4) {
            actors.push(Box::new(Worker::new(number, dice.small(1, 24))));
        }
        let count = actors.len();
        let calm_from_us = dice.range(1_500_000, 8_000_000);
        let snapshot_every = dice.range(5, 120);
        Self {
            seed,
            dice,
            now_us: 0,
            skew_us: 0,
            events: BTreeMap::new(),
            last_event: 0,
            trace: seed,
            disk: Disk::default(),
            node: None,
            life: 0,
            terms: 1,
            turn_due: false,
            tick_us: u64::MAX,
            segment_due: false,
            closing: false,
            entries_since_snapshot: 0,
            snapshot_every,
            disk_slow_until_us: 0,
            links: BTreeMap::new(),
            last_link: 0,
            actors,
            link_of: vec![None; count],
            wake_of: vec![u64::MAX; count],
            outgoing: BTreeMap::new(),
            oracle: Oracle::new(),
            calm_from_us,
            defect,
            report: Report { seed, ..Report::default() },
        }
    }

    fn at(&mut self, at_us: u64, event: Event) {
        self.last_event += 1;
        self.events.insert((at_us.max(self.now_us), self.last_event), event);
    }

    fn after(&mut self, delay_us: u64, event: Event) {
        self.at(self.now_us + delay_us, event);
    }

    fn is_calm(&self) -> bool {
        self.now_us >= self.calm_from_us
    }

    /// The node's clock.
    fn clock_us(&mut self) -> u64 {
        let now_us = (START_US + self.now_us).saturating_add_signed(self.skew_us);
        self.oracle.clock(now_us);
        now_us
    }

    fn note(&mut self, kind: u64, value: u64) {
        self.trace = mix(self.trace ^ mix(self.now_us ^ (kind << 56)) ^ value);
    }

    /// Runs to the end.
    pub(crate) fn run(mut self) -> Result<Report, Failure> {
        let outcome = self.play();
        self.report.trace = self.trace;
        self.report.virtual_us = self.now_us;
        self.report.tasks = self.oracle.len() as u64;
        self.report.assigned = self.oracle.assigned;
        self.report.submits_acknowledged = self.oracle.submits_acknowledged;
        self.report.completions_acknowledged = self.oracle.completions_acknowledged;
        outcome.map(|()| self.report).map_err(|sentence| Failure { seed: self.seed, at_us: self.now_us, sentence })
    }

    fn play(&mut self) -> Result<(), String> {
        self.plan_faults();
        self.restart()?;
        for actor in 0..self.actors.len() {
            self.wake_actor_at(actor, 0);
        }
        while let Some(((at_us, _), event)) = self.events.pop_first() {
            self.now_us = at_us;
            self.report.events += 1;
            self.happen(event)?;
            if self.is_calm() && self.report.events.is_multiple_of(64) && self.is_over()? {
                return self.verify_end();
            }
            if self.now_us > self.calm_from_us + CALM_US_MAX {
                return Err(self.stuck());
            }
        }
        Err("nothing happens any more".to_owned())
    }

    fn plan_faults(&mut self) {
        let faults = [
            (Fault::PowerLoss, 4),
            (Fault::Shutdown, 1),
            (Fault::ClockJump, 2),
            (Fault::LinkLoss, 8),
            (Fault::NodeDropsLink, 5),
            (Fault::DiskStall, 2),
            (Fault::DiskFull, 2),
        ];
        for (fault, most) in faults {
            for _ in 0..self.dice.range(0, most) {
                let at_us = self.dice.below(self.calm_from_us);
                self.at(at_us, Event::Fault(fault));
            }
        }
        let calm_from_us = self.calm_from_us;
        self.at(calm_from_us, Event::Fault(Fault::DiskFree));
    }

    fn happen(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::ToNode { link, bytes } => self.arrive_at_node(link, &bytes)?,
            Event::ToPeer { link, bytes } => self.arrive_at_peer(link, &bytes)?,
            Event::NodeHearsLoss { link } => self.node_hears_loss(link)?,
            Event::PeerHearsLoss { link } => self.peer_hears_loss(link),
            Event::Wake { actor, at_us } => {
                if self.wake_of[actor] == at_us {
                    self.wake_of[actor] = u64::MAX;
                    self.call(actor, |actor, cx| actor.wake(cx));
                }
            }
            Event::Fault(fault) => self.fault(fault)?,
            Event::Restart => {
                if self.node.is_none() {
                    self.restart()?;
                }
            }
            Event::Turn { life } if life == self.life => self.turn()?,
            Event::Written { life, seq } if life == self.life => {
                self.note(2, seq);
                let now_us = self.clock_us();
                self.disk.complete(seq);
                if let Some(node) = &mut self.node {
                    node.written(seq, now_us);
                }
                self.observe()?;
                self.turn_soon();
            }
            Event::Segment { life } if life == self.life => self.prepare_segment(),
            Event::Tick { life } if life == self.life => {
                self.tick_us = u64::MAX;
                let now_us = self.clock_us();
                let due_us = self.node.as_ref().and_then(|node| node.shard.next_wake_us());
                if due_us.is_some_and(|due_us| due_us <= now_us) {
                    self.input(Input::Tick, now_us)?;
                }
                self.turn_soon();
            }
            Event::Slice { life } if life == self.life => {
                let more = self.node.as_mut().is_some_and(Node::slice_snapshot);
                let (pause_us, event) = if more {
                    (self.dice.range(50, 3_000), Event::Slice { life })
                } else {
                    (self.dice.range(500, 20_000), Event::SnapshotDone { life })
                };
                self.after(pause_us, event);
            }
            Event::SnapshotDone { life } if life == self.life => {
                if let Some(node) = &mut self.node {
                    node.finish_snapshot(&mut self.disk);
                    self.report.snapshots += 1;
                }
                self.segment_soon();
            }
            Event::Drained { life, until_us } if life == self.life => self.drained(until_us),
            // Of a process that is gone.
            Event::Turn { .. }
            | Event::Written { .. }
            | Event::Segment { .. }
            | Event::Tick { .. }
            | Event::Slice { .. }
            | Event::SnapshotDone { .. }
            | Event::Drained { .. } => {}
        }
        Ok(())
    }

    // ---- the node ----

    fn restart(&mut self) -> Result<(), String> {
        let now_us = self.clock_us();
        self.life += 1;
        let mut node = Node::start(&mut self.disk, self.terms, now_us, &mut self.dice, self.defect)?;
        self.terms = node.term + 1;
        self.note(3, node.shard.last_sequence());
        let ids: Vec<_> = self.oracle.ids().collect();
        let seen = inspect::tasks(&mut node, &ids, now_us)?;
        self.oracle.inspected(&seen).map_err(|sentence| format!("after restart {}: {sentence}", self.life))?;
        (self.turn_due, self.tick_us, self.segment_due, self.closing) = (false, u64::MAX, false, false);
        self.entries_since_snapshot = 0;
        self.node = Some(node);
        self.turn_soon();
        self.segment_soon();
        Ok(())
    }

    fn turn_soon(&mut self) {
        if self.node.is_some() && !self.turn_due {
            self.turn_due = true;
            let (delay_us, life) = (self.dice.below(40), self.life);
            self.after(delay_us, Event::Turn { life });
        }
    }

    fn segment_soon(&mut self) {
        if self.node.as_ref().is_some_and(Node::wants_segment) && !self.segment_due {
            self.segment_due = true;
            let (delay_us, life) = (self.dice.range(200, 30_000), self.life);
            self.after(delay_us, Event::Segment { life });
        }
    }

    fn prepare_segment(&mut self) {
        self.segment_due = false;
        let now_us = self.clock_us();
        let Some(node) = &mut self.node else { return };
        if node.prepare_segment(&mut self.disk, now_us) {
            self.segment_soon();
        } else {
            self.segment_due = true;
            let life = self.life;
            self.after(100_000, Event::Segment { life });
        }
        self.turn_soon();
    }

    /// An input to the engine. The oracle sees what comes of it at once; the frames leave with the next turn.
    fn input(&mut self, input: Input<'_>, now_us: u64) -> Result<(), String> {
        if let Some(node) = &mut self.node {
            node.input(input, now_us);
        }
        self.observe()
    }

    fn observe(&mut self) -> Result<(), String> {
        let Some(node) = &mut self.node else { return Ok(()) };
        let mut frames: Vec<Sent> = Vec::new();
        let outgoing = &mut self.outgoing;
        node.effects.drain(|conn, buffer| {
            let mut whole = FrameBuffer::new();
            whole.extend_from_slice(buffer);
            outgoing.entry(conn.0).or_default().extend_from_slice(buffer);
            take_frames(&mut whole, |header, body| {
                let mut copy = FrameBuffer::with_capacity(body.len());
                copy.extend_from_slice(body);
                frames.push(Sent { link: conn.0, header, body: copy });
            })
            .expect("the node sends whole frames");
        });
        if frames.is_empty() {
            return Ok(());
        }
        let limit = self.oracle.limit(LIMITED.0, PARTITIONS);
        let queues = self.oracle.sent(&frames)?;
        if let Some(limit) = limit.filter(|_| queues.contains(&LIMITED.0)) {
            let now_us = self.clock_us();
            self.check_limit(limit, now_us)?;
        }
        if !queues.is_empty() && self.dice.chance(10) {
            self.inspect()?;
        }
        self.oracle.observed();
        Ok(())
    }

    /// Performs what the engine asked for.
    fn turn(&mut self) -> Result<(), String> {
        self.turn_due = false;
        let now_us = self.clock_us();
        let Some(node) = &mut self.node else { return Ok(()) };
        let started = node.log(&mut self.disk, now_us);
        self.observe()?;
        for seq in started {
            let delay_us = self.write_us();
            let life = self.life;
            self.entries_since_snapshot += 1;
            self.after(delay_us, Event::Written { life, seq });
        }
        for (link, bytes) in std::mem::take(&mut self.outgoing) {
            self.note(4, bytes.len() as u64 ^ u64::from(crc(&bytes)) << 20);
            self.send_to_peer(link, bytes);
        }
        self.segment_soon();
        self.maybe_snapshot();
        self.arm_tick(now_us);
        Ok(())
    }

    /// Tasks of the limited queue were assigned: then there are no more leases than its limit.
    fn check_limit(&mut self, limit: u32, now_us: u64) -> Result<(), String> {
        let Some(node) = &mut self.node else { return Ok(()) };
        let leased = inspect::leased(node, &format!("q{}", LIMITED.0), now_us);
        if leased > u64::from(limit) {
            return Err(format!("{leased} leases of a queue whose limit is {limit}"));
        }
        Ok(())
    }

    fn inspect(&mut self) -> Result<(), String> {
        let now_us = self.clock_us();
        let ids: Vec<_> = self.oracle.ids().collect();
        let Some(node) = &mut self.node else { return Ok(()) };
        let seen = inspect::tasks(node, &ids, now_us)?;
        self.oracle.inspected(&seen)
    }

    fn write_us(&mut self) -> u64 {
        if self.now_us < self.disk_slow_until_us {
            return self.dice.range(20_000, 300_000);
        }
        if self.dice.chance(5) { self.dice.range(2_000, 30_000) } else { self.dice.range(60, 900) }
    }

    fn maybe_snapshot(&mut self) {
        let Some(node) = &mut self.node else { return };
        if self.entries_since_snapshot >= self.snapshot_every && !node.is_writing_snapshot() && !self.closing {
            self.entries_since_snapshot = 0;
            node.begin_snapshot();
            let (delay_us, life) = (self.dice.range(10, 2_000), self.life);
            self.after(delay_us, Event::Slice { life });
        }
    }

    /// Ticks come when the engine asks for them, as far as the node's clock tells.
    fn arm_tick(&mut self, now_us: u64) {
        let Some(wake_us) = self.node.as_ref().and_then(|node| node.shard.next_wake_us()) else { return };
        let at_us = self.now_us + wake_us.saturating_sub(now_us) + 1;
        if at_us < self.tick_us {
            self.tick_us = at_us;
            let life = self.life;
            self.at(at_us, Event::Tick { life });
        }
    }

    fn drained(&mut self, until_us: u64) {
        let life = self.life;
        let Some(node) = &mut self.node else { return };
        if node.is_closed() {
            self.report.shutdowns += 1;
            self.stop();
            return;
        }
        if (node.shard.leased() == 0 || self.now_us >= until_us) && node.unflushed_bytes() == 0 && !self.closing {
            self.closing = true;
            node.close_log();
            self.turn_soon();
        }
        self.after(5_000, Event::Drained { life, until_us });
    }

    /// The process ends, with all its connections.
    fn stop(&mut self) {
        self.node = None;
        self.life += 1;
        self.outgoing.clear();
        self.oracle.crashed();
        let open: Vec<u64> = self.links.iter().filter(|(_, link)| link.node_open).map(|(number, _)| *number).collect();
        for number in open {
            let link = self.links.get_mut(&number).expect("listed");
            link.node_open = false;
            link.cut |= self.dice.chance(50);
            let at_us = link.to_peer_us.max(self.now_us) + self.dice.range(50, 50_000);
            self.at(at_us, Event::PeerHearsLoss { link: number });
        }
        let delay_us = self.dice.range(500, 800_000);
        self.after(delay_us, Event::Restart);
    }

    // ---- the network ----

    fn latency_us(&mut self) -> u64 {
        if self.is_calm() || self.dice.chance(90) { self.dice.range(20, 400) } else { self.dice.range(400, 60_000) }
    }

    fn send_to_peer(&mut self, number: u64, bytes: Vec<u8>) {
        let latency_us = self.latency_us();
        let now_us = self.now_us;
        let Some(link) = self.links.get_mut(&number).filter(|link| link.node_open) else { return };
        link.to_peer_us = link.to_peer_us.max(now_us + latency_us);
        let at_us = link.to_peer_us;
        self.split(bytes, at_us, |bytes| Event::ToPeer { link: number, bytes });
    }

    fn send_to_node(&mut self, number: u64, bytes: Vec<u8>) {
        let latency_us = self.latency_us();
        let now_us = self.now_us;
        let Some(link) = self.links.get_mut(&number) else { return };
        link.to_node_us = link.to_node_us.max(now_us + latency_us);
        let at_us = link.to_node_us;
        self.split(bytes, at_us, |bytes| Event::ToNode { link: number, bytes });
    }

    fn split(&mut self, mut bytes: Vec<u8>, at_us: u64, event: impl Fn(Vec<u8>) -> Event) {
        if self.dice.chance(10) {
            let rest = bytes.split_off(self.dice.index(bytes.len()));
            self.at(at_us, event(bytes));
            bytes = rest;
        }
        self.at(at_us, event(bytes));
    }

    fn arrive_at_node(&mut self, number: u64, bytes: &[u8]) -> Result<(), String> {
        let now_us = self.clock_us();
        let Some(link) = self.links.get_mut(&number).filter(|link| link.node_open && !link.cut) else { return Ok(()) };
        if self.node.is_none() {
            return Ok(());
        }
        link.at_node.extend_from_slice(bytes);
        let mut buffer = std::mem::take(&mut link.at_node);
        let mut outcome = Ok(());
        take_frames(&mut buffer, |header, body| {
            if outcome.is_ok() {
                self.oracle.received(number, &header, body, now_us);
                outcome = self.input(Input::Frame { conn: ConnId(number), header, body }, now_us);
            }
        })?;
        outcome?;
        if let Some(link) = self.links.get_mut(&number) {
            link.at_node = buffer;
        }
        self.note(1, number ^ (bytes.len() as u64) << 16);
        self.turn_soon();
        Ok(())
    }

    fn arrive_at_peer(&mut self, number: u64, bytes: &[u8]) -> Result<(), String> {
        let Some(link) = self.links.get_mut(&number).filter(|link| link.peer_open && !link.cut) else { return Ok(()) };
        link.at_peer.extend_from_slice(bytes);
        let (actor, mut frames) = (link.actor, Vec::new());
        take_frames(&mut link.at_peer, |header, body| {
            let mut copy = FrameBuffer::with_capacity(body.len());
            copy.extend_from_slice(body);
            frames.push((header, copy));
        })?;
        for (header, body) in frames {
            self.call(actor, |actor, cx| actor.frame(header, &body, cx));
        }
        Ok(())
    }

    fn node_hears_loss(&mut self, number: u64) -> Result<(), String> {
        let now_us = self.clock_us();
        let Some(link) = self.links.get_mut(&number).filter(|link| link.node_open) else { return Ok(()) };
        link.node_open = false;
        self.outgoing.remove(&number);
        if self.node.is_some() {
            self.oracle.lost(number, now_us);
            self.input(Input::Disconnected { conn: ConnId(number) }, now_us)?;
        }
        self.turn_soon();
        Ok(())
    }

    fn peer_hears_loss(&mut self, number: u64) {
        let Some(link) = self.links.get_mut(&number).filter(|link| link.peer_open) else { return };
        link.peer_open = false;
        let actor = link.actor;
        self.link_of[actor] = None;
        self.call(actor, |actor, cx| actor.lost(cx));
    }

    /// Cuts a connection from the actor's side: the node hears of it later, and may take what was under way before.
    fn close_from_peer(&mut self, number: u64) {
        let Some(link) = self.links.get_mut(&number) else { return };
        link.cut |= self.dice.chance(40);
        let at_us = link.to_node_us.max(self.now_us) + self.dice.range(100, 900_000);
        self.at(at_us, Event::NodeHearsLoss { link: number });
        self.peer_hears_loss(number);
    }

    // ---- actors ----

    fn wake_actor_at(&mut self, actor: usize, at_us: u64) {
        let at_us = at_us.max(self.now_us + 1);
        if at_us < self.wake_of[actor] {
            self.wake_of[actor] = at_us;
            self.at(at_us, Event::Wake { actor, at_us });
        }
    }

    fn call(&mut self, index: usize, act: impl FnOnce(&mut dyn Actor, &mut Cx<'_>)) {
        let mut cx = Cx {
            now_us: self.now_us,
            calm: self.now_us >= self.calm_from_us,
            dice: &mut self.dice,
            oracle: &mut self.oracle,
            connected: self.link_of[index].is_some(),
            outgoing: FrameBuffer::new(),
            open: false,
            close: false,
        };
        act(self.actors[index].as_mut(), &mut cx);
        let (outgoing, open, close) = (cx.outgoing, cx.open, cx.close);
        if let Some(link) = self.link_of[index]
            && !outgoing.is_empty()
        {
            self.send_to_node(link, outgoing.to_vec());
        }
        if let (true, Some(link)) = (close, self.link_of[index]) {
            self.close_from_peer(link);
        }
        if open && self.link_of[index].is_none() {
            self.connect(index);
        }
        let actor = &self.actors[index];
        let next_us = if self.link_of[index].is_some() { actor.next_wake_us() } else { actor.reconnect_us() };
        let next_us = next_us.min(self.now_us + WAKE_US_MAX);
        self.wake_actor_at(index, next_us);
    }

    fn connect(&mut self, actor: usize) {
        if self.node.is_none() {
            self.call(actor, |actor, cx| actor.lost(cx));
            return;
        }
        self.last_link += 1;
        let number = self.last_link;
        let link = Link { actor, node_open: true, peer_open: true, ..Link::default() };
        self.links.insert(number, link);
        self.link_of[actor] = Some(number);
        self.call(actor, |actor, cx| actor.opened(cx));
    }

    // ---- faults ----

    fn fault(&mut self, fault: Fault) -> Result<(), String> {
        self.note(5, fault as u64);
        match fault {
            Fault::PowerLoss => {
                if self.node.is_some() {
                    self.report.crashes += 1;
                    self.disk.lose_power(&mut self.dice);
                    self.stop();
                }
            }
            Fault::Shutdown => {
                let now_us = self.clock_us();
                let (life, until_us) = (self.life, self.now_us + DRAIN_US_MAX);
                if self.node.is_some() {
                    self.input(Input::Drain, now_us)?;
                    self.turn_soon();
                    self.after(1_000, Event::Drained { life, until_us });
                }
            }
            Fault::ClockJump => {
                let jump_us = i64::try_from(self.dice.range(1_000, 20_000_000)).expect("small");
                self.skew_us += if self.dice.chance(50) { jump_us } else { -jump_us };
                self.tick_us = u64::MAX;
                self.turn_soon();
            }
            Fault::LinkLoss => {
                let open: Vec<u64> = self.link_of.iter().flatten().copied().collect();
                if !open.is_empty() {
                    let link = open[self.dice.index(open.len())];
                    self.close_from_peer(link);
                }
            }
            Fault::NodeDropsLink => {
                let open: Vec<u64> = self.link_of.iter().flatten().copied().collect();
                if !open.is_empty() {
                    let link = open[self.dice.index(open.len())];
                    self.node_hears_loss(link)?;
                    let delay_us = self.dice.range(100, 400_000);
                    self.after(delay_us, Event::PeerHearsLoss { link });
                }
            }
            Fault::DiskStall => self.disk_slow_until_us = self.now_us + self.dice.range(50_000, 1_000_000),
            Fault::DiskFull => {
                self.disk.full = true;
                let delay_us = self.dice.range(100_000, 2_000_000);
                self.after(delay_us, Event::Fault(Fault::DiskFree));
            }
            Fault::DiskFree => self.disk.full = false,
        }
        Ok(())
    }

    // ---- the end ----

    fn is_over(&mut self) -> Result<bool, String> {
        if !self.actors.iter().all(|actor| actor.is_done()) {
            return Ok(false);
        }
        let now_us = self.clock_us();
        let ids: Vec<_> = self.oracle.ids().collect();
        let Some(node) = &mut self.node else { return Ok(false) };
        let seen = inspect::tasks(node, &ids, now_us)?;
        Ok(self.oracle.unfinished(&seen).is_empty())
    }

    /// Everything is final: what a last crash leaves is the same, and counts agree.
    fn verify_end(&mut self) -> Result<(), String> {
        let now_us = self.clock_us();
        let ids: Vec<_> = self.oracle.ids().collect();
        let Some(node) = &mut self.node else { return Err("the node is down at the end".to_owned()) };
        if node.shard.leased() != 0 {
            return Err(format!("{} leases are counted although every task is final", node.shard.leased()));
        }
        let before = inspect::tasks(node, &ids, now_us)?;
        self.oracle.inspected(&before)?;
        self.node = None;
        self.disk.lose_power(&mut self.dice);
        self.oracle.crashed();
        self.restart()?;
        let node = self.node.as_mut().expect("just restarted");
        let after = inspect::tasks(node, &ids, now_us)?;
        let differs = |(id, seen): &(&TaskId, &inspect::Seen)| match after.get(*id) {
            None => !self.oracle.may_be_forgotten(**id),
            found => found != Some(*seen),
        };
        match before.iter().find(differs) {
            None => Ok(()),
            Some((id, seen)) => Err(format!("{id} was {seen:?} and is {:?} after the last crash", after.get(id))),
        }
    }

    fn stuck(&mut self) -> String {
        let now_us = self.clock_us();
        let ids: Vec<_> = self.oracle.ids().collect();
        let done = self.actors.iter().filter(|actor| actor.is_done()).count();
        let Some(node) = &mut self.node else { return "the node did not come back".to_owned() };
        let seen = inspect::tasks(node, &ids, now_us).unwrap_or_default();
        let open = self.oracle.unfinished(&seen);
        let first = open.first().map(|id| format!("{id} {:?}", seen[id].state));
        format!("an hour after the faults {} tasks are not final ({first:?}); {done} actors are done", open.len())
    }
}

fn crc(bytes: &[u8]) -> u32 {
    bytes.chunks(8).fold(0u32, |sum, chunk| {
        let mut eight = [0; 8];
        eight[..chunk.len()].copy_from_slice(chunk);
        let mixed = mix(u64::from_le_bytes(eight) ^ u64::from(sum)).to_le_bytes();
        u32::from_le_bytes([mixed[0], mixed[1], mixed[2], mixed[3]])
    })
}

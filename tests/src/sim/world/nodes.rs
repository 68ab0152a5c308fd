//! Processes: starts and ends, turns, writes, snapshots, shutdowns.

use taskmaster_engine::{Input, Refused};
use taskmaster_protocol::{Code, FrameBuffer};

use super::{Event, What, World, sum};
use crate::sim::dice::mix;
use crate::sim::network::take_frames;
use crate::sim::node::{Node, OPERATOR};
use crate::sim::oracle::Sent;
use crate::sim::shard_loop::{ShardLoop, StartError};

/// How long an orderly shutdown waits for leases.
const DRAIN_US_MAX: u64 = 1_000_000;

/// How a process ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Death {
    /// With its machine: nobody is told.
    Power,
    /// Alone: the kernel resets its connections, and writes under way land.
    Process,
    /// In order.
    Shutdown,
}

impl World {
    pub(super) fn node(&mut self, place: u16) -> Option<&mut Node> {
        self.places[usize::from(place)].running()
    }

    pub(super) fn shard(&mut self, place: u16, shard: u16) -> Option<&mut ShardLoop> {
        self.node(place)?.loops.get_mut(usize::from(shard))
    }

    pub(super) fn start(&mut self, number: u16) -> Result<(), String> {
        let now_us = self.clock_us(number);
        let place = &mut self.places[usize::from(number)];
        if place.node.is_some() {
            return Ok(());
        }
        self.last_life += 1;
        let life = self.last_life;
        match place.start(life, &self.scenario, now_us, &mut self.dice, self.defect) {
            Ok(()) => {}
            Err(StartError::Broken(sentence)) => return Err(format!("place {number}: {sentence}")),
            Err(StartError::Damaged) => {
                // The damage was found: a new node comes in place of the old one.
                place.replace_disks(self.options.seed);
                self.report.disks_lost += 1;
                self.note(9, number.into());
                self.after(50_000, Event::Start { place: number });
                return Ok(());
            }
        }
        self.note(3, u64::from(number) << 32 | life);
        let replicas: Vec<_> = self.replicas_at(number);
        self.tell(|| {
            format!(
                "place {number} starts life {life} as {} ({}), replicas {replicas:?}",
                self.places[usize::from(number)].id,
                self.places[usize::from(number)].id.0
            )
        });
        for shard in 0..self.places[usize::from(number)].site.shards {
            self.turn_soon(number, shard);
            self.segment_soon(number, shard);
        }
        self.gossip(number, |membership, now_us, out| membership.handle_timeout(now_us, out));
        Ok(())
    }

    /// A turn of a shard is due, unless it is already.
    pub(super) fn turn_soon(&mut self, place: u16, shard: u16) {
        let Some(at) = self.shard(place, shard).filter(|at| !at.turn_due) else { return };
        at.turn_due = true;
        let delay_us = self.dice.below(40);
        self.in_after(place, delay_us, What::Turn { shard });
    }

    /// An input to an engine. What comes of it leaves with the next turn.
    pub(super) fn input(&mut self, place: u16, shard: u16, input: Input<'_>) {
        let now_us = self.clock_us(place);
        let Some(at) = self.shard(place, shard) else { return };
        at.input(input, now_us);
        self.turn_soon(place, shard);
    }

    /// Ends a shard's turn and performs what the engine asked for.
    pub(super) fn turn(&mut self, place: u16, shard: u16) -> Result<(), String> {
        let now_us = self.clock_us(place);
        let at = &mut self.places[usize::from(place)];
        let (id, Some(node)) = (at.id, &mut at.node) else { return Ok(()) };
        let (life, own) = (node.life, &mut node.loops[usize::from(shard)]);
        own.turn_due = false;
        let oracle = &mut self.oracle;
        let mut verdict = Ok(());
        let started = own.end_turn(&mut at.disks[usize::from(shard)], now_us, |kind, parts| {
            if verdict.is_ok() {
                verdict = oracle.logged(kind, parts);
            }
        });
        verdict?;
        let time_us = own.time_us(now_us);
        oracle.clock(time_us);
        let mut partition = shard;
        while partition < self.scenario.partitions {
            oracle.leads(life, partition, own.shard.serving(partition))?;
            partition += at.site.shards;
        }
        for question in own.effects.take_questions() {
            let unknown = Refused::new(Code::UnknownTask, "it may be in the store, which nobody asks here");
            own.effects.answer(&question, Err(&unknown));
        }
        let (mut frames, mut outgoing) = (Vec::new(), Vec::new());
        own.effects.drain(|conn, buffer| {
            if conn == OPERATOR {
                return;
            }
            outgoing.push((conn.0, buffer.to_vec()));
            let mut whole = core::mem::take(buffer);
            take_frames(&mut whole, |header, body| {
                let mut copy = FrameBuffer::with_capacity(body.len());
                copy.extend_from_slice(body);
                let term = own.shard.serving(header.partition);
                frames.push(Sent { link: conn.0, term, header, body: copy });
            })
            .expect("nodes send whole frames");
        });
        let mut messages = Vec::new();
        own.effects.drain_peers(|to, buffer| messages.push((to, core::mem::take(buffer))));
        let map = own.effects.take_map();
        oracle.sent(life, &frames, time_us)?;
        let warnings = own.shard.take_warnings();
        for warning in &warnings {
            self.tell(|| format!("place {place} shard {shard}: {warning}"));
        }
        for seq in started {
            let delay_us = self.write_us(place, shard);
            self.in_after(place, delay_us, What::Written { shard, seq });
        }
        for (link, bytes) in outgoing {
            self.note(4, mix(link) ^ sum(&bytes));
            self.send_to_peer(link, bytes);
        }
        for (to, bytes) in messages {
            self.note(6, mix(to.node.0 ^ u64::from(to.shard)) ^ sum(&bytes));
            self.send_message(place, shard, id, to, bytes);
        }
        if let Some(map) = map {
            self.tell(|| self.map_in_words(place, &map));
            self.spread_map(place, map);
        }
        self.segment_soon(place, shard);
        self.maybe_snapshot(place, shard);
        self.arm_tick(place, shard);
        Ok(())
    }

    /// Ticks come when the engine asks for them, as far as the node's clock tells.
    pub(super) fn arm_tick(&mut self, place: u16, shard: u16) {
        let (clock_us, now_us) = (self.clock_us(place), self.now_us);
        let Some(at) = self.shard(place, shard) else { return };
        let Some(wake_us) = at.shard.next_wake_us() else { return };
        let at_us = now_us + wake_us.saturating_sub(clock_us) + 1;
        if at_us < at.tick_us {
            at.tick_us = at_us;
            self.in_after(place, at_us - now_us, What::Tick { shard, at_us });
        }
    }

    pub(super) fn tick(&mut self, place: u16, shard: u16, at_us: u64) {
        let clock_us = self.clock_us(place);
        let Some(at) = self.shard(place, shard).filter(|at| at.tick_us == at_us) else { return };
        at.tick_us = u64::MAX;
        if at.shard.next_wake_us().is_some_and(|due_us| due_us <= clock_us) {
            self.input(place, shard, Input::Tick);
        } else {
            self.arm_tick(place, shard);
        }
    }

    // ---- the disk ----

    fn write_us(&mut self, place: u16, shard: u16) -> u64 {
        if self.now_us < self.places[usize::from(place)].disks[usize::from(shard)].slow_until_us {
            return self.dice.range(20_000, 300_000);
        }
        if self.dice.chance(5) { self.dice.range(2_000, 30_000) } else { self.dice.range(60, 900) }
    }

    pub(super) fn written(&mut self, place: u16, shard: u16, seq: u64) {
        let now_us = self.clock_us(place);
        let at = &mut self.places[usize::from(place)];
        at.disks[usize::from(shard)].complete(seq);
        if let Some(own) = self.shard(place, shard) {
            own.written(seq, now_us);
        }
        self.turn_soon(place, shard);
    }

    pub(super) fn segment_soon(&mut self, place: u16, shard: u16) {
        let Some(at) = self.shard(place, shard).filter(|at| at.wants_segment() && !at.segment_due) else { return };
        at.segment_due = true;
        let delay_us = self.dice.range(200, 30_000);
        self.in_after(place, delay_us, What::Segment { shard });
    }

    pub(super) fn prepare_segment(&mut self, place: u16, shard: u16) {
        let now_us = self.clock_us(place);
        let at = &mut self.places[usize::from(place)];
        let (disks, Some(node)) = (&mut at.disks, &mut at.node) else { return };
        let own = &mut node.loops[usize::from(shard)];
        own.segment_due = false;
        if own.prepare_segment(&mut disks[usize::from(shard)], now_us) {
            self.segment_soon(place, shard);
        } else {
            own.segment_due = true;
            self.in_after(place, 100_000, What::Segment { shard });
        }
        self.turn_soon(place, shard);
    }

    fn maybe_snapshot(&mut self, place: u16, shard: u16) {
        let every = self.scenario.snapshot_every;
        let Some(at) = self.shard(place, shard).filter(|at| at.wants_snapshot(every)) else { return };
        at.begin_snapshot();
        let delay_us = self.dice.range(10, 2_000);
        self.in_after(place, delay_us, What::Slice { shard });
    }

    pub(super) fn slice(&mut self, place: u16, shard: u16) {
        let Some(at) = self.shard(place, shard) else { return };
        if at.slice_snapshot() {
            let delay_us = self.dice.range(50, 3_000);
            self.in_after(place, delay_us, What::Slice { shard });
        } else if at.is_writing_snapshot() {
            let delay_us = self.dice.range(500, 20_000);
            self.in_after(place, delay_us, What::SnapshotDone { shard });
        }
    }

    pub(super) fn snapshot_done(&mut self, place: u16, shard: u16) {
        let at = &mut self.places[usize::from(place)];
        if let Some(node) = &mut at.node {
            node.loops[usize::from(shard)].finish_snapshot(&mut at.disks[usize::from(shard)]);
            self.report.snapshots += 1;
        }
        self.segment_soon(place, shard);
    }

    // ---- ends ----

    /// An orderly shutdown begins.
    pub(super) fn shut_down(&mut self, place: u16) {
        if self.node(place).is_none() {
            return;
        }
        for shard in 0..self.places[usize::from(place)].site.shards {
            self.input(place, shard, Input::Drain);
        }
        let until_us = self.now_us + DRAIN_US_MAX;
        self.in_after(place, 1_000, What::Drained { until_us });
    }

    pub(super) fn drained(&mut self, place: u16, until_us: u64) {
        let is_late = self.now_us >= until_us;
        let Some(node) = self.node(place) else { return };
        if node.loops.iter().all(ShardLoop::is_closed) {
            self.report.shutdowns += 1;
            let down_us = self.dice.range(500, 800_000);
            self.stop(place, Death::Shutdown, down_us);
            return;
        }
        let shards = u16::try_from(node.loops.len()).expect("few");
        let leased: u64 = node.loops.iter().map(|own| own.shard.leased()).sum();
        for shard in 0..shards {
            let Some(own) = self.shard(place, shard) else { continue };
            if (leased == 0 || is_late) && own.unflushed_bytes() == 0 && !own.is_closing() {
                own.close_log();
                self.turn_soon(place, shard);
            }
        }
        self.in_after(place, 5_000, What::Drained { until_us });
    }

    /// The process ends, with all its connections, and starts again after a while.
    pub(super) fn stop(&mut self, place: u16, death: Death, down_us: u64) {
        let at = &mut self.places[usize::from(place)];
        let Some(node) = at.node.take() else { return };
        at.is_paused = false;
        self.held[usize::from(place)].clear();
        for disk in &mut at.disks {
            if death == Death::Power {
                disk.lose_power(&mut self.dice);
            } else {
                disk.complete_all();
            }
        }
        self.oracle.died(node.life);
        self.tell(|| format!("place {place} stops"));
        self.note(8, u64::from(place) << 32 | node.life);
        self.drop_links(place, node.life, death);
        self.drop_peers(place, death);
        self.after(down_us, Event::Start { place });
    }
}

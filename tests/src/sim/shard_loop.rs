//! One shard of a node: the real engine and the real log writer, driven as the production loop drives them.
//!
//! What the production loop does with glommio is done here in virtual time: records go to the log, finished writes come
//! back as durability, effects leave after each turn. A [`Defect`] breaks this glue on purpose.

use std::collections::VecDeque;

use taskmaster_engine::arena::EXTENT_BYTES;
use taskmaster_engine::record::{self, kind};
use taskmaster_engine::{Config, Effects, Input, Planted, Shard, SnapshotStep};
use taskmaster_protocol::FrameBuffer;
use taskmaster_storage::wal::{self, HeapBuffers, ScanParams, Writer, recover};

use super::Defect;
use super::dice::Dice;
use super::disk::{Disk, SEGMENT_LEN, Snapshot};

fn log_config() -> wal::Config {
    wal::Config {
        segment_bytes: SEGMENT_LEN,
        block_bytes_target: 24 << 10,
        block_bytes_max: 1 << 20,
        unflushed_bytes_max: 64 << 20,
        writes_in_flight_max: 3,
        overlap_bytes_min: 0,
        segments_ahead: 2,
        spare_segments_max: 4,
        disk_reserve_bytes: 0,
    }
}

/// A snapshot being written.
struct Writing {
    snapshot: Snapshot,
    sliced: bool,
}

/// A shard's time as its engine has it: it never goes back and never stands still.
struct Time {
    last_outside_us: u64,
    ahead_us: u64,
}

/// Plants what is the engine's.
fn plant(shard: &mut Shard, defect: Option<Defect>) {
    match defect {
        Some(Defect::ReuseToken) => shard.plant(Planted::ReuseToken),
        Some(Defect::ForgetUniqueKeys) => shard.plant(Planted::ForgetUniqueKeys),
        Some(Defect::ApplyOutOfOrderAfterSnapshot) => shard.plant(Planted::ApplyOutOfOrder),
        _ => {}
    }
}

/// Why a shard does not start.
pub(crate) enum StartError {
    /// The log is damaged where it was durable.
    Damaged,
    /// It should have started.
    Broken(String),
}

/// One shard in one life of its node's process.
pub(crate) struct ShardLoop {
    pub(crate) shard: Shard,
    pub(crate) effects: Effects,
    writer: Writer<HeapBuffers>,
    blocks: VecDeque<(u64, u64)>,
    writing: Option<Writing>,
    told_disk_full: bool,
    closing: bool,
    time: Time,
    defect: Option<Defect>,
    pub(crate) turn_due: bool,
    pub(crate) tick_us: u64,
    pub(crate) segment_due: bool,
    pub(crate) blocks_since_snapshot: u64,
}

impl ShardLoop {
    /// Recovers the shard from what is on its disk.
    pub(crate) fn start(
        config: Config,
        disk: &mut Disk,
        now_us: u64,
        dice: &mut Dice,
        defect: Option<Defect>,
    ) -> Result<Self, StartError> {
        let broken = |sentence: String| StartError::Broken(sentence);
        let identity = config.node.id.0;
        let mut shard = Shard::new(config, now_us);
        plant(&mut shard, defect);
        // Now and then the newest snapshot turns out damaged and the one before it is used.
        let newest_seq = disk.snapshots.last().map_or(0, |snapshot| snapshot.seq);
        let damaged = disk.snapshots.len() == 2 && dice.chance(15);
        if damaged {
            disk.snapshots.pop();
        }
        let mut after_seq = 0;
        if let Some(snapshot) = disk.snapshots.last() {
            after_seq = snapshot.seq;
            for (tag, chunk) in &snapshot.chunks {
                let mut aligned = FrameBuffer::with_capacity(chunk.len());
                aligned.extend_from_slice(chunk);
                let taken = shard.restore_chunk(*tag, &aligned);
                taken.map_err(|error| broken(format!("the snapshot does not read: {error}")))?;
            }
        }
        let params = ScanParams { identity, after_seq, reach_seq: newest_seq };
        let mut seen = 0u64;
        let drops = defect == Some(Defect::DropRecoveredEntry);
        let recovered = recover(disk, params, |record| {
            seen += 1;
            if drops && record.kind == kind::ENTRY && seen >= 20 && seen.is_multiple_of(20) {
                return Ok(());
            }
            match shard.replay(record.stamp, record.kind, record.bytes) {
                Err(_) if drops => Ok(()),
                result => Ok(result?),
            }
        });
        let recovered = match recovered {
            Ok(recovered) => recovered,
            Err(wal::RecoverError::Corrupt { .. }) if disk.is_rotten() => return Err(StartError::Damaged),
            Err(error) => return Err(broken(format!("the log does not recover: {error}"))),
        };
        shard.start(now_us);
        let log_term = recovered.end.term + 1;
        let mut writer = Writer::new(log_config(), HeapBuffers, identity, log_term, recovered.end);
        disk.retired.clear();
        if disk.snapshots.len() == 2 {
            disk.retired = writer.retire(disk.snapshots[0].seq);
        }
        while let Some(number) = writer.wants_segment() {
            let Some(segment) = disk.prepare(number) else { break };
            writer.segment_prepared(segment);
        }
        Ok(Self {
            shard,
            effects: Effects::default(),
            writer,
            blocks: VecDeque::new(),
            writing: None,
            told_disk_full: false,
            closing: false,
            time: Time { last_outside_us: now_us, ahead_us: 0 },
            defect,
            turn_due: false,
            tick_us: u64::MAX,
            segment_due: false,
            blocks_since_snapshot: 0,
        })
    }

    /// The shard's own time, when the node's clock reads `now_us`.
    pub(crate) fn time_us(&mut self, now_us: u64) -> u64 {
        self.time.ahead_us += self.time.last_outside_us.saturating_sub(now_us);
        self.time.last_outside_us = now_us;
        now_us + self.time.ahead_us
    }

    pub(crate) fn input(&mut self, input: Input<'_>, now_us: u64) {
        self.time_us(now_us);
        while self.shard.wants_extent() {
            self.shard.give_extent(Box::new(vec![0; EXTENT_BYTES]));
        }
        drop(self.shard.take_extent());
        self.shard.handle(input, now_us, &mut self.effects);
    }

    /// Ends the turn, logs what is to be logged and starts writes; says which blocks' writes have started. Every record is
    /// shown to `look`.
    pub(crate) fn end_turn(&mut self, disk: &mut Disk, now_us: u64, mut look: impl FnMut(u32, &[&[u8]])) -> Vec<u64> {
        self.time_us(now_us);
        let (writer, blocks, defect, closing) = (&mut self.writer, &mut self.blocks, self.defect, self.closing);
        let mut last = None;
        let learns: Vec<u16> =
            if defect == Some(Defect::LoseLearnerTail) { self.shard.learning().collect() } else { Vec::new() };
        self.shard.end_turn(now_us, &mut self.effects, |sequence, record_kind, parts| {
            // What comes after the log was closed is never answered.
            if closing {
                return;
            }
            look(record_kind, parts);
            last = Some(sequence);
            let is_vote = defect == Some(Defect::SkipHardState) && record_kind == kind::HARD;
            let is_learnt =
                record_kind == kind::ENTRY && learns.iter().any(|group| parts[0][..2] == group.to_le_bytes());
            // What is not logged leaves a record that says nothing: a gap would be found by the count alone.
            let mut nothing = [0; record::HARD_BYTES];
            nothing[..2].copy_from_slice(&parts[0][..2]);
            let (record_kind, parts) =
                if is_vote || is_learnt { (kind::HARD, &[&nothing[..]][..]) } else { (record_kind, parts) };
            let position = writer.append(record_kind, sequence, parts).expect("the log takes what is admitted");
            match blocks.back_mut() {
                Some((block, last)) if *block == position.seq => *last = sequence,
                _ => blocks.push_back((position.seq, sequence)),
            }
        });
        if self.defect == Some(Defect::AcknowledgeBeforeFlush)
            && let Some(sequence) = last
        {
            self.blocks.clear();
            self.input(Input::Durable { sequence }, now_us);
        }
        let mut started = Vec::new();
        while let Some(op) = self.writer.poll_write() {
            started.push(op.seq);
            disk.start(op);
        }
        self.blocks_since_snapshot += started.len() as u64;
        started
    }

    /// The write of block `seq` is complete on the disk.
    pub(crate) fn written(&mut self, seq: u64, now_us: u64) {
        let reached = match self.defect {
            // Acknowledges a block although one before it is not durable.
            Some(Defect::AcknowledgeOutOfOrder) => {
                self.writer.written(seq).map_or(Some(seq), |durable| Some(durable.max(seq)))
            }
            _ => self.writer.written(seq),
        };
        let Some(durable) = reached else { return };
        let mut sequence = None;
        while self.blocks.front().is_some_and(|(block, _)| *block <= durable) {
            sequence = self.blocks.pop_front().map(|(_, last)| last);
        }
        if let Some(sequence) = sequence {
            self.input(Input::Durable { sequence }, now_us);
        }
    }

    pub(crate) fn wants_segment(&self) -> bool {
        self.writer.wants_segment().is_some()
    }

    /// One try to prepare the next segment; `false` when the disk has no room.
    pub(crate) fn prepare_segment(&mut self, disk: &mut Disk, now_us: u64) -> bool {
        let Some(number) = self.writer.wants_segment() else { return true };
        let made = disk.prepare(number);
        let is_full = made.is_none();
        if let Some(segment) = made {
            self.writer.segment_prepared(segment);
        }
        let tell = is_full || self.writer.wants_segment().is_none();
        if tell && is_full != self.told_disk_full {
            self.told_disk_full = is_full;
            self.input(Input::DiskFull(is_full), now_us);
        }
        !is_full
    }

    /// Whether enough was written since the last snapshot, and none is being written.
    pub(crate) fn wants_snapshot(&self, every: u64) -> bool {
        self.blocks_since_snapshot >= every && !self.closing && self.shard.can_snapshot() && self.writing.is_none()
    }

    pub(crate) fn begin_snapshot(&mut self) {
        self.blocks_since_snapshot = 0;
        let mut seq = self.writer.durable_seq();
        if self.defect == Some(Defect::SnapshotClaimsTooMuch) {
            seq = self.writer.last_seq();
        }
        self.shard.snapshot_begin();
        self.writing = Some(Writing { snapshot: Snapshot { seq, chunks: Vec::new() }, sliced: false });
    }

    /// Takes one slice of the snapshot; `false` when there is no more, because it is complete or of no use.
    pub(crate) fn slice_snapshot(&mut self) -> bool {
        let writing = self.writing.as_mut().expect("a snapshot is being written");
        let mut chunk = FrameBuffer::new();
        match self.shard.snapshot_next(&mut chunk) {
            SnapshotStep::Chunk(tag) => writing.snapshot.chunks.push((tag, chunk.to_vec())),
            SnapshotStep::Wait => {}
            SnapshotStep::End => {
                writing.sliced = true;
                return false;
            }
            SnapshotStep::Broken => {
                self.writing = None;
                return false;
            }
        }
        true
    }

    pub(crate) const fn is_writing_snapshot(&self) -> bool {
        self.writing.is_some()
    }

    /// The snapshot's file is durable.
    pub(crate) fn finish_snapshot(&mut self, disk: &mut Disk) {
        let writing = self.writing.take().expect("a snapshot is being written");
        assert!(writing.sliced, "a snapshot is finished after its last slice");
        if let Some(covered) = disk.keep(writing.snapshot) {
            disk.retired.extend(self.writer.retire(covered));
        }
    }

    pub(crate) fn unflushed_bytes(&self) -> usize {
        self.writer.unflushed_bytes()
    }

    pub(crate) const fn is_closing(&self) -> bool {
        self.closing
    }

    pub(crate) fn close_log(&mut self) {
        self.closing = true;
        self.writer.close();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.writer.is_closed()
    }
}

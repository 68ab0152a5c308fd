//! The node under test: the real engine and the real log writer, driven as the shard loop drives them.
//!
//! What the production loop does with glommio is done here in virtual time: entries go to the log, finished writes come
//! back as durability, frames leave after each turn. [`Defect`] breaks this glue on purpose, to see that the oracle notices.

use std::collections::VecDeque;

use taskmaster_engine::{Config, Effects, Input, Shard};
use taskmaster_protocol::{FrameBuffer, PartitionId};
use taskmaster_storage::wal::{self, HeapBuffers, ScanParams, Writer, recover};

use super::Defect;
use super::dice::Dice;
use super::disk::{Disk, SEGMENT_LEN, Snapshot};

/// Partitions of the simulated cluster, all on the one shard.
pub(crate) const PARTITIONS: u16 = 3;
const IDENTITY: u64 = 0x51_71_1a_7e;
const ENTRY: u32 = 1;

fn log_config() -> wal::Config {
    wal::Config {
        segment_bytes: SEGMENT_LEN,
        block_bytes_target: 24 << 10,
        block_bytes_max: 64 << 10,
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

/// One life of the node's process.
pub(crate) struct Node {
    pub(crate) shard: Shard,
    pub(crate) effects: Effects,
    writer: Writer<HeapBuffers>,
    blocks: VecDeque<(u64, u64)>,
    writing: Option<Writing>,
    told_disk_full: bool,
    pub(crate) term: u32,
    closing: bool,
    defect: Option<Defect>,
}

impl Node {
    /// Recovers the node from what is on the disk.
    pub(crate) fn start(
        disk: &mut Disk,
        terms: u32,
        now_us: u64,
        dice: &mut Dice,
        defect: Option<Defect>,
    ) -> Result<Self, String> {
        let config = Config {
            partitions: PARTITIONS,
            owned: (0..PARTITIONS).map(PartitionId).collect(),
            term: 0,
            memory_bytes_max: 1 << 30,
            kept_max: u32::MAX,
            auto_create_queues: true,
        };
        let mut shard = Shard::new(config, now_us);
        // Now and then the newest snapshot turns out damaged and the one before it is used.
        let newest_seq = disk.snapshots.last().map_or(0, |snapshot| snapshot.seq);
        let damaged = disk.snapshots.len() == 2 && dice.chance(15);
        if damaged {
            disk.snapshots.pop();
        }
        let mut after_seq = 0;
        if let Some(snapshot) = disk.snapshots.last() {
            after_seq = snapshot.seq;
            for chunk in &snapshot.chunks {
                let mut aligned = FrameBuffer::with_capacity(chunk.len());
                aligned.extend_from_slice(chunk);
                shard.restore_chunk(&aligned).map_err(|error| format!("the snapshot does not read: {error}"))?;
            }
            shard.restore_finish(snapshot.stamp);
        }
        let params = ScanParams { identity: IDENTITY, after_seq, reach_seq: newest_seq };
        let mut seen = 0u64;
        let recovered = recover(disk, params, |record| {
            seen += 1;
            if defect == Some(Defect::DropRecoveredEntry) && seen == 20 {
                return Ok(());
            }
            match shard.replay(record.bytes) {
                Err(error) if defect == Some(Defect::DropRecoveredEntry) => {
                    let _ = error;
                    Ok(())
                }
                result => Ok(result?),
            }
        })
        .map_err(|error| format!("the log does not recover: {error}"))?;
        let log_term = terms.max(recovered.end.term + 1);
        let engine_term = if defect == Some(Defect::ReuseTerm) { 1 } else { log_term };
        shard.start_term(engine_term);
        let mut writer = Writer::new(log_config(), HeapBuffers, IDENTITY, log_term, recovered.end);
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
            term: log_term,
            closing: false,
            defect,
        })
    }

    pub(crate) fn input(&mut self, input: Input<'_>, now_us: u64) {
        self.shard.handle(input, now_us, &mut self.effects);
    }

    /// Logs what the engine admitted and starts writes; says which blocks' writes have started.
    pub(crate) fn log(&mut self, disk: &mut Disk, now_us: u64) -> Vec<u64> {
        let (writer, blocks) = (&mut self.writer, &mut self.blocks);
        let mut last = None;
        // What comes after the log was closed is never answered.
        if !self.closing {
            self.shard.take_unlogged(|sequence, bytes| {
                last = Some(sequence);
                let position = writer.append(ENTRY, sequence, &[bytes]).expect("the log takes what is admitted");
                match blocks.back_mut() {
                    Some((block, last)) if *block == position.seq => *last = sequence,
                    _ => blocks.push_back((position.seq, sequence)),
                }
            });
        }
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

    pub(crate) fn is_writing_snapshot(&self) -> bool {
        self.writing.is_some()
    }

    pub(crate) fn begin_snapshot(&mut self) {
        let mut seq = self.writer.durable_seq();
        if self.defect == Some(Defect::SnapshotClaimsTooMuch) {
            seq = self.writer.last_seq();
        }
        let stamp = self.shard.snapshot_begin();
        self.writing = Some(Writing { snapshot: Snapshot { seq, stamp, chunks: Vec::new() }, sliced: false });
    }

    /// Takes one slice of the snapshot; `false` when it is complete.
    pub(crate) fn slice_snapshot(&mut self) -> bool {
        let writing = self.writing.as_mut().expect("a snapshot is being written");
        let mut chunk = FrameBuffer::new();
        if self.shard.snapshot_next(&mut chunk) {
            writing.snapshot.chunks.push(chunk.to_vec());
            return true;
        }
        writing.sliced = true;
        false
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

    pub(crate) fn close_log(&mut self) {
        self.closing = true;
        self.writer.close();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.writer.is_closed()
    }
}

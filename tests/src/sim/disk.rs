//! A disk that forgets: durable bytes apart from writes under way.
//!
//! A write becomes durable when it completes, and not before. Writes overlap and complete in any order. A crash leaves any
//! subset of the 512-byte sectors of each write under way. Segments come back under new numbers with their old bytes.
//! Snapshots are there whole or not at all; the newest may turn out damaged. Bits flip only where later blocks prove that
//! what was there was durable: what is behind the last of them cannot be told from a torn write by any reader.

use std::collections::BTreeMap;
use std::io;

use taskmaster_storage::buffer::AlignedBuffer;
use taskmaster_storage::wal::{Segment, SegmentSource, WriteOp};

use super::dice::Dice;

/// Length of every segment, in bytes.
pub(crate) const SEGMENT_LEN: u64 = 2 << 20;
const SECTOR: usize = 512;
/// Snapshots that are kept.
const KEPT: usize = 2;
/// Newest blocks that stay as they are: more than the writes under way at once.
const PROVING: usize = 4;

/// A whole snapshot.
pub(crate) struct Snapshot {
    /// Block of the log up to which it stands.
    pub(crate) seq: u64,
    /// With their tags.
    pub(crate) chunks: Vec<(u32, Vec<u8>)>,
}

/// The disk of one shard.
#[derive(Default)]
pub(crate) struct Disk {
    durable: BTreeMap<u32, Vec<u8>>,
    under_way: Vec<WriteOp<AlignedBuffer>>,
    /// Where durable blocks lie, by their number: segment, offset, length.
    blocks: BTreeMap<u64, (u32, u64, usize)>,
    /// Retired segments, oldest first, to be reused.
    pub(crate) retired: Vec<Segment>,
    /// Newest last.
    pub(crate) snapshots: Vec<Snapshot>,
    /// No new segment can be made.
    pub(crate) full: bool,
    /// Writes take long until then.
    pub(crate) slow_until_us: u64,
    rotten: bool,
}

impl Disk {
    pub(crate) fn start(&mut self, op: WriteOp<AlignedBuffer>) {
        self.under_way.push(op);
    }

    /// The write of block `seq` completes.
    pub(crate) fn complete(&mut self, seq: u64) {
        let index = self.under_way.iter().position(|op| op.seq == seq).expect("only writes under way complete");
        let op = self.under_way.remove(index);
        self.blocks.insert(op.seq, (op.segment, op.offset, op.len));
        self.land(op.segment, op.offset, &op.buffer.as_ref()[..op.len]);
    }

    /// The process is gone and the machine is not: all writes under way land.
    pub(crate) fn complete_all(&mut self) {
        while let Some(seq) = self.under_way.first().map(|op| op.seq) {
            self.complete(seq);
        }
        self.retired.clear();
    }

    fn land(&mut self, segment: u32, offset: u64, bytes: &[u8]) {
        let at = usize::try_from(offset).expect("segments are small");
        let file = self.durable.get_mut(&segment).expect("writes go to prepared segments");
        file[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// The power fails: of each write under way any sectors land.
    pub(crate) fn lose_power(&mut self, dice: &mut Dice) {
        for op in std::mem::take(&mut self.under_way) {
            let fate = dice.below(4);
            for (sector, bytes) in op.buffer.as_ref()[..op.len].chunks(SECTOR).enumerate() {
                let lands = match fate {
                    0 => false,
                    1 => true,
                    2 => dice.chance(50),
                    _ => dice.chance(95),
                };
                if lands {
                    self.land(op.segment, op.offset + (sector * SECTOR) as u64, bytes);
                }
            }
        }
        self.retired.clear();
    }

    /// A bit flips in the log, where it was durable. `false` when there is no such place.
    pub(crate) fn rot(&mut self, dice: &mut Dice) -> bool {
        let Some(count) = self.blocks.len().checked_sub(PROVING).filter(|count| *count > 0) else { return false };
        let (segment, offset, len) = *self.blocks.values().nth(dice.index(count)).expect("counted");
        let at = usize::try_from(offset).expect("segments are small") + dice.index(len);
        let byte = &mut self.durable.get_mut(&segment).expect("blocks lie in segments")[at];
        *byte ^= 1 << dice.below(8);
        self.rotten = true;
        true
    }

    /// A bit has flipped.
    pub(crate) const fn is_rotten(&self) -> bool {
        self.rotten
    }

    /// Makes segment `number`, from a retired one if there is one. `None` when the disk is full.
    pub(crate) fn prepare(&mut self, number: u32) -> Option<Segment> {
        let bytes = if self.retired.is_empty() {
            if self.full {
                return None;
            }
            vec![0; usize::try_from(SEGMENT_LEN).expect("segments are small")]
        } else {
            let old = self.retired.remove(0);
            self.blocks.retain(|_, (segment, ..)| *segment != old.number);
            self.durable.remove(&old.number).expect("retired segments exist")
        };
        self.durable.insert(number, bytes);
        Some(Segment { number, len: SEGMENT_LEN })
    }

    /// Keeps a finished snapshot and drops old ones. Returns the block up to which the log is needed no longer.
    pub(crate) fn keep(&mut self, snapshot: Snapshot) -> Option<u64> {
        self.snapshots.retain(|kept| kept.seq != snapshot.seq);
        self.snapshots.push(snapshot);
        let surplus = self.snapshots.len().saturating_sub(KEPT);
        self.snapshots.drain(..surplus);
        (self.snapshots.len() == KEPT).then(|| self.snapshots[0].seq)
    }
}

impl SegmentSource for Disk {
    fn segments(&mut self) -> io::Result<Vec<Segment>> {
        Ok(self.durable.iter().map(|(number, bytes)| Segment { number: *number, len: bytes.len() as u64 }).collect())
    }

    fn read_at(&mut self, segment: Segment, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let at = usize::try_from(offset).expect("segments are small");
        out.copy_from_slice(&self.durable[&segment.number][at..at + out.len()]);
        Ok(())
    }

    fn name(&self, number: u32) -> String {
        format!("segment {number}")
    }
}

//! The log against a disk that forgets: what was acknowledged is recovered in order, nothing is invented, and damage to
//! what was durable is an error.
//!
//! The disk keeps durable bytes apart from writes in flight. A crash lands any subset of the 512-byte sectors of each write in
//! flight; completions come in any order. Retired segments come back under a new number with their old bytes.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::io;

use proptest::prelude::*;
use taskmaster_storage::wal::{
    Config, CorruptKind, HeapBuffers, LogEnd, RecoverError, Recovered, ScanParams, Segment, SegmentSource, WriteOp,
    Writer, recover, recover_bytes,
};

const IDENTITY: u64 = 0x5eed_1e55_0dd5_1de5;
const SECTOR: usize = 512;
const SEGMENT_LEN: u64 = 64 << 10;

fn config() -> Config {
    Config {
        segment_bytes: SEGMENT_LEN,
        block_bytes_target: 12 << 10,
        block_bytes_max: 24 << 10,
        unflushed_bytes_max: 96 << 10,
        writes_in_flight_max: 4,
        overlap_bytes_min: 0,
        segments_ahead: 2,
        spare_segments_max: 4,
        disk_reserve_bytes: 0,
    }
}

/// Deterministic numbers for the choices inside one action.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[derive(Default, Clone)]
struct Disk {
    durable: BTreeMap<u32, Vec<u8>>,
}

impl Disk {
    fn write(&mut self, segment: u32, offset: u64, bytes: &[u8]) {
        let at = usize::try_from(offset).unwrap();
        self.durable.get_mut(&segment).expect("writes go to prepared segments")[at..at + bytes.len()]
            .copy_from_slice(bytes);
    }
}

impl SegmentSource for Disk {
    fn segments(&mut self) -> io::Result<Vec<Segment>> {
        Ok(self.durable.iter().map(|(number, bytes)| Segment { number: *number, len: bytes.len() as u64 }).collect())
    }

    fn read_at(&mut self, segment: Segment, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let at = usize::try_from(offset).unwrap();
        out.copy_from_slice(&self.durable[&segment.number][at..at + out.len()]);
        Ok(())
    }

    fn name(&self, number: u32) -> String {
        format!("segment {number}")
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    seq: u64,
    id: u64,
    len: usize,
}

fn body(id: u64, len: usize) -> Vec<u8> {
    let mut dice = Dice(id);
    let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| dice.roll().to_le_bytes()).collect();
    bytes.truncate(len);
    bytes
}

struct World {
    disk: Disk,
    writer: Writer<HeapBuffers>,
    in_flight: Vec<WriteOp<taskmaster_storage::buffer::AlignedBuffer>>,
    retired: Vec<Segment>,
    /// Writes of a dead process that have not landed yet, into segments that it left behind.
    ghosts: Vec<WriteOp<taskmaster_storage::buffer::AlignedBuffer>>,
    /// Seq of the block that opens the current term.
    opened_by: u64,
    /// All that was appended and not lost in a crash, in order.
    log: Vec<Entry>,
    acknowledged: usize,
    snapshot_seq: u64,
    next_id: u64,
    term: u32,
}

impl World {
    fn new() -> Self {
        let mut disk = Disk::default();
        let writer = Writer::new(config(), HeapBuffers, IDENTITY, 1, LogEnd::fresh());
        disk.durable.clear();
        Self {
            disk,
            writer,
            in_flight: Vec::new(),
            retired: Vec::new(),
            ghosts: Vec::new(),
            opened_by: 1,
            log: Vec::new(),
            acknowledged: 0,
            snapshot_seq: 0,
            next_id: 1,
            term: 1,
        }
    }

    fn prepare(&mut self) {
        while let Some(number) = self.writer.wants_segment() {
            let bytes = if self.retired.is_empty() {
                vec![0; usize::try_from(SEGMENT_LEN).unwrap()]
            } else {
                self.disk.durable.remove(&self.retired.remove(0).number).unwrap()
            };
            self.disk.durable.insert(number, bytes);
            self.writer.segment_prepared(Segment { number, len: SEGMENT_LEN });
        }
    }

    fn append(&mut self, len: usize) {
        let bytes = body(self.next_id, len);
        let (left, right) = bytes.split_at(len / 3);
        if let Ok(position) = self.writer.append(7, self.next_id, &[left, right]) {
            self.log.push(Entry { seq: position.seq, id: self.next_id, len });
            self.next_id += 1;
        }
    }

    fn submit(&mut self) {
        while let Some(op) = self.writer.poll_write() {
            self.in_flight.push(op);
        }
    }

    fn complete(&mut self, pick: u64) {
        if self.in_flight.is_empty() {
            return;
        }
        let index = usize::try_from(pick % self.in_flight.len() as u64).unwrap();
        let op = self.in_flight.remove(index);
        self.disk.write(op.segment, op.offset, &op.buffer.as_ref()[..op.len]);
        self.writer.written(op.seq);
        let durable = self.writer.durable_seq();
        self.acknowledged = self.log.iter().take_while(|entry| entry.seq <= durable).count();
    }

    fn settle(&mut self) {
        loop {
            self.prepare();
            self.submit();
            if self.in_flight.is_empty() {
                return;
            }
            self.complete(0);
        }
    }

    /// A snapshot of all that is durable: segments under it are retired.
    fn snapshot(&mut self) {
        self.snapshot_seq = self.writer.durable_seq();
        self.retired.extend(self.writer.retire(self.snapshot_seq));
    }

    fn lose_power(&mut self, dice: &mut Dice) {
        for op in std::mem::take(&mut self.in_flight) {
            let fate = dice.roll() % 5;
            if fate == 4 {
                self.ghosts.push(op);
                continue;
            }
            for (sector, bytes) in op.buffer.as_ref()[..op.len].chunks(SECTOR).enumerate() {
                let lands = match fate {
                    0 => false,
                    1 => true,
                    _ => dice.roll().is_multiple_of(2),
                };
                if lands {
                    self.disk.write(op.segment, op.offset + (sector * SECTOR) as u64, bytes);
                }
            }
        }
    }

    /// Lands what was still on its way when the process died, after the next one has opened its term (before that, a late
    /// record is as good as one that landed in time). What would hit a segment in use again has landed before.
    fn land_ghosts(&mut self) {
        if self.writer.durable_seq() < self.opened_by {
            return;
        }
        for op in std::mem::take(&mut self.ghosts) {
            if self.disk.durable.contains_key(&op.segment) {
                self.disk.write(op.segment, op.offset, &op.buffer.as_ref()[..op.len]);
            }
        }
    }

    fn restart(&mut self) -> Result<Recovered, String> {
        let mut read = Vec::new();
        let params = ScanParams { after_seq: self.snapshot_seq, ..ScanParams::whole(IDENTITY) };
        let recovered = recover(&mut self.disk, params, |record| {
            assert_eq!(record.bytes.as_ptr().align_offset(16), 0, "records are aligned");
            assert_eq!(record.kind, 7);
            assert_eq!(record.bytes, body(record.stamp, record.bytes.len()));
            read.push(Entry { seq: record.seq, id: record.stamp, len: record.bytes.len() });
            Ok(())
        })
        .map_err(|error| error.to_string())?;
        let covered = self.log.iter().take_while(|entry| entry.seq <= self.snapshot_seq).count();
        let kept = covered + read.len();
        if kept < self.acknowledged {
            return Err(format!("{} records were acknowledged and {kept} recovered", self.acknowledged));
        }
        if self.log.get(covered..kept) != Some(&read[..]) {
            return Err("what was recovered is not what was appended".to_owned());
        }
        self.log.truncate(kept);
        let behind = |segment: u32| recovered.end.used.iter().any(|used| used.segment.number == segment);
        self.ghosts.retain(|op| behind(op.segment));
        self.acknowledged = kept;
        self.opened_by = recovered.end.last_seq + 1;
        self.term += 1;
        self.retired.clear();
        self.writer = Writer::new(config(), HeapBuffers, IDENTITY, self.term, recovered.end.clone());
        self.retired.extend(self.writer.retire(self.snapshot_seq));
        Ok(recovered)
    }
}

#[derive(Debug, Clone)]
enum Action {
    Append(usize),
    Submit,
    Complete(u64),
    Prepare,
    Snapshot,
    LandGhosts,
    Crash(u64),
    Shutdown,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        6 => (0usize..3000).prop_map(Action::Append),
        1 => (3000usize..24_000).prop_map(Action::Append),
        5 => Just(Action::Submit),
        5 => any::<u64>().prop_map(Action::Complete),
        3 => Just(Action::Prepare),
        1 => Just(Action::Snapshot),
        1 => Just(Action::LandGhosts),
        1 => any::<u64>().prop_map(Action::Crash),
        1 => Just(Action::Shutdown),
    ]
}

fn perform(world: &mut World, action: &Action) -> Result<(), String> {
    match action {
        Action::Append(len) => world.append(*len),
        Action::Submit => world.submit(),
        Action::Complete(pick) => world.complete(*pick),
        Action::Prepare => world.prepare(),
        Action::LandGhosts => world.land_ghosts(),
        Action::Snapshot => world.snapshot(),
        Action::Crash(seed) => {
            world.lose_power(&mut Dice(*seed));
            world.restart()?;
        }
        Action::Shutdown => {
            world.writer.close();
            world.settle();
            assert!(world.writer.is_closed());
            let recovered = world.restart()?;
            if !recovered.closed || recovered.torn.is_some() {
                return Err("an orderly shutdown is seen as one".to_owned());
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn acknowledged_records_survive_any_crash_in_order_and_none_is_invented(
        actions in prop::collection::vec(action(), 1..150),
        last in any::<u64>(),
    ) {
        let mut world = World::new();
        for action in actions.iter().chain([&Action::Crash(last)]) {
            perform(&mut world, action).map_err(TestCaseError::fail)?;
        }
        let settled = world.log.len();
        world.settle();
        prop_assert_eq!(world.acknowledged, settled);
    }

    #[test]
    fn any_bytes_end_recovery_with_a_result(
        lens in prop::collection::vec(0usize..9000, 1..12),
        damage in prop::collection::vec((any::<usize>(), any::<u8>()), 0..40),
        after_seq in 0u64..6,
        segment_len in prop_oneof![Just(1usize), Just(20_000), Just(64 << 10)],
    ) {
        let mut world = World::new();
        for len in lens {
            world.append(len);
            world.settle();
        }
        let mut bytes: Vec<u8> = world.disk.durable.values().flatten().copied().collect();
        for (at, byte) in damage {
            // Most of the interest is in headers, at the start of pages.
            let at = if byte % 2 == 0 { at % bytes.len() } else { at % bytes.len() / 4096 * 4096 + at % 64 };
            bytes[at] = byte;
        }
        let _ = recover_bytes(&bytes, segment_len, ScanParams { after_seq, ..ScanParams::whole(IDENTITY) });
    }

    #[test]
    fn a_flipped_bit_in_a_durable_block_is_an_error(
        lens in prop::collection::vec(0usize..9000, 2..20),
        pick in any::<u64>(),
        close in any::<bool>(),
    ) {
        let mut world = World::new();
        let mut blocks = Vec::new();
        for len in lens {
            world.append(len);
            loop {
                world.prepare();
                world.submit();
                let Some(op) = world.in_flight.first() else { break };
                let used = 64 + usize::try_from(u32::from_le_bytes(op.buffer.as_ref()[12..16].try_into().unwrap())).unwrap();
                blocks.push((op.segment, op.offset, used));
                world.complete(0);
            }
        }
        if close {
            world.writer.close();
            world.settle();
        } else {
            // Without a later write nothing tells damage to the last block from a torn write.
            blocks.pop();
        }
        let mut dice = Dice(pick);
        let choice = usize::try_from(dice.roll() % blocks.len() as u64).unwrap();
        let (segment, offset, used) = blocks[choice];
        let bit = usize::try_from(dice.roll() % (used as u64 * 8)).unwrap();
        let at = usize::try_from(offset).unwrap() + bit / 8;
        // Bytes 60..64 are reserved and inside the checksum like all others.
        world.disk.durable.get_mut(&segment).unwrap()[at] ^= 1 << (bit % 8);
        let outcome = recover(&mut world.disk, ScanParams::whole(IDENTITY), |_| Ok(()));
        match outcome {
            Err(RecoverError::Corrupt { kind: CorruptKind::BlockLost | CorruptKind::SnapshotUncovered, .. }) => {}
            other => return Err(TestCaseError::fail(format!("block {} of {segment}/{offset}: {other:?}", choice + 1))),
        }
    }
}

#[test]
fn a_missing_segment_between_two_is_an_error() {
    let mut world = World::new();
    for _ in 0..40 {
        world.append(8000);
        world.settle();
    }
    world.disk.durable.remove(&3);
    let outcome = recover(&mut world.disk, ScanParams::whole(IDENTITY), |_| Ok(()));
    assert!(matches!(outcome, Err(RecoverError::Corrupt { kind: CorruptKind::SegmentMissing, .. })), "{outcome:?}");
}

#[test]
fn blocks_of_another_data_directory_are_refused() {
    let mut world = World::new();
    world.append(10);
    world.settle();
    let outcome = recover(&mut world.disk, ScanParams::whole(IDENTITY + 1), |_| Ok(()));
    assert!(matches!(outcome, Err(RecoverError::Corrupt { kind: CorruptKind::Foreign, .. })), "{outcome:?}");
}

#[test]
fn a_log_shorter_than_its_snapshot_is_an_error() {
    let mut world = World::new();
    world.append(10);
    world.settle();
    let after_seq = world.writer.durable_seq() + 1;
    let outcome = recover(&mut world.disk, ScanParams { after_seq, ..ScanParams::whole(IDENTITY) }, |_| Ok(()));
    assert!(matches!(outcome, Err(RecoverError::Corrupt { kind: CorruptKind::SnapshotUncovered, .. })), "{outcome:?}");
}

#[test]
fn a_torn_tail_is_cut_and_reported_and_the_log_goes_on_in_a_fresh_segment() {
    let mut world = World::new();
    world.settle();
    world.append(100);
    world.settle();
    for _ in 0..3 {
        world.append(6000);
        world.append(6000);
        world.submit();
    }
    assert!(world.in_flight.len() > 1);
    let first = world.in_flight.remove(0);
    world.disk.write(first.segment, first.offset, &first.buffer.as_ref()[..SECTOR]);
    for op in std::mem::take(&mut world.in_flight) {
        world.disk.write(op.segment, op.offset, &op.buffer.as_ref()[..op.len]);
    }
    let recovered = world.restart().unwrap();
    let torn = recovered.torn.expect("the tail is torn");
    assert_eq!((torn.seq, torn.offset), (first.seq, first.offset));
    assert!(torn.blocks_ignored >= 1);
    assert_eq!(recovered.end.active, None);
    world.prepare();
    world.submit();
    assert!(world.in_flight[0].segment > first.segment);
    assert_eq!((world.in_flight[0].seq, world.in_flight[0].offset), (first.seq, 0));
    world.settle();
    world.append(5);
    world.settle();
    assert!(world.restart().unwrap().torn.is_none());
    assert_eq!(world.log.len(), 2);
}

//! The pure halves of the log: appending records into blocks, and reading them back. No disk: a write is handed to nobody.
//!
//! `append` is what the shard's thread pays for a record: the copy, and its part of sealing the block and of making the next
//! block's buffer. `recover` reads a log of 64 MiB from memory. Both are per record.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use taskmaster_storage::buffer::AlignedBuffer;
use taskmaster_storage::wal::{Config, HeapBuffers, LogEnd, ScanParams, Segment, WriteOp, Writer, recover_bytes};

const IDENTITY: u64 = 1;
const RECORD_BYTES: [usize; 2] = [128, 8 << 10];
/// Records appended between writes: what a busy turn gathers.
const TURN_BYTES: usize = 256 << 10;
const LOG_BYTES: usize = 64 << 20;

/// A log whose writes complete as soon as they begin.
struct Log {
    writer: Writer<HeapBuffers>,
    record: Vec<u8>,
    stamp: u64,
}

impl Log {
    fn new(record_bytes: usize) -> Self {
        let writer = Writer::new(Config::default(), HeapBuffers, IDENTITY, 1, LogEnd::fresh());
        Self { writer, record: vec![0x5A; record_bytes], stamp: 0 }
    }

    fn append(&mut self, records: usize) {
        for _ in 0..records {
            self.stamp += 1;
            self.writer.append(1, self.stamp, &[&self.record]).expect("every turn is written");
        }
    }

    /// Writes everything, handing each block to `written`.
    fn write(&mut self, mut written: impl FnMut(&WriteOp<AlignedBuffer>)) {
        loop {
            while let Some(number) = self.writer.wants_segment() {
                self.writer.segment_prepared(Segment { number, len: self.writer.config().segment_bytes });
            }
            let Some(op) = self.writer.poll_write() else { break };
            written(&op);
            self.writer.written(op.seq);
        }
        self.writer.retire(self.writer.durable_seq());
    }
}

fn append(c: &mut Criterion) {
    let mut group = c.benchmark_group("wal append");
    group.sample_size(20);
    for record_bytes in RECORD_BYTES {
        let mut log = Log::new(record_bytes);
        let records = TURN_BYTES / record_bytes;
        group.throughput(Throughput::Elements(u64::try_from(records).expect("few")));
        group.bench_function(BenchmarkId::from_parameter(record_bytes), |b| {
            b.iter(|| {
                log.append(records);
                log.write(|op| _ = black_box(op.len));
            });
        });
    }
    group.finish();
}

/// The bytes of a log, as its segments lie one behind the other.
fn logged(record_bytes: usize) -> (Vec<u8>, u64) {
    let mut log = Log::new(record_bytes);
    let segment_bytes = usize::try_from(log.writer.config().segment_bytes).expect("segments are small");
    let mut bytes = vec![0; LOG_BYTES.next_multiple_of(segment_bytes) + segment_bytes];
    for _ in 0..LOG_BYTES / TURN_BYTES {
        log.append(TURN_BYTES / record_bytes);
        log.write(|op| {
            let segment = usize::try_from(op.segment - 1).expect("few");
            let at = segment * segment_bytes + usize::try_from(op.offset).expect("inside a segment");
            bytes[at..at + op.len].copy_from_slice(&op.buffer.as_ref()[..op.len]);
        });
    }
    (bytes, log.stamp)
}

fn recover(c: &mut Criterion) {
    let mut group = c.benchmark_group("wal recover");
    group.sample_size(10);
    for record_bytes in RECORD_BYTES {
        let (bytes, records) = logged(record_bytes);
        let segment_bytes = usize::try_from(Config::default().segment_bytes).expect("segments are small");
        group.throughput(Throughput::Elements(records));
        group.bench_function(BenchmarkId::from_parameter(record_bytes), |b| {
            b.iter(|| {
                let found =
                    recover_bytes(&bytes, segment_bytes, ScanParams::whole(IDENTITY)).expect("the log is whole");
                assert_eq!(found.records, records, "every record is read");
            });
        });
    }
    group.finish();
}

criterion_group!(benches, append, recover);
criterion_main!(benches);

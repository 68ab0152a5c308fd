//! Frames on and off the wire: what a request costs before anybody thinks about it. Divide by the rows of a case.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use taskmaster_protocol::body::{
    self, ArchivedAssign, ArchivedBatchReply, ArchivedComplete, ArchivedSubmit, Assign, AssignRow, AssignSpec,
    BatchReply, Body, Complete, CompleteRow, Spec, Submit, TaskRow,
};
use taskmaster_protocol::frame::{self, Header};
use taskmaster_protocol::{FrameBuffer, Operation, PartitionId, TaskId};

const PAYLOAD: [u8; 64] = [0x5A; 64];
const ROWS: [u32; 3] = [1, 64, 1024];

fn id(number: u32) -> TaskId {
    TaskId::new(1_700_000_000_000, PartitionId(3), 77, number)
}

fn submit(rows: u32) -> Submit {
    let mut bytes = Vec::new();
    let (queue, kind) = (body::put(&mut bytes, b"emails"), body::put(&mut bytes, b"send"));
    let row = |number| TaskRow { id: id(number), payload: body::put(&mut bytes, &PAYLOAD), ..TaskRow::default() };
    let tasks = (0..rows).map(row).collect();
    Submit { specs: vec![Spec { queue, kind, ..Spec::default() }], tasks, bytes, ..Submit::default() }
}

fn assign(rows: u32) -> Assign {
    let mut bytes = Vec::new();
    let (queue, kind) = (body::put(&mut bytes, b"emails"), body::put(&mut bytes, b"send"));
    let row = |number| AssignRow { id: id(number), payload: body::put(&mut bytes, &PAYLOAD), ..AssignRow::default() };
    let rows = (0..rows).map(row).collect();
    Assign { specs: vec![AssignSpec { queue, kind, ..AssignSpec::default() }], rows, bytes }
}

fn complete(rows: u32) -> Complete {
    let row = |number| CompleteRow { id: id(number), token: u64::from(number), ..CompleteRow::default() };
    Complete { rows: (0..rows).map(row).collect(), bytes: Vec::new() }
}

fn framed<B: Body>(body: &B) -> FrameBuffer {
    let mut out = FrameBuffer::new();
    frame::encode(&mut out, Header::request(B::OPERATION, 9, Some(PartitionId(3))), body);
    out
}

/// Decodes: checksum, layout, and a walk over every row with its payload.
fn decode(c: &mut Criterion) {
    let mut group = c.benchmark_group("frame decode");
    for rows in ROWS {
        group.throughput(Throughput::Elements(u64::from(rows)));
        let bytes = framed(&submit(rows));
        group.bench_with_input(BenchmarkId::new("submit", rows), &bytes, |b, bytes| {
            b.iter(|| {
                let (frame, _) = frame::parse(bytes).expect("well formed").expect("whole");
                let submit = body::access::<ArchivedSubmit>(frame.body).expect("a submit body");
                for row in submit.tasks.iter() {
                    black_box((&row.id, body::slice(&submit.bytes, row.payload).expect("inside")));
                }
            });
        });
        let bytes = framed(&assign(rows));
        group.bench_with_input(BenchmarkId::new("assign", rows), &bytes, |b, bytes| {
            b.iter(|| {
                let (frame, _) = frame::parse(bytes).expect("well formed").expect("whole");
                let assign = body::access::<ArchivedAssign>(frame.body).expect("an assign body");
                for row in assign.rows.iter() {
                    black_box((&row.id, body::slice(&assign.bytes, row.payload).expect("inside")));
                }
            });
        });
        let bytes = framed(&complete(rows));
        group.bench_with_input(BenchmarkId::new("complete", rows), &bytes, |b, bytes| {
            b.iter(|| {
                let (frame, _) = frame::parse(bytes).expect("well formed").expect("whole");
                let complete = body::access::<ArchivedComplete>(frame.body).expect("a complete body");
                for row in complete.rows.iter() {
                    black_box((&row.id, row.token, row.locator));
                }
            });
        });
    }
    group.throughput(Throughput::Elements(1));
    let bytes = framed(&BatchReply { accepted: 64, exceptions: Vec::new() });
    group.bench_function("batch reply", |b| {
        b.iter(|| {
            let (frame, _) = frame::parse(&bytes).expect("well formed").expect("whole");
            black_box(body::access::<ArchivedBatchReply>(frame.body).expect("a reply body").accepted);
        });
    });
    group.finish();
}

/// Encodes a prepared body into a reused buffer.
fn encode(c: &mut Criterion) {
    fn case<B: Body>(group: &mut criterion::BenchmarkGroup<'_, criterion::measurement::WallTime>, rows: u32, body: &B) {
        let header = Header::request(B::OPERATION, 9, Some(PartitionId(3)));
        let mut out = FrameBuffer::new();
        group.throughput(Throughput::Elements(u64::from(rows)));
        group.bench_function(BenchmarkId::new(format!("{:?}", B::OPERATION).to_lowercase(), rows), |b| {
            b.iter(|| {
                out.clear();
                frame::encode(&mut out, header, black_box(body));
                black_box(out.len())
            });
        });
    }
    let mut group = c.benchmark_group("frame encode");
    for rows in ROWS {
        case(&mut group, rows, &submit(rows));
        case(&mut group, rows, &assign(rows));
        case(&mut group, rows, &complete(rows));
    }
    group.finish();
}

/// The checksum alone, the part of both that grows with the bytes.
fn checksum(c: &mut Criterion) {
    let mut group = c.benchmark_group("frame checksum");
    for rows in ROWS {
        let body = vec![0x5A; framed(&submit(rows)).len()];
        group.throughput(Throughput::Bytes(body.len() as u64));
        let header = Header::request(Operation::Submit, 9, None);
        let mut out = FrameBuffer::new();
        group.bench_function(BenchmarkId::new("encode_raw", rows), |b| {
            b.iter(|| {
                out.clear();
                frame::encode_raw(&mut out, header, black_box(&body));
            });
        });
    }
    group.finish();
}

criterion_group!(benches, decode, encode, checksum);
criterion_main!(benches);

//! The timing wheel at a steady number of pending entries: one insert and one firing per element.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use taskmaster_engine::wheel::Wheel;

/// What the engine keeps per timer: 12 bytes.
type Item = [u32; 3];

const DELAY_MS: u64 = 30_000;

/// A wheel whose entries are spread evenly over the next `DELAY_MS`.
fn filled(pending: u64) -> Wheel<Item> {
    let mut wheel = Wheel::new(0);
    for i in 0..pending {
        wheel.insert(i * DELAY_MS / pending, [0; 3]);
    }
    wheel
}

fn steady(c: &mut Criterion) {
    let mut group = c.benchmark_group("wheel/insert_and_fire");
    for pending in [1_000, 100_000, 10_000_000_u64] {
        let mut content = None;
        let mut out = Vec::new();
        let mut now_ms = 0;
        let mut inserted = 0_u64;
        group.throughput(Throughput::Elements(1));
        group.bench_function(BenchmarkId::from_parameter(pending), |b| {
            let wheel = content.get_or_insert_with(|| filled(pending));
            b.iter(|| {
                // Due times come from a counter: the delay stays constant and the rate fits the number pending.
                let start_ms = inserted * DELAY_MS / pending;
                inserted += 1;
                wheel.insert(start_ms + DELAY_MS, [1; 3]);
                if start_ms > now_ms {
                    now_ms = start_ms;
                    while wheel.expire(now_ms, 4096, &mut out) {
                        out.clear();
                    }
                    black_box(&out);
                    out.clear();
                }
            });
        });
    }
    group.finish();
}

fn scattered_inserts(c: &mut Criterion) {
    let mut group = c.benchmark_group("wheel/insert_scattered");
    group.throughput(Throughput::Elements(1_000_000));
    group.sample_size(10);
    group.bench_function("1e6_over_an_hour", |b| {
        b.iter(|| {
            let mut wheel = Wheel::new(0);
            let mut state = 1_u64;
            for _ in 0..1_000_000 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                wheel.insert((state >> 33) % 3_600_000, [0_u32; 3]);
            }
            wheel
        });
    });
    group.finish();
}

fn sleep_bound(c: &mut Criterion) {
    let wheel = filled(100_000);
    c.bench_function("wheel/next_due", |b| b.iter(|| black_box(&wheel).next_due_ms()));
}

criterion_group!(benches, steady, scattered_inserts, sleep_bound);
criterion_main!(benches);

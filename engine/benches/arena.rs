//! The arena with many live objects: one allocation, one read and one free per element.

use std::collections::VecDeque;
use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use taskmaster_engine::arena::{Arena, Handle};

const PAYLOAD: [u8; 64] = [7; 64];

fn filled(objects: usize) -> (Arena, Vec<Handle>) {
    let mut arena = Arena::new(u64::MAX);
    let handles = (0..objects).map(|_| arena.alloc(&PAYLOAD).expect("no limit")).collect();
    (arena, handles)
}

/// Oldest first, as tasks usually end.
fn in_order(c: &mut Criterion) {
    let mut group = c.benchmark_group("arena/alloc_get_free_64B_oldest");
    group.throughput(Throughput::Elements(1));
    for live in [1_000, 100_000, 10_000_000] {
        let mut state = None;
        group.bench_function(BenchmarkId::from_parameter(live), |b| {
            let (arena, queue) = state.get_or_insert_with(|| {
                let (arena, handles) = filled(live);
                (arena, VecDeque::from(handles))
            });
            b.iter(|| {
                queue.push_back(arena.alloc(&PAYLOAD).expect("no limit"));
                let oldest = queue.pop_front().expect("never empty");
                black_box(arena.get(oldest)[0]);
                arena.free(oldest);
            });
        });
    }
    group.finish();
}

/// In random order: the worst for caches.
fn at_random(c: &mut Criterion) {
    let mut group = c.benchmark_group("arena/alloc_get_free_64B_random");
    group.throughput(Throughput::Elements(1));
    for live in [1_000, 100_000, 10_000_000] {
        let mut content = None;
        let mut state = 1_u64;
        group.bench_function(BenchmarkId::from_parameter(live), |b| {
            let (arena, handles) = content.get_or_insert_with(|| filled(live));
            b.iter(|| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let index = usize::try_from(state >> 33).expect("31 bits") % live;
                black_box(arena.get(handles[index])[0]);
                arena.free(handles[index]);
                handles[index] = arena.alloc(&PAYLOAD).expect("no limit");
            });
        });
    }
    group.finish();
}

/// Payloads of mixed length, about 100 MB live.
fn mixed(c: &mut Criterion) {
    let mut group = c.benchmark_group("arena/alloc_free_mixed");
    let payload = vec![7; 40_000];
    for (name, len_max) in [("to_512B", 512), ("to_16KiB", 16 * 1024), ("to_40KB", 40_000)] {
        let live = 200_000_000 / len_max;
        let mut arena = Arena::new(u64::MAX);
        let mut state = 1_u64;
        let mut number = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            usize::try_from(state >> 33).expect("31 bits")
        };
        let mut handles: Vec<Handle> =
            (0..live).map(|_| arena.alloc(&payload[..number() % len_max]).expect("no limit")).collect();
        group.throughput(Throughput::Elements(1));
        group.bench_function(name, |b| {
            b.iter(|| {
                let index = number() % live;
                arena.free(handles[index]);
                handles[index] = arena.alloc(&payload[..number() % len_max]).expect("no limit");
            });
        });
    }
    group.finish();
}

criterion_group!(benches, in_order, at_random, mixed);
criterion_main!(benches);

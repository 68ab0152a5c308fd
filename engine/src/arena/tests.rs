//! The arena against a map of byte vectors, and its bounds on memory.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;

const UNLIMITED: u64 = u64::MAX;

/// The arena with a model of its content.
struct Pair {
    arena: Arena,
    model: HashMap<Handle, Vec<u8>>,
    order: Vec<Handle>,
    cold: HashSet<Handle>,
}

impl Pair {
    fn new(limit_bytes: u64) -> Self {
        Self { arena: Arena::new(limit_bytes), model: HashMap::new(), order: Vec::new(), cold: HashSet::new() }
    }

    fn alloc(&mut self, bytes: Vec<u8>) {
        let before = self.arena.stats();
        let fits = Arena::charge_bytes(bytes.len()) <= self.arena.headroom_bytes();
        match self.arena.alloc(&bytes) {
            Ok(handle) if bytes.is_empty() => assert!(handle.is_none()),
            Ok(handle) => {
                assert!(fits);
                assert_eq!(self.arena.get(handle), bytes);
                assert!(self.model.insert(handle, bytes).is_none(), "{handle:?} was in use");
                self.order.push(handle);
            }
            Err(full) => {
                assert!(!fits);
                assert_eq!((full.live_bytes, full.charged_bytes), (before.live_bytes, before.charged_bytes));
                assert_eq!(self.arena.stats(), before);
            }
        }
    }

    fn free(&mut self, index: usize) {
        if self.order.is_empty() {
            return;
        }
        let handle = self.order.swap_remove(index % self.order.len());
        let bytes = self.model.remove(&handle).unwrap();
        assert_eq!(self.arena.len_of(handle), bytes.len());
        assert_eq!(self.arena.get(handle), bytes);
        self.arena.free(handle);
        self.cold.remove(&handle);
    }

    fn demote(&mut self, index: usize) {
        if self.order.is_empty() {
            return;
        }
        let handle = self.order[index % self.order.len()];
        let len = self.arena.len_of(handle);
        let before = self.arena.stats();
        let mut demoted = self.arena.demote(handle);
        if demoted == Demoted::NoRoom {
            assert_eq!(self.arena.stats(), before);
            self.arena.give_extent(Box::new(vec![0; EXTENT_BYTES]));
            demoted = self.arena.demote(handle);
        }
        let after = self.arena.stats();
        let moved = if demoted == Demoted::Moved {
            assert!(self.cold.insert(handle));
            Arena::charge_bytes(len) - size_of::<Entry>() as u64
        } else {
            assert!(self.cold.contains(&handle) || !(DEMOTED_MIN_BYTES..=1 << 20).contains(&len));
            0
        };
        assert_eq!((after.live_bytes, after.charged_bytes), (before.live_bytes, before.charged_bytes - moved));
        assert_eq!(self.arena.get(handle), self.model[&handle]);
    }

    fn verify(&self) {
        for (&handle, bytes) in &self.model {
            assert_eq!(self.arena.get(handle), bytes);
            assert_eq!(self.arena.len_of(handle), bytes.len());
        }
        let stats = self.arena.stats();
        assert_eq!(stats.objects, self.model.len() as u64);
        assert_eq!(stats.live_bytes, self.model.values().map(|bytes| bytes.len() as u64).sum::<u64>());
        let charge = |(handle, bytes): (&Handle, &Vec<u8>)| {
            if self.cold.contains(handle) { size_of::<Entry>() as u64 } else { Arena::charge_bytes(bytes.len()) }
        };
        assert_eq!(stats.charged_bytes, self.model.iter().map(charge).sum::<u64>());
        let cold = self.model.iter().filter(|(handle, _)| self.cold.contains(*handle));
        assert_eq!(stats.cold_bytes, cold.map(|(_, bytes)| bytes.len() as u64).sum::<u64>());
        assert!(stats.reserved_bytes >= stats.charged_bytes);
        assert!(stats.charged_bytes >= stats.live_bytes - stats.cold_bytes);
        self.arena.verify();
        let slack = stats.reserved_bytes - stats.charged_bytes;
        assert!(slack <= self.arena.slack_max_bytes(), "{slack} bytes of slack in {stats:?}");
    }
}

impl Arena {
    /// Asserts that back-references, places and the handle table agree.
    fn verify(&self) {
        let small = self.classes.iter().flat_map(Dense::verify);
        let objects: Vec<(u32, u32)> = small.chain(self.large.verify()).collect();
        assert_eq!(objects.len() as u64 + self.cold.objects(), self.handles.live());
        for (handle, at) in objects {
            assert_eq!(self.handles.get(handle).at, at, "back-reference of {handle}");
        }
    }

    /// What may be reserved beyond the charges: the module header's bound, with room for chunk lists and handle blocks.
    fn slack_max_bytes(&self) -> u64 {
        let own = size_of::<Self>() + size_of_val(&*self.classes);
        let classes: u64 = self.classes.iter().map(|class| class.slack_max_bytes() as u64).sum();
        own as u64 + classes + self.large.reserved_bytes() / 4 + self.handles.reserved_bytes() + 1024
    }
}

impl Cold {
    /// Asserts that what is empty is known to be; how many objects there are.
    fn objects(&self) -> u64 {
        let used = || self.extents.iter().flatten();
        assert_eq!(used().filter(|used| used.objects == 0).count(), self.empty.len());
        used().map(|used| u64::from(used.objects)).sum()
    }
}

impl Dense {
    fn slack_max_bytes(&self) -> usize {
        let chunk_bytes = self.chunk_bytes();
        let reserved = usize::try_from(self.reserved_bytes()).unwrap();
        // A class of a single chunk that still grows has slack of three quarters of it; see `Dense`.
        if reserved < chunk_bytes { reserved } else { chunk_bytes + chunk_bytes / 2 + reserved / 100 + 4096 }
    }
}

/// `len` bytes that differ from one object to the next.
fn bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// A deterministic stream of pseudo-random numbers.
fn numbers(mut state: u64) -> impl FnMut() -> usize {
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap()
    }
}

fn len() -> impl Strategy<Value = usize> {
    prop_oneof![
        6 => 60_usize..68,
        4 => 0_usize..200,
        2 => 0_usize..3000,
        2 => 16_300_usize..16_500,
        1 => 0_usize..100_000,
        1 => Just(1 << 20),
    ]
}

#[derive(Clone, Debug)]
enum Op {
    Alloc(usize),
    Free(usize),
    /// Many of one length, to cross chunks.
    AllocMany(usize, usize),
    FreeMany(usize, usize),
    Demote(usize),
    DemoteMany(usize, usize),
    /// Gives back what is empty.
    TakeExtents,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => len().prop_map(Op::Alloc),
        6 => any::<usize>().prop_map(Op::Free),
        1 => (1_usize..600, 1_usize..400).prop_map(|(len, count)| Op::AllocMany(len, count)),
        1 => (any::<usize>(), 1_usize..400).prop_map(|(index, count)| Op::FreeMany(index, count)),
        4 => any::<usize>().prop_map(Op::Demote),
        1 => (any::<usize>(), 1_usize..400).prop_map(|(index, count)| Op::DemoteMany(index, count)),
        1 => Just(Op::TakeExtents),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn reads_like_a_map_and_accounts_for_every_byte(
        limit_bytes in prop_oneof![Just(UNLIMITED), 0_u64..3_000_000],
        ops in prop::collection::vec(op(), 1..120),
    ) {
        let mut pair = Pair::new(limit_bytes);
        for (seed, op) in (0..).zip(ops) {
            match op {
                Op::Alloc(len) => pair.alloc(bytes(len, seed)),
                Op::Free(index) => pair.free(index),
                Op::AllocMany(len, count) => (0..count).for_each(|i| pair.alloc(bytes(len, seed + 1000 * i as u64))),
                Op::FreeMany(index, count) => (0..count).for_each(|i| pair.free(index.wrapping_add(i * i))),
                Op::Demote(index) => pair.demote(index),
                Op::DemoteMany(index, count) => (0..count).for_each(|i| pair.demote(index.wrapping_add(i * i))),
                Op::TakeExtents => while pair.arena.take_extent().is_some() {},
            }
            if seed % 16 == 0 {
                pair.verify();
            }
        }
        pair.verify();
        while !pair.order.is_empty() {
            pair.free(0);
        }
        pair.verify();
    }
}

#[test]
fn random_churn_over_many_chunks_keeps_every_object_intact() {
    let mut pair = Pair::new(UNLIMITED);
    let mut number = numbers(1);
    for seed in 0..60_000 {
        pair.alloc(bytes(62 + number() % 4, seed));
    }
    pair.verify();
    for seed in 0..200_000 {
        pair.free(number());
        // Swing between 30,000 and 60,000 objects, across chunk and block edges.
        if seed % 60_000 < 30_000 {
            continue;
        }
        pair.alloc(bytes(62 + number() % 4, seed));
        pair.alloc(bytes(62 + number() % 4, seed + 1_000_000));
    }
    pair.verify();
}

#[test]
fn objects_of_no_bytes_cost_nothing() {
    let mut arena = Arena::new(0);
    let before = arena.stats();
    let handle = arena.alloc(&[]).unwrap();
    assert_eq!(handle, Handle::NONE);
    assert_eq!(handle, Handle::default());
    assert_eq!((arena.get(handle), arena.len_of(handle)), (&[][..], 0));
    arena.free(handle);
    arena.free(handle);
    assert_eq!(arena.stats(), before);
}

#[test]
fn a_full_arena_refuses_and_accepts_again_after_a_free() {
    let mut arena = Arena::new(2 * Arena::charge_bytes(64));
    let first = arena.alloc(&[1; 64]).unwrap();
    arena.alloc(&[2; 64]).unwrap();
    let full = arena.alloc(&[3]).unwrap_err();
    assert_eq!(full, Full { limit_bytes: 152, charged_bytes: 152, live_bytes: 128 });
    assert_eq!(full.to_string(), "arena full: 152 of 152 bytes are in use (128 of objects)");
    arena.free(first);
    let third = arena.alloc(&[3; 64]).unwrap();
    assert_eq!(arena.get(third), [3; 64]);
}

#[test]
#[should_panic(expected = "has been freed")]
fn a_freed_handle_cannot_be_read() {
    let mut arena = Arena::new(UNLIMITED);
    let handle = arena.alloc(b"gone").unwrap();
    let _other = arena.alloc(b"here").unwrap();
    arena.free(handle);
    let _ = arena.get(handle);
}

#[test]
fn a_payload_of_64_bytes_costs_at_most_14_more() {
    assert_eq!(Arena::charge_bytes(64), 64 + 12);
    let mut arena = Arena::new(UNLIMITED);
    let objects = 1_000_000;
    for i in 0..objects {
        arena.alloc(&[u8::try_from(i % 251).unwrap(); 64]).unwrap();
    }
    let overhead = arena.stats().reserved_bytes - arena.stats().live_bytes;
    assert!(overhead <= 14 * objects, "{overhead} bytes for {objects} objects");
}

#[test]
fn memory_returns_when_a_burst_is_freed_in_any_order() {
    for seed in 1..4 {
        let mut pair = Pair::new(UNLIMITED);
        let mut number = numbers(seed);
        for i in 0..50_000 {
            pair.alloc(bytes(1 + number() % 400, i));
        }
        let full = pair.arena.stats();
        while pair.order.len() > 500 {
            pair.free(number());
        }
        pair.verify();
        let left = pair.arena.stats();
        // Ten million bytes of objects became a hundred thousand; 100 classes keep a few small chunks.
        assert!(full.live_bytes > 9_000_000, "{full:?}");
        assert!(left.reserved_bytes < full.reserved_bytes / 10, "{left:?}");
        while !pair.order.is_empty() {
            pair.free(number());
        }
        let empty = pair.arena.stats();
        assert!(empty.reserved_bytes < 1024 * 1024, "{empty:?}");
    }
}

#[test]
fn freed_handles_are_used_again_before_the_table_grows() {
    let mut pair = Pair::new(UNLIMITED);
    let mut number = numbers(5);
    let highest = |pair: &Pair| pair.order.iter().map(|handle| handle.0).max().unwrap();
    for i in 0..70_000 {
        pair.alloc(bytes(8, i));
    }
    assert_eq!(highest(&pair), 69_999);
    for i in 0..200_000 {
        pair.free(number());
        if i % 4 == 0 {
            pair.free(number());
            pair.alloc(bytes(8, i));
        }
        pair.alloc(bytes(8, i));
        let newest = pair.order.last().unwrap().0;
        assert!(newest < 70_000, "{newest}");
    }
    pair.verify();
    while pair.order.len() > 1000 {
        pair.free(number());
    }
    // The lowest blocks fill first, so that the high ones drain as the old objects go.
    for i in 0..20_000 {
        pair.free(number());
        pair.alloc(bytes(8, i));
    }
    assert!(highest(&pair) < 16_384, "{}", highest(&pair));
    assert!(pair.arena.handles.reserved_bytes() < 3 * 16_384 * 8);
}

#[test]
fn a_shift_of_sizes_leaves_little_waste() {
    let mut pair = Pair::new(UNLIMITED);
    let mut number = numbers(9);
    // 70% of 200 to 400 bytes, 25% around 8 KB, 5% around 130 KB; then every length grows by a half.
    let mut mixed = |scale: usize| match number() % 100 {
        0..70 => (200 + number() % 200) * scale / 2,
        70..95 => (6_000 + number() % 4_000) * scale / 2,
        _ => (100_000 + number() % 60_000) * scale / 2,
    };
    for i in 0..12_000 {
        pair.alloc(bytes(mixed(2), i));
    }
    for i in 0..16_000 {
        pair.free(mixed(2) * 7919);
        pair.alloc(bytes(mixed(3), i));
    }
    pair.verify();
    let stats = pair.arena.stats();
    let percent = stats.live_bytes * 100 / stats.reserved_bytes;
    assert!(percent >= 90, "{percent}% of the reserved bytes are live: {stats:?}");
}

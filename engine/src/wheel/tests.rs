//! The wheel against an ordered map, and its bounds on work and memory.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// Due time to items, in order of insertion.
#[derive(Default)]
struct Model {
    due: BTreeMap<u64, Vec<u32>>,
    entries: usize,
}

impl Model {
    fn insert(&mut self, due_ms: u64, item: u32) {
        self.due.entry(due_ms).or_default().push(item);
        self.entries += 1;
    }

    fn expire(&mut self, now_ms: u64) -> Vec<u32> {
        let later = self.due.split_off(&now_ms.saturating_add(1));
        let fired: Vec<u32> = std::mem::replace(&mut self.due, later).into_values().flatten().collect();
        self.entries -= fired.len();
        fired
    }
}

#[derive(Clone, Debug)]
enum Op {
    /// Delay relative to the caller's clock; negative means already past.
    Insert(i64),
    /// Clock step and work budget.
    Expire(u64, usize),
    /// Step to `next_due_ms`.
    Sleep,
}

fn delay() -> impl Strategy<Value = i64> {
    prop_oneof![
        4 => 0_i64..70,
        4 => 0_i64..5_000,
        2 => 0_i64..400_000,
        1 => -100_i64..1,
        1 => 0_i64..(1 << 31),
        1 => 0_i64..(1 << 38),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let step = prop_oneof![4 => 0_u64..10, 3 => 0_u64..3_000, 1 => 0_u64..1_000_000, 1 => 0_u64..(1 << 37)];
    let budget = prop_oneof![1 => 1_usize..4, 1 => Just(usize::MAX)];
    prop_oneof![6 => delay().prop_map(Op::Insert), 2 => (step, budget).prop_map(|(s, b)| Op::Expire(s, b)), 1 => Just(Op::Sleep)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn fires_like_an_ordered_map(start_ms in prop_oneof![Just(0), 0_u64..(1 << 45)], ops in prop::collection::vec(op(), 1..300)) {
        let mut wheel = Wheel::new(start_ms);
        let mut model = Model::default();
        let mut clock_ms = start_ms;
        let mut next_item = 0;
        for op in ops {
            match op {
                Op::Insert(delay_ms) => {
                    let due_ms = clock_ms.saturating_add_signed(delay_ms);
                    wheel.insert(due_ms, next_item);
                    model.insert(due_ms.max(wheel.now_ms()), next_item);
                    next_item += 1;
                }
                Op::Expire(step_ms, budget) => {
                    clock_ms += step_ms;
                    check_expire(&mut wheel, &mut model, clock_ms, budget)?;
                }
                Op::Sleep => {
                    if let Some(due_ms) = wheel.next_due_ms() {
                        clock_ms = clock_ms.max(due_ms);
                        check_expire(&mut wheel, &mut model, clock_ms, usize::MAX)?;
                    }
                }
            }
            prop_assert_eq!(wheel.len(), model.entries);
            prop_assert_eq!(wheel.is_empty(), wheel.next_due_ms().is_none());
            if let (Some(bound_ms), Some((&first_ms, _))) = (wheel.next_due_ms(), model.due.first_key_value()) {
                prop_assert!(bound_ms <= first_ms);
                prop_assert!(bound_ms >= wheel.now_ms());
            }
        }
        check_expire(&mut wheel, &mut model, u64::MAX, usize::MAX)?;
        prop_assert!(wheel.is_empty());
    }
}

/// With a small budget the first firings must be a prefix of the model's; the rest is then asked for without a bound.
fn check_expire(wheel: &mut Wheel<u32>, model: &mut Model, now_ms: u64, budget: usize) -> Result<(), TestCaseError> {
    let mut fired = Vec::new();
    let mut more = wheel.expire(now_ms, budget, &mut fired);
    prop_assert!(fired.len() <= budget);
    // Entries that arrive while work is left over take their places in the order as well.
    if more {
        let mut expected = model_without(model, &fired);
        for (delay_ms, item) in [(1, u32::MAX), (0, u32::MAX - 1), (64, u32::MAX - 2), (4096, u32::MAX - 3)] {
            let due_ms = wheel.now_ms().saturating_add(delay_ms);
            wheel.insert(due_ms, item);
            expected.insert(due_ms, item);
        }
        *model = expected;
        let mut rest = Vec::new();
        while more {
            more = wheel.expire(now_ms, budget, &mut rest);
        }
        prop_assert_eq!(rest, model.expire(now_ms));
    } else {
        prop_assert_eq!(fired, model.expire(now_ms));
    }
    prop_assert_eq!(wheel.now_ms(), now_ms.max(wheel.now_ms()));
    Ok(())
}

/// The model after `fired`, which must be the first entries in its order.
fn model_without(model: &Model, fired: &[u32]) -> Model {
    let mut left = Model::default();
    let mut fired = fired.iter();
    for (&due_ms, items) in &model.due {
        for &item in items {
            match fired.next() {
                Some(&first) => assert_eq!(first, item, "fired out of order"),
                None => left.insert(due_ms, item),
            }
        }
    }
    left
}

#[test]
fn entries_of_one_ms_fire_in_order_of_insertion_through_interrupted_hand_downs() {
    let mut wheel = Wheel::new(0);
    for item in 0..1000_u32 {
        wheel.insert(5000, item);
    }
    let mut out = Vec::new();
    assert!(wheel.expire(5000, 10, &mut out), "the slot of 4096 to 8191 ms is being handed down");
    for item in 1000..2000 {
        wheel.insert(5000, item);
    }
    while wheel.expire(5000, 7, &mut out) {}
    assert_eq!(out, (0..2000).collect::<Vec<_>>());
}

#[test]
fn entries_beyond_the_span_keep_their_order_through_an_interrupted_drain() {
    let due_ms = (3 << SPAN_BITS) + 5;
    let mut wheel = Wheel::new(0);
    for item in 0..1000_u32 {
        wheel.insert(due_ms, item);
    }
    let mut out = Vec::new();
    assert!(wheel.expire(due_ms, 10, &mut out));
    assert_eq!(wheel.now_ms(), 3 << SPAN_BITS);
    wheel.insert(due_ms, 1000);
    wheel.insert(due_ms + (1 << SPAN_BITS), 1001);
    while wheel.expire(due_ms, 7, &mut out) {}
    assert_eq!(out, (0..=1000).collect::<Vec<_>>());
    assert_eq!((wheel.len(), wheel.next_due_ms()), (1, Some(4 << SPAN_BITS)));
}

#[test]
fn a_call_does_no_more_work_than_its_budget() {
    let mut wheel = Wheel::new(0);
    for item in 0..10_000_u32 {
        wheel.insert(300_000 + u64::from(item % 100), item);
    }
    let mut calls = 0;
    let mut out = Vec::new();
    while wheel.expire(400_000, 100, &mut out) {
        calls += 1;
        assert!(out.len() <= calls * 100);
    }
    assert_eq!(out.len(), 10_000);
    assert!(calls >= 100, "{calls} calls");
    assert!(calls <= 500, "each entry is handed down at most once per level: {calls} calls");
    assert!(!wheel.expire(400_000, 0, &mut out), "nothing is left");
}

#[test]
fn sleeping_on_the_next_due_time_wakes_at_most_once_per_level() {
    let mut wheel = Wheel::new(1_700_000_000_000);
    let due_ms = 1_700_000_000_000 + 200 * 24 * 3600 * 1000;
    wheel.insert(due_ms, 7_u32);
    let mut out = Vec::new();
    let mut wakes = 0;
    while let Some(next_ms) = wheel.next_due_ms() {
        assert!(next_ms <= due_ms);
        wheel.expire(next_ms, 1000, &mut out);
        wakes += 1;
    }
    assert_eq!((out, wheel.now_ms()), (vec![7], due_ms));
    assert!(wakes <= LEVELS + 1, "{wakes} wakes");
}

#[test]
fn a_clock_that_steps_back_neither_fires_nor_loses_entries() {
    let mut wheel = Wheel::new(1000);
    let mut out = Vec::new();
    assert!(!wheel.expire(2000, 10, &mut out));
    wheel.insert(1500, 1_u32);
    wheel.insert(2001, 2);
    assert!(!wheel.expire(1200, 10, &mut out));
    assert_eq!(out, vec![1]);
    assert!(!wheel.expire(2001, 10, &mut out));
    assert_eq!(out, vec![1, 2]);
}

#[test]
fn the_end_of_time_can_be_inserted_and_reached() {
    let mut wheel = Wheel::new(0);
    wheel.insert(u64::MAX, 1_u32);
    assert_eq!(wheel.next_due_ms(), Some(u64::MAX >> SPAN_BITS << SPAN_BITS));
    let mut out = Vec::new();
    assert!(!wheel.expire(u64::MAX - 1, 1000, &mut out));
    assert!(out.is_empty());
    assert!(!wheel.expire(u64::MAX, 1000, &mut out));
    assert_eq!(out, vec![1]);
}

#[test]
fn memory_is_17_bytes_an_entry_and_returns_after_a_burst() {
    let mut wheel: Wheel<[u32; 3]> = Wheel::new(0);
    let empty = wheel.reserved_bytes();
    let entries = 2_000_000_u64;
    for i in 0..entries {
        wheel.insert(30_000 + i / 100, [0; 3]);
    }
    let per_entry_hundredths = (wheel.reserved_bytes() - empty) as u64 * 100 / entries;
    assert!(per_entry_hundredths < 1700, "{per_entry_hundredths} hundredths of a byte per entry");
    let mut out = Vec::new();
    let mut peak = 0;
    while wheel.expire(60_000, 1000, &mut out) {
        out.clear();
        peak = peak.max(wheel.reserved_bytes());
    }
    assert!(wheel.is_empty());
    assert!(peak < 18 * usize::try_from(entries).unwrap(), "handing down copied the burst: {peak} bytes");
    assert!(wheel.reserved_bytes() < empty + 128 * 1024, "{} bytes after the burst", wheel.reserved_bytes());
}

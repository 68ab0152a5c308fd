//! Contracts: what tasks of one kind have in common, stored once per partition and shared by reference count.
//!
//! A contract's canonical bytes (numbers and names in a fixed order) are its identity, so equal specs of different
//! batches meet in one contract, and a snapshot can carry contracts as those bytes.

use hashbrown::HashMap;
use taskmaster_protocol::body::{self, ArchivedSpec, Malformed};

use crate::resources::Resources;
use crate::wishes::{self, Wishes};

/// How failed attempts are repeated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Retry {
    pub(crate) attempts_max: u16,
    pub(crate) backoff_ms: u32,
    pub(crate) backoff_max_ms: u32,
    pub(crate) factor_centi: u16,
    /// Error codes that are final at once, separated by commas.
    pub(crate) non_retryable: String,
}

impl Retry {
    /// Whether an attempt that ended with `code` may be followed by another.
    pub(crate) fn allows(&self, failures: u16, code: &str) -> bool {
        failures < self.attempts_max && !self.non_retryable.split(',').any(|c| !c.is_empty() && c == code)
    }

    /// Wait before the next attempt, in microseconds: exponential, bounded, with up to a quarter taken off by a jitter
    /// that depends on `seed` alone, so every replica waits the same.
    pub(crate) fn backoff_us(&self, failures: u16, seed: u64) -> u64 {
        let mut wait_us = u64::from(self.backoff_ms) * 1_000;
        let limit_us = u64::from(self.backoff_max_ms.max(self.backoff_ms)) * 1_000;
        for _ in 1..failures {
            if wait_us == 0 || wait_us >= limit_us {
                break;
            }
            wait_us = wait_us * u64::from(self.factor_centi.max(100)) / 100;
            if self.factor_centi <= 100 {
                break;
            }
        }
        let wait_us = wait_us.min(limit_us);
        let spread = wait_us / 4;
        let mixed = (seed ^ u64::from(failures)).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        wait_us - if spread == 0 { 0 } else { mixed % spread }
    }
}

/// The contract shared by tasks.
#[derive(Debug)]
pub(crate) struct Contract {
    /// Index of the queue in the partition.
    pub(crate) queue: u32,
    /// Index of the lane in the partition.
    pub(crate) lane: u32,
    /// What is learned of its tasks, on this shard.
    pub(crate) class: u32,
    /// Which of the lane's lists its ready tasks are on: that of its class, or of another where there are too many.
    pub(crate) list: u32,
    pub(crate) kind: String,
    pub(crate) priority: u8,
    pub(crate) lease_ms: u32,
    /// Index of the lease list in the partition.
    pub(crate) lease_list: u32,
    /// 0: the queue's setting.
    pub(crate) retention_ms: u32,
    pub(crate) retry: Retry,
    pub(crate) resources: Resources,
    pub(crate) wishes: Wishes,
    /// Its tasks' attempts may be ended and made again, or made twice at once.
    pub(crate) restartable: bool,
    /// The magnitude of its tasks' payloads ([`payload_size`]).
    pub(crate) size: u8,
    /// Canonical bytes.
    pub(crate) canonical: Box<[u8]>,
    /// Tasks that refer to it.
    pub(crate) tasks: u32,
}

impl Contract {
    /// What its tasks ask for.
    pub(crate) fn asked(&self) -> wishes::Asked<'_> {
        wishes::Asked(&self.resources, &self.wishes)
    }
}

/// A spec read from canonical bytes or from the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SpecView<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) queue: &'a str,
    pub(crate) kind: &'a str,
    pub(crate) custom: &'a str,
    pub(crate) non_retryable: &'a str,
    pub(crate) memory_bytes: u64,
    pub(crate) cpu_milli: u32,
    pub(crate) gpu_milli: u32,
    pub(crate) lease_ms: u32,
    pub(crate) backoff_ms: u32,
    pub(crate) backoff_max_ms: u32,
    pub(crate) retention_ms: u32,
    pub(crate) backoff_factor_centi: u16,
    pub(crate) attempts_max: u16,
    pub(crate) priority: u8,
    pub(crate) restartable: bool,
    /// The magnitude of the payloads of the tasks meant ([`payload_size`]); in a submission it is by task.
    pub(crate) size: u8,
    /// Its tasks are memoised, as this submission has it: no part of the contract.
    pub(crate) is_memo: bool,
}

/// The namespace used when none is given.
pub const DEFAULT_NAMESPACE: &str = "default";
/// What canonical bytes end with when tasks are restartable or their payloads large: bits. Without any they end with the texts.
const RESTARTABLE: u8 = 1;
const SIZE_SHIFT: u32 = 1;
/// Magnitudes of payloads.
pub(crate) const SIZES: usize = 4;

/// The magnitude of a payload, by which run times are told apart: up to 1 KiB, 16 KiB, 256 KiB, or more.
pub(crate) const fn payload_size(bytes: usize) -> u8 {
    match bytes {
        0..=0x400 => 0,
        0x401..=0x4000 => 1,
        0x4001..=0x4_0000 => 2,
        _ => 3,
    }
}

impl<'a> SpecView<'a> {
    /// The resources that it asks for.
    ///
    /// # Errors
    /// A sentence about what is wrong.
    pub(crate) fn asks(&self) -> Result<(Resources, Wishes), String> {
        wishes::parse(self.cpu_milli, self.memory_bytes, self.gpu_milli, self.custom)
    }

    /// Reads a spec of a submit body.
    pub(crate) fn of(spec: &ArchivedSpec, area: &'a rkyv::vec::ArchivedVec<u8>) -> Result<Self, Malformed> {
        let namespace = body::text(area, spec.namespace)?;
        Ok(Self {
            namespace: if namespace.is_empty() { DEFAULT_NAMESPACE } else { namespace },
            queue: body::text(area, spec.queue)?,
            kind: body::text(area, spec.kind)?,
            custom: body::text(area, spec.custom)?,
            non_retryable: body::text(area, spec.non_retryable)?,
            memory_bytes: spec.memory_bytes.to_native(),
            cpu_milli: spec.cpu_milli.to_native(),
            gpu_milli: spec.gpu_milli.to_native(),
            lease_ms: spec.lease_ms.to_native(),
            backoff_ms: spec.backoff_ms.to_native(),
            backoff_max_ms: spec.backoff_max_ms.to_native(),
            retention_ms: spec.retention_ms.to_native(),
            backoff_factor_centi: spec.backoff_factor_centi.to_native(),
            attempts_max: spec.attempts_max.to_native(),
            priority: spec.priority,
            restartable: spec.restartable != 0,
            size: 0,
            is_memo: spec.memo != 0,
        })
    }

    /// Writes the canonical bytes: numbers little-endian, then each text after its u16 length, then what is rarely said.
    pub(crate) fn write_canonical(&self, out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(&self.memory_bytes.to_le_bytes());
        for number in
            [self.cpu_milli, self.gpu_milli, self.lease_ms, self.backoff_ms, self.backoff_max_ms, self.retention_ms]
        {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.backoff_factor_centi.to_le_bytes());
        out.extend_from_slice(&self.attempts_max.to_le_bytes());
        out.push(self.priority);
        for text in [self.namespace, self.queue, self.kind, self.custom, self.non_retryable] {
            out.extend_from_slice(&u16::try_from(text.len()).expect("names are bounded at admission").to_le_bytes());
            out.extend_from_slice(text.as_bytes());
        }
        let last = (u8::from(self.restartable) * RESTARTABLE) | (self.size << SIZE_SHIFT);
        out.extend((last != 0).then_some(last));
    }

    /// The resources that it asks for where it stands in a log or a snapshot: what [`Self::asks`] refuses was taken before there were
    /// alternatives and preferences, as plain names.
    pub(crate) fn asked(&self) -> (Resources, Wishes) {
        let plain = || Resources::parse(self.cpu_milli, self.memory_bytes, self.gpu_milli, self.custom);
        self.asks().unwrap_or_else(|_| (plain().expect("checked at admission"), Wishes::default()))
    }

    /// Reads canonical bytes; `None` if they are not.
    pub(crate) fn read_canonical(mut bytes: &'a [u8]) -> Option<Self> {
        let mut take = |count: usize| -> Option<&'a [u8]> {
            let (head, rest) = bytes.split_at_checked(count)?;
            bytes = rest;
            Some(head)
        };
        let memory_bytes = u64::from_le_bytes(*take(8)?.first_chunk()?);
        let mut numbers = [0u32; 6];
        for number in &mut numbers {
            *number = u32::from_le_bytes(*take(4)?.first_chunk()?);
        }
        let backoff_factor_centi = u16::from_le_bytes(*take(2)?.first_chunk()?);
        let attempts_max = u16::from_le_bytes(*take(2)?.first_chunk()?);
        let priority = *take(1)?.first()?;
        let mut texts = [""; 5];
        for text in &mut texts {
            let length = u16::from_le_bytes(*take(2)?.first_chunk()?);
            *text = core::str::from_utf8(take(usize::from(length))?).ok()?;
        }
        let last = match bytes {
            [] => 0,
            [last] if (1..u8::try_from(SIZES << SIZE_SHIFT).expect("few")).contains(last) => *last,
            _ => return None,
        };
        let [cpu_milli, gpu_milli, lease_ms, backoff_ms, backoff_max_ms, retention_ms] = numbers;
        let [namespace, queue, kind, custom, non_retryable] = texts;
        Some(Self {
            namespace,
            queue,
            kind,
            custom,
            non_retryable,
            memory_bytes,
            cpu_milli,
            gpu_milli,
            lease_ms,
            backoff_ms,
            backoff_max_ms,
            retention_ms,
            backoff_factor_centi,
            attempts_max,
            priority,
            restartable: last & RESTARTABLE != 0,
            size: last >> SIZE_SHIFT,
            is_memo: false,
        })
    }
}

/// The contracts of a partition.
#[derive(Default)]
pub(crate) struct Contracts {
    items: Vec<Option<Contract>>,
    by_canonical: HashMap<Box<[u8]>, u32, crate::hash::FixedState>,
    free: Vec<u32>,
    canonical_bytes: usize,
}

impl Contracts {
    /// Number of contracts.
    pub(crate) fn len(&self) -> usize {
        self.by_canonical.len()
    }

    /// The contract with these canonical bytes.
    pub(crate) fn find(&self, canonical: &[u8]) -> Option<u32> {
        self.by_canonical.get(canonical).copied()
    }

    /// The contract at `index`, if there is one.
    pub(crate) fn get(&self, index: u32) -> Option<&Contract> {
        self.items.get(index as usize)?.as_ref()
    }

    /// Stores a contract that is not there yet.
    pub(crate) fn insert(&mut self, contract: Contract) -> u32 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.items.push(None);
            u32::try_from(self.items.len() - 1).expect("no more contracts than task slots")
        });
        self.canonical_bytes += contract.canonical.len();
        self.by_canonical.insert(contract.canonical.clone(), index);
        self.items[index as usize] = Some(contract);
        index
    }

    /// Removes a contract that no task refers to.
    pub(crate) fn remove(&mut self, index: u32) -> Contract {
        let contract = self.items[index as usize].take().expect("the index is live");
        debug_assert_eq!(contract.tasks, 0);
        self.canonical_bytes -= contract.canonical.len();
        self.by_canonical.remove(&contract.canonical);
        self.free.push(index);
        contract
    }

    /// Memory held, in bytes: the canonical bytes lie here twice, and once more as texts.
    pub(crate) fn reserved_bytes(&self) -> usize {
        let table = self.by_canonical.allocation_size() + self.free.capacity() * size_of::<u32>();
        self.items.capacity() * size_of::<Option<Contract>>() + table + 3 * self.canonical_bytes
    }

    /// Live contracts in index order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &Contract)> {
        (0u32..).zip(&self.items).filter_map(|(index, item)| item.as_ref().map(|contract| (index, contract)))
    }
}

impl core::ops::Index<u32> for Contracts {
    type Output = Contract;
    fn index(&self, index: u32) -> &Contract {
        self.items[index as usize].as_ref().expect("tasks refer to live contracts")
    }
}

impl core::ops::IndexMut<u32> for Contracts {
    fn index_mut(&mut self, index: u32) -> &mut Contract {
        self.items[index as usize].as_mut().expect("tasks refer to live contracts")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retry() -> Retry {
        Retry {
            attempts_max: 4,
            backoff_ms: 100,
            backoff_max_ms: 1_000,
            factor_centi: 200,
            non_retryable: "bad_input,gone".to_owned(),
        }
    }

    #[test]
    fn backoff_doubles_to_its_limit_and_jitter_takes_at_most_a_quarter() {
        for seed in 0..200u64 {
            for (failures, full_ms) in [(1, 100), (2, 200), (3, 400), (4, 800), (5, 1_000), (60_000, 1_000)] {
                let wait_us = retry().backoff_us(failures, seed);
                assert!(wait_us <= full_ms * 1_000 && wait_us > full_ms * 750 - 1, "{failures}: {wait_us}");
                assert_eq!(wait_us, retry().backoff_us(failures, seed));
            }
        }
    }

    #[test]
    fn retries_stop_at_the_limit_and_at_final_codes() {
        assert!(retry().allows(3, "exit:1"));
        assert!(!retry().allows(4, "exit:1"));
        assert!(!retry().allows(1, "gone"));
        assert!(retry().allows(1, ""));
    }

    #[test]
    fn what_a_log_of_before_has_is_plain_resources() {
        let spec = |custom| SpecView { custom, ..spec() };
        for custom in ["or/1/cpu_milli=0", "or/9/x=1", "or/x/y=1", "prefer/zone=1", "licence=1,prefer/a/b=2"] {
            assert!(spec(custom).asks().is_err(), "{custom}");
            let (resources, wishes) = spec(custom).asked();
            assert_eq!((resources.custom_pairs(), wishes), (custom.to_owned(), Wishes::default()));
        }
        assert_eq!(spec("or/1/cpu_milli=1").asked(), spec("or/1/cpu_milli=1").asks().unwrap());
    }

    #[test]
    fn canonical_bytes_round_trip() {
        check_round_trip(spec());
    }

    fn spec() -> SpecView<'static> {
        SpecView {
            namespace: "default",
            queue: "emails",
            kind: "send",
            custom: "license=2",
            non_retryable: "",
            memory_bytes: 5 << 30,
            cpu_milli: 500,
            gpu_milli: 0,
            lease_ms: 30_000,
            backoff_ms: 100,
            backoff_max_ms: 10_000,
            retention_ms: 0,
            backoff_factor_centi: 200,
            attempts_max: 3,
            priority: 2,
            restartable: false,
            size: 0,
            is_memo: false,
        }
    }

    fn check_round_trip(spec: SpecView<'_>) {
        let mut bytes = Vec::new();
        spec.write_canonical(&mut bytes);
        let restartable = SpecView { restartable: true, ..spec.clone() };
        assert_eq!(SpecView::read_canonical(&bytes), Some(spec));
        for cut in 0..bytes.len() {
            assert_eq!(SpecView::read_canonical(&bytes[..cut]), None);
        }
        let plain = bytes.clone();
        for size in 0..4 {
            let sized = SpecView { size, ..restartable.clone() };
            sized.write_canonical(&mut bytes);
            assert_eq!(bytes[..plain.len()], plain, "what is not said costs nothing and changes no identity");
            assert_eq!(SpecView::read_canonical(&bytes), Some(sized));
        }
        bytes.push(0);
        assert_eq!(SpecView::read_canonical(&bytes), None);
        for last in [0, 8, 255] {
            assert_eq!(SpecView::read_canonical(&[plain.as_slice(), &[last]].concat()), None);
        }
    }
}

//! What goes to the store with a task that saved state: its versions, and of their chunks those that the store was not told of.
//!
//! Chunks go ahead of the first task that names them, in the batches before it if one does not hold them all; so batches stay bounded
//! however much a task saved. Of which the store was told is the leader's own knowledge: a new leader tells again.

use std::collections::{BTreeMap, BTreeSet};

use hashbrown::HashMap;
use taskmaster_protocol::body;

use crate::arena::Arena;
use crate::checkpoint::{Batch, BatchChunk, SavedHistory, SavedState, SavedVersion};
use crate::hash::FixedState;
use crate::partition::{Partition, Telling};
use crate::versions::{Chunks, History, Version};

const DAY_US: u64 = 86_400_000_000;

/// The chunks that a batch brings.
pub(super) struct Told {
    telling: Telling,
    chunks: BTreeSet<u32>,
}

impl Told {
    pub(super) const fn new(telling: Telling) -> Self {
        Self { telling, chunks: BTreeSet::new() }
    }

    /// Adds the chunks of a task's state that the store lacks; `false` when they do not fit, and the task has to wait for the next batch.
    pub(super) fn add(
        &mut self,
        history: &History,
        partition: &Partition,
        ended_us: u64,
        (arena, bytes_max): (&Arena, usize),
        batch: &mut Batch,
    ) -> bool {
        let chunks = &partition.versions.chunks;
        let day = u32::try_from(ended_us / DAY_US).unwrap_or(u32::MAX);
        if day > self.telling.day {
            // All chunks of a batch are kept for the same day.
            if !batch.chunks.is_empty() {
                return false;
            }
            self.telling = Telling { number: self.telling.number + 1, day };
        }
        for &chunk in history.versions.values().flat_map(|version| &version.chunks) {
            if chunks.is_told(chunk, self.telling.number) || self.chunks.contains(&chunk) {
                continue;
            }
            if batch.bytes.len() >= bytes_max {
                return false;
            }
            self.chunks.insert(chunk);
            let bytes = body::put(&mut batch.bytes, chunks.bytes(chunk, arena));
            batch.chunks.push(BatchChunk { digest: *chunks.address(chunk), bytes });
        }
        true
    }

    /// The batch goes out.
    pub(super) fn note(self, partition: &mut Partition, batch: &mut Batch) {
        partition.telling = self.telling;
        batch.chunks_day = self.telling.day;
        for chunk in self.chunks {
            partition.versions.chunks.tell(chunk, self.telling.number);
        }
    }
}

/// The versions of a task's state with the names that they have.
pub(super) fn saved(history: &History, chunks: &Chunks) -> SavedState {
    let named = |names: &BTreeMap<Box<str>, u32>, wanted: u32| {
        names.iter().filter(|(_, version)| **version == wanted).map(|(name, _)| name.to_string()).collect()
    };
    let (mut state, mut places) = (SavedState::default(), HashMap::<u32, u32, FixedState>::default());
    let mut place_of = |&chunk: &u32| {
        *places.entry(chunk).or_insert_with(|| {
            state.chunks.push(*chunks.address(chunk));
            u32::try_from(state.chunks.len() - 1).expect("references to chunks are bounded")
        })
    };
    let saved = |(&number, version): (&u32, &Version)| SavedVersion {
        number,
        parent: version.parent,
        attempt: version.attempt,
        time_us: version.time_us,
        bytes: version.size,
        new_bytes: version.new_bytes,
        digest: version.digest,
        label: version.label.to_string(),
        branches: named(&history.branches, number),
        tags: named(&history.tags, number),
        pieces: version.chunks.iter().map(&mut place_of).collect(),
    };
    let versions = history.versions.iter().map(saved).collect();
    state.history = SavedHistory { current: history.current.to_string(), made: history.made, versions };
    state
}

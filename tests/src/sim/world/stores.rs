//! The way between partitions and the store: slow, with outages, with answers that are lost, and with batches that arrive when their
//! sender is long dead.

use taskmaster_engine::checkpoint::{BatchBounds, ForStore, Stored};
use taskmaster_engine::{Input, State};
use taskmaster_protocol::PartitionId;

use super::{Event, What, World};

/// Requests that a shard gives at once.
const REQUESTS_MAX: usize = 8;

/// A request on its way: from which shard of which life, and what.
pub(super) struct Asked {
    place: u16,
    life: u64,
    shard: u16,
    request: ForStore,
}

impl World {
    /// Every shard gives what it has.
    pub(super) fn send_checkpoints(&mut self) {
        if self.oracle.store.is_none() {
            return;
        }
        if self.dice.chance(3) && !self.is_calm() {
            self.store_down_until_us = self.now_us + self.dice.range(50_000, 1_000_000);
        }
        for place in 0..u16::try_from(self.places.len()).expect("few") {
            for shard in 0..self.places[usize::from(place)].site.shards {
                self.send_checkpoints_of(place, shard);
            }
        }
    }

    fn send_checkpoints_of(&mut self, place: u16, shard: u16) {
        let tasks = usize::try_from(self.dice.range(1, 40)).expect("few");
        // From so little that a state goes chunk by chunk.
        let bounds = BatchBounds { tasks_min: 0, tasks, bytes: 16 << (tasks % 16) };
        let life = self.places[usize::from(place)].life();
        for _ in 0..REQUESTS_MAX {
            let Some(at) = self.shard(place, shard) else { return };
            let (Some(request), Some(life)) = (at.shard.next_for_store(bounds), life) else { return };
            let delay_us = self.dice.range(200, 40_000);
            self.after(delay_us, Event::Store(Box::new(Asked { place, life, shard, request })));
        }
    }

    /// A request reaches the store, or waits for it.
    pub(super) fn store_asked(&mut self, asked: Box<Asked>) -> Result<(), String> {
        let Some(store) = &mut self.oracle.store else { return Ok(()) };
        if self.now_us < self.store_down_until_us {
            self.at(self.store_down_until_us + 1_000, Event::Store(asked));
            return Ok(());
        }
        let stored = store.take(&asked.request)?;
        // The writer that lost its answer asks again, as it does without end.
        if self.dice.chance(10) {
            let delay_us = self.dice.range(1_000, 300_000);
            self.after(delay_us, Event::Store(asked));
            return Ok(());
        }
        let (partition, term) = match &asked.request {
            ForStore::Open { partition, term, .. } => (*partition, *term),
            ForStore::Batch(batch) => (PartitionId(batch.partition), batch.term),
        };
        let (Asked { place, life, shard, .. }, delay_us) = (*asked, self.dice.range(100, 5_000));
        self.after(delay_us, Event::In { place, life, what: What::Stored { shard, partition, term, stored } });
        Ok(())
    }

    pub(super) fn stored(&mut self, place: u16, shard: u16, partition: PartitionId, term: u64, stored: Stored) {
        self.input(place, shard, Input::Stored { partition, term, stored });
        self.send_checkpoints_of(place, shard);
    }

    /// Whether nothing waits for the store any more.
    pub(super) fn is_all_stored(&self) -> bool {
        let nodes = self.places.iter().filter_map(|place| place.node.as_ref());
        self.oracle.store.is_none()
            || nodes.flat_map(|node| &node.loops).all(|own| own.shard.stats().checkpoint_waiting == 0)
    }

    /// At the end: what was told to be final is stored as it was told.
    pub(super) fn compare_store(&self) -> Result<(), String> {
        let Some(store) = &self.oracle.store else { return Ok(()) };
        for (id, state) in self.oracle.ends() {
            let stored = store.end(id);
            if stored != Some(state) {
                return Err(format!("{id} is {state}, and the store has {}", stored.map_or("nothing", State::name)));
            }
        }
        Ok(())
    }
}

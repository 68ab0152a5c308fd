//! Unique keys: who holds which. That follows from the log alone.

use core::hash::BuildHasher;

use super::Partition;
use crate::arena::{Arena, Handle};
use crate::hash::FixedState;
use crate::task::Slot;

impl Partition {
    /// For the mutation check: as if nobody held a unique key.
    pub(crate) fn forget_unique(&mut self) {
        self.unique.clear();
    }

    /// Who holds a unique key.
    pub(crate) fn unique_holder(&self, key: &[u8], arena: &Arena) -> Option<Slot> {
        self.unique.find(hash_of(key), |&slot| arena.get(self.unique_key(slot)) == key).copied()
    }

    /// Whether a task holds its unique key.
    pub(crate) fn holds_unique(&self, slot: Slot, arena: &Arena) -> bool {
        let key = self.unique_key(slot);
        key != Handle::NONE && self.unique.find(hash_of(arena.get(key)), |&other| other == slot).is_some()
    }

    /// Who holds a unique key that may not be taken over at `now_us`.
    pub(crate) fn unique_conflict(&self, key: &[u8], arena: &Arena, now_us: u64) -> Option<Slot> {
        self.unique_holder(key, arena).filter(|&slot| {
            let task = &self.tasks[slot];
            !task.state.is_final() || self.extras[task.extra].unique_until_us > now_us
        })
    }

    /// Makes a task the holder of its unique key, whoever holds it. A snapshot in progress has the former one as the holder.
    pub(crate) fn hold_unique(&mut self, slot: Slot, arena: &Arena) {
        let key = arena.get(self.unique_key(slot));
        if let Some(holder) = self.unique_holder(key, arena) {
            crate::snapshot::touch(self, holder, arena);
            self.release_unique(holder, arena);
        }
        let (tasks, extras) = (&self.tasks, &self.extras);
        let hash = |&other: &Slot| hash_of(arena.get(extras[tasks[other].extra].unique));
        self.unique.insert_unique(hash_of(key), slot, hash);
    }

    pub(super) fn release_unique(&mut self, holder: Slot, arena: &Arena) {
        let key = arena.get(self.unique_key(holder));
        if let Ok(entry) = self.unique.find_entry(hash_of(key), |&slot| slot == holder) {
            entry.remove();
        }
    }

    fn unique_key(&self, slot: Slot) -> Handle {
        self.extras[self.tasks[slot].extra].unique
    }
}

fn hash_of(key: &[u8]) -> u64 {
    FixedState.hash_one(key)
}

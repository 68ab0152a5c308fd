//! Payloads and results that leave memory while their tasks wait for the store outside.
//!
//! Nothing of this is logged or agreed on: an object reads the same wherever it lies. The extents come from whoever runs the shard, ahead of
//! need, since the engine asks nobody for anything in the middle of a turn.

use taskmaster_protocol::PartitionId;

use super::Shard;
use crate::arena::Extent;

/// What is demoted at once, in bytes, beside what an entry calls for.
const WORK: usize = 256 << 10;

impl Shard {
    /// An entry of this length was applied to a partition: what waits there may be too much for memory now.
    pub(super) fn demote_after(&mut self, id: PartitionId, entry_bytes: usize) {
        // More leaves than a completion can have brought.
        if self.demote_in(id, WORK + 2 * entry_bytes) && !self.demotions.contains(&id) {
            self.demotions.push_back(id);
        }
    }

    /// Whether the next turn can demote more.
    pub(super) fn can_demote(&self) -> bool {
        !self.demotions.is_empty() && !self.arena.is_short_of_extents()
    }

    /// Goes on with what had no room, or was too much to be done at once.
    pub(super) fn demote_later(&mut self) {
        if let Some(id) = self.demotions.pop_front() {
            self.demote_after(id, 0);
        }
    }

    /// Demotes a slice of what too many wait in memory; whether that was not all of it. For a shard that is being brought back: one that
    /// serves does it as it goes.
    pub fn demote(&mut self) -> bool {
        let mut goes_on = false;
        for place in 0..self.config.partitions {
            goes_on |= self.demote_in(PartitionId(place), WORK);
        }
        goes_on
    }

    /// Demotes what waits in a partition, if too much of it is in memory; whether that was not all of it.
    fn demote_in(&mut self, id: PartitionId, mut work: usize) -> bool {
        let Some(bytes_max) = self.config.demote_above_bytes else { return false };
        let place = self.partitions.get_mut(usize::from(id.0)).and_then(Option::as_deref_mut);
        let Some(partition) = place.filter(|partition| partition.waiting().bytes_in_memory() > bytes_max / 4 * 3)
        else {
            return false;
        };
        let has_room = partition.demote(bytes_max, &mut self.arena, &mut work);
        self.wants_extent |= self.arena.is_short_of_extents();
        !has_room || work == 0
    }

    /// Whether another extent should be given.
    #[must_use]
    pub const fn wants_extent(&self) -> bool {
        self.wants_extent && self.arena.is_short_of_extents()
    }

    /// Takes an extent for what is demoted. See [`EXTENT_BYTES`](crate::arena::EXTENT_BYTES).
    pub fn give_extent(&mut self, extent: Box<dyn Extent>) {
        self.arena.give_extent(extent);
        self.wants_extent = self.arena.is_short_of_extents();
    }

    /// Whether an extent can be [taken back](Self::take_extent).
    #[must_use]
    pub const fn spares_extent(&self) -> bool {
        self.arena.has_spare_extent()
    }

    /// Gives an extent back that is not needed.
    pub fn take_extent(&mut self) -> Option<Box<dyn Extent>> {
        self.arena.take_extent()
    }
}

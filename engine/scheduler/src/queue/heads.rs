//! Tenants by the rank of their first task: a binary heap that knows where each tenant is, so there is one entry for each.
//!
//! A heap with an entry for each change would hold ever more of them: those of a tenant that is overtaken again and again
//! are never met, and when they are, all at once.

use super::Rank;

/// A tenant that has no entry.
const NOWHERE: u32 = u32::MAX;

/// The heap.
#[derive(Clone, Debug, Default)]
pub(super) struct Heads {
    /// Rank, task, tenant.
    heap: Vec<(Rank, u32, u32)>,
    /// Where each tenant is in the heap.
    places: Vec<u32>,
}

impl Heads {
    /// The lowest: rank, task, tenant.
    pub(super) fn peek(&self) -> Option<(Rank, u32, u32)> {
        self.heap.first().copied()
    }

    /// The first task of a tenant is this one.
    pub(super) fn set(&mut self, tenant: u32, (rank, task): (Rank, u32)) {
        if self.places.len() <= tenant as usize {
            self.places.resize(tenant as usize + 1, NOWHERE);
        }
        let entry = (rank, task, tenant);
        let place = self.places[tenant as usize] as usize;
        if place >= self.heap.len() {
            self.heap.push(entry);
            self.rise(self.heap.len() - 1);
        } else if self.heap[place] != entry {
            self.heap[place] = entry;
            self.rise(place);
        }
    }

    /// A tenant has no task.
    pub(super) fn remove(&mut self, tenant: u32) {
        let place = self.places.get(tenant as usize).map_or(self.heap.len(), |place| *place as usize);
        if place >= self.heap.len() {
            return;
        }
        self.places[tenant as usize] = NOWHERE;
        self.heap.swap_remove(place);
        if place < self.heap.len() {
            self.rise(place);
        }
    }

    /// Moves an entry up as far as it belongs, else down.
    fn rise(&mut self, mut place: usize) {
        let entry = self.heap[place];
        while place > 0 && entry < self.heap[(place - 1) / 2] {
            self.put(place, self.heap[(place - 1) / 2]);
            place = (place - 1) / 2;
        }
        self.sink(place, entry);
    }

    fn sink(&mut self, mut place: usize, entry: (Rank, u32, u32)) {
        loop {
            let child = 2 * place + 1;
            let Some(mut least) = self.heap.get(child).map(|_| child) else { break };
            if self.heap.get(child + 1).is_some_and(|other| *other < self.heap[child]) {
                least = child + 1;
            }
            if entry < self.heap[least] {
                break;
            }
            self.put(place, self.heap[least]);
            place = least;
        }
        self.put(place, entry);
    }

    fn put(&mut self, place: usize, entry: (Rank, u32, u32)) {
        self.heap[place] = entry;
        #[expect(clippy::cast_possible_truncation, reason = "no more entries than tenants")]
        let at = place as u32;
        self.places[entry.2 as usize] = at;
    }
}

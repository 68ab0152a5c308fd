//! When a task will fit on which worker, by what runs there and how long its like ran.

use std::collections::BTreeMap;

use super::Shard;
use crate::partition::DETACHED;
use crate::resources::Resources;
use crate::task::Slot;

/// Most leases that a look takes in.
const LEASES_MAX: usize = 1 << 16;

/// What runs on workers, by their number.
pub(super) struct Running {
    pub(super) leases: Vec<Vec<Lease>>,
    /// Records that were looked at; there may be more leases if they are too many.
    pub(super) seen: usize,
}

/// When it ends in nine of ten cases, `u64::MAX` if that is not known, which task it is, and with which of its resources.
pub(super) type Lease = (u64, u16, Slot, u8);

/// When a task fits on a worker, `u64::MAX` if that is not known, and what is left beside it then of what it needs.
pub(super) struct Fit {
    pub(super) at_us: u64,
    pub(super) spare: Resources,
}

impl Shard {
    pub(super) fn need_of(&self, (_, partition, slot, set): Lease) -> Option<&Resources> {
        Some(self.partitions[usize::from(partition)].as_deref()?.need_with(slot, set))
    }

    /// What runs on workers whose resources are counted.
    pub(super) fn running(&self) -> Running {
        let mut running = Running { leases: Vec::new(), seen: 0 };
        running.leases.resize_with(self.dispatch.workers.len(), Vec::new);
        let mut most_us = BTreeMap::new();
        for partition in self.partitions.iter().flatten().filter(|partition| partition.is_leading()) {
            let first = partition.lease_lists.iter().flat_map(|list| list.list.iter(&partition.tasks));
            let first = first
                .map(|slot| (partition.tasks[slot].worker, slot, partition.set_of(slot), partition.started_us(slot)));
            let second = partition.attempts.with_second().filter_map(|slot| {
                let second = partition.second(slot)?;
                Some((second.worker, slot, second.set, Some(second.started_us)))
            });
            for (worker, slot, set, started_us) in first.chain(second) {
                if running.seen == LEASES_MAX {
                    return running;
                }
                running.seen += 1;
                if worker & DETACHED != 0 || self.dispatch.workers[worker as usize].capacity.is_none() {
                    continue;
                }
                let class = partition.class(slot);
                let most_us = most_us.entry(class).or_insert_with(|| self.dispatch.learned.most_us(class));
                let ends_us = self.ends_us(started_us, *most_us);
                running.leases[worker as usize].push((ends_us, partition.id.0, slot, set));
            }
        }
        running
    }

    /// When an attempt ends that began then, of which nine of ten take so long: one that took longer is taken to be half done.
    fn ends_us(&self, started_us: Option<u64>, most_us: Option<u64>) -> u64 {
        let Some((started_us, most_us)) = started_us.zip(most_us) else { return u64::MAX };
        let (now_us, ends_us) = (self.last_time_us, started_us.saturating_add(most_us));
        if ends_us > now_us { ends_us } else { now_us + now_us.saturating_sub(started_us) }
    }

    /// When a task will fit on a worker that would hold it.
    pub(super) fn fit(&self, index: u32, need: &Resources, running: &Running) -> Fit {
        let worker = &self.dispatch.workers[index as usize];
        let unknown = || Fit { at_us: u64::MAX, spare: Resources::default() };
        let (Some(capacity), Some(leases)) = (&worker.capacity, running.leases.get(index as usize)) else {
            return unknown();
        };
        // Some may not have been seen.
        if leases.len() != worker.leases as usize {
            return unknown();
        }
        let mut leases = leases.clone();
        leases.sort_unstable();
        let (mut at_us, mut used) = (self.last_time_us, worker.used.clone());
        for lease in leases {
            let ends_us = lease.0;
            // What ends at the same time is not there any more either.
            if ends_us > at_us && need.fits(capacity, &used, 1) > 0 {
                break;
            }
            let Some(other) = self.need_of(lease) else { return unknown() };
            at_us = ends_us;
            used.subtract(other);
        }
        let mut spare = capacity.within(need);
        spare.subtract(&used);
        spare.subtract(need);
        let is_known = at_us != u64::MAX && need.fits(capacity, &used, 1) > 0;
        if is_known { Fit { at_us, spare } } else { unknown() }
    }
}

//! Checkpoints of the partitions that are led here: what goes to the store, and what its answers change.
//!
//! What is on its way is volatile. A new leader asks the store where it stands and goes on from there; how far the store is known to
//! be, and with it what may be forgotten, is replicated.

use std::collections::BTreeMap;

use taskmaster_protocol::body;
use taskmaster_protocol::{PartitionId, TaskId};

use super::Shard;
use super::group::Request;
use crate::arena::Arena;
use crate::checkpoint::{Batch, BatchBounds, BatchContract, BatchQueue, FinalTask, ForStore, SavedVersion, Stored};
use crate::entry::{Verb, checkpointed_bytes};
use crate::extra::unpack_error;
use crate::partition::{Partition, Sending};
use crate::query::task::{begun, workflow_id};
use crate::queue::{Queue, policy_name};
use crate::snapshot::restored;
use crate::task::{Slot, flag};
use crate::versions::{History, Version};

impl Shard {
    /// What goes to the store next, from one partition after the other; `None` when nothing can go before something changes.
    pub fn next_for_store(&mut self, bounds: BatchBounds) -> Option<ForStore> {
        let cluster = self.map.as_ref()?.cluster;
        let places = self.partitions.len();
        for _ in 0..places {
            let place = self.store_place;
            self.store_place = (place + 1) % places;
            let term = self.groups[place].as_deref().map_or(0, |group| group.serving);
            let Some(partition) = self.partitions[place].as_deref_mut().filter(|_| term > 0) else { continue };
            if !partition.has_checkpoints() {
                continue;
            }
            match partition.sending {
                Sending::Closed => {
                    partition.sending = Sending::Opening;
                    partition.tell_all_settings();
                    return Some(ForStore::Open { cluster, partition: partition.id, term });
                }
                // Behind a number that is not known to be stored tasks are not in line yet.
                Sending::Idle(from)
                    if partition.checkpointed <= from && partition.waiting().tasks >= bounds.tasks_min =>
                {
                    if let Some(batch) = gather(partition, from, bounds, &self.arena) {
                        partition.sending = Sending::Busy(from, batch.to);
                        return Some(ForStore::Batch(Batch { cluster, term, ..batch }));
                    }
                }
                Sending::Opening | Sending::Idle(_) | Sending::Busy(..) | Sending::Shut => {}
            }
        }
        None
    }

    /// Proposes that final tasks of a partition come back, if it is led here.
    pub(super) fn restore(&mut self, batch: &Batch) {
        let id = PartitionId(batch.partition);
        if self.group(id.0).is_some_and(|group| group.serving > 0) {
            self.push(Verb::Restored, id, Request::default(), |out| restored::write(batch, out));
        }
    }

    /// The number of the last final task of a partition that is led here.
    #[must_use]
    pub fn last_number(&self, partition: PartitionId) -> Option<u64> {
        let partition = self.partitions.get(usize::from(partition.0))?.as_deref()?;
        partition.is_leading().then_some(partition.last_retained)
    }

    /// The store's answer about a partition to the leader of a term.
    pub(super) fn stored(&mut self, id: PartitionId, term: u64, stored: Stored) {
        let serving = self.group(id.0).map_or(0, |group| group.serving);
        let place = self.partitions.get_mut(usize::from(id.0)).and_then(Option::as_deref_mut);
        let Some(partition) = place.filter(|_| serving == term && term > 0) else { return };
        let upto = match stored {
            Stored::Upto(upto) => upto,
            Stored::Overtaken => {
                partition.sending = Sending::Shut;
                return;
            }
        };
        if upto > partition.last_retained {
            partition.sending = Sending::Shut;
            let sentence = format!(
                "the store has final tasks of partition {id} up to number {upto}, and the partition has no more than {}: it is of \
                 another past of this cluster, and nothing more of the partition is stored there; use another database",
                partition.last_retained
            );
            self.give_notice(sentence, false);
            return;
        }
        if matches!(partition.sending, Sending::Busy(_, wanted) if wanted != upto) {
            // What was sent did not count.
            partition.tell_all_settings();
        }
        partition.sending = Sending::Idle(upto);
        if upto != partition.checkpointed {
            self.push(Verb::Checkpointed, id, Request::default(), |out| {
                out.extend_from_slice(&checkpointed_bytes(upto));
            });
        }
    }
}

/// The next batch behind a number.
fn gather(partition: &mut Partition, from: u64, bounds: BatchBounds, arena: &Arena) -> Option<Batch> {
    let mut batch = Batch { partition: partition.id.0, from, to: from, ..Batch::default() };
    let mut contract = (u32::MAX, 0);
    for (number, slot) in partition.waiting_after(from) {
        batch.to = number;
        let Some(slot) = slot else { continue };
        let index = partition.tasks[slot].contract;
        if contract.0 != index {
            contract = (index, contract_of(partition, index, &mut batch.contracts));
        }
        let task = describe(partition, slot, contract.1, arena, &mut batch.bytes);
        batch.tasks.push(task);
        if batch.tasks.len() >= bounds.tasks || batch.bytes.len() >= bounds.bytes {
            break;
        }
    }
    if batch.to == from {
        return None;
    }
    batch.queues = partition.take_untold().map(setting).collect();
    Some(batch)
}

fn setting(queue: &Queue) -> BatchQueue {
    let settings = &queue.settings;
    BatchQueue {
        namespace: queue.namespace.clone(),
        queue: queue.name.clone(),
        paused: settings.paused,
        draining: settings.draining,
        rate_milli_per_s: settings.rate_milli_per_s,
        rate_burst: settings.rate_burst,
        concurrency: settings.concurrency,
        depth_max: settings.depth_max,
        retention_ms: settings.retention_ms,
        flags_deadlines: settings.flag_late,
        policy: policy_name(settings.policy),
    }
}

/// The versions of a task's state with the names that they have.
fn saved(history: &History) -> Vec<SavedVersion> {
    let named = |names: &BTreeMap<Box<str>, u32>, wanted: u32| {
        names.iter().filter(|(_, version)| **version == wanted).map(|(name, _)| name.to_string()).collect()
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
    };
    history.versions.iter().map(saved).collect()
}

/// The place of a contract in the batch.
fn contract_of(partition: &Partition, index: u32, contracts: &mut Vec<BatchContract>) -> u32 {
    let contract = &partition.contracts[index];
    let known = contracts.iter().position(|known| known.canonical == contract.canonical);
    let place = known.unwrap_or_else(|| {
        let queue = &partition.queues[contract.queue as usize];
        contracts.push(BatchContract {
            canonical: contract.canonical.clone(),
            namespace: queue.namespace.clone(),
            queue: queue.name.clone(),
            kind: contract.kind.clone(),
            priority: contract.priority,
            attempts_max: contract.retry.attempts_max,
        });
        contracts.len() - 1
    });
    u32::try_from(place).expect("contracts are bounded")
}

fn describe(partition: &Partition, slot: Slot, contract: u32, arena: &Arena, bytes: &mut Vec<u8>) -> FinalTask {
    let task = &partition.tasks[slot];
    let mut row = FinalTask {
        id: task.id,
        workflow: TaskId::default(),
        number: task.token,
        started_us: 0,
        finished_us: task.at_us,
        deadline_us: 0,
        contract,
        attempts: begun(partition, slot),
        failures: task.failures,
        state: task.state,
        is_late: task.has(flag::LATE),
        name: body::Span::default(),
        error: [body::Span::default(); 3],
        blob: body::put(bytes, arena.get(task.blob)),
        versions: partition.history(slot).map(saved).unwrap_or_default(),
    };
    if let Some(extra) = partition.extras.get(task.extra) {
        row.workflow = workflow_id(partition, extra.workflow);
        (row.started_us, row.deadline_us) = (extra.started_us, extra.deadline_us);
        row.name = body::put(bytes, arena.get(extra.name));
        let (code, message, log_tail) = unpack_error(arena.get(extra.error));
        row.error = [code, message, log_tail].map(|part| body::put(bytes, part));
    }
    row
}

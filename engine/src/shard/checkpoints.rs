//! Checkpoints of the partitions that are led here: what goes to the store, and what its answers change.
//!
//! What is on its way is volatile. A new leader asks the store where it stands and goes on from there; how far the store is known to
//! be, and with it what may be forgotten, is replicated.

mod states;

use taskmaster_protocol::body::{self, ArchivedConfigureQueue, ConfigureQueue, queue_field, restart};
use taskmaster_protocol::{Body as _, FrameBuffer, Operation, PartitionId, TaskId};

use super::Shard;
use super::group::Request;
use crate::arena::Arena;
use crate::checkpoint::{
    Batch, BatchBounds, BatchContract, BatchQueue, FinalTask, ForStore, FromStore, Holding, Particulars, Stored,
};
use crate::command;
use crate::command::submit::key_in_scope;
use crate::entry::{Verb, checkpointed_bytes};
use crate::extra::{Extra, unpack_error};
use crate::memo;
use crate::partition::{Partition, Sending};
use crate::query::task::{begun, workflow_id};
use crate::queue::{Queue, policy_name, policy_named, policy_number};
use crate::refused::Refused;
use crate::snapshot::restored;
use crate::task::{Slot, flag};

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
                    partition.tell_all();
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

    /// Proposes that what the store has of a partition comes back, if it is led here.
    pub(super) fn restore(&mut self, from: &FromStore) {
        let id = match from {
            FromStore::Queues { partition, .. } => *partition,
            FromStore::Tasks(batch) => PartitionId(batch.partition),
            FromStore::States(states) => PartitionId(states.partition),
        };
        if self.group(id.0).is_none_or(|group| group.serving == 0) {
            return;
        }
        match from {
            FromStore::Queues { queues, .. } => {
                for queue in queues {
                    self.restore_queue(id, queue);
                }
            }
            FromStore::Tasks(batch) => {
                self.push(Verb::Restored, id, Request::default(), |out| restored::write(batch, out));
            }
            FromStore::States(states) => {
                self.push(Verb::RestoredStates, id, Request::default(), |out| restored::states::write(states, out));
            }
        }
    }

    /// Whoever can write to the store may have written what no request could ask for.
    fn restore_queue(&mut self, id: PartitionId, queue: &BatchQueue) {
        let Some(partition) = self.partitions.get(usize::from(id.0)).and_then(Option::as_deref) else { return };
        let mut bytes = FrameBuffer::new();
        configuration(queue).append_to(&mut bytes);
        let admitted = body::access::<ArchivedConfigureQueue>(&bytes)
            .map_err(Refused::from)
            .and_then(|body| command::configure_queue::admit(partition, body));
        match admitted {
            Ok(()) => {
                let verb = Verb::Operation(Operation::ConfigureQueue);
                self.push(verb, id, Request::default(), |out| out.extend_from_slice(&bytes));
            }
            Err(refused) => {
                let (namespace, name) = (&queue.namespace, &queue.queue);
                let sentence = format!(
                    "the settings of queue {name:?} in namespace {namespace:?} do not come back to partition {id}: {}",
                    refused.message
                );
                self.give_notice(sentence, false);
            }
        }
    }

    /// What a partition that is led here has.
    #[must_use]
    pub fn holding(&self, partition: PartitionId) -> Option<Holding> {
        let is_settled = self.group(partition.0)?.has_nothing_waiting();
        let partition = self.partitions.get(usize::from(partition.0))?.as_deref()?;
        let (last_number, versions) = (partition.last_retained, partition.versions.kept());
        partition.is_leading().then_some(Holding { last_number, versions, is_settled })
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
            partition.tell_all();
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
    let (mut told, mut metadata) = (states::Told::new(partition.telling), 0);
    for (number, slot) in partition.waiting_after(from) {
        if let Some(slot) = slot
            && let Some(history) = partition.history(slot)
            && !told.add(history, partition, partition.tasks[slot].at_us, (arena, bounds.bytes), &mut batch)
        {
            break;
        }
        batch.to = number;
        let Some(slot) = slot else { continue };
        let index = partition.tasks[slot].contract;
        if contract.0 != index {
            contract = (index, contract_of(partition, index, &mut batch.contracts));
        }
        let task = describe(partition, slot, contract.1, arena, &mut batch.bytes);
        metadata += task.saved.as_ref().map_or(0, |state| state.bytes());
        batch.tasks.push(task);
        if batch.tasks.len() >= bounds.tasks || batch.bytes.len() + metadata >= bounds.bytes {
            break;
        }
    }
    batch.queues = partition.take_untold().map(setting).collect();
    if batch.to == from && batch.chunks.is_empty() && batch.queues.is_empty() {
        return None;
    }
    told.note(partition, &mut batch);
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
        policy: policy_name(settings.policy).to_owned(),
        refuse_permille: settings.refuse_permille,
        restarts_off: settings.restarts_off,
        weight: settings.weight,
    }
}

/// The request that makes a queue what it was.
fn configuration(queue: &BatchQueue) -> ConfigureQueue {
    let mut body = ConfigureQueue {
        set: queue_field::WEIGHT * 2 - 1,
        paused: queue.paused.into(),
        draining: queue.draining.into(),
        rate_milli_per_s: queue.rate_milli_per_s,
        rate_burst: queue.rate_burst,
        concurrency: queue.concurrency,
        depth_max: queue.depth_max,
        retention_ms: queue.retention_ms,
        deadline_action: queue.flags_deadlines.into(),
        policy: policy_number(policy_named(&queue.policy).unwrap_or_default()),
        refuse_permille: queue.refuse_permille,
        restarts_off: restart::ALL << 4 | (queue.restarts_off & restart::ALL),
        weight: queue.weight,
        ..ConfigureQueue::default()
    };
    body.namespace = body::put(&mut body.bytes, queue.namespace.as_bytes());
    body.queue = body::put(&mut body.bytes, queue.queue.as_bytes());
    body
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
            restartable: contract.restartable,
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
        saved: None,
        particulars: None,
    };
    if let Some(extra) = partition.extras.get(task.extra) {
        row.workflow = workflow_id(partition, extra.workflow);
        (row.started_us, row.deadline_us) = (extra.started_us, extra.deadline_us);
        row.name = body::put(bytes, arena.get(extra.name));
        let (code, message, log_tail) = unpack_error(arena.get(extra.error));
        row.error = [code, message, log_tail].map(|part| body::put(bytes, part));
        if let Some(history) = partition.versions.get(extra.history).filter(|history| !history.versions.is_empty()) {
            let mut state = states::saved(history, &partition.versions.chunks);
            state.input = body::put(bytes, arena.get(extra.input));
            row.saved = Some(Box::new(state));
        }
        row.particulars = particulars(partition, slot, extra, arena, bytes).map(Box::new);
    }
    row
}

/// What few tasks have; `None` for most.
fn particulars(
    partition: &Partition,
    slot: Slot,
    extra: &Extra,
    arena: &Arena,
    bytes: &mut Vec<u8>,
) -> Option<Particulars> {
    let unique = arena.get(extra.unique);
    let memo_key = memo::key_in(unique);
    let key = partition.keys.get(extra.key as usize);
    let found = Particulars {
        memo_of: extra.memo_of,
        memo_us: extra.memo_us,
        memo_key,
        unique: if memo_key.is_none() { body::put(bytes, key_in_scope(unique)) } else { body::Span::default() },
        unique_until_us: extra.unique_until_us,
        holds_key: !unique.is_empty() && partition.holds_unique(slot, arena),
        key: body::put(bytes, key.map_or(&[], |key| key_in_scope(&key.bytes))),
        key_limit: key.map_or(0, |key| key.limit),
        forgiven: extra.forgiven,
        note: body::put(bytes, arena.get(extra.note)),
        done_permille: extra.done_permille,
    };
    (found != Particulars::default()).then_some(found)
}

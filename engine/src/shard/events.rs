//! Events of the partitions that are led here: what goes to the topic, and what the answers change.
//!
//! As with checkpoints, what is on its way is volatile: a new leader asks where the topic stands and goes on from there. How much is known
//! to be sent is replicated, so that the line can be shortened.

use taskmaster_protocol::{PartitionId, body};

use super::Shard;
use super::group::Request;
use crate::arena::Arena;
use crate::checkpoint::{BatchBounds, Stored};
use crate::command::submit::key_in_scope;
use crate::entry::{Verb, checkpointed_bytes, put_start};
use crate::events::{Batch, Change, Details, Event, ForTopic, Labels};
use crate::extra::unpack_error;
use crate::partition::{Happened, Partition, Sending};
use crate::query::task::workflow_id;
use crate::state::State;
use crate::task::{NONE, Slot};

impl Shard {
    /// What goes to the topic next, from one partition after the other; `None` when nothing can go before something changes.
    pub fn next_for_topic(&mut self, bounds: BatchBounds) -> Option<ForTopic> {
        let cluster = self.map.as_ref()?.cluster;
        let places = self.partitions.len();
        for _ in 0..places {
            let place = self.topic_place;
            self.topic_place = (place + 1) % places;
            let term = self.groups[place].as_deref().map_or(0, |group| group.serving);
            let Some(partition) = self.partitions[place].as_deref_mut().filter(|_| term > 0) else { continue };
            if !partition.has_events() || partition.outbox.len() == 0 {
                continue;
            }
            if partition.outbox.overflows && !self.topic_overflows {
                self.topic_overflows = true;
                let kib = partition.settings.events_kib_max;
                let sentence = format!(
                    "events are dropped, the oldest first: the topic takes none, and {kib} KiB of partition {} wait already",
                    partition.id
                );
                self.notices.give(sentence, false, self.last_time_us);
            }
            match partition.outbox.sending {
                Sending::Closed => {
                    partition.outbox.sending = Sending::Opening;
                    let sent = partition.outbox.before;
                    return Some(ForTopic::Open { cluster, partition: partition.id, term, sent });
                }
                Sending::Idle(from) => {
                    if let Some(batch) = gather(partition, from, bounds, &self.arena) {
                        partition.outbox.sending = Sending::Busy(from, batch.to);
                        return Some(ForTopic::Batch(Batch { cluster, term, ..batch }));
                    }
                }
                Sending::Opening | Sending::Busy(..) | Sending::Shut => {}
            }
        }
        None
    }

    /// The answer about a partition to the leader of a term.
    pub(super) fn sent(&mut self, id: PartitionId, term: u64, sent: Stored) {
        let serving = self.group(id.0).map_or(0, |group| group.serving);
        let place = self.partitions.get_mut(usize::from(id.0)).and_then(Option::as_deref_mut);
        let Some(partition) = place.filter(|_| serving == term && term > 0) else { return };
        let last = partition.outbox.last();
        let outbox = &mut partition.outbox;
        let upto = match sent {
            Stored::Upto(upto) => upto,
            Stored::Overtaken => {
                outbox.sending = Sending::Shut;
                return;
            }
        };
        if upto > last {
            outbox.sending = Sending::Shut;
            let sentence = format!(
                "the topic has events of partition {id} up to number {upto}, and the partition has no more than {last}: they are of \
                 another past of this cluster, and nothing more of the partition is sent; name another topic for positions"
            );
            self.give_notice(sentence, false);
            return;
        }
        outbox.sending = Sending::Idle(upto);
        if upto > outbox.before {
            (outbox.overflows, self.topic_overflows) = (false, false);
            self.push(Verb::Sent, id, Request::default(), |out| out.extend_from_slice(&checkpointed_bytes(upto)));
        }
    }
}

impl Shard {
    /// That attempts began goes to the log with whatever is proposed next, and before what ends them. Nobody waits for it.
    pub(super) fn log_starts(&mut self) {
        let mut starts = core::mem::take(&mut self.scratch.starts);
        for of_partition in starts.chunk_by(|(partition, _), (next, _)| partition == next) {
            self.push(Verb::Started, of_partition[0].0, Request::default(), |out| {
                of_partition.iter().for_each(|(_, start)| put_start(out, *start));
            });
        }
        starts.clear();
        self.scratch.starts = starts;
    }

    /// Whether something waits for the end of a turn to be proposed.
    #[must_use]
    pub fn has_unproposed(&self) -> bool {
        !self.dirty.is_empty()
    }
}

/// The next events behind a number.
fn gather(partition: &Partition, from: u64, bounds: BatchBounds, arena: &Arena) -> Option<Batch> {
    let mut batch = Batch { partition: partition.id.0, from, to: from, ..Batch::default() };
    let mut labels = (NONE, 0);
    for (number, happened) in partition.outbox.after(from) {
        let details = partition.find(happened.id, NONE).map(|slot| {
            let contract = partition.tasks[slot].contract;
            if labels.0 != contract {
                labels = (contract, labels_of(partition, contract, &mut batch.labels));
            }
            describe(partition, slot, &happened, labels.1, arena, &mut batch.bytes)
        });
        let Happened { id, at_us, attempt, change, .. } = happened;
        batch.events.push(Event { number, id, change, at_us, attempt: attempt.into(), details });
        batch.to = number;
        if batch.events.len() >= bounds.tasks || batch.bytes.len() >= bounds.bytes {
            break;
        }
    }
    (batch.to > from).then_some(batch)
}

/// The place of a contract's labels in the batch.
pub(super) fn labels_of(partition: &Partition, contract: u32, labels: &mut Vec<Labels>) -> u32 {
    let contract = &partition.contracts[contract];
    let queue = &partition.queues[contract.queue as usize];
    let is_it =
        |known: &Labels| known.kind == contract.kind && known.queue == queue.name && known.namespace == queue.namespace;
    let place = labels.iter().position(is_it).unwrap_or_else(|| {
        let (namespace, queue) = (queue.namespace.clone(), queue.name.clone());
        labels.push(Labels { namespace, queue, kind: contract.kind.clone() });
        labels.len() - 1
    });
    u32::try_from(place).expect("contracts are bounded")
}

/// What can be said of an event: a result or an error only while it is that event's.
fn describe(
    partition: &Partition,
    slot: Slot,
    happened: &Happened,
    labels: u32,
    arena: &Arena,
    bytes: &mut Vec<u8>,
) -> Details {
    let task = &partition.tasks[slot];
    let mut details = Details { labels, ..Details::default() };
    if happened.change == Change::Completed && task.state == State::Succeeded {
        details.result = Some(body::put(bytes, arena.get(task.blob)));
    }
    let Some(extra) = partition.extras.get(task.extra) else { return details };
    details.workflow = workflow_id(partition, extra.workflow);
    details.step = body::put(bytes, arena.get(extra.name));
    if extra.key != NONE {
        details.key = body::put(bytes, key_in_scope(&partition.keys[extra.key as usize].bytes));
    }
    let is_errors = match happened.change {
        Change::AttemptFailed => true,
        // The error of another is no attempt of its own: two such failures have one number.
        Change::Failed => happened.at_us == task.at_us || !partition.is_memoised(slot, arena),
        _ => false,
    };
    if is_errors && happened.attempt == task.failures {
        let (code, message, _) = unpack_error(arena.get(extra.error));
        details.error = [code, message].map(|part| body::put(bytes, part));
    }
    details
}

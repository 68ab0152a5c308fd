//! Extend: heartbeats. Volatile: a lease is the leader's promise, not the log's.

use taskmaster_protocol::TaskId;
use taskmaster_protocol::body::{ArchivedLeases, BatchReply};

use super::{except, leased_twice};
use crate::partition::{Cx, DETACHED, Partition};

/// Starts each named lease's length anew.
pub(crate) fn apply(
    partition: &mut Partition,
    body: &ArchivedLeases,
    worker: Option<u32>,
    cx: &mut Cx<'_>,
) -> BatchReply {
    let mut reply = BatchReply::default();
    for (index, row) in body.rows.iter().enumerate() {
        let id = TaskId::from(&row.id);
        let (token, locator, attempt) = (row.token.to_native(), row.locator.to_native(), row.attempt.to_native());
        let slot = match leased_twice(partition, id, token, locator, attempt) {
            Ok((slot, false)) => slot,
            Ok((slot, true)) => {
                partition.extend_second(slot, worker, cx);
                reply.accepted += 1;
                continue;
            }
            Err((code, state)) => {
                except(&mut reply, index, id, code, state);
                continue;
            }
        };
        partition.note_start(slot);
        let holder = partition.tasks[slot].worker;
        let contract = &partition.contracts[partition.tasks[slot].contract];
        let list = contract.lease_list;
        let from = if holder & DETACHED != 0 { partition.grace_list() } else { list };
        partition.lease_lists[from as usize].list.unlink(&mut partition.tasks, slot);
        let lease_list = &mut partition.lease_lists[list as usize];
        partition.tasks[slot].at_us = cx.time_us + u64::from(lease_list.lease_ms) * 1_000;
        lease_list.list.push_back(&mut partition.tasks, slot);
        adopt(partition, slot, worker, cx);
        partition.arm_lease_list(list, cx.timers);
        reply.accepted += 1;
    }
    reply
}

/// A worker that came back on another connection holds its lease there, even if the loss of the old one is not known
/// yet: its leases must not end with a connection that it has left.
fn adopt(partition: &mut Partition, slot: u32, worker: Option<u32>, cx: &mut Cx<'_>) {
    let task = &mut partition.tasks[slot];
    task.worker &= !DETACHED;
    let holder = task.worker;
    if let Some(worker) = worker.filter(|&worker| worker != holder) {
        task.worker = worker;
        let queue = partition.queues[partition.contracts[task.contract].queue as usize].dispatch;
        cx.dispatch.move_lease(queue, holder, worker, partition.need(slot));
    }
}

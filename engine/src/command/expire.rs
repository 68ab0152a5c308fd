//! Expire: the engine's own record that a lease or a deadline ran out.

use taskmaster_protocol::TaskId;
use taskmaster_protocol::body::ArchivedExpire;

use super::fail::attempt_failed;
use crate::arena::Handle;
use crate::partition::{Cx, Partition};
use crate::state::State;
use crate::task::{NONE, flag};

/// The lease ran out: an attempt ended.
pub(crate) const LEASE: u32 = 0;
/// The deadline passed.
pub(crate) const DEADLINE: u32 = 1;

/// Carries logged expiries out. Those that were overtaken by a completion change nothing.
pub(crate) fn apply(partition: &mut Partition, body: &ArchivedExpire, cx: &mut Cx<'_>) {
    for row in body.rows.iter() {
        let Some(slot) = partition.find(TaskId::from(&row.id), NONE) else { continue };
        let task = &partition.tasks[slot];
        if task.state.is_final() {
            continue;
        }
        if row.what.to_native() == LEASE {
            if task.attempt() == row.attempt.to_native() && task.state != State::Waiting {
                let message = b"the worker neither completed the task nor extended its lease in time";
                attempt_failed(partition, slot, "lease_expired", message, b"", false, cx);
            }
            continue;
        }
        crate::snapshot::touch(partition, slot, cx.arena);
        let task = &partition.tasks[slot];
        let queue = partition.contracts[task.contract].queue;
        if partition.queues[queue as usize].settings.flag_late {
            partition.tasks[slot].flags |= flag::LATE;
            continue;
        }
        if task.state == State::Leased {
            cx.revoked.push((task.worker, task.id, task.token));
        }
        partition.detach(slot, cx);
        partition.finish(slot, State::Expired, Handle::NONE, cx);
    }
}

//! Retry: failed, expired or cancelled tasks run again, with a fresh attempt budget.

use taskmaster_protocol::body::{ArchivedRetry, BatchReply};
use taskmaster_protocol::{Code, TaskId};

use super::except;
use crate::partition::{Cx, Partition};
use crate::state::State;
use crate::task::{NONE, Slot, flag};

/// Carries a logged retry out.
pub(crate) fn apply(partition: &mut Partition, body: &ArchivedRetry, cx: &mut Cx<'_>) -> BatchReply {
    let mut reply = BatchReply::default();
    for (index, id) in body.ids.iter().enumerate() {
        let id = TaskId::from(id);
        let Some(slot) = partition.find(id, NONE) else {
            except(&mut reply, index, id, Code::UnknownTask, None);
            continue;
        };
        let state = partition.tasks[slot].state;
        if state == State::Succeeded || !state.is_final() || !again(partition, slot, cx) {
            except(&mut reply, index, id, Code::IllegalState, Some(state));
            continue;
        }
        reply.accepted += 1;
    }
    reply
}

/// Whether the task could be made unfinished again.
fn again(partition: &mut Partition, slot: Slot, cx: &mut Cx<'_>) -> bool {
    crate::snapshot::touch(partition, slot, cx.arena);
    let extra = partition.extras.get(partition.tasks[slot].extra);
    let (workflow, row, needs) = extra.map_or((NONE, 0, 0), |extra| (extra.workflow, extra.row, extra.needs));
    if needs > 0 || takes_anothers_key(partition, slot, cx) {
        return false;
    }
    if workflow == NONE {
        partition.unretain(slot);
    } else if crate::workflow::reopen(partition, workflow, row, cx).is_none() {
        return false;
    }
    partition.kept -= 1;
    let task = &mut partition.tasks[slot];
    task.failures = 0;
    task.flags &= !flag::LATE;
    if let Some(extra) = partition.extras.get_mut(task.extra) {
        extra.deadline_us = 0;
        extra.done_permille = 0;
    }
    partition.enter_ready(slot, cx);
    true
}

/// Whether the task's unique key is meanwhile held by another.
fn takes_anothers_key(partition: &Partition, slot: Slot, cx: &Cx<'_>) -> bool {
    let Some(extra) = partition.extras.get(partition.tasks[slot].extra) else { return false };
    let bytes = cx.arena.get(extra.unique);
    !bytes.is_empty() && partition.unique.get(bytes).is_some_and(|&holder| holder != slot)
}

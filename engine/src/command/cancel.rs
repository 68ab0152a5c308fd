//! Cancel: tasks, or workflows with all their unfinished tasks. A running task's worker is told to stop.

use taskmaster_protocol::body::{ArchivedCancel, BatchReply};
use taskmaster_protocol::{Code, TaskId};

use super::except;
use crate::arena::Handle;
use crate::partition::{Cx, Partition};
use crate::state::State;
use crate::task::{NONE, Slot};

/// Carries a logged cancellation out.
pub(crate) fn apply(partition: &mut Partition, body: &ArchivedCancel, cx: &mut Cx<'_>) -> BatchReply {
    let mut reply = BatchReply::default();
    let workflows = body.workflows.to_native() == 1;
    for (index, id) in body.ids.iter().enumerate() {
        let id = TaskId::from(id);
        if workflows {
            match partition.workflows.find(id) {
                Some(workflow) => {
                    cancel_workflow(partition, workflow, cx);
                    reply.accepted += 1;
                }
                None => except(&mut reply, index, id, Code::UnknownWorkflow, None),
            }
            continue;
        }
        match partition.find(id, NONE) {
            None => except(&mut reply, index, id, Code::UnknownTask, None),
            Some(slot) if partition.tasks[slot].state.is_final() => {
                except(&mut reply, index, id, Code::AlreadyFinal, Some(partition.tasks[slot].state));
            }
            Some(slot) => {
                cancel_task(partition, slot, cx);
                reply.accepted += 1;
            }
        }
    }
    reply
}

fn cancel_task(partition: &mut Partition, slot: Slot, cx: &mut Cx<'_>) {
    crate::snapshot::touch(partition, slot, cx.arena);
    let task = &partition.tasks[slot];
    if task.state == State::Leased {
        cx.revoked.push((task.worker, task.id, task.token));
    }
    partition.detach(slot, cx);
    partition.finish(slot, State::Cancelled, Handle::NONE, cx);
}

/// Later rows go first, so that no cancelled row releases another.
fn cancel_workflow(partition: &mut Partition, workflow: u32, cx: &mut Cx<'_>) {
    if partition.workflows[workflow].unfinished == 0 {
        return;
    }
    for row in (0..partition.workflows[workflow].rows.len()).rev() {
        let slot = partition.workflows[workflow].rows[row];
        if slot != NONE && !partition.tasks[slot].state.is_final() {
            cancel_task(partition, slot, cx);
        }
    }
}

//! Retry: failed, expired or cancelled tasks run again, with a fresh attempt budget. Attempts go on being counted: an outcome of an
//! earlier one that comes late must not be taken for one of the next. A memoised task follows the one that runs for its key, if one does.

use taskmaster_protocol::body::{ArchivedRetry, BatchReply};
use taskmaster_protocol::{Code, TaskId};

use super::except;
use crate::arena::Handle;
use crate::events::Change;
use crate::memo::key_in;
use crate::partition::{Cx, Partition};
use crate::state::State;
use crate::task::{NONE, Slot, flag};
use crate::workflow;

/// The needs of the workflow whose rows are being retried: made once for all rows of a request.
#[derive(Default)]
struct Needs(Option<(u32, Vec<Vec<u32>>)>);

impl Needs {
    fn of(&mut self, partition: &Partition, workflow: u32) -> &[Vec<u32>] {
        if self.0.as_ref().is_none_or(|(known, _)| *known != workflow) {
            self.0 = Some((workflow, partition.workflows[workflow].needs()));
        }
        self.0.as_ref().map_or(&[], |(_, needs)| needs)
    }
}

/// Carries a logged retry out.
pub(crate) fn apply(partition: &mut Partition, body: &ArchivedRetry, cx: &mut Cx<'_>) -> BatchReply {
    let mut reply = BatchReply::default();
    let mut needs = Needs::default();
    for (index, id) in body.ids.iter().enumerate() {
        let id = TaskId::from(id);
        let Some(slot) = partition.find(id, NONE) else {
            except(&mut reply, index, id, Code::UnknownTask, None);
            continue;
        };
        let state = partition.tasks[slot].state;
        if state == State::Succeeded || !state.is_final() || !again(partition, slot, &mut needs, cx) {
            except(&mut reply, index, id, Code::IllegalState, Some(state));
            continue;
        }
        reply.accepted += 1;
    }
    reply
}

/// Whether one final task that did not succeed could be made ready again.
pub(crate) fn restart(partition: &mut Partition, slot: Slot, cx: &mut Cx<'_>) -> bool {
    again(partition, slot, &mut Needs::default(), cx)
}

/// Whether a row whose needs are all final may run: after a need that did not succeed only where failures do not matter.
/// Otherwise it is that need which has to be retried; its descendants follow.
fn needs_allow(partition: &Partition, index: u32, needs: &[u32]) -> bool {
    let workflow = &partition.workflows[index];
    let succeeded = |slot: Slot| slot != NONE && partition.tasks[slot].state == State::Succeeded;
    workflow.continues || needs.iter().all(|&need| succeeded(workflow.rows[need as usize]))
}

/// Whether the task could be made unfinished again.
fn again(partition: &mut Partition, slot: Slot, needs_of: &mut Needs, cx: &mut Cx<'_>) -> bool {
    crate::snapshot::touch(partition, slot, cx.arena);
    let extra = partition.extras.get(partition.tasks[slot].extra);
    let (index, row, needs) = extra.map_or((NONE, 0, 0), |extra| (extra.workflow, extra.row, extra.needs));
    let unique = extra.map_or(Handle::NONE, |extra| extra.unique);
    let conflict = |key: &[u8]| {
        let holder = partition.unique_conflict(key, cx.arena, cx.time_us);
        key_in(key).is_none() && holder.is_some_and(|holder| holder != slot)
    };
    if needs > 0 || (unique != Handle::NONE && conflict(cx.arena.get(unique))) {
        return false;
    }
    if index != NONE && !needs_allow(partition, index, &needs_of.of(partition, index)[row as usize]) {
        return false;
    }
    if index == NONE {
        partition.unretain(slot, cx.arena);
    } else if workflow::reopen(partition, index, row, needs_of.of(partition, index), cx).is_none() {
        return false;
    }
    partition.kept -= 1;
    let task = &mut partition.tasks[slot];
    // One that was ended from outside may have been in an attempt, whose outcome may still come.
    task.failures = task.failures.saturating_add(u16::from(task.state != State::Failed));
    task.flags &= !flag::LATE;
    let failures = task.failures;
    let extra = partition.extra_mut(slot);
    (extra.forgiven, extra.deadline_us, extra.done_permille) = (failures, 0, 0);
    (extra.memo_of, extra.memo_us) = (TaskId::default(), 0);
    partition.note(slot, Change::Retried, cx.time_us);
    if partition.follow_again(slot, cx.arena, cx.time_us) {
        return true;
    }
    if unique != Handle::NONE {
        partition.hold_unique(slot, cx.arena);
    }
    partition.enter_ready(slot, cx);
    true
}

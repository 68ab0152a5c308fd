//! What is known of a task.

use taskmaster_protocol::TaskId;
use taskmaster_protocol::body::{self, RESTARTABLE, Span, TaskInfo, TaskPage};

use crate::arena::{Arena, Handle};
use crate::dispatch::Dispatch;
use crate::extra::unpack_error;
use crate::partition::{DETACHED, Partition};
use crate::state::State;
use crate::task::{NONE, Slot, flag};

/// Describes one task with its payload, result and log.
pub(crate) fn one(partition: &Partition, slot: Slot, arena: &Arena, dispatch: &Dispatch) -> TaskPage {
    let mut page = TaskPage::default();
    describe(partition, slot, arena, dispatch, true, &mut page);
    page
}

/// Adds a task to a page: whole, with payload, result and log, or without.
pub(crate) fn describe(
    partition: &Partition,
    slot: Slot,
    arena: &Arena,
    dispatch: &Dispatch,
    whole: bool,
    page: &mut TaskPage,
) {
    let task = &partition.tasks[slot];
    let contract = &partition.contracts[task.contract];
    let queue = &partition.queues[contract.queue as usize];
    let mut put = |bytes: &[u8]| body::put(&mut page.bytes, bytes);
    let mut info = TaskInfo {
        id: task.id,
        at_us: task.at_us,
        namespace: put(queue.namespace.as_bytes()),
        queue: put(queue.name.as_bytes()),
        kind: put(contract.kind.as_bytes()),
        attempt: begun(partition, slot),
        attempts_max: u32::from(contract.retry.attempts_max),
        state: task.state.number(),
        priority: contract.priority | if contract.restartable { RESTARTABLE } else { 0 },
        late: task.has(flag::LATE).into(),
        ..TaskInfo::default()
    };
    if whole {
        let blob = put(arena.get(task.blob));
        if task.state == State::Succeeded { info.result = blob } else { info.payload = blob }
    }
    if task.state == State::Leased
        && let Some(worker) = dispatch.workers.get((task.worker & !DETACHED) as usize)
    {
        info.worker = put(worker.name.as_bytes());
    }
    if let Some(extra) = partition.extras.get(task.extra) {
        let mut text = |handle: Handle| if handle == Handle::NONE { Span::default() } else { put(arena.get(handle)) };
        (info.name, info.note) = (text(extra.name), text(extra.note));
        let (code, message, log_tail) = unpack_error(arena.get(extra.error));
        (info.error_code, info.error) = (put(code), put(message));
        if whole {
            info.log_tail = put(log_tail);
        }
        info.started_us = extra.started_us;
        info.deadline_ms = extra.deadline_us / 1_000;
        info.done_permille = extra.done_permille;
        info.workflow = workflow_id(partition, extra.workflow);
        if let Some((of, _)) = partition.memo_of(slot) {
            info.memo = 1;
            info.note = put(memo_note(task.state, of).as_bytes());
        }
    }
    page.rows.push(info);
}

/// What the note of a memoised task says whose outcome is another's.
#[must_use]
pub fn memo_note(state: State, of: TaskId) -> String {
    let what = if state == State::Succeeded { "result" } else { "failure" };
    format!("{what} of {of}")
}

pub(crate) fn workflow_id(partition: &Partition, index: u32) -> TaskId {
    if index == NONE { TaskId::default() } else { partition.workflows[index].id }
}

/// Attempts begun so far.
pub(crate) fn begun(partition: &Partition, slot: Slot) -> u32 {
    let task = &partition.tasks[slot];
    let runs = match task.state {
        State::Leased => true,
        State::Succeeded => partition.memo_of(slot).is_none(),
        _ => false,
    };
    u32::from(task.failures) + u32::from(runs)
}

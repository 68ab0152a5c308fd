//! Fork: a new workflow with the rows of an old one. What succeeded and does not depend on the row where it begins is taken over
//! with its result; the rest runs.

use taskmaster_protocol::body::{ArchivedForkWorkflow, BatchReply};
use taskmaster_protocol::{Code, TaskId};

use super::except;
use super::submit::{check_new, copy};
use crate::arena::Arena;
use crate::events::Change;
use crate::extra::Extra;
use crate::partition::{Cx, Partition};
use crate::refused::{Refused, unknown_workflow};
use crate::state::State;
use crate::task::{NONE, Task};
use crate::workflow::{self, Workflow};

/// Checks a fork; what it will add: tasks, and bytes of payloads and results.
pub(crate) fn admit(partition: &Partition, body: &ArchivedForkWorkflow, arena: &Arena) -> Result<(u64, u64), Refused> {
    let (id, to) = (TaskId::from(&body.id), TaskId::from(&body.to));
    let index = partition.workflows.find(id).ok_or_else(|| unknown_workflow(id))?;
    let is_here = |id: TaskId| id.partition() == partition.id && id.lo != 0;
    let mut ids: Vec<TaskId> = body.tasks.iter().map(TaskId::from).collect();
    if !is_here(to) || !ids.iter().all(|&id| is_here(id)) {
        return Err(Refused::new(Code::WrongPartition, format!("ids of a fork are all of partition {}", partition.id)));
    }
    let workflow = &partition.workflows[index];
    let rows = workflow.rows.len();
    if ids.len() != rows || body.at.to_native() as usize >= rows {
        let message = format!("the workflow has {rows} tasks: give as many ids, and one of its rows to begin at");
        return Err(Refused::new(Code::Invalid, message));
    }
    ids.sort_unstable();
    if ids.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(Refused::new(Code::Invalid, "two tasks of the fork have the same id"));
    }
    if workflow.rows.contains(&NONE) {
        return Err(Refused::new(Code::IllegalState, "parts of the workflow are forgotten already"));
    }
    let mut bytes = 0;
    for &slot in &workflow.rows {
        let queue = &partition.queues[partition.contracts[partition.tasks[slot].contract].queue as usize];
        if queue.settings.draining {
            let message = format!("queue \"{}\" is draining and takes no new tasks: resume it first", queue.name);
            return Err(Refused::new(Code::QueueDraining, message));
        }
        bytes += arena.len_of(partition.tasks[slot].blob) + arena.len_of(partition.payload(slot));
    }
    Ok((rows as u64, bytes as u64))
}

/// Carries a logged fork out, wholly or not at all.
pub(crate) fn apply(
    partition: &mut Partition,
    body: &ArchivedForkWorkflow,
    resend: bool,
    cx: &mut Cx<'_>,
) -> BatchReply {
    let mut reply = BatchReply::default();
    let ids: Vec<TaskId> = body.tasks.iter().map(TaskId::from).collect();
    for (index, &id) in ids.iter().enumerate() {
        if let Err((code, state)) = check_new(partition, id, resend) {
            except(&mut reply, index, id, code, state);
        }
    }
    let to = TaskId::from(&body.to);
    let source = partition.workflows.find(TaskId::from(&body.id));
    let source = source.filter(|&index| {
        let rows = &partition.workflows[index].rows;
        rows.len() == ids.len() && !rows.contains(&NONE)
    });
    if reply.exceptions.is_empty() && (source.is_none() || partition.workflows.find(to).is_some()) {
        let code = if source.is_none() { Code::UnknownWorkflow } else { Code::Duplicate };
        ids.iter().enumerate().for_each(|(index, &id)| except(&mut reply, index, id, code, None));
    }
    if let Some(source) = source.filter(|_| reply.exceptions.is_empty()) {
        fork(partition, source, body.at.to_native(), to, &ids, cx);
        reply.accepted = u32::try_from(ids.len()).expect("rows are bounded");
    }
    reply
}

/// For each row, whether it is the one to begin at or depends on it. Rows come after those they need.
fn begins_anew(workflow: &Workflow, at: u32) -> Vec<bool> {
    let mut anew = vec![false; workflow.rows.len()];
    anew[at as usize] = true;
    for row in (0u32..).take(anew.len()) {
        if anew[row as usize] {
            workflow.children_of(row).iter().for_each(|&child| anew[child as usize] = true);
        }
    }
    anew
}

fn fork(partition: &mut Partition, source: u32, at: u32, to: TaskId, ids: &[TaskId], cx: &mut Cx<'_>) {
    let from = &partition.workflows[source];
    let (rows, needs, anew) = (from.rows.clone(), from.needs(), begins_anew(from, at));
    let mut made = Workflow::new(to, copy(cx.arena, from.name), from.continues, &needs, cx.time_us);
    let is_taken: Vec<bool> = rows
        .iter()
        .zip(anew)
        .map(|(&slot, is_anew)| !is_anew && partition.tasks[slot].state == State::Succeeded)
        .collect();
    made.unfinished = u32::try_from(is_taken.iter().filter(|is_taken| !**is_taken).count()).expect("rows are bounded");
    let index = partition.workflows.insert(made);
    for ((row, &slot), &id) in (0u32..).zip(&rows).zip(ids) {
        let taken = is_taken[row as usize];
        let open = needs[row as usize].iter().filter(|&&need| !is_taken[need as usize]).count();
        let task = &partition.tasks[slot];
        let (result, payload, contract, failures) = (task.blob, partition.payload(slot), task.contract, task.failures);
        let step = partition.extras[task.extra].name;
        let mut extra = Extra { workflow: index, row, name: copy(cx.arena, step), ..Extra::default() };
        extra.needs = u32::try_from(open).expect("rows are bounded");
        let payload = copy(cx.arena, payload);
        let (blob, state) = if taken {
            extra.input = payload;
            (copy(cx.arena, result), State::Succeeded)
        } else {
            (payload, State::Waiting)
        };
        let extra = partition.extras.insert(extra);
        let task = Task::new(id, contract, extra, blob, state, cx.time_us);
        let slot = partition.insert(Task { failures: if taken { failures } else { 0 }, ..task });
        partition.note(slot, Change::Submitted, cx.time_us);
        if taken {
            partition.note(slot, Change::Completed, cx.time_us);
        }
        partition.kept += u32::from(taken);
        partition.workflows[index].rows.push(slot);
    }
    for row in 0..rows.len() {
        let slot = partition.workflows[index].rows[row];
        let is_free = partition.extras[partition.tasks[slot].extra].needs == 0;
        if is_free && partition.tasks[slot].state == State::Waiting {
            workflow::release(partition, slot, cx);
        }
    }
}

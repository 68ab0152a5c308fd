//! Workflows, one with its rows or all of a partition.

use taskmaster_protocol::body::{self, WorkflowInfo, WorkflowPage, WorkflowTask};

use super::task::begun;
use crate::arena::Arena;
use crate::partition::Partition;
use crate::task::NONE;
use crate::workflow::Workflow;

/// Most rows per page.
const ROWS_MAX: usize = 10_000;

/// One workflow and a page of its rows.
pub(crate) fn one(partition: &Partition, index: u32, from: u32, limit: u32, arena: &Arena) -> WorkflowPage {
    let mut page = WorkflowPage::default();
    let workflow = &partition.workflows[index];
    describe(partition, workflow, arena, &mut page);
    let limit = (limit as usize).clamp(1, ROWS_MAX);
    for &slot in workflow.rows.iter().skip(from as usize).take(limit) {
        let Some(task) = (slot != NONE).then(|| &partition.tasks[slot]) else {
            page.rows.push(WorkflowTask::default());
            continue;
        };
        let extra = &partition.extras[task.extra];
        page.rows.push(WorkflowTask {
            id: task.id,
            ready_us: extra.ready_us,
            started_us: extra.started_us,
            finished_us: if task.state.is_final() { task.at_us } else { 0 },
            name: body::put(&mut page.bytes, arena.get(extra.name)),
            attempt: begun(partition, slot),
            state: u32::from(task.state.number()),
        });
    }
    page
}

/// The newest workflows.
pub(crate) fn list(partition: &Partition, limit: u32, arena: &Arena) -> WorkflowPage {
    let mut page = WorkflowPage::default();
    let mut newest: Vec<&Workflow> = partition.workflows.iter().collect();
    newest.sort_unstable_by_key(|workflow| core::cmp::Reverse(workflow.id));
    for workflow in newest.into_iter().take((limit as usize).clamp(1, ROWS_MAX)) {
        describe(partition, workflow, arena, &mut page);
    }
    page
}

fn describe(partition: &Partition, workflow: &Workflow, arena: &Arena, page: &mut WorkflowPage) {
    let mut counts = [0u32; crate::state::STATES];
    for &slot in workflow.rows.iter().filter(|&&slot| slot != NONE) {
        counts[partition.tasks[slot].state as usize] += 1;
    }
    page.workflows.push(WorkflowInfo {
        id: workflow.id,
        counts,
        submitted_us: workflow.submitted_us,
        finished_us: workflow.finished_us,
        name: body::put(&mut page.bytes, arena.get(workflow.name)),
    });
}

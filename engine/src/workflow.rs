//! Workflows: which task of a DAG releases which, inside one partition.
//!
//! A task that succeeds releases the tasks that need it. One that ends otherwise cancels its descendants, or releases
//! them all the same, as the workflow chose. Tasks of a workflow start their retention together, when the last is final.

mod paths;

use std::collections::BTreeSet;

use hashbrown::HashMap;
use taskmaster_protocol::TaskId;

use crate::arena::{Arena, Handle};
use crate::events::Change;
use crate::hash::FixedState;
use crate::partition::{Awaited, Cx, Partition};
use crate::state::State;
use crate::task::{NONE, Slot};

pub(crate) use paths::ByPaths;

/// One workflow.
#[derive(Debug)]
pub(crate) struct Workflow {
    pub(crate) id: TaskId,
    pub(crate) name: Handle,
    /// Descendants of a task that did not succeed run all the same.
    pub(crate) continues: bool,
    pub(crate) awaited: bool,
    /// Slot of each row; `NONE` once forgotten.
    pub(crate) rows: Vec<Slot>,
    /// Rows that need row `r`: `children[starts[r]..starts[r + 1]]`.
    pub(crate) starts: Vec<u32>,
    pub(crate) children: Vec<u32>,
    pub(crate) unfinished: u32,
    pub(crate) remembered: u32,
    pub(crate) submitted_us: u64,
    pub(crate) finished_us: u64,
    /// Once a task of it was to start.
    paths: Option<Box<paths::Paths>>,
}

impl Workflow {
    /// Builds the child table from each row's needs.
    pub(crate) fn new(id: TaskId, name: Handle, continues: bool, needs: &[Vec<u32>], submitted_us: u64) -> Self {
        let count = u32::try_from(needs.len()).expect("rows are bounded");
        let mut starts = vec![0u32; needs.len() + 1];
        for parent in needs.iter().flatten() {
            starts[*parent as usize + 1] += 1;
        }
        for row in 1..starts.len() {
            starts[row] += starts[row - 1];
        }
        let mut at = starts.clone();
        let mut children = vec![0u32; needs.iter().map(Vec::len).sum()];
        for (row, parents) in (0u32..).zip(needs) {
            for parent in parents {
                children[at[*parent as usize] as usize] = row;
                at[*parent as usize] += 1;
            }
        }
        Self {
            id,
            name,
            continues,
            awaited: false,
            rows: Vec::with_capacity(needs.len()),
            starts,
            children,
            unfinished: count,
            remembered: count,
            submitted_us,
            finished_us: 0,
            paths: None,
        }
    }

    /// Memory held, in bytes.
    fn reserved_bytes(&self) -> usize {
        let numbers = self.starts.len() * 2 + self.children.len();
        size_of::<Self>() + numbers * size_of::<u32>()
    }

    /// Rows that need `row`.
    pub(crate) fn children_of(&self, row: u32) -> &[u32] {
        &self.children[self.starts[row as usize] as usize..self.starts[row as usize + 1] as usize]
    }

    /// The needs of each row, as they were submitted.
    pub(crate) fn needs(&self) -> Vec<Vec<u32>> {
        let mut needs = vec![Vec::new(); self.starts.len() - 1];
        for row in 0..self.starts.len() - 1 {
            let row = u32::try_from(row).expect("rows are bounded");
            for child in self.children_of(row) {
                needs[*child as usize].push(row);
            }
        }
        needs
    }
}

/// The workflows of a partition.
#[derive(Default)]
pub(crate) struct Workflows {
    items: Vec<Option<Workflow>>,
    free: Vec<u32>,
    by_id: HashMap<TaskId, u32, FixedState>,
    bytes: usize,
    cascade: Vec<Slot>,
    cascading: bool,
}

impl Workflows {
    pub(crate) fn insert(&mut self, workflow: Workflow) -> u32 {
        let id = workflow.id;
        self.bytes += workflow.reserved_bytes();
        let index = self.free.pop().unwrap_or_else(|| {
            self.items.push(None);
            u32::try_from(self.items.len() - 1).expect("no more workflows than task slots")
        });
        self.items[index as usize] = Some(workflow);
        self.by_id.insert(id, index);
        index
    }

    /// Memory held, in bytes.
    pub(crate) const fn reserved_bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn find(&self, id: TaskId) -> Option<u32> {
        self.by_id.get(&id).copied()
    }

    /// Live workflows in index order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Workflow> {
        self.items.iter().flatten()
    }

    /// A row's task is gone; with the last row the workflow goes.
    pub(crate) fn task_forgotten(&mut self, index: u32, row: u32, arena: &mut Arena) {
        let workflow = &mut self[index];
        workflow.rows[row as usize] = NONE;
        workflow.remembered -= 1;
        if workflow.remembered == 0 {
            self.drop_paths(index);
            let workflow = self.items[index as usize].take().expect("the index is live");
            arena.free(workflow.name);
            self.bytes -= workflow.reserved_bytes();
            self.by_id.remove(&workflow.id);
            self.free.push(index);
        }
    }
}

impl core::ops::Index<u32> for Workflows {
    type Output = Workflow;
    fn index(&self, index: u32) -> &Workflow {
        self.items[index as usize].as_ref().expect("tasks refer to live workflows")
    }
}

impl core::ops::IndexMut<u32> for Workflows {
    fn index_mut(&mut self, index: u32) -> &mut Workflow {
        self.items[index as usize].as_mut().expect("tasks refer to live workflows")
    }
}

/// Passes the end of a workflow's task on to the tasks that need it. Iterative, so a chain of any length is fine.
pub(crate) fn task_finished(partition: &mut Partition, index: u32, slot: Slot, cx: &mut Cx<'_>) {
    partition.workflows.cascade.push(slot);
    if partition.workflows.cascading {
        return;
    }
    partition.workflows.cascading = true;
    while let Some(slot) = partition.workflows.cascade.pop() {
        settle_row(partition, index, slot, cx);
    }
    partition.workflows.cascading = false;
}

fn settle_row(partition: &mut Partition, index: u32, slot: Slot, cx: &mut Cx<'_>) {
    let end = partition.tasks[slot].state;
    let row = partition.extras[partition.tasks[slot].extra].row;
    let workflow = &mut partition.workflows[index];
    workflow.unfinished -= 1;
    let releases = end == State::Succeeded || workflow.continues;
    let (from, to) = (workflow.starts[row as usize], workflow.starts[row as usize + 1]);
    for position in from..to {
        let workflow = &partition.workflows[index];
        let child = workflow.rows[workflow.children[position as usize] as usize];
        let extra = &mut partition.extras[partition.tasks[child].extra];
        extra.needs -= 1;
        let last = extra.needs == 0;
        if partition.tasks[child].state != State::Waiting {
            continue;
        }
        crate::snapshot::touch(partition, child, cx.arena);
        if !releases {
            partition.finish(child, State::Cancelled, Handle::NONE, cx);
        } else if last {
            release(partition, child, cx);
        }
    }
    let workflow = &mut partition.workflows[index];
    if workflow.unfinished == 0 {
        partition.workflows.drop_paths(index);
        let workflow = &mut partition.workflows[index];
        if core::mem::take(&mut workflow.awaited) {
            cx.settled.push(Awaited::Workflow(workflow.id));
        }
        for row in 0..partition.workflows[index].rows.len() {
            let slot = partition.workflows[index].rows[row];
            crate::snapshot::touch(partition, slot, cx.arena);
            partition.retain(slot, cx.arena);
        }
        // From here on rows have retention: those of a snapshot in progress were copied before.
        partition.workflows[index].finished_us = cx.time_us;
    }
}

/// Starts a task whose needs are met, now or when it is due.
pub(crate) fn release(partition: &mut Partition, slot: Slot, cx: &mut Cx<'_>) {
    let due_us = partition.extras.get(partition.tasks[slot].extra).map_or(0, |extra| extra.due_us);
    if due_us > cx.time_us {
        partition.enter_delayed(slot, due_us, cx);
    } else {
        partition.enter_ready(slot, cx);
    }
}

/// Makes room for another run of a final row: it is unfinished again, and so are its cancelled descendants whose other
/// needs succeeded or may yet. `None` when parts of the workflow are forgotten. `needs` are the workflow's; the work grows with the
/// row's descendants, not with the workflow.
pub(crate) fn reopen(
    partition: &mut Partition,
    index: u32,
    row: u32,
    needs: &[Vec<u32>],
    cx: &mut Cx<'_>,
) -> Option<()> {
    let workflow = &partition.workflows[index];
    if workflow.remembered as usize != workflow.rows.len() {
        return None;
    }
    if workflow.unfinished == 0 {
        for row in 0..partition.workflows[index].rows.len() {
            let slot = partition.workflows[index].rows[row];
            partition.unretain(slot, cx.arena);
        }
    }
    // Rows are opened in ascending order, each after all it needs.
    let mut reopened = vec![row];
    let mut next: BTreeSet<u32> = partition.workflows[index].children_of(row).iter().copied().collect();
    while let Some(child) = next.pop_first() {
        let needs = &needs[child as usize];
        let slot = partition.workflows[index].rows[child as usize];
        let is_open = |parent: &u32| reopened.binary_search(parent).is_ok();
        let may_succeed = |parent: &u32| {
            let slot = partition.workflows[index].rows[*parent as usize];
            let state = partition.tasks[slot].state;
            state == State::Succeeded || !state.is_final()
        };
        let opened = needs.iter().filter(|parent| is_open(parent)).count();
        let revives = partition.tasks[slot].state == State::Cancelled
            && needs.iter().all(|parent| is_open(parent) || may_succeed(parent));
        crate::snapshot::touch(partition, slot, cx.arena);
        let extra = &mut partition.extras[partition.tasks[slot].extra];
        extra.needs += u32::try_from(opened).expect("rows are bounded");
        if revives {
            partition.set_state(slot, State::Waiting);
            partition.note(slot, Change::Retried, cx.time_us);
            partition.kept -= 1;
            reopened.push(child);
            next.extend(partition.workflows[index].children_of(child));
        }
    }
    let workflow = &mut partition.workflows[index];
    workflow.unfinished += u32::try_from(reopened.len()).expect("rows are bounded");
    workflow.finished_us = 0;
    Some(())
}

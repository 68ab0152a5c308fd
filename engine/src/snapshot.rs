//! Snapshots of a partition, written in slices while it goes on working.
//!
//! A snapshot describes one moment (a position in the group's log). Tasks are copied slot by slot; a task that is about to change
//! before its turn is copied first ([`touch`]). One parity bit per task tells copied and younger tasks from those still
//! to be copied, so no second table is needed and a pause is bounded by one slice.
//!
//! The versions of a task's state are copied with it; their chunks, which tasks share, are only pinned then, and written once, in
//! slices, before the chunk that names them.
//!
//! Volatile state is left out: a leased task is written as ready, and key holds and ready order follow from the rest.

mod histories;
#[cfg(test)]
mod layout;
pub(crate) mod restored;

use std::collections::VecDeque;

use hashbrown::HashMap;
use rkyv::{Archive, Deserialize, Serialize};
use taskmaster_protocol::body::{self, Malformed, Span};
use taskmaster_protocol::{FrameBuffer, TaskId};

use crate::arena::{Arena, Handle};
use crate::command::submit::store;
use crate::contract::SpecView;
use crate::events::Change;
use crate::extra::Extra;
use crate::hash::FixedState;
use crate::partition::{Cx, Happened, Partition};
use crate::queue::{policy_number, policy_of, weight_number, weight_of};
use crate::state::State;
use crate::streams::Source;
use crate::task::{NONE, Slot, Task, flag};
use crate::timer::{Timer, TimerKind};
use crate::workflow::Workflow;

/// A piece of a snapshot: rkyv, like frame bodies.
#[derive(Debug, Default, Archive, Serialize, Deserialize)]
pub(crate) struct Chunk {
    /// 1: the first chunk of its partition, with everything but tasks.
    first: u32,
    partition: u32,
    forgotten_ms: u64,
    last_retained: u64,
    checkpointed: u64,
    queues: Vec<QueueRecord>,
    contracts: Vec<ContractRecord>,
    workflows: Vec<WorkflowRecord>,
    /// Pairs of child row and parent row.
    edges: Vec<[u32; 2]>,
    tasks: Vec<TaskRecord>,
    /// Chunks of state, each one's number the count of those before it in the whole snapshot.
    states: Vec<Span>,
    histories: Vec<histories::HistoryRecord>,
    versions: Vec<histories::VersionRecord>,
    /// Numbers of chunks of state.
    pieces: Vec<u32>,
    names: Vec<histories::NameRecord>,
    streams: Vec<StreamRecord>,
    /// Number of the event before the first that waits.
    events_before: u64,
    events: Vec<EventRecord>,
    bytes: Vec<u8>,
}

#[derive(Debug, Default, Archive, Serialize, Deserialize)]
struct QueueRecord {
    rate_milli_per_s: u64,
    depth_max: u64,
    namespace: Span,
    name: Span,
    rate_burst: u32,
    concurrency: u32,
    retention_ms: u32,
    paused: u32,
    draining: u32,
    flag_late: u32,
    policy: u16,
    weight: u16,
    refuse_permille: u16,
    restarts_off: u16,
}

#[derive(Debug, Default, Archive, Serialize, Deserialize)]
struct StreamRecord {
    position: u64,
    stream: Span,
    topic: Span,
    number: u32,
    reserved: u32,
}

#[derive(Debug, Default, Archive, Serialize, Deserialize)]
struct EventRecord {
    id: TaskId,
    at_us: u64,
    bytes: u32,
    attempt: u16,
    change: u16,
}

#[derive(Debug, Default, Archive, Serialize, Deserialize)]
struct ContractRecord {
    index: u32,
    canonical: Span,
}

#[derive(Debug, Default, Archive, Serialize, Deserialize)]
struct WorkflowRecord {
    id: TaskId,
    submitted_us: u64,
    finished_us: u64,
    name: Span,
    /// Range of `edges`.
    edges: Span,
    rows: u32,
    continues: u32,
}

#[derive(Debug, Default, Archive, Serialize, Deserialize)]
struct TaskRecord {
    id: TaskId,
    workflow: TaskId,
    at_us: u64,
    due_us: u64,
    deadline_us: u64,
    unique_until_us: u64,
    /// Final: its number in order of retention; 0 if that has not begun.
    retained: u64,
    blob: Span,
    error: Span,
    name: Span,
    unique: Span,
    key: Span,
    key_limit: u32,
    contract: u32,
    row: u32,
    failures: u16,
    /// Of them, those before the last retry by hand.
    forgiven: u16,
    state: u32,
    /// Bit 0: late; bit 1: holds its unique key; bit 2: has an extra.
    marks: u32,
    /// Final: how long it is kept, as its queue had it when the task ended; 0 if that has not begun.
    retention_ms: u32,
    /// Index into `Chunk.histories` plus one; 0: it saved no state.
    history: u32,
    /// Payload of a succeeded task that may be forked.
    input: Span,
    /// Memoised, with another's outcome: the task that ran, and when it ended; else 0.
    memo_of: TaskId,
    memo_us: u64,
}

const MARK_LATE: u32 = 1;
const MARK_HOLDS_UNIQUE: u32 = 2;
const MARK_EXTRA: u32 = 4;

/// A partition's part in the snapshot in progress.
#[derive(Default)]
pub(crate) struct Progress {
    active: bool,
    /// Parity of tasks that are copied or younger than the snapshot.
    pub(crate) parity: bool,
    cursor: Slot,
    staged: Chunk,
    /// Complete chunks that were not fetched yet.
    closed: VecDeque<Chunk>,
    /// Which snapshot it is, and the chunks of state that it still has to write.
    number: u32,
    pinned: VecDeque<u32>,
    /// Chunks of state that were pinned.
    states: u32,
}

impl Progress {
    /// Whether the partition is being written.
    pub(crate) const fn is_active(&self) -> bool {
        self.active
    }

    /// The staged chunk is complete.
    fn close(&mut self) {
        let empty = Chunk { partition: self.staged.partition, ..Chunk::default() };
        self.closed.push_back(core::mem::replace(&mut self.staged, empty));
    }
}

/// Stops writing the partition. Tasks that were copied already count as younger than the next snapshot's beginning, so they are
/// put back among those still to be copied.
pub(crate) fn abandon(partition: &mut Partition, arena: &mut Arena) {
    if !core::mem::take(&mut partition.snapshot.active) {
        return;
    }
    partition.snapshot.staged = Chunk::default();
    partition.snapshot.closed.clear();
    while let Some(chunk) = partition.snapshot.pinned.pop_front() {
        partition.versions.chunks.unpin(chunk, arena);
    }
    let parity = partition.snapshot.parity;
    for slot in 0..partition.tasks.slots() {
        if partition.tasks.get(slot).is_some() {
            let task = &mut partition.tasks[slot];
            task.flags = (task.flags & !flag::SNAPSHOT_PARITY) | if parity { flag::SNAPSHOT_PARITY } else { 0 };
        }
    }
}

/// Most bytes of blobs and tasks per chunk, beyond which a chunk is closed.
const CHUNK_BYTES: usize = 256 << 10;
const CHUNK_TASKS: usize = 2_048;
const CHUNK_EVENTS: usize = 8_192;
/// Chunks of state that may wait to be written before more tasks are looked at.
const PINNED_MAX: usize = 4_096;

/// Copies a task into the snapshot in progress before it changes, unless it is copied or younger.
#[inline]
pub(crate) fn touch(partition: &mut Partition, slot: Slot, arena: &Arena) {
    if partition.snapshot.active && partition.tasks[slot].has(flag::SNAPSHOT_PARITY) != partition.snapshot.parity {
        copy(partition, slot, arena);
    }
}

#[cold]
fn copy(partition: &mut Partition, slot: Slot, arena: &Arena) {
    let parity = partition.snapshot.parity;
    let task = &mut partition.tasks[slot];
    task.flags = (task.flags & !flag::SNAPSHOT_PARITY) | if parity { flag::SNAPSHOT_PARITY } else { 0 };
    let history = histories::stage(partition, slot);
    let task = &partition.tasks[slot];
    // Of a lease its start is left: a ready time that no later task precedes.
    let lease_us = if task.state == State::Leased { partition.lease_us(task) } else { 0 };
    // Without retention the token is that of the last lease, which the leader alone knows.
    let retention = partition.retention_ms(task).map(|retention_ms| (task.token, retention_ms));
    let (retained, retention_ms) = retention.unwrap_or_default();
    let unique = partition.extras.get(task.extra).map_or(Handle::NONE, |extra| extra.unique);
    let holds_unique = unique != Handle::NONE && partition.unique_holder(arena.get(unique), arena) == Some(slot);
    let staged = &mut partition.snapshot.staged;
    let mut put = |handle: Handle| body::put(&mut staged.bytes, arena.get(handle));
    let mut record = TaskRecord {
        id: task.id,
        at_us: task.at_us - lease_us,
        blob: put(task.blob),
        contract: task.contract,
        failures: task.failures,
        retained,
        state: u32::from(if task.state == State::Leased { State::Ready } else { task.state }.number()),
        marks: if task.has(flag::LATE) { MARK_LATE } else { 0 },
        retention_ms,
        history,
        ..TaskRecord::default()
    };
    if let Some(extra) = partition.extras.get(task.extra) {
        record.marks |= MARK_EXTRA;
        (record.due_us, record.deadline_us) = (extra.due_us, extra.deadline_us);
        (record.unique_until_us, record.forgiven) = (extra.unique_until_us, extra.forgiven);
        (record.error, record.name, record.unique) = (put(extra.error), put(extra.name), put(extra.unique));
        record.input = put(extra.input);
        (record.memo_of, record.memo_us) = (extra.memo_of, extra.memo_us);
        if holds_unique {
            record.marks |= MARK_HOLDS_UNIQUE;
        }
        if extra.key != NONE {
            let key = &partition.keys[extra.key as usize];
            record.key = body::put(&mut staged.bytes, &key.bytes);
            record.key_limit = key.limit;
        }
        if extra.workflow != NONE {
            record.workflow = partition.workflows[extra.workflow].id;
            record.row = extra.row;
        }
    }
    staged.tasks.push(record);
    if staged.tasks.len() >= CHUNK_TASKS || staged.bytes.len() + staged.pieces.len() * 4 >= CHUNK_BYTES {
        partition.snapshot.close();
    }
}

/// Starts a snapshot of this partition's present state.
pub(crate) fn begin(partition: &mut Partition, arena: &Arena) {
    let progress = &mut partition.snapshot;
    assert!(!progress.active, "one snapshot at a time");
    progress.active = true;
    progress.parity = !progress.parity;
    progress.cursor = 0;
    progress.number += 1;
    progress.states = 0;
    let mut chunk = Chunk {
        first: 1,
        partition: u32::from(partition.id.0),
        forgotten_ms: partition.forgotten_ms,
        last_retained: partition.last_retained,
        checkpointed: partition.checkpointed,
        events_before: partition.outbox.before,
        ..Chunk::default()
    };
    for queue in &partition.queues {
        let settings = &queue.settings;
        chunk.queues.push(QueueRecord {
            rate_milli_per_s: settings.rate_milli_per_s,
            depth_max: settings.depth_max,
            namespace: body::put(&mut chunk.bytes, queue.namespace.as_bytes()),
            name: body::put(&mut chunk.bytes, queue.name.as_bytes()),
            rate_burst: settings.rate_burst,
            concurrency: settings.concurrency,
            retention_ms: settings.retention_ms,
            paused: settings.paused.into(),
            draining: settings.draining.into(),
            flag_late: settings.flag_late.into(),
            policy: policy_number(settings.policy),
            weight: weight_number(settings.weight),
            refuse_permille: settings.refuse_permille,
            restarts_off: settings.restarts_off.into(),
        });
    }
    for (source, position) in partition.streams.iter() {
        chunk.streams.push(StreamRecord {
            position,
            stream: body::put(&mut chunk.bytes, source.stream.as_bytes()),
            topic: body::put(&mut chunk.bytes, source.topic.as_bytes()),
            number: source.number,
            reserved: 0,
        });
    }
    for (index, contract) in partition.contracts.iter() {
        let canonical = body::put(&mut chunk.bytes, &contract.canonical);
        chunk.contracts.push(ContractRecord { index, canonical });
    }
    for workflow in partition.workflows.iter() {
        let at = u32::try_from(chunk.edges.len()).expect("edges are bounded by memory");
        for (row, needs) in (0u32..).zip(workflow.needs()) {
            chunk.edges.extend(needs.into_iter().map(|parent| [row, parent]));
        }
        let len = u32::try_from(chunk.edges.len()).expect("edges are bounded by memory") - at;
        chunk.workflows.push(WorkflowRecord {
            id: workflow.id,
            submitted_us: workflow.submitted_us,
            finished_us: workflow.finished_us,
            name: body::put(&mut chunk.bytes, arena.get(workflow.name)),
            edges: Span { at, len },
            rows: u32::try_from(workflow.rows.len()).expect("rows are bounded"),
            continues: workflow.continues.into(),
        });
    }
    partition.snapshot.staged = chunk;
    partition.snapshot.close();
    stage_events(partition);
}

/// The line of events, as it is. It is bounded, and short unless the topic is away.
fn stage_events(partition: &mut Partition) {
    for (_, Happened { id, at_us, bytes, attempt, change }) in partition.outbox.after(0) {
        let staged = &mut partition.snapshot.staged;
        staged.events.push(EventRecord { id, at_us, bytes, attempt, change: change.number() });
        if staged.events.len() >= CHUNK_EVENTS {
            partition.snapshot.close();
        }
    }
    if !partition.snapshot.staged.events.is_empty() {
        partition.snapshot.close();
    }
}

/// Appends the next chunk to `out`; `false` when the partition's part is complete and nothing was appended.
pub(crate) fn next(partition: &mut Partition, arena: &mut Arena, out: &mut FrameBuffer) -> bool {
    if !partition.snapshot.active {
        return false;
    }
    let slots = partition.tasks.slots();
    while partition.snapshot.cursor < slots
        && partition.snapshot.closed.is_empty()
        && partition.snapshot.pinned.len() < PINNED_MAX
    {
        let slot = partition.snapshot.cursor;
        partition.snapshot.cursor += 1;
        if partition.tasks.get(slot).is_some() {
            touch(partition, slot, arena);
        }
    }
    let is_first = partition.snapshot.closed.front().is_some_and(|chunk| chunk.first == 1);
    let chunk = if !is_first && !partition.snapshot.pinned.is_empty() {
        histories::write_states(partition, arena)
    } else {
        if partition.snapshot.closed.is_empty() {
            partition.snapshot.close();
        }
        partition.snapshot.closed.pop_front().expect("just closed")
    };
    if chunk.first == 0 && chunk.tasks.is_empty() && chunk.states.is_empty() && chunk.events.is_empty() {
        partition.snapshot.active = false;
        return false;
    }
    rkyv::api::high::to_bytes_in::<_, rkyv::rancor::Error>(&chunk, out).expect("archiving plain records cannot fail");
    true
}

/// Rebuilds a partition from the chunks of a snapshot.
#[derive(Default)]
pub(crate) struct Restore {
    contracts: HashMap<u32, u32, FixedState>,
    /// Restored slots of the present partition, to be put on lists in the order of their times.
    slots: Vec<Slot>,
    /// Chunks of state by their number in the snapshot, each with a reference held from here.
    states: Vec<u32>,
}

impl Restore {
    /// Takes one chunk; those of one partition come together, the first one first.
    pub(crate) fn chunk(&mut self, bytes: &[u8], partition: &mut Partition, cx: &mut Cx<'_>) -> Result<(), Malformed> {
        let chunk = body::access::<ArchivedChunk>(bytes)?;
        if chunk.partition.to_native() != u32::from(partition.id.0) {
            return Err(Malformed(format!("the chunk is of partition {}", chunk.partition.to_native())));
        }
        if chunk.first.to_native() == 1 {
            self.first(chunk, partition, cx)?;
        }
        for &span in chunk.states.iter() {
            let (state, _) = partition.versions.chunks.add(body::slice(&chunk.bytes, span)?, cx.arena);
            self.states.push(state);
        }
        for record in chunk.events.iter() {
            partition.outbox.push(Happened {
                id: TaskId::from(&record.id),
                at_us: record.at_us.to_native(),
                bytes: record.bytes.to_native(),
                attempt: record.attempt.to_native(),
                change: Change::from_number(record.change.to_native())
                    .ok_or_else(|| Malformed("an event's change".to_owned()))?,
            });
        }
        for record in chunk.tasks.iter() {
            self.task(chunk, record, partition, cx)?;
        }
        Ok(())
    }

    fn first(&mut self, chunk: &ArchivedChunk, partition: &mut Partition, cx: &mut Cx<'_>) -> Result<(), Malformed> {
        (self.contracts, self.slots) = (HashMap::default(), Vec::new());
        partition.versions.chunks.release(&core::mem::take(&mut self.states), cx.arena);
        partition.forgotten_ms = chunk.forgotten_ms.to_native();
        partition.last_retained = chunk.last_retained.to_native();
        partition.checkpointed = chunk.checkpointed.to_native();
        partition.outbox.before = chunk.events_before.to_native();
        for record in chunk.queues.iter() {
            let namespace = body::text(&chunk.bytes, record.namespace)?;
            let queue = partition.queue(namespace, body::text(&chunk.bytes, record.name)?, cx.dispatch);
            let settings = &mut partition.queues[queue as usize].settings;
            settings.rate_milli_per_s = record.rate_milli_per_s.to_native();
            settings.depth_max = record.depth_max.to_native();
            settings.rate_burst = record.rate_burst.to_native();
            settings.concurrency = record.concurrency.to_native();
            settings.retention_ms = record.retention_ms.to_native();
            settings.paused = record.paused.to_native() != 0;
            settings.draining = record.draining.to_native() != 0;
            settings.flag_late = record.flag_late.to_native() != 0;
            settings.policy =
                policy_of(record.policy.to_native().into()).ok_or_else(|| Malformed("a queue's policy".to_owned()))?;
            settings.weight = weight_of(record.weight.to_native());
            settings.refuse_permille = record.refuse_permille.to_native();
            settings.restarts_off = u8::try_from(record.restarts_off.to_native())
                .map_err(|_| Malformed("what a queue does not do".to_owned()))?;
            let (settings, target) = (settings.clone(), partition.queues[queue as usize].dispatch);
            cx.dispatch.set_limits(target, &settings, cx.time_us);
        }
        for record in chunk.streams.iter() {
            let source = Source {
                stream: body::text(&chunk.bytes, record.stream)?.into(),
                topic: body::text(&chunk.bytes, record.topic)?.into(),
                number: record.number.to_native(),
            };
            partition.streams.set(source, record.position.to_native());
        }
        for record in chunk.contracts.iter() {
            let spec = SpecView::read_canonical(body::slice(&chunk.bytes, record.canonical)?)
                .ok_or_else(|| Malformed("a contract does not read as one".to_owned()))?;
            self.contracts.insert(record.index.to_native(), partition.contract(&spec, cx.dispatch));
        }
        for record in chunk.workflows.iter() {
            let rows = record.rows.to_native() as usize;
            let (at, len) = (record.edges.at.to_native() as usize, record.edges.len.to_native() as usize);
            let edges = chunk.edges.get(at..).and_then(|rest| rest.get(..len));
            let edges = edges.ok_or_else(|| Malformed("a workflow's edges are missing".to_owned()))?;
            let mut needs = vec![Vec::new(); rows];
            for [child, parent] in edges {
                let (child, parent) = (child.to_native(), parent.to_native());
                if parent >= child || child as usize >= rows {
                    return Err(Malformed("a workflow's edge points nowhere".to_owned()));
                }
                needs[child as usize].push(parent);
            }
            let name = store(cx.arena, body::slice(&chunk.bytes, record.name)?);
            let (id, submitted_us) = (TaskId::from(&record.id), record.submitted_us.to_native());
            let mut workflow = Workflow::new(id, name, record.continues.to_native() != 0, &needs, submitted_us);
            workflow.rows = vec![NONE; rows];
            (workflow.unfinished, workflow.remembered) = (0, 0);
            workflow.finished_us = record.finished_us.to_native();
            partition.workflows.insert(workflow);
        }
        Ok(())
    }

    fn task(
        &mut self,
        chunk: &ArchivedChunk,
        record: &ArchivedTaskRecord,
        partition: &mut Partition,
        cx: &mut Cx<'_>,
    ) -> Result<(), Malformed> {
        let missing = |what: &str| Malformed(format!("a task's {what} is missing"));
        let contract = *self.contracts.get(&record.contract.to_native()).ok_or_else(|| missing("contract"))?;
        let state = u8::try_from(record.state.to_native()).ok().and_then(State::from_number);
        let state = state.filter(|state| *state != State::Leased).ok_or_else(|| missing("state"))?;
        let marks = record.marks.to_native();
        let extra = if marks & MARK_EXTRA == 0 { NONE } else { self.extra(chunk, record, partition, cx)? };
        let id = TaskId::from(&record.id);
        let slot = partition.insert(Task {
            id,
            at_us: record.at_us.to_native(),
            token: record.retained.to_native(),
            blob: store(cx.arena, body::slice(&chunk.bytes, record.blob)?),
            extra,
            contract,
            next: NONE,
            prev: NONE,
            // Until `finish` puts a final task on the list of this length.
            worker: record.retention_ms.to_native(),
            failures: record.failures.to_native(),
            state,
            flags: if marks & MARK_LATE == 0 { 0 } else { flag::LATE },
        });
        if state.is_final() {
            partition.kept += 1;
        }
        let unique = partition.extras.get(extra).map_or(Handle::NONE, |extra| extra.unique);
        if marks & MARK_HOLDS_UNIQUE != 0 && unique != Handle::NONE {
            // Among restored tasks there may be one that came after it.
            let key = cx.arena.get(unique);
            if partition.unique_conflict(key, cx.arena, cx.time_us).is_none() {
                partition.hold_unique(slot, cx.arena);
            }
        }
        if let Some(extra) = partition.extras.get(extra) {
            if extra.deadline_us != 0 && !state.is_final() {
                cx.timers.insert_step(extra.deadline_us, Timer::of_task(partition.id, TimerKind::Deadline, slot, id));
            }
            if extra.workflow != NONE {
                let workflow = &mut partition.workflows[extra.workflow];
                let place = workflow.rows.get_mut(extra.row as usize).ok_or_else(|| missing("workflow row"))?;
                *place = slot;
                workflow.remembered += 1;
                workflow.unfinished += u32::from(!state.is_final());
            }
        }
        self.slots.push(slot);
        Ok(())
    }

    fn extra(
        &self,
        chunk: &ArchivedChunk,
        record: &ArchivedTaskRecord,
        partition: &mut Partition,
        cx: &mut Cx<'_>,
    ) -> Result<u32, Malformed> {
        let mut extra = Extra {
            due_us: record.due_us.to_native(),
            deadline_us: record.deadline_us.to_native(),
            unique_until_us: record.unique_until_us.to_native(),
            unique: store(cx.arena, body::slice(&chunk.bytes, record.unique)?),
            name: store(cx.arena, body::slice(&chunk.bytes, record.name)?),
            error: store(cx.arena, body::slice(&chunk.bytes, record.error)?),
            input: store(cx.arena, body::slice(&chunk.bytes, record.input)?),
            forgiven: record.forgiven.to_native().min(record.failures.to_native()),
            memo_of: TaskId::from(&record.memo_of),
            memo_us: record.memo_us.to_native(),
            ..Extra::default()
        };
        let key = body::slice(&chunk.bytes, record.key)?;
        if !key.is_empty() {
            extra.key = partition.key(key.to_vec(), record.key_limit.to_native(), cx.dispatch);
        }
        let workflow = TaskId::from(&record.workflow);
        if workflow != TaskId::default() {
            let known = partition.workflows.find(workflow);
            extra.workflow = known.ok_or_else(|| Malformed("a task's workflow is missing".to_owned()))?;
            extra.row = record.row.to_native();
        }
        if let Some(index) = record.history.to_native().checked_sub(1) {
            let history = histories::restore(chunk, index, &self.states, &mut partition.versions)?;
            extra.history = partition.versions.insert(history);
        }
        Ok(partition.extras.insert(extra))
    }

    /// All chunks of the partition were taken: puts its tasks on their lists.
    pub(crate) fn finish(&mut self, partition: &mut Partition, cx: &mut Cx<'_>) {
        partition.versions.chunks.release(&core::mem::take(&mut self.states), cx.arena);
        let mut slots = core::mem::take(&mut self.slots);
        slots.sort_unstable_by_key(|&slot| {
            let task = &partition.tasks[slot];
            (task.token, task.at_us, task.id)
        });
        Self::count_needs(partition);
        for slot in slots {
            let task = &partition.tasks[slot];
            cx.time_us = task.at_us;
            match task.state {
                State::Ready => partition.enter_ready(slot, cx),
                State::Delayed => {
                    let due_us = task.at_us;
                    partition.enter_delayed(slot, due_us, cx);
                }
                State::Waiting => partition.restore_follower(slot, cx.arena),
                State::Leased => {}
                State::Succeeded | State::Failed | State::Cancelled | State::Expired => {
                    let extra = partition.extras.get(task.extra).filter(|extra| extra.workflow != NONE);
                    if extra.is_none_or(|extra| partition.workflows[extra.workflow].unfinished == 0) {
                        let (number, retention_ms) = (task.token, task.worker);
                        partition.retain_as(slot, number, retention_ms, cx.arena);
                    }
                }
            }
        }
        for (_, contract) in core::mem::take(&mut self.contracts) {
            partition.drop_unused_contract(contract);
        }
    }

    /// Counts, for every row, the needed rows that are not final.
    fn count_needs(partition: &mut Partition) {
        let mut open = Vec::new();
        for workflow in partition.workflows.iter() {
            for (row, &slot) in (0u32..).zip(&workflow.rows) {
                if slot != NONE && !partition.tasks[slot].state.is_final() {
                    open.extend(workflow.children_of(row).iter().map(|&child| workflow.rows[child as usize]));
                }
            }
        }
        for slot in open.into_iter().filter(|&slot| slot != NONE) {
            partition.extras[partition.tasks[slot].extra].needs += 1;
        }
    }
}

//! One partition: a deterministic state machine over its log of commands, and the leader's volatile view beside it.
//!
//! Invariants:
//! - Every task is in the index under its id and on the list its state asks for.
//! - Counts by state are exact at every moment.
//! - All changes of state go through [`Partition::set_state`], which asserts the transition table.
//! - What is replicated changes only in `command::*::apply`; ready order, leases and key holds are volatile.

use core::hash::BuildHasher;

use hashbrown::{HashMap, HashTable};
use taskmaster_protocol::{PartitionId, TaskId};

use crate::arena::{Arena, Handle};
use crate::contract::{Contract, Contracts, Retry, SpecView};
use crate::dispatch::Dispatch;
use crate::entry::Settings;
use crate::extra::{Extra, Extras};
use crate::hash::FixedState;
use crate::memo::{Findings, Followers};
use crate::order::Alike;
use crate::queue::{Queue, QueueSettings};
use crate::resources::Resources;
use crate::state::State;
use crate::streams::Streams;
use crate::task::{List, NONE, Slot, Task, Tasks, flag};
use crate::timer::{Timer, TimerKind, Timers};
use crate::versions::{History, Versions};
use crate::workflow::Workflows;

mod attempts;
mod checkpoint;
mod events;
mod keys;
mod lanes;
mod leadership;
pub(crate) mod retention;
mod unique;

use attempts::Attempts;
pub(crate) use attempts::{Over, Place, Second};
use checkpoint::Waiting;
pub(crate) use checkpoint::{Sending, Telling};
pub(crate) use events::Happened;
use events::Outbox;
pub(crate) use keys::Key;
pub(crate) use lanes::{ClassList, Lane, Pick};

/// Leases of one length, the first to expire first.
#[derive(Debug)]
pub(crate) struct LeaseList {
    pub(crate) lease_ms: u32,
    pub(crate) list: List,
    pub(crate) armed: bool,
}

/// Final tasks kept for the same time, the first to go first.
#[derive(Debug)]
pub(crate) struct RetentionList {
    pub(crate) retention_ms: u32,
    pub(crate) list: List,
}

/// What somebody may wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Awaited {
    Task(TaskId),
    Workflow(TaskId),
}

/// What a transition may touch outside the partition.
pub(crate) struct Cx<'a> {
    /// Time of the entry being applied, or now for volatile changes; microseconds since 1970.
    pub(crate) time_us: u64,
    pub(crate) arena: &'a mut Arena,
    pub(crate) timers: &'a mut Timers,
    pub(crate) dispatch: &'a mut Dispatch,
    /// What was awaited and became final.
    pub(crate) settled: &'a mut Vec<Awaited>,
    /// Leases of cancelled or expired tasks: worker, task, token.
    pub(crate) revoked: &'a mut Vec<(u32, TaskId, u64)>,
    /// Results of memoised tasks for a store outside.
    pub(crate) findings: &'a mut Findings,
}

/// One partition.
pub(crate) struct Partition {
    pub(crate) id: PartitionId,
    pub(crate) tasks: Tasks,
    pub(crate) extras: Extras,
    pub(crate) contracts: Contracts,
    pub(crate) queues: Vec<Queue>,
    queue_by_name: HashTable<u32>,
    pub(crate) lanes: Vec<Lane>,
    free_lanes: Vec<u32>,
    lane_by_needs: HashMap<lanes::Needs, u32, FixedState>,
    /// The number of the task that became ready last. Volatile.
    last_ready: u64,
    /// When attempts began whose leases were extended. Volatile.
    started: HashMap<Slot, u64, FixedState>,
    /// Leased tasks that went by age, and since when they were ready. Volatile.
    aged: HashMap<Slot, u64, FixedState>,
    /// Leased tasks that run with other resources than the first, and which ([`crate::wishes::Wishes::set`]). Volatile.
    chosen: HashMap<Slot, u8, FixedState>,
    /// Attempts of restartable tasks. Volatile.
    pub(crate) attempts: Attempts,
    pub(crate) lease_lists: Vec<LeaseList>,
    pub(crate) retention: Vec<RetentionList>,
    pub(crate) keys: Vec<Key>,
    free_keys: Vec<u32>,
    key_by_bytes: HashMap<Vec<u8>, u32, FixedState>,
    key_bytes: usize,
    /// Who holds each unique key, by the key's bytes in the arena.
    unique: HashTable<Slot>,
    /// Memoised tasks that wait for the result of another.
    pub(crate) followers: Followers,
    pub(crate) workflows: Workflows,
    /// States that tasks saved.
    pub(crate) versions: Versions,
    /// How far streams have become tasks.
    pub(crate) streams: Streams,
    index: HashTable<Slot>,
    /// Final tasks.
    pub(crate) kept: u32,
    /// Final tasks on retention lists: all but those of unfinished workflows.
    retained: u32,
    /// Number of the latest retention.
    pub(crate) last_retained: u64,
    /// When the timer of retention is due that was set last.
    retention_armed_us: u64,
    /// All final tasks up to this number are in the store outside.
    pub(crate) checkpointed: u64,
    /// Final tasks behind it.
    waiting: Waiting,
    /// What the leader sends to the store. Volatile.
    pub(crate) sending: Sending,
    /// What happened and is not in the topic outside.
    pub(crate) outbox: Outbox,
    /// Queues whose settings the store is to be told. Volatile.
    untold: Vec<u32>,
    /// Which chunks of states the store was told of.
    pub(crate) telling: Telling,
    /// Highest creation time of an id whose outcome was forgotten, in milliseconds since 1970.
    pub(crate) forgotten_ms: u64,
    /// Fencing tokens given out, with the leader's term in the upper 24 bits.
    pub(crate) last_token: u64,
    pub(crate) snapshot: crate::snapshot::Progress,
    /// This replica leads and serves: ready lanes are in the dispatcher's line.
    leading: bool,
    /// What all replicas agree on.
    pub(crate) settings: Settings,
    /// Time of the latest command, in microseconds since 1970; commands' times never decrease.
    pub(crate) command_us: u64,
    /// Time of the latest command that was admitted here. Volatile.
    pub(crate) admitted_us: u64,
    scratch: Vec<u8>,
}

impl Partition {
    pub(crate) fn new(id: PartitionId) -> Self {
        Self {
            id,
            tasks: Tasks::default(),
            extras: Extras::default(),
            contracts: Contracts::default(),
            queues: Vec::new(),
            queue_by_name: HashTable::new(),
            lanes: Vec::new(),
            free_lanes: Vec::new(),
            lane_by_needs: HashMap::default(),
            last_ready: FIRST_READY,
            started: HashMap::default(),
            aged: HashMap::default(),
            chosen: HashMap::default(),
            attempts: Attempts::default(),
            lease_lists: Vec::new(),
            retention: Vec::new(),
            keys: Vec::new(),
            free_keys: Vec::new(),
            key_by_bytes: HashMap::default(),
            key_bytes: 0,
            unique: HashTable::new(),
            followers: Followers::default(),
            workflows: Workflows::default(),
            versions: Versions::default(),
            streams: Streams::default(),
            index: HashTable::new(),
            kept: 0,
            retained: 0,
            last_retained: 0,
            retention_armed_us: retention::NEVER_US,
            checkpointed: 0,
            waiting: Waiting::default(),
            sending: Sending::default(),
            outbox: Outbox::default(),
            untold: Vec::new(),
            telling: Telling::default(),
            forgotten_ms: 0,
            last_token: 0,
            snapshot: crate::snapshot::Progress::default(),
            leading: false,
            settings: Settings {
                retention_ms: QueueSettings::default().retention_ms,
                kept_max: u32::MAX,
                ..Settings::default()
            },
            command_us: 0,
            admitted_us: 0,
            scratch: Vec::new(),
        }
    }

    /// The slot of a task; `locator` is tried first.
    pub(crate) fn find(&self, id: TaskId, locator: u32) -> Option<Slot> {
        if self.tasks.get(locator).is_some_and(|task| task.id == id) {
            return Some(locator);
        }
        self.index.find(hash_of_id(id), |&slot| self.tasks[slot].id == id).copied()
    }

    /// The queue with this name, made on first use.
    pub(crate) fn queue(&mut self, namespace: &str, name: &str, dispatch: &mut Dispatch) -> u32 {
        if let Some(index) = self.find_queue(namespace, name) {
            return index;
        }
        let index = u32::try_from(self.queues.len()).expect("queues are bounded at admission");
        self.queues.push(Queue {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            settings: QueueSettings { retention_ms: self.settings.retention_ms, ..QueueSettings::default() },
            counts: [0; crate::state::STATES],
            dispatch: dispatch.queue(namespace, name),
            is_told: true,
        });
        self.tell_settings(index);
        let queues = &self.queues;
        let hash = |&index: &u32| {
            let queue = &queues[index as usize];
            hash_of_name(&queue.namespace, &queue.name)
        };
        self.queue_by_name.insert_unique(hash_of_name(namespace, name), index, hash);
        index
    }

    /// The queue with this name.
    pub(crate) fn find_queue(&self, namespace: &str, name: &str) -> Option<u32> {
        let is_it = |&index: &u32| self.queues[index as usize].is_named(namespace, name);
        self.queue_by_name.find(hash_of_name(namespace, name), is_it).copied()
    }

    /// The contract of a spec that passed admission, made on first use.
    pub(crate) fn contract(&mut self, spec: &SpecView<'_>, dispatch: &mut Dispatch) -> u32 {
        let mut canonical = core::mem::take(&mut self.scratch);
        spec.write_canonical(&mut canonical);
        let index = match self.contracts.find(&canonical) {
            Some(index) => index,
            None => self.add_contract(spec, canonical.as_slice().into(), dispatch),
        };
        self.scratch = canonical;
        index
    }

    fn add_contract(&mut self, spec: &SpecView<'_>, canonical: Box<[u8]>, dispatch: &mut Dispatch) -> u32 {
        let queue = self.queue(spec.namespace, spec.queue, dispatch);
        let (resources, wishes) = spec.asked();
        let lane = self.lane(queue, spec.priority, &resources, &wishes);
        let class = {
            let queue = self.queues[queue as usize].dispatch;
            let alike =
                Alike { kind: spec.kind, resources: &resources, restartable: spec.restartable, size: spec.size };
            dispatch.learned.class((queue, spec.queue), spec.namespace, &alike)
        };
        let list = self.class_list(lane, class);
        let lease_list = self.lease_list(spec.lease_ms);
        self.contracts.insert(Contract {
            queue,
            lane,
            class,
            list,
            kind: spec.kind.to_owned(),
            priority: spec.priority,
            lease_ms: spec.lease_ms,
            lease_list,
            retention_ms: spec.retention_ms,
            retry: Retry {
                attempts_max: spec.attempts_max,
                backoff_ms: spec.backoff_ms,
                backoff_max_ms: spec.backoff_max_ms,
                factor_centi: spec.backoff_factor_centi,
                non_retryable: spec.non_retryable.to_owned(),
            },
            resources,
            wishes,
            restartable: spec.restartable,
            size: spec.size,
            canonical,
            tasks: 0,
        })
    }

    /// The lease list of a length, made on first use. Lengths are quantised upwards so that lists stay few.
    pub(crate) fn lease_list(&mut self, lease_ms: u32) -> u32 {
        let lease_ms = quantised(lease_ms);
        let position = self.lease_lists.iter().position(|list| list.lease_ms == lease_ms).unwrap_or_else(|| {
            self.lease_lists.push(LeaseList { lease_ms, list: List::default(), armed: false });
            self.lease_lists.len() - 1
        });
        u32::try_from(position).expect("lengths are quantised")
    }

    /// Adds a task in `state` to slab, index and counts, on no list yet. It is younger than the snapshot in progress.
    pub(crate) fn insert(&mut self, mut task: Task) -> Slot {
        task.flags |= if self.snapshot.parity { flag::SNAPSHOT_PARITY } else { 0 };
        let (id, contract, state) = (task.id, task.contract, task.state);
        self.contracts[contract].tasks += 1;
        let queue = self.contracts[contract].queue;
        self.queues[queue as usize].counts[state as usize] += 1;
        let slot = self.tasks.insert(task);
        let tasks = &self.tasks;
        self.index.insert_unique(hash_of_id(id), slot, |&other| hash_of_id(tasks[other].id));
        slot
    }

    /// Changes a task's state; lists are the caller's business.
    ///
    /// # Panics
    /// When the transition table forbids it: a defect.
    pub(crate) fn set_state(&mut self, slot: Slot, next: State) {
        let task = &mut self.tasks[slot];
        let state = task.state;
        assert!(state.may_become(next), "task {} may not go from {state} to {next}", task.id);
        task.state = next;
        let queue = self.contracts[task.contract].queue;
        let counts = &mut self.queues[queue as usize].counts;
        counts[state as usize] -= 1;
        counts[next as usize] += 1;
    }

    /// Takes an unfinished task off whatever list its state put it on and ends its lease if it has one.
    pub(crate) fn detach(&mut self, slot: Slot, cx: &mut Cx<'_>) {
        let task = &self.tasks[slot];
        match task.state {
            State::Ready if task.has(flag::BLOCKED) => {
                let key = self.extras[task.extra].key;
                self.keys[key as usize].waiting.unlink(&mut self.tasks, slot);
                self.tasks[slot].flags &= !flag::BLOCKED;
            }
            State::Ready => {
                let (lane, list) = (self.contracts[task.contract].lane, self.list(slot));
                self.lanes[lane as usize].take(list, slot, &mut self.tasks, &self.extras);
                self.ready_no_longer(slot);
            }
            State::Leased => {
                if task.has(flag::WATCHED) {
                    self.attempt_ends(slot, cx);
                }
                self.end_lease(slot, cx.dispatch);
            }
            State::Waiting => self.unfollow(slot, cx.arena),
            State::Delayed => {}
            State::Succeeded | State::Failed | State::Cancelled | State::Expired => {
                unreachable!("final tasks are on retention lists")
            }
        }
    }

    /// Takes a leased task off its lease list and gives its worker's resources back.
    fn end_lease(&mut self, slot: Slot, dispatch: &mut Dispatch) {
        let task = &self.tasks[slot];
        let (contract, worker) = (&self.contracts[task.contract], task.worker);
        let list = if task.worker & DETACHED != 0 { self.grace_list() } else { contract.lease_list };
        let queue = self.queues[contract.queue as usize].dispatch;
        dispatch.lease_ended(queue, worker & !DETACHED, self.need(slot));
        if !self.chosen.is_empty() {
            self.chosen.remove(&slot);
        }
        self.lease_lists[list as usize].list.unlink(&mut self.tasks, slot);
        self.tasks[slot].flags &= !(flag::EXPIRING | flag::SETTLING);
        if !self.started.is_empty() {
            self.started.remove(&slot);
        }
        if !self.aged.is_empty() && self.aged.remove(&slot).is_some() {
            dispatch.queues[queue as usize].order.aged_ends();
        }
    }

    /// A task that is leased runs with these resources ([`crate::wishes::Wishes::set`]).
    pub(crate) fn runs_with(&mut self, slot: Slot, set: u8) {
        if set > 0 {
            self.chosen.insert(slot, set);
        } else if !self.chosen.is_empty() {
            self.chosen.remove(&slot);
        }
    }

    /// With which resources a leased task runs: 0 for the first.
    pub(crate) fn set_of(&self, slot: Slot) -> u8 {
        if self.chosen.is_empty() { 0 } else { self.chosen.get(&slot).copied().unwrap_or(0) }
    }

    /// What a leased task holds of its worker.
    pub(crate) fn need(&self, slot: Slot) -> &Resources {
        self.need_with(slot, self.set_of(slot))
    }

    /// What a task holds of a worker with this set of its resources.
    pub(crate) fn need_with(&self, slot: Slot, set: u8) -> &Resources {
        let contract = &self.contracts[self.tasks[slot].contract];
        contract.wishes.set(&contract.resources, set)
    }

    /// A task that is leased went by age.
    pub(crate) fn went_by_age(&mut self, slot: Slot, ready_us: u64) {
        self.aged.insert(slot, ready_us);
    }

    /// When the attempt of a leased task began, if that is known.
    pub(crate) fn started_us(&self, slot: Slot) -> Option<u64> {
        let task = &self.tasks[slot];
        let known_us = if self.started.is_empty() { None } else { self.started.get(&slot).copied() };
        // Of a worker that was away for a while the start is not known any more.
        known_us.or_else(|| (task.worker & DETACHED == 0).then(|| task.at_us.saturating_sub(self.lease_us(task))))
    }

    /// The list of its lane that a ready task is on.
    pub(crate) fn list(&self, slot: Slot) -> u32 {
        let task = &self.tasks[slot];
        let aside = if task.has(flag::WATCHED) { self.attempts.aside(slot) } else { None };
        aside.unwrap_or(self.contracts[task.contract].list)
    }

    /// The class of a task, whether it was given up or not.
    pub(crate) fn class(&self, slot: Slot) -> u32 {
        self.contracts[self.tasks[slot].contract].class
    }

    /// The leader learns how long an attempt ran that is about to end, at the time of the entry that ends it.
    pub(crate) fn learn_run(&self, slot: Slot, failed: bool, cx: &mut Cx<'_>) {
        let task = &self.tasks[slot];
        if task.state != State::Leased {
            return;
        }
        let Some(started_us) = self.started_us(slot) else { return };
        let (contract, class) = (&self.contracts[task.contract], self.class(slot));
        let run_us = cx.time_us.saturating_sub(started_us);
        let queue = self.queues[contract.queue as usize].dispatch;
        let order = &mut cx.dispatch.queues[queue as usize].order;
        order.ran((self.id, task.token), run_us);
        if let Some(missed) = cx.dispatch.learned.learn(class, run_us, failed, cx.time_us) {
            order.ended(missed);
        }
    }

    /// A lease is about to be extended: its start would be forgotten.
    pub(crate) fn note_start(&mut self, slot: Slot) {
        let task = &self.tasks[slot];
        if task.worker & DETACHED == 0 {
            let started_us = task.at_us.saturating_sub(self.lease_us(task));
            self.started.entry(slot).or_insert(started_us);
        }
    }

    /// The length of a leased task's lease, in microseconds.
    pub(crate) fn lease_us(&self, task: &Task) -> u64 {
        let list =
            if task.worker & DETACHED != 0 { self.grace_list() } else { self.contracts[task.contract].lease_list };
        u64::from(self.lease_lists[list as usize].lease_ms) * 1_000
    }

    /// The lease list of workers that are gone: it is the one of [`GRACE_MS`].
    pub(crate) fn grace_list(&self) -> u32 {
        let position = self.lease_lists.iter().position(|list| list.lease_ms == GRACE_MS);
        u32::try_from(position.expect("made before a lease was moved to it")).expect("lengths are quantised")
    }

    /// Makes a task ready: into its lane, or behind its concurrency key.
    pub(crate) fn enter_ready(&mut self, slot: Slot, cx: &mut Cx<'_>) {
        let at_us = cx.time_us;
        if self.tasks[slot].state != State::Ready {
            self.set_state(slot, State::Ready);
        }
        let task = &mut self.tasks[slot];
        task.at_us = at_us;
        let (extra, held) = (task.extra, task.has(flag::KEY_HELD));
        if let Some(extra) = self.extras.get_mut(extra) {
            extra.ready_us = at_us;
            if extra.key != NONE && !held {
                let key = &mut self.keys[extra.key as usize];
                if key.held >= key.limit {
                    self.tasks[slot].flags |= flag::BLOCKED;
                    key.waiting.push_back(&mut self.tasks, slot);
                    return;
                }
                key.held += 1;
                self.tasks[slot].flags |= flag::KEY_HELD;
            }
        }
        self.push_lane(slot, cx.dispatch);
    }

    /// Ends the lease of a task that was not begun: it is ready again, before all others of its line.
    pub(crate) fn give_back(&mut self, slot: Slot, cx: &mut Cx<'_>) {
        let task = &self.tasks[slot];
        let known_us = self.attempts.get(slot).map(|attempt| attempt.ready_us);
        let known_us = known_us.or_else(|| self.extras.get(task.extra).map(|extra| extra.ready_us));
        let known_us = known_us.filter(|&ready_us| ready_us > 0).or_else(|| self.aged.get(&slot).copied());
        let known_us = known_us.or_else(|| self.started_us(slot));
        self.detach(slot, cx);
        self.enter_ready_first(slot, known_us.unwrap_or(cx.time_us), cx);
    }

    /// Makes a task that ran ready again, before all others of its line; it has been ready since `ready_us`, and keeps its place of a
    /// concurrency key. Where that is not known, it is the start: those behind it, which are looked at through it, say better.
    fn enter_ready_first(&mut self, slot: Slot, ready_us: u64, cx: &mut Cx<'_>) {
        self.set_state(slot, State::Ready);
        let contract = &self.contracts[self.tasks[slot].contract];
        let next = self.lanes[contract.lane as usize].lists[contract.list as usize].list.first();
        let next_us = next.map_or(u64::MAX, |next| self.tasks[next].at_us);
        self.ready_since(slot, ready_us.min(next_us));
        self.push_lane_first(slot, cx.dispatch);
    }

    /// Notes since when a task is ready.
    fn ready_since(&mut self, slot: Slot, ready_us: u64) {
        let task = &mut self.tasks[slot];
        task.at_us = ready_us;
        if let Some(extra) = self.extras.get_mut(task.extra) {
            extra.ready_us = ready_us;
        }
    }

    /// Makes a task wait until `due_us`.
    pub(crate) fn enter_delayed(&mut self, slot: Slot, due_us: u64, cx: &mut Cx<'_>) {
        if self.tasks[slot].state != State::Delayed {
            self.set_state(slot, State::Delayed);
        }
        let task = &mut self.tasks[slot];
        task.at_us = due_us;
        cx.timers.insert(due_us, Timer::of_task(self.id, TimerKind::Due, slot, task.id));
    }

    /// Settles a task. It must be detached. `result` is the blob of a succeeded task; other ends keep the payload, so
    /// that the task can be retried.
    pub(crate) fn finish(&mut self, slot: Slot, end: State, result: Handle, cx: &mut Cx<'_>) {
        self.set_state(slot, end);
        let task = &mut self.tasks[slot];
        if end == State::Succeeded {
            let payload = core::mem::replace(&mut task.blob, result);
            match self.extras.get_mut(task.extra) {
                Some(extra) if extra.workflow != NONE || extra.history != NONE => extra.input = payload,
                _ => cx.arena.free(payload),
            }
        }
        task.at_us = cx.time_us;
        let (id, flags, extra) = (task.id, task.flags, task.extra);
        if flags & flag::KEY_HELD != 0 {
            self.release_key(slot, cx);
        }
        if flags & flag::WATCHED != 0 {
            self.attempts_final(slot);
        }
        if flags & flag::AWAITED != 0 {
            self.tasks[slot].flags &= !flag::AWAITED;
            cx.settled.push(Awaited::Task(id));
        }
        self.kept += 1;
        self.note_end(slot, end, cx.time_us, cx.arena);
        let extra = self.extras.get(extra);
        let (workflow, unique) = extra.map_or((NONE, Handle::NONE), |extra| (extra.workflow, extra.unique));
        if workflow == NONE {
            self.retain(slot, cx.arena);
            if unique != Handle::NONE {
                self.unique_ended(slot, cx);
            }
        } else {
            crate::workflow::task_finished(self, workflow, slot, cx);
        }
    }

    fn drop_extra(&mut self, extra: &Extra, arena: &mut Arena) {
        if extra.key != NONE {
            self.drop_key(extra.key);
        }
        if extra.workflow != NONE {
            self.workflows.task_forgotten(extra.workflow, extra.row, arena);
        }
        self.versions.remove(extra.history, arena);
        for blob in [extra.unique, extra.name, extra.error, extra.note, extra.input] {
            arena.free(blob);
        }
    }

    /// Removes a contract that a submission made and no task came to use.
    pub(crate) fn drop_unused_contract(&mut self, index: u32) {
        if self.contracts.get(index).is_some_and(|contract| contract.tasks == 0) {
            let contract = self.contracts.remove(index);
            self.drop_lane(&contract);
        }
    }

    /// Sets the timer of a lease list unless it is set.
    pub(crate) fn arm_lease_list(&mut self, index: u32, timers: &mut Timers) {
        let list = &mut self.lease_lists[index as usize];
        if !list.armed && list.list.head != NONE {
            list.armed = true;
            let due_us = self.tasks[list.list.head].at_us;
            timers.insert(due_us, Timer::of_index(self.id, TimerKind::LeaseList, index));
        }
    }

    /// The task's extra, made on first use.
    pub(crate) fn extra_mut(&mut self, slot: Slot) -> &mut Extra {
        if self.tasks[slot].extra == NONE {
            self.tasks[slot].extra = self.extras.insert(Extra::default());
        }
        &mut self.extras[self.tasks[slot].extra]
    }

    /// Attempts of a task that failed since it was submitted or retried by hand.
    pub(crate) fn failures(&self, slot: Slot) -> u16 {
        let task = &self.tasks[slot];
        task.failures - self.extras.get(task.extra).map_or(0, |extra| extra.forgiven)
    }

    /// The versions of a task's state, if it saved any.
    pub(crate) fn history(&self, slot: Slot) -> Option<&History> {
        self.versions.get(self.extras.get(self.tasks[slot].extra)?.history)
    }

    /// A task's payload, which a succeeded one may have given up.
    pub(crate) fn payload(&self, slot: Slot) -> Handle {
        let task = &self.tasks[slot];
        if task.state != State::Succeeded {
            return task.blob;
        }
        self.extras.get(task.extra).map_or(Handle::NONE, |extra| extra.input)
    }

    /// The next fencing token.
    pub(crate) const fn next_token(&mut self) -> u64 {
        self.last_token += 1;
        self.last_token
    }

    /// Memory held beside blobs, in bytes.
    pub(crate) fn reserved_bytes(&self) -> usize {
        let tables = self.index.allocation_size() + self.unique.allocation_size();
        let keys = self.keys.capacity() * size_of::<Key>() + self.key_by_bytes.allocation_size() + self.key_bytes;
        let queues = self.queues.capacity() * size_of::<Queue>();
        let shared = self.contracts.reserved_bytes() + self.workflows.reserved_bytes() + keys + queues;
        let lists = self.waiting.reserved_bytes() + self.streams.reserved_bytes() + self.attempts.reserved_bytes();
        let lists = lists + self.outbox.reserved_bytes() + self.followers.reserved_bytes() + self.deadline_bytes();
        let records = self.tasks.reserved_bytes() + self.extras.reserved_bytes() + self.versions.reserved_bytes();
        records + tables + shared + lists
    }
}

/// The hash of an id, such that ids made one after another lie side by side in a table: a batch is looked up, inserted and
/// forgotten together, and so touches few cache lines. Tables take the place from the lower bits, and the tag by which they
/// tell entries of one group apart from the upper seven.
fn hash_of_id(id: TaskId) -> u64 {
    const RUN: u64 = 64;
    let run = TaskId { hi: id.hi, lo: id.lo / RUN };
    run.mix() ^ (id.lo % RUN) ^ (id.lo << 57)
}

fn hash_of_name(namespace: &str, name: &str) -> u64 {
    FixedState.hash_one((namespace, name))
}

/// The number of the first task that becomes ready: those that are put before others have lower ones than these.
const FIRST_READY: u64 = 1 << 32;

/// How long a lost worker may still complete or extend its leases, in milliseconds.
pub(crate) const GRACE_MS: u32 = 2_048;
/// Bit of [`Task::worker`]: the lease was moved to the grace list because the connection is gone.
pub(crate) const DETACHED: u32 = 1 << 31;

/// Rounds up to five significant bits (at most 6% more), so that different lengths are few.
fn quantised(ms: u32) -> u32 {
    let shift = 27u32.saturating_sub(ms.leading_zeros());
    let unit = 1u32 << shift;
    ms.checked_next_multiple_of(unit).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_made_in_a_row_lie_in_one_block_and_those_of_any_stride_spread() {
        let blocks = |ids: &[TaskId], size: u64| {
            let starts: std::collections::BTreeSet<u64> =
                ids.iter().map(|&id| hash_of_id(id) % 65_536 / size).collect();
            starts.len()
        };
        let of = |number: u32| TaskId::new(1_700_000_000_000, PartitionId(3), 77, number);
        let row: Vec<TaskId> = (640..704).map(of).collect();
        assert_eq!((blocks(&row, 64), blocks(&row, 1)), (1, 64));
        for stride in [1u32, 2, 3, 64, 100, 4_096] {
            let ids: Vec<TaskId> = (0..4_096).map(|number| of(number * stride)).collect();
            assert!(blocks(&ids, 1) > 3_700, "{} places for 4096 ids with stride {stride}", blocks(&ids, 1));
        }
    }

    #[test]
    fn quantised_lengths_are_few_and_never_shorter() {
        let mut distinct = std::collections::BTreeSet::new();
        for ms in (1..2_000_000u32).chain((2_000_000..86_400_000).step_by(999)) {
            let rounded = quantised(ms);
            assert!(rounded >= ms && rounded <= ms + ms / 15, "{ms} -> {rounded}");
            distinct.insert(rounded);
        }
        assert!(distinct.len() < 600, "{}", distinct.len());
        assert_eq!(quantised(GRACE_MS), GRACE_MS);
        assert_eq!(quantised(u32::MAX), u32::MAX);
    }
}

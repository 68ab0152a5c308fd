//! The shard: partitions, one dispatcher, one arena, one log.
//!
//! Invariants:
//! - A request is applied, and answered, only after [`Input::Durable`] named its sequence. [`Shard::apply_durable`] is
//!   the one place that decides it.
//! - Entries are applied in log order; entry times never decrease.
//! - Work per input is bounded: by the frame limit, or by a named constant.

mod admission;
mod pending;
mod recovery;
mod requests;
mod waiters;

use taskmaster_protocol::frame::Header;
use taskmaster_protocol::{Code, Operation, PartitionId, TaskId};

use crate::arena::Arena;
use crate::assign::{Assigner, Scratch};
use crate::command;
use crate::dispatch::Dispatch;
use crate::effects::{ConnId, Effects};
use crate::partition::{Awaited, Cx, DETACHED, GRACE_MS, Partition};
use crate::permits::PermitNote;
use crate::refused::Refused;
use crate::state::State;
use crate::task::{NONE, flag};
use crate::timer::{Timer, TimerKind, Timers, check_of};
use waiters::Waiters;

/// What a shard needs to know from its start.
#[derive(Clone, Debug)]
pub struct Config {
    /// Partitions of the cluster.
    pub partitions: u16,
    /// Those this shard owns.
    pub owned: Vec<PartitionId>,
    /// Number of this start, from 1: the upper part of every fencing token. Below 2^24.
    pub term: u32,
    /// Budget for payloads, results and records, in bytes; beyond it submissions are refused as `overloaded`.
    pub memory_bytes_max: u64,
    /// Final tasks kept per partition at most; beyond it the oldest are forgotten before their retention ends.
    pub kept_max: u32,
    /// Whether a submission creates its queue.
    pub auto_create_queues: bool,
}

/// What may happen to a shard.
#[derive(Debug)]
pub enum Input<'a> {
    /// A validated frame from a connection.
    Frame {
        /// Where it came from and the answer goes.
        conn: ConnId,
        /// Its header.
        header: Header,
        /// Its body, 16-byte aligned.
        body: &'a [u8],
    },
    /// A connection is gone.
    Disconnected {
        /// Which.
        conn: ConnId,
    },
    /// All entries up to this sequence are durable.
    Durable {
        /// The highest durable sequence.
        sequence: u64,
    },
    /// Time passed. Call at or after [`Shard::next_wake_us`].
    Tick,
    /// The log's disk has, or has no longer, room for new work.
    DiskFull(bool),
    /// Another shard's note about a queue's permits.
    Permits(PermitNote),
    /// The node drains: nothing new is accepted or assigned, what is running may finish.
    Drain,
}

/// Counters since start, and present sizes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Tasks accepted.
    pub submitted: u64,
    /// Leases given.
    pub assigned: u64,
    /// Tasks completed with success.
    pub completed: u64,
    /// Attempts that failed.
    pub failed_attempts: u64,
    /// Requests refused as overloaded.
    pub overloaded: u64,
    /// Entries appended to the log.
    pub entries: u64,
    /// Tasks in memory, final ones included.
    pub tasks: u64,
    /// Tasks in memory that are not final.
    pub unfinished: u64,
    /// Memory held by the engine, in bytes.
    pub memory_bytes: u64,
    /// Requested bytes of blobs in the arena.
    pub blob_bytes: u64,
}

/// One shard.
pub struct Shard {
    config: Config,
    partitions: Vec<Option<Box<Partition>>>,
    arena: Arena,
    timers: Timers,
    dispatch: Dispatch,
    scratch: Scratch,
    pending: pending::Queue,
    waiters: Waiters,
    settled: Vec<Awaited>,
    revoked: Vec<(u32, TaskId, u64)>,
    fired: Vec<Timer>,
    stats: Stats,
    last_time_us: u64,
    /// Bytes that may be admitted before the memory is measured again.
    room_bytes: u64,
    disk_full: bool,
    draining: bool,
    snapshot_at: Option<usize>,
    restore: crate::snapshot::Restore,
}

/// Timers handled, and final tasks forgotten, per call.
const TIMERS_PER_CALL_MAX: usize = 10_000;
const EVICTIONS_PER_ENTRY_MAX: usize = 4_096;

impl Shard {
    /// A shard with nothing in it.
    ///
    /// # Panics
    /// If the term does not fit 24 bits.
    #[must_use]
    pub fn new(config: Config, now_us: u64) -> Self {
        assert!(config.term < 1 << 24, "terms are counted per start");
        let mut partitions: Vec<Option<Box<Partition>>> = (0..config.partitions).map(|_| None).collect();
        for id in &config.owned {
            partitions[usize::from(id.0)] = Some(Box::new(Partition::new(*id, config.term)));
        }
        Self {
            partitions,
            arena: Arena::new(u64::MAX),
            timers: Timers::new(now_us),
            dispatch: Dispatch::default(),
            scratch: Scratch::default(),
            pending: pending::Queue::default(),
            waiters: Waiters::default(),
            settled: Vec::new(),
            revoked: Vec::new(),
            fired: Vec::new(),
            stats: Stats::default(),
            last_time_us: now_us,
            room_bytes: 0,
            disk_full: false,
            draining: false,
            snapshot_at: None,
            restore: crate::snapshot::Restore::default(),
            config,
        }
    }

    /// The shard is number `number` of `shards` in its node: limits of queues are shared with the others by
    /// [`Input::Permits`]. Call before anything else; without it the shard is alone.
    pub fn join(&mut self, number: u16, shards: u16) {
        (self.dispatch.number, self.dispatch.shards) = (number, shards);
    }

    /// How long queues that are not configured keep final tasks, in milliseconds. Call before anything else.
    pub fn keep_final_tasks_ms(&mut self, retention_ms: u32) {
        self.dispatch.retention_ms = retention_ms.max(1);
    }

    /// Takes one input. Afterwards the caller logs what [`Self::take_unlogged`] yields and performs the effects.
    pub fn handle(&mut self, input: Input<'_>, now_us: u64, effects: &mut Effects) {
        self.last_time_us = self.last_time_us.max(now_us);
        match input {
            Input::Frame { conn, header, body } => {
                if let Err(refused) = self.request(conn, header, body, effects) {
                    self.stats.overloaded += u64::from(refused.code == Code::Overloaded);
                    effects.refuse(conn, &header, &refused);
                }
            }
            Input::Disconnected { conn } => self.disconnected(conn),
            Input::Durable { sequence } => self.apply_durable(sequence, effects),
            Input::Tick => self.tick(effects),
            Input::DiskFull(full) => self.disk_full = full,
            Input::Permits(note) => self.dispatch.take_note(&note),
            Input::Drain => self.drain(effects),
        }
        if !self.dispatch.dirty.is_empty() {
            self.assign(effects);
        }
    }

    /// When [`Input::Tick`] is due next, in microseconds since 1970. Ask again after every input.
    #[must_use]
    pub fn next_wake_us(&self) -> Option<u64> {
        self.timers.next_due_us()
    }

    /// Hands over, in order, every entry that must be logged: its sequence and its bytes.
    pub fn take_unlogged(&mut self, log: impl FnMut(u64, &[u8])) {
        self.pending.take_unlogged(log);
    }

    /// Sequence of the latest entry, durable or not; 0 for none.
    #[must_use]
    pub const fn last_sequence(&self) -> u64 {
        self.pending.last_sequence()
    }

    /// Counters and sizes.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let mut stats = self.stats;
        stats.blob_bytes = self.arena.stats().live_bytes;
        stats.memory_bytes = self.memory_bytes();
        for partition in self.partitions.iter().flatten() {
            stats.tasks += partition.tasks.len() as u64;
            stats.unfinished += partition.tasks.len() as u64 - u64::from(partition.kept);
        }
        stats
    }

    /// Leases in force.
    #[must_use]
    pub fn leased(&self) -> u64 {
        self.dispatch.queues.iter().map(|queue| queue.leased).sum()
    }

    fn memory_bytes(&self) -> u64 {
        let records: usize = self.partitions.iter().flatten().map(|partition| partition.reserved_bytes()).sum();
        self.arena.stats().reserved_bytes + (records + self.timers.reserved_bytes()) as u64 + self.pending.bytes()
    }

    fn assign(&mut self, effects: &mut Effects) {
        if self.draining {
            return;
        }
        let mut assigner = Assigner {
            partitions: &mut self.partitions,
            dispatch: &mut self.dispatch,
            arena: &self.arena,
            timers: &mut self.timers,
            scratch: &mut self.scratch,
            effects,
            now_us: self.last_time_us,
            assigned: 0,
        };
        assigner.run();
        self.stats.assigned += assigner.assigned;
    }

    /// Splits the shard into one partition and what its transitions touch.
    fn split(&mut self, id: PartitionId, time_us: u64) -> Option<(&mut Partition, Cx<'_>)> {
        let partition = self.partitions.get_mut(usize::from(id.0))?.as_deref_mut()?;
        let cx = Cx {
            time_us,
            arena: &mut self.arena,
            timers: &mut self.timers,
            dispatch: &mut self.dispatch,
            settled: &mut self.settled,
            revoked: &mut self.revoked,
        };
        Some((partition, cx))
    }

    fn partition(&self, header: &Header) -> Result<&Partition, Refused> {
        let partition = self.partitions.get(usize::from(header.partition)).and_then(Option::as_deref);
        partition.ok_or_else(|| {
            let message = format!("partition {} is not on this shard: ask for the shard map again", header.partition);
            Refused::new(Code::WrongPartition, message)
        })
    }

    fn partition_mut(&mut self, header: &Header) -> Result<&mut Partition, Refused> {
        self.partition(header)?;
        let place = self.partitions.get_mut(usize::from(header.partition)).and_then(Option::as_deref_mut);
        Ok(place.expect("just found"))
    }

    /// Applies every pending entry up to `sequence` and answers the requests behind them.
    fn apply_durable(&mut self, sequence: u64, effects: &mut Effects) {
        while let Some(pending) = self.pending.pop_durable(sequence) {
            let entry = crate::entry::decode(&pending.entry).expect("the engine wrote this entry");
            let mut reply = self.apply(&entry).expect("the body was checked at admission");
            self.pending.settle(&pending);
            if let Some((conn, header)) = pending.origin {
                if entry.operation == Operation::ConfigureQueue {
                    effects.reply(conn, &header, &taskmaster_protocol::body::Empty::default());
                } else {
                    pending.merge_exceptions(&mut reply);
                    effects.reply(conn, &header, &reply);
                }
            }
            self.after_apply(effects);
            self.evict(entry.partition, entry.time_us);
            self.pending.recycle(pending);
        }
    }

    /// Tells those who wait for what just happened.
    fn after_apply(&mut self, effects: &mut Effects) {
        while let Some(awaited) = self.settled.pop() {
            self.answer_waiters(awaited, effects);
        }
        while let Some((worker, id, token)) = self.revoked.pop() {
            self.revoke(worker, id, token, effects);
        }
    }

    fn tick(&mut self, effects: &mut Effects) {
        let mut fired = core::mem::take(&mut self.fired);
        self.timers.expire(self.last_time_us, TIMERS_PER_CALL_MAX, &mut fired);
        let mut expired: Vec<(u16, taskmaster_protocol::body::ExpireRow)> = Vec::new();
        for timer in fired.drain(..) {
            match timer.kind {
                TimerKind::Due => self.due(timer),
                TimerKind::Deadline => self.deadline(timer, &mut expired),
                TimerKind::LeaseList => self.leases(timer, &mut expired),
                TimerKind::Retention => self.retention(timer),
                TimerKind::Bucket => {
                    self.dispatch.queues[timer.index as usize].bucket_armed = false;
                    self.dispatch.mark(timer.index);
                }
                TimerKind::Await => self.await_timed_out(timer.index, effects),
            }
        }
        self.fired = fired;
        self.propose_expired(expired);
    }

    fn task_of(&self, timer: Timer) -> Option<(&Partition, u32)> {
        let partition = self.partitions[usize::from(timer.partition)].as_deref()?;
        let task = partition.tasks.get(timer.index)?;
        (check_of(task.id) == timer.check).then_some((partition, timer.index))
    }

    fn due(&mut self, timer: Timer) {
        let now_us = self.last_time_us;
        let Some((partition, slot)) = self.task_of(timer) else { return };
        let task = &partition.tasks[slot];
        if task.state != State::Delayed || task.at_us > now_us {
            return;
        }
        let Some((partition, mut cx)) = self.split(PartitionId(timer.partition), now_us) else { return };
        crate::snapshot::touch(partition, slot, cx.arena);
        partition.enter_ready(slot, &mut cx);
    }

    fn deadline(&mut self, timer: Timer, expired: &mut Vec<(u16, taskmaster_protocol::body::ExpireRow)>) {
        let now_us = self.last_time_us;
        let Some((partition, slot)) = self.task_of(timer) else { return };
        let task = &partition.tasks[slot];
        let deadline_us = partition.extras.get(task.extra).map_or(0, |extra| extra.deadline_us);
        if task.state.is_final() || deadline_us == 0 || task.has(flag::LATE) {
            return;
        }
        if deadline_us > now_us {
            self.timers.insert_step(deadline_us, timer);
            return;
        }
        let row = expire_row(task, command::expire::DEADLINE);
        expired.push((timer.partition, row));
    }

    fn leases(&mut self, timer: Timer, expired: &mut Vec<(u16, taskmaster_protocol::body::ExpireRow)>) {
        let now_us = self.last_time_us;
        let Some((partition, _)) = self.split(PartitionId(timer.partition), now_us) else { return };
        let list = &mut partition.lease_lists[timer.index as usize];
        list.armed = false;
        let mut slot = list.list.head;
        while slot != NONE && partition.tasks[slot].at_us <= now_us {
            let task = &mut partition.tasks[slot];
            if !task.has(flag::EXPIRING) {
                task.flags |= flag::EXPIRING;
                expired.push((timer.partition, expire_row(task, command::expire::LEASE)));
            }
            slot = task.next;
        }
        if slot != NONE {
            let due_us = partition.tasks[slot].at_us;
            partition.lease_lists[timer.index as usize].armed = true;
            self.timers
                .insert(due_us, Timer::of_index(PartitionId(timer.partition), TimerKind::LeaseList, timer.index));
        }
    }

    /// Forgets by the log, even when no other entry of the partition comes by.
    fn retention(&mut self, timer: Timer) {
        let now_us = self.last_time_us;
        let Some((partition, cx)) = self.split(PartitionId(timer.partition), now_us) else { return };
        partition.disarm_retention();
        if partition.next_eviction_us().is_some_and(|due_us| due_us <= now_us) {
            self.propose_expired_of(PartitionId(timer.partition), Vec::new());
        } else {
            partition.arm_retention(cx.timers, now_us);
        }
    }

    /// Shortens the leases of a connection that is gone to the grace, within which its worker may come back. Leases that
    /// end sooner stay as they are.
    fn disconnected(&mut self, conn: ConnId) {
        self.waiters.forget(conn);
        let Some(worker) = self.dispatch.disconnect(conn) else { return };
        let due_us = self.last_time_us + u64::from(GRACE_MS) * 1_000;
        for partition in self.partitions.iter_mut().flatten() {
            let grace = partition.lease_list(GRACE_MS);
            for index in 0..partition.lease_lists.len() {
                let mut slot = partition.lease_lists[index].list.head;
                while slot != NONE {
                    let next = partition.tasks[slot].next;
                    if partition.tasks[slot].worker == worker && partition.tasks[slot].at_us > due_us {
                        partition.lease_lists[index].list.unlink(&mut partition.tasks, slot);
                        let task = &mut partition.tasks[slot];
                        task.worker |= DETACHED;
                        task.at_us = due_us;
                        partition.lease_lists[grace as usize].list.push_back(&mut partition.tasks, slot);
                    }
                    slot = next;
                }
            }
            partition.arm_lease_list(grace, &mut self.timers);
        }
    }

    fn drain(&mut self, effects: &mut Effects) {
        self.draining = true;
        for worker in self.dispatch.workers.iter().filter(|worker| worker.connected) {
            let header = Header::request(Operation::GoAway, 0, None);
            let body = taskmaster_protocol::body::Empty::default();
            taskmaster_protocol::frame::encode(effects.buffer(worker.conn), header, &body);
        }
    }
}

fn expire_row(task: &crate::task::Task, what: u32) -> taskmaster_protocol::body::ExpireRow {
    taskmaster_protocol::body::ExpireRow { id: task.id, attempt: task.attempt(), what }
}

//! Admission: each logged operation's way into the log, or its refusal.

use taskmaster_protocol::body::{
    self, ArchivedCancel, ArchivedChangeState, ArchivedComplete, ArchivedConfigureQueue, ArchivedFail,
    ArchivedForkWorkflow, ArchivedRetry, ArchivedSaveState, ArchivedSubmit, ArchivedSubmitStream, Body, Expire,
    ExpireRow, StateReply,
};
use taskmaster_protocol::frame::Header;
use taskmaster_protocol::{Code, Operation, PartitionId, TaskId, limits};

use super::group::{BACKLOG_BYTES_MAX, Request};
use super::{Effects, Shard};
use crate::command::submit::Size;
use crate::command::submit_stream::Admitted as StreamAdmitted;
use crate::command::{self, Admitted};
use crate::contract::{SpecView, payload_size};
use crate::effects::ConnId;
use crate::entry::Verb;
use crate::order::Alike;
use crate::outlook::{Asking, View};
use crate::partition::Partition;
use crate::refused::Refused;
use crate::resources::Resources;
use crate::task::NONE;
use crate::wishes::{Asked, Wishes};

/// Memory a task takes beside its blobs, as admission counts it, in bytes.
pub(super) const TASK_BYTES: u64 = 128;
/// The part of the free memory that may be used between two measurements.
const ROOM_PART: u64 = 16;
/// When a client refused as overloaded should come back, in milliseconds.
const OVERLOADED_RETRY_MS: u32 = 100;

/// Tasks of a frame of which is asked whether their deadline can be met.
const DEADLINES_MAX: u64 = 16;

/// A spec of a queue that refuses deadlines, and of which something is known.
struct Refusing<'a> {
    name: &'a str,
    queue: u32,
    kind: &'a str,
    restartable: bool,
    priority: u8,
    resources: Resources,
    wishes: Wishes,
    permille: u16,
}

impl<'a> Refusing<'a> {
    fn of(partition: &Partition, spec: &'a body::ArchivedSpec, body: &'a ArchivedSubmit) -> Option<Self> {
        let is_memoised = spec.memo != 0;
        let spec = SpecView::of(spec, &body.bytes).ok()?;
        let queue = &partition.queues[partition.find_queue(spec.namespace, spec.queue)? as usize];
        let permille = Some(queue.settings.refuse_permille).filter(|&permille| permille > 0)?;
        // What is remembered of memoised tasks, and when a queue is paused no longer, is not known here.
        if queue.settings.paused || is_memoised {
            return None;
        }
        let (resources, wishes) = spec.asks().ok()?;
        let (SpecView { queue: name, kind, restartable, priority, .. }, queue) = (spec, queue.dispatch);
        Some(Self { name, queue, kind, restartable, priority, resources, wishes, permille })
    }

    /// Refuses a task of so many bytes with this deadline, `before` others of the frame go before it.
    fn check(
        &self,
        shard: &Shard,
        bytes: usize,
        (due_us, deadline_us): (u64, u64),
        before: u64,
    ) -> Result<(), Refused> {
        let &Self { kind, restartable, priority, ref resources, ref wishes, .. } = self;
        let alike = Alike { kind, resources, restartable, size: payload_size(bytes) };
        let Some(class) = shard.dispatch.learned.find_class(self.queue, &alike) else { return Ok(()) };
        // A delayed one is seen as it will be when it is due.
        let now_us = due_us.max(shard.last_time_us);
        let deadline_us = Some(deadline_us);
        let asked = Asked(resources, wishes);
        let asking = Asking { class, priority, asked, deadline_us, ready: (now_us, u64::MAX), own: None, before };
        let outlook = View { now_us, ..shard.view() }.of(self.queue, &asking);
        let Some(permille) = outlook.permille().filter(|&permille| permille < self.permille.into()) else {
            return Ok(());
        };
        let (name, least) = (self.name, self.permille);
        let message = format!(
            "the deadline would be met with a probability of {permille} in 1000, and queue \"{name}\" takes {least} at least: {}",
            outlook.in_words()
        );
        Err(Refused::new(Code::HopelessDeadline, message))
    }
}

impl Shard {
    pub(super) fn submit(&mut self, conn: ConnId, header: Header, bytes: &[u8]) -> Result<(), Refused> {
        self.check_new_tasks()?;
        let body = body::access::<ArchivedSubmit>(bytes)?;
        let partition = self.partition(&header)?;
        let size = self.admit_submit(partition, body)?;
        if !header.is_resend() {
            self.check_deadlines(partition, body)?;
        }
        self.append_new(Operation::Submit, conn, header, bytes, (size.tasks, size.blob_bytes))
    }

    pub(super) fn submit_stream(
        &mut self,
        conn: ConnId,
        header: Header,
        bytes: &[u8],
        effects: &mut Effects,
    ) -> Result<(), Refused> {
        self.check_new_tasks()?;
        let body = body::access::<ArchivedSubmitStream>(bytes)?;
        let (partition, config) = (self.partition(&header)?, &self.config);
        let (now_us, auto_create) = (self.last_time_us, config.auto_create_queues);
        match command::submit_stream::admit(partition, body, config.partitions, &self.arena, now_us, auto_create)? {
            StreamAdmitted::Elsewhere(reply) => {
                effects.reply(conn, &header, &reply);
                Ok(())
            }
            StreamAdmitted::Next(size) => {
                self.check_depth(partition, &body.batch, size.tasks)?;
                self.append_new(Operation::SubmitStream, conn, header, bytes, (size.tasks, size.blob_bytes))
            }
        }
    }

    /// Checks a submission against the present state; what it will take.
    pub(super) fn admit_submit(&self, partition: &Partition, body: &ArchivedSubmit) -> Result<Size, Refused> {
        let auto_create = self.config.auto_create_queues;
        let size = command::submit::admit(partition, body, &self.arena, self.last_time_us, auto_create)?;
        self.check_depth(partition, body, size.tasks)?;
        Ok(size)
    }

    /// Refuses what adds tasks where no more are taken.
    pub(super) fn check_new_tasks(&self) -> Result<(), Refused> {
        if self.draining {
            let message = "the node is shutting down: reconnect and resend";
            return Err(Refused::new(Code::ShuttingDown, message).retry_after_ms(1_000));
        }
        self.check_disk()
    }

    fn check_disk(&self) -> Result<(), Refused> {
        if self.disk_full {
            let message = "the log's disk is full: free space or add a disk; accepted work goes on";
            return Err(Refused::new(Code::DiskFull, message).retry_after_ms(1_000));
        }
        Ok(())
    }

    /// Refuses what would let the log's backlog grow beyond `pending_max` bytes.
    fn check_backlog(&self, pending_max: u64) -> Result<(), Refused> {
        if self.backlog.bytes > pending_max {
            let message = format!("{} bytes wait for the disk, or for replicas: slow down", self.backlog.bytes);
            return Err(Refused::new(Code::Overloaded, message).retry_after_ms(OVERLOADED_RETRY_MS));
        }
        Ok(())
    }

    /// Refuses what the memory budget or the log's backlog has no room for. Measuring the memory takes longer than a
    /// small submission, so each measurement allows a part of what is free to be used before the next.
    pub(super) fn check_room(&mut self, bytes: u64) -> Result<(), Refused> {
        self.check_backlog(BACKLOG_BYTES_MAX)?;
        if bytes <= self.room_bytes {
            self.room_bytes -= bytes;
            return Ok(());
        }
        let used = self.memory_bytes() + self.backlog.blob_bytes + self.backlog.tasks * TASK_BYTES;
        let limit = self.config.memory_bytes_max;
        self.room_bytes = limit.saturating_sub(used + bytes) / ROOM_PART;
        if used + bytes > limit {
            let message =
                format!("{used} of {limit} bytes of task memory are in use: add workers, or raise limits.memory");
            return Err(Refused::new(Code::Overloaded, message).retry_after_ms(OVERLOADED_RETRY_MS));
        }
        Ok(())
    }

    /// Refuses what would make a queue deeper than its own limit.
    fn check_depth(&self, partition: &Partition, body: &ArchivedSubmit, tasks: u64) -> Result<(), Refused> {
        for spec in body.specs.iter() {
            let spec = SpecView::of(spec, &body.bytes)?;
            let Some(queue) = partition.find_queue(spec.namespace, spec.queue) else { continue };
            let limit = partition.queues[queue as usize].settings.depth_max;
            if limit == 0 {
                continue;
            }
            let depth_in = |partition: &Partition| {
                let queue = partition.find_queue(spec.namespace, spec.queue);
                queue.map_or(0, |queue| partition.queues[queue as usize].unfinished())
            };
            let led = || self.partitions.iter().flatten().filter(|partition| partition.is_leading());
            let depth: u64 = led().map(|partition| depth_in(partition)).sum();
            // Batches go to partitions in turn, so every shard of the cluster has a share by the partitions that it leads.
            let share = limit.saturating_mul(led().count() as u64).div_ceil(u64::from(self.config.partitions));
            if depth + self.backlog.tasks + tasks > share {
                let message = format!(
                    "queue \"{}\" has a limit of {limit} unfinished tasks, and holds {depth} of this shard's {share}",
                    spec.queue
                );
                return Err(Refused::new(Code::Overloaded, message).retry_after_ms(OVERLOADED_RETRY_MS));
            }
        }
        Ok(())
    }

    /// Refuses a task whose deadline is less likely to be met than its queue wants. One that is being sent again may be in the log.
    pub(super) fn check_deadlines(&self, partition: &Partition, body: &ArchivedSubmit) -> Result<(), Refused> {
        let specs: Vec<Option<Refusing<'_>>> =
            body.specs.iter().map(|spec| Refusing::of(partition, spec, body)).collect();
        if !body.workflow.is_empty() || specs.iter().all(Option::is_none) {
            return Ok(());
        }
        let mut looked_at = 0;
        for (row, task) in (0u32..).zip(body.tasks.iter()) {
            let Some(spec) = &specs[task.spec.to_native() as usize] else { continue };
            let is_known = || partition.find(TaskId::from(&task.id), NONE).is_some();
            let is_held = || command::submit::is_held(partition, body, task, &self.arena);
            let times = command::submit::due_and_deadline_of(body, task, self.last_time_us);
            let Some(times) = times.filter(|_| !is_known() && !is_held()) else { continue };
            let bytes = task.payload.len.to_native() as usize;
            spec.check(self, bytes, times, looked_at).map_err(|refused| refused.at_row(row))?;
            looked_at += 1;
            if looked_at == DEADLINES_MAX {
                break;
            }
        }
        Ok(())
    }

    pub(super) fn complete(
        &mut self,
        conn: ConnId,
        header: Header,
        bytes: &[u8],
        effects: &mut Effects,
    ) -> Result<(), Refused> {
        let body = body::access::<ArchivedComplete>(bytes)?;
        self.check_backlog(2 * BACKLOG_BYTES_MAX)?;
        let admitted = command::complete::admit(self.partition_mut(&header)?, body)?;
        let blob_bytes = command::complete::blob_bytes(body);
        let narrow = admitted.rows.as_ref().map(|rows| command::complete::narrowed(body, rows));
        self.append_admitted(conn, header, admitted, blob_bytes, bytes, narrow, effects);
        Ok(())
    }

    pub(super) fn fail(
        &mut self,
        conn: ConnId,
        header: Header,
        bytes: &[u8],
        effects: &mut Effects,
    ) -> Result<(), Refused> {
        let body = body::access::<ArchivedFail>(bytes)?;
        self.check_backlog(2 * BACKLOG_BYTES_MAX)?;
        self.partition(&header)?;
        let now_us = self.last_time_us;
        let Some((partition, mut cx)) = self.split(PartitionId(header.partition), now_us) else { return Ok(()) };
        let admitted = command::fail::admit(partition, body, &mut cx)?;
        let blob_bytes = command::fail::blob_bytes(body);
        let narrow = admitted.rows.as_ref().map(|rows| command::fail::narrowed(body, rows));
        self.append_admitted(conn, header, admitted, blob_bytes, bytes, narrow, effects);
        Ok(())
    }

    pub(super) fn save_state(
        &mut self,
        conn: ConnId,
        header: Header,
        bytes: &[u8],
        effects: &mut Effects,
    ) -> Result<(), Refused> {
        self.check_disk()?;
        let body = body::access::<ArchivedSaveState>(bytes)?;
        let (admitted, blob_bytes) = command::save_state::admit(self.partition(&header)?, body)?;
        if admitted.rows.as_ref().is_some_and(Vec::is_empty) {
            let versions = vec![0; body.rows.len()];
            effects.reply(conn, &header, &StateReply { versions, exceptions: admitted.reply.exceptions });
            return Ok(());
        }
        self.check_room(blob_bytes)?;
        let narrow = admitted.rows.as_ref().map(|rows| command::save_state::narrowed(body, rows));
        self.append_admitted(conn, header, admitted, blob_bytes, bytes, narrow, effects);
        Ok(())
    }

    pub(super) fn change_state(&mut self, conn: ConnId, header: Header, bytes: &[u8]) -> Result<(), Refused> {
        let body = body::access::<ArchivedChangeState>(bytes)?;
        let partition = self.partition(&header)?;
        let is_fork = body.verb.to_native() == body::state_verb::FORK;
        let list_bytes = command::change_state::admit(partition, body, header.is_resend())?;
        let blob_bytes = list_bytes + command::change_state::blob_bytes(partition, body, &self.arena);
        if is_fork {
            self.check_new_tasks()?;
        }
        self.append_new(Operation::ChangeState, conn, header, bytes, (u64::from(is_fork), blob_bytes))
    }

    pub(super) fn fork_workflow(&mut self, conn: ConnId, header: Header, bytes: &[u8]) -> Result<(), Refused> {
        self.check_new_tasks()?;
        let body = body::access::<ArchivedForkWorkflow>(bytes)?;
        let adds = command::fork_workflow::admit(self.partition(&header)?, body, &self.arena)?;
        self.append_new(Operation::ForkWorkflow, conn, header, bytes, adds)
    }

    #[expect(clippy::too_many_arguments, reason = "a request and what admission made of it")]
    fn append_admitted<B: Body>(
        &mut self,
        conn: ConnId,
        header: Header,
        admitted: Admitted,
        blob_bytes: u64,
        bytes: &[u8],
        narrow: Option<B>,
        effects: &mut Effects,
    ) {
        if admitted.rows.as_ref().is_some_and(Vec::is_empty) {
            effects.reply(conn, &header, &admitted.reply);
            return;
        }
        self.room_bytes = self.room_bytes.saturating_sub(blob_bytes);
        let operation = Operation::from_number(header.operation).expect("dispatched by operation");
        let request = Request {
            origin: Some((conn, header)),
            rows: admitted.rows,
            refused: admitted.reply,
            blob_bytes,
            tasks: 0,
        };
        let partition = PartitionId(header.partition);
        match narrow {
            None => self.append(operation, partition, request, bytes),
            Some(body) => self.append_body(operation, partition, request, &body),
        }
    }

    pub(super) fn cancel(&mut self, conn: ConnId, header: Header, bytes: &[u8]) -> Result<(), Refused> {
        let body = body::access::<ArchivedCancel>(bytes)?;
        self.check_ids(&header, &body.ids)?;
        self.append_request(Operation::Cancel, conn, header, bytes)
    }

    pub(super) fn retry(&mut self, conn: ConnId, header: Header, bytes: &[u8]) -> Result<(), Refused> {
        let body = body::access::<ArchivedRetry>(bytes)?;
        self.check_ids(&header, &body.ids)?;
        self.append_request(Operation::Retry, conn, header, bytes)
    }

    fn check_ids(&self, header: &Header, ids: &[taskmaster_protocol::id::ArchivedTaskId]) -> Result<(), Refused> {
        let partition = self.partition(header)?;
        if ids.is_empty() || ids.len() > limits::ROWS_MAX {
            return Err(Refused::new(Code::Invalid, format!("{} ids: send 1 to {}", ids.len(), limits::ROWS_MAX)));
        }
        match (0u32..).zip(ids).find(|(_, id)| TaskId::from(*id).partition() != partition.id) {
            None => Ok(()),
            Some((row, id)) => {
                let message = format!("id {} is not of partition {}", TaskId::from(id), partition.id);
                Err(Refused::new(Code::WrongPartition, message).at_row(row))
            }
        }
    }

    pub(super) fn configure_queue(&mut self, conn: ConnId, header: Header, bytes: &[u8]) -> Result<(), Refused> {
        let partition = self.partition(&header)?;
        command::configure_queue::admit(partition, body::access::<ArchivedConfigureQueue>(bytes)?)?;
        self.append_request(Operation::ConfigureQueue, conn, header, bytes)
    }

    /// Appends a request that adds tasks, and bytes to the arena, if there is room for them.
    fn append_new(
        &mut self,
        operation: Operation,
        conn: ConnId,
        header: Header,
        bytes: &[u8],
        (tasks, blob_bytes): (u64, u64),
    ) -> Result<(), Refused> {
        self.check_room(blob_bytes + tasks * TASK_BYTES)?;
        let request = Request { origin: Some((conn, header)), blob_bytes, tasks, ..Request::default() };
        self.append(operation, PartitionId(header.partition), request, bytes);
        Ok(())
    }

    fn append_request(
        &mut self,
        operation: Operation,
        conn: ConnId,
        header: Header,
        bytes: &[u8],
    ) -> Result<(), Refused> {
        self.check_backlog(BACKLOG_BYTES_MAX)?;
        let request = Request { origin: Some((conn, header)), ..Request::default() };
        self.append(operation, PartitionId(header.partition), request, bytes);
        Ok(())
    }

    /// Proposes expiries, each partition's in entries of bounded size.
    pub(super) fn propose_expired(&mut self, mut expired: Vec<(u16, ExpireRow)>) {
        expired.sort_by_key(|(partition, _)| *partition);
        for rows in expired.chunk_by(|a, b| a.0 == b.0).flat_map(|rows| rows.chunks(limits::ROWS_MAX)) {
            self.propose_expired_of(PartitionId(rows[0].0), rows.iter().map(|(_, row)| *row).collect());
        }
    }

    /// Proposes one partition's expiries; without rows the entry only ends retention.
    pub(super) fn propose_expired_of(&mut self, partition: PartitionId, rows: Vec<ExpireRow>) {
        self.append_body(Operation::Expire, partition, Request::default(), &Expire { rows });
    }

    fn append(&mut self, operation: Operation, partition: PartitionId, request: Request, bytes: &[u8]) {
        self.push(Verb::Operation(operation), partition, request, |out| out.extend_from_slice(bytes));
    }

    pub(super) fn append_body(
        &mut self,
        operation: Operation,
        partition: PartitionId,
        request: Request,
        body: &impl Body,
    ) {
        self.push(Verb::Operation(operation), partition, request, |out| body.append_to(out));
    }

    /// Adds a command to what its partition's leader, which is here, proposes at the end of the turn.
    pub(super) fn push(
        &mut self,
        verb: Verb,
        partition: PartitionId,
        request: Request,
        body: impl FnOnce(&mut taskmaster_protocol::FrameBuffer),
    ) {
        let (blob_bytes, tasks) = (request.blob_bytes, request.tasks);
        let Some(place) = self.partitions.get_mut(usize::from(partition.0)).and_then(Option::as_deref_mut) else {
            return;
        };
        place.admitted_us = place.admitted_us.max(place.command_us).max(self.last_time_us);
        let time_us = place.admitted_us;
        let Some(group) = self.group_mut(partition.0) else { return };
        let bytes = group.push(verb, time_us, request, body);
        self.stats.entries += 1;
        self.backlog.bytes += bytes;
        self.backlog.blob_bytes += blob_bytes;
        self.backlog.tasks += tasks;
        self.touch(partition.0);
    }
}

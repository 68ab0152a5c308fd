//! Applying what a group committed: the one place where logged requests change state and are answered.

use raft::eraftpb::{Entry, EntryType};
use taskmaster_protocol::body::{
    self, ArchivedCancel, ArchivedChangeState, ArchivedComplete, ArchivedConfigureQueue, ArchivedExpire, ArchivedFail,
    ArchivedForkWorkflow, ArchivedRetry, ArchivedSaveState, ArchivedSubmit, ArchivedSubmitStream, BatchReply,
    Malformed, StateReply, StreamReply,
};
use taskmaster_protocol::{Operation, PartitionId};

use super::group::{Group, Request};
use super::{Effects, Shard};
use crate::command;
use crate::entry::{self, Command, EntryError, Settings, Verb, read_checkpointed, read_starts};
use crate::events::Change;
use crate::memo::known;
use crate::partition::{Cx, Partition};
use crate::peer::META_GROUP;
use crate::replica::log::Position;

/// Final tasks forgotten per command.
const EVICTIONS_PER_COMMAND_MAX: usize = 4_096;

/// What a command came to.
enum Reply {
    Done,
    Rows(BatchReply),
    State(StateReply),
    Stream(StreamReply),
}

impl Shard {
    /// Applies one committed entry and answers the requests behind it.
    ///
    /// # Panics
    /// When it does not read as what admission let through: a defect, or another version's entry.
    pub(super) fn apply_entry(&mut self, group: &mut Group, entry: &Entry, effects: &mut Effects) {
        if entry.get_entry_type() != EntryType::EntryNormal {
            group.replica.apply_conf(&entry.context);
            return;
        }
        if entry.data.is_empty() {
            return;
        }
        let (requests, bytes) = group.take_requests(Position { term: entry.term, index: entry.index });
        if group.number == META_GROUP {
            self.backlog.remove(&requests, bytes);
            self.apply_meta(&entry.data, requests.into_iter().next(), effects);
            return;
        }
        let mut requests_of = requests.iter();
        let mut rest = &entry.data[..];
        while !rest.is_empty() {
            let command = entry::next(&mut rest, group.number, entry.index);
            let applied = command.and_then(|command| Ok((command, self.apply(group.number, &command)?)));
            let (command, reply) = applied.expect("the leader admitted this command");
            if let Some(request) = requests_of.next() {
                Self::answer(request, reply, effects);
            }
            self.after_apply(effects);
            self.evict(PartitionId(group.number), command.time_us);
        }
        self.backlog.remove(&requests, bytes);
        self.demote_after(PartitionId(group.number), entry.data.len());
    }

    fn answer(request: &Request, reply: Reply, effects: &mut Effects) {
        let Some((conn, header)) = request.origin else { return };
        match reply {
            Reply::Done => effects.reply(conn, &header, &body::Empty::default()),
            Reply::Rows(mut reply) => {
                request.merge_exceptions(&mut reply.exceptions);
                effects.reply(conn, &header, &reply);
            }
            Reply::Stream(reply) => effects.reply(conn, &header, &reply),
            Reply::State(mut reply) => {
                request.spread_versions(&mut reply.versions);
                request.merge_exceptions(&mut reply.exceptions);
                effects.reply(conn, &header, &reply);
            }
        }
    }

    /// Tells those who wait for what just happened.
    fn after_apply(&mut self, effects: &mut Effects) {
        while let Some(awaited) = self.settled.pop() {
            self.answer_waiters(awaited, effects);
        }
        self.tell_revoked(effects);
    }

    /// Tells workers whose leases ended that they are to stop.
    pub(super) fn tell_revoked(&mut self, effects: &mut Effects) {
        while let Some((worker, id, token)) = self.revoked.pop() {
            self.revoke(worker, id, token, effects);
        }
    }

    /// Forgets what the partition of a just applied and answered command need not keep any longer.
    fn evict(&mut self, id: PartitionId, time_us: u64) {
        let now_us = self.last_time_us;
        if let Some((partition, mut cx)) = self.split(id, time_us) {
            partition.evict(EVICTIONS_PER_COMMAND_MAX, &mut cx);
            partition.arm_retention(cx.timers, now_us);
        }
    }

    /// Applies an entry read back from the log.
    pub(super) fn apply_again(&mut self, group: u16, entry: &Entry) -> Result<(), EntryError> {
        if entry.data.is_empty() {
            return Ok(());
        }
        if group == META_GROUP {
            // One that was refused is refused again.
            let _ = self.meta.apply(&entry.data);
            return Ok(());
        }
        let listens = self.hearing.is_some();
        if listens {
            self.hear(PartitionId(group));
        }
        let mut rest = &entry.data[..];
        while !rest.is_empty() {
            let command = entry::next(&mut rest, group, entry.index)?;
            self.apply(group, &command)?;
            if listens {
                self.hear(PartitionId(group));
            }
            self.evict(PartitionId(group), command.time_us);
        }
        self.settled.clear();
        self.revoked.clear();
        Ok(())
    }

    /// Applies a command that no client asks for.
    fn apply_own(&mut self, id: PartitionId, command: &Command<'_>) -> Result<Reply, EntryError> {
        let Some((partition, mut cx)) = self.split(id, command.time_us) else { return Ok(Reply::Done) };
        partition.command_us = command.time_us;
        match command.verb {
            Verb::Settings => {
                let settings = Settings::read(command.body).ok_or(EntryError::Record("a setting"))?;
                partition.set(settings, cx.arena);
            }
            Verb::Checkpointed => {
                let upto = read_checkpointed(command.body).ok_or(EntryError::Record("a checkpoint's number"))?;
                partition.checkpoint(upto, cx.arena);
            }
            Verb::Sent => {
                let upto = read_checkpointed(command.body).ok_or(EntryError::Record("an event's number"))?;
                partition.outbox.sent(upto);
            }
            Verb::Started => {
                for start in read_starts(command.body).ok_or(EntryError::Record("attempts that began"))? {
                    // What ended it may have been on its way to the log before.
                    if let Ok(slot) = command::in_attempt(partition, start.id, start.locator, start.attempt) {
                        partition.note(slot, Change::Started, command.time_us);
                    }
                }
            }
            Verb::Restored => {
                let inserted = crate::snapshot::restored::insert(command.body, partition, &mut cx);
                inserted.map_err(|_| EntryError::Record("a chunk of restored tasks"))?;
            }
            Verb::RestoredStates => {
                let inserted = crate::snapshot::restored::states::insert(command.body, partition, &mut cx);
                inserted.map_err(|_| EntryError::Record("restored states"))?;
            }
            Verb::Operation(_) | Verb::Known => unreachable!("clients ask for them"),
        }
        Ok(Reply::Done)
    }

    /// Applies one command.
    fn apply(&mut self, group: u16, command: &Command<'_>) -> Result<Reply, EntryError> {
        let id = PartitionId(group);
        let operation = match command.verb {
            Verb::Operation(operation) => operation,
            Verb::Known => Operation::Submit,
            Verb::Settings
            | Verb::Checkpointed
            | Verb::Restored
            | Verb::RestoredStates
            | Verb::Sent
            | Verb::Started => {
                return self.apply_own(id, command);
            }
        };
        let wrong =
            |malformed: Malformed| EntryError::Body { operation, partition: id, message: malformed.to_string() };
        let Some((partition, mut cx)) = self.split(id, command.time_us) else {
            return Err(wrong(Malformed("the partition is not on this shard".to_owned())));
        };
        partition.command_us = command.time_us;
        let reply = apply_operation(operation, command, partition, &mut cx).map_err(wrong)?;
        partition.end_followers(&mut cx);
        self.stats.memoised += cx.findings.take_ended();
        let accepted = match &reply {
            Reply::Rows(reply) => u64::from(reply.accepted),
            Reply::Stream(reply) => u64::from(reply.accepted),
            Reply::State(_) | Reply::Done => 0,
        };
        match operation {
            Operation::Submit | Operation::SubmitStream | Operation::ForkWorkflow => self.stats.submitted += accepted,
            Operation::Complete => self.stats.completed += accepted,
            Operation::Fail => self.stats.failed_attempts += accepted,
            _ => {}
        }
        Ok(reply)
    }
}

fn apply_operation(
    operation: Operation,
    command: &Command<'_>,
    partition: &mut Partition,
    cx: &mut Cx<'_>,
) -> Result<Reply, Malformed> {
    let (bytes, resend) = (command.body, command.resend);
    Ok(match operation {
        Operation::Submit => {
            let (bytes, known) = match command.verb {
                Verb::Known => known::read(bytes).ok_or_else(|| Malformed("remembered results".to_owned()))?,
                _ => (bytes, Vec::new()),
            };
            let body = body::access::<ArchivedSubmit>(bytes)?;
            Reply::Rows(command::submit::apply(partition, body, &known, resend, cx))
        }
        Operation::SubmitStream => {
            let body = body::access::<ArchivedSubmitStream>(bytes)?;
            Reply::Stream(command::submit_stream::apply(partition, body, cx)?)
        }
        Operation::Complete => {
            Reply::Rows(command::complete::apply(partition, body::access::<ArchivedComplete>(bytes)?, cx))
        }
        Operation::Fail => Reply::Rows(command::fail::apply(partition, body::access::<ArchivedFail>(bytes)?, cx)),
        Operation::SaveState => {
            Reply::State(command::save_state::apply(partition, body::access::<ArchivedSaveState>(bytes)?, cx))
        }
        Operation::ChangeState => {
            let body = body::access::<ArchivedChangeState>(bytes)?;
            Reply::State(command::change_state::apply(partition, body, resend, cx))
        }
        Operation::ForkWorkflow => {
            let body = body::access::<ArchivedForkWorkflow>(bytes)?;
            Reply::Rows(command::fork_workflow::apply(partition, body, resend, cx))
        }
        Operation::Expire => {
            command::expire::apply(partition, body::access::<ArchivedExpire>(bytes)?, cx);
            Reply::Done
        }
        Operation::Cancel => Reply::Rows(command::cancel::apply(partition, body::access::<ArchivedCancel>(bytes)?, cx)),
        Operation::Retry => Reply::Rows(command::retry::apply(partition, body::access::<ArchivedRetry>(bytes)?, cx)),
        Operation::ConfigureQueue => {
            command::configure_queue::apply(partition, body::access::<ArchivedConfigureQueue>(bytes)?, cx);
            Reply::Done
        }
        operation => return Err(Malformed(format!("{operation:?} is never logged"))),
    })
}

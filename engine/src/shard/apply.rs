//! Applying what a group committed: the one place where logged requests change state and are answered.

use raft::eraftpb::{Entry, EntryType};
use taskmaster_protocol::body::{
    self, ArchivedCancel, ArchivedComplete, ArchivedConfigureQueue, ArchivedExpire, ArchivedFail, ArchivedRetry,
    ArchivedSubmit, BatchReply, Malformed,
};
use taskmaster_protocol::{Operation, PartitionId};

use super::group::{Group, Request};
use super::{Effects, Shard};
use crate::command;
use crate::entry::{self, Command, EntryError, Settings, Verb, read_checkpointed};
use crate::peer::META_GROUP;
use crate::replica::log::Position;

/// Final tasks forgotten per command.
const EVICTIONS_PER_COMMAND_MAX: usize = 4_096;

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
                Self::answer(request, &command, reply, effects);
            }
            self.after_apply(effects);
            self.evict(PartitionId(group.number), command.time_us);
        }
        self.backlog.remove(&requests, bytes);
    }

    fn answer(request: &Request, command: &Command<'_>, mut reply: BatchReply, effects: &mut Effects) {
        let Some((conn, header)) = request.origin else { return };
        if command.verb == Verb::Operation(Operation::ConfigureQueue) {
            effects.reply(conn, &header, &body::Empty::default());
        } else {
            request.merge_exceptions(&mut reply);
            effects.reply(conn, &header, &reply);
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
        let mut rest = &entry.data[..];
        while !rest.is_empty() {
            let command = entry::next(&mut rest, group, entry.index)?;
            self.apply(group, &command)?;
            self.evict(PartitionId(group), command.time_us);
        }
        self.settled.clear();
        self.revoked.clear();
        Ok(())
    }

    /// Applies one command.
    fn apply(&mut self, group: u16, command: &Command<'_>) -> Result<BatchReply, EntryError> {
        let id = PartitionId(group);
        let operation = match command.verb {
            Verb::Operation(operation) => operation,
            Verb::Settings => {
                if let Some((partition, cx)) = self.split(id, command.time_us) {
                    partition.command_us = command.time_us;
                    let settings = Settings::read(command.body).ok_or(EntryError::Record("a setting"))?;
                    partition.set(settings, cx.arena);
                }
                return Ok(BatchReply::default());
            }
            Verb::Checkpointed => {
                if let Some((partition, cx)) = self.split(id, command.time_us) {
                    partition.command_us = command.time_us;
                    let upto = read_checkpointed(command.body).ok_or(EntryError::Record("a checkpoint's number"))?;
                    partition.checkpoint(upto, cx.arena);
                }
                return Ok(BatchReply::default());
            }
            Verb::Restored => {
                if let Some((partition, mut cx)) = self.split(id, command.time_us) {
                    partition.command_us = command.time_us;
                    let inserted = crate::snapshot::restored::insert(command.body, partition, &mut cx);
                    inserted.map_err(|_| EntryError::Record("a chunk of restored tasks"))?;
                }
                return Ok(BatchReply::default());
            }
        };
        let wrong =
            |malformed: Malformed| EntryError::Body { operation, partition: id, message: malformed.to_string() };
        let Some((partition, mut cx)) = self.split(id, command.time_us) else {
            return Err(wrong(Malformed("the partition is not on this shard".to_owned())));
        };
        partition.command_us = command.time_us;
        let mut reply = BatchReply::default();
        match operation {
            Operation::Submit => {
                let body = body::access::<ArchivedSubmit>(command.body).map_err(wrong)?;
                reply = command::submit::apply(partition, body, command.resend, &mut cx);
            }
            Operation::Complete => {
                let body = body::access::<ArchivedComplete>(command.body).map_err(wrong)?;
                reply = command::complete::apply(partition, body, &mut cx);
            }
            Operation::Fail => {
                let body = body::access::<ArchivedFail>(command.body).map_err(wrong)?;
                reply = command::fail::apply(partition, body, &mut cx);
            }
            Operation::Expire => {
                let body = body::access::<ArchivedExpire>(command.body).map_err(wrong)?;
                command::expire::apply(partition, body, &mut cx);
            }
            Operation::Cancel => {
                let body = body::access::<ArchivedCancel>(command.body).map_err(wrong)?;
                reply = command::cancel::apply(partition, body, &mut cx);
            }
            Operation::Retry => {
                let body = body::access::<ArchivedRetry>(command.body).map_err(wrong)?;
                reply = command::retry::apply(partition, body, &mut cx);
            }
            Operation::ConfigureQueue => {
                let body = body::access::<ArchivedConfigureQueue>(command.body).map_err(wrong)?;
                command::configure_queue::apply(partition, body, &mut cx);
            }
            operation => return Err(wrong(Malformed(format!("{operation:?} is never logged")))),
        }
        let accepted = u64::from(reply.accepted);
        match operation {
            Operation::Submit => self.stats.submitted += accepted,
            Operation::Complete => self.stats.completed += accepted,
            Operation::Fail => self.stats.failed_attempts += accepted,
            _ => {}
        }
        Ok(reply)
    }
}

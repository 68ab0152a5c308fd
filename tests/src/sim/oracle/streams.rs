//! Streams: each message becomes one task, and none is passed over.

use std::collections::BTreeMap;

use taskmaster_protocol::body::ArchivedStreamReply;
use taskmaster_protocol::{TaskId, access};

use super::{Oracle, Request, Sent, Verdict, require};
use crate::sim::streams::{END, SOURCES, is_there};

/// A message: source and offset.
type Message = (u32, u64);

/// What was sent of messages, and what came of them.
#[derive(Default)]
pub(crate) struct Streams {
    /// Tasks that were sent for a message, each in a piece of its own.
    sent: BTreeMap<TaskId, Message>,
    /// The task that a message became.
    became: BTreeMap<Message, TaskId>,
}

impl Streams {
    /// A task that is about to be sent for a message.
    pub(crate) fn register(&mut self, id: TaskId, source: u32, offset: u64) {
        self.sent.insert(id, (source, offset));
    }

    /// A task was seen to be there.
    pub(super) fn seen(&mut self, id: TaskId) -> Verdict {
        let Some(&message) = self.sent.get(&id) else { return Ok(()) };
        let first = *self.became.entry(message).or_insert(id);
        require(first == id, || {
            format!("offset {} of source {} became two tasks, {first} and {id}", message.1, message.0)
        })
    }
}

impl Oracle {
    pub(super) fn piece_answered(&mut self, request: &Request, sent: &Sent) -> Verdict {
        let reply =
            access::<ArchivedStreamReply>(&sent.body).map_err(|error| format!("a reply does not read: {error}"))?;
        let (accepted, rows) = (reply.accepted.to_native() as usize, request.rows.len());
        require(reply.exceptions.is_empty() && (accepted == 0 || accepted == rows), || {
            format!("a piece of {rows} rows without keys: {accepted} accepted")
        })?;
        require(reply.position.to_native() <= END, || format!("position {} of {END}", reply.position))?;
        if accepted > 0 {
            for row in &request.rows {
                self.submit_answered(request, row, None)?;
                self.streams.seen(row.id)?;
            }
        }
        Ok(())
    }

    /// At the end: everything was read, and every message became a task.
    pub(crate) fn compare_streams(&self) -> Verdict {
        if self.streams.sent.is_empty() {
            return Ok(());
        }
        for source in 0..SOURCES {
            for offset in (0..END).filter(|&offset| is_there(offset)) {
                require(self.streams.became.contains_key(&(source, offset)), || {
                    format!("offset {offset} of source {source} became no task, and the position is behind it")
                })?;
            }
        }
        Ok(())
    }

    /// Messages that became tasks.
    pub(crate) fn messages(&self) -> u64 {
        self.streams.became.len() as u64
    }
}

//! Answers on their way to the server: gathered while frames are in flight, sent at once when none is.
//!
//! Invariants: an answer stays here until the server has taken or refused it, across any number of connections; a frame
//! is of one partition and within the frame limits; answers of partitions whose leader is elsewhere leave with
//! [`Outbox::take_elsewhere`]. No timer delays an answer: the flush of the previous frame is what
//! the next one waits for, as in a group commit.

use std::collections::{BTreeMap, HashMap};

use taskmaster_protocol::body::{Complete, CompleteRow, Fail, FailRow, Leases, put};
use taskmaster_protocol::frame::FLAG_RESEND;
use taskmaster_protocol::{Header, Operation, PartitionId, limits};

use super::context::{Lease, TaskError};
use crate::error::Error;
use crate::task::Payload;
use crate::wire::{Connection, Mailbox};

/// Frames in flight beyond which answers gather, and rows that are worth a frame while others are in flight.
const FRAMES_MAX: usize = 16;
const ROWS_WORTH_A_FRAME: usize = 64;
/// Bytes and rows after which a frame is sealed.
const FRAME_BYTES: usize = 4 << 20;
const FRAME_ROWS: usize = 8192;

/// A frame whose answer matters, kept until it comes.
pub(super) enum Sent {
    Complete(PartitionId, Complete),
    Fail(PartitionId, Fail),
    /// Heartbeats.
    Extend(Vec<std::sync::Arc<Lease>>),
    Release(u64),
    /// The withdrawal of credit.
    Withdraw,
    Ping,
}

impl Sent {
    fn is_answer(&self) -> bool {
        matches!(self, Self::Complete(..) | Self::Fail(..))
    }

    /// The partition concerned.
    pub(super) fn partition(&self) -> Option<PartitionId> {
        match self {
            Self::Complete(partition, _) | Self::Fail(partition, _) => Some(*partition),
            Self::Extend(leases) => leases.first().map(|lease| lease.id.partition()),
            Self::Release(_) | Self::Withdraw | Self::Ping => None,
        }
    }
}

/// Answers gathered, in flight, and to be sent again.
#[derive(Default)]
pub(super) struct Outbox {
    complete: BTreeMap<PartitionId, Complete>,
    fail: BTreeMap<PartitionId, Fail>,
    gathered: usize,
    sealed: Vec<(Sent, bool)>,
    /// With whether it was a resend.
    in_flight: HashMap<u64, (Sent, bool)>,
    answers_in_flight: usize,
    next_tag: u64,
}

impl Outbox {
    /// Adds an attempt's end.
    pub(super) fn put(&mut self, lease: &Lease, answer: Result<Payload, TaskError>) {
        let answer = match answer {
            Ok(result) if result.as_bytes().len() > limits::RESULT_BYTES_MAX => Err(TaskError::new(
                "result_too_large",
                format!(
                    "the result has {} bytes, the limit is {}: store it elsewhere and answer with its place",
                    result.as_bytes().len(),
                    limits::RESULT_BYTES_MAX
                ),
            )
            .permanent()),
            answer => answer,
        };
        self.gathered += 1;
        let partition = lease.id.partition();
        match answer {
            Ok(result) => self.put_completion(partition, lease, &result),
            Err(error) => self.put_failure(partition, lease, &error),
        }
    }

    fn put_completion(&mut self, partition: PartitionId, lease: &Lease, result: &Payload) {
        let frame = self.complete.entry(partition).or_default();
        if frame.rows.len() >= FRAME_ROWS || frame.bytes.len() + result.as_bytes().len() > FRAME_BYTES {
            self.sealed.push((Sent::Complete(partition, std::mem::take(frame)), false));
        }
        let result = put(&mut frame.bytes, result.as_bytes());
        frame.rows.push(CompleteRow {
            id: lease.id,
            token: lease.token,
            locator: lease.locator,
            attempt: lease.attempt,
            result,
        });
    }

    fn put_failure(&mut self, partition: PartitionId, lease: &Lease, error: &TaskError) {
        let frame = self.fail.entry(partition).or_default();
        if frame.rows.len() >= FRAME_ROWS || frame.bytes.len() + limits::LOG_TAIL_BYTES_MAX > FRAME_BYTES {
            self.sealed.push((Sent::Fail(partition, std::mem::take(frame)), false));
        }
        let log = &error.log_tail[error.log_tail.len().saturating_sub(limits::LOG_TAIL_BYTES_MAX)..];
        frame.rows.push(FailRow {
            id: lease.id,
            token: lease.token,
            locator: lease.locator,
            attempt: lease.attempt,
            code: put(&mut frame.bytes, cut(&error.code, limits::NAME_BYTES_MAX).as_bytes()),
            message: put(&mut frame.bytes, cut(&error.message, limits::ERROR_BYTES_MAX).as_bytes()),
            log_tail: put(&mut frame.bytes, log),
            is_final: error.is_final.into(),
            reserved: 0,
        });
    }

    /// Whether every answer was taken or refused.
    pub(super) fn is_empty(&self) -> bool {
        self.gathered == 0 && self.sealed.is_empty() && self.in_flight.is_empty()
    }

    /// Sends what is gathered, if nothing is in flight or enough is gathered.
    ///
    /// # Errors
    /// [`Error::Lost`]; what was not sent stays.
    pub(super) fn flush(&mut self, connection: &Connection, mailbox: &Mailbox) -> Result<(), Error> {
        let is_worth_it =
            self.answers_in_flight == 0 || (self.answers_in_flight < FRAMES_MAX && self.gathered >= ROWS_WORTH_A_FRAME);
        if self.gathered > 0 && is_worth_it {
            self.gathered = 0;
            self.sealed
                .extend(std::mem::take(&mut self.complete).into_iter().map(|(p, f)| (Sent::Complete(p, f), false)));
            self.sealed.extend(std::mem::take(&mut self.fail).into_iter().map(|(p, f)| (Sent::Fail(p, f), false)));
        }
        while let Some((frame, is_resend)) = self.sealed.pop() {
            self.send(connection, mailbox, frame, is_resend)?;
        }
        Ok(())
    }

    /// Sends one frame and remembers it.
    ///
    /// # Errors
    /// [`Error::Lost`]; an answer's frame goes back to those to be sent.
    pub(super) fn send(
        &mut self,
        connection: &Connection,
        mailbox: &Mailbox,
        frame: Sent,
        is_resend: bool,
    ) -> Result<(), Error> {
        self.next_tag += 1;
        let tag = self.next_tag;
        let header = |operation, partition| {
            let mut header = Header::request(operation, 0, partition);
            header.flags |= if is_resend { FLAG_RESEND } else { 0 };
            header
        };
        let sent = match &frame {
            Sent::Complete(partition, body) => {
                connection.request_into(header(Operation::Complete, Some(*partition)), body, mailbox, tag)
            }
            Sent::Fail(partition, body) => {
                connection.request_into(header(Operation::Fail, Some(*partition)), body, mailbox, tag)
            }
            Sent::Extend(leases) => {
                let body = Leases { rows: leases.iter().map(|lease| lease.row()).collect() };
                let partition = leases.first().map(|lease| lease.id.partition());
                connection.request_into(header(Operation::Extend, partition), &body, mailbox, tag)
            }
            Sent::Release(_) | Sent::Withdraw | Sent::Ping => unreachable!("sent with their bodies by `send_with`"),
        };
        match sent {
            Ok(()) => {
                self.answers_in_flight += usize::from(frame.is_answer());
                self.in_flight.insert(tag, (frame, is_resend));
                Ok(())
            }
            Err(error) => {
                if frame.is_answer() {
                    self.sealed.push((frame, is_resend));
                }
                Err(error)
            }
        }
    }

    /// Sends a frame whose body is not kept.
    ///
    /// # Errors
    /// [`Error::Lost`].
    pub(super) fn send_with<B: taskmaster_protocol::Body>(
        &mut self,
        connection: &Connection,
        mailbox: &Mailbox,
        header: Header,
        body: &B,
        frame: Sent,
    ) -> Result<(), Error> {
        self.next_tag += 1;
        connection.request_into(header, body, mailbox, self.next_tag)?;
        self.in_flight.insert(self.next_tag, (frame, false));
        Ok(())
    }

    /// The frame that an answer is for, and whether it was a resend.
    pub(super) fn answered(&mut self, tag: u64) -> Option<(Sent, bool)> {
        let (frame, is_resend) = self.in_flight.remove(&tag)?;
        self.answers_in_flight -= usize::from(frame.is_answer());
        Some((frame, is_resend))
    }

    /// The frame goes again with the next flush, as a resend if an earlier copy may have arrived.
    pub(super) fn again(&mut self, frame: Sent, is_resend: bool) {
        self.sealed.push((frame, is_resend));
    }

    /// Takes out the answers for partitions that are elsewhere, each with whether it is a resend.
    pub(super) fn take_elsewhere(&mut self, is_elsewhere: impl Fn(PartitionId) -> bool) -> Vec<(Sent, bool)> {
        let is_it = |frame: &Sent| frame.is_answer() && frame.partition().is_some_and(&is_elsewhere);
        let mut taken: Vec<(Sent, bool)> = self.sealed.extract_if(.., |(frame, _)| is_it(frame)).collect();
        let completions = self.complete.extract_if(.., |&partition, _| is_elsewhere(partition));
        taken.extend(completions.map(|(partition, frame)| (Sent::Complete(partition, frame), false)));
        let failures = self.fail.extract_if(.., |&partition, _| is_elsewhere(partition));
        taken.extend(failures.map(|(partition, frame)| (Sent::Fail(partition, frame), false)));
        let rows = |frames: &mut dyn Iterator<Item = usize>| frames.sum::<usize>();
        self.gathered = rows(&mut self.complete.values().map(|frame| frame.rows.len()))
            + rows(&mut self.fail.values().map(|frame| frame.rows.len()));
        let in_flight = self.in_flight.extract_if(|_, (frame, _)| is_it(frame));
        let before = taken.len();
        taken.extend(in_flight.map(|(_, (frame, _))| (frame, true)));
        self.answers_in_flight -= taken.len() - before;
        taken
    }

    /// The connection was lost: answers without an answer go again, everything else is void.
    pub(super) fn lost(&mut self) {
        let lost = self.in_flight.drain().map(|(_, (frame, _))| frame).filter(Sent::is_answer);
        self.sealed.extend(lost.map(|frame| (frame, true)));
        self.answers_in_flight = 0;
    }

    /// Whether any frame waits for an answer.
    pub(super) fn is_waiting(&self) -> bool {
        !self.in_flight.is_empty()
    }
}

/// The text's beginning, at most this many bytes.
fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

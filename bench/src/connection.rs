//! One nonblocking connection: bytes in, bytes out, and the requests whose answers are awaited.
//!
//! Frames are parsed where they were received: the buffer is 16-byte aligned and frames are multiples of 16 bytes, so
//! whatever is moved to the front stays aligned.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

use anyhow::{Context, Result, bail};
use taskmaster_protocol::body::Complete;
use taskmaster_protocol::{FrameBuffer, frame, limits};

use crate::routes::Place;
use crate::submission::Submission;

/// First size of a receive buffer, in bytes.
const RECEIVE_BYTES: usize = 256 << 10;

/// A connection of the generator.
pub(crate) struct Connection {
    pub(crate) inbound: Inbound,
    pub(crate) link: Link,
}

/// Everything of a connection but its receive buffer, so that a frame can be handled while it lies there.
pub(crate) struct Link {
    stream: TcpStream,
    pub(crate) out: Outbound,
    pub(crate) submits: Slots<Submission>,
    pub(crate) completes: Slots<Completion>,
    /// Refused as overloaded; to be sent again when due.
    pub(crate) delayed: Vec<Delayed>,
    /// Credit used up and not given back, in tasks.
    pub(crate) credit_owed: u32,
    /// The shard at the other end.
    pub(crate) place: Place,
    partitions: Vec<u16>,
    next_partition: usize,
}

/// A request to send again.
pub(crate) struct Delayed {
    /// When, in nanoseconds since the run's start.
    pub(crate) due_ns: u64,
    pub(crate) request: Request,
}

/// A request that can be sent again.
pub(crate) enum Request {
    Submit(Submission),
    Complete(Completion),
}

impl Request {
    pub(crate) fn partition(&self) -> u16 {
        match self {
            Self::Submit(submission) => submission.partition,
            Self::Complete(completion) => completion.partition,
        }
    }

    /// From here on it may have arrived before.
    pub(crate) fn set_resend(&mut self) {
        match self {
            Self::Submit(submission) => submission.is_resend = true,
            Self::Complete(completion) => completion.is_resend = true,
        }
    }
}

/// A completion frame on its way.
#[derive(Default)]
pub(crate) struct Completion {
    pub(crate) body: Complete,
    pub(crate) partition: u16,
    /// Sequence number and intended time of each row.
    pub(crate) stamps: Vec<(u64, u64)>,
    /// An earlier copy may have arrived.
    pub(crate) is_resend: bool,
}

impl Connection {
    /// Takes over a socket whose handshake is over. `spread` varies which partition is first.
    pub(crate) fn new(stream: TcpStream, place: Place, partitions: Vec<u16>, spread: usize) -> Result<Self> {
        stream.set_nonblocking(true)?;
        let link = Link {
            stream,
            out: Outbound::default(),
            submits: Slots::default(),
            completes: Slots::default(),
            delayed: Vec::new(),
            credit_owed: 0,
            next_partition: spread,
            place,
            partitions,
        };
        Ok(Self { inbound: Inbound::new(), link })
    }
}

impl Link {
    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// The partition of the next batch; `None` where the other end takes none.
    pub(crate) fn rotate_partition(&mut self) -> Option<u16> {
        let partition = *self.partitions.get(self.next_partition % self.partitions.len().max(1))?;
        self.next_partition = (self.next_partition + 1) % self.partitions.len();
        Some(partition)
    }

    /// The other end takes these.
    pub(crate) fn set_partitions(&mut self, partitions: Vec<u16>) {
        self.partitions = partitions;
    }

    pub(crate) fn has_partitions(&self) -> bool {
        !self.partitions.is_empty()
    }

    /// Submit frames that are not acknowledged, including those that wait to be sent again.
    pub(crate) fn unacknowledged(&self) -> usize {
        let waiting = self.delayed.iter().filter(|delayed| matches!(delayed.request, Request::Submit(_)));
        self.submits.len() + waiting.count()
    }

    /// Writes what there is to write and the socket takes.
    pub(crate) fn flush(&mut self) -> Result<()> {
        self.out.flush(&self.stream)
    }
}

/// Bytes received and not yet read as frames.
pub(crate) struct Inbound {
    buffer: FrameBuffer,
    start: usize,
    end: usize,
}

impl Inbound {
    pub(crate) fn new() -> Self {
        let mut buffer = FrameBuffer::new();
        buffer.resize(RECEIVE_BYTES, 0);
        Self { buffer, start: 0, end: 0 }
    }

    /// Receives once. Whether the socket may hold more.
    pub(crate) fn receive(&mut self, mut stream: &TcpStream) -> Result<bool> {
        match stream.read(&mut self.buffer[self.end..]) {
            Ok(0) => bail!("the other side closed the connection"),
            Ok(received) => {
                self.end += received;
                Ok(self.end == self.buffer.len())
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(false),
            Err(error) => Err(error).context("a connection broke"),
        }
    }

    /// Hands each whole frame to `handle` and makes room for the rest of the last one.
    pub(crate) fn drain(&mut self, mut handle: impl FnMut(frame::Frame<'_>) -> Result<()>) -> Result<()> {
        while let Some((frame, used)) = frame::parse(&self.buffer[self.start..self.end])? {
            handle(frame)?;
            self.start += used;
        }
        let rest = self.end - self.start;
        let needed = frame::needed(&self.buffer[self.start..self.end])?.max(frame::HEADER_BYTES);
        if rest == 0 {
            (self.start, self.end) = (0, 0);
        } else if self.buffer.len() - self.start < needed || self.end == self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, rest);
        }
        if needed > self.buffer.len() {
            debug_assert!(needed <= frame::stream_bytes(limits::BODY_BYTES_MAX));
            self.buffer.resize(needed.next_power_of_two(), 0);
        }
        Ok(())
    }
}

/// Frames to send.
#[derive(Default)]
pub(crate) struct Outbound {
    /// Whole frames; the first `sent` bytes are gone.
    pub(crate) frames: FrameBuffer,
    sent: usize,
}

impl Outbound {
    pub(crate) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Writes until everything is gone or the socket takes no more.
    pub(crate) fn flush(&mut self, mut stream: &TcpStream) -> Result<()> {
        while self.sent < self.frames.len() {
            match stream.write(&self.frames[self.sent..]) {
                Ok(written) => self.sent += written,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("a connection broke"),
            }
        }
        self.frames.clear();
        self.sent = 0;
        Ok(())
    }
}

/// Values by small reusable numbers, which serve as correlation ids.
pub(crate) struct Slots<T> {
    values: Vec<Option<T>>,
    free: Vec<usize>,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { values: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slots<T> {
    pub(crate) fn len(&self) -> usize {
        self.values.len() - self.free.len()
    }

    /// Keeps a value; its correlation id and where it is kept.
    pub(crate) fn insert(&mut self, value: T) -> (u64, &T) {
        let at = self.free.pop().unwrap_or_else(|| {
            self.values.push(None);
            self.values.len() - 1
        });
        (at as u64, self.values[at].insert(value))
    }

    /// Gives a value back, if this correlation id is in use.
    pub(crate) fn remove(&mut self, correlation: u64) -> Option<T> {
        let at = usize::try_from(correlation).ok()?;
        let value = self.values.get_mut(at)?.take()?;
        self.free.push(at);
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn correlation_ids_are_reused_and_unknown_ones_give_nothing() {
        let mut slots = Slots::default();
        let (a, b) = (slots.insert('a').0, slots.insert('b').0);
        assert_eq!((slots.remove(a), slots.remove(a), slots.remove(99)), (Some('a'), None, None));
        assert_eq!(slots.insert('c'), (a, &'c'));
        assert_eq!((slots.len(), slots.remove(b), slots.len()), (2, Some('b'), 1));
    }
}

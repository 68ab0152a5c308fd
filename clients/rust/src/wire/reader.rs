//! Reads frames in place from a stream.
//!
//! Invariants: unread bytes start at a multiple of 16 in an aligned buffer, so bodies are aligned without a copy; the
//! buffer grows only to hold one announced frame, whose size [`frame::needed`] has bounded, and shrinks after it.

use std::io;

use taskmaster_protocol::{Frame, FrameBuffer, FrameError, frame};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Bytes the buffer normally holds.
const BUFFER_BYTES: usize = 256 << 10;

/// A stream and its buffer.
pub struct FrameReader<R> {
    stream: R,
    buffer: FrameBuffer,
    start: usize,
    end: usize,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Reads from `stream`.
    pub fn new(stream: R) -> Self {
        let mut buffer = FrameBuffer::new();
        buffer.resize(BUFFER_BYTES, 0);
        Self { stream, buffer, start: 0, end: 0 }
    }

    /// The next frame already in the buffer.
    ///
    /// # Errors
    /// [`FrameError`] when the bytes can never become a frame; the stream is of no further use.
    pub fn buffered(&mut self) -> Result<Option<Frame<'_>>, FrameError> {
        let Some((frame, used)) = frame::parse(&self.buffer[self.start..self.end])? else { return Ok(None) };
        self.start += used;
        Ok(Some(frame))
    }

    /// Reads more bytes; 0 means the stream ended. To be called when [`FrameReader::buffered`] has no frame left.
    ///
    /// # Errors
    /// The stream's failure, or `InvalidData` for bytes that can never become a frame. Cancel safe.
    pub async fn fill(&mut self) -> io::Result<usize> {
        let needed = frame::needed(&self.buffer[self.start..self.end])
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        self.make_room(needed);
        let count = self.stream.read(&mut self.buffer[self.end..]).await?;
        self.end += count;
        Ok(count)
    }

    /// Whether a frame has begun to arrive and is not whole.
    #[must_use]
    pub fn has_partial_frame(&self) -> bool {
        self.start < self.end
    }

    fn make_room(&mut self, needed: usize) {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if needed > self.buffer.len() {
            self.buffer.resize(needed, 0);
        } else if self.buffer.len() > BUFFER_BYTES && needed <= BUFFER_BYTES && self.end <= BUFFER_BYTES {
            let mut small = FrameBuffer::with_capacity(BUFFER_BYTES);
            small.extend_from_slice(&self.buffer[..BUFFER_BYTES]);
            self.buffer = small;
        }
    }
}

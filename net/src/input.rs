//! A receive buffer whose content starts at a frame, so that bodies can be used where they lie.
//!
//! It grows to what is asked for, which the caller bounds, and shrinks again once it is empty.

use taskmaster_protocol::FrameBuffer;

/// The first and the usual largest size, in bytes.
const BYTES_MIN: usize = 16 << 10;
const BYTES_USUAL: usize = 256 << 10;

/// `buffer[..filled]` has arrived and was not consumed.
#[derive(Default)]
pub(crate) struct Input {
    buffer: FrameBuffer,
    filled: usize,
}

impl Input {
    /// What has arrived and was not consumed.
    pub(crate) fn filled(&self) -> &[u8] {
        &self.buffer[..self.filled]
    }

    /// Room for the next read: so much that `needed` bytes can be filled in all.
    pub(crate) fn room(&mut self, needed: usize) -> &mut [u8] {
        let usual = if self.buffer.len() < BYTES_MIN { BYTES_MIN } else { self.buffer.len() };
        let grown = if self.filled == self.buffer.len() { usual * 4 } else { usual };
        let size = grown.min(BYTES_USUAL).max(needed.next_multiple_of(4_096));
        if self.filled == 0 && self.buffer.len() > BYTES_USUAL {
            self.buffer = FrameBuffer::new();
        }
        if self.buffer.len() < size {
            self.buffer.resize(size, 0);
        }
        &mut self.buffer[self.filled..]
    }

    /// `count` bytes were read into the room.
    pub(crate) fn took(&mut self, count: usize) {
        self.filled += count;
    }

    /// The first `count` bytes, whole frames, are done with.
    pub(crate) fn consume(&mut self, count: usize) {
        if self.filled == self.buffer.len() && self.buffer.len() < BYTES_USUAL {
            let size = (self.buffer.len() * 4).min(BYTES_USUAL);
            self.buffer.resize(size, 0);
        }
        self.buffer.copy_within(count..self.filled, 0);
        self.filled -= count;
    }
}

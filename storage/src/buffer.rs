//! Page-aligned byte buffers in safe Rust.
//!
//! A buffer reserves one page more than asked and starts at the first page boundary inside, so direct I/O accepts it and a
//! record inside a block keeps its 16-byte alignment. Invariant: the start never moves, because the allocation is never
//! resized. It does not pool: who reuses buffers keeps them.

/// Alignment of every buffer, block and segment offset, in bytes. The unit direct I/O wants on common disks.
pub const PAGE_LEN: usize = 4096;

/// A heap buffer whose first byte lies on a page boundary.
pub struct AlignedBuffer {
    memory: Box<[u8]>,
    start: usize,
    len: usize,
}

impl AlignedBuffer {
    /// Allocates `len` zero bytes.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        let memory = vec![0u8; len + PAGE_LEN].into_boxed_slice();
        let start = memory.as_ptr().align_offset(PAGE_LEN);
        assert!(start < PAGE_LEN, "the platform must answer align_offset for bytes");
        Self { memory, start, len }
    }
}

impl AsRef<[u8]> for AlignedBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl AsMut<[u8]> for AlignedBuffer {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

impl std::fmt::Debug for AlignedBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBuffer({} bytes)", self.len)
    }
}

/// Rounds `len` up to a multiple of `unit` (a power of two).
#[must_use]
pub(crate) const fn round_up(len: usize, unit: usize) -> usize {
    (len + unit - 1) & !(unit - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_start_on_a_page_and_are_zero() {
        for len in [0, 1, 16, 4096, 70_000] {
            let buffer = AlignedBuffer::zeroed(len);
            assert_eq!(buffer.as_ref().len(), len);
            assert_eq!(buffer.as_ref().as_ptr().align_offset(PAGE_LEN), 0);
            assert!(buffer.as_ref().iter().all(|byte| *byte == 0));
        }
    }
}

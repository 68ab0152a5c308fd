//! Where texts and blobs of a batch lie.

/// A range of the bytes of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Offset.
    pub at: u32,
    /// Length in bytes.
    pub len: u32,
}

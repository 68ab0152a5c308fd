//! What tests look at and nothing else calls.

use super::Shard;

impl Shard {
    /// The term in which this shard leads a group and serves it.
    #[doc(hidden)]
    #[must_use]
    pub fn serving(&self, group: u16) -> Option<u64> {
        self.group(group).map(|group| group.serving).filter(|term| *term > 0)
    }
}

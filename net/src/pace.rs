//! How much a reading task may read before other tasks of the shard have their turn.
//!
//! A read that leaves room suspends the next one until the ring was looked at; one that fills the buffer does not. So a peer that
//! sends fast enough would be all that a shard attends to.

use std::time::Duration;

use glommio::timer::sleep;

/// Bytes that are read at most before other tasks of the shard have their turn.
const TURN_BYTES_MAX: usize = 1 << 20;
/// How long the others' turn is at least. Only a timer suspends a task for certain.
const BREATH: Duration = Duration::from_micros(20);

/// How much a reading task has read without suspending.
#[derive(Default)]
pub(crate) struct Pace {
    full_bytes: usize,
}

impl Pace {
    /// Before a read: lets the others have their turn when it is due.
    pub(crate) async fn breathe(&mut self) {
        if self.full_bytes >= TURN_BYTES_MAX {
            self.full_bytes = 0;
            sleep(BREATH).await;
        }
    }

    /// After a read into this much room.
    pub(crate) const fn took(&mut self, count: usize, room: usize) {
        self.full_bytes = if count == room { self.full_bytes + count } else { 0 };
    }
}

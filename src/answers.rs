//! The way back from a thread beside the shards: a bounded queue of the standard library for each shard, with a byte on a socket pair that
//! the shard reads, so that no other thread ever holds a waker of a shard. A queue that is full makes the thread late, never a shard wait.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use anyhow::Context;

/// The thread's ends of the shards' queues.
pub(crate) struct Backs<T>(Vec<(SyncSender<T>, UnixStream)>);

/// A shard's end of its queue, and what has something to read when there are answers.
pub(crate) type ShardEnd<T> = (Receiver<T>, UnixStream);

/// The two ends of the queues of so many shards, of `bound` answers each.
///
/// # Errors
/// When sockets cannot be made.
pub(crate) fn backs<T>(shards: usize, bound: usize) -> anyhow::Result<(Backs<T>, Vec<ShardEnd<T>>)> {
    let (mut theirs, mut own) = (Vec::new(), Vec::new());
    for _ in 0..shards {
        let (send, receive) = sync_channel(bound);
        let (ring, wake) = UnixStream::pair().context("cannot make a socket pair")?;
        ring.set_nonblocking(true).context("cannot set up a socket pair")?;
        theirs.push((send, ring));
        own.push((receive, wake));
    }
    Ok((Backs(theirs), own))
}

impl<T> Backs<T> {
    /// How many shards there are.
    pub(crate) const fn shards(&self) -> usize {
        self.0.len()
    }

    /// Answers a shard.
    pub(crate) fn send(&self, shard: usize, what: T) {
        let (queue, mut ring) = (&self.0[shard].0, &self.0[shard].1);
        // A shard that has ended hears nothing. A full pair wakes it all the same.
        let _ = queue.send(what);
        let _ = ring.write(&[1]);
    }
}

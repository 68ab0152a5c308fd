//! Hears the bytes with which threads beside the shards say that there are answers.

use std::io::ErrorKind;
use std::os::fd::{FromRawFd, IntoRawFd};

use futures_lite::AsyncReadExt;
use glommio::net::UnixStream;

/// A shard's end of a socket pair.
pub(super) struct Wake(UnixStream);

impl Wake {
    #[expect(unsafe_code, reason = "glommio takes over a socket only by its raw descriptor")]
    pub(super) fn new(socket: std::os::unix::net::UnixStream) -> Self {
        // SAFETY: the descriptor was given up by its only owner in this expression.
        Self(unsafe { UnixStream::from_raw_fd(socket.into_raw_fd()) })
    }

    /// Waits until the thread rings; `false` when it is gone.
    pub(super) async fn rung(&mut self) -> bool {
        let mut rings = [0u8; 256];
        loop {
            match self.0.read(&mut rings).await {
                Ok(1..) => return true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => return false,
            }
        }
    }
}

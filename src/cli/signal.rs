//! Ctrl-C and termination signals for commands that drain before they end.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Failure;

/// Both signals that ask for an end.
pub(crate) struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    /// Takes the signals from their defaults: from here on they only end what waits for them.
    ///
    /// # Errors
    /// The runtime refuses.
    pub(crate) fn listen() -> Result<Self, Failure> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Waits for the next of them.
    pub(crate) async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

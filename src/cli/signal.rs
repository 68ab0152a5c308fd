//! Ctrl-C and termination signals for commands that drain before they end.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Failure;

/// Both signals that ask for an end.
pub(crate) struct Stop {
    interrupt: Signal,
    terminate: Signal,
    /// Ctrl-C asks for nothing.
    ignores_interrupt: bool,
}

impl Stop {
    /// Takes the signals from their defaults: from here on they only end what waits for them.
    ///
    /// # Errors
    /// The runtime refuses.
    pub(crate) fn listen() -> Result<Self, Failure> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            ignores_interrupt: false,
        })
    }

    /// Likewise, but only SIGTERM asks for an end, and Ctrl-C does nothing: for a process whose parent has the terminal.
    ///
    /// # Errors
    /// The runtime refuses.
    pub(crate) fn listen_to_termination() -> Result<Self, Failure> {
        Ok(Self { ignores_interrupt: true, ..Self::listen()? })
    }

    /// Waits for the next of them.
    pub(crate) async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv(), if !self.ignores_interrupt => {}
            _ = self.terminate.recv() => {}
        }
    }
}

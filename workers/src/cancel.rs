//! Asking a running attempt to end.
//!
//! One [`Canceller`], any number of [`Cancel`] clones. A canceller which is dropped without having been used cancels
//! nothing: ending an attempt is always an explicit act, or the drop of its future.

use tokio::sync::watch;

/// The side which asks.
#[derive(Debug)]
pub struct Canceller(watch::Sender<bool>);

/// The side which is asked.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Option<watch::Receiver<bool>>);

/// A joined pair.
#[must_use]
pub fn pair() -> (Canceller, Cancel) {
    let (sender, receiver) = watch::channel(false);
    (Canceller(sender), Cancel(Some(receiver)))
}

impl Canceller {
    /// Asks for the end; further calls change nothing.
    pub fn cancel(&self) {
        self.0.send_replace(true);
    }
}

impl Cancel {
    /// One which is never asked for, and costs nothing.
    #[must_use]
    pub const fn never() -> Self {
        Self(None)
    }

    /// Whether the end has been asked for.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.as_ref().is_some_and(|receiver| *receiver.borrow())
    }

    /// Ends when the end is asked for; otherwise never.
    pub async fn cancelled(&mut self) {
        if let Some(receiver) = &mut self.0
            && receiver.wait_for(|asked| *asked).await.is_ok()
        {
            return;
        }
        std::future::pending().await
    }
}

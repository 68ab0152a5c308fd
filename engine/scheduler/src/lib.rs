//! The scheduler: which task is next, and where it runs.

pub mod backfill;
#[cfg(feature = "replay")]
pub mod replay;

/// A time or a duration in milliseconds.
pub type Millis = i64;

//! Replays traces in virtual time through the scheduler's own code.

pub mod published;
pub mod swf;
mod trace;

pub use trace::{Job, ReadError, Trace};

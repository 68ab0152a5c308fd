//! Connections to the systems that users already run.
//!
//! Everything here lives on one thread with tokio, beside the shards. It knows neither the engine nor the shards' runtime: what comes
//! in are plain batches, and answers go out through a trait of the caller.
//!
//! Invariants:
//! - Losing a system for any time loses nothing that was accepted: what cannot be written is kept by whoever gave it.
//! - No password, and no address that holds one, appears in an error, a log line or a `Debug` text.

mod backoff;

pub mod kafka;
mod place;
pub mod postgres;
pub mod redis;
pub mod s3;
mod trust;

//! What survives: the write-ahead log, snapshots and the data directory.
//!
//! Invariants: bytes that outlive a call carry a version and a checksum (`docs/formats`); a record is acknowledged only when
//! it is durable; recovery returns all that was acknowledged or an error. Records are opaque bytes: this crate knows neither
//! the engine nor the network.

pub mod buffer;
pub mod copy;
pub mod datadir;
mod field;
pub mod model;
pub mod offload;
mod reading;
pub mod recovery;
pub mod snapshot;
pub mod spill;
pub mod wal;

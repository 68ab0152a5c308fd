//! Connections, listeners and the mesh between shards, on glommio.
//!
//! Invariants: a connection belongs to one shard; bytes are framed and checked here and handed on in place; every buffer
//! has a bound, and a peer that does not read is not read from. The crate knows frames, not what they mean.

pub mod connection;
pub mod listener;
pub mod mesh;
mod socket;
pub mod wake;

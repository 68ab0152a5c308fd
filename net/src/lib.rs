//! Connections, listeners, the mesh between shards, and the links between nodes, on glommio.
//!
//! Invariants: a connection belongs to one shard; bytes are framed and checked here and handed on in place; every buffer
//! has a bound, and a peer that does not read is not read from. The crate knows frames, not what they mean.

pub mod connection;
pub mod gossip;
mod input;
pub mod listener;
pub mod mesh;
mod pace;
pub mod peers;
pub mod resolve;
mod socket;
mod stream;
pub mod wake;

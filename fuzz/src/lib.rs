//! What the fuzz targets share: a shard in virtual time, driven by frames or by actions.
//!
//! Invariants that every run checks: nothing panics, records are numbered without a gap, what the shard sends parses and
//! has its operation's layout, and a shard restarted from its log holds as many tasks as the one that wrote it.

pub mod actions;
pub mod body;
pub mod world;

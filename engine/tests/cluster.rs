//! Several nodes, one shard each: replication, elections, snapshots, moves.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "cluster/net.rs"]
mod net;

#[path = "cluster/replication.rs"]
mod replication;

#[path = "cluster/rest.rs"]
mod rest;

#[path = "cluster/states.rs"]
mod states;

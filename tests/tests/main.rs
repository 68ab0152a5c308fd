//! The integration binary: simulator, real processes, workflows, client against node, and the rules of the house.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod backups;
mod client_node;
mod cluster;
mod contention;
mod crash;
mod disk_full;
mod events;
mod memo;
mod model;
mod policies;
mod postgres;
mod process;
mod refusals;
mod replay;
mod restarts;
mod room;
mod services;
mod shares;
mod simulator;
mod states;
mod streams;
mod tidy;
mod workflows;

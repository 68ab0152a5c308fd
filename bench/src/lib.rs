//! The load generator behind `taskmaster bench`, and its report.
//!
//! [`run()`] drives one running node over TCP as producer and worker at once, in closed-loop saturation or at a fixed rate,
//! and answers with a [`Report`]: throughput, latencies, exactly-once verification, what the node spent, and the floor
//! the machine sets (bare append+flush, loopback round trips) measured in the same run. [`run_nodes`] does it to a cluster,
//! [`run_suite`] runs the cases whose targets the project publishes, [`failover::run`] strikes nodes down under load,
//! [`states::run`] saves tasks' state, [`order::run`] compares policies of queues,
//! [`stragglers::run`] second attempts with none, [`contention::run`] tasks that are kept apart with none that are, and [`idle::measure`] asks what nodes spend on nothing. [`networks`] gives nodes cables
//! that can be pulled.
//!
//! Invariants:
//! - A latency starts at the *intended* time of its submission, so a generator that falls behind cannot hide it
//!   (coordinated omission).
//! - A task counts as done only when its completion was acknowledged; what was acknowledged and never done is `lost`, what
//!   was accepted twice is `duplicated`.
//! - The generator shares the machine with the node: one thread, raw frames, no allocation per frame once warm.
//!
//! It does not start nodes (the binary does), and but for [`failover`] does not survive a lost connection: that ends the run
//! with an error.

mod arrivals;
mod connection;
pub mod contention;
mod control;
pub mod failover;
mod floor;
mod generator;
pub mod idle;
mod ledger;
mod machine;
pub mod networks;
mod options;
pub mod order;
mod report;
mod routes;
mod run;
mod schedule;
pub mod states;
pub mod stragglers;
pub mod stub;
mod submission;
mod suite;

pub use floor::Floor;
pub use machine::{postgres_server, server_cpu_s};
pub use options::{NodeInfo, Options};
pub use report::{Config, Latency, Report};
pub use run::{run, run_nodes};
pub use suite::{Check, SuiteCase, SuiteOptions, SuiteReport, run_suite};

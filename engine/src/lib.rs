//! The task engine as a pure, deterministic state machine.
//!
//! [`Shard::handle`] takes one closed set of inputs and returns what is to be done as [`Effects`] (frames to send) and
//! records to log ([`Shard::end_turn`]). The crate never reads a clock, file, socket or random source, starts no
//! thread and awaits nothing: time is an input, so the simulator and the production loop drive the same code.
//!
//! The path of a logged request: admitted (checked against present state) → proposed to its group → logged → durable on a
//! majority of replicas, which commits it → applied → answered. Nothing is applied, and nothing answered, before that.

pub mod arena;
pub mod checkpoint;
pub mod cluster;
pub mod events;
pub mod wheel;

mod assign;
mod command;
mod contract;
mod dispatch;
mod effects;
mod entry;
mod extra;
mod hash;
mod memo;
mod neighbours;
mod order;
mod outlook;
mod partition;
mod peer;
mod permits;
mod query;
mod queue;
mod refused;
mod replica;
mod reservations;
mod resources;
mod restarts;
mod shard;
mod shares;
mod snapshot;
mod state;
mod streams;
mod task;
mod timer;
mod versions;
mod wishes;
mod workflow;

pub use cluster::{ClusterMap, META_GROUP, Member, Membership, NodeInfo, NodeStatus, Placement};
pub use contract::DEFAULT_NAMESPACE;
pub use effects::{About, ConnId, Effects, Outgoing, Question};
pub use entry::{COMMAND_HEADER_BYTES, EntryError};
pub use memo::known::Known;
pub use memo::{Made, Unknown};
pub use peer::PeerAddr;
pub use query::listing::{StoredPage, StoredPlace};
pub use query::task::memo_note;
pub use queue::policy_number;
pub use refused::Refused;
pub use replica::record;
#[doc(hidden)]
pub use shard::cluster::Standing;
pub use shard::hearing::{Heard, Hearing};
pub use shard::hooks::Planted;
pub use shard::past::{Horizon, Moment};
pub use shard::positions::{Positions, Reached};
pub use shard::snapshots::{SnapshotStep, tag};
pub use shard::{Config, Input, Shard, Stats};
pub use state::{STATES, State};

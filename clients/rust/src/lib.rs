//! Async Rust client and worker for Taskmaster.
//!
//! ```no_run
#![doc = include_str!("../examples/hello.rs")]
//! ```
//!
//! - [`Client`]: submit tasks and workflows, wait for results, ask and operate.
//! - [`Worker`]: run handlers by kind, under leases that are extended for you.
//! - [`Submitter`]: streams of tasks in pipelined batches.
//! - [`TestServer`] and [`Client::in_memory`]: the same API without a node, for unit tests.
//! - [`wire`]: one connection, for raw requests.
//!
//! Delivery is at least once: a worker that loses its lease may run a task that another one runs too; of all completions
//! the server takes the first valid one. Handlers should be idempotent or check [`Context::cancelled`].

pub mod wire;

mod batch;
mod chance;
mod client;
mod cluster;
mod error;
mod memory;
mod queue;
mod routing;
mod shadow;
mod submitter;
mod task;
mod versions;
mod view;
mod worker;
mod workflow;

pub use batch::{SubmitOutcome, Submitted};
pub use chance::{Chance, ChanceUnknown};
pub use client::{
    Addresses, Changes, Client, ClientBuilder, ClusterChange, Exception, StreamPosition, StreamSource, TaskList,
};
pub use error::{Error, Refusal};
pub use memory::TestServer;
pub use queue::{ListPosition, Policy, QueueSettings, TaskFilter};
pub use shadow::{PolicyWaits, Shadow};
pub use submitter::Submitter;
pub use task::{Payload, Priority, Resources, Retries, State, Task};
pub use taskmaster_protocol::{Code, NodeId, PartitionId, TaskId};
pub use versions::{StateBytes, StateChange, StateHistory, Version, VersionView};
pub use view::{
    ClusterView, Counts, Fact, GroupView, NodeStatus, NodeView, Outcome, QueueView, ShardStats, TaskView,
    WorkflowTaskView, WorkflowView,
};
pub use worker::{Context, Measure, TaskError, Used, Worker, WorkerBuilder, WorkerStats};
pub use workflow::{OnFailure, Step, Workflow, WorkflowHandle};

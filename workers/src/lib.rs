//! What a worker does with a task once it has been leased: it runs a built-in kind or a process, under limits, and says
//! how that ended.
//!
//! Reading order: [`job`] (what comes in and what goes out), [`registry`] (which way a kind is run), [`builtin`],
//! [`command`] and [`process`], then [`cgroup`].
//!
//! Invariants:
//! - Dropping the future of [`Registry::execute`] ends every process which it started.
//! - Memory per running task is bounded: [`process::Limits`] bounds the result and the log tail.
//! - Nothing here knows of connections, leases or queues: whoever joins this crate to a client bounds the concurrency,
//!   renews leases, and turns a lost lease into a [`Canceller::cancel`].

pub mod builtin;
pub mod cancel;
pub mod cgroup;
pub mod command;
pub mod job;
pub mod process;
mod readiness;
pub mod registry;
pub mod timer;

pub use cancel::{Cancel, Canceller};
pub use command::Command;
pub use job::{Failure, Finished, Job, Outcome, Progress, ProgressSink, Usage};
pub use process::ProcessExecutor;
pub use registry::Registry;

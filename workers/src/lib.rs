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
//!
//! ```
//! use taskmaster_workers::{Command, Job, Outcome, ProcessExecutor, ProgressSink, Registry, cancel, cgroup, process::Limits};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! let processes = ProcessExecutor::new(Limits::default(), &cgroup::Config::default())?;
//! let registry = Registry::new()
//!     .with_builtins()
//!     .with_processes(processes)
//!     .with_command_for_all(Command::from_exec_argument("tr a-z A-Z"));
//! let job = Job { id: "0190".into(), kind: "shout".into(), attempt: 1, payload: b"hello".into(), ..Job::default() };
//! let (_canceller, cancel) = cancel::pair();
//! let finished = registry.execute(job, cancel, &ProgressSink::none()).await;
//! assert_eq!(finished.outcome, Outcome::Succeeded { result: b"HELLO".into() });
//! # std::io::Result::Ok(()) }).unwrap();
//! ```

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
pub use job::{Failure, Finished, Job, Measured, Outcome, Progress, ProgressSink, Usage};
pub use process::ProcessExecutor;
pub use registry::Registry;

//! Redis: results of memoised tasks, remembered beyond a partition's own memory and shared by everyone who asks, and what is long of
//! ended tasks in the history.
//!
//! Invariants:
//! - What comes back is whole and of the task that was asked for, or is nothing: [`value`] checks it.
//! - No question waits longer than its bound, however the server is; while the server is away none is asked ([`Status::is_away`]).
//! - Nothing that is given to be kept is waited for; what cannot be kept is counted and dropped.
//!
//! What it does not do: decide which result will do, or who runs. That is the engine's.

mod cache;
mod link;
mod settings;
mod standing;
mod status;
mod store;
pub mod value;

pub use cache::{Cache, Row};
pub use link::Error;
pub use settings::Settings;
pub use standing::{Standing, standing};
pub use status::Status;
pub use store::{Answers, Of, Question, RECALL_MAX, Request, serve};
pub use value::Value;

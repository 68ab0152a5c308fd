//! PostgreSQL: final tasks of a cluster, checkpointed in batches and exactly once; a schema with versions.

mod backoff;
mod batch;
mod copy;
mod day;
mod error;
mod leaves;
mod schema;
mod session;
mod settings;
mod status;
mod tls;
mod writer;

pub use batch::{Batch, Contract, FinalTask, Place, Request, Stored};
pub use error::Error;
pub use schema::{SCHEMA_VERSION, migrate, version};
pub use session::{Session, connect};
pub use settings::{Settings, TlsMode};
pub use status::Status;
pub use writer::{Answers, Given, write};

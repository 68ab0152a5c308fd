//! PostgreSQL: final tasks of a cluster, checkpointed in batches and exactly once; a schema with versions.

#[macro_use]
mod sql;

mod batch;
mod copy;
mod day;
mod error;
mod floor;
mod leaves;
mod lister;
mod particulars;
mod past;
mod reader;
mod restore;
mod retention;
mod saved;
mod schema;
mod session;
mod settings;
mod standing;
mod status;
mod tls;
mod writer;

pub use batch::{
    Batch, Contract, FinalTask, Particulars, Place, QueueSetting, Request, Returning, SavedHistory, SavedState,
    SavedVersion, StateChunk, States, Stored,
};
pub use error::Error;
pub use floor::floor;
pub use lister::{HistoryPlace, Listed, Listing, list};
pub use past::ended;
pub use reader::{Found, Question, StoredTask, read};
pub use restore::{Source, adopt, history, queues, sources};
pub use retention::drop_old_days;
pub use schema::{SCHEMA_VERSION, check, migrate, version};
pub use session::{Session, connect};
pub use settings::{Settings, TlsMode};
pub use standing::{Standing, backend, standing};
pub use status::Status;
pub use writer::{Answers, Given, write};

//! What can go wrong with a database, in sentences without secrets.

/// An operating failure. Nothing of what was being written counts, or all of it does: a try again finds out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration cannot be used.
    #[error("{0}")]
    Settings(String),
    /// The server cannot be reached, or does not let us in.
    #[error("PostgreSQL at {place} cannot be used: {reason}")]
    Connect {
        /// Host and port.
        place: String,
        /// Why.
        reason: String,
    },
    /// The schema is not there or older.
    #[error(
        "the database has {found} of Taskmaster's schema, and this program needs version {needed}: run `taskmaster state migrate`"
    )]
    Older {
        /// What was found.
        found: String,
        /// What is needed.
        needed: i32,
    },
    /// The schema is newer.
    #[error(
        "the database has version {found} of Taskmaster's schema, and this program knows only {known}: use a newer program"
    )]
    Newer {
        /// What was found.
        found: i32,
        /// What is known.
        known: i32,
    },
    /// The server's encoding is not UTF-8.
    #[error("the database's encoding is {0}: create one with ENCODING 'UTF8'")]
    Encoding(String),
    /// The server ended the connection, or is gone.
    #[error("the connection to PostgreSQL ended")]
    Ended,
    /// No answer in time.
    #[error("PostgreSQL did not answer within {0:?}")]
    Slow(std::time::Duration),
    /// It has not all that it had, or another one takes its place.
    #[error("the database has the partition's tasks up to number {stands}, and up to {wanted} they were stored")]
    Behind {
        /// Where it stands.
        stands: u64,
        /// Where it stood.
        wanted: u64,
    },
    /// A row that was there is gone, or is none of ours: somebody else writes to the schema.
    #[error("{0} in the database is not as Taskmaster left it")]
    Vanished(&'static str),
    /// A statement failed.
    #[error("{}", said(.0))]
    Statement(#[from] tokio_postgres::Error),
}

impl Error {
    /// Whether the server was there and refused a statement.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self, Self::Statement(error) if error.as_db_error().is_some())
    }
}

/// What the server or the connection said.
pub(super) fn said(error: &tokio_postgres::Error) -> String {
    use std::error::Error as _;
    match (error.as_db_error(), error.source()) {
        (Some(said), _) => {
            let hint = said.hint().map_or_else(String::new, |hint| format!(" ({hint})"));
            format!("{} [{}]{hint}", said.message(), said.code().code())
        }
        (None, Some(source)) => format!("{error}: {source}"),
        (None, None) => error.to_string(),
    }
}

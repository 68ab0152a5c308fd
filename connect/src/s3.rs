//! An object store that speaks S3's protocol: a bucket in which files are written, listed and read.
//!
//! Requests block the thread that makes them. Each is signed in its address, repeated with growing waits while the server or the way
//! to it fails for a while, and moves at most one part of a file, which is all that is in memory.
//!
//! Invariants: neither the secret nor an address that is signed with it appears in an error or a `Debug` text; an upload in parts
//! that does not end well is taken back.

mod bucket;
mod refusal;
mod request;
mod settings;
mod upload;

pub use bucket::{Bucket, Entry, Object};
pub use settings::{Address, Settings};

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address or the environment cannot be used.
    #[error("{0}")]
    Settings(String),
    /// There is no such bucket, or no such object in it.
    #[error("{0}")]
    Missing(String),
    /// The server says no.
    #[error("{0}")]
    Refused(String),
    /// There was no answer that can be used, however often it was tried.
    #[error("{0}")]
    Unreachable(String),
    /// The file that is to be written cannot be read.
    #[error("{0}")]
    File(#[from] std::io::Error),
    /// Somebody asked for an end.
    #[error("it was interrupted")]
    Stopped,
}

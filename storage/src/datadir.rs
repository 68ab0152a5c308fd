//! Data directory.

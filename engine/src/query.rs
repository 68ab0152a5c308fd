//! Queries: read-only answers from a partition's present, durable state.

pub(crate) mod chance;
pub(crate) mod listing;
pub(crate) mod queues;
pub(crate) mod shadow;
pub(crate) mod streams;
pub(crate) mod task;
pub(crate) mod versions;
pub(crate) mod why;
pub(crate) mod workflow;

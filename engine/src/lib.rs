//! The task engine as a pure, deterministic state machine.

pub mod arena;
pub mod wheel;

//! The task engine as a pure, deterministic state machine.

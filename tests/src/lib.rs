//! Integration tests and the deterministic simulator.

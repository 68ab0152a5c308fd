//! The deterministic simulator, as a library. The integration tests are in `tests/`.

pub mod sim;

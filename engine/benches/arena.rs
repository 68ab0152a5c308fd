//! Criterion bench.
fn main() {}

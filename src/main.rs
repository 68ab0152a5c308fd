//! The `taskmaster` binary.

fn main() {}

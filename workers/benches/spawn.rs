//! How many processes per second one executor starts, follows and reaps: `cargo bench -p taskmaster-workers`.
fn main() {}

//! The `taskmaster` binary.

mod config;
mod doctor;
mod output;

fn main() {}

//! The `taskmaster` binary: everything begins in [`cli`].

mod answers;
mod cli;
mod config;
mod doctor;
mod events;
mod foreign;
mod memo;
mod node;
mod output;
mod placement;
mod reachable;
mod report;
mod shard_loop;
mod streams;
mod workers;

fn main() -> std::process::ExitCode {
    cli::main()
}

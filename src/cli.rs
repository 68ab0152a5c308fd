//! The command line: one file per command, global options and the exit codes here.
//!
//! Invariants: answers go to standard output and everything else to standard error; `--output json` prints exactly one
//! JSON value (objects line by line where a command streams); the exit code tells the outcome ([`exit`]).

mod arguments;
mod bench;
mod cluster;
mod completions;
mod config;
mod connect;
mod dev;
mod doctor;
mod embedded;
mod exit;
mod instant;
mod left;
mod log;
mod outcome;
mod progress;
mod queue;
mod replay;
mod run;
mod serve;
mod shadow;
mod signal;
mod sim;
mod state;
mod stream;
mod submit;
mod task;
mod worker;
mod workflow;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

pub(crate) use exit::{Exit, Failure};

use crate::output::{Output, Shape};

/// Exit codes, shown under `--help`.
const AFTER_HELP: &str = "\
Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 refused by the server,
  4 server not reachable, 5 not found, 6 task or workflow did not succeed, 7 timed out,
  130 interrupted.

First steps:
  taskmaster dev                        a node with workers on this machine
  taskmaster submit --kind noop --wait  a first task
  taskmaster run workflow.yaml          a whole workflow, with a report
  taskmaster doctor                     is this machine fit?";

/// A durable, shard-per-core task engine: one binary that keeps tasks safely and runs them fast.
#[derive(Debug, Parser)]
#[command(name = "taskmaster", version, after_help = AFTER_HELP, propagate_version = true, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(Clone, Debug, Args)]
pub(crate) struct Global {
    /// Address of a node [default: 127.0.0.1:7700]
    #[arg(long, global = true, env = "TASKMASTER_ADDR", value_name = "HOST:PORT", help_heading = "Global options")]
    pub(crate) addr: Option<String>,
    /// Shape of answers
    #[arg(long, global = true, value_enum, default_value_t, value_name = "SHAPE", help_heading = "Global options")]
    pub(crate) output: Shape,
    /// Namespace of queues and tasks
    #[arg(long, global = true, env = "TASKMASTER_NAMESPACE", value_name = "NAME", help_heading = "Global options")]
    pub(crate) namespace: Option<String>,
    /// More log lines on standard error (-v debug, -vv trace)
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = "Global options")]
    pub(crate) verbose: u8,
}

impl Global {
    /// The address to connect to.
    pub(crate) fn address(&self) -> &str {
        self.addr.as_deref().unwrap_or("127.0.0.1:7700")
    }

    /// Where answers go.
    pub(crate) fn output(&self) -> Output {
        Output::new(self.output)
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start one node with workers in this process; Ctrl-C drains
    Dev(dev::Arguments),
    /// Run a workflow file to its end, with live progress and a closing report
    Run(Box<run::Arguments>),
    /// Start a node from a configuration file
    Serve(serve::Arguments),
    /// Submit one task, or a stream of tasks from a file
    Submit(Box<submit::Arguments>),
    /// Work on tasks with a command of yours, or with the built-in kinds
    Worker(worker::Arguments),
    /// Look at tasks, cancel and retry them
    #[command(subcommand)]
    Task(task::Command),
    /// Versions of a task's state; finished tasks in a PostgreSQL database
    #[command(subcommand)]
    State(state::Command),
    /// Streams of Kafka that become tasks: where they stand, and whether they can be read
    #[command(subcommand)]
    Stream(stream::Command),
    /// Look at queues, pause, resume, drain and limit them
    #[command(subcommand)]
    Queue(queue::Command),
    /// Look at workflows and cancel them
    #[command(subcommand)]
    Workflow(workflow::Command),
    /// Look at the cluster's nodes and partitions, found, drain and move
    #[command(subcommand)]
    Cluster(cluster::Command),
    /// Measure a node under load; without an address, a node of its own
    Bench(bench::Arguments),
    /// Run whole clusters in virtual time with seeded faults, and check that nothing is lost or doubled
    Sim(sim::Arguments),
    /// Replay a recorded workload in virtual time under the scheduler's policies
    Replay(replay::Arguments),
    /// Check this machine and say how to mend what is wrong
    Doctor(doctor::Arguments),
    /// Check or show a configuration
    #[command(subcommand)]
    Config(config::Command),
    /// Print a completion script for a shell
    Completions(completions::Arguments),
}

/// Reads the command line, carries it out, and turns the outcome into an exit code.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::try_parse().unwrap_or_else(|error| error.exit());
    let global = cli.global;
    match dispatch(&global, cli.command) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            failure.report(global.output);
            failure.exit.into()
        }
    }
}

fn dispatch(global: &Global, command: Command) -> Result<Exit, Failure> {
    match command {
        Command::Dev(arguments) => dev::run(global, &arguments),
        Command::Run(arguments) => run::run(global, &arguments),
        Command::Serve(arguments) => serve::run(global, &arguments),
        Command::Submit(arguments) => submit::run(global, &arguments),
        Command::Worker(arguments) => worker::run(global, &arguments),
        Command::Task(command) => task::run(global, command),
        Command::State(command) => state::run(global, command),
        Command::Stream(command) => stream::run(global, command),
        Command::Queue(command) => queue::run(global, command),
        Command::Workflow(command) => workflow::run(global, command),
        Command::Cluster(command) => cluster::run(global, &command),
        Command::Bench(arguments) => bench::run(global, &arguments),
        Command::Sim(arguments) => sim::run(global, &arguments),
        Command::Replay(arguments) => replay::run(global, &arguments),
        Command::Doctor(arguments) => doctor::run(global, &arguments),
        Command::Config(command) => config::run(global, &command),
        Command::Completions(arguments) => completions::run(&arguments),
    }
}

#[cfg(test)]
mod tests;

//! Workflow files as plans.
//!
//! Two formats come in, one shape goes out: the YAML format of docs/formats/workflow.md and WfCommons instances
//! (WfFormat 1.5, and 1.4 where it differs little) both become a [`Plan`], a flat list of tasks whose parents are
//! indices. A plan that was returned is acyclic, its names are unique, its parents exist and its sizes are within
//! the limits of [`limits`].
//!
//! Invariants: nothing here reads a file (except behind the `instances` feature), a clock, the environment or a
//! socket; the same text and options give the same plan. Hostile text never panics and never makes more than the
//! limits allow. All problems of a file are reported together, each with a stable code and a sentence.
//!
//! What this crate does not do: submit, schedule or run anything.

mod expand;
#[cfg(feature = "instances")]
pub mod instances;
pub mod limits;
mod nearest;
mod order;
mod plan;
mod problem;
mod spec;
mod template;
pub mod units;
mod wfformat;
mod yaml;

pub use order::{Span, Violation, verify_order};
pub use plan::{Capacity, Command, Contract, OnFailure, Plan, PlanTask, Priority, Replay, Resources, Retry, Work};
pub use problem::{Code, Position, Problem, Rejected};
pub use spec::Options;

/// Reads our own YAML format.
///
/// # Errors
/// Every problem found, in the order of the file.
pub fn from_yaml(text: &str, options: &Options) -> Result<Plan, Rejected> {
    let mut problems = Vec::new();
    let plan = read_yaml(text, options, &mut problems);
    match plan {
        Some(plan) if problems.is_empty() => Ok(plan),
        _ => Err(Rejected::new(problems)),
    }
}

fn read_yaml(text: &str, options: &Options, problems: &mut Vec<Problem>) -> Option<Plan> {
    let root = yaml::parse(text, problems)?;
    let spec = spec::decode(&root, options, problems)?;
    if problems.is_empty() {
        return expand::plan(&spec, options, problems);
    }
    if spec.nothing_lost {
        expand::check_names(&spec, problems);
    }
    None
}

/// Reads a WfCommons instance: a recorded execution, every task of it a [`Work::Replay`].
///
/// # Errors
/// Every problem found.
pub fn from_wfformat(text: &str) -> Result<Plan, Rejected> {
    wfformat::parse(text)
}

/// Reads either format: text whose first character (after blanks) is `{` is taken as a WfCommons instance.
///
/// # Errors
/// Every problem found by the reader of that format.
pub fn from_text(text: &str, options: &Options) -> Result<Plan, Rejected> {
    if text.trim_start_matches('\u{feff}').trim_start().starts_with('{') {
        from_wfformat(text)
    } else {
        from_yaml(text, options)
    }
}

//! Which trace it is, by what it begins with.

use std::io::Read;
use std::path::Path;

use taskmaster_scheduler::critical::Graph;
use taskmaster_scheduler::place::{Ask, Worker};
use taskmaster_scheduler::replay::{ReadError, Trace, lora, openb, swf, wfformat};

use crate::cli::{Exit, Failure};

/// What a trace holds.
pub(super) enum Input {
    /// Tasks with times.
    Queue(Trace),
    /// Tasks that need each other.
    Workflow(Graph),
    /// What tasks ask of machines.
    Pods(Vec<Ask>),
}

fn text(path: &Path) -> Result<(String, String), Failure> {
    let is_input = path == Path::new("-");
    let name = if is_input { "standard input".to_owned() } else { path.display().to_string() };
    let read = if is_input {
        let mut bytes = Vec::new();
        std::io::stdin().read_to_end(&mut bytes).map(|_| bytes)
    } else {
        std::fs::read(path)
    };
    let bytes = read.map_err(|error| Failure::new(Exit::NotFound, format!("cannot read {name}: {error}")))?;
    if bytes.starts_with(&[0x1F, 0x8B]) {
        let message = format!("{name} is compressed: `zcat {name} | taskmaster replay --trace - …` reads it");
        return Err(Failure::new(Exit::Usage, message));
    }
    let text = String::from_utf8(bytes)
        .map_err(|_| Failure::new(Exit::Usage, format!("{name} is no text: a trace is SWF, JSON or CSV")))?;
    Ok((name, text))
}

fn broken(error: &ReadError) -> Failure {
    Failure::new(Exit::Usage, error.to_string())
}

/// Reads the trace in a file.
pub(super) fn trace(path: &Path) -> Result<Input, Failure> {
    let (name, text) = text(path)?;
    let first = text.lines().next().unwrap_or_default();
    let read = if text.trim_start().starts_with('{') {
        wfformat::read(&name, &text).map(Input::Workflow)
    } else if first.split(',').any(|column| column == "cpu_milli") {
        openb::pods(&name, &text).map(Input::Pods)
    } else if first.contains(',') {
        lora::read(&name, &text).map(Input::Queue)
    } else {
        swf::read(&name, &text).map(Input::Queue)
    };
    not_empty(&name, read.map_err(|error| broken(&error))?)
}

/// Refuses what has no task.
pub(super) fn not_empty(name: &str, input: Input) -> Result<Input, Failure> {
    let is_empty = match &input {
        Input::Queue(trace) => trace.jobs.is_empty(),
        Input::Workflow(graph) => graph.is_empty(),
        Input::Pods(pods) => pods.is_empty(),
    };
    if is_empty { Err(Failure::new(Exit::Usage, format!("{name} has no task"))) } else { Ok(input) }
}

/// Reads a table of machines.
pub(super) fn machines(path: &Path) -> Result<Vec<Worker>, Failure> {
    let (name, text) = text(path)?;
    openb::nodes(&name, &text).map_err(|error| broken(&error))
}

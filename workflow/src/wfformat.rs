//! WfCommons instances (WfFormat 1.5; 1.4 where the tasks carry everything themselves) as replays.
//!
//! Only what a replay needs is read; unknown keys are left alone, since the format grows. A parent that only the
//! parent's `children` name is honoured too, with a warning. The recorded run time is the execution's
//! `runtimeInSeconds`; sizes are the sums over the task's files.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Deserialize;

use crate::expand::cycle_sentence;
use crate::limits;
use crate::nearest::did_you_mean;
use crate::plan::bounds::{index, number};
use crate::plan::{Contract, OnFailure, Plan, PlanTask, Replay, Work};
use crate::problem::{Code, Position, Problem, Rejected};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Instance {
    #[serde(default)]
    name: String,
    workflow: Workflow,
}

#[derive(Deserialize)]
struct Workflow {
    specification: Option<Specification>,
    execution: Option<Execution>,
    /// 1.4: tasks without the split into specification and execution.
    tasks: Option<Vec<Task>>,
}

#[derive(Deserialize)]
struct Specification {
    tasks: Vec<Task>,
    #[serde(default)]
    files: Vec<File>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Task {
    name: String,
    id: Option<String>,
    #[serde(default)]
    parents: Vec<String>,
    #[serde(default)]
    children: Vec<String>,
    #[serde(default)]
    input_files: Vec<String>,
    #[serde(default)]
    output_files: Vec<String>,
    /// 1.4: files inside the task.
    #[serde(default)]
    files: Vec<LinkedFile>,
    #[serde(flatten)]
    measured: Measured,
}

impl Task {
    fn id(&self) -> &str {
        self.id.as_deref().unwrap_or(&self.name)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    id: String,
    size_in_bytes: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LinkedFile {
    link: String,
    #[serde(alias = "size")]
    size_in_bytes: u64,
}

#[derive(Deserialize)]
struct Execution {
    tasks: Vec<Executed>,
}

#[derive(Deserialize)]
struct Executed {
    id: String,
    command: Option<Program>,
    #[serde(flatten)]
    measured: Measured,
}

#[derive(Deserialize)]
struct Program {
    program: Option<String>,
}

#[derive(Deserialize, Clone, Copy)]
struct Measured {
    #[serde(rename = "runtimeInSeconds", alias = "runtime")]
    runtime_s: Option<f64>,
    #[serde(rename = "avgCPU")]
    avg_cpu_percent: Option<f64>,
    #[serde(rename = "memoryInBytes")]
    memory_bytes: Option<f64>,
    #[serde(rename = "coreCount", alias = "cores")]
    cores: Option<f64>,
}

pub(crate) fn parse(text: &str) -> Result<Plan, Rejected> {
    let mut problems = Vec::new();
    let plan = read(text, &mut problems).and_then(|instance| plan(&instance, &mut problems));
    match plan {
        Some(plan) if problems.is_empty() => Ok(plan),
        _ => Err(Rejected::new(problems)),
    }
}

fn read(text: &str, problems: &mut Vec<Problem>) -> Option<Instance> {
    if text.len() > limits::JSON_BYTES_MAX {
        let sentence = format!("the file has {} bytes; an instance has at most {}", text.len(), limits::JSON_BYTES_MAX);
        problems.push(Problem::new(Code::FileTooLarge, None, sentence));
        return None;
    }
    let error = match serde_json::from_str(text.trim_start_matches('\u{feff}')) {
        Ok(instance) => return Some(instance),
        Err(error) => error,
    };
    let at = (error.line() > 0).then(|| Position { line: error.line(), column: error.column().max(1) });
    let message = error.to_string();
    let message = message.split(" at line ").next().unwrap_or_default();
    problems.push(if error.is_data() {
        Problem::new(Code::JsonShape, at, format!("not a WfCommons instance: {message}"))
    } else {
        let cut = if error.is_eof() { "the file ends too early" } else { "not JSON" };
        Problem::new(Code::JsonSyntax, at, format!("{cut}: {message}"))
    });
    None
}

/// Tasks with what was measured of each, whichever version said it.
struct Recorded<'a> {
    tasks: &'a [Task],
    executed: HashMap<&'a str, &'a Executed>,
    sizes: HashMap<&'a str, u64>,
    /// Index by id, and by name where no id is equal.
    places: HashMap<&'a str, usize>,
}

fn plan(instance: &Instance, problems: &mut Vec<Problem>) -> Option<Plan> {
    let recorded = recorded(&instance.workflow, problems)?;
    let mut warnings = Vec::new();
    let parents = parents(&recorded, problems, &mut warnings)?;
    let mut plan = Plan {
        name: instance.name.clone(),
        tasks: Vec::with_capacity(recorded.tasks.len()),
        on_failure: OnFailure::default(),
        warnings,
    };
    if plan.name.is_empty() {
        plan.name = "instance".to_owned();
    }
    check_name(&plan.name, "the workflow's name", problems);
    let contract = Arc::new(Contract::default());
    for (task, parents) in recorded.tasks.iter().zip(parents) {
        let Some(replay) = replay(&recorded, task, problems, &mut plan.warnings) else { continue };
        let program = recorded.executed.get(task.id()).and_then(|run| run.command.as_ref()?.program.clone());
        plan.tasks.push(PlanTask {
            name: task.id().to_owned(),
            group: program.unwrap_or_else(|| category(&task.name).to_owned()),
            parents,
            work: Work::Replay(replay),
            contract: Arc::clone(&contract),
        });
    }
    if !problems.is_empty() {
        return None;
    }
    if let Err(cycle) = plan.sort() {
        let names = cycle.iter().map(|&task| plan.tasks[index(task)].name.as_str());
        problems.push(Problem::new(Code::Cycle, None, cycle_sentence(names)));
        return None;
    }
    Some(plan)
}

/// Names go to terminals and into frames: no control characters, bounded, not empty.
fn check_name(name: &str, what: &str, problems: &mut Vec<Problem>) {
    if name.is_empty() || name.len() > limits::NAME_BYTES_MAX || name.chars().any(char::is_control) {
        let most = limits::NAME_BYTES_MAX;
        let shown: String = name.escape_debug().take(most).collect();
        let sentence = format!("{what} cannot be '{shown}': it has 1 to {most} bytes and no control characters");
        problems.push(Problem::new(Code::BadName, None, sentence));
    }
}

/// `mProject_ID0000001` without its number: what tasks of one program have in common.
fn category(name: &str) -> &str {
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let stem = stem.strip_suffix("ID").unwrap_or(stem).trim_end_matches(['_', '-']);
    if stem.is_empty() { name } else { stem }
}

fn recorded<'a>(workflow: &'a Workflow, problems: &mut Vec<Problem>) -> Option<Recorded<'a>> {
    let (tasks, files): (&[Task], &[File]) = match (&workflow.specification, &workflow.tasks) {
        (Some(specification), _) => (&specification.tasks, &specification.files),
        (None, Some(tasks)) => (tasks, &[]),
        (None, None) => {
            let sentence = "not a WfCommons instance: 'workflow' has no 'specification'";
            problems.push(Problem::new(Code::JsonShape, None, sentence));
            return None;
        }
    };
    if tasks.is_empty() {
        problems.push(Problem::new(Code::EmptyWorkflow, None, "the instance has no tasks"));
        return None;
    }
    if tasks.len() > limits::TASKS_MAX {
        let sentence = format!("the instance has {} tasks; a workflow has at most {}", tasks.len(), limits::TASKS_MAX);
        problems.push(Problem::new(Code::TooManyTasks, None, sentence));
        return None;
    }
    let mut places = HashMap::with_capacity(tasks.len());
    for (place, task) in tasks.iter().enumerate() {
        check_name(task.id(), "a task's id", problems);
        if places.insert(task.id(), place).is_some() {
            let sentence = format!("two tasks have the id '{}'", task.id());
            problems.push(Problem::new(Code::DuplicateName, None, sentence));
        }
    }
    for (place, task) in tasks.iter().enumerate() {
        places.entry(&task.name).or_insert(place);
    }
    let runs = workflow.execution.as_ref().map_or(&[][..], |execution| &execution.tasks);
    for run in runs.iter().filter(|run| !places.contains_key(&*run.id)) {
        let sentence = format!("the execution records '{}', which the specification does not have", run.id);
        problems.push(Problem::new(Code::UnknownExecution, None, sentence));
    }
    let executed = runs.iter().map(|run| (&*run.id, run)).collect();
    let sizes = files.iter().map(|file| (&*file.id, file.size_in_bytes)).collect();
    Some(Recorded { tasks, executed, sizes, places })
}

fn parents(recorded: &Recorded<'_>, problems: &mut Vec<Problem>, warnings: &mut Vec<Problem>) -> Option<Vec<Vec<u32>>> {
    let mut parents: Vec<Vec<u32>> = vec![Vec::new(); recorded.tasks.len()];
    let mut dependencies = 0_usize;
    for (place, task) in recorded.tasks.iter().enumerate() {
        for name in &task.parents {
            if let Some(parent) = look_up(recorded, task, "parent", name, problems) {
                parents[place].push(number(parent));
                dependencies += 1;
            }
        }
    }
    for own in &mut parents {
        own.sort_unstable();
        own.dedup();
    }
    let mut by_children: Vec<Vec<u32>> = vec![Vec::new(); recorded.tasks.len()];
    let mut only_children = 0_usize;
    for (place, task) in recorded.tasks.iter().enumerate() {
        for name in &task.children {
            if let Some(child) = look_up(recorded, task, "child", name, problems)
                && parents[child].binary_search(&number(place)).is_err()
            {
                by_children[child].push(number(place));
                only_children += 1;
            }
        }
    }
    for (own, more) in parents.iter_mut().zip(by_children).filter(|(_, more)| !more.is_empty()) {
        own.extend(more);
        own.sort_unstable();
        own.dedup();
    }
    dependencies += only_children;
    if dependencies > limits::DEPENDENCIES_MAX {
        let most = limits::DEPENDENCIES_MAX;
        let sentence = format!("the instance has {dependencies} dependencies; a workflow has at most {most}");
        problems.push(Problem::new(Code::TooManyDependencies, None, sentence));
    }
    if only_children > 0 {
        let sentence = format!("{only_children} dependencies stand only under 'children'; they are honoured");
        warnings.push(Problem::new(Code::AsymmetricEdges, None, sentence));
    }
    problems.is_empty().then_some(parents)
}

fn look_up(recorded: &Recorded<'_>, task: &Task, role: &str, name: &str, problems: &mut Vec<Problem>) -> Option<usize> {
    let place = recorded.places.get(name).copied();
    if place.is_none() && problems.len() < Rejected::PROBLEMS_MAX {
        let advice = did_you_mean(name, recorded.tasks.iter().map(Task::id));
        let sentence = format!("task '{}' has the {role} '{name}', which does not exist{advice}", task.id());
        problems.push(Problem::new(Code::UnknownTask, None, sentence));
    }
    place
}

fn replay(
    recorded: &Recorded<'_>,
    task: &Task,
    problems: &mut Vec<Problem>,
    warnings: &mut Vec<Problem>,
) -> Option<Replay> {
    const RUNTIME_S_MAX: f64 = 10.0 * 366.0 * 86_400.0;
    let measured = recorded.executed.get(task.id()).map_or(task.measured, |run| run.measured);
    let Some(runtime_s) = measured.runtime_s else {
        let sentence = format!("task '{}' has no 'runtimeInSeconds' under 'workflow.execution.tasks'", task.id());
        problems.push(Problem::new(Code::MissingRuntime, None, sentence));
        return None;
    };
    if !(0.0..=RUNTIME_S_MAX).contains(&runtime_s) {
        let sentence = format!("task '{}' ran for {runtime_s} s; a run time is from 0 to ten years", task.id());
        problems.push(Problem::new(Code::BadRuntime, None, sentence));
        return None;
    }
    let linked = |link: &str| -> u64 {
        task.files.iter().filter(|file| file.link == link).fold(0, |sum, file| sum.saturating_add(file.size_in_bytes))
    };
    let mut unknown = 0_usize;
    let mut sum = |names: &[String]| -> u64 {
        names.iter().fold(0, |sum: u64, name| match recorded.sizes.get(name.as_str()) {
            Some(size) => sum.saturating_add(*size),
            None => {
                unknown += 1;
                sum
            }
        })
    };
    let (input_bytes, output_bytes) = (sum(&task.input_files), sum(&task.output_files));
    if unknown > 0 && warnings.len() < Rejected::PROBLEMS_MAX {
        let sentence = format!("task '{}' names {unknown} files without a size; they count as empty", task.id());
        warnings.push(Problem::new(Code::UnknownFile, None, sentence));
    }
    Some(Replay {
        runtime_s,
        memory_bytes: whole(measured.memory_bytes.unwrap_or(0.0)),
        input_bytes: input_bytes.saturating_add(linked("input")),
        output_bytes: output_bytes.saturating_add(linked("output")),
        avg_cpu_percent: measured.avg_cpu_percent.unwrap_or(0.0).max(0.0),
        cores: measured.cores.unwrap_or(1.0).max(0.0),
    })
}

/// Recorded bytes, which some recorders write with a fraction.
fn whole(bytes: f64) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a saturating cast of a clamped value")]
    let whole = bytes.max(0.0).round() as u64;
    whole
}

//! Workflows recorded in WfFormat (wfcommons), as graphs of tasks with their run times.

use std::collections::HashMap;

use serde_json::Value;

use crate::Millis;
use crate::critical::{Graph, GraphError};
use crate::replay::ReadError;

/// The longest run time that is taken for one, in seconds: 10 years.
const SECONDS_MAX: f64 = 3.2e8;

fn list<'a>(value: &'a Value, path: &[&str]) -> Option<&'a Vec<Value>> {
    path.iter().try_fold(value, |value, name| value.get(name))?.as_array()
}

/// Reads a workflow; `file` is the name in errors, which name a line only where the JSON itself is broken.
///
/// # Errors
/// When it is no WfFormat, a run time is no time, or tasks need each other in a ring.
pub fn read(file: &str, text: &str) -> Result<Graph, ReadError> {
    let value: Value =
        serde_json::from_str(text).map_err(|error| ReadError::new(file, error.line(), error.to_string()))?;
    let bad = |what: String| ReadError::new(file, 1, what);
    let tasks = list(&value, &["workflow", "specification", "tasks"]);
    let tasks = tasks.ok_or_else(|| bad("no workflow.specification.tasks".to_owned()))?;
    let runs = list(&value, &["workflow", "execution", "tasks"]);
    let runs = runs.ok_or_else(|| bad("no workflow.execution.tasks".to_owned()))?;
    let id = |task: &Value| task.get("id").and_then(Value::as_str).map(str::to_owned);
    let mut places: HashMap<String, usize> = HashMap::new();
    for (place, task) in tasks.iter().enumerate() {
        let id = id(task).ok_or_else(|| bad(format!("task {place} has no id")))?;
        if places.insert(id.clone(), place).is_some() {
            return Err(bad(format!("two tasks are {id:?}")));
        }
    }
    let mut durations: Vec<Millis> = vec![0; tasks.len()];
    for run in runs {
        let id = id(run).ok_or_else(|| bad("a run has no id".to_owned()))?;
        let place = *places.get(&id).ok_or_else(|| bad(format!("{id:?} ran but is no task")))?;
        let seconds = run.get("runtimeInSeconds").and_then(Value::as_f64);
        let seconds = seconds.filter(|seconds| (0.0..=SECONDS_MAX).contains(seconds));
        let seconds = seconds.ok_or_else(|| bad(format!("{id:?}: its runtimeInSeconds is no time")))?;
        #[expect(clippy::cast_possible_truncation, reason = "bounded above")]
        let millis = (seconds * 1000.0).round() as Millis;
        durations[place] = millis;
    }
    let mut needs: Vec<Vec<usize>> = vec![Vec::new(); tasks.len()];
    for (place, task) in tasks.iter().enumerate() {
        for parent in task.get("parents").and_then(Value::as_array).into_iter().flatten() {
            let name = parent.as_str().unwrap_or_default();
            let other = places.get(name).ok_or_else(|| bad(format!("task {place} needs {name:?}, which is none")))?;
            needs[place].push(*other);
        }
    }
    graph(&durations, &needs).ok_or_else(|| bad("tasks need each other in a ring".to_owned()))
}

/// Numbers the tasks so that each comes after what it needs.
fn graph(durations: &[Millis], needs: &[Vec<usize>]) -> Option<Graph> {
    let mut needed_by = vec![Vec::new(); durations.len()];
    let mut missing: Vec<usize> = needs.iter().map(Vec::len).collect();
    for (task, before) in needs.iter().enumerate() {
        for other in before {
            needed_by[*other].push(task);
        }
    }
    let mut order: Vec<usize> = (0..durations.len()).filter(|task| missing[*task] == 0).collect();
    let mut next = 0;
    while let Some(task) = order.get(next).copied() {
        next += 1;
        for other in &needed_by[task] {
            missing[*other] -= 1;
            if missing[*other] == 0 {
                order.push(*other);
            }
        }
    }
    let mut number = vec![None; durations.len()];
    for (place, task) in (0u32..).zip(&order) {
        number[*task] = Some(place);
    }
    let sorted = order.iter().map(|task| durations[*task]).collect();
    let before = |task: &usize| needs[*task].iter().map(|other| number[*other]).collect::<Option<Vec<u32>>>();
    let needs = order.iter().map(before).collect::<Option<Vec<_>>>()?;
    let made: Result<Graph, GraphError> = Graph::new(sorted, needs);
    made.ok().filter(|graph| graph.len() == durations.len())
}

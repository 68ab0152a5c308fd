//! Workflows recorded in WfFormat (wfcommons), as graphs of tasks with their run times.

mod lines;

use std::collections::HashMap;

use serde_json::Value;

use crate::Millis;
use crate::critical::{Graph, GraphError};
use crate::replay::ReadError;

/// The longest run time that is taken for one, in seconds: 10 years.
const SECONDS_MAX: f64 = 3.2e8;

/// Where its lists are.
const TASKS: [&str; 3] = ["workflow", "specification", "tasks"];
const RUNS: [&str; 3] = ["workflow", "execution", "tasks"];

fn list<'a>(value: &'a Value, path: &[&str]) -> Option<&'a Vec<Value>> {
    path.iter().try_fold(value, |value, name| value.get(name))?.as_array()
}

/// Reads a workflow; `file` is the name in errors.
///
/// # Errors
/// With file and line, and the task's id, when it is no WfFormat, a run time is no time, or tasks need each other in a ring.
pub fn read(file: &str, text: &str) -> Result<Graph, ReadError> {
    let value: Value =
        serde_json::from_str(text).map_err(|error| ReadError::new(file, error.line(), error.to_string()))?;
    let missing = |path: &[&str]| ReadError::new(file, lines::at(text, path), format!("no list {}", path.join(".")));
    let tasks = list(&value, &TASKS).ok_or_else(|| missing(&TASKS))?;
    let runs = list(&value, &RUNS).ok_or_else(|| missing(&RUNS))?;
    let bad = |place: usize, what: String| ReadError::new(file, lines::of_element(text, &TASKS, place), what);
    let mut places: HashMap<&str, usize> = HashMap::new();
    for (place, task) in tasks.iter().enumerate() {
        let id = id(task).ok_or_else(|| bad(place, format!("task {place} has no id")))?;
        if places.insert(id, place).is_some() {
            return Err(bad(place, format!("two tasks are {id:?}")));
        }
    }
    let mut durations: Vec<Millis> = vec![0; tasks.len()];
    for (number, run) in runs.iter().enumerate() {
        let (place, millis) =
            ran(run, &places).map_err(|what| ReadError::new(file, lines::of_element(text, &RUNS, number), what))?;
        durations[place] = millis;
    }
    let mut needs: Vec<Vec<usize>> = vec![Vec::new(); tasks.len()];
    for (place, task) in tasks.iter().enumerate() {
        for parent in task.get("parents").and_then(Value::as_array).into_iter().flatten() {
            let name = parent.as_str().unwrap_or_default();
            let none = || bad(place, format!("{:?} needs {name:?}, which is no task", id(task).unwrap_or_default()));
            needs[place].push(*places.get(name).ok_or_else(none)?);
        }
    }
    graph(&durations, &needs).map_err(|place| {
        let id = tasks.get(place).and_then(id).unwrap_or_default();
        bad(place, format!("{id:?} is in a ring of tasks that need each other"))
    })
}

fn id(task: &Value) -> Option<&str> {
    task.get("id").and_then(Value::as_str)
}

/// Which task ran, and for how long.
fn ran(run: &Value, places: &HashMap<&str, usize>) -> Result<(usize, Millis), String> {
    let id = id(run).ok_or("a run has no id")?;
    let place = *places.get(id).ok_or_else(|| format!("{id:?} ran but is no task"))?;
    let seconds = run.get("runtimeInSeconds").and_then(Value::as_f64);
    let seconds = seconds.filter(|seconds| (0.0..=SECONDS_MAX).contains(seconds));
    let seconds = seconds.ok_or_else(|| format!("{id:?}: its runtimeInSeconds is no time"))?;
    #[expect(clippy::cast_possible_truncation, reason = "bounded above")]
    let millis = (seconds * 1000.0).round() as Millis;
    Ok((place, millis))
}

/// A task of a ring: from one that is in a ring or behind one, what keeps it waiting, as often as there are tasks.
fn in_ring(missing: &[usize], needs: &[Vec<usize>]) -> usize {
    let mut task = missing.iter().position(|missing| *missing > 0).unwrap_or(0);
    for _ in 0..needs.len() {
        task = needs[task].iter().copied().find(|other| missing[*other] > 0).unwrap_or(task);
    }
    task
}

/// Numbers the tasks so that each comes after what it needs; else gives one that is in a ring.
fn graph(durations: &[Millis], needs: &[Vec<usize>]) -> Result<Graph, usize> {
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
    let ring = || in_ring(&missing, needs);
    let mut number = vec![None; durations.len()];
    for (place, task) in (0u32..).zip(&order) {
        number[*task] = Some(place);
    }
    let sorted = order.iter().map(|task| durations[*task]).collect();
    let before = |task: &usize| needs[*task].iter().map(|other| number[*other]).collect::<Option<Vec<u32>>>();
    let needs = order.iter().map(before).collect::<Option<Vec<_>>>().ok_or_else(ring)?;
    let made: Result<Graph, GraphError> = Graph::new(sorted, needs);
    made.ok().filter(|graph| graph.len() == durations.len()).ok_or_else(ring)
}

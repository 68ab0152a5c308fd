//! Projects of PSPLIB in Patterson's format (`.rcp`), and its lists of the shortest schedules known (`hrs.sm`).

use crate::critical::project::Project;
use crate::replay::ReadError;

/// Reads a project; `file` is the name in errors.
///
/// # Errors
/// With file and line, when it is broken.
pub fn read(file: &str, text: &str) -> Result<Project, ReadError> {
    let lines = (1..).zip(text.lines());
    let mut words = lines.flat_map(|(line, row)| row.split_ascii_whitespace().map(move |word| (line, word)));
    let mut last = 1;
    let mut number = |what: &str| {
        let (line, word) = words.next().ok_or_else(|| ReadError::new(file, last, format!("no {what}")))?;
        last = line;
        word.parse::<u32>().map_err(|_| ReadError::new(file, line, format!("{what}: {word:?}")))
    };
    let (tasks, resources) = (number("number of tasks")?, number("number of resources")?);
    if tasks > 100_000 || resources > 64 {
        return Err(ReadError::new(file, 1, format!("{tasks} tasks with {resources} resources are too many")));
    }
    let capacities = (0..resources).map(|_| number("capacity")).collect::<Result<Vec<_>, _>>()?;
    let (mut durations, mut demands, mut after) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..tasks {
        durations.push(number("duration")?);
        demands.push((0..resources).map(|_| number("demand")).collect::<Result<Vec<_>, _>>()?);
        let count = number("number of successors")?;
        let mut next = Vec::new();
        for _ in 0..count.min(tasks) {
            let successor = number("successor")?;
            next.push(successor.wrapping_sub(1));
        }
        after.push(next);
    }
    Project::new(durations, &demands, &capacities, after).map_err(|error| ReadError::new(file, 1, format!("{error:?}")))
}

/// Reads the shortest known lengths: parameter, instance, length.
#[must_use]
pub fn known(text: &str) -> Vec<(u32, u32, u32)> {
    let row = |line: &str| {
        let mut numbers = line.split_ascii_whitespace().map(str::parse::<u32>);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?))
    };
    text.lines().filter_map(row).collect()
}

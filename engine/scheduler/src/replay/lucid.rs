//! Measured pairs of training jobs on one GPU (Lucid, ASPLOS 2023).

use crate::place::contention::{Profile, Sample};
use crate::replay::ReadError;

/// Jobs with what they use alone, and the pairs.
#[derive(Clone, Debug, PartialEq)]
pub struct Pairs {
    /// What each job uses alone.
    pub profiles: Vec<Profile>,
    /// For each pair both directions, next to each other.
    pub samples: Vec<[Sample; 2]>,
}

fn number(file: &str, line: usize, cell: Option<&str>, most: f32) -> Result<f32, ReadError> {
    let cell = cell.unwrap_or_default();
    let value = cell.parse::<f32>().ok().filter(|value| (0.0..=most).contains(value));
    value.ok_or_else(|| ReadError::new(file, line, format!("{cell:?} is no number from 0 to {most}")))
}

/// Reads jobs and pairs; the files are named in errors.
///
/// # Errors
/// With file and line.
pub fn read(alone: (&str, &str), pairs: (&str, &str)) -> Result<Pairs, ReadError> {
    let mut names: Vec<[String; 4]> = Vec::new();
    let mut profiles = Vec::new();
    for (line, row) in (1..).zip(alone.1.lines()).skip(1) {
        let cells: Vec<&str> = row.trim_end().split(',').collect();
        let name = |place: usize| cells.get(place).copied().unwrap_or_default().to_owned();
        names.push([name(0), name(1), name(2), name(3)]);
        let measure = |place: usize, most: f32| number(alone.0, line, cells.get(place).copied(), most);
        profiles.push([measure(5, 100.0)? / 100.0, measure(6, 100.0)? / 100.0, measure(7, 1e6)? / 24_000.0]);
    }
    let mut samples = Vec::new();
    for (line, row) in (1..).zip(pairs.1.lines()).skip(1) {
        let cells: Vec<&str> = row.trim_end().split(',').collect();
        let job = |first: usize| {
            let name = [0, 1, 3, 4].map(|place| cells.get(first + place).copied().unwrap_or_default().to_owned());
            let place = names.iter().position(|other| *other == name);
            place.ok_or_else(|| ReadError::new(pairs.0, line, format!("{name:?} was not measured alone")))
        };
        let (a, b) = (job(1)?, job(7)?);
        let speed = |place: usize| number(pairs.0, line, cells.get(place).copied(), 10.0);
        samples.push([Sample { task: a, other: b, speed: speed(6)? }, Sample { task: b, other: a, speed: speed(12)? }]);
    }
    Ok(Pairs { profiles, samples })
}

//! Problems of a configuration, as sentences with lines, and the nearest known name for a mistyped one.

use std::fmt;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    /// Line of the file, from 1; `None` for the environment and the whole.
    pub(crate) line: Option<usize>,
    /// What is wrong and what would be right.
    pub(crate) message: String,
}

impl Problem {
    /// A problem of one line.
    pub(crate) fn at(line: usize, message: String) -> Self {
        Self { line: Some(line), message }
    }

    /// A problem of no line.
    pub(crate) fn global(message: String) -> Self {
        Self { line: None, message }
    }
}

/// A configuration that was refused. Nothing of it is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Error {
    /// Name of the file.
    pub(crate) name: String,
    /// Every problem, in the order of the file and then of the environment; never empty.
    pub(crate) problems: Vec<Problem>,
}

impl Error {
    /// An error of one problem without a line.
    pub(crate) fn one(name: String, message: String) -> Self {
        Self { name, problems: vec![Problem::global(message)] }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            match problem.line {
                Some(line) => write!(f, "{}:{line}: {}", self.name, problem.message)?,
                None => write!(f, "{}: {}", self.name, problem.message)?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// The tail of a sentence: `; did you mean 'x'?` for the nearest candidate, or nothing when none is near.
pub(crate) fn did_you_mean<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> String {
    let allowed = (word.chars().count() / 3).max(1);
    candidates
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|&(distance, candidate)| distance <= allowed || is_part(word, candidate))
        .min_by_key(|&(distance, _)| distance)
        .map_or_else(String::new, |(_, name)| format!("; did you mean '{name}'?"))
}

/// Whether one is a whole word of the other (`memory_max` and `memory`).
fn is_part(word: &str, candidate: &str) -> bool {
    word.split('_').any(|part| part == candidate) || candidate.split('_').any(|part| part == word)
}

/// Edits between two words: insertion, removal, replacement.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_suggested_and_far_ones_are_not() {
        let names = ["data_dir", "shards", "memory", "retention"];
        let near = |word| did_you_mean(word, names.into_iter());
        assert_eq!(near("shard"), "; did you mean 'shards'?");
        assert_eq!(near("datadir"), "; did you mean 'data_dir'?");
        assert_eq!(near("memory_max"), "; did you mean 'memory'?");
        assert_eq!(near("colour"), "");
        assert_eq!(near(""), "");
    }
}

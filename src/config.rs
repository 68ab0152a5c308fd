//! The node's configuration: a TOML file, overridden by environment variables, every value checked with a sentence.
//!
//! Order of precedence, weakest first: the defaults below, the file, variables named `TASKMASTER_SECTION__KEY`.
//! A variable without the double underscore (such as `TASKMASTER_ADDR`) is no setting and is left alone.
//!
//! Invariants:
//! - A [`Config`] that was returned is in range in every field; nobody checks again.
//! - An unknown section, key or variable is refused, with its line and the nearest known name.
//! - All problems of a file and its environment are reported together.
//!
//! - A node is one of a cluster exactly when the section `cluster` is there, in the file or by a variable.
//!
//! What it does not do: read the machine (core count, memory) except in [`Config::memory_bytes`] and
//! [`Config::shard_count`], or create anything.

mod cluster;
mod error;
mod events;
mod kafka;
mod machine;
mod postgres;
mod redis;
mod secret;
mod sections;
mod setting;
mod streams;
mod value;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

pub(crate) use error::{Error, Problem, did_you_mean};
pub(crate) use machine::{core_count, memory_limit_bytes};
pub(crate) use secret::DatabaseUrl;
pub(crate) use sections::Config;
pub(crate) use setting::Raw;
pub(crate) use streams::Stream;
pub(crate) use value::{ByteSize, Format, Interval, Level, Memory, ShardPorts};

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Nothing was said.
    Default,
    /// The file, at this line.
    File(usize),
    /// An environment variable.
    Environment,
}

/// A configuration with the origin of each value.
#[derive(Clone, Debug)]
pub(crate) struct Loaded {
    /// The values in force.
    pub(crate) config: Config,
    /// Origin by `section.key`; absent means default.
    pub(crate) origins: BTreeMap<String, Origin>,
}

/// Prefix of environment variables.
const VARIABLE_PREFIX: &str = "TASKMASTER_";

/// Reads a file (or, without one, only the defaults) and the process environment.
///
/// # Errors
/// The file cannot be read, or every problem found in it and in the environment.
pub(crate) fn load(file: Option<&Path>) -> Result<Loaded, Error> {
    let text = match file {
        Some(path) => std::fs::read_to_string(path)
            .map_err(|error| Error::one(path.display().to_string(), format!("cannot be read: {error}")))?,
        None => String::new(),
    };
    let name = file.map_or_else(|| "configuration".to_owned(), |path| path.display().to_string());
    parse(&name, &text, variables(std::env::vars_os()))
}

/// Whether a variable of the environment overrides the configuration.
pub(crate) fn is_setting(variable: &str) -> bool {
    setting(variable).is_some()
}

/// What such a variable sets: its name after the prefix.
fn setting(variable: &str) -> Option<&str> {
    variable.strip_prefix(VARIABLE_PREFIX).filter(|rest| rest.contains("__"))
}

/// The settings among environment variables: name after the prefix, and value.
fn variables(all: impl Iterator<Item = (OsString, OsString)>) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = all
        .filter_map(|(name, value)| {
            let name = name.into_string().ok()?;
            Some((setting(&name)?.to_owned(), value.to_string_lossy().into_owned()))
        })
        .collect();
    found.sort();
    found
}

/// Reads TOML text and overrides.
///
/// # Errors
/// Every problem found.
pub(crate) fn parse(name: &str, text: &str, variables: Vec<(String, String)>) -> Result<Loaded, Error> {
    let mut loaded = Loaded { config: Config::default(), origins: BTreeMap::new() };
    let mut problems = Vec::new();
    match DeTable::parse(text) {
        Ok(table) => apply_file(&mut loaded, text, table.get_ref(), &mut problems),
        Err(error) => problems.push(Problem {
            line: error.span().map(|span| line_of(text, span.start)),
            message: format!("is not TOML: {}", error.message()),
        }),
    }
    // TOML tables come sorted by name; people read files from top to bottom.
    problems.sort_by_key(|problem| problem.line);
    for (variable, value) in variables {
        apply_variable(&mut loaded, &variable, &value, &mut problems);
    }
    loaded.config.check_together(&mut problems);
    if problems.is_empty() { Ok(loaded) } else { Err(Error { name: name.to_owned(), problems }) }
}

fn apply_file(loaded: &mut Loaded, text: &str, root: &DeTable<'_>, problems: &mut Vec<Problem>) {
    for (section, table) in root {
        let line = line_of(text, section.span().start);
        let section: &str = section.get_ref();
        if section == streams::SECTION {
            streams::read(loaded, text, table, problems);
            continue;
        }
        if section == events::SECTION {
            events::read(loaded, text, table, problems);
            continue;
        }
        let Some(keys) = Config::keys(section) else {
            let others = [streams::SECTION, events::SECTION];
            let hint = did_you_mean(section, Config::SECTIONS.iter().copied().chain(others));
            problems.push(Problem::at(line, format!("unknown section [{section}]{hint}")));
            continue;
        };
        let Some(table) = table.get_ref().as_table() else {
            problems.push(Problem::at(line, format!("'{section}' is a section: write [{section}] and its keys below")));
            continue;
        };
        loaded.config.meet(section);
        for (key, value) in table {
            let line = line_of(text, key.span().start);
            let key: &str = key.get_ref();
            if !keys.contains(&key) {
                problems.push(Problem::at(line, unknown_key(section, key, keys)));
                continue;
            }
            match raw(value).and_then(|raw| loaded.config.set(section, key, &raw)) {
                Ok(()) => drop(loaded.origins.insert(format!("{section}.{key}"), Origin::File(line))),
                Err(message) => problems.push(Problem::at(line, format!("{section}.{key} {message}"))),
            }
        }
    }
}

fn apply_variable(loaded: &mut Loaded, variable: &str, value: &str, problems: &mut Vec<Problem>) {
    let name = format!("{VARIABLE_PREFIX}{variable}");
    let lower = variable.to_lowercase();
    let Some((section, key)) = lower.split_once("__") else { return };
    let Some(keys) = Config::keys(section) else {
        let hint = did_you_mean(section, Config::SECTIONS.iter().copied());
        problems.push(Problem::global(format!("{name}: unknown section '{section}'{hint}")));
        return;
    };
    if !keys.contains(&key) {
        problems.push(Problem::global(format!("{name}: {}", unknown_key(section, key, keys))));
        return;
    }
    match loaded.config.set(section, key, &Raw::Variable(value.to_owned())) {
        Ok(()) => drop(loaded.origins.insert(format!("{section}.{key}"), Origin::Environment)),
        Err(message) => problems.push(Problem::global(format!("{name}: {section}.{key} {message}"))),
    }
}

/// The sentence for an unknown key: the nearest key of its section, else the section that has a key of this name.
fn unknown_key(section: &str, key: &str, keys: &[&str]) -> String {
    let hint = did_you_mean(key, keys.iter().copied());
    if !hint.is_empty() {
        return format!("unknown key '{key}' in [{section}]{hint}");
    }
    let home = Config::SECTIONS.iter().find(|other| Config::keys(other).is_some_and(|keys| keys.contains(&key)));
    match home {
        Some(home) => format!("unknown key '{key}' in [{section}]; it belongs in [{home}]"),
        None => format!("unknown key '{key}' in [{section}]; its keys are {}", keys.join(", ")),
    }
}

/// A TOML value in the few shapes that settings have.
fn raw(value: &Spanned<DeValue<'_>>) -> Result<Raw, String> {
    match value.get_ref() {
        DeValue::String(text) => Ok(Raw::Text(text.to_string())),
        DeValue::Boolean(value) => Ok(Raw::Boolean(*value)),
        DeValue::Integer(integer) => i64::from_str_radix(integer.as_str(), integer.radix())
            .map(Raw::Integer)
            .map_err(|_| "is a number out of any range".to_owned()),
        DeValue::Array(items) => items
            .iter()
            .map(|item| item.get_ref().as_str().map(str::to_owned).ok_or("takes a list of texts only".to_owned()))
            .collect::<Result<_, _>>()
            .map(Raw::List),
        other @ (DeValue::Float(_) | DeValue::Datetime(_) | DeValue::Table(_)) => {
            Err(format!("cannot be a {}", other.type_str()))
        }
    }
}

/// Line of a byte offset, from 1.
fn line_of(text: &str, offset: usize) -> usize {
    1 + text.as_bytes().iter().take(offset).filter(|&&byte| byte == b'\n').count()
}

#[cfg(test)]
mod tests;

//! One declared task, and the `defaults` that every task starts from.

use std::rc::Rc;

use super::contract;
use super::fields::{Fields, Reader, shortened};
use super::{Array, Declared, DeclaredWork, Env, Need, Text};
use crate::limits;
use crate::plan::Contract;
use crate::problem::{Code, Position};
use crate::yaml::{Node, Value};

/// What `defaults` says.
#[derive(Default)]
pub(super) struct Defaults {
    contract: Contract,
    env: Rc<Env>,
    cwd: Option<Text>,
}

impl Defaults {
    pub(super) fn decode(reader: &mut Reader<'_>, node: &Node) -> Self {
        let known: Vec<&str> = contract::KEYS.into_iter().chain(["env", "cwd"]).collect();
        let Some(fields) = reader.fields(node, "'defaults'", &known) else { return Self::default() };
        let contract = contract::decode(reader, fields, &Contract::default());
        let mut env = Env::new();
        add_env(reader, fields, &mut env);
        let cwd = fields.get("cwd").and_then(|node| reader.text(node, "'cwd'"));
        Self { contract, env: Rc::new(env), cwd }
    }
}

const TASK_KEYS: [&str; 11] =
    ["name", "description", "run", "command", "kind", "payload", "stdin", "env", "cwd", "needs", "array"];

/// Reads a task; its name is given when tasks are a mapping, else it is a key.
pub(super) fn decode(
    reader: &mut Reader<'_>,
    node: &Node,
    named: Option<(String, Position)>,
    defaults: &Defaults,
) -> Option<Declared> {
    let what = named.as_ref().map_or_else(|| "a task".to_owned(), |(name, _)| format!("task '{name}'"));
    let known: Vec<&str> = TASK_KEYS.into_iter().chain(contract::KEYS).collect();
    let fields = reader.fields(node, &what, &known)?;
    let (name, at) = match (named, fields.get("name")) {
        (Some((name, at)), None) => (name, at),
        (None, Some(node)) => (reader.name(node, "a task's name")?, node.at),
        (Some((name, _)), Some(node)) => {
            let sentence = format!("task '{name}' already has its name from its key; remove 'name'");
            reader.problem(Code::ConflictingKeys, node.at, sentence);
            return None;
        }
        (None, None) => {
            reader.problem(Code::MissingKey, fields.at, "a task in a list needs a 'name'");
            return None;
        }
    };
    let what = format!("task '{name}'");
    if name.len() > limits::TASK_NAME_BYTES_MAX {
        let (has, most) = (name.len(), limits::TASK_NAME_BYTES_MAX);
        reader.problem(Code::BadName, at, format!("{what} has a name of {has} bytes; it may have {most}"));
    }
    let contract = contract::decode(reader, fields, &defaults.contract);
    let contract = reader.contracts.share(contract);
    let needs = fields.get("needs").map_or_else(Vec::new, |node| needs(reader, node));
    let array = fields.get("array").and_then(|node| {
        let array = array(reader, node, &what);
        reader.nothing_lost &= array.is_some();
        array
    });
    // A task whose work is wrong stays, so that what needs it is not told that it does not exist.
    let nothing = || DeclaredWork::Kind { kind: String::new(), payload: None };
    let work = work(reader, fields, &what, defaults).unwrap_or_else(nothing);
    Some(Declared { name, at, work, needs, array, contract })
}

fn work(reader: &mut Reader<'_>, fields: Fields<'_>, what: &str, defaults: &Defaults) -> Option<DeclaredWork> {
    let (run, command, kind) = (fields.get("run"), fields.get("command"), fields.get("kind"));
    match (run, command, kind) {
        (Some(node), None, None) => {
            let script = reader.text(node, &format!("{what}: 'run'"))?;
            let fixed = |text: &str| Text { text: Rc::from(text), at: node.at };
            process(reader, fields, what, vec![fixed("/bin/sh"), fixed("-ec"), script], defaults)
        }
        (None, Some(node), None) => {
            if matches!(node.value, Value::Text(_)) {
                let sentence = format!(
                    "{what}: 'command' is a list of a program and its arguments; for a line of shell use 'run'"
                );
                reader.problem(Code::WrongType, node.at, sentence);
                return None;
            }
            let argv = reader.texts(node, &format!("{what}: 'command'"))?;
            if argv.first().is_none_or(|program| program.text.is_empty()) {
                reader.problem(Code::BadValue, node.at, format!("{what}: 'command' names no program"));
                return None;
            }
            process(reader, fields, what, argv, defaults)
        }
        (None, None, Some(node)) => {
            for key in ["env", "cwd", "stdin"] {
                if let Some(node) = fields.get(key) {
                    let sentence = format!("{what}: '{key}' belongs to a process; a task with 'kind' has a 'payload'");
                    reader.problem(Code::ConflictingKeys, node.at, sentence);
                }
            }
            let kind = reader.name(node, &format!("{what}: 'kind'"))?;
            let payload = fields.get("payload").and_then(|node| reader.text(node, "'payload'"));
            Some(DeclaredWork::Kind { kind, payload })
        }
        (None, None, None) => {
            let sentence = format!("{what} does nothing; give it 'run' (shell), 'command' (a list) or 'kind'");
            reader.problem(Code::MissingKey, fields.at, sentence);
            None
        }
        _ => {
            let sentence = format!("{what} has more than one of 'run', 'command' and 'kind'; keep one");
            reader.problem(Code::ConflictingKeys, fields.at, sentence);
            None
        }
    }
}

fn process(
    reader: &mut Reader<'_>,
    fields: Fields<'_>,
    what: &str,
    argv: Vec<Text>,
    defaults: &Defaults,
) -> Option<DeclaredWork> {
    if let Some(node) = fields.get("payload") {
        let sentence = format!("{what}: 'payload' belongs to a task with 'kind'; a process reads 'stdin'");
        reader.problem(Code::ConflictingKeys, node.at, sentence);
    }
    let mut env = Env::new();
    add_env(reader, fields, &mut env);
    let cwd = fields.get("cwd").and_then(|node| reader.text(node, "'cwd'")).or_else(|| defaults.cwd.clone());
    let stdin = fields.get("stdin").and_then(|node| reader.text(node, "'stdin'"));
    Some(DeclaredWork::Command { argv, env, base_env: Rc::clone(&defaults.env), cwd, stdin })
}

fn add_env(reader: &mut Reader<'_>, fields: Fields<'_>, env: &mut Env) {
    let Some(node) = fields.get("env") else { return };
    for entry in reader.entries(node, "'env'") {
        let starts_well = entry.key.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        if !starts_well || !entry.key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            let sentence = format!("'{}' is no name of an environment variable", shortened(&entry.key));
            reader.problem(Code::BadName, entry.key_at, sentence);
            continue;
        }
        let value = match &entry.value.value {
            Value::Null => Some(Text { text: Rc::from(""), at: entry.value.at }),
            _ => reader.text(&entry.value, &format!("the environment variable '{}'", entry.key)),
        };
        env.extend(value.map(|value| (Rc::clone(&entry.key), value)));
    }
}

/// `needs: build`, `needs: [build, test]`, `needs: [{task: chunk, each: true}]`.
fn needs(reader: &mut Reader<'_>, node: &Node) -> Vec<Need> {
    let one = std::slice::from_ref(node);
    let nodes = if let Value::List(items) = &node.value { &items[..] } else { one };
    nodes.iter().filter_map(|node| need(reader, node)).collect()
}

fn need(reader: &mut Reader<'_>, node: &Node) -> Option<Need> {
    match &node.value {
        Value::Text(task) => Some(Need { task: Rc::clone(task), each: false, at: node.at }),
        Value::Map(_) => {
            let fields = reader.fields(node, "an entry of 'needs'", &["task", "each"])?;
            let Some(task) = fields.get("task") else {
                reader.problem(Code::MissingKey, node.at, "an entry of 'needs' names no 'task'");
                return None;
            };
            let task = reader.text(task, "'task'")?;
            let each = fields.get("each").and_then(|node| reader.flag(node, "'each'")).unwrap_or(false);
            Some(Need { task: task.text, each, at: task.at })
        }
        other => {
            let sentence =
                format!("an entry of 'needs' is a task's name or {{task: NAME, each: true}}, not {}", other.shape());
            reader.problem(Code::WrongType, node.at, sentence);
            None
        }
    }
}

/// `array: 200` or `array: [a, b]`.
fn array(reader: &mut Reader<'_>, node: &Node, what: &str) -> Option<Array> {
    let array = match &node.value {
        Value::List(_) => Array::Items(reader.texts(node, &format!("{what}: 'array'"))?),
        Value::Text(_) => {
            let count = reader.whole(node, &format!("{what}: 'array'"), 0, u64::MAX)?;
            Array::Count(usize::try_from(count).unwrap_or(usize::MAX))
        }
        other => {
            let sentence = format!("{what}: 'array' is a count or a list of items, not {}", other.shape());
            reader.problem(Code::WrongType, node.at, sentence);
            return None;
        }
    };
    if array.len() == 0 {
        reader.problem(Code::BadValue, node.at, format!("{what}: 'array' has no elements; it needs at least one"));
        return None;
    }
    if array.len() > limits::TASKS_MAX {
        let sentence =
            format!("{what} has {} elements; a workflow has at most {} tasks", array.len(), limits::TASKS_MAX);
        reader.problem(Code::TooManyTasks, node.at, sentence);
        return None;
    }
    Some(array)
}

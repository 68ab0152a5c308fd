//! The YAML tree as declared tasks: shapes, units and names checked, arrays and needs not yet resolved.

mod contract;
mod fields;
mod task;

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use crate::limits;
use crate::nearest::did_you_mean;
use crate::plan::{Contract, Contracts, OnFailure};
use crate::problem::{Code, Position, Problem};
use crate::template::{ELEMENT_NAMES, Variables};
use crate::yaml::{Node, Value};
use fields::Reader;
use task::Defaults;

/// What the reader of a file knows beside its text.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The workflow's name when the file gives none; the file's stem, by custom.
    pub name: String,
    /// Directory in which commands run and which `{{workdir}}` and `TASKMASTER_WORKDIR` name. Best absolute.
    pub workdir: String,
    /// Directory of the workflow file, which `{{filedir}}` names.
    pub filedir: String,
    /// Values that replace those under `vars`; each name must be declared there.
    pub vars: BTreeMap<String, String>,
}

/// A file's tasks as declared.
pub(crate) struct Spec {
    pub(crate) name: String,
    pub(crate) on_failure: OnFailure,
    pub(crate) variables: Variables,
    pub(crate) tasks: Vec<Declared>,
    /// Every task is there with its name and array, though other things of it may be wrong.
    pub(crate) nothing_lost: bool,
}

pub(crate) struct Declared {
    pub(crate) name: String,
    pub(crate) at: Position,
    pub(crate) work: DeclaredWork,
    pub(crate) needs: Vec<Need>,
    pub(crate) array: Option<Array>,
    pub(crate) contract: Arc<Contract>,
}

pub(crate) enum DeclaredWork {
    Command { argv: Vec<Text>, env: Env, base_env: Rc<Env>, cwd: Option<Text>, stdin: Option<Text> },
    Kind { kind: String, payload: Option<Text> },
}

/// Variables of a process; those of a task go before those of `defaults`.
pub(crate) type Env = BTreeMap<Rc<str>, Text>;

/// A text that may hold placeholders.
#[derive(Debug, Clone)]
pub(crate) struct Text {
    pub(crate) text: Rc<str>,
    pub(crate) at: Position,
}

pub(crate) struct Need {
    pub(crate) task: Rc<str>,
    pub(crate) each: bool,
    pub(crate) at: Position,
}

pub(crate) enum Array {
    Count(usize),
    Items(Vec<Text>),
}

impl Array {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Count(count) => *count,
            Self::Items(items) => items.len(),
        }
    }
}

const FILE_KEYS: [&str; 6] = ["name", "description", "on_failure", "vars", "defaults", "tasks"];

/// Reads the whole tree; problems are pushed, and `None` means that there was nothing to go on with.
pub(crate) fn decode(root: &Node, options: &Options, problems: &mut Vec<Problem>) -> Option<Spec> {
    if matches!(root.value, Value::Null) {
        problems.push(Problem::new(Code::EmptyWorkflow, root.at, EMPTY));
        return None;
    }
    let mut reader =
        Reader { problems, variables: Variables::default(), contracts: Contracts::default(), nothing_lost: true };
    let fields = reader.fields(root, "a workflow file", &FILE_KEYS)?;
    reader.variables = variables(&mut reader, fields.get("vars"), options);
    let name = match fields.get("name") {
        Some(node) => reader.name(node, "the workflow's name").unwrap_or_default(),
        None => options.name.clone(),
    };
    let defaults = fields.get("defaults").map_or_else(Defaults::default, |node| Defaults::decode(&mut reader, node));
    let Some(tasks) = fields.get("tasks") else {
        problems.push(Problem::new(Code::EmptyWorkflow, root.at, EMPTY));
        return None;
    };
    let tasks = decode_tasks(&mut reader, tasks, &defaults);
    let words = [("cancel", OnFailure::Cancel), ("continue", OnFailure::Continue)];
    let on_failure = fields.get("on_failure").and_then(|node| reader.one_of(node, "'on_failure'", &words));
    let nothing_lost = reader.nothing_lost;
    let variables = reader.variables;
    Some(Spec { name, on_failure: on_failure.unwrap_or_default(), variables, tasks, nothing_lost })
}

const EMPTY: &str = "the workflow has no tasks; list at least one under 'tasks'";

/// Built-in variables, then those of the file in its order, each of which may use those above it.
fn variables(reader: &mut Reader<'_>, node: Option<&Node>, options: &Options) -> Variables {
    reader.variables.set("workdir", options.workdir.clone());
    reader.variables.set("filedir", options.filedir.clone());
    let mut declared: Vec<&str> = Vec::new();
    let entries = node.map_or(&[][..], |node| reader.entries(node, "'vars'"));
    if entries.len() > limits::VARIABLES_MAX {
        let sentence = format!("'vars' has {} variables; it may have {}", entries.len(), limits::VARIABLES_MAX);
        reader.problem(Code::BadValue, node.map(|node| node.at), sentence);
    }
    for entry in entries.iter().take(limits::VARIABLES_MAX) {
        let reserved = ELEMENT_NAMES.contains(&&*entry.key) || matches!(&*entry.key, "workdir" | "filedir");
        if reserved || !is_name(&entry.key) {
            let why = if reserved { "is built in" } else { NAME_RULE };
            reader.problem(
                Code::BadName,
                entry.key_at,
                format!("a variable cannot be named '{}': it {why}", entry.key),
            );
            continue;
        }
        declared.push(&entry.key);
        let value = match options.vars.get(&*entry.key) {
            Some(value) => Some(value.clone()),
            None if matches!(entry.value.value, Value::Null) => Some(String::new()),
            None => reader.scalar(&entry.value, &format!("the variable '{}'", entry.key)),
        };
        reader.variables.set(&*entry.key, value.unwrap_or_default());
    }
    for name in options.vars.keys().filter(|name| !declared.contains(&name.as_str())) {
        let advice = did_you_mean(name, declared.iter().copied());
        let sentence = format!("the file declares no variable '{name}' under 'vars'{advice}");
        reader.problem(Code::UnknownVariable, None, sentence);
    }
    std::mem::take(&mut reader.variables)
}

fn decode_tasks(reader: &mut Reader<'_>, node: &Node, defaults: &Defaults) -> Vec<Declared> {
    let (mut tasks, nodes) = (Vec::new(), node.value.len());
    match &node.value {
        Value::Map(entries) => {
            for entry in entries {
                // A bad name is reported, and still names the task, so that its needs can be looked at.
                reader.checked_name(&entry.key, entry.key_at, "a task's name");
                let named = (entry.key.to_string(), entry.key_at);
                tasks.extend(task::decode(reader, &entry.value, Some(named), defaults));
            }
        }
        Value::List(items) => {
            for item in items {
                tasks.extend(task::decode(reader, item, None, defaults));
            }
        }
        other => {
            let sentence =
                format!("'tasks' is a mapping from names to tasks or a list of tasks, not {}", other.shape());
            reader.problem(Code::WrongType, node.at, sentence);
        }
    }
    if nodes == 0 && matches!(node.value, Value::Map(_) | Value::List(_)) {
        reader.problem(Code::EmptyWorkflow, node.at, EMPTY);
    }
    reader.nothing_lost &= tasks.len() == nodes;
    tasks
}

/// Completes the sentence "it ...".
const NAME_RULE: &str =
    "must have letters, digits and any of '_-./' only, start with a letter or digit, and have at most 128 bytes";

fn is_name(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/');
    text.len() <= limits::NAME_BYTES_MAX
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(allowed)
}

//! Declared tasks to a plan: arrays become elements, names become indices, placeholders become values.
//!
//! Invariant: sizes are counted before anything is built, so a short file cannot ask for much memory.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};

use crate::limits;
use crate::nearest::did_you_mean;
use crate::plan::bounds::{index, number, topological_order};
use crate::plan::{Command, Plan, PlanTask, Work};
use crate::problem::{Code, Problem, Rejected};
use crate::spec::{Array, Declared, DeclaredWork, Env, Options, Spec, Text};
use crate::template::{Fault, Variables};

/// Where each declared task's elements are in the plan.
struct Layout {
    /// Index of the first element.
    firsts: Vec<usize>,
    /// Declared tasks and whether element-wise, for each declared task.
    needs: Vec<Vec<(usize, bool)>>,
}

pub(crate) fn plan(spec: &Spec, options: &Options, problems: &mut Vec<Problem>) -> Option<Plan> {
    let layout = layout(spec, problems)?;
    let mut tasks = Vec::new();
    let mut bytes_left = limits::COMMANDS_BYTES_MAX;
    for (place, declared) in spec.tasks.iter().enumerate() {
        if problems.len() >= Rejected::PROBLEMS_MAX {
            return None;
        }
        for element in 0..elements(declared) {
            let bytes_max = limits::COMMAND_BYTES_MAX.min(bytes_left);
            let maker = Maker { spec, options, declared, element, bytes_left: Cell::new(bytes_max) };
            let work = match maker.work() {
                Ok(work) => work,
                Err(problem) => {
                    problems.push(problem);
                    break;
                }
            };
            bytes_left -= bytes_max - maker.bytes_left.get();
            tasks.push(PlanTask {
                name: maker.name(),
                group: declared.name.clone(),
                parents: parents(spec, &layout, place, element),
                work,
                contract: std::sync::Arc::clone(&declared.contract),
            });
        }
    }
    if !problems.is_empty() {
        return None;
    }
    let mut plan = Plan { name: spec.name.clone(), tasks, on_failure: spec.on_failure, warnings: Vec::new() };
    plan.sort().expect("elements of declared tasks without a cycle have none");
    Some(plan)
}

fn elements(declared: &Declared) -> usize {
    declared.array.as_ref().map_or(1, Array::len)
}

/// Adds what is wrong with names, needs and sizes to the problems of a file that is refused already.
pub(crate) fn check_names(spec: &Spec, problems: &mut Vec<Problem>) {
    let _ = layout(spec, problems);
}

/// Resolves names, then counts: nothing is built for a file that is refused.
fn layout(spec: &Spec, problems: &mut Vec<Problem>) -> Option<Layout> {
    let before = problems.len();
    let mut places: HashMap<&str, usize> = HashMap::with_capacity(spec.tasks.len());
    for (place, declared) in spec.tasks.iter().enumerate() {
        if let Some(first) = places.insert(&declared.name, place) {
            let sentence = format!("two tasks are named '{}'; the first is at {}", declared.name, spec.tasks[first].at);
            problems.push(Problem::new(Code::DuplicateName, declared.at, sentence));
        }
    }
    let needs: Vec<Vec<(usize, bool)>> =
        spec.tasks.iter().map(|declared| needs(spec, declared, &places, problems)).collect();
    if problems.len() > before {
        return None;
    }
    check_acyclic(spec, &needs, problems)?;
    let mut firsts = Vec::with_capacity(spec.tasks.len());
    let mut tasks = 0_usize;
    for declared in &spec.tasks {
        firsts.push(tasks);
        tasks += elements(declared);
        if tasks > limits::TASKS_MAX {
            let sentence = format!(
                "with '{}' there are {tasks} tasks; a workflow has at most {}",
                declared.name,
                limits::TASKS_MAX
            );
            problems.push(Problem::new(Code::TooManyTasks, declared.at, sentence));
            return None;
        }
    }
    check_dependencies(spec, &needs, problems)?;
    Some(Layout { firsts, needs })
}

fn needs(
    spec: &Spec,
    declared: &Declared,
    places: &HashMap<&str, usize>,
    problems: &mut Vec<Problem>,
) -> Vec<(usize, bool)> {
    let mut found: BTreeMap<usize, bool> = BTreeMap::new();
    for need in &declared.needs {
        let Some(&place) = places.get(&*need.task) else {
            // A suggestion looks at every name, so only the problems that will be shown get one.
            let looked_at = if problems.len() < Rejected::PROBLEMS_MAX { &spec.tasks[..] } else { &[] };
            let others = looked_at.iter().map(|task| task.name.as_str()).filter(|name| *name != declared.name);
            let advice = did_you_mean(&need.task, others);
            let sentence = format!("task '{}' needs '{}', which does not exist{advice}", declared.name, need.task);
            problems.push(Problem::new(Code::UnknownTask, need.at, sentence));
            continue;
        };
        if need.each
            && let Some(sentence) = mismatch(declared, &spec.tasks[place])
        {
            problems.push(Problem::new(Code::ArrayMismatch, need.at, sentence));
            continue;
        }
        let each = found.entry(place).or_insert(need.each);
        *each &= need.each;
    }
    found.into_iter().collect()
}

fn mismatch(declared: &Declared, needed: &Declared) -> Option<String> {
    let (name, other) = (&declared.name, &needed.name);
    match (&declared.array, &needed.array) {
        (Some(own), Some(theirs)) if own.len() == theirs.len() => None,
        (Some(own), Some(theirs)) => Some(format!(
            "task '{name}' has {} elements and '{other}' has {}; 'each' needs arrays of one size",
            own.len(),
            theirs.len()
        )),
        (None, _) => {
            Some(format!("task '{name}' is no array; remove 'each', or give it an 'array' like that of '{other}'"))
        }
        (_, None) => Some(format!("task '{other}' is no array, so '{name}' needs it without 'each'")),
    }
}

fn check_acyclic(spec: &Spec, needs: &[Vec<(usize, bool)>], problems: &mut Vec<Problem>) -> Option<()> {
    let parents: Vec<Vec<u32>> =
        needs.iter().map(|needs| needs.iter().map(|(place, _)| number(*place)).collect()).collect();
    let cycle = match topological_order(parents.len(), |task| &parents[task]) {
        Ok(_) => return Some(()),
        Err(cycle) => cycle,
    };
    let names = cycle.iter().map(|&place| spec.tasks[index(place)].name.as_str());
    let at = spec.tasks[index(cycle[0])].at;
    problems.push(Problem::new(Code::Cycle, at, cycle_sentence(names)));
    None
}

/// Names in the order in which each is needed by the next; the last is needed by the first.
pub(crate) fn cycle_sentence<'a>(names: impl ExactSizeIterator<Item = &'a str> + Clone) -> String {
    const NAMES_MAX: usize = 20;
    let first = names.clone().next().unwrap_or_default();
    if names.len() == 1 {
        return format!("task '{first}' needs itself: {first} -> {first}; remove that need");
    }
    let mut path: Vec<&str> = names.clone().take(NAMES_MAX).collect();
    if names.len() > NAMES_MAX {
        path.push("...");
    }
    path.push(first);
    format!(
        "{} tasks wait for each other: {} (an arrow leads to the task that needs the one before); remove one of these needs",
        names.len(),
        path.join(" -> ")
    )
}

fn check_dependencies(spec: &Spec, needs: &[Vec<(usize, bool)>], problems: &mut Vec<Problem>) -> Option<()> {
    let mut dependencies = 0_usize;
    for (declared, needs) in spec.tasks.iter().zip(needs) {
        let own = elements(declared);
        for &(place, each) in needs {
            dependencies += if each { own } else { own * elements(&spec.tasks[place]) };
            if dependencies > limits::DEPENDENCIES_MAX {
                let sentence = format!(
                    "with '{}' needing '{}' there are {dependencies} dependencies; a workflow has at most {}: \
                     put one task between the two, or use 'each'",
                    declared.name,
                    spec.tasks[place].name,
                    limits::DEPENDENCIES_MAX
                );
                problems.push(Problem::new(Code::TooManyDependencies, declared.at, sentence));
                return None;
            }
        }
    }
    Some(())
}

fn parents(spec: &Spec, layout: &Layout, place: usize, element: usize) -> Vec<u32> {
    let mut parents = Vec::new();
    for &(needed, each) in &layout.needs[place] {
        let first = layout.firsts[needed];
        if each {
            parents.push(number(first + element));
        } else {
            parents.extend((first..first + elements(&spec.tasks[needed])).map(number));
        }
    }
    parents
}

/// Makes one element of a declared task.
struct Maker<'a> {
    spec: &'a Spec,
    options: &'a Options,
    declared: &'a Declared,
    element: usize,
    /// What its texts may still cost.
    bytes_left: Cell<usize>,
}

impl Maker<'_> {
    fn name(&self) -> String {
        match self.declared.array {
            Some(_) => format!("{}[{}]", self.declared.name, self.element),
            None => self.declared.name.clone(),
        }
    }

    fn work(&self) -> Result<Work, Problem> {
        let (index, count) = (self.element.to_string(), elements(self.declared).to_string());
        let item = match &self.declared.array {
            Some(Array::Items(items)) => self.render(&items[self.element], &[])?,
            Some(Array::Count(_)) | None => index.clone(),
        };
        let own = [("index", &*index), ("item", &*item), ("count", &*count)];
        let local: &[(&str, &str)] = if self.declared.array.is_some() { &own } else { &[] };
        let optional = |text: &Option<Text>| text.as_ref().map(|text| self.render(text, local)).transpose();
        match &self.declared.work {
            DeclaredWork::Kind { kind, payload } => {
                Ok(Work::Kind { kind: kind.clone(), payload: optional(payload)?.unwrap_or_default() })
            }
            DeclaredWork::Command { argv, env, base_env, cwd, stdin } => Ok(Work::Command(Command {
                argv: argv.iter().map(|text| self.render(text, local)).collect::<Result<_, _>>()?,
                env: self.env(base_env, env, local)?,
                cwd: self.cwd(optional(cwd)?),
                stdin: optional(stdin)?,
            })),
        }
    }

    fn env(&self, base: &Env, env: &Env, local: &[(&str, &str)]) -> Result<Vec<(String, String)>, Problem> {
        let mut made: BTreeMap<String, String> = BTreeMap::new();
        made.insert("TASKMASTER_WORKDIR".to_owned(), self.options.workdir.clone());
        made.insert("TASKMASTER_WORKFLOW".to_owned(), self.spec.name.clone());
        made.insert("TASKMASTER_TASK".to_owned(), self.declared.name.clone());
        for (name, value) in local {
            made.insert(format!("TASKMASTER_ARRAY_{}", name.to_uppercase()), (*value).to_owned());
        }
        for (name, text) in base.iter().filter(|(name, _)| !env.contains_key(*name)).chain(env) {
            let value = self.render(text, local)?;
            self.spend(name.len())?;
            made.insert(name.to_string(), value);
        }
        Ok(made.into_iter().collect())
    }

    /// Relative directories are below the work directory, which is also the default.
    fn cwd(&self, cwd: Option<String>) -> String {
        match cwd {
            None => self.options.workdir.clone(),
            Some(cwd) if cwd.starts_with('/') || self.options.workdir.is_empty() => cwd,
            Some(cwd) => format!("{}/{cwd}", self.options.workdir.trim_end_matches('/')),
        }
    }

    fn render(&self, text: &Text, local: &[(&str, &str)]) -> Result<String, Problem> {
        let variables: &Variables = &self.spec.variables;
        let made = variables.render(&text.text, local, self.bytes_left.get()).map_err(|fault| match fault {
            Fault::Unknown(sentence) => Problem::new(Code::UnknownVariable, text.at, sentence),
            Fault::TooLarge => self.too_large(),
        })?;
        if made.contains('\0') {
            let sentence = format!("task '{}' has a NUL character in a text; no process can be given one", self.name());
            return Err(Problem::new(Code::BadValue, text.at, sentence));
        }
        self.spend(made.len())?;
        Ok(made)
    }

    /// Every text costs its bytes and one more, so that many empty ones are bounded too.
    fn spend(&self, bytes: usize) -> Result<(), Problem> {
        let left = self.bytes_left.get().checked_sub(bytes + 1).ok_or_else(|| self.too_large())?;
        self.bytes_left.set(left);
        Ok(())
    }

    fn too_large(&self) -> Problem {
        let sentence = format!(
            "the command of '{}' is too large: one has at most {} bytes, all of a workflow at most {}; \
             put the text into a file",
            self.name(),
            limits::COMMAND_BYTES_MAX,
            limits::COMMANDS_BYTES_MAX
        );
        Problem::new(Code::CommandTooLarge, self.declared.at, sentence)
    }
}

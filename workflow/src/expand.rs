//! Declared tasks to a plan: arrays become elements, names become indices, placeholders become values.
//!
//! Invariant: sizes are counted before anything is built, so a short file cannot ask for much memory.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use crate::limits;
use crate::nearest::did_you_mean;
use crate::plan::bounds::{index, number, topological_order};
use crate::plan::{Command, Plan, PlanTask, Work};
use crate::problem::{Code, Problem};
use crate::spec::{Array, Declared, DeclaredWork, Options, Spec, Text};
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
        for element in 0..elements(declared) {
            let maker = Maker { spec, options, declared, element };
            let work = match maker.work(bytes_left) {
                Ok(work) => work,
                Err(problem) => {
                    problems.push(problem);
                    break;
                }
            };
            bytes_left = bytes_left.saturating_sub(size_bytes(&work));
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

fn size_bytes(work: &Work) -> usize {
    match work {
        Work::Command(command) => command.size_bytes(),
        Work::Kind { kind, payload } => kind.len() + payload.len(),
        Work::Replay(_) => 0,
    }
}

/// Resolves names, then counts: nothing is built for a file that is refused.
fn layout(spec: &Spec, problems: &mut Vec<Problem>) -> Option<Layout> {
    let mut places: HashMap<&str, usize> = HashMap::with_capacity(spec.tasks.len());
    for (place, declared) in spec.tasks.iter().enumerate() {
        if let Some(first) = places.insert(&declared.name, place) {
            let sentence = format!("two tasks are named '{}'; the first is at {}", declared.name, spec.tasks[first].at);
            problems.push(Problem::new(Code::DuplicateName, declared.at, sentence));
        }
    }
    let needs: Vec<Vec<(usize, bool)>> =
        spec.tasks.iter().map(|declared| needs(spec, declared, &places, problems)).collect();
    if !problems.is_empty() {
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
            let others = spec.tasks.iter().map(|task| task.name.as_str()).filter(|name| *name != declared.name);
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
}

impl Maker<'_> {
    fn name(&self) -> String {
        match self.declared.array {
            Some(_) => format!("{}[{}]", self.declared.name, self.element),
            None => self.declared.name.clone(),
        }
    }

    fn work(&self, bytes_left: usize) -> Result<Work, Problem> {
        let bytes_max = limits::COMMAND_BYTES_MAX.min(bytes_left);
        let (index, count) = (self.element.to_string(), elements(self.declared).to_string());
        let item = match &self.declared.array {
            Some(Array::Items(items)) => self.render(&items[self.element], &[], bytes_max)?,
            Some(Array::Count(_)) | None => index.clone(),
        };
        let own = [("index", &*index), ("item", &*item), ("count", &*count)];
        let local: &[(&str, &str)] = if self.declared.array.is_some() { &own } else { &[] };
        match &self.declared.work {
            DeclaredWork::Kind { kind, payload } => {
                let payload = payload.as_ref().map(|text| self.render(text, local, bytes_max)).transpose()?;
                Ok(Work::Kind { kind: kind.clone(), payload: payload.unwrap_or_default() })
            }
            DeclaredWork::Command { argv, env, cwd, stdin } => {
                let mut command = Command {
                    argv: argv.iter().map(|text| self.render(text, local, bytes_max)).collect::<Result<_, _>>()?,
                    env: self.env(env, local, bytes_max)?,
                    cwd: self.cwd(cwd.as_ref(), local)?,
                    stdin: stdin.as_ref().map(|text| self.render(text, local, bytes_max)).transpose()?,
                };
                command.env.sort();
                if command.size_bytes() > bytes_max {
                    return Err(self.too_large());
                }
                Ok(Work::Command(command))
            }
        }
    }

    fn env(
        &self,
        env: &BTreeMap<Rc<str>, Text>,
        local: &[(&str, &str)],
        bytes_max: usize,
    ) -> Result<Vec<(String, String)>, Problem> {
        let mut made = vec![
            ("TASKMASTER_WORKDIR".to_owned(), self.options.workdir.clone()),
            ("TASKMASTER_WORKFLOW".to_owned(), self.spec.name.clone()),
            ("TASKMASTER_TASK".to_owned(), self.declared.name.clone()),
        ];
        for (name, value) in local {
            made.push((format!("TASKMASTER_ARRAY_{}", name.to_uppercase()), (*value).to_owned()));
        }
        for (name, text) in env {
            let value = self.render(text, local, bytes_max)?;
            made.retain(|(other, _)| other.as_str() != &**name);
            made.push((name.to_string(), value));
        }
        Ok(made)
    }

    /// Relative directories are below the work directory, which is also the default.
    fn cwd(&self, cwd: Option<&Text>, local: &[(&str, &str)]) -> Result<String, Problem> {
        let Some(text) = cwd else { return Ok(self.options.workdir.clone()) };
        let cwd = self.render(text, local, limits::COMMAND_BYTES_MAX)?;
        if cwd.starts_with('/') || self.options.workdir.is_empty() {
            return Ok(cwd);
        }
        Ok(format!("{}/{cwd}", self.options.workdir.trim_end_matches('/')))
    }

    fn render(&self, text: &Text, local: &[(&str, &str)], bytes_max: usize) -> Result<String, Problem> {
        let variables: &Variables = &self.spec.variables;
        let made = variables.render(&text.text, local, bytes_max).map_err(|fault| match fault {
            Fault::Unknown(sentence) => Problem::new(Code::UnknownVariable, text.at, sentence),
            Fault::TooLarge => self.too_large(),
        })?;
        if made.contains('\0') {
            let sentence = format!("task '{}' has a NUL character in a text; no process can be given one", self.name());
            return Err(Problem::new(Code::BadValue, text.at, sentence));
        }
        Ok(made)
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

//! Change: branches, tags, rollback and pruning of a task's state, and forks of the task.
//!
//! `check` says what a change would come to. It refuses with a sentence at admission, and decides once more when the change is
//! applied, for what came in between.

use std::collections::BTreeMap;

use taskmaster_protocol::body::{self, ArchivedChangeState, StateReply, state_verb};
use taskmaster_protocol::{Code, TaskId, limits};

use super::submit::{check_name, check_new, copy};
use super::{exception, retry};
use crate::extra::Extra;
use crate::partition::{Cx, Partition};
use crate::refused::{Refused, unknown_task};
use crate::state::State;
use crate::task::{NONE, Slot, Task};
use crate::versions::History;

/// Names listed in a refusal.
const LISTED_MAX: usize = 8;

/// What a change that is possible is about.
struct Change<'a> {
    slot: Slot,
    /// Index of the history.
    history: u32,
    version: u32,
    name: &'a str,
}

/// Checks a change against the present state; what a fork would add in bytes.
pub(crate) fn admit(partition: &Partition, body: &ArchivedChangeState, resend: bool) -> Result<u64, Refused> {
    let (id, to) = (TaskId::from(&body.id), TaskId::from(&body.to));
    let verb = body.verb.to_native();
    if !(state_verb::BRANCH..=state_verb::FORK).contains(&verb) {
        return Err(Refused::new(Code::Invalid, format!("verb {verb} is unknown in this version")));
    }
    let name = body::text(&body.bytes, body.name)?;
    if takes_name(verb) {
        check_name("name of the branch or tag", name).map_err(|sentence| Refused::new(Code::Invalid, sentence))?;
    }
    let is_fork = verb == state_verb::FORK;
    if id.partition() != partition.id || (is_fork && (to.partition() != partition.id || to.lo == 0)) {
        let message = format!("ids {id} and {to} are not both of partition {}", partition.id);
        return Err(Refused::new(Code::WrongPartition, message));
    }
    let change = match check(partition, body, resend) {
        Ok(change) => change,
        // The answer to a fork that was made before; it is for the log to say.
        Err((Code::Duplicate, _)) if is_fork => return Ok(0),
        Err((code, state)) => return Err(explain(partition, body, code, state)),
    };
    if !is_fork {
        return Ok(0);
    }
    let task = &partition.tasks[change.slot];
    let queue = &partition.queues[partition.contracts[task.contract].queue as usize];
    if queue.settings.draining {
        let message = format!("queue \"{}\" is draining and takes no new tasks: resume it first", queue.name);
        return Err(Refused::new(Code::QueueDraining, message));
    }
    let version = partition.versions.get(change.history).and_then(|history| history.versions.get(&change.version));
    Ok(version.map_or(0, |version| version.chunks.len() as u64 * 4))
}

const fn takes_name(verb: u32) -> bool {
    matches!(
        verb,
        state_verb::BRANCH | state_verb::SWITCH | state_verb::DELETE_BRANCH | state_verb::TAG | state_verb::UNTAG
    )
}

/// What the change is about, or why it cannot be made.
fn check<'a>(
    partition: &Partition,
    body: &'a ArchivedChangeState,
    resend: bool,
) -> Result<Change<'a>, (Code, Option<State>)> {
    let slot = partition.find(TaskId::from(&body.id), NONE).ok_or((Code::UnknownTask, None))?;
    let state = partition.tasks[slot].state;
    let refuse = |code: Code| Err((code, Some(state)));
    let Some(history) = partition.history(slot) else { return refuse(Code::UnknownVersion) };
    let name = body::text(&body.bytes, body.name).unwrap_or_default();
    let version = match body.version.to_native() {
        0 => history.head(),
        version => version,
    };
    let (verb, is_there) = (body.verb.to_native(), history.versions.contains_key(&version));
    match verb {
        state_verb::SWITCH if !history.branches.contains_key(name) => return refuse(Code::UnknownVersion),
        state_verb::UNTAG if !resend && !history.tags.contains_key(name) => return refuse(Code::UnknownVersion),
        state_verb::DELETE_BRANCH if !resend && !history.branches.contains_key(name) => {
            return refuse(Code::UnknownVersion);
        }
        state_verb::DELETE_BRANCH if *history.current == *name => return refuse(Code::IllegalState),
        state_verb::SWITCH | state_verb::UNTAG | state_verb::DELETE_BRANCH | state_verb::PRUNE => {}
        _ if !is_there => return refuse(Code::UnknownVersion),
        state_verb::BRANCH if history.branches.get(name).is_some_and(|&head| head != version) => {
            return refuse(Code::Duplicate);
        }
        state_verb::BRANCH if is_full(&history.branches, limits::STATE_BRANCHES_MAX, name) => {
            return refuse(Code::TooLarge);
        }
        state_verb::TAG if is_full(&history.tags, limits::STATE_TAGS_MAX, name) => return refuse(Code::TooLarge),
        state_verb::RESUME if state == State::Succeeded => return refuse(Code::IllegalState),
        state_verb::FORK => check_new(partition, TaskId::from(&body.to), resend)?,
        _ => {}
    }
    let history = partition.extras[partition.tasks[slot].extra].history;
    Ok(Change { slot, history, version, name })
}

fn is_full(names: &BTreeMap<Box<str>, u32>, max: usize, name: &str) -> bool {
    names.len() >= max && !names.contains_key(name)
}

/// A refusal that says what would be right.
fn explain(partition: &Partition, body: &ArchivedChangeState, code: Code, state: Option<State>) -> Refused {
    let id = TaskId::from(&body.id);
    let name = body::text(&body.bytes, body.name).unwrap_or_default().to_owned();
    let slot = partition.find(id, NONE);
    let history = slot.and_then(|slot| partition.history(slot));
    let message = match (code, history) {
        (Code::UnknownTask, _) => return unknown_task(id),
        (Code::UnknownVersion, None) => format!("task {id} has saved no state"),
        (Code::UnknownVersion, Some(history)) => {
            unknown(id, body.verb.to_native(), body.version.to_native(), &name, history)
        }
        (Code::Duplicate, Some(history)) => {
            let head = history.branches.get(name.as_str()).copied().unwrap_or(0);
            format!("branch \"{name}\" is there already, at version {head}: delete it first, or take another name")
        }
        (Code::TooLarge, _) => format!(
            "a task has at most {} branches and {} tags: delete some",
            limits::STATE_BRANCHES_MAX,
            limits::STATE_TAGS_MAX
        ),
        (Code::IllegalState, _) if body.verb.to_native() == state_verb::DELETE_BRANCH => {
            format!("branch \"{name}\" is the current one: switch to another first")
        }
        (Code::IllegalState, _) => "the task has succeeded and cannot run again: fork it instead".to_owned(),
        (code, _) => format!("{code}: task {id} is {}", state.map_or("gone", State::name)),
    };
    Refused::new(code, message)
}

fn unknown(id: TaskId, verb: u32, version: u32, name: &str, history: &History) -> String {
    let list = |names: &mut dyn Iterator<Item = String>| {
        let listed: Vec<String> = names.take(LISTED_MAX).collect();
        if listed.is_empty() { "none".to_owned() } else { listed.join(", ") }
    };
    if verb == state_verb::UNTAG {
        let tags = list(&mut history.tags.keys().map(|name| format!("\"{name}\"")));
        return format!("task {id} has no tag \"{name}\"; its tags: {tags}");
    }
    if matches!(verb, state_verb::SWITCH | state_verb::DELETE_BRANCH) {
        let branches = list(&mut history.branches.keys().map(|name| format!("\"{name}\"")));
        return format!("task {id} has no branch \"{name}\"; its branches: {branches}");
    }
    no_version(id, version, history)
}

/// Says that a version is not there, and which are.
pub(crate) fn no_version(id: TaskId, version: u32, history: &History) -> String {
    let latest: Vec<String> = history.versions.keys().rev().take(LISTED_MAX).map(u32::to_string).collect();
    let kept = history.versions.len();
    if kept == 0 {
        return format!("task {id} has no version any more");
    }
    format!("task {id} has no version {version}; {kept} are kept, the latest: {}", latest.join(", "))
}

/// Carries a logged change out.
pub(crate) fn apply(
    partition: &mut Partition,
    body: &ArchivedChangeState,
    resend: bool,
    cx: &mut Cx<'_>,
) -> StateReply {
    let mut reply = StateReply::default();
    let changed = match check(partition, body, resend) {
        Ok(change) => carry_out(partition, body, &change, cx),
        Err((Code::Duplicate, state)) if body.verb.to_native() == state_verb::FORK => {
            reply.exceptions.push(exception(0, TaskId::from(&body.to), Code::Duplicate, state));
            reply.versions.push(0);
            return reply;
        }
        Err(refused) => Err(refused),
    };
    reply.versions.push(changed.unwrap_or(0));
    if let Err((code, state)) = changed {
        reply.exceptions.push(exception(0, TaskId::from(&body.id), code, state));
    }
    reply
}

fn carry_out(
    partition: &mut Partition,
    body: &ArchivedChangeState,
    change: &Change<'_>,
    cx: &mut Cx<'_>,
) -> Result<u32, (Code, Option<State>)> {
    let Change { slot, history, version, name } = *change;
    let verb = body.verb.to_native();
    if verb == state_verb::FORK {
        fork(partition, change, TaskId::from(&body.to), cx);
        return Ok(1);
    }
    crate::snapshot::touch(partition, slot, cx.arena);
    if verb == state_verb::PRUNE {
        let keep = body.keep.to_native();
        return Ok(partition.change_states(slot, |partition| partition.versions.prune(history, keep, cx.arena)));
    }
    let state = partition.tasks[slot].state;
    if verb == state_verb::RESUME && state.is_final() && !retry::restart(partition, slot, cx) {
        return Err((Code::IllegalState, Some(state)));
    }
    let number = partition.versions.edit(history, |history| {
        match verb {
            state_verb::BRANCH => drop(history.branches.insert(name.into(), version)),
            state_verb::SWITCH => history.current = name.into(),
            state_verb::DELETE_BRANCH => drop(history.branches.remove(name)),
            state_verb::TAG => drop(history.tags.insert(name.into(), version)),
            state_verb::UNTAG => drop(history.tags.remove(name)),
            _ => drop(history.branches.insert(history.current.clone(), version)),
        }
        history.head()
    });
    Ok(if matches!(verb, state_verb::BRANCH | state_verb::TAG) { version } else { number })
}

/// A new task with the contract, payload and concurrency key of another, whose history begins with a version of that one's.
fn fork(partition: &mut Partition, change: &Change<'_>, to: TaskId, cx: &mut Cx<'_>) {
    let history = partition.versions.fork(change.history, change.version).expect("checked");
    let payload = copy(cx.arena, partition.payload(change.slot));
    let source = &partition.tasks[change.slot];
    let (contract, key) = (source.contract, partition.extras[source.extra].key);
    let mut extra = Extra { history, ..Extra::default() };
    if key != NONE {
        let key = &partition.keys[key as usize];
        let (bytes, limit) = (key.bytes.clone(), key.limit);
        extra.key = partition.key(bytes, limit, cx.dispatch);
    }
    let extra = partition.extras.insert(extra);
    let slot = partition.insert(Task::new(to, contract, extra, payload, State::Ready, cx.time_us));
    partition.note(slot, crate::events::Change::Submitted, cx.time_us);
    partition.enter_ready(slot, cx);
}

/// Payload bytes that a fork copies.
pub(crate) fn blob_bytes(partition: &Partition, body: &ArchivedChangeState, arena: &crate::arena::Arena) -> u64 {
    if body.verb.to_native() != state_verb::FORK {
        return 0;
    }
    let slot = partition.find(TaskId::from(&body.id), NONE);
    slot.map_or(0, |slot| arena.len_of(partition.payload(slot)) as u64)
}

//! Why a task waits, or how it ended, in sentences for a person at 3 a.m.

use taskmaster_protocol::body::{self, Explanation, restart};
use taskmaster_scheduler::chance::Outcomes;
use taskmaster_scheduler::order::Standing;
use taskmaster_scheduler::place::live::Memory;
use taskmaster_scheduler::predictor::Prediction;

use super::chance;
use crate::arena::Arena;
use crate::contract::Contract;
use crate::dispatch::{Dispatch, LaneRef, Worker};
use crate::extra::{Extra, unpack_error};
use crate::order::By;
use crate::order::deadline::Ends;
use crate::outlook::{Asking, View};
use crate::partition::{DETACHED, Partition};
use crate::queue::QueueSettings;
use crate::reservations::Asks;
use crate::state::State;
use crate::task::{NONE, Slot, flag};

/// Explains a task's present state.
pub(crate) fn explain(partition: &Partition, slot: Slot, arena: &Arena, view: &View<'_>) -> Explanation {
    let (dispatch, now_us) = (view.dispatch, view.now_us);
    let task = &partition.tasks[slot];
    let contract = &partition.contracts[task.contract];
    let queue = &partition.queues[contract.queue as usize];
    let extra = partition.extras.get(task.extra);
    let mut facts: Vec<(&str, String)> = vec![("state", task.state.name().to_owned())];
    match task.state {
        State::Waiting if let Some(runner) = partition.followed(slot, arena) => {
            let runner = &partition.tasks[runner];
            let sentence = format!("task {} has the same kind, version and payload and is {}", runner.id, runner.state);
            facts.push(("reason", format!("{sentence}: its end will be this one's too")));
        }
        State::Waiting => {
            let needs = extra.map_or(0, |extra| extra.needs);
            facts.push(("reason", format!("it needs {needs} other tasks of its workflow that are not final yet")));
            facts.extend(open_needs(partition, extra, arena).map(|names| ("needs", names)));
        }
        State::Delayed => {
            let left_ms = task.at_us.saturating_sub(now_us) / 1_000;
            let why = if task.failures > 0 { "it pauses between attempts" } else { "it was submitted with a delay" };
            facts.push(("reason", format!("{why} and is due in {left_ms} ms")));
        }
        State::Ready => ready(partition, slot, view, &mut facts),
        State::Leased => {
            let worker = dispatch.workers.get((task.worker & !DETACHED) as usize);
            let name = worker.map_or("", |worker| worker.name.as_str());
            let left_ms = task.at_us.saturating_sub(now_us) / 1_000;
            facts.push(("reason", format!("worker \"{name}\" runs attempt {}", task.attempt())));
            facts.push(("lease", format!("ends in {left_ms} ms unless extended")));
            facts.extend(worker.map(|worker| ("worker", place_in_words(worker))));
            facts.extend(running(partition, slot, view));
        }
        State::Succeeded | State::Failed | State::Cancelled | State::Expired => {
            let ago_ms = now_us.saturating_sub(task.at_us) / 1_000;
            facts.push(("reason", format!("it became final {ago_ms} ms ago")));
            if let Some((of, made_us)) = partition.memo_of(slot) {
                let made_ms = now_us.saturating_sub(made_us) / 1_000;
                let what = if task.state == State::Succeeded { "result" } else { "failure" };
                facts.push(("memo", format!("it did not run: the {what} is that of task {of}, {made_ms} ms ago")));
            }
        }
    }
    facts.extend(partition.told(slot).iter().cloned());
    if contract.restartable {
        facts.push(("restartable", restarts(&queue.settings)));
    }
    if let Some(extra) = extra {
        let (code, message, _) = unpack_error(arena.get(extra.error));
        if !message.is_empty() {
            let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
            facts.push(("last_error", format!("{}: {}", text(code), text(message))));
        }
        if extra.deadline_us != 0 {
            let word = if extra.deadline_us < now_us { "passed" } else { "in" };
            facts.push(("deadline", format!("{word} {} ms", extra.deadline_us.abs_diff(now_us) / 1_000)));
            facts.extend(chance::outlook(view, partition, slot).map(|outlook| ("in_time", outlook.in_words())));
        }
    }
    let attempts = contract.retry.attempts_max;
    facts.push(("attempts", format!("{} of {attempts} ended without success", partition.failures(slot))));
    facts.push(("queue", format!("{} ({} ready, {} leased)", queue.name, queue.counts[2], queue.counts[3])));
    let mut answer = Explanation::default();
    for (name, sentence) in facts {
        answer.facts.push(body::put(&mut answer.bytes, name.as_bytes()));
        answer.facts.push(body::put(&mut answer.bytes, sentence.as_bytes()));
    }
    answer
}

/// What may be done to attempts of a restartable task.
fn restarts(settings: &QueueSettings) -> String {
    let may = [
        (restart::SPECULATION, "a second one beside one that is late"),
        (restart::PREEMPTION, "ended for a task of a higher priority"),
        (restart::GIVING_UP, "ended for one that is expected to take much less, while the order is a learned one"),
    ];
    let may: Vec<&str> = may.iter().filter(|(what, _)| settings.restarts(*what)).map(|(_, words)| *words).collect();
    if may.is_empty() {
        return "yes, and the queue makes no use of it".to_owned();
    }
    format!("its attempts may be: {}", may.join("; "))
}

/// The worker that has a task, and what else it has.
fn place_in_words(worker: &Worker) -> String {
    if !worker.connected {
        return "its connection is gone; the lease ends soon".to_owned();
    }
    let others = worker.leases.saturating_sub(1);
    let room = match &worker.capacity {
        Some(capacity) => format!("its tasks were given {} of {capacity}", worker.used),
        None => "it counts places and no resources".to_owned(),
    };
    format!("it has {others} other tasks of this shard and asks for {} more; {room}", worker.credit)
}

/// How long a task runs, beside what is expected of its kind.
fn running(partition: &Partition, slot: Slot, view: &View<'_>) -> Vec<(&'static str, String)> {
    let dispatch = view.dispatch;
    let contract = &partition.contracts[partition.tasks[slot].contract];
    let queue = partition.queues[contract.queue as usize].dispatch;
    let (expected, samples) = dispatch.learned.expected(contract.class);
    let mut facts = vec![
        ("order", dispatch.queues[queue as usize].order.in_words()),
        ("expected", expected_in_words(&expected, samples, contract.size)),
    ];
    facts.extend(failures_in_words(&dispatch.learned.outcomes(contract.class)));
    if !contract.wishes.others.is_empty() {
        facts.push(("resources", format!("it runs with {}, of {}", partition.need(slot), contract.asked())));
    }
    facts.extend(memory_in_words(dispatch, queue, contract));
    if let Some(started_us) = partition.started_us(slot) {
        let runs_ms = view.now_us.saturating_sub(started_us) / 1_000;
        facts.push(("runs", format!("for {runs_ms} ms by now")));
    }
    facts
}

fn ready(partition: &Partition, slot: Slot, view: &View<'_>, facts: &mut Vec<(&str, String)>) {
    let (dispatch, now_us) = (view.dispatch, view.now_us);
    let task = &partition.tasks[slot];
    let extra = partition.extras.get(task.extra);
    let contract = &partition.contracts[task.contract];
    let queue = &partition.queues[contract.queue as usize];
    let served = &dispatch.queues[queue.dispatch as usize];
    let fitting = |index: &&u32| {
        let worker = &dispatch.workers[**index as usize];
        contract.wishes.sets(&contract.resources).any(|need| worker.could_hold(need))
    };
    let reason = if task.has(flag::BLOCKED) {
        let key = extra.map(|extra| &partition.keys[extra.key as usize]);
        key.map_or_else(String::new, |key| {
            format!("its concurrency key is at its limit of {} ({} wait)", key.limit, key.waiting.len)
        })
    } else if queue.settings.paused {
        format!("queue \"{0}\" is paused: `taskmaster queue resume {0}` lets it go on", queue.name)
    } else if served.workers.is_empty() {
        format!("no worker serves queue \"{0}\": start one with `taskmaster worker --queue {0}`", queue.name)
    } else if served.workers.iter().filter(fitting).count() == 0 {
        format!("it asks for {}, and no connected worker offers that much", contract.asked())
    } else if served.concurrency.is_some_and(|limit| served.leased >= limit) {
        format!("the queue runs its limit of {} tasks", served.leased)
    } else if served.bucket.is_some_and(|mut bucket| bucket.available(now_us) == 0) {
        "the queue's rate limit has no start left right now".to_owned()
    } else if served.with_credit == 0 {
        format!("all {} workers of the queue are busy", served.workers.len())
    } else {
        "it is next in line, or the workers with room lack the resources it asks for".to_owned()
    };
    facts.push(("reason", reason));
    if !task.has(flag::BLOCKED) && !queue.settings.paused {
        let due = dispatch.shares.due(queue.dispatch, |other| dispatch.queues[other as usize].waits());
        facts.extend(due.and_then(|due| due.in_words()).map(|words| ("share", words)));
    }
    let asking = chance::asking(partition, slot);
    let class = asking.class;
    if !task.has(flag::BLOCKED) && !queue.settings.paused {
        kept_or_held(partition, slot, class, dispatch, now_us).for_each(|(name, words)| facts.push((name, words)));
    }
    if !contract.wishes.is_empty() {
        facts.push(("resources", format!("it asks for {}", contract.asked())));
    }
    facts.push(("waited", format!("{} ms", now_us.saturating_sub(task.at_us) / 1_000)));
    let (expected, samples) = dispatch.learned.expected(class);
    facts.push(("order", served.order.in_words()));
    facts.push(("expected", expected_in_words(&expected, samples, contract.size)));
    facts.extend(failures_in_words(&dispatch.learned.outcomes(class)));
    facts.extend(memory_in_words(dispatch, queue.dispatch, contract));
    if !task.has(flag::BLOCKED) {
        facts.extend(in_line(&asking, queue.dispatch, view));
        let path = partition.path_in_words(slot, &dispatch.learned, served.goes_by_paths());
        facts.extend(path.map(|words| ("path", words)));
    }
}

/// Which worker is kept for a ready task of a class, and why it does not start where there is room.
fn kept_or_held(
    partition: &Partition,
    slot: Slot,
    class: u32,
    dispatch: &Dispatch,
    now_us: u64,
) -> impl Iterator<Item = (&'static str, String)> {
    let contract = &partition.contracts[partition.tasks[slot].contract];
    let (queue, need) = (partition.queues[contract.queue as usize].dispatch, &contract.resources);
    let lane = LaneRef { partition: partition.id.0, lane: contract.lane };
    let asks = Asks { queue, priority: contract.priority, lane };
    let heads = partition.lanes[contract.lane as usize].lists.iter().filter_map(|of| of.list.first());
    let is_first = heads.min_by_key(|&head| partition.tasks[head].token) == Some(slot);
    let kept = dispatch.kept_for_in_words(&asks, is_first, now_us).map(|words| ("reserved", words));
    let held = dispatch.held_in_words(&asks, class, contract.asked(), now_us);
    let held = held.or_else(|| dispatch.kept_from_in_words(&asks, need, now_us)).map(|words| ("waits", words));
    kept.into_iter().chain(held)
}

/// Where a ready task stands in its queue, and where it would stand were that in the order of readiness.
fn in_line(asking: &Asking<'_>, queue: u32, view: &View<'_>) -> Vec<(&'static str, String)> {
    let order = &view.dispatch.queues[queue as usize].order;
    let [ahead, earlier] = [order.by(), By::Turns].map(|by| view.before(queue, asking, by));
    let moved = match ahead.cmp(&earlier) {
        core::cmp::Ordering::Less => "promoted",
        core::cmp::Ordering::Equal => "neither promoted nor demoted",
        core::cmp::Ordering::Greater => "demoted",
    };
    let ahead = format!("{ahead} tasks of its queue on this shard; in the order of readiness {earlier} would be");
    let mut facts = vec![("position", moved.to_owned()), ("ahead", ahead)];
    match order.by() {
        By::Turns => {}
        By::Rank => {
            let rank = view.dispatch.learned.rank_at_present(asking.class, order.gives_up());
            facts.push(("rank", format!("{rank:.2}: of tasks of one priority the lowest goes first")));
        }
        By::Deadline => {
            let ends = Ends::of(&view.dispatch.learned.outcomes(asking.class).succeeds, view.now_us);
            facts.push(("standing", standing_in_words(Standing::of(asking.deadline_us, ends.both())).to_owned()));
        }
    }
    if order.by() != By::Turns && asking.ready.0 <= order.aged_us(view.now_us) {
        let minutes = order.cap_us() / 60_000_000;
        facts.push((
            "aged",
            format!(
                "it has waited for more than {minutes} minutes: such tasks have every second turn, the oldest first"
            ),
        ));
    }
    facts
}

const fn standing_in_words(standing: Standing) -> &'static str {
    match standing {
        Standing::Feasible => "started now it meets its deadline in nine of ten cases",
        Standing::AtRisk => "started now it rather meets its deadline than not, so those that surely do go first",
        Standing::Open => "it has no deadline, so those that can meet theirs go first",
        Standing::Hopeless => "hopeless: started now it rather misses its deadline, so it goes last",
    }
}

/// How much memory a task will have at most, where its kind was measured.
fn memory_in_words(dispatch: &Dispatch, queue: u32, contract: &Contract) -> Option<(&'static str, String)> {
    let Memory { median_bytes, most_bytes, attempts } = dispatch.neighbours.memory(queue, &contract.kind)?;
    let [median, most] = [median_bytes, most_bytes].map(|bytes| bytes / 1_048_576.0);
    let asked = match contract.resources.memory_bytes {
        0 => "it asks for none".to_owned(),
        bytes => format!("it asks for {} MiB", bytes.div_ceil(1_048_576)),
    };
    let words = format!(
        "to have no more than {median:.1} MiB in half of the cases, and no more than {most:.1} MiB in nine of ten, by the last {attempts} \
         attempts of its kind that were measured; {asked}"
    );
    Some(("memory", words))
}

fn expected_in_words(expected: &Prediction, samples: u32, size: u8) -> String {
    if expected.samples == 0.0 {
        return "nothing has ended yet by which a run time could be predicted".to_owned();
    }
    let [median, most] = [expected.q50, expected.q90].map(f32::exp);
    let source = match samples {
        0 => "tasks of other kinds".to_owned(),
        1 => "one task of its kind".to_owned(),
        count => format!("{count} tasks of its kind"),
    };
    // As `Keys::new` makes them of what is known of a class.
    let key = match expected.level {
        0 => "all tasks",
        1 => "kind and width",
        2 => "namespace",
        3..=5 => "namespace and kind",
        _ if size > 0 => "namespace, queue, kind, width and magnitude of the payload",
        _ => "namespace, queue, kind and width",
    };
    let weight = expected.samples;
    format!(
        "to run for {median:.0} ms, and for no more than {most:.0} ms in nine of ten cases, by {source}; the finest key with samples is \
         {key}, and they weigh {weight:.1}"
    )
}

/// How attempts fare that fail, and those that do not.
fn failures_in_words(outcomes: &Outcomes) -> Option<(&'static str, String)> {
    let Outcomes { succeeds, fails, failed } = outcomes;
    let [long, soon] = [succeeds.q50, fails.q50].map(f32::exp);
    let words = format!(
        "{:.0} % of attempts, after {soon:.0} ms in one of two cases; those that succeed take {long:.0} ms",
        100.0 * failed
    );
    (*failed >= 0.005).then_some(("failures", words))
}

fn open_needs(partition: &Partition, extra: Option<&Extra>, arena: &Arena) -> Option<String> {
    let extra = extra.filter(|extra| extra.workflow != NONE)?;
    let workflow = &partition.workflows[extra.workflow];
    let needs = workflow.needs();
    let names: Vec<String> = needs[extra.row as usize]
        .iter()
        .map(|&row| workflow.rows[row as usize])
        .filter(|&slot| slot != NONE && !partition.tasks[slot].state.is_final())
        .take(10)
        .map(|slot| {
            let task = &partition.tasks[slot];
            let name = String::from_utf8_lossy(arena.get(partition.extras[task.extra].name)).into_owned();
            format!("{name} ({}, {})", task.id, task.state)
        })
        .collect();
    Some(names.join(", "))
}

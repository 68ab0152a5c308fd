//! Submit: a batch of tasks, or one workflow.

use taskmaster_protocol::body::{self, ArchivedExtra, ArchivedSubmit, ArchivedTaskRow, BatchReply, ExceptionRow};
use taskmaster_protocol::memo::Key;
use taskmaster_protocol::{Code, TaskId, limits};

use super::except;
use crate::arena::{Arena, Handle};
use crate::contract::{SIZES, SpecView, payload_size};
use crate::events::Change;
use crate::extra::Extra;
use crate::memo::known::KnownRow;
use crate::memo::{self, Standing};
use crate::partition::{Cx, Partition};
use crate::refused::Refused;
use crate::state::State;
use crate::task::{NONE, Task};
use crate::timer::{Timer, TimerKind};
use crate::workflow::{self, Workflow};

/// What an admitted submission will take.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Size {
    pub(crate) tasks: u64,
    pub(crate) blob_bytes: u64,
    needs: usize,
}

/// Most queues, and most contracts of tasks in memory, per partition.
pub(crate) const QUEUES_MAX: usize = 1 << 14;
const CONTRACTS_MAX: usize = 1 << 15;
/// Most needs of a workflow's tasks in all.
const NEEDS_MAX: usize = 1 << 20;

/// Checks everything that does not depend on other requests in flight.
pub(crate) fn admit(
    partition: &Partition,
    body: &ArchivedSubmit,
    arena: &Arena,
    now_us: u64,
    auto_create: bool,
) -> Result<Size, Refused> {
    let count = body.tasks.len();
    if count == 0 {
        return Err(Refused::new(Code::Invalid, "a submission needs at least one task"));
    }
    if count > limits::ROWS_MAX || body.specs.len() > limits::SPECS_MAX {
        let message = format!(
            "{count} tasks with {} specs in one frame: at most {} and {} are taken, split the batch",
            body.specs.len(),
            limits::ROWS_MAX,
            limits::SPECS_MAX
        );
        return Err(Refused::new(Code::TooLarge, message));
    }
    for spec in body.specs.iter() {
        check_spec(partition, &SpecView::of(spec, &body.bytes)?, auto_create)?;
        if spec.restartable > 1 {
            return Err(Refused::new(Code::Invalid, "a spec's restartable is 0 or 1"));
        }
    }
    check_new_names(partition, body)?;
    if body.specs.iter().any(|spec| spec.memo != 0) {
        check_hashed(body)?;
    }
    let mut size = Size { tasks: count as u64, ..Size::default() };
    for (row, task) in (0u32..).zip(body.tasks.iter()) {
        check_row(partition, body, row, task, arena, now_us, &mut size).map_err(|refused| refused.at_row(row))?;
    }
    check_workflow(partition, body)?;
    Ok(size)
}

/// Bounds what submissions may create for good or for long: queues and contracts.
fn check_new_names(partition: &Partition, body: &ArchivedSubmit) -> Result<(), Refused> {
    let full = |what: &str, max: usize| {
        let message = format!("the partition has {max} {what}, as many as it can: use fewer distinct ones");
        Err(Refused::new(Code::TooLarge, message))
    };
    let specs = || body.specs.iter().filter_map(|spec| SpecView::of(spec, &body.bytes).ok());
    if partition.queues.len() + body.specs.len() > QUEUES_MAX {
        let new = specs().filter(|spec| partition.find_queue(spec.namespace, spec.queue).is_none()).count();
        if partition.queues.len() + new > QUEUES_MAX {
            return full("queues", QUEUES_MAX);
        }
    }
    if partition.contracts.len() + body.specs.len() * SIZES > CONTRACTS_MAX {
        let specs: Vec<SpecView<'_>> = specs().collect();
        let named =
            body.tasks.iter().filter_map(|task| Some((specs.get(task.spec.to_native() as usize)?, size_of(task))));
        let mut new: Vec<Vec<u8>> = Vec::new();
        for (spec, size) in named {
            let mut canonical = Vec::new();
            SpecView { size, ..spec.clone() }.write_canonical(&mut canonical);
            new.extend(Some(canonical).filter(|canonical| partition.contracts.find(canonical).is_none()));
        }
        new.sort_unstable();
        new.dedup();
        if partition.contracts.len() + new.len() > CONTRACTS_MAX {
            return full("contracts", CONTRACTS_MAX);
        }
    }
    Ok(())
}

fn check_spec(partition: &Partition, spec: &SpecView<'_>, auto_create: bool) -> Result<(), Refused> {
    let invalid = |message: String| Err(Refused::new(Code::Invalid, message));
    for (what, name) in [("namespace", spec.namespace), ("queue", spec.queue), ("kind", spec.kind)] {
        if let Err(sentence) = check_name(what, name) {
            return invalid(sentence);
        }
    }
    if let Err(sentence) = check_custom(spec.custom) {
        return invalid(sentence);
    }
    if spec.non_retryable.len() > limits::KEY_BYTES_MAX {
        return invalid(format!("non-retryable codes take {} bytes", limits::KEY_BYTES_MAX));
    }
    if spec.priority > 3 {
        return invalid(format!("priority {} is not one of 0 critical, 1 high, 2 normal, 3 low", spec.priority));
    }
    if !(limits::LEASE_MS_MIN..=limits::LEASE_MS_MAX).contains(&spec.lease_ms) {
        let (min, max) = (limits::LEASE_MS_MIN, limits::LEASE_MS_MAX);
        return invalid(format!("a lease of {} ms is outside {min} to {max} ms", spec.lease_ms));
    }
    if spec.attempts_max == 0 || spec.attempts_max > limits::ATTEMPTS_MAX {
        return invalid(format!("{} attempts are outside 1 to {}", spec.attempts_max, limits::ATTEMPTS_MAX));
    }
    spec.asks().map_err(|sentence| Refused::new(Code::Invalid, sentence))?;
    match partition.find_queue(spec.namespace, spec.queue) {
        Some(queue) if partition.queues[queue as usize].settings.draining => {
            let message = format!("queue \"{}\" is draining and takes no new tasks: resume it first", spec.queue);
            Err(Refused::new(Code::QueueDraining, message))
        }
        None if !auto_create => {
            let message = format!("queue \"{}\" does not exist: create it with `queue set {0}`", spec.queue);
            Err(Refused::new(Code::UnknownQueue, message))
        }
        _ => Ok(()),
    }
}

/// Whether the text of custom resources is of bearable length.
pub(crate) fn check_custom(custom: &str) -> Result<(), String> {
    if custom.len() > limits::KEY_BYTES_MAX {
        return Err(format!(
            "custom resources have {} bytes, at most {} are taken",
            custom.len(),
            limits::KEY_BYTES_MAX
        ));
    }
    Ok(())
}

/// Whether a name may be used.
pub(crate) fn check_name(what: &str, name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err(format!("the {what} is missing"));
    }
    if name.len() > limits::NAME_BYTES_MAX {
        return Err(format!("the {what} has {} bytes, at most {} are taken", name.len(), limits::NAME_BYTES_MAX));
    }
    if name.chars().any(|c| c.is_control() || c == ',') {
        return Err(format!("the {what} \"{}\" has control characters or commas", name.escape_debug()));
    }
    Ok(())
}

fn check_row(
    partition: &Partition,
    body: &ArchivedSubmit,
    row: u32,
    task: &ArchivedTaskRow,
    arena: &Arena,
    now_us: u64,
    size: &mut Size,
) -> Result<(), Refused> {
    let id = TaskId::from(&task.id);
    if id.partition() != partition.id || id.lo == 0 {
        let message = format!("task id {id} belongs to partition {}, the frame to {}", id.partition(), partition.id);
        return Err(Refused::new(Code::WrongPartition, message));
    }
    if task.spec.to_native() as usize >= body.specs.len() {
        return Err(Refused::new(Code::Malformed, format!("spec {} of {}", task.spec.to_native(), body.specs.len())));
    }
    let payload = body::slice(&body.bytes, task.payload)?;
    if payload.len() > limits::PAYLOAD_BYTES_MAX {
        let message = format!(
            "payload of {} bytes: at most {} are taken; keep larger inputs in a store and pass a reference",
            payload.len(),
            limits::PAYLOAD_BYTES_MAX
        );
        return Err(Refused::new(Code::TooLarge, message));
    }
    size.blob_bytes += payload.len() as u64;
    if let Some(index) = task.extra.to_native().checked_sub(1) {
        let extra = body.extras.get(index as usize).ok_or_else(|| {
            Refused::new(Code::Malformed, format!("extra {} of {}", u64::from(index) + 1, body.extras.len()))
        })?;
        check_extra(body, extra, now_us, size)?;
        check_needs(body, row, extra, size)?;
    }
    if body.specs[task.spec.to_native() as usize].memo != 0 {
        check_memo(partition, body, task, now_us, arena, size)?;
    }
    Ok(())
}

fn check_memo(
    partition: &Partition,
    body: &ArchivedSubmit,
    task: &ArchivedTaskRow,
    now_us: u64,
    arena: &Arena,
    size: &mut Size,
) -> Result<(), Refused> {
    let spec = &body.specs[task.spec.to_native() as usize];
    let invalid = |message: &str| Err(Refused::new(Code::Invalid, message));
    if spec.memo > 1 {
        return invalid("a spec's memo is 0 or 1");
    }
    if !body.workflow.is_empty() {
        return invalid("tasks of a workflow cannot be memoised: those of other partitions have the results");
    }
    let extra = extra_of(body, task);
    let Some(extra) = extra.filter(|extra| extra.unique_key.len.to_native() > 0) else {
        return invalid("a memoised task names its kind's version in the place of a unique key");
    };
    if extra.concurrency_key.len.to_native() > 0 {
        return invalid("a memoised task cannot have a concurrency key: its own key decides where it runs");
    }
    if extra.delay_ms.to_native() > 0 || extra.not_before_ms.to_native() > 0 {
        return invalid("a memoised task cannot be delayed: equal ones that come meanwhile would wait for it");
    }
    let key = memo_key(body, task, extra, &SpecView::of(spec, &body.bytes)?);
    let age_max_ms = extra.unique_window_ms.to_native();
    size.blob_bytes += memo::UNIQUE_BYTES as u64;
    if let Standing::Known(bytes) = partition.memo_standing(&key, age_max_ms, arena, now_us) {
        size.blob_bytes += bytes as u64;
    }
    Ok(())
}

fn extra_of<'a>(body: &'a ArchivedSubmit, task: &ArchivedTaskRow) -> Option<&'a ArchivedExtra> {
    task.extra.to_native().checked_sub(1).and_then(|number| body.extras.get(number as usize))
}

/// The key of a row of a memoised spec.
pub(crate) fn memo_key(
    body: &ArchivedSubmit,
    task: &ArchivedTaskRow,
    extra: &ArchivedExtra,
    spec: &SpecView<'_>,
) -> Key {
    let version = body::slice(&body.bytes, extra.unique_key).unwrap_or_default();
    let payload = body::slice(&body.bytes, task.payload).unwrap_or_default();
    taskmaster_protocol::memo::key(spec.namespace, spec.kind, version, payload)
}

/// The extra of a row, if it is memoised.
pub(crate) fn memoised_extra<'a>(body: &'a ArchivedSubmit, task: &ArchivedTaskRow) -> Option<&'a ArchivedExtra> {
    body.specs.get(task.spec.to_native() as usize).filter(|spec| spec.memo == 1)?;
    extra_of(body, task).filter(|extra| extra.unique_key.len.to_native() > 0)
}

/// The rows of a submission that are memoised, with their extra and key; none if it is not as it should be.
pub(crate) fn memoised(body: &ArchivedSubmit) -> impl Iterator<Item = (u32, &ArchivedExtra, Key)> {
    (0u32..).zip(body.tasks.iter()).filter_map(|(row, task)| {
        let extra = memoised_extra(body, task)?;
        let spec = &body.specs[task.spec.to_native() as usize];
        Some((row, extra, memo_key(body, task, extra, &SpecView::of(spec, &body.bytes).ok()?)))
    })
}

/// Bounds what is hashed: rows may share a payload, and each of them is hashed.
pub(crate) fn check_hashed(body: &ArchivedSubmit) -> Result<(), Refused> {
    let is_memo =
        |task: &&ArchivedTaskRow| body.specs.get(task.spec.to_native() as usize).is_some_and(|spec| spec.memo != 0);
    let hashed: u64 = body.tasks.iter().filter(is_memo).map(|task| u64::from(task.payload.len.to_native())).sum();
    if hashed > limits::BODY_BYTES_MAX as u64 {
        let message = format!(
            "payloads of memoised tasks have {hashed} bytes in one frame, at most {} are taken: split the batch",
            limits::BODY_BYTES_MAX
        );
        return Err(Refused::new(Code::TooLarge, message));
    }
    Ok(())
}

fn check_extra(body: &ArchivedSubmit, extra: &ArchivedExtra, now_us: u64, size: &mut Size) -> Result<(), Refused> {
    for (what, span) in [("unique key", extra.unique_key), ("concurrency key", extra.concurrency_key)] {
        let key = body::slice(&body.bytes, span)?;
        if key.len() > limits::KEY_BYTES_MAX {
            let message = format!("the {what} has {} bytes, at most {} are taken", key.len(), limits::KEY_BYTES_MAX);
            return Err(Refused::new(Code::TooLarge, message));
        }
        size.blob_bytes += key.len() as u64;
    }
    if extra.name.len.to_native() > 0 {
        let name = body::text(&body.bytes, extra.name)?;
        check_name("step name", name).map_err(|sentence| Refused::new(Code::Invalid, sentence))?;
        size.blob_bytes += name.len() as u64;
    }
    let horizon_ms = now_us / 1_000 + limits::HORIZON_MS_MAX;
    let absolute = [extra.not_before_ms.to_native(), extra.deadline_ms.to_native()];
    let relative = [extra.delay_ms.to_native(), extra.deadline_in_ms.to_native()];
    if absolute.iter().any(|&ms| ms > horizon_ms) || relative.iter().any(|&ms| ms > limits::HORIZON_MS_MAX) {
        return Err(Refused::new(Code::Invalid, "delays and deadlines reach at most ten years ahead"));
    }
    let deadline_us = deadline_us(extra, now_us);
    if deadline_us != 0 && deadline_us <= now_us {
        let past_ms = (now_us - deadline_us) / 1_000;
        return Err(Refused::new(Code::DeadlinePast, format!("the deadline passed {past_ms} ms ago")));
    }
    if deadline_us != 0 && due_us(extra, now_us) >= deadline_us {
        return Err(Refused::new(Code::Invalid, "the task may not start before its deadline is over"));
    }
    Ok(())
}

fn check_needs(body: &ArchivedSubmit, row: u32, extra: &ArchivedExtra, size: &mut Size) -> Result<(), Refused> {
    let needs = needs_of(body, extra)?;
    size.needs += needs.len();
    if size.needs > NEEDS_MAX {
        return Err(Refused::new(Code::TooLarge, format!("tasks of a workflow have at most {NEEDS_MAX} needs in all")));
    }
    for need in needs {
        if body.workflow.is_empty() {
            return Err(Refused::new(Code::BadDependency, "only tasks of a workflow can need others"));
        }
        if need.to_native() >= row {
            let message = format!(
                "row {row} needs row {}: needs name earlier rows, so order the tasks before their dependants",
                need.to_native()
            );
            return Err(Refused::new(Code::BadDependency, message));
        }
    }
    Ok(())
}

fn needs_of<'a>(body: &'a ArchivedSubmit, extra: &ArchivedExtra) -> Result<&'a [rkyv::rend::u32_le], Refused> {
    let (at, len) = (extra.needs.at.to_native() as usize, extra.needs.len.to_native() as usize);
    body.needs.get(at..).and_then(|rest| rest.get(..len)).ok_or_else(|| {
        Refused::new(Code::Malformed, format!("needs {at}+{len} lie outside the {} given", body.needs.len()))
    })
}

fn due_us(extra: &ArchivedExtra, now_us: u64) -> u64 {
    let delayed = match extra.delay_ms.to_native() {
        0 => 0,
        delay_ms => now_us + delay_ms * 1_000,
    };
    delayed.max(extra.not_before_ms.to_native() * 1_000)
}

fn deadline_us(extra: &ArchivedExtra, now_us: u64) -> u64 {
    let absolute = extra.deadline_ms.to_native() * 1_000;
    match extra.deadline_in_ms.to_native() {
        0 => absolute,
        ms if absolute == 0 => now_us + ms * 1_000,
        ms => absolute.min(now_us + ms * 1_000),
    }
}

/// When a row that was checked is due, and its deadline, if it has one, in microseconds since 1970.
pub(crate) fn due_and_deadline_of(body: &ArchivedSubmit, row: &ArchivedTaskRow, now_us: u64) -> Option<(u64, u64)> {
    let times = extra_of(body, row).map(|extra| (due_us(extra, now_us), deadline_us(extra, now_us)));
    times.filter(|&(_, deadline_us)| deadline_us != 0)
}

/// Whether another task holds the unique key of a row that was checked: then nothing is added.
pub(crate) fn is_held(partition: &Partition, body: &ArchivedSubmit, row: &ArchivedTaskRow, arena: &Arena) -> bool {
    let key = extra_of(body, row).and_then(|extra| body::slice(&body.bytes, extra.unique_key).ok());
    key.is_some_and(|key| !key.is_empty() && partition.unique_holder(key, arena).is_some())
}

fn check_workflow(partition: &Partition, body: &ArchivedSubmit) -> Result<(), Refused> {
    let Some(row) = body.workflow.first() else { return Ok(()) };
    let id = TaskId::from(&row.id);
    if body.workflow.len() > 1 {
        return Err(Refused::new(Code::Malformed, "a frame brings at most one workflow"));
    }
    if id.partition() != partition.id || id.lo == 0 {
        let message = format!("workflow id {id} belongs to partition {}", id.partition());
        return Err(Refused::new(Code::WrongPartition, message));
    }
    if body::text(&body.bytes, row.name)?.len() > limits::NAME_BYTES_MAX {
        return Err(Refused::new(Code::TooLarge, "the workflow's name is too long"));
    }
    let has_key =
        |extra: &ArchivedExtra| extra.unique_key.len.to_native() > 0 || extra.concurrency_key.len.to_native() > 0;
    if body.extras.iter().any(has_key) {
        let message = "tasks of a workflow cannot have unique or concurrency keys: a key's owner is another partition";
        return Err(Refused::new(Code::Invalid, message));
    }
    let mut ids: Vec<(u128, u32)> =
        body.tasks.iter().zip(0u32..).map(|(task, row)| (TaskId::from(&task.id).as_u128(), row)).collect();
    ids.sort_unstable();
    if let Some(pair) = ids.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        let message = format!("rows {} and {} of the workflow have the same id", pair[0].1, pair[1].1);
        return Err(Refused::new(Code::Invalid, message).at_row(pair[1].1));
    }
    Ok(())
}

/// The magnitude of a row's payload.
fn size_of(row: &ArchivedTaskRow) -> u8 {
    payload_size(row.payload.len.to_native() as usize)
}

/// The contracts of a submission's tasks: of each spec one per magnitude of payloads, made when the first task needs it.
struct Contracts<'a> {
    specs: Vec<SpecView<'a>>,
    made: Vec<[u32; SIZES]>,
}

impl<'a> Contracts<'a> {
    fn of(body: &'a ArchivedSubmit) -> Self {
        let specs: Vec<_> = body.specs.iter().filter_map(|spec| SpecView::of(spec, &body.bytes).ok()).collect();
        Self { made: vec![[NONE; SIZES]; specs.len()], specs }
    }

    fn get(&mut self, partition: &mut Partition, row: &ArchivedTaskRow, cx: &mut Cx<'_>) -> u32 {
        let (spec, size) = (row.spec.to_native() as usize, size_of(row));
        let contract = &mut self.made[spec][usize::from(size)];
        if *contract == NONE {
            *contract = partition.contract(&SpecView { size, ..self.specs[spec].clone() }, cx.dispatch);
        }
        *contract
    }

    /// What no task was made of is dropped.
    fn end(self, partition: &mut Partition) {
        let made = self.made.into_iter().flatten().filter(|contract| *contract != NONE);
        made.for_each(|contract| partition.drop_unused_contract(contract));
    }
}

/// Carries a logged submission out, some of whose results may be known.
pub(crate) fn apply(
    partition: &mut Partition,
    body: &ArchivedSubmit,
    known: &[KnownRow<'_>],
    resend: bool,
    cx: &mut Cx<'_>,
) -> BatchReply {
    let mut reply = BatchReply::default();
    let mut known = known.iter().peekable();
    let mut contracts = Contracts::of(body);
    if let Some(row) = body.workflow.first() {
        apply_workflow(partition, body, row, &mut contracts, resend, &mut reply, cx);
    } else {
        for (index, row) in body.tasks.iter().enumerate() {
            if !is_new(partition, index, TaskId::from(&row.id), resend, &mut reply) {
                continue;
            }
            let contract = contracts.get(partition, row, cx);
            let spec = &contracts.specs[row.spec.to_native() as usize];
            if spec.is_memo {
                while known.next_if(|known| (known.row as usize) < index).is_some() {}
                let known = known.next_if(|known| known.row as usize == index);
                apply_memoised(partition, body, row, spec, contract, known, cx);
                reply.accepted += 1;
            } else {
                apply_row(partition, body, index, row, spec, contract, &mut reply, cx);
            }
        }
    }
    contracts.end(partition);
    reply
}

/// Whether the id may be used; if not, says so in the reply.
fn is_new(partition: &Partition, index: usize, id: TaskId, resend: bool, reply: &mut BatchReply) -> bool {
    match check_new(partition, id, resend) {
        Ok(()) => true,
        Err((code, state)) => {
            except(reply, index, id, code, state);
            false
        }
    }
}

/// Whether the id may be used.
pub(crate) fn check_new(partition: &Partition, id: TaskId, resend: bool) -> Result<(), (Code, Option<State>)> {
    if let Some(slot) = partition.find(id, NONE) {
        return Err((Code::Duplicate, Some(partition.tasks[slot].state)));
    }
    if resend && id.time_ms() <= partition.forgotten_ms {
        return Err((Code::OutcomeForgotten, None));
    }
    Ok(())
}

#[expect(clippy::too_many_arguments, reason = "one row of a batch in its context")]
fn apply_row(
    partition: &mut Partition,
    body: &ArchivedSubmit,
    index: usize,
    row: &ArchivedTaskRow,
    spec: &SpecView<'_>,
    contract: u32,
    reply: &mut BatchReply,
    cx: &mut Cx<'_>,
) {
    let mut record = NONE;
    if let Some(extra) = extra_of(body, row) {
        match claim_keys(partition, body, spec, extra, cx) {
            Ok(made) => record = partition.extras.insert(made),
            Err((holder, state)) => {
                reply.exceptions.push(ExceptionRow {
                    id: holder,
                    index: u32::try_from(index).expect("rows are bounded"),
                    code: Code::UniqueConflict.number(),
                    state: state.number(),
                    reserved: 0,
                });
                return;
            }
        }
    }
    let slot = insert(partition, body, row, contract, record, State::Ready, cx);
    if record != NONE {
        let (unique, due_us) = (partition.extras[record].unique, partition.extras[record].due_us);
        if unique != Handle::NONE {
            partition.hold_unique(slot, cx.arena);
        }
        if due_us > cx.time_us {
            partition.enter_delayed(slot, due_us, cx);
            reply.accepted += 1;
            return;
        }
    }
    partition.enter_ready(slot, cx);
    reply.accepted += 1;
}

/// A new task that runs, follows another, or ends with what is known.
fn apply_memoised(
    partition: &mut Partition,
    body: &ArchivedSubmit,
    row: &ArchivedTaskRow,
    spec: &SpecView<'_>,
    contract: u32,
    known: Option<&KnownRow<'_>>,
    cx: &mut Cx<'_>,
) {
    let extra = extra_of(body, row).expect("checked at admission");
    let key = memo_key(body, row, extra, spec);
    let record = partition.extras.insert(Extra {
        due_us: due_us(extra, cx.time_us),
        deadline_us: deadline_us(extra, cx.time_us),
        unique: store(cx.arena, &memo::unique_key(&key)),
        ..Extra::default()
    });
    let slot = insert(partition, body, row, contract, record, State::Waiting, cx);
    match known {
        Some(known) => partition.enter_known(slot, &key, known.of, known.made_us, known.result, cx),
        None => partition.enter_memoised(slot, &key, extra.unique_window_ms.to_native(), cx),
    }
}

/// Stores a new task. It is counted in `state` and on no list.
fn insert(
    partition: &mut Partition,
    body: &ArchivedSubmit,
    row: &ArchivedTaskRow,
    contract: u32,
    extra: u32,
    state: State,
    cx: &mut Cx<'_>,
) -> u32 {
    let id = TaskId::from(&row.id);
    let payload = body::slice(&body.bytes, row.payload).unwrap_or_default();
    let blob = store(cx.arena, payload);
    let slot = partition.insert(Task::new(id, contract, extra, blob, state, cx.time_us));
    partition.note(slot, Change::Submitted, cx.time_us);
    if let Some(extra) = partition.extras.get(extra)
        && extra.deadline_us != 0
    {
        cx.timers.insert_step(extra.deadline_us, Timer::of_task(partition.id, TimerKind::Deadline, slot, id));
    }
    slot
}

/// Stores a blob whose room was reserved at admission.
pub(crate) fn store(arena: &mut Arena, bytes: &[u8]) -> Handle {
    if bytes.is_empty() {
        return Handle::NONE;
    }
    arena.alloc(bytes).expect("room for admitted blobs is reserved")
}

/// Stores a blob once more.
pub(crate) fn copy(arena: &mut Arena, blob: Handle) -> Handle {
    let bytes = arena.get(blob).to_vec();
    store(arena, &bytes)
}

/// Builds the extra of a plain task, and takes its keys unless the unique one is held.
fn claim_keys(
    partition: &mut Partition,
    body: &ArchivedSubmit,
    spec: &SpecView<'_>,
    extra: &ArchivedExtra,
    cx: &mut Cx<'_>,
) -> Result<Extra, (TaskId, State)> {
    let concurrency = body::slice(&body.bytes, extra.concurrency_key).unwrap_or_default();
    let unique = body::slice(&body.bytes, extra.unique_key).unwrap_or_default();
    let mut made =
        Extra { due_us: due_us(extra, cx.time_us), deadline_us: deadline_us(extra, cx.time_us), ..Extra::default() };
    if !unique.is_empty() {
        let scoped = scoped_key(spec, &[concurrency, unique]);
        if let Some(holder) = partition.unique_conflict(&scoped, cx.arena, cx.time_us) {
            return Err((partition.tasks[holder].id, partition.tasks[holder].state));
        }
        made.unique_until_us = match extra.unique_window_ms.to_native() {
            0 => 0,
            window_ms => cx.time_us + u64::from(window_ms) * 1_000,
        };
        made.unique = store(cx.arena, &scoped);
    }
    if !concurrency.is_empty() {
        let scoped = scoped_key(spec, &[concurrency]);
        made.key = partition.key(scoped, extra.concurrency_limit.to_native(), cx.dispatch);
    }
    Ok(made)
}

/// A key of a queue's tasks with its scope.
pub(crate) fn scoped_key(spec: &SpecView<'_>, parts: &[&[u8]]) -> Vec<u8> {
    let mut scoped = Vec::with_capacity(64);
    for part in [spec.namespace.as_bytes(), spec.queue.as_bytes()].iter().chain(parts) {
        scoped.extend_from_slice(&u32::try_from(part.len()).expect("keys are bounded").to_le_bytes());
        scoped.extend_from_slice(part);
    }
    scoped
}

/// The key, as it was given, in a scoped one: the last of its parts.
pub(crate) fn key_in_scope(scoped: &[u8]) -> &[u8] {
    let mut parts = scoped;
    while let Some((len, behind)) = parts.split_first_chunk() {
        match behind.split_at_checked(u32::from_le_bytes(*len) as usize) {
            Some((part, [])) => return part,
            Some((_, rest)) => parts = rest,
            None => break,
        }
    }
    &[]
}

fn apply_workflow(
    partition: &mut Partition,
    body: &ArchivedSubmit,
    row: &body::ArchivedWorkflowRow,
    contracts: &mut Contracts<'_>,
    resend: bool,
    reply: &mut BatchReply,
    cx: &mut Cx<'_>,
) {
    for (index, row) in body.tasks.iter().enumerate() {
        is_new(partition, index, TaskId::from(&row.id), resend, reply);
    }
    let workflow = TaskId::from(&row.id);
    if reply.exceptions.is_empty() && partition.workflows.find(workflow).is_some() {
        for (index, row) in body.tasks.iter().enumerate() {
            except(reply, index, TaskId::from(&row.id), Code::Duplicate, None);
        }
    }
    if !reply.exceptions.is_empty() {
        return;
    }
    let needs: Vec<Vec<u32>> = body
        .tasks
        .iter()
        .map(|task| {
            let needs = extra_of(body, task).and_then(|extra| needs_of(body, extra).ok()).unwrap_or_default();
            let mut needs: Vec<u32> = needs.iter().map(|need| need.to_native()).collect();
            needs.sort_unstable();
            needs.dedup();
            needs
        })
        .collect();
    let name = store(cx.arena, body::slice(&body.bytes, row.name).unwrap_or_default());
    let continues = row.on_failure.to_native() == 1;
    let made = Workflow::new(TaskId::from(&row.id), name, continues, &needs, cx.time_us);
    let workflow = partition.workflows.insert(made);
    for ((number, task), needs) in (0u32..).zip(body.tasks.iter()).zip(&needs) {
        let mut made = Extra { workflow, row: number, ..Extra::default() };
        made.needs = u32::try_from(needs.len()).expect("rows are bounded");
        if let Some(extra) = extra_of(body, task) {
            made.due_us = due_us(extra, cx.time_us);
            made.deadline_us = deadline_us(extra, cx.time_us);
            made.name = store(cx.arena, body::slice(&body.bytes, extra.name).unwrap_or_default());
        }
        let record = partition.extras.insert(made);
        let contract = contracts.get(partition, task, cx);
        let slot = insert(partition, body, task, contract, record, State::Waiting, cx);
        partition.workflows[workflow].rows.push(slot);
        reply.accepted += 1;
        if needs.is_empty() {
            workflow::release(partition, slot, cx);
        }
    }
}

//! Tasks, queues and workflows as JSON objects and as text.
//!
//! JSON shapes are stable: snake_case keys, ids as strings, times as ISO 8601 in UTC (null when unknown), durations in
//! milliseconds. Payloads and results are JSON values when their bytes are JSON, else strings when they are UTF-8, else
//! objects `{"hex": "..."}`.

use serde_json::{Map, Value, json};
use taskmaster_client::{Counts, QueueView, State, TaskView, WorkflowTaskView, WorkflowView};

use crate::output::{Output, Tint, human_bytes, human_us, iso_time, pairs};

/// Bytes as the most readable JSON value.
pub(crate) fn bytes_json(bytes: &[u8]) -> Value {
    if bytes.is_empty() {
        return Value::Null;
    }
    if let Ok(value) = serde_json::from_slice(bytes) {
        return value;
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => json!(text),
        Err(_) => json!({"hex": bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()}),
    }
}

/// A time in microseconds as JSON; null for 0.
fn time_json(us: u64) -> Value {
    if us == 0 { Value::Null } else { json!(iso_time(us)) }
}

/// Text as JSON; null when empty.
fn text_json(text: &str) -> Value {
    if text.is_empty() { Value::Null } else { json!(text) }
}

/// A task. `with_bytes`: payload, result and log too.
pub(crate) fn task_json(task: &TaskView, with_bytes: bool) -> Value {
    let mut object = json!({
        "id": task.id.to_string(),
        "workflow": task.workflow.map(|id| id.to_string()),
        "name": text_json(&task.name),
        "namespace": task.namespace,
        "queue": task.queue,
        "kind": task.kind,
        "state": task.state.name(),
        "priority": task.priority.name(),
        "restartable": task.is_restartable,
        "attempt": task.attempt,
        "attempts_max": task.attempts_max,
        "created_at": time_json(task.id.time_ms().saturating_mul(1_000)),
        "state_at": time_json(task.at_us),
        "started_at": time_json(task.started_us),
        "deadline_at": time_json(task.deadline_ms.saturating_mul(1_000)),
        "late": task.is_late,
        "memo": task.is_memo,
        "worker": text_json(&task.worker),
        "note": text_json(&task.note),
        "done_permille": task.done_permille,
        "error_code": text_json(&task.error_code),
        "error": text_json(&task.error),
    });
    if with_bytes && let Some(object) = object.as_object_mut() {
        object.insert("payload".to_owned(), bytes_json(&task.payload));
        object.insert("result".to_owned(), bytes_json(&task.result));
        object.insert("log_tail".to_owned(), bytes_json(&task.log_tail));
    }
    object
}

/// Bytes for people: text as it is, up to a length; other bytes as their size.
fn bytes_text(bytes: &[u8], characters_max: usize) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if text.chars().count() <= characters_max => text.to_owned(),
        Ok(text) => {
            let shown: String = text.chars().take(characters_max).collect();
            format!("{shown}… ({} in all)", human_bytes(bytes.len() as u64))
        }
        Err(_) => format!("({} of binary data)", human_bytes(bytes.len() as u64)),
    }
}

/// A state in its colour.
pub(crate) fn state_text(output: Output, state: State) -> String {
    let tint = match state {
        State::Succeeded => Tint::Good,
        State::Failed | State::Expired => Tint::Bad,
        State::Cancelled => Tint::Dim,
        State::Delayed | State::Leased => Tint::Caution,
        State::Waiting | State::Ready => return state.name().to_owned(),
    };
    output.tint(tint, state.name())
}

/// A task with everything that is known of it; what is not known is left out.
pub(crate) fn task_text(task: &TaskView, output: Output) -> String {
    const CHARACTERS_MAX: usize = 2_000;
    let due = if task.state == State::Delayed { "due" } else { "since" };
    let progress = match (task.done_permille, task.note.as_str()) {
        (0, "") => String::new(),
        (_, note) if task.is_memo => format!("{note}: this one did not run"),
        (done, note) => format!("{}.{}% {note}", done / 10, done % 10),
    };
    let error = match (task.error_code.as_str(), task.error.as_str()) {
        ("", error) => error.to_owned(),
        (code, error) => format!("[{code}] {error}"),
    };
    let late = if task.is_late { " (late)" } else { "" };
    let lines = [
        ("id", task.id.to_string()),
        ("state", format!("{}{late}", state_text(output, task.state))),
        (due, iso_time(task.at_us)),
        ("kind", task.kind.clone()),
        ("queue", task.queue.clone()),
        ("namespace", task.namespace.clone()),
        ("priority", task.priority.name().to_owned()),
        ("restartable", if task.is_restartable { "yes".to_owned() } else { String::new() }),
        ("attempt", format!("{} of {}", task.attempt, task.attempts_max)),
        ("workflow", task.workflow.map(|id| id.to_string()).unwrap_or_default()),
        ("name", task.name.clone()),
        ("created", iso_time(task.id.time_ms().saturating_mul(1_000))),
        ("started", iso_time(task.started_us)),
        ("deadline", iso_time(task.deadline_ms.saturating_mul(1_000))),
        ("worker", task.worker.clone()),
        ("progress", progress),
        ("error", error),
        ("payload", bytes_text(&task.payload, CHARACTERS_MAX)),
        ("result", bytes_text(&task.result, CHARACTERS_MAX)),
        ("log", bytes_text(&task.log_tail, CHARACTERS_MAX)),
    ];
    let known: Vec<_> = lines.into_iter().filter(|(_, value)| !value.is_empty()).collect();
    pairs(&known)
}

/// Tasks by state.
pub(crate) fn counts_json(counts: &Counts) -> Value {
    let object: Map<String, Value> =
        State::ALL.iter().map(|&state| (state.name().to_owned(), json!(counts.of(state)))).collect();
    Value::Object(object)
}

/// A queue.
pub(crate) fn queue_json(queue: &QueueView) -> Value {
    json!({
        "namespace": queue.namespace,
        "queue": queue.queue,
        "counts": counts_json(&queue.counts),
        "paused": queue.is_paused,
        "draining": queue.is_draining,
        "rate_milli_per_s": queue.rate_milli_per_s,
        "rate_burst": queue.rate_burst,
        "concurrency": queue.concurrency,
        "depth_max": queue.depth_max,
        "retention_ms": queue.retention_ms,
        "deadline_action": if queue.flags_deadlines { "flag" } else { "expire" },
        "policy": queue.policy.name(),
        "weight": queue.weight,
        "refuse_hopeless_permille": queue.refuse_permille,
        "speculation": !queue.is_without_speculation,
        "preemption": !queue.is_without_preemption,
        "giving_up": !queue.is_without_giving_up,
        "contention": !queue.is_without_contention,
    })
}

/// One task of a workflow.
fn workflow_task_json(task: &WorkflowTaskView) -> Value {
    json!({
        "id": task.id.to_string(),
        "name": task.name,
        "state": task.state.name(),
        "attempt": task.attempt,
        "ready_at": time_json(task.ready_us),
        "started_at": time_json(task.started_us),
        "finished_at": time_json(task.finished_us),
    })
}

/// A workflow, with its tasks if it has been asked for alone.
pub(crate) fn workflow_json(workflow: &WorkflowView, with_tasks: bool) -> Value {
    let mut object = json!({
        "id": workflow.id.to_string(),
        "name": workflow.name,
        "state": workflow_state(workflow),
        "counts": counts_json(&workflow.counts),
        "submitted_at": time_json(workflow.submitted_us),
        "finished_at": time_json(workflow.finished_us),
    });
    if with_tasks && let Some(object) = object.as_object_mut() {
        let tasks = workflow.tasks.iter().map(workflow_task_json).collect();
        object.insert("tasks".to_owned(), Value::Array(tasks));
    }
    object
}

/// `running`, `succeeded` or `failed`.
pub(crate) fn workflow_state(workflow: &WorkflowView) -> &'static str {
    match (workflow.is_finished(), workflow.is_success()) {
        (false, _) => "running",
        (true, true) => "succeeded",
        (true, false) => "failed",
    }
}

/// How long a workflow took, or has been running.
pub(crate) fn workflow_time(workflow: &WorkflowView, now_us: u64) -> String {
    let end_us = if workflow.is_finished() { workflow.finished_us } else { now_us };
    human_us(end_us.saturating_sub(workflow.submitted_us))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_become_the_most_readable_value() {
        assert_eq!(bytes_json(b""), Value::Null);
        assert_eq!(bytes_json(b"{\"a\":1}"), json!({"a": 1}));
        assert_eq!(bytes_json(b"plain text"), json!("plain text"));
        assert_eq!(bytes_json(&[0xFF, 0x00]), json!({"hex": "ff00"}));
    }

    #[test]
    fn long_bytes_are_cut_for_people() {
        assert_eq!(bytes_text(b"abc", 3), "abc");
        assert_eq!(bytes_text(b"abcd", 3), "abc… (4 B in all)");
        assert_eq!(bytes_text(&[0xFF], 3), "(1 B of binary data)");
    }
}

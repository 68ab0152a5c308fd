//! A task's work as the kind and the payload that workers understand.

use serde::Serialize;

use super::{PlanTask, Work};

/// Payload of an `exec` task. What a process writes beyond the longest result is cut, since its output is for people.
#[derive(Serialize)]
struct Exec<'a> {
    command: &'a [String],
    env: Env<'a>,
    cwd: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    stdin: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_ms: Option<u64>,
    #[serde(skip_serializing_if = "<[u8]>::is_empty")]
    non_retryable: &'a [u8],
    truncate: bool,
}

/// Variables as an object.
struct Env<'a>(&'a [(String, String)]);

impl Serialize for Env<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

/// Payload of a `replay` task.
#[derive(Serialize)]
struct Replayed {
    ms: f64,
    memory_bytes: u64,
}

impl PlanTask {
    /// The kind that handles it and the payload for that kind: `exec` for a process, `replay` for a recorded run, else
    /// what the file says.
    #[must_use]
    pub fn kind_and_payload(&self) -> (&str, Vec<u8>) {
        match &self.work {
            Work::Command(command) => {
                let exec = Exec {
                    command: &command.argv,
                    env: Env(&command.env),
                    cwd: if command.cwd.is_empty() { "." } else { &command.cwd },
                    stdin: command.stdin.as_deref(),
                    timeout_ms: self.contract.timeout_ms,
                    non_retryable: &self.contract.retry.non_retryable_exit_codes,
                    truncate: true,
                };
                ("exec", json(&exec))
            }
            Work::Kind { kind, payload } => (kind, payload.clone().into_bytes()),
            Work::Replay(replay) => {
                ("replay", json(&Replayed { ms: replay.runtime_s * 1_000.0, memory_bytes: replay.memory_bytes }))
            }
        }
    }
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("texts and finite numbers always serialise")
}

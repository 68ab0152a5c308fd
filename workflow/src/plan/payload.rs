//! A task's work as the kind and the payload that workers understand.

use std::borrow::Cow;

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

/// Most bytes of a group's name in a kind.
const GROUP_BYTES_MAX: usize = 100;

/// Payload of a `replay` task.
#[derive(Serialize)]
struct Replayed {
    ms: f64,
    memory_bytes: u64,
}

impl PlanTask {
    /// The kind that handles it and the payload for that kind: `exec` for a process, `replay` for a recorded run, if `varies` with the
    /// group behind a slash, by which run times are learned; else what the file says.
    #[must_use]
    pub fn kind_and_payload(&self, varies: bool) -> (Cow<'_, str>, Vec<u8>) {
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
                (self.variant("exec", varies), json(&exec))
            }
            Work::Kind { kind, payload } => (kind.into(), payload.clone().into_bytes()),
            Work::Replay(replay) => {
                let replayed = Replayed { ms: replay.runtime_s * 1_000.0, memory_bytes: replay.memory_bytes };
                (self.variant("replay", varies), json(&replayed))
            }
        }
    }

    /// A kind with the group as its variant, of the characters that a kind may have.
    fn variant(&self, kind: &'static str, varies: bool) -> Cow<'_, str> {
        if !varies {
            return kind.into();
        }
        let mut variant = format!("{kind}/");
        for of in self.group.chars().filter(|of| !of.is_control() && *of != ',') {
            if variant.len() + of.len_utf8() > kind.len() + 1 + GROUP_BYTES_MAX {
                break;
            }
            variant.push(of);
        }
        variant.into()
    }
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("texts and finite numbers always serialise")
}

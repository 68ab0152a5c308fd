//! A command to run, as JSON in the payload of an `exec` task or as `--exec` gives it to a worker.
//!
//! This file only understands and checks; [`crate::process`] runs.

use crate::builtin::excerpt;
use crate::job::Failure;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What a command is: one of `command` and `run`, and what surrounds it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Command {
    /// Program and arguments, without a shell.
    pub command: Vec<String>,
    /// Text for `/bin/sh -c`, in place of `command`.
    pub run: Option<String>,
    /// Variables added to the worker's own environment.
    pub env: BTreeMap<String, String>,
    /// Working directory; the worker's own where absent.
    pub cwd: Option<PathBuf>,
    /// Standard input as text.
    pub stdin: Option<String>,
    /// How long it may run, in milliseconds.
    pub timeout_ms: Option<u64>,
    /// Exit codes which no further attempt would mend.
    pub non_retryable: Vec<i32>,
    /// Cut a result which is too large, where it would otherwise fail the task.
    pub truncate: bool,
}

impl Command {
    /// Reads an `exec` task's payload.
    ///
    /// # Errors
    /// A permanent failure with the code `bad_payload` which says what would be right.
    pub fn from_payload(payload: &[u8]) -> Result<Self, Failure> {
        let command: Self = serde_json::from_slice(payload).map_err(|error| {
            bad(format!(
                r#"it is {{"command": ["program", "argument"]}} or {{"run": "shell text"}}, but `{}`: {error}"#,
                excerpt(payload)
            ))
        })?;
        command.check()?;
        Ok(command)
    }

    /// Reads what `--exec` was given: a text with white space or shell signs in it is for the shell, anything else is a
    /// program.
    #[must_use]
    pub fn from_exec_argument(text: &str) -> Self {
        let plain = !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || "/._-+@%:,=".contains(c));
        if plain {
            Self { command: vec![text.to_owned()], ..Self::default() }
        } else {
            Self { run: Some(text.to_owned()), ..Self::default() }
        }
    }

    /// Checks that there is exactly one thing to run and that the kernel can be told of it.
    ///
    /// # Errors
    /// As [`Self::from_payload`].
    pub fn check(&self) -> Result<(), Failure> {
        match (&self.run, self.command.first()) {
            (Some(_), Some(_)) => return Err(bad("it has both `command` and `run`; keep one of them".to_owned())),
            (None, None) => return Err(bad("it has neither `command` nor `run`".to_owned())),
            (None, Some(program)) if program.is_empty() => return Err(bad("the program's name is empty".to_owned())),
            (Some(_), None) | (None, Some(_)) => {}
        }
        for (name, value) in &self.env {
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                return Err(bad(format!("`{}` cannot be an environment variable", excerpt(name.as_bytes()))));
            }
        }
        let text = self.command.iter().chain(&self.run).any(|text| text.contains('\0'));
        if text || self.cwd.as_ref().is_some_and(|cwd| cwd.as_os_str().as_encoded_bytes().contains(&0)) {
            return Err(bad("a command cannot contain a zero byte".to_owned()));
        }
        Ok(())
    }

    /// Program and arguments as the kernel gets them.
    #[must_use]
    pub fn argv(&self) -> Vec<String> {
        match &self.run {
            Some(text) => vec!["/bin/sh".to_owned(), "-c".to_owned(), text.clone()],
            None => self.command.clone(),
        }
    }
}

fn bad(why: String) -> Failure {
    Failure::permanent("bad_payload", format!("the task's command cannot be used: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_are_read_or_refused_with_a_sentence() {
        let command = Command::from_payload(br#"{"run": "exit 3", "env": {"A": "b"}, "non_retryable": [3]}"#).unwrap();
        assert_eq!(command.argv(), ["/bin/sh", "-c", "exit 3"]);
        for (payload, says) in [
            (&b"{}"[..], "neither"),
            (br#"{"run": "a", "command": ["b"]}"#, "both"),
            (br#"{"command": [""]}"#, "empty"),
            (br#"{"command": ["a\u0000b"]}"#, "zero byte"),
            (br#"{"run": "a", "env": {"A=B": "c"}}"#, "environment variable"),
            (br#"{"comand": ["a"]}"#, "unknown field `comand`"),
            (b"\xff\xfe", "expected value"),
        ] {
            let failure = Command::from_payload(payload).unwrap_err();
            assert_eq!((failure.code.as_str(), failure.retryable), ("bad_payload", false));
            assert!(failure.error.contains(says), "{}", failure.error);
        }
    }

    #[test]
    fn an_exec_argument_with_white_space_goes_to_the_shell() {
        assert_eq!(Command::from_exec_argument("./send.sh").command, ["./send.sh"]);
        assert_eq!(Command::from_exec_argument("wc -c").run.as_deref(), Some("wc -c"));
        assert_eq!(Command::from_exec_argument("~/send;ls").run.as_deref(), Some("~/send;ls"));
    }
}

//! Exit codes, and failures as a sentence with a code.

use std::fmt;
use std::process::ExitCode;

use serde_json::json;
use taskmaster_client::Error;
use taskmaster_protocol::Code;

use crate::output::Shape;

/// How a command ended. The numbers are documented and never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Done.
    Success = 0,
    /// Something failed on this side.
    Failed = 1,
    /// Wrong arguments or configuration.
    Usage = 2,
    /// The server said no.
    Refused = 3,
    /// No server answered.
    Unreachable = 4,
    /// No such task, queue, workflow or file.
    NotFound = 5,
    /// The task or workflow ended without success.
    TaskFailed = 6,
    /// The wait ended first.
    TimedOut = 7,
    /// Ended by Ctrl-C or a termination signal.
    Interrupted = 130,
}

impl Exit {
    /// The number.
    pub(crate) const fn number(self) -> u8 {
        self as u8
    }

    /// Stable name, used in JSON errors.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failed => "failed",
            Self::Usage => "usage",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::NotFound => "not_found",
            Self::TaskFailed => "task_failed",
            Self::TimedOut => "timed_out",
            Self::Interrupted => "interrupted",
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.number())
    }
}

/// Why a command did not do what was asked.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The exit code.
    pub(crate) exit: Exit,
    /// The server's stable code, where it refused.
    code: Option<Code>,
    /// What is wrong and what would be right.
    message: String,
}

impl Failure {
    /// A failure with this exit code.
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, code: None, message: message.into() }
    }

    /// Wrong arguments or configuration.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// Prints itself on standard error, as a sentence or as one JSON object.
    pub(crate) fn report(&self, shape: Shape) {
        match shape {
            Shape::Text => eprintln!("error: {}", self.message),
            Shape::Json => {
                let code = self.code.map_or(self.exit.name(), Code::name);
                eprintln!("{}", json!({"error": {"code": code, "message": self.message, "exit": self.exit.number()}}));
            }
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let exit = match &error {
            Error::Connect { .. } | Error::Lost { .. } | Error::Protocol(_) => Exit::Unreachable,
            Error::Timeout { .. } => Exit::TimedOut,
            Error::NotSucceeded(_) => Exit::TaskFailed,
            Error::Refused(refusal) => exit_of(refusal.code),
            _ => Exit::Failed,
        };
        Self { exit, code: error.code(), message: error.to_string() }
    }
}

/// The exit code of a refusal.
pub(crate) fn exit_of(code: Code) -> Exit {
    match code {
        Code::UnknownTask | Code::UnknownQueue | Code::UnknownWorkflow | Code::UnknownVersion => Exit::NotFound,
        Code::TimedOut => Exit::TimedOut,
        _ => Exit::Refused,
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        let exit = if error.kind() == std::io::ErrorKind::NotFound { Exit::NotFound } else { Exit::Failed };
        Self::new(exit, error.to_string())
    }
}

impl From<anyhow::Error> for Failure {
    /// Keeps the whole chain of causes; a [`Failure`] or a client's error within keeps its exit code.
    fn from(error: anyhow::Error) -> Self {
        let message = format!("{error:#}");
        match error.downcast::<Self>() {
            Ok(failure) => failure,
            Err(error) => match error.downcast::<Error>() {
                Ok(error) => Self { message, ..Self::from(error) },
                Err(_) => Self::new(Exit::Failed, message),
            },
        }
    }
}

impl From<crate::config::Error> for Failure {
    fn from(error: crate::config::Error) -> Self {
        Self::usage(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_kind_of_failure_has_its_documented_exit_code() {
        let exit = |error| Failure::from(error).exit.number();
        assert_eq!(exit(Error::Connect { address: "a".into(), reason: "b".into() }), 4);
        assert_eq!(exit(Error::Lost { reason: "b".into() }), 4);
        assert_eq!(exit(Error::Timeout { after: Duration::ZERO, refusal: None }), 7);
        assert_eq!(exit_of(Code::UnknownTask).number(), 5);
        assert_eq!(exit_of(Code::UnknownQueue).number(), 5);
        assert_eq!(exit_of(Code::UnknownWorkflow).number(), 5);
        assert_eq!(exit_of(Code::TimedOut).number(), 7);
        assert_eq!(exit_of(Code::Overloaded).number(), 3);
        assert_eq!(Failure::usage("x").exit.number(), 2);
        assert_eq!(Exit::Interrupted.number(), 130);
    }

    #[test]
    fn a_wrapped_error_keeps_its_exit_code_and_its_context() {
        let error = anyhow::Error::from(Error::Timeout { after: Duration::from_secs(1), refusal: None })
            .context("while waiting");
        let failure = Failure::from(error);
        assert_eq!(failure.exit, Exit::TimedOut);
        assert!(failure.to_string().starts_with("while waiting: "));
    }
}

//! Checks of the machine: what a node needs, what would slow it down, and how to mend each.
//!
//! Every check gives one sentence, and what to do when something is wrong. `fail` means that a node cannot start or
//! would not be safe; `warn` means that it works, but worse than it could. [`preflight`] is the part that every start
//! runs: it takes microseconds and turns what would be a panic deep in the runtime into advice.
//!
//! What it does not do: change the machine. It creates one probe file in the data directory (or the nearest existing
//! directory above it) and removes it; [`preflight`] raises this process's own soft limits up to its hard limits.

mod disk;
mod events;
mod host;
mod kernel;
mod postgres;
mod redis;
pub(crate) mod streams;

use serde::Serialize;

use crate::config::Config;

pub(crate) use disk::file_system_name;
pub(crate) use kernel::preflight;

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Status {
    /// As it should be.
    Ok,
    /// Works, but worse than it could.
    Warn,
    /// A node cannot start, or would not be safe.
    Fail,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Check {
    /// Stable name.
    pub(crate) name: &'static str,
    /// How it went.
    pub(crate) status: Status,
    /// What was found, as a sentence.
    pub(crate) message: String,
    /// What to do; `None` when nothing needs doing.
    pub(crate) fix: Option<String>,
}

impl Check {
    fn ok(name: &'static str, message: impl Into<String>) -> Self {
        Self { name, status: Status::Ok, message: message.into(), fix: None }
    }

    fn warn(name: &'static str, message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, status: Status::Warn, message: message.into(), fix: Some(fix.into()) }
    }

    fn fail(name: &'static str, message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, status: Status::Fail, message: message.into(), fix: Some(fix.into()) }
    }
}

/// All checks, and the worst of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Report {
    /// The worst status.
    pub(crate) status: Status,
    /// The checks, in the order of a start.
    pub(crate) checks: Vec<Check>,
}

/// Looks at the machine as a node with this configuration would find it. Takes about a second, most of it on the disk.
pub(crate) fn examine(config: &Config) -> Report {
    let mut checks = vec![kernel::io_uring(), kernel::memlock(), kernel::open_files(config), kernel::huge_pages()];
    checks.extend(disk::checks(config));
    checks.extend([host::memory(config), host::processors(config), host::clock_source(), host::clock_sync()]);
    checks.extend([host::cgroup(), host::worker_limits(), host::port(config)]);
    checks.extend(host::peer_port(config));
    checks.extend(postgres::check(config));
    checks.extend(streams::checks(config));
    checks.extend(events::check(config));
    checks.extend(redis::check(config));
    let status = checks.iter().map(|check| check.status).max().unwrap_or(Status::Ok);
    Report { status, checks }
}

/// A fatal finding of [`preflight`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}\n{fix}\n(`taskmaster doctor` checks the whole machine)")]
pub(crate) struct Unfit {
    /// What was found.
    message: String,
    /// What to do.
    fix: String,
}

impl Unfit {
    /// The finding, when it is fatal.
    fn from_check(check: Check) -> Result<(), Self> {
        match check.status {
            Status::Ok | Status::Warn => Ok(()),
            Status::Fail => Err(Self { message: check.message, fix: check.fix.unwrap_or_default() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_has_a_stable_json_shape_and_the_worst_status() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.node.data_dir = folder.path().join("deep/er");
        config.listen.address.set_port(0);
        let report = examine(&config);
        let json = serde_json::to_value(&report).unwrap();
        let checks = json["checks"].as_array().unwrap();
        let names: Vec<_> = checks.iter().map(|check| check["name"].as_str().unwrap()).collect();
        for name in ["io_uring", "memlock", "open_files", "huge_pages", "data_dir", "file_system", "direct_io", "flush"]
        {
            assert!(names.contains(&name), "{name} is missing in {names:?}");
        }
        for name in
            ["free_space", "memory", "processors", "clock_source", "clock_sync", "cgroup", "worker_limits", "port"]
        {
            assert!(names.contains(&name), "{name} is missing in {names:?}");
        }
        for check in checks {
            let status = check["status"].as_str().unwrap();
            assert!(["ok", "warn", "fail"].contains(&status));
            assert!(check["message"].as_str().unwrap().ends_with('.'), "{check}");
            assert_eq!(check["fix"].is_null(), status == "ok", "{check}");
        }
        assert_eq!(report.status, report.checks.iter().map(|check| check.status).max().unwrap());
        assert!(!config.node.data_dir.exists(), "a check created the data directory");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "a check left a file behind");
    }

    #[test]
    fn statuses_are_ordered_by_gravity() {
        assert!(Status::Ok < Status::Warn && Status::Warn < Status::Fail);
    }
}

//! Real servers of the systems that Taskmaster connects to: each test that needs one starts its own, on free ports and in a directory of
//! its own, and ends it. A server that is not installed fails the test; `scripts/setup --test` installs them.

pub(crate) mod certificates;
pub(crate) mod kafka;
pub(crate) mod objects;
pub(crate) mod postgres;
pub(crate) mod redis;

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::TempDir;

/// The user that servers run as when tests run as root, which they refuse.
fn unprivileged() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let users = std::fs::read_to_string("/etc/passwd").unwrap();
    let user =
        ["postgres", "nobody"].iter().find_map(|name| users.lines().find(|line| line.split(':').next() == Some(name)));
    let ids = user.map(|line| {
        let number = |place| line.split(':').nth(place).unwrap().parse().unwrap();
        (number(2), number(3))
    });
    Some(ids.expect("a user without privileges"))
}

/// A fresh directory that the servers' user may write.
pub(crate) fn directory(name: &str) -> TempDir {
    let directory = tempfile::Builder::new().prefix(name).tempdir().unwrap();
    hand_over(directory.path());
    directory
}

/// Gives a file to the servers' user.
fn hand_over(path: &Path) {
    if let Some((user, group)) = unprivileged() {
        std::os::unix::fs::chown(path, Some(user), Some(group)).unwrap();
    }
}

/// Writes a file that nobody but the servers' user may read.
pub(crate) fn private_file(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    hand_over(path);
}

/// A program as the servers' user, in a process group of its own.
fn program(path: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(path);
    if let Some((user, group)) = unprivileged() {
        command.uid(user).gid(group).env("HOME", "/nonexistent");
    }
    command.process_group(0);
    command
}

/// `kill -9` of a server and all that it started.
fn kill_all(child: &std::process::Child) {
    // It may have ended already.
    let _ = kill_process_group(Pid::from_child(child), Signal::KILL);
}

//! Names of our directories, and clearing away those of dead workers.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

const PREFIX: &str = "taskmaster";
/// How long the killed may take to leave a stale directory.
const TRIES: u32 = 50;
const PAUSE: Duration = Duration::from_millis(2);

/// Who made a directory. A pid alone may be another process's by the time it is looked at, or mean another one in another
/// pid namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Owner {
    pid: u32,
    start_ticks: u64,
    pid_namespace: u64,
}

impl Owner {
    fn this() -> Self {
        let pid = std::process::id();
        Self { pid, start_ticks: start_ticks(pid).unwrap_or(0), pid_namespace: pid_namespace() }
    }

    fn parse(name: &str) -> Option<Self> {
        let mut parts = name.strip_prefix(PREFIX)?.strip_prefix('-')?.splitn(4, '-');
        let mut number = || parts.next()?.parse::<u64>().ok();
        let (pid, start_ticks, pid_namespace) = (number()?, number()?, number()?);
        parts.next()?;
        Some(Self { pid: u32::try_from(pid).ok()?, start_ticks, pid_namespace })
    }

    /// Whether its process certainly exists no more.
    fn is_dead(self) -> bool {
        self.pid_namespace == pid_namespace() && start_ticks(self.pid) != Some(self.start_ticks)
    }
}

/// Field 22 of `/proc/PID/stat`: when the process started, in clock ticks since boot.
fn start_ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

fn pid_namespace() -> u64 {
    let link = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    let digits: String = link.to_string_lossy().chars().filter(char::is_ascii_digit).collect();
    digits.parse().unwrap_or(0)
}

/// A name for a new directory of this process.
pub(super) fn new_name() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let Owner { pid, start_ticks, pid_namespace } = Owner::this();
    format!("{PREFIX}-{pid}-{start_ticks}-{pid_namespace}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Kills and removes what dead workers left beneath `dir`.
pub(super) fn clear(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_str().and_then(Owner::parse).is_some_and(Owner::is_dead) {
            clear_one(&entry.path());
        }
    }
}

fn clear_one(dir: &Path) {
    for _ in 0..TRIES {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) && fs::remove_dir(entry.path()).is_err() {
                super::kill_all(&entry.path());
            }
        }
        if fs::remove_dir(dir).is_ok() {
            tracing::info!(dir = %dir.display(), "cleared away the cgroups of a worker that is gone");
            return;
        }
        thread::sleep(PAUSE);
    }
    tracing::warn!(dir = %dir.display(), "the cgroups of a worker that is gone could not be removed");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_directories_of_the_certainly_dead_are_stale() {
        let own = Owner::parse(&new_name()).unwrap();
        assert_eq!(own, Owner::this());
        assert!(!own.is_dead());
        assert!(Owner { start_ticks: own.start_ticks + 1, ..own }.is_dead(), "a pid which was used again");
        assert!(
            !Owner { start_ticks: 1, pid_namespace: 1, ..own }.is_dead(),
            "another namespace's pid means nothing here"
        );
        for foreign in ["taskmaster", "taskmaster-1", "taskmaster-1-2-3", "taskmaster-x-1-2-3", "system.slice"] {
            assert_eq!(Owner::parse(foreign), None);
        }
    }
}

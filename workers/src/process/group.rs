//! Everything that descends from a task's process: ended together.
//!
//! A task's process leads a session and a process group, both numbered by its pid. While the leader has not been waited
//! for, that number cannot be reused, so signals to the group reach nobody else.

use rustix::process::{Pid, Signal};
use std::fs;

/// Signals the whole group; does nothing if nobody is left in it.
pub(super) fn signal(leader: Pid, signal: Signal) {
    let _ = rustix::process::kill_process_group(leader, signal);
}

/// Whether anybody, a zombie included, is in the group. Only a hint once the leader has been waited for.
pub(super) fn exists(leader: Pid) -> bool {
    rustix::process::test_kill_process_group(leader).is_ok()
}

/// The living processes of the leader's session but for the leader, read from `/proc`: some milliseconds on a crowded
/// machine, so only for paths which are rare.
pub(super) fn others_in_session(leader: Pid) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| {
            entry.ok()?.file_name().to_str()?.parse().ok().filter(|&pid| pid > 0).and_then(Pid::from_raw)
        })
        .filter(|&pid| pid != leader && is_alive_in_session(pid, leader))
        .collect()
}

fn is_alive_in_session(pid: Pid, leader: Pid) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| alive_session(&stat) == Some(leader.as_raw_pid()))
}

/// The session of a living process, by its `/proc/PID/stat`: after the name in parentheses state, parent, group, session.
fn alive_session(stat: &str) -> Option<i32> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    // Not a Pid: it is -1 while the kernel takes the process apart.
    let session = fields.nth(2)?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(session)
}

/// Peak resident size of a living process, in bytes; `None` once it has ended.
pub(super) fn peak_bytes(pid: Pid) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_session_in_every_state() {
        assert_eq!(alive_session("7 (sh) S 1 5 5 0 -1 4194560"), Some(5));
        assert_eq!(alive_session("7 (a) b (c) R 1 6 5 0 -1"), Some(5), "a name may have anything in it");
        assert_eq!(alive_session("7 (sh) Z 1 5 5 0 -1"), None);
        assert_eq!(alive_session("7 (sh) R 0 -1 -1 0 -1"), Some(-1), "taken apart");
        assert_eq!(alive_session(""), None);
    }
}

//! What the operating system knows: file systems, kernel, and what a process has used.

use std::path::Path;

/// Name of the file system type that holds `path`, such as `ext4`.
pub(crate) fn file_system(path: &Path) -> Option<String> {
    let path = path.canonicalize().ok()?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let mounted = mounts.lines().filter_map(parse_mount).filter(|(point, _)| path.starts_with(point));
    // Of mounts on the same directory the last one is visible, which is the one that `max_by_key` keeps.
    mounted.max_by_key(|(point, _)| point.len()).map(|(_, kind)| kind.to_owned())
}

/// Mount point and type of a line of `mountinfo`: fields 5 and, after a lone hyphen, the first (proc(5)).
fn parse_mount(line: &str) -> Option<(&str, &str)> {
    let (head, tail) = line.split_once(" - ")?;
    Some((head.split(' ').nth(4)?, tail.split(' ').next()?))
}

/// Kernel name and release.
pub(crate) fn kernel() -> String {
    let name = rustix::system::uname();
    format!("{} {}", name.sysname().to_string_lossy(), name.release().to_string_lossy())
}

/// Largest resident memory of a process so far, in bytes.
pub(crate) fn rss_bytes_max(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// User and system CPU time of a process so far, in seconds.
pub(crate) fn cpu_s(pid: u32) -> Option<f64> {
    Stat::of(pid).map(|stat| stat.own_s)
}

/// The PostgreSQL server on this machine that has this backend.
#[must_use]
pub fn postgres_server(backend: u32) -> Option<u32> {
    Some(Stat::of(backend).filter(|stat| stat.command == "postgres")?.parent)
}

/// CPU time so far of a server and the processes that it began, those that ended among them, in seconds.
#[must_use]
pub fn server_cpu_s(server: u32) -> Option<f64> {
    let children = std::fs::read_to_string(format!("/proc/{server}/task/{server}/children")).ok()?;
    let children = children.split_whitespace().filter_map(|pid| Stat::of(pid.parse().ok()?));
    let children: f64 = children.map(|stat| stat.own_s).sum();
    let server = Stat::of(server)?;
    Some(server.own_s + server.ended_s + children)
}

/// What `/proc/PID/stat` says, times in seconds.
struct Stat {
    command: String,
    parent: u32,
    own_s: f64,
    /// Of children that ended and were waited for.
    ended_s: f64,
}

impl Stat {
    fn of(pid: u32) -> Option<Self> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The command, field 2, may hold spaces and parentheses; the parent is field 4, and the times are fields 14 to 17 (proc(5)).
        let (before, after) = text.rsplit_once(')')?;
        let fields: Vec<&str> = after.split_whitespace().collect();
        let per_s = u32::try_from(rustix::param::clock_ticks_per_second()).ok()?;
        let seconds = |at: usize| Some(f64::from(fields.get(at)?.parse::<u32>().ok()?) / f64::from(per_s));
        Some(Self {
            command: before.split_once('(')?.1.to_owned(),
            parent: fields.get(1)?.parse().ok()?,
            own_s: seconds(11)? + seconds(12)?,
            ended_s: seconds(13)? + seconds(14)?,
        })
    }
}

/// CPU time of all threads of a process so far, in nanoseconds: finer than [`cpu_s`], which counts in ticks.
pub(crate) fn cpu_ns(pid: u32) -> Option<u64> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let spent = threads.map(|thread| {
        let text = std::fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    spent.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_process_and_its_file_system_are_known() {
        let pid = std::process::id();
        assert!(rss_bytes_max(pid).unwrap() > 100_000);
        assert!(cpu_s(pid).unwrap() >= 0.0);
        assert!(cpu_ns(pid).is_none_or(|spent_ns| spent_ns > 0));
        assert_eq!(file_system(Path::new("/proc/self")).unwrap(), "proc");
        assert!(kernel().starts_with("Linux "));
    }
}

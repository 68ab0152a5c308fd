//! Version 2: one hierarchy, whose controllers are passed down level by level.
//!
//! A cgroup other than the root may not have both processes and controllers passed down. So a worker alone in a delegated
//! cgroup moves itself one level down; one that is not alone leaves things as they are and says so.

use super::discover::Found;
use super::v1::quota_us;
use super::{Base, Controller, Version, stale, write};
use crate::job::Measured;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

const PERIOD_US: u64 = 100_000;
/// Where a worker moves itself.
const OWN: &str = "taskmaster-self";

/// Makes our directory with whatever of the wanted can be had, and takes that off the list.
pub(super) fn open(found: &[Found], wanted: &mut Vec<Controller>, refusals: &mut Vec<String>) -> Option<Base> {
    let Some(hierarchy) = found.iter().find(|found| found.version == Version::V2) else {
        refusals.push("cgroup v2 is not mounted".to_owned());
        return None;
    };
    let dir = match hierarchy.dir.file_name() {
        // A worker which was here before moved itself.
        Some(name) if name == OWN => hierarchy.dir.parent().unwrap_or(&hierarchy.dir),
        _ => &hierarchy.dir,
    };
    let offered = match fs::read_to_string(dir.join("cgroup.controllers")) {
        Ok(offered) => offered,
        Err(error) => {
            refusals.push(format!("{} is no usable cgroup v2 directory: {error}", dir.display()));
            return None;
        }
    };
    let (had, missing): (Vec<Controller>, Vec<Controller>) =
        wanted.iter().partition(|controller| offered.split_ascii_whitespace().any(|name| name == controller.name()));
    if !missing.is_empty() {
        let names: Vec<&str> = missing.iter().map(|controller| controller.name()).collect();
        refusals.push(format!("cgroup v2 at {} does not offer {}", dir.display(), names.join(" and ")));
    }
    if had.is_empty() {
        return None;
    }
    stale::clear(dir);
    let base = dir.join(stale::new_name());
    match pass_down(dir, &had).and_then(|()| fs::create_dir(&base)).and_then(|()| enable(&base, &had)) {
        Ok(()) => {
            wanted.retain(|controller| !had.contains(controller));
            Some(Base { dir: base, version: Version::V2, controllers: had })
        }
        Err(error) => {
            let _ = fs::remove_dir(&base);
            refusals.push(format!(
                "cgroup v2 at {} cannot be used: {error} (run the worker as root in a unit of its own, or by `systemd-run --scope -p Delegate=yes`)",
                dir.display()
            ));
            None
        }
    }
}

/// Makes our directory without any controller: it holds tasks together, no more.
pub(super) fn open_bare(found: &[Found], refusals: &mut Vec<String>) -> Option<Base> {
    let hierarchy = found.iter().find(|found| found.version == Version::V2)?;
    stale::clear(&hierarchy.dir);
    let dir = hierarchy.dir.join(stale::new_name());
    match fs::create_dir(&dir) {
        Ok(()) => Some(Base { dir, version: Version::V2, controllers: Vec::new() }),
        Err(error) => {
            refusals.push(format!(
                "tasks cannot be held together, for {} cannot be used: {error}",
                hierarchy.dir.display()
            ));
            None
        }
    }
}

/// Lets the kernel count what tasks read and write, where the io controller can be had.
pub(super) fn count_io(base: &Path) {
    for dir in base.parent().into_iter().chain([base]) {
        let _ = fs::write(dir.join("cgroup.subtree_control"), "+io");
    }
}

/// What was used in a directory.
pub(super) fn measured(dir: &Path) -> Option<Measured> {
    let read = |name: &str| fs::read_to_string(dir.join(name)).ok();
    let cpu = Duration::from_micros(super::counter(&dir.join("cpu.stat"), "usage_usec")?);
    let stalled = |name: &str| stalled(&read(name)?);
    let stalls = stalled("cpu.pressure").zip(stalled("memory.pressure").zip(stalled("io.pressure")));
    let stalls = stalls.map(|(cpu, (memory, io))| [cpu, memory, io]);
    Some(Measured { cpu, io_bytes: read("io.stat").map(|text| io_bytes(&text)), stalls })
}

/// How long some task waited, by a file of pressure.
fn stalled(text: &str) -> Option<Duration> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let total = some.split_ascii_whitespace().find_map(|field| field.strip_prefix("total="))?;
    total.parse().ok().map(Duration::from_micros)
}

/// Bytes read and written over all devices.
fn io_bytes(text: &str) -> u64 {
    let fields = text.split_ascii_whitespace();
    let bytes = |field: &str| field.strip_prefix("rbytes=").or_else(|| field.strip_prefix("wbytes="))?.parse().ok();
    fields.filter_map(bytes).fold(0, u64::saturating_add)
}

/// Moves what still runs in a directory to where the worker is.
pub(super) fn let_go(dir: &Path, base: &Path) {
    let Some(above) = base.parent() else { return };
    let own = above.join(OWN);
    let home = if own.exists() { own } else { above.to_path_buf() };
    for pid in fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default().lines() {
        // One that is dying cannot be moved, and need not be.
        let _ = fs::write(home.join("cgroup.procs"), pid);
    }
    let _ = fs::remove_dir(dir);
}

/// Passes controllers down to the children of `dir`, moving this process out of the way if it is alone there.
fn pass_down(dir: &Path, controllers: &[Controller]) -> io::Result<()> {
    let Err(error) = enable(dir, controllers) else { return Ok(()) };
    if error.kind() != io::ErrorKind::ResourceBusy {
        return Err(error);
    }
    let procs = fs::read_to_string(dir.join("cgroup.procs"))?;
    let own = std::process::id().to_string();
    if procs.lines().any(|pid| pid != own) {
        return Err(io::Error::new(error.kind(), "other processes live in the same cgroup"));
    }
    let below = dir.join(OWN);
    if let Err(error) = fs::create_dir(&below)
        && error.kind() != io::ErrorKind::AlreadyExists
    {
        return Err(error);
    }
    write(&below.join("cgroup.procs"), "0")?;
    enable(dir, controllers)
}

fn enable(dir: &Path, controllers: &[Controller]) -> io::Result<()> {
    for controller in controllers {
        write(&dir.join("cgroup.subtree_control"), &format!("+{}", controller.name()))?;
    }
    Ok(())
}

/// Sets a limit: bytes of memory, or thousandths of a core.
pub(super) fn limit(dir: &Path, controller: Controller, limit: u64) -> io::Result<()> {
    match controller {
        Controller::Memory => {
            write(&dir.join("memory.max"), &limit.to_string())?;
            // Otherwise the limit would only move memory to swap. Absent without swap accounting.
            let _ = fs::write(dir.join("memory.swap.max"), "0");
            // A task without one of its processes is no task.
            let _ = fs::write(dir.join("memory.oom.group"), "1");
            Ok(())
        }
        Controller::Cpu => write(&dir.join("cpu.max"), &format!("{} {PERIOD_US}", quota_us(limit, PERIOD_US))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory which answers as a delegated cgroup would, up to a point.
    fn delegated(controllers: &str) -> (tempfile::TempDir, Vec<Found>) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cgroup.controllers"), controllers).unwrap();
        let found = vec![Found { version: Version::V2, controllers: Vec::new(), dir: dir.path().to_owned() }];
        (dir, found)
    }

    #[test]
    fn what_is_offered_is_taken_and_the_rest_stays_wanted() {
        let (_dir, found) = delegated("cpuset memory pids\n");
        let (mut wanted, mut refusals) = (vec![Controller::Memory, Controller::Cpu], Vec::new());
        let base = open(&found, &mut wanted, &mut refusals).unwrap();
        assert_eq!(base.controllers, [Controller::Memory]);
        assert_eq!(wanted, [Controller::Cpu]);
        assert!(refusals[0].ends_with("does not offer cpu"), "{refusals:?}");
        assert_eq!(fs::read_to_string(base.dir.join("cgroup.subtree_control")).unwrap(), "+memory");
    }

    #[test]
    fn limits_are_written_as_the_kernel_reads_them() {
        let (dir, _found) = delegated("");
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        limit(dir.path(), Controller::Memory, 64 << 20).unwrap();
        assert_eq!((read("memory.max").as_str(), read("memory.swap.max").as_str()), ("67108864", "0"));
        for (milli, text) in [(1500, "150000 100000"), (1, "1000 100000"), (u64::from(u32::MAX), "429496729500 100000")]
        {
            limit(dir.path(), Controller::Cpu, milli).unwrap();
            assert_eq!(read("cpu.max"), text);
        }
    }

    #[test]
    fn deaths_for_want_of_memory_are_counted_in_the_events() {
        let (dir, _found) = delegated("");
        let file = dir.path().join("memory.events");
        fs::write(&file, "low 0\nhigh 0\nmax 41\noom 3\noom_kill 2\noom_group_kill 1\n").unwrap();
        assert_eq!(super::super::counter(&file, "oom_kill"), Some(2));
    }

    #[test]
    fn what_was_used_is_read_as_the_kernel_writes_it() {
        let (dir, _found) = delegated("");
        assert_eq!(measured(dir.path()), None, "nothing is counted");
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        write("cpu.stat", "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\n");
        assert_eq!(measured(dir.path()), Some(Measured { cpu: Duration::from_micros(1500), ..Measured::default() }));
        let pressure = |us: u32| {
            format!(
                "some avg10=0.00 avg60=1.25 avg300=0.00 total={us}\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=9\n"
            )
        };
        for (name, us) in [("cpu.pressure", 11), ("memory.pressure", 22), ("io.pressure", 33)] {
            write(name, &pressure(us));
        }
        write(
            "io.stat",
            "254:0 rbytes=4096 wbytes=100 rios=1 wios=1 dbytes=7 dios=0\n8:0 rbytes=1 wbytes=2 rios=1 wios=1\n",
        );
        let stalls = Some([11, 22, 33].map(Duration::from_micros));
        let all = Measured { cpu: Duration::from_micros(1500), io_bytes: Some(4199), stalls };
        assert_eq!(measured(dir.path()), Some(all));
    }
}

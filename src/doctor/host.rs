//! The machine around the node: memory, processors, clocks, control groups, the port.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use taskmaster_workers::cgroup::Cgroups;

use super::{Check, disk};
use crate::config::{Config, memory_limit_bytes};
use crate::output::human_bytes;

/// The configured memory against what there is.
pub(super) fn memory(config: &Config) -> Check {
    const NAME: &str = "memory";
    let (budget, limit) = (config.memory_bytes(), memory_limit_bytes());
    let message = format!("Tasks may use {} of the {} there are.", human_bytes(budget), human_bytes(limit));
    if budget > limit {
        return Check::fail(NAME, message, "Lower limits.memory, or set it to \"auto\".");
    }
    if budget > limit / 10 * 8 {
        return Check::warn(NAME, message, "Leave a fifth for the page cache, rings and workers: lower limits.memory.");
    }
    Check::ok(NAME, message)
}

/// Cores, hyperthreads and memory nodes against the configured shards.
pub(super) fn processors(config: &Config) -> Check {
    const NAME: &str = "processors";
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let cores = physical_cores().unwrap_or(threads);
    let nodes = numa_nodes();
    let shards = config.shard_count();
    let plural = |count: usize| if count == 1 { "" } else { "s" };
    let message = format!(
        "{threads} hardware thread{} on {cores} core{} and {nodes} memory node{}; {shards} shard{} will run.",
        plural(threads),
        plural(cores),
        plural(nodes),
        plural(shards)
    );
    if shards > threads {
        return Check::warn(
            NAME,
            message,
            "Shards are pinned: more of them than threads take turns. Set node.shards to 0.",
        );
    }
    Check::ok(NAME, message)
}

/// Distinct cores among the online processors, when the kernel tells.
fn physical_cores() -> Option<usize> {
    let mut cores = BTreeSet::new();
    for entry in fs::read_dir("/sys/devices/system/cpu").ok()? {
        let path = entry.ok()?.path().join("topology");
        let read = |name: &str| fs::read_to_string(path.join(name)).ok().map(|text| text.trim().to_owned());
        if let (Some(package), Some(core)) = (read("physical_package_id"), read("core_id")) {
            cores.insert((package, core));
        }
    }
    (!cores.is_empty()).then_some(cores.len())
}

fn numa_nodes() -> usize {
    let is_node = |name: &str| name.strip_prefix("node").is_some_and(|rest| rest.parse::<u32>().is_ok());
    let entries = fs::read_dir("/sys/devices/system/node").into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().to_str().is_some_and(is_node)).count().max(1)
}

/// Whether reading the clock is cheap.
pub(super) fn clock_source() -> Check {
    const NAME: &str = "clock_source";
    let path = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    match fs::read_to_string(path).unwrap_or_default().trim() {
        "" => Check::warn(NAME, "The clock source cannot be told.", "Nothing, if /sys is not mounted here."),
        source @ ("tsc" | "kvm-clock" | "arch_sys_counter" | "hyperv_clocksource_tsc_page") => {
            Check::ok(NAME, format!("The clock source is {source}: read without a system call."))
        }
        source => Check::warn(
            NAME,
            format!("The clock source is {source}: each reading is a system call or slow."),
            "Boot with clocksource=tsc if the processor's counter is reliable (`dmesg | grep -i tsc`).",
        ),
    }
}

/// What the kernel knows of the clock's synchronisation.
struct ClockState {
    /// Whether something disciplines it.
    synchronised: bool,
    /// Largest error, in microseconds.
    error_us_max: i64,
}

#[expect(unsafe_code, reason = "adjtimex has no safe wrapper")]
fn clock_state() -> io::Result<ClockState> {
    // SAFETY: all-zero bytes are a valid `timex`, which is integers only; mode 0 asks and changes nothing.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: `timex` is a valid, writable structure, alive during the call.
    let state = unsafe { libc::adjtimex(&raw mut timex) };
    if state < 0 {
        return Err(io::Error::last_os_error());
    }
    let synchronised = state != libc::TIME_ERROR && timex.status & libc::STA_UNSYNC == 0;
    Ok(ClockState { synchronised, error_us_max: timex.maxerror })
}

/// Whether the clock is kept right: deadlines and not-before times are wall-clock times.
pub(super) fn clock_sync() -> Check {
    const NAME: &str = "clock_sync";
    const FIX: &str = "Run chrony or systemd-timesyncd on the host (`timedatectl set-ntp true`): deadlines and delays \
        follow the wall clock.";
    match clock_state() {
        Err(error) => Check::warn(NAME, format!("The clock's state cannot be told: {error}."), FIX),
        Ok(state) if state.synchronised => {
            Check::ok(NAME, format!("The clock is synchronised, to {} µs at worst.", state.error_us_max))
        }
        Ok(_) => Check::warn(NAME, "The clock is not synchronised.", FIX),
    }
}

/// Which control groups could bound worker processes.
pub(super) fn cgroup() -> Check {
    const NAME: &str = "cgroup";
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        return Check::ok(NAME, "Control groups are version 2: memory and cpu limits of processes can be enforced.");
    }
    if root.join("memory").is_dir() {
        return Check::warn(
            NAME,
            "Control groups are version 1 (or hybrid): limits of processes are enforced as far as version 1 allows.",
            "Boot with systemd.unified_cgroup_hierarchy=1 for version 2.",
        );
    }
    Check::warn(
        NAME,
        "There are no control groups: memory and cpu limits of processes are not enforced.",
        "Mount cgroup2 on /sys/fs/cgroup, or run where it is.",
    )
}

/// Whether workers can bound the processes they run.
pub(super) fn worker_limits() -> Check {
    const NAME: &str = "worker_limits";
    let probe = Cgroups::probe(&taskmaster_workers::cgroup::Config::default());
    let mut message = probe.sentence.trim_end_matches('.').to_owned();
    message.push('.');
    message.get_mut(..1).map(str::make_ascii_uppercase);
    if probe.memory && probe.cpu {
        return Check::ok(NAME, message);
    }
    Check::warn(
        NAME,
        message,
        "Run workers as root, or in a delegated cgroup (`Delegate=memory cpu` in a systemd unit); tasks run without these \
         limits otherwise.",
    )
}

/// Whether the port can be listened on.
pub(super) fn port(config: &Config) -> Check {
    free_port(config, "port", config.listen.address, "listen.address")
}

/// Whether the port of a cluster's other nodes is free.
pub(super) fn peer_port(config: &Config) -> Option<Check> {
    config.clustered.then(|| free_port(config, "peer_port", config.cluster.listen, "cluster.listen"))
}

fn free_port(config: &Config, name: &'static str, address: SocketAddr, setting: &str) -> Check {
    match TcpListener::bind(address) {
        Ok(_) => Check::ok(name, format!("{address} is free.")),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let fix = format!(
                "See who listens with `ss -ltnp sport = :{}`; or set {setting} to another port.",
                address.port()
            );
            let message = format!("{address} is in use by another process.");
            if disk::is_locked(&config.node.data_dir) {
                return Check::warn(name, message, fix);
            }
            Check::fail(name, message, fix)
        }
        Err(error) => Check::fail(
            name,
            format!("{address} cannot be listened on: {error}."),
            format!("Set {setting} to an address of this machine and a port above 1023."),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Status;

    #[test]
    fn a_taken_port_fails_and_says_how_to_find_its_holder() {
        let holder = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut config = Config::default();
        config.node.data_dir = "does/not/exist".into();
        config.listen.address = holder.local_addr().unwrap();
        let check = port(&config);
        assert_eq!(check.status, Status::Fail);
        assert!(check.fix.unwrap().contains("ss -ltnp"));
    }

    #[test]
    fn more_memory_than_there_is_fails() {
        let mut config = Config::default();
        config.limits.memory = crate::config::Memory::Bytes(crate::config::ByteSize(u64::MAX));
        assert_eq!(memory(&config).status, Status::Fail);
    }

    #[test]
    fn more_shards_than_threads_draw_a_warning() {
        let mut config = Config::default();
        config.node.shards = 1_024;
        config.node.partitions = 4_096;
        assert_eq!(processors(&config).status, Status::Warn);
    }
}

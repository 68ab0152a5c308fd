//! What the kernel grants: io_uring, locked memory, open files, huge pages.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{Check, Unfit};
use crate::config::Config;
use crate::output::human_bytes;

/// Locked memory that a shard's rings need at least, in bytes.
const MEMLOCK_BYTES_MIN: u64 = 512 << 10;
/// Oldest kernel on which the runtime's io_uring features exist.
const KERNEL_MIN: (u32, u32) = (5, 8);

/// Raises soft limits as far as allowed, then checks what a start cannot do without.
///
/// # Errors
/// The first fatal finding, with what to do.
pub(crate) fn preflight() -> Result<(), Unfit> {
    raise(Resource::Memlock);
    raise(Resource::Nofile);
    Unfit::from_check(io_uring())?;
    Unfit::from_check(memlock())
}

/// Lifts a soft limit to its hard limit; a refusal changes nothing and is reported by the check of that limit.
fn raise(resource: Resource) {
    let Rlimit { current, maximum } = getrlimit(resource);
    if current != maximum {
        let _unchanged = setrlimit(resource, Rlimit { current: maximum, maximum });
    }
}

/// Whether an io_uring can be made.
pub(super) fn io_uring() -> Check {
    const NAME: &str = "io_uring";
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    match probe_io_uring() {
        Ok(()) if kernel_version(&release).is_some_and(|version| version < KERNEL_MIN) => Check::fail(
            NAME,
            format!("The kernel is {release}, and io_uring is complete enough from {}.{}.", KERNEL_MIN.0, KERNEL_MIN.1),
            "Use a newer kernel (5.15 or later is a good choice).",
        ),
        Ok(()) => Check::ok(NAME, format!("io_uring works (kernel {release}).")),
        Err(error) => io_uring_refused(NAME, &error, &release),
    }
}

/// Why a ring was refused, and the way out.
fn io_uring_refused(name: &'static str, error: &io::Error, release: &str) -> Check {
    const PROFILE: &str = "In a container: allow the system calls io_uring_setup, io_uring_enter and \
        io_uring_register in the seccomp profile (the default profiles of Docker 25 and containerd 2.0 deny them): \
        `docker run --security-opt seccomp=PROFILE.json`, or `securityContext.seccompProfile: {type: Localhost, \
        localhostProfile: PROFILE.json}` in Kubernetes.";
    let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    let sysctl = match disabled.trim() {
        "1" => Some("1 (only for the group in kernel.io_uring_group and CAP_SYS_ADMIN)"),
        "2" => Some("2 (for everyone)"),
        _ => None,
    };
    if let Some(value) = sysctl {
        return Check::fail(
            name,
            format!("io_uring is switched off: kernel.io_uring_disabled is {value}."),
            "Run `sysctl -w kernel.io_uring_disabled=0` as root, and write the same into /etc/sysctl.d/ to keep it.",
        );
    }
    match error.raw_os_error() {
        Some(libc::ENOSYS) => Check::fail(
            name,
            format!("io_uring does not exist here (kernel {release}): it was built without it, or seccomp hides it."),
            PROFILE,
        ),
        Some(libc::EPERM | libc::EACCES) => {
            Check::fail(name, format!("io_uring is refused ({error}), most likely by seccomp."), PROFILE)
        }
        Some(libc::ENOMEM) => Check::fail(
            name,
            format!("io_uring cannot be set up: {error}: the limit of locked memory is too small."),
            memlock_fix(),
        ),
        _ => {
            Check::fail(name, format!("io_uring cannot be set up: {error}."), "See `man io_uring_setup` for the error.")
        }
    }
}

/// The kernel's `struct io_uring_params`: 120 bytes, zero except for what is asked.
#[repr(C, align(8))]
struct RingParams([u8; 120]);

/// Makes a small ring and closes it.
#[expect(unsafe_code, reason = "a raw system call: the standard library and rustix offer no safe one")]
fn probe_io_uring() -> io::Result<()> {
    const ENTRIES: libc::c_uint = 4;
    let mut params = RingParams([0; 120]);
    let params: *mut RingParams = &raw mut params;
    // SAFETY: `params` is 120 writable zero bytes, aligned to 8, alive during the call: what the kernel documents.
    let descriptor = unsafe { libc::syscall(libc::SYS_io_uring_setup, ENTRIES, params) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    let descriptor = libc::c_int::try_from(descriptor).expect("a file descriptor is a C int");
    // SAFETY: the descriptor was just made and is owned by nobody else.
    drop(unsafe { <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(descriptor) });
    Ok(())
}

/// Major and minor of a release such as `6.1.0-13-amd64`.
fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn memlock_fix() -> String {
    "Raise the limit: `ulimit -l 8192` in the shell, `LimitMEMLOCK=8M` in a systemd unit, \
     `docker run --ulimit memlock=8388608` for a container, or memlock lines in /etc/security/limits.conf."
        .to_owned()
}

/// The limit of locked memory.
pub(super) fn memlock() -> Check {
    const NAME: &str = "memlock";
    let Rlimit { current, maximum } = getrlimit(Resource::Memlock);
    let show = |limit: Option<u64>| limit.map_or_else(|| "unlimited".to_owned(), human_bytes);
    match (current, maximum) {
        (None, _) => Check::ok(NAME, "Locked memory is not limited."),
        (Some(soft), _) if soft >= MEMLOCK_BYTES_MIN => {
            Check::ok(NAME, format!("Locked memory is limited to {}.", show(current)))
        }
        (Some(_), hard) if hard.is_none_or(|hard| hard >= MEMLOCK_BYTES_MIN) => Check::ok(
            NAME,
            format!("Locked memory is limited to {}; a start raises it to {} by itself.", show(current), show(hard)),
        ),
        (Some(_), hard) => Check::fail(
            NAME,
            format!(
                "Locked memory is limited to {}, and io_uring needs {} at least.",
                show(hard),
                human_bytes(MEMLOCK_BYTES_MIN)
            ),
            memlock_fix(),
        ),
    }
}

/// The limit of open files against the configured connections.
pub(super) fn open_files(config: &Config) -> Check {
    const NAME: &str = "open_files";
    /// Files of a node beyond its connections: log, snapshots, rings, executables.
    const OTHER_FILES: u64 = 512;
    let needed = u64::from(config.limits.max_connections) + OTHER_FILES;
    match getrlimit(Resource::Nofile).maximum {
        Some(most) if most < needed => Check::warn(
            NAME,
            format!("At most {most} files can be open, and limits.max_connections asks for {needed}."),
            format!("Raise the limit (`ulimit -n {needed}`, `LimitNOFILE={needed}`) or lower limits.max_connections."),
        ),
        Some(most) => Check::ok(NAME, format!("{most} files can be open; {needed} are needed at most.")),
        None => Check::ok(NAME, "Open files are not limited."),
    }
}

/// Whether large memory areas can ask for huge pages.
pub(super) fn huge_pages() -> Check {
    const NAME: &str = "huge_pages";
    const FIX: &str = "Run `echo madvise > /sys/kernel/mm/transparent_hugepage/enabled` as root: random access to \
        large task tables is about a quarter faster.";
    let text = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    let chosen = text.split('[').nth(1).and_then(|rest| rest.split(']').next());
    match chosen {
        Some("madvise") => Check::ok(NAME, "Transparent huge pages are given on request (madvise)."),
        Some("always") => Check::ok(NAME, "Transparent huge pages are always given."),
        Some(other) => Check::warn(NAME, format!("Transparent huge pages are set to '{other}'."), FIX),
        None => {
            Check::warn(NAME, "The kernel has no transparent huge pages.", "Use a kernel with them; it works without.")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_versions_are_read_and_compared() {
        assert_eq!(kernel_version("6.1.0-13-amd64"), Some((6, 1)));
        assert_eq!(kernel_version("5.15"), Some((5, 15)));
        assert_eq!(kernel_version("weird"), None);
        assert!((5, 4) < KERNEL_MIN && (5, 15) > KERNEL_MIN && (6, 0) > KERNEL_MIN);
    }

    #[test]
    fn each_refusal_of_a_ring_names_its_cause_and_cure() {
        let refused = |code| io_uring_refused("io_uring", &io::Error::from_raw_os_error(code), "6.1");
        assert!(refused(libc::EPERM).fix.unwrap().contains("seccomp"));
        assert!(refused(libc::ENOSYS).message.contains("does not exist"));
        assert!(refused(libc::ENOMEM).fix.unwrap().contains("ulimit -l"));
    }

    #[test]
    fn preflight_agrees_with_the_checks() {
        let fit = io_uring().status != crate::doctor::Status::Fail && memlock().status != crate::doctor::Status::Fail;
        assert_eq!(preflight().is_ok(), fit);
    }
}

//! Starting a process as posix_spawn does, with what posix_spawn cannot do.
//!
//! The child is made by `clone(CLONE_VM | CLONE_VFORK)`: it borrows the worker's memory, on a stack of its own, while the
//! calling thread stands still, until it becomes another program. So starting one costs the same in a worker of 5 MB and
//! in a node of 50 GB, and the child can report which step failed by writing to that shared memory. In between it makes
//! itself leader of a session of its own, asks to be killed with the calling *thread*, enters its cgroup and only then
//! becomes the program.
//!
//! Invariants: between clone and exec the child only makes system calls (no allocation, no lock, no panic). The calling
//! thread blocks all signals (see [`block_signals`]), so no handler runs in the child. It must live as long as its
//! children may: `PR_SET_PDEATHSIG` is tied to the thread.
//!
//! But for one promise in `readiness.rs`, this is the crate's only unsafe code.

use rustix::io::Errno;
use rustix::process::{Pid, Signal};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

/// Enough for the few frames of [`child_main`], many times over.
const STACK_WORDS: usize = 16 * 1024;
const SIGNAL_MAX: c_int = 64;
const EXIT_NOT_STARTED: c_int = 127;

/// A step of the start which can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Making the process.
    Clone,
    /// Becoming leader of a session.
    Session,
    /// Tying its life to the worker's.
    Tie,
    /// Standard input, output and error.
    Stdio,
    /// The working directory.
    Directory,
    /// Becoming the program.
    Exec,
}

/// A start which failed; no process is left.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) step: Step,
    pub(super) error: Errno,
}

/// A program as execve wants it.
pub(super) struct Image {
    pub(super) program: CString,
    pub(super) argv: Vec<CString>,
    pub(super) env: Vec<CString>,
    pub(super) cwd: Option<CString>,
    /// Killed when the calling thread ends.
    pub(super) tied: bool,
}

/// The descriptors of a child; all close-on-exec.
pub(super) struct Stdio<'a> {
    pub(super) stdin: BorrowedFd<'a>,
    pub(super) stdout: BorrowedFd<'a>,
    pub(super) stderr: BorrowedFd<'a>,
    /// `cgroup.procs` files to enter.
    pub(super) cgroups: &'a [OwnedFd],
}

/// A child which runs its program.
pub(super) struct Launched {
    pub(super) pid: Pid,
    pub(super) pidfd: OwnedFd,
    /// Why it could not enter a cgroup, if so; it runs all the same.
    pub(super) cgroup_error: Option<Errno>,
}

/// What the child reads and writes while it shares memory with its parent.
struct Shared<'a> {
    program: *const c_char,
    argv: *const *const c_char,
    /// `/bin/sh`, the program, its arguments: for a script without a first line.
    script_argv: *const *const c_char,
    env: *const *const c_char,
    cwd: Option<&'a CStr>,
    tied: bool,
    parent: Pid,
    stdio: &'a Stdio<'a>,
    step: AtomicI32,
    errno: AtomicI32,
    cgroup_errno: AtomicI32,
}

/// Room for children's stacks; one child at a time.
pub(super) struct Stack(Vec<u128>);

impl Stack {
    pub(super) fn new() -> Self {
        Self(vec![0; STACK_WORDS])
    }
}

/// Blocks every signal on the calling thread, for good.
#[expect(unsafe_code, reason = "signal masks have no safe wrapper")]
pub(super) fn block_signals() {
    // SAFETY: an all-zero sigset_t is a valid value; it is overwritten next.
    let mut all: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `all` is a live sigset_t.
    unsafe { libc::sigfillset(&raw mut all) };
    // SAFETY: `all` is initialised, and a null old set is allowed.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, ptr::null_mut()) };
}

fn pointers<'a>(strings: impl Iterator<Item = &'a CString>) -> Vec<*const c_char> {
    strings.map(|text| text.as_ptr()).chain([ptr::null()]).collect()
}

/// Starts a process. Blocks until it runs its program.
///
/// # Errors
/// [`Refused`] names the step; the failed child has been waited for.
#[expect(unsafe_code, reason = "clone has no safe wrapper")]
pub(super) fn launch(image: &Image, stdio: &Stdio<'_>, stack: &mut Stack) -> Result<Launched, Refused> {
    let shell = c"/bin/sh".to_owned();
    let argv = pointers(image.argv.iter());
    let script_argv = pointers([&shell, &image.program].into_iter().chain(image.argv.iter().skip(1)));
    let env = pointers(image.env.iter());
    let shared = Shared {
        program: image.program.as_ptr(),
        argv: argv.as_ptr(),
        script_argv: script_argv.as_ptr(),
        env: env.as_ptr(),
        cwd: image.cwd.as_deref(),
        tied: image.tied,
        parent: rustix::process::getpid(),
        stdio,
        step: AtomicI32::new(0),
        errno: AtomicI32::new(0),
        cgroup_errno: AtomicI32::new(0),
    };
    let mut pidfd: c_int = -1;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
    let top = stack.0.as_mut_ptr_range().end.cast::<c_void>();
    let argument = (&raw const shared).cast_mut().cast::<c_void>();
    // SAFETY: `top` is the 16-byte aligned end of a live buffer which nothing else uses; CLONE_VFORK keeps this frame,
    // and so `shared` and all it points to, alive until the child has left it by exec or exit; child_main makes only
    // system calls; the fifth argument is where CLONE_PIDFD stores its descriptor.
    let pid = unsafe { libc::clone(child_main, top, flags, argument, &raw mut pidfd) };
    if pid < 0 {
        let error = Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::AGAIN);
        return Err(Refused { step: Step::Clone, error });
    }
    let pid = Pid::from_raw(pid).expect("clone returned a positive pid");
    // SAFETY: the kernel has just made this descriptor for us and nobody else knows of it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let errno = |cell: &AtomicI32| Some(cell.load(Ordering::Acquire)).filter(|&n| n != 0).map(Errno::from_raw_os_error);
    if let Some(error) = errno(&shared.errno) {
        let _ = wait(pid);
        return Err(Refused { step: step_named(shared.step.load(Ordering::Acquire)), error });
    }
    Ok(Launched { pid, pidfd, cgroup_error: errno(&shared.cgroup_errno) })
}

fn step_named(number: i32) -> Step {
    [Step::Session, Step::Tie, Step::Stdio, Step::Directory]
        .into_iter()
        .find(|&step| step as i32 == number)
        .unwrap_or(Step::Exec)
}

#[expect(unsafe_code, reason = "dereferences what launch passed, and leaves by _exit")]
extern "C" fn child_main(argument: *mut c_void) -> c_int {
    // SAFETY: launch passed a pointer to its live `Shared`, and stands still until this process leaves the memory.
    let shared = unsafe { &*argument.cast::<Shared<'_>>() };
    let (step, error) = become_program(shared);
    shared.step.store(step as i32, Ordering::Release);
    shared.errno.store(error.raw_os_error(), Ordering::Release);
    // SAFETY: ends this process without running anything of the worker's.
    unsafe { libc::_exit(EXIT_NOT_STARTED) }
}

/// Returns only when a step failed.
fn become_program(shared: &Shared<'_>) -> (Step, Errno) {
    if let Err(error) = rustix::process::setsid() {
        return (Step::Session, error);
    }
    if shared.tied {
        if let Err(error) = rustix::process::set_parent_process_death_signal(Some(Signal::KILL)) {
            return (Step::Tie, error);
        }
        if rustix::process::getppid() != Some(shared.parent) {
            return (Step::Tie, Errno::SRCH);
        }
    }
    for procs in shared.stdio.cgroups {
        if let Err(error) = rustix::io::write(procs, b"0") {
            shared.cgroup_errno.store(error.raw_os_error(), Ordering::Release);
        }
    }
    let stdio = rustix::stdio::dup2_stdin(shared.stdio.stdin)
        .and_then(|()| rustix::stdio::dup2_stdout(shared.stdio.stdout))
        .and_then(|()| rustix::stdio::dup2_stderr(shared.stdio.stderr));
    if let Err(error) = stdio {
        return (Step::Stdio, error);
    }
    if let Some(cwd) = shared.cwd
        && let Err(error) = rustix::process::chdir(cwd)
    {
        return (Step::Directory, error);
    }
    close_others();
    default_signals();
    let error = exec(shared.program, shared.argv, shared.env);
    if error == Errno::NOEXEC {
        return (Step::Exec, exec(c"/bin/sh".as_ptr(), shared.script_argv, shared.env));
    }
    (Step::Exec, error)
}

/// Marks all descriptors but the first three close-on-exec: some library may have forgotten to. Kernels before 5.11 lack
/// the call; there every descriptor of ours has the mark from its birth.
#[expect(unsafe_code, reason = "close_range has no safe wrapper")]
fn close_others() {
    // SAFETY: changes flags of this process's own copy of the descriptor table (no CLONE_FILES), shortly before exec.
    unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
}

/// Gives every signal its default action and unblocks it, as a program expects. Handlers are dropped first: one which
/// ran here would run in the worker's memory.
#[expect(unsafe_code, reason = "signal actions have no safe wrapper")]
fn default_signals() {
    // SAFETY: all-zero is a valid sigaction: SIG_DFL, no flags, an empty mask.
    let action: libc::sigaction = unsafe { std::mem::zeroed() };
    for signal in 1..=SIGNAL_MAX {
        // SAFETY: no CLONE_SIGHAND, so this is this process's own table; numbers which cannot be set are refused.
        unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) };
    }
    // SAFETY: a live, empty set.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const action.sa_mask, ptr::null_mut()) };
}

#[expect(unsafe_code, reason = "execve has no safe wrapper")]
fn exec(program: *const c_char, argv: *const *const c_char, env: *const *const c_char) -> Errno {
    // SAFETY: zero-terminated strings in null-terminated arrays, kept alive by launch's frame.
    unsafe { libc::execve(program, argv, env) };
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::NOENT)
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    /// By itself, with this code.
    Exited(i32),
    /// By this signal.
    Signalled(i32),
}

/// A child's end and what it used, descendants it waited for included.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reaped {
    pub(super) status: Status,
    pub(super) cpu_user: Duration,
    pub(super) cpu_system: Duration,
    /// Greatest resident size; at least the worker's own at the start, whose memory the child shared then.
    pub(super) peak_bytes: u64,
}

/// Waits for a child. Blocks until it has ended.
///
/// # Errors
/// `ECHILD` if it is no child of this process or has been waited for.
pub(super) fn wait(pid: Pid) -> io::Result<Reaped> {
    wait_with(pid, 0).map(|reaped| reaped.expect("only WNOHANG returns without a child"))
}

/// Waits for a child if it has ended.
///
/// # Errors
/// As [`wait`].
pub(super) fn try_wait(pid: Pid) -> io::Result<Option<Reaped>> {
    wait_with(pid, libc::WNOHANG)
}

#[expect(unsafe_code, reason = "wait4 has no safe wrapper")]
fn wait_with(pid: Pid, options: c_int) -> io::Result<Option<Reaped>> {
    let mut status: c_int = 0;
    // SAFETY: all-zero is a valid rusage.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    let waited = loop {
        // SAFETY: both pointers are live and of the right type.
        let waited = unsafe { libc::wait4(pid.as_raw_nonzero().get(), &raw mut status, options, &raw mut usage) };
        if waited >= 0 {
            break waited;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    };
    if waited == 0 {
        return Ok(None);
    }
    let status = if libc::WIFSIGNALED(status) {
        Status::Signalled(libc::WTERMSIG(status))
    } else {
        Status::Exited(libc::WEXITSTATUS(status))
    };
    let (cpu_user, cpu_system) = (time(usage.ru_utime), time(usage.ru_stime));
    Ok(Some(Reaped { status, cpu_user, cpu_system, peak_bytes: peak_bytes(&usage) }))
}

/// Greatest resident size that this process has had.
#[expect(unsafe_code, reason = "getrusage has no safe wrapper")]
pub(super) fn own_peak_bytes() -> u64 {
    // SAFETY: all-zero is a valid rusage.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: a live rusage; RUSAGE_SELF cannot be refused.
    unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) };
    peak_bytes(&usage)
}

/// Linux counts it in KiB.
fn peak_bytes(usage: &libc::rusage) -> u64 {
    u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024
}

fn time(time: libc::timeval) -> Duration {
    let micros = u32::try_from(time.tv_usec).unwrap_or(0);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), micros * 1000)
}

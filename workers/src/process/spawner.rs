//! The thread which starts processes and clears away what dropped attempts leave.
//!
//! One thread for all of an executor's life, for two reasons: a child is killed when the thread that started it ends
//! (`PR_SET_PDEATHSIG`), and a runtime's own threads come and go; and a start blocks for some hundred microseconds, which
//! a runtime's thread should not.
//!
//! Invariant: the thread outlives every [`Child`], for each of them holds a sender of its channel.

use super::group;
use super::guardian::Guardian;
use super::launch::{self, Image, Reaped, Refused, Stack, Stdio};
use crate::cgroup::TaskGroup;
use rustix::process::{Pid, Signal};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How often what is dying is looked after.
const SWEEP: Duration = Duration::from_millis(5);
/// The kernel counts resident pages per processor and sums them up loosely.
const PEAK_SLACK_BYTES: u64 = 4 << 20;
/// How long the thread waits for the dying once nobody needs it any more.
const FAREWELL: Duration = Duration::from_secs(2);

/// Everything needed to start one process.
pub(super) struct Plan {
    pub(super) image: Image,
    pub(super) stdin: OwnedFd,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
    pub(super) cgroup: Option<TaskGroup>,
}

enum Request {
    Spawn { plan: Box<Plan>, home: Sender<Request>, reply: oneshot::Sender<Result<Child, Refused>> },
    Guard(Pid),
    Unguard(Pid),
    Abandoned(Abandoned),
}

/// A killed process which nobody has waited for, and its cgroup; either may be gone already.
struct Abandoned {
    pid: Option<Pid>,
    cgroup: Option<TaskGroup>,
}

/// The handle of the thread.
#[derive(Clone)]
pub(super) struct Spawner {
    requests: Sender<Request>,
}

impl Spawner {
    /// Starts the thread.
    ///
    /// # Errors
    /// No thread could be had.
    pub(super) fn start() -> io::Result<Self> {
        let (requests, received) = mpsc::channel();
        thread::Builder::new().name("tm-spawner".to_owned()).spawn(move || serve(&received))?;
        Ok(Self { requests })
    }

    /// Starts a process.
    ///
    /// # Errors
    /// [`Refused`], as launching found it.
    pub(super) async fn spawn(&self, plan: Plan) -> Result<Child, Refused> {
        let gone = || Refused { step: launch::Step::Clone, error: rustix::io::Errno::AGAIN };
        let (reply, answer) = oneshot::channel();
        let home = self.requests.clone();
        self.requests.send(Request::Spawn { plan: Box::new(plan), home, reply }).map_err(|_| gone())?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }
}

fn serve(received: &Receiver<Request>) {
    launch::block_signals();
    let mut stack = Stack::new();
    let mut guardian = Guardian::new();
    let mut dying: Vec<Abandoned> = Vec::new();
    loop {
        let request = if dying.is_empty() {
            received.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            received.recv_timeout(SWEEP)
        };
        match request {
            // An answer which nobody waits for any more is dropped, and the child with it.
            Ok(Request::Spawn { plan, home, reply }) => drop(reply.send(start(*plan, home, &mut stack))),
            Ok(Request::Guard(pid)) => guardian.add(pid, &mut stack),
            Ok(Request::Unguard(pid)) => guardian.remove(pid),
            Ok(Request::Abandoned(abandoned)) => dying.push(abandoned),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        dying.retain_mut(|abandoned| !bury(abandoned));
    }
    let until = Instant::now() + FAREWELL;
    while !dying.is_empty() && Instant::now() < until {
        thread::sleep(SWEEP);
        dying.retain_mut(|abandoned| !bury(abandoned));
    }
}

/// Whether nothing is left to do.
fn bury(abandoned: &mut Abandoned) -> bool {
    if let Some(pid) = abandoned.pid
        && !matches!(launch::try_wait(pid), Ok(None))
    {
        abandoned.pid = None;
    }
    if let Some(cgroup) = &mut abandoned.cgroup
        && cgroup.remove()
    {
        abandoned.cgroup = None;
    }
    abandoned.pid.is_none() && abandoned.cgroup.is_none()
}

fn start(plan: Plan, home: Sender<Request>, stack: &mut Stack) -> Result<Child, Refused> {
    let Plan { image, stdin, stdout, stderr, mut cgroup } = plan;
    let cgroups = cgroup.as_ref().map(TaskGroup::entrances).unwrap_or_default();
    let stdio = Stdio { stdin: stdin.as_fd(), stdout: stdout.as_fd(), stderr: stderr.as_fd(), cgroups: &cgroups };
    let launched = launch::launch(&image, &stdio, stack).inspect_err(|_| {
        if let Some(cgroup) = &cgroup {
            cgroup.remove();
        }
    })?;
    let own_peak_bytes = launch::own_peak_bytes().saturating_add(PEAK_SLACK_BYTES);
    if let Some(error) = launched.cgroup_error
        && cgroup.as_mut().is_some_and(TaskGroup::not_entered)
    {
        tracing::warn!(%error, "a process could not enter its cgroup, so it runs without limits");
    }
    Ok(Child { pid: launched.pid, pidfd: launched.pidfd, home, own_peak_bytes, cgroup, guarded: false, reaped: false })
}

/// A running process, or one that has ended and awaits its [`Child::reap`].
pub(super) struct Child {
    pub(super) pid: Pid,
    /// Readable once the process has ended.
    pub(super) pidfd: OwnedFd,
    /// What a reaped peak must exceed to be the child's own: the worker's own peak when it started the child.
    pub(super) own_peak_bytes: u64,
    pub(super) cgroup: Option<TaskGroup>,
    home: Sender<Request>,
    guarded: bool,
    reaped: bool,
}

impl Child {
    /// Signals the process and its group, while it has not been reaped.
    pub(super) fn signal(&self, signal: Signal) {
        if !self.reaped {
            group::signal(self.pid, signal);
        }
    }

    /// Kills the process, its group, and all of its cgroup.
    pub(super) fn kill(&self) {
        self.signal(Signal::KILL);
        if let Some(cgroup) = &self.cgroup {
            cgroup.kill();
        }
    }

    /// Has the group ended even if the worker is killed. The process itself is tied to the worker from its start; its
    /// descendants are only from this call on, for it costs more than a short task.
    pub(super) fn guard(&mut self) {
        if !self.guarded {
            self.guarded = self.home.send(Request::Guard(self.pid)).is_ok();
        }
    }

    /// Waits for the process, which must have ended.
    ///
    /// # Errors
    /// Somebody else in this program waited for it.
    pub(super) fn reap(&mut self) -> io::Result<Reaped> {
        if std::mem::take(&mut self.guarded) {
            let _ = self.home.send(Request::Unguard(self.pid));
        }
        self.reaped = true;
        launch::wait(self.pid)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.reaped {
            self.kill();
        }
        if std::mem::take(&mut self.guarded) {
            let _ = self.home.send(Request::Unguard(self.pid));
        }
        let cgroup = self.cgroup.take().filter(|cgroup| !cgroup.remove());
        let pid = Some(self.pid).filter(|_| !self.reaped);
        if pid.is_some() || cgroup.is_some() {
            let _ = self.home.send(Request::Abandoned(Abandoned { pid, cgroup }));
        }
    }
}

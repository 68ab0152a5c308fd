//! A small process which outlives the worker by a moment, to end the groups of tasks that a killed worker leaves.
//!
//! `PR_SET_PDEATHSIG` reaches a task's first process only; the pipeline that its shell started would live on. The guardian
//! is a shell with a pipe from the worker: it is told of groups, and when the pipe closes it kills those it still knows.
//! It starts with the first task that runs longer than an instant, and needs `/bin/sh`; without one, killing a worker
//! with SIGKILL leaves grandchildren, which is noted once.

use super::launch::{self, Image, Stack, Stdio};
use rustix::process::Pid;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, PipeWriter, Write};
use std::os::fd::AsFd;

/// Keeps ` 12 34 ` in `l`; a closed pipe ends the loop.
const SCRIPT: &str = r#"l=' '
while read -r o g; do
  case $o in
    +) l="$l$g " ;;
    -) l="${l%% $g *} ${l#* $g }" ;;
  esac
done
for g in $l; do kill -s KILL -- "-$g"; done"#;

pub(super) struct Guardian {
    running: Option<(Pid, PipeWriter)>,
    groups: BTreeSet<i32>,
    given_up: bool,
}

impl Guardian {
    pub(super) const fn new() -> Self {
        Self { running: None, groups: BTreeSet::new(), given_up: false }
    }

    /// Entrusts a group.
    pub(super) fn add(&mut self, group: Pid, stack: &mut Stack) {
        self.groups.insert(group.as_raw_pid());
        if self.given_up || self.tell('+', group.as_raw_pid()) {
            return;
        }
        self.stop();
        match start(group, stack) {
            Ok(running) => {
                self.running = Some(running);
                let others: Vec<i32> =
                    self.groups.iter().copied().filter(|&other| other != group.as_raw_pid()).collect();
                for other in others {
                    self.tell('+', other);
                }
            }
            Err(error) => {
                self.given_up = true;
                tracing::warn!(%error, "no guardian could be started: if this worker is killed, tasks' grandchildren live on");
            }
        }
    }

    /// Takes a group back.
    pub(super) fn remove(&mut self, group: Pid) {
        if self.groups.remove(&group.as_raw_pid()) {
            self.tell('-', group.as_raw_pid());
        }
    }

    /// Whether a guardian heard.
    fn tell(&mut self, sign: char, group: i32) -> bool {
        self.running.as_mut().is_some_and(|(_, pipe)| pipe.write_all(format!("{sign} {group}\n").as_bytes()).is_ok())
    }

    fn stop(&mut self) {
        if let Some((pid, pipe)) = self.running.take() {
            drop(pipe);
            let _ = launch::wait(pid);
        }
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Its first group waits for it in the pipe: were it told afterwards, a worker killed in between would leave that one.
fn start(first: Pid, stack: &mut Stack) -> io::Result<(Pid, PipeWriter)> {
    let (reader, mut writer) = io::pipe()?;
    writeln!(writer, "+ {first}")?;
    let null = File::options().write(true).open("/dev/null")?;
    let image = Image {
        program: c"/bin/sh".to_owned(),
        argv: vec![c"taskmaster-guardian".to_owned(), c"-c".to_owned(), std::ffi::CString::new(SCRIPT)?],
        env: Vec::new(),
        cwd: Some(c"/".to_owned()),
        tied: false,
    };
    let stdio = Stdio { stdin: reader.as_fd(), stdout: null.as_fd(), stderr: null.as_fd(), cgroups: &[] };
    let launched = launch::launch(&image, &stdio, stack).map_err(|refused| io::Error::from(refused.error))?;
    Ok((launched.pid, writer))
}

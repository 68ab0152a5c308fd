//! Memory and processor limits for single tasks, by cgroups.
//!
//! Version 2 is preferred; where its memory and cpu controllers are elsewhere (hybrid hosts) version 1 is used, for each
//! controller by itself; where neither may be used, tasks run without limits and [`Cgroups::sentence`] says why.
//!
//! Layout: `<own>/taskmaster-<pid>-<start>-<pid namespace>-<number>/task-<id>-<number>`, where `<own>` is the worker's own
//! cgroup (or [`Config::base`]), so that a task never escapes limits which the worker itself is under.
//!
//! Invariants: a directory of ours is removed when its task is gone; what a killed worker left is removed, and what runs
//! there is killed, when the next worker starts beneath the same cgroup.

mod discover;
mod stale;
mod v1;
mod v2;

use crate::job::{Job, Measured};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Which limits a worker wants.
#[derive(Debug, Clone)]
pub struct Config {
    /// Limit the memory of tasks which ask for memory.
    pub memory: bool,
    /// Limit the processor time of tasks which ask for processors.
    pub cpu: bool,
    /// Give every process a cgroup, limits or not: then also what leaves the task's process group and session (a daemon)
    /// ends with the task.
    pub contain: bool,
    /// Give every process a cgroup of version 2 where there is one, to measure what it uses: it holds nothing together and limits
    /// nothing.
    pub measure: bool,
    /// A delegated cgroup v2 directory to use in place of the worker's own.
    pub base: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self { memory: true, cpu: true, contain: false, measure: false, base: None }
    }
}

impl Config {
    /// No limits at all.
    #[must_use]
    pub const fn off() -> Self {
        Self { memory: false, cpu: false, contain: false, measure: false, base: None }
    }
}

/// The limits of one task; 0 is none.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct TaskLimits {
    memory_bytes: u64,
    cpu_milli: u32,
}

impl TaskLimits {
    pub(crate) const fn of(job: &Job) -> Self {
        Self { memory_bytes: job.memory_bytes, cpu_milli: job.cpu_milli }
    }
}

/// What this host allows, for `doctor`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// Whether memory limits are in force.
    pub memory: bool,
    /// Whether processor limits are in force.
    pub cpu: bool,
    /// Both, and the reasons, as a sentence.
    pub sentence: String,
}

/// Which of the two interfaces a directory belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

impl Version {
    const fn name(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        }
    }
}

/// A controller which limits can be set by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Controller {
    Memory,
    Cpu,
}

impl Controller {
    const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
        }
    }
}

/// A directory of ours beneath which tasks get theirs; removed with the last of them.
#[derive(Debug)]
struct Base {
    dir: PathBuf,
    version: Version,
    controllers: Vec<Controller>,
}

impl Drop for Base {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.dir);
    }
}

/// The limits in force for one worker.
#[derive(Debug)]
pub struct Cgroups {
    bases: Vec<Arc<Base>>,
    contain: bool,
    measure: bool,
    refusals: Vec<String>,
    next: AtomicU64,
    failed_before: AtomicBool,
}

impl Cgroups {
    /// Finds out what may be used, clears away what killed workers left, and makes this worker's directories.
    #[must_use]
    pub fn open(config: &Config) -> Self {
        let mut wanted: Vec<Controller> = Vec::new();
        let mut refusals = Vec::new();
        for (controller, on) in [(Controller::Memory, config.memory), (Controller::Cpu, config.cpu)] {
            if on {
                wanted.push(controller);
            } else {
                refusals.push(format!("{} limits are switched off by the configuration", controller.name()));
            }
        }
        let mut bases = Vec::new();
        if !wanted.is_empty() || config.contain || config.measure {
            let found = match &config.base {
                Some(dir) => vec![discover::Found { version: Version::V2, controllers: Vec::new(), dir: dir.clone() }],
                None => discover::own(),
            };
            bases.extend(v2::open(&found, &mut wanted, &mut refusals));
            if config.base.is_none() {
                bases.extend(v1::open(&found, &mut wanted, &mut refusals));
            }
            let is_v2 = |base: &Base| base.version == Version::V2;
            if (config.contain && bases.is_empty()) || (config.measure && !bases.iter().any(is_v2)) {
                bases.extend(v2::open_bare(&found, &mut refusals));
            }
            if let Some(base) = bases.iter().find(|base| config.measure && is_v2(base)) {
                v2::count_io(&base.dir);
            }
        }
        let bases = bases.into_iter().map(Arc::new).collect();
        Self {
            bases,
            contain: config.contain,
            measure: config.measure,
            refusals,
            next: AtomicU64::new(0),
            failed_before: AtomicBool::new(false),
        }
    }

    /// What this host allows; leaves nothing behind.
    #[must_use]
    pub fn probe(config: &Config) -> Probe {
        let cgroups = Self::open(config);
        Probe {
            memory: cgroups.base(Controller::Memory).is_some(),
            cpu: cgroups.base(Controller::Cpu).is_some(),
            sentence: cgroups.sentence(),
        }
    }

    fn base(&self, controller: Controller) -> Option<&Arc<Base>> {
        self.bases.iter().find(|base| base.controllers.contains(&controller))
    }

    /// Which limits are in force, and why others are not.
    #[must_use]
    pub fn sentence(&self) -> String {
        let mut parts: Vec<String> = Vec::new();
        for base in self.bases.iter().filter(|base| !base.controllers.is_empty()) {
            let names: Vec<&str> = base.controllers.iter().map(|controller| controller.name()).collect();
            let place = base.dir.parent().unwrap_or(&base.dir).display();
            let version = base.version.name();
            parts.push(format!("cgroup {version} enforces {} limits of tasks beneath {place}", names.join(" and ")));
        }
        if parts.is_empty() {
            parts.push("tasks run without memory and cpu limits".to_owned());
        }
        if self.contain
            && let Some(base) = self.bases.first()
        {
            parts.push(format!("cgroup {} holds each task together", base.version.name()));
        }
        if self.measured_in().is_some() {
            parts.push("cgroup v2 tells what tasks use".to_owned());
        }
        parts.extend(self.refusals.iter().cloned());
        parts.join("; ")
    }

    /// Whether tasks are measured.
    pub(crate) fn measures(&self) -> bool {
        self.measured_in().is_some()
    }

    /// Where tasks are measured.
    fn measured_in(&self) -> Option<&Arc<Base>> {
        self.bases.iter().find(|base| self.measure && base.version == Version::V2)
    }

    /// A cgroup for a task that asks for limits, or is to be contained or measured; `None` where it needs none, or none can be had
    /// (noted once).
    pub(crate) fn for_task(&self, id: &str, limits: TaskLimits) -> Option<TaskGroup> {
        let mut wanted: Vec<(Controller, u64)> = Vec::new();
        for (controller, limit) in
            [(Controller::Memory, limits.memory_bytes), (Controller::Cpu, u64::from(limits.cpu_milli))]
        {
            if limit > 0 && self.base(controller).is_some() {
                wanted.push((controller, limit));
            }
        }
        let bare = self.bases.first().filter(|_| self.contain && wanted.is_empty());
        let measured = self.measured_in();
        if wanted.is_empty() && bare.is_none() && measured.is_none() {
            return None;
        }
        let id: String = id.chars().filter(char::is_ascii_alphanumeric).take(64).collect();
        let name = format!("task-{id}-{}", self.next.fetch_add(1, Ordering::Relaxed));
        let mut group = TaskGroup { parts: Vec::new(), memory_bytes: limits.memory_bytes, is_entered: true };
        for base in &self.bases {
            let limits: Vec<_> = wanted.iter().copied().filter(|(c, _)| base.controllers.contains(c)).collect();
            let is_it = |other: &Arc<Base>| Arc::ptr_eq(other, base);
            let holds = !limits.is_empty() || bare.is_some_and(is_it);
            if (holds || measured.is_some_and(is_it))
                && let Err(error) = group.add(base, &name, &limits, holds)
            {
                self.note(&error);
                if holds {
                    group.remove();
                    return None;
                }
            }
        }
        (!group.parts.is_empty()).then_some(group)
    }

    fn note(&self, error: &io::Error) {
        if !self.failed_before.swap(true, Ordering::Relaxed) {
            tracing::warn!(%error, "a task's cgroup could not be made, so it runs without limits, or is not measured (noted once)");
        }
    }
}

/// One task's cgroup, in one hierarchy or two.
#[derive(Debug)]
pub(crate) struct TaskGroup {
    parts: Vec<Part>,
    memory_bytes: u64,
    /// The process is in here.
    is_entered: bool,
}

#[derive(Debug)]
struct Part {
    dir: PathBuf,
    memory: bool,
    /// What runs in here ends with the task; else it is there to measure by.
    holds: bool,
    base: Arc<Base>,
}

impl TaskGroup {
    fn add(&mut self, base: &Arc<Base>, name: &str, limits: &[(Controller, u64)], holds: bool) -> io::Result<()> {
        let dir = base.dir.join(name);
        fs::create_dir(&dir)?;
        let is_limited = limits.iter().any(|&(controller, _)| controller == Controller::Memory);
        let memory = is_limited || (base.version == Version::V2 && base.controllers.contains(&Controller::Memory));
        self.parts.push(Part { dir: dir.clone(), memory, holds, base: Arc::clone(base) });
        for &(controller, limit) in limits {
            match base.version {
                Version::V1 => v1::limit(&dir, controller, limit)?,
                Version::V2 => v2::limit(&dir, controller, limit)?,
            }
        }
        Ok(())
    }

    /// The files by which a process enters: it writes `0` to each.
    pub(crate) fn entrances(&self) -> Vec<OwnedFd> {
        let open = |part: &Part| fs::File::options().write(true).open(part.dir.join("cgroup.procs")).ok();
        self.parts.iter().filter_map(open).map(OwnedFd::from).collect()
    }

    /// The process could not enter, or only in part; whether it was to be held in here.
    pub(crate) fn not_entered(&mut self) -> bool {
        self.is_entered = false;
        self.parts.iter().any(|part| part.holds)
    }

    /// The memory limit, in bytes.
    pub(crate) const fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    fn memory_part(&self) -> Option<&Part> {
        self.parts.iter().find(|part| part.memory)
    }

    /// Whether the kernel killed something in here for want of memory.
    pub(crate) fn oom_killed(&self) -> bool {
        let file = |part: &Part| match part.base.version {
            Version::V1 => part.dir.join("memory.oom_control"),
            Version::V2 => part.dir.join("memory.events"),
        };
        let limited = self.memory_part().filter(|_| self.memory_bytes > 0);
        limited.and_then(|part| counter(&file(part), "oom_kill")).is_some_and(|kills| kills > 0)
    }

    /// Greatest memory use, page cache included, in bytes.
    pub(crate) fn peak_bytes(&self) -> Option<u64> {
        let part = self.memory_part()?;
        let file = match part.base.version {
            Version::V1 => "memory.max_usage_in_bytes",
            Version::V2 => "memory.peak",
        };
        fs::read_to_string(part.dir.join(file)).ok()?.trim().parse().ok()
    }

    /// Whether its memory is counted.
    pub(crate) fn counts_memory(&self) -> bool {
        self.memory_part().is_some()
    }

    /// What was used in here, where version 2 counts it.
    pub(crate) fn measured(&self) -> Option<Measured> {
        v2::measured(&self.parts.iter().filter(|_| self.is_entered).find(|part| part.base.version == Version::V2)?.dir)
    }

    /// Kills everything that it holds together.
    pub(crate) fn kill(&self) {
        for part in self.parts.iter().filter(|part| part.holds) {
            kill_all(&part.dir);
        }
    }

    /// Removes the directories; whether nothing is left. What still runs here is killed, or let go where it was only measured.
    pub(crate) fn remove(&self) -> bool {
        let mut gone = true;
        for part in &self.parts {
            let removed = match fs::remove_dir(&part.dir) {
                Ok(()) => true,
                Err(error) => error.kind() == io::ErrorKind::NotFound,
            };
            if !removed && part.holds {
                kill_all(&part.dir);
            } else if !removed {
                v2::let_go(&part.dir, &part.base.dir);
            }
            gone &= removed;
        }
        gone
    }
}

/// Kills all processes of a cgroup: by `cgroup.kill` where there is one, else one by one.
fn kill_all(dir: &Path) {
    if fs::write(dir.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    let Ok(procs) = fs::read_to_string(dir.join("cgroup.procs")) else { return };
    for pid in procs.lines().filter_map(|line| line.parse().ok()).filter_map(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// A line `name value` of a file of such lines.
fn counter(file: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

/// Says what a write to a cgroup file was about when it fails.
fn write(file: &Path, text: &str) -> io::Result<()> {
    fs::write(file, text).map_err(|error| {
        io::Error::new(error.kind(), format!("`{text}` could not be written to {}: {error}", file.display()))
    })
}

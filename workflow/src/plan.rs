//! The graph that every format becomes: tasks with the indices of their parents, and the bounds of its makespan.
//!
//! Invariants of a plan that a reader returned: names are unique, parents are sorted, distinct and stand before the tasks
//! that need them. Times are in seconds unless a name says otherwise.

pub(crate) mod bounds;
mod payload;

use std::collections::HashSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::problem::{Code, Problem};

/// A workflow ready to be submitted.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The workflow's name.
    pub name: String,
    /// Tasks, parents before those that need them; a task's index is its identity inside the plan.
    pub tasks: Vec<PlanTask>,
    /// What becomes of those that need a task when it fails for good.
    pub on_failure: OnFailure,
    /// What was odd but harmless in the file.
    pub warnings: Vec<Problem>,
}

/// One task of a plan.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanTask {
    /// Unique inside the plan; an array's element is `name[index]`.
    pub name: String,
    /// What its siblings share: the declared name in our format, the program in a recorded instance.
    pub group: String,
    /// Indices of the tasks that must end first: sorted, distinct.
    pub parents: Vec<u32>,
    /// What to do.
    pub work: Work,
    /// Under which terms; shared by tasks of equal terms.
    pub contract: Arc<Contract>,
}

/// What a task does.
#[derive(Debug, Clone, PartialEq)]
pub enum Work {
    /// A process.
    Command(Command),
    /// A task for the workers that handle this kind.
    Kind {
        /// The handler's name.
        kind: String,
        /// Bytes for the handler, as text.
        payload: String,
    },
    /// A recorded execution, to be imitated.
    Replay(Replay),
}

/// A process to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// Program and arguments; never empty.
    pub argv: Vec<String>,
    /// Variables beyond the worker's own environment, sorted by name.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// Working directory.
    pub cwd: String,
    /// What the process reads from its standard input.
    #[serde(default)]
    pub stdin: Option<String>,
}

impl Command {
    /// Bytes of all its texts.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.argv.iter().map(String::len).sum::<usize>()
            + self.env.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>()
            + self.cwd.len()
            + self.stdin.as_ref().map_or(0, String::len)
    }
}

/// What was measured of a task when it ran.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Replay {
    /// Run time in seconds, at least 0.
    pub runtime_s: f64,
    /// Largest resident memory; 0 where nothing was recorded.
    pub memory_bytes: u64,
    /// Sum of the sizes of the files it read.
    pub input_bytes: u64,
    /// Sum of the sizes of the files it wrote.
    pub output_bytes: u64,
    /// Mean use of the processor in percent of one core; 0 where nothing was recorded.
    pub avg_cpu_percent: f64,
    /// Cores it was given; 1 where nothing was recorded.
    pub cores: f64,
}

/// The terms of a task. Tasks of equal terms share one value.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Contract {
    /// Queue; `None` is the server's default queue.
    pub queue: Option<String>,
    /// Priority class.
    pub priority: Priority,
    /// What it needs of a worker.
    pub resources: Resources,
    /// When it is tried again.
    pub retry: Retry,
    /// Milliseconds that one attempt may take.
    pub timeout_ms: Option<u64>,
    /// Milliseconds from submission within which it must have ended.
    pub deadline_ms: Option<u64>,
    /// An attempt may be ended and made again, or made twice at once.
    pub restartable: bool,
}

/// Priority classes, lowest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Priority {
    /// After everything else.
    Low,
    /// The default.
    #[default]
    Normal,
    /// Before normal.
    High,
    /// Before everything else.
    Critical,
}

impl Priority {
    /// Every class and its name, lowest first.
    pub const NAMES: [(&str, Self); 4] =
        [("low", Self::Low), ("normal", Self::Normal), ("high", Self::High), ("critical", Self::Critical)];

    /// Its number in the protocol: 0 critical, 1 high, 2 normal, 3 low.
    #[must_use]
    pub const fn class(self) -> u8 {
        match self {
            Self::Critical => 0,
            Self::High => 1,
            Self::Normal => 2,
            Self::Low => 3,
        }
    }
}

/// Makes equal contracts one value.
#[derive(Debug, Default)]
pub(crate) struct Contracts(HashSet<Arc<Contract>>);

impl Contracts {
    pub(crate) fn share(&mut self, contract: Contract) -> Arc<Contract> {
        if let Some(known) = self.0.get(&contract) {
            return Arc::clone(known);
        }
        let shared = Arc::new(contract);
        self.0.insert(Arc::clone(&shared));
        shared
    }
}

/// What becomes of a task's dependents when it fails for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnFailure {
    /// All its descendants are cancelled.
    #[default]
    Cancel,
    /// Its dependents run as if it had succeeded.
    Continue,
}

/// When a failed attempt is followed by another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Retry {
    /// Attempts in all, at least 1.
    pub max_attempts: u16,
    /// Milliseconds before the second attempt.
    pub backoff_initial_ms: u32,
    /// Milliseconds that no wait exceeds.
    pub backoff_max_ms: u32,
    /// Hundredths by which each wait is longer than the one before: 200 doubles.
    pub backoff_factor_centi: u16,
    /// Exit codes that end the task at once.
    pub non_retryable_exit_codes: Vec<u8>,
    /// Error names that end the task at once.
    pub non_retryable_errors: Vec<String>,
}

impl Default for Retry {
    /// One attempt; when more are asked for, 1 s doubling up to 1 min.
    fn default() -> Self {
        Self {
            max_attempts: 1,
            backoff_initial_ms: 1_000,
            backoff_max_ms: 60_000,
            backoff_factor_centi: 200,
            non_retryable_exit_codes: Vec::new(),
            non_retryable_errors: Vec::new(),
        }
    }
}

/// What a task needs of a worker while it runs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Resources {
    /// Thousandths of a core; 0 is the server's default.
    pub cpu_milli: u32,
    /// Bytes of memory; 0 asks for none in particular.
    pub memory_bytes: u64,
    /// Thousandths of a GPU.
    pub gpu_milli: u32,
    /// Other resources by name, sorted by name.
    pub custom: Vec<(String, u64)>,
}

/// What the largest worker has; [`Plan::impossible`] compares with it.
pub type Capacity = Resources;

impl Plan {
    /// Dependencies in all.
    #[must_use]
    pub fn dependencies(&self) -> usize {
        self.tasks.iter().map(|task| task.parents.len()).sum()
    }

    /// Divides every recorded run time by `speed`: 1,000 replays an hour in 3.6 s. Sizes stay.
    ///
    /// # Panics
    /// When `speed` is not a positive finite number.
    pub fn speed_up(&mut self, speed: f64) {
        assert!(speed.is_finite() && speed > 0.0, "a replay's speed is positive, not {speed}");
        for task in &mut self.tasks {
            if let Work::Replay(replay) = &mut task.work {
                replay.runtime_s /= speed;
            }
        }
    }

    /// Makes every replay ask for the memory and cores that were recorded; without this they ask for nothing, since
    /// an imitation of a run on a large machine should run on a small one.
    pub fn demand_recorded_resources(&mut self) {
        let mut contracts = Contracts::default();
        for task in &mut self.tasks {
            if let Work::Replay(replay) = &task.work {
                let mut contract = (*task.contract).clone();
                contract.resources.memory_bytes = replay.memory_bytes;
                contract.resources.cpu_milli = milli(replay.cores);
                task.contract = contracts.share(contract);
            }
        }
    }

    /// Tasks that not even a worker with `capacity` could ever run, one problem each group.
    #[must_use]
    pub fn impossible(&self, capacity: &Capacity) -> Vec<Problem> {
        let mut problems: Vec<Problem> = Vec::new();
        let mut last_group = None;
        for task in &self.tasks {
            if last_group == Some(&task.group) {
                continue;
            }
            if let Some(lack) = lack(&task.contract.resources, capacity) {
                last_group = Some(&task.group);
                let sentence = format!("task '{}' asks for {lack}; ask for less or start a larger worker", task.name);
                problems.push(Problem::new(Code::ImpossibleResources, None, sentence));
            }
        }
        problems
    }
}

/// Cores as thousandths, within the limits of a request.
fn milli(cores: f64) -> u32 {
    let milli = (cores * 1_000.0).round().clamp(0.0, f64::from(crate::limits::CPU_MILLI_MAX));
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to the range just above")]
    let milli = milli as u32;
    milli
}

fn lack(wanted: &Resources, capacity: &Capacity) -> Option<String> {
    // It may run with others; the node says if those are nowhere either.
    if wanted.custom.iter().any(|(name, _)| name.starts_with("or/")) {
        return None;
    }
    if wanted.cpu_milli > capacity.cpu_milli {
        return Some(format!("{}m of cpu, the largest worker has {}m", wanted.cpu_milli, capacity.cpu_milli));
    }
    if wanted.memory_bytes > capacity.memory_bytes {
        let (wanted, has) = (wanted.memory_bytes, capacity.memory_bytes);
        return Some(format!("{wanted} bytes of memory, the largest worker has {has}"));
    }
    if wanted.gpu_milli > capacity.gpu_milli {
        return Some(format!("{}m of gpu, the largest worker has {}m", wanted.gpu_milli, capacity.gpu_milli));
    }
    // What is only preferred is not needed.
    wanted.custom.iter().filter(|(name, _)| !name.starts_with("prefer/")).find_map(|(name, units)| {
        let has = capacity.custom.iter().find(|(other, _)| other == name).map_or(0, |(_, has)| *has);
        (*units > has).then(|| format!("{units} of '{name}', the largest worker has {has}"))
    })
}

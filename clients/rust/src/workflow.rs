//! A workflow under construction: tasks with names and what they need.
//!
//! Invariant: a step can only need steps added before it, so a workflow has no cycles by construction.

use taskmaster_protocol::TaskId;

use crate::task::Task;

/// A step of a [`Workflow`], for others to need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Step(pub(crate) u32);

impl Step {
    /// Row of the step, from 0; also its place in [`WorkflowHandle::tasks`].
    #[must_use]
    pub fn row(self) -> usize {
        self.0 as usize
    }
}

/// What happens to the descendants of a task that fails, is cancelled or expires.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// They are cancelled.
    #[default]
    CancelDescendants,
    /// They run all the same.
    Continue,
}

pub(crate) struct PlannedStep {
    pub(crate) name: String,
    pub(crate) task: Task,
    pub(crate) needs: Vec<u32>,
}

/// Tasks that are submitted together, each as soon as those it needs have succeeded.
///
/// ```
/// # use taskmaster_client::{Task, Workflow};
/// let mut nightly = Workflow::new("nightly");
/// let fetch = nightly.add("fetch", Task::new("fetch"), []);
/// let counts: Vec<_> = (0..8).map(|n| nightly.add(format!("count-{n}"), Task::new("count"), [fetch])).collect();
/// nightly.add("report", Task::new("report"), counts);
/// ```
pub struct Workflow {
    pub(crate) name: String,
    pub(crate) steps: Vec<PlannedStep>,
    pub(crate) on_failure: OnFailure,
}

impl Workflow {
    /// An empty workflow.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), steps: Vec::new(), on_failure: OnFailure::default() }
    }

    /// What happens to the descendants of a task that does not succeed.
    #[must_use]
    pub fn on_failure(mut self, on_failure: OnFailure) -> Self {
        self.on_failure = on_failure;
        self
    }

    /// Adds a step that starts when all of `needs` have succeeded.
    ///
    /// # Panics
    /// If a needed step is of another, longer workflow.
    pub fn add(&mut self, name: impl Into<String>, task: Task, needs: impl IntoIterator<Item = Step>) -> Step {
        let step = Step(u32::try_from(self.steps.len()).expect("a workflow is bounded far below 2^32 steps"));
        let needs: Vec<u32> = needs.into_iter().map(|needed| needed.0).collect();
        assert!(needs.iter().all(|&needed| needed < step.0), "a step can only need steps added before it");
        self.steps.push(PlannedStep { name: name.into(), task, needs });
        step
    }

    /// Number of steps.
    #[must_use]
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Whether there is no step.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }
}

/// A submitted workflow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkflowHandle {
    /// The workflow.
    pub id: TaskId,
    /// Its tasks, by [`Step::row`].
    pub tasks: Vec<TaskId>,
}

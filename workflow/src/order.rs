//! Did a run respect the plan? Checked from what was observed, without trust in whoever ran it.

use std::fmt;

use crate::plan::Plan;

/// When a task ran: its first start and its last end on one monotonic clock, in any unit.
pub type Span = (u64, u64);

/// The first way in which a run broke its plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    /// There is not one observation per task.
    WrongCount {
        /// Tasks in the plan.
        tasks: usize,
        /// Observations given.
        observed: usize,
    },
    /// A task ended before it started.
    EndsBeforeStart {
        /// Name of the task.
        task: String,
    },
    /// A task ran although a task it needs never did.
    ParentNeverRan {
        /// Name of the task.
        task: String,
        /// Name of the task it needs.
        parent: String,
    },
    /// A task started before a task it needs had ended.
    StartedTooEarly {
        /// Name of the task.
        task: String,
        /// Name of the task it needs.
        parent: String,
        /// By how much, in the unit of the observations.
        early_by: u64,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WrongCount { tasks, observed } => write!(f, "{observed} observations for {tasks} tasks"),
            Self::EndsBeforeStart { task } => write!(f, "task '{task}' ended before it started"),
            Self::ParentNeverRan { task, parent } => {
                write!(f, "task '{task}' ran, but '{parent}', which it needs, never did")
            }
            Self::StartedTooEarly { task, parent, early_by } => {
                write!(f, "task '{task}' started {early_by} before '{parent}', which it needs, had ended")
            }
        }
    }
}

impl std::error::Error for Violation {}

/// Checks that every dependency was respected. `observed[i]` belongs to `plan.tasks[i]`; `None` is a task that never ran.
/// A task may start at the very instant its parent ends.
///
/// # Errors
/// The first violation in the plan's order.
pub fn verify_order(plan: &Plan, observed: &[Option<Span>]) -> Result<(), Violation> {
    if observed.len() != plan.tasks.len() {
        return Err(Violation::WrongCount { tasks: plan.tasks.len(), observed: observed.len() });
    }
    for (task, span) in plan.tasks.iter().zip(observed) {
        let Some((start, end)) = *span else { continue };
        if end < start {
            return Err(Violation::EndsBeforeStart { task: task.name.clone() });
        }
        for &parent in &task.parents {
            let parent = usize::try_from(parent).expect("a u32 fits a usize");
            let parent_name = || plan.tasks[parent].name.clone();
            match observed[parent] {
                None => return Err(Violation::ParentNeverRan { task: task.name.clone(), parent: parent_name() }),
                Some((_, ended)) if start < ended => {
                    let early_by = ended - start;
                    let parent = parent_name();
                    return Err(Violation::StartedTooEarly { task: task.name.clone(), parent, early_by });
                }
                Some(_) => {}
            }
        }
    }
    Ok(())
}

//! A plan as what the client submits.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::time::Duration;

use taskmaster_client::{OnFailure, Priority, Resources, Retries, Step, Task, Workflow};
use taskmaster_workflow::{Contract, Plan, PlanTask, Work};

/// How long finished tasks are kept: their times are read when the last one is final.
const RETENTION: Duration = Duration::from_secs(86_400);

/// Groups of a plan whose run times are learned apart; with more, each would be seen too seldom and take a place from other kinds.
const GROUPS_MAX: usize = 64;

/// The plan as a workflow of the client: same order, so a step's row is the task's index.
pub(super) fn workflow(plan: &Plan) -> Workflow {
    let on_failure = match plan.on_failure {
        taskmaster_workflow::OnFailure::Cancel => OnFailure::CancelDescendants,
        taskmaster_workflow::OnFailure::Continue => OnFailure::Continue,
    };
    let mut workflow = Workflow::new(plan.name.clone()).on_failure(on_failure);
    let mut steps: Vec<Step> = Vec::with_capacity(plan.tasks.len());
    // Tasks of one contract and kind share a row of contracts on the wire.
    let mut templates: HashMap<(*const Contract, Cow<'_, str>), Task> = HashMap::new();
    let groups: HashSet<&str> = plan.tasks.iter().map(|task| task.group.as_str()).collect();
    for task in &plan.tasks {
        let (kind, payload) = task.kind_and_payload(groups.len() <= GROUPS_MAX);
        let template = templates.entry((&raw const *task.contract, kind));
        let base = template.or_insert_with_key(|(_, kind)| base_task(task, kind));
        let needs: Vec<Step> =
            task.parents.iter().map(|&parent| steps[usize::try_from(parent).expect("an index")]).collect();
        steps.push(workflow.add(task.name.clone(), base.clone().payload(payload), needs));
    }
    workflow
}

/// A task of this contract without its payload.
fn base_task(task: &PlanTask, kind: &str) -> Task {
    let contract = &*task.contract;
    let mut base = Task::new(kind.to_owned())
        .priority(priority(contract.priority))
        .retries(retries(contract))
        .restartable(contract.restartable)
        .resources(resources(&contract.resources))
        .retention(RETENTION);
    if let Some(queue) = &contract.queue {
        base = base.queue(queue.clone());
    }
    if let Some(deadline_ms) = contract.deadline_ms {
        base = base.deadline_in(Duration::from_millis(deadline_ms));
    }
    base
}

fn priority(priority: taskmaster_workflow::Priority) -> Priority {
    match priority {
        taskmaster_workflow::Priority::Critical => Priority::Critical,
        taskmaster_workflow::Priority::High => Priority::High,
        taskmaster_workflow::Priority::Normal => Priority::Normal,
        taskmaster_workflow::Priority::Low => Priority::Low,
    }
}

fn retries(contract: &Contract) -> Retries {
    let retry = &contract.retry;
    let ms = |count: u32| Duration::from_millis(count.into());
    let retries = Retries::attempts(retry.max_attempts.max(1))
        .backoff(ms(retry.backoff_initial_ms))
        .backoff_max(ms(retry.backoff_max_ms))
        .factor_centi(retry.backoff_factor_centi);
    retry.non_retryable_errors.iter().fold(retries, |retries, code| retries.non_retryable(code))
}

/// Resources in the client's form.
pub(super) fn resources(resources: &taskmaster_workflow::Resources) -> Resources {
    let base = Resources::new()
        .cpu_milli(resources.cpu_milli)
        .memory_bytes(resources.memory_bytes)
        .gpu_milli(resources.gpu_milli);
    resources.custom.iter().fold(base, |base, (name, amount)| base.custom(name, *amount))
}

/// Queues that the plan's tasks are in, each once.
pub(super) fn queues(plan: &Plan) -> Vec<String> {
    let mut queues: Vec<String> =
        plan.tasks.iter().map(|task| task.contract.queue.clone().unwrap_or_else(|| "default".to_owned())).collect();
    queues.sort();
    queues.dedup();
    queues
}

/// The command that everything leads to, if there is exactly one task that nobody needs.
pub(super) fn last_command(plan: &Plan) -> Option<usize> {
    let mut needed = vec![false; plan.tasks.len()];
    for &parent in plan.tasks.iter().flat_map(|task| &task.parents) {
        needed[usize::try_from(parent).expect("an index")] = true;
    }
    let mut last = (0..plan.tasks.len()).filter(|&task| !needed[task]);
    let only = last.next().filter(|_| last.next().is_none())?;
    matches!(plan.tasks[only].work, Work::Command(_)).then_some(only)
}

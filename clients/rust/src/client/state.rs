//! Versioned state of tasks: reading, changing, forking, and saving under a lease.

use taskmaster_protocol::body::{
    ArchivedBatchReply, ArchivedStateHistory, ArchivedStatePage, ArchivedStateReply, ChangeState, ForkWorkflow,
    GetTask, ReadState, put, state_verb,
};
use taskmaster_protocol::{Code, Operation, TaskId};

use super::Client;
use crate::cluster::Cluster;
use crate::error::{Error, Refusal};
use crate::routing::now_ms;
use crate::versions::{Cut, Holder, Known, StateBytes, StateChange, StateHistory, Version};
use crate::workflow::WorkflowHandle;

impl Client {
    /// The versions of a task's state, with branches and tags.
    ///
    /// # Errors
    /// [`Error::Refused`] with `unknown_task`; transport errors.
    pub async fn state_log(&self, id: TaskId) -> Result<StateHistory, Error> {
        let message = self.cluster().call(Operation::StateLog, id.partition(), &GetTask { id }).await?;
        StateHistory::read(message.read::<ArchivedStateHistory>()?)
    }

    /// One version of a task's state; `None`: the one from which an attempt would resume.
    ///
    /// # Errors
    /// [`Error::Refused`] with `unknown_task` or `unknown_version`; transport errors.
    pub async fn read_state(&self, id: TaskId, version: Option<u32>) -> Result<StateBytes, Error> {
        read(self.cluster(), id, version.unwrap_or(0)).await
    }

    /// Changes a task's history; the version concerned, for pruning how many versions went.
    ///
    /// # Errors
    /// [`Error::Refused`] with a sentence that says what is there; transport errors.
    pub async fn change_state(&self, id: TaskId, change: &StateChange) -> Result<u32, Error> {
        let mut body = ChangeState { id, ..ChangeState::default() };
        let mut named = |verb: u32, name: &str, version: Option<u32>| {
            (body.verb, body.version) = (verb, version.unwrap_or(0));
            body.name = put(&mut body.bytes, name.as_bytes());
        };
        match change {
            StateChange::Branch { name, version } => named(state_verb::BRANCH, name, *version),
            StateChange::Switch { name } => named(state_verb::SWITCH, name, None),
            StateChange::DeleteBranch { name } => named(state_verb::DELETE_BRANCH, name, None),
            StateChange::Rollback { version } => named(state_verb::ROLLBACK, "", Some(*version)),
            StateChange::Tag { name, version } => named(state_verb::TAG, name, *version),
            StateChange::Untag { name } => named(state_verb::UNTAG, name, None),
            StateChange::Resume { version } => named(state_verb::RESUME, "", *version),
            StateChange::Prune { keep } => {
                named(state_verb::PRUNE, "", None);
                body.keep = keep.unwrap_or(0);
            }
        }
        self.send_change(&body).await
    }

    async fn send_change(&self, body: &ChangeState) -> Result<u32, Error> {
        let message = self.cluster().call(Operation::ChangeState, body.id.partition(), body).await?;
        only_version(message.read::<ArchivedStateReply>()?, body.id)
    }

    /// A new task with the contract and payload of another, whose state begins with a version of that one's; `None`: the one from
    /// which it would resume itself.
    ///
    /// # Errors
    /// As [`Client::change_state`].
    pub async fn fork_task(&self, id: TaskId, version: Option<u32>) -> Result<TaskId, Error> {
        let to = self.cluster().ids.id(now_ms(), id.partition());
        let (verb, version) = (state_verb::FORK, version.unwrap_or(0));
        match self.send_change(&ChangeState { id, to, verb, version, ..ChangeState::default() }).await {
            // An earlier copy of this very call made it.
            Err(error) if error.code() == Some(Code::Duplicate) => Ok(to),
            other => other.map(|_| to),
        }
    }

    /// A new workflow from an old one: steps that succeeded and do not depend on the step `at` are taken over with their results;
    /// that step and all others run.
    ///
    /// # Errors
    /// [`Error::Refused`] with `unknown_workflow`, `unknown_task` when there is no such step; transport errors.
    pub async fn fork_workflow(&self, id: TaskId, at: &str) -> Result<WorkflowHandle, Error> {
        let view = self.workflow(id).await?;
        let Some(row) = view.tasks.iter().position(|task| task.name == at) else {
            let names: Vec<&str> = view.tasks.iter().map(|task| task.name.as_str()).take(16).collect();
            let message = format!("workflow {id} has no step \"{at}\"; its steps: {}", names.join(", "));
            return Err(Refusal::local(Code::UnknownTask, message).into());
        };
        let ids = &self.cluster().ids;
        let fresh = || ids.id(now_ms(), id.partition());
        let to = fresh();
        let tasks: Vec<TaskId> = view.tasks.iter().map(|_| fresh()).collect();
        let at = u32::try_from(row).unwrap_or(u32::MAX);
        let body = ForkWorkflow { id, to, tasks: tasks.clone(), at, reserved: 0 };
        let message = self.cluster().call(Operation::ForkWorkflow, id.partition(), &body).await?;
        let reply = message.read::<ArchivedBatchReply>()?;
        let other = reply.exceptions.iter().map(|row| Code::from_number(row.code.to_native()));
        match other.into_iter().find(|code| *code != Code::Duplicate) {
            None => Ok(WorkflowHandle { id: to, tasks }),
            Some(code) => Err(Refusal::local(code, format!("workflow {id} could not be forked")).into()),
        }
    }

    /// Saves a state from outside the worker that holds the lease, on top of `parent` (0: none), for processes that were told
    /// their lease.
    ///
    /// # Errors
    /// [`Error::Refused`] with `stale_lease` or `already_final` when the attempt is over; transport errors.
    pub async fn save_state(
        &self,
        id: TaskId,
        token: u64,
        attempt: u32,
        parent: u32,
        label: &str,
        bytes: &[u8],
    ) -> Result<Version, Error> {
        let mut known = Known::number(parent);
        if parent > 0
            && let Ok(state) = read(self.cluster(), id, parent).await
        {
            known = Known::of(state);
        }
        let holder = Holder { id, token, locator: u32::MAX, attempt };
        save(self.cluster(), &holder, &mut known, label, bytes).await
    }
}

/// The version in an answer about one row.
fn only_version(reply: &ArchivedStateReply, id: TaskId) -> Result<u32, Error> {
    if let Some(row) = reply.exceptions.first() {
        let code = Code::from_number(row.code.to_native());
        let message = match code {
            Code::StaleLease => format!("task {id} is not held under this lease any more: another attempt has it"),
            Code::AlreadyFinal => format!("task {id} has ended already"),
            Code::UnknownTask => format!("no task {id}: it never existed or its retention is over"),
            Code::DigestMismatch => "the server put another state together: nothing was saved".to_owned(),
            Code::UnknownVersion => format!("task {id} has no such version any more: see `taskmaster state log`"),
            Code::TooLarge => "there is no room beside branches and tags: delete some".to_owned(),
            code => format!("{code}: the state of task {id} is as it was"),
        };
        return Err(Refusal::local(code, message).into());
    }
    let version = reply.versions.first().map(|version| version.to_native());
    version.ok_or_else(|| Error::Protocol("an answer without a version".to_owned()))
}

/// Saves a state on top of the version known, which it becomes.
pub(crate) async fn save(
    cluster: &Cluster,
    holder: &Holder,
    known: &mut Known,
    label: &str,
    bytes: &[u8],
) -> Result<Version, Error> {
    let cut = Cut::new(bytes, known)?;
    let partition = holder.id.partition();
    let (body, has_runs) = cut.body(holder, known, label);
    let message = cluster.call(Operation::SaveState, partition, &body).await?;
    let mut saved = only_version(message.read::<ArchivedStateReply>()?, holder.id);
    let is_gone = |error: &Error| error.code() == Some(Code::UnknownVersion);
    if has_runs && saved.as_ref().is_err_and(is_gone) {
        // The version that it is on top of was pruned: once more, whole.
        let (body, _) = cut.body(holder, &Known::number(known.number), label);
        let message = cluster.call(Operation::SaveState, partition, &body).await?;
        saved = only_version(message.read::<ArchivedStateReply>()?, holder.id);
    }
    let version = Version { number: saved?, size: bytes.len() as u64, digest: cut.digest };
    *known = Known::new(version.number, cut);
    Ok(version)
}

/// Reads one version, page by page; 0 is the head of the current branch.
pub(crate) async fn read(cluster: &Cluster, id: TaskId, version: u32) -> Result<StateBytes, Error> {
    let mut state: Option<StateBytes> = None;
    loop {
        let from = state.as_ref().map_or(0, |state| u32::try_from(state.chunks.len()).unwrap_or(u32::MAX));
        let version = state.as_ref().map_or(version, |state| state.version.number);
        let body = ReadState { id, version, from };
        let message = cluster.call(Operation::ReadState, id.partition(), &body).await?;
        let page = message.read::<ArchivedStatePage>()?;
        let state = state.get_or_insert_with(|| StateBytes::begin(&page.version));
        let bytes: u64 = page.lengths.iter().map(|len| u64::from(len.to_native())).sum();
        let is_last = state.chunks.len() + page.lengths.len() >= page.version.chunks.to_native() as usize;
        if bytes != page.bytes.len() as u64 || (page.lengths.is_empty() && !is_last) {
            return Err(Error::Protocol("a page of a state does not fit its lengths".to_owned()));
        }
        state.chunks.extend(page.lengths.iter().map(|len| len.to_native()));
        state.bytes.extend_from_slice(&page.bytes);
        if is_last {
            return state.clone().check();
        }
    }
}

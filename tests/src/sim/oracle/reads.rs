//! Reads: one that was received after an outcome was acknowledged sees it, whoever answers.

use taskmaster_protocol::body::{self, ArchivedTaskPage};
use taskmaster_protocol::{Code, TaskId, access};

use super::{Oracle, Request, Sent, State, Verdict, require};

/// What had been acknowledged when a read was received.
#[derive(Clone, Debug)]
pub(super) struct Before {
    acknowledged: bool,
    settled: Option<State>,
    /// The task was completed with this result.
    result: Option<Vec<u8>>,
    retried: u32,
}

impl Oracle {
    pub(super) fn before(&self, id: TaskId) -> Option<Before> {
        let task = self.tasks.get(&id)?;
        Some(Before {
            acknowledged: task.acknowledged,
            settled: task.settled.map(|settled| settled.state),
            result: task.completed.as_ref().map(|(result, _)| result.clone()),
            retried: task.retried,
        })
    }

    /// Whether no retry of a task was received since then.
    pub(super) fn is_unretried(&self, id: TaskId, before: &Before) -> bool {
        self.tasks[&id].retried == before.retried
    }

    pub(super) fn read_answered(&mut self, request: &Request, sent: &Sent) -> Verdict {
        let row = &request.rows[0];
        let (id, before) = (row.id, row.before.as_ref().expect("tasks that are read are registered"));
        let code = Code::from_number(sent.header.code);
        self.watch(id, || format!("-> {code} {before:?}"));
        if code == Code::UnknownTask {
            self.reads += 1;
            let task = self.tasks.get_mut(&id).expect("registered");
            task.over = true;
            let may_be_unknown = task.contract.may_be_forgotten;
            let is_stored = self.store.as_ref().is_none_or(|store| store.end(id).is_some());
            require(is_stored || !before.acknowledged, || format!("{id} was forgotten and not checkpointed"))?;
            require(may_be_unknown || !before.acknowledged, || format!("{id} was acknowledged and is lost"))?;
            return require(may_be_unknown || before.settled.is_none(), || {
                format!("{id} was {:?} and is lost", before.settled)
            });
        }
        if code != Code::Ok {
            return Ok(());
        }
        self.reads += 1;
        let page = access::<ArchivedTaskPage>(&sent.body).map_err(|error| format!("a page does not read: {error}"))?;
        let info = page.rows.first().ok_or("a page without its task")?;
        require(TaskId::from(&info.id) == id, || format!("a read of {id} brings {}", TaskId::from(&info.id)))?;
        let state = State::from_number(info.state).ok_or("a state that does not exist")?;
        let span = if state == State::Succeeded { info.result } else { info.payload };
        let blob = body::slice(&page.bytes, span).map_err(|error| error.to_string())?;
        self.watch(id, || format!("is {state:?}"));
        self.streams.seen(id)?;
        let is_memo = info.memo != 0;
        if is_memo {
            let note = body::text(&page.bytes, info.note).map_err(|error| error.to_string())?;
            self.check_memo(id, state, blob, note)?;
        }
        let task = self.tasks.get_mut(&id).expect("registered");
        if let Some(result) = &before.result {
            require(state == State::Succeeded, || format!("{id} was completed and is {state:?}"))?;
            require(blob == result, || format!("{id} has another result than the acknowledged one"))?;
        }
        let unretried = task.retried == before.retried && task.retries == 0;
        if let Some(settled) = before.settled.filter(|settled| unretried || *settled == State::Succeeded) {
            require(state == settled, || format!("{id} was {settled:?} and is read as {state:?}"))?;
        }
        match state {
            State::Succeeded => {
                let sent_by_any = task.results.iter().any(|result| result == blob);
                require(sent_by_any || is_memo, || format!("{id} has a result that nobody sent"))?;
            }
            State::Expired => {
                require(task.contract.has_deadline, || format!("{id} has no deadline and expired"))?;
            }
            State::Cancelled if task.contract.workflow.is_none() => {
                require(task.cancel_received, || format!("{id} was never cancelled and is"))?;
            }
            _ => {}
        }
        if state.is_final() && (unretried || state == State::Succeeded) {
            task.over = true;
            self.settle(id, state, sent.term)?;
        }
        Ok(())
    }

    /// A task ended as another did: one with the same kind, version and payload that ran, and is named.
    fn check_memo(&mut self, id: TaskId, state: State, result: &[u8], note: &str) -> Verdict {
        self.memoised += 1;
        let is_failure = state == State::Failed;
        require(is_failure || state == State::Succeeded, || format!("{id} ended as another did and is {state:?}"))?;
        let memo =
            self.tasks[&id].contract.memo.ok_or_else(|| format!("{id} is not memoised and ended as another did"))?;
        let sender = self.by_memo[&memo].iter().find(|other| **other != id && note.ends_with(&other.to_string()));
        let sender = sender.ok_or_else(|| format!("{id} has the {note}, which is not like it"))?;
        let sender_task = &self.tasks[sender];
        if is_failure {
            return require(sender_task.attempts_seen > 0, || format!("{id} failed with {sender}, which never ran"));
        }
        let sent = sender_task.results.iter().any(|sent| sent == result);
        require(sent, || format!("{id} has a result that {sender} never sent"))
    }
}

//! Answers to requests that were logged: what is acknowledged is promised.

use std::collections::{BTreeSet, HashMap};

use taskmaster_protocol::body::ArchivedBatchReply;
use taskmaster_protocol::{Code, Operation, TaskId, access};

use super::{Oracle, Pause, Request, Row, Sent, Settled, State, Verdict, Window, require};

impl Oracle {
    /// A process has made these frames from one input.
    pub(crate) fn sent(&mut self, life: u64, frames: &[Sent], now_us: u64) -> Verdict {
        let mut answers: Vec<(Request, &Sent)> = Vec::new();
        for sent in frames.iter().filter(|sent| sent.header.is_response()) {
            if let Some(request) = self.requests.remove(&(sent.link, sent.header.correlation)) {
                answers.push((request, sent));
            }
        }
        answers.sort_by_key(|(request, _)| request.order);
        for (request, sent) in answers {
            self.answered(&request, sent)?;
        }
        for sent in frames.iter().filter(|sent| sent.header.operation == Operation::Revoke.number()) {
            self.revoked(life, sent)?;
        }
        for sent in frames.iter().filter(|sent| sent.header.operation == Operation::Assign.number()) {
            self.assigned(life, sent, now_us)?;
        }
        self.revoked_now.clear();
        // Pauses acknowledged in one input hold from the next one.
        self.paused.values_mut().for_each(|pause| pause.holds = true);
        Ok(())
    }

    fn answered(&mut self, request: &Request, sent: &Sent) -> Verdict {
        let code = Code::from_number(sent.header.code);
        match request.operation {
            Operation::GetTask => return self.read_answered(request, sent),
            Operation::SaveState | Operation::StateLog | Operation::ReadState => {
                return self.states_answered(request, sent);
            }
            // A leader that was deposed cannot know what becomes of the retry: it stays open.
            Operation::Retry if code != Code::NotLeader => {
                request.rows.iter().for_each(|row| self.unsettle(row.id, -1));
                return Ok(());
            }
            _ if code != Code::Ok => return Ok(()),
            Operation::SubmitStream => return self.piece_answered(request, sent),
            Operation::ConfigureQueue => {
                self.setting_answered(request, sent);
                return Ok(());
            }
            _ => {}
        }
        let reply =
            access::<ArchivedBatchReply>(&sent.body).map_err(|error| format!("a reply does not read: {error}"))?;
        let mut exceptions = HashMap::new();
        for exception in reply.exceptions.iter() {
            let index = exception.index.to_native() as usize;
            let code = Code::from_number(exception.code.to_native());
            let twice = exceptions.insert(index, (code, TaskId::from(&exception.id)));
            require(twice.is_none(), || format!("row {index} of a {:?} has two exceptions", request.operation))?;
        }
        if request.operation != Operation::Cancel || !request.rows.is_empty() {
            let accepted = reply.accepted.to_native() as usize;
            require(accepted + exceptions.len() == request.rows.len(), || {
                let (rows, exceptions) = (request.rows.len(), exceptions.len());
                format!("a {:?} of {rows} rows: {accepted} accepted, {exceptions} exceptions", request.operation)
            })?;
        }
        for (index, row) in request.rows.iter().enumerate() {
            self.watch(row.id, || format!("-> {:?} {:?}", request.operation, exceptions.get(&index)));
            self.row_answered(request, row, exceptions.get(&index), sent)?;
        }
        Ok(())
    }

    fn row_answered(
        &mut self,
        request: &Request,
        row: &Row,
        exception: Option<&(Code, TaskId)>,
        sent: &Sent,
    ) -> Verdict {
        match request.operation {
            Operation::Submit => self.submit_answered(request, row, exception),
            _ if exception.is_some() => Ok(()),
            Operation::Complete => self.completed(row, sent),
            Operation::Fail => {
                require(row.is_valid, || format!("a failure of {} under a stale token was accepted", row.id))
            }
            Operation::Extend => {
                let task = self.tasks.get_mut(&row.id).expect("registered");
                let ends_us = request.received_us + task.contract.lease_us;
                if let Some(lease) = task.leases.iter_mut().find(|lease| lease.token == row.token) {
                    lease.ends_us = ends_us;
                    lease.conn = sent.link;
                }
                Ok(())
            }
            Operation::Cancel => {
                // A retry that was received later may have been applied before this late answer.
                let unretried = row.before.as_ref().is_some_and(|before| self.is_unretried(row.id, before));
                if unretried { self.settle(row.id, State::Cancelled, sent.term) } else { Ok(()) }
            }
            _ => Ok(()),
        }
    }

    fn setting_answered(&mut self, request: &Request, sent: &Sent) {
        let Some((partition, queue, paused, _)) = request.setting else { return };
        let at = (partition, queue);
        let resumed_since = self.resumed.get(&at).is_some_and(|order| *order > request.order);
        if let (Some(true), Some(term), false) = (paused, sent.term, resumed_since) {
            self.paused.insert(at, Pause { term, holds: false });
        } else if paused == Some(false) {
            self.paused.remove(&at);
        }
    }

    /// Somebody is told that a task is final.
    pub(super) fn settle(&mut self, id: TaskId, state: State, term: Option<u64>) -> Verdict {
        let task = self.tasks.get_mut(&id).expect("registered");
        if task.retries > 0 && state != State::Succeeded {
            return Ok(());
        }
        if let Some(before) = task.settled {
            return require(before.state == state, || format!("{id} became {state:?} after it was {:?}", before.state));
        }
        task.settled = Some(Settled { state, term: term.unwrap_or(u64::MAX) });
        Ok(())
    }

    fn completed(&mut self, row: &Row, sent: &Sent) -> Verdict {
        require(row.is_valid, || format!("a completion of {} under a stale token was accepted", row.id))?;
        let task = self.tasks.get_mut(&row.id).expect("registered");
        require(task.completed.is_none(), || format!("{} was completed twice", row.id))?;
        task.completed = Some((row.result.clone(), super::term_of(row.token)));
        self.completions_acknowledged += 1;
        self.settle(row.id, State::Succeeded, sent.term)
    }

    pub(super) fn submit_answered(
        &mut self,
        request: &Request,
        row: &Row,
        exception: Option<&(Code, TaskId)>,
    ) -> Verdict {
        let task = self.tasks.get_mut(&row.id).expect("registered");
        match exception {
            None => {
                // Deduplication lasts as long as the outcome is kept. A copy that was under way for longer is a new task, if
                // it does not say that it may be one. Nobody may have been told of the end of one with a deadline.
                let may_be_over = task.settled.is_some() || task.contract.has_deadline;
                if task.contract.may_be_forgotten && may_be_over && !request.is_resend {
                    task.begin_anew();
                }
                require(!task.accepted_row, || format!("{} was accepted twice ({:?})", row.id, task.contract))?;
                (task.accepted_row, task.acknowledged) = (true, true);
                self.submits_acknowledged += 1;
                self.check_unique(request, row.id)
            }
            Some((Code::Duplicate, _)) => {
                self.submits_acknowledged += u64::from(!task.acknowledged);
                task.acknowledged = true;
                Ok(())
            }
            Some((Code::UniqueConflict, holder)) => {
                let key = task.contract.unique;
                require(key.is_some() && *holder != row.id, || format!("{} conflicts with {holder}", row.id))?;
                let holds = self.tasks.get(holder).and_then(|holder| holder.contract.unique);
                require(holds == key, || format!("{} conflicts with {holder}, which has another key", row.id))
            }
            // A resend of what may have been accepted and forgotten: the node cannot know, and must not run it again.
            Some((Code::OutcomeForgotten, _)) => {
                require(request.is_resend, || format!("{} is told forgotten and was never sent before", row.id))
            }
            Some((code, _)) => Err(format!("{} was refused with {code}", row.id)),
        }
    }

    /// A task was accepted: nobody else may hold its unique key, by being unfinished or by a window.
    fn check_unique(&mut self, request: &Request, id: TaskId) -> Verdict {
        let contract = &self.tasks[&id].contract;
        let Some(key) = contract.unique else { return Ok(()) };
        let window_us = contract.unique_window_us;
        let windows = self.windows.entry(key).or_default();
        // An answer may come late, from a leader that leads no longer: what was acknowledged meanwhile stands behind it.
        for window in windows.iter().filter(|window| window.after < request.order) {
            let (holder, until_us) = (window.holder, window.until_us);
            require(self.clock_us_max >= until_us, || {
                format!("{id} took unique key {key} within the window of {holder} ({} < {until_us})", self.clock_us_max)
            })?;
        }
        if window_us > 0 {
            let until_us = request.received_us + window_us;
            windows.push(Window { holder: id, until_us, after: self.received });
        }
        let holders = self.by_unique[&key].iter().filter(|other| self.is_surely_unfinished(**other));
        let holders: BTreeSet<&TaskId> = holders.collect();
        require(holders.len() <= 1, || format!("{holders:?} are unfinished and have the unique key {key}"))
    }

    /// Whether a task was accepted and nothing was received that may have ended it.
    fn is_surely_unfinished(&self, id: TaskId) -> bool {
        let task = &self.tasks[&id];
        let may_have_run_out = task.attempts_seen >= task.contract.attempts_max || task.contract.has_deadline;
        // Others of a workflow may have made it final.
        let may_have_fallen = task.contract.workflow.is_some() || task.cancel_received || task.retried > 0;
        task.accepted_row && !may_have_run_out && !may_have_fallen && !task.end_received
    }
}

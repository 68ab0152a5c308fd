//! Leases: fencing tokens, what a task waits for, and what it may not run beside.

use taskmaster_protocol::body::{ArchivedAssign, ArchivedLeases};
use taskmaster_protocol::{TaskId, access};

use super::{Lease, Oracle, Sent, Verdict, require, term_of};

/// A lease as it is being given: its token, the process, and the shard's time.
#[derive(Clone, Copy)]
struct Given {
    token: u64,
    life: u64,
    now_us: u64,
    /// It began and ended in one turn: its end may be told before its begin.
    is_over: bool,
}

impl Oracle {
    pub(super) fn assigned(&mut self, life: u64, sent: &Sent, now_us: u64) -> Verdict {
        let assign =
            access::<ArchivedAssign>(&sent.body).map_err(|error| format!("an assign does not read: {error}"))?;
        for row in assign.rows.iter() {
            let (id, token) = (TaskId::from(&row.id), row.token.to_native());
            self.assigned += 1;
            self.watch(id, || format!("-> Assign of {life} token {token:#x} attempt {}", row.attempt));
            self.check_needs(id, term_of(token), now_us)?;
            let is_over = self.revoked_now.contains(&(id, token));
            self.check_assign(id, row.attempt.to_native(), Given { token, life, now_us, is_over })?;
            self.streams.seen(id)?;
            let task = &self.tasks[&id];
            let pause = self.paused.get(&(id.partition().0, task.contract.queue));
            let is_paused = pause.is_some_and(|pause| pause.holds && pause.term <= term_of(token));
            require(!is_paused, || format!("{id} was assigned from a paused queue"))?;
            let (key, lease_us) = (task.contract.key, task.contract.lease_us);
            let task = self.tasks.get_mut(&id).expect("just seen");
            task.tokens.insert(token);
            task.attempts_seen += 1;
            let (is_restartable, attempt) = (task.contract.is_restartable, row.attempt.to_native());
            task.leases.retain(|lease| lease.life != life || (is_restartable && lease.attempt == attempt));
            if is_over {
                continue;
            }
            self.doubled += u64::from(task.leases.iter().any(|lease| lease.life == life && now_us < lease.ends_us));
            let ends_us = now_us + lease_us;
            task.leases.push(Lease { token, attempt, life, conn: sent.link, ends_us, may_be_over: false });
            self.check_key(key, life, now_us)?;
        }
        Ok(())
    }

    /// A worker is told that a lease is over: whatever comes under it from here on counts for nothing.
    pub(super) fn revoked(&mut self, life: u64, sent: &Sent) -> Verdict {
        let leases =
            access::<ArchivedLeases>(&sent.body).map_err(|error| format!("a revocation does not read: {error}"))?;
        for row in leases.rows.iter() {
            let (id, token) = (TaskId::from(&row.id), row.token.to_native());
            self.watch(id, || format!("-> Revoke of {life} token {token:#x}"));
            let task = self.tasks.get_mut(&id).ok_or_else(|| format!("{id} was never submitted, yet revoked"))?;
            self.revoked_now.insert((id, token));
            let had = task.leases.len();
            task.leases.retain(|lease| lease.life != life || lease.token != token);
            let is_other = task.end_received || task.cancel_received || task.contract.has_deadline;
            self.ended_for_others += u64::from(had == 1 && task.leases.is_empty() && !is_other);
        }
        Ok(())
    }

    fn check_assign(&self, id: TaskId, attempt: u32, given: Given) -> Verdict {
        let Given { token, life, now_us, is_over } = given;
        let term = term_of(token);
        let task = self.tasks.get(&id).ok_or_else(|| format!("{id} was never submitted, yet assigned"))?;
        require(task.first_received_us > 0, || format!("{id} was assigned before it was received"))?;
        require(!task.tokens.contains(&token), || format!("{id} was assigned under token {token:#x} twice"))?;
        let mine = task.leases.iter().filter(|lease| lease.life == life).max_by_key(|lease| lease.token);
        require(mine.is_none_or(|lease| lease.token < token), || {
            format!("{id} was assigned under token {token:#x} after {:#x}", mine.map_or(0, |lease| lease.token))
        })?;
        let newer = task.tokens.range(token..).next();
        require(newer.is_none_or(|newer| term_of(*newer) > term), || {
            format!("{id} was assigned under token {token:#x} after {newer:x?}")
        })?;
        let ended = task.completed.as_ref().is_some_and(|(_, completed)| *completed <= term);
        require(!ended || is_over, || format!("{id} was assigned after its completion was acknowledged"))?;
        let settled = task.settled.filter(|settled| settled.term <= term);
        require(settled.is_none() || is_over, || format!("{id} was assigned although {settled:?}"))?;
        let is_still = |lease: &&Lease| !lease.may_be_over && term_of(lease.token) == term;
        // A second attempt may begin beside one, and no third.
        if task.contract.is_restartable {
            let is_mine = |lease: &&Lease| lease.life == life && now_us < lease.ends_us;
            let still = task.leases.iter().filter(is_mine).filter(is_still).count();
            let is_sure = !task.contract.has_deadline;
            require(still <= 1 || !is_sure, || {
                format!("{id} was assigned a third time while two leases are in force")
            })?;
        } else if let Some(lease) = mine.filter(is_still) {
            require(task.contract.has_deadline || now_us >= lease.ends_us, || {
                format!("{id} was assigned again {} us before its lease ended", lease.ends_us - now_us)
            })?;
        }
        // A retry by hand brings the budget again, and passes over an attempt that may have been under way.
        let attempts_max = task.contract.attempts_max + task.retried * (task.contract.attempts_max + 1);
        require(attempt >= 1 && attempt <= attempts_max, || format!("{id} is in attempt {attempt} of {attempts_max}"))?;
        // Another leader, whose clock is ahead, may have let it become ready.
        let due_us = task.first_received_us + task.contract.delay_us;
        require(task.retried > 0 || self.clock_us_max >= due_us, || {
            format!("{id} was assigned before its delay was over")
        })
    }

    /// Leases of one concurrency key that are surely in force at its leader.
    fn check_key(&self, key: Option<u32>, life: u64, now_us: u64) -> Verdict {
        let Some(key) = key else { return Ok(()) };
        let ids = &self.by_key[&key];
        let limit = self.tasks[&ids[0]].contract.key_limit as usize;
        let is_leased = |id: &&TaskId| {
            let task = &self.tasks[*id];
            // A deadline ends a lease without a word to the oracle; a cancellation may be on its way through the log.
            let may_have_fallen = task.contract.has_deadline || task.cancel_received || task.retried > 0;
            let mut leases = task.leases.iter().filter(|lease| lease.life == life);
            !may_have_fallen && leases.any(|lease| !lease.may_be_over && now_us < lease.ends_us)
        };
        let leased: Vec<&TaskId> = ids.iter().filter(is_leased).collect();
        require(leased.len() <= limit, || format!("leases of {leased:?} under concurrency key {key} of {limit}"))
    }

    fn check_needs(&self, id: TaskId, term: u64, now_us: u64) -> Verdict {
        let Some(task) = self.tasks.get(&id) else { return Ok(()) };
        for need in &task.contract.needs {
            let parent = &self.tasks[need];
            // A leader of a later term may have a completion that was never answered.
            let succeeded = parent.completed.is_some() || parent.valid_term.is_some_and(|valid| valid < term);
            if task.contract.continues {
                let may_have_fallen = parent.contract.has_deadline || parent.cancel_received || parent.retried > 0;
                let is_live =
                    |lease: &Lease| term_of(lease.token) == term && !lease.may_be_over && now_us < lease.ends_us;
                let live = !may_have_fallen && parent.leases.iter().any(is_live);
                let began = parent.attempts_seen > 0 || parent.cancel_received || parent.contract.has_deadline;
                require(!live && (succeeded || began || self.has_fallen(*need)), || {
                    format!("{id} was assigned while {need}, which it needs, was not final")
                })?;
            } else {
                require(succeeded, || format!("{id} was assigned before {need}, which it needs, succeeded"))?;
            }
        }
        Ok(())
    }

    /// Whether something that a task needs may have been cancelled or expired.
    fn has_fallen(&self, id: TaskId) -> bool {
        self.tasks[&id].contract.needs.iter().any(|need| {
            let parent = &self.tasks[need];
            parent.cancel_received || parent.contract.has_deadline || parent.attempts_seen > 0
        })
    }
}

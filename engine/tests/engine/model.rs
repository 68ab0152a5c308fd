//! What an onlooker who hears every answer may rely on, kept in plain maps.

use std::collections::{BTreeMap, HashMap, HashSet};

use taskmaster_engine::State;
use taskmaster_protocol::{Code, TaskId};

use crate::job::Job;
use crate::world::{Lease, TaskView};

/// A task that was submitted, heard of or not.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) job: Job,
    pub(crate) workflow: Option<TaskId>,
    pub(crate) needs: Vec<TaskId>,
    /// The submission was acknowledged, here or as a duplicate.
    pub(crate) is_acknowledged: bool,
    /// The result whose completion was acknowledged.
    pub(crate) result: Option<Vec<u8>>,
    /// Highest fencing token seen.
    pub(crate) token: u64,
    /// Token of the latest revoked lease.
    revoked: u64,
    /// The latest lease, and when it may end by itself, while nothing has ended it.
    pub(crate) lease: Option<(Lease, u64)>,
}

/// The onlooker's books.
#[derive(Default)]
pub(crate) struct Model {
    pub(crate) tasks: BTreeMap<TaskId, Known>,
    /// Workflows whose steps were retried by hand, or that continue after failures.
    pub(crate) loose: HashSet<TaskId>,
    pub(crate) completions: u64,
    /// What runs of memoised tasks came to, by partition and payload: versions and kinds are all the same.
    results: HashSet<(u16, Vec<u8>, Vec<u8>)>,
    /// Retries by hand.
    pub(crate) retries: u32,
}

/// How often a task may be attempted: its budget again with each retry, and an attempt that was cancelled.
fn attempts_max(known: &Known, retries: u32) -> u32 {
    let budget = u32::from(known.job.spec.attempts_max);
    budget + retries * (budget + 1)
}

impl Model {
    pub(crate) fn submitted(&mut self, job: &Job, workflow: Option<TaskId>, needs: Vec<TaskId>) {
        let known = Known {
            job: job.clone(),
            workflow,
            needs,
            is_acknowledged: false,
            result: None,
            token: 0,
            revoked: 0,
            lease: None,
        };
        self.tasks.entry(job.id).or_insert(known);
    }

    /// A run of a memoised task may come to this result, or a store outside has it.
    pub(crate) fn made(&mut self, job: &Job, result: &[u8]) {
        if job.spec.memo == 1 {
            self.results.insert((job.id.partition().0, job.payload.clone(), result.to_vec()));
        }
    }

    pub(crate) fn was_made(&self, job: &Job, result: &[u8]) -> bool {
        self.results.contains(&(job.id.partition().0, job.payload.clone(), result.to_vec()))
    }

    pub(crate) fn acknowledged(&mut self, id: TaskId) {
        self.tasks.get_mut(&id).expect("only what was submitted is acknowledged").is_acknowledged = true;
    }

    /// A lease arrived. `until_us` is the earliest moment at which it may end by itself.
    pub(crate) fn leased(&mut self, lease: &Lease, now_us: u64, until_us: u64) {
        let known = self.tasks.get_mut(&lease.id).expect("only what was submitted is assigned");
        assert!(known.result.is_none(), "{} was completed and is assigned again", lease.id);
        assert!(lease.token > known.token, "tokens of {} do not grow", lease.id);
        if let Some((other, other_until_us)) = &known.lease {
            let left_us = other_until_us.saturating_sub(now_us);
            assert_eq!(left_us, 0, "{} is leased to {} and to {}", lease.id, other.conn, lease.conn);
        }
        assert_eq!(lease.payload, known.job.payload);
        assert!(lease.attempt <= attempts_max(known, self.retries));
        known.token = lease.token;
        known.lease = (lease.token > known.revoked).then(|| (lease.clone(), until_us));
    }

    pub(crate) fn revoked(&mut self, id: TaskId, token: u64) {
        let known = self.tasks.get_mut(&id).expect("only what was submitted is revoked");
        known.revoked = token;
        known.lease.take_if(|(lease, _)| lease.token <= token);
    }

    /// The holder, an operator or the server did something that may end the lease of a task.
    pub(crate) fn may_have_ended(&mut self, id: TaskId) {
        if let Some(known) = self.tasks.get_mut(&id) {
            known.lease = None;
        }
    }

    pub(crate) fn extended(&mut self, id: TaskId, token: u64, until_us: u64) {
        if let Some((lease, until)) = self.tasks.get_mut(&id).and_then(|known| known.lease.as_mut())
            && lease.token == token
        {
            *until = until_us;
        }
    }

    /// A connection is gone: what it holds may end at `until_us`.
    pub(crate) fn lost(&mut self, conn: u64, until_us: u64) {
        for known in self.tasks.values_mut() {
            if let Some((lease, until)) = known.lease.as_mut().filter(|(lease, _)| lease.conn == conn) {
                *until = until_us.min(*until);
                lease.conn = 0;
            }
        }
    }

    /// The server forgot all leases.
    pub(crate) fn crashed(&mut self) {
        self.tasks.values_mut().for_each(|known| known.lease = None);
    }

    pub(crate) fn completion_answered(&mut self, id: TaskId, token: u64, result: &[u8], code: Code) {
        let Some(known) = self.tasks.get_mut(&id) else { return };
        if code == Code::Ok {
            assert!(known.result.is_none(), "{id} was completed twice");
            assert_eq!(token, known.token, "{id} was completed under a stale token");
            known.result = Some(result.to_vec());
            self.completions += 1;
        }
    }

    /// Compares with everything one partition tells.
    pub(crate) fn check(&self, tasks: &[TaskView], partition: u16, counts: [u64; 8]) {
        let told: HashMap<TaskId, &TaskView> = tasks.iter().map(|task| (task.id, task)).collect();
        assert_eq!(told.len(), tasks.len(), "a task is listed twice");
        let mut by_state = [0u64; 8];
        let mut by_key: HashMap<&[u8], u32> = HashMap::new();
        let mut by_unique: HashMap<&[u8], u32> = HashMap::new();
        let mut by_memo: HashMap<&[u8], u32> = HashMap::new();
        for task in tasks {
            by_state[usize::from(task.state.number())] += 1;
            let known = &self.tasks[&task.id];
            if task.state == State::Leased && !known.job.concurrency_key.is_empty() {
                *by_key.entry(&known.job.concurrency_key).or_default() += 1;
            }
            if known.job.spec.memo == 1 {
                let runs = !task.state.is_final() && task.state != State::Waiting;
                *by_memo.entry(&known.job.payload).or_default() += u32::from(runs);
            } else if !task.state.is_final() && !known.job.unique_key.is_empty() {
                *by_unique.entry(&known.job.unique_key).or_default() += 1;
            }
            assert!(task.attempt <= attempts_max(known, self.retries), "{task:?}");
        }
        assert_eq!(by_state, counts, "counts by state");
        for (key, leased) in by_key {
            let limit = u32::from(key[0] - b'0');
            assert!(leased <= limit, "{leased} of at most {limit} run under one key");
        }
        assert!(by_unique.values().all(|&unfinished| unfinished <= 1), "two unfinished tasks hold one unique key");
        assert!(by_memo.values().all(|&running| running <= 1), "two tasks run for one result");
        for (id, known) in self.tasks.iter().filter(|(id, _)| id.partition().0 == partition) {
            let Some(task) = told.get(id) else {
                assert!(!known.is_acknowledged, "{id} was acknowledged and is lost");
                continue;
            };
            if known.result.is_some() {
                assert_eq!(task.state, State::Succeeded, "{id} was completed");
            }
        }
    }

    /// A task starts: what it needs is over, and well over where the workflow asks for it.
    pub(crate) fn check_needs(&self, id: TaskId, mut state_of: impl FnMut(TaskId) -> State) {
        let known = &self.tasks[&id];
        let Some(workflow) = known.workflow.filter(|workflow| !self.loose.contains(workflow)) else { return };
        for need in &known.needs {
            assert_eq!(state_of(*need), State::Succeeded, "{id} of {workflow} started before {need} succeeded");
        }
    }
}

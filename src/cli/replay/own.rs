//! What a node did, as a trace: from the snapshots and the log of its data directory. Every attempt is a task of it, from when it was ready
//! to when it ended, with its task's deadline; it is as wide as every other, has no limit, and its priority is not carried, as a replay
//! has one line. Nothing is changed there; the node must be stopped, or the directory a copy.

use std::collections::HashMap;
use std::path::Path;

use taskmaster_client::TaskId;
use taskmaster_engine::events::{Change, Labels};
use taskmaster_engine::{Heard, Hearing, Shard};
use taskmaster_scheduler::Millis;
use taskmaster_scheduler::replay::{Job, Trace};
use taskmaster_storage::datadir::DataDir;

use crate::cli::left::{Left, failed};
use crate::cli::{Exit, Failure};
use crate::shard_loop::recovery::Rebuild;
use crate::workers::now_us;

/// Reads what was ready between two times, in microseconds since 1970.
///
/// # Errors
/// When the directory does not read, or has no attempt of which the log says when it began.
pub(super) fn trace(path: &Path, since_us: u64, until_us: u64) -> Result<Trace, Failure> {
    let dir = DataDir::open_as_it_is(path).map_err(failed)?;
    let (mut attempts, mut skipped, mut names) = (Vec::new(), 0, Names::default());
    for number in 0..dir.meta().shards {
        let (told, without_start) = attempts_of(&hear(&Left::new(&dir, number))?, &mut names);
        attempts.extend(told);
        skipped += without_start;
    }
    if attempts.is_empty() && skipped > 0 {
        let message = format!(
            "{} does not say when attempts began, so how long they ran is not known: set wal.starts = true in the node's configuration, \
             start it anew, and replay what it does from then on",
            path.display()
        );
        return Err(Failure::new(Exit::Failed, message));
    }
    attempts.retain(|attempt| (since_us..until_us).contains(&attempt.ready_us));
    attempts.sort_by_key(|attempt| (attempt.ready_us, attempt.began_us));
    let first_us = attempts.first().map_or(0, |attempt| attempt.ready_us);
    let width = most_at_once(&attempts);
    let jobs = (1..).zip(&attempts).map(|(number, attempt)| attempt.job(number, first_us)).collect();
    Ok(Trace { name: path.display().to_string(), width, jobs, skipped })
}

/// Brings a shard back from its oldest snapshot, or from its log alone where that reaches back, and listens.
fn hear(left: &Left<'_>) -> Result<Hearing, Failure> {
    let config = left.config()?;
    let empty = || {
        let mut shard = Shard::new(config.clone(), now_us());
        shard.listen();
        shard
    };
    let oldest_first = left.snapshots()?.into_iter().rev().map(Some);
    let mut last = failed("there is neither a log nor a snapshot");
    for seq in [None].into_iter().chain(oldest_first) {
        let mut past = Rebuild::new(empty, None);
        let begun = left.begin(&mut past, seq).map_err(failed);
        match begun.and_then(|after_seq| left.replay(&mut past, after_seq)) {
            Ok(()) => return Ok(past.shard.heard()),
            // The log does not reach back so far any more, or the snapshot is damaged.
            Err(failure) => last = failure,
        }
    }
    Err(last)
}

/// Texts by number.
#[derive(Default)]
struct Names(HashMap<String, u32>);

impl Names {
    fn number(&mut self, name: &str) -> u32 {
        let next = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        *self.0.entry(name.to_owned()).or_insert(next)
    }
}

/// An attempt, in microseconds since 1970.
struct Attempt {
    ready_us: u64,
    began_us: u64,
    ended_us: u64,
    /// 0: none.
    deadline_us: u64,
    payload_bytes: u32,
    /// Namespace, then kind and queue, as numbers.
    tenant: u32,
    keys: [u32; 2],
}

impl Attempt {
    /// As a task of a trace that begins at `first_us`.
    fn job(&self, number: u32, first_us: u64) -> Job {
        let millis = |us: u64| Millis::try_from(us.div_ceil(1_000)).unwrap_or(Millis::MAX);
        let run = millis(self.ended_us.saturating_sub(self.began_us)).max(1);
        Job {
            id: number.into(),
            line: number,
            submit: millis(self.ready_us - first_us),
            run,
            limit: run,
            has_limit: false,
            // One that was over before the attempt was ready is over at once.
            deadline: (self.deadline_us > 0).then(|| millis(self.deadline_us.saturating_sub(self.ready_us))),
            width: 1,
            user: self.tenant,
            size: self.payload_bytes.checked_ilog2().map_or(0, |size| size + 1),
            keys: [self.keys[0], self.keys[1], 0, 0],
        }
    }
}

/// Attempts that ended, and how many ends there are of which the log does not say when the attempt began.
fn attempts_of(hearing: &Hearing, names: &mut Names) -> (Vec<Attempt>, usize) {
    let mut numbers =
        |labels: &Labels| (names.number(&labels.namespace), [names.number(&labels.kind), names.number(&labels.queue)]);
    let labels: Vec<(u32, [u32; 2])> = hearing.labels.iter().map(&mut numbers).collect();
    let mut running: HashMap<TaskId, &Heard> = HashMap::new();
    let (mut attempts, mut without_start) = (Vec::new(), 0);
    for heard in &hearing.heard {
        match heard.change {
            // One that was lost with its worker is begun again, and was one as well; when it was lost is not known.
            Change::Started => drop(running.insert(heard.id, heard)),
            Change::AttemptFailed | Change::Completed | Change::Failed | Change::Cancelled | Change::Expired => {
                if let Some(start) = running.remove(&heard.id) {
                    let (tenant, keys) = labels[start.labels as usize];
                    let (ready_us, payload_bytes) = (start.ready_us, start.payload_bytes);
                    attempts.push(Attempt {
                        ready_us,
                        began_us: start.at_us,
                        ended_us: heard.at_us,
                        deadline_us: start.deadline_us,
                        payload_bytes,
                        tenant,
                        keys,
                    });
                } else {
                    without_start += usize::from(matches!(heard.change, Change::Completed | Change::Failed));
                }
            }
            Change::Submitted | Change::Retried => {}
        }
    }
    (attempts, without_start)
}

/// How many ran at the same time at most, and at least one.
fn most_at_once(attempts: &[Attempt]) -> u32 {
    let mut ends: Vec<(u64, i64)> = attempts.iter().flat_map(|one| [(one.began_us, 1), (one.ended_us, -1)]).collect();
    // What ended when another began made room for it.
    ends.sort_unstable();
    let running = ends.iter().scan(0, |running, (_, by)| {
        *running += by;
        Some(*running)
    });
    u32::try_from(running.max().unwrap_or(1)).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_carries_what_is_left_to_its_deadline() {
        let attempt = |deadline_us| Attempt {
            ready_us: 5_000_000,
            began_us: 6_000_000,
            ended_us: 8_000_000,
            deadline_us,
            payload_bytes: 0,
            tenant: 0,
            keys: [0, 0],
        };
        let due = |deadline_us| attempt(deadline_us).job(1, 1_000_000).due();
        assert_eq!([due(0), due(9_000_000), due(4_000_000)], [None, Some(4_000), Some(0)]);
    }
}

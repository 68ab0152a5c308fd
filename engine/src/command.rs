//! The engine's verbs, one per file.
//!
//! A logged verb has two halves: `admit` looks at a request and refuses it or lets it into the log, without changing
//! anything durable; `apply` carries a logged request out and cannot fail. Volatile verbs (leases, heartbeats, progress) change
//! the leader's view at once and are never logged.

pub(crate) mod cancel;
pub(crate) mod change_state;
pub(crate) mod complete;
pub(crate) mod configure_queue;
pub(crate) mod expire;
pub(crate) mod extend;
pub(crate) mod fail;
pub(crate) mod fork_workflow;
pub(crate) mod progress;
pub(crate) mod release;
pub(crate) mod retry;
pub(crate) mod save_state;
pub(crate) mod submit;
pub(crate) mod submit_stream;

use rkyv::rend::{u32_le, u64_le};
use taskmaster_protocol::body::{BatchReply, ExceptionRow};
use taskmaster_protocol::{Code, TaskId, limits};

use crate::partition::Partition;
use crate::refused::Refused;
use crate::state::State;
use crate::task::{Slot, flag};

/// Adds an exception for a row to a reply.
pub(crate) fn except(reply: &mut BatchReply, index: usize, id: TaskId, code: Code, state: Option<State>) {
    reply.exceptions.push(exception(index, id, code, state));
}

/// A row that was not carried out.
pub(crate) fn exception(index: usize, id: TaskId, code: Code, state: Option<State>) -> ExceptionRow {
    ExceptionRow {
        id,
        index: u32::try_from(index).expect("rows are bounded"),
        code: code.number(),
        state: state.map_or(0, State::number),
        reserved: 0,
    }
}

/// The task a lease row speaks of if that very lease is in force, else the code and state to answer with. A lease whose
/// expiry is on its way to the log is over: whatever follows it in the log comes too late.
pub(crate) fn leased(
    partition: &Partition,
    id: TaskId,
    token: u64,
    locator: u32,
    attempt: u32,
) -> Result<Slot, (Code, Option<State>)> {
    let Some(slot) = partition.find(id, locator) else { return Err((Code::UnknownTask, None)) };
    let task = &partition.tasks[slot];
    match task.state {
        State::Leased if task.token == token && task.attempt() == attempt && !task.has(flag::EXPIRING) => Ok(slot),
        state if state.is_final() => Err((Code::AlreadyFinal, Some(state))),
        state => Err((Code::StaleLease, Some(state))),
    }
}

/// Like [`leased`], of either lease of a task that has two attempts; with whether it is the second.
pub(crate) fn leased_twice(
    partition: &Partition,
    id: TaskId,
    token: u64,
    locator: u32,
    attempt: u32,
) -> Result<(Slot, bool), (Code, Option<State>)> {
    let refused = match leased(partition, id, token, locator, attempt) {
        Ok(slot) => return Ok((slot, false)),
        Err(refused) => refused,
    };
    let second = partition.find(id, locator).filter(|&slot| {
        let task = &partition.tasks[slot];
        let is_second = || partition.second(slot).is_some_and(|second| second.token == token);
        task.state == State::Leased && task.attempt() == attempt && !task.has(flag::EXPIRING) && is_second()
    });
    second.map(|slot| (slot, true)).ok_or(refused)
}

/// The task of a logged outcome if it is unfinished and still in the attempt that the outcome speaks of. Leases are not
/// looked at: they are volatile, and a replay has not seen them.
pub(crate) fn in_attempt(
    partition: &Partition,
    id: TaskId,
    locator: u32,
    attempt: u32,
) -> Result<Slot, (Code, Option<State>)> {
    let Some(slot) = partition.find(id, locator) else { return Err((Code::UnknownTask, None)) };
    let task = &partition.tasks[slot];
    match task.state {
        state if state.is_final() => Err((Code::AlreadyFinal, Some(state))),
        state if task.attempt() != attempt || state == State::Waiting => Err((Code::StaleLease, Some(state))),
        _ => Ok(slot),
    }
}

/// The rows of a request that may go into the log, and exceptions for the others.
pub(crate) struct Admitted {
    /// Indexes of admitted rows, when not all are.
    pub(crate) rows: Option<Vec<u32>>,
    /// What the others hear.
    pub(crate) reply: BatchReply,
}

/// Refuses more rows than a frame may bring.
pub(crate) fn check_rows(count: usize) -> Result<(), Refused> {
    if count > limits::ROWS_MAX {
        let message = format!("{count} rows in one frame: at most {} are taken, split the batch", limits::ROWS_MAX);
        return Err(Refused::new(Code::TooLarge, message));
    }
    Ok(())
}

/// Refuses spans that share bytes to such a degree that copies of them would not fit a frame.
pub(crate) fn check_blobs(bytes: u64) -> Result<(), Refused> {
    if bytes > limits::BODY_BYTES_MAX as u64 {
        let message = format!("rows refer to {bytes} bytes, at most {} are taken at once", limits::BODY_BYTES_MAX);
        return Err(Refused::new(Code::TooLarge, message));
    }
    Ok(())
}

/// Which rows hold their lease. Their outcome is on its way to the log, so those leases can no longer be given back.
pub(crate) fn settle_leases(
    partition: &mut Partition,
    rows: impl Iterator<Item = (TaskId, u64_le, u32_le, u32_le)>,
) -> Admitted {
    let mut reply = BatchReply::default();
    let mut rows_held = Vec::new();
    for (index, (id, token, locator, attempt)) in rows.enumerate() {
        match leased_twice(partition, id, token.to_native(), locator.to_native(), attempt.to_native()) {
            Ok((slot, _)) => {
                partition.tasks[slot].flags |= flag::SETTLING;
                if !reply.exceptions.is_empty() {
                    rows_held.push(u32::try_from(index).expect("rows are bounded"));
                }
            }
            Err((code, state)) => {
                if reply.exceptions.is_empty() {
                    rows_held.extend((0u32..).take(index));
                }
                except(&mut reply, index, id, code, state);
            }
        }
    }
    let partly = !reply.exceptions.is_empty();
    Admitted { rows: partly.then_some(rows_held), reply }
}

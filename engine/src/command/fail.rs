//! Fail: attempts that ended without success. The retry policy decides between another attempt and the dead letter.

use taskmaster_protocol::body::{self, ArchivedFail, BatchReply, Fail, FailRow};
use taskmaster_protocol::{Code, TaskId, limits};

use super::{Admitted, check_blobs, check_rows, except, in_attempt, leased_twice, settle_leases};
use crate::arena::Handle;
use crate::events::Change;
use crate::extra::pack_error;
use crate::partition::{Cx, Partition};
use crate::refused::Refused;
use crate::state::State;
use crate::task::Slot;

/// Checks layout and limits, and which rows hold their lease; those leases can no longer be given back. Attempts beside which another one of
/// their task goes on end here.
pub(crate) fn admit(partition: &mut Partition, body: &ArchivedFail, cx: &mut Cx<'_>) -> Result<Admitted, Refused> {
    check_rows(body.rows.len())?;
    check_blobs(blob_bytes(body))?;
    for (row, failure) in (0u32..).zip(body.rows.iter()) {
        let code = body::text(&body.bytes, failure.code)?;
        let message = body::text(&body.bytes, failure.message)?;
        let log_tail = body::slice(&body.bytes, failure.log_tail)?;
        if code.len().max(message.len()) > limits::ERROR_BYTES_MAX || log_tail.len() > limits::LOG_TAIL_BYTES_MAX {
            let message = format!(
                "error texts take {} bytes and log tails {}: cut them",
                limits::ERROR_BYTES_MAX,
                limits::LOG_TAIL_BYTES_MAX
            );
            return Err(Refused::new(Code::TooLarge, message).at_row(row));
        }
    }
    drop_failed_beside(partition, body, cx);
    let rows = body.rows.iter().map(|row| (TaskId::from(&row.id), row.token, row.locator, row.attempt));
    Ok(settle_leases(partition, rows))
}

/// Ends attempts that failed while another one of their task goes on, unless the failure is final: then nothing is to be logged.
fn drop_failed_beside(partition: &mut Partition, body: &ArchivedFail, cx: &mut Cx<'_>) {
    if partition.attempts.seconds() == 0 {
        return;
    }
    for row in body.rows.iter() {
        let id = TaskId::from(&row.id);
        let (token, locator, attempt) = (row.token.to_native(), row.locator.to_native(), row.attempt.to_native());
        let Ok((slot, _)) = leased_twice(partition, id, token, locator, attempt) else { continue };
        let retry = &partition.contracts[partition.tasks[slot].contract].retry;
        let code = body::text(&body.bytes, row.code).unwrap_or_default();
        if row.is_final.to_native() == 0 && retry.allows(0, code) {
            partition.failed_beside(slot, token, cx);
        }
    }
}

/// Bytes of errors that the arena must take.
pub(crate) fn blob_bytes(body: &ArchivedFail) -> u64 {
    let parts = body.rows.iter().flat_map(|row| [row.code, row.message, row.log_tail]);
    parts.map(|span| u64::from(span.len.to_native())).sum()
}

/// The same body with only these rows.
pub(crate) fn narrowed(body: &ArchivedFail, rows: &[u32]) -> Fail {
    let mut narrow = Fail::default();
    for &row in rows {
        let row = &body.rows[row as usize];
        let mut copy = |span| body::put(&mut narrow.bytes, body::slice(&body.bytes, span).unwrap_or_default());
        let (code, message, log_tail) = (copy(row.code), copy(row.message), copy(row.log_tail));
        narrow.rows.push(FailRow {
            id: TaskId::from(&row.id),
            token: row.token.to_native(),
            locator: row.locator.to_native(),
            attempt: row.attempt.to_native(),
            code,
            message,
            log_tail,
            is_final: row.is_final.to_native(),
            reserved: 0,
        });
    }
    narrow
}

/// Carries logged failures out.
pub(crate) fn apply(partition: &mut Partition, body: &ArchivedFail, cx: &mut Cx<'_>) -> BatchReply {
    let mut reply = BatchReply::default();
    for (index, row) in body.rows.iter().enumerate() {
        let id = TaskId::from(&row.id);
        let slot = match in_attempt(partition, id, row.locator.to_native(), row.attempt.to_native()) {
            Ok(slot) => slot,
            Err((code, state)) => {
                except(&mut reply, index, id, code, state);
                continue;
            }
        };
        let code = body::text(&body.bytes, row.code).unwrap_or_default();
        let message = body::slice(&body.bytes, row.message).unwrap_or_default();
        let log_tail = body::slice(&body.bytes, row.log_tail).unwrap_or_default();
        partition.settle_attempts(slot, row.token.to_native(), cx);
        partition.learn_run(slot, true, cx);
        attempt_failed(partition, slot, code, message, log_tail, row.is_final.to_native() != 0, cx);
        reply.accepted += 1;
    }
    reply
}

/// Ends an attempt without success: the next one after its pause, or the dead letter.
pub(crate) fn attempt_failed(
    partition: &mut Partition,
    slot: Slot,
    code: &str,
    message: &[u8],
    log_tail: &[u8],
    is_final: bool,
    cx: &mut Cx<'_>,
) {
    crate::snapshot::touch(partition, slot, cx.arena);
    partition.detach(slot, cx);
    let packed = pack_error(code.as_bytes(), message, log_tail);
    let error = super::submit::store(cx.arena, &packed);
    let extra = partition.extra_mut(slot);
    let previous = core::mem::replace(&mut extra.error, error);
    cx.arena.free(previous);
    let task = &mut partition.tasks[slot];
    task.failures = task.failures.saturating_add(1);
    let seed = task.id.mix();
    let failures = partition.failures(slot);
    let task = &partition.tasks[slot];
    let retry = &partition.contracts[task.contract].retry;
    if is_final || !retry.allows(failures, code) {
        partition.finish(slot, State::Failed, Handle::NONE, cx);
        return;
    }
    let wait_us = retry.backoff_us(failures, seed);
    partition.note(slot, Change::AttemptFailed, cx.time_us);
    partition.release_key(slot, cx);
    if wait_us == 0 {
        partition.enter_ready(slot, cx);
    } else {
        partition.enter_delayed(slot, cx.time_us + wait_us, cx);
    }
}

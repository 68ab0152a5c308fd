//! Complete: attempts that succeeded. The first valid completion of a task stands.

use taskmaster_protocol::body::{self, ArchivedComplete, BatchReply, Complete, CompleteRow};
use taskmaster_protocol::{Code, TaskId, limits};

use super::{Admitted, check_blobs, check_rows, except, in_attempt, settle_leases};
use crate::partition::{Cx, Partition};
use crate::refused::Refused;
use crate::state::State;

/// Checks layout and limits, and which rows hold their lease; those leases can no longer be given back.
pub(crate) fn admit(partition: &mut Partition, body: &ArchivedComplete) -> Result<Admitted, Refused> {
    check_rows(body.rows.len())?;
    check_blobs(blob_bytes(body))?;
    for (row, completion) in (0u32..).zip(body.rows.iter()) {
        let result = body::slice(&body.bytes, completion.result)?;
        if result.len() > limits::RESULT_BYTES_MAX {
            let message = format!(
                "result of {} bytes: at most {} are taken; keep larger outputs in a store and return a reference",
                result.len(),
                limits::RESULT_BYTES_MAX
            );
            return Err(Refused::new(Code::TooLarge, message).at_row(row));
        }
    }
    let rows = body.rows.iter().map(|row| (TaskId::from(&row.id), row.token, row.locator, row.attempt));
    Ok(settle_leases(partition, rows))
}

/// Bytes of results that the arena must take.
pub(crate) fn blob_bytes(body: &ArchivedComplete) -> u64 {
    body.rows.iter().map(|row| u64::from(row.result.len.to_native())).sum()
}

/// The same body with only these rows.
pub(crate) fn narrowed(body: &ArchivedComplete, rows: &[u32]) -> Complete {
    let mut narrow = Complete::default();
    for &row in rows {
        let row = &body.rows[row as usize];
        let result = body::slice(&body.bytes, row.result).unwrap_or_default();
        narrow.rows.push(CompleteRow {
            id: TaskId::from(&row.id),
            token: row.token.to_native(),
            locator: row.locator.to_native(),
            attempt: row.attempt.to_native(),
            result: body::put(&mut narrow.bytes, result),
        });
    }
    narrow
}

/// Carries logged completions out. A row counts if the task is unfinished and still in the attempt it speaks of.
pub(crate) fn apply(partition: &mut Partition, body: &ArchivedComplete, cx: &mut Cx<'_>) -> BatchReply {
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
        crate::snapshot::touch(partition, slot, cx.arena);
        partition.settle_attempts(slot, row.token.to_native(), cx);
        partition.learn_run(slot, false, cx);
        partition.detach(slot, cx);
        let result = body::slice(&body.bytes, row.result).unwrap_or_default();
        let result = super::submit::store(cx.arena, result);
        partition.finish(slot, State::Succeeded, result, cx);
        reply.accepted += 1;
    }
    reply
}

//! Rows of `taskmaster.final_task` and `taskmaster.stretch` in the format of `COPY ... (FORMAT binary)`: big-endian, each field after its
//! length, -1 for NULL.

use bytes::{BufMut, BytesMut};

use super::batch::{Batch, FinalTask, Place};
use super::{particulars, saved};

/// What a binary copy begins with: signature, no flags, no extension.
const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// Columns in the order of [`put_row`].
pub(super) const COLUMNS: &str = "cluster, partition, number, id, workflow, contract, state, attempts, failures, late, started_at, \
                                  finished_at, deadline_at, name, error_code, error, log_tail, payload, result, versions, chunks, \
                                  particulars";
const FIELDS: i16 = 22;
/// Columns in the order of [`put_stretch`].
pub(super) const STRETCH_COLUMNS: &str = "cluster, partition, behind, first_at, last_at, tasks";
const STRETCH_FIELDS: i16 = 6;
/// What a stretch has of a task, in bytes: number and id.
pub(super) const STRETCH_TASK_BYTES: usize = size_of::<u64>() + size_of::<u128>();
/// Microseconds from 1970 to 2000, where PostgreSQL counts from.
const EPOCH_US: i64 = 946_684_800_000_000;

/// Begins a copy.
pub(super) fn begin() -> BytesMut {
    BytesMut::from(HEADER)
}

/// Ends it.
pub(super) fn end(out: &mut BytesMut) {
    out.put_i16(-1);
}

/// Appends a task's row.
pub(super) fn put_row(out: &mut BytesMut, cluster: i32, batch: &Batch, task: &FinalTask, contract: i32) {
    let bytes = |place: Place| batch.slice(place);
    out.put_i16(FIELDS);
    put(out, &cluster.to_be_bytes());
    put(out, &i32::from(batch.partition).to_be_bytes());
    put(out, &task.number.to_be_bytes());
    put(out, &task.id.to_be_bytes());
    put_if(out, task.workflow != 0, &task.workflow.to_be_bytes());
    put(out, &contract.to_be_bytes());
    put(out, &i16::from(task.state).to_be_bytes());
    put(out, &task.attempts.to_be_bytes());
    put(out, &i32::from(task.failures).to_be_bytes());
    put(out, &[u8::from(task.late)]);
    put_if(out, task.started_us != 0, &time(task.started_us));
    put(out, &time(task.finished_us));
    put_if(out, task.deadline_us != 0, &time(task.deadline_us));
    for text in [task.name, task.error_code, task.error] {
        put_text(out, bytes(text));
    }
    let log_tail = bytes(task.log_tail);
    put_if(out, !log_tail.is_empty(), log_tail);
    let saved = task.saved.as_deref();
    let input = saved.filter(|_| task.succeeded).map(|saved| saved.input);
    put_if(out, !task.succeeded || input.is_some(), bytes(input.unwrap_or(task.blob)));
    put_if(out, task.succeeded, bytes(task.blob));
    match saved {
        Some(saved) => {
            put(out, &saved::field(&saved.history));
            put(out, &saved::digests(&saved.chunks));
        }
        None => [0; 2].iter().for_each(|_| put_if(out, false, &[])),
    }
    match task.particulars.as_deref() {
        Some(found) => put(out, &particulars::field(found, batch)),
        None => put_if(out, false, &[]),
    }
}

/// Appends the order of a batch's tasks, of which there is one at least.
pub(super) fn put_stretch(out: &mut BytesMut, cluster: i32, batch: &Batch) {
    let times = batch.tasks.iter().map(|task| task.finished_us);
    let (first_us, last_us) = times.fold((u64::MAX, 0), |(first, last), us| (us.min(first), us.max(last)));
    out.put_i16(STRETCH_FIELDS);
    put(out, &cluster.to_be_bytes());
    put(out, &i32::from(batch.partition).to_be_bytes());
    put(out, &batch.from.to_be_bytes());
    put(out, &time(first_us));
    put(out, &time(last_us));
    out.put_u32(u32::try_from(batch.tasks.len() * STRETCH_TASK_BYTES).expect("batches are bounded"));
    for task in &batch.tasks {
        out.put_u64(task.number);
        out.put_u128(task.id);
    }
}

fn time(time_us: u64) -> [u8; 8] {
    i64::try_from(time_us).unwrap_or(i64::MAX).saturating_sub(EPOCH_US).to_be_bytes()
}

fn put(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u32(u32::try_from(bytes.len()).expect("fields are bounded by the frame limit"));
    out.extend_from_slice(bytes);
}

fn put_if(out: &mut BytesMut, is_there: bool, bytes: &[u8]) {
    if is_there {
        put(out, bytes);
    } else {
        out.put_i32(-1);
    }
}

/// Empty text is NULL. PostgreSQL has no text with zero bytes or wrong UTF-8: each such place becomes U+FFFD.
fn put_text(out: &mut BytesMut, text: &[u8]) {
    match core::str::from_utf8(text) {
        Ok(text) if !text.contains('\0') => put_if(out, !text.is_empty(), text.as_bytes()),
        _ => put(out, String::from_utf8_lossy(text).replace('\0', "\u{FFFD}").as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_that_the_database_has_not_are_mended_and_empty_ones_are_null() {
        for (text, written) in [
            (&b""[..], &b"\xff\xff\xff\xff"[..]),
            (b"ab", b"\0\0\0\x02ab"),
            (b"a\0b", "\0\0\0\x05a\u{FFFD}b".as_bytes()),
            (b"a\xff", "\0\0\0\x04a\u{FFFD}".as_bytes()),
        ] {
            let mut out = BytesMut::new();
            put_text(&mut out, text);
            assert_eq!(&out[..], written, "{text:?}");
        }
    }

    #[test]
    fn times_count_from_the_year_2000() {
        assert_eq!(time(946_684_800_000_001), 1i64.to_be_bytes());
        assert_eq!(time(0), (-EPOCH_US).to_be_bytes());
    }

    #[test]
    fn a_row_has_as_many_fields_as_there_are_columns() {
        assert_eq!(COLUMNS.split(',').count(), usize::try_from(FIELDS).unwrap());
        assert_eq!(STRETCH_COLUMNS.split(',').count(), usize::try_from(STRETCH_FIELDS).unwrap());
    }
}

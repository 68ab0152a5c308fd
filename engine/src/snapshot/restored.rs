//! Final tasks that come back from the store outside: logged as a chunk of a snapshot, and inserted among what is there.
//!
//! They keep id, state, payload or result, failure, contract, deadline and keys, and are kept as long from here on as if they had just
//! ended. They are in no workflow. Versions of their state come behind them, in commands of their own, which are bounded however much a
//! task saved.

pub(crate) mod states;

use taskmaster_protocol::body::{self, Malformed, Span};
use taskmaster_protocol::{FrameBuffer, TaskId};

use super::{ArchivedChunk, Chunk, ContractRecord, MARK_EXTRA, MARK_HOLDS_UNIQUE, MARK_LATE, Restore, TaskRecord};
use crate::checkpoint::{Batch, FinalTask, Particulars};
use crate::command::submit::scoped_key;
use crate::contract::SpecView;
use crate::extra::pack_error;
use crate::memo;
use crate::partition::{Cx, Partition};
use crate::state::State;
use crate::task::NONE;

/// Writes the tasks of a batch as the body of their command.
pub(crate) fn write(batch: &Batch, out: &mut FrameBuffer) {
    let mut chunk = Chunk { partition: u32::from(batch.partition), ..Chunk::default() };
    for (index, contract) in (0u32..).zip(&batch.contracts) {
        let canonical = body::put(&mut chunk.bytes, &contract.canonical);
        chunk.contracts.push(ContractRecord { index, canonical });
    }
    for task in &batch.tasks {
        let mut record = record(task, batch, &mut chunk.bytes);
        if let Some(particulars) = &task.particulars {
            add(particulars, batch, task.contract, &mut record, &mut chunk.bytes);
        }
        chunk.tasks.push(record);
    }
    rkyv::api::high::to_bytes_in::<_, rkyv::rancor::Error>(&chunk, out).expect("archiving plain records cannot fail");
}

fn record(task: &FinalTask, batch: &Batch, area: &mut Vec<u8>) -> TaskRecord {
    let slice = |span: Span| slice(batch, span);
    let [code, message, log_tail] = task.error.map(slice);
    let has_error = [code, message, log_tail].iter().any(|part| !part.is_empty());
    let input = task.saved.as_ref().map_or(Span::default(), |state| state.input);
    let has_extra =
        has_error || task.name.len > 0 || input.len > 0 || task.deadline_us > 0 || task.particulars.is_some();
    TaskRecord {
        id: task.id,
        at_us: task.finished_us,
        deadline_us: task.deadline_us,
        blob: body::put(area, slice(task.blob)),
        error: if has_error { body::put(area, &pack_error(code, message, log_tail)) } else { Span::default() },
        name: body::put(area, slice(task.name)),
        input: body::put(area, slice(input)),
        contract: task.contract,
        failures: task.failures,
        state: u32::from(task.state.number()),
        marks: if task.is_late { MARK_LATE } else { 0 } | if has_extra { MARK_EXTRA } else { 0 },
        ..TaskRecord::default()
    }
}

fn slice(batch: &Batch, span: Span) -> &[u8] {
    let slice = batch.bytes.get(span.at as usize..).and_then(|rest| rest.get(..span.len as usize));
    slice.unwrap_or_default()
}

/// Adds to a record what few tasks have.
fn add(particulars: &Particulars, batch: &Batch, contract: u32, record: &mut TaskRecord, area: &mut Vec<u8>) {
    let contract = batch.contracts.get(contract as usize);
    let Some(spec) = contract.and_then(|contract| SpecView::read_canonical(&contract.canonical)) else { return };
    let (key, unique) = (slice(batch, particulars.key), slice(batch, particulars.unique));
    record.unique = match &particulars.memo_key {
        Some(key) => body::put(area, &memo::unique_key(key)),
        None if unique.is_empty() => Span::default(),
        None => body::put(area, &scoped_key(&spec, &[key, unique])),
    };
    if !key.is_empty() {
        record.key = body::put(area, &scoped_key(&spec, &[key]));
        record.key_limit = particulars.key_limit;
    }
    if particulars.holds_key && record.unique.len > 0 {
        record.marks |= MARK_HOLDS_UNIQUE;
    }
    record.unique_until_us = particulars.unique_until_us;
    (record.memo_of, record.memo_us) = (particulars.memo_of, particulars.memo_us);
    record.forgiven = particulars.forgiven;
}

/// Carries the command out: tasks that are known stay as they are, and keys that may not be taken over stay with their holders.
pub(crate) fn insert(bytes: &[u8], partition: &mut Partition, cx: &mut Cx<'_>) -> Result<(), Malformed> {
    let chunk = body::access::<ArchivedChunk>(bytes)?;
    let mut restore = Restore::default();
    for record in chunk.contracts.iter() {
        let spec = SpecView::read_canonical(body::slice(&chunk.bytes, record.canonical)?)
            .ok_or_else(|| Malformed("a contract does not read as one".to_owned()))?;
        restore.contracts.insert(record.index.to_native(), partition.contract(&spec, cx.dispatch));
    }
    for record in chunk.tasks.iter() {
        let state = u8::try_from(record.state.to_native()).ok().and_then(State::from_number);
        if !state.is_some_and(State::is_final) {
            return Err(Malformed("a restored task is not final".to_owned()));
        }
        if partition.find(TaskId::from(&record.id), NONE).is_none() {
            restore.task(chunk, record, partition, cx)?;
        }
    }
    for slot in core::mem::take(&mut restore.slots) {
        let since_ms = cx.time_us.saturating_sub(partition.tasks[slot].at_us) / 1_000;
        let retention_ms = partition.kept_ms(slot).saturating_add(u32::try_from(since_ms).unwrap_or(u32::MAX));
        partition.last_retained += 1;
        partition.retain_as(slot, partition.last_retained, retention_ms, cx.arena);
    }
    for (_, contract) in core::mem::take(&mut restore.contracts) {
        partition.drop_unused_contract(contract);
    }
    Ok(())
}

//! Final tasks that come back from the store outside: logged as a chunk of a snapshot, and inserted among what is there.
//!
//! They keep id, state, payload or result, failure and contract, and are kept as long from here on as if they had just ended. What the
//! store does not hold is not made up: they are in no workflow, hold no key, and know no deadline. Versions of their state come behind
//! them, in commands of their own, which are bounded however much a task saved.

pub(crate) mod states;

use taskmaster_protocol::body::{self, Malformed, Span};
use taskmaster_protocol::{FrameBuffer, TaskId};

use super::{ArchivedChunk, Chunk, ContractRecord, MARK_EXTRA, MARK_LATE, Restore, TaskRecord};
use crate::checkpoint::{Batch, FinalTask};
use crate::contract::SpecView;
use crate::extra::pack_error;
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
        let record = record(task, batch, &mut chunk.bytes);
        chunk.tasks.push(record);
    }
    rkyv::api::high::to_bytes_in::<_, rkyv::rancor::Error>(&chunk, out).expect("archiving plain records cannot fail");
}

fn record(task: &FinalTask, batch: &Batch, area: &mut Vec<u8>) -> TaskRecord {
    let slice = |span: Span| batch.bytes.get(span.at as usize..).and_then(|rest| rest.get(..span.len as usize));
    let slice = |span: Span| slice(span).unwrap_or_default();
    let [code, message, log_tail] = task.error.map(slice);
    let has_error = [code, message, log_tail].iter().any(|part| !part.is_empty());
    let input = task.saved.as_ref().map_or(Span::default(), |state| state.input);
    let has_extra = has_error || task.name.len > 0 || input.len > 0;
    TaskRecord {
        id: task.id,
        at_us: task.finished_us,
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

/// Carries the command out: tasks that are known stay as they are.
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
        let task = &partition.tasks[slot];
        let contract = &partition.contracts[task.contract];
        let queue = &partition.queues[contract.queue as usize];
        let own_ms = if contract.retention_ms == 0 { queue.settings.retention_ms } else { contract.retention_ms };
        let since_ms = cx.time_us.saturating_sub(task.at_us) / 1_000;
        let retention_ms = own_ms.saturating_add(u32::try_from(since_ms).unwrap_or(u32::MAX));
        partition.last_retained += 1;
        partition.retain_as(slot, partition.last_retained, retention_ms, cx.arena);
    }
    for (_, contract) in core::mem::take(&mut restore.contracts) {
        partition.drop_unused_contract(contract);
    }
    Ok(())
}

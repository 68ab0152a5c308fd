//! Reads assignments: rows become leases that share the frame they came in.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU8};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use taskmaster_protocol::body::{ArchivedAssign, ArchivedAssignRow, slice, text};
use taskmaster_protocol::{FrameBuffer, TaskId};
use tokio::sync::Notify;

use super::context::{Contract, Lease};
use super::room::{Need, pairs};
use crate::error::Error;

/// The contracts of a frame.
pub(super) fn contracts(assign: &ArchivedAssign) -> Result<Vec<Arc<Contract>>, Error> {
    let contract = |spec: &taskmaster_protocol::body::ArchivedAssignSpec| {
        Ok(Arc::new(Contract {
            kind: text(&assign.bytes, spec.kind)?.to_owned(),
            queue: text(&assign.bytes, spec.queue)?.to_owned(),
            lease: Duration::from_millis(spec.lease_ms.to_native().into()),
            attempts_max: spec.attempts_max.to_native(),
            need: Need {
                cpu_milli: spec.cpu_milli.to_native(),
                gpu_milli: spec.gpu_milli.to_native(),
                memory_bytes: spec.memory_bytes.to_native(),
                custom: pairs(text(&assign.bytes, spec.custom)?),
            },
        }))
    };
    assign.specs.iter().map(contract).collect()
}

/// One row; its slot is chosen by who holds it.
pub(super) fn lease(
    row: &ArchivedAssignRow,
    assign: &ArchivedAssign,
    contracts: &[Arc<Contract>],
    frame: &Arc<FrameBuffer>,
) -> Result<Lease, Error> {
    let contract = contracts
        .get(row.spec.to_native() as usize)
        .ok_or_else(|| Error::Protocol(format!("an assignment names the contract {}", row.spec)))?;
    Ok(Lease {
        id: TaskId::from(&row.id),
        token: row.token.to_native(),
        locator: row.locator.to_native(),
        attempt: row.attempt.to_native(),
        ready_us: row.ready_us.to_native(),
        contract: Arc::clone(contract),
        frame: Arc::clone(frame),
        payload: place(slice(&assign.bytes, row.payload)?, frame),
        version: row.version.to_native(),
        saved: tokio::sync::Mutex::new(None),
        slot: 0,
        devices: OnceLock::new(),
        phase: AtomicU8::default(),
        is_cancelled: AtomicBool::new(false),
        cancellation: Notify::new(),
        progress: Mutex::new(None),
    })
}

/// Where a part of a frame lies in it.
fn place(part: &[u8], frame: &FrameBuffer) -> Range<usize> {
    if part.is_empty() {
        return 0..0;
    }
    let at = part.as_ptr().addr() - frame.as_ptr().addr();
    at..at + part.len()
}

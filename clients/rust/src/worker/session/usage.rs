//! Tells the shard what measured attempts used, and what runs beside whatever it assigns next.

use std::sync::{Arc, OnceLock};

use taskmaster_protocol::body::{Usage, UsageBeside, UsageKind, UsageRow, feature, put};
use taskmaster_protocol::{Header, Operation, limits};

use super::{Line, Session};
use crate::error::Error;
use crate::worker::context::Contract;
use crate::worker::measure::{Measured, is_same};

/// Measured attempts of one frame, beside each of which there may be many kinds.
const ROWS_MAX: usize = 64;

/// Processors in thousandths and memory in bytes of this machine; 0 where it is not known.
fn machine() -> (u32, u64) {
    static MACHINE: OnceLock<(u32, u64)> = OnceLock::new();
    *MACHINE.get_or_init(|| {
        let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
        let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let total =
            text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse().ok());
        (u32::try_from(cores * 1_000).unwrap_or(0), total.map_or(0, |kilobytes: u64| kilobytes * 1_024))
    })
}

/// With no more than the machine has: its share of a processor may be rounded down, and clocks differ a little.
fn bounded(row: UsageRow, cpu_milli: u32) -> UsageRow {
    let most_us = if cpu_milli == 0 { u64::MAX } else { row.run_us.saturating_mul(cpu_milli.into()) / 1_000 };
    UsageRow {
        cpu_us: row.cpu_us.min(most_us),
        cpu_stalled_us: row.cpu_stalled_us.min(row.run_us),
        memory_stalled_us: row.memory_stalled_us.min(row.run_us),
        io_stalled_us: row.io_stalled_us.min(row.run_us),
        ..row
    }
}

impl Session {
    /// Sends what was measured, if something was, or if something else runs now. Only a server that takes it is told.
    pub(super) fn flush_usage(&mut self, line: &Line) -> Result<(), Error> {
        if self.measured.is_empty() && !self.tells_running {
            return Ok(());
        }
        if line.connection.info().features & feature::USAGE == 0 {
            self.measured.clear();
            self.tells_running = false;
        }
        while !self.measured.is_empty() || self.tells_running {
            self.tells_running = false;
            let rows = self.measured.len().min(ROWS_MAX);
            let measured = self.measured.drain(..rows).collect();
            self.send_usage(line, measured)?;
        }
        Ok(())
    }

    fn send_usage(&mut self, line: &Line, measured: Vec<Measured>) -> Result<(), Error> {
        let (cpu_milli, memory_bytes) = machine();
        let mut body = Usage { cpu_milli, memory_bytes, seen: self.seen, ..Usage::default() };
        let mut known: Vec<Arc<Contract>> = Vec::new();
        let mut kind = |contract: &Arc<Contract>, body: &mut Usage| {
            known.iter().position(|of| is_same(of, contract)).unwrap_or_else(|| {
                let queue = put(&mut body.bytes, contract.queue.as_bytes());
                let kind = put(&mut body.bytes, contract.kind.as_bytes());
                body.kinds.push(UsageKind { queue, kind, ..UsageKind::default() });
                known.push(Arc::clone(contract));
                known.len() - 1
            })
        };
        for (contract, count) in self.running.borrow_and_update().iter() {
            let at = kind(contract, &mut body);
            body.kinds[at].running = *count;
        }
        for (row, measured) in (0u32..).zip(measured) {
            body.rows.push(bounded(measured.row, cpu_milli));
            for (contract, permille) in &measured.beside {
                let kind = u32::try_from(kind(contract, &mut body)).expect("as many as run");
                body.beside.push(UsageBeside { row, kind, permille: (*permille).min(limits::CREDIT_MAX) });
            }
        }
        line.connection.send(Header::request(Operation::Usage, 0, None), &body)
    }
}

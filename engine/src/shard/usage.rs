//! Usage: what workers say of attempts that ended and of what they run. Volatile and best effort, but for what cannot be true.

use taskmaster_protocol::body::{self, ArchivedUsage, ArchivedUsageRow, usage_known};
use taskmaster_protocol::{Code, TaskId, limits};
use taskmaster_scheduler::place::contention::Profile;
use taskmaster_scheduler::place::live::Ended;

use super::Shard;
use crate::command;
use crate::effects::ConnId;
use crate::hash::{mix_bytes, mix64};
use crate::neighbours::Kind;
use crate::refused::Refused;
use crate::state::State;

/// What no attempt and no machine has: run time in microseconds (ten years), processors in thousandths, bytes.
const RUN_US_MAX: u64 = 315_360_000_000_000;
const CPU_MILLI_MAX: u32 = 65_536_000;
const BYTES_MAX: u64 = 1 << 50;
/// Processor time and stalls are measured a little longer than the run, in microseconds.
const SLACK_US: u64 = 1_000_000;

impl Shard {
    /// Takes what a worker measured.
    pub(super) fn usage(&mut self, conn: ConnId, bytes: &[u8]) -> Result<(), Refused> {
        let body = body::access::<ArchivedUsage>(bytes)?;
        check(body)?;
        let Some(worker) = self.dispatch.worker_of(conn) else { return Ok(()) };
        let mut kinds = Vec::with_capacity(body.kinds.len());
        let mut running = Vec::new();
        for kind in body.kinds.iter() {
            let (queue, name) = (body::text(&body.bytes, kind.queue)?, body::text(&body.bytes, kind.kind)?);
            let known = self.dispatch.kind_named(worker, queue, name);
            running.extend(known.map(|known| (known, kind.running.to_native())).filter(|(_, count)| *count > 0));
            kinds.push(known);
        }
        self.dispatch.told(worker, body.seen.to_native(), running);
        let mut beside = vec![Vec::new(); body.rows.len()];
        for of in body.beside.iter() {
            beside[of.row.to_native() as usize].push((kinds[of.kind.to_native() as usize], of.permille.to_native()));
        }
        for (row, beside) in body.rows.iter().zip(beside) {
            self.attempt_used(body, row, &beside);
        }
        Ok(())
    }

    /// An attempt under a lease in force ended: it teaches.
    fn attempt_used(&mut self, body: &ArchivedUsage, row: &ArchivedUsageRow, beside: &[(Option<Kind>, u32)]) {
        let id = TaskId::from(&row.id);
        let place = self.partitions.get(usize::from(id.partition().0)).and_then(Option::as_deref);
        let Some(partition) = place.filter(|partition| partition.is_leading()) else { return };
        let Some(slot) = partition.find(id, row.locator.to_native()) else { return };
        let (task, token) = (&partition.tasks[slot], row.token.to_native());
        let is_second = || partition.second(slot).is_some_and(|second| second.token == token);
        if task.state != State::Leased || (task.token != token && !is_second()) {
            return;
        }
        let contract = &partition.contracts[task.contract];
        let of = &partition.queues[contract.queue as usize];
        let queue = of.dispatch;
        // It is saved by names: numbers are given anew after a restart.
        let names = [of.namespace.as_bytes(), of.name.as_bytes(), contract.kind.as_bytes()];
        let key = names.iter().fold(0, |key, name| mix64(mix_bytes(key, name) ^ 0x1FF));
        let known = beside.iter().filter_map(|&(kind, permille)| Some((kind?, part(permille.into(), 1_000))));
        let mut ended = ended(body, row);
        // What ran beside it and is not known yet may be what it suffered from.
        if beside.iter().any(|(kind, _)| kind.is_none()) {
            (ended.is_whole, ended.stalled) = (false, None);
        }
        let (known, class) = (known.collect::<Vec<_>>(), partition.class(slot));
        let is_known = self.dispatch.neighbours.learn(class, (queue, key), &contract.kind, &ended, &known);
        self.dispatch.queues[queue as usize].is_measured |= is_known;
    }
}

/// Refuses what cannot be true.
fn check(body: &ArchivedUsage) -> Result<(), Refused> {
    command::check_rows(body.kinds.len().max(body.rows.len()).max(body.beside.len()))?;
    let invalid = |message: String| Err(Refused::new(Code::Invalid, message));
    if body.cpu_milli.to_native() > CPU_MILLI_MAX || body.memory_bytes.to_native() > BYTES_MAX {
        let (cpu_milli, bytes) = (body.cpu_milli.to_native(), body.memory_bytes.to_native());
        return invalid(format!("no machine has {cpu_milli} milli-cpu and {bytes} bytes of memory"));
    }
    if let Some(kind) = body.kinds.iter().find(|kind| kind.running.to_native() > limits::CREDIT_MAX) {
        let (count, most) = (kind.running.to_native(), limits::CREDIT_MAX);
        return invalid(format!("{count} tasks of a kind run on a worker: no more than {most} can"));
    }
    let (rows, kinds) = (body.rows.len(), body.kinds.len());
    for of in body.beside.iter() {
        let (row, kind) = (of.row.to_native() as usize, of.kind.to_native() as usize);
        if row >= rows || kind >= kinds || of.permille.to_native() > limits::CREDIT_MAX {
            return invalid(format!(
                "kind {kind} of {kinds} beside attempt {row} of {rows}, and too many or not there"
            ));
        }
    }
    for (number, row) in (0u32..).zip(body.rows.iter()) {
        if let Some(sentence) = impossible(body, row) {
            let message = format!("attempt of task {}: {sentence}", TaskId::from(&row.id));
            return Err(Refused::new(Code::Invalid, message).at_row(number));
        }
    }
    Ok(())
}

/// What cannot be true of an attempt.
fn impossible(body: &ArchivedUsage, row: &ArchivedUsageRow) -> Option<String> {
    let run_us = row.run_us.to_native();
    let longest_us = run_us.saturating_add(SLACK_US);
    let processors = u64::from(if body.cpu_milli == 0 { CPU_MILLI_MAX } else { body.cpu_milli.to_native() });
    let cpu_us = u128::from(row.cpu_us.to_native());
    let stalls = [row.cpu_stalled_us, row.memory_stalled_us, row.io_stalled_us].map(|us| us.to_native());
    if run_us == 0 || run_us > RUN_US_MAX {
        return Some(format!("it ran for {run_us} us: more than none and at most {RUN_US_MAX} can be"));
    }
    if cpu_us * 1_000 > u128::from(longest_us) * u128::from(processors) {
        return Some(format!("it used {cpu_us} us of {processors} milli-cpu in {run_us} us"));
    }
    if let Some(us) = stalls.into_iter().find(|&us| us > longest_us) {
        return Some(format!("it stalled for {us} us of the {run_us} us that it ran"));
    }
    let bytes = row.memory_peak_bytes.to_native();
    (bytes > BYTES_MAX).then(|| format!("it had {bytes} bytes of memory: no more than {BYTES_MAX} can be"))
}

/// A part of a whole that is not 0.
fn part(amount: u64, whole: u64) -> f32 {
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "a part")]
    let part = (amount as f64 / whole.max(1) as f64) as f32;
    part
}

/// An attempt as what it teaches: parts of the machine, and of its time.
fn ended(body: &ArchivedUsage, row: &ArchivedUsageRow) -> Ended {
    let (run_us, known) = (row.run_us.to_native(), row.known.to_native());
    let has = |bit: u32| known & bit != 0;
    let cores = part(body.cpu_milli.to_native().into(), 1_000).max(1.0);
    let cpu = if has(usage_known::CPU) { part(row.cpu_us.to_native(), run_us) / cores } else { 0.0 };
    let (memory_bytes, peak) = (body.memory_bytes.to_native(), row.memory_peak_bytes.to_native());
    let memory = if has(usage_known::MEMORY) && memory_bytes > 0 { part(peak, memory_bytes) } else { 0.0 };
    #[expect(clippy::cast_precision_loss, reason = "a number of bytes, of which the eighth digit does not matter")]
    let peak_bytes = has(usage_known::MEMORY).then_some(peak as f32);
    let stalls = [row.cpu_stalled_us, row.memory_stalled_us, row.io_stalled_us].map(|us| part(us.to_native(), run_us));
    let stalled = has(usage_known::STALLS).then(|| stalls.iter().sum::<f32>());
    // What waits for memory and devices uses their bandwidth.
    let bandwidth = if has(usage_known::STALLS) { stalls[1] + stalls[2] } else { 0.0 };
    let profile: Profile = [cpu, bandwidth, memory];
    #[expect(clippy::cast_precision_loss, reason = "a run time")]
    let run_ms = run_us as f64 / 1_000.0;
    Ended { run_ms, is_whole: row.is_whole == 1, profile, stalled, peak_bytes }
}

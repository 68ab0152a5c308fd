//! Submit frames of numbered no-op tasks, encoded from one reused body.
//!
//! A task's sequence number is the lower 40 bits of its id; its payload starts with the intended time and the sequence
//! number (u64 little-endian each), followed by a fixed pattern.

use taskmaster_protocol::body::{self, Spec, Submit, TaskRow};
use taskmaster_protocol::frame::{self, FLAG_RESEND, Header};
use taskmaster_protocol::{FrameBuffer, Operation, PartitionId, TaskId};

use crate::options::STAMP_BYTES;
use crate::schedule::Schedule;

/// Bits of the id that hold the sequence number.
const SEQUENCE_BITS: u32 = 40;
/// Lease length of the generated tasks, in milliseconds.
const LEASE_MS: u32 = 30_000;

/// A submit frame on its way: enough to encode it again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Submission {
    /// Sequence number of the first task.
    pub(crate) first: u64,
    /// Tasks.
    pub(crate) count: u32,
    /// Partition of all of them.
    pub(crate) partition: u16,
    /// Intended time of the first task, in nanoseconds since the run's start.
    pub(crate) intended_ns: u64,
    /// Time in the ids, in milliseconds since 1970.
    pub(crate) unix_ms: u64,
    /// An earlier copy may have arrived.
    pub(crate) is_resend: bool,
}

impl Submission {
    /// Calls `record` with intended times and how many tasks share each.
    pub(crate) fn for_each_intended(&self, schedule: Option<Schedule>, mut record: impl FnMut(u64, u64)) {
        match schedule {
            None => record(self.intended_ns, u64::from(self.count)),
            Some(schedule) => {
                for index in self.first..self.first + u64::from(self.count) {
                    record(schedule.intended_ns(index), 1);
                }
            }
        }
    }
}

/// Names what the tasks of one generator thread have in common, and makes frames of them.
pub(crate) struct Encoder {
    body: Submit,
    names_bytes: usize,
    payload_bytes: usize,
    pattern: Vec<u8>,
    /// 24 random bits that tell this run's tasks from others.
    run: u64,
}

impl Encoder {
    pub(crate) fn new(queue: &str, run: u64, payload_bytes: u32, retention_ms: u32) -> Self {
        let mut bytes = Vec::new();
        let spec = Spec {
            queue: body::put(&mut bytes, queue.as_bytes()),
            kind: body::put(&mut bytes, b"noop"),
            lease_ms: LEASE_MS,
            backoff_ms: 100,
            backoff_max_ms: 1_000,
            backoff_factor_centi: 200,
            attempts_max: 10,
            priority: 2,
            retention_ms,
            ..Spec::default()
        };
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        let pattern = (STAMP_BYTES..payload_bytes).map(|at| at.to_le_bytes()[0]).collect();
        Self {
            names_bytes: bytes.len(),
            body: Submit { specs: vec![spec], bytes, ..Submit::default() },
            payload_bytes: payload_bytes as usize,
            pattern,
            run: run & 0xFF_FFFF,
        }
    }

    /// Appends the frame of a submission.
    pub(crate) fn encode(
        &mut self,
        out: &mut FrameBuffer,
        correlation: u64,
        submission: &Submission,
        schedule: Option<Schedule>,
    ) {
        self.resize(submission.count as usize);
        let partition = PartitionId(submission.partition);
        let payloads = self.body.bytes[self.names_bytes..].chunks_exact_mut(self.payload_bytes);
        for ((row, payload), sequence) in self.body.tasks.iter_mut().zip(payloads).zip(submission.first..) {
            let intended_ns = schedule.map_or(submission.intended_ns, |schedule| schedule.intended_ns(sequence));
            row.id = task_id(submission.unix_ms, partition, self.run, sequence);
            payload[..8].copy_from_slice(&intended_ns.to_le_bytes());
            payload[8..16].copy_from_slice(&sequence.to_le_bytes());
        }
        let mut header = Header::request(Operation::Submit, correlation, Some(partition));
        header.flags |= if submission.is_resend { FLAG_RESEND } else { 0 };
        frame::encode(out, header, &self.body);
    }

    /// The sequence number of a task of this run.
    pub(crate) fn sequence(&self, id_lo: u64) -> Option<u64> {
        sequence(id_lo, self.run)
    }

    /// Whether a payload is the one that was submitted, as far as the intended time (which is read from it) allows.
    pub(crate) fn is_intact(&self, payload: &[u8], sequence: u64) -> bool {
        payload.get(8..16) == Some(&sequence.to_le_bytes()) && payload[16..] == self.pattern
    }

    fn resize(&mut self, count: usize) {
        let rows = self.body.tasks.len();
        if rows == count {
            return;
        }
        self.body.tasks.truncate(count);
        self.body.bytes.truncate(self.names_bytes + count * self.payload_bytes);
        for _ in rows..count {
            let at = u32::try_from(self.body.bytes.len()).expect("validated options bound the frame");
            let len = u32::try_from(self.payload_bytes).expect("validated options bound the payload");
            self.body.bytes.extend_from_slice(&[0; STAMP_BYTES as usize]);
            self.body.bytes.extend_from_slice(&self.pattern);
            self.body.tasks.push(TaskRow { payload: body::Span { at, len }, ..TaskRow::default() });
        }
    }
}

/// The intended time in a payload, in nanoseconds since the run's start.
pub(crate) fn intended_ns(payload: &[u8]) -> Option<u64> {
    payload.first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes))
}

/// The sequence number of a task of the run with these 24 bits.
pub(crate) fn sequence(id_lo: u64, run: u64) -> Option<u64> {
    (id_lo >> SEQUENCE_BITS == run).then_some(id_lo & ((1 << SEQUENCE_BITS) - 1))
}

/// The id of a task; of `run` and `sequence` the lowest 24 and 40 bits.
pub(crate) fn task_id(unix_ms: u64, partition: PartitionId, run: u64, sequence: u64) -> TaskId {
    let random = (run << 16) | (sequence >> 24);
    let low = u32::try_from(sequence & 0xFF_FFFF).expect("24 bits");
    TaskId::new(unix_ms, partition, random, low)
}

#[cfg(test)]
mod tests {
    use super::*;
    use taskmaster_protocol::body::ArchivedSubmit;

    #[test]
    fn frames_of_changing_size_carry_their_sequence_and_payload() {
        let mut encoder = Encoder::new("bench-1", 0xABCDEF, 40, 0);
        let mut first = 0xFF_FFF0;
        for count in [3u32, 64, 1, 20] {
            let mut out = FrameBuffer::new();
            let submission = Submission {
                first,
                count,
                partition: 7,
                intended_ns: 99,
                unix_ms: 1_700_000_000_000,
                is_resend: false,
            };
            encoder.encode(&mut out, 5, &submission, None);
            let (parsed, used) = frame::parse(&out).unwrap().unwrap();
            assert_eq!(used, out.len());
            let submit = body::access::<ArchivedSubmit>(parsed.body).unwrap();
            assert_eq!(submit.tasks.len(), count as usize);
            for (row, sequence) in submit.tasks.iter().zip(first..) {
                let id = TaskId::from(&row.id);
                assert_eq!(encoder.sequence(id.lo), Some(sequence));
                assert_eq!(id.partition(), PartitionId(7));
                let payload = body::slice(&submit.bytes, row.payload).unwrap();
                assert_eq!(payload.len(), 40);
                assert!(encoder.is_intact(payload, sequence));
                assert!(!encoder.is_intact(payload, sequence + 1));
                assert_eq!(intended_ns(payload), Some(99));
            }
            assert_eq!(body::text(&submit.bytes, submit.specs[0].queue).unwrap(), "bench-1");
            first += u64::from(count);
        }
    }

    #[test]
    fn tasks_of_other_runs_are_told_apart() {
        let encoder = Encoder::new("q", 1, 16, 0);
        assert_eq!(encoder.sequence(2 << SEQUENCE_BITS), None);
    }
}

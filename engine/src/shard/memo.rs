//! What the shard asks of a store outside about memoised tasks, and what it gives it.

use taskmaster_protocol::body::{self, ArchivedSubmit};
use taskmaster_protocol::frame::Header;
use taskmaster_protocol::{Operation, PartitionId, limits};

use super::Shard;
use super::admission::TASK_BYTES;
use super::group::Request;
use crate::command::submit::{check_hashed, memoised, memoised_extra};
use crate::effects::ConnId;
use crate::entry::Verb;
use crate::memo::known::{self, Known};
use crate::memo::{Made, Standing, Unknown};
use crate::partition::retention::CLOCK_SKEW_MS;
use crate::refused::Refused;

impl Shard {
    /// The rows of a request whose results a store outside may remember while nobody here does, one of each key: none unless it is a
    /// submission with memoised tasks, for a partition that is led here.
    #[must_use]
    pub fn unknown_results(&self, header: &Header, bytes: &[u8]) -> Vec<Unknown> {
        if header.operation != Operation::Submit.number() {
            return Vec::new();
        }
        let (Ok(body), Ok(partition)) = (body::access::<ArchivedSubmit>(bytes), self.partition(header)) else {
            return Vec::new();
        };
        if body.specs.iter().all(|spec| spec.memo == 0) {
            return Vec::new();
        }
        if check_hashed(body).is_err() {
            return Vec::new();
        }
        let mut unknown: Vec<Unknown> = Vec::new();
        let mut met = std::collections::BTreeSet::new();
        for (row, extra, key) in memoised(body) {
            let age_max_ms = extra.unique_window_ms.to_native();
            let standing = partition.memo_standing(&key, age_max_ms, &self.arena, self.last_time_us);
            if standing == Standing::Free && met.insert(key) {
                unknown.push(Unknown { row, key });
            }
        }
        unknown
    }

    /// Results that memoised tasks came to by running here since the last call.
    pub fn take_made(&mut self) -> Vec<Made> {
        self.findings.take()
    }

    /// A submission of which a store outside remembered some results, in order of rows. Those that are too old for their rows, or of
    /// a time to come, or that have no room beside the submission in a command, are left out: their rows run.
    pub(super) fn submit_known(
        &mut self,
        conn: ConnId,
        header: Header,
        bytes: &[u8],
        known: &[Known],
    ) -> Result<(), Refused> {
        self.check_new_tasks()?;
        let body = body::access::<ArchivedSubmit>(bytes)?;
        let partition = self.partition(&header)?;
        let size = self.admit_submit(partition, body)?;
        if !header.is_resend() {
            self.check_deadlines(partition, body)?;
        }
        let mut room = limits::BODY_BYTES_MAX.saturating_sub(known::bytes_before_results(bytes.len()));
        let fits = |known: &&Known| {
            let left = room.checked_sub(known.bytes()).filter(|_| self.will_do(body, known));
            room = left.unwrap_or(room);
            left.is_some()
        };
        let known: Vec<Known> = known.iter().filter(fits).cloned().collect();
        let result_bytes: usize = known.iter().map(|known| known.result.len()).sum();
        let blob_bytes = size.blob_bytes + result_bytes as u64;
        self.check_room(blob_bytes + size.tasks * TASK_BYTES)?;
        let request = Request { origin: Some((conn, header)), blob_bytes, tasks: size.tasks, ..Request::default() };
        self.push(Verb::Known, PartitionId(header.partition), request, |out| known::write(bytes, &known, out));
        Ok(())
    }

    /// Whether the row is memoised, and a result of that time is neither too old for it nor of a time to come.
    fn will_do(&self, body: &ArchivedSubmit, known: &Known) -> bool {
        let Some(extra) = body.tasks.get(known.row as usize).and_then(|task| memoised_extra(body, task)) else {
            return false;
        };
        let age_max_us = u64::from(extra.unique_window_ms.to_native()) * 1_000;
        let is_young = age_max_us == 0 || self.last_time_us.saturating_sub(known.made_us) <= age_max_us;
        is_young && known.made_us <= self.last_time_us + CLOCK_SKEW_MS * 1_000
    }
}

//! A group on this shard: its replica, and what is on its way through it.
//!
//! Commands admitted in one turn gather in `batch` and become one entry. The requests behind an entry wait in `proposed`
//! until it is applied; an entry that was proposed here and is overtaken by another leader's answers them `not_leader`: what
//! came of them is not known here, and the client sends them again.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use taskmaster_protocol::FrameBuffer;
use taskmaster_protocol::body::{BatchReply, ExceptionRow};
use taskmaster_protocol::frame::Header;

use super::reads::Reads;
use super::rest::Offer;
use crate::effects::ConnId;
use crate::entry::{self, Verb};
use crate::replica::Replica;
use crate::replica::log::Position;

/// Most bytes of commands that are not applied yet, over all groups of a shard; beyond it requests are refused.
pub(super) const BACKLOG_BYTES_MAX: u64 = 256 << 20;
/// Commands of a turn beyond this many bytes go into another entry: an entry must fit a block of the log, and a single command
/// may be as long as a frame.
const ENTRY_BYTES_MAX: usize = 512 << 10;

/// A request whose command is on its way.
#[derive(Default)]
pub(super) struct Request {
    /// `None` for the engine's own commands.
    pub(super) origin: Option<(ConnId, Header)>,
    /// Original row numbers, when the command holds only some rows of the request.
    pub(super) rows: Option<Vec<u32>>,
    /// Exceptions found at admission.
    pub(super) refused: BatchReply,
    /// What it will add to the arena, in bytes, and to the tasks.
    pub(super) blob_bytes: u64,
    pub(super) tasks: u64,
}

impl Request {
    /// Joins the exceptions of admission and of application, in the request's row order.
    pub(super) fn merge_exceptions(&self, exceptions: &mut Vec<ExceptionRow>) {
        if let Some(rows) = &self.rows {
            for exception in &mut *exceptions {
                exception.index = rows[exception.index as usize];
            }
        }
        if !self.refused.exceptions.is_empty() {
            exceptions.extend_from_slice(&self.refused.exceptions);
            exceptions.sort_unstable_by_key(|exception| exception.index);
        }
    }

    /// Puts the versions of the rows that were applied in the request's row order.
    pub(super) fn spread_versions(&self, versions: &mut Vec<u32>) {
        let Some(rows) = &self.rows else { return };
        let mut all = vec![0; rows.len() + self.refused.exceptions.len()];
        for (&row, version) in rows.iter().zip(versions.iter()) {
            all[row as usize] = *version;
        }
        *versions = all;
    }
}

/// What commands on their way hold, over all groups of a shard.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Backlog {
    pub(super) bytes: u64,
    pub(super) blob_bytes: u64,
    pub(super) tasks: u64,
}

impl Backlog {
    pub(super) fn remove(&mut self, requests: &[Request], bytes: u64) {
        self.bytes -= bytes;
        for request in requests {
            self.blob_bytes -= request.blob_bytes;
            self.tasks -= request.tasks;
        }
    }
}

/// An entry that was proposed here.
struct Proposed {
    at: Position,
    requests: Vec<Request>,
    bytes: u64,
}

/// One group.
pub(super) struct Group {
    pub(super) number: u16,
    pub(super) replica: Replica,
    batch: FrameBuffer,
    /// Where each command of the batch ends.
    ends: Vec<usize>,
    requests: Vec<Request>,
    proposed: VecDeque<Proposed>,
    pub(super) reads: Reads,
    /// The term in which this replica serves; 0 while it does not.
    pub(super) serving: u64,
    /// There is something to do for it.
    pub(super) dirty: bool,
    /// When to stand for election over a leader that is gone, and which.
    pub(super) campaign: Option<(u64, u64)>,
    /// The leader that was given up last, so that one silence has one election.
    pub(super) given_up: u64,
    /// When its leader was heard about it last, or when it was made.
    pub(super) led_us: u64,
    /// It rests (`rest.rs`).
    pub(super) is_resting: bool,
    /// Ticks for which it stood still, and its last index then.
    pub(super) still_ticks: u64,
    pub(super) stood_at: u64,
    /// Its leader rests and lets this replica rest.
    pub(super) offer: Option<Offer>,
    /// Applied when the load was measured last.
    loaded_index: u64,
    /// The beat in which a node's answer to a heartbeat was taken last, by node.
    heartbeats: BTreeMap<u64, u64>,
}

impl Group {
    pub(super) fn new(number: u16, replica: Replica, now_us: u64) -> Self {
        Self {
            number,
            replica,
            batch: FrameBuffer::new(),
            ends: Vec::new(),
            requests: Vec::new(),
            proposed: VecDeque::new(),
            reads: Reads::default(),
            serving: 0,
            dirty: true,
            campaign: None,
            given_up: 0,
            led_us: now_us,
            is_resting: false,
            still_ticks: 0,
            stood_at: 0,
            offer: None,
            loaded_index: 0,
            heartbeats: BTreeMap::new(),
        }
    }

    /// Adds a command whose body is written by `body` to the turn's batch; returns its bytes.
    pub(super) fn push(
        &mut self,
        verb: Verb,
        time_us: u64,
        request: Request,
        body: impl FnOnce(&mut FrameBuffer),
    ) -> u64 {
        let before = self.batch.len();
        let resend = request.origin.as_ref().is_some_and(|(_, header)| header.is_resend());
        entry::append(&mut self.batch, verb, resend, time_us, body);
        self.ends.push(self.batch.len());
        self.requests.push(request);
        (self.batch.len() - before) as u64
    }

    /// Proposes what was admitted in this turn, as one entry unless it is long. While leadership is being handed over it waits.
    pub(super) fn propose(&mut self) {
        if self.batch.is_empty() || self.replica.is_transferring() {
            return;
        }
        let (batch, ends) = (core::mem::take(&mut self.batch), core::mem::take(&mut self.ends));
        let mut requests = core::mem::take(&mut self.requests);
        if batch.len() <= ENTRY_BYTES_MAX || ends.len() == 1 {
            self.propose_entry(batch, requests);
            return;
        }
        let (mut from, mut first) = (0, 0);
        while first < ends.len() {
            let fits = ends[first..].iter().take_while(|&&end| end - from <= ENTRY_BYTES_MAX).count().max(1);
            let until = ends[first + fits - 1];
            let mut part = FrameBuffer::with_capacity(until - from);
            part.extend_from_slice(&batch[from..until]);
            self.propose_entry(part, requests.drain(..fits).collect());
            (from, first) = (until, first + fits);
        }
    }

    fn propose_entry(&mut self, batch: FrameBuffer, requests: Vec<Request>) {
        let bytes = batch.len() as u64;
        let Some(at) = self.replica.propose(Bytes::from_owner(batch)) else {
            unreachable!("a serving replica leads, and leaders take proposals")
        };
        self.proposed.push_back(Proposed { at, requests, bytes });
    }

    /// Proposes one entry by itself; `false` when this replica cannot propose now.
    pub(super) fn propose_alone(&mut self, data: Vec<u8>, request: Request) -> bool {
        let bytes = data.len() as u64;
        let Some(at) = self.replica.propose(data.into()) else { return false };
        self.proposed.push_back(Proposed { at, requests: vec![request], bytes });
        true
    }

    /// Whether this is the first answer to a heartbeat that a node sent within this beat.
    ///
    /// To each answer of a replica that lags the library sends entries again, from where it is known to be. A node that was
    /// stopped or cut off answers all heartbeats of that time at once: without this bound the leader would send its lag as many
    /// times over, and stall everybody else meanwhile.
    pub(super) fn is_first_answer(&mut self, node: u64, beat_us: u64) -> bool {
        self.heartbeats.insert(node, beat_us) != Some(beat_us)
    }

    /// Whether it leads and has no other member: then nothing can happen to it between its own steps.
    pub(super) fn leads_alone(&self) -> bool {
        self.replica.is_alone() && self.replica.is_leader()
    }

    /// Entries by which the slowest replica is behind, as far as a leader knows.
    pub(super) fn lag(&self) -> u32 {
        let behind = self.replica.last_index().saturating_sub(self.replica.matched_by_all());
        u32::try_from(behind).unwrap_or(u32::MAX)
    }

    /// Whether nobody waits for an entry or a read of it.
    pub(super) fn has_nothing_waiting(&self) -> bool {
        self.batch.is_empty() && self.proposed.is_empty() && self.reads.is_empty()
    }

    /// Entries per second since the last call, `within_us` ago.
    pub(super) fn load(&mut self, within_us: u64) -> u64 {
        let index = self.replica.applied().index;
        let entries = index - core::mem::replace(&mut self.loaded_index, index).min(index);
        entries * 1_000_000 / within_us
    }

    /// The requests behind an applied entry, if it was proposed here, and its bytes.
    pub(super) fn take_requests(&mut self, at: Position) -> (Vec<Request>, u64) {
        let is_it = self.proposed.front().is_some_and(|first| first.at == at);
        let found = if is_it { self.proposed.pop_front() } else { None };
        found.map_or((Vec::new(), 0), |proposed| (proposed.requests, proposed.bytes))
    }

    /// All requests on their way, and their bytes: this replica no longer leads.
    pub(super) fn give_up_requests(&mut self) -> (Vec<Request>, u64) {
        let mut bytes = self.batch.len() as u64;
        self.batch = FrameBuffer::new();
        self.ends.clear();
        let mut requests = Vec::new();
        for proposed in self.proposed.drain(..) {
            requests.extend(proposed.requests);
            bytes += proposed.bytes;
        }
        requests.append(&mut self.requests);
        (requests, bytes)
    }
}

//! One replica of a group: the Raft library as a pure state machine, behind the one seam that knows it.
//!
//! Invariants:
//! - What a message promises is durable before it leaves: messages that wait for the log are kept with the sequence of the
//!   record they wait for, and go in order.
//! - The log in memory serves an entry from the moment it is handed to the shard's log.
//! - Chance comes from the seed: after every step the election timeout is set anew.
//! - Configurations change by explicit steps only; the joint one is never left by itself.

pub(crate) mod conf;
pub(crate) mod log;
pub(crate) mod message;
pub mod record;

use std::collections::VecDeque;

use bytes::Bytes;
use raft::eraftpb::{ConfState, Entry, HardState, Message, MessageType};
use raft::{CAMPAIGN_TRANSFER, Config, Progress, ProgressState, RawNode, SnapshotStatus, StateRole};

use log::{Log, Position};
use record::{Record, kind};

/// Time between two ticks of a group, in microseconds.
pub(crate) const TICK_US: u64 = 25_000;
/// A leader's heartbeat, and the shortest and longest silence that makes a follower stand for election, in ticks.
const HEARTBEAT_TICKS: usize = 2;
const ELECTION_TICKS: usize = 12;
const ELECTION_TICKS_MAX: usize = 24;
/// Most bytes of entries in one message, and handed over for application in one step.
const MESSAGE_BYTES_MAX: u64 = 1 << 20;
const APPLY_BYTES_MAX: u64 = 8 << 20;
/// Most messages under way to one follower.
const INFLIGHT_MAX: usize = 128;

/// Records on their way to the shard's log.
#[derive(Default)]
pub(crate) struct Unlogged {
    records: Vec<Record>,
    last_sequence: u64,
}

impl Unlogged {
    /// Adds a record; returns its sequence.
    pub(crate) fn push(&mut self, kind: u32, header: &[u8], data: Bytes) -> u64 {
        self.last_sequence += 1;
        let mut fixed = [0; 32];
        fixed[..header.len()].copy_from_slice(header);
        let record = Record { sequence: self.last_sequence, kind, header: fixed, header_len: header.len(), data };
        self.records.push(record);
        self.last_sequence
    }

    pub(crate) const fn last_sequence(&self) -> u64 {
        self.last_sequence
    }

    /// Recovery found records up to this one.
    pub(crate) fn recovered(&mut self, sequence: u64) {
        self.last_sequence = self.last_sequence.max(sequence);
    }

    pub(crate) fn drain(&mut self, mut log: impl FnMut(u64, u32, &[&[u8]])) {
        for record in self.records.drain(..) {
            let padding = if record.kind == record::kind::ENTRY { record.data.len().wrapping_neg() % 16 } else { 0 };
            log(
                record.sequence,
                record.kind,
                &[&record.header[..record.header_len], &record.data, &[0; 16][..padding]],
            );
        }
    }
}

/// What came of one step.
#[derive(Default)]
pub(crate) struct Step {
    /// Entries to apply, in order.
    pub(crate) committed: Vec<Entry>,
    /// The state is to be replaced by the snapshot that was received up to here.
    pub(crate) install: Option<(Position, ConfState)>,
    /// Reads that may be served once the index is applied: index and number.
    pub(crate) reads: Vec<(u64, u64)>,
    /// Entries that were on their way to the log were replaced: by another leader's, or by a snapshot.
    pub(crate) overtakes: bool,
}

/// What waits for the shard's log.
struct Persisting {
    sequence: u64,
    number: u64,
    /// The entries among it, whose records are the last ones: first and last index; 0 for none.
    entries: (u64, u64),
    messages: Vec<Message>,
    installed: u64,
}

/// One replica.
pub(crate) struct Replica {
    group: u16,
    raw: RawNode<Log>,
    persisting: VecDeque<Persisting>,
    /// Up to where the log is safe.
    flushed: u64,
    applied: Position,
    seed: u64,
    campaigns: u64,
    /// It stands for election over a leader that is known to be gone.
    stands_over: bool,
    timeout_of: (u64, u64),
}

impl Replica {
    /// A replica whose state is at `applied` and whose log is `log`.
    pub(crate) fn new(group: u16, node: u64, log: Log, applied: Position, seed: u64) -> Self {
        let config = Config {
            id: node,
            election_tick: ELECTION_TICKS,
            heartbeat_tick: HEARTBEAT_TICKS,
            min_election_tick: ELECTION_TICKS,
            max_election_tick: ELECTION_TICKS_MAX,
            applied: applied.index,
            max_size_per_msg: MESSAGE_BYTES_MAX,
            max_inflight_msgs: INFLIGHT_MAX,
            check_quorum: true,
            pre_vote: true,
            skip_bcast_commit: true,
            batch_append: true,
            max_committed_size_per_ready: APPLY_BYTES_MAX,
            ..Config::default()
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raw = RawNode::new(&config, log, &logger).expect("the configuration and the log are sound");
        let mut replica = Self {
            group,
            raw,
            persisting: VecDeque::new(),
            flushed: 0,
            applied,
            seed,
            campaigns: 0,
            stands_over: false,
            timeout_of: (u64::MAX, 0),
        };
        replica.set_timeout();
        replica
    }

    pub(crate) fn log(&self) -> &Log {
        self.raw.store()
    }

    pub(crate) fn log_mut(&mut self) -> &mut Log {
        self.raw.mut_store()
    }

    pub(crate) fn conf(&self) -> &ConfState {
        &self.raw.store().conf
    }

    pub(crate) const fn applied(&self) -> Position {
        self.applied
    }

    pub(crate) fn term(&self) -> u64 {
        self.raw.raft.term
    }

    pub(crate) fn committed(&self) -> u64 {
        self.raw.raft.raft_log.committed
    }

    pub(crate) fn last_index(&self) -> u64 {
        self.raw.raft.raft_log.last_index()
    }

    /// The leader as this replica knows it; 0 for none.
    pub(crate) fn leader(&self) -> u64 {
        self.raw.raft.leader_id
    }

    pub(crate) fn is_leader(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    /// Whether it leads and has applied all that its predecessors committed.
    pub(crate) fn is_ready_to_serve(&self) -> bool {
        self.is_leader() && self.applied.term == self.term() && self.is_member()
    }

    /// Whether a change of the configuration is under way.
    pub(crate) fn is_changing(&self) -> bool {
        self.raw.raft.has_pending_conf()
    }

    pub(crate) fn is_transferring(&self) -> bool {
        self.raw.raft.lead_transferee.is_some()
    }

    /// Whether it is the only member: then nothing can happen to it between its own steps.
    pub(crate) fn is_alone(&self) -> bool {
        let conf = self.conf();
        conf.voters.len() == 1 && conf.learners.is_empty() && !conf::is_joint(conf)
    }

    pub(crate) fn is_voter(&self) -> bool {
        self.raw.raft.promotable()
    }

    /// The election timeout follows from seed, node, term and the number of attempts.
    fn set_timeout(&mut self) {
        let of = (self.raw.raft.term, self.campaigns);
        if self.timeout_of == of && (self.is_leader() || self.raw.raft.randomized_election_timeout() == self.timeout())
        {
            return;
        }
        self.timeout_of = of;
        let timeout = self.timeout();
        self.raw.raft.set_randomized_election_timeout(timeout);
    }

    fn timeout(&self) -> usize {
        let (term, campaigns) = self.timeout_of;
        let mixed = crate::hash::mix64(self.seed ^ self.raw.raft.id.rotate_left(17) ^ (term << 20) ^ campaigns);
        let span = u64::try_from(ELECTION_TICKS_MAX - ELECTION_TICKS).expect("ticks are few");
        ELECTION_TICKS + usize::try_from(mixed % span).expect("ticks are few")
    }

    /// Time passed: [`TICK_US`].
    pub(crate) fn tick(&mut self) {
        if !self.may_stand() {
            return;
        }
        let was = self.raw.raft.state;
        self.raw.tick();
        if self.raw.raft.state != was && !self.is_leader() {
            self.campaigns += 1;
        }
        self.stands_over &= self.raw.raft.election_elapsed > 0;
        self.set_timeout();
    }

    /// It is ticked again after a rest: what it knew of the others then, it knows as of this moment.
    pub(crate) fn woke(&mut self) {
        self.raw.raft.election_elapsed = 0;
    }

    /// Whether there is nothing to do for it but to tick it: no step, no write, no change of its configuration or its leader.
    pub(crate) fn is_quiet(&self) -> bool {
        let is_changing = conf::is_joint(self.conf()) || self.is_changing() || self.is_transferring();
        let is_done = self.applied.index == self.committed() && self.committed() == self.last_index();
        is_done && !is_changing && !self.has_ready() && !self.is_persisting()
    }

    /// Whether it leads, and every member has all of the log, knows that it is committed, and was heard of lately.
    pub(crate) fn is_had_by_all(&self) -> bool {
        let (own, last) = (self.raw.raft.id, self.last_index());
        let has_all = |progress: &Progress| {
            progress.matched == last
                && progress.committed_index == last
                && progress.recent_active
                && progress.state != ProgressState::Snapshot
        };
        self.is_leader() && self.raw.raft.prs().iter().all(|(&node, progress)| node == own || has_all(progress))
    }

    /// Whether it follows a leader of this term and has the log up to this index, and no more.
    pub(crate) fn follows_at(&self, term: u64, index: u64) -> bool {
        self.raw.raft.state == StateRole::Follower && self.term() == term && self.last_index() == index
    }

    /// All voters and learners.
    pub(crate) fn members(&self) -> impl Iterator<Item = u64> + '_ {
        self.raw.raft.prs().iter().map(|(&node, _)| node)
    }

    /// Whether this replica may stand for election; one that leads may. Not while an installed snapshot is on its way into the
    /// shard's log: the library looks for the entries that it replaced. Nor while entries are, if its own vote is all that it
    /// needs: the library takes them for safe. Nor before it has what an earlier replica here had.
    fn may_stand(&self) -> bool {
        let is_installing = self.persisting.iter().any(|waiting| waiting.installed > 0);
        let conf = self.conf();
        let needs_others = conf.voters.iter().chain(&conf.voters_outgoing).any(|&node| node != self.raw.raft.id);
        let has_all = self.log().last() >= self.log().earlier;
        has_all && !is_installing && (needs_others || self.is_leader() || !self.is_persisting())
    }

    /// A message from another replica. Messages that no longer concern it are passed over.
    pub(crate) fn step(&mut self, message: Message) {
        let kind = message.get_msg_type();
        // A leader says how much is committed of what it knows to be here: this was sent to an earlier replica, which was removed.
        let is_stale = kind == MessageType::MsgHeartbeat && message.commit > self.last_index();
        // An earlier replica here, which was removed, may have said that it has entries which the candidate lacks. Who still counts in
        // the configuration of that time must not be elected because they are not here any more.
        let asks = matches!(kind, MessageType::MsgRequestVote | MessageType::MsgRequestPreVote);
        let lacks = asks && Position { term: message.log_term, index: message.index } < self.log().earlier;
        if is_stale || lacks || (kind == MessageType::MsgTimeoutNow && !self.may_stand()) {
            return;
        }
        // An error means that the sender is not of the group any more, or that a proposal was dropped.
        let _ = self.raw.step(message);
        self.press();
        self.set_timeout();
    }

    /// Stands for election at once, although a leader was heard of a moment ago: it is known to be gone, and the others are told
    /// not to wait for it. Like everybody else it asks first whether it would be elected: one that is cut off from all others
    /// takes the same leader for gone, and must not come back with a higher term. If another one stands already, it has not won
    /// so far: it may lack entries that are here.
    pub(crate) fn campaign_over(&mut self, lost: u64) {
        let leader = self.leader();
        if !self.is_leader() && self.is_voter() && (leader == 0 || leader == lost) {
            self.campaign();
            self.stands_over = leader == lost;
            self.press();
        }
    }

    /// Whoever is asked for a vote is not to wait for the leader that is known to be gone.
    fn press(&mut self) {
        if self.stands_over {
            let is_request = |kind| matches!(kind, MessageType::MsgRequestPreVote | MessageType::MsgRequestVote);
            for message in self.raw.raft.msgs.iter_mut().filter(|message| is_request(message.get_msg_type())) {
                message.context = CAMPAIGN_TRANSFER.into();
            }
            self.stands_over = self.raw.raft.state == StateRole::PreCandidate;
        }
    }

    /// Stands for election in the ordinary way.
    pub(crate) fn campaign(&mut self) {
        if self.may_stand() {
            let _ = self.raw.campaign();
        }
        self.campaigns += 1;
        self.stands_over = false;
        self.set_timeout();
    }

    /// Proposes commands; the position that they take in the log, or `None` when this replica cannot propose now.
    pub(crate) fn propose(&mut self, data: Bytes) -> Option<Position> {
        if !self.is_leader() {
            return None;
        }
        let mut message = Message { from: self.raw.raft.id, ..Message::default() };
        message.set_msg_type(MessageType::MsgPropose);
        message.set_entries(vec![Entry { data, ..Entry::default() }].into());
        self.raw.raft.step(message).ok()?;
        Some(Position { term: self.term(), index: self.last_index() })
    }

    /// Proposes the next configuration. One that comes while another is under way is turned into nothing by the library.
    pub(crate) fn propose_conf(&mut self, to: &ConfState) -> Option<Position> {
        let change = conf::change(self.conf(), to);
        let mut context = Vec::new();
        conf::encode(to, &mut context);
        if !self.is_leader() {
            return None;
        }
        self.raw.propose_conf_change(context, change).ok()?;
        Some(Position { term: self.term(), index: self.last_index() })
    }

    /// Asks that reads numbered `number` be confirmed. Only once [`Self::is_ready_to_serve`], or it would be dropped.
    pub(crate) fn read(&mut self, number: u64) {
        self.raw.read_index(number.to_le_bytes().to_vec());
    }

    /// Hands leadership to a follower that has caught up.
    pub(crate) fn transfer(&mut self, to: u64) {
        self.raw.transfer_leader(to);
    }

    /// The snapshot that was sent to a follower did not arrive.
    pub(crate) fn snapshot_failed(&mut self, to: u64) {
        self.raw.report_snapshot(to, SnapshotStatus::Failure);
    }

    /// Messages to a node are lost.
    pub(crate) fn unreachable(&mut self, node: u64) {
        if self.is_leader() {
            self.raw.report_unreachable(node);
        }
    }

    /// Up to where a follower has the log, if it is part of the group.
    pub(crate) fn matched(&self, node: u64) -> Option<u64> {
        self.raw.raft.prs().get(node).map(|progress| progress.matched)
    }

    /// Whether a follower was heard of lately and takes entries.
    pub(crate) fn is_following(&self, node: u64) -> bool {
        let progress = self.raw.raft.prs().get(node);
        progress.is_some_and(|progress| progress.state != ProgressState::Snapshot && progress.recent_active)
    }

    /// Whether a follower waits for a snapshot to be installed.
    pub(crate) fn is_taking_snapshot(&self, node: u64) -> bool {
        self.raw.raft.prs().get(node).is_some_and(|progress| progress.state == ProgressState::Snapshot)
    }

    /// Up to where every member has the log.
    pub(crate) fn matched_by_all(&self) -> u64 {
        self.raw.raft.prs().iter().map(|(_, progress)| progress.matched).min().unwrap_or(0)
    }

    pub(crate) fn has_ready(&self) -> bool {
        self.raw.has_ready()
    }

    /// One step: what there is to log goes to `unlogged`, messages to `send`, the rest is returned. The caller applies
    /// what is committed and then calls [`Self::applied_to`].
    pub(crate) fn process(&mut self, unlogged: &mut Unlogged, mut send: impl FnMut(&Message)) -> Step {
        let mut ready = self.raw.ready();
        for message in ready.take_messages() {
            send(&message);
        }
        let mut step = Step { committed: ready.take_committed_entries(), ..Step::default() };
        for state in ready.take_read_states() {
            if let Some(number) = state.request_ctx.first_chunk::<8>() {
                step.reads.push((state.index, u64::from_le_bytes(*number)));
            }
        }
        let mut sequence = 0;
        let mut installed = 0;
        if !ready.snapshot().is_empty() {
            let meta = ready.snapshot().get_metadata();
            let at = Position { term: meta.term, index: meta.index };
            let conf = meta.get_conf_state().clone();
            let (header, configuration) = record::install(self.group, at, &conf);
            (sequence, installed) = (unlogged.push(kind::INSTALL, &header, configuration.into()), at.index);
            self.raw.mut_store().restart(at, conf.clone());
            self.applied = at;
            step.install = Some((at, conf));
        }
        if let Some(hard) = ready.hs().cloned() {
            if ready.must_sync() && self.is_newer(&hard) {
                sequence = unlogged.push(kind::HARD, &record::hard(self.group, &hard), Bytes::new());
            }
            self.raw.mut_store().hard = hard;
        }
        let commit = self.raw.store().hard.commit;
        for entry in ready.entries() {
            let header = record::entry_header(self.group, entry, commit.min(entry.index));
            sequence = unlogged.push(kind::ENTRY, &header, record::body_of(entry).clone());
        }
        let last = self.raw.store().last().index;
        step.overtakes = step.install.is_some() || ready.entries().first().is_some_and(|first| first.index <= last);
        self.raw.mut_store().append(ready.entries());
        let ends = ready.entries().first().zip(ready.entries().last());
        let entries = ends.map_or((0, 0), |(first, last)| (first.index, last.index));
        let messages = Self::keep(ready.take_persisted_messages(), send);
        let sequence = sequence.max(self.persisting.back().map_or(0, |before| before.sequence));
        self.persisting.push_back(Persisting { sequence, number: ready.number(), entries, messages, installed });
        self.raw.advance_append_async(ready);
        self.set_timeout();
        step
    }

    /// Whether a term and vote say more than what was logged last.
    fn is_newer(&self, hard: &HardState) -> bool {
        let logged = &self.raw.store().hard;
        (hard.term, hard.vote) != (logged.term, logged.vote)
    }

    /// Picks the messages that wait until the records before them are safe. Answers to heartbeats promise nothing and go at
    /// once, so that a slow disk does not look like a dead node.
    fn keep(mut messages: Vec<Message>, mut send: impl FnMut(&Message)) -> Vec<Message> {
        messages.retain(|message| {
            let waits = message.get_msg_type() != MessageType::MsgHeartbeatResponse;
            if !waits {
                send(message);
            }
            waits
        });
        messages
    }

    /// The last entry of the log that is safe when the shard's log is safe up to `sequence`, which may be in the middle of what
    /// was handed to it at once.
    pub(crate) fn durable_index(&self, sequence: u64) -> u64 {
        let with_entries = self.persisting.iter().filter(|waiting| waiting.entries.1 > 0);
        let safe = with_entries.map_while(|waiting| {
            let index = waiting.entries.1.saturating_sub(waiting.sequence.saturating_sub(sequence));
            (index >= waiting.entries.0).then_some(index)
        });
        safe.last().unwrap_or(self.raw.raft.raft_log.persisted).min(self.log().last().index)
    }

    /// A leader that was taken out of the group leads no longer: the library's leaders take their own place for granted. The
    /// voter that has most of the log stands for election at once.
    fn resign(&mut self) {
        let (own, term) = (self.raw.raft.id, self.term());
        let voters = self.conf().voters.iter().copied().filter(|&node| node != own);
        if let Some(to) = voters.max_by_key(|&node| self.matched(node)) {
            let mut message = Message { from: own, to, term, ..Message::default() };
            message.set_msg_type(MessageType::MsgTimeoutNow);
            self.raw.raft.msgs.push(message);
        }
        self.raw.raft.become_follower(term, 0);
    }

    /// The shard's log is safe up to `sequence`.
    pub(crate) fn flushed(&mut self, sequence: u64) {
        self.flushed = self.flushed.max(sequence);
    }

    /// Whether something waits for the shard's log that is safe now.
    pub(crate) fn has_flushed(&self) -> bool {
        self.persisting.front().is_some_and(|first| first.sequence <= self.flushed)
    }

    /// Whether this replica has a place in the configuration.
    pub(crate) fn is_member(&self) -> bool {
        self.raw.raft.prs().get(self.raw.raft.id).is_some()
    }

    /// Whether something waits for the shard's log.
    pub(crate) fn is_persisting(&self) -> bool {
        !self.persisting.is_empty()
    }

    /// Sends what waited for the log, and tells the library.
    pub(crate) fn persisted(&mut self, mut send: impl FnMut(&Message)) {
        while let Some(first) = self.persisting.pop_front_if(|first| first.sequence <= self.flushed) {
            for message in &first.messages {
                send(message);
            }
            self.raw.on_persist_ready(first.number);
            if first.installed > 0 {
                self.raw.advance_apply_to(first.installed);
            }
        }
        self.set_timeout();
    }

    /// All that [`Self::process`] returned is applied, up to here.
    pub(crate) fn applied_to(&mut self, at: Position) {
        self.applied = at;
        self.raw.advance_apply_to(at.index);
    }

    /// A committed configuration is in force.
    ///
    /// # Panics
    /// When the library comes to another one: a defect.
    pub(crate) fn apply_conf(&mut self, context: &[u8]) {
        // The library turned a proposal that came too early into an empty one.
        let Some(to) = conf::decode(context) else { return };
        let change = conf::change(self.conf(), &to);
        let reached = self.raw.apply_conf_change(&change).expect("the proposer made a legal change");
        assert_eq!(conf::sorted(reached), to, "the configuration that was proposed");
        self.raw.mut_store().conf = to;
        if self.is_leader() && !self.is_member() {
            self.resign();
        }
        self.set_timeout();
    }
}

//! Snapshots on their way to followers, in chunks, without stopping either side.
//!
//! The leader writes a group's snapshot slice by slice and sends chunks while few are under way; the follower builds the state
//! beside the present one, logs each chunk, and says how far it came only when that is durable. When all of it is there the
//! leader offers it to the Raft library, whose message then makes the follower put the new state in place.
//!
//! ```text
//! Chunk:       8 bytes header, id u64, number u32, tag u32, len u32, last u32, bytes padded to 16
//! ChunkTaken:  8 bytes header, id u64, next u32, reserved
//! ```
//! A connection that is lost costs nothing: chunks that were not taken are sent again.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use raft::eraftpb::{ConfState, Message};
use taskmaster_protocol::{FrameBuffer, NodeId, PartitionId};

use super::group::Group;
use super::snapshots::{Head, Part, tag};
use super::{Effects, Shard};
use crate::cluster::map::ClusterMap;
use crate::partition::{Cx, Partition};
use crate::peer::{self, Kind, META_GROUP, PeerAddr};
use crate::replica::log::Position;
use crate::replica::record::{self, CHUNK_HEADER_BYTES, Fields, aligned, kind};
use crate::snapshot::Restore;

/// Chunks of one transfer that may be under way.
const WINDOW: usize = 8;
/// Transfers that one shard sends at once.
const SENDING_MAX: usize = 4;
/// Chunks that were not taken within this time are sent again, in microseconds.
const RESEND_US: u64 = 1_000_000;
/// A transfer without any progress for so long is given up, in microseconds.
const GIVE_UP_US: u64 = 10_000_000;
/// Time whose share of the rate may be sent at once, in microseconds.
const BURST_US: u64 = 200_000;

/// A snapshot that is being sent.
struct Sending {
    group: u16,
    to: NodeId,
    id: u64,
    /// `None` until the head was written.
    at: Option<(Position, ConfState)>,
    part: Part,
    /// Number of the first chunk in `under_way`.
    taken: u32,
    under_way: VecDeque<(u32, FrameBuffer)>,
    /// Chunks of `under_way` that were sent.
    sent: usize,
    is_written: bool,
    progress_us: u64,
    resent_us: u64,
}

/// The state that a follower builds from chunks.
pub(super) enum Staged {
    Partition(Box<Partition>, Restore),
    Map(Option<ClusterMap>),
}

/// A snapshot that is being received.
pub(super) struct Receiving {
    pub(super) id: u64,
    pub(super) next: u32,
    pub(super) head: Option<Head>,
    pub(super) staged: Staged,
    pub(super) is_complete: bool,
    /// The library was told of it in this turn and puts it in place before the turn ends.
    pub(super) is_accepted: bool,
    pub(super) progress_us: u64,
}

/// All of a shard.
#[derive(Default)]
pub(super) struct Transfers {
    sending: Vec<Sending>,
    wanted: VecDeque<(u16, NodeId)>,
    pub(super) receiving: BTreeMap<u16, Receiving>,
    /// Answers that wait for the log: sequence, to whom, group, transfer, next chunk.
    answers: VecDeque<(u64, PeerAddr, u16, u64, u32)>,
    last_id: u64,
    /// Bytes that may be sent now, and since when they are counted. One chunk may be more than is left.
    allowed: i64,
    allowed_us: u64,
    turn: usize,
}

impl Transfers {
    /// Time passed: more may be sent.
    fn allow(&mut self, now_us: u64, bytes_per_s: u64) {
        let of = |us: u64| i64::try_from(u128::from(bytes_per_s) * u128::from(us) / 1_000_000).unwrap_or(i64::MAX);
        let passed_us = now_us.saturating_sub(self.allowed_us).min(BURST_US);
        self.allowed = self.allowed.saturating_add(of(passed_us)).min(of(BURST_US));
        self.allowed_us = now_us;
    }

    /// Whether nothing is on its way.
    pub(super) fn is_empty(&self) -> bool {
        self.sending.is_empty() && self.wanted.is_empty() && self.receiving.is_empty()
    }

    pub(super) fn is_receiving(&self) -> bool {
        !self.receiving.is_empty()
    }

    /// The position that followers will continue from; the log must reach back to it.
    pub(super) fn pinned(&self, group: u16) -> Option<u64> {
        let of_group = self.sending.iter().filter(|sending| sending.group == group);
        of_group.filter_map(|sending| sending.at.as_ref().map(|(at, _)| at.index)).min()
    }

    /// This shard no longer leads the group.
    pub(super) fn stop_sending(&mut self, group: u16) {
        self.sending.retain(|sending| sending.group != group);
        self.wanted.retain(|(wanted, _)| *wanted != group);
    }

    /// What was under way to a node may be lost.
    pub(super) fn lost(&mut self, node: NodeId) {
        for sending in self.sending.iter_mut().filter(|sending| sending.to == node) {
            sending.sent = 0;
        }
    }
}

impl Shard {
    /// Followers that the library wants to send a snapshot to.
    pub(super) fn want_snapshots(&mut self, group: &Group) {
        for node in group.replica.log().take_wanted() {
            let to = NodeId(node);
            let transfers = &mut self.transfers;
            let is_known = transfers.sending.iter().any(|sending| sending.group == group.number && sending.to == to);
            if !is_known && !transfers.wanted.contains(&(group.number, to)) {
                transfers.wanted.push_back((group.number, to));
            }
        }
    }

    /// Begins transfers, writes and sends chunks, gives up what does not move.
    pub(super) fn beat_transfers(&mut self, effects: &mut Effects) {
        let now_us = self.last_time_us;
        self.transfers.allow(now_us, self.config.transfer_bytes_per_s);
        self.begin_transfers();
        // Each has its turn to be first, so that all of them go on when the rate is used up.
        self.transfers.turn = self.transfers.turn.wrapping_add(1);
        let count = self.transfers.sending.len();
        for index in (0..count).map(|index| (index + self.transfers.turn) % count).collect::<Vec<_>>() {
            let sending = &mut self.transfers.sending[index];
            if now_us.saturating_sub(sending.progress_us.max(sending.resent_us)) > RESEND_US {
                (sending.sent, sending.resent_us) = (0, now_us);
            }
            self.send_chunks(index, effects);
        }
        self.end_transfers();
        let old =
            |receiving: &Receiving| !receiving.is_accepted && now_us.saturating_sub(receiving.progress_us) > GIVE_UP_US;
        let given_up: Vec<u16> =
            self.transfers.receiving.iter().filter(|(_, receiving)| old(receiving)).map(|(&group, _)| group).collect();
        for group in given_up {
            self.drop_receiving(group);
        }
    }

    fn begin_transfers(&mut self) {
        for _ in 0..self.transfers.wanted.len() {
            if self.transfers.sending.len() >= SENDING_MAX {
                return;
            }
            let Some((group, to)) = self.transfers.wanted.pop_front() else { return };
            let is_busy = self.transfers.sending.iter().any(|sending| sending.group == group && !sending.is_written);
            if is_busy || !self.can_write(group) {
                self.transfers.wanted.push_back((group, to));
                continue;
            }
            self.transfers.last_id += 1;
            let id = crate::hash::mix64(self.config.node.id.0 ^ self.last_time_us).wrapping_add(self.transfers.last_id);
            self.transfers.sending.push(Sending {
                group,
                to,
                id,
                at: None,
                part: Part::Head,
                taken: 0,
                under_way: VecDeque::new(),
                sent: 0,
                is_written: false,
                progress_us: self.last_time_us,
                resent_us: 0,
            });
        }
    }

    /// Writes chunks while few are under way, and sends those that were not sent.
    fn send_chunks(&mut self, index: usize, effects: &mut Effects) {
        while !self.transfers.sending[index].is_written && self.transfers.sending[index].under_way.len() < WINDOW {
            let (group, part) = (self.transfers.sending[index].group, self.transfers.sending[index].part);
            if part == Part::Head {
                let Some(replica) = self.group(group).map(|group| &group.replica) else { return };
                self.transfers.sending[index].at = Some((replica.applied(), replica.conf().clone()));
            }
            let mut bytes = FrameBuffer::new();
            let written = self.write_part(group, part, false, &mut bytes);
            let sending = &mut self.transfers.sending[index];
            match written {
                Some((tag, next)) => {
                    sending.part = next;
                    sending.under_way.push_back((tag, bytes));
                }
                None => sending.is_written = true,
            }
        }
        let sending = &mut self.transfers.sending[index];
        let to = self.peers.home_of(sending.to.0, sending.group);
        while sending.sent < sending.under_way.len() {
            let (tag, bytes) = &sending.under_way[sending.sent];
            let is_last = sending.is_written && sending.sent + 1 == sending.under_way.len();
            // The last chunk is known as such only when no other follows.
            if self.transfers.allowed <= 0 || (!sending.is_written && sending.sent + 1 == sending.under_way.len()) {
                return;
            }
            let number = sending.taken + u32::try_from(sending.sent).expect("the window is small");
            let out = effects.peer(to);
            let begun = peer::begin(out, Kind::Chunk, 0, sending.group);
            out.extend_from_slice(&sending.id.to_le_bytes());
            let len = u32::try_from(bytes.len()).expect("chunks are bounded");
            for field in [number, *tag, len, u32::from(is_last)] {
                out.extend_from_slice(&field.to_le_bytes());
            }
            out.extend_from_slice(bytes);
            peer::finish(out, begun);
            sending.sent += 1;
            self.transfers.allowed -= i64::from(len);
        }
    }

    /// Offers what has arrived whole to the library; ends transfers that are over, stuck, or to nobody any more.
    fn end_transfers(&mut self) {
        let now_us = self.last_time_us;
        let mut index = 0;
        while index < self.transfers.sending.len() {
            let sending = &self.transfers.sending[index];
            let is_done = sending.is_written && sending.under_way.is_empty();
            let is_stuck = now_us.saturating_sub(sending.progress_us) > GIVE_UP_US;
            let (number, to, at) = (sending.group, sending.to.0, sending.at.clone());
            let matched = self.group(number).and_then(|group| group.replica.matched(to));
            let begins_at = at.as_ref().map_or(0, |(at, _)| at.index);
            if is_stuck || matched.is_none() || (is_done && matched.is_some_and(|matched| matched >= begins_at)) {
                self.end_transfer(index, is_stuck);
                continue;
            }
            if is_done && let (Some((at, conf)), Some(group)) = (at, self.group(number)) {
                group.replica.log().offer(to, at, conf);
            }
            index += 1;
        }
    }

    /// Forgets a transfer; what was being written of it stops.
    fn end_transfer(&mut self, index: usize, failed: bool) {
        let sending = self.transfers.sending.swap_remove(index);
        if let Some(group) = self.group(sending.group) {
            group.replica.log().retract(sending.to.0);
        }
        if failed && let Some(group) = self.group_mut(sending.group) {
            if group.replica.is_taking_snapshot(sending.to.0) {
                group.replica.snapshot_failed(sending.to.0);
            }
            self.touch(sending.group);
        }
        if !sending.is_written
            && sending.part != Part::Head
            && let Some(partition) = self.partitions.get_mut(usize::from(sending.group)).and_then(Option::as_deref_mut)
        {
            crate::snapshot::abandon(partition, &mut self.arena);
        }
    }

    /// A follower says how far it came.
    pub(super) fn chunk_taken(&mut self, from: PeerAddr, frame: &peer::Frame<'_>) {
        let mut fields = Fields(frame.body);
        let (Some(id), Some(next)) = (fields.u64(), fields.u32()) else { return };
        let now_us = self.last_time_us;
        let is_it =
            |sending: &&mut Sending| sending.id == id && sending.to == from.node && sending.group == frame.group;
        let Some(sending) = self.transfers.sending.iter_mut().find(is_it) else { return };
        if next < sending.taken {
            // It lost what it had: all anew.
            let wanted = (sending.group, sending.to);
            if let Some(index) = self.transfers.sending.iter().position(|sending| sending.id == id) {
                self.end_transfer(index, false);
            }
            self.transfers.wanted.push_back(wanted);
            return;
        }
        while sending.taken < next && sending.under_way.pop_front().is_some() {
            sending.taken += 1;
            sending.sent = sending.sent.saturating_sub(1);
            sending.progress_us = now_us;
        }
        self.elections.hasten();
    }

    /// A chunk of a state that this node is to have.
    pub(super) fn chunk(&mut self, from: PeerAddr, frame: &peer::Frame<'_>, effects: &mut Effects) {
        let mut fields = Fields(frame.body);
        let (Some(id), Some(number), Some(tag)) = (fields.u64(), fields.u32(), fields.u32()) else { return };
        let (Some(len), Some(last)) = (fields.u32(), fields.u32()) else { return };
        let Some(bytes) = fields.padded(len) else { return };
        let group = frame.group;
        if self.disk_full || (self.group(group).is_none() && !self.make_room(group)) {
            return;
        }
        let known = self.transfers.receiving.get(&group);
        if known.is_some_and(|receiving| receiving.is_accepted) {
            return;
        }
        let next = known.filter(|receiving| receiving.id == id).map_or(0, |receiving| receiving.next);
        if number != next {
            self.answer_chunk(from, group, id, next, effects);
            return;
        }
        let header = record::chunk(group, u8::try_from(tag).unwrap_or(0), number, last == 1, id);
        if self.take_chunk(&header, bytes).is_err() {
            self.drop_receiving(group);
            return;
        }
        let sequence = self.unlogged.push(kind::CHUNK, &header, aligned(bytes));
        self.transfers.answers.push_back((sequence, from, group, id, number + 1));
    }

    /// Takes a chunk into the state that is being built: as it arrives, and again at recovery.
    pub(super) fn take_chunk(&mut self, header: &[u8; CHUNK_HEADER_BYTES], bytes: &[u8]) -> Result<(), &'static str> {
        let mut fields = Fields(header);
        let (group, what, last) = (fields.u16(), fields.u8(), fields.u8());
        let (Some(group), Some(what), Some(last)) = (group, what, last) else { return Err("a chunk's header") };
        let (Some(number), Some(id)) = (fields.u32(), fields.u64()) else { return Err("a chunk's header") };
        if number == 0 {
            self.drop_receiving(group);
            let staged = if group == META_GROUP {
                Staged::Map(None)
            } else {
                Staged::Partition(Box::new(Partition::new(PartitionId(group))), Restore::default())
            };
            let progress_us = self.last_time_us;
            let receiving =
                Receiving { id, next: 0, head: None, staged, is_complete: false, is_accepted: false, progress_us };
            self.transfers.receiving.insert(group, receiving);
        }
        let Some(mut receiving) = self.transfers.receiving.remove(&group) else {
            return Err("a chunk without a first");
        };
        let fits = receiving.id == id && receiving.next == number && !receiving.is_complete;
        let taken = if fits { self.take_part(group, u32::from(what), bytes, &mut receiving) } else { Err("a chunk") };
        receiving.next = number + 1;
        receiving.is_complete = last == 1;
        receiving.progress_us = self.last_time_us;
        self.transfers.receiving.insert(group, receiving);
        taken
    }

    fn take_part(&mut self, group: u16, what: u32, bytes: &[u8], into: &mut Receiving) -> Result<(), &'static str> {
        match (what, &mut into.staged) {
            (tag::HEAD, staged) => {
                let head = Head::read(bytes).filter(|head| head.group == group).ok_or("a snapshot's head")?;
                if let Staged::Partition(partition, _) = staged {
                    (partition.command_us, partition.settings) = (head.command_us, head.settings);
                }
                into.head = Some(head);
            }
            (tag::STATE, Staged::Partition(partition, restore)) => {
                let aligned = aligned(bytes);
                let mut cx = Cx {
                    time_us: self.last_time_us,
                    arena: &mut self.arena,
                    timers: &mut self.timers,
                    dispatch: &mut self.dispatch,
                    settled: &mut self.settled,
                    revoked: &mut self.revoked,
                    findings: &mut self.findings,
                };
                restore.chunk(&aligned, partition, &mut cx).map_err(|_| "a partition's state")?;
            }
            (tag::MAP, Staged::Map(map)) => {
                *map = Some(ClusterMap::decode(bytes).map_err(|_| "the cluster map")?);
            }
            _ => return Err("a chunk of another kind"),
        }
        Ok(())
    }

    /// Says how far a transfer came, when that is durable.
    pub(super) fn answer_chunks(&mut self, effects: &mut Effects) {
        let durable = self.durable_sequence;
        while let Some((_, to, group, id, next)) = self.transfers.answers.pop_front_if(|first| first.0 <= durable) {
            self.answer_chunk(to, group, id, next, effects);
        }
    }

    fn answer_chunk(&self, to: PeerAddr, group: u16, id: u64, next: u32, effects: &mut Effects) {
        let out = effects.peer(to);
        let begun = peer::begin(out, Kind::ChunkTaken, 0, group);
        out.extend_from_slice(&id.to_le_bytes());
        out.extend_from_slice(&next.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        peer::finish(out, begun);
    }

    /// Whether the state that a snapshot message speaks of was received whole.
    pub(super) fn is_received(&self, group: u16, message: &Message) -> bool {
        let meta = message.get_snapshot().get_metadata();
        let at = Position { term: meta.term, index: meta.index };
        let received = self.transfers.receiving.get(&group);
        received
            .is_some_and(|received| received.is_complete && received.head.as_ref().is_some_and(|head| head.at == at))
    }

    /// A whole state is being put in place.
    pub(super) fn accept(&mut self, group: u16) {
        if let Some(receiving) = self.transfers.receiving.get_mut(&group) {
            receiving.is_accepted = true;
        }
    }

    /// What was accepted in this turn and not put in place may be given up again.
    pub(super) fn end_accepting(&mut self) {
        self.transfers.receiving.values_mut().for_each(|receiving| receiving.is_accepted = false);
    }

    /// Throws a state away that is being built.
    pub(super) fn drop_receiving(&mut self, group: u16) {
        let Some(receiving) = self.transfers.receiving.remove(&group) else { return };
        if let Staged::Partition(mut partition, _) = receiving.staged {
            self.clear(&mut partition);
        }
    }

    pub(super) fn clear(&mut self, partition: &mut Partition) {
        let mut cx = Cx {
            time_us: self.last_time_us,
            arena: &mut self.arena,
            timers: &mut self.timers,
            dispatch: &mut self.dispatch,
            settled: &mut self.settled,
            revoked: &mut self.revoked,
            findings: &mut self.findings,
        };
        partition.clear(&mut cx);
    }

    /// Puts the received state in place of the present one.
    ///
    /// # Panics
    /// If it was not received whole: the message that asks for it is not let in before.
    pub(super) fn install(&mut self, group: &Group, at: Position) {
        if self.is_written_locally(group.number) {
            self.local.is_broken = true;
        }
        self.put_in_place(group.number, at).expect("the snapshot was received whole");
    }

    /// As [`Self::install`]; what is missing, if something is.
    pub(super) fn put_in_place(&mut self, group: u16, at: Position) -> Result<(), &'static str> {
        let received = self.transfers.receiving.remove(&group).ok_or("a snapshot's chunks")?;
        if !received.is_complete || received.head.as_ref().is_none_or(|head| head.at != at) {
            return Err("a snapshot's last chunk");
        }
        match received.staged {
            Staged::Map(map) => self.meta.install(map.ok_or("the cluster map")?),
            Staged::Partition(mut partition, mut restore) => {
                let now_us = self.last_time_us;
                let mut cx = Cx {
                    time_us: now_us,
                    arena: &mut self.arena,
                    timers: &mut self.timers,
                    dispatch: &mut self.dispatch,
                    settled: &mut self.settled,
                    revoked: &mut self.revoked,
                    findings: &mut self.findings,
                };
                restore.finish(&mut partition, &mut cx);
                partition.arm_retention(cx.timers, now_us);
                let place = self.partitions.get_mut(usize::from(group)).ok_or("a partition's number")?;
                if let Some(mut before) = place.replace(partition) {
                    self.clear(&mut before);
                }
                self.demote_after(PartitionId(group), 0);
            }
        }
        Ok(())
    }

    /// Nothing of a replica's state is logged but this.
    pub(super) fn log_founded(&mut self, header: &[u8], configuration: Vec<u8>) {
        self.unlogged.push(kind::INSTALL, header, Bytes::from(configuration));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_allowed_than_the_rate_and_a_burst() {
        let mut transfers = Transfers::default();
        let mut sent = 0;
        for now_us in (1_000_000..11_000_000).step_by(25_000) {
            transfers.allow(now_us, 1_000_000);
            while transfers.allowed > 0 {
                transfers.allowed -= 100_000;
                sent += 100_000;
            }
        }
        assert!((9_800_000..=10_300_000).contains(&sent), "{sent} bytes in ten seconds");
        transfers.allow(3_600_000_000, 1_000_000);
        assert!(transfers.allowed <= 200_000, "a pause does not add up");
    }
}

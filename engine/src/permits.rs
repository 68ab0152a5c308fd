//! How shards share a queue's limits, within a node and over nodes: by demand, and never beyond them.
//!
//! The leader of one partition, chosen by the queue's name, owns the limits. Others ask it for permits when they have ready
//! tasks and workers. What they say is absolute (how many permits ever came, how many are in use, how many came back unused),
//! so that a note that is lost or comes twice does no harm. A new owner lends nothing for a while, until all who hold leases
//! have said so. All of it is volatile.
//!
//! ```text
//! Note:   8 bytes header of the peer message (detail 0: need, 1: grant), then
//!         session u64, the borrower's start u64, received or granted in all u64, unused in all u64, used u32, wanted u32,
//!         namespace_len u16, name_len u16, namespace, name
//! ```

use core::hash::{BuildHasher, Hasher};
use std::collections::BTreeMap;

use taskmaster_protocol::FrameBuffer;

use crate::hash::FixedState;
use crate::peer::{self, Frame, Kind, PeerAddr};
use crate::replica::record::Fields;

/// How long a new owner waits for those who hold leases, in microseconds: longer than a leader can be cut off and not know.
pub(crate) const SETTLE_US: u64 = 1_500_000;
/// After this time a need is said again, in microseconds.
const REPEAT_US: u64 = 250_000;
/// A borrower that says nothing for so long, in microseconds, although something is lent to it, is asked: that it has no more
/// need is said once, and may have been lost.
const QUIET_US: u64 = 4 * REPEAT_US;

/// What shards tell each other about a queue's permits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Note {
    /// To the owner.
    Need(Need),
    /// From the owner: so many permits were lent in all.
    Grant {
        /// The owner's term.
        session: u64,
        /// The borrower's start that it is for.
        start: u64,
        /// Permits in all.
        total: u64,
    },
}

/// A borrower's standing with the owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Need {
    /// The owner's term.
    pub(crate) session: u64,
    /// Since when the borrower counts: what it said before, in an earlier life or of an owner that came again, is void.
    pub(crate) start: u64,
    /// Permits that came in all.
    pub(crate) received: u64,
    /// Permits that were given back unused, in all.
    pub(crate) unused: u64,
    /// Leases in force and permits in hand.
    pub(crate) used: u32,
    /// This many more could start.
    pub(crate) wanted: u32,
}

/// A note about one queue.
pub(crate) struct NoteAbout<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) queue: &'a str,
    pub(crate) note: Note,
}

/// Another shard as the owner sees it.
#[derive(Clone, Copy, Debug, Default)]
struct Borrower {
    granted: u64,
    need: Need,
    /// When it was heard or asked last.
    heard_us: u64,
}

impl Borrower {
    fn lent(&self) -> u64 {
        u64::from(self.need.used) + (self.granted - self.need.received.min(self.granted))
    }

    /// What says how much was lent to it in all.
    const fn grant(&self, session: u64) -> Note {
        Note::Grant { session, start: self.need.start, total: self.granted }
    }

    fn is_quiet(&self, now_us: u64) -> bool {
        self.lent() > 0 && now_us.saturating_sub(self.heard_us) > QUIET_US
    }
}

/// A queue's permits, as its owner and as another shard see them.
#[derive(Debug, Default)]
pub(crate) struct Permits {
    /// Who owns the limits, and in which term; `None` while nobody is known to.
    owner: Option<(PeerAddr, u64)>,
    pub(crate) is_owner: bool,
    /// Others: when they began to count, differing from all times before.
    start: u64,
    /// Owner: until then nothing is lent or started.
    pub(crate) settles_us: u64,
    borrowers: BTreeMap<PeerAddr, Borrower>,
    /// Owner: whose turn it is.
    turn: Option<PeerAddr>,
    /// Owner: its own tasks go before those of the shards that ask; who went last goes last.
    pub(crate) own_first: bool,
    /// Others: permits in hand.
    pub(crate) held: u32,
    received: u64,
    unused: u64,
    /// Others: what was said last, and when.
    said: Option<(Need, u64)>,
}

/// The partition whose leader owns the limits of a queue.
pub(crate) fn owning_partition(namespace: &str, name: &str, partitions: u16) -> u16 {
    let mut hasher = FixedState.build_hasher();
    hasher.write(namespace.as_bytes());
    hasher.write(name.as_bytes());
    u16::try_from(hasher.finish() % u64::from(partitions.max(1))).expect("below the number of partitions")
}

impl Permits {
    /// Takes over who owns the limits. `true` if that changed. `start` is when this process began.
    pub(crate) fn owned_by(
        &mut self,
        owner: Option<(PeerAddr, u64)>,
        own: PeerAddr,
        start: u64,
        settles_us: u64,
    ) -> bool {
        if self.owner == owner {
            return false;
        }
        let is_owner = owner.is_some_and(|(owner, _)| owner == own);
        let start = start.max(self.start + 1);
        *self = Self { owner, is_owner, start, settles_us, ..Self::default() };
        true
    }

    /// Others: the owner, and the term in which it is.
    pub(crate) const fn owner(&self) -> Option<(PeerAddr, u64)> {
        self.owner
    }

    /// Owner: leases and permits in the hands of others.
    pub(crate) fn lent(&self) -> u64 {
        self.borrowers.values().map(Borrower::lent).sum()
    }

    /// Owner: shards that want more.
    pub(crate) fn asking(&self) -> u32 {
        let asking = self.borrowers.values().filter(|borrower| borrower.need.wanted > 0);
        u32::try_from(asking.count()).expect("shards are few")
    }

    /// Owner: a borrower's standing. Permits that came back unused since it was heard last.
    pub(crate) fn heard(&mut self, from: PeerAddr, need: Need, now_us: u64) -> u32 {
        let session = self.owner.map_or(0, |(_, session)| session);
        if !self.is_owner || need.session != session {
            return 0;
        }
        let borrower = self.borrowers.entry(from).or_default();
        if need.start != borrower.need.start {
            *borrower = Borrower { granted: need.received, need, heard_us: now_us };
            return 0;
        }
        borrower.heard_us = now_us;
        if need.received < borrower.need.received || need.unused < borrower.need.unused {
            return 0;
        }
        let unused = need.unused - borrower.need.unused;
        borrower.need = need;
        u32::try_from(unused).unwrap_or(u32::MAX)
    }

    /// Owner: the next shard that wants permits, and how many.
    pub(crate) fn next_asking(&self) -> Option<(PeerAddr, u32)> {
        let wants = |(_, borrower): &(&PeerAddr, &Borrower)| borrower.need.wanted > 0;
        let after = self.borrowers.iter().filter(wants).find(|(who, _)| self.turn.is_none_or(|turn| **who > turn));
        let found = after.or_else(|| self.borrowers.iter().find(wants));
        found.map(|(&who, borrower)| (who, borrower.need.wanted))
    }

    /// Owner: lends permits. The note to send.
    pub(crate) fn lend(&mut self, to: PeerAddr, count: u32) -> Note {
        let session = self.owner.map_or(0, |(_, session)| session);
        self.turn = Some(to);
        let borrower = self.borrowers.entry(to).or_default();
        borrower.granted += u64::from(count);
        borrower.need.wanted -= count.min(borrower.need.wanted);
        borrower.grant(session)
    }

    /// Owner: what was lent to a shard that still waits for it: the note may have been lost.
    pub(crate) fn lend_again(&self, to: PeerAddr) -> Option<Note> {
        let (_, session) = self.owner.filter(|_| self.is_owner)?;
        let borrower = self.borrowers.get(&to)?;
        let is_lost = borrower.need.wanted > 0 && borrower.need.received < borrower.granted;
        is_lost.then(|| borrower.grant(session))
    }

    /// Owner: whether somebody has been quiet for too long.
    pub(crate) fn has_quiet(&self, now_us: u64) -> bool {
        self.is_owner && self.borrowers.values().any(|borrower| borrower.is_quiet(now_us))
    }

    /// Owner: what to send to those that have been quiet for too long: what they were granted, which makes them say how they
    /// stand.
    pub(crate) fn ask_quiet(&mut self, now_us: u64) -> Vec<(PeerAddr, Note)> {
        let session = self.owner.filter(|_| self.is_owner).map_or(0, |(_, session)| session);
        let quiet = self.borrowers.iter_mut().filter(|(_, borrower)| borrower.is_quiet(now_us));
        let ask = |(&to, borrower): (&PeerAddr, &mut Borrower)| {
            borrower.heard_us = now_us;
            (to, borrower.grant(session))
        };
        quiet.map(ask).collect()
    }

    /// Owner: nodes are down, and with them their leases. `true` if something was lent to one.
    pub(crate) fn forget(&mut self, is_down: impl Fn(taskmaster_protocol::NodeId) -> bool) -> bool {
        let before = self.borrowers.len();
        self.borrowers.retain(|who, _| !is_down(who.node));
        self.borrowers.len() < before
    }

    /// Others: permits came, or the owner asks.
    pub(crate) fn granted(&mut self, session: u64, start: u64, total: u64) {
        if self.is_owner || start != self.start || self.owner.is_none_or(|(_, owner)| owner != session) {
            return;
        }
        self.said = None;
        let more = total.saturating_sub(self.received);
        self.received += more;
        self.held = self.held.saturating_add(u32::try_from(more).unwrap_or(u32::MAX));
    }

    /// Others: what is to be told to the owner, if anything. `leased` are in force, `wanted` could start now.
    pub(crate) fn need(&mut self, leased: u64, wanted: u32, now_us: u64) -> Option<Note> {
        let (_, session) = self.owner?;
        if wanted == 0 {
            self.unused += u64::from(core::mem::take(&mut self.held));
        }
        let used = u32::try_from(leased).unwrap_or(u32::MAX).saturating_add(self.held);
        let wanted = if self.held > 0 { 0 } else { wanted };
        let need = Need { session, start: self.start, received: self.received, unused: self.unused, used, wanted };
        let is_idle = used == 0 && wanted == 0;
        let is_said = self
            .said
            .is_some_and(|(said, at_us)| said == need && (is_idle || now_us.saturating_sub(at_us) < REPEAT_US));
        // An idle one is said once: the owner may remember an earlier start of this process. It asks if that was lost.
        if is_said {
            return None;
        }
        self.said = Some((need, now_us));
        Some(Note::Need(need))
    }
}

/// Appends a note about a queue.
pub(crate) fn encode(about: &NoteAbout<'_>, out: &mut FrameBuffer) {
    let (detail, need) = match about.note {
        Note::Need(need) => (0, need),
        Note::Grant { session, start, total } => (1, Need { session, start, received: total, ..Need::default() }),
    };
    let begun = peer::begin(out, Kind::Permit, detail, 0);
    for field in [need.session, need.start, need.received, need.unused] {
        out.extend_from_slice(&field.to_le_bytes());
    }
    for field in [need.used, need.wanted] {
        out.extend_from_slice(&field.to_le_bytes());
    }
    for text in [about.namespace, about.queue] {
        out.extend_from_slice(&u16::try_from(text.len()).expect("names are short").to_le_bytes());
    }
    out.extend_from_slice(about.namespace.as_bytes());
    out.extend_from_slice(about.queue.as_bytes());
    peer::finish(out, begun);
}

/// Reads what [`encode`] wrote; `None` for other bytes.
pub(crate) fn decode<'a>(frame: &Frame<'a>) -> Option<NoteAbout<'a>> {
    let mut fields = Fields(frame.body);
    let (session, start) = (fields.u64()?, fields.u64()?);
    let (received, unused) = (fields.u64()?, fields.u64()?);
    let (used, wanted) = (fields.u32()?, fields.u32()?);
    let (namespace_len, name_len) = (fields.u16()?, fields.u16()?);
    let mut text = |len: u16| core::str::from_utf8(fields.bytes(usize::from(len))?).ok();
    let (namespace, queue) = (text(namespace_len)?, text(name_len)?);
    let note = match frame.detail {
        0 => Note::Need(Need { session, start, received, unused, used, wanted }),
        1 => Note::Grant { session, start, total: received },
        _ => return None,
    };
    Some(NoteAbout { namespace, queue, note })
}

#[cfg(test)]
mod tests {
    use super::*;
    use taskmaster_protocol::NodeId;

    const OWNER: PeerAddr = PeerAddr { node: NodeId(1), shard: 0 };
    const OTHER: PeerAddr = PeerAddr { node: NodeId(2), shard: 0 };

    fn pair() -> (Permits, Permits) {
        let (mut owner, mut other) = (Permits::default(), Permits::default());
        owner.owned_by(Some((OWNER, 7)), OWNER, 1, 0);
        other.owned_by(Some((OWNER, 7)), OTHER, 2, 0);
        (owner, other)
    }

    #[test]
    fn lost_and_repeated_notes_change_nothing() {
        let (mut owner, mut other) = pair();
        let Some(Note::Need(need)) = other.need(0, 5, 0) else { panic!("something is wanted") };
        owner.heard(OTHER, need, 0);
        let Note::Grant { session, start, total } = owner.lend(OTHER, 3) else { panic!("a grant") };
        other.granted(session, start, total);
        other.granted(session, start, total);
        assert_eq!((other.held, owner.lent()), (3, 3));
        // Two of the three start; the note about it is lost, the next one says all again.
        other.held = 1;
        other.need(2, 1, 1);
        other.held = 0;
        let Some(Note::Need(need)) = other.need(2, 0, 2) else { panic!("news") };
        owner.heard(OTHER, need, 0);
        assert_eq!(owner.lent(), 2);
    }

    #[test]
    fn what_was_lent_is_said_again_to_who_waits() {
        let (mut owner, mut other) = pair();
        let Some(Note::Need(need)) = other.need(0, 5, 0) else { panic!("something is wanted") };
        owner.heard(OTHER, need, 0);
        let lost = owner.lend(OTHER, 3);
        assert_eq!(owner.lend_again(OTHER), Some(lost));
        let Some(Note::Grant { session, start, total }) = owner.lend_again(OTHER) else { panic!("a grant") };
        other.granted(session, start, total);
        let Some(Note::Need(need)) = other.need(3, 0, 1) else { panic!("news") };
        owner.heard(OTHER, need, 0);
        assert_eq!(owner.lend_again(OTHER), None);
    }

    #[test]
    fn a_borrower_whose_last_word_was_lost_is_asked() {
        let (mut owner, mut other) = pair();
        let Some(Note::Need(need)) = other.need(0, 5, 0) else { panic!("something is wanted") };
        owner.heard(OTHER, need, 0);
        let _lost = owner.lend(OTHER, 3);
        // Its tasks went elsewhere, and nobody hears that it wants nothing any more.
        assert!(other.need(0, 0, 10).is_some() && other.need(0, 0, 10 * QUIET_US).is_none());
        assert!(!owner.has_quiet(QUIET_US) && owner.has_quiet(QUIET_US + 1));
        let asked = owner.ask_quiet(QUIET_US + 1);
        let [(OTHER, Note::Grant { session, start, total })] = asked[..] else { panic!("{asked:?}") };
        assert!(!owner.has_quiet(QUIET_US + 2));
        other.granted(session, start, total);
        let Some(Note::Need(need)) = other.need(0, 0, QUIET_US + 3) else { panic!("it was asked") };
        assert_eq!((owner.heard(OTHER, need, QUIET_US + 4), owner.lent()), (3, 0));
    }

    #[test]
    fn a_borrower_that_started_anew_owes_nothing_and_may_borrow() {
        let (mut owner, mut other) = pair();
        let Some(Note::Need(need)) = other.need(0, 5, 0) else { panic!("something is wanted") };
        owner.heard(OTHER, need, 0);
        owner.lend(OTHER, 3);
        let mut again = Permits::default();
        again.owned_by(Some((OWNER, 7)), OTHER, 3, 0);
        let Some(Note::Need(need)) = again.need(0, 2, 0) else { panic!("something is wanted") };
        owner.heard(OTHER, need, 0);
        assert_eq!((owner.lent(), owner.next_asking()), (0, Some((OTHER, 2))));
        let Note::Grant { session, start, total } = owner.lend(OTHER, 2) else { panic!("a grant") };
        again.granted(session, start, total);
        assert_eq!(again.held, 2);
    }

    #[test]
    fn a_borrower_that_forgot_its_owner_for_a_moment_may_borrow_again() {
        let (mut owner, mut other) = pair();
        let Some(Note::Need(need)) = other.need(0, 5, 0) else { panic!("something is wanted") };
        owner.heard(OTHER, need, 0);
        let Note::Grant { session, start, total } = owner.lend(OTHER, 3) else { panic!("a grant") };
        other.granted(session, start, total);
        let Some(Note::Need(need)) = other.need(3, 0, 1) else { panic!("news") };
        owner.heard(OTHER, need, 0);
        other.owned_by(None, OTHER, 2, 0);
        other.owned_by(Some((OWNER, 7)), OTHER, 2, 0);
        let Some(Note::Need(need)) = other.need(1, 2, 2) else { panic!("something is wanted") };
        owner.heard(OTHER, need, 0);
        assert_eq!((owner.lent(), owner.next_asking()), (1, Some((OTHER, 2))));
    }

    #[test]
    fn grants_of_another_term_are_worth_nothing() {
        let (_, mut other) = pair();
        other.granted(6, 2, 100);
        assert_eq!(other.held, 0);
    }

    #[test]
    fn notes_round_trip() {
        let need = Need { session: 1, start: 6, received: 2, unused: 3, used: 4, wanted: 5 };
        for note in [Note::Need(need), Note::Grant { session: 8, start: 7, total: 9 }] {
            let mut out = FrameBuffer::new();
            encode(&NoteAbout { namespace: "default", queue: "q", note }, &mut out);
            let mut rest = &out[..];
            let frame = peer::next(&mut rest).unwrap();
            let read = decode(&frame).unwrap();
            assert_eq!((read.namespace, read.queue, read.note), ("default", "q", note));
        }
    }
}

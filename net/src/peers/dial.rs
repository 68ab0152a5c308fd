//! The connection to one shard of a peer: dialed when there is something to send, and again with growing pauses.
//!
//! Invariants: one task per peer shard at most; while the peer does not answer, what is sent is dropped and not kept, so that
//! it never hears of the past; only what was sent while a dial was under way waits for its end, within
//! [`WAITING_BYTES_MAX`].

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_lite::future::{or, yield_now};
use glommio::timer::sleep;
use taskmaster_protocol::peer::{Kind, PeerError, PeerHello, PeerRefusal, Reason};
use taskmaster_protocol::{FrameBuffer, NodeId};

use super::greeting::{judge, trust};
use super::link::{Ending, Link};
use super::refusals::Refused;
use super::{PeerLink, Peers, Sent, taken};
use crate::input::Input;
use crate::pace::Pace;
use crate::wake::Bell;

/// Bytes of batches that may wait for the end of a dial.
const WAITING_BYTES_MAX: usize = 4 << 20;
/// The pause after a failed dial, in milliseconds: first and longest.
const PAUSE_MS_MIN: u64 = 10;
const PAUSE_MS_MAX: u64 = 1_000;
/// A connection that ended earlier counts as a failed dial.
const STANDING: Duration = Duration::from_secs(5);

enum State {
    /// Nothing to do.
    Idle,
    /// A dial is under way.
    Dialing {
        waiting: VecDeque<FrameBuffer>,
    },
    /// Until the next dial.
    Pausing,
    Connected(Rc<Link>, PeerHello),
}

/// A shard of a peer.
pub(super) struct Outgoing {
    node: NodeId,
    shard: u16,
    address: Cell<SocketAddr>,
    state: RefCell<State>,
    /// Dials that failed in a row.
    failures: Cell<u32>,
    /// Something was to be sent since the last dial failed.
    wanted: Cell<bool>,
    forgotten: Cell<bool>,
    /// Ends a pause early.
    hurry: Bell,
    trouble: RefCell<Option<String>>,
}

/// Why a dial did not lead to a connection.
enum Failed {
    Unreachable(String),
    Refused,
}

impl Outgoing {
    pub(super) fn new(node: NodeId, shard: u16, address: SocketAddr) -> Self {
        Self {
            node,
            shard,
            address: Cell::new(address),
            state: RefCell::new(State::Idle),
            failures: Cell::new(0),
            wanted: Cell::new(false),
            forgotten: Cell::new(false),
            hurry: Bell::default(),
            trouble: RefCell::default(),
        }
    }

    /// It is said to be at this address: maybe where it was, but back.
    pub(super) fn found(&self, address: SocketAddr) {
        self.address.set(address);
        self.hurry();
    }

    /// There is reason to believe that a dial succeeds now.
    pub(super) fn hurry(&self) {
        self.failures.set(0);
        if matches!(*self.state.borrow(), State::Pausing) {
            self.hurry.ring();
        }
    }

    pub(super) fn forget(&self) {
        self.forgotten.set(true);
        self.hurry.ring();
        self.close_unless(|_| false, "the peer is no member any more");
    }

    pub(super) fn close_unless(&self, fits: impl Fn(&PeerHello) -> bool, reason: &'static str) {
        if let State::Connected(link, hello) = &*self.state.borrow()
            && !fits(hello)
        {
            link.close(reason);
        }
    }

    pub(super) fn tick(&self) {
        if let State::Connected(link, _) = &*self.state.borrow() {
            link.tick(true);
        }
    }

    pub(super) fn unsent_bytes(&self) -> usize {
        match &*self.state.borrow() {
            State::Connected(link, _) => link.unsent_bytes(),
            State::Dialing { waiting } => waiting.iter().map(|batch| batch.len()).sum(),
            State::Idle | State::Pausing => 0,
        }
    }

    pub(super) fn status(&self) -> PeerLink {
        PeerLink {
            node: self.node,
            shard: self.shard,
            address: self.address.get(),
            is_connected: matches!(*self.state.borrow(), State::Connected(..)),
            unsent_bytes: self.unsent_bytes(),
            trouble: self.trouble.borrow().clone(),
        }
    }
}

impl Peers {
    /// Gives a batch to the peer's connection, or to the dial that will make it.
    pub(super) fn offer(self: &Rc<Self>, peer: &Rc<Outgoing>, bytes: &mut FrameBuffer) -> Sent {
        let mut state = peer.state.borrow_mut();
        match &mut *state {
            State::Connected(link, _) => taken(link, bytes),
            State::Pausing => {
                peer.wanted.set(true);
                Sent::Dropped
            }
            State::Dialing { waiting } => {
                let size: usize = waiting.iter().map(|batch| batch.len()).sum();
                if !waiting.is_empty() && size + bytes.len() > WAITING_BYTES_MAX {
                    return Sent::Dropped;
                }
                waiting.push_back(core::mem::take(bytes));
                Sent::Queued
            }
            State::Idle => {
                *state = State::Dialing { waiting: VecDeque::from([core::mem::take(bytes)]) };
                drop(state);
                glommio::spawn_local(Rc::clone(self).dial_task(Rc::clone(peer))).detach();
                Sent::Queued
            }
        }
    }

    /// Dials, keeps the connection, and dials again for as long as there is something to send.
    async fn dial_task(self: Rc<Self>, peer: Rc<Outgoing>) {
        // A spawned task begins at once, in the middle of the sender's turn, and a connection can be refused without any
        // wait: the handler must not hear of that inside the turn.
        yield_now().await;
        loop {
            peer.wanted.set(false);
            match self.dial(&peer).await {
                Ok((link, input)) => {
                    let since = Instant::now();
                    self.established(peer.node);
                    self.keep(&peer, &link, input).await;
                    let failures = if since.elapsed() >= STANDING { 1 } else { peer.failures.get().saturating_add(1) };
                    peer.failures.set(failures);
                    self.pause(&peer);
                    self.ended(peer.node);
                }
                Err(failed) => {
                    self.log_failure(&peer, &failed);
                    self.pause(&peer);
                    self.ended(peer.node);
                }
            }
            if !peer.forgotten.get() {
                let pause = self.pause_before(peer.failures.get());
                or(sleep(pause), peer.hurry.wait()).await;
            }
            let goes_on = peer.wanted.get() && !peer.forgotten.get() && !self.stopped.get();
            if !goes_on {
                *peer.state.borrow_mut() = State::Idle;
                return;
            }
            *peer.state.borrow_mut() = State::Dialing { waiting: VecDeque::new() };
        }
    }

    fn pause(&self, peer: &Outgoing) {
        let before = core::mem::replace(&mut *peer.state.borrow_mut(), State::Pausing);
        if let State::Dialing { waiting } = before {
            self.count(|stats| {
                stats.batches_dropped += waiting.len() as u64;
                stats.bytes_dropped += waiting.iter().map(|batch| batch.len() as u64).sum::<u64>();
            });
        }
    }

    /// Grows from [`PAUSE_MS_MIN`] to [`PAUSE_MS_MAX`], less up to half by chance.
    fn pause_before(&self, failures: u32) -> Duration {
        let most = (PAUSE_MS_MIN << failures.saturating_sub(1).min(10)).min(PAUSE_MS_MAX);
        Duration::from_millis(most - self.random_below(most / 2 + 1))
    }

    fn log_failure(&self, peer: &Outgoing, failed: &Failed) {
        peer.failures.set(peer.failures.get().saturating_add(1));
        match failed {
            Failed::Unreachable(error) => {
                let (node, shard, address) = (peer.node, peer.shard, peer.address.get());
                let was_silent = peer.trouble.borrow_mut().replace(error.clone()).is_none();
                if was_silent {
                    tracing::warn!(%node, shard, %address, "a peer cannot be reached: {error}; it is tried again");
                }
            }
            // Somebody has to change something: haste is of no use.
            Failed::Refused => peer.failures.set(u32::MAX),
        }
    }

    /// One attempt: a connection that both sides agreed to.
    async fn dial(&self, peer: &Rc<Outgoing>) -> Result<(Rc<Link>, Input), Failed> {
        let own = self.hello(peer.node, peer.shard);
        let address = peer.address.get();
        let mut input = Input::default();
        let link = match Link::dial(address, &own.encode(), self.tls.as_ref()).await {
            Ok(link) => link,
            Err(Ending::Gone(error)) => return Err(Failed::Unreachable(error)),
            Err(ending) => return Err(self.refused(peer, address, ending)),
        };
        let reply = link
            .greeting(&mut input, |frame| match frame.kind {
                Kind::HelloReply => Ok(PeerHello::decode(frame.body)?),
                Kind::Refusal => Err(Ending::Refused(PeerRefusal::decode(frame.body)?)),
                _ => Err(PeerError::Body("greeting: no answer to the hello").into()),
            })
            .await;
        let reply = match reply {
            Ok(reply) => reply,
            Err(Ending::Gone(error)) => {
                return Err(Failed::Unreachable(format!("no answer to the hello: {error}")));
            }
            Err(ending) => return Err(self.refused(peer, address, ending)),
        };
        match judge(&own, &reply).and_then(|version| trust(&link, &own, &reply).map(|()| version)) {
            Ok(version) => link.greeted(version),
            Err(refusal) => {
                link.refuse(&refusal);
                *peer.trouble.borrow_mut() = Some(refusal.sentence.clone());
                self.note_refused(&link, Some(peer.node), true, refusal);
                return Err(Failed::Refused);
            }
        }
        let cluster = self.cluster.get();
        if peer.forgotten.get() || (cluster != own.cluster && cluster != reply.cluster) {
            return Err(Failed::Unreachable("this node joined a cluster meanwhile".to_owned()));
        }
        self.connect(peer, &link, reply);
        Ok((link, input))
    }

    /// The link stands: what waited goes out.
    fn connect(&self, peer: &Rc<Outgoing>, link: &Rc<Link>, reply: PeerHello) {
        let (node, shard, address) = (peer.node, peer.shard, link.address());
        tracing::info!(%node, shard, %address, "connected to {reply}");
        glommio::spawn_local(Rc::clone(link).write_loop()).detach();
        *peer.trouble.borrow_mut() = None;
        let connected = State::Connected(Rc::clone(link), reply);
        if let State::Dialing { waiting } = core::mem::replace(&mut *peer.state.borrow_mut(), connected) {
            for batch in waiting {
                // It was called queued; at most the bound of waiting batches is less than that of a link.
                let _ = taken(link, &batch);
            }
        }
    }

    fn refused(&self, peer: &Outgoing, address: SocketAddr, ending: Ending) -> Failed {
        let (reason, by_us, sentence) = match ending {
            Ending::Gone(error) => return Failed::Unreachable(error),
            Ending::Refused(refusal) => (refusal.reason, false, refusal.sentence),
            Ending::Fault(error) => {
                let own = self.hello(peer.node, peer.shard);
                let sentence =
                    format!("{own} looks for node {} at this address, where no peer answers: {error}", peer.node);
                (Reason::Garbage, true, sentence)
            }
            Ending::Untrusted(error) => {
                let own = self.hello(peer.node, peer.shard);
                (Reason::Tls, true, format!("{own} looks for node {} at this address, but {error}", peer.node))
            }
        };
        *peer.trouble.borrow_mut() = Some(sentence.clone());
        self.note(Refused::new(address, Some(peer.node), reason, by_us, sentence));
        Failed::Refused
    }

    /// Reads what little comes from the other side, until the link ends.
    async fn keep(&self, peer: &Outgoing, link: &Link, mut input: Input) {
        let mut pace = Pace::default();
        let ending = loop {
            let outcome = link.receive(&mut input, &mut pace, |frame| match frame.kind {
                Kind::Pong => Ok(()),
                Kind::Refusal => Err(Ending::Refused(PeerRefusal::decode(frame.body)?)),
                _ => Err(PeerError::Body("stream: data against its direction").into()),
            });
            if let Err(ending) = outcome.await {
                break ending;
            }
        };
        link.close("it ended");
        let (node, shard, address) = (peer.node, peer.shard, link.address());
        if let Ending::Gone(error) = ending {
            if !peer.forgotten.get() && !self.stopped.get() {
                tracing::warn!(%node, shard, %address, "the connection to a peer ended: {error}");
            }
            *peer.trouble.borrow_mut() = Some(error);
        } else {
            self.refused(peer, address, ending);
        }
    }
}

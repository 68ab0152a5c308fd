//! Connections that peers make: greeted, checked, and read until they end.
//!
//! Invariants: the numbers of connections, and of those that did not say who they are, have bounds; a stranger costs a
//! greeting's buffer and time at most; a shard of a peer has one connection, and a newer one replaces the older.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use glommio::net::TcpStream;
use glommio::timer::sleep;
use taskmaster_protocol::NodeId;
use taskmaster_protocol::peer::{Kind, PeerError, PeerHello, PeerRefusal, Reason};

use super::Peers;
use super::greeting::{judge, trust};
use super::link::{Ending, Link};
use super::refusals::Refused;
use crate::input::Input;
use crate::listener::Listener;
use crate::pace::Pace;

/// Connections of peers that a shard keeps.
const INCOMING_MAX: usize = 1_024;
/// Connections that did not say yet who they are.
const UNGREETED_MAX: usize = 64;
/// Pause after a failed accept: descriptors running out is the usual cause.
const FAILED_PAUSE: Duration = Duration::from_millis(100);
/// Pause after a connection too many.
const BUSY_PAUSE: Duration = Duration::from_millis(1);

/// A greeted connection.
pub(super) struct Incoming {
    pub(super) link: Rc<Link>,
    pub(super) hello: PeerHello,
}

impl Peers {
    /// Accepts connections of peers until [`Self::stop`].
    pub async fn accept(self: Rc<Self>, listener: Listener) {
        let listener = Rc::new(listener);
        self.listeners.borrow_mut().push(Rc::clone(&listener));
        while !self.stopped.get() {
            let stream = match listener.accept().await {
                Ok(stream) => stream,
                Err(_) if self.stopped.get() => return,
                Err(error) => {
                    tracing::warn!("a connection of a peer could not be accepted: {error}");
                    sleep(FAILED_PAUSE).await;
                    continue;
                }
            };
            let Ok(address) = stream.peer_addr() else { continue };
            if self.accepted.get() >= INCOMING_MAX || self.ungreeted.get() >= UNGREETED_MAX {
                let sentence = format!(
                    "the peer port of {} has too many connections: {INCOMING_MAX} in all and {UNGREETED_MAX} that did not \
                     say who they are are allowed",
                    self.hello(self.identity.node, 0)
                );
                self.note(Refused::new(address, None, Reason::Busy, true, sentence));
                // A crowd at the door must not keep the shard from its work.
                sleep(BUSY_PAUSE).await;
                continue;
            }
            self.accepted.set(self.accepted.get() + 1);
            self.ungreeted.set(self.ungreeted.get() + 1);
            glommio::spawn_local(Rc::clone(&self).serve(stream, address)).detach();
        }
    }

    async fn serve(self: Rc<Self>, stream: TcpStream, address: SocketAddr) {
        match Link::accepted(stream, address, self.tls.as_ref()) {
            Ok(link) => self.serve_link(link).await,
            Err(ending) => {
                tracing::warn!(%address, "a connection of a peer cannot be served: {ending:?}");
                self.ungreeted.set(self.ungreeted.get() - 1);
            }
        }
        self.accepted.set(self.accepted.get() - 1);
    }

    async fn serve_link(&self, link: Rc<Link>) {
        glommio::spawn_local(Rc::clone(&link).write_loop()).detach();
        let mut input = Input::default();
        let greeted = self.greet(&link, &mut input).await;
        self.ungreeted.set(self.ungreeted.get() - 1);
        if let Some(incoming) = greeted {
            self.enter(&incoming);
            let ending = self.read(&incoming, input).await;
            self.leave(&incoming, ending);
        }
        link.close("it ended");
    }

    /// Hears who the peer is and answers, or refuses it.
    async fn greet(&self, link: &Rc<Link>, input: &mut Input) -> Option<Rc<Incoming>> {
        let hello = link
            .greeting(input, |frame| match frame.kind {
                Kind::Hello => Ok(PeerHello::decode(frame.body)?),
                _ => Err(PeerError::Body("greeting: the first frame is no hello").into()),
            })
            .await;
        let theirs = match hello {
            Ok(hello) => hello,
            Err(Ending::Gone(_)) => return None,
            Err(ending) => {
                self.garbage(link, None, ending);
                return None;
            }
        };
        let own = self.hello(theirs.node, theirs.shard);
        match judge(&own, &theirs).and_then(|version| trust(link, &own, &theirs).map(|()| version)) {
            Ok(_) if self.stopped.get() => None,
            Ok(version) => {
                link.send(Kind::HelloReply, &own.encode());
                link.greeted(version);
                Some(Rc::new(Incoming { link: Rc::clone(link), hello: theirs }))
            }
            Err(refusal) => {
                link.refuse(&refusal);
                self.note_refused(link, Some(theirs.node), true, refusal);
                None
            }
        }
    }

    fn enter(&self, incoming: &Rc<Incoming>) {
        let hello = &incoming.hello;
        tracing::info!(address = %incoming.link.address(), shard = hello.shard, "connected by {hello}");
        let key = (hello.node, hello.shard);
        let before = self.incoming.borrow_mut().insert(key, Rc::clone(incoming));
        if let Some(before) = before {
            before.link.close("the peer made a new connection");
            self.ended(hello.node);
        }
        self.established(hello.node);
        // It lives: whoever waits to dial it need not wait longer.
        for (_, peer) in self.outgoing.borrow().range((hello.node, 0)..=(hello.node, u16::MAX)) {
            peer.hurry();
        }
    }

    async fn read(&self, incoming: &Incoming, mut input: Input) -> Ending {
        let (link, node, shard) = (&incoming.link, incoming.hello.node, incoming.hello.shard);
        let mut pace = Pace::default();
        loop {
            let Some(handler) = self.handler() else { return Ending::Gone("this node stops".to_owned()) };
            let (mut batches, mut bytes) = (0, 0);
            let outcome = link
                .receive(&mut input, &mut pace, |frame| {
                    match frame.kind {
                        Kind::Batch => {
                            batches += 1;
                            bytes += frame.body.len() as u64;
                            handler.batch(node, shard, frame.body);
                        }
                        Kind::Ping => link.pong(),
                        Kind::Refusal => return Err(Ending::Refused(PeerRefusal::decode(frame.body)?)),
                        Kind::Hello | Kind::HelloReply | Kind::Pong => {
                            return Err(PeerError::Body("stream: a frame that does not belong there").into());
                        }
                    }
                    Ok(())
                })
                .await;
            if batches > 0 {
                self.count(|stats| {
                    stats.batches_received += batches;
                    stats.bytes_received += bytes;
                });
                handler.turn_ended();
            }
            if let Err(ending) = outcome {
                return ending;
            }
        }
    }

    fn leave(&self, incoming: &Rc<Incoming>, ending: Ending) {
        let (hello, link) = (&incoming.hello, &incoming.link);
        let key = (hello.node, hello.shard);
        let stands = self.incoming.borrow().get(&key).is_some_and(|standing| Rc::ptr_eq(standing, incoming));
        match ending {
            Ending::Gone(error) if stands => {
                tracing::info!(address = %link.address(), shard = hello.shard, "the connection of {hello} ended: {error}");
            }
            Ending::Gone(_) => {}
            ending => self.garbage(link, Some(hello), ending),
        }
        if stands {
            self.incoming.borrow_mut().remove(&key);
            self.ended(hello.node);
        }
    }

    /// Ends a link whose other side sent what it may not, or refused us.
    fn garbage(&self, link: &Link, hello: Option<&PeerHello>, ending: Ending) {
        let node: Option<NodeId> = hello.map(|hello| hello.node);
        let own = self.hello(self.identity.node, self.identity.shard);
        match ending {
            Ending::Gone(_) => {}
            Ending::Refused(refusal) => self.note_refused(link, node, false, refusal),
            Ending::Untrusted(error) => {
                let sentence = match hello {
                    Some(hello) => format!("the connection of {hello} with {own} ends: {error}"),
                    None => format!("a stranger at the peer port of {own} is not trusted: {error}"),
                };
                let refusal = PeerRefusal { reason: Reason::Tls, node: self.identity.node, sentence };
                link.refuse(&refusal);
                self.note_refused(link, node, true, refusal);
            }
            Ending::Fault(error) => {
                let sentence = match hello {
                    Some(hello) => format!("{hello} sent {own} what is no peer frame: {error}"),
                    None => format!("a stranger at the peer port of {own} said no hello: {error}"),
                };
                let reason = if error == PeerError::Tls { Reason::Tls } else { Reason::Garbage };
                let refusal = PeerRefusal { reason, node: self.identity.node, sentence };
                let speaks = !matches!(error, PeerError::Magic { .. } | PeerError::Client);
                if speaks {
                    link.refuse(&refusal);
                }
                self.note_refused(link, node, true, refusal);
            }
        }
    }
}

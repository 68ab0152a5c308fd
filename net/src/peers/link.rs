//! One connection between two shards of different nodes: frames out by direct writes, frames in checked in place.
//!
//! Invariants:
//! - Nothing here waits for the peer but the tasks that belong to the link: [`Link::send`] takes a frame or says that it
//!   does not fit.
//! - At most [`UNSENT_BYTES_MAX`] wait for the peer.
//! - Frames of a link are numbered on both sides; a gap ends it.
//! - Before the greeting is over, nothing larger than a greeting is read.
//! - A reading task suspends now and then (`pace.rs`), however fast the peer sends.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use glommio::net::TcpStream;
use taskmaster_protocol::peer::{self, Frame, Kind, PEER_BODY_BYTES_MAX, PEER_VERSION_MAX, PeerError, PeerRefusal};

use super::tls::{Failed, Session, Tls};
use crate::input::Input;
use crate::pace::Pace;
use crate::socket::dial;
use crate::stream::Stream;

/// Bytes that may wait for one shard of a peer; what comes beyond is dropped. A batch of any legal size fits when nothing
/// waits.
pub const UNSENT_BYTES_MAX: usize = peer::stream_bytes(PEER_BODY_BYTES_MAX);
/// What is read of a socket at once under TLS.
const SEALED_BYTES: usize = 64 << 10;
/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(300);
/// How long a connected peer may take for its part of the greeting.
const GREETING_TIMEOUT: Duration = Duration::from_secs(1);
/// Ticks of silence after which a ping is due, and after which the link is given up.
const PING_TICKS: u32 = 4;
const SILENT_TICKS_MAX: u32 = 7;

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    Yes,
    /// The peer reads too slowly, or the link is closed.
    No,
}

/// Why a link ended.
#[derive(Debug)]
pub(super) enum Ending {
    /// The peer closed it, or the network did.
    Gone(String),
    /// The peer sent what it may not.
    Fault(PeerError),
    /// The peer said why it ends it.
    Refused(PeerRefusal),
    /// TLS did not come about.
    Untrusted(String),
}

impl From<Failed> for Ending {
    fn from(failed: Failed) -> Self {
        Self::Untrusted(match failed {
            Failed::Tls(error) => format!(
                "TLS failed ({error}): the certificates of both must be signed by the authority of the other's ca file, be \
                 valid now and allow both directions"
            ),
            Failed::Plain => {
                "the other side speaks without TLS: configure TLS for peers on all nodes or on none".to_owned()
            }
        })
    }
}

impl From<io::Error> for Ending {
    fn from(error: io::Error) -> Self {
        Self::Gone(error.to_string())
    }
}

impl From<PeerError> for Ending {
    fn from(error: PeerError) -> Self {
        Self::Fault(error)
    }
}

pub(super) struct Link {
    address: SocketAddr,
    stream: Stream,
    tls: RefCell<Option<Secure>>,
    /// Why this side closed it.
    reason: Cell<Option<&'static str>>,
    greeted: Cell<bool>,
    /// Peer protocol version of frames that are sent.
    version: Cell<u8>,
    frames_out: Cell<u64>,
    frames_in: Cell<u64>,
    silent_ticks: Cell<u32>,
}

impl Link {
    /// A link over an accepted stream.
    pub(super) fn accepted(stream: TcpStream, address: SocketAddr, tls: Option<&Tls>) -> Result<Rc<Self>, Ending> {
        let session = tls.map(Session::accepted).transpose()?;
        Ok(Rc::new(Self::new(stream, address, session)))
    }

    /// Makes a connection and sends the hello over it.
    pub(super) async fn dial(address: SocketAddr, hello: &[u8], tls: Option<&Tls>) -> Result<Rc<Self>, Ending> {
        let session = tls.map(|tls| Session::dialed(tls, address)).transpose()?;
        let stream = dial(address)?;
        // The first write waits for the connection.
        stream.set_write_timeout(Some(CONNECT_TIMEOUT)).map_err(io::Error::from)?;
        let link = Rc::new(Self::new(stream, address, session));
        link.stream.block();
        link.send(Kind::Hello, hello);
        while link.stream.is_blocked() {
            link.stream.write_some().await?;
        }
        link.stream.socket().borrow().set_write_timeout(None).map_err(io::Error::from)?;
        Ok(link)
    }

    fn new(stream: TcpStream, address: SocketAddr, session: Option<Session>) -> Self {
        Self {
            address,
            stream: Stream::new(stream),
            tls: RefCell::new(session.map(|session| Secure { session, sealed: vec![0; SEALED_BYTES] })),
            reason: Cell::new(None),
            greeted: Cell::new(false),
            version: Cell::new(PEER_VERSION_MAX),
            frames_out: Cell::new(0),
            frames_in: Cell::new(0),
            silent_ticks: Cell::new(0),
        }
    }

    /// The other side's address.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The greeting is over; frames are of this version from now on.
    pub(super) fn greeted(&self, version: u8) {
        self.version.set(version);
        self.greeted.set(true);
    }

    /// Bytes that wait for the peer.
    pub(super) fn unsent_bytes(&self) -> usize {
        self.stream.unsent_bytes()
    }

    /// Sends a frame, or keeps what the socket does not take now.
    pub(super) fn send(&self, kind: Kind, body: &[u8]) -> Taken {
        let size = peer::stream_bytes(body.len());
        if self.stream.is_closed() || self.unsent_bytes() + size > UNSENT_BYTES_MAX {
            return Taken::No;
        }
        let sequence = self.frames_out.replace(self.frames_out.get() + 1);
        let header = peer::header(kind, self.version.get(), sequence, body);
        let padding = &[0u8; peer::ALIGNMENT][..peer::padding(body.len())];
        self.write([&header, body, padding]);
        Taken::Yes
    }

    fn write(&self, pieces: [&[u8]; 3]) {
        let Some(tls) = &mut *self.tls.borrow_mut() else {
            // The reading task hears of a failure and ends the link.
            return self.closes_unless(self.stream.send(pieces), "a write failed");
        };
        let outcome = self.stream.queue(|out| tls.session.write(&pieces, out));
        self.flush();
        self.closes_unless(outcome, "TLS failed");
    }

    fn flush(&self) {
        self.closes_unless(self.stream.flush(), "a write failed");
    }

    fn closes_unless(&self, outcome: io::Result<()>, reason: &'static str) {
        if outcome.is_err() {
            self.close(reason);
        }
    }

    /// Whether the other side is the node with this name, as far as TLS is spoken.
    pub(super) fn vouches_for(&self, node_name: &str) -> bool {
        self.tls.borrow().as_ref().is_none_or(|tls| tls.session.vouches_for(node_name))
    }

    /// Ends the connection; the reading task says so to whom it concerns.
    pub(super) fn close(&self, reason: &'static str) {
        if self.stream.close() {
            self.reason.set(Some(reason));
        }
    }

    /// Sends a refusal and ends the connection.
    pub(super) fn refuse(&self, refusal: &PeerRefusal) {
        self.send(Kind::Refusal, &refusal.encode());
        self.close("this node refused the peer");
    }

    /// Goes on sending whenever the socket was full. Ends with the link.
    pub(super) async fn write_loop(self: Rc<Self>) {
        // A full socket takes something only after the peer has.
        let outcome = self.stream.write_loop(|| self.silent_ticks.set(0)).await;
        self.closes_unless(outcome, "a write failed");
    }

    /// Once per tick of the owner's watch: asks for a sign of life, or gives the link up.
    pub(super) fn tick(&self, asks: bool) {
        let ticks = self.silent_ticks.get() + 1;
        self.silent_ticks.set(ticks);
        if ticks >= SILENT_TICKS_MAX {
            self.close("the peer was silent for 7 s");
        } else if asks && ticks >= PING_TICKS && !self.stream.is_blocked() {
            self.send(Kind::Ping, &[]);
        }
    }

    /// Answers a ping, unless the peer does not read what it is sent.
    pub(super) fn pong(&self) {
        if !self.stream.is_blocked() {
            self.send(Kind::Pong, &[]);
        }
    }

    /// Reads the peer's first frame and gives what `read` makes of it.
    pub(super) async fn greeting<T>(
        &self,
        input: &mut Input,
        mut read: impl FnMut(Frame<'_>) -> Result<T, Ending>,
    ) -> Result<T, Ending> {
        let limit = |timeout| self.stream.socket().borrow().set_read_timeout(timeout).map_err(io::Error::from);
        limit(Some(GREETING_TIMEOUT))?;
        let mut greeting = None;
        let start = Instant::now();
        while greeting.is_none() {
            // Whoever sends a byte now and then does not hold a place for long.
            if start.elapsed() > GREETING_TIMEOUT {
                return Err(Ending::Gone("the greeting took too long".to_owned()));
            }
            self.receive(input, &mut Pace::default(), |frame| {
                if greeting.is_some() {
                    return Err(PeerError::Body("greeting: a second frame before the answer to the first").into());
                }
                greeting = Some(read(frame)?);
                Ok(())
            })
            .await?;
        }
        limit(None)?;
        greeting.ok_or_else(|| Ending::Gone("no greeting".to_owned()))
    }

    /// Reads once, and hands over the frames that are whole by now.
    pub(super) async fn receive(
        &self,
        input: &mut Input,
        pace: &mut Pace,
        mut frame: impl FnMut(Frame<'_>) -> Result<(), Ending>,
    ) -> Result<(), Ending> {
        pace.breathe().await;
        self.read_some(input, pace).await?;
        self.silent_ticks.set(0);
        let mut at = 0;
        let outcome = loop {
            match peer::parse(&input.filled()[at..]) {
                Ok(Some((parsed, used))) => {
                    at += used;
                    if let Err(ending) = self.in_order(&parsed).and_then(|()| frame(parsed)) {
                        break Err(ending);
                    }
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error.into()),
            }
        };
        input.consume(at);
        outcome
    }

    fn in_order(&self, frame: &Frame<'_>) -> Result<(), Ending> {
        if frame.sequence != self.frames_in.replace(self.frames_in.get() + 1) {
            return Err(PeerError::Body("stream: a frame is missing").into());
        }
        let greets = matches!(frame.kind, Kind::Hello | Kind::HelloReply | Kind::Refusal);
        if !greets && (!self.greeted.get() || frame.version != self.version.get()) {
            return Err(PeerError::Body("stream: a frame before the greeting or of another version").into());
        }
        Ok(())
    }

    async fn read_some(&self, input: &mut Input, pace: &mut Pace) -> Result<(), Ending> {
        let needed = peer::needed(input.filled())?;
        let limit = peer::stream_bytes(peer::GREETING_BYTES_MAX);
        if !self.greeted.get() && needed > limit {
            return Err(PeerError::Body("stream: a batch before the greeting").into());
        }
        let is_plain = self.tls.borrow().is_none();
        if is_plain {
            let count = self.read_into(input.room(needed), pace).await?;
            input.took(count);
            return Ok(());
        }
        let mut sealed = self.tls.borrow_mut().as_mut().map(|tls| core::mem::take(&mut tls.sealed)).unwrap_or_default();
        let count = self.read_into(&mut sealed, pace).await?;
        self.open(sealed, count, input)
    }

    /// Takes what was read through TLS, and sends what TLS has to say to it.
    fn open(&self, sealed: Vec<u8>, count: usize, input: &mut Input) -> Result<(), Ending> {
        let mut outcome = Ok(());
        if let Some(tls) = &mut *self.tls.borrow_mut() {
            outcome = self.stream.queue(|out| tls.session.read(&sealed[..count], input, out));
            tls.sealed = sealed;
        }
        self.flush();
        if outcome == Err(Failed::Plain) {
            // So that the refusal can be read.
            *self.tls.borrow_mut() = None;
        }
        outcome.map_err(Ending::from)
    }

    async fn read_into(&self, room: &mut [u8], pace: &mut Pace) -> Result<usize, Ending> {
        let count = self.stream.read(room, pace).await?;
        if count == 0 {
            let reason = self.reason.get().unwrap_or("the peer closed the connection");
            return Err(Ending::Gone(reason.to_owned()));
        }
        Ok(count)
    }
}

/// TLS of a link, with the buffer for what is read of the socket.
struct Secure {
    session: Session,
    sealed: Vec<u8>,
}

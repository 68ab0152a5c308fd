//! One client connection: frames in, checked in place; frames out, one write per turn.
//!
//! Invariants:
//! - A frame reaches the handler only after its length, checksum and version were checked.
//! - The receive buffer grows to the announced frame, which is bounded by the protocol, and shrinks again.
//! - The reading task suspends now and then (`pace.rs`), however fast the peer sends.
//! - While more than [`OUT_BYTES_MAX`] wait for the peer, nothing further is read from it.

use std::cell::Cell;
use std::io;
use std::rc::Rc;

use glommio::net::TcpStream;
use taskmaster_protocol::body::Refusal;
use taskmaster_protocol::frame::{self, Header};
use taskmaster_protocol::{Code, FrameBuffer, Operation, limits};

use crate::input::Input;
use crate::pace::Pace;
use crate::stream::Stream;
use crate::wake::Bell;

/// Unsent bytes beyond which a connection is not read from.
pub const OUT_BYTES_MAX: usize = 64 << 20;

/// What the connection's owner does with frames.
pub trait Handler {
    /// A checked frame arrived. `Err` sends the refusal and closes the connection.
    ///
    /// # Errors
    /// A code and a sentence for the peer.
    fn frame(&self, connection: &Rc<Connection>, header: Header, body: &[u8]) -> Result<(), (Code, String)>;

    /// All frames that had arrived were handed over. What comes of them may wait for those of other connections.
    fn turn_ended(&self);

    /// What was handed over is to be answered now: the connection is about to be closed.
    fn finish_turn(&self);

    /// The connection is gone.
    fn closed(&self, connection: &Connection);
}

/// An open connection.
pub struct Connection {
    number: u64,
    stream: Stream,
    drained: Bell,
    /// The hello was answered.
    pub greeted: Cell<bool>,
}

impl Connection {
    /// Wraps an accepted stream. `number` is the owner's name for it.
    #[must_use]
    pub fn new(number: u64, stream: TcpStream) -> Rc<Self> {
        let (stream, drained, greeted) = (Stream::new(stream), Bell::default(), Cell::new(false));
        Rc::new(Self { number, stream, drained, greeted })
    }

    /// The owner's name for it.
    #[must_use]
    pub const fn number(&self) -> u64 {
        self.number
    }

    /// Adds whole frames to what will be sent; [`Self::flush`] sends. Takes the buffer's content and leaves it empty.
    pub fn push(&self, frames: &mut FrameBuffer) {
        self.stream.queue(|out| {
            if out.is_empty() {
                core::mem::swap(out, frames);
            } else {
                out.extend_from_slice(frames);
                frames.clear();
            }
        });
    }

    /// Sends what the socket takes; the rest follows by itself.
    pub fn flush(&self) {
        if self.stream.flush().is_err() {
            self.close();
        }
    }

    /// Bytes that wait for the peer.
    #[must_use]
    pub fn unsent_bytes(&self) -> usize {
        self.stream.unsent_bytes()
    }

    /// Ends the connection.
    pub fn close(&self) {
        if self.stream.close() {
            self.drained.ring();
        }
    }

    /// Goes on sending whenever the socket was full. Ends with the connection.
    pub async fn write_loop(self: Rc<Self>) {
        let moved = || {
            if !self.stream.is_blocked() {
                self.drained.ring();
            }
        };
        if self.stream.write_loop(moved).await.is_err() {
            self.close();
        }
    }

    /// Reads frames until the peer is gone or must be refused, then tells the handler that the connection is closed.
    pub async fn read_loop(self: Rc<Self>, handler: Rc<impl Handler>) {
        let (mut input, mut pace) = (Input::default(), Pace::default());
        while !self.stream.is_closed() {
            pace.breathe().await;
            match self.read_some(&mut input, &mut pace).await {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
            let refused = self.hand_over(&mut input, &*handler);
            handler.turn_ended();
            if let Err((code, message)) = refused {
                handler.finish_turn();
                self.refuse(code, &message);
                break;
            }
            while self.unsent_bytes() > OUT_BYTES_MAX && !self.stream.is_closed() {
                self.drained.wait().await;
            }
        }
        self.close();
        handler.closed(&self);
    }

    async fn read_some(&self, input: &mut Input, pace: &mut Pace) -> io::Result<usize> {
        let needed = frame::needed(input.filled()).unwrap_or(frame::HEADER_BYTES);
        let count = self.stream.read(input.room(needed), pace).await?;
        input.took(count);
        Ok(count)
    }

    fn hand_over(self: &Rc<Self>, input: &mut Input, handler: &impl Handler) -> Result<(), (Code, String)> {
        let mut at = 0;
        let outcome = loop {
            match frame::parse(&input.filled()[at..]) {
                Ok(Some((frame, used))) => {
                    at += used;
                    if frame.header.version != limits::PROTOCOL_VERSION
                        && frame.header.operation != Operation::Hello.number()
                    {
                        let message = format!(
                            "frame of protocol version {}: this connection speaks {}",
                            frame.header.version,
                            limits::PROTOCOL_VERSION
                        );
                        break Err((Code::UnsupportedVersion, message));
                    }
                    if let Err(refused) = handler.frame(self, frame.header, frame.body) {
                        break Err(refused);
                    }
                }
                Ok(None) => break Ok(()),
                Err(error) => {
                    let code = if matches!(error, frame::FrameError::TooLarge { .. }) {
                        Code::TooLarge
                    } else {
                        Code::Malformed
                    };
                    break Err((code, error.to_string()));
                }
            }
        };
        input.consume(at);
        outcome
    }

    /// Tells the peer why the connection ends.
    pub fn refuse(&self, code: Code, message: &str) {
        let header = Header::request(Operation::Ping, 0, None).response(code);
        let mut frames = FrameBuffer::new();
        frame::encode(&mut frames, header, &Refusal::new(message, None, 0));
        self.push(&mut frames);
        self.flush();
    }
}

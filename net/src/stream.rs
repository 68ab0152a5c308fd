//! A TCP stream that nobody waits for: what the socket does not take now follows when it does.
//!
//! Invariants:
//! - Bytes leave in the order in which they were given, whoever sends them: the caller as long as the socket takes them, the
//!   writing task from then on until nothing waits.
//! - A stream that was closed gives nothing more to the socket, and wakes its tasks.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::Poll;

use futures_lite::{AsyncRead, AsyncWrite};
use glommio::net::TcpStream;
use taskmaster_protocol::FrameBuffer;

use crate::pace::Pace;
use crate::socket::{send_now, send_pieces_now, shutdown};
use crate::wake::Bell;

/// Capacity that an empty queue keeps.
const OUT_BYTES_KEPT: usize = 1 << 20;
/// Sent bytes at the front of the queue beyond which it is moved together.
const SENT_BYTES_KEPT: usize = 4 << 20;

/// A connected or connecting stream, and what waits to be sent.
pub(crate) struct Stream {
    socket: RefCell<TcpStream>,
    /// What waits, from `sent` on.
    out: RefCell<FrameBuffer>,
    sent: Cell<usize>,
    /// The socket takes nothing now; the writing task goes on.
    blocked: Cell<bool>,
    closed: Cell<bool>,
    writable: Bell,
}

impl Stream {
    pub(crate) fn new(socket: TcpStream) -> Self {
        // Without it small frames wait for the other side's acknowledgement; a failure only costs latency.
        let _ = socket.set_nodelay(true);
        Self {
            socket: RefCell::new(socket),
            out: RefCell::default(),
            sent: Cell::new(0),
            blocked: Cell::new(false),
            closed: Cell::new(false),
            writable: Bell::default(),
        }
    }

    /// The socket, for its settings.
    pub(crate) const fn socket(&self) -> &RefCell<TcpStream> {
        &self.socket
    }

    /// Bytes that wait for the other side.
    pub(crate) fn unsent_bytes(&self) -> usize {
        self.out.borrow().len() - self.sent.get()
    }

    /// The socket took less than it was given, and the rest did not follow yet.
    pub(crate) const fn is_blocked(&self) -> bool {
        self.blocked.get()
    }

    pub(crate) const fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// The connection is still being made: everything waits for the writing task.
    pub(crate) fn block(&self) {
        self.blocked.set(true);
    }

    /// Appends to what waits. [`Self::flush`] sends.
    pub(crate) fn queue<T>(&self, append: impl FnOnce(&mut FrameBuffer) -> T) -> T {
        let mut out = self.out.borrow_mut();
        if self.sent.get() > SENT_BYTES_KEPT && self.sent.get() > out.len() / 2 {
            let rest = out.len() - self.sent.get();
            out.copy_within(self.sent.replace(0).., 0);
            out.resize(rest, 0);
        }
        append(&mut out)
    }

    /// Sends these pieces in one go as far as the socket takes them now; the rest waits.
    ///
    /// # Errors
    /// What the socket says; the stream is of no use then.
    pub(crate) fn send(&self, pieces: [&[u8]; 3]) -> io::Result<()> {
        let mut taken = 0;
        if !self.blocked.get() && !self.closed.get() {
            taken = send_pieces_now(&self.socket.borrow(), &pieces.map(IoSlice::new))?;
        }
        if taken < pieces.iter().map(|piece| piece.len()).sum() {
            self.queue(|out| {
                for piece in pieces {
                    let skipped = taken.min(piece.len());
                    taken -= skipped;
                    out.extend_from_slice(&piece[skipped..]);
                }
            });
            self.wait_for_socket();
        }
        Ok(())
    }

    /// Sends what the socket takes now of what waits.
    ///
    /// # Errors
    /// What the socket says; the stream is of no use then.
    pub(crate) fn flush(&self) -> io::Result<()> {
        if self.closed.get() || self.blocked.get() {
            return Ok(());
        }
        let mut out = self.out.borrow_mut();
        while !self.blocked.get() && self.sent.get() < out.len() {
            match send_now(&self.socket.borrow(), &out[self.sent.get()..])? {
                0 => self.wait_for_socket(),
                count => self.sent.set(self.sent.get() + count),
            }
        }
        self.empty(&mut out);
        Ok(())
    }

    fn wait_for_socket(&self) {
        if !self.blocked.replace(true) {
            self.writable.ring();
        }
    }

    /// Begins anew at the front when nothing waits.
    fn empty(&self, out: &mut FrameBuffer) {
        if self.sent.get() == out.len() {
            out.clear();
            self.sent.set(0);
            self.blocked.set(false);
        }
    }

    /// Ends both directions; `false`: it was closed before.
    pub(crate) fn close(&self) -> bool {
        let is_first = !self.closed.replace(true);
        if is_first {
            shutdown(&self.socket.borrow());
            self.writable.ring();
        }
        is_first
    }

    /// Goes on sending whenever the socket was full, and says so after every time that it took something. Ends with the stream.
    pub(crate) async fn write_loop(&self, moved: impl Fn()) -> io::Result<()> {
        while !self.closed.get() {
            self.writable.wait().await;
            while self.blocked.get() && !self.closed.get() {
                self.write_some().await?;
                moved();
            }
        }
        Ok(())
    }

    /// Waits until the socket takes something of what waits.
    ///
    /// # Errors
    /// What the socket says; the stream is of no use then.
    pub(crate) async fn write_some(&self) -> io::Result<()> {
        let count = poll_fn(|context| {
            let out = self.out.borrow();
            let rest = &out[self.sent.get()..];
            if rest.is_empty() || self.closed.get() {
                return Poll::Ready(Ok(0));
            }
            Pin::new(&mut *self.socket.borrow_mut()).poll_write(context, rest)
        })
        .await?;
        self.sent.set(self.sent.get() + count);
        let mut out = self.out.borrow_mut();
        self.empty(&mut out);
        if out.is_empty() && out.capacity() > OUT_BYTES_KEPT {
            *out = FrameBuffer::new();
        }
        Ok(())
    }

    /// Reads what is there, waiting for it; 0 bytes at the end of the stream.
    ///
    /// # Errors
    /// What the socket says; the stream is of no use then.
    pub(crate) async fn read(&self, room: &mut [u8], pace: &mut Pace) -> io::Result<usize> {
        let room_bytes = room.len();
        let count = poll_fn(|context| {
            if self.closed.get() {
                return Poll::Ready(Ok(0));
            }
            Pin::new(&mut *self.socket.borrow_mut()).poll_read(context, room)
        })
        .await?;
        pace.took(count, room_bytes);
        Ok(count)
    }
}

//! Memoised tasks between the engine and Redis: a submission whose result nobody here knows waits, within its bound, for what is
//! remembered there; then it goes to the engine with what was found, if anything was.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::rc::Rc;

use futures_lite::AsyncReadExt;
use glommio::net::UnixStream;
use taskmaster_connect::redis::Value;
use taskmaster_engine::{ConnId, Input, Known, Unknown};
use taskmaster_protocol::FrameBuffer;
use taskmaster_protocol::frame::Header;

use super::ShardLoop;
use crate::memo::{Port, QUESTIONS_MAX};

/// Bytes of submissions that wait for an answer at most; what comes beyond is not asked about.
const WAITING_BYTES_MAX: usize = 64 << 20;
/// Bytes of results taken for one submission at most; rows beyond run.
const RESULTS_BYTES_MAX: usize = 8 << 20;

/// A submission that waits for an answer.
struct Waiting {
    conn: ConnId,
    header: Header,
    body: FrameBuffer,
    unknown: Vec<Unknown>,
}

/// A shard's part in memoising beyond its own memory.
pub(super) struct Memo {
    pub(super) port: Port,
    waiting: RefCell<HashMap<u64, Waiting>>,
    waiting_bytes: Cell<usize>,
    last_question: Cell<u64>,
}

impl Memo {
    pub(super) fn new(port: Port) -> Self {
        Self { port, waiting: RefCell::default(), waiting_bytes: Cell::new(0), last_question: Cell::new(0) }
    }
}

impl ShardLoop {
    /// Starts what takes answers, where there is somebody to ask.
    pub(super) fn start_memo(self: &Rc<Self>, wake: Option<std::os::unix::net::UnixStream>) {
        if let (Some(memo), Some(wake)) = (&self.memo, wake) {
            glommio::spawn_local(Rc::clone(self).memo_task(Rc::clone(memo), wake)).detach();
        }
    }

    /// Whether a request waits for what is remembered outside.
    pub(super) fn waits_for_memo(&self, conn: ConnId, header: &Header, body: &[u8]) -> bool {
        let Some(memo) = self.memo.as_ref().filter(|memo| !memo.port.status.is_away()) else { return false };
        let unknown = self.shard.borrow().unknown_results(header, body);
        let mut waiting = memo.waiting.borrow_mut();
        let waiting_bytes = memo.waiting_bytes.get() + body.len();
        if unknown.is_empty() || waiting.len() >= QUESTIONS_MAX || waiting_bytes > WAITING_BYTES_MAX {
            return false;
        }
        let number = memo.last_question.get() + 1;
        memo.last_question.set(number);
        if !memo.port.ask(number, &unknown) {
            return false;
        }
        let mut copy = FrameBuffer::with_capacity(body.len());
        copy.extend_from_slice(body);
        memo.waiting_bytes.set(waiting_bytes);
        waiting.insert(number, Waiting { conn, header: *header, body: copy, unknown });
        true
    }

    /// Gives what ran here to be remembered.
    pub(super) fn hand_out_made(&self) {
        if let Some(memo) = &self.memo {
            let made = self.shard.borrow_mut().take_made();
            memo.port.keep(made);
        }
    }

    #[expect(unsafe_code, reason = "glommio takes over a socket only by its raw descriptor")]
    async fn memo_task(self: Rc<Self>, memo: Rc<Memo>, wake: std::os::unix::net::UnixStream) {
        // SAFETY: the descriptor was given up by its only owner in this expression.
        let mut wake = unsafe { UnixStream::from_raw_fd(wake.into_raw_fd()) };
        let mut rings = [0u8; 256];
        loop {
            match wake.read(&mut rings).await {
                Ok(0) => return,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(_) => return,
                Ok(_) => {}
            }
            while let Ok((number, values)) = memo.port.answers.try_recv() {
                let waiting = memo.waiting.borrow_mut().remove(&number);
                if let Some(waiting) = waiting {
                    memo.waiting_bytes.set(memo.waiting_bytes.get() - waiting.body.len());
                    self.remembered(&waiting, values);
                }
            }
            self.perform();
        }
    }

    fn remembered(&self, waiting: &Waiting, values: Vec<Option<Value>>) {
        let mut bytes = 0;
        let known = waiting.unknown.iter().zip(values).filter_map(|(unknown, value)| {
            let Value { of, made_us, result } = value?;
            bytes += result.len();
            (bytes <= RESULTS_BYTES_MAX).then(|| Known { row: unknown.row, of: of.into(), made_us, result })
        });
        let known: Vec<Known> = known.collect();
        let (conn, header, body) = (waiting.conn, waiting.header, &waiting.body[..]);
        if known.is_empty() {
            self.input(Input::Frame { conn, header, body });
        } else {
            self.input(Input::Known { conn, header, body, known: &known });
        }
    }
}

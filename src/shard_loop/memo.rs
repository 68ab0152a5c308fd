//! Memoised tasks between the engine and Redis: a submission whose result nobody here knows waits, within its bound, for what is
//! remembered there; then it goes to the engine with what was found, if anything was.
//!
//! Invariant: no submission waits for longer than [`OVERDUE`] and a [`LOOK_PAUSE`], whatever becomes of the thread that asks.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use taskmaster_connect::redis::Value;
use taskmaster_engine::{ConnId, Input, Known, Unknown};
use taskmaster_protocol::FrameBuffer;
use taskmaster_protocol::frame::Header;

use super::ShardLoop;
use super::wake::Wake;
use crate::memo::{Port, QUESTIONS_MAX};

/// Bytes of submissions that wait for an answer at most; what comes beyond is not asked about.
const WAITING_BYTES_MAX: usize = 64 << 20;
/// Bytes of results taken for one submission at most; rows beyond run.
const RESULTS_BYTES_MAX: usize = 8 << 20;
/// How long an answer may be away: longer than `redis.timeout` can be, within which the thread answers as long as it runs at all.
const OVERDUE: Duration = Duration::from_secs(2);
/// How often it is looked for submissions that wait longer.
const LOOK_PAUSE: Duration = Duration::from_secs(1);

/// A submission that waits for an answer.
struct Waiting {
    conn: ConnId,
    header: Header,
    body: FrameBuffer,
    unknown: Vec<Unknown>,
    since: Instant,
}

/// Submissions that wait, by question.
#[derive(Default)]
struct Waiters {
    waiting: BTreeMap<u64, Waiting>,
    bytes: usize,
    last_question: u64,
    /// An answer was overdue, and none has come since: nobody asks.
    is_stalled: bool,
}

impl Waiters {
    fn has_room(&self, bytes: usize) -> bool {
        !self.is_stalled && self.waiting.len() < QUESTIONS_MAX && self.bytes + bytes <= WAITING_BYTES_MAX
    }

    /// The number of the next question.
    fn next_question(&mut self) -> u64 {
        self.last_question += 1;
        self.last_question
    }

    fn insert(&mut self, question: u64, waiting: Waiting) {
        self.bytes += waiting.body.len();
        self.waiting.insert(question, waiting);
    }

    fn remove(&mut self, question: u64) -> Option<Waiting> {
        let waiting = self.waiting.remove(&question)?;
        self.bytes -= waiting.body.len();
        Some(waiting)
    }

    /// What the answer to a question was waited for by, if it still is.
    fn answered(&mut self, question: u64) -> Option<Waiting> {
        self.is_stalled = false;
        self.remove(question)
    }

    /// Those that have waited since then or longer. They wait no more.
    fn overdue(&mut self, since: Instant) -> Vec<Waiting> {
        // Who asked earlier has the smaller number.
        let late = self.waiting.iter().take_while(|(_, waiting)| waiting.since <= since);
        let late: Vec<u64> = late.map(|(question, _)| *question).collect();
        self.is_stalled |= !late.is_empty();
        late.into_iter().filter_map(|question| self.remove(question)).collect()
    }
}

/// A shard's part in memoising beyond its own memory.
pub(super) struct Memo {
    pub(super) port: Port,
    waiters: RefCell<Waiters>,
    /// The thread is gone.
    is_over: Cell<bool>,
}

impl Memo {
    pub(super) fn new(port: Port) -> Self {
        Self { port, waiters: RefCell::default(), is_over: Cell::new(false) }
    }
}

impl ShardLoop {
    /// Starts what takes answers, where there is somebody to ask.
    pub(super) fn start_memo(self: &Rc<Self>, wake: Option<std::os::unix::net::UnixStream>) {
        if let (Some(memo), Some(wake)) = (&self.memo, wake) {
            glommio::spawn_local(Rc::clone(self).memo_task(Rc::clone(memo), wake)).detach();
            glommio::spawn_local(Rc::clone(self).overdue_task(Rc::clone(memo))).detach();
        }
    }

    /// Whether a request waits for what is remembered outside.
    pub(super) fn waits_for_memo(&self, conn: ConnId, header: &Header, body: &[u8]) -> bool {
        let Some(memo) = self.memo.as_ref().filter(|memo| !memo.port.status.is_away()) else { return false };
        let mut waiters = memo.waiters.borrow_mut();
        // Looked at first, because the rest costs a hash of each row.
        if memo.is_over.get() || !waiters.has_room(body.len()) {
            return false;
        }
        let unknown = self.shard.borrow().unknown_results(header, body);
        if unknown.is_empty() {
            return false;
        }
        let question = waiters.next_question();
        if !memo.port.ask(question, &unknown) {
            return false;
        }
        let mut copy = FrameBuffer::with_capacity(body.len());
        copy.extend_from_slice(body);
        waiters.insert(question, Waiting { conn, header: *header, body: copy, unknown, since: Instant::now() });
        true
    }

    /// Gives what ran here to be remembered.
    pub(super) fn hand_out_made(&self) {
        if let Some(memo) = &self.memo {
            let made = self.shard.borrow_mut().take_made();
            memo.port.keep(made);
        }
    }

    async fn memo_task(self: Rc<Self>, memo: Rc<Memo>, wake: std::os::unix::net::UnixStream) {
        let mut wake = Wake::new(wake);
        while wake.rung().await {
            while let Ok((question, values)) = memo.port.answers.try_recv() {
                let waiting = memo.waiters.borrow_mut().answered(question);
                if let Some(waiting) = waiting {
                    self.remembered(&waiting, values);
                }
            }
            self.perform();
        }
        memo.is_over.set(true);
        self.wait_no_more(&memo, Instant::now());
    }

    /// Sees to it that nobody waits for ever, also when the thread that asks stands still.
    async fn overdue_task(self: Rc<Self>, memo: Rc<Memo>) {
        while !memo.is_over.get() {
            glommio::timer::sleep(LOOK_PAUSE).await;
            if let Some(since) = Instant::now().checked_sub(OVERDUE) {
                self.wait_no_more(&memo, since);
            }
        }
    }

    /// Submissions that have waited since then or longer go on with nothing.
    fn wait_no_more(&self, memo: &Memo, since: Instant) {
        let overdue = memo.waiters.borrow_mut().overdue(since);
        if overdue.is_empty() {
            return;
        }
        tracing::warn!("{} submissions went on without an answer of the thread for Redis", overdue.len());
        for waiting in overdue {
            self.remembered(&waiting, Vec::new());
        }
        self.perform();
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

#[cfg(test)]
mod tests {
    use taskmaster_protocol::Operation;

    use super::*;

    fn waiting(conn: u64, since: Instant) -> Waiting {
        let mut body = FrameBuffer::with_capacity(8);
        body.extend_from_slice(&[0; 8]);
        let header = Header::request(Operation::Submit, 0, None);
        Waiting { conn: ConnId(conn), header, body, unknown: Vec::new(), since }
    }

    #[test]
    fn who_waits_too_long_goes_on_and_nobody_asks_until_an_answer_comes() {
        let (begun, mut waiters) = (Instant::now(), Waiters::default());
        for second in 0..4 {
            let question = waiters.next_question();
            waiters.insert(question, waiting(second, begun + Duration::from_secs(second)));
        }
        assert!(waiters.has_room(0) && waiters.answered(1).is_some());
        let overdue = waiters.overdue(begun + Duration::from_secs(2));
        assert_eq!(overdue.iter().map(|waiting| waiting.conn.0).collect::<Vec<_>>(), [1, 2]);
        assert!(!waiters.has_room(0) && waiters.bytes == 8);
        assert!(waiters.answered(2).is_none() && waiters.has_room(0));
        assert!(waiters.answered(4).is_some() && waiters.bytes == 0);
        assert!(waiters.overdue(begun + LOOK_PAUSE).is_empty() && waiters.has_room(WAITING_BYTES_MAX));
        assert!(!waiters.has_room(WAITING_BYTES_MAX + 1));
    }
}

//! What the engine wants done: frames to send. (What it wants logged is handed over by [`crate::Shard::end_turn`].)

use std::collections::BTreeMap;
use std::sync::Arc;

use hashbrown::HashMap;
use taskmaster_protocol::body::{Refusal, TaskPage};
use taskmaster_protocol::frame::{self, Header};
use taskmaster_protocol::{Body, Code, FrameBuffer, TaskId};

use crate::cluster::map::ClusterMap;
use crate::hash::FixedState;
use crate::peer::PeerAddr;
use crate::query::listing::StoredPage;

/// A connection, as named by the loop that drives the engine. The engine only compares it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

/// Frames for one connection, in order.
#[derive(Debug)]
pub struct Outgoing {
    /// The connection.
    pub conn: ConnId,
    /// Whole frames.
    pub frames: FrameBuffer,
}

/// Collects what one or more calls of [`crate::Shard::handle`] ask for. The loop drains it.
#[derive(Debug, Default)]
pub struct Effects {
    outgoing: Vec<Outgoing>,
    by_conn: HashMap<ConnId, usize, FixedState>,
    spare: Vec<FrameBuffer>,
    peers: BTreeMap<PeerAddr, FrameBuffer>,
    map: Option<Arc<ClusterMap>>,
    questions: Vec<Question>,
}

/// A request about what may not be here any more: the store outside may know it. It is answered with a `TaskPage`, or refused.
#[derive(Clone, Debug)]
pub struct Question {
    /// Who asks.
    pub conn: ConnId,
    /// The request.
    pub header: Header,
    /// What it is about.
    pub about: About,
}

/// What a question is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum About {
    /// A task: the page has it alone; refused as `unknown_task` if nobody knows it.
    Task(TaskId),
    /// A listing.
    Tasks(StoredPage),
}

/// Emptied buffers kept for reuse, and the largest capacity worth keeping, in bytes.
const SPARE_MAX: usize = 256;
const SPARE_BYTES_MAX: usize = 1 << 20;

impl Effects {
    /// The buffer that collects frames for `conn`.
    pub fn buffer(&mut self, conn: ConnId) -> &mut FrameBuffer {
        let (outgoing, spare) = (&mut self.outgoing, &mut self.spare);
        let index = *self.by_conn.entry(conn).or_insert_with(|| {
            outgoing.push(Outgoing { conn, frames: spare.pop().unwrap_or_default() });
            outgoing.len() - 1
        });
        &mut outgoing[index].frames
    }

    /// The buffer that collects messages for a peer, another shard of this node among them.
    pub(crate) fn peer(&mut self, to: PeerAddr) -> &mut FrameBuffer {
        self.peers.entry(to).or_insert_with(|| self.spare.pop().unwrap_or_default())
    }

    /// Hands every peer's messages to `send`, which may keep the buffer or swap another into its place. The loop delivers
    /// those for another shard of this node over the mesh.
    pub fn drain_peers(&mut self, mut send: impl FnMut(PeerAddr, &mut FrameBuffer)) {
        while let Some((to, mut messages)) = self.peers.pop_first() {
            if !messages.is_empty() {
                send(to, &mut messages);
            }
            if self.spare.len() < SPARE_MAX && messages.capacity() <= SPARE_BYTES_MAX {
                messages.clear();
                self.spare.push(messages);
            }
        }
    }

    pub(crate) fn map_changed(&mut self, map: Arc<ClusterMap>) {
        self.map = Some(map);
    }

    /// The cluster map if it changed: shard 0's loop gives it to the node's other shards.
    pub fn take_map(&mut self) -> Option<Arc<ClusterMap>> {
        self.map.take()
    }

    /// Asks the store outside.
    pub(crate) fn ask(&mut self, question: Question) {
        self.questions.push(question);
    }

    /// What is to be asked of the store outside.
    pub fn take_questions(&mut self) -> Vec<Question> {
        core::mem::take(&mut self.questions)
    }

    /// Answers a question, or says why not.
    pub fn answer(&mut self, question: &Question, answer: Result<&TaskPage, &crate::Refused>) {
        match answer {
            Ok(page) => self.reply(question.conn, &question.header, page),
            Err(refused) => self.refuse(question.conn, &question.header, refused),
        }
    }

    pub(crate) fn reply<B: Body>(&mut self, conn: ConnId, request: &Header, body: &B) {
        frame::encode(self.buffer(conn), request.response(Code::Ok), body);
    }

    pub(crate) fn refuse(&mut self, conn: ConnId, request: &Header, refusal: &crate::Refused) {
        let body = Refusal::new(&refusal.message, refusal.row, refusal.retry_after_ms);
        frame::encode(self.buffer(conn), request.response(refusal.code), &body);
    }

    /// Hands every collected buffer to `send`, which may keep it or swap another into its place.
    pub fn drain(&mut self, mut send: impl FnMut(ConnId, &mut FrameBuffer)) {
        self.by_conn.clear();
        for mut outgoing in self.outgoing.drain(..) {
            send(outgoing.conn, &mut outgoing.frames);
            if self.spare.len() < SPARE_MAX && outgoing.frames.capacity() <= SPARE_BYTES_MAX {
                outgoing.frames.clear();
                self.spare.push(outgoing.frames);
            }
        }
    }

    /// Whether no frames are waiting to be drained.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.outgoing.is_empty()
    }
}

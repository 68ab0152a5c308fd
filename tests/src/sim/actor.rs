//! What producers, workers and readers are to the world: participants that have connections and are woken.

use std::collections::{BTreeMap, BTreeSet};

use taskmaster_protocol::frame::{self, Header};
use taskmaster_protocol::{Body, FrameBuffer};

use super::dice::Dice;
use super::oracle::Oracle;

/// A shard at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Target {
    pub(crate) place: u16,
    pub(crate) shard: u16,
}

/// What an actor may do and see when it is called.
pub(crate) struct Cx<'a> {
    /// The actor's own clock, which is right.
    pub(crate) now_us: u64,
    pub(crate) dice: &'a mut Dice,
    pub(crate) oracle: &'a mut Oracle,
    /// Faults are over: behave.
    pub(crate) calm: bool,
    /// Workers may misbehave.
    pub(crate) unruly: bool,
    /// Workers save states.
    pub(crate) saves: bool,
    /// All producers are done.
    pub(crate) produced: bool,
    /// Connections that are there.
    pub(crate) open: &'a BTreeSet<Target>,
    /// Frames to send.
    pub(crate) outgoing: BTreeMap<Target, FrameBuffer>,
    pub(crate) opens: BTreeSet<Target>,
    pub(crate) closes: BTreeSet<Target>,
}

impl Cx<'_> {
    pub(crate) fn is_open(&self, target: Target) -> bool {
        self.open.contains(&target)
    }

    /// Sends a frame on a connection that is there.
    pub(crate) fn send(&mut self, target: Target, header: Header, body: &impl Body) {
        frame::encode(self.outgoing.entry(target).or_default(), header, body);
    }
}

/// A participant.
pub(crate) trait Actor {
    /// A connection is there.
    fn opened(&mut self, target: Target, cx: &mut Cx<'_>);
    /// A frame has come.
    fn frame(&mut self, target: Target, header: Header, body: &[u8], cx: &mut Cx<'_>);
    /// A connection is gone, or could not be made.
    fn lost(&mut self, target: Target, cx: &mut Cx<'_>);
    /// Time has passed.
    fn wake(&mut self, cx: &mut Cx<'_>);
    /// When it has something to do next.
    fn next_wake_us(&self) -> u64;
    /// Nothing is left to do.
    fn is_done(&self) -> bool;
}

//! What producers and workers have in common: one connection at a time, requests that are repeated until answered.

use std::collections::BTreeMap;

use taskmaster_protocol::frame::{self, FLAG_RESEND, Header};
use taskmaster_protocol::{Body, FrameBuffer, Operation, PartitionId};

use super::dice::Dice;
use super::oracle::Oracle;

/// What an actor may do and see when it is called.
pub(crate) struct Cx<'a> {
    /// The actor's own clock, which is right.
    pub(crate) now_us: u64,
    pub(crate) dice: &'a mut Dice,
    pub(crate) oracle: &'a mut Oracle,
    /// Faults are over: behave.
    pub(crate) calm: bool,
    pub(crate) connected: bool,
    pub(crate) outgoing: FrameBuffer,
    pub(crate) open: bool,
    pub(crate) close: bool,
}

/// A participant.
pub(crate) trait Actor {
    /// A connection is there.
    fn opened(&mut self, cx: &mut Cx<'_>);
    /// A frame has come.
    fn frame(&mut self, header: Header, body: &[u8], cx: &mut Cx<'_>);
    /// The connection is gone, or could not be made.
    fn lost(&mut self, cx: &mut Cx<'_>);
    /// Time has passed.
    fn wake(&mut self, cx: &mut Cx<'_>);
    /// When it has something to do next while connected.
    fn next_wake_us(&self) -> u64;
    /// When it tries to connect next while not connected.
    fn reconnect_us(&self) -> u64;
    /// Nothing is left to do.
    fn is_done(&self) -> bool;
}

/// A request under way.
pub(crate) struct Request {
    pub(crate) operation: Operation,
    pub(crate) partition: PartitionId,
    pub(crate) body: FrameBuffer,
    /// It was sent at least once.
    sent: bool,
    /// When to send it again.
    pub(crate) again_us: u64,
    correlation: Option<u64>,
}

/// Requests that are repeated until they are answered.
#[derive(Default)]
pub(crate) struct Outbox {
    last: u64,
    pub(crate) requests: BTreeMap<u64, Request>,
    numbers: BTreeMap<u64, u64>,
}

/// How long an answer may take before the request is repeated.
const PATIENCE_US: u64 = 3_000_000;

impl Outbox {
    pub(crate) fn push(
        &mut self,
        operation: Operation,
        partition: PartitionId,
        body: &impl Body,
        cx: &mut Cx<'_>,
    ) -> u64 {
        let mut bytes = FrameBuffer::new();
        body.append_to(&mut bytes);
        self.last += 1;
        let number = self.last;
        let request = Request { operation, partition, body: bytes, sent: false, again_us: 0, correlation: None };
        self.requests.insert(number, request);
        if cx.connected {
            self.send(number, cx);
        }
        number
    }

    fn send(&mut self, number: u64, cx: &mut Cx<'_>) {
        self.last += 1;
        let correlation = self.last;
        let request = self.requests.get_mut(&number).expect("a request under way");
        let mut header = Header::request(request.operation, correlation, Some(request.partition));
        if request.sent {
            header.flags |= FLAG_RESEND;
        }
        request.sent = true;
        request.again_us = cx.now_us + PATIENCE_US;
        if let Some(old) = request.correlation.replace(correlation) {
            self.numbers.remove(&old);
        }
        self.numbers.insert(correlation, number);
        frame::encode_raw(&mut cx.outgoing, header, &request.body);
    }

    /// Sends everything again on a new connection.
    pub(crate) fn resend_all(&mut self, cx: &mut Cx<'_>) {
        let numbers: Vec<u64> = self.requests.keys().copied().collect();
        numbers.into_iter().for_each(|number| self.send(number, cx));
    }

    /// Sends again what is due.
    pub(crate) fn resend_due(&mut self, cx: &mut Cx<'_>) {
        let due = self.requests.iter().filter(|(_, request)| request.again_us <= cx.now_us);
        let numbers: Vec<u64> = due.map(|(number, _)| *number).collect();
        if cx.connected {
            numbers.into_iter().for_each(|number| self.send(number, cx));
        }
    }

    /// The number of the request that a response answers.
    pub(crate) fn number_of(&self, correlation: u64) -> Option<u64> {
        self.numbers.get(&correlation).copied()
    }

    pub(crate) fn done(&mut self, number: u64) {
        if let Some(request) = self.requests.remove(&number)
            && let Some(correlation) = request.correlation
        {
            self.numbers.remove(&correlation);
        }
    }

    /// The request was refused for now.
    pub(crate) fn postpone(&mut self, number: u64, until_us: u64) {
        if let Some(request) = self.requests.get_mut(&number) {
            request.again_us = until_us;
        }
    }

    pub(crate) fn next_us(&self) -> u64 {
        self.requests.values().map(|request| request.again_us).min().unwrap_or(u64::MAX)
    }
}

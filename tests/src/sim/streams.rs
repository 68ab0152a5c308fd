//! Readers of streams, several of each source, as in the middle of a rebalance: each sends what it believes is next, some of it late,
//! some of it again, some ahead of what it was told.

use std::collections::BTreeMap;

use taskmaster_protocol::body::{
    self, ArchivedStreamPage, ArchivedStreamReply, ListStreams, Spec, StreamRow, Submit, SubmitStream, TaskRow,
};
use taskmaster_protocol::frame::Header;
use taskmaster_protocol::stream::partition_of;
use taskmaster_protocol::{Code, Operation, PartitionId, TaskId, access};

use super::actor::{Actor, Cx, Target};
use super::client::Client;
use super::oracle::Contract;
use super::world::START_US;

/// Sources of a run, and readers of each.
pub(crate) const SOURCES: u32 = 2;
pub(crate) const READERS: u32 = 2;
/// Offsets of a source.
pub(crate) const END: u64 = 240;
/// Requests under way at once.
const REQUESTS_MAX: usize = 3;
/// Retention that no run outlasts.
const LONG_MS: u32 = 86_400_000;
const STREAM: &str = "sim";
const TOPIC: &str = "topic";

/// Whether a message is there: some offsets are gaps.
pub(crate) const fn is_there(offset: u64) -> bool {
    offset % 5 != 3
}

/// One reader of one source.
pub(crate) struct StreamReader {
    number: u32,
    source: u32,
    partition: PartitionId,
    client: Client,
    /// Where it believes the source to stand.
    position: u64,
    /// Behind what it sent.
    ahead: u64,
    /// The end of each piece under way; 0: a question.
    asked: BTreeMap<u64, u64>,
    sequence: u32,
    next_us: u64,
    is_over: bool,
}

impl StreamReader {
    pub(crate) fn new(number: u32, partitions: u16, client: Client) -> Self {
        let source = number % SOURCES;
        Self {
            number,
            source,
            partition: partition_of(STREAM, TOPIC, source, partitions),
            client,
            position: 0,
            ahead: 0,
            asked: BTreeMap::new(),
            sequence: 0,
            next_us: 0,
            is_over: false,
        }
    }

    fn ask(&mut self) {
        let number = self.client.push(Operation::ListStreams, self.partition, &ListStreams::default());
        self.asked.insert(number, 0);
    }

    fn send(&mut self, from: u64, cx: &mut Cx<'_>) {
        let to = (from + cx.dice.range(1, 16)).min(END);
        let mut submit = Submit::default();
        let spec = Spec {
            queue: body::put(&mut submit.bytes, b"q0"),
            kind: body::put(&mut submit.bytes, b"work"),
            lease_ms: 300,
            attempts_max: 3,
            retention_ms: LONG_MS,
            ..Spec::default()
        };
        submit.specs.push(spec);
        for offset in (from..to).filter(|&offset| is_there(offset)) {
            self.sequence += 1;
            let random = u64::from(1_000 + self.number);
            let id = TaskId::new((START_US + cx.now_us) / 1_000, self.partition, random, self.sequence);
            let payload = body::put(&mut submit.bytes, &offset.to_le_bytes());
            submit.tasks.push(TaskRow { id, spec: 0, extra: 0, payload });
            cx.oracle.register(id, Contract { attempts_max: 3, lease_us: 300_000, ..Contract::default() });
            cx.oracle.streams.register(id, self.source, offset);
        }
        let (stream, topic) =
            (body::put(&mut submit.bytes, STREAM.as_bytes()), body::put(&mut submit.bytes, TOPIC.as_bytes()));
        let piece = StreamRow { from, to, stream, topic, number: self.source, reserved: 0 };
        let body = SubmitStream { piece, batch: submit };
        let number = self.client.push(Operation::SubmitStream, self.partition, &body);
        self.asked.insert(number, to);
        self.ahead = to;
    }

    fn act(&mut self, cx: &mut Cx<'_>) {
        self.next_us = cx.now_us + cx.dice.range(500, if cx.calm { 20_000 } else { 150_000 });
        let room = if cx.calm { 1 } else { REQUESTS_MAX };
        if self.client.len() >= room {
            return;
        }
        let unruly = !cx.calm && cx.unruly;
        let from = match cx.dice.below(10) {
            0 if unruly => cx.dice.range(0, self.position),
            1 if unruly => (self.position + cx.dice.range(1, 5)).min(END),
            2..=4 if unruly => self.ahead.max(self.position),
            _ => self.position,
        };
        if from >= END || cx.dice.chance(10) {
            self.ask();
        } else {
            self.send(from, cx);
        }
    }

    fn heard(&mut self, to: u64, position: u64, cx: &mut Cx<'_>) {
        if position > self.position || cx.dice.chance(10) {
            self.position = position;
        }
        if position != to {
            self.ahead = self.position;
        }
    }
}

impl Actor for StreamReader {
    fn opened(&mut self, target: Target, cx: &mut Cx<'_>) {
        self.client.opened(target, cx);
    }

    fn frame(&mut self, _target: Target, header: Header, body: &[u8], cx: &mut Cx<'_>) {
        let Some(number) = self.client.answered(&header, body, cx) else { return };
        match Code::from_number(header.code) {
            Code::Overloaded | Code::DiskFull | Code::ShuttingDown => {
                let until_us = cx.now_us + cx.dice.range(50_000, 500_000);
                self.client.postpone(number, until_us);
            }
            Code::Ok => {
                self.client.done(number);
                let to = self.asked.remove(&number).unwrap_or(0);
                let position = if header.operation == Operation::ListStreams.number() {
                    let page = access::<ArchivedStreamPage>(body).expect("nodes answer in their layout");
                    let row = page.rows.iter().find(|row| row.number.to_native() == self.source);
                    row.map_or(0, |row| row.position.to_native())
                } else {
                    access::<ArchivedStreamReply>(body).expect("nodes answer in their layout").position.to_native()
                };
                self.heard(to, position, cx);
            }
            _ => {
                self.client.done(number);
                self.asked.remove(&number);
            }
        }
    }

    fn lost(&mut self, target: Target, cx: &mut Cx<'_>) {
        self.client.lost(target, cx);
    }

    fn wake(&mut self, cx: &mut Cx<'_>) {
        self.is_over = cx.calm && self.position == END && self.client.len() == 0;
        if !self.is_over && cx.now_us >= self.next_us {
            self.act(cx);
        } else if self.is_over {
            self.next_us = u64::MAX;
        }
        self.client.pump(cx);
    }

    fn next_wake_us(&self) -> u64 {
        self.next_us.min(self.client.next_us())
    }

    fn is_done(&self) -> bool {
        self.is_over
    }
}

//! Workers: most complete what they get, some late, twice, never, or under a lease that is over.

use std::collections::BTreeMap;

use taskmaster_protocol::body::{
    self, ArchivedAssign, ArchivedStateReply, Complete, CompleteRow, Credit, Fail, FailRow, LeaseRow, Leases, SaveRow,
    SaveState, Segment, Span, Subscribe,
};
use taskmaster_protocol::frame::Header;
use taskmaster_protocol::state::{address_of, digest_of};
use taskmaster_protocol::{Code, Operation, PartitionId, TaskId, access};

use super::actor::{Actor, Cx, Target};
use super::client::Client;
use super::workload::QUEUES;

/// How often a worker looks for nodes it has no subscription at.
const LOOK_US: u64 = 500_000;

/// What a worker is about to do with a lease.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Act {
    Complete,
    Fail,
    FailForGood,
    Release,
    Extend,
    Save,
}

struct Planned {
    at_us: u64,
    act: Act,
    row: LeaseRow,
    /// The subscription whose credit it holds.
    target: Target,
}

/// One worker process. It subscribes at every shard of every node.
pub(crate) struct Worker {
    number: u64,
    client: Client,
    planned: Vec<Planned>,
    credit_max: u32,
    /// Leases held per subscription.
    held: BTreeMap<Target, u32>,
    look_us: u64,
    /// By token: the version to save on top of, and its chunks if they are known.
    chains: BTreeMap<u64, Chain>,
    /// Saves under way: by request, the token and the chunks of each row.
    saving: BTreeMap<u64, Vec<Saving>>,
}

/// The token of an attempt, and the chunks of the state that it saves.
type Saving = (u64, Vec<Vec<u8>>);

/// The states that an attempt saves.
#[derive(Clone, Debug, Default)]
struct Chain {
    version: u32,
    chunks: Vec<Vec<u8>>,
    made: u64,
}

impl Worker {
    pub(crate) fn new(number: u64, credit_max: u32, client: Client) -> Self {
        Self {
            number,
            client,
            planned: Vec::new(),
            credit_max,
            held: BTreeMap::new(),
            look_us: 0,
            chains: BTreeMap::new(),
            saving: BTreeMap::new(),
        }
    }

    fn plan(&mut self, target: Target, row: LeaseRow, lease_us: u64, cx: &mut Cx<'_>) {
        let work_us = if cx.dice.chance(80) { cx.dice.range(50, 20_000) } else { cx.dice.range(20_000, 200_000) };
        let soon_us = cx.now_us + work_us;
        let late_us = cx.now_us + lease_us + cx.dice.range(0, lease_us);
        let mut add = |act, at_us| self.planned.push(Planned { at_us, act, row, target });
        if cx.saves && cx.dice.chance(50) {
            for _ in 0..cx.dice.range(1, 4) {
                add(Act::Save, if cx.calm { cx.now_us } else { cx.now_us + cx.dice.range(0, 2 * work_us) });
            }
        }
        if cx.calm {
            add(Act::Complete, cx.now_us + 100);
            return;
        }
        if !cx.unruly {
            add(Act::Complete, soon_us);
            return;
        }
        match cx.dice.below(100) {
            0..=69 => add(Act::Complete, soon_us),
            70..=77 => add(Act::Fail, soon_us),
            78..=79 => add(Act::FailForGood, soon_us),
            80..=83 => {}
            84..=87 => add(Act::Complete, late_us),
            88..=91 => {
                add(Act::Complete, soon_us);
                add(if cx.dice.chance(50) { Act::Complete } else { Act::Fail }, soon_us + cx.dice.range(0, 3_000));
            }
            92..=94 => add(Act::Release, soon_us),
            _ => {
                let mut at_us = cx.now_us;
                for _ in 0..cx.dice.range(1, 5) {
                    at_us += lease_us / 3;
                    add(Act::Extend, at_us);
                }
                add(Act::Complete, at_us + work_us.min(lease_us / 2));
            }
        }
    }

    /// Carries out what is due, rows of one kind and partition in one frame or one by one.
    fn act(&mut self, cx: &mut Cx<'_>) {
        let mut due: Vec<Planned> = Vec::new();
        let mut index = 0;
        while index < self.planned.len() {
            if self.planned[index].at_us <= cx.now_us {
                due.push(self.planned.swap_remove(index));
            } else {
                index += 1;
            }
        }
        let single = cx.dice.chance(30);
        while !due.is_empty() {
            let (act, partition, target) = (due[0].act, due[0].row.id.partition(), due[0].target);
            let mut rows = Vec::new();
            due.retain(|planned| {
                let is_alike =
                    planned.act == act && planned.row.id.partition() == partition && planned.target == target;
                let joins = is_alike && (rows.is_empty() || !single);
                if joins {
                    rows.push(planned.row);
                }
                !joins
            });
            self.send(act, target, partition, &rows, cx);
        }
    }

    fn send(&mut self, act: Act, target: Target, partition: PartitionId, rows: &[LeaseRow], cx: &mut Cx<'_>) {
        match act {
            Act::Complete => {
                let mut complete = Complete::default();
                for row in rows {
                    let result = body::put(&mut complete.bytes, &result_of(row));
                    let (id, token, locator, attempt) = (row.id, row.token, row.locator, row.attempt);
                    complete.rows.push(CompleteRow { id, token, locator, attempt, result });
                }
                self.client.push(Operation::Complete, partition, &complete);
            }
            Act::Fail | Act::FailForGood => {
                let mut fail = Fail::default();
                for row in rows {
                    fail.rows.push(FailRow {
                        id: row.id,
                        token: row.token,
                        locator: row.locator,
                        attempt: row.attempt,
                        code: body::put(&mut fail.bytes, b"broken"),
                        message: body::put(&mut fail.bytes, b"it broke"),
                        is_final: (act == Act::FailForGood).into(),
                        ..FailRow::default()
                    });
                }
                self.client.push(Operation::Fail, partition, &fail);
            }
            Act::Save => {
                self.save(partition, rows, cx);
                return;
            }
            Act::Release => {
                self.client.push(Operation::Release, partition, &Leases { rows: rows.to_vec() });
            }
            Act::Extend => {
                self.client.push(Operation::Extend, partition, &Leases { rows: rows.to_vec() });
                return;
            }
        }
        let Some(held) = self.held.get_mut(&target) else { return };
        let ended = u32::try_from(rows.len()).expect("few").min(*held);
        *held -= ended;
        if cx.is_open(target) && ended > 0 {
            cx.send(target, Header::request(Operation::Credit, 0, None), &Credit { credit: ended });
        }
    }

    /// Saves a state for each lease: a run of the chunks saved before where they are known, and a new one.
    fn save(&mut self, partition: PartitionId, rows: &[LeaseRow], cx: &mut Cx<'_>) {
        let (mut body, mut saving) = (SaveState::default(), Vec::new());
        for row in rows {
            let chain = self.chains.entry(row.token).or_default();
            chain.made += 1;
            let fresh = [row.id.lo, row.token, chain.made].map(u64::to_le_bytes).concat();
            let at = u32::try_from(body.segments.len()).expect("few");
            let mut chunks = Vec::new();
            if chain.chunks.is_empty() {
                // All attempts of a task begin with the same chunk.
                chunks.push(row.id.lo.to_le_bytes().repeat(3));
                body.segments.push(Segment { data: body::put(&mut body.bytes, &chunks[0]), ..Segment::default() });
            } else {
                let count = cx.dice.range(1, chain.chunks.len() as u64);
                let count = u32::try_from(count).expect("few").min(4);
                chunks.extend_from_slice(&chain.chunks[..count as usize]);
                body.segments.push(Segment { from: 0, count, data: Span::default() });
            }
            body.segments.push(Segment { data: body::put(&mut body.bytes, &fresh), ..Segment::default() });
            chunks.push(fresh);
            let addresses: Vec<_> = chunks.iter().map(|chunk| address_of(chunk)).collect();
            let digest = digest_of(&addresses);
            cx.oracle.register_state(digest, chunks.concat());
            body.rows.push(SaveRow {
                id: row.id,
                token: row.token,
                locator: row.locator,
                attempt: row.attempt,
                parent: chain.version,
                digest,
                segments: Span { at, len: 2 },
                ..SaveRow::default()
            });
            saving.push((row.token, chunks));
        }
        let number = self.client.push(Operation::SaveState, partition, &body);
        self.saving.insert(number, saving);
    }

    /// Goes on from what was saved.
    fn saved(&mut self, number: u64, code: u16, body: &[u8]) {
        let Some(saving) = self.saving.remove(&number).filter(|_| code == Code::Ok.number()) else { return };
        let reply = access::<ArchivedStateReply>(body).expect("the oracle has read it");
        for ((token, chunks), version) in saving.into_iter().zip(reply.versions.iter()) {
            if let Some(chain) = self.chains.get_mut(&token).filter(|_| version.to_native() > 0) {
                (chain.version, chain.chunks) = (version.to_native(), chunks);
            }
        }
    }

    /// Connects to what it knows of and has no connection to.
    fn look(&mut self, cx: &mut Cx<'_>) {
        if self.look_us > cx.now_us {
            return;
        }
        self.look_us = cx.now_us + LOOK_US;
        self.client.ask(cx);
        for target in self.client.targets.clone() {
            self.client.open(target, cx);
        }
    }
}

/// The result that an attempt sends, different for every lease.
fn result_of(row: &LeaseRow) -> Vec<u8> {
    [row.id.lo.to_le_bytes(), row.token.to_le_bytes()].concat()
}

impl Actor for Worker {
    fn opened(&mut self, target: Target, cx: &mut Cx<'_>) {
        let mut subscribe = Subscribe { credit: self.credit_max, ..Subscribe::default() };
        for queue in 0..QUEUES {
            subscribe.queues.push(body::put(&mut subscribe.bytes, format!("q{queue}").as_bytes()));
        }
        // Every second one counts what it has.
        subscribe.cpu_milli = if self.number.is_multiple_of(2) { 4_000 } else { 0 };
        subscribe.worker = body::put(&mut subscribe.bytes, format!("worker {}", self.number).as_bytes());
        self.held.insert(target, 0);
        cx.send(target, Header::request(Operation::Subscribe, 0, None), &subscribe);
        self.client.opened(target, cx);
    }

    fn frame(&mut self, target: Target, header: Header, body: &[u8], cx: &mut Cx<'_>) {
        if header.operation == Operation::Assign.number() {
            let assign = access::<ArchivedAssign>(body).expect("the oracle has read it");
            for row in assign.rows.iter() {
                let lease_us = u64::from(assign.specs[row.spec.to_native() as usize].lease_ms.to_native()) * 1_000;
                let version = row.version.to_native();
                let row = LeaseRow {
                    id: TaskId::from(&row.id),
                    token: row.token.to_native(),
                    locator: row.locator.to_native(),
                    attempt: row.attempt.to_native(),
                };
                *self.held.entry(target).or_default() += 1;
                if cx.saves {
                    self.chains.insert(row.token, Chain { version, ..Chain::default() });
                }
                self.plan(target, row, lease_us, cx);
            }
            return;
        }
        if header.is_response()
            && let Some(number) = self.client.answered(&header, body, cx)
        {
            self.saved(number, header.code, body);
            self.client.done(number);
        }
    }

    fn lost(&mut self, target: Target, cx: &mut Cx<'_>) {
        self.held.remove(&target);
        self.client.lost(target, cx);
        self.look_us = self.look_us.min(self.client.retry_us(target));
    }

    fn wake(&mut self, cx: &mut Cx<'_>) {
        self.look(cx);
        self.act(cx);
        self.client.pump(cx);
        // Credit of leases that were never ended comes back with a new connection.
        let full = self.held.iter().find(|(_, held)| **held >= self.credit_max).map(|(target, _)| *target);
        if let Some(target) = full
            && self.planned.is_empty()
            && cx.dice.chance(50)
        {
            cx.closes.insert(target);
        }
    }

    fn next_wake_us(&self) -> u64 {
        let planned_us = self.planned.iter().map(|planned| planned.at_us).min().unwrap_or(u64::MAX);
        planned_us.min(self.client.next_us()).min(self.look_us)
    }

    fn is_done(&self) -> bool {
        true
    }
}

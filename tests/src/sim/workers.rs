//! Workers: most complete what they get, some late, twice, never, or under a lease that is over.

use taskmaster_protocol::body::{
    self, ArchivedAssign, Complete, CompleteRow, Credit, Fail, FailRow, LeaseRow, Leases, Subscribe,
};
use taskmaster_protocol::frame::{self, Header};
use taskmaster_protocol::{Operation, PartitionId, TaskId, access};

use super::actor::{Actor, Cx, Outbox};
use super::workload::QUEUES;

/// What a worker is about to do with a lease.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Act {
    Complete,
    Fail,
    FailForGood,
    Release,
    Extend,
}

struct Planned {
    at_us: u64,
    act: Act,
    row: LeaseRow,
}

/// One worker process.
pub(crate) struct Worker {
    number: u64,
    outbox: Outbox,
    planned: Vec<Planned>,
    credit_max: u32,
    held: u32,
    reconnect_us: u64,
}

impl Worker {
    pub(crate) fn new(number: u64, credit_max: u32) -> Self {
        Self { number, outbox: Outbox::default(), planned: Vec::new(), credit_max, held: 0, reconnect_us: 0 }
    }

    fn plan(&mut self, row: LeaseRow, lease_us: u64, cx: &mut Cx<'_>) {
        let work_us = if cx.dice.chance(80) { cx.dice.range(50, 20_000) } else { cx.dice.range(20_000, 200_000) };
        let soon_us = cx.now_us + work_us;
        let late_us = cx.now_us + lease_us + cx.dice.range(0, lease_us);
        let mut add = |act, at_us| self.planned.push(Planned { at_us, act, row });
        if cx.calm {
            add(Act::Complete, cx.now_us + 100);
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
            let (act, partition) = (due[0].act, due[0].row.id.partition());
            let mut rows = Vec::new();
            due.retain(|planned| {
                let joins =
                    planned.act == act && planned.row.id.partition() == partition && (rows.is_empty() || !single);
                if joins {
                    rows.push(planned.row);
                }
                !joins
            });
            self.send(act, partition, &rows, cx);
        }
    }

    fn send(&mut self, act: Act, partition: PartitionId, rows: &[LeaseRow], cx: &mut Cx<'_>) {
        match act {
            Act::Complete => {
                let mut complete = Complete::default();
                for row in rows {
                    let result = body::put(&mut complete.bytes, &result_of(row));
                    let (id, token, locator, attempt) = (row.id, row.token, row.locator, row.attempt);
                    complete.rows.push(CompleteRow { id, token, locator, attempt, result });
                }
                self.outbox.push(Operation::Complete, partition, &complete, cx);
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
                self.outbox.push(Operation::Fail, partition, &fail, cx);
            }
            Act::Release => {
                self.outbox.push(Operation::Release, partition, &Leases { rows: rows.to_vec() }, cx);
            }
            Act::Extend => {
                self.outbox.push(Operation::Extend, partition, &Leases { rows: rows.to_vec() }, cx);
                return;
            }
        }
        let ended = u32::try_from(rows.len()).expect("few").min(self.held);
        self.held -= ended;
        if cx.connected && ended > 0 {
            frame::encode(&mut cx.outgoing, Header::request(Operation::Credit, 0, None), &Credit { credit: ended });
        }
    }
}

/// The result that an attempt sends, different for every lease.
fn result_of(row: &LeaseRow) -> Vec<u8> {
    [row.id.lo.to_le_bytes(), row.token.to_le_bytes()].concat()
}

impl Actor for Worker {
    fn opened(&mut self, cx: &mut Cx<'_>) {
        let mut subscribe = Subscribe { credit: self.credit_max, ..Subscribe::default() };
        for queue in 0..QUEUES {
            subscribe.queues.push(body::put(&mut subscribe.bytes, format!("q{queue}").as_bytes()));
        }
        subscribe.worker = body::put(&mut subscribe.bytes, format!("worker {}", self.number).as_bytes());
        self.held = 0;
        frame::encode(&mut cx.outgoing, Header::request(Operation::Subscribe, 0, None), &subscribe);
        self.outbox.resend_all(cx);
    }

    fn frame(&mut self, header: Header, body: &[u8], cx: &mut Cx<'_>) {
        if header.operation == Operation::Assign.number() {
            let assign = access::<ArchivedAssign>(body).expect("the oracle has read it");
            for row in assign.rows.iter() {
                let lease_us = u64::from(assign.specs[row.spec.to_native() as usize].lease_ms.to_native()) * 1_000;
                let row = LeaseRow {
                    id: TaskId::from(&row.id),
                    token: row.token.to_native(),
                    locator: row.locator.to_native(),
                    attempt: row.attempt.to_native(),
                };
                self.held += 1;
                self.plan(row, lease_us, cx);
            }
            return;
        }
        let Some(number) = self.outbox.number_of(header.correlation) else { return };
        if header.is_response() {
            self.outbox.done(number);
        }
    }

    fn lost(&mut self, cx: &mut Cx<'_>) {
        self.reconnect_us = cx.now_us + cx.dice.range(500, 300_000);
    }

    fn wake(&mut self, cx: &mut Cx<'_>) {
        if !cx.connected {
            if cx.now_us >= self.reconnect_us {
                cx.open = true;
            }
            return;
        }
        self.act(cx);
        self.outbox.resend_due(cx);
        // Credit of leases that were never ended comes back with a new connection.
        if self.held >= self.credit_max && self.planned.is_empty() && cx.dice.chance(50) {
            cx.close = true;
        }
    }

    fn next_wake_us(&self) -> u64 {
        let planned_us = self.planned.iter().map(|planned| planned.at_us).min().unwrap_or(u64::MAX);
        planned_us.min(self.outbox.next_us())
    }

    fn reconnect_us(&self) -> u64 {
        self.reconnect_us
    }

    fn is_done(&self) -> bool {
        true
    }
}

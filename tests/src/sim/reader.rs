//! A client that reads: at random while faults happen, and everything in the end. What it hears, the oracle checks.

use std::collections::{BTreeMap, BTreeSet};

use taskmaster_protocol::body::{GetTask, ReadState};
use taskmaster_protocol::frame::Header;
use taskmaster_protocol::{Code, Operation, TaskId};

use super::actor::{Actor, Cx, Target};
use super::client::Client;

/// Reads under way at once.
const READS_MAX: usize = 64;
/// Pause before what is not final is read again.
const ROUND_US: u64 = 100_000;

/// Reads tasks until all are final.
pub(crate) struct Reader {
    client: Client,
    asked: BTreeMap<u64, TaskId>,
    /// Tasks not yet known to be final, once everything was submitted.
    left: Option<BTreeSet<TaskId>>,
    /// Those of them that were read in this round.
    read: BTreeSet<TaskId>,
    /// Tasks whose states are still to be read; once everything was submitted.
    states: Option<Vec<TaskId>>,
    next_us: u64,
}

impl Reader {
    pub(crate) fn new(client: Client) -> Self {
        Self { client, asked: BTreeMap::new(), left: None, read: BTreeSet::new(), states: None, next_us: 0 }
    }

    fn read(&mut self, id: TaskId) {
        let number = self.client.push(Operation::GetTask, id.partition(), &GetTask { id });
        self.asked.insert(number, id);
    }

    /// Reads a task's history, and the newest version that was acknowledged.
    fn read_states(&mut self, id: TaskId, version: u32) {
        for number in [
            self.client.push(Operation::StateLog, id.partition(), &GetTask { id }),
            self.client.push(Operation::ReadState, id.partition(), &ReadState { id, version, from: 0 }),
        ] {
            self.asked.insert(number, id);
        }
    }

    fn read_all(&mut self, cx: &mut Cx<'_>) {
        if cx.saves && self.asked.len() < READS_MAX {
            let states = self.states.get_or_insert_with(|| cx.oracle.ids().collect());
            let taken = states.split_off(states.len().saturating_sub(READS_MAX / 4));
            for id in taken {
                if let Some(version) = cx.oracle.newest_version(id) {
                    self.read_states(id, version);
                }
            }
        }
        let left = self.left.get_or_insert_with(|| cx.oracle.ids().collect());
        left.retain(|id| !cx.oracle.is_over(*id));
        let room = READS_MAX.saturating_sub(self.asked.len());
        let next: Vec<TaskId> = left.difference(&self.read).take(room).copied().collect();
        if next.is_empty() && self.asked.is_empty() {
            self.read.clear();
            self.next_us = cx.now_us + ROUND_US;
            return;
        }
        self.next_us = u64::MAX;
        for id in next {
            self.read.insert(id);
            self.read(id);
        }
    }
}

impl Actor for Reader {
    fn opened(&mut self, target: Target, cx: &mut Cx<'_>) {
        self.client.opened(target, cx);
    }

    fn frame(&mut self, _target: Target, header: Header, body: &[u8], cx: &mut Cx<'_>) {
        let Some(number) = self.client.answered(&header, body, cx) else { return };
        if matches!(Code::from_number(header.code), Code::Ok | Code::UnknownTask | Code::UnknownVersion) {
            self.client.done(number);
            self.asked.remove(&number);
        } else {
            self.client.postpone(number, cx.now_us + 50_000);
        }
        if self.asked.is_empty() && self.left.is_some() {
            self.next_us = cx.now_us;
        }
    }

    fn lost(&mut self, target: Target, cx: &mut Cx<'_>) {
        self.client.lost(target, cx);
    }

    fn wake(&mut self, cx: &mut Cx<'_>) {
        if cx.now_us >= self.next_us {
            if cx.produced {
                self.read_all(cx);
            } else {
                let pick = cx.dice.roll();
                if let Some(id) = cx.oracle.id_at(pick).filter(|_| self.asked.len() < READS_MAX) {
                    self.read(id);
                }
                self.next_us = cx.now_us + cx.dice.range(3_000, 180_000);
            }
        }
        self.client.pump(cx);
    }

    fn next_wake_us(&self) -> u64 {
        self.next_us.min(self.client.next_us())
    }

    fn is_done(&self) -> bool {
        self.asked.is_empty()
            && self.left.as_ref().is_some_and(BTreeSet::is_empty)
            && self.states.as_ref().is_none_or(Vec::is_empty)
    }
}

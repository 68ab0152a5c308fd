//! Looking at the node's state through its own queries, without a network between.

use std::collections::BTreeMap;

use taskmaster_engine::{ConnId, Effects, Input};
use taskmaster_protocol::body::{self, ArchivedQueuePage, ArchivedTaskPage, Body, GetTask, ListQueues};
use taskmaster_protocol::frame::{self, Header};
use taskmaster_protocol::{Code, FrameBuffer, Operation, PartitionId, TaskId, access};

pub(crate) use taskmaster_engine::State;

use super::node::{Node, PARTITIONS};

/// The connection of the inspection.
const INSPECTOR: ConnId = ConnId(u64::MAX);

/// What the node knows of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) state: State,
    /// The result of a succeeded task, the payload of another.
    pub(crate) blob: Vec<u8>,
}

fn ask(node: &mut Node, operation: Operation, partition: PartitionId, body: &impl Body, now_us: u64) -> FrameBuffer {
    let mut bytes = FrameBuffer::new();
    body.append_to(&mut bytes);
    let mut effects = Effects::default();
    let header = Header::request(operation, 1, Some(partition));
    node.shard.handle(Input::Frame { conn: INSPECTOR, header, body: &bytes }, now_us, &mut effects);
    let mut answer = FrameBuffer::new();
    effects.drain(|conn, frames| {
        if conn == INSPECTOR {
            answer = core::mem::take(frames);
        }
    });
    answer
}

/// All of `ids` that the node knows.
pub(crate) fn tasks(node: &mut Node, ids: &[TaskId], now_us: u64) -> Result<BTreeMap<TaskId, Seen>, String> {
    let mut found = BTreeMap::new();
    for &id in ids {
        let answer = ask(node, Operation::GetTask, id.partition(), &GetTask { id }, now_us);
        let parsed = frame::parse(&answer).map_err(|error| format!("an answer does not parse: {error}"))?;
        let (frame, _) = parsed.ok_or("a query was not answered")?;
        if frame.header.code == Code::UnknownTask.number() {
            continue;
        }
        let page = access::<ArchivedTaskPage>(frame.body).map_err(|error| error.to_string())?;
        let row = page.rows.first().ok_or("a page without its task")?;
        let state = State::from_number(row.state).ok_or("a state that does not exist")?;
        let span = if state == State::Succeeded { row.result } else { row.payload };
        let blob = body::slice(&page.bytes, span).map_err(|error| error.to_string())?.to_vec();
        found.insert(id, Seen { state, blob });
    }
    Ok(found)
}

/// Leased tasks of a queue over all partitions, as the queue's own counts say.
pub(crate) fn leased(node: &mut Node, queue: &str, now_us: u64) -> u64 {
    let mut count = 0;
    for partition in (0..PARTITIONS).map(PartitionId) {
        let answer = ask(node, Operation::ListQueues, partition, &ListQueues::default(), now_us);
        let (frame, _) = frame::parse(&answer).expect("an answer is a frame").expect("a whole one");
        let page = access::<ArchivedQueuePage>(frame.body).expect("a page of queues");
        for row in page.rows.iter() {
            if body::text(&page.bytes, row.queue) == Ok(queue) {
                count += row.counts[State::Leased as usize].to_native();
            }
        }
    }
    count
}

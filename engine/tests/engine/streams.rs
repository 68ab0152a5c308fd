//! Streams: tasks and the position of their source move together or not at all, whatever is sent again, late, or by two at once.

use std::collections::BTreeMap;

use taskmaster_protocol::body::{self, ListStreams, StreamPage, StreamReply, StreamRow, SubmitStream};
use taskmaster_protocol::frame::FLAG_RESEND;
use taskmaster_protocol::stream::partition_of;
use taskmaster_protocol::{Code, Operation, TaskId, limits};

use super::job::{Job, body_of, id, job, jobs, workflow_of};
use super::random::Random;
use super::world::{CLIENT, Message, World, config, text};

const STREAM: &str = "shop";
const TOPIC: &str = "orders";

/// The body of a piece of partition `number` of the topic.
fn piece(number: u32, from: u64, to: u64, jobs: &[Job]) -> SubmitStream {
    let mut batch = body_of(jobs);
    let area = &mut batch.bytes;
    let (stream, topic) = (body::put(area, STREAM.as_bytes()), body::put(area, TOPIC.as_bytes()));
    SubmitStream { piece: StreamRow { from, to, stream, topic, number, reserved: 0 }, batch }
}

impl World {
    fn send_piece(&mut self, flags: u8, body: &SubmitStream) -> Message {
        let partition = partition_of(STREAM, TOPIC, body.piece.number, self.config.partitions);
        self.call_as(Operation::SubmitStream, flags, CLIENT, partition.0, body)
    }

    fn take_piece(&mut self, from: u64, to: u64, jobs: &[Job]) -> StreamReply {
        self.send_piece(0, &piece(0, from, to, jobs)).read()
    }

    fn positions(&mut self, partition: u16) -> Vec<(String, String, u32, u64)> {
        let page: StreamPage = self.call(CLIENT, partition, &ListStreams::default()).read();
        let row = |row: &body::StreamInfo| {
            (text(&page.bytes, row.stream), text(&page.bytes, row.topic), row.number, row.position)
        };
        page.rows.iter().map(row).collect()
    }

    fn position(&mut self) -> u64 {
        self.positions(0).first().map_or(0, |known| known.3)
    }

    fn tasks(&mut self) -> Vec<TaskId> {
        let mut ids: Vec<TaskId> = self.list(0, 0).into_iter().map(|task| task.id).collect();
        ids.sort();
        ids
    }
}

#[test]
fn tasks_and_position_come_together() {
    let mut world = World::new();
    assert_eq!(world.positions(0), []);
    let reply = world.take_piece(0, 17, &jobs("mail", 0, 3));
    assert_eq!((reply.position, reply.accepted, reply.exceptions.len()), (17, 3, 0));
    assert_eq!(world.positions(0), [(STREAM.to_owned(), TOPIC.to_owned(), 0, 17)]);
    let none = world.take_piece(17, 40, &[]);
    assert_eq!((none.position, none.accepted), (40, 0), "messages of which nothing comes");
    assert_eq!((world.position(), world.tasks().len()), (40, 3));
}

#[test]
fn a_piece_that_does_not_go_on_from_the_position_changes_nothing() {
    let mut world = World::new();
    world.take_piece(0, 10, &jobs("mail", 0, 2));
    let logged = world.logged();
    for (from, to) in [(0, 10), (0, 30), (9, 12)] {
        let reply = world.take_piece(from, to, &jobs("mail", 50, 2));
        assert_eq!((reply.position, reply.accepted), (10, 0), "{from} to {to}");
    }
    assert_eq!(world.logged(), logged, "what is overtaken already needs no place in the log");
    let ahead = world.take_piece(11, 12, &jobs("mail", 60, 2));
    assert_eq!((ahead.position, ahead.accepted), (10, 0), "nothing is passed over");
    assert_eq!((world.position(), world.tasks().len()), (10, 2));
}

#[test]
fn of_two_pieces_on_their_way_the_first_counts() {
    let mut world = World::new();
    let first = world.send_as(Operation::SubmitStream, 0, CLIENT, 0, &piece(0, 0, 5, &jobs("mail", 0, 5)));
    let second = world.send_as(Operation::SubmitStream, 0, CLIENT, 0, &piece(0, 0, 7, &jobs("mail", 10, 7)));
    let next = world.send_as(Operation::SubmitStream, 0, CLIENT, 0, &piece(0, 5, 6, &jobs("mail", 20, 1)));
    world.settle();
    let mut reply = |number| world.reply(number).unwrap().read::<StreamReply>();
    assert_eq!([first, second, next].map(|number| reply(number).position), [5, 5, 6]);
    assert_eq!((world.position(), world.tasks().len()), (6, 6));
}

#[test]
fn a_piece_is_answered_when_it_is_durable() {
    let mut world = World::new();
    let number = world.send_as(Operation::SubmitStream, 0, CLIENT, 0, &piece(0, 0, 5, &jobs("mail", 0, 5)));
    assert!(world.reply(number).is_none());
    world.crash();
    assert_eq!((world.position(), world.tasks().len()), (0, 0));
    world.take_piece(0, 5, &jobs("mail", 0, 5));
    world.crash();
    assert_eq!((world.position(), world.tasks().len()), (5, 5));
}

#[test]
fn a_repetition_may_come_with_a_deadline_that_has_passed_since() {
    let mut world = World::new();
    let deadline_ms = world.now_us / 1_000 + 1_000;
    let mut due = job("mail", 1);
    due.extra.deadline_ms = deadline_ms;
    assert_eq!(world.take_piece(0, 5, std::slice::from_ref(&due)).accepted, 1);
    world.advance_ms(5_000);
    let again = world.send_piece(FLAG_RESEND, &piece(0, 0, 5, &[due.clone()]));
    assert_eq!(again.read::<StreamReply>().position, 5);
    let late = world.send_piece(0, &piece(0, 5, 6, &[job("mail", 2), due]));
    assert_eq!((late.code(), late.refusal().row), (Code::DeadlinePast, 1));
    assert_eq!(world.position(), 5, "a refused piece leaves the position");
}

#[test]
fn each_source_has_a_position_of_its_own_in_the_partition_that_it_decides() {
    let mut world = World::with(config(4));
    for number in 0..8 {
        let place = partition_of(STREAM, TOPIC, number, 4);
        let tasks: Vec<Job> = jobs("mail", number * 10, 2).into_iter().map(|job| job.in_partition(place.0)).collect();
        let reply: StreamReply = world.send_piece(0, &piece(number, 0, 3 + u64::from(number), &tasks)).read();
        assert_eq!(reply.accepted, 2);
        let elsewhere = (place.0 + 1) % 4;
        let wrong = world.call_as(Operation::SubmitStream, 0, CLIENT, elsewhere, &piece(number, 0, 3, &[]));
        assert_eq!(wrong.code(), Code::WrongPartition);
    }
    let mut all: Vec<(u32, u64)> = Vec::new();
    for partition in 0..4 {
        let here = world.positions(partition);
        assert_eq!(here.len(), 2, "they are spread evenly");
        all.extend(here.into_iter().map(|known| (known.2, known.3)));
    }
    all.sort_unstable();
    assert_eq!(all, (0..8).map(|number| (number, 3 + u64::from(number))).collect::<Vec<_>>());
}

#[test]
fn what_is_no_piece_is_refused_in_words() {
    let mut world = World::new();
    let mut refused = |body: &SubmitStream| {
        let message = world.call_as(Operation::SubmitStream, 0, CLIENT, 0, body);
        assert_ne!(message.code(), Code::Ok);
        message.sentence()
    };
    let mut flow = piece(0, 0, 1, &jobs("mail", 0, 1));
    flow.batch.workflow = workflow_of(id(0, 99), "flow", false, &jobs("mail", 0, 1)).workflow;
    assert!(refused(&flow).contains("no workflow"));
    for (from, to) in [(5, 5), (5, 4)] {
        assert!(refused(&piece(0, from, to, &[])).contains("is empty"));
    }
    let mut nameless = piece(0, 0, 1, &[]);
    nameless.piece.stream.len = 0;
    assert!(refused(&nameless).contains("the stream is missing"));
    let mut long = piece(0, 0, 1, &[]);
    long.piece.topic = body::put(&mut long.batch.bytes, &[b't'; limits::TOPIC_BYTES_MAX + 1]);
    assert!(refused(&long).contains("the topic has 250 bytes"));
    assert_eq!(world.positions(0), []);
}

/// Readers that know nothing of each other send what they believe is next; half of it late, twice, or on top of one another.
#[test]
fn each_offset_becomes_one_task_however_it_is_sent() {
    for seed in 0..60 {
        let mut random = Random::new(seed);
        let mut world = World::new();
        let mut model: BTreeMap<u64, TaskId> = BTreeMap::new();
        let (mut position, mut last) = (0, 0);
        let mut known = [0u64; 3];
        let mut earlier: Vec<SubmitStream> = Vec::new();
        for _ in 0..120 {
            let reader = random.index(known.len());
            let body = match random.below(6) {
                0 if !earlier.is_empty() => random.pick(&earlier).clone(),
                _ => {
                    let from = known[reader];
                    let to = from + 1 + u64::from(random.below(9));
                    // Every third offset is a gap, as after compaction.
                    let offsets = (from..to).filter(|offset| offset % 3 != 0);
                    let tasks: Vec<Job> = offsets
                        .map(|offset| {
                            last += 1;
                            Job { payload: offset.to_string().into_bytes(), ..job("mail", last) }
                        })
                        .collect();
                    piece(0, from, to, &tasks)
                }
            };
            let (from, to) = (body.piece.from, body.piece.to);
            let flags = if random.once_in(2) { FLAG_RESEND } else { 0 };
            if from == position {
                position = to;
                let offsets = (from..to).filter(|offset| offset % 3 != 0);
                model.extend(offsets.zip(body.batch.tasks.iter().map(|row| row.id)));
            }
            let reply: StreamReply = world.send_piece(flags, &body).read();
            assert_eq!(reply.position, position, "seed {seed}");
            if !random.once_in(4) {
                known[reader] = reply.position;
            }
            earlier.push(body);
            match random.below(30) {
                0 => world.crash(),
                1 => {
                    let snapshot = world.snapshot(|_| ());
                    world.restart(Some((snapshot.0, &snapshot.1)));
                }
                _ => {}
            }
        }
        let mut expected: Vec<TaskId> = model.values().copied().collect();
        expected.sort();
        assert_eq!((world.position(), world.tasks()), (position, expected), "seed {seed}");
        for (offset, id) in model {
            assert_eq!(world.task(id).payload, offset.to_string().into_bytes());
        }
    }
}

//! Events: what happens to tasks is told once, in order, under numbers that survive everything; and costs nothing where nobody asks.

use std::collections::BTreeMap;

use taskmaster_engine::checkpoint::{BatchBounds, Stored};
use taskmaster_engine::events::{Batch, Change, Events, ForTopic};
use taskmaster_engine::{Config, Input, Known};
use taskmaster_protocol::{Code, PartitionId, TaskId};

use super::job::{Job, id, job, jobs};
use super::random::Random;
use super::world::{START_US, World, config};

const WORKER: u64 = 50;
const BOUNDS: BatchBounds = BatchBounds { tasks_min: 0, tasks: 100, bytes: 1 << 20 };

use Change::{AttemptFailed, Cancelled, Completed, Failed, Retried, Started, Submitted};

fn world(waiting_kib_max: u32) -> World {
    telling(Events { waiting_kib_max, starts: false })
}

fn telling(events: Events) -> World {
    let mut world = World::with(Config { events: Some(events), ..config(1) });
    world.worker(WORKER, &["mail"], 1_000_000);
    world
}

impl World {
    fn topic_says(&mut self, term: u64, sent: Stored) {
        self.handle(Input::Sent { partition: PartitionId(0), term, sent });
        self.settle();
    }

    /// The partition asks where the topic stands, and hears what it said of itself or this.
    fn open_topic(&mut self, upto: Option<u64>) -> u64 {
        let Some(ForTopic::Open { term, sent, .. }) = self.shard.next_for_topic(BOUNDS) else { panic!("no opening") };
        self.topic_says(term, Stored::Upto(upto.unwrap_or(sent)));
        term
    }

    fn events(&mut self) -> Option<Batch> {
        match self.shard.next_for_topic(BOUNDS)? {
            ForTopic::Batch(batch) => Some(batch),
            open @ ForTopic::Open { .. } => panic!("{open:?}"),
        }
    }

    /// Takes all events there are, and says that they are sent.
    fn tell_all(&mut self) -> Vec<(u64, TaskId, Change)> {
        let mut told = Vec::new();
        while let Some(batch) = self.events() {
            told.extend(batch.events.iter().map(|event| (event.number, event.id, event.change)));
            self.topic_says(batch.term, Stored::Upto(batch.to));
        }
        told
    }

    fn end_leases(&mut self) {
        for lease in self.leases() {
            self.complete(&lease, format!("result of {}", lease.id).as_bytes());
        }
    }
}

fn text(batch: &Batch, span: taskmaster_protocol::body::Span) -> &str {
    std::str::from_utf8(&batch.bytes[span.at as usize..][..span.len as usize]).unwrap()
}

#[test]
fn a_life_is_told_in_order_with_what_is_known_of_it() {
    let mut world = world(1_000);
    let flaky = world.submit_one(job("mail", 0).attempts(2));
    let lease = world.lease();
    world.fail(&lease, "exit:1");
    // Longer than the pause before the second attempt, shorter than its lease.
    world.advance_ms(5_000);
    let lease = world.lease();
    world.complete(&lease, b"at last");
    let broken = world.submit_one(job("mail", 1).attempts(1));
    let lease = world.lease();
    world.fail(&lease, "exit:2");
    world.open_topic(None);
    let batch = world.events().unwrap();
    let told: Vec<_> = batch.events.iter().map(|event| (event.number, event.id, event.change, event.attempt)).collect();
    assert_eq!(
        told,
        [
            (1, flaky, Submitted, 0),
            (2, flaky, AttemptFailed, 1),
            (3, flaky, Completed, 2),
            (4, broken, Submitted, 0),
            (5, broken, Failed, 1)
        ]
    );
    let details = |at: usize| batch.events[at].details.as_ref().unwrap();
    assert_eq!(details(2).result.map(|result| text(&batch, result)), Some("at last"));
    assert_eq!(details(4).error.map(|part| text(&batch, part)), ["exit:2", "it went wrong"]);
    assert_eq!((batch.labels.len(), batch.labels[0].queue.as_str()), (1, "mail"));
    world.topic_says(batch.term, Stored::Upto(5));
    world.retry(&[broken]);
    world.cancel(&[broken]);
    assert_eq!(world.tell_all(), [(6, broken, Retried), (7, broken, Cancelled)]);
    assert_eq!(world.shard.stats().events_waiting, 0);
}

#[test]
fn attempts_are_told_to_begin_before_they_end() {
    let mut world = telling(Events { waiting_kib_max: 1_000, starts: true });
    let flaky = world.submit_one(job("mail", 0).attempts(2));
    let lease = world.lease();
    world.fail(&lease, "exit:1");
    // Longer than the pause before the second attempt, shorter than its lease.
    world.advance_ms(5_000);
    let lease = world.lease();
    world.complete(&lease, b"at last");
    // A replica, as a replay, knows of no lease, and has the same line.
    world.crash();
    world.worker(WORKER, &["mail"], 1_000_000);
    let begins = world.submit_one(job("mail", 1));
    world.lease();
    world.open_topic(None);
    let batch = world.events().unwrap();
    let told: Vec<_> = batch.events.iter().map(|event| (event.id, event.change, event.attempt)).collect();
    assert_eq!(
        told,
        [
            (flaky, Submitted, 0),
            (flaky, Started, 1),
            (flaky, AttemptFailed, 1),
            (flaky, Started, 2),
            (flaky, Completed, 2),
            (begins, Submitted, 0),
            (begins, Started, 1),
        ]
    );
}

#[test]
fn steps_of_a_workflow_are_told_as_they_end() {
    let mut world = world(1_000);
    world.workflow(id(0, 9_000), false, &[job("mail", 1), job("mail", 2).needs(&[0])]);
    world.open_topic(None);
    assert_eq!(world.tell_all(), [(1, id(0, 1), Submitted), (2, id(0, 2), Submitted)]);
    world.cancel(&[id(0, 1)]);
    assert_eq!(world.tell_all(), [(3, id(0, 1), Cancelled), (4, id(0, 2), Cancelled)]);
}

#[test]
fn numbers_go_on_over_crashes_and_snapshots_and_what_is_sent_does_not_come_again() {
    let mut world = world(1_000);
    let ids = world.submit(&jobs("mail", 0, 5));
    let term = world.open_topic(None);
    let first = world.events().unwrap();
    world.topic_says(term, Stored::Upto(first.to));
    world.submit(&jobs("mail", 5, 3));
    world.end_leases();
    world.crash();
    world.worker(WORKER, &["mail"], 1_000_000);
    world.open_topic(None);
    let told = world.tell_all();
    assert_eq!(told.len(), 3 + 8);
    assert_eq!(told.iter().map(|event| event.0).collect::<Vec<_>>(), (6..=16).collect::<Vec<_>>());
    world.submit(&jobs("mail", 20, 2));
    let (covered, chunks) = world.snapshot(|_| {});
    world.submit(&jobs("mail", 30, 1));
    world.restart(Some((covered, &chunks)));
    world.open_topic(None);
    let told = world.tell_all();
    assert_eq!(told.iter().map(|event| event.0).collect::<Vec<_>>(), [17, 18, 19]);
    assert!(!ids.contains(&told[0].1));
}

#[test]
fn a_topic_that_has_more_or_less_than_the_log_knows_is_believed() {
    let mut world = world(1_000);
    world.submit(&jobs("mail", 0, 5));
    // The answer to a batch of the leader before was lost.
    let term = world.open_topic(Some(3));
    assert_eq!(world.tell_all().iter().map(|event| event.0).collect::<Vec<_>>(), [4, 5]);
    world.submit(&jobs("mail", 5, 1));
    let batch = world.events().unwrap();
    assert_eq!((batch.from, batch.to), (5, 6));
    world.topic_says(term, Stored::Overtaken);
    world.submit(&jobs("mail", 6, 1));
    assert_eq!(world.events(), None, "another leader sends");
}

#[test]
fn a_final_task_is_kept_until_its_event_is_sent() {
    let mut world = world(1_000);
    let ids = world.submit(&jobs("mail", 0, 3));
    world.end_leases();
    world.advance_ms(7_200_000);
    assert!(ids.iter().all(|&id| world.find(id).is_some()));
    world.open_topic(None);
    assert_eq!(world.tell_all().len(), 6);
    world.advance_ms(1_000);
    assert!(ids.iter().all(|&id| world.find(id).is_none()));
}

#[test]
fn too_many_that_wait_leave_a_gap_that_is_counted() {
    let mut world = world(1);
    let ids = world.submit(&jobs("mail", 0, 47));
    assert_eq!((world.shard.stats().events_waiting, world.shard.stats().events_lost), (32, 15), "of 32 bytes each");
    world.open_topic(Some(0));
    let warnings = world.shard.take_warnings();
    assert!(warnings.iter().any(|warning| warning.contains("events are dropped")), "{warnings:?}");
    let told = world.tell_all();
    let newest: Vec<_> = (16..=47).zip(&ids[15..]).map(|(number, &id)| (number, id, Submitted)).collect();
    assert_eq!(told, newest);
    // A result that is larger than all that may wait is told all the same, and what waits for it does not grow.
    world.advance_ms(1);
    for lease in world.leases() {
        world.complete(&lease, &[7; 4_000]);
    }
    assert_eq!(world.shard.stats().events_waiting, 1);
    let last = world.events().unwrap();
    let details = last.events.last().unwrap().details.as_ref().unwrap();
    assert_eq!(details.result.map(|result| result.len), Some(4_000));
}

fn memo(number: u32) -> Job {
    job("mail", number).memo("1", 0, "input").attempts(1)
}

#[test]
fn memoised_tasks_are_told_to_end_as_their_like_each_once_and_behind_it() {
    let mut world = telling(Events { waiting_kib_max: 1_000, starts: true });
    let ids = world.submit(&[memo(0), memo(1), memo(2)]);
    let lease = world.lease();
    world.complete(&lease, b"result");
    let later = world.submit_one(memo(3));
    let known = Known { row: 0, of: id(9, 9), made_us: START_US, result: b"known".to_vec() };
    let asked = world.send_known(&[job("mail", 4).memo("1", 0, "else")], &[known]);
    world.settle();
    assert_eq!(world.reply(asked).unwrap().code(), Code::Ok);
    world.open_topic(None);
    let batch = world.events().unwrap();
    let told: Vec<_> = batch.events.iter().map(|event| (event.id, event.change, event.attempt)).collect();
    assert_eq!(
        told,
        [
            (ids[0], Submitted, 0),
            (ids[1], Submitted, 0),
            (ids[2], Submitted, 0),
            (ids[0], Started, 1),
            (ids[0], Completed, 1),
            (ids[1], Completed, 0),
            (ids[2], Completed, 0),
            (later, Submitted, 0),
            (later, Completed, 0),
            (id(0, 4), Submitted, 0),
            (id(0, 4), Completed, 0),
        ]
    );
    let results = batch.events.iter().filter_map(|event| event.details.as_ref()?.result);
    let results: Vec<_> = results.map(|result| text(&batch, result)).collect();
    assert_eq!(results, ["result", "result", "result", "result", "known"]);
}

#[test]
fn memoised_tasks_that_fail_together_are_told_to_and_to_be_retried() {
    let mut world = world(1_000);
    let ids = world.submit(&[memo(0), memo(1)]);
    let mut ends = Vec::new();
    for code in ["first", "second"] {
        let lease = world.lease();
        world.fail(&lease, code);
        ends.extend(ids.iter().map(|&id| (id, Failed)));
        if code == "first" {
            assert_eq!(world.retry(&ids).accepted, 2);
            ends.extend(ids.iter().map(|&id| (id, Retried)));
            world.advance_ms(1);
        }
    }
    world.open_topic(None);
    let batch = world.events().unwrap();
    let told = batch.events[2..].iter();
    assert_eq!(told.map(|event| (event.id, event.change)).collect::<Vec<_>>(), ends);
    let errors = batch.events[2..].iter().map(|event| text(&batch, event.details.as_ref().unwrap().error[0]));
    let errors: Vec<_> = errors.collect();
    assert_eq!(errors, ["", "", "", "", "second", "second"], "an error is that of its own event");
}

#[test]
fn copies_of_a_result_count_for_what_waits_and_a_crowd_that_ends_in_slices_is_told_whole() {
    let mut world = world(1_000);
    let crowd: Vec<Job> = (0..5_000).map(memo).collect();
    for jobs in crowd.chunks(1_000) {
        world.submit(jobs);
    }
    world.open_topic(None);
    world.tell_all();
    let lease = world.lease();
    world.complete(&lease, b"");
    let (covered, chunks) = world.snapshot(|_| {});
    world.restart(Some((covered, &chunks)));
    world.advance_ms(2_000);
    assert_eq!((world.shard.stats().unfinished, world.shard.stats().events_lost), (0, 0));
    world.open_topic(None);
    let told = world.tell_all();
    assert_eq!(told.iter().map(|event| event.0).collect::<Vec<_>>(), (5_001..=10_000).collect::<Vec<_>>());
    let mut ended: Vec<TaskId> = told.iter().map(|event| event.1).collect();
    ended.sort_unstable();
    assert_eq!(ended, (0..5_000).map(|number| id(0, number)).collect::<Vec<_>>());
    assert!(told.iter().all(|event| event.2 == Completed) && told[0].1 == lease.id);

    let large: Vec<Job> = (0..20).map(|number| job("mail", 6_000 + number).memo("1", 0, "large")).collect();
    world.submit(&large);
    world.worker(WORKER, &["mail"], 1_000_000);
    let lease = world.lease();
    world.complete(&lease, &[7; 100_000]);
    let stats = world.shard.stats();
    assert_eq!((stats.events_waiting, stats.events_lost), (10, 20 + 20 - 10), "1,000 KiB hold ten of the results");
}

#[test]
fn who_does_not_ask_for_events_has_none() {
    let mut world = World::new();
    world.submit(&jobs("mail", 0, 5));
    assert_eq!(world.shard.next_for_topic(BOUNDS), None);
    assert_eq!(world.shard.stats().events_waiting, 0);
}

/// A topic that takes batches by their numbers, answers that get lost, crashes: at the end it has every number once.
#[test]
fn each_event_is_in_the_topic_once_whatever_is_lost() {
    for seed in 0..60 {
        let mut random = Random::new(seed);
        let mut world = world(100_000);
        let mut topic: BTreeMap<u64, (TaskId, Change)> = BTreeMap::new();
        let mut next = 0;
        for _ in 0..80 {
            match random.below(8) {
                0..3 => {
                    let count = 1 + random.below(5);
                    world.submit(&jobs("mail", next, count));
                    next += count;
                }
                3 => world.end_leases(),
                4 => {
                    world.crash();
                    world.worker(WORKER, &["mail"], 1_000_000);
                }
                _ => {
                    let upto = topic.keys().next_back().copied().unwrap_or(0);
                    let term = match world.shard.next_for_topic(BOUNDS) {
                        None => continue,
                        Some(ForTopic::Open { term, .. }) => term,
                        Some(ForTopic::Batch(batch)) => {
                            assert_eq!(batch.from, upto, "one at a time, from where the topic stands");
                            let events = batch.events.iter().map(|event| (event.number, (event.id, event.change)));
                            topic.extend(events);
                            batch.term
                        }
                    };
                    if random.below(5) == 0 {
                        // The answer is lost with the process.
                        world.crash();
                        world.worker(WORKER, &["mail"], 1_000_000);
                    } else {
                        let upto = topic.keys().next_back().copied().unwrap_or(0);
                        world.topic_says(term, Stored::Upto(upto));
                    }
                }
            }
        }
        let numbers: Vec<u64> = topic.keys().copied().collect();
        assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>(), "seed {seed}");
        let mut lives: BTreeMap<TaskId, Vec<Change>> = BTreeMap::new();
        for (id, change) in topic.into_values() {
            lives.entry(id).or_default().push(change);
        }
        assert!(
            lives.values().all(|life| [&[Submitted][..], &[Submitted, Completed]].contains(&&life[..])),
            "seed {seed}"
        );
    }
}

//! Events in a topic of a real Kafka broker: what happened, in order, once, whatever is killed meanwhile.

mod kills;
mod leaders;
mod telling;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;
use taskmaster_client::{Client, Retries, Task, TaskError, TaskId, Worker};
use tempfile::TempDir;

use crate::process::{Running, Setup, counter, directory};
use crate::services::kafka::Kafka;

const TOPIC: &str = "happenings";
const PARTITIONS: i32 = 2;
/// Longest wait for what should come about.
const WAIT_MAX: Duration = Duration::from_secs(120);

/// A broker with a topic, and a node that tells it what happens.
struct Stage {
    kafka: Kafka,
    setup: Setup,
    node: Running,
    client: Client,
    _directory: TempDir,
}

/// The section of a node's configuration.
fn section(kafka: &Kafka, more: &str) -> String {
    format!(
        "[events]\nbrokers = [\"{}\"]\ntopic = \"{TOPIC}\"\n{more}\n\
         kafka = {{ \"reconnect.backoff.max.ms\" = 500, \"message.timeout.ms\" = 10000, \"transaction.timeout.ms\" = 10000 }}\n",
        kafka.address()
    )
}

impl Stage {
    async fn new(more: &str) -> Self {
        let kafka = Kafka::start().await;
        kafka.make_topic(TOPIC, PARTITIONS).await;
        Self::with(kafka, more).await
    }

    async fn with(kafka: Kafka, more: &str) -> Self {
        let directory = directory();
        let mut setup = Setup::new(&directory);
        setup.more = section(&kafka, more);
        let node = setup.start();
        let client = setup.client().await;
        Self { kafka, setup, node, client, _directory: directory }
    }
}

/// Does what payloads say: `fail` fails, `flaky` fails at first, anything else is done.
async fn worker(client: &Client) -> Worker {
    let worker = Worker::builder(client).queue("q").concurrency(32).prefetch(64);
    let worker = worker.handler("work", |task| async move {
        match task.text()? {
            "fail" => Err(TaskError::new("broken", "it never works")),
            "flaky" if task.attempt() == 1 => Err(TaskError::new("broken", "not yet")),
            text => Ok(format!("{text} is done")),
        }
    });
    worker.start().await.unwrap()
}

fn task(payload: &str) -> Task {
    let retries = Retries::attempts(1_000).backoff(Duration::ZERO);
    Task::new("work").queue("q").payload(payload).lease(Duration::from_secs(2)).retries(retries)
}

/// All events that readers of committed messages see, by partition of the topic.
async fn told(kafka: &Kafka) -> Vec<Vec<Value>> {
    let mut all = Vec::new();
    for partition in 0..PARTITIONS {
        let messages = kafka.read_all(TOPIC, partition).await;
        let event = |sent: &crate::services::kafka::Sent| {
            let event: Value = serde_json::from_slice(&sent.value).unwrap();
            assert_eq!(event["task"], sent.key.as_str(), "messages are keyed by task");
            event
        };
        all.push(messages.iter().map(event).collect());
    }
    all
}

/// Of each partition of the topic the events that are new to who keeps the highest sequence of each partition of the cluster.
fn without_repetitions(told: Vec<Vec<Value>>) -> Vec<Vec<Value>> {
    let of_partition = |events: Vec<Value>| {
        let mut highest: BTreeMap<u64, u64> = BTreeMap::new();
        let is_new = |event: &Value| {
            let (partition, sequence) = (event["partition"].as_u64().unwrap(), event["sequence"].as_u64().unwrap());
            sequence
                > highest.insert(partition, sequence.max(highest.get(&partition).copied().unwrap_or(0))).unwrap_or(0)
        };
        events.into_iter().filter(is_new).collect()
    };
    told.into_iter().map(of_partition).collect()
}

/// Every sequence of every partition of the cluster is there once.
fn assert_whole(told: &[Vec<Value>]) {
    let mut counts: BTreeMap<(u64, u64), usize> = BTreeMap::new();
    for event in told.iter().flatten() {
        let place = (event["partition"].as_u64().unwrap(), event["sequence"].as_u64().unwrap());
        *counts.entry(place).or_default() += 1;
    }
    let twice: Vec<_> = counts.iter().filter(|(_, count)| **count > 1).take(5).collect();
    assert!(twice.is_empty(), "events (partition, sequence) that came again: {twice:?}");
    let mut next: BTreeMap<u64, u64> = BTreeMap::new();
    for (partition, sequence) in counts.keys() {
        let next = next.entry(*partition).or_insert(1);
        assert_eq!(sequence, next, "a gap in partition {partition}");
        *next += 1;
    }
}

/// What is told of each task, in the order in which it is told.
fn by_task(told: &[Vec<Value>]) -> BTreeMap<String, Vec<&Value>> {
    let mut tasks: BTreeMap<String, Vec<&Value>> = BTreeMap::new();
    for event in told.iter().flatten() {
        tasks.entry(event["task"].as_str().unwrap().to_owned()).or_default().push(event);
    }
    tasks
}

/// Waits until no event waits.
async fn nothing_waits(client: &Client) {
    let until = Instant::now() + WAIT_MAX;
    while counter(client, "events_waiting").await > 0 {
        assert!(Instant::now() < until, "events go on waiting");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until tasks are done, and all is told: submitted first, completed with the result last.
async fn assert_told(kafka: &Kafka, client: &Client, ids: &[TaskId], is_exact: bool) {
    for &id in ids {
        client.result(id).await.unwrap();
    }
    nothing_waits(client).await;
    let mut all = told(kafka).await;
    if !is_exact {
        all = without_repetitions(all);
    }
    assert_whole(&all);
    let tasks = by_task(&all);
    for id in ids {
        let events = &tasks[&id.to_string()];
        let names: Vec<&str> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
        assert_eq!((names.first(), names.last()), (Some(&"submitted"), Some(&"completed")), "{id}: {names:?}");
        let between = &names[1..names.len() - 1];
        assert!(between.iter().all(|name| ["started", "attempt_failed"].contains(name)), "{id}: {names:?}");
        assert_eq!(events.last().unwrap()["result"], "some is done");
    }
    assert_eq!(counter(client, "events_lost").await, 0);
}

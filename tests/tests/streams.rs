//! Streams from a real Kafka broker: every message becomes one task, whatever is killed meanwhile.

mod kills;
mod letters;
mod members;
mod reading;
mod secured;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use taskmaster_client::{Client, StreamSource, TaskFilter, TaskView};
use tempfile::TempDir;

use crate::process::{Running, Setup, directory};
use crate::services::kafka::Kafka;

const TOPIC: &str = "orders";
const LETTERS: &str = "letters";
/// Longest wait for what should come about.
const WAIT_MAX: Duration = Duration::from_secs(120);

/// A broker with a topic, and a node that reads it.
struct Stage {
    kafka: Kafka,
    setup: Setup,
    node: Running,
    client: Client,
    _directory: TempDir,
}

/// The table of a node's configuration.
fn table(kafka: &Kafka, more: &str) -> String {
    format!(
        "[[stream]]\nname = \"shop\"\nbrokers = [\"{}\"]\ntopics = [\"{TOPIC}\"]\nqueue = \"q\"\nkind = \"order\"\n{more}\n\
         kafka = {{ \"session.timeout.ms\" = 6000, \"heartbeat.interval.ms\" = 500, \"reconnect.backoff.max.ms\" = 500 }}\n",
        kafka.address()
    )
}

impl Stage {
    async fn new(partitions: i32, more: &str) -> Self {
        let kafka = Kafka::start().await;
        kafka.make_topic(TOPIC, partitions).await;
        kafka.make_topic(LETTERS, 1).await;
        let directory = directory();
        let mut setup = Setup::new(&directory);
        setup.more = table(&kafka, more);
        let node = setup.start();
        let client = setup.client().await;
        Self { kafka, setup, node, client, _directory: directory }
    }

    /// Waits until the position of a partition of the topic is this.
    async fn reaches(&self, number: u32, position: u64) {
        reaches(&self.client, &self.node, number, position).await;
    }

    async fn tasks(&self) -> Vec<TaskView> {
        tasks(&self.client).await
    }
}

async fn reaches(client: &Client, node: &Running, number: u32, position: u64) {
    let source = StreamSource { stream: "shop".to_owned(), topic: TOPIC.to_owned(), number };
    let until = Instant::now() + WAIT_MAX;
    loop {
        let found = client.stream_position(&source).await.unwrap();
        if found == position {
            return;
        }
        assert!(found < position, "partition {number} stands at {found}, which is behind {position}");
        assert!(Instant::now() < until, "partition {number} stays at {found} of {position}: {}", node.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// All tasks of the queue, whole.
async fn tasks(client: &Client) -> Vec<TaskView> {
    let filter = TaskFilter::new().queue("q");
    let (mut tasks, mut next) = (Vec::new(), None);
    loop {
        let page = client.list_tasks(&filter, next, 1_000).await.unwrap();
        for task in page.tasks {
            tasks.push(client.task(task.id).await.unwrap());
        }
        next = page.next;
        if next.is_none() {
            return tasks;
        }
    }
}

/// How often each payload is there.
fn payloads(tasks: &[TaskView]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for task in tasks {
        *counts.entry(String::from_utf8(task.payload.clone()).unwrap()).or_default() += 1;
    }
    counts
}

/// Waits until a node's log has a sentence.
async fn logged(node: &Running, sentence: &str) {
    let until = Instant::now() + WAIT_MAX;
    while !node.log().contains(sentence) {
        assert!(Instant::now() < until, "the node does not say \"{sentence}\": {}", node.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

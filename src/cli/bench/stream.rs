//! `bench --stream BROKERS`: messages of a Kafka topic that become durable tasks, beside a bare consumer of the same messages as the floor.

use std::time::{Duration, Instant};

use serde_json::json;
use taskmaster_client::Client;
use taskmaster_connect::kafka;

use super::{Arguments, counter, show};
use crate::cli::connect::block_on;
use crate::cli::embedded::Embedded;
use crate::cli::{Exit, Failure, Global};
use crate::config::{Config, Stream};

/// Messages unless `--tasks` says otherwise, and the topic's partitions.
const MESSAGES: u64 = 1_000_000;
const PARTITIONS: i32 = 8;
/// Messages per second to reach.
const RATE_MIN: f64 = 100_000.0;
/// Longest wait for the last message.
const PATIENCE: Duration = Duration::from_secs(600);
const POLL: Duration = Duration::from_millis(5);

/// Carries `bench --stream` out.
pub(super) fn run(global: &Global, arguments: &Arguments, brokers: &str, config: &Config) -> Result<Exit, Failure> {
    let messages = arguments.tasks.unwrap_or(MESSAGES);
    let payload = usize::try_from(arguments.payload.0).unwrap_or(usize::MAX);
    let stream = Stream {
        name: "bench".to_owned(),
        brokers: vec![brokers.to_owned()],
        topics: vec![format!("taskmaster-bench-{}", std::process::id())],
        group: format!("taskmaster-bench-{}", std::process::id()),
        queue: "stream".to_owned(),
        kind: "noop".to_owned(),
        ..Stream::default()
    };
    let settings = stream.settings().map_err(|error| Failure::new(Exit::Usage, format!("{error:#}")))?;
    let failed = |sentence: String| Failure::new(Exit::Failed, format!("Kafka at {brokers}: {sentence}"));
    let sent = block_on(async { kafka::fill(&settings, PARTITIONS, messages, payload).await.map_err(failed) })?;
    let floor = kafka::floor(&settings, PARTITIONS, messages).map_err(failed)?;
    let mut config = config.clone();
    config.streams = vec![stream];
    let node = Embedded::start_private(config, arguments.data_dir.as_deref())?;
    let (counted, took) = block_on(read(node.address().to_string(), messages))?;
    node.stop()?;
    block_on(async { kafka::remove(&settings).await.map_err(failed) })?;
    let rate = |(count, took): (u64, Duration)| count as f64 / took.as_secs_f64().max(1e-9);
    let [sent, floor, tasks] = [(messages, sent), (messages, floor), (counted, took)].map(rate);
    let text = format!(
        "  {:<26} {sent:>12.0} messages/s\n  {:<26} {floor:>12.0} messages/s\n  {:<26} {tasks:>12.0} messages/s, {:.2} of the floor\n  \
         {messages} messages became {messages} tasks\n",
        "sent to the broker",
        "floor: a bare consumer",
        "made durable tasks",
        tasks / floor
    );
    let json = json!({ "messages": messages, "sent_per_s": sent, "floor_per_s": floor, "tasks_per_s": tasks });
    show(global, json, &text, tasks >= RATE_MIN)
}

/// How many tasks came after the first were seen, and how long they took: the group's forming is not counted.
async fn read(address: String, messages: u64) -> Result<(u64, Duration), Failure> {
    let client = Client::connect(address).await?;
    let (started, mut first) = (Instant::now(), None);
    loop {
        let tasks = counter(&client, "stream_tasks").await?;
        if tasks > messages {
            return Err(Failure::new(Exit::Failed, format!("{messages} messages became {tasks} tasks")));
        }
        if tasks > 0 {
            let (seen, begun) = *first.get_or_insert_with(|| (tasks, Instant::now()));
            if tasks == messages {
                return Ok((messages - seen, begun.elapsed()));
            }
        }
        if started.elapsed() > PATIENCE {
            return Err(Failure::new(Exit::TimedOut, format!("{tasks} of {messages} messages became tasks")));
        }
        tokio::time::sleep(POLL).await;
    }
}

//! `bench --memo URL`: how long a memoised task takes whose result Redis remembers, beside a submission of a plain task as the floor.
//!
//! One node runs each payload once and gives the results to Redis. A second one, which knows nothing of the first and has no worker, is
//! then asked for the same, one at a time and in turn with plain submissions.

use std::time::{Duration, Instant};

use serde_json::json;
use taskmaster_client::{Client, State, Task, TaskId, Worker};

use super::{Arguments, counter, show};
use crate::cli::connect::block_on;
use crate::cli::embedded::Embedded;
use crate::cli::{Exit, Failure, Global};
use crate::config::{Config, DatabaseUrl};

/// Tasks, and those that are not measured at the beginning.
const TASKS: u64 = 5_000;
const WARM: u64 = 200;
/// Tasks that the first node is given at once.
const BATCH: u64 = 100;
/// The highest bearable p99 of a hit.
const HIT_MAX: Duration = Duration::from_millis(2);
/// Longest wait for Redis to be there, or to have everything.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(5);

/// Carries `bench --memo` out.
pub(super) fn run(global: &Global, arguments: &Arguments, url: &str, config: &Config) -> Result<Exit, Failure> {
    let mut config = config.clone();
    config.redis.url = DatabaseUrl(url.to_owned());
    // Results of earlier runs are others'.
    config.redis.prefix = format!("taskmaster-bench-{}", std::process::id());
    let payload = usize::try_from(arguments.payload.0).unwrap_or(usize::MAX);
    let task = move |number: u64| {
        let mut bytes = number.to_le_bytes().to_vec();
        bytes.resize(payload.max(8), 7);
        Task::new("echo").queue("memo").payload(bytes)
    };
    let first = Embedded::start_private(config.clone(), None)?;
    block_on(fill(first.address().to_string(), &task))?;
    first.stop()?;
    let second = Embedded::start_private(config, arguments.data_dir.as_deref())?;
    let mut measured = block_on(ask(second.address().to_string(), &task))?;
    second.stop()?;
    let TimesOf { floor, hit, result, hits } = &mut measured;
    let mut text = String::new();
    let mut json = json!({ "tasks": TASKS, "hits": *hits });
    for (name, key, times) in [
        ("floor: plain submission", "floor", floor),
        ("hit: submitted and done", "hit", hit),
        ("hit, and result read", "hit_and_result", result),
    ] {
        times.sort_unstable();
        let [p50, p99] = [50, 99].map(|percent| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e3);
        text.push_str(&format!("  {name:<26} p50 {p50:>7.3} ms   p99 {p99:>7.3} ms\n"));
        json[key] = json!({ "p50_ms": p50, "p99_ms": p99 });
    }
    text.push_str(&format!("  {hits} of {TASKS} tasks had their result from Redis\n"));
    let p99 = hit[(hit.len() - 1) * 99 / 100];
    show(global, json, &text, p99 < HIT_MAX && *hits == TASKS)
}

/// Times of single tasks.
struct TimesOf {
    floor: Vec<Duration>,
    hit: Vec<Duration>,
    result: Vec<Duration>,
    hits: u64,
}

async fn reaches(client: &Client, name: &str, value: u64) -> Result<(), Failure> {
    let until = Instant::now() + PATIENCE;
    while counter(client, name).await? < value {
        if Instant::now() > until {
            return Err(Failure::new(
                Exit::TimedOut,
                format!("{name} does not come to {value}: see `taskmaster doctor`"),
            ));
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// Runs each payload once.
async fn fill(address: String, task: &impl Fn(u64) -> Task) -> Result<(), Failure> {
    let client = Client::connect(address).await?;
    reaches(&client, "redis_connected", 1).await?;
    let handler = |task: taskmaster_client::Context| async move { Ok(task.payload().to_vec()) };
    let worker = Worker::builder(&client).queue("memo").concurrency(64).handler("echo", handler).start().await?;
    for batch in 0..TASKS / BATCH {
        let tasks = (batch * BATCH..(batch + 1) * BATCH).map(|number| task(number).memoised("1"));
        let outcomes = client.submit_many(tasks).await?;
        let ids: Vec<TaskId> = outcomes.iter().map(|outcome| outcome.id).collect();
        for id in ids {
            client.result(id).await?;
        }
    }
    reaches(&client, "redis_stored", TASKS).await?;
    worker.shutdown().await?;
    Ok(())
}

/// Asks for each, one at a time.
async fn ask(address: String, task: &impl Fn(u64) -> Task) -> Result<TimesOf, Failure> {
    let client = Client::connect(address).await?;
    reaches(&client, "redis_connected", 1).await?;
    let mut times = TimesOf { floor: Vec::new(), hit: Vec::new(), result: Vec::new(), hits: 0 };
    for number in 0..TASKS {
        let begun = Instant::now();
        client.submit(task(number)).await?;
        let floor = begun.elapsed();
        let begun = Instant::now();
        let id = client.submit(task(number).memoised("1")).await?.id;
        let hit = begun.elapsed();
        let outcome = client.result_within(id, Duration::ZERO).await?;
        let result = begun.elapsed();
        times.hits += u64::from(outcome.is_some_and(|outcome| outcome.state == State::Succeeded));
        if number >= WARM {
            times.floor.push(floor);
            times.hit.push(hit);
            times.result.push(result);
        }
    }
    Ok(times)
}

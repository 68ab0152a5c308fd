//! The database is gone for a while: tasks go on, what waits is bounded and told, and all of it is stored afterwards.

use std::time::{Duration, Instant};

use taskmaster_client::{Client, Code, Priority, Retries, State, Task, TaskError, TaskId, Worker};

use super::history::assert_history;
use super::start::logged;
use super::{Stage, section};
use crate::process::{Setup, counter, directory};
use crate::services::postgres::Postgres;

pub(super) async fn worker(client: &Client) -> Worker {
    let worker = Worker::builder(client).queue("plain").concurrency(64).prefetch(128);
    worker.handler("echo", |task| async move { Ok(task.payload().to_vec()) }).start().await.unwrap()
}

pub(super) async fn finish(client: &Client, tasks: u32) -> Vec<TaskId> {
    let tasks = (0..tasks).map(|n| Task::new("echo").queue("plain").payload(n.to_string()));
    let ids: Vec<TaskId> = client.submit_many(tasks).await.unwrap().iter().map(|outcome| outcome.id).collect();
    for &id in &ids {
        client.result(id).await.unwrap();
    }
    ids
}

/// Waits until the node knows that all is stored: the answer to the last batch may be on its way.
pub(super) async fn nothing_waits(client: &Client) {
    until("nothing waits", async || counter(client, "checkpoint_waiting").await == 0).await;
}

pub(super) async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !is_so().await {
        assert!(Instant::now() < until, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_refuses_what_is_written_is_one_outage() {
    let stage = Stage::new("").await;
    let client = stage.client.clone();
    let worker = worker(&client).await;
    let mut ids = finish(&client, 20).await;
    stage.stored(ids.len()).await;
    nothing_waits(&client).await;
    stage.postgres.refuse_writes(true).await;
    ids.extend(finish(&client, 20).await);
    let said = |sentence: &str| stage.node.log().matches(sentence).count();
    let refusals = || stage.postgres.log().matches("read-only transaction").count();
    let tries = |wanted: usize| until("tries", async move || refusals() >= wanted);
    tries(2).await;
    // The end of the connections may have been an outage of its own, before there was something to write.
    let (waits, goes_on) = (said("checkpoints wait"), said("checkpoints go on"));
    assert!(waits == goes_on + 1 && goes_on <= 1, "{}", stage.node.log());
    tries(6).await;
    assert_eq!((said("checkpoints wait"), said("checkpoints go on")), (waits, goes_on), "{}", stage.node.log());
    stage.postgres.refuse_writes(false).await;
    assert_history(&stage, &client, &ids).await;
    until("it is told once", async || said("checkpoints go on") == waits).await;
    assert_eq!(said("checkpoints wait"), waits);
    worker.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_go_on_without_the_database_and_are_stored_when_it_is_back() {
    let mut stage = Stage::new("").await;
    let client = stage.client.clone();
    let worker = worker(&client).await;
    let mut ids = finish(&client, 200).await;
    stage.stored(ids.len()).await;
    nothing_waits(&client).await;
    stage.postgres.kill();
    ids.extend(finish(&client, 300).await);
    logged(&stage.node, "checkpoints wait").await;
    assert_eq!(counter(&client, "checkpoint_waiting").await, 300);
    until("all connections are known to be gone", async || counter(&client, "postgres_connected").await == 0).await;
    stage.postgres.restart().await;
    assert_history(&stage, &client, &ids).await;
    logged(&stage.node, "checkpoints go on").await;
    nothing_waits(&client).await;
    // One that answers nothing is an outage too; its transaction may have been carried out or not.
    stage.postgres.pause();
    ids.extend(finish(&client, 100).await);
    until("the silence is noticed", async || stage.node.log().matches("checkpoints wait").count() >= 2).await;
    stage.postgres.resume();
    assert_history(&stage, &client, &ids).await;
    let said = |sentence: &str| stage.node.log().matches(sentence).count();
    until("each outage begins and ends once", async || {
        said("checkpoints wait") >= 2 && said("checkpoints wait") == said("checkpoints go on")
    })
    .await;
    assert_eq!(counter(&client, "checkpoint_lost").await, 0);
    worker.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_not_there_at_the_start_is_used_when_it_comes() {
    let mut postgres = Postgres::start().await;
    postgres.migrate().await;
    postgres.kill();
    let directory = directory();
    let mut setup = Setup::new(&directory).shards(2);
    setup.more = section(&postgres, "");
    let node = setup.start();
    let client = Client::connect(node.address.to_string()).await.unwrap();
    let worker = worker(&client).await;
    let ids = finish(&client, 100).await;
    postgres.restart().await;
    let stage = Stage { postgres, setup, node, client: client.clone(), _directory: directory };
    assert_history(&stage, &client, &ids).await;
    worker.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checkpointed_tasks_leave_memory_and_others_do_not() {
    let mut stage = Stage::new("kept = \"0s\"\n[queues]\nretention = \"50ms\"\n").await;
    let client = stage.client.clone();
    let worker = worker(&client).await;
    let tasks = (0..100u32).map(|n| Task::new("echo").queue("plain").payload(n.to_string()));
    client.submit_many(tasks).await.unwrap();
    stage.stored(100).await;
    let until = Instant::now() + Duration::from_secs(20);
    while counter(&client, "tasks").await > 0 {
        assert!(Instant::now() < until, "checkpointed tasks stay");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stage.postgres.kill();
    let ids = finish(&client, 50).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(counter(&client, "tasks").await, 50, "their retention is over, but nobody has them");
    stage.postgres.restart().await;
    stage.stored(150).await;
    drop(ids);
    worker.shutdown().await.unwrap();
}

/// Whatever a task was: what is known of it in memory is known of it afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_is_described_alike_in_memory_and_from_the_database() {
    let stage = Stage::new("kept = \"15s\"\n").await;
    let client = stage.client.clone();
    let probe = client.clone();
    let worker = Worker::builder(&client)
        .queue("plain")
        .handler("echo", |task| async move { Ok(task.payload().to_vec()) })
        .handler("telling", move |task| {
            let probe = probe.clone();
            async move {
                task.progress(500, "half of it");
                while probe.task(task.id()).await.unwrap().done_permille != 500 {}
                Err::<Vec<u8>, _>(TaskError::new("broken", "half is not all"))
            }
        })
        .start()
        .await
        .unwrap();
    let task = |kind: &'static str| Task::new(kind).queue("plain").payload("7").retries(Retries::attempts(1));
    let memo = || task("echo").memoised("1");
    let mut ids = Vec::new();
    for task in [
        task("echo").restartable(true).priority(Priority::High),
        task("echo").unique_key("order-7").unique_window(Duration::from_secs(1)).concurrency_key("shop", 2),
        task("telling").deadline_in(Duration::from_secs(600)),
        memo(),
        memo(),
    ] {
        let id = client.submit(task).await.unwrap().id;
        client.result(id).await.unwrap();
        ids.push(id);
    }
    let mut seen = Vec::new();
    for &id in &ids {
        seen.push(client.task(id).await.unwrap());
    }
    assert_eq!(counter(&client, "tasks").await, 5, "all of it is from memory");
    assert!(seen[0].is_restartable && seen[4].is_memo && seen[4].note.contains(&ids[3].to_string()), "{seen:?}");
    assert_eq!((seen[2].note.as_str(), seen[2].done_permille), ("half of it", 500));
    until("they leave memory", async || counter(&client, "tasks").await == 0).await;
    for (id, seen) in ids.iter().zip(&seen) {
        assert_eq!(client.task(*id).await.unwrap(), *seen);
    }
    let rows = "SELECT string_agg(concat_ws('|', restartable, memo_of, unique_key, concurrency_key, note), ';' ORDER BY submitted_at, task)
                FROM taskmaster.task_history";
    let told: String = stage.postgres.client().await.query_one(rows, &[]).await.unwrap().get(0);
    assert_eq!(told, format!("t;f|order-7|shop;f|half of it;f;f|{}", ids[3]));
    worker.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_that_left_memory_are_answered_from_the_database() {
    let mut stage = Stage::new("kept = \"0s\"\n").await;
    let client = stage.client.clone();
    let worker = worker(&client).await;
    let tasks = (0..20u32).map(|n| Task::new("echo").queue("plain").payload(n.to_string()));
    let ids: Vec<TaskId> = client.submit_many(tasks).await.unwrap().iter().map(|outcome| outcome.id).collect();
    stage.stored(ids.len()).await;
    let until = Instant::now() + Duration::from_secs(20);
    while counter(&client, "tasks").await > 0 {
        assert!(Instant::now() < until, "checkpointed tasks stay");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for (n, &id) in ids.iter().enumerate() {
        let task = client.task(id).await.unwrap();
        assert_eq!((task.id, task.state, task.kind.as_str()), (id, State::Succeeded, "echo"));
        assert_eq!(client.result(id).await.unwrap().text().unwrap(), n.to_string());
    }
    assert_history(&stage, &client, &ids).await;
    let never = client.task_id();
    assert_eq!(client.task(never).await.unwrap_err().code(), Some(Code::UnknownTask));
    stage.postgres.kill();
    // Whoever asks meanwhile is not kept waiting: repeated for a while, then told why.
    let patient =
        Client::builder().call_timeout(Duration::from_secs(5)).connect(stage.node.address.to_string()).await.unwrap();
    let refused = patient.task(ids[0]).await.unwrap_err();
    assert!(refused.to_string().contains("database"), "{refused}");
    worker.shutdown().await.unwrap();
}

//! What is told of a task's life, and when nothing is.

use std::time::Duration;

use serde_json::{Value, json};
use taskmaster_client::{Retries, TaskId};

use super::{Stage, assert_whole, by_task, client, nothing_waits, task, told, worker};
use crate::process::{Setup, directory};

/// The names of a task's events, and its last one.
async fn life(stage: &Stage, id: TaskId) -> (Vec<String>, Value) {
    nothing_waits(&stage.client).await;
    let all = told(&stage.kafka).await;
    assert_whole(&all);
    let tasks = by_task(&all);
    let events = &tasks[&id.to_string()];
    let names = events.iter().map(|event| event["event"].as_str().unwrap().to_owned()).collect();
    (names, (*events.last().unwrap()).clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happens_to_a_task_is_told_in_order() {
    let stage = Stage::new("").await;
    let client = &stage.client;
    let worker = worker(client).await;
    let submit = async |task| client.submit(task).await.unwrap().id;
    let done = submit(task("some")).await;
    let flaky = submit(task("flaky")).await;
    let failed = submit(task("fail").retries(Retries::attempts(1))).await;
    let late = submit(task("some").delay(Duration::from_secs(3_600)).concurrency_key("blue", 1)).await;
    for id in [done, flaky, failed] {
        client.result(id).await.unwrap();
    }
    client.cancel([late]).await.unwrap();
    let (names, last) = life(&stage, done).await;
    assert_eq!(names, ["submitted", "completed"]);
    assert_eq!((&last["result"], &last["result_bytes"]), (&json!("some is done"), &json!(12)));
    assert_eq!((&last["queue"], &last["kind"], &last["schema"]), (&json!("q"), &json!("work"), &json!(1)));
    assert_eq!(life(&stage, flaky).await.0, ["submitted", "attempt_failed", "completed"]);
    assert_eq!(life(&stage, flaky).await.1["attempt"], 2);
    let (names, last) = life(&stage, failed).await;
    assert_eq!(names, ["submitted", "failed"]);
    assert_eq!(last["error"], json!({"code": "broken", "message": "it never works"}));
    let (names, last) = life(&stage, late).await;
    assert_eq!((names, &last["key"]), (vec!["submitted".to_owned(), "cancelled".to_owned()], &json!("blue")));
    client.retry([failed]).await.unwrap();
    client.result(failed).await.unwrap();
    assert_eq!(life(&stage, failed).await.0, ["submitted", "failed", "retried", "failed"]);
    worker.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_section_nothing_runs_that_tells() {
    let directory = directory();
    let setup = Setup::new(&directory);
    let node = setup.start();
    assert!(!node.threads().iter().any(|name| name == "events" || name.starts_with("rdk:")), "{:?}", node.threads());
    let client = client(&setup).await;
    client.submit(task("some")).await.unwrap();
    assert_eq!(super::counter(&client, "events_waiting").await, 0);
}

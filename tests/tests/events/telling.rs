//! What is told of a task's life, and when nothing is.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use taskmaster_client::{Retries, TaskId};

use super::{
    PARTITIONS, Stage, TOPIC, assert_told, assert_whole, by_task, counter, nothing_waits, section, task, told, worker,
};
use crate::process::{Setup, directory};
use crate::services::kafka::Kafka;

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
    let submit =
        async |task: taskmaster_client::Task| client.submit(task.lease(Duration::from_secs(60))).await.unwrap().id;
    let done = submit(task("some")).await;
    let flaky = submit(task("flaky")).await;
    let failed = submit(task("fail").retries(Retries::attempts(1))).await;
    let late = submit(task("some").delay(Duration::from_secs(3_600)).concurrency_key("blue", 1)).await;
    for id in [done, flaky, failed] {
        client.result(id).await.unwrap();
    }
    client.cancel([late]).await.unwrap();
    let (names, last) = life(&stage, done).await;
    assert_eq!(names, ["submitted", "started", "completed"]);
    assert_eq!((&last["result"], &last["result_bytes"]), (&json!("some is done"), &json!(12)));
    assert_eq!((&last["queue"], &last["kind"], &last["schema"]), (&json!("q"), &json!("work"), &json!(1)));
    assert_eq!(life(&stage, flaky).await.0, ["submitted", "started", "attempt_failed", "started", "completed"]);
    assert_eq!(life(&stage, flaky).await.1["attempt"], 2);
    let (names, last) = life(&stage, failed).await;
    assert_eq!(names, ["submitted", "started", "failed"]);
    assert_eq!(last["error"], json!({"code": "broken", "message": "it never works"}));
    let (names, last) = life(&stage, late).await;
    assert_eq!((names, &last["key"]), (vec!["submitted".to_owned(), "cancelled".to_owned()], &json!("blue")));
    client.retry([failed]).await.unwrap();
    client.result(failed).await.unwrap();
    assert_eq!(life(&stage, failed).await.0, ["submitted", "started", "failed", "retried", "started", "failed"]);
    worker.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_that_brokers_find_too_long_are_left_out() {
    let kafka = Kafka::start().await;
    kafka.make_narrow_topic(TOPIC, PARTITIONS, 20_000).await;
    let stage = Stage::with(kafka, "").await;
    let worker = worker(&stage.client).await;
    let long = stage.client.submit(task(&"x".repeat(100_000))).await.unwrap().id;
    let short = stage.client.submit(task("some")).await.unwrap().id;
    for id in [long, short] {
        stage.client.result(id).await.unwrap();
    }
    let (names, last) = life(&stage, long).await;
    assert_eq!(names, ["submitted", "started", "completed"]);
    assert_eq!((last.get("result"), &last["result_bytes"]), (None, &json!(100_008)));
    assert_eq!(life(&stage, short).await.1["result"], "some is done");
    worker.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_section_nothing_runs_that_tells() {
    let directory = directory();
    let setup = Setup::new(&directory);
    let node = setup.start();
    assert!(!node.threads().iter().any(|name| name == "events" || name.starts_with("rdk:")), "{:?}", node.threads());
    let client = setup.client().await;
    client.submit(task("some")).await.unwrap();
    assert_eq!(counter(&client, "events_waiting").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_go_on_while_the_broker_is_away_and_what_happened_is_told_later() {
    let mut stage = Stage::new("").await;
    let worker = worker(&stage.client).await;
    let before = stage.client.submit(task("some")).await.unwrap().id;
    stage.client.result(before).await.unwrap();
    stage.kafka.kill();
    let outcomes = stage.client.submit_many((0..200).map(|_| task("some"))).await.unwrap();
    let mut ids: Vec<TaskId> = outcomes.iter().map(|outcome| outcome.id).collect();
    for &id in &ids {
        stage.client.result(id).await.unwrap();
    }
    assert!(counter(&stage.client, "events_waiting").await >= 600, "three events of each");
    stage.kafka.restart().await;
    ids.push(before);
    assert_told(&stage.kafka, &stage.client, &ids, true).await;
    worker.shutdown().await.unwrap();
}

/// The check of events by `taskmaster doctor`: its status, and what is said.
async fn doctor(kafka: &Kafka, more: &str) -> (String, String) {
    let directory = directory();
    let mut setup = Setup::new(&directory);
    setup.more = section(kafka, more);
    let report = tokio::task::spawn_blocking(move || crate::process::doctor(&setup.config())).await.unwrap();
    let check = crate::process::check(&report, "events").unwrap();
    let text = |name: &str| check[name].as_str().unwrap_or_default().to_owned();
    (text("status"), format!("{} {}", text("message"), text("fix")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_doctor_says_whether_events_could_be_told() {
    let mut kafka = Kafka::start().await;
    let (status, said) = doctor(&kafka, "").await;
    assert!(status == "fail" && said.contains(&format!("topic {TOPIC}")), "{said}");
    kafka.make_topic(TOPIC, 2).await;
    // A broker that just began is slow to make what transactions need, and to know a topic that was just made.
    let until = Instant::now() + Duration::from_secs(60);
    let says = async |more: &str, wanted: (&str, &str)| loop {
        let (status, said) = doctor(&kafka, more).await;
        if status == wanted.0 && said.contains(wanted.1) {
            break;
        }
        assert!(Instant::now() < until, "{status}: {said}");
    };
    says("", ("ok", "exactly once")).await;
    says("delivery = \"at-least-once\"", ("ok", "at least once")).await;
    kafka.make_topic("narrow", 1).await;
    says("positions = \"narrow\"", ("fail", "has 1 partitions")).await;
    kafka.kill();
    let (status, said) = doctor(&kafka, "").await;
    assert!(status == "fail" && said.contains("no broker"), "{said}");
}

//! `kill -9` of node and database at random moments under load: at the end each finished task is stored once, as the engine has it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use taskmaster_client::{Client, Retries, State, Task, TaskFilter, TaskId};

use super::Stage;
use super::history::assert_history;
use super::outages::worker;

/// Rounds, unless `TASKMASTER_KILLS` says otherwise.
const KILLS: u64 = 8;

async fn load(client: Client, done: Arc<AtomicBool>) -> Vec<TaskId> {
    let mut ids = Vec::new();
    while !done.load(Ordering::Relaxed) {
        let retries = Retries::attempts(1_000).backoff(Duration::ZERO);
        let task = |n: u32| {
            let task = Task::new("echo").queue("plain").lease(Duration::from_secs(2)).retries(retries.clone());
            task.payload(vec![7; 16 + n as usize * 5])
        };
        // What the client cannot learn about may be accepted or not: it is not looked for, and may be stored.
        let Ok(outcomes) = client.submit_many((0..64).map(task)).await else { continue };
        ids.extend(outcomes.iter().filter(|outcome| outcome.is_kept()).map(|outcome| outcome.id));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ids
}

/// All finished tasks that the engine knows.
async fn finished(client: &Client) -> Vec<TaskId> {
    let filter = TaskFilter::new().queue("plain").state(State::Succeeded);
    let (mut ids, mut next) = (Vec::new(), None);
    loop {
        let page = client.list_tasks(&filter, next, 1_000).await.unwrap();
        ids.extend(page.tasks.iter().map(|task| task.id));
        next = page.next;
        if next.is_none() {
            return ids;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_finished_task_is_stored_once_whatever_is_killed() {
    let kills = std::env::var("TASKMASTER_KILLS").map_or(KILLS, |text| text.parse().unwrap());
    let mut stage = Stage::new("kept = \"1h\"\n").await;
    let client = stage.setup.client().await;
    let worker = worker(&client).await;
    let done = Arc::new(AtomicBool::new(false));
    let loading = tokio::spawn(load(client.clone(), Arc::clone(&done)));
    // The moments differ from run to run, which is the point: any moment must do.
    let mut moment = u64::from(std::process::id());
    for _ in 0..kills {
        moment = moment.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        tokio::time::sleep(Duration::from_millis(100 + (moment >> 33) % 500)).await;
        let choice = (moment >> 20) % 3;
        if choice != 0 {
            stage.postgres.kill();
        }
        if choice != 1 {
            stage.node.strike();
            stage.node = stage.setup.start();
        }
        if choice != 0 {
            stage.postgres.restart().await;
        }
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    done.store(true, Ordering::Relaxed);
    let ids = loading.await.unwrap();
    for &id in &ids {
        client.result(id).await.unwrap();
    }
    // Tasks whose acceptance was never heard of are in the engine all the same.
    let all = finished(&client).await;
    assert!(all.len() >= ids.len());
    assert_history(&stage, &client, &all).await;
    let twice = "SELECT count(*) - count(DISTINCT (partition, number)) FROM taskmaster.final_task";
    assert_eq!(stage.count(twice).await, 0, "a row was stored twice");
    eprintln!("{kills} kills: {} tasks acknowledged, {} stored", ids.len(), all.len());
    worker.shutdown_within(Duration::from_secs(30)).await.unwrap();
}

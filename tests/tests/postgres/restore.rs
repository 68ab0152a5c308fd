//! All disks are lost: what was checkpointed comes back from the database alone.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

use taskmaster_client::{Client, State, Task, TaskFilter, TaskId, TaskView};

use super::history::worker;
use super::listing::{ids_of, list_from, sorted};
use super::{Stage, outages, section};
use crate::process::{Setup, binary, counter, directory};
use crate::services::postgres::PASSWORD;

async fn views(client: &Client, ids: &[TaskId]) -> BTreeMap<TaskId, TaskView> {
    let mut views = BTreeMap::new();
    for &id in ids {
        // What the leader alone knew, and membership in a workflow, do not come back.
        let view = client.task(id).await.unwrap();
        views.insert(id, TaskView { started_us: 0, workflow: None, note: String::new(), done_permille: 0, ..view });
    }
    views
}

/// Restores from the database alone: the node's setup, where it is, and what was reported.
pub(super) fn restore(stage: &Stage) -> (Setup, tempfile::TempDir, serde_json::Value) {
    let fresh = directory();
    let mut setup = Setup::new(&fresh);
    setup.more = section(&stage.postgres, "");
    let config = fresh.path().join("restore.toml");
    std::fs::write(&config, setup.config()).unwrap();
    let restored = try_restore(&config);
    assert!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));
    (setup, fresh, serde_json::from_slice(&restored.stdout).unwrap())
}

fn try_restore(config: &Path) -> Output {
    let mut restore = Command::new(binary());
    restore.args(["state", "restore", "--from", "postgres", "--output", "json", "--config"]).arg(config);
    restore.env("TASKMASTER_POSTGRES__PASSWORD", PASSWORD).output().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_that_breaks_off_leaves_nothing_that_looks_whole() {
    let stage = Stage::new("").await;
    let working = worker(&stage.client).await;
    let id = stage.client.submit(Task::new("echo").queue("mixed")).await.unwrap().id;
    stage.client.result(id).await.unwrap();
    stage.stored(1).await;
    working.shutdown().await.unwrap();
    // Everything can be read, and the new cluster cannot be noted.
    stage.postgres.refuse_writes(true).await;
    let fresh = directory();
    let mut setup = Setup::new(&fresh);
    setup.more = section(&stage.postgres, "");
    let config = fresh.path().join("restore.toml");
    std::fs::write(&config, setup.config()).unwrap();
    let refused = try_restore(&config);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("read-only"), "{said}");
    let left: Vec<_> = std::fs::read_dir(fresh.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["restore.toml"]);
    stage.postgres.refuse_writes(false).await;
    assert!(try_restore(&config).status.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_whose_disks_are_lost_comes_back_to_its_last_checkpoint() {
    let mut stage = Stage::new("").await;
    let client = stage.client.clone();
    let working = worker(&client).await;
    let mut ids = Vec::new();
    for n in 0..120u32 {
        let kind = ["echo", "shaky", "broken"][n as usize % 3];
        let retries = taskmaster_client::Retries::attempts(2).backoff(std::time::Duration::ZERO);
        let task = Task::new(kind).queue("mixed").retries(retries).payload(vec![9; n as usize]);
        ids.push(client.submit(task).await.unwrap().id);
    }
    for &id in &ids {
        client.result(id).await.unwrap();
    }
    stage.stored(ids.len()).await;
    let before = views(&client, &ids).await;
    working.shutdown().await.unwrap();
    stage.node.strike();
    std::fs::remove_dir_all(&stage.setup.data_dir).unwrap();

    let (mut setup, fresh, report) = restore(&stage);
    assert_eq!(report["tasks"], ids.len(), "{report}");
    for partition in report["partitions"].as_array().unwrap() {
        let number = partition["partition"].as_u64().unwrap();
        let sql = format!("SELECT count(*) FROM taskmaster.final_task WHERE partition = {number}");
        assert_eq!(partition["position"].as_i64().unwrap(), stage.count(&sql).await, "{partition}");
    }

    stage.node = setup.start();
    let client = Client::connect(stage.node.address.to_string()).await.unwrap();
    assert_eq!(views(&client, &ids).await, before);
    // It goes on: what failed can be retried, and what ends is stored behind what was.
    let working = worker(&client).await;
    client.retry([ids[2]]).await.unwrap();
    assert_eq!(client.result(ids[2]).await.unwrap().state, State::Failed);
    let next = client.submit(Task::new("echo").queue("mixed")).await.unwrap().id;
    client.result(next).await.unwrap();
    ids.push(next);
    let wanted = i64::try_from(ids.len() + 1).unwrap();
    let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while stage.count("SELECT count(*) FROM taskmaster.final_task").await != wanted {
        assert!(std::time::Instant::now() < until, "stored twice, or not at all: {}", stage.node.log());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    working.shutdown().await.unwrap();
    // Listings bring both histories, wherever the tasks are.
    for kept in ["", "kept = \"0s\"\n"] {
        stage.node.terminate();
        setup.more = section(&stage.postgres, kept);
        stage.node = setup.start();
        let client = Client::connect(stage.node.address.to_string()).await.unwrap();
        outages::until("tasks leave memory", async || kept.is_empty() || counter(&client, "tasks").await == 0).await;
        assert_eq!(ids_of(&list_from(&client, &TaskFilter::new(), None).await), sorted(ids.clone()));
    }
    let again = Command::new(binary())
        .args(["state", "restore", "--from", "postgres", "--config"])
        .arg(fresh.path().join("restore.toml"))
        .output()
        .unwrap();
    assert!(!again.status.success(), "there is a data directory");
}

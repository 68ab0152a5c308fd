//! Backups of nodes that run, and what comes back from them alone.

mod cluster;
mod damage;
mod load;
mod objects;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;
use taskmaster_client::{
    Client, QueueSettings, Retries, State, StateHistory, Task, TaskError, TaskId, TaskView, Worker, Workflow,
};
use tempfile::TempDir;

use crate::process::{Setup, binary, directory};

const LONG: Duration = Duration::from_secs(60);

fn state(arguments: &[&str]) -> Output {
    Command::new(binary()).arg("state").args(arguments).args(["--output", "json"]).output().unwrap()
}

/// What a command that succeeds answers.
fn answer(arguments: &[&str]) -> Value {
    let output = state(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What a command that must not succeed says.
fn refusal(arguments: &[&str]) -> String {
    let output = state(arguments);
    assert!(!output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A backup of a data directory.
fn back_up(data_dir: &Path, to: &Path) -> Value {
    answer(&["backup", "--data-dir", text(data_dir), "--to", text(to)])
}

/// A node restored from backups, not started, with the restore's answer.
fn restore(directory: &TempDir, backups: &[PathBuf]) -> (Setup, Value) {
    let setup = Setup::new(directory);
    let mut arguments = vec!["restore", "--data-dir", text(&setup.data_dir)];
    backups.iter().for_each(|backup| arguments.extend(["--from", text(backup)]));
    let told = answer(&arguments);
    (setup, told)
}

/// A worker of tasks that succeed, fail once, fail for good, and save states.
async fn worker(client: &Client) -> Worker {
    Worker::builder(client)
        .queue("mixed")
        .concurrency(16)
        .handler("echo", |task| async move { Ok(task.payload().to_vec()) })
        .handler("shaky", |task| async move {
            if task.attempt() == 1 { Err(TaskError::new("shaken", "not at first")) } else { Ok(b"steady".to_vec()) }
        })
        .handler("broken", |_| async move { Err::<Vec<u8>, _>(TaskError::new("broken", "never").log_tail("a\nb")) })
        .handler("saving", |task| async move {
            for step in 1..=3usize {
                task.save_as(&vec![7; step * 50_000], &format!("step {step}")).await?;
            }
            Err::<Vec<u8>, _>(TaskError::new("stop", "here").permanent())
        })
        .start()
        .await
        .unwrap()
}

/// All that clients can see.
#[derive(Debug, PartialEq)]
struct Seen {
    tasks: BTreeMap<TaskId, TaskView>,
    histories: BTreeMap<TaskId, StateHistory>,
    states: BTreeMap<(TaskId, u32), Vec<u8>>,
    workflows: Vec<(TaskId, String, u64, u64, Vec<TaskId>)>,
    queues: Vec<(String, u32, bool)>,
}

async fn see(client: &Client, ids: &[TaskId], workflow: TaskId) -> Seen {
    let (mut tasks, mut histories, mut states) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for &id in ids {
        // What the leader alone knows ends with it.
        let view = client.task(id).await.unwrap();
        let view = TaskView { started_us: 0, worker: String::new(), note: String::new(), done_permille: 0, ..view };
        tasks.insert(id, view);
        let history = client.state_log(id).await.unwrap();
        for version in &history.versions {
            let state = client.read_state(id, Some(version.number)).await.unwrap();
            states.insert((id, version.number), state.bytes.clone());
        }
        histories.insert(id, history);
    }
    let view = client.workflow(workflow).await.unwrap();
    let steps = view.tasks.iter().map(|task| task.id).collect();
    let queues = client.queues().await.unwrap();
    Seen {
        tasks,
        histories,
        states,
        workflows: vec![(view.id, view.name, view.submitted_us, view.finished_us, steps)],
        queues: queues.into_iter().map(|queue| (queue.queue, queue.concurrency, queue.is_paused)).collect(),
    }
}

/// What was waiting runs, what failed can be retried, what was saved is resumed.
async fn goes_on(client: &Client, ids: &[TaskId], workflow: TaskId) {
    let later = Worker::builder(client)
        .queue("later")
        .handler("echo", |task| async move { Ok(task.payload().to_vec()) })
        .start()
        .await
        .unwrap();
    for id in &ids[120..] {
        assert_eq!(client.result_within(*id, LONG).await.unwrap().unwrap().state, State::Succeeded, "{id}");
    }
    assert!(client.await_workflow(workflow, LONG).await.unwrap().is_success());
    let working = worker(client).await;
    client.retry([ids[2], ids[3]]).await.unwrap();
    assert_eq!(client.result_within(ids[2], LONG).await.unwrap().unwrap().state, State::Failed);
    assert_eq!(client.result_within(ids[3], LONG).await.unwrap().unwrap().state, State::Failed);
    assert_eq!(client.state_log(ids[3]).await.unwrap().head, 6);
    later.shutdown().await.unwrap();
    working.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_disk_is_lost_comes_back_with_every_task_result_workflow_and_state() {
    let directory = directory();
    let setup = Setup::new(&directory).shards(2);
    let node = setup.start();
    let client = setup.client().await;
    let working = worker(&client).await;
    client.configure_queue("mixed", QueueSettings::new().concurrency(12)).await.unwrap();
    let mut ids = Vec::new();
    for n in 0..120usize {
        let kind = ["echo", "shaky", "broken", "saving"][n % 4];
        let retries = Retries::attempts(2).backoff(Duration::ZERO);
        let task = Task::new(kind).queue("mixed").retries(retries).payload(vec![9; n * 10]);
        ids.push(client.submit(task).await.unwrap().id);
    }
    let mut workflow = Workflow::new("chain");
    let task = Task::new("echo").queue("mixed");
    let first = workflow.add("first", task.clone().payload("1"), []);
    let second = workflow.add("second", task.clone().payload("2"), [first]);
    workflow.add("third", Task::new("echo").queue("later"), [second]);
    let workflow = client.submit_workflow(workflow).await.unwrap();
    for id in ids.iter().chain(&workflow.tasks[..2]) {
        client.result_within(*id, LONG).await.unwrap().unwrap();
    }
    for n in 0..20u32 {
        // Nobody works for this queue yet.
        ids.push(client.submit(Task::new("echo").queue("later").payload(n.to_string())).await.unwrap().id);
    }
    ids.extend(&workflow.tasks);
    let before = see(&client, &ids, workflow.id).await;
    assert!(before.states.len() == 90 && before.tasks.values().any(|task| task.state == State::Failed));
    working.shutdown().await.unwrap();

    // The node runs on meanwhile.
    let backup = directory.path().join("backup");
    let told = back_up(&setup.data_dir, &backup);
    assert_eq!(told["positions"].as_array().unwrap().len(), 64, "{told}");
    node.kill();
    std::fs::remove_dir_all(&setup.data_dir).unwrap();
    let verified = answer(&["verify", text(&backup)]);
    assert_eq!(verified["positions"], told["positions"]);

    let fresh = self::directory();
    let (setup, restored) = restore(&fresh, &[backup]);
    let setup = setup.shards(2);
    let positions = |list: &Value| -> Vec<(u64, u64)> {
        let row = |row: &Value| (row["partition"].as_u64().unwrap(), row["position"].as_u64().unwrap());
        list.as_array().unwrap().iter().map(row).collect()
    };
    assert_eq!(positions(&restored["partitions"]), positions(&told["positions"]));
    assert_ne!(restored["new_cluster"], told["cluster"], "it is another cluster");
    let mut node = setup.start();
    let client = setup.client().await;
    assert_eq!(see(&client, &ids, workflow.id).await, before);

    goes_on(&client, &ids, workflow.id).await;
    // And once more, from its own log and from a backup of what was restored.
    assert!(node.terminate().success(), "{}", node.log());
    let backup = fresh.path().join("second");
    back_up(&setup.data_dir, &backup);
    let last = self::directory();
    let (setup, _) = restore(&last, &[backup]);
    let node = setup.shards(2).start();
    let client = Client::connect(node.address.to_string()).await.unwrap();
    assert_eq!(client.state_log(ids[3]).await.unwrap().head, 6);
}

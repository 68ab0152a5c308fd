//! Versioned state over real processes: workers that die, nodes that die, and the command line.

use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use taskmaster_client::{Client, State, StateChange, Step, Task, TaskError, Worker, Workflow};

use crate::process::{Running, Setup, binary, directory};

const LONG: Duration = Duration::from_secs(60);

fn command(node: &Running, arguments: &[&str]) -> Output {
    let address = node.address.to_string();
    Command::new(binary()).args(["--addr", &address]).args(arguments).output().unwrap()
}

/// The answer of a command that succeeds, as JSON.
fn answer(node: &Running, arguments: &[&str]) -> Value {
    let output = command(node, &[arguments, &["--output", "json"]].concat());
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A worker process that counts to 40, saves every step, and writes who it is and from where it began into the result.
fn counting_worker(node: &Running, name: &str) -> Child {
    let script = format!(
        r#"
        at=0; from=none
        if [ -n "$TASKMASTER_STATE_FILE" ]; then at=$(cat "$TASKMASTER_STATE_FILE"); from=$at; fi
        while [ "$at" -lt 40 ]; do
          at=$((at + 1))
          echo "$at" | {} state save --label "step $at" > /dev/null || exit 9
          sleep 0.05
        done
        echo "{name} from $from to $at with version $TASKMASTER_STATE_VERSION"
        "#,
        binary().display()
    );
    Command::new(binary())
        .args(["--addr", &node.address.to_string(), "worker", "--queue", "count", "--exec", &script])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn kill(mut child: Child) {
    kill_process(Pid::from_child(&child), Signal::KILL).unwrap();
    child.wait().unwrap();
}

async fn until_head(client: &Client, id: taskmaster_client::TaskId, wanted: u32) -> u32 {
    let until = Instant::now() + LONG;
    loop {
        let head = client.state_log(id).await.unwrap().head;
        if head >= wanted {
            return head;
        }
        assert!(Instant::now() < until, "the state came to version {head} of {wanted}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_workers_task_goes_on_elsewhere_from_the_version_saved_last() {
    let directory = directory();
    let setup = Setup::new(&directory);
    let node = setup.start();
    let client = Client::connect(node.address.to_string()).await.unwrap();
    let task = Task::new("count").queue("count").lease(Duration::from_secs(5));
    let id = client.submit(task).await.unwrap().id;
    let first = counting_worker(&node, "first");
    let saved = until_head(&client, id, 5).await;
    kill(first);
    // The node dies too: what was acknowledged is there afterwards.
    node.kill();
    let node = setup.start();
    let client = Client::connect(node.address.to_string()).await.unwrap();
    let history = client.state_log(id).await.unwrap();
    assert!(history.head >= saved, "{} was saved, {} is there", saved, history.head);
    let second = counting_worker(&node, "second");
    let outcome = client.result_within(id, LONG).await.unwrap().expect("it ends");
    let text = outcome.text().unwrap().trim().to_owned();
    let began: u32 = text.split(' ').nth(2).unwrap().parse().unwrap_or_else(|_| panic!("{text}"));
    assert_eq!(text, format!("second from {began} to 40 with version {began}"));
    assert!(began >= saved, "{text}, and {saved} had been saved");
    kill(second);
    let history = client.state_log(id).await.unwrap();
    let told: Vec<_> = history.versions.iter().map(|row| (row.number, row.parent)).collect();
    assert_eq!(told, (1..=40).map(|number| (number, number - 1)).collect::<Vec<_>>());
    for number in [1, began, 40] {
        assert_eq!(client.read_state(id, Some(number)).await.unwrap().bytes, format!("{number}\n").as_bytes());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_shows_compares_names_and_forks_states() {
    let directory = directory();
    let node = Setup::new(&directory).start();
    let client = Client::connect(node.address.to_string()).await.unwrap();
    let worker = Worker::builder(&client)
        .queue("steps")
        .handler("steps", |task| async move {
            let base = match task.load().await? {
                Some((_, state)) => serde_json::from_slice::<Value>(&state)?["step"].as_u64().unwrap_or(0),
                None => 0,
            };
            for step in base + 1..=base + 3 {
                let state = format!("{{\"step\": {step}, \"by\": \"attempt {}\"}}", task.attempt());
                task.save_as(state.as_bytes(), &format!("step {step}")).await?;
            }
            if base == 0 { Err(TaskError::new("stop", "here").permanent()) } else { Ok(base.to_string()) }
        })
        .start()
        .await
        .unwrap();
    let id = client.submit(Task::new("steps").queue("steps").payload("input")).await.unwrap().id;
    assert_eq!(client.result_within(id, LONG).await.unwrap().unwrap().state, State::Failed);
    let text = id.to_string();
    let log = answer(&node, &["state", "log", &text]);
    let versions: Vec<u64> =
        log["versions"].as_array().unwrap().iter().map(|v| v["version"].as_u64().unwrap()).collect();
    assert_eq!((versions, log["head"].as_u64(), log["current"].as_str()), (vec![1, 2, 3], Some(3), Some("main")));
    assert_eq!(log["versions"][1]["parent"], 1);
    assert_eq!(log["versions"][1]["label"], "step 2");
    assert_eq!(answer(&node, &["state", "tag", &text, "good", "--at", "2"])["version"], 2);
    assert_eq!(answer(&node, &["state", "show", &text, "--at", "good"])["state"]["step"], 2);
    let hash = log["versions"][1]["hash"].as_str().unwrap();
    assert_eq!(answer(&node, &["state", "show", &text, "--at", hash])["version"], 2);
    let raw = command(&node, &["state", "show", &text, "--at", "1"]).stdout;
    assert_eq!(raw, b"{\"step\": 1, \"by\": \"attempt 1\"}");
    let file = directory.path().join("state.json");
    answer(&node, &["state", "show", &text, "--file", file.to_str().unwrap()]);
    assert_eq!(std::fs::read(&file).unwrap(), b"{\"step\": 3, \"by\": \"attempt 1\"}");
    let diff = answer(&node, &["state", "diff", &text, "good", "3"]);
    let lines: Vec<&str> = diff["lines"].as_array().unwrap().iter().map(|line| line.as_str().unwrap()).collect();
    assert!(lines.contains(&"-  \"step\": 2") && lines.contains(&"+  \"step\": 3"), "{lines:?}");
    // From version 2 on it succeeds: as a fork, and as itself.
    let fork = answer(&node, &["task", "fork", &text, "--from", "good"]);
    let forked = fork["id"].as_str().unwrap().parse().unwrap();
    assert_eq!(client.result_within(forked, LONG).await.unwrap().unwrap().text().unwrap(), "2");
    assert_eq!(answer(&node, &["task", "resume", &text, "--from", "2"])["restarted"], true);
    assert_eq!(client.result_within(id, LONG).await.unwrap().unwrap().text().unwrap(), "2");
    let history = client.state_log(id).await.unwrap();
    assert_eq!(history.versions.iter().map(|row| (row.number, row.parent)).next_back(), Some((6, 5)));
    assert_eq!(history.version(4).unwrap().parent, 2, "the next attempt goes on from the version that was named");
    assert_eq!(answer(&node, &["state", "rollback", &text, "1"])["version"], 1);
    assert_eq!(answer(&node, &["state", "rollback", &text, "6"])["version"], 6);
    assert_eq!(client.state_log(id).await.unwrap().head, 6);
    answer(&node, &["state", "branch", &text, "other", "--at", "1", "--switch"]);
    assert_eq!(answer(&node, &["state", "gc", &text, "--keep", "1"])["kept"], 3, "heads of two branches and the tag");
    let missing = command(&node, &["state", "show", &text, "--at", "9"]);
    let said = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert!(missing.status.code() == Some(5) && said.contains("3 are kept, the latest: 6, 2, 1"), "{said}");
    let change = StateChange::Rollback { version: 9 };
    assert!(client.change_state(id, &change).await.is_err());
    worker.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workflow_is_forked_at_a_step_and_only_what_follows_runs_again() {
    let directory = directory();
    let node = Setup::new(&directory).start();
    let client = Client::connect(node.address.to_string()).await.unwrap();
    let worker = Worker::builder(&client)
        .queue("forks")
        .handler("step", |task| async move { Ok(task.id().to_string()) })
        .start()
        .await
        .unwrap();
    let mut workflow = Workflow::new("prefix");
    let mut last: Vec<Step> = Vec::new();
    for name in ["a", "b", "c"] {
        last = vec![workflow.add(name, Task::new("step").queue("forks"), last)];
    }
    let id = client.submit_workflow(workflow).await.unwrap().id;
    client.await_workflow(id, LONG).await.unwrap();
    let before = client.workflow(id).await.unwrap();
    let fork = answer(&node, &["workflow", "fork", &id.to_string(), "--at", "b"]);
    assert_eq!((&fork["tasks"], &fork["reused"]), (&Value::from(3), &Value::from(1)));
    let forked = fork["id"].as_str().unwrap().parse().unwrap();
    client.await_workflow(forked, LONG).await.unwrap();
    let forked = client.workflow(forked).await.unwrap();
    let mut by = Vec::new();
    for (old, new) in before.tasks.iter().zip(&forked.tasks) {
        let result = client.task(new.id).await.unwrap().result;
        by.push(if result == old.id.to_string().into_bytes() { "reused" } else { "run" });
        assert_eq!((&old.name, new.state), (&new.name, State::Succeeded));
    }
    assert_eq!(by, ["reused", "run", "run"]);
    worker.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_nodes_directory_tells_how_a_task_was_at_each_position() {
    let directory = directory();
    let setup = Setup::new(&directory);
    let mut node = setup.start();
    let client = Client::connect(node.address.to_string()).await.unwrap();
    let worker = Worker::builder(&client)
        .queue("past")
        .handler("past", |task| async move {
            for step in 1..=3u8 {
                task.save(&[b'0' + step]).await?;
            }
            Ok("done")
        })
        .start()
        .await
        .unwrap();
    let id = client.submit(Task::new("past").queue("past").payload("input")).await.unwrap().id;
    client.result_within(id, LONG).await.unwrap().unwrap();
    worker.shutdown().await.unwrap();
    assert!(node.terminate().success());
    let (data, text) = (setup.data_dir.to_str().unwrap(), id.to_string());
    let at =
        |position: u64| answer(&node, &["state", "at", "--position", &position.to_string(), "--data-dir", data, &text]);
    let last = Command::new(binary())
        .args(["state", "at", "--position", "1000000", "--data-dir", data, &text])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&last.stderr).into_owned();
    let end: u64 = said
        .split("ends at position ")
        .nth(1)
        .unwrap_or_else(|| panic!("{said}"))
        .split(',')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    let states: Vec<(String, u64)> = (2..=end)
        .filter_map(|position| {
            let output = command(
                &node,
                &["state", "at", "--position", &position.to_string(), "--data-dir", data, &text, "--output", "json"],
            );
            let seen: Value = serde_json::from_slice(&output.stdout).ok()?;
            Some((seen["task"]["state"].as_str()?.to_owned(), seen["head"].as_u64().unwrap_or(0)))
        })
        .collect();
    let mut steps = states.clone();
    steps.dedup();
    let expected = [("ready", 0), ("ready", 1), ("ready", 2), ("ready", 3), ("succeeded", 3)];
    assert_eq!(steps, expected.map(|(state, head)| (state.to_owned(), head)));
    let file = directory.path().join("was");
    let file = file.to_str().unwrap();
    let first = 2 + states.iter().position(|(_, head)| *head == 1).unwrap() as u64 + (end - 1 - states.len() as u64);
    assert_eq!(at(first)["versions"].as_array().unwrap().len(), 1);
    answer(
        &node,
        &["state", "at", "--position", &end.to_string(), "--data-dir", data, &text, "--state", "2", "--file", file],
    );
    assert_eq!(std::fs::read(file).unwrap(), b"2");
    assert!(said.contains("ends at position"), "{said}");
    // Nothing was changed: the node goes on.
    let node = setup.start();
    let client = Client::connect(node.address.to_string()).await.unwrap();
    assert_eq!(client.task(id).await.unwrap().result, b"done");
}

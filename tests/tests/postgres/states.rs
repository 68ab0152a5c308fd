//! States of tasks and settings of queues outlive all disks: their bytes are in the database, each once, and come back from there alone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use taskmaster_client::{
    Client, Policy, QueueSettings, QueueView, State, StateChange, StateHistory, Task, TaskError, TaskId, Worker,
};
use tokio::sync::Notify;

use super::Stage;
use super::restore::restore;

const LONG: Duration = Duration::from_secs(30);

/// Bytes that do not repeat, so that chunks are cut anywhere: the same for the same seed.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| next()).collect();
    bytes.truncate(len);
    bytes
}

/// What tasks save, one after the other: much the same, so that versions and tasks share chunks.
fn states(task: u8) -> Vec<Vec<u8>> {
    let whole = noise(1, 600_000);
    let mut edited = whole.clone();
    edited.splice(200_000..200_010, noise(2, 5_000));
    vec![whole, edited.clone(), [edited, vec![task; 100]].concat()]
}

/// Tasks with the payload "held" wait for word after their first save.
async fn worker(client: &Client, saved: &Arc<Notify>, named: &Arc<Notify>) -> Worker {
    let (saved, named) = (Arc::clone(saved), Arc::clone(named));
    let handler = move |task: taskmaster_client::Context| {
        let (saved, named) = (Arc::clone(&saved), Arc::clone(&named));
        async move {
            if let Some((_, state)) = task.load().await? {
                return Ok(state);
            }
            for (number, state) in states(task.payload().len().try_into().unwrap_or(0)).iter().enumerate() {
                task.save_as(state, &format!("step {number}")).await?;
                if number == 1 && task.payload() == b"held" {
                    saved.notify_one();
                    named.notified().await;
                }
            }
            if task.payload() == b"broken" {
                Err(TaskError::new("broken", "never").permanent())
            } else {
                Ok(b"done".to_vec())
            }
        }
    };
    Worker::builder(client).queue("saving").concurrency(8).handler("saves", handler).start().await.unwrap()
}

/// All that clients can see of states.
async fn see(client: &Client, ids: &[TaskId]) -> BTreeMap<TaskId, (StateHistory, Vec<Vec<u8>>)> {
    let mut seen = BTreeMap::new();
    for &id in ids {
        let history = client.state_log(id).await.unwrap();
        let mut states = Vec::new();
        for version in &history.versions {
            states.push(client.read_state(id, Some(version.number)).await.unwrap().bytes);
        }
        seen.insert(id, (history, states));
    }
    seen
}

async fn settings(client: &Client) -> Vec<QueueView> {
    let queues = client.queues().await.unwrap().into_iter();
    queues.map(|queue| QueueView { counts: taskmaster_client::Counts::default(), ..queue }).collect()
}

/// Chunks are shared, and people can read a state: here those of one task.
async fn the_database_has_each_chunk_once(
    stage: &Stage,
    seen: &BTreeMap<TaskId, (StateHistory, Vec<Vec<u8>>)>,
    of: TaskId,
) {
    let states = states(6);
    let distinct = states.concat().len() / states.len() + 5_000 + 8 * 1_024 * seen.len();
    let stored = stage.count("SELECT sum(length(bytes)) FROM taskmaster.state_chunk").await;
    assert!(stored < i64::try_from(distinct).unwrap(), "{stored} bytes of chunks");
    let read = "SELECT taskmaster.state_bytes($1, $2)";
    let database = stage.postgres.client().await;
    for (version, state) in (1i64..).zip(&seen[&of].1) {
        let row = database.query_one(read, &[&of.to_string(), &version]).await.unwrap();
        assert!(row.get::<_, Vec<u8>>(0) == *state, "version {version}");
    }
    assert!(database.query_one(read, &[&of.to_string(), &9i64]).await.unwrap().get::<_, Option<Vec<u8>>>(0).is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn states_and_settings_of_queues_come_back_when_all_disks_are_lost() {
    let mut stage = Stage::new("batch_size = \"64KiB\"\n").await;
    let client = stage.client.clone();
    let all = QueueSettings::new()
        .rate(7_500_000, 7)
        .concurrency(90)
        .depth_max(5_000)
        .policy(Policy::Shortest)
        .refuse_hopeless(250)
        .speculation(false)
        .giving_up(false)
        .contention(false);
    client.configure_queue("saving", all.retention(Duration::from_secs(7_200)).flag_deadlines(true)).await.unwrap();
    client.configure_queue("still", QueueSettings::new().paused(true).weight(40)).await.unwrap();
    client.configure_queue("drained", QueueSettings::new().draining(true)).await.unwrap();
    let (saved, named) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let working = worker(&client, &saved, &named).await;
    // Many tasks of one partition, as a concurrency key makes them.
    let task = |payload: &'static [u8]| Task::new("saves").queue("saving").concurrency_key("one", 16).payload(payload);
    let mut ids = Vec::new();
    for payload in [&b"held"[..], b"broken", b"1", b"22", b"333", b"4444"] {
        ids.push(client.submit(task(payload)).await.unwrap().id);
    }
    saved.notified().await;
    let held = ids[0];
    let change = async |change: StateChange| client.change_state(held, &change).await.unwrap();
    change(StateChange::Tag { name: "good".into(), version: Some(1) }).await;
    change(StateChange::Branch { name: "other".into(), version: Some(1) }).await;
    change(StateChange::Switch { name: "other".into() }).await;
    named.notify_one();
    for &id in &ids {
        client.result_within(id, LONG).await.unwrap().unwrap();
    }
    stage.stored(ids.len()).await;
    let (before, queues) = (see(&client, &ids).await, settings(&client).await);
    assert_eq!(before[&held].0.current, "other");

    the_database_has_each_chunk_once(&stage, &before, ids[1]).await;
    working.shutdown().await.unwrap();
    stage.node.strike();
    std::fs::remove_dir_all(&stage.setup.data_dir).unwrap();
    let (setup, _fresh, report) = restore(&stage);
    let versions: usize = before.values().map(|(history, _)| history.versions.len()).sum();
    assert_eq!((report["tasks"].as_u64(), report["versions"].as_u64()), (Some(6), Some(versions as u64)), "{report}");
    assert_eq!((report["versions_missing"].as_u64(), report["queues"].as_u64()), (Some(0), Some(3)), "{report}");
    stage.node = setup.start();
    let client = Client::connect(stage.node.address.to_string()).await.unwrap();
    assert!(see(&client, &ids).await == before, "not the same states");
    assert_eq!(settings(&client).await, queues);
    for _ in 0..2 * client.partitions() {
        assert!(client.submit(Task::new("any").queue("drained")).await.is_err(), "in every partition");
    }

    let states = states(6);
    // It goes on: a fork from a version, a task that is resumed from another, and after a restart from its own log, too.
    let working = worker(&client, &saved, &named).await;
    let fork = client.fork_task(ids[2], Some(1)).await.unwrap();
    assert!(client.result_within(fork, LONG).await.unwrap().unwrap().result == states[0]);
    assert_eq!(client.task(fork).await.unwrap().state, State::Succeeded);
    client.change_state(ids[1], &StateChange::Resume { version: Some(2) }).await.unwrap();
    assert!(client.result_within(ids[1], LONG).await.unwrap().unwrap().result == states[1]);
    working.shutdown().await.unwrap();
    stage.stored(ids.len() + 1).await;
    stage.node.strike();
    stage.node = setup.start();
    let client = Client::connect(stage.node.address.to_string()).await.unwrap();
    assert!(see(&client, &[held, ids[2]]).await.iter().all(|(id, seen)| before[id] == *seen));
    drop(client);

    // And once more, from both clusters' parts: a chunk that is gone takes the versions of both tasks that have it, and it is said.
    stage.node.strike();
    let database = stage.postgres.client().await;
    let gone = "DELETE FROM taskmaster.state_chunk WHERE cluster = 1 AND digest IN (
                    SELECT task.chunks[cardinality(task.chunks)] FROM taskmaster.final_task AS task WHERE id = taskmaster.id_of($1))";
    assert_eq!(database.execute(gone, &[&ids[5].to_string()]).await.unwrap(), 1);
    let (_, _fresh, report) = restore(&stage);
    assert_eq!((report["tasks"].as_u64(), report["versions_missing"].as_u64()), (Some(7), Some(2)), "{report}");
}

//! Backups while tasks come, run and end: each has what was acknowledged before it began.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use taskmaster_client::{Client, Context, State, Task, TaskId, Worker};

use super::{LONG, answer, back_up, restore, text};
use crate::process::{Setup, directory};

const BACKUPS: usize = 4;

async fn work(client: &Client) -> Worker {
    let handler = |task: Context| async move { Ok(task.payload()[..8].to_vec()) };
    Worker::builder(client).queue("load").concurrency(64).prefetch(128).handler("count", handler).start().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backups_of_a_loaded_node_have_every_task_that_was_acknowledged_before() {
    let directory = directory();
    // Snapshots are taken, and segments retired, meanwhile.
    let mut setup = Setup::new(&directory).shards(2);
    setup.variables.push(("TASKMASTER_WAL__SNAPSHOT_AFTER", "4MiB".to_owned()));
    let node = setup.start();
    let client = setup.client().await;
    let worker = work(&client).await;
    let (acknowledged, done) = (Arc::new(Mutex::new(Vec::<TaskId>::new())), Arc::new(AtomicBool::new(false)));
    let submitting = tokio::spawn({
        let (client, acknowledged, done) = (client.clone(), Arc::clone(&acknowledged), Arc::clone(&done));
        async move {
            while !done.load(Ordering::SeqCst) {
                let tasks = (0..64).map(|n| Task::new("count").queue("load").payload(vec![n; 4_000]));
                let outcomes = client.submit_many(tasks).await.unwrap();
                acknowledged.lock().unwrap().extend(outcomes.iter().filter(|one| one.is_kept()).map(|one| one.id));
            }
        }
    });
    let mut last = (directory.path().join("none"), Vec::new());
    for number in 0..BACKUPS {
        while acknowledged.lock().unwrap().len() < (number + 1) * 2_000 {
            assert!(!submitting.is_finished(), "nothing is submitted any more: {}", node.log());
            tokio::task::yield_now().await;
        }
        let before = acknowledged.lock().unwrap().clone();
        let backup = directory.path().join(format!("backup-{number}"));
        back_up(&setup.data_dir, &backup);
        answer(&["verify", text(&backup)]);
        last = (backup, before);
    }
    done.store(true, Ordering::SeqCst);
    submitting.await.unwrap();
    worker.shutdown().await.unwrap();
    node.kill();

    let (backup, before) = last;
    let fresh = self::directory();
    let (setup, _) = restore(&fresh, &[backup]);
    let node = setup.shards(2).start();
    let client = Client::connect(node.address.to_string()).await.unwrap();
    let worker = work(&client).await;
    assert_eq!(before.iter().collect::<HashSet<_>>().len(), before.len());
    for chunk in before.chunks(256) {
        let mut asked = tokio::task::JoinSet::new();
        for &id in chunk {
            let client = client.clone();
            asked.spawn(async move { (id, client.result_within(id, LONG).await) });
        }
        while let Some(told) = asked.join_next().await {
            let (id, outcome) = told.unwrap();
            let outcome = outcome.unwrap_or_else(|error| panic!("{id} was acknowledged and is not there: {error}"));
            assert_eq!(outcome.unwrap().state, State::Succeeded, "{id}");
        }
    }
    worker.shutdown().await.unwrap();
}

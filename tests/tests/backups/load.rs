//! Backups while tasks come, run and end: each has what was acknowledged before it began.

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use taskmaster_client::{Client, Context, State, Task, TaskId, Worker};

use super::{LONG, answer, back_up, restore, text};
use crate::process::{Setup, directory};

const BACKUPS: usize = 4;

async fn work(client: &Client) -> Worker {
    let handler = |task: Context| async move { Ok(task.payload()[..8].to_vec()) };
    Worker::builder(client).queue("load").concurrency(64).prefetch(128).handler("count", handler).start().await.unwrap()
}

/// Whether a shard in a data directory has a snapshot.
fn has_snapshot(data_dir: &Path, shard: u32) -> bool {
    let files = std::fs::read_dir(data_dir.join(format!("shard-{shard:03}"))).unwrap();
    files.map(|file| file.unwrap().path()).any(|path| path.extension().is_some_and(|extension| extension == "snap"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backups_of_a_loaded_node_have_every_task_that_was_acknowledged_before() {
    let directory = directory();
    let setup = Setup::new(&directory).shards(2);
    let node = setup.start();
    let client = setup.client().await;
    let worker = work(&client).await;
    let (acknowledged, done) = (Arc::new(Mutex::new(Vec::<TaskId>::new())), Arc::new(AtomicBool::new(false)));
    let submitting = tokio::spawn({
        let (client, acknowledged, done) = (client.clone(), Arc::clone(&acknowledged), Arc::clone(&done));
        async move {
            while !done.load(Ordering::SeqCst) {
                let tasks = (0..64).map(|n| Task::new("count").queue("load").payload(vec![n; 20_000]));
                let outcomes = client.submit_many(tasks).await.unwrap();
                acknowledged.lock().unwrap().extend(outcomes.iter().filter(|one| one.is_kept()).map(|one| one.id));
            }
        }
    });
    let mut last = (directory.path().join("none"), Vec::new());
    for number in 0..BACKUPS {
        // The last one begins with snapshots, which are taken when the log is long.
        let is_due = || {
            let has_snapshots = (0..2).all(|shard| has_snapshot(&setup.data_dir, shard));
            acknowledged.lock().unwrap().len() >= (number + 1) * 1_000 && (number + 1 < BACKUPS || has_snapshots)
        };
        while !is_due() {
            assert!(!submitting.is_finished(), "nothing is submitted any more: {}", node.log());
            tokio::time::sleep(Duration::from_millis(2)).await;
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
    assert!((0..2).all(|shard| has_snapshot(&backup.join("data"), shard)));
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

//! What goes with final tasks: the versions of their states, and the settings of queues.

use std::sync::Arc;
use std::time::Duration;

use taskmaster_client::{Policy, QueueSettings, StateChange, Task, TaskError, Worker};
use tokio::sync::Notify;

use super::Stage;
use super::outages::{finish, until, worker};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_versions_of_a_finished_tasks_state_are_stored_with_it() {
    let stage = Stage::new("").await;
    let client = &stage.client;
    let (saved, named) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (tell, wait) = (Arc::clone(&saved), Arc::clone(&named));
    let handler = move |task: taskmaster_client::Context| {
        let (tell, wait) = (Arc::clone(&tell), Arc::clone(&wait));
        async move {
            task.save(&[1; 3_000]).await?;
            task.save_as(&[2; 5_000], "half \"way\"\0").await?;
            tell.notify_one();
            wait.notified().await;
            Err::<Vec<u8>, _>(TaskError::new("broken", "never").permanent())
        }
    };
    let working = Worker::builder(client).queue("saving").handler("saves", handler).start().await.unwrap();
    let id = client.submit(Task::new("saves").queue("saving")).await.unwrap().id;
    saved.notified().await;
    client.change_state(id, &StateChange::Tag { name: "good".into(), version: Some(1) }).await.unwrap();
    client.change_state(id, &StateChange::Branch { name: "other".into(), version: Some(1) }).await.unwrap();
    named.notify_one();
    client.result(id).await.unwrap();
    stage.stored(1).await;
    let log = client.state_log(id).await.unwrap();
    assert_eq!(log.versions.len(), 2);
    let database = stage.postgres.client().await;
    let sql = "SELECT task, version, coalesce(parent, 0), (extract(epoch FROM saved_at) * 1000000)::int8, attempt, bytes, new_bytes,
                      digest, coalesce(label, ''), branches, tags, queue, state
               FROM taskmaster.state_versions ORDER BY version";
    let read = async || database.query(sql, &[]).await.unwrap();
    let rows = read().await;
    assert_eq!(rows.len(), 2);
    for (row, version) in rows.iter().zip(&log.versions) {
        let names = |of: &[(String, u32)]| {
            of.iter().filter(|(_, number)| *number == version.number).map(|(name, _)| name.clone()).collect::<Vec<_>>()
        };
        let numbers: [i64; 6] = core::array::from_fn(|column| row.get(column + 1));
        assert_eq!(row.get::<_, String>(0), id.to_string());
        let expected = [version.number.into(), version.parent.into(), version.time_us, version.attempt.into()];
        assert_eq!(numbers[..4], expected.map(u64::cast_signed));
        assert_eq!(numbers[4..], [version.size, version.new_bytes].map(u64::cast_signed));
        assert_eq!(row.get::<_, Vec<u8>>(7), version.digest);
        assert_eq!(row.get::<_, String>(8), version.label.replace('\0', "\u{FFFD}"));
        assert_eq!((row.get::<_, Vec<String>>(9), row.get(10)), (names(&log.branches), names(&log.tags)));
        assert_eq!((row.get::<_, &str>(11), row.get::<_, &str>(12)), ("saving", "failed"));
    }
    // The task ends once more, with more versions: it is there as it ended last.
    client.retry([id]).await.unwrap();
    saved.notified().await;
    named.notify_one();
    client.result(id).await.unwrap();
    let versions = i64::try_from(client.state_log(id).await.unwrap().versions.len()).unwrap();
    until("the second end is stored", async || stage.count("SELECT count(*) FROM taskmaster.final_task").await == 2)
        .await;
    assert_eq!(stage.count("SELECT count(*) FROM taskmaster.state_versions").await, versions);
    working.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_settings_of_queues_are_stored_with_the_next_tasks() {
    let mut stage = Stage::new("").await;
    let client = stage.client.clone();
    let settings = QueueSettings::new().rate(2_500_000, 7).concurrency(90).policy(Policy::Fifo).weight(3);
    client.configure_queue("plain", settings.retention(Duration::from_secs(7_200)).flag_deadlines(true)).await.unwrap();
    let working = worker(&client).await;
    finish(&client, 40).await;
    stage.stored(40).await;
    let plain = "FROM taskmaster.queue_config WHERE namespace = 'default' AND queue = 'plain'";
    let as_set =
        "rate_per_s = 2500 AND rate_burst = 7 AND concurrency = 90 AND policy = 'fifo' AND retention = '2 hours'
                  AND at_deadline = 'flag' AND depth_max IS NULL AND NOT paused AND NOT draining AND weight = 3";
    assert_eq!(stage.count(&format!("SELECT count(*) {plain} AND {as_set}")).await, 1);
    // A change goes with what ends after it, also while the database is away.
    stage.postgres.kill();
    client.configure_queue("plain", QueueSettings::new().rate(0, 1).concurrency(50)).await.unwrap();
    finish(&client, 40).await;
    stage.postgres.restart().await;
    stage.stored(80).await;
    let changed = "rate_per_s IS NULL AND concurrency = 50 AND policy = 'fifo'";
    assert_eq!(stage.count(&format!("SELECT count(*) {plain} AND {changed}")).await, 1);
    working.shutdown().await.unwrap();
}

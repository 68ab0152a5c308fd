//! What is long of ended tasks comes from Redis once it was read, and whatever Redis does, every answer is the history's.

use std::collections::BTreeMap;

use taskmaster_client::{Client, Retries, Task, TaskId, TaskView};

use super::Stage;
use super::history::worker;
use super::outages::until;
use crate::process::counter;
use crate::services::redis::Redis;

const LONG: usize = 100_000;

async fn views(client: &Client, ids: &[TaskId]) -> BTreeMap<TaskId, TaskView> {
    let mut views = BTreeMap::new();
    for &id in ids {
        views.insert(id, client.task(id).await.unwrap());
    }
    views
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_of_the_history_are_kept_in_redis_and_every_answer_stays_what_it_was() {
    let mut redis = Redis::start().await;
    let (url, password) = (redis.url(), redis.password_file());
    let more = format!("kept = \"0s\"\n[redis]\nurl = \"{url}\"\npassword_file = \"{password}\"\nhistory = true\n");
    // What stays in the node would hide what becomes of the server.
    let stage = Stage::new(&format!("{more}local_size = \"0B\"\n")).await;
    let client = &stage.client;
    let working = worker(client).await;
    let task = |kind, len| Task::new(kind).queue("mixed").payload(vec![7; len]).retries(Retries::attempts(1));
    let mut ids = Vec::new();
    for (kind, len) in [("echo", LONG), ("broken", LONG + 1), ("echo", 10), ("broken", 11), ("echo", 1 << 19)] {
        ids.push(client.submit(task(kind, len)).await.unwrap().id);
        client.result(ids[ids.len() - 1]).await.unwrap();
    }
    stage.stored(ids.len()).await;
    until("tasks leave memory", async || counter(client, "tasks").await == 0).await;
    until("Redis is there", async || counter(client, "redis_connected").await == 1).await;

    let first = views(client, &ids).await;
    assert_eq!((first[&ids[0]].result.len(), first[&ids[1]].payload.len()), (LONG, LONG + 1));
    assert_eq!(first[&ids[4]].result.len(), 1 << 19, "longer than Redis is to keep");
    until("both long ones are kept", async || counter(client, "redis_stored").await == 2).await;
    assert_eq!(redis.values().await.len(), 2);
    // Where Redis answers late, the database alone has answered.
    let judged = async || {
        let mut sum = 0;
        for name in ["redis_recalled", "redis_unusable", "redis_failures"] {
            sum += counter(client, name).await;
        }
        sum
    };
    let before = judged().await;
    assert!(views(client, &ids).await == first);
    assert_eq!(judged().await, before + 2);

    let values = redis.values().await;
    let lies: [&dyn Fn(usize) -> Vec<u8>; 3] =
        [&|_| b"nonsense".to_vec(), &|at| values[1 - at].1.clone(), &|at| values[at].1[1..].to_vec()];
    for (round, lie) in lies.into_iter().enumerate() {
        for (at, (key, _)) in values.iter().enumerate() {
            redis.set(key, &lie(at)).await;
        }
        let stored = counter(client, "redis_stored").await;
        assert!(views(client, &ids).await == first);
        assert_eq!(judged().await, before + 2 * (round as u64 + 2));
        // And is mended.
        until("both are kept again", async || counter(client, "redis_stored").await == stored + 2).await;
        assert!(redis.values().await == values);
    }
    redis.pause();
    assert!(views(client, &ids).await == first);
    redis.resume();
    redis.kill();
    assert!(views(client, &ids).await == first);
    assert!(counter(client, "redis_recalled").await <= 2, "what was kept before");
    working.shutdown().await.unwrap();
}

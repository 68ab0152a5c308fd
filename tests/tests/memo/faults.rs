//! Whatever becomes of Redis, every answer is what a run gives.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Stand, answer, task, worker};
use crate::services::redis::Redis;

/// Tasks of each round.
const TASKS: u64 = 20;
/// Longest time that the answers of a round may take: it asks about each of them, in vain at worst.
const ROUND_MAX: Duration = Duration::from_secs(30);

/// What is done to Redis between the run at one node and the question of the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    Killed,
    Hung,
    Overwritten,
    Swapped,
    Cut,
}

async fn lie(redis: &Redis, fault: Fault) {
    let values = redis.values().await;
    for (number, (key, value)) in values.iter().enumerate() {
        match fault {
            Fault::Overwritten => redis.set(key, b"nonsense").await,
            // Each a whole value, and of another task.
            Fault::Swapped => redis.set(key, &values[(number + 1) % values.len()].1).await,
            Fault::Cut => redis.set(key, &value[..value.len() - 1]).await,
            Fault::None | Fault::Killed | Fault::Hung => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_is_killed_hangs_or_lies_never_changes_an_answer() {
    let mut redis = Redis::start().await;
    let url = redis.url();
    let (here, there) = (Stand::with(&redis, &url).await, Stand::with(&redis, &url).await);
    let (one, _) = worker(&here.client, Duration::ZERO).await;
    let (two, runs) = worker(&there.client, Duration::ZERO).await;
    let faults = [Fault::None, Fault::Killed, Fault::Hung, Fault::Overwritten, Fault::Swapped, Fault::Cut, Fault::None];
    let mut outages = 0;
    for (round, fault) in faults.into_iter().enumerate() {
        here.reaches("redis_connected", 1).await;
        there.reaches("redis_connected", 1).await;
        redis::cmd("FLUSHALL").query_async::<()>(&mut redis.client().await).await.unwrap();
        let payloads: Vec<String> = (0..TASKS).map(|number| format!("round {round} task {number}")).collect();
        let stored = here.counter("redis_stored").await.unwrap();
        for payload in &payloads {
            let id = here.client.submit(task(payload)).await.unwrap().id;
            assert_eq!(here.client.result(id).await.unwrap().result, answer(payload.as_bytes()));
        }
        here.reaches("redis_stored", stored + TASKS).await;
        let unusable = there.counter("redis_unusable").await.unwrap();
        lie(&redis, fault).await;
        match fault {
            Fault::Killed => redis.kill(),
            Fault::Hung => redis.pause(),
            Fault::None | Fault::Overwritten | Fault::Swapped | Fault::Cut => {}
        }
        let before = runs.swap(0, Ordering::Relaxed);
        let begun = Instant::now();
        for payload in &payloads {
            let id = there.client.submit(task(payload)).await.unwrap().id;
            let outcome = there.client.result(id).await.unwrap();
            assert_eq!(outcome.result, answer(payload.as_bytes()), "round {round}, {fault:?}, {before} runs before");
        }
        assert!(begun.elapsed() < ROUND_MAX, "{fault:?}: {:?}", begun.elapsed());
        let lied = there.counter("redis_unusable").await.unwrap() - unusable;
        let ran = runs.load(Ordering::Relaxed);
        match fault {
            Fault::None => assert_eq!((ran, lied), (0, 0)),
            Fault::Killed | Fault::Hung => assert_eq!((ran, lied), (TASKS, 0)),
            Fault::Overwritten | Fault::Swapped | Fault::Cut => assert_eq!((ran, lied), (TASKS, TASKS), "{fault:?}"),
        }
        if matches!(fault, Fault::Killed | Fault::Hung) {
            outages += 1;
            // Also the one that did not ask.
            here.reaches("redis_outages", outages).await;
            there.reaches("redis_outages", outages).await;
        }
        match fault {
            Fault::Killed => redis.restart().await,
            Fault::Hung => redis.resume(),
            Fault::None | Fault::Overwritten | Fault::Swapped | Fault::Cut => {}
        }
    }
    one.shutdown().await.unwrap();
    two.shutdown().await.unwrap();
}

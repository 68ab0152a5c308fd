//! `kill -9` of a loaded node at random moments: nothing acknowledged is lost, nothing is completed twice.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use taskmaster_client::{Client, Retries, State, Task, TaskId, Worker};

use crate::process::{Setup, directory};

const KILLS: u64 = 20;

/// What clients were told, and what workers did.
#[derive(Default)]
struct Ledger {
    acknowledged: Mutex<Vec<TaskId>>,
    /// Results that handlers returned, by task: one for each run of the handler.
    returned: Mutex<HashMap<TaskId, HashSet<String>>>,
    /// Results that a client was told.
    told: Mutex<HashMap<TaskId, String>>,
    runs: AtomicU64,
    done: AtomicBool,
}

async fn submit(client: Client, ledger: Arc<Ledger>) {
    while !ledger.done.load(Ordering::Relaxed) {
        let retries = Retries::attempts(1_000).backoff(Duration::ZERO);
        let task = |n: u32| {
            Task::new("count")
                .queue("load")
                .lease(Duration::from_secs(2))
                .retries(retries.clone())
                .payload(vec![7; 64 + (n as usize % 5) * 1_000])
        };
        let tasks: Vec<Task> = (0..64).map(task).collect();
        // A lost answer is repeated by the client under the same ids; what it cannot learn is not acknowledged.
        let Ok(outcomes) = client.submit_many(tasks).await else { continue };
        let kept = outcomes.iter().filter(|outcome| outcome.is_kept()).map(|outcome| outcome.id);
        ledger.acknowledged.lock().unwrap().extend(kept);
    }
}

/// Asks for the outcome of some acknowledged tasks as soon as there is one.
async fn watch(client: Client, ledger: Arc<Ledger>) {
    while !ledger.done.load(Ordering::Relaxed) {
        let id = ledger.acknowledged.lock().unwrap().last().copied();
        let Some(id) = id else {
            tokio::task::yield_now().await;
            continue;
        };
        if let Ok(Some(outcome)) = client.result_within(id, Duration::from_secs(1)).await {
            assert_eq!(outcome.state, State::Succeeded);
            ledger.told.lock().unwrap().insert(id, outcome.text().unwrap());
        }
    }
}

async fn work(client: &Client, ledger: &Arc<Ledger>) -> Worker {
    let ledger = Arc::clone(ledger);
    Worker::builder(client)
        .queue("load")
        .concurrency(64)
        .prefetch(128)
        .handler("count", move |task| {
            let run = ledger.runs.fetch_add(1, Ordering::Relaxed);
            let result = format!("{} run {run}", task.id());
            ledger.returned.lock().unwrap().entry(task.id()).or_default().insert(result.clone());
            async move { Ok(result) }
        })
        .start()
        .await
        .unwrap()
}

async fn verify(client: &Client, ledger: &Ledger) -> (usize, usize) {
    let acknowledged = ledger.acknowledged.lock().unwrap().clone();
    let distinct: HashSet<TaskId> = acknowledged.iter().copied().collect();
    assert_eq!(distinct.len(), acknowledged.len(), "an id was acknowledged twice");
    for chunk in acknowledged.chunks(256) {
        let mut asked = tokio::task::JoinSet::new();
        for &id in chunk {
            let client = client.clone();
            asked.spawn(async move { (id, client.result(id).await) });
        }
        while let Some(answer) = asked.join_next().await {
            let (id, outcome) = answer.unwrap();
            let outcome = outcome.unwrap_or_else(|error| panic!("{id} was acknowledged and is lost: {error}"));
            assert_eq!(outcome.state, State::Succeeded, "{id}");
            let result = outcome.text().unwrap();
            let returned = ledger.returned.lock().unwrap();
            assert!(
                returned.get(&id).is_some_and(|results| results.contains(&result)),
                "{id}: nobody returned {result}"
            );
            if let Some(told) = ledger.told.lock().unwrap().get(&id) {
                assert_eq!(*told, result, "{id} was completed twice");
            }
        }
    }
    (acknowledged.len(), ledger.told.lock().unwrap().len())
}

/// Whole snapshots of all shards.
fn snapshots(setup: &Setup) -> usize {
    let shards = (0..setup.shards).map(|shard| setup.data_dir.join(format!("shard-{shard:03}")));
    let files = shards.flat_map(|shard| std::fs::read_dir(shard).unwrap());
    files.filter(|file| file.as_ref().unwrap().path().extension().is_some_and(|extension| extension == "snap")).count()
}

async fn kill_and_restart(shards: u16, kills: u64) {
    let directory = directory();
    let setup = Setup::new(&directory).shards(shards);
    let mut node = setup.start();
    let client = setup.client().await;
    let ledger = Arc::new(Ledger::default());
    let worker = work(&client, &ledger).await;
    let mut load = tokio::task::JoinSet::new();
    for _ in 0..3 {
        load.spawn(submit(client.clone(), Arc::clone(&ledger)));
    }
    load.spawn(watch(client.clone(), Arc::clone(&ledger)));
    // The moments differ from run to run, which is the point: any moment must do.
    let mut moment = u64::from(std::process::id()) ^ u64::from(shards);
    let mut kill = 0;
    // A slow machine writes less between two kills: more of them make up for it.
    while kill < kills || (snapshots(&setup) == 0 && kill < 10 * kills) {
        kill += 1;
        moment = moment.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let before = ledger.acknowledged.lock().unwrap().len();
        tokio::time::sleep(Duration::from_millis(20 + (moment >> 33) % 400)).await;
        node.kill();
        node = setup.start();
        // Under load again before the next one.
        let until = std::time::Instant::now() + Duration::from_secs(60);
        while ledger.acknowledged.lock().unwrap().len() <= before {
            assert!(std::time::Instant::now() < until, "no progress after kill {kill}: {}", node.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    ledger.done.store(true, Ordering::Relaxed);
    while let Some(ended) = load.join_next().await {
        ended.unwrap();
    }
    let (acknowledged, told) = verify(&client, &ledger).await;
    let runs = ledger.runs.load(Ordering::Relaxed);
    eprintln!(
        "{shards} shard(s), {kill} kills: {acknowledged} tasks acknowledged, {runs} runs, {told} results told before the end"
    );
    let snapshots = snapshots(&setup);
    eprintln!("{snapshots} snapshots at the end");
    assert!(snapshots > 0, "a node that is often killed takes snapshots too");
    worker.shutdown_within(Duration::from_secs(30)).await.unwrap();
    assert!(node.terminate().success(), "{}", node.log());
    // An orderly stop leaves everything, too.
    let _node = setup.start();
    let client = setup.client().await;
    verify(&client, &ledger).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_and_nothing_completed_twice_when_a_loaded_node_is_killed() {
    kill_and_restart(1, KILLS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_two_shards_survives_kills_as_well() {
    kill_and_restart(2, 8).await;
}

/// The load goes on while the node is asked to end: it must drain and leave with success.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loaded_node_that_is_asked_to_end_drains_and_loses_nothing() {
    let directory = directory();
    let setup = Setup::new(&directory);
    let ledger = Arc::new(Ledger::default());
    let mut load = tokio::task::JoinSet::new();
    let mut node = setup.start();
    let client = setup.client().await;
    let worker = work(&client, &ledger).await;
    for _ in 0..3 {
        load.spawn(submit(client.clone(), Arc::clone(&ledger)));
    }
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let status = node.terminate();
        assert!(status.success(), "{status}: {}", node.log());
        node = setup.start();
        assert!(!node.log().contains("unfinished tail"), "{}", node.log());
    }
    ledger.done.store(true, Ordering::Relaxed);
    while let Some(ended) = load.join_next().await {
        ended.unwrap();
    }
    verify(&client, &ledger).await;
    worker.shutdown_within(Duration::from_secs(30)).await.unwrap();
}

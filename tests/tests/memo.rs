//! Memoised tasks on real nodes, with a real Redis that is there, or is killed, hangs or lies.

mod faults;
mod store;
mod tls;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use taskmaster_client::{Client, Retries, State, Task, TaskError, Worker};
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::cluster::nodes::Cluster;
use crate::process::{Running, Setup, directory};
use crate::services::redis::{PASSWORD, Redis};

/// What handlers here make of a payload.
fn answer(payload: &[u8]) -> Vec<u8> {
    payload.iter().rev().copied().collect()
}

fn task(payload: &str) -> Task {
    Task::new("reverse").queue("memo").payload(payload.as_bytes()).memoised("1")
}

/// A node that stands alone, and a client of it.
struct Stand {
    setup: Setup,
    node: Running,
    client: Client,
    _directory: TempDir,
}

impl Stand {
    /// With Redis at this address.
    async fn with(redis: &Redis, url: &str) -> Self {
        let more =
            format!("[redis]\nurl = \"{url}\"\npassword_file = \"{}\"\ntimeout = \"1s\"\n", redis.password_file());
        Self::configured(&format!("{more}[log]\nlevel = \"debug\"\n")).await
    }

    async fn configured(more: &str) -> Self {
        let directory = directory();
        let mut setup = Setup::new(&directory);
        more.clone_into(&mut setup.more);
        let node = setup.start();
        let client = Client::connect(node.address.to_string()).await.unwrap();
        Self { setup, node, client, _directory: directory }
    }

    /// A counter of the node.
    async fn counter(&self, name: &str) -> Option<u64> {
        let stats = self.client.stats().await.unwrap();
        let values: Vec<u64> = stats
            .iter()
            .flat_map(|shard| &shard.counters)
            .filter(|(known, _)| known == name)
            .map(|(_, value)| *value)
            .collect();
        (!values.is_empty()).then(|| values.iter().sum())
    }

    /// Waits until a counter has come so far.
    async fn reaches(&self, name: &str, value: u64) {
        let until = Instant::now() + Duration::from_secs(30);
        while self.counter(name).await.unwrap_or(0) < value {
            assert!(Instant::now() < until, "{name} stays below {value}: {}", self.node.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// A worker that counts its runs, each of which takes this long.
async fn worker(client: &Client, takes: Duration) -> (Worker, Arc<AtomicU64>) {
    let runs = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&runs);
    let handler = move |task: taskmaster_client::Context| {
        counted.fetch_add(1, Ordering::Relaxed);
        async move {
            tokio::time::sleep(takes).await;
            Ok(answer(task.payload()))
        }
    };
    let worker =
        Worker::builder(client).queue("memo").concurrency(64).handler("reverse", handler).start().await.unwrap();
    (worker, runs)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_answers_at_another_node_that_shares_nothing_but_redis() {
    let (single, cluster) = (Redis::start().await, Redis::start_cluster().await);
    let sentinel = single.watched();
    let urls = [(&single, single.url()), (&single, sentinel.url()), (&cluster, cluster.cluster_url())];
    for (number, (redis, url)) in urls.into_iter().enumerate() {
        let payload = format!("payload {number}");
        let (here, there) = (Stand::with(redis, &url).await, Stand::with(redis, &url).await);
        here.reaches("redis_connected", 1).await;
        there.reaches("redis_connected", 1).await;
        let (worker, runs) = worker(&here.client, Duration::ZERO).await;
        let first = here.client.submit(task(&payload)).await.unwrap().id;
        here.client.result(first).await.unwrap();
        here.reaches("redis_stored", 1).await;
        // Nobody works there.
        let second = there.client.submit(task(&payload)).await.unwrap().id;
        let outcome = there.client.result(second).await.unwrap();
        assert_eq!(outcome.result, answer(payload.as_bytes()), "{url}");
        let seen = there.client.task(second).await.unwrap();
        assert!(seen.is_memo && seen.note.contains(&first.to_string()) && seen.attempt == 0, "{seen:?}");
        assert_eq!((there.counter("redis_hits").await, runs.load(Ordering::Relaxed)), (Some(1), 1));
        // Another version is another task.
        let other = there.client.submit(task(&payload).memoised("2")).await.unwrap().id;
        assert_eq!(there.client.task(other).await.unwrap().state, State::Ready);
        worker.shutdown().await.unwrap();
        for stand in [&here, &there] {
            assert!(!stand.node.log().contains(PASSWORD), "{}", stand.node.log());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_takes_the_servers_place_is_found_by_sentinels() {
    let mut prime = Redis::start().await;
    let replica = prime.replicated().await;
    let sentinel = prime.watched();
    sentinel.knows_a_replica().await;
    let (here, there) = (Stand::with(&prime, &sentinel.url()).await, Stand::with(&prime, &sentinel.url()).await);
    here.reaches("redis_connected", 1).await;
    there.reaches("redis_connected", 1).await;
    let (worker, _) = worker(&here.client, Duration::ZERO).await;
    prime.kill();
    let until = Instant::now() + Duration::from_secs(120);
    for number in 0.. {
        assert!(Instant::now() < until, "{}", there.node.log());
        let payload = format!("after {number}");
        let first = here.client.submit(task(&payload)).await.unwrap().id;
        assert_eq!(here.client.result(first).await.unwrap().result, answer(payload.as_bytes()));
        // Nobody works there: it is done if the new server has it, and else as if there were none.
        let second = there.client.submit(task(&payload)).await.unwrap().id;
        if let Some(outcome) = there.client.result_within(second, Duration::from_secs(2)).await.unwrap() {
            assert_eq!(outcome.result, answer(payload.as_bytes()));
            break;
        }
        there.client.cancel([second]).await.unwrap();
    }
    assert!(!replica.values().await.is_empty());
    worker.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_run_serves_a_hundred_submitters_at_two_nodes() {
    let redis = Redis::start().await;
    let mut cluster = Cluster::planned(crate::cluster::nodes::Place::loopback()).await;
    for node in &mut cluster.nodes {
        node.setup.variables.push(("TASKMASTER_REDIS__URL", redis.url()));
        node.setup.variables.push(("TASKMASTER_REDIS__PASSWORD", PASSWORD.to_owned()));
    }
    cluster.form().await;
    let own = cluster.client().await;
    for (round, takes) in [(0, Duration::ZERO), (1, Duration::from_millis(300))] {
        let (worker, runs) = worker(&own, takes).await;
        let mut submitters = JoinSet::new();
        for number in 0..100 {
            let address = cluster.nodes[number % 2].address();
            submitters.spawn(async move {
                let client = Client::connect(address).await.unwrap();
                let id = client.submit(task(&format!("round {round}"))).await.unwrap().id;
                let outcome = client.result(id).await.unwrap();
                assert_eq!(outcome.result, answer(format!("round {round}").as_bytes()));
                client.task(id).await.unwrap().is_memo
            });
        }
        let memoised = submitters.join_all().await.into_iter().filter(|is_memo| *is_memo).count();
        assert_eq!((runs.load(Ordering::Relaxed), memoised), (1, 99));
        worker.shutdown().await.unwrap();
    }
    cluster.agreed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payload_that_fails_is_run_once_for_all_who_wait_and_again_for_who_comes_later() {
    let stand = Stand::configured("").await;
    let runs = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&runs);
    let mut ids = Vec::new();
    for _ in 0..10 {
        ids.push(stand.client.submit(task("input").retries(Retries::attempts(1))).await.unwrap().id);
    }
    let handler = move |task: taskmaster_client::Context| {
        let run = counted.fetch_add(1, Ordering::Relaxed);
        async move { if run == 0 { Err(TaskError::new("broken", "not yet")) } else { Ok(answer(task.payload())) } }
    };
    let worker = Worker::builder(&stand.client).queue("memo").handler("reverse", handler).start().await.unwrap();
    for id in ids {
        let outcome = stand.client.result(id).await.unwrap();
        assert_eq!((outcome.state, outcome.error_code.as_str()), (State::Failed, "broken"));
    }
    assert_eq!(runs.load(Ordering::Relaxed), 1);
    let later = stand.client.submit(task("input")).await.unwrap().id;
    assert_eq!(stand.client.result(later).await.unwrap().result, answer(b"input"));
    worker.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_redis_there_is_no_thread_for_it_and_a_node_remembers_by_itself() {
    let stand = Stand::configured("").await;
    assert!(!stand.node.threads().iter().any(|name| name == "memo"), "{:?}", stand.node.threads());
    assert_eq!(stand.counter("redis_connected").await, None);
    let (worker, runs) = worker(&stand.client, Duration::ZERO).await;
    for _ in 0..3 {
        let id = stand.client.submit(task("input")).await.unwrap().id;
        assert_eq!(stand.client.result(id).await.unwrap().result, answer(b"input"));
    }
    assert_eq!((runs.load(Ordering::Relaxed), stand.counter("memoised").await), (1, Some(2)));
    worker.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_says_what_is_wrong_with_redis_and_never_its_password() {
    let redis = Redis::start_with(&["--maxmemory", "64mb", "--maxmemory-policy", "noeviction"]).await;
    let mut stand = Stand::with(&redis, &redis.url()).await;
    stand.node.terminate();
    let look = |section: &str| {
        let data_dir = stand.setup.data_dir.display();
        let report = crate::process::doctor(&format!("[node]\ndata_dir = \"{data_dir}\"\n{section}"));
        let text = report.to_string();
        assert!(!text.contains(PASSWORD) && !text.contains("s3cret"), "{text}");
        crate::process::check(&report, "redis")
            .map(|check| (check["status"].as_str().unwrap().to_owned(), check["message"].as_str().unwrap().to_owned()))
    };
    assert_eq!(look(""), None);
    let (url, file) = (redis.url(), redis.password_file());
    let (status, message) = look(&format!("[redis]\nurl = \"{url}\"\npassword_file = \"{file}\"\n")).unwrap();
    assert!(status == "warn" && message.contains("noeviction"), "{message}");
    let mut client = redis.client().await;
    let mut set = redis::cmd("CONFIG");
    set.arg("SET").arg("maxmemory-policy").arg("allkeys-lru").query_async::<()>(&mut client).await.unwrap();
    let (status, message) = look(&format!("[redis]\nurl = \"{url}\"\npassword_file = \"{file}\"\n")).unwrap();
    assert!(status == "ok" && message.contains("Redis 7"), "{message}");
    let cluster = Redis::start_cluster().await;
    let (url, file) = (cluster.cluster_url(), cluster.password_file());
    let (status, message) = look(&format!("[redis]\nurl = \"{url}\"\npassword_file = \"{file}\"\n")).unwrap();
    assert!(status == "ok" && message.contains("Redis 7"), "{message}");
    let url = redis.url();
    let wrong = url.replace("redis://", "redis://:s3cret@");
    let (status, message) = look(&format!("[redis]\nurl = \"{wrong}\"\n")).unwrap();
    assert!(status == "fail" && message.contains("127.0.0.1"), "{message}");
}

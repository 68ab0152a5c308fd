//! Restartable tasks as a user has them: attempts that are doubled when late, and ended for more urgent tasks, on real workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::Value;
use taskmaster_client::{Client, Priority, State, Task, TaskId, Worker};
use tempfile::TempDir;

use crate::process::{Running, Setup, directory};

const LONG: Duration = Duration::from_secs(60);

struct Stage {
    _directory: TempDir,
    node: Running,
    client: Client,
    /// Attempts of `stuck` tasks that began, and that were told to stop.
    begun: Arc<AtomicU32>,
    stopped: Arc<AtomicU32>,
}

async fn stage() -> Stage {
    let directory = directory();
    let node = Setup::new(&directory).start();
    let client = Client::connect(node.address.to_string()).await.unwrap();
    let (begun, stopped) = (Arc::default(), Arc::default());
    Stage { _directory: directory, node, client, begun, stopped }
}

impl Stage {
    /// A worker of one place. Of tasks with the payload `stuck` the first attempt goes on until it is told to stop.
    async fn worker(&self, name: &str) -> Worker {
        let (begun, stopped) = (Arc::clone(&self.begun), Arc::clone(&self.stopped));
        let worker = Worker::builder(&self.client).queue("q").name(name).concurrency(1).prefetch(0);
        let worker = worker.handler("job", move |task| {
            let (begun, stopped) = (Arc::clone(&begun), Arc::clone(&stopped));
            async move {
                if task.payload() == b"stuck" && begun.fetch_add(1, Ordering::SeqCst) == 0 {
                    task.cancelled().await;
                    stopped.fetch_add(1, Ordering::SeqCst);
                    return Ok(b"too late".to_vec());
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
                Ok(b"done".to_vec())
            }
        });
        worker.start().await.unwrap()
    }

    async fn end(&self, id: TaskId) -> String {
        let outcome = self.client.result_within(id, LONG).await.unwrap().expect("it ends");
        assert_eq!(outcome.state, State::Succeeded);
        outcome.text().unwrap().to_owned()
    }

    async fn said(&self, id: TaskId, fact: &str) -> String {
        let facts = self.client.why(id).await.unwrap();
        let found = facts.iter().find(|known| known.name == fact);
        found.unwrap_or_else(|| panic!("no {fact} in {facts:?}")).sentence.clone()
    }

    async fn counter(&self, name: &str) -> u64 {
        let stats = self.client.stats().await.unwrap();
        let counters = stats.iter().flat_map(|shard| &shard.counters).filter(|(known, _)| known == name);
        counters.map(|(_, value)| value).sum()
    }

    async fn wait_until(&self, what: &str, is_so: impl Fn() -> bool) {
        for _ in 0..1_000 {
            if is_so() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{what}");
    }
}

fn job(payload: &'static str) -> Task {
    Task::new("job").queue("q").payload(payload).restartable(true)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stuck_attempt_is_doubled_and_told_to_stop_when_the_second_one_ends() {
    let stage = stage().await;
    let _workers = [stage.worker("one").await, stage.worker("two").await];
    for _ in 0..12 {
        let outcome = stage.client.submit(job("usual")).await.unwrap();
        stage.end(outcome.id).await;
    }
    let submit = ["submit", "--queue", "q", "--kind", "job", "--restartable", "--payload", "stuck"];
    let told = stage.node.json(&submit).await;
    let id: TaskId = told["id"].as_str().unwrap().parse().unwrap();
    assert_eq!(stage.end(id).await, "done");
    let get = stage.node.json(&["task", "get", &id.to_string()]).await;
    assert_eq!((&get["restartable"], &get["attempt"]), (&Value::from(true), &Value::from(1)), "{get}");
    stage.wait_until("the first attempt is told to stop", || stage.stopped.load(Ordering::SeqCst) == 1).await;
    assert_eq!(stage.begun.load(Ordering::SeqCst), 2);
    assert!(stage.said(id, "second_attempt").await.contains("a fresh one takes about"));
    assert!(stage.said(id, "second_attempt_end").await.contains("it ended first"));
    assert!(stage.counter("second_attempts").await >= 1 && stage.counter("second_attempts_won").await >= 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_urgent_task_gets_the_place_of_a_restartable_one_which_runs_again() {
    let stage = stage().await;
    let set = stage.node.json(&["queue", "set", "q", "--speculation", "off"]).await;
    assert_eq!((&set["speculation"], &set["preemption"]), (&Value::from(false), &Value::from(true)), "{set}");
    let set = stage.node.json(&["queue", "set", "q", "--giving-up", "off"]).await;
    assert_eq!((&set["speculation"], &set["giving_up"]), (&Value::from(false), &Value::from(false)), "{set}");
    let _worker = stage.worker("one").await;
    let stuck = stage.client.submit(job("stuck").priority(Priority::Low)).await.unwrap();
    stage.wait_until("it begins", || stage.begun.load(Ordering::SeqCst) == 1).await;
    let urgent = stage.client.submit(job("usual").priority(Priority::Critical)).await.unwrap();
    assert_eq!(stage.end(urgent.id).await, "done");
    assert_eq!(stage.end(stuck.id).await, "done");
    assert_eq!((stage.begun.load(Ordering::SeqCst), stage.stopped.load(Ordering::SeqCst)), (2, 1));
    assert_eq!(stage.client.task(stuck.id).await.unwrap().attempt, 1, "no attempt was used up");
    assert!(stage.said(stuck.id, "preempted").await.contains("priority critical"));
    assert_eq!((stage.counter("preempted_attempts").await, stage.counter("second_attempts").await), (1, 0));
}

//! Load, and a ledger of what servers said about it.
//!
//! What is checked at the end: every acknowledged task is there, succeeded, with a result that some run of the handler
//! returned; a result that was told once never changes. Completions are not counted: a worker that sends an answer again
//! cannot tell its own first copy from another worker's completion.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use taskmaster_client::{Client, Retries, State, Task, TaskFilter, TaskId, Worker};
use tokio::task::JoinSet;

use super::nodes::{PARTITIONS, until};

const PRODUCERS: usize = 2;
const BATCH: usize = 16;
/// Pause between two batches of a producer.
const PACE: Duration = Duration::from_millis(10);
/// Results that are waited for at once.
const WATCHED: usize = 16;
/// Most results that are read again at the end; of more, some.
const RESULTS_MAX: usize = 12_000;
const QUEUE: &str = "load";

#[derive(Default)]
struct Ledger {
    acknowledged: Mutex<Vec<TaskId>>,
    /// Results that handlers returned, by task: one for each run of the handler.
    returned: Mutex<HashMap<TaskId, HashSet<String>>>,
    /// Results that a client was told.
    told: Mutex<HashMap<TaskId, String>>,
    /// Requests that failed in the end, whatever the client tried.
    failed: Mutex<Vec<String>>,
    /// Longest time between two acknowledgements of a producer, in microseconds.
    gap_us: AtomicU64,
    runs: AtomicU64,
    done: AtomicBool,
}

/// Producers, one who reads results at once, and a worker.
pub(crate) struct Load {
    client: Client,
    ledger: Arc<Ledger>,
    tasks: JoinSet<()>,
    worker: Worker,
}

fn task() -> Task {
    let retries = Retries::attempts(1_000).backoff(Duration::ZERO);
    Task::new("count").queue(QUEUE).lease(Duration::from_secs(3)).retries(retries).payload(vec![7; 100])
}

async fn produce(client: Client, ledger: Arc<Ledger>) {
    let mut pace = tokio::time::interval(PACE);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut last = Instant::now();
    while !ledger.done.load(Ordering::Relaxed) {
        pace.tick().await;
        match client.submit_many((0..BATCH).map(|_| task())).await {
            Ok(outcomes) => {
                let (kept, others): (Vec<_>, Vec<_>) = outcomes.iter().partition(|outcome| outcome.is_kept());
                ledger.acknowledged.lock().unwrap().extend(kept.iter().map(|outcome| outcome.id));
                ledger.failed.lock().unwrap().extend(others.iter().map(|outcome| format!("{:?}", outcome.result)));
                let gap_us = u64::try_from(last.elapsed().as_micros()).unwrap();
                ledger.gap_us.fetch_max(gap_us, Ordering::Relaxed);
            }
            Err(error) => ledger.failed.lock().unwrap().push(error.to_string()),
        }
        last = Instant::now();
    }
}

/// Asks for the outcomes of acknowledged tasks as soon as there are some.
async fn watch(client: Client, ledger: Arc<Ledger>) {
    while !ledger.done.load(Ordering::Relaxed) {
        let last: Vec<TaskId> = ledger.acknowledged.lock().unwrap().iter().rev().take(WATCHED).copied().collect();
        let mut asked = JoinSet::new();
        for id in last {
            let client = client.clone();
            asked.spawn(async move { (id, client.result_within(id, Duration::from_secs(1)).await) });
        }
        while let Some(answer) = asked.join_next().await {
            match answer.unwrap() {
                (id, Ok(Some(outcome))) => {
                    assert_eq!(outcome.state, State::Succeeded);
                    let result = outcome.text().unwrap();
                    if let Some(before) = ledger.told.lock().unwrap().insert(id, result.clone()) {
                        assert_eq!(before, result, "{id} was completed twice");
                    }
                }
                (_, Ok(None)) => {}
                (_, Err(error)) => ledger.failed.lock().unwrap().push(error.to_string()),
            }
        }
        tokio::time::sleep(PACE).await;
    }
}

async fn work(client: &Client, ledger: &Arc<Ledger>) -> Worker {
    let ledger = Arc::clone(ledger);
    let handler = move |task: taskmaster_client::Context| {
        let run = ledger.runs.fetch_add(1, Ordering::Relaxed);
        let result = format!("{} run {run}", task.id());
        ledger.returned.lock().unwrap().entry(task.id()).or_default().insert(result.clone());
        async move { Ok(result) }
    };
    let worker = Worker::builder(client).queue(QUEUE).concurrency(64).prefetch(64).handler("count", handler);
    worker.start().await.unwrap()
}

impl Load {
    pub(crate) async fn start(client: &Client) -> Self {
        let ledger = Arc::new(Ledger::default());
        let worker = work(client, &ledger).await;
        let mut tasks = JoinSet::new();
        for _ in 0..PRODUCERS {
            tasks.spawn(produce(client.clone(), Arc::clone(&ledger)));
        }
        tasks.spawn(watch(client.clone(), Arc::clone(&ledger)));
        let load = Self { client: client.clone(), ledger, tasks, worker };
        load.goes_on("at the start").await;
        load
    }

    fn acknowledged(&self) -> usize {
        self.ledger.acknowledged.lock().unwrap().len()
    }

    /// Waits until tasks of every partition are accepted, and others completed, that were not before.
    pub(crate) async fn goes_on(&self, when: &str) {
        self.goes_on_in(&(0..PARTITIONS).collect::<Vec<_>>(), when).await;
    }

    /// As [`Load::goes_on`], for some partitions.
    pub(crate) async fn goes_on_in(&self, partitions: &[u16], when: &str) {
        let (accepted, told) = (self.acknowledged(), self.ledger.told.lock().unwrap().len());
        until(&format!("work that goes on {when}"), Duration::from_secs(60), || async {
            let acknowledged = self.ledger.acknowledged.lock().unwrap();
            let reached: HashSet<u16> = acknowledged[accepted..].iter().map(|id| id.partition().0).collect();
            partitions.iter().all(|partition| reached.contains(partition))
                && self.ledger.told.lock().unwrap().len() > told
        })
        .await;
    }

    /// Requests that failed so far.
    pub(crate) fn failed(&self) -> Vec<String> {
        self.ledger.failed.lock().unwrap().clone()
    }

    /// Ends the load, waits until every task is final, and compares.
    pub(crate) async fn settle(mut self, what: &str) {
        self.ledger.done.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
        let client = self.client.clone();
        until("the end of every task", Duration::from_secs(60), || async {
            let filter = [State::Waiting, State::Delayed, State::Ready, State::Leased]
                .into_iter()
                .fold(TaskFilter::new().queue(QUEUE), TaskFilter::state);
            client.list_tasks(&filter, None, 1).await.unwrap().tasks.is_empty()
        })
        .await;
        let stats = self.worker.stats();
        let tasks = verify(&client, &self.ledger).await;
        eprintln!(
            "{what}: {} tasks acknowledged, {tasks} kept, {} runs, {} stale, {} results told before the end, {} requests \
             failed, longest gap {} ms",
            self.acknowledged(),
            self.ledger.runs.load(Ordering::Relaxed),
            stats.stale,
            self.ledger.told.lock().unwrap().len(),
            self.failed().len(),
            self.ledger.gap_us.load(Ordering::Relaxed) / 1_000,
        );
        self.worker.shutdown_within(Duration::from_secs(30)).await.unwrap();
    }

    /// Compares again what is read now with what was said before, while the load goes on.
    pub(crate) async fn compare(&self) {
        let told: Vec<(TaskId, String)> =
            self.ledger.told.lock().unwrap().iter().map(|(id, result)| (*id, result.clone())).collect();
        for chunk in told.chunks(256) {
            let results = results(&self.client, chunk.iter().map(|(id, _)| *id)).await;
            for (id, result) in chunk {
                assert_eq!(results[id], *result, "{id} was completed twice");
            }
        }
    }
}

async fn results(client: &Client, ids: impl Iterator<Item = TaskId>) -> HashMap<TaskId, String> {
    let mut asked = JoinSet::new();
    for id in ids {
        let client = client.clone();
        asked.spawn(async move { (id, client.result(id).await) });
    }
    let mut found = HashMap::new();
    while let Some(answer) = asked.join_next().await {
        let (id, outcome) = answer.unwrap();
        let outcome = outcome.unwrap_or_else(|error| panic!("{id} was acknowledged and is lost: {error}"));
        assert_eq!(outcome.state, State::Succeeded, "{id}");
        found.insert(id, outcome.text().unwrap());
    }
    found
}

/// How many tasks there are.
async fn verify(client: &Client, ledger: &Ledger) -> usize {
    let acknowledged = ledger.acknowledged.lock().unwrap().clone();
    let distinct: HashSet<TaskId> = acknowledged.iter().copied().collect();
    assert_eq!(distinct.len(), acknowledged.len(), "an id was acknowledged twice");
    let mut listed = HashSet::new();
    let mut position = None;
    loop {
        let page = client.list_tasks(&TaskFilter::new().queue(QUEUE), position, 1_000).await.unwrap();
        for task in page.tasks {
            assert_eq!(task.state, State::Succeeded, "{}", task.id);
            assert!(listed.insert(task.id), "{} is listed twice", task.id);
        }
        position = page.next;
        if position.is_none() {
            break;
        }
    }
    let lost: Vec<&TaskId> = acknowledged.iter().filter(|id| !listed.contains(*id)).collect();
    assert!(lost.is_empty(), "{} of {} acknowledged tasks are lost: {lost:?}", lost.len(), acknowledged.len());
    let told = ledger.told.lock().unwrap().clone();
    let every = acknowledged.len() / RESULTS_MAX + 1;
    let looked_at: Vec<TaskId> = told.keys().copied().chain(acknowledged.iter().copied().step_by(every)).collect();
    for chunk in looked_at.chunks(256) {
        for (id, result) in results(client, chunk.iter().copied()).await {
            let returned = ledger.returned.lock().unwrap();
            assert!(
                returned.get(&id).is_some_and(|results| results.contains(&result)),
                "{id}: nobody returned {result}"
            );
            if let Some(told) = told.get(&id) {
                assert_eq!(*told, result, "{id} was completed twice");
            }
        }
    }
    listed.len()
}

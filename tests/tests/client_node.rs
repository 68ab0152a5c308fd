//! The client library against a real node of one and of two shards: what a user can ask for, it does.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use taskmaster_client::wire::{Connection, Options};
use taskmaster_client::{
    Client, Code, OnFailure, Priority, QueueSettings, Resources, Retries, State, Submitted, Task, TaskError,
    TaskFilter, TaskId, Worker, Workflow,
};
use taskmaster_protocol::body::{self, ArchivedBatchReply, ArchivedTaskPage, GetTask, Spec, Submit, TaskRow};
use taskmaster_protocol::frame::Header;
use taskmaster_protocol::{Operation, PartitionId};

use crate::process::{Running, Setup, directory};

const LONG: Duration = Duration::from_secs(20);

struct Stage {
    _directory: tempfile::TempDir,
    node: Running,
    client: Client,
}

async fn stage(shards: u16) -> Stage {
    let directory = directory();
    let node = Setup::new(&directory).shards(shards).start();
    let client = Client::connect(node.address.to_string()).await.unwrap();
    assert_eq!(client.shards(), shards);
    Stage { _directory: directory, node, client }
}

/// A worker that echoes payloads.
async fn echo(client: &Client, queue: &str) -> Worker {
    let worker =
        Worker::builder(client).queue(queue).handler("echo", |task| async move { Ok(task.payload().to_vec()) });
    worker.start().await.unwrap()
}

async fn state(client: &Client, id: TaskId) -> State {
    client.task(id).await.unwrap().state
}

async fn end(client: &Client, id: TaskId) -> State {
    client.result_within(id, LONG).await.unwrap().expect("it ends").state
}

async fn tasks_come_back_with_their_results(Stage { client, .. }: &Stage) {
    let tasks = (0..500u32).map(|n| Task::new("echo").queue("plain").payload(n.to_string()));
    let outcomes = client.submit_many(tasks).await.unwrap();
    assert!(outcomes.iter().all(|outcome| outcome.result == Submitted::Accepted));
    let partitions: HashSet<_> = outcomes.iter().map(|outcome| outcome.id.partition()).collect();
    let worker = echo(client, "plain").await;
    for (n, outcome) in outcomes.iter().enumerate() {
        let ended = client.result_within(outcome.id, LONG).await.unwrap().unwrap();
        assert_eq!(ended.text().unwrap(), n.to_string());
    }
    assert!(!partitions.is_empty());
    // The same id again is the same task.
    let again = client.submit(Task::new("echo").queue("plain").id(outcomes[0].id)).await.unwrap();
    assert_eq!(again.result, Submitted::Duplicate { state: State::Succeeded });
    worker.shutdown().await.unwrap();
}

async fn a_unique_key_is_held_by_one_unfinished_task(Stage { client, .. }: &Stage) {
    let task = || Task::new("echo").queue("unique").unique_key("k");
    let first = client.submit(task()).await.unwrap();
    let second = client.submit(task()).await.unwrap();
    assert_eq!(second.result, Submitted::UniqueConflict { holder: first.id, state: State::Ready });
    client.cancel([first.id]).await.unwrap();
    assert_eq!(client.submit(task()).await.unwrap().result, Submitted::Accepted);
    let window = || task().unique_key("w").unique_window(Duration::from_secs(60));
    let held = client.submit(window()).await.unwrap();
    client.cancel([held.id]).await.unwrap();
    let conflict = client.submit(window()).await.unwrap();
    assert_eq!(conflict.result, Submitted::UniqueConflict { holder: held.id, state: State::Cancelled });
}

async fn delays_and_deadlines_are_kept(Stage { client, .. }: &Stage) {
    let worker = echo(client, "timed").await;
    let began = Instant::now();
    let delay = Duration::from_secs(3);
    let delayed = client.submit(Task::new("echo").queue("timed").delay(delay)).await.unwrap();
    assert_eq!(state(client, delayed.id).await, State::Delayed);
    assert_eq!(end(client, delayed.id).await, State::Succeeded);
    assert!(began.elapsed() >= delay, "{:?}", began.elapsed());
    worker.shutdown().await.unwrap();
    let hopeless = Task::new("echo").queue("timed").deadline_in(Duration::from_millis(200));
    let hopeless = client.submit(hopeless).await.unwrap();
    assert_eq!(end(client, hopeless.id).await, State::Expired);
    let past = Task::new("echo").queue("timed").deadline(std::time::SystemTime::now() - Duration::from_secs(5));
    assert_eq!(client.submit(past).await.unwrap_err().code(), Some(Code::DeadlinePast));
}

async fn the_most_urgent_goes_first(Stage { client, .. }: &Stage) {
    client.configure_queue("urgent", QueueSettings::new().paused(true)).await.unwrap();
    // One partition, so that one shard decides the whole order.
    let partition = client.task_id().partition();
    let mut wanted = Vec::new();
    for priority in [Priority::Low, Priority::Normal, Priority::High, Priority::Critical] {
        for n in 0..5 {
            let id = loop {
                let id = client.task_id();
                if id.partition() == partition {
                    break id;
                }
            };
            let name = format!("{priority} {n}");
            client
                .submit(Task::new("note").queue("urgent").id(id).priority(priority).payload(name.clone()))
                .await
                .unwrap();
            wanted.push((priority, n, name));
        }
    }
    wanted.sort_by_key(|(priority, n, _)| (*priority as u8, *n));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let record = Arc::clone(&seen);
    let worker = Worker::builder(client).queue("urgent").concurrency(1).prefetch(0);
    let worker = worker.handler("note", move |task| {
        record.lock().unwrap().push(task.text().unwrap().to_owned());
        async { Ok("") }
    });
    let worker = worker.start().await.unwrap();
    client.configure_queue("urgent", QueueSettings::new().paused(false)).await.unwrap();
    let until = Instant::now() + LONG;
    while seen.lock().unwrap().len() < wanted.len() {
        assert!(Instant::now() < until);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let wanted: Vec<String> = wanted.into_iter().map(|(_, _, name)| name).collect();
    assert_eq!(*seen.lock().unwrap(), wanted);
    worker.shutdown().await.unwrap();
}

async fn failures_are_retried_as_the_policy_says(Stage { client, .. }: &Stage) {
    let runs = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&runs);
    let worker = Worker::builder(client).queue("flaky").handler("flaky", move |task| {
        counted.fetch_add(1, Ordering::Relaxed);
        async move {
            match task.text()? {
                "never" => Err(TaskError::new("broken", "it never works")),
                "gone" => Err(TaskError::new("gone", "no use in trying again")),
                _ if task.attempt() < 3 => Err(TaskError::new("broken", "not yet").log_tail("two lines\nof log")),
                _ => Ok(format!("attempt {}", task.attempt())),
            }
        }
    });
    let worker = worker.start().await.unwrap();
    let retries = Retries::attempts(3).backoff(Duration::from_millis(10)).non_retryable("gone");
    let task = |how: &'static str| Task::new("flaky").queue("flaky").retries(retries.clone()).payload(how);
    let third = client.submit(task("third")).await.unwrap();
    assert_eq!(client.result(third.id).await.unwrap().text().unwrap(), "attempt 3");
    let never = client.submit(task("never")).await.unwrap();
    let outcome = client.result(never.id).await.unwrap();
    assert_eq!((outcome.state, outcome.attempts, &*outcome.error_code), (State::Failed, 3, "broken"));
    let gone = client.submit(task("gone")).await.unwrap();
    let outcome = client.result(gone.id).await.unwrap();
    assert_eq!((outcome.state, outcome.attempts), (State::Failed, 1));
    assert_eq!(runs.load(Ordering::Relaxed), 7);
    // By hand, with all attempts anew.
    assert_eq!(client.retry([never.id]).await.unwrap().accepted, 1);
    let until = Instant::now() + LONG;
    while runs.load(Ordering::Relaxed) < 10 {
        assert!(Instant::now() < until);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(end(client, never.id).await, State::Failed);
    let refused = client.retry([third.id]).await.unwrap();
    assert_eq!((refused.accepted, refused.exceptions[0].code), (0, Code::IllegalState));
    worker.shutdown().await.unwrap();
}

async fn a_cancelled_task_is_told_and_its_result_refused(Stage { client, .. }: &Stage) {
    let told = Arc::new(AtomicU32::new(0));
    let started = Arc::new(tokio::sync::Notify::new());
    let (heard, began) = (Arc::clone(&told), Arc::clone(&started));
    let worker = Worker::builder(client).queue("long").handler("long", move |task| {
        let (heard, began) = (Arc::clone(&heard), Arc::clone(&began));
        async move {
            began.notify_one();
            task.cancelled().await;
            heard.fetch_add(1, Ordering::Relaxed);
            Ok("too late")
        }
    });
    let worker = worker.start().await.unwrap();
    let task = client.submit(Task::new("long").queue("long")).await.unwrap();
    started.notified().await;
    assert_eq!(client.cancel([task.id]).await.unwrap().accepted, 1);
    assert_eq!(end(client, task.id).await, State::Cancelled);
    let until = Instant::now() + LONG;
    while told.load(Ordering::Relaxed) == 0 {
        assert!(Instant::now() < until, "the handler was not told");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    worker.shutdown().await.unwrap();
    assert_eq!(state(client, task.id).await, State::Cancelled);
}

async fn a_paused_queue_waits_and_a_draining_one_refuses(Stage { client, .. }: &Stage) {
    client.configure_queue("gate", QueueSettings::new().paused(true)).await.unwrap();
    let worker = echo(client, "gate").await;
    let tasks = (0..40).map(|_| Task::new("echo").queue("gate"));
    let ids: Vec<TaskId> = client.submit_many(tasks).await.unwrap().iter().map(|outcome| outcome.id).collect();
    for id in &ids {
        assert_eq!(state(client, *id).await, State::Ready);
    }
    let why = client.why(ids[0]).await.unwrap();
    assert!(why.iter().any(|fact| fact.sentence.contains("paused")), "{why:?}");
    client.configure_queue("gate", QueueSettings::new().paused(false).draining(true)).await.unwrap();
    for id in &ids {
        assert_eq!(end(client, *id).await, State::Succeeded);
    }
    let refused = client.submit(Task::new("echo").queue("gate")).await.unwrap_err();
    assert_eq!(refused.code(), Some(Code::QueueDraining));
    worker.shutdown().await.unwrap();
}

/// Most tasks of a queue that ran at once.
async fn run_counting(client: &Client, queue: &'static str, resources: Option<Resources>, tasks: Vec<Task>) -> u64 {
    let (running, most) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (now, peak) = (Arc::clone(&running), Arc::clone(&most));
    let mut worker = Worker::builder(client).queue(queue).concurrency(64).handler("count", move |_| {
        let (now, peak) = (Arc::clone(&now), Arc::clone(&peak));
        async move {
            peak.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(10)).await;
            now.fetch_sub(1, Ordering::SeqCst);
            Ok("")
        }
    });
    if let Some(resources) = resources {
        worker = worker.resources(resources);
    }
    let worker = worker.start().await.unwrap();
    for outcome in client.submit_many(tasks).await.unwrap() {
        assert_eq!(end(client, outcome.id).await, State::Succeeded);
    }
    worker.shutdown().await.unwrap();
    most.load(Ordering::SeqCst)
}

async fn limits_and_resources_bound_what_runs_at_once(Stage { client, .. }: &Stage) {
    let tasks = |queue: &'static str| (0..24).map(move |_| Task::new("count").queue(queue));
    client.configure_queue("narrow", QueueSettings::new().concurrency(3)).await.unwrap();
    let most = run_counting(client, "narrow", None, tasks("narrow").collect()).await;
    // Each shard has its share of the limit; all together never exceed it.
    assert!((1..=3).contains(&most), "{most} at once under a limit of 3");
    let keyed = tasks("keyed").map(|task| task.concurrency_key("customer 7", 2)).collect();
    let most = run_counting(client, "keyed", None, keyed).await;
    assert!((1..=2).contains(&most), "{most} at once under a key's limit of 2");
    let offer = Resources::new().cpu_milli(4_000).memory_bytes(8 << 30);
    let heavy = tasks("heavy").map(|task| task.resources(Resources::new().cpu_milli(2_000))).collect();
    let most = run_counting(client, "heavy", Some(offer), heavy).await;
    let shards = u64::from(client.shards());
    assert!((1..=2 * shards).contains(&most), "{most} tasks of two cores at once on four");
}

async fn a_workflow_runs_in_order_and_its_failures_go_down(Stage { client, .. }: &Stage) {
    let order = Arc::new(Mutex::new(Vec::new()));
    let record = Arc::clone(&order);
    let worker = Worker::builder(client).queue("flow").handler("step", move |task| {
        let name = task.text().unwrap().to_owned();
        record.lock().unwrap().push(name.clone());
        async move { if name == "bad" { Err(TaskError::new("broken", "bad").permanent()) } else { Ok(name) } }
    });
    let worker = worker.start().await.unwrap();
    let step = |name: &str| Task::new("step").queue("flow").payload(name.to_owned());
    let mut diamond = Workflow::new("diamond");
    let top = diamond.add("top", step("top"), []);
    let sides: Vec<_> = (0..20).map(|n| diamond.add(format!("side-{n}"), step("side"), [top])).collect();
    diamond.add("bottom", step("bottom"), sides);
    let handle = client.submit_workflow(diamond).await.unwrap();
    let view = client.await_workflow(handle.id, LONG).await.unwrap();
    assert!(view.is_success(), "{view:?}");
    {
        let order = order.lock().unwrap();
        assert_eq!(
            (order.first().map(String::as_str), order.last().map(String::as_str)),
            (Some("top"), Some("bottom"))
        );
    }
    for (on_failure, after) in
        [(OnFailure::CancelDescendants, State::Cancelled), (OnFailure::Continue, State::Succeeded)]
    {
        let mut chain = Workflow::new("chain").on_failure(on_failure);
        let bad = chain.add("bad", step("bad"), []);
        let next = chain.add("next", step("next"), [bad]);
        let handle = client.submit_workflow(chain).await.unwrap();
        assert!(client.await_workflow(handle.id, LONG).await.unwrap().is_finished());
        let view = client.workflow(handle.id).await.unwrap();
        assert_eq!(view.tasks[bad.row()].state, State::Failed);
        assert_eq!(view.tasks[next.row()].state, after);
    }
    worker.shutdown().await.unwrap();
}

async fn a_list_has_every_task_once(Stage { client, .. }: &Stage) {
    client.configure_queue("listed", QueueSettings::new().paused(true)).await.unwrap();
    let tasks = (0..300).map(|_| Task::new("echo").queue("listed"));
    let ids: HashSet<TaskId> = client.submit_many(tasks).await.unwrap().iter().map(|outcome| outcome.id).collect();
    let filter = TaskFilter::new().queue("listed").state(State::Ready);
    let (mut listed, mut position) = (HashSet::new(), None);
    loop {
        let page = client.list_tasks(&filter, position, 37).await.unwrap();
        for task in page.tasks {
            assert!(listed.insert(task.id), "{} is listed twice", task.id);
        }
        position = page.next;
        if position.is_none() {
            break;
        }
    }
    assert_eq!(listed, ids);
    let queues = client.queues().await.unwrap();
    let queue = queues.iter().find(|queue| queue.queue == "listed").unwrap();
    assert_eq!((queue.counts.of(State::Ready), queue.is_paused), (300, true));
}

/// Every shard takes every request and passes it to the partition's owner.
async fn any_shard_takes_any_request(Stage { node, client, .. }: &Stage) {
    let (first, _pushes) = Connection::connect(&node.address.to_string(), &Options::default()).await.unwrap();
    let info = first.info().clone();
    assert_eq!(info.shard_ports.len(), usize::from(client.shards()));
    for port in info.shard_ports {
        let address = format!("{}:{port}", node.address.ip());
        let (connection, _pushes) = Connection::connect(&address, &Options::default()).await.unwrap();
        for partition in (0..client.partitions()).map(PartitionId) {
            let mut submit = Submit::default();
            let id = loop {
                let id = client.task_id();
                if id.partition() == partition {
                    break id;
                }
            };
            submit.specs.push(Spec {
                queue: body::put(&mut submit.bytes, b"anywhere"),
                kind: body::put(&mut submit.bytes, b"echo"),
                lease_ms: 1_000,
                attempts_max: 1,
                ..Spec::default()
            });
            submit.tasks.push(TaskRow { id, ..TaskRow::default() });
            let header = |operation| Header::request(operation, 0, Some(partition));
            let reply = connection.request(header(Operation::Submit), &submit).await.unwrap().accepted().unwrap();
            assert_eq!(reply.read::<ArchivedBatchReply>().unwrap().accepted.to_native(), 1);
            let reply =
                connection.request(header(Operation::GetTask), &GetTask { id }).await.unwrap().accepted().unwrap();
            let page = reply.read::<ArchivedTaskPage>().unwrap();
            assert_eq!(TaskId::from(&page.rows[0].id), id);
        }
        let wrong = Header::request(Operation::GetTask, 0, Some(PartitionId(client.partitions())));
        let refused = connection.request(wrong, &GetTask::default()).await.unwrap();
        assert_eq!(refused.code(), Code::WrongPartition);
    }
}

async fn everything(shards: u16) {
    let mut stage = stage(shards).await;
    tasks_come_back_with_their_results(&stage).await;
    a_unique_key_is_held_by_one_unfinished_task(&stage).await;
    delays_and_deadlines_are_kept(&stage).await;
    the_most_urgent_goes_first(&stage).await;
    failures_are_retried_as_the_policy_says(&stage).await;
    a_cancelled_task_is_told_and_its_result_refused(&stage).await;
    a_paused_queue_waits_and_a_draining_one_refuses(&stage).await;
    limits_and_resources_bound_what_runs_at_once(&stage).await;
    a_workflow_runs_in_order_and_its_failures_go_down(&stage).await;
    a_list_has_every_task_once(&stage).await;
    any_shard_takes_any_request(&stage).await;
    assert!(stage.node.terminate().success(), "{}", stage.node.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_one_shard_does_what_clients_ask() {
    everything(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_two_shards_does_what_clients_ask() {
    everything(2).await;
}

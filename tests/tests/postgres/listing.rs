//! Listings answer for memory and for the database alike: each task once, wherever it is, or a refusal.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use taskmaster_client::{Client, Code, ListPosition, Retries, State, Task, TaskFilter, TaskId, TaskView};
use taskmaster_connect::postgres::{Answers, Found, HistoryPlace, Listed, Listing, Stored, list};
use tokio::sync::mpsc;

use super::Stage;
use super::history::worker;
use super::outages::{nothing_waits, until};
use crate::process::{counter, iso_time_now};
use crate::services::postgres::Postgres;

/// Lists from a position to the end, in small pages.
pub(super) async fn list_from(client: &Client, filter: &TaskFilter, position: Option<ListPosition>) -> Vec<TaskView> {
    let (mut tasks, mut next) = (Vec::new(), position);
    loop {
        let page = client.list_tasks(filter, next, 7).await.unwrap();
        assert!(page.tasks.len() <= 7);
        tasks.extend(page.tasks);
        next = page.next;
        if next.is_none() {
            return tasks;
        }
    }
}

pub(super) fn sorted(mut ids: Vec<TaskId>) -> Vec<TaskId> {
    ids.sort_unstable();
    ids
}

pub(super) fn ids_of(tasks: &[TaskView]) -> Vec<TaskId> {
    sorted(tasks.iter().map(|task| task.id).collect())
}

async fn submit(client: &Client, kind: &str, tasks: u32) -> Vec<TaskId> {
    let retries = Retries::attempts(2).backoff(Duration::ZERO);
    let template = Task::new(kind.to_owned()).queue("mixed").retries(retries);
    let tasks = (0..tasks).map(|n| template.clone().payload(n.to_string()));
    client.submit_many(tasks).await.unwrap().iter().map(|outcome| outcome.id).collect()
}

async fn park(client: &Client, tasks: u32) -> Vec<TaskId> {
    let tasks = (0..tasks).map(|n| Task::new("echo").queue("held").payload(n.to_string()));
    client.submit_many(tasks).await.unwrap().iter().map(|outcome| outcome.id).collect()
}

/// Waits until memory has so many tasks, and all others are stored.
async fn left(stage: &Stage, client: &Client, tasks: u64) {
    nothing_waits(client).await;
    until("checkpointed tasks leave memory", async || counter(client, "tasks").await == tasks).await;
    assert_eq!(counter(&stage.client, "checkpoint_lost").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listing_goes_on_in_the_database() {
    let stage = Stage::new("kept = \"0s\"\n").await;
    let client = &stage.client;
    let held = park(client, 25).await;
    let working = worker(client).await;
    let (echoed, broken) = (submit(client, "echo", 60).await, submit(client, "broken", 30).await);
    let finished = [echoed.clone(), broken.clone()].concat();
    stage.stored(finished.len()).await;
    left(&stage, client, 25).await;

    let all = list_from(client, &TaskFilter::new(), None).await;
    assert_eq!(ids_of(&all), sorted([held.clone(), finished.clone()].concat()));
    assert!(all[..25].iter().all(|task| task.queue == "held"), "what is in memory comes before");
    let mut latest = BTreeMap::new();
    for task in &all[25..] {
        let before = latest.insert(task.id.partition(), task.at_us).unwrap_or(u64::MAX);
        assert!(task.at_us <= before, "the latest of a partition comes first");
        let single = client.task(task.id).await.unwrap();
        let short = TaskView { payload: Vec::new(), result: Vec::new(), log_tail: Vec::new(), ..single };
        assert_eq!(task, &short);
    }
    for (filter, expected) in [
        (TaskFilter::new().kind("broken"), broken.clone()),
        (TaskFilter::new().state(State::Failed), broken),
        (TaskFilter::new().state(State::Succeeded).queue("mixed"), echoed.clone()),
        (TaskFilter::new().state(State::Succeeded).state(State::Ready), [held.clone(), echoed].concat()),
        (TaskFilter::new().queue("held"), held),
        (TaskFilter::new().state(State::Cancelled), Vec::new()),
        (TaskFilter::new().queue("mixe"), Vec::new()),
    ] {
        assert_eq!(ids_of(&list_from(client, &filter, None).await), sorted(expected), "{filter:?}");
    }
    let other = Client::builder().namespace("other").connect(stage.node.address.to_string()).await.unwrap();
    assert_eq!(list_from(&other, &TaskFilter::new(), None).await, []);
    working.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_look_at_the_past_has_what_had_ended_and_left_memory_by_then() {
    let mut stage = Stage::new("kept = \"0s\"\n").await;
    let client = stage.client.clone();
    let working = worker(&client).await;
    let first = client.submit(Task::new("echo").queue("mixed").payload("once")).await.unwrap().id;
    let of_partition = |id: &TaskId| id.partition() == first.partition();
    client.result(first).await.unwrap();
    stage.stored(1).await;
    left(&stage, &client, 0).await;
    let between = iso_time_now().await;
    let mut ids_later = Vec::new();
    while !ids_later.iter().any(of_partition) {
        ids_later.extend(submit(&client, "echo", 20).await);
    }
    stage.stored(1 + ids_later.len()).await;
    let later: Vec<TaskId> = ids_later.into_iter().filter(of_partition).collect();
    left(&stage, &client, 0).await;
    working.shutdown().await.unwrap();
    // What waits in another namespace is of the partition, too.
    let elsewhere = loop {
        let task = Task::new("echo").queue("mixed").namespace("elsewhere");
        let id = client.submit(task).await.unwrap().id;
        if of_partition(&id) {
            break id;
        }
    };
    assert!(stage.node.terminate().success());
    let url = stage.postgres.url();
    let look = |time: &str, more: &[&str]| {
        let data = stage.setup.data_dir.to_str().unwrap();
        let output = std::process::Command::new(crate::process::binary())
            .args(["state", "at", "--time", time, "--data-dir", data, "--output", "json"])
            .args(more)
            .env("TASKMASTER_POSTGRES__PASSWORD", crate::services::postgres::PASSWORD)
            .output()
            .unwrap();
        serde_json::from_slice::<serde_json::Value>(&output.stdout).map_err(|_| output.status.code())
    };
    let partition = first.partition().to_string();
    let ids = |seen: serde_json::Value| {
        let tasks = seen["tasks"].as_array().unwrap().iter();
        sorted(tasks.map(|task| task["id"].as_str().unwrap().parse().unwrap()).collect::<Vec<TaskId>>())
    };
    let end = "2999-01-01T00:00:00Z";
    let whole = ["--partition", &partition, "--url", &url];
    assert_eq!(ids(look(&between, &whole).unwrap()), [first]);
    assert_eq!(ids(look(end, &whole).unwrap()), sorted([vec![first, elsewhere], later.clone()].concat()));
    assert_eq!(ids(look(end, &whole[..2]).unwrap()), [elsewhere], "without the database");
    let id = later[0].to_string();
    assert_eq!(look(&between, &[&id, "--url", &url]), Err(Some(5)));
    let seen = look(end, &[&id, "--url", &url]).unwrap();
    assert_eq!((seen["task"]["state"].as_str(), seen["task"]["kind"].as_str()), (Some("succeeded"), Some("echo")));
}

/// Hears what a lister says.
struct Heard(mpsc::UnboundedSender<Listed>);

impl Answers for Heard {
    fn stored(&self, _: usize, _: u16, _: u64, _: Stored) {
        unreachable!("nobody writes");
    }

    fn found(&self, _: usize, _: u64, _: Found) {
        unreachable!("nobody asks");
    }

    fn listed(&self, _: usize, _: u64, listed: Listed) {
        self.0.send(listed).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_history_of_small_batches_is_listed_whole_and_a_filter_that_little_passes_gets_through() {
    const TASKS: u64 = 10_000;
    let postgres = Postgres::start().await;
    postgres.migrate().await;
    let history = format!(
        "INSERT INTO taskmaster.cluster (id) VALUES (lpad('abcd', 32, '0')::uuid);
         INSERT INTO taskmaster.checkpoint (cluster, partition, term, position) VALUES (1, 7, 1, {TASKS});
         INSERT INTO taskmaster.contract (canonical, namespace, queue, kind, priority, attempts_max) VALUES ('', 'default', 'q', 'k', 2, 3);
         CREATE TABLE taskmaster.final_task_all PARTITION OF taskmaster.final_task DEFAULT;
         INSERT INTO taskmaster.final_task (cluster, partition, number, id, contract, state, attempts, failures, late, finished_at)
             SELECT 1, 7, n, lpad(to_hex(n), 32, '0')::uuid, 1, CASE n WHEN 1 THEN 5 ELSE 4 END, 1, 0, false, now()
             FROM generate_series(1, {TASKS}) AS n;
         INSERT INTO taskmaster.stretch
             SELECT 1, 7, number - 1, finished_at, finished_at, int8send(number) || uuid_send(id) FROM taskmaster.final_task;
         ANALYZE"
    );
    postgres.client().await.batch_execute(&history).await.unwrap();
    let (send, mut answers) = mpsc::unbounded_channel();
    let (queue, questions) = mpsc::channel(1);
    let lister = tokio::spawn(list(postgres.settings(), questions, Arc::new(Heard(send))));
    for (states, limit, wanted, pages) in
        [(&[4, 5][..], 1_000, (1..=TASKS).rev().collect::<Vec<_>>(), 11), (&[5], 100, vec![1], 2)]
    {
        let mut next = Some(HistoryPlace { back: 0, upto: TASKS });
        let (mut found, mut asked) = (Vec::new(), 0);
        while let Some(from) = next {
            let (namespace, queue_name) = ("default".to_owned(), String::new());
            let listing = Listing {
                by: 0,
                number: 1,
                asked: Instant::now(),
                cluster: 0xABCD,
                partition: 7,
                position: TASKS,
                from,
                namespace,
                queue: queue_name,
                kind: String::new(),
                states: states.to_vec(),
                limit,
            };
            assert!(queue.send(listing).await.is_ok());
            let Some(Listed::Tasks(tasks, rest)) = answers.recv().await else { panic!("{states:?}: no page {asked}") };
            found.extend(tasks.iter().map(|task| u64::try_from(task.id).unwrap()));
            (next, asked) = (rest, asked + 1);
        }
        assert_eq!(found, wanted);
        assert!(asked <= pages, "{asked} pages");
    }
    drop(queue);
    lister.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_history_from_before_the_order_was_kept_gets_the_same_order() {
    let stage = Stage::new("").await;
    let working = worker(&stage.client).await;
    let ids = submit(&stage.client, "echo", 300).await;
    stage.stored(ids.len()).await;
    working.shutdown().await.unwrap();
    let database = stage.postgres.client().await;
    let order = async || {
        let sql = "SELECT cluster, partition, string_agg(tasks, '' ORDER BY behind), min(first_at), max(last_at)
                   FROM taskmaster.stretch GROUP BY 1, 2 ORDER BY 1, 2";
        let rows = database.query(sql, &[]).await.unwrap();
        let row = |row: &tokio_postgres::Row| {
            let (cluster, partition): (i32, i32) = (row.get(0), row.get(1));
            let (tasks, first, last): (Vec<u8>, SystemTime, SystemTime) = (row.get(2), row.get(3), row.get(4));
            (cluster, partition, tasks, first, last)
        };
        rows.iter().map(row).collect::<Vec<_>>()
    };
    let kept = order().await;
    assert_eq!(kept.iter().map(|row| row.2.len() / 24).sum::<usize>(), ids.len());
    database
        .batch_execute(
            "DROP TABLE taskmaster.stretch; CREATE INDEX final_task_number ON taskmaster.final_task (cluster, partition, number)",
        )
        .await
        .unwrap();
    database.batch_execute(include_str!("../../../connect/src/postgres/migrations/004.sql")).await.unwrap();
    assert_eq!(order().await, kept);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_in_both_places_and_tasks_that_lived_on_are_listed_once() {
    let stage = Stage::new("").await;
    let client = &stage.client;
    let working = worker(client).await;
    let ids = submit(client, "broken", 30).await;
    stage.stored(30).await;
    nothing_waits(client).await;
    // A third fails again and is stored again; another third waits.
    client.retry(ids[..10].to_vec()).await.unwrap();
    until("the second end is stored", async || stage.count("SELECT count(*) FROM taskmaster.final_task").await == 40)
        .await;
    nothing_waits(client).await;
    working.shutdown().await.unwrap();
    client.retry(ids[10..20].to_vec()).await.unwrap();
    let listed = list_from(client, &TaskFilter::new(), None).await;
    assert_eq!(ids_of(&listed), sorted(ids.clone()));
    for task in &listed {
        let waits = ids[10..20].contains(&task.id);
        assert_eq!(task.state, if waits { State::Ready } else { State::Failed });
        assert_eq!(task.at_us, client.task(task.id).await.unwrap().at_us, "as it ended last");
    }
    let failed = list_from(client, &TaskFilter::new().state(State::Failed), None).await;
    assert_eq!(ids_of(&failed), sorted([&ids[..10], &ids[20..]].concat()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_that_leave_memory_while_they_are_listed_do_not_come_twice() {
    let mut stage = Stage::new("kept = \"0s\"\n").await;
    let client = stage.client.clone();
    let working = worker(&client).await;
    let stored = submit(&client, "echo", 40).await;
    stage.stored(stored.len()).await;
    left(&stage, &client, 0).await;
    stage.postgres.kill();
    let kept = submit(&client, "echo", 40).await;
    for &id in &kept {
        client.result(id).await.unwrap();
    }
    let first = client.list_tasks(&TaskFilter::new(), None, 15).await.unwrap();
    assert!(first.tasks.iter().all(|task| kept.contains(&task.id)), "the database is away, and not needed yet");
    stage.postgres.restart().await;
    stage.stored(80).await;
    left(&stage, &client, 0).await;
    let mut listed = first.tasks;
    listed.extend(list_from(&client, &TaskFilter::new(), first.next).await);
    let once: std::collections::BTreeSet<TaskId> = listed.iter().map(|task| task.id).collect();
    assert_eq!(once.len(), listed.len(), "a task comes twice");
    assert!(stored.iter().all(|id| once.contains(id)), "what was stored before is there");
    assert_eq!(ids_of(&list_from(&client, &TaskFilter::new(), None).await), sorted([stored, kept].concat()));
    working.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listing_is_refused_rather_than_cut_short_while_the_database_is_away() {
    let mut stage = Stage::new("kept = \"0s\"\n").await;
    let client = stage.client.clone();
    let held = park(&client, 10).await;
    let working = worker(&client).await;
    let finished = submit(&client, "echo", 20).await;
    stage.stored(finished.len()).await;
    left(&stage, &client, 10).await;
    let patient =
        Client::builder().call_timeout(Duration::from_secs(5)).connect(stage.node.address.to_string()).await.unwrap();
    let refused = async |what: &str| {
        let error = patient.list_tasks(&TaskFilter::new().state(State::Succeeded), None, 100).await.unwrap_err();
        assert!(error.to_string().contains("database"), "{what}: {error}");
    };
    stage.postgres.kill();
    refused("away").await;
    assert_eq!(ids_of(&list_from(&client, &TaskFilter::new().state(State::Ready), None).await), sorted(held.clone()));
    stage.postgres.restart().await;
    let all = sorted([held, finished].concat());
    assert_eq!(ids_of(&list_from(&client, &TaskFilter::new(), None).await), all);
    // One that does not have what it had is not taken at its word.
    let database = stage.postgres.client().await;
    database.execute("UPDATE taskmaster.checkpoint SET position = position - 1 WHERE position > 0", &[]).await.unwrap();
    refused("behind").await;
    assert_eq!(
        patient.task(client.task_id()).await.unwrap_err().code(),
        Some(Code::UnknownTask),
        "others are answered"
    );
    database.execute("UPDATE taskmaster.checkpoint SET position = position + 1 WHERE position > 0", &[]).await.unwrap();
    working.shutdown().await.unwrap();
}

//! What is stored is what the engine answers.

use std::collections::BTreeMap;
use std::time::Duration;

use taskmaster_client::{Client, Retries, State, Task, TaskError, TaskId, TaskView, Worker, Workflow};
use tokio_postgres::Row;

use super::Stage;

/// A worker whose handlers succeed, fail once, or fail for good.
pub(super) async fn worker(client: &Client) -> Worker {
    Worker::builder(client)
        .queue("mixed")
        .concurrency(16)
        .handler("echo", |task| async move { Ok(task.payload().to_vec()) })
        .handler("shaky", |task| async move {
            if task.attempt() == 1 { Err(TaskError::new("shaken", "not at first")) } else { Ok(b"steady".to_vec()) }
        })
        .handler("broken", |_| async move { Err::<Vec<u8>, _>(TaskError::new("broken", "never").log_tail("a\nb")) })
        .start()
        .await
        .unwrap()
}

/// A row of `task_history` as the engine describes a task.
fn assert_same(row: &Row, task: &TaskView) {
    let text = |column: &str| row.get::<_, Option<String>>(column).unwrap_or_default();
    let bytes = |column: &str| row.get::<_, Option<Vec<u8>>>(column).unwrap_or_default();
    let time_us = |column: &str| row.get::<_, Option<i64>>(column).map_or(0, i64::cast_unsigned);
    let what = format!("{}", task.id);
    assert_eq!(text("task"), task.id.to_string());
    assert_eq!((text("state"), text("namespace")), (task.state.name().to_owned(), task.namespace.clone()), "{what}");
    assert_eq!((text("queue"), text("kind"), text("name")), (task.queue.clone(), task.kind.clone(), task.name.clone()));
    assert_eq!((bytes("payload"), bytes("result")), (task.payload.clone(), task.result.clone()), "{what}");
    assert_eq!((text("error_code"), text("error")), (task.error_code.clone(), task.error.clone()), "{what}");
    assert_eq!(bytes("log_tail"), task.log_tail, "{what}");
    assert_eq!(row.get::<_, i16>("priority"), i16::from(task.priority as u8), "{what}");
    assert_eq!(row.get::<_, i32>("attempts").cast_unsigned(), task.attempt, "{what}");
    assert_eq!(row.get::<_, i32>("attempts_max").cast_unsigned(), task.attempts_max, "{what}");
    assert_eq!(row.get::<_, Option<String>>("workflow"), task.workflow.map(|id| id.to_string()), "{what}");
    assert_eq!(row.get::<_, bool>("late"), task.is_late, "{what}");
    assert_eq!((time_us("finished_us"), time_us("deadline_us") / 1_000), (task.at_us, task.deadline_ms), "{what}");
    assert_eq!(time_us("submitted_us") / 1_000, task.id.time_ms(), "{what}");
}

pub(super) async fn assert_history(stage: &Stage, client: &Client, ids: &[TaskId]) {
    stage.stored(ids.len()).await;
    let sql = "SELECT *, (extract(epoch FROM finished_at) * 1000000)::int8 AS finished_us,
                      (extract(epoch FROM deadline_at) * 1000000)::int8 AS deadline_us,
                      (extract(epoch FROM submitted_at) * 1000000)::int8 AS submitted_us
               FROM taskmaster.task_history";
    let rows = stage.postgres.client().await.query(sql, &[]).await.unwrap();
    let rows: BTreeMap<String, Row> = rows.into_iter().map(|row| (row.get("task"), row)).collect();
    assert_eq!(rows.len(), ids.len());
    for &id in ids {
        let task = client.task(id).await.unwrap();
        assert_same(rows.get(&id.to_string()).unwrap_or_else(|| panic!("{id} is not stored")), &task);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_history_is_row_for_row_what_the_engine_answers() {
    let stage = Stage::new("").await;
    let client = &stage.client;
    let worker = worker(client).await;
    let mut ids: Vec<TaskId> = Vec::new();
    let retries = || Retries::attempts(2).backoff(Duration::ZERO);
    for n in 0..300u32 {
        let kind = ["echo", "shaky", "broken"][n as usize % 3];
        let payload = vec![u8::try_from(n % 251).unwrap(); n as usize * 7];
        let task = Task::new(kind).queue("mixed").retries(retries()).payload(payload);
        let task = if n % 50 == 0 { task.deadline_in(Duration::from_secs(3_000)) } else { task };
        ids.push(client.submit(task).await.unwrap().id);
    }
    let parked = client.submit(Task::new("echo").queue("nobody").payload("never")).await.unwrap().id;
    client.cancel([parked]).await.unwrap();
    ids.push(parked);
    let mut workflow = Workflow::new("nightly");
    let first = workflow.add("first", Task::new("echo").queue("mixed").payload("1"), []);
    let second = workflow.add("second", Task::new("broken").queue("mixed").retries(retries()), []);
    workflow.add("third", Task::new("echo").queue("mixed"), [first, second]);
    let submitted = client.submit_workflow(workflow).await.unwrap();
    ids.extend(&submitted.tasks);
    client.await_workflow(submitted.id, Duration::from_secs(30)).await.unwrap();
    for &id in &ids {
        assert!(client.result(id).await.unwrap().state.is_final());
    }
    assert_history(&stage, client, &ids).await;

    // A retry of what failed is another end of the same task: the latest counts.
    let failed: Vec<TaskId> = ids[..300].iter().copied().skip(2).step_by(3).take(10).collect();
    client.retry(failed.clone()).await.unwrap();
    for &id in &failed {
        assert_eq!(client.result(id).await.unwrap().state, State::Failed);
    }
    let wanted = i64::try_from(ids.len() + failed.len()).unwrap();
    let until = std::time::Instant::now() + Duration::from_secs(20);
    while stage.count("SELECT count(*) FROM taskmaster.final_task").await != wanted {
        assert!(std::time::Instant::now() < until);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_history(&stage, client, &ids).await;
    let day = "SELECT sum(ended)::int8 FROM taskmaster.queue_daily";
    assert_eq!(stage.count(day).await, wanted);
    let failed_daily = "SELECT sum(failed)::int8 FROM taskmaster.queue_daily";
    assert_eq!(stage.count(failed_daily).await, 100 + 10 + 1);
    let round = "SELECT count(*) FROM taskmaster.task_history WHERE taskmaster.id_of(task) = id";
    assert_eq!(stage.count(round).await, i64::try_from(ids.len()).unwrap());
    worker.shutdown().await.unwrap();
}

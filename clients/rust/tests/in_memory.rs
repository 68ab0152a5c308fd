//! The public API against the in-memory server: what user code sees.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use taskmaster_client::{
    Client, Code, Error, OnFailure, Priority, QueueSettings, Resources, Retries, State, StateChange, Submitted, Task,
    TaskError, TaskFilter, TestServer, Worker, Workflow,
};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

const SECOND: Duration = Duration::from_secs(1);

async fn echo_worker(client: &Client) -> Worker {
    let builder = Worker::builder(client).default_handler(|task| async move { Ok(task.payload().to_vec()) });
    builder.start().await.expect("the in-memory server takes every subscription")
}

#[tokio::test]
async fn a_task_runs_and_its_result_comes_back() {
    let client = Client::in_memory().await;
    let worker = Worker::builder(&client)
        .queue("greetings")
        .handler("greet", |task| async move { Ok(format!("Hello, {}!", task.text()?)) })
        .start()
        .await
        .unwrap();
    let task = client.submit(Task::new("greet").queue("greetings").payload("world")).await.unwrap();
    assert_eq!(client.result(task.id).await.unwrap().text().unwrap(), "Hello, world!");
    let view = client.task(task.id).await.unwrap();
    assert_eq!(
        (view.state, view.kind.as_str(), view.queue.as_str(), view.attempt),
        (State::Succeeded, "greet", "greetings", 1)
    );
    worker.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_tasks_run_exactly_once_on_three_shards_over_tcp() {
    let server = TestServer::with_shards(3);
    let client = Client::connect(server.listen().await.unwrap()).await.unwrap();
    assert_eq!(client.shards(), 3);
    let ran = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&ran);
    let worker = Worker::builder(&client)
        .concurrency(16)
        .handler("count", move |_| {
            let counter = Arc::clone(&counter);
            async move {
                counter.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
        })
        .start()
        .await
        .unwrap();
    let template = Task::new("count");
    let outcomes =
        client.submit_many((0..10_000u32).map(|n| template.clone().payload(&n.to_le_bytes()))).await.unwrap();
    assert_eq!(outcomes.len(), 10_000);
    assert!(outcomes.iter().all(|outcome| outcome.result == Submitted::Accepted));
    for outcome in outcomes.iter().rev() {
        assert_eq!(client.result(outcome.id).await.unwrap().state, State::Succeeded);
    }
    worker.shutdown().await.unwrap();
    assert_eq!(ran.load(Ordering::Relaxed), 10_000);
}

#[tokio::test]
async fn a_task_with_alternatives_runs_where_one_of_them_fits_and_is_told_which() {
    let client = Client::in_memory().await;
    let offers = |resources: Resources| {
        let told =
            |task: taskmaster_client::Context| async move { Ok(format!("{} {:?}", task.cpu_milli(), task.devices())) };
        Worker::builder(&client).resources(resources).default_handler(told).start()
    };
    let cpus = offers(Resources::new().cpu_milli(8_000).custom("licence", 1)).await.unwrap();
    let asked = Resources::new().gpu_milli(1_000).prefer("zone", "north");
    let licensed = Resources::new().cpu_milli(2_000).custom("licence", 1);
    let task = Task::new("k").resources(asked.or(&Resources::new().cpu_milli(16_000)).or(&licensed));
    let run = async |task: &Task| {
        let id = client.submit(task.clone()).await.unwrap().id;
        client.result(id).await.unwrap().text().unwrap().to_owned()
    };
    assert_eq!(run(&task).await, "2000 []");
    let gpus = offers(Resources::new().gpu_milli(1_000)).await.unwrap();
    assert_eq!(run(&task).await, "0 [0]");
    for worker in [cpus, gpus] {
        worker.shutdown().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn failed_attempts_are_repeated_with_backoff_until_they_succeed() {
    let client = Client::in_memory().await;
    let worker = Worker::builder(&client)
        .handler("flaky", |task| async move {
            if task.attempt() < 3 {
                return Err(TaskError::new("not_yet", "come back"));
            }
            Ok(task.attempt().to_string())
        })
        .start()
        .await
        .unwrap();
    let start = Instant::now();
    let task = Task::new("flaky").retries(Retries::attempts(5).backoff(SECOND));
    let id = client.submit(task).await.unwrap().id;
    assert_eq!(client.result(id).await.unwrap().text().unwrap(), "3");
    assert!(start.elapsed() >= 3 * SECOND, "one second, then two: {:?}", start.elapsed());
    worker.shutdown().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn attempts_end_at_the_limit_at_a_listed_code_and_at_a_permanent_error() {
    let client = Client::in_memory().await;
    let worker = Worker::builder(&client)
        .handler("fail", |task| async move {
            let error = TaskError::new(task.text()?, "no").log_tail("last words");
            Err::<(), _>(if task.text()? == "fatal" { error.permanent() } else { error })
        })
        .handler("panic", |_| async move {
            if true {
                panic!("by design");
            }
            Ok(())
        })
        .start()
        .await
        .unwrap();
    let retries = Retries::attempts(3).non_retryable("listed");
    for (kind, payload, attempts) in
        [("fail", "some", 3), ("fail", "listed", 1), ("fail", "fatal", 1), ("panic", "", 3)]
    {
        let id = client.submit(Task::new(kind).payload(payload).retries(retries.clone())).await.unwrap().id;
        let outcome = client.result(id).await.unwrap();
        assert_eq!((outcome.state, outcome.attempts), (State::Failed, attempts), "{kind} {payload}");
        let code = if kind == "panic" { "panic" } else { payload };
        assert_eq!(outcome.error_code, code);
        assert!(matches!(outcome.success(), Err(Error::NotSucceeded(_))));
    }
    worker.shutdown().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_kind_without_handler_fails_with_its_own_code() {
    let client = Client::in_memory().await;
    let worker = Worker::builder(&client).start().await.unwrap();
    let id = client.submit(Task::new("unknown").retries(Retries::none())).await.unwrap().id;
    assert_eq!(client.result(id).await.unwrap().error_code, "no_handler");
    worker.shutdown().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn delays_deadlines_and_waiting_pass_in_virtual_time() {
    let client = Client::in_memory().await;
    let worker = echo_worker(&client).await;
    let start = Instant::now();
    let delayed = client.submit(Task::new("echo").delay(Duration::from_secs(3600))).await.unwrap().id;
    assert_eq!(client.task(delayed).await.unwrap().state, State::Delayed);
    assert_eq!(client.result_within(delayed, 10 * SECOND).await.unwrap(), None);
    assert_eq!(client.result(delayed).await.unwrap().state, State::Succeeded);
    assert!(start.elapsed() >= Duration::from_secs(3600));
    worker.shutdown().await.unwrap();
    let late = client.submit(Task::new("echo").deadline_in(SECOND)).await.unwrap().id;
    assert_eq!(client.result(late).await.unwrap().state, State::Expired);
}

#[tokio::test(start_paused = true)]
async fn a_unique_key_has_one_holder_at_a_time() {
    let client = Client::in_memory().await;
    let task = || Task::new("echo").unique_key("report-7");
    let first = client.submit(task()).await.unwrap();
    let second = client.submit(task()).await.unwrap();
    assert_eq!(second.result, Submitted::UniqueConflict { holder: first.id, state: State::Ready });
    let worker = echo_worker(&client).await;
    client.result(first.id).await.unwrap();
    assert_eq!(client.submit(task()).await.unwrap().result, Submitted::Accepted);
    let windowed = || Task::new("echo").unique_key("daily").unique_window(100 * SECOND);
    let id = client.submit(windowed()).await.unwrap().id;
    client.result(id).await.unwrap();
    assert!(!client.submit(windowed()).await.unwrap().is_kept());
    tokio::time::sleep(101 * SECOND).await;
    assert!(client.submit(windowed()).await.unwrap().is_kept());
    worker.shutdown().await.unwrap();
}

#[tokio::test]
async fn the_same_id_is_kept_once() {
    let client = Client::in_memory().await;
    let id = client.task_id();
    assert_eq!(client.submit(Task::new("echo").id(id)).await.unwrap().result, Submitted::Accepted);
    let again = client.submit(Task::new("echo").id(id)).await.unwrap();
    assert_eq!((again.id, again.result), (id, Submitted::Duplicate { state: State::Ready }));
}

#[tokio::test]
async fn a_workflow_runs_in_the_order_of_its_needs() {
    let client = Client::in_memory().await;
    let (sender, mut order) = mpsc::unbounded_channel();
    let worker = Worker::builder(&client)
        .concurrency(4)
        .handler("step", move |task| {
            let sender = sender.clone();
            async move {
                sender.send(task.text()?.to_owned())?;
                Ok(())
            }
        })
        .start()
        .await
        .unwrap();
    let step = |name: &str| Task::new("step").payload(name);
    let mut flow = Workflow::new("diamond");
    let top = flow.add("top", step("top"), []);
    let left = flow.add("left", step("left"), [top]);
    let right = flow.add("right", step("right"), [top]);
    flow.add("bottom", step("bottom"), [left, right]);
    let handle = client.submit_workflow(flow).await.unwrap();
    let view = client.await_workflow(handle.id, 10 * SECOND).await.unwrap();
    assert!(view.is_success());
    let mut ran = Vec::new();
    while let Ok(name) = order.try_recv() {
        ran.push(name);
    }
    assert_eq!((ran.len(), ran[0].as_str(), ran[3].as_str()), (4, "top", "bottom"));
    let whole = client.workflow(handle.id).await.unwrap();
    assert_eq!(whole.tasks.iter().map(|task| task.id).collect::<Vec<_>>(), handle.tasks);
    assert_eq!(whole.tasks[1].name, "left");
    assert_eq!(client.workflows(10).await.unwrap()[0].name, "diamond");
    worker.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_failed_step_cancels_its_descendants_or_lets_them_run() {
    for (policy, expected) in
        [(OnFailure::CancelDescendants, State::Cancelled), (OnFailure::Continue, State::Succeeded)]
    {
        let client = Client::in_memory().await;
        let worker = Worker::builder(&client)
            .handler("bad", |_| async move { Err::<(), _>(TaskError::new("bad", "bad")) })
            .handler("good", |_| async move { Ok(()) })
            .start()
            .await
            .unwrap();
        let mut flow = Workflow::new("f").on_failure(policy);
        let bad = flow.add("bad", Task::new("bad").retries(Retries::none()), []);
        flow.add("good", Task::new("good"), [bad]);
        let handle = client.submit_workflow(flow).await.unwrap();
        let view = client.await_workflow(handle.id, 10 * SECOND).await.unwrap();
        assert!(view.is_finished() && !view.is_success());
        assert_eq!(client.task(handle.tasks[1]).await.unwrap().state, expected);
        worker.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn a_cancelled_task_tells_its_handler_and_a_retry_runs_it_again() {
    let client = Client::in_memory().await;
    let (started, told) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (tell_started, tell_told) = (Arc::clone(&started), Arc::clone(&told));
    let worker = Worker::builder(&client)
        .handler("long", move |task| {
            let (started, told) = (Arc::clone(&tell_started), Arc::clone(&tell_told));
            async move {
                started.notify_one();
                if task.attempt() == 1 {
                    task.cancelled().await;
                    told.notify_one();
                }
                Ok("done")
            }
        })
        .start()
        .await
        .unwrap();
    let id = client.submit(Task::new("long")).await.unwrap().id;
    started.notified().await;
    assert_eq!(client.cancel([id]).await.unwrap().accepted, 1);
    told.notified().await;
    assert_eq!(client.result(id).await.unwrap().state, State::Cancelled);
    let again = client.cancel([id]).await.unwrap();
    assert_eq!((again.accepted, again.exceptions[0].code), (0, Code::AlreadyFinal));
    assert_eq!(client.retry([id]).await.unwrap().accepted, 1);
    assert_eq!(client.result(id).await.unwrap().text().unwrap(), "done");
    worker.shutdown().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn heartbeats_keep_a_long_task_and_progress_is_seen() {
    let client = Client::in_memory().await;
    let worker = Worker::builder(&client)
        .handler("long", |task| async move {
            for minute in 0..60 {
                task.progress(minute * 1000 / 60, format!("minute {minute}"));
                tokio::time::sleep(60 * SECOND).await;
            }
            Ok(())
        })
        .start()
        .await
        .unwrap();
    let id = client.submit(Task::new("long").lease(3 * SECOND)).await.unwrap().id;
    tokio::time::sleep(Duration::from_secs(30 * 60 + 30)).await;
    let view = client.task(id).await.unwrap();
    assert_eq!((view.state, view.note.as_str(), view.done_permille), (State::Leased, "minute 30", 500));
    let outcome = client.result(id).await.unwrap();
    assert_eq!((outcome.state, outcome.attempts), (State::Succeeded, 1));
    worker.shutdown().await.unwrap();
}

#[tokio::test]
async fn work_done_while_the_connection_was_away_is_delivered_under_the_same_lease() {
    let server = TestServer::with_shards(2);
    let client = Client::builder().backoff(Duration::from_millis(5), SECOND).connect_in_memory(&server).await.unwrap();
    let (started, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (tell, wait) = (Arc::clone(&started), Arc::clone(&go_on));
    let worker = Worker::builder(&client)
        .handler("work", move |task| {
            let (tell, wait) = (Arc::clone(&tell), Arc::clone(&wait));
            async move {
                tell.notify_one();
                wait.notified().await;
                Ok(task.attempt().to_string())
            }
        })
        .start()
        .await
        .unwrap();
    let id = client.submit(Task::new("work")).await.unwrap().id;
    started.notified().await;
    server.disconnect_all();
    go_on.notify_one();
    assert_eq!(client.result(id).await.unwrap().text().unwrap(), "1");
    assert!(worker.stats().reconnects > 0);
    worker.shutdown().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_overloaded_node_is_asked_again_after_the_time_it_named() {
    let server = TestServer::start();
    let client = Client::builder().connect_in_memory(&server).await.unwrap();
    server.refuse_next(2, 3 * SECOND);
    let start = Instant::now();
    assert!(client.submit(Task::new("echo")).await.unwrap().is_kept());
    assert!(start.elapsed() >= 6 * SECOND && start.elapsed() < 10 * SECOND, "{:?}", start.elapsed());
    server.refuse_next(1000, 30 * SECOND);
    let error = client.submit(Task::new("echo")).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::Overloaded));
    assert_eq!(error.retry_after(), Some(30 * SECOND));
}

#[tokio::test(start_paused = true)]
async fn a_frozen_node_is_left_and_found_again() {
    let server = TestServer::with_shards(2);
    let client = Client::builder().connect_in_memory(&server).await.unwrap();
    let worker = echo_worker(&client).await;
    server.set_silent(true);
    tokio::time::sleep(60 * SECOND).await;
    let error = client.submit(Task::new("echo")).await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    server.set_silent(false);
    let id = client.submit(Task::new("echo").payload("back")).await.unwrap().id;
    assert_eq!(client.result(id).await.unwrap().text().unwrap(), "back");
    assert_eq!(worker.stats().reconnects, 2);
    worker.shutdown().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_idle_worker_stays_connected_for_a_day() {
    let client = Client::in_memory().await;
    let worker = echo_worker(&client).await;
    tokio::time::sleep(24 * 3600 * SECOND).await;
    let id = client.submit(Task::new("echo")).await.unwrap().id;
    assert_eq!(client.result(id).await.unwrap().state, State::Succeeded);
    assert_eq!(worker.stats().reconnects, 0);
    worker.shutdown().await.unwrap();
}

#[tokio::test]
async fn shutdown_waits_for_running_handlers_and_gives_the_rest_back() {
    let client = Client::in_memory().await;
    let (started, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (tell, wait) = (Arc::clone(&started), Arc::clone(&go_on));
    let worker = Worker::builder(&client)
        .concurrency(1)
        .prefetch(3)
        .handler("work", move |_| {
            let (tell, wait) = (Arc::clone(&tell), Arc::clone(&wait));
            async move {
                tell.notify_one();
                wait.notified().await;
                Ok(())
            }
        })
        .start()
        .await
        .unwrap();
    let template = Task::new("work");
    let ids: Vec<_> = client
        .submit_many((0..6).map(|_| template.clone()))
        .await
        .unwrap()
        .into_iter()
        .map(|outcome| outcome.id)
        .collect();
    started.notified().await;
    let stopping = tokio::spawn(worker.shutdown());
    tokio::task::yield_now().await;
    go_on.notify_one();
    stopping.await.unwrap().unwrap();
    let mut states = Vec::new();
    for id in ids {
        let view = client.task(id).await.unwrap();
        states.push((view.state, view.attempt));
    }
    states.sort_by_key(|(state, _)| state.number());
    assert_eq!(states[..5], [(State::Ready, 0); 5]);
    assert_eq!(states[5], (State::Succeeded, 1));
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_with_a_limit_gives_handlers_up_and_their_tasks_run_elsewhere() {
    let client = Client::in_memory().await;
    let worker = Worker::builder(&client)
        .handler("stuck", |task| async move {
            task.cancelled().await;
            Ok("given up")
        })
        .start()
        .await
        .unwrap();
    let id = client.submit(Task::new("stuck")).await.unwrap().id;
    tokio::time::sleep(SECOND).await;
    assert!(matches!(worker.shutdown_within(5 * SECOND).await, Err(Error::Timeout { .. })));
    let other = echo_worker(&client).await;
    let outcome = client.result(id).await.unwrap();
    assert_eq!((outcome.state, outcome.attempts), (State::Succeeded, 2));
    other.shutdown().await.unwrap();
}

#[tokio::test]
async fn bulk_submission_names_each_refused_task_and_keeps_the_others() {
    let client = Client::in_memory().await;
    client.configure_queue("closed", QueueSettings::new().draining(true)).await.unwrap();
    let outcomes = client
        .submit_many((0..100).map(|n| match n {
            n if n % 10 == 3 => Task::new("echo").queue("closed"),
            50 => Task::new("echo").payload(vec![0; 2 << 20]),
            51 => Task::new(""),
            60 | 61 => Task::new("echo").unique_key("same"),
            _ => Task::new("echo"),
        }))
        .await
        .unwrap();
    for (n, outcome) in outcomes.iter().enumerate() {
        match (n, &outcome.result) {
            (n, Submitted::Refused(refusal)) if n % 10 == 3 => assert_eq!(refusal.code, Code::QueueDraining),
            (50, Submitted::Refused(refusal)) => assert_eq!(refusal.code, Code::TooLarge),
            (51, Submitted::Refused(refusal)) => assert_eq!(refusal.code, Code::Invalid),
            (61, Submitted::UniqueConflict { holder, .. }) => assert_eq!(*holder, outcomes[60].id),
            (n, result) => assert_eq!(*result, Submitted::Accepted, "task {n}"),
        }
    }
    let error = client.submit(Task::new("echo").queue("closed")).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::QueueDraining));
}

#[tokio::test]
async fn a_paused_queue_holds_its_tasks_and_lists_them() {
    let client = Client::in_memory().await;
    client.configure_queue("held", QueueSettings::new().paused(true)).await.unwrap();
    let worker =
        Worker::builder(&client).queue("held").handler("echo", |_| async move { Ok(()) }).start().await.unwrap();
    let template = Task::new("echo").queue("held");
    client.submit_many((0..25).map(|_| template.clone())).await.unwrap();
    client.submit(Task::new("other")).await.unwrap();
    let filter = TaskFilter::new().queue("held").state(State::Ready);
    let (mut seen, mut position) = (0, None);
    loop {
        let page = client.list_tasks(&filter, position, 10).await.unwrap();
        assert!(page.tasks.len() <= 10);
        seen += page.tasks.len();
        position = page.next;
        if position.is_none() {
            break;
        }
    }
    assert_eq!(seen, 25);
    let queues = client.queues().await.unwrap();
    let held = queues.iter().find(|queue| queue.queue == "held").unwrap();
    assert!(held.is_paused);
    assert_eq!(held.counts.of(State::Ready), 25);
    client.configure_queue("held", QueueSettings::new().paused(false)).await.unwrap();
    for task in client.list_tasks(&TaskFilter::new().queue("held"), None, 100).await.unwrap().tasks {
        assert_eq!(client.result(task.id).await.unwrap().state, State::Succeeded);
    }
    worker.shutdown().await.unwrap();
}

#[tokio::test]
async fn urgent_tasks_start_first_and_keys_limit_concurrency() {
    let client = Client::in_memory().await;
    let mut ids = Vec::new();
    for priority in [Priority::Low, Priority::Normal, Priority::Critical, Priority::High] {
        // One key puts them into one partition, whose order is then visible.
        let task = Task::new("note").payload(priority.name()).priority(priority).concurrency_key("one", 1);
        ids.push(client.submit(task).await.unwrap().id);
    }
    let (sender, mut order) = mpsc::unbounded_channel();
    let running = Arc::new(AtomicU32::new(0));
    let worker = Worker::builder(&client)
        .concurrency(8)
        .handler("note", move |task| {
            let (sender, running) = (sender.clone(), Arc::clone(&running));
            async move {
                assert_eq!(running.fetch_add(1, Ordering::SeqCst), 0, "the key allows one at a time");
                tokio::task::yield_now().await;
                sender.send(task.text()?.to_owned())?;
                running.fetch_sub(1, Ordering::SeqCst);
                Ok(())
            }
        })
        .start()
        .await
        .unwrap();
    for id in ids {
        assert_eq!(client.result(id).await.unwrap().state, State::Succeeded);
    }
    let mut names = Vec::new();
    while let Ok(name) = order.try_recv() {
        names.push(name);
    }
    assert_eq!(names, ["critical", "high", "normal", "low"]);
    worker.shutdown().await.unwrap();
}

#[tokio::test]
async fn an_attempt_goes_on_from_the_state_that_the_one_before_saved() {
    let client = Client::in_memory().await;
    let worker = Worker::builder(&client)
        .handler("count", |task| async move {
            let (mut done, from) = match task.load().await? {
                Some((version, state)) => (state, version.number),
                None => (Vec::new(), 0),
            };
            for _ in 0..3 {
                done.push(b'x');
                let version = task.save_as(&done, "a step").await?;
                assert_eq!(version.size, done.len() as u64);
            }
            if task.attempt() < 3 {
                return Err(TaskError::new("broken", "on purpose"));
            }
            Ok(format!("{} from version {from}", String::from_utf8(done)?))
        })
        .start()
        .await
        .unwrap();
    let retries = Retries::attempts(3).backoff(Duration::from_millis(1));
    let id = client.submit(Task::new("count").retries(retries)).await.unwrap().id;
    assert_eq!(client.result(id).await.unwrap().text().unwrap(), "xxxxxxxxx from version 6");
    let history = client.state_log(id).await.unwrap();
    let told: Vec<_> = history.versions.iter().map(|row| (row.number, row.parent, row.attempt, row.size)).collect();
    let expected: Vec<_> =
        (1..=9u32).map(|number| (number, number - 1, number.div_ceil(3), u64::from(number))).collect();
    assert_eq!(told, expected);
    assert_eq!((history.head, history.current.as_str(), history.versions[0].label.as_str()), (9, "main", "a step"));
    client.change_state(id, &StateChange::Tag { name: "good".into(), version: Some(4) }).await.unwrap();
    client.change_state(id, &StateChange::Rollback { version: 5 }).await.unwrap();
    assert_eq!(client.read_state(id, None).await.unwrap().bytes, b"xxxxx");
    assert_eq!(client.state_log(id).await.unwrap().tags, [("good".to_owned(), 4)]);
    let unknown = client.read_state(id, Some(99)).await.unwrap_err();
    assert_eq!(unknown.code(), Some(Code::UnknownVersion));
    worker.shutdown().await.unwrap();
}

#[tokio::test]
async fn questions_about_unknown_things_are_answered_with_their_codes() {
    let client = Client::in_memory().await;
    let id = client.task_id();
    assert_eq!(client.task(id).await.unwrap_err().code(), Some(Code::UnknownTask));
    assert_eq!(client.result(id).await.unwrap_err().code(), Some(Code::UnknownTask));
    assert_eq!(client.workflow(id).await.unwrap_err().code(), Some(Code::UnknownWorkflow));
    let known = client.submit(Task::new("echo")).await.unwrap().id;
    assert_eq!(client.why(known).await.unwrap()[0].name, "state");
    assert_eq!(client.stats().await.unwrap()[0].counters[0], ("tasks".to_owned(), 1));
    client.ping().await.unwrap();
}

#[cfg(feature = "json")]
#[tokio::test]
async fn payloads_and_results_travel_as_json() {
    let client = Client::in_memory().await;
    let worker = Worker::builder(&client)
        .handler("sum", |task| async move {
            let numbers: Vec<u64> = task.json()?;
            Ok(serde_json::to_vec(&numbers.iter().sum::<u64>())?)
        })
        .start()
        .await
        .unwrap();
    let id = client.submit(Task::new("sum").json(&[1, 2, 3]).unwrap()).await.unwrap().id;
    assert_eq!(client.result(id).await.unwrap().json::<u64>().unwrap(), 6);
    worker.shutdown().await.unwrap();
}

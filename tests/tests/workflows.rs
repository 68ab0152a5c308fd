//! Every recorded workflow runs to its end on a real node, each dependency respected.
//!
//! The recordings are found beside the workspace or in `TASKMASTER_TRACES`; without them the fixtures are run.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use taskmaster_client::{Client, Step, Task, TaskId, Worker, Workflow};
use taskmaster_workflow::{Options, Plan, Span, Work, instances, verify_order};

use crate::process::{Setup, directory};

/// Length that the longest path or the work for the workers there are is scaled to, in seconds.
const SCALED_S: f64 = 0.25;
const CONCURRENCY: u32 = 256;
/// Workflows in flight at once.
const ABREAST: usize = 4;

type Observed = Arc<Mutex<HashMap<TaskId, Span>>>;

fn now_us() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros()).unwrap()
}

fn plans() -> Vec<(String, Plan)> {
    let folder = instances::folder().unwrap_or_else(instances::fixtures);
    let texts = instances::instances(&folder).unwrap();
    assert!(!texts.is_empty(), "no instance in {}", folder.display());
    texts
        .into_iter()
        .map(|(name, text)| {
            let options = Options { name: name.clone(), ..Options::default() };
            let plan = taskmaster_workflow::from_text(&text, &options);
            let plan = plan.unwrap_or_else(|rejected| panic!("{name}: {rejected}"));
            (name, plan)
        })
        .collect()
}

/// The plan as a workflow of the client, every task a `replay` that sleeps as long as it ran, scaled.
fn workflow(plan: &Plan) -> Workflow {
    let mut workflow = Workflow::new(plan.name.clone());
    let mut steps: Vec<Step> = Vec::with_capacity(plan.tasks.len());
    let task = Task::new("replay").queue("flows").lease(Duration::from_secs(30)).retention(Duration::from_secs(3_600));
    for planned in &plan.tasks {
        let Work::Replay(replay) = &planned.work else { panic!("recorded tasks are replays") };
        let needs: Vec<Step> = planned.parents.iter().map(|&parent| steps[parent as usize]).collect();
        let payload = format!("{}", replay.runtime_s);
        steps.push(workflow.add(planned.name.clone(), task.clone().payload(payload), needs));
    }
    workflow
}

struct Ran {
    name: String,
    tasks: usize,
    bound_s: f64,
    makespan_s: f64,
}

async fn run(client: Client, observed: Observed, name: String, mut plan: Plan) -> Ran {
    plan.speed_up((plan.bound_s(CONCURRENCY) / SCALED_S).max(1e-3));
    let bound_s = plan.bound_s(CONCURRENCY);
    let handle = client.submit_workflow(workflow(&plan)).await.unwrap();
    let view = client.await_workflow(handle.id, Duration::from_secs(60)).await.unwrap();
    assert!(view.is_success(), "{name}: {:?}", view.counts);
    assert_eq!(view.counts.total(), plan.tasks.len() as u64, "{name}");
    let spans: Vec<Option<Span>> = {
        let mut observed = observed.lock().unwrap();
        handle.tasks.iter().map(|id| observed.remove(id)).collect()
    };
    assert!(spans.iter().all(Option::is_some), "{name}: a task never ran");
    verify_order(&plan, &spans).unwrap_or_else(|violation| panic!("{name}: {violation}"));
    // What the node tells agrees: no task began before those it needs were final.
    let view = client.workflow(handle.id).await.unwrap();
    let rows: HashMap<TaskId, _> = view.tasks.iter().map(|row| (row.id, row)).collect();
    let told: Vec<Option<Span>> =
        handle.tasks.iter().map(|id| rows.get(id).map(|row| (row.started_us, row.finished_us))).collect();
    assert!(told.iter().all(Option::is_some), "{name}: the node does not list every task");
    verify_order(&plan, &told).unwrap_or_else(|violation| panic!("{name}, as the node tells: {violation}"));
    let makespan_s = Duration::from_micros(view.finished_us - view.submitted_us).as_secs_f64();
    Ran { name, tasks: plan.tasks.len(), bound_s, makespan_s }
}

async fn worker(client: &Client, observed: &Observed) -> Worker {
    let observed = Arc::clone(observed);
    Worker::builder(client)
        .queue("flows")
        .concurrency(CONCURRENCY)
        .handler("replay", move |task| {
            let observed = Arc::clone(&observed);
            async move {
                let seconds: f64 = task.text()?.parse()?;
                let start_us = now_us();
                tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
                let before = observed.lock().unwrap().insert(task.id(), (start_us, now_us()));
                assert_eq!(before, None, "{} ran twice although nothing failed", task.id());
                Ok("")
            }
        })
        .start()
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_recorded_workflow_runs_to_its_end_in_order() {
    let directory = directory();
    let setup = Setup::new(&directory).shards(2);
    let node = setup.start();
    let client = Client::connect(node.address.to_string()).await.unwrap();
    let observed = Observed::default();
    let worker = worker(&client, &observed).await;
    let began = Instant::now();
    let mut waiting = plans().into_iter();
    let mut running = tokio::task::JoinSet::new();
    let mut done = Vec::new();
    loop {
        while running.len() < ABREAST
            && let Some((name, plan)) = waiting.next()
        {
            running.spawn(run(client.clone(), Arc::clone(&observed), name, plan));
        }
        let Some(ran) = running.join_next().await else { break };
        done.push(ran.unwrap());
    }
    done.sort_by(|one, other| one.name.cmp(&other.name));
    for Ran { name, tasks, bound_s, makespan_s } in &done {
        let ratio = makespan_s / bound_s;
        eprintln!("{name}: {tasks} tasks, makespan {makespan_s:.3} s, bound {bound_s:.3} s, {ratio:.2}x");
    }
    let tasks: usize = done.iter().map(|ran| ran.tasks).sum();
    eprintln!("{} workflows, {tasks} tasks in {:.1} s", done.len(), began.elapsed().as_secs_f64());
    worker.shutdown_within(Duration::from_secs(30)).await.unwrap();
}

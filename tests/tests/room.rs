//! Workers of nodes with several shards: what runs on one is within what it offers, whoever gave the tasks.

use std::collections::HashSet;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use taskmaster_client::{Client, Resources, State, Task, TaskId, Worker};
use tempfile::TempDir;
use tokio::sync::Semaphore;

use crate::process::{Running, Setup, Silent, binary, directory};

const LONG: Duration = Duration::from_secs(60);
const SHARDS: u16 = 2;

struct Stage {
    _directory: TempDir,
    node: Running,
    client: Client,
}

impl Stage {
    async fn new() -> Self {
        let directory = directory();
        let node = Setup::new(&directory).shards(SHARDS).start();
        let client = Client::connect(node.address.to_string()).await.unwrap();
        Self { _directory: directory, node, client }
    }

    async fn submit(&self, task: Task) -> TaskId {
        self.client.submit(task.queue("q")).await.unwrap().id
    }

    async fn text(&self, id: TaskId) -> String {
        let outcome = self.client.result_within(id, LONG).await.unwrap().expect("it ends");
        assert_eq!(outcome.state, State::Succeeded, "{outcome:?}");
        outcome.text().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_runs_at_once_never_needs_more_than_the_worker_has() {
    let stage = Stage::new().await;
    let (used, most) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let devices: Arc<Mutex<HashSet<u32>>> = Arc::default();
    let (seen, peak, taken) = (Arc::clone(&used), Arc::clone(&most), Arc::clone(&devices));
    let worker = Worker::builder(&stage.client)
        .queue("q")
        .concurrency(16)
        .resources(Resources::new().cpu_milli(4_000).gpu_milli(2_000).custom("licence", 3))
        .default_handler(move |task| {
            let (seen, peak, taken) = (Arc::clone(&seen), Arc::clone(&peak), Arc::clone(&taken));
            async move {
                let now = seen.fetch_add(task.cpu_milli(), Ordering::SeqCst) + task.cpu_milli();
                peak.fetch_max(now, Ordering::SeqCst);
                for device in task.devices() {
                    assert!(taken.lock().unwrap().insert(*device), "two tasks have device {device}");
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
                taken.lock().unwrap().retain(|device| !task.devices().contains(device));
                seen.fetch_sub(task.cpu_milli(), Ordering::SeqCst);
                Ok(task.devices().len().to_string())
            }
        })
        .start()
        .await
        .unwrap();
    let mut wanted = Vec::new();
    for number in 0..120u32 {
        let resources = Resources::new().cpu_milli(500 * (1 + number % 4));
        let devices = if number % 5 == 0 { 1 + number % 2 } else { 0 };
        let id =
            stage.submit(Task::new("k").resources(resources.gpu_milli(1_000 * devices).custom("licence", 1))).await;
        wanted.push((id, devices));
    }
    for (id, devices) in wanted {
        assert_eq!(stage.text(id).await, devices.to_string());
    }
    let most = most.load(Ordering::SeqCst);
    // Three at a time by licences, of two cores at most.
    assert!((1_500..=4_000).contains(&most), "{most}");
    assert_eq!(used.load(Ordering::SeqCst), 0);
    worker.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_finds_no_room_goes_to_a_worker_that_has_some() {
    let stage = Stage::new().await;
    let go_on = Arc::new(Semaphore::new(0));
    let start = async |name: &'static str, cores: u32| {
        let go_on = Arc::clone(&go_on);
        let handler = move |_| {
            let go_on = Arc::clone(&go_on);
            async move {
                if name == "full" {
                    drop(go_on.acquire().await.unwrap());
                }
                Ok(name)
            }
        };
        let offered = Resources::new().cpu_milli(1_000 * cores);
        let worker = Worker::builder(&stage.client).queue("q").name(name).concurrency(8).resources(offered);
        worker.default_handler(handler).start().await.unwrap()
    };
    let full = start("full", 1).await;
    let mut ids = Vec::new();
    for _ in 0..2 * SHARDS {
        ids.push(stage.submit(Task::new("k").resources(Resources::new().cpu_milli(1_000))).await);
    }
    while full.stats().running == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let other = start("other", 1).await;
    let mut others = 0;
    while others < ids.len() - 1 {
        others = usize::try_from(other.stats().completed).unwrap();
        assert_eq!(full.stats().running, 1, "it has one core");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    go_on.add_permits(8);
    let mut ran = Vec::new();
    for id in ids {
        ran.push(stage.text(id).await);
    }
    assert_eq!(ran.iter().filter(|name| *name == "full").count(), 1, "{ran:?}");
    full.shutdown().await.unwrap();
    other.shutdown().await.unwrap();
}

fn start(node: &Running, arguments: &[&str]) -> Silent {
    let mut command = Command::new(binary());
    command.args(["--addr", &node.address.to_string(), "worker", "--queue", "q", "--concurrency", "4"]);
    Silent::spawn(command.args(arguments).env("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b"))
}

/// Processor time that a process used until now, in hundredths of a second.
fn processor_ticks(process: &Silent) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.0.id())).unwrap();
    let behind_name = stat.rsplit_once(')').unwrap().1;
    behind_name.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_without_room_for_what_waits_is_at_rest() {
    let stage = Stage::new().await;
    let worker = start(&stage.node, &["--cpu", "1", "--exec", "sleep 4"]);
    for _ in 0..2 * SHARDS {
        stage.submit(Task::new("k").resources(Resources::new().cpu_milli(1_000))).await;
    }
    let leased =
        async || stage.client.queues().await.unwrap().iter().map(|queue| queue.counts.of(State::Leased)).sum::<u64>();
    while leased().await == 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let before = processor_ticks(&worker);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let used = processor_ticks(&worker) - before;
    assert!(used < 50, "{used} hundredths of a second in two seconds");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn labels_choose_the_worker_and_processes_learn_their_devices() {
    let stage = Stage::new().await;
    let tell = |name: &str| format!("printf '{name} %s %s' \"$TASKMASTER_DEVICES\" \"$CUDA_VISIBLE_DEVICES\"");
    let _plain = start(&stage.node, &["--exec", &tell("plain")]);
    let _south = start(&stage.node, &["--label", "zone=south", "--exec", &tell("south")]);
    let north = ["--gpu", "2", "--cpu", "4", "--label", "zone=north", "--label", "disk=fast", "--exec", &tell("north")];
    let _north = start(&stage.node, &north);
    let submit = async |more: &[&str]| {
        let mut arguments = vec!["submit", "--kind", "k", "--queue", "q", "--wait"];
        arguments.extend(more);
        let told = stage.node.cli(&arguments).await;
        assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
        String::from_utf8(told.stdout).unwrap()
    };
    for _ in 0..4 {
        assert!(submit(&["--on", "zone=south"]).await.contains("south  GPU-a,GPU-b"), "as the worker has it");
        assert!(submit(&["--on", "zone=north", "--on", "disk=fast"]).await.contains("north"));
        assert!(submit(&["--gpu", "2", "--on", "zone=north"]).await.contains("north GPU-a,GPU-b GPU-a,GPU-b"));
        assert!(submit(&["--gpu", "0.5", "--on", "disk=fast"]).await.contains("north GPU-b GPU-b"));
    }
    let waits = stage.submit(Task::new("k").resources(Resources::new().on("zone", "west"))).await;
    let why = stage.node.cli(&["task", "why", &waits.to_string()]).await;
    let why = String::from_utf8(why.stdout).unwrap();
    assert!(why.contains("it asks for label zone=west, and no connected worker offers that much"), "{why}");
}

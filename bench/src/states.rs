//! Saves of tasks' state: how many a second are durable, and how much of each is new.
//!
//! Tasks run in this process and save as fast as they are answered. In the same run, as the baseline, tasks are submitted one by one
//! with as many in flight and a payload as long as what a save brings: the bare cost of making so many bytes durable.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hdrhistogram::Histogram;
use serde::Serialize;
use taskmaster_client::{Client, Context, Task, TaskError, TaskId, Worker};
use tokio::sync::Mutex;

use crate::floor::Floor;
use crate::options::NodeInfo;

const QUEUE: &str = "bench-states";
/// Saves of the large state, for each way in which it changes.
const LARGE_SAVES: u32 = 24;
const LARGE_BYTES: usize = 1 << 20;

/// What to measure.
#[derive(Clone, Debug)]
pub struct StatesOptions {
    /// Tasks that save at once.
    pub tasks: u32,
    /// Length of a state, in bytes.
    pub state_bytes: usize,
    /// Time to measure for.
    pub time: Duration,
    /// Time for each floor.
    pub floor: Duration,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct StatesReport {
    /// Tasks that saved at once.
    pub tasks: u32,
    /// Length of a state, in bytes; one percent of it changes before each save.
    pub state_bytes: usize,
    /// Durable saves per second.
    pub saves_per_s: f64,
    /// Latency of a save, in microseconds.
    pub p50_us: u64,
    /// The same.
    pub p99_us: u64,
    /// Bytes of a save that the partition did not have, on average.
    pub new_bytes_per_save: f64,
    /// Submissions per second with payloads of that length.
    pub baseline_submits_per_s: f64,
    /// Share of a state of 1 MiB that is new when one percent changes in one place, on average.
    pub new_share_one_place: f64,
    /// The same when it changes in ten places.
    pub new_share_ten_places: f64,
    /// What the machine allows.
    pub floor: Floor,
}

/// A source of arbitrary bytes.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        bytes.iter_mut().for_each(|byte| *byte = self.next().to_le_bytes()[3]);
    }

    /// Changes one percent of a state in so many places.
    fn change(&mut self, state: &mut [u8], places: usize) {
        let len = (state.len() / 100 / places).max(1);
        for _ in 0..places {
            let room = state.len() - len;
            let at = usize::try_from(self.next() >> 1).unwrap_or(0) % (room + 1);
            self.fill(&mut state[at..at + len]);
        }
    }
}

/// What the handlers share.
struct Stage {
    state_bytes: usize,
    is_over: AtomicBool,
    measures: AtomicBool,
    saves: AtomicU64,
    latencies: Mutex<Histogram<u64>>,
}

impl Stage {
    async fn save_until_over(&self, task: Context) -> Result<Vec<u8>, TaskError> {
        let mut noise = Noise(task.token() | 1);
        let mut state = vec![0; self.state_bytes];
        noise.fill(&mut state);
        let mut latencies = Vec::new();
        while !self.is_over.load(Ordering::Relaxed) {
            noise.change(&mut state, 1);
            let began = Instant::now();
            task.save(&state).await?;
            if self.measures.load(Ordering::Relaxed) {
                self.saves.fetch_add(1, Ordering::Relaxed);
                latencies.push(u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX));
            }
        }
        let mut all = self.latencies.lock().await;
        latencies.into_iter().for_each(|us| all.saturating_record(us));
        Ok(Vec::new())
    }
}

/// Saves a large state again and again, changed in so many places.
async fn save_large(task: Context, places: usize) -> Result<Vec<u8>, TaskError> {
    let mut noise = Noise(places as u64 * 77 + 1);
    let mut state = vec![0; LARGE_BYTES];
    noise.fill(&mut state);
    for _ in 0..=LARGE_SAVES {
        task.save(&state).await?;
        noise.change(&mut state, places);
    }
    Ok(Vec::new())
}

/// Mean share of new bytes over all versions but the first.
async fn new_share(client: &Client, id: TaskId) -> Result<(f64, f64)> {
    let history = client.state_log(id).await?;
    let later = history.versions.iter().filter(|version| version.parent > 0);
    let (new, size, count) =
        later.fold((0, 0, 0), |(new, size, count), version| (new + version.new_bytes, size + version.size, count + 1));
    ensure!(count > 0, "task {id} saved nothing");
    Ok((new as f64 / size as f64, new as f64 / f64::from(count)))
}

/// Runs the measurement against a node.
///
/// # Errors
/// When the node cannot be reached, or refuses.
pub fn run(options: &StatesOptions, node: &NodeInfo) -> Result<StatesReport> {
    let floor = Floor::measure(node.data_dir.as_deref(), options.floor.as_secs_f64())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(measure(options, node, floor))
}

async fn measure(options: &StatesOptions, node: &NodeInfo, floor: Floor) -> Result<StatesReport> {
    let client = Client::connect(node.addr.as_str()).await.context("connecting")?;
    let stage = Arc::new(Stage {
        state_bytes: options.state_bytes,
        is_over: AtomicBool::new(false),
        measures: AtomicBool::new(false),
        saves: AtomicU64::new(0),
        latencies: Mutex::new(Histogram::new(3)?),
    });
    let shared = Arc::clone(&stage);
    let worker = Worker::builder(&client)
        .queue(QUEUE)
        .concurrency(options.tasks)
        .handler("save", move |task| {
            let stage = Arc::clone(&shared);
            async move { stage.save_until_over(task).await }
        })
        .handler("one", |task| save_large(task, 1))
        .handler("ten", |task| save_large(task, 10))
        .start()
        .await?;
    let mut shares = Vec::new();
    for kind in ["one", "ten"] {
        let id = client.submit(Task::new(kind).queue(QUEUE)).await?.id;
        client.result(id).await?.text()?;
        shares.push(new_share(&client, id).await?.0);
    }
    let tasks = (0..options.tasks).map(|_| Task::new("save").queue(QUEUE));
    let ids: Vec<TaskId> = client.submit_many(tasks).await?.iter().map(|outcome| outcome.id).collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    stage.measures.store(true, Ordering::Relaxed);
    let (began, before) = (Instant::now(), stage.saves.load(Ordering::Relaxed));
    tokio::time::sleep(options.time).await;
    let saves = stage.saves.load(Ordering::Relaxed) - before;
    let saves_per_s = saves as f64 / began.elapsed().as_secs_f64();
    stage.is_over.store(true, Ordering::Relaxed);
    for &id in &ids {
        client.result(id).await?.text()?;
    }
    let new_bytes_per_save = new_share(&client, ids[0]).await?.1;
    worker.shutdown().await?;
    let baseline_submits_per_s = submits(&client, options, new_bytes_per_save).await?;
    let latencies = stage.latencies.lock().await;
    Ok(StatesReport {
        tasks: options.tasks,
        state_bytes: options.state_bytes,
        saves_per_s,
        p50_us: latencies.value_at_quantile(0.5),
        p99_us: latencies.value_at_quantile(0.99),
        new_bytes_per_save,
        baseline_submits_per_s,
        new_share_one_place: shares[0],
        new_share_ten_places: shares[1],
        floor,
    })
}

/// Submissions per second, one task each, with as many in flight as there were tasks that saved.
async fn submits(client: &Client, options: &StatesOptions, bytes: f64) -> Result<f64> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a mean of bounded lengths")]
    let mut payload = vec![0; bytes as usize];
    Noise(5).fill(&mut payload);
    let time = options.time.min(Duration::from_secs(5));
    let began = Instant::now();
    let senders: Vec<_> = (0..options.tasks)
        .map(|_| {
            let (client, payload) = (client.clone(), payload.clone());
            tokio::spawn(async move {
                let mut count = 0u64;
                while began.elapsed() < time {
                    let task = Task::new("none").queue("bench-baseline").payload(payload.clone());
                    client.submit(task.retention(Duration::from_secs(1))).await?;
                    count += 1;
                }
                anyhow::Ok(count)
            })
        })
        .collect();
    let mut count = 0;
    for sender in senders {
        count += sender.await??;
    }
    Ok(count as f64 / began.elapsed().as_secs_f64())
}

impl fmt::Display for StatesReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |share: f64| share * 100.0;
        writeln!(
            f,
            "saves      {:.0}/s durable, {} tasks with {} bytes each",
            self.saves_per_s, self.tasks, self.state_bytes
        )?;
        writeln!(f, "latency    p50 {} µs, p99 {} µs", self.p50_us, self.p99_us)?;
        writeln!(f, "new        {:.0} bytes a save", self.new_bytes_per_save)?;
        writeln!(f, "baseline   {:.0}/s tasks with a payload of that length", self.baseline_submits_per_s)?;
        writeln!(
            f,
            "1 MiB      {:.2} % new when 1 % changes in one place, {:.2} % in ten",
            percent(self.new_share_one_place),
            percent(self.new_share_ten_places)
        )?;
        match self.floor.append_flush_per_s {
            Some(appends) => write!(f, "floor      {appends:.0} appends of 4 KiB a second"),
            None => Ok(()),
        }
    }
}

//! Submissions at intended times through several clients, and a worker that completes what comes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use taskmaster_client::{Client, PartitionId, Task, Worker};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until};

use super::FailoverOptions;
use super::books::{Account, Books};
use crate::schedule::{Clock, Schedule};
use crate::submission::task_id;

/// Tasks that run at once: their handlers do nothing, this is what may be on its way.
const CONCURRENCY: u32 = 2_048;
/// Longest time of one submission with all its repetitions.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Short, so that what a struck node's worker had is done again soon.
const LEASE: Duration = Duration::from_secs(10);
/// Longer than any gap: the server still knows the task when a completion comes again.
const RETENTION: Duration = Duration::from_secs(20);

/// A running load.
pub(super) struct Load {
    books: Arc<Books>,
    to_stop: Arc<AtomicBool>,
    driver: JoinHandle<()>,
    worker: Worker,
    began: Instant,
    cpu_before_s: f64,
}

/// What submissions have in common.
struct Line {
    clients: Vec<Client>,
    books: Arc<Books>,
    task: Task,
    batch: u64,
    payload_bytes: usize,
    schedule: Schedule,
    clock: Clock,
}

impl Load {
    pub(super) async fn start(options: &FailoverOptions, addresses: &str) -> Result<Self> {
        let books = Arc::new(Books::new(crate::run::random()));
        let queue = format!("bench-{:06x}", books.run());
        let connect =
            || async { Client::builder().name("taskmaster-bench").call_timeout(CALL_TIMEOUT).connect(addresses).await };
        let mut clients = Vec::new();
        for _ in 0..options.clients.max(1) {
            clients.push(connect().await.context("no node can be reached")?);
        }
        let witness = Arc::clone(&books);
        let worker = Worker::builder(&connect().await?)
            .queue(queue.clone())
            .concurrency(CONCURRENCY)
            .handler("noop", |_context| async { Ok(Vec::new()) })
            .on_answer(move |id, code| witness.answer(id, code))
            .start()
            .await?;
        let clock = Clock::start();
        let schedule = Schedule::new(options.rate_per_s, clock.now_ns(), 0);
        let line = Line {
            clients,
            books: Arc::clone(&books),
            task: Task::new("noop").queue(queue).lease(LEASE).retention(RETENTION),
            batch: options.batch.into(),
            payload_bytes: options.payload_bytes as usize,
            schedule,
            clock,
        };
        let to_stop = Arc::new(AtomicBool::new(false));
        let driver = tokio::spawn(drive(Arc::new(line), Arc::clone(&to_stop)));
        let cpu_before_s = crate::machine::cpu_s(std::process::id()).unwrap_or(0.0);
        Ok(Self { books, to_stop, driver, worker, began: Instant::now(), cpu_before_s })
    }

    pub(super) fn books(&self) -> &Books {
        &self.books
    }

    /// What has become of the tasks, in words.
    pub(super) fn state(&self) -> String {
        let account = self.books.account();
        format!(
            "{} tasks are acknowledged, {} of them not done, {} done twice; {} submissions failed {:?}",
            account.acknowledged, account.lost, account.duplicated, account.failed, account.errors
        )
    }

    /// Stops submitting, and waits until everything is done, or nothing has been done for so long.
    pub(super) async fn finish(self, drain_max: Duration) -> Result<Account> {
        self.to_stop.store(true, Ordering::Relaxed);
        self.driver.await?;
        let elapsed_s = self.began.elapsed().as_secs_f64();
        let (mut pending, mut since) = (self.books.pending(), Instant::now());
        while pending > 0 && since.elapsed() < drain_max {
            sleep(Duration::from_millis(20)).await;
            let left = self.books.pending();
            if left != pending {
                (pending, since) = (left, Instant::now());
            }
        }
        // What comes late may be a second completion.
        sleep(Duration::from_millis(500)).await;
        let cpu_s = crate::machine::cpu_s(std::process::id()).unwrap_or(0.0);
        let generator_cpu_s = cpu_s - self.cpu_before_s;
        let account = Account { elapsed_s, generator_cpu_s, ..self.books.account() };
        drop(self.worker);
        Ok(account)
    }
}

/// Sends every batch at its time, until told to stop; returns when all are acknowledged or given up.
async fn drive(line: Arc<Line>, to_stop: Arc<AtomicBool>) {
    let began = Instant::now();
    let origin_ns = line.clock.now_ns();
    let mut under_way = JoinSet::new();
    for number in 0u64.. {
        let first = number * line.batch;
        let intended = began + Duration::from_nanos(line.schedule.intended_ns(first).saturating_sub(origin_ns));
        if intended > Instant::now() {
            sleep_until(intended).await;
        }
        if to_stop.load(Ordering::Relaxed) {
            break;
        }
        under_way.spawn(submit(Arc::clone(&line), number, intended));
        while under_way.try_join_next().is_some() {}
    }
    while under_way.join_next().await.is_some() {}
}

async fn submit(line: Arc<Line>, number: u64, intended: Instant) {
    let first = number * line.batch;
    let client = &line.clients[usize::try_from(number).expect("64-bit machine") % line.clients.len()];
    let partitions = u64::from(client.partitions()).max(1);
    let partition = u16::try_from(number % partitions).expect("below a u16");
    let unix_ms = line.clock.unix_ms(line.clock.now_ns());
    let tasks = (first..first + line.batch).map(|sequence| {
        let mut payload = vec![0; line.payload_bytes];
        payload[..8].copy_from_slice(&sequence.to_le_bytes());
        line.task.clone().id(task_id(unix_ms, PartitionId(partition), line.books.run(), sequence)).payload(payload)
    });
    line.books.send(first, partition, intended);
    match client.submit_many(tasks).await {
        Ok(outcomes) => match outcomes.iter().find(|outcome| !outcome.is_kept()) {
            None => line.books.acknowledge(first, line.batch),
            Some(outcome) => line.books.fail(first, format!("partition {partition}: {outcome:?}")),
        },
        Err(error) => line.books.fail(first, format!("partition {partition}: {error}")),
    }
}

//! The foreign thread: libraries that need tokio live on one thread beside the shards, which talk to it through bounded queues.
//!
//! It is started only where something is configured that needs it. Towards it a shard sends through a tokio queue, which wakes tasks of
//! that thread only; for the way back see [`crate::answers`]. A queue that is full makes the foreign side late, never a shard wait.
//!
//! Here are the thread, the ports and what a port carries; what is done with it is `taskmaster-connect`'s.

pub(crate) mod carry;

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc as thread_queue;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use taskmaster_connect::postgres::{
    self, Answers, Error, Found, Given, HistoryPlace, Listed, Listing, Question, QueueSetting, Request, Settings,
    Status,
};
use taskmaster_connect::redis::Cache;
use taskmaster_engine::checkpoint::{BatchBounds, ForStore, FromStore, Holding, Stored};
use taskmaster_engine::{About, StoredPage};
use taskmaster_protocol::PartitionId;
use tokio::runtime;
use tokio::sync::mpsc;
use tokio::task::LocalSet;

use crate::answers::{Backs, ShardEnd, backs};
use crate::config::Config;

/// Requests that wait for one connection at most, besides what it has taken.
const REQUESTS_MAX: usize = 64;
/// Questions about tasks that wait at most.
const QUESTIONS_MAX: usize = 1_024;
/// Listings that wait at most.
const LISTINGS_MAX: usize = 64;
/// How long the thread may take to end after the shards.
const END_MAX: Duration = Duration::from_secs(5);
/// How long a start waits for the database; one that cannot be reached does not keep a node from starting.
const CHECK_MAX: Duration = Duration::from_secs(3);

/// The running thread.
pub(crate) struct Foreign {
    ended: thread_queue::Receiver<()>,
}

/// A shard's end of the queues.
pub(crate) struct Port {
    shard: usize,
    /// Whether checkpoints are sent: not while tasks come back from the store.
    pub(crate) sends: bool,
    writers: Vec<mpsc::Sender<Given>>,
    reader: mpsc::Sender<Question>,
    lister: mpsc::Sender<Listing>,
    /// Answers from the thread.
    pub(crate) answers: thread_queue::Receiver<ToShard>,
    /// Has something to read when there are answers.
    pub(crate) wake: Option<UnixStream>,
    /// How often checkpoints are sent.
    pub(crate) interval: Duration,
    /// Bounds of a batch.
    pub(crate) bounds: BatchBounds,
    /// How the connections are doing.
    pub(crate) status: Arc<Status>,
}

/// What comes to a shard.
pub(crate) enum ToShard {
    /// Where the store stands with a partition, to the leader of a term.
    Stored {
        /// The partition.
        partition: PartitionId,
        /// The term in which it was asked.
        term: u64,
        /// Where the store stands.
        stored: Stored,
    },
    /// What the store knows of a task: the number of the question, and the answer.
    Found(u64, Found),
    /// A page of what the store has: the number of the question, and the answer.
    Listed(u64, Listed),
    /// What comes back.
    Restore(FromStore),
    /// What has a partition? Nothing, if it is not led there.
    Holding(PartitionId, thread_queue::SyncSender<Option<Holding>>),
}

impl Foreign {
    /// Starts the thread if something is configured that needs it, and gives each shard its port. What is long of ended tasks comes from
    /// the cache where it can.
    ///
    /// # Errors
    /// What is wrong with the configuration, or with the schema of a database that can be reached.
    pub(crate) fn start(
        config: &Config,
        shards: usize,
        cache: Option<Cache>,
    ) -> anyhow::Result<Option<(Self, Vec<Port>)>> {
        if !config.postgres.is_configured() {
            return Ok(None);
        }
        let settings = config.postgres.settings()?;
        let status = Arc::new(Status::default());
        let (backs, own) = ways_back(config, shards)?;
        let (reader, questions) = mpsc::channel(QUESTIONS_MAX);
        let (lister, listings) = mpsc::channel(LISTINGS_MAX);
        let (writers, queues): (Vec<_>, Vec<_>) =
            (0..config.postgres.connections).map(|_| mpsc::channel(REQUESTS_MAX)).unzip();
        let ports = own.into_iter().enumerate().map(|(shard, (answers, wake))| Port {
            shard,
            sends: true,
            writers: writers.clone(),
            reader: reader.clone(),
            lister: lister.clone(),
            answers,
            wake: Some(wake),
            interval: config.postgres.interval.0,
            bounds: BatchBounds {
                tasks_min: 0,
                tasks: usize::try_from(config.postgres.batch_tasks).expect("bounded"),
                bytes: usize::try_from(config.postgres.batch_size.0).expect("bounded"),
            },
            status: Arc::clone(&status),
        });
        let ports = ports.collect();
        drop((writers, reader, lister));
        let (end, ended) = thread_queue::channel();
        let retention = Some(config.postgres.retention.0).filter(|retention| !retention.is_zero());
        Work { settings, retention, questions, cache, listings, queues, answers: Arc::new(backs), status }
            .start(end)?;
        Ok(Some((Self { ended }, ports)))
    }

    /// Waits for what the shards gave before they ended, but not long: what is not stored is in their logs.
    pub(crate) fn end(self) {
        if self.ended.recv_timeout(END_MAX) == Err(thread_queue::RecvTimeoutError::Timeout) {
            tracing::info!("some checkpoints wait for the next start");
        }
    }
}

/// What the thread does, and with what.
struct Work {
    settings: Settings,
    /// How long history is kept in the database, if not for ever.
    retention: Option<Duration>,
    questions: mpsc::Receiver<Question>,
    cache: Option<Cache>,
    listings: mpsc::Receiver<Listing>,
    queues: Vec<mpsc::Receiver<Given>>,
    answers: Arc<dyn Answers>,
    status: Arc<Status>,
}

impl Work {
    /// Starts the thread, which says when it ends; returns when it has looked at the database.
    fn start(self, end: thread_queue::Sender<()>) -> anyhow::Result<()> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("the I/O runtime cannot start")?;
        let (report, checked) = thread_queue::channel();
        let body = move || {
            let is_usable = runtime.block_on(check(&self.settings));
            let goes_on = is_usable.is_ok();
            // Who started the thread waits for this.
            let _ = report.send(is_usable);
            if goes_on {
                runtime.block_on(self.tasks());
            }
            // And may wait no longer for this.
            let _ = end.send(());
        };
        thread::Builder::new().name("foreign".to_owned()).spawn(body).context("the foreign thread cannot start")?;
        checked.recv().context("the foreign thread ended early")?
    }

    /// Everything that runs there; over when the shards' ends of the queues are gone.
    fn tasks(self) -> LocalSet {
        let tasks = LocalSet::new();
        let Self { settings, retention, questions, cache, listings, queues, answers, status } = self;
        let dropping = retention.map(|retention| {
            tasks.spawn_local(postgres::drop_old_days(settings.clone(), retention, Arc::clone(&status)))
        });
        let reading = postgres::read(settings.clone(), questions, Arc::clone(&answers), cache);
        tasks.spawn_local(async move {
            reading.await;
            // No shard is left.
            if let Some(dropping) = dropping {
                dropping.abort();
            }
        });
        tasks.spawn_local(postgres::list(settings.clone(), listings, Arc::clone(&answers)));
        for queue in queues {
            let (answers, status) = (Arc::clone(&answers), Arc::clone(&status));
            tasks.spawn_local(postgres::write(settings.clone(), queue, answers, status));
        }
        tasks
    }
}

/// Brings what the database has back into a node that has nothing.
pub(crate) struct Restorer(Backs<ToShard>);

/// Longest wait for a part to be carried out.
const RESTORE_MAX: Duration = Duration::from_secs(60);
const RESTORE_POLL: Duration = Duration::from_micros(200);

impl Restorer {
    /// For a node of so many shards, with the port of each.
    ///
    /// # Errors
    /// When sockets cannot be made.
    pub(crate) fn new(config: &Config, shards: usize) -> anyhow::Result<(Self, Vec<Port>)> {
        let (backs, own) = ways_back(config, shards)?;
        let ports = own.into_iter().enumerate().map(|(shard, (answers, wake))| Port {
            shard,
            sends: false,
            writers: Vec::new(),
            reader: mpsc::channel(1).0,
            lister: mpsc::channel(1).0,
            answers,
            wake: Some(wake),
            interval: config.postgres.interval.0,
            bounds: BatchBounds { tasks_min: 0, tasks: 1, bytes: 1 },
            status: Arc::default(),
        });
        Ok((Self(backs), ports.collect()))
    }

    /// Brings final tasks or their states back; what their partition has then.
    ///
    /// # Errors
    /// When it is not carried out.
    pub(crate) fn restore(&self, part: postgres::Returning) -> anyhow::Result<Holding> {
        let (partition, tasks, from) = match part {
            postgres::Returning::Tasks(batch) => {
                let (partition, tasks) = (batch.partition, batch.tasks.len() as u64);
                (partition, tasks, FromStore::Tasks(carry::returning(batch)))
            }
            postgres::Returning::States(states) => {
                (states.partition, 0, FromStore::States(carry::returning_states(states)))
            }
        };
        let partition = PartitionId(partition);
        let before = self.holding(partition)?.last_number;
        let after = self.carry_out(partition, from)?;
        let taken = after.last_number.saturating_sub(before);
        anyhow::ensure!(taken >= tasks, "of {tasks} tasks of partition {partition} {taken} were taken");
        Ok(after)
    }

    /// Makes the queues of a partition what they were.
    ///
    /// # Errors
    /// When it is not carried out.
    pub(crate) fn configure(&self, partition: u16, queues: &[QueueSetting]) -> anyhow::Result<()> {
        let partition = PartitionId(partition);
        let queues = queues.iter().cloned().map(carry::returning_queue).collect();
        self.carry_out(partition, FromStore::Queues { partition, queues }).map(|_| ())
    }

    /// Gives a partition something and waits until it is committed and applied.
    fn carry_out(&self, partition: PartitionId, from: FromStore) -> anyhow::Result<Holding> {
        self.0.send(self.shard(partition), ToShard::Restore(from));
        let until = Instant::now() + RESTORE_MAX;
        loop {
            let holding = self.holding(partition)?;
            if holding.is_settled {
                return Ok(holding);
            }
            anyhow::ensure!(Instant::now() < until, "partition {partition} did not take what came back");
            thread::sleep(RESTORE_POLL);
        }
    }

    fn holding(&self, partition: PartitionId) -> anyhow::Result<Holding> {
        let (send, holding) = thread_queue::sync_channel(1);
        self.0.send(self.shard(partition), ToShard::Holding(partition, send));
        holding.recv_timeout(RESTORE_MAX)?.with_context(|| format!("partition {partition} is not led here"))
    }

    fn shard(&self, partition: PartitionId) -> usize {
        usize::from(partition.0) % self.0.shards()
    }
}

/// The two ends of the shards' queues of answers.
fn ways_back(config: &Config, shards: usize) -> anyhow::Result<(Backs<ToShard>, Vec<ShardEnd<ToShard>>)> {
    // One request of each partition is under way at most, and one more of each earlier leadership.
    let bound = 2 * usize::from(config.node.partitions) + REQUESTS_MAX + QUESTIONS_MAX + LISTINGS_MAX;
    backs(shards, bound)
}

/// Refuses a database of the wrong schema; one that cannot be reached is tried again by the writers.
async fn check(settings: &Settings) -> anyhow::Result<()> {
    let checked = tokio::time::timeout(CHECK_MAX, postgres::check(settings)).await;
    match checked {
        Ok(Err(error @ (Error::Older { .. } | Error::Newer { .. } | Error::Encoding(_) | Error::Settings(_)))) => {
            Err(error.into())
        }
        Ok(_) | Err(_) => Ok(()),
    }
}

impl Answers for Backs<ToShard> {
    fn stored(&self, by: usize, partition: u16, term: u64, stored: postgres::Stored) {
        let stored = match stored {
            postgres::Stored::Upto(upto) => Stored::Upto(upto),
            postgres::Stored::Overtaken => Stored::Overtaken,
        };
        self.send(by, ToShard::Stored { partition: PartitionId(partition), term, stored });
    }

    fn found(&self, by: usize, number: u64, found: Found) {
        self.send(by, ToShard::Found(number, found));
    }

    fn listed(&self, by: usize, number: u64, listed: Listed) {
        self.send(by, ToShard::Listed(number, listed));
    }
}

impl Port {
    /// Gives the thread something to store; gives it back when the queue is full.
    ///
    /// # Errors
    /// The request.
    pub(crate) fn give(&self, given: Given) -> Result<(), Box<Given>> {
        let writer = usize::from(given.request.partition()) % self.writers.len();
        self.writers[writer].try_send(given).map_err(|full| match full {
            mpsc::error::TrySendError::Full(given) | mpsc::error::TrySendError::Closed(given) => Box::new(given),
        })
    }

    /// Asks the thread; `false` when too many ask.
    pub(crate) fn ask(&self, number: u64, about: &About) -> bool {
        match about {
            About::Task(id) => self.reader.try_send(Question { by: self.shard, number, id: id.as_u128() }).is_ok(),
            About::Tasks(page) => self.lister.try_send(self.listing(number, page)).is_ok(),
        }
    }

    fn listing(&self, number: u64, page: &StoredPage) -> Listing {
        Listing {
            by: self.shard,
            number,
            asked: Instant::now(),
            cluster: page.cluster,
            partition: page.partition.0,
            position: page.checkpointed,
            from: HistoryPlace { back: page.from.back, upto: page.from.number },
            namespace: page.namespace.clone(),
            queue: page.queue.clone(),
            kind: page.kind.clone(),
            states: page.states.iter().map(|state| state.number()).collect(),
            limit: page.limit,
        }
    }

    /// What the engine has for the store, as the thread takes it.
    pub(crate) fn given(&self, what: ForStore) -> Given {
        let request = match what {
            ForStore::Open { cluster, partition, term } => Request::Open { cluster, partition: partition.0, term },
            ForStore::Batch(batch) => Request::Batch(carry::batch(batch)),
        };
        Given { by: self.shard, request }
    }
}

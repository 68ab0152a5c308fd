//! Streams of this node: the thread that reads Kafka and submits what it reads, as a client of the cluster like any other.
//!
//! It is started only where there is a stream. It is not the foreign thread of the database, since librdkafka blocks where a
//! consumer is closed or a broker is looked at, and checkpoints should not wait for that.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use taskmaster_client::{Client, Error, Priority, StreamSource, Task};
use taskmaster_connect::kafka::{self, Order, Refused, Source, Status};
use tokio::runtime;
use tokio::sync::{OnceCell, watch};
use tokio::task::LocalSet;

use crate::config::{Config, Stream};

/// How long the thread may take to end.
const END_MAX: Duration = Duration::from_secs(5);
/// Longest time of one call to the cluster, after which it is said and tried again.
const CALL_MAX: Duration = Duration::from_secs(20);

/// The running thread.
pub(crate) struct Streams {
    end: watch::Sender<bool>,
    ended: mpsc::Receiver<()>,
}

impl Streams {
    /// Starts to read, if there is a stream, through the node at `address`.
    ///
    /// # Errors
    /// What is wrong with the configuration, or a thread that cannot be made.
    pub(crate) fn start(config: &Config, address: SocketAddr, status: Arc<Status>) -> anyhow::Result<Option<Self>> {
        if config.streams.is_empty() {
            return Ok(None);
        }
        let mut streams = Vec::new();
        for stream in &config.streams {
            streams.push((stream.clone(), stream.settings()?));
        }
        let runtime = runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("the I/O runtime of the streams cannot start")?;
        let (end, asked) = watch::channel(false);
        let (report, ended) = mpsc::channel();
        let body = move || {
            let tasks = LocalSet::new();
            let client = Rc::new(OnceCell::new());
            for (stream, settings) in streams {
                let engine = Cluster { address, client: Rc::clone(&client), template: template(&stream), stream };
                let (status, mut asked) = (Arc::clone(&status), asked.clone());
                let end = async move {
                    // The other end is gone when the node is.
                    let _ = asked.wait_for(|is_over| *is_over).await;
                };
                tasks.spawn_local(kafka::consume(Rc::new(settings), Rc::new(engine), status, end));
            }
            runtime.block_on(tasks);
            // What still looks at a broker is not waited for.
            runtime.shutdown_background();
            // And who started the thread may wait no longer.
            let _ = report.send(());
        };
        thread::Builder::new()
            .name("streams".to_owned())
            .spawn(body)
            .context("the thread of the streams cannot start")?;
        Ok(Some(Self { end, ended }))
    }

    /// Leaves the groups. What is on its way counts or comes again.
    pub(crate) fn end(self) {
        self.end.send_replace(true);
        if self.ended.recv_timeout(END_MAX) == Err(mpsc::RecvTimeoutError::Timeout) {
            tracing::info!("a consumer group is left without a word");
        }
    }
}

/// What all tasks of a stream have in common.
fn template(stream: &Stream) -> Task {
    Task::new(stream.kind.clone()).namespace(stream.namespace.clone()).queue(stream.queue.clone())
}

/// The cluster, as a stream sees it.
struct Cluster {
    address: SocketAddr,
    client: Rc<OnceCell<Client>>,
    template: Task,
    stream: Stream,
}

impl Cluster {
    async fn client(&self) -> Result<&Client, Refused> {
        let connect = || Client::builder().name("streams").call_timeout(CALL_MAX).connect(self.address.to_string());
        self.client.get_or_try_init(connect).await.map_err(later)
    }

    fn task(&self, order: &Order) -> Task {
        let mut task = self.template.clone().payload(order.payload.clone());
        if let Some(priority) = order.priority {
            let all = [Priority::Critical, Priority::High, Priority::Normal, Priority::Low];
            task = task.priority(all[usize::from(priority.min(3))]);
        }
        if let Some(deadline_ms) = order.deadline_ms {
            task = task.deadline(SystemTime::UNIX_EPOCH + Duration::from_millis(deadline_ms));
        }
        if !order.unique_key.is_empty() {
            task = task.unique_key(&order.unique_key);
        }
        if !order.concurrency_key.is_empty() {
            task = task.concurrency_key(&order.concurrency_key, self.stream.concurrency_limit);
        }
        task
    }
}

fn later(error: Error) -> Refused {
    Refused::Later(error.to_string(), error.retry_after())
}

fn named(source: &Source) -> StreamSource {
    StreamSource { stream: source.stream.clone(), topic: source.topic.clone(), number: source.number }
}

impl kafka::Engine for Cluster {
    async fn position(&self, source: &Source) -> Result<u64, Refused> {
        self.client().await?.stream_position(&named(source)).await.map_err(later)
    }

    async fn submit(&self, source: &Source, piece: (u64, u64), orders: &[Order]) -> Result<u64, Refused> {
        let tasks = orders.iter().map(|order| self.task(order));
        self.client().await?.submit_stream(&named(source), piece, tasks).await.map_err(|error| match &error {
            Error::Refused(refusal) => match refusal.row {
                Some(row) if !refusal.is_temporary() => {
                    Refused::Order(usize::try_from(row).unwrap_or(usize::MAX), refusal.message.clone())
                }
                _ => later(error),
            },
            _ => later(error),
        })
    }
}

//! Events of this node: the thread that sends them to Kafka, and the shards' ways to it and back.
//!
//! It is started only where events are configured. librdkafka blocks where a transaction begins or ends, so the thread is one of its
//! own, without a runtime. Towards it a shard sends through a bounded queue of the standard library; for the way back see [`crate::answers`].

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use taskmaster_connect::kafka::events::{self, Given, Request, Sent, Status};
use taskmaster_engine::checkpoint::{BatchBounds, Stored};
use taskmaster_engine::events::{Batch, Change, Event, ForTopic};
use taskmaster_protocol::{PartitionId, TaskId};

use crate::answers::{Backs, backs};
use crate::config::Config;
use crate::foreign::carry::place;

/// Requests that wait at most, besides those that the thread has taken.
const REQUESTS_MAX: usize = 64;
/// Bytes of texts and results at which a batch is full.
const BATCH_BYTES: usize = 1 << 20;
/// How long the thread may take to end after the shards.
const END_MAX: Duration = Duration::from_secs(5);

/// The running thread.
pub(crate) struct Events {
    ended: mpsc::Receiver<()>,
    status: Arc<Status>,
}

/// A shard's end of the queues.
pub(crate) struct Port {
    shard: usize,
    requests: mpsc::SyncSender<Given>,
    /// Answers from the thread.
    pub(crate) answers: mpsc::Receiver<Answer>,
    /// Has something to read when there are answers.
    pub(crate) wake: Option<UnixStream>,
    /// How often events are looked for.
    pub(crate) interval: Duration,
    /// Bounds of a batch.
    pub(crate) bounds: BatchBounds,
    /// How the sending goes.
    pub(crate) status: Arc<Status>,
}

/// Where the topic stands with a partition, to the leader of a term.
pub(crate) struct Answer {
    /// The partition.
    pub(crate) partition: PartitionId,
    /// The term in which it was asked.
    pub(crate) term: u64,
    /// Where it stands.
    pub(crate) sent: Stored,
}

impl Events {
    /// Starts the thread if events are configured, and gives each shard its port. `node` is the data directory's id.
    ///
    /// # Errors
    /// What is wrong with the configuration, or a thread that cannot be made.
    pub(crate) fn start(config: &Config, shards: usize, node: u128) -> anyhow::Result<Option<(Self, Vec<Port>)>> {
        let Some(events) = &config.events else { return Ok(None) };
        let settings = events.settings(config.node.partitions, node)?;
        let status = Arc::new(Status::default());
        let (requests, queue) = mpsc::sync_channel(REQUESTS_MAX);
        // One request of each partition is under way at most, and one more of each earlier leadership.
        let bound = 2 * usize::from(config.node.partitions) + REQUESTS_MAX;
        let (backs, own) = backs(shards, bound)?;
        let ports = own.into_iter().enumerate().map(|(shard, (answers, wake))| Port {
            shard,
            requests: requests.clone(),
            answers,
            wake: Some(wake),
            interval: events.interval.0,
            bounds: BatchBounds {
                tasks_min: 0,
                tasks: usize::try_from(events.batch_events).expect("bounded"),
                bytes: BATCH_BYTES,
            },
            status: Arc::clone(&status),
        });
        let ports = ports.collect();
        let (end, ended) = mpsc::channel();
        let told = Arc::clone(&status);
        let body = move || {
            events::produce(&settings, &queue, &backs, &told);
            // Who started the thread may wait no longer.
            let _ = end.send(());
        };
        thread::Builder::new().name("events".to_owned()).spawn(body).context("the thread of events cannot start")?;
        Ok(Some((Self { ended, status }, ports)))
    }

    /// Waits for what the shards gave before they ended, but not long: what is not sent is in their logs.
    pub(crate) fn end(self) {
        if self.ended.recv_timeout(END_MAX) == Err(mpsc::RecvTimeoutError::Timeout) {
            self.status.end();
            tracing::info!("some events wait for the next start");
        }
    }
}

impl events::Answers for Backs<Answer> {
    fn sent(&self, by: usize, partition: u16, term: u64, sent: Sent) {
        let sent = match sent {
            Sent::Upto(upto) => Stored::Upto(upto),
            Sent::Overtaken => Stored::Overtaken,
        };
        self.send(by, Answer { partition: PartitionId(partition), term, sent });
    }
}

impl Port {
    /// Gives the thread something to send; gives it back when the queue is full.
    ///
    /// # Errors
    /// The request.
    pub(crate) fn give(&self, given: Given) -> Result<(), Box<Given>> {
        self.requests.try_send(given).map_err(|full| match full {
            mpsc::TrySendError::Full(given) | mpsc::TrySendError::Disconnected(given) => Box::new(given),
        })
    }

    /// What the engine has for the topic, as the thread takes it.
    pub(crate) fn given(&self, what: ForTopic) -> Given {
        let request = match what {
            ForTopic::Open { cluster, partition, term, sent } => {
                Request::Open { cluster, partition: partition.0, term, sent }
            }
            ForTopic::Batch(batch) => Request::Batch(batch_of(batch)),
        };
        Given { by: self.shard, request }
    }
}

fn batch_of(batch: Batch) -> events::Batch {
    let labels = |labels: taskmaster_engine::events::Labels| events::Labels {
        namespace: labels.namespace,
        queue: labels.queue,
        kind: labels.kind,
    };
    events::Batch {
        cluster: batch.cluster,
        partition: batch.partition,
        term: batch.term,
        from: batch.from,
        to: batch.to,
        events: batch.events.into_iter().map(event_of).collect(),
        labels: batch.labels.into_iter().map(labels).collect(),
        bytes: batch.bytes,
    }
}

fn event_of(event: Event) -> events::Event {
    let details = event.details.map(|details| events::Details {
        labels: details.labels,
        workflow: if details.workflow == TaskId::default() { String::new() } else { details.workflow.to_string() },
        step: place(details.step),
        key: place(details.key),
        result: details.result.map(place),
        error_code: place(details.error[0]),
        error: place(details.error[1]),
    });
    let change = match event.change {
        Change::Submitted => events::Change::Submitted,
        Change::AttemptFailed => events::Change::AttemptFailed,
        Change::Retried => events::Change::Retried,
        Change::Completed => events::Change::Completed,
        Change::Failed => events::Change::Failed,
        Change::Cancelled => events::Change::Cancelled,
        Change::Expired => events::Change::Expired,
        Change::Started => events::Change::Started,
    };
    events::Event {
        number: event.number,
        task: event.id.to_string(),
        change,
        at_us: event.at_us,
        attempt: event.attempt,
        details,
    }
}

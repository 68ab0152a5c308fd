//! One partition of a topic: its messages become tasks, batch by batch, in their order.
//!
//! A batch is what gathered while the one before was submitted, so nobody waits for company and a busy source has large batches. One
//! is under way at a time. Nothing is taken from the partition's queue meanwhile: that is how a full engine is felt by Kafka, since
//! librdkafka stops fetching when its queue is full.

use std::rc::Rc;
use std::sync::Arc;

use futures_util::FutureExt;
use rdkafka::Message;
use rdkafka::consumer::Consumer as _;
use rdkafka::consumer::stream_consumer::{StreamConsumer, StreamPartitionQueue};
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;

use super::context::Context;
use super::letters::Letters;
use super::status::{Shared, SourceStatus};
use super::{Engine, Order, Refused, Settings, Source};
use crate::backoff::Backoff;

/// What reads one partition of a topic.
pub(super) struct Reader<E> {
    pub(super) engine: Rc<E>,
    pub(super) settings: Rc<Settings>,
    pub(super) letters: Option<Rc<Letters>>,
    pub(super) consumer: Arc<StreamConsumer<Context>>,
    pub(super) source: Source,
    pub(super) status: Shared,
    /// Where the source stands.
    pub(super) position: u64,
    /// The lowest offset that may come next.
    pub(super) next: u64,
}

/// A message that becomes a task.
struct Item<'a> {
    message: BorrowedMessage<'a>,
    order: Order,
}

/// Consecutive messages.
#[derive(Default)]
struct Batch<'a> {
    items: Vec<Item<'a>>,
    bytes: usize,
    /// Offset behind the last message.
    to: u64,
    /// Why nothing behind them is taken.
    stopped: Option<String>,
}

impl<E: Engine> Reader<E> {
    /// Reads until it is dropped, or until there is something that only people can put right; what that is.
    pub(super) async fn read(mut self, queue: StreamPartitionQueue<Context>) -> String {
        loop {
            let batch = self.gather(&queue).await;
            let stopped = match self.submit(batch).await {
                Ok(None) => continue,
                Ok(Some(stopped)) | Err(stopped) => stopped,
            };
            self.note(|status| status.is_stopped = true);
            return stopped;
        }
    }

    fn note(&self, change: impl FnOnce(&mut SourceStatus)) {
        self.status.of(&self.source, change);
    }

    /// Waits for a message and takes those that are there with it.
    async fn gather<'a>(&mut self, queue: &'a StreamPartitionQueue<Context>) -> Batch<'a> {
        let mut batch = Batch { to: self.position, ..Batch::default() };
        let mut next = Some(queue.recv().await);
        while let Some(received) = next {
            self.take(received, &mut batch).await;
            let is_full = batch.items.len() >= self.settings.batch_messages || batch.bytes >= self.settings.batch_bytes;
            if is_full || batch.stopped.is_some() {
                break;
            }
            next = queue.recv().now_or_never();
        }
        batch
    }

    async fn take<'a>(&mut self, received: Result<BorrowedMessage<'a>, KafkaError>, batch: &mut Batch<'a>) {
        let message = match received {
            Ok(message) => message,
            Err(error) => {
                self.failed(&self.consumer.client().context().said(&error));
                return;
            }
        };
        let offset = u64::try_from(message.offset()).unwrap_or(0);
        if offset < self.next {
            batch.stopped = Some(format!(
                "offset {offset} came where {} or a later one was due: the topic was made anew, or cut at its end. \
                 Give the stream another name to read it from the beginning",
                self.next
            ));
            return;
        }
        self.next = offset + 1;
        if offset < self.position {
            // Another reader was faster.
            return;
        }
        match self.settings.mapping.order(&message) {
            Ok(order) => {
                batch.bytes += order.payload.len();
                batch.items.push(Item { message, order });
            }
            Err(reason) => {
                if let Err(stopped) = self.bury(&message, &reason).await {
                    batch.stopped = Some(stopped);
                    return;
                }
            }
        }
        batch.to = offset + 1;
    }

    /// Puts a message that cannot become a task where such messages go.
    async fn bury(&self, message: &BorrowedMessage<'_>, reason: &str) -> Result<(), String> {
        let offset = message.offset();
        let Some(letters) = &self.letters else {
            return Err(format!(
                "the message at offset {offset} cannot become a task: {reason}. Correct the stream's settings, or name a \
                 dead_letter topic"
            ));
        };
        let mut waits = Backoff::default();
        while let Err(error) = letters.send(message, reason).await {
            self.note(|status| status.is_paused = true);
            self.failed(&error);
            tokio::time::sleep(waits.wait()).await;
        }
        tracing::debug!("{}: the message at offset {offset} became a dead letter: {reason}", self.source);
        self.note(|status| {
            status.letters += 1;
            status.is_paused = false;
        });
        Ok(())
    }

    /// Submits a batch until it is taken; why nothing more is read, if so.
    async fn submit(&mut self, mut batch: Batch<'_>) -> Result<Option<String>, String> {
        let mut waits = Backoff::default();
        while batch.to > self.position {
            let orders: Vec<Order> = batch.items.iter().map(|item| item.order.clone()).collect();
            match self.engine.submit(&self.source, (self.position, batch.to), &orders).await {
                Ok(position) if position < self.position => {
                    return Err(format!("the cluster stands at offset {position}, and stood at {}", self.position));
                }
                Ok(position) => {
                    let tasks = if position == batch.to { batch.items.len() as u64 } else { 0 };
                    self.moved(position, tasks);
                    batch.items.retain(|item| u64::try_from(item.message.offset()).is_ok_and(|at| at >= position));
                }
                Err(Refused::Order(row, reason)) if row < batch.items.len() => {
                    if self.letters.is_some() {
                        self.bury(&batch.items.remove(row).message, &reason).await?;
                    } else {
                        let message = &batch.items[row].message;
                        batch.stopped = self.bury(message, &reason).await.err();
                        batch.to = u64::try_from(message.offset()).unwrap_or(0);
                        batch.items.truncate(row);
                    }
                }
                Err(Refused::Order(_, reason)) => return Err(reason),
                Err(Refused::Later(reason, wait)) => {
                    self.note(|status| status.is_paused = true);
                    self.failed(&reason);
                    tokio::time::sleep(wait.unwrap_or_default().max(waits.wait())).await;
                }
            }
        }
        Ok(batch.stopped)
    }

    fn moved(&mut self, position: u64, tasks: u64) {
        self.position = position;
        let number = i32::try_from(self.source.number).unwrap_or(i32::MAX);
        let last = i64::try_from(position).unwrap_or(i64::MAX).saturating_sub(1);
        // For people who look at the group's lag; a partition that was taken away meanwhile is another's to show.
        let _ = self.consumer.store_offset(&self.source.topic, number, last);
        self.note(|status| {
            status.lag = (status.lag + status.position).saturating_sub(position);
            status.position = position;
            status.tasks += tasks;
            status.is_paused = false;
        });
    }

    fn failed(&self, sentence: &str) {
        if self.status.failed(&self.source.stream, sentence) {
            tracing::warn!("{}: {sentence}", self.source);
        }
    }
}

//! What librdkafka calls back, always on the thread that polls the consumer.

use std::sync::Arc;

use rdkafka::TopicPartitionList;
use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::statistics::Statistics;
use rdkafka::types::RDKafkaRespErr;
use tokio::sync::mpsc;

use super::Source;
use super::reason::Reason;
use super::status::Shared;

/// Partitions: of a topic, under a number.
pub(super) type Parts = Vec<(String, i32)>;

/// A change of what this member reads.
pub(super) enum Change {
    Given(Parts),
    Taken(Parts),
}

/// What librdkafka calls back.
pub(super) struct Context {
    stream: String,
    changes: mpsc::Sender<Change>,
    status: Shared,
    reason: Reason,
}

impl Context {
    pub(super) fn new(stream: &str, changes: mpsc::Sender<Change>, status: &Shared) -> Self {
        Self { stream: stream.to_owned(), changes, status: Arc::clone(status), reason: Reason::default() }
    }

    /// Whether an error has nothing new in it.
    pub(super) fn follows(&self, error: &KafkaError) -> bool {
        self.reason.follows(error)
    }

    /// An error, with what librdkafka said of it.
    pub(super) fn said(&self, error: &KafkaError) -> String {
        self.reason.of(error)
    }
}

impl ClientContext for Context {
    fn error(&self, error: KafkaError, reason: &str) {
        self.reason.heard(&error, reason);
    }

    fn stats(&self, statistics: Statistics) {
        for (topic, of_topic) in statistics.topics {
            for (number, partition) in of_topic.partitions {
                let Ok(number) = u32::try_from(number) else { continue };
                let source = Source { stream: self.stream.clone(), topic: topic.clone(), number };
                // Only sources that are read here are known.
                if let Ok(end) = u64::try_from(partition.ls_offset) {
                    self.status.end(&source, end);
                }
            }
        }
    }
}

impl ConsumerContext for Context {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, err: RDKafkaRespErr, parts: &mut TopicPartitionList) {
        let list: Parts = parts.elements().iter().map(|part| (part.topic().to_owned(), part.partition())).collect();
        let is_given = err == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        if !is_given {
            let given_up = match consumer.rebalance_protocol() {
                RebalanceProtocol::Cooperative => {
                    present(consumer, &list).and_then(|present| consumer.incremental_unassign(&present))
                }
                RebalanceProtocol::Eager | RebalanceProtocol::None => consumer.unassign(),
            };
            if let Err(error) = given_up {
                tracing::warn!("stream {}: partitions are not given up: {error}", self.stream);
            }
        }
        let change = if is_given { Change::Given(list) } else { Change::Taken(list) };
        if self.changes.try_send(change).is_err() {
            tracing::debug!("stream {}: a change of partitions at the end", self.stream);
        }
    }
}

/// Those partitions that are assigned: one whose position is not known yet was given, but never assigned, and giving it up is an error
/// that gives up none.
fn present(consumer: &BaseConsumer<Context>, parts: &Parts) -> KafkaResult<TopicPartitionList> {
    let assigned = consumer.assignment()?;
    let mut present = TopicPartitionList::new();
    for (topic, number) in parts.iter().filter(|(topic, number)| assigned.find_partition(topic, *number).is_some()) {
        present.add_partition(topic, *number);
    }
    Ok(present)
}

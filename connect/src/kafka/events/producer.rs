//! A producer that is driven by one thread, and knows whether a message was lost.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext};

use super::super::reason::Reason;
use super::message::{key_of, message_of};
use super::{Batch, Settings};

/// Longest wait for room in librdkafka's queue before it is looked at again.
const ROOM_WAIT: Duration = Duration::from_millis(50);
/// Most sentences that are listened to at once.
const SENTENCES_MAX: usize = 16;
/// Longest wait for what a broker is asked.
pub(super) const ANSWER_MAX: Duration = Duration::from_secs(30);

/// Counts messages that brokers do not have, and remembers what librdkafka said.
#[derive(Default)]
pub(super) struct Reports {
    lost: AtomicU64,
    /// Some of them because they were too long.
    too_long: AtomicBool,
    reason: Reason,
}

impl ClientContext for Reports {
    fn error(&self, error: KafkaError, reason: &str) {
        self.reason.heard(&error, reason);
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = ();

    fn delivery(&self, delivery: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = delivery {
            let is_too_long = error.rdkafka_error_code() == Some(RDKafkaErrorCode::MessageSizeTooLarge);
            self.too_long.fetch_or(is_too_long, Ordering::Relaxed);
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The producer.
pub(super) struct Producer(pub(super) BaseProducer<Reports>);

impl Producer {
    pub(super) fn plain(settings: &Settings) -> KafkaResult<Self> {
        settings.producer(None).create_with_context(Reports::default()).map(Self)
    }

    /// One that begins where all transactions under this id have ended; whoever else used it is fenced off.
    pub(super) fn transactional(settings: &Settings, id: &str) -> KafkaResult<Self> {
        Self::transactional_within(settings, id, ANSWER_MAX)
    }

    /// The same, with less patience.
    pub(super) fn transactional_within(settings: &Settings, id: &str, longest: Duration) -> KafkaResult<Self> {
        let producer: BaseProducer<Reports> = settings.producer(Some(id)).create_with_context(Reports::default())?;
        let producer = Self(producer);
        producer.0.init_transactions(longest).map_err(|error| producer.explained(error))?;
        Ok(producer)
    }

    /// An error, with what librdkafka said of it.
    fn explained(&self, error: KafkaError) -> KafkaError {
        for _ in 0..SENTENCES_MAX {
            self.0.poll(Duration::ZERO);
        }
        self.0.context().reason.error_of(error)
    }

    /// Gives librdkafka the messages of a batch. They are on their way in this order.
    pub(super) fn enqueue(&self, settings: &Settings, batch: &Batch) -> KafkaResult<()> {
        for event in &batch.events {
            let (key, message) =
                (key_of(batch, event, settings.key), message_of(batch, event, settings.message_bytes_max));
            let at_ms = i64::try_from(event.at_us / 1_000).unwrap_or(i64::MAX);
            let mut record = BaseRecord::to(&settings.topic).key(&key).payload(&message).timestamp(at_ms);
            while let Err((error, back)) = self.0.send(record) {
                if error.rdkafka_error_code() != Some(RDKafkaErrorCode::QueueFull) {
                    return Err(error);
                }
                record = back;
                self.0.poll(ROOM_WAIT);
            }
        }
        Ok(())
    }

    /// Waits until brokers have everything that was enqueued.
    pub(super) fn settle(&self) -> KafkaResult<()> {
        self.0.flush(ANSWER_MAX * 2).map_err(|error| self.explained(error))?;
        let reports = self.0.context();
        if reports.too_long.load(Ordering::Relaxed) {
            return Err(KafkaError::MessageProduction(RDKafkaErrorCode::MessageSizeTooLarge));
        }
        if reports.lost.load(Ordering::Relaxed) > 0 {
            return Err(self.explained(KafkaError::MessageProduction(RDKafkaErrorCode::MessageTimedOut)));
        }
        Ok(())
    }
}

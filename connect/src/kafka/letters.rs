//! Dead letters: messages that cannot become tasks, as they came, with headers that say why.

use std::time::Duration;

use rdkafka::Message;
use rdkafka::message::{BorrowedMessage, Header, Headers, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};

use super::Settings;

/// Longest wait for room in the producer's queue. Delivery is tried for as long as the producer is set to.
const ROOM_MAX: Duration = Duration::from_secs(5);
/// The header that says why.
const REASON: &str = "taskmaster.reason";

/// The way to the dead-letter topic.
pub(super) struct Letters {
    producer: FutureProducer,
    topic: String,
    stream: String,
}

impl Letters {
    /// Where the stream has such a topic.
    ///
    /// # Errors
    /// A property that librdkafka refuses.
    pub(super) fn new(settings: &Settings) -> Result<Option<Self>, String> {
        let Some(topic) = &settings.dead_letter else { return Ok(None) };
        let producer = settings.producer().create().map_err(|error| super::said(&error))?;
        Ok(Some(Self { producer, topic: topic.clone(), stream: settings.name.clone() }))
    }

    /// Sends a message there; returns when the broker has it. One that is sent twice, because a crash came in between, is there twice.
    ///
    /// # Errors
    /// Why the broker does not have it.
    pub(super) async fn send(&self, message: &BorrowedMessage<'_>, reason: &str) -> Result<(), String> {
        let place = [
            ("taskmaster.stream", self.stream.clone()),
            ("taskmaster.topic", message.topic().to_owned()),
            ("taskmaster.partition", message.partition().to_string()),
            ("taskmaster.offset", message.offset().to_string()),
        ];
        let mut headers = OwnedHeaders::new();
        for header in message.headers().into_iter().flat_map(Headers::iter) {
            headers = headers.insert(header);
        }
        headers = headers.insert(Header { key: REASON, value: Some(reason) });
        for (key, value) in &place {
            headers = headers.insert(Header { key, value: Some(value) });
        }
        let mut record = FutureRecord::to(&self.topic).headers(headers);
        if let Some(key) = message.key() {
            record = record.key(key);
        }
        if let Some(value) = message.payload() {
            record = record.payload(value);
        }
        let sent = self.producer.send(record, ROOM_MAX).await;
        sent.map(|_| ()).map_err(|(error, _)| format!("topic {} does not take a dead letter: {error}", self.topic))
    }
}

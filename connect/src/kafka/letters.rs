//! Dead letters: messages that cannot become tasks, as they came, with headers that say why.
//!
//! A letter that the topic finds too long goes without its value, and if that is not enough without key and headers of its own: what is
//! lost there is told by a header, and the message is still where it came from. Else its partition would never go on.

use std::time::Duration;

use rdkafka::Message;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedHeaders, BorrowedMessage, Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};

use super::Settings;

/// Longest wait for room in the producer's queue. Delivery is tried for as long as the producer is set to.
const ROOM_MAX: Duration = Duration::from_secs(5);
/// The header that says why,
const REASON: &str = "taskmaster.reason";
/// of at most so many bytes: it may have a part of the message in it.
const REASON_BYTES_MAX: usize = 1_000;
/// The header that says how long a value is that was left out, in bytes.
const VALUE_BYTES: &str = "taskmaster.value_bytes";

/// What of a message is in its letter.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Everything.
    Whole,
    /// Everything but the value.
    WithoutValue,
    /// Only where it is, and why it became a letter.
    Place,
}

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
        let producer = settings.letters().create().map_err(|error| super::said(&error))?;
        Ok(Some(Self { producer, topic: topic.clone(), stream: settings.name.clone() }))
    }

    /// Sends a message there; returns when the broker has it. One that is sent twice, because a crash came in between, is there twice.
    ///
    /// # Errors
    /// Why the broker does not have it.
    pub(super) async fn send(&self, message: &BorrowedMessage<'_>, reason: &str) -> Result<(), String> {
        for part in [Part::Whole, Part::WithoutValue, Part::Place] {
            let error = match self.send_part(message, reason, part).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if part == Part::Place || error.rdkafka_error_code() != Some(RDKafkaErrorCode::MessageSizeTooLarge) {
                return Err(format!("topic {} does not take a dead letter: {error}", self.topic));
            }
        }
        Ok(())
    }

    async fn send_part(&self, message: &BorrowedMessage<'_>, reason: &str, part: Part) -> Result<(), KafkaError> {
        let mut place = vec![
            (REASON, reason.get(..reason.floor_char_boundary(REASON_BYTES_MAX)).unwrap_or_default().to_owned()),
            ("taskmaster.stream", self.stream.clone()),
            ("taskmaster.topic", message.topic().to_owned()),
            ("taskmaster.partition", message.partition().to_string()),
            ("taskmaster.offset", message.offset().to_string()),
        ];
        if part != Part::Whole {
            place.push((VALUE_BYTES, message.payload().map_or(0, <[u8]>::len).to_string()));
        }
        // As a whole, since a name that is not UTF-8 cannot be read by itself.
        let own = message.headers().filter(|_| part != Part::Place).map(BorrowedHeaders::detach);
        let headers = place.iter().fold(own.unwrap_or_default(), |headers: OwnedHeaders, (key, value)| {
            headers.insert(Header { key, value: Some(value) })
        });
        let mut record = FutureRecord::<[u8], [u8]>::to(&self.topic).headers(headers);
        if let Some(key) = message.key().filter(|_| part != Part::Place) {
            record = record.key(key);
        }
        if let Some(value) = message.payload() {
            // A value that is empty, not none: with a key, none would remove earlier letters from a compacted topic.
            record = record.payload(if part == Part::Whole { value } else { &[] });
        }
        self.producer.send(record, ROOM_MAX).await.map(drop).map_err(|(error, _)| error)
    }
}

//! Kafka: messages of topics become tasks, each exactly once; those that cannot go to a dead-letter topic.
//!
//! How far each partition of a topic has come is kept by the engine, together with the tasks: see [`Engine`]. What the consumer group
//! commits to Kafka is for people who look at lag, and is never read here.

mod begin;
mod consumer;
mod context;
pub mod events;
mod floor;
mod header;
mod letters;
mod mapping;
mod reader;
mod reason;
mod settings;
mod standing;
mod status;

pub use consumer::consume;
pub use floor::{fill, floor, remove};
pub use mapping::{From, Mapping, Order};
pub use settings::{Settings, Start};
pub use standing::{Standing, TopicStanding, standing};
pub use status::{SourceStatus, Status};

use std::fmt;
use std::future::Future;
use std::time::Duration;

use rdkafka::error::KafkaError;

/// A partition of a topic that a stream reads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source {
    /// Name of the stream.
    pub stream: String,
    /// Name of the topic.
    pub topic: String,
    /// The topic's partition.
    pub number: u32,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stream {}, topic {} partition {}", self.stream, self.topic, self.number)
    }
}

/// Where tasks go, and where the positions of streams are kept.
pub trait Engine: 'static {
    /// How far a source has become tasks: the offset of its next message.
    fn position(&self, source: &Source) -> impl Future<Output = Result<u64, Refused>>;

    /// Submits all that comes of the messages from `piece.0` up to, and without, `piece.1`, if `piece.0` is the position, and moves the
    /// position to `piece.1`. Returns the position that holds.
    fn submit(
        &self,
        source: &Source,
        piece: (u64, u64),
        orders: &[Order],
    ) -> impl Future<Output = Result<u64, Refused>>;
}

/// Why nothing was submitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// This order will never be taken.
    Order(usize, String),
    /// It may be taken later, after this long if that is known.
    Later(String, Option<Duration>),
}

/// What an error says, without the values of properties: those may be secrets.
fn said(error: &KafkaError) -> String {
    match error {
        KafkaError::ClientConfig(_, sentence, property, _) => format!("{sentence} ({property})"),
        error => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_about_a_property_does_not_tell_its_value() {
        let mut config = rdkafka::ClientConfig::new();
        config.set("sasl.pasword", "s3cret");
        let error = config.create::<rdkafka::producer::BaseProducer>().err().expect("there is no such property");
        let sentence = said(&error);
        assert!(error.to_string().contains("s3cret"), "then this is not needed any more");
        assert!(sentence.contains("sasl.pasword") && !sentence.contains("s3cret"), "{sentence}");
    }
}

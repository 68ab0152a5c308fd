//! What a stream reads, and what its connections are made of.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use rdkafka::ClientConfig;

use super::Mapping;

/// Where a source begins that has no position yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With the first message that is there.
    Earliest,
    /// Behind the last.
    Latest,
}

/// A stream.
#[derive(Clone)]
pub struct Settings {
    /// Its name.
    pub name: String,
    /// Addresses of some brokers, separated by commas.
    pub brokers: String,
    /// The topics.
    pub topics: Vec<String>,
    /// The consumer group.
    pub group: String,
    /// How messages become tasks.
    pub mapping: Mapping,
    /// Where messages go that cannot become tasks.
    pub dead_letter: Option<String>,
    /// Where sources begin.
    pub start: Start,
    /// Most messages of one submission.
    pub batch_messages: usize,
    /// Bytes of payloads at which a submission is full.
    pub batch_bytes: usize,
    /// Any property of librdkafka; may hold secrets.
    pub properties: BTreeMap<String, String>,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("name", &self.name).field("topics", &self.topics).finish_non_exhaustive()
    }
}

/// Properties that follow from how positions are kept; the user's do not change them.
const OWN: [&str; 5] =
    ["bootstrap.servers", "group.id", "enable.auto.offset.store", "enable.partition.eof", "auto.offset.reset"];

impl Settings {
    /// Whether a property may be given.
    #[must_use]
    pub fn may_set(property: &str) -> bool {
        !OWN.contains(&property)
    }

    /// Whether messages and passwords go to brokers elsewhere in the open.
    #[must_use]
    pub fn is_open(&self) -> bool {
        is_open(&self.brokers, &self.properties)
    }

    fn with_properties(&self, mut config: ClientConfig) -> ClientConfig {
        for (name, value) in self.properties.iter().filter(|(name, _)| Self::may_set(name)) {
            config.set(name, value);
        }
        config.set("bootstrap.servers", &self.brokers);
        config
    }

    /// For the consumer.
    pub(super) fn consumer(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        // Bounds of what is fetched ahead, for each partition of a topic.
        config.set("queued.max.messages.kbytes", "4096").set("queued.min.messages", "10000");
        // Once that much is there, a second is long: the engine takes it in a few hundredths of one.
        config.set("fetch.queue.backoff.ms", "20");
        config.set("auto.commit.interval.ms", "1000").set("allow.auto.create.topics", "false");
        let mut config = self.with_properties(config);
        config
            .set("group.id", &self.group)
            .set("enable.auto.offset.store", "false")
            .set("enable.partition.eof", "false")
            // Only ever in force where messages were deleted before they were read, which is said.
            .set("auto.offset.reset", "earliest");
        config
    }

    /// For the producer of dead letters: takes a message of any length, one in each request, so that a broker that finds one too long
    /// means that one, and compressed, as it may have come. Without idempotence, which would end the producer for good on some errors;
    /// letters come at least once.
    pub(super) fn letters(&self) -> ClientConfig {
        let mut config = self.producer();
        // Not the five minutes that are usual: only what failed can be told.
        config.set("compression.type", "zstd").set("message.timeout.ms", "30000");
        config.set("message.max.bytes", "1000000000").set("queue.buffering.max.kbytes", "2147483647");
        config.set("batch.num.messages", "1").set("linger.ms", "0").set("enable.idempotence", "false");
        config
    }

    /// For a producer.
    pub(super) fn producer(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("enable.idempotence", "true").set("queue.buffering.max.kbytes", "65536");
        // What the consumer alone knows would be a warning.
        for (name, value) in self.properties.iter().filter(|(name, _)| is_of_connections(name)) {
            config.set(name, value);
        }
        config.set("bootstrap.servers", &self.brokers);
        config
    }
}

/// Whether a property is one that producers and consumers share, since connections need it.
pub(super) fn is_of_connections(property: &str) -> bool {
    ["security.", "sasl.", "ssl.", "socket.", "broker.address", "client.", "metadata.", "reconnect."]
        .iter()
        .any(|part| property.starts_with(part))
}

/// Whether brokers are elsewhere, and what goes to them is not encrypted.
pub(super) fn is_open(brokers: &str, properties: &BTreeMap<String, String>) -> bool {
    let is_encrypted = properties.get("security.protocol").is_some_and(|name| name.to_lowercase().contains("ssl"));
    let is_here = |broker: &str| {
        let address = broker.rsplit("://").next().unwrap_or_default().trim();
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']);
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|host| host.is_loopback())
    };
    !is_encrypted && !brokers.split(',').all(is_here)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_elsewhere_without_encryption_is_open() {
        let with = |brokers, protocol: &str| {
            let properties = BTreeMap::from([("security.protocol".to_owned(), protocol.to_owned())]);
            is_open(brokers, &properties)
        };
        for brokers in ["localhost:9092", "127.0.0.9:9092,[::1]:9092", "PLAINTEXT://localhost:9092"] {
            assert!(!is_open(brokers, &BTreeMap::new()), "{brokers}");
        }
        for brokers in ["kafka-1:9092", "localhost:9092,10.0.0.1:9092", "kafka-1", "localhost.example.org:9092"] {
            assert!(is_open(brokers, &BTreeMap::new()) && with(brokers, "SASL_PLAINTEXT"), "{brokers}");
            assert!(!with(brokers, "SASL_SSL") && !with(brokers, "ssl"), "{brokers}");
        }
    }
}

//! Where events go, and how.

use std::collections::BTreeMap;
use std::fmt;

use rdkafka::ClientConfig;

use super::super::settings::{is_of_connections, is_open};

/// What a consumer may rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Each event is there once for who reads committed messages: batches are transactions.
    ExactlyOnce,
    /// Each event is there at least once, with its number.
    AtLeastOnce,
}

/// What messages are keyed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyOf {
    /// The task's id.
    Task,
    /// Its concurrency key, if it has one and is not forgotten, else its id.
    ConcurrencyKey,
}

/// What the producer of a node needs.
#[derive(Clone)]
pub struct Settings {
    /// Addresses of some brokers, separated by commas.
    pub brokers: String,
    /// The topic.
    pub topic: String,
    /// The topic under whose name positions are kept: without messages, with a partition for each of the cluster's.
    pub positions: String,
    /// What a consumer may rely on.
    pub delivery: Delivery,
    /// What messages are keyed by.
    pub key: KeyOf,
    /// Partitions of the cluster.
    pub partitions: u16,
    /// Who the node is: no other node, and the same after a restart.
    pub node: u128,
    /// Longest message with a result, in bytes; made shorter where brokers take none as long.
    pub message_bytes_max: usize,
    /// Any property of librdkafka; may hold secrets.
    pub properties: BTreeMap<String, String>,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("topic", &self.topic).field("delivery", &self.delivery).finish_non_exhaustive()
    }
}

/// Properties that follow from the delivery; the user's do not change them.
const OWN: [&str; 6] =
    ["bootstrap.servers", "transactional.id", "enable.idempotence", "enable.gapless.guarantee", "group.id", "acks"];

impl Settings {
    /// Whether a property may be given.
    #[must_use]
    pub fn may_set(property: &str) -> bool {
        !OWN.contains(&property)
    }

    /// Whether events and passwords go to brokers elsewhere in the open.
    #[must_use]
    pub fn is_open(&self) -> bool {
        is_open(&self.brokers, &self.properties)
    }

    fn with_properties(&self, mut config: ClientConfig, takes: impl Fn(&str) -> bool) -> ClientConfig {
        for (name, value) in self.properties.iter().filter(|(name, _)| Self::may_set(name) && takes(name)) {
            config.set(name, value);
        }
        config.set("bootstrap.servers", &self.brokers);
        config
    }

    /// For a producer; with a transactional id, if there is one.
    pub(super) fn producer(&self, transactional_id: Option<&str>) -> ClientConfig {
        let mut config = ClientConfig::new();
        // Long enough for a broker to come back, short enough that a stuck producer does not hold readers up for long.
        config.set("linger.ms", "2").set("transaction.timeout.ms", "30000").set("queue.buffering.max.kbytes", "65536");
        // What is too long for one message is so for several in one request.
        config.set("batch.size", self.message_bytes_max.to_string());
        let mut config = self.with_properties(config, |_| true);
        config.set("enable.idempotence", "true");
        match transactional_id {
            Some(id) => config.set("transactional.id", id),
            None => config.set("enable.gapless.guarantee", "true"),
        };
        config
    }

    /// For who only asks, and makes topics: what the producer alone knows would be a warning.
    pub(super) fn connection(&self) -> ClientConfig {
        self.with_properties(ClientConfig::new(), is_of_connections)
    }

    /// For a consumer that only asks for positions.
    pub(super) fn asker(&self, group: &str, isolation: &str) -> ClientConfig {
        let mut config = self.connection();
        config.set("group.id", group).set("isolation.level", isolation).set("enable.auto.commit", "false");
        config
    }

    /// Who the node is to brokers.
    pub(super) fn owner(&self) -> String {
        format!("taskmaster-events-{:032x}", self.node)
    }
}

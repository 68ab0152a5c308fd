//! `[events]`: a topic of Kafka that hears what happens to tasks. The same on all nodes.

use serde_json::Value;
use taskmaster_connect::kafka::events::{Delivery, KeyOf, MESSAGE_BYTES_MAX, Settings};
use taskmaster_protocol::limits;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::kafka::{Properties, table};
use super::setting::{Raw, Setting};
use super::value::{ByteSize, Interval};
use super::{Loaded, Problem, did_you_mean, line_of, raw};

/// The section's name.
pub(super) const SECTION: &str = "events";
/// Most events of a batch: they are gathered by a shard at once.
const BATCH_EVENTS_MAX: u32 = 16_384;

/// Where events go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Events {
    /// Addresses of some brokers.
    pub(crate) brokers: Vec<String>,
    /// The topic.
    pub(crate) topic: String,
    /// The topic under whose name positions are kept; empty for `TOPIC.positions`.
    pub(crate) positions: String,
    /// `exactly-once` or `at-least-once`.
    pub(crate) delivery: String,
    /// What messages are keyed by: `task` or `concurrency_key`.
    pub(crate) key: String,
    /// How often events are looked for.
    pub(crate) interval: Interval,
    /// Most events of one batch of a partition.
    pub(crate) batch_events: u32,
    /// Events that wait at most, with the final tasks kept for them, over all partitions.
    pub(crate) waiting: ByteSize,
    /// Whether it is told that attempts begin.
    pub(crate) starts: bool,
    /// Properties of librdkafka.
    pub(crate) properties: Properties,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            brokers: Vec::new(),
            topic: String::new(),
            positions: String::new(),
            delivery: "exactly-once".to_owned(),
            key: "task".to_owned(),
            interval: Interval::ms(20),
            batch_events: 4_096,
            waiting: ByteSize::mib(256),
            starts: true,
            properties: Properties::default(),
        }
    }
}

table! { Events, "[events]": brokers, topic, positions, delivery, key, interval, batch_events, waiting, starts }

/// Reads the section.
pub(super) fn read(loaded: &mut Loaded, text: &str, value: &Spanned<DeValue<'_>>, problems: &mut Vec<Problem>) {
    let line = line_of(text, value.span().start);
    let Some(keys) = value.get_ref().as_table() else {
        problems.push(Problem::at(line, "'events' is a section: write [events] and its keys below".to_owned()));
        return;
    };
    loaded.config.events = Some(Events::of(keys, line, text, problems));
}

impl Events {
    fn check(&self) -> Result<(), String> {
        if self.brokers.is_empty() || self.brokers.iter().any(String::is_empty) {
            return Err("needs brokers".to_owned());
        }
        for (key, topic) in [("topic", &self.topic), ("positions", &self.positions())] {
            if topic.is_empty() || topic.len() > limits::TOPIC_BYTES_MAX {
                return Err(format!("needs a {key} of 1 to {} bytes", limits::TOPIC_BYTES_MAX));
            }
        }
        if self.batch_events > BATCH_EVENTS_MAX {
            return Err(format!("takes at most {BATCH_EVENTS_MAX} batch_events: a shard gathers them at once"));
        }
        if self.topic == self.positions() {
            return Err("would keep positions in the topic itself".to_owned());
        }
        if self.interval.0.is_zero() || self.batch_events == 0 || self.waiting.0 == 0 {
            return Err("needs an interval, batch_events and waiting above zero".to_owned());
        }
        self.delivery().and_then(|_| self.key_of()).map(|_| ())
    }

    fn positions(&self) -> String {
        if self.positions.is_empty() { format!("{}.positions", self.topic) } else { self.positions.clone() }
    }

    fn delivery(&self) -> Result<Delivery, String> {
        match self.delivery.as_str() {
            "exactly-once" => Ok(Delivery::ExactlyOnce),
            "at-least-once" => Ok(Delivery::AtLeastOnce),
            other => Err(format!("has delivery {other:?}, but \"exactly-once\" or \"at-least-once\" is meant")),
        }
    }

    fn key_of(&self) -> Result<KeyOf, String> {
        match self.key.as_str() {
            "task" => Ok(KeyOf::Task),
            "concurrency_key" => Ok(KeyOf::ConcurrencyKey),
            other => Err(format!("has key {other:?}, but \"task\" or \"concurrency_key\" is meant")),
        }
    }

    /// What the producer needs, with the secrets read.
    ///
    /// # Errors
    /// What is wrong, without secrets.
    pub(crate) fn settings(&self, partitions: u16, node: u128) -> anyhow::Result<Settings> {
        Ok(Settings {
            brokers: self.brokers.join(","),
            topic: self.topic.clone(),
            positions: self.positions(),
            delivery: self.delivery().map_err(anyhow::Error::msg)?,
            key: self.key_of().map_err(anyhow::Error::msg)?,
            partitions,
            node,
            message_bytes_max: MESSAGE_BYTES_MAX,
            properties: self.properties.read("events")?,
        })
    }
}

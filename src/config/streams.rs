//! `[[stream]]`: topics of Kafka whose messages become tasks. One table for each stream.
//!
//! Secrets are named by where they are, a file or a variable, and never stand in the file itself; so all that is here may be shown.

use serde_json::Value;
use taskmaster_connect::kafka::{From, Mapping, Settings, Start};
use taskmaster_protocol::limits;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::kafka::{Properties, table};
use super::sections::name_like;
use super::setting::{Raw, Setting};
use super::{Config, Loaded, Problem, did_you_mean, line_of, raw};

/// The table's name.
pub(super) const SECTION: &str = "stream";
/// Most streams of a node.
const STREAMS_MAX: usize = 256;
/// Bytes of payloads at which a submission is full.
const BATCH_BYTES: usize = 1 << 20;

/// A stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stream {
    /// Its name; with topic and partition, whose position the cluster keeps.
    pub(crate) name: String,
    /// Addresses of some brokers.
    pub(crate) brokers: Vec<String>,
    /// The topics.
    pub(crate) topics: Vec<String>,
    /// The consumer group; empty for one named after the stream.
    pub(crate) group: String,
    /// Namespace of the tasks.
    pub(crate) namespace: String,
    /// Their queue.
    pub(crate) queue: String,
    /// Their kind.
    pub(crate) kind: String,
    /// What the payload is taken from.
    pub(crate) payload: String,
    /// What the unique key is taken from; empty for none.
    pub(crate) unique_key: String,
    /// What the concurrency key is taken from; empty for none.
    pub(crate) concurrency_key: String,
    /// Most tasks of a concurrency key at once.
    pub(crate) concurrency_limit: u32,
    /// What the priority is taken from; empty for normal.
    pub(crate) priority: String,
    /// What the deadline is taken from; empty for none.
    pub(crate) deadline: String,
    /// Where messages go that cannot become tasks; empty: they stop their partition.
    pub(crate) dead_letter: String,
    /// Where a partition begins that was never read: `earliest` or `latest`.
    pub(crate) start: String,
    /// Most messages of one submission.
    pub(crate) batch_messages: u32,
    /// Properties of librdkafka.
    pub(crate) properties: Properties,
}

impl Default for Stream {
    fn default() -> Self {
        Self {
            name: String::new(),
            brokers: Vec::new(),
            topics: Vec::new(),
            group: String::new(),
            namespace: "default".to_owned(),
            queue: "default".to_owned(),
            kind: String::new(),
            payload: "value".to_owned(),
            unique_key: String::new(),
            concurrency_key: String::new(),
            concurrency_limit: 1,
            priority: String::new(),
            deadline: String::new(),
            dead_letter: String::new(),
            start: "earliest".to_owned(),
            batch_messages: 1_024,
            properties: Properties::default(),
        }
    }
}

table! {
    Stream, "[[stream]]": name, brokers, topics, group, namespace, queue, kind, payload, unique_key, concurrency_key, concurrency_limit, priority, deadline,
    dead_letter, start, batch_messages
}

/// Reads all `[[stream]]` tables.
pub(super) fn read(loaded: &mut Loaded, text: &str, value: &Spanned<DeValue<'_>>, problems: &mut Vec<Problem>) {
    let line = line_of(text, value.span().start);
    let DeValue::Array(tables) = value.get_ref() else {
        problems.push(Problem::at(line, "streams are a list: write [[stream]] and the keys below".to_owned()));
        return;
    };
    for table in tables.iter() {
        let line = line_of(text, table.span().start);
        let Some(keys) = table.get_ref().as_table() else {
            problems.push(Problem::at(line, "'stream' takes tables only: write [[stream]]".to_owned()));
            continue;
        };
        loaded.config.streams.push(Stream::of(keys, line, text, problems));
    }
    let streams = &loaded.config.streams;
    if streams.len() > STREAMS_MAX {
        problems
            .push(Problem::at(line, format!("there are {} streams, at most {STREAMS_MAX} are read", streams.len())));
    }
    for (at, stream) in streams.iter().enumerate() {
        if streams[..at].iter().any(|other| other.name == stream.name) {
            let message = format!("two streams are named {:?}: positions are kept by name", stream.name);
            problems.push(Problem::at(line, message));
        }
    }
}

impl Stream {
    fn check(&self) -> Result<(), String> {
        for (key, name) in
            [("name", &self.name), ("queue", &self.queue), ("kind", &self.kind), ("namespace", &self.namespace)]
        {
            name_like(name).map_err(|message| format!("{key} {message}"))?;
        }
        for (key, list) in [("brokers", &self.brokers), ("topics", &self.topics)] {
            if list.is_empty() || list.iter().any(String::is_empty) {
                return Err(format!("{} needs {key}", self.name));
            }
        }
        if let Some(topic) = self.topics.iter().find(|topic| topic.len() > limits::TOPIC_BYTES_MAX) {
            return Err(format!("{} has a topic of {} bytes", self.name, topic.len()));
        }
        if self.topics.contains(&self.dead_letter) {
            return Err(format!("{} would read its own dead letters", self.name));
        }
        let most = u32::try_from(limits::ROWS_MAX).unwrap_or(u32::MAX);
        if !(1..=most).contains(&self.batch_messages) {
            return Err(format!("{} has batch_messages {}, but 1 to {most} are taken", self.name, self.batch_messages));
        }
        self.start()?;
        self.mapping().map(|_| ())
    }

    fn start(&self) -> Result<Start, String> {
        match self.start.as_str() {
            "earliest" => Ok(Start::Earliest),
            "latest" => Ok(Start::Latest),
            other => Err(format!("{} has start {other:?}, but \"earliest\" or \"latest\" is meant", self.name)),
        }
    }

    fn mapping(&self) -> Result<Mapping, String> {
        let from =
            |key: &str, text: &str| text.parse::<From>().map_err(|message| format!("{}: {key} {message}", self.name));
        let maybe = |key: &str, text: &str| if text.is_empty() { Ok(None) } else { from(key, text).map(Some) };
        Ok(Mapping {
            payload: from("payload", &self.payload)?,
            unique_key: maybe("unique_key", &self.unique_key)?,
            concurrency_key: maybe("concurrency_key", &self.concurrency_key)?,
            priority: maybe("priority", &self.priority)?,
            deadline: maybe("deadline", &self.deadline)?,
            payload_bytes_max: limits::PAYLOAD_BYTES_MAX,
        })
    }

    /// What the connections need, with the secrets read.
    ///
    /// # Errors
    /// What is wrong, without secrets.
    pub(crate) fn settings(&self) -> anyhow::Result<Settings> {
        let properties = self.properties.read(&format!("stream {}", self.name))?;
        let group = if self.group.is_empty() { format!("taskmaster-{}", self.name) } else { self.group.clone() };
        Ok(Settings {
            name: self.name.clone(),
            brokers: self.brokers.join(","),
            topics: self.topics.clone(),
            group,
            mapping: self.mapping().map_err(anyhow::Error::msg)?,
            dead_letter: Some(self.dead_letter.clone()).filter(|topic| !topic.is_empty()),
            start: self.start().map_err(anyhow::Error::msg)?,
            batch_messages: usize::try_from(self.batch_messages).expect("checked"),
            batch_bytes: BATCH_BYTES,
            properties,
        })
    }
}

impl Config {
    /// All streams as JSON.
    pub(super) fn streams_json(&self) -> Value {
        self.streams.iter().map(Stream::json).collect()
    }
}

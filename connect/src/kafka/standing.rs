//! How a stream would find its brokers: for people who look before a node starts.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::metadata::MetadataTopic;
use rdkafka::{Offset, TopicPartitionList};

use super::Settings;

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Brokers of the cluster.
    pub brokers: usize,
    /// The topics that are read, and the one for dead letters.
    pub topics: Vec<TopicStanding>,
    /// Why the group may not be used.
    pub group_error: Option<String>,
}

/// A topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicStanding {
    /// Its name.
    pub name: String,
    /// Its partitions; 0 if it is not there.
    pub partitions: usize,
    /// Why it cannot be used.
    pub error: Option<String>,
}

/// Looks at brokers, topics and the group, each within `longest`. Blocks.
///
/// # Errors
/// Why no broker answers, or which property is wrong.
pub fn standing(settings: &Settings, longest: Duration) -> Result<Standing, String> {
    let consumer: BaseConsumer = settings.consumer().create().map_err(|error| super::said(&error))?;
    let mut topics = Vec::new();
    let mut brokers = 0;
    for name in settings.topics.iter().chain(&settings.dead_letter) {
        let topic;
        (brokers, topic) = topic_standing(&consumer, name, longest)?;
        topics.push(topic);
    }
    let mut parts = TopicPartitionList::new();
    for topic in topics.iter().take(settings.topics.len()).filter(|topic| topic.partitions > 0) {
        parts.add_partition_offset(&topic.name, 0, Offset::Invalid).map_err(|error| error.to_string())?;
    }
    let committed = if parts.count() == 0 { Ok(parts) } else { consumer.committed_offsets(parts, longest) };
    let group_error = match committed {
        Err(error) => Some(super::said(&error)),
        Ok(parts) => parts.elements().iter().find_map(|part| part.error().err()).map(|error| super::said(&error)),
    };
    Ok(Standing { brokers, topics, group_error })
}

/// How many brokers there are, and what they say of a topic.
pub(super) fn topic_standing(
    asker: &BaseConsumer,
    name: &str,
    longest: Duration,
) -> Result<(usize, TopicStanding), String> {
    let metadata = asker.fetch_metadata(Some(name), longest).map_err(|error| super::said(&error))?;
    let topic = metadata.topics().iter().find(|topic| topic.name() == name);
    let error =
        topic.and_then(MetadataTopic::error).map(|error| rdkafka::types::RDKafkaErrorCode::from(error).to_string());
    let partitions = topic.map_or(0, |topic| topic.partitions().len());
    Ok((metadata.brokers().len(), TopicStanding { name: name.to_owned(), partitions, error }))
}

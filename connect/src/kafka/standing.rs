//! How a stream would find its brokers: for people who look before a node starts.

use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::MetadataTopic;
use rdkafka::{Offset, TopicPartitionList};

use super::reason::{Asker, Reason, explained};
use super::{Settings, said};

/// Longest wait for a message that may not be there.
const LOOK: Duration = Duration::from_millis(100);

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

/// Looks at brokers, topics and the group, each within `longest`, and changes nothing. Blocks.
///
/// # Errors
/// Why no broker answers, or which property is wrong.
pub fn standing(settings: &Settings, longest: Duration) -> Result<Standing, String> {
    let consumer: Asker = settings.consumer().create_with_context(Reason::default()).map_err(|error| said(&error))?;
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
        Err(error) => Some(explained(&consumer, &error)),
        Ok(parts) => parts.elements().iter().find_map(|part| part.error().err()).map(|error| said(&error)),
    };
    for topic in topics.iter_mut().take(settings.topics.len()).filter(|topic| topic.partitions > 0) {
        if topic.error.is_none() {
            topic.error = read_error(settings, &topic.name, longest)?;
        }
    }
    Ok(Standing { brokers, topics, group_error })
}

/// Why a topic that may be described may not be read, if so: the last message is fetched.
fn read_error(settings: &Settings, topic: &str, longest: Duration) -> Result<Option<String>, String> {
    let mut config = settings.consumer();
    config.set("enable.auto.commit", "false").set("enable.partition.eof", "true").set("fetch.wait.max.ms", "10");
    let reader: Asker = config.create_with_context(Reason::default()).map_err(|error| said(&error))?;
    let mut parts = TopicPartitionList::new();
    parts.add_partition_offset(topic, 0, Offset::OffsetTail(1)).map_err(|error| said(&error))?;
    reader.assign(&parts).map_err(|error| said(&error))?;
    let until = Instant::now() + longest;
    while Instant::now() < until {
        match reader.poll(LOOK) {
            Some(Ok(_) | Err(KafkaError::PartitionEOF(_))) => return Ok(None),
            Some(Err(error)) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::TopicAuthorizationFailed) => {
                return Ok(Some(explained(&reader, &error)));
            }
            // What passes.
            Some(Err(_)) | None => {}
        }
    }
    Ok(None)
}

/// How many brokers there are, and what they say of a topic.
pub(super) fn topic_standing(asker: &Asker, name: &str, longest: Duration) -> Result<(usize, TopicStanding), String> {
    let metadata = asker.fetch_metadata(Some(name), longest).map_err(|error| explained(asker, &error))?;
    let topic = metadata.topics().iter().find(|topic| topic.name() == name);
    let error = topic.and_then(MetadataTopic::error).map(|error| RDKafkaErrorCode::from(error).to_string());
    let partitions = topic.map_or(0, |topic| topic.partitions().len());
    Ok((metadata.brokers().len(), TopicStanding { name: name.to_owned(), partitions, error }))
}

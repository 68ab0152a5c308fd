//! How events would find their brokers: for people who look before a node starts. Sends no message.

use std::time::Duration;

use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaResult;
use rdkafka::producer::Producer as _;

use super::super::TopicStanding;
use super::super::reason::{Asker, Reason};
use super::super::said;
use super::super::standing::topic_standing;
use super::positions::create_topic;
use super::producer::Producer;
use super::{Delivery, Settings};

/// A name among those that nodes use, so that the same permission covers it, and that no node has.
const DOCTOR: &str = "taskmaster-events-doctor";

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventsStanding {
    /// Brokers of the cluster.
    pub brokers: usize,
    /// The topic.
    pub topic: TopicStanding,
    /// Where positions are kept; `None` where none are.
    pub positions: Option<PositionsStanding>,
}

/// What exactly once needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PositionsStanding {
    /// The topic of positions.
    pub topic: TopicStanding,
    /// Why it cannot be made, if it is not there.
    pub make_error: Option<String>,
    /// Why transactions cannot be used.
    pub transaction_error: Option<String>,
    /// Why positions cannot be read.
    pub group_error: Option<String>,
}

/// Looks at brokers, topics, transactions and the group, each within `longest`. Blocks.
///
/// # Errors
/// Why no broker answers, or which property is wrong.
pub fn standing(settings: &Settings, longest: Duration) -> Result<EventsStanding, String> {
    let config = settings.asker(DOCTOR, "read_committed");
    let asker: Asker = config.create_with_context(Reason::default()).map_err(|error| said(&error))?;
    let (brokers, topic) = topic_standing(&asker, &settings.topic, longest)?;
    // What the producer alone has among its properties is looked at too.
    Producer::plain(settings).map_err(|error| said(&error))?;
    let positions = match settings.delivery {
        Delivery::AtLeastOnce => None,
        Delivery::ExactlyOnce => Some(positions(settings, &asker, longest)?),
    };
    Ok(EventsStanding { brokers, topic, positions })
}

fn positions(settings: &Settings, asker: &Asker, longest: Duration) -> Result<PositionsStanding, String> {
    let (_, topic) = topic_standing(asker, &settings.positions, longest)?;
    let says = |outcome: KafkaResult<()>| outcome.err().map(|error| said(&error));
    let make_error = if topic.partitions == 0 { says(create_topic(settings, longest, true)) } else { None };
    let transaction_error = says(Producer::transactional_within(settings, DOCTOR, longest).and_then(|producer| {
        producer.0.begin_transaction()?;
        producer.0.abort_transaction(longest)
    }));
    let group_error = if topic.partitions == 0 {
        None
    } else {
        let mut list = rdkafka::TopicPartitionList::new();
        list.add_partition(&settings.positions, 0);
        let found = asker.committed_offsets(list, longest);
        says(found.and_then(|found| found.elements().iter().try_for_each(|part| part.error())))
    };
    Ok(PositionsStanding { topic, make_error, transaction_error, group_error })
}

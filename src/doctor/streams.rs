//! The configured streams: whether their brokers, topics and groups can be used as a node would use them.

use std::time::Duration;

use taskmaster_connect::kafka::{self, Standing};

use super::Check;
use crate::config::{Config, Stream};

const NAME: &str = "stream";
/// Longest wait for each answer of a broker.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// One check of each stream.
pub(crate) fn checks(config: &Config) -> impl Iterator<Item = Check> {
    config.streams.iter().map(look)
}

fn look(stream: &Stream) -> Check {
    let name = &stream.name;
    let settings = match stream.settings() {
        Ok(settings) => settings,
        Err(error) => return Check::fail(NAME, format!("{error:#}."), "Correct the table [[stream]]."),
    };
    match kafka::standing(&settings, ANSWER_MAX) {
        Ok(standing) => judge(stream, &standing),
        Err(error) => Check::fail(
            NAME,
            format!("Stream {name}: no broker at {} answers: {error}.", settings.brokers),
            "See that brokers run there, and that encryption and credentials are right.",
        ),
    }
}

fn judge(stream: &Stream, standing: &Standing) -> Check {
    let name = &stream.name;
    for topic in &standing.topics {
        let message = match &topic.error {
            Some(error) => format!("Stream {name}: topic {} cannot be used: {error}.", topic.name),
            None if topic.partitions == 0 => format!("Stream {name}: there is no topic {}.", topic.name),
            None => continue,
        };
        return Check::fail(NAME, message, "Make the topic, or let this user read and describe it.");
    }
    if let Some(error) = &standing.group_error {
        let message = format!("Stream {name}: its consumer group cannot be used: {error}.");
        return Check::fail(NAME, message, "Let this user read the group, or name another by stream.group.");
    }
    let count = |topics: &[kafka::TopicStanding]| topics.iter().map(|topic| topic.partitions).sum::<usize>();
    let partitions = count(standing.topics.get(..stream.topics.len()).unwrap_or_default());
    let found = format!("Stream {name}: {} brokers, {partitions} partitions to read.", standing.brokers);
    if stream.dead_letter.is_empty() {
        let fix = "Name a dead_letter topic.";
        return Check::warn(NAME, format!("{found} A message that cannot become a task stops its partition."), fix);
    }
    Check::ok(NAME, found)
}

//! The configured streams: whether their brokers, topics and groups can be used as a node would use them.

use std::time::Duration;

use taskmaster_connect::kafka::{self, Standing};

use super::Check;
use crate::config::{Config, Stream};

const NAME: &str = "stream";
/// What is said where messages and passwords can be read on their way.
pub(super) const OPEN: &str = "What goes to its brokers is not encrypted, and they are not on this machine.";
pub(super) const OPEN_FIX: &str = "Set security.protocol to SSL or SASL_SSL, unless the network is one to trust.";
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
        Ok(standing) => judge(stream, &standing, settings.is_open()),
        Err(error) => Check::fail(
            NAME,
            format!("Stream {name}: no broker at {} answers: {error}.", settings.brokers),
            "See that brokers run there, and that encryption and credentials are right.",
        ),
    }
}

fn judge(stream: &Stream, standing: &Standing, is_open: bool) -> Check {
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
    let mut warnings = Vec::new();
    if is_open {
        warnings.push((OPEN, OPEN_FIX));
    }
    if stream.dead_letter.is_empty() {
        warnings.push(("A message that cannot become a task stops its partition.", "Name a dead_letter topic."));
    }
    if warnings.is_empty() {
        return Check::ok(NAME, found);
    }
    let (messages, fixes): (Vec<&str>, Vec<&str>) = warnings.into_iter().unzip();
    Check::warn(NAME, format!("{found} {}", messages.join(" ")), fixes.join(" "))
}

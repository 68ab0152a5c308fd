//! Events: whether their brokers and topics can be used as a node would use them.

use std::time::Duration;

use taskmaster_connect::kafka::TopicStanding;
use taskmaster_connect::kafka::events::{self, EventsStanding};

use super::Check;
use super::streams::{OPEN, OPEN_FIX};
use crate::config::Config;

const NAME: &str = "events";
/// Longest wait for each answer of a broker.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// The check, where events are configured.
pub(crate) fn check(config: &Config) -> Option<Check> {
    let events = config.events.as_ref()?;
    // Which node it is does not matter: nothing is done under its name.
    let settings = match events.settings(config.node.partitions, 0) {
        Ok(settings) => settings,
        Err(error) => return Some(Check::fail(NAME, format!("{error:#}."), "Correct the section [events].")),
    };
    Some(match events::standing(&settings, ANSWER_MAX) {
        Ok(standing) => judge(&standing, config.node.partitions, settings.is_open()),
        Err(error) => Check::fail(
            NAME,
            format!("Events: no broker at {} answers: {error}.", settings.brokers),
            "See that brokers run there, and that encryption and credentials are right.",
        ),
    })
}

fn judge(standing: &EventsStanding, partitions: u16, is_open: bool) -> Check {
    let fail = |message: String, fix: &str| Check::fail(NAME, format!("Events: {message}."), fix);
    if let Some(message) = unusable(&standing.topic) {
        return fail(message, "Make the topic, or let this user write and describe it.");
    }
    let TopicStanding { name, partitions: count, .. } = &standing.topic;
    let found = format!("Events: {} brokers, topic {name} with {count} partitions", standing.brokers);
    let fit = |found: String| {
        if is_open { Check::warn(NAME, format!("{found} {OPEN}"), OPEN_FIX) } else { Check::ok(NAME, found) }
    };
    let Some(positions) = &standing.positions else { return fit(format!("{found}; at least once.")) };
    let topic = &positions.topic;
    if let Some(error) = &positions.make_error {
        let message = format!("there is no topic {} for positions, and it cannot be made: {error}", topic.name);
        return fail(message, "Make it with a partition for each of node.partitions, or let this user make it.");
    }
    if topic.partitions > 0 && topic.partitions < usize::from(partitions) {
        let message =
            format!("topic {} has {} partitions, but positions need {partitions}", topic.name, topic.partitions);
        return fail(message, "Name another topic by events.positions.");
    }
    if let Some(error) = &positions.transaction_error {
        let message = format!("transactions cannot be used: {error}");
        return fail(
            message,
            "Let this user use transactional ids that begin with taskmaster-events-, or choose at-least-once.",
        );
    }
    if let Some(error) = &positions.group_error {
        let message = format!("positions cannot be read: {error}");
        return fail(message, "Let this user read groups that begin with taskmaster-events-.");
    }
    // Kafka's protocol has no word for it.
    fit(format!("{found}; exactly once. Brokers do not tell their version: see that it is 3.7 or later."))
}

/// Why a topic cannot be used.
fn unusable(topic: &TopicStanding) -> Option<String> {
    match &topic.error {
        Some(error) => Some(format!("topic {} cannot be used: {error}", topic.name)),
        None if topic.partitions == 0 => Some(format!("there is no topic {}", topic.name)),
        None => None,
    }
}

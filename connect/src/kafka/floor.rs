//! What a broker does at best: a topic filled at once, and read by a bare consumer that does nothing with the messages.

use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::util::Timeout;
use rdkafka::{Offset, TopicPartitionList};

use super::{Settings, said};

/// Longest wait for a broker that does nothing.
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// Makes the first topic of the settings with `partitions` partitions and sends `messages` messages of `bytes` bytes to them in turn.
/// Returns how long sending took. Blocks.
///
/// # Errors
/// What the broker or librdkafka says.
pub async fn fill(settings: &Settings, partitions: i32, messages: u64, bytes: usize) -> Result<Duration, String> {
    let admin: AdminClient<DefaultClientContext> = settings.producer().create().map_err(|error| said(&error))?;
    let topic = NewTopic::new(&settings.topics[0], partitions, TopicReplication::Fixed(1));
    let options = AdminOptions::new().operation_timeout(Some(ANSWER_MAX));
    let made = admin.create_topics([&topic], &options).await.map_err(|error| said(&error))?;
    made.into_iter().try_for_each(|made| made.map(drop).map_err(|(topic, code)| format!("topic {topic}: {code}")))?;
    let producer: BaseProducer = settings.producer().set("linger.ms", "5").create().map_err(|error| said(&error))?;
    let payload = vec![7; bytes];
    let begun = Instant::now();
    for number in 0..messages {
        let partition = i32::try_from(number % u64::try_from(partitions).unwrap_or(1)).unwrap_or(0);
        let mut record = BaseRecord::<(), _>::to(&settings.topics[0]).partition(partition).payload(&payload);
        while let Err((error, unsent)) = producer.send(record) {
            if error != KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) {
                return Err(said(&error));
            }
            record = unsent;
            producer.poll(Timeout::After(Duration::from_millis(10)));
        }
        if number % 1_024 == 0 {
            producer.poll(Timeout::After(Duration::ZERO));
        }
    }
    producer.flush(ANSWER_MAX).map_err(|error| said(&error))?;
    Ok(begun.elapsed())
}

/// How long a bare consumer takes from the first of `messages` messages of the first topic to the last. Blocks.
///
/// # Errors
/// What the broker or librdkafka says, or that messages do not come.
pub fn floor(settings: &Settings, partitions: i32, messages: u64) -> Result<Duration, String> {
    let consumer: BaseConsumer =
        settings.consumer().set("enable.auto.commit", "false").create().map_err(|error| said(&error))?;
    let mut parts = TopicPartitionList::new();
    for partition in 0..partitions {
        parts.add_partition_offset(&settings.topics[0], partition, Offset::Beginning).map_err(|error| said(&error))?;
    }
    consumer.assign(&parts).map_err(|error| said(&error))?;
    let mut begun = None;
    for _ in 0..messages {
        match consumer.poll(ANSWER_MAX) {
            Some(message) => message.map(drop).map_err(|error| said(&error))?,
            None => return Err(format!("no message within {ANSWER_MAX:?}")),
        }
        begun.get_or_insert_with(Instant::now);
    }
    Ok(begun.map_or(Duration::ZERO, |begun| begun.elapsed()))
}

/// Removes the first topic.
///
/// # Errors
/// What the broker says.
pub async fn remove(settings: &Settings) -> Result<(), String> {
    let admin: AdminClient<DefaultClientContext> = settings.producer().create().map_err(|error| said(&error))?;
    let options = AdminOptions::new().operation_timeout(Some(ANSWER_MAX));
    let removed = admin.delete_topics(&[&settings.topics[0]], &options).await.map_err(|error| said(&error))?;
    removed
        .into_iter()
        .try_for_each(|removed| removed.map(drop).map_err(|(topic, code)| format!("topic {topic}: {code}")))
}

//! How far the events of each partition are in the topic, and who sends them: an offset of a consumer group that has no consumers.
//!
//! The offset of partition *p* of the topic of positions is the number of partition *p*'s last event, its metadata the leader's term
//! and the transactional id of the node that sends. It is committed only in transactions, so it moves with the messages or not at all.

use std::time::Duration;

use rdkafka::TopicPartitionList;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::topic_partition_list::Offset;

use super::Settings;
use super::producer::ANSWER_MAX;

/// Where a partition stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Stand {
    pub(super) upto: u64,
    pub(super) term: u64,
    /// The transactional id of who sent last.
    pub(super) owner: String,
}

/// The positions of a cluster.
pub(super) struct Positions {
    topic: String,
    /// Sees what was committed last, also while a transaction is under way.
    present: BaseConsumer,
    /// Waits for transactions to end.
    settled: BaseConsumer,
}

impl Positions {
    /// Of a cluster; the topic is made if it is not there.
    pub(super) fn of(settings: &Settings, cluster: u128) -> KafkaResult<Self> {
        let group = format!("taskmaster-events-{cluster:032x}");
        let present: BaseConsumer = settings.asker(&group, "read_uncommitted").create()?;
        let settled = settings.asker(&group, "read_committed").create()?;
        make_topic(settings, &present)?;
        Ok(Self { topic: settings.positions.clone(), present, settled })
    }

    /// What a transaction needs to commit positions.
    pub(super) fn group(&self) -> KafkaResult<ConsumerGroupMetadata> {
        self.present.group_metadata().ok_or(KafkaError::ClientCreation("a group without a name".to_owned()))
    }

    /// Who sent last, as far as is committed.
    pub(super) fn present(&self, partitions: &[u16]) -> KafkaResult<Vec<Stand>> {
        self.read(&self.present, partitions)
    }

    /// Where the partitions stand when no transaction that concerns them is under way.
    pub(super) fn settled(&self, partitions: &[u16]) -> KafkaResult<Vec<Stand>> {
        self.read(&self.settled, partitions)
    }

    fn read(&self, by: &BaseConsumer, partitions: &[u16]) -> KafkaResult<Vec<Stand>> {
        let mut list = TopicPartitionList::new();
        for &partition in partitions {
            list.add_partition(&self.topic, partition.into());
        }
        let found = by.committed_offsets(list, ANSWER_MAX)?;
        let stand = |partition: &u16| -> KafkaResult<Stand> {
            let Some(element) = found.find_partition(&self.topic, (*partition).into()) else {
                return Ok(Stand::default());
            };
            element.error()?;
            let Offset::Offset(upto) = element.offset() else { return Ok(Stand::default()) };
            let (term, owner) = element.metadata().split_once(' ').unwrap_or_default();
            Ok(Stand {
                upto: u64::try_from(upto).unwrap_or(0),
                term: term.parse().unwrap_or(0),
                owner: owner.to_owned(),
            })
        };
        partitions.iter().map(stand).collect()
    }

    /// What a transaction commits.
    pub(super) fn list<'a>(
        &self,
        stands: impl IntoIterator<Item = (u16, &'a Stand)>,
    ) -> KafkaResult<TopicPartitionList> {
        let mut list = TopicPartitionList::new();
        for (partition, stand) in stands {
            let mut element = list.add_partition(&self.topic, partition.into());
            element.set_offset(Offset::Offset(i64::try_from(stand.upto).unwrap_or(i64::MAX)))?;
            element.set_metadata(format!("{} {}", stand.term, stand.owner));
        }
        Ok(list)
    }
}

/// Makes the topic of positions, if it is not there, with the replication that brokers give by default.
fn make_topic(settings: &Settings, asker: &BaseConsumer) -> KafkaResult<()> {
    let metadata = asker.fetch_metadata(Some(&settings.positions), ANSWER_MAX)?;
    let known = metadata.topics().iter().find(|topic| topic.name() == settings.positions);
    let count = known.map_or(0, |topic| topic.partitions().len());
    if count >= usize::from(settings.partitions) {
        return Ok(());
    }
    if count > 0 {
        let sentence = format!(
            "topic {} has {count} partitions, but positions need {}: name another one",
            settings.positions, settings.partitions
        );
        return Err(KafkaError::ClientCreation(sentence));
    }
    create_topic(settings, ANSWER_MAX, false)
}

/// Makes the topic of positions, or finds out whether that is possible.
pub(super) fn create_topic(settings: &Settings, longest: Duration, only_looks: bool) -> KafkaResult<()> {
    let admin: AdminClient<DefaultClientContext> = settings.connection().create()?;
    let topic = NewTopic::new(&settings.positions, settings.partitions.into(), TopicReplication::Fixed(-1));
    let options = AdminOptions::new().operation_timeout(Some(longest)).request_timeout(Some(longest));
    let options = options.validate_only(only_looks);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| KafkaError::ClientCreation(error.to_string()))?;
    for made in runtime.block_on(admin.create_topics([&topic], &options))? {
        match made {
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((_, code)) => return Err(KafkaError::AdminOp(code)),
        }
    }
    Ok(())
}

//! A stream's member of its consumer group: which partitions it reads changes as members come and go.
//!
//! When a partition comes, the engine is asked where it stands, and only then is it fetched, from there. When one goes, its reader is
//! dropped in the middle of whatever it does. A submission of it that is still on its way finds the position where it was, and counts,
//! or moved, and does not.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::consumer::stream_consumer::StreamConsumer;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext, RebalanceProtocol};
use rdkafka::error::KafkaError;
use rdkafka::statistics::Statistics;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Message, Offset, TopicPartitionList};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use super::letters::Letters;
use super::reader::Reader;
use super::status::Shared;
use super::{Engine, Settings, Source, Start};
use crate::backoff::Backoff;

/// Changes of the assignment that wait at most; librdkafka waits for each.
const CHANGES_MAX: usize = 64;
/// Longest look at what a partition of a topic holds.
const WATERMARKS_MAX: Duration = Duration::from_secs(10);
/// How often librdkafka tells how far behind it is.
const STATISTICS_EVERY_MS: &str = "5000";

/// Partitions: of a topic, under a number.
type Parts = Vec<(String, i32)>;

/// A change of what this member reads.
enum Change {
    Given(Parts),
    Taken(Parts),
}

/// What librdkafka calls back.
pub(super) struct Context {
    stream: String,
    changes: mpsc::Sender<Change>,
    status: Shared,
}

impl ClientContext for Context {
    fn stats(&self, statistics: Statistics) {
        for (topic, of_topic) in statistics.topics {
            for (number, partition) in of_topic.partitions {
                let Ok(number) = u32::try_from(number) else { continue };
                let source = Source { stream: self.stream.clone(), topic: topic.clone(), number };
                // Only sources that are read here are known.
                if let Ok(end) = u64::try_from(partition.ls_offset) {
                    self.status.end(&source, end);
                }
            }
        }
    }
}

impl ConsumerContext for Context {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, err: RDKafkaRespErr, parts: &mut TopicPartitionList) {
        let list: Parts = parts.elements().iter().map(|part| (part.topic().to_owned(), part.partition())).collect();
        let is_given = err == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        if !is_given {
            let given_up = match consumer.rebalance_protocol() {
                RebalanceProtocol::Cooperative => consumer.incremental_unassign(parts),
                RebalanceProtocol::Eager | RebalanceProtocol::None => consumer.unassign(),
            };
            if let Err(error) = given_up {
                tracing::warn!("stream {}: partitions are not given up: {error}", self.stream);
            }
        }
        let change = if is_given { Change::Given(list) } else { Change::Taken(list) };
        if self.changes.try_send(change).is_err() {
            tracing::debug!("stream {}: a change of partitions at the end", self.stream);
        }
    }
}

/// Reads a stream until `end` is over.
pub async fn consume<E: Engine>(settings: Rc<Settings>, engine: Rc<E>, status: Shared, end: impl Future<Output = ()>) {
    let mut end = std::pin::pin!(end);
    let mut waits = Backoff::default();
    loop {
        let member = Member::join(&settings, &engine, &status);
        let failed = match member {
            Ok(member) => {
                tokio::select! {
                    failed = member.run() => failed,
                    () = &mut end => return,
                }
            }
            Err(error) => error,
        };
        if status.failed(&settings.name, &failed) {
            tracing::warn!("stream {}: {failed}", settings.name);
        }
        tokio::select! {
            () = tokio::time::sleep(waits.wait()) => {}
            () = &mut end => return,
        }
    }
}

/// A member of the group, and what it reads.
struct Member<E> {
    settings: Rc<Settings>,
    engine: Rc<E>,
    status: Shared,
    letters: Option<Rc<Letters>>,
    changes: mpsc::Receiver<Change>,
    /// What the group gave.
    held: HashSet<(String, i32)>,
    readers: HashMap<(String, i32), AbortHandle>,
    /// Readers, and what ended them.
    reading: JoinSet<(Source, String)>,
    /// Partitions that were given, with the positions that were asked for.
    asking: JoinSet<Vec<(Source, Begin)>>,
    consumer: Arc<StreamConsumer<Context>>,
}

impl<E: Engine> Member<E> {
    fn join(settings: &Rc<Settings>, engine: &Rc<E>, status: &Shared) -> Result<Self, String> {
        let (send, changes) = mpsc::channel(CHANGES_MAX);
        let context = Context { stream: settings.name.clone(), changes: send, status: Arc::clone(status) };
        let mut config = settings.consumer();
        config.set("statistics.interval.ms", STATISTICS_EVERY_MS);
        let consumer: StreamConsumer<Context> =
            config.create_with_context(context).map_err(|error| super::said(&error))?;
        let topics: Vec<&str> = settings.topics.iter().map(String::as_str).collect();
        consumer.subscribe(&topics).map_err(|error| super::said(&error))?;
        Ok(Self {
            settings: Rc::clone(settings),
            engine: Rc::clone(engine),
            status: Arc::clone(status),
            letters: Letters::new(settings)?.map(Rc::new),
            changes,
            held: HashSet::new(),
            readers: HashMap::new(),
            reading: JoinSet::new(),
            asking: JoinSet::new(),
            consumer: Arc::new(consumer),
        })
    }

    /// Runs until the consumer cannot go on; why.
    async fn run(mut self) -> String {
        loop {
            let consumer = Arc::clone(&self.consumer);
            tokio::select! {
                // Waiting for it is what keeps the consumer a member; messages come through the readers' own queues.
                received = consumer.recv() => match received {
                    Ok(message) => {
                        return format!("{} {} came outside of its queue", message.topic(), message.partition());
                    }
                    Err(error) => {
                        if let Some(fatal) = self.failed(&error) {
                            return fatal;
                        }
                    }
                },
                Some(change) = self.changes.recv() => match change {
                    Change::Given(parts) => self.given(parts),
                    Change::Taken(parts) => self.taken(&parts),
                },
                Some(asked) = self.asking.join_next() => if let Ok(positions) = asked
                    && let Err(error) = self.begin(positions)
                {
                    return error;
                },
                Some(ended) = self.reading.join_next() => if let Ok((source, why)) = ended {
                    self.stands_still(&source, &why);
                },
            }
        }
    }

    fn failed(&self, error: &KafkaError) -> Option<String> {
        let sentence = super::said(error);
        if let Some((_, fatal)) = self.consumer.client().fatal_error() {
            return Some(fatal);
        }
        if self.status.failed(&self.settings.name, &sentence) {
            tracing::warn!("stream {}: {sentence}", self.settings.name);
        }
        None
    }

    fn stands_still(&self, source: &Source, why: &str) {
        self.status.failed(&source.stream, &format!("{source} stands still: {why}"));
        tracing::error!("{source} stands still: {why}");
    }

    fn source(&self, (topic, number): &(String, i32)) -> Source {
        let number = u32::try_from(*number).unwrap_or(0);
        Source { stream: self.settings.name.clone(), topic: topic.clone(), number }
    }

    /// Asks where the partitions stand. Until that is known, the group waits.
    fn given(&mut self, parts: Parts) {
        let sources: Vec<Source> = parts.iter().map(|part| self.source(part)).collect();
        self.held.extend(parts);
        let (engine, consumer) = (Rc::clone(&self.engine), Arc::clone(&self.consumer));
        let (settings, status) = (Rc::clone(&self.settings), Arc::clone(&self.status));
        self.asking.spawn_local(async move {
            let mut positions = Vec::new();
            for source in sources {
                let mut waits = Backoff::default();
                let begin = loop {
                    match first_position(&*engine, &consumer, &settings, &source).await {
                        Ok(begin) => break begin,
                        Err(error) => {
                            if status.failed(&source.stream, &error) {
                                tracing::warn!("{source}: {error}");
                            }
                            tokio::time::sleep(waits.wait()).await;
                        }
                    }
                };
                positions.push((source, begin));
            }
            positions
        });
    }

    /// Begins to read what is still held from these positions.
    fn begin(&mut self, positions: Vec<(Source, Begin)>) -> Result<(), String> {
        let mut parts = TopicPartitionList::new();
        let mut queues = Vec::new();
        for (source, begin) in positions {
            let number = i32::try_from(source.number).unwrap_or(i32::MAX);
            if !self.held.contains(&(source.topic.clone(), number)) {
                continue;
            }
            let position = match begin {
                Begin::At(position) => position,
                Begin::Never(why) => {
                    self.status.of(&source, |status| status.is_stopped = true);
                    self.stands_still(&source, &why);
                    continue;
                }
            };
            let offset = Offset::Offset(i64::try_from(position).unwrap_or(i64::MAX));
            parts.add_partition_offset(&source.topic, number, offset).map_err(|error| error.to_string())?;
            let queue = self.consumer.split_partition_queue(&source.topic, number);
            queues.push((queue.ok_or_else(|| format!("{source} has no queue"))?, source, number, position));
        }
        match self.consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => self.consumer.incremental_assign(&parts),
            RebalanceProtocol::Eager | RebalanceProtocol::None => self.consumer.assign(&parts),
        }
        .map_err(|error| error.to_string())?;
        for (queue, source, number, position) in queues {
            tracing::info!("{source} is read here from offset {position}");
            self.status.of(&source, |status| status.position = position);
            let reader = Reader {
                engine: Rc::clone(&self.engine),
                settings: Rc::clone(&self.settings),
                letters: self.letters.clone(),
                consumer: Arc::clone(&self.consumer),
                source: source.clone(),
                status: Arc::clone(&self.status),
                position,
                next: position,
            };
            let part = (source.topic.clone(), number);
            let reading = self.reading.spawn_local(async move { (source, reader.read(queue).await) });
            if let Some(earlier) = self.readers.insert(part, reading) {
                earlier.abort();
            }
        }
        Ok(())
    }

    fn taken(&mut self, parts: &[(String, i32)]) {
        for part in parts {
            self.held.remove(part);
            let source = self.source(part);
            self.status.gone(&source);
            if let Some(reader) = self.readers.remove(part) {
                reader.abort();
                tracing::info!("{source} is read elsewhere");
            }
        }
    }
}

/// How a source begins.
enum Begin {
    At(u64),
    /// Not before somebody acts; why.
    Never(String),
}

/// Where a source begins: where the engine says, else where its stream says.
async fn first_position<E: Engine>(
    engine: &E,
    consumer: &Arc<StreamConsumer<Context>>,
    settings: &Settings,
    source: &Source,
) -> Result<Begin, String> {
    let reason = |refused| match refused {
        super::Refused::Order(_, reason) | super::Refused::Later(reason, _) => reason,
    };
    let position = engine.position(source).await.map_err(reason)?;
    let (asker, topic) = (Arc::clone(consumer), source.topic.clone());
    let number = i32::try_from(source.number).unwrap_or(i32::MAX);
    let looked = tokio::task::spawn_blocking(move || asker.fetch_watermarks(&topic, number, WATERMARKS_MAX)).await;
    let (low, high) = looked.map_err(|error| error.to_string())?.map_err(|error| super::said(&error))?;
    let (low, high) = (u64::try_from(low).unwrap_or(0), u64::try_from(high).unwrap_or(0));
    Ok(match position {
        0 if settings.start == Start::Latest && high > 0 => {
            // Kept at once, so that a restart does not pass over what comes now.
            Begin::At(engine.submit(source, (0, high), &[]).await.map_err(reason)?)
        }
        0 => Begin::At(0),
        _ if position < low => {
            tracing::error!(
                "{source}: the messages from offset {position} to {low} were deleted before they were read"
            );
            Begin::At(position)
        }
        _ if position > high => Begin::Never(format!(
            "the topic ends at offset {high}, and the stream was at {position}: the topic was made anew, or cut at its end. Give \
             the stream another name to read it from the beginning"
        )),
        _ => Begin::At(position),
    })
}

impl<E> Drop for Member<E> {
    fn drop(&mut self) {
        for (topic, number) in self.held.drain() {
            let number = u32::try_from(number).unwrap_or(0);
            self.status.gone(&Source { stream: self.settings.name.clone(), topic, number });
        }
    }
}

//! A stream's member of its consumer group: which partitions it reads changes as members come and go.
//!
//! When a partition comes, the engine is asked where it stands, and only then is it fetched, from there; those whose position is not
//! known soon come later, so that they hold up no others. When one goes, its reader is
//! dropped in the middle of whatever it does. A submission of it that is still on its way finds the position where it was, and counts,
//! or moved, and does not.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::stream_consumer::StreamConsumer;
use rdkafka::consumer::{Consumer as _, RebalanceProtocol};
use rdkafka::error::KafkaError;
use rdkafka::{Message, Offset, TopicPartitionList};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio::time::Instant;

use super::begin::{Begin, first_position};
use super::context::{Change, Context, Parts};
use super::letters::Letters;
use super::reader::Reader;
use super::status::Shared;
use super::{Engine, Settings, Source};
use crate::backoff::Backoff;

/// Changes of the assignment that wait at most; librdkafka waits for each.
const CHANGES_MAX: usize = 64;
/// Partitions of topics that are looked at at once: each takes a thread meanwhile.
const LOOKS_MAX: usize = 16;
/// How long those partitions whose position is known wait for others.
const OTHERS_WAIT: Duration = Duration::from_secs(2);
/// How often librdkafka tells how far behind it is.
const STATISTICS_EVERY_MS: &str = "5000";

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

/// A partition of a topic.
type Part = (String, i32);

/// A member of the group, and what it reads.
struct Member<E> {
    settings: Rc<Settings>,
    engine: Rc<E>,
    status: Shared,
    letters: Option<Rc<Letters>>,
    changes: mpsc::Receiver<Change>,
    /// What the group gave.
    held: HashSet<Part>,
    readers: HashMap<Part, AbortHandle>,
    /// Readers, and what ended them.
    reading: JoinSet<(Source, String)>,
    /// Partitions whose positions are asked for.
    asked: HashMap<Part, AbortHandle>,
    asking: JoinSet<(Part, Begin)>,
    looks: Rc<Semaphore>,
    /// Partitions whose positions are known and that are not read yet.
    known: Vec<(Part, Begin)>,
    /// The group waits for our word that we took what it gave.
    is_owed: bool,
    /// When what is known begins, whether or not there is more to come.
    due: Option<Instant>,
    consumer: Arc<StreamConsumer<Context>>,
}

impl<E: Engine> Member<E> {
    fn join(settings: &Rc<Settings>, engine: &Rc<E>, status: &Shared) -> Result<Self, String> {
        let (send, changes) = mpsc::channel(CHANGES_MAX);
        let context = Context::new(&settings.name, send, status);
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
            asked: HashMap::new(),
            asking: JoinSet::new(),
            looks: Rc::new(Semaphore::new(LOOKS_MAX)),
            known: Vec::new(),
            is_owed: false,
            due: None,
            consumer: Arc::new(consumer),
        })
    }

    /// Runs until the consumer cannot go on; why.
    async fn run(mut self) -> String {
        loop {
            if let Err(error) = self.next().await {
                return error;
            }
        }
    }

    async fn next(&mut self) -> Result<(), String> {
        let consumer = Arc::clone(&self.consumer);
        let due = self.due;
        let at_due = async { tokio::time::sleep_until(due.unwrap_or_else(Instant::now)).await };
        tokio::select! {
            // What was taken must be known before anything begins.
            biased;
            Some(change) = self.changes.recv() => match change {
                Change::Given(parts) => self.given(parts),
                Change::Taken(parts) => self.taken(&parts),
            },
            Some(answer) = self.asking.join_next() => self.answered(answer)?,
            Some(ended) = self.reading.join_next() => self.ended(ended)?,
            () = at_due, if due.is_some() => {}
            // Waiting for it is what keeps the consumer a member; messages come through the readers' own queues.
            received = consumer.recv() => match received {
                Ok(message) => {
                    return Err(format!("{} {} came outside of its queue", message.topic(), message.partition()));
                }
                Err(error) => self.failed(&error)?,
            },
        }
        if self.due.is_some_and(|due| self.asking.is_empty() || due <= Instant::now()) {
            self.begin().await?;
        }
        Ok(())
    }

    fn failed(&self, error: &KafkaError) -> Result<(), String> {
        if let Some((_, fatal)) = self.consumer.client().fatal_error() {
            return Err(fatal);
        }
        let context = self.consumer.client().context();
        let sentence = context.said(error);
        if !context.follows(error) && self.status.failed(&self.settings.name, &sentence) {
            tracing::warn!("stream {}: {sentence}", self.settings.name);
        }
        Ok(())
    }

    fn stands_still(&self, source: &Source, why: &str) {
        self.status.failed(&source.stream, &format!("{source} stands still: {why}"));
        tracing::error!("{source} stands still: {why}");
    }

    /// A reader ended: because of what people must put right, because its partition was taken, or by a defect, which all readers begin
    /// anew after.
    fn ended(&mut self, ended: Result<(Source, String), JoinError>) -> Result<(), String> {
        match ended {
            Ok((source, why)) => {
                self.readers.remove(&part(&source));
                self.stands_still(&source, &why);
                Ok(())
            }
            Err(error) if error.is_cancelled() => Ok(()),
            Err(error) => Err(format!("a reader ended by a defect of Taskmaster: {error}")),
        }
    }

    /// Asks where the partitions stand, each by itself: one that nobody knows holds up no other.
    fn given(&mut self, parts: Parts) {
        for part in parts {
            let source = self.source(&part);
            self.held.insert(part.clone());
            let (engine, consumer, looks) =
                (Rc::clone(&self.engine), Arc::clone(&self.consumer), Rc::clone(&self.looks));
            let (settings, status) = (Rc::clone(&self.settings), Arc::clone(&self.status));
            let asked = part.clone();
            let asking = self.asking.spawn_local(async move {
                let (mut waits, mut last) = (Backoff::default(), String::new());
                loop {
                    match first_position(&*engine, &consumer, &looks, &settings, &source).await {
                        Ok(begin) => return (asked, begin),
                        Err(error) => {
                            status.failed(&source.stream, &format!("{source} waits: {error}"));
                            // Others may wait for other reasons in turn, which is no news of this one.
                            if last != error {
                                tracing::warn!("{source} waits: {error}");
                                last = error;
                            }
                            tokio::time::sleep(waits.wait()).await;
                        }
                    }
                }
            });
            if let Some(earlier) = self.asked.insert(part, asking) {
                earlier.abort();
            }
        }
        self.is_owed = true;
        self.due = Some(Instant::now() + OTHERS_WAIT);
    }

    fn answered(&mut self, answer: Result<(Part, Begin), JoinError>) -> Result<(), String> {
        match answer {
            Ok((part, begin)) => {
                self.asked.remove(&part);
                self.known.push((part, begin));
                Ok(())
            }
            Err(error) if error.is_cancelled() => Ok(()),
            Err(error) => Err(format!("a position is not known by a defect of Taskmaster: {error}")),
        }
    }

    /// Begins to read what is known by now.
    async fn begin(&mut self) -> Result<(), String> {
        self.due = (!self.asking.is_empty()).then(|| Instant::now() + OTHERS_WAIT);
        let mut begins = Vec::new();
        for (part, begin) in std::mem::take(&mut self.known) {
            match begin {
                _ if !self.held.contains(&part) => {}
                Begin::At(position) => begins.push((part, position)),
                Begin::Never(why) => {
                    let source = self.source(&part);
                    self.status.of(&source, |status| status.is_stopped = true);
                    self.stands_still(&source, &why);
                }
            }
        }
        if begins.is_empty() && !self.is_owed {
            return Ok(());
        }
        let is_whole = !matches!(self.consumer.rebalance_protocol(), RebalanceProtocol::Cooperative);
        if is_whole {
            begins.extend(self.running().await?);
        }
        let mut parts = TopicPartitionList::new();
        let mut queues = Vec::new();
        for (part, position) in begins {
            let offset = Offset::Offset(i64::try_from(position).unwrap_or(i64::MAX));
            parts.add_partition_offset(&part.0, part.1, offset).map_err(|error| error.to_string())?;
            let queue = self.consumer.split_partition_queue(&part.0, part.1);
            queues.push((queue.ok_or_else(|| format!("{} {} has no queue", part.0, part.1))?, part, position));
        }
        let assigned = if is_whole { self.consumer.assign(&parts) } else { self.consumer.incremental_assign(&parts) };
        assigned.map_err(|error| error.to_string())?;
        self.is_owed = false;
        for (queue, part, position) in queues {
            let source = self.source(&part);
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
            let reading = self.reading.spawn_local(async move { (source, reader.read(queue).await) });
            if let Some(earlier) = self.readers.insert(part, reading) {
                earlier.abort();
            }
        }
        Ok(())
    }

    /// Ends the readers that run; where each goes on. A protocol that knows only whole assignments fetches all partitions anew when one is
    /// added. What a reader had submitted counts or comes again, as when its partition is taken.
    async fn running(&mut self) -> Result<Vec<(Part, u64)>, String> {
        self.readers.values().for_each(AbortHandle::abort);
        // A queue that is dropped late would silence the one that follows it.
        while let Some(ended) = self.reading.join_next().await {
            self.ended(ended)?;
        }
        let running: Vec<Part> = self.readers.drain().map(|(part, _)| part).collect();
        let position = |part: Part| self.status.position(&self.source(&part)).map(|position| (part, position));
        Ok(running.into_iter().filter_map(position).collect())
    }

    fn taken(&mut self, parts: &[Part]) {
        for part in parts {
            self.held.remove(part);
            if let Some(asking) = self.asked.remove(part) {
                asking.abort();
            }
            let source = self.source(part);
            self.status.gone(&source);
            if let Some(reader) = self.readers.remove(part) {
                reader.abort();
                tracing::info!("{source} is read elsewhere");
            }
        }
        self.known.retain(|(part, _)| self.held.contains(part));
        self.is_owed &= !self.held.is_empty();
    }

    fn source(&self, (topic, number): &Part) -> Source {
        let number = u32::try_from(*number).unwrap_or(0);
        Source { stream: self.settings.name.clone(), topic: topic.clone(), number }
    }
}

/// The partition of a source.
fn part(source: &Source) -> Part {
    (source.topic.clone(), i32::try_from(source.number).unwrap_or(i32::MAX))
}

impl<E> Drop for Member<E> {
    fn drop(&mut self) {
        for (topic, number) in self.held.drain() {
            let number = u32::try_from(number).unwrap_or(0);
            self.status.gone(&Source { stream: self.settings.name.clone(), topic, number });
        }
    }
}

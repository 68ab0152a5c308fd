//! The way between partitions and the topic of events, with the same ills as the way to the store.

use taskmaster_engine::checkpoint::{BatchBounds, Stored};
use taskmaster_engine::events::ForTopic;
use taskmaster_engine::{Input, State};
use taskmaster_protocol::PartitionId;

use super::{Event, What, World};

/// Requests that a shard gives at once.
const REQUESTS_MAX: usize = 8;

/// A request on its way: from which shard of which life, and what.
pub(super) struct Asked {
    place: u16,
    life: u64,
    shard: u16,
    request: ForTopic,
}

impl World {
    /// Every shard gives what it has.
    pub(super) fn send_events(&mut self) {
        if self.oracle.topic.is_none() {
            return;
        }
        if self.dice.chance(3) && !self.is_calm() {
            self.topic_down_until_us = self.now_us + self.dice.range(50_000, 1_000_000);
        }
        for place in 0..u16::try_from(self.places.len()).expect("few") {
            for shard in 0..self.places[usize::from(place)].site.shards {
                self.send_events_of(place, shard);
            }
        }
    }

    fn send_events_of(&mut self, place: u16, shard: u16) {
        let bounds =
            BatchBounds { tasks_min: 0, tasks: usize::try_from(self.dice.range(1, 40)).expect("few"), bytes: 1 << 20 };
        let life = self.places[usize::from(place)].life();
        for _ in 0..REQUESTS_MAX {
            let Some(at) = self.shard(place, shard) else { return };
            let (Some(request), Some(life)) = (at.shard.next_for_topic(bounds), life) else { return };
            let delay_us = self.dice.range(200, 40_000);
            self.after(delay_us, Event::Topic(Box::new(Asked { place, life, shard, request })));
        }
    }

    /// A request reaches the topic, or waits for it.
    pub(super) fn topic_asked(&mut self, asked: Box<Asked>) -> Result<(), String> {
        let Some(topic) = &mut self.oracle.topic else { return Ok(()) };
        if self.now_us < self.topic_down_until_us {
            self.at(self.topic_down_until_us + 1_000, Event::Topic(asked));
            return Ok(());
        }
        let stored = topic.take(&asked.request)?;
        // The producer that lost its answer asks again, as it does without end.
        if self.dice.chance(10) {
            let delay_us = self.dice.range(1_000, 300_000);
            self.after(delay_us, Event::Topic(asked));
            return Ok(());
        }
        let (partition, term) = match &asked.request {
            ForTopic::Open { partition, term, .. } => (*partition, *term),
            ForTopic::Batch(batch) => (PartitionId(batch.partition), batch.term),
        };
        let (Asked { place, life, shard, .. }, delay_us) = (*asked, self.dice.range(100, 5_000));
        self.after(delay_us, Event::In { place, life, what: What::Told { shard, partition, term, sent: stored } });
        Ok(())
    }

    pub(super) fn told(&mut self, place: u16, shard: u16, partition: PartitionId, term: u64, stored: Stored) {
        self.input(place, shard, Input::Sent { partition, term, sent: stored });
        self.send_events_of(place, shard);
    }

    /// Whether nothing waits to be told any more.
    pub(super) fn is_all_told(&self) -> bool {
        let nodes = self.places.iter().filter_map(|place| place.node.as_ref());
        self.oracle.topic.is_none()
            || nodes.flat_map(|node| &node.loops).all(|own| own.shard.stats().events_waiting == 0)
    }

    /// At the end: what is known to be final was told as it is.
    pub(super) fn compare_topic(&self) -> Result<(), String> {
        let Some(topic) = self.oracle.topic.as_ref().filter(|topic| !topic.has_gaps) else { return Ok(()) };
        for (id, state) in self.oracle.ends() {
            let told = topic.end(id);
            if told != Some(state) {
                return Err(format!("{id} is {state}, and the topic has {}", told.map_or("no end", State::name)));
            }
        }
        Ok(())
    }
}

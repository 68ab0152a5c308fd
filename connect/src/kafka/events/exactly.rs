//! Exactly once: a group of batches and the positions behind them are one transaction.
//!
//! A node has one producer under a transactional id of its own. So that a leader that was replaced cannot send behind its successor's
//! back, a node *opens* a partition before it sends from there: it takes the cluster's lock (a transactional id that is nobody's),
//! fences off the node that sent last, and notes itself as the one that sends, in a transaction of the lock's.
//!
//! - Fenced off, the other node can send again only through a new producer, and for that it opens its partitions anew: under the
//!   lock it finds a later term than its own, and leaves the partition.
//! - Whoever takes the lock while another holds it fences that one off, whose note then fails, and who begins again.
//! - The position is read after the fence, when no transaction that could move it is under way.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use rdkafka::error::KafkaResult;
use rdkafka::producer::Producer as _;

use super::positions::{Positions, Stand};
use super::producer::{ANSWER_MAX, Producer};
use super::sink::Stands;
use super::{Batch, Request, Sent, Settings};

/// The transactional producer of a node.
pub(super) struct Exactly {
    settings: Settings,
    producer: Producer,
    positions: HashMap<u128, Positions>,
    /// Partitions that are sent from here, by cluster.
    opened: HashMap<(u128, u16), Stand>,
}

impl Exactly {
    /// Ends whatever transaction an earlier producer of the node has left.
    pub(super) fn new(settings: &Settings) -> KafkaResult<Self> {
        let producer = Producer::transactional(settings, &settings.owner())?;
        Ok(Self { settings: settings.clone(), producer, positions: HashMap::new(), opened: HashMap::new() })
    }

    /// Carries out requests of one cluster, as far as they fit; where their partitions stand afterwards.
    pub(super) fn carry_out(&mut self, cluster: u128, requests: &[&Request]) -> KafkaResult<Stands> {
        let mut stands = Stands::new();
        let mut wanted = BTreeMap::new();
        for request in requests {
            let known = self.opened.get(&(cluster, request.partition())).map_or(0, |stand| stand.term);
            if known > request.term() {
                stands.insert(request.partition(), Sent::Overtaken);
            } else if known < request.term() || matches!(request, Request::Open { .. }) {
                let wish = wanted.entry(request.partition()).or_insert((request.term(), request.sent()));
                *wish = (*wish).max((request.term(), request.sent()));
            }
        }
        if !wanted.is_empty() {
            self.open(cluster, &wanted, &mut stands)?;
        }
        let mut fitting: Vec<&Batch> = Vec::new();
        for request in requests {
            let Request::Batch(batch) = request else { continue };
            let stand = self.opened.get(&(cluster, batch.partition));
            if stand.is_some_and(|stand| stand.term == batch.term && stand.upto == batch.from) {
                fitting.push(batch);
            }
        }
        if !fitting.is_empty() {
            self.send(cluster, &fitting)?;
        }
        for request in requests {
            let stand = self.opened.get(&(cluster, request.partition()));
            if let Some(stand) = stand.filter(|stand| stand.term == request.term()) {
                stands.insert(request.partition(), Sent::Upto(stand.upto));
            }
        }
        Ok(stands)
    }

    /// The transaction.
    fn send(&mut self, cluster: u128, batches: &[&Batch]) -> KafkaResult<()> {
        let moved: Vec<(u16, Stand)> = batches
            .iter()
            .map(|batch| (batch.partition, Stand { upto: batch.to, term: batch.term, owner: self.settings.owner() }))
            .collect();
        let positions = Self::positions(&mut self.positions, &self.settings, cluster)?;
        let producer = &self.producer;
        producer.0.begin_transaction()?;
        for batch in batches {
            producer.enqueue(&self.settings, batch)?;
        }
        producer.settle()?;
        let list = positions.list(moved.iter().map(|(partition, stand)| (*partition, stand)))?;
        producer.0.send_offsets_to_transaction(&list, &positions.group()?, ANSWER_MAX)?;
        producer.0.commit_transaction(ANSWER_MAX)?;
        self.opened.extend(moved.into_iter().map(|(partition, stand)| ((cluster, partition), stand)));
        Ok(())
    }

    /// Makes this node the one that sends from the partitions, each for a leader of this term who knows that so much is sent.
    fn open(&mut self, cluster: u128, wanted: &BTreeMap<u16, (u64, u64)>, stands: &mut Stands) -> KafkaResult<()> {
        let own = self.settings.owner();
        let lock = Producer::transactional(&self.settings, &format!("taskmaster-events-lock-{cluster:032x}"))?;
        let positions = Self::positions(&mut self.positions, &self.settings, cluster)?;
        let partitions: Vec<u16> = wanted.keys().copied().collect();
        let mut others = BTreeSet::new();
        let mut ours = BTreeMap::new();
        for (partition, stand) in partitions.iter().zip(positions.present(&partitions)?) {
            let (term, sent) = wanted[partition];
            if stand.term > term {
                stands.insert(*partition, Sent::Overtaken);
                self.opened.insert((cluster, *partition), stand);
                continue;
            }
            if !stand.owner.is_empty() && stand.owner != own {
                others.insert(stand.owner);
            }
            ours.insert(*partition, (term, sent));
        }
        for other in others {
            drop(Producer::transactional(&self.settings, &other)?);
        }
        if ours.is_empty() {
            return Ok(());
        }
        let partitions: Vec<u16> = ours.keys().copied().collect();
        let found = positions.settled(&partitions)?;
        // Brokers forget the positions of partitions where nothing happens for long; the log does not.
        let noted = ours.iter().zip(found).map(|((partition, (term, sent)), stand)| {
            (*partition, Stand { upto: stand.upto.max(*sent), term: *term, owner: own.clone() })
        });
        let noted: BTreeMap<u16, Stand> = noted.collect();
        lock.0.begin_transaction()?;
        let list = positions.list(noted.iter().map(|(partition, stand)| (*partition, stand)))?;
        lock.0.send_offsets_to_transaction(&list, &positions.group()?, ANSWER_MAX)?;
        lock.0.commit_transaction(ANSWER_MAX)?;
        self.opened.extend(noted.into_iter().map(|(partition, stand)| ((cluster, partition), stand)));
        Ok(())
    }

    fn positions<'a>(
        known: &'a mut HashMap<u128, Positions>,
        settings: &Settings,
        cluster: u128,
    ) -> KafkaResult<&'a Positions> {
        match known.entry(cluster) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(place) => Ok(place.insert(Positions::of(settings, cluster)?)),
        }
    }
}

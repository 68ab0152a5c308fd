//! The world: virtual time, nodes at their places, networks, producers, workers and a reader, and the plan of faults.
//!
//! Everything that happens is an event in one queue, ordered by time and then by the order in which it was made; all
//! chance comes from one seed. So the options are a run, and its trace hash names it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;

use taskmaster_engine::PeerAddr;
use taskmaster_engine::checkpoint::Stored;
use taskmaster_engine::cluster::ClusterMap;
use taskmaster_protocol::{FrameBuffer, NodeId, PartitionId};

use super::actor::{Actor, Target};
use super::client::Client;
use super::dice::{Dice, mix};
use super::faults::{Fault, FaultSet};
use super::network::{Link, PeerLink};
use super::node::Place;
use super::oracle::Oracle;
use super::reader::Reader;
use super::scenario::Scenario;
use super::streams::StreamReader;
use super::workers::Worker;
use super::workload::Producer;
use super::{Defect, Options, Report};

mod end;
mod links;
mod mishaps;
mod nodes;
mod peers;
pub(crate) mod remembered;
mod stores;
mod topics;

/// A right clock at virtual time zero, in microseconds since 1970.
pub(crate) const START_US: u64 = 1_700_000_000_000_000;
/// Longest virtual time after the faults, in microseconds.
const CALM_US_MAX: u64 = 180_000_000;
/// How often the world looks at all nodes.
const LOOK_US: u64 = 50_000;

/// Between which shards a link is: the sender's place and shard, the receiver's.
type LinkKey = (u16, u16, u16, u16);

/// What happens in a process.
enum What {
    Bytes {
        link: u64,
        bytes: Vec<u8>,
    },
    LinkLost {
        link: u64,
    },
    Turn {
        shard: u16,
    },
    Written {
        shard: u16,
        seq: u64,
    },
    Segment {
        shard: u16,
    },
    Tick {
        shard: u16,
        at_us: u64,
    },
    Slice {
        shard: u16,
    },
    SnapshotDone {
        shard: u16,
    },
    Drained {
        until_us: u64,
    },
    /// Messages from a shard of another node, on a link and its connection.
    Peer {
        shard: u16,
        from: PeerAddr,
        to: NodeId,
        key: LinkKey,
        epoch: u64,
        bytes: FrameBuffer,
    },
    /// Messages from another shard of the node.
    Mesh {
        shard: u16,
        from: PeerAddr,
        bytes: FrameBuffer,
    },
    Map {
        shard: u16,
        map: Arc<ClusterMap>,
    },
    PeerLost {
        shard: u16,
        node: NodeId,
    },
    Packet {
        from: u16,
        bytes: Vec<u8>,
    },
    Gossip {
        at_us: u64,
    },
    /// The topic's answer.
    Told {
        shard: u16,
        partition: PartitionId,
        term: u64,
        sent: Stored,
    },
    /// The store's answer.
    Stored {
        shard: u16,
        partition: PartitionId,
        term: u64,
        stored: Stored,
    },
}

enum Event {
    /// In a process, unless it is gone by then.
    In {
        place: u16,
        life: u64,
        what: What,
    },
    Start {
        place: u16,
    },
    Resume {
        place: u16,
    },
    DiskFree {
        place: u16,
    },
    Opened {
        actor: usize,
        target: Target,
    },
    ToPeer {
        link: u64,
        bytes: Vec<u8>,
    },
    PeerHearsLoss {
        link: u64,
    },
    OpenFailed {
        actor: usize,
        target: Target,
    },
    Wake {
        actor: usize,
        at_us: u64,
    },
    Fault(Fault),
    /// Something reaches the store.
    Store(Box<stores::Asked>),
    /// Something reaches the topic.
    Topic(Box<topics::Asked>),
    Look,
}

/// An event and its place in the order.
struct Due {
    at_us: u64,
    number: u64,
    event: Event,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at_us, self.number).cmp(&(other.at_us, other.number))
    }
}

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Load and faults.
    Faults,
    /// Faults are over; producers get their last answers.
    Calm,
    /// Everything is read until all is final.
    Reading {
        since_us: u64,
    },
    /// Power is lost once more; everything is read again.
    ReadingAgain,
    Over,
}

/// One simulation.
pub(crate) struct World {
    options: Options,
    scenario: Scenario,
    dice: Dice,
    now_us: u64,
    events: BinaryHeap<Reverse<Due>>,
    last_event: u64,
    trace: u64,
    places: Vec<Place>,
    /// What happens to processes that stand still.
    held: Vec<Vec<(u64, What)>>,
    last_life: u64,
    /// Between places: nothing passes in this direction until then.
    cuts: BTreeMap<(u16, u16), u64>,
    /// Clients do not reach a place until then.
    client_cuts: BTreeMap<u16, u64>,
    slow_until_us: u64,
    gossip_loss: (u64, u64),
    peer_links: BTreeMap<LinkKey, PeerLink>,
    mesh: BTreeMap<(u16, u16, u16), u64>,
    links: BTreeMap<u64, Link>,
    last_link: u64,
    actors: Vec<Box<dyn Actor>>,
    open_of: Vec<BTreeSet<Target>>,
    link_of: Vec<BTreeMap<Target, u64>>,
    wake_of: Vec<u64>,
    oracle: Oracle,
    store_down_until_us: u64,
    topic_down_until_us: u64,
    remembered: remembered::Remembered,
    phase: Phase,
    /// When replicas are compared next.
    compare_us: u64,
    defect: Option<Defect>,
    report: Report,
    /// Says what happens to nodes (`TASKMASTER_SIM_LOG`).
    is_loud: bool,
}

impl World {
    /// A world in which those faults of the plan happen whose places in `kept` are true.
    pub(crate) fn new(options: &Options, kept: Option<&[bool]>) -> Self {
        let scenario = Scenario::new(options);
        let mut dice = scenario.dice.clone();
        let places: Vec<Place> =
            (0u16..).zip(&scenario.sites).map(|(number, site)| Place::new(number, *site, options.seed)).collect();
        let count = u16::try_from(places.len()).expect("few");
        let client = || Client::new(count, scenario.partitions, 0);
        let pause_us_max = if options.minutes == 0 { 400_000 } else { 600_000 };
        let mut actors: Vec<Box<dyn Actor>> = Vec::new();
        for number in 0..scenario.producers {
            actors.push(Box::new(Producer::new(number, scenario.partitions, pause_us_max, options, client())));
        }
        for number in 0..scenario.stream_readers {
            actors.push(Box::new(StreamReader::new(number, scenario.partitions, client())));
        }
        for number in 0..scenario.workers {
            actors.push(Box::new(Worker::new(number, dice.small(1, 24), client())));
        }
        actors.push(Box::new(Reader::new(client())));
        let mut world = Self {
            options: *options,
            now_us: 0,
            events: BinaryHeap::new(),
            last_event: 0,
            trace: options.seed,
            held: places.iter().map(|_| Vec::new()).collect(),
            places,
            last_life: 0,
            cuts: BTreeMap::new(),
            client_cuts: BTreeMap::new(),
            slow_until_us: 0,
            gossip_loss: (0, 0),
            peer_links: BTreeMap::new(),
            mesh: BTreeMap::new(),
            links: BTreeMap::new(),
            last_link: 0,
            open_of: actors.iter().map(|_| BTreeSet::new()).collect(),
            link_of: actors.iter().map(|_| BTreeMap::new()).collect(),
            wake_of: vec![u64::MAX; actors.len()],
            actors,
            oracle: Oracle::new(options.checkpoints, scenario.events),
            store_down_until_us: 0,
            topic_down_until_us: 0,
            remembered: remembered::Remembered::default(),
            phase: Phase::Faults,
            compare_us: 0,
            defect: options.defect,
            is_loud: std::env::var_os("TASKMASTER_SIM_LOG").is_some(),
            report: Report { seed: options.seed, nodes: count.into(), ..Report::default() },
            scenario,
            dice,
        };
        world.begin(kept);
        world
    }

    fn begin(&mut self, kept: Option<&[bool]>) {
        for place in 0..self.places.len() {
            let (starts_us, number) = (self.places[place].site.starts_us, self.places[place].number);
            self.at(starts_us, Event::Start { place: number });
        }
        for (number, planned) in self.scenario.faults.clone().into_iter().enumerate() {
            if kept.is_none_or(|kept| kept[number]) {
                self.at(planned.at_us, Event::Fault(planned.fault));
            }
        }
        for actor in 0..self.actors.len() {
            self.wake_actor_at(actor, 0);
        }
        self.at(LOOK_US, Event::Look);
    }

    pub(crate) const fn now_us(&self) -> u64 {
        self.now_us
    }

    /// What the run did so far.
    pub(crate) fn report(&self) -> Report {
        Report {
            trace: self.trace,
            virtual_us: self.now_us,
            tasks: self.oracle.len() as u64,
            assigned: self.oracle.assigned,
            doubled: self.oracle.doubled,
            ended_for_others: self.oracle.ended_for_others,
            reads: self.oracle.reads,
            saves_acknowledged: self.oracle.saves_acknowledged,
            states_read: self.oracle.states_read,
            memoised: self.oracle.memoised,
            leaderships: self.oracle.leaderships(),
            replicas_compared: self.oracle.compared(),
            submits_acknowledged: self.oracle.submits_acknowledged,
            completions_acknowledged: self.oracle.completions_acknowledged,
            messages_taken: self.oracle.messages(),
            stored: self.oracle.store.as_ref().map_or(0, |store| store.rows),
            versions_stored: self.oracle.store.as_ref().map_or(0, |store| store.versions),
            refused: self.oracle.store.as_ref().map_or(0, |store| store.refused)
                + self.oracle.topic.as_ref().map_or(0, |topic| topic.refused),
            told: self.oracle.topic.as_ref().map_or(0, |topic| topic.told),
            ..self.report
        }
    }

    fn at(&mut self, at_us: u64, event: Event) {
        self.last_event += 1;
        let at_us = at_us.max(self.now_us);
        self.events.push(Reverse(Due { at_us, number: self.last_event, event }));
    }

    fn after(&mut self, delay_us: u64, event: Event) {
        self.at(self.now_us + delay_us, event);
    }

    /// Something that will happen in the process that runs at a place.
    fn in_after(&mut self, place: u16, delay_us: u64, what: What) {
        if let Some(life) = self.places[usize::from(place)].life() {
            self.after(delay_us, Event::In { place, life, what });
        }
    }

    fn is_calm(&self) -> bool {
        self.phase != Phase::Faults
    }

    fn has(&self, kind: FaultSet) -> bool {
        self.options.faults.contains(kind) && !self.is_calm()
    }

    /// The clock of a place.
    fn clock_us(&self, place: u16) -> u64 {
        (START_US + self.now_us).saturating_add_signed(self.places[usize::from(place)].skew_us)
    }

    /// For hunting: what happens to nodes.
    fn tell(&self, what: impl FnOnce() -> String) {
        if self.is_loud {
            eprintln!("{:>9} {}", self.now_us, what());
        }
    }

    fn note(&mut self, kind: u64, value: u64) {
        self.trace = mix(self.trace ^ mix(self.now_us ^ (kind << 56)) ^ value);
    }

    /// Runs to the end.
    ///
    /// # Errors
    /// The first rule that did not hold.
    pub(crate) fn play(&mut self) -> Result<(), String> {
        while let Some(Reverse(Due { at_us, event, .. })) = self.events.pop() {
            self.now_us = at_us;
            self.report.events += 1;
            self.happen(event)?;
            if self.phase == Phase::Over {
                return Ok(());
            }
            if self.now_us > self.scenario.calm_from_us + CALM_US_MAX {
                return Err(self.stuck());
            }
        }
        Err("nothing happens any more".to_owned())
    }

    fn happen(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::In { place, life, what } => {
                let at = &self.places[usize::from(place)];
                if at.life() != Some(life) {
                    return Ok(());
                }
                if at.is_paused {
                    self.held[usize::from(place)].push((life, what));
                    return Ok(());
                }
                self.happen_in(place, what)
            }
            Event::Start { place } => self.start(place),
            Event::Resume { place } => {
                self.resume(place);
                Ok(())
            }
            Event::DiskFree { place } => {
                self.places[usize::from(place)].disks.iter_mut().for_each(|disk| disk.full = false);
                Ok(())
            }
            Event::Opened { actor, target } => {
                self.opened(actor, target);
                Ok(())
            }
            Event::OpenFailed { actor, target } => {
                self.call(actor, |actor, cx| actor.lost(target, cx));
                Ok(())
            }
            Event::ToPeer { link, bytes } => self.arrive_at_peer(link, &bytes),
            Event::PeerHearsLoss { link } => {
                self.peer_hears_loss(link);
                Ok(())
            }
            Event::Wake { actor, at_us } => {
                if self.wake_of[actor] == at_us {
                    self.wake_of[actor] = u64::MAX;
                    self.call(actor, |actor, cx| actor.wake(cx));
                }
                Ok(())
            }
            Event::Fault(fault) => {
                if !self.is_calm() {
                    self.suffer(fault);
                }
                Ok(())
            }
            Event::Store(asked) => self.store_asked(asked),
            Event::Topic(asked) => self.topic_asked(asked),
            Event::Look => self.look(),
        }
    }

    fn happen_in(&mut self, place: u16, what: What) -> Result<(), String> {
        match what {
            What::Bytes { link, bytes } => self.arrive_at_node(place, link, &bytes)?,
            What::LinkLost { link } => self.node_hears_loss(place, link),
            What::Turn { shard } => self.turn(place, shard)?,
            What::Written { shard, seq } => self.written(place, shard, seq),
            What::Segment { shard } => self.prepare_segment(place, shard),
            What::Tick { shard, at_us } => self.tick(place, shard, at_us),
            What::Slice { shard } => self.slice(place, shard),
            What::SnapshotDone { shard } => self.snapshot_done(place, shard),
            What::Drained { until_us } => self.drained(place, until_us),
            What::Peer { shard, from, to, key, epoch, bytes } => {
                self.peer_arrives(place, shard, from, to, key, epoch, &bytes);
            }
            What::Mesh { shard, from, bytes } => self.mesh_arrives(place, shard, from, &bytes),
            What::Map { shard, map } => self.map_arrives(place, shard, map),
            What::PeerLost { shard, node } => self.peer_lost(place, shard, node),
            What::Packet { from, bytes } => self.packet_arrives(place, from, &bytes),
            What::Gossip { at_us } => self.gossip_due(place, at_us),
            What::Stored { shard, partition, term, stored } => self.stored(place, shard, partition, term, stored),
            What::Told { shard, partition, term, sent } => self.told(place, shard, partition, term, sent),
        }
        Ok(())
    }
}

/// A hash of bytes for the trace.
fn sum(bytes: &[u8]) -> u64 {
    bytes.chunks(8).fold(bytes.len() as u64, |sum, chunk| {
        let mut eight = [0; 8];
        eight[..chunk.len()].copy_from_slice(chunk);
        mix(u64::from_le_bytes(eight) ^ sum)
    })
}

//! Nodes of one shard each in virtual time: every millisecond messages arrive, logs are flushed, clocks tick.
//!
//! Gossip is played by hand ([`Net::introduce`]): who is up is known at once.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use taskmaster_engine::cluster::membership::Member;
use taskmaster_engine::{Config, ConnId, Effects, Input, PeerAddr, Shard, SnapshotStep};
use taskmaster_protocol::frame::{self, FLAG_RESEND, Header};
use taskmaster_protocol::{Body, Code, FrameBuffer, NodeId, Operation, PartitionId};

/// When every test starts, in microseconds since 1970.
pub(crate) const START_US: u64 = 1_700_000_000_000_000;
const STEP_US: u64 = 1_000;
const CLIENT: ConnId = ConnId(1);

/// A frame that a node sent to the client.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) header: Header,
    pub(crate) body: FrameBuffer,
}

impl Message {
    pub(crate) fn code(&self) -> Code {
        Code::from_number(self.header.code)
    }
}

type Record = (u64, u32, Vec<u8>);

/// A snapshot of a shard: the last record that is in it at least, and its chunks.
type Snapshot = (u64, Vec<(u32, FrameBuffer)>);

struct Node {
    shard: Option<Shard>,
    effects: Effects,
    config: Config,
    log: Vec<Record>,
    durable: usize,
    snapshot: Option<Snapshot>,
    inbox: VecDeque<Message>,
}

/// All of them, and what is on its way between them.
pub(crate) struct Net {
    nodes: BTreeMap<u64, Node>,
    pub(crate) now_us: u64,
    on_the_way: VecDeque<(u64, u64, FrameBuffer)>,
    /// Pairs of nodes between which nothing passes, by direction.
    cut: BTreeSet<(u64, u64)>,
    correlation: u64,
    /// What nodes warned of: only of what was expected.
    warnings: Vec<(u64, String)>,
    /// Words of warnings that are expected.
    pub(crate) expected: Option<&'static str>,
    /// Batches that nodes sent each other, and their bytes.
    pub(crate) batches: u64,
    pub(crate) batch_bytes: u64,
}

/// How long a node is waited for before it is replaced.
pub(crate) const REPLACE_AFTER_US: u64 = 10_000_000;

fn aligned(bytes: &[u8]) -> FrameBuffer {
    let mut buffer = FrameBuffer::with_capacity(bytes.len());
    buffer.extend_from_slice(bytes);
    buffer
}

fn config(id: u64, founds: bool, partitions: u16) -> Config {
    let mut config = Config::standalone(NodeId(id), partitions);
    config.seed = 7 * id;
    config.log_bytes_kept = 256 << 10;
    config.found = if founds { 99 } else { 0 };
    config.limits.replace_after_us = REPLACE_AFTER_US;
    config.node.name = format!("n{id}");
    config.node.host = format!("10.0.0.{id}");
    config
}

impl Net {
    /// Node 1 founds a cluster; nodes 2 to `count` join it.
    pub(crate) fn new(count: u64, partitions: u16) -> Self {
        let mut net = Self {
            nodes: BTreeMap::new(),
            now_us: START_US,
            on_the_way: VecDeque::new(),
            cut: BTreeSet::new(),
            correlation: 0,
            warnings: Vec::new(),
            expected: None,
            batches: 0,
            batch_bytes: 0,
        };
        for id in 1..=count {
            net.add(id, id == 1, partitions);
        }
        net.introduce();
        net
    }

    /// A node with an empty disk.
    pub(crate) fn add(&mut self, id: u64, founds: bool, partitions: u16) {
        self.add_as(id, config(id, founds, partitions));
    }

    /// A node with an empty disk where another one was, and with its name.
    pub(crate) fn add_in_place_of(&mut self, id: u64, old: u64, partitions: u16) {
        let mut config = config(old, false, partitions);
        config.node.id = NodeId(id);
        self.add_as(id, config);
    }

    fn add_as(&mut self, id: u64, config: Config) {
        let node = Node {
            shard: None,
            effects: Effects::default(),
            config,
            log: Vec::new(),
            durable: 0,
            snapshot: None,
            inbox: VecDeque::new(),
        };
        self.nodes.insert(id, node);
        self.start(id);
    }

    /// Starts a node from its snapshot and its durable log.
    pub(crate) fn start(&mut self, id: u64) {
        let now_us = self.now_us;
        let node = self.nodes.get_mut(&id).unwrap();
        let mut shard = Shard::new(node.config.clone(), now_us);
        let mut covered = 0;
        if let Some((sequence, chunks)) = &node.snapshot {
            covered = *sequence;
            for (tag, chunk) in chunks {
                shard.restore_chunk(*tag, chunk).unwrap();
            }
        }
        for (sequence, kind, bytes) in &node.log {
            if *sequence > covered {
                shard.replay(*sequence, *kind, &aligned(bytes)).unwrap();
            }
        }
        shard.start(now_us);
        (node.shard, node.effects) = (Some(shard), Effects::default());
        node.inbox.clear();
    }

    /// The node's power fails; what was not flushed is gone.
    pub(crate) fn kill(&mut self, id: u64) {
        let node = self.nodes.get_mut(&id).unwrap();
        node.shard = None;
        node.log.truncate(node.durable);
        for other in self.alive() {
            self.handle(other, Input::PeerLost { node: NodeId(id) });
        }
        self.introduce();
    }

    /// Nothing passes between these and the others any more.
    pub(crate) fn isolate(&mut self, id: u64) {
        for other in self.nodes.keys().copied().filter(|other| *other != id).collect::<Vec<_>>() {
            self.cut.insert((id, other));
            self.cut.insert((other, id));
        }
    }

    /// Nothing passes from the one to the other any more.
    pub(crate) fn cut(&mut self, from: u64, to: u64) {
        self.cut.insert((from, to));
    }

    pub(crate) fn heal(&mut self) {
        self.cut.clear();
    }

    pub(crate) fn alive(&self) -> Vec<u64> {
        self.nodes.iter().filter(|(_, node)| node.shard.is_some()).map(|(&id, _)| id).collect()
    }

    pub(crate) fn shard(&mut self, id: u64) -> &mut Shard {
        self.nodes.get_mut(&id).unwrap().shard.as_mut().unwrap()
    }

    /// Everybody hears of everybody, as gossip would tell.
    pub(crate) fn introduce(&mut self) {
        let members: Vec<Member> = self
            .nodes
            .iter()
            .map(|(&id, node)| Member {
                id: NodeId(id),
                cluster: node.shard.as_ref().and_then(Shard::cluster).unwrap_or(0),
                bump: 1,
                peer: ([10, 0, 0, u8::try_from(id).unwrap()], 7800).into(),
                shards: 1,
                version: node.config.node.version,
                name: node.config.node.name.clone(),
                is_alive: node.shard.is_some(),
            })
            .collect();
        for id in self.alive() {
            for member in &members {
                self.handle(id, Input::Member(member));
            }
        }
    }

    /// The node is asked to stop.
    pub(crate) fn drain(&mut self, id: u64) {
        self.handle(id, Input::Drain);
    }

    fn handle(&mut self, id: u64, input: Input<'_>) {
        let now_us = self.now_us;
        let node = self.nodes.get_mut(&id).unwrap();
        if let Some(shard) = &mut node.shard {
            shard.handle(input, now_us, &mut node.effects);
        }
    }

    /// Whether a node warned of something with these words.
    pub(crate) fn has_warned(&self, id: u64, words: &[&str]) -> bool {
        let is_it = |(by, warning): &(u64, String)| *by == id && words.iter().all(|word| warning.contains(word));
        self.warnings.iter().any(is_it)
    }

    /// A millisecond.
    pub(crate) fn step(&mut self) {
        self.now_us += STEP_US;
        for (from, to, bytes) in std::mem::take(&mut self.on_the_way) {
            if !self.cut.contains(&(from, to)) && self.nodes[&from].shard.is_some() {
                let from = PeerAddr { node: NodeId(from), shard: 0 };
                self.handle(to, Input::Peer { from, bytes: &bytes });
            }
        }
        for id in self.alive() {
            let node = self.nodes.get_mut(&id).unwrap();
            node.durable = node.log.len();
            let sequence = node.log.last().map_or(0, |record| record.0);
            self.handle(id, Input::Durable { sequence });
            let due = self.shard(id).next_wake_us();
            if due.is_some_and(|due_us| due_us <= self.now_us) {
                self.handle(id, Input::Tick);
            }
            self.end_turn(id);
        }
    }

    fn end_turn(&mut self, id: u64) {
        let now_us = self.now_us;
        let node = self.nodes.get_mut(&id).unwrap();
        let (shard, log, inbox) = (node.shard.as_mut().unwrap(), &mut node.log, &mut node.inbox);
        shard.end_turn(now_us, &mut node.effects, |sequence, kind, parts| log.push((sequence, kind, parts.concat())));
        node.effects.drain(|_, frames| {
            let mut rest: &[u8] = frames;
            while !rest.is_empty() {
                let (frame, used) = frame::parse(rest).unwrap().unwrap();
                inbox.push_back(Message { header: frame.header, body: aligned(frame.body) });
                rest = &rest[used..];
            }
        });
        node.effects.drain_peers(|to, bytes| {
            self.batches += 1;
            self.batch_bytes += bytes.len() as u64;
            self.on_the_way.push_back((id, to.node.0, std::mem::take(bytes)));
        });
        let warnings = shard.take_warnings();
        let is_expected = |warning: &String| self.expected.is_some_and(|words| warning.contains(words));
        assert!(warnings.iter().all(is_expected), "{warnings:?}");
        self.warnings.extend(warnings.into_iter().map(|warning| (id, warning)));
        node.effects.take_map();
    }

    pub(crate) fn run_ms(&mut self, ms: u64) {
        for _ in 0..ms {
            if self.now_us.is_multiple_of(100_000) {
                self.introduce();
            }
            self.step();
        }
    }

    /// Steps until something holds.
    ///
    /// # Panics
    /// If it does not within a minute.
    pub(crate) fn until(&mut self, what: &str, mut holds: impl FnMut(&mut Self) -> bool) {
        for _ in 0..60_000 {
            if holds(self) {
                return;
            }
            self.run_ms(1);
        }
        panic!("{what}: not within a minute; {:?}", self.state());
    }

    /// Voters, learners and leader of a group, as seen by its leader.
    pub(crate) fn state(&mut self) -> Vec<(u64, Vec<String>)> {
        self.alive().into_iter().map(|id| (id, self.shard(id).describe())).collect()
    }

    /// The node that serves a partition.
    pub(crate) fn leader(&mut self, partition: u16) -> Option<u64> {
        let serving: Vec<u64> =
            self.alive().into_iter().filter(|&id| self.shard(id).serves(PartitionId(partition))).collect();
        serving.into_iter().max_by_key(|&id| self.shard(id).term(PartitionId(partition)))
    }

    /// Whether the voters of a partition are these, at its leader.
    pub(crate) fn has_voters(&mut self, partition: u16, voters: &[u64]) -> bool {
        let Some(leader) = self.leader(partition) else { return false };
        let seen = self.shard(leader).voters(PartitionId(partition));
        seen == voters.iter().map(|&id| NodeId(id)).collect::<Vec<_>>()
    }

    /// Sends a request to a node.
    pub(crate) fn send<B: Body>(&mut self, to: u64, partition: u16, flags: u8, body: &B) -> u64 {
        self.correlation += 1;
        let mut header = Header::request(B::OPERATION, self.correlation, Some(PartitionId(partition)));
        header.flags = flags;
        let mut bytes = FrameBuffer::new();
        body.append_to(&mut bytes);
        self.handle(to, Input::Frame { conn: CLIENT, header, body: &bytes });
        self.correlation
    }

    pub(crate) fn reply(&mut self, from: u64, correlation: u64) -> Option<Message> {
        let inbox = &mut self.nodes.get_mut(&from).unwrap().inbox;
        let is_it = |message: &Message| message.header.correlation == correlation && message.header.is_response();
        let position = inbox.iter().position(is_it)?;
        inbox.remove(position)
    }

    /// Pushes to the client's connection on a node, since the last call.
    pub(crate) fn pushes(&mut self, from: u64, operation: Operation) -> Vec<Message> {
        let inbox = &mut self.nodes.get_mut(&from).unwrap().inbox;
        let is_it = |message: &Message| message.header.operation == operation.number() && !message.header.is_response();
        let (taken, rest): (Vec<Message>, Vec<Message>) = inbox.drain(..).partition(is_it);
        *inbox = rest.into();
        taken
    }

    /// Calls the leader as a client does: looks for it, and sends again until it is answered for good.
    pub(crate) fn call<B: Body>(&mut self, partition: u16, body: &B) -> Message {
        let mut flags = 0;
        for _ in 0..10_000 {
            let Some(leader) = self.leader(partition) else {
                self.run_ms(1);
                continue;
            };
            let correlation = self.send(leader, partition, flags, body);
            flags = FLAG_RESEND;
            for _ in 0..2_000 {
                self.run_ms(1);
                if self.nodes[&leader].shard.is_none() {
                    break;
                }
                match self.reply(leader, correlation) {
                    Some(message) if message.code() == Code::NotLeader => break,
                    Some(message) => return message,
                    None => {}
                }
            }
        }
        panic!("partition {partition} does not answer; {:?}", self.state());
    }

    /// Writes a node's own snapshot and forgets the log that it covers.
    pub(crate) fn snapshot(&mut self, id: u64) {
        self.until("a snapshot can begin", |net| net.shard(id).can_snapshot());
        let covered = self.nodes[&id].log[..self.nodes[&id].durable].last().map_or(0, |record| record.0);
        self.shard(id).snapshot_begin();
        let mut chunks = Vec::new();
        loop {
            let mut chunk = FrameBuffer::new();
            match self.shard(id).snapshot_next(&mut chunk) {
                SnapshotStep::Chunk(tag) => chunks.push((tag, chunk)),
                SnapshotStep::Wait => {}
                SnapshotStep::End => break,
                SnapshotStep::Broken => return self.snapshot(id),
            }
            self.run_ms(1);
        }
        let node = self.nodes.get_mut(&id).unwrap();
        node.snapshot = Some((covered, chunks));
        let before = node.log.len();
        node.log.retain(|record| record.0 > covered);
        node.durable -= before - node.log.len();
    }

    /// All replicas of a partition are equal once they stand at the same index.
    pub(crate) fn assert_equal(&mut self, partition: u16) {
        self.until("replicas stand at the same index", |net| {
            let at: Vec<u64> = net.digests(partition).into_iter().map(|(index, _)| index).collect();
            at.len() > 1 && at.iter().all(|index| *index == at[0])
        });
        let digests = self.digests(partition);
        assert!(digests.iter().all(|digest| *digest == digests[0]), "partition {partition}: {digests:?}");
    }

    fn digests(&mut self, partition: u16) -> Vec<(u64, u64)> {
        self.alive().into_iter().filter_map(|id| self.shard(id).digest(PartitionId(partition))).collect()
    }
}

impl Net {
    /// Sends an operator's request to whoever leads the meta group.
    pub(crate) fn admin(&mut self, request: &taskmaster_protocol::body::ClusterAdmin) {
        for _ in 0..1_000 {
            for node in self.alive() {
                let correlation = self.send(node, 0xFFFF, 0, request);
                self.run_ms(10);
                match self.reply(node, correlation) {
                    Some(message) if message.code() == Code::Ok => return,
                    Some(message) => assert_eq!(message.code(), Code::NotLeader),
                    None => {}
                }
            }
        }
        panic!("nobody takes the request");
    }
}

//! The rules of a client of a cluster: who leads is learnt from any node and forgotten when it proves wrong; a request is
//! repeated, with the same bytes and the resend flag, until it is answered.

use std::collections::{BTreeMap, BTreeSet};

use taskmaster_protocol::body::{self, ArchivedClusterMapReply, Empty};
use taskmaster_protocol::frame::{self, FLAG_RESEND, Header, NO_PARTITION};
use taskmaster_protocol::{Body, Code, FrameBuffer, Operation, PartitionId, access};

use super::actor::{Cx, Target};

/// How long an answer may take before the request is repeated.
const PATIENCE_US: u64 = 1_200_000;
/// The same for requests that wait for something.
const LONG_PATIENCE_US: u64 = 3_000_000;
/// How long an answer about the cluster may take.
const MAP_PATIENCE_US: u64 = 250_000;

/// A request under way.
struct Request {
    operation: Operation,
    partition: PartitionId,
    body: FrameBuffer,
    /// It was sent at least once.
    sent: bool,
    /// Where it was sent last, if an answer is awaited.
    at: Option<Target>,
    /// When to send it again.
    again_us: u64,
    correlation: Option<u64>,
}

/// Requests, and what is known of the cluster.
pub(crate) struct Client {
    last: u64,
    requests: BTreeMap<u64, Request>,
    numbers: BTreeMap<u64, u64>,
    /// The first shard of every address.
    seeds: Vec<Target>,
    /// All shards of all nodes, as last heard.
    pub(crate) targets: BTreeSet<Target>,
    leaders: Vec<Option<Target>>,
    map_correlation: u64,
    map_due_us: u64,
    is_stale: bool,
    /// Connections that are being made or were just lost: not tried before.
    patience: BTreeMap<Target, u64>,
}

impl Client {
    /// Numbers of requests begin behind `last`: another client may have used the same connection.
    pub(crate) fn new(places: u16, partitions: u16, last: u64) -> Self {
        let seeds: Vec<Target> = (0..places).map(|place| Target { place, shard: 0 }).collect();
        Self {
            last,
            requests: BTreeMap::new(),
            numbers: BTreeMap::new(),
            targets: seeds.iter().copied().collect(),
            seeds,
            leaders: vec![None; usize::from(partitions)],
            map_correlation: 0,
            map_due_us: 0,
            is_stale: true,
            patience: BTreeMap::new(),
        }
    }

    /// Requests under way.
    pub(crate) fn len(&self) -> usize {
        self.requests.len()
    }

    pub(crate) fn push(&mut self, operation: Operation, partition: PartitionId, body: &impl Body) -> u64 {
        let mut bytes = FrameBuffer::new();
        body.append_to(&mut bytes);
        self.last += 1;
        let number = self.last;
        let request =
            Request { operation, partition, body: bytes, sent: false, at: None, again_us: 0, correlation: None };
        self.requests.insert(number, request);
        number
    }

    /// Opens a connection, unless one was tried just now.
    pub(crate) fn open(&mut self, target: Target, cx: &mut Cx<'_>) {
        if !cx.is_open(target) && self.patience.get(&target).is_none_or(|until_us| *until_us <= cx.now_us) {
            self.patience.insert(target, cx.now_us + 500_000);
            cx.opens.insert(target);
        }
    }

    /// When [`Self::open`] does something about a target again.
    pub(crate) fn retry_us(&self, target: Target) -> u64 {
        self.patience.get(&target).copied().unwrap_or(0)
    }

    pub(crate) fn opened(&mut self, target: Target, cx: &mut Cx<'_>) {
        self.patience.remove(&target);
        self.pump(cx);
    }

    pub(crate) fn lost(&mut self, target: Target, cx: &mut Cx<'_>) {
        let pause_us = cx.dice.range(2_000, if cx.calm { 20_000 } else { 100_000 });
        self.patience.insert(target, cx.now_us + pause_us);
        for request in self.requests.values_mut().filter(|request| request.at == Some(target)) {
            request.at = None;
            request.again_us = request.again_us.min(cx.now_us + pause_us / 2);
        }
        self.forget(|leader| leader == target);
        self.pump(cx);
    }

    fn forget(&mut self, is_wrong: impl Fn(Target) -> bool) {
        for leader in &mut self.leaders {
            if leader.is_some_and(&is_wrong) {
                *leader = None;
                self.is_stale = true;
            }
        }
    }

    /// Takes a frame. The number of the request that it answers, unless it was dealt with here.
    pub(crate) fn answered(&mut self, header: &Header, body: &[u8], cx: &mut Cx<'_>) -> Option<u64> {
        if header.operation == Operation::ClusterMap.number() {
            if header.correlation == self.map_correlation && header.code == Code::Ok.number() {
                self.learn(body, cx.now_us);
                self.pump(cx);
            }
            return None;
        }
        let number = *self.numbers.get(&header.correlation)?;
        let request = self.requests.get_mut(&number).expect("numbers name requests");
        let code = Code::from_number(header.code);
        if matches!(code, Code::NotLeader | Code::WrongPartition) {
            let (partition, pause_us) = (request.partition, cx.dice.range(500, 30_000));
            request.at = None;
            request.again_us = cx.now_us + pause_us;
            self.leaders[usize::from(partition.0)] = None;
            self.is_stale = true;
            self.pump(cx);
            return None;
        }
        Some(number)
    }

    fn learn(&mut self, body: &[u8], now_us: u64) {
        let map = access::<ArchivedClusterMapReply>(body).expect("nodes answer in their layout");
        if map.partitions.is_empty() {
            // The node belongs to no cluster yet.
            self.map_due_us = now_us + 20_000;
            return;
        }
        let mut at: BTreeMap<u64, (u16, u16)> = BTreeMap::new();
        self.targets.clear();
        for node in map.nodes.iter().filter(|node| node.status != 2) {
            let host = body::text(&map.bytes, node.host).expect("hosts are names");
            let Some(place) = host.strip_prefix('n').and_then(|number| number.parse().ok()) else { continue };
            let shards = u16::try_from(node.ports.len.to_native()).expect("few");
            at.insert(node.id.to_native(), (place, shards));
            self.targets.extend((0..shards).map(|shard| Target { place, shard }));
        }
        self.is_stale = false;
        for (number, row) in (0u16..).zip(map.partitions.iter()) {
            let leader = at.get(&row.leader.to_native());
            let leader = leader.map(|&(place, shards)| Target { place, shard: number % shards });
            self.is_stale |= leader.is_none();
            self.leaders[usize::from(number)] = leader;
        }
        self.map_due_us = now_us + 15_000;
    }

    pub(crate) fn done(&mut self, number: u64) {
        if let Some(request) = self.requests.remove(&number)
            && let Some(correlation) = request.correlation
        {
            self.numbers.remove(&correlation);
        }
    }

    /// The request was refused for now.
    pub(crate) fn postpone(&mut self, number: u64, until_us: u64) {
        if let Some(request) = self.requests.get_mut(&number) {
            (request.at, request.again_us) = (None, until_us);
        }
    }

    /// The target that leads a partition, as far as known.
    fn leader_of(&self, partition: PartitionId) -> Option<Target> {
        self.leaders[usize::from(partition.0)]
    }

    /// Sends what is due.
    pub(crate) fn pump(&mut self, cx: &mut Cx<'_>) {
        let due: Vec<u64> = self
            .requests
            .iter()
            .filter(|(_, request)| request.again_us <= cx.now_us)
            .map(|(number, _)| *number)
            .collect();
        for number in due {
            let request = self.requests.get_mut(&number).expect("listed");
            if let Some(silent) = request.at.take() {
                // It did not answer in time: somebody else may lead.
                self.forget(|leader| leader == silent);
            }
            let partition = self.requests[&number].partition;
            match self.leader_of(partition) {
                Some(target) if cx.is_open(target) => self.send(number, target, cx),
                Some(target) => {
                    self.open(target, cx);
                    self.requests.get_mut(&number).expect("listed").again_us = cx.now_us + 5_000;
                }
                None => {
                    self.is_stale = true;
                    self.requests.get_mut(&number).expect("listed").again_us = cx.now_us + 5_000;
                }
            }
        }
        if self.is_stale && !self.requests.is_empty() && self.map_due_us <= cx.now_us {
            self.ask(cx);
        }
    }

    /// Asks any node for the map.
    pub(crate) fn ask(&mut self, cx: &mut Cx<'_>) {
        let open: Vec<Target> = cx.open.iter().copied().collect();
        let seed = self.seeds[cx.dice.index(self.seeds.len())];
        if !cx.is_open(seed) {
            self.open(seed, cx);
        }
        self.map_due_us = cx.now_us + if open.is_empty() { 10_000 } else { MAP_PATIENCE_US };
        if open.is_empty() {
            return;
        }
        let target = open[cx.dice.index(open.len())];
        self.last += 1;
        self.map_correlation = self.last;
        let mut header = Header::request(Operation::ClusterMap, self.last, None);
        header.partition = NO_PARTITION;
        cx.send(target, header, &Empty::default());
    }

    fn send(&mut self, number: u64, target: Target, cx: &mut Cx<'_>) {
        self.last += 1;
        let correlation = self.last;
        let request = self.requests.get_mut(&number).expect("a request under way");
        let mut header = Header::request(request.operation, correlation, Some(request.partition));
        if request.sent {
            header.flags |= FLAG_RESEND;
        }
        let patience_us = if request.operation == Operation::AwaitTask { LONG_PATIENCE_US } else { PATIENCE_US };
        (request.sent, request.at, request.again_us) = (true, Some(target), cx.now_us + patience_us);
        if let Some(old) = request.correlation.replace(correlation) {
            self.numbers.remove(&old);
        }
        self.numbers.insert(correlation, number);
        frame::encode_raw(cx.outgoing.entry(target).or_default(), header, &request.body);
    }

    pub(crate) fn next_us(&self) -> u64 {
        let again_us = self.requests.values().map(|request| request.again_us).min().unwrap_or(u64::MAX);
        let map_us = if self.is_stale && !self.requests.is_empty() { self.map_due_us } else { u64::MAX };
        again_us.min(map_us)
    }
}

//! Blocking requests on one connection: the handshake, the subscription, and the node's counters.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use taskmaster_protocol::body::{
    self, ArchivedClusterMapReply, ArchivedHelloReply, ArchivedNodeStats, ArchivedRefusal, Body, ConfigureQueue, Empty,
    Hello, Subscribe, queue_field,
};
use taskmaster_protocol::frame::{self, FLAG_RESPONSE, Header};
use taskmaster_protocol::{Code, FrameBuffer, Operation, PartitionId, limits};

/// Longest wait for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// What the node said in its hello.
#[derive(Clone, Debug)]
pub(crate) struct Greeting {
    pub(crate) shard: u16,
    pub(crate) shard_ports: Vec<u16>,
    pub(crate) partition_shards: Vec<u16>,
    pub(crate) credit_max: u32,
    pub(crate) server: String,
}

impl Greeting {
    /// Partitions owned by the shard this connection is attached to; all of them if it owns none.
    pub(crate) fn partitions(&self) -> Vec<u16> {
        let all = || self.partition_shards.iter().zip(0u16..);
        let own: Vec<u16> = all().filter(|(shard, _)| **shard == self.shard).map(|(_, number)| number).collect();
        if own.is_empty() { all().map(|(_, number)| number).collect() } else { own }
    }
}

/// Who leads, by the word of one node.
#[derive(Clone, Debug)]
pub(crate) struct Leaders {
    /// The node that answered.
    pub(crate) node: u64,
    /// By partition; 0 where it is not known.
    pub(crate) leaders: Vec<u64>,
    /// Replicas that a partition should have.
    pub(crate) replication: u32,
}

/// A connection on which one request is made at a time.
#[derive(Debug)]
pub(crate) struct Control {
    stream: TcpStream,
    buffer: FrameBuffer,
    correlation: u64,
}

impl Control {
    /// Connects and says hello.
    pub(crate) fn connect(addr: &str) -> Result<(Self, Greeting)> {
        let stream = TcpStream::connect(addr).with_context(|| format!("cannot connect to a node at {addr}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        let mut control = Self { stream, buffer: FrameBuffer::new(), correlation: 0 };
        let mut bytes = Vec::new();
        let client = body::put(&mut bytes, concat!("taskmaster-bench ", env!("CARGO_PKG_VERSION")).as_bytes());
        let version = limits::PROTOCOL_VERSION;
        let hello = Hello { client, bytes, version_min: version, version_max: version, ..Hello::default() };
        let greeting = control.request(Operation::Hello, &hello, |reply| {
            let reply = body::access::<ArchivedHelloReply>(reply)?;
            Ok(Greeting {
                shard: reply.shard.to_native(),
                shard_ports: reply.shard_ports.iter().map(|port| port.to_native()).collect(),
                partition_shards: reply.partition_shards.iter().map(|shard| shard.to_native()).collect(),
                credit_max: reply.credit_max.to_native(),
                server: body::text(&reply.bytes, reply.server)?.to_owned(),
            })
        })?;
        ensure!(!greeting.partition_shards.is_empty(), "the node at {addr} has no partitions");
        Ok((control, greeting))
    }

    /// Subscribes to one queue.
    pub(crate) fn subscribe(&mut self, queue: &str, credit: u32) -> Result<()> {
        let mut bytes = Vec::new();
        let queues = vec![body::put(&mut bytes, queue.as_bytes())];
        let worker = body::put(&mut bytes, b"taskmaster-bench");
        let subscribe = Subscribe { queues, worker, credit, bytes, ..Subscribe::default() };
        self.request(Operation::Subscribe, &subscribe, |_| Ok(()))
    }

    /// Sets the policy of a queue in one partition.
    pub(crate) fn set_policy(&mut self, queue: &str, policy: u16, partition: u16) -> Result<()> {
        let mut body = ConfigureQueue { set: queue_field::POLICY, policy, ..ConfigureQueue::default() };
        body.queue = body::put(&mut body.bytes, queue.as_bytes());
        self.request_of(Operation::ConfigureQueue, Some(PartitionId(partition)), &body, |_| Ok(()))
    }

    /// The node's counters: the sum of every value with each name.
    pub(crate) fn counters<const N: usize>(&mut self, names: [&str; N]) -> Result<[Option<u64>; N]> {
        self.request(Operation::NodeStats, &Empty::default(), |reply| {
            let stats = body::access::<ArchivedNodeStats>(reply)?;
            let mut sums = [None; N];
            for (span, value) in stats.names.iter().zip(stats.values.iter()) {
                let found = body::text(&stats.bytes, *span)?;
                if let Some(at) = names.iter().position(|name| *name == found) {
                    sums[at] = Some(sums[at].unwrap_or(0) + value.to_native());
                }
            }
            Ok(sums)
        })
    }

    /// Who leads which partition.
    pub(crate) fn leaders(&mut self) -> Result<Leaders> {
        self.request(Operation::ClusterMap, &Empty::default(), |reply| {
            let map = body::access::<ArchivedClusterMapReply>(reply)?;
            Ok(Leaders {
                node: map.node.to_native(),
                leaders: map.partitions.iter().map(|partition| partition.leader.to_native()).collect(),
                replication: map.replication.to_native(),
            })
        })
    }

    /// The socket, for the generator. Nothing is buffered, since every answer was awaited.
    pub(crate) fn into_stream(self) -> TcpStream {
        self.stream
    }

    fn request<B: Body, T>(
        &mut self,
        operation: Operation,
        request: &B,
        read: impl FnOnce(&[u8]) -> Result<T>,
    ) -> Result<T> {
        self.request_of(operation, None, request, read)
    }

    fn request_of<B: Body, T>(
        &mut self,
        operation: Operation,
        partition: Option<PartitionId>,
        request: &B,
        read: impl FnOnce(&[u8]) -> Result<T>,
    ) -> Result<T> {
        self.correlation += 1;
        self.buffer.clear();
        frame::encode(&mut self.buffer, Header::request(operation, self.correlation, partition), request);
        self.stream.write_all(&self.buffer)?;
        self.receive().with_context(|| format!("no answer to {operation:?}"))?;
        let Some((reply, _)) = frame::parse(&self.buffer)? else { bail!("the frame was received whole") };
        ensure!(
            reply.header.flags & FLAG_RESPONSE != 0 && reply.header.correlation == self.correlation,
            "expected the answer to {operation:?}, received {:?}",
            reply.header
        );
        let code = Code::from_number(reply.header.code);
        ensure!(code == Code::Ok, "the node refused {operation:?}: {}", refusal_text(code, reply.body));
        read(reply.body)
    }

    fn receive(&mut self) -> Result<()> {
        self.buffer.clear();
        loop {
            let needed = frame::needed(&self.buffer)?;
            let have = self.buffer.len();
            if needed <= have {
                return Ok(());
            }
            self.buffer.resize(needed, 0);
            self.stream.read_exact(&mut self.buffer[have..])?;
        }
    }
}

/// The sentence of a refusal behind its code.
pub(crate) fn refusal_text(code: Code, refusal: &[u8]) -> String {
    match body::access::<ArchivedRefusal>(refusal).and_then(|r| body::text(&r.bytes, r.message)) {
        Ok(sentence) => format!("{code}: {sentence}"),
        Err(_) => code.to_string(),
    }
}

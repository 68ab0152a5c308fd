//! The hello exchange, and the node's counters.

use std::rc::Rc;

use taskmaster_engine::Stats;
use taskmaster_net::connection::Connection;
use taskmaster_protocol::body::{self, ArchivedHello, HelloReply, NodeStats, feature};
use taskmaster_protocol::frame::{self, Header};
use taskmaster_protocol::{Code, FrameBuffer, limits};

use super::{ShardLoop, now_us};

/// What clients learn of the node.
#[derive(Clone, Debug)]
pub(crate) struct NodeMap {
    /// Identity of the data directory.
    pub(crate) node: u128,
    /// Own port of each shard.
    pub(crate) shard_ports: Vec<u16>,
    /// Owning shard of each partition.
    pub(crate) partition_shards: Vec<u16>,
}

/// Most queues whose shares are told.
const SHARES_MAX: usize = 1_000;

impl ShardLoop {
    pub(super) fn hello(
        &self,
        connection: &Rc<Connection>,
        header: &Header,
        body: &[u8],
    ) -> Result<(), (Code, String)> {
        let hello = body::access::<ArchivedHello>(body).map_err(|error| (Code::Malformed, error.to_string()))?;
        let version = limits::PROTOCOL_VERSION;
        if !(hello.version_min..=hello.version_max).contains(&version) {
            let message = format!(
                "protocol versions {} to {} are not spoken here: use a client for version {version}",
                hello.version_min, hello.version_max
            );
            return Err((Code::UnsupportedVersion, message));
        }
        let mut bytes = Vec::new();
        let server = body::put(&mut bytes, concat!("taskmaster ", env!("CARGO_PKG_VERSION")).as_bytes());
        let [hi, lo] = [self.map.node >> 64, self.map.node & u128::from(u64::MAX)];
        let reply = HelloReply {
            features: hello.features.to_native() & feature::USAGE,
            server_time_us: now_us(),
            node: [hi, lo].map(|half| u64::try_from(half).expect("a half has 64 bits")),
            body_bytes_max: limit(limits::BODY_BYTES_MAX),
            payload_bytes_max: limit(limits::PAYLOAD_BYTES_MAX),
            rows_max: limit(limits::ROWS_MAX),
            credit_max: limits::CREDIT_MAX,
            shard_ports: self.map.shard_ports.clone(),
            partition_shards: self.map.partition_shards.clone(),
            server,
            bytes,
            shard: u16::try_from(self.number).expect("shards are few"),
            version,
        };
        let mut frames = FrameBuffer::new();
        frame::encode(&mut frames, header.response(Code::Ok), &reply);
        connection.push(&mut frames);
        connection.flush();
        connection.greeted.set(true);
        Ok(())
    }

    /// This shard's counters; those of the process come from shard 0 only, so that sums are right.
    pub(super) fn node_stats(&self) -> NodeStats {
        let engine = self.shard.borrow().stats();
        let wal = self.wal.stats();
        let mut pairs = vec![
            ("submitted", engine.submitted),
            ("assigned", engine.assigned),
            ("completed", engine.completed),
            ("memoised", engine.memoised),
            ("failed_attempts", engine.failed_attempts),
            ("overloaded", engine.overloaded),
            ("entries", engine.entries),
            ("tasks", engine.tasks),
            ("unfinished", engine.unfinished),
            ("replicas", engine.replicas),
            ("leaders", engine.leaders),
            ("raft_log_bytes", engine.log_bytes),
            ("memory_bytes", engine.memory_bytes),
            ("blob_bytes", engine.blob_bytes),
            ("wal_flushes", wal.flushes),
            ("wal_bytes", wal.bytes_written),
            ("wal_records", wal.records),
            ("wal_record_bytes", wal.record_bytes),
            ("snapshots", self.snapshots.get()),
            ("connections", self.connections.borrow().len() as u64),
            ("shards", 1),
        ];
        pairs.extend(restarts(&engine));
        if let Some(peers) = &self.peers {
            let peers = peers.stats();
            pairs.extend([
                ("peer_batches_sent", peers.batches_sent),
                ("peer_bytes_sent", peers.bytes_sent),
                ("peer_batches_received", peers.batches_received),
                ("peer_bytes_received", peers.bytes_received),
                ("peer_batches_dropped", peers.batches_dropped),
                ("peer_losses", peers.losses),
            ]);
        }
        if let Some(checkpoints) = &self.checkpoints {
            pairs.extend([
                ("checkpoint_waiting", engine.checkpoint_waiting),
                ("checkpoint_waiting_bytes", engine.checkpoint_waiting_bytes),
                ("spilled_bytes", engine.demoted_bytes),
                ("checkpoint_lost", engine.checkpoint_lost),
            ]);
            if self.number == 0 {
                pairs.extend(checkpoints.port.status.counters());
            }
        }
        if let Some(events) = &self.events {
            pairs.extend([("events_waiting", engine.events_waiting), ("events_lost", engine.events_lost)]);
            if self.number == 0 {
                pairs.extend(events.port.status.counters());
            }
        }
        if let Some(memo) = self.memo.as_ref().filter(|_| self.number == 0) {
            pairs.extend(memo.port.status.counters());
        }
        if self.number == 0 {
            pairs.push(("rss_bytes", rss_bytes().unwrap_or(0)));
        }
        let mut stats = NodeStats::default();
        for (name, value) in pairs {
            stats.names.push(body::put(&mut stats.bytes, name.as_bytes()));
            stats.values.push(value);
        }
        self.put_named(&mut stats);
        stats
    }

    /// What queues that share workers had of them, and hold; and the counters of streams.
    fn put_named(&self, stats: &mut NodeStats) {
        for (namespace, queue, had_us, holds) in self.shard.borrow().shares().take(SHARES_MAX) {
            for (what, value) in [("place_us", had_us), ("places", holds)] {
                let name = format!("{what}/{namespace}/{queue}");
                stats.names.push(body::put(&mut stats.bytes, name.as_bytes()));
                stats.values.push(value);
            }
        }
        for (name, value) in self.streams.iter().flat_map(|streams| streams.counters()) {
            stats.names.push(body::put(&mut stats.bytes, name.as_bytes()));
            stats.values.push(value);
        }
    }
}

/// What became of attempts of restartable tasks, of measured ones, and of tasks that need much of a worker.
const fn restarts(stats: &Stats) -> [(&'static str, u64); 10] {
    [
        ("second_attempts", stats.second_attempts),
        ("second_attempts_won", stats.second_attempts_won),
        ("preempted_attempts", stats.preempted_attempts),
        ("given_up_attempts", stats.given_up_attempts),
        ("wasted_attempt_us", stats.wasted_us),
        ("measured_attempts", stats.measured),
        ("held_tasks", stats.held),
        ("contended_tasks", stats.contended),
        ("reservations", stats.reservations),
        ("reserved_workers", stats.reserved),
    ]
}

fn limit(value: usize) -> u32 {
    u32::try_from(value).expect("protocol limits fit 32 bits")
}

/// Resident memory of this process, in bytes.
fn rss_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

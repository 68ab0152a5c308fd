//! A node within this process: its data directory, who it is to others, and one thread per shard.

mod engine;
mod peers;

use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::Context;
use glommio::ExecutorJoinHandle;
use taskmaster_connect::kafka::Status;
use taskmaster_net::{listener, mesh};
use taskmaster_storage::datadir::{DataDir, Meta};
use taskmaster_storage::wal;

use crate::config::{Config, ShardPorts};
use crate::events::{self, Events};
use crate::foreign::{Foreign, Port, Restorer};
use crate::shard_loop::{NodeMap, Start, spawn};
use crate::streams::Streams;
use crate::{memo, placement, reachable};

/// Configuration of a node.
pub(crate) type NodeConfig = Config;

/// Bytes that may wait for one shard's log: more than the engine admits, so that the log never refuses.
const UNFLUSHED_BYTES_MAX: usize = 512 << 20;
/// While the log is being written, a block that is shorter waits for company: what a write costs hardly depends on its length.
const OVERLAP_BYTES_MIN: usize = 8 << 10;

/// Starts nodes.
pub(crate) struct Node;

/// A running node. Dropping it stops the node without waiting for it.
pub(crate) struct NodeHandle {
    address: SocketAddr,
    shards: Vec<(UnixStream, ExecutorJoinHandle<()>)>,
    foreign: Option<Foreign>,
    events: Option<Events>,
    streams: Option<Streams>,
    cluster: u128,
}

impl Node {
    /// Starts a node and returns when it takes connections.
    ///
    /// # Errors
    /// What keeps it from starting, and what to do.
    pub(crate) fn start(config: NodeConfig) -> anyhow::Result<NodeHandle> {
        let dir = open(&config)?;
        let (memo_ports, cache) = memo::start(&config, shards_of(&dir))?;
        let (foreign, ports) = Foreign::start(&config, shards_of(&dir), cache)?.unzip();
        let (events, event_ports) = Events::start(&config, shards_of(&dir), dir.meta().id)?.unzip();
        let status = (!config.streams.is_empty()).then(Arc::<Status>::default);
        let ports = (ports.unwrap_or_default(), event_ports.unwrap_or_default(), memo_ports);
        let mut handle = Self::start_on(&config, dir, ports, status.clone())?;
        (handle.foreign, handle.events) = (foreign, events);
        if let Some(status) = status {
            handle.streams = Streams::start(&config, reachable::from_here(handle.address), status)?;
        }
        Ok(handle)
    }

    /// Starts a node that takes final tasks from the store.
    ///
    /// # Errors
    /// What keeps it from starting, and what to do.
    pub(crate) fn start_restoring(config: NodeConfig) -> anyhow::Result<(NodeHandle, Restorer)> {
        let dir = open(&config)?;
        let (restorer, ports) = Restorer::new(&config, shards_of(&dir))?;
        Ok((Self::start_on(&config, dir, (ports, Vec::new(), Vec::new()), None)?, restorer))
    }

    fn start_on(
        config: &NodeConfig,
        dir: DataDir,
        (store_ports, event_ports, memo_ports): (Vec<Port>, Vec<events::Port>, Vec<memo::Port>),
        streams: Option<Arc<Status>>,
    ) -> anyhow::Result<NodeHandle> {
        let dir = Arc::new(dir);
        let shards = shards_of(&dir);
        let (address, shard_ports) = ports(config, shards)?;
        let partitions = config.node.partitions;
        let partition_shards: Vec<u16> =
            (0..partitions).map(|number| number % u16::try_from(shards).expect("shards are few")).collect();
        let info = peers::describe(config, dir.meta().id, &shard_ports)?;
        let neighbours = peers::Neighbours::new(config, &info)?;
        let map = Arc::new(NodeMap { node: dir.meta().id, shard_ports, partition_shards });
        let open_connections = Arc::new(AtomicU32::new(0));
        let (mut store_ports, mut event_ports) = (store_ports.into_iter(), event_ports.into_iter());
        let mut memo_ports = memo_ports.into_iter();
        let cpus = placement::cpus_for(shards);
        let (started, reports) = mpsc::channel();
        let mut running = Vec::new();
        for (number, ends) in mesh::rings(shards).into_iter().enumerate() {
            let (stop, stopped) = UnixStream::pair().context("cannot make a socket pair")?;
            let start = Start {
                number,
                cpu: cpus.get(number).copied(),
                dir: Arc::clone(&dir),
                engine: engine::shard_config(config, &info, dir.meta().id, number),
                peers: neighbours.as_ref().map(|neighbours| neighbours.start(number)),
                wal: log(config),
                snapshot_after_bytes: config.wal.snapshot_after.0,
                connections_max: config.limits.max_connections,
                open_connections: Arc::clone(&open_connections),
                ends,
                spill_bytes_max: config.spill_bytes_max().map(|bytes| bytes / shards as u64),
                port: store_ports.next(),
                events: event_ports.next(),
                streams: streams.clone().filter(|_| number == 0),
                memo: memo_ports.next(),
                map: Arc::clone(&map),
                address,
                stop: stopped,
                started: started.clone(),
            };
            running.push((stop, spawn(start)?));
        }
        drop(started);
        for _ in 0..shards {
            reports.recv().context("a shard ended before it had started")??;
        }
        let cluster = dir.meta().id.max(1);
        Ok(NodeHandle { address, shards: running, foreign: None, events: None, streams: None, cluster })
    }
}

impl NodeHandle {
    /// The address that clients connect to.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.address
    }

    /// The id of the cluster that a node which stands alone founded.
    pub(crate) fn cluster(&self) -> u128 {
        self.cluster
    }

    /// Drains and stops the node; returns when all is durable.
    ///
    /// # Errors
    /// What could not be made durable.
    pub(crate) fn shutdown(self) -> anyhow::Result<()> {
        if let Some(streams) = self.streams {
            streams.end();
        }
        for (stop, _) in &self.shards {
            // A shard whose end is closed has stopped already.
            let _ = (&*stop).write_all(b"s");
        }
        for (_, thread) in self.shards {
            thread.join().map_err(|error| anyhow::anyhow!("a shard did not stop cleanly: {error}"))?;
        }
        if let Some(foreign) = self.foreign {
            foreign.end();
        }
        if let Some(events) = self.events {
            events.end();
        }
        Ok(())
    }
}

fn shards_of(dir: &DataDir) -> usize {
    usize::try_from(dir.meta().shards).expect("shards are few")
}

/// The data directory; a directory made before decides how many shards there are unless the configuration names a number.
fn open(config: &Config) -> anyhow::Result<DataDir> {
    let root = &config.node.data_dir;
    let known = DataDir::peek(root)?;
    let shards = match known {
        Some(meta) if config.node.shards == 0 => meta.shards,
        _ => u32::try_from(config.shard_count()).expect("shards are few"),
    };
    let wanted = Meta { id: random_id(), shards, partitions: u32::from(config.node.partitions) };
    Ok(DataDir::open_or_create(root, &wanted)?)
}

/// Randomness from the standard library's per-process keys, which come from the system.
pub(crate) fn random_id() -> u128 {
    let half = || u128::from(RandomState::new().hash_one(std::process::id()));
    (half() << 64) | half()
}

/// How long a port may still be in use at the start: the kernel closes the rings of a process that was killed, and with
/// them its listening sockets, only some time after the process is gone.
const PORT_PATIENCE: Duration = Duration::from_secs(5);
/// Pause between two tries.
const PORT_PAUSE: Duration = Duration::from_millis(10);

fn reserve_within(address: SocketAddr, longest: Duration) -> std::io::Result<SocketAddr> {
    let until = Instant::now() + longest;
    loop {
        match listener::reserve(address) {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && Instant::now() < until => {
                std::thread::sleep(PORT_PAUSE);
            }
            reserved => return reserved,
        }
    }
}

/// The shared address with its real port, and each shard's own port.
fn ports(config: &Config, shards: usize) -> anyhow::Result<(SocketAddr, Vec<u16>)> {
    let reserve = |address: SocketAddr| {
        reserve_within(address, PORT_PATIENCE).with_context(|| {
            format!("cannot listen on {address}: stop what uses the port, or choose another by listen.address")
        })
    };
    let address = reserve(config.listen.address)?;
    if shards == 1 {
        return Ok((address, vec![address.port()]));
    }
    let follow = config.listen.shard_ports == ShardPorts::Follow && config.listen.address.port() != 0;
    let own = |shard: usize| {
        let offset = u16::try_from(shard + 1).expect("shards are few");
        let port = if follow { address.port() + offset } else { 0 };
        Ok(reserve(SocketAddr::new(address.ip(), port))?.port())
    };
    let ports: anyhow::Result<Vec<u16>> = (0..shards).map(own).collect();
    Ok((address, ports?))
}

fn log(config: &Config) -> wal::Config {
    wal::Config {
        segment_bytes: config.wal.segment_size.0,
        writes_in_flight_max: usize::from(config.wal.inflight_writes),
        overlap_bytes_min: OVERLAP_BYTES_MIN,
        segments_ahead: usize::from(config.wal.segments_ahead),
        unflushed_bytes_max: UNFLUSHED_BYTES_MAX,
        ..wal::Config::default()
    }
}

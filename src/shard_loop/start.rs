//! A shard's start and end.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::mpsc::Sender;
use std::time::Duration;

use anyhow::Context;
use futures_lite::AsyncReadExt;
use glommio::net::UnixStream;
use glommio::timer::sleep;
use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement, PoolPlacement};
use taskmaster_connect::kafka::Status;
use taskmaster_engine::{Config, Effects, Input, PeerAddr};
use taskmaster_net::listener::Listener;
use taskmaster_net::mesh::Ends;
use taskmaster_net::peers::{Identity, PeerHandler, Peers, Tls};
use taskmaster_net::wake::Bell;
use taskmaster_storage::datadir::DataDir;
use taskmaster_storage::wal;
use taskmaster_storage::wal::driver::Wal;

use super::checkpoints::Checkpoints;
use super::events::Events;
use super::gossip::Gossiper;
use super::memo::Memo;
use super::recovery::Recovered;
use super::spill::Spill;
use super::{GossipSetting, Message, NodeMap, ShardLoop, fatal, now_us};
use crate::foreign::Port;
use crate::memo;

/// Memory registered with each of an executor's three rings, in bytes: it counts against the memlock limit.
const RING_BYTES: usize = 1 << 20;
/// glommio 0.9 parks with runnable tasks when its preemption timer fires between its last look at the rings and its task
/// queues, and then sleeps until some other event. So it must not fire: every task here ends its turn by itself, a reader
/// after one buffer, a snapshot after one chunk. For the same reason no task queue has a latency of its own.
const PREEMPT_NEVER: Duration = Duration::from_secs(1 << 20);
/// How long running tasks may take to finish when the node drains.
const DRAIN_MAX: Duration = Duration::from_secs(10);
/// How long the groups that are led here may take to get other leaders.
const HAND_OVER_MAX: Duration = Duration::from_secs(2);
const DRAIN_POLL: Duration = Duration::from_millis(5);
/// How often a starting node looks whether it serves.
const SERVING_POLL: Duration = Duration::from_millis(1);

/// All that a shard's thread needs.
pub(crate) struct Start {
    pub(crate) number: usize,
    /// CPU to be pinned to, if known.
    pub(crate) cpu: Option<usize>,
    pub(crate) dir: Arc<DataDir>,
    pub(crate) engine: Config,
    /// Where there may be other nodes.
    pub(crate) peers: Option<PeerStart>,
    pub(crate) wal: wal::Config,
    pub(crate) snapshot_after_bytes: u64,
    pub(crate) connections_max: u32,
    pub(crate) open_connections: Arc<AtomicU32>,
    pub(crate) ends: Ends<Message>,
    /// What may leave memory while it waits for the database, in bytes, if anything may.
    pub(crate) spill_bytes_max: Option<u64>,
    /// The way to the foreign thread, where there is one.
    pub(crate) port: Option<Port>,
    /// The way to the thread that sends events, where there is one.
    pub(crate) events: Option<crate::events::Port>,
    /// How the node's streams are doing: on shard 0, where there are some.
    pub(crate) streams: Option<Arc<Status>>,
    /// The way to the server that remembers results, where there is one.
    pub(crate) memo: Option<memo::Port>,
    pub(crate) map: Arc<NodeMap>,
    /// Shared by all shards.
    pub(crate) address: SocketAddr,
    /// A byte, or the end of the stream, asks the shard to drain and stop.
    pub(crate) stop: StdUnixStream,
    /// Hears once whether the shard recovered and listens.
    pub(crate) started: Sender<anyhow::Result<()>>,
}

/// What a shard needs to talk to other nodes.
pub(crate) struct PeerStart {
    /// Who it is to them.
    pub(crate) identity: Identity,
    /// With it, they are spoken to over TLS.
    pub(crate) tls: Option<Tls>,
    /// Where they connect.
    pub(crate) listen: SocketAddr,
    /// How to find them: on shard 0.
    pub(crate) gossip: Option<GossipSetting>,
}

/// Starts the shard's thread.
///
/// # Errors
/// When the thread or its rings cannot be made.
pub(crate) fn spawn(start: Start) -> anyhow::Result<ExecutorJoinHandle<()>> {
    let placement = start.cpu.map_or(Placement::Unbound, Placement::Fixed);
    let name = format!("shard-{}", start.number);
    LocalExecutorBuilder::new(placement)
        .name(&name)
        .io_memory(RING_BYTES)
        .preempt_timer(PREEMPT_NEVER)
        .blocking_thread_pool_placement(PoolPlacement::Unbound(1))
        .spawn(move || async move {
            let (number, started) = (start.number, start.started.clone());
            if let Err(error) = run(start).await {
                // Nobody listens any more once the start was reported: then this is the only place to say it.
                if started.send(Err(error)).is_err() {
                    fatal(number, "the shard ended early");
                }
            }
        })
        .map_err(|error| anyhow::anyhow!("{name} cannot start: {error}"))
}

async fn run(mut start: Start) -> anyhow::Result<()> {
    let wakes = take_wakes(&mut start);
    let number = u32::try_from(start.number).expect("shards are few");
    let own = PeerAddr { node: start.engine.node.id, shard: start.engine.number };
    let (stands_alone, seed) = (start.engine.found != 0, start.engine.seed);
    let dir = start.dir.shard_dir(number);
    let spill =
        start.spill_bytes_max.map(|bytes_max| Spill::open(&dir, bytes_max, &start.wal)).transpose()?.map(Rc::new);
    let Recovered { shard, end, term, log_bytes } =
        super::recovery::recover(&start.dir, start.engine, spill.as_deref())?;
    let identity = start.dir.identity(number);
    let opening_block = end.last_seq + 1;
    let wal = Wal::open(&start.dir.wal_dir(number), start.wal, identity, term, end).await?;
    let (mesh, rings) = start.ends.connect().await;
    let gossip = start.peers.as_ref().and_then(|peers| peers.gossip.as_ref());
    let shard_loop = Rc::new(ShardLoop {
        number: start.number,
        own,
        shard: RefCell::new(shard),
        effects: RefCell::new(Effects::default()),
        wal,
        peers: start.peers.as_ref().map(|peers| Peers::new(peers.identity.clone(), peers.tls.clone())),
        gossip: gossip.map(|setting| Gossiper::new(setting, term, seed)).transpose()?,
        streams: start.streams.take(),
        checkpoints: start.port.take().map(|port| Rc::new(Checkpoints::new(port))),
        spill,
        events: start.events.take().map(|port| Rc::new(Events::new(port))),
        memo: start.memo.take().map(|port| Rc::new(Memo::new(port))),
        blocks: RefCell::new(VecDeque::new()),
        connections: RefCell::new(HashMap::new()),
        last_connection: Cell::new(0),
        mesh,
        map: start.map,
        open_connections: start.open_connections,
        turn: Bell::default(),
        earlier: Bell::default(),
        sleeping_until_us: Cell::new(u64::MAX),
        mesh_full: Bell::default(),
        disk_full: Cell::new(false),
        closing: Cell::new(false),
        snapshot_due: Bell::default(),
        snapshot_after_bytes: start.snapshot_after_bytes,
        log_bytes_found: log_bytes,
        snapshot_at_bytes: Cell::new(0),
        snapshots: Cell::new(0),
    });
    let logging = glommio::spawn_local(log_task(Rc::clone(&shard_loop)));
    // Until then a late write of a killed predecessor could still count.
    shard_loop.wal.wait_durable(opening_block).await?;
    let listeners = client_listeners(&shard_loop, start.address)?;
    for (_, ring) in rings {
        glommio::spawn_local(Rc::clone(&shard_loop).mesh_task(ring)).detach();
    }
    start_tasks(&shard_loop, &start.dir, identity, term);
    if let Some(peers) = start.peers {
        meet_peers(&shard_loop, peers)?;
    }
    start_ports(&shard_loop, wakes);
    shard_loop.perform();
    take_clients(&shard_loop, listeners, start.connections_max, stands_alone).await;
    // The receiver waits for every shard's report before it goes on.
    let _ = start.started.send(Ok(()));
    drop(start.started);
    wait_for_stop(start.stop).await;
    drain(&shard_loop).await;
    logging.await;
    shard_loop.save_model(&start.dir.shard_dir(number)).await;
    for connection in shard_loop.connections.borrow().values() {
        connection.close();
    }
    Ok(())
}

/// What tells of answers from the threads beside the shards: of the database, of events, of remembered results.
fn take_wakes(start: &mut Start) -> [Option<StdUnixStream>; 3] {
    [
        start.port.as_mut().and_then(|port| port.wake.take()),
        start.events.as_mut().and_then(|port| port.wake.take()),
        start.memo.as_mut().and_then(|port| port.wake.take()),
    ]
}

/// What a shard has to do with the threads beside it, and with what waits for them.
fn start_ports(shard_loop: &Rc<ShardLoop>, [checkpoints, events, memo]: [Option<StdUnixStream>; 3]) {
    shard_loop.start_checkpoints(checkpoints);
    shard_loop.start_spill();
    shard_loop.start_events(events);
    shard_loop.start_memo(memo);
}

/// What a shard does beside serving connections and links.
fn start_tasks(shard_loop: &Rc<ShardLoop>, dir: &DataDir, identity: u64, term: u32) {
    glommio::spawn_local(Rc::clone(shard_loop).turn_task()).detach();
    glommio::spawn_local(Rc::clone(shard_loop).timer_task()).detach();
    glommio::spawn_local(Rc::clone(shard_loop).mesh_retry_task()).detach();
    let own = dir.shard_dir(u32::try_from(shard_loop.number).expect("shards are few"));
    shard_loop.restore_model(&own);
    glommio::spawn_local(Rc::clone(shard_loop).model_task(own.clone())).detach();
    glommio::spawn_local(Rc::clone(shard_loop).snapshot_task(own, identity, term)).detach();
    if shard_loop.number == 0 {
        glommio::spawn_local(Rc::clone(shard_loop).machine_task(dir.root().to_path_buf())).detach();
    }
}

/// Accepts clients, once what the shard leads alone is served: a node that stands alone elects itself, which takes a write.
async fn take_clients(shard_loop: &Rc<ShardLoop>, listeners: Vec<Listener>, connections_max: u32, stands_alone: bool) {
    while stands_alone && !shard_loop.shard.borrow().is_serving() {
        sleep(SERVING_POLL).await;
    }
    for listener in listeners {
        glommio::spawn_local(Rc::clone(shard_loop).accept_task(listener, connections_max)).detach();
    }
}

/// The listener that all shards share, and this shard's own.
fn client_listeners(shard_loop: &ShardLoop, shared: SocketAddr) -> anyhow::Result<Vec<Listener>> {
    let mut listeners = vec![listen(shared)?];
    let own = SocketAddr::new(shared.ip(), shard_loop.map.shard_ports[shard_loop.number]);
    if own != shared {
        listeners.push(listen(own)?);
    }
    Ok(listeners)
}

/// Listens to other nodes and, on shard 0, looks for them.
fn meet_peers(shard_loop: &Rc<ShardLoop>, start: PeerStart) -> anyhow::Result<()> {
    let Some(peers) = &shard_loop.peers else { return Ok(()) };
    let listener = listen(start.listen)?;
    peers.start(Rc::clone(shard_loop) as Rc<dyn PeerHandler>);
    glommio::spawn_local(Rc::clone(peers).accept(listener)).detach();
    if let Some(setting) = start.gossip {
        shard_loop.start_gossip(setting);
    }
    Ok(())
}

fn listen(address: SocketAddr) -> anyhow::Result<Listener> {
    Listener::bind(address).with_context(|| format!("cannot listen on {address}"))
}

async fn log_task(shard_loop: Rc<ShardLoop>) {
    let wal = Rc::clone(&shard_loop.wal);
    let number = shard_loop.number;
    if let Err(error) = wal.run(move |block| shard_loop.on_durable(block)).await {
        fatal(number, &error.to_string());
    }
}

#[expect(unsafe_code, reason = "glommio takes over a socket only by its raw descriptor")]
async fn wait_for_stop(stop: StdUnixStream) {
    // SAFETY: the descriptor was given up by its only owner in this expression.
    let mut stop = unsafe { UnixStream::from_raw_fd(stop.into_raw_fd()) };
    // A byte, the end of the stream and an error all mean that the node is to stop.
    let _ = stop.read(&mut [0u8; 1]).await;
}

/// Lets running tasks finish and everything admitted become durable.
async fn drain(shard_loop: &ShardLoop) {
    shard_loop.input(Input::Drain);
    shard_loop.perform();
    let until_us = now_us() + u64::try_from(DRAIN_MAX.as_micros()).expect("a constant");
    while shard_loop.shard.borrow().leased() > 0 && now_us() < until_us {
        sleep(DRAIN_POLL).await;
    }
    let until_us = now_us() + u64::try_from(HAND_OVER_MAX.as_micros()).expect("a constant");
    while shard_loop.shard.borrow().is_handing_over() && now_us() < until_us {
        sleep(DRAIN_POLL).await;
    }
    while shard_loop.wal.unflushed_bytes() > 0 {
        sleep(DRAIN_POLL).await;
    }
    // What became durable last is answered.
    shard_loop.perform();
    shard_loop.leave_gossip();
    shard_loop.closing.set(true);
    if let Some(peers) = &shard_loop.peers {
        peers.stop();
    }
    shard_loop.wal.close();
}

//! The shard map, one connection per shard, and calls that survive the loss of a connection.
//!
//! Invariants: at most one connection per shard; a call is repeated (with the resend flag and the same ids) only until
//! its time is over; a refusal is repeated only if the server said when.
//!
//! It does not spread over several nodes: the shards of the node that answered are the cluster.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use taskmaster_protocol::frame::FLAG_RESEND;
use taskmaster_protocol::{Body, Code, Header, Operation, PartitionId};
use tokio::net::lookup_host;
use tokio::time::Instant;

use crate::error::Error;
use crate::memory::TestServer;
use crate::routing::{IdMaker, random};
use crate::wire::{Connection, Message, Options, Pushes, ServerInfo};

/// How long and how often to try.
#[derive(Clone, Debug)]
pub(crate) struct Patience {
    /// Longest time of one call, repetitions included.
    pub(crate) call: Duration,
    /// Longest wait for one answer; then the connection is given up.
    pub(crate) answer: Duration,
    /// First wait between connection attempts.
    pub(crate) backoff: Duration,
    /// Longest wait between connection attempts.
    pub(crate) backoff_max: Duration,
}

/// Where connections come from.
pub(crate) enum Connector {
    /// TCP addresses, `host:port`, tried in order.
    Tcp(Vec<String>),
    /// A server in this process.
    Memory(TestServer),
}

/// The map of one node as last learnt, and its connections.
pub(crate) struct Topology {
    pub(crate) info: ServerInfo,
    /// Where the hello came from; shard ports are on the same host. `None` in memory.
    address: Option<SocketAddr>,
    links: Vec<Link>,
}

impl Topology {
    pub(crate) fn shards(&self) -> u16 {
        u16::try_from(self.links.len()).expect("a hello names at most 65,535 ports")
    }

    pub(crate) fn partitions(&self) -> u16 {
        u16::try_from(self.info.partition_shards.len()).expect("checked at hello")
    }

    fn shard_of(&self, partition: PartitionId) -> Result<u16, Error> {
        let map = &self.info.partition_shards;
        map.get(usize::from(partition.0)).copied().ok_or_else(|| Error::no_partition(partition, map.len()))
    }
}

#[derive(Default)]
struct Link {
    connection: Mutex<Option<Arc<Connection>>>,
    opening: tokio::sync::Mutex<()>,
}

impl Link {
    fn live(&self) -> Option<Arc<Connection>> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        if connection.as_ref().is_some_and(|connection| connection.is_ended()) {
            *connection = None;
        }
        connection.clone()
    }

    fn set(&self, connection: Arc<Connection>) {
        *self.connection.lock().unwrap_or_else(PoisonError::into_inner) = Some(connection);
    }
}

/// A node as the client sees it.
pub(crate) struct Cluster {
    connector: Connector,
    options: Options,
    pub(crate) patience: Patience,
    pub(crate) ids: IdMaker,
    topology: RwLock<Arc<Topology>>,
    turn: AtomicUsize,
}

impl Cluster {
    /// Connects to the first address that answers and learns the map.
    pub(crate) async fn connect(connector: Connector, options: Options, patience: Patience) -> Result<Self, Error> {
        let (connection, _, address) = open_seed(&connector, &options).await?;
        let topology = RwLock::new(Arc::new(new_topology(connection, address)));
        Ok(Self { connector, options, patience, ids: IdMaker::new(), topology, turn: AtomicUsize::new(0) })
    }

    pub(crate) fn topology(&self) -> Arc<Topology> {
        Arc::clone(&self.topology.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn partitions(&self) -> u16 {
        self.topology().partitions()
    }

    /// Sends a request to the owner of `partition` (or to any shard) until it is answered or its time is over.
    pub(crate) async fn call<B: Body + Sync>(
        &self,
        operation: Operation,
        partition: Option<PartitionId>,
        body: &B,
    ) -> Result<Message, Error> {
        self.call_for(operation, partition, body, Duration::ZERO).await
    }

    /// Like [`Cluster::call`] for a request that the server itself may hold for `held`.
    pub(crate) async fn call_for<B: Body + Sync>(
        &self,
        operation: Operation,
        partition: Option<PartitionId>,
        body: &B,
        held: Duration,
    ) -> Result<Message, Error> {
        let shard = |topology: &Topology| match partition {
            Some(partition) => topology.shard_of(partition),
            None => Ok(u16::try_from(self.turn.fetch_add(1, Ordering::Relaxed) % usize::from(topology.shards()))
                .expect("below a u16")),
        };
        self.call_shard(operation, partition, body, held, shard).await
    }

    /// Like [`Cluster::call`], to the shard that `choose` names at each attempt.
    pub(crate) async fn call_shard<B: Body + Sync>(
        &self,
        operation: Operation,
        partition: Option<PartitionId>,
        body: &B,
        held: Duration,
        choose: impl Fn(&Topology) -> Result<u16, Error>,
    ) -> Result<Message, Error> {
        let allowed = self.patience.call + held;
        let give_up = Instant::now() + allowed;
        let mut header = Header::request(operation, 0, partition);
        let mut wait = Backoff::new(&self.patience);
        loop {
            let topology = self.topology();
            let shard = choose(&topology)?;
            let error = match self.attempt(&topology, shard, header, body, held, give_up).await {
                Ok(message) => match message.accepted() {
                    Ok(message) => return Ok(message),
                    Err(error) => error,
                },
                Err(error) => error,
            };
            let pause = match &error {
                Error::Lost { .. } | Error::Timeout { .. } => {
                    header.flags |= FLAG_RESEND;
                    wait.next()
                }
                Error::Connect { .. } => wait.next(),
                Error::Refused(refusal) if refusal.is_temporary() => {
                    refusal.retry_after.map_or_else(|| wait.next(), jittered)
                }
                Error::Refused(refusal) if refusal.code == Code::WrongPartition && wait.is_fresh() => {
                    self.learn().await?;
                    wait.next()
                }
                _ => return Err(error),
            };
            if Instant::now() + pause >= give_up {
                return Err(match error {
                    Error::Timeout { .. } => Error::Timeout { after: allowed },
                    error => error,
                });
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn attempt<B: Body + Sync>(
        &self,
        topology: &Arc<Topology>,
        shard: u16,
        header: Header,
        body: &B,
        held: Duration,
        give_up: Instant,
    ) -> Result<Message, Error> {
        let unanswered = Error::Timeout { after: self.patience.answer };
        let Ok(linked) = tokio::time::timeout_at(give_up, self.link(topology, shard)).await else {
            return Err(unanswered);
        };
        let connection = linked?;
        let until = give_up.min(Instant::now() + self.patience.answer + held);
        match tokio::time::timeout_at(until, connection.request(header, body)).await {
            Ok(result) => result,
            Err(_) => {
                // A connection that is silent this long may be half open: whoever else waits on it tries again elsewhere.
                connection.end("no answer in time");
                Err(unanswered)
            }
        }
    }

    /// The connection of a shard, opened if need be.
    async fn link(&self, topology: &Arc<Topology>, shard: u16) -> Result<Arc<Connection>, Error> {
        let link = &topology.links[usize::from(shard)];
        if let Some(connection) = link.live() {
            return Ok(connection);
        }
        let _opening = link.opening.lock().await;
        if let Some(connection) = link.live() {
            return Ok(connection);
        }
        let (connection, _) = match self.open_shard(topology, shard).await {
            Ok(opened) => opened,
            // The shard's own port may be hidden (a port mapping, a restart): every port takes every request.
            Err(_) => {
                let (connection, pushes, address) = open_seed(&self.connector, &self.options).await?;
                self.note(&connection, address);
                (connection, pushes)
            }
        };
        let connection = Arc::new(connection);
        link.set(Arc::clone(&connection));
        Ok(connection)
    }

    /// A new connection to a shard's own port, for requests or for a worker's subscription.
    pub(crate) async fn open_shard(&self, topology: &Topology, shard: u16) -> Result<(Connection, Pushes), Error> {
        let opened = match (&self.connector, topology.address) {
            (Connector::Memory(server), _) => server.open(shard, &self.options).await?,
            (Connector::Tcp(_), Some(mut address)) => {
                address.set_port(topology.info.shard_ports[usize::from(shard)]);
                Connection::connect(&address.to_string(), &self.options).await?
            }
            (Connector::Tcp(_), None) => {
                return Err(Error::Connect { address: "(none)".to_owned(), reason: "no address is known".to_owned() });
            }
        };
        self.note(&opened.0, topology.address);
        if opened.0.info().shard == shard {
            return Ok(opened);
        }
        Err(Error::Protocol(format!("shard {}'s port answered for shard {shard}", opened.0.info().shard)))
    }

    /// Learns the map anew from any address.
    pub(crate) async fn learn(&self) -> Result<(), Error> {
        let (connection, _, address) = open_seed(&self.connector, &self.options).await?;
        self.note(&connection, address);
        Ok(())
    }

    /// Takes over the map of a fresh hello, if it differs. Links start anew; running calls keep their old ones.
    fn note(&self, connection: &Connection, address: Option<SocketAddr>) {
        let info = connection.info();
        let mut topology = self.topology.write().unwrap_or_else(PoisonError::into_inner);
        let known = &topology.info;
        let is_same_host = topology.address.map(|known| known.ip()) == address.map(|fresh| fresh.ip());
        if known.partition_shards == info.partition_shards && known.shard_ports == info.shard_ports && is_same_host {
            return;
        }
        tracing::info!(
            shards = info.shard_ports.len(),
            partitions = info.partition_shards.len(),
            "the shard map changed"
        );
        *topology = Arc::new(Topology { info: info.clone(), address, links: links(info) });
    }
}

fn links(info: &ServerInfo) -> Vec<Link> {
    info.shard_ports.iter().map(|_| Link::default()).collect()
}

fn new_topology(connection: Connection, address: Option<SocketAddr>) -> Topology {
    let info = connection.info().clone();
    let links = links(&info);
    links[usize::from(info.shard)].set(Arc::new(connection));
    Topology { info, address, links }
}

async fn open_seed(
    connector: &Connector,
    options: &Options,
) -> Result<(Connection, Pushes, Option<SocketAddr>), Error> {
    let seeds = match connector {
        Connector::Memory(server) => {
            let (connection, pushes) = server.open(0, options).await?;
            return Ok((connection, pushes, None));
        }
        Connector::Tcp(seeds) => seeds,
    };
    let mut last = "no address was given".to_owned();
    for seed in seeds {
        let addresses = match lookup_host(seed).await {
            Ok(addresses) => addresses,
            Err(error) => {
                last = format!("\"{seed}\" is not a reachable host:port ({error})");
                continue;
            }
        };
        for address in addresses {
            match Connection::connect(&address.to_string(), options).await {
                Ok((connection, pushes)) => return Ok((connection, pushes, Some(address))),
                Err(Error::Connect { reason, .. }) => last = reason,
                // Somebody answered: what it said helps more than trying the others.
                Err(error) => return Err(error),
            }
        }
    }
    Err(Error::Connect { address: seeds.join(", "), reason: last })
}

/// Exponential waits with jitter.
pub(crate) struct Backoff {
    next: Duration,
    first: Duration,
    longest: Duration,
}

impl Backoff {
    pub(crate) fn new(patience: &Patience) -> Self {
        Self { next: patience.backoff, first: patience.backoff, longest: patience.backoff_max }
    }

    pub(crate) fn next(&mut self) -> Duration {
        let wait = self.next;
        self.next = (self.next * 2).min(self.longest);
        jittered(wait)
    }

    fn is_fresh(&self) -> bool {
        self.next == self.first
    }
}

/// Between the wait and one and a half times the wait, so that many clients do not come back at once.
pub(crate) fn jittered(wait: Duration) -> Duration {
    let part = u32::try_from(random() % 512).expect("below 512");
    wait + wait * part / 1024
}

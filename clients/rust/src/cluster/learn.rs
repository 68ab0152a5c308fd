//! Learns the map: from a node that is known, else from the addresses that were given.
//!
//! Invariants: one look at a time for all calls of a client, and no more often than [`WAIT`] says; a node that is silent
//! costs [`HEDGE`], then the next one is asked as well.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use taskmaster_protocol::body::{ArchivedClusterMapReply, Empty};
use taskmaster_protocol::{Code, Header, Operation};
use tokio::net::lookup_host;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::topology::{Node, Topology};
use super::{Cluster, Connector, jittered};
use crate::error::Error;
use crate::view::ClusterView;
use crate::wire::{Connection, Options, ServerInfo};

/// Least time between two looks, without jitter.
const WAIT: Duration = Duration::from_millis(10);
/// How long a node may be silent before another one is asked too.
const HEDGE: Duration = Duration::from_millis(60);

/// Looks after which the turns begin anew; a multiple of the usual numbers of nodes and shards.
const LOOKS: usize = 5_040;
/// Each of so many looks believes nobody that a node is gone.
const DOUBT: usize = 4;

/// When the last look was.
#[derive(Default)]
pub(super) struct Looks {
    last: Option<Instant>,
    turn: usize,
}

/// What a node said.
pub(super) struct Said {
    /// `None`: it keeps no map.
    pub(super) map: Option<ClusterView>,
    pub(super) info: ServerInfo,
    /// Where it was reached, if it was by an address that was given.
    pub(super) seen: Option<IpAddr>,
}

impl Cluster {
    /// How often the map was learnt.
    pub(crate) fn looks(&self) -> u64 {
        self.looks.load(Ordering::Acquire)
    }

    /// Learns the map anew, unless that was done since [`Cluster::looks`] was `known`.
    ///
    /// # Errors
    /// When nobody answers.
    pub(crate) async fn learn_since(&self, known: u64) -> Result<(), Error> {
        let mut looking = self.looking.lock().await;
        if self.looks() > known {
            return Ok(());
        }
        if let Some(last) = looking.last {
            sleep_until(last + jittered(WAIT)).await;
        }
        looking.turn = looking.turn.wrapping_add(1) % LOOKS;
        let learnt = self.look(looking.turn).await;
        looking.last = Some(Instant::now());
        learnt
    }

    /// Learns the map anew, unless that was done in the last `age`.
    ///
    /// # Errors
    /// When nobody answers.
    pub(crate) async fn learn_if_older(&self, age: Duration) -> Result<(), Error> {
        let known = self.looks();
        let last = self.looking.lock().await.last;
        if last.is_some_and(|last| last.elapsed() < age) {
            return Ok(());
        }
        self.learn_since(known).await
    }

    async fn look(&self, turn: usize) -> Result<(), Error> {
        let topology = self.topology();
        if topology.has_map
            && (topology.has_cluster() || !self.connector.has_choice())
            && let Ok(said) = self.ask_nodes(&topology, turn).await
        {
            self.note(&said);
            return Ok(());
        }
        self.note(&open_seed(&self.connector, &self.options).await?.said);
        Ok(())
    }

    /// Asks the nodes for the map, one after the other, without waiting long for any.
    async fn ask_nodes(&self, topology: &Arc<Topology>, turn: usize) -> Result<Said, Error> {
        let mut nodes: Vec<Arc<Node>> = topology.nodes().iter().map(Arc::clone).collect();
        let count = nodes.len();
        nodes.rotate_left(turn % count);
        // In turns, since a node cut off from the others knows nothing new. Those that seem gone come last, but not always:
        // that they are gone may be what the others do not know.
        if !turn.is_multiple_of(DOUBT) {
            nodes.sort_by_key(|node| (node.is_slow(), !node.is_alive));
        }
        let connector = self.connector.clone();
        let options = self.options.clone();
        let known = Arc::clone(topology);
        let asking = nodes.into_iter().map(move |node| {
            let (connector, options, known) = (connector.clone(), options.clone(), Arc::clone(&known));
            async move {
                node.set_slow(true);
                let said = ask_node(&node, turn / count, &connector, &options).await;
                // One that refuses connections is known to be gone; only silence costs time.
                node.set_slow(false);
                said.and_then(|said| match &said.map {
                    Some(map) if !known.is_of_same_cluster(map) => {
                        Err(Error::Protocol("another cluster's node is at this address".to_owned()))
                    }
                    _ => Ok(said),
                })
            }
        });
        first(asking, HEDGE).await
    }

    pub(super) fn note(&self, said: &Said) {
        self.topology.send_if_modified(|topology| {
            let is_one_of_several = topology.nodes().len() > 1;
            let fresh = match &said.map {
                // A node that lost its disk belongs to no cluster; the others know better.
                Some(map) if is_one_of_several && map.cluster.is_none() => return false,
                Some(map) => topology.with_map(map, &said.info, said.seen),
                // That it does not tell is no map.
                None if topology.has_map || !topology.differs_from(&said.info, said.seen) => return false,
                None => Topology::of_hello(&said.info, said.seen),
            };
            if topology.is_like(&fresh) {
                return false;
            }
            tracing::debug!(nodes = fresh.nodes().len(), partitions = fresh.partitions(), "the cluster's map changed");
            *topology = Arc::new(fresh);
            true
        });
        self.looks.fetch_add(1, Ordering::AcqRel);
    }
}

/// Asks a node that is known, by turns at each of its shards, which hear of leaders by themselves.
async fn ask_node(node: &Node, turn: usize, connector: &Connector, options: &Options) -> Result<Said, Error> {
    let connection = match node.live(turn) {
        Some(connection) => connection,
        None => {
            let link = node.link(0);
            let _opening = link.opening.lock().await;
            match link.live() {
                Some(connection) => connection,
                None => {
                    let connection = Arc::new(node.open(connector, options, 0).await?.0);
                    link.set(Arc::clone(&connection));
                    connection
                }
            }
        }
    };
    ask(&connection, None, options.connect_timeout).await
}

/// Asks for the map.
async fn ask(connection: &Connection, seen: Option<IpAddr>, longest: Duration) -> Result<Said, Error> {
    let header = Header::request(Operation::ClusterMap, 0, None);
    let reply = match timeout(longest, connection.request(header, &Empty::default())).await {
        Ok(reply) => reply?,
        Err(_) => return Err(Error::timeout(longest)),
    };
    let map = match reply.accepted() {
        Ok(reply) => Some(ClusterView::read(reply.read::<ArchivedClusterMapReply>()?)?),
        Err(Error::Refused(refusal)) if refusal.code == Code::UnknownOperation => None,
        Err(error) => return Err(error),
    };
    Ok(Said { map, info: connection.info().clone(), seen })
}

/// A connection to one of the given addresses, and what was said there.
pub(super) struct Seed {
    pub(super) connection: Connection,
    pub(super) said: Said,
}

/// Opens a connection to the first of the given addresses that answers, and asks for the map.
pub(super) async fn open_seed(connector: &Connector, options: &Options) -> Result<Seed, Error> {
    let addresses = match connector {
        Connector::Memory(server) => {
            let (connection, _) = server.open(0, options).await?;
            let said = ask(&connection, None, options.connect_timeout).await?;
            return Ok(Seed { connection, said });
        }
        Connector::Tcp(addresses) => addresses,
    };
    let has_choice = connector.has_choice();
    let opening: Vec<_> =
        addresses.iter().map(|address| open_address(address.clone(), options.clone(), has_choice)).collect();
    match first(opening.into_iter(), HEDGE * 4).await {
        Err(Error::Connect { reason, .. }) => Err(Error::Connect { address: addresses.join(", "), reason }),
        other => other,
    }
}

/// Opens a connection to one address, or to the first to answer of those that a name stands for.
async fn open_address(address: String, options: Options, has_choice: bool) -> Result<Seed, Error> {
    let failed = |reason: String| Error::Connect { address: address.clone(), reason };
    let resolved: Vec<SocketAddr> = lookup_host(&address)
        .await
        .map_err(|error| failed(format!("\"{address}\" is not a reachable host:port ({error})")))?
        .collect();
    let has_choice = has_choice || resolved.len() > 1;
    let opening = resolved.into_iter().map(move |address| {
        let options = options.clone();
        async move { greet(address, &options, has_choice).await }
    });
    first(opening, HEDGE * 4).await
}

async fn greet(address: SocketAddr, options: &Options, has_choice: bool) -> Result<Seed, Error> {
    let (connection, _) = Connection::connect(&address.to_string(), options).await?;
    let said = match ask(&connection, Some(address.ip()), options.connect_timeout).await {
        // One that drains, say, still answers questions about its tasks.
        Err(Error::Refused(_)) if !has_choice => {
            Said { map: None, info: connection.info().clone(), seen: Some(address.ip()) }
        }
        said => said?,
    };
    // It may have lost its disk, or wait to be let in; another one can say where work is done.
    if has_choice && said.map.as_ref().is_some_and(|map| map.cluster.is_none()) {
        let reason = "the node there belongs to no cluster yet".to_owned();
        return Err(Error::Connect { address: address.to_string(), reason });
    }
    Ok(Seed { connection, said })
}

/// The first success of several tries, each begun when the ones before failed or are silent for `hedge`. When all fail:
/// what somebody who answered said, else the last failure.
async fn first<T, F>(tries: impl Iterator<Item = F>, hedge: Duration) -> Result<T, Error>
where
    T: Send + 'static,
    F: Future<Output = Result<T, Error>> + Send + 'static,
{
    let mut tries = tries.fuse();
    let mut running = JoinSet::new();
    let mut failure: Option<Error> = None;
    loop {
        let next = tries.next();
        let has_more = next.is_some();
        next.map(|next| running.spawn(next));
        let ended = if has_more {
            timeout(hedge, running.join_next()).await.unwrap_or(None)
        } else {
            running.join_next().await
        };
        match ended {
            Some(Ok(Ok(success))) => return Ok(success),
            Some(Ok(Err(error))) => {
                let is_telling = !matches!(error, Error::Connect { .. });
                if is_telling || failure.as_ref().is_none_or(|known| matches!(known, Error::Connect { .. })) {
                    failure = Some(error);
                }
            }
            Some(Err(error)) => failure = Some(Error::lost(format!("the connecting task ended: {error}"))),
            None if has_more => {}
            None => {
                let nothing =
                    || Error::Connect { address: "(none)".to_owned(), reason: "no address was given".to_owned() };
                return Err(failure.unwrap_or_else(nothing));
            }
        }
    }
}

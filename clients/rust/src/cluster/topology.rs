//! Where requests go: nodes, their shards and connections, and who leads each partition.
//!
//! Invariants: a topology never changes, it is replaced by a newer one; connections outlive it for as long as their node
//! keeps its ports; within a cluster a leader of a lower term never replaces one of a higher, so that a node cut off from
//! the others cannot send the client back.
//!
//! A server that keeps no map is one node of which HelloReply says all.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use taskmaster_protocol::PartitionId;

use super::Connector;
use crate::error::Error;
use crate::view::{ClusterView, NodeStatus, NodeView};
use crate::wire::{Connection, Options, Pushes, ServerInfo};

/// What the client knows at one time.
pub(crate) struct Topology {
    /// What a node said at hello: limits, partitions.
    pub(crate) info: ServerInfo,
    /// Whether the server keeps a map.
    pub(crate) has_map: bool,
    cluster: Option<u128>,
    nodes: Vec<Arc<Node>>,
    /// By partition; empty when the only node has them all.
    leaders: Vec<Leader>,
    meta: Leader,
}

/// Who leads a group; node 0: nobody knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Leader {
    node: u64,
    term: u64,
}

impl Leader {
    /// The later one of two reports.
    fn or_later(self, report: Self) -> Self {
        let is_later = report.term > self.term || (report.term == self.term && report.node != 0);
        if is_later { report } else { self }
    }
}

/// A shard of a node.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) node: Arc<Node>,
    pub(crate) shard: u16,
}

impl Place {
    /// What names it across topologies.
    pub(crate) fn key(&self) -> (u64, u16) {
        (self.node.id, self.shard)
    }
}

/// A node.
pub(crate) struct Node {
    /// Identity; 0 when the server keeps no map.
    pub(crate) id: u64,
    pub(crate) is_alive: bool,
    /// In the order to try; none in memory.
    hosts: Vec<String>,
    /// Where a hello of this node came from.
    seen: Option<IpAddr>,
    ports: Vec<u16>,
    links: Arc<[Link]>,
    /// It did not answer in time when last asked for the map.
    is_slow: AtomicBool,
}

impl Node {
    pub(crate) fn shards(&self) -> u16 {
        u16::try_from(self.ports.len()).expect("a hello or map names at most 65,535 ports")
    }

    pub(super) fn link(&self, shard: u16) -> &Link {
        &self.links[usize::from(shard)]
    }

    /// One of its connections, by turns.
    pub(super) fn live(&self, turn: usize) -> Option<Arc<Connection>> {
        let shards = self.links.len();
        (0..shards).find_map(|step| self.links[(turn + step) % shards].live())
    }

    pub(super) fn is_slow(&self) -> bool {
        self.is_slow.load(Ordering::Relaxed)
    }

    pub(super) fn set_slow(&self, is_slow: bool) {
        self.is_slow.store(is_slow, Ordering::Relaxed);
    }

    /// A new connection to a shard's own port.
    pub(super) async fn open(
        &self,
        connector: &Connector,
        options: &Options,
        shard: u16,
    ) -> Result<(Connection, Pushes), Error> {
        let opened = match connector {
            Connector::Memory(server) => server.open(shard, options).await?,
            Connector::Tcp(_) => self.open_tcp(options, shard).await?,
        };
        if opened.0.info().shard == shard {
            return Ok(opened);
        }
        Err(Error::Protocol(format!("shard {shard}'s port answered for shard {}", opened.0.info().shard)))
    }

    async fn open_tcp(&self, options: &Options, shard: u16) -> Result<(Connection, Pushes), Error> {
        let port = self.ports[usize::from(shard)];
        let mut last = Error::Connect { address: "(none)".to_owned(), reason: "no address is known".to_owned() };
        for host in &self.hosts {
            match Connection::connect(&host_and_port(host, port), options).await {
                Ok(opened) => return Ok(opened),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

fn host_and_port(host: &str, port: u16) -> String {
    if host.contains(':') && !host.starts_with('[') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// The connection for requests to one shard.
#[derive(Default)]
pub(crate) struct Link {
    connection: Mutex<Option<Arc<Connection>>>,
    /// Held by who opens it.
    pub(super) opening: tokio::sync::Mutex<()>,
}

impl Link {
    pub(super) fn live(&self) -> Option<Arc<Connection>> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        if connection.as_ref().is_some_and(|connection| connection.is_ended()) {
            *connection = None;
        }
        connection.clone()
    }

    pub(super) fn set(&self, connection: Arc<Connection>) {
        *self.connection.lock().unwrap_or_else(PoisonError::into_inner) = Some(connection);
    }
}

fn links(shards: usize) -> Arc<[Link]> {
    (0..shards).map(|_| Link::default()).collect()
}

impl Topology {
    /// The node that said hello, for a server that keeps no map.
    pub(super) fn of_hello(info: &ServerInfo, seen: Option<IpAddr>) -> Self {
        let node = Node {
            id: 0,
            is_alive: true,
            hosts: seen.iter().map(IpAddr::to_string).collect(),
            seen,
            ports: info.shard_ports.clone(),
            links: links(info.shard_ports.len()),
            is_slow: AtomicBool::new(false),
        };
        Self {
            info: info.clone(),
            has_map: false,
            cluster: None,
            nodes: vec![Arc::new(node)],
            leaders: Vec::new(),
            meta: Leader::default(),
        }
    }

    /// The map that a node gave, on a connection that began with `info`. What `self` knows better stays.
    pub(super) fn with_map(&self, map: &ClusterView, info: &ServerInfo, seen: Option<IpAddr>) -> Self {
        let answered_by = map.answered_by.map_or(0, |id| id.0);
        let rows: Vec<&NodeView> =
            map.nodes.iter().filter(|row| row.status != NodeStatus::Removed && !row.ports.is_empty()).collect();
        if rows.is_empty() {
            return Self::of_hello(info, seen);
        }
        let is_only = rows.len() == 1;
        let node = |row: &&NodeView| {
            let seen = seen.filter(|_| row.id.0 == answered_by);
            // How the only node was reached is how its shards are reached, whatever it calls itself.
            let ports = if is_only { &info.shard_ports } else { &row.ports };
            self.node(row, ports, seen, is_only)
        };
        let nodes = rows.iter().map(node).collect();
        let report =
            |group: &crate::view::GroupView| Leader { node: group.leader.map_or(0, |id| id.0), term: group.term };
        let is_same = self.cluster == map.cluster && self.leaders.len() == map.partitions.len();
        let known = |at: usize| if is_same { self.leaders[at] } else { Leader::default() };
        let leaders = map.partitions.iter().enumerate().map(|(at, group)| known(at).or_later(report(group))).collect();
        let meta = if is_same { self.meta } else { Leader::default() };
        Self {
            info: info.clone(),
            has_map: true,
            cluster: map.cluster,
            nodes,
            leaders,
            meta: meta.or_later(report(&map.meta)),
        }
    }

    fn node(&self, row: &NodeView, ports: &[u16], seen: Option<IpAddr>, is_only: bool) -> Arc<Node> {
        let known = self.nodes.iter().find(|node| node.id == row.id.0);
        let seen = seen.or(known.and_then(|node| node.seen));
        let advertised = Some(row.host.clone()).filter(|host| !matches!(host.as_str(), "" | "0.0.0.0" | "::"));
        let seen_host = seen.map(|seen| seen.to_string());
        let mut hosts: Vec<String> =
            if is_only { [seen_host, advertised] } else { [advertised, seen_host] }.into_iter().flatten().collect();
        hosts.dedup();
        let same = known.filter(|node| node.ports == ports);
        if let Some(same) = same.filter(|node| node.hosts == hosts && node.is_alive == row.is_alive) {
            return Arc::clone(same);
        }
        Arc::new(Node {
            id: row.id.0,
            is_alive: row.is_alive,
            hosts,
            seen,
            ports: ports.to_vec(),
            links: same.map_or_else(|| links(ports.len()), |node| Arc::clone(&node.links)),
            is_slow: AtomicBool::new(false),
        })
    }

    pub(crate) fn nodes(&self) -> &[Arc<Node>] {
        &self.nodes
    }

    /// Shards of all nodes.
    pub(crate) fn shards(&self) -> u16 {
        self.nodes.iter().fold(0, |sum, node| sum.saturating_add(node.shards()))
    }

    pub(crate) fn partitions(&self) -> u16 {
        u16::try_from(self.info.partition_shards.len()).expect("checked at hello")
    }

    /// Every shard of every node.
    pub(crate) fn places(&self) -> impl Iterator<Item = Place> {
        let of_node = |node: &Arc<Node>| {
            let node = Arc::clone(node);
            (0..node.shards()).map(move |shard| Place { node: Arc::clone(&node), shard })
        };
        self.nodes.iter().flat_map(of_node)
    }

    /// The shard with this key, if there is one.
    pub(crate) fn place(&self, (node, shard): (u64, u16)) -> Option<Place> {
        let node = self.nodes.iter().find(|known| known.id == node && shard < known.shards())?;
        Some(Place { node: Arc::clone(node), shard })
    }

    /// One of all shards, by turns, of nodes that are there if any is.
    pub(crate) fn any(&self, turn: usize) -> Place {
        let is_alive = |place: &Place| place.node.is_alive && !place.node.is_slow();
        let count = self.places().filter(is_alive).count();
        let chosen = if count == 0 {
            self.places().nth(turn % usize::from(self.shards()))
        } else {
            self.places().filter(is_alive).nth(turn % count)
        };
        chosen.expect("there is a node, and a node has a shard")
    }

    /// Where the partition's leader is; `None` while nobody is known to lead.
    ///
    /// # Errors
    /// When there is no such partition.
    pub(crate) fn leader(&self, partition: PartitionId) -> Result<Option<Place>, Error> {
        let shards = &self.info.partition_shards;
        let shard = shards.get(usize::from(partition.0)).copied();
        let shard = shard.ok_or_else(|| Error::no_partition(partition, shards.len()))?;
        if self.leaders.is_empty() {
            return Ok(self.nodes.first().map(|node| Place { node: Arc::clone(node), shard: shard % node.shards() }));
        }
        let leader = self.leaders.get(usize::from(partition.0)).map_or(0, |leader| leader.node);
        Ok(self.node_of(leader).map(|node| Place { shard: partition.0 % node.shards(), node }))
    }

    /// Where the leader of the map's own group is.
    pub(crate) fn meta_leader(&self) -> Option<Place> {
        self.node_of(self.meta.node).map(|node| Place { node, shard: 0 })
    }

    fn node_of(&self, id: u64) -> Option<Arc<Node>> {
        self.nodes.iter().find(|node| node.id == id && id != 0).map(Arc::clone)
    }

    /// Whether requests would go the same ways.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        let same_node = |(a, b): (&Arc<Node>, &Arc<Node>)| Arc::ptr_eq(a, b);
        self.has_map == other.has_map
            && self.cluster == other.cluster
            && self.leaders == other.leaders
            && self.meta == other.meta
            && self.nodes.len() == other.nodes.len()
            && self.nodes.iter().zip(&other.nodes).all(same_node)
            && self.partitions() == other.partitions()
            // Of several nodes each has ports of its own, and says hello with them.
            && (self.nodes.len() > 1 || self.info.shard_ports == other.info.shard_ports)
            && (self.has_map || self.info.partition_shards == other.info.partition_shards)
    }

    /// Whether a hello tells of another arrangement than this one, which came from a hello too.
    pub(super) fn differs_from(&self, info: &ServerInfo, seen: Option<IpAddr>) -> bool {
        self.info.partition_shards != info.partition_shards
            || self.info.shard_ports != info.shard_ports
            || self.seen() != seen
    }

    /// Where the first node's hello came from.
    pub(super) fn seen(&self) -> Option<IpAddr> {
        self.nodes.first().and_then(|node| node.seen)
    }

    /// Whether the node belongs to a cluster, or its server knows no clusters.
    pub(super) fn has_cluster(&self) -> bool {
        !self.has_map || self.cluster.is_some()
    }

    /// Whether a map is of the cluster known, or the first.
    pub(super) fn is_of_same_cluster(&self, map: &ClusterView) -> bool {
        self.cluster.is_none() || self.cluster == map.cluster
    }
}

#[cfg(test)]
#[path = "topology/tests.rs"]
mod tests;

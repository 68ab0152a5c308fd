//! Who a node is to others, and what its shards need to meet them.

use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use anyhow::Context;
use taskmaster_engine::cluster::{Member, NodeInfo, SOFTWARE_VERSION};
use taskmaster_net::listener;
use taskmaster_net::peers::{Identity, Tls, TlsFiles};

use crate::config::Config;
use crate::reachable;
use crate::shard_loop::{GossipSetting, PeerStart};

/// Name of a node that stands alone and is named at greater length than a cluster's map allows.
const NAMELESS: &str = "node";
/// Variable of debug builds with the version to announce.
const ANNOUNCED_VERSION: &str = "TASKMASTER_ANNOUNCED_VERSION";

/// The node as a cluster's map describes it. One that stands alone describes itself as well as it can.
///
/// # Errors
/// What others need to know cannot be known, and how to say it.
pub(super) fn describe(config: &Config, dir: u128, client_ports: &[u16]) -> anyhow::Result<NodeInfo> {
    let mut info = NodeInfo {
        id: reachable::node_id(dir),
        name: config.node.name.clone(),
        zone: config.cluster.zone.clone(),
        host: config.listen.address.ip().to_string(),
        peer_port: config.cluster.listen.port(),
        client_ports: client_ports.to_vec(),
        version: announced_version(),
    };
    if config.clustered {
        info.name = reachable::node_name(config);
        info.host = reachable::host(config).map_err(anyhow::Error::msg)?;
        info.validate().map_err(anyhow::Error::msg)?;
    } else if info.validate().is_err() {
        NAMELESS.clone_into(&mut info.name);
    }
    Ok(info)
}

/// The format version of this software. Tests of upgrades let a debug build announce another one: formats are the same, and
/// what depends on the versions of nodes is not.
fn announced_version() -> u32 {
    let told = if cfg!(debug_assertions) { std::env::var(ANNOUNCED_VERSION).ok() } else { None };
    told.and_then(|told| told.parse().ok()).unwrap_or(SOFTWARE_VERSION)
}

/// What the shards of a node in a cluster need to meet others.
pub(super) struct Neighbours {
    identity: Identity,
    tls: Option<Tls>,
    listen: SocketAddr,
    gossip: GossipSetting,
}

impl Neighbours {
    /// Nothing for a node that stands alone.
    ///
    /// # Errors
    /// A port for other nodes is taken, or the node's own host is not known here.
    pub(super) fn new(config: &Config, info: &NodeInfo) -> anyhow::Result<Option<Self>> {
        if !config.clustered {
            return Ok(None);
        }
        let cluster = &config.cluster;
        for shard in 0..info.shards() {
            let listen = peer_address(cluster.listen, shard);
            listener::reserve(listen).with_context(|| {
                format!("cannot listen to other nodes on {listen}: stop what uses the port, or choose others by cluster.listen")
            })?;
        }
        let resolved = (info.host.as_str(), info.peer_port).to_socket_addrs().ok().and_then(|mut found| found.next());
        let peer = resolved.with_context(|| {
            format!(
                "this node's own host {} has no address here: set cluster.advertise to a name or address that has",
                info.host
            )
        })?;
        let own = Member {
            id: info.id,
            cluster: 0,
            bump: 0,
            peer,
            shards: u16::try_from(info.shards()).context("too many shards")?,
            version: info.version,
            name: info.name.clone(),
            is_alive: true,
        };
        let gossip = GossipSetting {
            cluster_name: cluster.name.clone(),
            own,
            listen: cluster.listen,
            seeds: seeds(config),
            resolve_every: Duration::from_millis(cluster.dns_interval.as_ms()),
        };
        let identity = Identity {
            cluster_name: cluster.name.clone(),
            cluster: 0,
            node: info.id,
            node_name: info.name.clone(),
            shard: 0,
            version: info.version,
        };
        Ok(Some(Self { identity, tls: tls(config, &info.name)?, listen: cluster.listen, gossip }))
    }

    /// What shard `number` needs.
    pub(super) fn start(&self, number: usize) -> PeerStart {
        let shard = u16::try_from(number).expect("shards are few");
        PeerStart {
            identity: Identity { shard, ..self.identity.clone() },
            tls: self.tls.clone(),
            listen: peer_address(self.listen, number),
            gossip: (number == 0).then(|| self.gossip.clone()),
        }
    }
}

/// Certificates and key, where nodes speak TLS with each other.
fn tls(config: &Config, name: &str) -> anyhow::Result<Option<Tls>> {
    let cluster = &config.cluster;
    let (Some(ca), Some(cert), Some(key)) = (&cluster.tls_ca, &cluster.tls_cert, &cluster.tls_key) else {
        return Ok(None);
    };
    let files = TlsFiles { ca: ca.clone(), cert: cert.clone(), key: key.clone() };
    Ok(Some(Tls::load(&files, name)?))
}

/// Where a shard listens to other nodes.
fn peer_address(first: SocketAddr, shard: usize) -> SocketAddr {
    let shard = u16::try_from(shard).expect("shards are few");
    SocketAddr::new(first.ip(), first.port().saturating_add(shard))
}

/// Names and ports to begin with: the seeds, and the DNS name.
fn seeds(config: &Config) -> Vec<(String, u16)> {
    let cluster = &config.cluster;
    let mut targets = cluster.seeds.clone();
    if !cluster.dns.is_empty() {
        targets.push(reachable::dns_target(&cluster.dns, cluster.listen.port()));
    }
    let parted = |target: &String| {
        let (host, port) = target.rsplit_once(':')?;
        Some((host.trim_matches(['[', ']']).to_owned(), port.parse().ok()?))
    };
    targets.iter().filter_map(parted).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_names_and_ports() {
        let mut config = Config { clustered: true, ..Config::default() };
        config.cluster.seeds = vec!["n1.example:7801".to_owned(), "[::1]:7802".to_owned()];
        config.cluster.dns = "nodes.example".to_owned();
        let expected = [("n1.example", 7_801), ("::1", 7_802), ("nodes.example", 7_800)];
        assert_eq!(seeds(&config), expected.map(|(host, port)| (host.to_owned(), port)));
    }

    #[test]
    fn a_node_that_stands_alone_describes_itself_validly_whatever_its_name() {
        let mut config = Config::default();
        config.node.name = "x".repeat(128);
        let info = describe(&config, 9, &[7_700]).unwrap();
        assert_eq!((info.name.as_str(), info.validate()), (NAMELESS, Ok(())));
        config.clustered = true;
        config.cluster.node_name = "n1".to_owned();
        config.cluster.advertise = "n1.example".to_owned();
        let info = describe(&config, 9, &[7_701, 7_702]).unwrap();
        assert_eq!((info.name.as_str(), info.host.as_str(), info.shards()), ("n1", "n1.example", 2));
    }
}
